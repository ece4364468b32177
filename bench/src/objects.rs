//! What is stored during a measurement.

use serde_json::{Value, json};

/// A ConfigMap with `bytes` of data.
#[must_use]
pub(crate) fn config_map(name: &str, bytes: usize) -> Vec<u8> {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": "bench"}},
        "data": {"value": "x".repeat(bytes)}})
    .to_string()
    .into_bytes()
}

/// A ConfigMap of which one in `groups` has the label `group=NUMBER`.
#[must_use]
pub(crate) fn labelled(name: &str, bytes: usize, group: u64) -> Vec<u8> {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app": "bench", "group": group.to_string()}},
        "data": {"value": "x".repeat(bytes)}})
    .to_string()
    .into_bytes()
}

/// A small ConfigMap that says when it was sent, in microseconds of the run's clock.
#[must_use]
pub(crate) fn stamped(name: &str, micros: u128) -> Vec<u8> {
    format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"sent":"{micros}"}}}}"#)
        .into_bytes()
}

/// A node as its agent registers it, with room for many pods.
#[must_use]
pub(crate) fn node(name: &str, zone: u64) -> Vec<u8> {
    let has = json!({"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status",
        "lastHeartbeatTime": null, "lastTransitionTime": null});
    let labels = json!({"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
        "topology.kubernetes.io/zone": format!("zone-{zone}")});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
        "status": {"capacity": has, "allocatable": has, "conditions": [ready]}})
    .to_string()
    .into_bytes()
}

/// A Deployment of small pods.
#[must_use]
pub(crate) fn deployment(name: &str, replicas: u64) -> Vec<u8> {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "containers": [{"name": "web", "image": "registry.example/web:1.2.3",
                "ports": [{"containerPort": 8080, "name": "http"}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}}}]}}}})
    .to_string()
    .into_bytes()
}

/// A pod as a Deployment would make it.
#[must_use]
pub(crate) fn pod(name: &str) -> Vec<u8> {
    let mut v: Value = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "web", "pod-template-hash": "5d59d67564"}},
        "spec": {"containers": [{"name": "web", "image": "registry.example/web:1.2.3",
            "ports": [{"containerPort": 8080, "name": "http"}],
            "env": [{"name": "MODE", "value": "production"}],
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}}}]},
    });
    v["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {"path": "/healthz", "port": "http"}});
    v.to_string().into_bytes()
}
