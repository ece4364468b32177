//! How watchers hear of events: one shared ring per interest, and a cursor each.
//!
//! An event is appended to the rings of the interests it touches (the whole resource, its namespace, its key, the values
//! of its fields) and only where somebody listens. So a thousand nodes that watch their own pods cost one append per pod
//! event, not a thousand wake-ups; and a watcher holds no queue of its own beyond the few events it has in hand.
//! Watchers that stand at the same place are given the same [`Run`], so that what they are sent is made once for all.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Event, Inner};
use crate::store::{Error, Result, Revision};

/// Events a watcher takes at once.
const CHUNK: usize = 64;
/// Bytes of values after which a [`Run`] ends.
const RUN_BYTES: usize = 64 * 1024;
/// Runs a lane remembers, and bytes of values in them (but always the last). While it is busy, watchers are a few events
/// apart at most.
const RUNS: usize = 8;
const RUNS_BYTES: usize = 4 * RUN_BYTES;

/// What a watcher listens to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    /// Every object of the resource.
    All,
    /// The objects under this prefix, which ends a namespace.
    Namespace(Box<str>),
    /// One object.
    Key(Box<str>),
    /// Objects with this value of this field, now or before.
    Field(&'static str, Box<str>),
}

impl Interest {
    fn touched(&self, event: &Event) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(prefix) => event.object.key.starts_with(&**prefix),
            Self::Key(key) => *event.object.key == **key,
            Self::Field(field, value) => {
                let has = |o: &super::Object| o.meta.values(field).any(|v| v == &**value);
                has(&event.object) || event.previous.as_deref().is_some_and(has)
            }
        }
    }
}

/// The events of one interest.
#[derive(Debug, Default)]
pub(super) struct Lane {
    ring: Mutex<Ring>,
    moved: Notify,
    watchers: AtomicUsize,
    /// Waits for [`Lane::wake`].
    dirty: AtomicBool,
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    /// How many events were dropped from the front, ever. Cursors count from there.
    dropped: u64,
    /// What was taken last, the newest at the end.
    runs: VecDeque<Arc<Run>>,
}

/// Some events in a row, as all who stood before them share them.
#[derive(Debug)]
pub struct Run {
    events: Vec<Arc<Event>>,
    /// Position of the first in its lane.
    from: u64,
    /// Bytes of their values.
    size: usize,
    /// Whether it was ended for its size: what came later does not make it longer.
    full: bool,
    frames: [OnceLock<Bytes>; 2],
}

impl Run {
    /// From the events at and after `from`; `None` when there is none.
    fn new<'a>(from: u64, events: impl Iterator<Item = &'a Arc<Event>>) -> Option<Self> {
        let (mut taken, mut size, mut full) = (Vec::new(), 0, false);
        for event in events {
            full = taken.len() == CHUNK || size >= RUN_BYTES;
            if full {
                break;
            }
            size += event.object.value.len();
            taken.push(Arc::clone(event));
        }
        (!taken.is_empty()).then(|| Self { events: taken, from, size, full, frames: Default::default() })
    }

    fn end(&self) -> u64 {
        self.from + self.events.len() as u64
    }

    /// The events, at least one, in revision order.
    #[must_use]
    pub fn events(&self) -> &[Arc<Event>] {
        &self.events
    }

    /// The events as bytes, made by whoever needs them first. There may be two forms, which the caller tells apart.
    pub fn bytes(&self, second: bool, make: impl FnOnce(&[Arc<Event>]) -> Bytes) -> Bytes {
        self.frames[usize::from(second)].get_or_init(|| make(&self.events)).clone()
    }
}

impl Ring {
    fn end(&self) -> u64 {
        self.dropped + self.events.len() as u64
    }

    /// Where a position is among the events; `None` when it was dropped.
    fn index(&self, at: u64) -> Option<usize> {
        at.checked_sub(self.dropped).and_then(|n| usize::try_from(n).ok())
    }

    fn remember(&mut self, run: &Arc<Run>) {
        self.runs.push_back(Arc::clone(run));
        while self.runs.len() > RUNS
            || self.runs.len() > 1 && self.runs.iter().map(|r| r.size).sum::<usize>() > RUNS_BYTES
        {
            self.runs.pop_front();
        }
    }
}

impl Lane {
    fn push(self: &Arc<Self>, event: &Arc<Event>, touched: &mut Vec<Arc<Self>>) {
        {
            let mut ring = self.ring.lock();
            // An object may name the same value twice (two references to one owner); it is one event all the same.
            if ring.events.back().is_some_and(|last| Arc::ptr_eq(last, event)) {
                return;
            }
            ring.events.push_back(Arc::clone(event));
        }
        if !self.dirty.swap(true, Ordering::AcqRel) {
            touched.push(Arc::clone(self));
        }
    }

    pub(super) fn wake(&self) {
        self.dirty.store(false, Ordering::Release);
        self.moved.notify_waiters();
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.moved.notify_waiters();
    }

    fn forget(&self, revision: Revision) {
        let mut ring = self.ring.lock();
        while ring.events.front().is_some_and(|e| e.revision <= revision) {
            ring.events.pop_front();
            ring.dropped += 1;
            // Nobody comes that far back again, and a quiet lane should hold nothing.
            ring.runs.clear();
        }
        if ring.events.is_empty() {
            ring.events.shrink_to(16);
        }
    }

    /// Position of the first event after `revision`.
    fn seek(&self, revision: Revision) -> u64 {
        let ring = self.ring.lock();
        ring.dropped + ring.events.partition_point(|e| e.revision <= revision) as u64
    }
}

/// The lanes somebody listens to. They live as long as their watchers.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    all: Weak<Lane>,
    namespaces: HashMap<Box<str>, Weak<Lane>>,
    keys: HashMap<Box<str>, Weak<Lane>>,
    fields: HashMap<&'static str, HashMap<Box<str>, Weak<Lane>>>,
}

impl Lanes {
    /// The lane of an interest; a new one is filled from the window.
    pub(super) fn listen(&mut self, interest: Interest, window: &VecDeque<Arc<Event>>) -> Arc<Lane> {
        let test = interest.clone();
        let slot = match interest {
            Interest::All => &mut self.all,
            Interest::Namespace(prefix) => self.namespaces.entry(prefix).or_default(),
            Interest::Key(key) => self.keys.entry(key).or_default(),
            Interest::Field(field, value) => self.fields.entry(field).or_default().entry(value).or_default(),
        };
        if let Some(lane) = slot.upgrade() {
            return lane;
        }
        let lane = Arc::new(Lane::default());
        lane.ring.lock().events = window.iter().filter(|e| test.touched(e)).map(Arc::clone).collect();
        *slot = Arc::downgrade(&lane);
        lane
    }

    /// Appends an event to every lane it touches. `namespace` is the length of the key's namespace prefix.
    pub(super) fn push(&self, event: &Arc<Event>, namespace: Option<usize>, touched: &mut Vec<Arc<Lane>>) {
        let key = &*event.object.key;
        let mut to = |lane: Option<&Weak<Lane>>| {
            if let Some(lane) = lane.and_then(Weak::upgrade) {
                lane.push(event, touched);
            }
        };
        to(Some(&self.all));
        to(namespace.and_then(|end| self.namespaces.get(&key[..end])));
        to(self.keys.get(key));
        if self.fields.is_empty() {
            return;
        }
        let now = &event.object.meta.fields;
        for (field, value) in now {
            to(self.fields.get(field).and_then(|values| values.get(value)));
        }
        // A lane hears once of an event, even where the value stayed.
        let before = event.previous.as_ref().filter(|p| !Arc::ptr_eq(p, &event.object));
        for was in before.iter().flat_map(|p| p.meta.fields.iter()).filter(|was| !now.contains(was)) {
            to(self.fields.get(was.0).and_then(|values| values.get(&was.1)));
        }
    }

    /// Drops what is too old, and lanes nobody listens to.
    pub(super) fn forget(&mut self, revision: Revision) {
        let keep = |lane: &Weak<Lane>| match lane.upgrade() {
            Some(lane) => {
                lane.forget(revision);
                true
            }
            None => false,
        };
        keep(&self.all);
        self.namespaces.retain(|_, lane| keep(lane));
        self.keys.retain(|_, lane| keep(lane));
        self.fields.retain(|_, values| {
            values.retain(|_, lane| keep(lane));
            !values.is_empty()
        });
    }

    pub(super) fn each(&self) -> impl Iterator<Item = Arc<Lane>> + '_ {
        std::iter::once(&self.all)
            .chain(self.namespaces.values())
            .chain(self.keys.values())
            .chain(self.fields.values().flat_map(HashMap::values))
            .filter_map(Weak::upgrade)
    }
}

/// A reader of events. Dropping it is the way to stop.
#[derive(Debug)]
pub struct Watcher {
    inner: Arc<Inner>,
    lane: Arc<Lane>,
    /// Position of the next event in the lane.
    at: u64,
    /// Only events of these keys, where the lane carries more.
    prefix: Option<Box<str>>,
    taken: VecDeque<Arc<Event>>,
    /// Where this watcher stands.
    delivered: Revision,
    over: bool,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.lane.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watcher {
    pub(super) fn new(inner: Arc<Inner>, lane: Arc<Lane>, prefix: Option<Box<str>>, after: Revision) -> Self {
        let at = lane.seek(after);
        lane.watchers.fetch_add(1, Ordering::Relaxed);
        Self { inner, lane, at, prefix, taken: VecDeque::new(), delivered: after, over: false }
    }

    /// The next event. An error when this watcher fell behind the window, then `None`; `None` at once when the store
    /// closes. Safe to cancel.
    pub async fn next(&mut self) -> Option<Result<Arc<Event>>> {
        self.wait(Self::try_next).await
    }

    /// As [`Watcher::next`], the next events together, for a watcher of all events of its lane ([`Watcher::shares`])
    /// that is not asked for single ones.
    pub async fn next_run(&mut self) -> Option<Result<Arc<Run>>> {
        self.wait(Self::try_run).await
    }

    /// Whether it hears of all events of its lane, as others do.
    #[must_use]
    pub fn shares(&self) -> bool {
        self.prefix.is_none()
    }

    async fn wait<T>(&mut self, mut look: impl FnMut(&mut Self) -> Option<T>) -> Option<T> {
        let lane = Arc::clone(&self.lane);
        loop {
            let moved = lane.moved.notified();
            tokio::pin!(moved);
            // Registered before the look, so that an event between the two is not missed.
            moved.as_mut().enable();
            match look(self) {
                Some(next) => return Some(next),
                None if self.over => return None,
                None => moved.await,
            }
        }
    }

    /// The next event if one is there now. `None` also after the end, see [`Watcher::is_over`].
    pub fn try_next(&mut self) -> Option<Result<Arc<Event>>> {
        if self.over {
            return None;
        }
        while self.taken.is_empty() {
            // Looked at before the ring: what was pushed before the end is still delivered.
            let ended = self.lane.ended.load(Ordering::Acquire);
            let took = self.take();
            match took {
                Err(error) => {
                    self.over = true;
                    return Some(Err(error));
                }
                Ok(0) => {
                    self.over = ended;
                    return None;
                }
                Ok(_) => {}
            }
        }
        let event = self.taken.pop_front()?;
        self.delivered = event.revision;
        Some(Ok(event))
    }

    /// The next events if there are some now.
    fn try_run(&mut self) -> Option<Result<Arc<Run>>> {
        if self.over {
            return None;
        }
        // Looked at before the ring: what was pushed before the end is still delivered.
        let ended = self.lane.ended.load(Ordering::Acquire);
        match self.take_run() {
            Err(error) => {
                self.over = true;
                Some(Err(error))
            }
            Ok(None) => {
                self.over = ended;
                None
            }
            Ok(Some(run)) => {
                self.at = run.end();
                self.delivered = run.events.last().map_or(self.delivered, |e| e.revision);
                Some(Ok(run))
            }
        }
    }

    fn take_run(&self) -> Result<Option<Arc<Run>>> {
        let mut ring = self.lane.ring.lock();
        let end = ring.end();
        let Some(skip) = ring.index(self.at) else {
            drop(ring);
            return Err(self.fell_behind());
        };
        if self.at >= end {
            return Ok(None);
        }
        if let Some(known) = ring.runs.iter().rev().find(|r| r.from == self.at && (r.full || r.end() == end)) {
            return Ok(Some(Arc::clone(known)));
        }
        let run = Run::new(self.at, ring.events.range(skip..)).map(Arc::new);
        if let Some(run) = run.as_ref().filter(|_| self.company() > 1) {
            ring.remember(run);
        }
        Ok(run)
    }

    fn fell_behind(&self) -> Error {
        self.inner.count_lagged();
        Error::Compacted { requested: self.delivered, oldest: self.inner.compacted() }
    }

    /// Whether nothing more will come.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// How many watchers hear of the same events, this one among them.
    #[must_use]
    pub fn company(&self) -> usize {
        self.lane.watchers.load(Ordering::Relaxed)
    }

    /// A revision up to which this watcher has delivered everything, for a bookmark; `None` while events wait.
    #[must_use]
    pub fn bookmark(&self) -> Option<Revision> {
        // Read first: every event up to here is in the lane already.
        let current = self.inner.revision();
        let drained = self.taken.is_empty() && self.lane.ring.lock().end() == self.at;
        drained.then(|| current.max(self.delivered))
    }

    /// Takes some events into hand; answers how many were passed.
    fn take(&mut self) -> Result<usize> {
        let ring = self.lane.ring.lock();
        let Some(skip) = ring.index(self.at) else {
            drop(ring);
            return Err(self.fell_behind());
        };
        let mut passed = 0;
        for event in ring.events.range(skip.min(ring.events.len())..).take(CHUNK) {
            passed += 1;
            if self.prefix.as_ref().is_none_or(|p| event.object.key.starts_with(&**p)) {
                self.taken.push_back(Arc::clone(event));
            }
        }
        self.at += passed as u64;
        Ok(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_in_number_and_bytes() {
        let mut ring = Ring::default();
        let mut after = |sizes: &[usize]| {
            for size in sizes {
                let frames = Default::default();
                ring.remember(&Arc::new(Run { events: vec![], from: 0, size: *size, full: false, frames }));
            }
            ring.runs.iter().map(|r| r.size).collect::<Vec<_>>()
        };
        assert_eq!(after(&[1; 20]), [1; RUNS]);
        assert_eq!(after(&[RUN_BYTES; 20]), [RUN_BYTES; 4]);
        assert_eq!(after(&[3 << 20]), [3 << 20], "the last, however large");
        assert_eq!(after(&[7]), [7]);
    }
}
