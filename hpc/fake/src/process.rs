//! Jobs that really run: a process of this program watches over each script, as slurmstepd does.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::schedule::minutes;
use crate::state::{Locked, Store, now};
use crate::submit::file;

/// Brings the state up to date, saves it, and starts what is to be started.
///
/// # Errors
/// Those of the disk.
pub fn settle(mut locked: Locked) -> anyhow::Result<()> {
    let start = locked.advance(now());
    let store = locked.store.clone();
    locked.save()?;
    for id in start {
        watch(&store.dir, id)?;
    }
    Ok(())
}

/// Starts the process that watches over a job. It outlives the one that starts it.
fn watch(dir: &Path, id: u32) -> anyhow::Result<()> {
    let mut child = Command::new(crate::program()?)
        .arg("job")
        .arg(dir)
        .arg(id.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    // A server that starts jobs must not collect the dead.
    std::thread::spawn(move || child.wait());
    Ok(())
}

/// Runs a job's script and writes down how it ended.
///
/// # Errors
/// Those of the disk.
pub fn run(dir: &Path, id: u32) -> anyhow::Result<()> {
    let store = Store::new(dir);
    let mut locked = store.lock()?;
    let Some(job) = locked.state.jobs.get(&id).filter(|j| j.state == "RUNNING" && j.group.is_none()).cloned() else {
        return Ok(());
    };
    let (config, first) = (locked.config.clone(), job.array.map_or(id, |a| a.0));
    let script: String = serde_json::from_slice(&std::fs::read(store.path(&format!("scripts/{first}")))?)?;
    let mut environment: BTreeMap<String, String> =
        serde_json::from_slice(&std::fs::read(store.path(&format!("environment/{first}")))?)?;
    let path = environment.remove("PATH").or_else(|| std::env::var("PATH").ok()).unwrap_or_default();
    environment.insert("PATH".into(), format!("{}:{path}", store.path("bin").display()));
    environment.insert("FAKE_SLURM_DIR".into(), dir.display().to_string());
    let nodes = crate::fields::node_list(&job.nodes);
    let gpus: u32 = job.gpus().iter().map(|g| g.1).sum();
    let mut set = |name: &str, value: String| environment.insert(name.into(), value);
    set("SLURM_JOB_ID", id.to_string());
    set("SLURM_JOBID", id.to_string());
    set("SLURM_JOB_NAME", job.name().into());
    set("SLURM_JOB_PARTITION", job.option("partition").into());
    set("SLURM_CLUSTER_NAME", config.cluster.clone());
    set("SLURM_JOB_NODELIST", nodes.clone());
    set("SLURM_NODELIST", nodes);
    set("SLURM_JOB_NUM_NODES", job.node_count().to_string());
    set("SLURM_NNODES", job.node_count().to_string());
    set("SLURM_NTASKS", job.tasks().to_string());
    set("SLURM_CPUS_PER_TASK", job.number("cpus-per-task", 1).to_string());
    set("SLURM_SUBMIT_DIR", job.directory.clone());
    set("SLURM_RESTART_COUNT", job.restarts.to_string());
    set("SLURMD_NODENAME", job.nodes.first().cloned().unwrap_or_default());
    if gpus > 0 {
        set("CUDA_VISIBLE_DEVICES", (0..gpus).map(|g| g.to_string()).collect::<Vec<_>>().join(","));
    }
    if let Some((array, task, _)) = job.array {
        set("SLURM_ARRAY_JOB_ID", array.to_string());
        set("SLURM_ARRAY_TASK_ID", task.to_string());
    }
    let run = store.path(&format!("scripts/{id}.run"));
    std::fs::write(&run, script)?;
    let append = job.option("open-mode") == "append" || (job.restarts > 0 && job.option("open-mode") != "truncate");
    let (out, err) = (file(&job, "output"), file(&job, "error"));
    let open = |path: &str| File::options().create(true).write(true).append(append).truncate(!append).open(path);
    let child = open(&out).and_then(|o| {
        let e = if err == out { o.try_clone()? } else { open(&err)? };
        Command::new("/bin/bash")
            .arg(&run)
            .current_dir(&job.directory)
            .env_clear()
            .envs(environment)
            .stdin(File::open(file(&job, "input"))?)
            .stdout(o)
            .stderr(e)
            .process_group(0)
            .spawn()
    });
    let mut child = match child {
        Ok(child) => child,
        Err(_) => {
            // What Slurm says when the step cannot be set up, as where the directory or the file of the output is missing.
            locked.end(id, "FAILED", (0, 53), "RaisedSignal:53(Real-time_signal_19)", now());
            if let Some(job) = locked.state.jobs.get_mut(&id) {
                job.flags.push("LAUNCH_FAILED".into());
            }
            return settle(locked);
        }
    };
    #[allow(clippy::cast_possible_wrap)]
    let group = child.id() as i32;
    if let Some(job) = locked.state.jobs.get_mut(&id) {
        job.group = Some(group);
    }
    locked.save()?;

    let limit =
        Duration::from_millis(u64::try_from(i64::from(minutes(job.option("time")).unwrap_or(60)) * config.minute_ms)?);
    let (ended, end) = channel();
    std::thread::spawn(move || ended.send(child.wait()));
    let mut timed_out = false;
    let mut waited = Duration::ZERO;
    if let Some((signal, before, batch)) = warning(job.option("signal"), config.minute_ms)
        && before < limit
    {
        waited = limit.checked_sub(before).unwrap_or_default();
        if let Err(RecvTimeoutError::Timeout) = end.recv_timeout(waited).map(|s| ended_with(&store, id, s.ok(), false))
        {
            let group = Pid::from_raw(group);
            let _ = if batch { kill(group, signal) } else { killpg(group, signal) };
        } else {
            return Ok(());
        }
    }
    let status = match end.recv_timeout(limit.saturating_sub(waited)) {
        Ok(status) => status.ok(),
        Err(_) => {
            timed_out = true;
            stop(group, &end)
        }
    };
    ended_with(&store, id, status, timed_out)
}

/// Ends the processes of a group, first with a word of warning.
fn stop(
    group: i32,
    end: &std::sync::mpsc::Receiver<std::io::Result<std::process::ExitStatus>>,
) -> Option<std::process::ExitStatus> {
    let _ = killpg(Pid::from_raw(group), Signal::SIGTERM);
    end.recv_timeout(Duration::from_secs(1))
        .or_else(|_| {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            end.recv_timeout(Duration::from_secs(5))
        })
        .ok()?
        .ok()
}

fn ended_with(store: &Store, id: u32, status: Option<std::process::ExitStatus>, timed_out: bool) -> anyhow::Result<()> {
    let mut locked = store.lock()?;
    // Somebody cancelled it meanwhile, or its node was lost: that stays.
    if locked.state.jobs.get(&id).is_none_or(|j| j.state != "RUNNING") {
        return Ok(());
    }
    let (state, exit, reason) = match status {
        _ if timed_out => ("TIMEOUT", (0, 15), "TimeLimit"),
        Some(s) if s.success() => ("COMPLETED", (0, 0), "None"),
        Some(s) => match (s.code(), s.signal()) {
            (Some(code), _) => ("FAILED", (code, 0), "NonZeroExitCode"),
            (None, signal) => ("FAILED", (0, signal.unwrap_or(9)), "JobLaunchFailure"),
        },
        None => ("FAILED", (0, 9), "JobLaunchFailure"),
    };
    locked.end(id, state, exit, reason, now());
    settle(locked)
}

/// `[B:]SIGNAL[@SECONDS]`: the signal, how long before the limit, whether for the script alone.
fn warning(text: &str, minute_ms: i64) -> Option<(Signal, Duration, bool)> {
    let (batch, text) = text.strip_prefix("B:").map_or((false, text), |t| (true, t));
    let (name, seconds) = text.split_once('@').unwrap_or((text, "60"));
    let signal = match name.parse::<i32>() {
        Ok(n) => Signal::try_from(n).ok()?,
        Err(_) => format!("SIG{}", name.trim_start_matches("SIG")).parse().ok()?,
    };
    let scaled = seconds.parse::<i64>().ok()? * minute_ms / 60;
    Some((signal, Duration::from_millis(u64::try_from(scaled).ok()?), batch))
}

/// Ends the processes of jobs that were cancelled or lost.
pub fn kill_groups(groups: &[i32], signal: Signal) {
    for group in groups {
        let _ = killpg(Pid::from_raw(*group), signal);
    }
}
