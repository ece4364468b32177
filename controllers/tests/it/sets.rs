use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, StatefulSet};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually};

const REVISION: &str = "controller-revision-hash";

async fn cluster() -> Cluster {
    let c = Cluster::start().await;
    c.node("n1").await;
    c.run_pods();
    c
}

fn db(extra: Value) -> Value {
    let mut v = json!({"metadata": {"name": "db"}, "spec": {"replicas": 3, "serviceName": "db",
        "selector": {"matchLabels": {"app": "db"}}, "template": {"metadata": {"labels": {"app": "db"}},
        "spec": {"containers": [{"name": "c", "image": "a"}]}}}});
    for (k, x) in extra.as_object().unwrap() {
        v["spec"][k] = x.clone();
    }
    v
}

fn image(name: &str) -> Patch<Value> {
    Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": name}]}}}}))
}

async fn pods(c: &Cluster) -> Vec<Pod> {
    c.api::<Pod>("default").list(&ListParams::default().labels("app=db")).await.unwrap().items
}

async fn images(c: &Cluster) -> Vec<String> {
    let one = |p: &Pod| format!("{}={}", p.name_any(), p.spec.as_ref().unwrap().containers[0].image.as_ref().unwrap());
    pods(c).await.iter().map(one).collect()
}

async fn rolled_out(c: &Cluster, replicas: i32) -> StatefulSet {
    let api = c.api::<StatefulSet>("default");
    eventually("the rollout is over", || async {
        let s = api.get("db").await.unwrap();
        let t = s.status.clone()?;
        let done = t.observed_generation == s.metadata.generation
            && t.current_revision == t.update_revision
            && (t.replicas, t.ready_replicas.unwrap_or(0)) == (replicas, replicas)
            && (t.updated_replicas.unwrap_or(0), t.available_replicas.unwrap_or(0)) == (replicas, replicas);
        done.then_some(s)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_grows_rolls_out_and_back() {
    let c = cluster().await;
    let api = c.api::<StatefulSet>("default");
    c.create::<StatefulSet>("default", db(json!({}))).await;
    let first = rolled_out(&c, 3).await.status.unwrap().current_revision.unwrap();
    let all = pods(&c).await;
    let mut made: Vec<_> =
        all.iter().map(|p| (p.metadata.creation_timestamp.clone().unwrap().0, p.name_any())).collect();
    made.sort();
    assert_eq!(made.iter().map(|(_, n)| n.as_str()).collect::<Vec<_>>(), ["db-0", "db-1", "db-2"]);
    assert!(all.iter().all(|p| p.labels()[REVISION] == first));
    assert_eq!(all[2].labels()["apps.kubernetes.io/pod-index"], "2");

    // Only what lies at or above the partition changes.
    let part = |n: i32| Patch::Merge(json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": n}}}}));
    api.patch("db", &PatchParams::default(), &part(2)).await.unwrap();
    api.patch("db", &PatchParams::default(), &image("b")).await.unwrap();
    eventually("the last pod is new", || async { (images(&c).await == ["db-0=a", "db-1=a", "db-2=b"]).then_some(()) })
        .await;
    c.api::<Pod>("default").delete("db-0", &DeleteParams::default()).await.unwrap();
    eventually("a pod below it comes back as it was", || async {
        let s = api.get("db").await.unwrap().status?;
        (s.ready_replicas == Some(3) && images(&c).await == ["db-0=a", "db-1=a", "db-2=b"]).then_some(())
    })
    .await;
    api.patch("db", &PatchParams::default(), &part(0)).await.unwrap();
    rolled_out(&c, 3).await;
    assert_eq!(images(&c).await, ["db-0=b", "db-1=b", "db-2=b"]);

    // Back: the first revision gets a new number.
    api.patch("db", &PatchParams::default(), &image("a")).await.unwrap();
    let back = eventually("all are as at first", || async {
        let s = rolled_out(&c, 3).await.status?;
        (s.current_revision.as_deref() == Some(first.as_str())).then_some(s)
    })
    .await;
    assert_eq!(back.collision_count, Some(0));
    let revisions = c.api::<ControllerRevision>("default").list(&ListParams::default()).await.unwrap().items;
    let mut numbers: Vec<(i64, bool)> =
        revisions.iter().map(|r| (r.revision.unwrap(), r.name_any() == first)).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [(2, false), (3, true)]);

    let size = |n: i32| Patch::Merge(json!({"spec": {"replicas": n}}));
    api.patch("db", &PatchParams::default(), &size(1)).await.unwrap();
    rolled_out(&c, 1).await;
    assert_eq!(images(&c).await, ["db-0=a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_stay_or_go_as_asked() {
    let c = cluster().await;
    let api = c.api::<StatefulSet>("default");
    let claims = || async {
        let list = c.api::<PersistentVolumeClaim>("default").list(&ListParams::default()).await.unwrap().items;
        list.iter().map(|c| c.name_any()).collect::<Vec<_>>()
    };
    let template = json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Mi"}}}}]);
    let policy = json!({"whenDeleted": "Delete", "whenScaled": "Delete"});
    let spec = json!({"replicas": 2, "podManagementPolicy": "Parallel", "volumeClaimTemplates": template,
        "persistentVolumeClaimRetentionPolicy": policy});
    c.create::<StatefulSet>("default", db(spec)).await;
    eventually("both have a claim", || async { (claims().await == ["data-db-0", "data-db-1"]).then_some(()) }).await;
    eventually("both pods are there", || async { (pods(&c).await.len() == 2).then_some(()) }).await;
    let pod = &pods(&c).await[1];
    let volume = &pod.spec.as_ref().unwrap().volumes.as_ref().unwrap()[0];
    assert_eq!(volume.persistent_volume_claim.as_ref().unwrap().claim_name, "data-db-1");
    let size = Patch::Merge(json!({"spec": {"replicas": 1}}));
    api.patch("db", &PatchParams::default(), &size).await.unwrap();
    // No volumes are made here, so nobody takes the finalizer off: that the claim is being deleted is enough.
    let going = |name: &'static str| {
        let api = c.api::<PersistentVolumeClaim>("default");
        async move { api.get_opt(name).await.unwrap().is_none_or(|c| c.metadata.deletion_timestamp.is_some()) }
    };
    eventually("one goes with its pod", || async { going("data-db-1").await.then_some(()) }).await;
    assert!(!going("data-db-0").await);
    api.delete("db", &DeleteParams::background()).await.unwrap();
    eventually("the other goes with the set", || async { going("data-db-0").await.then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_runs_on_every_node_that_fits() {
    let c = cluster().await;
    c.node("n2").await;
    let api = c.api::<DaemonSet>("default");
    let spec = json!({"selector": {"matchLabels": {"app": "db"}}, "template": {"metadata": {"labels": {"app": "db"}},
        "spec": {"containers": [{"name": "c", "image": "a"}]}}});
    c.create::<DaemonSet>("default", json!({"metadata": {"name": "db"}, "spec": spec})).await;
    let all_new = |nodes: i32| {
        let api = api.clone();
        async move {
            eventually(&format!("all {nodes} are as asked"), || async {
                let d = api.get("db").await.unwrap();
                let s = d.status?;
                let done = s.observed_generation == d.metadata.generation
                    && (s.desired_number_scheduled, s.number_ready, s.current_number_scheduled)
                        == (nodes, nodes, nodes)
                    && (s.updated_number_scheduled, s.number_available) == (Some(nodes), Some(nodes));
                done.then_some(())
            })
            .await;
        }
    };
    all_new(2).await;
    let on = |list: Vec<Pod>| {
        let mut all: Vec<String> = list.into_iter().map(|p| p.spec.unwrap().node_name.unwrap_or_default()).collect();
        all.sort();
        all
    };
    assert_eq!(on(pods(&c).await), ["n1", "n2"]);
    c.node("n3").await;
    all_new(3).await;
    assert_eq!(on(pods(&c).await), ["n1", "n2", "n3"]);

    api.patch("db", &PatchParams::default(), &image("b")).await.unwrap();
    all_new(3).await;
    assert!(images(&c).await.iter().all(|i| i.ends_with("=b")));
    let surge =
        Patch::Merge(json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}}));
    api.patch("db", &PatchParams::default(), &surge).await.unwrap();
    api.patch("db", &PatchParams::default(), &image("a")).await.unwrap();
    all_new(3).await;
    eventually("the old ones go", || async { (pods(&c).await.len() == 3).then_some(()) }).await;
    assert!(images(&c).await.iter().all(|i| i.ends_with("=a")));
    let revisions = c.api::<ControllerRevision>("default").list(&ListParams::default()).await.unwrap().items;
    let mut numbers: Vec<i64> = revisions.iter().map(|r| r.revision.unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3]);

    // A node that repels loses its pod; one that is only closed keeps it.
    let nodes = c.all::<Node>();
    let taint =
        |effect: &str| Patch::Strategic(json!({"spec": {"taints": [{"key": "example.com/off", "effect": effect}]}}));
    nodes.patch("n1", &PatchParams::default(), &taint("NoExecute")).await.unwrap();
    eventually("n1 has none", || async { (on(pods(&c).await) == ["n2", "n3"]).then_some(()) }).await;
    nodes.patch("n2", &PatchParams::default(), &Patch::Merge(json!({"spec": {"unschedulable": true}}))).await.unwrap();
    all_new(2).await;
    // One that failed is replaced.
    let failed = pods(&c).await.remove(0);
    let status = Patch::Merge(json!({"status": {"phase": "Failed"}}));
    c.api::<Pod>("default").patch_status(&failed.name_any(), &PatchParams::default(), &status).await.unwrap();
    eventually("another comes", || async {
        let now = pods(&c).await;
        (now.iter().all(|p| p.uid() != failed.uid()) && on(now) == ["n2", "n3"]).then_some(())
    })
    .await;
    all_new(2).await;
}
