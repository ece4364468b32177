//! JSON values to protobuf.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value};

use super::MAGIC;
use super::wire::{put_bytes, put_message, put_number, put_varint};
use crate::schema::{Field, Presence, Shape, Struct};
use crate::time;

/// An object as a body: apiVersion and kind are taken from it. It must be in normal form (see
/// [`crate::codec::normalize`]); what does not fit its shape is written as if it were absent.
#[must_use]
pub fn encode_proto(value: &Value, shape: &Struct) -> Bytes {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or("");
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(MAGIC);
    put_message(&mut out, 1, |out| {
        put_bytes(out, 1, text("apiVersion").as_bytes());
        put_bytes(out, 2, text("kind").as_bytes());
    });
    put_message(&mut out, 2, |out| structure(out, value, shape));
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    out.into()
}

/// The message alone, without the envelope.
#[must_use]
pub fn write_message(value: &Value, shape: &Struct) -> Vec<u8> {
    let mut out = Vec::new();
    structure(&mut out, value, shape);
    out
}

/// One event of a watch: four bytes of length, then a `WatchEvent` whose object is a whole body (of [`encode_proto`]).
#[must_use]
pub fn watch_frame(event: &str, object: &[u8]) -> Bytes {
    let mut out = vec![0; 4];
    put_bytes(&mut out, 1, event.as_bytes());
    put_message(&mut out, 2, |out| put_bytes(out, 1, object));
    let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_be_bytes());
    out.into()
}

/// The beginning of a list's body up to its items, for lists that are sent piece by piece: [`list_item`]s that are
/// together `items` bytes long and [`LIST_END`] complete it. `list` has everything but its items. `None` when items are not
/// the last field of the list's message.
#[must_use]
pub fn list_head(list: &Value, shape: &Struct, items: u64) -> Option<Bytes> {
    let number = items_field(shape)?.number;
    if shape.fields.iter().any(|f| f.number > number || !f.within.is_empty()) {
        return None;
    }
    let text = |name: &str| list.get(name).and_then(Value::as_str).unwrap_or("");
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(MAGIC);
    put_message(&mut out, 1, |out| {
        put_bytes(out, 1, text("apiVersion").as_bytes());
        put_bytes(out, 2, text("kind").as_bytes());
    });
    let before = write_message(list, shape);
    put_varint(&mut out, 2 << 3 | 2);
    put_varint(&mut out, before.len() as u64 + items);
    out.extend_from_slice(&before);
    Some(out.into())
}

/// One item of a list, see [`list_head`].
pub fn list_item(out: &mut Vec<u8>, item: &Value, shape: &Struct) {
    if let Some(Field { number, shape: Shape::List(inner), .. }) = items_field(shape) {
        element(out, *number, item, inner);
    }
}

/// What stands behind the items, see [`list_head`]: the empty encoding and content type.
pub const LIST_END: &[u8] = &[3 << 3 | 2, 0, 4 << 3 | 2, 0];

fn items_field(shape: &Struct) -> Option<&Field> {
    shape.field("items").filter(|f| matches!(f.shape, Shape::List(_)) && !f.boxed)
}

fn structure(out: &mut Vec<u8>, value: &Value, shape: &Struct) {
    let empty = Map::new();
    let map = value.as_object().unwrap_or(&empty);
    let fields = &shape.fields;
    let plain = fields.iter().all(|f| f.within.is_empty()) && fields.is_sorted_by_key(|f| f.number);
    if plain {
        for field in fields.iter() {
            member(out, map, field);
        }
    } else {
        level(out, map, &fields.iter().collect::<Vec<_>>(), 0);
    }
}

/// Fields and embedded messages at one depth of embedding, in the order of their numbers.
fn level(out: &mut Vec<u8>, map: &Map<String, Value>, fields: &[&Field], depth: usize) {
    let number = |f: &Field| f.within.get(depth).copied().unwrap_or(f.number);
    let mut fields = fields.to_vec();
    fields.sort_by_key(|f| number(f));
    for group in fields.chunk_by(|a, b| number(a) == number(b)) {
        match group[0].within.get(depth) {
            Some(n) => put_message(out, *n, |out| level(out, map, group, depth + 1)),
            // Number 0, which is no field at all, may stand for several.
            None => group.iter().for_each(|f| member(out, map, f)),
        }
    }
}

fn member(out: &mut Vec<u8>, map: &Map<String, Value>, field: &Field) {
    if field.number == 0 {
        return;
    }
    let value = map.get(&*field.name).unwrap_or(&Value::Null);
    let pointer = matches!(field.presence, Presence::Pointer | Presence::Nullable);
    match &field.shape {
        _ if value.is_null() && pointer => {}
        Shape::List(item) if field.boxed => {
            if let Value::Array(list) = value {
                put_message(out, field.number, |out| list.iter().for_each(|v| element(out, 1, v, item)));
            }
        }
        Shape::List(item) => {
            for value in value.as_array().into_iter().flatten() {
                element(out, field.number, value, item);
            }
        }
        Shape::Map(item) => {
            for (name, value) in value.as_object().into_iter().flatten() {
                put_message(out, field.number, |out| {
                    put_bytes(out, 1, name.as_bytes());
                    element(out, 2, value, item);
                });
            }
        }
        Shape::Bytes if value.is_null() => {}
        shape => element(out, field.number, value, shape),
    }
}

/// A value that is always written, if only as its zero.
fn element(out: &mut Vec<u8>, number: u32, value: &Value, shape: &Shape) {
    let text = value.as_str().unwrap_or("");
    match shape {
        Shape::String => put_bytes(out, number, text.as_bytes()),
        Shape::Bytes => put_bytes(out, number, &STANDARD.decode(text).unwrap_or_default()),
        Shape::Bool => put_number(out, number, u64::from(value.as_bool().unwrap_or(false))),
        Shape::Int32 | Shape::Int64 => put_number(out, number, value.as_i64().unwrap_or(0) as u64),
        Shape::Double => {
            put_varint(out, u64::from(number) << 3 | 1);
            out.extend_from_slice(&value.as_f64().unwrap_or(0.0).to_le_bytes());
        }
        Shape::Time => put_message(out, number, |out| timestamp(out, time::parse(text).ok(), false)),
        Shape::MicroTime => put_message(out, number, |out| timestamp(out, time::parse_micro(text).ok(), true)),
        Shape::Duration => {
            let nanos = text.parse::<jiff::SignedDuration>().map_or(0, |d| d.as_nanos());
            put_message(out, number, |out| put_number(out, 1, i64::try_from(nanos).unwrap_or(0) as u64));
        }
        Shape::Quantity => {
            put_message(out, number, |out| put_bytes(out, 1, if text.is_empty() { b"0" } else { text.as_bytes() }));
        }
        Shape::IntOrString => put_message(out, number, |out| {
            put_number(out, 1, u64::from(value.is_string()));
            put_number(out, 2, value.as_i64().unwrap_or(0) as u64);
            put_bytes(out, 3, text.as_bytes());
        }),
        Shape::FieldsV1 | Shape::RawExtension | Shape::Json | Shape::Deduced => put_message(out, number, |out| {
            if !value.is_null() {
                put_bytes(out, 1, value.to_string().as_bytes());
            }
        }),
        Shape::Struct(shape) => put_message(out, number, |out| structure(out, value, shape)),
        // A list in a list or in a map is a message of its own.
        Shape::List(item) => put_message(out, number, |out| {
            value.as_array().into_iter().flatten().for_each(|v| element(out, 1, v, item));
        }),
        Shape::Map(item) => put_message(out, number, |out| {
            for (name, value) in value.as_object().into_iter().flatten() {
                put_message(out, 1, |out| {
                    put_bytes(out, 1, name.as_bytes());
                    element(out, 2, value, item);
                });
            }
        }),
        Shape::SchemaOrBool(schema) => put_message(out, number, |out| {
            put_number(out, 1, u64::from(value.is_object() || value.as_bool() == Some(true)));
            if value.is_object() {
                put_message(out, 2, |out| structure(out, value, schema));
            }
        }),
        Shape::SchemaOrArray(schema) => put_message(out, number, |out| match value {
            Value::Array(list) => {
                list.iter().for_each(|v| put_message(out, 2, |out| structure(out, v, schema)));
            }
            Value::Object(_) => put_message(out, 1, |out| structure(out, value, schema)),
            _ => {}
        }),
        Shape::SchemaOrStringArray(schema) => put_message(out, number, |out| match value {
            Value::Array(list) => list.iter().for_each(|v| element(out, 2, v, &Shape::String)),
            Value::Object(_) => put_message(out, 1, |out| structure(out, value, schema)),
            _ => {}
        }),
    }
}

/// Upstream's zero time is an empty message.
fn timestamp(out: &mut Vec<u8>, at: Option<jiff::Timestamp>, micros: bool) {
    let Some(at) = at.filter(|at| !time::is_zero(*at)) else { return };
    // Seconds are floored and the fraction is never negative, unlike in jiff.
    let nanos = at.as_nanosecond().rem_euclid(1_000_000_000);
    let seconds = (at.as_nanosecond() - nanos) / 1_000_000_000;
    put_number(out, 1, seconds as u64);
    put_number(out, 2, if micros { (nanos / 1000 * 1000) as u64 } else { 0 });
}
