//! Validation of pods, pod specs and pod templates.
//!
//! Rules are grouped as a pod is: containers, env, volumes, probes, resources, security, placement. Faults come in
//! upstream's order and words, because clients print them and tests compare them. Works on normalised values: a wrong
//! type was refused before.

mod containers;
mod env;
mod network;
mod placement;
mod probes;
mod resources;
mod security;
mod sources;
#[cfg(test)]
mod tests;
mod volumes;

use serde_json::Value;

use crate::invalid::Errors;
use crate::kinds::check::subdomain_if_given;
use crate::kinds::check::{NOT_NEGATIVE, complain, need, not_found_because, one_of};
use crate::kinds::net::bad_ip;
use crate::names;
use crate::path::Path;

pub(in crate::kinds) use crate::kinds::check::label_selector as validate_label_selector;
pub(super) use crate::kinds::check::{given, list, text};
pub(super) use containers::validate_ephemeral;
pub(in crate::kinds::pod) use placement::select_by_keys;
pub(in crate::kinds) use placement::{validate_node_selector, validate_tolerations};
pub(in crate::kinds) use resources::validate_overhead;
pub(in crate::kinds) use resources::{
    validate_container_name as validate_container_resource, validate_name as validate_resource,
};
pub(super) use security::{annotated_profiles, validate_annotated};
pub(in crate::kinds) use sources::validate as validate_source;
pub(super) use volumes::usable as usable_volumes;

/// Marks the copy that a kubelet makes of a pod it runs from a file.
const MIRROR: &str = "kubernetes.io/config.mirror";
const ID_RANGE: &str = "must be between 0 and 2147483647, inclusive";

/// Checks a Pod.
pub(super) fn validate_pod(obj: &Value, errors: &mut Errors) {
    let root = Path::new("metadata");
    security::validate_annotations(obj, &root.child("annotations"), errors);
    let path = Path::new("spec");
    let spec = &obj["spec"];
    if let Some(mirror) = obj["metadata"]["annotations"][MIRROR].as_str()
        && text(spec, "nodeName").is_empty()
    {
        let at = root.child("annotations");
        errors.invalid(&at.key(MIRROR), mirror, "must set spec.nodeName if mirror pod annotation is set");
    }
    validate_spec(spec, &obj["metadata"], &path, errors);
    // Templates were never held to this.
    for key in ["containers", "initContainers"] {
        let at = path.child(key);
        for (i, c) in list(spec, key).iter().enumerate() {
            containers::untrimmed_image(c, &at.index(i), errors);
        }
    }
}

/// Checks a pod template at `path`.
pub(in crate::kinds) fn validate_template(t: &Value, path: &Path<'_>, errors: &mut Errors) {
    // Upstream's paths: without `metadata`.
    names::validate_labels(t["metadata"]["labels"].as_object(), &path.child("labels"), errors);
    let annotations = path.child("annotations");
    names::validate_annotations(t["metadata"]["annotations"].as_object(), &annotations, errors);
    security::validate_annotations(t, &annotations, errors);
    let spec = path.child("spec");
    // What is made of a template has another name: rules that go by the name are not for it.
    validate_spec(&t["spec"], &Value::Null, &spec, errors);
    security::validate_annotated(t, &spec, errors);
    if !list(&t["spec"], "ephemeralContainers").is_empty() {
        errors.forbidden(&spec.child("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// What containers are checked against.
struct Context<'a> {
    volumes: Vec<&'a Value>,
    claims: Vec<&'a str>,
    grace: i64,
    host_users: bool,
    host_network: bool,
    restart_policy: &'a str,
}

impl<'a> Context<'a> {
    fn new(spec: &'a Value, volumes: Vec<&'a Value>) -> Self {
        Self {
            volumes,
            claims: list(spec, "resourceClaims").iter().map(|c| text(c, "name")).filter(|n| !n.is_empty()).collect(),
            grace: spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(30),
            host_users: spec["hostUsers"] != false,
            host_network: spec["hostNetwork"] == true,
            restart_policy: text(spec, "restartPolicy"),
        }
    }
}

fn validate_spec(spec: &Value, meta: &Value, path: &Path<'_>, errors: &mut Errors) {
    let volumes = volumes::validate(spec, meta, &path.child("volumes"), errors);
    let context = Context::new(spec, volumes);
    resources::validate_pod_claims(spec, &path.child("resourceClaims"), errors);
    containers::validate(spec, &context, path, errors);
    if given(spec, "resources") {
        resources::validate_pod_level(spec, &context, &path.child("resources"), errors);
    }
    containers::validate_host_network(spec, &context, path, errors);
    one_of(spec, "restartPolicy", &["Always", "OnFailure", "Never"], path, errors);
    network::validate_policy(spec, path, errors);
    names::validate_labels(spec["nodeSelector"].as_object(), &path.child("nodeSelector"), errors);
    security::validate_pod_context(spec, path, errors);
    placement::validate_affinity(spec, &path.child("affinity"), errors);
    network::validate_dns(spec, path, errors);
    let gates = path.child("readinessGates");
    for (i, g) in list(spec, "readinessGates").iter().enumerate() {
        let t = text(g, "conditionType");
        complain(&gates.index(i).child("conditionType"), t, names::is_qualified_name(t), errors);
    }
    let gates = path.child("schedulingGates");
    let mut seen = vec![];
    for (i, g) in list(spec, "schedulingGates").iter().enumerate() {
        let (at, name) = (gates.index(i), text(g, "name"));
        complain(&at, name, names::is_qualified_name(name), errors);
        if seen.contains(&name) {
            errors.duplicate(&at, name);
        }
        seen.push(name);
    }
    placement::validate_spread(spec, &path.child("topologySpreadConstraints"), errors);
    security::validate_host_users(spec, path, errors);
    network::validate_host_name_override(spec, path, errors);
    for key in ["serviceAccountName", "nodeName"] {
        subdomain_if_given(spec, key, path, errors);
    }
    if let Some(n) = spec["activeDeadlineSeconds"].as_i64().filter(|n| !(1..=i64::from(i32::MAX)).contains(n)) {
        errors.invalid(&path.child("activeDeadlineSeconds"), n, "must be between 1 and 2147483647, inclusive");
    }
    network::validate_host_names(spec, path, errors);
    placement::validate_tolerations(spec, &path.child("tolerations"), errors);
    network::validate_aliases(spec, &path.child("hostAliases"), errors);
    for key in ["priorityClassName", "runtimeClassName"] {
        subdomain_if_given(spec, key, path, errors);
    }
    one_of(spec, "preemptionPolicy", &["Never", "PreemptLowerPriority"], path, errors);
    resources::validate_overhead(&spec["overhead"], &path.child("overhead"), errors);
    if given(spec, "os") {
        let os = path.child("os");
        match text(&spec["os"], "name") {
            "linux" | "windows" => {}
            "" => errors.required(&os.child("name"), "cannot be empty"),
            other => errors.not_supported(&os.child("name"), other, &["linux", "windows"]),
        }
    }
}

/// Checks what a status update writes.
pub(super) fn validate_status(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    let (n, o) = (&new["status"], &old["status"]);
    let conditions = path.child("conditions");
    for (i, c) in list(n, "conditions").iter().enumerate() {
        let (at, kind) = (conditions.index(i), text(c, "type"));
        natural(c, "observedGeneration", &at, errors);
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            complain(&at.child("Type"), kind, names::is_qualified_name(kind), errors);
        }
    }
    subdomain_if_given(n, "nominatedNodeName", &path, errors);
    natural(n, "observedGeneration", &path, errors);
    if text(n, "qosClass") != text(o, "qosClass") {
        errors.invalid(&path.child("qosClass"), text(n, "qosClass"), "field is immutable");
    }
    restarts(new, old, errors);
    addresses(n, o, "podIP", "podIPs", &path, errors);
    addresses(n, o, "hostIP", "hostIPs", &path, errors);
}

fn natural(v: &Value, key: &str, at: &Path<'_>, errors: &mut Errors) {
    if let Some(g) = v[key].as_i64().filter(|g| *g < 0) {
        errors.invalid(&at.child(key), g, "must be a non-negative integer");
    }
}

/// One address of each family at most, of which the first is told alone, too.
fn addresses(new: &Value, old: &Value, single: &str, many: &str, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child(many);
    let all: Vec<&str> = list(new, many).iter().map(|v| text(v, "ip")).collect();
    let (first, host) = (text(new, single), many == "hostIPs");
    let unequal = all.first().is_some_and(|f| *f != first);
    let not_first = |errors: &mut Errors| {
        let why = format!("must be equal to `{single}`");
        errors.invalid(&at.index(0).child("ip"), all[0], why);
    };
    if host && unequal {
        not_first(errors);
    }
    for (i, ip) in all.iter().enumerate() {
        // What was there before may stay.
        if let Some(why) = bad_ip(ip).filter(|_| !list(old, many).iter().any(|v| text(v, "ip") == *ip)) {
            errors.invalid(&at.index(i), *ip, why);
        }
    }
    let shown = || Value::Array(list(new, many).to_vec()).to_string();
    let known: Vec<bool> = all.iter().map(|a| bad_ip(a).is_none()).collect();
    if let Some(i) = known.iter().position(|k| !k).filter(|_| all.len() > 1) {
        let why = format!("failed to check for dual stack with error:invalid IP[{i}]: {}", all[i]);
        errors.internal(&at, &why);
        errors.invalid_raw(&at, shown(), "may specify no more than one IP for each IP family");
    }
    let six = all.iter().filter(|a| a.contains(':')).count();
    if all.len() > 1 && known.iter().all(|k| *k) && (all.len() > 2 || six != 1) {
        errors.invalid_raw(&at, shown(), "may specify no more than one IP for each IP family");
    }
    if host {
        return;
    }
    if first.is_empty() != all.is_empty() {
        errors.invalid_raw(&at, shown(), "podIP and podIPs must either both be set or both be unset");
    } else if unequal {
        not_first(errors);
    }
}

/// A container that has ended may only run again where its restart policy says so.
fn restarts(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    let policy_of = |name: &str, sort: &str| {
        let own = list(&new["spec"], sort).iter().find(|c| text(c, "name") == name);
        let own = own.map(|c| (text(c, "restartPolicy"), given(c, "restartPolicyRules"))).unwrap_or_default();
        match own {
            (_, true) => "Always",
            ("", _) if sort == "ephemeralContainers" => "Never",
            // An init container is tried again unless the pod is not.
            ("", _) if sort == "initContainers" && text(&new["spec"], "restartPolicy") == "Always" => "Always",
            ("", _) => text(&new["spec"], "restartPolicy"),
            (p, _) => p,
        }
    };
    for (key, sort) in [
        ("containerStatuses", "containers"),
        ("initContainerStatuses", "initContainers"),
        ("ephemeralContainerStatuses", "ephemeralContainers"),
    ] {
        let at = path.child(key);
        for (i, was) in list(&old["status"], key).iter().enumerate() {
            let ended = &was["state"]["terminated"];
            let name = text(was, "name");
            let policy = policy_of(name, sort);
            let failed = ended["exitCode"].as_i64().unwrap_or(0) != 0;
            if ended.is_null() || policy == "Always" || (policy == "OnFailure" && failed) {
                continue;
            }
            let now = list(&new["status"], key).iter().find(|s| text(s, "name") == name);
            if now.is_some_and(|s| s["state"]["terminated"].is_null()) {
                let here = at.index(i);
                errors.forbidden(&here.child("state"), "may not be transitioned to non-terminated state");
            }
        }
    }
}
