//! Who calls, and whether they may.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use k8s_openapi::api::authorization::v1::ResourceAttributes;
pub(crate) use skiff_metrics::review::Identity;
use skiff_metrics::review::{self, Wish};
use x509_parser::prelude::FromDer;

use super::{Body, Server, text};

/// Whether they may everything without the API server's being asked.
fn is_trusted(who: &Identity) -> bool {
    who.user == "kube-apiserver-kubelet-client" || who.groups.iter().any(|g| g == "system:masters")
}

/// The identity in a verified certificate: user is the common name, groups are the organisations.
pub(crate) fn of_certificate(der: &[u8]) -> Option<Identity> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?.to_string();
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok().map(String::from)).collect();
    Some(Identity { user, groups })
}

/// Lets the request pass or answers why not.
pub(crate) async fn check(
    server: &Server,
    identity: Option<Identity>,
    request: &Request<Incoming>,
    first: &str,
) -> Result<(), Response<Body>> {
    let identity = match identity {
        Some(identity) => Some(identity),
        None => match bearer(request) {
            Some(token) => review::token(&server.manager.shared.client, token).await,
            None => None,
        },
    };
    let Some(identity) = identity else { return Err(text(StatusCode::UNAUTHORIZED, "Unauthorized")) };
    if is_trusted(&identity) {
        return Ok(());
    }
    let verb = if request.method() == Method::GET { "get" } else { "create" };
    let subresource = subresource(first);
    let often = subresource == "functions";
    if often && server.allowed.has(&identity, verb) {
        return Ok(());
    }
    for candidate in [subresource, "proxy"] {
        if may(server, &identity, verb, candidate).await {
            if often {
                server.allowed.put(identity, verb);
            }
            return Ok(());
        }
    }
    let message =
        format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])", identity.user);
    Err(text(StatusCode::FORBIDDEN, message))
}

/// The node's subresource that guards a path.
fn subresource(first: &str) -> &'static str {
    match first {
        "stats" => "stats",
        "metrics" => "metrics",
        "logs" => "log",
        "healthz" => "healthz",
        "pods" | "runningpods" => "pods",
        "functions" => "functions",
        _ => "proxy",
    }
}

/// Who was allowed to ask for functions a moment ago: a connection to an instance must not wait for the API server each time.
/// Only what was allowed is kept; a right that is taken away holds for some seconds more.
#[derive(Default)]
pub(crate) struct Allowed(Mutex<HashMap<Asked, (Vec<String>, Instant)>>);

/// A user, and what it asked to do.
type Asked = (String, &'static str);

/// How long that is believed, and of how many.
const BELIEVED: (Duration, usize) = (Duration::from_secs(10), 64);

impl Allowed {
    fn has(&self, who: &Identity, verb: &'static str) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&(who.user.clone(), verb))
            .is_some_and(|(groups, since)| *groups == who.groups && since.elapsed() < BELIEVED.0)
    }

    fn put(&self, who: Identity, verb: &'static str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= BELIEVED.1 {
            all.clear();
        }
        all.insert((who.user, verb), (who.groups, Instant::now()));
    }
}

fn bearer(request: &Request<Incoming>) -> Option<&str> {
    request.headers().get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ").map(str::trim)
}

async fn may(server: &Server, identity: &Identity, verb: &str, subresource: &str) -> bool {
    let wish = ResourceAttributes {
        verb: Some(verb.into()),
        version: Some("v1".into()),
        resource: Some("nodes".into()),
        subresource: Some(subresource.into()),
        name: Some(server.manager.shared.config.node_name.clone()),
        ..ResourceAttributes::default()
    };
    review::may(&server.manager.shared.client, identity, Wish::Resource(Box::new(wish))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_caller_is_believed() {
        let who = |user: &str, groups: &[&str]| Identity {
            user: user.into(),
            groups: groups.iter().map(|g| (*g).into()).collect(),
        };
        let allowed = Allowed::default();
        allowed.put(who("gateway", &["a"]), "create");
        assert!(allowed.has(&who("gateway", &["a"]), "create"));
        for (other, verb) in [
            (who("gateway", &["a"]), "get"),
            (who("gateway", &["a", "b"]), "create"),
            (who("system:node:n2", &["a"]), "create"),
        ] {
            assert!(!allowed.has(&other, verb), "{other:?} {verb}");
        }
        for number in 0..200 {
            allowed.put(who(&number.to_string(), &[]), "get");
        }
        assert!(allowed.0.lock().unwrap().len() <= BELIEVED.1);
    }

    #[test]
    fn certificates_name_their_owner() {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "admin");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let identity = of_certificate(certificate.der()).unwrap();
        assert_eq!(identity, Identity { user: "admin".into(), groups: vec!["system:masters".into()] });
        assert!(is_trusted(&identity));
        assert!(!is_trusted(&Identity { user: "system:node:a".into(), groups: vec![] }));
        assert!(of_certificate(b"junk").is_none());
    }
}
