//! Work that ends, comes back, stays in order, runs everywhere; and what holds it back.

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;

/// A program that runs until it is told to stop, at once then.
const STAYS: &str = "trap exit TERM; while true; do sleep 0.2; done";

fn apply(c: &Cluster, ns: &str, manifest: &str) -> Result<()> {
    let o = c.apply(&["-n", ns, "apply"], manifest)?;
    ensure!(o.code == 0, "{}", o.err);
    Ok(())
}

fn container(command: &str) -> String {
    format!(r#"containers: [{{name: c, image: "skiff/busybox:1", command: [sh, -c, "{command}"]}}]"#)
}

/// `create job` and `wait`, a Job that fails, an indexed one, `create job --from`, `create cronjob`.
pub(crate) fn jobs(c: &mut Cluster, ns: &str) -> Result<()> {
    c.ok(&["-n", ns, "create", "job", "hello", "--image=skiff/busybox:1", "--", "echo", "hello"])?;
    c.ok(&["-n", ns, "wait", "--for=condition=complete", "job/hello", "--timeout=60s"])?;
    ensure!(c.ok(&["-n", ns, "logs", "job/hello"])? == "hello\n");
    let table = c.ok(&["-n", ns, "get", "job", "hello", "--no-headers"])?;
    ensure!(table.split_whitespace().take(3).eq(["hello", "Complete", "1/1"]), "{table}");

    let bad = format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: bad}}\nspec:\n  backoffLimit: 0\n  \
         template: {{spec: {{restartPolicy: Never, {}}}}}\n",
        container("exit 3")
    );
    apply(c, ns, &bad)?;
    c.ok(&["-n", ns, "wait", "--for=condition=failed", "job/bad", "--timeout=60s"])?;
    let described = c.ok(&["-n", ns, "describe", "job", "bad"])?;
    ensure!(described.contains("BackoffLimitExceeded") && described.contains("1 Failed"), "{described}");

    let parts = format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: parts}}\nspec:\n  completions: 3\n  parallelism: 2\n  \
         completionMode: Indexed\n  template: {{spec: {{restartPolicy: Never, {}}}}}\n",
        container("echo part $JOB_COMPLETION_INDEX of $(hostname)")
    );
    apply(c, ns, &parts)?;
    c.ok(&["-n", ns, "wait", "--for=condition=complete", "job/parts", "--timeout=60s"])?;
    let last = "batch.kubernetes.io/job-completion-index=2";
    ensure!(c.ok(&["-n", ns, "logs", "-l", last])? == "part 2 of parts-2\n");
    ensure!(c.get(ns, "job/parts")?["status"]["completedIndexes"] == "0-2");

    let tick = ["-n", ns, "create", "cronjob", "tick", "--image=skiff/busybox:1", "--schedule=0 0 1 1 *"];
    c.ok(&[&tick[..], &["--", "echo", "tick"]].concat())?;
    c.ok(&["-n", ns, "create", "job", "now", "--from=cronjob/tick"])?;
    c.ok(&["-n", ns, "wait", "--for=condition=complete", "job/now", "--timeout=60s"])?;
    ensure!(c.ok(&["-n", ns, "logs", "job/now"])? == "tick\n");
    c.ok(&["-n", ns, "patch", "cronjob", "tick", "-p", r#"{"spec":{"schedule":"* * * * *"}}"#])?;
    c.eventually("it fires", |c| Ok(!c.get(ns, "cronjob/tick")?["status"]["lastSuccessfulTime"].is_null()))?;
    c.ok(&["-n", ns, "delete", "cronjob", "tick"])?;
    c.ok(&["-n", ns, "delete", "jobs", "--all"])?;
    c.eventually("no container is left", |c| Ok(c.containers_of(ns)?.is_empty()))
}

/// `kill -9` while a Job runs: as many pods as asked for, each counted once.
pub(crate) fn job_and_crash(c: &mut Cluster, ns: &str) -> Result<()> {
    let many = format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: many}}\nspec:\n  completions: 8\n  parallelism: 3\n  \
         template: {{spec: {{restartPolicy: Never, {}}}}}\n",
        container("sleep 0.3")
    );
    apply(c, ns, &many)?;
    for n in [1, 4] {
        c.eventually("some have succeeded", |c| {
            Ok(c.get(ns, "job/many")?["status"]["succeeded"].as_i64().unwrap_or(0) >= n)
        })?;
        c.crash_and_restart()?;
    }
    c.ok(&["-n", ns, "wait", "--for=condition=complete", "job/many", "--timeout=90s"])?;
    ensure!(c.get(ns, "job/many")?["status"]["succeeded"] == 8);
    let pods = c.ok(&["-n", ns, "get", "pods", "-o", "name"])?;
    ensure!(pods.lines().count() == 8, "{pods}");
    Ok(())
}

/// `rollout status`, `history`, `undo` and `restart` of a StatefulSet and a DaemonSet.
pub(crate) fn sets(c: &mut Cluster, ns: &str) -> Result<()> {
    let manifest = |kind: &str, name: &str, extra: &str| {
        format!(
            "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n{extra}  selector: {{matchLabels: \
             {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec: {{{}}}\n",
            container(STAYS)
        )
    };
    apply(c, ns, &manifest("StatefulSet", "db", "  replicas: 2\n  serviceName: db\n"))?;
    apply(c, ns, &manifest("DaemonSet", "agent", ""))?;
    for what in ["statefulset/db", "daemonset/agent"] {
        c.ok(&["-n", ns, "rollout", "status", what, "--timeout=90s"])?;
    }
    let names = c.ok(&["-n", ns, "get", "pods", "-l", "app=db", "-o", "name"])?;
    ensure!(names == "pod/db-0\npod/db-1\n", "{names}");
    ensure!(c.ok(&["-n", ns, "exec", "db-1", "--", "hostname"])? == "db-1\n");
    let on = c.ok(&["-n", ns, "get", "pods", "-l", "app=agent", "-o", "jsonpath={.items[*].spec.nodeName}"])?;
    ensure!(on == "node1", "{on:?}");
    for what in ["statefulset/db", "daemonset/agent"] {
        c.ok(&["-n", ns, "set", "env", what, "GREETING=hello"])?;
        c.ok(&["-n", ns, "rollout", "status", what, "--timeout=90s"])?;
        let history = c.ok(&["-n", ns, "rollout", "history", what])?;
        ensure!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
        let first = c.ok(&["-n", ns, "rollout", "history", what, "--revision=2"])?;
        ensure!(first.contains("GREETING"), "{first}");
        c.ok(&["-n", ns, "rollout", "undo", what])?;
        c.ok(&["-n", ns, "rollout", "status", what, "--timeout=90s"])?;
        ensure!(c.get(ns, what)?["spec"]["template"]["spec"]["containers"][0]["env"].is_null(), "{what}");
        let history = c.ok(&["-n", ns, "rollout", "history", what])?;
        ensure!(!history.contains("\n1 ") && history.contains("\n3 "), "{history}");
        c.ok(&["-n", ns, "rollout", "restart", what])?;
        c.ok(&["-n", ns, "rollout", "status", what, "--timeout=90s"])?;
    }
    c.ok(&["-n", ns, "scale", "statefulset/db", "--replicas=1"])?;
    c.eventually("db-1 goes", |c| Ok(c.kubectl(&["-n", ns, "get", "pod", "db-1"])?.code == 1))?;
    c.ok(&["-n", ns, "delete", "statefulset/db", "daemonset/agent"])?;
    c.eventually("no container is left", |c| Ok(c.containers_of(ns)?.is_empty()))
}

/// A budget that `drain` respects, and the node's return.
pub(crate) fn drain(c: &mut Cluster, ns: &str) -> Result<()> {
    let deployment = ["-n", ns, "create", "deployment", "web", "--image=skiff/busybox:1", "--replicas=2"];
    c.ok(&[&deployment[..], &["--", "sh", "-c", STAYS]].concat())?;
    c.ok(&["-n", ns, "rollout", "status", "deployment/web", "--timeout=90s"])?;
    c.ok(&["-n", ns, "create", "poddisruptionbudget", "web", "--selector=app=web", "--min-available=2"])?;
    c.eventually("the budget is counted", |c| Ok(c.get(ns, "pdb/web")?["status"]["currentHealthy"] == 2))?;
    let selector = "--pod-selector=app=web";
    let o = c.kubectl(&["drain", "node1", selector, "--timeout=8s"])?;
    ensure!(o.code != 0, "drained in spite of the budget: {o:?}");
    ensure!(o.err.contains("Cannot evict pod as it would violate the pod's disruption budget."), "{o:?}");
    ensure!(c.get(ns, "deployment/web")?["status"]["readyReplicas"] == 2);
    c.ok(&["-n", ns, "patch", "pdb", "web", "--type=merge", "-p", r#"{"spec":{"minAvailable":0}}"#])?;
    c.ok(&["drain", "node1", selector, "--timeout=60s"])?;
    let node = c.ok(&["get", "node", "node1", "--no-headers"])?;
    ensure!(node.contains("SchedulingDisabled"), "{node}");
    c.ok(&["uncordon", "node1"])?;
    c.ok(&["-n", ns, "rollout", "status", "deployment/web", "--timeout=90s"])?;
    Ok(())
}

/// `create quota`: what it refuses, what it shows, what is given back.
pub(crate) fn quota(c: &mut Cluster, ns: &str) -> Result<()> {
    c.ok(&["-n", ns, "create", "quota", "q", "--hard=pods=1,configmaps=2,count/jobs.batch=1"])?;
    c.eventually("it is counted", |c| Ok(c.get(ns, "quota/q")?["status"]["used"]["configmaps"] == "1"))?;
    c.ok(&["-n", ns, "create", "configmap", "a"])?;
    let o = c.kubectl(&["-n", ns, "create", "configmap", "b"])?;
    ensure!(o.code == 1 && o.err.contains("exceeded quota: q, requested: configmaps=1, used: configmaps=2"), "{o:?}");
    c.ok(&["-n", ns, "delete", "configmap", "a"])?;
    c.eventually("there is room again", |c| Ok(c.kubectl(&["-n", ns, "create", "configmap", "b"])?.code == 0))?;
    let deployment = ["-n", ns, "create", "deployment", "web", "--image=skiff/busybox:1", "--replicas=2"];
    c.ok(&[&deployment[..], &["--", "sh", "-c", STAYS]].concat())?;
    c.eventually("one pod runs", |c| Ok(c.get(ns, "deployment/web")?["status"]["readyReplicas"] == 1))?;
    c.eventually("and it is told why no more", |c| {
        let sets = c.get(ns, "replicasets")?;
        let condition = &sets["items"][0]["status"]["conditions"][0];
        Ok(condition["message"].as_str().is_some_and(|m| m.contains("exceeded quota: q, requested: pods=1")))
    })?;
    let described = c.ok(&["-n", ns, "describe", "quota", "q"])?;
    let line = described.lines().find(|l| l.starts_with("pods")).context("a line about pods")?;
    ensure!(line.split_whitespace().eq(["pods", "1", "1"]), "{described}");
    c.ok(&["-n", ns, "delete", "deployment", "web"])?;
    c.eventually("nothing is used", |c| Ok(c.get(ns, "quota/q")?["status"]["used"]["pods"] == "0"))?;
    c.ok(&["-n", ns, "create", "job", "one", "--image=skiff/busybox:1", "--", "true"])?;
    c.ok(&["-n", ns, "wait", "--for=condition=complete", "job/one", "--timeout=60s"])?;
    c.eventually("what has ended uses nothing", |c| Ok(c.get(ns, "quota/q")?["status"]["used"]["pods"] == "0"))
}
