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

#[tokio::test(flavor = "multi_thread")]
async fn the_more_important_pod_gets_the_room() {
    use k8s_openapi::api::scheduling::v1::PriorityClass;
    let c = Cluster::start().await;
    c.node("n1").await;
    c.run_pods();
    let accounts = c.api::<k8s_openapi::api::core::v1::ServiceAccount>("default");
    eventually("the account comes", || async { accounts.get_opt("default").await.unwrap() }).await;
    let classes = c.all::<PriorityClass>();
    for (name, value, policy, default) in [
        ("high", 1000, "PreemptLowerPriority", false),
        ("polite", 900, "Never", false),
        ("usual", 10, "PreemptLowerPriority", true),
    ] {
        let class =
            json!({"metadata": {"name": name}, "value": value, "preemptionPolicy": policy, "globalDefault": default});
        let class: PriorityClass = serde_json::from_value(class).unwrap();
        classes.create(&kube::api::PostParams::default(), &class).await.unwrap();
    }
    let pods = c.api::<Pod>("default");
    let node = |name: &'static str| {
        let pods = pods.clone();
        async move { pods.get(name).await.unwrap().spec.unwrap().node_name }
    };
    let of = |name: &str, class: Option<&str>| {
        let mut p = asking(name, "3");
        p["spec"]["priorityClassName"] = json!(class);
        p
    };
    let low = c.create::<Pod>("default", of("low", None)).await;
    assert_eq!(low.spec.unwrap().priority, Some(10), "the default class holds");
    eventually("low is bound", || async { node("low").await }).await;
    c.create::<Pod>("default", of("polite", Some("polite"))).await;
    let text = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: not eligible due to preemptionPolicy=Never.";
    eventually("polite waits", || c.told("default", "polite", "FailedScheduling", text)).await;
    let before = pods.get("low").await.unwrap();
    assert!(before.metadata.deletion_timestamp.is_none());
    c.create::<Pod>("default", of("high", Some("high"))).await;
    eventually("high is bound", || async { node("high").await }).await;
    eventually("low is told", || c.told("default", "low", "Preempted", "Preempted by pod ")).await;
    assert!(pods.get_opt("low").await.unwrap().is_none());
    assert_eq!(node("polite").await, None, "the room was made for another");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_is_chosen_while_running() {
    use k8s_openapi::api::core::v1::ConfigMap;
    let c = Cluster::start().await;
    for n in ["n1", "n2", "n3"] {
        c.node(n).await;
    }
    c.run_pods();
    let accounts = c.api::<k8s_openapi::api::core::v1::ServiceAccount>("default");
    eventually("the account comes", || async { accounts.get_opt("default").await.unwrap() }).await;
    let maps = c.api::<ConfigMap>("kube-system");
    let pods = c.api::<Pod>("default");
    let place = |name: String| {
        let (c, pods) = (&c, pods.clone());
        async move {
            c.create::<Pod>("default", asking(&name, "10m")).await;
            eventually("it is bound", || async { pods.get(&name).await.unwrap().spec.unwrap().node_name }).await
        }
    };
    c.create::<ConfigMap>(
        "kube-system",
        json!({"metadata": {"name": "skiff-scheduler"}, "data": {"policy": "round-robin"}}),
    )
    .await;
    // The scheduler learns of it by a watch: from some pod on, three in a row go to three nodes in turn.
    let mut nodes: Vec<String> = vec![];
    let mut next = 0;
    while nodes.len() < 4 {
        let name = format!("turn{next}");
        next += 1;
        let node = place(name.clone()).await;
        let told = || async { c.told("default", &name, "Scheduled", "Successfully assigned default/turn").await };
        eventually("the placement is told", told).await;
        let policy = format!("Successfully assigned default/{name} to {node} (policy round-robin, score 100)");
        if c.told("default", &name, "Scheduled", &policy).await.is_some() {
            nodes.push(node);
        }
        assert!(next < 100, "the policy never came into force");
    }
    let turn = ["n1", "n2", "n3"];
    let start = turn.iter().position(|n| *n == nodes[0]).unwrap();
    let want: Vec<&str> = (0..4).map(|i| turn[(start + i) % 3]).collect();
    assert_eq!(nodes, want);
    let set = |v: &'static str| {
        let maps = maps.clone();
        async move {
            let patch = json!({"data": {"policy": v}});
            maps.patch("skiff-scheduler", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        }
    };
    set("fastest").await;
    let text = "unknown policy \"fastest\": must be one of default, random, round-robin, fewest-pods, most-pods, lowest-cpu, lowest-memory; the policy stays round-robin";
    eventually("a bad value is told", || c.told("kube-system", "skiff-scheduler", "InvalidPolicy", text)).await;
    set("most-pods").await;
    eventually("pods gather", || async {
        let name = format!("many{}", rand_name());
        let node = place(name.clone()).await;
        c.told(
            "default",
            &name,
            "Scheduled",
            &format!("Successfully assigned default/{name} to {node} (policy most-pods"),
        )
        .await
    })
    .await;
}

/// A name nobody has yet.
fn rand_name() -> String {
    k8s_openapi::jiff::Timestamp::now().as_nanosecond().to_string()
}
