//! StorageClass and VolumeAttributesClass.

use serde_json::Value;

use crate::invalid::Errors;
use crate::kinds::check::{complain, immutable_untold, list, one_of, text};
use crate::kinds::{Strategy, Traits, defaults};
use crate::names;
use crate::path::Path;

const ROOT: Path<'static> = Path::new("");
/// Bounds of a class's parameters.
const PARAMETERS: usize = 512;
const PARAMETERS_BYTES: usize = 256 * 1024;

const T: Traits = Traits { returns_deleted: true, ..Traits::DEFAULT };

/// Rules of StorageClasses.
pub(in crate::kinds) struct Class;

impl Strategy for Class {
    fn traits(&self) -> &Traits {
        &T
    }

    fn default(&self, obj: &mut Value) {
        defaults::storage_class(obj);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let provisioner = text(obj, "provisioner");
        let at = ROOT.child("provisioner");
        if provisioner.is_empty() {
            errors.generated(|e| e.required(&at, ""));
        } else {
            complain(&at, provisioner, names::is_qualified_name(&provisioner.to_lowercase()), errors);
        }
        parameters(obj, true, errors);
        one_of(obj, "reclaimPolicy", &["Delete", "Retain"], &ROOT, errors);
        one_of(obj, "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"], &ROOT, errors);
        topologies(obj, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
        for key in ["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"] {
            errors.generated(|e| immutable_untold(new, old, key, &ROOT, e));
        }
    }
}

fn parameters(obj: &Value, may_be_empty: bool, errors: &mut Errors) {
    let at = ROOT.child("parameters");
    let all = obj["parameters"].as_object();
    let count = all.map_or(0, serde_json::Map::len);
    if count > PARAMETERS {
        errors.too_many(&at, count, PARAMETERS);
        return;
    }
    let mut total = 0;
    for (k, v) in all.into_iter().flatten() {
        if k.is_empty() {
            errors.invalid(&at, k.as_str(), "field can not be empty.");
        }
        total += k.len() + v.as_str().map_or(0, str::len);
    }
    if total > PARAMETERS_BYTES {
        errors.too_long(&at, PARAMETERS_BYTES);
    }
    if !may_be_empty && count == 0 {
        errors.required(&at, "must contain at least one key/value pair");
    }
}

fn topologies(obj: &Value, errors: &mut Errors) {
    let all = ROOT.child("allowedTopologies");
    let mut seen: Vec<Vec<(&str, Vec<&str>)>> = vec![];
    for (i, term) in list(obj, "allowedTopologies").iter().enumerate() {
        let term_at = all.index(i);
        let at = term_at.child("matchLabelExpressions");
        let mut terms: Vec<(&str, Vec<&str>)> = vec![];
        for (j, e) in list(term, "matchLabelExpressions").iter().enumerate() {
            let (here, key) = (at.index(j), text(e, "key"));
            let values_at = here.child("values");
            let mut values: Vec<&str> = vec![];
            if list(e, "values").is_empty() {
                errors.required(&values_at, "");
            }
            for (n, v) in list(e, "values").iter().filter_map(Value::as_str).enumerate() {
                if values.contains(&v) {
                    errors.duplicate(&values_at.index(n), v);
                }
                values.push(v);
            }
            names::validate_label_name(key, &here.child("key"), errors);
            if terms.iter().any(|(k, _)| *k == key) {
                errors.duplicate(&here.child("key"), key);
            }
            values.sort_unstable();
            values.dedup();
            // Of a key that is there twice upstream compares the last.
            terms.retain(|(k, _)| *k != key);
            terms.push((key, values));
        }
        terms.sort();
        // Upstream compares with as many empty terms as there are terms, too: one without expressions is refused.
        let empty = if terms.is_empty() { list(obj, "allowedTopologies").len() } else { 0 };
        for _ in 0..empty + seen.iter().filter(|s| **s == terms).count() {
            errors.duplicate(&at, "");
        }
        seen.push(terms);
    }
}

/// Rules of VolumeAttributesClasses.
pub(in crate::kinds) struct AttributesClass;

impl Strategy for AttributesClass {
    fn traits(&self) -> &Traits {
        &T
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (name, at) = (text(obj, "driverName"), ROOT.child("driverName"));
        if name.is_empty() {
            errors.required(&at, "");
        } else {
            let lower = name.to_lowercase();
            complain(&at, &lower, names::is_qualified_name(&lower), errors);
        }
        parameters(obj, false, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        for key in ["driverName", "parameters"] {
            if new[key] != old[key] {
                errors.forbidden(&ROOT.child(key), format!("updates to {key} are forbidden."));
            }
        }
        self.validate(new, errors);
    }
}
