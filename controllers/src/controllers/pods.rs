//! What several controllers ask of a pod.

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::runtime::seconds_since;

/// The phase; a pod without one is pending.
#[must_use]
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// Whether all its containers ended for good.
#[must_use]
pub fn finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether it is being deleted.
#[must_use]
pub fn deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether it counts as a replica: neither ended nor being deleted.
#[must_use]
pub fn active(pod: &Pod) -> bool {
    !finished(pod) && !deleting(pod)
}

/// Whether it is being deleted and has not ended yet: it still takes what it asked for.
#[must_use]
pub fn terminating(pod: &Pod) -> bool {
    deleting(pod) && !finished(pod)
}

/// A condition by type.
#[must_use]
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Whether it answers.
#[must_use]
pub fn ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when it answers.
#[must_use]
pub fn ready_since(pod: &Pod) -> Option<&Time> {
    condition(pod, "Ready").filter(|c| c.status == "True")?.last_transition_time.as_ref()
}

/// Whether it has answered for `min_ready` seconds.
#[must_use]
pub fn available(pod: &Pod, min_ready: i32) -> bool {
    ready(pod) && (min_ready == 0 || ready_since(pod).is_some_and(|t| seconds_since(t) >= f64::from(min_ready)))
}

/// The node it is bound to; empty before that.
#[must_use]
pub fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

/// Restarts of all its containers.
#[must_use]
pub fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|c| c.restart_count).max().unwrap_or(0)
}
