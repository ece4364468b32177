//! Webhook configurations. What they share with policies in CEL ([`super::admission`]) is here: rules, match conditions.

use serde_json::Value;

use super::check::{complain, given, label_selector, list, one_of, text};
use super::defaults;
use super::{Strategy, Traits};
use crate::custom::cel::expression::{Env, Want};
use crate::invalid::Errors;
use crate::names;
use crate::path::Path;

pub(super) const G: Traits = Traits { generation: true, unconditional_update: false, ..Traits::DEFAULT };
const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const CONDITIONS_MAX: usize = 64;

/// Rules of webhook configurations; `mutating` says of which sort.
pub(super) struct Webhooks {
    pub(super) mutating: bool,
}

impl Strategy for Webhooks {
    fn traits(&self) -> &Traits {
        &G
    }

    fn default(&self, obj: &mut Value) {
        if self.mutating {
            defaults::mutating_webhooks(obj);
        } else {
            defaults::validating_webhooks(obj);
        }
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let all = Path::new("webhooks");
        let mut seen = vec![];
        for (i, w) in list(obj, "webhooks").iter().enumerate() {
            let at = all.index(i);
            webhook(w, &at, errors);
            if self.mutating {
                one_of(w, "reinvocationPolicy", &["IfNeeded", "Never"], &at, errors);
            }
            versions(w, &at.child("admissionReviewVersions"), errors);
            let name = text(w, "name");
            if !name.is_empty() && seen.contains(&name) {
                errors.duplicate(&at.child("name"), name);
            }
            seen.push(name);
        }
    }
}

fn webhook(w: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (at, name) = (path.child("name"), text(w, "name"));
    if name.is_empty() {
        errors.required(&at, "");
    } else {
        let why = names::is_dns1123_subdomain(name);
        let well_formed = why.is_empty();
        complain(&at, name, why, errors);
        if well_formed && name.split('.').count() < 3 {
            errors.invalid(&at, name, "should be a domain with at least three segments separated by dots");
        }
    }
    let all = path.child("rules");
    for (i, r) in list(w, "rules").iter().enumerate() {
        rule(r, &all.index(i), errors);
    }
    one_of(w, "failurePolicy", &["Fail", "Ignore"], path, errors);
    one_of(w, "matchPolicy", &["Equivalent", "Exact"], path, errors);
    if given(w, "sideEffects") {
        one_of(w, "sideEffects", &["None", "NoneOnDryRun"], path, errors);
    } else {
        errors.required(&path.child("sideEffects"), "must specify one of None, NoneOnDryRun");
    }
    if let Some(n) = w["timeoutSeconds"].as_i64().filter(|n| !(1..=30).contains(n)) {
        errors.invalid(&path.child("timeoutSeconds"), n, "the timeout value must be between 1 and 30 seconds");
    }
    for key in ["namespaceSelector", "objectSelector"] {
        label_selector(&w[key], &path.child(key), errors);
    }
    client(&w["clientConfig"], &path.child("clientConfig"), errors);
    if given(w, "matchConditions") {
        conditions(w, &Env::webhook(), path, errors);
    }
}

fn versions(w: &Value, path: &Path<'_>, errors: &mut Errors) {
    let all: Vec<&str> = list(w, "admissionReviewVersions").iter().filter_map(Value::as_str).collect();
    if all.is_empty() {
        errors.required(path, "must specify one of v1, v1beta1");
        return;
    }
    for (i, v) in all.iter().enumerate() {
        if all[..i].contains(v) {
            errors.invalid(&path.index(i), *v, "duplicate version");
        } else {
            complain(&path.index(i), v, names::is_dns1035_label(v), errors);
        }
    }
    if !all.iter().any(|v| matches!(*v, "v1" | "v1beta1")) {
        let shown = w["admissionReviewVersions"].clone();
        errors.invalid(path, shown, "must include at least one of v1, v1beta1");
    }
}

fn client(c: &Value, path: &Path<'_>, errors: &mut Errors) {
    match (c["url"].as_str(), given(c, "service")) {
        (Some(u), false) => url(u, &path.child("url"), errors),
        (None, true) => service(&c["service"], &path.child("service"), errors),
        _ => errors.required(path, "exactly one of url or service is required"),
    }
}

/// Checks a URL: https, a host, and nothing but a path.
fn url(u: &str, path: &Path<'_>, errors: &mut Errors) {
    const FORM: &str = "desired format: https://host[/path]";
    // Without a scheme all of it is a path.
    let (scheme, rest) = u.split_once("://").or_else(|| Some(("", u.strip_prefix("//")?))).unwrap_or(("", ""));
    if scheme != "https" {
        errors.invalid(path, scheme, format!("'https' is the only allowed URL scheme; {FORM}"));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.split('/').next().unwrap_or_default();
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        errors.invalid(path, host, format!("host must be specified; {FORM}"));
    }
    for (part, what) in [(user, "user information is"), (fragment, "fragments are"), (query, "query parameters are")] {
        if !part.is_empty() {
            errors.invalid(path, part, format!("{what} not permitted in the URL"));
        }
    }
}

fn service(s: &Value, path: &Path<'_>, errors: &mut Errors) {
    // Upstream takes one for the other when it says what is missing.
    for (told, missing) in [("name", "namespace"), ("namespace", "name")] {
        if text(s, missing).is_empty() {
            errors.required(&path.child(told), "");
        }
    }
    if let Some(n) = s["port"].as_i64() {
        for why in names::is_port(n) {
            errors.invalid(&path.child("port"), n, format!("port is not valid: {why}"));
        }
    }
    let (at, given_path) = (path.child("path"), text(s, "path"));
    if matches!(given_path, "" | "/") {
        return;
    }
    if !given_path.starts_with('/') {
        errors.invalid(&at, given_path, "must start with a '/'");
    }
    let mut chars = given_path.chars();
    chars.next();
    let rest = chars.as_str();
    for (i, step) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if step.is_empty() {
            errors.invalid(&at, given_path, format!("segment[{i}] may not be empty"));
            continue;
        }
        for why in names::is_dns1123_subdomain(step) {
            errors.invalid(&at, given_path, format!("segment[{i}]: {why}"));
        }
    }
}

pub(super) fn conditions(v: &Value, env: &Env, path: &Path<'_>, errors: &mut Errors) {
    let all = path.child("matchConditions");
    let list = list(v, "matchConditions");
    if list.len() > CONDITIONS_MAX {
        errors.too_many(&all, list.len(), CONDITIONS_MAX);
    }
    let mut seen = vec![];
    for (i, c) in list.iter().enumerate() {
        let (at, name) = (all.index(i), text(c, "name"));
        let expression = text(c, "expression").trim();
        if expression.is_empty() {
            errors.required(&at.child("expression"), "");
        } else if let Err(why) = env.compile(expression, Want::Bool) {
            errors.invalid(&at.child("expression"), expression, why);
        }
        if name.is_empty() {
            errors.required(&at.child("name"), "");
            continue;
        }
        complain(&at.child("name"), name, names::is_qualified_name(name), errors);
        if seen.contains(&name) {
            errors.duplicate(&at.child("name"), name);
        }
        seen.push(name);
    }
}

/// A list of which a star must be the only element.
fn starred(r: &Value, key: &str, what: &str, path: &Path<'_>, errors: &mut Errors) {
    let (at, all) = (path.child(key), list(r, key));
    if all.is_empty() {
        errors.required(&at, "");
    } else if all.len() > 1 && all.iter().any(|v| v == "*") {
        errors.invalid(&at, r[key].clone(), format!("if '*' is present, must not specify other {what}"));
    }
}

pub(super) fn rule(r: &Value, path: &Path<'_>, errors: &mut Errors) {
    starred(r, "operations", "operations", path, errors);
    let at = path.child("operations");
    for (i, o) in list(r, "operations").iter().filter_map(Value::as_str).enumerate() {
        if !OPERATIONS.contains(&o) {
            errors.not_supported(&at.index(i), o, OPERATIONS);
        }
    }
    starred(r, "apiGroups", "API groups", path, errors);
    starred(r, "apiVersions", "API versions", path, errors);
    let at = path.child("apiVersions");
    for (i, _) in list(r, "apiVersions").iter().enumerate().filter(|(_, v)| *v == "") {
        errors.required(&at.index(i), "");
    }
    resources(r, &path.child("resources"), errors);
    one_of(r, "scope", &["*", "Cluster", "Namespaced"], path, errors);
}

fn resources(r: &Value, path: &Path<'_>, errors: &mut Errors) {
    let all: Vec<&str> = list(r, "resources").iter().filter_map(Value::as_str).collect();
    if all.is_empty() {
        errors.required(path, "");
    }
    let (mut every_sub, mut every_resource) = (vec![], vec![]);
    for (i, one) in all.iter().enumerate() {
        let at = path.index(i);
        if one.is_empty() {
            errors.required(&at, "");
        }
        let Some((resource, sub)) = one.split_once('/') else { continue };
        if every_sub.contains(&resource) {
            errors.invalid(&at, *one, format!("if '{resource}/*' is present, must not specify {one}"));
        }
        if every_resource.contains(&sub) {
            errors.invalid(&at, *one, format!("if '*/{sub}' is present, must not specify {one}"));
        }
        if sub == "*" {
            every_sub.push(resource);
        }
        if resource == "*" {
            every_resource.push(sub);
        }
    }
    let shown = || r["resources"].clone();
    if all.len() > 1 && all.contains(&"*/*") {
        errors.invalid(path, shown(), "if '*/*' is present, must not specify other resources");
    }
    if all.contains(&"*") && all.iter().any(|a| *a != "*" && !a.is_empty() && !a.contains('/')) {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.invalid(path, shown(), why);
    }
}
