//! Grammar of names, labels and annotations, with upstream's explanations.
//!
//! Each `is_*` function answers the list of complaints (empty: the value is fine). The sentences are matched on by
//! clients and tests, so they are upstream's.

use crate::invalid::Errors;
use crate::path::Path;
use serde_json::{Map, Value};

/// Longest DNS label.
pub const DNS1123_LABEL_MAX: usize = 63;
/// Longest DNS subdomain.
pub const DNS1123_SUBDOMAIN_MAX: usize = 253;
/// Longest label value.
pub const LABEL_VALUE_MAX: usize = 63;
/// Upper bound of all annotations of one object together.
pub const ANNOTATIONS_MAX: usize = 256 * 1024;

const LABEL_MSG: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_MSG: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const WILDCARD_MSG: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL1035_MSG: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_MSG: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_MSG: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY_MSG: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_MSG: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

fn max_len(max: usize) -> String {
    format!("must be no more than {max} characters")
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label_shape(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty() && lower(b[0]) && lower(b[b.len() - 1]) && b.iter().all(|&c| lower(c) || c == b'-')
}

fn is_mixed_shape(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty()
        && b[0].is_ascii_alphanumeric()
        && b[b.len() - 1].is_ascii_alphanumeric()
        && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// RFC 1123 label.
#[must_use]
pub fn is_dns1123_label(s: &str) -> Vec<String> {
    let mut e = vec![];
    if s.len() > DNS1123_LABEL_MAX {
        e.push(max_len(DNS1123_LABEL_MAX));
    }
    if !is_label_shape(s) {
        // Upstream explains the bigger grammar first when the value would have been a subdomain.
        if is_subdomain_shape(s) { e.push("must not contain dots".into()) } else { e.push(LABEL_MSG.into()) }
    }
    e
}

fn is_subdomain_shape(s: &str) -> bool {
    s.split('.').all(is_label_shape)
}

/// RFC 1123 subdomain.
#[must_use]
pub fn is_dns1123_subdomain(s: &str) -> Vec<String> {
    let mut e = vec![];
    if s.len() > DNS1123_SUBDOMAIN_MAX {
        e.push(max_len(DNS1123_SUBDOMAIN_MAX));
    }
    if !is_subdomain_shape(s) {
        e.push(SUBDOMAIN_MSG.into());
    }
    e
}

/// A subdomain whose first label is a star.
#[must_use]
pub fn is_wildcard_subdomain(s: &str) -> Vec<String> {
    let mut e = vec![];
    if s.len() > DNS1123_SUBDOMAIN_MAX {
        e.push(max_len(DNS1123_SUBDOMAIN_MAX));
    }
    if !s.strip_prefix("*.").is_some_and(is_subdomain_shape) {
        e.push(WILDCARD_MSG.into());
    }
    e
}

/// RFC 1035 label.
#[must_use]
pub fn is_dns1035_label(s: &str) -> Vec<String> {
    let mut e = vec![];
    if s.len() > DNS1123_LABEL_MAX {
        e.push(max_len(DNS1123_LABEL_MAX));
    }
    if !(is_label_shape(s) && s.as_bytes()[0].is_ascii_lowercase()) {
        e.push(LABEL1035_MSG.into());
    }
    e
}

/// A name that is one path segment (RBAC objects and others with free names).
#[must_use]
pub fn is_path_segment(s: &str) -> Vec<String> {
    match s {
        "." => return vec!["may not be '.'".into()],
        ".." => return vec!["may not be '..'".into()],
        _ => {}
    }
    ['/', '%'].iter().filter(|c| s.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// `prefix/name` or `name`, as label keys, annotation keys and finalizers are.
#[must_use]
pub fn is_qualified_name(s: &str) -> Vec<String> {
    let mut e = vec![];
    let parts: Vec<&str> = s.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                e.push("prefix part must be non-empty".into());
            } else {
                e.extend(is_dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => {
            return vec![format!(
                "a valid label key {QUALIFIED_MSG} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        e.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        e.push("name part must be no more than 63 bytes".into());
    }
    if !is_mixed_shape(name) {
        e.push(format!("name part {QUALIFIED_MSG}"));
    }
    e
}

/// Label value.
#[must_use]
pub fn is_label_value(s: &str) -> Vec<String> {
    let mut e = vec![];
    if s.len() > LABEL_VALUE_MAX {
        e.push(format!("must be no more than {LABEL_VALUE_MAX} bytes"));
    }
    if !s.is_empty() && !is_mixed_shape(s) {
        e.push(LABEL_VALUE_MSG.into());
    }
    e
}

/// Key of a ConfigMap or Secret.
#[must_use]
pub fn is_config_key(s: &str) -> Vec<String> {
    let mut e = vec![];
    if s.len() > DNS1123_SUBDOMAIN_MAX {
        e.push(max_len(DNS1123_SUBDOMAIN_MAX));
    }
    if s.is_empty() || !s.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.')) {
        e.push(CONFIG_KEY_MSG.into());
    }
    match s {
        "." => e.push("must not be '.'".into()),
        ".." => e.push("must not be '..'".into()),
        _ if s.starts_with("..") => e.push("must not start with '..'".into()),
        _ => {}
    }
    e
}

/// Name of an environment variable (the relaxed grammar, GA since 1.34).
#[must_use]
pub fn is_env_var_name(s: &str) -> Vec<String> {
    if s.is_empty() {
        return vec!["environment variable name must be non-empty".into()];
    }
    if s.bytes().all(|c| (0x20..=0x7e).contains(&c) && c != b'=') { vec![] } else { vec![ENV_MSG.into()] }
}

/// Name of a container or service port.
#[must_use]
pub fn is_port_name(s: &str) -> Vec<String> {
    let mut e = vec![];
    if s.len() > 15 {
        e.push("must be no more than 15 characters".into());
    }
    let b = s.as_bytes();
    if !b.iter().all(|&c| lower(c) || c == b'-') {
        e.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !b.iter().any(u8::is_ascii_lowercase) {
        e.push("must contain at least one letter (a-z)".into());
    }
    if s.contains("--") {
        e.push("must not contain consecutive hyphens".into());
    }
    if let (Some(first), Some(last)) = (b.first(), b.last())
        && (*first == b'-' || *last == b'-')
    {
        e.push("must not begin or end with a hyphen".into());
    }
    e
}

/// A port number.
#[must_use]
pub fn is_port(n: i64) -> Vec<String> {
    if (1..=65535).contains(&n) { vec![] } else { vec!["must be between 1 and 65535, inclusive".into()] }
}

/// Checks `labels` (`path` is the path of the map).
pub fn validate_labels(labels: Option<&Map<String, Value>>, path: &Path<'_>, errors: &mut Errors) {
    for (k, v) in labels.into_iter().flatten() {
        validate_label_name(k, path, errors);
        let v = v.as_str().unwrap_or_default();
        for m in is_label_value(v) {
            errors.invalid(path, v, m);
        }
    }
}

/// Checks one label key.
pub fn validate_label_name(key: &str, path: &Path<'_>, errors: &mut Errors) {
    for m in is_qualified_name(key) {
        errors.invalid(path, key, m);
    }
}

/// Checks `annotations`.
pub fn validate_annotations(annotations: Option<&Map<String, Value>>, path: &Path<'_>, errors: &mut Errors) {
    let mut total = 0;
    for (k, v) in annotations.into_iter().flatten() {
        // Keys are compared in lower case only; the stored key keeps its case.
        for m in is_qualified_name(&k.to_lowercase()) {
            errors.invalid(path, k.as_str(), m);
        }
        total += k.len() + v.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_MAX {
        errors.too_long(path, ANNOTATIONS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar() {
        for (ok, s) in
            [(true, "a"), (true, "a-1"), (false, "-a"), (false, "a."), (false, "A"), (false, ""), (false, "a.b")]
        {
            assert_eq!(is_dns1123_label(s).is_empty(), ok, "{s}");
        }
        for (ok, s) in [(true, "a.b"), (false, "a..b"), (false, "a_b"), (true, "0.1")] {
            assert_eq!(is_dns1123_subdomain(s).is_empty(), ok, "{s}");
        }
        for (ok, s) in
            [(true, "a/b"), (true, "e.com/B_c"), (false, "/b"), (false, "a/"), (false, "a/b/c"), (false, "a b")]
        {
            assert_eq!(is_qualified_name(s).is_empty(), ok, "{s}");
        }
        for (ok, s) in [(true, ""), (true, "A.b"), (false, ".a"), (false, "a b")] {
            assert_eq!(is_label_value(s).is_empty(), ok, "{s}");
        }
        for (ok, s) in [(true, "http"), (false, "80"), (false, "a--b"), (false, "-a"), (false, "waytoolongportname")] {
            assert_eq!(is_port_name(s).is_empty(), ok, "{s}");
        }
    }
}
