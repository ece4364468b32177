//! Webhooks of admission and conversion, against a real HTTPS server that the test runs: what they are sent, what becomes
//! of their answers, and what of their silence.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use kube::Client;
use serde_json::{Value, json};
use skiff_apiserver::pki::Pki;
use skiff_apiserver::tls;

mod support;

use support::{GROUP, MAPS, call, put, start};

/// A webhook server: every review it got, by path, and its answers by path.
struct Hooks {
    port: u16,
    ca: String,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Hooks {
    async fn start() -> Self {
        let pki = Pki::ephemeral().unwrap();
        let names = ["localhost".to_owned(), "hook.default.svc".to_owned()];
        let leaf = pki.cluster.server("hook", &names, &[IpAddr::V4(Ipv4Addr::LOCALHOST)]).unwrap();
        let acceptor = tls::acceptor(&leaf, &pki.cluster.cert).unwrap();
        let seen = Arc::new(Mutex::new(vec![]));
        let log = Arc::clone(&seen);
        let port = support::serve(acceptor, move |_, request| {
            let log = Arc::clone(&log);
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let review: Value = serde_json::from_slice(&body).unwrap();
                log.lock().unwrap().push((path.clone(), review.clone()));
                let Some(answer) = answer(&path, &review) else { return std::future::pending().await };
                let mut response = http::Response::new(Full::new(Bytes::from(answer.to_string())));
                if path == "/broken" {
                    *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
                }
                response
            }
        });
        let port = port.await;
        Self { port, ca: STANDARD.encode(&pki.cluster.cert), seen }
    }

    fn url(&self, path: &str) -> Value {
        json!({"url": format!("https://localhost:{}{path}", self.port), "caBundle": self.ca})
    }

    /// Takes the reviews that came to a path.
    fn take(&self, path: &str) -> Vec<Value> {
        let mut seen = self.seen.lock().unwrap();
        let (out, rest) = seen.drain(..).partition(|(p, _)| p == path);
        *seen = rest;
        let out: Vec<(String, Value)> = out;
        out.into_iter().map(|(_, v)| v).collect()
    }
}

/// What the server answers at a path; `None`: nothing, ever.
fn answer(path: &str, review: &Value) -> Option<Value> {
    let uid = review["request"]["uid"].clone();
    let patch = |p: Value| json!({"uid": uid, "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(p.to_string())});
    let response = match path {
        "/label" => {
            let mut labels = review["request"]["object"]["metadata"]["labels"].clone();
            let n = labels["n"].as_str().unwrap_or("0").parse::<u32>().unwrap();
            if labels.is_null() {
                labels = json!({});
            }
            labels["n"] = (n + 1).to_string().into();
            patch(json!([{"op": "add", "path": "/metadata/labels", "value": labels}]))
        }
        "/data" => patch(
            json!([{"op": "add", "path": "/data", "value": {"by": "hook"}}, {"op": "add", "path": "/unknown", "value": 1}]),
        ),
        "/rename" => patch(json!([{"op": "replace", "path": "/metadata/name", "value": "other"}])),
        "/deny" => {
            json!({"uid": uid, "allowed": false, "status": {"code": 418, "message": "no", "reason": "Forbidden", "details": {"kind": "x"}}})
        }
        "/warn" => json!({"uid": uid, "allowed": true, "warnings": ["mind the gap"]}),
        "/wrong" => json!({"uid": "other", "allowed": true}),
        "/slow" => return None,
        "/convert" => {
            let wanted = &review["request"]["desiredAPIVersion"];
            let convert = |o: &Value| {
                let mut o = o.clone();
                o["apiVersion"] = wanted.clone();
                // v1 has spec.a, v2 has spec.b; what a webhook does to metadata beyond labels and annotations is undone.
                let (from, to) = if *wanted == "e.com/v2" { ("a", "b") } else { ("b", "a") };
                if let Some(v) = o["spec"].as_object_mut().unwrap().remove(from) {
                    o["spec"][to] = v;
                }
                o["metadata"]["labels"] = json!({"converted": "yes"});
                o["metadata"]["finalizers"] = json!(["e.com/x"]);
                o
            };
            let objects: Vec<Value> = review["request"]["objects"].as_array().unwrap().iter().map(convert).collect();
            json!({"uid": uid, "result": {"status": "Success"}, "convertedObjects": objects})
        }
        _ => json!({"uid": uid, "allowed": true}),
    };
    Some(json!({"kind": review["kind"], "apiVersion": review["apiVersion"], "response": response}))
}

/// One configuration of one webhook; `more` goes into the webhook.
async fn hook(client: &Client, name: &str, mutating: bool, to: Value, more: Value) {
    let (kind, plural) = if mutating {
        ("MutatingWebhookConfiguration", "mutatingwebhookconfigurations")
    } else {
        ("ValidatingWebhookConfiguration", "validatingwebhookconfigurations")
    };
    let mut w = json!({"name": format!("{name}.example.com"), "clientConfig": to, "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "timeoutSeconds": 2, "rules": [{"operations": ["CREATE"], "apiGroups": [""],
            "apiVersions": ["v1"], "resources": ["configmaps"]}]});
    w.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "webhooks": [w]});
    put(client, &format!("{GROUP}/{plural}"), &object).await;
}

async fn unhook(client: &Client, name: &str, mutating: bool) {
    let plural = if mutating { "mutatingwebhookconfigurations" } else { "validatingwebhookconfigurations" };
    let path = format!("{GROUP}/{plural}/{name}");
    assert_eq!(call(client, "DELETE", &path, &Value::Null).await.0, 200);
    assert_eq!(call(client, "GET", &path, &Value::Null).await.0, 404);
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
}

#[tokio::test]
async fn mutating() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let hooks = Hooks::start().await;
    hook(&client, "a", true, hooks.url("/label"), json!({"reinvocationPolicy": "IfNeeded"})).await;
    let (status, made, _) = call(&client, "POST", &format!("{MAPS}?fieldManager=m"), &map("a")).await;
    assert_eq!((status, &made["metadata"]["labels"]), (201, &json!({"n": "1"})));
    let seen = hooks.take("/label");
    assert_eq!(seen.len(), 1);
    let r = &seen[0]["request"];
    assert_eq!(r["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(r["requestResource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    assert_eq!((&r["operation"], &r["name"], &r["namespace"]), (&json!("CREATE"), &json!("a"), &json!("default")));
    assert_eq!(r["userInfo"], json!({"username": "admin", "groups": ["system:masters", "system:authenticated"]}));
    assert_eq!(r["options"], json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "m"}));
    assert_eq!(
        (&r["object"]["kind"], &r["oldObject"], &r["dryRun"]),
        (&json!("ConfigMap"), &Value::Null, &json!(false))
    );

    // What another makes of it after, it is asked about once more; what the kind does not know is gone.
    hook(&client, "b", true, hooks.url("/data"), json!({})).await;
    let (_, made, _) = call(&client, "POST", MAPS, &map("b")).await;
    assert_eq!((&made["metadata"]["labels"], &made["data"]), (&json!({"n": "2"}), &json!({"by": "hook"})));
    assert_eq!(made.get("unknown"), None);
    assert_eq!((hooks.take("/label").len(), hooks.take("/data").len()), (2, 1));

    hook(&client, "c", true, hooks.url("/rename"), json!({})).await;
    let (status, said, _) = call(&client, "POST", MAPS, &map("c")).await;
    let why = "the name of the object (other) does not match the name on the URL (c)";
    assert_eq!((status, &said["message"]), (400, &json!(why)));
}

/// (path, what the webhook says of itself, status, what the refusal says)
#[tokio::test]
async fn validating() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let hooks = Hooks::start().await;
    let at = |path: &str| format!("Post \"https://localhost:{}{path}?timeout=1s\"", hooks.port);
    let failed = |why: String| format!("Internal error occurred: failed calling webhook \"w.example.com\": {why}");
    let (fail, ignore) = (json!({"timeoutSeconds": 1}), json!({"timeoutSeconds": 1, "failurePolicy": "Ignore"}));
    let cases = [
        ("/deny", fail.clone(), 418, "admission webhook \"w.example.com\" denied the request: no".to_owned()),
        ("/allow", fail.clone(), 201, String::new()),
        (
            "/slow",
            fail.clone(),
            500,
            failed(format!("failed to call webhook: {}: context deadline exceeded", at("/slow"))),
        ),
        ("/slow", ignore.clone(), 201, String::new()),
        (
            "/broken",
            json!({"timeoutSeconds": 1}),
            500,
            failed("failed to call webhook: an error on the server (".to_owned()),
        ),
        ("/wrong", fail.clone(), 500, failed("received invalid webhook response: expected response.uid=".to_owned())),
        ("/wrong", ignore, 201, String::new()),
        (
            "/deny",
            json!({"matchConditions": [{"name": "c", "expression": "object.metadata.name != 'a'"}]}),
            201,
            String::new(),
        ),
        (
            "/deny",
            json!({"matchConditions": [{"name": "c", "expression": "object.none == 1"}]}),
            403,
            "configmaps \"a\" is forbidden: expression 'object.none == 1' resulted in error: no such key: none"
                .to_owned(),
        ),
        ("/deny", json!({"namespaceSelector": {"matchLabels": {"a": "b"}}}), 201, String::new()),
        (
            "/deny",
            json!({"objectSelector": {"matchExpressions": [{"key": "x", "operator": "Exists"}]}}),
            201,
            String::new(),
        ),
        (
            "/deny",
            json!({"sideEffects": "NoneOnDryRun"}),
            418,
            "admission webhook \"w.example.com\" denied the request: no".to_owned(),
        ),
    ];
    for (path, more, want, text) in cases {
        hook(&client, "w", false, hooks.url(path), more.clone()).await;
        let (status, said, _) = call(&client, "POST", &format!("{MAPS}?dryRun=All"), &map("a")).await;
        assert_eq!(status, want, "{path} {more} {said}");
        if status != 201 {
            assert!(said["message"].as_str().unwrap().starts_with(&text), "{path} {more} {said}");
        }
        unhook(&client, "w", false).await;
    }
    // A certificate that nobody vouches for, one for another name, and nobody there.
    let bundle = STANDARD.encode(&Pki::ephemeral().unwrap().cluster.cert);
    let url = format!("https://localhost:{}/allow", hooks.port);
    let elsewhere =
        json!({"service": {"name": "other", "namespace": "default", "port": hooks.port}, "caBundle": hooks.ca});
    let cases = [
        (
            json!({"url": url, "caBundle": bundle}),
            "tls: failed to verify certificate: x509: certificate signed by unknown authority",
        ),
        (elsewhere, "tls: failed to verify certificate: x509: certificate is valid for "),
        (json!({"url": "https://127.0.0.1:1/x"}), "dial tcp 127.0.0.1:1: connect: connection refused"),
    ];
    let service = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"type": "ExternalName", "externalName": "localhost"}})
    };
    for name in ["hook", "other"] {
        put(&client, "/api/v1/namespaces/default/services", &service(name)).await;
    }
    for (to, why) in cases {
        hook(&client, "w", false, to, json!({})).await;
        let (status, said, _) = call(&client, "POST", MAPS, &map("a")).await;
        let message = said["message"].as_str().unwrap();
        assert!(status == 500 && message.contains(why), "{said}");
        unhook(&client, "w", false).await;
    }
    // A Service by name; warnings; connections are kept between calls.
    let to = json!({"service": {"name": "hook", "namespace": "default", "path": "/warn", "port": hooks.port}, "caBundle": hooks.ca});
    hook(&client, "w", false, to, json!({})).await;
    let (status, _, warnings) = call(&client, "POST", MAPS, &map("a")).await;
    assert_eq!((status, warnings), (201, vec!["299 - \"mind the gap\"".to_owned()]));
    unhook(&client, "w", false).await;

    // Deletions, subresources, connections; dry runs are no business of a webhook with side effects.
    let rules = |operation: &str, resource: &str| json!({"rules": [{"operations": [operation], "apiGroups": ["*"], "apiVersions": ["*"], "resources": [resource]}]});
    let path = format!("{MAPS}/a");
    let whole = "/api/v1/namespaces/default/pods/none/exec?command=ls&container=c";
    let cases = [
        ("DELETE", path.as_str(), rules("DELETE", "configmaps"), Value::Null),
        ("PATCH", &path, rules("UPDATE", "*"), json!({"data": {"x": "y"}})),
        ("POST", whole, rules("CONNECT", "pods/exec"), Value::Null),
        (
            "POST",
            "/api/v1/namespaces/default/serviceaccounts/default/token",
            rules("CREATE", "serviceaccounts/token"),
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}),
        ),
    ];
    put(
        &client,
        "/api/v1/namespaces/default/serviceaccounts",
        &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
    )
    .await;
    for (method, path, more, body) in cases {
        hooks.take("/deny");
        hook(&client, "w", false, hooks.url("/deny"), more).await;
        let (status, said, _) = call(&client, method, path, &body).await;
        assert_eq!(status, 418, "{method} {path} {said}");
        let seen = hooks.take("/deny");
        let r = &seen[0]["request"];
        match method {
            "DELETE" => assert!(
                r["object"].is_null()
                    && r["oldObject"]["kind"] == "ConfigMap"
                    && r["options"]["kind"] == "DeleteOptions"
            ),
            "PATCH" => assert!(r["object"]["data"] == json!({"x": "y"}) && r["oldObject"].get("data").is_none()),
            _ if path == whole => {
                let object = json!({"kind": "PodExecOptions", "apiVersion": "v1", "container": "c", "command": ["ls"]});
                assert_eq!(
                    (&r["object"], &r["subResource"], &r["operation"]),
                    (&object, &json!("exec"), &json!("CONNECT"))
                );
            }
            _ => assert_eq!(r["kind"]["kind"], "TokenRequest"),
        }
        unhook(&client, "w", false).await;
    }
}

fn definition(conversion: &Value) -> Value {
    let version = |name: &str, field: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {(field): {"type": "string"}}}}}}})
    };
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.e.com"},
        "spec": {"group": "e.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [version("v1", "a", true), version("v2", "b", false)],
            "conversion": {"strategy": "Webhook", "webhook": {"clientConfig": conversion, "conversionReviewVersions": ["v1"]}}}})
}

/// The first event of a watch.
async fn first_event(client: &Client, path: &str) -> Value {
    use futures::{AsyncBufReadExt, TryStreamExt};
    let request = Request::get(format!("{path}?watch=1")).body(vec![]).unwrap();
    let mut lines = client.request_stream(request).await.unwrap().lines();
    let next = tokio::time::timeout(std::time::Duration::from_secs(20), lines.try_next());
    serde_json::from_str(&next.await.expect("seen in time").unwrap().unwrap()).unwrap()
}

#[tokio::test]
async fn conversion() {
    const V1: &str = "/apis/e.com/v1/namespaces/default/things";
    const V2: &str = "/apis/e.com/v2/namespaces/default/things";
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let hooks = Hooks::start().await;
    put(&client, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition(&hooks.url("/convert"))).await;
    let established = async {
        while call(&client, "GET", V2, &Value::Null).await.0 != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), established).await.expect("served in time");
    let thing = |version: &str, name: &str, spec: Value| json!({"apiVersion": format!("e.com/{version}"), "kind": "Thing", "metadata": {"name": name}, "spec": spec});
    assert_eq!(call(&client, "POST", V1, &thing("v1", "one", json!({"a": "x"}))).await.0, 201);
    assert!(hooks.take("/convert").is_empty(), "nothing to convert");

    // Written in the other version, stored in the first; read in both; what a webhook may not change it did not.
    let (status, made, _) = call(&client, "POST", V2, &thing("v2", "two", json!({"b": "y"}))).await;
    assert_eq!((status, &made["spec"], &made["apiVersion"]), (201, &json!({"b": "y"}), &json!("e.com/v2")));
    let (_, stored, _) = call(&client, "GET", &format!("{V1}/two"), &Value::Null).await;
    assert_eq!((&stored["spec"], &stored["metadata"]["finalizers"]), (&json!({"a": "y"}), &Value::Null));
    assert_eq!(stored["metadata"]["labels"], json!({"converted": "yes"}));
    hooks.take("/convert");
    let (status, list, _) = call(&client, "GET", V2, &Value::Null).await;
    let specs: Vec<&Value> = list["items"].as_array().unwrap().iter().map(|i| &i["spec"]).collect();
    assert_eq!((status, specs), (200, vec![&json!({"b": "x"}), &json!({"b": "y"})]));
    let batches = hooks.take("/convert");
    assert_eq!(batches.len(), 1, "a list is converted in one call");
    assert_eq!(batches[0]["request"]["objects"].as_array().unwrap().len(), 2);
    let event = first_event(&client, V2).await;
    assert_eq!((&event["type"], &event["object"]["spec"]), (&json!("ADDED"), &json!({"b": "x"})));

    // Changed through the other version, and deleted.
    let (status, changed, _) = call(&client, "PATCH", &format!("{V2}/one"), &json!({"spec": {"b": "z"}})).await;
    assert_eq!((status, &changed["spec"]), (200, &json!({"b": "z"})));
    assert_eq!(call(&client, "GET", &format!("{V1}/one"), &Value::Null).await.1["spec"], json!({"a": "z"}));

    // A webhook of admission that knows one version is shown it.
    let rules = json!({"rules": [{"operations": ["*"], "apiGroups": ["e.com"], "apiVersions": ["v2"], "resources": ["things"]}]});
    hook(&client, "w", false, hooks.url("/deny"), rules).await;
    assert_eq!(call(&client, "PATCH", &format!("{V1}/one"), &json!({"spec": {"a": "q"}})).await.0, 418);
    let seen = hooks.take("/deny");
    let r = &seen[0]["request"];
    assert_eq!((&r["object"]["spec"], &r["kind"]["version"]), (&json!({"b": "q"}), &json!("v2")));
    assert_eq!((&r["requestKind"]["version"], &r["oldObject"]["spec"]), (&json!("v1"), &json!({"b": "z"})));
    unhook(&client, "w", false).await;
    assert_eq!(call(&client, "DELETE", &format!("{V2}/one"), &Value::Null).await.0, 200);
}

/// The next event of a watch that is open.
async fn event(lines: &mut (impl futures::Stream<Item = std::io::Result<String>> + Unpin)) -> (String, String, Value) {
    use futures::StreamExt;
    let next = tokio::time::timeout(std::time::Duration::from_secs(20), lines.next());
    let line = next.await.expect("an event in time").unwrap().unwrap();
    let event: Value = serde_json::from_str(&line).unwrap();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    (text(&event["type"]), text(&event["object"]["metadata"]["name"]), event["object"]["spec"].clone())
}

/// Fields are those of the version that is asked, whichever is stored.
#[tokio::test]
async fn fields_of_a_converted_version() {
    use futures::AsyncBufReadExt;
    const V1: &str = "/apis/e.com/v1/namespaces/default/things";
    const V2: &str = "/apis/e.com/v2/namespaces/default/things";
    let hooks = Hooks::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let mut definition = definition(&hooks.url("/convert"));
    for (version, path) in [(0, ".spec.a"), (1, ".spec.b")] {
        definition["spec"]["versions"][version]["selectableFields"] = json!([{"jsonPath": path}]);
    }
    put(&client, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    let established = async {
        while call(&client, "GET", V2, &Value::Null).await.0 != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), established).await.expect("served in time");
    let thing = |name: &str, b: &str| json!({"apiVersion": "e.com/v2", "kind": "Thing", "metadata": {"name": name}, "spec": {"b": b}});
    for (name, b) in [("one", "x"), ("two", "y"), ("three", "x")] {
        assert_eq!(call(&client, "POST", V2, &thing(name, b)).await.0, 201);
    }
    for (path, wanted) in [
        (format!("{V2}?fieldSelector=spec.b%3Dx"), vec!["one", "three"]),
        (format!("{V2}?fieldSelector=spec.b!%3Dx"), vec!["two"]),
        (format!("{V2}?fieldSelector=spec.b%3Dx,metadata.name%3Done"), vec!["one"]),
        (format!("{V1}?fieldSelector=spec.a%3Dy"), vec!["two"]),
    ] {
        let (status, list, _) = call(&client, "GET", &path, &Value::Null).await;
        let names: Vec<&str> =
            list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect();
        assert_eq!((status, names), (200, wanted), "{path}");
    }
    assert_eq!(call(&client, "GET", &format!("{V2}?fieldSelector=spec.a%3Dx"), &Value::Null).await.0, 400);

    let request = Request::get(format!("{V2}?watch=true&fieldSelector=spec.b%3Dx")).body(vec![]).unwrap();
    let mut lines = Box::pin(client.request_stream(request).await.unwrap().lines());
    for name in ["one", "three"] {
        assert_eq!(event(&mut lines).await, ("ADDED".into(), name.into(), json!({"b": "x"})));
    }
    // What leaves the selection is gone, as it last was; what enters it is new.
    assert_eq!(call(&client, "PATCH", &format!("{V1}/one"), &json!({"spec": {"a": "z"}})).await.0, 200);
    assert_eq!(event(&mut lines).await, ("DELETED".into(), "one".into(), json!({"b": "x"})));
    assert_eq!(call(&client, "PATCH", &format!("{V1}/two"), &json!({"spec": {"a": "x"}})).await.0, 200);
    assert_eq!(event(&mut lines).await, ("ADDED".into(), "two".into(), json!({"b": "x"})));
    assert_eq!(call(&client, "DELETE", &format!("{V2}?fieldSelector=spec.b%3Dx"), &Value::Null).await.0, 200);
    let mut gone = vec![];
    for _ in 0..2 {
        let (kind, name, spec) = event(&mut lines).await;
        assert_eq!((kind.as_str(), spec), ("DELETED", json!({"b": "x"})));
        gone.push(name);
    }
    assert_eq!(gone, ["three", "two"]);
    let (_, left, _) = call(&client, "GET", V2, &Value::Null).await;
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn conversion_that_fails() {
    const V2: &str = "/apis/e.com/v2/namespaces/default/things";
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let gone = json!({"service": {"name": "none", "namespace": "default", "path": "/c"}});
    put(&client, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition(&gone)).await;
    let established = async {
        while call(&client, "GET", V2, &Value::Null).await.0 != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), established).await.expect("served in time");
    let thing = json!({"apiVersion": "e.com/v2", "kind": "Thing", "metadata": {"name": "a"}, "spec": {"b": "x"}});
    let (status, said, _) = call(&client, "POST", V2, &thing).await;
    assert_eq!(status, 500);
    let why = "conversion webhook for e.com/v1, Kind=Thing failed: Post \"https://none.default.svc:443/c?timeout=30s\": service \"none\" not found";
    assert_eq!(said["message"], why);
}
