//! Reviews: questions about identity and permission. They are answered and not stored.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use skiff_core::invalid::{Errors, quote_str};
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
            check_access(kind, call, obj)?;
            decide(server, &call.user, &access_attributes(&obj["spec"]))
        }
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            check_access(kind, call, obj)?;
            decide(server, &review_user(&obj["spec"]), &access_attributes(&obj["spec"]))
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
    let Some(claims) = server.tokens.verify(token) else { return Ok(bad()) };
    let own = [server.tokens.issuer()];
    let wanted = if wanted.is_empty() { own.to_vec() } else { wanted };
    let shared: Vec<&str> = wanted.iter().copied().filter(|w| claims.aud.iter().any(|a| a == w)).collect();
    if shared.is_empty() {
        let list = |l: &[&str]| l.iter().map(|a| quote_str(a)).collect::<Vec<_>>().join(" ");
        let has: Vec<&str> = claims.aud.iter().map(String::as_str).collect();
        let why = format!(
            "[invalid bearer token, token audiences [{}] is invalid for the target audiences [{}]]",
            list(&has),
            list(&wanted)
        );
        return Ok(json!({"user": {}, "error": why}));
    }
    // A token that was good once and whose objects are gone is simply not authenticated.
    let Some(claims) = server.verify_token(token) else { return Ok(json!({"user": {}})) };
    let user = super::token::user_of(&claims);
    Ok(json!({"authenticated": true, "user": user_info(&user), "audiences": shared}))
}

fn review_user(spec: &Value) -> User {
    let mut u = User { name: spec["user"].as_str().unwrap_or_default().to_owned(), ..User::default() };
    u.groups = spec["groups"].as_array().into_iter().flatten().filter_map(|g| g.as_str().map(str::to_owned)).collect();
    u.uid = spec["uid"].as_str().unwrap_or_default().to_owned();
    u
}

/// Checks what a review about access asks.
fn check_access(kind: &Kind, call: &Call, obj: &Value) -> Result<(), Status> {
    let of = &*kind.resource.kind;
    let local = of == "LocalSubjectAccessReview";
    let spec = &obj["spec"];
    let (res, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let mut errors = Errors::new();
    let at = Path::new("spec");
    if res.is_null() == path.is_null() {
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.invalid_raw(&at, path.to_string(), why);
    }
    if of != "SelfSubjectAccessReview" {
        let user = review_user(spec);
        if user.name.is_empty() && user.groups.is_empty() {
            errors.invalid(&at.child("user"), "", "at least one of user or group must be specified");
        }
    }
    let named = obj["metadata"].as_object().is_some_and(|m| {
        m.iter().any(|(k, v)| {
            let free = matches!(k.as_str(), "managedFields" | "creationTimestamp") || (local && k == "namespace");
            !free && !v.is_null() && v != ""
        })
    });
    if named {
        let why = if local { "must be empty except for namespace" } else { "must be empty" };
        errors.invalid_raw(&Path::new("metadata"), obj["metadata"].to_string(), why);
    }
    if local && !res.is_null() {
        let ns = res["namespace"].as_str().unwrap_or_default();
        if ns != call.target.namespace {
            errors.invalid(&at.child("resourceAttributes.namespace"), ns, "must match metadata.namespace");
        }
    }
    if local && !path.is_null() {
        let why = "disallowed on this kind of request";
        errors.invalid_raw(&at.child("nonResourceAttributes"), path.to_string(), why);
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(kind.group(), "", "", &errors)) }
}

fn access_attributes(spec: &Value) -> Attributes {
    let (res, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |v: &Value, k: &str| v[k].as_str().unwrap_or_default().to_owned();
    if !path.is_null() {
        return Attributes { verb: text(path, "verb"), path: text(path, "path"), ..Attributes::default() };
    }
    let sub = text(res, "subresource");
    let resource = text(res, "resource");
    Attributes {
        verb: text(res, "verb"),
        group: text(res, "group"),
        version: text(res, "version"),
        resource: if sub.is_empty() { resource } else { format!("{resource}/{sub}") },
        name: text(res, "name"),
        namespace: text(res, "namespace"),
        path: String::new(),
    }
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
