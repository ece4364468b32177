//! JSON merge patch (RFC 7386).

use serde_json::{Map, Value};

use super::{PatchError, not_json};
use crate::codec::{Parsed, parse_json};

/// Reads a merge patch, which upstream wants to be an object.
pub fn parse(bytes: &[u8]) -> Result<Parsed, PatchError> {
    let parsed = parse_json(bytes).map_err(|_| not_json())?;
    match parsed.value {
        Value::Object(_) => Ok(parsed),
        Value::Null => Err(PatchError::Malformed("Invalid JSON Patch".to_owned())),
        _ => Err(PatchError::Malformed("error decoding patch: an object is wanted".to_owned())),
    }
}

/// Merges `patch` into `document`: null removes, objects merge, everything else replaces.
pub fn merge_patch(document: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *document = patch.clone();
        return;
    };
    if !document.is_object() {
        *document = Value::Object(Map::new());
    }
    let Value::Object(members) = document else { return };
    for (key, value) in patch {
        match (value, members.get_mut(key)) {
            (Value::Null, _) => drop(members.remove(key)),
            (Value::Object(_), Some(present)) if present.is_object() => merge_patch(present, value),
            _ => {
                let mut fresh = value.clone();
                prune(&mut fresh);
                members.insert(key.clone(), fresh);
            }
        }
    }
}

/// Removes the nulls of objects, also of those in lists: new parts hold none.
fn prune(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, v| !v.is_null());
            members.values_mut().for_each(prune);
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}
