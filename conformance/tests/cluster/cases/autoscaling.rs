//! What pods use, and Deployments that follow it.

use anyhow::{Result, ensure};

use crate::cluster::Cluster;

/// Uses all the CPU it gets until it is told to be calm.
const BUSY: &str = "trap exit TERM; while true; do if [ -e /tmp/calm ]; then sleep 0.2; fi; done";

/// `kubectl top` of nodes, pods and containers; `kubectl autoscale`: out while pods work, in again when they are calm.
pub(crate) fn autoscaling(c: &mut Cluster, ns: &str) -> Result<()> {
    let manifest = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: busy}}\nspec:\n  selector: {{matchLabels: {{app: \
         busy}}}}\n  template:\n    metadata: {{labels: {{app: busy}}}}\n    spec:\n      containers: [{{name: c, image: \
         \"skiff/busybox:1\", command: [sh, -c, \"{BUSY}\"], resources: {{requests: {{cpu: 50m}}, limits: {{cpu: \
         100m, memory: 64Mi}}}}}}]\n"
    );
    let o = c.apply(&["-n", ns, "apply"], &manifest)?;
    ensure!(o.code == 0, "{}", o.err);
    c.ok(&["-n", ns, "rollout", "status", "deployment/busy", "--timeout=60s"])?;
    c.ok(&["-n", ns, "autoscale", "deployment", "busy", "--cpu-percent=50", "--min=1", "--max=3"])?;
    let quick = r#"{"spec":{"behavior":{"scaleDown":{"stabilizationWindowSeconds":0}}}}"#;
    c.ok(&["-n", ns, "patch", "hpa", "busy", "--type=merge", "-p", quick])?;

    let top = c.ok(&["top", "nodes", "--no-headers"])?;
    ensure!(top.starts_with("node1 ") && top.contains('%'), "{top}");
    c.eventually("the pod's use is known", |c| {
        let o = c.kubectl(&["-n", ns, "top", "pods", "--no-headers", "-l", "app=busy"])?;
        let millis = o.out.split_whitespace().nth(1).and_then(|m| m.strip_suffix('m')?.parse::<u32>().ok());
        Ok(millis.is_some_and(|m| (50..=200).contains(&m)))
    })?;
    let top = c.ok(&["-n", ns, "top", "pods", "--containers", "--no-headers"])?;
    ensure!(top.split_whitespace().nth(1) == Some("c") && top.contains("Mi"), "{top}");

    c.eventually("three are asked for", |c| Ok(c.get(ns, "deployment/busy")?["spec"]["replicas"] == 3))?;
    c.ok(&["-n", ns, "rollout", "status", "deployment/busy", "--timeout=60s"])?;
    let events = c.ok(&["-n", ns, "get", "events", "--field-selector=reason=SuccessfulRescale"])?;
    ensure!(events.contains("reason: cpu resource utilization (percentage of request) above target"), "{events}");
    let described = c.ok(&["-n", ns, "describe", "hpa", "busy"])?;
    for reason in ["ValidMetricFound", "TooManyReplicas"] {
        ensure!(described.contains(reason), "no {reason}: {described}");
    }

    let pods = c.ok(&["-n", ns, "get", "pods", "-l", "app=busy", "-o", "name"])?;
    for pod in pods.lines() {
        c.ok(&["-n", ns, "exec", pod, "--", "touch", "/tmp/calm"])?;
    }
    c.eventually("one is asked for", |c| Ok(c.get(ns, "deployment/busy")?["spec"]["replicas"] == 1))?;
    let events = c.ok(&["-n", ns, "get", "events", "--field-selector=reason=SuccessfulRescale"])?;
    ensure!(events.contains("All metrics below target"), "{events}");
    Ok(())
}
