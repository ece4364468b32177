//! Environment of a container, and the selectors of fields it shares with downward API volumes.

use serde_json::Value;

use super::{complain, given, list, need, text};
use crate::invalid::Errors;
use crate::names;
use crate::path::Path;
use crate::quantity::Quantity;

/// Fields an environment variable may show.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields whose names the API knows at all; others cannot even be converted.
const KNOWN_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.hostNetwork",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.nominatedNodeName",
    "status.phase",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const SOURCES: &[&str] = &["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
const ONE_ONLY: &str = "may not have more than one field specified at a time";

/// `env` at `path`.
pub(super) fn validate(container: &Value, path: &Path<'_>, errors: &mut Errors) {
    for (i, e) in list(container, "env").iter().enumerate() {
        let at = path.index(i);
        if need(e, "name", &at, errors) {
            let name = text(e, "name");
            complain(&at.child("name"), name, names::is_env_var_name(name), errors);
        }
        if given(e, "valueFrom") {
            value_from(e, &at.child("valueFrom"), errors);
        }
    }
}

fn value_from(env: &Value, at: &Path<'_>, errors: &mut Errors) {
    let from = &env["valueFrom"];
    let mut count = 0;
    for key in SOURCES {
        if !given(from, key) {
            continue;
        }
        count += 1;
        let (source, here) = (&from[*key], at.child(key));
        match *key {
            "fieldRef" => field_ref(source, ENV_FIELDS, &here, errors),
            "resourceFieldRef" => resource_ref(source, false, &here, errors),
            "fileKeyRef" => {
                need(source, "volumeName", &here, errors);
                need(source, "path", &here, errors);
                need(source, "key", &here, errors);
            }
            _ => {
                let name = text(source, "name");
                complain(&here.child("name"), name, names::is_dns1123_subdomain(name), errors);
                if need(source, "key", &here, errors) {
                    let key = text(source, "key");
                    complain(&here.child("key"), key, names::is_config_key(key), errors);
                }
            }
        }
    }
    if count == 0 {
        errors.invalid(
            at,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        );
    }
    if !text(env, "value").is_empty() {
        if count != 0 {
            errors.invalid(at, "", "may not be specified when `value` is not empty");
        }
    } else if count > 1 {
        errors.invalid(at, "", ONE_ONLY);
    }
}

/// `envFrom` at `path`.
pub(super) fn validate_from(container: &Value, path: &Path<'_>, errors: &mut Errors) {
    for (i, e) in list(container, "envFrom").iter().enumerate() {
        let at = path.index(i);
        let prefix = text(e, "prefix");
        if !prefix.is_empty() {
            complain(&at.child("prefix"), prefix, names::is_env_var_name(prefix), errors);
        }
        let mut count = 0;
        for key in ["configMapRef", "secretRef"] {
            if given(e, key) {
                count += 1;
                let name = text(&e[key], "name");
                let here = at.child(key);
                if name.is_empty() {
                    errors.required(&here.child("name"), "");
                } else {
                    // As the beginning of a name: it may end in a dash.
                    let whole = name.strip_suffix('-').filter(|w| !w.is_empty()).unwrap_or(name);
                    let why = names::is_dns1123_subdomain(whole);
                    complain(&here.child("name"), name, why, errors);
                }
            }
        }
        match count {
            0 => errors.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(path, "", ONE_ONLY),
        }
    }
}

/// A reference to a field of the pod; `allowed` are the whole fields that may be named here.
pub(super) fn field_ref(r: &Value, allowed: &[&str], at: &Path<'_>, errors: &mut Errors) {
    if !need(r, "apiVersion", at, errors) || !need(r, "fieldPath", at, errors) {
        return;
    }
    let field = text(r, "fieldPath");
    let here = at.child("fieldPath");
    if let Some((base, key)) = field.strip_suffix("']").and_then(|f| f.split_once("['")) {
        match base {
            "metadata.annotations" => complain(at, key, names::is_qualified_name(&key.to_lowercase()), errors),
            "metadata.labels" => complain(at, key, names::is_qualified_name(key), errors),
            _ => errors.invalid(at, base, "does not support subscript"),
        }
    } else if !KNOWN_FIELDS.contains(&field) {
        errors.invalid(&here, field, format!("error converting fieldPath: field label not supported: {field}"));
    } else if !allowed.contains(&field) {
        errors.not_supported(&here, field, allowed);
    }
}

/// A reference to a resource of a container.
pub(super) fn resource_ref(r: &Value, of_volume: bool, at: &Path<'_>, errors: &mut Errors) {
    let resource = text(r, "resource");
    if of_volume && text(r, "containerName").is_empty() {
        errors.required(&at.child("containerName"), "");
        return;
    }
    if !need(r, "resource", at, errors) {
        return;
    }
    let huge = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if !RESOURCES.contains(&resource) && !huge {
        errors.not_supported(&at.child("resource"), resource, RESOURCES);
        return;
    }
    let Some(divisor) = r["divisor"].as_str().and_then(|d| Quantity::parse(d).ok()).filter(|d| !d.is_zero()) else {
        return;
    };
    let sort = resource.split_once('.').map_or("", |(_, sort)| sort);
    let allowed: &[&str] = if sort == "cpu" {
        &["1m", "1"]
    } else {
        &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"]
    };
    let shown = divisor.to_string();
    if !allowed.contains(&shown.as_str()) {
        let sort = match sort {
            _ if huge => "hugepages",
            "ephemeral-storage" => "local ephemeral storage",
            other => other,
        };
        let listed = if sort == "cpu" { "1m and 1".to_owned() } else { allowed.join(", ") };
        let why = format!("only divisor's values {listed} are supported with the {sort} resource");
        errors.invalid(&at.child("divisor"), resource, why);
    }
}
