//! JSON values as CEL values, along a schema: formats become times, durations and bytes, names are escaped.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube_cel::cel::objects::{Key, Map, OptionalValue};
use kube_cel::cel::{Context, ExecutionError, Value as Cel};
use serde_json::Value;

use super::super::schema::{Additional, Node};

/// Words that CEL keeps for itself.
const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Whether CEL keeps the word for itself.
#[must_use]
pub fn is_reserved(word: &str) -> bool {
    RESERVED.contains(&word)
}

/// A field's name as expressions write it.
pub(super) fn escape(name: &str) -> String {
    if is_reserved(name) {
        return format!("__{name}__");
    }
    let mut out = String::with_capacity(name.len());
    let mut chars = name.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '_' if chars.peek() == Some(&'_') => {
                chars.next();
                out.push_str("__underscores__");
            }
            '.' => out.push_str("__dot__"),
            '-' => out.push_str("__dash__"),
            '/' => out.push_str("__slash__"),
            c => out.push(c),
        }
    }
    out
}

/// The field's name that expressions write like this: [`escape`] backwards.
pub(super) fn unescape(name: &str) -> String {
    if let Some(word) = name.strip_prefix("__").and_then(|n| n.strip_suffix("__"))
        && is_reserved(word)
    {
        return word.to_owned();
    }
    let mut out = name.replace("__dot__", ".").replace("__dash__", "-").replace("__slash__", "/");
    if out.contains("__underscores__") {
        out = out.replace("__underscores__", "__");
    }
    out
}

/// A value of a schema. `object`: it is a whole object, of which rules see the names in metadata only.
pub(super) fn of(value: &Value, node: &Node, object: bool) -> Cel {
    match value {
        Value::String(s) if !node.int_or_string => string(s, &node.format),
        Value::Array(list) => {
            let empty = Node::default();
            let items = node.items.as_deref().unwrap_or(&empty);
            Cel::List(Arc::new(list.iter().map(|v| of(v, items, items.embedded)).collect()))
        }
        Value::Number(n) if node.kind == Some(super::super::schema::Type::Number) => {
            Cel::Float(n.as_f64().unwrap_or_default())
        }
        Value::Object(members) => {
            let mut map = HashMap::with_capacity(members.len());
            let mapped = matches!(node.additional, Additional::Schema(_) | Additional::Any);
            for (name, value) in members {
                if object && name == "metadata" {
                    map.insert(key(name), names(value));
                    continue;
                }
                let Some(member) = node.member(name) else {
                    if mapped || (object && matches!(name.as_str(), "apiVersion" | "kind")) {
                        map.insert(key(name), plain(value));
                    }
                    continue;
                };
                let written = if mapped { name.clone() } else { escape(name) };
                map.insert(key(&written), of(value, member, member.embedded));
            }
            Cel::Map(Map { map: Arc::new(map) })
        }
        other => plain(other),
    }
}

fn key(name: &str) -> Key {
    Key::String(Arc::new(name.to_owned()))
}

/// What rules see of metadata.
fn names(metadata: &Value) -> Cel {
    let seen = ["name", "generateName"].into_iter().filter_map(|k| Some((key(k), plain(metadata.get(k)?))));
    Cel::Map(Map { map: Arc::new(seen.collect()) })
}

fn string(text: &str, format: &str) -> Cel {
    let found = match format {
        "date-time" => chrono::DateTime::parse_from_rfc3339(text).ok().map(Cel::Timestamp),
        "date" => chrono::DateTime::parse_from_rfc3339(&format!("{text}T00:00:00Z")).ok().map(Cel::Timestamp),
        "duration" => crate::duration::parse(text).ok().map(|n| Cel::Duration(chrono::Duration::nanoseconds(n))),
        "byte" => STANDARD.decode(text).ok().map(|b| Cel::Bytes(Arc::new(b))),
        _ => None,
    };
    found.unwrap_or_else(|| Cel::String(Arc::new(text.to_owned())))
}

/// A value without a schema.
pub(super) fn plain(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(b) => Cel::Bool(*b),
        Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Cel::Int(i),
            (None, Some(u)) => Cel::UInt(u),
            (None, None) => Cel::Float(n.as_f64().unwrap_or_default()),
        },
        Value::String(s) => Cel::String(Arc::new(s.clone())),
        Value::Array(list) => Cel::List(Arc::new(list.iter().map(plain).collect())),
        Value::Object(members) => {
            let map = members.iter().map(|(name, value)| (key(name), plain(value))).collect();
            Cel::Map(Map { map: Arc::new(map) })
        }
    }
}

/// A value as JSON; `None` for what JSON has no form for.
pub(super) fn to_json(value: &Cel) -> Option<Value> {
    Some(match value {
        Cel::Null => Value::Null,
        Cel::Bool(b) => (*b).into(),
        Cel::Int(i) => (*i).into(),
        Cel::UInt(u) => (*u).into(),
        Cel::Float(f) => serde_json::Number::from_f64(*f)?.into(),
        Cel::String(s) => s.as_str().into(),
        Cel::Bytes(b) => STANDARD.encode(b.as_slice()).into(),
        Cel::Timestamp(t) => t.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true).into(),
        Cel::Duration(d) => format!("{}s", d.as_seconds_f64()).into(),
        Cel::List(list) => Value::Array(list.iter().map(to_json).collect::<Option<_>>()?),
        Cel::Map(map) => {
            let mut out = serde_json::Map::with_capacity(map.map.len());
            let mut entries: Vec<_> = map.map.iter().map(|(k, v)| (k.to_string(), v)).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            for (name, value) in entries {
                out.insert(name, to_json(value)?);
            }
            Value::Object(out)
        }
        // An object that is set to nothing is not set.
        Cel::Opaque(o) => match o.downcast_ref::<OptionalValue>()?.value() {
            Some(v) => to_json(v)?,
            None => Value::Null,
        },
        Cel::Function(..) => return None,
    })
}

/// An optional value.
pub(super) fn optional(value: Option<Cel>) -> Cel {
    Cel::Opaque(Arc::new(value.map_or_else(OptionalValue::none, OptionalValue::of)))
}

/// Names of types, and the function that tells a value's.
pub(super) fn add_types(context: &mut Context<'_>) {
    for name in ["int", "uint", "double", "string", "bytes", "bool", "list", "map", "null_type"] {
        context.add_variable_from_value(name, Cel::String(Arc::new(name.to_owned())));
    }
    // No conversion, and a value of any type.
    context.add_function("dyn", |value: Cel| -> Result<Cel, ExecutionError> { Ok(value) });
    context.add_function("bool", |value: Cel| -> Result<Cel, ExecutionError> {
        match &value {
            Cel::Bool(_) => Ok(value),
            Cel::String(s) => match s.as_str() {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Cel::Bool(true)),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Cel::Bool(false)),
                _ => Err(ExecutionError::function_error("bool", "type conversion error from 'string' to 'bool'")),
            },
            _ => Err(ExecutionError::NoSuchOverload),
        }
    });
    context.add_function("type", |value: Cel| -> Result<Cel, ExecutionError> {
        let name = match value {
            Cel::Int(_) => "int",
            Cel::UInt(_) => "uint",
            Cel::Float(_) => "double",
            Cel::String(_) => "string",
            Cel::Bytes(_) => "bytes",
            Cel::Bool(_) => "bool",
            Cel::List(_) => "list",
            Cel::Map(_) => "map",
            Cel::Null => "null_type",
            Cel::Timestamp(_) => "google.protobuf.Timestamp",
            Cel::Duration(_) => "google.protobuf.Duration",
            Cel::Opaque(_) | Cel::Function(..) => "dyn",
        };
        Ok(Cel::String(Arc::new(name.to_owned())))
    });
}

#[cfg(test)]
mod tests {
    use super::{escape, unescape};

    #[test]
    fn names() {
        for (name, want) in [
            ("a", "a"),
            ("a-b", "a__dash__b"),
            ("a.b/c", "a__dot__b__slash__c"),
            ("namespace", "__namespace__"),
            ("a_b", "a_b"),
            ("a__b", "a__underscores__b"),
        ] {
            assert_eq!(escape(name), want);
            assert_eq!(unescape(want), name);
        }
    }
}
