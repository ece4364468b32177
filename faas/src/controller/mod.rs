//! Makes what functions say: revisions of their code, the way of their requests, their Services, their status.
//!
//! One reconciler for functions; what changes revisions, and instances, leads to the function they belong to. A new
//! revision is started once before it gets requests, unless there is no older one it could replace: then its first
//! request starts it. One that does not start leaves the old one serving, with a condition that says why.

mod ingress;
mod revisions;
mod services;
mod status;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::Mutex;
use skiff_controllers::runtime::events::{Level, Recorder};
use skiff_controllers::runtime::informer::{Informer, key_of, split};
use skiff_controllers::runtime::queue::Queue;
use skiff_controllers::runtime::worker::{Outcome, Reconcile};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::api::{Code, Function, FunctionRevision, Isolation};
use crate::container::Pods;
use crate::gateway::fleet::Fleet;
use crate::gateway::hub::{Entry, Hub, Serving};
use crate::gateway::live::stop;
use crate::instance::{Class, Event};
use crate::scale::{Settings, concurrency};
use crate::trigger::Triggers;
pub use services::Place;

/// Instances change in bursts; a function's status follows this much later.
const SETTLE: Duration = Duration::from_millis(150);
/// How often a ConfigMap with code is looked at.
const CONFIG_MAP: Duration = Duration::from_secs(60);
/// A revision that did not start before it got requests is started again after this time.
const AGAIN: Duration = Duration::from_secs(300);
/// Revisions that are prepared ahead at a time, and the time for one.
const PREPARING: usize = 4;
const PREPARED: Duration = Duration::from_secs(300);
/// How often what gone revisions left is deleted, and how long after one went: later than what was just used is kept anyway.
const TIDY: Duration = Duration::from_secs(3600);
const TIDY_AFTER: Duration = Duration::from_secs(150);
/// Revisions kept beside those with traffic.
const HISTORY: usize = 10;

/// What runs functions.
#[derive(Clone)]
pub struct Classes {
    /// Pods.
    pub pods: Arc<Pods>,
    /// Processes, where there are any.
    pub processes: Option<Arc<dyn Class>>,
}

impl Classes {
    /// The class of some code: what it says, else what its runtime is best in.
    fn of(&self, code: &Code) -> Result<Arc<dyn Class>, String> {
        let pods = || Arc::clone(&self.pods) as Arc<dyn Class>;
        match (code.isolation, &self.processes) {
            (Some(Isolation::Process), None) => Err("nothing here runs functions as processes".into()),
            (Some(Isolation::Process), Some(processes)) => processes.takes(code).map(|()| Arc::clone(processes)),
            (None, Some(processes)) if processes.takes(code).is_ok() => Ok(Arc::clone(processes)),
            (None | Some(Isolation::Container), _) => Ok(pods()),
        }
    }

    /// Where instances of a revision are: what its status says, so that a restart finds them again.
    fn running(&self, revision: &FunctionRevision) -> Result<Arc<dyn Class>, String> {
        match (revision.status.as_ref().and_then(|s| s.class), &self.processes) {
            (Some(Isolation::Container), _) => Ok(Arc::clone(&self.pods) as Arc<dyn Class>),
            (Some(Isolation::Process), Some(processes)) => Ok(Arc::clone(processes)),
            _ => self.of(&revision.spec.code),
        }
    }
}

/// The term by which revisions of a function are found.
fn term(namespace: &str, function: &str) -> String {
    format!("function/{namespace}/{function}")
}

fn terms(revision: &FunctionRevision) -> Vec<String> {
    vec![term(revision.metadata.namespace.as_deref().unwrap_or_default(), &revision.spec.function)]
}

/// The controller.
pub struct Controller {
    client: Client,
    functions: Informer<Function>,
    revisions: Informer<FunctionRevision>,
    hub: Arc<Hub>,
    classes: Classes,
    place: Place,
    recorder: Recorder,
    queue: Arc<Queue>,
    ensured: Mutex<services::Ensured>,
    preparing: Arc<Semaphore>,
    /// A revision went.
    left: Notify,
}

/// A queue of functions, and the function by which it is told of changes of instances.
pub fn queue() -> (Arc<Queue>, impl Fn(&str) + Send + Sync + 'static) {
    let queue = Arc::new(Queue::default());
    let tell = Arc::clone(&queue);
    (queue, move |key: &str| tell.add_after(key, SETTLE))
}

impl Controller {
    /// One that fills this hub. `queue` is what instances' changes go to.
    #[must_use]
    pub fn new(client: Client, hub: Arc<Hub>, classes: Classes, place: Place, queue: Arc<Queue>) -> Self {
        let recorder = Recorder::start(client.clone(), "skiff-functions");
        let (functions, revisions) = (Informer::default(), Informer::new(terms));
        let preparing = Arc::new(Semaphore::new(PREPARING));
        Self {
            client,
            functions,
            revisions,
            hub,
            classes,
            place,
            recorder,
            queue,
            ensured: Mutex::default(),
            preparing,
            left: Notify::new(),
        }
    }

    /// Lets triggers follow functions too. Before [`Controller::follow`].
    pub fn trigger(&self, triggers: Arc<Triggers>) {
        self.functions.on_change(move |change| match &change.new {
            Some(function) => triggers.changed(function),
            None => triggers.gone(change.latest()),
        });
    }

    /// Follows functions and their revisions until `stop`. False when their first lists took too long.
    pub async fn follow(self: &Arc<Self>, limit: Duration, stop: &CancellationToken) -> bool {
        let this = Arc::downgrade(self);
        self.functions.on_change(move |change| {
            let Some(this) = this.upgrade() else { return };
            let key = key_of(&**change.latest());
            if change.new.is_some() {
                // A request that comes now waits instead of being told that there is no such function.
                this.hub.announce(entry(change.latest(), Serving::Pending));
            }
            // The status is ours.
            let generation = |f: &Arc<Function>| (f.metadata.generation, f.metadata.deletion_timestamp.clone());
            if change.old.as_ref().map(generation) != change.new.as_ref().map(generation) {
                this.queue.add(key);
            }
        });
        let this = Arc::downgrade(self);
        self.revisions.on_change(move |change| {
            let Some(this) = this.upgrade() else { return };
            let revision = change.latest();
            let namespace = revision.metadata.namespace.as_deref().unwrap_or_default();
            if change.new.is_none() {
                this.left.notify_one();
                this.hub.forget(namespace, revision.metadata.name.as_deref().unwrap_or_default());
            }
            this.queue.add(format!("{namespace}/{}", revision.spec.function));
        });
        // Revisions first: a function that seems to have none gets one.
        self.revisions.start(Api::all(self.client.clone()), watcher::Config::default(), stop.clone());
        if !self.revisions.wait_synced(limit).await {
            return false;
        }
        self.functions.start(Api::all(self.client.clone()), watcher::Config::default(), stop.clone());
        self.functions.wait_synced(limit).await
    }

    /// Reads what happens to instances until the class ends.
    pub async fn listen(self: Arc<Self>, class: Arc<dyn Class>, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Found { namespace, revision, instance } => {
                    let known = self.revisions.get(&format!("{namespace}/{revision}"));
                    match known.and_then(|r| self.fleet(&r).ok()).filter(|f| f.class() == class.isolation()) {
                        Some(fleet) => fleet.arrived(instance, false),
                        None => stop(Arc::clone(&class), namespace, instance.name),
                    }
                }
                Event::Ended { namespace, name, reason } => {
                    let of_class = |f: &Arc<Fleet>| f.namespace == namespace && f.class() == class.isolation();
                    let fleet = self.hub.fleets().into_iter().filter(of_class).find(|f| f.lost(&name, &reason));
                    if let Some(function) = fleet.and_then(|f| self.functions.get(&f.function)) {
                        let message = format!("instance {name} ended: {reason}");
                        self.recorder.note(&*function, Level::Warning, "InstanceEnded", message);
                    }
                    // A pod that ended is still there.
                    stop(Arc::clone(&class), namespace, name);
                }
            }
        }
    }

    /// Has what gone revisions left deleted, until it is dropped: some time after one went, and now and then.
    pub async fn tidy(self: Arc<Self>) {
        loop {
            // Nobody depends on it: a timer makes up for what a node did not do.
            let _ = tokio::time::timeout(TIDY, self.left.notified()).await;
            tokio::time::sleep(TIDY_AFTER).await;
            let all = self.revisions.all();
            let classes = [Some(Arc::clone(&self.classes.pods) as Arc<dyn Class>), self.classes.processes.clone()];
            for class in classes.into_iter().flatten() {
                if tokio::time::timeout(TIDY, class.tidy(&all)).await.is_err() {
                    tracing::warn!("what functions left on nodes is not deleted in time");
                }
            }
        }
    }

    /// Tells a function's owner where the time of a first answer went.
    pub(crate) fn cold(&self, key: &str, text: String) {
        if let Some(function) = self.functions.get(key) {
            self.recorder.note(&*function, Level::Normal, "ColdStart", text);
        }
    }

    /// The instances of a revision.
    fn fleet(&self, revision: &Arc<FunctionRevision>) -> Result<Arc<Fleet>, String> {
        let (namespace, name) = names(&**revision);
        if let Some(known) = self.hub.known(namespace, name) {
            return Ok(known);
        }
        let class = self.classes.running(revision)?;
        let limit = concurrency(&revision.spec.code, class.isolation());
        let function = self.functions.get(&format!("{namespace}/{}", revision.spec.function));
        let settings =
            function.map(|f| Settings::of(&f.spec, limit)).unwrap_or_else(|| Settings::of(&Default::default(), limit));
        // Nobody asks for instances yet.
        let settings = Settings { min: 0, ..settings };
        let context = Arc::clone(&self.hub.context);
        Ok(self.hub.fleet(namespace, name, || Fleet::new(Arc::clone(revision), class, settings, context)))
    }

    /// Lets the class of a new revision do ahead what its first start would wait for.
    fn prepare(&self, revision: &Arc<FunctionRevision>) {
        let Ok(class) = self.classes.running(revision) else { return };
        let (revision, turns) = (Arc::clone(revision), Arc::clone(&self.preparing));
        tokio::spawn(async move {
            let Ok(_turn) = turns.acquire_owned().await else { return };
            let name = revision.metadata.name.clone().unwrap_or_default();
            // What is wrong with it is told by its first start.
            match tokio::time::timeout(PREPARED, class.prepare(revision)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(revision = %name, %error, "a revision could not be prepared"),
                Err(_) => tracing::debug!(revision = %name, "preparing a revision took too long"),
            }
        });
    }

    /// A function's revisions, oldest first.
    fn revisions_of(&self, namespace: &str, name: &str) -> Vec<Arc<FunctionRevision>> {
        let mut all = self.revisions.with_term(&term(namespace, name));
        all.sort_by_key(|r| r.spec.number);
        all
    }

    /// A function is gone, or going.
    fn drop_function(&self, key: &str) {
        let (namespace, name) = split(key);
        self.hub.remove(key);
        for revision in self.revisions_of(namespace, name) {
            self.hub.forget(namespace, names(&*revision).1);
        }
        self.ensured.lock().remove(key);
    }

    async fn step(&self, key: &str) -> Outcome {
        let Some(function) = self.functions.get(key).filter(|f| f.metadata.deletion_timestamp.is_none()) else {
            self.drop_function(key);
            return Ok(None);
        };
        let source = self.revise(&function).await?;
        let (namespace, name) = split(key);
        let mut seen = status::Seen { source, ..status::Seen::default() };
        let revisions = self.revisions_of(namespace, name);
        let again = self.judge(&function, &revisions, &mut seen).await?;
        let revisions = self.revisions_of(namespace, name);
        self.route(&function, &revisions, &mut seen);
        seen.service = self.services(&function).await?;
        self.forget_old(&function, &revisions).await?;
        self.report(&function, &revisions, &seen).await?;
        let look = function.spec.code.source.config_map.as_ref().map(|_| CONFIG_MAP);
        Ok([again, look].into_iter().flatten().min())
    }
}

/// A function as requests see it.
fn entry(function: &Function, serving: Serving) -> Entry {
    let (namespace, name) = names(function);
    Entry {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        public: function.spec.public,
        hosts: function.spec.hosts.clone(),
        serving,
    }
}

fn names<K: kube::Resource>(object: &K) -> (&str, &str) {
    let meta = object.meta();
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "functions"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.step(key).boxed()
    }

    fn resync(&self) {
        for key in self.functions.keys() {
            self.queue.add(key);
        }
    }
}
