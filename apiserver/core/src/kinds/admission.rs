//! Policies in CEL and their bindings: what they are defaulted to, and that every expression in them compiles.

use serde_json::{Value, json};

use super::check::{complain, given, label_selector, list, one_of, text};
use super::defaults::{self, set};
use super::webhooks::{G, conditions, rule};
use super::{Strategy, Traits};
use crate::custom::cel::expression::{Env, Expression, Want};
use crate::invalid::Errors;
use crate::meta;
use crate::names;
use crate::path::Path;

/// Upstream's bounds of audit annotations.
const ANNOTATIONS_MAX: usize = 20;
const ANNOTATION_MAX: usize = 5 * 1024;
/// Reasons that a validation may give.
const REASONS: &[&str] = &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];

/// Defaults of what a policy or binding matches.
fn default_match(m: &mut Value) {
    let Some(o) = m.as_object_mut() else { return };
    for key in ["namespaceSelector", "objectSelector"] {
        set(o, key, json!({}));
    }
    set(o, "matchPolicy", "Equivalent");
    for key in ["resourceRules", "excludeResourceRules"] {
        for r in defaults::each(m, key) {
            set(r, "scope", "*");
        }
    }
}

fn validate_match(m: &Value, path: &Path<'_>, errors: &mut Errors) {
    one_of(m, "matchPolicy", &["Equivalent", "Exact"], path, errors);
    for key in ["namespaceSelector", "objectSelector"] {
        label_selector(&m[key], &path.child(key), errors);
    }
    for key in ["resourceRules", "excludeResourceRules"] {
        let all = path.child(key);
        for (i, r) in list(m, key).iter().enumerate() {
            rule(r, &all.index(i), errors);
        }
    }
}

/// Rules of ValidatingAdmissionPolicies and MutatingAdmissionPolicies.
pub(super) struct Policy {
    pub(super) mutating: bool,
}

impl Strategy for Policy {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { status: true, ..G };
        if self.mutating { &G } else { &T }
    }

    fn default(&self, obj: &mut Value) {
        let Some(spec) = obj.get_mut("spec").and_then(Value::as_object_mut) else { return };
        set(spec, "failurePolicy", "Fail");
        if let Some(m) = spec.get_mut("matchConstraints") {
            default_match(m);
        }
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (spec, path) = (&obj["spec"], Path::new("spec"));
        one_of(spec, "failurePolicy", &["Fail", "Ignore"], &path, errors);
        if given(spec, "paramKind") {
            let at = path.child("paramKind");
            for key in ["apiVersion", "kind"] {
                if text(&spec["paramKind"], key).is_empty() {
                    errors.required(&at.child(key), "");
                }
            }
        }
        let at = path.child("matchConstraints");
        if given(spec, "matchConstraints") {
            let m = &spec["matchConstraints"];
            validate_match(m, &at, errors);
            if list(m, "resourceRules").is_empty() {
                errors.required(&at.child("resourceRules"), "");
            }
        } else {
            errors.required(&at, "");
        }
        let mut env = Env::policy(given(spec, "paramKind"));
        if given(spec, "matchConditions") {
            conditions(spec, &env, &path, errors);
        }
        if self.mutating {
            env = env.with_objects();
        }
        variables(spec, &mut env, &path, errors);
        if self.mutating {
            one_of(spec, "reinvocationPolicy", &["IfNeeded", "Never"], &path, errors);
            mutations(spec, &env, &path, errors);
        } else {
            validations(spec, &env, &path, errors);
            annotations(obj, &env, &path, errors);
        }
    }
}

/// Compiles one expression of a policy; a fault is told at `key` of `path`.
fn compiled(v: &Value, key: &str, env: &Env, want: Want, path: &Path<'_>, errors: &mut Errors) -> Option<Expression> {
    let expression = text(v, key);
    match env.compile(expression, want) {
        Ok(e) => Some(e),
        Err(why) => {
            errors.invalid(&path.child(key), expression, why);
            None
        }
    }
}

/// Composed variables, each of which may use those before it.
fn variables(spec: &Value, env: &mut Env, path: &Path<'_>, errors: &mut Errors) {
    let all = path.child("variables");
    let mut seen = vec![];
    for (i, v) in list(spec, "variables").iter().enumerate() {
        let (at, name) = (all.index(i), text(v, "name"));
        let identifier = |n: &str| {
            n.chars().enumerate().all(|(i, c)| c == '_' || c.is_ascii_alphabetic() || (i > 0 && c.is_ascii_digit()))
        };
        if name.is_empty() {
            errors.required(&at.child("name"), "name is not specified");
        } else if !identifier(name) {
            errors.invalid(&at.child("name"), name, "name is not a valid CEL identifier");
        } else if seen.contains(&name) {
            errors.duplicate(&at.child("name"), name);
        }
        seen.push(name);
        if text(v, "expression").trim().is_empty() {
            errors.required(&at.child("expression"), "expression is not specified");
            env.declare(name, None);
        } else {
            let e = compiled(v, "expression", env, Want::Any, &at, errors);
            env.declare(name, e.as_ref());
        }
    }
}

fn validations(spec: &Value, env: &Env, path: &Path<'_>, errors: &mut Errors) {
    let (all, validations) = (path.child("validations"), list(spec, "validations"));
    if validations.is_empty() && list(spec, "auditAnnotations").is_empty() {
        errors.required(&all, "validations or auditAnnotations must contain at least one item");
    }
    for (i, v) in validations.iter().enumerate() {
        let at = all.index(i);
        let (expression, message, by) = (text(v, "expression"), text(v, "message"), text(v, "messageExpression"));
        if expression.trim().is_empty() {
            errors.required(&at.child("expression"), "expression is not specified");
        } else {
            compiled(v, "expression", env, Want::Bool, &at, errors);
        }
        if !by.is_empty() {
            if by.trim().is_empty() {
                errors.invalid(&at.child("messageExpression"), by, "must be non-empty if specified");
            } else {
                compiled(v, "messageExpression", env, Want::Text, &at, errors);
            }
        }
        if !message.is_empty() {
            if message.trim().is_empty() {
                errors.invalid(&at.child("message"), message, "message must be non-empty if specified");
            } else if message.contains(['\n', '\r']) {
                errors.invalid(&at.child("message"), message, "message must not contain line breaks");
            }
        } else if expression.contains(['\n', '\r']) {
            errors.required(&at.child("message"), "message must be specified if expression contains line breaks");
        }
        one_of(v, "reason", REASONS, &at, errors);
    }
}

fn annotations(obj: &Value, env: &Env, path: &Path<'_>, errors: &mut Errors) {
    let (all, annotations) = (path.child("auditAnnotations"), list(&obj["spec"], "auditAnnotations"));
    if annotations.len() > ANNOTATIONS_MAX {
        let why = format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations");
        errors.invalid(&all, obj["spec"]["auditAnnotations"].clone(), why);
    }
    let mut seen = vec![];
    for (i, a) in annotations.iter().enumerate() {
        let (at, key, value) = (all.index(i), text(a, "key"), text(a, "valueExpression"));
        if key.is_empty() {
            errors.required(&at.child("key"), "");
        } else {
            let whole = format!("{}/{key}", meta::name(obj));
            complain(&at.child("key"), key, names::is_qualified_name(&whole), errors);
        }
        if value.trim().is_empty() {
            errors.required(&at.child("valueExpression"), "valueExpression is not specified");
        } else if value.trim().len() > ANNOTATION_MAX {
            errors.too_long(&at.child("valueExpression"), ANNOTATION_MAX);
        } else {
            compiled(a, "valueExpression", env, Want::TextOrNull, &at, errors);
        }
        if !key.is_empty() && seen.contains(&key) {
            errors.duplicate(&at.child("key"), key);
        }
        seen.push(key);
    }
}

fn mutations(spec: &Value, env: &Env, path: &Path<'_>, errors: &mut Errors) {
    let (all, mutations) = (path.child("mutations"), list(spec, "mutations"));
    if mutations.is_empty() {
        errors.required(&all, "mutations must contain at least one item");
    }
    for (i, m) in mutations.iter().enumerate() {
        let at = all.index(i);
        let kinds = [("applyConfiguration", Want::Object), ("jsonPatch", Want::Patches)];
        let chosen = match text(m, "patchType") {
            "ApplyConfiguration" => 0,
            "JSONPatch" => 1,
            "" => {
                errors.required(&at.child("patchType"), "");
                continue;
            }
            _ => {
                one_of(m, "patchType", &["ApplyConfiguration", "JSONPatch"], &at, errors);
                continue;
            }
        };
        let ((key, want), (other, _)) = (kinds[chosen], kinds[1 - chosen]);
        let inner = at.child(key);
        if !given(m, key) {
            let why = format!("must be specified when patchType is {}", text(m, "patchType"));
            errors.required(&inner, &why);
        } else if text(&m[key], "expression").trim().is_empty() {
            errors.required(&inner.child("expression"), "expression is not specified");
        } else {
            compiled(&m[key], "expression", env, want, &inner, errors);
        }
        if given(m, other) {
            let why = format!("must not be specified when patchType is {}", text(m, "patchType"));
            errors.invalid(&at.child(other), m[other].clone(), why);
        }
    }
}

/// Rules of the bindings of policies.
pub(super) struct Binding {
    pub(super) mutating: bool,
}

impl Strategy for Binding {
    fn traits(&self) -> &Traits {
        &G
    }

    fn default(&self, obj: &mut Value) {
        if let Some(m) = obj.get_mut("spec").and_then(|s| s.get_mut("matchResources")) {
            default_match(m);
        }
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (spec, path) = (&obj["spec"], Path::new("spec"));
        let policy = text(spec, "policyName");
        if policy.is_empty() {
            errors.required(&path.child("policyName"), "");
        } else {
            complain(&path.child("policyName"), policy, names::is_dns1123_subdomain(policy), errors);
        }
        if given(spec, "paramRef") {
            parameters(&spec["paramRef"], &path.child("paramRef"), errors);
        }
        validate_match(&spec["matchResources"], &path.child("matchResources"), errors);
        if !self.mutating {
            actions(spec, &path.child("validationActions"), errors);
        }
    }
}

fn parameters(p: &Value, path: &Path<'_>, errors: &mut Errors) {
    const BOTH: &str = "name and selector are mutually exclusive";
    match (!text(p, "name").is_empty(), given(p, "selector")) {
        (true, true) => {
            errors.forbidden(&path.child("name"), BOTH);
            errors.forbidden(&path.child("selector"), BOTH);
        }
        (false, false) => errors.required(path, "one of name or selector must be specified"),
        _ => {}
    }
    if given(p, "parameterNotFoundAction") {
        one_of(p, "parameterNotFoundAction", &["Deny", "Allow"], path, errors);
    } else {
        errors.required(&path.child("parameterNotFoundAction"), "");
    }
}

fn actions(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    const KNOWN: &[&str] = &["Audit", "Deny", "Warn"];
    let all: Vec<&str> = list(spec, "validationActions").iter().filter_map(Value::as_str).collect();
    if all.is_empty() {
        errors.required(path, "");
    }
    for (i, a) in all.iter().enumerate() {
        if !KNOWN.contains(a) {
            errors.not_supported(&path.index(i), *a, KNOWN);
        }
        if all[..i].contains(a) {
            errors.duplicate(&path.index(i), *a);
        }
    }
    if all.contains(&"Deny") && all.contains(&"Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errors.invalid(path, spec["validationActions"].clone(), why);
    }
}
