//! PersistentVolumeClaim, and the claims in pods and StatefulSets.

use serde_json::{Value, json};

use super::{OLD_CLASS, access_modes, amount, more_than_zero, old_class_warning, quantity};
use crate::invalid::Errors;
use crate::kinds::check::{IMMUTABLE, complain, given, label_selector, list, need, one_of, subdomain_if_given, text};
use crate::kinds::{Strategy, Traits, carry, defaults};
use crate::names;
use crate::path::Path;
use crate::quantity::Quantity;

const SNAPSHOTS: &str = "snapshot.storage.k8s.io";

/// Rules of PersistentVolumeClaims.
pub(in crate::kinds) struct Claim;

impl Strategy for Claim {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { returns_deleted: true, status: true, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        defaults::claim(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        obj["status"] = json!({"phase": "Pending"});
        settle_sources(&mut obj["spec"], None);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        carry(new, old, "status");
        settle_sources(&mut new["spec"], Some(&old["spec"]));
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        validate_spec(&obj["spec"], &Path::new("spec"), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
        unchanged(new, old, errors);
    }

    fn validate_status(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        validate_status(&new["status"], errors);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        old_class_warning(new, out);
        if old.is_none_or(|o| o["spec"] != new["spec"]) {
            spec_warnings(&new["spec"], &Path::new("spec"), out);
        }
    }
}

/// Makes the two ways to name a source say the same. An old-style source of another kind was always dropped, and one in
/// another namespace is behind a gate that is off.
fn settle_sources(spec: &mut Value, old: Option<&Value>) {
    let Some(s) = spec.as_object_mut() else { return };
    let used = |k: &str| old.is_some_and(|o| given(o, k));
    // Who knows the newer field does not expect that the older is ignored.
    let newer = s.get("dataSourceRef").is_some_and(|r| !r.is_null());
    if !used("dataSource") && !newer && s.get("dataSource").is_some_and(|d| !is_known(d)) {
        s.remove("dataSource");
    }
    let elsewhere = s.get("dataSourceRef").is_some_and(|r| !text(r, "namespace").is_empty());
    if elsewhere && !used("dataSourceRef") {
        s.remove("dataSourceRef");
    }
    let pick = |s: &serde_json::Map<String, Value>, k: &str| s.get(k).filter(|v| !v.is_null()).cloned();
    match (pick(s, "dataSource"), pick(s, "dataSourceRef")) {
        (Some(d), None) => drop(s.insert("dataSourceRef".into(), d)),
        (None, Some(r)) if text(&r, "namespace").is_empty() => drop(s.insert("dataSource".into(), r)),
        _ => {}
    }
}

fn is_known(source: &Value) -> bool {
    matches!(
        (text(source, "apiGroup"), text(source, "kind")),
        ("", "PersistentVolumeClaim") | (SNAPSHOTS, "VolumeSnapshot")
    )
}

/// Checks the spec of a claim at `path`.
pub(in crate::kinds) fn validate_spec(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    if list(spec, "accessModes").is_empty() {
        errors.required(&path.child("accessModes"), "at least 1 access mode is required");
    }
    if given(spec, "selector") {
        label_selector(&spec["selector"], &path.child("selector"), errors);
    }
    access_modes(spec, path, errors);
    let resources = path.child("resources");
    let storage = resources.key("storage");
    match quantity(&spec["resources"]["requests"]["storage"]) {
        None => errors.required(&storage, ""),
        Some(q) => more_than_zero(&q, &storage, errors),
    }
    subdomain_if_given(spec, "storageClassName", path, errors);
    one_of(spec, "volumeMode", &["Block", "Filesystem"], path, errors);
    for key in ["dataSource", "dataSourceRef"] {
        if given(spec, key) {
            source(&spec[key], &path.child(key), errors);
        }
    }
    let (a, b) = (&spec["dataSource"], &spec["dataSourceRef"]);
    if !a.is_null() && !b.is_null() {
        let parts = |v: &Value| ["apiGroup", "kind", "name"].map(|k| text(v, k).to_owned());
        if !text(b, "namespace").is_empty() {
            errors.invalid(path, json!({}), "may not be specified when dataSourceRef.namespace is specified");
        } else if parts(a) != parts(b) {
            errors.invalid(path, json!({}), "must match dataSourceRef");
        }
    }
    subdomain_if_given(spec, "volumeAttributesClassName", path, errors);
}

fn source(v: &Value, path: &Path<'_>, errors: &mut Errors) {
    need(v, "name", path, errors);
    need(v, "kind", path, errors);
    let (group, kind) = (text(v, "apiGroup"), text(v, "kind"));
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        errors.invalid(path, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
    }
    if !group.is_empty() {
        complain(&path.child("apiGroup"), group, names::is_dns1123_subdomain(group), errors);
    }
}

/// Only the size and the attributes class of a bound claim may change, and the volume may be named once.
fn unchanged(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let (mut n, o) = (new["spec"].clone(), &old["spec"]);
    if text(o, "volumeName").is_empty() {
        carry(&mut n, o, "volumeName");
    }
    let class = |v: &Value| v["metadata"]["annotations"][OLD_CLASS].as_str().map(str::to_owned);
    let (new_class, old_class) = (class(new), class(old));
    let upgraded = old_class.is_some()
        && new_class.as_deref().is_none_or(|c| Some(c) == old_class.as_deref())
        && o["storageClassName"].is_null()
        && new["spec"]["storageClassName"].as_str() == old_class.as_deref();
    if upgraded {
        carry(&mut n, o, "storageClassName");
    } else {
        if new_class != old_class {
            let m = Path::new("metadata");
            let a = m.child("annotations");
            errors.invalid(&a.key(OLD_CLASS), new_class.unwrap_or_default(), IMMUTABLE);
        }
        // A claim without a class may be given one until it is bound.
        let late = o["storageClassName"].is_null() && text(o, "volumeName").is_empty();
        if late && old_class.is_none() && !new["spec"]["storageClassName"].is_null() {
            carry(&mut n, o, "storageClassName");
        }
    }
    if new["status"]["phase"] == "Bound" {
        if n["resources"]["requests"].is_object() {
            carry(&mut n["resources"]["requests"], &o["resources"]["requests"], "storage");
        }
        carry(&mut n, o, "volumeAttributesClassName");
    }
    if n != *o {
        errors.forbidden(
            &path,
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    let size = |v: &Value| quantity(&v["resources"]["requests"]["storage"]);
    let or_none = |q: Option<Quantity>| q.unwrap_or(Quantity::ZERO);
    let (now, was) = (or_none(size(&new["spec"])), or_none(size(o)));
    if now < was && now <= or_none(quantity(&old["status"]["capacity"]["storage"])) {
        errors.forbidden(&path.child("resources.requests.storage"), "field can not be less than status.capacity");
    }
    if new["spec"]["volumeMode"] != o["volumeMode"] {
        errors.invalid(&path.child("volumeMode"), new["spec"]["volumeMode"].clone(), IMMUTABLE);
    }
    if !text(o, "volumeAttributesClassName").is_empty() && text(&new["spec"], "volumeAttributesClassName").is_empty() {
        let why = "update from non-nil value to nil is forbidden";
        errors.forbidden(&path.child("volumeAttributesClassName"), why);
    }
}

fn validate_status(status: &Value, errors: &mut Errors) {
    const STATES: &[&str] = &[
        "ControllerResizeInProgress",
        "ControllerResizeInfeasible",
        "NodeResizeInProgress",
        "NodeResizeInfeasible",
        "NodeResizePending",
    ];
    let path = Path::new("status");
    let at = path.child("capacity");
    for (name, v) in status["capacity"].as_object().into_iter().flatten() {
        if let Some(q) = quantity(v) {
            amount(&q, &at.key(name), errors);
        }
    }
    let at = path.child("allocatedResourceStatuses");
    for (name, state) in status["allocatedResourceStatuses"].as_object().into_iter().flatten() {
        if resource_name(name, &at, errors) && !state.as_str().is_some_and(|s| STATES.contains(&s)) {
            errors.not_supported(&at, name.as_str(), STATES);
        }
    }
    let at = path.child("allocatedResources");
    for (name, v) in status["allocatedResources"].as_object().into_iter().flatten() {
        if resource_name(name, &at, errors)
            && let Some(q) = quantity(v)
        {
            amount(&q, &at.key(name), errors);
        }
    }
}

/// Whether a claim can have this resource.
fn resource_name(name: &str, path: &Path<'_>, errors: &mut Errors) -> bool {
    let why = names::is_qualified_name(name);
    let ok = why.is_empty();
    complain(path, name, why, errors);
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    if ok && native && name != "storage" {
        errors.not_supported(path, name, &["storage"]);
        return false;
    }
    ok
}

/// Warnings about the spec of a claim at `path`.
pub(in crate::kinds) fn spec_warnings(spec: &Value, path: &Path<'_>, out: &mut Vec<String>) {
    let resources = path.child("resources");
    for sort in ["requests", "limits"] {
        let v = &spec["resources"][sort]["storage"];
        if quantity(v).is_some_and(|q| !q.is_integer()) {
            let at = resources.child(sort);
            let shown = crate::invalid::quote(v);
            out.push(format!("{}: fractional byte value {shown} is invalid, must be an integer", at.key("storage")));
        }
    }
}
