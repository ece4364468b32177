//! The life of a custom kind, as a client sees it: made by a definition, usable the moment it is established, changed
//! while it runs, kept over a restart, gone with its definition.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use kube::Client;
use serde_json::{Value, json};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_storage::embedded::{Embedded, Options};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const THINGS: &str = "/apis/e.com/v1/namespaces/default/things";

async fn start(dir: &std::path::Path) -> (Server, Client) {
    let store = Embedded::open(dir, Options::default()).unwrap();
    let server = Server::builder(Arc::new(store)).start().await.unwrap();
    let client = server.client(User::new("admin", &["system:masters"]));
    (server, client)
}

/// Status and body of one request.
async fn call(client: &Client, method: &str, path: &str, body: Value) -> (u16, Value) {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let bytes = if body.is_null() { vec![] } else { body.to_string().into_bytes() };
    let request = Request::builder().method(method).uri(path).header("content-type", kind).body(bytes.into()).unwrap();
    let response = client.send(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

/// The first line of a watch for which `done` holds.
async fn wait(client: &Client, path: &str, done: impl Fn(&Value) -> bool) -> Value {
    use futures::{AsyncBufReadExt, TryStreamExt};
    let request = Request::get(format!("{path}?watch=1")).body(vec![]).unwrap();
    let mut lines = client.request_stream(request).await.unwrap().lines();
    let found = async {
        while let Some(line) = lines.try_next().await.unwrap() {
            let event: Value = serde_json::from_str(&line).unwrap();
            if done(&event) {
                return event;
            }
        }
        Value::Null
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.expect("seen in time")
}

fn definition(properties: &Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.e.com"},
        "spec": {"group": "e.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}}}}]}})
}

fn thing(name: &str) -> Value {
    json!({"apiVersion": "e.com/v1", "kind": "Thing", "metadata": {"name": name}, "spec": {"a": "x"}})
}

fn established(event: &Value) -> bool {
    let conditions = event["object"]["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == "Established" && c["status"] == "True")
}

#[tokio::test]
async fn life() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = start(dir.path()).await;
    assert_eq!(call(&client, "GET", THINGS, Value::Null).await.0, 404);
    let first = definition(&json!({"a": {"type": "string"}}));
    assert_eq!(call(&client, "POST", DEFINITIONS, first).await.0, 201);
    wait(&client, DEFINITIONS, established).await;
    // No pause: who sees the condition can use the kind.
    let (code, made) = call(&client, "POST", THINGS, thing("one")).await;
    assert_eq!(code, 201, "{made}");

    wait(&client, SERVICES, |e| e["object"]["metadata"]["name"] == "v1.e.com").await;

    // A field with a default appears in what was stored before.
    let change = definition(&json!({"a": {"type": "string"}, "b": {"type": "string", "default": "d"}}));
    let path = format!("{DEFINITIONS}/things.e.com");
    assert_eq!(call(&client, "PATCH", &path, json!({"spec": change["spec"]})).await.0, 200);
    wait(&client, THINGS, |e| e["object"]["spec"]["b"] == "d").await;
    server.shutdown();
    drop((server, client));

    // A restart serves what is established before it answers anybody.
    let (server, client) = loop {
        if let Ok(store) = Embedded::open(dir.path(), Options::default()) {
            let server = Server::builder(Arc::new(store)).start().await.unwrap();
            let client = server.client(User::new("admin", &["system:masters"]));
            break (server, client);
        }
        tokio::task::yield_now().await;
    };
    let (code, found) = call(&client, "GET", &format!("{THINGS}/one"), Value::Null).await;
    assert_eq!((code, &found["spec"]["b"]), (200, &json!("d")));

    // Deleting the definition deletes the objects, then itself, then the paths.
    assert_eq!(call(&client, "DELETE", &path, Value::Null).await.0, 200);
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while call(&client, "GET", THINGS, Value::Null).await.0 != 404 {
        assert!(tokio::time::Instant::now() < end, "withdrawn in time");
        tokio::task::yield_now().await;
    }
    assert_eq!(call(&client, "GET", &path, Value::Null).await.0, 404);
    let (_, groups) = call(&client, "GET", "/apis", Value::Null).await;
    assert!(!groups.to_string().contains("e.com"), "discovery follows");
    while call(&client, "GET", &format!("{SERVICES}/v1.e.com"), Value::Null).await.0 != 404 {
        assert!(tokio::time::Instant::now() < end, "its APIService goes in time");
        tokio::task::yield_now().await;
    }
    server.shutdown();
}

#[tokio::test]
async fn what_is_not_served_is_cleaned_up_too() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = start(dir.path()).await;
    let mut crd = definition(&json!({"a": {"type": "string"}}));
    assert_eq!(call(&client, "POST", DEFINITIONS, crd.clone()).await.0, 201);
    wait(&client, DEFINITIONS, established).await;
    assert_eq!(call(&client, "POST", THINGS, thing("one")).await.0, 201);
    crd["spec"]["versions"][0]["served"] = false.into();
    let path = format!("{DEFINITIONS}/things.e.com");
    assert_eq!(call(&client, "PATCH", &path, json!({"spec": crd["spec"]})).await.0, 200);
    assert_eq!(call(&client, "DELETE", &path, Value::Null).await.0, 200);
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while call(&client, "GET", &path, Value::Null).await.0 != 404 {
        assert!(tokio::time::Instant::now() < end, "deleted in time");
        tokio::task::yield_now().await;
    }
    // Made again, the kind begins empty.
    assert_eq!(call(&client, "POST", DEFINITIONS, definition(&json!({"a": {"type": "string"}}))).await.0, 201);
    wait(&client, DEFINITIONS, established).await;
    let (_, list) = call(&client, "GET", THINGS, Value::Null).await;
    assert_eq!(list["items"], json!([]));
    server.shutdown();
}

/// The storage version moves to a new one, and a version that objects may be stored in stays.
#[tokio::test]
async fn the_storage_version_moves() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    assert_eq!(call(&client, "POST", DEFINITIONS, definition(&json!({"a": {"type": "string"}}))).await.0, 201);
    wait(&client, DEFINITIONS, established).await;
    assert_eq!(call(&client, "POST", THINGS, thing("one")).await.0, 201);
    let path = format!("{DEFINITIONS}/things.e.com");
    let (_, before) = call(&client, "GET", &path, Value::Null).await;
    assert_eq!(before["status"]["storedVersions"], json!(["v1"]));

    let mut versions = before["spec"]["versions"].as_array().unwrap().clone();
    let mut second = versions[0].clone();
    second["name"] = "v2".into();
    versions[0]["storage"] = false.into();
    versions.push(second);
    let (code, moved) = call(&client, "PATCH", &path, json!({"spec": {"versions": versions}})).await;
    assert_eq!((code, &moved["status"]["storedVersions"]), (200, &json!(["v1", "v2"])), "{moved}");
    let new = THINGS.replace("/v1/", "/v2/");
    wait(&client, SERVICES, |e| e["object"]["metadata"]["name"] == "v2.e.com").await;
    let (code, seen) = call(&client, "GET", &format!("{new}/one"), Value::Null).await;
    assert_eq!((code, &seen["apiVersion"]), (200, &json!("e.com/v2")));
    let (code, changed) = call(&client, "PATCH", &format!("{new}/one"), json!({"spec": {"a": "y"}})).await;
    assert_eq!(
        (code, &changed["apiVersion"], &changed["spec"]["a"]),
        (200, &json!("e.com/v2"), &json!("y")),
        "{changed}"
    );

    let only = json!({"spec": {"versions": [versions[1]]}});
    let (code, refused) = call(&client, "PATCH", &path, only.clone()).await;
    let why = refused["message"].as_str().unwrap_or_default();
    assert!(
        code == 422 && why.contains("status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions"),
        "{why}"
    );
    // What the migration of stored versions writes at its end.
    let status = format!("{path}/status");
    let (code, migrated) = call(&client, "PATCH", &status, json!({"status": {"storedVersions": ["v1"]}})).await;
    assert!(
        code == 422 && migrated["message"].as_str().unwrap_or_default().contains("must have the storage version v2")
    );
    assert_eq!(call(&client, "PATCH", &status, json!({"status": {"storedVersions": ["v2"]}})).await.0, 200);
    let (code, last) = call(&client, "PATCH", &path, only).await;
    assert_eq!((code, last["spec"]["versions"].as_array().map(Vec::len)), (200, Some(1)), "{last}");
}

/// Objects are readable and writable in every version while the storage version changes, at once.
#[tokio::test]
async fn requests_meet_a_changing_storage_version() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    // Nothing but the version differs between what was stored before and what is read.
    let mut both = definition(&json!({}));
    both["spec"]["versions"][0]["schema"] =
        json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let mut second = both["spec"]["versions"][0].clone();
    second["name"] = "v2".into();
    second["storage"] = false.into();
    both["spec"]["versions"].as_array_mut().unwrap().push(second);
    assert_eq!(call(&client, "POST", DEFINITIONS, both.clone()).await.0, 201);
    wait(&client, DEFINITIONS, established).await;
    assert_eq!(call(&client, "POST", THINGS, thing("one")).await.0, 201);
    let path = format!("{DEFINITIONS}/things.e.com");
    for turn in 0..20 {
        for (i, version) in both["spec"]["versions"].as_array_mut().unwrap().iter_mut().enumerate() {
            version["storage"] = ((turn + i) % 2 == 1).into();
        }
        let (code, changed) = call(&client, "PATCH", &path, json!({"spec": both["spec"]})).await;
        assert_eq!(code, 200, "{changed}");
        for version in ["v1", "v2"] {
            let one = format!("{}/one", THINGS.replace("/v1/", &format!("/{version}/")));
            let value = format!("{version}-{turn}");
            let (code, changed) = call(&client, "PATCH", &one, json!({"spec": {"a": value}})).await;
            let wanted = (200, &json!(format!("e.com/{version}")), &json!(value));
            assert_eq!((code, &changed["apiVersion"], &changed["spec"]["a"]), wanted, "{changed}");
        }
    }
}
