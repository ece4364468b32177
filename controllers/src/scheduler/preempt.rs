//! Preemption: pods of lower priority make room for one that fits nowhere.
//!
//! On each node whose refusal other pods cause, all pods of lower priority are taken away in thought; if the pod then
//! fits, as many as possible are put back, the highest priority first. The node that loses least is chosen.
//!
//! Pods that a disruption budget protects are put back first, and a node where none of them has to go is better than
//! one where some have; but a budget does not forbid preemption, as upstream.
//!
//! # Limits
//! Nominations of less important pods to the chosen node are not taken back.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};

use super::cache::{Cache, Host, Placed, priority};
use super::company::{Company, Namespaces};
use super::filter::{self, Refusal};
use super::volumes::Wants;
use crate::controllers::pods;
use crate::controllers::volumes::claims_of;
use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::key_of;
use crate::runtime::{now, select};

/// Pods that must go from a node.
#[derive(Debug)]
pub struct Victims {
    /// The node.
    pub node: String,
    /// The pods, highest priority first.
    pub pods: Vec<Arc<Pod>>,
}

/// What a plan rests on besides nodes and pods.
#[derive(Debug)]
pub struct Context<'a> {
    /// Labels of namespaces.
    pub namespaces: &'a Namespaces,
    /// What the pod's volumes ask for.
    pub wants: &'a Wants,
    /// Disruption budgets.
    pub budgets: &'a [Arc<PodDisruptionBudget>],
}

/// Whom to remove.
///
/// # Errors
/// In upstream's words why nobody helps.
pub fn plan(
    pod: &Arc<Pod>,
    cache: &Cache,
    refusals: &[(String, Refusal)],
    context: &Context<'_>,
) -> Result<Victims, String> {
    let total = refusals.len();
    if pod.spec.as_ref().and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return Err("not eligible due to preemptionPolicy=Never.".into());
    }
    // One that waits for its victims to end takes no more.
    if let Some(node) = pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref())
        && cache
            .hosts
            .get(node)
            .is_some_and(|h| h.pods.values().any(|p| pods::deleting(&p.pod) && priority(&p.pod) < priority(pod)))
    {
        return Err("not eligible due to a terminating pod on the nominated node.".into());
    }
    let mut best: Option<(Victims, Cost)> = None;
    let mut reasons = Vec::new();
    let mut thought = Thought::of(pod, cache);
    let (mut found, enough) = (0, (cache.len() / 10).max(CANDIDATES_MIN));
    for (name, refusal) in refusals {
        if found >= enough {
            break;
        }
        if !refusal.curable {
            reasons.push("Preemption is not helpful for scheduling".to_owned());
            continue;
        }
        match on_node(&mut thought, name, context) {
            Err(why) => reasons.extend(why),
            Ok((victims, violations)) => {
                found += 1;
                let cost = cost(&victims, violations);
                if best.as_ref().is_none_or(|(_, c)| cost < *c) {
                    best = Some((Victims { node: name.clone(), pods: victims }, cost));
                }
            }
        }
    }
    best.map(|(v, _)| v)
        .ok_or_else(|| format!("0/{total} nodes are available: {}.", filter::counted(reasons.into_iter())))
}

/// Broken budgets, the highest priority, the sum of priorities, the number of victims, and last how long the most
/// important of them have run: less is better.
type Cost = (usize, i32, i64, usize, std::cmp::Reverse<Option<Timestamp>>);

fn started(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    status.or(pod.metadata.creation_timestamp.as_ref()).map(|t| t.0)
}

fn cost(victims: &[Arc<Pod>], violations: usize) -> Cost {
    let highest = victims.iter().map(|p| priority(p)).max().unwrap_or(i32::MIN);
    let sum = victims.iter().map(|p| i64::from(priority(p)) + i64::from(i32::MAX) + 1).sum();
    let oldest = victims.iter().filter(|p| priority(p) == highest).filter_map(|p| started(p)).min();
    (violations, highest, sum, victims.len(), std::cmp::Reverse(oldest))
}

/// Splits pods into those that go against a budget if they are removed in this order, and the others.
fn split(pods: Vec<Arc<Pod>>, budgets: &[Arc<PodDisruptionBudget>]) -> (Vec<Arc<Pod>>, Vec<Arc<Pod>>) {
    let allowed = |b: &PodDisruptionBudget| b.status.as_ref().and_then(|s| s.disruptions_allowed).unwrap_or(0);
    let mut left: Vec<i32> = budgets.iter().map(|b| allowed(b)).collect();
    pods.into_iter().partition(|p| {
        let mut breaks = false;
        for (b, left) in budgets.iter().zip(&mut left) {
            let selector = b.spec.as_ref().and_then(|s| s.selector.as_ref());
            let speaks = p.metadata.labels.as_ref().is_some_and(|l| !l.is_empty())
                && b.metadata.namespace == p.metadata.namespace
                && selector.is_some_and(|s| !select::is_empty(s) && select::matches(s, &p.metadata.labels));
            // One that is being disrupted already is counted already.
            let counted = b.status.as_ref().and_then(|s| s.disrupted_pods.as_ref());
            let counted = counted.is_some_and(|d| d.contains_key(&p.name_any()));
            if speaks && !counted {
                *left -= 1;
                breaks |= *left < 0;
            }
        }
        breaks
    })
}

/// Candidates that are enough to choose among, or a tenth of all nodes when that is more: upstream's numbers.
const CANDIDATES_MIN: usize = 100;

/// Where removals are tried.
struct Thought<'a> {
    cache: &'a Cache,
    placed: Placed,
    /// Rules about other pods look at the whole cluster, so they need a copy of it. Without such rules the node alone is
    /// looked at.
    copy: Option<Cache>,
}

impl<'a> Thought<'a> {
    fn of(pod: &Arc<Pod>, cache: &'a Cache) -> Self {
        let spec = pod.spec.as_ref();
        let affinity = spec.and_then(|s| s.affinity.as_ref());
        let alone = cache.refusing.is_empty()
            && affinity.is_none_or(|a| a.pod_affinity.is_none() && a.pod_anti_affinity.is_none())
            && spec.is_none_or(|s| s.topology_spread_constraints.is_none())
            && claims_of(pod).is_empty();
        Self { cache, placed: Placed::new(Arc::clone(pod)), copy: (!alone).then(|| cache.thought()) }
    }
}

/// The fewest pods of lower priority that must leave a node, and how many of them break a budget.
///
/// # Errors
/// Why that does not help.
fn on_node(
    thought: &mut Thought<'_>,
    name: &str,
    context: &Context<'_>,
) -> Result<(Vec<Arc<Pod>>, usize), Vec<String>> {
    let none = || vec!["No preemption victims found for incoming pod".to_owned()];
    let own = priority(&thought.placed.pod);
    let host = thought.cache.hosts.get(name).ok_or_else(none)?;
    let lower: Vec<(&String, &Placed)> = host.pods.iter().filter(|(_, p)| priority(&p.pod) < own).collect();
    if lower.is_empty() {
        return Err(none());
    }
    let mut trial = match thought.copy.take() {
        Some(copy) => Trial::Cluster(copy),
        None => Trial::Node(host.clone()),
    };
    let result = victims(&mut trial, &thought.placed, name, &lower, context);
    if let Trial::Cluster(mut copy) = trial {
        // The next node is looked at with everything in its place.
        lower.iter().for_each(|(key, p)| copy.put_back(key, p, name));
        thought.copy = Some(copy);
    }
    result
}

/// What removals are tried on.
enum Trial {
    Node(Host),
    Cluster(Cache),
}

impl Trial {
    fn take(&mut self, key: &str) {
        match self {
            Self::Node(h) => drop(h.take(key)),
            Self::Cluster(c) => c.take(key),
        }
    }

    fn put(&mut self, key: &str, placed: &Placed, node: &str) {
        match self {
            Self::Node(h) => h.put(key.to_owned(), placed.clone()),
            Self::Cluster(c) => c.put_back(key, placed, node),
        }
    }

    fn fits(&self, placed: &Placed, node: &str, context: &Context<'_>) -> Result<(), Vec<String>> {
        let of_node = |h: &Host, conflict| filter::node(placed, h).and_then(|()| context.wants.allows(h, conflict));
        let fits = match self {
            Self::Node(h) => of_node(h, false).map(drop),
            Self::Cluster(c) => match c.hosts.get(node) {
                None => Ok(()),
                Some(h) => of_node(h, context.wants.conflict(&placed.pod, c))
                    .and_then(|_| Company::of(&placed.pod, c, context.namespaces).allows(h)),
            },
        };
        fits.map_err(|r| r.reasons)
    }
}

fn victims(
    trial: &mut Trial,
    placed: &Placed,
    name: &str,
    lower: &[(&String, &Placed)],
    context: &Context<'_>,
) -> Result<(Vec<Arc<Pod>>, usize), Vec<String>> {
    let none = || vec!["No preemption victims found for incoming pod".to_owned()];
    lower.iter().for_each(|(key, _)| trial.take(key));
    trial.fits(placed, name, context)?;
    let mut order: Vec<Arc<Pod>> = lower.iter().map(|(_, p)| Arc::clone(&p.pod)).collect();
    order.sort_by_key(|p| (std::cmp::Reverse(priority(p)), started(p)));
    let (protected, others) = split(order, context.budgets);
    let mut victims = Vec::new();
    let mut put_back = |list: Vec<Arc<Pod>>| {
        let before = victims.len();
        for p in list {
            let key = key_of(&*p);
            let Some((_, back)) = lower.iter().find(|(k, _)| **k == key) else { continue };
            trial.put(&key, back, name);
            if trial.fits(placed, name, context).is_err() {
                trial.take(&key);
                victims.push(p);
            }
        }
        victims.len() - before
    };
    let violations = put_back(protected);
    put_back(others);
    if victims.is_empty() {
        return Err(none());
    }
    victims.sort_by_key(|p| std::cmp::Reverse(priority(p)));
    Ok((victims, violations))
}

/// Removes the victims.
pub(super) async fn execute(client: &Client, events: &Recorder, pod: &Pod, victims: &Victims, limit: Duration) {
    for victim in victims.pods.iter().filter(|v| !pods::deleting(v)) {
        let api: Api<Pod> = Api::namespaced(client.clone(), &victim.namespace().unwrap_or_default());
        let name = victim.name_any();
        let condition = serde_json::json!({"status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": "default-scheduler: preempting to accommodate a higher priority pod",
            "lastTransitionTime": now(),
        }]}});
        let preconditions = Preconditions { uid: victim.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let work = async {
            api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(condition)).await?;
            api.delete(&name, &params).await
        };
        match tokio::time::timeout(limit, work).await {
            Ok(Ok(_)) => {
                let text = format!("Preempted by pod {} on node {}", pod.uid().unwrap_or_default(), victims.node);
                events.note(&**victim, Level::Normal, "Preempted", text);
            }
            Ok(Err(e)) => tracing::debug!(name, error = &e as &dyn std::error::Error, "victim not removed"),
            Err(_) => tracing::debug!(name, "victim not removed in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::policy::Policy;
    use crate::scheduler::usage::Usage;
    use serde_json::json;

    fn pod(name: &str, cpu: &str, priority: i32) -> Arc<Pod> {
        let v = json!({"metadata": {"name": name, "namespace": "x", "labels": {"app": name}}, "spec": {"priority": priority, "containers": [
            {"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        Arc::new(serde_json::from_value(v).unwrap())
    }

    /// The place of a pod, or why no node takes it.
    fn chosen(cache: &Cache, p: &Arc<Pod>) -> Result<super::super::Place, Vec<(String, Refusal)>> {
        let (namespaces, wants, usage) = (Namespaces::new(), Wants::default(), Usage::default());
        let policy = Policy::Default;
        let context = super::super::Context { namespaces: &namespaces, wants: &wants, policy, last: "", usage: &usage };
        super::super::choose(&Placed::new(Arc::clone(p)), cache, &context)
    }

    #[test]
    fn the_fewest_and_least_go() {
        let mut cache = Cache::default();
        for n in ["a", "b"] {
            let node = json!({"metadata": {"name": n}, "status": {"allocatable": {"cpu": "4", "pods": "10"}}});
            cache.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        }
        for (p, node) in [(pod("a1", "2", 1), "a"), (pod("a2", "2", 5), "a"), (pod("b1", "4", 7), "b")] {
            cache.assume(Placed::new(p), node);
        }
        let (namespaces, wants) = (Namespaces::new(), Wants::default());
        let refused = |p: &Arc<Pod>| chosen(&cache, p).unwrap_err();
        let plan = |p: &Arc<Pod>, budgets: &[Arc<PodDisruptionBudget>]| {
            super::plan(p, &cache, &refused(p), &Context { namespaces: &namespaces, wants: &wants, budgets })
        };
        let names = |v: Victims| (v.node, v.pods.iter().map(|p| p.name_any()).collect::<Vec<_>>().join(" "));
        let new = pod("new", "2", 10);
        assert_eq!(names(plan(&new, &[]).unwrap()), ("a".into(), "a1".into()));
        // A budget that allows nothing moves the choice to the pods it does not speak of.
        let budget = |app: &str, allowed: i32| -> Arc<PodDisruptionBudget> {
            let v = json!({"metadata": {"name": app, "namespace": "x"},
                "spec": {"selector": {"matchLabels": {"app": app}}}, "status": {"disruptionsAllowed": allowed,
                    "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
            Arc::new(serde_json::from_value(v).unwrap())
        };
        assert_eq!(names(plan(&new, &[budget("a1", 0)]).unwrap()), ("a".into(), "a2".into()));
        assert_eq!(names(plan(&new, &[budget("a1", 1)]).unwrap()), ("a".into(), "a1".into()));
        let both = [budget("a1", 0), budget("a2", 0)];
        assert_eq!(names(plan(&new, &both).unwrap()), ("b".into(), "b1".into()));
        let all = [budget("a1", 0), budget("a2", 0), budget("b1", 0)];
        assert_eq!(names(plan(&new, &all).unwrap()), ("a".into(), "a1".into()), "a budget does not forbid");
        let none = "0/2 nodes are available: 2 No preemption victims found for incoming pod.";
        assert_eq!(plan(&pod("weak", "2", 0), &[]).unwrap_err(), none);
        let never = "0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
        assert_eq!(plan(&pod("huge", "5", 10), &[]).unwrap_err(), never);
        // Removing what may be removed is not enough on a, and nothing may be removed on b.
        let short = "0/2 nodes are available: 1 Insufficient cpu, 1 No preemption victims found for incoming pod.";
        assert_eq!(plan(&pod("middle", "4", 4), &[]).unwrap_err(), short);
        let mut polite = Pod::clone(&new);
        polite.spec.as_mut().unwrap().preemption_policy = Some("Never".into());
        assert_eq!(plan(&Arc::new(polite), &[]).unwrap_err(), "not eligible due to preemptionPolicy=Never.");
    }

    #[test]
    fn room_made_for_one_is_not_given_to_another() {
        let mut cache = Cache::default();
        let node = json!({"metadata": {"name": "a"}, "status": {"allocatable": {"cpu": "4", "pods": "10"}}});
        cache.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        let fits = |cache: &Cache, p: &Arc<Pod>| chosen(cache, p).is_ok();
        let (heir, equal, higher) = (pod("heir", "3", 5), pod("equal", "2", 5), pod("higher", "2", 6));
        cache.nominate(&heir, "a");
        assert!(fits(&cache, &heir) && fits(&cache, &higher) && !fits(&cache, &equal));
        cache.set_nominated("x/heir", None);
        assert!(fits(&cache, &equal));
    }
}
