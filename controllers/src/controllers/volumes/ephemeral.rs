//! Volumes that live as long as a pod: each gets a claim `POD-VOLUME` that the pod owns, so that both end together.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use super::{Use, claims_of, made_for};
use crate::controllers::pods;
use crate::runtime::controller_ref;
use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::{Informer, controller_of, join, key_of};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{self, Error, Outcome, Reconcile};

/// The controller.
pub struct Controller {
    client: Client,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    events: Recorder,
    queue: Arc<Queue>,
}

fn wants(pod: &Pod) -> bool {
    pods::active(pod) && claims_of(pod).iter().any(|u| u.ephemeral)
}

impl Controller {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, pods: Informer<Pod>, claims: Informer<PersistentVolumeClaim>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        pods.on_change(move |c| {
            if c.old.is_none() && c.new.as_ref().is_some_and(|p| wants(p)) {
                q.add(key_of(&**c.latest()));
            }
        });
        let q = Arc::clone(&queue);
        claims.on_change(move |c| {
            let claim = c.latest();
            // A claim that went while its pod is there is made again.
            if c.new.is_none()
                && let Some(owner) = controller_of(&**claim).filter(|r| r.kind == "Pod")
            {
                q.add(join(claim.metadata.namespace.as_deref().unwrap_or_default(), &owner.name));
            }
        });
        let events = Recorder::start(client.clone(), "ephemeral_volume");
        Arc::new(Self { client, pods, claims, events, queue })
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(pod) = self.pods.get(key).filter(|p| wants(p)) else { return Ok(None) };
        for u in claims_of(&pod).iter().filter(|u| u.ephemeral) {
            self.ensure(&pod, u).await?;
        }
        Ok(None)
    }

    async fn ensure(&self, pod: &Pod, u: &Use) -> Result<(), Error> {
        let namespace = pod.namespace().unwrap_or_default();
        if let Some(claim) = self.claims.get(&join(&namespace, &u.claim)) {
            if !made_for(&claim, pod) {
                let text = format!(
                    "ephemeral volume {}: PVC {namespace}/{} was not created for pod {namespace}/{} (pod is not owner)",
                    u.volume,
                    u.claim,
                    pod.name_any()
                );
                self.events.note(pod, Level::Warning, "FailedBinding", text.clone());
                return Err(Error::Other(text));
            }
            return Ok(());
        }
        let Some(claim) = claim(pod, u) else { return Ok(()) };
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        match api.create(&PostParams::default(), &claim).await {
            Ok(_) => Ok(()),
            Err(e) if worker::namespace_terminating(&e) => Ok(()),
            Err(e) => {
                let text = format!("ephemeral volume {}: create PVC {}: {}", u.volume, u.claim, worker::text(&e));
                if worker::code(&e) != 409 {
                    self.events.note(pod, Level::Warning, "FailedBinding", text);
                }
                Err(e.into())
            }
        }
    }
}

/// The claim of an ephemeral volume.
fn claim(pod: &Pod, u: &Use) -> Option<PersistentVolumeClaim> {
    let volumes = pod.spec.as_ref()?.volumes.as_ref()?;
    let template = volumes.iter().find(|v| v.name == u.volume)?.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
    let mut claim = PersistentVolumeClaim { spec: Some(template.spec.clone()), ..PersistentVolumeClaim::default() };
    if let Some(meta) = &template.metadata {
        claim.metadata.labels.clone_from(&meta.labels);
        claim.metadata.annotations.clone_from(&meta.annotations);
    }
    claim.metadata.name = Some(u.claim.clone());
    claim.metadata.namespace.clone_from(&pod.metadata.namespace);
    claim.metadata.owner_references = Some(vec![controller_ref(pod)]);
    Some(claim)
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "ephemeral-volume-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.pods.all().iter().filter(|p| wants(p)).for_each(|p| self.queue.add(key_of(&**p)));
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
    fn the_claim_of_a_volume() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "1"}, "spec": {
            "containers": [], "volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {
                "metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}}}]}}))
            .unwrap();
        let u = &claims_of(&pod)[0];
        let c = claim(&pod, u).unwrap();
        assert_eq!((c.name_any().as_str(), c.labels()["a"].as_str()), ("p-scratch", "b"));
        assert!(made_for(&c, &pod));
        assert_eq!(c.spec.unwrap().access_modes.unwrap(), ["ReadWriteOnce"]);
    }
}
