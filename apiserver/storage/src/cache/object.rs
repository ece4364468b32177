//! What a cache holds: objects, events, views.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::store::{ChangeKind, Revision};

/// The few fields of an object the server selects by, extracted once per write.
///
/// There is one of these per stored object, so its texts share one allocation, in the order namespace, name, uid, then
/// each label's key and value; each has its length before it in two bytes. A longer text is cut: no name or label that
/// passes validation comes near.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    texts: Box<[u8]>,
    /// Selectable fields besides name and namespace, by their path. A path may occur more than once (owners).
    pub fields: Box<[(&'static str, Box<str>)]>,
    /// Where the digits of `metadata.resourceVersion` begin in the value. Without it the first
    /// `"resourceVersion":"<its revision>"` is taken, which is right unless the object quotes its own future revision
    /// somewhere before its metadata.
    pub version_at: Option<u32>,
}

impl Meta {
    /// The texts of an object's metadata. `namespace` is empty for cluster-scoped objects.
    pub fn new<'a>(
        namespace: &str,
        name: &str,
        uid: &str,
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut texts = Vec::with_capacity(128);
        let mut put = |text: &str| {
            let mut end = text.len().min(usize::from(u16::MAX));
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            // Fits: cut above.
            texts.extend_from_slice(&u16::try_from(end).unwrap_or(u16::MAX).to_le_bytes());
            texts.extend_from_slice(&text.as_bytes()[..end]);
        };
        for text in [namespace, name, uid] {
            put(text);
        }
        for (key, value) in labels {
            put(key);
            put(value);
        }
        Self { texts: texts.into(), ..Self::default() }
    }

    /// `metadata.namespace`, empty for cluster-scoped objects.
    #[must_use]
    pub fn namespace(&self) -> &str {
        text(Texts(&self.texts).next())
    }

    /// `metadata.name`.
    #[must_use]
    pub fn name(&self) -> &str {
        text(Texts(&self.texts).nth(1))
    }

    /// `metadata.uid`.
    #[must_use]
    pub fn uid(&self) -> &str {
        text(Texts(&self.texts).nth(2))
    }

    /// The values of a field.
    pub fn values<'a>(&'a self, field: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |(name, _)| *name == field).map(|(_, value)| &**value)
    }

    /// Something of what [`Meta::label`] reads first, for its memory's sake.
    pub(super) fn touch(&self) -> usize {
        self.texts.first().map_or(0, |b| usize::from(*b))
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        let mut texts = Texts(&self.texts);
        texts.nth(2)?;
        while let (Some(found), value @ Some(_)) = (texts.next(), texts.next()) {
            if found == key.as_bytes() {
                return Some(text(value));
            }
        }
        None
    }
}

/// The texts of a [`Meta`], one after the other.
struct Texts<'a>(&'a [u8]);

impl<'a> Iterator for Texts<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (len, rest) = self.0.split_first_chunk::<2>()?;
        let (text, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
        self.0 = rest;
        Some(text)
    }
}

/// What was put in was text.
fn text(bytes: Option<&[u8]>) -> &str {
    std::str::from_utf8(bytes.unwrap_or_default()).unwrap_or_default()
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
    /// When the cache heard of it, which is when it was durable.
    pub made: Instant,
    /// Scratch for the server: an encoded frame that several watchers send, made by whoever needs it first. The cache
    /// empties it when the event is no longer among the latest, see [`FRAMED`].
    pub frame: Mutex<Option<Box<Bytes>>>,
}

/// So many of the latest events of a resource may keep their frame: watchers are seldom further apart, and the window
/// would otherwise hold everything twice.
pub(super) const FRAMED: usize = 256;

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
    fn texts_come_back_as_they_went_in() {
        let labels = [("app", "web"), ("empty", ""), ("z\u{e9}", "\u{e9}")];
        let meta = Meta::new("ns", "name", "", labels);
        assert_eq!((meta.namespace(), meta.name(), meta.uid()), ("ns", "name", ""));
        for (key, value) in labels {
            assert_eq!(meta.label(key), Some(value), "{key}");
        }
        // Neither the name nor a value is a label.
        for key in ["name", "web", "ap", ""] {
            assert_eq!(meta.label(key), None, "{key}");
        }
        assert_eq!(Meta::default().name(), "");
        assert_eq!(Meta::default().label("app"), None);
        let long = "\u{e9}".repeat(40_000);
        let cut = Meta::new("", &long, "uid", [("a", "b")]);
        assert_eq!((cut.name().len(), cut.uid(), cut.label("a")), (65_534, "uid", Some("b")));
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
