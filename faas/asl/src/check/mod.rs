//! Reads a definition and says all that is wrong with it.
//!
//! The model is built and checked in one pass: a field that is read wrongly leaves a fault and a harmless value, so
//! that the rest is still looked at. A definition comes out only when no fault is an error. Names, transitions and
//! variables are checked per machine once its states are known (`flow`).

mod branch;
mod fields;
mod flow;
mod map;
mod read;
mod retry;
mod rules;
mod state;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::definition::{Definition, MAX_DEFINITION_BYTES, MAX_SECONDS, Machine, QueryLanguage};
use crate::fault::{self, Fault, Severity};
use fields::Fields;

/// Machines within machines beyond this are refused, so that a definition cannot exhaust the stack.
pub const MAX_NESTING: usize = 20;

/// The definition if it has no error, and every fault, the warnings among them, in the order of the document.
#[must_use]
pub fn definition(value: &Value) -> (Option<Definition>, Vec<Fault>) {
    let mut check = Check::default();
    let definition = check.definition(value);
    check.finish(definition)
}

/// Like [`definition`] for JSON or YAML text.
#[must_use]
pub fn text(text: &str) -> (Option<Definition>, Vec<Fault>) {
    let mut check = Check::default();
    if text.trim().is_empty() {
        check.faults.push(Fault::error(fault::MISSING_DESCRIPTION, "", "The definition is empty"));
        return check.finish(None);
    }
    if text.len() > MAX_DEFINITION_BYTES {
        check.too_large(text.len());
        return check.finish(None);
    }
    match read::value(text) {
        Ok((value, duplicates)) => {
            check.faults.extend(duplicates.into_iter().map(|path| {
                Fault::error(fault::INVALID_JSON_DESCRIPTION, path, "The key occurs more than once in its object")
            }));
            let definition = check.definition(&value);
            check.finish(definition)
        }
        Err(why) => {
            check.faults.push(Fault::error(fault::INVALID_JSON_DESCRIPTION, "", why));
            check.finish(None)
        }
    }
}

/// JSON or YAML text as a value; a key that occurs twice has its last value.
pub(crate) fn value_of(text: &str) -> Result<Value, String> {
    read::value(text).map(|(value, _)| value)
}

/// JSON text as a value; a key that occurs twice is an error.
#[cfg(feature = "jsonata")]
pub(crate) fn strict_json(text: &str) -> Result<Value, String> {
    read::strict(text)
}

/// What is known while a definition is read.
#[derive(Debug, Default)]
struct Check {
    faults: Vec<Fault>,
    /// The definition's own language.
    language: QueryLanguage,
    /// Every state's name with its pointer.
    names: BTreeMap<String, String>,
    labels: BTreeSet<String>,
    /// The variables that the machines around the current one assign.
    outer: Vec<BTreeSet<String>>,
    /// The variables that the current machine assigns, with where.
    assigned: Vec<(String, String)>,
    depth: usize,
}

impl Check {
    fn finish(self, definition: Option<Definition>) -> (Option<Definition>, Vec<Fault>) {
        let refused = self.faults.iter().any(|fault| fault.severity == Severity::Error);
        (definition.filter(|_| !refused), self.faults)
    }

    fn error(&mut self, at: &str, message: impl Into<String>) {
        self.faults.push(Fault::error(fault::SCHEMA_VALIDATION_FAILED, at, message));
    }

    fn too_large(&mut self, bytes: usize) {
        let message = format!("The definition has {bytes} bytes, more than {MAX_DEFINITION_BYTES}");
        self.error("", message);
    }

    fn definition(&mut self, value: &Value) -> Option<Definition> {
        let bytes = serde_json::to_vec(value).map_or(usize::MAX, |json| json.len());
        if bytes > MAX_DEFINITION_BYTES {
            self.too_large(bytes);
            return None;
        }
        let mut fields = Fields::new(value, "", self)?;
        let version = fields.string("Version");
        if let Some(version) = version.as_deref()
            && version != "1.0"
        {
            fields.fault("Version", format!("The version '{version}' is not supported: there is 1.0 only"));
        }
        let timeout_seconds = fields.whole("TimeoutSeconds", 1, MAX_SECONDS);
        let language = fields.language().unwrap_or_default();
        fields.check.language = language;
        let machine = machine(fields, "of a state machine")?;
        Some(Definition {
            machine,
            timeout_seconds,
            version: version.unwrap_or_else(|| "1.0".to_owned()),
            query_language: language,
            raw: value.clone(),
        })
    }
}

/// The machine's own fields of an object whose other fields are read already.
fn machine(mut fields: Fields<'_, '_>, of: &str) -> Option<Machine> {
    let comment = fields.string("Comment");
    let start_at = fields.required_string("StartAt");
    let states = fields.required("States");
    let at = fields.at.clone();
    let check = fields.finish(of);
    if check.depth >= MAX_NESTING {
        let message = format!("State machines are nested more than {MAX_NESTING} deep");
        check.faults.push(Fault::error(fault::TOO_DEEPLY_NESTED, at, message));
        return None;
    }
    check.depth += 1;
    let outer_assigned = std::mem::take(&mut check.assigned);
    let states = flow::states(check, states, start_at.as_deref(), &at);
    check.assigned = outer_assigned;
    check.depth -= 1;
    Some(Machine { comment, start_at: start_at?, states: states? })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::definition::State;

    #[test]
    fn reads_a_machine() {
        let (definition, faults) = definition(&json!({
            "StartAt": "A",
            "States": {
                "A": {"Type": "Task", "Resource": "skiff:function:a", "Next": "B"},
                "B": {"Type": "Choice", "Choices": [
                    {"Variable": "$.x", "NumericGreaterThan": 1, "Next": "C"},
                    {"Not": {"Variable": "$.y", "IsPresent": true}, "Next": "A"},
                ], "Default": "C"},
                "C": {"Type": "Parallel", "End": true, "Branches": [
                    {"StartAt": "D", "States": {"D": {"Type": "Wait", "SecondsPath": "$.s", "End": true}}},
                ]},
            },
        }));
        assert_eq!(faults, []);
        let definition = definition.expect("no fault");
        assert_eq!(definition.resources(), [("/States/A/Resource".to_owned(), "skiff:function:a")]);
        assert_eq!(definition.find("D").map(State::type_name), Some("Wait"));
    }
}
