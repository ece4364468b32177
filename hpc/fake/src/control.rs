//! What tests do to the cluster: lose nodes, move jobs on, count submissions.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value};

use crate::process::{kill_groups, settle};
use crate::state::{Locked, Plan, Store, now};
use crate::{tools, words};

/// Makes a cluster in a directory: its files, and the commands in `bin`.
///
/// # Errors
/// When it cannot be written.
pub fn init(dir: &Path, settings: &[String]) -> anyhow::Result<()> {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).with_context(|| dir.display().to_string())?;
    let program = crate::program()?;
    for name in tools::NAMES {
        let link = bin.join(name);
        let _ = std::fs::remove_file(&link);
        // A shell that names the directory: the commands work in any environment. The name goes along as the first argument.
        std::fs::write(
            &link,
            format!(
                "#!/bin/sh\nFAKE_SLURM_DIR='{}' exec '{}' tool {name} \"$@\"\n",
                dir.canonicalize()?.display().to_string().replace('\'', r"'\''"),
                program.display().to_string().replace('\'', r"'\''"),
            ),
        )?;
        std::fs::set_permissions(&link, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    change(dir, "config.json", settings)?;
    change(dir, "faults.json", &[])?;
    Store::new(dir).lock()?.save()
}

/// Changes settings in one of the two files: `name=value`, where the value is JSON, or else text. `none` forgets all.
///
/// # Errors
/// A name that does not exist.
pub fn change(dir: &Path, file: &str, settings: &[String]) -> anyhow::Result<()> {
    let store = Store::new(dir);
    let lock = std::fs::File::options().create(true).truncate(false).write(true).open(store.path("lock"))?;
    lock.lock()?;
    let mut all: Map<String, Value> = match std::fs::read(store.path(file)) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) => Map::new(),
    };
    for setting in settings {
        if setting == "none" {
            all.clear();
            continue;
        }
        let (name, value) = setting.split_once('=').with_context(|| format!("{setting}: not NAME=VALUE"))?;
        if let Some(ms) = (file == "faults.json" && name == "down_ms").then(|| value.parse::<i64>()) {
            all.insert("down_until".into(), (now() + ms?).into());
            continue;
        }
        all.insert(name.into(), serde_json::from_str(value).unwrap_or_else(|_| value.into()));
    }
    // Read back by its types before it counts.
    let checked = serde_json::to_vec(&all)?;
    if file == "faults.json" {
        serde_json::from_slice::<crate::config::Faults>(&checked)?;
    } else {
        serde_json::from_slice::<crate::config::Config>(&checked)?;
    }
    store.write(file, &all).map(drop)
}

/// Moves a job on: from now it goes through these steps.
///
/// # Errors
/// A job that does not exist, steps that are none.
pub fn set(dir: &Path, id: u32, steps: &str) -> anyhow::Result<()> {
    let mut locked = Store::new(dir).lock()?;
    let steps = words::steps(steps).map_err(anyhow::Error::msg)?;
    let Some(job) = locked.state.jobs.get_mut(&id) else { bail!("there is no job {id}") };
    let group = job.group.take();
    // A state to come back to from: an ended job can be moved too.
    "PENDING".clone_into(&mut job.state);
    (job.end, job.gone, job.logged) = (None, false, false);
    job.flags.clear();
    job.held = None;
    job.options.remove("dependency");
    job.plan = Plan::Steps(steps, None);
    // It does not need room.
    job.options.remove("gres");
    settle(locked)?;
    kill_groups(&group.into_iter().collect::<Vec<_>>(), nix::sys::signal::Signal::SIGKILL);
    Ok(())
}

/// Takes a node away with all that runs there: jobs that may are queued again, others fail.
pub fn node_down(locked: &mut Locked, node: &str, reason: &str) {
    locked.state.down.insert(node.into(), reason.into());
    let lost: Vec<u32> = locked
        .state
        .jobs
        .values()
        .filter(|j| j.holds_nodes() && j.nodes.iter().any(|n| n == node))
        .map(|j| j.id)
        .collect();
    let mut groups = Vec::new();
    for id in lost {
        let Some(job) = locked.state.jobs.get(&id) else { continue };
        groups.extend(job.group);
        let again = !job.options.contains_key("no-requeue");
        locked.end(id, "NODE_FAIL", (0, 0), "NodeDown", now());
        if again {
            locked.requeue(id, false);
        }
    }
    kill_groups(&groups, nix::sys::signal::Signal::SIGKILL);
}

/// How many submissions were accepted by name, and how many of them were one too many.
///
/// # Errors
/// When there is no cluster.
pub fn counts(dir: &Path) -> anyhow::Result<Value> {
    let locked = Store::new(dir).lock()?;
    let accepted: u32 = locked.state.accepted.values().sum();
    let duplicates: u32 = locked.state.accepted.values().map(|n| n.saturating_sub(1)).sum();
    Ok(serde_json::json!({"accepted": accepted, "duplicates": duplicates, "names": locked.state.accepted}))
}
