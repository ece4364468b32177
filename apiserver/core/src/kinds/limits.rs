//! ResourceQuota and LimitRange: what the objects themselves must keep to. What they do to others is admission's.

use std::collections::BTreeSet;

use serde_json::Value;

use super::check::{IMMUTABLE, NOT_NEGATIVE, complain, list, text};
use super::pod::{validate_container_resource, validate_resource};
use super::{Strategy, Traits, defaults};
use crate::invalid::Errors;
use crate::names;
use crate::path::Path;
use crate::quantity::Quantity;

/// Resources that are counted, not measured.
const COUNTED: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
/// What containers use, and the same as requests and limits.
const COMPUTE: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];
const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

/// Rules of ResourceQuotas.
pub(super) struct Quota;

impl Strategy for Quota {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { returns_deleted: true, status: true, ..Traits::DEFAULT };
        &T
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (spec, path) = (&obj["spec"], Path::new("spec"));
        amounts(&spec["hard"], &path.child("hard"), errors);
        scopes(spec, &path.child("scopes"), errors);
        scope_selector(spec, &path.child("scopeSelector"), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
        let set = |v: &Value| list(&v["spec"], "scopes").iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        if set(new) != set(old) {
            let path = Path::new("spec");
            errors.invalid(&path.child("scopes"), new["spec"]["scopes"].clone(), IMMUTABLE);
        }
    }

    fn validate_status(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        let path = Path::new("status");
        for key in ["hard", "used"] {
            amounts(&new["status"][key], &path.child(key), errors);
        }
    }
}

fn amounts(v: &Value, path: &Path<'_>, errors: &mut Errors) {
    for (name, q) in v.as_object().into_iter().flatten() {
        let at = path.key(name);
        let why = names::is_qualified_name(name);
        let qualified = why.is_empty();
        complain(&at, name, why, errors);
        let huge = name.starts_with("hugepages-") || name.starts_with("requests.hugepages-");
        let known = COUNTED.contains(&name.as_str())
            || COMPUTE.contains(&name.as_str())
            || matches!(name.as_str(), "storage" | "requests.storage")
            || huge;
        if qualified && !name.contains('/') {
            if !known {
                errors.invalid(&at, name.as_str(), "must be a standard resource type or fully qualified");
            }
            if !known || name == "storage" {
                errors.invalid(&at, name.as_str(), "must be a standard resource for quota");
            }
        }
        let Some(q) = q.as_str().and_then(|q| Quantity::parse(q).ok()) else { continue };
        if q.sign() < 0 {
            errors.invalid(&at, q.to_string(), NOT_NEGATIVE);
        }
        let extended = name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.");
        if (extended || COUNTED.contains(&name.as_str())) && !q.is_integer() {
            errors.invalid(&at, q.to_string(), "must be an integer");
        }
    }
}

/// Whether a scope says something about a resource.
fn applies(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => {
            resource == "persistentvolumeclaims"
                || resource == "requests.storage"
                || resource.contains(".storageclass.")
        }
        _ => resource == "pods" || COMPUTE.contains(&resource),
    }
}

fn hard(spec: &Value) -> impl Iterator<Item = &str> {
    let all = spec["hard"].as_object().into_iter().flatten().map(|(k, _)| k.as_str());
    all.filter(|k| COUNTED.contains(k) || COMPUTE.contains(k) || *k == "requests.storage")
}

fn scopes(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let all: Vec<&str> = list(spec, "scopes").iter().filter_map(Value::as_str).collect();
    let shown = || spec["scopes"].clone();
    for s in &all {
        if !SCOPES.contains(s) {
            errors.invalid(path, shown(), "unsupported scope");
        }
        for _ in hard(spec).filter(|r| !applies(s, r)) {
            errors.invalid(path, shown(), "unsupported scope applied to resource");
        }
    }
    for (a, b) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if all.contains(&a) && all.contains(&b) {
            errors.invalid(path, shown(), "conflicting scopes");
        }
    }
}

fn scope_selector(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("matchExpressions");
    for e in list(&spec["scopeSelector"], "matchExpressions") {
        let (scope, operator, values) = (text(e, "scopeName"), text(e, "operator"), list(e, "values"));
        if !SCOPES.contains(&scope) {
            errors.invalid(&at.child("scopeName"), scope, "unsupported scope");
        }
        for _ in hard(spec).filter(|r| !applies(scope, r)) {
            errors.invalid(&at, spec["scopeSelector"].clone(), "unsupported scope applied to resource");
        }
        let only_exists = matches!(
            scope,
            "BestEffort" | "NotBestEffort" | "Terminating" | "NotTerminating" | "CrossNamespacePodAffinity"
        );
        if only_exists && operator != "Exists" {
            errors.invalid(&at.child("operator"), operator, "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity");
        }
        match operator {
            "In" | "NotIn" => {
                if values.is_empty() {
                    let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                    errors.required(&at.child("values"), why);
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                    errors.invalid(&at.child("values"), e["values"].clone(), why);
                }
            }
            o => errors.invalid(&at.child("operator"), o, "not a valid selector operator"),
        }
    }
}

/// Rules of LimitRanges.
pub(super) struct Range;

impl Strategy for Range {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { create_on_update: true, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        defaults::limit_range(obj);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        let all = path.child("limits");
        let mut seen = vec![];
        for (i, l) in list(&obj["spec"], "limits").iter().enumerate() {
            let (at, kind) = (all.index(i), text(l, "type"));
            let why = names::is_qualified_name(kind);
            if why.is_empty() && !kind.contains('/') && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim") {
                errors.invalid(&at.child("type"), kind, "must be a standard limit type or fully qualified");
            }
            complain(&at.child("type"), kind, why, errors);
            if seen.contains(&kind) {
                errors.duplicate(&at.child("type"), kind);
            }
            seen.push(kind);
            limit(l, kind, &at, errors);
        }
    }
}

fn limit(l: &Value, kind: &str, at: &Path<'_>, errors: &mut Errors) {
    let mut resources: BTreeSet<&str> = BTreeSet::new();
    let mut named = |key: &str, errors: &mut Errors| {
        let here = at.child(key);
        for name in l[key].as_object().into_iter().flatten().map(|(k, _)| k.as_str()) {
            match kind {
                "Pod" | "Container" => validate_container_resource(name, &here.key(name), errors),
                _ => validate_resource(name, &here.key(name), errors),
            }
            resources.insert(name);
        }
    };
    named("max", errors);
    named("min", errors);
    for key in ["default", "defaultRequest"] {
        let some = l[key].as_object().is_some_and(|o| !o.is_empty());
        if kind == "Pod" && some {
            errors.forbidden(&at.child(key), "may not be specified when `type` is 'Pod'");
        } else {
            named(key, errors);
        }
    }
    if kind == "PersistentVolumeClaim" && l["min"]["storage"].is_null() && l["max"]["storage"].is_null() {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        errors.required(&at.child("limits"), why);
    }
    named("maxLimitRequestRatio", errors);
    for name in resources {
        bounds(l, name, at, errors);
    }
}

/// The bounds of one resource must agree.
fn bounds(l: &Value, name: &str, at: &Path<'_>, errors: &mut Errors) {
    let get = |key: &str| l[key][name].as_str().and_then(|q| Quantity::parse(q).ok());
    let (min, max) = (get("min"), get("max"));
    let (default, request) = (get("default"), get("defaultRequest"));
    let mut check =
        |key: &str, a: &Option<Quantity>, b: &Option<Quantity>, words: (&str, &str), shown: &Option<Quantity>| {
            if let (Some(a), Some(b), Some(shown)) = (a, b, shown)
                && a > b
            {
                let here = at.child(key);
                let why = format!("{} {a} is greater than {} {b}", words.0, words.1);
                errors.invalid(&here.key(name), shown.to_string(), why);
            }
        };
    check("min", &min, &max, ("min value", "max value"), &min);
    check("defaultRequest", &min, &request, ("min value", "default request value"), &request);
    check("defaultRequest", &request, &max, ("default request value", "max value"), &request);
    check("defaultRequest", &request, &default, ("default request value", "default limit value"), &request);
    check("default", &min, &default, ("min value", "default value"), &min);
    check("default", &default, &max, ("default value", "max value"), &max);
    let Some(ratio) = get("maxLimitRequestRatio") else { return };
    let here = at.child("maxLimitRequestRatio");
    if ratio.millis() < 1000 {
        errors.invalid(&here.key(name), ratio.to_string(), format!("ratio {ratio} is less than 1"));
    }
    if let (Some(min), Some(max)) = (&min, &max)
        && min.millis() > 0
    {
        #[allow(clippy::cast_precision_loss, reason = "upstream compares these as floats too")]
        let widest = max.millis() as f64 / min.millis() as f64;
        #[allow(clippy::cast_precision_loss, reason = "as above")]
        if ratio.millis() as f64 / 1000.0 > widest {
            let why = format!("ratio {ratio} is greater than max/min = {widest:.6}");
            errors.invalid(&here.key(name), ratio.to_string(), why);
        }
    }
}
