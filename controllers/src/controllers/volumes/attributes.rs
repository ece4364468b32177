//! Classes of volume attributes stay while a claim or a volume names them.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};

use super::protect::{Step, step, without};
use crate::runtime::informer::{Change, Informer, Watched, key_of};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{Outcome, Reconcile, found};

const FINALIZER: &str = "kubernetes.io/vac-protection";

/// Classes that a claim wants, has, or is on the way to.
fn of_claim(claim: &PersistentVolumeClaim) -> Vec<&str> {
    let status = claim.status.as_ref();
    let wanted = claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref());
    let current = status.and_then(|s| s.current_volume_attributes_class_name.as_deref());
    let target = status.and_then(|s| s.modify_volume_status.as_ref()?.target_volume_attributes_class_name.as_deref());
    [wanted, current, target].into_iter().flatten().collect()
}

fn of_volume(volume: &PersistentVolume) -> Vec<&str> {
    volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref()).into_iter().collect()
}

/// Protects classes of volume attributes.
pub struct Classes {
    client: Client,
    classes: Informer<VolumeAttributesClass>,
    queue: Arc<Queue>,
}

impl Classes {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(
        client: Client,
        classes: Informer<VolumeAttributesClass>,
        claims: &Informer<PersistentVolumeClaim>,
        volumes: &Informer<PersistentVolume>,
    ) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        classes.on_change(move |c| {
            if c.new.as_ref().is_some_and(|n| step(&n.metadata, FINALIZER) != Step::Nothing) {
                q.add(key_of(&**c.latest()));
            }
        });
        let follow = |known: Informer<VolumeAttributesClass>| {
            let q = Arc::clone(&queue);
            move |named: Vec<&str>| {
                let waiting = |name: &&str| known.get(name).is_some_and(|k| step(&k.metadata, FINALIZER) == Step::Ask);
                named.into_iter().filter(waiting).for_each(|name| q.add(name.to_owned()));
            }
        };
        let ask = follow(classes.clone());
        claims.on_change(move |c| ask(let_go(c, of_claim)));
        let ask = follow(classes.clone());
        volumes.on_change(move |c| ask(let_go(c, of_volume)));
        Arc::new(Self { client, classes, queue })
    }

    async fn sync(&self, name: &str) -> Outcome {
        let Some(class) = self.classes.get(name) else { return Ok(None) };
        let mut new = VolumeAttributesClass::clone(&class);
        match step(&class.metadata, FINALIZER) {
            Step::Nothing => return Ok(None),
            Step::Add => new.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned()),
            Step::Ask => {
                // Asked of the server: copies may be behind, and a removed finalizer does not come back.
                let all = ListParams::default();
                let claims: Api<PersistentVolumeClaim> = Api::all(self.client.clone());
                let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
                if claims.list(&all).await?.items.iter().any(|c| of_claim(c).contains(&name))
                    || volumes.list(&all).await?.items.iter().any(|v| of_volume(v).contains(&name))
                {
                    return Ok(None);
                }
                without(&mut new.metadata, FINALIZER);
            }
        }
        let api: Api<VolumeAttributesClass> = Api::all(self.client.clone());
        found(api.replace(name, &PostParams::default(), &new).await)?;
        Ok(None)
    }
}

/// What an object named before a change and does not name any more.
fn let_go<K: Watched>(change: &Change<K>, named: fn(&K) -> Vec<&str>) -> Vec<&str> {
    let now = change.new.as_deref().map(named).unwrap_or_default();
    let before = change.old.as_deref().map(named).unwrap_or_default();
    before.into_iter().filter(|name| !now.contains(name)).collect()
}

impl Reconcile for Classes {
    fn name(&self) -> &'static str {
        "volumeattributesclass-protection-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.classes.keys().into_iter().for_each(|k| self.queue.add(k));
    }

    fn workers(&self) -> usize {
        1
    }
}
