//! Writing down what was seen: conditions, times, costs.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use k8s_openapi::jiff::Timestamp;

use super::{Case, Controller};
use crate::api::{Class, Decider, Phase, Times, Waiting, condition};
use crate::state::{Report, Verdict};

/// Longest message of a condition.
const MESSAGE: usize = 2048;

/// Now, in whole seconds.
pub(crate) fn now() -> Time {
    skiff_controllers::runtime::now()
}

pub(super) fn micro_now() -> MicroTime {
    MicroTime(Timestamp::now())
}

/// A time of Slurm.
pub(super) fn at(seconds: i64) -> Option<Time> {
    Timestamp::from_second(seconds).ok().map(Time)
}

/// Sets a condition; its time stays when its status does.
pub(crate) fn set(
    all: &mut Vec<Condition>,
    kind: &str,
    holds: bool,
    reason: &str,
    message: impl Into<String>,
    generation: Option<i64>,
) {
    let message: String = message.into().chars().take(MESSAGE).collect();
    let status = if holds { "True" } else { "False" };
    let before = all.iter().position(|c| c.type_ == kind);
    let same = before.map(|i| &all[i]).filter(|c| c.status == status);
    let since = same.map(|c| c.last_transition_time.clone());
    // The generation of what did not change stays too: a condition that says the same is not written again.
    let observed = same.filter(|c| c.reason == reason && c.message == message).and_then(|c| c.observed_generation);
    let new = Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: observed.or(generation),
        last_transition_time: since.unwrap_or_else(now),
    };
    match before {
        Some(i) => all[i] = new,
        None => all.push(new),
    }
}

/// Makes a condition false where it is there.
pub(crate) fn clear(all: &mut Vec<Condition>, kind: &str, reason: &str) {
    let there = all.iter().find(|c| c.type_ == kind && c.status != "False").map(|c| c.observed_generation);
    if let Some(generation) = there {
        set(all, kind, false, reason, "", generation);
    }
}

impl Controller {
    /// A job that will not go on.
    pub(super) fn fail(&self, case: &mut Case, reason: &str, message: String) {
        case.status.phase = Some(Phase::Failed);
        case.status.reason = Some(reason.to_owned());
        case.status.class.get_or_insert(Class::Never);
        case.status.decided_by.get_or_insert(Decider::Skiff);
        for kind in [condition::RUNNING, condition::SUSPENDED, condition::UNSCHEDULABLE, condition::FAILURE_TARGET] {
            case.clear(kind, "Ended");
        }
        case.set(condition::FAILED, true, reason, message);
        times(case).finished.get_or_insert_with(now);
    }
}

pub(super) fn times(case: &mut Case) -> &mut Times {
    case.status.times.get_or_insert_default()
}

/// Writes down a verdict and where it comes from. The end of a job is another step's.
pub(super) fn observe(case: &mut Case, verdict: &Verdict, report: Option<&Report>, decider: Decider) {
    if let Some(report) = report {
        case.status.state = report.words.first().cloned().or(case.status.state.take());
        case.status.flags = report.words.iter().skip(1).cloned().collect();
        let reason = Some(report.reason.clone()).filter(|r| !r.is_empty());
        case.status.reason = reason.or_else(|| Some(verdict.reason.to_owned()));
        let filled = |new: &str, old: Option<String>| Some(new.to_owned()).filter(|s| !s.is_empty()).or(old);
        case.status.node_list = filled(&report.nodes, case.status.node_list.take());
        case.status.partition = filled(&report.partition, case.status.partition.take());
        case.status.restarts = case.status.restarts.max(report.restarts);
        let waits = matches!(verdict.phase, Some(Phase::Queued | Phase::Suspended)) && !verdict.allocated;
        let t = times(case);
        t.submitted = report.submitted.and_then(at).or(t.submitted.take());
        t.eligible = report.eligible.and_then(at).or(t.eligible.take());
        if waits {
            t.expected_start = report.started.and_then(at);
            t.started = None;
            t.limit = None;
        } else {
            t.expected_start = None;
            t.started = report.started.and_then(at).or(t.started.take());
            if verdict.terminal {
                t.limit = None;
                t.ended = report.ended.and_then(at).or(t.ended.take());
            } else {
                t.limit = report.ended.and_then(at);
            }
        }
    }
    case.status.decided_by = Some(decider);
    if !verdict.unknown {
        case.status.missing_since = None;
        case.clear(condition::UNKNOWN, "Known");
    } else if !verdict.terminal {
        case.set(condition::UNKNOWN, true, verdict.reason, verdict.message.clone());
    }
    if verdict.terminal {
        return;
    }
    let Some(phase) = verdict.phase else { return };
    let had_nodes = matches!(case.status.phase, Some(Phase::Starting | Phase::Running | Phase::Finishing));
    if had_nodes && phase == Phase::Queued {
        // It had to make room, or its node was lost: Slurm itself starts it again, under the same id.
        let known = report.map_or(0, |r| r.restarts);
        case.status.restarts = case.status.restarts.max(known).max(1);
        let message = format!("Slurm took it from its nodes and queued it again: {}", verdict.message);
        case.set(condition::DISRUPTION_TARGET, true, "Requeued", message.trim_end_matches([':', ' ']));
    }
    case.status.phase = Some(phase);
    case.status.class = verdict.class;
    case.set(condition::SUBMITTED, true, "Submitted", "");
    let waiting = matches!(phase, Phase::Queued | Phase::Suspended | Phase::Starting);
    match phase {
        Phase::Running => case.set(condition::RUNNING, true, "Running", ""),
        _ if waiting => case.clear(condition::RUNNING, verdict.reason),
        _ => case.set(condition::RUNNING, false, verdict.reason, verdict.message.clone()),
    }
    if verdict.allocated {
        case.set(condition::ALLOCATED, true, "Allocated", "");
    } else {
        case.clear(condition::ALLOCATED, verdict.reason);
    }
    if phase == Phase::Suspended {
        // Who holds it is remembered in the reason: what we hold ourselves we let go again.
        let ours = case.status.conditions.iter().any(|c| c.type_ == condition::SUSPENDED && c.reason == HELD_HERE);
        let reason = if ours && case.holds(condition::SUSPENDED) { HELD_HERE } else { verdict.reason };
        case.set(condition::SUSPENDED, true, reason, verdict.message.clone());
    } else {
        case.clear(condition::SUSPENDED, verdict.reason);
    }
    if verdict.unschedulable {
        case.set(condition::UNSCHEDULABLE, true, verdict.reason, verdict.message.clone());
    } else {
        case.clear(condition::UNSCHEDULABLE, verdict.reason);
    }
}

/// The reason of jobs that wait because their object says so.
pub(super) const HELD_HERE: &str = "SuspendedByObject";

/// Adds up what an attempt waited for and how long it ran.
pub(super) fn costs(case: &mut Case) {
    let t = case.status.times.clone().unwrap_or_default();
    let between = |a: &Option<Time>, b: &Option<Time>| match (a, b) {
        (Some(a), Some(b)) => (b.0.as_second() - a.0.as_second()).max(0),
        _ => 0,
    };
    let before = case.status.waiting.take().unwrap_or_default();
    case.status.waiting = Some(Waiting {
        queued_seconds: before.queued_seconds + between(&t.submitted, &t.started),
        starting_seconds: before.starting_seconds + between(&t.started, &t.running),
        running_seconds: before.running_seconds + between(&t.running.clone().or(t.started.clone()), &t.ended),
        staging_seconds: before.staging_seconds,
    });
}

/// Adds to the time that files were on their way.
pub(super) fn staged_for(case: &mut Case, began: Timestamp) {
    let seconds = (Timestamp::now().as_second() - began.as_second()).max(0);
    case.status.waiting.get_or_insert_default().staging_seconds += seconds;
}
