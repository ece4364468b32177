use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy};
use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually};

fn map(name: &str, owner: Option<&ConfigMap>) -> Value {
    let owners: Vec<Value> = owner
        .iter()
        .map(|o| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": o.name_any(), "uid": o.uid(), "blockOwnerDeletion": true}))
        .collect();
    json!({"metadata": {"name": name, "ownerReferences": owners}})
}

#[tokio::test(flavor = "multi_thread")]
async fn dependents_follow_their_owner_as_asked() {
    let c = Cluster::start().await;
    let api = c.api::<ConfigMap>("default");
    for (name, policy, child_stays) in [
        ("background", PropagationPolicy::Background, false),
        ("foreground", PropagationPolicy::Foreground, false),
        ("orphan", PropagationPolicy::Orphan, true),
    ] {
        let owner: ConfigMap = c.create("default", map(name, None)).await;
        let child = format!("{name}-child");
        let middle: ConfigMap = c.create("default", map(&child, Some(&owner))).await;
        let leaf = format!("{name}-leaf");
        c.create::<ConfigMap>("default", map(&leaf, Some(&middle))).await;
        let params = DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() };
        api.delete(name, &params).await.unwrap();
        eventually(name, || async {
            let owner = api.get_opt(name).await.unwrap();
            let child = api.get_opt(&child).await.unwrap();
            let leaf = api.get_opt(&leaf).await.unwrap();
            let freed = child.as_ref().is_some_and(|m| m.owner_references().is_empty());
            let settled = if child_stays { freed && leaf.is_some() } else { child.is_none() && leaf.is_none() };
            (owner.is_none() && settled).then_some(())
        })
        .await;
    }
    // One whose owner never was.
    let mut ghost = ConfigMap::default();
    ghost.metadata.name = Some("ghost".into());
    ghost.metadata.uid = Some("b2a3e7c0-0000-4000-8000-000000000001".into());
    c.create::<ConfigMap>("default", map("lost", Some(&ghost))).await;
    eventually("the lost one goes", || async { api.get_opt("lost").await.unwrap().is_none().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_in_a_circle_do_not_wait_for_each_other() {
    let c = Cluster::start().await;
    let api = c.api::<ConfigMap>("default");
    let names = ["one", "two", "three"];
    let mut made = vec![];
    for name in names {
        made.push(c.create::<ConfigMap>("default", map(name, None)).await);
    }
    for (i, name) in names.iter().enumerate() {
        let owner = map(name, Some(&made[(i + 2) % 3]))["metadata"]["ownerReferences"].clone();
        let patch = Patch::Merge(json!({"metadata": {"ownerReferences": owner}}));
        api.patch(name, &PatchParams::default(), &patch).await.unwrap();
    }
    let params = DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() };
    api.delete("one", &params).await.unwrap();
    eventually("all of the circle go", || async {
        let left = api.list(&ListParams::default()).await.unwrap().items;
        left.iter().all(|m| !names.contains(&&*m.name_any())).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_takes_its_sets_and_pods_along() {
    let c = Cluster::start().await;
    c.node("n1").await;
    c.run_pods();
    c.create::<Deployment>(
        "default",
        json!({"metadata": {"name": "web"}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "a"}]}}}}),
    )
    .await;
    let pods = c.api::<Pod>("default");
    let count = || async { pods.list(&ListParams::default()).await.unwrap().items.len() };
    eventually("pods come", || async { (count().await == 2).then_some(()) }).await;
    c.api::<Deployment>("default").delete("web", &DeleteParams::background()).await.unwrap();
    eventually("pods go", || async { (count().await == 0).then_some(()) }).await;
    let sets = c.api::<ReplicaSet>("default").list(&ListParams::default()).await.unwrap();
    assert!(sets.items.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_ends_with_all_it_holds() {
    let c = Cluster::start().await;
    c.node("n1").await;
    c.run_pods();
    let namespaces = c.all::<Namespace>();
    let ns: Namespace = serde_json::from_value(json!({"metadata": {"name": "short"}})).unwrap();
    namespaces.create(&PostParams::default(), &ns).await.unwrap();
    let accounts = c.api::<k8s_openapi::api::core::v1::ServiceAccount>("short");
    let maps = c.api::<ConfigMap>("short");
    eventually("account and CA come", || async {
        let both = accounts.get_opt("default").await.unwrap().is_some()
            && maps.get_opt("kube-root-ca.crt").await.unwrap().is_some();
        both.then_some(())
    })
    .await;
    c.create::<Secret>("short", json!({"metadata": {"name": "s"}})).await;
    c.create::<Pod>("short", json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "a"}]}}))
        .await;
    // One that is held for a while shows in the conditions.
    c.create::<ConfigMap>("short", json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}})).await;
    namespaces.delete("short", &DeleteParams::default()).await.unwrap();
    eventually("the remains are told", || async {
        let ns = namespaces.get("short").await.unwrap();
        let conditions = ns.status?.conditions.unwrap_or_default();
        conditions.iter().find(|c| c.type_ == "NamespaceFinalizersRemaining" && c.status == "True").cloned()
    })
    .await;
    let free = json!({"metadata": {"finalizers": null}});
    maps.patch("held", &kube::api::PatchParams::default(), &kube::api::Patch::Merge(free)).await.unwrap();
    eventually("it ends", || async { namespaces.get_opt("short").await.unwrap().is_none().then_some(()) }).await;
}
