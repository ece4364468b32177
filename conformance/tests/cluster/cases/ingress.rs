//! Ingress and LoadBalancer: from pods and from this machine, by host and path, with the names in cluster DNS.

use anyhow::{Result, ensure};

use super::basic::http;
use crate::cluster::Cluster;

const SHOPS: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: tea, labels: {app: tea}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: skiff/busybox:1
    command: [sh, -c, 'mkdir -p /www/hot; echo tea > /www/index.html; echo hot tea > /www/hot/index.html; exec httpd -f -p 8080 -h /www']
    ports: [{name: web, containerPort: 8080}]
    readinessProbe: {tcpSocket: {port: web}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: coffee, labels: {app: coffee}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: skiff/busybox:1
    command: [sh, -c, 'mkdir -p /www/coffee; echo coffee > /www/coffee/index.html; exec httpd -f -p 8080 -h /www']
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: tea}
spec: {selector: {app: tea}, ports: [{name: http, port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: coffee}
spec: {selector: {app: coffee}, ports: [{port: 8000, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: cafe}
spec:
  rules:
  - host: cafe.example
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: tea, port: {name: http}}}}
      - {path: /coffee, pathType: Prefix, backend: {service: {name: coffee, port: {number: 8000}}}}
";

/// One host with two paths to two Services on port 80, from this machine and from a pod that asks cluster DNS.
pub(crate) fn ingress(c: &mut Cluster, ns: &str) -> Result<()> {
    let o = c.apply(&["-n", ns, "apply"], SHOPS)?;
    ensure!(o.code == 0, "{}", o.err);
    c.ok(&["-n", ns, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    let class = c.get(ns, "ingress/cafe")?["spec"]["ingressClassName"].clone();
    ensure!(class == "skiff", "the default class was not given: {class}");
    c.eventually("the Ingress has an address", |c| {
        Ok(c.get(ns, "ingress/cafe")?["status"]["loadBalancer"]["ingress"][0]["ip"].is_string())
    })?;
    let address = c.get(ns, "ingress/cafe")?["status"]["loadBalancer"]["ingress"][0]["ip"].clone();
    let address = address.as_str().unwrap_or_default().to_owned();
    let row = c.ok(&["-n", ns, "get", "ingress"])?;
    let words: Vec<&str> = row.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    ensure!(words[..5] == ["cafe", "skiff", "cafe.example", &address, "80"], "{row}");

    c.eventually("a pod gets tea by name", |c| {
        let o =
            c.kubectl(&["-n", ns, "exec", "tea", "--", "wget", "-q", "-O", "-", "http://cafe.example/hot/index.html"])?;
        Ok(o.out == "hot tea\n")
    })?;
    let coffee = ["-n", ns, "exec", "tea", "--", "wget", "-q", "-O", "-", "http://cafe.example/coffee/index.html"];
    ensure!(c.ok(&coffee)? == "coffee\n", "another path went elsewhere");
    let here = by_name(&address, "cafe.example", "/coffee/index.html")?;
    ensure!(here.ends_with("\r\n\r\ncoffee\n"), "{here}");
    let other = by_name(&address, "other.example", "/")?;
    ensure!(other.starts_with("HTTP/1.1 404"), "{other}");

    // A class that nobody made is told; a certificate that is missing, too.
    let bad = r#"{"apiVersion":"networking.k8s.io/v1","kind":"Ingress","metadata":{"name":"bad"},"spec":{"ingressClassName":"nobody",
        "defaultBackend":{"service":{"name":"tea","port":{"number":80}}}}}"#;
    c.apply(&["-n", ns, "apply"], bad)?;
    let bare = r#"{"apiVersion":"networking.k8s.io/v1","kind":"Ingress","metadata":{"name":"bare"},"spec":{"tls":[{"hosts":["s.example"],
        "secretName":"gone"}],"rules":[{"host":"s.example","http":{"paths":[{"path":"/","pathType":"Prefix","backend":{"service":
        {"name":"tea","port":{"number":80}}}}]}}]}}"#;
    c.apply(&["-n", ns, "apply"], bare)?;
    for reason in ["IngressClassNotFound", "MissingCertificate"] {
        c.eventually(reason, |c| {
            let events = c.get(ns, "events")?;
            Ok(events["items"].as_array().into_iter().flatten().any(|e| e["reason"] == reason))
        })?;
    }
    ensure!(
        by_name(&address, "s.example", "/")?.ends_with("tea\n"),
        "the rest of an Ingress without certificate works"
    );
    Ok(())
}

/// A Service of type LoadBalancer gets the node's address; a second one with its port waits and says for whom.
pub(crate) fn load_balancer(c: &mut Cluster, ns: &str) -> Result<()> {
    let pods = SHOPS.split("---\n").take(1).collect::<String>();
    let service = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: LoadBalancer, selector: {{app: tea}}, ports: [{{port: 18088, targetPort: web}}]}}\n"
        )
    };
    let o = c.apply(&["-n", ns, "apply"], &format!("{pods}{}", service("first")))?;
    ensure!(o.code == 0, "{}", o.err);
    c.ok(&["-n", ns, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    c.ok(&["-n", ns, "wait", "--for=jsonpath={.status.loadBalancer.ingress[0].ip}", "service/first", "--timeout=30s"])?;
    let address = c.get(ns, "service/first")?["status"]["loadBalancer"]["ingress"][0]["ip"].clone();
    let at = format!("{}:18088", address.as_str().unwrap_or_default());
    c.eventually("the node's address answers", |_| Ok(http(&at).is_ok_and(|b| b.ends_with("tea\n"))))?;
    let o = c.apply(&["-n", ns, "apply"], &service("second"))?;
    ensure!(o.code == 0, "{}", o.err);
    c.eventually("the second waits and says for whom", |c| {
        let events = c.get(ns, "events")?;
        let told = events["items"].as_array().into_iter().flatten().any(|e| {
            e["reason"] == "SyncLoadBalancerFailed"
                && e["message"].as_str().is_some_and(|m| m.contains(&format!("{ns}/first")))
        });
        Ok(told && c.get(ns, "service/second")?["status"]["loadBalancer"]["ingress"].is_null())
    })?;
    c.ok(&["-n", ns, "delete", "service", "first"])?;
    c.ok(&[
        "-n",
        ns,
        "wait",
        "--for=jsonpath={.status.loadBalancer.ingress[0].ip}",
        "service/second",
        "--timeout=30s",
    ])?;
    Ok(())
}

/// What the gateway at an address answers for a host.
fn by_name(address: &str, host: &str, path: &str) -> Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect((address, 80))?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut all = String::new();
    stream.read_to_string(&mut all)?;
    Ok(all)
}
