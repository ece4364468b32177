//! What Slurm's tools print and slurmrestd answers, as reports.
//!
//! Whatever is not UTF-8 was replaced before. Lines that cannot be read are left out: what is not said is asked again.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Exit, Report, Task, word, words};

/// The format for `squeue -o`. The name is last: it may contain anything.
pub const SQUEUE: &str = "%F|%K|%A|%T|%P|%V|%S|%e|%N|%l|%r|%j";
/// The fields for `sacct -P -o`.
pub const SACCT: &str = "JobIDRaw,JobID,State,ExitCode,DerivedExitCode,Partition,Submit,Eligible,Start,End,NodeList,Timelimit,Reason,JobName";

/// A value, or nothing where Slurm prints a word for nothing.
fn some(text: &str) -> &str {
    let text = text.trim();
    let nothing =
        ["(null)", "N/A", "Unknown", "None", "none", "NONE", "INVALID", "None assigned", "n/a", "UNLIMITED_NONE"];
    if nothing.contains(&text) { "" } else { text }
}

/// A time in seconds since 1970: of `SLURM_TIME_FORMAT=%s`, or of Slurm's own form in UTC.
#[must_use]
pub fn time(text: &str) -> Option<i64> {
    let text = some(text);
    if let Ok(seconds) = text.parse::<i64>() {
        return Some(seconds).filter(|s| *s > 0);
    }
    let time: jiff::civil::DateTime = text.parse().ok()?;
    Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

/// The task of an array id: `3`, `[0-3%2]`, or none.
fn task(text: &str) -> Option<Task> {
    let text = some(text);
    if text.is_empty() || text == "4294967294" {
        return None;
    }
    Some(match text.parse() {
        Ok(n) => Task::One(n),
        Err(_) => Task::Many(text.trim_matches(['[', ']']).to_owned()),
    })
}

/// What `squeue -h -o` [`SQUEUE`] prints.
#[must_use]
pub fn squeue(text: &str) -> Vec<Report> {
    text.lines().filter_map(squeue_line).collect()
}

fn squeue_line(line: &str) -> Option<Report> {
    let f: Vec<&str> = line.splitn(12, '|').collect();
    let [base, index, id, state, partition, submitted, started, ended, nodes, limit, reason, name] = f[..] else {
        return None;
    };
    let (words, cancelled_by) = words(state);
    Some(Report {
        job_id: base.trim().parse().ok()?,
        own_id: id.trim().parse().unwrap_or_default(),
        task: task(index),
        name: name.to_owned(),
        words,
        reason: some(reason).to_owned(),
        cancelled_by,
        nodes: some(nodes).to_owned(),
        partition: some(partition).to_owned(),
        submitted: time(submitted),
        started: time(started),
        ended: time(ended),
        limit: some(limit).to_owned(),
        ..Report::default()
    })
}

/// `KEY=VALUE` pairs of a line: a value goes on to the next word that looks like a key.
#[must_use]
pub fn pairs(line: &str) -> BTreeMap<&str, String> {
    let mut all: BTreeMap<&str, String> = BTreeMap::new();
    let mut last = None;
    for word in line.split(' ') {
        let key = word.split_once('=').filter(|(k, _)| {
            k.starts_with(|c: char| c.is_ascii_uppercase())
                && k.chars().all(|c| c.is_ascii_alphanumeric() || "_:/".contains(c))
        });
        match (key, last) {
            (Some((key, value)), _) => {
                // A name with spaces could bring keys that are there already.
                all.entry(key).or_insert_with(|| value.to_owned());
                last = Some(key);
            }
            (None, Some(key)) => {
                if let Some(value) = all.get_mut(key) {
                    value.push(' ');
                    value.push_str(word);
                }
            }
            (None, None) => {}
        }
    }
    for value in all.values_mut() {
        value.truncate(value.trim_end().len());
    }
    all
}

/// What `scontrol show job -o` prints.
#[must_use]
pub fn scontrol_jobs(text: &str) -> Vec<Report> {
    let ours = |line: &&str| line.starts_with("JobId=");
    text.lines().filter(ours).filter_map(|line| job_line(line, "JobName")).collect()
}

/// Lines of `jobcomp/filetxt`.
#[must_use]
pub fn completion_log(text: &str) -> Vec<Report> {
    let ours = |line: &&str| line.starts_with("JobId=");
    text.lines().filter(ours).filter_map(|line| job_line(line, "Name")).collect()
}

fn job_line(line: &str, name: &str) -> Option<Report> {
    let p = pairs(line);
    let get = |key: &str| p.get(key).map(|v| some(v)).unwrap_or_default();
    let own_id: u64 = get("JobId").split_whitespace().next()?.parse().ok()?;
    let (words, cancelled_by) = words(get("JobState"));
    Some(Report {
        job_id: get("ArrayJobId").parse().unwrap_or(own_id),
        own_id,
        task: task(get("ArrayTaskId")),
        name: get(name).to_owned(),
        words,
        reason: get("Reason").to_owned(),
        exit: Exit::parse(get("ExitCode")),
        derived: Exit::parse(get("DerivedExitCode")),
        cancelled_by,
        nodes: get("NodeList").to_owned(),
        partition: get("Partition").to_owned(),
        submitted: time(get("SubmitTime")),
        eligible: time(get("EligibleTime")),
        started: time(get("StartTime")),
        ended: time(get("EndTime")),
        restarts: get("Restarts").parse().unwrap_or_default(),
        limit: get("TimeLimit").to_owned(),
    })
}

/// What `sacct -X -n -P -o` [`SACCT`] prints.
#[must_use]
pub fn sacct(text: &str) -> Vec<Report> {
    text.lines().filter_map(sacct_line).collect()
}

fn sacct_line(line: &str) -> Option<Report> {
    let f: Vec<&str> = line.splitn(14, '|').collect();
    let [raw, id, state, exit, derived, partition, submitted, eligible, started, ended, nodes, limit, reason, name] =
        f[..]
    else {
        return None;
    };
    let (base, index) = id.split_once('_').unwrap_or((id, ""));
    let (words, cancelled_by) = words(state);
    Some(Report {
        job_id: base.trim().parse().ok()?,
        own_id: raw.trim().parse().unwrap_or_default(),
        task: task(index),
        name: name.to_owned(),
        words,
        reason: some(reason).to_owned(),
        exit: Exit::parse(exit),
        derived: Exit::parse(derived),
        cancelled_by,
        nodes: some(nodes).to_owned(),
        partition: some(partition).to_owned(),
        submitted: time(submitted),
        eligible: time(eligible),
        started: time(started),
        ended: time(ended),
        limit: some(limit).to_owned(),
        ..Report::default()
    })
}

/// The id in an answer of `sbatch --parsable`, `7` or `7;cluster`, or of sbatch without it. What a site's plugins say around it
/// is passed over: the last line that is an id counts.
#[must_use]
pub fn sbatch(text: &str) -> Option<(u64, Option<String>)> {
    text.lines().rev().find_map(|line| {
        let line = line.trim();
        let line = line.strip_prefix("Submitted batch job ").unwrap_or(line);
        let (id, cluster) = line.split_once(';').map_or((line, None), |(id, c)| (id, Some(c.trim().to_owned())));
        let id = id.split_whitespace().next()?.parse().ok()?;
        Some((id, cluster.filter(|c| !c.is_empty())))
    })
}

/// A number of slurmrestd: plain, or `{"set": …, "number": …}`.
#[must_use]
pub fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Number(n) => n.as_i64(),
        Value::String(s) => s.parse().ok(),
        Value::Object(o)
            if o.get("set") == Some(&Value::Bool(false)) || o.get("infinite") == Some(&Value::Bool(true)) =>
        {
            None
        }
        Value::Object(o) => o.get("number").and_then(Value::as_i64),
        _ => None,
    }
}

fn rest_exit(value: &Value) -> Option<Exit> {
    if let Some(status) = value.as_i64() {
        return Some(Exit::of_status(status));
    }
    let code = value.get("return_code").and_then(number);
    let signal = value.pointer("/signal/id").or_else(|| value.pointer("/signal/signal_id")).and_then(number);
    if code.is_none() && signal.is_none() {
        return None;
    }
    let small = |n: Option<i64>| i32::try_from(n.unwrap_or_default()).unwrap_or_default();
    Some(Exit { code: small(code), signal: small(signal) })
}

/// Jobs of slurmrestd, of any version.
#[must_use]
pub fn rest_jobs(answer: &Value) -> Vec<Report> {
    answer.get("jobs").and_then(Value::as_array).into_iter().flatten().filter_map(rest_job).collect()
}

/// Jobs of the half of slurmrestd's interface that is about accounting, of any version.
#[must_use]
pub fn rest_accounted(answer: &Value) -> Vec<Report> {
    answer.get("jobs").and_then(Value::as_array).into_iter().flatten().filter_map(accounted_job).collect()
}

fn accounted_job(job: &Value) -> Option<Report> {
    let at = |path: &str| job.pointer(path);
    let text = |path: &str| some(at(path).and_then(Value::as_str).unwrap_or_default()).to_owned();
    let value = |path: &str| at(path).and_then(number);
    let time = |path: &str| value(path).filter(|t| *t > 0);
    let own_id = u64::try_from(value("/job_id")?).ok()?;
    let base = value("/array/job_id").and_then(|n| u64::try_from(n).ok()).filter(|n| *n != 0);
    let one = value("/array/task_id").and_then(|n| u32::try_from(n).ok());
    let many = text("/array/task");
    let part = match (base, one) {
        (Some(_), Some(one)) => Some(Task::One(one)),
        (Some(_), None) if !many.is_empty() => task(&many),
        _ => None,
    };
    let words: Vec<String> = match at("/state/current") {
        Some(Value::String(state)) => words(state).0,
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).flat_map(|w| words(w).0).collect(),
        _ => vec![],
    };
    let has = |word: &str| words.iter().any(|w| w == word);
    // v0.0.38 says 0 of every code: then it is not known, but for those that are 0 by their state.
    let exit = at("/exit_code").and_then(rest_exit).filter(|e| *e != Exit::default() || !has("FAILED"));
    Some(Report {
        job_id: base.unwrap_or(own_id),
        own_id,
        task: part,
        name: at("/name").and_then(Value::as_str).unwrap_or_default().to_owned(),
        cancelled_by: Some(text("/kill_request_user")).filter(|u| !u.is_empty() && has("CANCELLED")),
        words,
        reason: text("/state/reason"),
        exit,
        derived: at("/derived_exit_code").and_then(rest_exit).filter(|e| *e != Exit::default()),
        nodes: text("/nodes"),
        partition: text("/partition"),
        submitted: time("/time/submission"),
        eligible: time("/time/eligible"),
        started: time("/time/start"),
        ended: time("/time/end"),
        restarts: value("/restart_cnt").and_then(|n| u32::try_from(n).ok()).unwrap_or_default(),
        limit: value("/time/limit").map(|n| n.to_string()).unwrap_or_default(),
    })
}

/// A job of slurmrestd, of any version.
#[must_use]
pub fn rest_job(job: &Value) -> Option<Report> {
    let text = |key: &str| some(job.get(key).and_then(Value::as_str).unwrap_or_default()).to_owned();
    let value = |key: &str| job.get(key).and_then(number);
    let own_id = u64::try_from(value("job_id")?).ok()?;
    let base = value("array_job_id").and_then(|n| u64::try_from(n).ok()).filter(|n| *n != 0);
    let many = text("array_task_string");
    let one = value("array_task_id").and_then(|n| u32::try_from(n).ok()).filter(|n| *n != u32::MAX - 1);
    let task = match (base, one) {
        (None, _) => None,
        (Some(_), _) if !many.is_empty() => task(&many),
        (Some(_), one) => one.map(Task::One),
    };
    let words: Vec<String> = match job.get("job_state") {
        Some(Value::String(state)) => words(state).0,
        Some(Value::Array(all)) => {
            let known = |w: &str| word(w).map_or_else(|| w.to_ascii_uppercase(), str::to_owned);
            all.iter().filter_map(Value::as_str).map(known).collect()
        }
        _ => vec![],
    };
    let time = |key: &str| value(key).filter(|t| *t > 0);
    Some(Report {
        job_id: base.unwrap_or(own_id),
        own_id,
        task,
        name: job.get("name").and_then(Value::as_str).unwrap_or_default().to_owned(),
        words,
        // The text tools print the description in the place of the reason, where there is one.
        reason: Some(text("state_description")).filter(|d| !d.is_empty()).unwrap_or_else(|| text("state_reason")),
        exit: job.get("exit_code").and_then(rest_exit),
        derived: job.get("derived_exit_code").and_then(rest_exit),
        cancelled_by: None,
        nodes: text("nodes"),
        partition: text("partition"),
        submitted: time("submit_time"),
        eligible: time("eligible_time"),
        started: time("start_time"),
        ended: time("end_time"),
        restarts: value("restart_cnt").and_then(|n| u32::try_from(n).ok()).unwrap_or_default(),
        limit: value("time_limit").map(|n| n.to_string()).unwrap_or_default(),
    })
}
