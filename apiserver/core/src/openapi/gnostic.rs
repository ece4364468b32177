//! Version 2 as the protobuf messages that client-go reads (`openapi.v2.Document` of gnostic), for what is emitted here.
//!
//! Field numbers are those of the published message definitions. Values of any type (vendor extensions, enums) travel as
//! YAML text, for which JSON will do.

use serde_json::{Map, Value};

use crate::codec::proto::wire::{put_bytes, put_message, put_number, put_varint};

type Out = Vec<u8>;

/// A whole document.
pub(super) fn document(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    text(&mut out, 1, value, "swagger");
    if let Some(info) = value.get("info") {
        put_message(&mut out, 2, |out| {
            text(out, 1, info, "title");
            text(out, 2, info, "version");
        });
    }
    put_message(&mut out, 8, |out| named(out, 2, members(value, "paths"), path_item));
    put_message(&mut out, 9, |out| named(out, 1, members(value, "definitions"), schema));
    for requirement in list(value, "security") {
        put_message(&mut out, 12, |out| {
            named(out, 1, requirement.as_object(), |out, scopes| strings(out, 1, scopes));
        });
    }
    put_message(&mut out, 13, |out| {
        named(out, 1, members(value, "securityDefinitions"), |out, definition| {
            put_message(out, 2, |out| {
                text(out, 1, definition, "type");
                text(out, 2, definition, "name");
                text(out, 3, definition, "in");
                text(out, 4, definition, "description");
            });
        });
    });
    out
}

fn path_item(out: &mut Out, value: &Value) {
    for (number, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(value) = value.get(method) {
            put_message(out, number, |out| operation(out, value));
        }
    }
    for value in list(value, "parameters") {
        put_message(out, 9, |out| parameter(out, value));
    }
}

fn operation(out: &mut Out, value: &Value) {
    strings(out, 1, &value["tags"]);
    text(out, 3, value, "description");
    text(out, 5, value, "operationId");
    strings(out, 6, &value["produces"]);
    strings(out, 7, &value["consumes"]);
    for value in list(value, "parameters") {
        put_message(out, 8, |out| parameter(out, value));
    }
    put_message(out, 9, |out| {
        named(out, 1, members(value, "responses"), |out, value| {
            put_message(out, 1, |out| {
                text(out, 1, value, "description");
                if let Some(value) = value.get("schema") {
                    put_message(out, 2, |out| put_message(out, 1, |out| schema(out, value)));
                }
            });
        });
    });
    strings(out, 10, &value["schemes"]);
    extensions(out, 13, value);
}

/// A `ParametersItem`: one level for the choice of parameter or reference, one for body or not, one for where it is.
fn parameter(out: &mut Out, value: &Value) {
    put_message(out, 1, |out| match value["in"].as_str() {
        Some("body") => put_message(out, 1, |out| {
            text(out, 1, value, "description");
            text(out, 2, value, "name");
            text(out, 3, value, "in");
            flag(out, 4, value, "required");
            if let Some(value) = value.get("schema") {
                put_message(out, 5, |out| schema(out, value));
            }
        }),
        place => put_message(out, 2, |out| {
            let in_path = place == Some("path");
            put_message(out, if in_path { 4 } else { 3 }, |out| {
                flag(out, 1, value, "required");
                text(out, 2, value, "in");
                text(out, 3, value, "description");
                text(out, 4, value, "name");
                text(out, if in_path { 5 } else { 6 }, value, "type");
                flag(out, if in_path { 19 } else { 20 }, value, "uniqueItems");
            });
        }),
    });
}

fn schema(out: &mut Out, value: &Value) {
    text(out, 1, value, "$ref");
    text(out, 2, value, "format");
    text(out, 3, value, "title");
    text(out, 4, value, "description");
    if let Some(default) = value.get("default") {
        put_message(out, 5, |out| any(out, default));
    }
    double(out, 6, value, "multipleOf");
    double(out, 7, value, "maximum");
    flag(out, 8, value, "exclusiveMaximum");
    double(out, 9, value, "minimum");
    flag(out, 10, value, "exclusiveMinimum");
    integer(out, 11, value, "maxLength");
    integer(out, 12, value, "minLength");
    text(out, 13, value, "pattern");
    integer(out, 14, value, "maxItems");
    integer(out, 15, value, "minItems");
    flag(out, 16, value, "uniqueItems");
    integer(out, 17, value, "maxProperties");
    integer(out, 18, value, "minProperties");
    strings(out, 19, &value["required"]);
    for value in list(value, "enum") {
        put_message(out, 20, |out| any(out, value));
    }
    match value.get("additionalProperties") {
        Some(Value::Bool(allowed)) => put_message(out, 21, |out| put_number(out, 2, u64::from(*allowed))),
        Some(value) => put_message(out, 21, |out| put_message(out, 1, |out| schema(out, value))),
        None => {}
    }
    if let Some(kind) = value["type"].as_str() {
        put_message(out, 22, |out| put_bytes(out, 1, kind.as_bytes()));
    }
    if let Some(value) = value.get("items") {
        put_message(out, 23, |out| put_message(out, 1, |out| schema(out, value)));
    }
    if let Some(properties) = members(value, "properties") {
        put_message(out, 25, |out| named(out, 1, Some(properties), schema));
    }
    if let Some(example) = value.get("example") {
        put_message(out, 30, |out| any(out, example));
    }
    extensions(out, 31, value);
}

/// Members as messages of name and value.
fn named(out: &mut Out, number: u32, members: Option<&Map<String, Value>>, write: impl Fn(&mut Out, &Value)) {
    for (name, value) in members.into_iter().flatten() {
        put_message(out, number, |out| {
            put_bytes(out, 1, name.as_bytes());
            put_message(out, 2, |out| write(out, value));
        });
    }
}

fn extensions(out: &mut Out, number: u32, value: &Value) {
    for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-")) {
        put_message(out, number, |out| {
            put_bytes(out, 1, name.as_bytes());
            put_message(out, 2, |out| any(out, value));
        });
    }
}

fn any(out: &mut Out, value: &Value) {
    put_bytes(out, 2, format!("{value}\n").as_bytes());
}

fn members<'a>(value: &'a Value, name: &str) -> Option<&'a Map<String, Value>> {
    value.get(name)?.as_object()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text(out: &mut Out, number: u32, value: &Value, name: &str) {
    if let Some(text) = value.get(name).and_then(Value::as_str) {
        put_bytes(out, number, text.as_bytes());
    }
}

fn strings(out: &mut Out, number: u32, value: &Value) {
    for text in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
        put_bytes(out, number, text.as_bytes());
    }
}

fn flag(out: &mut Out, number: u32, value: &Value, name: &str) {
    if value.get(name) == Some(&Value::Bool(true)) {
        put_number(out, number, 1);
    }
}

fn integer(out: &mut Out, number: u32, value: &Value, name: &str) {
    if let Some(n) = value.get(name).and_then(Value::as_i64) {
        put_number(out, number, n as u64);
    }
}

fn double(out: &mut Out, number: u32, value: &Value, name: &str) {
    if let Some(n) = value.get(name).and_then(Value::as_f64) {
        put_varint(out, u64::from(number) << 3 | 1);
        out.extend_from_slice(&n.to_le_bytes());
    }
}
