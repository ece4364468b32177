//! The scheduler: binds each pod that has no node to the best one that can take it.
//!
//! One loop decides for one pod at a time on a view in memory and never waits for the server: a placed pod is assumed
//! to be there and bound by a task of its own (its volumes before it); if the binding fails, the assumption is taken
//! back and the pod tried again. Only a policy that goes by what nodes use waits for a reading of that, at most a second
//! in fifteen.
//!
//! # Limits
//! Extenders and profiles do not exist.
//! Pods of one controller are spread by default by that controller, not by the Services that select them.

pub mod cache;
pub mod company;
pub mod filter;
pub mod policy;
pub mod preempt;
pub mod queue;
pub mod resources;
pub mod score;
pub mod usage;
pub mod volumes;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use k8s_openapi::api::core::v1::{Binding, ConfigMap, Namespace, Node, ObjectReference, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::cache::{Cache, Host, Placed, priority};
use self::company::{Company, Namespaces};
use self::filter::Refusal;
use self::policy::Policy;
use self::queue::Queue;
use self::usage::{Meter, Usage};
use self::volumes::{Choice, Storage, Wants};
use crate::controllers::pods;
use crate::metrics::{self, Attempt, SCHEDULING};
use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::{Change, Informer, key_of};
use crate::runtime::leader::while_leading;
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
    /// Claims and volumes.
    Volumes,
}

/// Bindings on their way at once.
const BINDINGS_MAX: usize = 64;
/// Pods that wait for their volumes to be bound at once. More are tried again later.
const VOLUME_BINDINGS_MAX: usize = 1000;
/// Longest wait for one request.
const LIMIT: Duration = Duration::from_secs(15);
const SYNC_LIMIT: Duration = Duration::from_secs(120);

struct Scheduler {
    client: Client,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    namespaces: Informer<Namespace>,
    labels: Mutex<Option<Arc<Namespaces>>>,
    cache: Mutex<Cache>,
    queue: Arc<Queue>,
    events: Recorder,
    slots: Arc<Semaphore>,
    storage: Storage,
    volume_slots: Arc<Semaphore>,
    budgets: Informer<PodDisruptionBudget>,
    settings: Informer<ConfigMap>,
    /// The policy in force, and the node it chose last.
    policy: Mutex<(Policy, String)>,
    meter: Meter,
}

/// Runs the scheduler until `stop`; with `leader_elect`, while this process leads.
///
/// # Errors
/// When pods and nodes cannot be listed in time.
pub async fn run(client: Client, leader_elect: bool, stop: CancellationToken) -> anyhow::Result<()> {
    if !leader_elect {
        return work(client, stop).await;
    }
    while_leading(client.clone(), "kube-scheduler", &stop, |inner| work(client.clone(), inner)).await
}

async fn work(client: Client, stop: CancellationToken) -> anyhow::Result<()> {
    let s = Arc::new(Scheduler {
        events: Recorder::start(client.clone(), NAME),
        client: client.clone(),
        pods: Informer::default(),
        nodes: Informer::default(),
        namespaces: Informer::default(),
        labels: Mutex::default(),
        cache: Mutex::default(),
        queue: Arc::default(),
        slots: Arc::new(Semaphore::new(BINDINGS_MAX)),
        storage: Storage::default(),
        volume_slots: Arc::new(Semaphore::new(VOLUME_BINDINGS_MAX)),
        budgets: Informer::default(),
        settings: Informer::default(),
        policy: Mutex::default(),
        meter: Meter::default(),
    });
    metrics::show_pending(&s.queue);
    let this = Arc::clone(&s);
    s.nodes.on_change(move |c| this.node_changed(c));
    let this = Arc::clone(&s);
    s.pods.on_change(move |c| this.pod_changed(c));
    let this = Arc::clone(&s);
    s.namespaces.on_change(move |_| *this.labels.lock() = None);
    s.follow_storage();
    let config = watcher::Config::default;
    s.storage.claims.start(Api::all(client.clone()), config(), stop.clone());
    s.storage.volumes.start(Api::all(client.clone()), config(), stop.clone());
    s.storage.classes.start(Api::all(client.clone()), config(), stop.clone());
    s.nodes.start(Api::all(client.clone()), config(), stop.clone());
    s.namespaces.start(Api::all(client.clone()), config(), stop.clone());
    s.pods.start(Api::all(client.clone()), config(), stop.clone());
    // Neither is waited for: without them pods are placed all the same.
    s.budgets.start(Api::all(client.clone()), config(), stop.clone());
    let this = Arc::clone(&s);
    s.settings.on_change(move |c| this.settings_changed(c));
    let one = config().fields(&format!("metadata.name={}", policy::NAME));
    s.settings.start(Api::namespaced(client, policy::NAMESPACE), one, stop.clone());
    for (name, synced) in [
        ("nodes", s.nodes.wait_synced(SYNC_LIMIT).await),
        ("namespaces", s.namespaces.wait_synced(SYNC_LIMIT).await),
        ("persistentvolumeclaims", s.storage.claims.wait_synced(SYNC_LIMIT).await),
        ("persistentvolumes", s.storage.volumes.wait_synced(SYNC_LIMIT).await),
        ("storageclasses", s.storage.classes.wait_synced(SYNC_LIMIT).await),
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
        let by_use = s.policy.lock().0.by_use();
        if by_use {
            s.meter.refresh(&s.client).await;
        }
        let begun = Instant::now();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| s.decide(&key)));
        if !matches!(outcome, Ok(Decision::Nothing)) {
            SCHEDULING.algorithm.observe(begun.elapsed().as_secs_f64());
        }
        match outcome {
            Ok(Decision::Nothing) => s.queue.done(&key),
            Ok(Decision::Place(pod, place)) => Scheduler::bind(&s, pod, place, begun).await,
            Ok(Decision::Refuse(pod, unfit)) => {
                SCHEDULING.attempt(Attempt::Unschedulable, begun.elapsed());
                Scheduler::refuse(&s, pod, unfit).await;
            }
            Err(_) => {
                SCHEDULING.attempt(Attempt::Error, begun.elapsed());
                tracing::error!(key, "a scheduling decision panicked");
                s.queue.failed(&key, BTreeSet::new());
            }
        }
    }
}

enum Decision {
    Nothing,
    Place(Arc<Pod>, Place),
    Refuse(Arc<Pod>, Unfit),
}

/// A node for a pod, and what its volumes need there.
#[derive(Debug)]
pub struct Place {
    /// The node.
    pub node: Arc<Node>,
    /// What is to be written before the pod is bound.
    pub volumes: Choice,
    /// The score that a policy gave the node.
    pub score: Option<f64>,
    /// The policy.
    pub policy: Policy,
}

/// What a decision rests on besides nodes and pods.
#[derive(Debug)]
pub struct Context<'a> {
    /// Labels of namespaces.
    pub namespaces: &'a Namespaces,
    /// What the pod's volumes ask for.
    pub wants: &'a Wants,
    /// The placement policy.
    pub policy: Policy,
    /// The node that was chosen last.
    pub last: &'a str,
    /// What nodes use, as far as the policy asks.
    pub usage: &'a Usage,
}

/// Why a pod fits nowhere.
#[derive(Debug)]
enum Unfit {
    /// It cannot be placed at all as things are; the number of nodes, and why.
    Anywhere(usize, String),
    /// Each node has its reason.
    Nodes(Vec<(String, Refusal)>, Wants),
}

/// Whether this scheduler should find a node for the pod now.
fn wants_node(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    pods::node(pod).is_empty()
        && pods::active(pod)
        && spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
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
        {
            let mut cache = self.cache.lock();
            cache.set_pod(&key, c.new.as_ref());
            cache.set_nominated(&key, c.new.as_ref().filter(|p| wants_node(p)));
        }
        let was_bound = c.old.as_deref().is_some_and(|p| !pods::node(p).is_empty());
        let Some(pod) = &c.new else {
            self.queue.remove(&key);
            self.storage.touch();
            if was_bound {
                self.queue.changed(Some(&[Rule::Resources, Rule::Ports, Rule::Spread, Rule::Company, Rule::Volumes]));
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
            self.queue.changed(Some(&[Rule::Resources, Rule::Ports, Rule::Spread, Rule::Company, Rule::Volumes]));
        }
    }

    fn settings_changed(&self, c: &Change<ConfigMap>) {
        match Policy::read(c.new.as_deref()) {
            Ok(p) => {
                let before = std::mem::replace(&mut self.policy.lock().0, p);
                if before != p {
                    tracing::info!(policy = p.name(), "placement policy");
                }
            }
            Err(why) => {
                let text = format!("{why}; the policy stays {}", self.policy.lock().0.name());
                self.events.note(&**c.latest(), Level::Warning, "InvalidPolicy", text);
            }
        }
    }

    /// Labels of namespaces, gathered again only after a change of one.
    fn namespaces(&self) -> Arc<Namespaces> {
        let mut seen = self.labels.lock();
        let gather = || self.namespaces.all().iter().map(|n| (n.name_any(), n.metadata.labels.clone())).collect();
        Arc::clone(seen.get_or_insert_with(|| Arc::new(gather())))
    }

    /// Changes of claims, volumes and classes: pods that wait for them, and bindings under way.
    fn follow_storage(self: &Arc<Self>) {
        fn changed<K: crate::runtime::informer::Watched>(s: &Arc<Scheduler>, informer: &Informer<K>) {
            let this = Arc::clone(s);
            informer.on_change(move |_| {
                this.storage.touch();
                this.queue.changed(Some(&[Rule::Volumes]));
            });
        }
        changed(self, &self.storage.claims);
        changed(self, &self.storage.volumes);
        changed(self, &self.storage.classes);
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
        let wants = match self.storage.wants(&pod) {
            Ok(w) => w,
            Err(why) => return Decision::Refuse(pod, Unfit::Anywhere(cache.len(), why)),
        };
        let (policy, last) = self.policy.lock().clone();
        let usage = self.meter.last();
        let context = Context { namespaces: &namespaces, wants: &wants, policy, last: &last, usage: &usage };
        match choose(&placed, &cache, &context) {
            Ok(place) => {
                let node = place.node.name_any();
                cache.assume(placed, &node);
                self.storage.assume(&place.volumes, &node);
                self.policy.lock().1 = node;
                Decision::Place(pod, place)
            }
            Err(refusals) => Decision::Refuse(pod, Unfit::Nodes(refusals, wants)),
        }
    }

    /// Binds in a task of its own; the number of these is bounded.
    async fn bind(this: &Arc<Self>, pod: Arc<Pod>, place: Place, begun: Instant) {
        if !place.volumes.is_empty() {
            // Provisioners may take minutes: waiting for them must not hold up others.
            let Ok(slot) = Arc::clone(&this.volume_slots).try_acquire_owned() else {
                return this.unbound(&pod, &place, "too many pods wait for their volumes", begun);
            };
            let this = Arc::clone(this);
            tokio::spawn(async move {
                let _slot = slot;
                let key = key_of(&*pod);
                let lives = || this.pods.get(&key).is_some_and(|p| p.uid() == pod.uid() && !pods::deleting(&p));
                match this.storage.bind(&this.client, &place.volumes, &place.node, lives).await {
                    Ok(()) => {
                        this.storage.forget(&place.volumes);
                        let Ok(_slot) = this.slots.acquire().await else { return };
                        this.finish(&pod, &place, begun).await;
                    }
                    Err(why) => {
                        let text = format!("running PreBind plugin \"VolumeBinding\": binding volumes: {why}");
                        this.unbound(&pod, &place, &text, begun);
                    }
                }
            });
            return;
        }
        let Ok(slot) = Arc::clone(&this.slots).acquire_owned().await else { return };
        let this = Arc::clone(this);
        tokio::spawn(async move {
            let _slot = slot;
            this.finish(&pod, &place, begun).await;
        });
    }

    /// The binding itself.
    async fn finish(&self, pod: &Arc<Pod>, place: &Place, begun: Instant) {
        let (key, node) = (key_of(&**pod), place.node.name_any());
        // The watch may tell of the binding, and the queue forget the pod, before the answer is here.
        let (asked, history) = (Instant::now(), self.queue.history(&key));
        let failure = match tokio::time::timeout(LIMIT, self.post_binding(pod, &node)).await {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(worker::text(&e)),
            Err(_) => Some(format!("no answer within {} s", LIMIT.as_secs())),
        };
        SCHEDULING.point("Bind", failure.is_none(), asked.elapsed());
        match failure {
            None => {
                SCHEDULING.attempt(Attempt::Scheduled, begun.elapsed());
                if let Some((tries, waited)) = history {
                    SCHEDULING.scheduled(tries, waited + asked.elapsed());
                }
                self.queue.done(&key);
                let mut text = format!("Successfully assigned {key} to {node}");
                if let Some(score) = place.score {
                    text = format!("{text} (policy {}, score {score:.0})", place.policy.name());
                }
                self.events.note(&**pod, Level::Normal, "Scheduled", text);
            }
            Some(text) => self.unbound(pod, place, &format!("binding rejected: {text}"), begun),
        }
    }

    /// A placement came to nothing: the pod is tried again.
    fn unbound(&self, pod: &Arc<Pod>, place: &Place, text: &str, begun: Instant) {
        SCHEDULING.attempt(Attempt::Error, begun.elapsed());
        let key = key_of(&**pod);
        tracing::debug!(key, node = place.node.name_any(), error = text, "binding failed");
        self.storage.forget(&place.volumes);
        self.cache.lock().unassume(&key);
        self.queue.failed(&key, BTreeSet::new());
        self.events.note(&**pod, Level::Warning, "FailedScheduling", text);
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
    async fn refuse(this: &Arc<Self>, pod: Arc<Pod>, unfit: Unfit) {
        let key = key_of(&*pod);
        let mut victims = None;
        let (text, rules) = match unfit {
            Unfit::Anywhere(total, why) => (filter::nowhere(total, &why), BTreeSet::from([Rule::Volumes])),
            Unfit::Nodes(refusals, wants) => {
                let list: Vec<Refusal> = refusals.iter().map(|(_, r)| r.clone()).collect();
                let mut text = filter::summary(list.len(), &list);
                if !list.is_empty() {
                    let namespaces = this.namespaces();
                    let budgets = this.budgets.all();
                    let context = preempt::Context { namespaces: &namespaces, wants: &wants, budgets: &budgets };
                    let plan = preempt::plan(&pod, &this.cache.lock(), &refusals, &context);
                    SCHEDULING.preempted(plan.as_ref().ok().map(|v| v.pods.len()));
                    if let Ok(v) = &plan {
                        this.cache.lock().nominate(&pod, &v.node);
                    }
                    match plan {
                        Ok(found) => victims = Some(found),
                        Err(why) => text = format!("{text} {}{why}", filter::PREEMPTION),
                    }
                }
                (text, filter::rules(&list))
            }
        };
        this.queue.failed(&key, rules);
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

/// How many nodes that can take a pod are enough to choose among: upstream's numbers. All of up to 100; of more, a
/// share that falls from a half to a twentieth.
#[must_use]
pub fn enough(nodes: usize) -> usize {
    const LEAST: usize = 100;
    if nodes < LEAST {
        return nodes;
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(LEAST)
}

/// The best node, or why each refuses. In a large cluster not all that can take the pod are compared, and each search
/// begins where the last one ended.
///
/// # Errors
/// A refusal per node.
pub fn choose(placed: &Placed, cache: &Cache, context: &Context<'_>) -> Result<Place, Vec<(String, Refusal)>> {
    let pod = &placed.pod;
    let Context { namespaces, wants, policy, last, usage } = *context;
    let company = Company::of(pod, cache, namespaces);
    let conflict = wants.conflict(pod, cache);
    let allowed = |name: &str, host: &Host| {
        filter::node(placed, host)
            // Room that was made for a pod of at least this priority is not free.
            .and_then(|()| cache.with_nominated(name, pod).map_or(Ok(()), |h| filter::node(placed, &h)))
            .and_then(|()| wants.allows(host, conflict))
            .and_then(|choice| company.allows(host).map(|()| choice))
    };
    // A policy speaks of all nodes.
    let most = if policy == Policy::Default { enough(cache.len()) } else { usize::MAX };
    let mut fit: Vec<(&Arc<Node>, &Host, Choice)> = Vec::with_capacity(most.min(cache.len()));
    let mut looked = 0;
    for (name, host) in cache.from_next() {
        if fit.len() >= most {
            break;
        }
        looked += 1;
        if let Some(node) = host.node.as_ref().filter(|_| filter::has_room(&placed.asks, host))
            && let Ok(choice) = allowed(name, host)
        {
            fit.push((node, host, choice));
        }
    }
    if fit.is_empty() {
        // The reasons are put into words only when somebody will read them.
        let why = |(name, host): (&String, &Host)| Some((name.clone(), allowed(name, host).err()?));
        return Err(cache.nodes().filter_map(why).collect());
    }
    cache.advance(looked);
    let hosts: Vec<&Host> = fit.iter().map(|(_, h, _)| *h).collect();
    let mut best: Vec<usize> = (0..fit.len()).collect();
    let policy_scores = policy.scores(&hosts, &placed.weighs, last, usage);
    if let Some(scores) = &policy_scores {
        best = highest(&best, scores);
    }
    if best.len() > 1 {
        best = highest(&best, &score::all(pod, &placed.weighs, &hosts, &company));
    }
    // Chance among equals, so that no node is always first.
    let chosen = best[rand::random_range(0..best.len())];
    let score = policy_scores.map(|s| s[chosen]);
    let (node, _, volumes) = fit.swap_remove(chosen);
    Ok(Place { node: Arc::clone(node), volumes, score, policy })
}

/// Those of `among` with the highest score.
fn highest(among: &[usize], scores: &[f64]) -> Vec<usize> {
    let top = among.iter().map(|i| scores[*i]).fold(f64::MIN, f64::max);
    among.iter().copied().filter(|i| top - scores[*i] < 1e-9).collect()
}
