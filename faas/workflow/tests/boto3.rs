//! Programs of the AWS SDK for Python against the endpoint. They need an interpreter with boto3, which
//! `SKIFF_BOTO3_PYTHON` names (hack/test.sh makes one); without it the test says that it did nothing.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Stdio;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use skiff_workflow::endpoint::{CREDENTIALS, Endpoint};
use skiff_workflow::runs::Runs;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

/// Time for one program.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// An access key of a namespace.
async fn key(w: &support::World, namespace: &str, id: &str, secret: &str, account: Option<&str>) {
    let mut data = json!({"accessKeyId": id, "secretAccessKey": secret});
    if let Some(account) = account {
        data["serviceAccountName"] = account.into();
    }
    let whole = json!({"metadata": {"name": id.to_lowercase()}, "type": CREDENTIALS, "stringData": data});
    let secret: Secret = serde_json::from_value(whole).unwrap();
    let api = Api::<Secret>::namespaced(w.client.clone(), namespace);
    api.create(&PostParams::default(), &secret).await.unwrap();
}

async fn program(name: &str) {
    let Some(python) = std::env::var_os("SKIFF_BOTO3_PYTHON") else {
        assert!(std::env::var_os("SKIFF_REQUIRE_BOTO3").is_none(), "SKIFF_BOTO3_PYTHON names no interpreter");
        eprintln!("skipped: SKIFF_BOTO3_PYTHON names no interpreter with boto3");
        return;
    };
    let w = support::world().await;
    for (namespace, id) in [("default", "AKIDEXAMPLE"), ("kube-public", "AKIDOTHER")] {
        key(&w, namespace, id, "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY", None).await;
    }
    key(&w, "default", "AKIDREADER", "another-secret-access-key", Some("reader")).await;
    let running = w.engine();
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let endpoint = Arc::new(Endpoint::new(w.client.clone(), Arc::clone(&running.engine) as Arc<dyn Runs>));
    tokio::spawn(endpoint.serve(listener, None, stop));
    let script = format!("{}/tests/aws/{name}.py", env!("CARGO_MANIFEST_DIR"));
    let child = Command::new(python)
        .args([&script, &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let done = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("the program hangs").unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_versions_aliases_tags() {
    program("machines").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn executions_from_start_to_end() {
    program("executions").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_have_the_service_s_names() {
    program("faults").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_of_maps_and_their_executions() {
    program("maps").await;
}
