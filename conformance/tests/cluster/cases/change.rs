//! What changes in a running pod: a container beside the others for looking, other limits; and a port of the node.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::basic::http;
use crate::cluster::Cluster;

const POD: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: skiff/busybox:1
    command: [sh, -c, 'mkdir -p /www; echo here > /www/index.html; exec httpd -f -p 8080 -h /www']
    ports: [{containerPort: 8080, hostPort: 18080}]
    resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}
";

/// hostPort, `debug` with an ephemeral container, a resize without a restart.
pub(crate) fn change(c: &mut Cluster, ns: &str) -> Result<()> {
    let o = c.apply(&["-n", ns, "apply"], POD)?;
    ensure!(o.code == 0, "{}", o.err);
    c.ok(&["-n", ns, "wait", "--for=condition=Ready", "pod/p", "--timeout=60s"])?;
    c.eventually("the node's port answers", |_| Ok(http("127.0.0.1:18080").is_ok_and(|b| b.ends_with("here\n"))))?;

    let debug = ["-n", ns, "debug", "p", "--profile=general", "--image=skiff/busybox:1", "-c", "look", "--"];
    c.ok(&[&debug[..], &["sh", "-c", "echo beside; wget -q -O - http://127.0.0.1:8080/"]].concat())?;
    c.eventually("it shares the pod's network", |c| {
        Ok(c.kubectl(&["-n", ns, "logs", "p", "-c", "look"])?.out == "beside\nhere\n")
    })?;
    c.eventually("its end is told", |c| {
        let p = c.get(ns, "pod/p")?;
        Ok(p["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 0)
    })?;

    let more = r#"{"spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"300m"}}}]}}"#;
    c.ok(&["-n", ns, "patch", "pod", "p", "--subresource", "resize", "-p", more])?;
    c.eventually("the status has the new limit", |c| {
        let p = c.get(ns, "pod/p")?;
        Ok(p["status"]["containerStatuses"][0]["resources"]["limits"]["cpu"] == "300m")
    })?;
    ensure!(c.cgroup_quota(&format!("k8s_c_p_{ns}"))? == 30_000);
    let p = c.get(ns, "pod/p")?;
    ensure!(p["status"]["containerStatuses"][0]["restartCount"] == 0, "a resize restarted the container");

    c.ok(&["-n", ns, "delete", "pod", "p"])?;
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while http("127.0.0.1:18080").is_ok() {
        ensure!(std::time::Instant::now() < end, "the node's port still answers");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
