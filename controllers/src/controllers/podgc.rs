//! Pods that nobody else will ever remove: too many that ended, those bound to nodes that are gone, and those that
//! were deleted before they had a node.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};

use super::pods;
use crate::runtime::informer::Informer;
use crate::runtime::now;
use crate::runtime::queue::Queue;
use crate::runtime::worker::{Error, Outcome, Reconcile, found};

/// Ended pods that are kept.
const ENDED_MAX: usize = 12_500;
const PERIOD: Duration = Duration::from_secs(20);
/// A node must be gone for this long: its pods may come by the watch before it does.
const QUARANTINE: Duration = Duration::from_secs(40);
const ALL: &str = "all";

/// The collector of pods.
pub struct Controller {
    client: Client,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    missing: parking_lot::Mutex<std::collections::HashMap<String, tokio::time::Instant>>,
    queue: Queue,
}

impl Controller {
    /// Makes the controller.
    #[must_use]
    pub fn new(client: Client, nodes: Informer<Node>, pods: Informer<Pod>) -> Arc<Self> {
        Arc::new(Self { client, nodes, pods, missing: parking_lot::Mutex::default(), queue: Queue::default() })
    }

    async fn sync(&self) -> Outcome {
        let all = self.pods.all();
        for pod in excess(&all, ENDED_MAX) {
            self.remove(&pod, None).await?;
        }
        let gone: Vec<&Arc<Pod>> =
            all.iter().filter(|p| !pods::node(p).is_empty() && self.nodes.get(pods::node(p)).is_none()).collect();
        let due: Vec<Arc<Pod>> = {
            let mut missing = self.missing.lock();
            missing.retain(|n, _| gone.iter().any(|p| pods::node(p) == n));
            let time = tokio::time::Instant::now();
            let long = |p: &Pod| {
                let since = missing.entry(pods::node(p).to_owned()).or_insert(time);
                time.duration_since(*since) >= QUARANTINE
            };
            let mut long = long;
            gone.into_iter().filter(|p| long(p)).cloned().collect()
        };
        for pod in due {
            // The cache may be behind: the node is asked for before its pods go.
            let nodes: Api<Node> = Api::all(self.client.clone());
            if found(nodes.get(pods::node(&pod)).await)?.is_none() {
                self.remove(&pod, Some("PodGC: node no longer exists")).await?;
            }
        }
        for pod in all.iter().filter(|p| pods::deleting(p) && pods::node(p).is_empty()) {
            self.remove(pod, None).await?;
        }
        Ok(Some(PERIOD))
    }

    /// Removes at once; a pod that has not ended is marked as failed first, so that its owner learns of it.
    async fn remove(&self, pod: &Pod, why: Option<&str>) -> Result<(), Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let name = pod.name_any();
        if !pods::finished(pod) {
            let mut status = serde_json::json!({"phase": "Failed"});
            if let Some(text) = why {
                status["conditions"] = serde_json::json!([{"type": "DisruptionTarget", "status": "True",
                    "reason": "DeletionByPodGC", "message": text, "lastTransitionTime": now()}]);
            }
            let patch = serde_json::json!({"metadata": {"uid": pod.uid()}, "status": status});
            found(api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        }
        let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default().grace_period(0) };
        found(api.delete(&name, &params).await)?;
        Ok(())
    }
}

/// The oldest ended pods beyond a number.
fn excess(all: &[Arc<Pod>], most: usize) -> Vec<Arc<Pod>> {
    let mut ended: Vec<Arc<Pod>> = all.iter().filter(|p| pods::finished(p) && !pods::deleting(p)).cloned().collect();
    let number = ended.len().saturating_sub(most);
    ended.sort_by_key(|p| (p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.name_any()));
    ended.truncate(number);
    ended
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync().boxed()
    }

    fn resync(&self) {
        self.queue.add(ALL);
    }

    fn workers(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_oldest_ended_pods_go() {
        let pod = |name: &str, day: u8, phase: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name,
                    "creationTimestamp": format!("2026-01-{day:02}T00:00:00Z")}, "status": {"phase": phase}}))
                .unwrap(),
            )
        };
        let all =
            [pod("new", 9, "Failed"), pod("old", 1, "Succeeded"), pod("runs", 1, "Running"), pod("mid", 5, "Failed")];
        let names: Vec<String> = excess(&all, 1).iter().map(|p| p.name_any()).collect();
        assert_eq!(names, ["old", "mid"]);
        assert!(excess(&all, 3).is_empty());
    }
}
