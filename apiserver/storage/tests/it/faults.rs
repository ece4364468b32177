//! A disk that fails, loses what was not synced, or is full.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use skiff_storage::embedded::Options;
use skiff_storage::{Compare, Embedded, Error, Op, Store};

use crate::suite::{put, soon};

/// A disk in memory that knows which bytes were synced.
#[derive(Debug, Default)]
struct Platter {
    bytes: Vec<u8>,
    synced: Vec<u8>,
    /// Since the last sync.
    unsynced: Vec<Unsynced>,
    /// Operations until the failure; `None`: sound.
    left: Option<u64>,
    operations: u64,
}

#[derive(Clone, Debug)]
enum Unsynced {
    Len(usize),
    Write(usize, Vec<u8>),
}

impl Unsynced {
    fn onto(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Len(len) => bytes.resize(*len, 0),
            Self::Write(at, data) => {
                let end = at + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at..end].copy_from_slice(data);
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    fn of(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Platter { synced: bytes.clone(), bytes, ..Platter::default() })))
    }

    fn change(&self, unsynced: Unsynced) -> io::Result<()> {
        let mut p = self.0.lock().unwrap();
        p.count()?;
        unsynced.onto(&mut p.bytes);
        p.unsynced.push(unsynced);
        Ok(())
    }

    /// What a power cut may leave: what was synced, and any part of what was not.
    fn after_power_cut(&self, mut keep: impl FnMut() -> bool) -> Vec<u8> {
        let p = self.0.lock().unwrap();
        let mut bytes = p.synced.clone();
        for unsynced in p.unsynced.iter().filter(|_| keep()) {
            unsynced.onto(&mut bytes);
        }
        bytes
    }
}

impl Platter {
    fn count(&mut self) -> io::Result<()> {
        self.operations += 1;
        match &mut self.left {
            Some(0) => Err(io::Error::other("injected")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.0.lock().unwrap().bytes[at..at + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Unsynced::Len(usize::try_from(len).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut p = self.0.lock().unwrap();
        p.count()?;
        let p = &mut *p;
        for unsynced in p.unsynced.drain(..) {
            unsynced.onto(&mut p.synced);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Unsynced::Write(usize::try_from(offset).unwrap(), data.to_vec()))
    }
}

fn open(dir: &Path, disk: &Disk) -> Embedded {
    let options = Options { history_changes: 20, ..Options::default() };
    Embedded::open_on(dir, options, disk.clone()).expect("open")
}

/// The `n`th write, which gets revision `n + 1`.
fn step(n: u64) -> (String, Option<String>) {
    (format!("/k/{}", n % 6), (n < 6 || n % 5 != 4).then(|| format!("{n}{}", "y".repeat(700))))
}

fn state_after(count: u64) -> BTreeMap<String, String> {
    let mut state = BTreeMap::new();
    for n in 0..count {
        match step(n) {
            (key, Some(value)) => state.insert(key, value),
            (key, None) => state.remove(&key),
        };
    }
    state
}

async fn present(store: &Embedded) -> BTreeMap<String, String> {
    let range = store.range("/k/", None, 0, 0).await.unwrap();
    range.entries.iter().map(|e| (e.key.to_string(), String::from_utf8(e.value.to_vec()).unwrap())).collect()
}

const GROUPS: u64 = 8;
const GROUP: u64 = 5;

/// Writes until the disk fails; answers how many writes were acknowledged.
async fn storm(store: &Embedded) -> u64 {
    let mut acknowledged = 0;
    for group in 0..GROUPS {
        let writes = (0..GROUP).map(|n| {
            let (key, value) = step(group * GROUP + n);
            async move { store.commit(&key, Compare::Any, value.map_or(Op::Delete, |v| put(&v))).await }
        });
        for result in soon("answers", join_all(writes)).await {
            match result {
                Ok(revision) => {
                    acknowledged += 1;
                    assert_eq!(revision, acknowledged, "answers come in order, and none after a failure");
                }
                Err(Error::Unavailable(why)) => assert!(!why.is_empty()),
                Err(other) => panic!("{other}"),
            }
        }
    }
    acknowledged
}

#[tokio::test]
async fn a_failing_disk_loses_and_shows_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // Every step deletes something that is there, or each write would not be one revision.
    for n in 0..GROUPS * GROUP {
        let (key, value) = step(n);
        assert!(value.is_some() || state_after(n).contains_key(&key));
    }
    let fresh = Disk::default();
    open(dir.path(), &fresh).close();
    let image = fresh.after_power_cut(|| true);

    let sound = Disk::of(image.clone());
    let store = open(dir.path(), &sound);
    let opening = sound.0.lock().unwrap().operations;
    assert_eq!(storm(&store).await, GROUPS * GROUP);
    let writing = sound.0.lock().unwrap().operations - opening;
    drop(store);
    assert!(writing > 20, "{writing} operations are not enough to break");

    let mut random = StdRng::seed_from_u64(7);
    let (mut partly, mut cuts) = (0, 0);
    for fail_at in 0..writing {
        let disk = Disk::of(image.clone());
        let store = open(dir.path(), &disk);
        disk.0.lock().unwrap().left = Some(fail_at);
        let acknowledged = storm(&store).await;
        // Reads go on, and show what was acknowledged and no more.
        assert_eq!(store.revision().await.unwrap(), acknowledged, "failing at {fail_at}");
        assert_eq!(present(&store).await, state_after(acknowledged), "failing at {fail_at}");
        if acknowledged < GROUPS * GROUP {
            partly += 1;
            let mut failed = store.failed();
            let why = soon("the failure", failed.wait_for(Option::is_some)).await.unwrap().clone();
            assert!(why.is_some_and(|w| w.contains("injected")));
            let late = store.commit("/k/late", Compare::Any, put("")).await;
            assert!(matches!(late, Err(Error::Unavailable(_))), "{late:?}");
        }
        drop(store);
        for part in [0.0, 0.3, 0.6, 1.0] {
            let left = disk.after_power_cut(|| random.random_bool(part));
            cuts += 1;
            let store = open(dir.path(), &Disk::of(left));
            let head = store.revision().await.unwrap();
            // The batch whose answer was lost may be there, and nothing of what came after it.
            assert!((acknowledged..=acknowledged + GROUP).contains(&head), "{head}, acknowledged {acknowledged}");
            assert_eq!(present(&store).await, state_after(head), "failing at {fail_at}, keeping {part}");
        }
    }
    assert!(partly > 10, "the disk failed in the middle of only {partly} runs");
    eprintln!("{writing} places to fail, {cuts} power cuts");
}

/// A small file system, unmounted when dropped.
struct Mount(tempfile::TempDir);

impl Mount {
    fn small() -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let run = |program: &str, args: &[&str]| -> Result<(), String> {
            let out = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
            let text = || format!("{program}: {}", String::from_utf8_lossy(&out.stderr).trim());
            if out.status.success() { Ok(()) } else { Err(text()) }
        };
        let (image, point) = (dir.path().join("image"), dir.path().join("point"));
        std::fs::create_dir(&point).map_err(|e| e.to_string())?;
        let (image, point) = (image.to_string_lossy(), point.to_string_lossy());
        run("truncate", &["-s", "24M", &image])?;
        let looped = run("mkfs.ext4", &["-q", &image]).and_then(|()| run("mount", &["-o", "loop", &image, &point]));
        if let Err(first) = looped {
            run("mount", &["-t", "tmpfs", "-o", "size=16m", "tmpfs", &point]).map_err(|e| format!("{first}; {e}"))?;
            eprintln!("no loop mount ({first}), a small tmpfs instead");
        }
        Ok(Self(dir))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0.path().join("point")).status().ok();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_keeps() {
    let mount = match Mount::small() {
        Ok(mount) => mount,
        Err(why) => return eprintln!("SKIPPED: no small file system can be mounted here: {why}"),
    };
    let dir = mount.0.path().join("point");
    let store = Embedded::open(&dir, Options::default()).unwrap();
    let value = |n: u64| format!("{n}{}", "z".repeat(20_000));
    let mut acknowledged = 0;
    let refused = loop {
        match soon("an answer", store.commit(&format!("/k/{acknowledged:05}"), Compare::Any, put(&value(acknowledged))))
            .await
        {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 5_000, "the disk does not get full");
    };
    assert!(matches!(refused, Error::Full { .. }), "{refused}");
    assert!(acknowledged > 50);
    // What is left of the reserve is for deletions.
    store.commit("/k/00000", Compare::Any, Op::Delete).await.expect("deletions go on");
    drop(store);

    let store = Embedded::open(&dir, Options::default()).expect("a full disk can be opened");
    let found = present(&store).await;
    assert_eq!(found.len() as u64, acknowledged - 1, "exactly what was acknowledged");
    assert!((1..acknowledged).all(|n| found[&format!("/k/{n:05}")] == value(n)));
    eprintln!("{acknowledged} writes fitted");
}
