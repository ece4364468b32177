//! The audit log: a file of JSON lines for its owner's eyes only, which is put aside when it has grown, and thrown away when it
//! is old. Whoever records waits while the disk is slower than the requests, so nothing is dropped but at the end of a long
//! answer, where nobody can wait: that is counted.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::sync::mpsc;

/// Lines that wait for the disk.
const WAITING: usize = 4096;

/// Where the log goes, and how long it stays.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The file; `-` is standard output.
    pub path: PathBuf,
    /// Days after which a file that was put aside is deleted; 0 is never.
    pub max_age_days: u32,
    /// Files that were put aside that are kept; 0 is all.
    pub max_backups: usize,
    /// Megabytes at which a file is put aside; 0 is never.
    pub max_size_mb: u64,
}

/// What became of lines.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Written.
    pub(super) written: AtomicU64,
    /// Not written.
    pub(super) lost: AtomicU64,
}

/// The way to the file.
#[derive(Debug)]
pub(super) struct Log {
    sender: mpsc::Sender<Vec<u8>>,
    pub(super) counts: Arc<Counts>,
}

impl Log {
    /// Opens the file and starts what writes it.
    pub(super) fn open(config: LogConfig) -> std::io::Result<Self> {
        let mut writer = Writer::open(config)?;
        let (sender, mut lines) = mpsc::channel::<Vec<u8>>(WAITING);
        let counts = Arc::new(Counts::default());
        let told = Arc::clone(&counts);
        // A thread of its own: it waits for the disk, and nothing waits for it to end.
        std::thread::Builder::new().name("audit".into()).spawn(move || {
            let mut broken = false;
            while let Some(line) = lines.blocking_recv() {
                let done = writer.write(&line).and_then(|()| if lines.is_empty() { writer.flush() } else { Ok(()) });
                let counter = if done.is_ok() { &told.written } else { &told.lost };
                counter.fetch_add(1, Ordering::Relaxed);
                if let (Err(error), false) = (&done, broken) {
                    tracing::error!(%error, "the audit log cannot be written");
                }
                broken = done.is_err();
            }
        })?;
        Ok(Self { sender, counts })
    }

    /// Hands a line over, and waits for room.
    pub(super) async fn put(&self, line: Vec<u8>) {
        if self.sender.send(line).await.is_err() {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Hands a line over if there is room.
    pub(super) fn try_put(&self, line: Vec<u8>) {
        if self.sender.try_send(line).is_err() {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Writer {
    config: LogConfig,
    file: Option<BufWriter<File>>,
    size: u64,
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

impl Writer {
    fn open(config: LogConfig) -> std::io::Result<Self> {
        if config.path == Path::new("-") {
            return Ok(Self { config, file: None, size: 0 });
        }
        if let Some(parent) = config.path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = open(&config.path)?;
        let size = file.metadata()?.len();
        Ok(Self { config, file: Some(BufWriter::new(file)), size })
    }

    fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        let limit = self.config.max_size_mb.saturating_mul(1 << 20);
        if self.file.is_some() && limit > 0 && self.size > 0 && self.size + line.len() as u64 > limit {
            self.turn()?;
        }
        self.size += line.len() as u64;
        match &mut self.file {
            Some(file) => file.write_all(line),
            None => std::io::stdout().write_all(line),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.as_mut().map_or(Ok(()), std::io::Write::flush)
    }

    /// `NAME-TIME.EXTENSION`, the time in UTC.
    fn aside(&self) -> PathBuf {
        let (stem, end) = self.parts();
        let time = Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S%.3f");
        self.config.path.with_file_name(format!("{stem}-{time}{end}"))
    }

    fn parts(&self) -> (String, String) {
        let text = |s: Option<&std::ffi::OsStr>| s.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let end = text(self.config.path.extension());
        (text(self.config.path.file_stem()), if end.is_empty() { end } else { format!(".{end}") })
    }

    fn turn(&mut self) -> std::io::Result<()> {
        self.flush()?;
        std::fs::rename(&self.config.path, self.aside())?;
        self.file = Some(BufWriter::new(open(&self.config.path)?));
        self.size = 0;
        self.clean()
    }

    /// Deletes what was put aside and is too old or too much.
    fn clean(&self) -> std::io::Result<()> {
        let (stem, end) = self.parts();
        let parent = self.config.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut old = vec![];
        for entry in std::fs::read_dir(parent)? {
            let path = entry?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let middle = name.strip_prefix(&format!("{stem}-")).and_then(|n| n.strip_suffix(&end));
            if middle.is_some_and(|m| m.len() == 23 && m.as_bytes()[10] == b'T') {
                old.push(path);
            }
        }
        // Names sort by time.
        old.sort_unstable_by(|a, b| b.cmp(a));
        let age = Duration::from_secs(u64::from(self.config.max_age_days) * 86_400);
        for (n, path) in old.iter().enumerate() {
            let too_many = self.config.max_backups > 0 && n >= self.config.max_backups;
            let modified = std::fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::now());
            let too_old = !age.is_zero() && modified.elapsed().is_ok_and(|e| e > age);
            if too_many || too_old {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_put_aside_and_thrown_away() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let config = LogConfig { path: path.clone(), max_age_days: 0, max_backups: 2, max_size_mb: 1 };
        std::fs::write(dir.path().join("audit-notes.log"), "mine").unwrap();
        let mut writer = Writer::open(config).unwrap();
        let line = vec![b'x'; 600 << 10];
        let mut asides = 0;
        for _ in 0..5 {
            // Two files put aside within a millisecond would have one name.
            std::thread::sleep(Duration::from_millis(3));
            writer.write(&line).unwrap();
            asides = std::fs::read_dir(dir.path()).unwrap().count();
        }
        writer.flush().unwrap();
        assert_eq!(asides, 4, "the file, two before it, and what is somebody else's");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 600 << 10);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(dir.path().join("audit-notes.log").exists());
    }
}
