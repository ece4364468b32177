//! What only the states of a machine together show: where transitions lead, what is reached, whether it ends, and
//! which variables belong to which machine.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use serde_json::Value;

use super::{Check, state};
use crate::definition::{State, StateKind, Transition, escape};
use crate::fault::{self, Fault};

/// The states of the machine at `at`; nothing where a state could not be read.
pub(super) fn states(
    check: &mut Check,
    value: Option<&Value>,
    start_at: Option<&str>,
    at: &str,
) -> Option<IndexMap<String, State>> {
    let value = value?;
    let here = format!("{at}/States");
    let Some(map) = value.as_object() else {
        check.error(&here, "The value for the field 'States' must be an OBJECT");
        return None;
    };
    if map.is_empty() {
        check.error(&here, "A state machine has at least one state");
    }
    check.outer.push(variables(map));
    let states: IndexMap<String, State> = map
        .iter()
        .filter_map(|(name, value)| {
            let at = format!("{here}/{}", escape(name));
            state::state(check, name, value, &at).map(|state| (name.clone(), state))
        })
        .collect();
    check.outer.pop();
    scopes(check);
    let whole = states.len() == map.len();
    transitions(check, map, &states, start_at, at);
    whole.then_some(states)
}

/// Transitions as they are written, so that a state with other faults still leads somewhere.
fn targets(value: &Value) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut add = |value: Option<&Value>, at: String| {
        if let Some(target) = value.and_then(Value::as_str) {
            out.push((at, target.to_owned()));
        }
    };
    let type_name = value.get("Type").and_then(Value::as_str);
    if !matches!(type_name, Some("Choice" | "Succeed" | "Fail")) {
        add(value.get("Next"), "/Next".to_owned());
    }
    let lists = match type_name {
        Some("Choice") => {
            add(value.get("Default"), "/Default".to_owned());
            "Choices"
        }
        Some("Task" | "Parallel" | "Map") => "Catch",
        _ => return out,
    };
    for (i, item) in value.get(lists).and_then(Value::as_array).into_iter().flatten().enumerate() {
        add(item.get("Next"), format!("/{lists}/{i}/Next"));
    }
    out
}

fn transitions(
    check: &mut Check,
    map: &serde_json::Map<String, Value>,
    states: &IndexMap<String, State>,
    start_at: Option<&str>,
    at: &str,
) {
    let mut leads: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in map {
        for (field, target) in targets(value) {
            if map.contains_key(&target) {
                leads.entry(name).or_default().push(target);
            } else {
                let label = field.rsplit('/').next().unwrap_or_default();
                let message = format!("Missing '{label}' target: {target}");
                let place = format!("{at}/States/{}{field}", escape(name));
                check.faults.push(Fault::error(fault::MISSING_TRANSITION_TARGET, place, message));
            }
        }
    }
    let Some(start) = start_at else { return };
    if !map.contains_key(start) {
        let message = format!("Missing 'StartAt' target: {start}");
        check.faults.push(Fault::error(fault::MISSING_TRANSITION_TARGET, format!("{at}/StartAt"), message));
        return;
    }
    let mut reached = BTreeSet::from([start]);
    let mut open = vec![start];
    while let Some(name) = open.pop() {
        for target in leads.get(name).into_iter().flatten() {
            if reached.insert(target) {
                open.push(target);
            }
        }
    }
    for name in map.keys().filter(|name| !reached.contains(name.as_str())) {
        let message = format!("State \"{name}\" is not reachable.");
        let place = format!("{at}/States/{}", escape(name));
        check.faults.push(Fault::error(fault::MISSING_TRANSITION_TARGET, place, message));
    }
    // A state that could not be read may be one that ends, and one with Next and End has its fault already.
    let ends = |name: &&str| {
        let said = map.get(*name).and_then(|state| state.get("End")) == Some(&Value::Bool(true));
        said || states.get(*name).is_none_or(|state| {
            let no_rules = matches!(&state.kind, StateKind::Choice(choice) if choice.choices.is_empty());
            state.next == Transition::End || no_rules
        })
    };
    if !reached.iter().any(ends) {
        let message = format!("No path from the state \"{start}\" ends the state machine");
        check.faults.push(Fault::error(fault::MISSING_END_STATE, at, message));
    }
}

/// The names that the states of a machine assign, those of machines inside them left out.
fn variables(map: &serde_json::Map<String, Value>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut add = |holder: &Value| {
        for key in holder.get("Assign").and_then(Value::as_object).into_iter().flat_map(serde_json::Map::keys) {
            names.insert(key.strip_suffix(".$").unwrap_or(key).to_owned());
        }
    };
    for state in map.values() {
        add(state);
        for list in ["Choices", "Catch"] {
            state.get(list).and_then(Value::as_array).into_iter().flatten().for_each(&mut add);
        }
    }
    names
}

/// A machine may not assign a variable of a machine around it.
fn scopes(check: &mut Check) {
    for (name, at) in std::mem::take(&mut check.assigned) {
        if check.outer.iter().any(|outer| outer.contains(&name)) {
            let message = format!("The variable '{name}' is assigned in an outer scope and cannot be assigned here");
            check.error(&at, message);
        }
    }
}
