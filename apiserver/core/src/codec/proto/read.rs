//! Protobuf to JSON values.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Number, Value};

use super::super::json::{DecodeError, parse_json};
use super::super::normalize::{Faults, normalize};
use super::MAGIC;
use super::wire::{Fields, Wire, fault};
use crate::schema::{self, Shape, Struct};
use crate::time;

const MAX_DEPTH: usize = 128;
const MAX_MESSAGES: usize = 500_000;

/// What stands around a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// As in the object; may be empty.
    pub api_version: &'a str,
    /// As in the object; may be empty.
    pub kind: &'a str,
    /// The message, in the encoding that `content_type` names (protobuf, if empty).
    pub raw: &'a [u8],
    /// Encoding of `raw`.
    pub content_type: &'a str,
}

/// Reads the envelope of a body.
pub fn envelope(body: &[u8]) -> Result<Envelope<'_>, DecodeError> {
    let rest = body.strip_prefix(MAGIC).ok_or_else(|| {
        DecodeError::Protobuf(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]".into(),
        )
    })?;
    let mut out = Envelope { api_version: "", kind: "", raw: &[], content_type: "" };
    let mut fields = Fields::new(rest);
    while let Some(field) = fields.next()? {
        match field {
            (1, Wire::Bytes(meta)) => {
                let mut fields = Fields::new(meta);
                while let Some(field) = fields.next()? {
                    match field {
                        (1, Wire::Bytes(text)) => out.api_version = utf8(text)?,
                        (2, Wire::Bytes(text)) => out.kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(raw)) => out.raw = raw,
            (4, Wire::Bytes(text)) => out.content_type = utf8(text)?,
            _ => {}
        }
    }
    Ok(out)
}

/// Reads a body as the structure that `shape` finds for its apiVersion and kind (either may be empty). The value is in
/// normal form, with apiVersion and kind as the envelope has them.
pub fn decode_proto<'s, F>(body: &[u8], shape: F) -> Result<Value, DecodeError>
where
    F: FnOnce(&str, &str) -> Option<&'s Struct>,
{
    let envelope = envelope(body)?;
    let Envelope { api_version, kind, raw, content_type } = envelope;
    let shape = shape(api_version, kind).ok_or_else(|| {
        DecodeError::Protobuf(format!("no kind \"{kind}\" is registered for version \"{api_version}\""))
    })?;
    let mut value = match content_type {
        "" | "application/vnd.kubernetes.protobuf" => read_message(raw, shape)?,
        "application/json" => {
            let mut value = parse_json(raw)?.value;
            normalize(&mut value, shape, &mut Faults::default())?;
            value
        }
        other => return Err(DecodeError::Protobuf(format!("unable to decode content type \"{other}\""))),
    };
    set_type(&mut value, api_version, kind);
    Ok(value)
}

fn set_type(value: &mut Value, api_version: &str, kind: &str) {
    if let Value::Object(map) = value {
        for (name, text) in [("apiVersion", api_version), ("kind", kind)] {
            if !text.is_empty() {
                map.insert(name.to_owned(), text.into());
            }
        }
    }
}

/// Reads a message without envelope. The value is in normal form.
pub fn read_message(raw: &[u8], shape: &Struct) -> Result<Value, DecodeError> {
    Reader { messages: MAX_MESSAGES }.top(raw, shape, 0)
}

struct Reader {
    /// How many more may be read.
    messages: usize,
}

impl Reader {
    fn top(&mut self, raw: &[u8], shape: &Struct, depth: usize) -> Result<Value, DecodeError> {
        let mut map = Map::new();
        self.structure(raw, shape, &[], &mut map, depth)?;
        let mut value = Value::Object(map);
        normalize(&mut value, shape, &mut Faults::default())?;
        Ok(value)
    }

    fn enter(&mut self, depth: usize) -> Result<(), DecodeError> {
        self.messages = self.messages.checked_sub(1).ok_or_else(|| fault("too many messages"))?;
        if depth > MAX_DEPTH { Err(fault("exceeded max depth")) } else { Ok(()) }
    }

    /// `within`: the embedded messages that were entered.
    fn structure(
        &mut self,
        raw: &[u8],
        shape: &Struct,
        within: &[u32],
        map: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), DecodeError> {
        self.enter(depth)?;
        let mut fields = Fields::new(raw);
        while let Some((number, wire)) = fields.next()? {
            if let Some(field) = shape.fields.iter().find(|f| f.number == number && f.within == within) {
                let slot = match map.get_mut(&*field.name) {
                    Some(slot) => slot,
                    None => map.entry(field.name.as_ref()).or_insert(Value::Null),
                };
                if field.boxed {
                    self.boxed(wire, &field.shape, slot, depth + 1)?;
                } else {
                    self.value(wire, &field.shape, slot, depth + 1)?;
                }
                continue;
            }
            let mut inner = within.to_vec();
            inner.push(number);
            if shape.fields.iter().any(|f| f.within.starts_with(&inner)) {
                self.structure(message(wire)?, shape, &inner, map, depth + 1)?;
            }
        }
        Ok(())
    }

    /// One occurrence of a field; repeated ones append.
    fn value(&mut self, wire: Wire<'_>, shape: &Shape, slot: &mut Value, depth: usize) -> Result<(), DecodeError> {
        match shape {
            Shape::List(item) => {
                if !slot.is_array() {
                    *slot = Value::Array(Vec::new());
                }
                let Value::Array(list) = slot else { return Ok(()) };
                if let (Wire::Bytes(packed), Shape::Bool | Shape::Int32 | Shape::Int64) = (wire, &**item) {
                    let mut fields = Fields::new(packed);
                    while !fields.is_empty() {
                        let mut value = Value::Null;
                        self.value(Wire::Varint(fields.varint()?), item, &mut value, depth)?;
                        list.push(value);
                    }
                    return Ok(());
                }
                let mut value = Value::Null;
                if matches!(**item, Shape::List(_)) {
                    self.boxed(wire, item, &mut value, depth)?;
                } else {
                    self.value(wire, item, &mut value, depth)?;
                }
                list.push(value);
                Ok(())
            }
            Shape::Map(item) => self.entry(message(wire)?, item, slot, depth),
            Shape::Struct(shape) => {
                if !slot.is_object() {
                    *slot = Value::Object(Map::new());
                }
                let Value::Object(map) = slot else { return Ok(()) };
                self.structure(message(wire)?, shape, &[], map, depth)
            }
            _ => {
                *slot = self.scalar(wire, shape, depth)?;
                Ok(())
            }
        }
    }

    /// A list that is a message of its own.
    fn boxed(&mut self, wire: Wire<'_>, shape: &Shape, slot: &mut Value, depth: usize) -> Result<(), DecodeError> {
        self.enter(depth)?;
        if !slot.is_array() {
            *slot = Value::Array(Vec::new());
        }
        let mut fields = Fields::new(message(wire)?);
        while let Some((number, wire)) = fields.next()? {
            if number == 1 {
                self.value(wire, shape, slot, depth + 1)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, raw: &[u8], item: &Shape, slot: &mut Value, depth: usize) -> Result<(), DecodeError> {
        self.enter(depth)?;
        let (mut name, mut value) = ("", Value::Null);
        let mut fields = Fields::new(raw);
        while let Some((number, wire)) = fields.next()? {
            match number {
                1 => name = utf8(message(wire)?)?,
                2 if matches!(item, Shape::List(_)) => self.boxed(wire, item, &mut value, depth + 1)?,
                2 => self.value(wire, item, &mut value, depth + 1)?,
                _ => {}
            }
        }
        if !slot.is_object() {
            *slot = Value::Object(Map::new());
        }
        if let Value::Object(map) = slot {
            map.insert(name.to_owned(), value);
        }
        Ok(())
    }

    fn scalar(&mut self, wire: Wire<'_>, shape: &Shape, depth: usize) -> Result<Value, DecodeError> {
        Ok(match (shape, wire) {
            (Shape::String, Wire::Bytes(text)) => utf8(text)?.into(),
            (Shape::Bytes, Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
            (Shape::Bool, Wire::Varint(n)) => (n != 0).into(),
            (Shape::Int32, Wire::Varint(n)) => (n as i32).into(),
            (Shape::Int64, Wire::Varint(n)) => (n as i64).into(),
            (Shape::Double, Wire::Fixed64(bits)) => {
                let number = Number::from_f64(f64::from_bits(bits));
                Value::Number(number.ok_or_else(|| fault("a number is not finite"))?)
            }
            (Shape::Time, _) => timestamp(message(wire)?)?.map_or(Value::Null, |t| time::format(t).into()),
            (Shape::MicroTime, _) => timestamp(message(wire)?)?.map_or(Value::Null, |t| time::format_micro(t).into()),
            (Shape::Duration, _) => {
                let nanos = single(message(wire)?, 1)?.map_or(Ok(0), |wire| match wire {
                    Wire::Varint(n) => Ok(n as i64),
                    _ => Err(fault("wrong wire type")),
                })?;
                let sign = if nanos < 0 { "-" } else { "" };
                format!("{sign}{:?}", std::time::Duration::from_nanos(nanos.unsigned_abs())).into()
            }
            (Shape::Quantity, _) => match single(message(wire)?, 1)? {
                Some(wire) => utf8(message(wire)?)?.into(),
                None => "0".into(),
            },
            (Shape::IntOrString, _) => int_or_string(message(wire)?)?,
            (Shape::FieldsV1 | Shape::RawExtension | Shape::Json | Shape::Deduced, _) => {
                match single(message(wire)?, 1)? {
                    Some(wire) => self.embedded(message(wire)?, depth)?,
                    None => Value::Null,
                }
            }
            (Shape::SchemaOrBool(schema), _) => {
                let message_ = message(wire)?;
                match single(message_, 2)? {
                    Some(wire) => self.nested(wire, schema, depth)?,
                    None => matches!(single(message_, 1)?, Some(Wire::Varint(1..))).into(),
                }
            }
            (Shape::SchemaOrArray(schema), _) => match single(message(wire)?, 1)? {
                Some(wire) => self.nested(wire, schema, depth)?,
                None => {
                    let mut list = Vec::new();
                    let mut fields = Fields::new(message(wire)?);
                    while let Some((number, wire)) = fields.next()? {
                        if number == 2 {
                            list.push(self.nested(wire, schema, depth)?);
                        }
                    }
                    if list.is_empty() { Value::Null } else { list.into() }
                }
            },
            (Shape::SchemaOrStringArray(schema), _) => match single(message(wire)?, 1)? {
                Some(wire) => self.nested(wire, schema, depth)?,
                None => {
                    let mut list = Vec::new();
                    let mut fields = Fields::new(message(wire)?);
                    while let Some((number, wire)) = fields.next()? {
                        if number == 2 {
                            list.push(Value::from(utf8(message(wire)?)?));
                        }
                    }
                    if list.is_empty() { Value::Null } else { list.into() }
                }
            },
            _ => return Err(fault("wrong wire type")),
        })
    }

    fn nested(&mut self, wire: Wire<'_>, shape: &Struct, depth: usize) -> Result<Value, DecodeError> {
        let mut map = Map::new();
        self.structure(message(wire)?, shape, &[], &mut map, depth + 1)?;
        Ok(Value::Object(map))
    }

    /// An object inside of an object: JSON, or a body with its own envelope.
    fn embedded(&mut self, raw: &[u8], depth: usize) -> Result<Value, DecodeError> {
        if raw.is_empty() {
            return Ok(Value::Null);
        }
        if !raw.starts_with(MAGIC) {
            return Ok(parse_json(raw)?.value);
        }
        let Envelope { api_version, kind, raw, .. } = envelope(raw)?;
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let shape = schema::kind(group, version, kind).ok_or_else(|| {
            DecodeError::Protobuf(format!("no kind \"{kind}\" is registered for version \"{api_version}\""))
        })?;
        self.enter(depth)?;
        let mut value = self.top(raw, shape, depth + 1)?;
        set_type(&mut value, api_version, kind);
        Ok(value)
    }
}

fn message(wire: Wire<'_>) -> Result<&[u8], DecodeError> {
    match wire {
        Wire::Bytes(bytes) => Ok(bytes),
        _ => Err(fault("wrong wire type")),
    }
}

/// The last occurrence of a field.
fn single(raw: &[u8], wanted: u32) -> Result<Option<Wire<'_>>, DecodeError> {
    let mut found = None;
    let mut fields = Fields::new(raw);
    while let Some((number, wire)) = fields.next()? {
        if number == wanted {
            found = Some(wire);
        }
    }
    Ok(found)
}

fn utf8(bytes: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(bytes).map_err(|_| fault("invalid UTF-8"))
}

/// `None` for the empty message, which is upstream's zero time.
fn timestamp(raw: &[u8]) -> Result<Option<Timestamp>, DecodeError> {
    if raw.is_empty() {
        return Ok(None);
    }
    let number = |wanted| match single(raw, wanted)? {
        Some(Wire::Varint(n)) => Ok(n as i64),
        None => Ok(0),
        Some(_) => Err(fault("wrong wire type")),
    };
    let nanos = i32::try_from(number(2)?).map_err(|_| fault("time out of range"))?;
    Timestamp::new(number(1)?, nanos).map(Some).map_err(|_| fault("time out of range"))
}

fn int_or_string(raw: &[u8]) -> Result<Value, DecodeError> {
    Ok(match single(raw, 1)? {
        Some(Wire::Varint(1)) => match single(raw, 3)? {
            Some(wire) => utf8(message(wire)?)?.into(),
            None => "".into(),
        },
        Some(Wire::Varint(0)) | None => match single(raw, 2)? {
            Some(Wire::Varint(n)) => (n as i32).into(),
            None => 0.into(),
            Some(_) => return Err(fault("wrong wire type")),
        },
        Some(_) => return Err(fault("impossible IntOrString.Type")),
    })
}
