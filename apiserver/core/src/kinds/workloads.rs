//! Deployment, ReplicaSet, ReplicationController, StatefulSet, DaemonSet, Job.

use serde_json::{Map, Value, json};

use super::defaults::{object, set, set_text};
use super::pod::{default_template, validate_template};
use super::{Strategy, Traits};
use crate::invalid::Errors;
use crate::path::Path;
use crate::selector::LabelSelector;

const T: Traits = Traits { generation: true, status: true, ..Traits::DEFAULT };

fn template(spec: &mut Map<String, Value>) {
    if let Some(t) = spec.get_mut("template") {
        default_template(t);
    }
}

/// Selector present, legal, and matching the template's labels.
fn validate_selector(obj: &Value, empty_text: &str, errors: &mut Errors) {
    let spec = Path::new("spec");
    let at = spec.child("selector");
    let s = &obj["spec"]["selector"];
    if s.is_null() {
        errors.required(&at, "");
    } else {
        super::pod::validate_label_selector(s, &at, errors);
        let parsed = LabelSelector::from_object(Some(s));
        if parsed.is_everything() {
            errors.invalid_raw(&at, s.to_string(), empty_text);
        }
        let labels = &obj["spec"]["template"]["metadata"]["labels"];
        if !parsed.is_everything() && !parsed.nothing && !parsed.matches(labels) {
            let t = spec.child("template");
            let m = t.child("metadata");
            let shown = if labels.is_null() { "null".to_owned() } else { labels.to_string() };
            errors.invalid_raw(&m.child("labels"), shown, "`selector` does not match template `labels`");
        }
    }
}

fn immutable_selector(new: &Value, old: &Value, errors: &mut Errors) {
    let spec = Path::new("spec");
    if new["spec"]["selector"] != old["spec"]["selector"] {
        errors.invalid_raw(&spec.child("selector"), new["spec"]["selector"].to_string(), "field is immutable");
    }
}

fn not_negative(obj: &Value, keys: &[&str], errors: &mut Errors) {
    let spec = Path::new("spec");
    for k in keys {
        if let Some(n) = obj["spec"][*k].as_i64().filter(|n| *n < 0) {
            errors.invalid(&spec.child(k), n, "must be greater than or equal to 0");
        }
    }
}

fn template_warnings(new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
    let spec = Path::new("spec");
    let before = old.map(|o| &o["spec"]["template"]);
    super::pod::template_warnings(&new["spec"]["template"], before, &spec.child("template"), out);
}

fn replicas_only(template: &Value, errors: &mut Errors, path: &Path<'_>) {
    let spec = path.child("spec");
    let policy = template["spec"]["restartPolicy"].as_str().unwrap_or_default();
    if policy != "Always" {
        errors.not_supported(&spec.child("restartPolicy"), policy, &["Always"]);
    }
    if let Some(n) = template["spec"]["activeDeadlineSeconds"].as_i64() {
        let _ = n;
        errors.forbidden(&spec.child("activeDeadlineSeconds"), "activeDeadlineSeconds in ReplicaSet is not Supported");
    }
}

/// Checks an int-or-percent value; answers its number.
fn int_or_percent(v: &Value, path: &Path<'_>, errors: &mut Errors) -> Option<i64> {
    match v {
        Value::Number(n) => {
            let n = n.as_i64().unwrap_or(0);
            if n < 0 {
                errors.invalid(path, n, "must be greater than or equal to 0");
            }
            Some(n)
        }
        Value::String(s) => {
            let n = s.strip_suffix('%').and_then(|n| n.parse::<i64>().ok()).filter(|n| *n >= 0);
            if n.is_none() {
                errors.invalid(path, s.as_str(), "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')");
            }
            n
        }
        _ => None,
    }
}

/// Rules of Deployments.
pub(super) struct Deployment;

impl Strategy for Deployment {
    fn traits(&self) -> &Traits {
        &T
    }

    fn default(&self, obj: &mut Value) {
        let Some(spec) = object(obj, "spec") else { return };
        set(spec, "replicas", 1);
        let strategy = spec.entry("strategy").or_insert_with(|| json!({}));
        if let Some(s) = strategy.as_object_mut() {
            set_text(s, "type", "RollingUpdate");
            if s.get("type") == Some(&json!("RollingUpdate")) {
                let r = s.entry("rollingUpdate").or_insert_with(|| json!({}));
                if let Some(r) = r.as_object_mut() {
                    set(r, "maxUnavailable", "25%");
                    set(r, "maxSurge", "25%");
                }
            }
        }
        set(spec, "revisionHistoryLimit", 10);
        set(spec, "progressDeadlineSeconds", 600);
        template(spec);
    }

    fn desired_changed(&self, new: &Value, old: &Value) -> bool {
        new.get("spec") != old.get("spec") || new["metadata"].get("annotations") != old["metadata"].get("annotations")
    }

    fn prepare_status(&self, new: &mut Value, old: &Value) {
        super::carry(new, old, "spec");
        super::carry_meta(new, old, &["labels", "ownerReferences", "generation"]);
    }

    fn reset_fields(&self, of_status: bool) -> &'static [&'static [&'static str]] {
        if of_status { &[&["spec"], &["metadata", "labels"]] } else { &[&["status"]] }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        template_warnings(new, old, out);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let spec = Path::new("spec");
        not_negative(obj, &["replicas"], errors);
        validate_selector(obj, "empty selector is invalid for deployment", errors);
        let at = spec.child("template");
        validate_template(&obj["spec"]["template"], &at, errors);
        replicas_only(&obj["spec"]["template"], errors, &at);
        let s = &obj["spec"]["strategy"];
        let sp = spec.child("strategy");
        match s["type"].as_str().unwrap_or_default() {
            "Recreate" => {
                if !s["rollingUpdate"].is_null() {
                    errors.forbidden(
                        &sp.child("rollingUpdate"),
                        "may not be specified when strategy `type` is 'Recreate'",
                    );
                }
            }
            "RollingUpdate" => {
                let rp = sp.child("rollingUpdate");
                if s["rollingUpdate"].is_null() {
                    errors.required(&rp, "this should be defaulted and never be nil");
                } else {
                    let (u, m) = (&s["rollingUpdate"]["maxUnavailable"], &s["rollingUpdate"]["maxSurge"]);
                    let a = int_or_percent(u, &rp.child("maxUnavailable"), errors);
                    let b = int_or_percent(m, &rp.child("maxSurge"), errors);
                    if a == Some(0) && b == Some(0) {
                        errors.invalid(&rp.child("maxUnavailable"), u.clone(), "may not be 0 when `maxSurge` is 0");
                    }
                    if u.is_string() && a.is_some_and(|a| a > 100) {
                        errors.invalid(&rp.child("maxUnavailable"), u.clone(), "must not be greater than 100%");
                    }
                }
            }
            t => errors.not_supported(&sp, t, &["Recreate", "RollingUpdate"]),
        }
        not_negative(obj, &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"], errors);
        if let Some(d) = obj["spec"]["progressDeadlineSeconds"].as_i64()
            && d <= obj["spec"]["minReadySeconds"].as_i64().unwrap_or(0)
        {
            errors.invalid(&spec.child("progressDeadlineSeconds"), d, "must be greater than minReadySeconds");
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
        immutable_selector(new, old, errors);
    }
}

/// Rules of ReplicaSets.
pub(super) struct ReplicaSet;

impl Strategy for ReplicaSet {
    fn traits(&self) -> &Traits {
        &T
    }

    fn default(&self, obj: &mut Value) {
        let Some(spec) = object(obj, "spec") else { return };
        set(spec, "replicas", 1);
        template(spec);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        template_warnings(new, old, out);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let spec = Path::new("spec");
        not_negative(obj, &["replicas", "minReadySeconds"], errors);
        validate_selector(obj, "empty selector is invalid for deployment", errors);
        let at = spec.child("template");
        validate_template(&obj["spec"]["template"], &at, errors);
        replicas_only(&obj["spec"]["template"], errors, &at);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
        immutable_selector(new, old, errors);
    }
}

/// Rules of ReplicationControllers.
pub(super) struct ReplicationController;

impl Strategy for ReplicationController {
    fn traits(&self) -> &Traits {
        const R: Traits = Traits { orphan_by_default: true, ..T };
        &R
    }

    fn default(&self, obj: &mut Value) {
        let labels = obj["spec"]["template"]["metadata"]["labels"].clone();
        if let Some(spec) = object(obj, "spec") {
            set(spec, "replicas", 1);
            template(spec);
            if labels.is_object() && spec.get("selector").is_none_or(|s| s.as_object().is_none_or(Map::is_empty)) {
                spec.insert("selector".into(), labels.clone());
            }
        }
        let m = crate::meta::meta_mut(obj);
        if labels.is_object() && m.get("labels").is_none_or(|l| l.as_object().is_none_or(Map::is_empty)) {
            m.insert("labels".into(), labels);
        }
    }

    fn fields(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn field(&self, obj: &Value, _name: &str) -> String {
        obj["status"]["replicas"].as_i64().unwrap_or(0).to_string()
    }
}

/// Rules of StatefulSets.
pub(super) struct StatefulSet;

impl Strategy for StatefulSet {
    fn traits(&self) -> &Traits {
        &T
    }

    fn default(&self, obj: &mut Value) {
        let Some(spec) = object(obj, "spec") else { return };
        set(spec, "replicas", 1);
        set_text(spec, "podManagementPolicy", "OrderedReady");
        set(spec, "revisionHistoryLimit", 10);
        let u = spec.entry("updateStrategy").or_insert_with(|| json!({}));
        if let Some(u) = u.as_object_mut() {
            set_text(u, "type", "RollingUpdate");
            if u.get("type") == Some(&json!("RollingUpdate")) {
                let r = u.entry("rollingUpdate").or_insert_with(|| json!({}));
                if let Some(r) = r.as_object_mut() {
                    set(r, "partition", 0);
                    set(r, "maxUnavailable", 1);
                }
            }
        }
        let p = spec.entry("persistentVolumeClaimRetentionPolicy").or_insert_with(|| json!({}));
        if let Some(p) = p.as_object_mut() {
            set_text(p, "whenDeleted", "Retain");
            set_text(p, "whenScaled", "Retain");
        }
        template(spec);
        for c in spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten() {
            super::defaults::claim(c);
        }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        template_warnings(new, old, out);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let spec = Path::new("spec");
        validate_selector(obj, "empty selector is invalid for statefulset", errors);
        not_negative(obj, &["replicas", "minReadySeconds"], errors);
        let at = spec.child("template");
        validate_template(&obj["spec"]["template"], &at, errors);
        replicas_only(&obj["spec"]["template"], errors, &at);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        const FREE: [&str; 8] = [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
            "revisionHistoryLimit",
            "",
        ];
        let rest = |v: &Value| {
            let mut m = v["spec"].as_object().cloned().unwrap_or_default();
            for k in FREE {
                m.remove(k);
            }
            m
        };
        self.validate(new, errors);
        if rest(new) != rest(old) {
            errors.forbidden(
                &Path::new("spec"),
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            );
        }
    }
}

/// Rules of DaemonSets.
pub(super) struct DaemonSet;

/// The counter of template changes lives on in an annotation.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn template_generation(obj: &mut Value, n: i64) {
    let a = crate::meta::meta_mut(obj).entry("annotations").or_insert_with(|| json!({}));
    a[TEMPLATE_GENERATION] = n.to_string().into();
}

impl Strategy for DaemonSet {
    fn traits(&self) -> &Traits {
        &T
    }

    fn prepare_create(&self, obj: &mut Value) {
        super::reset_status(obj);
        crate::meta::meta_mut(obj).insert("generation".into(), 1.into());
        template_generation(obj, 1);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        super::carry(new, old, "status");
        let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let changed = self.desired_changed(new, old);
        crate::meta::meta_mut(new).insert("generation".into(), (before + i64::from(changed)).into());
        let count = old["metadata"]["annotations"][TEMPLATE_GENERATION].as_str().and_then(|n| n.parse::<i64>().ok());
        let templates = new["spec"].get("template") != old["spec"].get("template");
        template_generation(new, count.unwrap_or(1) + i64::from(templates));
    }

    fn default(&self, obj: &mut Value) {
        if obj["metadata"]["annotations"].get(TEMPLATE_GENERATION).is_none() {
            template_generation(obj, 1);
        }
        let Some(spec) = object(obj, "spec") else { return };
        let u = spec.entry("updateStrategy").or_insert_with(|| json!({}));
        if let Some(u) = u.as_object_mut() {
            set_text(u, "type", "RollingUpdate");
            if u.get("type") == Some(&json!("RollingUpdate")) {
                let r = u.entry("rollingUpdate").or_insert_with(|| json!({}));
                if let Some(r) = r.as_object_mut() {
                    set(r, "maxUnavailable", 1);
                    set(r, "maxSurge", 0);
                }
            }
        }
        set(spec, "revisionHistoryLimit", 10);
        template(spec);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        template_warnings(new, old, out);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let spec = Path::new("spec");
        validate_selector(obj, "empty selector is invalid for daemonset", errors);
        let at = spec.child("template");
        validate_template(&obj["spec"]["template"], &at, errors);
        replicas_only(&obj["spec"]["template"], errors, &at);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
        immutable_selector(new, old, errors);
    }
}

/// Rules of Jobs.
pub(super) struct Job;

fn default_job_spec(spec: &mut Map<String, Value>) {
    if spec.get("completions").is_none_or(Value::is_null) && spec.get("parallelism").is_none_or(Value::is_null) {
        spec.insert("completions".into(), 1.into());
        spec.insert("parallelism".into(), 1.into());
    }
    set(spec, "parallelism", 1);
    let own_limit = spec.get("backoffLimitPerIndex").is_some();
    set(spec, "backoffLimit", if own_limit { i64::from(i32::MAX) } else { 6 });
    set(spec, "completionMode", "NonIndexed");
    set(spec, "suspend", false);
    set(spec, "manualSelector", false);
    let failed = spec.get("podFailurePolicy").is_some_and(|p| !p.is_null());
    set(spec, "podReplacementPolicy", if failed { "Failed" } else { "TerminatingOrFailed" });
    template(spec);
}

/// Defaults of the Job inside a CronJob: those of its pods; its own come when it is created.
pub(super) fn default_job_template(t: &mut Value) {
    if let Some(spec) = object(t, "spec") {
        template(spec);
    }
}

impl Strategy for Job {
    fn traits(&self) -> &Traits {
        const J: Traits = Traits { orphan_by_default: true, ..T };
        &J
    }

    fn default(&self, obj: &mut Value) {
        let labels = obj["spec"]["template"]["metadata"]["labels"].clone();
        if let Some(spec) = object(obj, "spec") {
            default_job_spec(spec);
        }
        let m = crate::meta::meta_mut(obj);
        if labels.is_object() && m.get("labels").is_none_or(|l| l.as_object().is_none_or(Map::is_empty)) {
            m.insert("labels".into(), labels);
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        super::reset_status(obj);
        let uid = crate::meta::uid(obj).to_owned();
        let name = crate::meta::name(obj).to_owned();
        crate::meta::meta_mut(obj).insert("generation".into(), 1.into());
        if obj["spec"]["manualSelector"] == true {
            return;
        }
        // The selector is the Job's own uid: nobody else's pods can match.
        let labels = [
            ("controller-uid", uid.as_str()),
            ("job-name", name.as_str()),
            ("batch.kubernetes.io/controller-uid", uid.as_str()),
            ("batch.kubernetes.io/job-name", name.as_str()),
        ];
        let m = crate::meta::meta_mut(&mut obj["spec"]["template"]);
        let own = m.entry("labels").or_insert_with(|| json!({}));
        for (k, v) in labels {
            own[k] = v.into();
        }
        obj["spec"]["selector"] = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
    }

    fn fields(&self) -> &'static [&'static str] {
        &["status.successful"]
    }

    fn unsupported_field(&self, field: &str, _r: &crate::resources::Resource) -> Option<String> {
        let known = matches!(field, "metadata.name" | "metadata.namespace" | "status.successful");
        (!known).then(|| format!("field label {} not supported for Job", crate::invalid::quote_str(field)))
    }

    fn field(&self, obj: &Value, _name: &str) -> String {
        obj["status"]["succeeded"].as_i64().unwrap_or(0).to_string()
    }
}
