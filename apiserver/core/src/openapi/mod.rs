//! The published OpenAPI documents: version 3 by group-version, version 2 for everything, as JSON and as protobuf.
//!
//! Structure comes from the table of structures, prose from k8s-openapi. Documents are built when asked for and handed out
//! as bytes; a built document is large and rarely wanted, so keeping it is the server's decision. A document holds the
//! models that are reachable from its operations, and no others.

mod custom;
mod descriptions;
mod gnostic;
mod models;
mod operations;
mod render;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::resources::{self, Resource};
use models::{Dialect, Models};

pub use custom::model_name as custom_model_name;

/// The version that documents carry.
const VERSION: &str = "v1.37.0";

/// A custom resource: one served version of a definition, with the schema as the definition has it.
#[derive(Clone, Copy, Debug)]
pub struct Custom<'a> {
    /// Names, scope, verbs, subresources.
    pub resource: &'a Resource,
    /// `openAPIV3Schema`, as JSON.
    pub schema: Option<&'a str>,
    /// Paths of the fields that selectors may name (`.spec.color`).
    pub selectable: &'a [String],
}

/// The path of a group-version: `api/v1`, `apis/apps/v1`.
#[must_use]
pub fn path(group: &str, version: &str) -> String {
    let root = if group.is_empty() { "api" } else { "apis" };
    format!("{root}/{}", resources::group_version(group, version))
}

/// What identifies the content of a document of version 3. Clients keep a document for a year under its hash, so for the
/// built-in ones it is that of the bytes, found once (which builds each of them); with custom resources it is that of
/// what goes in.
#[must_use]
pub fn hash_v3(group: &str, version: &str, custom: &[Custom<'_>]) -> String {
    let mut custom = of(custom, group, version).peekable();
    if custom.peek().is_none()
        && let Some(hash) = BUILT_IN.get(&path(group, version))
    {
        return hash.clone();
    }
    let mut hash = Sha256::new();
    // So that another way to write documents changes these hashes too.
    for built_in in BUILT_IN.values() {
        hash.update(built_in);
    }
    hash.update(format!("{group}\n{version}\n"));
    for c in custom {
        let r = c.resource;
        let names = format!("{}/{}/{}/{}/{:?}\n", r.plural, r.kind, r.list_kind, r.namespaced, r.verbs);
        hash.update(names);
        for sub in &r.subresources {
            hash.update(format!("{}/{}/{:?}\n", sub.name, sub.kind, sub.verbs));
        }
        hash.update(c.schema.unwrap_or_default());
        hash.update(format!("{:?}\n", c.selectable));
    }
    hex(&hash.finalize())
}

/// Hashes of the documents of built-in group-versions, by path.
static BUILT_IN: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
    let documents = resources::group_versions()
        .filter_map(|(group, version)| Some((path(group, version), document_v3(group, version, &[])?)));
    documents.map(|(path, document)| (path, hex(&Sha256::digest(&document)))).collect()
});

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// `/openapi/v3`: where the documents are.
#[must_use]
pub fn index_v3(custom: &[Custom<'_>]) -> Value {
    let mut versions: Vec<(&str, &str)> = resources::group_versions().collect();
    versions.extend(custom.iter().map(|c| (&*c.resource.group, &*c.resource.version)));
    let paths = versions.into_iter().map(|(group, version)| {
        let path = path(group, version);
        let url = format!("/openapi/v3/{path}?hash={}", hash_v3(group, version, custom));
        (path, json!({"serverRelativeURL": url}))
    });
    json!({"paths": paths.collect::<Map<_, _>>()})
}

/// `/openapi/v3/...` for a group-version, or nothing if it is not served.
#[must_use]
pub fn document_v3(group: &str, version: &str, custom: &[Custom<'_>]) -> Option<Vec<u8>> {
    let value = value_v3(group, version, custom)?;
    serde_json::to_vec(&value).ok()
}

fn value_v3(group: &str, version: &str, custom: &[Custom<'_>]) -> Option<Value> {
    let custom: Vec<Custom<'_>> = of(custom, group, version).collect();
    let built_in = resources::all().iter().filter(|r| r.group == group && r.version == version);
    let all: Vec<&Resource> = built_in.chain(custom.iter().map(|c| c.resource)).collect();
    if all.is_empty() {
        return None;
    }
    let mut models = Models::new(Dialect::V3, &custom);
    let paths = render::paths(&operations::of_group_version(group, version, &all), &mut models);
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": models.finish(),
            "securitySchemes": {"BearerToken": bearer()},
        },
    }))
}

/// `/openapi/v2` as JSON.
#[must_use]
pub fn document_v2(custom: &[Custom<'_>]) -> Vec<u8> {
    serde_json::to_vec(&value_v2(custom)).unwrap_or_default()
}

/// `/openapi/v2` as protobuf (`application/com.github.proto-openapi.spec.v2.v1.0+protobuf`).
#[must_use]
pub fn document_v2_protobuf(custom: &[Custom<'_>]) -> Vec<u8> {
    gnostic::document(&value_v2(custom))
}

fn value_v2(custom: &[Custom<'_>]) -> Value {
    let mut versions: Vec<(&str, &str)> = resources::group_versions().collect();
    versions.extend(custom.iter().map(|c| (&*c.resource.group, &*c.resource.version)));
    versions.sort_unstable();
    versions.dedup();
    let mut models = Models::new(Dialect::V2, custom);
    let mut paths = Map::new();
    for (group, version) in versions {
        let built_in = resources::all().iter().filter(|r| r.group == group && r.version == version);
        let all: Vec<&Resource> = built_in.chain(of(custom, group, version).map(|c| c.resource)).collect();
        paths.extend(render::paths(&operations::of_group_version(group, version, &all), &mut models));
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths,
        "definitions": models.finish(),
        "securityDefinitions": {"BearerToken": bearer()},
        "security": [{"BearerToken": []}],
    })
}

fn bearer() -> Value {
    json!({"type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header"})
}

fn of<'a>(custom: &[Custom<'a>], group: &str, version: &str) -> impl Iterator<Item = Custom<'a>> {
    custom.iter().filter(move |c| c.resource.group == group && c.resource.version == version).copied()
}
