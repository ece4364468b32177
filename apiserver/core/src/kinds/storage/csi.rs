//! CSIDriver, CSINode, CSIStorageCapacity.

use serde_json::Value;

use crate::invalid::Errors;
use crate::kinds::check::{
    complain, given, immutable, label_selector, list, not_negative, one_of, quantity_not_negative, text,
};
use crate::kinds::{Strategy, Traits, defaults};
use crate::names;
use crate::path::Path;

/// Checks the name of a CSI driver.
pub(super) fn driver_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    if name.len() > 63 {
        errors.too_long(path, 63);
    }
    complain(path, name, names::is_dns1123_subdomain(&name.to_lowercase()), errors);
}

/// [`driver_name`] as generated rules say it.
pub(super) fn driver_name_generated(name: &str, path: &Path<'_>, errors: &mut Errors) {
    let mut found = Errors::new();
    driver_name(name, path, &mut found);
    for mut e in found.0 {
        e.body = e.body.replace(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters",
            "an RFC 1123 subdomain must consist of alphanumeric characters",
        );
        e.body = e.body.replace("'example.com'", "'Example.com'");
        errors.0.push(e);
    }
}

/// Rules of CSIDrivers.
pub(in crate::kinds) struct Driver;

impl Strategy for Driver {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { returns_deleted: true, unconditional_update: false, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        defaults::csi_driver(obj);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (spec, path) = (&obj["spec"], Path::new("spec"));
        one_of(spec, "fsGroupPolicy", &["File", "None", "ReadWriteOnceWithFSType"], &path, errors);
        tokens(spec, &path.child("tokenRequests"), errors);
        let at = path.child("volumeLifecycleModes");
        let known = ["Persistent", "Ephemeral"];
        for m in list(spec, "volumeLifecycleModes").iter().filter_map(Value::as_str).filter(|m| !known.contains(m)) {
            errors.not_supported(&at, m, &known);
        }
        if let Some(n) = spec["nodeAllocatableUpdatePeriodSeconds"].as_i64().filter(|n| *n < 10) {
            let at = path.child("nodeAllocatableUpdatePeriodSeconds");
            errors.invalid(&at, n, "must be greater than or equal to 10 seconds");
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        self.validate(new, errors);
        let attach = &new["spec"]["attachRequired"];
        if *attach != old["spec"]["attachRequired"] {
            errors.invalid(&path.child("attachedRequired"), attach.clone(), crate::kinds::check::IMMUTABLE);
        }
        immutable(&new["spec"], &old["spec"], "volumeLifecycleModes", &path, errors);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        let spec = &new["spec"];
        if old.is_some_and(|o| o["spec"]["tokenRequests"] == spec["tokenRequests"]) {
            return;
        }
        if !list(spec, "tokenRequests").is_empty() && !given(spec, "serviceAccountTokenInSecrets") {
            out.push("spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes".into());
        }
    }
}

fn tokens(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let mut seen = vec![];
    for (i, t) in list(spec, "tokenRequests").iter().enumerate() {
        let (at, audience) = (path.index(i), text(t, "audience"));
        if seen.contains(&audience) {
            errors.duplicate(&at.child("audience"), audience);
            continue;
        }
        seen.push(audience);
        let Some(n) = t["expirationSeconds"].as_i64() else { continue };
        let at = at.child("expirationSeconds");
        if n < 600 {
            errors.invalid(&at, n, "may not specify a duration less than 10 minutes");
        }
        if n > 1 << 32 {
            errors.invalid(&at, n, "may not specify a duration larger than 2^32 seconds");
        }
    }
}

/// Rules of CSINodes.
pub(in crate::kinds) struct Node;

impl Strategy for Node {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits {
            returns_deleted: true,
            status: true,
            status_keeps_meta: true,
            unconditional_update: false,
            ..Traits::DEFAULT
        };
        &T
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        let all = path.child("drivers");
        let mut seen = vec![];
        for (i, d) in list(&obj["spec"], "drivers").iter().enumerate() {
            let (at, name) = (all.index(i), text(d, "name"));
            driver_name(name, &at.child("name"), errors);
            let (id, here) = (text(d, "nodeID"), at.child("nodeID"));
            if id.is_empty() {
                errors.required(&here, "");
            } else if id.len() > 192 {
                errors.invalid(&here, id, "must be 192 characters or less");
            }
            not_negative(&d["allocatable"], &["count"], &at.child("allocatable"), errors);
            let mut keys = vec![];
            for k in list(d, "topologyKeys").iter().filter_map(Value::as_str) {
                let here = at.child("topologyKeys");
                if keys.contains(&k) {
                    errors.duplicate(&here, k);
                }
                keys.push(k);
                complain(&here, k, names::is_qualified_name(k), errors);
            }
            if seen.contains(&name) {
                errors.duplicate(&at.child("name"), name);
            }
            seen.push(name);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        let all = path.child("drivers");
        for (i, o) in list(&old["spec"], "drivers").iter().enumerate() {
            let now = list(&new["spec"], "drivers").iter().find(|n| n["name"] == o["name"]);
            if let Some(n) = now.filter(|n| *n != o) {
                errors.invalid(&all.index(i), n.clone(), crate::kinds::check::IMMUTABLE);
            }
        }
        self.validate(new, errors);
    }
}

/// Rules of CSIStorageCapacities.
pub(in crate::kinds) struct Capacity;

impl Strategy for Capacity {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { unconditional_update: false, ..Traits::DEFAULT };
        &T
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let root = Path::new("");
        if given(obj, "nodeTopology") {
            label_selector(&obj["nodeTopology"], &root.child("nodeTopology"), errors);
        }
        let class = text(obj, "storageClassName");
        complain(&root.child("storageClassName"), class, names::is_dns1123_subdomain(class), errors);
        for key in ["capacity", "maximumVolumeSize"] {
            quantity_not_negative(&obj[key], &root.child(key), errors);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
        for key in ["nodeTopology", "storageClassName"] {
            immutable(new, old, key, &Path::new(""), errors);
        }
    }
}
