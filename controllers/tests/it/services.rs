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

/// Addresses of a range: one for each Service, the one that is asked for, none when there is none, and again when one
/// becomes free; and one node that is ready answers for each.
#[tokio::test(flavor = "multi_thread")]
async fn load_balancers_get_addresses_of_a_range() {
    let c = Cluster::start_with(|s| s.load_balancer = "192.0.2.10-192.0.2.11".parse().unwrap()).await;
    c.node("n1").await;
    c.node("n2").await;
    let make = |name: &str, asked: Option<&str>| {
        json!({"metadata": {"name": name}, "spec": {"type": "LoadBalancer", "loadBalancerIP": asked,
            "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]}})
    };
    let api = c.api::<Service>("default");
    let seen = async |name: &str| {
        let status = api.get(name).await.unwrap().status.unwrap_or_default();
        let ingress = status.load_balancer.and_then(|l| l.ingress).unwrap_or_default();
        let ip = ingress.first().and_then(|i| i.ip.clone());
        let node = status.conditions.unwrap_or_default().into_iter().find(|c| c.type_ == "skiff.dev/Announced");
        (ip, node.map(|c| c.message))
    };
    c.create::<Service>("default", make("asks", Some("192.0.2.10"))).await;
    let first = eventually("the address that was asked for", || async {
        let (ip, node) = seen("asks").await;
        (ip.as_deref() == Some("192.0.2.10")).then_some(node?)
    })
    .await;
    c.create::<Service>("default", make("takes", None)).await;
    let second = eventually("the other address", || async {
        let (ip, node) = seen("takes").await;
        (ip.as_deref() == Some("192.0.2.11")).then_some(node?)
    })
    .await;
    assert_ne!(first, second, "one node answers for both");
    c.create::<Service>("default", make("waits", None)).await;
    let events = c.api::<k8s_openapi::api::core::v1::Event>("default");
    eventually("an event says why there is none", || async {
        let list = events.list(&ListParams::default().fields("involvedObject.name=waits")).await.unwrap();
        let why = "no address is free in 192.0.2.10-192.0.2.11";
        list.items.iter().any(|e| e.message.as_deref().is_some_and(|m| m.contains(why))).then_some(())
    })
    .await;
    assert_eq!(seen("waits").await, (None, None));
    // A node that is not ready answers for nothing; the other does for both.
    let gone = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    c.all::<k8s_openapi::api::core::v1::Node>()
        .patch_status(&first, &PatchParams::default(), &Patch::Strategic(gone))
        .await
        .unwrap();
    eventually("the other node", || async { (seen("asks").await.1.as_deref() == Some(&*second)).then_some(()) }).await;
    // A Service of another type gives its address back, and who waits gets it.
    let plain = json!({"spec": {"type": "ClusterIP", "loadBalancerIP": null}});
    api.patch("asks", &PatchParams::default(), &Patch::Merge(plain)).await.unwrap();
    eventually("the address that was freed", || async {
        let (ip, node) = seen("waits").await;
        (ip.as_deref() == Some("192.0.2.10") && node.as_deref() == Some(&*second)).then_some(())
    })
    .await;
    assert_eq!(seen("asks").await, (None, None));
    // And by the annotation one moves, when what it wants is free.
    api.delete("waits", &DeleteParams::default()).await.unwrap();
    let asked = json!({"metadata": {"annotations": {"skiff.dev/load-balancer-ip": "192.0.2.10"}}});
    eventually("the deletion", || async { api.get_opt("waits").await.unwrap().is_none().then_some(()) }).await;
    api.patch("takes", &PatchParams::default(), &Patch::Merge(asked)).await.unwrap();
    eventually("the move", || async { (seen("takes").await.0.as_deref() == Some("192.0.2.10")).then_some(()) }).await;
}
