//! Options of writes, from the query or the body.

use serde_json::{Value, json};
use skiff_core::invalid::Errors;
use skiff_core::path::Path;
use skiff_core::status::Status;

use super::Call;

/// How strict unknown and duplicate fields are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    /// Dropped silently.
    Ignore,
    /// Dropped with a warning each.
    Warn,
    /// Refused.
    Strict,
}

/// Options of create, update and patch.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Carry everything out but the write.
    pub dry_run: bool,
    /// Name for managedFields.
    pub manager: String,
    /// Strictness.
    pub validation: FieldValidation,
    /// Apply: take ownership of conflicting fields.
    pub force: bool,
}

/// Reads and checks the options. `kind` names the options object in errors (`CreateOptions` ...).
///
/// # Errors
/// 422 with upstream's fields.
pub fn write_options(call: &Call, kind: &str) -> Result<WriteOptions, Status> {
    write_options_after(call, kind, Errors::new())
}

/// [`write_options`] where something was checked before.
///
/// # Errors
/// 422 with all that is wrong.
pub fn write_options_after(call: &Call, kind: &str, mut errors: Errors) -> Result<WriteOptions, Status> {
    let dry: Vec<&str> = call.query.all("dryRun").collect();
    let manager = call.query.get("fieldManager").unwrap_or_default();
    validate_manager(manager, &mut errors);
    validate_dry_run(&dry, &mut errors);
    let validation = match call.query.get("fieldValidation").unwrap_or_default() {
        "" | "Warn" => FieldValidation::Warn,
        "Ignore" => FieldValidation::Ignore,
        "Strict" => FieldValidation::Strict,
        other => {
            errors.not_supported(&Path::new("fieldValidation"), other, &["", "Ignore", "Strict", "Warn"]);
            FieldValidation::Warn
        }
    };
    if !errors.is_empty() {
        return Err(Status::invalid("meta.k8s.io", kind, "", &errors));
    }
    Ok(WriteOptions {
        dry_run: !dry.is_empty(),
        manager: call.field_manager(),
        validation,
        force: call.query.flag("force"),
    })
}

fn validate_dry_run(values: &[&str], errors: &mut Errors) {
    if values.iter().any(|v| *v != "All") {
        errors.not_supported(&Path::new("dryRun"), json!(values), &["All"]);
    }
}

fn validate_manager(manager: &str, errors: &mut Errors) {
    let path = Path::new("fieldManager");
    if manager.len() > 128 {
        errors.too_long(&path, 128);
    }
    if manager.chars().any(char::is_control) {
        errors.invalid(&path, manager, "should only contain printable characters");
    }
}

/// How dependents are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Keep them.
    Orphan,
    /// Delete them afterwards.
    Background,
    /// Delete them first.
    Foreground,
}

/// Options of delete and deletecollection.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Only look.
    pub dry_run: bool,
    /// Seconds the object may take to go.
    pub grace: Option<i64>,
    /// Required uid.
    pub uid: Option<String>,
    /// Required resourceVersion.
    pub version: Option<String>,
    /// Dependents.
    pub propagation: Option<Propagation>,
    /// Whether the old `orphanDependents` field asked for deletion of dependents (decides a 202).
    pub orphan_dependents: Option<bool>,
}

/// Reads delete options: the body if there is one, else the query.
///
/// # Errors
/// 400 for a body that cannot be read, 422 for contradictions.
pub fn delete_options(call: &Call) -> Result<DeleteOptions, Status> {
    let v = if call.body.is_empty() { from_query(call)? } else { crate::decode::delete_options(call)? };
    let mut errors = Errors::new();
    let dry: Vec<&str> = v["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    validate_dry_run(&dry, &mut errors);
    let orphan_dependents = v["orphanDependents"].as_bool();
    let policy = v["propagationPolicy"].as_str();
    if let (Some(p), Some(_)) = (policy, orphan_dependents) {
        errors.invalid(
            &Path::new("propagationPolicy"),
            p,
            "orphanDependents and deletionPropagation cannot be both set",
        );
    }
    let propagation = match policy {
        None => orphan_dependents.map(|o| if o { Propagation::Orphan } else { Propagation::Background }),
        Some("Orphan") => Some(Propagation::Orphan),
        Some("Background") => Some(Propagation::Background),
        Some("Foreground") => Some(Propagation::Foreground),
        Some(other) => {
            errors.not_supported(
                &Path::new("propagationPolicy"),
                other,
                &["Foreground", "Background", "Orphan", "nil"],
            );
            None
        }
    };
    if !errors.is_empty() {
        return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors));
    }
    let text = |v: &Value| v.as_str().map(str::to_owned);
    Ok(DeleteOptions {
        dry_run: !dry.is_empty(),
        grace: v["gracePeriodSeconds"].as_i64(),
        uid: text(&v["preconditions"]["uid"]),
        version: text(&v["preconditions"]["resourceVersion"]),
        propagation,
        orphan_dependents,
    })
}

fn from_query(call: &Call) -> Result<Value, Status> {
    let mut v = json!({});
    if let Some(g) = call.query.number("gracePeriodSeconds")? {
        v["gracePeriodSeconds"] = g.into();
    }
    if call.query.get("orphanDependents").is_some() {
        v["orphanDependents"] = call.query.flag("orphanDependents").into();
    }
    if let Some(p) = call.query.get("propagationPolicy") {
        v["propagationPolicy"] = p.into();
    }
    let dry: Vec<&str> = call.query.all("dryRun").filter(|v| !v.is_empty()).collect();
    if !dry.is_empty() {
        v["dryRun"] = json!(dry);
    }
    Ok(v)
}
