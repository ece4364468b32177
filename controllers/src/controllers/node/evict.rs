//! Pods leave nodes whose NoExecute taints they do not tolerate, at once or when their toleration runs out.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};

use super::super::pods;
use crate::manager::node_term;
use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::{Informer, key_of, split};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{Outcome, Reconcile, found};
use crate::runtime::{now, seconds_since};
use crate::scheduler::filter::tolerates;

/// The controller.
pub struct Controller {
    client: Client,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    queue: Arc<Queue>,
    events: Recorder,
}

/// When a pod must leave.
#[derive(Debug, PartialEq)]
enum Stay {
    Forever,
    For(Duration),
    No,
}

/// Decides over a pod from the taints of its node.
fn stay(pod: &Pod, taints: &[Taint]) -> Stay {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let mut left: Option<f64> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let mut takes = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
        if takes.peek().is_none() {
            return Stay::No;
        }
        let limits: Vec<i64> = takes.filter_map(|t| t.toleration_seconds).collect();
        if let Some(shortest) = limits.into_iter().min() {
            let passed = taint.time_added.as_ref().map_or(0.0, seconds_since);
            let rest = shortest as f64 - passed;
            left = Some(left.map_or(rest, |l: f64| l.min(rest)));
        }
    }
    match left {
        None => Stay::Forever,
        Some(l) if l <= 0.0 => Stay::No,
        Some(l) => Stay::For(Duration::from_secs_f64(l)),
    }
}

fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

impl Controller {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, nodes: Informer<Node>, pods: Informer<Pod>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let (q, p) = (Arc::clone(&queue), pods.clone());
        nodes.on_change(move |c| {
            let Some(node) = &c.new else { return };
            let driving = |n: &Node| taints(n).iter().filter(|t| t.effect == "NoExecute").count();
            if driving(node) > 0 || c.old.as_deref().is_some_and(|o| driving(o) > 0) {
                p.with_term(&node_term(&node.name_any())).iter().for_each(|p| q.add(key_of(&**p)));
            }
        });
        let q = Arc::clone(&queue);
        pods.on_change(move |c| {
            let bound = c.new.as_deref().map(pods::node).filter(|n| !n.is_empty());
            if bound.is_some() && c.old.as_deref().map(pods::node) != bound {
                q.add(key_of(&**c.latest()));
            }
        });
        let events = Recorder::start(client.clone(), "taint-eviction-controller");
        Arc::new(Self { client, nodes, pods, queue, events })
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(pod) = self.pods.get(key).filter(|p| !pods::deleting(p)) else { return Ok(None) };
        let Some(node) = self.nodes.get(pods::node(&pod)) else { return Ok(None) };
        match stay(&pod, taints(&node)) {
            Stay::Forever => return Ok(None),
            Stay::For(d) => return Ok(Some(d)),
            Stay::No => {}
        }
        self.events.note(&*pod, Level::Normal, "TaintManagerEviction", format!("Marking for deletion Pod {key}"));
        let (namespace, name) = split(key);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let patch = serde_json::json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": now(),
        }]}});
        found(api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        found(api.delete(name, &params).await)?;
        Ok(None)
    }
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.pods.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn the_shortest_toleration_counts() {
        let taint = || -> Vec<Taint> {
            let t =
                json!([{"key": "a", "effect": "NoExecute", "timeAdded": now()}, {"key": "b", "effect": "NoSchedule"}]);
            serde_json::from_value(t).unwrap()
        };
        let pod = |t: Value| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [], "tolerations": t}})).unwrap()
        };
        assert_eq!(stay(&pod(json!([])), &taint()), Stay::No);
        assert_eq!(stay(&pod(json!([])), &taint()[1..]), Stay::Forever);
        assert_eq!(stay(&pod(json!([{"key": "a", "operator": "Exists"}])), &taint()), Stay::Forever);
        assert_eq!(stay(&pod(json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 0}])), &taint()), Stay::No);
        let two = json!([{"operator": "Exists", "tolerationSeconds": 300}, {"key": "a", "operator": "Exists", "tolerationSeconds": 60}]);
        let Stay::For(d) = stay(&pod(two), &taint()) else { panic!("it stays for a while") };
        assert!(d <= Duration::from_secs(60) && d > Duration::from_secs(55), "{d:?}");
    }
}
