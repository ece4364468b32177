//! What Go's decoding into a typed structure and encoding it again does to a JSON value.
//!
//! Unknown fields are removed and reported, wrong types are errors, empty values stay or go by [`Presence`], quantities,
//! times and base64 get their canonical form. The first wrong type ends the work; the value is then half done and must
//! not be used.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::quantity::{Quantity, QuantityError};
use crate::schema::{Field, Presence, Shape, Struct};
use crate::time::{self, TimeError};

/// A value of the wrong type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TypeError {
    /// Another JSON type was wanted.
    #[error("json: cannot unmarshal {found} into Go struct field {path} of type {wanted}")]
    Mismatch {
        /// What the body holds.
        found: String,
        /// Where, as in `spec.replicas`.
        path: String,
        /// The type that was wanted, in upstream's language.
        wanted: &'static str,
    },
    /// Not base64.
    #[error("illegal base64 data at input byte {0}")]
    Base64(usize),
    /// Not a time.
    #[error(transparent)]
    Time(#[from] TimeError),
    /// Not a quantity.
    #[error(transparent)]
    Quantity(#[from] QuantityError),
    /// Not a duration.
    #[error("time: invalid duration {0:?}")]
    Duration(String),
    /// Neither a schema nor what may stand in its place.
    #[error("boolean or JSON schema expected")]
    Schema,
}

/// What was removed on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Paths of unknown fields, for example `spec.containers[0].imagee`.
    pub unknown: Vec<String>,
    /// Maps and lists that are there, empty: `spec.selector={}`.
    pub emptied: Vec<String>,
}

/// Where a value is: built on the stack, printed only when there is something to report.
#[derive(Clone, Copy)]
pub(super) enum Path<'a> {
    Root,
    Member(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Member(Path::Root, name) => f.write_str(name),
            Path::Member(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, i) => write!(f, "{parent}[{i}]"),
        }
    }
}

/// Makes `value` what upstream would print after reading it as `shape`. For built-in kinds: custom resources keep `null`
/// and are pruned and validated along their own schema, in which there is no Go type to read into.
pub fn normalize(value: &mut Value, shape: &Struct, faults: &mut Faults) -> Result<(), TypeError> {
    structure(value, shape, Path::Root, &mut Some(faults))
}

/// [`normalize`] for a value of any shape, for example one field.
pub fn normalize_shape(value: &mut Value, shape: &Shape, faults: &mut Faults) -> Result<(), TypeError> {
    any(value, shape, Path::Root, &mut Some(faults))
}

/// Makes numbers what upstream prints for objects it has no types for (custom resources): a float without a fraction
/// becomes an integer.
pub fn untyped_numbers(value: &mut Value) {
    match value {
        Value::Number(n) if n.is_f64() => {
            if let Some(float) = n.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e18) {
                *value = Value::from(float as i64);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(untyped_numbers),
        Value::Object(map) => map.values_mut().for_each(untyped_numbers),
        _ => {}
    }
}

/// `None` where unknown fields are removed without a report.
type Report<'a> = Option<&'a mut Faults>;

fn structure(value: &mut Value, shape: &Struct, path: Path<'_>, faults: &mut Report<'_>) -> Result<(), TypeError> {
    let map = match value {
        Value::Object(map) => map,
        Value::Null => {
            *value = Value::Object(Map::new());
            let Value::Object(map) = value else { return Ok(()) };
            map
        }
        other => return Err(mismatch(other, path, "object")),
    };
    let mut error = None;
    map.retain(|name, value| {
        if error.is_some() {
            return true;
        }
        let path = Path::Member(&path, name);
        let Some(field) = shape.field(name) else {
            if !shape.preserve_unknown
                && let Some(faults) = faults
            {
                faults.unknown.push(path.to_string());
            }
            return shape.preserve_unknown;
        };
        match member(value, field, path, faults) {
            Ok(keep) => keep,
            Err(e) => {
                error = Some(e);
                true
            }
        }
    });
    if let Some(error) = error {
        return Err(error);
    }
    for field in shape.fields.iter() {
        if matches!(field.presence, Presence::Always | Presence::Nullable) && !map.contains_key(&*field.name) {
            let empty = if field.presence == Presence::Nullable { Value::Null } else { zero(&field.shape) };
            map.insert(field.name.clone().into_owned(), empty);
        }
    }
    Ok(())
}

/// Normalises one field; whether it is printed.
fn member(value: &mut Value, field: &Field, path: Path<'_>, faults: &mut Report<'_>) -> Result<bool, TypeError> {
    if value.is_null() {
        return match field.presence {
            Presence::Always => {
                *value = zero(&field.shape);
                Ok(true)
            }
            Presence::Nullable => Ok(true),
            Presence::Pointer | Presence::OmitEmpty => Ok(false),
        };
    }
    if field.presence == Presence::OmitEmpty && is_zero(value, &field.shape) {
        // Still read: what is inside may be unknown or wrong.
        any(value, &field.shape, path, faults)?;
        return Ok(false);
    }
    any(value, &field.shape, path, faults)?;
    Ok(field.presence != Presence::OmitEmpty || !(value.is_null() || is_empty(value)))
}

/// More than this nobody is told about.
const MAX_EMPTIED: usize = 64;

fn note_empty(shown: &str, path: Path<'_>, faults: &mut Report<'_>) {
    if let Some(faults) = faults
        && faults.emptied.len() < MAX_EMPTIED
    {
        faults.emptied.push(format!("{path}={shown}"));
    }
}

fn any(value: &mut Value, shape: &Shape, path: Path<'_>, faults: &mut Report<'_>) -> Result<(), TypeError> {
    match shape {
        Shape::Struct(shape) => structure(value, shape, path, faults),
        Shape::Json | Shape::Deduced | Shape::RawExtension | Shape::FieldsV1 => Ok(()),
        Shape::List(item) => match value {
            Value::Array(list) => {
                if list.is_empty() {
                    note_empty("[]", path, faults);
                }
                for (i, value) in list.iter_mut().enumerate() {
                    any(value, item, Path::Index(&path, i), faults)?;
                }
                Ok(())
            }
            Value::Null => Ok(()),
            other => Err(mismatch(other, path, "array")),
        },
        Shape::Map(item) => match value {
            Value::Object(map) => {
                if map.is_empty() {
                    note_empty("{}", path, faults);
                }
                for (name, value) in map.iter_mut() {
                    any(value, item, Path::Member(&path, name), faults)?;
                }
                Ok(())
            }
            Value::Null => Ok(()),
            other => Err(mismatch(other, path, "map[string]")),
        },
        Shape::SchemaOrBool(_) | Shape::SchemaOrArray(_) | Shape::SchemaOrStringArray(_) => {
            schema_or(value, shape, path)
        }
        _ if value.is_null() => {
            *value = zero(shape);
            Ok(())
        }
        _ => scalar(value, shape, path),
    }
}

/// The unions in a CRD's schema. They read themselves, so unknown fields inside go without a report.
fn schema_or(value: &mut Value, shape: &Shape, path: Path<'_>) -> Result<(), TypeError> {
    match (shape, &mut *value) {
        (_, Value::Null) | (Shape::SchemaOrBool(_), Value::Bool(_)) => Ok(()),
        (
            Shape::SchemaOrBool(schema) | Shape::SchemaOrArray(schema) | Shape::SchemaOrStringArray(schema),
            Value::Object(_),
        ) => structure(value, schema, path, &mut None),
        (Shape::SchemaOrArray(schema), Value::Array(list)) => {
            for (i, value) in list.iter_mut().enumerate() {
                structure(value, schema, Path::Index(&path, i), &mut None)?;
            }
            Ok(())
        }
        (Shape::SchemaOrStringArray(_), Value::Array(list)) => {
            for (i, value) in list.iter_mut().enumerate() {
                any(value, &Shape::String, Path::Index(&path, i), &mut None)?;
            }
            Ok(())
        }
        (Shape::SchemaOrBool(_), _) => Err(TypeError::Schema),
        // Upstream ignores anything else here, and then prints nothing.
        _ => {
            *value = Value::Null;
            Ok(())
        }
    }
}

fn scalar(value: &mut Value, shape: &Shape, path: Path<'_>) -> Result<(), TypeError> {
    let wanted = go_type(shape);
    match (shape, &mut *value) {
        (Shape::String, Value::String(_)) | (Shape::Bool, Value::Bool(_)) | (Shape::IntOrString, Value::String(_)) => {}
        (Shape::Int64, Value::Number(n)) if n.is_i64() => {}
        (Shape::Int32 | Shape::IntOrString, Value::Number(n))
            if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {}
        (Shape::Double, Value::Number(n)) => {
            // Printed without a fraction where there is none.
            if let Some(float) = n.as_f64().filter(|f| n.is_f64() && f.fract() == 0.0 && f.abs() < 1e15) {
                *value = Value::from(float as i64);
            }
        }
        (Shape::Bytes, Value::String(text)) => {
            let bytes = decode_base64(text)?;
            *text = STANDARD.encode(bytes);
        }
        (Shape::Time, Value::String(text)) => {
            let at = time::parse(text)?;
            *value = if time::is_zero(at) { Value::Null } else { time::format(at).into() };
        }
        (Shape::MicroTime, Value::String(text)) => {
            let at = time::parse_micro(text)?;
            *value = if time::is_zero(at) { Value::Null } else { time::format_micro(at).into() };
        }
        (Shape::Quantity, Value::String(text)) => *value = Quantity::parse(text.trim())?.to_string().into(),
        (Shape::Quantity, Value::Number(n)) => *value = Quantity::parse(&n.to_string())?.to_string().into(),
        (Shape::Duration, Value::String(text)) => {
            let ok = !text.is_empty() && text.bytes().any(|b| b.is_ascii_digit());
            if !ok {
                return Err(TypeError::Duration(text.clone()));
            }
        }
        (Shape::Quantity, _) => return Err(QuantityError::Format.into()),
        (_, other) => return Err(mismatch(other, path, wanted)),
    }
    Ok(())
}

/// What a value that was never set prints, where it is always printed.
fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::String => "".into(),
        Shape::Bool => false.into(),
        Shape::Int32 | Shape::Int64 | Shape::Double | Shape::IntOrString => 0.into(),
        Shape::Quantity => "0".into(),
        Shape::Duration => "0s".into(),
        Shape::Struct(shape) => {
            let printed = shape.fields.iter().filter_map(|f| match f.presence {
                Presence::Always => Some((f.name.clone().into_owned(), zero(&f.shape))),
                Presence::Nullable => Some((f.name.clone().into_owned(), Value::Null)),
                Presence::Pointer | Presence::OmitEmpty => None,
            });
            Value::Object(printed.collect())
        }
        _ => Value::Null,
    }
}

/// Whether a present value is the zero of its type (before it is normalised).
fn is_zero(value: &Value, shape: &Shape) -> bool {
    match (shape, value) {
        (_, Value::Null) => true,
        (Shape::Struct(shape), Value::Object(map)) => map.iter().all(|(name, value)| {
            shape.field(name).is_none_or(|f| match f.presence {
                Presence::Pointer | Presence::Nullable => value.is_null(),
                Presence::OmitEmpty | Presence::Always => is_zero(value, &f.shape),
            })
        }),
        _ => is_empty(value),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

fn mismatch(value: &Value, path: Path<'_>, wanted: &'static str) -> TypeError {
    let found = match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(n) => format!("number {n}"),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    };
    TypeError::Mismatch { found, path: path.to_string(), wanted }
}

fn go_type(shape: &Shape) -> &'static str {
    match shape {
        Shape::String | Shape::Time | Shape::MicroTime | Shape::Duration => "string",
        Shape::Bool => "bool",
        Shape::Int32 | Shape::IntOrString => "int32",
        Shape::Int64 => "int64",
        Shape::Double => "float64",
        Shape::Bytes => "[]uint8",
        _ => "object",
    }
}

/// Standard base64 with padding. Line breaks inside are skipped, as upstream does; the error names the byte.
fn decode_base64(text: &str) -> Result<Vec<u8>, TypeError> {
    if let Ok(bytes) = STANDARD.decode(text) {
        return Ok(bytes);
    }
    let plain: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    if let Ok(bytes) = STANDARD.decode(&plain) {
        return Ok(bytes);
    }
    let bad = |b: &u8| !(b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'\r' | b'\n'));
    let at = text.bytes().position(|b| bad(&b)).unwrap_or_else(|| {
        // Padding in a wrong place, or a group that is cut short.
        text.find('=').filter(|i| i % 4 < 2 || i + 2 < text.len()).unwrap_or(text.len() / 4 * 4)
    });
    Err(TypeError::Base64(at))
}
