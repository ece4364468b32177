//! Runs from start to end on an API server in this process.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use skiff_workflow::api::{
    Phase, Stop, Workflow, WorkflowActivity, WorkflowHistory, WorkflowPayload, WorkflowRun, WorkflowSignal,
};
use skiff_workflow::runs::{Answer, Runs as _, RunsError, Start, Stored};

mod support;

#[tokio::test]
async fn a_chain_of_functions_runs_and_is_told() {
    let world = support::world().await;
    let _engine = world.engine();
    let definition = json!({"StartAt": "A", "States": {
        "A": {"Type": "Task", "Resource": "arn:aws:lambda:r:1:function:add", "Next": "B"},
        "B": {"Type": "Choice", "Choices": [{"Variable": "$.x", "NumericEquals": 2, "Next": "C"}], "Default": "D"},
        "C": {"Type": "Pass", "Result": {"y": 1}, "ResultPath": "$.c", "Next": "E"},
        "D": {"Type": "Fail", "Error": "Wrong"},
        "E": {"Type": "Succeed"}}});
    world.start("chain", &definition, &json!({"x": 1})).await;
    let run = world.over("chain").await;
    let status = run.status.unwrap();
    assert_eq!((status.phase, status.output), (Phase::Succeeded, Some(json!({"x": 2, "c": {"y": 1}}))));
    let types = world.types("chain").await;
    let want = [
        "ExecutionStarted",
        "TaskStateEntered",
        "LambdaFunctionScheduled",
        "LambdaFunctionStarted",
        "LambdaFunctionSucceeded",
        "TaskStateExited",
        "ChoiceStateEntered",
        "ChoiceStateExited",
        "PassStateEntered",
        "PassStateExited",
        "SucceedStateEntered",
        "SucceedStateExited",
        "ExecutionSucceeded",
    ];
    assert_eq!(types, want);
    let ids: Vec<Value> = world.history("chain").await.iter().map(|e| e["id"].clone()).collect();
    assert_eq!(ids, (1..=13).map(Value::from).collect::<Vec<_>>());
}

fn single(state: Value) -> Value {
    let mut state = state;
    state["End"] = json!(true);
    json!({"StartAt": "S", "States": {"S": state}})
}

fn start(workflow: &str, name: Option<&str>, input: &Value) -> Start {
    Start {
        namespace: "default".into(),
        workflow: workflow.into(),
        name: name.map(str::to_owned),
        input: input.to_string(),
        ..Start::default()
    }
}

#[tokio::test]
async fn a_name_starts_one_run() {
    let world = support::world().await;
    let running = world.engine();
    world.workflow("wait", single(json!({"Type": "Wait", "Seconds": 1})), json!({})).await;
    let runs = Arc::clone(&running.engine);
    let first = runs.start(start("wait", Some("one"), &json!({"a": 1}))).await.unwrap();
    let again = runs.start(start("wait", Some("one"), &json!({"a": 1}))).await.unwrap();
    assert_eq!((again.run.as_str(), again.again), (first.run.as_str(), true));
    let other = runs.start(start("wait", Some("one"), &json!({"a": 2}))).await;
    assert!(matches!(other, Err(RunsError::AlreadyExists(_))), "{other:?}");
    let status = world.over(&first.run).await.status.unwrap();
    assert_eq!(status.output, Some(json!({"a": 1})));
    let late = runs.start(start("wait", Some("one"), &json!({"a": 1}))).await;
    assert!(matches!(late, Err(RunsError::AlreadyExists(_))), "{late:?}");
    assert!(matches!(runs.start(start("none", None, &json!({}))).await, Err(RunsError::NoWorkflow(_))));
}

#[tokio::test]
async fn long_data_is_kept_in_parts() {
    let world = support::world().await;
    let running = world.engine();
    world.workflow("echo", single(json!({"Type": "Task", "Resource": "skiff:function:echo"})), json!({})).await;
    // Nothing that can be deflated, so that there are several parts.
    let noise: Vec<String> = (0..3500).map(|_| uuid::Uuid::new_v4().to_string()).collect();
    let input = json!({"noise": noise});
    let started = running.engine.start(start("echo", None, &input)).await.unwrap();
    let status = world.over(&started.run).await.status.unwrap();
    assert!(status.output.is_none());
    assert!(status.output_ref.unwrap().parts > 1);
    let told = running.engine.describe("default", &started.run).await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&told.output.unwrap()).unwrap(), input);
    assert_eq!(serde_json::from_str::<Value>(&told.input).unwrap(), input);
    for page in world.api::<WorkflowHistory>().list(&ListParams::default()).await.unwrap() {
        let size = serde_json::to_string(&page).unwrap().len();
        assert!(size < 64 * 1024, "{size}");
    }
    for part in world.api::<WorkflowPayload>().list(&ListParams::default()).await.unwrap() {
        let size = serde_json::to_string(&part).unwrap().len();
        assert!(size < 64 * 1024, "{size}");
    }
    let event = world.history(&started.run).await.pop().unwrap();
    let output = event["executionSucceededEventDetails"]["output"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(output).unwrap(), input);
}

#[tokio::test]
async fn tokens_are_answered_by_who_has_them() {
    let world = support::world().await;
    let running = world.engine();
    let definition = single(json!({"Type": "Task", "Resource": "arn:aws:states:::lambda:invoke.waitForTaskToken",
        "Parameters": {"FunctionName": "echo", "Payload": {"token.$": "$$.Task.Token"}}}));
    world.start("waits", &definition, &json!({})).await;
    world.functions.until(1).await;
    let payload: Value = serde_json::from_str(&world.functions.calls.lock()[0].payload).unwrap();
    let token = payload["token"].as_str().unwrap().to_owned();
    // The engine ends while the run waits: the next one does not call again.
    until_event(&world, "waits", "TaskSubmitted").await;
    running.kill().await;
    let running = world.engine();
    let made_up = skiff_workflow::token::Token::new("default", "waits", "0-1-0", "guessed").to_string();
    running.engine.signal(&made_up, Answer::Success("1".into())).await.unwrap();
    assert!(matches!(running.engine.signal("nonsense", Answer::Heartbeat).await, Err(RunsError::InvalidToken)));
    running.engine.signal(&token, Answer::Success("{\"y\":5}".into())).await.unwrap();
    let status = world.over("waits").await.status.unwrap();
    assert_eq!(status.output, Some(json!({"y": 5})));
    assert_eq!(world.functions.calls.lock().len(), 1);
    let late = running.engine.signal(&token, Answer::Success("1".into())).await;
    assert!(matches!(late, Err(RunsError::TaskOver)), "{late:?}");
    let signals = world.api::<WorkflowSignal>();
    let deadline = tokio::time::Instant::now() + support::PATIENCE;
    while !signals.list(&ListParams::default()).await.unwrap().items.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "signals stay");
        tokio::task::yield_now().await;
    }
}

async fn until_event(world: &support::World, run: &str, kind: &str) {
    let deadline = tokio::time::Instant::now() + support::PATIENCE;
    loop {
        let types = world.types(run).await;
        if types.iter().any(|t| t == kind) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "no {kind} in {types:?}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn activities_are_fetched() {
    let world = support::world().await;
    let running = world.engine();
    let activity = WorkflowActivity::new("work", Default::default());
    world.api::<WorkflowActivity>().create(&PostParams::default(), &activity).await.unwrap();
    let definition = single(json!({"Type": "Task", "Resource": "arn:aws:states:r:1:activity:work"}));
    let none = running.engine.poll_activity("default", "work", None, Duration::from_millis(10)).await.unwrap();
    assert_eq!(none, None);
    let missing = running.engine.poll_activity("default", "other", None, Duration::ZERO).await;
    assert!(matches!(missing, Err(RunsError::NoActivity(_))));
    world.start("fetched", &definition, &json!({"x": 1})).await;
    let task = running.engine.poll_activity("default", "work", Some("me"), support::PATIENCE).await.unwrap().unwrap();
    assert_eq!(task.input, "{\"x\":1}");
    running.engine.signal(&task.token, Answer::Success("2".into())).await.unwrap();
    assert_eq!(world.over("fetched").await.status.unwrap().output, Some(json!(2)));
    let types = world.types("fetched").await;
    assert!(
        types.contains(&"ActivityStarted".to_owned()) && types.contains(&"ActivitySucceeded".to_owned()),
        "{types:?}"
    );
}

#[tokio::test]
async fn workflows_start_workflows() {
    let world = support::world().await;
    let _running = world.engine();
    world.workflow("child", single(json!({"Type": "Task", "Resource": "skiff:function:add"})), json!({})).await;
    let parent = json!({"StartAt": "A", "States": {
        "A": {"Type": "Task", "Resource": "skiff:workflow:child", "Next": "B"},
        "B": {"Type": "Task", "Resource": "arn:aws:states:::states:startExecution.sync:2", "ResultPath": "$.b", "End": true,
              "Parameters": {"StateMachineArn": "arn:aws:states:r:1:stateMachine:child", "Input.$": "$"}}}});
    world.start("parent", &parent, &json!({"x": 1})).await;
    let output = world.over("parent").await.status.unwrap().output.unwrap();
    assert_eq!(
        (&output["x"], &output["b"]["Output"]["x"], &output["b"]["Status"]),
        (&json!(2), &json!(3), &json!("SUCCEEDED"))
    );
    let failing = single(json!({"Type": "Task", "Resource": "arn:aws:states:::states:startExecution.sync",
        "Parameters": {"StateMachineArn": "nobody"}}));
    world.start("lonely", &failing, &json!({})).await;
    let status = world.over("lonely").await.status.unwrap();
    assert_eq!(status.error.as_deref(), Some("StepFunctions.StateMachineDoesNotExistException"));
}

#[tokio::test]
async fn runs_are_stopped_and_redriven() {
    let world = support::world().await;
    let running = world.engine();
    let definition = json!({"StartAt": "A", "States": {
        "A": {"Type": "Task", "Resource": "skiff:function:add", "Next": "B"},
        "B": {"Type": "Task", "Resource": "skiff:function:missing", "End": true}}});
    world.start("again", &definition, &json!({"x": 1})).await;
    let status = world.over("again").await.status.unwrap();
    assert_eq!(status.error.as_deref(), Some("Lambda.ResourceNotFoundException"));
    *world.functions.does.lock() =
        Some(Box::new(|name, _| (name == "missing").then(|| Ok(support::answer(200, &json!("here"))))));
    running.engine.redrive("default", "again", None).await.unwrap();
    let status = world.phase("again", Phase::Succeeded).await.status.unwrap();
    assert_eq!((status.output, status.redrive_count, status.error), (Some(json!("here")), 1, None));
    let adds = world.functions.calls.lock().iter().filter(|c| c.name == "add").count();
    assert_eq!(adds, 1, "what succeeded is not done again");
    let refused = running.engine.redrive("default", "again", None).await;
    assert!(matches!(refused, Err(RunsError::NotRedrivable(_))), "{refused:?}");

    world.start("long", &single(json!({"Type": "Wait", "Seconds": 1000})), &json!({})).await;
    world.phase("long", Phase::Running).await;
    let stop = Stop { error: Some("Enough".into()), cause: Some("it was".into()) };
    running.engine.stop("default", "long", stop).await.unwrap();
    let status = world.phase("long", Phase::Aborted).await.status.unwrap();
    assert_eq!((status.error.as_deref(), status.cause.as_deref()), (Some("Enough"), Some("it was")));
}

#[tokio::test]
async fn express_runs_are_answered_at_once() {
    let world = support::world().await;
    let running = world.engine();
    let task = single(json!({"Type": "Task", "Resource": "skiff:function:add"}));
    world.workflow("quick", task.clone(), json!({"type": "express"})).await;
    world.workflow("slow", task, json!({})).await;
    let outcome = running.engine.start_sync(start("quick", None, &json!({"x": 1}))).await.unwrap();
    assert_eq!((outcome.phase, outcome.output.as_deref()), (Phase::Succeeded, Some("{\"x\":2}")));
    let wrong = running.engine.start_sync(start("slow", None, &json!({}))).await;
    assert!(matches!(wrong, Err(RunsError::WrongType)), "{wrong:?}");
    let none = running.engine.start_sync(start("none", None, &json!({}))).await;
    assert!(matches!(none, Err(RunsError::NoWorkflow(_))), "{none:?}");
    // Without waiting there is an object, and no history.
    let started = running.engine.start(start("quick", None, &json!({"x": 5}))).await.unwrap();
    assert_eq!(world.over(&started.run).await.status.unwrap().output, Some(json!({"x": 6})));
    assert!(world.api::<WorkflowHistory>().list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn there_are_no_more_runs_than_there_may_be() {
    let world = support::world().await;
    let running = world.engine();
    let hold = Arc::new(tokio::sync::Notify::new());
    *world.functions.hold.lock() = Some(Arc::clone(&hold));
    let task = single(json!({"Type": "Task", "Resource": "skiff:function:echo"}));
    world.workflow("narrow", task.clone(), json!({"concurrency": {"maxRuns": 1}})).await;
    world.workflow("strict", task, json!({"concurrency": {"maxRuns": 1, "policy": "Reject"}})).await;
    let first = running.engine.start(start("narrow", None, &json!(1))).await.unwrap();
    world.functions.until(1).await;
    let second = running.engine.start(start("narrow", None, &json!(2))).await.unwrap();
    let strict = running.engine.start(start("strict", None, &json!(3))).await.unwrap();
    world.functions.until(2).await;
    let rejected = running.engine.start(start("strict", None, &json!(4))).await.unwrap();
    let status = world.over(&rejected.run).await.status.unwrap();
    assert_eq!((status.phase, status.error.as_deref()), (Phase::Failed, Some("States.Runtime")));
    assert_eq!(world.functions.calls.lock().len(), 2, "the second waits");
    *world.functions.hold.lock() = None;
    hold.notify_waiters();
    for run in [&first.run, &strict.run, &second.run] {
        assert_eq!(world.over(run).await.status.unwrap().phase, Phase::Succeeded);
    }
}

#[tokio::test]
async fn finished_runs_go_with_what_they_own() {
    let world = support::world().await;
    let running = world.engine();
    world.workflow("few", single(json!({"Type": "Pass"})), json!({"retention": {"runs": 1}})).await;
    let mut last = String::new();
    for i in 0..3 {
        last = running.engine.start(start("few", Some(&format!("r{i}")), &json!(i))).await.unwrap().run;
        // It may be gone as soon as it is over.
        let over = |r: Option<&WorkflowRun>| r.is_none_or(|r| r.status.as_ref().is_some_and(|s| s.phase.is_over()));
        let waited = kube::runtime::wait::await_condition(world.api::<WorkflowRun>(), &last, over);
        tokio::time::timeout(support::PATIENCE, waited).await.unwrap().unwrap();
    }
    let deadline = tokio::time::Instant::now() + support::PATIENCE;
    loop {
        let left = world.api::<WorkflowRun>().list(&ListParams::default()).await.unwrap().items;
        let left: Vec<String> = left.into_iter().filter_map(|r| r.metadata.name).collect();
        if left == [last.clone()] {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{left:?}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn objects_are_made_with_the_rights_of_the_account() {
    let world = support::world().await;
    let _running = world.engine();
    let object =
        |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}});
    let made = single(
        json!({"Type": "Task", "Resource": "skiff:kubernetes:create", "Parameters": {"Object": object("made")}}),
    );
    world.start("refused", &made, &json!({})).await;
    let status = world.over("refused").await.status.unwrap();
    assert_eq!(status.error.as_deref(), Some("States.Permissions"), "{:?}", status.cause);
}

#[tokio::test]
async fn workflows_say_whether_they_are_valid() {
    let world = support::world().await;
    let _running = world.engine();
    let bad = json!({"StartAt": "A", "States": {
        "A": {"Type": "Task", "Resource": "arn:aws:states:::sqs:sendMessage", "End": true}}});
    world.workflow("bad", bad.clone(), json!({})).await;
    world.workflow("good", single(json!({"Type": "Pass"})), json!({})).await;
    let valid = |word: &'static str| {
        move |w: &Workflow| {
            let status = w.status.clone().unwrap_or_default();
            status.conditions.iter().any(|c| c.type_ == "Valid" && c.status == word)
        }
    };
    support::until(&world.api::<Workflow>(), "good", valid("True")).await;
    let bad_one = support::until(&world.api::<Workflow>(), "bad", valid("False")).await;
    assert!(bad_one.status.unwrap().conditions[0].message.contains("/States/A/Resource"));
    world.start("broken", &json!({"StartAt": "X"}), &json!({})).await;
    let status = world.over("broken").await.status.unwrap();
    assert_eq!((status.phase, status.error.as_deref()), (Phase::Failed, Some("States.Runtime")));
}

#[tokio::test]
async fn a_long_run_is_many_pages_and_is_rebuilt() {
    let world = support::world().await;
    let running = world.engine();
    let definition = json!({"StartAt": "Inc", "States": {
        "Inc": {"Type": "Pass", "Parameters": {"n.$": "States.MathAdd($.n, 1)"}, "Next": "More"},
        "More": {"Type": "Choice", "Choices": [{"Variable": "$.n", "NumericLessThan": 1000, "Next": "Inc"}], "Default": "W"},
        "W": {"Type": "Wait", "Seconds": 3, "Next": "D"},
        "D": {"Type": "Succeed"}}});
    world.start("many", &definition, &json!({"n": 0})).await;
    until_event(&world, "many", "WaitStateEntered").await;
    running.kill().await;
    let _running = world.engine();
    let status = world.over("many").await.status.unwrap();
    assert_eq!((status.phase, status.output), (Phase::Succeeded, Some(json!({"n": 1000}))));
    assert!(status.history_pages > 10 && status.transitions == 2002, "{} {}", status.history_pages, status.transitions);
    let ids: Vec<i64> = world.history("many").await.iter().map(|e| e["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (1..=status.events).collect::<Vec<_>>());
    // Backwards, page by page.
    let runs = Stored::new(world.client.clone());
    let mut from = None;
    let mut back = vec![];
    loop {
        let found = runs.history("default", "many", from, true, 137).await.unwrap();
        back.extend(found.events.iter().map(|e| e["id"].as_i64().unwrap()));
        from = found.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(back, (1..=status.events).rev().collect::<Vec<_>>());
}
