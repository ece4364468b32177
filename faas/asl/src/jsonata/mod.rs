//! JSONata expressions, by the language's own implementation inside an interpreter of JavaScript.
//!
//! `jsonata.min.js` is the file of that name of the npm package `jsonata` 2.2.2 (MIT, see `jsonata.LICENSE`), as it is
//! published: it defines the language, and definitions written for the service count on all of it; the ports to Rust
//! are incomplete or young. The interpreter has no access to anything but the texts that go in: no files, no network,
//! no modules; and expressions have no access to the interpreter, for the library reads own properties of data only.
//!
//! The service's rules: `$states` and the variables are bound, `$` is nothing, `$eval` is refused, and `$partition`,
//! `$range`, `$hash`, `$random`, `$uuid` and `$parse` are added. An evaluation may take [`TIME_LIMIT`] and
//! [`MEMORY_LIMIT`] bytes. Up to four threads have an interpreter (about 3 MiB each) while there is work; whoever asks
//! waits for the answer.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::error::{self, ExecutionError};
use crate::fault;

#[cfg(feature = "jsonata")]
mod engine;
#[cfg(feature = "jsonata")]
mod pool;

/// Whether this build has an engine for expressions.
pub const SUPPORTED: bool = cfg!(feature = "jsonata");
/// How long an evaluation may take.
pub const TIME_LIMIT: Duration = Duration::from_secs(2);
/// How much memory an interpreter may have.
pub const MEMORY_LIMIT: usize = 96 * 1024 * 1024;

/// Why an expression is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// A code of [`crate::fault`].
    pub code: &'static str,
    /// What people read.
    pub message: String,
}

/// The expression in a string that is wrapped in `{%` and `%}`; nothing for a literal.
///
/// # Errors
/// A string with one of the two only.
pub fn unwrap(text: &str) -> Result<Option<&str>, Invalid> {
    match (text.starts_with("{%"), text.ends_with("%}")) {
        (true, true) if text.len() >= 4 => Ok(Some(text[2..text.len() - 2].trim())),
        (false, false) => Ok(None),
        _ => {
            let message = format!("The JSONata expression '{text}' must begin with '{{%' and end with '%}}'");
            Err(Invalid { code: fault::INVALID_JSONATA_EXPRESSION, message })
        }
    }
}

/// What an engine says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "jsonata"), allow(dead_code, reason = "without an engine there are failures only"))]
enum Answer {
    Json(String),
    Nothing,
    Failure(String),
    Unsupported(String),
}

/// Whether the expression can be read, and refers only to what expressions have.
///
/// # Errors
/// What is wrong with it.
pub fn check(expression: &str) -> Result<(), Invalid> {
    let invalid = |code, why: &str| {
        Err(Invalid { code, message: format!("The JSONata expression '{expression}' is not valid: {why}") })
    };
    if expression.is_empty() {
        return invalid(fault::INVALID_JSONATA_EXPRESSION, "it is empty");
    }
    match read(expression) {
        Answer::Failure(why) => invalid(fault::INVALID_JSONATA_EXPRESSION, &why),
        Answer::Unsupported(why) => invalid(fault::UNSUPPORTED_JSONATA_EXPRESSION, &why),
        Answer::Json(_) | Answer::Nothing => Ok(()),
    }
}

/// The value of an expression, `states` being `$states`. The thread waits, up to [`TIME_LIMIT`]
/// and longer where others ask too.
///
/// # Errors
/// States.QueryEvaluationError where it fails, takes too long, or has no value.
pub fn evaluate(
    expression: &str,
    states: &Value,
    variables: &BTreeMap<String, Value>,
) -> Result<Value, ExecutionError> {
    evaluate_for("", expression, states, variables)
}

/// Like [`evaluate`] for a field of a state (`Output/a[0]`), which the error's cause then names.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_for(
    field: &str,
    expression: &str,
    states: &Value,
    variables: &BTreeMap<String, Value>,
) -> Result<Value, ExecutionError> {
    let fail = |why: String| {
        let of = if field.is_empty() { String::new() } else { format!(" specified for the field '{field}'") };
        let cause = format!("The JSONata expression '{expression}'{of} {why}");
        Err(ExecutionError::new(error::QUERY_EVALUATION_ERROR, cause))
    };
    let variables = serde_json::to_string(variables).unwrap_or_else(|_| "{}".to_owned());
    match run(expression, states.to_string(), variables) {
        Answer::Json(json) => match serde_json::from_str(&json) {
            Ok(value) => Ok(value),
            Err(e) => fail(format!("gives no JSON: {e}")),
        },
        Answer::Nothing => fail("returned nothing (undefined).".to_owned()),
        Answer::Failure(why) | Answer::Unsupported(why) => fail(format!("threw an error during evaluation. {why}")),
    }
}

#[cfg(feature = "jsonata")]
fn read(expression: &str) -> Answer {
    pool::run(pool::Work::Check { expression: expression.to_owned() })
}

#[cfg(feature = "jsonata")]
fn run(expression: &str, states: String, variables: String) -> Answer {
    let millis = crate::dice::time().map(|at| at.as_millisecond());
    let fixed = pool::Fixed { seed: crate::dice::seed(), millis };
    pool::run(pool::Work::Evaluate { expression: expression.to_owned(), states, variables, fixed })
}

/// Without an engine nothing can be read, so that no definition with expressions is ever accepted.
#[cfg(not(feature = "jsonata"))]
fn read(_: &str) -> Answer {
    Answer::Failure("this build has no engine for JSONata".to_owned())
}

#[cfg(not(feature = "jsonata"))]
fn run(expression: &str, _: String, _: String) -> Answer {
    read(expression)
}
