//! Several engines share the runs of a cluster: each has its part, what one leaves others go on with, and nothing is done twice
//! but what was under way when an engine was killed.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, ListParams, PostParams};
use kube::runtime::watcher;
use serde_json::{Value, json};
use skiff_workflow::api::{Phase, WorkflowActivity, WorkflowLog, WorkflowRun, WorkflowSignal};
use skiff_workflow::engine::{MEMBER, NoFaults, Sharing};
use skiff_workflow::runs::{Answer, Runs as _, Start, Stored};

mod support;
use support::{PATIENCE, Running, World};

/// Each step for itself; all in the log, of which each object has room for one.
const WAYS: [(&str, Sharing); 2] =
    [("alone", Sharing { from: usize::MAX, bytes: 0 }), ("together", Sharing { from: 0, bytes: 1 })];

fn member(world: &World, sharing: Sharing) -> Running {
    world.member(Arc::new(NoFaults), sharing)
}

/// Waits until so many engines go by the same set.
async fn agreed(world: &World, engines: usize) {
    let leases = Api::<Lease>::namespaced(world.client.clone(), "kube-system");
    let sets = || async {
        let all = leases.list(&ListParams::default().labels(MEMBER)).await.unwrap().items;
        let mut sets: BTreeMap<String, usize> = BTreeMap::new();
        for lease in all {
            let set = lease.metadata.annotations.and_then(|a| a.get("states.skiff.dev/engines").cloned());
            *sets.entry(set.unwrap_or_default()).or_default() += 1;
        }
        // Of one that was killed the Lease may still be there, with another set.
        sets.values().any(|n| *n == engines)
    };
    until(&leases, "engines agree", sets).await;
}

/// Waits until something holds, looking after each change of some objects.
async fn until<K, F>(api: &Api<K>, what: &str, holds: impl Fn() -> F)
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + kube::Resource + Send + 'static,
    F: Future<Output = bool>,
{
    use futures::StreamExt as _;
    let mut changes = Box::pin(watcher(api.clone(), watcher::Config::default()));
    let found = async {
        while !holds().await {
            changes.next().await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

/// A chain of tasks that each add one.
fn adding(tasks: usize) -> Value {
    let states: serde_json::Map<String, Value> = (0..tasks)
        .map(|i| {
            let mut state = json!({"Type": "Task", "Resource": "skiff:function:add"});
            match i + 1 == tasks {
                true => state["End"] = json!(true),
                false => state["Next"] = json!(format!("S{}", i + 1)),
            }
            (format!("S{i}"), state)
        })
        .collect();
    json!({"StartAt": "S0", "States": states})
}

/// Each run ended once, with what a chain of so many tasks makes, and its history has everything.
async fn all_right(world: &World, names: &[String], tasks: usize) {
    for name in names {
        let status = world.over(name).await.status.unwrap();
        assert_eq!((status.phase, status.output), (Phase::Succeeded, Some(json!({"x": tasks}))), "{name}");
        let types = world.types(name).await;
        assert_eq!(types.len(), 2 + tasks * 5, "{name}: {types:?}");
    }
}

/// How often each key was called.
fn calls(world: &World) -> BTreeMap<String, usize> {
    let mut keys = BTreeMap::new();
    for key in world.functions.keys() {
        *keys.entry(key).or_default() += 1;
    }
    keys
}

async fn begin(world: &World, prefix: &str, runs: usize, tasks: usize) -> Vec<String> {
    let names: Vec<String> = (0..runs).map(|i| format!("{prefix}-{i}")).collect();
    for name in &names {
        world.start(name, &adding(tasks), &json!({"x": 0})).await;
    }
    names
}

#[tokio::test]
async fn engines_that_come_and_leave_do_nothing_twice() {
    let world = support::world().await;
    for (way, sharing) in WAYS {
        world.functions.calls.lock().clear();
        let first = member(&world, sharing);
        agreed(&world, 1).await;
        let names = begin(&world, way, 12, 60).await;
        world.functions.until(30).await;
        let second = member(&world, sharing);
        agreed(&world, 2).await;
        let third = member(&world, sharing);
        agreed(&world, 3).await;
        all_right(&world, &names, 60).await;
        let twice: Vec<_> = calls(&world).into_iter().filter(|(_, n)| *n > 1).collect();
        assert!(twice.is_empty(), "{way}: {twice:?}");
        for engine in [first, second, third] {
            engine.leave().await;
        }
        let leases = Api::<Lease>::namespaced(world.client.clone(), "kube-system");
        assert!(leases.list(&ListParams::default().labels(MEMBER)).await.unwrap().items.is_empty());
    }
}

#[tokio::test]
async fn runs_of_an_engine_that_is_killed_are_taken_over() {
    let world = support::world().await;
    for (way, sharing) in WAYS {
        world.functions.calls.lock().clear();
        let (first, second) = (member(&world, sharing), member(&world, sharing));
        agreed(&world, 2).await;
        let names = begin(&world, way, 12, 40).await;
        world.functions.until(60).await;
        first.kill().await;
        all_right(&world, &names, 40).await;
        let keys = calls(&world);
        assert_eq!(keys.len(), 12 * 40, "{way}");
        // Of each run that the dead one had at most one task was under way.
        let again = keys.values().filter(|n| **n > 1).count();
        assert!(again <= 12 && keys.values().all(|n| *n <= 2), "{way}: {again} of {keys:?}");
        second.leave().await;
    }
    // What the dead left in logs goes once somebody can be sure that it is on pages.
    let third = member(&world, Sharing::default());
    let logs = world.api::<WorkflowLog>();
    let left = || async { logs.list(&ListParams::default()).await.unwrap().items.is_empty() };
    until(&logs, "logs are cleared", left).await;
    third.kill().await;
}

#[tokio::test]
async fn waiting_runs_are_shared_and_end_on_time() {
    let world = support::world().await;
    let first = member(&world, Sharing::default());
    agreed(&world, 1).await;
    let wait = json!({"StartAt": "W", "States": {"W": {"Type": "Wait", "Seconds": 8, "Next": "A"},
        "A": {"Type": "Task", "Resource": "skiff:function:add", "End": true}}});
    let names: Vec<String> = (0..8).map(|i| format!("w{i}")).collect();
    for name in &names {
        world.start(name, &wait, &json!({"x": 0})).await;
    }
    for name in &names {
        world.phase(name, Phase::Running).await;
    }
    // They have left memory by the time that another comes.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let second = member(&world, Sharing::default());
    agreed(&world, 2).await;
    first.kill().await;
    for name in &names {
        assert_eq!(world.over(name).await.status.unwrap().output, Some(json!({"x": 1})), "{name}");
    }
    assert!(calls(&world).values().all(|n| *n == 1), "{:?}", calls(&world));
    second.kill().await;
}

#[tokio::test]
async fn a_limit_is_one_over_all_engines() {
    let world = support::world().await;
    let engines = [member(&world, Sharing::default()), member(&world, Sharing::default())];
    agreed(&world, 2).await;
    world.workflow("few", adding(3), json!({"concurrency": {"maxRuns": 2}})).await;
    let now = Arc::new(parking_lot::Mutex::new((BTreeMap::<String, usize>::new(), 0)));
    let stored = Stored::new(world.client.clone());
    let hold = Arc::new(tokio::sync::Notify::new());
    *world.functions.hold.lock() = Some(Arc::clone(&hold));
    let mut names = vec![];
    for i in 0..9 {
        let start = Start {
            namespace: "default".into(),
            workflow: "few".into(),
            name: Some(format!("n{i}")),
            input: "{\"x\":0}".into(),
            ..Start::default()
        };
        names.push(stored.start(start).await.unwrap().run);
    }
    // Two are called and held; nobody else gets so far.
    world.functions.until(2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.functions.calls.lock().len(), 2);
    *world.functions.hold.lock() = None;
    let counted = Arc::clone(&now);
    *world.functions.does.lock() = Some(Box::new(move |_, call| {
        let run = call.headers.iter().find(|(k, _)| k == "x-skiff-run").unwrap().1.clone();
        let mut counted = counted.lock();
        let (runs, most) = &mut *counted;
        let done = runs.entry(run).or_default();
        *done += 1;
        *most = (*most).max(runs.values().filter(|n| **n < 3).count());
        None
    }));
    hold.notify_waiters();
    for name in &names {
        assert_eq!(world.over(name).await.status.unwrap().phase, Phase::Succeeded, "{name}");
    }
    let most = now.lock().1;
    assert!(most <= 2, "{most} runs went on at a time");
    for engine in engines {
        engine.leave().await;
    }
}

#[tokio::test]
async fn workers_and_readers_need_not_know_who_drives_a_run() {
    let world = support::world().await;
    let engines = [member(&world, WAYS[1].1), member(&world, WAYS[1].1)];
    agreed(&world, 2).await;
    let activity = WorkflowActivity::new("work", Default::default());
    world.api::<WorkflowActivity>().create(&PostParams::default(), &activity).await.unwrap();
    let definition = json!({"StartAt": "A", "States": {
        "A": {"Type": "Task", "Resource": "skiff:function:add", "Next": "T"},
        "T": {"Type": "Task", "Resource": "skiff:activity:work", "End": true}}});
    let long = "x".repeat(20_000);
    let names: Vec<String> = (0..8).map(|i| format!("a{i}")).collect();
    *world.functions.does.lock() = Some(Box::new(|_, call| {
        let payload: Value = serde_json::from_str(&call.payload).unwrap();
        Some(Ok(support::answer(200, &payload)))
    }));
    for (i, name) in names.iter().enumerate() {
        let input = if i == 0 { json!({"x": i, "long": long}) } else { json!({"x": i}) };
        world.start(name, &definition, &input).await;
    }
    // All by workers of one engine, whichever drives the runs.
    let mut seen = BTreeSet::new();
    for _ in &names {
        let polled = engines[0].engine.poll_activity("default", "work", Some("w"), PATIENCE).await.unwrap();
        let task = polled.unwrap_or_else(|| panic!("a worker waits in vain after {seen:?}"));
        let input: Value = serde_json::from_str(&task.input).unwrap();
        assert!(seen.insert(input["x"].as_u64().unwrap()), "a task went to two workers");
        assert_eq!(input["long"].is_string(), input["x"] == 0);
        // What is told is stored: the history has the worker, at either engine.
        for engine in &engines {
            let run = format!("a{}", input["x"]);
            let events = engine.engine.history("default", &run, None, false, usize::MAX).await.unwrap().events;
            assert!(events.iter().any(|e| e["type"] == "ActivityStarted"), "{run}: {events:?}");
        }
        engines[1].engine.signal(&task.token, Answer::Success("{\"done\":1}".into())).await.unwrap();
    }
    for name in &names {
        assert_eq!(world.over(name).await.status.unwrap().output, Some(json!({"done": 1})), "{name}");
    }
    // Nobody has more, and nothing that was asked stays.
    let none = engines[0].engine.poll_activity("default", "work", None, Duration::from_millis(300)).await.unwrap();
    assert_eq!(none, None);
    let signals = world.api::<WorkflowSignal>();
    let left = || async { signals.list(&ListParams::default()).await.unwrap().items.is_empty() };
    until(&signals, "what was asked is deleted", left).await;
    for engine in engines {
        engine.leave().await;
    }
}

#[tokio::test]
async fn each_engine_has_its_part_and_one_occasion_is_one_run() {
    let world = support::world().await;
    let engines = [member(&world, Sharing::default()), member(&world, Sharing::default())];
    agreed(&world, 2).await;
    let triggers = json!({"triggers": [{"name": "often", "cron": {"schedule": "@every 1s", "input": {"x": 0}}}]});
    for i in 0..4 {
        world.workflow(&format!("wf{i}"), adding(1), triggers.clone()).await;
    }
    let runs = world.api::<WorkflowRun>();
    let enough = || async { runs.list(&ListParams::default()).await.unwrap().items.len() >= 16 };
    until(&runs, "cron starts runs", enough).await;
    let all = runs.list(&ListParams::default()).await.unwrap().items;
    let mut times = BTreeSet::new();
    for run in &all {
        let name = run.metadata.name.clone().unwrap();
        let at = run.metadata.creation_timestamp.clone().unwrap();
        times.insert((run.spec.workflow.clone(), at));
        assert_eq!(world.over(&name).await.status.unwrap().output, Some(json!({"x": 1})));
    }
    // One each second, or two where one was late.
    assert!(all.len() <= times.len() + 4, "{} runs at {} times", all.len(), times.len());
    for engine in engines {
        engine.leave().await;
    }
}
