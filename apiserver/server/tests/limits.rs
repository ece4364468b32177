//! Limits that a request meets: quotas, and the time it may take.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use kube::Client;
use serde_json::{Value, json};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_storage::embedded::{Embedded, Options};

mod support;

use support::{put, start};

/// Status and body of one request.
async fn call(client: &Client, method: &str, path: &str, body: Value) -> (u16, Value) {
    let (status, said, _) = support::call(client, method, path, &body).await;
    (status, said)
}

fn pod(name: &str, deadline: &Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"activeDeadlineSeconds": deadline,
        "containers": [{"name": "c", "image": "i"}]}})
}

/// An object that comes into the scope of a quota by a change counts there from then on.
#[tokio::test]
async fn a_change_may_bring_a_pod_into_a_quota() {
    const PODS: &str = "/api/v1/namespaces/default/pods";
    const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let account = json!({"metadata": {"name": "default"}});
    put(&client, "/api/v1/namespaces/default/serviceaccounts", &account).await;
    for scope in ["Terminating", "NotTerminating"] {
        let name = scope.to_lowercase();
        let quota = json!({"metadata": {"name": name}, "spec": {"hard": {"pods": "1"}, "scopes": [scope]}});
        put(&client, QUOTAS, &quota).await;
        let status = json!({"status": {"hard": {"pods": "1"}, "used": {"pods": "0"}}});
        assert_eq!(call(&client, "PATCH", &format!("{QUOTAS}/{name}/status"), status).await.0, 200);
    }
    let used = async |name: &str| {
        let (_, quota) = call(&client, "GET", &format!("{QUOTAS}/{name}"), Value::Null).await;
        quota["status"]["used"]["pods"].clone()
    };
    let (code, made) = call(&client, "POST", PODS, pod("one", &Value::Null)).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!((used("terminating").await, used("notterminating").await), (json!("0"), json!("1")));

    let change = json!({"spec": {"activeDeadlineSeconds": 3600}});
    assert_eq!(call(&client, "PATCH", &format!("{PODS}/one"), change).await.0, 200);
    assert_eq!(used("terminating").await, "1");
    let (code, refused) = call(&client, "POST", PODS, pod("two", &json!(3600))).await;
    let why = "exceeded quota: terminating, requested: pods=1, used: pods=1, limited: pods=1";
    assert!(code == 403 && refused["message"].as_str().is_some_and(|m| m.ends_with(why)), "{refused}");
    // No change of what counts: nothing is counted twice.
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(call(&client, "PATCH", &format!("{PODS}/one"), label).await.0, 200);
    assert_eq!(used("terminating").await, "1");
}

/// Requests that their clients give up on the way lose no address: as many Services as the range has addresses can be made.
#[tokio::test]
async fn what_a_write_takes_is_not_lost_with_its_client() {
    const SERVICES: &str = "/api/v1/namespaces/default/services";
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), Options::default()).unwrap();
    let range = "10.96.0.0/27".parse().unwrap();
    let server = Server::builder(Arc::new(store)).service_cidr(range).start().await.unwrap();
    let client = server.client(User::new("admin", &["system:masters"]));
    let service = |name: &str| json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    let mut given_up = 0;
    for i in 0..200_u64 {
        let path = format!("{SERVICES}/s{i}");
        assert_eq!(call(&client, "POST", SERVICES, service(&format!("s{i}"))).await.0, 201, "{given_up} given up");
        let patience = std::time::Duration::from_micros(i * 10);
        given_up +=
            u32::from(tokio::time::timeout(patience, call(&client, "DELETE", &path, Value::Null)).await.is_err());
        // It went with the first request or with this one.
        assert!(matches!(call(&client, "DELETE", &path, Value::Null).await.0, 200 | 404));
    }
    assert!(given_up > 0);
    // Of 32 the first and the last are no addresses, one is the API server's and one the cluster DNS's. The last deletion
    // that was given up may still be on its way.
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    for i in 0..28 {
        while call(&client, "POST", SERVICES, service(&format!("t{i}"))).await.0 != 201 {
            assert!(tokio::time::Instant::now() < end, "{} addresses are lost", 28 - i);
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(call(&client, "POST", SERVICES, service("more")).await.0, 500);
}

/// What a request asks for as its time has to be a length of time; one that is too long, or none, is the server's own.
#[tokio::test]
async fn the_time_of_a_request_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    for path in ["/version", "/api/v1/nodes", "/apis/nobody.knows/v1/these"] {
        let (code, refused) = call(&client, "GET", &format!("{path}?timeout=soon"), Value::Null).await;
        let why = "invalid timeout specified in the request URL - time: invalid duration \"soon\"";
        assert_eq!((code, &refused["message"]), (400, &json!(why)), "{path}");
    }
    for time in ["3m", "0s", "-1s", "30s", ""] {
        assert_eq!(call(&client, "GET", &format!("/api/v1/nodes?timeout={time}"), Value::Null).await.0, 200, "{time}");
    }
    let (code, late) = call(&client, "GET", "/api/v1/pods?timeout=1ns", Value::Null).await;
    assert!(code == 200 || (code == 504 && late["reason"] == "Timeout"), "{late}");
}
