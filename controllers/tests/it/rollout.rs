use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use crate::cluster::{Cluster, eventually};

fn web(replicas: i32, image: &str) -> serde_json::Value {
    json!({"metadata": {"name": "web"}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": image, "resources": {"requests": {"cpu": "100m"}}}]}},
    }})
}

async fn complete(c: &Cluster, revision: &str) -> Deployment {
    let api = c.api::<Deployment>("default");
    eventually("the rollout completes", || async {
        let d = api.get("web").await.unwrap();
        let s = d.status.clone().unwrap_or_default();
        let progressing = s.conditions.iter().flatten().find(|c| c.type_.as_deref() == Some("Progressing"));
        let done = progressing.is_some_and(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable"))
            && s.observed_generation == d.metadata.generation
            && s.updated_replicas == d.spec.replicas
            && s.available_replicas == d.spec.replicas
            && s.replicas == d.spec.replicas
            && d.annotations().get("deployment.kubernetes.io/revision").map(String::as_str) == Some(revision);
        done.then_some(d)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_rolls_out_again_and_back() {
    let c = Cluster::start().await;
    c.node("n1").await;
    c.run_pods();
    c.create::<Deployment>("default", web(3, "a")).await;
    complete(&c, "1").await;
    let pods = c.api::<Pod>("default").list(&ListParams::default()).await.unwrap();
    assert_eq!(pods.items.len(), 3);
    assert!(pods.items.iter().all(|p| p.spec.as_ref().unwrap().node_name.as_deref() == Some("n1")));

    let api = c.api::<Deployment>("default");
    let to = |image: &str| web(3, image);
    api.patch("web", &PatchParams::default(), &Patch::Merge(to("b"))).await.unwrap();
    complete(&c, "2").await;
    let sets = c.api::<ReplicaSet>("default").list(&ListParams::default()).await.unwrap();
    let mut sizes: Vec<i32> = sets.items.iter().map(|s| s.spec.replicas.unwrap()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [0, 3]);

    api.patch("web", &PatchParams::default(), &Patch::Merge(to("a"))).await.unwrap();
    complete(&c, "3").await;
    let sets = c.api::<ReplicaSet>("default").list(&ListParams::default()).await.unwrap();
    let templates: Vec<String> = sets.items.iter().map(|s| serde_json::to_string(&s.spec.template).unwrap()).collect();
    assert_eq!(sets.items.len(), 2, "an old set is used again: {templates:#?}");

    api.patch("web", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 1}}))).await.unwrap();
    complete(&c, "3").await;
    let pods = c.api::<Pod>("default");
    eventually("one pod is left", || async {
        (pods.list(&ListParams::default()).await.unwrap().items.len() == 1).then_some(())
    })
    .await;
    let events = c.api::<Event>("default");
    eventually("events tell it", || async {
        let list = events.list(&ListParams::default()).await.unwrap();
        let has = |reason: &str, text: &str| {
            list.items.iter().any(|e| {
                e.reason.as_deref() == Some(reason) && e.message.as_deref().unwrap_or_default().starts_with(text)
            })
        };
        (has("ScalingReplicaSet", "Scaled up replica set web-")
            && has("ScalingReplicaSet", "Scaled down replica set web-")
            && has("SuccessfulCreate", "Created pod: web-")
            && has("SuccessfulDelete", "Deleted pod: web-")
            && has("Scheduled", "Successfully assigned default/web-"))
        .then_some(())
    })
    .await;
}
