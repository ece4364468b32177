use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

use crate::cluster::{Cluster, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_follow_pods() {
    let c = Cluster::start().await;
    c.node("n1").await;
    c.run_pods();
    c.create::<Service>(
        "default",
        json!({"metadata": {"name": "web"}, "spec": {
        "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}),
    )
    .await;
    let slices = c.api::<EndpointSlice>("default");
    let mine = ListParams::default().labels("kubernetes.io/service-name=web");
    let ready = || async {
        let list = slices.list(&mine).await.unwrap();
        let all = list.items.iter().flat_map(|s| s.endpoints.iter().flatten());
        (list.items.len(), all.filter(|e| e.conditions.as_ref().is_some_and(|c| c.ready == Some(true))).count())
    };
    eventually("an empty slice", || async { (ready().await == (1, 0)).then_some(()) }).await;
    for name in ["a", "b"] {
        c.create::<Pod>(
            "default",
            json!({"metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "a"}]}}),
        )
        .await;
    }
    eventually("two endpoints", || async { (ready().await == (1, 2)).then_some(()) }).await;
    let old = c.api::<Endpoints>("default");
    eventually("two addresses", || async {
        let subsets = old.get_opt("web").await.unwrap()?.subsets?;
        (subsets.first()?.addresses.as_ref()?.len() == 2).then_some(())
    })
    .await;
    c.api::<Pod>("default").delete("a", &DeleteParams::default()).await.unwrap();
    eventually("one endpoint", || async { (ready().await == (1, 1)).then_some(()) }).await;
    c.api::<Service>("default").delete("web", &DeleteParams::default()).await.unwrap();
    eventually("all go", || async {
        (ready().await.0 == 0 && old.get_opt("web").await.unwrap().is_none()).then_some(())
    })
    .await;
}
