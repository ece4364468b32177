//! Persistent storage: claims and volumes find each other ([`binder`]), volumes are made on demand on a node's own disk
//! ([`local`]), what is in use stays ([`protect`]), and volumes that live as long as a pod get their claims
//! ([`ephemeral`]). The scheduler shares the rules in [`matching`].
//!
//! Annotations, not fields, carry what controllers and provisioners tell each other; their names are upstream's, so
//! that any external provisioner works beside the built-in one.

pub mod attributes;
pub mod binder;
pub mod ephemeral;
pub mod local;
pub mod matching;
pub mod protect;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Amount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use skiff_core::quantity::Quantity;

use crate::runtime::informer::{Informer, join};

/// On a claim: binding is complete; losing the volume from now on is a fault.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On either side: this controller chose the other, so it may take the choice back.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: who made it, and so who removes it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: the node that the scheduler chose for its first pod.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: who should make its volume.
pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const BETA_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// The value of an annotation.
#[must_use]
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

fn annotate(meta: &mut ObjectMeta, key: &str, value: &str) -> bool {
    let before = meta.annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
    before.as_deref() != Some(value)
}

/// The class a claim asks for; empty: one without class. The old annotation wins over the field.
#[must_use]
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let field = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    annotation(&claim.metadata, BETA_CLASS).or(field).unwrap_or_default()
}

/// The class of a volume.
#[must_use]
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let field = volume.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    annotation(&volume.metadata, BETA_CLASS).or(field).unwrap_or_default()
}

/// Whether claims of the class wait for a pod.
#[must_use]
pub fn waits(class: Option<&StorageClass>) -> bool {
    class.and_then(|c| c.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer")
}

/// The default class: of several the newest, then the first by name.
#[must_use]
pub fn default_class(classes: &Informer<StorageClass>) -> Option<String> {
    let is_default =
        |c: &StorageClass| DEFAULT_CLASS.iter().any(|k| annotation(&c.metadata, k).is_some_and(|v| v == "true"));
    let mut found: Vec<_> = classes.all().into_iter().filter(|c| is_default(c)).collect();
    found.sort_by_key(|c| {
        (c.metadata.creation_timestamp.as_ref().map(|t| std::cmp::Reverse(t.0)), c.metadata.name.clone())
    });
    found.first().and_then(|c| c.metadata.name.clone())
}

/// The storage in a list of amounts.
#[must_use]
pub fn storage(list: Option<&BTreeMap<String, Amount>>) -> Option<Quantity> {
    list?.get("storage")?.0.parse().ok()
}

/// What a claim asks for.
#[must_use]
pub fn asked(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    storage(claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref())
}

/// What a volume has.
#[must_use]
pub fn capacity(volume: &PersistentVolume) -> Option<Quantity> {
    storage(volume.spec.as_ref()?.capacity.as_ref())
}

/// The name of the volume a claim names.
#[must_use]
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default()
}

/// Whom a volume is reserved for.
#[must_use]
pub fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// The key of the claim a volume is reserved for.
#[must_use]
pub fn claim_key(volume: &PersistentVolume) -> Option<String> {
    let r = claim_ref(volume)?;
    Some(join(r.namespace.as_deref().unwrap_or_default(), r.name.as_deref().unwrap_or_default()))
}

/// Whether a volume is reserved for this claim: by name, and by UID when it has one.
#[must_use]
pub fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim_ref(volume).is_some_and(|r| {
        r.name == claim.metadata.name
            && r.namespace == claim.metadata.namespace
            && r.uid.as_ref().is_none_or(|u| u.is_empty() || Some(u) == claim.metadata.uid.as_ref())
    })
}

/// The phase of a claim.
#[must_use]
pub fn claim_phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// The phase of a volume.
#[must_use]
pub fn volume_phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// Index term of objects that speak of a claim: pods that use it, volumes reserved for it.
#[must_use]
pub fn claim_term(key: &str) -> String {
    format!("claim/{key}")
}

/// One claim that a pod uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The volume's name in the pod.
    pub volume: String,
    /// The claim's name.
    pub claim: String,
    /// The claim is made for the pod and goes with it.
    pub ephemeral: bool,
}

/// The claims of a pod.
#[must_use]
pub fn claims_of(pod: &Pod) -> Vec<Use> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let one = |v: &k8s_openapi::api::core::v1::Volume| {
        if let Some(p) = &v.persistent_volume_claim {
            return Some(Use { volume: v.name.clone(), claim: p.claim_name.clone(), ephemeral: false });
        }
        v.ephemeral.as_ref()?;
        let claim = format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), v.name);
        Some(Use { volume: v.name.clone(), claim, ephemeral: true })
    };
    volumes.iter().filter_map(one).collect()
}

/// Whether a claim was made for the pod.
#[must_use]
pub fn made_for(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    crate::runtime::informer::controller_of(claim).is_some_and(|r| Some(&r.uid) == pod.metadata.uid.as_ref())
}

/// Index terms of the claims of a pod.
#[must_use]
pub fn terms_of(pod: &Pod) -> Vec<String> {
    let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
    claims_of(pod).iter().map(|u| claim_term(&join(ns, &u.claim))).collect()
}
