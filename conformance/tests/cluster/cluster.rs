//! Starting and stopping the cluster under test, and asking kubectl.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Port of the API server under test: not the default, so that a person's cluster is told apart.
const PORT: u16 = 26443;
/// Patience for anything a cluster does by itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A running cluster. Its data are in a temporary directory that goes with it.
pub(crate) struct Cluster {
    binary: PathBuf,
    dir: tempfile::TempDir,
    process: Child,
    kubectl: PathBuf,
}

/// Output of a command.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

fn binary() -> Result<PathBuf> {
    if let Some(b) = std::env::var_os("SKIFF_BIN") {
        return Ok(b.into());
    }
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let found = target.parent().context("the target folder")?.join("debug/skiff");
    ensure!(found.exists(), "{} is missing: run `cargo build -p skiff` first", found.display());
    Ok(found)
}

/// kubectl that is no dispatcher, where there is a choice.
fn kubectl() -> PathBuf {
    std::env::var_os("SKIFF_KUBECTL").map_or_else(|| "kubectl".into(), PathBuf::from)
}

fn run(command: &mut Command) -> Result<Output> {
    let o = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    Ok(Output { code: o.status.code().unwrap_or(-1), out: text(o.stdout), err: text(o.stderr) })
}

impl Cluster {
    /// Starts a cluster and waits until its node is Ready.
    pub(crate) fn start() -> Result<Self> {
        let o = run(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]))?;
        ensure!(o.code == 0, "no engine answers: {}", o.err.trim());
        let o = run(Command::new("docker").args(["image", "inspect", "skiff/busybox:1"]))?;
        ensure!(o.code == 0, "the image skiff/busybox:1 is missing: run hack/images.sh");
        let dir = tempfile::tempdir()?;
        let binary = binary()?;
        let process = spawn(&binary, &dir)?;
        let mut c = Self { binary, dir, process, kubectl: kubectl() };
        c.await_ready()?;
        Ok(c)
    }

    /// Waits until the API answers and the node is Ready.
    pub(crate) fn await_ready(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait()? {
                self.show_log();
                bail!("skiff ended by itself: {status}");
            }
            let path = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
            let o = self.kubectl(&["get", "nodes", "-o", path])?;
            if o.out.trim() == "True" {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the node is not Ready: {}{}", o.out, o.err);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs kubectl.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<Output> {
        run(self.command(args).args(args))
    }

    fn command(&self, _args: &[&str]) -> Command {
        let mut c = Command::new(&self.kubectl);
        c.env("KUBECONFIG", self.dir.path().join("kubeconfig")).env("HOME", self.dir.path());
        c
    }

    /// Runs kubectl in the background.
    pub(crate) fn background(&self, args: &[&str]) -> Result<Child> {
        let mut c = self.command(args);
        Ok(c.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?)
    }

    /// Runs kubectl, which must succeed; answers what it printed.
    pub(crate) fn ok(&self, args: &[&str]) -> Result<String> {
        let o = self.kubectl(args)?;
        ensure!(o.code == 0, "kubectl {}: {}{}", args.join(" "), o.out, o.err);
        Ok(o.out)
    }

    /// Feeds a manifest to kubectl.
    pub(crate) fn apply(&self, args: &[&str], manifest: &str) -> Result<Output> {
        let file = self.dir.path().join("manifest.yaml");
        std::fs::write(&file, manifest)?;
        let mut all = args.to_vec();
        let path = file.to_string_lossy().into_owned();
        all.extend(["-f", &path]);
        self.kubectl(&all)
    }

    /// Reads an object.
    pub(crate) fn get(&self, ns: &str, what: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.ok(&["-n", ns, "get", what, "-o", "json"])?)?)
    }

    /// Waits until `check` holds.
    pub(crate) fn eventually(&self, what: &str, mut check: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            if check(self)? {
                return Ok(());
            }
            ensure!(Instant::now() < end, "timed out waiting until {what}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Makes a namespace and waits for what every namespace has.
    pub(crate) fn namespace(&self, ns: &str) -> Result<()> {
        self.ok(&["create", "namespace", ns])?;
        self.eventually("the namespace has its account", |c| {
            Ok(c.kubectl(&["-n", ns, "get", "serviceaccount", "default"])?.code == 0
                && c.kubectl(&["-n", ns, "get", "configmap", "kube-root-ca.crt"])?.code == 0)
        })
    }

    /// Removes a namespace.
    pub(crate) fn forget(&self, ns: &str) {
        if let Err(e) = self.kubectl(&["delete", "namespace", ns, "--wait=false"]) {
            println!("cannot delete {ns}: {e:#}");
        }
    }

    /// `kill -9`, and a new process on the same data.
    pub(crate) fn crash_and_restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = spawn(&self.binary, &self.dir)?;
        self.await_ready()
    }

    /// Containers of pods that run now, with their start times.
    pub(crate) fn containers(&self) -> Result<Vec<String>> {
        let o = run(Command::new("docker").args(["ps", "--no-trunc", "--format", "{{.ID}} {{.CreatedAt}}"]))?;
        let mut all: Vec<String> = o.out.lines().map(str::to_owned).collect();
        all.sort();
        Ok(all)
    }

    pub(crate) fn show_log(&self) {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        println!("--- the last lines of the log\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
    }

    /// Stops the cluster and removes what it left on the machine.
    pub(crate) fn stop(mut self) {
        let pid = self.process.id().to_string();
        let _ = run(Command::new("kill").arg(&pid));
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end && self.process.try_wait().is_ok_and(|s| s.is_none()) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        let down = run(Command::new(&self.binary)
            .args(["--log", "warn", "down", "--purge", "--data-dir"])
            .arg(self.dir.path().join("data"))
            .arg("--kubeconfig")
            .arg(self.dir.path().join("kubeconfig")));
        match down {
            Ok(o) if o.code == 0 => {}
            Ok(o) => println!("down: {}{}", o.out, o.err),
            Err(e) => println!("down: {e:#}"),
        }
    }
}

fn spawn(binary: &PathBuf, dir: &tempfile::TempDir) -> Result<Child> {
    let log = File::options().create(true).append(true).open(dir.path().join("log"))?;
    let listen = format!("0.0.0.0:{PORT}");
    let mut c = Command::new(binary);
    c.args(["up", "--node-name", "node1", "--listen", &listen, "--data-dir"])
        .arg(dir.path().join("data"))
        .arg("--kubeconfig")
        .arg(dir.path().join("kubeconfig"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    c.spawn().with_context(|| format!("cannot run {}", binary.display()))
}
