//! Reading JSON bodies, with what strict decoding reports: duplicate and unknown fields.
//!
//! The usual body is clean and is read once into a [`Value`]. Only when something is to report is the text read a second
//! time, along the schema, because upstream reports in the order of the document and leaves out what it does not descend
//! into (unknown fields, raw extensions). Nesting is bounded by serde_json (128 levels).

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::normalize::{Faults, Path, TypeError, normalize};
use crate::schema::{Shape, Struct};

/// Why a body cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The text ends too early (an empty body does).
    #[error("unexpected end of JSON input")]
    End,
    /// Not JSON.
    #[error("{0}")]
    Json(String),
    /// Not YAML.
    #[error("{0}")]
    Yaml(String),
    /// Not protobuf, or not of the expected kind.
    #[error("{0}")]
    Protobuf(String),
    /// A value of the wrong type.
    #[error(transparent)]
    Type(#[from] TypeError),
}

/// A document.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// Its content; of fields given twice, the last.
    pub value: Value,
    /// Paths of fields given twice, in the order of the document, anywhere in it.
    pub duplicates: Vec<String>,
}

/// An object read along its schema.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// Its content, normalised.
    pub value: Value,
    /// What strict decoding refuses: `unknown field "spec.x"`, `duplicate field "spec.y"`.
    pub strict: Vec<String>,
    /// As [`Faults::emptied`].
    pub emptied: Vec<String>,
}

impl Decoded {
    /// [`Self::strict`] as warnings: faults of several lines are taken apart.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let lines = |fault: &'_ String| {
            let fault = fault.strip_prefix("yaml: unmarshal errors:\n").unwrap_or(fault);
            fault.lines().map(|l| l.trim().to_owned()).collect::<Vec<_>>()
        };
        self.strict.iter().flat_map(lines).collect()
    }
}

/// Reads JSON.
pub fn parse_json(bytes: &[u8]) -> Result<Parsed, DecodeError> {
    let state = Duplicates { paths: RefCell::new(Vec::new()) };
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = AnySeed { path: Path::Root, state: &state }.deserialize(&mut deserializer).map_err(json_error)?;
    deserializer.end().map_err(json_error)?;
    Ok(Parsed { value, duplicates: state.paths.into_inner() })
}

/// Reads a JSON object along its schema.
pub fn decode_json(bytes: &[u8], shape: &Struct) -> Result<Decoded, DecodeError> {
    let parsed = parse_json(bytes)?;
    decode_parsed(bytes, parsed, shape)
}

/// [`decode_json`] for a text that was already parsed, to find out its kind.
pub fn decode_parsed(bytes: &[u8], parsed: Parsed, shape: &Struct) -> Result<Decoded, DecodeError> {
    let Parsed { mut value, duplicates } = parsed;
    let mut faults = Faults::default();
    normalize(&mut value, shape, &mut faults)?;
    let clean = faults.unknown.is_empty() && duplicates.is_empty();
    let strict = if clean { Vec::new() } else { strict_faults(bytes, shape) };
    Ok(Decoded { value, strict, emptied: faults.emptied })
}

/// What strict decoding of a JSON text reports, in the order of the document.
#[must_use]
pub fn strict_faults(bytes: &[u8], shape: &Struct) -> Vec<String> {
    let out = RefCell::new(Vec::new());
    let seed = StrictSeed { shape: Known::Struct(shape), path: Path::Root, out: &out };
    // The text was read before, so this cannot fail; if it did, what was found so far is still true.
    let _ = seed.deserialize(&mut serde_json::Deserializer::from_slice(bytes));
    out.into_inner()
}

fn json_error(error: serde_json::Error) -> DecodeError {
    if error.is_eof() { DecodeError::End } else { DecodeError::Json(error.to_string()) }
}

struct Duplicates {
    paths: RefCell<Vec<String>>,
}

/// A document may repeat fields as often as it likes; upstream reports this many.
const MAX_REPORTED: usize = 100;

#[derive(Clone, Copy)]
struct AnySeed<'a> {
    path: Path<'a>,
    state: &'a Duplicates,
}

impl<'de> DeserializeSeed<'de> for AnySeed<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnySeed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) =
            seq.next_element_seed(AnySeed { path: Path::Index(&self.path, list.len()), state: self.state })?
        {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            let path = Path::Member(&self.path, &name);
            if map.contains_key(&name) {
                let mut paths = self.state.paths.borrow_mut();
                if paths.len() < MAX_REPORTED {
                    paths.push(path.to_string());
                }
            }
            let value = access.next_value_seed(AnySeed { path, state: self.state })?;
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

/// What is known of a value's shape while looking for strict faults.
#[derive(Clone, Copy)]
enum Known<'a> {
    Struct(&'a Struct),
    Shape(&'a Shape),
    /// Not descended into.
    Nothing,
}

#[derive(Clone, Copy)]
struct StrictSeed<'a> {
    shape: Known<'a>,
    path: Path<'a>,
    out: &'a RefCell<Vec<String>>,
}

impl StrictSeed<'_> {
    fn report(&self, what: &str, path: Path<'_>) {
        let mut out = self.out.borrow_mut();
        let message = format!("{what} field \"{path}\"");
        if out.len() < MAX_REPORTED && !out.contains(&message) {
            out.push(message);
        }
    }
}

impl<'de> DeserializeSeed<'de> for StrictSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.shape {
            Known::Nothing => deserializer.deserialize_ignored_any(serde::de::IgnoredAny).map(|_| ()),
            Known::Struct(_) | Known::Shape(_) => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for StrictSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let shape = match self.shape {
            Known::Shape(Shape::List(item)) => Known::Shape(item),
            _ => Known::Nothing,
        };
        let index = Cell::new(0);
        while seq
            .next_element_seed(StrictSeed { shape, path: Path::Index(&self.path, index.get()), out: self.out })?
            .is_some()
        {
            index.set(index.get() + 1);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let structure = match self.shape {
            Known::Struct(s) => Some(s),
            Known::Shape(Shape::Struct(s)) => Some(&**s),
            _ => None,
        };
        let mut seen = std::collections::HashSet::new();
        while let Some(name) = access.next_key::<String>()? {
            let path = Path::Member(&self.path, &name);
            let shape = match (structure, self.shape) {
                (Some(s), _) => match s.field(&name) {
                    Some(field) => Known::Shape(&field.shape),
                    None if s.preserve_unknown => Known::Nothing,
                    None => {
                        self.report("unknown", path);
                        Known::Nothing
                    }
                },
                (None, Known::Shape(Shape::Map(item))) => Known::Shape(item),
                (None, _) => Known::Nothing,
            };
            let known = structure.is_some_and(|s| s.preserve_unknown || s.field(&name).is_some())
                || matches!(self.shape, Known::Shape(Shape::Map(_)));
            if known && !seen.insert(name.clone()) {
                self.report("duplicate", path);
            }
            access.next_value_seed(StrictSeed { shape, path, out: self.out })?;
        }
        Ok(())
    }
}
