//! Rules for a definition besides its schema: names, versions, columns, subresources, selectable fields, conversion.
//!
//! Upstream keeps what all versions share in one place and names that place in errors: `spec.validation` instead of
//! `spec.versions[0].schema`. [`spec`] does so too.

use serde_json::{Value, json};

use super::names::{self, APPROVAL};
use super::{jsonpath, structural};
use crate::invalid::{Errors, quote_str};

use crate::names as grammar;

/// Most fields a version may offer to selectors.
const SELECTABLE_MAX: usize = 8;

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn label(path: &str, value: &str, errors: &mut Errors) {
    let why = grammar::is_dns1035_label(value);
    if !value.is_empty() && !why.is_empty() {
        errors.invalid(&path, value, why.join(","));
    }
}

fn mixed_case(path: &str, value: &str, errors: &mut Errors) {
    let why = grammar::is_dns1035_label(&value.to_lowercase());
    if !value.is_empty() && !why.is_empty() {
        errors.invalid(&path, value, format!("may have mixed case, but should otherwise match: {}", why.join(",")));
    }
}

/// Checks `spec`.
pub(super) fn spec(spec: &Value, errors: &mut Errors) {
    let group = text(spec, "group");
    let why = grammar::is_dns1123_subdomain(group);
    if group.is_empty() {
        errors.required(&"spec.group", "");
    } else if !why.is_empty() {
        errors.invalid(&"spec.group", group, why.join(","));
    } else if !group.contains('.') {
        errors.invalid(&"spec.group", group, "should be a domain with at least one dot");
    }
    match text(spec, "scope") {
        "" => errors.required(&"spec.scope", ""),
        "Cluster" | "Namespaced" => {}
        other => errors.not_supported(&"spec.scope", other, &["Cluster", "Namespaced"]),
    }
    let versions = list(spec, "versions");
    let schema_of =
        |v: &Value| v.get("schema").and_then(|s| s.get("openAPIV3Schema")).filter(|s| !s.is_null()).cloned();
    for (i, version) in versions.iter().enumerate() {
        if schema_of(version).is_none() {
            errors.required(&format!("spec.versions[{i}].schema.openAPIV3Schema"), "");
        }
    }
    if spec["preserveUnknownFields"] == true && versions.iter().filter_map(schema_of).any(|s| has_defaults(&s)) {
        let why = "must be false in order to use defaults in the schema";
        errors.invalid(&"spec.preserveUnknownFields", true, why);
    }
    // What all versions share is checked once, below.
    let shared = |key: &str| {
        let part = |v: &Value| v.get(key).filter(|p| !p.is_null()).cloned();
        versions.iter().all(|v| part(v) == part(&versions[0]))
    };
    let (one_schema, one_sub) = (shared("schema"), shared("subresources"));
    let (one_columns, one_fields) = (shared("additionalPrinterColumns"), shared("selectableFields"));
    let mut seen: Vec<&str> = Vec::new();
    let mut unique = true;
    for (i, version) in versions.iter().enumerate() {
        let at = format!("spec.versions[{i}]");
        let name = text(version, "name");
        unique &= !seen.contains(&name);
        seen.push(name);
        let why = grammar::is_dns1035_label(name);
        if !why.is_empty() {
            errors.invalid(&format!("{at}.name"), name, why.join(","));
        }
        deprecation(version, &at, errors);
        if !one_schema {
            root_type(schema_of(version).as_ref(), version, &format!("{at}.schema"), errors);
        }
        if !one_schema && let Some(schema) = schema_of(version) {
            structural::check(&schema, &format!("{at}.schema.openAPIV3Schema"), errors);
        }
        if !one_sub {
            subresources(version, &at, errors);
        }
        if !one_columns {
            columns(version, &at, errors);
        }
        if !one_fields {
            selectable(version, schema_of(version).as_ref(), &at, errors);
        }
    }
    let shown = || if versions.is_empty() { "null".to_owned() } else { Value::Array(versions.to_vec()).to_string() };
    if !unique {
        errors.invalid_raw(&"spec.versions", shown(), "must contain unique version names");
    }
    if versions.iter().filter(|v| v.get("storage") == Some(&Value::Bool(true))).count() != 1 {
        errors.invalid_raw(&"spec.versions", shown(), "must have exactly one version marked as storage version");
    }
    if let Some(name) = versions.first().map(|v| text(v, "name")).filter(|n| !n.is_empty()) {
        // The first version is also the field of an older form, which is checked as well.
        let why = grammar::is_dns1035_label(name);
        if !why.is_empty() {
            errors.invalid(&"spec.version", name, why.join(","));
        }
    }
    names_of(&spec["names"], errors);
    if let Some(first) = versions.first() {
        if one_schema && let Some(schema) = schema_of(first) {
            root_type(Some(&schema), first, "spec.validation", errors);
            structural::check(&schema, "spec.validation.openAPIV3Schema", errors);
        }
        if one_fields {
            selectable(first, schema_of(first).as_ref(), "spec", errors);
        }
        if one_sub {
            subresources(first, "spec", errors);
        }
        if one_columns {
            columns(first, "spec", errors);
        }
    }
    conversion(&spec["conversion"], errors);
}

fn names_of(names: &Value, errors: &mut Errors) {
    for key in ["plural", "singular", "kind", "listKind"] {
        if text(names, key).is_empty() {
            errors.required(&format!("spec.names.{key}"), "");
        }
    }
    label("spec.names.plural", text(names, "plural"), errors);
    label("spec.names.singular", text(names, "singular"), errors);
    mixed_case("spec.names.kind", text(names, "kind"), errors);
    mixed_case("spec.names.listKind", text(names, "listKind"), errors);
    each_label("shortNames", list(names, "shortNames"), errors);
    if !text(names, "kind").is_empty() && text(names, "kind") == text(names, "listKind") {
        errors.invalid(&"spec.names.listKind", text(names, "listKind"), "kind and listKind may not be the same");
    }
    each_label("categories", list(names, "categories"), errors);
}

fn each_label(key: &str, all: &[Value], errors: &mut Errors) {
    for (i, name) in all.iter().filter_map(Value::as_str).enumerate() {
        let why = grammar::is_dns1035_label(name);
        if !why.is_empty() {
            errors.invalid(&format!("spec.names.{key}[{i}]"), name, why.join(","));
        }
    }
}

fn deprecation(version: &Value, at: &str, errors: &mut Errors) {
    let Some(warning) = version.get("deprecationWarning").and_then(Value::as_str) else { return };
    let at = format!("{at}.deprecationWarning");
    if version.get("deprecated") != Some(&Value::Bool(true)) {
        errors.invalid(&at, warning, "can only be set for deprecated versions");
    }
    if warning.chars().count() > 256 {
        errors.invalid(&at, warning, "must be <= 256 characters long");
    }
    if warning.is_empty() {
        errors.invalid(&at, warning, "must not be an empty string");
    }
    if let Some(i) = warning.char_indices().find(|(_, c)| c.is_control()).map(|(i, _)| i) {
        let why = format!("must only contain printable UTF-8 characters; non-printable character found at index {i}");
        errors.invalid(&at, warning, why);
    }
}

fn simple_path(path: &str) -> Result<(), &'static str> {
    match path.strip_prefix('.') {
        _ if path.is_empty() => Err("must not be empty"),
        None => Err("must be a simple json path starting with ."),
        Some(_) => Ok(()),
    }
}

fn subresources(version: &Value, at: &str, errors: &mut Errors) {
    let Some(scale) = version.get("subresources").and_then(|s| s.get("scale")).filter(|s| !s.is_null()) else { return };
    for (key, below) in [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")] {
        let at = format!("{at}.subresources.scale.{key}");
        let path = text(scale, key);
        if path.is_empty() {
            errors.required(&at, "");
        } else if let Err(why) = simple_path(path) {
            errors.invalid(&at, path, why);
        } else if !path.starts_with(below) {
            errors.invalid(&at, path, format!("should be a json path under {}", below.trim_end_matches('.')));
        }
    }
    let path = text(scale, "labelSelectorPath");
    let at = format!("{at}.subresources.scale.labelSelectorPath");
    if path.is_empty() {
    } else if let Err(why) = simple_path(path) {
        errors.invalid(&at, path, why);
    } else if !path.starts_with(".spec.") && !path.starts_with(".status.") {
        errors.invalid(&at, path, "should be a json path under either .spec or .status");
    }
}

fn columns(version: &Value, at: &str, errors: &mut Errors) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
    for (i, column) in list(version, "additionalPrinterColumns").iter().enumerate() {
        let at = format!("{at}.additionalPrinterColumns[{i}]");
        if text(column, "name").is_empty() {
            errors.required(&format!("{at}.name"), "");
        }
        let kind = text(column, "type");
        let why = format!("must be one of {}", TYPES.join(","));
        if kind.is_empty() {
            errors.required(&format!("{at}.type"), &why);
        } else if !TYPES.contains(&kind) {
            errors.invalid(&format!("{at}.type"), kind, why);
        }
        let format = text(column, "format");
        if !format.is_empty() && !FORMATS.contains(&format) {
            errors.invalid(&format!("{at}.format"), format, format!("must be one of {}", FORMATS.join(",")));
        }
        let path = text(column, "jsonPath");
        if path.is_empty() {
            errors.required(&format!("{at}.JSONPath"), "");
        } else if let Err(why) = simple_path(path) {
            errors.invalid(&format!("{at}.JSONPath"), path, why);
        }
    }
}

fn selectable(version: &Value, schema: Option<&Value>, at: &str, errors: &mut Errors) {
    let fields = list(version, "selectableFields");
    let mut seen: Vec<&str> = Vec::new();
    for (i, field) in fields.iter().enumerate() {
        let at = format!("{at}.selectableFields[{i}].jsonPath");
        let path = text(field, "jsonPath");
        if path.is_empty() {
            errors.required(&at, "");
            continue;
        }
        let found = schema.and_then(|s| field_of(s, path));
        let Some(found) = found else {
            errors.invalid(&at, path, "is an invalid path: does not refer to a valid field");
            continue;
        };
        if path.starts_with(".metadata") {
            errors.invalid(&at, path, "must not point to fields in metadata");
        }
        if !matches!(text(found, "type"), "string" | "boolean" | "integer") {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.invalid(&at, path, why);
        }
        if seen.contains(&path) {
            errors.duplicate(&at, path);
        } else {
            seen.push(path);
        }
    }
    if seen.len() > SELECTABLE_MAX {
        errors.too_many(&format!("{at}.selectableFields"), seen.len(), SELECTABLE_MAX);
    }
}

/// The schema of the field at a simple path.
fn field_of<'a>(schema: &'a Value, path: &str) -> Option<&'a Value> {
    jsonpath::JsonPath::parse(path).ok()?;
    let mut at = schema;
    for name in path.strip_prefix('.')?.split('.') {
        at = at.get("properties")?.get(name)?;
    }
    Some(at)
}

fn conversion(conversion: &Value, errors: &mut Errors) {
    if conversion.is_null() {
        return;
    }
    let at = "spec.conversion";
    let strategy = text(conversion, "strategy");
    match strategy {
        "" => errors.required(&format!("{at}.strategy"), ""),
        "None" | "Webhook" => {}
        other => errors.not_supported(&format!("{at}.strategy"), other, &["None", "Webhook"]),
    }
    let webhook = conversion.get("webhook").filter(|w| !w.is_null());
    let client = webhook.and_then(|w| w.get("clientConfig")).filter(|c| !c.is_null());
    let versions = webhook.map(|w| list(w, "conversionReviewVersions")).unwrap_or_default();
    let (client_at, versions_at) = (format!("{at}.webhookClientConfig"), format!("{at}.conversionReviewVersions"));
    if strategy != "Webhook" {
        let why = "should not be set when strategy is not set to Webhook";
        if client.is_some() {
            errors.forbidden(&client_at, why);
        }
        if !versions.is_empty() {
            errors.forbidden(&versions_at, why);
        }
        return;
    }
    match client {
        None => errors.required(&client_at, "required when strategy is set to Webhook"),
        Some(client) => {
            let url = client.get("url").and_then(Value::as_str);
            let service = client.get("service").filter(|s| !s.is_null());
            match (url, service) {
                (Some(url), None) => webhook_url(url, &format!("{client_at}.url"), errors),
                (None, Some(service)) => webhook_service(service, &format!("{client_at}.service"), errors),
                _ => errors.required(&client_at, "exactly one of url or service is required"),
            }
        }
    }
    review_versions(versions, &versions_at, errors);
}

fn review_versions(versions: &[Value], at: &str, errors: &mut Errors) {
    if versions.is_empty() {
        errors.required(&at, "");
        return;
    }
    let names: Vec<&str> = versions.iter().filter_map(Value::as_str).collect();
    let mut fits = true;
    for (i, name) in names.iter().enumerate() {
        let at = format!("{at}[{i}]");
        if names[..i].contains(name) {
            errors.invalid(&at, *name, "duplicate version");
            fits = false;
        }
        let why = grammar::is_dns1035_label(name);
        if !why.is_empty() {
            errors.invalid(&at, *name, why.join(","));
            fits = false;
        }
    }
    if fits && !names.iter().any(|n| matches!(*n, "v1" | "v1beta1")) {
        errors.invalid(&at, Value::Array(versions.to_vec()), "must include at least one of v1, v1beta1");
    }
}

fn webhook_url(url: &str, at: &str, errors: &mut Errors) {
    const FORM: &str = "; desired format: https://host[/path]";
    let Some((scheme, rest)) = url.split_once("://") else {
        errors.invalid(&at, "", format!("'https' is the only allowed URL scheme{FORM}"));
        errors.invalid(&at, "", format!("host must be specified{FORM}"));
        return;
    };
    if scheme != "https" {
        errors.invalid(&at, scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(u, h)| (Some(u), h));
    if host.is_empty() {
        errors.invalid(&at, host, format!("host must be specified{FORM}"));
    }
    if let Some(user) = user {
        errors.invalid(&at, user, "user information is not permitted in the URL");
    }
    let (before, fragment) = rest.split_once('#').map_or((rest, ""), |(b, f)| (b, f));
    if !fragment.is_empty() {
        errors.invalid(&at, fragment, "fragments are not permitted in the URL");
    }
    let query = before.split_once('?').map_or("", |(_, q)| q);
    if !query.is_empty() {
        errors.invalid(&at, query, "query parameters are not permitted in the URL");
    }
}

fn webhook_service(service: &Value, at: &str, errors: &mut Errors) {
    for (key, what) in [("name", "service name is required"), ("namespace", "service namespace is required")] {
        if text(service, key).is_empty() {
            errors.required(&format!("{at}.{key}"), what);
        }
    }
    let port = service.get("port").and_then(Value::as_i64).unwrap_or(443);
    let why = grammar::is_port(port);
    if !why.is_empty() {
        errors.invalid(&format!("{at}.port"), port, format!("port is not valid: {}", why.join(",")));
    }
    let path = text(service, "path");
    let at = format!("{at}.path");
    if matches!(path, "" | "/") {
        return;
    }
    if path == "//" {
        return errors.invalid(&at, path, "segment[0] may not be empty");
    }
    if !path.starts_with('/') {
        errors.invalid(&at, path, "must start with a '/'");
    }
    let mut chars = path.chars();
    chars.next();
    let rest = chars.as_str();
    for (i, step) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if step.is_empty() {
            errors.invalid(&at, path, format!("segment[{i}] may not be empty"));
            continue;
        }
        for why in grammar::is_dns1123_subdomain(step) {
            errors.invalid(&at, path, format!("segment[{i}]: {why}"));
        }
    }
}

/// What stays as it is: the parts of the name always, kind and scope once they were accepted.
pub(super) fn immutable(new: &Value, old: &Value, errors: &mut Errors) {
    let mut same = |path: &str, pointer: &str| {
        let (n, o) = (new.pointer(pointer), old.pointer(pointer));
        if n != o {
            errors.invalid(&path, n.cloned().unwrap_or_default(), "field is immutable");
        }
    };
    if names::established(&old["status"]) {
        same("spec.scope", "/spec/scope");
        same("spec.names.kind", "/spec/names/kind");
    }
    same("spec.group", "/spec/group");
    same("spec.names.plural", "/spec/names/plural");
}

/// Where `status` is written by itself, its schema is taken out of that of the whole, which must be an object's.
fn root_type(schema: Option<&Value>, version: &Value, at: &str, errors: &mut Errors) {
    let alone = version["subresources"].get("status").is_some_and(|s| !s.is_null());
    if let Some(kind) = schema.map(|s| text(s, "type")).filter(|k| alone && !matches!(*k, "" | "object")) {
        let why =
            "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errors.invalid(&format!("{at}.openAPIV3Schema.type"), kind, why);
    }
}

/// Whether a schema has a default anywhere.
fn has_defaults(schema: &Value) -> bool {
    match schema {
        Value::Object(members) => {
            members.get("default").is_some_and(|d| !d.is_null())
                || members.iter().any(|(key, v)| match key.as_str() {
                    "properties" | "patternProperties" | "definitions" | "dependencies" => {
                        v.as_object().into_iter().flatten().any(|(_, v)| has_defaults(v))
                    }
                    "default" | "example" | "enum" => false,
                    _ => has_defaults(v),
                })
        }
        Value::Array(list) => list.iter().any(has_defaults),
        _ => false,
    }
}

/// Versions that objects may be stored in cannot go, and the storage version is one of them.
pub(super) fn stored_versions(new: &Value, errors: &mut Errors) {
    let at = "status.storedVersions";
    let stored: Vec<&str> = list(&new["status"], "storedVersions").iter().filter_map(Value::as_str).collect();
    if stored.is_empty() {
        errors.invalid(&at, Value::Null, "must have at least one stored version");
        return;
    }
    let mut missing: Vec<(usize, &str)> = stored.iter().copied().enumerate().collect();
    for version in list(&new["spec"], "versions") {
        let name = text(version, "name");
        let before = missing.len();
        missing.retain(|(_, m)| *m != name);
        // Of two versions of one name the second finds nothing any more.
        if missing.len() == before && version["storage"] == true {
            errors.invalid(&at, json!(stored), format!("must have the storage version {name}"));
        }
    }
    for (i, version) in missing {
        let why = format!(
            "missing from spec.versions; {version} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {version} and removes {version} from status.storedVersions"
        );
        errors.invalid(&format!("{at}[{i}]"), version, why);
    }
}

/// Groups of the project need an annotation; an old state may stay.
pub(super) fn approval(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    if !names::protected(text(&new["spec"], "group")) || names::approval_fits(new) {
        return;
    }
    if old.is_some_and(|o| !names::approval_fits(o) && names::approval_given(o) == names::approval_given(new)) {
        return;
    }
    let at = format!("metadata.annotations[{APPROVAL}]");
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    let annotation = quote_str(APPROVAL);
    if names::approval_given(new) {
        let why = format!(
            "protected groups must have approval annotation {annotation} with either a URL or a reason starting with \"unapproved\", {see}"
        );
        errors.invalid(&at, new["metadata"]["annotations"][APPROVAL].clone(), why);
    } else {
        errors.required(&at, &format!("protected groups must have approval annotation {annotation}, {see}"));
    }
}

/// The old way to keep unknown fields is gone.
pub(super) fn preserve(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let on = |crd: &Value| crd["spec"]["preserveUnknownFields"] == true;
    if on(new) && !old.is_some_and(on) {
        let why =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.invalid(&"spec.preserveUnknownFields", true, why);
    }
}
