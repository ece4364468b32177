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
