//! The programs under test as child processes, and what the kernel says about them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::process::{Child, Command};

use crate::http::{Grpc, Target};

/// A program that may take this long to answer.
const READY: Duration = Duration::from_secs(20);

/// A child process. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// Its id.
    pub(crate) pid: u32,
}

/// What a process has used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Resident bytes now.
    pub(crate) rss: u64,
    /// The part of these that is no copy of a file (the program itself is one, and shared).
    pub(crate) anon: u64,
    /// The most it ever had resident.
    pub(crate) peak: u64,
    /// Processor time in seconds, user and system.
    pub(crate) cpu: f64,
}

impl Process {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let child = command.stdin(Stdio::null()).kill_on_drop(true).spawn()?;
        let pid = child.id().context("the child has ended already")?;
        Ok(Self { child, pid })
    }

    /// Present figures.
    ///
    /// # Errors
    /// When the process is gone.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let kib = |name: &str| -> anyhow::Result<u64> {
            let line = status.lines().find(|l| l.starts_with(name)).context("no such line in status")?;
            Ok(line.split_ascii_whitespace().nth(1).context("no number")?.parse::<u64>()? * 1024)
        };
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // The second field is the name in parentheses and may hold anything.
        let rest = stat.rsplit_once(')').context("no name in stat")?.1;
        let mut ticks = 0;
        for f in rest.split_ascii_whitespace().skip(11).take(2) {
            ticks += f.parse::<u32>()?;
        }
        // Linux counts in hundredths of a second for every program, whatever the kernel's own tick.
        Ok(Usage { rss: kib("VmRSS:")?, anon: kib("RssAnon:")?, peak: kib("VmHWM:")?, cpu: f64::from(ticks) / 100.0 })
    }

    /// Starts the peak anew.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn forget_peak(&self) -> anyhow::Result<()> {
        std::fs::write(format!("/proc/{}/clear_refs", self.pid), "5").context("cannot reset the peak")
    }

    /// Asks it to end, waits, kills it when it does not.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        Command::new("kill").arg(self.pid.to_string()).status().await?;
        if tokio::time::timeout(Duration::from_secs(20), self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        Ok(())
    }

    /// `kill -9`, and waits.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}

/// A port nobody uses now.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A server of ours.
#[derive(Debug)]
pub(crate) struct Skiff {
    /// The process.
    pub(crate) process: Process,
    /// Its data.
    pub(crate) data: PathBuf,
    /// From start to the first `ok` of `/readyz`.
    pub(crate) ready_after: Duration,
}

impl Skiff {
    /// Starts `skiff apiserver` (or `up` with `all`) on an empty or used directory and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub(crate) async fn start(binary: &Path, data: PathBuf, all: bool) -> anyhow::Result<Self> {
        Self::start_with(binary, data, all, &[]).await
    }

    /// The same with further arguments.
    ///
    /// # Errors
    /// When it does not become ready.
    pub(crate) async fn start_with(binary: &Path, data: PathBuf, all: bool, more: &[String]) -> anyhow::Result<Self> {
        let port = free_port()?;
        let log = std::fs::File::options().create(true).append(true).open(data.with_extension("log"))?;
        let begun = Instant::now();
        let mut command = Command::new(binary);
        command.env("NO_COLOR", "1").args(["--log", "warn,skiff_kubelet::engine=debug"]);
        command.args([if all { "up" } else { "apiserver" }, "--no-kubeconfig", "--listen"]);
        command.arg(format!("127.0.0.1:{port}")).arg("--data-dir").arg(&data);
        if all {
            command.args(["--node-name", "skiff-bench", "--kubelet-port", &free_port()?.to_string()]);
        }
        command.args(more);
        let mut process = Process::start(command.stdout(log.try_clone()?).stderr(log))?;
        loop {
            let ready = async {
                let mut c = Target::of(&data, "admin").ok()?.h1().await.ok()?;
                (c.call("GET", "/readyz", b"").await.ok()?.code == 200).then_some(())
            };
            if ready.await.is_some() {
                break;
            }
            if let Some(ended) = process.child.try_wait()? {
                bail!("skiff ended with {ended}; see {}", data.with_extension("log").display());
            }
            if begun.elapsed() > READY {
                bail!("skiff was not ready in {READY:?}; see {}", data.with_extension("log").display());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(Self { process, data, ready_after: begun.elapsed() })
    }

    /// Starts another component beside it, which logs to a file of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn component(
        &self,
        binary: &Path,
        name: &str,
        identity: &str,
        args: &[&str],
    ) -> anyhow::Result<Process> {
        let log =
            std::fs::File::options().create(true).append(true).open(self.data.with_extension(format!("{name}.log")))?;
        let mut command = Command::new(binary);
        command.env("NO_COLOR", "1").args(["--log", "warn", name, "--data-dir"]).arg(&self.data).arg("--kubeconfig");
        command.arg(self.data.join(format!("kubeconfig/{identity}.yaml"))).args(args);
        Process::start(command.stdout(log.try_clone()?).stderr(log))
    }

    /// Starts an engine of workflows beside it, without doors of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn workflows(&self, binary: &Path) -> anyhow::Result<Process> {
        let log = std::fs::File::options().create(true).append(true).open(self.data.with_extension("workflows.log"))?;
        let mut command = Command::new(binary);
        command.env("NO_COLOR", "1").args([
            "--log",
            "warn",
            "workflows",
            "--workflows-port",
            "0",
            "--secure-port",
            "0",
        ]);
        command.arg("--kubeconfig").arg(self.data.join("kubeconfig/workflows.yaml"));
        Process::start(command.stdout(log.try_clone()?).stderr(log))
    }

    /// What it has logged so far.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn log(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.data.with_extension("log"))?)
    }

    /// How to reach it as one of the identities it writes kubeconfigs for.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub(crate) fn target(&self, identity: &str) -> anyhow::Result<Target> {
        Target::of(&self.data, identity)
    }
}

/// An etcd with one member, without TLS.
#[derive(Debug)]
pub(crate) struct Etcd {
    /// The process.
    pub(crate) process: Process,
    /// Where clients go.
    pub(crate) address: SocketAddr,
}

impl Etcd {
    /// Starts etcd on an empty directory. `None` when it is not installed.
    ///
    /// # Errors
    /// When it is installed and does not become ready.
    pub(crate) async fn start(data: PathBuf) -> anyhow::Result<Option<Self>> {
        let (client, peer) = (free_port()?, free_port()?);
        let url = |port| format!("http://127.0.0.1:{port}");
        let log = std::fs::File::create(data.with_extension("log"))?;
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(&data).args(["--name", "bench", "--log-level", "error"]);
        command.args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)]);
        command.args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)]);
        command.args(["--initial-cluster", &format!("bench={}", url(peer))]);
        let process = match Process::start(command.stdout(log.try_clone()?).stderr(log)) {
            Ok(p) => p,
            Err(e) if e.downcast_ref().is_some_and(|e: &std::io::Error| e.kind() == std::io::ErrorKind::NotFound) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, client));
        let begun = Instant::now();
        loop {
            if let Ok(mut c) = Grpc::connect(address).await
                && c.put(b"/ready", b"1").await.is_ok()
            {
                return Ok(Some(Self { process, address }));
            }
            if begun.elapsed() > READY {
                bail!("etcd was not ready in {READY:?}; see {}", data.with_extension("log").display());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
