//! The one watch that feeds all sinks, in the order of the history.
//!
//! It covers every key of the etcd cluster, not only ours: so every revision there is arrives as an event, and
//! [`Progress`] is exact without asking for anything. (etcd 3.4 answers a request for progress before events that it
//! has not sent yet.) A connection that ends is made anew from the revision after the last one heard. When etcd no longer
//! keeps that one, or holds a value that is not ours, the place is lost: sinks are closed and the owner is told.
//!
//! A member that hangs looks like a quiet cluster. So whoever learns of a revision says so ([`Hub::heard_of`]); a stream
//! that does not get there soon is given up for one to another member.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::client::{Client, Fault, Watching};
use super::wire::{self, WatchCreateRequest, WatchResponse};
use super::{Options, Space};
use crate::sinks::Sinks;
use crate::store::{Change, Progress, Revision, Sink};

/// A stream that is silent for this long about a revision that is there is given up.
const SILENCE: Duration = Duration::from_millis(1500);
/// How long a writer waits for its own change to arrive before it is answered all the same.
const ARRIVAL: Duration = Duration::from_secs(1);
/// Pauses between connections.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MOST: Duration = Duration::from_secs(2);

/// What the handle and the task share.
pub(super) struct Hub {
    client: Arc<Client>,
    space: Space,
    bounds: Bounds,
    told: Mutex<Told>,
    pub(super) progress: Arc<Progress>,
    /// The furthest revision anybody knows of.
    heard: Progress,
    /// Whether the stream stands.
    connected: AtomicBool,
    pub(super) failed: watch::Sender<Option<String>>,
    pub(super) ended: watch::Sender<bool>,
}

#[derive(Default)]
struct Told {
    sinks: Sinks,
    /// Keeps the entrances alive that `sinks` knows, as long as somebody is behind them.
    entrances: Vec<Arc<Entrance>>,
    window: VecDeque<Mark>,
}

/// Bounds of what caches keep.
struct Bounds {
    age: Duration,
    changes: usize,
    bytes: usize,
}

/// A stretch of the window.
struct Mark {
    begun: Instant,
    last: Revision,
    changes: usize,
    bytes: usize,
}

/// Changes of one mark at most last this long.
const MARK: Duration = Duration::from_secs(1);

/// Stands for a sink while its snapshot is read, and keeps from it what the snapshot has already.
struct Entrance(Mutex<State>);

enum State {
    Waiting(Vec<Change>),
    Open { sink: Weak<dyn Sink>, after: Revision },
}

/// An entrance that is not open yet.
pub(super) struct Entering<'a> {
    hub: &'a Hub,
    entrance: Arc<Entrance>,
}

impl Entering<'_> {
    /// Lets in the sink that `build` makes, with what came after `after`.
    pub(super) fn open(self, after: Revision, build: impl FnOnce() -> Weak<dyn Sink>) {
        let mut state = self.entrance.0.lock();
        let sink = build();
        if let State::Waiting(waiting) = &mut *state {
            let missed: Vec<_> = std::mem::take(waiting).into_iter().filter(|c| c.revision > after).collect();
            if let (false, Some(sink)) = (missed.is_empty(), sink.upgrade()) {
                sink.apply(&missed);
                sink.wake();
            }
        }
        *state = State::Open { sink, after };
    }
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        if matches!(&*self.entrance.0.lock(), State::Waiting(_)) {
            self.hub.told.lock().entrances.retain(|e| !Arc::ptr_eq(e, &self.entrance));
        }
    }
}

impl Entrance {
    fn sink(&self) -> Option<Arc<dyn Sink>> {
        match &*self.0.lock() {
            State::Waiting(_) => None,
            State::Open { sink, .. } => sink.upgrade(),
        }
    }

    fn abandoned(&self) -> bool {
        matches!(&*self.0.lock(), State::Open { sink, .. } if sink.strong_count() == 0)
    }
}

impl Sink for Entrance {
    fn apply(&self, changes: &[Change]) {
        let mut state = self.0.lock();
        match &mut *state {
            State::Waiting(waiting) => waiting.extend(changes.iter().cloned()),
            State::Open { sink, after } => {
                let known = changes.partition_point(|c| c.revision <= *after);
                if let (Some(sink), false) = (sink.upgrade(), changes[known..].is_empty()) {
                    sink.apply(&changes[known..]);
                }
            }
        }
    }

    fn wake(&self) {
        if let Some(sink) = self.sink() {
            sink.wake();
        }
    }

    fn compacted(&self, revision: Revision) {
        if let Some(sink) = self.sink() {
            sink.compacted(revision);
        }
    }

    fn closed(&self) {
        if let Some(sink) = self.sink() {
            sink.closed();
        }
    }
}

/// Why a stream ended.
enum End {
    /// It can be made again.
    Broken(String),
    /// What is missing cannot be had any more.
    Gap(String),
}

impl Hub {
    pub(super) fn new(client: Arc<Client>, space: Space, options: &Options, revision: Revision) -> Self {
        Self {
            client,
            space,
            bounds: Bounds { age: options.history_age, changes: options.history_changes, bytes: options.history_bytes },
            told: Mutex::default(),
            progress: Arc::new(Progress::new(revision)),
            heard: Progress::new(revision),
            connected: AtomicBool::new(false),
            failed: watch::Sender::new(None),
            ended: watch::Sender::new(false),
        }
    }

    /// Somebody knows that `revision` is there: the stream must get to it.
    pub(super) fn heard_of(&self, revision: Revision) {
        self.heard.advance(revision);
    }

    /// Waits until `revision` has arrived here, as long as that is to be expected. So a writer that goes on reads what it
    /// wrote in the caches of its own process.
    pub(super) async fn arrival(&self, revision: Revision) {
        self.heard_of(revision);
        if self.connected.load(Ordering::Acquire) {
            timeout(ARRIVAL, self.progress.reached(revision)).await.ok();
        }
    }

    /// A place for a sink: from now on nothing under `prefix` is missed. It is given up by dropping it unopened.
    pub(super) fn enter(&self, prefix: &str) -> Entering<'_> {
        let entrance = Arc::new(Entrance(Mutex::new(State::Waiting(Vec::new()))));
        let sink: Arc<dyn Sink> = Arc::<Entrance>::clone(&entrance);
        let mut told = self.told.lock();
        told.entrances.retain(|e| !e.abandoned());
        told.entrances.push(Arc::clone(&entrance));
        told.sinks.add(prefix, Arc::downgrade(&sink));
        Entering { hub: self, entrance }
    }

    /// Sinks forget history up to and including `revision`.
    pub(super) fn forget(&self, revision: Revision) {
        let mut told = self.told.lock();
        while told.window.front().is_some_and(|m| m.last <= revision) {
            told.window.pop_front();
        }
        for sink in told.sinks.each() {
            sink.compacted(revision);
        }
    }

    /// Follows the history until the store closes or the place is lost.
    pub(super) async fn run(self: Arc<Self>) {
        let mut ended = self.ended.subscribe();
        let lost = tokio::select! {
            why = self.follow() => Some(why),
            _ = ended.wait_for(|ended| *ended) => None,
        };
        self.connected.store(false, Ordering::Release);
        if let Some(why) = &lost {
            tracing::error!(%why, "the place in etcd's history is lost");
        }
        let sinks: Vec<_> = self.told.lock().sinks.each().collect();
        for sink in sinks {
            sink.closed();
        }
        if lost.is_some() {
            self.ended.send_replace(true);
            self.failed.send_replace(lost);
        }
    }

    async fn follow(&self) -> String {
        let mut pause = PAUSE;
        loop {
            let at = self.client.current();
            let before = self.progress.revision();
            match self.stream(at).await {
                End::Gap(why) => return why,
                End::Broken(why) => {
                    self.connected.store(false, Ordering::Release);
                    self.client.turn(at);
                    tracing::info!(member = self.client.url(at), %why, "the watch on etcd is made anew");
                }
            }
            if self.progress.revision() > before {
                pause = PAUSE;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MOST);
        }
    }

    async fn stream(&self, at: usize) -> End {
        let create = WatchCreateRequest {
            // Every key there is.
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            start_revision: wire::signed(self.progress.revision() + 1),
            prev_kv: false,
            fragment: true,
        };
        let mut watching = match self.client.watch(at, create).await {
            Ok(watching) => watching,
            Err(fault) => return End::Broken(fault.text()),
        };
        self.connected.store(true, Ordering::Release);
        loop {
            let due = self.told.lock().window.front().map(|m| m.begun + self.bounds.age);
            let aged = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = watching.next() => match message {
                    Ok(message) => if let Err(end) = self.take(message) {
                        return end;
                    },
                    Err(fault) => return End::Broken(fault.text()),
                },
                () = aged => self.trim(Instant::now()),
                () = self.silence() => return End::Broken("the member is silent about what is there".to_owned()),
            }
        }
    }

    /// Ends when somebody has known of a later revision for a while.
    async fn silence(&self) {
        loop {
            self.heard.reached(self.progress.revision() + 1).await;
            sleep(SILENCE).await;
            if self.heard.revision() > self.progress.revision() {
                return;
            }
        }
    }

    fn take(&self, message: WatchResponse) -> Result<(), End> {
        if message.compact_revision > 0 {
            let (at, oldest) = (self.progress.revision(), message.compact_revision);
            return Err(End::Gap(format!("this server is at revision {at}, etcd keeps what came after {oldest}")));
        }
        if message.canceled {
            return Err(End::Broken(message.cancel_reason));
        }
        let applied = self.progress.revision();
        let mut reached = applied;
        let mut changes = Vec::with_capacity(message.events.len());
        for event in message.events {
            let Some(revision) = event.kv.as_ref().map(|kv| wire::unsigned(kv.mod_revision)) else { continue };
            if revision <= applied {
                continue;
            }
            reached = reached.max(revision);
            match self.space.change(event) {
                Ok(Some(change)) => changes.push(change),
                Ok(None) => {}
                Err(why) => return Err(End::Gap(why)),
            }
        }
        let now = Instant::now();
        let told = {
            let mut told = self.told.lock();
            if let Some(last) = changes.last() {
                let bytes = changes.iter().map(|c| c.key().len() + c.entry.value.len()).sum();
                told.mark(now, last.revision, changes.len(), bytes);
            }
            told.sinks.apply(&changes)
        };
        self.trim(now);
        self.progress.advance(reached);
        for sink in told {
            sink.wake();
        }
        Ok(())
    }

    /// Lets sinks forget what is beyond the bounds.
    fn trim(&self, now: Instant) {
        let mut told = self.told.lock();
        let Told { window, sinks, .. } = &mut *told;
        let (mut changes, mut bytes) =
            window.iter().fold((0, 0), |(changes, bytes), m| (changes + m.changes, bytes + m.bytes));
        let mut forget = None;
        while let Some(first) = window.front() {
            let old = now.duration_since(first.begun) >= self.bounds.age;
            if !old && changes <= self.bounds.changes && bytes <= self.bounds.bytes {
                break;
            }
            changes -= first.changes;
            bytes -= first.bytes;
            forget = Some(first.last);
            window.pop_front();
        }
        if let Some(revision) = forget {
            for sink in sinks.each() {
                sink.compacted(revision);
            }
        }
    }
}

impl Told {
    fn mark(&mut self, now: Instant, last: Revision, changes: usize, bytes: usize) {
        match self.window.back_mut().filter(|m| now.duration_since(m.begun) < MARK) {
            Some(mark) => {
                mark.last = last;
                mark.changes += changes;
                mark.bytes += bytes;
            }
            None => self.window.push_back(Mark { begun: now, last, changes, bytes }),
        }
    }
}

/// Begins a watch on whichever member takes it.
pub(super) async fn begin(client: &Client, create: WatchCreateRequest) -> Result<Watching, Fault> {
    let mut patience = client.patience();
    loop {
        match client.watch(client.current(), create.clone()).await {
            Ok(watching) => return Ok(watching),
            Err(Fault::Refused(why)) => return Err(Fault::Refused(why)),
            Err(fault) => {
                if !patience.again().await {
                    return Err(fault);
                }
            }
        }
    }
}
