use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler as Hpa, HorizontalPodAutoscalerStatus};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::cluster::{Cluster, eventually};

/// Status, reason and message of a condition.
fn condition(s: &HorizontalPodAutoscalerStatus, kind: &str) -> Option<(String, String, String)> {
    let c = s.conditions.as_ref()?.iter().find(|c| c.type_ == kind)?;
    Some((c.status.clone(), c.reason.clone()?, c.message.clone()?))
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_hold_and_missing_numbers_are_told() {
    let c = Cluster::start().await;
    let accounts = c.api::<ServiceAccount>("default");
    eventually("pods can have an account", || async { accounts.get_opt("default").await.unwrap() }).await;
    let hpas = c.api::<Hpa>("default");
    let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}});
    let spec = json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        "minReplicas": 2, "maxReplicas": 4, "metrics": [cpu]});
    c.create::<Hpa>("default", json!({"metadata": {"name": "web"}, "spec": spec})).await;
    let told = |kind: &'static str, status: &'static str| {
        let hpas = hpas.clone();
        async move {
            let s = hpas.get("web").await.unwrap().status?;
            condition(&s, kind).filter(|c| c.0 == status)
        }
    };
    let no = eventually("the target is missed", || told("AbleToScale", "False")).await;
    assert_eq!(no.1, "FailedGetScale");
    let text = "unable to get the target's current scale: deployments.apps \"web\" not found";
    assert!(no.2.ends_with(text), "{}", no.2);

    let web = json!({"metadata": {"name": "web"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "a"}]}}}});
    c.create::<Deployment>("default", web).await;
    // A change of the autoscaler is looked at without waiting for its period.
    let touch = |max: i32| Patch::Merge(json!({"spec": {"maxReplicas": max}}));
    hpas.patch("web", &PatchParams::default(), &touch(5)).await.unwrap();
    let deployments = c.api::<Deployment>("default");
    eventually("there are as many as the least", || async {
        let d = deployments.get("web").await.unwrap();
        (d.spec.replicas == Some(2)).then_some(())
    })
    .await;
    let s = eventually("the scaling is told", || async {
        hpas.get("web").await.unwrap().status.filter(|s| s.last_scale_time.is_some())
    })
    .await;
    assert_eq!((s.current_replicas, s.desired_replicas), (Some(1), 2));
    assert_eq!(condition(&s, "AbleToScale").unwrap().1, "SucceededRescale");

    hpas.patch("web", &PatchParams::default(), &touch(6)).await.unwrap();
    let no = eventually("the numbers are missed", || told("ScalingActive", "False")).await;
    assert_eq!(no.1, "FailedGetResourceMetric");
    let text = "the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for \
                resource cpu: no metrics returned from resource metrics API";
    assert_eq!(no.2, text);
}
