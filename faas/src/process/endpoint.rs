//! A node's processes as its agent serves them to the gateway, below `/functions`.
//!
//! Who asks has been authenticated by the agent, and may `get` or `create` `nodes/functions`: that is the gateway and nobody who
//! is not the cluster's owner. What it sends is checked all the same: names, lengths, times, how much at once. An instance listens
//! on a socket that only the machine's root reaches and has no network; the one way to it from outside is
//! `POST /functions/connect`, which changes the protocol to that instance's bytes.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;

use super::host::Host;
use super::images::{Wanted, is_digest};
use super::job::{Job, Kept, Printed, Said, Told, is_key, plain};
use crate::runtime::Source;

/// What a connection to an instance changes its protocol to.
pub(super) const PROTOCOL: &str = "skiff-function";
/// Bytes of an order: its environment is most of it.
const ORDER: usize = 4 << 20;
/// Bytes of a reason.
const REASON: usize = 16 << 10;
/// Bytes of packed code.
const CODE: usize = 64 << 20;
/// Code that is taken in at a time, in memory.
const UPLOADS: usize = 4;
/// Orders at a time; further ones are refused.
const ORDERS: usize = 512;
/// Connections to instances at a time; further ones are refused.
const TUNNELS: usize = 8192;
/// Time for a body to come.
const BODY: Duration = Duration::from_secs(120);
/// Time for an instance to take a connection, and for a connection to change its protocol.
const CONNECT: Duration = Duration::from_secs(3);
/// Those who watch hear something this often.
const BEAT: Duration = Duration::from_secs(3);
/// Lines of each instance.
const LINES: usize = 10_000;

/// A body of an answer.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The endpoint.
#[derive(Debug)]
pub struct Endpoint {
    host: Arc<Host>,
    wanted: Arc<Wanted>,
    uploads: Semaphore,
    orders: Semaphore,
    tunnels: Arc<Semaphore>,
}

impl Endpoint {
    /// Of these processes.
    #[must_use]
    pub fn new(host: Arc<Host>, wanted: Arc<Wanted>) -> Self {
        Self {
            host,
            wanted,
            uploads: Semaphore::new(UPLOADS),
            orders: Semaphore::new(ORDERS),
            tunnels: Arc::new(Semaphore::new(TUNNELS)),
        }
    }

    /// Answers a request of somebody who may ask.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.split('/').skip(2).collect();
        let get = *request.method() == Method::GET;
        let (post, put) = (*request.method() == Method::POST, *request.method() == Method::PUT);
        match parts.as_slice() {
            ["watch"] if get => self.watch(),
            ["lines"] if get => self.lines(),
            ["logs"] if get => self.logs(request.uri().query().unwrap_or_default()).await,
            ["start"] if post => self.order(request, true).await,
            ["prepare"] if post => self.order(request, false).await,
            ["stop", namespace, name] if post => match self.host.stop(namespace, name).await {
                Ok(()) => text(StatusCode::OK, "ok"),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            },
            ["connect", namespace, name] if post => self.connect(namespace, name, request).await,
            ["code", key] if put && is_key(key) => self.code(key, request).await,
            ["kept"] if get => self.kept(request.uri().query().unwrap_or_default()).await,
            ["drop"] if post => match read(request, ORDER).await.and_then(|body| parsed::<Kept>(&body)) {
                Ok(unneeded) => {
                    self.host.tidy(unneeded.codes).await;
                    self.wanted.drop_images(&unneeded.images).await;
                    text(StatusCode::OK, "ok")
                }
                Err(refusal) => *refusal,
            },
            ["image", digest] if put && is_digest(digest) => {
                match self.wanted.take(digest, request.into_body()).await {
                    Ok(()) => text(StatusCode::OK, "ok"),
                    Err(error) => text(StatusCode::CONFLICT, &format!("{error:#}")),
                }
            }
            ["image", digest, "refused"] if post && is_digest(digest) => match read(request, REASON).await {
                Ok(why) => {
                    self.wanted.refuse(digest, String::from_utf8_lossy(&why).into_owned());
                    text(StatusCode::OK, "ok")
                }
                Err(refusal) => *refusal,
            },
            _ => text(StatusCode::NOT_FOUND, "404 page not found"),
        }
    }

    /// What runs, and what happens.
    fn watch(&self) -> Response<Body> {
        // What is wanted since before is told again.
        let wants = self.wanted.all().into_iter().map(|image| Told::Wants { image });
        let Some(watch) = self.host.watch(wants) else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "too many watch already");
        };
        let all = stream::unfold(watch, |mut watch| async {
            let told = match tokio::time::timeout(BEAT, watch.next()).await {
                Err(_) => Told::Beat,
                Ok(told) => told?,
            };
            Some((line(&told), watch))
        });
        streamed(all)
    }

    /// What instances print.
    fn lines(&self) -> Response<Body> {
        let all = stream::unfold(self.host.follow(), |mut lines| async {
            loop {
                match lines.recv().await {
                    Ok(said) => return Some((line(&Printed::from(said)), lines)),
                    // Who is too slow misses some.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        streamed(all)
    }

    async fn logs(&self, query: &str) -> Response<Body> {
        let of = |name: &str| query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('='));
        let (Some(namespace), Some(function)) = (of("namespace"), of("function")) else {
            return text(StatusCode::BAD_REQUEST, "namespace and function are missing");
        };
        let (instance, tail) = (of("instance"), of("tail").and_then(|t| t.parse().ok()).unwrap_or(LINES).min(LINES));
        if ![namespace, function].into_iter().chain(instance).all(plain) {
            return text(StatusCode::BAD_REQUEST, "these are no names");
        }
        let (host, namespace, function) = (Arc::clone(&self.host), namespace.to_owned(), function.to_owned());
        let instance = instance.map(str::to_owned);
        // Files are read.
        let lines = tokio::task::spawn_blocking(move || host.tail(&namespace, &function, instance.as_deref(), tail));
        let lines: Vec<Printed> = lines.await.unwrap_or_default().into_iter().map(Printed::from).collect();
        json(&lines)
    }

    /// What is here that no revision may need. Images only where it is said of which cluster.
    async fn kept(&self, query: &str) -> Response<Body> {
        let images = match query.strip_prefix("cluster=").filter(|c| plain(c)) {
            Some(cluster) => self.wanted.kept(cluster).await,
            None => HashSet::new(),
        };
        json(&Kept { codes: self.host.kept().into_iter().collect(), images })
    }

    async fn order(&self, request: Request<Incoming>, start: bool) -> Response<Body> {
        let Ok(_turn) = self.orders.try_acquire() else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "too many orders at a time");
        };
        let job: Job = match read(request, ORDER).await.and_then(|body| parsed(&body)) {
            Ok(job) => job,
            Err(refusal) => return *refusal,
        };
        json(&if start { self.host.start(job).await } else { self.host.prepare(&job).await })
    }

    async fn code(&self, key: &str, request: Request<Incoming>) -> Response<Body> {
        let Ok(_turn) = self.uploads.acquire().await else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "the node ends");
        };
        match read(request, CODE).await {
            Ok(code) => {
                json(&self.host.keep(key, Source::Archive(code)).await.map_or_else(Said::from, |()| Said::Prepared))
            }
            Err(refusal) => *refusal,
        }
    }

    /// Gives a connection to an instance.
    async fn connect(&self, namespace: &str, name: &str, mut request: Request<Incoming>) -> Response<Body> {
        if request.headers().get(UPGRADE).is_none_or(|v| v != PROTOCOL) {
            return text(StatusCode::BAD_REQUEST, "this connection must change its protocol");
        }
        let Some(socket) = self.host.socket(namespace, name) else {
            return text(StatusCode::NOT_FOUND, "there is no such instance");
        };
        let Ok(turn) = Arc::clone(&self.tunnels).try_acquire_owned() else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "too many connections to instances");
        };
        let instance = match tokio::time::timeout(CONNECT, UnixStream::connect(socket)).await {
            Ok(Ok(instance)) => instance,
            _ => return text(StatusCode::BAD_GATEWAY, "the instance takes no connection"),
        };
        let far = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let _turn = turn;
            if let Ok(Ok(far)) = tokio::time::timeout(CONNECT, far).await {
                join(TokioIo::new(far), instance).await;
            }
        });
        let mut response = Response::new(full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
        response
    }
}

/// Passes bytes both ways until the instance has said everything; a gateway that is gone is an end of its input.
async fn join(far: TokioIo<hyper::upgrade::Upgraded>, instance: UnixStream) {
    let (mut from_far, mut to_far) = tokio::io::split(far);
    let (mut from_instance, mut to_instance) = instance.into_split();
    let up = async {
        // However it ended: the instance sees an end, and ends the other direction.
        let _ = tokio::io::copy(&mut from_far, &mut to_instance).await;
        let _ = to_instance.shutdown().await;
        std::future::pending::<()>().await;
    };
    let down = async {
        let _ = tokio::io::copy(&mut from_instance, &mut to_far).await;
        let _ = to_far.shutdown().await;
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

async fn read(request: Request<Incoming>, limit: usize) -> Result<Bytes, Box<Response<Body>>> {
    let whole = tokio::time::timeout(BODY, Limited::new(request.into_body(), limit).collect()).await;
    match whole {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => {
            Err(Box::new(text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long")))
        }
        Ok(Err(_)) => Err(Box::new(text(StatusCode::BAD_REQUEST, "the body broke off"))),
        Err(_) => Err(Box::new(text(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))),
    }
}

fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, Box<Response<Body>>> {
    serde_json::from_slice(body).map_err(|e| Box::new(text(StatusCode::BAD_REQUEST, &format!("no order: {e}"))))
}

fn line(what: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(what).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}

fn streamed(lines: impl futures::Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let mut response = Response::new(StreamBody::new(lines.map(|l| Ok(Frame::data(l)))).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

fn json(what: &impl Serialize) -> Response<Body> {
    let mut response = Response::new(full(serde_json::to_vec(what).unwrap_or_default()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, message: &str) -> Response<Body> {
    let mut response = Response::new(full(format!("{message}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
