//! A short run of a workflow as its user sees it: over HTTP, with a whole cluster, and with the engine as a process of its own.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;

use super::waiting::{API, Event};
use super::watch::Lines;
use crate::Context;
use crate::http::{Target, Version};
use crate::process::Skiff;
use crate::report::{Report, Times};

/// Runs before those that are measured, and those.
const RUNS: (u32, u32) = (50, 300);
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn run(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    for whole in [true, false] {
        let skiff = Skiff::start(&cx.skiff, cx.data(if whole { "runs" } else { "runs-apart" }), whole).await?;
        let engine = if whole { None } else { Some(skiff.workflows(&cx.skiff)?) };
        let target = super::through_rbac(&skiff).await?;
        let mut times = latency(&target).await?;
        report.row(
            format!(
                "Pass, Choice, Succeed over HTTP, {} ({} runs)",
                if whole { "`skiff up`" } else { "the engine a process of its own" },
                RUNS.1
            ),
            "p50 3 ms",
            times.summary(),
            "from before the POST of the run until a watch shows its end, over TLS, every write durable",
        );
        if let Some(engine) = engine {
            engine.stop().await?;
        }
        skiff.process.stop().await?;
    }
    Ok(())
}

/// Runs of three states one after the other, each from before its object is posted until a watch shows its end.
async fn latency(target: &Target) -> anyhow::Result<Times> {
    let definition = json!({"StartAt": "Add", "States": {
        "Add": {"Type": "Pass", "Parameters": {"n.$": "States.MathAdd($.n, 1)"}, "Next": "More"},
        "More": {"Type": "Choice", "Choices": [{"Variable": "$.n", "NumericLessThan": 1, "Next": "Add"}], "Default": "Done"},
        "Done": {"Type": "Succeed"}}});
    super::waiting::define(target, "short", definition).await?;
    let (mut client, collection) = (target.h1().await?, format!("{API}/workflowruns"));
    let since = super::watch::revision_of(target, &collection).await?;
    let mut events = Lines::open(target, Version::H1, &format!("{collection}?watch=1&resourceVersion={since}")).await?;
    let mut times = Times::default();
    for n in 0..RUNS.0 + RUNS.1 {
        let name = format!("short.r-{n:05}");
        let run = json!({"apiVersion": "skiff.dev/v1", "kind": "WorkflowRun", "metadata": {"name": name},
            "spec": {"workflow": "short", "input": {"n": 0}}});
        let begun = Instant::now();
        client.call("POST", &collection, run.to_string().as_bytes()).await?.success()?;
        let end = async {
            loop {
                for line in events.next().await?.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                    let event: Event = serde_json::from_slice(line)?;
                    if event.object.metadata.name == name && event.object.status.is_some_and(|s| s.phase == "SUCCEEDED")
                    {
                        return anyhow::Ok(());
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, end).await.context("a short run did not end")??;
        if n >= RUNS.0 {
            times.add(begun.elapsed());
        }
    }
    Ok(times)
}
