//! `ObjectMeta`: access, and the rules every kind shares.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::invalid::{Errors, quote_str};
use crate::names;
use crate::path::Path;

/// `metadata` of an object, if it has one.
#[must_use]
pub fn meta(obj: &Value) -> Option<&Map<String, Value>> {
    obj.get("metadata")?.as_object()
}

/// `metadata`, created when missing.
pub fn meta_mut(obj: &mut Value) -> &mut Map<String, Value> {
    if !obj.is_object() {
        *obj = Value::Object(Map::new());
    }
    let Value::Object(o) = obj else { unreachable!("made an object above") };
    let m = o.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if !m.is_object() {
        *m = Value::Object(Map::new());
    }
    let Value::Object(m) = m else { unreachable!("made an object above") };
    m
}

/// A string in `metadata`, empty when absent.
#[must_use]
pub fn text<'a>(obj: &'a Value, key: &str) -> &'a str {
    meta(obj).and_then(|m| m.get(key)).and_then(Value::as_str).unwrap_or_default()
}

/// `metadata.name`.
#[must_use]
pub fn name(obj: &Value) -> &str {
    text(obj, "name")
}

/// `metadata.namespace`.
#[must_use]
pub fn namespace(obj: &Value) -> &str {
    text(obj, "namespace")
}

/// `metadata.uid`.
#[must_use]
pub fn uid(obj: &Value) -> &str {
    text(obj, "uid")
}

/// Whether deletion has begun.
#[must_use]
pub fn deleting(obj: &Value) -> bool {
    meta(obj).is_some_and(|m| m.get("deletionTimestamp").is_some_and(|t| !t.is_null()))
}

/// `metadata.finalizers`.
#[must_use]
pub fn finalizers(obj: &Value) -> Vec<&str> {
    let list = meta(obj).and_then(|m| m.get("finalizers")).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Drops owner references that are there twice, word for word; answers the uids of what went.
pub fn dedup_owners(obj: &mut Value) -> Vec<String> {
    let Some(list) = obj.pointer_mut("/metadata/ownerReferences").and_then(Value::as_array_mut) else { return vec![] };
    let mut seen: Vec<Value> = Vec::with_capacity(list.len());
    let mut gone = vec![];
    for reference in std::mem::take(list) {
        if seen.contains(&reference) {
            gone.push(reference["uid"].as_str().unwrap_or_default().to_owned());
        } else {
            seen.push(reference);
        }
    }
    *list = seen;
    gone
}

/// Which grammar a kind's name follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain (most kinds).
    Subdomain,
    /// RFC 1123 label.
    Label,
    /// RFC 1035 label (Services).
    Label1035,
    /// One path segment (RBAC kinds).
    PathSegment,
}

impl NameRule {
    /// Complaints about `name`. `prefix` says that it is a generateName, whose trailing dash is masked.
    #[must_use]
    pub fn check(self, name: &str, prefix: bool) -> Vec<String> {
        let masked;
        let name = if prefix && name.len() > 1 && name.ends_with('-') {
            masked = format!("{}a", &name[..name.len() - 2 + 1]);
            masked.as_str()
        } else {
            name
        };
        match self {
            Self::Subdomain => names::is_dns1123_subdomain(name),
            Self::Label => names::is_dns1123_label(name),
            Self::Label1035 => names::is_dns1035_label(name),
            Self::PathSegment => names::is_path_segment(name),
        }
    }
}

/// Checks the metadata of an object about to be created (names are already generated).
pub fn validate(obj: &Value, namespaced: bool, rule: NameRule, errors: &mut Errors) {
    let path = Path::new("metadata");
    let empty = Map::new();
    let m = meta(obj).unwrap_or(&empty);
    let str_of = |k: &str| m.get(k).and_then(Value::as_str).unwrap_or_default();
    let generate = str_of("generateName");
    if !generate.is_empty() {
        for why in rule.check(generate, true) {
            errors.invalid(&path.child("generateName"), generate, why);
        }
    }
    if str_of("name").is_empty() {
        errors.required(&path.child("name"), "name or generateName is required");
    } else {
        for why in rule.check(str_of("name"), false) {
            errors.invalid(&path.child("name"), str_of("name"), why);
        }
    }
    if namespaced {
        if str_of("namespace").is_empty() {
            errors.required(&path.child("namespace"), "");
        } else {
            for why in names::is_dns1123_label(str_of("namespace")) {
                errors.invalid(&path.child("namespace"), str_of("namespace"), why);
            }
        }
    } else if !str_of("namespace").is_empty() {
        errors.forbidden(&path.child("namespace"), "not allowed on this type");
    }
    validate_common(m, &path, errors);
    validate_finalizers(m, &path, errors);
}

fn validate_common(m: &Map<String, Value>, path: &Path<'_>, errors: &mut Errors) {
    if let Some(g) = m.get("generation").and_then(Value::as_i64)
        && g < 0
    {
        errors.invalid(&path.child("generation"), g, "must be greater than or equal to 0");
    }
    names::validate_labels(m.get("labels").and_then(Value::as_object), &path.child("labels"), errors);
    names::validate_annotations(m.get("annotations").and_then(Value::as_object), &path.child("annotations"), errors);
    validate_owners(m, path, errors);
}

fn validate_owners(m: &Map<String, Value>, path: &Path<'_>, errors: &mut Errors) {
    let owners = path.child("ownerReferences");
    let Some(list) = m.get("ownerReferences").and_then(Value::as_array) else { return };
    let mut controller: Option<&Value> = None;
    for (i, o) in list.iter().enumerate() {
        let at = owners.index(i);
        let get = |k: &str| o.get(k).and_then(Value::as_str).unwrap_or_default();
        let version = get("apiVersion");
        let parts: Vec<&str> = version.split('/').collect();
        if parts.len() > 2 {
            errors.invalid(&at.child("apiVersion"), version, "must be <group>/<version> or <version>");
        } else if version.is_empty() || parts.last().is_some_and(|v| v.is_empty()) {
            errors.required(&at.child("apiVersion"), "must not be empty");
        }
        for key in ["kind", "name", "uid"] {
            if get(key).is_empty() {
                errors.required(&at.child(key), "must not be empty");
            }
        }
        if version == "v1" && get("kind") == "Event" {
            // As upstream's type prints: in the order of its fields.
            let keys = ["apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion"];
            let shown = keys.iter().filter_map(|k| o.get(*k).filter(|v| !v.is_null()).map(|v| format!("\"{k}\":{v}")));
            let shown = format!("{{{}}}", shown.collect::<Vec<_>>().join(","));
            errors.invalid_raw(&at, shown, "/v1, Kind=Event is disallowed from being an owner");
        }
        if o.get("controller").and_then(Value::as_bool) == Some(true) {
            if let Some(first) = controller {
                errors.invalid_raw(
                    &owners,
                    Value::Array(list.clone()).to_string(),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {} and {}",
                        format_args!("{}/{}", first["kind"].as_str().unwrap_or_default(), first["name"].as_str().unwrap_or_default()),
                        format_args!("{}/{}", get("kind"), get("name"))
                    ),
                );
            } else {
                controller = Some(o);
            }
        }
    }
}

fn validate_finalizers(m: &Map<String, Value>, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("finalizers");
    let (mut orphan, mut foreground) = (false, false);
    for f in m.get("finalizers").and_then(Value::as_array).into_iter().flatten() {
        let f = f.as_str().unwrap_or_default();
        for why in names::is_qualified_name(f) {
            errors.invalid(&at, f, why);
        }
        orphan |= f == "orphan";
        foreground |= f == "foregroundDeletion";
    }
    if orphan && foreground {
        let list = m.get("finalizers").cloned().unwrap_or_default();
        errors.invalid_raw(&at, list.to_string(), "finalizer orphan and foregroundDeletion cannot be both set");
    }
}

/// Built-in kinds ask more of finalizers than custom ones: without a domain only the standard names are allowed.
pub fn validate_standard_finalizers(obj: &Value, errors: &mut Errors) {
    let metadata = Path::new("metadata");
    let at = metadata.child("finalizers");
    for (i, f) in finalizers(obj).into_iter().enumerate() {
        standard_finalizer(f, &at.index(i), errors);
    }
}

/// Whether a finalizer names no domain and is none of the standard ones.
#[must_use]
pub fn is_plain_finalizer(name: &str) -> bool {
    !name.contains('/') && !matches!(name, "orphan" | "foregroundDeletion" | "kubernetes")
}

/// Complains about a name without a domain that is none of the standard finalizers.
pub fn standard_finalizer(name: &str, at: &Path<'_>, errors: &mut Errors) {
    if is_plain_finalizer(name) {
        errors.invalid(at, name, "name is neither a standard finalizer name nor is it fully qualified");
    }
}

/// Checks new metadata, and then against old.
pub fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("metadata");
    let empty = Map::new();
    let m = meta(new).unwrap_or(&empty);
    validate_common(m, &path, errors);
    validate_finalizers(m, &path, errors);
    validate_change(new, old, errors);
}

/// The part of [`validate_update`] that looks at both.
pub fn validate_change(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("metadata");
    let empty = Map::new();
    let (n, o) = (meta(new).unwrap_or(&empty), meta(old).unwrap_or(&empty));
    if deleting(old) {
        let before = finalizers(old);
        let added: BTreeSet<&str> = finalizers(new).into_iter().filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            let shown: Vec<String> = added.into_iter().map(quote_str).collect();
            errors.forbidden(
                &path.child("finalizers"),
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    shown.join(", ")
                ),
            );
        }
    }
    let version = n.get("resourceVersion").and_then(Value::as_str).unwrap_or_default();
    if version.is_empty() {
        errors.invalid(&path.child("resourceVersion"), version, "must be specified for an update");
    }
    let generation = |m: &Map<String, Value>| m.get("generation").and_then(Value::as_i64).unwrap_or(0);
    if generation(n) < generation(o) {
        errors.invalid(&path.child("generation"), generation(n), "must not be decremented");
    }
    let immutable =
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"];
    for key in immutable {
        if n.get(key) != o.get(key) {
            let absent = if key.contains("Timestamp") || key.contains("Seconds") { Value::Null } else { "".into() };
            errors.invalid(&path.child(key), n.get(key).cloned().unwrap_or(absent), "field is immutable");
        }
    }
    validate_common(n, &path, errors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn generate_name_may_end_in_a_dash() {
        assert!(NameRule::Subdomain.check("a-", true).is_empty());
        assert!(!NameRule::Subdomain.check("a-", false).is_empty());
        assert!(!NameRule::Subdomain.check("A-", true).is_empty());
    }

    #[test]
    fn no_finalizer_is_added_while_deleting() {
        let old =
            json!({"metadata": {"name": "a", "resourceVersion": "1", "deletionTimestamp": "2024-01-01T00:00:00Z"}});
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!(["e.com/a"]);
        let mut e = Errors::new();
        validate_update(&new, &old, &mut e);
        assert_eq!(e.len(), 1, "{:?}", e.0);
        assert!(e.0[0].body.starts_with("Forbidden: no new finalizers"));
    }
}
