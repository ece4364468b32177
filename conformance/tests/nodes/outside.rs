//! What comes to several nodes from outside: addresses of load balancers, gateways; and what policies keep out.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::bed::Bed;
use crate::cases::{pods, text, web};

/// Asks from this machine, which is on the segment of the nodes but none of them.
fn ask(url: &str, more: &[&str]) -> Result<String> {
    let o = std::process::Command::new("curl").args(["-s", "--max-time", "3"]).args(more).arg(url).output();
    Ok(String::from_utf8_lossy(&o.context("curl")?.stdout).into_owned())
}

fn service(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: LoadBalancer, selector: {{app: web}}, \
         ports: [{{port: 80, targetPort: 8080}}]{more}}}\n"
    )
}

/// The node that answers for a Service's address.
fn announcer(bed: &Bed, name: &str) -> Result<String> {
    let path = "jsonpath={.status.conditions[?(@.type==\"skiff.dev/Announced\")].message}";
    bed.ok(&["get", "service", name, "-o", path])
}

/// Addresses of load balancers on a node's cable.
fn held(bed: &Bed, node: &str) -> Result<Vec<String>> {
    let o = bed.on(node, &["ip", "-4", "-o", "addr", "show", "dev", "eth0"])?;
    let all = o.out.split_whitespace().filter_map(|w| w.strip_suffix("/32"));
    Ok(all.filter(|a| a.starts_with("10.89.0.20")).map(str::to_owned).collect())
}

/// An address of the range leads to the pods through one node; when that is lost another takes it, and one that comes back
/// does not keep it.
pub(crate) fn balancer(bed: &Bed) -> Result<()> {
    web(bed)?;
    // The server's node would take the API along when its cable is pulled.
    let label = "node.kubernetes.io/exclude-from-external-load-balancers";
    bed.ok(&["label", "node", "n1", &format!("{label}=")])?;
    let result = balanced(bed);
    bed.ok(&["label", "node", "n1", &format!("{label}-")])?;
    bed.ok(&["delete", "service", "outer", "asks", "waits", "--ignore-not-found"])?;
    result?;
    // The lost node's pod is elsewhere now; the next case wants one on each.
    bed.ok(&["delete", "deployment", "web", "--wait=true"])?;
    bed.eventually("no pod is left and no node tainted", || {
        let nodes = bed.get(&["nodes"])?;
        let tainted = nodes["items"].as_array().into_iter().flatten().any(|n| n["spec"].get("taints").is_some());
        Ok(!tainted && pods(bed)?.is_empty())
    })?;
    bed.eventually("no node has an address any more", || {
        for node in &bed.nodes {
            if !held(bed, node)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

fn balanced(bed: &Bed) -> Result<()> {
    bed.apply(&format!("{}---\n{}", service("asks", ", loadBalancerIP: 10.89.0.201"), service("outer", "")))?;
    bed.eventually("both have addresses", || {
        let ip = |name: &str| -> Result<String> {
            bed.ok(&["get", "service", name, "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}"])
        };
        Ok(ip("asks")? == "10.89.0.201" && ip("outer")? == "10.89.0.200")
    })?;
    let works = || -> Result<bool> {
        let answers = ask("http://10.89.0.200/cgi-bin/who", &[])?;
        Ok(answers.contains("web-") && ask("http://10.89.0.201/cgi-bin/who", &[])?.contains("web-"))
    };
    bed.eventually("both answer", works)?;
    let (first, second) = (announcer(bed, "outer")?, announcer(bed, "asks")?);
    ensure!(first != second && first != "n1" && second != "n1", "{first} and {second} answer");
    ensure!(held(bed, &first)? == ["10.89.0.200"] && held(bed, &second)? == ["10.89.0.201"], "held elsewhere");
    // The node's own programs are not meant: its agent has the port on every address.
    let agent = std::net::TcpStream::connect("10.89.0.200:10250");
    ensure!(agent.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused), "the agent is at the address too");
    // From a pod and from the nodes as well.
    let pod = pods(bed)?.first().context("a pod")?[0].clone();
    bed.ok(&["exec", &pod, "--", "wget", "-q", "-O", "-", "http://10.89.0.200/cgi-bin/who"])?;
    for node in &bed.nodes {
        let o = bed.on(node, &["curl", "-s", "--max-time", "5", "http://10.89.0.200/cgi-bin/who"])?;
        ensure!(o.out.contains("web-"), "from {node}: {o:?}");
    }
    // A third finds none, and says so; nothing else changes.
    bed.apply(&service("waits", ""))?;
    bed.eventually("an event says that there is none", || {
        let events = bed.get(&["events", "--field-selector", "involvedObject.name=waits"])?;
        let none = |e: &Value| text(e, "/message").contains("no address is free in 10.89.0.200-10.89.0.201");
        Ok(events["items"].as_array().is_some_and(|l| l.iter().any(none)))
    })?;
    bed.node("cut", &first)?;
    let done = (|| {
        bed.eventually("another node answers", || Ok(announcer(bed, "outer")? == second))?;
        bed.eventually("the address answers again", works)
    })();
    bed.node("heal", &first)?;
    done?;
    bed.eventually("the node is ready again", || Ok(bed.ready(&first)? == "True"))?;
    bed.eventually("it has given the address up", || Ok(held(bed, &first)?.is_empty()))?;
    // Well before the segment is told anew each minute: whoever came back has not taken the neighbours along.
    bed.within(Duration::from_secs(10), "the addresses answer after the node came back", works)?;
    // Its own again when it is freed.
    bed.ok(&["delete", "service", "asks"])?;
    bed.eventually("who waited has the address", || Ok(!announcer(bed, "waits")?.is_empty()))?;
    bed.eventually("and it answers", works)
}

const SITE: &str = r#"
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: site}
spec:
  tls: [{hosts: [site.example], secretName: site}]
  rules:
  - host: site.example
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}
"#;

/// Every node is a gateway: an Ingress has all their addresses, each serves it, with its certificate too, also when that
/// comes later or changes; and a node may read no other Secret.
pub(crate) fn gateways(bed: &Bed) -> Result<()> {
    web(bed)?;
    bed.apply(SITE)?;
    let addresses: Vec<String> = (1..=bed.nodes.len()).map(|i| format!("10.89.0.{i}")).collect();
    bed.eventually("the Ingress has the addresses of all nodes", || {
        let shown = bed.ok(&["get", "ingress", "site", "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}"])?;
        Ok(shown == addresses.join(" "))
    })?;
    for address in &addresses {
        bed.eventually(&format!("{address} serves it"), || {
            let url = format!("http://{address}/cgi-bin/who");
            Ok(ask(&url, &["-H", "Host: site.example"])?.contains("web-"))
        })?;
    }
    let dir = tempfile::tempdir()?;
    for round in ["first", "second"] {
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(vec!["site.example".to_owned()])?;
        params.distinguished_name.push(rcgen::DnType::CommonName, round);
        let cert = params.self_signed(&key)?.pem();
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        std::fs::write(path("crt"), &cert)?;
        std::fs::write(path("key"), key.serialize_pem())?;
        let (crt, key) = (format!("--cert={}", path("crt")), format!("--key={}", path("key")));
        let made = bed.ok(&["create", "secret", "tls", "site", &crt, &key, "--dry-run=client", "-o", "json"])?;
        bed.apply(&made)?;
        for address in &addresses {
            bed.eventually(&format!("{address} has the {round} certificate"), || {
                let to = format!("site.example:443:{address}");
                let o = ask("https://site.example/cgi-bin/who", &["--resolve", &to, "--cacert", &path("crt")])?;
                Ok(o.contains("web-"))
            })?;
        }
    }
    bed.ok(&["create", "secret", "generic", "other", "--from-literal=a=b"])?;
    let secret =
        |name: &str| bed.kubectl(&["get", "secret", name, "--as", "system:node:n2", "--as-group", "system:nodes"]);
    ensure!(secret("site")?.code == 0, "a gateway may not read its certificate");
    let o = secret("other")?;
    if o.code == 0 {
        bail!("a node reads a Secret that is none of its business");
    }
    // Names of Ingresses are answered on every node.
    for [pod, node, _] in pods(bed)? {
        let o = bed.kubectl(&["exec", &pod, "--", "wget", "-q", "-O", "-", "http://site.example/cgi-bin/who"])?;
        ensure!(o.out.contains("web-"), "from {pod} on {node}: {o:?}");
    }
    bed.ok(&["delete", "ingress/site", "secret/site", "secret/other"]).map(drop)
}

/// A policy holds where its pod is, whoever asks and from where.
pub(crate) fn policies(bed: &Bed) -> Result<()> {
    let all = web(bed)?;
    let policy = |from: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: web}}\nspec:\n  podSelector: \
             {{matchLabels: {{app: web}}}}\n  ingress: [{from}]\n"
        )
    };
    let reaches = |name: &str, to: &str| -> Result<bool> {
        let url = format!("timeout 1 wget -q -O - http://{to}:8080/cgi-bin/who");
        Ok(bed.kubectl(&["exec", name, "--", "sh", "-c", &url])?.out.contains("web-"))
    };
    // Each pod from each other: there is one on every node.
    let settles = |what: &str, expected: &dyn Fn(&str) -> bool| {
        bed.eventually(what, || {
            for [from, _, own] in &all {
                for [_, _, to] in all.iter().filter(|p| p[2] != *own) {
                    if reaches(from, to)? != expected(from) {
                        return Ok(false);
                    }
                }
            }
            Ok(true)
        })
    };
    let friend = all.last().context("a pod")?[0].clone();
    let done = (|| {
        settles("without a policy all reach all", &|_| true)?;
        bed.apply(&policy(""))?;
        settles("a policy shuts all out, on every node", &|_| false)?;
        bed.ok(&["label", "pod", &friend, "friend=yes"])?;
        bed.apply(&policy("{from: [{podSelector: {matchLabels: {friend: 'yes'}}}]}"))?;
        settles("a label lets one in, on every node", &|from| from == friend)
    })();
    bed.ok(&["delete", "networkpolicy", "web"])?;
    bed.ok(&["label", "pod", &friend, "friend-"])?;
    done?;
    settles("all reach all again", &|_| true)
}
