//! Every component as a process of its own, with its own identity.

use anyhow::{Result, ensure};

use super::start;
use crate::cluster::{COMPONENTS, Cluster};

/// The cluster works; each component is killed and comes back, and nobody notices.
pub(crate) fn apart(c: &mut Cluster, ns: &str) -> Result<()> {
    start(c, ns, "server", "mkdir -p /www; echo here > /www/index.html; exec httpd -f -p 8080 -h /www")?;
    start(c, ns, "client", "sleep 3600")?;
    c.ok(&["-n", ns, "expose", "pod", "server", "--port=80", "--target-port=8080"])?;
    let served = |c: &Cluster| {
        c.eventually("the Service answers", |c| {
            Ok(c.kubectl(&["-n", ns, "exec", "client", "--", "wget", "-q", "-O", "-", "http://server/"])?.out
                == "here\n")
        })
    };
    served(c)?;
    let before = c.containers_of(ns)?;
    for name in COMPONENTS {
        c.kill_component(name)?;
        c.start_component(name)?;
        // It does its work again: a pod needs all four to become ready and be found by name.
        let pod = format!("after-{name}");
        c.ok(&["-n", ns, "create", "deployment", &pod, "--image=skiff/busybox:1", "--", "sleep", "3600"])?;
        c.ok(&["-n", ns, "rollout", "status", &format!("deployment/{pod}"), "--timeout=90s"])?;
        served(c)?;
    }
    let after = c.containers_of(ns)?;
    ensure!(before.iter().all(|id| after.contains(id)), "a restart replaced containers: {before:?} {after:?}");
    let p = c.get(ns, "pod/server")?;
    ensure!(p["status"]["containerStatuses"][0]["restartCount"] == 0, "{p}");
    Ok(())
}
