//! Requests against their shapes ([`super::model`]): all that is wrong at once, in the service's words.

use serde_json::Value;

use super::error::Fault;
use super::model::OPERATIONS;

/// Faults that are told of one request; beyond that the message helps nobody.
const TOLD_MAX: usize = 20;

/// An operation of the API.
#[derive(Debug)]
pub(crate) struct Operation {
    /// Its name, as in `X-Amz-Target`.
    pub(crate) name: &'static str,
    /// The shape of its request.
    pub(crate) input: &'static Shape,
    /// Names of the errors that it may answer beside those common to all.
    pub(crate) errors: &'static [&'static str],
}

/// Errors that any operation may answer.
const COMMON: [&str; 16] = [
    "AccessDeniedException",
    "IncompleteSignatureException",
    "InternalFailure",
    "InvalidSignatureException",
    "MalformedHttpRequestException",
    "MissingAuthenticationTokenException",
    "MissingRequiredParameter",
    "RequestEntityTooLargeException",
    "RequestTimeoutException",
    "SerializationException",
    "ServiceQuotaExceededException",
    "ServiceUnavailable",
    "ThrottlingException",
    "UnknownOperationException",
    "UnrecognizedClientException",
    "ValidationException",
];

impl Operation {
    /// A fault as clients of this operation know it: one that the model has not there becomes the general one.
    pub(crate) fn known(&self, fault: Fault) -> Fault {
        if self.errors.contains(&fault.name) || COMMON.contains(&fault.name) {
            return fault;
        }
        Fault::validation(format!("{}: {}", fault.name, fault.message))
    }
}

/// What a value may look like.
#[derive(Debug)]
pub(crate) enum Shape {
    /// A string; lengths are in characters.
    Text {
        min: usize,
        max: Option<usize>,
        pattern: Option<&'static str>,
        values: &'static [&'static str],
        /// Not to be repeated in messages.
        secret: bool,
    },
    /// A whole number.
    Whole { min: Option<i64>, max: Option<i64> },
    /// A number.
    Float { min: Option<f64>, max: Option<f64> },
    /// True or false.
    Boolean,
    /// A list.
    List { of: &'static Shape, min: usize, max: Option<usize> },
    /// Named members. Others are ignored, as by the service.
    Structure(&'static [Member]),
}

/// A member of a structure.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: &'static str,
    pub(crate) required: bool,
    pub(crate) shape: &'static Shape,
}

/// The operation of a name.
pub(crate) fn operation(name: &str) -> Option<&'static Operation> {
    OPERATIONS.binary_search_by(|o| o.name.cmp(name)).ok().map(|i| &OPERATIONS[i])
}

/// Whether a request has the shape of its operation.
pub(crate) fn check(operation: &Operation, request: &Value) -> Result<(), Fault> {
    let mut told = vec![];
    walk(operation.input, request, "", &mut told)?;
    if told.is_empty() {
        return Ok(());
    }
    let (count, word) = (told.len(), if told.len() == 1 { "error" } else { "errors" });
    told.truncate(TOLD_MAX);
    Err(Fault::validation(format!("{count} validation {word} detected: {}", told.join("; "))))
}

/// A value of another type cannot be read at all: that ends the check.
fn mistyped(value: &Value, wanted: &str) -> Fault {
    let found = match value {
        Value::Null => "NULL_VALUE",
        Value::Bool(true) => "TRUE_VALUE",
        Value::Bool(false) => "FALSE_VALUE",
        Value::Number(n) if n.is_f64() => "DECIMAL_VALUE",
        Value::Number(_) => "NUMBER_VALUE",
        Value::String(_) => "STRING_VALUE",
        Value::Array(_) => "START_ARRAY",
        Value::Object(_) => "START_OBJECT",
    };
    Fault::new("SerializationException", format!("{found} can not be converted to {wanted}"))
}

fn walk(shape: &Shape, value: &Value, path: &str, told: &mut Vec<String>) -> Result<(), Fault> {
    let mut say = |shown: Option<String>, rule: String| {
        let shown = shown.map(|s| format!(" {s}")).unwrap_or_default();
        told.push(format!("Value{shown} at '{path}' failed to satisfy constraint: {rule}"));
    };
    match shape {
        Shape::Text { min, max, pattern, values, secret } => {
            let text = value.as_str().ok_or_else(|| mistyped(value, "a String"))?;
            let shown = || (!secret).then(|| format!("'{text}'"));
            let length = text.chars().count();
            if length < *min {
                say(shown(), format!("Member must have length greater than or equal to {min}"));
            }
            if let Some(max) = max.filter(|m| length > *m) {
                say(shown(), format!("Member must have length less than or equal to {max}"));
            }
            if let Some(pattern) = pattern.filter(|p| !matches(p, text)) {
                say(shown(), format!("Member must satisfy regular expression pattern: {pattern}"));
            }
            if !values.is_empty() && !values.contains(&text) {
                say(shown(), format!("Member must satisfy enum value set: [{}]", values.join(", ")));
            }
        }
        Shape::Whole { min, max } => {
            // Clients write whole numbers as 10.0, too.
            let number = value.as_i64().or_else(|| value.as_f64().filter(|f| f.fract() == 0.0).map(|f| f as i64));
            let number = number.ok_or_else(|| mistyped(value, "an Integer"))?;
            if let Some(min) = min.filter(|m| number < *m) {
                say(Some(format!("'{number}'")), format!("Member must have value greater than or equal to {min}"));
            }
            if let Some(max) = max.filter(|m| number > *m) {
                say(Some(format!("'{number}'")), format!("Member must have value less than or equal to {max}"));
            }
        }
        Shape::Float { min, max } => {
            let number = value.as_f64().ok_or_else(|| mistyped(value, "a Float"))?;
            if let Some(min) = min.filter(|m| number < *m) {
                say(Some(format!("'{number}'")), format!("Member must have value greater than or equal to {min}"));
            }
            if let Some(max) = max.filter(|m| number > *m) {
                say(Some(format!("'{number}'")), format!("Member must have value less than or equal to {max}"));
            }
        }
        Shape::Boolean => drop(value.as_bool().ok_or_else(|| mistyped(value, "a Boolean"))?),
        Shape::List { of, min, max } => {
            let items = value.as_array().ok_or_else(|| mistyped(value, "a List"))?;
            if items.len() < *min {
                say(None, format!("Member must have length greater than or equal to {min}"));
            }
            if let Some(max) = max.filter(|m| items.len() > *m) {
                say(None, format!("Member must have length less than or equal to {max}"));
            }
            for (i, item) in items.iter().enumerate() {
                walk(of, item, &format!("{path}.{}.member", i + 1), told)?;
            }
        }
        Shape::Structure(members) => {
            let object = value.as_object().ok_or_else(|| mistyped(value, "a Structure"))?;
            for member in *members {
                let inner = if path.is_empty() { member.name.to_owned() } else { format!("{path}.{}", member.name) };
                match object.get(member.name).filter(|v| !v.is_null()) {
                    Some(value) => walk(member.shape, value, &inner, told)?,
                    None if member.required => told
                        .push(format!("Value null at '{inner}' failed to satisfy constraint: Member must not be null")),
                    None => {}
                }
            }
        }
    }
    Ok(())
}

/// The few patterns of the model, which has more of their language than is worth an engine.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern {
        r"^(?=.*[a-zA-Z_\-\.])[a-zA-Z0-9_\-\.]+$" => {
            let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
            !text.is_empty() && text.chars().all(word) && !text.chars().all(|c| c.is_ascii_digit())
        }
        "[!-~]+" => !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()),
        r"\p{ASCII}*" => text.is_ascii(),
        // A test walks the model, so that a new pattern is seen there and not by a user.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(name: &str, request: Value) -> String {
        check(operation(name).unwrap(), &request).map_or_else(|f| f.to_string(), |()| String::new())
    }

    #[test]
    fn requests_are_checked_against_their_shapes() {
        let arn = "arn:aws:states:r:1:stateMachine:m";
        let long = "x".repeat(81);
        for (name, request, want) in [
            ("StartExecution", json!({"stateMachineArn": arn}), String::new()),
            ("StartExecution", json!({"stateMachineArn": arn, "unknown": 1}), String::new()),
            ("StartExecution", json!({"stateMachineArn": arn, "name": null}), String::new()),
            (
                "StartExecution",
                json!({}),
                "ValidationException: 1 validation error detected: Value null at 'stateMachineArn' failed to satisfy \
                 constraint: Member must not be null"
                    .into(),
            ),
            (
                "StartExecution",
                json!({"stateMachineArn": "", "name": long.clone()}),
                format!(
                    "ValidationException: 2 validation errors detected: Value '' at 'stateMachineArn' failed to satisfy \
                     constraint: Member must have length greater than or equal to 1; Value '{long}' at 'name' failed to \
                     satisfy constraint: Member must have length less than or equal to 80"
                ),
            ),
            (
                "StartExecution",
                json!({"stateMachineArn": 5}),
                "SerializationException: NUMBER_VALUE can not be converted to a String".into(),
            ),
            (
                "ListExecutions",
                json!({"stateMachineArn": arn, "maxResults": 1001, "statusFilter": "ODD"}),
                "ValidationException: 2 validation errors detected: Value 'ODD' at 'statusFilter' failed to satisfy \
                 constraint: Member must satisfy enum value set: [RUNNING, SUCCEEDED, FAILED, TIMED_OUT, ABORTED, \
                 PENDING_REDRIVE]; Value '1001' at 'maxResults' failed to satisfy constraint: Member must have value less \
                 than or equal to 1000"
                    .into(),
            ),
            (
                "CreateStateMachineAlias",
                json!({"name": "123", "routingConfiguration": [{"weight": 101}]}),
                "ValidationException: 3 validation errors detected: Value '123' at 'name' failed to satisfy constraint: \
                 Member must satisfy regular expression pattern: ^(?=.*[a-zA-Z_\\-\\.])[a-zA-Z0-9_\\-\\.]+$; Value null at \
                 'routingConfiguration.1.member.stateMachineVersionArn' failed to satisfy constraint: Member must not be \
                 null; Value '101' at 'routingConfiguration.1.member.weight' failed to satisfy constraint: Member must \
                 have value less than or equal to 100"
                    .into(),
            ),
            (
                "SendTaskSuccess",
                json!({"taskToken": "x".repeat(2049), "output": "1"}),
                "ValidationException: 1 validation error detected: Value at 'taskToken' failed to satisfy constraint: \
                 Member must have length less than or equal to 2048"
                    .into(),
            ),
        ] {
            assert_eq!(told(name, request.clone()), want, "{name} {request}");
        }
    }

    #[test]
    fn operations_are_found_and_their_patterns_known() {
        assert_eq!(OPERATIONS.len(), 37);
        for o in OPERATIONS {
            assert!(std::ptr::eq(operation(o.name).unwrap(), o), "the table is not in order at {}", o.name);
            patterns(o.input);
        }
        assert!(operation("Nothing").is_none());
    }

    #[test]
    fn faults_are_those_of_the_operation() {
        let fault = |name| operation("StartExecution").unwrap().known(Fault::new(name, "m")).to_string();
        assert_eq!(fault("ExecutionAlreadyExists"), "ExecutionAlreadyExists: m");
        assert_eq!(fault("AccessDeniedException"), "AccessDeniedException: m");
        assert_eq!(fault("TooManyTags"), "ValidationException: TooManyTags: m");
    }

    fn patterns(shape: &Shape) {
        match shape {
            Shape::Text { pattern: Some(pattern), .. } => assert!(!matches(pattern, "ä "), "{pattern} is not known"),
            Shape::List { of, .. } => patterns(of),
            Shape::Structure(members) => members.iter().for_each(|m| patterns(m.shape)),
            _ => {}
        }
    }
}
