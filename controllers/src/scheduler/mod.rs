//! The scheduler: binds each pod that has no node to the best one that can take it.
//!
//! One loop decides for one pod at a time on a view in memory and never waits for the server: a placed pod is assumed
//! to be there and bound by a task of its own; if the binding fails, the assumption is taken back and the pod tried
//! again.
//!
//! # Limits
//! Image locality does not count, volumes with node affinity are not looked at, extenders and profiles do not exist.
//! Pods of one controller are spread by default by that controller, not by the Services that select them.

pub mod cache;
pub mod company;
pub mod filter;
pub mod preempt;
pub mod queue;
pub mod resources;
pub mod score;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use k8s_openapi::api::core::v1::{Binding, Namespace, Node, ObjectReference, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::cache::{Cache, Host, Placed};
use self::company::{Company, Namespaces};
use self::filter::Refusal;
use self::queue::Queue;
use crate::controllers::pods;
use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::{Change, Informer, key_of};
use crate::runtime::{now, worker};

/// The name that pods ask for this scheduler by.
pub const NAME: &str = "default-scheduler";

/// A rule that can refuse a node; what helps a waiting pod is looked up by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// The node is cordoned.
    Unschedulable,
    /// The pod names another node.
    Name,
    /// A taint.
    Taints,
    /// Node selector or affinity.
    Affinity,
    /// Host ports.
    Ports,
    /// CPU, memory, number of pods, anything counted.
    Resources,
    /// Topology spreading.
    Spread,
    /// Affinity between pods.
    Company,
}

/// Bindings on their way at once.
const BINDINGS_MAX: usize = 64;
/// Longest wait for one request.
const LIMIT: Duration = Duration::from_secs(15);
const SYNC_LIMIT: Duration = Duration::from_secs(120);

struct Scheduler {
    client: Client,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    namespaces: Informer<Namespace>,
    cache: Mutex<Cache>,
    queue: Queue,
    events: Recorder,
    slots: Arc<Semaphore>,
}

/// Runs the scheduler until `stop`.
///
/// # Errors
/// When pods and nodes cannot be listed in time.
pub async fn run(client: Client, stop: CancellationToken) -> anyhow::Result<()> {
    let s = Arc::new(Scheduler {
        events: Recorder::start(client.clone(), NAME),
        client: client.clone(),
        pods: Informer::default(),
        nodes: Informer::default(),
        namespaces: Informer::default(),
        cache: Mutex::default(),
        queue: Queue::default(),
        slots: Arc::new(Semaphore::new(BINDINGS_MAX)),
    });
    let this = Arc::clone(&s);
    s.nodes.on_change(move |c| this.node_changed(c));
    let this = Arc::clone(&s);
    s.pods.on_change(move |c| this.pod_changed(c));
    let config = watcher::Config::default;
    s.nodes.start(Api::all(client.clone()), config(), stop.clone());
    s.namespaces.start(Api::all(client.clone()), config(), stop.clone());
    s.pods.start(Api::all(client), config(), stop.clone());
    for (name, synced) in [
        ("nodes", s.nodes.wait_synced(SYNC_LIMIT).await),
        ("namespaces", s.namespaces.wait_synced(SYNC_LIMIT).await),
        ("pods", s.pods.wait_synced(SYNC_LIMIT).await),
    ] {
        if stop.is_cancelled() {
            return Ok(());
        }
        if !synced {
            bail!("cannot list {name} within {} s", SYNC_LIMIT.as_secs());
        }
    }
    loop {
        let key = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            key = s.queue.next() => key,
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| s.decide(&key)));
        match outcome {
            Ok(Decision::Nothing) => s.queue.done(&key),
            Ok(Decision::Place(pod, node)) => Scheduler::bind(&s, pod, node).await,
            Ok(Decision::Refuse(pod, total, refusals)) => Scheduler::refuse(&s, pod, total, refusals).await,
            Err(_) => {
                tracing::error!(key, "a scheduling decision panicked");
                s.queue.failed(&key, BTreeSet::new());
            }
        }
    }
}

enum Decision {
    Nothing,
    Place(Arc<Pod>, String),
    Refuse(Arc<Pod>, usize, Vec<(String, Refusal)>),
}

/// Whether this scheduler should find a node for the pod now.
fn wants_node(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    pods::node(pod).is_empty()
        && pods::active(pod)
        && spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
}

fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
}

impl Scheduler {
    fn node_changed(&self, c: &Change<Node>) {
        match &c.new {
            Some(node) => {
                self.cache.lock().set_node(Arc::clone(node));
                // A heartbeat helps nobody.
                let relevant = c.old.as_ref().is_none_or(|o| {
                    let gives = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
                    o.metadata.labels != node.metadata.labels || o.spec != node.spec || gives(o) != gives(node)
                });
                if relevant {
                    self.queue.changed(None);
                }
            }
            None => {
                self.cache.lock().remove_node(&c.latest().name_any());
                self.queue.changed(Some(&[Rule::Spread]));
            }
        }
    }

    fn pod_changed(&self, c: &Change<Pod>) {
        let key = key_of(&**c.latest());
        self.cache.lock().set_pod(&key, c.new.as_ref());
        let was_bound = c.old.as_deref().is_some_and(|p| !pods::node(p).is_empty());
        let Some(pod) = &c.new else {
            self.queue.remove(&key);
            if was_bound {
                self.queue.changed(Some(&[Rule::Resources, Rule::Ports, Rule::Spread, Rule::Company]));
            }
            return;
        };
        if wants_node(pod) {
            let same = c
                .old
                .as_ref()
                .is_some_and(|o| o.spec == pod.spec && o.metadata.labels == pod.metadata.labels && wants_node(o));
            if !same && !self.cache.lock().is_assumed(&key) {
                self.queue.add(&key, priority(pod));
            }
            return;
        }
        self.queue.remove(&key);
        let bound = !pods::node(pod).is_empty();
        let relabelled = c.old.as_ref().is_some_and(|o| o.metadata.labels != pod.metadata.labels);
        if bound && (!was_bound || relabelled) {
            self.queue.changed(Some(&[Rule::Company, Rule::Spread]));
        }
        let freed = c.old.as_deref().is_some_and(|o| !pods::finished(o)) && pods::finished(pod);
        if bound && freed {
            self.queue.changed(Some(&[Rule::Resources, Rule::Ports, Rule::Spread, Rule::Company]));
        }
    }

    fn namespaces(&self) -> Namespaces {
        self.namespaces.all().iter().map(|n| (n.name_any(), n.metadata.labels.clone())).collect()
    }

    /// Finds a node, and assumes the pod there.
    fn decide(&self, key: &str) -> Decision {
        let Some(pod) = self.pods.get(key).filter(|p| wants_node(p)) else { return Decision::Nothing };
        let namespaces = self.namespaces();
        let mut cache = self.cache.lock();
        if cache.is_assumed(key) {
            return Decision::Nothing;
        }
        let placed = Placed::new(Arc::clone(&pod));
        match choose(&placed, &cache, &namespaces) {
            Ok(node) => {
                cache.assume(&pod, &node);
                Decision::Place(pod, node)
            }
            Err(refusals) => Decision::Refuse(pod, refusals.len(), refusals),
        }
    }

    /// Binds in a task of its own; the number of these is bounded.
    async fn bind(this: &Arc<Self>, pod: Arc<Pod>, node: String) {
        let Ok(slot) = Arc::clone(&this.slots).acquire_owned().await else { return };
        let this = Arc::clone(this);
        tokio::spawn(async move {
            let _slot = slot;
            let key = key_of(&*pod);
            let failure = match tokio::time::timeout(LIMIT, this.post_binding(&pod, &node)).await {
                Ok(Ok(())) => None,
                Ok(Err(e)) => Some(worker::text(&e)),
                Err(_) => Some(format!("no answer within {} s", LIMIT.as_secs())),
            };
            match failure {
                None => {
                    this.queue.done(&key);
                    let text = format!("Successfully assigned {key} to {node}");
                    this.events.note(&*pod, Level::Normal, "Scheduled", text);
                }
                Some(text) => {
                    tracing::debug!(key, node, error = text, "binding failed");
                    this.cache.lock().unassume(&key);
                    this.queue.failed(&key, BTreeSet::new());
                    let text = format!("binding rejected: {text}");
                    this.events.note(&*pod, Level::Warning, "FailedScheduling", text);
                }
            }
        });
    }

    async fn post_binding(&self, pod: &Pod, node: &str) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let mut binding = Binding::default();
        binding.metadata.name = Some(pod.name_any());
        binding.metadata.namespace = pod.namespace();
        binding.metadata.uid = pod.uid();
        binding.target =
            ObjectReference { kind: Some("Node".into()), name: Some(node.to_owned()), ..ObjectReference::default() };
        let _: serde_json::Value =
            api.create_subresource("binding", &pod.name_any(), &PostParams::default(), &binding).await?;
        Ok(())
    }

    /// Tells why a pod has no node, and makes room if that is possible.
    async fn refuse(this: &Arc<Self>, pod: Arc<Pod>, total: usize, refusals: Vec<(String, Refusal)>) {
        let key = key_of(&*pod);
        let list: Vec<Refusal> = refusals.iter().map(|(_, r)| r.clone()).collect();
        let mut text = filter::summary(total, &list);
        let mut victims = None;
        if total > 0 {
            let namespaces = this.namespaces();
            let plan = preempt::plan(&pod, &this.cache.lock(), &refusals, &namespaces);
            match plan {
                Ok(found) => victims = Some(found),
                Err(why) => text = format!("{text} preemption: {why}"),
            }
        }
        this.queue.failed(&key, filter::rules(&list));
        this.events.note(&*pod, Level::Warning, "FailedScheduling", text.clone());
        let Ok(slot) = Arc::clone(&this.slots).acquire_owned().await else { return };
        let this = Arc::clone(this);
        tokio::spawn(async move {
            let _slot = slot;
            let nominated = victims.as_ref().map(|v| v.node.clone());
            if let Some(v) = victims {
                preempt::execute(&this.client, &this.events, &pod, &v, LIMIT).await;
            }
            if let Ok(Err(e)) = tokio::time::timeout(LIMIT, this.report(&pod, &text, nominated)).await {
                tracing::debug!(key, error = &e as &dyn std::error::Error, "pod status not written");
            }
        });
    }

    async fn report(&self, pod: &Pod, text: &str, nominated: Option<String>) -> Result<(), kube::Error> {
        let old = pods::condition(pod, "PodScheduled");
        let said = old.is_some_and(|c| {
            c.status == "False" && c.reason.as_deref() == Some("Unschedulable") && c.message.as_deref() == Some(text)
        });
        if said && nominated.is_none() {
            return Ok(());
        }
        let since = old.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.clone());
        let mut status = serde_json::json!({"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": text,
            "lastTransitionTime": since.unwrap_or_else(now), "observedGeneration": pod.metadata.generation,
        }]});
        if let Some(node) = nominated {
            status["nominatedNodeName"] = node.into();
        }
        let patch = serde_json::json!({"metadata": {"uid": pod.uid()}, "status": status});
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        worker::found(api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        Ok(())
    }
}

/// The best node, or why each refuses.
///
/// # Errors
/// A refusal per node.
pub fn choose(placed: &Placed, cache: &Cache, namespaces: &Namespaces) -> Result<String, Vec<(String, Refusal)>> {
    let pod = &placed.pod;
    let company = Company::of(pod, cache, namespaces);
    let mut refusals = Vec::new();
    let mut fit: Vec<(&String, &Host)> = Vec::new();
    for (name, host) in cache.nodes() {
        match filter::node(pod, &placed.asks, host).and_then(|()| company.allows(host)) {
            Ok(()) => fit.push((name, host)),
            Err(r) => refusals.push((name.clone(), r)),
        }
    }
    match fit.as_slice() {
        [] => Err(refusals),
        [(name, _)] => Ok((*name).clone()),
        _ => {
            let hosts: Vec<&Host> = fit.iter().map(|(_, h)| *h).collect();
            let scores = score::all(pod, &placed.weighs, &hosts, &company);
            let top = scores.iter().copied().fold(f64::MIN, f64::max);
            let best: Vec<usize> = (0..fit.len()).filter(|i| top - scores[*i] < 1e-9).collect();
            // Chance among equals, so that no node is always first.
            let chosen = best[rand::random_range(0..best.len())];
            Ok(fit[chosen].0.clone())
        }
    }
}
