//! Large clusters: many nodes, many pods, on one server.
//!
//! Server, controllers and scheduler are processes of their own, as upstream's are, so that what each costs is seen; in
//! `skiff up` they share one process and no socket is between them. Nodes are `skiff kubelet --runtime=fake`, or, where
//! only the placement is measured, Node objects without an agent.

use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::Value;

use crate::Context;
use crate::http::{H1, Target, Version};
use crate::load::{Request, Until, closed};
use crate::objects::{deployment, node, pod};
use crate::process::{Process, Skiff};
use crate::report::{Report, mib};

const PODS: &str = "/api/v1/namespaces/default/pods";
const NODES: &str = "/api/v1/nodes";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
/// A range that has a /24 for every node, beside that of Services.
const RANGE: &str = "10.128.0.0/9";
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a full cluster is left alone, and how long it is then watched.
const SETTLE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(60);

/// Asks until `done`, and says how long that took.
async fn until(
    client: &mut H1,
    what: &str,
    path: &str,
    pause: Duration,
    done: impl Fn(u16, &Value) -> bool,
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    loop {
        let reply = client.call("GET", path, b"").await?;
        let v: Value = serde_json::from_slice(&reply.body)?;
        if done(reply.code, &v) {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > PATIENCE {
            bail!("{what} within {PATIENCE:?}: {path} says {}", v.to_string().chars().take(300).collect::<String>());
        }
        tokio::time::sleep(pause).await;
    }
}

/// Waits until every pod is on a node. The answer holds one pod at most. The connection is a new one: the server closes
/// those that are idle for as long as the load may take.
async fn all_bound(target: &Target) -> anyhow::Result<()> {
    let mut client = target.h1().await?;
    let path = format!("{PODS}?limit=1&fieldSelector=spec.nodeName%3D");
    let none = |_: u16, v: &Value| v["items"].as_array().is_some_and(Vec::is_empty);
    until(&mut client, "not all pods were bound", &path, Duration::from_millis(20), none).await.map(drop)
}

/// Node objects that nobody looks after, free of the taint of those that are new.
async fn bare_nodes(target: &Target, count: u64) -> anyhow::Result<()> {
    let make = |n: u64| Request { method: "POST", path: NODES.into(), body: node(&format!("node-{n}"), n % 3) };
    closed(target, Version::H1, 16, Until::Count(count), make).await?;
    let free = |n: u64| Request {
        method: "PATCH",
        path: format!("{NODES}/node-{n}"),
        body: br#"{"spec":{"taints":null}}"#.to_vec(),
    };
    closed(target, Version::H1, 16, Until::Count(count), free).await.map(drop)
}

fn cpu(processes: &[&Process]) -> anyhow::Result<Vec<f64>> {
    processes.iter().map(|p| Ok(p.usage()?.cpu)).collect()
}

/// 500 nodes with 10 pods each.
pub(crate) async fn nodes(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let (count, each) = (cx.scaled(500), 10);
    let skiff = Skiff::start(&cx.skiff, cx.data("nodes"), false).await?;
    let controllers = skiff.component(&cx.skiff, "controller-manager", "controller-manager", &["--pod-cidr", RANGE])?;
    let scheduler = skiff.component(&cx.skiff, "scheduler", "scheduler", &[])?;
    let number = count.to_string();
    let agents = ["--runtime", "fake", "--count", &number, "--node-name", "fake", "--node-ip", "127.0.0.1"];
    let agents = skiff.component(&cx.skiff, "kubelet", "admin", &agents)?;
    let mut client = skiff.target("admin")?.h1().await?;
    let ready = |_: u16, v: &Value| {
        let all = v["items"].as_array().into_iter().flatten();
        let ready = |n: &&Value| {
            let conditions = n["status"]["conditions"].as_array().into_iter().flatten();
            n["spec"]["taints"].is_null()
                && conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        all.filter(ready).count() as u64 == count
    };
    let registered = until(&mut client, "not all nodes were ready", NODES, Duration::from_secs(1), ready).await?;
    let begun = Instant::now();
    for n in 0..each {
        client.call("POST", DEPLOYMENTS, &deployment(&format!("web-{n}"), count)).await?.success()?;
    }
    for n in 0..each {
        let path = format!("{DEPLOYMENTS}/web-{n}");
        let all = |_: u16, v: &Value| v["status"]["readyReplicas"].as_u64() == Some(count);
        until(&mut client, "not all pods ran", &path, Duration::from_millis(250), all).await?;
    }
    let running = begun.elapsed();
    tokio::time::sleep(SETTLE).await;
    let all = [&skiff.process, &controllers, &scheduler, &agents];
    let before = cpu(&all)?;
    tokio::time::sleep(LOOK).await;
    let after = cpu(&all)?;
    let share: Vec<f64> = before.iter().zip(&after).map(|(b, a)| (a - b) / LOOK.as_secs_f64() * 100.0).collect();
    let rss = all.iter().map(|p| Ok(mib(p.usage()?.rss))).collect::<anyhow::Result<Vec<f64>>>()?;
    report.row(
        format!("{count} fake nodes with {each} pods each, idle"),
        "1 GiB, half a core",
        format!(
            "{:.0} MiB (server {:.0}, controllers {:.0}, scheduler {:.0}); {:.1} % of a core (server {:.1}, controllers {:.1}, scheduler {:.1})",
            rss[..3].iter().sum::<f64>(), rss[0], rss[1], rss[2],
            share[..3].iter().sum::<f64>(), share[0], share[1], share[2]
        ),
        format!(
            "the agents themselves: {:.0} MiB, {:.1} %; nodes ready after {:.1} s, pods running {:.1} s after their Deployments; k0s with 200 nodes and 20,000 pods: 3,300 MB",
            rss[3], share[3], registered.as_secs_f64(), running.as_secs_f64()
        ),
    );
    for p in [agents, scheduler, controllers, skiff.process] {
        p.stop().await?;
    }
    Ok(())
}

/// Pods created by 16 clients and bound to 1,000 nodes.
pub(crate) async fn scheduler(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let (count, pods) = (cx.scaled(1000), cx.scaled(10_000));
    let skiff = Skiff::start(&cx.skiff, cx.data("scheduler"), false).await?;
    let target = super::through_rbac(&skiff).await?;
    let mut client = target.h1().await?;
    let account = br#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"default"}}"#;
    client.call("POST", "/api/v1/namespaces/default/serviceaccounts", account).await?.success()?;
    bare_nodes(&target, count).await?;
    let scheduler = skiff.component(&cx.skiff, "scheduler", "scheduler", &[])?;
    let make = |n: u64| Request { method: "POST", path: PODS.into(), body: pod(&format!("p-{n:06}")) };
    // It must lead and know all nodes before anything counts.
    closed(&target, Version::H1, 4, Until::Count(100), make).await?;
    all_bound(&target).await?;
    let both = [&skiff.process, &scheduler];
    let before = cpu(&both)?;
    let begun = Instant::now();
    let created = closed(&target, Version::H1, 16, Until::Count(pods), move |n| make(n + 100)).await?;
    all_bound(&target).await?;
    let took = begun.elapsed();
    let after = cpu(&both)?;
    #[allow(clippy::cast_precision_loss)]
    let (n, us) = (pods as f64, |i: usize| (after[i] - before[i]) / pods as f64 * 1e6);
    report.row(
        format!("{pods} pods created and bound, {count} nodes"),
        "1,500/s (2,500 wanted)",
        format!(
            "{:.0}/s; created at {:.0}/s; per pod {:.0} us of the server's and {:.0} us of the scheduler's CPU; then {:.0} and {:.0} MiB",
            n / took.as_secs_f64(),
            created.rate(),
            us(0),
            us(1),
            mib(skiff.process.usage()?.rss),
            mib(scheduler.usage()?.rss)
        ),
        "kube-apiserver and kube-scheduler 1.36: 191/s",
    );
    scheduler.stop().await?;
    skiff.process.stop().await
}

/// A Deployment of 1,000 pods: until they are created and bound, and its status says so.
pub(crate) async fn rollout(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let pods = cx.scaled(1000);
    let skiff = Skiff::start(&cx.skiff, cx.data("rollout"), false).await?;
    let target = super::through_rbac(&skiff).await?;
    // Nobody renews the leases of these nodes.
    let args = ["--pod-cidr", RANGE, "--node-monitor-grace-period", "1h"];
    let controllers = skiff.component(&cx.skiff, "controller-manager", "controller-manager", &args)?;
    let scheduler = skiff.component(&cx.skiff, "scheduler", "scheduler", &[])?;
    let mut client = skiff.target("admin")?.h1().await?;
    bare_nodes(&target, cx.scaled(1000)).await?;
    let pause = Duration::from_millis(20);
    let counted = |wanted: u64| move |_: u16, v: &Value| v["status"]["replicas"].as_u64() == Some(wanted);
    let warm = format!("{DEPLOYMENTS}/warm");
    client.call("POST", DEPLOYMENTS, &deployment("warm", 10)).await?.success()?;
    until(&mut client, "no pods were made", &warm, pause, counted(10)).await?;
    all_bound(&target).await?;
    let all = [&skiff.process, &controllers, &scheduler];
    let before = cpu(&all)?;
    let begun = Instant::now();
    client.call("POST", DEPLOYMENTS, &deployment("web", pods)).await?.success()?;
    until(&mut client, "not all pods were made", &format!("{DEPLOYMENTS}/web"), pause, counted(pods)).await?;
    let made = begun.elapsed();
    all_bound(&target).await?;
    let took = begun.elapsed();
    let after = cpu(&all)?;
    report.row(
        format!("rollout of a Deployment of {pods} pods"),
        "all writes within 2 s",
        format!(
            "created after {:.2} s, all bound after {:.2} s; server {:.2}, controllers {:.2}, scheduler {:.2} s of CPU",
            made.as_secs_f64(),
            took.as_secs_f64(),
            after[0] - before[0],
            after[1] - before[1],
            after[2] - before[2]
        ),
        "",
    );
    for p in [scheduler, controllers, skiff.process] {
        p.stop().await?;
    }
    Ok(())
}
