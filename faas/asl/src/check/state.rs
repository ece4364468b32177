//! One state.

use serde_json::Value;

use super::fields::Fields;
use super::{Check, branch, map, retry, rules};
use crate::definition::{
    Fail, MAX_NAME_CHARS, MAX_SECONDS, Pass, QueryLanguage, ResultPath, Selection, Setting, State, StateKind, Task,
    Transition, Wait,
};
use crate::fault::{self, Fault};
use crate::template::Template;

const TYPES: [&str; 8] = ["Task", "Pass", "Choice", "Wait", "Succeed", "Fail", "Parallel", "Map"];

/// The fields of the JSONPath mode that JSONata has not, and the other way round.
const JSONPATH_ONLY: [&str; 8] =
    ["InputPath", "OutputPath", "Parameters", "ResultSelector", "ResultPath", "ItemsPath", "Result", "Variable"];
const JSONATA_ONLY: [&str; 4] = ["Arguments", "Output", "Items", "Condition"];

/// The state of that name, if enough of it can be read.
pub(super) fn state(check: &mut Check, name: &str, value: &Value, at: &str) -> Option<State> {
    name_of(check, name, at);
    let default_language = check.language;
    let mut fields = Fields::new(value, at, check)?;
    let type_name = fields.required("Type").and_then(|_| fields.word("Type", &TYPES));
    let language = match fields.language() {
        Some(QueryLanguage::JsonPath) if default_language == QueryLanguage::Jsonata => {
            fields.fault("QueryLanguage", "A state cannot use JSONPath where the state machine uses JSONata");
            QueryLanguage::Jsonata
        }
        Some(language) => language,
        None => default_language,
    };
    let mut fields = fields.with_language(language);
    let comment = fields.string("Comment");
    // Without its type nothing is known of the other fields.
    let type_name = type_name?;
    let mut state = State {
        name: name.to_owned(),
        comment,
        query_language: language,
        input_path: Selection::Whole,
        parameters: None,
        result_selector: None,
        result_path: ResultPath::Replace,
        output_path: Selection::Whole,
        output: None,
        assign: None,
        next: Transition::End,
        retry: Vec::new(),
        catch: Vec::new(),
        kind: StateKind::Succeed,
    };
    common(&mut fields, &type_name, &mut state);
    let kind = match type_name.as_str() {
        "Task" => task(&mut fields).map(StateKind::Task),
        "Pass" => Some(StateKind::Pass(pass(&mut fields))),
        "Choice" => rules::choice(&mut fields).map(StateKind::Choice),
        "Wait" => wait(&mut fields).map(StateKind::Wait),
        "Fail" => Some(StateKind::Fail(fail(&mut fields))),
        "Parallel" => branch::parallel(&mut fields).map(StateKind::Parallel),
        "Map" => map::map(&mut fields).map(|map| StateKind::Map(Box::new(map))),
        _ => Some(StateKind::Succeed),
    };
    wrong_language(&mut fields);
    fields.finish(&format!("of a state of type '{type_name}'"));
    state.kind = kind?;
    Some(state)
}

fn name_of(check: &mut Check, name: &str, at: &str) {
    let count = name.chars().count();
    if count == 0 || count > MAX_NAME_CHARS {
        let message = format!("A state's name has 1 to {MAX_NAME_CHARS} characters, this one has {count}");
        check.faults.push(Fault::error(fault::INVALID_STATE_NAME, at, message));
    }
    if let Some(first) = check.names.get(name) {
        let message = format!("The state name '{name}' occurs more than once: also at {first}");
        check.faults.push(Fault::error(fault::DUPLICATE_STATE_NAME, at, message));
    } else {
        check.names.insert(name.to_owned(), at.to_owned());
    }
}

/// What several types share; which of them have which field is the language's table.
fn common(fields: &mut Fields<'_, '_>, type_name: &str, state: &mut State) {
    let of = |types: &[&str]| types.contains(&type_name);
    let works = of(&["Task", "Parallel", "Map"]);
    if fields.is_jsonata() {
        if !of(&["Fail"]) {
            state.output = fields.template("Output");
        }
        if of(&["Task", "Parallel"]) {
            state.parameters = fields.payload("Arguments");
        }
    } else {
        if !of(&["Fail"]) {
            state.input_path = fields.selection("InputPath");
            state.output_path = fields.selection("OutputPath");
        }
        if of(&["Task", "Pass", "Parallel"]) {
            state.parameters = fields.payload("Parameters");
        }
        if works {
            state.result_selector = fields.payload("ResultSelector");
        }
        if works || of(&["Pass"]) {
            state.result_path = fields.result_path();
        }
    }
    if !of(&["Succeed", "Fail"]) {
        state.assign = assign(fields);
    }
    if works {
        state.retry = retry::retriers(fields);
        state.catch = retry::catchers(fields);
    }
    state.next = match type_name {
        "Choice" => Transition::Choice,
        "Succeed" | "Fail" => Transition::End,
        _ => transition(fields),
    };
}

fn transition(fields: &mut Fields<'_, '_>) -> Transition {
    let next = fields.string("Next");
    let end = fields.boolean("End");
    match (fields.has("Next"), fields.has("End")) {
        (true, true) if end != Some(false) => {
            fields.own_fault("A state has either 'Next' or 'End', not both");
        }
        (false, false) => fields.own_fault("One of the fields 'Next' and 'End' is required"),
        (false, true) if end == Some(false) => {
            fields.fault("End", "The value for the field 'End' must be true where there is no 'Next'");
        }
        _ => {}
    }
    next.map_or(Transition::End, Transition::Next)
}

/// `Assign`, whose keys are names of variables.
pub(super) fn assign(fields: &mut Fields<'_, '_>) -> Option<Template> {
    let value = fields.get("Assign")?;
    let Some(map) = value.as_object() else {
        let message =
            format!("The value for the field 'Assign' must be an OBJECT but is {}", super::fields::kind(value));
        fields.fault("Assign", message);
        return None;
    };
    for key in map.keys() {
        let name = if fields.is_jsonata() { key } else { key.strip_suffix(".$").unwrap_or(key) };
        let at = format!("{}/{}", fields.pointer("Assign"), crate::definition::escape(key));
        if name == "states" {
            fields.check.error(&at, "The variable 'states' is reserved");
        } else if !is_variable(name) {
            let message = format!(
                "'{name}' is no name of a variable: it has up to {MAX_NAME_CHARS} letters, digits and underscores and \
                 begins with no digit"
            );
            fields.check.error(&at, message);
        }
        fields.check.assigned.push((name.to_owned(), at));
    }
    fields.template("Assign")
}

fn is_variable(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
        && chars.all(|c| c.is_alphanumeric() || c == '_')
        && name.chars().count() <= MAX_NAME_CHARS
}

/// Fields that exist, but in the other language: said so, rather than only called unknown.
pub(super) fn wrong_language(fields: &mut Fields<'_, '_>) {
    let jsonata = fields.is_jsonata();
    let other: &[&str] = if jsonata { &JSONPATH_ONLY } else { &JSONATA_ONLY };
    for key in fields.keys() {
        let path_form = jsonata && key.strip_suffix("Path").is_some_and(|name| fields.takes_path_form(name));
        if (other.contains(&key) || path_form) && !fields.is_used(key) {
            fields.get(key);
            let message = if jsonata {
                format!("The field '{key}' is not supported in a JSONata state")
            } else {
                format!("The field '{key}' is supported in a JSONata state only")
            };
            fields.fault(key, message);
        }
    }
}

fn task(fields: &mut Fields<'_, '_>) -> Option<Task> {
    let resource = fields.required_string("Resource");
    if let Some(text) = resource.as_deref() {
        let scheme = text.split_once(':').is_some_and(|(scheme, rest)| {
            !rest.is_empty()
                && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
        });
        let whole = !text.starts_with("arn:") || text.splitn(6, ':').filter(|part| !part.is_empty()).count() >= 4;
        if !scheme || !whole || text.contains(char::is_whitespace) {
            let at = fields.pointer("Resource");
            let message = format!("The resource '{text}' is neither an ARN nor another URI");
            fields.check.faults.push(Fault::error(fault::INVALID_RESOURCE, at, message));
        }
    }
    let credentials = fields.payload("Credentials");
    let timeout = fields.whole_setting("TimeoutSeconds", 1, MAX_SECONDS);
    let heartbeat = fields.whole_setting("HeartbeatSeconds", 1, MAX_SECONDS);
    if let (Some(Setting::Literal(timeout)), Some(Setting::Literal(heartbeat))) = (&timeout, &heartbeat)
        && heartbeat >= timeout
    {
        fields.fault("HeartbeatSeconds", "'HeartbeatSeconds' must be smaller than 'TimeoutSeconds'");
    }
    Some(Task { resource: resource?, timeout, heartbeat, credentials })
}

fn pass(fields: &mut Fields<'_, '_>) -> Pass {
    if fields.is_jsonata() {
        return Pass { result: None };
    }
    let result = fields.get("Result").cloned();
    if result.as_ref().is_some_and(has_dollar_keys) {
        let message = "The result of a Pass state is literal: paths in it are not evaluated, 'Parameters' would be";
        fields.warning(fault::PASS_RESULT_IS_STATIC, "Result", message);
    }
    Pass { result }
}

fn has_dollar_keys(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, value)| key.ends_with(".$") || has_dollar_keys(value)),
        Value::Array(items) => items.iter().any(has_dollar_keys),
        _ => false,
    }
}

fn wait(fields: &mut Fields<'_, '_>) -> Option<Wait> {
    let names = ["Seconds", "SecondsPath", "Timestamp", "TimestampPath"];
    let known = if fields.is_jsonata() { vec!["Seconds", "Timestamp"] } else { names.to_vec() };
    if known.iter().filter(|name| fields.has(name)).count() != 1 {
        fields.own_fault(format!("A Wait state has exactly one of the fields '{}'", known.join("', '")));
    }
    let seconds = fields.whole_setting("Seconds", 0, MAX_SECONDS);
    let timestamp = fields.string_setting("Timestamp");
    if let Some(Setting::Literal(text)) = &timestamp
        && crate::time::parse(text).is_none()
    {
        fields.fault("Timestamp", format!("The value '{text}' is no RFC 3339 timestamp such as 2026-01-31T09:00:00Z"));
    }
    seconds.map(Wait::Seconds).or(timestamp.map(Wait::Timestamp))
}

fn fail(fields: &mut Fields<'_, '_>) -> Fail {
    Fail { error: fields.string_or_call_setting("Error"), cause: fields.string_or_call_setting("Cause") }
}
