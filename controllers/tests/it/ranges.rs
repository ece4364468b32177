use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use crate::cluster::{Cluster, eventually};

/// A range outlives its deletion for as long as an address is in it alone, and ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_stays_while_an_address_needs_it() {
    let c = Cluster::start().await;
    let (ranges, addresses) = (c.all::<ServiceCIDR>(), c.all::<IPAddress>());
    let ready = |status: &'static str, reason: &'static str| {
        let ranges = ranges.clone();
        eventually("the condition", move || {
            let ranges = ranges.clone();
            async move {
                let range = ranges.get_opt("more").await.unwrap()?;
                let all = range.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
                let said = all.iter().any(|c| c.type_ == "Ready" && c.status == status && c.reason == reason);
                (said && range.finalizers() == ["networking.k8s.io/service-cidr-finalizer"]).then_some(())
            }
        })
    };
    let object = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["192.168.200.0/28"]}});
    ranges.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    ready("True", "").await;
    let object = json!({"metadata": {"name": "192.168.200.1", "labels": {
        "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io", "ipaddress.kubernetes.io/ip-family": "IPv4"}},
        "spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "kubernetes"}}});
    addresses.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    ranges.delete("more", &DeleteParams::default()).await.unwrap();
    ready("False", "Terminating").await;
    addresses.delete("192.168.200.1", &DeleteParams::default()).await.unwrap();
    eventually("the range goes", || async { ranges.get_opt("more").await.unwrap().is_none().then_some(()) }).await;
}
