use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually};

fn asking(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [
        {"name": "c", "image": "a", "resources": {"requests": {"cpu": cpu}}}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_until_there_is_room() {
    let c = Cluster::start().await;
    c.node("n1").await;
    c.run_pods();
    let pods = c.api::<Pod>("default");
    let node = |name: &'static str| {
        let pods = pods.clone();
        async move { pods.get(name).await.unwrap().spec.unwrap().node_name }
    };
    let accounts = c.api::<k8s_openapi::api::core::v1::ServiceAccount>("default");
    eventually("the account comes", || async { accounts.get_opt("default").await.unwrap() }).await;
    c.create::<Pod>("default", asking("big", "3")).await;
    eventually("big is bound", || async { node("big").await }).await;
    c.create::<Pod>("default", asking("second", "2")).await;
    let text = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are available: \
                1 No preemption victims found for incoming pod.";
    eventually("second is told why", || async {
        let status = pods.get("second").await.unwrap().status?;
        let c = status.conditions?.into_iter().find(|c| c.type_ == "PodScheduled")?;
        (c.reason.as_deref() == Some("Unschedulable") && c.message.as_deref() == Some(text)).then_some(())
    })
    .await;
    let events = c.api::<Event>("default");
    eventually("an event tells it", || async {
        let list = events.list(&ListParams::default()).await.unwrap();
        list.items
            .into_iter()
            .find(|e| e.reason.as_deref() == Some("FailedScheduling") && e.message.as_deref() == Some(text))
    })
    .await;
    c.node("n2").await;
    eventually("second is bound to the new node", || async { node("second").await.filter(|n| n == "n2") }).await;
    // A gate holds a pod back.
    let mut gated = asking("gated", "100m");
    gated["spec"]["schedulingGates"] = json!([{"name": "example.com/wait"}]);
    c.create::<Pod>("default", gated).await;
    c.create::<Pod>("default", asking("after", "100m")).await;
    eventually("a later pod is bound", || async { node("after").await }).await;
    assert_eq!(node("gated").await, None);
    let open = json!({"spec": {"schedulingGates": []}});
    pods.patch("gated", &PatchParams::default(), &Patch::Merge(open)).await.unwrap();
    eventually("gated is bound", || async { node("gated").await }).await;
}
