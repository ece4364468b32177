//! Printer columns of a custom kind: name, and what the definition lists (age, when it lists nothing).

use jiff::Timestamp;
use serde_json::{Value, json};

use super::jsonpath::JsonPath;
use crate::meta;
use crate::tables;

/// The columns of one version.
#[derive(Clone, Debug)]
pub struct Columns(Vec<Column>);

#[derive(Clone, Debug)]
struct Column {
    name: String,
    kind: String,
    format: String,
    description: String,
    priority: i64,
    path: Option<JsonPath>,
}

impl Columns {
    /// Compiles `additionalPrinterColumns`.
    #[must_use]
    pub fn compile(list: Option<&Value>) -> Self {
        let list = list.and_then(Value::as_array).filter(|l| !l.is_empty());
        let text = |c: &Value, key: &str| c.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let column = |c: &Value| Column {
            name: text(c, "name"),
            kind: text(c, "type"),
            format: text(c, "format"),
            description: match text(c, "description") {
                d if d.is_empty() => {
                    format!("Custom resource definition column (in JSONPath format): {}", text(c, "jsonPath"))
                }
                d => d,
            },
            priority: c.get("priority").and_then(Value::as_i64).unwrap_or(0),
            path: JsonPath::parse(&text(c, "jsonPath")).ok(),
        };
        let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
            "description": "When the object was created."});
        Self(list.map_or_else(|| vec![column(&age)], |l| l.iter().map(column).collect()))
    }

    /// Column definitions of a table.
    #[must_use]
    pub fn definitions(&self) -> Vec<Value> {
        let name = json!({"name": "Name", "type": "string", "format": "name", "priority": 0,
            "description": "Name must be unique within a namespace."});
        let own = self.0.iter().map(|c| {
            json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority})
        });
        std::iter::once(name).chain(own).collect()
    }

    /// The cells of one object.
    #[must_use]
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let own = self.0.iter().map(|column| {
            let found = column.path.as_ref().and_then(|p| p.find(object).first().copied());
            found.map_or(Value::Null, |v| cell(&column.kind, v, now))
        });
        std::iter::once(meta::name(object).into()).chain(own).collect()
    }
}

/// A value as a cell of a type; what does not fit the type prints nothing.
fn cell(kind: &str, value: &Value, now: Timestamp) -> Value {
    match (kind, value) {
        ("string", Value::String(_)) | ("boolean", Value::Bool(_)) | ("number", Value::Number(_)) => value.clone(),
        ("string", Value::Null) => "<nil>".into(),
        ("string", other) => other.to_string().into(),
        ("integer", Value::Number(n)) => match (n.as_i64(), n.as_f64()) {
            (Some(i), _) => i.into(),
            (None, Some(f)) => (f as i64).into(),
            _ => Value::Null,
        },
        ("date", Value::String(s)) => match s.parse::<Timestamp>() {
            Ok(_) => tables::age(s, now).into(),
            Err(_) => "<invalid>".into(),
        },
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_follow_their_types() {
        let list = json!([
            {"name": "S", "type": "string", "jsonPath": ".spec.s"},
            {"name": "O", "type": "string", "jsonPath": ".spec.o"},
            {"name": "I", "type": "integer", "jsonPath": ".spec.i"},
            {"name": "B", "type": "boolean", "jsonPath": ".spec.s"},
            {"name": "D", "type": "date", "jsonPath": ".spec.d"},
            {"name": "X", "type": "date", "jsonPath": ".spec.s"},
            {"name": "N", "type": "string", "jsonPath": ".spec.none"},
        ]);
        let columns = Columns::compile(Some(&list));
        let object = json!({"metadata": {"name": "a"},
            "spec": {"s": "x", "o": {"k": 1}, "i": 3.7, "d": "1969-12-31T23:59:00Z"}});
        let cells = Value::Array(columns.cells(&object, Timestamp::UNIX_EPOCH));
        assert_eq!(cells, json!(["a", "x", "{\"k\":1}", 3, null, "60s", "<invalid>", null]));
        assert_eq!(columns.definitions().len(), 8);
        assert_eq!(Columns::compile(Some(&json!([]))).definitions()[1]["name"], "Age");
    }
}
