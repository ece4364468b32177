//! One request to slurmrestd: over TCP, TLS or a socket, each on a connection of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::answer::Answer;
use super::jobs::Cutter;
use crate::api::RestAccess;
use crate::driver::{PRINTED, SlurmError};

/// Bytes of an answer that are kept as they came.
const SAID: usize = 1024;
/// Time for a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// What was answered with this status.
fn answer(status: u16, bytes: &[u8]) -> Result<Answer, SlurmError> {
    let body = serde_json::from_slice(bytes).unwrap_or(Value::Null);
    if body.is_null() && status < 400 {
        return Err(SlurmError::Lost("the answer is no JSON".into()));
    }
    // Errors that are no JSON are told as they are.
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SAID)]).into_owned();
    Ok(Answer { status, body, text })
}

/// Where slurmrestd is, and who asks.
pub(super) struct Wire {
    pub(super) access: RestAccess,
    token: Option<String>,
    tls: Option<TlsConnector>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Wire {
    /// To this slurmrestd with these credentials.
    ///
    /// # Errors
    /// When the credentials cannot be used.
    pub(super) fn new(access: RestAccess, secret: &BTreeMap<String, Vec<u8>>) -> Result<Self, SlurmError> {
        let text = |key: &str| secret.get(key).and_then(|v| std::str::from_utf8(v).ok()).map(str::trim);
        let denied = |what: String| SlurmError::Denied(what);
        let token = text("token").filter(|t| !t.is_empty()).map(str::to_owned);
        if access.url.is_some() && token.is_none() {
            return Err(denied("the Secret has no token".into()));
        }
        let tls = match access.url.as_deref().filter(|u| u.starts_with("https:")) {
            None => None,
            Some(_) => {
                let pem = text("ca.crt").ok_or_else(|| denied("https needs ca.crt in the Secret".into()))?;
                let mut roots = rustls::RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                    let certificate = certificate.map_err(|e| denied(format!("ca.crt: {e}")))?;
                    roots.add(certificate).map_err(|e| denied(format!("ca.crt: {e}")))?;
                }
                let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
                let config = rustls::ClientConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()
                    .map_err(|e| denied(e.to_string()))?
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                Some(TlsConnector::from(Arc::new(config)))
            }
        };
        Ok(Self { access, token, tls })
    }

    async fn connect(&self) -> Result<(Box<dyn Stream>, String), SlurmError> {
        let away = |e: &dyn std::fmt::Display| SlurmError::Unreachable(e.to_string());
        if let Some(socket) = &self.access.socket {
            let stream = UnixStream::connect(socket).await.map_err(|e| away(&e))?;
            return Ok((Box::new(stream), "localhost".into()));
        }
        let url: http::Uri = self.access.url.as_deref().unwrap_or_default().parse().map_err(|e| away(&e))?;
        let host = url.host().unwrap_or_default().to_owned();
        let port = url.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let bare = host.trim_matches(['[', ']']);
        let stream = TcpStream::connect((bare, port)).await.map_err(|e| away(&e))?;
        let _ = stream.set_nodelay(true);
        let name = url.authority().map(ToString::to_string).unwrap_or_default();
        match &self.tls {
            None => Ok((Box::new(stream), name)),
            Some(tls) => {
                let server = ServerName::try_from(bare.to_owned()).map_err(|e| away(&e))?;
                let stream = tls.connect(server, stream).await.map_err(|e| away(&e))?;
                Ok((Box::new(stream), name))
            }
        }
    }

    /// One request, and its answer as a whole. What fails before it was sent is [`SlurmError::Unreachable`], what fails later
    /// [`SlurmError::Lost`].
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Answer, SlurmError> {
        let mut all = vec![];
        let mut gather = |bytes: &[u8]| {
            if all.len() + bytes.len() > PRINTED {
                return Err(SlurmError::Lost("the answer is too long".into()));
            }
            all.extend_from_slice(bytes);
            Ok(())
        };
        let status = self.exchange(method, path, body, limit, &mut gather).await?;
        answer(status, &all)
    }

    /// Asks for a list of jobs, of which each is handed on when it is here; the answer is without them. Errors as of
    /// [`Wire::ask`].
    pub(super) async fn list(
        &self,
        path: &str,
        limit: Duration,
        each: &mut (dyn FnMut(Value) + Send),
    ) -> Result<Answer, SlurmError> {
        let mut cutter = Cutter::default();
        let status = self.exchange(Method::GET, path, None, limit, &mut |bytes| cutter.feed(bytes, each)).await?;
        answer(status, &cutter.rest)
    }

    /// Sends a request, hands on the bytes of the answer as they come, and tells its status.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
        read: &mut (dyn FnMut(&[u8]) -> Result<(), SlurmError> + Send),
    ) -> Result<u16, SlurmError> {
        let connected = tokio::time::timeout(CONNECT, self.connect()).await;
        let (stream, host) = connected.map_err(|_| SlurmError::Unreachable("no connection in time".into()))??;
        let base = self.access.url.as_deref().and_then(|u| u.parse::<http::Uri>().ok());
        let base = base.map(|u| u.path().trim_end_matches('/').to_owned()).unwrap_or_default();
        let mut request = Request::builder().method(method).uri(format!("{base}{path}")).header("host", host);
        request = request.header("accept", "application/json").header("x-slurm-user-name", &self.access.user);
        if let Some(token) = &self.token {
            request = request.header("x-slurm-user-token", token);
        }
        let bytes = match body {
            None => Bytes::new(),
            Some(body) => {
                request = request.header("content-type", "application/json");
                Bytes::from(body.to_string())
            }
        };
        let request = request.body(Full::new(bytes)).map_err(|e| SlurmError::Unreachable(e.to_string()))?;
        let lost = |e: &dyn std::fmt::Display| SlurmError::Lost(e.to_string());
        let exchange = async {
            let shake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
            let (mut sender, connection) = shake.map_err(|e| SlurmError::Unreachable(e.to_string()))?;
            let talk = async {
                let response = sender.send_request(request).await.map_err(|e| lost(&e))?;
                let status = response.status().as_u16();
                let mut body = response.into_body();
                while let Some(frame) = body.frame().await {
                    if let Some(bytes) = frame.map_err(|e| lost(&e))?.data_ref() {
                        read(bytes)?;
                    }
                }
                Ok(status)
            };
            tokio::pin!(talk);
            let drive = async {
                let _ = connection.await;
                std::future::pending::<()>().await;
            };
            tokio::pin!(drive);
            tokio::select! {
                answer = &mut talk => answer,
                () = &mut drive => Err(lost(&"the connection ended")),
            }
        };
        let ended = tokio::time::timeout(limit, exchange).await;
        ended.map_err(|_| lost(&format!("no answer within {limit:?}")))?
    }

    /// When the token ends: of a JWT its claim `exp`.
    pub(super) fn expires(&self) -> Option<i64> {
        let claims = self.token.as_deref()?.split('.').nth(1)?;
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        claims.get("exp")?.as_i64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_tell_their_end() {
        let access = RestAccess { url: Some("http://x:1".into()), ..RestAccess::default() };
        let secret = |t: &str| BTreeMap::from([("token".to_owned(), t.as_bytes().to_vec())]);
        let token = format!("h.{}.s", URL_SAFE_NO_PAD.encode(r#"{"exp":1795368746,"sun":"u"}"#));
        let wire = Wire::new(access.clone(), &secret(&token)).unwrap();
        assert_eq!(wire.expires(), Some(1_795_368_746));
        assert!(Wire::new(access, &BTreeMap::new()).is_err());
    }
}
