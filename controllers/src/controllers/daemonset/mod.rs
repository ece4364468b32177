//! DaemonSets: one pod on every node that fits.
//!
//! A pod names its node in its affinity and is bound by the scheduler like any other. Where pods belong is decided in
//! [`place`], what comes next in [`plan`]; here is what reads and writes.

pub mod place;
pub mod plan;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::PostParams;
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use tokio::time::Instant;

use self::plan::{Sight, Work};
use super::family::{self, BURST, Claim};
use super::pods;
use super::revisions::{self, REVISION, Source};
use crate::runtime::events::{Level, Recorder};
use crate::runtime::expectations::Expectations;
use crate::runtime::informer::{Informer, controller_of, join, key_of, split};
use crate::runtime::queue::Queue;
use crate::runtime::select;
use crate::runtime::worker::{self, Error, Outcome, Reconcile, found};

/// Revisions that are kept when nothing is said.
const HISTORY: i32 = 10;
/// First pause before a failed pod is replaced on its node; it doubles with every further one.
const PAUSE_BASE: Duration = Duration::from_secs(1);
/// Longest pause. One that lies twice as long back is forgotten.
const PAUSE_MAX: Duration = Duration::from_secs(900);

/// The last removal of a failed pod on a node, and the pause after it.
struct Pause {
    since: Instant,
    length: Duration,
}

/// The DaemonSet controller.
pub struct Controller {
    client: Client,
    sets: Informer<DaemonSet>,
    revisions: Informer<ControllerRevision>,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    queue: Arc<Queue>,
    expected: Arc<Expectations>,
    /// By set and node.
    pauses: Mutex<HashMap<String, HashMap<String, Pause>>>,
    events: Recorder,
}

impl Controller {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(
        client: Client,
        sets: Informer<DaemonSet>,
        revisions: Informer<ControllerRevision>,
        nodes: Informer<Node>,
        pods: Informer<Pod>,
    ) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let expected = Arc::new(Expectations::default());
        let q = Arc::clone(&queue);
        sets.on_change(move |c| q.add(key_of(&**c.latest())));
        let (q, all) = (Arc::clone(&queue), sets.clone());
        nodes.on_change(move |c| {
            if let (Some(old), Some(new)) = (&c.old, &c.new)
                && !place::matters(old, new)
            {
                return;
            }
            all.keys().into_iter().for_each(|k| q.add(k));
        });
        let (q, e, all) = (Arc::clone(&queue), Arc::clone(&expected), sets.clone());
        pods.on_change(move |c| {
            let owner = |p: &Pod| {
                let r = controller_of(p).filter(|r| r.kind == "DaemonSet")?;
                Some(join(p.metadata.namespace.as_deref().unwrap_or_default(), &r.name))
            };
            let before = c.old.as_deref().and_then(owner);
            let after = c.new.as_deref().and_then(owner);
            if let (None, Some(key)) = (&c.old, &after) {
                e.created(key);
            }
            if let Some(key) = &before
                && c.new.as_deref().is_none_or(pods::deleting)
            {
                e.deleted(key, &key_of(&**c.latest()));
            }
            for key in before.iter().chain(&after) {
                q.add(key.clone());
            }
            if let Some(pod) = c.new.as_deref().filter(|p| controller_of(*p).is_none()) {
                let takes = |d: &&Arc<DaemonSet>| {
                    !select::is_empty(&d.spec.selector) && select::matches(&d.spec.selector, &pod.metadata.labels)
                };
                let here = all.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
                here.iter().filter(takes).for_each(|d| q.add(key_of(&**d)));
            }
        });
        let events = Recorder::start(client.clone(), "daemonset-controller");
        let pauses = Mutex::default();
        Arc::new(Self { client, sets, revisions, nodes, pods, queue, expected, pauses, events })
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(ds) = self.sets.get(key) else {
            self.expected.forget(key);
            self.pauses.lock().remove(key);
            return Ok(None);
        };
        if select::is_empty(&ds.spec.selector) {
            let text = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.events.note(&*ds, Level::Warning, "SelectingAll", text);
            return Ok(None);
        }
        let believable = self.expected.satisfied(key);
        let source = Source {
            selector: &ds.spec.selector,
            template: &ds.spec.template,
            collisions: ds.status.as_ref().and_then(|s| s.collision_count),
            hash_label: REVISION,
        };
        let claim =
            Claim { selector: &ds.spec.selector, member: |_, _| true, adoptable: |_: &Pod| true, finalizer: None };
        let mine = family::claim(&self.client, &*ds, &self.pods, &claim).await?;
        let leaving = ds.metadata.deletion_timestamp.is_some();
        let history = revisions::sync(&self.client, &*ds, &self.revisions, &source).await?;
        let hash = history.update.labels().get(REVISION).cloned().unwrap_or_default();
        let sight = Sight::new(&ds, &self.nodes.all(), &mine, &hash);
        let mut again = family::next_available(&mine, plan::min_ready(&ds));
        let mut result = Ok(());
        if believable && !leaving {
            let mut work = sight.manage();
            if work.create.is_empty() && work.delete.is_empty() && work.ended.is_empty() {
                work = sight.roll();
            }
            let pause = self.sort_ended(key, &ds, &mut work);
            again = [again, pause].into_iter().flatten().min();
            result = self.act(key, &ds, &hash, work).await;
        }
        self.report(key, &ds, sight.status(history.collisions)).await?;
        result?;
        let hashes: HashSet<&String> = mine.iter().filter_map(|p| p.metadata.labels.as_ref()?.get(REVISION)).collect();
        let used = |r: &&Arc<ControllerRevision>| r.labels().get(REVISION).is_some_and(|h| hashes.contains(h));
        let mut live: HashSet<String> = history.all.iter().filter(used).map(|r| r.name_any()).collect();
        live.insert(history.update.name_any());
        let limit = ds.spec.revision_history_limit.unwrap_or(HISTORY);
        revisions::forget(&self.client, &*ds, &history.all, &live, limit).await?;
        Ok(again)
    }

    /// Moves ended pods to those that are deleted, but failed ones only after their node's pause. Answers when to look
    /// again.
    fn sort_ended(&self, key: &str, ds: &DaemonSet, work: &mut Work) -> Option<Duration> {
        let now = Instant::now();
        let mut pauses = self.pauses.lock();
        let pauses = pauses.entry(key.to_owned()).or_default();
        pauses.retain(|_, p| now.duration_since(p.since) < PAUSE_MAX * 2);
        let mut again = None;
        for pod in std::mem::take(&mut work.ended) {
            let node = place::node_of(&pod).unwrap_or_default().to_owned();
            let name = key_of(&*pod);
            if pods::phase(&pod) == "Succeeded" {
                let text = format!("Found succeeded daemon pod {name} on node {node}, will try to delete it");
                self.events.note(ds, Level::Normal, "SucceededDaemonPod", text);
                work.delete.push(pod);
                continue;
            }
            if let Some(p) = pauses.get(&node)
                && now.duration_since(p.since) < p.length
            {
                let left = p.length - now.duration_since(p.since);
                again = Some(again.map_or(left, |a: Duration| a.min(left)));
                continue;
            }
            let length = pauses.get(&node).map_or(PAUSE_BASE, |p| (p.length * 2).min(PAUSE_MAX));
            pauses.insert(node.clone(), Pause { since: now, length });
            let text = format!("Found failed daemon pod {name} on node {node}, will try to kill it");
            self.events.note(ds, Level::Warning, "FailedDaemonPod", text);
            work.delete.push(pod);
        }
        again
    }

    async fn act(&self, key: &str, ds: &DaemonSet, hash: &str, mut work: Work) -> Result<(), Error> {
        work.delete.truncate(BURST);
        work.create.truncate(BURST);
        self.expected.expect(key, work.create.len(), work.delete.iter().map(|p| key_of(&**p)));
        let tries = work.delete.iter().map(|pod| async move {
            let gone = family::delete_pod(&self.client, &self.events, ds, pod).await;
            gone.or_else(|e| {
                self.expected.deleted(key, &key_of(&**pod));
                if worker::not_found(&e) { Ok(()) } else { Err(e) }
            })
        });
        let deleted: Result<Vec<()>, kube::Error> = join_all(tries).await.into_iter().collect();
        let (unstarted, made) = family::slow_start(work.create.len(), async |i| {
            let pod = place::pod(ds, &work.create[i], hash);
            let made = family::create_pod(&self.client, &self.events, ds, &pod).await;
            made.inspect_err(|_| self.expected.created(key)).map(drop)
        })
        .await;
        (0..unstarted).for_each(|_| self.expected.created(key));
        made.or_else(|e| if worker::namespace_terminating(&e) { Ok(()) } else { Err(e) })?;
        deleted?;
        Ok(())
    }

    async fn report(&self, key: &str, ds: &DaemonSet, status: DaemonSetStatus) -> Result<(), Error> {
        if ds.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let next = DaemonSet { status: Some(status), ..ds.clone() };
        let api = family::api::<DaemonSet>(&self.client, split(key).0);
        found(api.replace_status(&ds.name_any(), &PostParams::default(), &next).await)?;
        Ok(())
    }
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "daemonset-controller"
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
