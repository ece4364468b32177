//! Records of templates: PodTemplate and ControllerRevision.

use serde_json::Value;

use super::another;
use crate::invalid::Errors;
use crate::kinds::check::{immutable, not_negative};
use crate::kinds::pod::{default_template, template_warnings, validate_template};
use crate::kinds::{Strategy, Traits};
use crate::path::Path;

/// Rules of PodTemplates.
pub(in crate::kinds) struct PodTemplate;

impl Strategy for PodTemplate {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { returns_deleted: true, generation: true, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        if let Some(t) = obj.get_mut("template") {
            default_template(t);
        }
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        validate_template(&obj["template"], &Path::new("template"), errors);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        if another(new, old) {
            template_warnings(&new["template"], &Path::new("template"), out);
        }
    }
}

/// Rules of ControllerRevisions.
pub(in crate::kinds) struct ControllerRevision;

impl Strategy for ControllerRevision {
    fn validate(&self, obj: &Value, errors: &mut Errors) {
        not_negative(obj, &["revision"], &Path::new(""), errors);
        let data = Path::new("data");
        match &obj["data"] {
            Value::Null => errors.required(&data, "data is mandatory"),
            Value::Object(_) => {}
            _ => errors.required(&data, "data must be a valid JSON object"),
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        not_negative(new, &["revision"], &Path::new(""), errors);
        immutable(new, old, "data", &Path::new(""), errors);
    }
}
