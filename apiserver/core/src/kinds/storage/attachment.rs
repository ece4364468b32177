//! VolumeAttachment.

use serde_json::Value;

use super::csi::driver_name_generated;
use crate::invalid::Errors;
use crate::kinds::check::{complain, given, immutable_untold, text};
use crate::kinds::{Strategy, Traits};
use crate::names;
use crate::path::Path;

/// Longest message of an error.
const MESSAGE: usize = 1024;

/// Rules of VolumeAttachments.
pub(in crate::kinds) struct Attachment;

impl Strategy for Attachment {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits {
            returns_deleted: true,
            status: true,
            status_keeps_meta: true,
            unconditional_update: false,
            ..Traits::DEFAULT
        };
        &T
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
        let (spec, path) = (&obj["spec"], Path::new("spec"));
        let (at, source) = (path.child("source"), &spec["source"]);
        match (given(source, "inlineVolumeSpec"), source["persistentVolumeName"].as_str()) {
            (false, None) => errors.required(&at, ONE),
            (true, Some(_)) => errors.forbidden(&at, ONE),
            (false, Some("")) => {
                let at = at.child("persistentVolumeName");
                errors.required(&at, "must specify non empty persistentVolumeName");
                complain(&at, "", names::is_dns1123_subdomain(""), errors);
            }
            (false, Some(n)) => complain(&at.child("persistentVolumeName"), n, names::is_dns1123_subdomain(n), errors),
            (true, None) => {}
        }
        let node = text(spec, "nodeName");
        complain(&path.child("nodeName"), node, names::is_dns1123_subdomain(node), errors);
        self.validate_status(obj, obj, errors);
        errors.generated(|e| driver_name_generated(text(spec, "attacher"), &path.child("attacher"), e));
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
        errors.generated(|e| immutable_untold(new, old, "spec", &Path::new(""), e));
    }

    fn validate_status(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        let path = Path::new("status");
        for key in ["attachError", "detachError"] {
            let e = &new["status"][key];
            if text(e, "message").len() > MESSAGE {
                let at = path.child(key);
                errors.too_long(&at.child("message"), MESSAGE);
            }
        }
    }
}
