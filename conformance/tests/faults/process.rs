//! A server process under test.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// Patience for a start or an end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program, as `cargo build -p skiff` leaves it.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(b) = std::env::var_os("SKIFF_BIN") {
        return Ok(b.into());
    }
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let found = target.parent().context("the target folder")?.join("debug/skiff");
    ensure!(found.exists(), "{} is missing: run `cargo build -p skiff` first", found.display());
    Ok(found)
}

/// Runs the program until it ends by itself; kills it when that takes too long.
pub(crate) fn run(args: &[&str]) -> Result<Output> {
    let mut child = Command::new(binary()?)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let end = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > end {
            child.kill()?;
            bail!("`skiff {}` does not end: {:?}", args.join(" "), child.wait_with_output()?);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(child.wait_with_output()?)
}

/// A port that nobody uses now.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// An API server. Killed when dropped.
pub(crate) struct Api {
    child: Child,
    data: PathBuf,
    log: PathBuf,
    port: u16,
    more: Vec<String>,
}

impl Api {
    /// Starts a server on `data` and waits until it is ready.
    pub(crate) async fn start(data: &Path, log: &Path) -> Result<Self> {
        Self::start_with(data, log, &[]).await
    }

    /// As [`Api::start`], with further arguments.
    pub(crate) async fn start_with(data: &Path, log: &Path, more: &[String]) -> Result<Self> {
        let (port, more) = (free_port()?, more.to_vec());
        let child = spawn(data, log, port, &more)?;
        let mut api = Self { child, data: data.to_owned(), log: log.to_owned(), port, more };
        api.await_ready().await?;
        Ok(api)
    }

    async fn await_ready(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended: {status}\n{}", self.said());
            }
            if let Ok(client) = self.client().await
                && client.apiserver_version().await.is_ok()
            {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the server is not ready\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What the server logged.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A client with the administrator's certificate.
    pub(crate) async fn client(&self) -> Result<kube::Client> {
        let file = self.data.join("kubeconfig/admin.yaml");
        let mut config = kube::Config::from_custom_kubeconfig(
            kube::config::Kubeconfig::read_from(file)?,
            &kube::config::KubeConfigOptions::default(),
        )
        .await?;
        config.connect_timeout = Some(Duration::from_secs(2));
        config.read_timeout = Some(Duration::from_secs(30));
        Ok(kube::Client::try_from(config)?)
    }

    /// Whether the process still runs.
    pub(crate) fn alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// A new process on the same data and port.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.child = spawn(&self.data, &self.log, self.port, &self.more)?;
        self.await_ready().await
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        // It may have ended already, which is what matters.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(data: &Path, log: &Path, port: u16, more: &[String]) -> Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    let listen = format!("127.0.0.1:{port}");
    let mut c = Command::new(binary()?);
    c.args(["--log", "warn", "apiserver", "--no-kubeconfig", "--listen", &listen, "--data-dir"]).arg(data).args(more);
    Ok(c.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?)
}
