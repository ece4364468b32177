//! One call: to a revision, to an instance of it, and the answer back, within the function's limits.
//!
//! A call that was not sent (nobody listens) goes to another instance. One that broke off is tried once more only when doing
//! it twice does no harm: an idempotent method without a body.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as Waker, Poll, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::Sleep;

use super::fleet::{Fleet, Lease};
use super::hub::{Context, Hub};
use super::invoke::{Answer, Call, Invoke, InvokeError};
use super::link::{Body, BoxError, LinkError};

/// Name of a request.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The phases of a start, on the first answers.
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// Instances that are tried for a call that none of them took.
const TRIES: u32 = 16;
/// Longest wait for a revision, when the function has none yet.
const REVISION: Duration = Duration::from_secs(60);
/// Longest life of a connection that changed its protocol.
const UPGRADED: Duration = Duration::from_secs(3600);
/// Headers that are about one connection, not about the request.
const HOP: [HeaderName; 7] = [
    http::header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    http::header::TE,
    http::header::TRAILER,
    http::header::TRANSFER_ENCODING,
    http::header::UPGRADE,
];

/// A request on its way, as forwarding needs it.
pub struct Outgoing {
    /// `NAMESPACE/NAME`.
    pub function: String,
    /// Tag of the revision.
    pub tag: Option<String>,
    /// Head, with path and headers as the function sees them.
    pub parts: Parts,
    /// Body.
    pub body: Body,
    /// The client's end, when it wants another protocol.
    pub upgrade: Option<OnUpgrade>,
    /// When it came.
    pub began: Instant,
}

/// Whether a client wants to change the protocol, and to what.
#[must_use]
pub fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let named = headers.get_all(http::header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let asks = named.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(http::header::UPGRADE).filter(|_| asks).cloned()
}

/// Takes out what is about the connection.
pub fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(http::header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|n| n.trim().parse().ok())
        .collect();
    for name in HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// Counts a call: as answered when it says so, otherwise as aborted.
struct Account {
    context: Arc<Context>,
    function: String,
    began: Instant,
    done: bool,
}

impl Account {
    fn answered(&mut self, code: StatusCode) {
        if !self.done {
            self.done = true;
            self.context.metrics.answered(&self.function, code.as_u16(), self.began.elapsed());
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.done {
            self.context.metrics.aborted(&self.function);
        }
    }
}

/// What a request's body may not do. Shared with whoever has to say why it broke off.
#[derive(Default)]
struct Fault {
    too_large: AtomicBool,
    client: AtomicBool,
}

/// A request's body, up to a limit.
struct Bounded {
    inner: Body,
    left: u64,
    fault: Arc<Fault>,
}

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Waker<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            None => return Poll::Ready(None),
            Some(Err(e)) => {
                self.fault.client.store(true, Ordering::Relaxed);
                return Poll::Ready(Some(Err(e)));
            }
            Some(Ok(frame)) => frame,
        };
        let length = frame.data_ref().map_or(0, |d| d.len() as u64);
        if length > self.left {
            self.fault.too_large.store(true, Ordering::Relaxed);
            return Poll::Ready(Some(Err("the body is too long".into())));
        }
        self.left -= length;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer's body: keeps the place on the instance until it is through, within the limits.
struct Through {
    inner: Incoming,
    fleet: Arc<Fleet>,
    lease: Option<Lease>,
    account: Account,
    code: StatusCode,
    left: u64,
    end: Pin<Box<Sleep>>,
}

impl Through {
    fn over(&mut self, code: StatusCode) {
        self.account.answered(code);
        self.lease = None;
    }
}

impl http_body::Body for Through {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Waker<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let code = self.code;
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
            ready!(self.end.as_mut().poll(cx));
            if let Some(lease) = &self.lease {
                self.fleet.answered(&lease.live, false);
            }
            self.over(StatusCode::GATEWAY_TIMEOUT);
            return Poll::Ready(Some(Err("the function did not end its answer in time".into())));
        };
        match frame {
            None => {
                self.over(code);
                Poll::Ready(None)
            }
            Some(Err(e)) => {
                self.over(StatusCode::BAD_GATEWAY);
                Poll::Ready(Some(Err(e.into())))
            }
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |d| d.len() as u64);
                if length > self.left {
                    self.over(StatusCode::BAD_GATEWAY);
                    return Poll::Ready(Some(Err("the answer is too long".into())));
                }
                self.left -= length;
                if self.inner.is_end_stream() {
                    self.over(code);
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
}

/// A head without what belongs to a connection of ours.
fn copied(parts: &Parts) -> Parts {
    let (mut copy, ()) = Request::new(()).into_parts();
    copy.method = parts.method.clone();
    copy.uri = parts.uri.clone();
    copy.headers = parts.headers.clone();
    copy.version = Version::HTTP_11;
    copy
}

/// Where the time of a first answer went, in milliseconds.
struct Receipt([(&'static str, f64); 5]);

impl Receipt {
    /// That of an answer whose head just came, if its request waited for a start.
    fn of(began: Instant, lease: &Lease, leased: Instant) -> Option<Self> {
        let times = lease.cold?;
        let ms = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1000.0;
        Some(Self([
            ("queued", ms(began, leased)),
            ("decided", ms(began, times.asked)),
            ("started", ms(times.asked, times.started)),
            ("loaded", ms(times.started, times.loaded)),
            ("firstbyte", ms(leased, Instant::now())),
        ]))
    }

    /// As `Server-Timing`.
    fn header(&self) -> Option<HeaderValue> {
        let parts: Vec<_> = self.0.iter().map(|(phase, ms)| format!("{phase};dur={ms:.2}")).collect();
        HeaderValue::try_from(parts.join(", ")).ok()
    }

    /// For the function's owner.
    fn sentence(&self, instance: &str) -> String {
        let [(_, queued), .., (_, first)] = self.0;
        let parts: Vec<_> = self.0.iter().map(|(phase, ms)| format!("{phase} {ms:.1}")).collect();
        format!(
            "{instance} answered the request it was started for after {:.1} ms ({})",
            queued + first,
            parts.join(", ")
        )
    }
}

/// Joins the two ends of a connection that changed its protocol.
fn join(client: OnUpgrade, response: &mut Response<Incoming>, lease: Lease, mut account: Account) {
    let instance = hyper::upgrade::on(response);
    tokio::spawn(async move {
        let (_lease, code) = (lease, StatusCode::SWITCHING_PROTOCOLS);
        if let (Ok(client), Ok(instance)) = tokio::join!(client, instance) {
            let (mut client, mut instance) = (TokioIo::new(client), TokioIo::new(instance));
            // Either end may go whenever it likes.
            let talk = tokio::io::copy_bidirectional(&mut client, &mut instance);
            let _ = tokio::time::timeout(UPGRADED, talk).await;
        }
        account.answered(code);
    });
}

/// Forwards calls.
pub struct Caller {
    hub: Arc<Hub>,
}

impl Caller {
    /// To the functions of this hub.
    #[must_use]
    pub fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }

    /// Sends a request to its function and brings the head of the answer, with a body that still counts and ends the call.
    ///
    /// # Errors
    /// When the function said nothing.
    pub async fn forward(&self, out: Outgoing) -> Result<Response<Body>, InvokeError> {
        let context = Arc::clone(&self.hub.context);
        context.metrics.accepted(&out.function);
        let mut account = Account { context, function: out.function.clone(), began: out.began, done: false };
        let code = |e: &InvokeError| e.status();
        match self.attempt(out).await {
            Err(e) => {
                account.answered(code(&e));
                Err(e)
            }
            Ok((mut response, fleet, lease, upgrade, until)) => {
                if response.status() == StatusCode::SWITCHING_PROTOCOLS
                    && let Some(client) = upgrade
                {
                    join(client, &mut response, lease, account);
                    return Ok(response.map(|b| b.map_err(BoxError::from).boxed_unsync()));
                }
                strip(response.headers_mut());
                let code = response.status();
                let left = fleet.limits.response;
                Ok(response.map(|inner| {
                    let end = Box::pin(tokio::time::sleep_until(until.into()));
                    let mut body = Through { inner, fleet, lease: Some(lease), account, code, left, end };
                    if body.inner.is_end_stream() {
                        body.over(code);
                    }
                    body.boxed_unsync()
                }))
            }
        }
    }

    async fn attempt(
        &self,
        out: Outgoing,
    ) -> Result<(Response<Incoming>, Arc<Fleet>, Lease, Option<OnUpgrade>, Instant), InvokeError> {
        let Outgoing { function, tag, parts, body, upgrade, began } = out;
        let fleet = self.hub.route(&function, tag.as_deref(), began + REVISION).await?;
        let until = began + fleet.limits.timeout;
        let limit = fleet.limits.request;
        if body.size_hint().lower() > limit {
            return Err(InvokeError::TooLarge { limit });
        }
        let again = (idempotent(&parts.method) && body.is_end_stream()).then(|| copied(&parts));
        let fault = Arc::new(Fault::default());
        let bounded = Bounded { inner: body, left: limit, fault: Arc::clone(&fault) };
        let mut request = Request::from_parts(parts, bounded.boxed_unsync());
        let (mut tries, mut again) = (0, again);
        loop {
            tries += 1;
            let lease = fleet.lease(until).await?;
            let leased = Instant::now();
            let live = Arc::clone(&lease.live);
            match tokio::time::timeout_at(until.into(), live.link.send(request)).await {
                Err(_) => {
                    // Its connection is closed with the request; the code in it may go on.
                    fleet.late(&live).await;
                    return Err(InvokeError::Timeout(fleet.limits.timeout));
                }
                Ok(Ok(mut response)) => {
                    fleet.answered(&live, true);
                    let limit = fleet.limits.response;
                    if response.body().size_hint().lower() > limit {
                        return Err(InvokeError::AnswerTooLarge { limit });
                    }
                    if let Some(receipt) = Receipt::of(began, &lease, leased) {
                        if live.first() {
                            self.hub.context.tell_cold(&function, || receipt.sentence(&live.instance.name));
                        }
                        response.headers_mut().extend(receipt.header().map(|h| (SERVER_TIMING, h)));
                    }
                    return Ok((response, fleet, lease, upgrade, until));
                }
                Ok(Err(LinkError::Connect(back, error))) => {
                    fleet.refused(&live, &error.to_string());
                    if tries >= TRIES {
                        return Err(InvokeError::Broken(format!("no instance takes connections: {error}")));
                    }
                    request = *back;
                }
                Ok(Err(LinkError::Broken(error))) => {
                    live.link.clear();
                    if fault.too_large.load(Ordering::Relaxed) {
                        return Err(InvokeError::TooLarge { limit });
                    }
                    if fault.client.load(Ordering::Relaxed) {
                        return Err(InvokeError::BadRequest("the body broke off".into()));
                    }
                    if let Some(gone) = live.link.deserted().await {
                        fleet.refused(&live, &gone.to_string());
                    }
                    let Some(parts) = again.take() else { return Err(InvokeError::Broken(error.to_string())) };
                    tracing::debug!(%function, %error, "a request is tried again");
                    request = Request::from_parts(parts, nothing());
                }
            }
        }
    }
}

/// A body without anything.
#[must_use]
pub fn nothing() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body of these bytes.
#[must_use]
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

#[async_trait]
impl Invoke for Caller {
    async fn invoke(&self, call: Call) -> Result<Answer, InvokeError> {
        let began = Instant::now();
        self.hub.find(&call.namespace, &call.function).await?;
        let function = format!("{}/{}", call.namespace, call.function);
        let bad = |e: &dyn std::fmt::Display| InvokeError::BadRequest(e.to_string());
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = call.method;
        parts.uri = call.path.parse().map_err(|e| bad(&e))?;
        parts.headers = call.headers;
        strip(&mut parts.headers);
        let host = format!("{}.{}", call.function, call.namespace);
        parts.headers.insert(http::header::HOST, HeaderValue::try_from(host).map_err(|e| bad(&e))?);
        parts.headers.remove(http::header::CONTENT_LENGTH);
        parts.headers.insert(REQUEST_ID, HeaderValue::try_from(call.id).map_err(|e| bad(&e))?);
        let body = if call.body.is_empty() { nothing() } else { whole(call.body) };
        let out = Outgoing { function, tag: call.tag, parts, body, upgrade: None, began };
        let (head, body) = self.forward(out).await?.into_parts();
        // Time and length are watched by the body itself.
        let body = body.collect().await.map_err(|e| InvokeError::Broken(e.to_string()))?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }
}
