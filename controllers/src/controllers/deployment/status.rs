//! What a Deployment reports: counts and the conditions Available, Progressing, ReplicaFailure. No I/O.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use kube::ResourceExt;

use super::plan::{max_unavailable, replicas, set_actual, set_available, set_ready, set_replicas, sum};
use crate::runtime::{now, seconds_since};

/// Reason of Progressing when a rollout ended well.
pub const COMPLETE: &str = "NewReplicaSetAvailable";
/// Reason of Progressing when a rollout took too long.
pub const TIMED_OUT: &str = "ProgressDeadlineExceeded";
/// Reason of Progressing while paused.
pub const PAUSED: &str = "DeploymentPaused";
/// Reason of Progressing after a pause.
pub const RESUMED: &str = "DeploymentResumed";

/// A condition as of now.
#[must_use]
pub fn condition(kind: &str, status: &str, reason: &str, message: impl Into<String>) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(kind.to_owned()),
        status: Some(status.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.into()),
        last_transition_time: Some(now()),
        last_update_time: Some(now()),
    }
}

/// The condition of a type.
#[must_use]
pub fn get<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|c| c.type_.as_deref() == Some(kind))
}

/// Takes a condition away.
pub fn remove(status: &mut DeploymentStatus, kind: &str) {
    let kept = status.conditions.take().unwrap_or_default().into_iter().filter(|c| c.type_.as_deref() != Some(kind));
    status.conditions = Some(kept.collect::<Vec<_>>()).filter(|c| !c.is_empty());
}

/// Sets a condition. Same status and reason changes nothing; same status keeps the time of transition.
pub fn set(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    let kind = condition.type_.clone().unwrap_or_default();
    if let Some(old) = get(status, &kind) {
        if old.status == condition.status && old.reason == condition.reason {
            return;
        }
        if old.status == condition.status {
            condition.last_transition_time.clone_from(&old.last_transition_time);
        }
    }
    remove(status, &kind);
    status.conditions.get_or_insert_default().push(condition);
}

/// The deadline, unless it is switched off.
#[must_use]
pub fn deadline(d: &Deployment) -> Option<i32> {
    Some(d.spec.progress_deadline_seconds.unwrap_or(600)).filter(|s| *s != i32::MAX)
}

/// Counts, and whether enough is available.
#[must_use]
pub fn count(d: &Deployment, all: &[Arc<ReplicaSet>], new: Option<&Arc<ReplicaSet>>) -> DeploymentStatus {
    let old = d.status.clone().unwrap_or_default();
    let total = sum(all, set_actual);
    let available = sum(all, set_available);
    let mut status = DeploymentStatus {
        observed_generation: d.metadata.generation,
        replicas: nonzero(total),
        updated_replicas: nonzero(new.map_or(0, |n| set_actual(n))),
        ready_replicas: nonzero(sum(all, set_ready)),
        available_replicas: nonzero(available),
        unavailable_replicas: nonzero((sum(all, set_replicas) - available).max(0)),
        // Unknown as long as one of the sets does not say.
        terminating_replicas: all.iter().map(|rs| rs.status.as_ref()?.terminating_replicas).sum(),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    let enough = available >= replicas(d) - max_unavailable(d);
    set(
        &mut status,
        if enough {
            let text = "Deployment has minimum availability.";
            condition("Available", "True", "MinimumReplicasAvailable", text)
        } else {
            let text = "Deployment does not have minimum availability.";
            condition("Available", "False", "MinimumReplicasUnavailable", text)
        },
    );
    status
}

fn nonzero(n: i32) -> Option<i32> {
    Some(n).filter(|n| *n != 0)
}

fn complete(d: &Deployment, s: &DeploymentStatus) -> bool {
    let all = |n: Option<i32>| n.unwrap_or(0) == replicas(d);
    all(s.updated_replicas) && all(s.replicas) && all(s.available_replicas)
}

fn progressed(d: &Deployment, s: &DeploymentStatus) -> bool {
    let before = d.status.clone().unwrap_or_default();
    let n = |v: Option<i32>| v.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(s.updated_replicas) > n(before.updated_replicas)
        || outdated(s) < outdated(&before)
        || n(s.ready_replicas) > n(before.ready_replicas)
        || n(s.available_replicas) > n(before.available_replicas)
}

/// Whether nothing has moved for longer than the deadline.
#[must_use]
pub fn timed_out(d: &Deployment, s: &DeploymentStatus) -> bool {
    let Some(c) = get(s, "Progressing") else { return false };
    match c.reason.as_deref() {
        Some(COMPLETE) => false,
        Some(TIMED_OUT) => true,
        _ => match (deadline(d), &c.last_update_time) {
            (Some(limit), Some(t)) => seconds_since(t) > f64::from(limit),
            _ => false,
        },
    }
}

/// Counts and all conditions of a rollout.
#[must_use]
pub fn rollout(d: &Deployment, all: &[Arc<ReplicaSet>], new: Option<&Arc<ReplicaSet>>) -> DeploymentStatus {
    let mut status = count(d, all, new);
    if deadline(d).is_none() {
        remove(&mut status, "Progressing");
    }
    let present = get(&status, "Progressing").cloned();
    let was_complete = status.replicas == status.updated_replicas
        && present.as_ref().is_some_and(|c| c.reason.as_deref() == Some(COMPLETE));
    if deadline(d).is_some() && !was_complete {
        let subject = match new {
            Some(rs) => format!("ReplicaSet \"{}\"", rs.name_any()),
            None => format!("Deployment \"{}\"", d.name_any()),
        };
        if complete(d, &status) {
            let text = format!("{subject} has successfully progressed.");
            set(&mut status, condition("Progressing", "True", COMPLETE, text));
        } else if progressed(d, &status) {
            let mut c = condition("Progressing", "True", "ReplicaSetUpdated", format!("{subject} is progressing."));
            // Every step renews the time that the deadline counts from.
            if let Some(old) = present.filter(|o| o.status.as_deref() == Some("True")) {
                c.last_transition_time = old.last_transition_time;
            }
            remove(&mut status, "Progressing");
            set(&mut status, c);
        } else if timed_out(d, &status) {
            let text = format!("{subject} has timed out progressing.");
            set(&mut status, condition("Progressing", "False", TIMED_OUT, text));
        }
    }
    match failure(all, new) {
        Some(c) => set(&mut status, c),
        None => remove(&mut status, "ReplicaFailure"),
    }
    status
}

fn failure(all: &[Arc<ReplicaSet>], new: Option<&Arc<ReplicaSet>>) -> Option<DeploymentCondition> {
    let of = |rs: &ReplicaSet| {
        let list = rs.status.as_ref()?.conditions.as_ref()?;
        let c = list.iter().find(|c| c.type_.as_deref() == Some("ReplicaFailure"))?;
        Some(DeploymentCondition {
            type_: c.type_.clone(),
            status: c.status.clone(),
            reason: c.reason.clone(),
            message: c.message.clone(),
            last_transition_time: c.last_transition_time.clone(),
            last_update_time: c.last_transition_time.clone(),
        })
    };
    new.and_then(|n| of(n)).or_else(|| all.iter().find_map(|rs| of(rs)))
}

/// When to look again whether the deadline has passed.
#[must_use]
pub fn look_again(d: &Deployment, s: &DeploymentStatus) -> Option<Duration> {
    let limit = deadline(d)?;
    let c = get(s, "Progressing")?;
    if complete(d, s) || matches!(c.reason.as_deref(), Some(TIMED_OUT | COMPLETE)) {
        return None;
    }
    let left = f64::from(limit) - seconds_since(c.last_update_time.as_ref()?);
    Some(Duration::from_secs_f64(left.max(0.0)) + Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(status: serde_json::Value) -> Deployment {
        let v = json!({"metadata": {"name": "d"}, "spec": {"replicas": 2, "selector": {}, "template": {}}, "status": status});
        serde_json::from_value(v).unwrap()
    }

    fn set_with(available: i32) -> Arc<ReplicaSet> {
        let v = json!({"metadata": {"name": "d-1"}, "spec": {"replicas": 2, "selector": {}},
            "status": {"replicas": 2, "availableReplicas": available, "readyReplicas": available}});
        Arc::new(serde_json::from_value(v).unwrap())
    }

    #[test]
    fn those_that_terminate_are_counted_once_all_sets_say() {
        let with = |n: Option<i32>| {
            let mut rs = ReplicaSet::clone(&set_with(1));
            rs.status.as_mut().unwrap().terminating_replicas = n;
            Arc::new(rs)
        };
        let total = |sets: &[Arc<ReplicaSet>]| count(&deployment(json!({})), sets, None).terminating_replicas;
        assert_eq!(total(&[with(Some(2)), with(Some(0)), with(Some(1))]), Some(3));
        assert_eq!(total(&[with(Some(2)), with(None)]), None);
        assert_eq!(total(&[]), Some(0));
    }

    fn reasons(s: &DeploymentStatus) -> Vec<(&str, &str)> {
        let list = s.conditions.iter().flatten();
        list.map(|c| (c.reason.as_deref().unwrap_or_default(), c.status.as_deref().unwrap_or_default())).collect()
    }

    #[test]
    fn a_rollout_progresses_and_completes() {
        let mut d = deployment(json!({}));
        let rs = set_with(0);
        let all = [Arc::clone(&rs)];
        let s = rollout(&d, &all, Some(&rs));
        assert_eq!(reasons(&s), [("MinimumReplicasUnavailable", "False"), ("ReplicaSetUpdated", "True")]);
        assert_eq!(s.unavailable_replicas, Some(2));
        d.status = Some(s);
        let rs = set_with(2);
        let s = rollout(&d, &[Arc::clone(&rs)], Some(&rs));
        assert_eq!(reasons(&s), [("MinimumReplicasAvailable", "True"), (COMPLETE, "True")]);
        let text = get(&s, "Progressing").unwrap().message.as_deref();
        assert_eq!(text, Some("ReplicaSet \"d-1\" has successfully progressed."));
        d.status = Some(s.clone());
        assert_eq!(rollout(&d, &[Arc::clone(&rs)], Some(&rs)), s, "nothing changes once complete");
    }

    #[test]
    fn silence_times_out() {
        let long_ago = "2020-01-01T00:00:00Z";
        let d = deployment(json!({"replicas": 2, "updatedReplicas": 2, "conditions": [
            {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
             "lastUpdateTime": long_ago, "lastTransitionTime": long_ago}]}));
        let rs = set_with(0);
        let s = rollout(&d, &[Arc::clone(&rs)], Some(&rs));
        let c = get(&s, "Progressing").unwrap();
        assert_eq!((c.reason.as_deref(), c.status.as_deref()), (Some(TIMED_OUT), Some("False")));
    }
}
