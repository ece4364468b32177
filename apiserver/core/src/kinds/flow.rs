//! FlowSchema and PriorityLevelConfiguration.
//!
//! Some of them must be as they are in every cluster; [`mandatory`] has their specs.

use serde_json::{Value, json};

use super::check::{complain, given, list, text};
use super::{Strategy, Traits, defaults};
use crate::invalid::Errors;
use crate::meta;
use crate::names;
use crate::path::Path;

const T: Traits = Traits { generation: true, status: true, status_keeps_meta: true, ..Traits::DEFAULT };
const PRECEDENCE_MAX: i64 = 10_000;
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
/// Bounds of a level's queues.
const QUEUES_MAX: i64 = 10_000_000;
const ENTROPY_MAX: i64 = 60;

/// The spec that a mandatory object must have.
#[must_use]
pub fn mandatory(plural: &str, name: &str) -> Option<Value> {
    let everyone =
        |groups: &[&str]| -> Value { groups.iter().map(|g| json!({"kind": "Group", "group": {"name": g}})).collect() };
    let everything = |groups: &[&str]| {
        json!([{
            "subjects": everyone(groups),
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        }])
    };
    match (plural, name) {
        ("flowschemas", "exempt") => Some(json!({
            "priorityLevelConfiguration": {"name": "exempt"}, "matchingPrecedence": 1,
            "rules": everything(&["system:masters"]),
        })),
        ("flowschemas", "catch-all") => Some(json!({
            "priorityLevelConfiguration": {"name": "catch-all"}, "matchingPrecedence": PRECEDENCE_MAX,
            "distinguisherMethod": {"type": "ByUser"},
            "rules": everything(&["system:unauthenticated", "system:authenticated"]),
        })),
        ("prioritylevelconfigurations", "exempt") => Some(json!({
            "type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0},
        })),
        ("prioritylevelconfigurations", "catch-all") => Some(json!({
            "type": "Limited",
            "limited": {"nominalConcurrencyShares": 5, "limitResponse": {"type": "Reject"}, "lendablePercent": 0},
        })),
        _ => None,
    }
}

/// Rules of FlowSchemas.
pub(super) struct Schema;

impl Strategy for Schema {
    fn traits(&self) -> &Traits {
        &T
    }

    fn default(&self, obj: &mut Value) {
        defaults::flow_schema(obj);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (spec, path, name) = (&obj["spec"], Path::new("spec"), meta::name(obj));
        let (at, n) = (path.child("matchingPrecedence"), spec["matchingPrecedence"].as_i64().unwrap_or(0));
        if n <= 0 {
            errors.invalid(&at, n, "must be a positive value");
        }
        if n > PRECEDENCE_MAX {
            errors.invalid(&at, n, format!("must not be greater than {PRECEDENCE_MAX}"));
        }
        if n == 1 && name != "exempt" {
            errors.invalid(&at, n, "only the schema named 'exempt' may have matchingPrecedence 1");
        }
        let method = &spec["distinguisherMethod"];
        if !method.is_null() && !matches!(text(method, "type"), "ByNamespace" | "ByUser") {
            let at = path.child("distinguisherMethod");
            errors.not_supported(&at.child("type"), json!({"Type": method["type"]}), &["ByNamespace", "ByUser"]);
        }
        let level = text(&spec["priorityLevelConfiguration"], "name");
        let at = path.child("priorityLevelConfiguration");
        if level.is_empty() {
            errors.required(&at.child("name"), "must reference a priority level");
        } else {
            complain(&at.child("name"), level, names::is_dns1123_subdomain(level), errors);
        }
        let all = path.child("rules");
        for (i, r) in list(spec, "rules").iter().enumerate() {
            rule(r, &all.index(i), errors);
        }
        if mandatory("flowschemas", name).is_some_and(|m| m != *spec) {
            errors.invalid(&path, spec.clone(), format!("spec of '{name}' must equal the fixed value"));
        }
    }
}

fn rule(r: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("subjects");
    let subjects = list(r, "subjects");
    if subjects.is_empty() {
        errors.required(&at, "subjects must contain at least one value");
    }
    for (i, s) in subjects.iter().enumerate() {
        subject(s, &at.index(i), errors);
    }
    let (resources, paths) = (list(r, "resourceRules"), list(r, "nonResourceRules"));
    if resources.is_empty() && paths.is_empty() {
        errors.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    let at = path.child("resourceRules");
    for (i, r) in resources.iter().enumerate() {
        resource_rule(r, &at.index(i), errors);
    }
    let at = path.child("nonResourceRules");
    for (i, r) in paths.iter().enumerate() {
        path_rule(r, &at.index(i), errors);
    }
}

fn subject(s: &Value, path: &Path<'_>, errors: &mut Errors) {
    let keys = [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let kind = text(s, "kind");
    let Some((_, own)) = keys.iter().find(|(k, _)| *k == kind) else {
        errors.not_supported(&path.child("kind"), kind, &["Group", "ServiceAccount", "User"]);
        return;
    };
    let (at, v) = (path.child(own), &s[*own]);
    if v.is_null() {
        errors.required(&at, &format!("{own} is required when subject kind is '{kind}'"));
    } else {
        let name = text(v, "name");
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        }
        if kind == "ServiceAccount" {
            if !matches!(name, "" | "*") {
                complain(&at.child("name"), name, names::is_dns1123_subdomain(name), errors);
            }
            let ns = text(v, "namespace");
            if ns.is_empty() {
                errors.required(&at.child("namespace"), "must specify namespace for service account");
            } else {
                complain(&at.child("namespace"), ns, names::is_dns1123_label(ns), errors);
            }
        }
    }
    for (other, key) in [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")] {
        if other != kind && given(s, key) {
            errors.forbidden(&path.child(key), format!("{key} is forbidden when subject kind is not '{other}'"));
        }
    }
}

fn texts<'a>(v: &'a Value, key: &str) -> Vec<&'a str> {
    list(v, key).iter().filter_map(Value::as_str).collect()
}

/// A list in which a star stands alone; `what` names its elements.
fn starred(v: &Value, key: &str, what: &str, path: &Path<'_>, errors: &mut Errors) -> bool {
    let all = texts(v, key);
    let star = all.contains(&"*");
    if star && all.len() > 1 {
        let why = format!("if '*' is present, must not specify other {what}");
        errors.invalid(&path.child(key), v[key].clone(), why);
    }
    star
}

fn verbs(r: &Value, path: &Path<'_>, errors: &mut Errors) {
    let all = texts(r, "verbs");
    if all.is_empty() {
        errors.required(&path.child("verbs"), "verbs must contain at least one value");
        return;
    }
    let star = starred(r, "verbs", "verbs", path, errors);
    if !star && !all.iter().all(|v| VERBS.contains(v)) {
        errors.not_supported(&path.child("verbs"), r["verbs"].clone(), VERBS);
    }
}

fn resource_rule(r: &Value, path: &Path<'_>, errors: &mut Errors) {
    verbs(r, path, errors);
    for (key, one, many) in [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")] {
        if list(r, key).is_empty() {
            errors.required(&path.child(key), &format!("resource rules must supply at least one {one}"));
        } else {
            starred(r, key, many, path, errors);
        }
    }
    let at = path.child("namespaces");
    let namespaces = texts(r, "namespaces");
    if namespaces.is_empty() {
        if r["clusterScope"] != true {
            let why = "resource rules that are not cluster scoped must supply at least one namespace";
            errors.required(&at, why);
        }
    } else if !starred(r, "namespaces", "namespaces", path, errors) {
        for (i, ns) in namespaces.iter().enumerate() {
            complain(&at.index(i), ns, names::is_dns1123_label(ns), errors);
        }
    }
}

fn path_rule(r: &Value, path: &Path<'_>, errors: &mut Errors) {
    verbs(r, path, errors);
    let at = path.child("nonResourceURLs");
    let paths = texts(r, "nonResourceURLs");
    if paths.is_empty() {
        errors.required(&at, "nonResourceURLs must contain at least one value");
    } else if !starred(r, "nonResourceURLs", "non-resource URLs", path, errors) {
        for (i, p) in paths.iter().enumerate() {
            let stars = p.matches('*').count();
            let why = match *p {
                "" => "must not be empty",
                p if !p.starts_with('/') => "must start with slash",
                p if p.contains(' ') => "must not contain white-space",
                p if p.contains("//") => "must not contain double slash",
                p if stars > 1 || (stars == 1 && !p.ends_with("/*")) => "wildcard can only do suffix matching",
                _ => continue,
            };
            errors.invalid(&at.index(i), *p, why);
        }
    }
}

/// Rules of PriorityLevelConfigurations.
pub(super) struct Level;

impl Strategy for Level {
    fn traits(&self) -> &Traits {
        &T
    }

    fn default(&self, obj: &mut Value) {
        defaults::priority_level(obj);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (spec, path, name) = (&obj["spec"], Path::new("spec"), meta::name(obj));
        let kind = text(spec, "type");
        if (name == "exempt") != (kind == "Exempt") {
            let why = "must be 'Exempt' if and only if `name` is 'exempt'";
            errors.invalid(&path.child("type"), kind, why);
        }
        if kind == "Exempt" && given(spec, "exempt") {
            shares(&spec["exempt"], &path.child("exempt"), errors);
            lendable(&spec["exempt"], &path.child("exempt"), errors);
        }
        if kind == "Limited" && given(spec, "limited") {
            limited(&spec["limited"], &path.child("limited"), errors);
        }
        // Absent counts as a type other than "Limited".
        errors.generated(|e| {
            if kind != "Exempt" && given(spec, "exempt") {
                e.forbidden(&path.child("exempt"), "");
            }
            match (kind, given(spec, "limited")) {
                ("Limited", false) => e.required(&path.child("limited"), ""),
                ("Limited", true) | (_, false) => {}
                (_, true) => e.forbidden(&path.child("limited"), ""),
            }
            if kind.is_empty() {
                e.required(&path.child("type"), "");
            }
            if given(spec, "limited") {
                let at = path.child("limited");
                generated_response(&spec["limited"]["limitResponse"], &at.child("limitResponse"), e);
            }
        });
        if !matches!(kind, "" | "Limited" | "Exempt") {
            errors.not_supported(&path.child("type"), kind, &["Exempt", "Limited"]);
        }
        if let Some(mut wanted) = mandatory("prioritylevelconfigurations", name) {
            // How much the exempt level lends is the administrator's to say.
            let free = name == "exempt";
            if free {
                super::carry(&mut wanted, spec, "exempt");
            }
            if wanted != *spec {
                let but = if free { " except the 'spec.exempt' field" } else { "" };
                errors.invalid(&path, spec.clone(), format!("spec of '{name}'{but} must equal the fixed value"));
            }
        }
    }
}

fn shares(v: &Value, path: &Path<'_>, errors: &mut Errors) {
    if let Some(n) = v["nominalConcurrencyShares"].as_i64().filter(|n| *n < 0) {
        errors.invalid(&path.child("nominalConcurrencyShares"), n, "must be a non-negative integer");
    }
}

fn lendable(v: &Value, path: &Path<'_>, errors: &mut Errors) {
    if let Some(n) = v["lendablePercent"].as_i64().filter(|n| !(0..=100).contains(n)) {
        errors.invalid(&path.child("lendablePercent"), n, "must be between 0 and 100, inclusive");
    }
}

fn limited(v: &Value, path: &Path<'_>, errors: &mut Errors) {
    shares(v, path, errors);
    response(&v["limitResponse"], &path.child("limitResponse"), errors);
    lendable(v, path, errors);
    if let Some(n) = v["borrowingLimitPercent"].as_i64().filter(|n| *n < 0) {
        let why = "if specified, must be a non-negative integer";
        errors.invalid(&path.child("borrowingLimitPercent"), n, why);
    }
}

fn response(r: &Value, at: &Path<'_>, errors: &mut Errors) {
    let queuing = at.child("queuing");
    let kind = text(r, "type");
    if kind == "Queue" && given(r, "queuing") {
        queues(&r["queuing"], &queuing, errors);
    }
    if !matches!(kind, "" | "Queue" | "Reject") {
        errors.not_supported(&at.child("type"), kind, &["Queue", "Reject"]);
    }
}

/// What generated rules find in a response, also in one that the type of the level forbids.
fn generated_response(r: &Value, at: &Path<'_>, errors: &mut Errors) {
    let (queuing, kind) = (at.child("queuing"), text(r, "type"));
    match (kind, given(r, "queuing")) {
        ("Queue", false) => errors.required(&queuing, ""),
        ("Queue", true) | (_, false) => {}
        (_, true) => errors.forbidden(&queuing, ""),
    }
    if kind.is_empty() {
        errors.required(&at.child("type"), "");
    }
}

fn queues(q: &Value, path: &Path<'_>, errors: &mut Errors) {
    let number = |k: &str| q[k].as_i64().unwrap_or(0);
    let (length, queues, hand) = (number("queueLengthLimit"), number("queues"), number("handSize"));
    const POSITIVE: &str = "must be positive";
    if length <= 0 {
        errors.invalid(&path.child("queueLengthLimit"), length, POSITIVE);
    }
    if queues <= 0 {
        errors.invalid(&path.child("queues"), queues, POSITIVE);
    } else if queues > QUEUES_MAX {
        errors.invalid(&path.child("queues"), queues, format!("must not be greater than {QUEUES_MAX}"));
    }
    let at = path.child("handSize");
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "small numbers")]
    let entropy = || ((queues as f64).log2() * hand as f64).ceil() as i64;
    if hand <= 0 {
        errors.invalid(&at, hand, POSITIVE);
    } else if hand > queues {
        errors.invalid(&at, hand, format!("should not be greater than queues ({queues})"));
    } else if entropy() > ENTROPY_MAX {
        let why = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {ENTROPY_MAX}"
        );
        errors.invalid(&at, hand, why);
    }
}
