//! Preemption: pods of lower priority make room for one that fits nowhere.
//!
//! On each node whose refusal other pods cause, all pods of lower priority are taken away in thought; if the pod then
//! fits, as many as possible are put back, the highest priority first. The node that loses least is chosen.
//!
//! # Limits
//! Disruption budgets are not looked at.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};

use super::cache::{Cache, Placed};
use super::company::{Company, Namespaces};
use super::filter::{self, Refusal};
use super::volumes::Wants;
use crate::controllers::pods;
use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::key_of;
use crate::runtime::now;

/// Pods that must go from a node.
#[derive(Debug)]
pub struct Victims {
    /// The node.
    pub node: String,
    /// The pods, highest priority first.
    pub pods: Vec<Arc<Pod>>,
}

fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
}

/// Whom to remove.
///
/// # Errors
/// In upstream's words why nobody helps.
pub fn plan(
    pod: &Arc<Pod>,
    cache: &Cache,
    refusals: &[(String, Refusal)],
    namespaces: &Namespaces,
    wants: &Wants,
) -> Result<Victims, String> {
    let total = refusals.len();
    if pod.spec.as_ref().and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return Err(format!("0/{total} nodes are available: {total} Preemption is not helpful for scheduling."));
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
    let mut best: Option<(Victims, (i32, i64, usize))> = None;
    let mut reasons = Vec::new();
    for (name, refusal) in refusals {
        if !refusal.curable {
            reasons.push("Preemption is not helpful for scheduling".to_owned());
            continue;
        }
        let Some(victims) = on_node(pod, name, cache, namespaces, wants) else {
            reasons.push("No preemption victims found for incoming pod".to_owned());
            continue;
        };
        let highest = victims.iter().map(|p| priority(p)).max().unwrap_or(i32::MIN);
        let sum = victims.iter().map(|p| i64::from(priority(p)) + i64::from(i32::MAX) + 1).sum();
        let cost = (highest, sum, victims.len());
        if best.as_ref().is_none_or(|(_, c)| cost < *c) {
            best = Some((Victims { node: name.clone(), pods: victims }, cost));
        }
    }
    best.map(|(v, _)| v)
        .ok_or_else(|| format!("0/{total} nodes are available: {}.", filter::counted(reasons.into_iter())))
}

/// The fewest pods of lower priority that must leave a node, or none if that does not help.
fn on_node(pod: &Arc<Pod>, name: &str, cache: &Cache, namespaces: &Namespaces, wants: &Wants) -> Option<Vec<Arc<Pod>>> {
    let placed = Placed::new(Arc::clone(pod));
    let mut lower: Vec<Arc<Pod>> = cache
        .hosts
        .get(name)?
        .pods
        .values()
        .map(|p| Arc::clone(&p.pod))
        .filter(|p| priority(p) < priority(pod))
        .collect();
    if lower.is_empty() {
        return None;
    }
    // Rules about other pods look at the whole cluster, so the thought needs a copy of it.
    let mut thought = Cache::default();
    for (_, host) in cache.nodes() {
        if let Some(n) = &host.node {
            thought.set_node(Arc::clone(n));
        }
        for (key, p) in &host.pods {
            thought.assume_copy(key, &p.pod, host.node.as_ref()?.metadata.name.as_deref()?);
        }
    }
    let fits = |c: &Cache| {
        let host = c.hosts.get(name)?;
        filter::node(pod, &placed.asks, host).ok()?;
        wants.allows(host, wants.conflict(pod, c)).ok()?;
        Company::of(pod, c, namespaces).allows(host).ok()
    };
    lower.iter().for_each(|p| thought.set_pod(&key_of(&**p), None));
    fits(&thought)?;
    lower.sort_by_key(|p| (std::cmp::Reverse(priority(p)), p.metadata.creation_timestamp.as_ref().map(|t| t.0)));
    let mut victims = Vec::new();
    for p in lower {
        let key = key_of(&*p);
        thought.assume_copy(&key, &p, name);
        if fits(&thought).is_none() {
            thought.set_pod(&key, None);
            victims.push(p);
        }
    }
    (!victims.is_empty()).then_some(victims)
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
    use serde_json::json;

    fn pod(name: &str, cpu: &str, priority: i32) -> Arc<Pod> {
        let v = json!({"metadata": {"name": name, "namespace": "x"}, "spec": {"priority": priority, "containers": [
            {"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        Arc::new(serde_json::from_value(v).unwrap())
    }

    #[test]
    fn the_fewest_and_least_go() {
        let mut cache = Cache::default();
        for n in ["a", "b"] {
            let node = json!({"metadata": {"name": n}, "status": {"allocatable": {"cpu": "4", "pods": "10"}}});
            cache.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        }
        for (p, node) in [(pod("a1", "2", 1), "a"), (pod("a2", "2", 5), "a"), (pod("b1", "4", 7), "b")] {
            cache.assume(&p, node);
        }
        let refused = |p: &Arc<Pod>| {
            super::super::choose(&Placed::new(Arc::clone(p)), &cache, &Namespaces::new(), &Wants::default())
                .unwrap_err()
        };
        let new = pod("new", "2", 10);
        let v = plan(&new, &cache, &refused(&new), &Namespaces::new(), &Wants::default()).unwrap();
        assert_eq!((v.node.as_str(), v.pods.len(), v.pods[0].name_any().as_str()), ("a", 1, "a1"));
        let weak = pod("weak", "2", 0);
        assert_eq!(
            plan(&weak, &cache, &refused(&weak), &Namespaces::new(), &Wants::default()).unwrap_err(),
            "0/2 nodes are available: 2 No preemption victims found for incoming pod."
        );
        let huge = pod("huge", "5", 10);
        assert_eq!(
            plan(&huge, &cache, &refused(&huge), &Namespaces::new(), &Wants::default()).unwrap_err(),
            "0/2 nodes are available: 2 Preemption is not helpful for scheduling."
        );
    }
}
