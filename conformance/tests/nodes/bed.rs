//! The test bed, and what tests ask of it.

use std::fs::File;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

/// Patience for anything that must come true.
const PATIENCE: Duration = Duration::from_secs(90);
/// A node that is silent for this long is taken for dead; leases are renewed every 10 s.
pub(crate) const GRACE: &str = "22s";

/// Addresses of LoadBalancer Services, on the segment that the nodes share with this machine.
const BALANCERS: &str = "10.89.0.200-10.89.0.201";

/// A running bed. It is removed with the value.
pub(crate) struct Bed {
    root: PathBuf,
    run: PathBuf,
    binary: PathBuf,
    pub(crate) nodes: Vec<String>,
    /// Where the CNI configuration of the first node is, if it has one.
    pub(crate) plugins: Option<tempfile::TempDir>,
}

/// Output of a command.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

fn run(command: &mut Command) -> Result<Output> {
    let o = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    Ok(Output { code: o.status.code().unwrap_or(-1), out: text(o.stdout), err: text(o.stderr) })
}

impl Drop for Bed {
    fn drop(&mut self) {
        match self.script(&["down"]) {
            Ok(o) if o.code == 0 => {}
            other => println!("the bed could not be removed: {other:?}"),
        }
    }
}

impl Bed {
    /// Starts a server and nodes that join it; with `plugins` CNI plugins make the first node's pod network.
    pub(crate) fn up(nodes: usize, network: &str, plugins: bool) -> Result<Self> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().context("the repository")?.to_owned();
        let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let built = target.parent().context("the target folder")?.join("debug/skiff");
        let binary = std::env::var_os("SKIFF_BIN").map_or(built, PathBuf::from);
        ensure!(binary.exists(), "{} is missing: run `cargo build -p skiff` first", binary.display());
        let run = std::env::var_os("SKIFF_TESTBED_RUN").map_or("/run/skiff-testbed".into(), PathBuf::from);
        let plugins = plugins.then(tempfile::tempdir).transpose()?;
        let mut more = vec![];
        if let Some(dir) = &plugins {
            crate::plugins::configure(dir.path())?;
            more.push(format!("--cni-conf-dir={}", dir.path().display()));
        }
        let bed = Self { root, run, binary, nodes: (1..=nodes).map(|i| format!("n{i}")).collect(), plugins };
        // What an earlier run that was killed left.
        bed.script(&["down"])?;
        let flags = ["--pod-network", network, "--node-monitor-grace-period", GRACE, "--load-balancer", BALANCERS];
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let o = bed.script(&[&["up", &nodes.to_string()], &flags[..], &more[..]].concat())?;
        ensure!(o.code == 0, "{}{}", o.out, o.err);
        Ok(bed)
    }

    /// Runs the script.
    pub(crate) fn script(&self, args: &[&str]) -> Result<Output> {
        run(Command::new(self.root.join("hack/testbed.sh")).args(args).env("SKIFF_BIN", &self.binary))
    }

    /// Does something to a node: `cut`, `heal`, `kill`, `start`.
    pub(crate) fn node(&self, verb: &str, node: &str) -> Result<()> {
        let o = self.script(&[verb, node])?;
        ensure!(o.code == 0, "{verb} {node}: {}", o.err);
        Ok(())
    }

    /// Runs a command in a node's network, with its engine.
    pub(crate) fn on(&self, node: &str, args: &[&str]) -> Result<Output> {
        self.script(&[&["exec", node], args].concat())
    }

    /// Runs our program in a node's network.
    pub(crate) fn skiff(&self, node: &str, args: &[&str]) -> Result<Output> {
        let binary = self.binary.to_string_lossy().into_owned();
        self.on(node, &[&[binary.as_str()], args].concat())
    }

    /// `kubectl func ...`, which must succeed; answers what it printed.
    pub(crate) fn func(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.binary);
        command.arg("func").args(args).env("KUBECONFIG", self.run.join("kubeconfig")).env("HOME", &self.run);
        let o = run(&mut command)?;
        ensure!(o.code == 0, "kubectl func {}: {}{}", args.join(" "), o.out, o.err);
        Ok(o.out)
    }

    /// Where a node keeps what is its own.
    pub(crate) fn data(&self, node: &str) -> String {
        let store = std::env::var("SKIFF_TESTBED_DATA").unwrap_or_else(|_| "/var/lib/skiff-testbed".into());
        format!("{store}/{node}/skiff")
    }

    /// Runs kubectl.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<Output> {
        let program = std::env::var_os("SKIFF_KUBECTL").map_or_else(|| "kubectl".into(), PathBuf::from);
        run(Command::new(program).args(args).env("KUBECONFIG", self.run.join("kubeconfig")).env("HOME", &self.run))
    }

    /// Runs kubectl, which must succeed; answers what it printed.
    pub(crate) fn ok(&self, args: &[&str]) -> Result<String> {
        let o = self.kubectl(args)?;
        ensure!(o.code == 0, "kubectl {}: {}{}", args.join(" "), o.out, o.err);
        Ok(o.out)
    }

    /// Feeds a manifest to kubectl.
    pub(crate) fn apply(&self, manifest: &str) -> Result<()> {
        let file = self.run.join("manifest.yaml");
        std::fs::write(&file, manifest)?;
        self.ok(&["apply", "-f", &file.to_string_lossy()]).map(drop)
    }

    /// Reads objects.
    pub(crate) fn get(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.ok(&[&["get", "-o", "json"], args].concat())?)?)
    }

    /// Waits until `check` holds.
    pub(crate) fn eventually(&self, what: &str, check: impl FnMut() -> Result<bool>) -> Result<()> {
        self.within(PATIENCE, what, check)
    }

    /// The same, with a time of its own.
    pub(crate) fn within(&self, time: Duration, what: &str, mut check: impl FnMut() -> Result<bool>) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            if check()? {
                return Ok(());
            }
            ensure!(Instant::now() < end, "timed out waiting until {what}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The status of a node's Ready condition.
    pub(crate) fn ready(&self, node: &str) -> Result<String> {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        Ok(self.kubectl(&["get", "node", node, "-o", path])?.out)
    }

    /// A node's Ready condition.
    pub(crate) fn readiness(&self, node: &str) -> Result<Value> {
        let node = self.get(&["node", node])?;
        let conditions = node["status"]["conditions"].as_array();
        conditions.into_iter().flatten().find(|c| c["type"] == "Ready").cloned().context("a node without Ready")
    }

    /// What a node's skiff has said since the bed is up.
    pub(crate) fn log(&self, node: &str) -> Result<String> {
        Ok(std::fs::read_to_string(self.run.join(node).join("skiff.log"))?)
    }

    /// Ids of the containers that run on a node.
    pub(crate) fn containers(&self, node: &str) -> Result<Vec<String>> {
        let mut all: Vec<String> = self.on(node, &["docker", "ps", "-q"])?.out.lines().map(str::to_owned).collect();
        all.sort();
        Ok(all)
    }

    /// A socket in the network of a pod.
    pub(crate) fn socket(&self, node: &str, pod: &str, port: u16) -> Result<UdpSocket> {
        let filter = format!("label=io.kubernetes.pod.name={pod}");
        let ids = self.on(node, &["docker", "ps", "-q", "--filter", &filter])?;
        let id = ids.out.lines().next().with_context(|| format!("no container of {pod} on {node}"))?.to_owned();
        let pid = self.on(node, &["docker", "inspect", "-f", "{{.State.Pid}}", &id])?;
        let network = File::open(format!("/proc/{}/ns/net", pid.out.trim()))?;
        // A namespace belongs to a thread; the socket stays in it.
        let open = move || -> Result<UdpSocket> {
            setns(network, CloneFlags::CLONE_NEWNET)?;
            let socket = UdpSocket::bind(("0.0.0.0", port))?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            Ok(socket)
        };
        match std::thread::spawn(open).join() {
            Ok(socket) => socket,
            Err(_) => bail!("the thread in the pod's network panicked"),
        }
    }

    /// Prints the ends of the nodes' logs.
    pub(crate) fn show_logs(&self) {
        for node in &self.nodes {
            let log = self.log(node).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            println!("--- the log of {node}\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }
}
