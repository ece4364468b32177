//! StatefulSet.

use serde_json::{Value, json};

use super::{T, collisions_grow, default_spec_template, labels_match, runs_for_ever, selector, status_counts};
use super::{count, template_warnings};
use crate::invalid::Errors;
use crate::kinds::check::{at_most_hundred, complain, immutable, int_or_percent, list, not_negative, one_of, text};
use crate::kinds::defaults::{self, object, rolling_update, set, set_text};
use crate::kinds::pod::validate_template;
use crate::kinds::{Strategy, Traits};
use crate::meta::{self, NameRule};
use crate::names;
use crate::path::Path;

/// Rules of StatefulSets.
pub(in crate::kinds) struct StatefulSet;

impl Strategy for StatefulSet {
    fn traits(&self) -> &Traits {
        // Pods are called after it, and a pod's name is its host name.
        const S: Traits = Traits { name: NameRule::Label, ..T };
        &S
    }

    fn default(&self, obj: &mut Value) {
        let Some(spec) = object(obj, "spec") else { return };
        set(spec, "replicas", 1);
        set_text(spec, "podManagementPolicy", "OrderedReady");
        set(spec, "revisionHistoryLimit", 10);
        rolling_update(spec, "updateStrategy", &[("partition", 0.into()), ("maxUnavailable", 1.into())]);
        let p = spec.entry("persistentVolumeClaimRetentionPolicy").or_insert_with(|| json!({}));
        if let Some(p) = p.as_object_mut() {
            set_text(p, "whenDeleted", "Retain");
            set_text(p, "whenScaled", "Retain");
        }
        default_spec_template(spec);
        for c in spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten() {
            defaults::claim(c);
        }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        template_warnings(new, old, out);
        let path = Path::new("spec");
        let all = path.child("volumeClaimTemplates");
        for (i, c) in list(&new["spec"], "volumeClaimTemplates").iter().enumerate() {
            // Upstream names the same place differently in both cases.
            let at = all.index(i);
            let at = if old.is_none() { at } else { at.child("Spec") };
            crate::kinds::storage::claim_spec_warnings(&c["spec"], &at, out);
        }
        if count(&new["spec"], "revisionHistoryLimit") < 0 {
            let at = path.child("revisionHistoryLimit");
            out.push(format!("{at}: a negative value retains all historical revisions; a value >= 0 is recommended"));
        }
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = &obj["spec"];
        match text(spec, "podManagementPolicy") {
            "OrderedReady" | "Parallel" => {}
            p => errors.invalid(&path.child("podManagementPolicy"), p, "must be 'OrderedReady' or 'Parallel'"),
        }
        validate_strategy(&spec["updateStrategy"], &path.child("updateStrategy"), errors);
        let at = path.child("persistentVolumeClaimRetentionPolicy");
        for key in ["whenDeleted", "whenScaled"] {
            one_of(&spec["persistentVolumeClaimRetentionPolicy"], key, &["Retain", "Delete"], &at, errors);
        }
        not_negative(spec, &["replicas", "minReadySeconds"], &path, errors);
        not_negative(&spec["ordinals"], &["start"], &path.child("ordinals"), errors);
        let service = text(spec, "serviceName");
        if !service.is_empty() {
            complain(&path.child("serviceName"), service, names::is_dns1123_label(service), errors);
        }
        let at = path.child("template");
        if let Some(s) = selector(obj, "empty selector is invalid for statefulset", "", errors) {
            labels_match(&s, &spec["template"], &at, errors);
            validate_template(&with_claims(spec), &at, errors);
        }
        runs_for_ever(&spec["template"], "StatefulSet", &at, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let mut found = Errors::new();
        self.validate(new, &mut found);
        // Who changes the name of the service is told only that it stays.
        found.0.retain(|e| e.path != "spec.serviceName");
        errors.0.append(&mut found.0);
        let path = Path::new("spec");
        for key in ["selector", "volumeClaimTemplates", "serviceName", "podManagementPolicy"] {
            immutable(&new["spec"], &old["spec"], key, &path, errors);
        }
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut Errors) {
        const COUNTERS: &[&str] = &[
            "replicas",
            "readyReplicas",
            "currentReplicas",
            "updatedReplicas",
            "availableReplicas",
            "observedGeneration",
            "collisionCount",
        ];
        const PARTS: &[&str] = &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
        status_counts(&new["status"], COUNTERS, PARTS, "cannot be greater than status.readyReplicas", errors);
        collisions_grow(new, old, errors);
    }
}

/// The template as its pods will be: with a volume for each claim that is made for them.
fn with_claims(spec: &Value) -> Value {
    let mut template = spec["template"].clone();
    let claims: Vec<&str> = list(spec, "volumeClaimTemplates").iter().map(meta::name).collect();
    if !claims.is_empty() && template["spec"].is_object() {
        let own = list(&template["spec"], "volumes").iter().filter(|v| !claims.contains(&text(v, "name")));
        let mut volumes: Vec<Value> = own.cloned().collect();
        volumes.extend(claims.iter().map(|c| json!({"name": c, "persistentVolumeClaim": {"claimName": c}})));
        template["spec"]["volumes"] = Value::Array(volumes);
    }
    template
}

fn validate_strategy(s: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("rollingUpdate");
    let rolling = &s["rollingUpdate"];
    match text(s, "type") {
        "OnDelete" => {
            if !rolling.is_null() {
                errors.invalid(&at, rolling.clone(), "only allowed for updateStrategy 'RollingUpdate'");
            }
        }
        "RollingUpdate" => {
            not_negative(rolling, &["partition"], &at, errors);
            let (here, v) = (at.child("maxUnavailable"), &rolling["maxUnavailable"]);
            if int_or_percent(v, &here, errors) == Some(0) {
                errors.invalid(&here, v.clone(), "cannot be 0");
            }
            at_most_hundred(v, &here, errors);
        }
        _ => errors.invalid(path, s.clone(), "must be 'RollingUpdate' or 'OnDelete'"),
    }
}
