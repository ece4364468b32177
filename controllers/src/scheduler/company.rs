//! Rules about other pods: affinity and anti-affinity between pods, and spreading over topologies.
//!
//! Both are computed once per pod over all nodes (counts per topology value), then asked per node.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::Rule;
use super::cache::{Cache, Host, Mark, ZONE, mark};
use super::filter::{Refusal, tolerated, wants_node};
use crate::controllers::pods;
use crate::runtime::informer::controller_of;
use crate::runtime::select;

/// Labels of namespaces, for terms with a namespace selector.
pub type Namespaces = HashMap<String, Option<BTreeMap<String, String>>>;

/// Something per topology: by label key and value.
type Places<T> = HashMap<String, HashMap<String, T>>;

const HOSTNAME: &str = "kubernetes.io/hostname";

/// What other pods mean for one pod.
#[derive(Debug, Default)]
pub struct Company {
    /// Topologies that pods there forbid, or that this pod's anti-affinity forbids.
    refused_by_others: Places<()>,
    refused_by_self: Places<()>,
    /// Per required affinity term: its key, and the values where it holds.
    wanted: Vec<(String, HashMap<String, ()>)>,
    /// No pod matches any term, and the pod matches all of its own: the first of a group may go anywhere.
    first: bool,
    /// Sum of preferences per topology.
    liked: Places<i64>,
    spread: Vec<Spread>,
}

/// One spreading constraint, with the counts it is about.
#[derive(Debug)]
struct Spread {
    key: String,
    hard: bool,
    max_skew: i64,
    /// The pod counts towards its own constraint.
    itself: i64,
    counts: Counts,
    /// Pods in the emptiest topology; with fewer topologies than asked for, that is one with none.
    least: i64,
    /// What one pod counts: many small topologies weigh more than few large ones.
    weight: f64,
}

/// Numbers of pods per topology.
#[derive(Debug)]
enum Counts {
    /// By the label's value.
    Values(BTreeMap<String, i64>),
    /// Each node is one: the pods of this controller there.
    Nodes(Mark),
    /// Each zone is one: the pods of a controller there.
    Zones(BTreeMap<Mark, i64>),
}

fn place<'a, T: Default>(places: &'a mut Places<T>, key: &str, value: &str) -> &'a mut T {
    places.entry(key.to_owned()).or_default().entry(value.to_owned()).or_default()
}

/// What is said of a host's topologies.
fn at<'a, T>(places: &'a Places<T>, host: &Host) -> impl Iterator<Item = &'a T> {
    places.iter().filter_map(|(key, values)| values.get(value(host, key)?))
}

fn value<'a>(host: &'a Host, key: &str) -> Option<&'a String> {
    host.labels().as_ref()?.get(key)
}

/// Whether `other` is one of the pods that a term of `pod` speaks of.
fn speaks_of(term: &PodAffinityTerm, pod: &Pod, other: &Pod, namespaces: &Namespaces) -> bool {
    let theirs = other.metadata.namespace.as_deref().unwrap_or_default();
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let in_namespace = match (&term.namespace_selector, listed) {
        (None, []) => pod.metadata.namespace.as_deref() == Some(theirs),
        (selector, listed) => {
            listed.iter().any(|n| n == theirs)
                || selector.as_ref().is_some_and(|s| {
                    namespaces.get(theirs).map_or_else(|| select::is_empty(s), |labels| select::matches(s, labels))
                })
        }
    };
    in_namespace && with_keys(term, pod).is_some_and(|s| select::matches(&s, &other.metadata.labels))
}

/// The term's selector, narrowed by the pod's own values of `matchLabelKeys`.
fn with_keys<'a>(term: &'a PodAffinityTerm, pod: &Pod) -> Option<Cow<'a, LabelSelector>> {
    let mut selector = Cow::Borrowed(term.label_selector.as_ref()?);
    for (keys, operator) in [(&term.match_label_keys, "In"), (&term.mismatch_label_keys, "NotIn")] {
        if let Some(keys) = keys.as_deref().filter(|k| !k.is_empty()) {
            narrow(selector.to_mut(), keys, operator, pod);
        }
    }
    Some(selector)
}

fn narrow(selector: &mut LabelSelector, keys: &[String], operator: &str, pod: &Pod) {
    for key in keys {
        if let Some(v) = pod.metadata.labels.as_ref().and_then(|l| l.get(key)) {
            selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
                key: key.clone(),
                operator: operator.to_owned(),
                values: Some(vec![v.clone()]),
            });
        }
    }
}

fn required(pod: &Pod, anti: bool) -> &[PodAffinityTerm] {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
    let terms = if anti {
        affinity
            .and_then(|a| a.pod_anti_affinity.as_ref())
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
    } else {
        affinity
            .and_then(|a| a.pod_affinity.as_ref())
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
    };
    terms.unwrap_or_default()
}

/// Preferred terms with signed weights.
fn preferred(pod: &Pod) -> impl Iterator<Item = (i64, &PodAffinityTerm)> {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
    let likes = affinity.and_then(|a| a.pod_affinity.as_ref());
    let likes = likes.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let avoids = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    let avoids = avoids.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let likes = likes.unwrap_or_default().iter().map(|w| (i64::from(w.weight), &w.pod_affinity_term));
    likes.chain(avoids.unwrap_or_default().iter().map(|w| (-i64::from(w.weight), &w.pod_affinity_term)))
}

impl Company {
    /// Looks at all pods once.
    #[must_use]
    pub fn of(pod: &Pod, cache: &Cache, namespaces: &Namespaces) -> Self {
        let mut c = Self { spread: spreads(pod, cache), ..Self::default() };
        let others = |f: &mut dyn FnMut(&Host, &Pod)| {
            for (_, host) in cache.nodes() {
                host.pods.values().for_each(|p| f(host, &p.pod));
            }
        };
        // What pods that are there think of this one.
        for key in &cache.refusing {
            let Some((host, placed)) = cache.find(key) else { continue };
            let other = &*placed.pod;
            for t in required(other, true).iter().filter(|t| speaks_of(t, other, pod, namespaces)) {
                if let Some(v) = value(host, &t.topology_key) {
                    place(&mut c.refused_by_others, &t.topology_key, v);
                }
            }
            let hard = required(other, false).iter().map(|t| (1, t));
            for (weight, t) in preferred(other).chain(hard) {
                if let Some(v) = value(host, &t.topology_key).filter(|_| speaks_of(t, other, pod, namespaces)) {
                    *place(&mut c.liked, &t.topology_key, v) += weight;
                }
            }
        }
        let anti = required(pod, true);
        let liked: Vec<(i64, &PodAffinityTerm)> = preferred(pod).collect();
        if !anti.is_empty() || !liked.is_empty() {
            others(&mut |host, other| {
                for t in anti.iter().filter(|t| speaks_of(t, pod, other, namespaces)) {
                    if let Some(v) = value(host, &t.topology_key) {
                        place(&mut c.refused_by_self, &t.topology_key, v);
                    }
                }
                for (weight, t) in liked.iter().filter(|(_, t)| speaks_of(t, pod, other, namespaces)) {
                    if let Some(v) = value(host, &t.topology_key) {
                        *place(&mut c.liked, &t.topology_key, v) += weight;
                    }
                }
            });
        }
        let terms = required(pod, false);
        if !terms.is_empty() {
            c.wanted = terms.iter().map(|t| (t.topology_key.clone(), HashMap::new())).collect();
            others(&mut |host, other| {
                // A pod counts when all terms speak of it.
                if terms.iter().all(|t| speaks_of(t, pod, other, namespaces)) {
                    for (key, values) in &mut c.wanted {
                        if let Some(v) = value(host, key) {
                            values.insert(v.clone(), ());
                        }
                    }
                }
            });
            c.first =
                c.wanted.iter().all(|(_, v)| v.is_empty()) && terms.iter().all(|t| speaks_of(t, pod, pod, namespaces));
        }
        c
    }

    /// Whether the pod may go to a node, as far as other pods are concerned.
    ///
    /// # Errors
    /// The refusal.
    pub fn allows(&self, host: &Host) -> Result<(), Refusal> {
        for s in self.spread.iter().filter(|s| s.hard) {
            let Some(v) = value(host, &s.key) else {
                let text = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Refusal::new(Rule::Spread, text, false));
            };
            if s.here(host, v) + s.itself - s.least > s.max_skew {
                return Err(Refusal::new(Rule::Spread, "node(s) didn't match pod topology spread constraints", true));
            }
        }
        let has = |v: Option<&String>, values: &HashMap<String, ()>| v.is_some_and(|v| values.contains_key(v));
        let all_there = self.wanted.iter().all(|(key, values)| has(value(host, key), values));
        let may_be_first = self.first && self.wanted.iter().all(|(key, _)| value(host, key).is_some());
        if !all_there && !may_be_first {
            return Err(Refusal::new(Rule::Company, "node(s) didn't match pod affinity rules", false));
        }
        let here = |places: &Places<()>| at(places, host).next().is_some();
        if here(&self.refused_by_self) {
            return Err(Refusal::new(Rule::Company, "node(s) didn't match pod anti-affinity rules", true));
        }
        if here(&self.refused_by_others) {
            let text = "node(s) didn't satisfy existing pods anti-affinity rules";
            return Err(Refusal::new(Rule::Company, text, true));
        }
        Ok(())
    }

    /// Whether pods nearby speak for or against any node.
    #[must_use]
    pub fn likes(&self) -> bool {
        !self.liked.is_empty()
    }

    /// How much pods nearby speak for a node.
    #[must_use]
    pub fn liking(&self, host: &Host) -> i64 {
        at(&self.liked, host).sum()
    }

    /// How crowded a node's topologies are with pods like this one (more is worse). `None`: a label is missing.
    #[must_use]
    pub fn crowding(&self, host: &Host) -> Option<f64> {
        let mut sum = 0.0;
        for s in self.spread.iter().filter(|s| !s.hard) {
            let count = match &s.counts {
                Counts::Values(counts) => counts.get(value(host, &s.key)?).copied().unwrap_or(0),
                Counts::Nodes(controller) => host.pods_of(*controller),
                Counts::Zones(counts) => counts.get(&host.zone?).copied().unwrap_or(0),
            };
            // A larger allowed skew blurs.
            sum += count as f64 * s.weight + (s.max_skew - 1) as f64;
        }
        Some(sum)
    }

    /// Whether there is a soft constraint at all.
    #[must_use]
    pub fn spreads_softly(&self) -> bool {
        self.spread.iter().any(|s| !s.hard)
    }
}

impl Spread {
    /// Pods in a host's topology, which has this value.
    fn here(&self, host: &Host, value: &str) -> i64 {
        match &self.counts {
            Counts::Values(counts) => counts.get(value).copied().unwrap_or(0),
            Counts::Nodes(controller) => host.pods_of(*controller),
            Counts::Zones(counts) => host.zone.and_then(|z| counts.get(&z)).copied().unwrap_or(0),
        }
    }
}

fn weight(topologies: usize) -> f64 {
    ((topologies + 2) as f64).ln()
}

fn spreads(pod: &Pod, cache: &Cache) -> Vec<Spread> {
    let constraints = pod.spec.as_ref().and_then(|s| s.topology_spread_constraints.as_deref()).unwrap_or_default();
    if constraints.is_empty() {
        return default_spreads(pod, cache);
    }
    let hard_keys: Vec<&String> =
        constraints.iter().filter(|c| c.when_unsatisfiable == "DoNotSchedule").map(|c| &c.topology_key).collect();
    constraints.iter().map(|c| spread(c, pod, cache, &hard_keys)).collect()
}

fn spread(c: &TopologySpreadConstraint, pod: &Pod, cache: &Cache, hard_keys: &[&String]) -> Spread {
    let mut selector = c.label_selector.clone();
    if let Some(s) = &mut selector {
        narrow(s, c.match_label_keys.as_deref().unwrap_or_default(), "In", pod);
    }
    let counts_in = |p: &Pod| selector.as_ref().is_some_and(|s| select::matches(s, &p.metadata.labels));
    let hard = c.when_unsatisfiable == "DoNotSchedule";
    let mut counts = BTreeMap::new();
    for (_, host) in cache.nodes() {
        let Some(node) = &host.node else { continue };
        let Some(v) = value(host, &c.topology_key) else { continue };
        if hard && hard_keys.iter().any(|k| value(host, k).is_none()) {
            continue;
        }
        if c.node_affinity_policy.as_deref() != Some("Ignore") && !wants_node(pod, node) {
            continue;
        }
        if c.node_taints_policy.as_deref() == Some("Honor") {
            let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
            let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
            if taints.iter().any(|t| t.effect != "PreferNoSchedule" && !tolerated(t, tolerations)) {
                continue;
            }
        }
        let same = |p: &Pod| p.metadata.namespace == pod.metadata.namespace && !pods::deleting(p) && counts_in(p);
        *counts.entry(v.clone()).or_insert(0) += number(host, same);
    }
    let enough = i64::try_from(counts.len()).unwrap_or(i64::MAX) >= i64::from(c.min_domains.unwrap_or(1));
    Spread {
        key: c.topology_key.clone(),
        hard,
        max_skew: i64::from(c.max_skew),
        itself: i64::from(counts_in(pod)),
        least: counts.values().copied().min().filter(|_| enough).unwrap_or(0),
        weight: weight(counts.len()),
        counts: Counts::Values(counts),
    }
}

fn number(host: &Host, test: impl Fn(&Pod) -> bool) -> i64 {
    i64::try_from(host.pods.values().filter(|p| test(&p.pod)).count()).unwrap_or(i64::MAX)
}

/// Pods of one controller are spread over hosts and zones as far as that costs nothing. The numbers are kept by the
/// cache: to count them for each pod would cost more than everything else.
fn default_spreads(pod: &Pod, cache: &Cache) -> Vec<Spread> {
    let Some(owner) = controller_of(pod) else { return vec![] };
    let one = |key: &str, max_skew: i64, topologies: usize, counts: Counts| Spread {
        key: key.to_owned(),
        hard: false,
        max_skew,
        itself: 1,
        counts,
        least: 0,
        weight: weight(topologies),
    };
    let controller = mark(&owner.uid);
    let mut list = vec![one(HOSTNAME, 3, cache.len(), Counts::Nodes(controller))];
    // Nodes without a zone would otherwise never be compared.
    if let Some((zones, counts)) = cache.zones_of(controller) {
        list.push(one(ZONE, 5, zones, Counts::Zones(counts.cloned().unwrap_or_default())));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn cluster(pods: &[(&str, &str, Value)]) -> Cache {
        let mut cache = Cache::default();
        for (name, zone) in [("n1", "a"), ("n2", "a"), ("n3", "b")] {
            let node = json!({"metadata": {"name": name, "labels": {HOSTNAME: name, ZONE: zone}}});
            cache.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        }
        for (name, node, spec) in pods {
            let pod = Arc::new(pod(name, Some(node), spec.clone()));
            cache.set_pod(&format!("x/{name}"), Some(&pod));
        }
        cache
    }

    fn pod(app: &str, node: Option<&str>, mut spec: Value) -> Pod {
        spec["containers"] = json!([]);
        spec["nodeName"] = json!(node);
        let app = app.trim_end_matches(char::is_numeric);
        serde_json::from_value(json!({"metadata": {"namespace": "x", "labels": {"app": app}}, "spec": spec})).unwrap()
    }

    fn anti(app: &str, key: &str) -> Value {
        json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}]}}})
    }

    fn near(app: &str, key: &str) -> Value {
        json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}]}}})
    }

    fn evenly(skew: i32, key: &str) -> Value {
        json!({"topologySpreadConstraints": [{"maxSkew": skew, "topologyKey": key,
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]})
    }

    fn check(there: &[(&str, &str, Value)], app: &str, spec: Value, want: &str) {
        let cache = cluster(there);
        let pod = pod(app, None, spec.clone());
        let company = Company::of(&pod, &cache, &Namespaces::new());
        let fit: Vec<&str> =
            cache.nodes().filter(|(_, h)| company.allows(h).is_ok()).map(|(n, _)| n.as_str()).collect();
        assert_eq!(fit.join(" "), want, "{app} {spec}");
    }

    #[test]
    fn between_pods() {
        let none = || json!({});
        check(&[], "web", anti("web", HOSTNAME), "n1 n2 n3");
        check(&[("web1", "n1", none())], "web", anti("web", HOSTNAME), "n2 n3");
        check(&[("web1", "n1", none())], "web", anti("web", ZONE), "n3");
        check(&[("db1", "n3", anti("web", ZONE))], "web", none(), "n1 n2");
        check(&[("db1", "n1", none())], "web", near("db", ZONE), "n1 n2");
        check(&[], "web", near("db", ZONE), "");
        check(&[], "web", near("web", ZONE), "n1 n2 n3");
        check(&[("web1", "n3", none())], "web", near("web", HOSTNAME), "n3");
    }

    #[test]
    fn spreading() {
        let none = || json!({});
        check(&[], "web", evenly(1, HOSTNAME), "n1 n2 n3");
        check(&[("web1", "n1", none())], "web", evenly(1, HOSTNAME), "n2 n3");
        check(&[("web1", "n1", none())], "web", evenly(1, ZONE), "n3");
        check(&[("web1", "n1", none())], "web", evenly(2, ZONE), "n1 n2 n3");
        check(&[("web1", "n1", none())], "web", evenly(1, "rack"), "");
    }

    /// Nodes that allow `pod`, of a cluster with zones a (n1, n2) and b (n3, tainted).
    fn allowed(there: &[(&str, &str, Value)], pod: &Value, namespaces: &Namespaces) -> String {
        let mut cache = cluster(there);
        let mut n3 = json!({"metadata": {"name": "n3", "labels": {HOSTNAME: "n3", ZONE: "b"}}});
        n3["spec"] = json!({"taints": [{"key": "k", "effect": "NoSchedule"}]});
        cache.set_node(Arc::new(serde_json::from_value(n3).unwrap()));
        let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
        let company = Company::of(&pod, &cache, namespaces);
        let fit: Vec<&str> =
            cache.nodes().filter(|(_, h)| company.allows(h).is_ok()).map(|(n, _)| n.as_str()).collect();
        fit.join(" ")
    }

    #[test]
    fn every_field_of_spreading() {
        let web = |more: Value| {
            let mut c = json!({"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": "web"}}});
            let selector = more.get("nodeSelector").cloned();
            c.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            c.as_object_mut().unwrap().remove("nodeSelector");
            json!({"metadata": {"namespace": "x", "labels": {"app": "web", "version": "2"}},
                "spec": {"containers": [], "nodeSelector": selector, "topologySpreadConstraints": [c]}})
        };
        let one = [("web1", "n1", json!({}))];
        for (more, want) in [
            (json!({}), "n3"),
            (json!({"maxSkew": 2}), "n1 n2 n3"),
            (json!({"whenUnsatisfiable": "ScheduleAnyway"}), "n1 n2 n3"),
            // Fewer zones than asked for: the emptiest counts as one without pods.
            (json!({"minDomains": 3, "maxSkew": 2}), "n1 n2 n3"),
            (json!({"minDomains": 3}), "n3"),
            // Pods of another version do not count.
            (json!({"matchLabelKeys": ["version"]}), "n1 n2 n3"),
            // The tainted node is no place to compare with when taints are honoured.
            (json!({"nodeTaintsPolicy": "Honor"}), "n1 n2 n3"),
            (json!({"nodeTaintsPolicy": "Ignore"}), "n3"),
            // Nodes that the selector leaves out do not count, unless it is ignored.
            (json!({"nodeSelector": {"nobody": "has"}}), "n1 n2 n3"),
            (json!({"nodeSelector": {"nobody": "has"}, "nodeAffinityPolicy": "Ignore"}), "n3"),
        ] {
            assert_eq!(allowed(&one, &web(more.clone()), &Namespaces::new()), want, "{more}");
        }
    }

    #[test]
    fn every_field_of_affinity() {
        let pod = |kind: &str, more: Value| {
            let mut t = json!({"topologyKey": HOSTNAME, "labelSelector": {"matchLabels": {"app": "db"}}});
            t.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"metadata": {"namespace": "y", "labels": {"app": "web", "team": "red"}}, "spec": {"containers": [],
                "affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [t]}}}})
        };
        let there = [("db1", "n2", json!({}))];
        let labelled: Namespaces = [("x".to_owned(), Some([("env".to_owned(), "test".to_owned())].into()))].into();
        let none = Namespaces::new();
        for (kind, more, namespaces, want) in [
            ("podAffinity", json!({}), &none, ""),
            ("podAffinity", json!({"namespaces": ["x"]}), &none, "n2"),
            ("podAffinity", json!({"namespaceSelector": {}}), &labelled, "n2"),
            ("podAffinity", json!({"namespaceSelector": {"matchLabels": {"env": "test"}}}), &labelled, "n2"),
            ("podAffinity", json!({"namespaceSelector": {"matchLabels": {"env": "live"}}}), &labelled, ""),
            ("podAffinity", json!({"namespaceSelector": {}, "matchLabelKeys": ["team"]}), &labelled, ""),
            ("podAffinity", json!({"namespaceSelector": {}, "mismatchLabelKeys": ["team"]}), &labelled, "n2"),
            ("podAntiAffinity", json!({}), &none, "n1 n2 n3"),
            ("podAntiAffinity", json!({"namespaces": ["x"]}), &none, "n1 n3"),
            ("podAntiAffinity", json!({"namespaces": ["x"], "topologyKey": ZONE}), &none, "n3"),
        ] {
            assert_eq!(allowed(&there, &pod(kind, more.clone()), namespaces), want, "{kind} {more}");
        }
    }

    #[test]
    fn likings_count_both_ways() {
        let weighted = |kind: &str, weight: i32| {
            json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": weight,
                "podAffinityTerm": {"topologyKey": HOSTNAME, "labelSelector": {"matchLabels": {"app": "web"}}}}]}}})
        };
        for (there, spec, want) in [
            (("web1", "n1", json!({})), weighted("podAffinity", 7), [7, 0]),
            (("web1", "n1", json!({})), weighted("podAntiAffinity", 7), [-7, 0]),
            // What those that are there would like.
            (("db1", "n1", weighted("podAffinity", 5)), json!({}), [5, 0]),
            (("db1", "n1", weighted("podAntiAffinity", 5)), json!({}), [-5, 0]),
            (("db1", "n1", near("web", HOSTNAME)), json!({}), [1, 0]),
        ] {
            let cache = cluster(std::slice::from_ref(&there));
            let company = Company::of(&pod("web", None, spec.clone()), &cache, &Namespaces::new());
            let got = ["n1", "n2"].map(|n| company.liking(&cache.hosts[n]));
            assert_eq!(got, want, "{there:?} {spec}");
        }
    }
}
