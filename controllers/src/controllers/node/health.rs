//! What a node's conditions mean: taints, and how fast pods may be driven away. No I/O.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use tokio::time::Instant;

use crate::runtime::now;

/// Taints that drive pods away.
pub const DRIVING: [&str; 2] = [NOT_READY, UNREACHABLE];
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that keep new pods away, with the status that does so.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// Conditions that only the node's agent can know.
const AGENTS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Nodes per second that pods are driven from.
const RATE: f64 = 0.1;
/// The same in a large zone that is partly down.
const RATE_PARTIAL: f64 = 0.01;
/// Share of nodes down from which a zone is partly down.
const PARTIAL: f64 = 0.55;
/// Zones of at most this many nodes lose no pods when partly down.
const SMALL: usize = 50;

/// A condition by type.
#[must_use]
pub fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// `True`, `False`, or `Unknown`, also when it was never told.
#[must_use]
pub fn status<'a>(node: &'a Node, kind: &str) -> &'a str {
    condition(node, kind).map_or("Unknown", |c| c.status.as_str())
}

/// The conditions of a node that stopped reporting; none if they say so already.
#[must_use]
pub fn unknown(node: &Node) -> Option<Vec<NodeCondition>> {
    let mut list = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let mut changed = false;
    for kind in AGENTS {
        match list.iter_mut().find(|c| c.type_ == kind) {
            Some(c) if c.status == "Unknown" => {}
            Some(c) => {
                changed = true;
                c.status = "Unknown".into();
                c.reason = Some("NodeStatusUnknown".into());
                c.message = Some("Kubelet stopped posting node status.".into());
                c.last_transition_time = Some(now());
            }
            None => {
                changed = true;
                list.push(NodeCondition {
                    type_: kind.into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some("Kubelet never posted node status.".into()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(now()),
                });
            }
        }
    }
    changed.then_some(list)
}

fn taint(key: &str, effect: &str) -> Taint {
    Taint { key: key.into(), effect: effect.into(), value: None, time_added: None }
}

/// Whether a taint is this controller's to set and remove.
#[must_use]
pub fn owned(t: &Taint) -> bool {
    let pressure = PRESSURES.iter().any(|(_, k)| *k == t.key) || t.key == UNSCHEDULABLE;
    let driving = DRIVING.contains(&t.key.as_str());
    (t.effect == "NoSchedule" && (pressure || driving)) || (t.effect == "NoExecute" && driving)
}

/// Taints that keep new pods away.
#[must_use]
pub fn no_schedule(node: &Node) -> Vec<Taint> {
    let mut list = Vec::new();
    match status(node, "Ready") {
        "True" => {}
        "False" => list.push(taint(NOT_READY, "NoSchedule")),
        _ if condition(node, "Ready").is_none() => list.push(taint(NOT_READY, "NoSchedule")),
        _ => list.push(taint(UNREACHABLE, "NoSchedule")),
    }
    let pressed = PRESSURES.iter().filter(|(kind, _)| condition(node, kind).is_some_and(|c| c.status == "True"));
    list.extend(pressed.map(|(_, key)| taint(key, "NoSchedule")));
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        list.push(taint(UNSCHEDULABLE, "NoSchedule"));
    }
    list
}

/// The taint that drives pods away, if there should be one.
#[must_use]
pub fn no_execute(node: &Node) -> Option<Taint> {
    match condition(node, "Ready")?.status.as_str() {
        "True" => None,
        "False" => Some(taint(NOT_READY, "NoExecute")),
        _ => Some(taint(UNREACHABLE, "NoExecute")),
    }
}

/// How much of a zone is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disruption {
    None,
    Partial,
    Full,
}

fn zone(node: &Node) -> String {
    let label = |k: &str| node.metadata.labels.as_ref().and_then(|l| l.get(k)).cloned().unwrap_or_default();
    format!("{}:{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

fn disruption(nodes: &[&Arc<Node>]) -> Disruption {
    let down = nodes.iter().filter(|n| status(n, "Ready") != "True").count();
    match down {
        0 => Disruption::None,
        n if n == nodes.len() => Disruption::Full,
        n if n > 2 && n as f64 / nodes.len() as f64 >= PARTIAL => Disruption::Partial,
        _ => Disruption::None,
    }
}

/// Nodes per second that pods of a zone may be driven from; zero while everything is down, for then the fault is here.
fn rate(zones: &HashMap<String, Vec<&Arc<Node>>>, zone: &str) -> f64 {
    if zones.values().all(|nodes| disruption(nodes) == Disruption::Full) {
        return 0.0;
    }
    let Some(nodes) = zones.get(zone) else { return RATE };
    match disruption(nodes) {
        Disruption::None | Disruption::Full => RATE,
        Disruption::Partial if nodes.len() > SMALL => RATE_PARTIAL,
        Disruption::Partial => 0.0,
    }
}

/// Limits how fast pods are driven away, per zone.
#[derive(Debug, Default)]
pub struct Zones {
    last: HashMap<String, Instant>,
}

impl Zones {
    /// Whether `node` may have the driving taint now. `driven`: it has one already and keeps it, unless all is down.
    pub fn may_drive(&mut self, node: &Node, all: &[Arc<Node>], driven: bool) -> bool {
        let mut zones: HashMap<String, Vec<&Arc<Node>>> = HashMap::new();
        for n in all {
            zones.entry(zone(n)).or_default().push(n);
        }
        let name = zone(node);
        let rate = rate(&zones, &name);
        if driven {
            return rate > 0.0 || !zones.values().all(|n| disruption(n) == Disruption::Full);
        }
        if rate <= 0.0 {
            return false;
        }
        let now = Instant::now();
        if self.last.get(&name).is_some_and(|t| now.duration_since(*t).as_secs_f64() < 1.0 / rate) {
            return false;
        }
        self.last.retain(|z, _| zones.contains_key(z));
        self.last.insert(name, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn node(name: &str, zone: &str, ready: &str) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap(),
        )
    }

    fn zone_of(n: usize, down: usize, name: &str) -> Vec<Arc<Node>> {
        (0..n).map(|i| node(&format!("{name}{i}"), name, if i < down { "Unknown" } else { "True" })).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn pods_are_driven_away_slowly_or_not_at_all() {
        for (zones, want) in [
            (vec![zone_of(10, 1, "a")], 10.0),
            (vec![zone_of(1, 1, "a")], f64::INFINITY),
            (vec![zone_of(10, 6, "a")], f64::INFINITY),
            (vec![zone_of(100, 60, "a")], 100.0),
            (vec![zone_of(3, 3, "a"), zone_of(3, 0, "b")], 10.0),
            (vec![zone_of(3, 3, "a"), zone_of(3, 3, "b")], f64::INFINITY),
        ] {
            let all: Vec<Arc<Node>> = zones.concat();
            let mut z = Zones::default();
            let first = z.may_drive(&all[0], &all, false);
            assert_eq!(first, want.is_finite(), "{want}");
            if first {
                tokio::time::advance(Duration::from_secs_f64(want - 1.0)).await;
                assert!(!z.may_drive(&all[0], &all, false), "{want}");
                tokio::time::advance(Duration::from_secs(1)).await;
                assert!(z.may_drive(&all[0], &all, false), "{want}");
            }
        }
    }

    #[test]
    fn taints_follow_conditions() {
        for (ready, schedule, execute) in [
            ("True", None, None),
            ("False", Some(NOT_READY), Some(NOT_READY)),
            ("Unknown", Some(UNREACHABLE), Some(UNREACHABLE)),
        ] {
            let n = node("n", "z", ready);
            assert_eq!(no_schedule(&n).first().map(|t| t.key.as_str()), schedule);
            assert_eq!(no_execute(&n).as_ref().map(|t| t.key.as_str()), execute);
        }
        let silent = unknown(&node("n", "z", "True")).unwrap();
        assert_eq!(silent.len(), 4);
        assert!(silent.iter().all(|c| c.status == "Unknown"));
        assert_eq!(silent[0].reason.as_deref(), Some("NodeStatusUnknown"));
    }
}
