//! Custom resources: what a CustomResourceDefinition makes.
//!
//! - [`schema`]: a version's schema, compiled once; [`coerce`]: defaults and pruning; [`shape`]: ownership.
//! - [`cel`]: the rules a schema states in CEL.
//! - [`names`]: which definitions get the names they ask for, and the conditions that say so.
//! - [`definition`]: the rules of a definition; [`validate`], [`formats`]: those of values.
//! - [`strategy`]: the rules of a custom kind, the same trait as a built-in's.
//!
//! A [`Definition`] is compiled from the stored object and gives one [`Resource`] with one [`Custom`] strategy for every
//! served version. Nothing here does I/O; the server puts the results into its registry.

pub mod cel;
pub mod coerce;
pub mod columns;
pub mod definition;
pub mod formats;
pub mod jsonpath;
pub mod names;
mod patterns;
mod rules;
mod scale;
pub mod schema;
pub mod shape;
pub mod strategy;
mod structural;
pub mod validate;

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;

pub use strategy::{Custom, Past};

use self::schema::Schema;

use crate::kinds::Strategy;
use crate::meta;
use crate::openapi;
use crate::resources::{Resource, Subresource, Verbs};
use crate::schema::Handle;

/// The finalizer that keeps a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// A definition as it is served.
#[derive(Clone, Debug)]
pub struct Definition {
    /// `plural.group`.
    pub name: String,
    /// Its uid: another one is another definition.
    pub uid: String,
    /// API group.
    pub group: String,
    /// Plural.
    pub plural: String,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// The version objects are stored as.
    pub storage: String,
    /// Whether a webhook converts between versions.
    pub webhook: bool,
    /// Served versions.
    pub versions: Vec<Version>,
    /// The stored version, served or not: what the server itself reads and deletes objects as.
    pub stored: Option<Version>,
    /// Selectable fields of any version: what the stored objects are indexed by.
    pub fields: &'static [&'static str],
}

/// One served version of a definition.
#[derive(Clone, Debug)]
pub struct Version {
    /// Names, scope, verbs, subresources.
    pub resource: Resource,
    /// Its rules.
    pub strategy: Arc<Custom>,
}

impl Definition {
    /// Compiles a stored definition, with the names it was given (`status.acceptedNames`). `None` when it is not one.
    #[must_use]
    pub fn compile(crd: &Value) -> Option<Self> {
        let spec = crd.get("spec")?;
        let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let group = text(spec, "group");
        let names = crd.get("status").and_then(|s| s.get("acceptedNames")).filter(|n| !text(n, "plural").is_empty());
        let names = names.or_else(|| spec.get("names"))?;
        let versions = spec.get("versions")?.as_array()?;
        let storage = versions.iter().find(|v| v.get("storage") == Some(&Value::Bool(true)))?;
        let stored = Arc::new(Schema::of(storage));
        let storage = text(storage, "name");
        let paths = versions.iter().flat_map(selectable);
        let fields = strategy::intern(paths.map(|p| p.trim_start_matches('.').to_owned()).collect());
        let mut out = Self {
            name: meta::name(crd).to_owned(),
            uid: meta::uid(crd).to_owned(),
            plural: text(names, "plural"),
            namespaced: text(spec, "scope") == "Namespaced",
            storage,
            webhook: spec.get("conversion").is_some_and(|c| text(c, "strategy") == "Webhook"),
            versions: Vec::new(),
            stored: None,
            group,
            fields,
        };
        let kept = crd["status"]["storedVersions"].as_array().into_iter().flatten();
        let past = if kept.clone().any(|v| *v != *out.storage) {
            Past::Versions
        } else if crd["metadata"]["generation"].as_i64().unwrap_or(0) > 1 {
            Past::Schemas
        } else {
            Past::None
        };
        for version in versions {
            let served = out.version(version, names, past, &stored);
            if version.get("storage") == Some(&Value::Bool(true)) {
                out.stored = Some(served.clone());
            }
            if version.get("served") == Some(&Value::Bool(true)) {
                out.versions.push(served);
            }
        }
        Some(out)
    }

    fn version(&self, version: &Value, names: &Value, past: Past, stored: &Arc<Schema>) -> Version {
        let text = |key: &str| names.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let list = |key: &str| -> Vec<Cow<'static, str>> {
            let list = names.get(key).and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str).map(|s| Cow::Owned(s.to_owned())).collect()
        };
        let name = version.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = text("kind");
        // What a webhook converts it makes to fit: only this version's own schema has a say.
        let (schema, stored) = if name == self.storage {
            (Arc::clone(stored), None)
        } else {
            (Arc::new(Schema::of(version)), Some(Arc::clone(stored)).filter(|_| !self.webhook))
        };
        let strategy = Arc::new(Custom::compile(&self.group, &kind, &name, version, past, stored, schema));
        let model_name = openapi::custom_model_name(&self.group, &name, &kind);
        let model = Handle::Shared(Arc::new(shape::model(model_name, &strategy.schema().compile())));
        let mut subresources = Vec::new();
        let reads = Verbs::GET.and(Verbs::PATCH).and(Verbs::UPDATE);
        if strategy.scale().is_some()
            && let Some(scale) = crate::schema::kind("autoscaling", "v1", "Scale")
        {
            subresources.push(Subresource {
                name: "scale".into(),
                elsewhere: Some(("autoscaling".into(), "v1".into())),
                kind: "Scale".into(),
                verbs: reads,
                model: Handle::Static(scale),
            });
        }
        if strategy.traits().status {
            subresources.push(Subresource {
                name: "status".into(),
                elsewhere: None,
                kind: kind.clone().into(),
                verbs: reads,
                model: model.clone(),
            });
        }
        let resource = Resource {
            group: self.group.clone().into(),
            version: name.into(),
            plural: self.plural.clone().into(),
            singular: text("singular").into(),
            kind: kind.into(),
            list_kind: text("listKind").into(),
            namespaced: self.namespaced,
            verbs: Verbs::ALL,
            short_names: list("shortNames"),
            categories: list("categories"),
            subresources,
            storage: Some((self.group.clone().into(), self.storage.clone().into())),
            model,
        };
        Version { resource, strategy }
    }
}

/// The paths of a version's selectable fields.
fn selectable(version: &Value) -> impl Iterator<Item = &str> {
    let list = version.get("selectableFields").and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|f| f.get("jsonPath").and_then(Value::as_str))
}
