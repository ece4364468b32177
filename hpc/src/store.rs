//! Results that were brought here: by content, with an index from paths, in one directory for each job.
//!
//! A path of a result is never a path here: files are named by their digest, so no name leads out of the store. What was fetched
//! in part is gone on with; what is here was compared with the digest that the cluster computed. The store is bounded for each
//! job, and a job's part goes with its object.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::fs;
use tokio::io::AsyncWriteExt as _;

use crate::driver::{Fact, Files, SlurmError};
use crate::sink::Sink;

/// Bytes of files that are brought together with others, and of all that come by one command.
const SMALL: u64 = 64 << 10;
/// See [`SMALL`].
const TOGETHER: u64 = 1 << 20;

/// A file that is here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its bytes.
    pub size: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
    /// When it changed, in seconds since 1970.
    pub modified: i64,
}

/// What is here of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Results by their path in the job's directory.
    pub files: BTreeMap<String, Stored>,
    /// What it printed: `stdout`, `stderr`, of tasks `stdout.3`.
    pub logs: BTreeMap<String, Stored>,
    /// What was left out, and why.
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// The store.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// Why a file did not come.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// This machine's disk.
    #[error("the store of results: {0}")]
    Disk(#[from] io::Error),
    /// The cluster.
    #[error(transparent)]
    Slurm(#[from] SlurmError),
    /// It changed while it was read.
    #[error("{0} changed while it was fetched")]
    Changed(String),
}

impl Store {
    /// A store below this directory, which is made when it is needed.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn directory(&self, uid: &str) -> io::Result<PathBuf> {
        let plain = !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if plain { Ok(self.root.join(uid)) } else { Err(io::Error::other("this is no uid")) }
    }

    fn object(&self, uid: &str, sha256: &str) -> io::Result<PathBuf> {
        let plain = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit());
        if plain { Ok(self.directory(uid)?.join(sha256)) } else { Err(io::Error::other("this is no digest")) }
    }

    /// What is here of a job; nothing when there is nothing.
    pub async fn index(&self, uid: &str) -> io::Result<Index> {
        match fs::read(self.directory(uid)?.join("index.json")).await {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Index::default()),
            Err(e) => Err(e),
        }
    }

    /// Writes the index; from then on its files are shown. What it does not name goes.
    pub async fn save(&self, uid: &str, index: &Index) -> io::Result<()> {
        let directory = self.directory(uid)?;
        fs::create_dir_all(&directory).await?;
        let (new, place) = (directory.join("index.new"), directory.join("index.json"));
        let mut file = fs::File::create(&new).await?;
        file.write_all(&serde_json::to_vec(index)?).await?;
        file.sync_all().await?;
        fs::rename(&new, &place).await?;
        let known = |name: &str| {
            let kept = index.files.values().chain(index.logs.values()).any(|s| s.sha256 == name);
            // What files of a path had for a digest: if this is done again they are not fetched again.
            kept || name == "index.json" || name.ends_with(".is")
        };
        let mut entries = fs::read_dir(&directory).await?;
        while let Some(entry) = entries.next_entry().await? {
            if !entry.file_name().to_str().is_some_and(known) {
                fs::remove_file(entry.path()).await?;
            }
        }
        Ok(())
    }

    /// Opens a file of a job.
    pub async fn open(&self, uid: &str, stored: &Stored) -> io::Result<fs::File> {
        fs::File::open(self.object(uid, &stored.sha256)?).await
    }

    /// Forgets a job.
    pub async fn remove(&self, uid: &str) -> io::Result<()> {
        match fs::remove_dir_all(self.directory(uid)?).await {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Brings a file. Goes on where an earlier try ended, while size and time there are the same; what came is compared with
    /// the digest that the cluster computed, before or meanwhile.
    pub async fn fetch(&self, from: &dyn Files, uid: &str, path: &str, fact: &Fact) -> Result<Stored, StoreError> {
        let key = match &fact.sha256 {
            Some(sha256) => sha256.clone(),
            None => hex(&Sha256::digest(format!("{path}\0{}\0{}", fact.size, fact.modified))),
        };
        let stored = |sha256| Stored { size: fact.size, sha256, modified: fact.modified };
        let part = self.object(uid, &key)?.with_extension("part");
        let known = part.with_extension("is");
        let sha256 = match &fact.sha256 {
            Some(sha256) => Some(sha256.clone()),
            None => fs::read_to_string(&known).await.ok(),
        };
        if let Some(sha256) = sha256
            && let Ok(place) = self.object(uid, &sha256)
            && fs::metadata(&place).await.is_ok_and(|m| m.len() == fact.size)
        {
            return Ok(stored(sha256));
        }
        fs::create_dir_all(self.directory(uid)?).await?;
        // What an earlier try left may be damaged by a crash: then all of it is fetched once more.
        loop {
            let began = fs::metadata(&part).await.map_or(0, |m| m.len());
            if let Some(sha256) = bring(from, path, fact, &part).await? {
                fs::rename(&part, self.object(uid, &sha256)?).await?;
                if fact.sha256.is_none() {
                    fs::write(&known, &sha256).await?;
                }
                return Ok(stored(sha256));
            }
            fs::remove_file(&part).await?;
            if began == 0 {
                return Err(StoreError::Changed(path.to_owned()));
            }
        }
    }

    /// Brings small files whose digests were told by few commands. What does not come as it should is left for
    /// [`Store::fetch`], which finds the others here.
    pub async fn fetch_small(&self, from: &dyn Files, uid: &str, files: &[(&str, &Fact)]) -> io::Result<()> {
        let mut missing = vec![];
        for (path, fact) in files.iter().filter(|(_, f)| f.size <= SMALL) {
            let Some(place) = fact.sha256.as_ref().map(|d| self.object(uid, d)).transpose()? else { continue };
            if fs::metadata(&place).await.is_err() {
                missing.push((*path, *fact, place));
            }
        }
        // One alone is no fewer commands so.
        if missing.len() < 2 {
            return Ok(());
        }
        fs::create_dir_all(self.directory(uid)?).await?;
        while !missing.is_empty() {
            let mut sum = 0;
            let group = missing.iter().take_while(|(_, f, _)| {
                sum += f.size;
                sum <= TOGETHER
            });
            let rest = missing.split_off(group.count().max(1));
            let group = std::mem::replace(&mut missing, rest);
            let paths: Vec<&str> = group.iter().map(|(path, ..)| *path).collect();
            let sum: u64 = group.iter().map(|(_, f, _)| f.size).sum();
            let Ok(bytes) = from.read_all(&paths, sum).await else { return Ok(()) };
            let all: Vec<_> = group.into_iter().map(|(_, f, place)| (f.clone(), place)).collect();
            tokio::task::spawn_blocking(move || take_apart(bytes, all)).await.map_err(io::Error::other)??;
        }
        Ok(())
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Keeps files whose bytes are one after the other, as far as they are what their digests say.
fn take_apart(mut bytes: Bytes, files: Vec<(Fact, PathBuf)>) -> io::Result<()> {
    for (fact, place) in files {
        let size = usize::try_from(fact.size).map_err(io::Error::other)?;
        if bytes.len() < size {
            return Ok(());
        }
        let own = bytes.split_to(size);
        if fact.sha256.is_none_or(|d| d != hex(&Sha256::digest(&own))) {
            return Ok(());
        }
        let new = place.with_extension("new");
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&own)?;
        file.sync_all()?;
        std::fs::rename(&new, &place)?;
    }
    Ok(())
}

/// Brings what is missing of a file; its digest when all of it came as it is there.
async fn bring(from: &dyn Files, path: &str, fact: &Fact, part: &Path) -> Result<Option<String>, StoreError> {
    let (mut sink, mut have) = Sink::open(part)?;
    let moved = async {
        let mut told = fact.sha256.clone();
        while have < fact.size || (have == fact.size && told.is_none()) {
            let most = (fact.size - have).min(from.part());
            let last = have + most == fact.size;
            let came = from.fetch(path, have, most, last && told.is_none(), &mut sink).await?;
            have += came.bytes;
            told = told.or(came.sha256);
            if came.bytes < most {
                break;
            }
        }
        Ok::<_, SlurmError>(told)
    };
    let moved = moved.await;
    // What came is kept for the next try, and why the disk takes no more says more than that nobody listened.
    let got = hex(&sink.end().await?.finalize());
    let told = moved?;
    Ok(Some(got).filter(|got| have == fact.size && told.as_ref() == Some(got)))
}

/// Whether a path is meant by a pattern: `*` and `?` stay in one part of a path, `**` is any number of parts, and a directory
/// means everything in it.
#[must_use]
pub fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.trim_end_matches('/').split('/').filter(|p| *p != ".").collect();
    let path: Vec<&str> = path.split('/').collect();
    parts(&pattern, &path)
}

fn parts(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        // What is left of the path lies in a directory that was meant.
        (None, _) => true,
        (Some((&"**", rest)), Some((_, below))) => parts(rest, path) || parts(pattern, below),
        (Some((&"**", rest)), None) => rest.is_empty(),
        (Some((p, rest)), Some((word, below))) => part(p.as_bytes(), word.as_bytes()) && parts(rest, below),
        (Some(_), None) => false,
    }
}

/// One part of a path; linear but for the last star.
fn part(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::local::Local;
    use crate::driver::text::Text;

    #[test]
    fn patterns() {
        let yes = [
            ("*.dat", "a.dat"),
            ("out/*.dat", "out/a.dat"),
            ("out", "out/b/c"),
            ("out/", "out/b"),
            ("**/*.h5", "x.h5"),
            ("**/*.h5", "a/b/x.h5"),
            ("a?c*e", "abcdde"),
            ("./x", "x"),
            ("**", "a/b"),
        ];
        let no = [("*.dat", "out/a.dat"), ("out", "outer"), ("a?c", "ac"), ("**/*.h5", "a/x.h"), ("a/b", "a")];
        for (pattern, path) in yes {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in no {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    #[tokio::test]
    async fn small_files_come_together() {
        let dir = tempfile::tempdir().unwrap();
        let files = Text::new(Local::default(), None, None, "/", None);
        let at = |i: usize| dir.path().join(format!("file {i}")).display().to_string();
        let paths: Vec<String> = (0..70).map(at).collect();
        for (i, path) in paths.iter().enumerate() {
            std::fs::write(path, format!("{i}").repeat(if i == 3 { 70_000 } else { i * 400 })).unwrap();
        }
        let facts: Vec<Fact> = files.stat(&paths, 1 << 20).await.unwrap().into_iter().map(Option::unwrap).collect();
        // One that became another since.
        std::fs::write(&paths[65], "other").unwrap();
        let store = Store::new(dir.path().join("store"));
        let all: Vec<_> = paths.iter().map(String::as_str).zip(&facts).collect();
        store.fetch_small(&files, "u", &all).await.unwrap();
        for (i, fact) in facts.iter().enumerate() {
            let got = std::fs::read(store.object("u", fact.sha256.as_ref().unwrap()).unwrap());
            match i {
                // Too large; another; and what came behind it by the same command.
                3 | 65.. => assert!(got.is_err(), "{i}"),
                _ => assert_eq!(got.unwrap(), std::fs::read(&paths[i]).unwrap(), "{i}"),
            }
        }
        store.fetch(&files, "u", &paths[69], &facts[69]).await.unwrap();
    }

    #[tokio::test]
    async fn fetching_goes_on_and_compares() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("there");
        std::fs::write(&there, b"0123456789").unwrap();
        let files = Text::new(Local::default(), None, None, "/", None);
        let path = there.display().to_string();
        let store = Store::new(dir.path().join("store"));
        let mut stored = Stored::default();
        // With a digest that was told before, and without.
        for digested in [10, 0] {
            let fact = files.stat(std::slice::from_ref(&path), digested).await.unwrap()[0].clone().unwrap();
            let key =
                fact.sha256.clone().unwrap_or_else(|| hex(&Sha256::digest(format!("{path}\x0010\0{}", fact.modified))));
            let part = store.object("u", &key).unwrap().with_extension("part");
            std::fs::create_dir_all(part.parent().unwrap()).unwrap();
            // An earlier try got three bytes, or all of them, or something else, or more than there is.
            for early in ["", "012", "0123456789", "xyz", "0123456789a"] {
                std::fs::write(&part, early).unwrap();
                stored = store.fetch(&files, "u", &path, &fact).await.unwrap();
                assert!(!part.exists());
                let place = store.object("u", &stored.sha256).unwrap();
                assert_eq!(std::fs::read(&place).unwrap(), b"0123456789", "{early}");
                // It is here: nobody is asked.
                let nobody = Text::new(Local::new(Some("no such user".into())), None, None, "/", None);
                assert_eq!(store.fetch(&nobody, "u", &path, &fact).await.unwrap(), stored);
                std::fs::remove_file(&place).unwrap();
            }
            // What is asked for is not there any more.
            for other in [Fact { size: 11, ..fact.clone() }, Fact { sha256: Some("0".repeat(64)), ..fact.clone() }] {
                let failed = store.fetch(&files, "u", &path, &other).await;
                assert!(matches!(failed, Err(StoreError::Changed(_))), "{failed:?}");
            }
            stored = store.fetch(&files, "u", &path, &fact).await.unwrap();
        }
        let mut index = Index::default();
        index.files.insert("../../x".into(), stored.clone());
        store.save("u", &index).await.unwrap();
        assert_eq!(store.index("u").await.unwrap(), index);
        assert!(store.open("u", &stored).await.is_ok());
        store.save("u", &Index::default()).await.unwrap();
        assert!(store.open("u", &stored).await.is_err(), "what the index does not name goes");
        assert!(store.index("../etc").await.is_err());
        store.remove("u").await.unwrap();
        store.remove("u").await.unwrap();
    }
}
