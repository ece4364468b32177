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
/// A machine that is there says sooner that nobody listens.
const KNOWN: Duration = Duration::from_millis(250);

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
        let connected = tokio::time::timeout(CONNECT, self.connect()).await;
        let mut sender = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(shaken) => shaken.map_err(LinkError::Broken)?,
            Err(e) => return Err(LinkError::Connect(Box::new(request), e)),
        };
        let response = sender.send_request(request).await.map_err(LinkError::Broken)?;
        Ok(self.keep(sender, response))
    }

    async fn connect(&self) -> io::Result<Result<SendRequest<Body>, hyper::Error>> {
        Ok(match &self.address {
            Address::Tcp(to) => {
                let stream = TcpStream::connect(to).await?;
                // Small answers must not wait for each other; without it they are only slower.
                let _ = stream.set_nodelay(true);
                shake(stream).await
            }
            Address::Unix(path) => shake(UnixStream::connect(path).await?).await,
            Address::Through(way) => shake(way.dial().await?).await,
        })
    }

    /// Whether nobody listens there any more, as far as that is known at once: an instance that breaks off has mostly
    /// ended, its address is soon nobody's, and to connect there takes as long as it may.
    pub async fn deserted(&self) -> Option<io::Error> {
        tokio::time::timeout(KNOWN, self.connect()).await.ok()?.err()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_listens_no_more_is_known_at_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = Link::new(Address::Tcp(listener.local_addr().unwrap()));
        assert!(link.deserted().await.is_none());
        drop(listener);
        assert_eq!(link.deserted().await.map(|e| e.kind()), Some(io::ErrorKind::ConnectionRefused));
    }
}
