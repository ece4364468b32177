//! Claims and volumes find each other, and part again.
//!
//! A binding is four writes in a fixed order: the volume is reserved for the claim, its phase says so, the claim names
//! the volume, its phase says so. Any of them may be the last before a crash; the next look goes on from there, because
//! each is skipped when it is done. What two workers could decide differently is settled by the server: every write
//! carries the version it was decided on.
//!
//! # Limits
//! Volumes are not recycled (the policy is deprecated; such a volume fails with an event). Volumes with the policy Delete
//! are deleted by the provisioner that made them; for others no plugin exists and they fail.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use super::{
    BETA_CLASS, BETA_STORAGE_PROVISIONER, BIND_COMPLETED, BOUND_BY_CONTROLLER, PROVISIONED_BY, SELECTED_NODE,
    STORAGE_PROVISIONER, annotate, annotation, claim_key, claim_phase, claim_ref, claim_term, claims_of,
    class_of_claim, default_class, is_for, matching, volume_name, volume_phase, waits,
};
use crate::controllers::pods;
use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::{Change, Informer, Watched, join, key_of};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{self, Error, Outcome, Reconcile, found};

/// Who speaks in events.
pub const COMPONENT: &str = "persistentvolume-controller";
const CLAIM: &str = "claim ";
const VOLUME: &str = "volume ";

/// What the binder looks at.
#[derive(Clone)]
pub struct Sources {
    /// Claims.
    pub claims: Informer<PersistentVolumeClaim>,
    /// Volumes, indexed by the claim they are reserved for.
    pub volumes: Informer<PersistentVolume>,
    /// Classes.
    pub classes: Informer<StorageClass>,
    /// Pods, indexed by the claims they use.
    pub pods: Informer<Pod>,
}

/// The controller.
pub struct Controller {
    client: Client,
    sources: Sources,
    events: Recorder,
    queue: Arc<Queue>,
}

impl Controller {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, sources: Sources) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let (q, volumes) = (Arc::clone(&queue), sources.volumes.clone());
        sources.claims.on_change(move |c| claim_changed(&q, &volumes, c));
        let (q, claims) = (Arc::clone(&queue), sources.claims.clone());
        sources.volumes.on_change(move |c| volume_changed(&q, &claims, c));
        let (q, claims) = (Arc::clone(&queue), sources.claims.clone());
        sources.classes.on_change(move |_| add_unbound(&q, &claims, |_| true));
        let (q, claims) = (Arc::clone(&queue), sources.claims.clone());
        sources.pods.on_change(move |c| {
            // Whom a claim waits for is told when the pod comes.
            if let (None, Some(pod)) = (&c.old, &c.new)
                && pods::node(pod).is_empty()
            {
                let keys = claims_of(pod).into_iter().map(|u| join(&pod.namespace().unwrap_or_default(), &u.claim));
                let unbound = |k: &String| claims.get(k).is_some_and(|c| volume_name(&c).is_empty());
                keys.filter(unbound).for_each(|k| q.add(format!("{CLAIM}{k}")));
            }
        });
        Arc::new(Self { events: Recorder::start(client.clone(), COMPONENT), client, sources, queue })
    }

    fn claims(&self, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default())
    }

    fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    async fn claim(&self, key: &str) -> Outcome {
        let Some(claim) = self.sources.claims.get(key) else { return Ok(None) };
        if annotation(&claim.metadata, BIND_COMPLETED).is_some() {
            self.bound_claim(&claim).await?;
        } else {
            self.unbound_claim(&claim).await?;
        }
        Ok(None)
    }

    /// A claim whose binding is not complete.
    async fn unbound_claim(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let named = volume_name(claim);
        if !named.is_empty() {
            return self.named_volume(claim, named).await;
        }
        let class = self.sources.classes.get(class_of_claim(claim));
        let later = waits(class.as_deref());
        let volumes = self.sources.volumes.all();
        if let Some(volume) = matching::best(claim, &volumes, None, later) {
            return self.bind(volume, claim).await;
        }
        if self.give_default_class(claim).await? {
            return Ok(());
        }
        if later && annotation(&claim.metadata, SELECTED_NODE).is_none() {
            self.say_waiting(claim);
        } else if class_of_claim(claim).is_empty() {
            let text = "no persistent volumes available for this claim and no storage class is set";
            self.events.note(claim, Level::Normal, "FailedBinding", text);
        } else {
            self.ask_provisioner(claim, class.as_deref()).await?;
        }
        self.claim_status(claim, "Pending", None).await
    }

    fn say_waiting(&self, claim: &PersistentVolumeClaim) {
        let users = self.sources.pods.with_term(&claim_term(&key_of(claim)));
        let names: Vec<String> = users.iter().filter(|p| pods::node(p).is_empty()).map(|p| p.name_any()).collect();
        let (reason, text) = match names.as_slice() {
            [] => ("WaitForFirstConsumer", "waiting for first consumer to be created before binding".to_owned()),
            [one] => ("WaitForPodScheduled", format!("waiting for pod {one} to be scheduled")),
            many => ("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", many.join(","))),
        };
        self.events.note(claim, Level::Normal, reason, text);
    }

    /// A claim made before there was a default class gets it. Answers whether it did.
    async fn give_default_class(&self, claim: &PersistentVolumeClaim) -> Result<bool, Error> {
        let has = claim.spec.as_ref().is_some_and(|s| s.storage_class_name.is_some());
        if has || annotation(&claim.metadata, BETA_CLASS).is_some() {
            return Ok(false);
        }
        let Some(class) = default_class(&self.sources.classes) else { return Ok(false) };
        let mut new = claim.clone();
        new.spec.get_or_insert_default().storage_class_name = Some(class);
        self.claims(claim).replace(&claim.name_any(), &PostParams::default(), &new).await?;
        Ok(true)
    }

    /// Asks for a new volume: whoever follows the annotation makes one.
    async fn ask_provisioner(&self, claim: &PersistentVolumeClaim, class: Option<&StorageClass>) -> Result<(), Error> {
        let refuse = |text: String| self.events.note(claim, Level::Warning, "ProvisioningFailed", text);
        let Some(class) = class else {
            refuse(format!("storageclass.storage.k8s.io \"{}\" not found", class_of_claim(claim)));
            return Ok(());
        };
        // The names of this domain were plugins inside upstream's controller; none of them is left.
        if class.provisioner.starts_with("kubernetes.io/") {
            refuse(format!("no volume plugin matched name: {}", class.provisioner));
            return Ok(());
        }
        let mut new = claim.clone();
        let changed = annotate(&mut new.metadata, STORAGE_PROVISIONER, &class.provisioner)
            | annotate(&mut new.metadata, BETA_STORAGE_PROVISIONER, &class.provisioner);
        if changed {
            self.claims(claim).replace(&claim.name_any(), &PostParams::default(), &new).await?;
        }
        let text = format!(
            "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.",
            class.provisioner
        );
        self.events.note(claim, Level::Normal, "ExternalProvisioning", text);
        Ok(())
    }

    /// A claim whose user names the volume.
    async fn named_volume(&self, claim: &PersistentVolumeClaim, name: &str) -> Result<(), Error> {
        let Some(volume) = self.sources.volumes.get(name) else {
            return self.claim_status(claim, "Pending", None).await;
        };
        if claim_ref(&volume).is_none() {
            if let Err(why) = matching::satisfies(claim, &volume) {
                let text = format!("Cannot bind to requested volume \"{name}\": {why}");
                self.events.note(claim, Level::Warning, "VolumeMismatch", text);
                return self.claim_status(claim, "Pending", None).await;
            }
            return self.bind(&volume, claim).await;
        }
        if is_for(&volume, claim) {
            return self.bind(&volume, claim).await;
        }
        if annotation(&claim.metadata, BOUND_BY_CONTROLLER).is_none() {
            let text = format!("volume \"{name}\" already bound to a different claim.");
            self.events.note(claim, Level::Warning, "FailedBinding", text);
            return self.claim_status(claim, "Pending", None).await;
        }
        Err(Error::Other(format!("claim {} names volume {name}, which is bound to another claim", key_of(claim))))
    }

    /// A claim that was bound once.
    async fn bound_claim(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let lost = |reason: &'static str, text: &'static str| async move {
            if claim_phase(claim) != "Lost" {
                self.events.note(claim, Level::Warning, reason, text);
            }
            self.claim_status(claim, "Lost", None).await
        };
        let name = volume_name(claim);
        if name.is_empty() {
            let text = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
            return lost("ClaimLost", text).await;
        }
        let volume = match self.sources.volumes.get(name) {
            Some(v) => v,
            // The copy may be behind: losing a volume is too grave to be said by mistake.
            None => match found(self.volumes().get(name).await)? {
                Some(v) => Arc::new(v),
                None => {
                    let text = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
                    return lost("ClaimLost", text).await;
                }
            },
        };
        if claim_ref(&volume).is_none() || claim_ref(&volume).is_some_and(|r| r.uid == claim.metadata.uid) {
            return self.bind(&volume, claim).await;
        }
        lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly").await
    }

    /// The four writes.
    async fn bind(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let volume = self.reserve(volume, claim).await?;
        let volume = self.volume_status(&volume, "Bound", None).await?;
        let claim = self.name_volume(claim, &volume).await?;
        self.claim_status(&claim, "Bound", Some(&volume)).await
    }

    async fn reserve(
        &self,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
    ) -> Result<PersistentVolume, Error> {
        let mut new = volume.clone();
        reserve_for(&mut new, claim);
        if new == *volume {
            return Ok(new);
        }
        Ok(self.volumes().replace(&volume.name_any(), &PostParams::default(), &new).await?)
    }

    async fn name_volume(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<PersistentVolumeClaim, Error> {
        let mut new = claim.clone();
        let spec = new.spec.get_or_insert_default();
        if spec.volume_name != volume.metadata.name {
            spec.volume_name.clone_from(&volume.metadata.name);
            annotate(&mut new.metadata, BOUND_BY_CONTROLLER, "yes");
        }
        annotate(&mut new.metadata, BIND_COMPLETED, "yes");
        if new == *claim {
            return Ok(new);
        }
        Ok(self.claims(claim).replace(&claim.name_any(), &PostParams::default(), &new).await?)
    }

    /// Writes a claim's phase; with a volume also what the claim got of it.
    async fn claim_status(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<(), Error> {
        let mut new = claim.clone();
        let status = new.status.get_or_insert_default();
        let first = status.phase.as_deref() != Some("Bound");
        status.phase = Some(phase.to_owned());
        match volume.and_then(|v| v.spec.as_ref()) {
            None => {
                status.access_modes = None;
                status.capacity = None;
            }
            Some(spec) => {
                status.access_modes.clone_from(&spec.access_modes);
                // Later on the size is what whoever resizes the volume says.
                if first || status.capacity.is_none() {
                    status.capacity.clone_from(&spec.capacity);
                }
                let class = &spec.volume_attributes_class_name;
                if first && class.as_ref().is_some_and(|c| !c.is_empty()) {
                    status.current_volume_attributes_class_name.clone_from(class);
                }
            }
        }
        if new.status != claim.status {
            self.claims(claim).replace_status(&claim.name_any(), &PostParams::default(), &new).await?;
        }
        Ok(())
    }

    /// Writes a volume's phase.
    async fn volume_status(
        &self,
        volume: &PersistentVolume,
        phase: &str,
        message: Option<&str>,
    ) -> Result<PersistentVolume, Error> {
        if volume_phase(volume) == phase {
            return Ok(volume.clone());
        }
        let mut new = volume.clone();
        let status = new.status.get_or_insert_default();
        status.phase = Some(phase.to_owned());
        status.message = message.map(str::to_owned);
        status.last_phase_transition_time = None;
        Ok(self.volumes().replace_status(&volume.name_any(), &PostParams::default(), &new).await?)
    }

    async fn volume(&self, name: &str) -> Outcome {
        let Some(volume) = self.sources.volumes.get(name) else { return Ok(None) };
        let Some(reference) = claim_ref(&volume) else {
            self.volume_status(&volume, "Available", None).await?;
            return Ok(None);
        };
        // Reserved by its maker for a claim that does not exist or has not been bound yet.
        let Some(uid) = reference.uid.clone().filter(|u| !u.is_empty()) else {
            self.volume_status(&volume, "Available", None).await?;
            return Ok(None);
        };
        let key = claim_key(&volume).unwrap_or_default();
        let mut claim = self.sources.claims.get(&key).filter(|c| c.metadata.uid.as_ref() == Some(&uid));
        if claim.is_none() && !matches!(volume_phase(&volume), "Released" | "Failed") {
            // The copy may be behind, and what follows may delete data.
            let namespace = reference.namespace.clone().unwrap_or_default();
            let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
            let live = found(api.get(reference.name.as_deref().unwrap_or_default()).await)?;
            claim = live.filter(|c| c.metadata.uid.as_ref() == Some(&uid)).map(Arc::new);
        }
        match claim {
            None => self.released(&volume).await?,
            Some(c) if volume_name(&c).is_empty() => {
                if !matching::same_mode(&c, &volume) {
                    self.say_mismatch(&volume, &c);
                } else {
                    self.queue.add(format!("{CLAIM}{key}"));
                }
            }
            Some(c) if volume_name(&c) == name => {
                self.volume_status(&volume, "Bound", None).await?;
            }
            // The claim took another one.
            Some(_) => {
                let made = annotation(&volume.metadata, PROVISIONED_BY).is_some();
                if made && policy(&volume) == "Delete" {
                    self.released(&volume).await?;
                } else {
                    self.unbind(&volume).await?;
                }
            }
        }
        Ok(None)
    }

    fn say_mismatch(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) {
        let text = format!(
            "Cannot bind PersistentVolume to requested PersistentVolumeClaim \"{}\" due to incompatible volumeMode.",
            claim.name_any()
        );
        self.events.note(volume, Level::Warning, "VolumeMismatch", text);
        let text = format!(
            "Cannot bind PersistentVolume \"{}\" to requested PersistentVolumeClaim due to incompatible volumeMode.",
            volume.name_any()
        );
        self.events.note(claim, Level::Warning, "VolumeMismatch", text);
    }

    /// The claim is gone: the volume is kept, or deleted, as its policy says.
    async fn released(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let volume = match volume_phase(volume) {
            "Released" | "Failed" => volume.clone(),
            _ => self.volume_status(volume, "Released", None).await?,
        };
        if volume_phase(&volume) == "Failed" || volume.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let (reason, text) = match policy(&volume) {
            "Delete" if annotation(&volume.metadata, PROVISIONED_BY).is_some() => return Ok(()),
            "Delete" => (
                "VolumeFailedDelete",
                format!(
                    "error getting deleter volume plugin for volume \"{}\": no deletable volume plugin matched",
                    volume.name_any()
                ),
            ),
            "Recycle" => ("VolumeFailedRecycle", "No recycler plugin found!".to_owned()),
            _ => return Ok(()),
        };
        self.events.note(&volume, Level::Warning, reason, text.clone());
        self.volume_status(&volume, "Failed", Some(&text)).await?;
        Ok(())
    }

    /// Takes a reservation back: wholly if this controller made it, else down to the name its maker gave.
    async fn unbind(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let mut new = volume.clone();
        let ours = new.metadata.annotations.as_mut().is_some_and(|a| a.remove(BOUND_BY_CONTROLLER).is_some());
        let spec = new.spec.get_or_insert_default();
        if ours {
            spec.claim_ref = None;
        } else if let Some(r) = &mut spec.claim_ref {
            r.uid = None;
        }
        let new = self.volumes().replace(&volume.name_any(), &PostParams::default(), &new).await?;
        self.volume_status(&new, "Available", None).await?;
        Ok(())
    }
}

/// Reserves a volume for a claim, and says whose choice that was when nobody had chosen before.
pub fn reserve_for(volume: &mut PersistentVolume, claim: &PersistentVolumeClaim) {
    let spec = volume.spec.get_or_insert_default();
    let by_maker = spec
        .claim_ref
        .as_ref()
        .is_some_and(|r| r.name == claim.metadata.name && r.namespace == claim.metadata.namespace);
    let done = by_maker && spec.claim_ref.as_ref().is_some_and(|r| r.uid == claim.metadata.uid);
    if done {
        return;
    }
    spec.claim_ref = Some(ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        name: claim.metadata.name.clone(),
        namespace: claim.metadata.namespace.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        field_path: None,
    });
    if !by_maker {
        annotate(&mut volume.metadata, BOUND_BY_CONTROLLER, "yes");
    }
}

fn policy(volume: &PersistentVolume) -> &str {
    volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

fn add_unbound(
    queue: &Queue,
    claims: &Informer<PersistentVolumeClaim>,
    which: impl Fn(&PersistentVolumeClaim) -> bool,
) {
    for c in claims.all() {
        if annotation(&c.metadata, BIND_COMPLETED).is_none() && which(&c) {
            queue.add(format!("{CLAIM}{}", key_of(&*c)));
        }
    }
}

fn claim_changed(queue: &Queue, volumes: &Informer<PersistentVolume>, c: &Change<PersistentVolumeClaim>) {
    let claim = c.latest();
    let key = key_of(&**claim);
    for v in volumes.with_term(&claim_term(&key)) {
        queue.add(format!("{VOLUME}{}", v.name_any()));
    }
    if !volume_name(claim).is_empty() {
        queue.add(format!("{VOLUME}{}", volume_name(claim)));
    }
    queue.add(format!("{CLAIM}{key}"));
}

fn volume_changed(queue: &Queue, claims: &Informer<PersistentVolumeClaim>, c: &Change<PersistentVolume>) {
    let volume = c.latest();
    queue.add(format!("{VOLUME}{}", volume.name_any()));
    for side in [&c.old, &c.new].into_iter().flatten() {
        if let Some(key) = claim_key(side) {
            queue.add(format!("{CLAIM}{key}"));
        }
    }
    let name = volume.name_any();
    let became_free = volume_phase(volume) == "Available"
        && c.old.as_deref().is_none_or(|o| {
            volume_phase(o) != "Available" || o.spec != volume.spec || o.metadata.labels != volume.metadata.labels
        });
    add_unbound(queue, claims, |c| {
        volume_name(c) == name
            || (became_free && volume_name(c).is_empty() && class_of_claim(c) == super::class_of_volume(volume))
    });
}

/// Adds all keys of a kind.
fn add_all<K: Watched>(queue: &Queue, kind: &str, all: &Informer<K>) {
    all.keys().iter().for_each(|k| queue.add(format!("{kind}{k}")));
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "persistent-volume-binder"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        async move {
            let result = match (key.strip_prefix(CLAIM), key.strip_prefix(VOLUME)) {
                (Some(claim), _) => self.claim(claim).await,
                (_, Some(volume)) => self.volume(volume).await,
                _ => Ok(None),
            };
            match result {
                // Gone meanwhile: its deletion comes by the watch.
                Err(Error::Api(e)) if worker::not_found(&e) => Ok(None),
                other => other,
            }
        }
        .boxed()
    }

    fn resync(&self) {
        add_all(&self.queue, VOLUME, &self.sources.volumes);
        add_all(&self.queue, CLAIM, &self.sources.claims);
    }

    /// One: two claims must not take one volume, which would be found out, but late.
    fn workers(&self) -> usize {
        1
    }
}
