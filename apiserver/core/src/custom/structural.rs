//! Rules for the schema inside a definition: it must be structural (a type everywhere, nothing but value checks in
//! junctors), name nothing that cannot be served, and its defaults must themselves be valid.
//!
//! The order of the three passes, and that a fault of the first hides the next, is upstream's.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::coerce;
use super::patterns;
use super::schema::{Node, Type};
use super::validate;
use crate::invalid::Errors;

/// Where a schema stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Checks a version's schema. `path` is the path of `openAPIV3Schema`.
pub(super) fn check(schema: &Value, path: &str, errors: &mut Errors) {
    if flag(schema, "nullable") {
        errors.forbidden(&format!("{path}.nullable"), "nullable cannot be true at the root");
    }
    let mut sound = false;
    if readable(schema) {
        let mut found = Errors::new();
        invariants(schema, Level::Root, path, &mut found);
        complete(schema, Some(schema), path, path, &mut found);
        found.0.sort_by_key(ToString::to_string);
        if found.is_empty() {
            let mut root = Node::compile(schema);
            root.embedded = true;
            defaults(&root, false, path, &mut found);
        }
        sound = found.is_empty();
        errors.0.append(&mut found.0);
    }
    let before = errors.len();
    openapi(schema, path, &Inside { root: true, ..Inside::default() }, errors);
    // What a rule means is only clear in a schema that is.
    if sound && errors.len() == before {
        super::cel::definition(schema, &Node::compile(schema), path, errors);
    }
}

fn flag(schema: &Value, key: &str) -> bool {
    schema.get(key) == Some(&Value::Bool(true))
}

fn text<'a>(schema: &'a Value, key: &str) -> &'a str {
    schema.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn children(schema: &Value, key: &str) -> Vec<(String, Value)> {
    let map = schema.get(key).and_then(Value::as_object).cloned().unwrap_or_default();
    map.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect()
}

fn list<'a>(schema: &'a Value, key: &str) -> &'a [Value] {
    schema.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn present(schema: &Value, key: &str) -> bool {
    schema.get(key).is_some_and(|v| match v {
        Value::Null => false,
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(_) | Value::Bool(_) | Value::Number(_) => true,
    })
}

/// Whether the schema can be taken for a structural one at all; what keeps it from that is reported by the last pass.
fn readable(schema: &Value) -> bool {
    let bad = ["id", "$ref", "$schema", "additionalItems", "patternProperties", "definitions", "dependencies"]
        .iter()
        .any(|k| present(schema, k));
    if bad
        || schema.get("items").is_some_and(Value::is_array)
        || schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false))
        || flag(schema, "uniqueItems")
    {
        return false;
    }
    let below = ["items", "not", "additionalProperties"].iter().filter_map(|k| schema.get(k)).filter(|v| v.is_object());
    let listed = ["allOf", "anyOf", "oneOf"].iter().flat_map(|k| list(schema, k));
    below.chain(listed).all(readable) && children(schema, "properties").iter().all(|(_, s)| readable(s))
}

/// `anyOf: [{type: integer}, {type: string}]`, the one union of types there is.
fn int_or_string(alternatives: &[Value]) -> bool {
    let one = |v: &Value, t: &str| v.as_object().is_some_and(|o| o.len() == 1) && text(v, "type") == t;
    matches!(alternatives, [a, b] if one(a, "integer") && one(b, "string"))
}

fn invariants(schema: &Value, level: Level, path: &str, errors: &mut Errors) {
    let kind = text(schema, "type");
    let at = |key: &str| format!("{path}.{key}");
    if kind == "array" && !present(schema, "items") {
        errors.required(&at("items"), "must be specified");
    }
    if let Some(items) = schema.get("items").filter(|i| i.is_object()) {
        invariants(items, Level::Item, &at("items"), errors);
    }
    for (name, property) in children(schema, "properties") {
        invariants(&property, Level::Field, &format!("{path}.properties[{name}]"), errors);
    }
    let additional = schema.get("additionalProperties").filter(|a| !a.is_null());
    if let Some(additional) = additional {
        if level == Level::Root {
            errors.forbidden(&at("additionalProperties"), "must not be used at the root");
        }
        if additional.is_object() {
            invariants(additional, Level::Field, &at("additionalProperties"), errors);
        }
    }
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let preserve = flag(schema, "x-kubernetes-preserve-unknown-fields");
    let union = flag(schema, "x-kubernetes-int-or-string");
    for (key, set) in [("x-kubernetes-preserve-unknown-fields", preserve), ("x-kubernetes-embedded-resource", embedded)]
    {
        if union && set {
            errors.invalid(&at(key), true, "must be false if x-kubernetes-int-or-string is true");
        }
    }
    let skip_any = int_or_string(list(schema, "anyOf"));
    let first = list(schema, "allOf").first();
    let skip_all = first.is_some_and(|f| int_or_string(list(f, "anyOf")));
    junctors(schema, skip_any, skip_all, path, errors);
    if embedded && kind != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        if kind.is_empty() { errors.required(&at("type"), why) } else { errors.invalid(&at("type"), kind, why) }
    } else if kind.is_empty() && !union && !preserve {
        let whence = match level {
            Level::Root => "at the root",
            Level::Item => "for specified array items",
            Level::Field => "for specified object fields",
        };
        errors.required(&at("type"), &format!("must not be empty {whence}"));
    }
    if embedded && additional.is_some() {
        errors.forbidden(&at("additionalProperties"), "must not be used if x-kubernetes-embedded-resource is set");
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.invalid(&at("type"), kind, "must be object at the root");
    }
    let own = |name: &str| schema.get("properties").and_then(|p| p.get(name));
    let object = level == Level::Root || embedded;
    for name in ["kind", "apiVersion"] {
        if let Some(s) = own(name).filter(|s| object && text(s, "type") != "string") {
            errors.invalid(&format!("{path}.properties[{name}].type"), text(s, "type"), "must be string");
        }
    }
    if let Some(metadata) = own("metadata") {
        let at = format!("{path}.properties[metadata]");
        if object && text(metadata, "type") != "object" {
            errors.invalid(&format!("{at}.type"), text(metadata, "type"), "must be object");
        }
        if level == Level::Root && !names_only(metadata) {
            let why =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            errors.forbidden(&at, why);
        }
    }
    if embedded && !preserve && children(schema, "properties").is_empty() {
        let why =
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.required(&at("properties"), why);
    }
}

/// Whether a schema of the root's metadata says nothing but what names look like.
fn names_only(metadata: &Value) -> bool {
    let Some(members) = metadata.as_object() else { return true };
    let quiet = |(key, value): (&String, &Value)| match key.as_str() {
        "type" | "default" => true,
        "properties" => {
            value.as_object().is_none_or(|p| p.keys().all(|k| matches!(k.as_str(), "name" | "generateName")))
        }
        _ => !present(metadata, key),
    };
    members.iter().all(quiet)
}

fn junctors(schema: &Value, skip_any: bool, skip_all: bool, path: &str, errors: &mut Errors) {
    for key in ["anyOf", "allOf", "oneOf"] {
        if key == "anyOf" && skip_any {
            continue;
        }
        for (i, nested) in list(schema, key).iter().enumerate() {
            let skip = key == "allOf" && i == 0 && skip_all;
            value_only(nested, skip, &format!("{path}.{key}[{i}]"), errors);
        }
    }
    if let Some(not) = schema.get("not").filter(|n| n.is_object()) {
        value_only(not, false, &format!("{path}.not"), errors);
    }
    let pattern = text(schema, "pattern");
    if let Some(why) = patterns::fault(pattern) {
        let why = format!("must be a valid regular expression, but isn't: error parsing regexp: {why}");
        errors.invalid(&format!("{path}.pattern"), pattern, why);
    }
}

/// A schema inside a junctor checks values and says nothing about structure.
fn value_only(schema: &Value, skip_any: bool, path: &str, errors: &mut Errors) {
    junctors(schema, skip_any, false, path, errors);
    if let Some(items) = schema.get("items").filter(|i| i.is_object()) {
        value_only(items, false, &format!("{path}.items"), errors);
    }
    for (name, property) in children(schema, "properties") {
        value_only(&property, false, &format!("{path}.properties[{name}]"), errors);
    }
    for (key, why) in [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        ("externalDocs", "must be undefined to be structural"),
        ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        ("x-kubernetes-embedded-resource", "must be false to be structural"),
        ("x-kubernetes-int-or-string", "must be false to be structural"),
        ("x-kubernetes-list-map-keys", "must be empty to be structural"),
        ("x-kubernetes-list-type", "must be undefined to be structural"),
        ("x-kubernetes-map-type", "must be undefined to be structural"),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ] {
        if present(schema, key) && schema.get(key) != Some(&Value::Bool(false)) {
            errors.forbidden(&format!("{path}.{key}"), why);
        }
    }
    if schema.get("properties").is_some_and(|p| p.get("metadata").is_some()) {
        errors.forbidden(&format!("{path}.properties[metadata]"), "must not be specified in a nested context");
    }
}

/// Whether everything that the root's junctors name is there outside of them.
fn complete(nested: &Value, structure: Option<&Value>, at: &str, from: &str, errors: &mut Errors) {
    let junctors = ["not"].iter().filter_map(|k| Some(((*k).to_owned(), nested.get(k)?)));
    let lists = ["allOf", "anyOf", "oneOf"]
        .iter()
        .flat_map(|k| list(nested, k).iter().enumerate().map(move |(i, v)| (format!("{k}[{i}]"), v)));
    for (key, inner) in junctors.chain(lists).filter(|(_, v)| v.is_object()) {
        nested_complete(inner, structure, at, &format!("{from}.{key}"), errors);
    }
}

fn nested_complete(nested: &Value, structure: Option<&Value>, at: &str, from: &str, errors: &mut Errors) {
    let Some(structure) = structure else {
        errors.required(&at, &format!("because it is defined in {from}"));
        return;
    };
    complete(nested, Some(structure), at, from, errors);
    if let Some(items) = nested.get("items").filter(|i| i.is_object()) {
        let inner = structure.get("items").filter(|i| i.is_object());
        nested_complete(items, inner, &format!("{at}.items"), &format!("{from}.items"), errors);
    }
    for (name, property) in children(nested, "properties") {
        let inner = structure.get("properties").and_then(|p| p.get(&name));
        let (at, from) = (format!("{at}.properties[{name}]"), format!("{from}.properties[{name}]"));
        nested_complete(&property, inner, &at, &from, errors);
    }
}

/// Defaults must be what an object may hold.
fn defaults(node: &Node, in_meta: bool, path: &str, errors: &mut Errors) {
    if let Some(default) = &node.default {
        let at = format!("{path}.default");
        let mut pruned = default.clone();
        if !in_meta {
            coerce::prune(&mut pruned, node, "", &mut Vec::new());
            if pruned != *default {
                errors.invalid(&at, default.clone(), "must not have unknown fields");
            }
        }
        let mut found = Errors::new();
        validate::embedded(default, node, &crate::path::Path::new(&at), &mut found);
        if found.is_empty() {
            validate::check(default, node, None, &at, &mut found);
        }
        errors.0.append(&mut found.0);
    }

    if let Some(items) = &node.items {
        defaults(items, in_meta, &format!("{path}.items"), errors);
    }
    if let super::schema::Additional::Schema(inner) = &node.additional {
        defaults(inner, in_meta, &format!("{path}.additionalProperties"), errors);
    }
    for (name, property) in &node.properties {
        let meta = in_meta || (node.embedded && matches!(name.as_str(), "metadata" | "apiVersion" | "kind"));
        defaults(property, meta, &format!("{path}.properties[{name}]"), errors);
    }
}

/// What the way to a schema says about it.
#[derive(Clone, Default)]
struct Inside {
    root: bool,
    metadata: bool,
    /// Why there may be no default.
    no_default: Option<String>,
}

/// What the dialect of definitions does not know or allow.
fn openapi(schema: &Value, path: &str, inside: &Inside, errors: &mut Errors) {
    let at = |key: &str| format!("{path}.{key}");
    let kind = text(schema, "type");
    if !kind.is_empty() && Type::parse(kind).is_none() {
        let all: Vec<&str> = Type::ALL.iter().map(|(n, _)| *n).collect();
        errors.not_supported(&at("type"), kind, &all);
    }
    if let Some(why) = &inside.no_default
        && present(schema, "default")
    {
        errors.forbidden(&at("default"), format!("must not be set {why}"));
    }
    for (key, what) in [
        ("id", "id"),
        ("additionalItems", "additionalItems"),
        ("patternProperties", "patternProperties"),
        ("definitions", "definitions"),
        ("dependencies", "dependencies"),
        ("$ref", "$ref"),
    ] {
        if present(schema, key) {
            errors.forbidden(&at(key), format!("{what} is not supported"));
        }
    }
    if kind == "null" {
        errors.forbidden(&at("type"), "type cannot be set to null, use nullable as an alternative");
    }
    if schema.get("items").is_some_and(Value::is_array) {
        errors.forbidden(&at("items"), "items must be a schema object and not an array");
    }
    if inside.metadata && flag(schema, "x-kubernetes-embedded-resource") {
        errors.forbidden(&at("x-kubernetes-embedded-resource"), "must not be used inside of resource meta");
    }
    if flag(schema, "uniqueItems") {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.forbidden(&at("uniqueItems"), why);
    }
    let inner = Inside { root: false, ..inside.clone() };
    if let Some(additional) = schema.get("additionalProperties").filter(|a| !a.is_null()) {
        if !children(schema, "properties").is_empty() && *additional != Value::Bool(true) {
            errors.forbidden(&at("additionalProperties"), "additionalProperties and properties are mutual exclusive");
        }
        if additional.is_object() {
            let mut inner = inner.clone();
            if inside.metadata {
                inner.no_default = Some("inside additionalProperties applying to object metadata".to_owned());
            }
            openapi(additional, &at("additionalProperties"), &inner, errors);
        }
    }
    for (name, property) in children(schema, "properties") {
        let mut inner = inner.clone();
        let object = inside.root || flag(schema, "x-kubernetes-embedded-resource");
        if object && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
            inner.metadata = true;
            if inside.root {
                inner.no_default = Some(format!("in top-level {name}"));
            }
        }
        openapi(&property, &format!("{path}.properties[{name}]"), &inner, errors);
    }
    if let Some(not) = schema.get("not").filter(|n| n.is_object()) {
        openapi(not, &at("not"), &inner, errors);
    }
    for key in ["allOf", "oneOf", "anyOf"] {
        for (i, nested) in list(schema, key).iter().enumerate() {
            openapi(nested, &format!("{path}.{key}[{i}]"), &inner, errors);
        }
    }
    match schema.get("items") {
        Some(items @ Value::Object(_)) => openapi(items, &at("items"), &inner, errors),
        Some(Value::Array(all)) => {
            for (i, items) in all.iter().enumerate() {
                openapi(items, &format!("{path}.items[{i}]"), &inner, errors);
            }
        }
        _ => {}
    }
    extensions(schema, path, errors);
}

fn extensions(schema: &Value, path: &str, errors: &mut Errors) {
    let at = |key: &str| format!("{path}.{key}");
    let kind = text(schema, "type");
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        errors.invalid(&at("x-kubernetes-preserve-unknown-fields"), false, "must be true or undefined");
    }
    let typed = |key: &str, wanted: &str, errors: &mut Errors| {
        let why = format!("must be {wanted} if {key} is specified");
        if kind.is_empty() { errors.required(&at("type"), &why) } else { errors.invalid(&at("type"), kind, why) }
    };
    if let Some(map) = schema.get("x-kubernetes-map-type").and_then(Value::as_str) {
        if kind != "object" {
            typed("x-kubernetes-map-type", "object", errors);
        }
        if !matches!(map, "atomic" | "granular") {
            errors.not_supported(&at("x-kubernetes-map-type"), map, &["atomic", "granular"]);
        }
    }
    let items = schema.get("items").filter(|i| i.is_object());
    let list_type = schema.get("x-kubernetes-list-type").and_then(Value::as_str);
    if let Some(list_type) = list_type {
        if kind != "array" {
            typed("x-kubernetes-list-type", "array", errors);
        } else if let Some(items) = items.filter(|_| list_type == "set") {
            let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
            let quoted = |key: &str| items.get(key).cloned().unwrap_or_default();
            let key = match text(items, "type") {
                "array" if !matches!(text(items, "x-kubernetes-list-type"), "" | "atomic") => {
                    Some("x-kubernetes-list-type")
                }
                "object" if text(items, "x-kubernetes-map-type") != "atomic" => Some("x-kubernetes-map-type"),
                _ => None,
            };
            if let Some(key) = key {
                errors.invalid(&format!("{path}.items.{key}"), quoted(key), why);
            }
        }
        if !matches!(list_type, "atomic" | "set" | "map") {
            errors.not_supported(&at("x-kubernetes-list-type"), list_type, &["atomic", "set", "map"]);
        }
    }
    let keys: Vec<&str> = list(schema, "x-kubernetes-list-map-keys").iter().filter_map(Value::as_str).collect();
    if !keys.is_empty() {
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list_type {
            None => errors.required(&at("x-kubernetes-list-type"), why),
            Some("map") => {}
            Some(other) => errors.invalid(&at("x-kubernetes-list-type"), other, why),
        }
    }
    if list_type == Some("map") {
        keyed(schema, items, &keys, path, errors);
    }
    rules(schema, path, errors);
    if let (Some("map" | "set"), Some(items)) = (list_type, items) {
        if flag(items, "nullable") {
            let why = format!("cannot be nullable when x-kubernetes-list-type is {}", list_type.unwrap_or_default());
            errors.forbidden(&format!("{path}.items.nullable"), why);
        }
        if list_type == Some("map") {
            let required: Vec<&str> = list(items, "required").iter().filter_map(Value::as_str).collect();
            for key in keys {
                let Some(property) = items.get("properties").and_then(|p| p.get(key)) else { continue };
                let at = format!("{path}.items.properties[{key}]");
                if !required.contains(&key) && !present(property, "default") {
                    let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                    errors.required(&format!("{at}.default"), why);
                }
                if flag(property, "nullable") {
                    let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
                    errors.forbidden(&format!("{at}.nullable"), why);
                }
            }
        }
    }
}

/// What a rule in CEL must be before anybody reads it.
fn rules(schema: &Value, path: &str, errors: &mut Errors) {
    for (i, rule) in list(schema, "x-kubernetes-validations").iter().enumerate() {
        let at = |key: &str| format!("{path}.x-kubernetes-validations[{i}].{key}");
        let (expression, message) = (text(rule, "rule").trim(), text(rule, "message"));
        if expression.is_empty() {
            errors.required(&at("rule"), "rule is not specified");
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.invalid(&at("message"), message, "must be non-empty if specified");
        } else if message.trim().contains(['\n', '\r']) {
            errors.invalid(&at("message"), message, "must not contain line breaks");
        } else if expression.contains(['\n', '\r']) && message.trim().is_empty() {
            errors.required(&at("message"), "message must be specified if rule contains line breaks");
        }
        let said = text(rule, "messageExpression");
        if !said.is_empty() && said.trim().is_empty() {
            errors.required(&at("messageExpression"), "must be non-empty if specified");
        }
        const REASONS: [&str; 4] =
            ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
        if let Some(reason) = rule.get("reason").and_then(Value::as_str).filter(|r| !REASONS.contains(r)) {
            errors.not_supported(&at("reason"), reason, &REASONS);
        }
        let field = text(rule, "fieldPath");
        if !field.is_empty() {
            if field.trim().is_empty() {
                errors.invalid(&at("fieldPath"), field, "must be non-empty if specified");
            } else if field.contains(['\n', '\r']) {
                errors.invalid(&at("fieldPath"), field, "must not contain line breaks");
            } else if !names_field(schema, field.trim()) {
                errors.invalid(&at("fieldPath"), field, "must be a valid path");
            }
        }
    }
}

/// Whether a path (`.a.b`, `.m['k']`, `.a['b'].c`) leads to a field of a schema.
fn names_field(schema: &Value, path: &str) -> bool {
    let (mut at, mut rest) = (schema, path);
    while !rest.is_empty() {
        let name = if let Some(inner) = rest.strip_prefix("['") {
            let Some((name, after)) = inner.split_once("']") else { return false };
            rest = after;
            name
        } else if let Some(inner) = rest.strip_prefix('.') {
            let end = inner.find(['.', '[']).unwrap_or(inner.len());
            rest = &inner[end..];
            &inner[..end]
        } else {
            return false;
        };
        let property = at.get("properties").and_then(|p| p.get(name));
        let Some(next) = property.or_else(|| at.get("additionalProperties").filter(|a| a.is_object())) else {
            return false;
        };
        at = next;
    }
    !path.is_empty()
}

/// The items of a list by key.
fn keyed(schema: &Value, items: Option<&Value>, keys: &[&str], path: &str, errors: &mut Errors) {
    let at = |key: &str| format!("{path}.{key}");
    if keys.is_empty() {
        errors.required(&at("x-kubernetes-list-map-keys"), "must not be empty if x-kubernetes-list-type is map");
    }
    let Some(items) = items else {
        if schema.get("items").is_none_or(Value::is_null) {
            errors.required(&at("items"), "must have a schema if x-kubernetes-list-type is map");
        } else {
            let why = "must only have a single schema if x-kubernetes-list-type is map";
            errors.invalid(&at("items"), schema["items"].clone(), why);
        }
        return;
    };
    let kind = text(items, "type");
    if kind != "object" {
        errors.invalid(&at("items.type"), kind, "must be object if parent array's x-kubernetes-list-type is map");
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    let shown: Value = keys.iter().map(|k| Value::from(*k)).collect();
    for key in keys {
        match items.get("properties").and_then(|p| p.get(key)) {
            Some(property) if matches!(text(property, "type"), "array" | "object") => {
                let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errors.invalid(&format!("{path}.items.properties[{key}].type"), kind, why);
            }
            Some(_) => {}
            None => {
                let why = "entries must all be names of item properties";
                errors.invalid(&at("x-kubernetes-list-map-keys"), shown.clone(), why);
            }
        }
        if seen.contains(key) {
            errors.invalid(&at("x-kubernetes-list-map-keys"), shown.clone(), "must not contain duplicate entries");
        }
        seen.push(key);
    }
}

/// Formats of strings anywhere in the schema that nobody checks.
#[must_use]
pub(super) fn unknown_formats(schema: &Value) -> Vec<String> {
    let mut out = Vec::new();
    formats(schema, &mut out);
    out
}

fn formats(schema: &Value, out: &mut Vec<String>) {
    let format = text(schema, "format");
    let known = match text(schema, "type") {
        "" | "string" => super::formats::known(format),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    };
    if !format.is_empty() && !known {
        out.push(format!("unrecognized format {}", crate::invalid::quote_str(format)));
    }
    let empty = Map::new();
    let members = schema.as_object().unwrap_or(&empty);
    for key in ["items", "not", "additionalProperties"] {
        members.get(key).filter(|v| v.is_object()).into_iter().for_each(|v| formats(v, out));
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        list(schema, key).iter().for_each(|v| formats(v, out));
    }
    children(schema, "properties").iter().for_each(|(_, v)| formats(v, out));
}
