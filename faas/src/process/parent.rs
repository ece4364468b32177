//! The warm parent seen from here: it is started, told, listened to.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};

use super::limits::Groups;

/// Time for the parent to import everything and build its root.
const SETUP: Duration = Duration::from_secs(20);

/// What the parent is told of an instance.
#[derive(Debug, Serialize)]
pub(super) struct Order {
    pub(super) id: String,
    /// Directory of the code, below that of all codes.
    pub(super) code: String,
    /// Directory of its packages, below that of all packages.
    pub(super) packages: Option<String>,
    pub(super) uid: u32,
    pub(super) hostname: String,
    /// Bytes of `/tmp`.
    pub(super) tmp: u64,
    pub(super) files: u64,
    pub(super) pids: u64,
    /// Bytes, where no control group bounds memory.
    pub(super) address_space: Option<u64>,
    pub(super) environment: std::collections::HashMap<String, String>,
    /// Another program instead of Python.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exec: Option<Vec<String>>,
}

/// What the parent tells.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Told {
    pub(super) ready: bool,
    pub(super) id: String,
    pub(super) status: i32,
    pub(super) signal: bool,
    pub(super) fault: Option<String>,
}

/// One parent that is there.
#[derive(Debug)]
pub(super) struct Parent {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    dead: AtomicBool,
}

/// What comes from it.
pub(super) struct Reader {
    lines: Lines<BufReader<OwnedReadHalf>>,
    /// Ends with this value.
    _child: Child,
}

impl Parent {
    /// Starts one. `dir` has the folders `lib`, `root`, `code`, `packages`, `run`.
    pub(super) async fn start(
        dir: &Path,
        python: &Path,
        prefixes: &[String],
        groups: &Groups,
    ) -> anyhow::Result<(Self, Reader)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let log = std::fs::File::create(dir.join("parent.log"))?;
        let lib = dir.join("lib");
        let child = Command::new(python)
            .args(["-I", "-S", "-X", "utf8"])
            .arg(lib.join("parent.py"))
            .arg(&lib)
            .env_clear()
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} cannot be started", python.display()))?;
        let (read, write) = UnixStream::from_std(ours)?.into_split();
        let parent = Self { writer: tokio::sync::Mutex::new(write), dead: AtomicBool::new(false) };
        let mut reader = Reader { lines: BufReader::new(read).lines(), _child: child };
        let cgroups: serde_json::Map<_, _> =
            groups.places().map(|(kind, place)| (kind.to_owned(), json!(place))).collect();
        let setup = json!({"setup": {
            "root": dir.join("root"), "lib": lib, "code": dir.join("code"), "packages": dir.join("packages"), "run": dir.join("run"),
            "prefixes": prefixes, "cgroups": cgroups,
        }});
        parent.write(&setup).await?;
        match tokio::time::timeout(SETUP, reader.next()).await {
            Ok(Some(told)) if told.ready => Ok((parent, reader)),
            _ => {
                let said = std::fs::read_to_string(dir.join("parent.log")).unwrap_or_default();
                let last = said.lines().last().unwrap_or("it said nothing").to_owned();
                anyhow::bail!("the warm parent of functions did not start: {last}")
            }
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    pub(super) fn died(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    pub(super) async fn order(&self, order: &Order) -> anyhow::Result<()> {
        self.write(order).await.context("the warm parent of functions does not listen")
    }

    pub(super) async fn stop(&self, id: &str) -> anyhow::Result<()> {
        self.write(&json!({"stop": id})).await.context("the warm parent of functions does not listen")
    }

    /// Lets it end, and with it what it started.
    pub(super) async fn end(&self) {
        // One that is gone already is as good.
        let _ = self.writer.lock().await.shutdown().await;
    }

    async fn write(&self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.writer.lock().await.write_all(&line).await
    }
}

impl Reader {
    /// The next message; none when the parent has ended.
    pub(super) async fn next(&mut self) -> Option<Told> {
        loop {
            let line = self.lines.next_line().await.ok()??;
            match serde_json::from_str(&line) {
                Ok(told) => return Some(told),
                Err(error) => tracing::warn!(%error, "a message of the warm parent cannot be read"),
            }
        }
    }
}
