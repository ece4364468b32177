//! Applying patch bodies, with upstream's answers for what cannot be applied.

use serde_json::Value;
use skiff_core::codec;
use skiff_core::invalid::{Errors, quote_str};
use skiff_core::path::Path;
use skiff_core::schema::Struct;
use skiff_core::status::Status;

use crate::registry::Kind;
use crate::verbs::patch::PatchType;

/// The result of applying a patch, before it is decoded.
pub struct Patched {
    /// The patched object.
    pub value: Value,
    /// Fields the patch text gave twice.
    pub duplicates: Vec<String>,
    /// The patch as errors quote it.
    pub text: String,
}

/// Most operations one JSON patch may have.
const OPERATIONS_MAX: usize = 10_000;

/// Applies a patch body to `old`.
///
/// # Errors
/// 400 for a body that is no patch, 422 for one that does not apply, 413 for too many operations.
pub fn apply(patch: PatchType, old: &Value, body: &[u8], shape: &Struct) -> Result<Patched, Status> {
    let text = || String::from_utf8_lossy(body).into_owned();
    match patch {
        PatchType::Json => {
            let parsed = codec::parse_json(body).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
            let ops: Vec<Value> = match parsed.value {
                Value::Array(a) => a,
                _ => return Err(Status::bad_request("error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch")),
            };
            if ops.len() > OPERATIONS_MAX {
                return Err(Status::too_large(format!(
                    "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
                    ops.len()
                )));
            }
            let value = skiff_core::patch::json(old, &ops).map_err(|e| {
                let _ = e;
                Status::new(422, "Invalid", "the server rejected our request due to an error in our request").with_empty_details()
            })?;
            Ok(Patched { value, duplicates: parsed.duplicates, text: text() })
        }
        PatchType::Merge => {
            let parsed = codec::parse_json(body).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
            if !parsed.value.is_object() {
                return Err(Status::bad_request("invalid JSON patch"));
            }
            let value = skiff_core::patch::merge(old, &parsed.value);
            Ok(Patched { value, duplicates: parsed.duplicates, text: text() })
        }
        PatchType::Strategic => {
            let parsed = codec::parse_json(body).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
            let value = skiff_core::patch::strategic(old, &parsed.value, shape)?;
            Ok(Patched { value, duplicates: parsed.duplicates, text: text() })
        }
        PatchType::Apply => Err(Status::internal("apply is merged, not patched")),
    }
}

/// The patched object is of another kind.
#[must_use]
pub fn wrong_kind(kind: &Kind, got_kind: &str, got_version: &str) -> Status {
    let r = &kind.resource;
    Status::bad_request(format!(
        "{got_kind} in version {} cannot be handled as a {}: no kind {} is registered for version {} in scheme \"pkg/runtime/scheme.go:111\"",
        quote_str(got_version.rsplit('/').next().unwrap_or_default()),
        r.kind,
        quote_str(got_kind),
        quote_str(got_version)
    ))
}

/// The patched object cannot be decoded.
#[must_use]
pub fn undecodable(patch: &str, why: &str) -> Status {
    let mut e = Errors::new();
    e.invalid(&Path::new("patch"), patch, why);
    Status::invalid("", "", "", &e)
}

/// The patched object has unknown or duplicate fields under strict validation.
#[must_use]
pub fn strict(faults: &[String]) -> Status {
    let mut e = Errors::new();
    e.invalid(&Path::new("patch"), "", format!("strict decoding error: {}", faults.join(", ")));
    Status::invalid("", "", "", &e)
}
