//! Requests to other servers: who asked, proven by the front-proxy certificate.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Remote;
use super::check::{self, Place};
use crate::auth::User;
use crate::auth::identity::MASTERS;
use crate::body::Body;
use crate::kubelets::{self, Forward, Stream};
use crate::outward;
use crate::server::Inner;
use crate::verbs::{Answer, Call};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest description that is read.
const DOCUMENT_MAX: usize = 32 * 1024 * 1024;
/// Who this server is when it asks for itself.
const OWN: &str = "system:kube-aggregator";
/// What a header's name may hold beside letters and digits.
const TOKEN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// How this server proves itself to those it forwards to.
pub struct Front {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Front {
    /// Reads the client certificate.
    ///
    /// # Errors
    /// When the PEM cannot be read.
    pub fn new(leaf: &crate::pki::Leaf) -> Result<Self, rustls::Error> {
        let general = |e: rustls_pki_types::pem::Error| rustls::Error::General(e.to_string());
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(leaf.cert.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).map_err(general)?;
        Ok(Self { chain: chain.map_err(general)?, key })
    }

    /// TLS as the spec of an APIService says: its `caBundle` (without one the system's authorities), or no verification.
    pub(super) fn trust(&self, spec: &Value) -> Result<Arc<rustls::ClientConfig>, String> {
        let verifier: Arc<dyn rustls::client::danger::ServerCertVerifier> = if spec["insecureSkipTLSVerify"] == true {
            crate::tls::anything()
        } else {
            let ca = spec["caBundle"].as_str().map(|s| STANDARD.decode(s).unwrap_or_default());
            outward::verifier(&ca.unwrap_or_default())?
        };
        let builder = rustls::ClientConfig::builder().dangerous().with_custom_certificate_verifier(verifier);
        let config = builder.with_client_auth_cert(self.chain.clone(), self.key.clone_key());
        config.map(Arc::new).map_err(|e| e.to_string())
    }
}

async fn connect(remote: &Remote, place: &Place) -> Result<Box<dyn Stream>, String> {
    let work = async {
        let (tcp, at) = match place {
            Place::Endpoint(a) => (TcpStream::connect(a).await, a.to_string()),
            Place::Host(h, p) => (TcpStream::connect((h.as_str(), *p)).await, h.clone()),
        };
        let tcp = tcp.map_err(|e| outward::dial(&at, &e))?;
        tcp.set_nodelay(true).map_err(|e| e.to_string())?;
        let name = match place {
            Place::Endpoint(_) => remote.host(),
            Place::Host(h, _) => h.clone(),
        };
        let name = ServerName::try_from(name).map_err(|e| e.to_string())?;
        let tls = TlsConnector::from(Arc::clone(&remote.tls)).connect(name, tcp).await;
        Ok::<_, String>(Box::new(tls.map_err(|e| outward::tls_words(&e))?) as Box<dyn Stream>)
    };
    tokio::time::timeout(CONNECT, work).await.unwrap_or_else(|_| Err("i/o timeout".to_owned()))
}

/// Reads a whole document in this server's own name. The caller bounds the time.
pub(super) async fn get(_: &Inner, remote: &Remote, place: &Place, path: &str) -> Result<(u16, Bytes), String> {
    let io = connect(remote, place).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|e| e.to_string())?;
    let mut request = Request::builder().uri(path).header(HOST, remote.host()).header(ACCEPT, "application/json");
    if let Some(headers) = request.headers_mut() {
        identify(headers, &User::new(OWN, &[MASTERS]));
    }
    let request = request.body(Full::<Bytes>::default()).map_err(|e| e.to_string())?;
    // The connection is driven here, so that it ends with whoever asked.
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let code = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), DOCUMENT_MAX).collect().await.map_err(|e| e.to_string())?;
        Ok((code, body.to_bytes()))
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        r = &mut exchange => r,
        _ = connection => exchange.await,
    }
}

/// Passes a request on that has passed the gates, and its answer back.
pub async fn forward(
    server: &Arc<Inner>,
    remote: &Remote,
    method: &Method,
    path: String,
    call: &mut Call,
) -> http::Response<Body> {
    if !remote.available {
        return unavailable("service unavailable");
    }
    let place = match check::find(server, remote) {
        Ok(place) => place,
        Err(_) => return unavailable("service unavailable"),
    };
    let io = match connect(remote, &place).await {
        Ok(io) => io,
        Err(why) => return unavailable(&format!("error trying to reach service: {why}")),
    };
    let user = call.user.clone();
    identify(&mut call.headers, &user);
    match kubelets::relay(io, call, Forward { method, path, host: remote.host(), extra: vec![] }).await {
        Ok(Answer::Http(response)) => response,
        Ok(_) => unavailable("service unavailable"),
        Err(status) => unavailable(&status.message),
    }
}

/// Says who asks, whatever the client itself said there. Who somebody acts for is decided here: the other server would decide
/// it again, for the one that the request is for already.
fn identify(headers: &mut HeaderMap, user: &User) {
    crate::auth::impersonation::forget(headers);
    let claims = |k: &&HeaderName| k.as_str().starts_with("x-remote-");
    let claimed: Vec<HeaderName> = headers.keys().filter(claims).cloned().collect();
    for name in claimed {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.as_bytes())) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        add("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", utf8_percent_encode(key, TOKEN)).to_ascii_lowercase();
        for value in values {
            add(&name, value);
        }
    }
}

/// Upstream answers in plain text here.
fn unavailable(why: &str) -> http::Response<Body> {
    let mut r = http::Response::new(Body::full(format!("{why}\n")));
    *r.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    let headers = r.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    r
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_we_say_who_asks() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("root"));
        headers.insert("x-remote-extra-a", HeaderValue::from_static("b"));
        headers.insert("impersonate-user", HeaderValue::from_static("ann"));
        headers.insert("impersonate-extra-scopes", HeaderValue::from_static("x"));
        let mut user = User::new("ann", &["dev", "ops"]);
        user.extra.insert("example.com/Key%".into(), vec!["v".into()]);
        identify(&mut headers, &user);
        let all = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(all("x-remote-user"), ["ann"]);
        assert_eq!(all("x-remote-group"), ["dev", "ops", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-example.com%2fkey%25"), ["v"]);
        assert!(!headers.contains_key("x-remote-extra-a"));
        assert!(!headers.keys().any(|k| k.as_str().starts_with("impersonate-")), "{headers:?}");
    }
}
