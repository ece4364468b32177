//! Namespace.

use serde_json::{Value, json};

use super::{Strategy, Traits, carry};
use crate::invalid::Errors;
use crate::meta::{self, NameRule};
use crate::names;
use crate::path::Path;

fn spec_finalizers(obj: &Value) -> impl Iterator<Item = &str> {
    obj["spec"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn finalizer(name: &str, at: &Path<'_>, errors: &mut Errors) {
    for why in names::is_qualified_name(name) {
        errors.invalid(at, name, why);
    }
    meta::standard_finalizer(name, at, errors);
}

/// Rules of Namespaces.
pub(super) struct NamespaceStrategy;

const LABEL: &str = "kubernetes.io/metadata.name";

impl Strategy for NamespaceStrategy {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { name: NameRule::Label, status: true, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        // Older clients and controllers select namespaces by this label, so every namespace has it.
        let name = meta::name(obj).to_owned();
        if name.is_empty() {
            return;
        }
        let labels = meta::meta_mut(obj).entry("labels").or_insert_with(|| json!({}));
        if let Some(l) = labels.as_object_mut() {
            l.insert(LABEL.into(), name.into());
        }
        if obj["status"]["phase"].as_str().unwrap_or_default().is_empty()
            && let Some(members) = obj.as_object_mut()
        {
            let status = members.entry("status").or_insert(Value::Null);
            if status.is_null() {
                *status = json!({});
            }
            if let Some(status) = status.as_object_mut() {
                status.insert("phase".into(), "Active".into());
            }
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        obj["status"] = json!({"phase": "Active"});
        // The namespace controller empties a namespace before it goes.
        if !obj["spec"].is_object() {
            obj["spec"] = json!({});
        }
        let list = obj["spec"]["finalizers"].as_array().cloned().unwrap_or_default();
        if !list.iter().any(|f| f == "kubernetes") {
            let mut list = list;
            list.push("kubernetes".into());
            obj["spec"]["finalizers"] = Value::Array(list);
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        carry(new, old, "status");
        // Finalizers go through the finalize subresource alone.
        match old["spec"].get("finalizers") {
            Some(f) => new["spec"] = json!({"finalizers": f}),
            None => carry(new, old, "spec"),
        }
    }

    fn prepare_status(&self, new: &mut Value, old: &Value) {
        carry(new, old, "spec");
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        // Upstream names the item on updates only.
        let spec = Path::new("spec");
        let list = spec.child("finalizers");
        for f in spec_finalizers(obj) {
            finalizer(f, &list, errors);
        }
    }

    fn validate_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        let spec = Path::new("spec");
        let list = spec.child("finalizers");
        for (i, f) in spec_finalizers(new).enumerate() {
            finalizer(f, &list.index(i), errors);
        }
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let status = Path::new("status");
        let phase = new["status"]["phase"].as_str().unwrap_or_default();
        let deleting = meta::deleting(old);
        if !deleting && phase != "Active" {
            errors.invalid(&status.child("Phase"), phase, "may only be 'Active' if `deletionTimestamp` is empty");
        }
        if deleting && phase != "Terminating" {
            errors.invalid(
                &status.child("Phase"),
                phase,
                "may only be 'Terminating' if `deletionTimestamp` is not empty",
            );
        }
    }

    fn on_delete(&self, obj: &mut Value) {
        obj["status"]["phase"] = "Terminating".into();
    }

    fn fields(&self) -> &'static [&'static str] {
        &["status.phase"]
    }
}
