//! The default store: the present state in memory, made durable by redb.
//!
//! A write goes through two hands. The [`sequencer`] decides it at once, against everything accepted so far, and gives it
//! a revision; so ten updates of one key in a row can share one sync. The [`committer`], a thread, takes all that waits
//! into one transaction, syncs, and only then shows it: to readers, to caches, to the writers, to watchers, in revision
//! order. Reads never touch the disk.
//!
//! Limits: all present values and the history window must fit in memory; one process per data directory; keys are
//! UTF-8. The history window is on disk too, so a watch resumes across a restart.
//!
//! Failure: the first write or sync error ends the store. Reads go on, writes answer [`Error::Unavailable`],
//! [`Embedded::failed`] tells the owner, who should end the process. What was not acknowledged is not shown.

mod committer;
mod disk;
mod live;
mod sequencer;
mod space;

use std::collections::VecDeque;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::{Semaphore, oneshot, watch};

use self::disk::Disk;
use self::live::{Bounds, Kept, Live};
use self::sequencer::{Pending, Sequencer, Verdict};
use self::space::Space;
use crate::sinks::Sinks;
use crate::store::{Attached, BuildSink, Change, Compare, Entry, Error, Op, Progress, Range, Result, Revision, Store};

/// KiB of values that may wait for the disk; more writers wait for room.
const QUEUE_KIB: u32 = 64 << 10;
/// Changes a watch stream takes at once.
const WATCH_CHUNK: usize = 256;
/// How long closing waits for the last sync.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Settings of an embedded store.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// History is kept for this long ...
    pub history_age: Duration,
    /// ... and for this many changes ...
    pub history_changes: usize,
    /// ... and for this many bytes of replaced values, whichever is least.
    pub history_bytes: usize,
    /// Bytes redb may cache. The present state is in memory anyway, so a few inner pages are enough.
    pub disk_cache: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            history_age: Duration::from_secs(300),
            history_changes: 100_000,
            history_bytes: 128 << 20,
            disk_cache: 1 << 20,
        }
    }
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("another skiff uses this data directory: {}", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The directory or a file in it cannot be made, read or written.
    #[error("cannot use the data directory {}", path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The database refuses its file.
    #[error("cannot open the database {}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: Box<redb::Error>,
    },
    /// The file is a sound database with unsound contents.
    #[error("the database {} is damaged: {what}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The file was written by another generation of this program.
    #[error("the database {} has format {found}, this program knows {known}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format of this program.
        known: u64,
    },
}

impl OpenError {
    fn database(path: &Path, error: redb::Error) -> Self {
        match error {
            redb::Error::DatabaseAlreadyOpen => Self::InUse { path: path.to_owned() },
            redb::Error::Io(source) => Self::Io { path: path.to_owned(), source },
            redb::Error::Corrupted(what) => Self::Corrupt { path: path.to_owned(), what },
            other => Self::Database { path: path.to_owned(), source: Box::new(other) },
        }
    }
}

/// What the handle, the committer and the streams share. Locks are taken in the order `sinks`, `seq`, `live`.
struct Shared {
    sinks: Mutex<Sinks>,
    seq: Mutex<Sequencer>,
    live: RwLock<Live>,
    /// Signals the committer; goes with `seq`.
    work: Condvar,
    progress: Arc<Progress>,
    failed: watch::Sender<Option<String>>,
    ended: watch::Sender<bool>,
    room: Arc<Semaphore>,
    bounds: Bounds,
    space: Space,
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Present entries.
    pub entries: usize,
    /// Changes in the history window.
    pub history_changes: usize,
    /// Bytes that only the history holds.
    pub history_bytes: usize,
    /// KiB of values waiting for the disk.
    pub queued_kib: usize,
    /// Latest durable revision.
    pub revision: Revision,
    /// History is complete after this revision.
    pub compacted: Revision,
}

/// The embedded store. Dropping it writes what waits and closes the database.
pub struct Embedded {
    shared: Arc<Shared>,
    /// Hears from the committer when it is done.
    done: Mutex<Option<mpsc::Receiver<()>>>,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Embedded {
    /// Opens the store in `dir`, making both if needed. Blocks while it reads the whole state.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing is changed in a directory that is refused.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self, OpenError> {
        let dir = dir.as_ref();
        let lock = claim(dir)?;
        let (disk, live) = patiently(|| Disk::open(&dir.join("skiff.redb"), options.disk_cache))?;
        Self::start(dir, options, disk, live, lock)
    }

    /// As [`Embedded::open`], with the database on a backend of the caller's: for tests that inject faults.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    #[doc(hidden)]
    pub fn open_on(
        dir: impl AsRef<Path>,
        options: Options,
        backend: impl redb::StorageBackend,
    ) -> Result<Self, OpenError> {
        let dir = dir.as_ref();
        let lock = claim(dir)?;
        let (disk, live) = Disk::open_backend(&dir.join("skiff.redb"), backend, options.disk_cache)?;
        Self::start(dir, options, disk, live, lock)
    }

    fn start(dir: &Path, options: Options, disk: Disk, live: Live, lock: File) -> Result<Self, OpenError> {
        let bounds = Bounds {
            changes: options.history_changes,
            bytes: options.history_bytes,
            age_ms: u64::try_from(options.history_age.as_millis()).unwrap_or(u64::MAX / 4),
        };
        let revision = live.revision();
        let shared = Arc::new(Shared {
            sinks: Mutex::default(),
            seq: Mutex::new(Sequencer::new(revision)),
            live: RwLock::new(live),
            work: Condvar::new(),
            progress: Arc::new(Progress::new(revision)),
            failed: watch::Sender::new(None),
            ended: watch::Sender::new(false),
            room: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
            bounds,
            space: Space::new(dir.to_owned()),
        });
        let (tell, done) = mpsc::sync_channel(1);
        let committer = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("skiff-committer".to_owned())
            .spawn(move || {
                committer::run(&committer, disk, &lock);
                tell.send(()).ok();
            })
            .map_err(|source| OpenError::Io { path: dir.to_owned(), source })?;
        Ok(Self { shared, done: Mutex::new(Some(done)) })
    }

    /// Becomes `Some(why)` when the store has failed for good. The owner ends the process then.
    #[must_use]
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.shared.failed.subscribe()
    }

    /// Numbers for metrics.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let live = self.shared.live.read();
        let (history_changes, history_bytes) = live.history_size();
        Stats {
            entries: live.len(),
            history_changes,
            history_bytes,
            queued_kib: QUEUE_KIB as usize - self.shared.room.available_permits(),
            revision: live.revision(),
            compacted: live.compacted(),
        }
    }

    /// Refuses new writes, waits until those accepted are durable, and closes the database. Blocks; safe to call twice.
    pub fn close(&self) {
        let Some(done) = self.done.lock().take() else { return };
        self.shared.seq.lock().closed = true;
        self.shared.work.notify_one();
        if matches!(done.recv_timeout(CLOSE_TIMEOUT), Err(mpsc::RecvTimeoutError::Timeout)) {
            tracing::error!("the disk did not finish in time; closing without it");
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.close();
    }
}

/// Makes the directory and claims it for this process.
fn claim(dir: &Path) -> Result<File, OpenError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io(&path))?;
    patiently(|| match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path: path.clone(), source }),
    })?;
    Ok(file)
}

/// Tries again for a moment while the directory is in use. A process that was killed while it started a child leaves its
/// locks to that child until the child runs its own program.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, OpenError>) -> Result<T, OpenError> {
    for wait in [5, 10, 20, 40, 80, 160].map(Duration::from_millis) {
        match attempt() {
            Err(OpenError::InUse { .. }) => std::thread::sleep(wait),
            other => return other,
        }
    }
    attempt()
}

impl Shared {
    /// Decides a write. `Ok` with a receiver when the answer must wait for the disk.
    fn submit(
        &self,
        key: &str,
        compare: Compare,
        op: &Op,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) -> Result<oneshot::Receiver<Result<Revision>>, Result<Revision>> {
        let (reply, answer) = oneshot::channel();
        {
            let mut seq = self.seq.lock();
            if let Some(refusal) = seq.refusal() {
                return Err(Err(refusal));
            }
            let durable = || {
                let live = self.live.read();
                (live.get(key).cloned(), live.revision())
            };
            let pending = match seq.decide(key, compare, op, durable) {
                Verdict::Now(answer) => return Err(answer),
                Verdict::After(answer) => Pending { change: None, answer, reply, permit },
                Verdict::Accepted(change) => {
                    Pending { answer: Ok(change.revision), change: Some(change), reply, permit }
                }
            };
            seq.queue.push(pending);
        }
        self.work.notify_one();
        Ok(answer)
    }
}

/// A watch in progress: where it stands and what it has taken.
struct Follow {
    shared: Arc<Shared>,
    ended: watch::Receiver<bool>,
    prefix: Box<str>,
    cursor: Revision,
    taken: VecDeque<Change>,
    over: bool,
}

impl Follow {
    async fn next(mut self) -> Option<(Result<Change>, Self)> {
        loop {
            if let Some(change) = self.taken.pop_front() {
                return Some((Ok(change), self));
            }
            if self.over {
                return None;
            }
            {
                let live = self.shared.live.read();
                if let Err(error) = live.check(self.cursor) {
                    drop(live);
                    self.over = true;
                    return Some((Err(error), self));
                }
                // Looks at a bounded stretch, so that the lock is held for a bounded time.
                let mut stretch = live.changes_after(self.cursor).take(16 * WATCH_CHUNK).peekable();
                if stretch.peek().is_none() {
                    self.cursor = live.revision();
                }
                for change in stretch {
                    self.cursor = change.revision();
                    if change.key().starts_with(&*self.prefix) {
                        self.taken.push_back(change.change());
                        if self.taken.len() == WATCH_CHUNK {
                            break;
                        }
                    }
                }
                if !self.taken.is_empty() || self.cursor < live.revision() {
                    continue;
                }
            }
            let progress = Arc::clone(&self.shared.progress);
            tokio::select! {
                biased;
                () = progress.reached(self.cursor + 1) => {}
                _ = self.ended.wait_for(|ended| *ended) => self.over = self.cursor >= progress.revision(),
            }
        }
    }
}

impl Store for Embedded {
    fn revision(&self) -> BoxFuture<'_, Result<Revision>> {
        Box::pin(async { Ok(self.shared.live.read().revision()) })
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Arc<Entry>>>> {
        Box::pin(async move { Ok(self.shared.live.read().get(key).cloned()) })
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        start: Option<&'a str>,
        revision: Revision,
        limit: usize,
    ) -> BoxFuture<'a, Result<Range>> {
        Box::pin(async move { self.shared.live.read().range(prefix, start, revision, limit) })
    }

    fn commit<'a>(&'a self, key: &'a str, compare: Compare, op: Op) -> BoxFuture<'a, Result<Revision>> {
        Box::pin(async move {
            let size = match &op {
                Op::Put(payload) => payload.bytes.len(),
                Op::Delete => 0,
            };
            self.shared.space.admit(compare, &op)?;
            let kib = u32::try_from(size / 1024 + 1).unwrap_or(QUEUE_KIB).min(QUEUE_KIB);
            let room = Arc::clone(&self.shared.room);
            let permit = room.acquire_many_owned(kib).await.map_err(|_| Error::Closed)?;
            match self.shared.submit(key, compare, &op, permit) {
                Ok(answer) => answer.await.unwrap_or(Err(Error::Closed)),
                Err(answer) => answer,
            }
        })
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<Change>>>> {
        Box::pin(async move {
            self.shared.live.read().check(after)?;
            let follow = Follow {
                shared: Arc::clone(&self.shared),
                ended: self.shared.ended.subscribe(),
                prefix: prefix.into(),
                cursor: after,
                taken: VecDeque::new(),
                over: false,
            };
            Ok(stream::unfold(follow, Follow::next).boxed())
        })
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let answer = {
                let mut seq = self.shared.seq.lock();
                let live = self.shared.live.read();
                if revision > live.revision() {
                    return Err(Error::Future { requested: revision, current: live.revision() });
                }
                if revision <= live.compacted() {
                    return Ok(());
                }
                drop(live);
                if let Some(refusal) = seq.refusal() {
                    return Err(refusal);
                }
                let (reply, answer) = oneshot::channel();
                seq.compactions.push((revision, reply));
                answer
            };
            self.shared.work.notify_one();
            answer.await.unwrap_or(Err(Error::Closed))
        })
    }

    fn attach<'a>(&'a self, prefix: &'a str, build: BuildSink) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            // Held over both halves: nothing is published between the snapshot and the first change told.
            let mut sinks = self.shared.sinks.lock();
            if *self.shared.ended.borrow() {
                return Err(Error::Closed);
            }
            let attached = {
                let live = self.shared.live.read();
                let compacted = live.compacted();
                Attached {
                    entries: live.under(prefix, None).cloned().collect(),
                    history: live
                        .changes_after(compacted)
                        .filter(|c| c.key().starts_with(prefix))
                        .map(Kept::change)
                        .collect(),
                    compacted,
                    revision: live.revision(),
                    progress: Arc::clone(&self.shared.progress),
                }
            };
            sinks.add(prefix, build(attached));
            Ok(())
        })
    }
}
