//! The TLS listener: accepts, verifies client certificates, serves HTTP/1.1 and HTTP/2.

use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::audit::From;
use crate::auth::User;
use crate::chain::{self, Peer};
use crate::gather::Gathered;
use crate::pki::Leaf;
use crate::server::Inner;

/// Connections served at once; more wait to be accepted.
const CONNECTIONS: usize = 20_000;
/// A client that has not finished its handshake or its headers by then is cut.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(30);
/// HTTP/2 as ALPN calls it.
const H2: &[u8] = b"h2";
/// Streams per HTTP/2 connection, as upstream.
const STREAMS: u32 = 250;

/// A listener could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// PEM that cannot be read.
    #[error("cannot read a certificate or key: {0}")]
    Pem(#[from] rustls_pki_types::pem::Error),
    /// TLS refuses the configuration.
    #[error("cannot set up TLS: {0}")]
    Config(#[from] rustls::Error),
    /// The verifier refuses the CA.
    #[error("cannot verify client certificates: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Server settings: our certificate, and the CA of client certificates (which stay optional: tokens and anonymous
/// requests come without).
///
/// # Errors
/// When PEM or CA cannot be used.
pub fn acceptor(leaf: &Leaf, client_ca: &str) -> Result<TlsAcceptor, TlsError> {
    let mut roots = rustls::RootCertStore::empty();
    for c in CertificateDer::pem_slice_iter(client_ca.as_bytes()) {
        roots.add(c?)?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build()?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(leaf.cert.as_bytes()).collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes())?;
    let mut config =
        rustls::ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
    config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until the server shuts down, then lets connections finish.
pub async fn serve(server: Arc<Inner>, listener: TcpListener, acceptor: TlsAcceptor) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let tracker = tokio_util::task::TaskTracker::new();
    loop {
        // The semaphore is never closed, so this only waits.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { break };
        let accepted = tokio::select! {
            a = listener.accept() => a,
            () = server.shutdown.cancelled() => break,
        };
        let (tcp, from) = match accepted {
            Ok(a) => a,
            Err(e) => {
                // Out of descriptors, most likely: give connections a moment to end.
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (server, acceptor) = (Arc::clone(&server), acceptor.clone());
        tracker.spawn(async move {
            connection(server, tcp, From(from.ip().to_canonical()), acceptor).await;
            drop(permit);
        });
    }
    tracker.close();
    // Watches end by themselves on shutdown; a client that does not read is not waited for.
    let _ = tokio::time::timeout(Duration::from_secs(5), tracker.wait()).await;
}

async fn connection(server: Arc<Inner>, tcp: tokio::net::TcpStream, from: From, acceptor: TlsAcceptor) {
    // Without it a small answer may wait 40 ms for an acknowledgement.
    let _ = tcp.set_nodelay(true);
    let Ok(Ok(tls)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await else { return };
    let (_, session) = tls.get_ref();
    let many = session.alpn_protocol() == Some(H2);
    let peer = session.peer_certificates().and_then(|c| c.first()).and_then(User::from_certificate).map(Peer);
    let state = Arc::clone(&server);
    let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        let server = Arc::clone(&state);
        request.extensions_mut().insert(from);
        if let Some(p) = &peer {
            request.extensions_mut().insert(p.clone());
        }
        async move { Ok::<_, std::convert::Infallible>(chain::handle(server, request).await) }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15))
        .adaptive_window(false);
    let served = builder.serve_connection_with_upgrades(TokioIo::new(Gathered::new(tls, many)), service);
    tokio::pin!(served);
    tokio::select! {
        // A connection that breaks is the client's business.
        _ = served.as_mut() => return,
        () = server.shutdown.cancelled() => served.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(Duration::from_secs(5), served).await;
}

/// A TLS client that verifies nothing, for the pod and service proxy, which has nothing to verify against.
#[must_use]
pub fn unverified_client() -> Arc<rustls::ClientConfig> {
    let builder = rustls::ClientConfig::builder().dangerous();
    Arc::new(builder.with_custom_certificate_verifier(anything()).with_no_client_auth())
}

/// Believes every server.
pub(crate) fn anything() -> Arc<dyn rustls::client::danger::ServerCertVerifier> {
    #[derive(Debug)]
    struct Any(Vec<rustls::SignatureScheme>);
    impl rustls::client::danger::ServerCertVerifier for Any {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &rustls_pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls_pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.0.clone()
        }
    }
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Arc::new(Any(provider.signature_verification_algorithms.supported_schemes()))
}
