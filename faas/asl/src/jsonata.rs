//! JSONata expressions.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::{self, ExecutionError};

/// Whether this build has an engine for expressions.
pub const SUPPORTED: bool = false;

/// The expression in a string that is wrapped in `{%` and `%}`; nothing for a literal.
///
/// # Errors
/// A string with one of the two only.
pub fn unwrap(text: &str) -> Result<Option<&str>, String> {
    match (text.starts_with("{%"), text.ends_with("%}")) {
        (true, true) if text.len() >= 4 => Ok(Some(text[2..text.len() - 2].trim())),
        (false, false) => Ok(None),
        _ => Err(format!("The JSONata expression '{text}' must begin with '{{%' and end with '%}}'")),
    }
}

/// Whether the expression can be read.
///
/// # Errors
/// What is wrong with it, for people.
pub fn check(expression: &str) -> Result<(), String> {
    _ = expression;
    Err("JSONata expressions are not supported".to_owned())
}

/// The value of an expression, `states` being `$states`.
///
/// # Errors
/// States.QueryEvaluationError where it fails, takes too long, or has no value.
pub fn evaluate(
    expression: &str,
    states: &Value,
    variables: &BTreeMap<String, Value>,
) -> Result<Value, ExecutionError> {
    _ = (states, variables);
    let cause = format!("The JSONata expression '{expression}' cannot be evaluated");
    Err(ExecutionError::new(error::QUERY_EVALUATION_ERROR, cause))
}
