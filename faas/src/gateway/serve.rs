//! The doors: HTTP for public functions and for callers in the cluster, HTTPS with the cluster's certificates.
//!
//! `ANY /function/NAMESPACE/NAME[/PATH]`, or any path when the host name is a function's. `/async/NAMESPACE/NAME` and
//! `Prefer: respond-async` hand the call to the queue; `/result/NAMESPACE/ID` asks what became of it. `/logs/NAMESPACE/NAME` is
//! what processes printed. `/healthz` and `/metrics` are for the cluster's owner. What goes wrong here is said as JSON with the request's id.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HOST, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::auth::Auth;
use super::call::{Caller, Outgoing, REQUEST_ID, nothing, strip, wanted_upgrade, whole};
pub use super::door::Tls;
use super::door::{self, Behind, Client};
use super::hub::{Entry, Hub};
use super::invoke::{Answer, Broker, Call, InvokeError, Sink};
use super::link::{Body, BoxError};
use crate::instance::Class;

/// Clients' connections at a time. Further ones are closed.
const CONNECTIONS: usize = 16_384;
/// Bytes of a call that is queued.
const QUEUED: usize = 1 << 20;
/// Time for the body of a call that is queued.
const QUEUED_TIME: Duration = Duration::from_secs(60);

const TAG: HeaderName = HeaderName::from_static("skiff-tag");
const PREFER: HeaderName = HeaderName::from_static("prefer");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The gateway.
pub struct Gateway {
    pub(super) hub: Arc<Hub>,
    caller: Arc<Caller>,
    pub(super) auth: Auth,
    sink: OnceLock<Arc<dyn Sink>>,
    logs: OnceLock<Arc<dyn Class>>,
    pub(super) broker: OnceLock<Arc<dyn Broker>>,
    connections: Arc<Semaphore>,
}

/// What a request is about.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Function { namespace: String, name: String, tag: Option<String>, path: String, queue: bool },
    Result { namespace: String, id: String },
    Logs { namespace: String, name: String },
    Events { namespace: String },
    Health,
    Metrics,
    Nothing,
}

/// A host without its port.
fn without_port(host: &str) -> &str {
    if host.starts_with('[') {
        return host;
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

/// What a path is about.
fn by_path(path: &str, query: Option<&str>) -> Target {
    let mut parts = path.splitn(5, '/').skip(1);
    let (first, second, third, rest) = (parts.next(), parts.next(), parts.next(), parts.next());
    let named = |s: Option<&str>| s.filter(|s| !s.is_empty()).map(str::to_owned);
    match (first, named(second), named(third)) {
        (Some(word @ ("function" | "async")), Some(namespace), Some(name)) => {
            let query = query.map(|q| format!("?{q}")).unwrap_or_default();
            let path = format!("/{}{query}", rest.unwrap_or_default());
            Target::Function { namespace, name, tag: None, path, queue: word == "async" }
        }
        (Some("result"), Some(namespace), Some(id)) if rest.is_none() => Target::Result { namespace, id },
        (Some("logs"), Some(namespace), Some(name)) if rest.is_none() => Target::Logs { namespace, name },
        (Some("events"), Some(namespace), None) if rest.is_none() => Target::Events { namespace },
        (Some("healthz"), None, None) => Target::Health,
        (Some("metrics"), None, None) => Target::Metrics,
        _ => Target::Nothing,
    }
}

/// The id a client gave a request, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|v| v.to_str().ok());
    let usable = given.filter(|v| !v.is_empty() && v.len() <= 128 && v.bytes().all(|b| b.is_ascii_graphic()));
    usable.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned)
}

/// An error as callers see it.
fn refusal(error: &InvokeError, id: &str) -> Response<Body> {
    let body = json!({"error": {"code": error.code(), "message": error.to_string(), "requestId": id}});
    let mut r = Response::new(whole(format!("{body}\n")));
    *r.status_mut() = error.status();
    r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(after) = error.retry_after() {
        r.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after.as_secs()));
    }
    if let InvokeError::Method { allow, .. } = error {
        r.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    }
    if matches!(error, InvokeError::Unauthorized(_)) {
        r.headers_mut().insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    r
}

fn says(status: StatusCode, text: String) -> Response<Body> {
    let mut r = Response::new(whole(text));
    *r.status_mut() = status;
    r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    r
}

fn answer(a: Answer) -> Response<Body> {
    let mut r = Response::new(whole(a.body));
    *r.status_mut() = a.status;
    *r.headers_mut() = a.headers;
    strip(r.headers_mut());
    r.headers_mut().remove(http::header::CONTENT_LENGTH);
    r
}

fn wants_queue(headers: &HeaderMap) -> bool {
    let prefers = headers.get_all(PREFER).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    prefers.into_iter().any(|p| p.trim().eq_ignore_ascii_case("respond-async"))
}

impl Gateway {
    /// A gateway to the functions of this hub. `client` is asked who may call what.
    #[must_use]
    pub fn new(hub: Arc<Hub>, client: kube::Client) -> Self {
        Self {
            caller: Arc::new(Caller::new(Arc::clone(&hub))),
            hub,
            auth: Auth::new(client),
            sink: OnceLock::new(),
            logs: OnceLock::new(),
            broker: OnceLock::new(),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }

    /// What calls functions from inside this process.
    #[must_use]
    pub fn caller(&self) -> Arc<Caller> {
        Arc::clone(&self.caller)
    }

    /// From now on this takes asynchronous calls. Only the first counts.
    pub fn queue_into(&self, sink: Arc<dyn Sink>) {
        let _ = self.sink.set(sink);
    }

    /// From now on this takes events. Only the first counts.
    pub fn events_into(&self, broker: Arc<dyn Broker>) {
        let _ = self.broker.set(broker);
    }

    /// From now on what instances of this class print can be read here. Only the first counts.
    pub fn logs_from(&self, class: Arc<dyn Class>) {
        let _ = self.logs.set(class);
    }

    fn target(&self, host: &str, request: &Request<Incoming>) -> Target {
        let uri = request.uri();
        if let Some((namespace, name, tag)) = self.hub.by_host(without_port(host)) {
            let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
            return Target::Function { namespace, name, tag, path, queue: false };
        }
        by_path(uri.path(), uri.query())
    }

    async fn respond(&self, request: Request<Incoming>, client: Client) -> Response<Body> {
        let id = request_id(request.headers());
        let mut response = match self.handle(request, client, &id).await {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(%id, %error, "a request was not answered by its function");
                refusal(&error, &id)
            }
        };
        if let Ok(id) = HeaderValue::try_from(id) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        *response.version_mut() = Version::HTTP_11;
        response
    }

    /// Whether the caller may. Their token is for us, so the function does not see it.
    async fn admit(&self, entry: &Entry, headers: &mut HeaderMap, client: &Client) -> Result<(), InvokeError> {
        if entry.public {
            return Ok(());
        }
        let user = self.auth.user(headers, client.certificate.as_deref()).await?;
        headers.remove(AUTHORIZATION);
        self.auth.permitted(user, &entry.namespace, &entry.name).await
    }

    async fn handle(
        &self,
        mut request: Request<Incoming>,
        client: Client,
        id: &str,
    ) -> Result<Response<Body>, InvokeError> {
        let began = Instant::now();
        let host = request.uri().authority().map(|a| a.as_str().to_owned());
        let host = host.or_else(|| request.headers().get(HOST)?.to_str().ok().map(str::to_owned)).unwrap_or_default();
        let (namespace, name, tag, path, queue) = match self.target(&host, &request) {
            Target::Function { namespace, name, tag, path, queue } => (namespace, name, tag, path, queue),
            Target::Result { namespace, id } => return self.result(request.method(), &namespace, &id).await,
            Target::Logs { namespace, name } => return self.logs(&request, &client, &namespace, &name).await,
            Target::Events { namespace } => return self.events(request, &client, &namespace).await,
            Target::Health => return Ok(says(StatusCode::OK, "ok".into())),
            Target::Metrics => {
                let user = self.auth.user(request.headers(), client.certificate.as_deref()).await?;
                self.auth.may_read_metrics(user).await?;
                return Ok(says(StatusCode::OK, self.hub.metrics()));
            }
            Target::Nothing => {
                return Err(InvokeError::NotFound { namespace: host, name: request.uri().path().to_owned() });
            }
        };
        let entry = self.hub.find(&namespace, &name).await?;
        self.admit(&entry, request.headers_mut(), &client).await?;
        let tag = request.headers_mut().remove(TAG).and_then(|t| t.to_str().ok().map(str::to_owned)).or(tag);
        let uri = path.parse().map_err(|_| InvokeError::BadRequest("this is no path".into()))?;
        let upgrade = wanted_upgrade(request.headers());
        let from_client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        parts.uri = uri;
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        let queue = queue || wants_queue(&parts.headers);
        head(&mut parts.headers, &host, &client, upgrade.as_ref(), id);
        if queue {
            let call = Call {
                namespace,
                function: name,
                tag,
                method: parts.method,
                path,
                headers: parts.headers,
                body: gather(body).await?,
                id: id.to_owned(),
            };
            return self.accept(call).await;
        }
        let body = if body.is_end_stream() { nothing() } else { body.map_err(BoxError::from).boxed_unsync() };
        let function = entry.key();
        self.caller.forward(Outgoing { function, tag, parts, body, upgrade: from_client, began }).await
    }

    fn sink(&self) -> Result<&Arc<dyn Sink>, InvokeError> {
        self.sink.get().ok_or_else(|| InvokeError::Unavailable("there is no queue for asynchronous calls".into()))
    }

    async fn accept(&self, call: Call) -> Result<Response<Body>, InvokeError> {
        let namespace = call.namespace.clone();
        let request = call.id.clone();
        let id = self.sink()?.accept(call).await?;
        let place = format!("/result/{namespace}/{id}");
        let body = json!({"id": id, "result": place, "requestId": request});
        let mut r = Response::new(whole(format!("{body}\n")));
        *r.status_mut() = StatusCode::ACCEPTED;
        r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(place) = HeaderValue::try_from(place) {
            r.headers_mut().insert(LOCATION, place);
        }
        Ok(r)
    }

    /// The name of a call cannot be guessed: who has it may ask.
    async fn result(&self, method: &Method, namespace: &str, id: &str) -> Result<Response<Body>, InvokeError> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(InvokeError::Method { method: method.clone(), allow: "GET, HEAD" });
        }
        let found = self.sink()?.result(namespace, id).await?;
        let unknown = || InvokeError::NotFound { namespace: namespace.to_owned(), name: format!("result {id}") };
        found.map(answer).ok_or_else(unknown)
    }

    /// Logs are never public, whoever may call the function.
    async fn logs(
        &self,
        request: &Request<Incoming>,
        client: &Client,
        namespace: &str,
        name: &str,
    ) -> Result<Response<Body>, InvokeError> {
        if *request.method() != Method::GET {
            return Err(InvokeError::Method { method: request.method().clone(), allow: "GET" });
        }
        let user = self.auth.user(request.headers(), client.certificate.as_deref()).await?;
        self.auth.may_read_logs(user, namespace, name).await?;
        let unknown = || InvokeError::NotFound { namespace: namespace.to_owned(), name: format!("logs of {name}") };
        let class = self.logs.get().ok_or_else(unknown)?;
        Ok(super::logs::answer(class.as_ref(), namespace, name, request.uri().query().unwrap_or_default()).await)
    }

    /// Serves HTTP, or HTTPS where there is an acceptor, until `stop`.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: Option<TlsAcceptor>, stop: CancellationToken) {
        let connections = Arc::clone(&self.connections);
        door::serve(self, connections, listener, tls, stop).await;
    }
}

impl Behind for Gateway {
    async fn answer(&self, request: Request<Incoming>, client: Client) -> Response<Body> {
        self.respond(request, client).await
    }
}

/// The body of a call that is queued.
pub(super) async fn gather(body: Incoming) -> Result<Bytes, InvokeError> {
    let whole = Limited::new(body, QUEUED).collect();
    match tokio::time::timeout(QUEUED_TIME, whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(InvokeError::TooLarge { limit: QUEUED as u64 }),
        Ok(Err(e)) => Err(InvokeError::BadRequest(e.to_string())),
        Err(_) => Err(InvokeError::BadRequest("the body did not come in time".into())),
    }
}

/// Makes a client's headers those of the gateway's own request.
fn head(headers: &mut HeaderMap, host: &str, client: &Client, upgrade: Option<&HeaderValue>, id: &str) {
    strip(headers);
    if let Some(protocol) = upgrade {
        headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(http::header::UPGRADE, protocol.clone());
    }
    // What clients say about themselves is not believed: anyone can write it.
    if let Ok(address) = HeaderValue::try_from(client.address.to_string()) {
        headers.insert(FORWARDED_FOR, address);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if client.secure { "https" } else { "http" }));
    if let Ok(host) = HeaderValue::try_from(host) {
        headers.insert(FORWARDED_HOST, host.clone());
        headers.entry(HOST).or_insert(host);
    }
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert(REQUEST_ID, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let function = |name: &str, path: &str, queue| Target::Function {
            namespace: "ns".into(),
            name: name.into(),
            tag: None,
            path: path.into(),
            queue,
        };
        for (path, query, want) in [
            ("/function/ns/f", None, function("f", "/", false)),
            ("/function/ns/f/", Some("a=1"), function("f", "/?a=1", false)),
            ("/function/ns/f/a/b//c", None, function("f", "/a/b//c", false)),
            ("/async/ns/f/a", None, function("f", "/a", true)),
            ("/result/ns/17", None, Target::Result { namespace: "ns".into(), id: "17".into() }),
            ("/result/ns/17/x", None, Target::Nothing),
            ("/logs/ns/f", Some("tail=1"), Target::Logs { namespace: "ns".into(), name: "f".into() }),
            ("/logs/ns", None, Target::Nothing),
            ("/function/ns", None, Target::Nothing),
            ("/function//f", None, Target::Nothing),
            ("/metrics", None, Target::Metrics),
            ("/events/ns", None, Target::Events { namespace: "ns".into() }),
            ("/events/ns/more", None, Target::Nothing),
            ("/", None, Target::Nothing),
        ] {
            assert_eq!(by_path(path, query), want, "{path}");
        }
    }

    #[test]
    fn ids_of_clients_are_kept_when_they_can_be_written() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static("a-1"));
        assert_eq!(request_id(&headers), "a-1");
        for bad in ["", "a b", &"x".repeat(129)] {
            headers.insert(REQUEST_ID, HeaderValue::from_str(bad).unwrap());
            assert_ne!(request_id(&headers), bad);
        }
    }
}
