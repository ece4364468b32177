//! Calls by changes of files on this machine.
//!
//! A directory is watched with those in it, a file by the directory it is in, for editors replace files. Written means that
//! the writer has closed the file. Changes are collected for a moment, so that many of one file are one call.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use serde_json::json;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::{Occasion, Of, PAUSE_MAX};
use crate::api::{Files, TriggerStatus};
use crate::asynchronous::plan;

/// How long changes are collected.
const MOMENT: Duration = Duration::from_millis(200);
/// Directories that one trigger watches, and files that it keeps in mind at a time.
const DIRECTORIES_MAX: usize = 1024;
const FILES_MAX: usize = 10_000;

/// Why files cannot be watched.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("triggers by files are not allowed here: name a directory with --functions-files")]
    Off,
    #[error("{} is not below {}", .0.display(), .1.display())]
    Outside(PathBuf, PathBuf),
    #[error("{}: {}", .0.display(), .1)]
    Path(PathBuf, std::io::Error),
    #[error("{} has more than {DIRECTORIES_MAX} directories", .0.display())]
    TooMany(PathBuf),
    #[error("what was watched is gone")]
    Gone,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Created,
    Modified,
    Deleted,
    /// More happened than the kernel remembered: it is the directory that changed.
    Many,
}

impl Change {
    fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Modified => "modified",
            Self::Deleted => "deleted",
            Self::Many => "changed",
        }
    }
}

pub(super) async fn run(of: &Of, spec: &Files, mut known: TriggerStatus, allowed: Option<PathBuf>) {
    let mut failures = 0;
    loop {
        let watch = place(allowed.as_deref(), &spec.path).and_then(Tree::open);
        let fault = match watch {
            Ok(mut tree) => {
                failures = 0;
                if known.message.take().is_some() {
                    of.report(&known).await;
                }
                follow(of, &mut tree, &mut known).await
            }
            Err(fault) => fault,
        };
        failures += 1;
        of.fault(&mut known, fault.to_string()).await;
        tokio::time::sleep(plan::backoff(Duration::from_secs(1), failures).min(PAUSE_MAX)).await;
    }
}

/// The file or directory, which must be below what the node's owner allows also where links lead.
fn place(allowed: Option<&Path>, path: &str) -> Result<PathBuf, Fault> {
    let allowed = allowed.ok_or(Fault::Off)?;
    let whole = |p: &Path| p.canonicalize().map_err(|e| Fault::Path(p.to_owned(), e));
    let root = whole(allowed)?;
    let wanted = root.join(path);
    let outside = || Fault::Outside(PathBuf::from(path), allowed.to_owned());
    if !wanted.starts_with(&root) {
        return Err(outside());
    }
    let found = whole(&wanted)?;
    if found.starts_with(&root) { Ok(found) } else { Err(outside()) }
}

async fn follow(of: &Of, tree: &mut Tree, known: &mut TriggerStatus) -> Fault {
    let mut pending: BTreeMap<PathBuf, Change> = BTreeMap::new();
    let mut told_at: Option<Instant> = None;
    loop {
        let read = tokio::select! {
            read = tree.read() => read,
            () = tokio::time::sleep_until(told_at.unwrap_or_else(Instant::now)), if told_at.is_some() => {
                told_at = None;
                for (path, change) in std::mem::take(&mut pending) {
                    tell(of, &path, change, known).await;
                }
                of.report(known).await;
                continue;
            }
        };
        let events = match read {
            Ok(events) => events,
            Err(e) => return Fault::Path(tree.top.clone(), e),
        };
        for event in events {
            match tree.take(&event, &mut pending) {
                Ok(()) => {}
                Err(fault) => return fault,
            }
        }
        if pending.len() > FILES_MAX {
            pending = BTreeMap::from([(tree.top.clone(), Change::Many)]);
        }
        if !pending.is_empty() && told_at.is_none() {
            told_at = Some(Instant::now() + MOMENT);
        }
    }
}

async fn tell(of: &Of, path: &Path, change: Change, known: &mut TriggerStatus) {
    let now = Timestamp::now();
    let shown = path.to_string_lossy();
    let body = json!({"path": shown, "event": change.word()}).to_string().into_bytes();
    let kind = format!("file.{}", change.word());
    let id = uuid::Uuid::new_v4().to_string();
    let told = of.tell(Occasion { id, kind, subject: Some(shown.into_owned()), time: now, body }).await;
    known.message = told.err();
    known.last_time = Some(Time(now));
}

/// As the runtime wants it.
struct Notifier(Inotify);

impl AsRawFd for Notifier {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Directories that are watched.
struct Tree {
    inotify: AsyncFd<Notifier>,
    top: PathBuf,
    /// The one file of the directory that counts.
    only: Option<PathBuf>,
    directories: HashMap<WatchDescriptor, PathBuf>,
    /// Files that were made and not closed yet.
    fresh: HashSet<PathBuf>,
}

impl Tree {
    fn open(path: PathBuf) -> Result<Self, Fault> {
        let failed = |e: nix::Error| Fault::Path(path.clone(), e.into());
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(failed)?;
        // The successor is unsafe code; what is asked there holds: the descriptor is owned, and never replaced.
        #[allow(deprecated)]
        let inotify = AsyncFd::new(Notifier(inotify)).map_err(|e| Fault::Path(path.clone(), e))?;
        let (top, only) =
            if path.is_dir() { (path, None) } else { (path.parent().unwrap_or(Path::new("/")).to_owned(), Some(path)) };
        let mut tree = Self { inotify, top: top.clone(), only, directories: HashMap::new(), fresh: HashSet::new() };
        tree.add(&top, &mut BTreeMap::new())?;
        Ok(tree)
    }

    /// Watches a directory and those in it; files that are there already are told as new.
    fn add(&mut self, directory: &Path, found: &mut BTreeMap<PathBuf, Change>) -> Result<(), Fault> {
        if self.directories.len() >= DIRECTORIES_MAX {
            return Err(Fault::TooMany(self.top.clone()));
        }
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_DONT_FOLLOW;
        let watch = self.inotify.get_ref().0.add_watch(directory, flags);
        let watch = watch.map_err(|e| Fault::Path(directory.to_owned(), e.into()))?;
        self.directories.insert(watch, directory.to_owned());
        if self.only.is_some() {
            return Ok(());
        }
        // One that goes meanwhile is none.
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if !counts(&path) {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => self.add(&path, found)?,
                Ok(kind) if kind.is_file() => drop(found.insert(path, Change::Created)),
                _ => {}
            }
        }
        Ok(())
    }

    async fn read(&self) -> std::io::Result<Vec<InotifyEvent>> {
        loop {
            let mut ready = self.inotify.readable().await?;
            let read = ready.try_io(|i| i.get_ref().0.read_events().map_err(Into::into));
            if let Ok(read) = read {
                return read;
            }
        }
    }

    fn take(&mut self, event: &InotifyEvent, pending: &mut BTreeMap<PathBuf, Change>) -> Result<(), Fault> {
        let has = |flag| event.mask.contains(flag);
        if has(AddWatchFlags::IN_Q_OVERFLOW) {
            pending.insert(self.top.clone(), Change::Many);
            return Ok(());
        }
        let Some(directory) = self.directories.get(&event.wd).cloned() else { return Ok(()) };
        if has(AddWatchFlags::IN_DELETE_SELF) || has(AddWatchFlags::IN_MOVE_SELF) || has(AddWatchFlags::IN_IGNORED) {
            self.directories.remove(&event.wd);
            return if directory == self.top { Err(Fault::Gone) } else { Ok(()) };
        }
        let Some(name) = &event.name else { return Ok(()) };
        let path = directory.join(name);
        if !counts(&path) || self.only.as_ref().is_some_and(|o| *o != path) {
            return Ok(());
        }
        if has(AddWatchFlags::IN_ISDIR) {
            let new = has(AddWatchFlags::IN_CREATE) || has(AddWatchFlags::IN_MOVED_TO);
            return if new && path.is_dir() { self.add(&path, pending) } else { Ok(()) };
        }
        if has(AddWatchFlags::IN_CREATE) {
            if self.fresh.len() < FILES_MAX {
                self.fresh.insert(path);
            }
        } else if has(AddWatchFlags::IN_CLOSE_WRITE) {
            let new = self.fresh.remove(&path) || pending.get(&path) == Some(&Change::Created);
            pending.insert(path, if new { Change::Created } else { Change::Modified });
        } else if has(AddWatchFlags::IN_MOVED_TO) {
            let replaced =
                matches!(pending.get(&path), Some(Change::Deleted | Change::Modified)) || self.only.is_some();
            pending.insert(path, if replaced { Change::Modified } else { Change::Created });
        } else if has(AddWatchFlags::IN_DELETE) || has(AddWatchFlags::IN_MOVED_FROM) {
            self.fresh.remove(&path);
            pending.insert(path, Change::Deleted);
        }
        Ok(())
    }
}

/// Whether a name is one that people mean: not an editor's own, not hidden.
fn counts(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
    let swap = name.ends_with('~') || name.ends_with(".swp") || name.ends_with(".swx") || name == "4913";
    !name.starts_with('.') && !swap
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("allowed");
        std::fs::create_dir_all(root.join("in")).unwrap();
        std::fs::create_dir(dir.path().join("allowed-not")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();
        let find = |path: &str| place(Some(&root), path);
        assert!(find("in").is_ok() && find(root.join("in").to_str().unwrap()).is_ok() && find(".").is_ok());
        for bad in ["/etc", "out", "../allowed-not", "in/../../allowed-not"] {
            assert!(matches!(find(bad), Err(Fault::Outside(..))), "{bad}");
        }
        assert!(matches!(find("none"), Err(Fault::Path(..))));
        assert!(matches!(place(None, "in"), Err(Fault::Off)));
    }

    #[tokio::test]
    async fn changes_are_told_once_the_writer_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n);
        std::fs::write(at("old"), "1").unwrap();
        let mut tree = Tree::open(dir.path().to_owned()).unwrap();
        std::fs::write(at("old"), "2").unwrap();
        std::fs::write(at("new"), "1").unwrap();
        std::fs::write(at(".hidden"), "1").unwrap();
        std::fs::write(at("x.swp"), "1").unwrap();
        std::fs::create_dir(at("sub")).unwrap();
        std::fs::write(at("sub/deep"), "1").unwrap();
        let open = std::fs::File::create(at("open")).unwrap();
        let mut pending = BTreeMap::new();
        let mut read = async |tree: &mut Tree| {
            for event in tree.read().await.unwrap() {
                tree.take(&event, &mut pending).unwrap();
            }
            pending.clone()
        };
        let expected = [("new", Change::Created), ("old", Change::Modified), ("sub/deep", Change::Created)];
        assert_eq!(read(&mut tree).await, expected.map(|(n, c)| (at(n), c)).into());
        drop(open);
        std::fs::remove_file(at("old")).unwrap();
        let now = read(&mut tree).await;
        assert_eq!((now[&at("open")], now[&at("old")]), (Change::Created, Change::Deleted));
    }
}
