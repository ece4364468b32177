//! Definitions with inputs, what tasks answer, and what comes out: for every type of state and every way it goes wrong. Time is
//! virtual. Each run is also taken from a checkpoint after every input, and replayed from its inputs: the same must come out.

use std::collections::BTreeMap;

use serde_json::json;
use skiff_asl::ExecutionError;

use super::*;
use crate::machine::model::Step;

/// What came out of a run.
#[derive(Debug)]
struct Ran {
    phase: Phase,
    output: Option<Value>,
    error: Option<String>,
    events: Vec<Event>,
    /// Seconds from the start to the end.
    seconds: i64,
    /// How often each state's task was called.
    calls: BTreeMap<String, usize>,
}

impl Ran {
    fn types(&self) -> Vec<&'static str> {
        self.events.iter().map(|e| e.kind).collect()
    }

    fn count(&self, kind: &str) -> usize {
        self.events.iter().filter(|e| e.kind == kind).count()
    }
}

/// What a task does: by the name of its function, what it gets, and how often it was called before.
fn does(name: &str, parameters: &Value, before: usize) -> Option<Result<Value, ExecutionError>> {
    let fail = |name: &str| Some(Err(ExecutionError::new(name, "told to")));
    match name.split_once('_').unwrap_or((name, "")) {
        ("echo", _) => Some(Ok(parameters.clone())),
        ("add", _) => Some(Ok(json!(parameters.as_i64().unwrap_or(0) + 1))),
        ("fail", error) => fail(error),
        // Fails so many times, then says how often it was called.
        ("flaky", times) if before < times.parse().unwrap() => fail("Flaky"),
        ("flaky", _) => Some(Ok(json!(before + 1))),
        // Fails for one item only.
        ("not", item) if serde_json::from_str::<Value>(item).unwrap() == *parameters => fail("Item"),
        ("not", _) => Some(Ok(parameters.clone())),
        ("long", length) => Some(Ok(json!("x".repeat(length.parse().unwrap())))),
        ("never", _) => None,
        _ => panic!("no function {name}"),
    }
}

fn machine(definition: &Value, input: &Value, max_events: u64) -> Machine {
    let definition = Definition::parse(definition).unwrap_or_else(|faults| panic!("{faults:?}"));
    let info = Info {
        namespace: "ns".into(),
        run: "run".into(),
        uid: "uid".into(),
        name: "name".into(),
        id: "id".into(),
        workflow: "wf".into(),
        input: input.clone(),
        max_events,
        secret: "secret".into(),
        ..Info::default()
    };
    Machine::new(Arc::new(definition), Arc::new(info))
}

struct Walk {
    machine: Machine,
    inputs: Vec<Input>,
    events: Vec<Event>,
    commands: Vec<Command>,
    calls: BTreeMap<String, usize>,
    at: Timestamp,
}

impl Walk {
    fn new(machine: Machine) -> Self {
        let at = Timestamp::from_second(1_000_000).unwrap();
        Self { machine, inputs: vec![], events: vec![], commands: vec![], calls: BTreeMap::new(), at }
    }

    fn take(&mut self, what: What) -> bool {
        let input = Input { at: self.at, what };
        let checkpoint = self.machine.checkpoint();
        let (definition, info) = (Arc::clone(&self.machine.definition), Arc::clone(&self.machine.info));
        let mut other = Machine::restore(definition, info, &checkpoint).unwrap();
        let known = self.machine.apply(&input);
        assert_eq!(other.apply(&input), known);
        let (events, commands) = (self.machine.events(), self.machine.commands());
        assert_eq!(other.events(), events, "from a checkpoint");
        assert_eq!(other.commands(), commands, "from a checkpoint");
        assert_eq!(other.checkpoint(), self.machine.checkpoint());
        if known {
            self.inputs.push(input);
        } else {
            assert!(events.is_empty() && commands.is_empty());
        }
        self.events.extend(events);
        self.commands.extend(commands);
        known
    }

    /// Goes on until the run is over, or nothing moves.
    fn go(&mut self) {
        for _ in 0..100_000 {
            if self.machine.over().is_some() {
                return;
            }
            if self.machine.more() {
                self.take(What::Go);
                continue;
            }
            if !self.commands.is_empty() {
                if let Command::Dispatch(dispatch) = self.commands.remove(0) {
                    self.answer(&dispatch);
                }
                continue;
            }
            let Some(wake) = self.machine.wake() else { return };
            self.at = self.at.max(wake);
            assert!(self.take(What::Timer), "a timer that changes nothing");
        }
        panic!("it goes on for ever");
    }

    fn answer(&mut self, dispatch: &Dispatch) {
        let name = dispatch.resource.rsplit(':').next().unwrap_or_default();
        let before = self.calls.get(&dispatch.state).copied().unwrap_or(0);
        *self.calls.entry(dispatch.state.clone()).or_default() += 1;
        let (step, started) = (dispatch.step, Some(self.at));
        let what = match does(name, &dispatch.parameters, before) {
            None => return,
            Some(Ok(output)) => What::Succeeded { step, output: output.to_string().into(), started },
            Some(Err(error)) => What::Failed { step, error, started },
        };
        assert!(self.take(what), "an answer nobody waits for");
    }

    fn ran(self) -> Ran {
        let started = self.inputs.first().unwrap().at;
        // The same inputs give the same run.
        let mut again = Machine::new(Arc::clone(&self.machine.definition), Arc::clone(&self.machine.info));
        let mut events = vec![];
        for input in &self.inputs {
            assert!(again.apply(input));
            events.extend(again.events());
            again.commands();
        }
        assert_eq!(events, self.events, "replayed");
        for (i, event) in self.events.iter().enumerate() {
            assert_eq!(event.id, i64::try_from(i).unwrap() + 1);
            assert!(event.previous < event.id && (event.previous > 0) == (event.id > 1), "{event:?}");
        }
        let over = self.machine.over().unwrap_or_else(|| panic!("it is not over: {:?}", self.events.last())).clone();
        Ran {
            phase: over.phase,
            output: over.output,
            error: over.error,
            events: self.events,
            seconds: over.at.duration_since(started).as_secs(),
            calls: self.calls,
        }
    }
}

fn run(definition: &Value, input: &Value) -> Ran {
    let mut walk = Walk::new(machine(definition, input, 10_000));
    walk.take(What::Start);
    walk.go();
    walk.ran()
}

/// A definition of one state, and what is behind it.
fn one(state: Value) -> Value {
    let mut state = state;
    if state.get("Next").is_none() && !matches!(state["Type"].as_str(), Some("Choice" | "Succeed" | "Fail")) {
        state["End"] = json!(true);
    }
    let mut states = json!({"S": state});
    let text = states.to_string();
    for (name, result) in [("X", "x"), ("Y", "y")] {
        if ["Next", "Default"].iter().any(|k| text.contains(&format!("\"{k}\":\"{name}\""))) {
            states[name] = json!({"Type": "Pass", "Result": result, "ResultPath": "$.went", "End": true});
        }
    }
    json!({"StartAt": "S", "States": states})
}

fn task(function: &str, more: Value) -> Value {
    let mut task = json!({"Type": "Task", "Resource": format!("arn:aws:lambda:r:1:function:{function}")});
    task.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    task
}

/// One state that ends its machine.
fn single(name: &str, state: Value) -> Value {
    let mut state = state;
    state["End"] = json!(true);
    json!({"StartAt": name, "States": {name: state}})
}

#[test]
fn what_comes_out() {
    let table: Vec<(&str, Value, Value, Value)> = vec![
        ("pass", json!({"Type": "Pass"}), json!({"a": 1}), json!({"a": 1})),
        (
            "pass result",
            json!({"Type": "Pass", "Result": 7, "ResultPath": "$.r"}),
            json!({"a": 1}),
            json!({"a": 1, "r": 7}),
        ),
        ("pass parameters", json!({"Type": "Pass", "Parameters": {"b.$": "$.a"}}), json!({"a": 1}), json!({"b": 1})),
        (
            "pass paths",
            json!({"Type": "Pass", "InputPath": "$.a", "OutputPath": "$.b"}),
            json!({"a": {"b": 2}}),
            json!(2),
        ),
        ("succeed", json!({"Type": "Succeed", "OutputPath": "$.a"}), json!({"a": 3}), json!(3)),
        ("task", task("add", json!({"InputPath": "$.n", "ResultPath": "$.n"})), json!({"n": 1}), json!({"n": 2})),
        (
            "task with all fields",
            task(
                "echo",
                json!({"Parameters": {"p.$": "$.a"}, "ResultSelector": {"s.$": "$.p"}, "ResultPath": "$.r",
                       "OutputPath": "$.r.s"}),
            ),
            json!({"a": [1, 2]}),
            json!([1, 2]),
        ),
        ("task without result", task("add", json!({"ResultPath": null})), json!(1), json!(1)),
        (
            "choice",
            json!({"Type": "Choice", "Choices": [{"Variable": "$.a", "NumericEquals": 1, "Next": "X"}], "Default": "Y"}),
            json!({"a": 1}),
            json!({"a": 1, "went": "x"}),
        ),
        (
            "choice default",
            json!({"Type": "Choice", "Choices": [{"Variable": "$.a", "NumericEquals": 1, "Next": "X"}], "Default": "Y"}),
            json!({"a": 2}),
            json!({"a": 2, "went": "y"}),
        ),
        ("wait", json!({"Type": "Wait", "Seconds": 10}), json!({"a": 1}), json!({"a": 1})),
        ("wait path", json!({"Type": "Wait", "SecondsPath": "$.s"}), json!({"s": 10}), json!({"s": 10})),
        ("wait past", json!({"Type": "Wait", "Timestamp": "1970-01-01T00:00:00Z"}), json!(1), json!(1)),
        (
            "parallel",
            json!({"Type": "Parallel", "Branches": [single("A", task("add", json!({}))), single("B", json!({"Type": "Pass"}))]}),
            json!(1),
            json!([2, 1]),
        ),
        (
            "parallel with parameters and selector",
            json!({"Type": "Parallel", "Parameters": {"v.$": "$.a"}, "ResultSelector": {"first.$": "$[0].v"}, "ResultPath": "$.r",
                   "Branches": [single("A", json!({"Type": "Pass"}))]}),
            json!({"a": 1}),
            json!({"a": 1, "r": {"first": 1}}),
        ),
        (
            "map",
            json!({"Type": "Map", "ItemsPath": "$.i", "ItemProcessor": single("A", task("add", json!({})))}),
            json!({"i": [1, 2, 3]}),
            json!([2, 3, 4]),
        ),
        (
            "map of nothing",
            json!({"Type": "Map", "ItemProcessor": single("A", json!({"Type": "Pass"}))}),
            json!([]),
            json!([]),
        ),
        (
            "map one at a time",
            json!({"Type": "Map", "MaxConcurrency": 1, "ItemProcessor": single("A", task("add", json!({})))}),
            json!([1, 2, 3]),
            json!([2, 3, 4]),
        ),
        (
            "map with selector",
            json!({"Type": "Map", "ItemsPath": "$.i", "ItemSelector": {
                       "i.$": "$$.Map.Item.Index", "v.$": "$$.Map.Item.Value", "all.$": "$.k"},
                   "ItemProcessor": single("A", json!({"Type": "Pass"}))}),
            json!({"i": ["a", "b"], "k": 9}),
            json!([{"i": 0, "v": "a", "all": 9}, {"i": 1, "v": "b", "all": 9}]),
        ),
        (
            "map in map",
            json!({"Type": "Map", "ItemProcessor": single("A", json!({"Type": "Map",
                   "ItemProcessor": single("B", task("add", json!({})))}))}),
            json!([[1], [], [2, 3]]),
            json!([[2], [], [3, 4]]),
        ),
        (
            "map that tolerates",
            json!({"Type": "Map", "ToleratedFailureCount": 1, "ItemProcessor":
                   {"ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"}, "StartAt": "A",
                    "States": {"A": task("not_2", json!({"End": true}))}}}),
            json!([1, 2, 3]),
            json!([1, {"Error": "Item", "Cause": "told to"}, 3]),
        ),
        (
            "map in batches",
            json!({"Type": "Map", "ItemsPath": "$.i", "ItemSelector": {"v.$": "$$.Map.Item.Value"},
                   "ItemBatcher": {"MaxItemsPerBatch": 2, "BatchInput": {"k.$": "$.k"}}, "ItemProcessor":
                   {"ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"}, "StartAt": "A",
                    "States": {"A": {"Type": "Pass", "End": true}}}}),
            json!({"i": [1, 2, 3], "k": 9}),
            json!([{"BatchInput": {"k": 9}, "Items": [{"v": 1}, {"v": 2}]}, {"BatchInput": {"k": 9}, "Items": [{"v": 3}]}]),
        ),
        (
            "retry",
            task("flaky_2", json!({"Retry": [{"ErrorEquals": ["Flaky"], "IntervalSeconds": 5, "MaxAttempts": 2}]})),
            json!({}),
            json!(3),
        ),
        (
            "catch",
            task("fail_E", json!({"Catch": [{"ErrorEquals": ["E"], "Next": "X", "ResultPath": "$.e"}]})),
            json!({"a": 1}),
            json!({"a": 1, "e": {"Error": "E", "Cause": "told to"}, "went": "x"}),
        ),
        (
            "catch after retries",
            task(
                "fail_E",
                json!({"Retry": [{"ErrorEquals": ["States.ALL"]}],
                       "Catch": [{"ErrorEquals": ["States.ALL"], "Next": "X", "ResultPath": null}]}),
            ),
            json!({"a": 1}),
            json!({"a": 1, "went": "x"}),
        ),
        (
            "catch of a parallel",
            json!({"Type": "Parallel", "Branches": [single("A", task("fail_E", json!({}))), single("B", task("never", json!({})))],
                   "Catch": [{"ErrorEquals": ["E"], "Next": "X", "ResultPath": "$.e"}]}),
            json!({}),
            json!({"e": {"Error": "E", "Cause": "told to"}, "went": "x"}),
        ),
        (
            "catch by what happened to the state",
            json!({"Type": "Parallel", "Branches": [single("A", task("fail_E", json!({})))],
                   "Catch": [{"ErrorEquals": ["States.BranchFailed"], "Next": "X", "ResultPath": "$.e"}]}),
            json!({}),
            json!({"e": {"Error": "E", "Cause": "told to"}, "went": "x"}),
        ),
        (
            "retry of a parallel",
            json!({"Type": "Parallel", "Branches": [single("A", task("flaky_1", json!({}))), single("B", json!({"Type": "Pass"}))],
                   "Retry": [{"ErrorEquals": ["Flaky"]}]}),
            json!(5),
            json!([2, 5]),
        ),
        (
            "retry of a map",
            json!({"Type": "Map", "ItemProcessor": single("A", task("flaky_1", json!({}))), "Retry": [{"ErrorEquals": ["Flaky"]}]}),
            json!([0]),
            json!([2]),
        ),
        (
            "catch of a timeout",
            task("never", json!({"TimeoutSeconds": 5, "Catch": [{"ErrorEquals": ["States.Timeout"], "Next": "X"}]})),
            json!({}),
            json!({"Error": "States.Timeout", "Cause": "", "went": "x"}),
        ),
        (
            "catch of data that is too long",
            task(
                "long_262143",
                json!({"Catch": [{"ErrorEquals": ["States.DataLimitExceeded"], "Next": "X", "ResultPath": "$.e"}]}),
            ),
            json!({}),
            json!({"e": {"Error": "States.DataLimitExceeded", "Cause":
                "the task's output is longer than the maximum number of bytes service limit, which is 262144"}, "went": "x"}),
        ),
        (
            "variables",
            json!({"Type": "Pass", "Assign": {"v.$": "$.a"}, "Next": "X"}),
            json!({"a": 1}),
            json!({"a": 1, "went": "x"}),
        ),
        (
            "context",
            json!({"Type": "Pass", "Parameters": {"n.$": "$$.Execution.Name", "s.$": "$$.State.Name", "i.$": "$$.Execution.Input.a",
                   "m.$": "$$.StateMachine.Name", "r.$": "$$.State.RetryCount", "t.$": "$$.State.EnteredTime"}}),
            json!({"a": 1}),
            json!({"n": "name", "s": "S", "i": 1, "m": "wf", "r": 0, "t": "1970-01-12T13:46:40.000Z"}),
        ),
        (
            "JSONata",
            json!({"QueryLanguage": "JSONata", "Type": "Pass", "Output": {"sum": "{% $sum($states.input.a) %}"}}),
            json!({"a": [1, 2]}),
            json!({"sum": 3}),
        ),
    ];
    for (name, state, input, output) in table {
        let ran = run(&one(state), &input);
        assert_eq!(
            (ran.phase, ran.output.as_ref()),
            (Phase::Succeeded, Some(&output)),
            "{name}: {:?} {:?}",
            ran.error,
            ran.types()
        );
    }
}

#[test]
fn how_it_fails() {
    let choice = json!({"Type": "Choice", "Choices": [{"Variable": "$.a", "NumericEquals": 1, "Next": "X"}]});
    let all = json!([{"ErrorEquals": ["States.ALL"], "Next": "X"}]);
    let table: Vec<(&str, Value, Value, &str)> = vec![
        ("fail", json!({"Type": "Fail", "Error": "E", "Cause": "c"}), json!({}), "E"),
        ("fail path", json!({"Type": "Fail", "ErrorPath": "$.e"}), json!({"e": "F"}), "F"),
        ("no choice", choice, json!({"a": 2}), "States.NoChoiceMatched"),
        ("task", task("fail_E", json!({})), json!({}), "E"),
        ("timeout", task("never", json!({"TimeoutSeconds": 1})), json!({}), "States.Timeout"),
        (
            "heartbeat",
            task("never", json!({"TimeoutSeconds": 9, "HeartbeatSeconds": 1})),
            json!({}),
            "States.HeartbeatTimeout",
        ),
        (
            "missing path",
            json!({"Type": "Pass", "Parameters": {"a.$": "$.b"}}),
            json!({}),
            "States.ParameterPathFailure",
        ),
        ("missing input path", json!({"Type": "Pass", "InputPath": "$.b"}), json!({}), "States.Runtime"),
        ("result path", task("add", json!({"ResultPath": "$.a.b"})), json!({"a": 1}), "States.ResultPathMatchFailure"),
        (
            "runtime is not caught by all",
            {
                let mut state = task("add", json!({"InputPath": "$.b"}));
                state["Catch"] = all.clone();
                state
            },
            json!({}),
            "States.Runtime",
        ),
        (
            "long data is not caught by all",
            {
                let mut state = task("long_262143", json!({}));
                state["Catch"] = all;
                state
            },
            json!({}),
            "States.DataLimitExceeded",
        ),
        (
            "intrinsic",
            json!({"Type": "Pass", "Parameters": {"a.$": "States.StringToJson('{')"}}),
            json!({}),
            "States.IntrinsicFailure",
        ),
        (
            "map over no list",
            json!({"Type": "Map", "ItemProcessor": single("A", json!({"Type": "Pass"}))}),
            json!({}),
            "States.Runtime",
        ),
        (
            "map",
            json!({"Type": "Map", "ItemProcessor": single("A", task("not_2", json!({})))}),
            json!([1, 2, 3]),
            "Item",
        ),
        (
            "map that tolerates too little",
            json!({"Type": "Map", "ToleratedFailurePercentage": 30, "ItemProcessor":
                   {"ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"}, "StartAt": "A",
                    "States": {"A": task("fail_E", json!({"End": true}))}}}),
            json!([1, 2, 3]),
            "States.ExceedToleratedFailureThreshold",
        ),
        ("parallel", json!({"Type": "Parallel", "Branches": [single("A", task("fail_E", json!({})))]}), json!({}), "E"),
        (
            "no such resource",
            json!({"Type": "Task", "Resource": "arn:aws:states:::sqs:sendMessage"}),
            json!({}),
            "States.Runtime",
        ),
    ];
    for (name, state, input, error) in table {
        let ran = run(&one(state), &input);
        assert_eq!((ran.phase, ran.error.as_deref()), (Phase::Failed, Some(error)), "{name}: {:?}", ran.types());
        assert_eq!(ran.events.last().unwrap().kind, "ExecutionFailed", "{name}");
    }
}

#[test]
fn time_passes_as_it_is_told() {
    let table = [
        (json!({"Type": "Wait", "Seconds": 86_400}), 86_400),
        (json!({"Type": "Wait", "Timestamp": "1970-01-12T13:47:40Z"}), 60),
        // 1 + 2 + 4.
        (task("flaky_3", json!({"Retry": [{"ErrorEquals": ["Flaky"]}]})), 7),
        (
            task(
                "flaky_3",
                json!({"Retry": [{"ErrorEquals": ["Flaky"], "IntervalSeconds": 10, "BackoffRate": 3, "MaxDelaySeconds": 30}]}),
            ),
            70,
        ),
        (task("never", json!({"TimeoutSeconds": 7, "Catch": [{"ErrorEquals": ["States.ALL"], "Next": "X"}]})), 7),
        (
            json!({"Type": "Parallel", "Branches": [
                single("A", json!({"Type": "Wait", "Seconds": 5})), single("B", json!({"Type": "Wait", "Seconds": 9}))]}),
            9,
        ),
    ];
    for (state, seconds) in table {
        let ran = run(&one(state.clone()), &json!({}));
        assert_eq!((ran.phase, ran.seconds), (Phase::Succeeded, seconds), "{state}");
    }
}

#[test]
fn a_run_takes_no_longer_than_it_may() {
    let mut definition = one(json!({"Type": "Wait", "Seconds": 100}));
    definition["TimeoutSeconds"] = json!(30);
    let ran = run(&definition, &json!({}));
    assert_eq!((ran.phase, ran.error.as_deref(), ran.seconds), (Phase::TimedOut, Some("States.Timeout"), 30));
    assert_eq!(ran.types()[2..], ["WaitStateAborted", "ExecutionTimedOut"]);
}

#[test]
fn an_endless_loop_ends() {
    let definition = json!({"StartAt": "A", "States": {
        "A": {"Type": "Pass", "Next": "B"}, "B": {"Type": "Pass", "Next": "A"}}});
    // The language wants an end somewhere.
    let mut definition = definition;
    definition["States"]["B"] =
        json!({"Type": "Choice", "Choices": [{"Variable": "$.never", "IsPresent": true, "Next": "C"}], "Default": "A"});
    definition["States"]["C"] = json!({"Type": "Succeed"});
    let mut walk = Walk::new(machine(&definition, &json!({}), 1000));
    walk.take(What::Start);
    walk.go();
    let ran = walk.ran();
    assert_eq!((ran.phase, ran.error.as_deref()), (Phase::Failed, Some("States.Runtime")));
    assert!((1000..1010).contains(&ran.events.len()), "{}", ran.events.len());
}

#[test]
fn variables_live_in_their_scope() {
    let definition = json!({"StartAt": "A", "States": {
        "A": {"Type": "Pass", "Assign": {"outer": 1}, "Next": "P"},
        "P": {"Type": "Parallel", "Next": "Z", "Branches": [{"StartAt": "B", "States": {
            "B": {"Type": "Pass", "Assign": {"inner.$": "$outer"}, "Next": "C"},
            "C": {"Type": "Pass", "Parameters": {"both.$": "States.Array($outer, $inner)"}, "End": true}}}]},
        "Z": {"Type": "Pass", "Parameters": {"outer.$": "$outer", "branch.$": "$[0].both"}, "End": true}}});
    let ran = run(&definition, &json!({}));
    assert_eq!(ran.output, Some(json!({"outer": 1, "branch": [1, 1]})), "{:?}", ran.error);
}

#[test]
fn assign_sees_the_result_as_it_came() {
    let mut state = task("echo", json!({"Parameters": {"a": 1, "b": 2}, "ResultSelector": {"only.$": "$.a"}}));
    state["Assign"] = json!({"whole.$": "$"});
    state["Next"] = json!("Z");
    let end = json!({"Type": "Pass", "Parameters": {"whole.$": "$whole", "left.$": "$"}, "End": true});
    let ran = run(&json!({"StartAt": "S", "States": {"S": state, "Z": end}}), &json!({}));
    assert_eq!(ran.output, Some(json!({"whole": {"a": 1, "b": 2}, "left": {"only": 1}})), "{:?}", ran.error);
}

#[test]
fn chance_is_the_same_when_a_run_is_rebuilt() {
    let state = json!({"Type": "Map", "ItemSelector": {"u.$": "States.UUID()"}, "ItemProcessor": single("A",
        json!({"Type": "Pass", "Parameters": {"u.$": "$.u", "r.$": "States.MathRandom(1, 1000000)"}}))});
    // Walk compares with checkpoints and replays.
    let output = run(&one(state), &json!([1, 2])).output.unwrap();
    assert_ne!(output[0]["u"], output[1]["u"]);
    assert_ne!(output[0]["r"], output[1]["r"]);
}

#[test]
fn events_are_the_services() {
    let ran = run(&one(json!({"Type": "Map", "ItemProcessor": single("A", task("add", json!({})))})), &json!([1]));
    let want = [
        "ExecutionStarted",
        "MapStateEntered",
        "MapStateStarted",
        "MapIterationStarted",
        "TaskStateEntered",
        "LambdaFunctionScheduled",
        "LambdaFunctionStarted",
        "LambdaFunctionSucceeded",
        "TaskStateExited",
        "MapIterationSucceeded",
        "MapStateSucceeded",
        "MapStateExited",
        "ExecutionSucceeded",
    ];
    assert_eq!(ran.types(), want);
    let mut parallel = json!({"Type": "Parallel", "Branches": [single("A", task("fail_E", json!({}))), single("B", task("never", json!({})))]});
    parallel["Branches"][0]["States"]["A"]["Resource"] = json!("skiff:function:fail_E");
    let ran = run(&one(parallel), &json!({}));
    assert_eq!(ran.count("ParallelStateStarted"), 1);
    assert_eq!(ran.types()[ran.types().len() - 3..], ["ParallelStateFailed", "TaskStateAborted", "ExecutionFailed"]);
}

#[test]
fn a_map_keeps_to_its_concurrency() {
    let items: Vec<i64> = (0..500).collect();
    let state = json!({"Type": "Map", "MaxConcurrency": 7, "ItemProcessor": single("A", task("echo", json!({})))});
    let mut walk = Walk::new(machine(&one(state), &json!(items), 100_000));
    walk.take(What::Start);
    let mut most = 0;
    while walk.machine.over().is_none() {
        most = most.max(walk.machine.outstanding().len());
        if walk.machine.more() {
            walk.take(What::Go);
        } else if let Command::Dispatch(dispatch) = walk.commands.remove(0) {
            walk.answer(&dispatch);
        }
    }
    assert_eq!(most, 7);
    assert_eq!(walk.ran().output, Some(json!(items)));
}

#[test]
fn no_step_is_long_however_much_happens() {
    let items: Vec<i64> = (0..1000).collect();
    let state = json!({"Type": "Map", "MaxConcurrency": 1000, "ItemProcessor": single("A", json!({"Type": "Wait", "Seconds": 5}))});
    let mut walk = Walk::new(machine(&one(state), &json!(items), 100_000));
    walk.machine.apply(&Input { at: walk.at, what: What::Start });
    let mut longest = 0;
    while walk.machine.over().is_none() {
        longest = longest.max(walk.machine.events().len());
        let what = if walk.machine.more() {
            What::Go
        } else {
            walk.at = walk.at.max(walk.machine.wake().unwrap());
            What::Timer
        };
        assert!(walk.machine.apply(&Input { at: walk.at, what }));
    }
    assert!(longest < 100, "{longest} events in one step");
}

#[test]
fn answers_count_once_and_late_ones_not_at_all() {
    let state = task(
        "never",
        json!({"TimeoutSeconds": 10, "Retry": [{"ErrorEquals": ["States.Timeout"], "IntervalSeconds": 1}]}),
    );
    let mut walk = Walk::new(machine(&one(state), &json!({}), 1000));
    walk.take(What::Start);
    let Command::Dispatch(first) = walk.commands.remove(0) else { panic!() };
    walk.at = walk.machine.wake().unwrap();
    walk.take(What::Timer);
    assert_eq!(walk.commands.remove(0), Command::Cancel(first.step));
    let late = |step| What::Succeeded { step, output: "1".into(), started: None };
    assert!(!walk.take(late(first.step)), "it timed out");
    walk.at = walk.machine.wake().unwrap();
    walk.take(What::Timer);
    let Command::Dispatch(second) = walk.commands.remove(0) else { panic!() };
    assert_ne!(first.step, second.step, "each attempt has a key of its own");
    assert!(!walk.take(late(Step { scope: 9, entry: 9, attempt: 9 })));
    assert!(walk.take(late(second.step)));
    assert!(!walk.take(late(second.step)), "twice");
    assert_eq!(walk.ran().output, Some(json!(1)));
}

#[test]
fn tokens_and_heartbeats() {
    let state = json!({"Type": "Task", "Resource": "arn:aws:states:::lambda:invoke.waitForTaskToken", "HeartbeatSeconds": 10,
        "Parameters": {"FunctionName": "f", "Payload": {"token.$": "$$.Task.Token"}}});
    let mut walk = Walk::new(machine(&one(state), &json!({}), 1000));
    walk.take(What::Start);
    let Command::Dispatch(dispatch) = walk.commands.remove(0) else { panic!() };
    let token = dispatch.token.clone().unwrap();
    assert_eq!(dispatch.parameters["Payload"]["token"], json!(token));
    let step = dispatch.step;
    assert!(walk.take(What::Submitted { step, output: "{}".into(), started: walk.at }));
    assert!(!walk.take(What::Submitted { step, output: "{}".into(), started: walk.at }), "twice");
    let Some(Command::Dispatch(again)) = walk.machine.outstanding().pop() else { panic!() };
    assert!(again.submitted, "an engine that takes over does not call again");
    for _ in 0..3 {
        walk.at = history::after(walk.at, 9);
        assert!(walk.take(What::Heartbeat { step }));
    }
    assert!(walk.take(What::Succeeded { step, output: "5".into(), started: None }));
    let ran = walk.ran();
    assert_eq!((ran.output, ran.seconds), (Some(json!(5)), 27));
}

#[test]
fn a_redrive_goes_on_where_it_failed() {
    let definition = json!({"StartAt": "A", "States": {
        "A": task("add", json!({"Next": "P"})),
        "P": {"Type": "Parallel", "Next": "Z", "Branches": [
            single("B", task("add", json!({}))), single("C", task("flaky_1", json!({})))]},
        "Z": {"Type": "Pass", "End": true}}});
    let mut walk = Walk::new(machine(&definition, &json!(1), 1000));
    walk.take(What::Start);
    walk.go();
    assert_eq!(walk.machine.over().unwrap().phase, Phase::Failed);
    assert!(!walk.take(What::Redrive { count: 0 }));
    assert!(walk.take(What::Redrive { count: 1 }));
    assert!(!walk.take(What::Redrive { count: 2 }), "it goes on");
    walk.go();
    let ran = walk.ran();
    assert_eq!((ran.phase, ran.output.clone()), (Phase::Succeeded, Some(json!([3, 2]))), "{:?}", ran.types());
    assert_eq!((ran.calls["A"], ran.calls["B"], ran.calls["C"]), (1, 1, 2), "what succeeded is not done again");
    assert_eq!(ran.count("ExecutionRedriven"), 1);
}

#[test]
fn a_stop_ends_it_and_a_redrive_takes_it_up() {
    let mut walk = Walk::new(machine(&one(json!({"Type": "Wait", "Seconds": 100})), &json!(1), 1000));
    walk.take(What::Start);
    assert!(walk.take(What::Stop { error: Some("E".into()), cause: None }));
    assert!(!walk.take(What::Stop { error: None, cause: None }));
    let over = walk.machine.over().unwrap().clone();
    assert_eq!((over.phase, over.error.as_deref()), (Phase::Aborted, Some("E")));
    assert_eq!(walk.machine.wake(), None);
    assert!(walk.take(What::Redrive { count: 1 }));
    walk.go();
    assert_eq!(walk.ran().output, Some(json!(1)));
}
