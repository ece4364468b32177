//! The node's HTTPS endpoint: logs, exec, attach, port-forward, statistics.
//!
//! Callers show a certificate of the cluster's CA, or a token that the API server vouches for; then the API server is
//! asked whether they may. Group `system:masters` and the API server's own client may everything, so that a person
//! can still look at a node whose API server is away. Nothing is served without TLS.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::certificates::Slot;
use crate::node::NodeAgent;
use crate::pod::Manager;
use auth::Identity;

mod auth;
mod cgroup;
mod exec;
mod logs;
mod metrics;
mod portforward;
mod query;
mod spdy;
mod stats;
mod upgrade;
mod websocket;

/// A handshake or a request's head that takes longer is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at one time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1024;

/// A body of an answer.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What else this process runs on the node, served below `/functions` to who may `get` or `create` `nodes/functions`, and a
/// source of images that no registry has.
///
/// The endpoint authenticates and authorises; what is behind it bounds what it takes.
pub trait Extension: std::fmt::Debug + Send + Sync + 'static {
    /// Answers a request of somebody who may ask.
    fn answer(&self, request: Request<Incoming>) -> BoxFuture<'_, Response<Body>>;

    /// Whether it may have an image of this name. Such an image is asked for here and nowhere else.
    fn has_image(&self, name: &str) -> bool;

    /// Brings an image to the node's engine. The error says why it does not.
    fn bring_image<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), String>>;
}

/// A bound listener.
pub struct Listener {
    socket: TcpListener,
    tls: TlsAcceptor,
}

impl Listener {
    /// Binds the address and reads the CA of callers. What is served with is in `slot`.
    pub async fn bind(config: &Config, slot: Arc<Slot>) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(config.client_ca_pem.as_bytes()) {
            roots.add(certificate?)?;
        }
        let builder = if roots.is_empty() {
            builder.with_no_client_auth()
        } else {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
        };
        let mut tls = builder.with_cert_resolver(slot);
        // HTTP/1.1 only: exec, attach and port-forward are upgrades.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { socket: TcpListener::bind(config.listen).await?, tls: TlsAcceptor::from(Arc::new(tls)) })
    }

    /// The address that was bound.
    pub fn address(&self) -> std::io::Result<std::net::SocketAddr> {
        self.socket.local_addr()
    }
}

/// What the handlers need.
pub(crate) struct Server {
    pub(crate) manager: Arc<Manager>,
    pub(crate) node: Arc<NodeAgent>,
    pub(crate) samples: stats::Samples,
    pub(crate) allowed: auth::Allowed,
}

/// Serves until told to stop.
pub async fn serve(listener: Listener, manager: Arc<Manager>, node: Arc<NodeAgent>, shutdown: CancellationToken) {
    let server =
        Arc::new(Server { manager, node, samples: stats::Samples::default(), allowed: auth::Allowed::default() });
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let slot = tokio::select! {
            () = shutdown.cancelled() => return,
            slot = slots.clone().acquire_owned() => slot,
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.socket.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: let some be closed.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, server, shutdown) = (listener.tls.clone(), server.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await else { return };
            let certificate = stream.get_ref().1.peer_certificates().and_then(|c| c.first()).map(|c| c.to_vec());
            let identity = certificate.and_then(|c| auth::of_certificate(&c));
            let service = service_fn(move |request| {
                let (server, identity) = (server.clone(), identity.clone());
                async move { Ok::<_, std::convert::Infallible>(answer(server, identity, request).await) }
            });
            let connection = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let connection = connection.serve_connection_with_upgrades(TokioIo::new(stream), service);
            tokio::select! {
                () = shutdown.cancelled() => {}
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
            }
        });
    }
}

async fn answer(server: Arc<Server>, identity: Option<Identity>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_string();
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    if let Err(refusal) = auth::check(&server, identity, &request, segments[0]).await {
        return refusal;
    }
    let get = request.method() == Method::GET;
    match segments.as_slice() {
        ["healthz"] | ["healthz", "ping" | "log" | "syncloop"] => text(StatusCode::OK, "ok"),
        ["pods" | "runningpods"] if get => json(&serde_json::json!({
            "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": server.manager.pods().iter().map(|p| &**p).collect::<Vec<_>>(),
        })),
        ["containerLogs", namespace, pod, container] if get => {
            logs::serve(&server, namespace, pod, container, request.uri().query().unwrap_or_default()).await
        }
        ["exec", namespace, pod, container] => exec::exec(&server, namespace, pod, container, request).await,
        ["attach", namespace, pod, container] => exec::attach(&server, namespace, pod, container, request).await,
        // Some clients put the UID between name and container.
        ["exec", namespace, pod, _, container] => exec::exec(&server, namespace, pod, container, request).await,
        ["attach", namespace, pod, _, container] => exec::attach(&server, namespace, pod, container, request).await,
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            portforward::serve(&server, namespace, pod, request).await
        }
        ["functions", ..] => match &server.manager.shared.config.functions {
            Some(functions) => functions.answer(request).await,
            None => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        },
        ["stats", "summary"] if get => stats::summary(&server).await,
        ["metrics"] if get => metrics::own(&server).await,
        ["metrics", "probes"] if get => metrics::shown(skiff_metrics::text(&[skiff_metrics::Part::Probes])),
        ["metrics", "resource"] if get => stats::resource_metrics(&server).await,
        ["metrics", "cadvisor"] if get => stats::cadvisor(&server).await,
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

pub(crate) fn text(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(full(message.into()));
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

pub(crate) fn json(value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

pub(crate) fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}
