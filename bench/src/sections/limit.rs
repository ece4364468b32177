//! The machine's limit: the same bytes over TLS on the loopback, by a server that has them ready and does nothing else.
//!
//! Load and server share this machine's cores, as they do when the API server is measured. What is lost against this is the
//! API server's; what this itself does not reach, no server reaches with its clients on the same cores.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::http::{Target, Version};
use crate::load::{Request, Until, closed};

/// How long a pass over all connections may take before the measurement is given up.
const DEADLINE: Duration = Duration::from_secs(30);

/// A listener with a certificate of its own.
struct Bare {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    target: Target,
}

impl Bare {
    async fn bind() -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let certificate: CertificateDer<'static> = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let config =
            rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.clone()], key)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate)?;
        let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let client = TlsConnector::from(Arc::new(client));
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
        let target = Target::Tls { address: listener.local_addr()?, h1: client.clone(), h2: client };
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)), target })
    }

    async fn accept(&self) -> anyhow::Result<TlsStream<TcpStream>> {
        let (tcp, _) = self.listener.accept().await?;
        tcp.set_nodelay(true)?;
        Ok(self.acceptor.accept(tcp).await?)
    }
}

/// Ends a task with whoever started it.
struct Ends(JoinHandle<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// GETs a second by `clients` connections of HTTP/1.1, each answered with the same `body`.
///
/// # Errors
/// When a connection breaks.
pub(crate) async fn reads(body: Bytes, clients: usize, time: Duration) -> anyhow::Result<f64> {
    let bare = Bare::bind().await?;
    let target = bare.target.clone();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    let answer = Bytes::from([head.as_bytes(), &body].concat());
    let server = Ends(tokio::spawn(async move {
        let mut serving = JoinSet::new();
        while let Ok(mut stream) = bare.accept().await {
            let answer = answer.clone();
            serving.spawn(async move {
                let mut buf = [0; 4096];
                // A request of this load comes as one record; an error is the client going away.
                while stream.read(&mut buf).await.is_ok_and(|n| n > 0) {
                    if stream.write_all(&answer).await.is_err() || stream.flush().await.is_err() {
                        return;
                    }
                }
            });
        }
    }));
    let make = |_| Request::get("/".into());
    closed(&target, Version::H1, clients, Until::Time(time / 10, u64::MAX), make).await?;
    let o = closed(&target, Version::H1, clients, Until::Time(time, u64::MAX), make).await?;
    drop(server);
    Ok(o.rate())
}

/// The mean time in which `piece` is sent on each of so many connections and received by all of them.
///
/// # Errors
/// When a connection breaks, or a pass takes longer than half a minute.
pub(crate) async fn pass(piece: Bytes, connections: usize, time: Duration) -> anyhow::Result<Duration> {
    let bare = Bare::bind().await?;
    let Target::Tls { address, h1, .. } = bare.target.clone() else { anyhow::bail!("a target without TLS") };
    let (go, turns) = watch::channel(0_u64);
    let (done, mut finished) = mpsc::channel(1);
    let left = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let (client, server) = tokio::join!(crate::http::tls(address, &h1), bare.accept());
        let (mut client, mut server) = (client?, server?);
        let (mut turns, piece, size) = (turns.clone(), piece.clone(), piece.len());
        tasks.spawn(async move {
            while turns.changed().await.is_ok() {
                server.write_all(&piece).await?;
                server.flush().await?;
            }
            anyhow::Ok(())
        });
        let (left, done) = (Arc::clone(&left), done.clone());
        tasks.spawn(async move {
            let mut buf = vec![0; 16 << 10];
            let mut got = 0;
            loop {
                let n = client.read(&mut buf).await?;
                if n == 0 {
                    return anyhow::Ok(());
                }
                got += n;
                if got >= size {
                    got -= size;
                    if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                        done.send(()).await?;
                    }
                }
            }
        });
    }
    let (begun, mut passes) = (Instant::now(), 0_u32);
    while begun.elapsed() < time {
        left.store(connections, Ordering::Release);
        go.send_modify(|n| *n += 1);
        tokio::time::timeout(DEADLINE, finished.recv()).await.context("a pass did not end")?.context("a pass broke")?;
        passes += 1;
    }
    tasks.abort_all();
    Ok(begun.elapsed() / passes)
}

/// The mean time that one processor takes to send `piece` on each of so many TCP connections of the loopback: no TLS, nobody
/// who waits for the bytes, and what is sent is read in times that do not count. What it takes is the kernel's alone.
///
/// # Errors
/// When a connection cannot be made or breaks.
pub(crate) async fn sends(piece: Bytes, connections: usize, time: Duration) -> anyhow::Result<Duration> {
    tokio::task::spawn_blocking(move || {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut pairs = Vec::with_capacity(connections);
        for _ in 0..connections {
            let reader = std::net::TcpStream::connect(listener.local_addr()?)?;
            let (writer, _) = listener.accept()?;
            writer.set_nodelay(true)?;
            pairs.push((writer, reader));
        }
        let mut room = vec![0; piece.len()];
        let (mut taken, mut passes) = (Duration::ZERO, 0_u32);
        while taken < time {
            let begun = Instant::now();
            for (writer, _) in &mut pairs {
                writer.write_all(&piece)?;
            }
            taken += begun.elapsed();
            passes += 1;
            for (_, reader) in &mut pairs {
                reader.read_exact(&mut room)?;
            }
        }
        Ok(taken / passes)
    })
    .await?
}
