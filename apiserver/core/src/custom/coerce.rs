//! What reading does to a custom object: metadata in its typed form, defaults, unknown fields away.
//!
//! The steps are upstream's and so is their order: defaults first (also below values that go away afterwards), then
//! pruning, then nulls of fields that cannot be null. Everything here is idempotent, because it runs on bodies, after
//! admission, and on what is read from the store.

use serde_json::{Map, Value};

use super::schema::{Additional, Node};
use crate::codec::{self, Faults, TypeError};
use crate::schema::{Shape, Struct};

/// Reads `object` along the schema of its version. Paths of what was dropped are added to `faults`, sorted.
///
/// # Errors
/// Metadata (the object's or an embedded one's) of the wrong type.
pub fn read(object: &mut Value, root: &Node, faults: &mut Faults) -> Result<(), TypeError> {
    codec::untyped_numbers(object);
    let mut unknown = Vec::new();
    if let Value::Object(members) = object
        && let Some(metadata) = members.get_mut("metadata")
    {
        typed_metadata(metadata, "metadata", &mut unknown)?;
    }
    default(object, root);
    prune_root(object, root, &mut unknown);
    drop_nulls(object, root);
    embedded(object, root, "", &mut unknown)?;
    unknown.sort_unstable();
    unknown.dedup();
    faults.unknown.append(&mut unknown);
    Ok(())
}

/// [`read`] for what the store holds: metadata is as it should be, and nobody is told what goes.
pub fn refresh(object: &mut Value, root: &Node) {
    default(object, root);
    prune_root(object, root, &mut Vec::new());
    drop_nulls(object, root);
}

/// What is left of an object that is converted to a version with this schema.
pub fn narrow(object: &mut Value, root: &Node) {
    prune_root(object, root, &mut Vec::new());
    drop_nulls(object, root);
}

/// The typed form of ObjectMeta, without the empty creation time that a Go type prints.
fn typed_metadata(metadata: &mut Value, path: &str, unknown: &mut Vec<String>) -> Result<(), TypeError> {
    let Some(shape) = object_meta() else { return Ok(()) };
    let mut wrapped = Value::Object(Map::from_iter([("metadata".to_owned(), metadata.take())]));
    let wrapper = Struct {
        name: "".into(),
        fields: vec![crate::schema::Field::new("metadata", Shape::Struct(crate::schema::Handle::Static(shape)))].into(),
        preserve_unknown: false,
        atomic: false,
    };
    let mut faults = Faults::default();
    codec::normalize(&mut wrapped, &wrapper, &mut faults)?;
    *metadata = wrapped.get_mut("metadata").map(Value::take).unwrap_or_else(|| Value::Object(Map::new()));
    if let Value::Object(m) = metadata
        && m.get("creationTimestamp").is_some_and(Value::is_null)
    {
        m.remove("creationTimestamp");
    }
    for fault in faults.unknown {
        let rest = fault.strip_prefix("metadata").unwrap_or(&fault);
        unknown.push(format!("{path}{rest}"));
    }
    Ok(())
}

fn object_meta() -> Option<&'static Struct> {
    crate::schema::model("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
}

/// Fills in defaults. Nothing is made for a parent that is not there.
pub fn default(value: &mut Value, node: &Node) {
    match value {
        Value::Object(members) => {
            for (name, property) in &node.properties {
                let Some(default) = &property.default else { continue };
                let absent = members.get(name).is_none_or(|v| v.is_null() && !property.nullable);
                if absent {
                    members.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in members.iter_mut() {
                let Some(member) = node.member(name) else { continue };
                if value.is_null()
                    && !member.nullable
                    && !node.properties.contains_key(name)
                    && let Some(default) = &member.default
                {
                    *value = default.clone();
                }
                default(value, member);
            }
        }
        Value::Array(list) => {
            let Some(items) = &node.items else { return };
            for value in list {
                if value.is_null()
                    && !items.nullable
                    && let Some(default) = &items.default
                {
                    *value = default.clone();
                }
                default(value, items);
            }
        }
        _ => {}
    }
}

fn prune_root(object: &mut Value, root: &Node, unknown: &mut Vec<String>) {
    let Value::Object(members) = object else { return };
    // What every object has is not the schema's business.
    let mut kept = Map::new();
    for key in ["apiVersion", "kind", "metadata"] {
        if let Some(v) = members.remove(key) {
            kept.insert(key.to_owned(), v);
        }
    }
    prune(object, root, "", unknown);
    if let Value::Object(members) = object {
        members.extend(kept);
    }
}

/// Takes out what the schema does not know.
pub fn prune(value: &mut Value, node: &Node, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            members.retain(|name, value| {
                let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                if node.embedded && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                    return true;
                }
                if let Some(member) = node.member(name) {
                    prune(value, member, &at, unknown);
                    return true;
                }
                let keep = node.preserve || matches!(node.additional, Additional::Any);
                if !keep {
                    unknown.push(at);
                }
                keep
            });
        }
        Value::Array(list) => {
            for (i, value) in list.iter_mut().enumerate() {
                let at = format!("{path}[{i}]");
                match &node.items {
                    Some(items) => prune(value, items, &at, unknown),
                    None if node.preserve => {}
                    None => prune(value, &Node::default(), &at, unknown),
                }
            }
        }
        _ => {}
    }
}

/// Takes out nulls of fields that are not nullable: they mean "absent". Those with a default have it by now.
fn drop_nulls(value: &mut Value, node: &Node) {
    match value {
        Value::Object(members) => members.retain(|name, value| {
            let Some(member) = node.member(name) else { return true };
            if value.is_null() && !member.nullable {
                return false;
            }
            drop_nulls(value, member);
            true
        }),
        Value::Array(list) => {
            if let Some(items) = &node.items {
                list.iter_mut().for_each(|v| drop_nulls(v, items));
            }
        }
        _ => {}
    }
}

/// Brings the metadata of embedded objects into its typed form.
fn embedded(value: &mut Value, node: &Node, path: &str, unknown: &mut Vec<String>) -> Result<(), TypeError> {
    match value {
        Value::Object(members) => {
            for (name, value) in members.iter_mut() {
                let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                if node.embedded && matches!(name.as_str(), "apiVersion" | "kind") && !value.is_string() {
                    return Err(TypeError::NoText { path: at, found: value.to_string() });
                }
                if node.embedded && name == "metadata" {
                    if !value.is_null() {
                        typed_metadata(value, &at, unknown)?;
                    }
                } else if let Some(member) = node.member(name) {
                    embedded(value, member, &at, unknown)?;
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &node.items {
                for (i, value) in list.iter_mut().enumerate() {
                    embedded(value, items, &format!("{path}[{i}]"), unknown)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    /// (schema of `spec`, `spec` sent, `spec` read, paths dropped)
    #[test]
    fn reading() {
        let cases = [
            (
                json!({"type":"object","properties":{"a":{"type":"string"}}}),
                json!({"a":"x","b":1}),
                json!({"a":"x"}),
                vec!["spec.b"],
            ),
            (
                json!({"type":"object","x-kubernetes-preserve-unknown-fields":true,"properties":{"a":{"type":"object"}}}),
                json!({"a":{"x":1},"b":1}),
                json!({"a":{},"b":1}),
                vec!["spec.a.x"],
            ),
            (
                json!({"type":"object","additionalProperties":{"type":"object","properties":{"x":{"type":"integer","default":3}}}}),
                json!({"k":{"y":1}}),
                json!({"k":{"x":3}}),
                vec!["spec.k.y"],
            ),
            (
                json!({"type":"object","properties":{"a":{"type":"string"},"n":{"type":"string","nullable":true}}}),
                json!({"a":null,"n":null}),
                json!({"n":null}),
                vec![],
            ),
            (
                json!({"type":"object","properties":{"a":{"type":"string","default":"d"},"n":{"type":"string","nullable":true,"default":"d"}}}),
                json!({"a":null,"n":null}),
                json!({"a":"d","n":null}),
                vec![],
            ),
            (
                json!({"type":"object","properties":{"p":{"type":"object","properties":{"a":{"type":"string","default":"d"}}}}}),
                json!({}),
                json!({}),
                vec![],
            ),
            (
                json!({"type":"object","properties":{"p":{"type":"object","default":{},"properties":{"a":{"type":"string","default":"d"}}}}}),
                json!({}),
                json!({"p":{"a":"d"}}),
                vec![],
            ),
            (
                json!({"type":"object","properties":{"l":{"type":"array","items":{"type":"object","properties":{"x":{"type":"integer"}}}}}}),
                json!({"l":[{"x":1,"y":2},{}]}),
                json!({"l":[{"x":1},{}]}),
                vec!["spec.l[0].y"],
            ),
        ];
        for (schema, sent, want, dropped) in cases {
            let root = Node::compile(&json!({"type":"object","properties":{"spec":schema}}));
            let mut object = json!({"apiVersion":"e/v1","kind":"T","metadata":{"name":"a"},"spec":sent});
            let mut faults = Faults::default();
            read(&mut object, &root, &mut faults).unwrap();
            assert_eq!((&object["spec"], &faults.unknown), (&want, &dropped.iter().map(|s| (*s).to_owned()).collect()));
            let once = object.clone();
            read(&mut object, &root, &mut Faults::default()).unwrap();
            assert_eq!(object, once, "idempotent");
            refresh(&mut object, &root);
            assert_eq!(object, once, "what is stored stays");
        }
    }

    #[test]
    fn metadata_is_typed() {
        let root = Node::open();
        let mut object = json!({"metadata":{"name":"a","foo":1,"creationTimestamp":null},"x":1.0});
        let mut faults = Faults::default();
        read(&mut object, &root, &mut faults).unwrap();
        assert_eq!(object, json!({"metadata":{"name":"a"},"x":1}));
        assert_eq!(faults.unknown, ["metadata.foo"]);
        assert!(read(&mut json!({"metadata":{"name":1}}), &root, &mut Faults::default()).is_err());
    }
}
