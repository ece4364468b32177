//! The Slurms under test.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, Output, repository, run};

/// First port of the real Slurm under test: not the script's default, so that a person's own is told apart.
const PORT: &str = "26910";

/// A real Slurm, removed with this.
pub(crate) struct Rig {
    dir: tempfile::TempDir,
    /// Whether memory is really limited.
    pub(crate) cgroups: bool,
    stopped: bool,
}

impl Rig {
    pub(crate) fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("skiff-slurm-").tempdir()?;
        // Its account must get to its own files.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let cgroups = ["memory", "devices", "freezer"].iter().all(|g| Path::new("/sys/fs/cgroup").join(g).is_dir());
        let rig = Self { dir, cgroups, stopped: false };
        let mut args = vec!["up", "--rest", "--ssh", "--accounting"];
        args.extend(cgroups.then_some("--cgroup"));
        let o = rig.script(&args)?;
        ensure!(o.code == 0, "hack/slurm.sh up: {}{}", o.out, o.err);
        Ok(rig)
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("slurm")
    }

    fn command(&self, program: &Path) -> Command {
        let mut c = Command::new(program);
        c.env("SKIFF_SLURM_DIR", self.root()).env("SKIFF_SLURM_PORT", PORT);
        c.env("SLURM_CONF", self.root().join("etc/slurm.conf"));
        c
    }

    /// hack/slurm.sh.
    pub(crate) fn script(&self, args: &[&str]) -> Result<Output> {
        run(self.command(&repository().join("hack/slurm.sh")).args(args))
    }

    pub(crate) fn ok(&self, args: &[&str]) -> Result<String> {
        let o = self.script(args)?;
        ensure!(o.code == 0, "hack/slurm.sh {}: {}{}", args.join(" "), o.out, o.err);
        Ok(o.out)
    }

    /// One of Slurm's own commands.
    pub(crate) fn slurm(&self, line: &[&str]) -> Result<String> {
        let (program, args) = line.split_first().context("a command")?;
        let o = run(self.command(Path::new(program)).args(args))?;
        ensure!(o.code == 0, "{}: {}{}", line.join(" "), o.out, o.err);
        Ok(o.out)
    }

    /// Makes the HpcClusters of these drivers, and waits until they are ready.
    pub(crate) fn clusters(&self, c: &Cluster, drivers: &[&str]) -> Result<()> {
        for driver in drivers {
            let o = c.apply(&["apply"], &self.ok(&["manifest", driver])?)?;
            ensure!(o.code == 0, "{driver}: {}", o.err);
        }
        for driver in drivers {
            c.ok(&["wait", "--for=condition=Ready", &format!("hpccluster/{driver}"), "--timeout=60s"])?;
        }
        Ok(())
    }

    /// What Slurm says of all jobs.
    pub(crate) fn queue(&self) -> String {
        self.slurm(&["squeue", "-t", "all", "-o", "%i %j %T %r"]).unwrap_or_else(|e| e.to_string())
    }

    /// Names of jobs that Slurm ever took, from its queue, where ended jobs stay for a day.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let all = self.slurm(&["squeue", "-h", "-t", "all", "-o", "%j"])?;
        Ok(all.lines().filter(|l| l.starts_with("skiff-")).map(str::to_owned).collect())
    }

    pub(crate) fn stop(&mut self) -> Result<()> {
        self.stopped = true;
        self.ok(&["down"]).map(drop)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !self.stopped {
            let _ = self.script(&["down"]);
        }
    }
}

/// The fake Slurm with its servers.
pub(crate) struct Fake {
    dir: tempfile::TempDir,
    program: PathBuf,
    server: Child,
    /// Where its servers are.
    pub(crate) at: Value,
}

impl Fake {
    pub(crate) fn start(settings: &[&str]) -> Result<Self> {
        let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let program = target.parent().context("the target folder")?.join("debug/fake-slurm");
        ensure!(program.exists(), "{} is missing: run `cargo build -p skiff-fake-slurm` first", program.display());
        let dir = tempfile::tempdir()?;
        let path = dir.path().to_string_lossy().into_owned();
        let o = run(Command::new(&program).args([&["init", &path], settings].concat()))?;
        ensure!(o.code == 0, "{}", o.err);
        run(Command::new(&program).args(["key", &path, "key"]))?;
        std::fs::create_dir(dir.path().join("work"))?;
        let mut server = Command::new(&program)
            .args(["serve", &path, "--ssh", "127.0.0.1:0", "--rest", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(server.stdout.take().context("a pipe was asked for")?).read_line(&mut line)?;
        let at = serde_json::from_str(&line).context("the fake Slurm does not start")?;
        Ok(Self { dir, program, server, at })
    }

    pub(crate) fn fault(&self, settings: &[&str]) -> Result<()> {
        let path = self.dir.path().to_string_lossy().into_owned();
        let o = run(Command::new(&self.program).args([&["fault", &path], settings].concat()))?;
        ensure!(o.code == 0, "{}", o.err);
        Ok(())
    }

    pub(crate) fn counts(&self) -> Result<Value> {
        let o = run(Command::new(&self.program).arg("counts").arg(self.dir.path()))?;
        Ok(serde_json::from_str(&o.out)?)
    }

    /// The HpcCluster that reaches it by SSH.
    pub(crate) fn manifest(&self, name: &str) -> Result<String> {
        let read = |f: &str| std::fs::read_to_string(self.dir.path().join(f)).with_context(|| f.to_owned());
        let port = self.at["ssh"].as_str().and_then(|a| a.rsplit_once(':')).context("an address")?.1;
        let secret = serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "default"},
            "stringData": {"ssh-privatekey": read("key")?}});
        let cluster = serde_json::json!({"apiVersion": "skiff.dev/v1", "kind": "HpcCluster", "metadata": {"name": name}, "spec": {
            "ssh": {"host": "127.0.0.1", "port": port.parse::<u16>()?, "user": "user", "hostKeys": [read("known_hosts")?.trim()],
                "secret": {"namespace": "default", "name": name}},
            "workDirectory": self.dir.path().join("work")}});
        Ok(format!("---\n{secret}\n---\n{cluster}\n"))
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
