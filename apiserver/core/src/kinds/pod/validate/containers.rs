//! Containers of all three sorts: names, images, ports, and what each sort may not have.

use serde_json::Value;

use super::{Context, complain, env, given, list, need, one_of, probes, resources, security, text, volumes};
use crate::invalid::Errors;
use crate::names;
use crate::path::Path;

/// Checks `containers`, `initContainers` and `ephemeralContainers` of a spec.
pub(super) fn validate(spec: &Value, context: &Context<'_>, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("containers");
    if list(spec, "containers").is_empty() {
        errors.required(&at, "");
    }
    let mut seen = vec![];
    for (i, c) in list(spec, "containers").iter().enumerate() {
        let here = at.index(i);
        common(c, context, &here, errors);
        unique(c, &mut seen, true, &here, errors);
        probes::validate(c, context.grace, &here, errors);
        restart_policy(c, false, &here, errors);
    }
    host_ports(list(spec, "containers"), &at, errors);
    init(spec, context, &mut seen, &path.child("initContainers"), errors);
    ephemeral(spec, context, &path.child("ephemeralContainers"), errors);
}

/// On the host's network, a port of the host is the container's own.
pub(super) fn validate_host_network(spec: &Value, context: &Context<'_>, path: &Path<'_>, errors: &mut Errors) {
    if !context.host_network {
        return;
    }
    let at = path.child("containers");
    for (i, c) in list(spec, "containers").iter().enumerate() {
        host_network_ports(c, &at.index(i).child("ports"), errors);
    }
}

/// Checks only the ephemeral containers of a pod, as their subresource does.
pub(in crate::kinds::pod) fn validate_ephemeral(pod: &Value, errors: &mut Errors) {
    let spec = &pod["spec"];
    let context = Context::new(spec, super::usable_volumes(spec));
    let path = Path::new("spec");
    ephemeral(spec, &context, &path.child("ephemeralContainers"), errors);
}

/// Refuses a name that was seen; whether an absent name counts as one depends on the sort of container.
fn unique<'a>(c: &'a Value, seen: &mut Vec<&'a str>, absent_counts: bool, at: &Path<'_>, errors: &mut Errors) {
    let name = text(c, "name");
    if seen.contains(&name) {
        errors.duplicate(&at.child("name"), name);
    } else if absent_counts || !name.is_empty() {
        seen.push(name);
    }
}

fn restart_policy(c: &Value, init: bool, at: &Path<'_>, errors: &mut Errors) {
    if !given(c, "restartPolicy") {
        return;
    }
    if init {
        one_of(c, "restartPolicy", &["Always", "Never", "OnFailure"], at, errors);
    } else if text(c, "restartPolicy").is_empty() {
        errors.required(&at.child("restartPolicy"), "");
    } else {
        one_of(c, "restartPolicy", &["Always", "Never", "OnFailure"], at, errors);
    }
}

fn init<'a>(spec: &'a Value, context: &Context<'_>, seen: &mut Vec<&'a str>, path: &Path<'_>, errors: &mut Errors) {
    for (i, c) in list(spec, "initContainers").iter().enumerate() {
        let at = path.index(i);
        common(c, context, &at, errors);
        restart_policy(c, true, &at, errors);
        unique(c, seen, false, &at, errors);
        // They run one by one: each is looked at alone.
        host_ports(std::slice::from_ref(c), path, errors);
        // A sidecar runs beside the others and is watched like them.
        if text(c, "restartPolicy") == "Always" {
            probes::validate(c, context.grace, &at, errors);
        } else {
            for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if given(c, key) {
                    let why = "may not be set for init containers without restartPolicy=Always";
                    errors.forbidden(&at.child(key), why);
                }
            }
            let policies = at.child("resizePolicy");
            for (j, p) in list(c, "resizePolicy").iter().enumerate() {
                if text(p, "restartPolicy") == "RestartContainer" {
                    let why = "must not be set to 'RestartContainer' for non-sidecar initContainers";
                    errors.invalid(&policies.index(j).child("restartPolicy"), "RestartContainer", why);
                }
            }
        }
    }
}

fn ephemeral(spec: &Value, context: &Context<'_>, path: &Path<'_>, errors: &mut Errors) {
    let targets: Vec<&str> =
        ["containers", "initContainers"].iter().flat_map(|k| list(spec, k)).map(|c| text(c, "name")).collect();
    let mut seen = targets.clone();
    for (i, c) in list(spec, "ephemeralContainers").iter().enumerate() {
        let at = path.index(i);
        // What is refused as a whole is not looked into.
        let mut rest = c.clone();
        let mut refused = vec![];
        for key in
            ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources", "resizePolicy"]
        {
            let empty = match &c[key] {
                Value::Null => true,
                Value::Array(a) => a.is_empty(),
                // Resources are a struct that is always there; probes count when given at all.
                Value::Object(o) => key == "resources" && o.is_empty(),
                _ => false,
            };
            if !empty {
                refused.push(key);
            }
            // Ports are looked at all the same.
            if let Some(m) = rest.as_object_mut().filter(|_| key != "ports") {
                m.remove(key);
            }
        }
        common(&rest, context, &at, errors);
        untrimmed_image(c, &at, errors);
        unique(c, &mut seen, true, &at, errors);
        let target = text(c, "targetContainerName");
        if !target.is_empty() && !targets.contains(&target) {
            errors.not_found(&at.child("targetContainerName"), target);
        }
        for key in refused {
            errors.forbidden(&at.child(key), "cannot be set for an Ephemeral Container");
        }
        let mounts = at.child("volumeMounts");
        for (j, m) in list(c, "volumeMounts").iter().enumerate() {
            let here = mounts.index(j);
            for key in ["subPath", "subPathExpr"] {
                if !text(m, key).is_empty() {
                    errors.forbidden(&here.child(key), "cannot be set for an Ephemeral Container");
                }
            }
        }
    }
}

fn common(c: &Value, context: &Context<'_>, path: &Path<'_>, errors: &mut Errors) {
    if need(c, "name", path, errors) {
        let name = text(c, "name");
        complain(&path.child("name"), name, names::is_dns1123_label(name), errors);
    }
    need(c, "image", path, errors);
    one_of(c, "terminationMessagePolicy", &["FallbackToLogsOnError", "File"], path, errors);
    ports(c, &path.child("ports"), errors);
    env::validate(c, &path.child("env"), errors);
    env::validate_from(c, &path.child("envFrom"), errors);
    volumes::validate_mounts(c, &context.volumes, &path.child("volumeMounts"), errors);
    volumes::validate_devices(c, &context.volumes, &path.child("volumeDevices"), errors);
    one_of(c, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], path, errors);
    if given(c, "resources") {
        resources::validate(&c["resources"], context, &path.child("resources"), errors);
    }
    resources::validate_resize_policy(c, context.restart_policy, &path.child("resizePolicy"), errors);
    security::validate_container(c, context.host_users, &path.child("securityContext"), errors);
}

/// An image of a pod is named without white space around it; templates were never held to this.
pub(super) fn untrimmed_image(c: &Value, at: &Path<'_>, errors: &mut Errors) {
    let image = text(c, "image");
    if image.trim() != image {
        errors.invalid(&at.child("image"), image, "must not have leading or trailing whitespace");
    }
}

fn ports(c: &Value, path: &Path<'_>, errors: &mut Errors) {
    let mut seen = vec![];
    for (i, p) in list(c, "ports").iter().enumerate() {
        let at = path.index(i);
        let name = text(p, "name");
        if !name.is_empty() {
            let why = names::is_port_name(name);
            if !why.is_empty() {
                complain(&at.child("name"), name, why, errors);
            } else if seen.contains(&name) {
                errors.duplicate(&at.child("name"), name);
            } else {
                seen.push(name);
            }
        }
        match p["containerPort"].as_i64().unwrap_or(0) {
            0 => errors.required(&at.child("containerPort"), ""),
            n => {
                for why in names::is_port(n) {
                    errors.invalid(&at.child("containerPort"), n, why);
                }
            }
        }
        if let Some(n) = p["hostPort"].as_i64().filter(|n| *n != 0) {
            for why in names::is_port(n) {
                errors.invalid(&at.child("hostPort"), n, why);
            }
        }
        if need(p, "protocol", &at, errors) {
            one_of(p, "protocol", &["SCTP", "TCP", "UDP"], &at, errors);
        }
        let ip = text(p, "hostIP");
        if !ip.is_empty()
            && let Some(why) = super::bad_ip(ip)
        {
            errors.invalid(&at.child("hostIP"), ip, why);
        }
    }
}

/// Two containers cannot have the same port of the host.
fn host_ports(containers: &[Value], path: &Path<'_>, errors: &mut Errors) {
    let mut seen = vec![];
    for (i, c) in containers.iter().enumerate() {
        let here = path.index(i);
        let here = here.child("ports");
        for (j, p) in list(c, "ports").iter().enumerate() {
            let Some(port) = p["hostPort"].as_i64().filter(|n| *n != 0) else { continue };
            let key = format!("{}/{}/{port}", text(p, "protocol"), text(p, "hostIP"));
            if seen.contains(&key) {
                errors.duplicate(&here.index(j).child("hostPort"), key);
            } else {
                seen.push(key);
            }
        }
    }
}

fn host_network_ports(c: &Value, path: &Path<'_>, errors: &mut Errors) {
    for (i, p) in list(c, "ports").iter().enumerate() {
        // A template may leave the number open: it is filled in when a pod is made of it.
        let host = p["hostPort"].as_i64().unwrap_or(0);
        if host != 0 && host != p["containerPort"].as_i64().unwrap_or(0) {
            let why = "must match `containerPort` when `hostNetwork` is true";
            errors.invalid(&path.index(i).child("hostPort"), host, why);
        }
    }
}
