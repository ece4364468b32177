//! What a custom object must have where its kind says that the numbers of scale are.

use serde_json::Value;

use crate::invalid::Errors;
use crate::patch::go;

/// The value at a simple path (`.spec.replicas`), or why there is none: on the way to it is something without members.
fn reach<'v>(obj: &'v Value, path: &str) -> Result<Option<&'v Value>, String> {
    let names: Vec<&str> = path.trim_start_matches('.').split('.').collect();
    let mut at = obj;
    for (i, name) in names.iter().enumerate() {
        if at.is_null() {
            return Ok(None);
        }
        let Value::Object(members) = at else {
            return Err(accessor(&format!(".{}", names[..=i].join(".")), at, "map[string]interface{}"));
        };
        match members.get(*name) {
            Some(v) => at = v,
            None => return Ok(None),
        }
    }
    Ok(Some(at))
}

fn accessor(path: &str, found: &Value, wanted: &str) -> String {
    let (shown, kind) = (go::print(found), go::type_name(found));
    format!("{path} accessor error: {shown} is of the type {kind}, expected {wanted}")
}

/// Checks the number at `path`.
pub(super) fn number(obj: &Value, path: &str, errors: &mut Errors) {
    let why = match reach(obj, path) {
        Ok(None) => return,
        Ok(Some(v)) => match v.as_i64() {
            Some(n) if n < 0 => return errors.invalid(&path, n, "should be a non-negative integer"),
            Some(n) if n > i64::from(i32::MAX) => {
                return errors.invalid(&path, n, format!("should be less than or equal to {}", i32::MAX));
            }
            Some(_) => return,
            None => accessor(path, v, "int64"),
        },
        Err(why) => why,
    };
    errors.invalid(&path, 0, why);
}

/// Checks the text at `path`; a kind without selector has an empty path.
pub(super) fn selector(obj: &Value, path: &str, errors: &mut Errors) {
    if path.is_empty() {
        return;
    }
    let why = match reach(obj, path) {
        Ok(None | Some(Value::String(_))) => return,
        Ok(Some(v)) => accessor(path, v, "string"),
        Err(why) => why,
    };
    errors.invalid(&path, "", why);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn wrong_types_are_named() {
        let cases = [
            (json!({"spec": {"replicas": 1}}), ""),
            (json!({}), ""),
            (json!({"spec": null}), ""),
            (
                json!({"spec": {"replicas": "x"}}),
                ".spec.replicas accessor error: x is of the type string, expected int64",
            ),
            (
                json!({"spec": [1]}),
                ".spec.replicas accessor error: [1] is of the type []interface {}, expected map[string]interface{}",
            ),
            (json!({"spec": {"replicas": -1}}), "should be a non-negative integer"),
        ];
        for (obj, why) in cases {
            let mut e = Errors::new();
            number(&obj, ".spec.replicas", &mut e);
            let told: String = e.0.iter().map(|e| e.body.clone()).collect();
            assert!(told.ends_with(why) && told.is_empty() == why.is_empty(), "{obj}: {told}");
        }
    }
}
