//! Many runs at once: those that wait when an engine ends go on under the next one, each once, and without being read one by one.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use skiff_workflow::api::{Phase, WorkflowRun};
use skiff_workflow::engine::{NoFaults, Sharing};
use support::{PATIENCE, Running, World, world};

/// So many that most are not read one by one, also where an engine hears of them in two parts.
const RUNS: usize = 300;
/// Until when they wait: enough for all of them to be begun.
const WAIT: SignedDuration = SignedDuration::from_secs(12);

fn name(n: usize) -> String {
    format!("many-{n:03}")
}

/// Waits until so many runs are in a phase.
async fn until(runs: &Api<WorkflowRun>, phase: Phase, count: usize) {
    let mut events = Box::pin(kube::runtime::watcher(runs.clone(), kube::runtime::watcher::Config::default()));
    let reached = async {
        loop {
            let all = runs.list(&ListParams::default()).await.unwrap().items;
            if all.iter().filter(|r| r.status.as_ref().is_some_and(|s| s.phase == phase)).count() == count {
                return;
            }
            events.next().await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("not {count} runs are {phase:?}"));
}

/// The store's version, and how many pages were read one by one so far.
async fn counts(world: &World) -> (u64, f64) {
    let list = world.api::<WorkflowRun>().list(&ListParams::default().limit(1)).await.unwrap();
    let request = http::Request::get("/metrics").body(vec![]).unwrap();
    let metrics = world.client.request_text(request).await.unwrap();
    let read = |line: &&str| {
        line.starts_with("apiserver_request_total")
            && line.contains("resource=\"workflowhistories\"")
            && line.contains("verb=\"GET\"")
    };
    let values = metrics.lines().filter(read).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    (list.metadata.resource_version.unwrap().parse().unwrap(), values.sum())
}

/// Ends one engine while all wait, and starts the next when all are due.
async fn go_on_together(world: &World, engine: impl Fn() -> Running) {
    let definition = json!({"StartAt": "W", "States": {"W": {"Type": "Wait", "TimestampPath": "$.until", "Next": "T"},
        "T": {"Type": "Task", "Resource": "skiff:function:add", "End": true}}});
    let first = engine();
    let due = Timestamp::now() + WAIT;
    let starts = (0..RUNS).map(|n| {
        let definition = &definition;
        async move { world.start(&name(n), definition, &json!({"until": due.to_string(), "x": n})).await }
    });
    futures::stream::iter(starts).buffer_unordered(8).collect::<Vec<_>>().await;
    let runs = world.api::<WorkflowRun>();
    until(&runs, Phase::Running, RUNS).await;
    first.leave().await;
    assert!(Timestamp::now() < due, "the runs were due before all of them were begun");
    assert!(world.functions.calls.lock().is_empty());
    // What is asked of a run while there is no engine is read from its object.
    let stop = json!({"spec": {"stop": {"error": "Enough"}}});
    runs.patch(&name(7), &PatchParams::default(), &Patch::Merge(stop)).await.unwrap();
    world.start("late", &definition, &json!({"until": due.to_string(), "x": 1000})).await;
    tokio::time::sleep(Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default()).await;
    let (version, read) = counts(world).await;
    let second = engine();
    until(&runs, Phase::Succeeded, RUNS).await;
    until(&runs, Phase::Aborted, 1).await;
    let (written, read_since) = counts(world).await;
    // Two steps and a status for each at most; an engine that shares writes its Lease, too.
    let writes = written - version;
    assert!(writes <= 3 * RUNS as u64 + 50, "{writes} writes");
    assert!(read_since - read <= RUNS as f64 / 2.0, "{} pages were read one by one", read_since - read);
    let mut called: Vec<i64> = vec![];
    for call in world.functions.calls.lock().iter() {
        called.push(serde_json::from_str::<Value>(&call.payload).unwrap()["x"].as_i64().unwrap());
    }
    called.sort_unstable();
    let expected: Vec<i64> = (0..RUNS as i64).filter(|n| *n != 7).chain([1000]).collect();
    assert_eq!(called, expected, "each goes on once");
    for n in [0, 1, RUNS - 1] {
        let run = runs.get(&name(n)).await.unwrap().status.unwrap();
        assert_eq!(run.output, Some(json!({"x": n + 1})));
        assert_eq!(world.types(&name(n)).await.iter().filter(|t| *t == "WaitStateExited").count(), 1);
    }
    assert_eq!(runs.get(&name(7)).await.unwrap().status.unwrap().error.as_deref(), Some("Enough"));
    second.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_wait_go_on_together() {
    let world = world().await;
    go_on_together(&world, || world.engine()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_they_do_where_engines_share() {
    let world = world().await;
    go_on_together(&world, || world.member(std::sync::Arc::new(NoFaults), Sharing::default())).await;
}
