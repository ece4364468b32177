//! `patch`: JSON patch, JSON merge patch, strategic merge patch, and server-side apply.

use std::sync::Arc;

use serde_json::Value;
use skiff_core::codec;
use skiff_core::invalid::{Errors, quote_str};
use skiff_core::meta;
use skiff_core::path::Path;
use skiff_core::status::Status;

use super::options::{FieldValidation, WriteOptions, write_options_after};
use super::update::{RACE_TRIES, check_identity, check_version};
use super::write::{self, Attempt, Old, Part};
use super::{Answer, Call};
use crate::decode::{self, Expected};
use crate::ownership::{self, Owner};
use crate::registry::Kind;
use crate::server::Inner;

/// The four kinds of patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Upstream's strategic merge.
    Strategic,
    /// Server-side apply.
    Apply,
}

/// Refuses the types of bodies that no route of a built-in kind takes.
///
/// # Errors
/// 415 in the router's words.
pub fn routable(call: &Call) -> Result<(), Status> {
    match patch_type(call, true) {
        Err(s) if s.message.starts_with("415") => Err(s),
        _ => Ok(()),
    }
}

/// Reads the patch type; 415 in the router's words for what no route takes.
///
/// # Errors
/// 415.
pub fn patch_type(call: &Call, strategic: bool) -> Result<PatchType, Status> {
    let media = call.header("content-type").split(';').next().unwrap_or_default().trim();
    let first = media.split(',').next().unwrap_or_default().trim();
    match media {
        "application/json-patch+json" => Ok(PatchType::Json),
        "application/merge-patch+json" => Ok(PatchType::Merge),
        "application/strategic-merge-patch+json" if strategic => Ok(PatchType::Strategic),
        "application/apply-patch+yaml" => Ok(PatchType::Apply),
        _ if !strategic
            || matches!(
                first,
                "application/json-patch+json"
                    | "application/merge-patch+json"
                    | "application/strategic-merge-patch+json"
                    | "application/apply-patch+yaml"
                    | "application/apply-patch+cbor"
            ) =>
        {
            let mut known = vec!["application/json-patch+json", "application/merge-patch+json"];
            if strategic {
                known.push("application/strategic-merge-patch+json");
            }
            known.push("application/apply-patch+yaml");
            Err(Status::unsupported_media_type(&known))
        }
        _ => {
            let mut s = Status::new(415, "UnsupportedMediaType", "415: Unsupported Media Type");
            s.details = Some(Box::default());
            Err(s)
        }
    }
}

/// Reads the options, after a check of those that depend on the patch type.
///
/// # Errors
/// 422.
pub fn patch_options(call: &Call, patch: PatchType) -> Result<WriteOptions, Status> {
    let mut e = Errors::new();
    if patch == PatchType::Apply {
        if call.query.get("fieldManager").unwrap_or_default().is_empty() {
            e.required(&Path::new("fieldManager"), "is required for apply patch");
        }
    } else if call.query.get("force").is_some_and(|f| !f.is_empty()) {
        e.forbidden(&Path::new("force"), "may not be specified for non-apply patch");
    }
    write_options_after(call, "PatchOptions", e)
}

/// Patches the object named in the path.
///
/// # Errors
/// As upstream's server answers.
pub async fn patch(server: &Arc<Inner>, kind: &Arc<Kind>, call: &mut Call, part: Part) -> Result<Answer, Status> {
    let patch = patch_type(call, !kind.strategy.traits().untyped)?;
    let options = patch_options(call, patch)?;
    let objects = Arc::clone(kind.stored()?);
    let (ns, name) = (call.target.namespace.clone(), call.target.name.clone());
    let applied = match patch {
        PatchType::Apply => Some(read_apply(kind, call, &options)?),
        _ => None,
    };
    for _ in 0..RACE_TRIES {
        let Some(old_object) = objects.get(&ns, &name).await? else {
            if applied.is_none() {
                check_body(call, patch)?;
            }
            let Some(applied) = applied.filter(|_| part == Part::Main) else { return Err(kind.not_found(&name)) };
            return create_by_apply(server, kind, call, applied, &options).await;
        };
        let old = kind.load_from(server, &old_object).await?;
        let (mut new, owner) = match &applied {
            Some(config) => {
                let merged = ownership::apply(kind, call, Some(&old), config, &options)?;
                (decode_applied(kind, call, merged, &options)?, Owner::Apply)
            }
            None => (apply_patch(kind, call, patch, &old, &options)?, Owner::Update),
        };
        check_identity(kind, call, &mut new)?;
        if !meta::uid(&new).is_empty() && meta::uid(&new) != meta::uid(&old) {
            // Reported by metadata validation, as an immutable field.
            let mut e = Errors::new();
            meta::validate_update(&new, &old, &mut e);
            return Err(Status::invalid(kind.group(), &kind.resource.kind, &name, &e));
        }
        let asked = meta::text(&new, "resourceVersion").to_owned();
        let locked = asked != old_object.revision.to_string()
            || applied.as_ref().is_some_and(|c| !meta::text(c, "resourceVersion").is_empty());
        if locked && !asked.is_empty() {
            check_version(kind, &new, &name, old_object.revision)?;
        }
        kind.strategy.default(&mut new);
        let old = Old { object: &old_object, value: old };
        let attempt = write::update(server, kind, call, old, new, part, owner, &options, false).await?;
        if let Attempt::Done(answer) = attempt {
            return Ok(answer);
        }
    }
    Err(Status::modified(kind.group(), kind.plural(), &name))
}

/// The patched object, decoded along the schema.
fn apply_patch(
    kind: &Kind,
    call: &mut Call,
    patch: PatchType,
    old: &Value,
    options: &WriteOptions,
) -> Result<Value, Status> {
    let r = &kind.resource;
    let patched = crate::patching::apply(patch, old, &call.body, &r.model, options.validation)?;
    decode_patched(kind, call, patch, patched, options)
}

/// Decodes the result of a patch: field validation applies to it as to a body.
///
/// # Errors
/// 422 when the result is not an object of the kind; 400 under strict validation.
pub fn decode_patched(
    kind: &Kind,
    call: &mut Call,
    how: PatchType,
    patched: crate::patching::Patched,
    options: &WriteOptions,
) -> Result<Value, Status> {
    let r = &kind.resource;
    let mut value = patched.value;
    let want = (r.kind.as_ref(), r.group_version());
    let got = (value["kind"].as_str().unwrap_or_default(), value["apiVersion"].as_str().unwrap_or_default());
    let got = (got.0.to_owned(), got.1.to_owned());
    let (got, want) = ((got.0.as_str(), got.1.as_str()), (want.0, want.1.as_str()));
    let mut nameless = vec![];
    if got != want {
        if kind.strategy.traits().untyped {
            decode::check_version(got.1, Expected::of(kind))?;
        } else if how == PatchType::Strategic {
            // Upstream merges into the typed object, where a kind cannot change: such a patch changes nothing else.
            value["kind"] = want.0.into();
            value["apiVersion"] = want.1.into();
        } else if !(got.0.is_empty() && got.1.is_empty()) {
            let why = format!(
                "no kind {} is registered for version {} in scheme \"pkg/runtime/scheme.go:111\"",
                quote_str(got.0),
                quote_str(got.1)
            );
            return Err(crate::patching::undecodable(&patched.text, &why));
        } else {
            // Nothing says what it is: no field is known, and the name is missed below.
            let Value::Object(fields) = &value else { return Err(Status::bad_request("the patched object is none")) };
            nameless = fields.keys().map(|k| format!("unknown field {}", quote_str(k))).collect();
            nameless.sort();
            value = serde_json::json!({"kind": want.0, "apiVersion": want.1});
        }
    }
    let mut faults = codec::Faults::default();
    let forget = decode::forgets_owners(&value);
    if let Err(e) = kind.normalize(&mut value, &mut faults) {
        return Err(crate::patching::undecodable(&patched.text, &e.to_string()));
    }
    if kind.strategy.traits().untyped {
        decode::check_kind(got.0, meta::name(&value), Expected::of(kind))?;
    }
    if forget {
        value["metadata"]["managedFields"] = Value::Array(vec![]);
    }
    call.emptied = std::mem::take(&mut faults.emptied);
    let mut strict: Vec<String> = patched.duplicates;
    strict.extend(nameless);
    strict.extend(unknown(&faults));
    if !strict.is_empty() {
        match options.validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => call.warnings.extend(strict),
            FieldValidation::Strict => return Err(crate::patching::strict(&patched.text, &strict)),
        }
    }
    Ok(value)
}

/// What decoding dropped, as strict faults.
#[must_use]
pub fn unknown(faults: &codec::Faults) -> Vec<String> {
    faults.unknown.iter().map(|p| format!("unknown field {}", skiff_core::invalid::quote_str(p))).collect()
}

/// Reads the body of an apply request.
///
/// # Errors
/// 400, in other words for what begins like JSON, which upstream does not convert first.
pub fn read_yaml(call: &Call) -> Result<codec::ParsedYaml, Status> {
    codec::parse_yaml(&call.body).map_err(|e| {
        let doing = if like_json(call) { "decoding patch: error converting YAML to JSON" } else { "encoding patch" };
        Status::bad_request(format!("error {doing}: {e}"))
    })
}

/// Whether the body is a patch at all, which is said before that there is nothing to change.
///
/// # Errors
/// 400.
pub fn check_body(call: &Call, patch: PatchType) -> Result<(), Status> {
    match patch {
        PatchType::Apply if like_json(call) => Ok(()),
        PatchType::Apply => read_yaml(call).map(drop),
        _ => serde_json::from_slice::<serde::de::IgnoredAny>(&call.body)
            .map(drop)
            .map_err(|_| crate::patching::malformed()),
    }
}

/// Whether the body begins like JSON, which upstream reads later than YAML.
fn like_json(call: &Call) -> bool {
    call.body.trim_ascii_start().starts_with(b"{")
}

/// Reads the configuration of an apply request.
fn read_apply(kind: &Kind, call: &mut Call, options: &WriteOptions) -> Result<Value, Status> {
    let r = &kind.resource;
    let parsed = read_yaml(call)?;
    match options.validation {
        FieldValidation::Strict if !parsed.duplicates.is_empty() => {
            return Err(Status::bad_request(format!(
                "error strict decoding patch: error converting YAML to JSON: yaml: unmarshal errors:\n  {}",
                parsed.duplicates.join("\n  ")
            )));
        }
        FieldValidation::Warn => call.warnings.extend(parsed.duplicates),
        _ => {}
    }
    let value = parsed.value;
    let text = |k: &str| value.get(k).and_then(Value::as_str).unwrap_or_default();
    if text("kind") != r.kind || text("apiVersion") != r.group_version() {
        let (g, v) = text("apiVersion").rsplit_once('/').unwrap_or(("", text("apiVersion")));
        let what = if g.is_empty() && v.is_empty() { "/".to_owned() } else { format!("{g}/{v}") };
        return Err(Status::bad_request(format!("invalid object type: {what}, Kind={}", text("kind"))));
    }
    if value["metadata"].get("managedFields").is_some_and(|m| !m.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    Ok(value)
}

async fn create_by_apply(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    call: &mut Call,
    config: Value,
    options: &WriteOptions,
) -> Result<Answer, Status> {
    crate::chain::authorise_create(server, call)?;
    let name = call.target.name.clone();
    let uid = meta::uid(&config);
    if !uid.is_empty() {
        let why = format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
        return Err(Status::conflict(kind.group(), kind.plural(), &name, why));
    }
    let merged = ownership::apply(kind, call, None, &config, options)?;
    let mut obj = decode_applied(kind, call, merged, options)?;
    check_identity(kind, call, &mut obj)?;
    // Where nothing is, there is no version to hold the writer to.
    meta::meta_mut(&mut obj).remove("resourceVersion");
    write::create(server, kind, call, obj, Owner::Apply, options).await
}

/// Decodes the merged object of an apply.
fn decode_applied(kind: &Kind, call: &mut Call, mut merged: Value, options: &WriteOptions) -> Result<Value, Status> {
    let expected = Expected::of(kind);
    let mut faults = codec::Faults::default();
    kind.normalize(&mut merged, &mut faults).map_err(|e| Status::bad_request(e.to_string()))?;
    let decoded = codec::Decoded { value: merged, strict: unknown(&faults), emptied: faults.emptied };
    decode::report(decoded, expected, options.validation, call)
}
