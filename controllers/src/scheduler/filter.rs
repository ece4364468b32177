//! Which nodes can take a pod, and in upstream's words why the others cannot.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, NodeSelectorTerm, Pod, Taint, Toleration};

use super::Rule;
use super::cache::{Host, Placed};
use super::resources::Amounts;
use crate::runtime::select::{requirement, subset};

/// Why a node cannot take a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Who refuses.
    pub rule: Rule,
    /// One or more reasons for people.
    pub reasons: Vec<String>,
    /// Whether removing pods from the node could help.
    pub curable: bool,
}

impl Refusal {
    /// A refusal with one reason.
    #[must_use]
    pub fn new(rule: Rule, reason: impl Into<String>, curable: bool) -> Self {
        Self { rule, reasons: vec![reason.into()], curable }
    }
}

/// The checks that look at one node only, in upstream's order; the first that refuses speaks.
///
/// # Errors
/// The refusal.
pub fn node(placed: &Placed, host: &Host) -> Result<(), Refusal> {
    let (Some(spec), Some(node)) = (&placed.pod.spec, &host.node) else {
        return Err(Refusal::new(Rule::Name, "node(s) didn't match the requested node name", false));
    };
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        let taint =
            Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() };
        if !tolerated(&taint, tolerations) {
            return Err(Refusal::new(Rule::Unschedulable, "node(s) were unschedulable", false));
        }
    }
    if let Some(name) = spec.node_name.as_deref().filter(|n| !n.is_empty())
        && node.metadata.name.as_deref() != Some(name)
    {
        return Err(Refusal::new(Rule::Name, "node(s) didn't match the requested node name", false));
    }
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let hard = |t: &&Taint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute");
    if taints.iter().filter(hard).any(|t| !tolerated(t, tolerations)) {
        return Err(Refusal::new(Rule::Taints, "node(s) had untolerated taint(s)", false));
    }
    if !wants_node(&placed.pod, node) {
        return Err(Refusal::new(Rule::Affinity, "node(s) didn't match Pod's node affinity/selector", false));
    }
    let ports = &placed.ports;
    if !ports.is_empty() && host.ports().any(|used| ports.iter().any(|p| clash(p, used))) {
        return Err(Refusal::new(Rule::Ports, "node(s) didn't have free ports for the requested pod ports", true));
    }
    fits(&placed.asks, host)
}

fn clash(a: &super::cache::HostPort, b: &super::cache::HostPort) -> bool {
    let any = |x: &str| x == "0.0.0.0" || x == "::";
    a.1 == b.1 && a.2 == b.2 && (a.0 == b.0 || any(&a.0) || any(&b.0))
}

/// Whether what is asked for is free. All that lacks is told.
///
/// # Errors
/// The refusal.
pub fn fits(asks: &Amounts, host: &Host) -> Result<(), Refusal> {
    if has_room(asks, host) {
        return Ok(());
    }
    let mut reasons = Vec::new();
    let mut curable = true;
    if !one_more(host) {
        reasons.push("Too many pods".to_owned());
    }
    for (name, amount) in asks.named().filter(|(_, n)| *n > 0) {
        let gives = host.gives.get(name);
        if amount > gives - host.asked.get(name) {
            reasons.push(format!("Insufficient {name}"));
            curable &= amount <= gives;
        }
    }
    Err(Refusal { rule: Rule::Resources, reasons, curable })
}

fn one_more(host: &Host) -> bool {
    i64::try_from(host.pods.len()).unwrap_or(i64::MAX) < host.gives.pods
}

/// Whether what is asked for is free; costs next to nothing.
#[must_use]
pub fn has_room(asks: &Amounts, host: &Host) -> bool {
    let (gives, asked) = (&host.gives, &host.asked);
    let fits = |wanted: i64, gives: i64, asked: i64| wanted <= 0 || wanted <= gives - asked;
    one_more(host)
        && fits(asks.cpu, gives.cpu, asked.cpu)
        && fits(asks.memory, gives.memory, asked.memory)
        && fits(asks.pods, gives.pods, asked.pods)
        && asks.others.iter().all(|(name, n)| fits(*n, gives.get(name), asked.get(name)))
}

/// Whether one of the tolerations takes the taint.
#[must_use]
pub fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|t| tolerates(t, taint))
}

/// Whether a toleration takes a taint.
#[must_use]
pub fn tolerates(t: &Toleration, taint: &Taint) -> bool {
    fn said(s: &Option<String>) -> &str {
        s.as_deref().unwrap_or_default()
    }
    let (key, effect, value) = (said(&t.key), said(&t.effect), said(&t.value));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    let theirs = taint.value.as_deref().unwrap_or_default();
    match t.operator.as_deref().unwrap_or("Equal") {
        "" | "Equal" => !key.is_empty() && value == theirs,
        "Exists" => true,
        op @ ("Gt" | "Lt") => match (theirs.parse::<i64>(), value.parse::<i64>()) {
            (Ok(a), Ok(b)) => (op == "Gt" && a > b) || (op == "Lt" && a < b),
            _ => false,
        },
        _ => false,
    }
}

/// Whether the pod's node selector and required node affinity take the node.
#[must_use]
pub fn wants_node(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return true };
    if !subset(spec.node_selector.as_ref(), &node.metadata.labels) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    match affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()) {
        None => true,
        Some(required) => required.node_selector_terms.iter().any(|t| term(t, node)),
    }
}

/// Whether a term takes a node. An empty term takes none.
#[must_use]
pub fn term(t: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = t.match_expressions.as_deref().unwrap_or_default();
    let fields = t.match_fields.as_deref().unwrap_or_default();
    if labels.is_empty() && fields.is_empty() {
        return false;
    }
    let values = |v: &Option<Vec<String>>| v.clone().unwrap_or_default();
    labels.iter().all(|r| {
        let found = node.metadata.labels.as_ref().and_then(|l| l.get(&r.key));
        requirement(&r.operator, &values(&r.values), found.map(String::as_str))
    }) && fields.iter().all(|r| {
        let found = node.metadata.name.as_deref().filter(|_| r.key == "metadata.name");
        requirement(&r.operator, &values(&r.values), found)
    })
}

/// The message of a pod that fits nowhere: how many nodes refuse for which reason.
#[must_use]
pub fn summary(total: usize, refusals: &[Refusal]) -> String {
    if total == 0 {
        return "no nodes available to schedule pods".into();
    }
    format!("0/{total} nodes are available: {}.", counted(refusals.iter().flat_map(|r| r.reasons.iter().cloned())))
}

/// Between the reasons and what preemption said: upstream's allocator of devices speaks first, and has nothing to give.
pub const PREEMPTION: &str = "no new claims to deallocate, preemption: ";

/// The message of a pod that cannot be placed at all. The last words are upstream's: nobody looked for victims.
#[must_use]
pub fn nowhere(total: usize, why: &str) -> String {
    if total == 0 {
        return summary(0, &[]);
    }
    format!("0/{total} nodes are available: {why}. not found")
}

/// `2 a, 1 b`, sorted as text.
#[must_use]
pub fn counted(reasons: impl Iterator<Item = String>) -> String {
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for r in reasons {
        *counts.entry(r).or_default() += 1;
    }
    let mut parts: Vec<String> = counts.into_iter().map(|(r, n)| format!("{n} {r}")).collect();
    parts.sort();
    parts.join(", ")
}

/// Who refused.
#[must_use]
pub fn rules(refusals: &[Refusal]) -> BTreeSet<Rule> {
    refusals.iter().map(|r| r.rule).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn host(node: Value) -> Host {
        let node: Node = serde_json::from_value(node).unwrap();
        Host::of(Arc::new(node))
    }

    fn plain() -> Value {
        json!({"metadata": {"name": "n", "labels": {"disk": "ssd", "size": "5"}},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2"}}})
    }

    fn check(spec: Value, node_json: &Value, want: Result<(), &str>) {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([]);
        }
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        let got = node(&Placed::new(Arc::new(pod)), &host(node_json.clone()));
        assert_eq!(got.map_err(|r| r.reasons.join(", ")), want.map_err(str::to_owned), "{spec}");
    }

    #[test]
    fn one_node() {
        let asks = |cpu: &str, mem: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": mem}}}]});
        check(json!({}), &plain(), Ok(()));
        check(asks("2", "1Gi"), &plain(), Ok(()));
        check(asks("2001m", "2Gi"), &plain(), Err("Insufficient cpu, Insufficient memory"));
        check(json!({"nodeSelector": {"disk": "ssd"}}), &plain(), Ok(()));
        check(
            json!({"nodeSelector": {"disk": "tape"}}),
            &plain(),
            Err("node(s) didn't match Pod's node affinity/selector"),
        );
        let affinity = |term: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}});
        check(
            affinity(json!({"matchExpressions": [{"key": "size", "operator": "Gt", "values": ["4"]}]})),
            &plain(),
            Ok(()),
        );
        check(
            affinity(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]})),
            &plain(),
            Ok(()),
        );
        check(affinity(json!({})), &plain(), Err("node(s) didn't match Pod's node affinity/selector"));
        let mut tainted = plain();
        tainted["spec"] = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}, {"key": "soft", "effect": "PreferNoSchedule"}]});
        check(json!({}), &tainted, Err("node(s) had untolerated taint(s)"));
        check(json!({"tolerations": [{"key": "k", "operator": "Exists"}]}), &tainted, Ok(()));
        check(json!({"tolerations": [{"operator": "Exists"}]}), &tainted, Ok(()));
        check(json!({"tolerations": [{"key": "k", "value": "w"}]}), &tainted, Err("node(s) had untolerated taint(s)"));
        let mut closed = plain();
        closed["spec"] = json!({"unschedulable": true});
        check(json!({}), &closed, Err("node(s) were unschedulable"));
    }

    #[test]
    fn reasons_are_counted() {
        let r = |s: &str| Refusal::new(Rule::Resources, s, true);
        assert_eq!(
            summary(3, &[r("Insufficient cpu"), r("Too many pods"), r("Insufficient cpu")]),
            "0/3 nodes are available: 1 Too many pods, 2 Insufficient cpu."
        );
        assert_eq!(summary(0, &[]), "no nodes available to schedule pods");
    }
}
