//! Values of jobs as Slurm's tools print them, by one name each; the tools map their letters and names to these.

use crate::schedule::minutes;
use crate::state::{Job, Locked};
use crate::words::printed;

/// A time as the text tools print it: local time without a zone. Servers of tests run in UTC.
#[must_use]
pub fn time(ms: Option<i64>) -> String {
    ms.and_then(|t| jiff::Timestamp::from_millisecond(t).ok()).map_or_else(
        || "Unknown".into(),
        |t| t.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%dT%H:%M:%S").to_string(),
    )
}

/// `[[D-]HH:]MM:SS`.
#[must_use]
pub fn elapsed(seconds: i64) -> String {
    let (d, h, m, s) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (d, h) {
        (0, 0) => format!("{m}:{s:02}"),
        (0, _) => format!("{h}:{m:02}:{s:02}"),
        _ => format!("{d}-{h:02}:{m:02}:{s:02}"),
    }
}

/// The same with all of hours, minutes and seconds, as sacct and scontrol print it.
#[must_use]
pub fn long_elapsed(seconds: i64) -> String {
    let (d, h, m, s) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    if d > 0 { format!("{d}-{h:02}:{m:02}:{s:02}") } else { format!("{h:02}:{m:02}:{s:02}") }
}

/// Nodes in Slurm's short form: `n[1-2,4]`.
#[must_use]
pub fn node_list(nodes: &[String]) -> String {
    let split = |n: &String| {
        let digits = n.len() - n.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (head, tail) = n.split_at(n.len() - digits);
        Some((head.to_owned(), tail.parse::<u32>().ok()?))
    };
    let parts: Option<Vec<(String, u32)>> = nodes.iter().map(split).collect();
    match parts {
        Some(parts) if parts.len() > 1 && parts.iter().all(|p| p.0 == parts[0].0) => {
            format!("{}[{}]", parts[0].0, ranges(&parts.iter().map(|p| p.1).collect::<Vec<_>>()))
        }
        _ => nodes.join(","),
    }
}

/// Numbers in Slurm's short form: `1-2,4`.
#[must_use]
pub fn ranges(numbers: &[u32]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    let mut out: Vec<(u32, u32)> = Vec::new();
    for n in sorted {
        match out.last_mut() {
            Some(last) if last.1 + 1 == n => last.1 = n,
            _ => out.push((n, n)),
        }
    }
    out.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect::<Vec<_>>().join(",")
}

/// What several records of an array are shown as: one for all tasks that wait alike, one for each other.
pub struct Shown<'a> {
    /// The job, or the first of those.
    pub job: &'a Job,
    /// The tasks, where it is more than this one.
    pub tasks: Option<String>,
}

/// Jobs as squeue lists them.
#[must_use]
pub fn collapse<'a>(jobs: impl Iterator<Item = &'a Job>, apart: bool) -> Vec<Shown<'a>> {
    let mut out: Vec<Shown<'a>> = Vec::new();
    let mut together: Vec<(u32, String, usize, Vec<u32>)> = Vec::new();
    for job in jobs {
        match job.array {
            Some((array, task, limit)) if !apart && job.state == "PENDING" && job.restarts == 0 => {
                let alike = together.iter_mut().find(|t| t.0 == array && t.1 == job.reason);
                if let Some(alike) = alike {
                    alike.3.push(task);
                } else {
                    out.push(Shown { job, tasks: Some(if limit > 0 { format!("%{limit}") } else { String::new() }) });
                    together.push((array, job.reason.clone(), out.len() - 1, vec![task]));
                }
            }
            _ => out.push(Shown { job, tasks: None }),
        }
    }
    for (.., at, tasks) in together {
        out[at].tasks = Some(format!("{}{}", ranges(&tasks), out[at].tasks.take().unwrap_or_default()));
    }
    out
}

/// A value of a job. Unknown names are `None`.
#[must_use]
pub fn value(locked: &Locked, shown: &Shown<'_>, name: &str, now: i64) -> Option<String> {
    let job = shown.job;
    let (long, short) = printed(&job.state, &job.flags);
    let or_null = |s: &str| if s.is_empty() { "(null)".to_owned() } else { s.to_owned() };
    let limit = minutes(job.option("time")).unwrap_or(60);
    let ran = job.start.map_or(0, |s| (job.end.unwrap_or(now) - s).max(0) / 1000);
    let gpus: u32 = job.gpus().iter().map(|g| g.1).sum();
    let tres = format!(
        "cpu={},mem={}M,node={},billing={}{}",
        job.cpus(),
        1000 * job.cpus(),
        job.node_count(),
        job.cpus(),
        if gpus > 0 { format!(",gres/gpu={}", gpus * job.node_count()) } else { String::new() }
    );
    Some(match name {
        "id" => job.id.to_string(),
        "array-id" => match (job.array, &shown.tasks) {
            (None, _) => job.id.to_string(),
            (Some((array, ..)), Some(tasks)) => format!("{array}_[{tasks}]"),
            (Some((array, task, _)), None) => format!("{array}_{task}"),
        },
        "array-job" => job.array.map_or(job.id, |a| a.0).to_string(),
        "array-task" => match (job.array, &shown.tasks) {
            (None, _) => "N/A".into(),
            (Some(_), Some(tasks)) => tasks.clone(),
            (Some(a), None) => a.1.to_string(),
        },
        "name" => job.name().into(),
        "user" => job.user.clone(),
        "uid" => job.uid.to_string(),
        "partition" => job.option("partition").into(),
        "state" => long,
        "state-short" => short,
        "state-by" => match job.cancelled_by {
            Some(uid) if long == "CANCELLED" => format!("CANCELLED by {uid}"),
            _ => long,
        },
        "reason" => job.reason.clone(),
        "reason-or-nodes" => match job.state.as_str() {
            "PENDING" => format!("({})", job.reason),
            _ if job.ended() && job.reason != "None" => format!("({})", job.reason),
            _ => node_list(&job.nodes),
        },
        "nodes" => node_list(&job.nodes),
        "node-count" => job.node_count().to_string(),
        "cpus" => job.cpus().to_string(),
        "tasks" => job.tasks().to_string(),
        "limit" => elapsed(i64::from(limit) * 60),
        "limit-minutes" => limit.to_string(),
        "limit-long" => long_elapsed(i64::from(limit) * 60),
        "left" => elapsed((i64::from(limit) * 60 - ran).max(0)),
        "elapsed" => elapsed(ran),
        "elapsed-long" => long_elapsed(ran),
        "elapsed-raw" => ran.to_string(),
        "start" => job.start.map_or_else(|| "N/A".into(), |t| time(Some(t))),
        "start-unknown" => time(job.start),
        "end" => match (job.end, job.start) {
            (Some(end), _) => time(Some(end)),
            (None, Some(start)) => time(Some(start + i64::from(limit) * 60_000)),
            _ => "N/A".into(),
        },
        "end-unknown" => time(job.end),
        "submit" | "eligible" => time(Some(job.submit)),
        "account" => or_null(job.option("account")),
        "account-empty" => job.option("account").into(),
        "qos" => or_null(job.option("qos")),
        "qos-empty" => job.option("qos").into(),
        "priority" => {
            if job.held.is_some() {
                "0".into()
            } else {
                (4_294_901_760 - job.id).to_string()
            }
        }
        "comment" => or_null(job.option("comment")),
        "comment-empty" => job.option("comment").into(),
        "directory" => job.directory.clone(),
        "dependency" => or_null(job.option("dependency")),
        "features" => or_null(job.option("constraint")),
        "gres" if gpus == 0 => "N/A".into(),
        "gres" => job
            .gpus()
            .iter()
            .map(|(k, n)| if k.is_empty() { format!("gres:gpu:{n}") } else { format!("gres:gpu:{k}:{n}") })
            .collect::<Vec<_>>()
            .join(","),
        "memory" => "1000M".into(),
        "command" => "(null)".into(),
        "exit" => format!("{}:{}", job.exit.0, job.exit.1),
        "exit-raw" => wait_status(job.exit).to_string(),
        "derived" => format!("{}:0", job.derived),
        "restarts" => job.restarts.to_string(),
        "out" => crate::submit::file(job, "output"),
        "err" => crate::submit::file(job, "error"),
        "batch-host" => job.nodes.first().cloned().unwrap_or_default(),
        "cluster" => locked.config.cluster.clone(),
        "tres" => tres,
        "flags" => job.flags.join("|"),
        _ => return None,
    })
}

/// The status as `wait` returns it.
#[must_use]
pub fn wait_status(exit: (i32, i32)) -> i32 {
    exit.0 << 8 | exit.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_short() {
        let nodes = |n: &[&str]| n.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        for (list, text) in [
            (nodes(&[]), ""),
            (nodes(&["n1"]), "n1"),
            (nodes(&["n1", "n2", "n4"]), "n[1-2,4]"),
            (nodes(&["a1", "b2"]), "a1,b2"),
            (nodes(&["login", "n2"]), "login,n2"),
        ] {
            assert_eq!(node_list(&list), text);
        }
    }
}
