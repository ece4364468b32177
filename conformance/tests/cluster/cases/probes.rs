//! gRPC probes against grpc-go's own health service. The service runs beside the cluster, the pod on the host's network.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::cluster::Cluster;

struct Health {
    process: Child,
    lines: BufReader<ChildStdout>,
    input: ChildStdin,
    port: u16,
}

impl Health {
    fn start(dir: &Path) -> Result<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/grpchealth");
        let program = dir.join("grpchealth");
        let built =
            Command::new("go").args(["build", "-mod=mod", "-o"]).arg(&program).arg(".").current_dir(source).output()?;
        ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let mut process = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = process.stdin.take().context("no input")?;
        let mut lines = BufReader::new(process.stdout.take().context("no output")?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        Ok(Self { port: line.trim().parse()?, process, lines, input })
    }

    fn set(&mut self, service: &str, status: &str) -> Result<()> {
        writeln!(self.input, "{service} {status}")?;
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        ensure!(line == "set\n", "{line}");
        Ok(())
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Ready follows the service's status; a liveness probe that fails restarts the container, with upstream's event.
pub(crate) fn grpc(c: &mut Cluster, ns: &str) -> Result<()> {
    if Command::new("go").arg("version").output().is_err() {
        println!("     not tried: go is not installed");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let mut health = Health::start(dir.path())?;
    let port = health.port;
    health.set("live", "SERVING")?;
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"hostNetwork": true, "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "c", "image": "skiff/busybox:1", "command": ["sh", "-c", "trap exit TERM; while :; do sleep 1; done"],
            "readinessProbe": {"grpc": {"port": port, "service": "ready"}, "periodSeconds": 1},
            "livenessProbe": {"grpc": {"port": port, "service": "live"}, "periodSeconds": 1, "failureThreshold": 2},
        }]},
    });
    let o = c.apply(&["-n", ns, "apply"], &pod.to_string())?;
    ensure!(o.code == 0, "{}", o.err);
    let event = |c: &Cluster, text: &str| -> Result<bool> {
        let events = c.get(ns, "events")?;
        let found = events["items"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|e| e["reason"] == "Unhealthy" && e["message"].as_str().is_some_and(|m| m.contains(text)));
        Ok(found)
    };
    let unknown =
        "Readiness probe failed: error: health rpc probe failed: rpc error: code = NotFound desc = unknown service";
    c.eventually("an event names the error", |c| event(c, unknown))?;
    health.set("ready", "NOT_SERVING")?;
    let not_serving = r#"Readiness probe failed: service unhealthy (responded with "NOT_SERVING")"#;
    c.eventually("an event names the status", |c| event(c, not_serving))?;
    let ready =
        |c: &Cluster| -> Result<bool> { Ok(c.get(ns, "pod/p")?["status"]["containerStatuses"][0]["ready"] == true) };
    ensure!(!ready(c)?, "ready though the service does not serve");
    health.set("ready", "SERVING")?;
    c.eventually("the pod is ready", ready)?;
    ensure!(c.get(ns, "pod/p")?["status"]["containerStatuses"][0]["restartCount"] == 0, "restarted while it served");
    health.set("live", "NOT_SERVING")?;
    c.eventually("the container is restarted", |c| {
        Ok(c.get(ns, "pod/p")?["status"]["containerStatuses"][0]["restartCount"].as_u64() >= Some(1))
    })?;
    health.set("live", "SERVING")?;
    drop(health);
    c.eventually("a service that is gone is told", |c| event(c, "timeout: failed to connect service"))
}
