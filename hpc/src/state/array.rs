//! Tasks of arrays: sets of numbers as Slurm writes them, and many reports as one.

use std::collections::BTreeSet;

use super::{Report, Task, Verdict, judge};
use crate::api::{Class, Phase, TaskCounts};

/// Tasks of one array that are believed.
const TASKS: usize = 1_000_000;

/// The numbers of `0-15:2,40%4`. What cannot be read is left out.
#[must_use]
pub fn expand(text: &str) -> BTreeSet<u32> {
    let text = text.trim_matches(['[', ']']);
    let text = text.split('%').next().unwrap_or_default().trim_matches(['[', ']']);
    let mut all = BTreeSet::new();
    for part in text.split(',') {
        let (range, step) = part.split_once(':').unwrap_or((part, "1"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(first), Ok(last), Ok(step)) =
            (first.trim().parse::<u32>(), last.trim().parse::<u32>(), step.parse::<usize>())
        else {
            continue;
        };
        let room = TASKS.saturating_sub(all.len());
        all.extend((first..=last).step_by(step.max(1)).take(room));
    }
    all
}

/// A set of numbers as `0-5,7`.
#[must_use]
pub fn compress(set: &BTreeSet<u32>) -> String {
    let mut parts: Vec<(u32, u32)> = vec![];
    for &n in set {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => parts.push((n, n)),
        }
    }
    let text = parts.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    text.collect::<Vec<_>>().join(",")
}

/// The tasks of an array as one: what was known of ended tasks, and what is said now.
#[must_use]
pub fn gather(all: &str, known: &TaskCounts, reports: &[Report], ours: bool) -> (Verdict, TaskCounts) {
    let total = expand(all);
    let (mut succeeded, mut failed) = (expand(&known.succeeded_tasks), expand(&known.failed_tasks));
    let (mut pending, mut running) = (0u32, 0u32);
    let mut now: Vec<Verdict> = vec![];
    let mut ends: Vec<(u32, Verdict)> = vec![];
    for report in reports {
        let verdict = judge(report, ours);
        let tasks = match &report.task {
            Some(Task::One(n)) => BTreeSet::from([*n]),
            Some(Task::Many(text)) => expand(text),
            None => BTreeSet::new(),
        };
        let count = u32::try_from(tasks.len().max(1)).unwrap_or(u32::MAX);
        for task in &tasks {
            // Slurm may have started it again.
            succeeded.remove(task);
            failed.remove(task);
            if verdict.terminal {
                let into = if verdict.phase == Some(Phase::Succeeded) { &mut succeeded } else { &mut failed };
                into.insert(*task);
            }
        }
        if verdict.terminal {
            ends.extend(tasks.first().map(|t| (*t, verdict.clone())));
            continue;
        }
        match verdict.phase {
            Some(Phase::Running | Phase::Starting | Phase::Finishing) => running += count,
            _ => pending += count,
        }
        now.push(verdict);
    }
    let counts = TaskCounts {
        total: u32::try_from(total.len()).unwrap_or(u32::MAX),
        pending,
        running,
        succeeded: u32::try_from(succeeded.len()).unwrap_or(u32::MAX),
        failed: u32::try_from(failed.len()).unwrap_or(u32::MAX),
        succeeded_tasks: compress(&succeeded),
        failed_tasks: compress(&failed),
    };
    let order = [Phase::Running, Phase::Finishing, Phase::Starting, Phase::Queued, Phase::Suspended];
    let rank = |v: &Verdict| v.phase.and_then(|p| order.iter().position(|o| *o == p)).unwrap_or(order.len());
    now.sort_by_key(rank);
    if let Some(first) = now.into_iter().next() {
        return (first, counts);
    }
    let missing = total.iter().filter(|t| !succeeded.contains(t) && !failed.contains(t)).count();
    if missing > 0 {
        let message = format!("Slurm says nothing of {missing} tasks");
        let verdict = Verdict { phase: None, unknown: true, message, ..Verdict::of(Phase::Pending, "TasksMissing") };
        return (verdict, counts);
    }
    if failed.is_empty() {
        let step_failed = ends.iter().any(|(_, v)| v.step_failed);
        let verdict =
            Verdict { terminal: true, exit_code: Some(0), step_failed, ..Verdict::of(Phase::Succeeded, "Completed") };
        return (verdict, counts);
    }
    // What tells most: what is never tried again, then a task's own failure, then the others.
    let weight = |v: &Verdict| match v.class {
        Some(Class::Never) => 0,
        Some(Class::User) => 1,
        Some(Class::Infrastructure) => 2,
        Some(Class::Unknown) | None => 3,
    };
    ends.retain(|(_, v)| v.phase == Some(Phase::Failed));
    ends.sort_by_key(|(task, v)| (weight(v), *task));
    let what = format!("{} of {} tasks failed", counts.failed, counts.total);
    let verdict = match ends.into_iter().next() {
        Some((task, v)) => Verdict { message: format!("{what}; task {task}: {}", v.message), ..v },
        None => Verdict::failed("TasksFailed", Class::User, what),
    };
    (verdict, counts)
}
