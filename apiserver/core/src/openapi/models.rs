//! Schemas of the models that a document refers to.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::Custom;
use super::custom;
use super::descriptions;
use crate::schema::{self, Field, ListType, PatchStrategy, Shape, Struct};

/// Which of the two languages a document is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// Collects models by being asked for references to them.
pub(super) struct Models<'a> {
    pub(super) dialect: Dialect,
    custom: BTreeMap<String, (Custom<'a>, bool)>,
    wanted: Vec<String>,
    seen: BTreeSet<String>,
}

impl<'a> Models<'a> {
    pub(super) fn new(dialect: Dialect, all: &[Custom<'a>]) -> Self {
        let mut custom = BTreeMap::new();
        for c in all {
            let r = c.resource;
            custom.insert(custom::model_name(&r.group, &r.version, &r.kind), (*c, false));
            custom.insert(custom::model_name(&r.group, &r.version, &r.list_kind), (*c, true));
        }
        Self { dialect, custom, wanted: Vec::new(), seen: BTreeSet::new() }
    }

    /// A reference; the model is part of the document from now on.
    pub(super) fn reference(&mut self, model: &str) -> Value {
        if self.seen.insert(model.to_owned()) {
            self.wanted.push(model.to_owned());
        }
        let place = if self.dialect == Dialect::V2 { "#/definitions/" } else { "#/components/schemas/" };
        json!({"$ref": format!("{place}{model}")})
    }

    /// The schemas of everything that was referred to, and of what those refer to.
    pub(super) fn finish(mut self) -> Value {
        let mut out = Map::new();
        while let Some(model) = self.wanted.pop() {
            let schema = self.schema(&model);
            out.insert(model, schema);
        }
        Value::Object(out)
    }

    fn schema(&mut self, model: &str) -> Value {
        if let Some((custom, list)) = self.custom.get(model).copied() {
            return if list { custom::list(custom, self) } else { custom::object(custom, self) };
        }
        if let Some(special) = self.special(model) {
            return special;
        }
        match schema::model(model) {
            Some(shape) => self.structure(shape),
            None => json!({"type": "object"}),
        }
    }

    fn special(&mut self, model: &str) -> Option<Value> {
        let v3 = self.dialect == Dialect::V3;
        let mut schema = match model.rsplit('.').next()? {
            "Time" | "MicroTime" => json!({"type": "string", "format": "date-time"}),
            "Duration" => json!({"type": "string"}),
            "Quantity" if v3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            "Quantity" => json!({"type": "string"}),
            "IntOrString" if v3 => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            "IntOrString" => json!({"type": "string", "format": "int-or-string"}),
            "FieldsV1" | "RawExtension" | "Patch" => json!({"type": "object"}),
            "JSON" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray" => json!({}),
            _ => return None,
        };
        if let Some(text) = descriptions::model(model) {
            schema["description"] = text.into();
        }
        Some(schema)
    }

    fn structure(&mut self, shape: &Struct) -> Value {
        let mut out = Map::new();
        let description = descriptions::model(&shape.name).or_else(|| list_description(shape));
        if let Some(text) = description {
            out.insert("description".into(), text.into());
        }
        out.insert("type".into(), "object".into());
        let mut properties = Map::new();
        for field in shape.fields.iter() {
            properties.insert(field.name.to_string(), self.field(shape, field));
        }
        if !properties.is_empty() {
            out.insert("properties".into(), properties.into());
        }
        let mut required: Vec<&str> = shape.fields.iter().filter(|f| f.required).map(|f| &*f.name).collect();
        required.sort_unstable();
        if !required.is_empty() {
            out.insert("required".into(), required.into());
        }
        if shape.atomic {
            out.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        let kinds = kinds(&shape.name);
        if !kinds.is_empty() {
            out.insert("x-kubernetes-group-version-kind".into(), kinds.into());
        }
        Value::Object(out)
    }

    fn field(&mut self, shape: &Struct, field: &Field) -> Value {
        let mut out = self.value(&field.shape);
        let description = descriptions::field(&shape.name, &field.name).or_else(|| common_description(&field.name));
        let mut extra = Map::new();
        if let Some(text) = description {
            extra.insert("description".into(), text.into());
        }
        if self.dialect == Dialect::V3
            && let Some(default) = field.default.as_deref().and_then(|text| serde_json::from_str(text).ok())
        {
            extra.insert("default".into(), default);
        }
        let patch = match field.patch {
            PatchStrategy::Default => None,
            PatchStrategy::Merge => Some("merge"),
            PatchStrategy::RetainKeys => Some("retainKeys"),
            PatchStrategy::MergeRetainKeys => Some("merge,retainKeys"),
            PatchStrategy::Replace => Some("replace"),
        };
        if let Some(patch) = patch {
            extra.insert("x-kubernetes-patch-strategy".into(), patch.into());
        }
        if let Some(key) = &field.merge_key {
            extra.insert("x-kubernetes-patch-merge-key".into(), key.as_ref().into());
        }
        if matches!(field.shape, Shape::List(_)) {
            let list = match field.list {
                ListType::Atomic => "atomic",
                ListType::Set => "set",
                ListType::Map => "map",
            };
            // Items of a list object carry no mark upstream.
            if field.name != "items" || !shape.name.ends_with("List") {
                extra.insert("x-kubernetes-list-type".into(), list.into());
            }
            if field.list == ListType::Map {
                let keys: Vec<&str> = field.list_keys.iter().map(|k| &**k).collect();
                extra.insert("x-kubernetes-list-map-keys".into(), keys.into());
            }
        } else if field.atomic || field.granular {
            let owned = if field.atomic { "atomic" } else { "granular" };
            extra.insert("x-kubernetes-map-type".into(), owned.into());
        }
        self.with_siblings(&mut out, extra);
        out
    }

    /// Adds members to a schema. In version 3 nothing may stand beside a reference, so that is wrapped.
    pub(super) fn with_siblings(&self, schema: &mut Value, extra: Map<String, Value>) {
        if self.dialect == Dialect::V3 && schema.get("$ref").is_some() && !extra.is_empty() {
            *schema = json!({"allOf": [schema.take()]});
        }
        if let Value::Object(map) = schema {
            map.extend(extra);
        }
    }

    /// The schema of a value.
    pub(super) fn value(&mut self, shape: &Shape) -> Value {
        const CRD: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";
        match shape {
            Shape::String => json!({"type": "string"}),
            Shape::Bytes => json!({"type": "string", "format": "byte"}),
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Int32 => json!({"type": "integer", "format": "int32"}),
            Shape::Int64 => json!({"type": "integer", "format": "int64"}),
            Shape::Double => json!({"type": "number", "format": "double"}),
            Shape::Time => self.reference(&format!("{META}Time")),
            Shape::MicroTime => self.reference(&format!("{META}MicroTime")),
            Shape::Duration => self.reference(&format!("{META}Duration")),
            Shape::Quantity => self.reference("io.k8s.apimachinery.pkg.api.resource.Quantity"),
            Shape::IntOrString => self.reference("io.k8s.apimachinery.pkg.util.intstr.IntOrString"),
            Shape::FieldsV1 => self.reference(&format!("{META}FieldsV1")),
            Shape::RawExtension => self.reference("io.k8s.apimachinery.pkg.runtime.RawExtension"),
            Shape::Json | Shape::Deduced => self.reference(&format!("{CRD}JSON")),
            Shape::SchemaOrBool(_) => self.reference(&format!("{CRD}JSONSchemaPropsOrBool")),
            Shape::SchemaOrArray(_) => self.reference(&format!("{CRD}JSONSchemaPropsOrArray")),
            Shape::SchemaOrStringArray(_) => self.reference(&format!("{CRD}JSONSchemaPropsOrStringArray")),
            Shape::Struct(shape) => self.reference(&shape.name),
            Shape::List(item) => json!({"type": "array", "items": self.element(item)}),
            Shape::Map(item) => json!({"type": "object", "additionalProperties": self.element(item)}),
        }
    }

    /// An element of a list or map: in version 3 it states the zero value as its default.
    fn element(&mut self, shape: &Shape) -> Value {
        let mut schema = self.value(shape);
        let default = match shape {
            Shape::String => json!(""),
            Shape::Int32 | Shape::Int64 => json!(0),
            Shape::Bool => json!(false),
            Shape::Struct(_) => json!({}),
            _ => return schema,
        };
        if self.dialect == Dialect::V3 {
            self.with_siblings(&mut schema, [("default".to_owned(), default)].into_iter().collect());
        }
        schema
    }
}

/// Which kinds a model is, sorted.
fn kinds(model: &str) -> Vec<Value> {
    // Every group-version registers these for itself.
    let everywhere = [format!("{META}DeleteOptions"), format!("{META}WatchEvent")];
    if everywhere.iter().any(|m| m == model) {
        let kind = model.rsplit('.').next().unwrap_or_default();
        let mut versions: Vec<_> = crate::resources::group_versions().collect();
        versions.sort_unstable();
        return versions.into_iter().map(|(g, v)| json!({"group": g, "version": v, "kind": kind})).collect();
    }
    let kinds = schema::kinds().iter().filter(|(group, _, _, s)| s.name == model && *group != "meta.k8s.io");
    kinds.map(|(g, v, k, _)| json!({"group": g, "version": v, "kind": k})).collect()
}

fn list_description(shape: &Struct) -> Option<String> {
    let kind = shape.name.rsplit('.').next()?.strip_suffix("List")?;
    shape.field("items").map(|_| format!("{kind}List is a list of {kind} objects."))
}

/// What the fields of every object mean. People look for these words in `kubectl explain`.
pub(super) const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object.";
pub(super) const KIND: &str = "Kind is a string value representing the REST resource this object represents.";
pub(super) const METADATA: &str = "Standard object's metadata.";

/// What the fields of every object and list mean.
fn common_description(field: &str) -> Option<String> {
    let text = match field {
        "apiVersion" => API_VERSION,
        "kind" => KIND,
        "metadata" => METADATA,
        "items" => "The objects of the list.",
        _ => return None,
    };
    Some(text.to_owned())
}
