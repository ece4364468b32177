//! How fast workflows are, on a server in this process: `cargo run --release -p skiff-workflow --example bench`. Functions
//! answer at once, so that what is measured is the engine and what it stores. Words behind `--` say which parts are run:
//! `latency starts tasks passes express map`; without one all of them.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt as _;
use kube::api::{Api, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_storage::embedded::{Embedded, Options};
use skiff_workflow::api::{Workflow, WorkflowRun};
use skiff_workflow::engine::{Engine, NoFaults, Settings};
use skiff_workflow::runs::{Runs as _, Start};
use skiff_workflow::task::functions::{FunctionAnswer, FunctionCall, FunctionError, Functions};
use tokio_util::sync::CancellationToken;

/// Answers what it gets.
struct Echo;

#[async_trait]
impl Functions for Echo {
    async fn call(&self, call: FunctionCall) -> Result<FunctionAnswer, FunctionError> {
        Ok(FunctionAnswer { status: 200, body: call.payload.into_bytes() })
    }
}

fn chain(tasks: usize) -> Value {
    let task = |i: usize| {
        let mut task = json!({"Type": "Task", "Resource": "skiff:function:echo"});
        if i + 1 == tasks {
            task["End"] = json!(true)
        } else {
            task["Next"] = json!(format!("T{}", i + 1))
        }
        (format!("T{i}"), task)
    };
    let states: serde_json::Map<String, Value> = (0..tasks).map(task).collect();
    json!({"StartAt": "T0", "States": states})
}

fn counting(to: usize) -> Value {
    json!({"StartAt": "Inc", "States": {
        "Inc": {"Type": "Pass", "Parameters": {"n.$": "States.MathAdd($.n, 1)"}, "Next": "More"},
        "More": {"Type": "Choice", "Choices": [{"Variable": "$.n", "NumericLessThan": to, "Next": "Inc"}], "Default": "D"},
        "D": {"Type": "Succeed"}}})
}

struct Bench {
    engine: Arc<Engine>,
    runs: Api<WorkflowRun>,
    workflows: Api<Workflow>,
    ends: Arc<parking_lot::Mutex<std::collections::HashMap<String, Instant>>>,
    ended: Arc<tokio::sync::Notify>,
}

impl Bench {
    async fn define(&self, name: &str, definition: Value, kind: &str) {
        let whole = json!({"apiVersion": "skiff.dev/v1", "kind": "Workflow", "metadata": {"name": name},
            "spec": {"definition": definition, "type": kind}});
        self.workflows.create(&PostParams::default(), &serde_json::from_value(whole).unwrap()).await.unwrap();
    }

    async fn start(&self, workflow: &str, input: &Value) -> (String, Instant) {
        let began = Instant::now();
        let start = Start {
            namespace: "default".into(),
            workflow: workflow.into(),
            input: input.to_string(),
            ..Start::default()
        };
        (self.engine.start(start).await.unwrap().run, began)
    }

    async fn end(&self, run: &str) -> Instant {
        loop {
            let ended = self.ended.notified();
            if let Some(at) = self.ends.lock().get(run) {
                return *at;
            }
            let _ = tokio::time::timeout(Duration::from_millis(50), ended).await;
        }
    }

    /// Starts so many runs, so many at a time, and waits for them. Seconds to the last start, and to the last end.
    async fn many(&self, workflow: &str, input: &Value, runs: usize, at_once: usize) -> (f64, f64) {
        let began = Instant::now();
        let starts = futures::stream::iter(0..runs).map(|_| self.start(workflow, input)).buffer_unordered(at_once);
        let names: Vec<(String, Instant)> = starts.collect().await;
        let started = began.elapsed().as_secs_f64();
        for (name, _) in &names {
            self.end(name).await;
        }
        (started, began.elapsed().as_secs_f64())
    }

    /// Median and 99th percentile of milliseconds from start to seen finished, one after the other.
    async fn latency(&self, workflow: &str, input: &Value, runs: usize) -> (f64, f64) {
        let mut all = vec![];
        for _ in 0..runs {
            let (name, began) = self.start(workflow, input).await;
            all.push(self.end(&name).await.duration_since(began).as_secs_f64() * 1000.0);
        }
        all.sort_by(f64::total_cmp);
        (all[all.len() / 2], all[all.len() * 99 / 100])
    }
}

/// Seconds of CPU that this process has used: the fourteenth and fifteenth field of its line, in hundredths.
fn busy() -> f64 {
    let line = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = line.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
    fields.filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() / 100.0
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), Options::default()).unwrap();
    let server = Server::builder(Arc::new(store)).start().await.unwrap();
    let client = server.client(User::new("admin", &["system:masters"]));
    skiff_workflow::define(&client).await.unwrap();
    let stop = CancellationToken::new();
    let settings = Settings { functions: Arc::new(Echo), faults: Arc::new(NoFaults) };
    let engine = Engine::new(client.clone(), settings, stop.clone());
    tokio::spawn(Arc::clone(&engine).run());
    let runs = Api::<WorkflowRun>::namespaced(client.clone(), "default");
    let bench = Bench {
        engine,
        runs: runs.clone(),
        workflows: Api::namespaced(client, "default"),
        ends: Arc::default(),
        ended: Arc::default(),
    };
    let (ends, ended) = (Arc::clone(&bench.ends), Arc::clone(&bench.ended));
    tokio::spawn(async move {
        let mut events = Box::pin(watcher(bench.runs.clone(), watcher::Config::default()).applied_objects());
        while let Some(Ok(run)) = events.next().await {
            if run.status.is_some_and(|s| s.phase.is_over()) {
                ends.lock().insert(run.metadata.name.unwrap_or_default(), Instant::now());
                ended.notify_waiters();
            }
        }
    });
    let bench = Bench { runs, ..bench };
    bench.define("short", counting(1), "standard").await;
    bench.define("one", chain(1), "standard").await;
    bench.define("eleven", chain(11), "standard").await;
    bench.define("count", counting(100), "standard").await;
    bench.define("quick", counting(1000), "express").await;
    let items = json!({"StartAt": "M", "States": {"M": {"Type": "Map", "MaxConcurrency": 100, "End": true,
        "ItemProcessor": {"StartAt": "T", "States": {"T": {"Type": "Task", "Resource": "skiff:function:echo", "End": true}}}}}});
    bench.define("items", items, "standard").await;
    bench.latency("short", &json!({"n": 0}), 20).await;
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |part: &str| asked.is_empty() || asked.iter().any(|a| a == part);

    if wanted("latency") {
        let (p50, p99) = bench.latency("short", &json!({"n": 0}), 300).await;
        println!("Pass, Choice, Succeed, start to finished: p50 {p50:.2} ms, p99 {p99:.2} ms");
        let one = bench.latency("one", &json!({"n": 0}), 300).await;
        let eleven = bench.latency("eleven", &json!({"n": 0}), 100).await;
        println!("a Task step: p50 {:.2} ms, p99 {:.2} ms", (eleven.0 - one.0) / 10.0, (eleven.1 - one.1) / 10.0);
    }
    if wanted("starts") {
        let (started, _) = bench.many("short", &json!({"n": 0}), 1000, 16).await;
        println!("starts: {:.0}/s", 1000.0 / started);
    }
    for (part, workflow, transitions) in [("tasks", "eleven", 11.0), ("passes", "count", 201.0)] {
        if wanted(part) {
            let before = busy();
            let (_, ended) = bench.many(workflow, &json!({"n": 0}), 200, 200).await;
            let rate = 200.0 * transitions / ended;
            println!(
                "200 runs of {transitions} {part}: {rate:.0} transitions/s, {:.2} cores busy",
                (busy() - before) / ended
            );
        }
    }
    if wanted("express") {
        let began = Instant::now();
        for _ in 0..20 {
            let start = Start {
                namespace: "default".into(),
                workflow: "quick".into(),
                input: "{\"n\":0}".into(),
                ..Start::default()
            };
            bench.engine.start_sync(start).await.unwrap();
        }
        println!("express: {:.0} transitions/s", 20.0 * 2001.0 / began.elapsed().as_secs_f64());
    }
    if wanted("map") {
        let list: Vec<usize> = (0..10_000).collect();
        let (_, ended) = bench.many("items", &json!(list), 1, 1).await;
        println!("Map of 10,000 items, 100 at a time: {ended:.2} s");
    }
    stop.cancel();
}
