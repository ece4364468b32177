//! A node whose pod network CNI plugins make, beside one that makes its own.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bed::Bed;
use crate::cases::{Case, network, pods, text};

/// Cases of the bed with plugins.
pub(crate) const ALL: &[(&str, Case)] = &[("plugins", plugins)];

/// Name of the network.
const NETWORK: &str = "plugged";

/// Writes the configuration: a bridge with addresses of the node's range, and host ports.
pub(crate) fn configure(dir: &Path) -> Result<()> {
    let list = json!({"cniVersion": "1.0.0", "name": NETWORK, "plugins": [
        {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
            "capabilities": {"ipRanges": true}, "ipam": {"type": "host-local", "dataDir": dir.join("addresses")}},
        {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        {"type": "loopback"},
    ]});
    Ok(std::fs::write(dir.join("10-net.conflist"), list.to_string())?)
}

/// Addresses that the plugin has given out.
fn given(dir: &Path) -> Vec<String> {
    let all = std::fs::read_dir(dir.join("addresses").join(NETWORK)).into_iter().flatten().flatten();
    all.map(|e| e.file_name().to_string_lossy().into_owned()).filter(|n| n.starts_with("10.244.")).collect()
}

const PORT: &str = "
apiVersion: v1
kind: Pod
metadata: {name: port}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: skiff/busybox:1
    command: [sh, -c, 'mkdir /w; echo here > /w/index.html; exec httpd -f -p 8080 -h /w']
    ports: [{containerPort: 8080, hostPort: 8088}]
";

fn plugins(bed: &Bed) -> Result<()> {
    let dir = bed.plugins.as_ref().context("a bed with plugins")?.path();
    // All that the agent's own network does, between a node with plugins and one without.
    network(bed)?;
    ensure!(bed.on("n1", &["ip", "link", "show", "cni0"])?.code == 0, "the plugin made no bridge");
    ensure!(bed.on("n1", &["ip", "link", "show", "skiff0"])?.code != 0, "the agent made a bridge of its own");
    bed.apply(PORT)?;
    bed.ok(&["wait", "--for=condition=Ready", "pod/port", "--timeout=60s"])?;
    let from_outside = || -> Result<bool> {
        let o =
            std::process::Command::new("curl").args(["-s", "--max-time", "3", "http://10.89.0.1:8088/"]).output()?;
        Ok(o.stdout == b"here\n")
    };
    bed.eventually("the host port answers", from_outside)?;
    let pod = |name: &str| -> Result<Value> { bed.get(&["pod", name]) };
    let address = text(&pod("port")?, "/status/podIP").to_owned();
    ensure!(given(dir).contains(&address), "{address} is not one of the plugin's: {:?}", given(dir));
    let hosts = bed.ok(&["exec", "port", "--", "cat", "/etc/hosts"])?;
    ensure!(hosts.contains(&format!("{address}\tport")), "{hosts}");

    // The agent is killed and starts again: everything stays as it is.
    let before = bed.containers("n1")?;
    bed.node("kill", "n1")?;
    bed.node("start", "n1")?;
    bed.eventually("exec works again", || Ok(bed.kubectl(&["exec", "port", "--", "true"])?.code == 0))?;
    ensure!(bed.containers("n1")? == before, "containers were restarted");
    ensure!(text(&pod("port")?, "/status/podIP") == address && from_outside()?, "another address");

    // Without its sandbox a pod gets a new one, and the plugin no address back twice.
    let filter = ["docker", "ps", "-q", "--filter", "label=io.kubernetes.pod.name=port"];
    let all = bed.on("n1", &filter)?.out;
    let count = given(dir).len();
    let kill: Vec<&str> = ["docker", "kill"].into_iter().chain(all.lines()).collect();
    bed.on("n1", &kill)?;
    bed.eventually("the pod has a new sandbox", || {
        let now = bed.on("n1", &filter)?.out;
        let fresh = now.lines().count() == 2 && !now.lines().any(|id| all.contains(id));
        Ok(fresh && from_outside()? && given(dir).len() == count)
    })?;

    // A broken configuration: the node says so and takes no pods; what runs can still be ended in order.
    let file = dir.join("10-net.conflist");
    std::fs::write(&file, "{")?;
    bed.eventually("the node says what is wrong", || {
        let node = bed.get(&["node", "n1"])?;
        let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = all.iter().find(|c| c["type"] == "Ready").context("a condition")?.clone();
        Ok(ready["status"] == "False"
            && text(&ready, "/reason") == "KubeletNotReady"
            && text(&ready, "/message").contains("NetworkReady=false reason:NetworkPluginNotReady"))
    })?;
    bed.ok(&["delete", "pod/port", "deployment/web", "--wait=true"])?;
    bed.eventually("no pod is left, and no address given", || Ok(pods(bed)?.is_empty() && given(dir).is_empty()))?;
    bed.apply(&PORT.replace("hostPort: 8088", "hostPort: 8089"))?;
    bed.eventually("an event says why a pod has no network", || {
        let events = bed.get(&["events", "--field-selector", "involvedObject.name=port"])?;
        let told = |e: &Value| {
            e["reason"] == "FailedCreatePodSandBox"
                && text(e, "/message").contains("failed to setup network for sandbox")
        };
        Ok(events["items"].as_array().is_some_and(|l| l.iter().any(told)))
    })?;
    configure(dir)?;
    bed.eventually("the node is ready again", || Ok(bed.ready("n1")? == "True"))?;
    bed.ok(&["wait", "--for=condition=Ready", "pod/port", "--timeout=90s"])?;
    bed.ok(&["delete", "pod/port", "--wait=true"])?;
    bed.eventually("nothing is left", || Ok(given(dir).is_empty() && bed.containers("n1")?.is_empty()))
}
