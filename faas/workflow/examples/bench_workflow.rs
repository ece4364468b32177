//! How fast workflows are, on a server in this process: `cargo run --release -p skiff-workflow --example bench_workflow`. Functions
//! answer at once, so that what is measured is the engine and what it stores. Words behind `--` say which parts are run:
//! `latency starts tasks passes express map spread long waiting`; without one all of them but the last three, which are long.
//! With `alone` no steps are stored together.
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
use skiff_workflow::engine::{Engine, Members, NoFaults, Settings, Sharing};
use skiff_workflow::runs::{Runs as _, Start};
use skiff_workflow::task::functions::{FunctionAnswer, FunctionCall, FunctionError, Functions};
use tokio_util::sync::CancellationToken;

/// Answers what it gets.
struct Echo;

/// When functions were called: that is when the step after a timer began.
static CALLED: parking_lot::Mutex<Vec<Instant>> = parking_lot::Mutex::new(vec![]);

#[async_trait]
impl Functions for Echo {
    async fn call(&self, call: FunctionCall) -> Result<FunctionAnswer, FunctionError> {
        CALLED.lock().push(Instant::now());
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

    /// How many writes the store has had.
    async fn revision(&self) -> u64 {
        let runs = self.runs.list(&kube::api::ListParams::default().limit(1)).await.unwrap();
        runs.metadata.resource_version.and_then(|v| v.parse().ok()).unwrap_or_default()
    }

    /// 10,000 runs that wait: what they cost; and how soon an engine that starts when their time has passed has begun the next step
    /// of all, and has ended all.
    async fn waiting(&self, client: &kube::Client, stop: &CancellationToken) {
        let before = resident();
        let until = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(180);
        let input = json!({"until": until.to_string()});
        let starts = futures::stream::iter(0..10_000).map(|_| self.start("wait", &input)).buffer_unordered(16);
        let names: Vec<String> = starts.map(|(name, _)| name).collect().await;
        // What only waits has left memory, and its status is written.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let (held, used) = (resident().saturating_sub(before), busy());
        tokio::time::sleep(Duration::from_secs(10)).await;
        println!(
            "10,000 waiting runs: {held} MiB more resident with their objects, {:.1} % of a core",
            (busy() - used) * 10.0
        );
        stop.cancel();
        let left = until.duration_since(jiff::Timestamp::now()).try_into().unwrap_or(Duration::ZERO);
        println!("engine ended, {left:?} before their time");
        tokio::time::sleep(left).await;
        CALLED.lock().clear();
        let (began, revision) = (Instant::now(), self.revision().await);
        let settings = Settings {
            functions: Arc::new(Echo),
            faults: Arc::new(NoFaults),
            sharing: Sharing::default(),
            members: Members::Alone,
        };
        let next = CancellationToken::new();
        tokio::spawn(Engine::new(client.clone(), settings, next.clone()).run());
        let mut first = None;
        for name in &names {
            let at = self.end(name).await.duration_since(began).as_secs_f64();
            first = Some(first.map_or(at, |f: f64| f.min(at)));
        }
        let all = began.elapsed().as_secs_f64();
        let called: Vec<f64> = CALLED.lock().iter().map(|at| at.duration_since(began).as_secs_f64()).collect();
        let begun = |pick: fn(f64, f64) -> f64| called.iter().copied().reduce(pick).unwrap_or_default();
        println!(
            "a new engine, all of them due: the next step of the first begun after {:.2} s, of the last after {:.2} s; the first \
             ended after {:.2} s, the last after {all:.2} s; {} writes",
            begun(f64::min),
            begun(f64::max),
            first.unwrap_or_default(),
            self.revision().await - revision
        );
        next.cancel();
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

/// MiB of this process in memory, server and store among them.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default() / 1024
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let mut sharing = Sharing::default();
    if asked.iter().any(|a| a == "alone") {
        sharing.from = usize::MAX;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), Options::default()).unwrap();
    let server = Server::builder(Arc::new(store)).start().await.unwrap();
    let client = server.client(User::new("admin", &["system:masters"]));
    skiff_workflow::define(&client).await.unwrap();
    let stop = CancellationToken::new();
    let settings = Settings { functions: Arc::new(Echo), faults: Arc::new(NoFaults), sharing, members: Members::Alone };
    let engine = Engine::new(client.clone(), settings, stop.clone());
    tokio::spawn(Arc::clone(&engine).run());
    let asked: Vec<String> = asked.into_iter().filter(|a| a != "alone").collect();
    let runs = Api::<WorkflowRun>::namespaced(client.clone(), "default");
    let bench = Bench {
        engine,
        runs: runs.clone(),
        workflows: Api::namespaced(client.clone(), "default"),
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
    bench.define("long", counting(50_000), "standard").await;
    let wait = json!({"StartAt": "W", "States": {"W": {"Type": "Wait", "TimestampPath": "$.until", "Next": "T"},
        "T": {"Type": "Task", "Resource": "skiff:function:echo", "End": true}}});
    bench.define("wait", wait, "standard").await;
    bench.define("quick", counting(1000), "express").await;
    let items = json!({"StartAt": "M", "States": {"M": {"Type": "Map", "MaxConcurrency": 100, "End": true,
        "ItemProcessor": {"StartAt": "T", "States": {"T": {"Type": "Task", "Resource": "skiff:function:echo", "End": true}}}}}});
    let mut spread = items.clone();
    spread["States"]["M"]["ItemProcessor"]["ProcessorConfig"] =
        json!({"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"});
    bench.define("items", items, "standard").await;
    bench.define("spread", spread, "standard").await;
    bench.latency("short", &json!({"n": 0}), 20).await;
    let named = |part: &str| asked.iter().any(|a| a == part);
    let wanted = |part: &str| asked.is_empty() || named(part);

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
            let (before, revision) = (busy(), bench.revision().await);
            let (_, ended) = bench.many(workflow, &json!({"n": 0}), 200, 200).await;
            let rate = 200.0 * transitions / ended;
            println!(
                "200 runs of {transitions} {part}: {rate:.0} transitions/s, {:.2} cores busy, {} writes",
                (busy() - before) / ended,
                bench.revision().await - revision
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
    if named("spread") {
        let before = resident();
        let list: Vec<usize> = (0..10_000).collect();
        let (_, ended) = bench.many("spread", &json!(list), 1, 1).await;
        println!(
            "distributed Map of 10,000 items: {ended:.2} s, {} MiB more resident",
            resident().saturating_sub(before)
        );
    }
    if named("long") {
        let before = resident();
        let (_, ended) = bench.many("long", &json!({"n": 0}), 1, 1).await;
        println!("a run of 100,001 transitions: {ended:.2} s, {} MiB more resident", resident().saturating_sub(before));
    }
    if named("waiting") {
        bench.waiting(&client, &stop).await;
    }
    stop.cancel();
}
