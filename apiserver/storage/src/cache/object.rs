//! What a cache holds: objects, events, views.

use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};

use crate::store::{ChangeKind, Revision};

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
    /// Selectable fields besides name and namespace, by their path. A path may occur more than once (owners).
    pub fields: Vec<(&'static str, String)>,
    /// Where the digits of `metadata.resourceVersion` begin in the value. Without it the first
    /// `"resourceVersion":"<its revision>"` is taken, which is right unless the object quotes its own future revision
    /// somewhere before its metadata.
    pub version_at: Option<u32>,
}

impl Meta {
    /// The values of a field.
    pub fn values<'a>(&'a self, field: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |(name, _)| *name == field).map(|(_, value)| value.as_str())
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(k, _)| k.as_str().cmp(key)).ok()?;
        Some(&self.labels[at].1)
    }
}

/// Reads [`Meta`] from an object's key and bytes. Must be cheap and must not fail: a field that cannot be read is empty.
pub type Extract = Arc<dyn Fn(&str, &[u8]) -> Meta + Send + Sync>;

/// One stored object. `key` and `value` are shared with the store.
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

impl Object {
    /// The object's bytes with another resourceVersion; unchanged when they carry none.
    #[must_use]
    pub fn stamped(&self, revision: Revision) -> Bytes {
        let Some(start) = self.version_start() else { return self.value.clone() };
        let (before, rest) = self.value.split_at(start);
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        let mut out = BytesMut::with_capacity(self.value.len() + 8);
        out.extend_from_slice(before);
        out.extend_from_slice(revision.to_string().as_bytes());
        out.extend_from_slice(&rest[digits..]);
        out.freeze()
    }

    fn version_start(&self) -> Option<usize> {
        if let Some(at) = self.meta.version_at {
            return usize::try_from(at).ok().filter(|at| *at <= self.value.len());
        }
        let needle = format!("\"resourceVersion\":\"{}\"", self.revision);
        let lead = needle.len() - self.revision.to_string().len() - 1;
        self.value.windows(needle.len()).position(|w| w == needle.as_bytes()).map(|at| at + lead)
    }
}

/// One change of one object, shared by all watchers.
#[derive(Debug)]
pub struct Event {
    /// How it changed.
    pub kind: ChangeKind,
    /// The new state; for a deletion the last state, with the version it had (see [`Event::body`]).
    pub object: Arc<Object>,
    /// The state before, if there was one. For a deletion the same as `object`.
    pub previous: Option<Arc<Object>>,
    /// Revision of the change.
    pub revision: Revision,
    /// Scratch for the server: the encoded JSON frame, made once by whoever needs it first.
    pub frame: OnceLock<Bytes>,
}

impl Event {
    /// The bytes a watcher is sent: the new state, or for a deletion the last state with the revision of the deletion as
    /// its resourceVersion, from which a client resumes.
    #[must_use]
    pub fn body(&self) -> Bytes {
        match self.kind {
            ChangeKind::Deleted => self.object.stamped(self.revision),
            ChangeKind::Created | ChangeKind::Updated => self.object.value.clone(),
        }
    }
}

/// A consistent view of a resource at one revision: shared pointers, no copies.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Objects in key order.
    pub objects: Vec<Arc<Object>>,
    /// Revision of the view.
    pub revision: Revision,
}

/// Part of a view.
#[derive(Clone, Debug)]
pub struct Page {
    /// Objects in key order.
    pub objects: Vec<Arc<Object>>,
    /// Revision of the view; the same on every page of one list.
    pub revision: Revision,
    /// How many objects follow.
    pub remaining: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: &'static str, revision: Revision, version_at: Option<u32>) -> Object {
        let meta = Meta { version_at, ..Meta::default() };
        Object { key: "/k".into(), value: Bytes::from_static(value.as_bytes()), revision, meta }
    }

    #[test]
    fn stamping_replaces_the_digits_only() {
        let cases = [
            (
                object(r#"{"metadata":{"resourceVersion":"9","uid":"9"}}"#, 9, None),
                r#"{"metadata":{"resourceVersion":"10","uid":"9"}}"#,
            ),
            (
                object(r#"{"metadata":{"resourceVersion":"9"}}"#, 9, Some(32)),
                r#"{"metadata":{"resourceVersion":"10"}}"#,
            ),
            // Without an offset, a version that is not the object's own is left alone.
            (
                object(r#"{"a":{"resourceVersion":"7"},"metadata":{"resourceVersion":"9"}}"#, 9, None),
                r#"{"a":{"resourceVersion":"7"},"metadata":{"resourceVersion":"10"}}"#,
            ),
            (object(r"{}", 9, None), r"{}"),
            (object(r"{}", 9, Some(400)), r"{}"),
        ];
        for (object, want) in cases {
            assert_eq!(object.stamped(10), want);
        }
    }
}
