use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ReplicationController, ResourceQuota, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use kube::ResourceExt;
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, EXIT, eventually};

async fn cluster() -> Cluster {
    let c = Cluster::start().await;
    c.node("n1").await;
    c.run_pods();
    let accounts = c.api::<ServiceAccount>("default");
    eventually("pods can have an account", || async { accounts.get_opt("default").await.unwrap() }).await;
    c
}

fn web(kind: &str, replicas: i32) -> Value {
    let selector = if kind == "rc" { json!({"app": "web"}) } else { json!({"matchLabels": {"app": "web"}}) };
    json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas, "selector": selector,
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "a"}]}}}})
}

async fn budget(
    c: &Cluster,
    what: &str,
    want: impl Fn(&PodDisruptionBudgetStatus) -> bool,
) -> PodDisruptionBudgetStatus {
    let api = c.api::<PodDisruptionBudget>("default");
    eventually(what, || async { api.get("web").await.unwrap().status.filter(|s| want(s)) }).await
}

fn reason(s: &PodDisruptionBudgetStatus) -> &str {
    &s.conditions.as_ref().unwrap()[0].reason
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_holds_evictions_back() {
    let c = cluster().await;
    let api = c.api::<Pod>("default");
    c.create::<Deployment>("default", web("deployment", 3)).await;
    let spec = json!({"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}});
    c.create::<PodDisruptionBudget>("default", json!({"metadata": {"name": "web"}, "spec": spec})).await;
    let s = budget(&c, "one may go", |s| s.disruptions_allowed == Some(1)).await;
    assert_eq!((s.expected_pods, s.desired_healthy, s.current_healthy), (Some(3), Some(2), Some(3)));
    assert_eq!(reason(&s), "SufficientPods");

    // A Deployment that cannot make new pods: what is evicted stays away.
    let set = c.api::<ReplicaSet>("default").list(&ListParams::default()).await.unwrap().items.remove(0);
    let gone = Patch::Merge(json!({"spec": {"paused": true}}));
    c.api::<Deployment>("default").patch("web", &PatchParams::default(), &gone).await.unwrap();
    let gated =
        Patch::Strategic(json!({"spec": {"template": {"spec": {"schedulingGates": [{"name": "example.com/no"}]}}}}));
    c.api::<ReplicaSet>("default").patch(&set.name_any(), &PatchParams::default(), &gated).await.unwrap();
    let names: Vec<String> =
        api.list(&ListParams::default()).await.unwrap().items.iter().map(|p| p.name_any()).collect();
    api.evict(&names[0], &EvictParams::default()).await.unwrap();
    let no =
        eventually("another may not go", || async { api.evict(&names[1], &EvictParams::default()).await.err() }).await;
    let kube::Error::Api(no) = no else { panic!("{no}") };
    assert_eq!((no.code, no.reason.as_str()), (429, "TooManyRequests"));
    assert_eq!(no.message, "Cannot evict pod as it would violate the pod's disruption budget.");
    let s = budget(&c, "it is counted", |s| s.current_healthy == Some(2) && s.disrupted_pods.is_none()).await;
    assert_eq!((reason(&s), s.disruptions_allowed), ("InsufficientPods", Some(0)));

    // A pod that nobody answers for cannot be counted in percent.
    let plain = json!({"metadata": {"name": "lone", "labels": {"app": "web", "pod-template-hash": "x"},
        "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "none", "uid": "none", "controller": true}]},
        "spec": {"containers": [{"name": "c", "image": "a"}]}});
    let lone: Pod = serde_json::from_value(plain).unwrap();
    api.create(&PostParams::default(), &lone).await.unwrap();
    // The collector takes it soon; the budget says so until then or has said so before.
    let s = budget(&c, "the count ends or goes on", |s| s.disruptions_allowed == Some(0)).await;
    assert!(matches!(reason(&s), "SyncFailed" | "InsufficientPods"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_is_told_on_the_pod() {
    let c = cluster().await;
    let api = c.api::<Pod>("default");
    let spec = json!({"minAvailable": 0, "selector": {"matchLabels": {"app": "web"}}});
    c.create::<PodDisruptionBudget>("default", json!({"metadata": {"name": "web"}, "spec": spec})).await;
    let pod = json!({"metadata": {"name": "held", "labels": {"app": "web"}, "finalizers": ["example.com/hold"]},
        "spec": {"containers": [{"name": "c", "image": "a"}]}});
    c.create::<Pod>("default", pod).await;
    budget(&c, "it may go", |s| s.disruptions_allowed == Some(1)).await;
    api.evict("held", &EvictParams::default()).await.unwrap();
    let pod = api.get("held").await.unwrap();
    assert!(pod.metadata.deletion_timestamp.is_some());
    let conditions = pod.status.unwrap().conditions.unwrap();
    let told = conditions.iter().find(|c| c.type_ == "DisruptionTarget").unwrap();
    assert_eq!((told.status.as_str(), told.reason.as_deref()), ("True", Some("EvictionByEvictionAPI")));
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    api.patch("held", &PatchParams::default(), &free).await.unwrap();
}

async fn used(c: &Cluster, want: &[(&str, &str)]) {
    let api = c.api::<ResourceQuota>("default");
    eventually(&format!("{want:?} is used"), || async {
        let used = api.get("q").await.unwrap().status?.used?;
        want.iter().all(|(k, v)| used.get(*k).is_some_and(|q| q.0 == *v)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_follows_what_is_there() {
    let c = cluster().await;
    let maps = c.api::<ConfigMap>("default");
    eventually("the namespace is furnished", || async { maps.get_opt("kube-root-ca.crt").await.unwrap() }).await;
    let pod = |name: &str, annotations: Value| {
        json!({"metadata": {"name": name, "annotations": annotations}, "spec": {"containers": [{"name": "c",
            "image": "a", "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "1Gi"}}}]}})
    };
    c.create::<Pod>("default", pod("before", json!({}))).await;
    c.create::<ReplicationController>("default", web("rc", 0)).await;
    let hard = json!({"pods": "3", "requests.cpu": "1", "limits.memory": "4Gi", "configmaps": "2", "services": "5",
        "services.nodeports": "0", "count/deployments.apps": "1", "count/replicationcontrollers": "5",
        "count/widgets.example.com": "1"});
    c.create::<ResourceQuota>("default", json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await;
    used(&c, &[("pods", "1"), ("requests.cpu", "100m"), ("limits.memory", "1Gi"), ("configmaps", "1")]).await;
    used(&c, &[("count/deployments.apps", "0"), ("services.nodeports", "0"), ("count/replicationcontrollers", "1")])
        .await;
    let s = c.api::<ResourceQuota>("default").get("q").await.unwrap().status.unwrap();
    assert!(!s.used.unwrap().contains_key("count/widgets.example.com"), "there is no such kind");

    c.create::<ConfigMap>("default", json!({"metadata": {"name": "a"}})).await;
    let third = serde_json::from_value(json!({"metadata": {"name": "b"}})).unwrap();
    let no = maps.create(&PostParams::default(), &third).await.unwrap_err();
    assert!(
        no.to_string()
            .contains("exceeded quota: q, requested: configmaps=1, used: configmaps=2, limited: configmaps=2")
    );
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    used(&c, &[("configmaps", "1")]).await;
    maps.create(&PostParams::default(), &third).await.unwrap();

    // What has ended uses nothing; what is deleted neither.
    c.create::<Pod>("default", pod("ends", json!({EXIT: "0"}))).await;
    used(&c, &[("pods", "1"), ("requests.cpu", "100m")]).await;
    c.api::<Pod>("default").delete("before", &DeleteParams::default()).await.unwrap();
    used(&c, &[("pods", "0"), ("requests.cpu", "0"), ("limits.memory", "0")]).await;
    c.create::<Deployment>("default", web("deployment", 0)).await;
    used(&c, &[("count/deployments.apps", "1")]).await;
    c.api::<Deployment>("default").delete("web", &DeleteParams::default()).await.unwrap();
    used(&c, &[("count/deployments.apps", "0")]).await;
    c.create::<Service>("default", json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}})).await;
    // The API's own Service is there too.
    used(&c, &[("services", "2")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_gets_what_the_quota_leaves() {
    let c = cluster().await;
    c.create::<ResourceQuota>("default", json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}})).await;
    used(&c, &[("pods", "0")]).await;
    c.create::<Deployment>("default", web("deployment", 2)).await;
    let api = c.api::<Deployment>("default");
    eventually("one pod runs", || async {
        let s = api.get("web").await.unwrap().status?;
        let told = s.conditions?.into_iter().find(|c| c.type_.as_deref() == Some("ReplicaFailure"))?;
        (s.ready_replicas == Some(1) && told.message?.contains("exceeded quota: q, requested: pods=1")).then_some(())
    })
    .await;
    used(&c, &[("pods", "1")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_that_did_not_happen_is_taken_back() {
    let c = cluster().await;
    let api = c.api::<Pod>("default");
    let pod = json!({"metadata": {"name": "stays"}, "spec": {"containers": [{"name": "c", "image": "a"}]}});
    c.create::<Pod>("default", pod).await;
    let said = json!({"status": {"conditions": [{"type": "DisruptionTarget", "status": "True",
        "reason": "EvictionByEvictionAPI", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    api.patch_status("stays", &PatchParams::default(), &Patch::Strategic(said)).await.unwrap();
    eventually("it is taken back", || async {
        let conditions = api.get("stays").await.unwrap().status?.conditions?;
        conditions.into_iter().find(|c| c.type_ == "DisruptionTarget" && c.status == "False" && c.reason.is_none())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replication_controller_keeps_its_number() {
    let c = cluster().await;
    let api = c.api::<ReplicationController>("default");
    c.create::<ReplicationController>("default", web("rc", 2)).await;
    let reports = |n: i32| {
        let api = api.clone();
        async move {
            eventually(&format!("{n} are available"), || async {
                let s = api.get("web").await.unwrap().status?;
                (s.replicas == n && s.available_replicas.unwrap_or(0) == n).then_some(())
            })
            .await;
        }
    };
    reports(2).await;
    let pods = c.api::<Pod>("default");
    let first = pods.list(&ListParams::default()).await.unwrap().items.remove(0);
    pods.delete(&first.name_any(), &DeleteParams::default()).await.unwrap();
    eventually("another comes", || async {
        let now = pods.list(&ListParams::default()).await.unwrap().items;
        (now.len() == 2 && now.iter().all(|p| p.uid() != first.uid())).then_some(())
    })
    .await;
    reports(2).await;
    let size = Patch::Merge(json!({"spec": {"replicas": 0}}));
    api.patch("web", &PatchParams::default(), &size).await.unwrap();
    reports(0).await;
}
