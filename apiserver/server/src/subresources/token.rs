//! `serviceaccounts/token`, and what a token says about its bearer.

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_core::invalid::Errors;
use skiff_core::meta;
use skiff_core::path::Path;
use skiff_core::resources::Subresource;
use skiff_core::status::Status;

use crate::admission::{self, Operation};
use crate::auth::User;
use crate::auth::token::{Claims, Private, Reference};
use crate::registry::Kind;
use crate::server::Inner;
use crate::verbs::create::settle_namespace;
use crate::verbs::{Answer, Call};

const MIN_SECONDS: i64 = 600;
const DEFAULT_SECONDS: i64 = 3600;

/// The identity behind verified claims.
#[must_use]
pub fn user_of(c: &Claims) -> User {
    let k = &c.kubernetes;
    let ns = &k.namespace;
    let mut user = User::new(
        format!("system:serviceaccount:{ns}:{}", k.serviceaccount.name),
        &["system:serviceaccounts", &format!("system:serviceaccounts:{ns}")],
    );
    user.uid.clone_from(&k.serviceaccount.uid);
    let mut note = |key: &str, value: &str| {
        if !value.is_empty() {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        }
    };
    note("credential-id", &if c.jti.is_empty() { String::new() } else { format!("JTI={}", c.jti) });
    if let Some(p) = &k.pod {
        note("pod-name", &p.name);
        note("pod-uid", &p.uid);
    }
    if let Some(n) = &k.node {
        note("node-name", &n.name);
        note("node-uid", &n.uid);
    }
    user
}

/// Makes a token for the account in the path.
///
/// # Errors
/// 400, 404, 409, 422 in upstream's words.
pub async fn create(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    sub: &Subresource,
    call: &mut Call,
) -> Result<Answer, Status> {
    let (mut obj, options) = super::special::body(sub, "authentication.k8s.io", "v1", call, "CreateOptions")?;
    let (ns, name) = (call.target.namespace.clone(), call.target.name.clone());
    settle_namespace(kind, call, &mut obj)?;
    let account = kind.stored()?.get(&ns, &name).await?.ok_or_else(|| kind.not_found(&name))?;
    let mut errors = Errors::new();
    if !meta::name(&obj).is_empty() && meta::name(&obj) != name {
        let m = Path::new("metadata");
        errors.invalid(&m.child("name"), meta::name(&obj), "must match the service account name if specified");
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", &name, &errors));
    }
    let seconds = obj["spec"]["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
    let spec = Path::new("spec");
    let at = spec.child("expirationSeconds");
    if seconds < MIN_SECONDS {
        errors.invalid(&at, seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > (1 << 32) {
        errors.invalid(&at, seconds, "may not specify a duration larger than 2^32 seconds");
    }
    if !errors.is_empty() {
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &errors));
    }
    obj["spec"]["expirationSeconds"] = seconds.into();
    admission::review(server, kind, call, Operation::Create, &mut obj, options.dry_run).await?;
    let given: Vec<String> = obj["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    let audiences = if given.is_empty() { vec![server.tokens.issuer().to_owned()] } else { given };
    let mut claims =
        Claims { kubernetes: Private { namespace: ns.clone(), ..Private::default() }, ..Claims::default() };
    bind(server, &ns, &name, &obj["spec"]["boundObjectRef"], &mut claims)?;
    let now = jiff::Timestamp::now().as_second();
    claims.aud.clone_from(&audiences);
    claims.iat = now;
    claims.nbf = now;
    claims.exp = now + seconds;
    claims.jti = uuid::Uuid::new_v4().to_string();
    claims.sub = format!("system:serviceaccount:{ns}:{name}");
    claims.kubernetes.serviceaccount = Reference { name: name.clone(), uid: account.meta.uid().into_owned() };
    let expiry = jiff::Timestamp::from_second(claims.exp).unwrap_or(jiff::Timestamp::MAX);
    let token = server.tokens.sign(claims).map_err(Status::internal)?;
    {
        let m = meta::meta_mut(&mut obj);
        m.insert("name".into(), name.into());
        m.insert("namespace".into(), ns.into());
        m.insert("uid".into(), account.meta.uid().into_owned().into());
        m.insert("creationTimestamp".into(), crate::verbs::write::now().into());
    }
    crate::ownership::track_virtual(&sub.model, "token", &mut obj, &options.manager);
    meta::meta_mut(&mut obj).remove("resourceVersion");
    obj["spec"]["audiences"] = json!(audiences);
    obj["status"] = json!({"token": token, "expirationTimestamp": skiff_core::time::format(expiry)});
    Ok(Answer::Value { code: 201, value: obj, model: Some(sub.model.clone()) })
}

/// Binds the token to the Pod, Secret or Node asked for.
fn bind(server: &Inner, ns: &str, account: &str, reference: &Value, claims: &mut Claims) -> Result<(), Status> {
    if reference.is_null() {
        return Ok(());
    }
    let text = |k: &str| reference[k].as_str().unwrap_or_default();
    // Of the version only the group counts; what has more than one slash counts as nothing at all.
    let version = text("apiVersion");
    let (g, v) = match version.split_once('/') {
        Some((_, rest)) if rest.contains('/') => ("", ""),
        Some(both) => both,
        None => ("", version),
    };
    let (resource, scope) = match (g, text("kind")) {
        ("", "Pod") => ("pods", ns),
        ("", "Secret") => ("secrets", ns),
        ("", "Node") => ("nodes", ""),
        (_, k) => {
            return Err(Status::bad_request(format!("cannot bind token to object of type {g}/{v}, Kind={k}")));
        }
    };
    let name = text("name");
    if name.is_empty() {
        return Err(Status::bad_request("Name parameter required."));
    }
    let found = server.peek("", resource, scope, name).ok_or_else(|| Status::not_found("", resource, name))?;
    if resource == "pods" && found["spec"]["serviceAccountName"].as_str().unwrap_or_default() != account {
        return Err(Status::bad_request(format!(
            "cannot bind token for serviceaccount \"{account}\" to pod running with different serviceaccount name."
        )));
    }
    if !text("uid").is_empty() && text("uid") != meta::uid(&found) {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            text("uid")
        );
        return Err(Status::conflict("", text("kind"), name, why));
    }
    let r = Some(Reference { name: name.to_owned(), uid: meta::uid(&found).to_owned() });
    match resource {
        "pods" => {
            if let Some(node) = found["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
                let uid = server.peek("", "nodes", "", node).map(|n| meta::uid(&n).to_owned()).unwrap_or_default();
                claims.kubernetes.node = Some(Reference { name: node.to_owned(), uid });
            }
            claims.kubernetes.pod = r;
        }
        "secrets" => claims.kubernetes.secret = r,
        _ => claims.kubernetes.node = r,
    }
    Ok(())
}
