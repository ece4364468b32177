//! The rules of CustomResourceDefinition itself.

use serde_json::{Value, json};

use super::{CLEANUP, rules, structural};
use crate::invalid::Errors;
use crate::kinds::{Strategy, Traits};
use crate::meta;

/// The rules of a definition.
#[derive(Debug)]
pub struct DefinitionStrategy;

impl Strategy for DefinitionStrategy {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { generation: true, status: true, unconditional_update: false, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        let Some(spec) = obj.get_mut("spec").and_then(Value::as_object_mut) else { return };
        if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
            let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
            let empty = |v: Option<&Value>| v.and_then(Value::as_str).unwrap_or_default().is_empty();
            if !kind.is_empty() {
                if empty(names.get("singular")) {
                    names.insert("singular".into(), kind.to_lowercase().into());
                }
                if empty(names.get("listKind")) {
                    names.insert("listKind".into(), format!("{kind}List").into());
                }
            }
        }
        let conversion = spec.entry("conversion").or_insert(Value::Null);
        if conversion.is_null() {
            *conversion = json!({"strategy": "None"});
        }
        if let Some(webhook) = conversion.get_mut("webhook")
            && let Some(service) = webhook.get_mut("clientConfig").and_then(|c| c.get_mut("service"))
            && let Some(service) = service.as_object_mut()
        {
            service.entry("port").or_insert(json!(443));
        }
    }

    /// Cleaning up begins soon, and is told as it goes on.
    fn on_delete(&self, obj: &mut Value) {
        let condition = json!({"type": "Terminating", "status": "True", "reason": "InstanceDeletionPending",
            "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
            "lastTransitionTime": crate::time::format(jiff::Timestamp::now())});
        let conditions = &mut obj["status"]["conditions"];
        match conditions.as_array_mut() {
            Some(all) => match all.iter_mut().find(|c| c["type"] == "Terminating") {
                Some(known) => *known = condition,
                None => all.push(condition),
            },
            None => *conditions = json!([condition]),
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        meta::meta_mut(obj).insert("generation".into(), 1.into());
        obj["status"] = json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []});
        remember_storage(obj);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        crate::kinds::carry(new, old, "status");
        let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let changed = self.desired_changed(new, old);
        meta::meta_mut(new).insert("generation".into(), (before + i64::from(changed)).into());
        remember_storage(new);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let names = &obj["spec"]["names"];
        let wanted = format!("{}.{}", text(names, "plural"), text(&obj["spec"], "group"));
        if meta::name(obj) != wanted {
            errors.invalid(&"metadata.name", meta::name(obj), "must be spec.names.plural+\".\"+spec.group");
        }
        rules::spec(&obj["spec"], errors);
        rules::stored_versions(obj, errors);
        rules::approval(obj, None, errors);
        rules::preserve(obj, None, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        rules::spec(&new["spec"], errors);
        rules::immutable(new, old, errors);
        rules::stored_versions(new, errors);
        rules::approval(new, Some(old), errors);
        rules::preserve(new, Some(old), errors);
    }

    fn validate_status(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        rules::stored_versions(new, errors);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        let of = |crd: &Value| -> Vec<String> {
            let versions = crd["spec"]["versions"].as_array().into_iter().flatten();
            let schemas = versions.filter_map(|v| v.get("schema").and_then(|s| s.get("openAPIV3Schema")));
            schemas.flat_map(structural::unknown_formats).collect()
        };
        let before = old.map(of).unwrap_or_default();
        out.extend(of(new).into_iter().filter(|w| !before.contains(w)));
    }

    fn deletion_finalizer(&self) -> Option<&'static str> {
        Some(CLEANUP)
    }
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Adds the storage version to `status.storedVersions`: from now on objects may be stored in it.
fn remember_storage(obj: &mut Value) {
    let mut versions = obj["spec"]["versions"].as_array().into_iter().flatten();
    // Of several the first: that there are several is refused.
    let storage = versions.find(|v| v["storage"] == true).map(|v| Value::from(text(v, "name")));
    let Some(status) = obj.get_mut("status").and_then(Value::as_object_mut) else { return };
    let stored = status.entry("storedVersions").or_insert(Value::Null);
    if !stored.is_array() {
        *stored = json!([]);
    }
    if let Value::Array(list) = stored {
        list.extend(storage.filter(|name| !list.contains(name)));
    }
}
