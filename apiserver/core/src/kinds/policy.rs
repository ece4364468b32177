//! PodDisruptionBudget, PriorityClass, Lease.

use serde_json::Value;

use super::check::{at_most_hundred, given, immutable, int_or_percent, label_selector, not_negative, one_of};
use super::{Strategy, Traits, defaults};
use crate::invalid::Errors;
use crate::meta;
use crate::path::Path;

/// Rules of PodDisruptionBudgets.
pub(super) struct Budget;

impl Strategy for Budget {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { generation: true, status: true, unconditional_update: false, ..Traits::DEFAULT };
        &T
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (spec, path) = (&obj["spec"], Path::new("spec"));
        if given(spec, "minAvailable") && given(spec, "maxUnavailable") {
            errors.invalid(&path, spec.clone(), "minAvailable and maxUnavailable cannot be both set");
        }
        for key in ["minAvailable", "maxUnavailable"] {
            let at = path.child(key);
            int_or_percent(&spec[key], &at, errors);
            at_most_hundred(&spec[key], &at, errors);
        }
        label_selector(&spec["selector"], &path.child("selector"), errors);
        one_of(spec, "unhealthyPodEvictionPolicy", &["AlwaysAllow", "IfHealthyBudget"], &path, errors);
    }

    fn validate_status(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        const COUNTERS: &[&str] = &["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
        not_negative(&new["status"], COUNTERS, &Path::new("status"), errors);
    }
}

/// The largest priority of a class that is not the system's.
const PRIORITY_MAX: i64 = 1_000_000_000;
/// The system's classes with their values.
const SYSTEM: &[(&str, i64)] = &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

/// Rules of PriorityClasses.
pub(super) struct PriorityClass;

impl Strategy for PriorityClass {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { generation: true, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        defaults::priority_class(obj);
    }

    /// What can change says nothing new about the class.
    fn desired_changed(&self, _new: &Value, _old: &Value) -> bool {
        false
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let root = Path::new("");
        let (name, value) = (meta::name(obj), obj["value"].as_i64().unwrap_or(0));
        if name.starts_with("system-") {
            let why = match SYSTEM.iter().find(|(n, _)| *n == name) {
                None => Some(format!("{name} is not a known system priority class")),
                Some((_, v)) if *v != value => Some(format!("value of {name} PriorityClass must be {v}")),
                Some(_) if obj["globalDefault"] == true => {
                    Some(format!("globalDefault of {name} PriorityClass must be false"))
                }
                Some(_) => None,
            };
            if let Some(why) = why {
                let m = root.child("metadata");
                let why = format!(
                    "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
                );
                errors.forbidden(&m.child("name"), why);
            }
        } else if value > PRIORITY_MAX {
            let why = format!("maximum allowed value of a user defined priority is {PRIORITY_MAX}");
            errors.forbidden(&root.child("value"), why);
        }
        one_of(obj, "preemptionPolicy", &["PreemptLowerPriority", "Never"], &root, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let root = Path::new("");
        if new["value"] != old["value"] {
            errors.forbidden(&root.child("value"), "may not be changed in an update.");
        }
        immutable(new, old, "preemptionPolicy", &root, errors);
    }
}

/// Rules of Leases.
pub(super) struct Lease;

impl Lease {
    /// Fields behind a gate that is off.
    fn drop_disabled(obj: &mut Value) {
        if let Some(spec) = obj.get_mut("spec").and_then(Value::as_object_mut) {
            spec.remove("strategy");
            spec.remove("preferredHolder");
        }
    }
}

impl Strategy for Lease {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { create_on_update: true, unconditional_update: false, ..Traits::DEFAULT };
        &T
    }

    fn prepare_create(&self, obj: &mut Value) {
        Self::drop_disabled(obj);
    }

    fn prepare_update(&self, new: &mut Value, _old: &Value) {
        Self::drop_disabled(new);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (spec, path) = (&obj["spec"], Path::new("spec"));
        if let Some(n) = spec["leaseDurationSeconds"].as_i64().filter(|n| *n <= 0) {
            errors.invalid(&path.child("leaseDurationSeconds"), n, "must be greater than 0");
        }
        not_negative(spec, &["leaseTransitions"], &path, errors);
    }
}
