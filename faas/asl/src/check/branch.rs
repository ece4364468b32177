//! Parallel, and the machines inside states.

use serde_json::Value;

use super::fields::Fields;
use super::{Check, machine};
use crate::definition::{Machine, Parallel};

pub(super) fn parallel(fields: &mut Fields<'_, '_>) -> Option<Parallel> {
    fields.required("Branches");
    let items = fields.array("Branches")?;
    if items.is_empty() {
        fields.fault("Branches", "A Parallel state has at least one branch");
    }
    let at = fields.pointer("Branches");
    let branches = items
        .iter()
        .enumerate()
        .filter_map(|(i, item)| nested(item, format!("{at}/{i}"), "of a branch", fields.check))
        .collect();
    Some(Parallel { branches })
}

/// A machine inside a state; the variables that it may not assign are those of the machines around it.
fn nested(value: &Value, at: String, of: &str, check: &mut Check) -> Option<Machine> {
    let fields = Fields::new(value, at, check)?;
    machine(fields, of)
}
