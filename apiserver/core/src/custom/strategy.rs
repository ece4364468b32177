//! The rules of a custom kind: the same trait that a built-in kind implements by hand.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use serde_json::Value;

use super::cel::{self, Told};
use super::coerce;
use super::columns::Columns;
use super::scale;
use super::schema::{Node, Schema};
use super::validate;
use crate::codec::{Faults, TypeError};
use crate::invalid::{ErrorType, Errors, FieldError, ROOT};
use crate::kinds::{Published, ScalePaths, Strategy, Traits};
use crate::meta;
use crate::names;
use crate::resources::Resource;
use crate::schema::Struct;

/// What stored objects may have been written under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// This definition only.
    None,
    /// Older schemas of the stored version, which may lack what this one fills in.
    Schemas,
    /// Other versions, as `status.storedVersions` says.
    Versions,
}

/// One version of a custom kind.
#[derive(Debug)]
pub struct Custom {
    traits: Traits,
    schema: Arc<Schema>,
    columns: Columns,
    selectable: Vec<String>,
    fields: &'static [&'static str],
    scale: Option<ScalePaths>,
    deprecated: Option<String>,
    /// The schema of the stored version, where that is another one.
    stored: Option<Arc<Schema>>,
    /// Whether stored objects have to be read along the schema before they are shown.
    reads: bool,
}

impl Custom {
    /// Compiles a version of a definition.
    #[must_use]
    pub fn compile(
        group: &str,
        kind: &str,
        name: &str,
        version: &Value,
        past: Past,
        stored: Option<Arc<Schema>>,
        schema: Arc<Schema>,
    ) -> Self {
        let subresources = version.get("subresources");
        let has = |sub: &str| subresources.and_then(|s| s.get(sub)).filter(|s| !s.is_null());
        let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let scale = has("scale").map(|s| ScalePaths {
            spec: text(s, "specReplicasPath"),
            status: text(s, "statusReplicasPath"),
            selector: text(s, "labelSelectorPath"),
        });
        let deprecated = (version.get("deprecated") == Some(&Value::Bool(true))).then(|| {
            let own = version.get("deprecationWarning").and_then(Value::as_str);
            own.map_or_else(|| format!("{group}/{name} {kind} is deprecated"), str::to_owned)
        });
        let selectable: Vec<String> = super::selectable(version).map(str::to_owned).collect();
        let fields = intern(selectable.iter().map(|p| p.trim_start_matches('.').to_owned()).collect());
        let traits = Traits {
            unconditional_update: false,
            generation: true,
            status: has("status").is_some(),
            untyped: true,
            ..Traits::DEFAULT
        };
        let reads = match past {
            Past::None => false,
            Past::Schemas => !schema.is_open(),
            Past::Versions => true,
        };
        let columns = Columns::compile(version.get("additionalPrinterColumns"));
        Self { traits, schema, columns, selectable, fields, scale, deprecated, stored, reads }
    }

    /// The compiled schema.
    #[must_use]
    pub fn root(&self) -> &Node {
        self.schema.root()
    }

    /// The schema, compiled or not yet.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// What the schema says of the values, the numbers of scale, and embedded objects.
    fn values(&self, obj: &Value, old: Option<&Value>, errors: &mut Errors) {
        validate::check(obj, self.root(), old, "", errors);
        if let Some(paths) = &self.scale {
            scale::number(obj, &paths.spec, errors);
            scale::number(obj, &paths.status, errors);
            scale::selector(obj, &paths.selector, errors);
        }
        validate::embedded(obj, self.root(), &ROOT, errors);
    }

    /// Duplicates in lists, unless there were some before.
    fn unique(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let (mut found, mut before) = (Errors::new(), Errors::new());
        validate::unique(new, self.root(), &ROOT, &mut found);
        validate::unique(old, self.root(), &ROOT, &mut before);
        if before.is_empty() {
            errors.0.append(&mut found.0);
        }
    }

    /// The rules in CEL, which see valid objects only.
    fn rules(&self, obj: &Value, old: Option<&Value>, errors: &mut Errors) {
        if !self.root().has_rules() {
            return;
        }
        let blocks = |e: &FieldError| {
            matches!(e.kind, ErrorType::Required | ErrorType::TooLong | ErrorType::TooMany | ErrorType::TypeInvalid)
        };
        if errors.0.iter().any(blocks) {
            let why = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            errors.invalid(&validate::NIL, Value::Null, why);
            return;
        }
        cel::run(obj, self.root(), old, Told::Errors, errors);
    }

    /// Where the scale subresource finds its numbers.
    #[must_use]
    pub fn scale(&self) -> Option<&ScalePaths> {
        self.scale.as_ref()
    }
}

/// The value at a simple path (`.spec.replicas`).
#[must_use]
pub fn lookup<'v>(obj: &'v Value, path: &str) -> Option<&'v Value> {
    path.trim_start_matches('.').split('.').try_fold(obj, |v, name| v.get(name))
}

/// Names of selectable fields for as long as the process lives: caches and selectors hold them by reference. A set is kept
/// once however often a definition comes and goes, so the memory grows with different definitions only.
pub(super) fn intern(mut names: Vec<String>) -> &'static [&'static str] {
    static KNOWN: LazyLock<Mutex<BTreeMap<Vec<String>, &'static [&'static str]>>> = LazyLock::new(Mutex::default);
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return &[];
    }
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(list) = known.get(&names) {
        return list;
    }
    let list: Vec<&'static str> = names.iter().map(|n| &*Box::leak(n.clone().into_boxed_str())).collect();
    let list: &'static [&'static str] = Box::leak(list.into_boxed_slice());
    known.insert(names, list);
    list
}

/// Makes members of `new` what they are in `old`, but for those that it may change. Most are that already.
fn restore(new: &mut Value, old: &Value, free: impl Fn(&str) -> bool) {
    let (Value::Object(n), Value::Object(o)) = (new, old) else { return };
    n.retain(|key, _| free(key) || o.contains_key(key));
    for (key, was) in o.iter().filter(|(key, _)| !free(key)) {
        if n.get(key) != Some(was) {
            n.insert(key.clone(), was.clone());
        }
    }
}

impl Strategy for Custom {
    fn traits(&self) -> &Traits {
        &self.traits
    }

    fn normalize(&self, value: &mut Value, _model: &Struct, faults: &mut Faults) -> Result<(), TypeError> {
        coerce::read(value, self.root(), faults)
    }

    fn default(&self, obj: &mut Value) {
        coerce::default(obj, self.root());
    }

    fn reads(&self) -> bool {
        self.reads
    }

    fn read(&self, obj: &mut Value) {
        if let Some(stored) = &self.stored {
            coerce::refresh(obj, stored.root());
            coerce::narrow(obj, self.root());
        } else {
            coerce::refresh(obj, self.root());
        }
    }

    fn store(&self, obj: &mut Value) {
        if let Some(stored) = &self.stored {
            coerce::narrow(obj, stored.root());
        }
    }

    /// Metadata through `status` is as it was, so nobody owns it by that.
    fn reset_fields(&self, of_status: bool) -> &'static [&'static [&'static str]] {
        match (of_status, self.traits.status) {
            (true, _) => &[&["metadata"], &["spec"]],
            (false, true) => &[&["status"]],
            (false, false) => &[],
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        if self.traits.status
            && let Value::Object(o) = obj
        {
            o.remove("status");
        }
        meta::meta_mut(obj).insert("generation".into(), 1.into());
    }

    /// Everything but metadata counts; what the status subresource owns was carried over before.
    fn desired_changed(&self, new: &Value, old: &Value) -> bool {
        let (Value::Object(n), Value::Object(o)) = (new, old) else { return false };
        n.keys().chain(o.keys()).filter(|k| *k != "metadata").any(|k| n.get(k) != o.get(k))
    }

    /// Nothing but status (and who owns it) is taken from the request, labels and annotations neither.
    fn prepare_status(&self, new: &mut Value, old: &Value) {
        let managed = meta::meta_mut(new).remove("managedFields");
        restore(new, old, |key| key == "status" || key == "metadata");
        if let (Some(n), Some(o)) = (new.get_mut("metadata"), old.get("metadata")) {
            restore(n, o, |key| key == "managedFields");
        }
        if let Some(managed) = managed {
            meta::meta_mut(new).insert("managedFields".into(), managed);
        }
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        self.values(obj, None, errors);
        validate::unique(obj, self.root(), &ROOT, errors);
        self.rules(obj, None, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.values(new, Some(old), errors);
        self.unique(new, old, errors);
        self.rules(new, Some(old), errors);
    }

    /// The rest is as it was. Texts name what is below `status` alone.
    fn validate_status(&self, new: &Value, old: &Value, errors: &mut Errors) {
        if let (Some(status), Some(node)) = (new.get("status"), self.root().member("status")) {
            validate::check(status, node, old.get("status"), "status", errors);
        }
        if let Some(paths) = &self.scale {
            scale::number(new, &paths.status, errors);
            scale::selector(new, &paths.selector, errors);
        }
        self.unique(new, old, errors);
        self.rules(new, Some(old), errors);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        let before: Vec<&str> = old.map(meta::finalizers).unwrap_or_default();
        let added = meta::finalizers(new).into_iter().filter(|f| !before.contains(f));
        for f in added {
            let shown = crate::invalid::quote_str(f);
            out.extend(names::is_qualified_name(f).iter().map(|why| format!("metadata.finalizers: {shown}: {why}")));
            if meta::is_plain_finalizer(f) {
                let path = if f.contains('.') { " including a path (/)" } else { "" };
                out.push(format!(
                    "metadata.finalizers: {shown}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers"
                ));
            }
        }
        if old.is_some() && self.root().has_rules() {
            let mut found = Errors::new();
            cel::run(new, self.root(), old, Told::Warnings, &mut found);
            out.extend(found.0.iter().map(ToString::to_string));
        }
    }

    fn fields(&self) -> &'static [&'static str] {
        self.fields
    }

    fn unsupported_field(&self, field: &str, resource: &Resource) -> Option<String> {
        let known = match field {
            "metadata.name" => true,
            "metadata.namespace" => resource.namespaced,
            _ => self.fields.contains(&field),
        };
        (!known).then(|| format!("field label not supported: {field}"))
    }

    fn columns(&self) -> Option<&Columns> {
        Some(&self.columns)
    }

    fn published(&self) -> Option<Published<'_>> {
        Some(Published { schema: self.schema.source(), selectable: &self.selectable })
    }

    fn scale_paths(&self) -> Option<&ScalePaths> {
        self.scale.as_ref()
    }

    fn deprecation(&self) -> Option<&str> {
        self.deprecated.as_deref()
    }
}
