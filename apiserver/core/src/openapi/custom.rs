//! Models of custom resources: the schema of the definition, with what every object has.

use serde_json::{Map, Value, json};

use super::Custom;
use super::models::{API_VERSION, Dialect, KIND, METADATA, Models};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// `com.example.v1.Thing` for group `example.com`.
#[must_use]
pub fn model_name(group: &str, version: &str, kind: &str) -> String {
    let mut parts: Vec<&str> = group.rsplit('.').collect();
    parts.extend([version, kind]);
    parts.join(".")
}

pub(super) fn object(custom: Custom<'_>, models: &mut Models<'_>) -> Value {
    let mut schema = custom
        .schema
        .and_then(|s| serde_json::from_str::<Value>(s).ok())
        .filter(Value::is_object)
        .unwrap_or_else(|| json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
    if models.dialect == Dialect::V2 {
        plain(&mut schema);
    }
    let preserve = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    if preserve && models.dialect == Dialect::V2 {
        // Clients of version 2 take whatever is said here for all there is.
        schema = json!({"type": "object"});
    } else {
        let metadata = reference(models, OBJECT_META, METADATA);
        if let Value::Object(map) = &mut schema {
            let properties = map.entry("properties").or_insert_with(|| Value::Object(Map::new()));
            properties["apiVersion"] = type_meta(API_VERSION);
            properties["kind"] = type_meta(KIND);
            properties["metadata"] = metadata;
        }
    }
    schema["x-kubernetes-group-version-kind"] = kinds(custom, &custom.resource.kind);
    if !custom.selectable.is_empty() {
        let fields: Vec<Value> =
            custom.selectable.iter().map(|path| json!({"fieldPath": path.trim_start_matches('.')})).collect();
        schema["x-kubernetes-selectable-fields"] = fields.into();
    }
    schema
}

pub(super) fn list(custom: Custom<'_>, models: &mut Models<'_>) -> Value {
    let r = custom.resource;
    let item = models.reference(&model_name(&r.group, &r.version, &r.kind));
    let metadata = reference(models, LIST_META, "Standard list metadata.");
    json!({
        "description": format!("{} is a list of {}", r.list_kind, r.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": type_meta(API_VERSION),
            "kind": type_meta(KIND),
            "items": {"description": format!("List of {}.", r.plural), "type": "array", "items": item},
            "metadata": metadata,
        },
        "x-kubernetes-group-version-kind": kinds(custom, &r.list_kind),
    })
}

fn reference(models: &mut Models<'_>, model: &str, text: &str) -> Value {
    let mut schema = models.reference(model);
    models.with_siblings(&mut schema, [("description".to_owned(), text.into())].into_iter().collect());
    schema
}

fn type_meta(text: &str) -> Value {
    json!({"description": text, "type": "string"})
}

fn kinds(custom: Custom<'_>, kind: &str) -> Value {
    json!([{"group": custom.resource.group, "version": custom.resource.version, "kind": kind}])
}

/// Drops what version 2 cannot say: unions, nullable values, defaults, and all structure where unknown fields are kept.
fn plain(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    for name in ["anyOf", "oneOf", "allOf", "not", "default", "x-kubernetes-validations"] {
        map.remove(name);
    }
    let on = |map: &Map<String, Value>, name: &str| map.get(name) == Some(&Value::Bool(true));
    if map.remove("nullable") == Some(Value::Bool(true)) || on(map, "x-kubernetes-int-or-string") {
        for name in ["type", "items", "properties", "additionalProperties", "required"] {
            map.remove(name);
        }
    }
    if on(map, "x-kubernetes-preserve-unknown-fields") {
        for name in ["items", "properties", "additionalProperties", "required"] {
            map.remove(name);
        }
        if map.get("type").is_some_and(|t| t == "object") {
            map.remove("type");
        }
    }
    if map.get("type").is_some_and(|t| t == "array") && !map.contains_key("items") {
        map.remove("type");
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(plain);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(name) {
            plain(inner);
        }
    }
}
