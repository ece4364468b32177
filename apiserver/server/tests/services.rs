//! Addresses of Services: whose they are, which there are, and that nothing of what does not happen stays taken (KEP-1880). What is
//! expected is what kube-apiserver v1.37.0 does.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use k8s_openapi::api::networking::v1::IPAddress;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::{Value, json};

mod support;

use support::{call, put, start};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";

fn service(name: &str, ip: Option<&str>) -> Value {
    let mut s = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    if let Some(ip) = ip {
        s["spec"]["clusterIP"] = ip.into();
    }
    s
}

async fn make(client: &Client, name: &str, ip: Option<&str>) -> (u16, Value) {
    let (status, said, _) = call(client, "POST", SERVICES, &service(name, ip)).await;
    (status, said)
}

/// The object of an address: its status, and the Service it names.
async fn of(client: &Client, ip: &str) -> (u16, String) {
    let (status, said, _) = call(client, "GET", &format!("{ADDRESSES}/{ip}"), &Value::Null).await;
    let parent = &said["spec"]["parentRef"];
    (status, format!("{}/{}", parent["namespace"].as_str().unwrap_or("-"), parent["name"].as_str().unwrap_or("-")))
}

#[tokio::test]
async fn an_address_has_an_object() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    assert_eq!(of(&client, "10.96.0.1").await, (200, "default/kubernetes".into()));
    assert_eq!(of(&client, "10.96.0.10").await, (200, "kube-system/kube-dns".into()));
    let (status, made) = make(&client, "a", None).await;
    assert_eq!(status, 201, "{made}");
    let ip = made["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let (_, object, _) = call(&client, "GET", &format!("{ADDRESSES}/{ip}"), &Value::Null).await;
    assert_eq!(object["spec"], json!({"parentRef": {"resource": "services", "namespace": "default", "name": "a"}}));
    let labels = json!({"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"});
    assert_eq!(object["metadata"]["labels"], labels);
    // Another may not have it, and a refusal takes nothing.
    let (status, said) = make(&client, "b", Some(&ip)).await;
    let why = format!("failed to allocate IP {ip}: provided IP is already allocated");
    assert_eq!(
        (status, said["details"]["causes"][0]["message"].as_str()),
        (422, Some(&*format!("Invalid value: [\"{ip}\"]: {why}")))
    );
    assert_eq!(make(&client, "a", Some("10.96.7.7")).await.0, 409);
    assert_eq!(of(&client, "10.96.7.7").await.0, 404);
    // With the Service goes its address, and when it needs none any more.
    assert_eq!(call(&client, "DELETE", &format!("{SERVICES}/a"), &Value::Null).await.0, 200);
    assert_eq!(of(&client, &ip).await.0, 404);
    assert_eq!(make(&client, "c", Some("10.96.7.7")).await.0, 201);
    let outside =
        json!({"spec": {"type": "ExternalName", "externalName": "a.example", "clusterIP": null, "clusterIPs": null}});
    assert_eq!(call(&client, "PATCH", &format!("{SERVICES}/c"), &outside).await.0, 200);
    assert_eq!(of(&client, "10.96.7.7").await.0, 404);
    let inside = json!({"spec": {"type": "ClusterIP", "externalName": null}});
    let (status, back, _) = call(&client, "PATCH", &format!("{SERVICES}/c"), &inside).await;
    assert_eq!(status, 200, "{back}");
    assert_eq!(of(&client, back["spec"]["clusterIP"].as_str().unwrap()).await, (200, "default/c".into()));
}

#[tokio::test]
async fn a_dry_run_takes_none() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let count = async || call(&client, "GET", ADDRESSES, &Value::Null).await.1["items"].as_array().unwrap().len();
    let before = count().await;
    let dry = format!("{SERVICES}?dryRun=All");
    let (status, said, _) = call(&client, "POST", &dry, &service("a", None)).await;
    assert_eq!((status, said["spec"]["clusterIP"].as_str()), (201, Some("10.96.0.0")), "{said}");
    assert_eq!(call(&client, "POST", &dry, &service("a", Some("10.96.3.3"))).await.0, 201);
    let (status, said, _) = call(&client, "POST", &dry, &service("a", Some("1.2.3.4"))).await;
    assert_eq!(status, 422);
    let why = "the provided IP (1.2.3.4) is not in the valid range. The range of valid IPs is 10.96.0.0/16";
    assert!(said["message"].as_str().unwrap().ends_with(why), "{said}");
    assert_eq!(count().await, before);
}

#[tokio::test]
async fn ranges_that_are_added_give_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let (status, said) = make(&client, "a", Some("10.200.0.9")).await;
    assert_eq!(status, 422);
    let why = "failed to allocate IP 10.200.0.9: the provided network does not match the current range";
    assert!(said["message"].as_str().unwrap().ends_with(why), "{said}");
    put(&client, RANGES, &json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.200.0.0/28"]}})).await;
    assert_eq!(make(&client, "a", Some("10.200.0.9")).await.0, 201);
    for edge in ["10.200.0.0", "10.200.0.15"] {
        assert_eq!(make(&client, "edge", Some(edge)).await.0, 422, "{edge}");
    }
    // One that is not ready gives none, nor does one that goes.
    let ready = |status: &str| {
        json!({"status": {"conditions": [{"type": "Ready", "status": status, "reason": "Test",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    };
    assert_eq!(call(&client, "PATCH", &format!("{RANGES}/more/status"), &ready("False")).await.0, 200);
    assert_eq!(make(&client, "b", Some("10.200.0.10")).await.0, 422);
    assert_eq!(call(&client, "PATCH", &format!("{RANGES}/more/status"), &ready("True")).await.0, 200);
    assert_eq!(make(&client, "b", Some("10.200.0.10")).await.0, 201);
    let held = json!({"metadata": {"finalizers": ["example.com/holds"]}});
    assert_eq!(call(&client, "PATCH", &format!("{RANGES}/more"), &held).await.0, 200);
    assert_eq!(call(&client, "DELETE", &format!("{RANGES}/more"), &Value::Null).await.0, 200);
    assert_eq!(make(&client, "c", Some("10.200.0.11")).await.0, 422);
    // A Service there still goes with its address.
    assert_eq!(call(&client, "DELETE", &format!("{SERVICES}/a"), &Value::Null).await.0, 200);
    assert_eq!(of(&client, "10.200.0.9").await.0, 404);
}

#[tokio::test]
async fn a_full_range_is_followed_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let store = skiff_storage::embedded::Embedded::open(dir.path(), Default::default()).unwrap();
    let builder = skiff_apiserver::Server::builder(std::sync::Arc::new(store));
    let server = builder.service_cidr("10.8.0.0/28".parse().unwrap()).start().await.unwrap();
    let client = server.client(skiff_apiserver::auth::User::new("admin", &["system:masters"]));
    // Fourteen, of which two are the cluster's own.
    let mut taken = std::collections::BTreeSet::new();
    for i in 0..12 {
        let (status, said) = make(&client, &format!("s{i}"), None).await;
        assert_eq!(status, 201, "{said}");
        assert!(taken.insert(said["spec"]["clusterIP"].as_str().unwrap().to_owned()), "{said}");
    }
    let (status, said) = make(&client, "more", None).await;
    assert_eq!(
        (status, said["message"].as_str()),
        (500, Some("Internal error occurred: failed to allocate IP: range is full"))
    );
    put(&client, RANGES, &json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.8.1.0/30"]}})).await;
    let (status, said) = make(&client, "more", None).await;
    assert_eq!(status, 201, "{said}");
    assert!(["10.8.1.1", "10.8.1.2"].contains(&said["spec"]["clusterIP"].as_str().unwrap()), "{said}");
}

#[tokio::test]
async fn what_people_do_to_objects_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    // Somebody else's: no Service gets it.
    let reserved = json!({"metadata": {"name": "10.96.5.5"}, "spec": {"parentRef": {"group": "example.com", "resource": "gateways",
        "namespace": "default", "name": "edge"}}});
    put(&client, ADDRESSES, &reserved).await;
    assert_eq!(make(&client, "a", Some("10.96.5.5")).await.0, 422);
    // That of a Service comes back.
    assert_eq!(make(&client, "a", Some("10.96.6.6")).await.0, 201);
    let (_, first, _) = call(&client, "GET", &format!("{ADDRESSES}/10.96.6.6"), &Value::Null).await;
    assert_eq!(call(&client, "DELETE", &format!("{ADDRESSES}/10.96.6.6"), &Value::Null).await.0, 200);
    let was = first["metadata"]["uid"].as_str().unwrap().to_owned();
    let another = |o: Option<&IPAddress>| o.is_some_and(|o| o.metadata.uid.as_deref() != Some(&was));
    let waited = await_condition(Api::<IPAddress>::all(client.clone()), "10.96.6.6", another);
    tokio::time::timeout(Duration::from_secs(20), waited).await.expect("it does not come back").unwrap();
    assert_eq!(of(&client, "10.96.6.6").await, (200, "default/a".into()));
}
