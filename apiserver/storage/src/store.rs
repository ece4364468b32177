//! The storage contract.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::sync::Notify;

/// A position in the one history of the whole store. Strictly increasing, never reused, 0 means "nothing yet".
pub type Revision = u64;

/// What a write stores: bytes with an optional hole.
///
/// An object carries its own resourceVersion, which only exists once the store has assigned a revision. The writer
/// therefore leaves a hole: the decimal revision is inserted at byte `hole` when the entry becomes visible. Readers see
/// finished bytes only and never decode them to stamp a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The value without the revision's digits.
    pub bytes: Bytes,
    /// Offset in `bytes` at which the digits belong; `None` stores `bytes` unchanged.
    pub hole: Option<usize>,
}

impl Payload {
    /// A value that does not carry its revision.
    #[must_use]
    pub fn plain(bytes: impl Into<Bytes>) -> Self {
        Self { bytes: bytes.into(), hole: None }
    }

    /// The finished bytes for a write at `revision`.
    #[must_use]
    pub fn stamp(&self, revision: Revision) -> Bytes {
        let Some(hole) = self.hole else { return self.bytes.clone() };
        let digits = revision.to_string();
        let mut out = BytesMut::with_capacity(self.bytes.len() + digits.len());
        out.extend_from_slice(&self.bytes[..hole]);
        out.extend_from_slice(digits.as_bytes());
        out.extend_from_slice(&self.bytes[hole..]);
        out.freeze()
    }
}

/// One key as stored: finished bytes and the revision of the write that made them. Whoever keeps it shares it: the present
/// state, the history and every cache have the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Full key, for example `/registry/pods/default/web-0`.
    pub key: Arc<str>,
    /// Finished bytes, revision stamped.
    pub value: Bytes,
    /// Revision of the last write to this key.
    pub revision: Revision,
}

/// Condition of a write on the present state of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// Write whatever is there.
    Any,
    /// The key must not exist (create).
    Absent,
    /// The key must have been written last at this revision (update, delete).
    At(Revision),
}

/// One write.
#[derive(Clone, Debug)]
pub enum Op {
    /// Store the value.
    Put(Payload),
    /// Remove the key. Deleting an absent key under [`Compare::Any`] is a no-op that answers the present revision and
    /// makes no change in the history.
    Delete,
}

/// How a key changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// The key was not there before.
    Created,
    /// The key was there before.
    Updated,
    /// The key is gone.
    Deleted,
}

/// One step of the history. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Change {
    /// How the key changed.
    pub kind: ChangeKind,
    /// What is there now; for [`ChangeKind::Deleted`] what was there last, with the version it had.
    pub entry: Arc<Entry>,
    /// What was there before, if the key existed and the history still has it. For a deletion the same as `entry`.
    pub previous: Option<Arc<Entry>>,
    /// Revision of this change.
    pub revision: Revision,
}

impl Change {
    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.entry.key
    }
}

/// Result of a range read.
#[derive(Clone, Debug)]
pub struct Range {
    /// Entries in byte order of their keys.
    pub entries: Vec<Arc<Entry>>,
    /// Whether `limit` cut the answer short.
    pub more: bool,
    /// Revision of the snapshot that was read.
    pub revision: Revision,
}

/// What [`Store::attach`] hands to a new sink: one resource as of one revision, and how it came to be.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Present entries under the prefix, in key order.
    pub entries: Vec<Arc<Entry>>,
    /// The kept changes under the prefix, oldest first, the last of them at or below `revision`. A driver whose history
    /// lives elsewhere may leave this empty and set `compacted` to `revision`.
    pub history: Vec<Change>,
    /// `history` is complete after this revision.
    pub compacted: Revision,
    /// Revision of the snapshot; the sink hears of everything later.
    pub revision: Revision,
    /// How far sinks have been told.
    pub progress: Arc<Progress>,
}

/// Takes the durable changes under one prefix, in order, from one thread at a time.
///
/// The calls come from the path of every write: they must be short, must not block, and must not call the store.
pub trait Sink: Send + Sync {
    /// These changes are durable. Never empty; each change is delivered once.
    fn apply(&self, changes: &[Change]);
    /// Everything applied so far may be announced. Called after the writers were answered, so that waking many watchers
    /// delays nobody's answer.
    fn wake(&self);
    /// History up to and including `revision` is no longer kept.
    fn compacted(&self, revision: Revision);
    /// Nothing more will come: the store closed or failed, or a driver lost its place and cannot say what was missed.
    fn closed(&self);
}

/// How far all sinks of a store have been told, shared between the store and them.
///
/// A revision is announced here only after every sink has applied every change up to it. So a sink that heard nothing
/// still knows that it is current, which is what makes bookmarks and consistent reads of quiet resources free.
#[derive(Debug, Default)]
pub struct Progress {
    revision: AtomicU64,
    moved: Notify,
}

impl Progress {
    /// A progress that stands at `revision`.
    #[must_use]
    pub fn new(revision: Revision) -> Self {
        Self { revision: AtomicU64::new(revision), moved: Notify::new() }
    }

    /// Where it stands.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision.load(Ordering::Acquire)
    }

    /// Moves forward and wakes whoever waits. Moving backwards does nothing.
    pub fn advance(&self, revision: Revision) {
        if self.revision.fetch_max(revision, Ordering::AcqRel) < revision {
            self.moved.notify_waiters();
        }
    }

    /// Waits until `revision` is reached. The caller brings the deadline.
    pub async fn reached(&self, revision: Revision) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            // Registered before the look, so that a move between the two is not missed.
            moved.as_mut().enable();
            if self.revision() >= revision {
                return;
            }
            moved.await;
        }
    }
}

/// Makes the sink from what is there; see [`Store::attach`].
pub type BuildSink = Box<dyn FnOnce(Attached) -> Weak<dyn Sink> + Send>;

/// What can go wrong in a store, and what the caller does about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The compare failed; `current` is what is there (`None`: nothing). Re-read and decide again.
    #[error("the key was changed by someone else")]
    Conflict {
        /// The present entry.
        current: Option<Arc<Entry>>,
    },
    /// The revision is older than the kept history. List again.
    #[error("revision {requested} has been compacted; the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// Oldest revision that can still be served.
        oldest: Revision,
    },
    /// The revision lies in the future.
    #[error("revision {requested} is ahead of the store, which is at {current}")]
    Future {
        /// What was asked for.
        requested: Revision,
        /// Present revision.
        current: Revision,
    },
    /// There is too little room on the disk; deletions and reads go on. Nothing of the write was kept.
    #[error("the disk is full: {} MiB are free, {} MiB are kept in reserve", free >> 20, reserve >> 20)]
    Full {
        /// Free bytes.
        free: u64,
        /// Bytes kept free.
        reserve: u64,
    },
    /// The store takes no value of this size. Nothing of the write was kept.
    #[error("the object is larger than the store takes: {0}")]
    TooLarge(String),
    /// The store cannot take writes (disk full, read-only, I/O error). Nothing of the write was kept.
    #[error("storage is unavailable: {0}")]
    Unavailable(String),
    /// The store was shut down.
    #[error("storage is closed")]
    Closed,
}

/// Result of store operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An ordered key-value store with one history.
///
/// The contract that every implementation passes (see the suite in `tests/`):
/// - **Durable before acknowledged, durable before visible.** `commit` returns, readers see a value and watchers hear of
///   it only after it survives `kill -9` and power loss.
/// - **One order.** Every effective write gets the next revision; all watchers see changes in revision order; a watch
///   from revision `r` yields exactly the changes after `r`.
/// - **Compare and write are one step.** Nobody retries inside; a failed compare answers [`Error::Conflict`] with the
///   present entry and changes nothing.
/// - **No-ops write nothing**: deleting what is absent under [`Compare::Any`] answers the present revision.
/// - **Reads are linearizable**: they include every write acknowledged before the call, and never go back behind what any
///   reader, watcher or sink has seen.
/// - **An error leaves no trace to be seen.** After [`Error::Unavailable`] the write may or may not be found when the store
///   is opened again, as with any lost answer; until then nobody sees it.
/// - **A dropped future does not undo a write.** Whoever stops waiting does not know the outcome.
///
/// For a driver over a remote store: the hole of a [`Payload`] is stored as part of the value (etcd assigns the revision
/// only on commit, so that driver keeps the hole's offset beside the bytes and stamps on every read from the
/// key's modification revision); [`Store::attach`] is a task that reads the prefix, then watches, and moves [`Progress`]
/// by reading the remote revision when somebody waits.
pub trait Store: Send + Sync + 'static {
    /// Whether other processes write to it too. What this process remembers of its own writes is not the whole then.
    fn shared(&self) -> bool {
        false
    }

    /// The latest durable revision.
    fn revision(&self) -> BoxFuture<'_, Result<Revision>>;

    /// The present entry of `key`.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Arc<Entry>>>>;

    /// Entries whose keys start with `prefix`, from `start` (a key, inclusive) if given, at most `limit` (0: all), as of
    /// `revision` (0: latest). An older revision answers exactly what was there then, or [`Error::Compacted`].
    fn range<'a>(
        &'a self,
        prefix: &'a str,
        start: Option<&'a str>,
        revision: Revision,
        limit: usize,
    ) -> BoxFuture<'a, Result<Range>>;

    /// One guarded write; answers the revision it got. Whoever loses reads the winner only once the winner is durable.
    fn commit<'a>(&'a self, key: &'a str, compare: Compare, op: Op) -> BoxFuture<'a, Result<Revision>>;

    /// All changes under `prefix` after `after`, from the kept history and then live. Ends with an error item when the
    /// reader fell behind the kept history, and without one when the store closes. `after` below the kept history is
    /// [`Error::Compacted`], above the present [`Error::Future`]; 0 means the beginning of history, nothing else.
    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<Change>>>>;

    /// Forget history up to and including `revision`: ranges below it and watches from below it answer
    /// [`Error::Compacted`]. Present values stay. Forgetting what is forgotten already is a no-op; forgetting the future is
    /// [`Error::Future`].
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<()>>;

    /// Feeds a sink with everything under `prefix`, which must end in `/`. `build` is called once, with the snapshot, in
    /// an instant when no change can slip between the two; it must not call the store. The store holds the sink weakly:
    /// dropping it detaches it. Changes reach sinks before the writer is answered where the store can do that (`embedded`
    /// does), otherwise soon after; [`Progress`] tells.
    fn attach<'a>(&'a self, prefix: &'a str, build: BuildSink) -> BoxFuture<'a, Result<()>>;
}
