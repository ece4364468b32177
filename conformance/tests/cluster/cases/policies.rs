//! NetworkPolicies between real pods: who reaches whom, and that probes and name service keep their place.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::start;
use crate::cluster::Cluster;

/// A server with a named port and a probe that fails when the node cannot reach it.
fn server(name: &str) -> String {
    let command = "mkdir /w; echo hello > /w/index.html; trap exit TERM; httpd -f -p 8080 -h /w & wait";
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
            "name": "c", "image": "skiff/busybox:1", "command": ["sh", "-c", command],
            "ports": [{"name": "web", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 1, "failureThreshold": 1}}]}})
    .to_string()
}

/// Whether a pod gets an answer. A forbidden packet is dropped, so a refusal takes the whole second.
fn reaches(c: &Cluster, ns: &str, pod: &str, target: &str) -> Result<bool> {
    let ask = format!("timeout 1 wget -q -O - http://{target}/");
    Ok(c.kubectl(&["-n", ns, "exec", pod, "--", "sh", "-c", &ask])?.out.trim() == "hello")
}

/// Waits until each pod reaches the target or not, as told.
fn settles(c: &Cluster, what: &str, target: &str, expected: &[(&str, &str, bool)]) -> Result<()> {
    c.eventually(what, |c| {
        for (ns, pod, reached) in expected {
            if reaches(c, ns, pod, target)? != *reached {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

fn policy(c: &Cluster, ns: &str, name: &str, spec: &Value) -> Result<()> {
    let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec});
    let o = c.apply(&["-n", ns, "apply"], &object.to_string())?;
    ensure!(o.code == 0, "{}", o.err);
    Ok(())
}

pub(crate) fn policies(c: &mut Cluster, ns: &str) -> Result<()> {
    let other = format!("{ns}-other");
    c.namespace(&other)?;
    let result = within(c, ns, &other);
    c.forget(&other);
    result
}

fn within(c: &Cluster, ns: &str, other: &str) -> Result<()> {
    let idle = "trap exit TERM; while :; do sleep 1; done";
    let o = c.apply(&["-n", ns, "apply"], &server("web"))?;
    ensure!(o.code == 0, "{}", o.err);
    start(c, ns, "friend", idle)?;
    start(c, ns, "stranger", idle)?;
    start(c, other, "guest", idle)?;
    c.ok(&["-n", ns, "wait", "--for=condition=Ready", "pod/web", "--timeout=60s"])?;
    c.ok(&["-n", ns, "expose", "pod", "web", "--port=80", "--target-port=8080"])?;
    let address = c.get(ns, "pod/web")?["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    let direct = format!("{address}:8080");
    let service = format!("web.{ns}");
    let all = |friend, stranger, guest| [(ns, "friend", friend), (ns, "stranger", stranger), (other, "guest", guest)];
    settles(c, "without policies all pods reach it", &service, &all(true, true, true))?;

    let web = json!({"matchLabels": {"app": "web"}});
    let allow = |rule: Value| json!({"podSelector": web, "ingress": [rule]});
    policy(c, ns, "deny", &json!({"podSelector": {}, "policyTypes": ["Ingress"]}))?;
    settles(c, "a default denies all pods", &service, &all(false, false, false))?;
    settles(c, "also without the Service", &direct, &all(false, false, false))?;
    let label = json!({"podSelector": {"matchLabels": {"app": "friend"}}});
    policy(c, ns, "allow", &allow(json!({"from": [label]})))?;
    settles(c, "a label lets one pod in", &service, &all(true, false, false))?;
    let space = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": other}}});
    policy(c, ns, "allow", &allow(json!({"from": [space], "ports": [{"port": "web"}]})))?;
    settles(c, "a namespace is let in to a named port", &service, &all(false, false, true))?;
    policy(c, ns, "allow", &allow(json!({"ports": [{"port": "other"}, {"port": 8000, "endPort": 8079}]})))?;
    settles(c, "other ports are shut", &service, &all(false, false, false))?;
    let friend = c.get(ns, "pod/friend")?["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    let block = json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": [format!("{friend}/32")]}});
    policy(c, ns, "allow", &allow(json!({"from": [block]})))?;
    settles(c, "all addresses but one", &service, &all(false, true, true))?;
    // A label that comes lets a running pod in, and one that goes shuts it out.
    policy(c, ns, "allow", &allow(json!({"from": [{"podSelector": {"matchLabels": {"role": "guest"}}}]})))?;
    settles(c, "nobody has the label", &service, &all(false, false, false))?;
    c.ok(&["-n", ns, "label", "pod", "stranger", "role=guest"])?;
    settles(c, "a new label counts", &service, &all(false, true, false))?;
    c.ok(&["-n", ns, "label", "pod", "stranger", "role-"])?;
    settles(c, "a lost label counts", &service, &all(false, false, false))?;
    c.ok(&["-n", ns, "delete", "networkpolicy", "allow", "deny"])?;
    settles(c, "without policies all pods reach it again", &service, &all(true, true, true))?;

    // What goes out: first nothing, not even names; then names and one pod.
    policy(c, ns, "quiet", &json!({"podSelector": {"matchLabels": {"app": "friend"}}, "policyTypes": ["Egress"]}))?;
    settles(c, "egress is denied", &direct, &all(false, true, true))?;
    settles(c, "and names are not answered", &service, &all(false, true, true))?;
    let dns = json!({"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}], "ports": [{"protocol": "UDP", "port": 53}]});
    let spec = json!({"podSelector": {"matchLabels": {"app": "friend"}}, "policyTypes": ["Egress"],
        "egress": [dns, {"to": [{"podSelector": web}]}]});
    policy(c, ns, "quiet", &spec)?;
    settles(c, "names and one pod may be asked", &service, &all(true, true, true))?;
    c.ok(&["-n", ns, "delete", "networkpolicy", "quiet"])?;

    let status = c.get(ns, "pod/web")?["status"].clone();
    ensure!(status["containerStatuses"][0]["restartCount"] == 0, "{status}");
    let events = c.get(ns, "events")?;
    let unhealthy =
        |e: &&Value| e["reason"] == "Unhealthy" && e["message"].as_str().is_some_and(|m| m.contains("deadline"));
    let failed = events["items"].as_array().into_iter().flatten().find(unhealthy);
    ensure!(failed.is_none(), "a probe did not reach its pod: {failed:?}");
    Ok(())
}
