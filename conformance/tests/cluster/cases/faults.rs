//! The engine goes and comes back; the process is killed; the machine is short of something.

use anyhow::{Result, ensure};

use super::start;
use crate::cluster::Cluster;

/// A restart of the engine: with live restore no container is touched; without it containers are started again where
/// their policy says so. None is left behind, and the node comes back by itself.
pub(crate) fn engine_restart(c: &mut Cluster, ns: &str) -> Result<()> {
    if !c.owns_engine() {
        println!("     not tried: the engine is not this test's to restart (hack/test.sh starts one where none runs)");
        return Ok(());
    }
    start(c, ns, "stays", "sleep 3600")?;
    let before = c.containers_of(ns)?;
    let live = c.live_restore()?;
    c.restart_engine()?;
    c.eventually("exec works", |c| {
        Ok(c.kubectl(&["-n", ns, "exec", "stays", "--", "echo", "alive"])?.out == "alive\n")
    })?;
    c.eventually("the pod runs and the node is Ready", |c| {
        let p = c.get(ns, "pod/stays")?;
        let s = &p["status"]["containerStatuses"][0];
        let up = s["ready"] == true && p["status"]["phase"] == "Running";
        Ok(up && c.kubectl(&["get", "nodes"])?.out.contains(" Ready "))
    })?;
    if live {
        ensure!(c.get(ns, "pod/stays")?["status"]["containerStatuses"][0]["restartCount"] == 0);
        ensure!(c.containers_of(ns)? == before, "containers were made anew");
    }
    // What it makes after the restart works too.
    start(c, ns, "new", "sleep 3600")?;
    c.ok(&["-n", ns, "delete", "pod", "stays", "new"])?;
    c.eventually("nothing is left behind", |c| Ok(c.containers_of(ns)?.is_empty()))
}

/// `kill -9` of the process while pods start and end: nothing runs twice, nothing is left behind.
pub(crate) fn crash_while_busy(c: &mut Cluster, ns: &str) -> Result<()> {
    // It heeds SIGTERM, so that its end is not the grace period's.
    let command = "trap exit TERM; while true; do sleep 0.2; done";
    let deployment = ["-n", ns, "create", "deployment", "d", "--image=skiff/busybox:1", "--replicas=6"];
    c.ok(&[&deployment[..], &["--", "sh", "-c", command]].concat())?;
    c.crash_and_restart()?;
    c.ok(&["-n", ns, "rollout", "status", "deployment/d", "--timeout=90s"])?;
    c.ok(&["-n", ns, "scale", "deployment/d", "--replicas=2"])?;
    c.crash_and_restart()?;
    c.eventually("two pods are left", |c| Ok(c.ok(&["-n", ns, "get", "pods", "-o", "name"])?.lines().count() == 2))?;
    // A pod is a sandbox and a container.
    c.eventually("and their containers", |c| Ok(c.containers_of(ns)?.len() == 4))?;
    c.ok(&["-n", ns, "delete", "deployment", "d"])?;
    c.eventually("nothing is left behind", |c| Ok(c.containers_of(ns)?.is_empty()))
}

/// A node that is short of disk says so, keeps what runs, takes nothing new, and recovers by itself.
pub(crate) fn pressure(c: &mut Cluster, ns: &str) -> Result<()> {
    let taints = |c: &Cluster| c.ok(&["get", "nodes", "-o", "jsonpath={.items[*].spec.taints[*].key}"]);
    start(c, ns, "stays", "sleep 3600")?;
    // No machine has its whole disk free.
    c.crash_and_restart_with(&[("SKIFF_EVICTION_HARD", "nodefs.available<100%")])?;
    c.eventually("the node is tainted", |c| Ok(taints(c)?.contains("node.kubernetes.io/disk-pressure")))?;
    ensure!(c.ok(&["describe", "nodes"])?.contains("KubeletHasDiskPressure"));
    c.ok(&["-n", ns, "run", "new", "--image=skiff/busybox:1", "--", "sleep", "3600"])?;
    c.eventually("the new pod is told why it waits", |c| {
        Ok(c.ok(&["-n", ns, "events", "--for=pod/new"])?.contains("had untolerated taint(s)"))
    })?;
    ensure!(c.get(ns, "pod/stays")?["status"]["phase"] == "Running");
    c.crash_and_restart()?;
    c.ok(&["-n", ns, "wait", "--for=condition=Ready", "pod/new", "pod/stays", "--timeout=60s"])?;
    ensure!(c.get(ns, "pod/stays")?["status"]["containerStatuses"][0]["restartCount"] == 0);
    c.ok(&["-n", ns, "delete", "pod", "stays", "new", "--now"])?;
    Ok(())
}
