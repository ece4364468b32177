//! What another server offers: its resources, and its part of the OpenAPI documents.

use bytes::Bytes;
use serde_json::{Map, Value};
use skiff_core::discovery::{GroupVersionKind, Item, SubItem};

use super::Remote;

/// What a server said of a group-version.
#[derive(Clone, Debug, Default)]
pub struct Offers {
    /// Its resources, sorted by name.
    pub resources: Vec<Item>,
    /// Its OpenAPI v3 document with its hash.
    pub v3: Option<(Bytes, String)>,
    /// `paths` and `definitions` of its OpenAPI v2 document, of this group-version alone.
    pub v2: Option<(Map<String, Value>, Map<String, Value>)>,
    /// What all of it was read from.
    digest: Vec<u8>,
}

impl PartialEq for Offers {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

fn digest(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().to_vec()
}

fn strings(v: &Value) -> Vec<String> {
    v.as_array().into_iter().flatten().filter_map(|s| s.as_str().map(str::to_owned)).collect()
}

/// Reads an `APIResourceList` and the documents, if there are any.
pub(super) fn read(remote: &Remote, list: &Value, v3: Option<Bytes>, v2: Option<&[u8]>) -> Offers {
    let mut all = digest(list.to_string().as_bytes());
    let v3 = v3.map(|bytes| {
        let d = digest(&bytes);
        all.extend(&d);
        (bytes, d.iter().map(|b| format!("{b:02X}")).collect())
    });
    if let Some(bytes) = v2 {
        all.extend(digest(bytes));
    }
    let v2 = v2.and_then(|bytes| serde_json::from_slice(bytes).ok()).map(|whole| part(remote, whole));
    Offers { resources: resources(remote, list), v3, v2, digest: all }
}

fn resources(remote: &Remote, list: &Value) -> Vec<Item> {
    let rows = || list["resources"].as_array().into_iter().flatten();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let kind = |row: &Value| {
        let own = |key: &str, else_: &str| row[key].as_str().filter(|s| !s.is_empty()).unwrap_or(else_).to_owned();
        let (group, version) = (own("group", &remote.group), own("version", &remote.version));
        GroupVersionKind::new(&group, &version, &text(row, "kind"))
    };
    let verbs = |row: &Value| strings(&row["verbs"]).into_iter().map(Into::into).collect();
    let mut items: Vec<Item> = rows()
        .filter(|row| !text(row, "name").contains('/'))
        .map(|row| Item {
            name: text(row, "name"),
            singular: text(row, "singularName"),
            kind: kind(row),
            namespaced: row["namespaced"] == true,
            verbs: verbs(row),
            short_names: strings(&row["shortNames"]),
            categories: strings(&row["categories"]),
            storage_version_hash: row["storageVersionHash"].as_str().map(str::to_owned),
            subresources: vec![],
        })
        .collect();
    for row in rows() {
        let name = text(row, "name");
        let Some((parent, sub)) = name.split_once('/') else { continue };
        let sub = SubItem { name: sub.to_owned(), kind: kind(row), verbs: verbs(row) };
        if let Some(item) = items.iter_mut().find(|i| i.name == parent) {
            item.subresources.push(sub);
        }
    }
    items.sort_by(|a, b| a.name.cmp(&b.name));
    for item in &mut items {
        item.subresources.sort_by(|a, b| a.name.cmp(&b.name));
    }
    items
}

/// The paths of the group-version, and the definitions these need.
fn part(remote: &Remote, mut whole: Value) -> (Map<String, Value>, Map<String, Value>) {
    let root = remote.root();
    let mut paths = whole["paths"].as_object_mut().map(std::mem::take).unwrap_or_default();
    paths.retain(|path, _| path.strip_prefix(&root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    let mut all = whole["definitions"].as_object_mut().map(std::mem::take).unwrap_or_default();
    let mut wanted = Vec::new();
    paths.values().for_each(|p| references(p, &mut wanted));
    // Kinds are needed though no path may name them.
    let of_group = |d: &Value| {
        let kinds = d["x-kubernetes-group-version-kind"].as_array().into_iter().flatten();
        kinds.into_iter().any(|k| k["group"] == remote.group.as_str() && k["version"] == remote.version.as_str())
    };
    wanted.extend(all.iter().filter(|(_, d)| of_group(d)).map(|(name, _)| name.clone()));
    let mut definitions = Map::new();
    while let Some(name) = wanted.pop() {
        if let Some(definition) = all.remove(&name) {
            references(&definition, &mut wanted);
            definitions.insert(name, definition);
        }
    }
    (paths, definitions)
}

/// The names of definitions that a part of a document refers to.
fn references(v: &Value, into: &mut Vec<String>) {
    match v {
        Value::Object(fields) => {
            for (key, value) in fields {
                let target = value.as_str().filter(|_| key == "$ref").and_then(|s| s.strip_prefix("#/definitions/"));
                into.extend(target.map(str::to_owned));
                references(value, into);
            }
        }
        Value::Array(items) => items.iter().for_each(|i| references(i, into)),
        _ => {}
    }
}
