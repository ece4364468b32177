//! Resources of containers and pods: names, quantities, requests against limits, claims.

use serde_json::{Map, Value};

use super::{Context, NOT_NEGATIVE, complain, given, list, need, not_found_because, text};
use crate::invalid::Errors;
use crate::names;
use crate::path::Path;
use crate::quantity::Quantity;

const HUGE: &str = "hugepages-";
/// Names without a domain that mean something somewhere (quotas included).
const STANDARD: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "storage",
    "services.nodeports",
    "services.loadbalancers",
];

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::is_qualified_name(&format!("requests.{name}")).is_empty()
}

fn overcommit(name: &str) -> bool {
    is_native(name) && !name.starts_with(HUGE)
}

/// A name of a resource of any object: qualified, or one of those that everybody knows.
pub(in crate::kinds) fn validate_name(name: &str, at: &Path<'_>, errors: &mut Errors) {
    let why = names::is_qualified_name(name);
    let qualified = why.is_empty();
    complain(at, name, why, errors);
    if qualified && !name.contains('/') && !STANDARD.contains(&name) && !name.starts_with(HUGE) {
        errors.invalid(at, name, "must be a standard resource type or fully qualified");
    }
}

/// A name of a resource that containers use.
pub(in crate::kinds) fn validate_container_name(name: &str, at: &Path<'_>, errors: &mut Errors) {
    validate_name(name, at, errors);
    if !name.contains('/') {
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.starts_with(HUGE) {
            errors.invalid(at, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(at, name, "doesn't follow extended resource name standard");
    }
}

fn quantity_ok(name: &str, q: &Quantity, at: &Path<'_>, errors: &mut Errors) {
    if q.sign() < 0 {
        errors.invalid(at, q.to_string(), NOT_NEGATIVE);
    }
    if is_extended(name) && !q.is_integer() {
        errors.invalid(at, q.to_string(), "must be an integer");
    }
    if let Some(size) = name.strip_prefix(HUGE) {
        let size = Quantity::parse(size).ok().filter(|s| s.sign() > 0 && s.is_integer());
        let fits = size.is_some_and(|s| q.is_integer() && q.value() % s.value() == 0);
        if !fits {
            errors.invalid(at, q.to_string(), format!("{q} is not positive integer multiple of {name}"));
        }
    }
}

fn quantities<'a>(v: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, Quantity)> {
    amounts(&v[key])
}

fn amounts(v: &Value) -> impl Iterator<Item = (&String, Quantity)> {
    let none: Option<&Map<String, Value>> = None;
    let map = v.as_object().or(none);
    map.into_iter().flatten().filter_map(|(k, q)| Some((k, Quantity::parse(q.as_str()?).ok()?)))
}

/// `resources` of a container, or of the pod.
pub(super) fn validate(r: &Value, context: &Context<'_>, path: &Path<'_>, errors: &mut Errors) {
    let (limits_at, requests_at) = (path.child("limits"), path.child("requests"));
    let (mut huge, mut ordinary) = (false, false);
    for (name, q) in quantities(r, "limits") {
        let at = limits_at.key(name);
        validate_container_name(name, &at, errors);
        quantity_ok(name, &q, &at, errors);
        huge |= name.starts_with(HUGE);
        ordinary |= matches!(name.as_str(), "cpu" | "memory");
    }
    for (name, q) in quantities(r, "requests") {
        let at = requests_at.key(name);
        validate_container_name(name, &at, errors);
        quantity_ok(name, &q, &at, errors);
        huge |= name.starts_with(HUGE);
        ordinary |= matches!(name.as_str(), "cpu" | "memory");
        let limit = r["limits"][name.as_str()].as_str().and_then(|l| Quantity::parse(l).ok());
        match limit {
            Some(limit) if q != limit && !overcommit(name) => {
                errors.invalid(&requests_at, q.to_string(), format!("must be equal to {name} limit of {limit}"));
            }
            Some(limit) if q > limit => {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                errors.invalid(&requests_at, q.to_string(), why);
            }
            None if !overcommit(name) && is_extended_or_huge(name) => {
                errors.required(&limits_at, "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
    if huge && !ordinary {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
    let claims = path.child("claims");
    let mut seen = vec![];
    for (i, c) in list(r, "claims").iter().enumerate() {
        let (at, name) = (claims.index(i), text(c, "name"));
        if name.is_empty() {
            errors.required(&at, "");
            continue;
        }
        let request = text(c, "request");
        if seen.contains(&(name, "")) {
            // All requests of that claim are meant already.
            errors.duplicate(&at, name);
        } else if request.is_empty() {
            for _ in seen.iter().filter(|(n, _)| *n == name) {
                errors.duplicate(&at, name);
            }
            seen.push((name, ""));
        } else {
            complain(&at.child("request"), request, names::is_dns1123_label(request), errors);
            if seen.contains(&(name, request)) {
                errors.duplicate(&at, format!("{name}/{request}").as_str());
            } else {
                seen.push((name, request));
            }
        }
        if !context.claims.contains(&name) {
            let mut known = context.claims.clone();
            known.sort_unstable();
            known.dedup();
            let rest = if known.is_empty() { " which is empty".into() } else { format!(": {}", known.join(", ")) };
            let why = format!("must be one of the names in pod.spec.resourceClaims{rest}");
            not_found_because(&at, name, &why, errors);
        }
    }
}

fn is_extended_or_huge(name: &str) -> bool {
    name.starts_with(HUGE) || !is_native(name)
}

/// `resources` of a pod: fewer names, and room for what its containers ask.
pub(super) fn validate_pod_level(spec: &Value, context: &Context<'_>, path: &Path<'_>, errors: &mut Errors) {
    let r = &spec["resources"];
    let mut bad = false;
    for sort in ["limits", "requests"] {
        let at = path.child(sort);
        for (name, _) in quantities(r, sort) {
            if !matches!(name.as_str(), "cpu" | "memory") && !name.starts_with(HUGE) {
                let (here, before) = (at.key(name), errors.len());
                validate_name(name, &here, errors);
                if errors.len() == before {
                    errors.not_supported(&here, name.as_str(), &["cpu", "hugepages-", "memory"]);
                }
                bad = true;
            }
        }
    }
    if bad {
        let at = path.child("limits");
        for (name, _) in quantities(r, "requests") {
            if is_extended_or_huge(name) && r["limits"][name.as_str()].is_null() {
                errors.required(&at, "Limit must be set for non overcommitable resources");
            }
        }
        return;
    }
    validate(r, context, path, errors);
    let at = path.child("requests");
    for (name, q) in quantities(r, "requests") {
        let mut sum = Quantity::ZERO;
        for c in list(spec, "containers") {
            if let Some(ask) = c["resources"]["requests"][name.as_str()].as_str().and_then(|q| Quantity::parse(q).ok())
            {
                sum = sum.add(&ask);
            }
        }
        if q < sum {
            let why = format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.invalid(&at.key(name), q.to_string(), why);
        }
    }
}

/// `overhead` of a pod.
pub(in crate::kinds) fn validate_overhead(overhead: &Value, path: &Path<'_>, errors: &mut Errors) {
    for (name, q) in amounts(overhead) {
        let at = path.key(name);
        validate_container_name(name, &at, errors);
        quantity_ok(name, &q, &at, errors);
    }
}

/// `resizePolicy` of a container.
pub(super) fn validate_resize_policy(c: &Value, pod_policy: &str, path: &Path<'_>, errors: &mut Errors) {
    let mut seen = vec![];
    for (i, p) in list(c, "resizePolicy").iter().enumerate() {
        let (at, name) = (path.index(i), text(p, "resourceName"));
        if seen.contains(&name) {
            errors.duplicate(&at, name);
        }
        seen.push(name);
        match name {
            "cpu" | "memory" => {}
            "" => errors.required(path, ""),
            other => errors.not_supported(path, other, &["cpu", "memory"]),
        }
        match text(p, "restartPolicy") {
            "NotRequired" | "RestartContainer" => {}
            "" => errors.required(path, ""),
            other => errors.not_supported(path, other, &["NotRequired", "RestartContainer"]),
        }
        if pod_policy == "Never" && text(p, "restartPolicy") != "NotRequired" {
            let why = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.invalid(path, text(p, "restartPolicy"), why);
        }
    }
}

/// `resourceClaims` of a pod.
pub(super) fn validate_pod_claims(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let mut seen = vec![];
    for (i, c) in list(spec, "resourceClaims").iter().enumerate() {
        let (at, name) = (path.index(i), text(c, "name"));
        if need(c, "name", &at, errors) {
            if seen.contains(&name) {
                errors.duplicate(&at.child("name"), name);
            } else {
                complain(&at.child("name"), name, names::is_dns1123_label(name), errors);
                seen.push(name);
            }
        }
        let (claim, template) = (given(c, "resourceClaimName"), given(c, "resourceClaimTemplateName"));
        if claim && template {
            let why = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
            errors.invalid_raw(&at, c.to_string(), why);
        } else if !claim && !template {
            let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
            errors.invalid_raw(&at, c.to_string(), why);
        }
        for key in ["resourceClaimName", "resourceClaimTemplateName"] {
            if given(c, key) {
                let s = text(c, key);
                complain(&at.child(key), s, names::is_dns1123_subdomain(s), errors);
            }
        }
    }
}
