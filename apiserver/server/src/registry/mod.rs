//! The registry: every served kind, with its rules and its stored objects.
//!
//! A [`Kind`] is one resource in one version: the description discovery prints, the rules ([`Strategy`]), the server-side
//! rules that need other objects ([`Hooks`]), and the [`Collection`] that holds the objects. Versions of one resource
//! share a collection. Verbs see nothing else, whether the kind is built in or came from a CustomResourceDefinition.

mod autoscaling;
pub mod conversion;
pub mod convert;
pub mod hooks;
pub mod object;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use skiff_core::codec;
use skiff_core::kinds::Strategy;
use skiff_core::meta;
use skiff_core::resources::{Resource, group_version};
use skiff_core::status::Status;
use skiff_storage::cache::{Cache, Config, Extract, Meta, Object, Snapshot, Watcher};
use skiff_storage::{Compare, Op, Revision, Store};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use hooks::Hooks;

use crate::aggregate::Remote;

/// How long a read waits for the cache to catch up with the store.
pub const FRESH_DEADLINE: Duration = Duration::from_secs(3);

/// One resource in one version.
pub struct Kind {
    /// What discovery says.
    pub resource: Resource,
    /// Rules without I/O.
    pub strategy: Arc<dyn Strategy>,
    /// Rules that need other objects.
    pub hooks: Arc<dyn Hooks>,
    /// The webhook that converts between versions, if one does.
    pub conversion: Option<Arc<conversion::Conversion>>,
    /// Where objects live; `None` for resources that are only answered (reviews).
    pub collection: Option<Arc<Collection>>,
    /// Cancelled when the kind is served no more in this form: its watches end, and clients begin new ones.
    pub ended: CancellationToken,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kind").field("resource", &self.resource.plural).finish_non_exhaustive()
    }
}

impl Kind {
    /// API group.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.resource.group
    }

    /// Plural name.
    #[must_use]
    pub fn plural(&self) -> &str {
        &self.resource.plural
    }

    /// `group/version`.
    #[must_use]
    pub fn api_version(&self) -> String {
        self.resource.group_version()
    }

    /// Whether stored objects have this version.
    #[must_use]
    pub fn is_storage_version(&self) -> bool {
        self.resource.storage.as_ref().is_none_or(|(g, v)| *g == self.resource.group && *v == self.resource.version)
    }

    /// The objects.
    ///
    /// # Errors
    /// 405 when the kind stores none.
    pub fn stored(&self) -> Result<&Arc<Collection>, Status> {
        self.collection.as_ref().ok_or_else(Status::method_not_allowed)
    }

    /// 404 for an object of this kind.
    #[must_use]
    pub fn not_found(&self, name: &str) -> Status {
        // What is never stored is known by its singular name.
        let what = if self.resource.storage.is_some() { self.plural() } else { &self.resource.singular };
        Status::not_found(self.group(), what, name)
    }

    /// Parses a stored object into this version.
    ///
    /// # Errors
    /// 500 when the stored bytes are not an object (they were written by us; this is damage).
    pub fn load(&self, object: &Object) -> Result<Value, Status> {
        self.load_bytes(&object.value)
    }

    /// Like [`Kind::load`] for bytes.
    ///
    /// # Errors
    /// As [`Kind::load`].
    pub fn load_bytes(&self, bytes: &[u8]) -> Result<Value, Status> {
        let mut v: Value =
            serde_json::from_slice(bytes).map_err(|e| Status::internal(format!("stored object: {e}")))?;
        if !self.verbatim() {
            if self.conversion.is_some() && v["apiVersion"] != self.api_version() {
                // Whoever reads such objects asks the webhook first: see [`conversion`].
                return Err(Status::internal("an object was read before it was converted"));
            }
            convert::convert(&mut v, &self.api_version());
            self.strategy.read(&mut v);
        }
        Ok(v)
    }

    /// Whether stored bytes are answered as they are.
    #[must_use]
    pub fn verbatim(&self) -> bool {
        self.is_storage_version() && !self.strategy.reads()
    }

    /// Reads a value along the kind's structure.
    ///
    /// # Errors
    /// A value of the wrong type.
    pub fn normalize(&self, value: &mut Value, faults: &mut codec::Faults) -> Result<(), codec::TypeError> {
        self.strategy.normalize(value, &self.resource.model, faults)
    }

    /// The form of `value` (in this version) that is stored.
    #[must_use]
    pub fn to_storage(&self, mut value: Value) -> Value {
        if let Some((g, v)) = &self.resource.storage
            && !self.is_storage_version()
        {
            self.strategy.store(&mut value);
            convert::convert(&mut value, &group_version(g, v));
        }
        value
    }
}

/// The objects of one resource.
pub struct Collection {
    /// Key prefix, for example `/registry/pods/`.
    pub prefix: String,
    /// Whether keys carry a namespace.
    pub namespaced: bool,
    /// The watch cache.
    pub cache: Cache,
    /// The store below it.
    pub store: Arc<dyn Store>,
    /// A watch cannot begin before this revision: the kind did not exist.
    pub since: Revision,
}

impl Collection {
    /// Opens the collection.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn open(
        store: Arc<dyn Store>,
        prefix: String,
        namespaced: bool,
        strategy: Arc<dyn Strategy>,
        since: Revision,
    ) -> skiff_storage::Result<Self> {
        let indexed = strategy.fields().iter().copied().filter(|f| *f == "spec.nodeName").collect();
        let config = Config { extract: extractor(strategy, namespaced), indexed };
        let cache = Cache::open(Arc::clone(&store), &prefix, config).await?;
        Ok(Self { prefix, namespaced, cache, store, since })
    }

    /// Key of one object.
    #[must_use]
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced { format!("{}{namespace}/{name}", self.prefix) } else { format!("{}{name}", self.prefix) }
    }

    /// Key prefix of a namespace, or of everything.
    #[must_use]
    pub fn scope(&self, namespace: &str) -> String {
        if self.namespaced && !namespace.is_empty() {
            format!("{}{namespace}/", self.prefix)
        } else {
            self.prefix.clone()
        }
    }

    /// The present object, including every write acknowledged before the call.
    ///
    /// # Errors
    /// When the store cannot say how far it is.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<Option<Arc<Object>>, Status> {
        self.consistent().await?;
        Ok(self.cache.get(&self.key(namespace, name)))
    }

    /// The present object as far as the cache knows, without waiting.
    #[must_use]
    pub fn peek(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.cache.get(&self.key(namespace, name))
    }

    /// Waits until the cache includes every acknowledged write.
    ///
    /// # Errors
    /// As [`Collection::get`].
    pub async fn consistent(&self) -> Result<Revision, Status> {
        self.cache.consistent(Instant::now() + FRESH_DEADLINE).await.map_err(storage_error)
    }

    /// Stores an object of this server's own, with an identity and a time; `false` when there is one of its name. Nobody is
    /// asked: what calls this knows what it makes.
    ///
    /// # Errors
    /// When the store refuses the write.
    pub async fn make(&self, mut obj: Value) -> Result<bool, Status> {
        let key = self.key(meta::namespace(&obj), meta::name(&obj));
        let m = meta::meta_mut(&mut obj);
        m.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
        m.insert("creationTimestamp".into(), crate::verbs::write::now().into());
        match self.store.commit(&key, Compare::Absent, Op::Put(object::encode(&obj))).await {
            Ok(_) => Ok(true),
            Err(skiff_storage::Error::Conflict { .. }) => Ok(false),
            Err(e) => Err(storage_error(e)),
        }
    }

    /// Everything as it is, with every acknowledged write in it, and the watch of what happens from then on.
    ///
    /// # Errors
    /// As [`Collection::get`].
    pub async fn follow(&self) -> Result<(Snapshot, Watcher), Status> {
        self.consistent().await?;
        let snapshot = self.cache.list(&self.prefix);
        let watcher = self.cache.watch(&self.prefix, snapshot.revision).map_err(storage_error)?;
        Ok((snapshot, watcher))
    }

    /// All present objects, parsed. For small collections.
    #[must_use]
    pub fn values(&self) -> Vec<Value> {
        let objects = self.cache.list(&self.prefix).objects;
        objects.iter().filter_map(|o| serde_json::from_slice(&o.value).ok()).collect()
    }
}

/// A store's error as a Status.
#[must_use]
pub fn storage_error(e: skiff_storage::Error) -> Status {
    use skiff_storage::Error;
    match e {
        Error::Compacted { requested, oldest } => {
            Status::expired(format!("too old resource version: {requested} ({oldest})"))
        }
        Error::Future { requested, current } => Status::too_large_resource_version(requested, current),
        Error::Conflict { .. } => Status::internal("unexpected conflict"),
        e @ Error::Full { .. } => {
            let what = format!("{e}. Free space on the disk of the data directory, or delete objects");
            Status::new(507, "InsufficientStorage", what)
        }
        e @ Error::TooLarge(_) => Status::too_large(e.to_string()),
        e @ (Error::Unavailable(_) | Error::Closed) => Status::unavailable(e.to_string()).retry_after(1),
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Head<'a> {
    #[serde(borrow)]
    metadata: HeadMeta<'a>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct HeadMeta<'a> {
    #[serde(borrow)]
    uid: Cow<'a, str>,
    labels: BTreeMap<String, String>,
}

/// Reads what lists and watches select by.
fn extractor(strategy: Arc<dyn Strategy>, namespaced: bool) -> Extract {
    Arc::new(move |_key, bytes| {
        let fields = strategy.fields();
        let head: Head<'_> = serde_json::from_slice(bytes).unwrap_or_default();
        let m = &head.metadata;
        let labels = m.labels.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let mut meta = Meta::new(namespaced, &m.uid, labels);
        if !fields.is_empty() {
            let v: Value = serde_json::from_slice(bytes).unwrap_or_default();
            meta.fields = selectable(&*strategy, &v);
        }
        meta.version_at =
            object::version_range(bytes).and_then(|r| u32::try_from(r.start).ok()).and_then(NonZeroU32::new);
        meta
    })
}

/// What an object can be selected by: fields that have a value.
fn selectable(strategy: &dyn Strategy, v: &Value) -> Box<[(&'static str, Box<str>)]> {
    let values = strategy.fields().iter().map(|f| (*f, strategy.field(v, f))).filter(|(_, v)| !v.is_empty());
    values.map(|(f, v)| (f, v.into_boxed_str())).collect()
}

/// All served kinds.
#[derive(Clone, Default)]
pub struct Registry {
    /// Counts changes; documents about what is served are kept under it.
    pub generation: u64,
    kinds: HashMap<String, HashMap<String, HashMap<String, Arc<Kind>>>>,
    /// Group-versions that other servers serve, by the names of their APIServices.
    remotes: BTreeMap<String, Arc<Remote>>,
}

impl Registry {
    /// Adds a kind.
    pub fn insert(&mut self, kind: Arc<Kind>) {
        let r = &kind.resource;
        let versions = self.kinds.entry(r.group.to_string()).or_default();
        versions.entry(r.version.to_string()).or_default().insert(r.plural.to_string(), Arc::clone(&kind));
    }

    /// Replaces the versions of a resource; none withdraws it. Answers what was there.
    pub fn replace(&mut self, group: &str, plural: &str, kinds: Vec<Arc<Kind>>) -> Vec<Arc<Kind>> {
        self.generation += 1;
        let mut gone = Vec::new();
        if let Some(versions) = self.kinds.get_mut(group) {
            for resources in versions.values_mut() {
                gone.extend(resources.remove(plural));
            }
            versions.retain(|_, resources| !resources.is_empty());
            if versions.is_empty() {
                self.kinds.remove(group);
            }
        }
        for kind in kinds {
            self.insert(kind);
        }
        gone
    }

    /// Puts in what an APIService says, or takes it out.
    pub fn set_remote(&mut self, name: &str, remote: Option<Arc<Remote>>) {
        self.generation += 1;
        match remote {
            Some(remote) => self.remotes.insert(name.to_owned(), remote),
            None => self.remotes.remove(name),
        };
    }

    /// The other server of a group-version.
    #[must_use]
    pub fn remote(&self, group: &str, version: &str) -> Option<&Arc<Remote>> {
        self.remotes.values().find(|r| r.group == group && r.version == version)
    }

    /// All that other servers serve.
    pub fn remotes(&self) -> impl Iterator<Item = &Arc<Remote>> {
        self.remotes.values()
    }

    /// Whether a group-version is served.
    #[must_use]
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.kinds.get(group).is_some_and(|v| v.contains_key(version))
    }

    /// Whether any version of a group is served.
    #[must_use]
    pub fn has_group(&self, group: &str) -> bool {
        self.kinds.contains_key(group)
    }

    /// Whether definitions make the kinds of a group-version; an empty version means any.
    #[must_use]
    pub fn any_untyped(&self, group: &str, version: &str) -> bool {
        let versions = self.kinds.get(group).into_iter().flatten();
        let mut kinds = versions.filter(|(v, _)| version.is_empty() || *v == version).flat_map(|(_, k)| k.values());
        kinds.any(|k| k.strategy.traits().untyped)
    }

    /// The kind with this plural name.
    #[must_use]
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.kinds.get(group)?.get(version)?.get(plural)
    }

    /// The kind with this plural name in whichever version, the stored one first.
    #[must_use]
    pub fn any_version(&self, group: &str, plural: &str) -> Option<&Arc<Kind>> {
        let mut found: Vec<_> = self.kinds.get(group)?.values().filter_map(|m| m.get(plural)).collect();
        found.sort_by_key(|k| !k.is_storage_version());
        found.first().copied()
    }

    /// The kinds that definitions make, in a fixed order.
    #[must_use]
    pub fn custom(&self) -> Vec<Arc<Kind>> {
        let mut found: Vec<Arc<Kind>> = self.iter().filter(|k| k.strategy.published().is_some()).cloned().collect();
        found.sort_by(|a, b| {
            let name = |k: &Kind| (k.resource.group.clone(), k.resource.plural.clone(), k.resource.version.clone());
            name(a).cmp(&name(b))
        });
        found
    }

    /// The kinds beside the built-in table: those that definitions make, and those that are computed.
    #[must_use]
    pub fn beside(&self) -> Vec<Arc<Kind>> {
        let mut found = self.custom();
        let computed = self.iter().filter(|k| k.group() == crate::usage::GROUP);
        found.extend(computed.filter(|k| k.strategy.published().is_none()).cloned());
        found
    }

    /// Every kind.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.kinds.values().flat_map(HashMap::values).flat_map(HashMap::values)
    }
}
