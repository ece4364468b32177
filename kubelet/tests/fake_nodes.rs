//! Nodes whose containers are only pretended, against an API server in memory: no engine, no root.

#![allow(clippy::unwrap_used)]

// Not all of it is of use here.
#[allow(dead_code)]
mod fake;

use std::time::{Duration, Instant};

use fake::Fake;
use serde_json::{Value, json};
use skiff_kubelet::Config;
use skiff_kubelet::runtime::fake::Machine;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);

async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_keep_their_own_pods() {
    let (api, dir, stop) = (Fake::new(), tempfile::tempdir().unwrap(), CancellationToken::new());
    let mut config = Config::new("pretended", [127, 0, 0, 1].into(), dir.path().join("untouched"));
    config.listen = ([127, 0, 0, 1], 0).into();
    config.pod_cidr = Some("10.251.0.0/24".parse().unwrap());
    config.fake = Some(Machine { cpus: 4, memory: 8 << 30 });
    let pki = fake::front::pki();
    (config.cert_pem, config.key_pem) = pki.server.clone();
    config.client_ca_pem = pki.ca.clone();
    let agents = tokio::spawn(skiff_kubelet::run_fakes(api.client(), config.clone(), 3, stop.clone()));
    let node = |n: u32| api.get("nodes", "", &format!("pretended-{n}")).unwrap_or(Value::Null);
    let ready = |n: u32| {
        let node = node(n);
        let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    until("three nodes are ready", || (0..3).all(ready)).await;
    assert_eq!(node(2)["status"]["allocatable"]["cpu"], "4");
    let ports: std::collections::BTreeSet<String> =
        (0..3).map(|n| node(n)["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].to_string()).collect();
    assert_eq!(ports.len(), 3, "each has an endpoint of its own: {ports:?}");
    for (name, node, cpu) in [("fits", "pretended-1", "3"), ("too-much", "pretended-2", "5")] {
        api.put(
            "pods",
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 30, "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "c", "image": "nobody/has:1", "resources": {"requests": {"cpu": cpu}},
                    "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "x"}],
                    "readinessProbe": {"httpGet": {"port": 80}}}]}}),
        );
    }
    let pod = |name: &str| api.get("pods", "default", name).unwrap_or(Value::Null);
    until("the pod is ready though nobody answers its probe", || {
        pod("fits")["status"]["containerStatuses"][0]["ready"] == true
    })
    .await;
    let address = pod("fits")["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    assert!(address.starts_with("10.251.0."), "{address}");
    until("the other does not fit", || pod("too-much")["status"]["reason"] == "OutOfcpu").await;
    let mut going = pod("fits");
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    going["metadata"]["deletionGracePeriodSeconds"] = json!(30);
    api.put("pods", going);
    let asked = Instant::now();
    until("the pod is gone", || api.get("pods", "default", "fits").is_none()).await;
    assert!(asked.elapsed() < Duration::from_secs(20), "a pretended container ends when it is asked to");
    assert!(!config.data_dir.exists(), "nothing of the machine is touched");
    stop.cancel();
    tokio::time::timeout(DEADLINE, agents).await.unwrap().unwrap().unwrap();
}
