//! What a Job makes of its pods' ends: which failed, what the failure policy says, when the next may start.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyOnExitCodesRequirement};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::plan::{INDEX_FAILURES, INDEX_IGNORED};
use crate::controllers::pods;

/// First delay after a failure; it doubles with every further one.
const BACKOFF_BASE: Duration = Duration::from_secs(10);
/// Longest delay.
const BACKOFF_MAX: Duration = Duration::from_secs(600);

/// Whether pods are replaced only when they have failed, not already while they terminate.
#[must_use]
pub fn only_replace_failed(job: &Job) -> bool {
    let spec = job.spec.as_ref();
    spec.is_some_and(|s| s.pod_replacement_policy.as_deref() == Some("Failed") || s.pod_failure_policy.is_some())
}

/// Whether a pod counts as failed. A deleted pod does, for it may never report a phase.
#[must_use]
pub fn failed(pod: &Pod, job: &Job) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => !only_replace_failed(job) && pods::deleting(pod),
    }
}

/// What the failure policy says of a failed pod.
#[derive(Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It does not count.
    Ignore,
    /// It counts.
    Count,
    /// Its index has failed for good.
    FailIndex,
    /// The Job has failed, and why.
    FailJob(String),
}

/// The first rule that a failed pod matches decides; it counts when none does.
#[must_use]
pub fn rule(job: &Job, pod: &Pod) -> Ruling {
    let Some(policy) = job.spec.as_ref().and_then(|s| s.pod_failure_policy.as_ref()) else { return Ruling::Count };
    let per_index = job.spec.as_ref().is_some_and(|s| s.backoff_limit_per_index.is_some());
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    for (i, rule) in policy.rules.iter().enumerate() {
        let action = rule.action.as_str();
        let why = if let Some(codes) = &rule.on_exit_codes {
            exited(pod, codes).map(|(container, code)| {
                format!(
                    "Container {container} for pod {namespace}/{name} failed with exit code {code} \
                     matching {action} rule at index {i}"
                )
            })
        } else {
            let patterns = rule.on_pod_conditions.iter().flatten();
            let mut hits = patterns.filter(|p| {
                let want = p.status.as_deref().unwrap_or("True");
                pods::condition(pod, &p.type_).is_some_and(|c| c.status == want)
            });
            hits.next().map(|p| {
                format!("Pod {namespace}/{name} has condition {} matching {action} rule at index {i}", p.type_)
            })
        };
        let Some(why) = why else { continue };
        match action {
            "Ignore" => return Ruling::Ignore,
            "Count" => return Ruling::Count,
            "FailIndex" if per_index => return Ruling::FailIndex,
            "FailJob" => return Ruling::FailJob(why),
            _ => {}
        }
    }
    Ruling::Count
}

/// Statuses of ordinary and init containers.
pub fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let s = pod.status.as_ref();
    let ordinary = s.and_then(|s| s.container_statuses.as_ref());
    let init = s.and_then(|s| s.init_container_statuses.as_ref());
    ordinary.into_iter().flatten().chain(init.into_iter().flatten())
}

fn exited<'a>(pod: &'a Pod, wanted: &PodFailurePolicyOnExitCodesRequirement) -> Option<(&'a str, i32)> {
    containers(pod).find_map(|c| {
        let code = c.state.as_ref()?.terminated.as_ref()?.exit_code;
        let named = wanted.container_name.as_ref().is_none_or(|n| *n == c.name);
        let listed = wanted.values.contains(&code);
        let holds = if wanted.operator == "In" { listed } else { !listed };
        // A container that succeeded is no reason for a failure.
        (code != 0 && named && holds).then_some((c.name.as_str(), code))
    })
}

/// When a pod ended, as well as it can be told.
#[must_use]
pub fn ended(pod: &Pod) -> Option<Timestamp> {
    let finished =
        containers(pod).filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()).map(|t| t.0);
    finished
        .max()
        .or_else(|| {
            pods::condition(pod, "Ready").filter(|c| c.status == "False")?.last_transition_time.as_ref().map(|t| t.0)
        })
        .or_else(|| {
            let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
            let at = pod.metadata.deletion_timestamp.as_ref()?.0;
            Timestamp::from_second(at.as_second() - grace).ok()
        })
        .or_else(|| pod.metadata.creation_timestamp.as_ref().map(|t| t.0))
}

/// Failures in a row of a Job's pods, and the last one's time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Failures since the last success.
    pub failures: u32,
    /// When the last of them was.
    pub last: Option<Timestamp>,
}

impl Record {
    /// The record after pods that ended since.
    #[must_use]
    pub fn next(&self, succeeded: &[Arc<Pod>], failed: &[Arc<Pod>]) -> Self {
        let success = succeeded.iter().filter_map(|p| ended(p)).max();
        let since: Vec<Timestamp> =
            failed.iter().filter_map(|p| ended(p)).filter(|t| success.is_none_or(|s| *t > s)).collect();
        let before = if succeeded.is_empty() { self.failures } else { 0 };
        let last = since.iter().max().copied().or(self.last.filter(|_| succeeded.is_empty()));
        Self { failures: before + u32::try_from(since.len()).unwrap_or(u32::MAX), last }
    }

    /// How long until a pod may be made again.
    #[must_use]
    pub fn remaining(&self, now: Timestamp) -> Duration {
        remaining(self.failures, self.last, now)
    }
}

fn remaining(failures: u32, last: Option<Timestamp>, now: Timestamp) -> Duration {
    let (Some(last), true) = (last, failures > 0) else { return Duration::ZERO };
    let delay = BACKOFF_BASE.saturating_mul(1 << (failures - 1).min(10)).min(BACKOFF_MAX);
    let passed = now.duration_since(last);
    if passed.is_negative() { delay } else { delay.saturating_sub(passed.unsigned_abs()) }
}

fn number(pod: &Pod, annotation: &str) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(annotation)?.parse().ok()).unwrap_or(0)
}

/// Failures of an index before this pod.
#[must_use]
pub fn index_failures(pod: &Pod) -> i32 {
    number(pod, INDEX_FAILURES)
}

/// All failures of an index before this pod, those that were ignored too.
#[must_use]
pub fn index_failures_all(pod: &Pod) -> i32 {
    number(pod, INDEX_FAILURES) + number(pod, INDEX_IGNORED)
}

/// Failures, counted and ignored, of an index with this pod.
#[must_use]
pub fn index_failures_next(job: &Job, replaced: &Pod) -> (i32, i32) {
    let (counted, ignored) = (number(replaced, INDEX_FAILURES), number(replaced, INDEX_IGNORED));
    if rule(job, replaced) == Ruling::Ignore { (counted, ignored + 1) } else { (counted + 1, ignored) }
}

/// How long until the index of a failed pod may be tried again.
#[must_use]
pub fn index_remaining(replaced: &Pod, now: Timestamp) -> Duration {
    let failures = u32::try_from(index_failures_all(replaced) + 1).unwrap_or(1);
    remaining(failures, ended(replaced), now)
}

/// Whether the index of a pod has failed for good.
#[must_use]
pub fn index_failed(job: &Job, pod: &Pod) -> bool {
    let Some(limit) = job.spec.as_ref().and_then(|s| s.backoff_limit_per_index) else { return false };
    failed(pod, job)
        && match rule(job, pod) {
            Ruling::FailIndex => true,
            Ruling::Ignore => false,
            Ruling::Count | Ruling::FailJob(_) => index_failures(pod) >= limit,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job(spec: Value) -> Job {
        let mut spec = spec;
        spec["template"] = json!({});
        serde_json::from_value(json!({"metadata": {"name": "j"}, "spec": spec})).unwrap()
    }

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "status": status})).unwrap()
    }

    fn exit(code: i32) -> Pod {
        pod(json!({"phase": "Failed", "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": code}}}]}))
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let j = job(json!({"backoffLimitPerIndex": 1, "podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [3]}},
            {"action": "FailJob", "onExitCodes": {"containerName": "c", "operator": "NotIn", "values": [1, 2]}},
        ]}}));
        let disturbed = pod(json!({"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True"}]}));
        let why = "Container c for pod ns/p failed with exit code 9 matching FailJob rule at index 2";
        assert_eq!(rule(&j, &disturbed), Ruling::Ignore);
        assert_eq!(rule(&j, &exit(3)), Ruling::FailIndex);
        assert_eq!(rule(&j, &exit(9)), Ruling::FailJob(why.into()));
        assert_eq!(rule(&j, &exit(1)), Ruling::Count);
        assert_eq!(rule(&j, &exit(0)), Ruling::Count);
        assert!(index_failed(&j, &exit(3)) && !index_failed(&j, &exit(1)) && !index_failed(&j, &disturbed));
        assert_eq!(index_failures_next(&j, &disturbed), (0, 1));
        assert_eq!(index_failures_next(&j, &exit(1)), (1, 0));
    }

    #[test]
    fn a_deleted_pod_counts_unless_only_failed_ones_do() {
        let mut leaving = pod(json!({"phase": "Running"}));
        leaving.metadata.deletion_timestamp = Some(crate::runtime::now());
        assert!(failed(&leaving, &job(json!({}))));
        assert!(!failed(&leaving, &job(json!({"podReplacementPolicy": "Failed"}))));
    }

    #[test]
    fn delays_double_and_a_success_ends_them() {
        let at = |t: i64, phase: &str| {
            let time = Timestamp::from_second(t).unwrap().to_string();
            Arc::new(pod(json!({"phase": phase, "containerStatuses": [{"name": "c", "image": "", "imageID": "",
                "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 1, "finishedAt": time}}}]})))
        };
        let now = |t: i64| Timestamp::from_second(t).unwrap();
        let one = Record::default().next(&[], &[at(100, "Failed")]);
        assert_eq!(one.remaining(now(100)).as_secs(), 10);
        assert_eq!(one.remaining(now(109)).as_secs(), 1);
        assert_eq!(one.remaining(now(111)).as_secs(), 0);
        assert_eq!(one.next(&[], &[]), one);
        let three = one.next(&[], &[at(120, "Failed"), at(130, "Failed")]);
        assert_eq!((three.failures, three.remaining(now(130)).as_secs()), (3, 40));
        let many = Record { failures: 40, ..three.clone() };
        assert_eq!(many.remaining(now(130)), BACKOFF_MAX);
        let healed = three.next(&[at(140, "Succeeded")], &[at(135, "Failed")]);
        assert_eq!(healed, Record::default());
        let again = three.next(&[at(140, "Succeeded")], &[at(135, "Failed"), at(150, "Failed")]);
        assert_eq!((again.failures, again.remaining(now(150)).as_secs()), (1, 10));
    }
}
