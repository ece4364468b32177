//! Kinds of storage: PersistentVolume, PersistentVolumeClaim, StorageClass, VolumeAttributesClass, CSIDriver, CSINode,
//! CSIStorageCapacity, VolumeAttachment. Each has its rules in the file of its family.

mod attachment;
mod claim;
mod class;
mod csi;
mod volume;

use serde_json::Value;

use super::check::list;
use crate::invalid::Errors;
use crate::path::Path;
use crate::quantity::Quantity;

pub(super) use attachment::Attachment;
pub(super) use claim::{Claim, spec_warnings as claim_spec_warnings, validate_spec as validate_claim_spec};
pub(super) use class::{AttributesClass, Class};
pub(super) use csi::{Capacity, Driver, Node};
pub(super) use volume::Volume;

const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// Checks `accessModes` (that there is one is the caller's business).
fn access_modes(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("accessModes");
    let modes: Vec<&str> = list(spec, "accessModes").iter().filter_map(Value::as_str).collect();
    for m in modes.iter().filter(|m| !MODES.contains(m)) {
        errors.not_supported(&at, *m, MODES);
    }
    let alone = modes.contains(&"ReadWriteOncePod");
    if alone && modes.iter().any(|m| *m != "ReadWriteOncePod") {
        errors.forbidden(&at, "may not use ReadWriteOncePod with other access modes");
    }
}

fn quantity(v: &Value) -> Option<Quantity> {
    v.as_str().and_then(|q| Quantity::parse(q).ok())
}

/// Refuses an amount below zero.
fn amount(q: &Quantity, path: &Path<'_>, errors: &mut Errors) {
    if q.sign() < 0 {
        errors.invalid(path, q.value(), "must be a valid resource quantity");
    }
}

fn more_than_zero(q: &Quantity, path: &Path<'_>, errors: &mut Errors) {
    if q.sign() <= 0 {
        errors.invalid(path, q.to_string(), "must be greater than zero");
    }
}

/// The old way to name a class still works, with a warning.
fn old_class_warning(obj: &Value, out: &mut Vec<String>) {
    if obj["metadata"]["annotations"].get(OLD_CLASS).is_some() {
        out.push(format!(
            "metadata.annotations[{OLD_CLASS}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
        ));
    }
}
