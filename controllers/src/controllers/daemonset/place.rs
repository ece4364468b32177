//! Where a DaemonSet's pods belong: which nodes, and how a pod is bound to its node.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration,
};
use kube::ResourceExt;

use crate::controllers::revisions::REVISION;
use crate::controllers::{family, pods};
use crate::scheduler::filter;

/// Field that the node affinity of a daemon's pod is about.
const NAME_FIELD: &str = "metadata.name";
/// Annotation of a DaemonSet with the number of its template, and the label of its pods with it: from before revisions.
const GENERATION: &str = "deprecated.daemonset.template.generation";
const GENERATION_LABEL: &str = "pod-template-generation";

/// Whether a node is to get a pod, and whether it may keep one that it has.
#[must_use]
pub fn belongs(ds: &DaemonSet, node: &Node) -> (bool, bool) {
    let template = ds.spec.template.spec.clone().unwrap_or_default();
    if template.node_name.as_deref().is_some_and(|n| !n.is_empty() && n != node.name_any()) {
        return (false, false);
    }
    let mut pod = Pod { spec: Some(template), ..Pod::default() };
    let tolerations = tolerate(pod.spec.get_or_insert_default());
    if !filter::wants_node(&pod, node) {
        return (false, false);
    }
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let repels = |effects: &[&str]| {
        taints.iter().any(|t| effects.contains(&t.effect.as_str()) && !filter::tolerated(t, &tolerations))
    };
    (!repels(&["NoSchedule", "NoExecute"]), !repels(&["NoExecute"]))
}

/// Adds what every daemon tolerates; answers all it tolerates.
fn tolerate(spec: &mut PodSpec) -> Vec<Toleration> {
    const ALWAYS: [(&str, &str); 6] = [
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
        ("pid-pressure", "NoSchedule"),
        ("unschedulable", "NoSchedule"),
    ];
    let network = spec.host_network.unwrap_or(false).then_some(("network-unavailable", "NoSchedule"));
    let all = spec.tolerations.get_or_insert_default();
    for (key, effect) in ALWAYS.into_iter().chain(network) {
        let one = Toleration {
            key: Some(format!("node.kubernetes.io/{key}")),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        if !all.iter().any(|t| t.key == one.key && t.effect == one.effect && t.operator == one.operator) {
            all.push(one);
        }
    }
    all.clone()
}

/// The pod for a node. The scheduler binds it, to this node or none.
#[must_use]
pub fn pod(ds: &DaemonSet, node: &str, hash: &str) -> Pod {
    let mut pod = family::pod_from(ds, &ds.spec.template);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION.into(), hash.to_owned());
    if let Some(n) = ds.metadata.annotations.as_ref().and_then(|a| a.get(GENERATION)) {
        labels.insert(GENERATION_LABEL.into(), n.clone());
    }
    let spec = pod.spec.get_or_insert_default();
    tolerate(spec);
    let here = NodeSelectorTerm {
        match_expressions: None,
        match_fields: Some(vec![NodeSelectorRequirement {
            key: NAME_FIELD.into(),
            operator: "In".into(),
            values: Some(vec![node.to_owned()]),
        }]),
    };
    // What the template asks of nodes was asked when this one was chosen.
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![here] });
    pod
}

/// The node that a pod runs on or is meant for.
#[must_use]
pub fn node_of(pod: &Pod) -> Option<&str> {
    let bound = pods::node(pod);
    if !bound.is_empty() {
        return Some(bound);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let fields = terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let mut named = fields.filter(|f| f.key == NAME_FIELD && f.operator == "In").filter_map(|f| f.values.as_ref());
    named.find_map(|v| if let [one] = v.as_slice() { Some(one.as_str()) } else { None })
}

/// Whether a change of a node can change where pods belong.
#[must_use]
pub fn matters(old: &Node, new: &Node) -> bool {
    let taints = |n: &Node| -> Vec<Taint> { n.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default() };
    old.metadata.labels != new.metadata.labels || taints(old) != taints(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn ds(spec: Value) -> DaemonSet {
        serde_json::from_value(json!({"metadata": {"name": "d", "annotations": {GENERATION: "4"}},
            "spec": {"selector": {}, "template": {"spec": spec}}}))
        .unwrap()
    }

    fn node(labels: Value, taints: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n1", "labels": labels}, "spec": {"taints": taints}}))
            .unwrap()
    }

    #[test]
    fn which_nodes() {
        let bare = |extra: Value| {
            let mut v = json!({"containers": []});
            v.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            ds(v)
        };
        let taint = |key: &str, effect: &str| json!([{"key": key, "effect": effect}]);
        for (spec, labels, taints, want) in [
            (json!({}), json!({}), json!([]), (true, true)),
            (json!({"nodeName": "n2"}), json!({}), json!([]), (false, false)),
            (json!({"nodeSelector": {"a": "b"}}), json!({}), json!([]), (false, false)),
            (json!({"nodeSelector": {"a": "b"}}), json!({"a": "b"}), json!([]), (true, true)),
            (json!({}), json!({}), taint("x", "NoSchedule"), (false, true)),
            (json!({}), json!({}), taint("x", "NoExecute"), (false, false)),
            (json!({}), json!({}), taint("x", "PreferNoSchedule"), (true, true)),
            (json!({}), json!({}), taint("node.kubernetes.io/unschedulable", "NoSchedule"), (true, true)),
            (json!({}), json!({}), taint("node.kubernetes.io/not-ready", "NoExecute"), (true, true)),
            (json!({}), json!({}), taint("node.kubernetes.io/network-unavailable", "NoSchedule"), (false, true)),
            (
                json!({"hostNetwork": true}),
                json!({}),
                taint("node.kubernetes.io/network-unavailable", "NoSchedule"),
                (true, true),
            ),
            (json!({"tolerations": [{"operator": "Exists"}]}), json!({}), taint("x", "NoExecute"), (true, true)),
        ] {
            assert_eq!(belongs(&bare(spec.clone()), &node(labels, taints.clone())), want, "{spec} {taints}");
        }
    }

    #[test]
    fn a_pod_knows_its_node() {
        let own = json!({"containers": [], "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}}});
        let p = pod(&ds(own), "n1", "h");
        assert_eq!(node_of(&p), Some("n1"));
        assert_eq!((p.labels()[REVISION].as_str(), p.labels()[GENERATION_LABEL].as_str()), ("h", "4"));
        assert_eq!(p.spec.as_ref().unwrap().tolerations.as_ref().unwrap().len(), 6);
        assert_eq!(node_of(&Pod::default()), None);
    }
}
