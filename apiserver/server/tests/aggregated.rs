//! Other servers behind this one: when they count as available, what they are told, what clients see of them. The other
//! server is a real one, over TLS, in the test.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::{Value, json};
use skiff_apiserver::auth::User;
use skiff_apiserver::pki::Pki;
use skiff_apiserver::{Server, tls};

mod support;

use support::{call, own_address, put, serve, start};

const ROOT: &str = "/apis/flowers.example.com/v1";
const NAME: &str = "v1.flowers.example.com";
const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

/// What the other server saw: who connected, method, path with query, headers, body.
type Seen = Arc<Mutex<Vec<(Option<User>, String, String, HeaderMap, Bytes)>>>;

async fn answer(seen: Seen, peer: Option<User>, request: Request<Incoming>) -> http::Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let path = parts.uri.path_and_query().unwrap().as_str().to_owned();
    seen.lock().unwrap().push((peer, parts.method.to_string(), path.clone(), parts.headers, body));
    let rose = json!({"apiVersion": "flowers.example.com/v1", "kind": "Flower", "metadata": {"name": "rose"}});
    let said = match path.split('?').next().unwrap() {
        ROOT => {
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "flowers.example.com/v1", "resources": [
            {"name": "flowers", "singularName": "flower", "namespaced": true, "kind": "Flower", "verbs": ["get", "list"], "shortNames": ["fl"]},
            {"name": "flowers/status", "singularName": "", "namespaced": true, "kind": "Flower", "verbs": ["get"]}]})
        }
        "/openapi/v3/apis/flowers.example.com/v1" => json!({"openapi": "3.0.0", "paths": {}}),
        "/openapi/v2" => json!({"swagger": "2.0", "paths": {
                "/apis/flowers.example.com/v1/flowers": {"get": {"schema": {"$ref": "#/definitions/com.example.Flower"}}},
                "/apis/": {"get": {}}},
            "definitions": {"com.example.Flower": {"properties": {"spec": {"$ref": "#/definitions/com.example.Spec"}}},
                "com.example.Spec": {}, "com.example.Unused": {}}}),
        p if p.ends_with("/flowers/rose") => rose,
        _ => {
            let mut r = http::Response::new(Full::default());
            *r.status_mut() = StatusCode::IM_A_TEAPOT;
            return r;
        }
    };
    http::Response::new(Full::new(Bytes::from(said.to_string())))
}

async fn until(client: &Client, reason: &str) -> String {
    let services: Api<APIService> = Api::all(client.clone());
    let is = |s: &APIService| {
        let conditions = s.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.clone().any(|c| c.type_ == "Available" && c.reason.as_deref() == Some(reason))
    };
    let found = await_condition(services, NAME, move |s: Option<&APIService>| s.is_some_and(is));
    let found = tokio::time::timeout(Duration::from_secs(20), found).await.expect(reason).unwrap().unwrap();
    let condition = found.status.unwrap().conditions.unwrap().remove(0);
    assert_eq!(condition.status == "True", reason == "Passed");
    condition.message.unwrap()
}

async fn get(client: &Client, path: &str) -> (u16, Value) {
    let (status, said, _) = call(client, "GET", path, &Value::Null).await;
    (status, said)
}

/// Freshness and resources of the group in the aggregated document.
async fn discovered(client: &Client) -> Option<(String, usize)> {
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let request = Request::get("/apis").header("accept", accept).body(vec![].into()).unwrap();
    let bytes = client.send(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let all: Value = serde_json::from_slice(&bytes).unwrap();
    let mut groups = all["items"].as_array().unwrap().iter();
    let version = &groups.find(|g| g["metadata"]["name"] == "flowers.example.com")?["versions"][0];
    Some((version["freshness"].as_str().unwrap().to_owned(), version["resources"].as_array().map_or(0, Vec::len)))
}

/// What is counted of the APIService.
async fn counted(client: &Client) -> Vec<String> {
    let request = Request::get("/metrics").body(vec![].into()).unwrap();
    let bytes = client.send(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    text.lines().filter(|l| l.contains(&format!("name=\"{NAME}\""))).map(str::to_owned).collect()
}

struct Rig {
    client: Client,
    server: Server,
    seen: Seen,
    port: u16,
    ca: String,
}

async fn rig(dir: &std::path::Path) -> Rig {
    let (server, client) = start(dir).await;
    let other = Pki::ephemeral().unwrap();
    let leaf = other.cluster.server("flowers", &["flowers.default.svc".to_owned()], &[]).unwrap();
    let acceptor = tls::acceptor(&leaf, &server.pki().front_proxy.cert).unwrap();
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let port = serve(acceptor, move |peer, request| answer(Arc::clone(&log), peer, request)).await;
    Rig { client, server, seen, port, ca: STANDARD.encode(&other.cluster.cert) }
}

#[tokio::test]
async fn a_server_comes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let Rig { client, server, seen, port, ca } = rig(dir.path()).await;
    let object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": NAME},
        "spec": {"group": "flowers.example.com", "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 15,
            "caBundle": ca, "service": {"namespace": "default", "name": "flowers"}}});
    put(&client, SERVICES, &object).await;
    assert_eq!(until(&client, "ServiceNotFound").await, "service/flowers in \"default\" is not present");
    let gauge = |n: u8| format!("aggregator_unavailable_apiservice{{name=\"{NAME}\"}} {n}");
    assert_eq!(counted(&client).await, [gauge(1)]);
    assert_eq!(discovered(&client).await, Some(("Stale".into(), 0)));
    assert_eq!(get(&client, &format!("{ROOT}/namespaces/a/flowers/rose")).await.0, 503);
    assert_eq!(get(&client, ROOT).await.0, 503);

    let service = json!({"metadata": {"name": "flowers"}, "spec": {"ports": [{"name": "api", "port": 443}]}});
    put(&client, "/api/v1/namespaces/default/services", &service).await;
    until(&client, "EndpointsNotFound").await;
    let slice = |ready: bool| {
        json!({"metadata": {"name": "flowers", "labels": {"kubernetes.io/service-name": "flowers"}}, "addressType": "IPv4",
            "ports": [{"name": "api", "port": port}], "endpoints": [{"addresses": [own_address()], "conditions": {"ready": ready}}]})
    };
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    put(&client, slices, &slice(true)).await;
    assert_eq!(until(&client, "Passed").await, "all checks passed");
    assert_eq!(counted(&client).await, [gauge(0)]);
    assert_eq!(discovered(&client).await, Some(("Current".into(), 1)));
    assert_eq!(get(&client, ROOT).await.1["kind"], "APIResourceList");
    assert_eq!(get(&client, "/apis/flowers.example.com").await.1["preferredVersion"]["version"], "v1");
    let index = get(&client, "/openapi/v3").await.1;
    let at = index["paths"]["apis/flowers.example.com/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    assert_eq!(get(&client, &at).await, (200, json!({"openapi": "3.0.0", "paths": {}})));
    let v2 = get(&client, "/openapi/v2").await.1;
    assert!(v2["paths"]["/apis/flowers.example.com/v1/flowers"].is_object());
    assert!(v2["definitions"]["com.example.Spec"].is_object() && v2["definitions"]["com.example.Unused"].is_null());

    // A user with a right to it, who would like to be somebody else.
    let role = json!({"metadata": {"name": "flowers"}, "rules": [{"apiGroups": ["flowers.example.com"], "resources": ["flowers"], "verbs": ["get", "create"]}]});
    put(&client, "/apis/rbac.authorization.k8s.io/v1/clusterroles", &role).await;
    let binding = json!({"metadata": {"name": "flowers"}, "subjects": [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "flowers"}});
    put(&client, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await;
    let ann = server.client(User::new("ann", &["dev"]));
    seen.lock().unwrap().clear();
    let request = Request::get(format!("{ROOT}/namespaces/a/flowers/rose?x=1%2F2"));
    let request = request.header("x-remote-user", "root").header("authorization", "Bearer secret");
    let answer = ann.send(request.body(vec![].into()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200);
    let body = json!({"kind": "Flower", "metadata": {"name": "new"}});
    assert_eq!(call(&ann, "POST", &format!("{ROOT}/namespaces/a/flowers"), &body).await.0, 418);
    let (status, said) = get(&ann, &format!("{ROOT}/namespaces/a/trees/oak")).await;
    assert_eq!((status, said["reason"].as_str()), (403, Some("Forbidden")));
    let all = std::mem::take(&mut *seen.lock().unwrap());
    let own: Vec<_> = all.iter().filter(|(_, _, path, _, _)| path.contains("/namespaces/")).collect();
    let [(peer, method, path, headers, _), (_, _, _, _, sent)] = own.as_slice() else { panic!("{own:?}") };
    assert_eq!(
        (method.as_str(), path.as_str()),
        ("GET", "/apis/flowers.example.com/v1/namespaces/a/flowers/rose?x=1%2F2")
    );
    assert_eq!(peer.as_ref().unwrap().name, "front-proxy-client");
    let header = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(header("x-remote-user"), ["ann"]);
    assert_eq!(header("x-remote-group"), ["dev", "system:authenticated"]);
    assert_eq!(header("authorization"), [""; 0]);
    assert_eq!(serde_json::from_slice::<Value>(sent).unwrap(), body);

    // A change of the APIService is no interruption, whatever is looked at anew because of it.
    for priority in 16..32 {
        let patch = json!({"spec": {"versionPriority": priority}});
        assert_eq!(call(&client, "PATCH", &format!("{SERVICES}/{NAME}"), &patch).await.0, 200);
        assert_eq!(get(&client, &format!("{ROOT}/namespaces/a/flowers/rose")).await.0, 200);
        assert_eq!(discovered(&client).await, Some(("Current".into(), 1)));
    }

    // Its endpoints go: it is known, but old; then they are back; then it is gone.
    let (status, _, _) =
        call(&client, "PATCH", &format!("{slices}/flowers"), &json!({"endpoints": slice(false)["endpoints"]})).await;
    assert_eq!(status, 200);
    let why = "endpoints for service/flowers in \"default\" have no addresses with port name \"api\"";
    assert_eq!(until(&client, "MissingEndpoints").await, why);
    let lost = format!("aggregator_unavailable_apiservice_total{{name=\"{NAME}\",reason=\"MissingEndpoints\"}} 1");
    assert_eq!(counted(&client).await, [gauge(1), lost.clone()]);
    assert_eq!(discovered(&client).await, Some(("Stale".into(), 1)));
    assert_eq!(get(&client, &format!("{ROOT}/namespaces/a/flowers/rose")).await.0, 503);
    call(&client, "PATCH", &format!("{slices}/flowers"), &json!({"endpoints": slice(true)["endpoints"]})).await;
    until(&client, "Passed").await;
    assert_eq!(call(&client, "DELETE", &format!("{SERVICES}/{NAME}"), &Value::Null).await.0, 200);
    let gone = async {
        while discovered(&client).await.is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("withdrawn");
    assert_eq!(counted(&client).await, [lost]);
    assert_eq!(get(&client, &format!("{ROOT}/namespaces/a/flowers/rose")).await.0, 404);
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let Rig { client, port, .. } = rig(dir.path()).await;
    let service = json!({"metadata": {"name": "flowers"}, "spec": {"ports": [{"port": 8443}]}});
    put(&client, "/api/v1/namespaces/default/services", &service).await;
    let slice = json!({"metadata": {"name": "flowers", "labels": {"kubernetes.io/service-name": "flowers"}}, "addressType": "IPv4",
        "ports": [{"name": "", "port": port}], "endpoints": [{"addresses": [own_address()]}]});
    put(&client, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice).await;
    let stranger = STANDARD.encode(&Pki::ephemeral().unwrap().cluster.cert);
    let mut object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": NAME},
        "spec": {"group": "flowers.example.com", "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 15,
            "caBundle": stranger, "service": {"namespace": "default", "name": "flowers", "port": 443}}});
    put(&client, SERVICES, &object).await;
    assert_eq!(until(&client, "ServicePortError").await, "service/flowers in \"default\" is not listening on port 443");
    let at = format!("{SERVICES}/{NAME}");
    let patch = json!({"spec": {"service": {"port": 8443}}});
    assert_eq!(call(&client, "PATCH", &at, &patch).await.0, 200);
    let why = until(&client, "FailedDiscoveryCheck").await;
    assert!(why.contains("certificate signed by unknown authority"), "{why}");
    object["spec"] = json!({"caBundle": null, "insecureSkipTLSVerify": true});
    assert_eq!(call(&client, "PATCH", &at, &json!({"spec": object["spec"]})).await.0, 200);
    until(&client, "Passed").await;
}
