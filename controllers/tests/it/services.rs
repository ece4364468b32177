use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{Endpoints, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
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

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_written_by_hand_get_slices() {
    let c = Cluster::start().await;
    c.create::<Service>("default", json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}})).await;
    let by_hand = json!({"metadata": {"name": "db"}, "subsets": [
        {"addresses": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}], "ports": [{"port": 5432}]}]});
    c.create::<Endpoints>("default", by_hand).await;
    let slices = c.api::<EndpointSlice>("default");
    let mine = ListParams::default().labels("kubernetes.io/service-name=db");
    let addresses = || async {
        let list = slices.list(&mine).await.unwrap();
        let all = list.items.iter().flat_map(|s| s.endpoints.iter().flatten());
        (list.items.len(), all.map(|e| e.addresses[0].clone()).collect::<Vec<_>>())
    };
    eventually("both addresses in one slice", || async {
        (addresses().await == (1, vec!["192.0.2.1".to_owned(), "192.0.2.2".to_owned()])).then_some(())
    })
    .await;
    let endpoints = c.api::<Endpoints>("default");
    let one = json!({"subsets": [{"addresses": [{"ip": "192.0.2.3"}], "ports": [{"port": 5432}]}]});
    endpoints.patch("db", &PatchParams::default(), &Patch::Merge(one)).await.unwrap();
    eventually("the slice follows", || async {
        (addresses().await == (1, vec!["192.0.2.3".to_owned()])).then_some(())
    })
    .await;
    endpoints.delete("db", &DeleteParams::default()).await.unwrap();
    eventually("the slice goes", || async { (addresses().await.0 == 0).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn token_secrets_are_filled_and_go_with_their_account() {
    let c = Cluster::start().await;
    c.create::<ServiceAccount>("default", json!({"metadata": {"name": "robot"}})).await;
    let asked = json!({"type": "kubernetes.io/service-account-token",
        "metadata": {"name": "key", "annotations": {"kubernetes.io/service-account.name": "robot"}}});
    c.create::<Secret>("default", asked).await;
    let secrets = c.api::<Secret>("default");
    let token = eventually("a token", || async {
        let data = secrets.get("key").await.unwrap().data?;
        (data.get("namespace")?.0 == b"default" && data.contains_key("ca.crt")).then_some(())?;
        String::from_utf8(data.get("token")?.0.clone()).ok()
    })
    .await;
    let review =
        TokenReview { spec: TokenReviewSpec { token, ..TokenReviewSpec::default() }, ..TokenReview::default() };
    let reviews: kube::Api<TokenReview> = c.all();
    let known = || async {
        let status = reviews.create(&PostParams::default(), &review).await.unwrap().status?;
        status.user.and_then(|u| u.username)
    };
    assert_eq!(known().await.as_deref(), Some("system:serviceaccount:default:robot"));
    c.api::<ServiceAccount>("default").delete("robot", &DeleteParams::default()).await.unwrap();
    eventually("the Secret goes", || async { secrets.get_opt("key").await.unwrap().is_none().then_some(()) }).await;
    assert_eq!(known().await, None);
}
