//! scancel and scontrol.

use nix::sys::signal::Signal;

use super::queue::same;
use super::sinfo::node_state;
use super::{Answer, Args};
use crate::fields::{Shown, collapse, long_elapsed, node_list, time, value};
use crate::process::{kill_groups, settle};
use crate::state::{Job, Locked, now};

pub(super) fn scancel(mut locked: Locked, args: &[String]) -> anyhow::Result<Answer> {
    let (mut ids, mut names, mut users, mut states) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut signal: Option<String> = None;
    let mut read = Args::new(args, "nutsp");
    while let Some((name, glued)) = read.next() {
        match name.as_str() {
            "" => ids.extend(glued),
            "-n" | "--name" | "--jobname" => names.push(read.value(glued)),
            "-u" | "--user" => users.push(read.value(glued)),
            "--me" => users.push(super::sbatch::whoami(&locked.config.user)),
            "-t" | "--state" => states.push(read.value(glued).to_ascii_uppercase()),
            "-s" | "--signal" => signal = Some(read.value(glued)),
            "-p" | "--partition" | "-M" | "--clusters" => drop(read.value(glued)),
            "-f" | "--full" | "-b" | "--batch" | "-Q" | "--quiet" | "-v" | "--verbose" | "-H" | "--hurry"
            | "--ctld" => {}
            other => {
                return Ok(Answer::fail(
                    1,
                    format!("scancel: unrecognized option '{other}'\nTry \"scancel --help\" for more information\n"),
                ));
            }
        }
    }
    if ids.is_empty() && names.is_empty() && users.is_empty() && states.is_empty() {
        return Ok(Answer::fail(1, "scancel: error: No job identification provided\n"));
    }
    // Those it does not know, and those that ended, it passes over in silence.
    let chosen: Vec<u32> = locked
        .state
        .jobs
        .values()
        .filter(|j| {
            !j.gone
                && !j.ended()
                && (ids.is_empty() || ids.iter().any(|i| same(j, i)))
                && (names.is_empty() || names.iter().any(|n| n == j.name()))
                && (users.is_empty() || users.contains(&j.user))
                && (states.is_empty() || states.contains(&j.state))
        })
        .map(|j| j.id)
        .collect();
    let groups = match signal.filter(|s| !matches!(s.trim_start_matches("SIG"), "TERM" | "15")) {
        Some(signal) if !matches!(signal.trim_start_matches("SIG"), "KILL" | "9") => {
            let named = format!("SIG{}", signal.trim_start_matches("SIG")).parse::<Signal>().ok();
            let signal = named.or_else(|| Signal::try_from(signal.parse::<i32>().ok()?).ok());
            let groups: Vec<i32> = chosen.iter().filter_map(|id| locked.state.jobs.get(id)?.group).collect();
            kill_groups(&groups, signal.unwrap_or(Signal::SIGTERM));
            return Ok(Answer::default());
        }
        _ => cancel(&mut locked, &chosen, nix::unistd::getuid().as_raw()),
    };
    settle(locked)?;
    kill_groups(&groups, Signal::SIGKILL);
    Ok(Answer::default())
}

/// Cancels jobs. Answers the groups of their processes.
pub(crate) fn cancel(locked: &mut Locked, ids: &[u32], by: u32) -> Vec<i32> {
    let mut groups = Vec::new();
    for id in ids {
        groups.extend(locked.state.jobs.get(id).and_then(|j| j.group));
        let ran = locked.state.jobs.get(id).is_some_and(|j| j.start.is_some());
        locked.end(*id, "CANCELLED", (0, if ran { 15 } else { 0 }), "None", now());
        if let Some(job) = locked.state.jobs.get_mut(id) {
            job.cancelled_by = Some(by);
        }
    }
    groups
}

pub(super) fn scontrol(mut locked: Locked, args: &[String]) -> anyhow::Result<Answer> {
    let mut words = Vec::new();
    let mut one = false;
    let mut read = Args::new(args, "Mu");
    while let Some((name, glued)) = read.next() {
        match name.as_str() {
            "" => words.extend(glued),
            "-o" | "--oneliner" => one = true,
            "-d" | "--details" | "-a" | "--all" | "-Q" | "--quiet" => {}
            "-M" | "--clusters" | "-u" | "--uid" => drop(read.value(glued)),
            other => {
                return Ok(Answer::fail(
                    1,
                    format!("scontrol: unrecognized option '{other}'\nTry \"scontrol --help\" for more information\n"),
                ));
            }
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let host = nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(match words[..] {
        ["ping"] => Answer::out(format!("Slurmctld(primary) at {host} is UP\n")),
        ["version"] => Answer::out(format!("slurm {}\n", locked.config.version)),
        ["token", ..] => Answer::out(format!("SLURM_JWT={}\n", locked.config.token)),
        ["show", "config"] => Answer::out(format!(
            "Configuration data as of {}\nClusterName             = {}\nMinJobAge               = {} sec\nJobCompType             = jobcomp/filetxt\nJobCompLoc              = {}\nSLURM_VERSION           = {}\n\nSlurmctld(primary) at {host} is UP\n",
            time(Some(now())),
            locked.config.cluster,
            locked.config.min_job_age_ms / 1000,
            locked.store.path("jobcomp.log").display(),
            locked.config.version
        )),
        ["show", "job" | "jobs", ref rest @ ..] => show_jobs(&locked, rest.first().copied(), one),
        ["show", "partition" | "partitions", ref rest @ ..] => {
            let of = rest.first().copied();
            let all: Vec<String> = locked
                .config
                .partitions
                .iter()
                .enumerate()
                .filter(|p| of.is_none_or(|n| n == p.1.name))
                .map(|(i, p)| partition(&locked, p, i == 0))
                .collect();
            match (all.is_empty(), of) {
                (true, Some(name)) => Answer::fail(1, format!("Partition {name} not found\n")),
                _ => Answer::out(records(&all, one)),
            }
        }
        ["show", "node" | "nodes", ref rest @ ..] => {
            let of = rest.first().copied();
            let all: Vec<String> = locked
                .config
                .nodes
                .iter()
                .filter(|n| of.is_none_or(|o| o == n.name))
                .map(|n| node(&locked, n))
                .collect();
            match (all.is_empty(), of) {
                (true, Some(name)) => Answer::fail(1, format!("Node {name} not found\n")),
                _ => Answer::out(records(&all, one)),
            }
        }
        ["write", "batch_script", id, "-"] => {
            let job = locked.state.jobs.values().find(|j| !j.gone && same(j, id));
            let script = job.and_then(|j| {
                std::fs::read(locked.store.path(&format!("scripts/{}", j.array.map_or(j.id, |a| a.0)))).ok()
            });
            match script.and_then(|s| serde_json::from_slice::<String>(&s).ok()) {
                Some(script) => Answer::out(script),
                None => Answer::fail(1, "job script retrieval failed: Invalid job id specified\n"),
            }
        }
        [verb @ ("hold" | "uhold" | "release" | "requeue" | "requeuehold" | "suspend" | "resume"), ids] => {
            let mut failed = None;
            let mut groups = Vec::new();
            for id in ids.split(',') {
                if let Err(why) = change(&mut locked, verb, id, &mut groups) {
                    failed = Some((id.to_owned(), why));
                }
            }
            settle(locked)?;
            for (group, signal) in groups {
                kill_groups(&[group], signal);
            }
            match failed {
                Some((id, why)) => Answer::fail(1, format!("{why} for job {id}\nslurm_suspend error: {why}\n")),
                None => Answer::default(),
            }
        }
        ["update", ref rest @ ..] => update(locked, rest)?,
        _ => Answer::fail(1, format!("invalid keyword: {}\n", words.join(" "))),
    })
}

type Later = Vec<(i32, Signal)>;

pub(crate) fn change(locked: &mut Locked, verb: &str, id: &str, later: &mut Later) -> Result<(), &'static str> {
    let ids: Vec<u32> = locked.state.jobs.values().filter(|j| !j.gone && same(j, id)).map(|j| j.id).collect();
    if ids.is_empty() {
        return Err("Invalid job id specified");
    }
    if verb == "release" && locked.faults.no_release {
        return Err("Access/permission denied");
    }
    let mut done = Err("Job has already finished");
    for id in ids {
        let Some(job) = locked.state.jobs.get_mut(&id) else { continue };
        let group = job.group;
        match (verb, job.state.as_str()) {
            ("hold" | "uhold", "PENDING") => {
                // The administrator's hold is another one; what root holds here counts as such.
                job.held = Some(
                    if verb == "hold" && nix::unistd::getuid().is_root() && job.uid != 0 { "admin" } else { "user" }
                        .into(),
                );
                "JobHeldUser".clone_into(&mut job.reason);
            }
            ("release", "PENDING") => {
                job.held = None;
                job.flags.clear();
                "None".clone_into(&mut job.reason);
            }
            ("suspend", "RUNNING") => {
                "SUSPENDED".clone_into(&mut job.state);
                later.extend(group.map(|g| (g, Signal::SIGSTOP)));
            }
            ("resume", "SUSPENDED") => {
                "RUNNING".clone_into(&mut job.state);
                later.extend(group.map(|g| (g, Signal::SIGCONT)));
            }
            ("requeue" | "requeuehold", state) if state != "PENDING" => {
                later.extend(group.map(|g| (g, Signal::SIGKILL)));
                locked.requeue(id, verb == "requeuehold");
            }
            ("hold" | "uhold" | "release" | "requeue" | "requeuehold", _) if !job.ended() => {}
            _ => continue,
        }
        done = Ok(());
    }
    done
}

fn update(mut locked: Locked, words: &[&str]) -> anyhow::Result<Answer> {
    let pairs: Vec<(String, &str)> =
        words.iter().filter_map(|w| w.split_once('=')).map(|(n, v)| (n.to_ascii_lowercase(), v)).collect();
    let get = |name: &str| pairs.iter().find(|p| p.0 == name).map(|p| p.1);
    if let Some(node) = get("nodename") {
        let reason = get("reason").unwrap_or("set down").to_owned();
        match get("state").map(str::to_ascii_lowercase).as_deref() {
            Some("down") => crate::control::node_down(&mut locked, node, &reason),
            Some("resume" | "idle" | "undrain") => drop(locked.state.down.remove(node)),
            _ => {}
        }
        settle(locked)?;
        return Ok(Answer::default());
    }
    let Some(id) = get("jobid").or_else(|| get("job")) else {
        return Ok(Answer::fail(1, "No valid entity in update command\n"));
    };
    let ids: Vec<u32> = locked.state.jobs.values().filter(|j| !j.gone && same(j, id)).map(|j| j.id).collect();
    if ids.is_empty() {
        return Ok(Answer::fail(1, "Invalid job id specified\nslurm_update error: Invalid job id specified\n"));
    }
    for id in ids {
        let Some(job) = locked.state.jobs.get_mut(&id) else { continue };
        for (name, value) in &pairs {
            let option = match name.as_str() {
                "timelimit" => "time",
                "partition" => "partition",
                "comment" => "comment",
                "jobname" | "name" => "job-name",
                "dependency" => "dependency",
                "qos" => "qos",
                "account" => "account",
                _ => continue,
            };
            job.options.insert(option.into(), (*value).to_owned());
        }
    }
    settle(locked)?;
    Ok(Answer::default())
}

/// Records as scontrol prints them: a line each, or a paragraph each.
fn records(all: &[String], one: bool) -> String {
    all.iter().map(|r| if one { format!("{r} \n") } else { format!("{}\n\n", r.replace(' ', "\n   ")) }).collect()
}

fn show_jobs(locked: &Locked, id: Option<&str>, one: bool) -> Answer {
    let jobs: Vec<&Job> = locked.state.jobs.values().filter(|j| !j.gone && id.is_none_or(|i| same(j, i))).collect();
    if jobs.is_empty() {
        return match id {
            Some(id) if id.contains('_') => Answer::fail(1, format!("Job {id} not found\n")),
            Some(_) => Answer::fail(1, "slurm_load_jobs error: Invalid job id specified\n"),
            None => Answer::out("No jobs in the system\n"),
        };
    }
    let all: Vec<String> = collapse(jobs.into_iter(), false).iter().map(|s| record(locked, s)).collect();
    Answer::out(records(&all, one))
}

fn record(locked: &Locked, shown: &Shown<'_>) -> String {
    let job = shown.job;
    let v = |name: &str| value(locked, shown, name, now()).unwrap_or_default();
    let array = job.array.map_or_else(String::new, |a| {
        let throttle = if a.2 > 0 { format!(" ArrayTaskThrottle={}", a.2) } else { String::new() };
        format!("ArrayJobId={} ArrayTaskId={}{throttle} ", a.0, v("array-task"))
    });
    let limit_end =
        job.start.map(|s| s + i64::from(crate::schedule::minutes(job.option("time")).unwrap_or(60)) * 60_000);
    let gpus = v("gres");
    format!(
        "JobId={} {array}JobName={} UserId={}({}) GroupId={}({}) MCS_label=N/A Priority={} Nice=0 Account={} QOS={} JobState={} Reason={} Dependency={} Requeue={} Restarts={} BatchFlag=1 Reboot=0 ExitCode={} {}RunTime={} TimeLimit={} TimeMin=N/A SubmitTime={} EligibleTime={} AccrueTime={} StartTime={} EndTime={} Deadline=N/A SuspendTime=None SecsPreSuspend=0 LastSchedEval={} Scheduler=Main Partition={} AllocNode:Sid=localhost:1 ReqNodeList=(null) ExcNodeList=(null) NodeList={} {}NumNodes={} NumCPUs={} NumTasks={} CPUs/Task={} ReqB:S:C:T=0:0:*:* TRES={} Features={} OverSubscribe=OK Contiguous=0 Licenses=(null) Network=(null) Command=(null) WorkDir={} {}StdErr={} StdIn={} StdOut={} Power={}",
        v("id"),
        v("name"),
        job.user,
        job.uid,
        job.user,
        job.uid,
        v("priority"),
        v("account"),
        v("qos"),
        v("state"),
        v("reason").replace(' ', "_"),
        v("dependency"),
        i32::from(!job.options.contains_key("no-requeue")),
        v("restarts"),
        v("exit"),
        if job.derived == 0 { String::new() } else { format!("DerivedExitCode={} ", v("derived")) },
        v("elapsed-long"),
        v("limit-long"),
        v("submit"),
        v("eligible"),
        v("submit"),
        time(job.start),
        time(job.end.or(limit_end)),
        v("submit"),
        v("partition"),
        v("nodes"),
        job.nodes.first().map_or_else(String::new, |n| format!("BatchHost={n} ")),
        v("node-count"),
        v("cpus"),
        v("tasks"),
        job.number("cpus-per-task", 1),
        v("tres"),
        v("features"),
        v("directory"),
        match job.option("comment") {
            "" => String::new(),
            c => format!("Comment={c} "),
        },
        v("err"),
        crate::submit::file(job, "input"),
        v("out"),
        if gpus == "N/A" { String::new() } else { format!(" TresPerNode={gpus}") },
    )
}

fn partition(locked: &Locked, p: &crate::config::Partition, default: bool) -> String {
    let cpus: u32 = locked.config.nodes.iter().filter(|n| p.nodes.contains(&n.name)).map(|n| n.cpus).sum();
    format!(
        "PartitionName={} AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default={} QoS=N/A DefaultTime=01:00:00 DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO MaxNodes=UNLIMITED MaxTime={} MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes={} PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE PreemptMode=OFF State={} TotalCPUs={cpus} TotalNodes={} SelectTypeParameters=NONE JobDefaults=(null) DefMemPerCPU=1000 MaxMemPerNode=UNLIMITED",
        p.name,
        if default { "YES" } else { "NO" },
        if p.max_minutes == 0 { "UNLIMITED".into() } else { long_elapsed(i64::from(p.max_minutes) * 60) },
        node_list(&p.nodes),
        p.state,
        p.nodes.len(),
    )
}

fn node(locked: &Locked, n: &crate::config::Node) -> String {
    let (cpus, gpus) = locked.used_on(&n.name);
    let tres = |c: u32, g: u32| {
        if c == 0 && g == 0 { String::new() } else { format!("cpu={c},gres/gpu={g},gres/gpu:{}={g}", n.gpu) }
    };
    let partitions: Vec<&str> =
        locked.config.partitions.iter().filter(|p| p.nodes.contains(&n.name)).map(|p| p.name.as_str()).collect();
    let reason = locked
        .state
        .down
        .get(&n.name)
        .map_or_else(String::new, |r| format!(" Reason={} [root@{}]", r.replace(' ', "_"), time(Some(now()))));
    format!(
        "NodeName={} Arch=x86_64 CoresPerSocket=1 CPUAlloc={cpus} CPUEfctv={} CPUTot={} CPULoad=0.00 AvailableFeatures={} ActiveFeatures={} Gres={} GresUsed=gpu:{}:{gpus}(IDX:N/A) NodeAddr=127.0.0.1 NodeHostName={} Port=0 Version={} RealMemory={} AllocMem=0 FreeMem=1000 Sockets={} Boards=1 State={} ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A Partitions={} CfgTRES={} AllocTRES={}{reason}",
        n.name,
        n.cpus,
        n.cpus,
        n.features,
        n.features,
        if n.gpus == 0 { "(null)".into() } else { format!("gpu:{}:{}", n.gpu, n.gpus) },
        n.gpu,
        n.name,
        locked.config.version,
        n.memory,
        n.cpus,
        node_state(locked, n).to_uppercase(),
        partitions.join(","),
        tres(n.cpus, n.gpus),
        tres(cpus, gpus),
    )
}
