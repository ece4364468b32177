//! A bound on what an evaluation builds. A definition of a mebibyte could ask for its input fifty thousand times over,
//! a path of descents for every part of every part: such results are refused while they are built, for the payload
//! limit is looked at only afterwards.

use serde_json::Value;

use crate::error::{self, ExecutionError};

/// What one evaluation may build, in bytes as counted here: well above the largest payload (262,144 bytes).
pub(crate) const MAX_BYTES: usize = 8 * 1024 * 1024;

/// What is left of it.
pub(crate) struct Budget(usize);

impl Budget {
    pub(crate) fn new() -> Self {
        Self(MAX_BYTES)
    }

    /// Takes what a copy of the value costs.
    ///
    /// # Errors
    /// States.DataLimitExceeded.
    pub(crate) fn charge(&mut self, value: &Value) -> Result<(), ExecutionError> {
        if self.take(value) {
            return Ok(());
        }
        let cause = format!("The evaluation builds more than {MAX_BYTES} bytes of data");
        Err(ExecutionError::new(error::DATA_LIMIT_EXCEEDED, cause))
    }

    /// Whether there was enough left for a copy of the value. Stops looking as soon as there is not.
    pub(crate) fn take(&mut self, value: &Value) -> bool {
        let own = 8 + match value {
            Value::String(text) => text.len(),
            Value::Object(map) => map.keys().map(|key| key.len() + 8).sum(),
            _ => 0,
        };
        let Some(left) = self.0.checked_sub(own) else { return false };
        self.0 = left;
        match value {
            Value::Array(items) => items.iter().all(|item| self.take(item)),
            Value::Object(map) => map.values().all(|value| self.take(value)),
            _ => true,
        }
    }
}
