//! The garbage collector: what has lost its owners is deleted, whatever kind it is.
//!
//! Metadata-only watches on every kind that discovery names feed a [`graph`]; what may have to go is looked at with
//! live reads, so a late watch never deletes anything. Owners deleted in the foreground wait for their dependents,
//! owners whose dependents stay let go of them first. An owner is looked for in the dependent's namespace only.

pub mod graph;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::graph::{FOREGROUND, Graph, ORPHAN, Place};
use super::discovery::{self, Found};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{self, Error, Outcome, Reconcile, found};

/// Discovery is asked this often whether there are new kinds; a change of a custom kind asks at once.
const REFRESH: Duration = Duration::from_secs(30);
/// Kinds that own nothing and are owned by nothing that matters.
const IGNORED: [&str; 2] = ["events", "bindings"];

/// The collector.
pub struct Controller {
    client: Client,
    graph: Mutex<Graph>,
    kinds: RwLock<HashMap<String, Found>>,
    refresh: Notify,
    queue: Queue,
    heard: Heard,
}

/// Told of every object that came or went: `plural.group` and namespace.
pub type Heard = Box<dyn Fn(&str, &str) + Send + Sync>;

/// An owner, as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// There, and stays.
    Solid,
    /// Gone.
    Dangling,
    /// Waits for its dependents to go.
    Waiting,
}

/// What to do with a dependent.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// Keep it with these owners.
    Keep(Vec<OwnerReference>),
    /// Delete it.
    Delete(PropagationPolicy),
}

fn decide(meta: &ObjectMeta, owners: &[(OwnerReference, Owner)], has_dependents: bool) -> Step {
    if owners.is_empty() {
        return Step::Nothing;
    }
    let solid: Vec<OwnerReference> =
        owners.iter().filter(|(_, o)| *o == Owner::Solid).map(|(r, _)| r.clone()).collect();
    if solid.len() == owners.len() {
        return Step::Nothing;
    }
    if !solid.is_empty() {
        return Step::Keep(solid);
    }
    let has = |f: &str| meta.finalizers.iter().flatten().any(|x| x == f);
    let waiting = owners.iter().any(|(_, o)| *o == Owner::Waiting);
    Step::Delete(if waiting && has_dependents {
        // The owner waits for the whole tree below it.
        PropagationPolicy::Foreground
    } else if has(ORPHAN) {
        PropagationPolicy::Orphan
    } else if has(FOREGROUND) {
        PropagationPolicy::Foreground
    } else {
        PropagationPolicy::Background
    })
}

impl Controller {
    /// Makes the collector; [`Controller::follow`] must run for it to see anything. It watches every kind, so `heard`
    /// spares others from doing the same.
    #[must_use]
    pub fn new(client: Client, heard: Heard) -> Arc<Self> {
        Arc::new(Self {
            client,
            graph: Mutex::default(),
            kinds: RwLock::default(),
            refresh: Notify::new(),
            queue: Queue::default(),
            heard,
        })
    }

    /// Watches every kind there is, until `stop`.
    pub async fn follow(self: Arc<Self>, watch: Client, stop: CancellationToken) {
        let mut followed: BTreeMap<String, CancellationToken> = BTreeMap::new();
        loop {
            match discovery::all(&watch).await {
                Err(e) => tracing::debug!(error = &e as &dyn std::error::Error, "discovery failed"),
                Ok(found) => {
                    let complete = found.failed.is_none();
                    let wanted: HashMap<String, Found> = found
                        .kinds
                        .into_iter()
                        .filter(|k| ["list", "watch", "delete"].iter().all(|v| k.can(v)))
                        .filter(|k| !IGNORED.contains(&k.resource.plural.as_str()))
                        .map(|k| (k.name(), k))
                        .collect();
                    for (name, kind) in &wanted {
                        if !followed.contains_key(name) {
                            let token = stop.child_token();
                            followed.insert(name.clone(), token.clone());
                            tokio::spawn(Arc::clone(&self).watch_kind(
                                watch.clone(),
                                name.clone(),
                                kind.clone(),
                                token,
                            ));
                        }
                    }
                    if complete {
                        followed.retain(|name, token| {
                            let kept = wanted.contains_key(name);
                            if !kept {
                                token.cancel();
                            }
                            kept
                        });
                    }
                    *self.kinds.write() = wanted;
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.refresh.notified() => {
                    // The server needs a moment to serve a new kind.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                () = tokio::time::sleep(REFRESH) => {}
            }
        }
    }

    async fn watch_kind(self: Arc<Self>, client: Client, name: String, kind: Found, stop: CancellationToken) {
        let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &kind.resource);
        let config = watcher::Config::default().streaming_lists();
        let mut stream = skiff_client::watch_dynamic(api, config);
        let mut listed = BTreeSet::new();
        let custom = kind.resource.kind == "CustomResourceDefinition";
        loop {
            let next = tokio::select! {
                () = stop.cancelled() => return,
                next = stream.next() => next,
            };
            let look = match next {
                None => return,
                Some(Err(e)) => {
                    tracing::debug!(kind = name, error = &e as &dyn std::error::Error, "watch failed");
                    vec![]
                }
                Some(Ok(Event::Init)) => {
                    listed.clear();
                    vec![]
                }
                Some(Ok(Event::InitApply(o))) => {
                    listed.extend(o.metadata.uid.clone());
                    self.graph.lock().set(&name, &o.metadata)
                }
                Some(Ok(Event::InitDone)) => self.graph.lock().retain(&name, &std::mem::take(&mut listed)),
                Some(Ok(Event::Apply(o))) => {
                    if custom {
                        self.refresh.notify_one();
                    }
                    let mut graph = self.graph.lock();
                    let known = graph.knows(o.metadata.uid.as_deref().unwrap_or_default());
                    let look = graph.set(&name, &o.metadata);
                    drop(graph);
                    if !known {
                        (self.heard)(&name, o.metadata.namespace.as_deref().unwrap_or_default());
                    }
                    look
                }
                Some(Ok(Event::Delete(o))) => {
                    if custom {
                        self.refresh.notify_one();
                    }
                    let look = self.graph.lock().remove(o.metadata.uid.as_deref().unwrap_or_default());
                    (self.heard)(&name, o.metadata.namespace.as_deref().unwrap_or_default());
                    look
                }
            };
            look.into_iter().for_each(|uid| self.queue.add(uid));
        }
    }

    fn api(&self, kind: &Found, namespace: &str) -> Api<DynamicObject> {
        if kind.namespaced {
            Api::namespaced_with(self.client.clone(), namespace, &kind.resource)
        } else {
            Api::all_with(self.client.clone(), &kind.resource)
        }
    }

    fn kind(&self, name: &str) -> Option<Found> {
        self.kinds.read().get(name).cloned()
    }

    async fn live(
        &self,
        place: &Place,
    ) -> Result<Option<(Api<DynamicObject>, PartialObjectMeta<DynamicObject>)>, Error> {
        let Some(kind) = self.kind(&place.kind) else { return Ok(None) };
        let api = self.api(&kind, &place.namespace);
        Ok(found(api.get_metadata(&place.name).await)?.map(|o| (api, o)))
    }

    async fn sync(&self, uid: &str) -> Outcome {
        let Some(place) = self.graph.lock().place(uid) else { return Ok(None) };
        let live = self.live(&place).await?.filter(|(_, o)| o.metadata.uid.as_deref() == Some(uid));
        let Some((api, object)) = live else {
            let look = self.graph.lock().remove(uid);
            look.into_iter().for_each(|u| self.queue.add(u));
            return Ok(None);
        };
        let meta = object.metadata;
        if meta.deletion_timestamp.is_some() {
            let has = |f: &str| meta.finalizers.iter().flatten().any(|x| x == f);
            if has(ORPHAN) {
                return self.orphan(&api, uid, &meta).await;
            }
            if has(FOREGROUND) {
                return self.foreground(&api, uid, &meta).await;
            }
            return Ok(None);
        }
        let mut owners = Vec::new();
        for reference in meta.owner_references.iter().flatten() {
            owners.push((reference.clone(), self.owner(reference, &place.namespace).await?));
        }
        let has_dependents = !self.graph.lock().dependents(uid).is_empty();
        match decide(&meta, &owners, has_dependents) {
            Step::Nothing => {}
            Step::Keep(owners) => {
                let patch = serde_json::json!({"metadata": {
                    "uid": uid, "resourceVersion": meta.resource_version, "ownerReferences": owners,
                }});
                found(api.patch_metadata(&place.name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
            }
            Step::Delete(policy) => {
                let mut version = meta.resource_version.clone();
                let waited_for = owners.iter().any(|(_, o)| *o == Owner::Waiting);
                if waited_for && self.graph.lock().closes_circle(uid) {
                    version = self.unblock(&api, &place.name, uid, meta).await?;
                }
                let params = DeleteParams {
                    propagation_policy: Some(policy),
                    // A change since it was read may have given it an owner.
                    preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: version }),
                    ..DeleteParams::default()
                };
                tracing::debug!(kind = place.kind, namespace = place.namespace, name = place.name, "collecting");
                found(api.delete(&place.name, &params).await)?;
            }
        }
        Ok(None)
    }

    /// Makes a dependent block none of its owners, else owners and dependents that wait for each other would for ever. A
    /// dependent that closes no circle may be let go too early by this, as upstream's. Answers the new version.
    async fn unblock(
        &self,
        api: &Api<DynamicObject>,
        name: &str,
        uid: &str,
        meta: ObjectMeta,
    ) -> Result<Option<String>, Error> {
        let mut owners = meta.owner_references.unwrap_or_default();
        owners.iter_mut().for_each(|o| o.block_owner_deletion = Some(false));
        let patch = serde_json::json!({"metadata": {
            "uid": uid, "resourceVersion": meta.resource_version, "ownerReferences": owners,
        }});
        let new = found(api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
        Ok(new.and_then(|o| o.metadata.resource_version))
    }

    async fn owner(&self, reference: &OwnerReference, namespace: &str) -> Result<Owner, Error> {
        let group = reference.api_version.split_once('/').map_or("", |(g, _)| g);
        let kind = {
            let kinds = self.kinds.read();
            kinds.values().find(|k| k.resource.group == group && k.resource.kind == reference.kind).cloned()
        };
        let Some(kind) = kind else {
            self.refresh.notify_one();
            return Err(Error::Other(format!("no kind {} in {}", reference.kind, reference.api_version)));
        };
        if kind.namespaced && namespace.is_empty() {
            // An object of the whole cluster cannot belong to one of a namespace; it is left alone.
            return Ok(Owner::Solid);
        }
        let Some(owner) = found(self.api(&kind, namespace).get_metadata(&reference.name).await)? else {
            return Ok(Owner::Dangling);
        };
        let meta = owner.metadata;
        if meta.uid.as_deref() != Some(&reference.uid) {
            return Ok(Owner::Dangling);
        }
        let waiting = meta.deletion_timestamp.is_some() && meta.finalizers.iter().flatten().any(|f| f == FOREGROUND);
        Ok(if waiting { Owner::Waiting } else { Owner::Solid })
    }

    /// Lets the owner go when no dependent blocks it, else sees to its dependents.
    async fn foreground(&self, api: &Api<DynamicObject>, uid: &str, meta: &ObjectMeta) -> Outcome {
        let dependents = self.graph.lock().dependents(uid);
        if dependents.iter().any(|(_, blocks)| *blocks) {
            dependents.into_iter().for_each(|(d, _)| self.queue.add(d));
            return Ok(None);
        }
        self.finalized(api, meta, FOREGROUND).await
    }

    /// Takes the owner off its dependents, then lets it go.
    async fn orphan(&self, api: &Api<DynamicObject>, uid: &str, meta: &ObjectMeta) -> Outcome {
        let dependents = self.graph.lock().dependents(uid);
        for (dependent, _) in dependents {
            let Some(place) = self.graph.lock().place(&dependent) else { continue };
            let Some((api, object)) = self.live(&place).await? else { continue };
            let m = object.metadata;
            if m.uid.as_deref() != Some(&dependent) {
                continue;
            }
            let rest: Vec<OwnerReference> = m.owner_references.into_iter().flatten().filter(|r| r.uid != uid).collect();
            let patch = serde_json::json!({"metadata": {
                "uid": dependent, "resourceVersion": m.resource_version, "ownerReferences": rest,
            }});
            found(api.patch_metadata(&place.name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
        }
        self.finalized(api, meta, ORPHAN).await
    }

    async fn finalized(&self, api: &Api<DynamicObject>, meta: &ObjectMeta, finalizer: &str) -> Outcome {
        let rest: Vec<&String> = meta.finalizers.iter().flatten().filter(|f| *f != finalizer).collect();
        let patch = serde_json::json!({"metadata": {
            "uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": rest,
        }});
        let name = meta.name.as_deref().unwrap_or_default();
        match api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(e) if worker::not_found(&e) => Ok(None),
            Err(e) => Err(e.into()),
            Ok(_) => Ok(None),
        }
    }
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "garbage-collector"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    /// Only what the watches point at: looking at every dependent would ask for every owner.
    fn resync(&self) {}

    fn workers(&self) -> usize {
        6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_to_a_dependent() {
        use Owner::{Dangling, Solid, Waiting};
        let reference = |n: usize| OwnerReference { uid: n.to_string(), ..OwnerReference::default() };
        let check = |owners: &[Owner], dependents: bool, want: Step| {
            let owners: Vec<_> = owners.iter().enumerate().map(|(i, o)| (reference(i), *o)).collect();
            assert_eq!(decide(&ObjectMeta::default(), &owners, dependents), want, "{owners:?} {dependents}");
        };
        check(&[], false, Step::Nothing);
        check(&[Solid], false, Step::Nothing);
        check(&[Dangling], false, Step::Delete(PropagationPolicy::Background));
        check(&[Waiting], false, Step::Delete(PropagationPolicy::Background));
        check(&[Waiting, Dangling], true, Step::Delete(PropagationPolicy::Foreground));
        check(&[Dangling, Solid], true, Step::Keep(vec![reference(1)]));
        check(&[Waiting, Solid], true, Step::Keep(vec![reference(1)]));
    }
}
