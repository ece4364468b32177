//! Runs from start to end on an API server in this process.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use skiff_workflow::api::Phase;

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
