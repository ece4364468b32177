//! The stages of data through a state, one function each, so that TestState can show every one of them.
//!
//! JSONPath: raw input → [`input`] (InputPath) → [`parameters`] → the state's work → [`result_selector`] →
//! [`result_path`] (into the raw input) → [`output`] (OutputPath).
//! JSONata: raw input → [`parameters`] (Arguments) → the state's work → [`output`] (Output).
//! In both, [`assign`] gives the variables. Each function does nothing where the state has not its field, so that an
//! engine calls them all in this order for either language. The scope of JSONata stages after the work has the
//! result ([`Scope::with_result`]), of catchers the error ([`Scope::with_error`]).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::definition::{Catcher, ChoiceRule, Fail, ResultPath, Selection, Setting, State, Wait};
use crate::error::{self, ExecutionError};
use crate::scope::Scope;
use crate::template::{Source, Template};
use crate::{jsonata, time};

/// InputPath.
///
/// # Errors
/// States.Runtime where the path finds nothing.
pub fn input(state: &State, raw: &Value, scope: &Scope<'_>) -> Result<Value, ExecutionError> {
    select(&state.input_path, "InputPath", raw, scope)
}

/// Parameters or Arguments; the input itself where the state has neither.
///
/// # Errors
/// As [`Template::eval`].
pub fn parameters(state: &State, input: &Value, scope: &Scope<'_>) -> Result<Value, ExecutionError> {
    evaluated_or(state.parameters.as_ref(), input, scope)
}

/// ResultSelector; the result itself without one.
///
/// # Errors
/// As [`Template::eval`].
pub fn result_selector(state: &State, result: &Value, scope: &Scope<'_>) -> Result<Value, ExecutionError> {
    evaluated_or(state.result_selector.as_ref(), result, scope)
}

/// ResultPath of a state or of a catcher: the raw input with the result in it.
///
/// # Errors
/// States.ResultPathMatchFailure.
pub fn result_path(path: &ResultPath, raw: &Value, result: Value) -> Result<Value, ExecutionError> {
    match path {
        ResultPath::Replace => Ok(result),
        ResultPath::Discard => Ok(raw.clone()),
        ResultPath::At(reference) => reference.set(raw.clone(), result),
    }
}

/// OutputPath (JSONPath), or Output (JSONata): `value` is what is there without them, `input` the state's raw input.
///
/// # Errors
/// States.Runtime, or as [`Template::eval`].
pub fn output(state: &State, input: &Value, value: Value, scope: &Scope<'_>) -> Result<Value, ExecutionError> {
    match &state.output {
        Some(template) => template.eval(input, scope),
        None if state.output_path == Selection::Whole => Ok(value),
        None => select(&state.output_path, "OutputPath", &value, scope),
    }
}

/// The variables that the state sets. `input` is what `$` means in JSONPath: the raw result, before ResultSelector, of
/// Task, Parallel and Map; the result of Pass; the input after InputPath of Choice and Wait. In JSONata it is the raw
/// input.
///
/// # Errors
/// As [`Template::eval`].
pub fn assign(state: &State, input: &Value, scope: &Scope<'_>) -> Result<BTreeMap<String, Value>, ExecutionError> {
    assigned(state.assign.as_ref(), input, scope)
}

/// The variables that a rule of a Choice sets when it decides; none where the rule has no Assign.
///
/// # Errors
/// As [`Template::eval`].
pub fn rule_assign(
    rule: &ChoiceRule,
    input: &Value,
    scope: &Scope<'_>,
) -> Result<BTreeMap<String, Value>, ExecutionError> {
    assigned(rule.assign.as_ref(), input, scope)
}

/// What a catcher gives to its next state, `error` being `{"Error": …, "Cause": …}` and `raw` the raw input.
///
/// # Errors
/// States.ResultPathMatchFailure, or as [`Template::eval`].
pub fn catch_output(catcher: &Catcher, raw: &Value, error: &Value, scope: &Scope<'_>) -> Result<Value, ExecutionError> {
    match &catcher.output {
        Some(template) => template.eval(raw, &scope.with_error(error)),
        None => result_path(&catcher.result_path, raw, error.clone()),
    }
}

/// The variables that a catcher sets; in JSONPath `$` is the error.
///
/// # Errors
/// As [`Template::eval`].
pub fn catch_assign(
    catcher: &Catcher,
    state: &State,
    raw: &Value,
    error: &Value,
    scope: &Scope<'_>,
) -> Result<BTreeMap<String, Value>, ExecutionError> {
    let here = if state.is_jsonata() { raw } else { error };
    assigned(catcher.assign.as_ref(), here, &scope.with_error(error))
}

/// A whole number from 0 (or `least`) to `most`, e.g. TimeoutSeconds.
///
/// # Errors
/// States.Runtime (JSONPath) or States.QueryEvaluationError (JSONata) where it is no such number.
pub fn whole(
    field: &str,
    setting: &Setting<u64>,
    least: u64,
    most: u64,
    input: &Value,
    scope: &Scope<'_>,
) -> Result<u64, ExecutionError> {
    let (value, name) = match setting {
        Setting::Literal(n) => return Ok(*n),
        other => dynamic(field, other, input, scope)?,
    };
    whole_number(&value).filter(|n| (least..=most).contains(n)).ok_or_else(|| {
        let cause = format!("The field '{field}' must be a whole number from {least} to {most} but is {value}");
        ExecutionError::new(name, cause)
    })
}

/// A number from `least` to `most`, e.g. ToleratedFailurePercentage.
///
/// # Errors
/// As [`whole`].
pub fn fraction(
    field: &str,
    setting: &Setting<f64>,
    least: f64,
    most: f64,
    input: &Value,
    scope: &Scope<'_>,
) -> Result<f64, ExecutionError> {
    let (value, name) = match setting {
        Setting::Literal(n) => return Ok(*n),
        other => dynamic(field, other, input, scope)?,
    };
    value.as_f64().filter(|n| (least..=most).contains(n)).ok_or_else(|| {
        let cause = format!("The field '{field}' must be a number from {least} to {most} but is {value}");
        ExecutionError::new(name, cause)
    })
}

/// A string, e.g. Fail's Error.
///
/// # Errors
/// As [`whole`].
pub fn string(
    field: &str,
    setting: &Setting<String>,
    input: &Value,
    scope: &Scope<'_>,
) -> Result<String, ExecutionError> {
    let (value, name) = match setting {
        Setting::Literal(text) => return Ok(text.clone()),
        other => dynamic(field, other, input, scope)?,
    };
    match value {
        Value::String(text) => Ok(text),
        other => Err(ExecutionError::new(name, format!("The field '{field}' must be a string but is {other}"))),
    }
}

/// How long a Wait state waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// That many seconds.
    Seconds(u64),
    /// Until then; not at all when it has passed.
    Until(jiff::Timestamp),
}

/// What a Wait state waits for.
///
/// # Errors
/// As [`whole`].
pub fn pause(wait: &Wait, input: &Value, scope: &Scope<'_>) -> Result<Pause, ExecutionError> {
    match wait {
        Wait::Seconds(setting) => {
            whole("Seconds", setting, 0, crate::definition::MAX_SECONDS, input, scope).map(Pause::Seconds)
        }
        Wait::Timestamp(setting) => {
            let text = string("Timestamp", setting, input, scope)?;
            time::parse(&text).map(Pause::Until).ok_or_else(|| {
                let name = failure_of(setting);
                ExecutionError::new(name, format!("The field 'Timestamp' is no RFC 3339 timestamp but '{text}'"))
            })
        }
    }
}

/// The error with which a Fail state ends the run; the service's texts where a field is missing are empty.
///
/// # Errors
/// As [`string`].
pub fn failure(fail: &Fail, input: &Value, scope: &Scope<'_>) -> Result<ExecutionError, ExecutionError> {
    let read = |field, setting: &Option<Setting<String>>| {
        setting.as_ref().map_or_else(|| Ok(String::new()), |setting| string(field, setting, input, scope))
    };
    Ok(ExecutionError { error: read("Error", &fail.error)?, cause: read("Cause", &fail.cause)? })
}

/// The items of an inline Map (or of a distributed one without a reader): ItemsPath or Items, else the input.
///
/// # Errors
/// States.Runtime or States.QueryEvaluationError where they are no array.
pub fn items(map: &crate::definition::Map, input: &Value, scope: &Scope<'_>) -> Result<Vec<Value>, ExecutionError> {
    let (value, name) = match (&map.items, &map.items_path) {
        (Some(template), _) => (template.eval(input, scope)?, error::QUERY_EVALUATION_ERROR),
        (None, Some(path)) => {
            let found = path.get(input, scope).ok_or_else(|| not_found("ItemsPath", path.as_str(), input))?;
            (found.into_owned(), error::RUNTIME)
        }
        (None, None) => (input.clone(), error::RUNTIME),
    };
    match value {
        Value::Array(items) => Ok(items),
        // The service runs a distributed Map over the members of an object; it does so as key-value pairs.
        Value::Object(fields) if map.mode.is_distributed() => {
            Ok(fields.into_iter().map(|(key, value)| serde_json::json!({ "Key": key, "Value": value })).collect())
        }
        other => {
            let cause = format!("Reference path must point to array, but it points to {}", kind(&other));
            Err(ExecutionError::new(name, cause))
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn evaluated_or(template: Option<&Template>, value: &Value, scope: &Scope<'_>) -> Result<Value, ExecutionError> {
    template.map_or_else(|| Ok(value.clone()), |template| template.eval(value, scope))
}

fn assigned(
    template: Option<&Template>,
    input: &Value,
    scope: &Scope<'_>,
) -> Result<BTreeMap<String, Value>, ExecutionError> {
    match template.map(|template| template.eval(input, scope)).transpose()? {
        Some(Value::Object(fields)) => Ok(fields.into_iter().collect()),
        _ => Ok(BTreeMap::new()),
    }
}

fn select(selection: &Selection, field: &str, value: &Value, scope: &Scope<'_>) -> Result<Value, ExecutionError> {
    match selection {
        Selection::Whole => Ok(value.clone()),
        Selection::Nothing => Ok(Value::Object(Map::new())),
        Selection::Path(path) => path
            .get(value, scope)
            .map(std::borrow::Cow::into_owned)
            .ok_or_else(|| not_found(field, path.as_str(), value)),
    }
}

fn not_found(field: &str, path: &str, value: &Value) -> ExecutionError {
    let cause = format!("Invalid path '{path}' for the field '{field}': it finds nothing in '{value}'");
    ExecutionError::new(error::RUNTIME, cause)
}

fn failure_of<T>(setting: &Setting<T>) -> &'static str {
    match setting {
        Setting::Expression(_) => error::QUERY_EVALUATION_ERROR,
        _ => error::RUNTIME,
    }
}

/// The value of a setting that is not literal, and the error's name when the value does not fit.
fn dynamic<T>(
    field: &str,
    setting: &Setting<T>,
    input: &Value,
    scope: &Scope<'_>,
) -> Result<(Value, &'static str), ExecutionError> {
    let name = failure_of(setting);
    let value = match setting {
        Setting::Literal(_) => Value::Null,
        Setting::Path(Source::Path(path)) => {
            path.get(input, scope).ok_or_else(|| not_found(field, path.as_str(), input))?.into_owned()
        }
        Setting::Path(source) => source.eval(field, input, scope)?,
        Setting::Expression(expression) => {
            jsonata::evaluate_for(field, expression, &scope.states(input), scope.variables)?
        }
    };
    Ok((value, name))
}

/// A number without a fraction, also when it is written with one (`3.0`).
pub(crate) fn whole_number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let number = value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..9.0e15).contains(n))?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "guarded by the range")]
        Some(number as u64)
    })
}
