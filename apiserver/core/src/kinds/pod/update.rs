//! What an update of a pod may change.

use serde_json::{Map, Value, json};

use crate::invalid::Errors;
use crate::path::Path;

const ONLY: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Lines of a difference at most, about.
const MAX_TOLD: usize = 20;

/// Checks an update of the pod itself.
pub(super) fn validate(new: &Value, old: &Value, errors: &mut Errors) {
    let spec = Path::new("spec");
    let (n, o) = (&new["spec"], &old["spec"]);
    newly_wrong(new, old, errors);
    let count = |v: &Value, k: &str| v[k].as_array().map_or(0, Vec::len);
    for list in ["containers", "initContainers"] {
        if count(n, list) != count(o, list) {
            errors.forbidden(&spec.child(list), "pod updates may not add or remove containers");
            return;
        }
    }
    let deadline = spec.child("activeDeadlineSeconds");
    match (n["activeDeadlineSeconds"].as_i64(), o["activeDeadlineSeconds"].as_i64()) {
        (Some(a), _) if !(0..=i64::from(i32::MAX)).contains(&a) => {
            errors.invalid(&deadline, a, "must be between 0 and 2147483647, inclusive");
            return;
        }
        (Some(a), Some(b)) if a > b => {
            errors.invalid(&deadline, a, "must be less than or equal to previous value");
            return;
        }
        (None, Some(_)) => {
            errors.invalid_raw(&deadline, "null", "must not update from a positive integer to nil value");
        }
        _ => {}
    }
    let gates = spec.child("schedulingGates");
    let held = |v: &Value| v["schedulingGates"].as_array().cloned().unwrap_or_default();
    let (ng, og) = (held(n), held(o));
    let name = |g: &Value| g["name"].as_str().unwrap_or_default().to_owned();
    let known: Vec<String> = og.iter().map(name).collect();
    for (i, gate) in ng.iter().enumerate().map(|(i, g)| (i, name(g))) {
        // Of gates of one name the last is told.
        if !known.contains(&gate) && !ng[i + 1..].iter().any(|later| name(later) == gate) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{gate}'");
            errors.forbidden(&gates.index(i).child("name"), why);
        }
    }
    // Everything that may change is made equal; what still differs may not.
    let mut munged = n.clone();
    for list in ["containers", "initContainers"] {
        let old_list = o[list].as_array().cloned().unwrap_or_default();
        for (i, c) in munged.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
            if let Some(v) = old_list.get(i).and_then(|c| c.get("image")) {
                c["image"] = v.clone();
            }
        }
    }
    let mut same = |key: &str| match o.get(key) {
        Some(v) => munged[key] = v.clone(),
        None => {
            if let Some(m) = munged.as_object_mut() {
                m.remove(key);
            }
        }
    };
    same("activeDeadlineSeconds");
    same("schedulingGates");
    if only_added(&n["tolerations"], &o["tolerations"]) {
        same("tolerations");
    } else {
        errors.forbidden(
            &spec.child("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        );
        same("tolerations");
    }
    if o["terminationGracePeriodSeconds"].as_i64().is_some_and(|g| g < 0) && n["terminationGracePeriodSeconds"] == 1 {
        same("terminationGracePeriodSeconds");
    }
    if !og.is_empty() {
        gated(n, o, &mut munged);
    }
    if munged != *o {
        errors.forbidden(&spec, format!("{ONLY}\n{}", differences(&munged, o)));
    }
}

/// What differs, a line for each change: upstream adds such a list, too, in the form of its own language's values.
fn differences(new: &Value, old: &Value) -> String {
    fn walk(at: &str, new: &Value, old: &Value, out: &mut Vec<String>) {
        if new == old || out.len() >= MAX_TOLD {
            return;
        }
        match (new, old) {
            (Value::Object(n), Value::Object(o)) => {
                for key in o.keys().chain(n.keys().filter(|k| !o.contains_key(*k))) {
                    let none = &Value::Null;
                    walk(&format!("{at}.{key}"), n.get(key).unwrap_or(none), o.get(key).unwrap_or(none), out);
                }
            }
            (Value::Array(n), Value::Array(o)) if n.len() == o.len() => {
                for (i, (n, o)) in n.iter().zip(o).enumerate() {
                    walk(&format!("{at}[{i}]"), n, o, out);
                }
            }
            _ => out.extend([(old, '-'), (new, '+')].map(|(v, sign)| format!("{sign} {at}: {v}"))),
        }
    }
    let mut out = vec![];
    walk("spec", new, old, &mut out);
    out.join("\n")
}

/// What was accepted once stays acceptable: an old pod must remain updatable.
fn newly_wrong(new: &Value, old: &Value, errors: &mut Errors) {
    let (mut before, mut now) = (Errors::new(), Errors::new());
    super::validate::validate_pod(old, &mut before);
    super::validate::validate_pod(new, &mut now);
    now.0.retain(|e| !before.0.contains(e));
    errors.0.append(&mut now.0);
}

/// Checks an update through `resize`: amounts of cpu and memory may change, and neither vanish nor make the pod one of
/// another class.
pub(super) fn validate_resize(new: &Value, old: &Value, errors: &mut Errors) {
    newly_wrong(new, old, errors);
    let spec = Path::new("spec");
    let root = Path::new("");
    let (n, o) = (&new["spec"], &old["spec"]);
    if old["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_some() {
        errors.forbidden(&root, "static pods cannot be resized");
        return;
    }
    if o["os"]["name"] == "windows" {
        errors.forbidden(&root, "windows pods cannot be resized");
        return;
    }
    let class = super::qos::class(n);
    if class != super::qos::class(o) {
        errors.invalid(&spec, class, "Pod QOS Class may not change as a result of resizing");
    }
    let mut munged = n.clone();
    for list in ["containers", "initContainers"] {
        let at = spec.child(list);
        let was = o[list].as_array().cloned().unwrap_or_default();
        for (i, c) in munged.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
            let Some(old) = was.get(i) else { continue };
            for (sort, what) in [("limits", "limits"), ("requests", "requests")] {
                let gone = ["cpu", "memory"]
                    .iter()
                    .any(|k| old["resources"][sort].get(k).is_some() && c["resources"][sort].get(k).is_none());
                if gone {
                    let here = at.index(i);
                    let resources = here.child("resources");
                    errors.forbidden(&resources.child(sort), format!("resource {what} cannot be removed"));
                }
                settle(c, old, sort);
            }
            if old.get("resources").is_none() && c["resources"] == json!({}) {
                super::carry(c, old, "resources");
            }
        }
    }
    if munged != *o {
        errors.forbidden(&spec, "only cpu and memory resources are mutable");
    }
}

/// Makes the amounts of cpu and memory in `c` those of `old`.
fn settle(c: &mut Value, old: &Value, sort: &str) {
    for k in ["cpu", "memory"] {
        match (old["resources"][sort].get(k), c["resources"][sort].is_object()) {
            (Some(v), _) => c["resources"][sort][k] = v.clone(),
            (None, true) => {
                if let Some(m) = c["resources"][sort].as_object_mut() {
                    m.remove(k);
                }
            }
            (None, false) => {}
        }
    }
    let empty = c["resources"][sort] == json!({});
    if empty
        && old["resources"].get(sort).is_none()
        && let Some(r) = c["resources"].as_object_mut()
    {
        r.remove(sort);
    }
}

/// Ephemeral containers may be added, never changed or removed.
pub(super) fn validate_ephemeral(new: &Value, old: &Value, errors: &mut Errors) {
    super::validate::validate_ephemeral(new, errors);
    let spec = Path::new("spec");
    let at = spec.child("ephemeralContainers");
    for was in old["spec"]["ephemeralContainers"].as_array().into_iter().flatten() {
        let name = was["name"].as_str().unwrap_or_default();
        let now = new["spec"]["ephemeralContainers"].as_array().into_iter().flatten().find(|c| c["name"] == name);
        match now {
            None => errors.forbidden(&at, format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(c) if c != was => {
                let why = format!("existing ephemeral containers {name:?} may not be changed\n{}", differences(c, was));
                errors.forbidden(&at, why);
            }
            Some(_) => {}
        }
    }
}

/// Old tolerations must all be there still (their seconds may change).
fn only_added(new: &Value, old: &Value) -> bool {
    let bare = |t: &Value| {
        let mut m: Map<String, Value> = t.as_object().cloned().unwrap_or_default();
        m.remove("tolerationSeconds");
        m
    };
    let new: Vec<_> = new.as_array().into_iter().flatten().map(bare).collect();
    old.as_array().into_iter().flatten().all(|t| new.contains(&bare(t)))
}

/// A pod that is not yet let through the gates may narrow where it runs.
fn gated(new: &Value, old: &Value, munged: &mut Value) {
    let selector = |v: &Value| v["nodeSelector"].as_object().cloned().unwrap_or_default();
    let (n, o) = (selector(new), selector(old));
    if o.iter().all(|(k, v)| n.get(k) == Some(v)) {
        if o.is_empty() && old.get("nodeSelector").is_none() {
            if let Some(m) = munged.as_object_mut() {
                m.remove("nodeSelector");
            }
        } else {
            munged["nodeSelector"] = json!(o);
        }
    }
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let affinity = |v: &Value| v["affinity"]["nodeAffinity"].clone();
    let (na, oa) = (affinity(new), affinity(old));
    let narrowed = oa.is_null() || oa[REQUIRED].is_null() || {
        let terms = |v: &Value| v[REQUIRED]["nodeSelectorTerms"].as_array().cloned().unwrap_or_default();
        let (nt, ot) = (terms(&na), terms(&oa));
        nt.len() == ot.len()
            && nt.iter().zip(&ot).all(|(a, b)| {
                ["matchExpressions", "matchFields"].iter().all(|k| {
                    let old = b[*k].as_array().cloned().unwrap_or_default();
                    let new = a[*k].as_array().cloned().unwrap_or_default();
                    old.iter().all(|e| new.contains(e))
                })
            })
    };
    if narrowed {
        match old.get("affinity") {
            Some(a) if !oa.is_null() || a["podAffinity"] == new["affinity"]["podAffinity"] => {
                munged["affinity"] = a.clone()
            }
            Some(a) => munged["affinity"] = a.clone(),
            None => {
                if new["affinity"].as_object().is_some_and(|a| a.len() == 1 && a.contains_key("nodeAffinity"))
                    && let Some(m) = munged.as_object_mut()
                {
                    m.remove("affinity");
                }
            }
        }
    }
}
