//! Where a pod may run: affinity, tolerations, topology spread.

use serde_json::{Value, json};

use super::{complain, given, list, one_of, text, validate_label_selector};
use crate::invalid::Errors;
use crate::names;
use crate::path::Path;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const WEIGHT: &str = "must be in the range 1-100";

pub(super) fn validate_affinity(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let a = &spec["affinity"];
    node(&a["nodeAffinity"], &path.child("nodeAffinity"), errors);
    for key in ["podAffinity", "podAntiAffinity"] {
        let (at, v) = (path.child(key), &a[key]);
        let here = at.child(REQUIRED);
        for (i, term) in list(v, REQUIRED).iter().enumerate() {
            pod_term(term, &here.index(i), errors);
        }
        let here = at.child(PREFERRED);
        for (i, w) in list(v, PREFERRED).iter().enumerate() {
            let one = here.index(i);
            weight(w, &one, errors);
            pod_term(&w["podAffinityTerm"], &one.child("podAffinityTerm"), errors);
        }
    }
}

fn weight(w: &Value, at: &Path<'_>, errors: &mut Errors) {
    let n = w["weight"].as_i64().unwrap_or(0);
    if !(1..=100).contains(&n) {
        errors.invalid(&at.child("weight"), n, WEIGHT);
    }
}

fn node(v: &Value, path: &Path<'_>, errors: &mut Errors) {
    if given(v, REQUIRED) {
        validate_node_selector(&v[REQUIRED], &path.child(REQUIRED), errors);
    }
    let at = path.child(PREFERRED);
    for (i, w) in list(v, PREFERRED).iter().enumerate() {
        let one = at.index(i);
        weight(w, &one, errors);
        node_term(&w["preference"], &one.child("preference"), errors);
    }
}

/// Checks a node selector: at least one term.
pub(in crate::kinds) fn validate_node_selector(v: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("nodeSelectorTerms");
    let terms = list(v, "nodeSelectorTerms");
    if terms.is_empty() {
        errors.required(&at, "must have at least one node selector term");
    }
    for (i, t) in terms.iter().enumerate() {
        node_term(t, &at.index(i), errors);
    }
}

fn node_term(t: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("matchExpressions");
    for (i, e) in list(t, "matchExpressions").iter().enumerate() {
        let here = at.index(i);
        let values = list(e, "values");
        match text(e, "operator") {
            "In" | "NotIn" => {
                if values.is_empty() {
                    errors.required(&here.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.forbidden(&here.child("values"), why);
                }
            }
            "Gt" | "Lt" => {
                if values.len() != 1 {
                    let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                    errors.required(&here.child("values"), why);
                }
            }
            o => errors.invalid(&here.child("operator"), o, "not a valid selector operator"),
        }
        names::validate_label_name(text(e, "key"), &here.child("key"), errors);
        let vp = here.child("values");
        for (j, v) in values.iter().enumerate() {
            let v = v.as_str().unwrap_or_default();
            complain(&vp.index(j), v, names::is_label_value(v), errors);
        }
    }
    let at = path.child("matchFields");
    for (i, e) in list(t, "matchFields").iter().enumerate() {
        let here = at.index(i);
        let values = list(e, "values");
        match text(e, "operator") {
            "In" | "NotIn" => {
                if values.len() != 1 {
                    let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                    errors.required(&here.child("values"), why);
                }
            }
            o => errors.invalid(&here.child("operator"), o, "not a valid selector operator"),
        }
        if text(e, "key") == "metadata.name" {
            let vp = here.child("values");
            for (j, v) in values.iter().enumerate() {
                let v = v.as_str().unwrap_or_default();
                complain(&vp.index(j), v, names::is_dns1123_subdomain(v), errors);
            }
        } else {
            errors.invalid(&here.child("key"), text(e, "key"), "not a valid field selector key");
        }
    }
}

fn pod_term(t: &Value, path: &Path<'_>, errors: &mut Errors) {
    if given(t, "labelSelector") {
        validate_label_selector(&t["labelSelector"], &path.child("labelSelector"), errors);
    }
    if given(t, "namespaceSelector") {
        validate_label_selector(&t["namespaceSelector"], &path.child("namespaceSelector"), errors);
    }
    for n in list(t, "namespaces") {
        let n = n.as_str().unwrap_or_default();
        complain(&path.child("namespace"), n, names::is_dns1123_label(n), errors);
    }
    label_keys(t, path, errors);
    let key = text(t, "topologyKey");
    let at = path.child("topologyKey");
    if key.is_empty() {
        errors.required(&at, "can not be empty");
    }
    names::validate_label_name(key, &at, errors);
}

/// `matchLabelKeys` and `mismatchLabelKeys`: each key is named once, here or in the selector.
fn label_keys(t: &Value, path: &Path<'_>, errors: &mut Errors) {
    let keys = |k: &str| -> Vec<String> { list(t, k).iter().filter_map(|v| v.as_str().map(str::to_owned)).collect() };
    let (matching, mismatching) = (keys("matchLabelKeys"), keys("mismatchLabelKeys"));
    for (name, all) in [("matchLabelKeys", &matching), ("mismatchLabelKeys", &mismatching)] {
        let at = path.child(name);
        if !all.is_empty() && !given(t, "labelSelector") {
            errors.forbidden(&at, "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, key) in all.iter().enumerate() {
            complain(&at.index(i), key, names::is_qualified_name(key), errors);
        }
    }
    selected_twice(&matching, &t["labelSelector"], path, errors);
    let at = path.child("matchLabelKeys");
    for (i, key) in matching.iter().enumerate().filter(|(_, k)| mismatching.contains(k)) {
        errors.invalid(&at.index(i), key.as_str(), "exists in both matchLabelKeys and mismatchLabelKeys");
    }
}

/// Keys that have become part of the selector ([`select_by_keys`]) and were in it before.
fn selected_twice(keys: &[String], selector: &Value, path: &Path<'_>, errors: &mut Errors) {
    let mut seen: Vec<&str> = selector["matchLabels"].as_object().into_iter().flatten().map(|(k, _)| &**k).collect();
    for key in list(selector, "matchExpressions").iter().map(|e| text(e, "key")) {
        if seen.contains(&key)
            && let Some(i) = keys.iter().rposition(|k| k == key)
        {
            errors.invalid(&path.index(i), key, "exists in both matchLabelKeys and labelSelector");
        }
        seen.push(key);
    }
}

/// Makes the pod's own values of `matchLabelKeys` and `mismatchLabelKeys` part of the selectors beside them.
pub(in crate::kinds::pod) fn select_by_keys(obj: &mut Value) {
    let labels = obj["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let Some(spec) = obj.get_mut("spec") else { return };
    let narrow = |term: &mut Value| {
        if !given(term, "labelSelector") {
            return;
        }
        for (keys, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
            let own: Vec<Value> = list(term, keys)
                .iter()
                .filter_map(Value::as_str)
                .filter_map(|k| labels.get(k).map(|v| json!({"key": k, "operator": operator, "values": [v]})))
                .collect();
            if own.is_empty() {
                continue;
            }
            let all = &mut term["labelSelector"]["matchExpressions"];
            match all.as_array_mut() {
                Some(all) => all.extend(own),
                None => *all = own.into(),
            }
        }
    };
    for sort in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = spec.get_mut("affinity").and_then(|a| a.get_mut(sort)) else { continue };
        let preferred = affinity.get_mut(PREFERRED);
        let preferred = preferred.and_then(Value::as_array_mut).into_iter().flatten();
        preferred.filter_map(|w| w.get_mut("podAffinityTerm")).for_each(narrow);
        let required = affinity.get_mut(REQUIRED);
        required.and_then(Value::as_array_mut).into_iter().flatten().for_each(narrow);
    }
    spec.get_mut("topologySpreadConstraints").and_then(Value::as_array_mut).into_iter().flatten().for_each(narrow);
}

pub(in crate::kinds) fn validate_tolerations(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    for (i, t) in list(spec, "tolerations").iter().enumerate() {
        let at = path.index(i);
        let (key, operator, value, effect) = (text(t, "key"), text(t, "operator"), text(t, "value"), text(t, "effect"));
        let op = at.child("operator");
        if !key.is_empty() {
            names::validate_label_name(key, &at.child("key"), errors);
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(&op, operator, why);
        }
        if given(t, "tolerationSeconds") && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(&at.child("effect"), effect, why);
        }
        match operator {
            "" | "Equal" => {
                let why = names::is_label_value(value);
                if !why.is_empty() {
                    errors.invalid(&op, value, why.join(";"));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    errors.invalid(&op, value, "value must be empty when `operator` is 'Exists'");
                }
            }
            // Known, behind a feature gate that is off.
            "Lt" | "Gt" => errors.not_supported(&op, operator, &["Equal", "Exists", "Lt", "Gt"]),
            _ => errors.not_supported(&op, operator, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            one_of(t, "effect", &["NoSchedule", "PreferNoSchedule", "NoExecute"], &at, errors);
        }
    }
}

pub(super) fn validate_spread(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let all = list(spec, "topologySpreadConstraints");
    for (i, c) in all.iter().enumerate() {
        let at = path.index(i);
        let skew = c["maxSkew"].as_i64().unwrap_or(0);
        if skew <= 0 {
            errors.invalid(&at.child("maxSkew"), skew, "must be greater than zero");
        }
        let key = text(c, "topologyKey");
        if key.is_empty() {
            errors.required(&at.child("topologyKey"), "can not be empty");
        }
        let when = text(c, "whenUnsatisfiable");
        if unknown_when(when) {
            errors.not_supported(&at.child("whenUnsatisfiable"), when, &["DoNotSchedule", "ScheduleAnyway"]);
        }
        if all[i + 1..].iter().any(|o| text(o, "topologyKey") == key && text(o, "whenUnsatisfiable") == when) {
            errors.duplicate(&at.child("{topologyKey, whenUnsatisfiable}"), format!("{{{key}, {when}}}"));
        }
        if let Some(n) = c["minDomains"].as_i64() {
            let here = at.child("minDomains");
            if n <= 0 {
                errors.invalid(&here, n, "must be greater than zero");
            }
            if when != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}");
                errors.invalid(&here, n, why);
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            one_of(c, policy, &["Honor", "Ignore"], &at, errors);
        }
        label_keys(c, &at, errors);
        if given(c, "labelSelector") {
            validate_label_selector(&c["labelSelector"], &at.child("labelSelector"), errors);
        }
    }
}

fn unknown_when(when: &str) -> bool {
    !matches!(when, "DoNotSchedule" | "ScheduleAnyway")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invalid::ROOT;

    #[test]
    fn keys_become_part_of_the_selector_where_the_pod_has_them() {
        let term = json!({"topologyKey": "z", "labelSelector": {"matchLabels": {"q": "r"}},
            "matchLabelKeys": ["x", "none"], "mismatchLabelKeys": ["w"]});
        let unselected = json!({"topologyKey": "z", "matchLabelKeys": ["x"]});
        let mut pod = json!({"metadata": {"labels": {"x": "1", "w": "2"}},
            "spec": {"affinity": {"podAffinity": {REQUIRED: [term, unselected]}}}});
        select_by_keys(&mut pod);
        let terms = &pod["spec"]["affinity"]["podAffinity"][REQUIRED];
        let want = json!([{"key": "x", "operator": "In", "values": ["1"]}, {"key": "w", "operator": "NotIn", "values": ["2"]}]);
        assert_eq!(terms[0]["labelSelector"]["matchExpressions"], want);
        assert_eq!(terms[1], unselected);
        let mut errors = Errors::new();
        label_keys(&terms[0], &ROOT, &mut errors);
        assert!(errors.is_empty(), "{:?}", errors.0);
        // A second time the key is there twice.
        select_by_keys(&mut pod);
        label_keys(&pod["spec"]["affinity"]["podAffinity"][REQUIRED][0], &ROOT, &mut errors);
        assert_eq!(errors.0.len(), 1, "{:?}", errors.0);
    }
}
