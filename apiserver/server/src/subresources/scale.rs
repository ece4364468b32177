//! `scale`: replicas of a workload as an autoscaling/v1 Scale.

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_core::codec;
use skiff_core::custom::strategy::lookup;
use skiff_core::invalid::{Errors, quote_str};
use skiff_core::meta;
use skiff_core::path::Path;
use skiff_core::resources::Subresource;
use skiff_core::selector::LabelSelector;
use skiff_core::status::Status;

use crate::ownership::{self, Owner};
use crate::registry::Kind;
use crate::request::Verb;
use crate::server::Inner;
use crate::verbs::create::settle_namespace;
use crate::verbs::options::FieldValidation;
use crate::verbs::update::{RACE_TRIES, check_version};
use crate::verbs::write::{self, Attempt, Old, Part};
use crate::verbs::{Answer, Call, patch};

/// The Scale view of a workload.
#[must_use]
pub fn view(obj: &Value) -> Value {
    let spec = &obj["spec"];
    let mut m = json!({});
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(v) = obj["metadata"].get(key) {
            m[key] = v.clone();
        }
    }
    let selector = match &spec["selector"] {
        s if s.get("matchLabels").is_some() || s.get("matchExpressions").is_some() => {
            LabelSelector::from_object(Some(s)).to_string()
        }
        s => LabelSelector::from_map(Some(s)).to_string(),
    };
    let mut status = json!({"replicas": obj["status"]["replicas"].as_i64().unwrap_or(0)});
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    let mut s = json!({});
    let replicas = spec["replicas"].as_i64().unwrap_or(0);
    if replicas != 0 {
        s["replicas"] = replicas.into();
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": m, "spec": s, "status": status})
}

/// The Scale view of an object of a kind, by the paths the kind gives.
///
/// # Errors
/// 500 when there are no desired replicas.
pub fn view_of(kind: &Kind, obj: &Value, strict: bool) -> Result<Value, Status> {
    let Some(paths) = kind.strategy.scale_paths() else { return Ok(view(obj)) };
    let number = |path: &str| lookup(obj, path).and_then(Value::as_i64);
    let replicas = number(&paths.spec);
    if strict && replicas.is_none() {
        let why = format!("the spec replicas field {} does not exist", quote_str(&paths.spec));
        return Err(Status::internal(why));
    }
    let mut plain = serde_json::json!({"metadata": obj["metadata"], "spec": {"replicas": replicas},
        "status": {"replicas": number(&paths.status)}});
    plain = view(&plain);
    if let Some(selector) = lookup(obj, &paths.selector).and_then(Value::as_str).filter(|s| !s.is_empty()) {
        plain["status"]["selector"] = selector.into();
    }
    Ok(plain)
}

/// Sets the desired replicas.
pub fn set_replicas(kind: &Kind, obj: &mut Value, replicas: i64) {
    let path = kind.strategy.scale_paths().map_or(".spec.replicas", |p| p.spec.as_str());
    let mut at = obj;
    for name in path.trim_start_matches('.').split('.') {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[name];
    }
    *at = replicas.into();
}

/// Answers the scale subresource.
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
    let answer = |v: &Value| {
        let value = view_of(kind, v, true)?;
        Ok(Answer::Value { code: 200, value, model: Some(sub.model.clone()) })
    };
    let (options, given, how) = match call.target.verb {
        Verb::Get => {
            let found = objects.get(&ns, &name).await?.ok_or_else(|| kind.not_found(&name))?;
            return answer(&kind.load_from(server, &found).await?);
        }
        Verb::Update => {
            let (mut obj, options) = super::special::body(sub, "autoscaling", "v1", call, "UpdateOptions")?;
            settle_namespace(kind, call, &mut obj)?;
            (options, Some(obj), None)
        }
        Verb::Patch => {
            let how = patch::patch_type(call, !kind.strategy.traits().untyped)?;
            let options = patch::patch_options(call, how)?;
            patch::check_body(call, how)?;
            (options, None, Some(how))
        }
        _ => return Err(Status::method_not_allowed()),
    };
    for _ in 0..RACE_TRIES {
        let found = objects.get(&ns, &name).await?.ok_or_else(|| kind.not_found(&name))?;
        let old = kind.load_from(server, &found).await?;
        let mut wanted = match (&given, how) {
            (Some(v), _) => v.clone(),
            (None, Some(patch::PatchType::Apply)) => applied(call, &view_of(kind, &old, false)?)?,
            (None, Some(how)) => patched(sub, call, how, &view_of(kind, &old, false)?, options.validation)?,
            (None, None) => return Err(Status::method_not_allowed()),
        };
        let wanted_name = meta::name(&wanted);
        if wanted_name != name {
            if wanted_name.is_empty() {
                return Err(Status::bad_request(format!(
                    "the name of the object ({name} based on URL) was undeterminable: name must be provided"
                )));
            }
            return Err(Status::bad_request(format!(
                "the name of the object ({wanted_name}) does not match the name on the URL ({name})"
            )));
        }
        settle_namespace(kind, call, &mut wanted)?;
        // Kinds of definitions are checked as what they are, by their own rules.
        if kind.strategy.scale_paths().is_none() {
            validate(&wanted, &name)?;
        }
        let uid = meta::uid(&wanted);
        if !uid.is_empty() && uid != meta::uid(&old) {
            let why = crate::verbs::update::uid_mismatch(kind, &ns, &name, uid, meta::uid(&old));
            return Err(Status::conflict(kind.group(), kind.plural(), &name, why));
        }
        let given_version = meta::text(&wanted, "resourceVersion");
        let locked = !matches!(given_version, "" | "0") && check_version(kind, &wanted, &name, found.revision)?;
        let mut new = old.clone();
        set_replicas(kind, &mut new, wanted["spec"]["replicas"].as_i64().unwrap_or(0));
        let mut owner = Owner::Update;
        if how == Some(patch::PatchType::Apply) {
            // The merge is that of the object, told in the words of the view.
            let mut config =
                json!({"apiVersion": kind.api_version(), "kind": kind.resource.kind, "metadata": {"name": name}});
            set_replicas(kind, &mut config, wanted["spec"]["replicas"].as_i64().unwrap_or(0));
            new = ownership::apply(kind, call, Some(&old), &config, &options).map_err(|s| of_view(kind, s))?;
            owner = Owner::Apply;
        }
        let (old, locked) = (Old { object: &found, value: old }, locked && given.is_some());
        let attempt = write::update(server, kind, call, old, new, Part::Main, owner, &options, locked).await?;
        let Attempt::Done(done) = attempt else { continue };
        if let Answer::Object { object, .. } = Kind::present_answer(server, done).await? {
            let v = match object {
                crate::verbs::Content::Stored(b) => kind.load_bytes(&b)?,
                crate::verbs::Content::Parsed(v) => v,
            };
            return answer(&v);
        }
    }
    Err(Status::modified(kind.group(), kind.plural(), &name))
}

fn validate(scale: &Value, name: &str) -> Result<(), Status> {
    let n = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if n >= 0 {
        return Ok(());
    }
    let mut e = Errors::new();
    let spec = Path::new("spec");
    e.invalid(&spec.child("replicas"), n, "must be greater than or equal to 0");
    Err(Status::invalid("autoscaling", "Scale", name, &e))
}

/// The view with what an applied configuration says.
fn applied(call: &Call, scale: &Value) -> Result<Value, Status> {
    let parsed = patch::read_yaml(call)?;
    let mut out = scale.clone();
    out["spec"]["replicas"] = parsed.value["spec"]["replicas"].clone();
    Ok(out)
}

/// A conflict in the object as one in the view: fields and versions have the view's names.
fn of_view(kind: &Kind, mut s: Status) -> Status {
    let path = kind.strategy.scale_paths().map_or(".spec.replicas", |p| p.spec.as_str()).to_owned();
    let version = format!("using {}", kind.api_version());
    let say = |text: &str| text.replace(&version, "using autoscaling/v1").replace(&path, ".spec.replicas");
    let message = say(&s.message);
    s.message = message;
    let causes = s.details.as_mut().and_then(|d| d.get_mut("causes")).and_then(Value::as_array_mut);
    for cause in causes.into_iter().flatten() {
        for key in ["message", "field"] {
            if let Some(text) = cause.get(key).and_then(Value::as_str).map(say) {
                cause[key] = text.into();
            }
        }
    }
    s
}

fn patched(
    sub: &Subresource,
    call: &mut Call,
    how: patch::PatchType,
    scale: &Value,
    validation: FieldValidation,
) -> Result<Value, Status> {
    let p = crate::patching::apply(how, scale, &call.body, &sub.model, validation)?;
    let mut value = p.value;
    let mut faults = codec::Faults::default();
    codec::normalize(&mut value, &sub.model, &mut faults)
        .map_err(|e| crate::patching::undecodable(&p.text, &e.to_string()))?;
    let mut strict = p.duplicates;
    strict.extend(patch::unknown(&faults));
    match validation {
        FieldValidation::Strict if !strict.is_empty() => return Err(crate::patching::strict(&p.text, &strict)),
        FieldValidation::Warn => call.warnings.extend(strict),
        _ => {}
    }
    Ok(value)
}
