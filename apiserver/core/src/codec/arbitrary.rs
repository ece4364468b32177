//! Random values of a structure, for property tests.

use serde_json::{Map, Value, json};

use crate::schema::{Presence, Shape, Struct};

/// A small generator (xorshift): tests want speed and a seed, nothing more.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % n
    }

    fn text(&mut self) -> String {
        let alphabet = ['a', 'b', 'Z', '0', '-', '.', ' ', '"', 'é', '\n', '{', '\u{1F600}'];
        (0..self.below(6)).map(|_| alphabet[self.below(12) as usize]).collect()
    }

    fn name(&mut self) -> String {
        (0..=self.below(4)).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }
}

/// A value that has the right types, with fields missing at random.
pub(crate) fn arbitrary(shape: &Struct, random: &mut Random) -> Value {
    structure(shape, random, 0)
}

fn structure(shape: &Struct, random: &mut Random, depth: u64) -> Value {
    let mut map = Map::new();
    // apiVersion and kind of an object inside of another are lost in protobuf, upstream too.
    let lost = shape.fields.iter().any(|f| f.number != 0);
    for field in shape.fields.iter().filter(|f| !lost || f.number != 0) {
        let scalar = !matches!(field.shape, Shape::Struct(_) | Shape::List(_) | Shape::Map(_));
        let likely = if scalar { 2 } else { 1 + depth };
        if random.below(likely + 1) == 0 || (scalar && random.below(2) == 0) {
            let mut value = any(&field.shape, random, depth + 1);
            // An empty list that is always printed comes back as null: Go cannot tell, protobuf does not carry it.
            if field.presence == Presence::Always && value.as_array().is_some_and(Vec::is_empty) {
                value = Value::Null;
            }
            if field.presence == Presence::Always && value.as_object().is_some_and(Map::is_empty) {
                value = Value::Null;
            }
            map.insert(field.name.clone().into_owned(), value);
        }
    }
    Value::Object(map)
}

fn any(shape: &Shape, random: &mut Random, depth: u64) -> Value {
    let small = if depth > 8 { 1 } else { 3 };
    match shape {
        Shape::String => random.text().into(),
        Shape::Bytes => ["", "YQ==", "YWI=", "AP8="][random.below(4) as usize].into(),
        Shape::Bool => (random.below(2) == 0).into(),
        Shape::Int32 => [0, 1, -1, i32::MAX, i32::MIN][random.below(5) as usize].into(),
        Shape::Int64 => [0, 1, -1, i64::MAX, i64::MIN][random.below(5) as usize].into(),
        Shape::Double => [json!(0.5), json!(3), json!(-1e100)][random.below(3) as usize].clone(),
        Shape::Time => ["2026-01-02T03:04:05Z", "1969-12-31T23:59:59Z"][random.below(2) as usize].into(),
        Shape::MicroTime => {
            ["2026-01-02T03:04:05.000001Z", "1969-12-31T23:59:59.999999Z"][random.below(2) as usize].into()
        }
        Shape::Duration => "1s".into(),
        Shape::Quantity => ["0", "1", "500m", "1Gi", "1.5", "2e3"][random.below(6) as usize].into(),
        Shape::IntOrString => [json!(0), json!(-7), json!("25%"), json!("")][random.below(4) as usize].clone(),
        Shape::FieldsV1 | Shape::RawExtension => json!({"a": [1, null, {"b": random.text()}]}),
        Shape::Json | Shape::Deduced => {
            [json!({"a": null}), json!("x"), json!(1), json!(false)][random.below(4) as usize].clone()
        }
        Shape::SchemaOrBool(_) if random.below(2) == 0 => (random.below(2) == 0).into(),
        Shape::SchemaOrArray(schema) if random.below(2) == 0 => json!([structure(schema, random, depth + 4)]),
        Shape::SchemaOrStringArray(_) if random.below(2) == 0 => json!([random.text()]),
        Shape::SchemaOrBool(s) | Shape::SchemaOrArray(s) | Shape::SchemaOrStringArray(s) | Shape::Struct(s) => {
            if depth > 12 { json!({}) } else { structure(s, random, depth) }
        }
        Shape::List(item) => (0..random.below(small)).map(|_| any(item, random, depth + 1)).collect(),
        Shape::Map(item) => {
            let members = (0..random.below(small)).map(|_| (random.name(), any(item, random, depth + 1)));
            Value::Object(members.collect::<Vec<_>>().into_iter().collect())
        }
    }
}
