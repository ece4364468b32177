//! Applying patch bodies, with upstream's answers for what cannot be applied.

use serde_json::Value;
use skiff_core::invalid::{Errors, quote_str};
use skiff_core::patch::{JsonPatch, merge, strategic, strategic_merge};
use skiff_core::path::Path;
use skiff_core::schema::Struct;
use skiff_core::status::Status;

use crate::verbs::options::FieldValidation;
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

/// Applies a patch body to `old`. `validation` is also that of the operations of a JSON patch.
///
/// # Errors
/// As the patches' own errors become statuses.
pub fn apply(
    patch: PatchType,
    old: &Value,
    body: &[u8],
    shape: &Struct,
    validation: FieldValidation,
) -> Result<Patched, Status> {
    let text = || String::from_utf8_lossy(body).into_owned();
    match patch {
        PatchType::Json => {
            let parsed = JsonPatch::parse(body)?;
            if let Some(why) = parsed.mistyped.as_ref().filter(|_| validation != FieldValidation::Ignore) {
                return Err(Status::bad_request(why));
            }
            Ok(Patched { value: parsed.apply(old)?, duplicates: parsed.strict.clone(), text: text() })
        }
        PatchType::Merge => {
            let parsed = merge::parse(body)?;
            let mut value = old.clone();
            merge::merge_patch(&mut value, &parsed.value);
            let text = skiff_core::patch::go::print(&parsed.value);
            Ok(Patched { value, duplicates: duplicate_fields(&parsed.duplicates), text })
        }
        PatchType::Strategic => {
            let mut parsed = strategic::parse(body)?;
            let mut value = old.clone();
            strategic_merge(&mut value, &mut parsed.value, shape)?;
            if let Err(why) = skiff_core::patch::restore::fits(&value, shape) {
                return Err(skiff_core::patch::restore::refused(&parsed.value, &why));
            }
            let text = skiff_core::patch::go::print(&parsed.value);
            Ok(Patched { value, duplicates: duplicate_fields(&parsed.duplicates), text })
        }
        PatchType::Apply => Err(Status::internal("apply is merged, not patched")),
    }
}

fn duplicate_fields(paths: &[String]) -> Vec<String> {
    paths.iter().map(|p| format!("duplicate field {}", quote_str(p))).collect()
}

/// The patch is no JSON.
#[must_use]
pub fn malformed() -> Status {
    Status::bad_request("invalid JSON patch")
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
pub fn strict(patch: &str, faults: &[String]) -> Status {
    let mut e = Errors::new();
    e.invalid(&Path::new("patch"), patch, format!("strict decoding error: {}", faults.join(", ")));
    Status::invalid("", "", "", &e)
}
