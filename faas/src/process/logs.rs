//! What instances print: a bounded file each, which outlives them for a while, and a channel for those who follow.
//!
//! A line is `TIME TEXT`. A file that is full is kept as `.1` and begun anew, so an instance has at most twice the bound; a
//! function keeps the files of its newest instances.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::sync::broadcast;

use crate::instance::Line;

/// Most bytes of one file.
const MAX_FILE: u64 = 1 << 20;
/// Instances whose files are kept, per function.
const KEPT: usize = 8;
/// Most bytes of one line; the rest is a line of its own.
const MAX_LINE: u64 = 16 << 10;
/// Lines that one who follows may be behind before it misses some.
const BEHIND: usize = 1024;

/// The logs of all instances of this node.
#[derive(Debug)]
pub(super) struct Logs {
    dir: PathBuf,
    lines: broadcast::Sender<Line>,
}

impl Logs {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, lines: broadcast::channel(BEHIND).0 }
    }

    pub(super) fn follow(&self) -> broadcast::Receiver<Line> {
        self.lines.subscribe()
    }

    fn of(&self, namespace: &str, function: &str) -> PathBuf {
        self.dir.join(namespace).join(function)
    }

    /// Takes everything from `pipe` until its end; then tells the last lines.
    pub(super) async fn keep(
        &self,
        namespace: Arc<str>,
        function: Arc<str>,
        instance: Arc<str>,
        pipe: impl AsyncRead + Unpin,
    ) {
        let dir = self.of(&namespace, &function);
        let mut file = match Rotated::open(&dir, &instance) {
            Ok(file) => Some(file),
            Err(error) => {
                tracing::warn!(%error, dir = %dir.display(), "no log of this instance can be kept");
                None
            }
        };
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while next_line(&mut pipe, &mut line).await {
            let text = format!(
                "{:.6} {}",
                jiff::Timestamp::now(),
                String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r'])
            );
            if let Some(open) = &mut file
                && let Err(error) = open.write(&text)
            {
                tracing::warn!(%error, instance = %instance, "its log is not kept any more");
                file = None;
            }
            if self.lines.receiver_count() > 0 {
                let line =
                    Line { namespace: namespace.clone(), function: function.clone(), instance: instance.clone(), text };
                let _ = self.lines.send(line);
            }
            line.clear();
        }
    }

    /// The last `lines` lines of every instance of a function that is remembered, older instances first.
    pub(super) fn tail(&self, namespace: &str, function: &str, instance: Option<&str>, lines: usize) -> Vec<Line> {
        // Names become parts of paths: only those that objects may have.
        let plain = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains('/');
        if ![namespace, function].into_iter().chain(instance).all(plain) {
            return Vec::new();
        }
        let dir = self.of(namespace, function);
        let (namespace, function): (Arc<str>, Arc<str>) = (namespace.into(), function.into());
        let mut all = Vec::new();
        for path in files(&dir).into_iter().filter(|p| instance.is_none_or(|i| p.file_stem().is_some_and(|s| s == i))) {
            let name: Arc<str> = path.file_stem().unwrap_or_default().to_string_lossy().into();
            let old = std::fs::read_to_string(path.with_extension("log.1")).unwrap_or_default();
            let new = std::fs::read_to_string(&path).unwrap_or_default();
            let texts: Vec<&str> = old.lines().chain(new.lines()).collect();
            let of = |text: &&str| Line {
                namespace: namespace.clone(),
                function: function.clone(),
                instance: name.clone(),
                text: (*text).to_owned(),
            };
            all.extend(texts[texts.len().saturating_sub(lines)..].iter().map(of));
        }
        all
    }

    /// Forgets the logs of a function.
    pub(super) fn forget(&self, namespace: &str, function: &str) {
        let _ = std::fs::remove_dir_all(self.of(namespace, function));
    }
}

/// Reads a line, at most so much of it; false at the end.
async fn next_line(pipe: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> bool {
    matches!(pipe.take(MAX_LINE).read_until(b'\n', line).await, Ok(n) if n > 0)
}

/// Files of a function's instances, the oldest first.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<_> = entries
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
        .map(|p| (std::fs::metadata(&p).and_then(|m| m.modified()).ok(), p))
        .collect();
    all.sort();
    all.into_iter().map(|(_, path)| path).collect()
}

struct Rotated {
    path: PathBuf,
    file: std::fs::File,
    size: u64,
}

impl Rotated {
    fn open(dir: &Path, instance: &str) -> std::io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let old = files(dir);
        for path in old.iter().take((old.len() + 1).saturating_sub(KEPT)) {
            let _ = std::fs::remove_file(path);
            let _ = std::fs::remove_file(path.with_extension("log.1"));
        }
        let path = dir.join(format!("{instance}.log"));
        let file = std::fs::File::create(&path)?;
        Ok(Self { path, file, size: 0 })
    }

    /// Short and to the page cache: it does not wait for the disk.
    fn write(&mut self, text: &str) -> std::io::Result<()> {
        if self.size > MAX_FILE {
            std::fs::rename(&self.path, self.path.with_extension("log.1"))?;
            self.file = std::fs::File::create(&self.path)?;
            self.size = 0;
        }
        self.size += text.len() as u64 + 1;
        self.file.write_all(format!("{text}\n").as_bytes())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn logs_are_bounded_and_followed() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::new(dir.path().to_owned());
        let mut follower = logs.follow();
        logs.keep("ns".into(), "f".into(), "i-0".into(), &b"one\ntwo\nthree"[..]).await;
        assert!(follower.recv().await.unwrap().text.ends_with("Z one"));
        let last = logs.tail("ns", "f", None, 2);
        assert!(last.len() == 2 && last[1].text.ends_with(" three") && &*last[1].instance == "i-0", "{last:?}");

        let long = vec![b'x'; 5 << 20];
        logs.keep("ns".into(), "f".into(), "i-1".into(), &long[..]).await;
        let size: u64 =
            std::fs::read_dir(dir.path().join("ns/f")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(size < 3 * MAX_FILE, "{size}");

        for number in 2..20 {
            logs.keep("ns".into(), "f".into(), format!("i-{number}").into(), &b"x\n"[..]).await;
        }
        assert_eq!(files(&dir.path().join("ns/f")).len(), KEPT);
        assert!(logs.tail("..", "f", None, 2).is_empty() && logs.tail("ns", "f", Some("../x"), 1).is_empty());
        logs.forget("ns", "f");
        assert!(logs.tail("ns", "f", None, 1).is_empty());
    }
}
