//! Whether a merged object fits its type, in the words of upstream's conversion from maps: the texts differ from those of
//! its JSON decoder, and strategic merge patch answers with them.

use serde_json::Value;

use super::go;
use crate::codec::Faults;
use crate::codec::normalize::normalize_shape;
use crate::invalid::Errors;
use crate::schema::{Shape, Struct};
use crate::status::Status;

/// The first value, in the order of the type's fields, that does not fit.
pub fn fits(object: &Value, shape: &Struct) -> Result<(), String> {
    structure(object, shape)
}

/// The 422 for a patch (as it was sent) whose result does not fit, or has unknown fields under strict validation.
#[must_use]
pub fn refused(patch: &Value, why: &str) -> Status {
    let mut errors = Errors::new();
    errors.invalid(&"patch", go::print(patch), why);
    Status::invalid("", "", "", &errors)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    }
}

fn structure(value: &Value, shape: &Struct) -> Result<(), String> {
    let Value::Object(members) = value else { return Err(format!("cannot restore struct from: {}", kind(value))) };
    for field in shape.fields.iter() {
        if let Some(value) = members.get(&*field.name) {
            any(value, &field.shape)?;
        }
    }
    Ok(())
}

fn any(value: &Value, shape: &Shape) -> Result<(), String> {
    if value.is_null() {
        return Ok(());
    }
    // Go converts between its numbers, and numbers to text; only what it could convert in principle is named.
    let scalar = |wanted: &str, fits: bool| match value {
        _ if fits => Ok(()),
        Value::Number(n) if wanted != "bool" && (wanted != "string" || !n.is_f64()) => {
            Err(format!("cannot convert {} to {wanted}", go::type_name(value)))
        }
        _ => Err(format!("unrecognized type: {wanted}")),
    };
    let whole = || value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0);
    match shape {
        Shape::Struct(s) => structure(value, s),
        Shape::List(item) => match value {
            Value::Array(items) => items.iter().try_for_each(|i| any(i, item)),
            other => Err(format!("cannot restore slice from {}", kind(other))),
        },
        Shape::Map(inner) => match value {
            Value::Object(members) => members.values().try_for_each(|m| any(m, inner)),
            other => Err(format!("cannot restore map from {}", kind(other))),
        },
        Shape::String => scalar("string", value.is_string()),
        Shape::Bool => scalar("bool", value.is_boolean()),
        Shape::Int32 => scalar("int32", whole()),
        Shape::Int64 => scalar("int64", whole()),
        Shape::Double => scalar("float64", value.is_number()),
        // Types that read themselves.
        other => normalize_shape(&mut value.clone(), other, &mut Faults::default()).map_err(|e| e.to_string()),
    }
}
