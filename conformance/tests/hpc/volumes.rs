//! Files of jobs in PersistentVolumeClaims, read and written by pods.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::cases::{Person, condition};
use crate::cluster::Cluster;
use crate::rig::Rig;

/// An HpcCluster whose pods have an image that is here.
fn cluster(c: &Cluster, rig: &Rig) -> Result<()> {
    let manifest = rig.ok(&["manifest", "local"])?.replace("name: local", "name: volumes");
    let o = c.apply(&["apply"], &format!("{}\n  readerImage: skiff/busybox:1\n", manifest.trim_end()))?;
    ensure!(o.code == 0, "{}", o.err);
    c.ok(&["wait", "--for=condition=Ready", "hpccluster/volumes", "--timeout=60s"]).map(drop)
}

fn apply(c: &Cluster, objects: &[Value]) -> Result<()> {
    let o = c.apply(&["apply"], &json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
    ensure!(o.code == 0, "{}", o.err);
    Ok(())
}

/// Sources in a claim, on whichever node it is.
pub(crate) fn sources(c: &mut Cluster, rig: &mut Rig, ns: &str) -> Result<()> {
    cluster(c, rig)?;
    let p = Person::new(c, ns)?;
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "code", "namespace": ns},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}});
    let script = "mkdir -p /d/src/sub && echo 'echo from $(cat sub/word)' >/d/src/go.sh && echo volume >/d/src/sub/word \
        && mkdir /d/bad && ln -s /etc/passwd /d/bad/link";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fill", "namespace": ns}, "spec": {
        "restartPolicy": "Never", "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "code"}}],
        "containers": [{"name": "c", "image": "skiff/busybox:1", "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "d", "mountPath": "/d"}]}]}});
    apply(c, &[claim, pod])?;
    c.eventually("the claim is filled", |c| Ok(c.get(ns, "pod/fill")?["status"]["phase"] == "Succeeded"))?;
    let job = |claim: &str, path: &str| json!({"cluster": "volumes", "source": {"volume": {"claimName": claim, "path": path}}, "run": {"command": ["sh", "go.sh"]}});
    p.make("claimed", job("code", "src"))?;
    p.make("linked", job("code", "bad"))?;
    p.make("absent", job("nowhere", "src"))?;
    p.until("claimed", "Succeeded")?;
    let log = p.ok("kubectl gpu logs claimed")?;
    ensure!(log == "from volume\n", "{log}");
    let s = p.fails("linked", "InvalidSource")?;
    ensure!(condition(&s, "Failed")["message"].to_string().contains("link"), "{s}");
    c.eventually("a claim that is not there is told", |_| {
        let s = p.status("absent")?;
        let staged = s["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Staged").cloned();
        Ok(staged.is_some_and(|s| s["message"].to_string().contains("nowhere")))
    })?;
    c.eventually("no pod is left of what was read", |c| {
        Ok(c.kubectl(&["-n", ns, "get", "pods", "-o", "name"])?
            .out
            .lines()
            .filter(|l| l.contains("claimed") || l.contains("linked"))
            .count()
            == 0)
    })?;
    p.ok("kubectl gpu cancel absent")?;
    c.ok(&["delete", "hpccluster", "volumes"]).map(drop)
}

/// What a condition says, whether it holds or not.
fn says(status: &Value, kind: &str) -> String {
    let all = status["conditions"].as_array();
    let found = all.into_iter().flatten().find(|c| c["type"] == kind);
    found.map(|c| format!("{}: {}", c["reason"], c["message"])).unwrap_or_default()
}

/// Results into claims: one that has room, one that is full and then has, one that is not there.
pub(crate) fn results(c: &mut Cluster, rig: &mut Rig, ns: &str) -> Result<()> {
    cluster(c, rig)?;
    let small = rig.slurm(&["bash", "-c", "mkdir -p $SKIFF_SLURM_DIR/full && echo $SKIFF_SLURM_DIR/full"])?;
    let small = small.trim().to_owned();
    rig.slurm(&["mount", "-t", "tmpfs", "-o", "size=1m,mode=1777", "tmpfs", &small])?;
    let result = results_in(c, rig, ns, &small);
    rig.slurm(&["umount", "-l", &small])?;
    c.ok(&["delete", "persistentvolume", "hpc-full", "--ignore-not-found", "--wait=false"])?;
    result
}

fn results_in(c: &Cluster, rig: &Rig, ns: &str, small: &str) -> Result<()> {
    let claim = |name: &str, more: Value| {
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}});
        spec.as_object_mut().into_iter().for_each(|s| s.extend(more.as_object().cloned().unwrap_or_default()));
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": ns}, "spec": spec})
    };
    let full = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "hpc-full"}, "spec": {
        "capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": small},
        "storageClassName": "", "claimRef": {"namespace": ns, "name": "full"}}});
    let claims =
        [claim("kept", json!({})), full, claim("full", json!({"storageClassName": "", "volumeName": "hpc-full"}))];
    apply(c, &claims)?;
    let p = Person::new(c, ns)?;
    // Large enough that it comes in several blocks, with a name that no shell likes.
    let script = "mkdir -p out/deep && echo word >\"out/deep/it's \\$(x)\" && head -c 3000000 /dev/urandom >large.dat && echo no >other";
    let job = |claim: &str, path: Value| {
        json!({"cluster": "volumes", "run": {"script": script}, "outputs": ["out", "large.dat"],
            "resultsVolume": {"claimName": claim, "path": path}})
    };
    p.make("kept", job("kept", json!("results/one")))?;
    p.make("full", job("full", Value::Null))?;
    p.make("absent", job("nowhere", Value::Null))?;
    let s = p.until("kept", "Succeeded")?;
    ensure!(
        s["outputs"]["files"] == 2 && s["outputs"]["state"] == "Done" && condition(&s, "OutputsReady") != Value::Null,
        "{s}"
    );
    // What is in the claim is what is in the store.
    let read =
        "cat /d/results/one/out/deep/it*; sha256sum </d/results/one/large.dat | cut -c1-12; find /d -type f | wc -l";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reads", "namespace": ns}, "spec": {
        "restartPolicy": "Never", "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "kept"}}],
        "containers": [{"name": "c", "image": "skiff/busybox:1", "command": ["sh", "-c", read],
            "volumeMounts": [{"name": "d", "mountPath": "/d"}]}]}});
    apply(c, &[pod])?;
    c.eventually("the claim is read", |c| Ok(c.get(ns, "pod/reads")?["status"]["phase"] == "Succeeded"))?;
    let got = c.ok(&["-n", ns, "logs", "reads"])?;
    let listed = p.ok("kubectl gpu files kept")?;
    let lines: Vec<&str> = got.lines().collect();
    let [word, digest, "2"] = lines[..] else { anyhow::bail!("the claim has {got}") };
    ensure!(word == "word" && listed.contains(digest), "the claim has {got}, the store {listed}");
    // No room: said in the system's words, and gone on with when there is.
    c.eventually("a full volume is told", |_| {
        let said = says(&p.status("full")?, "OutputsReady");
        Ok(said.contains("VolumeFailed") && said.contains("No space left"))
    })?;
    ensure!(p.status("full")?["phase"] == "Finishing", "it has not ended yet");
    rig.slurm(&["mount", "-o", "remount,size=8m", small])?;
    p.until("full", "Succeeded")?;
    let there = rig.slurm(&["bash", "-c", &format!("cd {small} && find . -type f | wc -l; ls -a")])?;
    ensure!(there.starts_with("2\n") && !there.contains(".skiff"), "{there}");
    c.eventually("a claim that is not there is told", |_| {
        Ok(says(&p.status("absent")?, "OutputsReady").contains("nowhere"))
    })?;
    c.eventually("no pod is left of those that filled", |c| {
        let all = c.kubectl(&["-n", ns, "get", "pods", "-o", "name"])?.out;
        Ok(!all.contains("kept-results") && !all.contains("full-results"))
    })?;
    p.ok("kubectl gpu cancel absent kept full")?;
    c.ok(&["delete", "hpccluster", "volumes"]).map(drop)
}
