//! How many pods a budget can spare. No I/O.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::controllers::family::{Share, scaled};
use crate::controllers::pods;

/// A pod whose eviction was allowed counts as gone for this long; then it is taken for one that stays.
const EVICTION: i64 = 120;
/// The condition of a pod that is about to be disrupted.
pub const TARGET: &str = "DisruptionTarget";
/// The condition that tells whether an eviction is possible.
const ALLOWED: &str = "DisruptionAllowed";

/// How long until what a pod says of its coming end is no longer believed. None when it says nothing, or has ended.
#[must_use]
pub fn stale_in(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let since = pods::condition(pod, TARGET).filter(|c| c.status == "True")?.last_transition_time.as_ref()?;
    if !pods::active(pod) {
        return None;
    }
    let left = EVICTION - now.duration_since(since.0).as_secs();
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
}

/// Whether the budget needs to know what the pods' owners ask for.
#[must_use]
pub fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.as_ref();
    spec.is_some_and(|s| s.max_unavailable.is_some() || matches!(s.min_available, Some(IntOrString::String(_))))
}

/// Pods there should be, and how many of them must answer. `scale` is what the pods' owners ask for.
#[must_use]
pub fn expected(budget: &PodDisruptionBudget, pods: usize, scale: i32) -> (i32, i32) {
    let Some(spec) = &budget.spec else { return (0, 0) };
    if spec.max_unavailable.is_some() {
        let max = scaled(spec.max_unavailable.as_ref(), Share::Number(0), scale, true);
        return (scale, (scale - max).max(0));
    }
    match &spec.min_available {
        Some(IntOrString::Int(n)) => (i32::try_from(pods).unwrap_or(i32::MAX), *n),
        Some(_) => (scale, scaled(spec.min_available.as_ref(), Share::Number(0), scale, true)),
        None => (0, 0),
    }
}

/// A budget's status, when to look again, and pods whose eviction did not happen.
pub struct Result {
    /// The status.
    pub status: PodDisruptionBudgetStatus,
    /// When an eviction that has not happened is given up.
    pub again: Option<Duration>,
    /// Pods that should have been deleted.
    pub late: Vec<Arc<Pod>>,
}

/// Counts. `expected` and `desired` are those of [`expected`].
#[must_use]
pub fn count(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], expected: i32, desired: i32, now: Timestamp) -> Result {
    let before = budget.status.clone().unwrap_or_default();
    let evicted = before.disrupted_pods.clone().unwrap_or_default();
    let mut disrupted: BTreeMap<String, Time> = BTreeMap::new();
    let mut late = vec![];
    let mut again: Option<Duration> = None;
    let mut healthy = 0;
    for pod in pods.iter().filter(|p| !pods::deleting(p)) {
        if let Some(at) = evicted.get(&pod.name_any()) {
            let left = EVICTION - now.duration_since(at.0).as_secs();
            if left > 0 {
                disrupted.insert(pod.name_any(), at.clone());
                let left = Duration::from_secs(left.unsigned_abs());
                again = Some(again.map_or(left, |a| a.min(left)));
                continue;
            }
            late.push(Arc::clone(pod));
        }
        healthy += i32::from(pods::ready(pod));
    }
    let spare = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    let (word, reason) = if spare > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let mut status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(spare),
        disrupted_pods: Some(disrupted).filter(|d| !d.is_empty()),
        observed_generation: budget.metadata.generation,
        conditions: before.conditions,
    };
    tell(&mut status, word, reason, String::new(), now);
    Result { status, again, late }
}

/// The status when it is not known what there should be: nothing may go.
#[must_use]
pub fn failed(budget: &PodDisruptionBudget, why: String, now: Timestamp) -> PodDisruptionBudgetStatus {
    let mut status = budget.status.clone().unwrap_or_default();
    status.disruptions_allowed = Some(0);
    status.observed_generation = budget.metadata.generation;
    // The counts are wanted whatever is known.
    for n in [&mut status.current_healthy, &mut status.desired_healthy, &mut status.expected_pods] {
        *n = n.or(Some(0));
    }
    tell(&mut status, "False", "SyncFailed", why, now);
    status
}

fn tell(status: &mut PodDisruptionBudgetStatus, word: &str, reason: &str, message: String, now: Timestamp) {
    let generation = status.observed_generation;
    let list = status.conditions.get_or_insert_default();
    let known = list.iter_mut().find(|c| c.type_ == ALLOWED);
    let since = known.as_ref().filter(|c| c.status == word).map_or(Time(now), |c| c.last_transition_time.clone());
    let next = Condition {
        type_: ALLOWED.into(),
        status: word.into(),
        reason: reason.into(),
        message,
        observed_generation: generation,
        last_transition_time: since,
    };
    match known {
        Some(c) => *c = next,
        None => list.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn budget(spec: Value, evicted: Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({"metadata": {"name": "b", "generation": 3}, "spec": spec,
            "status": {"disruptedPods": evicted}}))
        .unwrap()
    }

    fn pods(ready: &[bool]) -> Vec<Arc<Pod>> {
        let one = |(i, r): (usize, &bool)| {
            let status = if *r { "True" } else { "False" };
            let v = json!({"metadata": {"name": format!("p{i}")},
                "status": {"conditions": [{"type": "Ready", "status": status}]}});
            Arc::new(serde_json::from_value(v).unwrap())
        };
        ready.iter().enumerate().map(one).collect()
    }

    #[test]
    fn an_end_that_does_not_come_is_taken_back() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let pod = |ago: i64, status: &str, phase: &str| -> Pod {
            let at = Timestamp::from_second(1_800_000_000 - ago).unwrap().to_string();
            serde_json::from_value(json!({"status": {"phase": phase,
                "conditions": [{"type": TARGET, "status": status, "lastTransitionTime": at}]}}))
            .unwrap()
        };
        for (pod, want) in [
            (pod(20, "True", "Running"), Some(100)),
            (pod(500, "True", "Running"), Some(0)),
            (pod(500, "False", "Running"), None),
            (pod(500, "True", "Failed"), None),
        ] {
            assert_eq!(stale_in(&pod, now).map(|d| d.as_secs()), want);
        }
    }

    #[test]
    fn what_must_answer() {
        for (spec, pods, scale, want) in [
            (json!({"minAvailable": 2}), 3, 0, (3, 2)),
            (json!({"minAvailable": "50%"}), 3, 5, (5, 3)),
            (json!({"maxUnavailable": 1}), 3, 5, (5, 4)),
            (json!({"maxUnavailable": "30%"}), 3, 10, (10, 7)),
            (json!({"maxUnavailable": 9}), 3, 5, (5, 0)),
        ] {
            assert_eq!(expected(&budget(spec.clone(), json!({})), pods, scale), want, "{spec}");
        }
    }

    #[test]
    fn what_can_be_spared() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let ago = |s: i64| Timestamp::from_second(1_800_000_000 - s).unwrap().to_string();
        for (evicted, ready, desired, want) in [
            (json!({}), &[true, true, true][..], 2, (3, 1)),
            (json!({}), &[true, true, false], 2, (2, 0)),
            (json!({}), &[true], 2, (1, 0)),
            (json!({"p0": ago(10)}), &[true, true, true], 1, (2, 1)),
            (json!({"p0": ago(200)}), &[true, true, true], 1, (3, 2)),
            (json!({"gone": ago(10)}), &[true, true], 1, (2, 1)),
        ] {
            let b = budget(json!({"minAvailable": desired}), evicted.clone());
            let r = count(&b, &pods(ready), 3, desired, now);
            let s = &r.status;
            assert_eq!((s.current_healthy, s.disruptions_allowed), (Some(want.0), Some(want.1)), "{evicted} {ready:?}");
            assert_eq!(s.conditions.as_ref().unwrap()[0].status == "True", want.1 > 0);
            assert_eq!(r.again.is_some(), evicted == json!({"p0": ago(10)}));
            assert_eq!(r.late.len(), usize::from(evicted == json!({"p0": ago(200)})));
        }
        let b = budget(json!({"maxUnavailable": 1}), json!({}));
        assert_eq!(count(&b, &[], 0, 0, now).status.disruptions_allowed, Some(0), "none where there should be none");
        let s = failed(&b, "why".into(), now);
        assert_eq!(s.conditions.unwrap()[0].reason, "SyncFailed");
        assert_eq!((s.disruptions_allowed, s.observed_generation), (Some(0), Some(3)));
    }
}
