//! sacct.

use super::{Answer, Args};
use crate::fields::{Shown, value};
use crate::state::{Locked, now};

const FIELDS: [(&str, &str); 38] = [
    ("jobid", "array-id"),
    ("jobidraw", "id"),
    ("jobname", "name"),
    ("state", "state-by"),
    ("exitcode", "exit"),
    ("derivedexitcode", "derived"),
    ("start", "start-unknown"),
    ("end", "end-unknown"),
    ("submit", "submit"),
    ("eligible", "eligible"),
    ("elapsed", "elapsed-long"),
    ("elapsedraw", "elapsed-raw"),
    ("nodelist", "nodes"),
    ("partition", "partition"),
    ("account", "account-empty"),
    ("user", "user"),
    ("uid", "uid"),
    ("comment", "comment-empty"),
    ("reason", "reason"),
    ("alloctres", "tres"),
    ("reqtres", "tres"),
    ("timelimit", "limit-long"),
    ("timelimitraw", "limit-minutes"),
    ("restarts", "restarts"),
    ("nnodes", "node-count"),
    ("ncpus", "cpus"),
    ("alloccpus", "cpus"),
    ("workdir", "directory"),
    ("cluster", "cluster"),
    ("qos", "qos-empty"),
    ("priority", "priority"),
    ("flags", "flags"),
    ("reqcpus", "cpus"),
    ("ntasks", "tasks"),
    ("allocnodes", "node-count"),
    ("reqnodes", "node-count"),
    ("constraints", "features"),
    ("group", "user"),
];

pub(super) fn sacct(locked: &Locked, args: &[String]) -> Answer {
    if !locked.config.accounting {
        return Answer::fail(1, "Slurm accounting storage is disabled\n");
    }
    let (mut head, mut parsable, mut separator) = (true, false, "|".to_owned());
    let (mut ids, mut wanted): (Vec<String>, Vec<String>) = Default::default();
    let mut ending = "";
    let mut format = "JobID,JobName,Partition,Account,AllocCPUS,State,ExitCode".to_owned();
    let mut read = Args::new(args, "joSEusrN");
    while let Some((name, glued)) = read.next() {
        match name.as_str() {
            "-n" | "--noheader" => head = false,
            "-P" | "--parsable2" => parsable = true,
            "-p" | "--parsable" => (parsable, ending) = (true, "|"),
            "--delimiter" => separator = read.value(glued),
            "-j" | "--jobs" => ids = read.value(glued).split(',').map(str::to_owned).collect(),
            "--name" => wanted = read.value(glued).split(',').map(str::to_owned).collect(),
            "-o" | "--format" => format = read.value(glued),
            "-S" | "--starttime" | "-E" | "--endtime" | "-u" | "--user" | "--uid" | "-s" | "--state" | "-r"
            | "--partition" | "-M" | "--clusters" => {
                drop(read.value(glued));
            }
            "-X" | "--allocations" | "-D" | "--duplicates" | "-a" | "--allusers" | "--noconvert" | "-l" | "--long" => {}
            other => {
                return Answer::fail(
                    1,
                    format!("sacct: unrecognized option '{other}'\nTry \"sacct --help\" for more information\n"),
                );
            }
        }
    }
    let fields: Vec<&str> = format.split(',').map(|f| f.split('%').next().unwrap_or(f)).collect();
    let mut columns = Vec::new();
    for field in &fields {
        match FIELDS.iter().find(|f| f.0 == field.to_ascii_lowercase()) {
            Some(found) => columns.push(found.1),
            None => return Answer::fail(1, format!("Invalid field requested: \"{field}\"\n")),
        }
    }
    let line = |cells: Vec<String>| {
        if parsable {
            return cells.join(&separator) + ending + "\n";
        }
        let cut = |c: &String| if c.chars().count() > 10 { format!("{:.9}+", c) } else { format!("{c:>10}") };
        cells.iter().map(cut).collect::<Vec<_>>().join(" ") + " \n"
    };
    let mut out = String::new();
    if head {
        out.push_str(&line(fields.iter().map(|f| (*f).to_owned()).collect()));
    }
    for job in locked.state.jobs.values() {
        if (ids.is_empty() || ids.iter().any(|i| super::queue::same(job, i)))
            && (wanted.is_empty() || wanted.iter().any(|n| n == job.name()))
        {
            let shown = Shown { job, tasks: None };
            out.push_str(&line(columns.iter().map(|c| value(locked, &shown, c, now()).unwrap_or_default()).collect()));
        }
    }
    Answer::out(out)
}
