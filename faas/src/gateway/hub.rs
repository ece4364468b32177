//! What the gateway knows of functions: which there are, where their requests go, and what the instances do.
//!
//! The controller writes it, requests read it. A function that was never called costs an entry here and a fleet without
//! instances; one timer serves all that are awake, and stands still when none is.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::fleet::Fleet;
use super::invoke::InvokeError;
use super::metrics::Metrics;
use crate::scale::TICK;

/// What is told of first answers: the key of the function, and where the time went.
type ColdStart = Box<dyn Fn(&str, String) + Send + Sync>;

/// What fleets share.
pub struct Context {
    origin: Instant,
    awake: Mutex<HashMap<String, Weak<Fleet>>>,
    woken: Notify,
    changed: Box<dyn Fn(&str) + Send + Sync>,
    cold: OnceLock<ColdStart>,
    /// The counters.
    pub metrics: Metrics,
}

impl Context {
    /// `changed` is told the key of a function of whose instances something changed. It must not wait.
    #[must_use]
    pub fn new(changed: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self {
            origin: Instant::now(),
            awake: Mutex::default(),
            woken: Notify::new(),
            changed: Box::new(changed),
            cold: OnceLock::new(),
            metrics: Metrics::default(),
        }
    }

    /// Who is told where the time of a first answer went. Only the first one is. It must not wait.
    pub fn on_cold(&self, tell: impl Fn(&str, String) + Send + Sync + 'static) {
        let _ = self.cold.set(Box::new(tell));
    }

    /// A request that waited for a start of this function has its answer.
    pub(super) fn tell_cold(&self, function: &str, text: impl FnOnce() -> String) {
        if let Some(tell) = self.cold.get() {
            tell(function, text());
        }
    }

    /// Time for scalers.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Something changed about a function's instances.
    pub fn changed(&self, function: &str) {
        (self.changed)(function);
    }

    /// This fleet is to be looked after.
    pub fn activate(&self, fleet: &Arc<Fleet>) {
        let key = format!("{}/{}", fleet.namespace, fleet.name);
        let first = {
            let mut awake = self.awake.lock();
            if awake.contains_key(&key) {
                return;
            }
            awake.insert(key, Arc::downgrade(fleet));
            awake.len() == 1
        };
        if first {
            self.woken.notify_one();
        }
    }

    /// Decides for all that are awake, until `stop`.
    pub async fn look_after(&self, stop: CancellationToken) {
        loop {
            if self.awake.lock().is_empty() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.woken.notified() => {}
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(TICK) => {}
            }
            let fleets: Vec<_> = self.awake.lock().iter().map(|(k, f)| (k.clone(), Weak::clone(f))).collect();
            for (key, fleet) in fleets {
                // Taken out first: who becomes awake meanwhile is put in again.
                self.awake.lock().remove(&key);
                if let Some(fleet) = fleet.upgrade()
                    && fleet.tick()
                {
                    self.awake.lock().insert(key, Arc::downgrade(&fleet));
                }
            }
        }
    }
}

/// Where a function's requests go.
#[derive(Clone)]
pub enum Serving {
    /// To revisions.
    Revisions {
        /// Percent and revision; the percents add up to 100.
        shares: Vec<(u32, Arc<Fleet>)>,
        /// Those with a tag.
        tags: HashMap<String, Arc<Fleet>>,
    },
    /// Nowhere yet; they wait.
    Pending,
    /// Nowhere, for a reason that waiting does not change.
    Failed(String),
}

/// A function as requests see it.
#[derive(Clone)]
pub struct Entry {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Whether anybody may call it.
    pub public: bool,
    /// Host names beside its own.
    pub hosts: Vec<String>,
    /// Where its requests go.
    pub serving: Serving,
}

impl Entry {
    /// `NAMESPACE/NAME`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The revision for a request: that of the tag, or one by the shares, where `lot` is below 100.
    fn choose(&self, tag: Option<&str>, lot: u32) -> Option<Result<Arc<Fleet>, InvokeError>> {
        let (shares, tags) = match &self.serving {
            Serving::Revisions { shares, tags } => (shares, tags),
            Serving::Pending => return None,
            Serving::Failed(why) => return Some(Err(InvokeError::NotReady(why.clone()))),
        };
        let unknown = |name: &str| InvokeError::NotFound { namespace: self.namespace.clone(), name: name.to_owned() };
        if let Some(tag) = tag {
            let found = tags.get(tag).cloned();
            return Some(found.ok_or_else(|| unknown(&format!("{} with the tag {tag}", self.name))));
        }
        let mut below = 0;
        for (percent, fleet) in shares {
            below += percent;
            if lot < below {
                return Some(Ok(Arc::clone(fleet)));
            }
        }
        Some(Err(unknown(&self.name)))
    }
}

/// All functions.
pub struct Hub {
    entries: RwLock<HashMap<String, Arc<Entry>>>,
    hosts: RwLock<HashMap<String, String>>,
    fleets: Mutex<HashMap<String, Arc<Fleet>>>,
    version: watch::Sender<u64>,
    synced: watch::Sender<bool>,
    /// What fleets share.
    pub context: Arc<Context>,
}

/// Longest wait for the first list of functions, for requests that come before it is there.
const FIRST_LIST: Duration = Duration::from_secs(10);

impl Hub {
    /// An empty one.
    #[must_use]
    pub fn new(context: Arc<Context>) -> Self {
        Self {
            entries: RwLock::default(),
            hosts: RwLock::default(),
            fleets: Mutex::default(),
            version: watch::channel(0).0,
            synced: watch::channel(false).0,
            context,
        }
    }

    /// From now on a function that is not known does not exist.
    pub fn complete(&self) {
        self.synced.send_replace(true);
    }

    /// A function as it is now.
    pub fn put(&self, entry: Entry) {
        let key = entry.key();
        let mut hosts = self.hosts.write();
        let before = self.entries.write().insert(key.clone(), Arc::new(entry.clone()));
        if before.is_none_or(|b| b.hosts != entry.hosts) {
            hosts.retain(|_, k| *k != key);
            for host in &entry.hosts {
                // Who had it first keeps it.
                hosts.entry(host.to_ascii_lowercase()).or_insert_with(|| key.clone());
            }
        }
        drop(hosts);
        self.version.send_modify(|v| *v += 1);
    }

    /// There is such a function, of which nothing is known yet.
    pub fn announce(&self, entry: Entry) {
        let known = self.entries.read().contains_key(&entry.key());
        if !known {
            self.put(entry);
        }
    }

    /// A function is gone.
    pub fn remove(&self, key: &str) {
        self.hosts.write().retain(|_, k| k != key);
        self.entries.write().remove(key);
        self.context.metrics.forget(key);
        self.version.send_modify(|v| *v += 1);
    }

    /// Waits until the first list of functions is there.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn listed(&self) -> Result<(), InvokeError> {
        let mut synced = self.synced.subscribe();
        match tokio::time::timeout(FIRST_LIST, synced.wait_for(|s| *s)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(InvokeError::Unavailable("functions are not known yet".into())),
        }
    }

    /// A function, once the first list is there.
    pub async fn find(&self, namespace: &str, name: &str) -> Result<Arc<Entry>, InvokeError> {
        let key = format!("{namespace}/{name}");
        if let Some(found) = self.entries.read().get(&key) {
            return Ok(Arc::clone(found));
        }
        self.listed().await?;
        let found = self.entries.read().get(&key).cloned();
        found.ok_or_else(|| InvokeError::NotFound { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// Namespace, name and tag by a host name: `[TAG-]NAME.NAMESPACE[.svc[.DOMAIN]]`, or one of `spec.hosts`.
    pub fn by_host(&self, host: &str) -> Option<(String, String, Option<String>)> {
        let host = host.to_ascii_lowercase();
        let entries = self.entries.read();
        let mut labels = host.splitn(3, '.');
        if let (Some(first), Some(namespace)) = (labels.next(), labels.next())
            && labels.next().is_none_or(|rest| rest == "svc" || rest.starts_with("svc."))
        {
            let known = |name: &str| entries.contains_key(&format!("{namespace}/{name}"));
            if known(first) {
                return Some((namespace.to_owned(), first.to_owned(), None));
            }
            for (i, _) in first.match_indices('-') {
                let (tag, name) = (&first[..i], &first[i + 1..]);
                if known(name) {
                    return Some((namespace.to_owned(), name.to_owned(), Some(tag.to_owned())));
                }
            }
        }
        drop(entries);
        let hosts = self.hosts.read();
        let (namespace, name) = hosts.get(&host)?.split_once('/')?;
        Some((namespace.to_owned(), name.to_owned(), None))
    }

    /// The revision for a request. Waits while the function has none yet.
    pub async fn route(&self, key: &str, tag: Option<&str>, until: Instant) -> Result<Arc<Fleet>, InvokeError> {
        let lot = rand::random_range(0..100);
        let mut version = self.version.subscribe();
        loop {
            version.borrow_and_update();
            let Some(entry) = self.entries.read().get(key).cloned() else {
                let (namespace, name) = key.split_once('/').unwrap_or(("", key));
                return Err(InvokeError::NotFound { namespace: namespace.to_owned(), name: name.to_owned() });
            };
            if let Some(chosen) = entry.choose(tag, lot) {
                return chosen;
            }
            if !matches!(tokio::time::timeout_at(until.into(), version.changed()).await, Ok(Ok(()))) {
                return Err(InvokeError::NotReady("it has no revision yet".into()));
            }
        }
    }

    /// The fleet of a revision, made when it is new.
    pub fn fleet(&self, namespace: &str, revision: &str, make: impl FnOnce() -> Fleet) -> Arc<Fleet> {
        let mut fleets = self.fleets.lock();
        Arc::clone(fleets.entry(format!("{namespace}/{revision}")).or_insert_with(|| Arc::new(make())))
    }

    /// The fleet of a revision, where there is one.
    pub fn known(&self, namespace: &str, revision: &str) -> Option<Arc<Fleet>> {
        self.fleets.lock().get(&format!("{namespace}/{revision}")).cloned()
    }

    /// All fleets.
    pub fn fleets(&self) -> Vec<Arc<Fleet>> {
        self.fleets.lock().values().cloned().collect()
    }

    /// A revision is gone: its instances end when they are idle.
    pub fn forget(&self, namespace: &str, revision: &str) {
        let gone = self.fleets.lock().remove(&format!("{namespace}/{revision}"));
        if let Some(fleet) = gone {
            fleet.close();
            self.context.activate(&fleet);
        }
    }

    /// The counters as text.
    pub fn metrics(&self) -> String {
        let mut loads: BTreeMap<String, [u32; 3]> = BTreeMap::new();
        for fleet in self.fleets() {
            let (in_flight, waiting) = fleet.load();
            let ready = fleet.report().ready;
            let load = loads.entry(fleet.function.clone()).or_default();
            for (sum, n) in load.iter_mut().zip([ready, in_flight, waiting]) {
                *sum += n;
            }
        }
        self.context.metrics.render(&loads)
    }
}
