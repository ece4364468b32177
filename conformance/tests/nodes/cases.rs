//! What several nodes must do. The cases share one bed and run in this order; each leaves it whole.

use std::collections::BTreeSet;
use std::net::UdpSocket;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bed::Bed;

/// A case.
pub(crate) type Case = fn(&Bed) -> Result<()>;

/// Cases of the bed with plain routes.
pub(crate) const ALL: &[(&str, Case)] = &[
    ("network", network),
    ("rights", rights),
    ("refusals", refusals),
    ("ranges", ranges),
    ("agent_restart", agent_restart),
    ("drain", drain),
    ("functions", crate::functions::functions),
    ("functions_lost", crate::functions::functions_lost),
    ("functions_image", crate::functions::functions_image),
    ("balancer", crate::outside::balancer),
    ("gateways", crate::outside::gateways),
    ("policies", crate::outside::policies),
    ("all_at_once", crate::faults::all_at_once),
    ("engine", crate::faults::engine),
    ("minute", crate::faults::minute),
    ("cut", cut),
    ("node_deleted", node_deleted),
];

/// Cases of the bed with VXLAN.
pub(crate) const TUNNEL: &[(&str, Case)] = &[("tunnel", tunnel)];

/// A web server on every node that says who asks and who answers, behind a Service and a node port; and a UDP Service of
/// the same pods. What is not ready yet is asked by nobody.
const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: REPLICAS
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
        labelSelector: {matchLabels: {app: web}}
      containers:
      - name: web
        image: skiff/busybox:1
        command:
        - sh
        - -c
        - |
          mkdir -p /tmp/cgi-bin
          printf '#!/bin/sh\necho\necho $REMOTE_ADDR $HOSTNAME\n' >/tmp/cgi-bin/who
          chmod +x /tmp/cgi-bin/who
          exec httpd -f -p 8080 -h /tmp
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: datagrams}
spec:
  selector: {app: web}
  ports: [{port: 9000, protocol: UDP}]
"#;

/// A range of virtual addresses.
const ADDED: &str = r#"
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: added}
spec: {cidrs: [10.98.78.0/24]}
"#;

/// A Service with an address of that range.
const THERE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: added}
spec:
  clusterIP: 10.98.78.5
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"#;

pub(crate) fn text<'a>(v: &'a Value, path: &str) -> &'a str {
    v.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// Name, node and address of each web pod that runs and is not going.
pub(crate) fn pods(bed: &Bed) -> Result<Vec<[String; 3]>> {
    let list = bed.get(&["pods", "-l", "app=web"])?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let alive = items
        .iter()
        .filter(|p| p["metadata"].get("deletionTimestamp").is_none() && text(p, "/status/phase") == "Running");
    Ok(alive.map(|p| ["/metadata/name", "/spec/nodeName", "/status/podIP"].map(|f| text(p, f).to_owned())).collect())
}

/// Starts the web pods if they are not there, and waits until there is one on each node.
pub(crate) fn web(bed: &Bed) -> Result<Vec<[String; 3]>> {
    bed.apply(&WEB.replace("REPLICAS", &bed.nodes.len().to_string()))?;
    bed.ok(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    let mut found = vec![];
    bed.eventually("a pod runs on each node", || {
        found = pods(bed)?;
        let on: BTreeSet<&String> = found.iter().map(|p| &p[1]).collect();
        Ok(on.len() == bed.nodes.len() && found.len() == bed.nodes.len())
    })?;
    found.sort_by(|a, b| a[1].cmp(&b[1]));
    Ok(found)
}

/// Everybody reaches everybody, by address, Service, name and node port, and is seen under its own address.
pub(crate) fn network(bed: &Bed) -> Result<()> {
    let pods = web(bed)?;
    let address = |i: usize| format!("10.89.0.{}", i + 1);
    // Node ports: of every node, from every node and from outside.
    for (i, _) in bed.nodes.iter().enumerate() {
        let url = format!("http://{}:30080/cgi-bin/who", address(i));
        for from in &bed.nodes {
            let o = bed.on(from, &["curl", "-s", "--max-time", "5", &url])?;
            ensure!(o.out.contains("web-"), "{from} asks {url}: {o:?}");
        }
    }
    for [name, node, ip] in &pods {
        // The name of a Service leads to pods of all nodes, and they see the pod's own address.
        let mut answered = BTreeSet::new();
        bed.eventually("every pod has answered", || {
            let exec =
                ["exec", name, "--", "wget", "-q", "-O", "-", "http://web.default.svc.cluster.local/cgi-bin/who"];
            let o = bed.ok(&exec)?;
            let (seen, by) = o.trim().split_once(' ').context("no answer")?;
            if by != name {
                ensure!(seen.contains(ip.as_str()), "{name} on {node} has {ip}, and {by} saw {seen}");
            }
            answered.insert(by.to_owned());
            Ok(answered.len() == pods.len())
        })?;
        // Pod to pod without a Service, and logs over the node's own certificate.
        for [other, _, to] in &pods {
            let url = format!("http://{to}:8080/cgi-bin/who");
            let o = bed.ok(&["exec", name, "--", "wget", "-q", "-O", "-", &url])?;
            ensure!(o.contains(ip.as_str()) && o.contains(other.as_str()), "{name} ({ip}) asks {url}: {o}");
        }
        bed.ok(&["logs", name])?;
    }
    datagrams(bed, &pods)
}

/// UDP from pod to pod, in packets as large as pods send, and through a Service.
fn datagrams(bed: &Bed, pods: &[[String; 3]]) -> Result<()> {
    let ([first, node, ip], [last, other, to]) = (&pods[0], &pods[pods.len() - 1]);
    let client = bed.socket(node, first, 0)?;
    let mut servers: Vec<UdpSocket> = vec![];
    for [name, on, _] in pods {
        servers.push(bed.socket(on, name, 9000)?);
    }
    let mut buffer = [0; 2000];
    let port = client.local_addr()?.port();
    let server = servers.last().context("a pod")?;
    client.send_to(&[7; 1422], format!("{to}:9000"))?;
    let (n, seen) = server.recv_from(&mut buffer).with_context(|| format!("{last} on {other} got nothing"))?;
    ensure!(n == 1422 && seen.to_string() == format!("{ip}:{port}"), "{n} bytes from {seen}, not from {ip}:{port}");
    server.send_to(b"back", seen)?;
    let (_, seen) = client.recv_from(&mut buffer).context("no answer to a datagram")?;
    ensure!(seen.to_string() == format!("{to}:9000"), "the answer came from {seen}");
    // Through the Service, to each pod in the end: another client port may get another endpoint.
    let service = bed.get(&["service", "datagrams"])?;
    let vip = format!("{}:9000", text(&service, "/spec/clusterIP"));
    for server in &servers {
        server.set_read_timeout(Some(std::time::Duration::from_millis(50)))?;
    }
    let mut reached = BTreeSet::new();
    bed.eventually("datagrams have reached every pod", || {
        let client = bed.socket(node, first, 0)?;
        client.send_to(b"x", &vip)?;
        for (i, server) in servers.iter().enumerate() {
            let Ok((_, seen)) = server.recv_from(&mut buffer) else { continue };
            reached.insert(i);
            server.send_to(b"back", seen)?;
            let (_, from) = client.recv_from(&mut buffer).context("no answer from the Service")?;
            ensure!(from.to_string() == vip, "the answer came from {from}");
        }
        Ok(reached.len() == servers.len())
    })
}

fn tunnel(bed: &Bed) -> Result<()> {
    network(bed)?;
    let routes = bed.on("n1", &["ip", "route", "show", "dev", "skiff.1"])?.out;
    ensure!(routes.contains("10.244.1.0/24"), "no route goes over the tunnel: {routes}");
    Ok(())
}

/// Whoever has no right to join is told why in one line.
fn refusals(bed: &Bed) -> Result<()> {
    let server = "10.89.0.1:6443";
    let data = bed.data("n1");
    let made =
        bed.skiff("n1", &["token", "create", "--data-dir", &data, "--print-join-command", "--description", "a test"])?;
    ensure!(made.code == 0, "{made:?}");
    let words: Vec<&str> = made.out.split_whitespace().collect();
    ensure!(words.len() == 7 && words[..4] == ["skiff", "join", server, "--token"], "{}", made.out);
    let (token, hash) = (words[4], words[6]);
    let listed = bed.skiff("n1", &["token", "list", "--data-dir", &data])?;
    ensure!(listed.out.lines().any(|l| l.starts_with(token) && l.ends_with("a test")), "{}", listed.out);
    bed.eventually("the token signs", || {
        let map = bed.get(&["-n", "kube-public", "configmap", "cluster-info"])?;
        Ok(map["data"].get(format!("jws-kubeconfig-{}", &token[..6])).is_some())
    })?;
    let dir = tempfile::tempdir()?;
    let at = dir.path().join("data").to_string_lossy().into_owned();
    let socket = bed.on("n2", &["printenv", "DOCKER_HOST"])?.out;
    let socket = socket.trim().trim_start_matches("unix://").to_owned();
    let other_hash = format!("sha256:{}", "0".repeat(64));
    let wrong_secret = format!("{}.0123456789abcdef", &token[..6]);
    for (token, hash, name, want) in [
        (token, hash, "n2", "a node n2 exists and is ready"),
        (token, other_hash.as_str(), "n9", "not the one of --ca-cert-hash"),
        (wrong_secret.as_str(), hash, "n9", "does not know the secret"),
        ("aaaaaa.0123456789abcdef", hash, "n9", "is unknown to the cluster, or has expired"),
        ("rubbish", hash, "n9", "a token is six and sixteen letters or digits"),
    ] {
        let o = bed.skiff(
            "n2",
            &[
                "join",
                server,
                "--token",
                token,
                "--ca-cert-hash",
                hash,
                "--node-name",
                name,
                "--data-dir",
                &at,
                "--engine",
                &socket,
            ],
        )?;
        ensure!(o.code != 0 && o.err.contains(want), "{token} {name}: {o:?}");
    }
    ensure!(bed.skiff("n1", &["token", "delete", "--data-dir", &data, token])?.code == 0, "token not deleted");
    ensure!(bed.kubectl(&["get", "node", "n9"])?.code != 0, "a node joined that must not");
    Ok(())
}

/// Every node knows the ranges of virtual addresses that are added, not the server's alone.
fn ranges(bed: &Bed) -> Result<()> {
    let pods = web(bed)?;
    bed.apply(ADDED)?;
    bed.ok(&["wait", "--for=condition=Ready", "servicecidr/added", "--timeout=30s"])?;
    bed.apply(THERE)?;
    for [name, node, _] in &pods {
        bed.eventually("a pod reaches the Service by its address", || {
            Ok(bed.kubectl(&["exec", name, "--", "wget", "-q", "-O", "-", "http://10.98.78.5/cgi-bin/who"])?.code == 0)
        })?;
        bed.eventually("the address has its name", || {
            let found = bed.kubectl(&["exec", name, "--", "nslookup", "10.98.78.5"])?;
            Ok(found.out.contains("added.default.svc.cluster.local"))
        })?;
        // An address that nobody has refuses at once (7) instead of leading out.
        bed.eventually("a free address refuses", || {
            let asked = bed.on(node, &["curl", "-s", "--connect-timeout", "2", "http://10.98.78.6/"])?;
            Ok(asked.code == 7)
        })?;
    }
    bed.ok(&["delete", "service", "added"])?;
    bed.ok(&["delete", "servicecidr", "added", "--timeout=60s"]).map(drop)
}

/// No component asks for what it has no right to: nothing was refused since the start, nor tells a node of such.
fn rights(bed: &Bed) -> Result<()> {
    for node in &bed.nodes {
        let log = bed.log(node)?;
        ensure!(log.contains("routes to other nodes' pods"), "the log of {node} does not tell of its start");
        let refused = log.lines().find(|line| line.contains("is forbidden: User"));
        ensure!(refused.is_none(), "{node} was refused: {}", refused.unwrap_or_default());
    }
    let metrics = bed.ok(&["get", "--raw", "/metrics"])?;
    ensure!(metrics.contains("apiserver_request_total{code=\"200\""), "no requests are counted");
    let refused: Vec<&str> =
        metrics.lines().filter(|l| l.starts_with("apiserver_request_total{code=\"403\"")).collect();
    ensure!(refused.is_empty(), "components were refused: {refused:#?}");
    Ok(())
}

/// An agent that is killed and started again adopts what runs, and needs no token. Its node is ready all the while.
fn agent_restart(bed: &Bed) -> Result<()> {
    web(bed)?;
    let before = bed.containers("n2")?;
    let told = bed.readiness("n2")?;
    bed.node("kill", "n2")?;
    // Not this token: the node is itself by now.
    bed.node("start", "n2")?;
    let lease = || -> Result<String> {
        bed.ok(&["-n", "kube-node-lease", "get", "lease", "n2", "-o", "jsonpath={.spec.renewTime}"])
    };
    let renewed = lease()?;
    bed.eventually("the node renews its lease", || Ok(lease()? != renewed))?;
    ensure!(bed.containers("n2")? == before, "containers were restarted");
    let pod = pods(bed)?.into_iter().find(|p| p[1] == "n2").context("no pod on n2")?;
    bed.eventually("exec works again", || Ok(bed.kubectl(&["exec", &pod[0], "--", "true"])?.code == 0))?;
    let now = bed.readiness("n2")?;
    let same = now["status"] == "True" && now["lastTransitionTime"] == told["lastTransitionTime"];
    ensure!(same, "n2 was not ready meanwhile: {told}, then {now}");
    Ok(())
}

/// `kubectl drain` and `uncordon`.
fn drain(bed: &Bed) -> Result<()> {
    web(bed)?;
    bed.ok(&["drain", "n3", "--ignore-daemonsets", "--timeout=60s"])?;
    let spread = |bed: &Bed| -> Result<Vec<String>> { Ok(pods(bed)?.into_iter().map(|p| p[1].clone()).collect()) };
    bed.eventually("the pods are elsewhere", || {
        let on = spread(bed)?;
        Ok(on.len() == bed.nodes.len() && !on.iter().any(|n| n == "n3"))
    })?;
    bed.ok(&["uncordon", "n3"])?;
    bed.ok(&["delete", "deployment", "web", "--wait=true"])?;
    bed.eventually("no pod is left", || Ok(pods(bed)?.is_empty()))?;
    // A node that takes pods again gets some.
    web(bed).map(drop)
}

/// A node without its cable: not known to live, its pods made anew elsewhere; when it comes back, it ends what is not its
/// own any more.
fn cut(bed: &Bed) -> Result<()> {
    let lost = web(bed)?.into_iter().find(|p| p[1] == "n3").context("no pod on n3")?;
    bed.node("cut", "n3")?;
    let done = (|| {
        bed.eventually("the node is not known to live", || Ok(bed.ready("n3")? == "Unknown"))?;
        bed.eventually("the node is tainted", || {
            let node = bed.get(&["node", "n3"])?;
            let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
            let has = |effect: &str| {
                taints.iter().any(|t| t["key"] == "node.kubernetes.io/unreachable" && t["effect"] == effect)
            };
            Ok(has("NoSchedule") && has("NoExecute"))
        })?;
        bed.eventually("its pod runs elsewhere", || {
            let alive = pods(bed)?;
            Ok(alive.len() == bed.nodes.len() && alive.iter().all(|p| p[1] != "n3"))
        })?;
        // The Service answers all along: what cannot be reached is out of it.
        for _ in 0..10 {
            let o = bed.on("n1", &["curl", "-s", "--max-time", "5", "http://10.89.0.2:30080/cgi-bin/who"])?;
            ensure!(o.out.contains("web-") && !o.out.contains(&lost[0]), "{o:?}");
        }
        Ok(())
    })();
    bed.node("heal", "n3")?;
    done?;
    bed.eventually("the node is ready again", || Ok(bed.ready("n3")? == "True"))?;
    bed.eventually("its old pod is gone", || {
        Ok(bed.kubectl(&["get", "pod", &lost[0]])?.code != 0 && bed.containers("n3")?.is_empty())
    })?;
    bed.eventually("the taints are gone", || Ok(bed.get(&["node", "n3"])?["spec"].get("taints").is_none()))
}

/// A Node object that somebody deletes comes back with its range: while its agent lives, and when the agent starts again.
fn node_deleted(bed: &Bed) -> Result<()> {
    for agent_lives in [true, false] {
        let before = bed.get(&["node", "n2"])?;
        if !agent_lives {
            bed.node("kill", "n2")?;
        }
        bed.ok(&["delete", "node", "n2"])?;
        if !agent_lives {
            bed.node("start", "n2")?;
        }
        let mut after = Value::Null;
        bed.eventually("the node has registered again", || {
            let o = bed.kubectl(&["get", "node", "n2", "-o", "json"])?;
            after = serde_json::from_str(&o.out).unwrap_or_default();
            Ok(after.is_object()
                && after["metadata"]["uid"] != before["metadata"]["uid"]
                && after["spec"].get("podCIDR").is_some())
        })?;
        ensure!(after["spec"]["podCIDR"] == before["spec"]["podCIDR"], "another range: {}", after["spec"]);
        bed.eventually("the node is ready again", || Ok(bed.ready("n2")? == "True"))?;
    }
    network_again(bed)
}

/// Every node reaches pods of every other once more.
fn network_again(bed: &Bed) -> Result<()> {
    bed.ok(&["delete", "deployment", "web", "--ignore-not-found", "--wait=true"])?;
    bed.eventually("no pod is left", || Ok(pods(bed)?.is_empty()))?;
    network(bed)
}
