//! JSON patch (RFC 6902) as upstream's library does it.
//!
//! Differences from the RFC that clients can see, kept on purpose: `replace` of an absent object member adds it; `test`
//! for null passes when the member is absent; `copy` of an absent member makes a null; array positions may be negative
//! (counted from the end) and may have leading zeros; a `~` that escapes nothing stands for itself.

use serde_json::{Map, Value};

use super::{PatchError, not_json};
use crate::codec::parse_json;

/// Operations allowed in one patch.
pub const MAX_OPERATIONS: usize = 10_000;
/// Bytes that all `copy` operations of a patch may add.
pub const MAX_COPY_BYTES: usize = 3 << 20;

/// A list of operations.
#[derive(Clone, Debug, Default)]
pub struct JsonPatch {
    operations: Vec<Map<String, Value>>,
    /// What strict decoding refuses, for example `json patch unknown field "[0].foo"`.
    pub strict: Vec<String>,
    /// The first member of an operation that should be a text and is not, in words: 400 unless fields are not validated.
    pub mistyped: Option<String>,
}

fn refused<T>(text: impl Into<String>) -> Result<T, PatchError> {
    Err(PatchError::Operation(text.into()))
}

impl JsonPatch {
    /// Reads a patch document.
    pub fn parse(bytes: &[u8]) -> Result<Self, PatchError> {
        let parsed = parse_json(bytes).map_err(|_| not_json())?;
        let malformed = |what: &str| PatchError::Malformed(format!("error decoding patch: {what}"));
        let items = match parsed.value {
            Value::Null => Vec::new(),
            Value::Array(items) => items,
            _ => return Err(malformed("a list of operations is wanted")),
        };
        let mut patch = Self::default();
        for item in items {
            match item {
                Value::Object(operation) => patch.operations.push(operation),
                // An operation of no kind, which fails when it is done.
                Value::Null => patch.operations.push(Map::new()),
                _ => return Err(malformed("an operation is an object")),
            }
        }
        if patch.operations.len() > MAX_OPERATIONS {
            return Err(PatchError::TooManyOperations { got: patch.operations.len() });
        }
        for (i, operation) in patch.operations.iter().enumerate() {
            let odd = |key: &&str| !matches!(operation.get(*key), None | Some(Value::String(_) | Value::Null));
            if let Some(key) = ["op", "path", "from"].iter().find(|k| odd(k)) {
                patch.mistyped.get_or_insert_with(|| {
                    format!("error decoding patch: json: cannot unmarshal value into Go struct field jsonPatchOp.{key} of type string")
                });
            }
            for key in operation.keys().filter(|k| !matches!(k.as_str(), "op" | "path" | "from" | "value")) {
                patch.strict.push(format!("json patch unknown field \"[{i}].{key}\""));
            }
        }
        patch.strict.extend(parsed.duplicates.iter().map(|path| format!("json patch duplicate field \"{path}\"")));
        Ok(patch)
    }

    /// The document after all operations. One failure undoes all.
    pub fn apply(&self, document: &Value) -> Result<Value, PatchError> {
        let mut document = document.clone();
        let mut copied = 0;
        for operation in &self.operations {
            apply(&mut document, operation, &mut copied)?;
        }
        Ok(document)
    }
}

fn apply(document: &mut Value, operation: &Map<String, Value>, copied: &mut usize) -> Result<(), PatchError> {
    let text = |key: &str| match operation.get(key) {
        Some(Value::String(s)) => Ok(s.as_str()),
        _ => refused(format!("operation without a {key:?}")),
    };
    // A missing value is a null.
    let value = || operation.get("value").cloned().unwrap_or(Value::Null);
    match text("op").unwrap_or("unknown") {
        "add" => add(document, text("path")?, value()),
        "remove" => remove(document, text("path")?),
        "replace" => replace(document, text("path")?, value()),
        "move" => {
            let from = text("from")?;
            let moved = get(document, from)?.cloned().unwrap_or(Value::Null);
            remove(document, from)?;
            add(document, text("path")?, moved)
        }
        "copy" => {
            let source = get(document, text("from")?)?.cloned().unwrap_or(Value::Null);
            *copied += source.to_string().len();
            if *copied > MAX_COPY_BYTES {
                return refused(format!("copying would add more than {MAX_COPY_BYTES} bytes"));
            }
            add(document, text("path")?, source)
        }
        "test" => {
            let found = get(document, text("path")?)?;
            // Numbers are compared as written: 80 is not 80.0.
            if found.unwrap_or(&Value::Null) == &value() { Ok(()) } else { refused("a test failed") }
        }
        other => refused(format!("unexpected kind of operation: {other}")),
    }
}

fn unescape(token: &str) -> String {
    // One pass, so that `~01` is `~1` and not a slash.
    let mut out = String::with_capacity(token.len());
    let mut rest = token;
    while let Some(at) = rest.find('~') {
        out.push_str(&rest[..at]);
        let (with, len) = match rest.as_bytes().get(at + 1) {
            Some(b'1') => ("/", 2),
            Some(b'0') => ("~", 2),
            _ => ("~", 1),
        };
        out.push_str(with);
        rest = &rest[at + len..];
    }
    out + rest
}

/// The container of a path's last step, and that step.
fn container<'a>(document: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), PatchError> {
    let missing = || PatchError::Operation(format!("there is nothing at {path:?}"));
    let mut steps: Vec<&str> = path.split('/').collect();
    if steps.len() < 2 {
        return Err(missing());
    }
    let last = steps.pop().map(unescape).unwrap_or_default();
    let mut at = document;
    for step in &steps[1..] {
        at = match at {
            Value::Object(members) => members.get_mut(&unescape(step)).ok_or_else(missing)?,
            Value::Array(items) => {
                let index = position(step, items.len(), path)?;
                items.get_mut(index).ok_or_else(missing)?
            }
            _ => return Err(missing()),
        };
    }
    if at.is_object() || at.is_array() { Ok((at, last)) } else { Err(missing()) }
}

/// A position in a list of `len`, counted from the end when negative. May be `len` or more.
fn position(step: &str, len: usize, path: &str) -> Result<usize, PatchError> {
    let out = || PatchError::Operation(format!("{path:?} is no position in a list of {len}"));
    let index: i64 = step.parse().map_err(|_| out())?;
    let len = i64::try_from(len).map_err(|_| out())?;
    usize::try_from(if index < 0 { index + len } else { index }).map_err(|_| out())
}

fn get<'a>(document: &'a mut Value, path: &str) -> Result<Option<&'a Value>, PatchError> {
    if path.is_empty() {
        return Ok(Some(document));
    }
    let (at, last) = container(document, path)?;
    match at {
        Value::Array(items) => {
            let index = position(&last, items.len(), path)?;
            match items.get(index) {
                Some(item) => Ok(Some(item)),
                None => refused(format!("{path:?} is beyond the end of its list")),
            }
        }
        other => Ok(other.get(&last)),
    }
}

fn add(document: &mut Value, path: &str, value: Value) -> Result<(), PatchError> {
    let (at, last) = container(document, path)?;
    match at {
        Value::Object(members) => drop(members.insert(last, value)),
        Value::Array(items) if last == "-" => items.push(value),
        Value::Array(items) => {
            let index = position(&last, items.len() + 1, path)?;
            if index > items.len() {
                return refused(format!("{path:?} is beyond the end of its list"));
            }
            items.insert(index, value);
        }
        _ => return refused(format!("there is no container at {path:?}")),
    }
    Ok(())
}

fn remove(document: &mut Value, path: &str) -> Result<(), PatchError> {
    let (at, last) = container(document, path)?;
    match at {
        Value::Object(members) if members.contains_key(&last) => drop(members.remove(&last)),
        Value::Array(items) => {
            let index = position(&last, items.len(), path)?;
            if index >= items.len() {
                return refused(format!("{path:?} is beyond the end of its list"));
            }
            items.remove(index);
        }
        _ => return refused(format!("there is nothing to remove at {path:?}")),
    }
    Ok(())
}

fn replace(document: &mut Value, path: &str, value: Value) -> Result<(), PatchError> {
    if path.is_empty() {
        if !value.is_object() && !value.is_array() {
            return refused("a document is an object or a list");
        }
        *document = value;
        return Ok(());
    }
    let (at, last) = container(document, path)?;
    match at {
        Value::Object(members) => drop(members.insert(last, value)),
        Value::Array(items) => {
            let index = position(&last, items.len(), path)?;
            match items.get_mut(index) {
                Some(item) => *item = value,
                None => return refused(format!("{path:?} is beyond the end of its list")),
            }
        }
        _ => return refused(format!("there is no container at {path:?}")),
    }
    Ok(())
}
