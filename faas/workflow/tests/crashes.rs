//! An engine ends as if it was killed, at each point around what must be stored, in runs of every type of state; another
//! takes over. The history must come out the same, but for attempts and times.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt as _;
use kube::api::PostParams;
use kube::runtime::wait::await_condition;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_workflow::api::{Phase, WorkflowActivity, WorkflowLog};
use skiff_workflow::engine::{Faults, NoFaults, Point, Sharing};
use skiff_workflow::runs::{Answer, Runs as _, Stored};

mod support;

/// Ends the engine when a point is reached for the n-th time.
struct Once {
    point: Point,
    after: usize,
    reached: AtomicUsize,
}

impl Faults for Once {
    fn reached(&self, point: Point, _: &str) -> bool {
        point == self.point && self.reached.fetch_add(1, Ordering::SeqCst) == self.after
    }
}

/// The same for one run only.
struct OnceOf {
    run: String,
    once: Once,
}

impl Faults for OnceOf {
    fn reached(&self, point: Point, run: &str) -> bool {
        run == self.run && self.once.reached(point, run)
    }
}

/// A run that is broken off at a point, once; without a point it is not.
fn once_at(point: Option<Point>, run: &str) -> Arc<dyn Faults> {
    match point {
        Some(point) => {
            let once = Once { point, after: 0, reached: AtomicUsize::new(0) };
            Arc::new(OnceOf { run: run.to_owned(), once })
        }
        None => Arc::new(NoFaults),
    }
}

/// Each step for itself; all in the log, of which each object has room for one.
const WAYS: [Sharing; 2] = [Sharing { from: usize::MAX, bytes: 0 }, Sharing { from: 0, bytes: 1 }];

/// Waits until an engine ends at its point, or the run is over without coming there; whether it was broken off.
async fn broken_off(world: &support::World, engine: support::Running, run: &str) -> bool {
    let stop = engine.stop.clone();
    let broken = tokio::select! {
        () = stop.cancelled() => true,
        _ = world.over(run) => false,
    };
    engine.kill().await;
    broken
}

fn single(name: &str, state: Value) -> Value {
    let mut state = state;
    state["End"] = json!(true);
    json!({"StartAt": name, "States": {name: state}})
}

fn add() -> Value {
    json!({"Type": "Task", "Resource": "skiff:function:add"})
}

/// A Map whose items are executions of their own.
fn spread(kind: &str) -> Value {
    let mut processor = single("A", add());
    processor["ProcessorConfig"] = json!({"Mode": "DISTRIBUTED", "ExecutionType": kind});
    single("M", json!({"Type": "Map", "MaxConcurrency": 2, "ItemProcessor": processor}))
}

/// Definitions with every type of state that has to do with the outside, inputs and outputs.
fn table() -> Vec<(&'static str, Value, Value, Result<Value, &'static str>)> {
    let chain = json!({"StartAt": "A", "States": {
        "A": {"Type": "Task", "Resource": "skiff:function:add", "Next": "B"},
        "B": {"Type": "Choice", "Choices": [{"Variable": "$.x", "NumericEquals": 2, "Next": "C"}], "Default": "D"},
        "C": {"Type": "Pass", "Next": "E"},
        "D": {"Type": "Fail"},
        "E": {"Type": "Task", "Resource": "skiff:function:add", "Next": "F"},
        "F": {"Type": "Succeed"}}});
    let retry = json!({"Type": "Task", "Resource": "skiff:function:fail",
        "Retry": [{"ErrorEquals": ["E"], "IntervalSeconds": 1, "MaxAttempts": 1}],
        "Catch": [{"ErrorEquals": ["E"], "Next": "Y", "ResultPath": null}], "Next": "Y"});
    let retry = json!({"StartAt": "X", "States": {"X": retry, "Y": {"Type": "Pass", "End": true}}});
    vec![
        ("chain", chain, json!({"x": 1}), Ok(json!({"x": 3}))),
        ("steps", adding(5), json!({"x": 0}), Ok(json!({"x": 5}))),
        ("wait", single("W", json!({"Type": "Wait", "Seconds": 1})), json!({"x": 1}), Ok(json!({"x": 1}))),
        ("retry", retry, json!({"error": "E"}), Ok(json!({"error": "E"}))),
        (
            "fails",
            single("X", json!({"Type": "Task", "Resource": "skiff:function:fail"})),
            json!({"error": "E"}),
            Err("E"),
        ),
        (
            "parallel",
            single("P", json!({"Type": "Parallel", "Branches": [single("A", add()), single("B", add())]})),
            json!({"x": 1}),
            Ok(json!([{"x": 2}, {"x": 2}])),
        ),
        (
            "map",
            single("M", json!({"Type": "Map", "MaxConcurrency": 2, "ItemProcessor": single("A", add())})),
            json!([{"x": 1}, {"x": 2}, {"x": 3}]),
            Ok(json!([{"x": 2}, {"x": 3}, {"x": 4}])),
        ),
        (
            "standard",
            spread("STANDARD"),
            json!([{"x": 1}, {"x": 2}, {"x": 3}]),
            Ok(json!([{"x": 2}, {"x": 3}, {"x": 4}])),
        ),
        (
            "express",
            spread("EXPRESS"),
            json!([{"x": 1}, {"x": 2}, {"x": 3}]),
            Ok(json!([{"x": 2}, {"x": 3}, {"x": 4}])),
        ),
    ]
}

/// How often each type of event is there: what does not depend on which of several came first.
fn counted(types: &[String]) -> BTreeMap<String, usize> {
    types.iter().fold(BTreeMap::new(), |mut all, t| {
        *all.entry(t.clone()).or_default() += 1;
        all
    })
}

/// A row of the table, killed at each point; how many engines were, and where.
async fn killed(
    name: &str,
    definition: &Value,
    input: &Value,
    output: &Result<Value, &str>,
) -> (usize, HashSet<Point>) {
    let world = support::world().await;
    let engine = world.engine();
    world.start(name, definition, input).await;
    world.over(name).await;
    let want = world.types(name).await;
    engine.kill().await;
    let (mut broken, mut points) = (0, HashSet::new());
    let cases = Point::ALL.into_iter().flat_map(|point| [0, 1].map(|after| (point, after)));
    for (sharing, (point, after)) in WAYS.into_iter().flat_map(|way| cases.clone().map(move |case| (way, case))) {
        let way = if sharing.from == 0 { "together" } else { "alone" };
        if way == "alone" && matches!(point, Point::Shared | Point::Full | Point::Taken) {
            continue;
        }
        let run = format!("{name}-{point:?}-{after}-{way}").to_lowercase();
        world.functions.calls.lock().clear();
        let faults = Arc::new(Once { point, after, reached: AtomicUsize::new(0) });
        let first = world.engine_sharing(Arc::clone(&faults) as Arc<dyn Faults>, sharing);
        world.start(&run, definition, input).await;
        // It ends at the point, or the run does not come there.
        if broken_off(&world, first, &run).await {
            broken += 1;
            points.insert(point);
        }
        let second = world.engine_sharing(Arc::new(NoFaults), sharing);
        let status = world.over(&run).await.status.unwrap();
        match output {
            Ok(output) => {
                assert_eq!((status.phase, status.output.as_ref()), (Phase::Succeeded, Some(output)), "{run}")
            }
            Err(error) => {
                assert_eq!((status.phase, status.error.as_deref()), (Phase::Failed, Some(*error)), "{run}")
            }
        }
        let types = world.types(&run).await;
        if matches!(name, "parallel" | "map") {
            assert_eq!(counted(&types), counted(&want), "{run}");
        } else {
            assert_eq!(types, want, "{run}");
        }
        let ids: Vec<i64> = world.history(&run).await.iter().map(|e| e["id"].as_i64().unwrap()).collect();
        assert_eq!(ids, (1..=i64::try_from(types.len()).unwrap()).collect::<Vec<_>>(), "{run}");
        // Done again is only what was under way, and under the same key.
        let mut keys: BTreeMap<String, usize> = BTreeMap::new();
        for key in world.functions.keys() {
            *keys.entry(key).or_default() += 1;
        }
        assert!(keys.values().all(|n| *n <= 2), "{run}: {keys:?}");
        second.kill().await;
    }
    (broken, points)
}

#[tokio::test]
async fn whatever_is_killed_is_taken_up() {
    let rows = table();
    // Each in a world of its own, all at once: most of the time they wait.
    let killed = rows.iter().map(|(name, definition, input, output)| killed(name, definition, input, output));
    let killed = futures::future::join_all(killed).await;
    let broken: usize = killed.iter().map(|(broken, _)| broken).sum();
    assert!(broken > 100, "only {broken} engines were killed");
    let missed: Vec<Point> =
        Point::ALL.into_iter().filter(|p| !killed.iter().any(|(_, points)| points.contains(p))).collect();
    assert!(missed.is_empty(), "nothing came to {missed:?}");
}

/// Tasks that somebody else ends: by a token, by fetching the work, by what becomes of an object.
fn answered() -> Vec<(&'static str, Value)> {
    let token = json!({"Type": "Task", "Resource": "arn:aws:states:::lambda:invoke.waitForTaskToken",
        "Parameters": {"FunctionName": "echo", "Payload": {"token.$": "$$.Task.Token"}}});
    let object = json!({"apiVersion": "skiff.dev/v1", "kind": "WorkflowRun", "metadata": {},
        "spec": {"definition": single("P", json!({"Type": "Pass"}))}});
    let object = json!({"Type": "Task", "Resource": "skiff:kubernetes:create.sync", "Parameters": {"Object": object},
        "ResultPath": null});
    vec![
        ("token", single("T", token)),
        ("activity", single("T", json!({"Type": "Task", "Resource": "skiff:activity:work"}))),
        ("object", single("T", object)),
    ]
}

#[tokio::test]
async fn what_others_answer_is_taken_up() {
    let world = support::world().await;
    let activity = WorkflowActivity::new("work", Default::default());
    world.api::<WorkflowActivity>().create(&PostParams::default(), &activity).await.unwrap();
    let rule =
        json!({"apiGroups": ["skiff.dev"], "resources": ["workflowruns"], "verbs": ["get", "list", "watch", "create"]});
    world.allow("runs", rule).await;
    let stored = Stored::new(world.client.clone());
    let mut broken = 0;
    for (name, definition) in answered() {
        let mut want: Option<Vec<String>> = None;
        for point in [None].into_iter().chain(Point::ALL.map(Some)) {
            let run = format!("{name}-{point:?}").to_lowercase().replace(['(', ')'], "");
            world.functions.calls.lock().clear();
            let first = world.engine_with(once_at(point, &run));
            let engine = Mutex::new(Arc::clone(&first.engine));
            world.start(&run, &definition, &json!({})).await;
            let answer = async {
                match name {
                    "token" => {
                        world.functions.until(1).await;
                        world.told(&run, "TaskSubmitted").await;
                        let payload: Value = serde_json::from_str(&world.functions.calls.lock()[0].payload).unwrap();
                        stored.signal(payload["token"].as_str().unwrap(), Answer::Success("1".into())).await.unwrap();
                    }
                    "activity" => loop {
                        let now = Arc::clone(&engine.lock());
                        let wait = std::time::Duration::from_millis(500);
                        if let Ok(Some(task)) = now.poll_activity("default", "work", None, wait).await {
                            stored.signal(&task.token, Answer::Success("1".into())).await.unwrap();
                            break;
                        }
                    },
                    _ => {}
                }
            };
            let taken_up = async {
                broken += usize::from(broken_off(&world, first, &run).await);
                let second = world.engine();
                *engine.lock() = Arc::clone(&second.engine);
                let status = world.over(&run).await.status.unwrap();
                assert_eq!(status.phase, Phase::Succeeded, "{run}: {:?}", status.cause);
                second.kill().await;
            };
            tokio::join!(answer, taken_up);
            let types = world.types(&run).await;
            assert_eq!(&types, want.get_or_insert_with(|| types.clone()), "{run}");
        }
    }
    assert!(broken > 12, "only {broken} engines were killed");
}

/// A chain of tasks that each add one.
fn adding(tasks: usize) -> Value {
    let states: serde_json::Map<String, Value> = (0..tasks)
        .map(|i| {
            let next = if i + 1 == tasks { json!({"End": true}) } else { json!({"Next": format!("S{}", i + 1)}) };
            let mut state = add();
            state.as_object_mut().unwrap().extend(next.as_object().unwrap().clone());
            (format!("S{i}"), state)
        })
        .collect();
    json!({"StartAt": "S0", "States": states})
}

#[tokio::test]
async fn two_engines_cannot_both_write_a_run() {
    let world = support::world().await;
    for (way, sharing) in ["alone", "together"].into_iter().zip(WAYS) {
        let first = world.engine_sharing(Arc::new(NoFaults), sharing);
        let second = world.engine_sharing(Arc::new(NoFaults), sharing);
        for i in 0..5 {
            world.start(&format!("{way}-{i}"), &adding(20), &json!({"x": 0})).await;
        }
        for i in 0..5 {
            let run = format!("{way}-{i}");
            let status = world.over(&run).await.status.unwrap();
            assert_eq!((status.phase, status.output), (Phase::Succeeded, Some(json!({"x": 20}))), "{run}");
            let types = world.types(&run).await;
            assert_eq!(types.len(), 2 + 20 * 5, "{run}: {types:?}");
        }
        first.kill().await;
        second.kill().await;
    }
}

/// What the log of the runs has.
async fn log(world: &support::World) -> WorkflowLog {
    world.api::<WorkflowLog>().get(WorkflowLog::HEAD).await.unwrap()
}

#[tokio::test]
async fn whoever_lost_the_log_writes_pages() {
    let world = support::world().await;
    let engine = world.engine_sharing(Arc::new(NoFaults), WAYS[1]);
    world.start("r", &adding(200), &json!({"x": 0})).await;
    world.told("r", "LambdaFunctionSucceeded").await;
    // Another takes the log, and nobody reads what is in it: what was stored there is known to the engine.
    let logs = world.api::<WorkflowLog>();
    loop {
        let mut head = log(&world).await;
        head.spec.taken += 1;
        head.spec.writer = "another/1".to_owned();
        match logs.replace(WorkflowLog::HEAD, &PostParams::default(), &head).await {
            Ok(_) => break,
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(e) => panic!("{e}"),
        }
    }
    let status = world.over("r").await.status.unwrap();
    assert_eq!((status.phase, status.output), (Phase::Succeeded, Some(json!({"x": 200}))));
    assert_eq!(world.types("r").await.len(), 2 + 200 * 5);
    assert_eq!(log(&world).await.spec.writer, "another/1", "it is not taken back in a hurry");
    // Each step was done once: nobody was asked to take the run over.
    assert_eq!(world.functions.calls.lock().len(), 200);
    engine.kill().await;
}

#[tokio::test]
async fn who_asks_the_engine_sees_what_is_only_in_the_log() {
    let world = support::world().await;
    let engine = world.engine_sharing(Arc::new(NoFaults), WAYS[1]);
    for i in 0..10 {
        let run = format!("r{i}");
        let before = world.functions.calls.lock().len();
        let mut definition = adding(3);
        definition["States"]["S2"]["Resource"] = json!("arn:aws:states:::lambda:invoke.waitForTaskToken");
        definition["States"]["S2"]["Parameters"] = json!({"FunctionName": "echo", "Payload": {"t.$": "$$.Task.Token"}});
        world.start(&run, &definition, &json!({"x": 0})).await;
        world.functions.until(before + 3).await;
        // The third call is made when that it is to be made is stored.
        let events = engine.engine.history("default", &run, None, false, usize::MAX).await.unwrap().events;
        let scheduled = events.iter().filter(|e| e["type"].as_str().unwrap().ends_with("Scheduled")).count();
        assert_eq!(scheduled, 3, "{events:?}");
    }
    engine.kill().await;
}

#[tokio::test]
async fn many_runs_share_writes_and_leave_nothing_in_the_log() {
    let world = support::world().await;
    let first = world.engine();
    let names: Vec<String> = (0..60).map(|i| format!("r{i}")).collect();
    let definition = adding(12);
    let hold = Arc::new(tokio::sync::Notify::new());
    *world.functions.hold.lock() = Some(Arc::clone(&hold));
    for name in &names {
        world.start(name, &definition, &json!({"x": 0})).await;
    }
    // All answers come at once.
    world.functions.until(names.len()).await;
    *world.functions.hold.lock() = None;
    hold.notify_waiters();
    let shared = await_condition(world.api::<WorkflowLog>(), WorkflowLog::HEAD, |log: Option<&WorkflowLog>| {
        log.is_some_and(|l| l.spec.steps.len() > 2)
    });
    tokio::time::timeout(support::PATIENCE, shared).await.unwrap().unwrap();
    first.kill().await;
    let second = world.engine();
    for name in &names {
        let status = world.over(name).await.status.unwrap();
        assert_eq!((status.phase, status.output), (Phase::Succeeded, Some(json!({"x": 12}))), "{name}");
        assert_eq!(world.types(name).await.len(), 2 + 12 * 5, "{name}");
    }
    let emptied = await_condition(world.api::<WorkflowLog>(), WorkflowLog::HEAD, |log: Option<&WorkflowLog>| {
        log.is_some_and(|l| l.spec.steps == "[]" && l.spec.full.is_empty())
    });
    tokio::time::timeout(support::PATIENCE, emptied).await.unwrap().unwrap();
    assert!(log(&world).await.spec.taken >= 2);
    let config = kube::runtime::watcher::Config::default();
    let mut changes = Box::pin(kube::runtime::watcher(world.api::<WorkflowLog>(), config));
    let only = async {
        while world.api::<WorkflowLog>().list(&Default::default()).await.unwrap().items.len() > 1 {
            changes.next().await;
        }
    };
    tokio::time::timeout(support::PATIENCE, only).await.expect("full ones are deleted");
    second.kill().await;
}

/// Answers requests with `{"ok": true}` and keeps their keys. It listens where requests of tasks may go: not on loopback.
async fn listener() -> (String, Arc<Mutex<Vec<String>>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    // Nothing is sent: it is only asked which address of this machine would be the sender's.
    let asked = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    asked.connect("192.0.2.1:9").unwrap();
    let socket = tokio::net::TcpListener::bind((asked.local_addr().unwrap().ip(), 0)).await.unwrap();
    let url = format!("http://{}/", socket.local_addr().unwrap());
    let keys = Arc::new(Mutex::new(vec![]));
    let kept = Arc::clone(&keys);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let mut head = vec![];
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let head = String::from_utf8(head).unwrap().to_lowercase();
                kept.lock().extend(head.lines().find_map(|l| Some(l.strip_prefix("idempotency-key: ")?.to_owned())));
                let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(format!("{answer}{{\"ok\":true}}").as_bytes()).await;
            });
        }
    });
    (url, keys)
}

#[tokio::test]
async fn requests_are_made_again_under_the_same_key() {
    let world = support::world().await;
    let (url, keys) = listener().await;
    let task = |next: Value| {
        let mut task = json!({"Type": "Task", "Resource": "arn:aws:states:::http:invoke", "ResultPath": null,
            "Parameters": {"ApiEndpoint": url, "Method": "GET"}});
        task.as_object_mut().unwrap().extend(next.as_object().unwrap().clone());
        task
    };
    let states = json!({"A": task(json!({"Next": "B"})), "B": task(json!({"End": true}))});
    let definition = json!({"StartAt": "A", "States": states});
    let (mut want, mut broken) = (None, 0);
    for point in [None].into_iter().chain(Point::ALL.map(Some)) {
        let run = format!("http-{point:?}").to_lowercase().replace(['(', ')'], "");
        keys.lock().clear();
        let first = world.engine_with(once_at(point, &run));
        world.start(&run, &definition, &json!({"x": 1})).await;
        broken += usize::from(broken_off(&world, first, &run).await);
        let second = world.engine();
        let status = world.over(&run).await.status.unwrap();
        assert_eq!(
            (status.phase, status.output),
            (Phase::Succeeded, Some(json!({"x": 1}))),
            "{run}: {:?}",
            status.cause
        );
        second.kill().await;
        let types = world.types(&run).await;
        assert_eq!(&types, want.get_or_insert_with(|| types.clone()), "{run}");
        // Two attempts in all, each asked for at most twice.
        let asked = counted(&keys.lock());
        assert_eq!(asked.len(), 2, "{run}: {asked:?}");
        assert!(asked.values().all(|n| *n <= 2), "{run}: {asked:?}");
        let again = matches!(point, Some(Point::Calling | Point::Answered));
        assert_eq!(asked.values().sum::<usize>(), if again { 3 } else { 2 }, "{run}: {asked:?}");
    }
    assert!(broken >= 6, "only {broken} engines were killed");
}
