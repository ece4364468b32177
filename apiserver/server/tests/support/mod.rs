//! What tests of admission share: a server in this process and a client that speaks plain HTTP to it.

use std::sync::Arc;

use http::Request;
use http_body_util::BodyExt as _;
use kube::Client;
use serde_json::Value;
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_storage::embedded::{Embedded, Options};

/// Where what admission is configured by is.
pub(crate) const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
/// Where most tests write.
pub(crate) const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A server on a store in this directory, and an administrator's client.
pub(crate) async fn start(dir: &std::path::Path) -> (Server, Client) {
    let store = Embedded::open(dir, Options::default()).unwrap();
    let server = Server::builder(Arc::new(store)).start().await.unwrap();
    let client = server.client(User::new("admin", &["system:masters"]));
    (server, client)
}

/// Status, body and warnings of one request.
pub(crate) async fn call(client: &Client, method: &str, path: &str, body: &Value) -> (u16, Value, Vec<String>) {
    let bytes = if body.is_null() { vec![] } else { body.to_string().into_bytes() };
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header("content-type", kind).body(bytes.into()).unwrap();
    let response = client.send(request).await.unwrap();
    let status = response.status().as_u16();
    let warnings = response.headers().get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned()).collect();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default(), warnings)
}

/// Creates an object and reads it, after which everybody has seen it.
pub(crate) async fn put(client: &Client, path: &str, object: &Value) {
    let (status, said, _) = call(client, "POST", path, object).await;
    assert_eq!(status, 201, "{said}");
    let name = object["metadata"]["name"].as_str().unwrap();
    assert_eq!(call(client, "GET", &format!("{path}/{name}"), &Value::Null).await.0, 200);
}
