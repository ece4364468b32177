//! Pod.

mod defaults;
mod image;
mod qos;
pub mod security_levels;
pub mod totals;
mod update;
mod validate;
mod warnings;

use serde_json::{Value, json};

use super::{Strategy, Traits, carry, carry_meta};
use crate::invalid::Errors;
use crate::meta;
use crate::path::Path;
use crate::status::Status;

pub(super) use defaults::{default_source as default_volume_source, default_template};
pub(super) use validate::{
    validate_container_resource, validate_node_selector, validate_overhead, validate_resource,
    validate_source as validate_volume_source, validate_template, validate_tolerations,
};
pub(super) use warnings::{
    of_node_selector as node_selector_warnings, of_template as template_warnings, retired_volume,
};

/// Rules of Pods.
pub(super) struct PodStrategy;

impl Strategy for PodStrategy {
    fn traits(&self) -> &Traits {
        const T: Traits =
            Traits { generation: true, status: true, returns_deleted: true, graceful: true, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        defaults::default_pod(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        defaults::pod_level_requests(&mut obj["spec"]);
        let mut status = json!({"phase": "Pending", "qosClass": qos::class(&obj["spec"])});
        if obj["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty()) {
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "lastProbeTime": null, "lastTransitionTime": crate::time::format(jiff::Timestamp::now()),
                "reason": "SchedulingGated", "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        obj["status"] = status;
        drop_disabled(&mut obj["spec"]);
        validate::select_by_keys(obj);
        app_armor_fields(obj);
        meta::meta_mut(obj).insert("generation".into(), 1.into());
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        validate::validate_pod(obj, errors);
        if obj["spec"]["ephemeralContainers"].as_array().is_some_and(|l| !l.is_empty()) {
            let spec = Path::new("spec");
            errors.forbidden(&spec.child("ephemeralContainers"), "cannot be set on create");
        }
        let gated = obj["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty());
        if gated && obj["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty()) {
            let spec = Path::new("spec");
            errors.forbidden(&spec.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
        }
        validate::validate_annotated(obj, &Path::new("spec"), errors);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        carry(new, old, "status");
        let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let changed = new.get("spec") != old.get("spec");
        meta::meta_mut(new).insert("generation".into(), (before + i64::from(changed)).into());
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        update::validate(new, old, errors);
    }

    fn prepare_status(&self, new: &mut Value, old: &Value) {
        carry(new, old, "spec");
        carry_meta(new, old, &["ownerReferences", "deletionTimestamp", "generation"]);
        // The class is decided once: leaving it out keeps it, changing it is refused.
        if let Some(q) = old["status"].get("qosClass")
            && new["status"]["qosClass"].as_str().is_none_or(str::is_empty)
        {
            new["status"]["qosClass"] = q.clone();
        }
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut Errors) {
        validate::validate_status(new, old, errors);
    }

    fn validate_subresource(&self, name: &str, new: &Value, old: &Value, errors: &mut Errors) {
        match name {
            "ephemeralcontainers" => update::validate_ephemeral(new, old, errors),
            "resize" => update::validate_resize(new, old, errors),
            _ => update::validate(new, old, errors),
        }
    }

    fn early_warnings(&self, new: &Value, out: &mut Vec<String>) {
        warnings::of_app_armor(new, &Path::new(""), out);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        warnings::of_pod(new, old, out);
    }

    fn prepare_subresource(&self, _name: &str, new: &mut Value, old: &Value) {
        let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let changed = new.get("spec") != old.get("spec");
        meta::meta_mut(new).insert("generation".into(), (before + i64::from(changed)).into());
    }

    fn grace(&self, obj: &Value, asked: Option<i64>) -> i64 {
        let mut seconds = asked.or_else(|| obj["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30);
        if seconds < 0 {
            seconds = 1;
        }
        // Nobody runs it, or it has run: nothing to wait for.
        let unbound = obj["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
        let finished = matches!(obj["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if unbound || finished { 0 } else { seconds }
    }

    fn fields(&self) -> &'static [&'static str] {
        &[
            "spec.nodeName",
            "spec.host",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ]
    }

    fn field(&self, obj: &Value, name: &str) -> String {
        match name {
            "spec.host" => super::lookup(obj, "spec.nodeName"),
            "spec.hostNetwork" => (obj["spec"]["hostNetwork"] == true).to_string(),
            "status.podIPs" => {
                let list = obj["status"]["podIPs"].as_array().into_iter().flatten();
                list.filter_map(|p| p["ip"].as_str()).collect::<Vec<_>>().join(",")
            }
            _ => super::lookup(obj, name),
        }
    }
}

/// Drops fields behind feature gates that are off.
fn drop_disabled(spec: &mut Value) {
    for list in ["containers", "initContainers"] {
        for c in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(c) = c.as_object_mut() else { continue };
            let Some(l) = c.get_mut("lifecycle").and_then(Value::as_object_mut) else { continue };
            if l.remove("stopSignal").is_some() && l.is_empty() {
                c.remove("lifecycle");
            }
        }
    }
}

/// AppArmor profiles given by annotation also appear as fields.
fn app_armor_fields(obj: &mut Value) {
    let profiles = validate::annotated_profiles(obj);
    for list in ["containers", "initContainers"] {
        for c in obj["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let found = profiles.iter().find(|(name, _)| c["name"] == name.as_str());
            if let Some((_, profile)) = found
                && c["securityContext"]["appArmorProfile"].is_null()
            {
                c["securityContext"]["appArmorProfile"] = profile.clone();
            }
        }
    }
}

/// Checks the options of a log request; `get` answers a query parameter.
///
/// # Errors
/// 422 in upstream's words.
pub fn validate_log_options(pod: &str, get: &dyn Fn(&str) -> Option<String>) -> Result<(), Status> {
    let mut errors = Errors::new();
    let number = |k: &str| get(k).and_then(|v| v.parse::<i64>().ok());
    if let Some(n) = number("tailLines").filter(|n| *n < 0) {
        errors.invalid(&Path::new("tailLines"), n, "must be greater than or equal to 0");
    }
    if let Some(n) = number("limitBytes").filter(|n| *n < 1) {
        errors.invalid(&Path::new("limitBytes"), n, "must be greater than 0");
    }
    let (since, at) = (number("sinceSeconds"), get("sinceTime").filter(|t| !t.is_empty()));
    if since.is_some() && at.is_some() {
        errors.forbidden(&Path::new("[]"), "at most one of `sinceTime` or `sinceSeconds` may be specified");
    } else if let Some(n) = since.filter(|n| *n < 1) {
        errors.invalid(&Path::new("sinceSeconds"), n, "must be greater than 0");
    }
    // One of the two streams alone is a feature that is off by default upstream (KEP-3288).
    if get("stream").is_some_and(|s| !s.is_empty()) {
        errors.forbidden(&Path::new("stream"), "may not be specified");
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("", "PodLogOptions", pod, &errors)) }
}
