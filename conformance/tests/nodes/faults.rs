//! Faults after which everything must be as it was: no pod is made anew, nothing is done twice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bed::Bed;
use crate::cases::{pods, text};

/// A web server on every node that stays there whatever the node's taints are.
const STAY: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: stay}
spec:
  selector: {matchLabels: {app: stay}}
  template:
    metadata: {labels: {app: stay}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: skiff/busybox:1
        command: [sh, -c, 'mkdir /w; echo "$HOSTNAME" > /w/index.html; exec httpd -f -p 8080 -h /w']
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: stay}
spec: {type: NodePort, selector: {app: stay}, ports: [{port: 80, targetPort: 8080, nodePort: 30081}]}
"#;

/// What must not change: of each pod by its node, the name, UID, address and restarts, and the containers of all nodes.
#[derive(Debug, PartialEq)]
struct State {
    pods: BTreeMap<String, [String; 3]>,
    restarts: i64,
    containers: Vec<Vec<String>>,
}

impl State {
    fn of(bed: &Bed) -> Result<Self> {
        let list = bed.get(&["pods", "-l", "app=stay"])?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let known = |p: &Value| {
            (
                text(p, "/spec/nodeName").to_owned(),
                ["/metadata/name", "/metadata/uid", "/status/podIP"].map(|f| text(p, f).to_owned()),
            )
        };
        let restarts = items.iter().filter_map(|p| p["status"]["containerStatuses"][0]["restartCount"].as_i64()).sum();
        let containers = bed.nodes.iter().map(|n| bed.containers(n)).collect::<Result<_>>()?;
        Ok(Self { pods: items.iter().map(known).collect(), restarts, containers })
    }

    fn address(&self, node: &str) -> Result<&str> {
        Ok(&self.pods.get(node).context("a pod on the node")?[2])
    }
}

/// Starts the pods and waits until all are ready.
fn begin(bed: &Bed) -> Result<State> {
    // Other cases' pods do not stay where nodes fail.
    bed.ok(&["delete", "deployment", "web", "--ignore-not-found", "--wait=true"])?;
    bed.eventually("no other pod is left", || Ok(pods(bed)?.is_empty()))?;
    bed.apply(STAY)?;
    bed.eventually("there is a pod for each node", || Ok(State::of(bed)?.pods.len() == bed.nodes.len()))?;
    bed.ok(&["rollout", "status", "daemonset/stay", "--timeout=60s"])?;
    bed.eventually("all answer", || all_answer(bed))?;
    State::of(bed)
}

fn end(bed: &Bed) -> Result<()> {
    bed.ok(&["delete", "daemonset/stay", "service/stay", "--wait=true"])?;
    bed.eventually("no pod is left", || Ok(State::of(bed)?.pods.is_empty()))
}

/// What the node port of a node answers.
fn answer(bed: &Bed, from: &str, node: usize) -> Result<String> {
    let url = format!("http://10.89.0.{}:30081/", node + 1);
    Ok(bed.on(from, &["curl", "-s", "--max-time", "3", &url])?.out)
}

/// Whether the Service answers at every node, from every node.
fn all_answer(bed: &Bed) -> Result<bool> {
    for from in &bed.nodes {
        for to in 0..bed.nodes.len() {
            if !answer(bed, from, to)?.contains("stay-") {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn renewed(bed: &Bed, node: &str) -> Result<String> {
    Ok(bed.kubectl(&["-n", "kube-node-lease", "get", "lease", node, "-o", "jsonpath={.spec.renewTime}"])?.out)
}

/// Every process of ours on every node is killed at once and started again: pods, their containers and Services go on
/// meanwhile, and afterwards everything is known and works.
pub(crate) fn all_at_once(bed: &Bed) -> Result<()> {
    let before = begin(bed)?;
    let leases = bed.nodes.iter().map(|n| renewed(bed, n)).collect::<Result<Vec<_>>>()?;
    for node in &bed.nodes {
        bed.node("kill", node)?;
    }
    let meanwhile = all_answer(bed);
    for node in &bed.nodes {
        bed.node("start", node)?;
    }
    ensure!(meanwhile?, "Services do not answer without us");
    bed.eventually("every node renews its lease", || {
        for (node, old) in bed.nodes.iter().zip(&leases) {
            let now = renewed(bed, node)?;
            if now.is_empty() || now == *old || bed.ready(node)? != "True" {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    ensure!(all_answer(bed)?, "Services do not answer afterwards");
    for [name, ..] in before.pods.values() {
        bed.eventually("exec works again", || Ok(bed.kubectl(&["exec", name, "--", "true"])?.code == 0))?;
    }
    let after = State::of(bed)?;
    ensure!(after == before, "{before:?} became {after:?}");
    // The controllers work, too.
    bed.ok(&["rollout", "restart", "daemonset/stay"])?;
    bed.ok(&["rollout", "status", "daemonset/stay", "--timeout=90s"])?;
    end(bed)
}

/// A node's engine is killed: its containers go on and answer, the node says that it is not ready; then all is as before.
pub(crate) fn engine(bed: &Bed) -> Result<()> {
    let before = begin(bed)?;
    bed.node("kill-engine", "n3")?;
    let meanwhile = (|| {
        bed.eventually("the node is not ready", || Ok(bed.ready("n3")? == "False"))?;
        let url = format!("http://{}:8080/", before.address("n3")?);
        let o = bed.on("n1", &["curl", "-s", "--max-time", "3", &url])?;
        ensure!(o.out.contains("stay-"), "the pod does not answer without its engine: {o:?}");
        bed.eventually("the Service answers", || Ok(answer(bed, "n2", 0)?.contains("stay-")))
    })();
    bed.node("start-engine", "n3")?;
    meanwhile?;
    as_before(bed, &before)
}

/// A node's cable is out for a minute: the others go on, and nothing is made anew.
pub(crate) fn minute(bed: &Bed) -> Result<()> {
    let before = begin(bed)?;
    bed.node("cut", "n3")?;
    let over = Instant::now() + Duration::from_secs(60);
    let meanwhile = (|| {
        bed.eventually("the node is not known to live", || Ok(bed.ready("n3")? == "Unknown"))?;
        let other = before.pods.get("n3").context("a pod")?[0].clone();
        bed.eventually("its pod is out of the Service", || {
            let slices = bed.get(&["endpointslices", "-l", "kubernetes.io/service-name=stay"])?;
            let all = slices["items"].as_array().cloned().unwrap_or_default();
            let mut ends = all.iter().flat_map(|s| s["endpoints"].as_array().cloned().unwrap_or_default());
            Ok(ends.all(|e| e["nodeName"] != "n3" || e["conditions"]["ready"] == false))
        })?;
        // The proxies hear of it as the test does: the first answer may be older.
        answer(bed, "n1", 1)?;
        let mut asked = 0;
        bed.eventually("a minute is over", || {
            let got = answer(bed, "n1", 1)?;
            ensure!(got.contains("stay-") && !got.contains(&other), "after {asked} answers: {got:?}");
            asked += 1;
            Ok(Instant::now() > over)
        })
    })();
    bed.node("heal", "n3")?;
    meanwhile?;
    as_before(bed, &before)
}

/// Waits until the third node is back and its pod ready, and checks that nothing was made anew.
fn as_before(bed: &Bed, before: &State) -> Result<()> {
    bed.eventually("the node is ready again", || Ok(bed.ready("n3")? == "True"))?;
    let [name, ..] = before.pods.get("n3").context("a pod")?;
    bed.ok(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"])?;
    bed.eventually("exec works again", || Ok(bed.kubectl(&["exec", name, "--", "true"])?.code == 0))?;
    bed.eventually("its pod answers for the Service", || Ok(answer(bed, "n1", 0)?.contains(name.as_str())))?;
    let after = State::of(bed)?;
    ensure!(after == *before, "{before:?} became {after:?}");
    bed.eventually("the taints are gone", || Ok(bed.get(&["node", "n3"])?["spec"].get("taints").is_none()))?;
    end(bed)
}
