//! The rules of each built-in kind: defaults, validation, what a write may change, columns, selectable fields.
//!
//! A kind contributes a [`Strategy`]; verbs never ask which kind they handle. Everything here works on `Value`s that have
//! been through the typed round trip (`codec::json`), does no I/O, and is found under the resource's name.

mod admission;
mod autoscaler;
mod certificates;
mod check;
mod cluster;
mod config;
mod defaults;
mod devices;
mod event;
mod flow;
mod limits;
mod namespace;
mod net;
mod node;
mod pod;
mod policy;
mod rbac;
mod registry;
mod service;
mod storage;
#[cfg(test)]
mod tests;
mod webhooks;
mod workloads;

use serde_json::Value;

pub use flow::mandatory as mandatory_flow;
pub use pod::{security_levels, totals as pod_totals, validate_log_options};
pub use registry::strategy;
pub use service::patch_allocated as service_patch_allocated;

use crate::codec::{self, Faults, TypeError};
use crate::custom::columns::Columns;
use crate::invalid::Errors;
use crate::meta::{self, NameRule};
use crate::resources::Resource;
use crate::schema::Struct;

/// What verbs have to know about a kind.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// Grammar of `metadata.name`.
    pub name: NameRule,
    /// Whether a PUT without resourceVersion is allowed.
    pub unconditional_update: bool,
    /// Whether a PUT to a missing name creates.
    pub create_on_update: bool,
    /// Whether `metadata.generation` counts changes of the desired state.
    pub generation: bool,
    /// Whether there is a `status` that only the status subresource writes.
    pub status: bool,
    /// Whether writes of the status leave the metadata, too, as they are.
    pub status_keeps_meta: bool,
    /// Whether a completed deletion answers the object instead of a Status.
    pub returns_deleted: bool,
    /// Whether dependents are orphaned when the request does not say (legacy kinds); otherwise background deletion.
    pub orphan_by_default: bool,
    /// Whether deletion is graceful (pods).
    pub graceful: bool,
    /// Whether upstream holds the objects without a type of their own: they are JSON and YAML only, know no strategic
    /// merge, name their kind in lists too, and may have finalizers without a domain.
    pub untyped: bool,
}

impl Traits {
    /// The most common answers.
    pub const DEFAULT: Self = Self {
        name: NameRule::Subdomain,
        unconditional_update: true,
        create_on_update: false,
        generation: false,
        status: false,
        status_keeps_meta: false,
        returns_deleted: false,
        orphan_by_default: false,
        graceful: false,
        untyped: false,
    };
}

/// What a kind publishes about itself besides its structure.
#[derive(Clone, Copy, Debug)]
pub struct Published<'a> {
    /// `openAPIV3Schema` of the definition, as JSON.
    pub schema: Option<&'a str>,
    /// Paths of the fields that selectors may name.
    pub selectable: &'a [String],
}

/// Where the scale subresource finds its numbers, as simple paths (`.spec.replicas`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    /// Desired replicas.
    pub spec: String,
    /// Present replicas.
    pub status: String,
    /// The selector as text; empty when there is none.
    pub selector: String,
}

/// The rules of one kind. Every method has the answer of a kind without rules of its own.
pub trait Strategy: Send + Sync {
    /// Facts for the verbs.
    fn traits(&self) -> &Traits {
        const T: Traits = Traits::DEFAULT;
        &T
    }

    /// Reads a decoded body along the kind's structure: what is unknown is dropped and reported, the rest gets its
    /// canonical form.
    ///
    /// # Errors
    /// A value of the wrong type.
    fn normalize(&self, value: &mut Value, model: &Struct, faults: &mut Faults) -> Result<(), TypeError> {
        codec::normalize(value, model, faults)
    }

    /// Whether [`Strategy::read`] may change anything. If not, stored bytes are answered as they are.
    fn reads(&self) -> bool {
        false
    }

    /// Brings a stored object, already named as of this version, to what the present structure makes of it.
    fn read(&self, _obj: &mut Value) {}

    /// Takes out of an object what the stored version, another one than this, does not know.
    fn store(&self, _obj: &mut Value) {}

    /// Fills in defaults. Runs on every decoded object of the kind, before admission sees it and after it changed it.
    fn default(&self, _obj: &mut Value) {}

    /// Makes a new object ready: drops what the client may not set. Runs before validation.
    fn prepare_create(&self, obj: &mut Value) {
        let t = self.traits();
        if t.status {
            reset_status(obj);
        }
        if t.generation {
            meta::meta_mut(obj).insert("generation".into(), 1.into());
        }
    }

    /// Checks a new object (metadata excluded: [`meta::validate`] did that).
    fn validate(&self, _obj: &Value, _errors: &mut Errors) {}

    /// Carries over what a plain update may not change, and counts the generation.
    fn prepare_update(&self, new: &mut Value, old: &Value) {
        let t = self.traits();
        if t.status {
            carry(new, old, "status");
        }
        if t.generation {
            let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
            let changed = self.desired_changed(new, old);
            meta::meta_mut(new).insert("generation".into(), (before + i64::from(changed)).into());
        }
    }

    /// Whether the desired state differs (raises the generation). Default: anything but metadata and status.
    fn desired_changed(&self, new: &Value, old: &Value) -> bool {
        let (Value::Object(n), Value::Object(o)) = (new, old) else { return false };
        let other = |k: &&String| !matches!(k.as_str(), "metadata" | "status" | "kind" | "apiVersion");
        n.keys().chain(o.keys()).filter(other).any(|k| n.get(k) != o.get(k))
    }

    /// Checks an update (metadata excluded).
    fn validate_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
    }

    /// For the status subresource: keeps everything but status, labels and annotations, and with
    /// [`Traits::status_keeps_meta`] these, too.
    fn prepare_status(&self, new: &mut Value, old: &Value) {
        let Value::Object(o) = old else { return };
        for key in o.keys().filter(|k| !matches!(k.as_str(), "metadata" | "status" | "apiVersion" | "kind")) {
            carry(new, old, key);
        }
        if let Value::Object(n) = new {
            n.retain(|k, _| o.contains_key(k) || k == "status");
        }
        carry_meta(new, old, &["ownerReferences", "generation"]);
        if self.traits().status_keeps_meta {
            let owned = meta::meta_mut(new).remove("managedFields");
            carry(new, old, "metadata");
            match owned {
                Some(owned) => drop(meta::meta_mut(new).insert("managedFields".into(), owned)),
                None => drop(meta::meta_mut(new).remove("managedFields")),
            }
        }
    }

    /// Fields that a write takes back and therefore never owns: of the main endpoint, or of `status`.
    fn reset_fields(&self, of_status: bool) -> &'static [&'static [&'static str]] {
        let t = self.traits();
        match of_status {
            true if t.status_keeps_meta => &[&["metadata"], &["spec"]],
            true => &[&["spec"]],
            false if t.status => &[&["status"]],
            false => &[],
        }
    }

    /// The group that a refusal names, where it is not the request's (Events are one kind in two groups).
    fn error_group(&self) -> Option<&'static str> {
        None
    }

    /// Checks a status update (metadata excluded).
    fn validate_status(&self, _new: &Value, _old: &Value, _errors: &mut Errors) {}

    /// `Warning` headers of a new object that come with a refusal too.
    fn early_warnings(&self, _new: &Value, _out: &mut Vec<String>) {}

    /// `Warning` headers for an accepted write.
    fn warnings(&self, _new: &Value, _old: Option<&Value>, _out: &mut Vec<String>) {}

    /// A finalizer that every deletion of the kind begins with.
    fn deletion_finalizer(&self) -> Option<&'static str> {
        None
    }

    /// What a client is told that deletes without saying what becomes of the dependents, where these are orphaned.
    fn deletion_warning(&self) -> Option<&'static str> {
        None
    }

    /// Marks the object when its deletion begins (a namespace becomes Terminating).
    fn on_delete(&self, _obj: &mut Value) {}

    /// Completes and checks what allocation rests on, before anything is allocated and before the rest is checked. What is
    /// wrong here is told alone.
    fn settle(&self, _new: &mut Value, _old: Option<&Value>, _errors: &mut Errors) {}

    /// Prepares an update through a subresource other than `status` (ephemeralcontainers, resize, finalize, approval);
    /// `new` already has nothing else changed.
    fn prepare_subresource(&self, _name: &str, _new: &mut Value, _old: &Value) {}

    /// Checks such an update. `name` is the subresource.
    fn validate_subresource(&self, _name: &str, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate_update(new, old, errors);
    }

    /// Seconds a graceful deletion takes, given what the request asked for. 0: at once.
    fn grace(&self, _obj: &Value, _asked: Option<i64>) -> i64 {
        0
    }

    /// Field selectors the kind supports besides `metadata.name` and `metadata.namespace`.
    fn fields(&self) -> &'static [&'static str] {
        &[]
    }

    /// Why a field selector on `field` is refused; `None` when it is supported. Kinds with selectable fields of their own
    /// and kinds without answer in different words, as upstream does.
    fn unsupported_field(&self, field: &str, resource: &Resource) -> Option<String> {
        let own = self.fields();
        let known = match field {
            "metadata.name" => true,
            "metadata.namespace" => own.is_empty() || resource.namespaced,
            _ => own.contains(&field),
        };
        if known {
            None
        } else if own.is_empty() {
            let q = crate::invalid::quote_str(field);
            Some(format!("{q} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""))
        } else {
            Some(format!("field label not supported: {field}"))
        }
    }

    /// The name under which a selectable field of this version is indexed, where versions name it differently.
    fn stored_field<'a>(&self, field: &'a str) -> &'a str {
        field
    }

    /// The columns of tables, of kinds that the table of built-in columns does not know.
    fn columns(&self) -> Option<&Columns> {
        None
    }

    /// What discovery documents say beyond the resource's description; `None` of built-in kinds.
    fn published(&self) -> Option<Published<'_>> {
        None
    }

    /// Where `scale` finds its numbers, if not where workloads have them.
    fn scale_paths(&self) -> Option<&ScalePaths> {
        None
    }

    /// The warning every request to a deprecated version gets.
    fn deprecation(&self) -> Option<&str> {
        None
    }

    /// The value of a field named in [`Strategy::fields`].
    fn field(&self, obj: &Value, name: &str) -> String {
        lookup(obj, name)
    }
}

/// A kind without rules of its own.
pub struct Plain(pub Traits);

impl Strategy for Plain {
    fn traits(&self) -> &Traits {
        &self.0
    }
}

/// `status` as a new object has it: empty.
pub fn reset_status(obj: &mut Value) {
    if let Value::Object(o) = obj
        && o.contains_key("status")
    {
        o.insert("status".into(), Value::Object(serde_json::Map::new()));
    }
}

/// Replaces `new.key` by `old.key`, including its absence.
pub fn carry(new: &mut Value, old: &Value, key: &str) {
    let Value::Object(n) = new else { return };
    match old.get(key) {
        Some(v) => drop(n.insert(key.to_owned(), v.clone())),
        None => drop(n.remove(key)),
    }
}

/// Replaces keys of `new.metadata` by those of `old.metadata`.
pub fn carry_meta(new: &mut Value, old: &Value, keys: &[&str]) {
    let n = meta::meta_mut(new);
    for key in keys {
        match old.get("metadata").and_then(|m| m.get(key)) {
            Some(v) => drop(n.insert((*key).to_owned(), v.clone())),
            None => drop(n.remove(*key)),
        }
    }
}

/// The scalar at a dotted path as text; empty when absent.
#[must_use]
pub fn lookup(obj: &Value, path: &str) -> String {
    let mut v = obj;
    for part in path.split('.') {
        match v.get(part) {
            Some(x) => v = x,
            None => return String::new(),
        }
    }
    match v {
        Value::String(s) => s.clone(),
        Value::Bool(_) | Value::Number(_) => v.to_string(),
        _ => String::new(),
    }
}
