//! The ownership structure of a version: what server-side apply merges along.
//!
//! Limits: the list type of a list directly inside a list or a map is not kept (such a list is one value).

use std::sync::Arc;

use super::schema::{Additional, ListType, Node, Type};
use crate::schema::{self, Field, Handle, Shape, Struct};

/// The structure of the objects of a version.
#[must_use]
pub fn model(name: String, root: &Node) -> Struct {
    let mut fields = vec![Field::new("apiVersion", Shape::String), Field::new("kind", Shape::String)];
    if let Some(meta) = schema::model("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") {
        fields.push(Field::new("metadata", Shape::Struct(Handle::Static(meta))));
    }
    let own = root.properties.iter().filter(|(n, _)| !matches!(n.as_str(), "apiVersion" | "kind" | "metadata"));
    fields.extend(own.map(|(name, node)| field(name, node)));
    Struct { name: name.into(), fields: fields.into(), preserve_unknown: root.preserve, atomic: false }
}

fn field(name: &str, node: &Node) -> Field {
    let mut field = Field::new(name.to_owned(), shape(node));
    match node.list {
        Some(ListType::Set) => field.list = schema::ListType::Set,
        Some(ListType::Map) => {
            field.list = schema::ListType::Map;
            field.list_keys = node.keys.iter().map(|k| k.clone().into()).collect();
        }
        Some(ListType::Atomic) | None => {}
    }
    field.atomic = node.atomic_map;
    field.default = node.default.as_ref().map(|d| d.to_string().into());
    field
}

fn shape(node: &Node) -> Shape {
    if node.int_or_string {
        return Shape::IntOrString;
    }
    match node.kind {
        Some(Type::String) => Shape::String,
        Some(Type::Integer) => Shape::Int64,
        Some(Type::Number) => Shape::Double,
        Some(Type::Boolean) => Shape::Bool,
        Some(Type::Array) => {
            let item = node.items.as_ref().map_or(Shape::Json, |i| shape(i));
            Shape::List(Handle::Shared(Arc::new(item)))
        }
        Some(Type::Object) => match &node.additional {
            Additional::Schema(value) => Shape::Map(Handle::Shared(Arc::new(shape(value)))),
            _ => Shape::Struct(Handle::Shared(Arc::new(object(node)))),
        },
        None => Shape::Deduced,
    }
}

/// An object of declared members; one that declares none has any.
fn object(node: &Node) -> Struct {
    let mut fields: Vec<Field> = node.properties.iter().map(|(name, node)| field(name, node)).collect();
    if node.embedded {
        let meta = schema::model("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
        fields.retain(|f| !matches!(&*f.name, "apiVersion" | "kind" | "metadata"));
        fields.push(Field::new("apiVersion", Shape::String));
        fields.push(Field::new("kind", Shape::String));
        fields.extend(meta.map(|m| Field::new("metadata", Shape::Struct(Handle::Static(m)))));
    }
    let open = node.preserve || fields.is_empty() || matches!(node.additional, Additional::Any);
    Struct { name: "".into(), fields: fields.into(), preserve_unknown: open, atomic: node.atomic_map }
}
