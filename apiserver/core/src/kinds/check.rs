//! What validation code of all kinds shares: reading fields of a normalised object, and the checks that many fields have
//! in common. Each check appends upstream's words to the errors and goes on.

use serde_json::Value;

use crate::invalid::{self, ErrorType, Errors, FieldError};
use crate::names;
use crate::path::Path;
use crate::quantity::Quantity;
use crate::selector::LabelSelector;

pub(super) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub(super) const IMMUTABLE: &str = "field is immutable";

/// Text at `key`; empty when absent.
pub(super) fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v[key].as_str().unwrap_or_default()
}

/// List at `key`; empty when absent.
pub(super) fn list<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v[key].as_array().map_or(&[], Vec::as_slice)
}

/// Whether a nested message was given at all.
pub(super) fn given(v: &Value, key: &str) -> bool {
    !v[key].is_null()
}

/// Refuses a value outside `allowed`. Absent counts as fine.
pub(super) fn one_of(v: &Value, key: &str, allowed: &[&str], path: &Path<'_>, errors: &mut Errors) {
    if let Some(s) = v[key].as_str().filter(|s| !allowed.contains(s)) {
        errors.not_supported(&path.child(key), s, allowed);
    }
}

/// Demands a text that is not empty.
pub(super) fn need(v: &Value, key: &str, path: &Path<'_>, errors: &mut Errors) -> bool {
    let there = !text(v, key).is_empty();
    if !there {
        errors.required(&path.child(key), "");
    }
    there
}

/// Each complaint becomes an "invalid value" at `path`.
pub(super) fn complain(path: &Path<'_>, value: &str, why: Vec<String>, errors: &mut Errors) {
    for w in why {
        errors.invalid(path, value, w);
    }
}

/// Checks the text at `key` as a DNS subdomain, if there is one.
pub(super) fn subdomain_if_given(v: &Value, key: &str, path: &Path<'_>, errors: &mut Errors) {
    let s = text(v, key);
    if !s.is_empty() {
        complain(&path.child(key), s, names::is_dns1123_subdomain(s), errors);
    }
}

/// "Not found" with an explanation.
pub(super) fn not_found_because(path: &Path<'_>, value: &str, why: &str, errors: &mut Errors) {
    let body = format!("Not found: {}: {why}", invalid::quote_str(value));
    errors.0.push(FieldError { kind: ErrorType::NotFound, path: path.to_string(), body, generated: false });
}

/// Refuses a number below zero at each key.
pub(super) fn not_negative(v: &Value, keys: &[&str], path: &Path<'_>, errors: &mut Errors) {
    for k in keys {
        if let Some(n) = v[*k].as_i64().filter(|n| *n < 0) {
            errors.invalid(&path.child(k), n, NOT_NEGATIVE);
        }
    }
}

/// Refuses a quantity below zero.
pub(super) fn quantity_not_negative(v: &Value, path: &Path<'_>, errors: &mut Errors) {
    if let Some(q) = v.as_str().and_then(|q| Quantity::parse(q).ok()).filter(|q| q.sign() < 0) {
        errors.invalid(path, q.to_string(), NOT_NEGATIVE);
    }
}

/// Checks a name such as `acme.io/foo`: a domain and a path.
pub(super) fn domain_prefixed_path(s: &str, path: &Path<'_>, errors: &mut Errors) {
    if s.is_empty() {
        errors.required(path, "");
        return;
    }
    let Some((host, rest)) = s.split_once('/').filter(|(h, r)| !h.is_empty() && !r.is_empty()) else {
        errors.invalid(path, s, "must be a domain-prefixed path (such as \"acme.io/foo\")");
        return;
    };
    complain(path, host, names::is_dns1123_subdomain(host), errors);
    let segment = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@%".contains(c))
    };
    if !rest.split('/').all(segment) {
        errors.invalid(path, rest, "Invalid path");
    }
}

/// Refuses a change of `key`.
pub(super) fn immutable(new: &Value, old: &Value, key: &str, path: &Path<'_>, errors: &mut Errors) {
    if new[key] != old[key] {
        errors.invalid(&path.child(key), new[key].clone(), IMMUTABLE);
    }
}

/// Refuses a change of `key` without saying what it was changed to (rules that upstream generates from its types).
pub(super) fn immutable_untold(new: &Value, old: &Value, key: &str, path: &Path<'_>, errors: &mut Errors) {
    if new[key] != old[key] {
        errors.invalid(&path.child(key), Value::Null, IMMUTABLE);
    }
}

/// Checks an int-or-percent value; answers its number when it is well-formed.
pub(super) fn int_or_percent(v: &Value, path: &Path<'_>, errors: &mut Errors) -> Option<i64> {
    const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
    match v {
        Value::Number(n) => {
            let n = n.as_i64().unwrap_or(0);
            if n < 0 {
                errors.invalid(path, n, NOT_NEGATIVE);
            }
            Some(n)
        }
        Value::String(s) => {
            let digits = s.strip_suffix('%').filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
            if digits.is_none() {
                errors.invalid(path, s.as_str(), PERCENT);
            }
            digits.map(|n| n.parse().unwrap_or(i64::MAX))
        }
        _ => None,
    }
}

/// Refuses a percentage above 100.
pub(super) fn at_most_hundred(v: &Value, path: &Path<'_>, errors: &mut Errors) {
    let percent = v.as_str().and_then(|s| s.strip_suffix('%')).and_then(|n| n.parse::<i64>().ok());
    if percent.is_some_and(|n| n > 100) {
        errors.invalid(path, v.clone(), "must not be greater than 100%");
    }
}

/// Checks a `metav1.LabelSelector` at `path`.
pub(super) fn label_selector(s: &Value, path: &Path<'_>, errors: &mut Errors) {
    let labels = path.child("matchLabels");
    names::validate_labels(s["matchLabels"].as_object(), &labels, errors);
    let all = path.child("matchExpressions");
    for (i, e) in list(s, "matchExpressions").iter().enumerate() {
        let at = all.index(i);
        let values = list(e, "values");
        match text(e, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&at.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.forbidden(&at.child("values"), why);
                }
            }
            o => errors.invalid(&at.child("operator"), o, "not a valid selector operator"),
        }
        names::validate_label_name(text(e, "key"), &at.child("key"), errors);
        let vp = at.child("values");
        for (j, v) in values.iter().filter_map(Value::as_str).enumerate() {
            complain(&vp.index(j), v, names::is_label_value(v), errors);
        }
    }
}

/// The selector, unless it cannot be made into one: a key, an operator or a value is illegal. An absent one selects
/// nothing.
pub(super) fn usable_selector(s: &Value) -> Option<LabelSelector> {
    let mut found = Errors::new();
    label_selector(s, &Path::new(""), &mut found);
    found.is_empty().then(|| LabelSelector::from_object(Some(s)))
}

/// Whether a selector has no terms.
pub(super) fn selects_all(s: &Value) -> bool {
    let none = |k: &str| match &s[k] {
        Value::Object(o) => o.is_empty(),
        Value::Array(a) => a.is_empty(),
        _ => true,
    };
    none("matchLabels") && none("matchExpressions")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn percent_or_number() {
        for (v, n, faults) in [
            (json!(3), Some(3), 0),
            (json!(-3), Some(-3), 1),
            (json!("25%"), Some(25), 0),
            (json!("25"), None, 1),
            (json!("+5%"), None, 1),
            (json!("%"), None, 1),
            (Value::Null, None, 0),
        ] {
            let mut e = Errors::new();
            assert_eq!(int_or_percent(&v, &Path::new("x"), &mut e), n, "{v}");
            assert_eq!(e.len(), faults, "{v}");
        }
    }

    #[test]
    fn a_malformed_selector_is_not_usable() {
        assert!(usable_selector(&json!({"matchLabels": {"a": "b c"}})).is_none());
        assert!(usable_selector(&json!({"matchExpressions": [{"key": "a", "operator": "Is"}]})).is_none());
        assert!(usable_selector(&Value::Null).is_some_and(|s| s.nothing));
        assert!(usable_selector(&json!({})).is_some_and(|s| s.is_everything()));
    }
}
