//! Calls from the server to webhooks: admission and conversion.
//!
//! A webhook is known by a URL or by a Service. A Service is resolved for every call to one of its ready endpoints, or to
//! its cluster address where it has no endpoints that we know of; its certificate must be for `NAME.NAMESPACE.svc`. Trust
//! is the configuration's `caBundle`, else the system's authorities. Connections are kept for a while after a call, a few
//! for each webhook; a task that lives as long as there are any drops what was idle for long.
//!
//! What goes wrong is told in the words of upstream's HTTP client, on which clients and tests match.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::Value;
use skiff_core::invalid::quote_str;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::server::Inner;

/// Longest answer that is read.
const ANSWER_MAX: usize = 16 * 1024 * 1024;
/// Idle connections that are kept for one webhook, and how long.
const IDLE_MAX: usize = 4;
const IDLE: Duration = Duration::from_secs(60);
/// Webhooks that connections and trust are kept for; beyond that all are forgotten.
const KNOWN_MAX: usize = 256;
/// Files that hold the system's authorities, one of which is there.
const AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A call that got no answer, in upstream's words.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// What the client says of the URL.
    #[error("Post {url}: {why}", url = quote_str(.url))]
    Failed {
        /// Where to.
        url: String,
        /// Why not.
        why: String,
    },
    /// An answer that is no success.
    #[error("{0}")]
    Refused(String),
    /// The configuration cannot be used.
    #[error("{0}")]
    Config(String),
}

/// Where a webhook is.
#[derive(Clone, Debug)]
pub struct Endpoint {
    to: To,
    ca: Vec<u8>,
}

#[derive(Clone, Debug)]
enum To {
    Url(String),
    Service { namespace: String, name: String, port: u16, path: String },
}

impl Endpoint {
    /// Reads a `clientConfig`.
    #[must_use]
    pub fn parse(config: &Value) -> Self {
        let ca = config["caBundle"].as_str().and_then(|s| STANDARD.decode(s).ok()).unwrap_or_default();
        let text = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
        let to = match config["url"].as_str() {
            Some(url) => To::Url(url.to_owned()),
            None => {
                let s = &config["service"];
                let port = s["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443);
                let path = text(s, "path");
                let path = if path.starts_with('/') { path } else { format!("/{path}") };
                To::Service { namespace: text(s, "namespace"), name: text(s, "name"), port, path }
            }
        };
        Self { to, ca }
    }
}

/// Kept connections and trust.
#[derive(Default)]
pub struct Outward {
    state: Arc<Mutex<State>>,
}

/// A connection that waits for the next call, and since when.
type Idle = (SendRequest<Full<Bytes>>, Instant);

#[derive(Default)]
struct State {
    idle: HashMap<Key, Vec<Idle>>,
    /// Whether somebody looks after the idle.
    tended: bool,
    trust: HashMap<[u8; 32], Arc<rustls::ClientConfig>>,
}

/// A peer: address (or host and port), the name it proves, whom that is proved to.
type Key = (String, String, [u8; 32]);

/// One call's place: what to connect to and what to say.
struct Place {
    url: String,
    /// Host header, which is what the certificate is for.
    host: String,
    path: String,
    name: String,
    connect: Connect,
}

enum Connect {
    Address(SocketAddr),
    Host(String, u16),
}

impl Outward {
    /// Posts JSON and answers the JSON that comes back. `timeout` is told to the webhook, `deadline` is when the call ends.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn post(
        &self,
        server: &Inner,
        to: &Endpoint,
        body: Bytes,
        timeout: Duration,
        deadline: Instant,
    ) -> Result<Value, CallError> {
        let place = place(server, to, timeout)?;
        let failed = |why: String| CallError::Failed { url: place.url.clone(), why };
        let answered = tokio::time::timeout_at(deadline, self.exchange(to, &place, body)).await;
        let (status, answer) = answered.map_err(|_| failed("context deadline exceeded".to_owned()))?.map_err(failed)?;
        if !(200..300).contains(&status) {
            return Err(CallError::Refused(refused(status, &answer)));
        }
        serde_json::from_slice(&answer)
            .map_err(|e| CallError::Refused(format!("couldn't get version/kind; json parse error: {e}")))
    }

    async fn exchange(&self, to: &Endpoint, place: &Place, body: Bytes) -> Result<(u16, Bytes), String> {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, &to.ca).as_ref());
        let peer = match &place.connect {
            Connect::Address(a) => a.to_string(),
            Connect::Host(h, p) => format!("{h}:{p}"),
        };
        let key = (peer, place.name.clone(), hash);
        let mut kept = true;
        loop {
            let reused = if kept { self.take(&key) } else { None };
            kept = reused.is_some();
            let mut sender = match reused {
                Some(s) => s,
                None => self.open(to, place, hash).await?,
            };
            let request = Request::builder()
                .method(Method::POST)
                .uri(&place.path)
                .header("host", &place.host)
                .header("content-type", "application/json")
                .header("accept", "application/json, */*")
                .header("user-agent", "kube-apiserver-admission")
                .body(Full::new(body.clone()))
                .map_err(|e| e.to_string())?;
            let answer = match sender.send_request(request).await {
                Ok(a) => a,
                // The webhook closed it meanwhile; what it did not begin to answer it did not do.
                Err(_) if kept => continue,
                Err(e) if e.is_incomplete_message() => return Err("EOF".to_owned()),
                Err(e) => return Err(e.to_string()),
            };
            let status = answer.status().as_u16();
            let whole = Limited::new(answer.into_body(), ANSWER_MAX).collect().await.map_err(|e| e.to_string())?;
            if sender.ready().await.is_ok() {
                self.put(key, sender);
            }
            return Ok((status, whole.to_bytes()));
        }
    }

    fn take(&self, key: &Key) -> Option<SendRequest<Full<Bytes>>> {
        let mut state = self.state.lock();
        let idle = state.idle.get_mut(key)?;
        while let Some((sender, since)) = idle.pop() {
            if since.elapsed() < IDLE && !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    fn put(&self, key: Key, sender: SendRequest<Full<Bytes>>) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.tended, true) {
            tokio::spawn(tend(Arc::clone(&self.state)));
        }
        if state.idle.len() >= KNOWN_MAX {
            state.idle.clear();
        }
        let idle = state.idle.entry(key).or_default();
        if idle.len() < IDLE_MAX {
            idle.push((sender, Instant::now()));
        }
    }

    async fn open(&self, to: &Endpoint, place: &Place, hash: [u8; 32]) -> Result<SendRequest<Full<Bytes>>, String> {
        let tls = self.trust(&to.ca, hash)?;
        let tcp = match &place.connect {
            Connect::Address(a) => TcpStream::connect(a).await.map_err(|e| dial(&a.to_string(), &e))?,
            Connect::Host(host, port) => match host.parse::<IpAddr>() {
                Ok(ip) => {
                    let a = SocketAddr::new(ip, *port);
                    TcpStream::connect(a).await.map_err(|e| dial(&a.to_string(), &e))?
                }
                Err(_) => TcpStream::connect((host.as_str(), *port)).await.map_err(|e| dial(host, &e))?,
            },
        };
        tcp.set_nodelay(true).map_err(|e| e.to_string())?;
        let name = ServerName::try_from(place.name.clone()).map_err(|e| e.to_string())?;
        let tls = TlsConnector::from(tls).connect(name, tcp).await.map_err(|e| tls_words(&e))?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(|e| e.to_string())?;
        // Ends with the sender, or when the webhook closes it.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    /// The TLS settings for a bundle of authorities.
    fn trust(&self, ca: &[u8], hash: [u8; 32]) -> Result<Arc<rustls::ClientConfig>, String> {
        if let Some(known) = self.state.lock().trust.get(&hash) {
            return Ok(Arc::clone(known));
        }
        let config = rustls::ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(verifier(ca)?)
            .with_no_client_auth();
        let config = Arc::new(config);
        let mut state = self.state.lock();
        if state.trust.len() >= KNOWN_MAX {
            state.trust.clear();
        }
        state.trust.insert(hash, Arc::clone(&config));
        Ok(config)
    }
}

/// Verifies servers against a bundle of authorities (PEM); an empty one means the system's.
///
/// # Errors
/// When the bundle holds no certificate, in upstream's words.
pub(crate) fn verifier(ca: &[u8]) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let system;
    let pem = if ca.is_empty() {
        system = AUTHORITIES.iter().find_map(|p| std::fs::read(p).ok()).unwrap_or_default();
        &system
    } else {
        ca
    };
    let given: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(given.iter().cloned());
    let unusable = || "unable to load root certificates: unable to parse bytes as PEM block".to_owned();
    let inner = WebPkiServerVerifier::builder(Arc::new(roots)).build().map_err(|_| unusable())?;
    let own = if ca.is_empty() { vec![] } else { given };
    Ok(Arc::new(Verifier { inner, own }))
}

/// Drops connections that are idle for long, until there are none.
async fn tend(state: Arc<Mutex<State>>) {
    loop {
        tokio::time::sleep(IDLE).await;
        let mut state = state.lock();
        state.idle.retain(|_, all| {
            all.retain(|(s, since)| since.elapsed() < IDLE && !s.is_closed());
            !all.is_empty()
        });
        if state.idle.is_empty() {
            state.tended = false;
            return;
        }
    }
}

/// The usual rules, but a certificate that a bundle itself lists is trusted, whether it may sign others or not: so do
/// webhooks prove themselves that made their own.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !self.own.contains(end_entity) {
            return self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp, now);
        }
        let bad = |e: CertificateError| rustls::Error::InvalidCertificate(e);
        let (_, cert) = X509Certificate::from_der(end_entity).map_err(|_| bad(CertificateError::BadEncoding))?;
        let at = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if at > cert.validity().not_after.timestamp() {
            return Err(bad(CertificateError::Expired));
        }
        if at < cert.validity().not_before.timestamp() {
            return Err(bad(CertificateError::NotValidYet));
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn place(server: &Inner, to: &Endpoint, timeout: Duration) -> Result<Place, CallError> {
    let timeout = format!("timeout={}s", timeout.as_secs());
    match &to.to {
        To::Url(url) => {
            let config = || CallError::Config(format!("unable to parse URL {}", quote_str(url)));
            let rest = url.strip_prefix("https://").ok_or_else(config)?;
            let (host, path) = rest.find('/').map_or((rest, "/"), |i| rest.split_at(i));
            let authority: http::uri::Authority = host.parse().map_err(|_| config())?;
            let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
            Ok(Place {
                url: format!("{url}?{timeout}"),
                host: host.to_owned(),
                path: format!("{path}?{timeout}"),
                connect: Connect::Host(name.clone(), authority.port_u16().unwrap_or(443)),
                name,
            })
        }
        To::Service { namespace, name, port, path } => {
            let host = format!("{name}.{namespace}.svc");
            let url = format!("https://{host}:{port}{path}?{timeout}");
            let connect =
                resolve(server, namespace, name, *port).map_err(|why| CallError::Failed { url: url.clone(), why })?;
            let shown = if *port == 443 { host.clone() } else { format!("{host}:{port}") };
            Ok(Place { url, host: shown, path: format!("{path}?{timeout}"), name: host, connect })
        }
    }
}

/// Where a Service is now.
fn resolve(server: &Inner, namespace: &str, name: &str, port: u16) -> Result<Connect, String> {
    let shown = quote_str(name);
    let service = server.peek("", "services", namespace, name).ok_or_else(|| format!("service {shown} not found"))?;
    if service["spec"]["type"] == "ExternalName" {
        let host = service["spec"]["externalName"].as_str().unwrap_or_default();
        return Ok(Connect::Host(host.to_owned(), port));
    }
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let chosen = ports.find(|p| p["port"].as_u64() == Some(port.into()));
    let chosen = chosen.ok_or_else(|| format!("no service port {port} found for service {shown}"))?;
    let port_name = chosen["name"].as_str().unwrap_or_default();
    let ready = crate::subresources::proxy::ready_endpoints(server, namespace, name, port_name);
    if let Some((address, port)) = ready.map_err(|s| s.message)?.pick() {
        return Ok(Connect::Address(SocketAddr::new(address, port)));
    }
    Err(format!("no endpoints available for service {shown}"))
}

/// A connection that could not be made.
pub(crate) fn dial(at: &str, e: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match e.kind() {
        ErrorKind::ConnectionRefused => format!("dial tcp {at}: connect: connection refused"),
        ErrorKind::HostUnreachable => format!("dial tcp {at}: connect: no route to host"),
        ErrorKind::NetworkUnreachable => format!("dial tcp {at}: connect: network is unreachable"),
        ErrorKind::TimedOut => format!("dial tcp {at}: i/o timeout"),
        _ if !at.contains(':') => format!("dial tcp: lookup {at}: no such host"),
        _ => format!("dial tcp {at}: {e}"),
    }
}

/// A certificate that is not trusted.
pub(crate) fn tls_words(e: &std::io::Error) -> String {
    const FAILED: &str = "tls: failed to verify certificate: x509:";
    let inner = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!("{FAILED} certificate signed by unknown authority")
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => {
                format!("{FAILED} certificate has expired or is not yet valid")
            }
            CertificateError::NotValidForName => format!("{FAILED} certificate is not valid for the name"),
            CertificateError::NotValidForNameContext { expected, presented } => {
                let names: Vec<String> = presented.iter().map(|p| subject(p)).collect();
                format!("{FAILED} certificate is valid for {}, not {}", names.join(", "), expected.to_str())
            }
            other => format!("{FAILED} {other}"),
        },
        Some(other) => format!("tls: {other}"),
        None if e.kind() == std::io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
        None => e.to_string(),
    }
}

/// `DnsName("x")` as `x`.
fn subject(presented: &str) -> String {
    presented.split('"').nth(1).unwrap_or(presented).to_owned()
}

/// An answer that is no success, as client libraries describe it.
fn refused(status: u16, body: &[u8]) -> String {
    match status {
        404 => "the server could not find the requested resource".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 => "the server does not allow access to the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        413 => "the request entity is too large".to_owned(),
        415 => "the body of the request was in an unknown format - accepted media types include: ".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        504 => {
            "the server was unable to return a response in the time allotted, but may still be processing the request"
                .to_owned()
        }
        500.. => {
            let text = String::from_utf8_lossy(&body[..body.len().min(2048)]).trim().to_owned();
            let text = if text.is_empty() { "unknown".to_owned() } else { text };
            format!("an error on the server ({}) has prevented the request from succeeding", quote_str(&text))
        }
        _ => "the server rejected our request for an unknown reason".to_owned(),
    }
}
