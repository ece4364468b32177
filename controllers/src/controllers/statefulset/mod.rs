//! StatefulSets: pods with names, numbers and claims that stay theirs.
//!
//! Pods are made under fixed names and deleted with their uid as a precondition, so acting on an old copy does no harm:
//! it ends in "already exists" or "conflict" and is tried again. What comes next is decided in [`plan`], what a pod is in
//! [`identity`]; here is what reads and writes.

pub mod identity;
pub mod plan;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};

use self::plan::{Places, Revisions, Step};
use super::family::{self, Claim};
use super::pods;
use super::revisions::{self, History, Source};
use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::{Informer, controller_of, join, key_of, split};
use crate::runtime::queue::Queue;
use crate::runtime::select;
use crate::runtime::worker::{self, Error, Outcome, Reconcile, found};
use crate::runtime::written::Written;

/// Label of a revision with its hash.
const HASH: &str = "controller.kubernetes.io/hash";
/// Revisions that are kept when nothing is said.
const HISTORY: i32 = 10;
/// When to look again for a claim that has to go before its pod comes back.
const CLAIM_WAIT: Duration = Duration::from_secs(2);

/// The StatefulSet controller.
pub struct Controller {
    client: Client,
    sets: Informer<StatefulSet>,
    revisions: Informer<ControllerRevision>,
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
    queue: Arc<Queue>,
    written: Written,
    events: Recorder,
}

/// Local copies that the controller reads.
pub struct Sources {
    /// The sets.
    pub sets: Informer<StatefulSet>,
    /// Their revisions.
    pub revisions: Informer<ControllerRevision>,
    /// Their pods' claims.
    pub claims: Informer<PersistentVolumeClaim>,
    /// Their pods.
    pub pods: Informer<Pod>,
}

impl Controller {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, from: Sources) -> Arc<Self> {
        let Sources { sets, revisions, claims, pods } = from;
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        sets.on_change(move |c| q.add(key_of(&**c.latest())));
        let (q, all) = (Arc::clone(&queue), sets.clone());
        pods.on_change(move |c| {
            for pod in [&c.old, &c.new].into_iter().flatten() {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                match controller_of(&**pod) {
                    Some(r) if r.kind == "StatefulSet" => q.add(join(namespace, &r.name)),
                    Some(_) => {}
                    None => {
                        let takes = |s: &&Arc<StatefulSet>| {
                            let l = &s.spec.selector;
                            !select::is_empty(l) && select::matches(l, &pod.metadata.labels)
                        };
                        all.in_namespace(namespace).iter().filter(takes).for_each(|s| q.add(key_of(&**s)));
                    }
                }
            }
        });
        let events = Recorder::start(client.clone(), "statefulset-controller");
        let written = Written::default();
        Arc::new(Self { client, sets, revisions, claims, pods, queue, written, events })
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(set) = self.sets.get(key) else {
            self.written.forget(key);
            return Ok(None);
        };
        let spec = &set.spec;
        if select::is_empty(&spec.selector) || self.written.behind(key, &*set) {
            return Ok(None);
        }
        let source = Source {
            selector: &spec.selector,
            template: &spec.template,
            collisions: set.status.as_ref().and_then(|s| s.collision_count),
            hash_label: HASH,
        };
        let claim = Claim {
            selector: &spec.selector,
            member: |set, pod: &Pod| identity::ordinal(set, &pod.name_any()).is_some(),
            adoptable: |_| true,
            finalizer: None,
        };
        let pods = family::claim(&self.client, &*set, &self.pods, &claim).await?;
        let history = revisions::sync(&self.client, &*set, &self.revisions, &source).await?;
        let update = history.update.name_any();
        let said = set.status.as_ref().and_then(|s| s.current_revision.clone());
        // A revision that is gone cannot be gone back to.
        let current = said.filter(|c| history.all.iter().any(|r| r.name_any() == *c)).unwrap_or_else(|| update.clone());
        let between = Revisions { current: &current, update: &update };
        let mut again = family::next_available(&pods, plan::min_ready(&set));
        let mut result = Ok(());
        if set.metadata.deletion_timestamp.is_none() {
            let places = Places::new(&set, &pods);
            match self.act(&set, &places, between, &history).await {
                Ok(wait) => again = again.or(wait),
                Err(e) => result = Err(e),
            }
        }
        let status = plan::status(&set, &pods, between, history.collisions);
        self.report(key, &set, status).await?;
        result?;
        let mut live: HashSet<String> = pods.iter().map(|p| plan::revision(p).to_owned()).collect();
        live.extend([current, update]);
        let limit = spec.revision_history_limit.unwrap_or(HISTORY);
        revisions::forget(&self.client, &*set, &history.all, &live, limit).await?;
        Ok(again)
    }

    async fn act(&self, set: &StatefulSet, places: &Places, r: Revisions<'_>, history: &History) -> Outcome {
        for (i, pod) in places.wanted.iter().filter_map(|(i, p)| p.as_ref().map(|p| (*i, p))) {
            self.keep(set, i, pod, false).await?;
        }
        for (i, pod) in &places.condemned {
            self.keep(set, *i, pod, true).await?;
        }
        let steps = plan::steps(set, places, r);
        let create: Vec<i32> =
            steps.iter().filter_map(|s| if let Step::Create(i) = s { Some(*i) } else { None }).collect();
        let mut wait = None;
        let mut ready = Vec::new();
        for i in create {
            if self.claims_for(set, i).await? { ready.push(i) } else { wait = Some(CLAIM_WAIT) }
        }
        let template = |name: &str| {
            let found = history.all.iter().find(|r| r.name_any() == name).and_then(|r| revisions::template_of(r));
            found.unwrap_or_else(|| set.spec.template.clone())
        };
        let (current, update) = (template(r.current), template(r.update));
        let (_, made) = family::slow_start(ready.len(), async |n| {
            let revision = plan::revision_for(set, ready[n], r);
            let template = if revision == r.update { &update } else { &current };
            self.create(set, &identity::pod(set, template, ready[n], revision)).await
        })
        .await;
        made?;
        for step in &steps {
            match step {
                Step::Create(_) => {}
                Step::Again(pod) => {
                    let names = (set.namespace().unwrap_or_default(), set.name_any());
                    let (level, reason, word) = match pods::phase(pod) {
                        "Failed" => (Level::Warning, "RecreatingFailedPod", "failed"),
                        _ => (Level::Normal, "RecreatingTerminatedPod", "terminated"),
                    };
                    let text =
                        format!("StatefulSet {}/{} is recreating {word} Pod {}", names.0, names.1, pod.name_any());
                    self.events.note(set, level, reason, text);
                    self.delete(set, pod).await?;
                }
                Step::Condemn(pod) | Step::Update(pod) => self.delete(set, pod).await?,
            }
        }
        Ok(wait)
    }

    /// Keeps a pod what it is: its labels, its claims and their owners.
    async fn keep(&self, set: &StatefulSet, ordinal: i32, pod: &Pod, condemned: bool) -> Result<(), Error> {
        let labels = identity::labels(set, ordinal);
        if !condemned && !pods::deleting(pod) && !select::subset(Some(&labels), &pod.metadata.labels) {
            let patch = serde_json::json!({"metadata": {"uid": pod.uid(), "labels": labels}});
            let api = family::api::<Pod>(&self.client, &set.namespace().unwrap_or_default());
            found(api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        }
        if pods::phase(pod) == "Pending" && !condemned && !pods::deleting(pod) {
            self.claims_for(set, ordinal).await?;
        }
        for (_, claim) in identity::claims(set, ordinal) {
            let Some(there) = self.claims.get(&key_of(&claim)) else { continue };
            if let Some(owners) = identity::owners(set, pod, condemned, &there) {
                let mut next = PersistentVolumeClaim::clone(&there);
                next.metadata.owner_references = Some(owners);
                let api = family::api::<PersistentVolumeClaim>(&self.client, &set.namespace().unwrap_or_default());
                found(api.replace(&next.name_any(), &PostParams::default(), &next).await)?;
            }
        }
        Ok(())
    }

    /// Makes the claims that a pod lacks. False while one is on its way out: the pod has to wait for its successor.
    async fn claims_for(&self, set: &StatefulSet, ordinal: i32) -> Result<bool, Error> {
        let name = identity::pod_name(set, ordinal);
        let pod = self.pods.get(&join(&set.namespace().unwrap_or_default(), &name)).and_then(|p| p.uid());
        let mut whole = true;
        for (_, claim) in identity::claims(set, ordinal) {
            match self.claims.get(&key_of(&claim)) {
                Some(there) if identity::stale(&there, &name, pod.as_deref()) => whole = false,
                Some(there) => whole &= there.metadata.deletion_timestamp.is_none(),
                None => self.create_claim(set, &claim, &name).await?,
            }
        }
        Ok(whole)
    }

    async fn create_claim(&self, set: &StatefulSet, claim: &PersistentVolumeClaim, pod: &str) -> Result<(), Error> {
        let api = family::api::<PersistentVolumeClaim>(&self.client, &set.namespace().unwrap_or_default());
        let (name, owner) = (claim.name_any(), set.name_any());
        match api.create(&PostParams::default(), claim).await {
            Ok(_) => {
                let text = format!("create Claim {name} Pod {pod} in StatefulSet {owner} success");
                self.events.note(set, Level::Normal, "SuccessfulCreate", text);
                Ok(())
            }
            Err(e) if worker::code(&e) == 409 => Ok(()),
            Err(e) => {
                let why = worker::text(&e);
                let text = format!("create Claim {name} for Pod {pod} in StatefulSet {owner} failed error: {why}");
                self.events.note(set, Level::Warning, "FailedCreate", text);
                Err(e.into())
            }
        }
    }

    async fn create(&self, set: &StatefulSet, pod: &Pod) -> Result<(), kube::Error> {
        let api = family::api::<Pod>(&self.client, &set.namespace().unwrap_or_default());
        let (name, owner) = (pod.name_any(), set.name_any());
        match api.create(&PostParams::default(), pod).await {
            Ok(_) => {
                let text = format!("create Pod {name} in StatefulSet {owner} successful");
                self.events.note(set, Level::Normal, "SuccessfulCreate", text);
                Ok(())
            }
            Err(e) if worker::namespace_terminating(&e) => Ok(()),
            Err(e) => {
                // Already there: the cache is behind, or somebody else's pod has the name.
                if worker::code(&e) != 409 {
                    let text = format!("create Pod {name} in StatefulSet {owner} failed error: {}", worker::text(&e));
                    self.events.note(set, Level::Warning, "FailedCreate", text);
                }
                Err(e)
            }
        }
    }

    async fn delete(&self, set: &StatefulSet, pod: &Pod) -> Result<(), Error> {
        let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let api = family::api::<Pod>(&self.client, &set.namespace().unwrap_or_default());
        let (name, owner) = (pod.name_any(), set.name_any());
        match found(api.delete(&name, &params).await) {
            Ok(Some(_)) => {
                let text = format!("delete Pod {name} in StatefulSet {owner} successful");
                self.events.note(set, Level::Normal, "SuccessfulDelete", text);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(e) => {
                let text = format!("delete Pod {name} in StatefulSet {owner} failed error: {}", worker::text(&e));
                self.events.note(set, Level::Warning, "FailedDelete", text);
                Err(e.into())
            }
        }
    }

    async fn report(&self, key: &str, set: &StatefulSet, status: StatefulSetStatus) -> Result<(), Error> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let next = StatefulSet { status: Some(status), ..set.clone() };
        let api = family::api::<StatefulSet>(&self.client, split(key).0);
        if let Some(w) = found(api.replace_status(&set.name_any(), &PostParams::default(), &next).await)? {
            self.written.note(key, &w);
        }
        Ok(())
    }
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "statefulset-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.sets.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}
