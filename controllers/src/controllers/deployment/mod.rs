//! Deployments: replica sets that follow one another, one per pod template.
//!
//! The set of a template is found by comparing templates, and made under a name with the template's hash, so making it
//! twice ends in "already exists" and not in two sets. All arithmetic is in [`plan`], all reporting in [`status`]; here
//! is what reads and writes.

pub mod plan;
pub mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};

use super::family::{self, Claim};
use super::pods;
use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::{Informer, controller_of, join, key_of, owner_term, split};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{self, Error, Outcome, Reconcile, found};
use crate::runtime::{controller_ref, select};

/// Annotation with the number of the rollout that a set belongs to.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The history annotation is cut at its front beyond this.
const HISTORY_MAX: usize = 2000;
/// Annotations of a Deployment that its sets do not inherit.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    plan::DESIRED,
    plan::MAX,
    "deprecated.deployment.rollback.revision",
];

/// The rollout number of a set or Deployment; 0 when it has none.
pub fn revision<K: Resource>(object: &K) -> i64 {
    let annotations = object.meta().annotations.as_ref();
    annotations.and_then(|a| a.get(REVISION)?.parse().ok()).unwrap_or(0)
}

/// The Deployment controller.
pub struct Controller {
    client: Client,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    queue: Arc<Queue>,
    events: Recorder,
}

impl Controller {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(
        client: Client,
        deployments: Informer<Deployment>,
        sets: Informer<ReplicaSet>,
        pods: Informer<Pod>,
    ) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        deployments.on_change(move |c| q.add(key_of(&**c.latest())));
        let (q, all) = (Arc::clone(&queue), deployments.clone());
        sets.on_change(move |c| {
            for rs in [&c.old, &c.new].into_iter().flatten() {
                let namespace = rs.namespace().unwrap_or_default();
                match controller_of(&**rs) {
                    Some(r) if r.kind == "Deployment" => q.add(join(&namespace, &r.name)),
                    Some(_) => {}
                    None => {
                        let takes = |d: &&Arc<Deployment>| {
                            !select::is_empty(&d.spec.selector)
                                && select::matches(&d.spec.selector, &rs.metadata.labels)
                        };
                        all.in_namespace(&namespace).iter().filter(takes).for_each(|d| q.add(key_of(&**d)));
                    }
                }
            }
        });
        // A Recreate rollout waits for the last old pod to go.
        let (q, s) = (Arc::clone(&queue), sets.clone());
        pods.on_change(move |c| {
            let Some(pod) = c.old.as_deref().filter(|_| c.new.is_none()) else { return };
            let namespace = pod.namespace().unwrap_or_default();
            let set = controller_of(pod).and_then(|r| s.get(&join(&namespace, &r.name)));
            if let Some(r) = set.as_deref().and_then(controller_of).filter(|r| r.kind == "Deployment") {
                q.add(join(&namespace, &r.name));
            }
        });
        let events = Recorder::start(client.clone(), "deployment-controller");
        Arc::new(Self { client, deployments, sets, pods, queue, events })
    }

    fn sets_api(&self, namespace: &str) -> Api<ReplicaSet> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn api(&self, namespace: &str) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(d) = self.deployments.get(key) else { return Ok(None) };
        let namespace = split(key).0;
        if select::is_empty(&d.spec.selector) {
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.events.note(&*d, Level::Warning, "SelectingAll", text);
            let mut status = d.status.clone().unwrap_or_default();
            status.observed_generation = d.metadata.generation;
            self.report(&d, status).await?;
            return Ok(None);
        }
        let claim = Claim {
            selector: &d.spec.selector,
            member: |_, _| true,
            adoptable: |_: &ReplicaSet| true,
            finalizer: None,
        };
        let sets = family::claim(&self.client, &*d, &self.sets, &claim).await?;
        let new = plan::new_set(&d, &sets);
        let old: Vec<Arc<ReplicaSet>> = without(&sets, new.as_ref());
        if d.metadata.deletion_timestamp.is_some() {
            self.report(&d, status::count(&d, &sets, new.as_ref())).await?;
            return Ok(None);
        }
        let d = self.mark_pause(&d).await?;
        let paused = d.spec.paused == Some(true);
        if paused || plan::is_scaling(&d, &sets) {
            let (d, new) = match new {
                Some(rs) => {
                    let rs = self.adjust(namespace, &d, &old, &rs).await?;
                    (self.number(namespace, &d, &rs).await?, Some(rs))
                }
                None => (d, None),
            };
            let mut now: Vec<Arc<ReplicaSet>> = old.iter().chain(&new).cloned().collect();
            for (rs, size) in plan::scale(&d, new.as_ref(), &old) {
                let scaled = self.resize(namespace, &d, &rs, size).await?;
                put(&mut now, scaled);
            }
            if paused {
                self.clean(namespace, &d, &old).await?;
            }
            let new = plan::new_set(&d, &now);
            self.report(&d, status::count(&d, &now, new.as_ref())).await?;
            return Ok(None);
        }
        self.roll(namespace, d, new, old).await
    }

    /// One step of a rollout.
    async fn roll(
        &self,
        namespace: &str,
        mut d: Arc<Deployment>,
        new: Option<Arc<ReplicaSet>>,
        old: Vec<Arc<ReplicaSet>>,
    ) -> Outcome {
        let mut all = old.clone();
        let mut current = match new {
            Some(rs) => {
                let rs = self.adjust(namespace, &d, &old, &rs).await?;
                d = self.number(namespace, &d, &rs).await?;
                all.push(Arc::clone(&rs));
                Some(rs)
            }
            None => None,
        };
        if !plan::rolling(&d) {
            // Recreate: first everything old goes, then the new set is made.
            let mut shrunk = false;
            for rs in old.iter().filter(|rs| plan::set_replicas(rs) > 0) {
                let scaled = self.resize(namespace, &d, rs, 0).await?;
                put(&mut all, scaled);
                shrunk = true;
            }
            if shrunk || self.old_pods_run(&old) {
                return self.finish(namespace, &d, &all, current.as_ref(), &old).await;
            }
        }
        let new = match current.take() {
            Some(rs) => rs,
            None => {
                let rs = self.make_set(namespace, &d, &old).await?;
                d = self.number(namespace, &d, &rs).await?;
                put(&mut all, Arc::clone(&rs));
                rs
            }
        };
        let size = plan::new_set_size(&d, &all, &new);
        if size != plan::set_replicas(&new) {
            let new = self.resize(namespace, &d, &new, size).await?;
            put(&mut all, Arc::clone(&new));
            return self.finish(namespace, &d, &all, Some(&new), &old).await;
        }
        if plan::rolling(&d) {
            for (rs, size) in plan::shrink_old(&d, &all, &old, &new) {
                let scaled = self.resize(namespace, &d, &rs, size).await?;
                put(&mut all, scaled);
            }
        }
        let new = self.annotate_sizes(namespace, &d, &new).await?;
        put(&mut all, Arc::clone(&new));
        self.finish(namespace, &d, &all, Some(&new), &old).await
    }

    async fn finish(
        &self,
        namespace: &str,
        d: &Deployment,
        all: &[Arc<ReplicaSet>],
        new: Option<&Arc<ReplicaSet>>,
        old: &[Arc<ReplicaSet>],
    ) -> Outcome {
        let mut status = status::rollout(d, all, new);
        // The set that was made in this step has said so already; keep what the server has if it is newer.
        if let Some(rs) = new.filter(|_| status::deadline(d).is_some() && status::get(&status, "Progressing").is_none())
        {
            let text = format!("Found new replica set \"{}\"", rs.name_any());
            status::set(&mut status, status::condition("Progressing", "True", "FoundNewReplicaSet", text));
        }
        let again = status::look_again(d, &status);
        let done = status::get(&status, "Progressing").is_none_or(|c| c.reason.as_deref() == Some(status::COMPLETE))
            && status.updated_replicas.unwrap_or(0) == plan::replicas(d)
            && status.replicas == status.updated_replicas
            && status.available_replicas.unwrap_or(0) == plan::replicas(d);
        self.report(d, status).await?;
        if done {
            self.clean(namespace, d, old).await?;
        }
        Ok(again)
    }

    fn old_pods_run(&self, old: &[Arc<ReplicaSet>]) -> bool {
        let of = |rs: &Arc<ReplicaSet>| self.pods.with_term(&owner_term(&rs.uid().unwrap_or_default()));
        old.iter().flat_map(of).any(|p| !pods::finished(&p))
    }

    /// Tells that the rollout was paused or goes on, so that the deadline does not count the pause.
    async fn mark_pause(&self, d: &Arc<Deployment>) -> Result<Arc<Deployment>, Error> {
        if status::deadline(d).is_none() {
            return Ok(Arc::clone(d));
        }
        let mut s = d.status.clone().unwrap_or_default();
        let reason = status::get(&s, "Progressing").and_then(|c| c.reason.clone());
        let said = reason.as_deref() == Some(status::PAUSED);
        let paused = d.spec.paused == Some(true);
        if reason.as_deref() == Some(status::TIMED_OUT) || paused == said {
            return Ok(Arc::clone(d));
        }
        let c = if paused {
            status::condition("Progressing", "Unknown", status::PAUSED, "Deployment is paused")
        } else {
            status::condition("Progressing", "Unknown", status::RESUMED, "Deployment is resumed")
        };
        status::set(&mut s, c);
        Ok(self.report(d, s).await?.unwrap_or_else(|| Arc::clone(d)))
    }

    /// Brings the annotations of the present new set up to date: it may be an old one that is wanted again.
    async fn adjust(
        &self,
        namespace: &str,
        d: &Deployment,
        old: &[Arc<ReplicaSet>],
        rs: &Arc<ReplicaSet>,
    ) -> Result<Arc<ReplicaSet>, Error> {
        let number = old.iter().map(|r| revision(&**r)).max().unwrap_or(0) + 1;
        let mut next = ReplicaSet::clone(rs);
        let mut annotations = next.metadata.annotations.take().unwrap_or_default();
        inherit(d, &mut annotations);
        let had = revision(&**rs);
        if had < number {
            if had > 0 {
                let mut past: Vec<String> =
                    annotations.get(HISTORY).map(|h| h.split(',').map(str::to_owned).collect()).unwrap_or_default();
                past.push(had.to_string());
                while past.join(",").len() > HISTORY_MAX {
                    past.remove(0);
                }
                annotations.insert(HISTORY.into(), past.join(","));
            }
            annotations.insert(REVISION.into(), number.to_string());
        }
        next.metadata.annotations = Some(annotations);
        if next.spec.min_ready_seconds.unwrap_or(0) != d.spec.min_ready_seconds.unwrap_or(0) {
            next.spec.min_ready_seconds = d.spec.min_ready_seconds;
        }
        if next == **rs { Ok(Arc::clone(rs)) } else { self.replace(namespace, &next).await }
    }

    /// Writes the rollout number on the Deployment; answers the Deployment as it is then.
    async fn number(&self, namespace: &str, d: &Arc<Deployment>, rs: &ReplicaSet) -> Result<Arc<Deployment>, Error> {
        let number = revision(rs);
        if revision(&**d) == number {
            return Ok(Arc::clone(d));
        }
        let mut next = Deployment::clone(d);
        next.metadata.annotations.get_or_insert_default().insert(REVISION.into(), number.to_string());
        Ok(Arc::new(self.api(namespace).replace(&d.name_any(), &PostParams::default(), &next).await?))
    }

    async fn make_set(
        &self,
        namespace: &str,
        d: &Deployment,
        old: &[Arc<ReplicaSet>],
    ) -> Result<Arc<ReplicaSet>, Error> {
        let number = old.iter().map(|r| revision(&**r)).max().unwrap_or(0) + 1;
        let collisions = d.status.as_ref().and_then(|s| s.collision_count);
        let rs = set_from(d, &plan::hash(&d.spec.template, collisions), number, old);
        let name = rs.name_any();
        let made = self.sets_api(namespace).create(&PostParams::default(), &rs).await;
        let set = match made {
            Ok(rs) => {
                let size = plan::set_replicas(&rs);
                if size > 0 {
                    let text = format!("Scaled up replica set {name} from 0 to {size}");
                    self.events.note(d, Level::Normal, "ScalingReplicaSet", text);
                }
                rs
            }
            Err(e) if worker::code(&e) == 409 => {
                // Either the cache was behind and it is ours, or another template has the same hash.
                let there = self.sets_api(namespace).get(&name).await?;
                let ours = controller_of(&there).is_some_and(|r| Some(&r.uid) == d.metadata.uid.as_ref());
                let template = there.spec.template.as_ref();
                if ours && template.is_some_and(|t| plan::same_template(t, &d.spec.template)) {
                    there
                } else {
                    let mut s = d.status.clone().unwrap_or_default();
                    s.collision_count = Some(collisions.unwrap_or(0) + 1);
                    self.report(d, s).await?;
                    return Err(Error::Other(format!("the name {name} is taken")));
                }
            }
            Err(e) if worker::namespace_terminating(&e) => return Err(e.into()),
            Err(e) => {
                let text = format!("Failed to create new replica set \"{name}\": {}", worker::text(&e));
                if status::deadline(d).is_some() {
                    let mut s = d.status.clone().unwrap_or_default();
                    let c = status::condition("Progressing", "False", "ReplicaSetCreateError", text.clone());
                    status::set(&mut s, c);
                    self.report(d, s).await?;
                }
                self.events.note(d, Level::Warning, "ReplicaSetCreateError", text);
                return Err(e.into());
            }
        };
        Ok(Arc::new(set))
    }

    async fn replace(&self, namespace: &str, rs: &ReplicaSet) -> Result<Arc<ReplicaSet>, Error> {
        Ok(Arc::new(self.sets_api(namespace).replace(&rs.name_any(), &PostParams::default(), rs).await?))
    }

    /// Changes the size of a set and notes what it was asked for.
    async fn resize(
        &self,
        namespace: &str,
        d: &Deployment,
        rs: &ReplicaSet,
        size: i32,
    ) -> Result<Arc<ReplicaSet>, Error> {
        let before = plan::set_replicas(rs);
        let mut next = rs.clone();
        next.spec.replicas = Some(size);
        sizes(d, next.metadata.annotations.get_or_insert_default());
        if next == *rs {
            return Ok(Arc::new(next));
        }
        let written = self.replace(namespace, &next).await?;
        if before != size {
            let direction = if before < size { "up" } else { "down" };
            let text = format!("Scaled {direction} replica set {} from {before} to {size}", rs.name_any());
            self.events.note(d, Level::Normal, "ScalingReplicaSet", text);
        }
        Ok(written)
    }

    async fn annotate_sizes(
        &self,
        namespace: &str,
        d: &Deployment,
        rs: &Arc<ReplicaSet>,
    ) -> Result<Arc<ReplicaSet>, Error> {
        let mut next = ReplicaSet::clone(rs);
        sizes(d, next.metadata.annotations.get_or_insert_default());
        if next == **rs { Ok(Arc::clone(rs)) } else { self.replace(namespace, &next).await }
    }

    async fn clean(&self, namespace: &str, d: &Deployment, old: &[Arc<ReplicaSet>]) -> Result<(), Error> {
        for rs in plan::forgotten(d, old) {
            let preconditions = Preconditions { uid: rs.uid(), resource_version: None };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
            found(self.sets_api(namespace).delete(&rs.name_any(), &params).await)?;
        }
        Ok(())
    }

    /// Writes the status if it differs; answers the Deployment as it is then.
    async fn report(&self, d: &Deployment, s: DeploymentStatus) -> Result<Option<Arc<Deployment>>, Error> {
        if d.status.clone().unwrap_or_default() == s {
            return Ok(None);
        }
        let next = Deployment { status: Some(s), ..d.clone() };
        let api = self.api(&d.namespace().unwrap_or_default());
        let written = found(api.replace_status(&d.name_any(), &PostParams::default(), &next).await)?;
        Ok(written.map(Arc::new))
    }
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.deployments.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}

fn without(sets: &[Arc<ReplicaSet>], new: Option<&Arc<ReplicaSet>>) -> Vec<Arc<ReplicaSet>> {
    let same = |rs: &Arc<ReplicaSet>| new.is_some_and(|n| n.uid() == rs.uid());
    sets.iter().filter(|rs| !same(rs)).cloned().collect()
}

fn put(sets: &mut Vec<Arc<ReplicaSet>>, rs: Arc<ReplicaSet>) {
    sets.retain(|s| s.uid() != rs.uid());
    sets.push(rs);
}

fn inherit(d: &Deployment, annotations: &mut BTreeMap<String, String>) {
    for (k, v) in d.metadata.annotations.iter().flatten().filter(|(k, _)| !OWN.contains(&k.as_str())) {
        annotations.insert(k.clone(), v.clone());
    }
}

fn sizes(d: &Deployment, annotations: &mut BTreeMap<String, String>) {
    annotations.insert(plan::DESIRED.into(), plan::replicas(d).to_string());
    annotations.insert(plan::MAX.into(), (plan::replicas(d) + plan::bounds(d).0).to_string());
}

/// The set for the present template, sized so that the surge is kept.
fn set_from(d: &Deployment, hash: &str, number: i64, old: &[Arc<ReplicaSet>]) -> ReplicaSet {
    let mut template = d.spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(plan::HASH_LABEL.into(), hash.to_owned());
    let mut rs = ReplicaSet::default();
    rs.metadata.name = Some(format!("{}-{hash}", d.name_any()));
    rs.metadata.namespace = d.namespace();
    rs.metadata.labels = Some(labels.clone());
    rs.metadata.owner_references = Some(vec![controller_ref(d)]);
    let mut annotations = BTreeMap::new();
    inherit(d, &mut annotations);
    annotations.insert(REVISION.into(), number.to_string());
    sizes(d, &mut annotations);
    rs.metadata.annotations = Some(annotations);
    let mut selector: LabelSelector = d.spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(plan::HASH_LABEL.into(), hash.to_owned());
    rs.spec = ReplicaSetSpec {
        min_ready_seconds: d.spec.min_ready_seconds,
        replicas: Some(0),
        selector,
        template: Some(template),
    };
    let mut all = old.to_vec();
    all.push(Arc::new(rs.clone()));
    let size = plan::new_set_size(d, &all, &rs);
    rs.spec.replicas = Some(size);
    rs
}
