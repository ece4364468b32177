//! Starting and stopping the cluster under test, and asking kubectl.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
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
    /// Components that run as processes of their own, by name.
    apart: Vec<(&'static str, Child)>,
    kubectl: PathBuf,
}

/// Components beside the API server.
pub(crate) const COMPONENTS: [&str; 4] = ["controller-manager", "scheduler", "kubelet", "proxy"];

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

/// The root of the repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    run_with(command, Stdio::null())
}

/// Runs a program with an input to its end.
fn run_with(command: &mut Command, input: Stdio) -> Result<Output> {
    let o = command.stdin(input).output().with_context(|| format!("cannot run {command:?}"))?;
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    Ok(Output { code: o.status.code().unwrap_or(-1), out: text(o.stdout), err: text(o.stderr) })
}

impl Cluster {
    /// Starts a cluster and waits until its node is Ready.
    pub(crate) fn start() -> Result<Self> {
        Self::begin("up")
    }

    /// Starts each component as a process of its own, with its own kubeconfig.
    pub(crate) fn start_apart() -> Result<Self> {
        let mut c = Self::begin("apiserver")?;
        let result = COMPONENTS.iter().try_for_each(|name| c.start_component(name)).and_then(|()| c.await_ready());
        match result {
            Ok(()) => Ok(c),
            Err(e) => {
                c.show_log();
                c.stop();
                Err(e)
            }
        }
    }

    /// Starts one component.
    pub(crate) fn start_component(&mut self, name: &'static str) -> Result<()> {
        let data = self.data_dir();
        let config = data.join(format!("kubeconfig/{name}.yaml"));
        let mut args = vec!["--data-dir".into(), data.into_os_string(), "--kubeconfig".into(), config.into_os_string()];
        if matches!(name, "kubelet" | "proxy") {
            args.extend(["--node-name".into(), "node1".into()]);
        }
        self.start_process(name, &args)
    }

    /// Starts the program again beside the others, as `name` with these arguments.
    pub(crate) fn start_process(&mut self, name: &'static str, args: &[OsString]) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log"))?;
        let mut command = Command::new(&self.binary);
        command.arg(name).args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.apart.push((name, command.spawn()?));
        Ok(())
    }

    /// Where the server has its data.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Writes the kubeconfig of a ServiceAccount, with a token of its own.
    pub(crate) fn kubeconfig_of(&self, ns: &str, account: &str, path: &Path) -> Result<()> {
        let token = self.ok(&["-n", ns, "create", "token", account, "--duration=2h"])?;
        let file = format!("--kubeconfig={}", path.display());
        let (server, ca) =
            (format!("--server=https://127.0.0.1:{PORT}"), self.data_dir().join("pki/ca.crt").display().to_string());
        let authority = format!("--certificate-authority={ca}");
        self.ok(&["config", &file, "set-cluster", "c", &server, &authority, "--embed-certs"])?;
        self.ok(&["config", &file, "set-credentials", account, "--token", token.trim()])?;
        self.ok(&["config", &file, "set-context", "c", "--cluster=c", "--user", account])?;
        self.ok(&["config", &file, "use-context", "c"])?;
        Ok(())
    }

    /// `kill -9` of one component.
    pub(crate) fn kill_component(&mut self, name: &str) -> Result<()> {
        let at = self.apart.iter().position(|(n, _)| *n == name).with_context(|| format!("{name} does not run"))?;
        let (_, mut child) = self.apart.remove(at);
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn begin(what: &str) -> Result<Self> {
        let o = run(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]))?;
        ensure!(o.code == 0, "no engine answers: {}", o.err.trim());
        let o = run(Command::new("docker").args(["image", "inspect", "skiff/busybox:1"]))?;
        ensure!(o.code == 0, "the image skiff/busybox:1 is missing: run hack/images.sh");
        let dir = tempfile::tempdir()?;
        let binary = binary()?;
        let process = spawn(&binary, &dir, what, &[])?;
        let mut c = Self { binary, dir, process, apart: vec![], kubectl: kubectl() };
        if what == "up" {
            if let Err(e) = c.await_ready().and_then(|()| c.takes_pods()) {
                c.stop();
                return Err(e);
            }
        } else {
            c.eventually("the API answers", |c| Ok(c.kubectl(&["get", "namespaces"])?.code == 0))?;
        }
        Ok(c)
    }

    /// A machine that is short of disk or memory fails every case below: it is told once, and by its name.
    fn takes_pods(&self) -> Result<()> {
        let path = "jsonpath={.items[*].status.conditions[?(@.status==\"True\")].message}";
        let o = self.kubectl(&["get", "nodes", "-o", path])?;
        ensure!(!o.out.contains("pressure") && !o.out.contains("insufficient"), "the machine is short: {}", o.out);
        Ok(())
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

    /// Process of the server, or of everything.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The program under test.
    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    /// Runs kubectl.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<Output> {
        run(self.command().args(args))
    }

    fn command(&self) -> Command {
        self.command_of(&self.kubectl)
    }

    fn command_of(&self, program: &Path) -> Command {
        let mut c = Command::new(program);
        c.env("KUBECONFIG", self.dir.path().join("kubeconfig")).env("HOME", self.dir.path());
        c
    }

    /// Runs another program on this cluster: KUBECONFIG names it, SKIFF_KUBECTL the kubectl under test.
    pub(crate) fn run(&self, command: &mut Command) -> Result<Output> {
        let (config, home) = (self.dir.path().join("kubeconfig"), self.dir.path());
        run(command.env("KUBECONFIG", config).env("HOME", home).env("SKIFF_KUBECTL", &self.kubectl))
    }

    /// Writes a kubeconfig whose context has a namespace of its own, and a folder with `kubectl`, its plugins and `skiff`
    /// for the PATH. Both are in `dir`.
    pub(crate) fn workplace(&self, dir: &Path, ns: &str) -> Result<Command> {
        let bin = dir.join("bin");
        std::fs::create_dir_all(&bin)?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).map(|d| d.join(&self.kubectl)).find(|p| p.is_file());
        let kubectl = found.context("no kubectl on the PATH")?;
        let plugins = ["kubectl-cfg", "kubectl-func", "kubectl-gpu", "kubectl-trigger", "kubectl-wf", "skiff"];
        let links = plugins.map(|p| (p, &self.binary));
        for (link, program) in links.into_iter().chain([("kubectl", &kubectl)]) {
            let link = bin.join(link);
            if !link.exists() {
                std::os::unix::fs::symlink(program.canonicalize()?, link)?;
            }
        }
        let config = dir.join("kubeconfig");
        std::fs::copy(self.dir.path().join("kubeconfig"), &config)?;
        let o = run(self.command().env("KUBECONFIG", &config).args([
            "config",
            "set-context",
            "--current",
            "--namespace",
            ns,
        ]))?;
        ensure!(o.code == 0, "{}", o.err);
        let mut all = vec![bin];
        all.extend(std::env::split_paths(&path));
        let mut command = Command::new("bash");
        command
            .env("PATH", std::env::join_paths(all)?)
            .env("KUBECONFIG", config)
            .env("HOME", dir)
            .current_dir(repository());
        Ok(command)
    }

    /// Runs kubectl with a variable set.
    pub(crate) fn with_env(&self, name: &str, value: &str, args: &[&str]) -> Result<Output> {
        run(self.command().env(name, value).args(args))
    }

    /// Runs another release of kubectl.
    pub(crate) fn with_program(&self, program: &Path, args: &[&str]) -> Result<Output> {
        run(self.command_of(program).args(args))
    }

    /// Runs kubectl without the administrator's certificate: credentials are in `args`.
    pub(crate) fn as_token(&self, args: &[&str]) -> Result<Output> {
        let server = format!("--server=https://127.0.0.1:{PORT}");
        let ca = self.dir.path().join("data/pki/ca.crt");
        let ca = format!("--certificate-authority={}", ca.display());
        let mut c = Command::new(&self.kubectl);
        c.env("KUBECONFIG", "/dev/null").env("HOME", self.dir.path()).args([&server, &ca]).args(args);
        run(&mut c)
    }

    /// Releases of kubectl beside the one in use, or beside the one on the PATH.
    pub(crate) fn releases(&self) -> Vec<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = std::env::split_paths(&path).map(|d| d.join("kubectl")).find(|p| p.is_file());
        let known = [Some(self.kubectl.clone()), on_path.and_then(|p| p.canonicalize().ok())];
        let dirs: BTreeSet<PathBuf> =
            known.into_iter().flatten().filter_map(|p| p.parent().map(Path::to_owned)).collect();
        let names = dirs.into_iter().filter_map(|d| std::fs::read_dir(d).ok()).flatten().flatten().map(|e| e.path());
        let mut all: Vec<PathBuf> =
            names.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("kubectl.1."))).collect();
        all.sort();
        all
    }

    /// Runs kubectl in a terminal of 40 rows and 100 columns, typing `input`.
    pub(crate) fn terminal(&self, args: &[&str], input: &str) -> Result<Output> {
        use std::io::Write as _;
        let line: Vec<String> = std::iter::once(self.kubectl.to_string_lossy().into_owned())
            .chain(args.iter().map(|a| (*a).to_owned()))
            .map(|a| format!("'{}'", a.replace('\'', "'\\''")))
            .collect();
        let mut c = self.command_of(Path::new("script"));
        c.args(["-q", "-e", "-c", &format!("stty rows 40 cols 100; exec {}", line.join(" ")), "/dev/null"]);
        let mut child = c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("a pipe was asked for")?;
        stdin.write_all(input.as_bytes())?;
        let end = Instant::now() + PATIENCE;
        // Typing goes on as long as the program does: an end of input would be typed as one.
        let output = std::thread::spawn({
            let mut out = child.stdout.take().context("a pipe was asked for")?;
            move || {
                let mut text = vec![];
                let _ = std::io::Read::read_to_end(&mut out, &mut text);
                String::from_utf8_lossy(&text).into_owned()
            }
        });
        let status = loop {
            if let Some(s) = child.try_wait()? {
                break s;
            }
            if Instant::now() > end {
                child.kill()?;
                break child.wait()?;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        drop(stdin);
        let out = output.join().unwrap_or_default();
        Ok(Output { code: status.code().unwrap_or(-1), out, err: String::new() })
    }

    /// Runs kubectl with an input, over WebSocket or SPDY; what does not end by itself has the code 124.
    pub(crate) fn fed(&self, input: &Path, sockets: bool, args: &[&str]) -> Result<Output> {
        let mut c = self.command_of(Path::new("timeout"));
        c.arg(PATIENCE.as_secs().to_string()).arg(&self.kubectl).args(args);
        run_with(c.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", sockets.to_string()), File::open(input)?.into())
    }

    /// Runs kubectl in the background.
    pub(crate) fn background(&self, args: &[&str]) -> Result<Child> {
        let mut c = self.command();
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
        self.crash_and_restart_with(&[])
    }

    /// The same, and the new process has these variables in its environment.
    pub(crate) fn crash_and_restart_with(&mut self, env: &[(&str, &str)]) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = spawn(&self.binary, &self.dir, "up", env)?;
        self.await_ready()
    }

    /// Containers of pods that run now, with their start times.
    pub(crate) fn containers(&self) -> Result<Vec<String>> {
        let o = run(Command::new("docker").args(["ps", "--no-trunc", "--format", "{{.ID}} {{.CreatedAt}}"]))?;
        let mut all: Vec<String> = o.out.lines().map(str::to_owned).collect();
        all.sort();
        Ok(all)
    }

    /// Ids of the containers of a namespace, running or not.
    pub(crate) fn containers_of(&self, ns: &str) -> Result<Vec<String>> {
        let filter = format!("label=io.kubernetes.pod.namespace={ns}");
        let o = run(Command::new("docker").args(["ps", "-a", "-q", "--filter", &filter]))?;
        Ok(o.out.lines().map(str::to_owned).collect())
    }

    /// Microseconds of CPU per 100 ms that the engine gives the container whose name begins so.
    pub(crate) fn cgroup_quota(&self, name: &str) -> Result<i64> {
        let o = run(Command::new("docker").args(["ps", "-q", "--filter", &format!("name={name}")]))?;
        let id = o.out.lines().next().with_context(|| format!("no container {name}"))?.to_owned();
        let o = run(Command::new("docker").args(["inspect", "-f", "{{.HostConfig.CpuQuota}}", &id]))?;
        Ok(o.out.trim().parse()?)
    }

    /// Whether the engine keeps containers running while it is down.
    pub(crate) fn live_restore(&self) -> Result<bool> {
        let o = run(Command::new("docker").args(["info", "-f", "{{.LiveRestoreEnabled}}"]))?;
        Ok(o.out.trim() == "true")
    }

    /// Whether the engine was started by hack/ and may be restarted.
    pub(crate) fn owns_engine(&self) -> bool {
        engine_pid().is_some()
    }

    /// Ends the engine and starts it again with the same command line.
    pub(crate) fn restart_engine(&self) -> Result<()> {
        let pid = engine_pid().context("no engine of ours")?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline"))?;
        let words: Vec<String> = line
            .split(|b| *b == 0)
            .filter(|w| !w.is_empty())
            .map(|w| String::from_utf8_lossy(w).into_owned())
            .collect();
        run(Command::new("kill").arg(pid.to_string()))?;
        let answers = || Ok(run(Command::new("docker").args(["version", "--format", "x"]))?.code == 0);
        // Gone, or waiting for whoever started it to collect it.
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        self.eventually("the engine has ended", |_| Ok(state().is_empty() || state().contains(") Z ")))?;
        let log = File::options().create(true).append(true).open(format!("{}/dockerd.log", run_dir()))?;
        let child = Command::new("setsid")
            .args(&words)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the engine again")?;
        std::fs::write(format!("{}/dockerd.pid", run_dir()), child.id().to_string())?;
        self.eventually("the engine answers", |_| answers())
    }

    pub(crate) fn show_log(&self) {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        println!("--- the last lines of the log\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
    }

    /// Stops the cluster and removes what it left on the machine.
    pub(crate) fn stop(mut self) {
        let mut all: Vec<Child> = self.apart.drain(..).map(|(_, c)| c).collect();
        all.push(self.process);
        for mut child in all {
            let _ = run(Command::new("kill").arg(child.id().to_string()));
            let end = Instant::now() + Duration::from_secs(20);
            while Instant::now() < end && child.try_wait().is_ok_and(|s| s.is_none()) {
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
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

fn run_dir() -> String {
    std::env::var("SKIFF_RUN_DIR").unwrap_or_else(|_| "/run/skiff".to_owned())
}

/// The engine that hack/ started, if it runs.
fn engine_pid() -> Option<u32> {
    let pid: u32 = std::fs::read_to_string(format!("{}/dockerd.pid", run_dir())).ok()?.trim().parse().ok()?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (name.trim() == "dockerd").then_some(pid)
}

fn spawn(binary: &PathBuf, dir: &tempfile::TempDir, what: &str, env: &[(&str, &str)]) -> Result<Child> {
    let log = File::options().create(true).append(true).open(dir.path().join("log"))?;
    let listen = format!("0.0.0.0:{PORT}");
    let mut c = Command::new(binary);
    c.args([what, "--node-name", "node1", "--listen", &listen, "--data-dir"])
        .arg(dir.path().join("data"))
        .arg("--kubeconfig")
        .arg(dir.path().join("kubeconfig"))
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    c.spawn().with_context(|| format!("cannot run {}", binary.display()))
}
