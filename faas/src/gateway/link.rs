//! Connections to one instance, kept between requests. They go with the instance.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::instance::Address;

/// A body on its way, either direction.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
/// What a body can fail with: of the connection, or a limit of ours.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Kept connections.
const IDLE_MAX: usize = 64;
/// A connection that was not used for this long is not used again: servers close theirs after some time, too.
const IDLE: Duration = Duration::from_secs(20);
/// Time to connect. Through another node's agent it has a handshake in it.
const CONNECT: Duration = Duration::from_secs(3);

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody listens there, or not in time. The request was not sent and comes back.
    #[error("cannot connect: {1}")]
    Connect(Box<Request<Body>>, io::Error),
    /// The connection ended before the answer.
    #[error("{0}")]
    Broken(hyper::Error),
}

struct Idle {
    sender: SendRequest<Body>,
    since: Instant,
}

/// The connections of an instance.
pub struct Link {
    address: Address,
    idle: Mutex<Vec<Idle>>,
}

impl Link {
    /// None yet.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self { address, idle: Mutex::default() }
    }

    fn take(&self) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock();
        while let Some(last) = idle.pop() {
            if last.since.elapsed() < IDLE && last.sender.is_ready() {
                return Some(last.sender);
            }
        }
        None
    }

    fn give(&self, sender: SendRequest<Body>) {
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(Idle { sender, since: Instant::now() });
        }
    }

    /// Closes what is kept: one of these connections was broken off, so the others may be as old.
    pub fn clear(&self) {
        self.idle.lock().clear();
    }

    /// Sends a request. A kept connection that turns out to be closed is replaced without anybody noticing.
    ///
    /// # Errors
    /// When the instance cannot be reached (the request comes back), or breaks off.
    pub async fn send(self: &Arc<Self>, mut request: Request<Body>) -> Result<Response<Incoming>, LinkError> {
        while let Some(mut sender) = self.take() {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(self.keep(sender, response)),
                Err(mut e) => match e.take_message() {
                    Some(back) => request = back,
                    None => return Err(LinkError::Broken(e.into_error())),
                },
            }
        }
        let connected = match &self.address {
            Address::Tcp(to) => match tokio::time::timeout(CONNECT, TcpStream::connect(to)).await {
                Ok(Ok(stream)) => {
                    // Small answers must not wait for each other; without it they are only slower.
                    let _ = stream.set_nodelay(true);
                    Ok(shake(stream).await)
                }
                Ok(Err(e)) => Err(e),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            },
            Address::Unix(path) => match tokio::time::timeout(CONNECT, UnixStream::connect(path)).await {
                Ok(Ok(stream)) => Ok(shake(stream).await),
                Ok(Err(e)) => Err(e),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            },
            Address::Through(way) => match tokio::time::timeout(CONNECT, way.dial()).await {
                Ok(Ok(stream)) => Ok(shake(stream).await),
                Ok(Err(e)) => Err(e),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            },
        };
        let mut sender = match connected {
            Ok(shaken) => shaken.map_err(LinkError::Broken)?,
            Err(e) => return Err(LinkError::Connect(Box::new(request), e)),
        };
        let response = sender.send_request(request).await.map_err(LinkError::Broken)?;
        Ok(self.keep(sender, response))
    }

    /// The connection comes back as soon as the answer is through: the sender becomes ready then.
    fn keep(self: &Arc<Self>, mut sender: SendRequest<Body>, response: Response<Incoming>) -> Response<Incoming> {
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            return response;
        }
        if sender.is_ready() {
            self.give(sender);
            return response;
        }
        let link = Arc::downgrade(self);
        tokio::spawn(async move {
            if sender.ready().await.is_ok()
                && let Some(link) = link.upgrade()
            {
                link.give(sender);
            }
        });
        response
    }
}

async fn shake<I>(stream: I) -> Result<SendRequest<Body>, hyper::Error>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // Its end is told to whoever waits for an answer.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}
