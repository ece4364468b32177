//! Which volume suits a claim.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm};

use super::{asked, capacity, class_of_claim, class_of_volume, is_for, volume_phase};
use crate::runtime::select;
use crate::scheduler::filter;

fn modes(list: Option<&Vec<String>>) -> &[String] {
    list.map(Vec::as_slice).unwrap_or_default()
}

fn volume_modes(volume: &PersistentVolume) -> &[String] {
    modes(volume.spec.as_ref().and_then(|s| s.access_modes.as_ref()))
}

/// Whether a volume has all access modes that a claim asks for.
#[must_use]
pub fn access(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = modes(claim.spec.as_ref().and_then(|s| s.access_modes.as_ref()));
    wanted.iter().all(|m| volume_modes(volume).contains(m))
}

/// Whether both are file systems, or both block devices.
#[must_use]
pub fn same_mode(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    fn of(mode: Option<&String>) -> &str {
        mode.map_or("Filesystem", String::as_str)
    }
    of(claim.spec.as_ref().and_then(|s| s.volume_mode.as_ref()))
        == of(volume.spec.as_ref().and_then(|s| s.volume_mode.as_ref()))
}

fn attributes_agree(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref()).unwrap_or_default();
    let has = volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref()).unwrap_or_default();
    wanted == has
}

/// Whether a volume that a claim names may be bound to it.
///
/// # Errors
/// In upstream's words why not.
pub fn satisfies(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), &'static str> {
    if capacity(volume) < asked(claim) {
        return Err("requested PV is too small");
    }
    if class_of_claim(claim) != class_of_volume(volume) {
        return Err("storageClassName does not match");
    }
    if !attributes_agree(claim, volume) {
        return Err("volumeAttributesClassName does not match");
    }
    if !same_mode(claim, volume) {
        return Err("incompatible volumeMode");
    }
    if !access(claim, volume) {
        return Err("incompatible accessMode");
    }
    Ok(())
}

/// Whether a volume can be reached from a node.
#[must_use]
pub fn reachable(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()?.required.as_ref());
    affinity.is_none_or(|a| a.node_selector_terms.iter().any(|t| filter::term(t, node)))
}

/// Whether a class makes volumes for a node.
#[must_use]
pub fn in_topology(terms: &[TopologySelectorTerm], node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let holds = |t: &TopologySelectorTerm| {
        let rules = t.match_label_expressions.as_deref().unwrap_or_default();
        !rules.is_empty()
            && rules.iter().all(|r| labels.and_then(|l| l.get(&r.key)).is_some_and(|v| r.values.contains(v)))
    };
    terms.is_empty() || terms.iter().any(holds)
}

/// The best volume for a claim: the one already reserved for it, else of those that suit the one with the fewest access
/// modes, and of these the smallest. With a `node`, only what that node reaches. `later`: a claim that waits for a pod is
/// given nothing here but what is reserved for it.
#[must_use]
pub fn best<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [Arc<PersistentVolume>],
    node: Option<&Node>,
    later: bool,
) -> Option<&'a Arc<PersistentVolume>> {
    let wanted = asked(claim);
    let common = |v: &PersistentVolume| {
        capacity(v) >= wanted
            && same_mode(claim, v)
            && attributes_agree(claim, v)
            && access(claim, v)
            && v.metadata.deletion_timestamp.is_none()
    };
    let near = |v: &PersistentVolume| node.is_none_or(|n| reachable(v, n));
    let suitable = || volumes.iter().filter(|v| common(v));
    if let Some(reserved) = suitable().find(|v| is_for(v, claim)) {
        return Some(reserved).filter(|v| near(v));
    }
    if later && node.is_none() {
        return None;
    }
    let selector = claim.spec.as_ref().and_then(|s| s.selector.as_ref());
    suitable()
        .filter(|v| {
            super::claim_ref(v).is_none()
                && volume_phase(v) == "Available"
                && selector.is_none_or(|s| select::matches(s, &v.metadata.labels))
                && class_of_volume(v) == class_of_claim(claim)
                && near(v)
        })
        .min_by(|a, b| {
            let rank = |v: &PersistentVolume| (volume_modes(v).len(), capacity(v));
            rank(a).cmp(&rank(b)).then_with(|| a.metadata.name.cmp(&b.metadata.name))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn volume(name: &str, size: &str, more: Value) -> Arc<PersistentVolume> {
        let mut v = json!({"metadata": {"name": name, "labels": {"disk": name}}, "spec": {"capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}, "status": {"phase": "Available"}});
        merge(&mut v, more);
        Arc::new(serde_json::from_value(v).unwrap())
    }

    fn claim(size: &str, more: Value) -> PersistentVolumeClaim {
        let mut v = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}});
        merge(&mut v, more);
        serde_json::from_value(v).unwrap()
    }

    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(a), Value::Object(b)) => {
                b.into_iter().for_each(|(k, v)| merge(a.entry(k).or_insert(Value::Null), v))
            }
            (a, b) => *a = b,
        }
    }

    fn node(zone: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": zone, "labels": {"zone": zone}}})).unwrap()
    }

    #[test]
    fn the_smallest_that_suits() {
        let spec = |v: Value| json!({"spec": v});
        let in_zone = |z: &str| {
            spec(json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": [z]}]}]}}}))
        };
        let all = [
            volume("big", "9Gi", json!({})),
            volume("mid", "5Gi", json!({})),
            volume("small", "1Gi", json!({})),
            volume("shared", "4Gi", spec(json!({"accessModes": ["ReadWriteOnce", "ReadWriteMany"]}))),
            volume("fast", "4Gi", spec(json!({"storageClassName": "fast"}))),
            volume("raw", "4Gi", spec(json!({"volumeMode": "Block"}))),
            volume("west", "6Gi", in_zone("west")),
            volume("taken", "2Gi", spec(json!({"claimRef": {"name": "other", "namespace": "n"}}))),
            volume("used", "2Gi", json!({"status": {"phase": "Released"}})),
            volume("going", "2Gi", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
        ];
        let east = node("east");
        for (size, more, node, later, want) in [
            ("1Gi", json!({}), None, false, Some("small")),
            ("2Gi", json!({}), None, false, Some("mid")),
            ("6Gi", json!({}), None, false, Some("west")),
            ("6Gi", json!({}), Some(&east), false, Some("big")),
            ("10Gi", json!({}), None, false, None),
            ("1Gi", spec(json!({"storageClassName": "fast"})), None, false, Some("fast")),
            ("1Gi", spec(json!({"volumeMode": "Block"})), None, false, Some("raw")),
            ("1Gi", spec(json!({"accessModes": ["ReadWriteMany"]})), None, false, Some("shared")),
            ("1Gi", spec(json!({"accessModes": ["ReadOnlyMany"]})), None, false, None),
            ("1Gi", spec(json!({"selector": {"matchLabels": {"disk": "big"}}})), None, false, Some("big")),
            ("1Gi", json!({"metadata": {"name": "other"}}), None, false, Some("taken")),
            ("3Gi", json!({"metadata": {"name": "other"}}), None, false, Some("mid")),
            ("1Gi", json!({}), None, true, None),
            ("1Gi", json!({"metadata": {"name": "other"}}), None, true, Some("taken")),
            ("1Gi", json!({}), Some(&east), true, Some("small")),
        ] {
            let found = best(&claim(size, more.clone()), &all, node, later).map(|v| v.metadata.name.clone().unwrap());
            assert_eq!(found.as_deref(), want, "{size} {more} later: {later}");
        }
    }

    #[test]
    fn a_named_volume_must_suit() {
        let spec = |v: Value| json!({"spec": v});
        for (size, more, want) in [
            ("1Gi", json!({}), Ok(())),
            ("3Gi", json!({}), Err("requested PV is too small")),
            ("1Gi", spec(json!({"storageClassName": "x"})), Err("storageClassName does not match")),
            ("1Gi", spec(json!({"volumeMode": "Block"})), Err("incompatible volumeMode")),
            ("1Gi", spec(json!({"accessModes": ["ReadWriteMany"]})), Err("incompatible accessMode")),
        ] {
            assert_eq!(satisfies(&claim(size, more.clone()), &volume("v", "2Gi", json!({}))), want, "{size} {more}");
        }
    }

    #[test]
    fn topologies_of_a_class() {
        let terms = |v: Value| -> Vec<TopologySelectorTerm> { serde_json::from_value(v).unwrap() };
        let one = |values: &[&str]| json!({"matchLabelExpressions": [{"key": "zone", "values": values}]});
        for (t, want) in [
            (json!([]), true),
            (json!([one(&["east", "west"])]), true),
            (json!([one(&["west"])]), false),
            (json!([one(&["west"]), one(&["east"])]), true),
        ] {
            assert_eq!(in_topology(&terms(t.clone()), &node("east")), want, "{t}");
        }
    }

    proptest! {
        /// What is chosen holds what is asked for, and no smaller one of the same modes would.
        #[test]
        fn chosen_is_large_enough_and_least(sizes in prop::collection::vec(1_i64..50, 0..12), want in 1_i64..50) {
            let all: Vec<_> = sizes.iter().enumerate()
                .map(|(i, s)| volume(&format!("v{i}"), &format!("{s}Gi"), json!({}))).collect();
            let found = best(&claim(&format!("{want}Gi"), json!({})), &all, None, false);
            let least = sizes.iter().filter(|s| **s >= want).min().map(|s| format!("{s}Gi").parse().unwrap());
            prop_assert_eq!(found.and_then(|v| capacity(v)), least);
        }
    }
}
