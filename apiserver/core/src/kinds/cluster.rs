//! Kinds of the cluster as such: APIService, RuntimeClass and StorageVersionMigration.

use serde_json::Value;

use super::check::{IMMUTABLE, complain, given, immutable, list, text};
use super::defaults::{object, set};
use super::{Strategy, Traits};
use crate::invalid::{Errors, quote_str};
use crate::meta::{self, NameRule};
use crate::names;
use crate::path::Path;

/// Rules of APIServices.
pub(super) struct ApiService;

impl Strategy for ApiService {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits {
            name: NameRule::PathSegment,
            status: true,
            status_keeps_meta: true,
            unconditional_update: false,
            ..Traits::DEFAULT
        };
        &T
    }

    fn default(&self, obj: &mut Value) {
        if let Some(s) = obj.get_mut("spec").and_then(|s| object(s, "service")) {
            set(s, "port", 443);
        }
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (spec, path) = (&obj["spec"], Path::new("spec"));
        let (group, version, name) = (text(spec, "group"), text(spec, "version"), meta::name(obj));
        let wanted = format!("{version}.{group}");
        if name != wanted {
            let m = Path::new("metadata");
            let why = format!("must be `spec.version+\".\"+spec.group`: {}", quote_str(&wanted));
            errors.invalid(&m.child("name"), name, why);
        }
        if group.is_empty() {
            if version != "v1" {
                let why = "only v1 may have an empty group and it better be legacy kube";
                errors.required(&path.child("group"), why);
            }
        } else {
            complain(&path.child("group"), group, names::is_dns1123_subdomain(group), errors);
        }
        complain(&path.child("version"), version, names::is_dns1035_label(version), errors);
        for (key, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
            let n = spec[key].as_i64().unwrap_or(0);
            if !(1..=max).contains(&n) {
                errors.invalid(&path.child(key), n, format!("must be positive and less than {max}"));
            }
        }
        let (bundle, insecure) = (text(spec, "caBundle"), spec["insecureSkipTLSVerify"] == true);
        let at = path.child("insecureSkipTLSVerify");
        if !given(spec, "service") {
            if !bundle.is_empty() {
                let shown = format!("{} bytes", bundle.len() / 4 * 3);
                errors.invalid(&path.child("caBundle"), shown, "local APIServices may not have a caBundle");
            }
            if insecure {
                errors.invalid(&at, true, "local APIServices may not have insecureSkipTLSVerify");
            }
            return;
        }
        let service = path.child("service");
        for key in ["namespace", "name"] {
            if text(&spec["service"], key).is_empty() {
                errors.required(&service.child(key), "");
            }
        }
        if let Some(n) = spec["service"]["port"].as_i64() {
            for why in names::is_port(n) {
                errors.invalid(&service.child("port"), n, format!("port is not valid: {why}"));
            }
        }
        if insecure && !bundle.is_empty() {
            errors.invalid(&at, true, "may not be true if caBundle is present");
        }
    }
}

/// Rules of RuntimeClasses.
pub(super) struct RuntimeClass;

impl Strategy for RuntimeClass {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { create_on_update: true, unconditional_update: false, ..Traits::DEFAULT };
        &T
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let root = Path::new("");
        let handler = text(obj, "handler");
        complain(&root.child("handler"), handler, names::is_dns1123_label(handler), errors);
        if given(obj, "overhead") {
            super::pod::validate_overhead(&obj["overhead"]["podFixed"], &root.child("overhead.podFixed"), errors);
        }
        let scheduling = root.child("scheduling");
        let selector = obj["scheduling"]["nodeSelector"].as_object();
        names::validate_labels(selector, &scheduling.child("nodeSelector"), errors);
        super::pod::validate_tolerations(&obj["scheduling"], &scheduling.child("tolerations"), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "handler", &Path::new(""), errors);
    }
}

/// Rules of StorageVersionMigrations.
pub(super) struct Migration;

impl Strategy for Migration {
    fn traits(&self) -> &Traits {
        const T: Traits =
            Traits { status: true, status_keeps_meta: true, unconditional_update: false, ..Traits::DEFAULT };
        &T
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (resource, path) = (&obj["spec"]["resource"], Path::new("spec"));
        let path = path.child("resource");
        let joined = |why: Vec<String>| (!why.is_empty()).then(|| why.join(","));
        let (plural, group) = (text(resource, "resource"), text(resource, "group"));
        if plural.is_empty() {
            errors.required(&path.child("resource"), "resource is required to be set");
        } else if let Some(why) = joined(names::is_dns1035_label(plural)) {
            errors.invalid(&path.child("resource"), plural, why);
        }
        if let Some(why) = joined(names::is_dns1123_subdomain(group)).filter(|_| !group.is_empty()) {
            errors.invalid(&path.child("group"), group, why);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
        if new["spec"] != old["spec"] {
            errors.invalid(&"spec", new["spec"].clone(), IMMUTABLE);
        }
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let (status, was) = (&new["status"], &old["status"]);
        let path = Path::new("status");
        let (version, old_version) = (text(status, "resourceVersion"), text(was, "resourceVersion"));
        if !old_version.is_empty() && old_version != version {
            errors.invalid(&path.child("resourceVersion"), version, IMMUTABLE);
        }
        let met = |status: &Value, kind: &str| {
            list(status, "conditions").iter().any(|c| c["type"] == kind && c["status"] == "True")
        };
        let conditions = path.child("conditions");
        let mut refuse = |why: &str| errors.invalid(&conditions, status["conditions"].clone(), why);
        if met(status, "Succeeded") && met(status, "Failed") {
            refuse("Both success and failed conditions cannot be true at the same time");
        }
        for (kind, name) in [("Succeeded", "Success"), ("Failed", "Failed")] {
            if met(was, kind) && !met(status, kind) {
                refuse(&format!("{name} condition cannot be set to false once it is true"));
            }
        }
    }
}
