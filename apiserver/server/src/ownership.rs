//! Who owns which field: managedFields around every write.
//!
//! Ownership is recorded on the object as the client meant it, decoded and defaulted, before admission and the server add
//! their own: what they add belongs to nobody.

use serde_json::Value;
use skiff_core::managed::{self, Set, Writer};
use skiff_core::schema::Struct;
use skiff_core::status::Status;

use crate::registry::Kind;
use crate::verbs::Call;
use crate::verbs::options::WriteOptions;
use crate::verbs::write::Part;

/// The manager of what this server writes by itself, which clients know from upstream.
const OWN: &str = "kube-apiserver";

/// Whose write it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Plain update or patch: ownership follows from the difference.
    Update,
    /// Server-side apply: the merge has decided already.
    Apply,
}

fn part(call: &Call) -> Part {
    match call.target.subresource.as_str() {
        "" => Part::Main,
        "status" => Part::Status,
        _ => Part::Other,
    }
}

fn with_kind<T>(kind: &Kind, call: &Call, f: impl FnOnce(&managed::Kind<'_>) -> T) -> T {
    let reset = match part(call) {
        Part::Main | Part::Other => Set::of_fields(kind.strategy.reset_fields(false)),
        Part::Status => Set::of_fields(kind.strategy.reset_fields(true)),
    };
    let group = kind.group().to_owned();
    let known = move |api_version: &str| {
        let g = api_version.split_once('/').map_or("", |(g, _)| g);
        // The scale view of a workload is recorded under its own version.
        g == group || api_version == "autoscaling/v1"
    };
    f(&managed::Kind { shape: &kind.resource.model, reset: &reset, known: &known })
}

fn with_writer<T>(kind: &Kind, call: &Call, manager: &str, f: impl FnOnce(&Writer<'_>) -> T) -> T {
    let (api_version, now) = (kind.api_version(), crate::verbs::write::now());
    f(&Writer { manager, api_version: &api_version, subresource: &call.target.subresource, now: &now })
}

/// Records the ownership of a plain write.
pub fn track(kind: &Kind, call: &Call, new: &mut Value, old: Option<&Value>, manager: &str) {
    if kind.strategy.traits().untyped && managed::misfit(&kind.resource.model, old, new) {
        return;
    }
    with_kind(kind, call, |k| with_writer(kind, call, manager, |w| managed::update(k, old, new, w)));
}

/// Records the ownership of a status that this server writes by itself.
pub fn track_own(kind: &Kind, new: &mut Value, old: &Value) {
    let reset = Set::of_fields(kind.strategy.reset_fields(true));
    let written = managed::Kind { shape: &kind.resource.model, reset: &reset, known: &|_| true };
    let (api_version, now) = (kind.api_version(), crate::verbs::write::now());
    let writer = Writer { manager: OWN, api_version: &api_version, subresource: "status", now: &now };
    managed::update(&written, Some(old), new, &writer);
}

/// Merges an applied configuration into `old`; the result carries its managedFields.
///
/// # Errors
/// 409 with the conflicts; 500 for a configuration that does not fit the schema (upstream's accident).
pub fn apply(
    kind: &Kind,
    call: &Call,
    old: Option<&Value>,
    config: &Value,
    options: &WriteOptions,
) -> Result<Value, Status> {
    let merged = with_kind(kind, call, |k| {
        with_writer(kind, call, &options.manager, |w| managed::apply(k, old, config, w, options.force))
    });
    merged.map_err(Status::from)
}

/// Records the ownership of an object that is answered and not stored.
pub fn track_virtual(model: &Struct, subresource: &str, obj: &mut Value, manager: &str) {
    let api_version = obj["apiVersion"].as_str().unwrap_or_default().to_owned();
    let now = crate::verbs::write::now();
    let reset = Set::of_fields(&[&["status"]]);
    let kind = managed::Kind { shape: model, reset: &reset, known: &|_| true };
    managed::update(&kind, None, obj, &Writer { manager, api_version: &api_version, subresource, now: &now });
}
