//! Deletions that meet others.
#![allow(clippy::unwrap_used)]

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;

mod support;

use support::{call, start};

/// Pods that are deleted twice.
const PODS: usize = 100;

/// Somebody who removes every pod that he sees end, as the pod garbage collector does with those that no node has: whoever asked for
/// the deletion is told of it nevertheless.
#[tokio::test(flavor = "multi_thread")]
async fn who_deletes_is_told_so_whoever_is_faster() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let account = json!({"metadata": {"name": "default"}});
    assert_eq!(call(&client, "POST", "/api/v1/namespaces/default/serviceaccounts", &account).await.0, 201);
    let pods = Api::<Pod>::namespaced(client, "default");
    let (other, now) = (pods.clone(), DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() });
    let collector = tokio::spawn(async move {
        let mut seen = Box::pin(other.watch(&WatchParams::default().timeout(60), "0").await.unwrap());
        while let Some(event) = seen.try_next().await.unwrap() {
            if let WatchEvent::Modified(pod) = event
                && pod.metadata.deletion_timestamp.is_some()
            {
                let _ = other.delete(pod.metadata.name.as_deref().unwrap(), &now).await;
            }
        }
    });
    for i in 0..PODS {
        let pod = json!({"metadata": {"name": format!("p{i}")}, "spec": {"containers": [{"name": "c", "image": "a"}]}});
        let made = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        let gone = pods.delete(&format!("p{i}"), &DeleteParams::default()).await.unwrap().left().unwrap();
        assert_eq!(gone.metadata.uid, made.metadata.uid);
    }
    collector.abort();
}
