//! Storage that outlives pods: claims, volumes, classes.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::cluster::Cluster;

fn apply(c: &Cluster, ns: &str, manifest: &str) -> Result<()> {
    let o = c.apply(&["-n", ns, "apply"], manifest)?;
    ensure!(o.code == 0, "{}", o.err);
    Ok(())
}

fn exec(c: &Cluster, ns: &str, pod: &str, command: &str) -> Result<String> {
    c.ok(&["-n", ns, "exec", pod, "--", "sh", "-c", command])
}

fn claim(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec:\n  accessModes: [ReadWriteOnce]\n  resources: {{requests: {{storage: 64Mi}}}}\n{more}"
    )
}

/// A pod that ends at once when asked to, with one volume at `/data`.
fn pod(name: &str, volume: &str, context: &str, mount: &str) -> String {
    format!(
        r"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  securityContext: {{{context}}}
  containers:
  - name: c
    image: skiff/busybox:1
    command: [sh, -c, 'trap exit TERM; while true; do sleep 0.2; done']
    volumeMounts: [{{name: v, mountPath: /data{mount}}}]
  volumes: [{{name: v, {volume}}}]
"
    )
}

fn of_claim(claim: &str) -> String {
    format!("persistentVolumeClaim: {{claimName: {claim}}}")
}

fn ready(c: &Cluster, ns: &str, name: &str) -> Result<()> {
    c.ok(&["-n", ns, "wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"])?;
    Ok(())
}

/// The default class: data outlive pods, a claim in use stays, growth, and everything goes with the claim.
pub(crate) fn claims(c: &mut Cluster, ns: &str) -> Result<()> {
    ensure!(c.ok(&["get", "storageclass"])?.contains("standard (default)   skiff.dev/local-path   Delete"));
    apply(c, ns, &claim("data", ""))?;
    c.eventually("the claim waits for a pod", |c| {
        Ok(c.ok(&["-n", ns, "events", "--for", "pvc/data"])?
            .contains("waiting for first consumer to be created before binding"))
    })?;
    apply(c, ns, &pod("a", &of_claim("data"), "", ""))?;
    ready(c, ns, "a")?;
    exec(c, ns, "a", "echo kept > /data/f; mkdir -p /data/sub; echo deep > /data/sub/g")?;
    c.ok(&["-n", ns, "delete", "pod", "a", "--timeout=60s"])?;
    apply(c, ns, &pod("b", &of_claim("data"), "fsGroup: 3000, runAsUser: 1000", ""))?;
    ready(c, ns, "b")?;
    ensure!(exec(c, ns, "b", "cat /data/f; stat -c '%g' /data /data/sub/g")? == "kept\n3000\n3000\n");
    exec(c, ns, "b", "echo mine > /data/own")?;
    // Several pods of the node share it; one sees a part of it, one may not write.
    apply(c, ns, &pod("part", &of_claim("data"), "", ", subPath: sub"))?;
    apply(c, ns, &pod("reads", &of_claim("data").replace('}', ", readOnly: true}"), "", ""))?;
    ready(c, ns, "part")?;
    ready(c, ns, "reads")?;
    ensure!(exec(c, ns, "part", "ls /data")? == "g\n");
    let refused = c.kubectl(&["-n", ns, "exec", "reads", "--", "sh", "-c", "echo x > /data/f"])?;
    ensure!(refused.code != 0, "{refused:?}");
    // A link out of the volume is not followed.
    exec(c, ns, "b", "ln -s / /data/escape")?;
    apply(c, ns, &pod("escapes", &of_claim("data"), "", ", subPath: escape/etc"))?;
    c.eventually("the link is refused", |c| {
        let p = c.get(ns, "pod/escapes")?;
        Ok(p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError")
    })?;

    c.ok(&["-n", ns, "patch", "pvc", "data", "-p", r#"{"spec":{"resources":{"requests":{"storage":"128Mi"}}}}"#])?;
    c.ok(&["-n", ns, "wait", "--for=jsonpath={.status.capacity.storage}=128Mi", "pvc/data", "--timeout=60s"])?;
    let smaller = r#"{"spec":{"resources":{"requests":{"storage":"1Mi"}}}}"#;
    let o = c.kubectl(&["-n", ns, "patch", "pvc", "data", "-p", smaller])?;
    ensure!(o.code != 0 && o.err.contains("field can not be less than status.capacity"), "{o:?}");

    let volume = c.get(ns, "pvc/data")?["spec"]["volumeName"].as_str().unwrap_or_default().to_owned();
    let path = c.get("", &format!("pv/{volume}"))?["spec"]["local"]["path"].as_str().unwrap_or_default().to_owned();
    ensure!(Path::new(&path).join("own").exists(), "{path}");
    c.ok(&["-n", ns, "delete", "pvc", "data", "--wait=false"])?;
    ensure!(c.ok(&["-n", ns, "describe", "pvc", "data"])?.contains("Terminating"));
    ensure!(exec(c, ns, "b", "cat /data/own")? == "mine\n", "a claim in use stays");
    c.ok(&["-n", ns, "delete", "pod", "b", "part", "reads", "escapes", "--timeout=60s"])?;
    c.eventually("claim, volume and directory go", |c| {
        Ok(c.kubectl(&["-n", ns, "get", "pvc", "data"])?.code != 0
            && c.kubectl(&["get", "pv", &volume])?.code != 0
            && !Path::new(&path).exists())
    })
}

/// Volumes made by hand, claims that nobody can serve, volumes that live as long as a pod.
pub(crate) fn volumes_by_hand(c: &mut Cluster, ns: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let manifest = format!(
        r"
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {ns}-one, labels: {{disk: one}}}}
spec:
  storageClassName: ''
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteOnce, ReadOnlyMany]
  hostPath: {{path: {}}}
---
{}",
        dir.path().display(),
        claim("mine", "  storageClassName: ''\n  selector: {matchLabels: {disk: one}}\n")
    );
    apply(c, ns, &manifest)?;
    c.ok(&["-n", ns, "wait", "--for=jsonpath={.status.phase}=Bound", "pvc/mine", "--timeout=60s"])?;
    let shown = c.ok(&["-n", ns, "get", "pvc", "mine"])?;
    ensure!(shown.contains(&format!("Bound    {ns}-one   1Gi        RWO,ROX")), "{shown}");
    apply(c, ns, &pod("p", &of_claim("mine"), "", ""))?;
    ready(c, ns, "p")?;
    exec(c, ns, "p", "echo here > /data/f")?;
    ensure!(std::fs::read_to_string(dir.path().join("f"))? == "here\n");
    c.ok(&["-n", ns, "delete", "pod", "p", "--timeout=60s"])?;
    c.ok(&["-n", ns, "delete", "pvc", "mine", "--timeout=60s"])?;
    c.ok(&["wait", "--for=jsonpath={.status.phase}=Released", &format!("pv/{ns}-one"), "--timeout=60s"])?;
    ensure!(dir.path().join("f").exists(), "what is retained is not touched");
    c.ok(&["delete", "pv", &format!("{ns}-one"), "--timeout=60s"])?;

    apply(c, ns, &pod("none", &of_claim("nowhere"), "", ""))?;
    c.eventually("a missing claim is named", |c| {
        Ok(c.ok(&["-n", ns, "describe", "pod", "none"])?
            .contains("0/1 nodes are available: persistentvolumeclaim \"nowhere\" not found."))
    })?;
    let share = pod("share", "nfs: {server: 127.0.0.1, path: /none}", "", "");
    apply(c, ns, &share)?;
    c.eventually("a share that cannot be mounted is told", |c| {
        let text = c.ok(&["-n", ns, "describe", "pod", "share"])?;
        Ok(text.contains("FailedMount") && text.contains("MountVolume.SetUp failed for volume \"v\" : mount failed:"))
    })?;

    let scratch = "ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}}";
    apply(c, ns, &pod("e", scratch, "", ""))?;
    ready(c, ns, "e")?;
    exec(c, ns, "e", "echo x > /data/f")?;
    ensure!(c.get(ns, "pvc/e-v")?["status"]["phase"] == "Bound");
    c.ok(&["-n", ns, "delete", "pod", "e", "none", "share", "--timeout=60s"])?;
    c.eventually("the pod's own claim goes with it", |c| Ok(c.kubectl(&["-n", ns, "get", "pvc", "e-v"])?.code != 0))
}

/// Pods of a StatefulSet keep their data, each its own, also when they come back; a directory with a limit is held to it.
pub(crate) fn stateful_data(c: &mut Cluster, ns: &str) -> Result<()> {
    let manifest = r"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: s}
spec:
  serviceName: s
  replicas: 2
  selector: {matchLabels: {app: s}}
  template:
    metadata: {labels: {app: s}}
    spec:
      containers:
      - name: c
        image: skiff/busybox:1
        command: [sh, -c, 'trap exit TERM; hostname >> /data/who; while true; do sleep 0.2; done']
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
";
    apply(c, ns, manifest)?;
    c.ok(&["-n", ns, "rollout", "status", "statefulset/s", "--timeout=90s"])?;
    ensure!(exec(c, ns, "s-0", "cat /data/who")? == "s-0\n" && exec(c, ns, "s-1", "cat /data/who")? == "s-1\n");
    let uid = c.get(ns, "pod/s-1")?["metadata"]["uid"].clone();
    c.ok(&["-n", ns, "delete", "pod", "s-1", "--timeout=60s"])?;
    c.eventually("it comes back to its data", |c| {
        let o = c.kubectl(&["-n", ns, "exec", "s-1", "--", "cat", "/data/who"])?;
        Ok(o.out == "s-1\ns-1\n" && c.get(ns, "pod/s-1")?["metadata"]["uid"] != uid)
    })?;
    c.ok(&["-n", ns, "delete", "statefulset", "s", "--timeout=60s"])?;
    c.ok(&["-n", ns, "delete", "pvc", "--all", "--timeout=60s"])?;

    let greedy = pod("greedy", "emptyDir: {sizeLimit: 1Mi}", "", "");
    apply(c, ns, &greedy)?;
    ready(c, ns, "greedy")?;
    exec(c, ns, "greedy", "dd if=/dev/zero of=/data/f bs=1M count=3 2>/dev/null")?;
    c.eventually("the greedy pod is evicted", |c| {
        let status = c.get(ns, "pod/greedy")?["status"].clone();
        let text = "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ";
        Ok(status["phase"] == "Failed" && status["reason"] == "Evicted" && status["message"] == text)
    })?;
    let writer = r"
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: skiff/busybox:1
    command: [sh, -c, 'dd if=/dev/zero of=/f bs=1M count=3; sleep 3600']
    resources: {limits: {ephemeral-storage: 1Mi}}
";
    apply(c, ns, writer)?;
    c.eventually("the pod that writes too much is evicted", |c| {
        let status = c.get(ns, "pod/writer")?["status"].clone();
        let text = "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ";
        Ok(status["phase"] == "Failed" && status["reason"] == "Evicted" && status["message"] == text)
    })
}

/// The placement policy is told with the placement.
pub(crate) fn placement_policy(c: &mut Cluster, ns: &str) -> Result<()> {
    c.ok(&["-n", "kube-system", "create", "configmap", "skiff-scheduler", "--from-literal=policy=lowest-memory"])?;
    let mut number = 0;
    let told = c.eventually("the policy is told", |c| {
        number += 1;
        let name = format!("p{number}");
        super::start(c, ns, &name, "trap exit TERM; while true; do sleep 0.2; done")?;
        Ok(c.ok(&["-n", ns, "events", "--for", &format!("pod/{name}")])?
            .contains("to node1 (policy lowest-memory, score "))
    });
    c.ok(&["-n", "kube-system", "delete", "configmap", "skiff-scheduler"])?;
    told
}
