//! The first things people do: the example, streams, roll-outs, refusals, names, healing, a crash.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::start;
use crate::cluster::Cluster;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/web.yaml");

/// docs/examples/web.yaml as the README shows it.
pub(crate) fn web_example(c: &mut Cluster, ns: &str) -> Result<()> {
    c.ok(&["-n", ns, "apply", "-f", EXAMPLE])?;
    c.ok(&["-n", ns, "rollout", "status", "deployment/web", "--timeout=90s"])?;
    let table = c.ok(&["-n", ns, "get", "deployment", "web"])?;
    let mut lines = table.lines();
    ensure!(lines.next().is_some_and(|h| h.split_whitespace().eq(["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"])));
    ensure!(lines.next().is_some_and(|l| l.starts_with("web") && l.contains("3/3")), "{table}");
    let pods = c.ok(&["-n", ns, "get", "pods", "-l", "app=web", "-o", "name"])?;
    let first = pods.lines().next().context("a pod")?.to_owned();
    let said = c.ok(&["-n", ns, "exec", &first, "--", "sh", "-c", "echo $GREETING; cat /www/index.html"])?;
    ensure!(said == "good morning\nhello from skiff\n", "{said:?}");
    // Through the Service by name from a pod, and by node port from the host.
    c.eventually("the Service answers by name", |c| {
        Ok(c.kubectl(&["-n", ns, "exec", &first, "--", "wget", "-q", "-O", "-", "http://web/"])?.out
            == "hello from skiff\n")
    })?;
    c.eventually("the node port answers", |_| {
        Ok(http("127.0.0.1:30080").is_ok_and(|b| b.contains("hello from skiff")))
    })?;
    let described = c.ok(&["-n", ns, "describe", "service", "web"])?;
    ensure!(described.lines().any(|l| l.starts_with("NodePort:") && l.contains("30080/TCP")), "{described}");
    Ok(())
}

/// GETs `/` of an address.
pub(crate) fn http(at: &str) -> Result<String> {
    use std::io::{Read as _, Write as _};
    let mut s = TcpStream::connect_timeout(&at.parse()?, Duration::from_secs(2))?;
    s.set_read_timeout(Some(Duration::from_secs(5)))?;
    s.write_all(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")?;
    let mut out = vec![];
    // How the connection ends is no part of the answer.
    let _ = s.read_to_end(&mut out);
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// logs, exec with an exit code, cp, port-forward, attach-less run.
pub(crate) fn streams(c: &mut Cluster, ns: &str) -> Result<()> {
    start(c, ns, "a", "echo one; echo two; mkdir -p /www; echo page > /www/index.html; exec httpd -f -p 8080 -h /www")?;
    ensure!(c.ok(&["-n", ns, "logs", "a"])? == "one\ntwo\n");
    ensure!(c.ok(&["-n", ns, "logs", "a", "--tail=1"])? == "two\n");
    let o = c.kubectl(&["-n", ns, "exec", "a", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure!(o.code == 7 && o.out == "out\n" && o.err.starts_with("err\n"), "{o:?}");
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), "content")?;
    let local = file.path().to_string_lossy().into_owned();
    c.ok(&["-n", ns, "cp", &local, "a:/tmp/copied"])?;
    ensure!(c.ok(&["-n", ns, "exec", "a", "--", "cat", "/tmp/copied"])? == "content");
    let mut forward = c.background(&["-n", ns, "port-forward", "pod/a", ":8080"])?;
    // Kept open: kubectl prints a line per connection, and ends when nobody reads it.
    let mut printed = BufReader::new(forward.stdout.take().context("port-forward prints its port")?);
    let mut line = String::new();
    printed.read_line(&mut line)?;
    let port = line.split("127.0.0.1:").nth(1).and_then(|r| r.split(' ').next()).context("a port")?.to_owned();
    let page = http(&format!("127.0.0.1:{port}"));
    forward.kill()?;
    forward.wait()?;
    ensure!(page?.ends_with("page\n"));
    let missing = c.kubectl(&["-n", ns, "logs", "none"])?;
    ensure!(missing.code == 1 && missing.err.contains("pods \"none\" not found"), "{missing:?}");
    // More input than all that lies between: what is written while it is read, and what nobody reads.
    std::fs::write(file.path(), vec![b'x'; 10_000_000])?;
    for sockets in [true, false] {
        let o = c.fed(file.path(), sockets, &["-n", ns, "exec", "-i", "a", "--", "cat"])?;
        ensure!(o.code == 0 && o.out.len() == 10_000_000, "{} {} {}", o.code, o.out.len(), o.err);
        let first = c.fed(file.path(), sockets, &["-n", ns, "exec", "-i", "a", "--", "head", "-c", "5"])?;
        ensure!(first.code == 0 && first.out == "xxxxx", "{first:?}");
        let run = ["-n", ns, "run", "b", "--image=skiff/busybox:1", "--restart=Never", "-i", "--rm", "--command", "--"];
        let ends = c.fed(file.path(), sockets, &[&run[..], &["sh", "-c", "head -c 5; exit 3"]].concat())?;
        ensure!(ends.code == 3 && ends.out.starts_with("xxxxx"), "{ends:?}");
    }
    Ok(())
}

/// set image, rollout history and undo, scale.
pub(crate) fn rollout(c: &mut Cluster, ns: &str) -> Result<()> {
    c.ok(&["-n", ns, "create", "deployment", "d", "--image=skiff/busybox:1", "--replicas=2", "--", "sleep", "3600"])?;
    c.ok(&["-n", ns, "rollout", "status", "deployment/d", "--timeout=90s"])?;
    c.ok(&["-n", ns, "set", "env", "deployment/d", "STEP=two"])?;
    c.ok(&["-n", ns, "rollout", "status", "deployment/d", "--timeout=90s"])?;
    let history = c.ok(&["-n", ns, "rollout", "history", "deployment/d"])?;
    let revisions: Vec<&str> =
        history.lines().filter_map(|l| l.split_whitespace().next()).filter(|w| w.parse::<u32>().is_ok()).collect();
    ensure!(revisions == ["1", "2"], "{history}");
    c.ok(&["-n", ns, "rollout", "undo", "deployment/d"])?;
    c.ok(&["-n", ns, "rollout", "status", "deployment/d", "--timeout=90s"])?;
    let d = c.get(ns, "deployment/d")?;
    ensure!(d["spec"]["template"]["spec"]["containers"][0]["env"].is_null(), "{d}");
    c.ok(&["-n", ns, "scale", "deployment/d", "--replicas=1"])?;
    c.eventually("one replica is left", |c| Ok(c.get(ns, "deployment/d")?["status"]["replicas"] == 1))
}

/// Bad input is refused with the field at fault, and nothing is stored.
pub(crate) fn bad_manifests(c: &mut Cluster, ns: &str) -> Result<()> {
    let pod = |spec: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: bad}}\nspec: {spec}\n");
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: bad}\nspec: {template: {spec: {containers: [{name: a, image: b}]}}}\n";
    let cases = [
        (pod("{containers: [{name: a, image: b, prots: []}]}"), "unknown field \"spec.containers[0].prots\""),
        (pod("{containers: [{name: a, image: b, resources: {limits: {cpu: x}}}]}"), "quantities must match"),
        (pod("{containers: []}"), "spec.containers: Required value"),
        (deployment.to_owned(), "spec.selector: Required value"),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Bad_Name}\n".to_owned(),
            "metadata.name: Invalid value: \"Bad_Name\"",
        ),
    ];
    for (manifest, want) in &cases {
        let o = c.apply(&["-n", ns, "create"], manifest)?;
        ensure!(o.code != 0 && o.err.contains(want), "wanted {want:?}, got {o:?}");
    }
    let left = c.ok(&["-n", ns, "get", "pods,deployments", "-o", "name"])?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

/// Field ownership: a conflict names the owner, force takes over.
pub(crate) fn server_side_apply(c: &mut Cluster, ns: &str) -> Result<()> {
    let map = |v: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata: {{k: {v}}}\n");
    let apply = |manager: &str, v: &str, force: bool| {
        let manager = format!("--field-manager={manager}");
        let mut args = vec!["-n", ns, "apply", "--server-side", manager.as_str()];
        if force {
            args.push("--force-conflicts");
        }
        c.apply(&args, &map(v))
    };
    ensure!(apply("one", "a", false)?.code == 0);
    let o = apply("two", "b", false)?;
    ensure!(o.code != 0 && o.err.contains("conflict with \"one\": .data.k"), "{o:?}");
    ensure!(apply("two", "b", true)?.code == 0);
    ensure!(c.get(ns, "configmap/m")?["data"]["k"] == "b");
    Ok(())
}

/// Names and addresses: Service, headless, endpoints that come and go.
pub(crate) fn names_and_services(c: &mut Cluster, ns: &str) -> Result<()> {
    start(c, ns, "server", "mkdir -p /www; echo here > /www/index.html; exec httpd -f -p 8080 -h /www")?;
    start(c, ns, "client", "sleep 3600")?;
    c.ok(&["-n", ns, "expose", "pod", "server", "--port=80", "--target-port=8080"])?;
    let wget = |host: &str| c.kubectl(&["-n", ns, "exec", "client", "--", "wget", "-q", "-O", "-", host]);
    for host in ["http://server/".to_owned(), format!("http://server.{ns}.svc.cluster.local/")] {
        c.eventually(&format!("{host} answers"), |_| Ok(wget(&host)?.out == "here\n"))?;
    }
    let o = c.ok(&["-n", ns, "exec", "client", "--", "nslookup", "kubernetes.default.svc.cluster.local"])?;
    ensure!(o.contains("10.96.0.1"), "{o}");
    c.ok(&["-n", ns, "delete", "pod", "server", "--wait=true"])?;
    c.eventually("a Service without pods refuses", |_| Ok(wget("http://server/")?.code != 0))
}

/// A pod that goes is replaced; a container that ends is started again.
pub(crate) fn self_healing(c: &mut Cluster, ns: &str) -> Result<()> {
    c.ok(&["-n", ns, "create", "deployment", "d", "--image=skiff/busybox:1", "--", "sleep", "3600"])?;
    c.ok(&["-n", ns, "rollout", "status", "deployment/d", "--timeout=90s"])?;
    let before = c.ok(&["-n", ns, "get", "pods", "-o", "name"])?;
    c.ok(&["-n", ns, "delete", before.trim(), "--grace-period=0", "--force", "--wait=true"])?;
    c.ok(&["-n", ns, "rollout", "status", "deployment/d", "--timeout=90s"])?;
    let after = c.ok(&["-n", ns, "get", "pods", "-o", "name"])?;
    ensure!(!after.trim().is_empty() && before != after, "{before} {after}");
    start(c, ns, "r", "sleep 1")?;
    c.eventually("the container was restarted", |c| {
        let p = c.get(ns, "pod/r")?;
        Ok(p["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(0) >= 1)
    })
}

/// `kill -9` of the whole process: every object is there again, and no container noticed.
pub(crate) fn crash(c: &mut Cluster, ns: &str) -> Result<()> {
    start(c, ns, "steady", "sleep 3600")?;
    for i in 0..20 {
        c.ok(&["-n", ns, "create", "configmap", &format!("m{i}"), "--from-literal=k=v"])?;
    }
    // Other cases' pods may still be going; wait until nothing changes by itself.
    c.eventually("only this case's pod is left", |c| {
        let all = c.ok(&["get", "pods", "-A", "-o", "name"])?;
        Ok(all.lines().filter(|l| !l.is_empty()).count() == 1)
    })?;
    c.eventually("its containers are all there are", |c| Ok(c.containers()?.len() == 2))?;
    let before = c.containers()?;
    c.crash_and_restart()?;
    let maps = c.ok(&["-n", ns, "get", "configmaps", "-o", "name"])?;
    ensure!((0..20).all(|i| maps.lines().any(|l| l == format!("configmap/m{i}"))), "{maps}");
    let p = c.get(ns, "pod/steady")?;
    ensure!(p["status"]["containerStatuses"][0]["restartCount"] == 0, "{p}");
    ensure!(c.containers()? == before, "containers changed across a restart");
    ensure!(c.ok(&["-n", ns, "exec", "steady", "--", "echo", "alive"])? == "alive\n");
    Ok(())
}
