//! Results that were brought here: by content, with an index from paths, in one directory for each job.
//!
//! A path of a result is never a path here: files are named by their digest, so no name leads out of the store. What was fetched
//! in part is gone on with; what is here was compared with the digest that the cluster computed. The store is bounded for each
//! job, and a job's part goes with its object.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::fs;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::driver::{Files, SlurmError};

/// Bytes that are asked for at a time: between two parts others have their turn.
const PART: u64 = 64 << 20;

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
            index.files.values().chain(index.logs.values()).any(|s| s.sha256 == name) || name == "index.json"
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

    /// Brings a file whose digest the cluster told. Goes on where an earlier try ended.
    pub async fn fetch(&self, from: &dyn Files, uid: &str, path: &str, stored: &Stored) -> Result<(), StoreError> {
        let place = self.object(uid, &stored.sha256)?;
        if fs::metadata(&place).await.is_ok_and(|m| m.len() == stored.size) {
            return Ok(());
        }
        fs::create_dir_all(self.directory(uid)?).await?;
        let part = place.with_extension("part");
        let file = fs::OpenOptions::new().create(true).append(true).open(&part).await?;
        let mut have = file.metadata().await?.len();
        // What comes is digested on its way; what an earlier try brought is read once more.
        let hash = if have > 0 { digest(&part).await? } else { Sha256::new() };
        let mut to = Digested { file, hash };
        while have < stored.size {
            let most = (stored.size - have).min(PART);
            let came = from.fetch(path, have, most, &mut to).await?;
            if came == 0 {
                break;
            }
            have += came;
        }
        to.flush().await?;
        to.file.sync_all().await?;
        if have != stored.size || hex(&to.hash.finalize()) != stored.sha256 {
            fs::remove_file(&part).await?;
            return Err(StoreError::Changed(path.to_owned()));
        }
        fs::rename(&part, &place).await?;
        Ok(())
    }

    /// Keeps bytes that are here already.
    pub async fn put(&self, uid: &str, bytes: &[u8]) -> io::Result<Stored> {
        let sha256 = hex(&Sha256::digest(bytes));
        let place = self.object(uid, &sha256)?;
        fs::create_dir_all(self.directory(uid)?).await?;
        fs::write(&place, bytes).await?;
        Ok(Stored { size: bytes.len() as u64, sha256, modified: 0 })
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

async fn digest(path: &Path) -> io::Result<Sha256> {
    let mut file = fs::File::open(path).await?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 18]);
    loop {
        let n = file.read(&mut buffer).await?;
        if n == 0 {
            return Ok(hash);
        }
        hash.update(&buffer[..n]);
    }
}

/// A file, and the digest of what goes into it.
struct Digested {
    file: fs::File,
    hash: Sha256,
}

impl AsyncWrite for Digested {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.file).poll_write(cx, bytes))?;
        self.hash.update(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_shutdown(cx)
    }
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
    async fn fetching_goes_on_and_compares() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("there");
        std::fs::write(&there, b"0123456789").unwrap();
        let files = Text::new(Local::default(), None, None, "/", None);
        let path = there.display().to_string();
        let stored = files.stat(std::slice::from_ref(&path)).await.unwrap()[0].clone().unwrap();
        let sha256 = stored.sha256.clone();
        let store = Store::new(dir.path().join("store"));
        // An earlier try got three bytes; what it got is not asked for again.
        let part = store.object("u", &sha256).unwrap().with_extension("part");
        std::fs::create_dir_all(part.parent().unwrap()).unwrap();
        std::fs::write(&part, b"012").unwrap();
        store.fetch(&files, "u", &path, &stored).await.unwrap();
        assert_eq!(std::fs::read(store.object("u", &sha256).unwrap()).unwrap(), b"0123456789");
        // One that got something else does not become a result.
        std::fs::remove_file(store.object("u", &sha256).unwrap()).unwrap();
        std::fs::write(&part, b"xyz").unwrap();
        let failed = store.fetch(&files, "u", &path, &stored).await;
        assert!(matches!(failed, Err(StoreError::Changed(_))), "{failed:?}");
        store.fetch(&files, "u", &path, &stored).await.unwrap();
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
