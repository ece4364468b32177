//! Conditions of the predecessors: all of them take a field that is missing or of another type as "does not hold",
//! where the language would fail, so that every one asks first whether the field is there.

use serde_json::{Value, json};

/// A path to a member of the data.
pub(super) fn member(name: &str) -> String {
    let plain = name.chars().all(|c| c.is_alphanumeric() || c == '_') && !name.is_empty();
    if plain { format!("$.{name}") } else { format!("$['{}']", name.replace('\\', "\\\\").replace('\'', "\\'")) }
}

/// A dotted path such as `items.0.name` as a JSONPath; nothing where it uses more than names and indexes.
pub(super) fn dotted(text: &str) -> Option<String> {
    if text.starts_with('$') {
        return crate::path::Path::parse(text).ok().map(|path| path.as_str().to_owned());
    }
    let mut out = String::from("$");
    for part in text.split('.') {
        if part.is_empty() || part.contains(['#', '*', '?', '|', '@', '!']) {
            return None;
        }
        if part.bytes().all(|b| b.is_ascii_digit()) {
            out.push_str(&format!("[{part}]"));
        } else {
            out.push_str(&member(part)[1..]);
        }
    }
    Some(out)
}

/// The condition that `variable` is there and `operator` holds.
pub(super) fn holds(variable: &str, operator: &str, operand: &Value) -> Value {
    json!({ "And": [
        { "Variable": variable, "IsPresent": true },
        { "Variable": variable, operator: operand },
    ] })
}

/// The condition that it does not; a field that is not there is not equal to anything.
pub(super) fn holds_not(variable: &str, operator: &str, operand: &Value) -> Value {
    json!({ "Not": holds(variable, operator, operand) })
}
