//! sbatch's half of a submission: options from the command line and the script's `#SBATCH` lines, what is refused, and what becomes
//! of the rest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::state::{Job, Locked, Plan, now};
use crate::words;

/// A submission that was refused: Slurm's number and words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub i32, pub String);

/// What is to be submitted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Submission {
    /// Options by their long names.
    pub options: BTreeMap<String, String>,
    /// The script.
    pub script: String,
    /// Environment of its processes.
    pub environment: BTreeMap<String, String>,
    /// Who.
    pub user: String,
    /// The same as a number.
    pub uid: u32,
    /// Where it starts if it does not say.
    pub directory: String,
}

/// Options that have a short form; those whose long name alone counts are not here.
const SHORT: [(char, &str); 26] = [
    ('J', "job-name"),
    ('p', "partition"),
    ('N', "nodes"),
    ('n', "ntasks"),
    ('c', "cpus-per-task"),
    ('t', "time"),
    ('o', "output"),
    ('e', "error"),
    ('i', "input"),
    ('D', "chdir"),
    ('d', "dependency"),
    ('a', "array"),
    ('A', "account"),
    ('q', "qos"),
    ('C', "constraint"),
    ('w', "nodelist"),
    ('x', "exclude"),
    ('L', "licenses"),
    ('b', "begin"),
    ('G', "gpus"),
    ('S', "core-spec"),
    ('M', "clusters"),
    ('H', "hold"),
    ('Q', "quiet"),
    ('W', "wait"),
    ('k', "no-kill"),
];

/// Long names without a value (which some may have).
const FLAGS: [&str; 21] = [
    "hold",
    "quiet",
    "wait",
    "no-kill",
    "parsable",
    "requeue",
    "no-requeue",
    "test-only",
    "exclusive",
    "oversubscribe",
    "contiguous",
    "overcommit",
    "verbose",
    "spread-job",
    "use-min-nodes",
    "ignore-pbs",
    "reboot",
    "kill-on-invalid-dep-yes",
    "help",
    "usage",
    "version",
];

/// Long names with a value.
const VALUES: [&str; 60] = [
    "job-name",
    "partition",
    "nodes",
    "ntasks",
    "cpus-per-task",
    "time",
    "output",
    "error",
    "input",
    "chdir",
    "dependency",
    "array",
    "account",
    "qos",
    "constraint",
    "nodelist",
    "exclude",
    "licenses",
    "begin",
    "gpus",
    "core-spec",
    "clusters",
    "comment",
    "export",
    "export-file",
    "get-user-env",
    "gres",
    "gres-flags",
    "gpus-per-node",
    "gpus-per-task",
    "gpus-per-socket",
    "gpu-bind",
    "gpu-freq",
    "cpus-per-gpu",
    "mem",
    "mem-per-cpu",
    "mem-per-gpu",
    "mem-bind",
    "ntasks-per-node",
    "ntasks-per-core",
    "ntasks-per-socket",
    "ntasks-per-gpu",
    "signal",
    "open-mode",
    "kill-on-invalid-dep",
    "mail-type",
    "mail-user",
    "nice",
    "priority",
    "reservation",
    "switches",
    "time-min",
    "deadline",
    "delay-boot",
    "wrap",
    "profile",
    "tmp",
    "threads-per-core",
    "wckey",
    "distribution",
];

/// Reads options. Returns what is none: the script and its arguments.
///
/// # Errors
/// sbatch's words for an option that does not exist or lacks its value.
pub fn options(args: &[String], out: &mut BTreeMap<String, String>) -> Result<Vec<String>, String> {
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if let Some(long) = arg.strip_prefix("--") {
            let (name, value) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v.to_owned())));
            if FLAGS.contains(&name) {
                out.insert(name.into(), value.unwrap_or_else(|| "yes".into()));
            } else if VALUES.contains(&name) {
                let value = match value {
                    Some(value) => value,
                    None => rest.next().cloned().ok_or_else(|| format!("option '--{name}' requires an argument"))?,
                };
                out.insert(name.into(), value);
            } else {
                return Err(format!("unrecognized option '{arg}'"));
            }
        } else if let Some(short) = arg.strip_prefix('-').filter(|s| !s.is_empty()) {
            let mut chars = short.chars();
            let letter = chars.next().unwrap_or_default();
            let name = SHORT.iter().find(|s| s.0 == letter).ok_or_else(|| format!("invalid option -- '{letter}'"))?.1;
            let glued: String = chars.collect();
            let value = if FLAGS.contains(&name) {
                "yes".into()
            } else if glued.is_empty() {
                rest.next().cloned().ok_or_else(|| format!("option requires an argument -- '{letter}'"))?
            } else {
                glued
            };
            out.insert(name.into(), value);
        } else {
            return Ok(std::iter::once(arg).chain(rest).cloned().collect());
        }
    }
    Ok(Vec::new())
}

/// The words of the script's `#SBATCH` lines, up to its first command.
#[must_use]
pub fn directives(script: &str) -> Vec<String> {
    let mut out = Vec::new();
    for line in script.lines() {
        if let Some(rest) = line.strip_prefix("#SBATCH") {
            out.extend(words_of(rest));
        } else if !line.starts_with('#') && !line.trim().is_empty() {
            break;
        }
    }
    out
}

/// Splits as sbatch's own reader does: blanks, quotes of both kinds, a backslash, `#` after a blank ends the line.
fn words_of(line: &str) -> Vec<String> {
    let (mut out, mut word, mut any, mut quote) = (Vec::new(), String::new(), false, None);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), _) if c == q => quote = None,
            (Some('\''), _) => word.push(c),
            (_, '\\') => {
                any = true;
                word.extend(chars.next());
            }
            (Some(_), _) => word.push(c),
            (None, '\'' | '"') => (quote, any) = (Some(c), true),
            (None, '#') if !any => break,
            (None, _) if c.is_whitespace() => {
                if std::mem::take(&mut any) {
                    out.push(std::mem::take(&mut word));
                }
            }
            (None, _) => {
                any = true;
                word.push(c);
            }
        }
    }
    if any {
        out.push(word);
    }
    out
}

/// Numbers of an array, and how many run at a time (0: all).
fn tasks(text: &str) -> Option<(Vec<u32>, u32)> {
    let (list, limit) = text.split_once('%').map_or((text, Some(0)), |(l, n)| (l, n.parse().ok()));
    let mut out = Vec::new();
    for part in list.split(',') {
        let (range, step) = part.split_once(':').map_or((part, Some(1)), |(r, s)| (r, s.parse::<u32>().ok()));
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (from, to): (u32, u32) = (from.parse().ok()?, to.parse().ok()?);
        out.extend((from..=to).step_by(step.filter(|s| *s > 0)? as usize));
        if out.len() > 1001 {
            return None;
        }
    }
    Some((out, limit?))
}

impl Locked {
    /// Takes a job. The caller advances, saves, and starts what is to be started.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn submit(&mut self, submission: &Submission) -> Result<u32, Refused> {
        let mut options = submission.options.clone();
        let refuse = |number: i32, words: &str| Err(Refused(number, words.into()));
        if let Some(words) = self.faults.refuse.clone() {
            return Err(Refused(2015, words));
        }
        let first = self.config.partitions.first().map(|p| p.name.clone()).unwrap_or_default();
        let partition = options.entry("partition".into()).or_insert(first).clone();
        if !partition.split(',').all(|n| self.config.partitions.iter().any(|p| p.name == n)) {
            return refuse(2000, "Invalid partition name specified");
        }
        if !submission.script.starts_with("#!") {
            return refuse(
                -1,
                "This does not look like a batch script.  The first line must start with #! followed by the path to an interpreter.",
            );
        }
        let numbers = match options.get("array") {
            Some(text) => match tasks(text) {
                Some(numbers) => Some(numbers),
                None => return refuse(2055, "Invalid job array specification"),
            },
            None => None,
        };
        if options.get("time").is_some_and(|t| crate::schedule::minutes(t).is_none()) {
            return refuse(2051, "Requested time limit is invalid (missing or exceeds some limit)");
        }
        let name = options.get("job-name").cloned().unwrap_or_else(|| "sbatch".into());
        let plan = match script_steps(&submission.script) {
            Err(word) => return Err(Refused(2014, word)),
            Ok(Some(steps)) => Plan::Steps(steps, None),
            Ok(None) if self.config.run => Plan::Process,
            Ok(None) => Plan::Steps(
                words::steps(&format!("RUNNING@{}ms COMPLETED", self.config.simulated_ms)).unwrap_or_default(),
                None,
            ),
        };
        let (id, at) = (self.state.next_id.max(1), now());
        let job = Job {
            id,
            array: None,
            held: options.contains_key("hold").then(|| "user".into()),
            options,
            user: submission.user.clone(),
            uid: submission.uid,
            directory: submission.options.get("chdir").unwrap_or(&submission.directory).clone(),
            state: "PENDING".into(),
            flags: Vec::new(),
            reason: "None".into(),
            exit: (0, 0),
            derived: 0,
            submit: at,
            start: None,
            end: None,
            nodes: Vec::new(),
            cancelled_by: None,
            restarts: 0,
            plan,
            since: at,
            group: None,
            gone: false,
            logged: false,
        };
        if self.candidates(&job, &BTreeMap::new(), false).is_none() {
            return refuse(2014, "Requested node configuration is not available");
        }
        let kept = [("scripts", json!(submission.script)), ("environment", json!(submission.environment))];
        for (folder, what) in kept {
            let made = std::fs::create_dir_all(self.store.path(folder));
            if made.is_err() || self.store.write(&format!("{folder}/{id}"), &what).is_err() {
                return refuse(-1, "I/O error writing script/environment to file");
            }
        }
        let copies =
            numbers.map_or_else(|| vec![None], |(n, limit)| n.into_iter().map(|t| Some((id, t, limit))).collect());
        for array in copies {
            let id = self.state.next_id.max(1);
            self.state.next_id = id + 1;
            self.state.jobs.insert(id, Job { id, array, ..job.clone() });
        }
        let before = self.state.accepted.get(&name).copied().unwrap_or_default();
        self.state.accepted.insert(name, before + 1);
        Ok(id)
    }
}

/// What a script's lines `#FAKE STEPS` let a job go through.
fn script_steps(script: &str) -> Result<Option<Vec<words::Step>>, String> {
    let text: Vec<&str> = script.lines().filter_map(|l| l.trim_start().strip_prefix("#FAKE ")).collect();
    if text.is_empty() { Ok(None) } else { words::steps(&text.join(" ")).map(Some) }
}

/// The file of a job's output, with its patterns filled in.
#[must_use]
pub fn file(job: &Job, which: &str) -> String {
    let mut pattern = job.option(which);
    if pattern.is_empty() {
        pattern = match which {
            "input" => return "/dev/null".into(),
            "error" => return file(job, "output"),
            _ if job.array.is_some() => "slurm-%A_%a.out",
            _ => "slurm-%j.out",
        };
    }
    let mut out = String::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match (c, c == '%') {
            (_, false) => out.push(c),
            _ => match chars.next() {
                Some('j') => out.push_str(&job.id.to_string()),
                Some('A') => out.push_str(&job.array.map_or(job.id, |a| a.0).to_string()),
                Some('a') => out.push_str(&job.array.map_or(4_294_967_294, |a| a.1).to_string()),
                Some('x') => out.push_str(job.name()),
                Some('u') => out.push_str(&job.user),
                Some('N') => out.push_str(job.nodes.first().map_or("", String::as_str)),
                Some(other) => out.push(other),
                None => {}
            },
        }
    }
    if out.starts_with('/') { out } else { format!("{}/{out}", job.directory) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_sbatch_does() {
        let cases: [(&str, &[&str]); 5] = [
            (" -J a --comment='b c'", &["-J", "a", "--comment=b c"]),
            (" --comment=\"a\\\"b\" # rest", &["--comment=a\"b"]),
            ("  --x=a#b", &["--x=a#b"]),
            ("", &[]),
            (" ''", &[""]),
        ];
        for (line, expected) in cases {
            assert_eq!(words_of(line), expected, "{line}");
        }
        let script = "#!/bin/bash\n#SBATCH -J a\n# x\n\n#SBATCH -N 2\necho\n#SBATCH -n 9\n";
        assert_eq!(directives(script), ["-J", "a", "-N", "2"]);
    }

    #[test]
    fn arrays_are_read() {
        assert_eq!(tasks("0-3%2"), Some((vec![0, 1, 2, 3], 2)));
        assert_eq!(tasks("1-9:4,20"), Some((vec![1, 5, 9, 20], 0)));
        for wrong in ["", "a", "1-", "0-9999", "1-3:0", "1%x"] {
            assert_eq!(tasks(wrong), None, "{wrong}");
        }
    }
}
