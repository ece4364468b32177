//! Security contexts of pods and containers, user namespaces, AppArmor annotations.

use serde_json::{Value, json};

use super::{ID_RANGE, complain, given, list, need, one_of, text};
use crate::invalid::{Errors, quote_str};
use crate::names;
use crate::path::Path;

/// Prefix of the annotation that names a container's AppArmor profile.
/// Every sort of container, in the order in which upstream visits them.
const SORTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const HOST_USERS: &str = "when `hostUsers` is false";

fn ids(v: &Value, keys: &[&str], path: &Path<'_>, errors: &mut Errors) {
    for key in keys {
        if let Some(n) = v[*key].as_i64().filter(|n| !(0..=i64::from(i32::MAX)).contains(n)) {
            errors.invalid(&path.child(key), n, ID_RANGE);
        }
    }
}

/// The security context of a pod, and the namespaces it shares.
pub(super) fn validate_pod_context(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let s = &spec["securityContext"];
    let at = path.child("securityContext");
    ids(s, &["fsGroup", "runAsUser", "runAsGroup"], &at, errors);
    let groups = at.child("supplementalGroups");
    for (i, g) in list(s, "supplementalGroups").iter().enumerate() {
        if let Some(n) = g.as_i64().filter(|n| !(0..=i64::from(i32::MAX)).contains(n)) {
            errors.invalid(&groups.index(i), n, ID_RANGE);
        }
    }
    if spec["shareProcessNamespace"] == true && spec["hostPID"] == true {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&path.child("shareProcessNamespace"), true, why);
    }
    let sysctls = at.child("sysctls");
    let mut seen = vec![];
    for (i, c) in list(s, "sysctls").iter().enumerate() {
        let (here, name) = (sysctls.index(i), text(c, "name"));
        if need(c, "name", &here, errors) {
            if !is_sysctl(name) {
                errors.invalid(&here.child("name"), name, "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$");
            } else if seen.contains(&name) {
                errors.duplicate(&here.child("name"), name);
            }
        }
        seen.push(name);
    }
    one_of(s, "fsGroupChangePolicy", &["Always", "OnRootMismatch"], &at, errors);
    profile(&s["seccompProfile"], "seccomp", &at.child("seccompProfile"), errors);
    windows(&s["windowsOptions"], &at.child("windowsOptions"), errors);
    profile(&s["appArmorProfile"], "AppArmor", &at.child("appArmorProfile"), errors);
    one_of(s, "supplementalGroupsPolicy", &["Merge", "Strict"], &at, errors);
    one_of(s, "seLinuxChangePolicy", &["MountOption", "Recursive"], &at, errors);
}

fn is_sysctl(s: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    s.len() <= 253
        && s.split(['.', '/']).all(|part| {
            let b = part.as_bytes();
            matches!((b.first(), b.last()), (Some(&a), Some(&z)) if inner(a) && inner(z))
                && b.iter().all(|&c| inner(c) || c == b'-' || c == b'_')
        })
}

/// A seccomp or AppArmor profile; `sort` is how messages name it.
fn profile(p: &Value, sort: &str, at: &Path<'_>, errors: &mut Errors) {
    if p.is_null() {
        return;
    }
    let local = at.child("localhostProfile");
    let file = text(p, "localhostProfile");
    match text(p, "type") {
        "Localhost" => {
            if file.trim().is_empty() {
                errors.required(&local, &format!("must be set when {sort} type is Localhost"));
            } else if sort == "seccomp" {
                super::volumes::descending(file, &local, errors);
            } else if file.trim() != file {
                errors.invalid(&local, file, "must not be padded with whitespace");
            } else if file.len() > 4095 {
                errors.too_long(&local, 4095);
            }
        }
        "" => {
            let field = if sort == "seccomp" { "seccompProfile" } else { "appArmorProfile" };
            errors.required(&at.child("type"), &format!("type is required when {field} is set"));
        }
        kind => {
            if given(p, "localhostProfile") {
                errors.invalid(&local, file, format!("can only be set when {sort} type is Localhost"));
            }
            match kind {
                "RuntimeDefault" | "Unconfined" => {}
                other => {
                    errors.not_supported(&at.child("type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]);
                }
            }
        }
    }
}

fn windows(w: &Value, at: &Path<'_>, errors: &mut Errors) {
    if w.is_null() {
        return;
    }
    if given(w, "gmsaCredentialSpecName") {
        let name = text(w, "gmsaCredentialSpecName");
        complain(&at.child("gmsaCredentialSpecName"), name, names::is_dns1123_subdomain(name), errors);
    }
    if given(w, "gmsaCredentialSpec") {
        let spec = text(w, "gmsaCredentialSpec");
        let here = at.child("gmsaCredentialSpec");
        if spec.is_empty() {
            errors.invalid(&here, spec, "gmsaCredentialSpec cannot be an empty string");
        } else if spec.len() > 64 * 1024 {
            errors.invalid(&here, spec, "gmsaCredentialSpec size must be under 64 KiB");
        }
    }
    if given(w, "runAsUserName") {
        let name = text(w, "runAsUserName");
        let here = at.child("runAsUserName");
        let parts: Vec<&str> = name.split('\\').collect();
        if name.is_empty() {
            errors.invalid(&here, name, "runAsUserName cannot be an empty string");
        } else if name.chars().any(char::is_control) {
            errors.invalid(&here, name, "runAsUserName cannot contain control characters");
        } else if parts.len() > 2 {
            errors.invalid(&here, name, "runAsUserName cannot contain more than one backslash");
        }
    }
}

/// The security context of a container.
pub(super) fn validate_container(c: &Value, host_users: bool, at: &Path<'_>, errors: &mut Errors) {
    let s = &c["securityContext"];
    if s.is_null() {
        return;
    }
    ids(s, &["runAsUser", "runAsGroup"], at, errors);
    one_of(s, "procMount", &["Default", "Unmasked"], at, errors);
    if host_users && text(s, "procMount") == "Unmasked" {
        errors.invalid(&at.child("procMount"), "Unmasked", "`hostUsers` must be false to use `Unmasked`");
    }
    profile(&s["seccompProfile"], "seccomp", &at.child("seccompProfile"), errors);
    if s["allowPrivilegeEscalation"] == false {
        if s["privileged"] == true {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid_raw(at, s.to_string(), why);
        }
        if list(&s["capabilities"], "add").iter().any(|c| c == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid_raw(at, s.to_string(), why);
        }
    }
    windows(&s["windowsOptions"], &at.child("windowsOptions"), errors);
    profile(&s["appArmorProfile"], "AppArmor", &at.child("appArmorProfile"), errors);
}

/// What a pod in a user namespace of its own may not share.
pub(super) fn validate_host_users(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    if spec["hostUsers"] != false {
        return;
    }
    // Upstream prints two of these with a capital letter.
    for (key, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec[key] == true {
            errors.forbidden(&path.child(shown), HOST_USERS);
        }
    }
    for key in ["containers", "initContainers", "ephemeralContainers"] {
        let at = path.child(key);
        for (i, c) in list(spec, key).iter().enumerate() {
            if !list(c, "volumeDevices").is_empty() {
                errors.forbidden(&at.index(i).child("volumeDevices"), HOST_USERS);
            }
        }
    }
}

/// AppArmor annotations of `obj` (a pod or a template): known containers, known profiles, no contradiction.
pub(super) fn validate_annotations(obj: &Value, at: &Path<'_>, errors: &mut Errors) {
    let spec = &obj["spec"];
    for (key, value) in obj["metadata"]["annotations"].as_object().into_iter().flatten() {
        let Some(name) = key.strip_prefix(APP_ARMOR) else { continue };
        let value = value.as_str().unwrap_or_default();
        if !SORTS.iter().any(|l| list(spec, l).iter().any(|c| text(c, "name") == name)) {
            errors.invalid(&at.key(key), name, "container not found");
        }
        let known = matches!(value, "" | "runtime/default" | "unconfined") || value.starts_with("localhost/");
        if !known {
            let why = format!("invalid AppArmor profile name: {}", quote_str(value));
            errors.invalid(&at.key(key), value, why);
        }
    }
}

/// AppArmor profiles given both as annotation and as field (the container's, else the pod's) say the same. `path` is
/// that of the spec.
pub(in crate::kinds::pod) fn validate_annotated(obj: &Value, path: &Path<'_>, errors: &mut Errors) {
    let spec = &obj["spec"];
    if spec["os"]["name"] == "windows" {
        return;
    }
    for sort in SORTS {
        let at = path.child(sort);
        for (i, c) in list(spec, sort).iter().enumerate() {
            let of =
                |owner: &'_ Value| Some(owner["securityContext"]["appArmorProfile"].clone()).filter(|p| !p.is_null());
            let Some(profile) = of(c).or_else(|| of(spec)) else { continue };
            let note = &obj["metadata"]["annotations"][format!("{APP_ARMOR}{}", text(c, "name")).as_str()];
            let Some(note) = note.as_str() else { continue };
            let one = at.index(i);
            let here = one.child("securityContext.appArmorProfile");
            let kind_agrees = match text(&profile, "type") {
                "Unconfined" => note == "unconfined",
                "RuntimeDefault" => note == "runtime/default",
                "Localhost" => match note.strip_prefix("localhost/") {
                    Some(file) => {
                        if profile["localhostProfile"].as_str() != Some(file) {
                            let why = "apparmor profile in annotation and field must match";
                            errors.forbidden(&here.child("localhostProfile"), why);
                        }
                        true
                    }
                    None => false,
                },
                _ => true,
            };
            if !kind_agrees {
                errors.forbidden(&here.child("type"), "apparmor type in annotation and field must match");
            }
        }
    }
}

/// The profiles that well-formed AppArmor annotations give, by container.
pub(in crate::kinds::pod) fn annotated_profiles(obj: &Value) -> Vec<(String, Value)> {
    let all = obj["metadata"]["annotations"].as_object().into_iter().flatten();
    all.filter_map(|(key, value)| {
        let name = key.strip_prefix(APP_ARMOR)?.to_owned();
        let profile = match value.as_str()? {
            "runtime/default" => json!({"type": "RuntimeDefault"}),
            "unconfined" => json!({"type": "Unconfined"}),
            other => json!({"type": "Localhost", "localhostProfile": other.strip_prefix("localhost/")?}),
        };
        Some((name, profile))
    })
    .collect()
}
