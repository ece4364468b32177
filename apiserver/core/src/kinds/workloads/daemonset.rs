//! DaemonSet.

use serde_json::{Value, json};

use super::{T, collisions_grow, default_spec_template, labels_match, runs_for_ever, status_counts, template_warnings};
use crate::invalid::Errors;
use crate::kinds::check::{
    at_most_hundred, immutable, int_or_percent, label_selector, not_negative, selects_all, text, usable_selector,
};
use crate::kinds::defaults::{object, rolling_update, set};
use crate::kinds::pod::validate_template;
use crate::kinds::{Strategy, Traits, carry, carry_meta, reset_status};
use crate::meta;
use crate::path::Path;

/// Rules of DaemonSets.
pub(in crate::kinds) struct DaemonSet;

/// The counter of template changes lives on in an annotation.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn template_generation(obj: &mut Value, n: i64) {
    let a = meta::meta_mut(obj).entry("annotations").or_insert_with(|| json!({}));
    a[TEMPLATE_GENERATION] = n.to_string().into();
}

impl Strategy for DaemonSet {
    fn traits(&self) -> &Traits {
        &T
    }

    fn prepare_create(&self, obj: &mut Value) {
        reset_status(obj);
        meta::meta_mut(obj).insert("generation".into(), 1.into());
        template_generation(obj, 1);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        carry(new, old, "status");
        let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let changed = self.desired_changed(new, old);
        meta::meta_mut(new).insert("generation".into(), (before + i64::from(changed)).into());
        let count = old["metadata"]["annotations"][TEMPLATE_GENERATION].as_str().and_then(|n| n.parse::<i64>().ok());
        let templates = new["spec"].get("template") != old["spec"].get("template");
        template_generation(new, count.unwrap_or(1) + i64::from(templates));
    }

    fn prepare_status(&self, new: &mut Value, old: &Value) {
        let count = old["metadata"]["annotations"][TEMPLATE_GENERATION].as_str().and_then(|n| n.parse::<i64>().ok());
        carry(new, old, "spec");
        carry_meta(new, old, &["ownerReferences", "generation"]);
        template_generation(new, count.unwrap_or(1));
    }

    fn default(&self, obj: &mut Value) {
        // What is counted is no client's: one that does not repeat it has zero in mind, and is told the count.
        if obj["metadata"]["annotations"].get(TEMPLATE_GENERATION).is_none() {
            template_generation(obj, 0);
        }
        let Some(spec) = object(obj, "spec") else { return };
        rolling_update(spec, "updateStrategy", &[("maxUnavailable", 1.into()), ("maxSurge", 0.into())]);
        set(spec, "revisionHistoryLimit", 10);
        default_spec_template(spec);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        // Upstream asks the count of templates here, not the generation.
        if old.is_none_or(|o| o["spec"]["template"] != new["spec"]["template"]) {
            template_warnings(new, None, out);
        }
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = &obj["spec"];
        let (s, at) = (&spec["selector"], path.child("template"));
        label_selector(s, &path.child("selector"), errors);
        if let Some(usable) = usable_selector(s) {
            labels_match(&usable, &spec["template"], &at, errors);
        }
        if !s.is_null() && selects_all(s) {
            errors.invalid(&path.child("selector"), s.clone(), "empty selector is invalid for daemonset");
        }
        validate_template(&spec["template"], &at, errors);
        runs_for_ever(&spec["template"], "DaemonSet", &at, errors);
        not_negative(spec, &["minReadySeconds"], &path, errors);
        validate_strategy(&spec["updateStrategy"], &path.child("updateStrategy"), errors);
        not_negative(spec, &["revisionHistoryLimit"], &path, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(&new["spec"], &old["spec"], "selector", &Path::new("spec"), errors);
        self.validate(new, errors);
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut Errors) {
        const COUNTERS: &[&str] = &[
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ];
        status_counts(&new["status"], COUNTERS, &[], "", errors);
        collisions_grow(new, old, errors);
    }
}

fn validate_strategy(s: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("rollingUpdate");
    let rolling = &s["rollingUpdate"];
    match text(s, "type") {
        "OnDelete" => {}
        "RollingUpdate" if rolling.is_null() => errors.required(&at, ""),
        "RollingUpdate" => {
            let (u, m) = (&rolling["maxUnavailable"], &rolling["maxSurge"]);
            let (u_at, m_at) = (at.child("maxUnavailable"), at.child("maxSurge"));
            let a = int_or_percent(u, &u_at, errors).unwrap_or(0);
            let b = int_or_percent(m, &m_at, errors).unwrap_or(0);
            at_most_hundred(u, &u_at, errors);
            at_most_hundred(m, &m_at, errors);
            if a != 0 && b != 0 {
                errors.invalid(&m_at, m.clone(), "may not be set when maxUnavailable is non-zero");
            } else if a == 0 && b == 0 {
                errors.required(&u_at, "cannot be 0 when maxSurge is 0");
            }
        }
        t => errors.not_supported(path, t, &["RollingUpdate", "OnDelete"]),
    }
}
