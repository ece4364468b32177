//! The watch cache: the present objects of one resource, and a bounded window of their history.
//!
//! A cache is a [`Sink`]: the store tells it of every durable change before the writer hears back (the embedded store),
//! so a consistent read is a look at two numbers and costs no round trip. Values are the store's own bytes. The window
//! is the store's window: the store says what to forget, so both answer [`Error::Compacted`] below the same revision.
//!
//! Guarantees: events reach every watcher in revision order, none missing, none twice; a [`Snapshot`] at revision `r` and
//! a watch after `r` have no gap and no overlap; a watcher that falls behind the window is told so and ends. What is read
//! without [`Cache::consistent`] or [`Cache::fresh`] may be a moment old, never inconsistent.
//!
//! Costs: a list clones pointers under a read lock; an event costs one append per interest that somebody listens to and
//! that it touches, whatever the number of other watchers.

mod lane;
mod object;
mod select;

use std::collections::{BTreeMap, HashMap, VecDeque, btree_map};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use tokio::time::{Instant, timeout_at};

pub use self::lane::{Run, Watcher};
pub use self::object::{Event, Extract, Meta, Moment, Object, Page, Snapshot};

use self::lane::{Interest, Lane, Lanes};
use self::object::FRAMED;
use crate::store::{Attached, Change, ChangeKind, Entry, Error, Progress, Result, Revision, Sink, Store};

/// How a resource is cached.
#[derive(Clone)]
pub struct Config {
    /// Reads what is indexed and selected by.
    pub extract: Extract,
    /// Fields of [`Meta::fields`] for which [`Cache::list_by_field`] keeps an index.
    pub indexed: Vec<&'static str>,
}

/// The cache of one resource. Cloning shares it; it ends with its last clone and watcher.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
    store: Arc<dyn Store>,
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Present objects.
    pub objects: usize,
    /// Bytes of their values.
    pub bytes: usize,
    /// Events in the window.
    pub window: usize,
    /// Interests that somebody listens to.
    pub interests: usize,
    /// Watchers ended because they fell behind, so far.
    pub lagged: u64,
}

struct Inner {
    prefix: Box<str>,
    config: Config,
    state: RwLock<State>,
    progress: Arc<Progress>,
    /// Lanes with news, until [`Sink::wake`].
    touched: Mutex<Vec<Arc<Lane>>>,
    ended: tokio::sync::watch::Sender<bool>,
    lagged: AtomicU64,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("prefix", &self.inner.prefix).field("stats", &self.stats()).finish()
    }
}

type Objects = BTreeMap<Arc<str>, Arc<Object>>;

#[derive(Default)]
struct State {
    live: Objects,
    bytes: usize,
    /// Field -> value -> objects, for the indexed fields.
    index: HashMap<&'static str, HashMap<Box<str>, Objects>>,
    window: VecDeque<Arc<Event>>,
    compacted: Revision,
    /// Revision of the last change of this resource.
    last: Revision,
    lanes: Lanes,
}

impl State {
    fn put(&mut self, object: &Arc<Object>) -> Option<Arc<Object>> {
        let previous = self.live.insert(Arc::clone(&object.key), Arc::clone(object));
        self.bytes += object.value.len();
        if let Some(previous) = &previous {
            self.bytes -= previous.value.len();
            self.unindex(previous);
        }
        for (field, value) in &object.meta.fields {
            if let Some(values) = self.index.get_mut(field) {
                let objects = match values.get_mut(value) {
                    Some(objects) => objects,
                    None => values.entry(value.clone()).or_default(),
                };
                objects.insert(Arc::clone(&object.key), Arc::clone(object));
            }
        }
        previous
    }

    fn remove(&mut self, key: &str) -> Option<Arc<Object>> {
        let previous = self.live.remove(key)?;
        self.bytes -= previous.value.len();
        self.unindex(&previous);
        Some(previous)
    }

    fn unindex(&mut self, object: &Object) {
        for (field, value) in &object.meta.fields {
            let Some(values) = self.index.get_mut(field) else { continue };
            if let Some(objects) = values.get_mut(value) {
                objects.remove(&object.key);
                if objects.is_empty() {
                    values.remove(value);
                }
            }
        }
    }

    fn check(&self, revision: Revision, current: Revision) -> Result<()> {
        if revision < self.compacted {
            return Err(Error::Compacted { requested: revision, oldest: self.compacted });
        }
        if revision > current.max(self.last) {
            return Err(Error::Future { requested: revision, current: current.max(self.last) });
        }
        Ok(())
    }

    /// Makes `objects`, which were collected under `prefix` since `revision`, what they were at that revision.
    fn rewind(
        &self,
        objects: &mut Vec<Arc<Object>>,
        prefix: &str,
        revision: Revision,
        wanted: &impl Fn(&Object) -> bool,
    ) {
        // What a key held then is what its first later change replaced.
        let mut then: HashMap<&str, Option<&Arc<Object>>> = HashMap::new();
        let later = self.window.partition_point(|e| e.revision <= revision);
        for event in self.window.range(later..).filter(|e| e.object.key.starts_with(prefix)) {
            then.entry(&event.object.key).or_insert(event.previous.as_ref());
        }
        if then.is_empty() {
            return;
        }
        objects.retain(|o| !then.contains_key(&*o.key));
        objects.extend(then.into_values().flatten().filter(|o| wanted(o)).map(Arc::clone));
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    }

    fn forget(&mut self, revision: Revision) {
        while self.window.front().is_some_and(|e| e.revision <= revision) {
            self.window.pop_front();
        }
        if self.window.is_empty() {
            self.window.shrink_to(16);
        }
        self.compacted = self.compacted.max(revision);
        self.lanes.forget(revision);
    }
}

impl Inner {
    fn new(prefix: &str, config: Config, attached: Attached) -> Self {
        let Attached { entries, history, compacted, revision, progress } = attached;
        let index = config.indexed.iter().map(|field| (*field, HashMap::new())).collect();
        let mut state = State { compacted, index, ..State::default() };
        // The last object of each key the history mentions; what it leads to are the present objects.
        let mut then: HashMap<Arc<str>, Arc<Object>> = HashMap::new();
        for change in &history {
            let previous = then.remove(change.key()).or_else(|| {
                let previous = change.previous.as_ref()?;
                Some(object(&config.extract, previous))
            });
            if let Some(event) = event(&config.extract, change, previous) {
                if change.kind != ChangeKind::Deleted {
                    then.insert(Arc::clone(&change.entry.key), Arc::clone(&event.object));
                }
                state.window.push_back(event);
            }
        }
        state.last = revision;
        for entry in entries {
            let known = then.remove(&entry.key).filter(|o| o.revision == entry.revision);
            state.put(&known.unwrap_or_else(|| object(&config.extract, &entry)));
        }
        Self {
            prefix: prefix.into(),
            config,
            state: RwLock::new(state),
            progress,
            touched: Mutex::default(),
            ended: tokio::sync::watch::Sender::new(false),
            lagged: AtomicU64::new(0),
        }
    }

    fn revision(&self) -> Revision {
        self.progress.revision()
    }

    fn compacted(&self) -> Revision {
        self.state.read().compacted
    }

    fn count_lagged(&self) {
        self.lagged.fetch_add(1, Ordering::Relaxed);
    }

    /// Length of the namespace prefix of a key, for namespaced resources.
    fn namespace_end(&self, key: &str) -> Option<usize> {
        let rest = key.get(self.prefix.len()..)?;
        rest.find('/').map(|at| self.prefix.len() + at + 1)
    }
}

fn object(extract: &Extract, entry: &Arc<Entry>) -> Arc<Object> {
    let meta = extract(&entry.key, &entry.value);
    Arc::new(Object { entry: Arc::clone(entry), meta })
}

/// The event of a change; `None` for the deletion of what nobody knew.
fn event(extract: &Extract, change: &Change, previous: Option<Arc<Object>>) -> Option<Arc<Event>> {
    let object = if change.kind == ChangeKind::Deleted {
        Arc::clone(previous.as_ref()?)
    } else {
        object(extract, &change.entry)
    };
    let made = Moment::now();
    Some(Arc::new(Event {
        kind: change.kind,
        object,
        previous,
        revision: change.revision,
        made,
        frame: Mutex::default(),
    }))
}

impl Sink for Inner {
    fn apply(&self, changes: &[Change]) {
        let made = Moment::now();
        // Extraction reads whole values, so it happens before the lock.
        let objects: Vec<Option<Arc<Object>>> = changes
            .iter()
            .map(|c| (c.kind != ChangeKind::Deleted).then(|| object(&self.config.extract, &c.entry)))
            .collect();
        let mut touched = self.touched.lock();
        let mut state = self.state.write();
        let state = &mut *state;
        for (change, new) in changes.iter().zip(objects) {
            state.last = change.revision;
            let previous = match &new {
                Some(object) => state.put(object),
                None => state.remove(change.key()),
            };
            let Some(object) = new.or_else(|| previous.clone()) else { continue };
            let (kind, revision) = (change.kind, change.revision);
            let event = Arc::new(Event { kind, object, previous, revision, made, frame: Mutex::default() });
            state.lanes.push(&event, self.namespace_end(change.key()), &mut touched);
            state.window.push_back(event);
            if let Some(older) = state.window.len().checked_sub(FRAMED + 1) {
                *state.window[older].frame.lock() = None;
            }
        }
    }

    fn wake(&self) {
        let touched = std::mem::take(&mut *self.touched.lock());
        for lane in touched {
            lane.wake();
        }
    }

    fn compacted(&self, revision: Revision) {
        self.state.write().forget(revision);
    }

    fn closed(&self) {
        self.ended.send_replace(true);
        for lane in self.state.read().lanes.each() {
            lane.end();
        }
    }
}

impl Cache {
    /// A cache over the keys under `prefix`, which ends in `/`, filled from the store's present state and history.
    ///
    /// # Errors
    /// Those of [`Store::attach`].
    pub async fn open(store: Arc<dyn Store>, prefix: &str, config: Config) -> Result<Self> {
        let made: Arc<OnceLock<Arc<Inner>>> = Arc::default();
        let slot = Arc::clone(&made);
        let owned: Box<str> = prefix.into();
        let build = move |attached| {
            let inner = Arc::new(Inner::new(&owned, config, attached));
            let sink: Arc<dyn Sink> = Arc::<Inner>::clone(&inner);
            slot.set(inner).ok();
            Arc::downgrade(&sink)
        };
        store.attach(prefix, Box::new(build)).await?;
        // A store that attached without building broke its contract; to the caller that is a store that is gone.
        let inner = made.get().map(Arc::clone).ok_or(Error::Closed)?;
        Ok(Self { inner, store })
    }

    /// The prefix this cache covers.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.inner.prefix
    }

    /// A revision up to which this cache has seen everything. Moves also when other resources are written.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.inner.revision()
    }

    /// Revision of the last change of this resource itself.
    #[must_use]
    pub fn last_change(&self) -> Revision {
        self.inner.state.read().last
    }

    /// Waits until the cache has seen `revision`.
    ///
    /// # Errors
    /// [`Error::Future`] when it has not by the deadline, [`Error::Closed`] when the store closes meanwhile.
    pub async fn fresh(&self, revision: Revision, deadline: Instant) -> Result<()> {
        if self.inner.progress.revision() >= revision {
            return Ok(());
        }
        let mut ended = self.inner.ended.subscribe();
        tokio::select! {
            biased;
            reached = timeout_at(deadline, self.inner.progress.reached(revision)) => {
                reached.map_err(|_| Error::Future { requested: revision, current: self.revision() })
            }
            _ = ended.wait_for(|ended| *ended) => Err(Error::Closed),
        }
    }

    /// Waits until the cache has seen everything acknowledged before the call; answers the revision it then has at least.
    ///
    /// # Errors
    /// As [`Cache::fresh`], and those of [`Store::revision`].
    pub async fn consistent(&self, deadline: Instant) -> Result<Revision> {
        let revision = self.store.revision().await?;
        self.fresh(revision, deadline).await?;
        Ok(revision)
    }

    /// The present object of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.inner.state.read().live.get(key).map(Arc::clone)
    }

    /// All present objects under a prefix.
    #[must_use]
    pub fn list(&self, prefix: &str) -> Snapshot {
        let (state, revision) = self.view();
        Snapshot { objects: under(&state.live, prefix, prefix).map(Arc::clone).collect(), revision }
    }

    /// Present objects under a prefix from the key `start` on, at most `limit` (0: all).
    #[must_use]
    pub fn page(&self, prefix: &str, start: Option<&str>, limit: usize) -> Page {
        let (state, revision) = self.view();
        let mut rest = under(&state.live, prefix, start.unwrap_or(prefix));
        let limit = if limit == 0 { usize::MAX } else { limit };
        let objects = rest.by_ref().take(limit).map(Arc::clone).collect();
        Page { objects, revision, remaining: rest.count() }
    }

    /// All objects under a prefix as they were at `revision`.
    ///
    /// # Errors
    /// [`Error::Compacted`] below the window, [`Error::Future`] above the present.
    pub fn list_at(&self, prefix: &str, revision: Revision) -> Result<Snapshot> {
        let Page { objects, revision, .. } = self.page_at(prefix, None, 0, revision)?;
        Ok(Snapshot { objects, revision })
    }

    /// As [`Cache::page`], as it was at `revision`.
    ///
    /// # Errors
    /// As [`Cache::list_at`].
    pub fn page_at(&self, prefix: &str, start: Option<&str>, limit: usize, revision: Revision) -> Result<Page> {
        let (state, current) = self.view();
        state.check(revision, current)?;
        let start = start.filter(|s| *s > prefix).unwrap_or(prefix);
        let limit = if limit == 0 { usize::MAX } else { limit };
        // What a key held then is what its first later change replaced.
        let mut then: BTreeMap<&str, Option<&Arc<Object>>> = BTreeMap::new();
        let later = state.window.partition_point(|e| e.revision <= revision);
        for event in state.window.range(later..) {
            let key = &*event.object.key;
            if key >= start && key.starts_with(prefix) {
                then.entry(key).or_insert(event.previous.as_ref());
            }
        }
        // Two sorted sequences into one; where both have a key, the past counts.
        let mut now = under(&state.live, prefix, start).filter(|o| !then.contains_key(&*o.key)).peekable();
        let mut past = then.values().filter_map(|o| *o).peekable();
        let mut merged = std::iter::from_fn(|| match (now.peek(), past.peek()) {
            (Some(a), Some(b)) if a.key > b.key => past.next(),
            (None, _) => past.next(),
            _ => now.next(),
        });
        let objects = merged.by_ref().take(limit).map(Arc::clone).collect();
        Ok(Page { objects, revision, remaining: merged.count() })
    }

    /// Present objects under a prefix whose field has this value; `None` when the field is not indexed.
    #[must_use]
    pub fn list_by_field(&self, prefix: &str, field: &str, value: &str) -> Option<Snapshot> {
        let (state, revision) = self.view();
        let values = state.index.get(field)?;
        let objects = values.get(value).map(|o| under(o, prefix, prefix).map(Arc::clone).collect()).unwrap_or_default();
        Some(Snapshot { objects, revision })
    }

    /// Events of the keys under a prefix, after a revision: the window first, then live.
    ///
    /// # Errors
    /// [`Error::Compacted`] below the window, [`Error::Future`] above the present.
    pub fn watch(&self, prefix: &str, after: Revision) -> Result<Watcher> {
        let own = &*self.inner.prefix;
        let whole_namespace = prefix.len() > own.len() && self.inner.namespace_end(prefix) == Some(prefix.len());
        if own.starts_with(prefix) {
            self.listen(Interest::All, None, after)
        } else if whole_namespace {
            self.listen(Interest::Namespace(prefix.into()), None, after)
        } else {
            self.listen(Interest::All, Some(prefix), after)
        }
    }

    /// Events of one key, after a revision.
    ///
    /// # Errors
    /// As [`Cache::watch`].
    pub fn watch_key(&self, key: &str, after: Revision) -> Result<Watcher> {
        self.listen(Interest::Key(key.into()), None, after)
    }

    /// Events of the keys under a prefix whose field has this value before or after the change (so that the caller can
    /// tell entering from leaving), after a revision. Any field of [`Meta::fields`] will do.
    ///
    /// # Errors
    /// As [`Cache::watch`].
    pub fn watch_field(&self, prefix: &str, field: &'static str, value: &str, after: Revision) -> Result<Watcher> {
        let within = (!self.inner.prefix.starts_with(prefix)).then_some(prefix);
        self.listen(Interest::Field(field, value.into()), within, after)
    }

    /// How many objects there are.
    #[must_use]
    pub fn objects(&self) -> usize {
        self.inner.state.read().live.len()
    }

    /// Numbers for metrics.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = self.inner.state.read();
        Stats {
            objects: state.live.len(),
            bytes: state.bytes,
            window: state.window.len(),
            interests: state.lanes.each().count(),
            lagged: self.inner.lagged.load(Ordering::Relaxed),
        }
    }

    fn listen(&self, interest: Interest, within: Option<&str>, after: Revision) -> Result<Watcher> {
        let current = self.revision();
        let mut state = self.inner.state.write();
        state.check(after, current)?;
        let state = &mut *state;
        let lane = state.lanes.listen(interest, &state.window);
        if *self.inner.ended.borrow() {
            lane.end();
        }
        Ok(Watcher::new(Arc::clone(&self.inner), lane, within.map(Into::into), after))
    }

    /// The state, and a revision that it covers.
    fn view(&self) -> (parking_lot::RwLockReadGuard<'_, State>, Revision) {
        // In this order: everything up to `revision` was applied before it was announced.
        let revision = self.revision();
        let state = self.inner.state.read();
        let revision = revision.max(state.last);
        (state, revision)
    }
}

/// Objects under `prefix` from `start` on, in key order.
fn under<'a>(objects: &'a Objects, prefix: &str, start: &str) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
    let from = if start > prefix { start } else { prefix };
    range(objects, prefix, Bound::Included(from)).map(|(_, o)| o)
}

/// The same from a bound on. The end is looked up once: comparing each key on the way would touch each key's memory.
fn range<'a>(objects: &'a Objects, prefix: &str, from: Bound<&str>) -> btree_map::Range<'a, Arc<str>, Arc<Object>> {
    let end = after(prefix);
    let end = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    match (from, end) {
        // A start behind the prefix has nothing under it (and would be no range).
        (Bound::Included(f) | Bound::Excluded(f), Bound::Excluded(e)) if f >= e => Default::default(),
        (from, end) => objects.range::<str, _>((from, end)),
    }
}

/// The least text that is greater than everything that starts with `prefix`; `None` when there is no such text.
fn after(prefix: &str) -> Option<String> {
    let mut out = prefix.to_owned();
    while let Some(last) = out.pop() {
        // Surrogates are no characters: the next one after the gap is as good.
        let next = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
        if let Some(next) = next {
            out.push(next);
            return Some(out);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        for (prefix, end) in
            [("/a/", Some("/a0")), ("", None), ("a\u{10ffff}", Some("b")), ("\u{d7ff}", Some("\u{e000}"))]
        {
            assert_eq!(after(prefix).as_deref(), end, "{prefix}");
        }
    }
}
