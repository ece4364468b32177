//! Connections to node agents: logs, exec, attach, port-forward, and the proxy of nodes.
//!
//! The node agent speaks the client's protocol (WebSocket or SPDY), so the server passes bytes: it authorises, finds the
//! node, opens one TLS connection with its own client certificate, forwards the request with its upgrade headers, and
//! joins the two connections. A failed upgrade closes the backend connection: nothing can be sent on it afterwards.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderName, UPGRADE};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, BodyStream, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use rustls_pki_types::pem::PemObject;
use skiff_core::status::Status;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::body::Body;
use crate::verbs::{Answer, Call};

/// How long a connection to a node agent may take.
const CONNECT: Duration = Duration::from_secs(10);
/// Headers that belong to one connection or to the client's identity, never passed on.
const HOP: [&str; 6] = ["connection", "host", "authorization", "te", "transfer-encoding", "content-length"];

/// How to reach node agents.
pub struct Kubelets {
    tls: Option<TlsConnector>,
}

/// A connection that can be read and written.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Kubelets {
    /// Trusts servers signed by `ca` and presents `client` (both PEM). Without a client certificate no node is reached.
    ///
    /// # Errors
    /// When the PEM cannot be read.
    pub fn new(ca: &str, client: Option<&crate::pki::Leaf>) -> Result<Self, rustls::Error> {
        let Some(client) = client else { return Ok(Self { tls: None }) };
        let general = |e: rustls_pki_types::pem::Error| rustls::Error::General(e.to_string());
        let mut roots = rustls::RootCertStore::empty();
        for c in rustls_pki_types::CertificateDer::pem_slice_iter(ca.as_bytes()) {
            roots.add(c.map_err(general)?)?;
        }
        let chain: Result<Vec<_>, _> =
            rustls_pki_types::CertificateDer::pem_slice_iter(client.cert.as_bytes()).collect();
        let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(client.key.as_bytes()).map_err(general)?;
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.map_err(general)?, key)?;
        Ok(Self { tls: Some(TlsConnector::from(Arc::new(config))) })
    }

    /// Opens a TLS connection to a node agent.
    ///
    /// # Errors
    /// 503 when the node cannot be reached.
    pub async fn connect(&self, address: IpAddr, port: u16) -> Result<Box<dyn Stream>, Status> {
        let Some(tls) = &self.tls else {
            return Err(Status::unavailable("this server has no client certificate for node agents"));
        };
        let at = SocketAddr::new(address, port);
        let failed = |e: std::io::Error| Status::untyped(format!("Get \"https://{at}\": dial tcp {at}: {e}"));
        let connect = async {
            let tcp = TcpStream::connect(at).await?;
            tcp.set_nodelay(true)?;
            tls.connect(ServerName::IpAddress(address.into()), tcp).await
        };
        match tokio::time::timeout(CONNECT, connect).await {
            Ok(r) => Ok(Box::new(r.map_err(failed)?)),
            Err(_) => Err(Status::unavailable(format!("dial tcp {at}: i/o timeout"))),
        }
    }
}

impl Kubelets {
    /// Reads a whole document of a node agent, of `limit` bytes at most. The caller bounds the time.
    ///
    /// # Errors
    /// 503 when the node cannot be reached or does not answer with 200.
    pub async fn fetch(&self, address: IpAddr, port: u16, path: &str, limit: usize) -> Result<Bytes, Status> {
        let broken = |e: &dyn std::fmt::Display| Status::unavailable(format!("error trying to reach node: {e}"));
        let io = self.connect(address, port).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|e| broken(&e))?;
        let request = Request::builder().uri(path).header(HOST, format!("{address}:{port}"));
        let request = request.body(Full::<Bytes>::default()).map_err(|e| broken(&e))?;
        // The connection is driven here, so that it ends with whoever asked.
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(|e| broken(&e))?;
            if answer.status() != StatusCode::OK {
                return Err(broken(&answer.status()));
            }
            let body = http_body_util::Limited::new(answer.into_body(), limit).collect().await;
            body.map(http_body_util::Collected::to_bytes).map_err(|e| broken(&e))
        };
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            biased;
            r = &mut exchange => r,
            _ = connection => exchange.await,
        }
    }
}

/// What is passed on to a backend.
pub struct Forward<'a> {
    /// Method.
    pub method: &'a Method,
    /// Path with query.
    pub path: String,
    /// Host header.
    pub host: String,
    /// Further headers to set.
    pub extra: Vec<(HeaderName, http::HeaderValue)>,
}

/// Sends a call to a backend connection and relays the answer; upgrades are joined.
///
/// # Errors
/// 502-like statuses when the backend breaks.
pub async fn relay(io: Box<dyn Stream>, call: &mut Call, to: Forward<'_>) -> Result<Answer, Status> {
    let broken = |e: &dyn std::fmt::Display| Status::unavailable(format!("error trying to reach service: {e}"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|e| broken(&e))?;
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::builder().method(to.method.clone()).uri(&to.path);
    let upgrading = call.headers.contains_key(UPGRADE);
    if let Some(headers) = request.headers_mut() {
        for (k, v) in &call.headers {
            if !HOP.contains(&k.as_str()) && (upgrading || k != UPGRADE) {
                headers.append(k.clone(), v.clone());
            }
        }
        if upgrading {
            headers.insert(CONNECTION, http::HeaderValue::from_static("Upgrade"));
        }
        if let Ok(h) = http::HeaderValue::from_str(&to.host) {
            headers.insert(HOST, h);
        }
        headers.remove(AUTHORIZATION);
        for (k, v) in to.extra {
            headers.insert(k, v);
        }
    }
    let request = request.body(Full::new(call.body.clone())).map_err(|e| Status::bad_request(e.to_string()))?;
    let mut answer = sender.send_request(request).await.map_err(|e| broken(&e))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = call.upgrade.take() else {
            return Err(Status::bad_request("Upgrade request required"));
        };
        let backend = hyper::upgrade::on(&mut answer);
        tokio::spawn(async move {
            if let (Ok(client), Ok(backend)) = tokio::join!(client, backend) {
                // The end of either side is the end of both; how it ended is the peers' business.
                let _ = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(backend)).await;
            }
        });
        let (parts, _) = answer.into_parts();
        return Ok(Answer::Http(http::Response::from_parts(parts, Body::empty())));
    }
    let (mut parts, body) = answer.into_parts();
    for h in ["connection", "transfer-encoding", "keep-alive"] {
        parts.headers.remove(h);
    }
    // A backend that refuses an upgrade answers whole; its connection is dropped with `sender`.
    let stream = BodyStream::new(body).filter_map(|f| async move {
        match f {
            Ok(f) => f.into_data().ok().map(Ok),
            Err(e) => Some(Err(std::io::Error::other(e))),
        }
    });
    // `sender` must live as long as the answer is read.
    let stream = stream.map(move |b: std::io::Result<Bytes>| {
        let _alive = &sender;
        b
    });
    Ok(Answer::Http(http::Response::from_parts(parts, Body::Fallible(Box::pin(stream)))))
}

/// Reads a whole answer of a backend, for callers that look at it.
///
/// # Errors
/// As [`relay`].
pub async fn collect(body: Body) -> Result<Bytes, Status> {
    body.collect().await.map(http_body_util::Collected::to_bytes).map_err(|e| Status::unavailable(e.to_string()))
}
