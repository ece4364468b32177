//! Deployment.

use serde_json::Value;

use super::{T, collisions_grow, default_spec_template, replicated, status_counts, template_warnings};
use crate::invalid::{Errors, quote_str};
use crate::kinds::check::{at_most_hundred, immutable, int_or_percent, not_negative, text};
use crate::kinds::defaults::{object, rolling_update, set};
use crate::kinds::{Strategy, Traits, carry, carry_meta};
use crate::path::Path;

/// Rules of Deployments.
pub(in crate::kinds) struct Deployment;

impl Strategy for Deployment {
    fn traits(&self) -> &Traits {
        &T
    }

    fn default(&self, obj: &mut Value) {
        let Some(spec) = object(obj, "spec") else { return };
        set(spec, "replicas", 1);
        rolling_update(spec, "strategy", &[("maxUnavailable", "25%".into()), ("maxSurge", "25%".into())]);
        set(spec, "revisionHistoryLimit", 10);
        set(spec, "progressDeadlineSeconds", 600);
        default_spec_template(spec);
    }

    fn desired_changed(&self, new: &Value, old: &Value) -> bool {
        new.get("spec") != old.get("spec") || new["metadata"].get("annotations") != old["metadata"].get("annotations")
    }

    fn prepare_status(&self, new: &mut Value, old: &Value) {
        carry(new, old, "spec");
        carry_meta(new, old, &["labels", "ownerReferences", "generation"]);
    }

    fn reset_fields(&self, of_status: bool) -> &'static [&'static [&'static str]] {
        if of_status { &[&["spec"], &["metadata", "labels"]] } else { &[&["status"]] }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        template_warnings(new, old, out);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = &obj["spec"];
        not_negative(spec, &["replicas"], &path, errors);
        replicated(obj, errors);
        validate_strategy(&spec["strategy"], &path.child("strategy"), errors);
        not_negative(spec, &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"], &path, errors);
        if let Some(d) = spec["progressDeadlineSeconds"].as_i64()
            && d <= spec["minReadySeconds"].as_i64().unwrap_or(0)
        {
            errors.invalid(&path.child("progressDeadlineSeconds"), d, "must be greater than minReadySeconds");
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
        immutable(&new["spec"], &old["spec"], "selector", &Path::new("spec"), errors);
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut Errors) {
        const COUNTERS: &[&str] = &[
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "collisionCount",
        ];
        const PARTS: &[&str] = &["updatedReplicas", "readyReplicas", "availableReplicas"];
        status_counts(&new["status"], COUNTERS, PARTS, "cannot be greater than readyReplicas", errors);
        collisions_grow(new, old, errors);
    }
}

fn validate_strategy(s: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("rollingUpdate");
    let rolling = &s["rollingUpdate"];
    match text(s, "type") {
        "Recreate" => {
            if !rolling.is_null() {
                errors.forbidden(&at, "may not be specified when strategy `type` is 'Recreate'");
            }
        }
        "RollingUpdate" if rolling.is_null() => errors.required(&at, "this should be defaulted and never be nil"),
        "RollingUpdate" => {
            let (unavailable, surge) = (&rolling["maxUnavailable"], &rolling["maxSurge"]);
            let here = at.child("maxUnavailable");
            let a = int_or_percent(unavailable, &here, errors);
            let b = int_or_percent(surge, &at.child("maxSurge"), errors);
            if a == Some(0) && b == Some(0) {
                errors.invalid(&here, unavailable.clone(), "may not be 0 when `maxSurge` is 0");
            }
            at_most_hundred(unavailable, &here, errors);
        }
        t => {
            // The value is shown as upstream's own type prints, in its order.
            let shown = match rolling {
                Value::Null => "null".to_owned(),
                r => format!("{{\"MaxUnavailable\":{},\"MaxSurge\":{}}}", r["maxUnavailable"], r["maxSurge"]),
            };
            let shown = format!("{{\"Type\":{},\"RollingUpdate\":{shown}}}", quote_str(t));
            errors.not_supported_raw(path, &shown, &["Recreate", "RollingUpdate"]);
        }
    }
}
