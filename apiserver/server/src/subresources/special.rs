//! Subresources that edit one part of their object: ephemeralcontainers, resize, finalize, approval.

use std::sync::Arc;

use serde_json::Value;
use skiff_core::meta;
use skiff_core::resources::Subresource;
use skiff_core::status::Status;

use crate::decode::{self, Expected};
use crate::ownership::Owner;
use crate::registry::Kind;
use crate::request::Verb;
use crate::server::Inner;
use crate::verbs::options::{WriteOptions, write_options};
use crate::verbs::update::{RACE_TRIES, check_identity, check_version};
use crate::verbs::write::{self, Attempt, Old, Part};
use crate::verbs::{Answer, Call, get, patch};

/// Reads the body of a subresource along its own schema.
///
/// # Errors
/// 400, 415, 422.
pub fn body(
    sub: &Subresource,
    group: &str,
    version: &str,
    call: &mut Call,
    options_kind: &str,
) -> Result<(Value, WriteOptions), Status> {
    let options = write_options(call, options_kind)?;
    let expected = Expected { group, version, kind: &sub.kind, shape: &sub.model, rules: None };
    let obj = decode::body(call, expected, options.validation)?;
    Ok((obj, options))
}

/// Keeps everything but the part this subresource is about.
fn keep_only(sub: &str, new: &Value, old: &Value) -> Value {
    let mut out = old.clone();
    match sub {
        "ephemeralcontainers" => match new["spec"].get("ephemeralContainers") {
            Some(v) => out["spec"]["ephemeralContainers"] = v.clone(),
            None => {
                if let Some(s) = out["spec"].as_object_mut() {
                    s.remove("ephemeralContainers");
                }
            }
        },
        "finalize" => {
            out = new.clone();
            skiff_core::kinds::carry(&mut out, old, "status");
        }
        "approval" => {
            out["metadata"] = new["metadata"].clone();
            if !out["status"].is_object() {
                out["status"] = Value::Object(serde_json::Map::new());
            }
            skiff_core::kinds::carry(&mut out["status"], &new["status"], "conditions");
        }
        "resize" => {
            for list in ["containers", "initContainers"] {
                let given = new["spec"][list].as_array().cloned().unwrap_or_default();
                for c in out["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                    let Some(n) = given.iter().find(|n| n["name"] == c["name"]) else { continue };
                    for key in ["resources", "resizePolicy"] {
                        if let Some(v) = n.get(key) {
                            c[key] = v.clone();
                        }
                    }
                }
            }
        }
        _ => {}
    }
    for key in ["resourceVersion", "uid"] {
        if let Some(v) = new["metadata"].get(key) {
            meta::meta_mut(&mut out).insert(key.into(), v.clone());
        }
    }
    out
}

/// Answers GET, PUT and PATCH of such a subresource.
///
/// # Errors
/// As upstream's server answers.
pub async fn handle(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    sub: &Subresource,
    call: &mut Call,
) -> Result<Answer, Status> {
    let objects = Arc::clone(kind.stored()?);
    let (ns, name) = (call.target.namespace.clone(), call.target.name.clone());
    let r = &kind.resource;
    let (options, given, how) = match call.target.verb {
        Verb::Get => return get::get(kind, call).await,
        Verb::Update => {
            let options = write_options(call, "UpdateOptions")?;
            let expected = Expected::of(kind);
            let mut obj = decode::body(call, expected, options.validation)?;
            check_identity(kind, call, &mut obj)?;
            (options, Some(obj), None)
        }
        Verb::Patch => {
            let how = patch::patch_type(call, true)?;
            (write_options(call, "PatchOptions")?, None, Some(how))
        }
        _ => return Err(Status::method_not_allowed()),
    };
    for _ in 0..RACE_TRIES {
        let found = objects.get(&ns, &name).await?.ok_or_else(|| kind.not_found(&name))?;
        let old = kind.load(&found)?;
        let new = match (&given, how) {
            (Some(v), _) => v.clone(),
            (None, Some(how)) => {
                let p = crate::patching::apply(how, &old, &call.body, &r.model, options.validation)?;
                patch::decode_patched(kind, call, how, p, &options)?
            }
            (None, None) => return Err(Status::method_not_allowed()),
        };
        let mut new = new;
        kind.strategy.default(&mut new);
        let mut new = keep_only(&sub.name, &new, &old);
        let asked = meta::text(&new, "resourceVersion").to_owned();
        let locked = !matches!(asked.as_str(), "" | "0") && check_version(kind, &new, &name, found.revision)?;
        kind.strategy.prepare_subresource(&sub.name, &mut new, &old);
        let locked = locked && given.is_some();
        let old = Old { object: &found, value: old };
        let attempt = write::update(server, kind, call, old, new, Part::Other, Owner::Update, &options, locked).await?;
        if let Attempt::Done(answer) = attempt {
            return Ok(answer);
        }
    }
    Err(Status::modified(kind.group(), kind.plural(), &name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_approval_changes_conditions_and_metadata() {
        let old = json!({"metadata": {"name": "a"}, "spec": {"signerName": "e.com/s"}, "status": {"certificate": "c"}});
        let conditions = json!([{"type": "Approved", "status": "True"}]);
        let new = json!({"metadata": {"name": "a", "annotations": {"by": "me"}}, "spec": {"signerName": "e.com/t"},
            "status": {"certificate": "d", "conditions": conditions}});
        let mut want = old.clone();
        want["metadata"]["annotations"] = json!({"by": "me"});
        want["status"]["conditions"] = conditions;
        assert_eq!(keep_only("approval", &new, &old), want);
    }
}
