//! What needs no run: ValidateStateMachineDefinition and TestState.
//!
//! TestState runs one state: data goes through its stages, and the answer says what a run would do next. The result of a
//! Task has to be given (`mock`), and that of a Parallel or Map in which something is outside or waits: nothing outside is touched.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use skiff_asl::definition::{ResultPath, State, StateKind, Transition};
use skiff_asl::{Definition, ExecutionError, Scope, Severity, choice, data, retry};

use super::Call;
use crate::endpoint::error::{Answer, Fault};
use crate::engine::judge;
use crate::machine::{Info, Input, Machine, Over, What};

/// Events of a state that is tested without a mock.
const TRIAL_EVENTS: u64 = 25_000;

/// The faults that refuse a definition, as the service writes them.
pub(super) fn errors(faults: &[skiff_asl::Fault]) -> impl Iterator<Item = String> {
    let errors = faults.iter().filter(|f| f.severity == Severity::Error);
    errors.map(|f| format!("{}: {} at {}", f.code, f.message, f.path))
}

pub(super) fn validate(call: &Call<'_>) -> Answer {
    let warnings = call.text("severity") == Some("WARNING");
    let most = call.request["maxResults"].as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    let most = most.unwrap_or(100);
    let (read, all) = judge(call.required("definition"));
    let fails = read.is_none();
    let told = all.iter().filter(|f| f.severity == Severity::Error || warnings).map(|f| {
        let mut told = json!(f);
        if let (true, Some(members)) = (f.path.is_empty(), told.as_object_mut()) {
            members.remove("location");
        }
        told
    });
    let mut told: Vec<Value> = told.collect();
    let truncated = told.len() > most;
    told.truncate(most);
    let result = if fails { "FAIL" } else { "OK" };
    Ok(json!({"result": result, "diagnostics": told, "truncated": truncated}))
}

/// The state to test, in a definition that is whole: what it leads to is made up where only a state was given.
fn subject(call: &Call<'_>) -> Result<(Definition, String), Fault> {
    let invalid = |m: String| Fault::new("InvalidDefinition", format!("Invalid State Machine Definition: '{m}'"));
    let text = call.required("definition");
    let given: Value = serde_json::from_str(text).map_err(|e| invalid(e.to_string()))?;
    let (whole, name) = if given.get("States").is_some() {
        let name = call.text("stateName").or(given["StartAt"].as_str()).unwrap_or_default().to_owned();
        (given, name)
    } else {
        (around(&given), "State".to_owned())
    };
    let definition =
        Definition::parse(&whole).map_err(|faults| invalid(errors(&faults).collect::<Vec<_>>().join(", ")))?;
    if definition.find(&name).is_none() {
        return Err(Fault::validation(format!("There is no state '{name}' in the definition.")));
    }
    Ok((definition, name))
}

/// A definition around one state.
fn around(state: &Value) -> Value {
    let mut targets: Vec<&str> = vec![];
    let branches = ["Catch", "Choices"].iter().filter_map(|m| state[m].as_array()).flatten();
    targets.extend(branches.filter_map(|b| b["Next"].as_str()));
    targets.extend(["Next", "Default"].iter().filter_map(|m| state[m].as_str()));
    let mut states: Map<String, Value> =
        targets.into_iter().map(|t| (t.to_owned(), json!({"Type": "Succeed"}))).collect();
    // A state may lead to itself.
    states.insert("State".to_owned(), state.clone());
    json!({"StartAt": "State", "States": states})
}

fn parsed(call: &Call<'_>, member: &str, default: Value) -> Result<Value, Fault> {
    let Some(text) = call.text(member) else { return Ok(default) };
    serde_json::from_str(text).map_err(|e| match member {
        "input" => Fault::new("InvalidExecutionInput", format!("Invalid State Machine Execution Input: '{e}'")),
        _ => Fault::validation(format!("'{member}' is no JSON: {e}")),
    })
}

/// What a state did.
#[derive(Default)]
struct Trial {
    /// Data after each stage.
    seen: Map<String, Value>,
    variables: BTreeMap<String, Value>,
    next: Option<String>,
}

impl Trial {
    fn see(&mut self, stage: &str, value: &Value) {
        self.seen.insert(stage.to_owned(), value.to_string().into());
    }
}

/// The mocked result of a state's work.
enum Mock {
    None,
    Result(Value),
    Error(ExecutionError),
}

pub(super) fn test(call: &Call<'_>) -> Answer {
    let (definition, name) = subject(call)?;
    let state = definition.find(&name).ok_or_else(|| Fault::validation("There is no such state."))?;
    let input = parsed(call, "input", json!({}))?;
    let context = parsed(call, "context", json!({}))?;
    let variables: BTreeMap<String, Value> = match parsed(call, "variables", json!({}))? {
        Value::Object(all) => all.into_iter().collect(),
        _ => return Err(Fault::validation("'variables' must be a JSON object.")),
    };
    let mock = &call.request["mock"];
    let mock = match (mock["result"].as_str(), &mock["errorOutput"]) {
        (Some(_), e) if !e.is_null() => return Err(Fault::validation("A mock has a result or an error, not both.")),
        (Some(text), _) => Mock::Result(
            serde_json::from_str(text).map_err(|e| Fault::validation(format!("'mock.result' is no JSON: {e}")))?,
        ),
        (None, Value::Null) => Mock::None,
        (None, e) => {
            let part = |m: &str| e[m].as_str().unwrap_or_default().to_owned();
            Mock::Error(ExecutionError { error: part("error"), cause: part("cause") })
        }
    };
    let works = matches!(state.kind, StateKind::Task(_) | StateKind::Parallel(_) | StateKind::Map(_));
    let mock = match mock {
        Mock::None if works && variables.is_empty() => alone(&definition, &name, &input),
        mock => mock,
    };
    match (&mock, works) {
        (Mock::None, true) => {
            return Err(Fault::validation(format!("A mock is needed to test a state of type {}.", state.type_name())));
        }
        (Mock::Result(_) | Mock::Error(_), false) => {
            return Err(Fault::validation(format!("A state of type {} takes no mock.", state.type_name())));
        }
        _ => {}
    }
    let mut trial = Trial { variables: variables.clone(), ..Trial::default() };
    trial.see("input", &input);
    let scope = Scope::new(&context, &variables);
    let done = walk(state, &input, &scope, mock, &mut trial);
    Ok(tell(call, state, &input, &scope, done, trial))
}

/// What shapes the result of a state, or leads on from it: not its work.
const AROUND: [&str; 8] = ["ResultSelector", "ResultPath", "OutputPath", "Output", "Assign", "Retry", "Catch", "Next"];

/// The result of a Parallel or Map that touches nothing outside and waits for nothing; no mock otherwise.
fn alone(definition: &Definition, name: &str, input: &Value) -> Mock {
    let Some(mut state) = raw_of(&definition.raw, name).cloned() else { return Mock::None };
    if let Some(fields) = state.as_object_mut() {
        AROUND.iter().for_each(|field| drop(fields.remove(*field)));
        fields.insert("End".to_owned(), true.into());
        fields.entry("QueryLanguage").or_insert_with(|| definition.query_language.as_str().into());
    }
    let whole = Definition::parse(&json!({"StartAt": name, "States": {name: state}}));
    let Ok(whole) = whole else { return Mock::None };
    let mut quiet = matches!(whole.find(name).map(|s| &s.kind), Some(StateKind::Parallel(_) | StateKind::Map(_)));
    whole.machine.visit("", &mut |_, state| {
        quiet &= match &state.kind {
            StateKind::Task(_) | StateKind::Wait(_) => false,
            StateKind::Map(map) => map.item_reader.is_none() && map.result_writer.is_none(),
            _ => true,
        };
    });
    if !quiet {
        return Mock::None;
    }
    let info = Info { input: input.clone(), max_events: TRIAL_EVENTS, name: name.to_owned(), ..Info::default() };
    let mut machine = Machine::new(Arc::new(whole), Arc::new(info));
    let at = crate::journal::record::now();
    machine.apply(&Input { at, what: What::Start });
    while machine.more() {
        machine.events();
        machine.apply(&Input { at, what: What::Go });
    }
    match machine.over() {
        // A retry within waits.
        None => Mock::None,
        Some(Over { output: Some(output), .. }) => Mock::Result(output.clone()),
        Some(over) => {
            let part = |part: &Option<String>| part.clone().unwrap_or_default();
            Mock::Error(ExecutionError { error: part(&over.error), cause: part(&over.cause) })
        }
    }
}

/// A state of a definition as it was written, wherever it is.
fn raw_of<'a>(machine: &'a Value, name: &str) -> Option<&'a Value> {
    let states = machine["States"].as_object()?;
    states.get(name).or_else(|| {
        states.values().find_map(|state| {
            let branches = state["Branches"].as_array().into_iter().flatten();
            let inner = branches.chain([&state["ItemProcessor"], &state["Iterator"]]);
            inner.filter(|m| m.is_object()).find_map(|m| raw_of(m, name))
        })
    })
}

/// The stages of a state.
fn walk(state: &State, raw: &Value, scope: &Scope<'_>, mock: Mock, trial: &mut Trial) -> Result<Value, ExecutionError> {
    let input = data::input(state, raw, scope)?;
    if !state.is_jsonata() {
        trial.see("afterInputPath", &input);
    }
    let next = match &state.next {
        Transition::Next(next) => Some(next.clone()),
        _ => None,
    };
    match &state.kind {
        StateKind::Choice(rules) => {
            let decision = choice::decide(rules, &input, scope)?.ok_or_else(choice::no_match)?;
            let rule = decision.rule.and_then(|i| rules.choices.get(i));
            let output = match rule.and_then(|r| r.output.as_ref()) {
                Some(template) => template.eval(&input, scope)?,
                None => data::output(state, raw, input.clone(), scope)?,
            };
            let assigned = match rule {
                Some(rule) if rule.assign.is_some() => data::rule_assign(rule, &input, scope)?,
                _ => data::assign(state, &input, scope)?,
            };
            trial.variables.extend(assigned);
            trial.next = Some(decision.next.to_owned());
            return Ok(output);
        }
        StateKind::Fail(fail) => return Err(data::failure(fail, &input, scope)?),
        StateKind::Wait(wait) => drop(data::pause(wait, &input, scope)?),
        _ => {}
    }
    let parameters = match &state.kind {
        StateKind::Map(map) => {
            let items = data::items(map, &input, scope)?;
            trial.see("afterItemsPath", &json!(items));
            input.clone()
        }
        StateKind::Succeed | StateKind::Wait(_) => input.clone(),
        _ => {
            let parameters = data::parameters(state, &input, scope)?;
            trial.see(if state.is_jsonata() { "afterArguments" } else { "afterParameters" }, &parameters);
            parameters
        }
    };
    let result = match (&state.kind, mock) {
        (_, Mock::Error(error)) => return Err(error),
        (_, Mock::Result(result)) => result,
        (StateKind::Pass(pass), Mock::None) => pass.result.clone().unwrap_or(parameters),
        (_, Mock::None) => parameters,
    };
    let scope = scope.with_result(&result);
    let mut shaped = result.clone();
    let works = matches!(state.kind, StateKind::Task(_) | StateKind::Parallel(_) | StateKind::Map(_));
    if works || matches!(state.kind, StateKind::Pass(_)) {
        trial.see("result", &result);
    }
    if works && !state.is_jsonata() {
        shaped = data::result_selector(state, &result, &scope)?;
        trial.see("afterResultSelector", &shaped);
    }
    let here = if state.is_jsonata() { raw } else { &shaped };
    let assigned = data::assign(state, here, &scope)?;
    let placed = data::result_path(&state.result_path, raw, shaped.clone())?;
    if !state.is_jsonata() && (works || matches!(state.kind, StateKind::Pass(_))) {
        trial.see("afterResultPath", &placed);
    }
    let output = data::output(state, raw, placed, &scope)?;
    trial.variables.extend(assigned);
    trial.next = next;
    Ok(output)
}

/// The answer: what a run would do next.
fn tell(
    call: &Call<'_>,
    state: &State,
    raw: &Value,
    scope: &Scope<'_>,
    done: Result<Value, ExecutionError>,
    mut trial: Trial,
) -> Value {
    let mut told = json!({});
    let mut details = None;
    let done = match done {
        Ok(output) => {
            told["status"] = "SUCCEEDED".into();
            Ok(output)
        }
        Err(error) => {
            let retried = call.request["stateConfiguration"]["retrierRetryCount"].as_u64().unwrap_or_default();
            let retrier = retry::find(&state.retry, &error.error);
            let again = retrier.and_then(|i| Some((i, state.retry.get(i)?))).filter(|(_, r)| retried < r.max_attempts);
            let catcher = retry::find_catcher(&state.catch, &error.error);
            let catcher = catcher.and_then(|i| Some((i, state.catch.get(i)?)));
            told["error"] = error.error.clone().into();
            told["cause"] = error.cause.clone().into();
            let shown = json!({"Error": error.error, "Cause": error.cause});
            match (again, catcher) {
                (Some((i, retrier)), _) => {
                    told["status"] = "RETRIABLE".into();
                    let pause = retry::delay(retrier, retried, 1.0).as_secs();
                    details = Some(json!({"retryIndex": i, "retryBackoffIntervalSeconds": pause}));
                    Err(())
                }
                (None, Some((i, catcher))) => {
                    told["status"] = "CAUGHT_ERROR".into();
                    details = Some(json!({"catchIndex": i}));
                    trial.next = Some(catcher.next.clone());
                    if let Ok(assigned) = data::catch_assign(catcher, state, raw, &shown, scope) {
                        trial.variables.extend(assigned);
                    }
                    if catcher.result_path != ResultPath::Discard {
                        trial.seen.remove("afterResultPath");
                    }
                    data::catch_output(catcher, raw, &shown, scope).map_err(drop)
                }
                (None, None) => {
                    told["status"] = "FAILED".into();
                    Err(())
                }
            }
        }
    };
    if let Ok(output) = done {
        told["output"] = output.to_string().into();
    }
    if let Some(next) = trial.next {
        told["nextState"] = next.into();
    }
    if matches!(call.text("inspectionLevel"), Some("DEBUG" | "TRACE")) {
        let mut seen = trial.seen;
        seen.insert("variables".to_owned(), json!(trial.variables).to_string().into());
        if let Some(details) = details {
            seen.insert("errorDetails".to_owned(), details);
        }
        told["inspectionData"] = Value::Object(seen);
    }
    told
}
