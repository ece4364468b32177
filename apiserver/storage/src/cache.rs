//! The watch cache: the present objects of one resource, and a bounded window of their history.
//!
//! This file is the interface the server is written against; the storage room fills it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::{
    Revision,
    store::{ChangeKind, Result},
};

/// The few fields of an object the server selects by, extracted once per write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// `metadata.namespace`, empty for cluster-scoped objects.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`, sorted by key.
    pub labels: Vec<(String, String)>,
    /// Selectable fields besides name and namespace, by their path.
    pub fields: Vec<(&'static str, String)>,
}

/// Reads [`Meta`] from an object's bytes. Must be cheap and must not fail: a field that cannot be read is empty.
pub type Extract = Arc<dyn Fn(&str, &[u8]) -> Meta + Send + Sync>;

/// One stored object.
#[derive(Debug)]
pub struct Object {
    /// Full key.
    pub key: Arc<str>,
    /// Finished JSON.
    pub value: Bytes,
    /// Revision of its last write.
    pub revision: Revision,
    /// Indexed fields.
    pub meta: Meta,
}

/// One change of one object, shared by all watchers.
#[derive(Debug)]
pub struct Event {
    /// How it changed.
    pub kind: ChangeKind,
    /// The new state; for a deletion the last state, whose bytes carry the revision **of the deletion** only after the
    /// server has re-stamped them (see `restamped`).
    pub object: Arc<Object>,
    /// The state before, if there was one.
    pub previous: Option<Arc<Object>>,
    /// Revision of the change.
    pub revision: Revision,
    /// Scratch for the server: the encoded JSON frame, made once by whoever needs it first.
    pub frame: OnceLock<Bytes>,
}

/// A consistent view of a resource at one revision: shared pointers, no copies.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Objects in key order.
    pub objects: Vec<Arc<Object>>,
    /// Revision of the view.
    pub revision: Revision,
}

/// What the server asks of a cache. See the module for the guarantees.
#[allow(async_fn_in_trait, missing_docs)]
pub trait CacheContract {
    fn get(&self, key: &str) -> Option<Arc<Object>>;
    fn list(&self, prefix: &str) -> Snapshot;
    fn list_at(&self, prefix: &str, revision: Revision) -> Result<Snapshot>;
}
