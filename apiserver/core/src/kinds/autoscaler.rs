//! HorizontalPodAutoscaler, in both of its versions.

use serde_json::{Map, Value, json};

use super::check::{complain, given, list, need, not_negative, one_of, quantity_not_negative, text};
use super::defaults::{object, set, set_text};
use super::pod::validate_container_resource;
use super::{Strategy, Traits, carry, carry_meta};
use crate::codec::{self, Faults, TypeError};
use crate::invalid::Errors;
use crate::names;
use crate::path::Path;
use crate::quantity::Quantity;
use crate::schema::Struct;

/// What v1 cannot say stands in these annotations.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const WINDOW_MAX: i64 = 3600;
const PERIOD_MAX: i64 = 1800;

/// Rules of HorizontalPodAutoscalers.
pub(super) struct Autoscaler;

impl Strategy for Autoscaler {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { generation: true, status: true, ..Traits::DEFAULT };
        &T
    }

    /// In v1 a part of the desired state is in annotations.
    fn prepare_status(&self, new: &mut Value, old: &Value) {
        carry(new, old, "spec");
        carry_meta(new, old, &["ownerReferences", "generation"]);
        for key in [METRICS, BEHAVIOR] {
            match old["metadata"]["annotations"].get(key) {
                Some(was) => new["metadata"]["annotations"][key] = was.clone(),
                None => {
                    new["metadata"].get_mut("annotations").and_then(Value::as_object_mut).map(|all| all.remove(key));
                }
            }
        }
    }

    /// An empty list of policies is kept until it is refused: only where there is none are there defaults.
    fn normalize(&self, value: &mut Value, model: &Struct, faults: &mut Faults) -> Result<(), TypeError> {
        let behavior = &value["spec"]["behavior"];
        let empty = ["scaleUp", "scaleDown"].map(|k| behavior[k]["policies"].as_array().is_some_and(Vec::is_empty));
        codec::normalize(value, model, faults)?;
        for key in ["scaleUp", "scaleDown"].iter().zip(empty).filter_map(|(k, e)| e.then_some(*k)) {
            value["spec"]["behavior"][key]["policies"] = json!([]);
        }
        Ok(())
    }

    fn default(&self, obj: &mut Value) {
        let v2 = obj.get("apiVersion") == Some(&json!("autoscaling/v2"));
        let annotated = !v2 && readable_metrics(obj);
        let Some(spec) = object(obj, "spec") else { return };
        set(spec, "minReplicas", 1);
        if !v2 {
            if !annotated {
                set(spec, "targetCPUUtilizationPercentage", 80);
            }
            return;
        }
        if spec.get("metrics").is_none_or(|m| m.as_array().is_none_or(Vec::is_empty)) {
            let target = json!({"type": "Utilization", "averageUtilization": 80});
            let cpu = json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]);
            spec.insert("metrics".into(), cpu);
        }
        if let Some(behavior) = spec.get_mut("behavior").and_then(Value::as_object_mut) {
            default_behavior(behavior);
        }
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        validate(obj, None, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        validate(new, Some(old), errors);
    }

    fn validate_status(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        not_negative(&new["status"], &["currentReplicas", "desiredReplicas"], &Path::new("status"), errors);
    }
}

fn validate(obj: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (spec, path) = (&obj["spec"], Path::new("spec"));
    let min = spec["minReplicas"].as_i64();
    if let Some(n) = min.filter(|n| *n < 0) {
        let at = path.child("minReplicas");
        errors.generated(|e| e.invalid(&at, n, "must be greater than or equal to 0"));
    }
    let max = spec["maxReplicas"].as_i64().unwrap_or(0);
    let at = path.child("maxReplicas");
    errors.generated(|e| match max {
        0 => e.required(&at, ""),
        n if n < 0 => e.invalid(&at, n, "must be greater than or equal to 1"),
        _ => {}
    });
    if min.is_some_and(|n| max < n) {
        errors.invalid(&at, max, "must be greater than or equal to `minReplicas`");
    }
    let target = &spec["scaleTargetRef"];
    // One that was there before is left alone.
    let kept = old.map(|o| &o["spec"]["scaleTargetRef"]);
    let version = if kept.is_some_and(|k| k["apiVersion"] == target["apiVersion"] && k["kind"] == target["kind"]) {
        Version::Any
    } else if text(target, "kind") == "ReplicationController" {
        // The only kind of the core group that can be scaled.
        Version::WellFormed
    } else {
        Version::OfGroup
    };
    reference(target, version, &path.child("scaleTargetRef"), errors);
    let all = path.child("metrics");
    if let Some(n) = spec["targetCPUUtilizationPercentage"].as_i64().filter(|n| *n < 1) {
        let target = all.index(0);
        errors.invalid(&target.child("resource.target.averageUtilization"), n, "must be greater than 0");
    }
    for (i, m) in list(spec, "metrics").iter().enumerate() {
        metric(m, &all.index(i), errors);
    }
    let wakes = |m: &Value| matches!(text(m, "type"), "Object" | "External");
    let annotated = || {
        let noted = obj["metadata"]["annotations"][METRICS].as_str().unwrap_or("[]");
        serde_json::from_str::<Vec<Value>>(noted).unwrap_or_default().iter().any(wakes)
    };
    if min == Some(0) && !list(spec, "metrics").iter().any(wakes) && !annotated() {
        let why = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.forbidden(&all, why);
    }
    let at = path.child("behavior");
    for key in ["scaleUp", "scaleDown"] {
        if given(&spec["behavior"], key) {
            rules(&spec["behavior"][key], &at.child(key), errors);
        }
    }
}

/// Whether the annotation holds metrics; one that cannot be read is dropped.
fn readable_metrics(obj: &mut Value) -> bool {
    let Some(notes) = obj.get_mut("metadata").and_then(|m| m.get_mut("annotations")).and_then(Value::as_object_mut)
    else {
        return false;
    };
    let Some(text) = notes.get(METRICS).and_then(Value::as_str) else { return false };
    let count = serde_json::from_str::<Vec<Value>>(text).map(|l| l.len());
    if count.is_err() {
        notes.remove(METRICS);
        if notes.is_empty()
            && let Some(m) = obj.get_mut("metadata").and_then(Value::as_object_mut)
        {
            m.remove("annotations");
        }
    }
    count.is_ok_and(|n| n > 0)
}

fn default_behavior(behavior: &mut Map<String, Value>) {
    let up = json!([
        {"type": "Pods", "value": 4, "periodSeconds": 15},
        {"type": "Percent", "value": 100, "periodSeconds": 15},
    ]);
    let down = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
    for (key, policies, window) in [("scaleUp", up, Some(0)), ("scaleDown", down, None)] {
        let rules = behavior.entry(key).or_insert_with(|| json!({}));
        let Some(rules) = rules.as_object_mut() else { continue };
        if let Some(w) = window {
            set(rules, "stabilizationWindowSeconds", w);
        }
        set_text(rules, "selectPolicy", "Max");
        // An empty list is the user's, and refused; only a missing one is made.
        if rules.get("policies").is_none_or(Value::is_null) {
            rules.insert("policies".into(), policies);
        }
    }
}

/// What the version of a reference has to be.
#[derive(Clone, Copy, PartialEq)]
enum Version {
    Any,
    WellFormed,
    /// Of a group other than the core one.
    OfGroup,
}

/// Kind, name and version of an object.
fn reference(r: &Value, wanted: Version, path: &Path<'_>, errors: &mut Errors) {
    for key in ["kind", "name"] {
        if need(r, key, path, errors) {
            complain(&path.child(key), text(r, key), names::is_path_segment(text(r, key)), errors);
        }
    }
    let version = text(r, "apiVersion");
    if wanted == Version::Any {
        return;
    }
    if version.matches('/').count() > 1 {
        let why = format!("unexpected GroupVersion string: {version}");
        errors.invalid(&path.child("apiVersion"), version, why);
    } else if wanted == Version::OfGroup && version.split_once('/').is_none_or(|(group, _)| group.is_empty()) {
        errors.invalid(&path.child("apiVersion"), version, "apiVersion must specify API group");
    }
}

fn metric(m: &Value, path: &Path<'_>, errors: &mut Errors) {
    const SOURCES: [(&str, &str); 5] = [
        ("Object", "object"),
        ("External", "external"),
        ("Pods", "pods"),
        ("Resource", "resource"),
        ("ContainerResource", "containerResource"),
    ];
    let kind = text(m, "type");
    if kind.is_empty() {
        errors.required(&path.child("type"), "must specify a metric source type");
    }
    if !SOURCES.iter().any(|(k, _)| *k == kind) {
        let known = ["ContainerResource", "External", "Object", "Pods", "Resource"];
        errors.not_supported(&path.child("type"), kind, &known);
    }
    let present: Vec<&str> = SOURCES.iter().map(|(_, key)| *key).filter(|k| given(m, k)).collect();
    // Only the first is looked at.
    if let Some(first) = present.first() {
        source(first, &m[*first], &path.child(first), errors);
    }
    let expected = SOURCES.iter().find(|(k, _)| *k == kind).map(|(_, key)| *key);
    if let Some(e) = expected.filter(|e| !present.contains(e)) {
        errors.required(&path.child(e), "must populate information for the given metric source");
    }
    // Of a type that nobody knows the first source is spared.
    let expected = expected.or_else(|| present.first().copied());
    if present.len() > 1 || (present.len() == 1 && expected.is_some_and(|e| !present.contains(&e))) {
        let mut others: Vec<&str> = present.into_iter().filter(|p| Some(*p) != expected).collect();
        others.sort_unstable();
        for other in others {
            errors.forbidden(&path.child(other), "must populate the given metric source only");
        }
    }
}

fn source(key: &str, s: &Value, path: &Path<'_>, errors: &mut Errors) {
    let target = path.child("target");
    let t = &s["target"];
    match key {
        "object" => {
            reference(&s["describedObject"], Version::WellFormed, &path.child("describedObject"), errors);
            identifier(s, path, errors);
            amounts(t, &target, errors);
            if !given(t, "value") && !given(t, "averageValue") {
                errors.required(&target.child("averageValue"), "must set either a target value or averageValue");
            }
        }
        "external" => {
            identifier(s, path, errors);
            amounts(t, &target, errors);
            match (given(t, "value"), given(t, "averageValue")) {
                (false, false) => {
                    let why = "must set either a target value for metric or a per-pod target";
                    errors.required(&target.child("averageValue"), why);
                }
                (true, true) => {
                    let why = "may not set both a target value for metric and a per-pod target";
                    errors.forbidden(&target.child("value"), why);
                }
                _ => {}
            }
        }
        "pods" => {
            identifier(s, path, errors);
            amounts(t, &target, errors);
            if quantity(&t["averageValue"]).is_none_or(|q| q.sign() <= 0) {
                errors.required(&target.child("averageValue"), "must specify a positive target averageValue");
            }
        }
        _ => {
            let (name, container) = (text(s, "name"), text(s, "container"));
            if name.is_empty() {
                errors.required(&path.child("name"), "must specify a resource name");
            } else if key == "containerResource" {
                validate_container_resource(name, &path.child("name"), errors);
            }
            if key == "containerResource" && container.is_empty() {
                errors.required(&path.child("container"), "must specify a container");
            } else if key == "containerResource" {
                complain(&path.child("container"), container, names::is_dns1123_label(container), errors);
            }
            amounts(t, &target, errors);
            match (given(t, "averageUtilization"), given(t, "averageValue")) {
                (false, false) => {
                    let why = "must set either a target raw value or a target utilization";
                    errors.required(&target.child("averageUtilization"), why);
                }
                (true, true) => {
                    let why = "may not set both a target raw value and a target utilization";
                    errors.forbidden(&target.child("averageValue"), why);
                }
                _ => {}
            }
        }
    }
}

fn quantity(v: &Value) -> Option<Quantity> {
    v.as_str().and_then(|q| Quantity::parse(q).ok())
}

fn identifier(s: &Value, path: &Path<'_>, errors: &mut Errors) {
    let metric = path.child("metric");
    let name = text(&s["metric"], "name");
    if name.is_empty() {
        errors.required(&metric.child("name"), "must specify a metric name");
    } else {
        complain(&metric.child("name"), name, names::is_path_segment(name), errors);
    }
}

fn amounts(t: &Value, path: &Path<'_>, errors: &mut Errors) {
    let kind = text(t, "type");
    if kind.is_empty() {
        errors.required(&path.child("type"), "must specify a metric target type");
    }
    match kind {
        "Utilization" | "Value" | "AverageValue" => {}
        other => errors.invalid(&path.child("type"), other, "must be either Utilization, Value, or AverageValue"),
    }
    for key in ["value", "averageValue"] {
        if let Some(q) = quantity(&t[key]).filter(|q| q.sign() <= 0) {
            errors.invalid(&path.child(key), q.to_string(), "must be positive");
        }
    }
    if let Some(n) = t["averageUtilization"].as_i64().filter(|n| *n < 1) {
        errors.invalid(&path.child("averageUtilization"), n, "must be greater than 0");
    }
}

fn rules(r: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("stabilizationWindowSeconds");
    if let Some(n) = r["stabilizationWindowSeconds"].as_i64() {
        if n < 0 {
            errors.invalid(&at, n, "must be greater than or equal to zero");
        }
        if n > WINDOW_MAX {
            errors.invalid(&at, n, format!("must be less than or equal to {WINDOW_MAX}"));
        }
    }
    one_of(r, "selectPolicy", &["Disabled", "Max", "Min"], path, errors);
    let all = path.child("policies");
    let policies = list(r, "policies");
    if policies.is_empty() {
        errors.required(&all, "must specify at least one Policy");
    }
    for (i, p) in policies.iter().enumerate() {
        let at = all.index(i);
        if !matches!(text(p, "type"), "Percent" | "Pods") {
            errors.not_supported(&at.child("type"), text(p, "type"), &["Percent", "Pods"]);
        }
        for key in ["value", "periodSeconds"] {
            let n = p[key].as_i64().unwrap_or(0);
            if n <= 0 {
                errors.invalid(&at.child(key), n, "must be greater than zero");
            }
            if key == "periodSeconds" && n > PERIOD_MAX {
                errors.invalid(&at.child(key), n, format!("must be less than or equal to {PERIOD_MAX}"));
            }
        }
    }
    quantity_not_negative(&r["tolerance"], &path.child("tolerance"), errors);
}
