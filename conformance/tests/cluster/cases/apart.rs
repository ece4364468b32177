//! Every component as a process of its own, with its own identity.

use std::process::Command;

use anyhow::{Result, ensure};

use super::start;
use crate::cluster::{COMPONENTS, Cluster};

/// Controllers and scheduler show what they count to those who may see it, the proxy to this machine.
fn metrics(c: &Cluster) -> Result<()> {
    let curl = |url: &str, token: &str| {
        let bearer = format!("Authorization: Bearer {token}");
        let o = c.run(Command::new("curl").args(["-sk", "-w", "\n%{http_code}", "-H", &bearer, url]))?;
        let (body, code) = o.out.rsplit_once('\n').map_or(("", ""), |(b, c)| (b, c));
        anyhow::Ok((code.to_owned(), body.to_owned()))
    };
    let account = "system:serviceaccount:default:default";
    let token = c.ok(&["-n", "default", "create", "token", "default"])?;
    let (controllers, scheduler) = ("https://127.0.0.1:10257/metrics", "https://127.0.0.1:10259/metrics");
    for url in [controllers, scheduler] {
        ensure!(curl(url, "none")?.0 == "401" && curl(url, token.trim())?.0 == "403", "{url} is open");
    }
    c.ok(&["create", "clusterrolebinding", "sees-metrics", "--clusterrole=system:monitoring", "--user", account])?;
    for (url, metric) in [
        (controllers, "leader_election_master_status{name=\"kube-controller-manager\"} 1"),
        (controllers, "workqueue_depth{name=\"job-controller\"} 0"),
        (scheduler, "scheduler_pending_pods{queue=\"active\"} 0"),
        ("http://127.0.0.1:10249/metrics", "kubeproxy_sync_proxy_rules_duration_seconds_count "),
    ] {
        c.eventually("a component shows what it counts", |_| {
            let (code, body) = curl(url, token.trim())?;
            Ok(code == "200" && body.contains(metric) && body.contains("process_resident_memory_bytes "))
        })?;
    }
    c.ok(&["delete", "clusterrolebinding", "sees-metrics"])?;
    Ok(())
}

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
    metrics(c)?;
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
