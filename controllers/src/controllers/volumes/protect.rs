//! What is in use stays: claims that pods use, and volumes that are bound, keep their finalizer until that ends.
//!
//! A claim is in use while a pod exists that was given a node and names it. A pod without node does not count: no node
//! starts a pod whose claim is being deleted.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt};

use super::{Use, claim_term, claims_of, made_for, volume_phase};
use crate::controllers::pods;
use crate::runtime::informer::{Informer, join, key_of};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{Outcome, Reconcile, found};

const OF_CLAIMS: &str = "kubernetes.io/pvc-protection";
const OF_VOLUMES: &str = "kubernetes.io/pv-protection";

fn held(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|f| f == finalizer)
}

/// What is to be done about a finalizer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Add,
    /// Being deleted: may go if nobody uses it.
    Ask,
    Nothing,
}

pub(super) fn step(meta: &ObjectMeta, finalizer: &str) -> Step {
    match (meta.deletion_timestamp.is_some(), held(meta, finalizer)) {
        (false, false) => Step::Add,
        (true, true) => Step::Ask,
        _ => Step::Nothing,
    }
}

pub(super) fn without(meta: &mut ObjectMeta, finalizer: &str) {
    if let Some(list) = &mut meta.finalizers {
        list.retain(|f| f != finalizer);
    }
}

/// Whether a pod's being there keeps a claim.
fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    if pods::node(pod).is_empty() {
        return false;
    }
    // The containers of a pod whose deletion is down to no grace have ended.
    let shut_down = pods::deleting(pod) && pod.metadata.deletion_grace_period_seconds == Some(0);
    claims_of(pod).iter().any(|Use { claim: name, ephemeral, .. }| {
        Some(name) == claim.metadata.name.as_ref() && (!ephemeral || (!shut_down && made_for(claim, pod)))
    })
}

/// Protects claims.
pub struct Claims {
    client: Client,
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
    queue: Arc<Queue>,
}

impl Claims {
    /// Makes the controller and subscribes it to changes. `pods` must be indexed by their claims.
    #[must_use]
    pub fn new(client: Client, claims: Informer<PersistentVolumeClaim>, pods: Informer<Pod>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        claims.on_change(move |c| {
            if c.new.as_ref().is_some_and(|n| step(&n.metadata, OF_CLAIMS) != Step::Nothing) {
                q.add(key_of(&**c.latest()));
            }
        });
        let (q, known) = (Arc::clone(&queue), claims.clone());
        pods.on_change(move |c| {
            let pod = c.latest();
            let ended =
                c.new.as_ref().is_none_or(|p| pods::finished(p) || pods::deleting(p) || pods::node(p).is_empty());
            for u in claims_of(pod).iter().filter(|_| ended) {
                let key = join(pod.metadata.namespace.as_deref().unwrap_or_default(), &u.claim);
                if known.get(&key).is_some_and(|k| step(&k.metadata, OF_CLAIMS) == Step::Ask) {
                    q.add(key);
                }
            }
        });
        Arc::new(Self { client, claims, pods, queue })
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(claim) = self.claims.get(key) else { return Ok(None) };
        let namespace = claim.namespace().unwrap_or_default();
        let mut new = PersistentVolumeClaim::clone(&claim);
        match step(&claim.metadata, OF_CLAIMS) {
            Step::Nothing => return Ok(None),
            Step::Add => new.metadata.finalizers.get_or_insert_default().push(OF_CLAIMS.to_owned()),
            Step::Ask => {
                if self.pods.with_term(&claim_term(key)).iter().any(|p| uses(p, &claim)) {
                    return Ok(None);
                }
                // The copy may be behind, and a removed finalizer does not come back.
                let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
                if api.list(&ListParams::default()).await?.items.iter().any(|p| uses(p, &claim)) {
                    return Ok(None);
                }
                without(&mut new.metadata, OF_CLAIMS);
            }
        }
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        found(api.replace(&claim.name_any(), &PostParams::default(), &new).await)?;
        Ok(None)
    }
}

impl Reconcile for Claims {
    fn name(&self) -> &'static str {
        "pvc-protection-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.claims.keys().into_iter().for_each(|k| self.queue.add(k));
    }

    fn workers(&self) -> usize {
        1
    }
}

/// Protects volumes.
pub struct Volumes {
    client: Client,
    volumes: Informer<PersistentVolume>,
    queue: Arc<Queue>,
}

impl Volumes {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, volumes: Informer<PersistentVolume>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        volumes.on_change(move |c| {
            if c.new.as_ref().is_some_and(|n| step(&n.metadata, OF_VOLUMES) != Step::Nothing) {
                q.add(key_of(&**c.latest()));
            }
        });
        Arc::new(Self { client, volumes, queue })
    }

    async fn sync(&self, name: &str) -> Outcome {
        let Some(volume) = self.volumes.get(name) else { return Ok(None) };
        let mut new = PersistentVolume::clone(&volume);
        match step(&volume.metadata, OF_VOLUMES) {
            Step::Nothing => return Ok(None),
            Step::Add => new.metadata.finalizers.get_or_insert_default().push(OF_VOLUMES.to_owned()),
            Step::Ask if volume_phase(&volume) == "Bound" => return Ok(None),
            Step::Ask => without(&mut new.metadata, OF_VOLUMES),
        }
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        found(api.replace(name, &PostParams::default(), &new).await)?;
        Ok(None)
    }
}

impl Reconcile for Volumes {
    fn name(&self) -> &'static str {
        "pv-protection-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.volumes.keys().into_iter().for_each(|k| self.queue.add(k));
    }

    fn workers(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn claim() -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "p-scratch", "namespace": "n",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "1", "controller": true}]}}))
        .unwrap()
    }

    #[test]
    fn who_uses_a_claim() {
        let named = json!({"name": "scratch", "persistentVolumeClaim": {"claimName": "p-scratch"}});
        let made = json!({"name": "scratch", "ephemeral": {}});
        let going = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0});
        for (meta, volume, node, phase, want) in [
            (json!({}), &named, "n1", "Running", true),
            (json!({}), &named, "n1", "Succeeded", true),
            (json!({}), &named, "", "Pending", false),
            (going.clone(), &named, "n1", "Running", true),
            (json!({"uid": "1"}), &made, "n1", "Running", true),
            (json!({"uid": "2"}), &made, "n1", "Running", false),
            (going, &made, "n1", "Running", false),
            (json!({}), &json!({"name": "scratch", "emptyDir": {}}), "n1", "Running", false),
        ] {
            let mut pod: Value = json!({"metadata": meta, "spec": {"nodeName": node, "containers": [], "volumes": [volume]},
                "status": {"phase": phase}});
            pod["metadata"]["name"] = "p".into();
            let pod: Pod = serde_json::from_value(pod).unwrap();
            assert_eq!(uses(&pod, &claim()), want, "{:?}", pod.metadata);
        }
    }

    #[test]
    fn steps() {
        let meta = |going: bool, held: bool| -> ObjectMeta {
            let finalizers = if held { vec![OF_CLAIMS] } else { vec![] };
            let going = going.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({"finalizers": finalizers, "deletionTimestamp": going})).unwrap()
        };
        for (going, held, want) in [
            (false, false, Step::Add),
            (false, true, Step::Nothing),
            (true, true, Step::Ask),
            (true, false, Step::Nothing),
        ] {
            assert_eq!(step(&meta(going, held), OF_CLAIMS), want);
        }
    }
}
