//! sbatch, and srun as scripts use it.

use std::collections::BTreeMap;
use std::io::Read as _;

use super::Answer;
use crate::state::Locked;
use crate::submit::{Submission, directives, options};

/// What sbatch does where it is called: options, script and environment are read there. `Err`: it ends with this.
pub(super) fn read(args: &[String], otherwise: &str) -> anyhow::Result<Result<Submission, Answer>> {
    let mut given = BTreeMap::new();
    let usage = |e: String| Answer::fail(255, format!("sbatch: {e}\nTry \"sbatch --help\" for more information\n"));
    let rest = match options(args, &mut given) {
        Ok(rest) => rest,
        Err(e) => return Ok(Err(usage(e))),
    };
    let script = match (given.get("wrap"), rest.first()) {
        (Some(line), _) => format!("#!/bin/sh\n# This script was created by sbatch --wrap.\n\n{line}\n"),
        (None, Some(file)) => match std::fs::read(file) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(_) => return Ok(Err(Answer::fail(1, format!("sbatch: error: Unable to open file {file}\n")))),
        },
        (None, None) => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes)?;
            String::from_utf8_lossy(&bytes).into_owned()
        }
    };
    let mut all = BTreeMap::new();
    if let Err(e) = options(&directives(&script), &mut all) {
        return Ok(Err(usage(e)));
    }
    all.extend(given);
    if let (None, Some(file)) = (all.get("job-name"), rest.first()) {
        let base = std::path::Path::new(file).file_name().map(|n| n.to_string_lossy().into_owned());
        all.insert("job-name".into(), base.unwrap_or_default());
    }
    let mut environment: BTreeMap<String, String> = match all.get("export").map(String::as_str) {
        Some("NONE" | "NIL") => BTreeMap::new(),
        Some(list) if !list.split(',').any(|v| v == "ALL") => list
            .split(',')
            .filter_map(|v| match v.split_once('=') {
                Some((name, value)) => Some((name.to_owned(), value.to_owned())),
                None => std::env::var(v).ok().map(|value| (v.to_owned(), value)),
            })
            .collect(),
        _ => std::env::vars().collect(),
    };
    environment.retain(|name, _| !name.starts_with("FAKE_SLURM"));
    Ok(Ok(Submission {
        options: all,
        script,
        environment,
        user: whoami(otherwise),
        uid: nix::unistd::getuid().as_raw(),
        directory: std::env::current_dir()?.display().to_string(),
    }))
}

/// What the controller does with it.
pub(super) fn sbatch(mut locked: Locked, submission: &Submission) -> anyhow::Result<Answer> {
    if submission.options.contains_key("test-only") {
        return Ok(Answer::fail(
            0,
            format!(
                "sbatch: Job {} to start at {} using 1 processors on nodes n1 in partition debug\n",
                locked.state.next_id,
                crate::fields::time(Some(crate::state::now()))
            ),
        ));
    }
    let (before, after) = (locked.faults.drop_request, locked.faults.drop_answer);
    if locked.chance(before) {
        locked.save()?;
        return Ok(Answer { lost: true, ..Answer::default() });
    }
    match locked.submit(submission) {
        Err(refused) => {
            let more = if refused.0 == 2000 {
                format!(
                    "sbatch: error: invalid partition specified: {}\n",
                    submission.options.get("partition").map_or("", String::as_str)
                )
            } else {
                String::new()
            };
            Ok(Answer::fail(1, format!("{more}sbatch: error: Batch job submission failed: {}\n", refused.1)))
        }
        Ok(id) => {
            let lost = locked.chance(after);
            crate::process::settle(locked)?;
            let parsable = submission.options.contains_key("parsable");
            let out = if parsable { format!("{id}\n") } else { format!("Submitted batch job {id}\n") };
            Ok(Answer { out, lost, ..Answer::default() })
        }
    }
}

/// The name that jobs of this process have.
pub(super) fn whoami(otherwise: &str) -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid());
    user.ok().flatten().map_or_else(|| otherwise.to_owned(), |u| u.name)
}

/// Runs a command as every task of the job.
pub(super) fn srun(args: &[String]) -> anyhow::Result<i32> {
    let mut given = BTreeMap::new();
    let command = options(args, &mut given).map_err(|e| anyhow::anyhow!("srun: {e}"))?;
    let Some((program, args)) = command.split_first() else { return Ok(1) };
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u32>().ok());
    let tasks = given.get("ntasks").and_then(|n| n.parse().ok()).or_else(|| number("SLURM_NTASKS")).unwrap_or(1);
    let nodes = number("SLURM_NNODES").unwrap_or(1).max(1);
    let children: Vec<_> = (0..tasks)
        .map(|task| {
            let per = tasks.div_ceil(nodes);
            std::process::Command::new(program)
                .args(args)
                .env("SLURM_PROCID", task.to_string())
                .env("SLURM_LOCALID", (task % per).to_string())
                .env("SLURM_NODEID", (task / per).to_string())
                .env("SLURM_NTASKS", tasks.to_string())
                .spawn()
        })
        .collect();
    let mut code = 0;
    for child in children {
        let status = child?.wait()?;
        code = code.max(status.code().unwrap_or(137));
    }
    Ok(code)
}
