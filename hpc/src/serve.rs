//! The door: what jobs print and what they made, over HTTPS, for who may read it; and a push when jobs end.
//!
//! - `GET /hpc/NAMESPACE/JOB/logs?stream=stdout|stderr&task=N&offset=N&tail=LINES&follow=true` (right: get `gpujobs/log`)
//! - `GET /hpc/NAMESPACE/JOB/script`: the script of the last attempt, as it is submitted (right: get `gpujobs/log`)
//! - `GET /hpc/NAMESPACE/JOB/files`: the list, as JSON; `…/files/PATH`: one, with ranges and its digest as ETag
//!   (right: get `gpujobs/files`)
//! - `POST /hpc/CLUSTER/done` with the token of the cluster's `hookSecret`: an epilog says that some job ended.

use std::io::SeekFrom;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use http::header::{
    ACCEPT_RANGES, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RANGE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde_json::json;
use sha2::{Digest, Sha256};
use skiff_faas::gateway::auth::{Auth, Right};
use skiff_faas::gateway::call::whole;
use skiff_faas::gateway::door::{self, Behind};
use skiff_faas::gateway::invoke::InvokeError;
use skiff_faas::gateway::link::{Body, BoxError};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use crate::api::{GpuJob, Phase};
use crate::clusters::Clusters;
use crate::controller::{Controller, log_files};
use crate::driver::{Files, SlurmError};
use crate::link::Link;
use crate::script::{Plan, script};
use crate::store::{Store, Stored};

/// Clients' connections at a time: each follower of a log holds one.
const CONNECTIONS: usize = 1024;
/// Followers of logs at a time.
const FOLLOWERS: usize = 128;
/// Bytes that are read of a log at a time.
const PIECE: u64 = 1 << 20;
/// Bytes in which the last lines are looked for.
const TAIL: u64 = 4 << 20;
/// Between looks for more of a log.
const LOOK: Duration = Duration::from_secs(1);
/// Longest token of a hook.
const TOKEN: usize = 4096;

const LOG: Right = Right { verb: "get", resource: "gpujobs", subresource: Some("log") };
const FILES: Right = Right { verb: "get", resource: "gpujobs", subresource: Some("files") };

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("there is no {0}")]
    NotFound(String),
    #[error("the request is not valid: {0}")]
    Bad(String),
    #[error("{0}")]
    Unauthorized(String),
    #[error("{0} may not read this")]
    Forbidden(String),
    #[error("too many follow logs")]
    Busy,
    #[error("the cluster of the job {0}")]
    Slurm(#[from] SlurmError),
    #[error("the store of results: {0}")]
    Disk(#[from] std::io::Error),
    #[error("{0}")]
    Unavailable(String),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Bad(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::Slurm(_) => StatusCode::BAD_GATEWAY,
            Self::Disk(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn response(&self) -> Response<Body> {
        let reason = self.status().canonical_reason().unwrap_or_default().replace(' ', "");
        let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
            "message": self.to_string(), "code": self.status().as_u16()});
        let mut r = Response::new(whole(format!("{body}\n")));
        *r.status_mut() = self.status();
        r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        r
    }
}

impl From<InvokeError> for Refusal {
    fn from(e: InvokeError) -> Self {
        match e {
            InvokeError::Unauthorized(why) => Self::Unauthorized(why),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// What is behind the door.
pub struct Door {
    controller: Arc<Controller>,
    clusters: Arc<Clusters>,
    store: Store,
    auth: Auth,
    connections: Arc<Semaphore>,
    followers: Arc<Semaphore>,
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Logs(String, String),
    Script(String, String),
    List(String, String),
    File(String, String, String),
    Done(String),
    Health,
    Nothing,
}

fn target(method: &Method, path: &str) -> Target {
    let decoded = |s: &str| percent_decode_str(s).decode_utf8().ok().map(std::borrow::Cow::into_owned);
    let parts: Option<Vec<String>> = path.trim_start_matches('/').splitn(5, '/').map(decoded).collect();
    let Some(parts) = parts else { return Target::Nothing };
    let words: Vec<&str> = parts.iter().map(String::as_str).collect();
    let own = |s: &str| s.to_owned();
    match (method.as_str(), &words[..]) {
        ("POST", ["hpc", cluster, "done"]) => Target::Done(own(cluster)),
        ("GET" | "HEAD", ["hpc", ns, name, "logs"]) => Target::Logs(own(ns), own(name)),
        ("GET" | "HEAD", ["hpc", ns, name, "script"]) => Target::Script(own(ns), own(name)),
        ("GET" | "HEAD", ["hpc", ns, name, "files"] | ["hpc", ns, name, "files", ""]) => {
            Target::List(own(ns), own(name))
        }
        ("GET" | "HEAD", ["hpc", ns, name, "files", path]) => Target::File(own(ns), own(name), own(path)),
        ("GET", ["healthz"]) => Target::Health,
        _ => Target::Nothing,
    }
}

/// What is asked of a log.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    log: String,
    offset: u64,
    tail: Option<u64>,
    follow: bool,
}

impl Wanted {
    fn of(query: &str) -> Result<Self, Refusal> {
        let (mut stream, mut task, mut wanted) = ("stdout", None, Self::default());
        for (name, value) in query.split('&').filter_map(|p| p.split_once('=')) {
            let number = || value.parse::<u64>().map_err(|_| Refusal::Bad(format!("{name}={value} is no number")));
            match name {
                "stream" if matches!(value, "stdout" | "stderr") => stream = value,
                "stream" => return Err(Refusal::Bad("stream is stdout or stderr".into())),
                "task" if !value.is_empty() => task = Some(number()?),
                "offset" => wanted.offset = number()?,
                "tail" => wanted.tail = Some(number()?),
                "follow" => wanted.follow = matches!(value, "true" | "1"),
                _ => {}
            }
        }
        wanted.log = task.map_or_else(|| stream.to_owned(), |t| format!("{stream}.{t}"));
        Ok(wanted)
    }
}

/// The bytes of a file that a Range header asks for: first and last. `None`: all of it; an error: none.
fn range(headers: &HeaderMap, size: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some(text) = headers.get(RANGE).and_then(|v| v.to_str().ok()) else { return Ok(None) };
    // Several ranges, and what is no range of bytes, may be answered with the whole.
    let Some((first, last)) = text.strip_prefix("bytes=").filter(|t| !t.contains(',')).and_then(|t| t.split_once('-'))
    else {
        return Ok(None);
    };
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(a), _) if a >= size => Err(()),
        (Ok(a), Ok(b)) if b >= a => Ok(Some((a, b.min(size - 1)))),
        (Ok(a), Err(_)) if last.is_empty() => Ok(Some((a, size - 1))),
        (Err(_), Ok(n)) if first.is_empty() && n > 0 && size > 0 => Ok(Some((size.saturating_sub(n), size - 1))),
        (Err(_), Ok(_)) if first.is_empty() => Err(()),
        _ => Ok(None),
    }
}

/// Where the last lines of some text begin.
fn last_lines(text: &[u8], lines: u64) -> u64 {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut breaks = body.iter().enumerate().rev().filter(|(_, b)| **b == b'\n').map(|(i, _)| i as u64 + 1);
    match lines {
        0 => text.len() as u64,
        n => breaks.nth(usize::try_from(n - 1).unwrap_or(usize::MAX)).unwrap_or(0),
    }
}

fn streamed(pieces: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Body {
    BodyExt::boxed_unsync(StreamBody::new(pieces.map(|p| p.map(Frame::data))))
}

impl Door {
    /// A door to these jobs. `client` is asked who may what.
    #[must_use]
    pub fn new(client: kube::Client, controller: Arc<Controller>, clusters: Arc<Clusters>, store: Store) -> Self {
        let (connections, followers) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(FOLLOWERS)));
        Self { controller, clusters, store, auth: Auth::new(client), connections, followers }
    }

    /// Serves until `stop`.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: Option<TlsAcceptor>, stop: CancellationToken) {
        let connections = Arc::clone(&self.connections);
        door::serve(self, connections, listener, tls, stop).await;
    }

    fn job(&self, namespace: &str, name: &str) -> Result<Arc<GpuJob>, Refusal> {
        let job = self.controller.jobs.get(&format!("{namespace}/{name}"));
        job.ok_or_else(|| Refusal::NotFound(format!("job {namespace}/{name}")))
    }

    async fn handle(&self, request: Request<Incoming>, client: &door::Client) -> Result<Response<Body>, Refusal> {
        let headers = request.headers();
        let target = target(request.method(), request.uri().path());
        let (namespace, name, right) = match &target {
            Target::Logs(ns, name) | Target::Script(ns, name) => (ns, name, LOG),
            Target::List(ns, name) | Target::File(ns, name, _) => (ns, name, FILES),
            Target::Done(cluster) => return self.done(cluster, headers).await,
            Target::Health => return Ok(Response::new(whole("ok\n"))),
            Target::Nothing => return Err(Refusal::NotFound(format!("path {}", request.uri().path()))),
        };
        let user = self.auth.user(headers, client.certificate.as_deref()).await?;
        let who = user.name.clone();
        // Who may not read a job does not learn whether it is there.
        if !self.auth.may(user, right, namespace, name).await? {
            return Err(Refusal::Forbidden(who));
        }
        let job = self.job(namespace, name)?;
        match &target {
            Target::Logs(..) => self.logs(job, Wanted::of(request.uri().query().unwrap_or_default())?).await,
            Target::Script(..) => self.script(&job),
            Target::File(_, _, path) => self.file(&job, path, headers).await,
            _ => self.list(&job).await,
        }
    }

    /// An epilog says that a job ended: Slurm is asked at once.
    async fn done(&self, cluster: &str, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
        let unknown = || Refusal::NotFound(format!("door for cluster {cluster}"));
        let link = self.clusters.link(cluster).ok_or_else(unknown)?;
        let reference = link.spec.hook_secret.as_ref().ok_or_else(unknown)?;
        let shown = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
        let shown = shown.filter(|t| t.len() <= TOKEN).unwrap_or_default();
        let known = self.clusters.secret(reference).await?.remove("token").unwrap_or_default();
        let known = String::from_utf8_lossy(&known).trim().to_owned();
        // Digests of one length: how long it takes says nothing about how much was right.
        if known.is_empty() || Sha256::digest(shown.as_bytes()) != Sha256::digest(known.as_bytes()) {
            return Err(Refusal::Unauthorized("the token is not the one of the cluster's hookSecret".into()));
        }
        link.push();
        crate::metrics::pushed(cluster);
        let mut r = Response::new(whole("ok\n"));
        *r.status_mut() = StatusCode::ACCEPTED;
        Ok(r)
    }

    fn link(&self, job: &GpuJob) -> Option<Arc<Link>> {
        self.clusters.link(job.status.as_ref()?.cluster.as_deref()?)
    }

    fn script(&self, job: &GpuJob) -> Result<Response<Body>, Refusal> {
        let status = job.status.clone().unwrap_or_default();
        let link = self.link(job).ok_or_else(|| Refusal::NotFound("cluster of this job".into()))?;
        let (namespace, name) = (job.metadata.namespace.clone(), job.metadata.name.clone());
        let object = format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default());
        let attempt = status.attempt.max(1);
        let plan = Plan {
            spec: &job.spec,
            cluster: &link.spec,
            name: &crate::script::name(job.metadata.uid.as_deref().unwrap_or_default(), attempt),
            object: &object,
            directory: status.directory.as_deref(),
            attempt,
            dependencies: &[],
            secrets: job.spec.env.iter().any(|v| v.value_from.is_some()),
        };
        let made = script(&plan).map_err(|e| Refusal::Bad(e.to_string()))?;
        let mut r = Response::new(whole(made.text));
        r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        Ok(r)
    }

    async fn list(&self, job: &GpuJob) -> Result<Response<Body>, Refusal> {
        let index = self.store.index(job.metadata.uid.as_deref().unwrap_or_default()).await?;
        let entry = |(path, s): (&String, &Stored)| json!({"path": path, "size": s.size, "sha256": s.sha256, "modified": s.modified});
        let files: Vec<_> = index.files.iter().map(entry).collect();
        let logs: Vec<_> = index.logs.iter().map(entry).collect();
        let state = job.status.as_ref().and_then(|s| s.outputs.as_ref()).map(|o| o.state);
        let body = json!({"files": files, "logs": logs, "leftOut": index.left_out, "state": state});
        let mut r = Response::new(whole(format!("{body}\n")));
        r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(r)
    }

    async fn file(&self, job: &GpuJob, path: &str, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
        let uid = job.metadata.uid.as_deref().unwrap_or_default();
        let index = self.store.index(uid).await?;
        let stored = index.files.get(path).ok_or_else(|| Refusal::NotFound(format!("file {path}")))?;
        let mut r = Response::new(whole(Bytes::new()));
        let tag = format!("\"{}\"", stored.sha256);
        let put = |h: &mut HeaderMap, name, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                h.insert(name, value);
            }
        };
        put(r.headers_mut(), ETAG, &tag);
        put(r.headers_mut(), ACCEPT_RANGES, "bytes");
        // What people's programs wrote is never a page of this server.
        put(r.headers_mut(), CONTENT_TYPE, "application/octet-stream");
        put(r.headers_mut(), http::header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        if headers
            .get(IF_NONE_MATCH)
            .and_then(|v| v.to_str().ok())
            .is_some_and(|v| v.split(',').any(|t| t.trim() == tag))
        {
            *r.status_mut() = StatusCode::NOT_MODIFIED;
            return Ok(r);
        }
        let (first, count) = match range(headers, stored.size) {
            Err(()) => {
                *r.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
                put(r.headers_mut(), CONTENT_RANGE, &format!("bytes */{}", stored.size));
                return Ok(r);
            }
            Ok(None) => (0, stored.size),
            Ok(Some((first, last))) => {
                *r.status_mut() = StatusCode::PARTIAL_CONTENT;
                put(r.headers_mut(), CONTENT_RANGE, &format!("bytes {first}-{last}/{}", stored.size));
                (first, last + 1 - first)
            }
        };
        put(r.headers_mut(), CONTENT_LENGTH, &count.to_string());
        *r.body_mut() = self.read_stored(uid, stored, first, count).await?;
        Ok(r)
    }

    async fn read_stored(&self, uid: &str, stored: &Stored, first: u64, count: u64) -> Result<Body, Refusal> {
        let mut file = self.store.open(uid, stored).await?;
        file.seek(SeekFrom::Start(first)).await?;
        Ok(streamed(ReaderStream::with_capacity(file.take(count), 1 << 16).map(|p| p.map_err(Into::into))))
    }

    async fn logs(&self, job: Arc<GpuJob>, wanted: Wanted) -> Result<Response<Body>, Refusal> {
        let uid = job.metadata.uid.clone().unwrap_or_default();
        let status = job.status.clone().unwrap_or_default();
        let text = |body: Body| {
            let mut r = Response::new(body);
            r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            r
        };
        if status.phase.is_some_and(Phase::ended) {
            let index = self.store.index(&uid).await?;
            let Some(stored) = index.logs.get(&wanted.log) else {
                let known = index.logs.keys().cloned().collect::<Vec<_>>().join(", ");
                if index.logs.is_empty() || wanted.log == "stderr" {
                    return Ok(text(whole(Bytes::new())));
                }
                return Err(Refusal::NotFound(format!("log {}; there are {known}", wanted.log)));
            };
            let first = match wanted.tail {
                Some(lines) => {
                    let from = stored.size.saturating_sub(TAIL);
                    let mut file = self.store.open(&uid, stored).await?;
                    file.seek(SeekFrom::Start(from)).await?;
                    let mut end = vec![];
                    file.take(TAIL).read_to_end(&mut end).await?;
                    from + last_lines(&end, lines)
                }
                None => wanted.offset.min(stored.size),
            };
            return Ok(text(self.read_stored(&uid, stored, first, stored.size - first).await?));
        }
        let permit = match wanted.follow {
            true => Some(Arc::clone(&self.followers).try_acquire_owned().map_err(|_| Refusal::Busy)?),
            false => None,
        };
        let follower = Follower {
            controller: Arc::clone(&self.controller),
            clusters: Arc::clone(&self.clusters),
            key: format!(
                "{}/{}",
                job.metadata.namespace.as_deref().unwrap_or_default(),
                job.metadata.name.as_deref().unwrap_or_default()
            ),
            uid,
            path: None,
            wanted,
            done: false,
            _permit: permit,
        };
        Ok(text(streamed(stream::unfold(follower, Follower::next))))
    }
}

/// Somebody who reads a log that still grows.
struct Follower {
    controller: Arc<Controller>,
    clusters: Arc<Clusters>,
    key: String,
    uid: String,
    path: Option<String>,
    wanted: Wanted,
    done: bool,
    _permit: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl Follower {
    /// The job as it is now; nothing when it is gone or another.
    fn job(&self) -> Option<Arc<GpuJob>> {
        self.controller.jobs.get(&self.key).filter(|j| j.metadata.uid.as_deref() == Some(&self.uid))
    }

    /// Where the log is, once Slurm has the job.
    fn place(&self, job: &GpuJob) -> Option<(Arc<dyn Files>, String)> {
        let status = job.status.as_ref()?;
        let link = self.clusters.link(status.cluster.as_deref()?)?;
        let identity = status.identity.as_ref()?;
        let directory = status.directory.as_deref();
        let all = log_files(&job.spec, &link, directory, &identity.name, status.attempt, identity.job_id);
        let path = all.into_iter().find(|(name, _)| *name == self.wanted.log)?.1;
        Some((link.files()?, path))
    }

    /// The next piece; waits for it while the log may grow.
    async fn next(mut self) -> Option<(Result<Bytes, BoxError>, Self)> {
        if self.done {
            return None;
        }
        loop {
            let job = self.job()?;
            // Asked first: what is written between the question and the reading is read.
            let ended = job.status.as_ref().and_then(|s| s.phase).is_some_and(|p| p.ended() || p == Phase::Finishing);
            if let Some((files, path)) = self.place(&job) {
                // Another attempt has another file.
                if self.path.as_ref() != Some(&path) {
                    if self.path.is_some() {
                        self.wanted.offset = 0;
                    }
                    self.path = Some(path.clone());
                    if let Some(lines) = self.wanted.tail.take()
                        && let Ok(stats) = files.stat(std::slice::from_ref(&path), 0).await
                    {
                        let size = stats.into_iter().flatten().next().map_or(0, |s| s.size);
                        let from = size.saturating_sub(TAIL);
                        let end = files.read(&path, from, TAIL).await.unwrap_or_default();
                        self.wanted.offset = from + last_lines(&end, lines);
                    }
                }
                match files.read(&path, self.wanted.offset, PIECE).await {
                    Ok(piece) if !piece.is_empty() => {
                        self.wanted.offset += piece.len() as u64;
                        return Some((Ok(piece), self));
                    }
                    Ok(_) => {}
                    Err(error) if !self.wanted.follow => {
                        self.done = true;
                        return Some((Err(error.into()), self));
                    }
                    // The cluster does not answer for a while: who follows waits.
                    Err(_) => {}
                }
            }
            if ended || !self.wanted.follow {
                return None;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Behind for Door {
    async fn answer(&self, request: Request<Incoming>, client: door::Client) -> Response<Body> {
        let head = request.method() == Method::HEAD;
        let mut response = match self.handle(request, &client).await {
            Ok(response) => response,
            Err(refusal) => refusal.response(),
        };
        if head {
            *response.body_mut() = whole(Bytes::new());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let of = |method: Method, path: &str| target(&method, path);
        let own = |s: &str| s.to_owned();
        assert_eq!(of(Method::GET, "/hpc/ns/j/logs"), Target::Logs(own("ns"), own("j")));
        assert_eq!(of(Method::GET, "/hpc/ns/j/files/"), Target::List(own("ns"), own("j")));
        let file = Target::File(own("ns"), own("j"), own("a b/c"));
        assert_eq!(of(Method::GET, "/hpc/ns/j/files/a%20b/c"), file);
        assert_eq!(of(Method::POST, "/hpc/pi/done"), Target::Done(own("pi")));
        for (method, path) in [
            (Method::POST, "/hpc/ns/j/logs"),
            (Method::GET, "/hpc/pi/done"),
            (Method::GET, "/x"),
            (Method::GET, "/hpc/%ff/j/logs"),
        ] {
            assert_eq!(of(method, path), Target::Nothing, "{path}");
        }
    }

    #[test]
    fn ranges() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, text.parse().unwrap());
            range(&headers, 10)
        };
        let table = [
            ("bytes=0-3", Ok(Some((0, 3)))),
            ("bytes=4-", Ok(Some((4, 9)))),
            ("bytes=4-100", Ok(Some((4, 9)))),
            ("bytes=-3", Ok(Some((7, 9)))),
            ("bytes=-30", Ok(Some((0, 9)))),
            ("bytes=10-", Err(())),
            ("bytes=-0", Err(())),
            ("bytes=0-1,3-4", Ok(None)),
            ("lines=1-2", Ok(None)),
            ("bytes=3-1", Ok(None)),
        ];
        for (text, want) in table {
            assert_eq!(of(text), want, "{text}");
        }
        assert_eq!(range(&HeaderMap::new(), 10), Ok(None));
    }

    #[test]
    fn ends_of_texts() {
        for (text, lines, want) in
            [("a\nb\nc\n", 1, "c\n"), ("a\nb\nc", 2, "b\nc"), ("a\n", 5, "a\n"), ("a\nb", 0, ""), ("", 3, "")]
        {
            assert_eq!(&text[last_lines(text.as_bytes(), lines) as usize..], want, "{text:?} {lines}");
        }
    }

    #[test]
    fn queries() {
        let wanted = Wanted::of("stream=stderr&task=3&offset=5&follow=true").unwrap();
        assert_eq!(wanted, Wanted { log: "stderr.3".into(), offset: 5, tail: None, follow: true });
        assert_eq!(Wanted::of("").unwrap().log, "stdout");
        for bad in ["stream=x", "task=x", "offset=-1"] {
            assert!(matches!(Wanted::of(bad), Err(Refusal::Bad(_))), "{bad}");
        }
    }
}
