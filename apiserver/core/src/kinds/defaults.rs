//! Defaults of kinds that have no other rules here yet, and of parts that several kinds share. Facts: upstream v1.37.

use serde_json::{Map, Value, json};

/// The object at `key`, if there is one.
pub(super) fn object<'a>(v: &'a mut Value, key: &str) -> Option<&'a mut Map<String, Value>> {
    v.get_mut(key)?.as_object_mut()
}

/// Sets `key` unless it is there.
pub(super) fn set(o: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    if o.get(key).is_none_or(Value::is_null) {
        o.insert(key.to_owned(), value.into());
    }
}

/// The update strategy at `key`: RollingUpdate unless it says otherwise, and then with these numbers unless it has its own.
pub(super) fn rolling_update(spec: &mut Map<String, Value>, key: &str, numbers: &[(&str, Value)]) {
    let strategy = spec.entry(key).or_insert_with(|| json!({}));
    let Some(strategy) = strategy.as_object_mut() else { return };
    set_text(strategy, "type", "RollingUpdate");
    if strategy.get("type").is_some_and(|t| t == "RollingUpdate") {
        let rolling = strategy.entry("rollingUpdate").or_insert_with(|| json!({}));
        for (name, value) in numbers {
            if let Some(r) = rolling.as_object_mut() {
                set(r, name, value.clone());
            }
        }
    }
}

/// Like [`set`], and treats the empty string as absent.
pub(super) fn set_text(o: &mut Map<String, Value>, key: &str, value: &str) {
    if o.get(key).is_none_or(|v| v.is_null() || v == "") {
        o.insert(key.to_owned(), value.into());
    }
}

/// Elements of the list at `key` that are objects.
pub(super) fn each<'a>(v: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    v.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

pub(super) fn endpoints(obj: &mut Value) {
    for s in obj.get_mut("subsets").and_then(Value::as_array_mut).into_iter().flatten() {
        for p in each(s, "ports") {
            set_text(p, "protocol", "TCP");
        }
    }
}

pub(super) fn endpoint_slice(obj: &mut Value) {
    for p in each(obj, "ports") {
        set_text(p, "protocol", "TCP");
        set(p, "name", "");
    }
}

pub(super) fn limit_range(obj: &mut Value) {
    let Some(spec) = obj.get_mut("spec") else { return };
    for l in each(spec, "limits") {
        if l.get("type") != Some(&json!("Container")) {
            continue;
        }
        // A limit fills a default, a default fills a request, and a minimum fills what is still open.
        for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            let source = l.get(from).and_then(Value::as_object).cloned().unwrap_or_default();
            if source.is_empty() {
                continue;
            }
            let target = l.entry(to).or_insert_with(|| json!({}));
            if let Some(t) = target.as_object_mut() {
                for (k, v) in source {
                    t.entry(k).or_insert(v);
                }
            }
        }
    }
}

pub(super) fn claim(obj: &mut Value) {
    if let Some(spec) = object(obj, "spec") {
        claim_spec(spec);
    }
    let phase = object(obj, "status").map(|s| set_text(s, "phase", "Pending"));
    if phase.is_none()
        && let Value::Object(o) = obj
    {
        o.insert("status".into(), json!({"phase": "Pending"}));
    }
}

pub(super) fn claim_spec(spec: &mut Map<String, Value>) {
    set(spec, "volumeMode", "Filesystem");
}

pub(super) fn network_policy(obj: &mut Value) {
    let Some(spec) = object(obj, "spec") else { return };
    if spec.get("policyTypes").is_none_or(|p| p.as_array().is_none_or(Vec::is_empty)) {
        let mut types = vec!["Ingress"];
        if spec.get("egress").is_some_and(|e| e.as_array().is_some_and(|a| !a.is_empty())) {
            types.push("Egress");
        }
        spec.insert("policyTypes".into(), json!(types));
    }
    for list in ["ingress", "egress"] {
        for rule in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            for p in each(rule, "ports") {
                set_text(p, "protocol", "TCP");
            }
        }
    }
}

pub(super) fn ingress_class(obj: &mut Value) {
    if let Some(p) = obj.get_mut("spec").and_then(|s| object(s, "parameters")) {
        set_text(p, "scope", "Cluster");
    }
}

const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) fn binding(obj: &mut Value) {
    if let Some(r) = object(obj, "roleRef") {
        set_text(r, "apiGroup", RBAC);
    }
    for s in each(obj, "subjects") {
        if let Some("User" | "Group") = s.get("kind").and_then(Value::as_str) {
            set_text(s, "apiGroup", RBAC);
        }
    }
}

pub(super) fn priority_class(obj: &mut Value) {
    if let Value::Object(o) = obj {
        set(o, "preemptionPolicy", "PreemptLowerPriority");
    }
}

pub(super) fn storage_class(obj: &mut Value) {
    if let Value::Object(o) = obj {
        set(o, "reclaimPolicy", "Delete");
        set(o, "volumeBindingMode", "Immediate");
    }
}

pub(super) fn csi_driver(obj: &mut Value) {
    let Some(spec) = object(obj, "spec") else { return };
    set(spec, "attachRequired", true);
    set(spec, "podInfoOnMount", false);
    set(spec, "storageCapacity", false);
    set(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    set(spec, "requiresRepublish", false);
    set(spec, "seLinuxMount", false);
    set(spec, "preventPodSchedulingIfMissing", false);
    if spec.get("volumeLifecycleModes").is_none_or(|v| v.as_array().is_none_or(Vec::is_empty)) {
        spec.insert("volumeLifecycleModes".into(), json!(["Persistent"]));
    }
}

pub(super) fn flow_schema(obj: &mut Value) {
    let Some(spec) = object(obj, "spec") else { return };
    if spec.get("matchingPrecedence").and_then(Value::as_i64).unwrap_or(0) == 0 {
        spec.insert("matchingPrecedence".into(), 1000.into());
    }
}

pub(super) fn priority_level(obj: &mut Value) {
    let Some(spec) = object(obj, "spec") else { return };
    if let Some(l) = spec.get_mut("limited").and_then(Value::as_object_mut) {
        set(l, "nominalConcurrencyShares", 30);
        set(l, "lendablePercent", 0);
        if let Some(q) = l.get_mut("limitResponse").and_then(|r| r.get_mut("queuing")).and_then(Value::as_object_mut) {
            for (k, n) in [("queues", 64), ("handSize", 8), ("queueLengthLimit", 50)] {
                if q.get(k).and_then(Value::as_i64).unwrap_or(0) == 0 {
                    q.insert(k.into(), n.into());
                }
            }
        }
    }
    if let Some(e) = spec.get_mut("exempt").and_then(Value::as_object_mut) {
        set(e, "nominalConcurrencyShares", 0);
        set(e, "lendablePercent", 0);
    }
}

fn webhooks(obj: &mut Value, mutating: bool) {
    for w in each(obj, "webhooks") {
        set(w, "failurePolicy", "Fail");
        set(w, "matchPolicy", "Equivalent");
        set(w, "timeoutSeconds", 10);
        set(w, "namespaceSelector", json!({}));
        set(w, "objectSelector", json!({}));
        if mutating {
            set(w, "reinvocationPolicy", "Never");
        }
        if let Some(s) = w.get_mut("clientConfig").and_then(|c| c.get_mut("service")).and_then(Value::as_object_mut) {
            set(s, "port", 443);
        }
        for r in w.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(r) = r.as_object_mut() {
                set(r, "scope", "*");
            }
        }
    }
}

pub(super) fn mutating_webhooks(obj: &mut Value) {
    webhooks(obj, true);
}

pub(super) fn validating_webhooks(obj: &mut Value) {
    webhooks(obj, false);
}
