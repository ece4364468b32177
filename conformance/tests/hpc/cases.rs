//! What a person does with jobs on Slurm, and what goes wrong meanwhile.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Output, repository, run};
use crate::page::play_page;
use crate::rig::{Fake, Rig};

pub(crate) type Case = fn(&mut Cluster, &mut Rig, &str) -> Result<()>;

/// In this order: the page comes while there is one HpcCluster, so that jobs need not name it.
pub(crate) const ALL: &[(&str, Case)] = &[
    ("page", page),
    ("drivers", drivers),
    ("ends", ends),
    ("node_lost", node_lost),
    ("restarts", restarts),
    ("crash_at_submission", crash_at_submission),
    ("answers_lost", answers_lost),
    ("credentials", credentials),
];

/// A directory with kubectl and its plugins, and the namespace as the context's.
struct Person<'a> {
    cluster: &'a Cluster,
    dir: tempfile::TempDir,
    ns: &'a str,
}

impl<'a> Person<'a> {
    fn new(cluster: &'a Cluster, ns: &'a str) -> Result<Self> {
        Ok(Self { cluster, dir: tempfile::tempdir()?, ns })
    }

    fn line(&self, line: &str) -> Result<Command> {
        let mut c = self.cluster.workplace(self.dir.path(), self.ns)?;
        c.args(["-c", line]);
        Ok(c)
    }

    fn run(&self, line: &str) -> Result<Output> {
        run(&mut self.line(line)?)
    }

    fn ok(&self, line: &str) -> Result<String> {
        let o = self.run(line)?;
        ensure!(o.code == 0, "{line}: {} {}{}", o.code, o.out, o.err);
        Ok(o.out)
    }

    fn make(&self, name: &str, spec: Value) -> Result<()> {
        let job = json!({"apiVersion": "skiff.dev/v1", "kind": "GpuJob", "metadata": {"name": name, "namespace": self.ns}, "spec": spec});
        let o = self.cluster.apply(&["apply"], &job.to_string())?;
        ensure!(o.code == 0, "{name}: {}", o.err);
        Ok(())
    }

    fn status(&self, name: &str) -> Result<Value> {
        Ok(self.cluster.get(self.ns, &format!("gpujob/{name}"))?["status"].clone())
    }

    /// Waits for a phase.
    fn until(&self, name: &str, phase: &str) -> Result<Value> {
        self.cluster.eventually(&format!("{name} is {phase}"), |_| {
            let s = self.status(name)?;
            ensure!(s["phase"] == phase || s["phase"] != "Failed", "{name} failed: {s}");
            Ok(s["phase"] == phase)
        })?;
        self.status(name)
    }

    /// Waits until it failed for this reason.
    fn fails(&self, name: &str, reason: &str) -> Result<Value> {
        self.cluster.eventually(&format!("{name} has failed"), |_| {
            let phase = self.status(name)?["phase"].clone();
            Ok(phase == "Failed" || phase == "Succeeded")
        })?;
        let s = self.status(name)?;
        ensure!(condition(&s, "Failed")["reason"] == reason, "{name} should have failed by {reason}: {s}");
        Ok(s)
    }
}

fn condition(status: &Value, kind: &str) -> Value {
    let all = status["conditions"].as_array();
    all.into_iter().flatten().find(|c| c["type"] == kind && c["status"] == "True").cloned().unwrap_or_default()
}

fn job(script: &str) -> Value {
    json!({"cluster": "local", "run": {"script": script}})
}

/// The tested commands of docs/hpc.md.
fn page(c: &mut Cluster, rig: &mut Rig, _: &str) -> Result<()> {
    rig.clusters(c, &["local"])?;
    let sections = play_page(c, "hpc")?;
    ensure!(sections >= 5, "only {sections} sections have tested commands");
    Ok(())
}

/// The matrix job through each driver: built, run, followed, fetched.
fn drivers(c: &mut Cluster, rig: &mut Rig, ns: &str) -> Result<()> {
    rig.clusters(c, &["local", "ssh", "rest"])?;
    let p = Person::new(c, ns)?;
    let matrix = repository().join("docs/examples/hpc/matrix");
    for driver in ["local", "ssh", "rest"] {
        let name = format!("matrix-{driver}");
        p.ok(&format!("kubectl gpu submit {} --on {driver} --name {name}", matrix.display()))?;
        // Following begins before the job runs, and ends with it.
        let log = p.ok(&format!("timeout 90 kubectl gpu logs -f {name}"))?;
        ensure!(log.contains("add of 192x192") && log.contains("multiply of 192x192"), "{driver}: {log}");
        p.until(&name, "Succeeded")?;
        let fetched = p.ok(&format!("cd $HOME && kubectl gpu get {name} -d got-{name} && cat got-{name}/sum.txt"))?;
        ensure!(fetched.contains("5 7 9 6"), "{driver}: {fetched}");
        // The exit code is the job's.
        p.make(&format!("bad-{driver}"), json!({"cluster": driver, "run": {"script": "echo no >&2; exit 7"}}))?;
        let s = p.fails(&format!("bad-{driver}"), "NonZeroExit")?;
        ensure!(s["exitCode"] == 7, "{driver}: {s}");
        let log = p.ok(&format!("kubectl gpu logs --stream stderr bad-{driver}"))?;
        ensure!(log == "no\n", "{driver}: {log}");
        // Cancelled in Slurm before the object goes.
        p.make(&format!("long-{driver}"), json!({"cluster": driver, "run": {"command": ["sleep", "600"]}}))?;
        let id = p.until(&format!("long-{driver}"), "Running")?["jobId"].as_str().context("an id")?.to_owned();
        p.ok(&format!("kubectl gpu cancel long-{driver}"))?;
        let state = rig.slurm(&["squeue", "-h", "-t", "all", "-j", &id, "-o", "%T"])?;
        ensure!(matches!(state.trim(), "CANCELLED" | "COMPLETING"), "{driver}: {state}");
    }
    Ok(())
}

/// Ways to end, and what Slurm's own words become.
fn ends(c: &mut Cluster, rig: &mut Rig, ns: &str) -> Result<()> {
    rig.clusters(c, &["local"])?;
    let p = Person::new(c, ns)?;
    // Slurm enforces limits late: the longest first.
    let mut limit = job("sleep 300");
    limit["resources"] = json!({"partition": "short", "time": "1"});
    p.make("limit", limit)?;
    p.make("signal", job("kill -9 $$"))?;
    p.make("never", json!({"cluster": "local", "run": {"command": ["true"]}, "resources": {"gpus": [{"count": 99}]}}))?;
    p.make("ratio", json!({"cluster": "local", "run": {"command": ["true"]}, "resources": {"partition": "dgx2", "cpusPerTask": 32, "gpus": [{"count": 1}]}}))?;
    p.make("nowhere", json!({"cluster": "local", "run": {"command": ["true"]}, "resources": {"partition": "nope"}}))?;
    p.make("array", json!({"cluster": "local", "run": {"script": "[ $SLURM_ARRAY_TASK_ID != 2 ]"}, "resources": {"array": {"tasks": "0-4"}}}))?;
    p.make("after", json!({"cluster": "local", "run": {"command": ["true"]}, "dependencies": [{"job": "signal"}]}))?;
    // Quotes and newlines in every place stay what they are.
    let nasty = "a'b\"c $(touch /tmp/skiff-injected) `id`\n#SBATCH --nodes=9\nEOF\n";
    p.make("quotes", json!({"cluster": "local", "run": {"command": ["printf", "%s", nasty]}, "env": [{"name": "X", "value": nasty}], "stdin": nasty}))?;
    if rig.cgroups {
        let script = "python3 -c 'x = bytearray(400 << 20)' || exec tail -c 400000000 /dev/zero";
        let mut memory = job(script);
        memory["resources"] = json!({"memory": "30"});
        p.make("memory", memory)?;
    }
    // The script's frame outlives its command and hands the code on as shells do.
    let s = p.fails("signal", "NonZeroExit")?;
    ensure!(s["exitCode"] == 137, "{s}");
    p.fails("after", "DependencyNeverSatisfied")?;
    let s = p.fails("array", "NonZeroExit")?;
    ensure!(s["tasks"]["succeeded"] == 4 && s["tasks"]["failedTasks"] == "2", "{s}");
    let s = p.fails("ratio", "NotAllowed")?;
    ensure!(s["jobId"].is_null(), "it went to Slurm: {s}");
    for name in ["never", "nowhere"] {
        c.eventually(&format!("{name} is called impossible"), |_| {
            let s = p.status(name)?;
            Ok(!condition(&s, "Unschedulable").is_null() || s["phase"] == "Failed")
        })?;
    }
    p.until("quotes", "Succeeded")?;
    let log = p.ok("kubectl gpu logs quotes")?;
    ensure!(log == nasty, "{log:?}");
    ensure!(!Path::new("/tmp/skiff-injected").exists(), "a value became a command");
    if rig.cgroups {
        p.fails("memory", "OOMKilled")?;
    }
    let s = p.fails("limit", "DeadlineExceeded")?;
    ensure!(s["state"] == "TIMEOUT", "{s}");
    Ok(())
}

/// A node is lost with a job on it: it is tried again, elsewhere or later.
fn node_lost(c: &mut Cluster, rig: &mut Rig, ns: &str) -> Result<()> {
    rig.clusters(c, &["local"])?;
    let p = Person::new(c, ns)?;
    // The first attempt waits for its end; the second succeeds. Slurm itself does not start it again.
    p.make(
        "tough",
        json!({"cluster": "local", "run": {"script": "case $SLURM_JOB_NAME in *-1) sleep 600;; esac"},
            "resources": {"nodeList": "n3", "requeue": false}, "retries": {"infrastructure": 2, "backoffSeconds": 1}}),
    )?;
    p.until("tough", "Running")?;
    rig.ok(&["node-down", "n3"])?;
    let again = c.eventually("there is a second attempt", |_| Ok(p.status("tough")?["attempt"] == 2));
    rig.ok(&["node-up", "n3"])?;
    again?;
    let s = p.until("tough", "Succeeded")?;
    ensure!(s["infrastructureRetries"] == 1, "{s}");
    Ok(())
}

/// Slurm's controller dies and comes back while jobs run and are submitted.
fn restarts(c: &mut Cluster, rig: &mut Rig, ns: &str) -> Result<()> {
    rig.clusters(c, &["local"])?;
    let p = Person::new(c, ns)?;
    p.make("runs", job("sleep 15; echo done"))?;
    p.until("runs", "Running")?;
    // A slurmctld that is killed before it saved forgets the job and gives its id to the next one, which no node then
    // starts. It saves every few seconds.
    let state = Path::new(rig.slurm(&["bash", "-c", "echo $SKIFF_SLURM_DIR/state"])?.trim()).join("job_state");
    let began = std::time::SystemTime::now();
    c.eventually("slurmctld has saved the job", |_| Ok(std::fs::metadata(&state)?.modified()? > began))?;
    rig.ok(&["controller-down"])?;
    p.make("comes", job("echo came"))?;
    rig.ok(&["controller-up"])?;
    for name in ["runs", "comes"] {
        p.until(name, "Succeeded")?;
    }
    // Held jobs wait until they are let go.
    p.make("held", json!({"cluster": "local", "suspend": true, "run": {"command": ["echo", "went"]}}))?;
    p.until("held", "Suspended")?;
    p.ok("kubectl gpu release held")?;
    p.until("held", "Succeeded").map(drop)
}

/// `kill -9` of this cluster while jobs are submitted: each ran once.
fn crash_at_submission(c: &mut Cluster, rig: &mut Rig, ns: &str) -> Result<()> {
    rig.clusters(c, &["local"])?;
    let before: BTreeSet<String> = rig.names()?.into_iter().collect();
    let jobs = 12;
    {
        let p = Person::new(c, ns)?;
        for i in 0..jobs {
            p.make(&format!("j{i}"), job("echo once"))?;
        }
    }
    c.crash_and_restart()?;
    let p = Person::new(c, ns)?;
    for i in 0..jobs {
        p.until(&format!("j{i}"), "Succeeded")?;
    }
    let all: Vec<String> = rig.names()?.into_iter().filter(|n| !before.contains(n)).collect();
    let once: BTreeSet<&String> = all.iter().collect();
    ensure!(all.len() == jobs && once.len() == jobs, "{} submissions of {jobs} jobs: {all:?}", all.len());
    Ok(())
}

/// Three answers of ten are lost: no job twice, none lost.
fn answers_lost(c: &mut Cluster, _: &mut Rig, ns: &str) -> Result<()> {
    let fake = Fake::start(&["run=false", "simulated_ms=200", "accounting=true"])?;
    fake.fault(&["drop_answer=0.3", "seed=3"])?;
    let o = c.apply(&["apply"], &fake.manifest("fake")?)?;
    ensure!(o.code == 0, "{}", o.err);
    c.ok(&["wait", "--for=condition=Ready", "hpccluster/fake", "--timeout=60s"])?;
    let p = Person::new(c, ns)?;
    let jobs = 20;
    for i in 0..jobs {
        p.make(&format!("j{i}"), json!({"cluster": "fake", "run": {"command": ["true"]}}))?;
    }
    for i in 0..jobs {
        p.until(&format!("j{i}"), "Succeeded")?;
    }
    let counts = fake.counts()?;
    ensure!(counts["accepted"] == jobs && counts["duplicates"] == 0, "{counts}");
    c.ok(&["delete", "hpccluster", "fake"]).map(drop)
}

/// An expired certificate is said, and a good one helps.
fn credentials(c: &mut Cluster, rig: &mut Rig, ns: &str) -> Result<()> {
    let p = Person::new(c, ns)?;
    let good = rig.ok(&["manifest", "ssh"])?;
    let at = rig.slurm(&["bash", "-c", "echo $SKIFF_SLURM_DIR/ssh"])?;
    let at = Path::new(at.trim());
    let read = |f: &str| std::fs::read_to_string(at.join(f)).with_context(|| f.to_owned());
    let (key, certificate) = (read("expired")?, read("expired-cert.pub")?);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "slurm-ssh", "namespace": "default"},
        "stringData": {"ssh-privatekey": key, "ssh-certificate": certificate.trim()}});
    let cluster = good.split("---\n").find(|o| o.contains("kind: HpcCluster")).context("the manifest has a cluster")?;
    // A connection that is open would go on.
    c.ok(&["delete", "hpccluster", "ssh", "--ignore-not-found"])?;
    let o = c.apply(&["apply"], &format!("{secret}\n---\n{cluster}"))?;
    ensure!(o.code == 0, "{}", o.err);
    c.ok(&["wait", "--for=condition=Ready=false", "hpccluster/ssh", "--timeout=90s"])?;
    c.ok(&["delete", "hpccluster", "ssh"])?;
    let o = c.apply(&["apply"], &good)?;
    ensure!(o.code == 0, "{}", o.err);
    c.ok(&["wait", "--for=condition=Ready", "hpccluster/ssh", "--timeout=90s"])?;
    p.make("ssh", json!({"cluster": "ssh", "run": {"command": ["true"]}}))?;
    p.until("ssh", "Succeeded").map(drop)
}
