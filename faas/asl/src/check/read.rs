//! Text to a value, with the keys that occur twice. JSON first; what is not JSON may be YAML.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::definition::escape;

/// The value, and the pointers of keys that occurred before in their object.
pub(super) fn value(text: &str) -> Result<(Value, Vec<String>), String> {
    match json(text) {
        Ok(read) => Ok(read),
        // Whoever writes a brace means JSON, and its error is the helpful one.
        Err(e) if text.trim_start().starts_with('{') => Err(format!("The definition is not JSON: {e}")),
        // Words such as `no` and `on` are names of states more often than booleans.
        Err(_) => serde_saphyr::from_str_with_options(text, serde_saphyr::options! { strict_booleans: true })
            .map(|value| (value, Vec::new()))
            .map_err(|e| format!("The definition is neither JSON nor YAML: {}", e.to_string().trim())),
    }
}

/// JSON without repeated keys.
#[cfg(feature = "jsonata")]
pub(super) fn strict(text: &str) -> Result<Value, String> {
    match json(text) {
        Ok((value, duplicates)) if duplicates.is_empty() => Ok(value),
        Ok((_, duplicates)) => Err(format!("the key at {} occurs more than once", duplicates.join(", "))),
        Err(e) => Err(e.to_string()),
    }
}

fn json(text: &str) -> serde_json::Result<(Value, Vec<String>)> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let seed = Seed { at: String::new(), duplicates: &mut duplicates };
    let value = seed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, duplicates))
}

struct Seed<'d> {
    at: String,
    duplicates: &'d mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a number"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        let Self { at, duplicates } = self;
        while let Some(item) =
            access.next_element_seed(Seed { at: format!("{at}/{}", items.len()), duplicates: &mut *duplicates })?
        {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        let Self { at, duplicates } = self;
        while let Some(key) = access.next_key::<String>()? {
            let at = format!("{at}/{}", escape(&key));
            if map.contains_key(&key) {
                duplicates.push(at.clone());
            }
            let value = access.next_value_seed(Seed { at, duplicates: &mut *duplicates })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
