//! Clients that cost little: they share the processors with what they measure.
//!
//! HTTP/1.1 is written by hand (one write, one read for a small exchange), HTTP/2 is hyper's but for many watches
//! ([`crate::many`]). Both speak TLS with a client
//! certificate, as kubectl and client-go do. [`Grpc`] is the one call of etcd that is measured, on hyper's HTTP/2 too.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What is read at once: a record of TLS with its ends.
const READ: usize = 17 << 10;

/// Which HTTP the load speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// HTTP/1.1, one request at a time on a connection.
    H1,
    /// HTTP/2.
    H2,
}

/// A server and an identity.
#[derive(Clone)]
pub(crate) enum Target {
    /// The API server.
    Tls {
        /// Where it is.
        address: SocketAddr,
        /// For HTTP/1.1.
        h1: TlsConnector,
        /// For HTTP/2.
        h2: TlsConnector,
    },
    /// A server without TLS.
    Plain(SocketAddr),
    /// A server on a socket of this machine.
    Unix(PathBuf),
}

/// The way of bytes to a server and back.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Status code.
    pub(crate) code: u16,
    /// Body.
    pub(crate) body: Bytes,
}

impl Reply {
    /// The body, if the code is 200 or 201.
    ///
    /// # Errors
    /// With the server's words otherwise.
    pub(crate) fn success(self) -> anyhow::Result<Bytes> {
        if !matches!(self.code, 200 | 201) {
            bail!("the server answered {}: {}", self.code, String::from_utf8_lossy(&self.body));
        }
        Ok(self.body)
    }
}

impl Target {
    /// From a kubeconfig that the server wrote into its data directory.
    ///
    /// # Errors
    /// When the file is not there or cannot be used.
    pub(crate) fn of(data: &Path, identity: &str) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(data.join(format!("kubeconfig/{identity}.yaml")))?;
        let v: serde_json::Value = serde_saphyr::from_str(&text)?;
        let pem = |v: &serde_json::Value| -> anyhow::Result<Vec<u8>> {
            Ok(base64::engine::general_purpose::STANDARD.decode(v.as_str().context("no certificate")?)?)
        };
        let (cluster, user) = (&v["clusters"][0]["cluster"], &v["users"][0]["user"]);
        let server = cluster["server"].as_str().context("no server")?;
        let address = server.strip_prefix("https://").context("the server is not https")?.parse()?;
        let mut roots = rustls::RootCertStore::empty();
        for c in CertificateDer::pem_slice_iter(&pem(&cluster["certificate-authority-data"])?) {
            roots.add(c?)?;
        }
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(&pem(&user["client-certificate-data"])?).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&pem(&user["client-key-data"])?)?;
        let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key)?;
        let with = |alpn: &[u8]| {
            let mut c = config.clone();
            c.alpn_protocols = vec![alpn.to_vec()];
            TlsConnector::from(Arc::new(c))
        };
        Ok(Self::Tls { address, h1: with(b"http/1.1"), h2: with(b"h2") })
    }

    /// A new HTTP/1.1 connection.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) async fn h1(&self) -> anyhow::Result<H1> {
        let io: Box<dyn Stream> = match self {
            Self::Tls { address, h1, .. } => Box::new(tls(*address, h1).await?),
            Self::Plain(address) => Box::new(tcp(*address).await?),
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        Ok(H1 { io, buf: BytesMut::with_capacity(16 << 10), head: Vec::new(), also: String::new() })
    }

    /// A new HTTP/2 connection. Cloning the result shares it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) async fn h2(&self) -> anyhow::Result<H2> {
        let Self::Tls { address, h2, .. } = self else { bail!("HTTP/2 is measured with TLS only") };
        let io = TokioIo::new(tls(*address, h2).await?);
        Ok(H2 { send: spawn_h2(io).await?, base: format!("https://{address}") })
    }

    /// A new connection of either version.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) async fn connect(&self, version: Version) -> anyhow::Result<Client> {
        Ok(match version {
            Version::H1 => Client::H1(Box::new(self.h1().await?)),
            Version::H2 => Client::H2(self.h2().await?),
        })
    }
}

async fn tcp(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A new connection with TLS.
///
/// # Errors
/// When it cannot be made.
pub(crate) async fn tls(address: SocketAddr, with: &TlsConnector) -> anyhow::Result<TlsStream<BufReader<TcpStream>>> {
    // rustls asks for 4 KiB at a time: without a buffer a record of 16 KiB is four system calls.
    let tcp = BufReader::with_capacity(READ, tcp(address).await?);
    Ok(with.connect(ServerName::from(address.ip()), tcp).await?)
}

async fn spawn_h2<T>(io: TokioIo<T>) -> anyhow::Result<http2::SendRequest<Full<Bytes>>>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    // Windows as client-go has them: wide enough that nobody waits for permission to send.
    let mut b = http2::Builder::new(TokioExecutor::new());
    b.initial_stream_window_size(4 << 20).initial_connection_window_size(64 << 20);
    let (send, connection) = b.handshake(io).await?;
    tokio::spawn(async move {
        // An error reaches whoever waits for an answer.
        let _ = connection.await;
    });
    Ok(send)
}

/// A connection of either version.
pub(crate) enum Client {
    /// HTTP/1.1.
    H1(Box<H1>),
    /// HTTP/2.
    H2(H2),
}

impl Client {
    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn call(&mut self, method: &str, path: &str, body: &[u8]) -> anyhow::Result<Reply> {
        match self {
            Self::H1(c) => c.call(method, path, body).await,
            Self::H2(c) => c.call(method, path, body).await,
        }
    }
}

/// An HTTP/1.1 connection.
pub(crate) struct H1 {
    io: Box<dyn Stream>,
    buf: BytesMut,
    head: Vec<u8>,
    /// Headers of every request beside the usual ones, each with its line's end.
    also: String,
}

/// How the end of an answer is found.
enum Length {
    Known(usize),
    Chunked,
}

fn content_type(method: &str) -> &'static str {
    if method == "PATCH" { "application/merge-patch+json" } else { "application/json" }
}

impl H1 {
    /// From now on for somebody else, in a group.
    pub(crate) fn acting(mut self, user: &str, group: &str) -> Self {
        self.also = format!("impersonate-user: {user}\r\nimpersonate-group: {group}\r\n");
        self
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn call(&mut self, method: &str, path: &str, body: &[u8]) -> anyhow::Result<Reply> {
        let (code, length) = self.send(method, path, body).await?;
        let body = match length {
            Length::Known(n) => {
                while self.buf.len() < n {
                    self.fill().await?;
                }
                self.buf.split_to(n).freeze()
            }
            Length::Chunked => {
                let mut all = BytesMut::new();
                while let Some(chunk) = self.chunk().await? {
                    all.extend_from_slice(&chunk);
                }
                all.freeze()
            }
        };
        Ok(Reply { code, body })
    }

    /// Like [`H1::call`], but counts the answer's bytes instead of keeping them.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn count(&mut self, path: &str) -> anyhow::Result<(u16, u64)> {
        let (code, length) = self.send("GET", path, b"").await?;
        let mut seen = 0;
        match length {
            Length::Known(n) => {
                while seen < n as u64 {
                    if self.buf.is_empty() {
                        self.fill().await?;
                    }
                    let take = self.buf.len().min(n - usize::try_from(seen)?);
                    self.buf.advance(take);
                    seen += take as u64;
                }
            }
            Length::Chunked => {
                while let Some(chunk) = self.chunk().await? {
                    seen += chunk.len() as u64;
                }
            }
        }
        Ok((code, seen))
    }

    /// Opens a stream; [`H1::chunk`] reads it.
    ///
    /// # Errors
    /// When the server does not answer 200 with a stream.
    pub(crate) async fn open(&mut self, path: &str) -> anyhow::Result<()> {
        match self.send("GET", path, b"").await? {
            (200, Length::Chunked) => Ok(()),
            (code, _) => bail!("{path} answered {code} and no stream"),
        }
    }

    async fn fill(&mut self) -> anyhow::Result<()> {
        if self.io.read_buf(&mut self.buf).await? == 0 {
            bail!("the server closed the connection");
        }
        Ok(())
    }

    async fn send(&mut self, method: &str, path: &str, body: &[u8]) -> anyhow::Result<(u16, Length)> {
        use std::io::Write as _;
        self.head.clear();
        write!(
            self.head,
            "{method} {path} HTTP/1.1\r\nhost: bench\r\naccept: application/json\r\nuser-agent: bench/1\r\n{}",
            self.also
        )?;
        if !body.is_empty() {
            write!(self.head, "content-type: {}\r\ncontent-length: {}\r\n", content_type(method), body.len())?;
        }
        self.head.extend_from_slice(b"\r\n");
        self.head.extend_from_slice(body);
        self.io.write_all(&self.head).await?;
        self.io.flush().await?;
        let end = loop {
            if let Some(at) = memchr::memmem::find(&self.buf, b"\r\n\r\n") {
                break at;
            }
            self.fill().await?;
        };
        let head = self.buf.split_to(end + 4);
        let text = std::str::from_utf8(&head[..end])?;
        let code = text.get(9..12).context("no status line")?.parse()?;
        let mut length = Length::Known(0);
        for line in text.lines().skip(1) {
            let (name, value) = line.split_once(':').context("a header without a colon")?;
            if name.eq_ignore_ascii_case("content-length") {
                length = Length::Known(value.trim().parse()?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                length = Length::Chunked;
            }
        }
        Ok((code, length))
    }

    /// The next chunk of a chunked answer; `None` at its end.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn chunk(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.buf[..self.buf.len().min(20)], b"\r\n") {
                let size = usize::from_str_radix(std::str::from_utf8(&self.buf[..at])?.trim(), 16)?;
                let whole = at + 2 + size + 2;
                while self.buf.len() < whole {
                    self.buf.reserve(whole - self.buf.len());
                    self.fill().await?;
                }
                self.buf.advance(at + 2);
                let data = self.buf.split_to(size).freeze();
                self.buf.advance(2);
                return Ok((size > 0).then_some(data));
            }
            self.fill().await?;
        }
    }
}

/// An HTTP/2 connection.
#[derive(Clone)]
pub(crate) struct H2 {
    send: http2::SendRequest<Full<Bytes>>,
    base: String,
}

impl H2 {
    async fn start(
        &mut self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> anyhow::Result<http::Response<hyper::body::Incoming>> {
        let mut r = http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("accept", "application/json")
            .header("user-agent", "bench/1");
        if !body.is_empty() {
            r = r.header("content-type", content_type(method));
        }
        self.send.ready().await?;
        Ok(self.send.send_request(r.body(Full::new(Bytes::copy_from_slice(body)))?).await?)
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn call(&mut self, method: &str, path: &str, body: &[u8]) -> anyhow::Result<Reply> {
        let r = self.start(method, path, body).await?;
        Ok(Reply { code: r.status().as_u16(), body: r.into_body().collect().await?.to_bytes() })
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// When the server does not answer 200.
    pub(crate) async fn open(&mut self, path: &str) -> anyhow::Result<hyper::body::Incoming> {
        let r = self.start("GET", path, b"").await?;
        if r.status() != 200 {
            bail!("{path} answered {}", r.status());
        }
        Ok(r.into_body())
    }
}

/// etcd's Put over gRPC.
pub(crate) struct Grpc {
    send: http2::SendRequest<Full<Bytes>>,
    url: http::Uri,
}

impl Grpc {
    /// A new connection.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let url = format!("http://{address}/etcdserverpb.KV/Put").parse()?;
        Ok(Self { send: spawn_h2(TokioIo::new(tcp)).await?, url })
    }

    /// Puts one key, durable when answered.
    ///
    /// # Errors
    /// When the connection breaks or etcd refuses.
    pub(crate) async fn put(&mut self, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
        let mut message = BytesMut::new();
        // PutRequest: key = 1, value = 2, both bytes.
        for (tag, field) in [(0x0a, key), (0x12, value)] {
            message.put_u8(tag);
            let mut n = field.len();
            while n >= 0x80 {
                message.put_u8(u8::try_from(n & 0x7f)? | 0x80);
                n >>= 7;
            }
            message.put_u8(u8::try_from(n)?);
            message.put_slice(field);
        }
        // gRPC: not compressed, length, message.
        let mut body = BytesMut::with_capacity(message.len() + 5);
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len())?);
        body.put_slice(&message);
        let r = http::Request::post(self.url.clone())
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(body.freeze()))?;
        self.send.ready().await?;
        let answer = self.send.send_request(r).await?.into_body().collect().await?;
        match answer.trailers().and_then(|t| t.get("grpc-status")) {
            Some(code) if code == "0" => Ok(()),
            other => bail!("etcd answered {other:?}"),
        }
    }
}
