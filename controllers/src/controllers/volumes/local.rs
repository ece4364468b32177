//! The built-in provisioner: volumes are directories on a node's own disk.
//!
//! This side decides: it makes the volume object for the node that the scheduler chose, lets it grow, and deletes the
//! object when its claim is gone. The directory is the node agent's business: it makes it when a pod first mounts the
//! volume, and a finalizer keeps the object until the agent has removed the directory. So nothing here touches a disk,
//! and any number of nodes works the same way.
//!
//! Where directories lie: below the class's parameter `nodePath`, else below what the node's agent says in an
//! annotation of its node.
//!
//! # Limits
//! A directory has no size of its own: what a claim asks for is promised, not enforced. Block volumes, selectors and
//! data sources are refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use super::binder::Sources;
use super::{
    PROVISIONED_BY, SELECTED_NODE, STORAGE_PROVISIONER, annotation, asked, capacity, claim_key, claim_phase,
    class_of_claim, matching, storage, volume_name, volume_phase, waits,
};
use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::{Informer, key_of};
use crate::runtime::now;
use crate::runtime::queue::Queue;
use crate::runtime::worker::{self, Error, Outcome, Reconcile, found};

/// The provisioner's name in classes.
pub const PROVISIONER: &str = "skiff.dev/local-path";
/// Finalizer of volumes whose directory is still there.
pub const FINALIZER: &str = "skiff.dev/local-path";
/// On a node: the directory its agent keeps volumes in.
pub const DIRECTORY: &str = "skiff.dev/local-path";
/// On a volume: host name of the node that has its directory, for the agent's watch.
pub const HOST: &str = "skiff.dev/hostname";
/// The class parameter that names another directory.
const NODE_PATH: &str = "nodePath";
const HOSTNAME: &str = "kubernetes.io/hostname";
const CLAIM: &str = "claim ";
const VOLUME: &str = "volume ";

/// The provisioner.
pub struct Controller {
    client: Client,
    sources: Sources,
    nodes: Informer<Node>,
    events: Recorder,
    queue: Arc<Queue>,
}

/// A claim cannot be given a volume as things are.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    /// Nothing will change by itself.
    #[error("failed to provision volume with StorageClass \"{class}\": {why}")]
    Never { class: String, why: String },
    /// Another node must be chosen.
    #[error("failed to get target node: nodes \"{0}\" not found")]
    NoNode(String),
}

fn ours(volume: &PersistentVolume) -> bool {
    annotation(&volume.metadata, PROVISIONED_BY) == Some(PROVISIONER)
}

/// Whether a claim wants a volume of this provisioner now.
fn wants_volume(claim: &PersistentVolumeClaim, class: &StorageClass) -> bool {
    annotation(&claim.metadata, STORAGE_PROVISIONER) == Some(PROVISIONER)
        && class.provisioner == PROVISIONER
        && volume_name(claim).is_empty()
        && claim.metadata.deletion_timestamp.is_none()
        && (!waits(Some(class)) || annotation(&claim.metadata, SELECTED_NODE).is_some())
}

fn wants_growth(claim: &PersistentVolumeClaim) -> bool {
    let got = storage(claim.status.as_ref().and_then(|s| s.capacity.as_ref()));
    claim_phase(claim) == "Bound" && got.is_some() && got < asked(claim)
}

impl Controller {
    /// Makes the provisioner and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, sources: Sources, nodes: Informer<Node>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let (q, classes) = (Arc::clone(&queue), sources.classes.clone());
        sources.claims.on_change(move |c| {
            let Some(claim) = &c.new else { return };
            let class = classes.get(class_of_claim(claim));
            if wants_growth(claim) || class.is_some_and(|class| wants_volume(claim, &class)) {
                q.add(format!("{CLAIM}{}", key_of(&**claim)));
            }
        });
        let q = Arc::clone(&queue);
        sources.volumes.on_change(move |c| {
            if let Some(volume) = c.new.as_ref().filter(|v| ours(v)) {
                q.add(format!("{VOLUME}{}", volume.name_any()));
            }
        });
        let (q, volumes) = (Arc::clone(&queue), sources.volumes.clone());
        nodes.on_change(move |c| {
            if c.new.is_none() {
                volumes.all().iter().filter(|v| ours(v)).for_each(|v| q.add(format!("{VOLUME}{}", v.name_any())));
            }
        });
        Arc::new(Self { events: Recorder::start(client.clone(), PROVISIONER), client, sources, nodes, queue })
    }

    fn claims(&self, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default())
    }

    fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    async fn claim(&self, key: &str) -> Outcome {
        let Some(claim) = self.sources.claims.get(key) else { return Ok(None) };
        if wants_growth(&claim) {
            return self.grow(&claim).await;
        }
        let Some(class) = self.sources.classes.get(class_of_claim(&claim)) else { return Ok(None) };
        if !wants_volume(&claim, &class) {
            return Ok(None);
        }
        match self.plan(&claim, &class) {
            Ok(volume) => self.provision(&claim, &volume).await?,
            Err(why) => {
                self.events.note(&*claim, Level::Warning, "ProvisioningFailed", why.to_string());
                if matches!(why, Refusal::NoNode(_)) {
                    // The scheduler chooses again.
                    let mut new = PersistentVolumeClaim::clone(&claim);
                    new.annotations_mut().remove(SELECTED_NODE);
                    self.claims(&claim).replace(&claim.name_any(), &PostParams::default(), &new).await?;
                }
            }
        }
        Ok(None)
    }

    async fn provision(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), Error> {
        let name = volume.name_any();
        if self.sources.volumes.get(&name).is_some() {
            return Ok(());
        }
        let text = format!("External provisioner is provisioning volume for claim \"{}\"", key_of(claim));
        self.events.note(claim, Level::Normal, "Provisioning", text);
        match self.volumes().create(&PostParams::default(), volume).await {
            Ok(_) => {}
            Err(e) if worker::code(&e) == 409 => return Ok(()),
            Err(e) => {
                let why = Refusal::Never { class: class_of_claim(claim).to_owned(), why: worker::text(&e) };
                self.events.note(claim, Level::Warning, "ProvisioningFailed", why.to_string());
                return Err(e.into());
            }
        }
        self.events.note(
            claim,
            Level::Normal,
            "ProvisioningSucceeded",
            format!("Successfully provisioned volume {name}"),
        );
        Ok(())
    }

    /// The volume a claim gets.
    fn plan(&self, claim: &PersistentVolumeClaim, class: &StorageClass) -> Result<PersistentVolume, Refusal> {
        let refuse = |why: &str| Refusal::Never { class: class.name_any(), why: why.to_owned() };
        let spec = claim.spec.clone().unwrap_or_default();
        if spec.volume_mode.as_deref() == Some("Block") {
            return Err(refuse("block volumes are not supported"));
        }
        if spec.selector.is_some() {
            return Err(refuse("claim Selector is not supported"));
        }
        if spec.data_source.is_some() || spec.data_source_ref.is_some() {
            return Err(refuse("data sources are not supported"));
        }
        let node = match annotation(&claim.metadata, SELECTED_NODE) {
            Some(name) => self.nodes.get(name).ok_or_else(|| Refusal::NoNode(name.to_owned()))?,
            None => self.any_node(class).ok_or_else(|| refuse("no node is ready"))?,
        };
        let parameter = class.parameters.as_ref().and_then(|p| p.get(NODE_PATH)).map(String::as_str);
        let base = parameter.or_else(|| annotation(&node.metadata, DIRECTORY));
        let base = base.ok_or_else(|| refuse("the node's agent names no directory for volumes"))?;
        if !base.starts_with('/') || base.split('/').any(|p| p == "..") {
            return Err(refuse("the directory must be an absolute path without \"..\""));
        }
        Ok(volume(claim, class, &node, base))
    }

    /// A node for a claim that does not wait for a pod.
    fn any_node(&self, class: &StorageClass) -> Option<Arc<Node>> {
        let terms = class.allowed_topologies.as_deref().unwrap_or_default();
        let ready = |n: &Node| {
            let conditions = n.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
            conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        let open = |n: &Node| n.spec.as_ref().and_then(|s| s.unschedulable) != Some(true);
        let mut fit = self.nodes.all();
        fit.retain(|n| ready(n) && open(n) && matching::in_topology(terms, n));
        (!fit.is_empty()).then(|| fit.swap_remove(rand::random_range(0..fit.len())))
    }

    /// A bound claim asks for more: the promise grows.
    async fn grow(&self, claim: &PersistentVolumeClaim) -> Outcome {
        let Some(volume) = self.sources.volumes.get(volume_name(claim)) else { return Ok(None) };
        if !ours(&volume) {
            let text = "waiting for an external controller to expand this PVC";
            self.events.note(claim, Level::Normal, "ExternalExpanding", text);
            return Ok(None);
        }
        let Some(wanted) = claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage"))
        else {
            return Ok(None);
        };
        let api = self.claims(claim);
        let list = BTreeMap::from([("storage".to_owned(), wanted.clone())]);
        let mut marked = claim.clone();
        if capacity(&volume) < asked(claim) {
            let text = format!("External resizer is resizing volume {}", volume.name_any());
            self.events.note(claim, Level::Normal, "Resizing", text);
            let status = marked.status.get_or_insert_default();
            status.conditions = Some(vec![PersistentVolumeClaimCondition {
                type_: "Resizing".into(),
                status: "True".into(),
                last_transition_time: Some(now()),
                ..PersistentVolumeClaimCondition::default()
            }]);
            status.allocated_resources = Some(list.clone());
            status.allocated_resource_statuses =
                Some(BTreeMap::from([("storage".to_owned(), "ControllerResizeInProgress".to_owned())]));
            marked = api.replace_status(&claim.name_any(), &PostParams::default(), &marked).await?;
            let mut new = PersistentVolume::clone(&volume);
            new.spec.get_or_insert_default().capacity = Some(list.clone());
            self.volumes().replace(&volume.name_any(), &PostParams::default(), &new).await?;
        }
        let status = marked.status.get_or_insert_default();
        status.capacity = Some(list.clone());
        status.allocated_resources = Some(list);
        status.allocated_resource_statuses = None;
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|c| !matches!(c.type_.as_str(), "Resizing" | "FileSystemResizePending"));
        }
        api.replace_status(&claim.name_any(), &PostParams::default(), &marked).await?;
        self.events.note(claim, Level::Normal, "VolumeResizeSuccessful", "Resize volume succeeded");
        Ok(None)
    }

    /// A volume of this provisioner: deleted when its claim is gone, and let go when its node is.
    async fn volume(&self, name: &str) -> Outcome {
        let Some(volume) = self.sources.volumes.get(name).filter(|v| ours(v)) else { return Ok(None) };
        if volume.metadata.deletion_timestamp.is_some() {
            return self.let_go(&volume).await;
        }
        let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
        if volume_phase(&volume) != "Released" || policy != Some("Delete") {
            return Ok(None);
        }
        let preconditions = Preconditions { uid: volume.uid(), resource_version: volume.resource_version() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        tracing::debug!(name, claim = claim_key(&volume), "deleting the volume of a claim that is gone");
        found(self.volumes().delete(name, &params).await)?;
        Ok(None)
    }

    /// No agent is left to remove the directory of a node that is gone.
    async fn let_go(&self, volume: &PersistentVolume) -> Outcome {
        let held = volume.finalizers().iter().any(|f| f == FINALIZER);
        let exists = self.nodes.all().iter().any(|n| matching::reachable(volume, n));
        if !held || exists || volume_phase(volume) == "Bound" {
            return Ok(None);
        }
        let mut new = volume.clone();
        new.finalizers_mut().retain(|f| f != FINALIZER);
        found(self.volumes().replace(&volume.name_any(), &PostParams::default(), &new).await)?;
        Ok(None)
    }
}

/// The volume of a claim below `base` on a node.
fn volume(claim: &PersistentVolumeClaim, class: &StorageClass, node: &Node, base: &str) -> PersistentVolume {
    let uid = claim.uid().unwrap_or_default();
    let (namespace, name) = (claim.namespace().unwrap_or_default(), claim.name_any());
    let volume = format!("pvc-{uid}");
    let host = node.labels().get(HOSTNAME).cloned().unwrap_or_else(|| node.name_any());
    let spec = claim.spec.clone().unwrap_or_default();
    let path = format!("{}/{volume}_{namespace}_{name}", base.trim_end_matches('/'));
    let requests = spec.resources.and_then(|r| r.requests).unwrap_or_default();
    let made = json!({
        "metadata": {
            "name": volume,
            "labels": {HOST: host},
            "annotations": {PROVISIONED_BY: PROVISIONER},
            "finalizers": [FINALIZER],
        },
        "spec": {
            "capacity": {"storage": requests.get("storage")},
            "accessModes": spec.access_modes,
            "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.name_any(),
            "mountOptions": class.mount_options,
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name,
                "uid": uid, "resourceVersion": claim.resource_version()},
            "local": {"path": path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [host]}]}]}},
        },
    });
    // Every field is one of the type's: this cannot fail, and an empty volume would be refused by the server.
    serde_json::from_value(made).unwrap_or_default()
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "local-path-provisioner"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        async move {
            match (key.strip_prefix(CLAIM), key.strip_prefix(VOLUME)) {
                (Some(claim), _) => self.claim(claim).await,
                (_, Some(volume)) => self.volume(volume).await,
                _ => Ok(None),
            }
        }
        .boxed()
    }

    fn resync(&self) {
        self.sources.claims.keys().iter().for_each(|k| self.queue.add(format!("{CLAIM}{k}")));
        self.sources.volumes.keys().iter().for_each(|k| self.queue.add(format!("{VOLUME}{k}")));
    }

    fn workers(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "data", "namespace": "n", "uid": "7"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "standard",
            "resources": {"requests": {"storage": "1Gi"}}}}))
        .unwrap()
    }

    #[test]
    fn the_volume_of_a_claim() {
        let class: StorageClass =
            serde_json::from_value(json!({"metadata": {"name": "standard"}, "provisioner": PROVISIONER,
            "reclaimPolicy": "Retain"}))
            .unwrap();
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n1", "labels": {HOSTNAME: "host1"}}})).unwrap();
        let v = volume(&claim(), &class, &node, "/data/");
        let spec = v.spec.clone().unwrap();
        assert_eq!(v.name_any(), "pvc-7");
        assert_eq!(spec.local.unwrap().path, "/data/pvc-7_n_data");
        assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
        assert!(super::super::is_for(&v, &claim()) && ours(&v) && matching::reachable(&v, &node));
        assert_eq!(capacity(&v), asked(&claim()));
    }

    #[test]
    fn when_a_volume_is_wanted() {
        let class = |mode: &str| -> StorageClass {
            serde_json::from_value(
                json!({"metadata": {"name": "standard"}, "provisioner": PROVISIONER, "volumeBindingMode": mode}),
            )
            .unwrap()
        };
        let (now, later) = (class("Immediate"), class("WaitForFirstConsumer"));
        let with = |pairs: &[(&str, &str)]| {
            let mut c = claim();
            c.annotations_mut().extend(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
            c
        };
        let asked = (STORAGE_PROVISIONER, PROVISIONER);
        for (pairs, class, want) in [
            (vec![], &now, false),
            (vec![asked], &now, true),
            (vec![asked], &later, false),
            (vec![asked, (SELECTED_NODE, "n1")], &later, true),
            (vec![(STORAGE_PROVISIONER, "example.com/other")], &now, false),
        ] {
            assert_eq!(wants_volume(&with(&pairs), class), want, "{pairs:?}");
        }
    }

    #[test]
    fn growth() {
        for (phase, got, want) in [("Bound", "1Gi", false), ("Bound", "512Mi", true), ("Pending", "512Mi", false)] {
            let mut c = claim();
            c.status = serde_json::from_value(json!({"phase": phase, "capacity": {"storage": got}})).unwrap();
            assert_eq!(wants_growth(&c), want, "{phase} {got}");
        }
    }
}
