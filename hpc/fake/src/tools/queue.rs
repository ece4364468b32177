//! squeue.

use super::{Answer, Args, letters, names};
use crate::fields::{collapse, value};
use crate::state::{Job, Locked, now};
use crate::words::{FLAGS, STATES, printed};

/// Letters of `-o`.
const LETTERS: [(char, &str); 30] = [
    ('i', "array-id"),
    ('A', "id"),
    ('F', "array-job"),
    ('K', "array-task"),
    ('j', "name"),
    ('u', "user"),
    ('U', "uid"),
    ('P', "partition"),
    ('T', "state"),
    ('t', "state-short"),
    ('r', "reason"),
    ('R', "reason-or-nodes"),
    ('N', "nodes"),
    ('D', "node-count"),
    ('C', "cpus"),
    ('l', "limit"),
    ('L', "left"),
    ('M', "elapsed"),
    ('S', "start"),
    ('e', "end"),
    ('V', "submit"),
    ('a', "account"),
    ('q', "qos"),
    ('Q', "priority"),
    ('k', "comment"),
    ('Z', "directory"),
    ('E', "dependency"),
    ('f', "features"),
    ('b', "gres"),
    ('B', "batch-host"),
];

/// Names of `-O`.
const NAMES: [(&str, &str); 36] = [
    ("jobid", "id"),
    ("jobarrayid", "array-id"),
    ("arrayjobid", "array-job"),
    ("arraytaskid", "array-task"),
    ("name", "name"),
    ("username", "user"),
    ("userid", "uid"),
    ("partition", "partition"),
    ("state", "state"),
    ("statecompact", "state-short"),
    ("reason", "reason"),
    ("reasonlist", "reason-or-nodes"),
    ("nodelist", "nodes"),
    ("numnodes", "node-count"),
    ("numcpus", "cpus"),
    ("numtasks", "tasks"),
    ("timelimit", "limit"),
    ("timeleft", "left"),
    ("timeused", "elapsed"),
    ("starttime", "start"),
    ("endtime", "end"),
    ("submittime", "submit"),
    ("eligibletime", "eligible"),
    ("account", "account"),
    ("qos", "qos"),
    ("prioritylong", "priority"),
    ("comment", "comment"),
    ("workdir", "directory"),
    ("dependency", "dependency"),
    ("exit_code", "exit-raw"),
    ("restartcnt", "restarts"),
    ("stdout", "out"),
    ("stderr", "err"),
    ("command", "command"),
    ("cluster", "cluster"),
    ("tres-alloc", "tres"),
];

pub(super) fn squeue(locked: &Locked, args: &[String]) -> Answer {
    let (mut head, mut apart, mut all) = (true, false, false);
    let (mut states, mut ids) = (Vec::new(), Vec::new());
    let (mut wanted, mut users, mut partitions) = (Vec::new(), Vec::new(), Vec::new());
    let (mut format, mut long) = ("%.18i %.9P %.8j %.8u %.2t %.10M %.6D %R".to_owned(), None);
    let mut read = Args::new(args, "toOjnupAS");
    let list = |v: String| v.split(',').map(str::to_owned).collect::<Vec<_>>();
    while let Some((name, glued)) = read.next() {
        match name.as_str() {
            "-h" | "--noheader" => head = false,
            "-r" | "--array" => apart = true,
            "-t" | "--states" | "--state" => {
                let value = read.value(glued).to_ascii_uppercase();
                all = value == "ALL";
                states = list(value);
            }
            "-j" | "--jobs" | "--job" => ids = list(read.value(glued)),
            "-n" | "--name" => wanted = list(read.value(glued)),
            "-u" | "--user" => users = list(read.value(glued)),
            "--me" => users = vec![super::sbatch::whoami(&locked.config.user)],
            "-p" | "--partition" => partitions = list(read.value(glued)),
            "-o" | "--format" => format = read.value(glued),
            "-O" | "--Format" => long = Some(read.value(glued)),
            "-S" | "--sort" | "-A" | "--account" => drop(read.value(glued)),
            "-a" | "--all" | "--noconvert" | "--local" | "-l" | "--federation" => {}
            other => {
                return Answer::fail(
                    1,
                    format!("squeue: unrecognized option '{other}'\nTry \"squeue --help\" for more information\n"),
                );
            }
        }
    }
    if let Some(bad) = states.iter().find(|s| *s != "ALL" && !known(s)) {
        return Answer::fail(1, format!("squeue: error: Invalid job state specified: {bad}\n"));
    }
    let matches = |job: &&Job| {
        let (word, short) = printed(&job.state, &job.flags);
        let active = matches!(job.state.as_str(), "PENDING" | "RUNNING" | "SUSPENDED")
            || job.flags.iter().any(|f| f == "COMPLETING");
        !job.gone
            && (all
                || if states.is_empty() {
                    active
                } else {
                    states.contains(&word) || states.contains(&short) || states.contains(&job.state)
                })
            && (ids.is_empty() || ids.iter().any(|i| same(job, i)))
            && (wanted.is_empty() || wanted.iter().any(|n| n == job.name()))
            && (users.is_empty() || users.contains(&job.user) || users.contains(&job.uid.to_string()))
            && (partitions.is_empty() || partitions.iter().any(|p| p == job.option("partition")))
    };
    // One id that is not known is an error; of several the others are told.
    if let [id] = &ids[..]
        && !locked.state.jobs.values().any(|j| !j.gone && same(j, id))
    {
        return Answer::fail(1, "slurm_load_jobs error: Invalid job id specified\n");
    }
    let mut out = String::new();
    if head {
        let names: Vec<_> = LETTERS.iter().map(|l| (l.0, l.1.to_uppercase())).collect();
        match &long {
            Some(format) => out.push_str(&super::names(format, |n| Some(n.to_uppercase()))),
            None => out.push_str(&super::fill(&format, |c| names.iter().find(|n| n.0 == c).map(|n| n.1.clone()))),
        }
        out.push('\n');
    }
    for shown in collapse(locked.state.jobs.values().filter(matches), apart) {
        let line = match &long {
            Some(format) => names(format, |n| {
                let name = NAMES.iter().find(|known| known.0 == n)?.1;
                value(locked, &shown, name, now())
            }),
            None => letters(locked, &shown, &format, &LETTERS),
        };
        out.push_str(&line);
        out.push('\n');
    }
    Answer::out(out)
}

/// Whether a job is one of this id: `N`, of all tasks of an array, `N_T`.
pub(crate) fn same(job: &Job, id: &str) -> bool {
    match (id.split_once('_'), job.array) {
        (Some((id, task)), Some(array)) => {
            id.parse() == Ok(array.0) && task.trim_matches(['[', ']']).parse() == Ok(array.1)
        }
        (None, Some(array)) => id.parse() == Ok(array.0) || id.parse() == Ok(job.id),
        (None, None) => id.parse() == Ok(job.id),
        (Some(_), None) => false,
    }
}

fn known(state: &str) -> bool {
    STATES.iter().any(|s| s.0 == state || s.1 == state) || FLAGS.iter().any(|f| f.0 == state || f.1 == state)
}
