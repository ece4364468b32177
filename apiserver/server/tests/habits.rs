//! What single kinds do differently from the others, as `conformance/differ/differ.py habits` found it by asking upstream, too.
#![allow(clippy::unwrap_used)]

use http_body_util::BodyExt as _;
use kube::Client;
use serde_json::{Value, json};

mod support;

use support::{call, start};

const NODES: &str = "/apis/node.k8s.io/v1/runtimeclasses";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// Status and body of a request with a body of this type.
async fn send(client: &Client, method: &str, path: &str, media: &str, body: &Value) -> (u16, Value) {
    let request = http::Request::builder().method(method).uri(path).header("content-type", media);
    let response = client.send(request.body(body.to_string().into_bytes().into()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

async fn apply(client: &Client, path: &str, body: &Value) -> (u16, Value) {
    send(client, "PATCH", path, "application/apply-patch+yaml", body).await
}

/// Some kinds are made by PUT where there is nothing, and some are changed only by who says from what.
#[tokio::test]
async fn puts_with_and_without_a_version() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let class = json!({"metadata": {"name": "r"}, "handler": "h"});
    let path = format!("{NODES}/r");
    assert_eq!(call(&client, "PUT", &path, &class).await.0, 201);
    let refused = call(&client, "PUT", &path, &class).await;
    let why = "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
    assert!(refused.0 == 422 && refused.1["message"].as_str().unwrap().ends_with(why), "{}", refused.1);
    let node = json!({"metadata": {"name": "n"}, "spec": {"drivers": []}});
    let nodes = "/apis/storage.k8s.io/v1/csinodes";
    assert_eq!(call(&client, "PUT", &format!("{nodes}/n"), &node).await.0, 404);
    assert_eq!(call(&client, "POST", nodes, &node).await.0, 201);
    assert_eq!(call(&client, "PUT", &format!("{nodes}/n"), &node).await.0, 422);
    // Where an object lies is told as upstream's store has it.
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    let services = "/api/v1/namespaces/default/services";
    assert_eq!(call(&client, "POST", services, &service).await.0, 201);
    let mut other = service.clone();
    other["metadata"]["uid"] = "x".into();
    let (code, refused, _) = call(&client, "PUT", &format!("{services}/s"), &other).await;
    assert!(code == 409 && refused["message"].as_str().unwrap().contains("Key: /registry/services/specs/default/s,"));
}

/// Who writes a status writes nothing else: of most kinds labels and annotations, of some not even these.
#[tokio::test]
async fn a_status_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let marked = json!({"metadata": {"labels": {"l": "status"}}});
    let claims = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";
    assert_eq!(call(&client, "POST", claims, &json!({"metadata": {"name": "c"}, "spec": {}})).await.0, 201);
    let (code, claim, _) = call(&client, "PATCH", &format!("{claims}/c/status"), &marked).await;
    assert_eq!((code, &claim["metadata"]["labels"]), (200, &Value::Null), "{claim}");
    let sets = "/apis/apps/v1/namespaces/default/daemonsets";
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let set =
        json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    assert_eq!(call(&client, "POST", sets, &set).await.0, 201);
    let mut status = set.clone();
    status["metadata"]["labels"] = json!({"l": "status"});
    let (code, set, _) = call(&client, "PUT", &format!("{sets}/d/status"), &status).await;
    let count = &set["metadata"]["annotations"]["deprecated.daemonset.template.generation"];
    assert_eq!((code, &set["metadata"]["labels"]["l"], count), (200, &json!("status"), &json!("1")), "{set}");

    // What v1 cannot say is in an annotation there, which is the desired state.
    let old = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    let new = old.replace("/v1/", "/v2/");
    let target = json!({"kind": "Deployment", "name": "x", "apiVersion": "apps/v1"});
    let metric = json!({"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "5"}}});
    let scaler =
        json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "scaleTargetRef": target, "metrics": [metric]}});
    assert_eq!(call(&client, "POST", &new, &scaler).await.0, 201);
    let status = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 9, "scaleTargetRef": target}});
    assert_eq!(call(&client, "PUT", &format!("{old}/h/status"), &status).await.0, 200);
    let (_, seen, _) = call(&client, "GET", &format!("{new}/h"), &Value::Null).await;
    assert_eq!((&seen["spec"]["metrics"], &seen["spec"]["maxReplicas"]), (&json!([metric]), &json!(3)));

    let services = "/api/v1/namespaces/default/services";
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    assert_eq!(call(&client, "POST", services, &service).await.0, 201);
    let ingress = json!({"status": {"loadBalancer": {"ingress": [{"hostname": "h"}]}}});
    let (code, refused, _) = call(&client, "PATCH", &format!("{services}/s/status"), &ingress).await;
    let why = "status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'";
    assert!(code == 422 && refused["message"].as_str().unwrap().ends_with(why), "{refused}");
}

/// What a deletion says, and what those see of it who watch.
#[tokio::test]
async fn deletions() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let other = json!({"preconditions": {"uid": "x"}});
    let (code, refused, _) = call(&client, "DELETE", "/api/v1/namespaces/default", &other).await;
    let why = "Operation cannot be fulfilled on namespaces \"default\": Precondition failed: UID in precondition: x, ";
    assert!(code == 409 && refused["message"].as_str().unwrap().starts_with(why), "{refused}");
    let (code, _, warnings) =
        call(&client, "DELETE", "/apis/batch/v1/namespaces/default/jobs/none", &Value::Null).await;
    assert!(code == 404 && warnings.iter().any(|w| w.contains("child pods are preserved by default")), "{warnings:?}");

    let account = json!({"metadata": {"name": "default"}});
    support::put(&client, "/api/v1/namespaces/default/serviceaccounts", &account).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let (code, made, _) = call(&client, "POST", PODS, &pod).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(call(&client, "DELETE", &format!("{PODS}/p"), &Value::Null).await.0, 200);
    let since = made["metadata"]["resourceVersion"].as_str().unwrap();
    let watch = format!("{PODS}?watch=true&timeoutSeconds=1&resourceVersion={since}");
    let request = http::Request::get(watch).body(vec![].into()).unwrap();
    let bytes = client.send(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let seen: Vec<Value> = serde_json::Deserializer::from_slice(&bytes).into_iter().map(Result::unwrap).collect();
    let told = |e: &Value| {
        let m = &e["object"]["metadata"];
        (
            e["type"].as_str().unwrap().to_owned(),
            m["deletionTimestamp"].is_string(),
            m["deletionGracePeriodSeconds"].clone(),
        )
    };
    let wanted = ["MODIFIED", "DELETED"].map(|t| (t.to_owned(), true, json!(0)));
    assert_eq!(seen.iter().map(told).collect::<Vec<_>>(), wanted);
}

/// What this server writes by itself has an owner, and begins when it is asked for.
#[tokio::test]
async fn definitions_say_who_wrote_them() {
    const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let definition = json!({"metadata": {"name": "things.e.com"}, "spec": {"group": "e.com", "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    assert_eq!(call(&client, "POST", DEFINITIONS, &definition).await.0, 201);
    let path = format!("{DEFINITIONS}/things.e.com");
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    let seen = loop {
        let (_, seen, _) = call(&client, "GET", &path, &Value::Null).await;
        if seen["status"]["conditions"].as_array().is_some_and(|c| c.len() == 2) {
            break seen;
        }
        assert!(tokio::time::Instant::now() < end, "{seen}");
        tokio::task::yield_now().await;
    };
    let owners = seen["metadata"]["managedFields"].as_array().unwrap();
    let own = owners.iter().find(|o| o["manager"] == "kube-apiserver").unwrap();
    assert_eq!((&own["operation"], &own["subresource"]), (&json!("Update"), &json!("status")));
    assert!(own["fieldsV1"]["f:status"]["f:acceptedNames"].is_object(), "{own}");
    let (code, ending, _) = call(&client, "DELETE", &path, &Value::Null).await;
    let last = ending["status"]["conditions"].as_array().unwrap().last().unwrap().clone();
    let told = (&last["type"], &last["reason"]);
    assert_eq!((code, told), (200, (&json!("Terminating"), &json!("InstanceDeletionPending"))), "{ending}");
}

/// Applying: what is in the way is told in the order of the fields, and a new object gets all that is said of it.
#[tokio::test]
async fn applying() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let scalers = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/h";
    let body = |window: i64, most: i64| {
        let target = json!({"kind": "Deployment", "name": "x", "apiVersion": "apps/v1"});
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": most, "scaleTargetRef": target,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": window}}}})
    };
    assert_eq!(apply(&client, &format!("{scalers}?fieldManager=one"), &body(10, 3)).await.0, 201);
    let (code, refused) = apply(&client, &format!("{scalers}?fieldManager=two"), &body(20, 4)).await;
    let fields: Vec<&str> =
        refused["details"]["causes"].as_array().unwrap().iter().map(|c| c["field"].as_str().unwrap()).collect();
    assert_eq!(code, 409);
    assert_eq!(fields, [".spec.maxReplicas", ".spec.behavior.scaleDown.stabilizationWindowSeconds"]);

    let node =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "status": {"capacity": {"cpu": "4"}}});
    let (code, made) = apply(&client, "/api/v1/nodes/n?fieldManager=one", &node).await;
    assert_eq!((code, &made["status"]["allocatable"]), (201, &json!({"cpu": "4"})), "{made}");

    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "v"}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"},
        "claimRef": {"namespace": "a", "name": "b"}}});
    let (code, made) = apply(&client, "/api/v1/persistentvolumes/v?fieldManager=one", &volume).await;
    let owned = &made["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:claimRef"];
    assert_eq!((code, owned), (201, &json!({"f:name": {}, "f:namespace": {}})), "{made}");

    // Empty lists and none are the same.
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": []});
    assert_eq!(call(&client, "POST", slices, &slice).await.0, 201);
    let (_, changed, _) = call(&client, "PATCH", &format!("{slices}/s"), &json!({"endpoints": [], "ports": []})).await;
    assert_eq!(changed["metadata"]["generation"], 1, "{changed}");
}

/// Warnings about templates come with every change of what is wanted, about secrets with every change.
#[tokio::test]
async fn warnings_of_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let container =
        json!({"name": "c", "image": "i", "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]});
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}});
    let deployment =
        json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let warned = async |method: &str, path: &str, body: Value| {
        let (code, said, warnings) = call(&client, method, path, &body).await;
        assert!(code < 300, "{said}");
        warnings.len()
    };
    assert_eq!(warned("POST", deployments, deployment).await, 1);
    let one = format!("{deployments}/d");
    assert_eq!(warned("PATCH", &one, json!({"spec": {"replicas": 2}})).await, 1);
    assert_eq!(warned("PATCH", &one, json!({"metadata": {"labels": {"l": "1"}}})).await, 0);
    assert_eq!(warned("PATCH", &format!("{one}/status"), json!({"status": {"observedGeneration": 1}})).await, 0);
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret =
        json!({"metadata": {"name": "s"}, "type": "kubernetes.io/tls", "data": {"tls.crt": "", "tls.key": ""}});
    assert_eq!(warned("POST", secrets, secret).await, 1);
    assert_eq!(warned("PATCH", &format!("{secrets}/s"), json!({"metadata": {"labels": {"l": "1"}}})).await, 1);
}
