//! Requests in, requests out.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::pool::{Body, Error, Pool};
use super::table::{Backend, Port};
use super::{State, tls};
use crate::index::Shared;
use crate::model::Protocol;

/// Clients' connections at a time. Further ones wait in the kernel's queue.
const CONNECTIONS: usize = 16_384;
/// Time for a client to send a request's head, or to say hello.
const HEAD: Duration = Duration::from_secs(30);
/// Time for requests under way when the gateway stops.
const DRAIN: Duration = Duration::from_secs(10);
/// Wait after a connection could not be accepted, as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often kept connections are looked through.
const SWEEP: Duration = Duration::from_secs(60);
/// Endpoints tried for one request when the first do not take the connection.
const TRIES: usize = 3;

/// Headers that are about one connection, not about the request.
const HOP: [HeaderName; 6] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    http::header::TE,
    http::header::TRAILER,
    UPGRADE,
];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The gateway.
pub struct Gateway {
    state: Arc<State>,
    shared: Shared,
    pool: Arc<Pool>,
    turn: AtomicUsize,
    connections: Arc<Semaphore>,
}

/// Who asks, and how.
#[derive(Clone, Copy, Debug)]
struct Client {
    address: IpAddr,
    secure: bool,
}

fn says(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(format!("{text}\n"))).map_err(|never: Infallible| match never {});
    let mut r = Response::new(body.boxed_unsync());
    *r.status_mut() = status;
    r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    r
}

impl Gateway {
    /// A gateway by these rules and endpoints.
    #[must_use]
    pub fn new(state: Arc<State>, shared: Shared) -> Self {
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        Self { state, shared, pool: Arc::default(), turn: AtomicUsize::new(0), connections }
    }

    /// The ready endpoints of a backend, beginning with the one whose turn it is.
    fn endpoints(&self, backend: &Backend) -> Vec<SocketAddr> {
        let index = self.shared.index.read();
        let Some(entry) = index.get(&backend.namespace, &backend.service) else { return vec![] };
        let Some(service) = entry.service() else { return vec![] };
        let port = service.ports.iter().find(|p| {
            p.protocol == Protocol::Tcp
                && match &backend.port {
                    Port::Number(n) => p.port == *n,
                    Port::Name(name) => p.name == *name,
                }
        });
        let Some(port) = port else { return vec![] };
        let mut all: Vec<SocketAddr> = vec![];
        for slice in entry.slices() {
            let Some(target) = slice.ports.iter().find(|p| p.name == port.name && p.protocol == Protocol::Tcp) else {
                continue;
            };
            let ready = slice.endpoints.iter().filter(|e| e.ready || service.publish_not_ready);
            all.extend(ready.map(|e| SocketAddr::new(e.address, target.port)));
        }
        drop(index);
        if !all.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % all.len();
            all.rotate_left(turn);
        }
        all
    }

    async fn answer(&self, mut request: Request<Incoming>, client: Client) -> Response<Body> {
        let host = request.uri().authority().map(|a| a.as_str().to_owned());
        let host = host.or_else(|| request.headers().get(HOST)?.to_str().ok().map(str::to_owned)).unwrap_or_default();
        let table = self.state.table();
        let Some((backend, rule)) = table.find(without_port(&host), request.uri().path()) else {
            return says(StatusCode::NOT_FOUND, "404: no Ingress has a rule for this host and path");
        };
        let targets = self.endpoints(backend);
        if targets.is_empty() {
            let text = format!("503: the Service {}/{} has no ready endpoints", backend.namespace, backend.service);
            return says(StatusCode::SERVICE_UNAVAILABLE, &text);
        }
        let rewritten = rule.and_then(|r| r.rewritten(request.uri().path(), request.uri().query()));
        let path = rewritten.or_else(|| request.uri().path_and_query().map(|p| p.as_str().to_owned()));
        let Ok(uri) = path.as_deref().unwrap_or("/").parse() else {
            return says(StatusCode::BAD_REQUEST, "400: this is no path");
        };
        let upgrade = wanted_upgrade(request.headers());
        let from_client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        parts.uri = uri;
        parts.version = Version::HTTP_11;
        head(&mut parts.headers, &host, client, upgrade.as_ref());
        // What else the head carries belongs to the client's connection.
        parts.extensions.clear();
        let mut out = Request::from_parts(parts, body.boxed_unsync());
        for target in targets.into_iter().take(TRIES) {
            match self.pool.send(target, out).await {
                Ok(response) => return through(response, from_client),
                Err(Error::Connect(_, back)) => out = *back,
                Err(error) => {
                    tracing::debug!(%error, "a request broke off");
                    return says(StatusCode::BAD_GATEWAY, "502: the endpoint broke off");
                }
            }
        }
        says(StatusCode::BAD_GATEWAY, "502: no endpoint takes connections")
    }

    async fn converse<I>(self: Arc<Self>, io: I, client: Client, stop: CancellationToken)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let service = service_fn(move |request| {
            let gateway = Arc::clone(&self);
            async move { Ok::<_, Infallible>(gateway.answer(request, client).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).half_close(false);
        builder.http2().timer(TokioTimer::new()).keep_alive_interval(HEAD);
        let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(io), service));
        // Clients that break off are no news.
        tokio::select! {
            _ = connection.as_mut() => {}
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                let _ = tokio::time::timeout(DRAIN, connection).await;
            }
        }
    }

    /// Accepts until `stop`, and gives each connection to `serve`.
    async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        stop: CancellationToken,
        serve: impl Fn(Arc<Self>, TcpStream, SocketAddr, CancellationToken) + Sync,
    ) {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                _ = sweep.tick() => {
                    self.pool.sweep();
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => serve(Arc::clone(&self), stream, peer, stop.clone()),
                Err(error) => {
                    tracing::warn!(%error, "the ingress gateway cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Serves HTTP until `stop`.
pub async fn plain(gateway: Arc<Gateway>, listener: TcpListener, stop: CancellationToken) {
    gateway
        .accept(listener, stop, |gateway, stream, peer, stop| {
            // Beyond the bound it is closed: a queue would only make everyone wait.
            let Ok(permit) = Arc::clone(&gateway.connections).try_acquire_owned() else { return };
            let _ = stream.set_nodelay(true);
            tokio::spawn(async move {
                let _permit = permit;
                gateway.converse(stream, Client { address: peer.ip(), secure: false }, stop).await;
            });
        })
        .await;
}

/// Serves HTTPS until `stop`.
///
/// # Errors
/// When no certificate can be made for names that have none.
pub async fn secure(gateway: Arc<Gateway>, listener: TcpListener, stop: CancellationToken) -> anyhow::Result<()> {
    let resolver = tls::Resolver { state: Arc::clone(&gateway.state), fallback: Arc::new(tls::fallback()?) };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    gateway
        .accept(listener, stop, |gateway, stream, peer, stop| {
            let Ok(permit) = Arc::clone(&gateway.connections).try_acquire_owned() else { return };
            let _ = stream.set_nodelay(true);
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let Ok(Ok(stream)) = tokio::time::timeout(HEAD, acceptor.accept(stream)).await else { return };
                gateway.converse(stream, Client { address: peer.ip(), secure: true }, stop).await;
            });
        })
        .await;
    Ok(())
}

/// A host without its port; of an IPv6 address without the brackets, too.
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

/// The protocol a client wants to change to.
fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let named = headers.get_all(CONNECTION).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let asks = named.into_iter().any(|v| v.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(UPGRADE).filter(|_| asks).cloned()
}

/// Makes a client's headers those of the gateway's own request.
fn head(headers: &mut HeaderMap, host: &str, client: Client, upgrade: Option<&HeaderValue>) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|n| n.trim().parse().ok())
        .collect();
    for name in HOP.iter().chain(&named) {
        headers.remove(name);
    }
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    }
    // What clients say about themselves is not believed: anyone can write it.
    if let Ok(address) = HeaderValue::try_from(client.address.to_string()) {
        headers.insert(FORWARDED_FOR, address.clone());
        headers.insert(REAL_IP, address);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if client.secure { "https" } else { "http" }));
    if let Ok(host) = HeaderValue::try_from(host) {
        headers.insert(FORWARDED_HOST, host.clone());
        headers.entry(HOST).or_insert(host);
    }
}

/// The endpoint's answer as the gateway's.
fn through(mut response: Response<Incoming>, from_client: Option<hyper::upgrade::OnUpgrade>) -> Response<Body> {
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if let Some(from_client) = from_client.filter(|_| switched) {
        let to_endpoint = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let (Ok(client), Ok(endpoint)) = tokio::join!(from_client, to_endpoint) {
                // Either end may go whenever it likes.
                let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(endpoint)).await;
            }
        });
    } else {
        for name in &HOP {
            response.headers_mut().remove(name);
        }
    }
    *response.version_mut() = Version::HTTP_11;
    response.map(|b| b.boxed_unsync())
}
