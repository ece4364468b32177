//! Many runs of workflows that wait: what they cost the engine, and how soon a new engine goes on with them.
//!
//! The engine is a process of its own (`skiff workflows`), so that its memory is not the server's, which has the objects.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use serde_json::json;

use crate::Context;
use crate::http::{Target, Version};
use crate::load::{Request, Until, closed};
use crate::process::Skiff;
use crate::report::{Report, mib};
use crate::sections::watch::Lines;

pub(super) const API: &str = "/apis/skiff.dev/v1/namespaces/default";
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

/// Makes a workflow, and waits for that until its kind is served and runs can be listed: the engine makes the definitions.
pub(super) async fn define(target: &Target, name: &str, definition: serde_json::Value) -> anyhow::Result<()> {
    let workflow = json!({"apiVersion": "skiff.dev/v1", "kind": "Workflow", "metadata": {"name": name},
        "spec": {"definition": definition}});
    let (mut client, begun) = (target.h1().await?, Instant::now());
    let served = async |client: &mut crate::http::H1| -> anyhow::Result<bool> {
        Ok(client.call("GET", &format!("{API}/workflowruns?limit=1"), b"").await?.code == 200
            && client.call("POST", &format!("{API}/workflows"), workflow.to_string().as_bytes()).await?.code == 201)
    };
    while !served(&mut client).await? {
        ensure!(begun.elapsed() < PATIENCE, "workflows cannot be created");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Waits until so many runs have ended: how long after `begun` the first was seen to, and the last; and the latest time at which
/// one ended by its own status, which is when it left its Wait.
async fn ends(mut events: Lines, runs: u64, begun: Instant) -> anyhow::Result<(Duration, Duration, jiff::Timestamp)> {
    let mut ended = HashSet::new();
    let (mut first, mut latest) = (None, jiff::Timestamp::MIN);
    while (ended.len() as u64) < runs {
        for line in events.next().await?.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let event: Event = serde_json::from_slice(line)?;
            let Some(status) = event.object.status.filter(|s| s.phase == "SUCCEEDED") else { continue };
            latest = latest.max(status.stop_time.context("a run ended at no time")?);
            ended.insert(event.object.metadata.name);
            first.get_or_insert(begun.elapsed());
        }
    }
    Ok((first.unwrap_or_default(), begun.elapsed(), latest))
}

/// What is read of an event of a watch.
#[derive(Deserialize)]
pub(super) struct Event {
    pub(super) object: Object,
}

#[derive(Deserialize)]
pub(super) struct Object {
    pub(super) metadata: Metadata,
    pub(super) status: Option<Status>,
}

#[derive(Deserialize)]
pub(super) struct Metadata {
    pub(super) name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    pub(super) phase: String,
    stop_time: Option<jiff::Timestamp>,
}

pub(crate) async fn run(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let runs = cx.scaled(10_000);
    let skiff = Skiff::start(&cx.skiff, cx.data("waiting"), false).await?;
    let target = super::through_rbac(&skiff).await?;
    let engine = skiff.workflows(&cx.skiff)?;
    let definition = json!({"StartAt": "Wait", "States": {
        "Wait": {"Type": "Wait", "TimestampPath": "$.until", "Next": "Done"}, "Done": {"Type": "Pass", "End": true}}});
    define(&target, "wait", definition).await?;
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
    let collection = format!("{API}/workflowruns");
    let since = super::watch::revision_of(&target, &collection).await?;
    let events = Lines::open(&target, Version::H1, &format!("{collection}?watch=1&resourceVersion={since}")).await?;
    let before_it = skiff.process.usage()?;
    let (begun, clock) = (Instant::now(), jiff::Timestamp::now());
    let engine = skiff.workflows(&cx.skiff)?;
    let ends = tokio::time::timeout(PATIENCE, ends(events, runs, begun)).await;
    let (first, ended, resumed) = ends.context("not all runs went on")??;
    let writes = super::watch::revision_of(&target, &collection).await? - since;
    let resumed = resumed.duration_since(clock).as_secs_f64();
    let (server, used) = (skiff.process.usage()?.cpu - before_it.cpu, engine.usage()?.cpu);
    report.row(
        format!("{runs} runs of workflows that wait, the engine a process of its own"),
        "100 MiB, no CPU, resumed within 5 s of a restart",
        format!(
            "{:.0} MiB resident, {:.0} of it data ({:.0} and {:.0} without runs); {:.2} % of a core; a new engine, all of them due: \
             the first ended {:.1} s after its start, the last left its Wait after {resumed:.1} s and ended after {:.1} s; {used:.1} s of \
             CPU in the engine, {server:.1} s in the server, {writes} writes",
            mib(after.rss),
            mib(after.anon),
            mib(alone.rss),
            mib(alone.anon),
            (after.cpu - before.cpu) / LOOK.as_secs_f64() * 100.0,
            first.as_secs_f64(),
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
