//! The agent of another node, as the gateway talks to it.
//!
//! Everything goes over TLS to the node agent's port. The gateway shows a certificate of its own, and believes only a certificate
//! of the cluster's CA for the node's address and with the node's name: nobody else can pass for the node, and who is not the
//! gateway reaches no instance. A connection to an instance is such a connection that changed its protocol.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use x509_parser::prelude::FromDer as _;

use super::endpoint::PROTOCOL;
use super::images;
use super::job::{Job, Kept, Printed, Said, Told};
use crate::gateway::call::{nothing, whole};
use crate::gateway::link::{Body, Link};
use crate::instance::{Address, Dial, Stream};

/// Time for a short answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Time for a start: packages may have to be installed.
const START: Duration = Duration::from_secs(400);
/// Time to connect.
const CONNECT: Duration = Duration::from_secs(3);
/// Most bytes of an answer.
const LIMIT: usize = 16 << 20;

/// What the gateway shows to agents of other nodes, and whom it believes. All PEM.
#[derive(Clone)]
pub struct Keys {
    /// The cluster's CA, which signs the certificates of agents.
    pub ca: String,
    /// The gateway's own client certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// # Errors
    /// When the PEM cannot be read.
    pub(super) fn connector(&self) -> anyhow::Result<TlsConnector> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.ca.as_bytes()) {
            roots.add(certificate?)?;
        }
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = config.with_root_certificates(roots).with_client_auth_cert(chain?, key)?;
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// Opens connections to an agent.
struct Way {
    node: String,
    address: SocketAddr,
    tls: Option<TlsConnector>,
    /// Cancelled when the node is given up: every connection to it breaks then. Replaced when it is back.
    cut: Mutex<CancellationToken>,
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Way({} at {})", self.node, self.address)
    }
}

#[async_trait]
impl Dial for Way {
    async fn dial(&self) -> io::Result<Box<dyn Stream>> {
        let Some(tls) = &self.tls else { return Err(io::ErrorKind::NotConnected.into()) };
        let token = self.cut.lock().clone();
        if token.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::NotConnected, format!("node {} does not answer", self.node)));
        }
        let tcp = TcpStream::connect(self.address).await?;
        // Small answers must not wait for each other; without it they are only slower.
        let _ = tcp.set_nodelay(true);
        let stream = tls.connect(ServerName::IpAddress(self.address.ip().into()), tcp).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
        let wanted = format!("system:node:{}", self.node);
        if shown.and_then(|c| common_name(c)).is_none_or(|name| name != wanted) {
            let why = format!("what answers at {} is not the agent of node {}", self.address, self.node);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(Box::new(Cut { inner: stream, ended: Box::pin(token.clone().cancelled_owned()), token }))
    }
}

fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    Some(certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned())
}

/// A connection that breaks when its node is given up: whoever waits for an answer need not wait for the end of time.
struct Cut<S> {
    inner: S,
    token: CancellationToken,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Cut<S> {
    /// Whether it is to break, and a promise to be woken then.
    fn is_cut(&mut self, cx: &mut Context<'_>) -> bool {
        self.token.is_cancelled() || self.ended.as_mut().poll(cx).is_ready()
    }
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "its node does not answer any more")
}

impl<S: AsyncRead + Unpin> AsyncRead for Cut<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_cut(cx) {
            return Poll::Ready(Err(broken()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cut<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_cut(cx) {
            return Poll::Ready(Err(broken()));
        }
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// The way to one instance.
#[derive(Debug)]
struct Door {
    way: Arc<Way>,
    namespace: String,
    name: String,
}

#[async_trait]
impl Dial for Door {
    async fn dial(&self) -> io::Result<Box<dyn Stream>> {
        let io = self.way.dial().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
        tokio::spawn(async move {
            // Its end is told to whoever waits for the answer.
            let _ = connection.with_upgrades().await;
        });
        let request = Request::post(format!("/functions/connect/{}/{}", self.namespace, self.name))
            .header(HOST, self.way.address.to_string())
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, PROTOCOL)
            .body(nothing())
            .map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let why = format!("node {} answers {}", self.way.node, response.status());
            return Err(io::Error::new(io::ErrorKind::NotConnected, why));
        }
        Ok(Box::new(TokioIo::new(hyper::upgrade::on(response).await.map_err(io::Error::other)?)))
    }
}

/// The agent of another node.
pub(super) struct Agent {
    way: Arc<Way>,
    /// Connections for short questions, kept.
    link: Arc<Link>,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.way.fmt(f)
    }
}

/// An answer of an agent that is none.
#[derive(Debug, thiserror::Error)]
#[error("the agent of node {node} answers {status}: {said}")]
pub(super) struct Refused {
    node: String,
    pub(super) status: StatusCode,
    said: String,
}

/// Objects of a stream, one a line.
pub(super) struct Lines<T> {
    body: Incoming,
    buffer: BytesMut,
    what: std::marker::PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// The next one; none at the end. May be dropped and called again.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<T>> {
        loop {
            if let Some(end) = memchr(&self.buffer) {
                let line = self.buffer.split_to(end + 1);
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            anyhow::ensure!(self.buffer.len() <= LIMIT, "a line of more than {LIMIT} bytes");
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Some(data) = frame?.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

fn memchr(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|b| *b == b'\n')
}

impl Agent {
    pub(super) fn new(node: &str, address: SocketAddr, tls: TlsConnector) -> Self {
        Self::with(node, address, Some(tls))
    }

    fn with(node: &str, address: SocketAddr, tls: Option<TlsConnector>) -> Self {
        let way = Arc::new(Way { node: node.to_owned(), address, tls, cut: Mutex::default() });
        let link = Arc::new(Link::new(Address::Through(Arc::clone(&way) as Arc<dyn Dial>)));
        Self { way, link }
    }

    /// One that cannot be reached.
    #[cfg(test)]
    pub(super) fn nowhere(node: &str) -> Self {
        Self::with(node, ([127, 0, 0, 1], 1).into(), None)
    }

    /// Where it is.
    pub(super) fn address(&self) -> SocketAddr {
        self.way.address
    }

    /// The address of one of its instances.
    pub(super) fn door(&self, namespace: &str, name: &str) -> Address {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Address::Through(Arc::new(Door { way: Arc::clone(&self.way), namespace, name }))
    }

    /// The node is given up: every connection to it breaks.
    pub(super) fn cut(&self) {
        self.way.cut.lock().cancel();
        self.link.clear();
    }

    /// It is to be tried again.
    fn mend(&self) {
        let mut cut = self.way.cut.lock();
        if cut.is_cancelled() {
            *cut = CancellationToken::new();
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
        limit: Duration,
    ) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(headers) = request.headers_mut() {
            headers.insert(HOST, HeaderValue::try_from(self.way.address.to_string())?);
        }
        let sent = tokio::time::timeout(limit, self.link.send(request.body(body)?)).await;
        let response = sent.with_context(|| format!("node {} does not answer in time", self.way.node))?;
        let response = response.map_err(|e| anyhow::anyhow!("node {} does not answer: {e}", self.way.node))?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let status = response.status();
        let said = tokio::time::timeout(ANSWER, Limited::new(response.into_body(), 4096).collect()).await;
        let said = said.ok().and_then(Result::ok).map(|b| b.to_bytes()).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        Err(Refused { node: self.way.node.clone(), status, said }.into())
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str, what: &impl Serialize, limit: Duration) -> anyhow::Result<T> {
        let response = self.send(Method::POST, path, whole(serde_json::to_vec(what)?), limit).await?;
        let body = tokio::time::timeout(limit, Limited::new(response.into_body(), LIMIT).collect()).await?;
        let body = body.map_err(|e| anyhow::anyhow!("node {} broke off: {e}", self.way.node))?;
        Ok(serde_json::from_slice(&body.to_bytes())?)
    }

    pub(super) async fn start(&self, job: &Job) -> anyhow::Result<Said> {
        self.ask("/functions/start", job, START).await
    }

    pub(super) async fn prepare(&self, job: &Job) -> anyhow::Result<Said> {
        self.ask("/functions/prepare", job, START).await
    }

    /// Hands over code, a gzipped tar.
    pub(super) async fn keep(&self, key: &str, code: Bytes) -> anyhow::Result<Said> {
        let path = format!("/functions/code/{key}");
        let response = self.send(Method::PUT, &path, whole(code), START).await?;
        let body = tokio::time::timeout(ANSWER, Limited::new(response.into_body(), LIMIT).collect()).await?;
        Ok(serde_json::from_slice(&body.map_err(|e| anyhow::anyhow!(e))?.to_bytes())?)
    }

    /// Hands over an image as the engine's archive of it. The body's own errors break it off.
    pub(super) async fn image(&self, digest: &str, archive: Body) -> anyhow::Result<()> {
        self.send(Method::PUT, &format!("/functions/image/{digest}"), archive, images::TIME).await.map(drop)
    }

    /// Says that an image is not handed over.
    pub(super) async fn refuse(&self, digest: &str, why: &str) -> anyhow::Result<()> {
        let path = format!("/functions/image/{digest}/refused");
        self.send(Method::POST, &path, whole(why.to_owned()), ANSWER).await.map(drop)
    }

    /// What the node keeps for functions; images of this cluster.
    pub(super) async fn kept(&self, cluster: Option<&str>) -> anyhow::Result<Kept> {
        let query = cluster.map(|c| format!("?cluster={c}")).unwrap_or_default();
        let response = self.send(Method::GET, &format!("/functions/kept{query}"), nothing(), START).await?;
        let body = tokio::time::timeout(ANSWER, Limited::new(response.into_body(), LIMIT).collect()).await?;
        Ok(serde_json::from_slice(&body.map_err(|e| anyhow::anyhow!(e))?.to_bytes())?)
    }

    /// Says what of that no revision needs.
    pub(super) async fn drop_kept(&self, unneeded: &Kept) -> anyhow::Result<()> {
        self.send(Method::POST, "/functions/drop", whole(serde_json::to_vec(unneeded)?), START).await.map(drop)
    }

    pub(super) async fn stop(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        let path = format!("/functions/stop/{namespace}/{name}");
        self.send(Method::POST, &path, nothing(), ANSWER * 2).await.map(drop)
    }

    /// What it runs, and what happens from then on.
    pub(super) async fn watch(&self) -> anyhow::Result<Lines<Told>> {
        self.mend();
        self.stream("/functions/watch").await
    }

    /// Lines of all instances from now on.
    pub(super) async fn lines(&self) -> anyhow::Result<Lines<Printed>> {
        self.stream("/functions/lines").await
    }

    /// The last lines of a function's instances. `query` has the function, and what is wanted of it.
    pub(super) async fn tail(&self, query: &str) -> anyhow::Result<Vec<Printed>> {
        let response = self.send(Method::GET, &format!("/functions/logs?{query}"), nothing(), ANSWER).await?;
        let body = tokio::time::timeout(ANSWER, Limited::new(response.into_body(), 4 * LIMIT).collect()).await?;
        Ok(serde_json::from_slice(&body.map_err(|e| anyhow::anyhow!(e))?.to_bytes())?)
    }

    async fn stream<T>(&self, path: &str) -> anyhow::Result<Lines<T>> {
        let response = self.send(Method::GET, path, nothing(), CONNECT + ANSWER).await?;
        Ok(Lines { body: response.into_body(), buffer: BytesMut::new(), what: std::marker::PhantomData })
    }
}
