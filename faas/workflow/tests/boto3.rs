//! Programs of the AWS SDK for Python against the endpoint. They need an interpreter with boto3, which
//! `SKIFF_BOTO3_PYTHON` names (hack/test.sh makes one); without it the test says that it did nothing.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Stdio;
use std::sync::Arc;

use skiff_workflow::endpoint::Endpoint;
use skiff_workflow::runs::Stored;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

/// Time for one program.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

async fn program(name: &str) {
    let Some(python) = std::env::var_os("SKIFF_BOTO3_PYTHON") else {
        assert!(std::env::var_os("SKIFF_REQUIRE_BOTO3").is_none(), "SKIFF_BOTO3_PYTHON names no interpreter");
        eprintln!("skipped: SKIFF_BOTO3_PYTHON names no interpreter with boto3");
        return;
    };
    let w = support::world().await;
    for (namespace, key) in [("default", "AKIDEXAMPLE"), ("kube-public", "AKIDOTHER")] {
        w.key(namespace, key, "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY", None).await;
    }
    w.key("default", "AKIDREADER", "another-secret-access-key", Some("reader")).await;
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let endpoint = Arc::new(Endpoint::new(w.client.clone(), Arc::new(Stored::new(w.client.clone()))));
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
async fn faults_have_the_service_s_names() {
    program("faults").await;
}
