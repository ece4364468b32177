//! Requests that few send on purpose, each answered as upstream's server (kube-apiserver v1.37.0) answers it.
#![allow(clippy::unwrap_used)]

use http_body_util::BodyExt as _;
use kube::Client;
use serde_json::{Value, json};

mod support;

use support::{MAPS, put, start};

const NO_METHOD: &str = "the server does not allow this method on the requested resource";
const NO_ROUTE: &str = "406: Not Acceptable";
const NOTHING: &str = "the server could not find the requested resource";
const TYPES: &str = "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// Status and message of a request with this header.
async fn ask(client: &Client, method: &str, path: &str, header: (&str, &str), body: &str) -> (u16, String) {
    let request = http::Request::builder().method(method).uri(path).header(header.0, header.1);
    let response = client.send(request.body(body.as_bytes().to_vec().into()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    (status, body["message"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn methods() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    for method in ["OPTIONS", "TRACE", "FOO", "HEAD"] {
        for (path, code) in [
            (MAPS.to_owned(), 405),
            (format!("{MAPS}/a"), 405),
            (format!("{MAPS}/a/none"), 404),
            ("/api/v1/namespaces/default/nothings".to_owned(), 404),
            ("/api/v1/namespaces/default/nodes".to_owned(), 404),
            ("/api/v1/configmaps/a".to_owned(), 404),
            ("/apis/apps/v9/deployments".to_owned(), 404),
            ("/apis/apps/v1/namespaces/x/deployments/a/scale/b".to_owned(), 404),
            (format!("{reviews}/x"), 404),
            ("/healthz".to_owned(), 200),
        ] {
            let (got, why) = ask(&client, method, &path, ("accept", "*/*"), "").await;
            let told = match code {
                405 => NO_METHOD,
                404 => NOTHING,
                _ => "",
            };
            assert_eq!((got, why.as_str()), (code, told), "{method} {path}");
        }
    }
    let json = ("content-type", "application/json");
    assert_eq!(ask(&client, "POST", "/api/v1/watch/namespaces", json, "{}").await, (405, NO_METHOD.to_owned()));
    assert_eq!(ask(&client, "GET", &format!("{reviews}/x"), json, "").await, (404, NOTHING.to_owned()));
}

#[tokio::test]
async fn what_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let log = "/api/v1/namespaces/default/pods/none/log";
    let watch = format!("{MAPS}?watch=1&timeoutSeconds=1");
    for (path, accept, code, told) in [
        ("/version", "application/json", 200, ""),
        ("/version", "application/*", 406, NO_ROUTE),
        ("/api", "application/*", 406, NO_ROUTE),
        ("/apis", "application/*", 200, ""),
        ("/apis", "text/plain", 406, TYPES),
        ("/apis/apps", "text/plain", 406, TYPES),
        ("/apis/apps/v1", "text/plain", 406, NO_ROUTE),
        (MAPS, "text/plain", 406, NO_ROUTE),
        // A watch is looked at as a list first.
        (&watch, "application/json;as=Foo;v=v1;g=meta.k8s.io", 406, TYPES),
        (log, "*/*", 404, "pods \"none\" not found"),
        (log, "text/plain", 406, TYPES),
        (log, "image/png", 406, NO_ROUTE),
    ] {
        let got = ask(&client, "GET", path, ("accept", accept), "").await;
        assert_eq!((got.0, got.1.as_str()), (code, told), "{path} {accept}");
    }
    // Who cannot be answered has changed nothing.
    let pods = "/api/v1/namespaces/default/pods";
    let spec = json!({"containers": [{"name": "c", "image": "i"}], "serviceAccountName": "default"});
    let options = json!({"automountServiceAccountToken": false, "metadata": {"name": "default"}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    assert_eq!(support::call(&client, "POST", accounts, &options).await.0, 201);
    put(&client, pods, &json!({"metadata": {"name": "p"}, "spec": spec})).await;
    let table = ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}}).to_string();
    for (path, body) in [("pods/p/eviction", &eviction), ("serviceaccounts/default/token", &"{}".to_owned())] {
        let got = ask(&client, "POST", &format!("/api/v1/namespaces/default/{path}"), table, body).await;
        assert_eq!(got, (406, TYPES.to_owned()), "{path}");
    }
    assert_eq!(support::call(&client, "GET", &format!("{pods}/p"), &Value::Null).await.0, 200);
}

#[tokio::test]
async fn options_and_bodies() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let any = ("accept", "*/*");
    // One object is read, whatever else is asked for.
    put(&client, MAPS, &json!({"metadata": {"name": "a"}})).await;
    assert_eq!(ask(&client, "GET", &format!("{MAPS}/a?watch=true&sendInitialEvents=true"), any, "").await.0, 200);
    let number = "strconv.ParseInt: parsing \"x\": invalid syntax";
    for option in ["timeoutSeconds=x&resourceVersion=99999999", "limit=x", "timeoutSeconds=x&fieldSelector=(("] {
        let got = ask(&client, "GET", &format!("{MAPS}?watch=1&{option}"), any, "").await;
        assert_eq!(got, (400, number.to_owned()), "{option}");
    }
    assert_eq!(ask(&client, "GET", &format!("{MAPS}?fieldSelector=%3D"), any, "").await.0, 200);
    let got = ask(&client, "GET", &format!("{MAPS}?fieldSelector=b%3D1,a%3D2"), any, "").await;
    assert!(got.0 == 400 && got.1.starts_with("\"a\" is not a known field selector"), "{}", got.1);

    let (json, yaml) = (("content-type", "application/json"), ("content-type", "application/yaml"));
    let apply = ("content-type", "application/apply-patch+yaml");
    let merge = ("content-type", "application/merge-patch+json");
    let ended = "couldn't get version/kind; json parse error: unexpected end of JSON input";
    let node = "yaml: line 1: did not find expected node content";
    let version = "unexpected GroupVersion string: a/b/c";
    let scale = "/apis/apps/v1/namespaces/default/deployments/none/scale";
    for (method, path, header, body, told) in [
        ("DELETE", format!("{MAPS}/none"), json, "{", ended.to_owned()),
        ("DELETE", format!("{MAPS}/none"), yaml, "{", node.to_owned()),
        ("DELETE", format!("{MAPS}/none"), json, r#"{"apiVersion": "a/b/c"}"#, version.to_owned()),
        (
            "DELETE",
            format!("{MAPS}/none"),
            json,
            r#"{"kind": "Pod"}"#,
            "no kind \"Pod\" is registered for version \"meta.k8s.io/v1\" in scheme \"pkg/runtime/scheme.go:111\""
                .to_owned(),
        ),
        (
            "POST",
            MAPS.to_owned(),
            json,
            r#"{"apiVersion":"a/b/c"}"#,
            format!(
                "the object provided is unrecognized (must be of type ConfigMap): {version} ({{\"apiVersion\":\"a/b/c\"}})"
            ),
        ),
        ("PATCH", format!("{MAPS}/a?fieldManager=m"), apply, "[", format!("error encoding patch: {node}")),
        (
            "PATCH",
            format!("{MAPS}/none?fieldManager=m"),
            apply,
            " {",
            format!("error decoding patch: error converting YAML to JSON: {node}"),
        ),
        ("PATCH", format!("{scale}?fieldManager=m"), apply, "[", format!("error encoding patch: {node}")),
        ("PATCH", scale.to_owned(), merge, "{", "invalid JSON patch".to_owned()),
    ] {
        assert_eq!(ask(&client, method, &path, header, body).await, (400, told), "{method} {path} {body}");
    }
    let got = ask(&client, "PATCH", &format!("{scale}?force=true"), merge, "{}").await;
    assert!(got.0 == 422 && got.1.ends_with("force: Forbidden: may not be specified for non-apply patch"), "{}", got.1);
}
