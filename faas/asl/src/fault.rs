//! What is wrong with a definition: the form and the codes of the service's ValidateStateMachineDefinition.

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, PartialOrd, Ord)]
#[serde(rename_all = "UPPERCASE")]
pub enum Severity {
    /// The definition is refused.
    Error,
    /// The definition runs, maybe not as meant.
    Warning,
}

/// One thing that is wrong with a definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Whether it refuses the definition.
    pub severity: Severity,
    /// The service's code for it.
    pub code: String,
    /// Where, as a JSON pointer (`/States/A/Next`); empty for the whole definition.
    #[serde(rename = "location")]
    pub path: String,
    /// What people read.
    pub message: String,
}

/// The text is not JSON (nor YAML).
pub const INVALID_JSON_DESCRIPTION: &str = "INVALID_JSON_DESCRIPTION";
/// There is no text.
pub const MISSING_DESCRIPTION: &str = "MISSING_DESCRIPTION";
/// A field is missing, unknown, or has a value that the language does not allow; a path or template does not parse.
pub const SCHEMA_VALIDATION_FAILED: &str = "SCHEMA_VALIDATION_FAILED";
/// The resource of a task is nothing that can be a resource.
pub const INVALID_RESOURCE: &str = "INVALID_RESOURCE";
/// A machine has no state that ends it.
pub const MISSING_END_STATE: &str = "MISSING_END_STATE";
/// A state's name occurs twice.
pub const DUPLICATE_STATE_NAME: &str = "DUPLICATE_STATE_NAME";
/// A state's name is empty or too long.
pub const INVALID_STATE_NAME: &str = "INVALID_STATE_NAME";
/// Two distributed Maps have one label.
pub const DUPLICATE_LABEL_NAME: &str = "DUPLICATE_LABEL_NAME";
/// A label is too long or has characters that names of executions cannot have.
pub const INVALID_LABEL_NAME: &str = "INVALID_LABEL_NAME";
/// A transition leads nowhere, or nothing leads to a state.
pub const MISSING_TRANSITION_TARGET: &str = "MISSING_TRANSITION_TARGET";
/// Machines within machines beyond what is supported.
pub const TOO_DEEPLY_NESTED: &str = "TOO_DEEPLY_NESTED";
/// A JSONata expression does not parse.
pub const INVALID_JSONATA_EXPRESSION: &str = "INVALID_JSONATA_EXPRESSION";
/// A JSONata expression refers to what expressions of a definition do not have.
pub const UNSUPPORTED_JSONATA_EXPRESSION: &str = "UNSUPPORTED_JSONATA_EXPRESSION";
/// Warning: a field's value looks like a path or an intrinsic function, its name does not end with `.$`.
pub const NO_DOLLAR: &str = "NO_DOLLAR";
/// Warning: a field's value looks like a path, its name does not end with `Path`.
pub const NO_PATH: &str = "NO_PATH";
/// Warning: a path in the fixed result of a Pass.
pub const PASS_RESULT_IS_STATIC: &str = "PASS_RESULT_IS_STATIC";

impl Fault {
    /// A fault that refuses the definition.
    #[must_use]
    pub fn error(code: &str, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, code: code.to_owned(), path: path.into(), message: message.into() }
    }

    /// A fault that does not.
    #[must_use]
    pub fn warning(code: &str, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, path, message) }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = if self.path.is_empty() { "/" } else { &self.path };
        write!(f, "{path}: {} ({})", self.message, self.code)
    }
}
