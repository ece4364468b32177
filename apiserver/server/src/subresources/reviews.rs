//! Reviews: questions about identity and permission. They are answered and not stored.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use skiff_core::invalid::Errors;
use skiff_core::path::Path;
use skiff_core::status::Status;

use crate::auth::User;
use crate::auth::rbac::{Attributes, Rule};
use crate::registry::Kind;
use crate::server::Inner;
use crate::verbs::options::WriteOptions;
use crate::verbs::{Answer, Call};

/// Answers a review.
///
/// # Errors
/// 400, 422.
pub fn create(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    call: &mut Call,
    obj: &Value,
    options: &WriteOptions,
) -> Result<Answer, Status> {
    let mut out = obj.clone();
    let r = &kind.resource;
    let status = match &*r.kind {
        "SelfSubjectReview" => {
            let mut v = json!({"status": {"userInfo": user_info(&call.user)}});
            v["kind"] = "SelfSubjectReview".into();
            v["apiVersion"] = r.group_version().into();
            v["metadata"] = json!({"creationTimestamp": crate::verbs::write::now()});
            return Ok(Answer::Value { code: 201, value: v, model: Some(r.model.clone()) });
        }
        "TokenReview" => token_review(server, obj)?,
        "SelfSubjectAccessReview" => {
            let a = access_attributes(kind, &obj["spec"])?;
            nameless(kind, obj)?;
            decide(server, &call.user, &a)
        }
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let user = review_user(&obj["spec"]);
            let local = r.kind == "LocalSubjectAccessReview";
            let mut errors = Errors::new();
            let spec = Path::new("spec");
            if user.name.is_empty() && user.groups.is_empty() {
                errors.invalid(&spec.child("user"), "", "at least one of user or group must be specified");
            }
            let elsewhere = &obj["spec"]["nonResourceAttributes"];
            if local && !elsewhere.is_null() {
                let why = "disallowed on this kind of request";
                errors.invalid_raw(&spec.child("nonResourceAttributes"), elsewhere.to_string(), why);
            } else if local {
                let ns = obj["spec"]["resourceAttributes"]["namespace"].as_str().unwrap_or_default();
                if ns != call.target.namespace {
                    errors.invalid(&spec.child("resourceAttributes.namespace"), ns, "must match metadata.namespace");
                }
            }
            if !errors.is_empty() {
                return Err(Status::invalid(&r.group, "", "", &errors));
            }
            let a = access_attributes(kind, &obj["spec"])?;
            if !local {
                nameless(kind, obj)?;
            }
            decide(server, &user, &a)
        }
        "SelfSubjectRulesReview" => rules_review(server, &call.user, obj)?,
        other => return Err(Status::internal(format!("{other} has no answer"))),
    };
    crate::ownership::track_virtual(&r.model, "", &mut out, &options.manager);
    if let Value::Object(o) = &mut out {
        o.entry("metadata").or_insert_with(|| json!({}));
    }
    out["status"] = status;
    Ok(Answer::Value { code: 201, value: out, model: Some(r.model.clone()) })
}

/// A user as reviews show it.
#[must_use]
pub fn user_info(u: &User) -> Value {
    let mut m = Map::new();
    if !u.name.is_empty() {
        m.insert("username".into(), u.name.as_str().into());
    }
    if !u.uid.is_empty() {
        m.insert("uid".into(), u.uid.as_str().into());
    }
    if !u.groups.is_empty() {
        m.insert("groups".into(), json!(u.groups));
    }
    if !u.extra.is_empty() {
        m.insert("extra".into(), json!(u.extra));
    }
    Value::Object(m)
}

fn token_review(server: &Inner, obj: &Value) -> Result<Value, Status> {
    let token = obj["spec"]["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let wanted: Vec<&str> =
        obj["spec"]["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let bad = || json!({"user": {}, "error": "invalid bearer token"});
    if let Some(user) = crate::auth::bootstrap::user(server, token) {
        // Such a token names no audience: it is for this server.
        let own = server.tokens.issuer();
        if !wanted.is_empty() && !wanted.contains(&own) {
            return Ok(json!({"user": {}}));
        }
        return Ok(json!({"authenticated": true, "user": user_info(&user), "audiences": [own]}));
    }
    // A token that was good once and whose objects are gone is simply not authenticated.
    if server.tokens.verify(token).is_none() {
        return Ok(bad());
    }
    let Some(claims) = server.verify_token(token) else { return Ok(json!({"user": {}})) };
    let own = [server.tokens.issuer()];
    let wanted = if wanted.is_empty() { own.to_vec() } else { wanted };
    let shared: Vec<&str> = wanted.into_iter().filter(|w| claims.aud.iter().any(|a| a == w)).collect();
    if shared.is_empty() {
        return Ok(json!({"user": {}}));
    }
    let user = super::token::user_of(&claims);
    Ok(json!({"authenticated": true, "user": user_info(&user), "audiences": shared}))
}

fn review_user(spec: &Value) -> User {
    let mut u = User { name: spec["user"].as_str().unwrap_or_default().to_owned(), ..User::default() };
    u.groups = spec["groups"].as_array().into_iter().flatten().filter_map(|g| g.as_str().map(str::to_owned)).collect();
    u.uid = spec["uid"].as_str().unwrap_or_default().to_owned();
    u
}

fn access_attributes(kind: &Kind, spec: &Value) -> Result<Attributes, Status> {
    let (res, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if res.is_null() == path.is_null() {
        let mut errors = Errors::new();
        let shown = if res.is_null() { "null".to_owned() } else { spec.to_string() };
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.invalid_raw(&Path::new("spec"), shown, why);
        return Err(Status::invalid(kind.group(), "", "", &errors));
    }
    let text = |v: &Value, k: &str| v[k].as_str().unwrap_or_default().to_owned();
    if !path.is_null() {
        return Ok(Attributes { verb: text(path, "verb"), path: text(path, "path"), ..Attributes::default() });
    }
    let sub = text(res, "subresource");
    let resource = text(res, "resource");
    Ok(Attributes {
        verb: text(res, "verb"),
        group: text(res, "group"),
        version: text(res, "version"),
        resource: if sub.is_empty() { resource } else { format!("{resource}/{sub}") },
        name: text(res, "name"),
        namespace: text(res, "namespace"),
        path: String::new(),
    })
}

/// A review about the whole cluster has no name of its own.
fn nameless(kind: &Kind, obj: &Value) -> Result<(), Status> {
    let rest = obj["metadata"].as_object().is_some_and(|m| {
        m.iter().any(|(k, v)| !matches!(k.as_str(), "managedFields" | "creationTimestamp") && !v.is_null() && v != "")
    });
    if !rest {
        return Ok(());
    }
    let mut errors = Errors::new();
    errors.invalid_raw(&Path::new("metadata"), obj["metadata"].to_string(), "must be empty");
    Err(Status::invalid(kind.group(), "", "", &errors))
}

fn decide(server: &Inner, user: &User, a: &Attributes) -> Value {
    match server.authorise(user, a) {
        Ok(reason) if reason.is_empty() => json!({"allowed": true}),
        Ok(reason) => json!({"allowed": true, "reason": reason}),
        Err(_) => json!({"allowed": false}),
    }
}

fn rules_review(server: &Inner, user: &User, obj: &Value) -> Result<Value, Status> {
    let ns = obj["spec"]["namespace"].as_str().unwrap_or_default();
    if ns.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let mut held: Vec<Rule> = server.rbac().rules_for(user, ns).iter().flat_map(|r| r.iter().cloned()).collect();
    if user.in_group(crate::auth::identity::MASTERS) {
        let all = || vec!["*".to_owned()];
        held.insert(0, Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() });
        held.insert(1, Rule { verbs: all(), paths: all(), ..Rule::default() });
    }
    let (mut resources, mut paths) = (vec![], vec![]);
    for r in &held {
        if !r.resources.is_empty() {
            let mut v = json!({"verbs": r.verbs, "apiGroups": r.groups, "resources": r.resources});
            if !r.names.is_empty() {
                v["resourceNames"] = json!(r.names);
            }
            resources.push(v);
        }
        if !r.paths.is_empty() {
            paths.push(json!({"verbs": r.verbs, "nonResourceURLs": r.paths}));
        }
    }
    let incomplete = user.node_name().is_some();
    let mut v = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": incomplete});
    if incomplete {
        v["evaluationError"] = "node authorizer does not support user rule resolution".into();
    }
    Ok(v)
}
