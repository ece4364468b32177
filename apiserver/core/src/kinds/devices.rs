//! Kinds of dynamic resource allocation: ResourceClaim, ResourceClaimTemplate, DeviceClass, ResourceSlice.
//!
//! CEL expressions are taken as they are. Upstream looks at some fields after all others (those whose rules it generates
//! from its types); `last` collects these.

use serde_json::Value;

use super::check::{complain, given, immutable, list, one_of, text};
use super::{Strategy, Traits, carry};
use crate::invalid::Errors;
use crate::meta;
use crate::names;
use crate::path::Path;

const REQUESTS_MAX: usize = 32;
const NAME: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

/// Fills in how many devices a request wants.
fn default_spec(spec: &mut Value) {
    let fill = |r: &mut Value| {
        if !r.is_object() {
            return;
        }
        if text(r, "allocationMode").is_empty() {
            r["allocationMode"] = "ExactCount".into();
        }
        if r["allocationMode"] == "ExactCount" && r["count"].as_i64().unwrap_or(0) == 0 {
            r["count"] = 1.into();
        }
        for t in r.get_mut("tolerations").and_then(Value::as_array_mut).into_iter().flatten() {
            if text(t, "operator").is_empty() {
                t["operator"] = "Equal".into();
            }
        }
    };
    let requests = spec.get_mut("devices").and_then(|d| d.get_mut("requests")).and_then(Value::as_array_mut);
    for r in requests.into_iter().flatten() {
        if let Some(e) = r.get_mut("exactly") {
            fill(e);
        }
        for s in r.get_mut("firstAvailable").and_then(Value::as_array_mut).into_iter().flatten() {
            fill(s);
        }
    }
}

/// Rules of ResourceClaims.
pub(super) struct Claim;

impl Strategy for Claim {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { returns_deleted: true, status: true, status_keeps_meta: true, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        if let Some(s) = obj.get_mut("spec") {
            default_spec(s);
        }
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        validate_spec(&obj["spec"], &Path::new("spec"), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "spec", &Path::new(""), errors);
    }
}

/// Rules of ResourceClaimTemplates.
pub(super) struct ClaimTemplate;

impl Strategy for ClaimTemplate {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { returns_deleted: true, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        if let Some(s) = obj.get_mut("spec").and_then(|s| s.get_mut("spec")) {
            default_spec(s);
        }
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        validate_spec(&obj["spec"]["spec"], &Path::new("spec.spec"), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "spec", &Path::new(""), errors);
    }
}

/// Rules of DeviceClasses.
pub(super) struct Class;

impl Strategy for Class {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { returns_deleted: true, generation: true, ..Traits::DEFAULT };
        &T
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        selectors(&obj["spec"], &path, errors);
        let mut last = Errors::new();
        let at = path.child("config");
        for (i, c) in list(&obj["spec"], "config").iter().enumerate() {
            opaque(c, &at.index(i), errors, &mut last);
        }
        errors.0.append(&mut last.0);
    }
}

/// Rules of ResourceSlices.
pub(super) struct Slice;

impl Strategy for Slice {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { returns_deleted: true, generation: true, ..Traits::DEFAULT };
        &T
    }

    fn fields(&self) -> &'static [&'static str] {
        &["spec.nodeName", "spec.driver"]
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (spec, path) = (&obj["spec"], Path::new("spec"));
        let driver = text(spec, "driver");
        if driver.is_empty() {
            errors.required(&path.child("driver"), "");
        } else {
            complain(&path.child("driver"), driver, names::is_dns1123_subdomain(&driver.to_lowercase()), errors);
        }
        let pool = path.child("pool");
        if text(&spec["pool"], "name").is_empty() {
            errors.required(&pool.child("name"), "");
        }
        let counted = spec["pool"]["resourceSliceCount"].as_i64().unwrap_or(0);
        if counted <= 0 {
            errors.invalid(&pool.child("resourceSliceCount"), counted, "must be greater than zero");
        }
        places(spec, &path, errors);
        let all = path.child("devices");
        let mut seen = vec![];
        for (i, d) in list(spec, "devices").iter().enumerate() {
            let (at, name) = (all.index(i), text(d, "name"));
            if name.is_empty() {
                errors.required(&at.child("name"), "");
            } else {
                complain(&at.child("name"), name, names::is_dns1123_label(name), errors);
            }
            if seen.contains(&name) {
                errors.duplicate(&at.child("name"), name);
            }
            seen.push(name);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
        let path = Path::new("spec");
        for key in ["nodeName", "driver"] {
            immutable(&new["spec"], &old["spec"], key, &path, errors);
        }
        immutable(&new["spec"]["pool"], &old["spec"]["pool"], "name", &path.child("pool"), errors);
    }
}

/// Rules of DeviceTaintRules.
pub(super) struct TaintRule;

impl Strategy for TaintRule {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits {
            generation: true,
            status: true,
            status_keeps_meta: true,
            unconditional_update: false,
            ..Traits::DEFAULT
        };
        &T
    }

    /// A taint is counted from when it came.
    fn default(&self, obj: &mut Value) {
        let Some(taint) = obj["spec"]["taint"].as_object_mut() else { return };
        if taint.get("timeAdded").is_none_or(Value::is_null) {
            taint.insert("timeAdded".into(), now());
        }
    }

    /// Another effect counts anew, unless the client says since when.
    fn prepare_update(&self, new: &mut Value, old: &Value) {
        let (was, is) = (&old["spec"]["taint"], &new["spec"]["taint"]);
        if was["effect"] != is["effect"] && was["timeAdded"] == is["timeAdded"] && is.is_object() {
            new["spec"]["taint"]["timeAdded"] = now();
        }
        carry(new, old, "status");
        let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let changed = self.desired_changed(new, old);
        meta::meta_mut(new).insert("generation".into(), (before + i64::from(changed)).into());
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        taint_rule(&obj["spec"], &Value::Null, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        taint_rule(&new["spec"], &old["spec"], errors);
    }
}

fn now() -> Value {
    crate::time::format(jiff::Timestamp::now()).into()
}

fn taint_rule(spec: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let (selector, at) = (&spec["deviceSelector"], path.child("deviceSelector"));
    if let Some(driver) = selector["driver"].as_str() {
        let at = at.child("driver");
        match driver {
            "" => errors.required(&at, ""),
            _ => complain(&at, driver, names::is_dns1123_subdomain(&driver.to_lowercase()), errors),
        }
    }
    if let Some(pool) = selector["pool"].as_str() {
        let at = at.child("pool");
        if pool.is_empty() {
            errors.required(&at, "");
        }
        for part in pool.split('/').filter(|_| !pool.is_empty()) {
            complain(&at, part, names::is_dns1123_subdomain(part), errors);
        }
    }
    if let Some(device) = selector["device"].as_str() {
        let at = at.child("device");
        match device {
            "" => errors.required(&at, ""),
            _ => complain(&at, device, names::is_dns1123_label(device), errors),
        }
    }
    let (taint, at) = (&spec["taint"], path.child("taint"));
    complain(&at.child("key"), text(taint, "key"), names::is_qualified_name(text(taint, "key")), errors);
    if given(taint, "value") {
        complain(&at.child("value"), text(taint, "value"), names::is_label_value(text(taint, "value")), errors);
    }
    let effect = text(taint, "effect");
    if effect != text(&old["taint"], "effect") || old.is_null() {
        const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];
        match effect {
            "" => errors.generated(|e| e.required(&at.child("effect"), "")),
            _ if EFFECTS.contains(&effect) => {}
            other => errors.generated(|e| e.not_supported(&at.child("effect"), other, EFFECTS)),
        }
    }
}

fn validate_spec(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let devices = path.child("devices");
    let mut last = Errors::new();
    let d = &spec["devices"];
    let all = devices.child("requests");
    let requests = list(d, "requests");
    if requests.len() > REQUESTS_MAX {
        errors.too_many(&all, requests.len(), REQUESTS_MAX);
    }
    let mut known: Vec<String> = vec![];
    let mut seen: Vec<&str> = vec![];
    for (i, r) in requests.iter().enumerate() {
        let at = all.index(i);
        request(r, &at, errors, &mut last);
        let name = text(r, "name");
        if seen.contains(&name) {
            errors.duplicate_raw(&at, shown(r), "");
        }
        seen.push(name);
        known.push(name.to_owned());
        known.extend(list(r, "firstAvailable").iter().map(|s| format!("{name}/{}", text(s, "name"))));
    }
    let all = devices.child("constraints");
    for (i, c) in list(d, "constraints").iter().enumerate() {
        constraint(c, &known, &all.index(i), errors, &mut last);
    }
    let all = devices.child("config");
    for (i, c) in list(d, "config").iter().enumerate() {
        let at = all.index(i);
        references(c, &known, &at, errors, &mut last);
        opaque(c, &at, errors, &mut last);
    }
    errors.0.append(&mut last.0);
}

/// Where a slice's devices can be reached from: said in one way of four.
fn places(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let mut set = vec![];
    match spec["nodeName"].as_str() {
        Some("") => {
            errors.invalid(&path.child("nodeName"), "", "must be either unset or set to a non-empty string");
        }
        Some(_) => set.push("`nodeName`"),
        None => {}
    }
    if given(spec, "nodeSelector") {
        set.push("`nodeSelector`");
    }
    for (key, shown) in [("allNodes", "`allNodes`"), ("perDeviceNodeSelection", "`perDeviceNodeSelection`")] {
        match spec[key].as_bool() {
            Some(false) => errors.invalid(&path.child(key), false, "must be either unset or set to true"),
            Some(true) => set.push(shown),
            None => {}
        }
    }
    match set.len() {
        0 => errors.required(path, ONE),
        1 => {}
        _ => errors.invalid(path, format!("{{{}}}", set.join(", ")), format!("{ONE}, but multiple fields are set")),
    }
}

/// A wish for devices as upstream's type prints.
fn flat(v: &Value) -> String {
    const KEYS: &[&str] =
        &["name", "deviceClassName", "selectors", "allocationMode", "count", "adminAccess", "tolerations", "capacity"];
    let parts: Vec<String> = KEYS.iter().filter(|k| given(v, k)).map(|k| format!("\"{k}\":{}", v[*k])).collect();
    format!("{{{}}}", parts.join(","))
}

/// A request as upstream's type prints.
fn shown(r: &Value) -> String {
    let mut parts = vec![format!("\"name\":{}", r["name"])];
    if given(r, "exactly") {
        parts.push(format!("\"exactly\":{}", flat(&r["exactly"])));
    }
    let first = list(r, "firstAvailable");
    if !first.is_empty() {
        parts.push(format!("\"firstAvailable\":[{}]", first.iter().map(flat).collect::<Vec<_>>().join(",")));
    }
    format!("{{{}}}", parts.join(","))
}

fn name(r: &Value, path: &Path<'_>, errors: &mut Errors) {
    let n = text(r, "name");
    complain(&path.child("name"), n, names::is_dns1123_label(n), errors);
}

fn request(r: &Value, path: &Path<'_>, errors: &mut Errors, last: &mut Errors) {
    const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
    name(r, path, errors);
    let subs = list(r, "firstAvailable");
    match (given(r, "exactly"), !subs.is_empty()) {
        (true, true) => errors.invalid(path, Value::Null, format!("{ONE}, but multiple fields are set")),
        (false, false) => errors.required(path, ONE),
        (true, false) => wish(&r["exactly"], &path.child("exactly"), errors, last),
        (false, true) => {
            let all = path.child("firstAvailable");
            let mut seen = vec![];
            for (i, s) in subs.iter().enumerate() {
                let at = all.index(i);
                name(s, &at, errors);
                wish(s, &at, errors, last);
                if seen.contains(&text(s, "name")) {
                    errors.duplicate_raw(&at, flat(s), "");
                }
                seen.push(text(s, "name"));
            }
        }
    }
}

/// Which devices, and how many.
fn wish(r: &Value, path: &Path<'_>, errors: &mut Errors, last: &mut Errors) {
    let class = text(r, "deviceClassName");
    if class.is_empty() {
        errors.required(&path.child("deviceClassName"), "");
    } else {
        complain(&path.child("deviceClassName"), class, names::is_dns1123_subdomain(class), errors);
    }
    selectors(r, path, errors);
    let (at, count) = (path.child("count"), r["count"].as_i64().unwrap_or(0));
    match text(r, "allocationMode") {
        "All" if count != 0 => errors.invalid(&at, count, "must not be specified when allocationMode is 'All'"),
        "ExactCount" if count <= 0 => errors.invalid(&at, count, "must be greater than zero"),
        _ => {}
    }
    one_of(r, "allocationMode", &["All", "ExactCount"], path, last);
    let all = path.child("tolerations");
    for (i, t) in list(r, "tolerations").iter().enumerate() {
        let at = all.index(i);
        let key = text(t, "key");
        if !key.is_empty() {
            complain(&at.child("key"), key, names::is_qualified_name(key), errors);
        }
        match text(t, "operator") {
            "Exists" => {
                if !text(t, "value").is_empty() {
                    errors.invalid(&at.child("value"), text(t, "value"), "must be empty for operator `Exists`");
                }
            }
            "Equal" => complain(&at.child("value"), text(t, "value"), names::is_label_value(text(t, "value")), errors),
            "" => errors.required(&at.child("operator"), ""),
            other => errors.not_supported(&at.child("operator"), other, &["Equal", "Exists"]),
        }
        if !text(t, "effect").is_empty() {
            one_of(t, "effect", &["NoExecute", "NoSchedule", "None"], &at, errors);
        }
    }
}

fn selectors(r: &Value, path: &Path<'_>, errors: &mut Errors) {
    let all = path.child("selectors");
    for (i, s) in list(r, "selectors").iter().enumerate() {
        let at = all.index(i);
        let cel = at.child("cel");
        if !given(s, "cel") {
            errors.required(&cel, "");
        } else if text(&s["cel"], "expression").is_empty() {
            errors.required(&cel.child("expression"), "");
        }
    }
}

fn references(c: &Value, known: &[String], path: &Path<'_>, errors: &mut Errors, last: &mut Errors) {
    let all = path.child("requests");
    let mut seen = vec![];
    for (i, r) in list(c, "requests").iter().filter_map(Value::as_str).enumerate() {
        let at = all.index(i);
        if !known.iter().any(|k| k == r) {
            errors.invalid(&at, r, NAME);
        }
        if seen.contains(&r) {
            last.duplicate(&at, r);
        }
        seen.push(r);
    }
}

fn constraint(c: &Value, known: &[String], path: &Path<'_>, errors: &mut Errors, last: &mut Errors) {
    references(c, known, path, errors, last);
    let keys = ["matchAttribute", "distinctAttribute"];
    let set: Vec<&&str> = keys.iter().filter(|k| given(c, k)).collect();
    if set.len() != 1 {
        let why = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
        errors.required(path, why);
    }
    for key in set {
        let (at, name) = (path.child(key), text(c, key));
        match name.split_once('/') {
            None => last.invalid(&at, name, "a fully qualified name must be a domain and a name separated by a slash"),
            Some((domain, _)) => complain(&at, domain, names::is_dns1123_subdomain(domain), last),
        }
    }
}

fn opaque(c: &Value, path: &Path<'_>, errors: &mut Errors, last: &mut Errors) {
    const DRIVER: &str = "an RFC 1123 subdomain must consist of alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'Example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    let at = path.child("opaque");
    if !given(c, "opaque") {
        errors.required(&at, "");
        return;
    }
    let driver = text(&c["opaque"], "driver");
    if driver.is_empty() {
        last.required(&at.child("driver"), "");
    } else {
        if driver.len() > 63 {
            last.too_long(&at.child("driver"), 63);
        }
        // Drivers may be written with capital letters.
        if !names::is_dns1123_subdomain(&driver.to_lowercase()).is_empty() {
            last.invalid(&at.child("driver"), driver, DRIVER);
        }
    }
    if !given(&c["opaque"], "parameters") {
        errors.required(&at.child("parameters"), "");
    }
}
