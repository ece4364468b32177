//! ReplicaSet and ReplicationController.

use serde_json::{Map, Value};

use super::{T, default_spec_template, labels_match, replicated, runs_for_ever, status_counts, template_warnings};
use crate::invalid::Errors;
use crate::kinds::check::{immutable, not_negative};
use crate::kinds::defaults::{object, set};
use crate::kinds::pod::validate_template;
use crate::kinds::{Strategy, Traits};
use crate::meta;
use crate::path::Path;
use crate::selector::LabelSelector;

fn validate_status(new: &Value, errors: &mut Errors) {
    const COUNTERS: &[&str] = &[
        "replicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "terminatingReplicas",
        "observedGeneration",
    ];
    const PARTS: &[&str] = &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
    status_counts(&new["status"], COUNTERS, PARTS, "cannot be greater than readyReplicas", errors);
}

/// Rules of ReplicaSets.
pub(in crate::kinds) struct ReplicaSet;

impl Strategy for ReplicaSet {
    fn traits(&self) -> &Traits {
        &T
    }

    fn default(&self, obj: &mut Value) {
        let Some(spec) = object(obj, "spec") else { return };
        set(spec, "replicas", 1);
        default_spec_template(spec);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        template_warnings(new, old, out);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        not_negative(&obj["spec"], &["replicas", "minReadySeconds"], &Path::new("spec"), errors);
        replicated(obj, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
        immutable(&new["spec"], &old["spec"], "selector", &Path::new("spec"), errors);
    }

    fn validate_status(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        validate_status(new, errors);
    }
}

/// Rules of ReplicationControllers.
pub(in crate::kinds) struct ReplicationController;

impl Strategy for ReplicationController {
    fn traits(&self) -> &Traits {
        const R: Traits = Traits { orphan_by_default: true, ..T };
        &R
    }

    fn default(&self, obj: &mut Value) {
        let labels = obj["spec"]["template"]["metadata"]["labels"].clone();
        if let Some(spec) = object(obj, "spec") {
            set(spec, "replicas", 1);
            default_spec_template(spec);
            if labels.is_object() && spec.get("selector").is_none_or(|s| s.as_object().is_none_or(Map::is_empty)) {
                spec.insert("selector".into(), labels.clone());
            }
        }
        let m = meta::meta_mut(obj);
        if labels.is_object() && m.get("labels").is_none_or(|l| l.as_object().is_none_or(Map::is_empty)) {
            m.insert("labels".into(), labels);
        }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        template_warnings(new, old, out);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = &obj["spec"];
        errors.generated(|e| not_negative(spec, &["replicas", "minReadySeconds"], &path, e));
        let empty = spec["selector"].as_object().is_none_or(Map::is_empty);
        if empty {
            errors.required(&path.child("selector"), "");
        }
        let at = path.child("template");
        let template = &spec["template"];
        if template.is_null() {
            errors.required(&at, "");
            return;
        }
        if !empty {
            labels_match(&LabelSelector::from_map(Some(&spec["selector"])), template, &at, errors);
        }
        validate_template(template, &at, errors);
        runs_for_ever(template, "ReplicationController", &at, errors);
    }

    fn validate_status(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        validate_status(new, errors);
    }

    fn fields(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn field(&self, obj: &Value, _name: &str) -> String {
        obj["status"]["replicas"].as_i64().unwrap_or(0).to_string()
    }
}
