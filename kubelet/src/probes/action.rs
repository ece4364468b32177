//! One try of a probe or hook: a command, an HTTP request, a TCP connection, a gRPC health check.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;

use crate::runtime::{ExecConfig, Runtime};

/// Output of a probe kept for its event.
const MAX_OUTPUT: usize = 10 * 1024;
/// How often the engine is asked whether a command whose output ended is over.
const EXIT_POLL: Duration = Duration::from_millis(20);
const USER_AGENT: &str = "kube-probe/1.37";
const MAX_REDIRECTS: usize = 10;

/// What a try showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It worked.
    Success,
    /// It worked, as far as was looked; the text is for people.
    Warning(String),
    /// It did not; the text is for people.
    Failure(String),
}

impl Outcome {
    fn from(result: Result<(), String>) -> Self {
        match result {
            Ok(()) => Self::Success,
            Err(text) => Self::Failure(text),
        }
    }
}

/// Runs a command in a container; success is exit code 0.
pub async fn exec(runtime: &dyn Runtime, id: &str, command: &[String], timeout: Duration) -> Outcome {
    match tokio::time::timeout(timeout, run(runtime, id, command)).await {
        Err(_) => Outcome::Failure(format!("command timed out: {:?} timed out after {timeout:?}", command.join(" "))),
        Ok(Err(error)) => Outcome::Failure(error),
        Ok(Ok((0, _))) => Outcome::Success,
        Ok(Ok((code, output))) if output.is_empty() => {
            Outcome::Failure(format!("command terminated with exit code {code}"))
        }
        Ok(Ok((_, output))) => Outcome::Failure(output),
    }
}

/// Runs a command and answers its exit code and output.
pub async fn run(runtime: &dyn Runtime, id: &str, command: &[String]) -> Result<(i32, String), String> {
    let config = ExecConfig { cmd: command.to_vec(), stdout: true, stderr: true, ..Default::default() };
    let mut attached = runtime.exec(id, &config).await.map_err(|e| e.to_string())?;
    let mut output = Vec::new();
    while let Some(Ok((_, chunk))) = attached.output.next().await {
        let room = MAX_OUTPUT.saturating_sub(output.len());
        output.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
    loop {
        if let Some(code) = runtime.exec_exit_code(&attached.exec_id).await.map_err(|e| e.to_string())? {
            return Ok((code, String::from_utf8_lossy(&output).into_owned()));
        }
        tokio::time::sleep(EXIT_POLL).await;
    }
}

/// A port by number or by the container's name for it.
pub fn port(wanted: &IntOrString, container: &Container) -> Result<u16, String> {
    match wanted {
        IntOrString::Int(number) => u16::try_from(*number).map_err(|_| format!("invalid port number: {number}")),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
            .and_then(|p| u16::try_from(p.container_port).ok())
            .or_else(|| name.parse().ok())
            .ok_or_else(|| format!("couldn't find port: {name:?} in container {:?}", container.name)),
    }
}

/// Connects and closes.
pub async fn tcp(host: &str, port: u16, timeout: Duration) -> Outcome {
    Outcome::from(connect(host, port, timeout).await.map(drop))
}

/// Gets a page; success is a status from 200 to 399.
pub async fn http(action: &HTTPGetAction, container: &Container, pod_ip: IpAddr, timeout: Duration) -> Outcome {
    let work = async {
        let port = port(&action.port, container)?;
        let host = action.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| bracketed(pod_ip));
        let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
        let path = action.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".into());
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        let headers: Vec<(String, String)> =
            action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
        let mut url: Uri = format!("{scheme}://{host}:{port}{path}").parse().map_err(|e| format!("{e}"))?;
        for _ in 0..MAX_REDIRECTS {
            let Page { status, location, body } = get(&url, &headers, timeout).await?;
            let next = location.and_then(|l| redirect(&url, &l));
            match next {
                Some(next) if status.is_redirection() && next.host() == url.host() => url = next,
                _ if status.is_success() => return Ok(None),
                // Elsewhere is not asked: that it is told where to look says that the container answers.
                _ if status.is_redirection() => {
                    return Ok(Some(format!("Probe terminated redirects, Response body: {body}")));
                }
                _ => return Err(format!("HTTP probe failed with statuscode: {}", status.as_u16())),
            }
        }
        Err(format!("stopped after {MAX_REDIRECTS} redirects"))
    };
    let late = || {
        format!(
            "Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
            action.path.clone().unwrap_or_default()
        )
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(Ok(None)) => Outcome::Success,
        Ok(Ok(Some(warning))) => Outcome::Warning(warning),
        Ok(Err(text)) => Outcome::Failure(text),
        Err(_) => Outcome::Failure(late()),
    }
}

fn redirect(from: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with('/') {
        let authority = from.authority()?;
        return format!("{}://{authority}{location}", from.scheme_str()?).parse().ok();
    }
    location.parse::<Uri>().ok().filter(|u| u.host().is_some())
}

fn bracketed(ip: IpAddr) -> String {
    if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() }
}

async fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let address = format!("{host}:{port}");
    match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Err(format!("dial tcp {address}: connect: connection refused"))
        }
        Ok(Err(error)) => Err(format!("dial tcp {address}: {error}")),
        Ok(Ok(stream)) => Ok(stream),
    }
}

/// What an answer says.
struct Page {
    status: StatusCode,
    location: Option<String>,
    /// Its beginning.
    body: String,
}

async fn get(url: &Uri, headers: &[(String, String)], timeout: Duration) -> Result<Page, String> {
    let secure = url.scheme_str() == Some("https");
    let host = url.host().unwrap_or_default();
    let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = connect(host, port, timeout).await.map_err(|e| format!("Get {:?}: {e}", url.to_string()))?;
    let mut request = Request::get(url.path_and_query().map_or("/", |p| p.as_str()));
    let given = |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
    if given("host").is_none() {
        request = request.header("Host", format!("{host}:{port}"));
    }
    for (name, default) in [("User-Agent", USER_AGENT), ("Accept", "*/*")] {
        if given(name).is_none() {
            request = request.header(name, default);
        }
    }
    for (name, value) in headers.iter().filter(|(_, v)| !v.is_empty()) {
        request = request.header(name, value);
    }
    let request = request.header("Connection", "close").body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let response = if secure {
        let connector = tokio_rustls::TlsConnector::from(trusting_client()?);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_string()).map_err(|e| e.to_string())?;
        let stream = connector.connect(name, stream).await.map_err(|e| format!("Get {:?}: {e}", url.to_string()))?;
        exchange(TokioIo::new(stream), request).await
    } else {
        exchange(TokioIo::new(stream), request).await
    };
    response.map_err(|e| format!("Get {:?}: {e}", url.to_string()))
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> hyper::Result<Page>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let driver = tokio::spawn(connection);
    let answer = async {
        let response = sender.send_request(request).await?;
        let location = response.headers().get("location").and_then(|l| l.to_str().ok()).map(String::from);
        let status = response.status();
        let mut body = Vec::new();
        if status.is_redirection() {
            let mut frames = response.into_body();
            // What comes of a body that breaks off is as good as the whole: it is for people.
            while let Some(Ok(frame)) = frames.frame().await
                && body.len() < MAX_OUTPUT
            {
                body.extend_from_slice(frame.data_ref().map_or(&[], |d| d));
            }
            body.truncate(MAX_OUTPUT);
        }
        Ok(Page { status, location, body: String::from_utf8_lossy(&body).into_owned() })
    };
    let answer = answer.await;
    driver.abort();
    answer
}

/// Names of gRPC's status codes as its Go library prints them, by number.
const GRPC_CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Asks the standard gRPC health service; success is SERVING.
pub async fn grpc(host: IpAddr, port: i32, service: &str, timeout: Duration) -> Outcome {
    let work = async {
        let port = u16::try_from(port).map_err(|_| format!("invalid port number: {port}"))?;
        // Upstream's client tries until the time is over and says so, whatever kept it from connecting.
        let lost = || {
            format!(
                "timeout: failed to connect service \"{}:{port}\" within {timeout:?}: context deadline exceeded",
                bracketed(host)
            )
        };
        let stream = connect(&bracketed(host), port, timeout).await.map_err(|_| lost())?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(|e| e.to_string())?;
        let driver = tokio::spawn(connection);
        let mut message = BytesMut::new();
        if !service.is_empty() && service.len() < 128 {
            message.put_u8(0x0a); // field 1, length-delimited
            message.put_u8(service.len() as u8);
            message.put_slice(service.as_bytes());
        }
        let mut body = BytesMut::new();
        body.put_u8(0); // not compressed
        body.put_u32(message.len() as u32);
        body.put_slice(&message);
        let request = Request::post(format!("http://{}:{port}/grpc.health.v1.Health/Check", bracketed(host)))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", USER_AGENT)
            .body(Full::new(body.freeze()))
            .map_err(|e| e.to_string())?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let headers = response.headers().clone();
            let collected = response.into_body().collect().await.map_err(|e| e.to_string())?;
            // An answer without a message has its status in the headers.
            let value = |name: &str| {
                let found = collected.trailers().and_then(|t| t.get(name)).or_else(|| headers.get(name));
                found.and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
            };
            let (code, said) = (value("grpc-status"), value("grpc-message"));
            Ok::<_, String>((code, said, collected.to_bytes()))
        }
        .await;
        driver.abort();
        match answer? {
            (code, said, _) if code == "12" => Err(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {said}"
            )),
            (code, said, _) if code != "0" => {
                let name = code.parse().ok().and_then(|n: usize| GRPC_CODES.get(n)).unwrap_or(&"Unknown");
                Err(format!("error: health rpc probe failed: rpc error: code = {name} desc = {said}"))
            }
            // The message is one field: 1 = status, as a varint; 1 is SERVING.
            (.., body) => match body.get(5..7) {
                Some([0x08, 1]) => Ok(()),
                other => {
                    let status = match other {
                        Some([0x08, 2]) => "NOT_SERVING",
                        Some([0x08, 3]) => "SERVICE_UNKNOWN",
                        _ => "UNKNOWN",
                    };
                    Err(format!("service unhealthy (responded with {status:?})"))
                }
            },
        }
    };
    let late = || Err(format!("timeout: health rpc did not complete within {timeout:?}"));
    Outcome::from(tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| late()))
}

/// A TLS client that accepts any certificate: a probe asks whether the server answers, not who it is.
fn trusting_client() -> Result<Arc<rustls::ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A server that gives each connection the next answer.
    async fn server(answers: Vec<&'static str>) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        port
    }

    #[tokio::test]
    async fn http_statuses() {
        let container = Container::default();
        for (answers, wanted) in [
            (vec!["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], Outcome::Success),
            (
                vec!["HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"],
                Outcome::Failure("HTTP probe failed with statuscode: 500".into()),
            ),
            (
                vec![
                    "HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n",
                    "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n",
                ],
                Outcome::Failure("HTTP probe failed with statuscode: 404".into()),
            ),
            (
                vec!["HTTP/1.1 302 Found\r\nLocation: http://example.invalid/\r\nContent-Length: 5\r\n\r\nthere"],
                Outcome::Warning("Probe terminated redirects, Response body: there".into()),
            ),
        ] {
            let port = server(answers).await;
            let action = HTTPGetAction { port: IntOrString::Int(port.into()), ..Default::default() };
            let got = http(&action, &container, [127, 0, 0, 1].into(), Duration::from_secs(10)).await;
            assert_eq!(got, wanted);
        }
    }

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(tcp("127.0.0.1", port, Duration::from_secs(10)).await, Outcome::Success);
        drop(listener);
        let Outcome::Failure(text) = tcp("127.0.0.1", port, Duration::from_secs(10)).await else { panic!() };
        assert!(text.ends_with("connection refused"), "{text}");
    }
}
