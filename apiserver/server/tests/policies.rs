//! Policies in CEL as a client meets them: parameters, bindings, variables, permissions, what mutates and what refuses.
#![allow(clippy::unwrap_used)]

use kube::Client;
use serde_json::{Value, json};
use skiff_apiserver::auth::User;

mod support;

use support::{GROUP, MAPS, call, put, start};

fn map(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// A policy about configmaps, with what else its spec says, and a binding.
async fn policy(client: &Client, name: &str, mutating: bool, spec: Value, binding: Value) {
    let (kind, plural) = if mutating {
        ("MutatingAdmissionPolicy", "mutatingadmissionpolic")
    } else {
        ("ValidatingAdmissionPolicy", "validatingadmissionpolic")
    };
    let mut whole = json!({"matchConstraints": {"resourceRules": [{"operations": ["CREATE", "UPDATE"],
        "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]}});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let object = |kind: &str, spec: Value| json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    put(client, &format!("{GROUP}/{plural}ies"), &object(kind, whole)).await;
    let mut bound = json!({"policyName": name});
    if !mutating {
        bound["validationActions"] = json!(["Deny"]);
    }
    bound.as_object_mut().unwrap().extend(binding.as_object().unwrap().clone());
    put(client, &format!("{GROUP}/{plural}ybindings"), &object(&format!("{kind}Binding"), bound)).await;
}

#[tokio::test]
async fn validating() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = start(dir.path()).await;
    put(&client, MAPS, &map("limits", &json!({"max": "2"}))).await;
    policy(
        &client,
        "size",
        false,
        json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConditions": [{"name": "not-root", "expression": "request.userInfo.username != 'root'"}],
            "variables": [{"name": "n", "expression": "size(object.?data.orValue({}))"},
                {"name": "max", "expression": "int(params.data.max)"}],
            "validations": [{"expression": "variables.n <= variables.max", "reason": "Forbidden",
                "messageExpression": "'at most ' + params.data.max + ', not ' + string(variables.n)"}]}),
        json!({"paramRef": {"name": "limits", "parameterNotFoundAction": "Deny"}}),
    )
    .await;
    let three = map("a", &json!({"x": "1", "y": "2", "z": "3"}));
    let (status, said, _) = call(&client, "POST", MAPS, &three).await;
    let text = "ValidatingAdmissionPolicy 'size' with binding 'size' denied request: at most 2, not 3";
    assert_eq!((status, &said["reason"]), (403, &json!("Forbidden")));
    assert_eq!(said["message"], format!("configmaps \"a\" is forbidden: {text}"));
    assert_eq!(said["details"]["causes"], json!([{"message": text}]));
    let root = server.client(User::new("root", &["system:masters"]));
    assert_eq!(call(&root, "POST", MAPS, &three).await.0, 201);
    assert_eq!(call(&client, "POST", MAPS, &map("b", &json!({"x": "1"}))).await.0, 201);

    // Without its parameter the policy refuses everything, as the binding says.
    assert_eq!(call(&root, "DELETE", &format!("{MAPS}/limits"), &Value::Null).await.0, 200);
    assert_eq!(call(&client, "GET", &format!("{MAPS}/limits"), &Value::Null).await.0, 404);
    let (status, said, _) = call(&client, "POST", MAPS, &map("c", &Value::Null)).await;
    assert_eq!(status, 422);
    let why = "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction";
    assert!(said["message"].as_str().unwrap().ends_with(why), "{said}");
    let all = format!("{GROUP}/validatingadmissionpolicybindings/size");
    assert_eq!(call(&client, "DELETE", &all, &Value::Null).await.0, 200);
    assert_eq!(call(&client, "GET", &all, &Value::Null).await.0, 404);
    assert_eq!(call(&client, "POST", MAPS, &map("c", &Value::Null)).await.0, 201);

    // Permissions and the namespace; the object of another's permissions.
    policy(
        &client,
        "may",
        false,
        json!({"validations": [
            {"expression": "authorizer.group('').resource('secrets').namespace('default').check('get').allowed()"},
            {"expression": "!authorizer.serviceAccount('default', 'default').group('').resource('secrets').namespace('default').check('get').allowed()"},
            {"expression": "namespaceObject.metadata.labels['kubernetes.io/metadata.name'] == 'default'"},
            {"expression": "authorizer.requestResource.check('create').allowed()"},
            {"expression": "request.resource.resource == 'configmaps' && request.operation == 'CREATE' && !request.dryRun"}]}),
        json!({"validationActions": ["Warn"]}),
    )
    .await;
    let (status, _, warnings) = call(&client, "POST", MAPS, &map("d", &Value::Null)).await;
    assert_eq!((status, warnings), (201, vec![]));
    let (status, _, warnings) = call(&client, "POST", &format!("{MAPS}?dryRun=All"), &map("e", &Value::Null)).await;
    assert_eq!((status, warnings.len()), (201, 1), "{warnings:?}");
}

#[tokio::test]
async fn mutating() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    policy(
        &client,
        "apply",
        true,
        json!({"reinvocationPolicy": "IfNeeded", "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
            "Object{metadata: Object.metadata{labels: {'n': string(size(object.?data.orValue({})))}}}"}}]}),
        json!({}),
    )
    .await;
    policy(
        &client,
        "patch",
        true,
        json!({"reinvocationPolicy": "Never", "matchConditions": [{"name": "once", "expression": "!has(object.data) || !('p/q' in object.data)"}],
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression":
            "[JSONPatch{op: 'test', path: '/kind', value: 'ConfigMap'}] + (has(object.data) ? [] : [JSONPatch{op: 'add', path: '/data', value: {}}])"}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression":
            "[JSONPatch{op: 'add', path: '/data/' + jsonpatch.escapeKey('p/q'), value: 'yes'}]"}}]}),
        json!({}),
    )
    .await;
    // The key is no valid one, which is found out after the policies; so is asked for what they made.
    let (status, said, _) = call(&client, "POST", MAPS, &map("a", &Value::Null)).await;
    assert_eq!(status, 422);
    assert_eq!(said["details"]["causes"][0]["field"], "data[p/q]");
    let path = format!("{GROUP}/mutatingadmissionpolicybindings/patch");
    assert_eq!(call(&client, "DELETE", &path, &Value::Null).await.0, 200);
    assert_eq!(call(&client, "GET", &path, &Value::Null).await.0, 404);
    let (status, made, _) = call(&client, "POST", MAPS, &map("a", &json!({"x": "1"}))).await;
    assert_eq!((status, &made["metadata"]["labels"]), (201, &json!({"n": "1"})));
    // Nobody owns what a policy set.
    let owned = made["metadata"]["managedFields"].to_string();
    assert!(owned.contains("f:data") && !owned.contains("f:labels"), "{owned}");

    // A policy that changes the object after it makes the first run again.
    policy(
        &client,
        "z",
        true,
        json!({"reinvocationPolicy": "Never", "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression":
            "[JSONPatch{op: 'add', path: '/data/z', value: 'z'}]"}}]}),
        json!({}),
    )
    .await;
    let (status, made, _) = call(&client, "POST", MAPS, &map("b", &json!({"x": "1"}))).await;
    assert_eq!((status, &made["metadata"]["labels"]), (201, &json!({"n": "2"})));

    // What is replaced as a whole cannot be applied, and what fails refuses.
    policy(
        &client,
        "broken",
        true,
        json!({"reinvocationPolicy": "Never", "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
            "Object{metadata: Object.metadata{name: object.none}}"}}]}),
        json!({}),
    )
    .await;
    let (status, said, _) = call(&client, "POST", MAPS, &map("c", &json!({"x": "1"}))).await;
    assert_eq!(status, 403);
    let why = "policy 'broken' with binding 'broken' denied request: expression 'Object{metadata: Object.metadata{name: object.none}}' resulted in error: no such key: none";
    assert_eq!(said["message"], why);
}
