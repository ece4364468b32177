//! Limits that a request meets: quotas, and the time it may take.
#![allow(clippy::unwrap_used)]

use kube::Client;
use serde_json::{Value, json};

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
