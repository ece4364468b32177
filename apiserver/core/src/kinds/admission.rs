//! Policies in CEL and their bindings: what they are defaulted to, and that every expression in them compiles.

use serde_json::{Value, json};

use super::check::{complain, given, label_selector, list, one_of, text};
use super::defaults::{self, set};
use super::webhooks::{G, conditions, rule};
use super::{Strategy, Traits};
use crate::custom::cel::expression::{Env, Expression, Want, is_reserved};
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
            let at = all.index(i);
            resource_names(r, &at.child("resourceNames"), errors);
            rule(r, &at, errors);
        }
    }
}

fn resource_names(r: &Value, path: &Path<'_>, errors: &mut Errors) {
    let all: Vec<&str> = list(r, "resourceNames").iter().filter_map(Value::as_str).collect();
    for (i, name) in all.iter().enumerate() {
        complain(&path.index(i), name, names::is_path_segment(name), errors);
        if all[..i].contains(name) {
            errors.duplicate(&path.index(i), *name);
        }
    }
}

/// Rules of ValidatingAdmissionPolicies and MutatingAdmissionPolicies.
pub(super) struct Policy {
    pub(super) mutating: bool,
}

impl Strategy for Policy {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { status: true, status_keeps_meta: true, ..G };
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
            param_kind(&spec["paramKind"], &path.child("paramKind"), errors);
        }
        let at = path.child("matchConstraints");
        if given(spec, "matchConstraints") {
            let m = &spec["matchConstraints"];
            validate_match(m, &at, errors);
            if list(m, "resourceRules").is_empty() {
                errors.required(&at.child("resourceRules"), "");
            }
            if self.mutating {
                mutable(m, &at, errors);
            }
        } else {
            errors.required(&at, "");
        }
        let mut env = Env::policy(given(spec, "paramKind"));
        if given(spec, "matchConditions") {
            conditions(spec, &env, &path, errors);
        }
        env = env.composing(!list(spec, "variables").is_empty());
        if self.mutating {
            env = env.with_objects();
        }
        variables(spec, &mut env, &path, errors);
        if self.mutating {
            mutations(spec, &env, &path, errors);
            if text(spec, "reinvocationPolicy").is_empty() {
                errors.required(&path.child("reinvocationPolicy"), "");
            } else {
                one_of(spec, "reinvocationPolicy", &["IfNeeded", "Never"], &path, errors);
            }
        } else {
            validations(spec, &env, &path, errors);
            annotations(obj, &env, &path, errors);
        }
    }
}

fn param_kind(p: &Value, path: &Path<'_>, errors: &mut Errors) {
    let (api_version, kind) = (text(p, "apiVersion"), text(p, "kind"));
    let at = path.child("apiVersion");
    if api_version.is_empty() {
        errors.required(&at, "");
    } else if api_version.matches('/').count() > 1 {
        errors.invalid(&at, api_version, format!("unexpected GroupVersion string: {api_version}"));
    } else {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let joined = |why: Vec<String>| (!why.is_empty()).then(|| why.join(","));
        if !group.is_empty()
            && let Some(why) = joined(names::is_dns1123_subdomain(group))
        {
            errors.invalid(&at, group, why);
        }
        if version.is_empty() {
            errors.invalid(&at, api_version, "version must be specified");
        } else if let Some(why) = joined(names::is_dns1035_label(version)) {
            errors.invalid(&at, version, why);
        }
    }
    if kind.is_empty() {
        errors.required(&path.child("kind"), "");
    } else {
        let why = names::is_dns1035_label(&kind.to_lowercase());
        if !why.is_empty() {
            let why = format!("may have mixed case, but should otherwise match: {}", why.join(","));
            errors.invalid(&path.child("kind"), kind, why);
        }
    }
}

/// What is deleted cannot be changed.
fn mutable(m: &Value, path: &Path<'_>, errors: &mut Errors) {
    const KNOWN: &[&str] = &["*", "CONNECT", "CREATE", "UPDATE"];
    let (rules, operations) = (path.child("resourceRules"), "operations");
    let all = list(m, "resourceRules").iter().flat_map(|r| list(r, operations)).filter_map(Value::as_str);
    for o in all.filter(|o| !KNOWN.contains(o)) {
        errors.not_supported(&rules.child(operations), o, KNOWN);
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
    for (i, v) in list(spec, "variables").iter().enumerate() {
        let (at, name) = (all.index(i), text(v, "name"));
        let identifier = |n: &str| {
            n.chars().enumerate().all(|(i, c)| c == '_' || c.is_ascii_alphabetic() || (i > 0 && c.is_ascii_digit()))
        };
        if name.trim().is_empty() {
            errors.required(&at.child("name"), "name is not specified");
        } else if !identifier(name) || is_reserved(name) {
            errors.invalid(&at.child("name"), name, "name is not a valid CEL identifier");
        }
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
        const WHY: &str = "validations or auditAnnotations must contain at least one item";
        errors.required(&all, WHY);
        errors.required(&path.child("auditAnnotations"), WHY);
    }
    let without = env.clone().without_authorizer();
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
                compiled(v, "messageExpression", &without, Want::Text, &at, errors);
            }
        }
        if !message.is_empty() {
            if message.trim().is_empty() {
                errors.invalid(&at.child("message"), message, "message must be non-empty if specified");
            } else if message.trim().contains(['\n', '\r']) {
                errors.invalid(&at.child("message"), message, "message must not contain line breaks");
            }
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
        let whole = format!("{}/{key}", meta::name(obj));
        complain(&at.child("key"), &whole, names::is_qualified_name(&whole), errors);
        if value.trim().is_empty() {
            errors.required(&at.child("valueExpression"), "valueExpression is not specified");
        } else if value.trim().len() > ANNOTATION_MAX {
            let why = format!("must not exceed {ANNOTATION_MAX} bytes in length");
            errors.required(&at.child("valueExpression"), &why);
        } else {
            compiled(a, "valueExpression", env, Want::TextOrNull, &at, errors);
        }
        if seen.contains(&key) {
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
            errors.required(&inner.child("expression"), "");
        } else {
            compiled(&m[key], "expression", env, want, &inner, errors);
        }
        if given(m, other) {
            let why = format!("must not be specified when patchType is {}", text(m, "patchType"));
            errors.invalid(&at.child(other), format!("{{{other}}}"), why);
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
            let missing = |e: &mut Errors| e.required(&path.child("policyName"), "");
            if self.mutating { missing(errors) } else { errors.generated(missing) }
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
    let name = text(p, "name");
    if !name.is_empty() {
        complain(&path.child("name"), name, names::is_path_segment(name), errors);
    }
    match (!text(p, "name").is_empty(), given(p, "selector")) {
        (true, true) => {
            errors.forbidden(&path.child("name"), BOTH);
            label_selector(&p["selector"], &path.child("selector"), errors);
            errors.forbidden(&path.child("selector"), BOTH);
        }
        (false, false) => errors.required(path, "one of name or selector must be specified"),
        (false, true) => label_selector(&p["selector"], &path.child("selector"), errors),
        (true, false) => {}
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
        errors.generated(|e| e.required(path, ""));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(mutating: bool, spec: &Value) -> Vec<String> {
        let mut whole = json!({"failurePolicy": "Fail", "reinvocationPolicy": "Never",
            "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
                "resources": ["pods"], "scope": "*"}]},
            "validations": [{"expression": "true"}], "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}}]});
        for (k, v) in spec.as_object().unwrap() {
            whole[k] = v.clone();
        }
        let mut errors = Errors::new();
        let policy = json!({"metadata": {"name": "p"}, "spec": whole});
        Policy { mutating }.validate(&policy, &mut errors);
        errors.0.iter().map(|e| e.to_string().lines().next().unwrap_or_default().to_owned()).collect()
    }

    /// (what the spec says, what is said of it)
    #[test]
    fn validating() {
        let cases = [
            (json!({}), vec![]),
            (
                json!({"validations": [{"expression": "1"}]}),
                vec!["spec.validations[0].expression: Invalid value: \"1\": must evaluate to bool but got int"],
            ),
            (
                json!({"validations": [{"expression": "true", "messageExpression": "string(authorizer.path('/').check('get').allowed())"}]}),
                vec![
                    "spec.validations[0].messageExpression: Invalid value: \"string(authorizer.path('/').check('get').allowed())\": compilation failed: ERROR: <input>:1:8: undeclared reference to 'authorizer' (in container '')",
                ],
            ),
            (
                json!({"variables": [{"name": "a-b", "expression": "1"}, {"name": "x", "expression": "variables.y"}]}),
                vec![
                    "spec.variables[0].name: Invalid value: \"a-b\": name is not a valid CEL identifier",
                    "spec.variables[1].expression: Invalid value: \"variables.y\": compilation failed: ERROR: <input>:1:10: undefined field 'y'",
                ],
            ),
            (
                json!({"paramKind": {"apiVersion": "a/b/c", "kind": "K_"}}),
                vec![
                    "spec.paramKind.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
                    "spec.paramKind.kind: Invalid value: \"K_\": may have mixed case, but should otherwise match: a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
                ],
            ),
            (
                json!({"auditAnnotations": [{"key": "k", "valueExpression": "1"}, {"key": "k", "valueExpression": "null"}]}),
                vec![
                    "spec.auditAnnotations[0].valueExpression: Invalid value: \"1\": must evaluate to one of [string null_type]",
                    "spec.auditAnnotations[1].key: Duplicate value: \"k\"",
                ],
            ),
        ];
        for (spec, want) in cases {
            assert_eq!(faults(false, &spec), want, "{spec}");
        }
    }

    #[test]
    fn mutating() {
        let rules = |o: &str| json!({"resourceRules": [{"operations": [o], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "scope": "*"}]});
        let cases = [
            (json!({}), vec![]),
            (
                json!({"mutations": []}),
                vec!["spec.mutations: Required value: mutations must contain at least one item"],
            ),
            (
                json!({"mutations": [{"patchType": "X"}]}),
                vec![
                    "spec.mutations[0].patchType: Unsupported value: \"X\": supported values: \"ApplyConfiguration\", \"JSONPatch\"",
                ],
            ),
            (
                json!({"mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "object"}, "jsonPatch": {"expression": "[]"}}]}),
                vec![
                    "spec.mutations[0].applyConfiguration.expression: Invalid value: \"object\": must evaluate to Object but got dyn",
                    "spec.mutations[0].jsonPatch: Invalid value: \"{jsonPatch}\": must not be specified when patchType is ApplyConfiguration",
                ],
            ),
            (
                json!({"matchConstraints": rules("DELETE")}),
                vec![
                    "spec.matchConstraints.resourceRules.operations: Unsupported value: \"DELETE\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"UPDATE\"",
                ],
            ),
        ];
        for (spec, want) in cases {
            assert_eq!(faults(true, &spec), want, "{spec}");
        }
    }
}
