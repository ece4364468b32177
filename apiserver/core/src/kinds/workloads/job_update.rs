//! What an update of a Job may change.

use serde_json::Value;

use super::job::indexed;
use crate::invalid::Errors;
use crate::kinds::carry;
use crate::kinds::check::{IMMUTABLE, immutable};
use crate::path::Path;

/// Checks what may not change (the new spec by itself was checked).
pub(super) fn validate(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let (n, o) = (&new["spec"], &old["spec"]);
    completions(n, o, &path, errors);
    immutable(n, o, "selector", &path, errors);
    template(new, old, &path.child("template"), errors);
    for key in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        immutable(n, o, key, &path, errors);
    }
}

/// The completions of an indexed Job may change together with its parallelism.
fn completions(new: &Value, old: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (n, o) = (&new["completions"], &old["completions"]);
    if n == o {
        return;
    }
    let at = path.child("completions");
    if !indexed(new) {
        errors.invalid(&at, n.clone(), IMMUTABLE);
    } else if !n.is_null() && !o.is_null() && *n != new["parallelism"] {
        errors.invalid(&at, n.clone(), "can only be modified in tandem with spec.parallelism");
    }
}

/// The template is fixed, but while a suspended Job has never started one may decide anew where its pods run and what
/// they may use.
fn template(new: &Value, old: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (n, o) = (&new["spec"]["template"], &old["spec"]["template"]);
    let open = old["spec"]["suspend"] == true && old["status"]["startTime"].is_null();
    if !open {
        if n != o {
            errors.invalid(path, n.clone(), IMMUTABLE);
        }
        return;
    }
    let mut allowed = o["spec"].clone();
    let spec = &n["spec"];
    for key in ["nodeSelector", "tolerations", "schedulingGates"] {
        carry(&mut allowed, spec, key);
    }
    node_affinity(&mut allowed, spec);
    for list in ["containers", "initContainers"] {
        let given = spec[list].as_array().map_or(&[][..], Vec::as_slice);
        let own = allowed.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (c, g) in own.zip(given) {
            if c["name"] == g["name"] {
                carry(c, g, "resources");
            }
        }
    }
    if allowed != *spec {
        errors.invalid(&path.child("spec"), spec.clone(), IMMUTABLE);
    }
}

/// Makes the node affinity of `spec` that of `new`.
fn node_affinity(spec: &mut Value, new: &Value) {
    let wanted = &new["affinity"]["nodeAffinity"];
    match (spec["affinity"].is_object(), new["affinity"].is_object()) {
        (false, true) => spec["affinity"] = serde_json::json!({"nodeAffinity": wanted}),
        (true, _) => carry(&mut spec["affinity"], &new["affinity"], "nodeAffinity"),
        (false, false) => {}
    }
    let Some(s) = spec.as_object_mut() else { return };
    if let Some(a) = s.get_mut("affinity").and_then(Value::as_object_mut) {
        a.retain(|_, v| !v.is_null());
        if a.is_empty() && !new["affinity"].is_object() {
            s.remove("affinity");
        }
    }
}
