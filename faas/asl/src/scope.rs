//! What an evaluation sees beside the data at hand.

use std::collections::BTreeMap;

use serde_json::Value;

/// The context object, the variables, and in JSONata what `$states` has beside the input.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// `$$` in JSONPath, `$states.context` in JSONata.
    pub context: &'a Value,
    /// `$name`, the names without the dollar sign.
    pub variables: &'a BTreeMap<String, Value>,
    /// `$states.result`: the raw result of a Task, Parallel or Map that succeeded.
    pub result: Option<&'a Value>,
    /// `$states.errorOutput`: the error, in a catcher.
    pub error_output: Option<&'a Value>,
}

impl<'a> Scope<'a> {
    /// Without a result and without an error.
    #[must_use]
    pub fn new(context: &'a Value, variables: &'a BTreeMap<String, Value>) -> Self {
        Self { context, variables, result: None, error_output: None }
    }

    /// The same with a result.
    #[must_use]
    pub fn with_result(self, result: &'a Value) -> Self {
        Self { result: Some(result), ..self }
    }

    /// The same with an error.
    #[must_use]
    pub fn with_error(self, error_output: &'a Value) -> Self {
        Self { error_output: Some(error_output), ..self }
    }

    /// JSONata's `$states`.
    #[must_use]
    pub fn states(&self, input: &Value) -> Value {
        let mut states = serde_json::Map::new();
        states.insert("input".into(), input.clone());
        states.insert("context".into(), self.context.clone());
        if let Some(result) = self.result {
            states.insert("result".into(), result.clone());
        }
        if let Some(error) = self.error_output {
            states.insert("errorOutput".into(), error.clone());
        }
        Value::Object(states)
    }
}
