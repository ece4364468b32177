//! What stays on a node's disk of codes and packages that were used once.
//!
//! All of it can be had again, from the gateway or an index, so nothing depends on it. What nobody needs any more goes: codes of which
//! the cluster has no revision (the gateway says which), packages that no code asks for, what was not used for a month. What is left is
//! bounded in bytes; what was not used for longest goes first. What an instance has stays, and what was used a moment ago: a revision may
//! be younger than what the gateway knows.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::code::{Codes, wanted};
use super::job::is_key;

/// What may stay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// What was used since then stays, whatever holds otherwise.
    pub(super) grace: Duration,
    /// What was not used since then goes.
    pub(super) age: Duration,
    /// Bytes of all codes and packages together.
    pub(super) bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { grace: Duration::from_secs(120), age: Duration::from_secs(30 * 24 * 3600), bytes: 8 << 30 }
    }
}

/// A directory that can go.
struct Item<'a> {
    dir: &'a Path,
    name: String,
    used: SystemTime,
    bytes: u64,
    packages: bool,
}

impl Codes {
    /// The codes that are here.
    pub(super) fn all(&self) -> Vec<String> {
        names(&self.code).filter(|name| is_key(name)).collect()
    }

    /// Deletes what need not stay, of which `unwanted` are codes of no revision. How many directories went. Blocks.
    pub(super) fn tidy(&self, unwanted: &HashSet<String>) -> usize {
        let Some(_turn) = self.tidying.try_lock() else { return 0 };
        self.held.lock().retain(|_, held| held.strong_count() > 0);
        let mut items = self.items();
        let codes = items.iter().filter(|i| !i.packages && !unwanted.contains(&i.name));
        let needed: HashSet<String> = codes.filter_map(|i| wanted(&self.code.join(&i.name)).ok()??.digest()).collect();
        let mut bytes: u64 = items.iter().map(|i| i.bytes).sum();
        items.sort_by_key(|i| i.used);
        let (now, mut gone) = (SystemTime::now(), 0);
        for item in &items {
            let idle = now.duration_since(item.used).unwrap_or_default();
            let useless = if item.packages { !needed.contains(&item.name) } else { unwanted.contains(&item.name) };
            let goes = idle >= self.bounds.age
                || (idle >= self.bounds.grace && (useless || bytes > self.bounds.bytes || !is_key(&item.name)));
            if goes && self.remove(item) {
                bytes -= item.bytes;
                gone += 1;
            }
        }
        if gone > 0 {
            tracing::info!(
                directories = gone,
                bytes,
                "codes of functions that nobody needs were deleted; bytes are left"
            );
        }
        gone
    }

    fn items(&self) -> Vec<Item<'_>> {
        let mut sizes = self.sizes.lock();
        let mut before: HashMap<String, u64> = std::mem::take(&mut *sizes);
        let mut all = vec![];
        for (dir, packages) in [(&self.code, false), (&self.packages, true)] {
            for name in names(dir) {
                let path = dir.join(&name);
                let Ok(used) = std::fs::metadata(&path).and_then(|m| m.modified()) else { continue };
                // Content never changes, so it is counted once; what is being written has another name.
                let bytes = before.remove(&name).unwrap_or_else(|| size(&path));
                if is_key(&name) {
                    sizes.insert(name.clone(), bytes);
                }
                all.push(Item { dir, name, used, bytes, packages });
            }
        }
        all
    }

    /// Deletes a directory that no instance has.
    fn remove(&self, item: &Item<'_>) -> bool {
        let gone = item.dir.join(format!("{}.gone", item.name));
        {
            // Under the lock under which it would be given to an instance.
            let held = self.held.lock();
            if held.get(&item.name).is_some_and(|h| h.strong_count() > 0) {
                return false;
            }
            if std::fs::rename(item.dir.join(&item.name), &gone).is_err() {
                return false;
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&gone) {
            // It is looked at again, by the name that it has now.
            tracing::warn!(%error, path = %gone.display(), "the code of a function cannot be deleted");
        }
        true
    }
}

/// Names of the directories in a directory.
fn names(dir: &Path) -> impl Iterator<Item = String> {
    let all = std::fs::read_dir(dir).into_iter().flatten().flatten();
    all.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).filter_map(|e| e.file_name().into_string().ok())
}

/// Bytes of all files in a directory; links are not followed.
fn size(dir: &Path) -> u64 {
    let (mut bytes, mut left) = (0, vec![PathBuf::from(dir)]);
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => left.push(entry.path()),
                Ok(_) => bytes += entry.metadata().map_or(0, |m| m.len()),
                Err(_) => {}
            }
        }
    }
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::runtime::{File, Language, Source};

    fn key(n: u8) -> String {
        format!("{n:064x}")
    }

    async fn codes(dir: &Path, bounds: Bounds) -> Codes {
        let mut codes = Codes::new(dir, "/nowhere/python".into(), vec![]);
        codes.bounds = bounds;
        for name in ["code", "packages"] {
            std::fs::create_dir_all(dir.join(name)).unwrap();
        }
        for (n, wants) in [(1, "one==1\n"), (2, "two==2\n"), (3, "")] {
            let file = |path: &str, text: &str| File { path: path.to_owned(), content: Bytes::from(text.to_owned()) };
            let files = vec![file("main.py", &"#".repeat(1000)), file("requirements.txt", wants)];
            codes.keep(&key(n), Source::Files(files)).await.unwrap();
            if let Some(digest) = wanted(&codes.code.join(key(n))).unwrap().and_then(|w| w.digest()) {
                std::fs::create_dir_all(codes.packages.join(digest).join("lib")).unwrap();
            }
        }
        codes
    }

    fn unwanted(all: &[u8]) -> HashSet<String> {
        all.iter().map(|n| key(*n)).collect()
    }

    fn left(dir: &Path) -> (usize, usize) {
        let count = |name| std::fs::read_dir(dir.join(name)).unwrap().count();
        (count("code"), count("packages"))
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn what_no_revision_has_goes_with_its_packages_and_what_an_instance_has_stays() {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Bounds { grace: Duration::ZERO, age: LONG, bytes: 1 << 20 };
        let codes = codes(dir.path(), bounds).await;
        let held = codes.ready(&key(1), Language::Python, None).await.unwrap().unwrap();
        assert!(held.packages.is_some());
        assert_eq!(codes.tidy(&unwanted(&[1, 2])), 2, "the second and its packages");
        assert_eq!(left(dir.path()), (2, 1));
        assert!(codes.ready(&key(2), Language::Python, None).await.unwrap().is_none(), "it is asked for anew");
        drop(held);
        assert_eq!(codes.tidy(&unwanted(&[1])), 2);
        assert_eq!((codes.all(), left(dir.path())), (vec![key(3)], (1, 0)));
    }

    #[tokio::test]
    async fn what_was_used_a_moment_ago_stays_and_what_is_old_goes() {
        let dir = tempfile::tempdir().unwrap();
        let young = codes(dir.path(), Bounds { grace: LONG, age: LONG * 2, bytes: 0 }).await;
        assert_eq!(young.tidy(&unwanted(&[1, 2, 3])), 0, "a revision may be younger than what the gateway knows");
        for n in [1, 2] {
            let old = std::fs::File::open(young.code.join(key(n))).unwrap();
            old.set_modified(SystemTime::now() - LONG * 3).unwrap();
        }
        // Whoever uses it makes it young.
        young.ready(&key(2), Language::Node, None).await.unwrap().unwrap();
        assert_eq!(young.tidy(&HashSet::new()), 1);
        assert_eq!(left(dir.path()), (2, 2));
    }

    #[tokio::test]
    async fn too_many_bytes_go_the_longest_unused_first() {
        let dir = tempfile::tempdir().unwrap();
        let codes = codes(dir.path(), Bounds { grace: Duration::ZERO, age: LONG * 99, bytes: 2500 }).await;
        for n in 1..4 {
            let dir = std::fs::File::open(codes.code.join(key(n))).unwrap();
            dir.set_modified(SystemTime::now() - LONG * u32::from(n)).unwrap();
        }
        assert_eq!(codes.tidy(&HashSet::new()), 1);
        assert!(!codes.code.join(key(3)).exists() && codes.code.join(key(1)).exists());
        // What a start that was broken off left has no other use.
        std::fs::create_dir(codes.code.join(format!("{}.half", key(9)))).unwrap();
        assert_eq!(codes.tidy(&HashSet::new()), 1);
        assert_eq!(left(dir.path()).0, 2);
    }
}
