//! What a person does with jobs on Slurm, and what goes wrong meanwhile.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Output, repository, run};
use crate::page::play_page;
use crate::rig::{Fake, Rig};
use crate::volumes;

pub(crate) type Case = fn(&mut Cluster, &mut Rig, &str) -> Result<()>;

/// In this order: the page comes while there is one HpcCluster, so that jobs need not name it.
pub(crate) const ALL: &[(&str, Case)] = &[
    ("page", page),
    ("drivers", drivers),
    ("ends", ends),
    ("node_lost", node_lost),
    ("preempted", preempted),
    ("held_launch", held_launch),
    ("disk_full", disk_full),
    ("volume", volumes::sources),
    ("results_volume", volumes::results),
    ("pushed", pushed),
    ("forgotten", forgotten),
    ("restarts", restarts),
    ("crash_at_submission", crash_at_submission),
    ("answers_lost", answers_lost),
    ("credentials", credentials),
    ("alone", crate::alone::alone),
];

/// A directory with kubectl and its plugins, and the namespace as the context's.
pub(crate) struct Person<'a> {
    cluster: &'a Cluster,
    dir: tempfile::TempDir,
    ns: &'a str,
}

impl<'a> Person<'a> {
    pub(crate) fn new(cluster: &'a Cluster, ns: &'a str) -> Result<Self> {
        Ok(Self { cluster, dir: tempfile::tempdir()?, ns })
    }

    pub(crate) fn line(&self, line: &str) -> Result<Command> {
        let mut c = self.cluster.workplace(self.dir.path(), self.ns)?;
        c.args(["-c", line]);
        Ok(c)
    }

    pub(crate) fn run(&self, line: &str) -> Result<Output> {
        run(&mut self.line(line)?)
    }

    pub(crate) fn ok(&self, line: &str) -> Result<String> {
        let o = self.run(line)?;
        ensure!(o.code == 0, "{line}: {} {}{}", o.code, o.out, o.err);
        Ok(o.out)
    }

    pub(crate) fn make(&self, name: &str, spec: Value) -> Result<()> {
        let job = json!({"apiVersion": "skiff.dev/v1", "kind": "GpuJob", "metadata": {"name": name, "namespace": self.ns}, "spec": spec});
        let o = self.cluster.apply(&["apply"], &job.to_string())?;
        ensure!(o.code == 0, "{name}: {}", o.err);
        Ok(())
    }

    pub(crate) fn status(&self, name: &str) -> Result<Value> {
        Ok(self.cluster.get(self.ns, &format!("gpujob/{name}"))?["status"].clone())
    }

    /// Waits for a phase.
    pub(crate) fn until(&self, name: &str, phase: &str) -> Result<Value> {
        self.cluster.eventually(&format!("{name} is {phase}"), |_| {
            let s = self.status(name)?;
            ensure!(s["phase"] == phase || s["phase"] != "Failed", "{name} failed: {s}");
            Ok(s["phase"] == phase)
        })?;
        self.status(name)
    }

    /// Waits until it failed for this reason.
    pub(crate) fn fails(&self, name: &str, reason: &str) -> Result<Value> {
        self.cluster.eventually(&format!("{name} has failed"), |_| {
            let phase = self.status(name)?["phase"].clone();
            Ok(phase == "Failed" || phase == "Succeeded")
        })?;
        let s = self.status(name)?;
        ensure!(condition(&s, "Failed")["reason"] == reason, "{name} should have failed by {reason}: {s}");
        Ok(s)
    }
}

pub(crate) fn condition(status: &Value, kind: &str) -> Value {
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

/// A job makes room for another and comes again: the same job, not a second one.
fn preempted(c: &mut Cluster, rig: &mut Rig, ns: &str) -> Result<()> {
    rig.clusters(c, &["local"])?;
    let p = Person::new(c, ns)?;
    let on = |partition: &str, script: &str| {
        json!({"cluster": "local", "run": {"script": script},
            "resources": {"partition": partition, "nodeList": "n3", "exclusive": true, "requeue": true}})
    };
    p.make("humble", on("low", "[ -n \"$SLURM_RESTART_COUNT\" ] || sleep 600"))?;
    let first = p.until("humble", "Running")?["jobId"].clone();
    p.make("proud", on("high", "sleep 1"))?;
    p.until("proud", "Succeeded")?;
    let id = first.as_str().context("an id")?.to_owned();
    // Slurm lets what was queued again wait for two minutes.
    rig.slurm(&["scontrol", "update", &format!("JobId={id}"), "StartTime=now"])?;
    let s = p.until("humble", "Succeeded")?;
    ensure!(s["jobId"] == first && s["attempt"] == 1 && s["restarts"] == 1, "{s}");
    ensure!(condition(&s, "DisruptionTarget")["reason"] == "Requeued", "{s}");
    Ok(())
}

/// A node cannot start a job; Slurm holds it, it is let go and runs elsewhere.
fn held_launch(c: &mut Cluster, rig: &mut Rig, ns: &str) -> Result<()> {
    rig.clusters(c, &["local"])?;
    let p = Person::new(c, ns)?;
    let flag = Path::new(rig.slurm(&["bash", "-c", "echo $SKIFF_SLURM_DIR/etc/no-launch"])?.trim()).to_owned();
    std::fs::write(&flag, "")?;
    p.make(
        "stubborn",
        json!({"cluster": "local", "run": {"command": ["true"]}, "retries": {"infrastructure": 2, "backoffSeconds": 2}}),
    )?;
    let held = c.eventually("the launch has failed", |_| {
        Ok(condition(&p.status("stubborn")?, "Suspended")["reason"] == "LaunchFailedHeld"
            || !condition(&p.status("stubborn")?, "DisruptionTarget").is_null())
    });
    std::fs::remove_file(&flag)?;
    // A node whose prolog failed is drained.
    for node in ["n1", "n2", "n3"] {
        let _ = rig.slurm(&["scontrol", "update", &format!("NodeName={node}"), "State=RESUME"]);
    }
    held?;
    let id = p.status("stubborn")?["jobId"].as_str().context("an id")?.to_owned();
    c.eventually("it is let go", |_| Ok(p.status("stubborn")?["infrastructureRetries"] == 1))?;
    c.eventually("Slurm heard it", |_| {
        let reason = rig.slurm(&["squeue", "-h", "-t", "all", "-j", &id, "-o", "%r"])?;
        Ok(!reason.contains("held"))
    })?;
    // As after every requeue, it may not start at once.
    let _ = rig.slurm(&["scontrol", "update", &format!("JobId={id}"), "StartTime=now"]);
    let s = p.until("stubborn", "Succeeded")?;
    ensure!(s["attempt"] == 1 && s["jobId"] == id.as_str(), "{s}");
    Ok(())
}

/// The work directory is full: said in the system's words, and gone on with when there is room.
fn disk_full(c: &mut Cluster, rig: &mut Rig, ns: &str) -> Result<()> {
    let small = rig.slurm(&["bash", "-c", "mkdir -p $SKIFF_SLURM_DIR/small && echo $SKIFF_SLURM_DIR/small"])?;
    let small = small.trim().to_owned();
    rig.slurm(&["mount", "-t", "tmpfs", "-o", "size=2m,mode=1777", "tmpfs", &small])?;
    let case = || -> Result<()> {
        let manifest = rig.ok(&["manifest", "local"])?;
        let work = manifest.lines().find(|l| l.contains("workDirectory:")).context("a work directory")?;
        let manifest =
            manifest.replace(work, &format!("  workDirectory: {small}")).replace("name: local", "name: small");
        let o = c.apply(&["apply"], &manifest)?;
        ensure!(o.code == 0, "{}", o.err);
        c.ok(&["wait", "--for=condition=Ready", "hpccluster/small", "--timeout=60s"])?;
        let p = Person::new(c, ns)?;
        let filler = format!("{small}/filler");
        std::fs::write(&filler, vec![b'x'; 2 << 20]).or_else(|e| match e.kind() {
            std::io::ErrorKind::StorageFull => Ok(()),
            _ => Err(e),
        })?;
        // What does not pack well, and what `kubectl apply` can keep in an annotation.
        let noise: String = (0..12_000u64).map(|i| format!("{:x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
        p.make(
            "big",
            json!({"cluster": "small", "source": {"inline": {"noise": noise}}, "run": {"command": ["test", "-s", "noise"]}}),
        )?;
        c.eventually("a full disk is told", |_| {
            let s = p.status("big")?;
            let staged = s["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Staged").cloned();
            Ok(staged
                .is_some_and(|s| s["reason"] == "StagingFailed" && s["message"].to_string().contains("No space left")))
        })?;
        std::fs::remove_file(&filler)?;
        p.until("big", "Succeeded")?;
        p.ok("kubectl gpu cancel big")?;
        c.ok(&["delete", "hpccluster", "small"]).map(drop)
    };
    let result = case();
    rig.slurm(&["umount", "-l", &small])?;
    result
}

/// An epilog says that a job ended: it is seen at once though Slurm is asked seldom.
fn pushed(c: &mut Cluster, rig: &mut Rig, ns: &str) -> Result<()> {
    let manifest = rig.ok(&["manifest", "local"])?.replace("name: local", "name: seldom");
    let more =
        "  hookSecret: {namespace: default, name: hook}\n  polling: {fastMilliseconds: 60000, slowSeconds: 60}\n";
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hook", "namespace": "default"},
        "stringData": {"token": "open-up"}});
    let o = c.apply(&["apply"], &format!("---\n{secret}\n---\n{}\n{more}", manifest.trim_end()))?;
    ensure!(o.code == 0, "{}", o.err);
    c.ok(&["wait", "--for=condition=Ready", "hpccluster/seldom", "--timeout=60s"])?;
    // The Service by which the door is found.
    let slice = c.get("kube-system", "endpointslice/skiff-hpc")?;
    let (address, port) = (&slice["endpoints"][0]["addresses"][0], &slice["ports"][0]["port"]);
    let url = format!("https://{}:{port}/hpc/seldom/done", address.as_str().context("an address")?);
    let push = rig.slurm(&["bash", "-c", "echo $SKIFF_SLURM_DIR/etc/push"])?;
    std::fs::write(push.trim(), format!("{url}\nopen-up\n"))?;
    let p = Person::new(c, ns)?;
    p.make("told", json!({"cluster": "seldom", "run": {"command": ["sleep", "3"]}}))?;
    let s = p.until("told", "Succeeded");
    std::fs::remove_file(push.trim())?;
    let s = s?;
    let time = |v: &Value| v.as_str().and_then(|t| t.parse::<k8s_openapi::jiff::Timestamp>().ok()).context("a time");
    let late = time(&s["times"]["noticed"])?.duration_since(time(&s["times"]["ended"])?);
    // Slurm's times are of whole seconds.
    ensure!(late.as_secs() < 10, "seen after {late:?}: {s}");
    let metrics = c.ok(&["get", "--raw", "/metrics"])?;
    ensure!(metrics.contains("skiff_hpc_pushes_total{cluster=\"seldom\"} "), "the push is not counted");
    c.ok(&["delete", "hpccluster", "seldom"]).map(drop)
}

/// What Slurm's controller forgot is known by accounting, of which slurmrestd tells.
fn forgotten(c: &mut Cluster, rig: &mut Rig, ns: &str) -> Result<()> {
    let manifest = rig.ok(&["manifest", "rest"])?.replace("name: rest}", "name: remembers}");
    let without: String =
        manifest.lines().filter(|l| !l.contains("completionLog:")).map(|l| format!("{l}\n")).collect();
    let o = c.apply(
        &["apply"],
        &format!("{}\n  polling: {{fastMilliseconds: 60000, slowSeconds: 60}}\n", without.trim_end()),
    )?;
    ensure!(o.code == 0, "{}", o.err);
    c.ok(&["wait", "--for=condition=Ready", "hpccluster/remembers", "--timeout=60s"])?;
    let accounting = c.ok(&[
        "get",
        "hpccluster",
        "remembers",
        "-o",
        "jsonpath={.status.conditions[?(@.type==\"AccountingAvailable\")].status}",
    ])?;
    ensure!(accounting == "True", "AccountingAvailable is {accounting}");
    let p = Person::new(c, ns)?;
    // Slurm's controller forgets it before it is asked again.
    let age = |seconds: &str| -> Result<()> {
        rig.slurm(&[
            "bash",
            "-c",
            &format!("sed -i 's/^MinJobAge=.*/MinJobAge={seconds}/' $SLURM_CONF && scontrol reconfigure"),
        ])
        .map(drop)
    };
    age("2")?;
    let case = || -> Result<Value> {
        // On several nodes, told by v0.0.38 in its own way.
        p.make(
            "wide",
            json!({"cluster": "remembers", "run": {"script": "[ $SLURM_NNODES = 2 ]"}, "resources": {"nodes": 2, "exclude": "n1"}}),
        )?;
        c.eventually("it is in Slurm", |_| Ok(p.status("wide")?["jobId"].is_string()))?;
        let id = p.status("wide")?["jobId"].as_str().context("an id")?.to_owned();
        c.eventually("Slurm has forgotten it", |_| {
            Ok(rig.slurm(&["squeue", "-h", "-t", "all", "-j", &id]).is_ok_and(|o| o.is_empty())
                || rig.slurm(&["scontrol", "show", "job", &id]).is_err())
        })?;
        p.until("wide", "Succeeded")
    };
    let s = case();
    age("86400")?;
    let s = s?;
    ensure!(s["decidedBy"] == "Accounting" && s["nodeList"] == "n[2-3]", "{s}");
    c.ok(&["delete", "hpccluster", "remembers"]).map(drop)
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
    let o = c.apply(&["apply"], &format!("---\n{secret}\n---\n{cluster}"))?;
    ensure!(o.code == 0, "{}", o.err);
    c.ok(&["wait", "--for=condition=Ready=false", "hpccluster/ssh", "--timeout=90s"])?;
    c.ok(&["delete", "hpccluster", "ssh"])?;
    let o = c.apply(&["apply"], &good)?;
    ensure!(o.code == 0, "{}", o.err);
    c.ok(&["wait", "--for=condition=Ready", "hpccluster/ssh", "--timeout=90s"])?;
    p.make("ssh", json!({"cluster": "ssh", "run": {"command": ["true"]}}))?;
    p.until("ssh", "Succeeded")?;
    // A key of RSA, and a host that is known by who signed its certificate; one that somebody else signed is not believed.
    let host = good.lines().find(|l| l.contains("hostKeys:")).context("the manifest has keys of the host")?;
    for (name, authority, ready) in [("stranger", "stranger.pub", "False"), ("signed", "ca.pub", "True")] {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "slurm-rsa", "namespace": "default"},
            "stringData": {"ssh-privatekey": read("rsa")?}});
        let pinned = format!("    hostKeys: [\"@cert-authority * {}\"]", read(authority)?.trim());
        let cluster = cluster
            .replace(host, &pinned)
            .replace("secret: {namespace: default, name: slurm-ssh}", "secret: {namespace: default, name: slurm-rsa}");
        let cluster = cluster.replace("metadata: {name: ssh}", &format!("metadata: {{name: {name}}}"));
        let o = c.apply(&["apply"], &format!("---\n{secret}\n---\n{cluster}"))?;
        ensure!(o.code == 0, "{}", o.err);
        c.ok(&["wait", &format!("--for=condition=Ready={ready}"), &format!("hpccluster/{name}"), "--timeout=90s"])?;
    }
    p.make("rsa", json!({"cluster": "signed", "run": {"command": ["true"]}}))?;
    p.until("rsa", "Succeeded")?;
    c.ok(&["delete", "hpccluster", "signed", "stranger"]).map(drop)
}
