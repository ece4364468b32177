//! Shared informers: one watch per kind, a local copy of its objects with indexes, and change handlers.
//!
//! Contract: what a lookup returns may be behind the server; it is never changed in place. Handlers run on the watch's
//! own task after the copy is changed, so they must only enqueue keys. Managed fields are dropped on arrival: they are
//! often larger than the rest, and no controller reads them (a write without them leaves the server's as they are).

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What can be watched.
pub trait Watched: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static {}
impl<K> Watched for K where K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static {}

/// `namespace/name`, or `name` for kinds of the whole cluster.
pub fn key_of<K: Resource>(object: &K) -> String {
    let meta = object.meta();
    join(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// The key of a name in a namespace (empty: of the whole cluster).
#[must_use]
pub fn join(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

/// Namespace and name of a key.
#[must_use]
pub fn split(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

/// A difference that handlers are told: no `old` is an addition, no `new` a deletion.
#[derive(Debug)]
pub struct Change<K> {
    /// Before.
    pub old: Option<Arc<K>>,
    /// After.
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The most recent state that is known.
    ///
    /// # Panics
    /// Never: a change has at least one side.
    #[must_use]
    pub fn latest(&self) -> &Arc<K> {
        match (&self.new, &self.old) {
            (Some(o), _) | (None, Some(o)) => o,
            (None, None) => unreachable!("a change has a side"),
        }
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;
type Index<K> = fn(&K) -> Vec<String>;
type Trim<K> = fn(&mut K);

struct State<K> {
    objects: HashMap<String, Arc<K>>,
    indexed: HashMap<String, BTreeSet<String>>,
}

struct Inner<K> {
    state: RwLock<State<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    index: Index<K>,
    trim: Trim<K>,
    synced: watch::Sender<bool>,
}

/// A local copy of all objects of a kind. Cloning shares it.
pub struct Informer<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<K: Watched> Default for Informer<K> {
    fn default() -> Self {
        Self::new(|_| vec![])
    }
}

/// Index term for the controller of an object, and for objects of a namespace that have none.
pub fn by_controller<K: Resource>(object: &K) -> String {
    match controller_of(object) {
        Some(r) => owner_term(&r.uid),
        None => orphan_term(object.meta().namespace.as_deref().unwrap_or_default()),
    }
}

/// The term [`by_controller`] gives for objects that `uid` controls.
#[must_use]
pub fn owner_term(uid: &str) -> String {
    format!("owner/{uid}")
}

/// The term [`by_controller`] gives for objects of a namespace without controller.
#[must_use]
pub fn orphan_term(namespace: &str) -> String {
    format!("orphan/{namespace}")
}

/// The owner reference that is marked as the controller.
pub fn controller_of<K: Resource>(
    object: &K,
) -> Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference> {
    object.meta().owner_references.as_ref()?.iter().find(|r| r.controller == Some(true))
}

fn namespace_term(namespace: &str) -> String {
    format!("namespace/{namespace}")
}

impl<K: Watched> Informer<K> {
    /// An empty copy with extra index terms. Namespaces are always indexed.
    #[must_use]
    pub fn new(index: Index<K>) -> Self {
        Self::made(index, |_| {})
    }

    /// An empty copy of a kind that there is very much of: `trim` takes away from an object, on arrival, what nobody here
    /// reads. It must leave name, namespace, uid and resourceVersion. What is trimmed must not be written back.
    #[must_use]
    pub fn trimmed(trim: Trim<K>) -> Self {
        Self::made(|_| vec![], trim)
    }

    fn made(index: Index<K>, trim: Trim<K>) -> Self {
        let state = RwLock::new(State { objects: HashMap::new(), indexed: HashMap::new() });
        let inner = Inner { state, handlers: RwLock::default(), index, trim, synced: watch::channel(false).0 };
        Self { inner: Arc::new(inner) }
    }

    /// Adds a handler. Only those added before [`Informer::start`] see the first list.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        self.inner.handlers.write().push(Box::new(handler));
    }

    /// The object of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Arc<K>> {
        self.inner.state.read().objects.get(key).cloned()
    }

    /// All objects, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<K>> {
        self.inner.state.read().objects.values().cloned().collect()
    }

    /// All keys, in no order.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.inner.state.read().objects.keys().cloned().collect()
    }

    /// Objects of a namespace, by name.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.with_term(&namespace_term(namespace))
    }

    /// Objects that carry an index term, by key.
    #[must_use]
    pub fn with_term(&self, term: &str) -> Vec<Arc<K>> {
        let state = self.inner.state.read();
        let keys = state.indexed.get(term).into_iter().flatten();
        keys.filter_map(|k| state.objects.get(k).cloned()).collect()
    }

    /// Number of objects.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.state.read().objects.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until the first list is complete. False when that took longer than `limit`.
    pub async fn wait_synced(&self, limit: Duration) -> bool {
        let mut seen = self.inner.synced.subscribe();
        tokio::time::timeout(limit, seen.wait_for(|s| *s)).await.is_ok_and(|r| r.is_ok())
    }

    /// Follows the server until `stop`. Failed watches are resumed with back-off.
    pub fn start(&self, api: Api<K>, config: watcher::Config, stop: CancellationToken) -> tokio::task::JoinHandle<()> {
        let this = self.clone();
        tokio::spawn(async move {
            let mut stream = skiff_client::watch(api, config.streaming_lists());
            let mut listed: HashMap<String, Arc<K>> = HashMap::new();
            loop {
                let next = tokio::select! {
                    () = stop.cancelled() => return,
                    next = stream.next() => next,
                };
                match next {
                    None => return,
                    Some(Err(e)) => {
                        tracing::debug!(kind = %K::kind(&()), error = &e as &dyn std::error::Error, "watch failed");
                    }
                    Some(Ok(Event::Init)) => listed.clear(),
                    Some(Ok(Event::InitApply(object))) => {
                        let object = this.slim(object);
                        listed.insert(key_of(&object), Arc::new(object));
                    }
                    Some(Ok(Event::InitDone)) => {
                        this.replace(std::mem::take(&mut listed));
                        this.inner.synced.send_replace(true);
                    }
                    Some(Ok(Event::Apply(object))) => this.apply(object),
                    Some(Ok(Event::Delete(object))) => this.remove(&key_of(&object), Some(this.slim(object))),
                }
            }
        })
    }

    /// Takes an object as the watch would.
    pub fn apply(&self, object: K) {
        let object = self.slim(object);
        let key = key_of(&object);
        let new = Arc::new(object);
        let old = {
            let mut state = self.inner.state.write();
            let old = state.objects.insert(key.clone(), Arc::clone(&new));
            if let Some(o) = &old {
                self.unindex(&mut state, &key, o);
            }
            for term in self.terms(&new) {
                state.indexed.entry(term).or_default().insert(key.clone());
            }
            old
        };
        // A name that was used again between two events is a deletion and an addition to handlers.
        match old {
            Some(o) if o.uid() != new.uid() => {
                self.tell(&Change { old: Some(o), new: None });
                self.tell(&Change { old: None, new: Some(new) });
            }
            Some(o) if o.resource_version() == new.resource_version() && new.resource_version().is_some() => {}
            old => self.tell(&Change { old, new: Some(new) }),
        }
    }

    /// Forgets an object as the watch would; `last` is its final state.
    pub fn remove(&self, key: &str, last: Option<K>) {
        let old = {
            let mut state = self.inner.state.write();
            let old = state.objects.remove(key);
            if let Some(o) = &old {
                self.unindex(&mut state, key, o);
            }
            old
        };
        if let Some(gone) = last.map(Arc::new).or(old) {
            self.tell(&Change { old: Some(gone), new: None });
        }
    }

    fn replace(&self, listed: HashMap<String, Arc<K>>) {
        let gone: Vec<String> = {
            let state = self.inner.state.read();
            state.objects.keys().filter(|k| !listed.contains_key(*k)).cloned().collect()
        };
        for key in gone {
            self.remove(&key, None);
        }
        for object in listed.into_values() {
            self.apply(Arc::unwrap_or_clone(object));
        }
    }

    fn slim(&self, mut object: K) -> K {
        object.meta_mut().managed_fields = None;
        (self.inner.trim)(&mut object);
        object
    }

    fn terms(&self, object: &K) -> Vec<String> {
        let mut terms = (self.inner.index)(object);
        if let Some(ns) = object.meta().namespace.as_deref() {
            terms.push(namespace_term(ns));
        }
        terms
    }

    fn unindex(&self, state: &mut State<K>, key: &str, object: &K) {
        for term in self.terms(object) {
            if let Some(keys) = state.indexed.get_mut(&term) {
                keys.remove(key);
                if keys.is_empty() {
                    state.indexed.remove(&term);
                }
            }
        }
    }

    fn tell(&self, change: &Change<K>) {
        for handler in self.inner.handlers.read().iter() {
            handler(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn map(ns: &str, name: &str, uid: &str, version: &str) -> ConfigMap {
        let mut m = ConfigMap::default();
        m.metadata.namespace = Some(ns.into());
        m.metadata.name = Some(name.into());
        m.metadata.uid = Some(uid.into());
        m.metadata.resource_version = Some(version.into());
        m
    }

    #[test]
    fn indexes_follow_changes() {
        let informer: Informer<ConfigMap> = Informer::new(|o| vec![by_controller(o)]);
        informer.apply(map("a", "x", "1", "1"));
        informer.apply(map("b", "x", "2", "2"));
        assert_eq!(informer.in_namespace("a").len(), 1);
        assert_eq!(informer.with_term(&orphan_term("b")).len(), 1);
        informer.remove("a/x", None);
        assert!(informer.in_namespace("a").is_empty());
        assert_eq!(informer.inner.state.read().indexed.len(), 2);
    }

    #[test]
    fn what_nobody_reads_is_not_kept() {
        let informer: Informer<ConfigMap> = Informer::trimmed(|m| m.data = None);
        let full = ConfigMap { data: Some([("k".into(), "v".into())].into()), ..map("a", "x", "1", "1") };
        informer.apply(full);
        assert_eq!(informer.get("a/x").unwrap().data, None);
    }

    #[test]
    fn a_relist_tells_what_vanished_and_what_was_made_again() {
        let informer: Informer<ConfigMap> = Informer::default();
        informer.apply(map("a", "gone", "1", "1"));
        informer.apply(map("a", "again", "2", "2"));
        informer.apply(map("a", "same", "3", "3"));
        let (added, deleted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (a, d) = (Arc::clone(&added), Arc::clone(&deleted));
        informer.on_change(move |c| {
            if c.old.is_none() {
                a.fetch_add(1, Ordering::Relaxed);
            }
            if c.new.is_none() {
                d.fetch_add(1, Ordering::Relaxed);
            }
        });
        let listed = [map("a", "again", "9", "9"), map("a", "same", "3", "3")];
        informer.replace(listed.into_iter().map(|m| (key_of(&m), Arc::new(m))).collect());
        assert_eq!((added.load(Ordering::Relaxed), deleted.load(Ordering::Relaxed)), (1, 2));
        assert_eq!(informer.len(), 2);
    }
}
