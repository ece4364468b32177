//! `watch`: changes as they come.
//!
//! A watch without a revision (or from "0") first gets an ADDED event per present object; with `sendInitialEvents` a
//! bookmark marks their end. Events are sent as they are stored; as protobuf they are encoded once; who asks for all of
//! them is sent the same bytes as others who do. A selector turns changes into the changes of the selected set: what enters
//! it is ADDED, what leaves it DELETED with the revision of the change.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use rand::Rng;
use serde_json::{Value, json};
use skiff_core::meta;
use skiff_core::status::Status;
use skiff_storage::cache::{Event, Object, Run, Watcher};
use skiff_storage::store::ChangeKind;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::list::{Selection, parse_revision};
use super::{Answer, Call};
use crate::body::Body;
use crate::metrics::Delays;
use crate::negotiate::{Encoding, Form, View};
use crate::registry::conversion::with_value;
use crate::registry::{FRESH_DEADLINE, Kind, object, storage_error};
use crate::respond;
use crate::server::Inner;

/// How often a quiet watch is told where it stands.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Bytes of ready events that are sent as one piece.
const BATCH: usize = 64 * 1024;
/// About what the frame of an event takes beside its object.
const FRAME: usize = 32;

/// What sending one piece costs a processor, almost all of it in the kernel, whatever the number of events in it.
const PIECE_COST: Duration = Duration::from_micros(16);
/// The same where many watches share a connection: they share records and system calls.
const SHARED_COST: Duration = Duration::from_micros(6);
/// The longest time for which events are gathered.
const PACE_MAX: Duration = Duration::from_millis(8);

/// How long a watcher of so many waits after a piece before it looks for the next events.
///
/// With many watchers of the same objects, a piece for each of them per write would take all processors and delay
/// everything. So events that follow closely share a piece: watching costs at most about one pass over all watchers at a
/// time. An event after a quiet time goes out at once, and few watchers never wait.
fn pace(watchers: usize, cost: Duration) -> Duration {
    static CORES: LazyLock<u32> =
        LazyLock::new(|| std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)));
    let pass = cost * u32::try_from(watchers).unwrap_or(u32::MAX >> 8) / *CORES;
    // The timer counts in milliseconds.
    if pass < Duration::from_millis(1) { Duration::ZERO } else { pass.min(PACE_MAX) }
}

/// Starts a watch.
///
/// # Errors
/// 400, 410, 422 or 504 before the stream begins.
pub async fn watch(server: &Arc<Inner>, kind: &Arc<Kind>, call: &Call, form: Form) -> Result<Answer, Status> {
    let timeout = call.query.number("timeoutSeconds")?;
    call.query.number("limit")?;
    let mut selection = Selection::from_call(kind, call)?;
    let objects = kind.stored()?;
    let name = &call.target.name;
    if !name.is_empty() {
        if selection.fields.exact("metadata.name").is_some_and(|n| n != name) {
            return Err(Status::bad_request("field label not supported with a named watch: metadata.name"));
        }
        selection.fields.terms.push(skiff_core::selector::FieldTerm {
            field: "metadata.name".into(),
            value: name.clone(),
            negated: false,
        });
    }
    let q = |k: &str| call.query.get(k).unwrap_or_default();
    let version = q("resourceVersion");
    let initial_flag = q("sendInitialEvents");
    let deadline = Instant::now() + FRESH_DEADLINE;
    let legacy_initial = matches!(version, "" | "0");
    let send_initial = call.query.flag("sendInitialEvents") || (initial_flag.is_empty() && legacy_initial);
    let revision = if legacy_initial {
        0
    } else {
        parse_revision(version).map_err(|e| Status::bad_request(format!("invalid resource version: {e}")))?
    };
    let scope = objects.scope(&call.target.namespace);
    let mut initial = VecDeque::new();
    let start = if send_initial {
        if revision > 0 {
            objects.cache.fresh(revision, deadline).await.map_err(storage_error)?;
        } else {
            objects.consistent().await?;
        }
        let snapshot = match selection.fields.exact("spec.nodeName") {
            Some(node) => objects.cache.list_by_field(&scope, "spec.nodeName", node),
            None => None,
        }
        .unwrap_or_else(|| objects.cache.list(&scope));
        let selected = snapshot.objects.into_iter().filter(|o| selection.matches(o)).collect();
        initial = kind.present(server, selected).await?.into();
        initial.retain(|o: &Arc<Object>| selection.matches_presented(o));
        snapshot.revision
    } else if revision == 0 {
        objects.consistent().await?
    } else {
        objects.cache.fresh(revision, deadline).await.map_err(storage_error)?;
        revision
    };
    let bookmarks = call.query.flag("allowWatchBookmarks");
    if revision > 0 && start < objects.since {
        let e = skiff_storage::Error::Compacted { requested: start, oldest: objects.since };
        return Ok(failed(&storage_error(e), form));
    }
    let begun = if let Some(name) = selection.fields.exact("metadata.name")
        && (!objects.namespaced || !call.target.namespace.is_empty())
    {
        objects.cache.watch_key(&format!("{scope}{name}"), start)
    } else if let Some(node) = selection.fields.exact("spec.nodeName")
        && kind.strategy.fields().contains(&"spec.nodeName")
    {
        objects.cache.watch_field(&scope, "spec.nodeName", node, start)
    } else {
        objects.cache.watch(&scope, start)
    };
    let watcher = match begun {
        Ok(w) => w,
        // Upstream accepts the watch and ends it with an error event.
        Err(e) => return Ok(failed(&storage_error(e), form)),
    };
    let timeout = match timeout {
        Some(s) if s > 0 => Duration::from_secs(s.unsigned_abs().min(86_400)),
        _ => Duration::from_secs(rand::rng().random_range(1800..3600)),
    };
    let frames = Frames { kind: Arc::clone(kind), form, include: respond::include_object(call)?, headers_sent: false };
    let alike = frames.plain() || frames.is_common();
    let stream = Stream {
        shares: alike && selection.is_everything() && watcher.shares() && !kind.converts(),
        frames,
        server: Arc::clone(server),
        watcher,
        selection,
        initial,
        end_of_initial: send_initial && bookmarks && call.query.flag("sendInitialEvents"),
        start,
        bookmarks,
        bookmark_timer: Box::pin(sleep_until(Instant::now() + BOOKMARK_EVERY)),
        last_sent: start,
        end_timer: Box::pin(sleep_until(Instant::now() + timeout)),
        cost: if call.version == http::Version::HTTP_2 { SHARED_COST } else { PIECE_COST },
        pause: Box::pin(sleep_until(Instant::now())),
        gathers: false,
        shutdown: Box::pin(server.shutdown.clone().cancelled_owned()),
        withdrawn: Box::pin(kind.ended.clone().cancelled_owned()),
        done: false,
        events: server.metrics.watch_events(kind.group(), &kind.resource.version, &kind.resource.kind),
    };
    // Boxed, because it is handed on with every piece.
    let body = futures::stream::unfold(Box::new(stream), |mut s| async move { s.next().await.map(|b| (b, s)) });
    Ok(Answer::Http(open(form, Body::stream(body))))
}

fn open(form: Form, body: Body) -> http::Response<Body> {
    let media = match form.encoding {
        Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => "application/json",
    };
    let mut r = http::Response::new(body);
    r.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(media));
    r
}

/// A stream of one ERROR event.
fn failed(status: &Status, form: Form) -> Answer {
    let frame = error_frame(status, form);
    Answer::Http(open(form, Body::full(frame)))
}

fn error_frame(status: &Status, form: Form) -> Bytes {
    let mut v = status.to_value();
    // In a stream upstream's Status carries no details for an expired version.
    if status.code == 410 {
        v["message"] = status.message.as_str().into();
    }
    if form.encoding == Encoding::Protobuf {
        return respond::proto_watch_frame("ERROR", &v, None);
    }
    json_frame("ERROR", v.to_string().as_bytes())
}

fn json_frame(event: &str, object: &[u8]) -> Bytes {
    let mut b = BytesMut::new();
    put_json_frame(&mut b, event, object);
    b.freeze()
}

fn put_json_frame(out: &mut BytesMut, event: &str, object: &[u8]) {
    out.reserve(object.len() + event.len() + 24);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(event.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
}

/// Encodes events in the form the client asked for.
struct Frames {
    kind: Arc<Kind>,
    form: Form,
    include: respond::Include,
    headers_sent: bool,
}

impl Frames {
    fn plain(&self) -> bool {
        self.form.encoding == Encoding::Json && self.form.view == View::Object && self.kind.verbatim()
    }

    /// Whether frames are those of every watcher that asks for protobuf.
    fn is_common(&self) -> bool {
        self.form.encoding == Encoding::Protobuf && self.form.view == View::Object && self.kind.is_storage_version()
    }

    fn object(&mut self, event: &str, bytes: &Bytes) -> Option<Bytes> {
        if self.plain() {
            return Some(json_frame(event, bytes));
        }
        if self.form.view == View::MetadataList {
            // One object is no list: upstream drops the event.
            return None;
        }
        let value = self.kind.load_bytes(bytes).ok()?;
        Some(self.value(event, value))
    }

    fn value(&mut self, event: &str, value: Value) -> Bytes {
        let shown = match self.form.view {
            View::Object => value,
            View::Metadata | View::MetadataList => respond::partial(&value),
            View::Table(v1) => {
                let mut t = respond::table(&self.kind, std::slice::from_ref(&value), &json!({}), v1, self.include);
                t["metadata"]["resourceVersion"] = meta::text(&value, "resourceVersion").into();
                if self.headers_sent {
                    t["columnDefinitions"] = Value::Null;
                }
                self.headers_sent = true;
                t
            }
        };
        if self.form.encoding == Encoding::Protobuf {
            let model = matches!(self.form.view, View::Object).then(|| self.kind.resource.model.clone());
            return respond::proto_watch_frame(event, &shown, model.as_ref());
        }
        json_frame(event, shown.to_string().as_bytes())
    }

    fn bookmark(&mut self, revision: u64, end_of_initial: bool) -> Bytes {
        let r = &self.kind.resource;
        let mut m = json!({"resourceVersion": revision.to_string()});
        if end_of_initial {
            m["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let mut v = json!({"kind": r.kind, "apiVersion": r.group_version(), "metadata": m});
        if self.form.view == View::Object && !self.kind.strategy.traits().untyped {
            // A typed object has its non-optional parts even when empty, as clients' decoders expect.
            let mut faults = skiff_core::codec::Faults::default();
            drop(self.kind.normalize(&mut v, &mut faults));
        }
        if let View::Table(v1) = self.form.view {
            let version = if v1 { "meta.k8s.io/v1" } else { "meta.k8s.io/v1beta1" };
            let partial = json!({"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": m});
            let row = json!({"cells": [], "object": partial});
            let columns = if self.headers_sent { Value::Null } else { respond::columns(&self.kind).into() };
            self.headers_sent = true;
            let t = json!({"kind": "Table", "apiVersion": version,
                "metadata": {"resourceVersion": revision.to_string()}, "columnDefinitions": columns, "rows": [row]});
            return json_frame("BOOKMARK", t.to_string().as_bytes());
        }
        if matches!(self.form.view, View::Metadata | View::MetadataList) {
            v = respond::partial(&v);
        }
        if self.form.encoding == Encoding::Protobuf {
            let model = matches!(self.form.view, View::Object).then(|| r.model.clone());
            return respond::proto_watch_frame("BOOKMARK", &v, model.as_ref());
        }
        json_frame("BOOKMARK", v.to_string().as_bytes())
    }
}

struct Stream {
    frames: Frames,
    server: Arc<Inner>,
    watcher: Watcher,
    /// Whether what is sent is what every watcher that shares is sent.
    shares: bool,
    selection: Selection,
    initial: VecDeque<Arc<Object>>,
    end_of_initial: bool,
    start: u64,
    bookmarks: bool,
    // Timers and the like live as long as the watch: making them anew for every event costs more than the event.
    bookmark_timer: Pin<Box<Sleep>>,
    last_sent: u64,
    end_timer: Pin<Box<Sleep>>,
    /// What a piece costs.
    cost: Duration,
    /// Until when events are gathered, see [`pace`], where they are.
    pause: Pin<Box<Sleep>>,
    gathers: bool,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Ends when the kind is served no more.
    withdrawn: Pin<Box<WaitForCancellationFutureOwned>>,
    done: bool,
    /// Counts what is sent.
    events: Arc<AtomicU64>,
}

/// What a watcher has for its stream.
enum Got {
    One(Option<Result<Arc<Event>, skiff_storage::Error>>),
    Run(Arc<Run>),
}

async fn more(watcher: &mut Watcher, runs: bool) -> Got {
    if !runs {
        return Got::One(watcher.next().await);
    }
    match watcher.next_run().await {
        Some(Ok(run)) => Got::Run(run),
        Some(Err(e)) => Got::One(Some(Err(e))),
        None => Got::One(None),
    }
}

impl Stream {
    /// The next piece of the body; `None` ends the watch.
    async fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut out = BytesMut::new();
        while let Some(o) = self.initial.pop_front() {
            if let Some(f) = self.frames.object("ADDED", &o.value) {
                if out.is_empty() && f.len() >= BATCH {
                    return Some(f);
                }
                out.put_slice(&f);
            }
            if out.len() >= BATCH {
                return Some(out.freeze());
            }
        }
        if self.end_of_initial {
            self.end_of_initial = false;
            out.put_slice(&self.frames.bookmark(self.start, true));
        }
        if !out.is_empty() {
            return Some(out.freeze());
        }
        if self.gathers {
            self.pause.as_mut().await;
            self.gathers = false;
        }
        loop {
            let event = tokio::select! {
                biased;
                got = more(&mut self.watcher, self.shares) => match got {
                    Got::One(event) => event,
                    Got::Run(run) => {
                        if let Some(piece) = self.piece(&run) {
                            return Some(piece);
                        }
                        continue;
                    }
                },
                () = self.bookmark_timer.as_mut(), if self.bookmarks => {
                    self.bookmark_timer.as_mut().reset(Instant::now() + BOOKMARK_EVERY);
                    if let Some(b) = self.progress() { return Some(b) }
                    continue;
                }
                () = self.end_timer.as_mut() => {
                    self.done = true;
                    return if self.bookmarks { self.progress() } else { None };
                }
                () = self.shutdown.as_mut() => return None,
                () = self.withdrawn.as_mut() => {
                    self.done = true;
                    return None;
                }
            };
            let mut delays = Delays::begin();
            let mut next = Some(event);
            while let Some(event) = next {
                match event {
                    None => {
                        self.done = true;
                        return (!out.is_empty()).then(|| out.freeze());
                    }
                    Some(Err(e)) => {
                        self.done = true;
                        out.put_slice(&error_frame(&storage_error(e), self.frames.form));
                        return Some(out.freeze());
                    }
                    Some(Ok(e)) if self.frames.kind.converts() => match self.converted(&e, &mut out).await {
                        Ok(true) => self.last_sent = e.revision,
                        Ok(false) => {}
                        Err(s) => {
                            self.done = true;
                            out.put_slice(&error_frame(&s, self.frames.form));
                            return Some(out.freeze());
                        }
                    },
                    Some(Ok(e)) => {
                        if self.event(&e, &mut out) {
                            self.last_sent = e.revision;
                            delays.add(e.made);
                        }
                    }
                }
                next = if out.len() < BATCH { self.watcher.try_next().map(Some) } else { None };
            }
            if !out.is_empty() {
                self.sent(&delays);
                return Some(out.freeze());
            }
        }
    }

    /// Events as every watcher that shares is sent them; none when none of them can be shown.
    fn piece(&mut self, run: &Run) -> Option<Bytes> {
        let piece = run.bytes(self.frames.is_common(), |events| {
            let mut out = BytesMut::with_capacity(events.iter().map(|e| e.object.value.len() + FRAME).sum());
            for e in events {
                self.event(e, &mut out);
            }
            out.freeze()
        });
        let mut delays = Delays::begin();
        for e in run.events() {
            self.last_sent = e.revision;
            delays.add(e.made);
        }
        if piece.is_empty() {
            return None;
        }
        self.sent(&delays);
        Some(piece)
    }

    /// Counts what is sent now, and has the next events gathered.
    fn sent(&mut self, delays: &Delays) {
        self.server.metrics.watch_delays.join(delays);
        self.events.fetch_add(delays.events(), Ordering::Relaxed);
        let pace = pace(self.watcher.company(), self.cost);
        self.gathers = !pace.is_zero();
        if self.gathers {
            self.pause.as_mut().reset(Instant::now() + pace);
        }
    }

    fn progress(&mut self) -> Option<Bytes> {
        let revision = self.watcher.bookmark()?;
        (revision >= self.last_sent).then(|| self.frames.bookmark(revision, false))
    }

    /// A change as this watcher sees it, if it does: what happened, and to which bytes. The objects are those of the event,
    /// or what they are in the request's version.
    fn seen(&self, e: &Event, object: &Object, previous: Option<&Object>) -> Option<(&'static str, Bytes)> {
        let all = self.selection.is_everything();
        let chosen = |o: &Object| all || (self.selection.matches(o) && self.selection.matches_presented(o));
        let now = e.kind != ChangeKind::Deleted && chosen(object);
        let before = if e.kind == ChangeKind::Deleted { chosen(object) } else { previous.is_some_and(chosen) };
        Some(match (before, now) {
            (false, false) => return None,
            (false, true) => ("ADDED", object.value.clone()),
            (true, true) => ("MODIFIED", object.value.clone()),
            (true, false) => {
                // The last state this watcher knew, at the revision of the change.
                let last = if e.kind == ChangeKind::Deleted { object } else { previous.unwrap_or(object) };
                ("DELETED", object::restamp(&last.value, e.revision))
            }
        })
    }

    /// Like [`Stream::event`], of a kind whose objects a webhook converts.
    async fn converted(&mut self, e: &Event, out: &mut BytesMut) -> Result<bool, Status> {
        let kind = Arc::clone(&self.frames.kind);
        let frame = if self.selection.asks_converted() {
            let both = std::iter::once(&e.object).chain(e.previous.as_ref()).cloned().collect();
            let both = kind.present(&self.server, both).await?;
            let Some(object) = both.first() else { return Ok(false) };
            let seen = self.seen(e, object, both.get(1).map(Arc::as_ref));
            seen.and_then(|(name, bytes)| self.frames.object(name, &bytes))
        } else {
            let Some((name, bytes)) = self.seen(e, &e.object, e.previous.as_deref()) else { return Ok(false) };
            let object = with_value(&e.object, bytes);
            let object = kind.present(&self.server, vec![Arc::new(object)]).await?;
            object.first().and_then(|o| self.frames.object(name, &o.value))
        };
        let Some(frame) = frame else { return Ok(false) };
        out.put_slice(&frame);
        Ok(true)
    }

    /// Writes one change as this watcher sees it, if it does.
    fn event(&mut self, e: &Event, out: &mut BytesMut) -> bool {
        let Some((name, bytes)) = self.seen(e, &e.object, e.previous.as_deref()) else { return false };
        let all = self.selection.is_everything();
        if self.frames.plain() {
            // The stored bytes are the frame but for its ends: nothing to share.
            put_json_frame(out, name, &bytes);
            return true;
        }
        // What the same frame is for everybody is encoded once.
        let shared = all || name == "MODIFIED" || e.kind == ChangeKind::Created;
        let frame = if shared && self.frames.is_common() {
            let mut slot = e.frame.lock();
            if slot.is_none() {
                *slot = self.frames.object(name, &bytes).map(Box::new);
            }
            slot.as_deref().cloned()
        } else {
            self.frames.object(name, &bytes)
        };
        let Some(frame) = frame else { return false };
        out.put_slice(&frame);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_watchers_never_wait_and_many_wait_a_bounded_time() {
        for cost in [PIECE_COST, SHARED_COST] {
            assert_eq!(pace(1, cost), Duration::ZERO);
            assert_eq!(pace(10, cost), Duration::ZERO);
            assert_eq!(pace(usize::MAX, cost), PACE_MAX);
            assert!((1..100_000).step_by(97).is_sorted_by_key(|n| pace(n, cost)));
        }
    }
}
