//! The three forms, one function each: they fill the states and give the start and the input.

use serde_json::{Map, Value, json};

use super::Work;
use super::condition::{dotted, holds, holds_not, member};

type Start = (Option<String>, Option<Value>);
type Object = Map<String, Value>;

fn text<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str().filter(|text| !text.is_empty())
}

/// Data that may be written as JSON in a string.
fn data(object: &Object, key: &str) -> Option<Value> {
    match object.get(key)? {
        Value::Null => None,
        Value::String(text) => Some(serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into())),
        other => Some(other.clone()),
    }
}

/// `startAt`, `params`, `nodes`: the name of a Task is that of its function.
pub(super) fn map_of_nodes(work: &mut Work, spec: &Object) -> Start {
    let nodes = spec.get("nodes").and_then(Value::as_object).cloned().unwrap_or_default();
    work.names = nodes.keys().cloned().collect();
    for (name, node) in &nodes {
        let Some(node) = node.as_object() else {
            work.errors.push(format!("the node '{name}' is no object"));
            continue;
        };
        match text(node, "type").unwrap_or_default().to_lowercase().as_str() {
            "task" => {
                let resource = work.function(name);
                // The predecessor tried five times, five seconds apart.
                let retry = json!([{
                    "ErrorEquals": ["States.ALL"], "IntervalSeconds": 5, "MaxAttempts": 4, "BackoffRate": 1.0,
                }]);
                let state = json!({ "Type": "Task", "Resource": resource, "Retry": retry });
                work.put(name, state, text(node, "next"));
            }
            "choice" => choice_of_operators(work, name, node),
            other => work.errors.push(format!("the node '{name}' has the unknown type '{other}'")),
        }
    }
    (text(spec, "startAt").map(str::to_owned), data(spec, "params"))
}

fn choice_of_operators(work: &mut Work, name: &str, node: &Object) {
    const OPERATORS: [(&str, &str, bool); 9] = [
        ("numericEquals", "NumericEquals", true),
        ("numericNotEquals", "NumericEquals", false),
        ("numericLessThan", "NumericLessThan", true),
        ("numericGreaterThan", "NumericGreaterThan", true),
        ("stringEquals", "StringEquals", true),
        ("stringNotEquals", "StringEquals", false),
        ("stringLessThan", "StringLessThan", true),
        ("stringGreaterThan", "StringGreaterThan", true),
        ("booleanEquals", "BooleanEquals", true),
    ];
    let mut rules = Vec::new();
    for (i, choice) in node.get("choices").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let Some(choice) = choice.as_object() else { continue };
        let found = OPERATORS.iter().find_map(|(key, operator, plain)| Some((choice.get(*key)?, *operator, *plain)));
        let variable = text(choice, "variable").and_then(dotted);
        let (Some((operand, operator, plain)), Some(variable)) = (found, variable) else {
            work.errors.push(format!(
                "the choice {i} of the node '{name}' has no known operator, or a variable that is more than names and \
                 indexes"
            ));
            continue;
        };
        if !plain {
            work.note(format!("the language has no operator for 'not equal': '{name}' uses Not"));
        }
        let rule = if plain { holds } else { holds_not }(&variable, operator, operand);
        add_rule(work, &mut rules, rule, text(choice, "next"));
    }
    let default = text(node, "default").map(str::to_owned);
    choice(work, name, rules, default);
}

/// A rule with its transition; one without ends the run.
fn add_rule(work: &mut Work, rules: &mut Vec<Value>, mut rule: Value, next: Option<&str>) {
    rule["Next"] = match next {
        Some(next) => work.resolve(next).into(),
        None => end(work).into(),
    };
    rules.push(rule);
}

/// A Choice; without a match the predecessors ended the run well.
fn choice(work: &mut Work, name: &str, rules: Vec<Value>, default: Option<String>) {
    let default = match default {
        Some(default) => work.resolve(&default),
        None => {
            work.note(format!("where no rule of '{name}' holds, the run succeeds, as it did before"));
            end(work)
        }
    };
    let state = if rules.is_empty() {
        json!({ "Type": "Pass", "Next": default })
    } else {
        json!({ "Type": "Choice", "Choices": rules, "Default": default })
    };
    work.states.insert(name.to_owned(), state);
}

/// A state that ends the run well.
fn end(work: &mut Work) -> String {
    let mut name = "End".to_owned();
    while work.names.contains(&name) && work.states.get(&name) != Some(&json!({ "Type": "Succeed" })) {
        name.push('_');
    }
    if !work.names.contains(&name) {
        work.names.push(name.clone());
    }
    work.states.insert(name.clone(), json!({ "Type": "Succeed" }));
    name
}

/// `spec.startNode`, `spec.startCoeff`, `spec.nodes`: func, fork and call.
pub(super) fn list_of_nodes(work: &mut Work, spec: &Object) -> Start {
    let nodes: Vec<Object> = spec
        .get("nodes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|node| node.as_object().cloned())
        .collect();
    for node in &nodes {
        match text(node, "name") {
            None => work.errors.push("a node has no name".to_owned()),
            Some(name) if work.names.iter().any(|other| other == name) => {
                work.errors.push(format!("the node '{name}' occurs twice"));
            }
            Some(name) => work.names.push(name.to_owned()),
        }
    }
    let empty = Map::new();
    for node in &nodes {
        let Some(name) = text(node, "name") else { continue };
        let part = |key: &str| node.get(key).and_then(Value::as_object).unwrap_or(&empty);
        match text(node, "type").unwrap_or_default() {
            "func" => {
                let func = part("funcSpec");
                let Some(function) = text(func, "name") else {
                    work.errors.push(format!("the node '{name}' names no function"));
                    continue;
                };
                let resource = work.function(function);
                if text(func, "namespace").is_some_and(|namespace| namespace != "default") {
                    work.note("functions are those of the workflow's own namespace");
                }
                work.note("a function that fails ends the run: before, the run went on with empty data");
                work.put(name, json!({ "Type": "Task", "Resource": resource }), text(func, "next"));
            }
            "fork" => fork(work, name, node.get("forkSpecs").and_then(Value::as_array).cloned().unwrap_or_default()),
            "call" => call(work, name, part("callSpec")),
            other => work.errors.push(format!("the node '{name}' has the unknown type '{other}'")),
        }
    }
    (text(spec, "startNode").map(str::to_owned), data(spec, "startCoeff"))
}

fn fork(work: &mut Work, name: &str, specs: Vec<Value>) {
    let mut rules = Vec::new();
    let mut default = None;
    for spec in specs.iter().filter_map(Value::as_object) {
        let compare = text(spec, "compareBy").unwrap_or_default();
        let next = text(spec, "next");
        if compare == "default" {
            default = Some(next.map(str::to_owned));
            continue;
        }
        let Some(variable) = text(spec, "variable").map(member) else {
            work.errors.push(format!("a branch of the node '{name}' has no variable"));
            continue;
        };
        let wanted = match spec.get("compareTo") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => String::new(),
            Some(other) => other.to_string(),
        };
        let (operator, numeric, plain) = match compare {
            "NumE" => ("NumericEquals", true, true),
            "NumG" => ("NumericGreaterThan", true, true),
            "NumL" => ("NumericLessThan", true, true),
            "NumNE" => ("NumericEquals", true, false),
            "StrE" => ("StringEquals", false, true),
            "StrNE" => ("StringEquals", false, false),
            other => {
                work.errors.push(format!("a branch of the node '{name}' compares by the unknown '{other}'"));
                continue;
            }
        };
        let operand = if numeric {
            match wanted.trim().parse::<f64>() {
                Ok(number) if number.is_finite() => crate::path::number(number),
                _ => {
                    work.errors.push(format!("a branch of the node '{name}' compares with '{wanted}', no number"));
                    continue;
                }
            }
        } else {
            Value::String(wanted)
        };
        if compare == "NumNE" {
            work.note("'NumNE' now does what it says: before, it never held");
        }
        if !plain {
            work.note(format!("the language has no operator for 'not equal': '{name}' uses Not"));
        }
        let rule = if plain { holds } else { holds_not }(&variable, operator, &operand);
        add_rule(work, &mut rules, rule, next);
    }
    let default = match default {
        Some(Some(next)) => Some(next),
        Some(None) => Some(end(work)),
        None => None,
    };
    choice(work, name, rules, default);
}

/// A workflow started in the background: inherited data by name, other data as it is written.
fn call(work: &mut Work, name: &str, spec: &Object) {
    let Some(workflow) = text(spec, "wfName") else {
        work.errors.push(format!("the node '{name}' names no workflow"));
        return;
    };
    let workflow = work.object_name("workflow", workflow);
    let mut input = Map::new();
    let added = ["newCoeff", "coeff"].iter().find_map(|key| data(spec, key));
    let added = added.as_ref().and_then(Value::as_object).cloned().unwrap_or_default();
    for inherited in spec.get("inheritCoeff").and_then(Value::as_array).into_iter().flatten() {
        // On a clash the added value won.
        if let Some(key) = inherited.as_str().filter(|key| !added.contains_key(*key)) {
            input.insert(format!("{key}.$"), member(key).into());
        }
    }
    if !input.is_empty() {
        work.note(format!("'{name}' fails where a value that it hands on is missing: before, it was left out"));
    }
    input.extend(added);
    let state = json!({
        "Type": "Task",
        "Resource": "arn:aws:states:::states:startExecution",
        "Parameters": {
            "StateMachineArn": format!("arn:aws:states:skiff:000000000000:stateMachine:{workflow}"),
            "Input": input,
        },
        "ResultPath": null,
    });
    work.put(name, state, text(spec, "next"));
}

/// `spec.startAt`, `spec.states`: Task with a resource, Choice with rules and a default, Fail.
pub(super) fn map_of_states(work: &mut Work, spec: &Object) -> Start {
    let states = spec.get("states").and_then(Value::as_object).cloned().unwrap_or_default();
    work.names = states.keys().cloned().collect();
    for (name, state) in &states {
        let Some(state) = state.as_object() else {
            work.errors.push(format!("the state '{name}' is no object"));
            continue;
        };
        match text(state, "type").unwrap_or_default() {
            "Task" => match text(state, "resource") {
                Some(function) => {
                    let resource = work.function(function);
                    work.put(name, json!({ "Type": "Task", "Resource": resource }), text(state, "next"));
                }
                None => work.errors.push(format!("the state '{name}' has no resource")),
            },
            "Choice" => choice_of_rules(work, name, state),
            "Fail" => {
                let mut fail = json!({ "Type": "Fail" });
                for (from, to) in [("error", "Error"), ("cause", "Cause")] {
                    if let Some(value) = text(state, from) {
                        fail[to] = value.into();
                    }
                }
                work.states.insert(name.clone(), fail);
            }
            "Succeed" => _ = work.states.insert(name.clone(), json!({ "Type": "Succeed" })),
            other => work.errors.push(format!("the state '{name}' has the unknown type '{other}'")),
        }
    }
    (text(spec, "startAt").map(str::to_owned), data(spec, "params"))
}

fn choice_of_rules(work: &mut Work, name: &str, state: &Object) {
    let mut rules = Vec::new();
    for rule in state.get("rules").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object) {
        let operator = match text(rule, "type").unwrap_or_default() {
            "FieldEquals" => "StringEquals",
            "FieldNumEquals" => "NumericEquals",
            other => {
                work.errors.push(format!("a rule of the state '{name}' has the unknown type '{other}'"));
                continue;
            }
        };
        let (Some(field), Some(content)) = (text(rule, "field"), rule.get("content")) else {
            work.errors.push(format!("a rule of the state '{name}' has no field or no content"));
            continue;
        };
        let rule_state = holds(&member(field), operator, content);
        add_rule(work, &mut rules, rule_state, text(rule, "next"));
    }
    // An older draft of the form compares the whole data.
    for choice in state.get("choices").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object) {
        match choice.get("stringEquals") {
            Some(wanted) => {
                let rule = json!({ "Variable": "$", "StringEquals": wanted });
                add_rule(work, &mut rules, rule, text(choice, "next"));
            }
            None => work.errors.push(format!("a choice of the state '{name}' has no known operator")),
        }
    }
    let default = text(state, "default").map(str::to_owned);
    choice(work, name, rules, default);
}
