//! The port of a component: `/metrics` for those who may, `/healthz`, `/livez` and `/readyz` for everybody.
//!
//! [`https`] is what controllers and scheduler have: a certificate that is made at the start and that nobody signed, as
//! upstream's have when they are given none, and callers with a token who may `get` the path. [`http`] is what the proxy
//! has, for callers on the machine. A port that is taken is no reason for a component not to work: the log says so.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_openapi::api::authorization::v1::NonResourceAttributes;
use kube::Client;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::review::{self, Wish};
use crate::{CONTENT_TYPE, Part};

/// A handshake or a request's head that takes longer is dropped, and so is a connection that lasts longer.
const LIMIT: Duration = Duration::from_secs(10);
const LIFE: Duration = Duration::from_secs(600);
/// Connections at one time; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;

/// Serves with TLS until `stop`, asking the API server about callers.
pub async fn https(address: SocketAddr, parts: &'static [Part], client: Client, stop: CancellationToken) {
    let made = async { anyhow::Ok((TcpListener::bind(address).await.context("cannot listen")?, acceptor()?)) };
    match made.await {
        Ok((listener, tls)) => accept(listener, Some(tls), parts, Some(client), stop).await,
        Err(error) => tracing::warn!(%address, error = format!("{error:#}"), "no port for metrics"),
    }
}

/// Serves without TLS and without asking who calls until `stop`: for loopback addresses.
pub async fn http(address: SocketAddr, parts: &'static [Part], stop: CancellationToken) {
    match TcpListener::bind(address).await {
        Ok(listener) => accept(listener, None, parts, None, stop).await,
        Err(error) => tracing::warn!(%address, %error, "no port for metrics"),
    }
}

fn acceptor() -> anyhow::Result<TlsAcceptor> {
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    parts: &'static [Part],
    client: Option<Client>,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let next = async { (slots.clone().acquire_owned().await, listener.accept().await) };
        let Some((slot, accepted)) = stop.run_until_cancelled(next).await else { return };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: let some be closed.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (tls, client, stop) = (tls.clone(), client.clone(), stop.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let conversation = async {
                match tls {
                    None => converse(stream, parts, client).await,
                    Some(tls) => {
                        if let Ok(Ok(stream)) = tokio::time::timeout(LIMIT, tls.accept(stream)).await {
                            converse(stream, parts, client).await;
                        }
                    }
                }
            };
            let _ = stop.run_until_cancelled(tokio::time::timeout(LIFE, conversation)).await;
        });
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    parts: &'static [Part],
    client: Option<Client>,
) {
    let service = service_fn(move |request| {
        let client = client.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(&request, parts, client.as_ref()).await) }
    });
    let mut server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(LIMIT);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "connection for metrics ended");
    }
}

/// The answer to a request; without `client` everybody may everything.
async fn answer<B>(request: &Request<B>, parts: &[Part], client: Option<&Client>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if matches!(path, "/healthz" | "/livez" | "/readyz") {
        return text(StatusCode::OK, "ok");
    }
    if let Some(client) = client {
        let bearer =
            request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
        let who = match bearer {
            Some(token) => review::token(client, token.trim()).await,
            None => None,
        };
        let Some(who) = who else { return text(StatusCode::UNAUTHORIZED, "Unauthorized") };
        let verb = request.method().as_str().to_lowercase();
        let wish = NonResourceAttributes { path: Some(path.to_owned()), verb: Some(verb.clone()) };
        if !review::may(client, &who, Wish::Path(wish)).await {
            let words = format!("Forbidden: user {:?} cannot {verb} path {path:?}", who.user);
            return text(StatusCode::FORBIDDEN, words);
        }
    }
    if path != "/metrics" || request.method() != Method::GET {
        return text(StatusCode::NOT_FOUND, "404 page not found\n");
    }
    let mut response = text(StatusCode::OK, crate::text(parts) + &crate::process());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(CONTENT_TYPE));
    response
}

fn text(status: StatusCode, words: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(words.into()));
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use serde_json::json;

    /// A client whose server knows the token `good` of somebody who may `/metrics`, and `idle` of somebody who may nothing.
    fn client() -> Client {
        let service = tower::service_fn(|request: Request<kube::client::Body>| async move {
            let review = request.uri().path().ends_with("/tokenreviews");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut object: serde_json::Value = serde_json::from_slice(&body).unwrap();
            object["status"] = if review {
                let user = object["spec"]["token"].clone();
                json!({"authenticated": user != "bad", "user": {"username": user, "groups": []}})
            } else {
                let wish = &object["spec"]["nonResourceAttributes"];
                assert_eq!(wish["verb"], "get");
                json!({"allowed": object["spec"]["user"] == "good" && wish["path"] == "/metrics"})
            };
            Ok::<_, std::convert::Infallible>(Response::new(kube::client::Body::from(object.to_string().into_bytes())))
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn who_may_what() {
        let client = client();
        for (path, token, guarded, want) in [
            ("/metrics", Some("good"), true, 200),
            ("/metrics", Some("idle"), true, 403),
            ("/metrics", Some("bad"), true, 401),
            ("/metrics", None, true, 401),
            ("/debug", Some("good"), true, 403),
            ("/healthz", None, true, 200),
            ("/metrics", None, false, 200),
            ("/debug", None, false, 404),
        ] {
            let mut request = Request::get(path);
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let request = request.body(()).unwrap();
            let answer = answer(&request, &[Part::Proxy], guarded.then_some(&client)).await;
            assert_eq!(answer.status(), want, "{path} {token:?} {guarded}");
        }
    }

    #[tokio::test]
    async fn tls_is_spoken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(accept(listener, Some(acceptor().unwrap()), &[], None, stop.clone()));
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rcgen::generate_simple_self_signed(vec!["x".into()]).unwrap().cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        // The certificate is nobody's: the handshake gets as far as its refusal.
        let refused = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap_err();
        assert!(refused.to_string().contains("certificate"), "{refused}");
        stop.cancel();
        server.await.unwrap();
    }
}
