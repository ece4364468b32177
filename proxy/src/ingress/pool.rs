//! Connections to endpoints, kept between requests.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;

/// A request's body on its way.
pub type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Kept connections of one endpoint.
const IDLE_MAX: usize = 64;
/// A connection that was not used for this long is closed: servers close theirs after some time, too.
const IDLE: Duration = Duration::from_secs(30);
/// Time to connect.
const CONNECT: Duration = Duration::from_secs(5);

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens there, or not in time. The request was not sent.
    #[error("cannot connect to {0}")]
    Connect(SocketAddr, Box<Request<Body>>),
    /// The connection ended before the answer.
    #[error("the endpoint {0} broke off: {1}")]
    Broken(SocketAddr, hyper::Error),
}

struct Idle {
    sender: SendRequest<Body>,
    since: Instant,
}

/// The pool.
#[derive(Default)]
pub struct Pool {
    idle: Mutex<HashMap<SocketAddr, Vec<Idle>>>,
}

impl Pool {
    fn take(&self, to: SocketAddr) -> Option<SendRequest<Body>> {
        let mut all = self.idle.lock();
        let list = all.get_mut(&to)?;
        while let Some(idle) = list.pop() {
            if idle.since.elapsed() < IDLE && idle.sender.is_ready() {
                return Some(idle.sender);
            }
        }
        all.remove(&to);
        None
    }

    /// Gives back a connection whose answer was read to its end.
    fn give(&self, to: SocketAddr, sender: SendRequest<Body>) {
        let mut all = self.idle.lock();
        let list = all.entry(to).or_default();
        if list.len() < IDLE_MAX {
            list.push(Idle { sender, since: Instant::now() });
        }
    }

    /// Closes what was not used for long.
    pub fn sweep(&self) {
        self.idle.lock().retain(|_, list| {
            list.retain(|i| i.since.elapsed() < IDLE && !i.sender.is_closed());
            !list.is_empty()
        });
    }

    /// Sends a request. A kept connection that turns out to be closed is replaced without anybody noticing.
    ///
    /// # Errors
    /// When the endpoint cannot be reached (the request comes back), or breaks off.
    pub async fn send(
        self: &std::sync::Arc<Self>,
        to: SocketAddr,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, Error> {
        let mut request = request;
        while let Some(mut sender) = self.take(to) {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(self.keep(to, sender, response)),
                Err(mut e) => match e.take_message() {
                    Some(back) => request = back,
                    None => return Err(Error::Broken(to, e.into_error())),
                },
            }
        }
        let stream = match tokio::time::timeout(CONNECT, TcpStream::connect(to)).await {
            Ok(Ok(stream)) => stream,
            _ => return Err(Error::Connect(to, Box::new(request))),
        };
        // Small answers must not wait for each other; without it they are only slower.
        let _ = stream.set_nodelay(true);
        let (mut sender, connection) = match http1::handshake(TokioIo::new(stream)).await {
            Ok(made) => made,
            Err(e) => return Err(Error::Broken(to, e)),
        };
        tokio::spawn(async move {
            // Its end is told to whoever waits for an answer.
            let _ = connection.with_upgrades().await;
        });
        let response = sender.send_request(request).await.map_err(|e| Error::Broken(to, e))?;
        Ok(self.keep(to, sender, response))
    }

    /// The connection comes back as soon as the answer is through: the sender becomes ready then.
    fn keep(
        self: &std::sync::Arc<Self>,
        to: SocketAddr,
        mut sender: SendRequest<Body>,
        response: Response<Incoming>,
    ) -> Response<Incoming> {
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            return response;
        }
        if sender.is_ready() {
            self.give(to, sender);
            return response;
        }
        let pool = std::sync::Arc::downgrade(self);
        tokio::spawn(async move {
            if sender.ready().await.is_ok()
                && let Some(pool) = pool.upgrade()
            {
                pool.give(to, sender);
            }
        });
        response
    }
}
