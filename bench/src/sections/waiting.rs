//! Many runs of workflows that wait: what they cost the engine, and how soon a new engine goes on with them.
//!
//! The engine is a process of its own (`skiff workflows`), so that its memory is not the server's, which has the objects.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use serde_json::json;

use crate::Context;
use crate::http::{Target, Version};
use crate::load::{Request, Until, closed};
use crate::process::Skiff;
use crate::report::{Report, mib};

const API: &str = "/apis/skiff.dev/v1/namespaces/default";
/// Until when runs wait, from the moment they are started.
const WAIT: Duration = Duration::from_secs(90);
/// After the last start, until everything that follows from it is written.
const SETTLE: Duration = Duration::from_secs(15);
/// How long waiting runs are watched.
const LOOK: Duration = Duration::from_secs(20);
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many runs are in a phase.
async fn count(target: &Target, phase: &str) -> anyhow::Result<u64> {
    // A connection of its own: the server closes those that are idle for as long as this waits in between.
    let list = target.h1().await?.call("GET", &format!("{API}/workflowruns"), b"").await?.success()?;
    let phase = format!("\"phase\":\"{phase}\"");
    Ok(memchr::memmem::find_iter(&list, phase.as_bytes()).count() as u64)
}

pub(crate) async fn run(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let runs = cx.scaled(10_000);
    let skiff = Skiff::start(&cx.skiff, cx.data("waiting"), false).await?;
    let target = super::through_rbac(&skiff).await?;
    let engine = skiff.workflows(&cx.skiff)?;
    let mut client = target.h1().await?;
    let begun = Instant::now();
    let definition = json!({"StartAt": "Wait", "States": {
        "Wait": {"Type": "Wait", "TimestampPath": "$.until", "Next": "Done"}, "Done": {"Type": "Pass", "End": true}}});
    let workflow = json!({"apiVersion": "skiff.dev/v1", "kind": "Workflow", "metadata": {"name": "wait"},
        "spec": {"definition": definition}});
    // Until the definitions are served, which the engine makes.
    while client.call("POST", &format!("{API}/workflows"), workflow.to_string().as_bytes()).await?.code != 201 {
        ensure!(begun.elapsed() < PATIENCE, "workflows cannot be created");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let alone = engine.usage()?;
    let due = jiff::Timestamp::now() + WAIT;
    let until = due.to_string();
    let make = move |n: u64| {
        let run = json!({"apiVersion": "skiff.dev/v1", "kind": "WorkflowRun", "metadata": {"name": format!("wait.r-{n:05}")},
            "spec": {"workflow": "wait", "input": {"until": until}}});
        Request { method: "POST", path: format!("{API}/workflowruns"), body: run.to_string().into_bytes() }
    };
    let begun = Instant::now();
    closed(&target, Version::H1, 16, Until::Count(runs), make).await?;
    let created = begun.elapsed();
    loop {
        let running = count(&target, "RUNNING").await?;
        if running == runs {
            break;
        }
        ensure!(begun.elapsed() < PATIENCE, "only {running} runs were begun");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let waiting = begun.elapsed();
    tokio::time::sleep(SETTLE).await;
    let before = engine.usage()?;
    tokio::time::sleep(LOOK).await;
    let after = engine.usage()?;
    engine.stop().await?;
    let left = due.duration_since(jiff::Timestamp::now());
    let Ok(left) = Duration::try_from(left) else { bail!("the runs were due before the engine ended") };
    tokio::time::sleep(left).await;
    let begun = Instant::now();
    let engine = skiff.workflows(&cx.skiff)?;
    let (mut first, mut last) = (None, runs);
    while last > 0 {
        ensure!(begun.elapsed() < PATIENCE, "{last} runs did not go on");
        tokio::time::sleep(Duration::from_millis(100)).await;
        last = runs.saturating_sub(count(&target, "SUCCEEDED").await?);
        if last < runs {
            first.get_or_insert(begun.elapsed());
        }
    }
    let ended = begun.elapsed();
    report.row(
        format!("{runs} runs of workflows that wait, the engine a process of its own"),
        "100 MiB, no CPU, resumed within 5 s of a restart",
        format!(
            "{:.0} MiB resident, {:.0} of it data ({:.0} and {:.0} without runs); {:.2} % of a core; a new engine, all of them due: \
             the first ended {:.1} s after its start, the last {:.1} s",
            mib(after.rss),
            mib(after.anon),
            mib(alone.rss),
            mib(alone.anon),
            (after.cpu - before.cpu) / LOOK.as_secs_f64() * 100.0,
            first.unwrap_or_default().as_secs_f64(),
            ended.as_secs_f64(),
        ),
        format!(
            "created in {:.1} s, all in their Wait after {:.1} s; the server with their objects {:.0} MiB",
            created.as_secs_f64(),
            waiting.as_secs_f64(),
            mib(skiff.process.usage()?.rss)
        ),
    );
    engine.stop().await?;
    skiff.process.stop().await
}
