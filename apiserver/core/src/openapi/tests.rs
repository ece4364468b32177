#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::schema::Handle;

/// Every reference of a document leads somewhere, and every model is referred to.
fn check_references(document: &Value, models: &str, prefix: &str) {
    let mut found = BTreeSet::new();
    collect(document, &mut found);
    let found: BTreeSet<String> = found.iter().map(|r| r.strip_prefix(prefix).unwrap().to_owned()).collect();
    let models: BTreeSet<String> = document.pointer(models).unwrap().as_object().unwrap().keys().cloned().collect();
    assert_eq!(found, models);
}

fn collect(value: &Value, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                out.insert(reference.clone());
            }
            map.values().for_each(|v| collect(v, out));
        }
        Value::Array(list) => list.iter().for_each(|v| collect(v, out)),
        _ => {}
    }
}

#[test]
fn references_and_identifiers() {
    let mut ids = BTreeSet::new();
    for (group, version) in resources::group_versions() {
        let document = value_v3(group, version, &[]).unwrap();
        check_references(&document, "/components/schemas", "#/components/schemas/");
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap().iter().filter(|(m, _)| *m != "parameters") {
                let id = operation["operationId"].as_str().unwrap();
                assert!(ids.insert(id.to_owned()), "{method} {path}: {id} twice");
            }
        }
    }
    for id in [
        "listCoreV1NamespacedPod",
        "listCoreV1PodForAllNamespaces",
        "deleteCoreV1CollectionNamespacedPod",
        "patchRbacAuthorizationV1ClusterRole",
        "connectCoreV1GetNamespacedPodExec",
        "connectCoreV1PutNodeProxyWithPath",
        "replaceAppsV1NamespacedDeploymentScale",
        "createCoreV1NamespacedPodEviction",
        "getCoreV1APIResources",
    ] {
        assert!(ids.contains(id), "{id}");
    }
    let v2 = value_v2(&[]);
    check_references(&v2, "/definitions", "#/definitions/");
    assert!(document_v2_protobuf(&[]).len() > 100_000);
}

/// What kubectl reads.
#[test]
fn what_kubectl_looks_for() {
    let document = value_v3("", "v1", &[]).unwrap();
    let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"], json!({"group": "", "version": "v1", "kind": "Pod"}));
    assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some());
    let names: Vec<_> = patch["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    let schemas = &document["components"]["schemas"];
    let spec = &schemas["io.k8s.api.core.v1.PodSpec"];
    let containers = &spec["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(containers["items"]["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.core.v1.Container");
    assert!(containers["description"].as_str().unwrap().starts_with("List of containers"));
    assert_eq!(spec["required"], json!(["containers"]));
    assert_eq!(spec["properties"]["nodeSelector"]["x-kubernetes-map-type"], "atomic");
    let pod = &schemas["io.k8s.api.core.v1.Pod"];
    assert_eq!(pod["properties"]["spec"]["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.core.v1.PodSpec");
    assert_eq!(pod["x-kubernetes-group-version-kind"], json!([{"group": "", "version": "v1", "kind": "Pod"}]));
    let port = &schemas["io.k8s.api.core.v1.ServicePort"]["properties"]["protocol"];
    assert_eq!(port["default"], "TCP");
    let delete = &schemas["io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"]["x-kubernetes-group-version-kind"];
    assert!(delete.as_array().unwrap().contains(&json!({"group": "apps", "version": "v1", "kind": "DeleteOptions"})));
}

/// Almost every model and field has prose.
#[test]
fn descriptions_are_there() {
    let document = value_v3("apps", "v1", &[]).unwrap();
    for (name, model) in document["components"]["schemas"].as_object().unwrap() {
        assert!(model.get("description").is_some() || name.ends_with(".Patch"), "{name}");
        for (field, schema) in model["properties"].as_object().into_iter().flatten() {
            assert!(schema.get("description").is_some(), "{name}.{field}");
        }
    }
}

#[test]
fn custom_resources() {
    let shape = Handle::Shared(Arc::new((*resources::all()[0].model).clone()));
    let resource = Resource {
        group: "example.com".into(),
        kind: "Thing".into(),
        list_kind: "ThingList".into(),
        plural: "things".into(),
        model: shape.clone(),
        subresources: vec![resources::Subresource {
            name: "status".into(),
            elsewhere: None,
            kind: "Thing".into(),
            verbs: resources::Verbs::GET.and(resources::Verbs::PATCH),
            model: shape,
        }],
        ..resources::by_plural("apps", "v1", "deployments").unwrap().clone()
    };
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "a": {"type": "string", "nullable": true, "default": "x"}, "b": {"x-kubernetes-int-or-string": true, "anyOf": []}}}}});
    let selectable = [".spec.a".to_owned()];
    let custom = [Custom { resource: &resource, schema: Some(&schema.to_string()), selectable: &selectable }];
    let v3 = value_v3("example.com", "v1", &custom).unwrap();
    check_references(&v3, "/components/schemas", "#/components/schemas/");
    let thing = &v3["components"]["schemas"]["com.example.v1.Thing"];
    assert_eq!(thing["properties"]["spec"], schema["properties"]["spec"]);
    assert!(thing["properties"]["metadata"]["allOf"].is_array());
    // Definitions' documents stand alone: what every object has is explained there, too.
    assert!(thing["properties"]["apiVersion"]["description"].as_str().unwrap().starts_with("APIVersion defines"));
    let meta = &v3["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"];
    let created = meta["properties"]["creationTimestamp"]["description"].as_str().unwrap();
    assert!(created.starts_with("CreationTimestamp is a timestamp"), "{created}");
    assert_eq!(
        thing["x-kubernetes-group-version-kind"],
        json!([{"group": "example.com", "version": "v1", "kind": "Thing"}])
    );
    assert_eq!(thing["x-kubernetes-selectable-fields"], json!([{"fieldPath": "spec.a"}]));
    let patch = &v3["paths"]["/apis/example.com/v1/namespaces/{namespace}/things/{name}/status"]["patch"];
    assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_none());
    let v2 = value_v2(&custom);
    check_references(&v2, "/definitions", "#/definitions/");
    let spec = &v2["definitions"]["com.example.v1.Thing"]["properties"]["spec"];
    assert_eq!(*spec, json!({"type": "object", "properties": {"a": {}, "b": {"x-kubernetes-int-or-string": true}}}));
    assert!(value_v3("example.com", "v2", &custom).is_none());
    let index = index_v3(&custom);
    let url = index["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().unwrap();
    assert!(url.starts_with("/openapi/v3/apis/example.com/v1?hash="));
    let other = [Custom { resource: &resource, schema: None, selectable: &[] }];
    assert_ne!(hash_v3("example.com", "v1", &custom), hash_v3("example.com", "v1", &other));
    assert_eq!(hash_v3("apps", "v1", &custom), hash_v3("apps", "v1", &[]));
}
