//! Validation of pods, pod specs and pod templates.

use serde_json::Value;

use crate::invalid::Errors;
use crate::names;
use crate::path::Path;

/// Checks a Pod.
pub(super) fn validate_pod(obj: &Value, errors: &mut Errors) {
    let spec = Path::new("spec");
    validate_spec(&obj["spec"], &spec, errors);
}

/// Checks a pod template at `path`.
pub(in crate::kinds) fn validate_template(t: &Value, path: &Path<'_>, errors: &mut Errors) {
    let m = path.child("metadata");
    names::validate_labels(t["metadata"]["labels"].as_object(), &m.child("labels"), errors);
    names::validate_annotations(t["metadata"]["annotations"].as_object(), &m.child("annotations"), errors);
    validate_spec(&t["spec"], &path.child("spec"), errors);
}

/// Checks a `metav1.LabelSelector` at `path`.
pub(in crate::kinds) fn validate_label_selector(s: &Value, path: &Path<'_>, errors: &mut Errors) {
    let labels = path.child("matchLabels");
    names::validate_labels(s["matchLabels"].as_object(), &labels, errors);
    let list = path.child("matchExpressions");
    for (i, e) in s["matchExpressions"].as_array().into_iter().flatten().enumerate() {
        let at = list.index(i);
        let values = e["values"].as_array().map_or(0, Vec::len);
        match e["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" => {
                if values == 0 {
                    errors.required(&at.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
                }
            }
            "Exists" | "DoesNotExist" => {
                if values > 0 {
                    errors.forbidden(
                        &at.child("values"),
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    );
                }
            }
            o => errors.invalid(&at.child("operator"), o, "not a valid selector operator"),
        }
        names::validate_label_name(e["key"].as_str().unwrap_or_default(), &at.child("key"), errors);
        let vp = at.child("values");
        for (j, v) in e["values"].as_array().into_iter().flatten().enumerate() {
            let v = v.as_str().unwrap_or_default();
            for why in names::is_label_value(v) {
                errors.invalid(&vp.index(j), v, why);
            }
        }
    }
}

fn validate_spec(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let containers = path.child("containers");
    let list = spec["containers"].as_array();
    if list.is_none_or(Vec::is_empty) {
        errors.required(&containers, "");
    }
    for (key, at) in [("containers", containers), ("initContainers", path.child("initContainers"))] {
        let mut seen: Vec<&str> = vec![];
        for (i, c) in spec[key].as_array().into_iter().flatten().enumerate() {
            let here = at.index(i);
            let name = c["name"].as_str().unwrap_or_default();
            if name.is_empty() {
                errors.required(&here.child("name"), "");
            }
            for why in if name.is_empty() { vec![] } else { names::is_dns1123_label(name) } {
                errors.invalid(&here.child("name"), name, why);
            }
            if seen.contains(&name) && !name.is_empty() {
                errors.duplicate(&here.child("name"), name);
            }
            seen.push(name);
            let image = c["image"].as_str().unwrap_or_default();
            if image.is_empty() && key == "containers" {
                errors.required(&here.child("image"), "");
            }
        }
    }
}
