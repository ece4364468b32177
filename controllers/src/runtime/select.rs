//! Label selectors of objects, and node selector terms.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// Labels, absent when an object has none.
pub type Labels = Option<BTreeMap<String, String>>;

/// Whether `labels` satisfy every requirement of `selector`. An empty selector takes everything.
#[must_use]
pub fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    subset(selector.match_labels.as_ref(), labels)
        && selector.match_expressions.iter().flatten().all(|r| holds(r, labels))
}

/// Whether the selector has no requirement.
#[must_use]
pub fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// Whether all of `wanted` are among `labels`.
#[must_use]
pub fn subset(wanted: Option<&BTreeMap<String, String>>, labels: &Labels) -> bool {
    wanted.into_iter().flatten().all(|(k, v)| value(labels, k) == Some(v))
}

fn value<'a>(labels: &'a Labels, key: &str) -> Option<&'a String> {
    labels.as_ref()?.get(key)
}

fn holds(r: &LabelSelectorRequirement, labels: &Labels) -> bool {
    requirement(&r.operator, r.values.as_deref().unwrap_or_default(), value(labels, &r.key).map(String::as_str))
}

/// One requirement on a present or absent value. An unknown operator never holds.
#[must_use]
pub fn requirement(operator: &str, values: &[String], found: Option<&str>) -> bool {
    let listed = |f: &str| values.iter().any(|v| v == f);
    let number = |s: &str| s.parse::<i64>().ok();
    match operator {
        "In" => found.is_some_and(listed),
        "NotIn" => !found.is_some_and(listed),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" | "Lt" => {
            let bound = values.first().and_then(|v| number(v));
            match (found.and_then(number), bound) {
                (Some(f), Some(b)) => (operator == "Gt" && f > b) || (operator == "Lt" && f < b),
                _ => false,
            }
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements() {
        let v = |s: &str| s.split(',').map(str::to_owned).collect::<Vec<_>>();
        for (op, values, found, want) in [
            ("In", "a,b", Some("a"), true),
            ("In", "a,b", None, false),
            ("NotIn", "a", None, true),
            ("NotIn", "a", Some("a"), false),
            ("Exists", "", Some(""), true),
            ("DoesNotExist", "", Some(""), false),
            ("Gt", "5", Some("6"), true),
            ("Gt", "5", Some("5"), false),
            ("Lt", "5", Some("x"), false),
            ("Near", "5", Some("5"), false),
        ] {
            assert_eq!(requirement(op, &v(values), found), want, "{op} {values} {found:?}");
        }
    }
}
