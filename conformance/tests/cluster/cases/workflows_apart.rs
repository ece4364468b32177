//! Two `skiff workflows` beside a server, with an account that may do just what its manifest says: they share the runs, and
//! when one is killed the other goes on with its own and its.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{Cluster, repository, run};

/// Name of the processes.
const WORKFLOWS: &str = "workflows";
/// Runs at a time.
const RUNS: usize = 16;

/// A timer, an object that is made, a timer.
const MANIFEST: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: maps}
rules: [{apiGroups: [""], resources: [configmaps], verbs: [get, create, patch]}]
---
apiVersion: skiff.dev/v1
kind: Workflow
metadata: {name: shared}
spec:
  definition:
    StartAt: First
    States:
      First: {Type: Wait, Seconds: 4, Next: Make}
      Make:
        Type: Task
        Resource: skiff:kubernetes:create
        Parameters:
          Object:
            apiVersion: v1
            kind: ConfigMap
            metadata: {name.$: "States.Format('made-{}', $.i)"}
            data: {by.$: $$.Execution.Name}
        ResultPath: $.made
        Next: Second
      Second: {Type: Wait, Seconds: 4, Next: Done}
      Done: {Type: Pass, Parameters: {i.$: $.i}, End: true}
"#;

/// A function that a third process serves.
const FUNCTION: &str = r#"
apiVersion: skiff.dev/v1
kind: Function
metadata: {name: double}
spec:
  public: true
  isolation: container
  source: {inline: "def main(params): return params['x'] * 2"}
---
apiVersion: skiff.dev/v1
kind: Workflow
metadata: {name: calls}
spec:
  definition:
    StartAt: Double
    States:
      Double: {Type: Task, Resource: skiff:function:double, End: true}
"#;
/// Where the gateway of functions is.
const GATEWAY: (&str, &str) = ("18081", "http://127.0.0.1:18081");

/// Starts one more; its Step Functions API is at this port.
fn serve(c: &mut Cluster, config: &Path, port: &str, secure: &str) -> Result<()> {
    let config = config.to_string_lossy();
    let args = ["--kubeconfig", &config, "--workflows-port", port, "--secure-port", secure, "--gateway", GATEWAY.1];
    c.start_process(WORKFLOWS, &args.map(OsString::from))
}

/// So many engines are there and go by the same set.
fn agreed(c: &Cluster, engines: usize) -> Result<()> {
    c.eventually("the engines agree", |c| {
        let path = "jsonpath={.items[*].metadata.annotations.states\\.skiff\\.dev/engines}";
        let sets = c.ok(&["-n", "kube-system", "get", "leases", "-l", "states.skiff.dev/engine", "-o", path])?;
        let sets: Vec<&str> = sets.split_whitespace().collect();
        Ok(sets.len() == engines && sets.iter().all(|s| *s == sets[0]))
    })
}

/// Starts runs by kubectl; their names.
fn begin(c: &Cluster, ns: &str, prefix: &str) -> Result<Vec<String>> {
    let names: Vec<String> = (0..RUNS).map(|i| format!("{prefix}-{i}")).collect();
    let runs = names.iter().map(|name| {
        json!({"apiVersion": "skiff.dev/v1", "kind": "WorkflowRun", "metadata": {"name": name},
            "spec": {"workflow": "shared", "input": {"i": name}}})
    });
    let list = json!({"apiVersion": "v1", "kind": "List", "items": runs.collect::<Vec<_>>()});
    let o = c.apply(&["-n", ns, "apply"], &list.to_string())?;
    ensure!(o.code == 0, "{}{}", o.out, o.err);
    Ok(names)
}

/// Each run ended once, with its whole history and its object.
fn all_right(c: &Cluster, ns: &str, dir: &Path, names: &[String]) -> Result<()> {
    let wanted = [
        "ExecutionStarted",
        "WaitStateEntered",
        "WaitStateExited",
        "TaskStateEntered",
        "TaskScheduled",
        "TaskStarted",
        "TaskSucceeded",
        "TaskStateExited",
        "WaitStateEntered",
        "WaitStateExited",
        "PassStateEntered",
        "PassStateExited",
        "ExecutionSucceeded",
    ];
    for name in names {
        c.ok(&["-n", ns, "wait", "--for=condition=Complete", &format!("wfr/{name}"), "--timeout=90s"])?;
        let command = format!("kubectl wf history {name} -o json");
        let o = run(c.workplace(dir, ns)?.args(["-c", &command]))?;
        ensure!(o.code == 0, "{command}: {}{}", o.out, o.err);
        let told: Value = serde_json::from_str(&o.out).with_context(|| o.out.clone())?;
        let events = told["events"].as_array().context("no events")?;
        let types: Vec<&str> = events.iter().filter_map(|e| e["type"].as_str()).collect();
        ensure!(types == wanted, "{name}: {types:?}");
        ensure!(c.get(ns, &format!("configmap/made-{name}"))?["data"]["by"] == json!(name), "{name}");
        ensure!(c.get(ns, &format!("wfr/{name}"))?["status"]["output"]["i"] == json!(name), "{name}");
    }
    Ok(())
}

/// How many runs each engine wrote last, by the pages.
fn parts(c: &Cluster, ns: &str) -> Result<BTreeMap<String, usize>> {
    let writers = c.ok(&["-n", ns, "get", "wfh", "-o", "jsonpath={.items[*].spec.writer}"])?;
    let mut parts = BTreeMap::new();
    for engine in writers.split_whitespace().filter_map(|w| w.split('.').next()) {
        *parts.entry(engine.to_owned()).or_default() += 1;
    }
    Ok(parts)
}

/// Two engines, of which one is killed in the middle, and another that comes.
pub(crate) fn workflows_apart(c: &mut Cluster, ns: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("workflows");
    let manifest = repository().join("docs/examples/workflows/workflows.yaml");
    c.ok(&["apply", "-f", manifest.to_str().context("the path is no text")?])?;
    c.kubeconfig_of("kube-system", "skiff-workflows", &config)?;
    serve(c, &config, "18083", "10262")?;
    serve(c, &config, "18084", "10263")?;
    c.eventually("workflows can be made", |c| Ok(c.apply(&["-n", ns, "apply"], MANIFEST)?.code == 0))?;
    let account = format!("--serviceaccount={ns}:default");
    c.ok(&["-n", ns, "create", "rolebinding", "maps", "--role=maps", &account])?;
    c.ok(&["-n", ns, "wait", "--for=condition=Valid", "workflow/shared", "--timeout=60s"])?;
    agreed(c, 2)?;
    for port in ["10262", "10263"] {
        let url = format!("https://127.0.0.1:{port}/healthz");
        let o = c.run(Command::new("curl").args(["-sk", &url]))?;
        ensure!(o.out.contains("ok"), "{}{}", o.out, o.err);
    }
    let names = begin(c, ns, "killed")?;
    c.eventually("all are under way", |c| {
        let phases = c.ok(&["-n", ns, "get", "wfr", "-o", "jsonpath={.items[*].status.phase}"])?;
        Ok(phases.split_whitespace().filter(|p| *p == "RUNNING").count() == names.len())
    })?;
    let parts_before = parts(c, ns)?;
    ensure!(parts_before.len() == 2 && parts_before.values().all(|n| *n >= 2), "{parts_before:?}");
    c.kill_component(WORKFLOWS)?;
    all_right(c, ns, dir.path(), &names)?;

    // Another comes, and has its part.
    let before: BTreeSet<String> = parts(c, ns)?.into_keys().collect();
    serve(c, &config, "18083", "10262")?;
    agreed_again(c)?;
    let names = begin(c, ns, "again")?;
    all_right(c, ns, dir.path(), &names)?;
    let after: BTreeSet<String> = parts(c, ns)?.into_keys().collect();
    ensure!(after.difference(&before).count() == 1, "{before:?} {after:?}");
    functions(c, ns, dir.path())?;
    c.ok(&["-n", ns, "delete", "workflowruns,workflows,functions", "--all"])?;
    c.kill_component("faas")?;
    c.kill_component(WORKFLOWS)?;
    c.kill_component(WORKFLOWS)
}

/// Functions are those of the gateway in a process of its own.
fn functions(c: &mut Cluster, ns: &str, dir: &Path) -> Result<()> {
    let config = dir.join("faas");
    c.ok(&["apply", "-f", super::functions::text(&super::functions::example("faas.yaml"))?])?;
    c.kubeconfig_of("kube-system", "skiff-faas", &config)?;
    let path = config.to_string_lossy();
    let args = ["--kubeconfig", &path, "--functions-http-port", GATEWAY.0, "--functions-https-port", "0"];
    c.start_process("faas", &args.map(OsString::from))?;
    c.eventually("functions can be made", |c| Ok(c.apply(&["-n", ns, "apply"], FUNCTION)?.code == 0))?;
    c.ok(&["-n", ns, "wait", "--for=condition=Ready", "function/double", "--timeout=90s"])?;
    let run = json!({"apiVersion": "skiff.dev/v1", "kind": "WorkflowRun", "metadata": {"name": "calls"},
        "spec": {"workflow": "calls", "input": {"x": 21}}});
    let o = c.apply(&["-n", ns, "apply"], &run.to_string())?;
    ensure!(o.code == 0, "{}{}", o.out, o.err);
    c.ok(&["-n", ns, "wait", "--for=condition=Complete", "wfr/calls", "--timeout=90s"])?;
    let output = c.get(ns, "wfr/calls")?["status"]["output"].clone();
    ensure!(output == 42, "{output}");
    Ok(())
}

/// Two that live agree; the Lease of the one that was killed may still be there.
fn agreed_again(c: &Cluster) -> Result<()> {
    c.eventually("the engines agree again", |c| {
        let path = "jsonpath={.items[*].metadata.annotations.states\\.skiff\\.dev/engines}";
        let sets = c.ok(&["-n", "kube-system", "get", "leases", "-l", "states.skiff.dev/engine", "-o", path])?;
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        sets.split_whitespace().for_each(|s| *counts.entry(s).or_default() += 1);
        Ok(counts.values().any(|n| *n == 2))
    })
}
