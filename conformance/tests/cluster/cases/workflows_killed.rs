//! `kill -9` of the whole program in the middle of a run: the run ends as if nothing had been, and its history says so.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// A task that is under way for seconds, one that ends at once, an object that is made; beside a Wait and a Map.
const MANIFEST: &str = r#"
apiVersion: skiff.dev/v1
kind: Function
metadata: {name: slow}
spec: {source: {inline: "import time\ndef main(params):\n    time.sleep(2)\n    return params['x'] + 1"}}
---
apiVersion: skiff.dev/v1
kind: Function
metadata: {name: double}
spec: {source: {inline: "def main(params):\n    return params['x'] * 2"}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: maps}
rules: [{apiGroups: [""], resources: [configmaps], verbs: [get, create, patch]}]
---
apiVersion: skiff.dev/v1
kind: Workflow
metadata: {name: killed}
spec:
  definition:
    StartAt: All
    States:
      All:
        Type: Parallel
        Next: Last
        Branches:
          - StartAt: Slow
            States:
              Slow: {Type: Task, Resource: skiff:function:slow, ResultPath: $.x, Next: Object}
              Object:
                Type: Task
                Resource: skiff:kubernetes:create
                Parameters:
                  Object: {apiVersion: v1, kind: ConfigMap, metadata: {name: made}, data: {by: run}}
                ResultSelector: {made.$: $.metadata.name}
                End: true
          - StartAt: Pause
            States: {Pause: {Type: Wait, Seconds: 3, End: true}}
          - StartAt: Each
            States:
              Each:
                Type: Map
                ItemsPath: $.items
                ItemSelector: {x.$: $$.Map.Item.Value}
                ItemProcessor:
                  StartAt: Double
                  States: {Double: {Type: Task, Resource: skiff:function:double, End: true}}
                End: true
      Last: {Type: Task, Resource: skiff:function:double, InputPath: "$[1]", End: true}
"#;

/// The events of a run, as the service's API has them.
fn history(c: &Cluster, dir: &std::path::Path, ns: &str, run: &str) -> Result<Vec<Value>> {
    let command = format!("kubectl wf history {run} -o json");
    let o = crate::cluster::run(c.workplace(dir, ns)?.args(["-c", &command]))?;
    ensure!(o.code == 0, "{command}: {}{}", o.out, o.err);
    let told: Value = serde_json::from_str(&o.out).with_context(|| o.out.clone())?;
    Ok(told["events"].as_array().context("no events")?.clone())
}

/// How often each type of event was.
fn counts(events: &[Value]) -> BTreeMap<&str, usize> {
    let mut all = BTreeMap::new();
    for event in events {
        *all.entry(event["type"].as_str().unwrap_or_default()).or_default() += 1;
    }
    all
}

/// What was stored before the kill is what the history begins with afterwards; each outcome is there once.
pub(crate) fn workflows_killed(c: &mut Cluster, ns: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let o = c.apply(&["-n", ns, "apply"], MANIFEST)?;
    ensure!(o.code == 0, "{}{}", o.out, o.err);
    let account = format!("--serviceaccount={ns}:default");
    c.ok(&["-n", ns, "create", "rolebinding", "maps", "--role=maps", &account])?;
    c.ok(&["-n", ns, "wait", "--for=condition=Valid", "workflow/killed", "--timeout=30s"])?;
    let input = json!({"x": 1, "items": [1, 2, 3]});
    let run = json!({"apiVersion": "skiff.dev/v1", "kind": "WorkflowRun", "metadata": {"name": "r"},
        "spec": {"workflow": "killed", "input": input}});
    let o = c.apply(&["-n", ns, "apply"], &run.to_string())?;
    ensure!(o.code == 0, "{}{}", o.out, o.err);
    // The Map is through; the slow task is under way, or begins; the timer is armed.
    c.eventually("the Map is through", |c| {
        Ok(history(c, dir.path(), ns, "r").is_ok_and(|h| counts(&h).contains_key("MapStateSucceeded")))
    })?;
    let before = history(c, dir.path(), ns, "r")?;
    c.crash_and_restart()?;
    c.ok(&["-n", ns, "wait", "--for=condition=Complete", "wfr/r", "--timeout=60s"])?;
    let after = history(c, dir.path(), ns, "r")?;
    ensure!(after.len() > before.len(), "the run was over before the kill: {before:?}");
    ensure!(after.starts_with(&before), "what was stored changed:\n{before:?}\n{after:?}");
    let ids: Vec<i64> = after.iter().filter_map(|e| e["id"].as_i64()).collect();
    ensure!(ids.iter().copied().eq(1..=i64::try_from(after.len())?), "{ids:?}");
    // Two tasks alone, three of the Map, one at the end.
    let wanted = BTreeMap::from([
        ("ExecutionStarted", 1),
        ("ExecutionSucceeded", 1),
        ("ParallelStateEntered", 1),
        ("ParallelStateStarted", 1),
        ("ParallelStateSucceeded", 1),
        ("ParallelStateExited", 1),
        ("MapStateEntered", 1),
        ("MapStateStarted", 1),
        ("MapStateSucceeded", 1),
        ("MapStateExited", 1),
        ("MapIterationStarted", 3),
        ("MapIterationSucceeded", 3),
        ("WaitStateEntered", 1),
        ("WaitStateExited", 1),
        ("TaskStateEntered", 6),
        ("TaskStateExited", 6),
    ]);
    let seen = counts(&after);
    for (kind, times) in wanted {
        ensure!(seen.get(kind) == Some(&times), "{kind} {:?} times instead of {times}: {seen:?}", seen.get(kind));
    }
    let outcomes: usize = seen.iter().filter(|(k, _)| k.ends_with("Succeeded")).map(|(_, n)| n).sum();
    // Those of tasks are of functions or of others; beside them are the run, the Parallel, the Map and its items.
    ensure!(outcomes == 6 + 6, "{seen:?}");
    let output = c.get(ns, "wfr/r")?["status"]["output"].clone();
    ensure!(output == 2, "{output}");
    ensure!(c.get(ns, "configmap/made")?["data"]["by"] == "run");
    c.ok(&["-n", ns, "delete", "workflowruns,workflows,functions", "--all"])?;
    Ok(())
}
