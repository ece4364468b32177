//! Accepting connections, plain or with TLS, until told to stop: what all doors of this room share.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::auth::User;
use super::link::Body;

/// Time for a client to send a request's head, or to say hello.
const HEAD: Duration = Duration::from_secs(30);
/// Time for requests under way when the door closes.
const DRAIN: Duration = Duration::from_secs(8);
/// Wait after a connection could not be accepted, as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who asks, and how.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where from.
    pub address: IpAddr,
    /// Whether over TLS.
    pub secure: bool,
    /// The identity of a verified client certificate.
    pub certificate: Option<Arc<User>>,
}

/// What is behind a door.
pub trait Behind: Send + Sync + 'static {
    /// Answers a request.
    fn answer(&self, request: Request<Incoming>, client: Client) -> impl Future<Output = Response<Body>> + Send;
}

/// Serves HTTP, or HTTPS where there is an acceptor, until `stop`. `connections` bounds how many there are at a time; further
/// ones are closed.
pub async fn serve<B: Behind>(
    behind: Arc<B>,
    connections: Arc<Semaphore>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => welcome(&behind, &connections, stream, peer, tls.clone(), stop.clone()),
            Err(error) => {
                tracing::warn!(%error, "a door of functions cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn welcome<B: Behind>(
    behind: &Arc<B>,
    connections: &Arc<Semaphore>,
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    stop: CancellationToken,
) {
    // Beyond the bound it is closed: a queue would only make everyone wait.
    let Ok(permit) = Arc::clone(connections).try_acquire_owned() else { return };
    let _ = stream.set_nodelay(true);
    let behind = Arc::clone(behind);
    tokio::spawn(async move {
        let _permit = permit;
        let address = peer.ip();
        let Some(tls) = tls else {
            let client = Client { address, secure: false, certificate: None };
            return converse(behind, stream, client, stop).await;
        };
        let Ok(Ok(stream)) = tokio::time::timeout(HEAD, tls.accept(stream)).await else { return };
        let shown = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
        let certificate = shown.and_then(|c| User::of_certificate(c)).map(Arc::new);
        converse(behind, stream, Client { address, secure: true, certificate }, stop).await;
    });
}

async fn converse<B: Behind, I>(behind: Arc<B>, io: I, client: Client, stop: CancellationToken)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let (behind, client) = (Arc::clone(&behind), client.clone());
        async move { Ok::<_, Infallible>(behind.answer(request, client).await) }
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

/// Certificates of the HTTPS door, PEM.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Our certificate and those it leads to.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// The CA of clients' certificates.
    pub client_ca: String,
}

impl Tls {
    /// What accepts connections with them. Client certificates stay optional: tokens come without.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
        let mut roots = rustls::RootCertStore::empty();
        for c in CertificateDer::pem_slice_iter(self.client_ca.as_bytes()) {
            roots.add(c?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
