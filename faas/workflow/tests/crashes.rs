//! An engine ends as if it was killed, at each point around what must be stored, in runs of every type of state; another
//! takes over. The history must come out the same, but for attempts and times.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kube::api::PostParams;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_workflow::api::{Phase, WorkflowActivity};
use skiff_workflow::engine::{Faults, NoFaults, Point};
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

#[tokio::test]
async fn whatever_is_killed_is_taken_up() {
    let world = support::world().await;
    let mut broken = 0;
    for (name, definition, input, output) in table() {
        let engine = world.engine();
        world.start(name, &definition, &input).await;
        world.over(name).await;
        let want = world.types(name).await;
        engine.kill().await;
        for point in Point::ALL {
            for after in 0..2 {
                let run = format!("{name}-{}-{after}", format!("{point:?}").to_lowercase());
                world.functions.calls.lock().clear();
                let faults = Arc::new(Once { point, after, reached: AtomicUsize::new(0) });
                let first = world.engine_with(Arc::clone(&faults) as Arc<dyn Faults>);
                world.start(&run, &definition, &input).await;
                // It ends at the point, or the run does not come there.
                broken += usize::from(broken_off(&world, first, &run).await);
                let second = world.engine();
                let status = world.over(&run).await.status.unwrap();
                match &output {
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
        }
    }
    assert!(broken > 50, "only {broken} engines were killed");
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

#[tokio::test]
async fn two_engines_cannot_both_write_a_run() {
    let world = support::world().await;
    let first = world.engine();
    let second = world.engine();
    let states: serde_json::Map<String, Value> = (0..20)
        .map(|i| {
            let next = if i == 19 { json!({"End": true}) } else { json!({"Next": format!("S{}", i + 1)}) };
            let mut state = add();
            state.as_object_mut().unwrap().extend(next.as_object().unwrap().clone());
            (format!("S{i}"), state)
        })
        .collect();
    let definition = json!({"StartAt": "S0", "States": states});
    for i in 0..5 {
        world.start(&format!("r{i}"), &definition, &json!({"x": 0})).await;
    }
    for i in 0..5 {
        let run = format!("r{i}");
        let status = world.over(&run).await.status.unwrap();
        assert_eq!((status.phase, status.output), (Phase::Succeeded, Some(json!({"x": 20}))));
        let types = world.types(&run).await;
        assert_eq!(types.len(), 2 + 20 * 5, "{types:?}");
    }
    first.kill().await;
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
