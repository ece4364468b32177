//! What a cache holds: objects, events, views.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::store::{ChangeKind, Entry, Revision};

/// The few fields of an object the server selects by, extracted once per write.
///
/// There is one of these per stored object, so it is small: name and namespace are those of the key, an ordinary uid takes
/// its 16 bytes, and labels share one allocation, each key and each value with its length before it in two bytes. A longer text
/// is cut: no label that passes validation comes near.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// A uid that is none of the usual form, then the labels.
    texts: Box<[u8]>,
    /// Selectable fields besides name and namespace, by their path. A path may occur more than once (owners).
    pub fields: Box<[(&'static str, Box<str>)]>,
    /// Where the digits of `metadata.resourceVersion` begin in the value. Without it the first
    /// `"resourceVersion":"<its revision>"` is taken, which is right unless the object quotes its own future revision
    /// somewhere before its metadata.
    pub version_at: Option<NonZeroU32>,
    uid: Uuid,
    odd_uid: bool,
    namespaced: bool,
}

impl Meta {
    /// Of an object's metadata. A namespaced object's key ends in its namespace and its name, another's in its name.
    pub fn new<'a>(namespaced: bool, uid: &str, labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let known = Uuid::parse_str(uid)
            .ok()
            .filter(|u| u.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == uid && !u.is_nil());
        let odd_uid = known.is_none() && !uid.is_empty();
        let mut texts = Vec::new();
        let mut put = |text: &str| {
            let mut end = text.len().min(usize::from(u16::MAX));
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            // Fits: cut above.
            texts.extend_from_slice(&u16::try_from(end).unwrap_or(u16::MAX).to_le_bytes());
            texts.extend_from_slice(&text.as_bytes()[..end]);
        };
        if odd_uid {
            put(uid);
        }
        for (key, value) in labels {
            put(key);
            put(value);
        }
        Self { texts: texts.into(), uid: known.unwrap_or_default(), odd_uid, namespaced, ..Self::default() }
    }

    /// `metadata.uid`.
    #[must_use]
    pub fn uid(&self) -> Cow<'_, str> {
        if self.odd_uid {
            return text(Texts(&self.texts).next()).into();
        }
        if self.uid.is_nil() { "".into() } else { self.uid.to_string().into() }
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
        if self.odd_uid {
            texts.next()?;
        }
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

/// One stored object: the store's entry, whose value is finished JSON, and what is read from it once. It stands for its entry
/// wherever one is asked for.
#[derive(Debug)]
pub struct Object {
    /// What is stored, shared with the store.
    pub entry: Arc<Entry>,
    /// Indexed fields.
    pub meta: Meta,
}

impl Deref for Object {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Object {
    /// `metadata.name`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }

    /// `metadata.namespace`, empty for cluster-scoped objects.
    #[must_use]
    pub fn namespace(&self) -> &str {
        if self.meta.namespaced { self.key.rsplit('/').nth(1).unwrap_or_default() } else { "" }
    }

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
            return usize::try_from(at.get()).ok().filter(|at| *at <= self.value.len());
        }
        let needle = format!("\"resourceVersion\":\"{}\"", self.revision);
        let lead = needle.len() - self.revision.to_string().len() - 1;
        self.value.windows(needle.len()).position(|w| w == needle.as_bytes()).map(|at| at + lead)
    }
}

/// A point in time, to tenths of a millisecond, in four bytes: there are as many of these as events in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(u32);

impl Moment {
    const UNIT: u64 = 100;

    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
        Self::after(BEGIN.elapsed())
    }

    /// The moment so long after the first.
    fn after(begin: Duration) -> Self {
        // Cut on purpose: only differences are asked for, and those are far less than the five days after which it turns over.
        #[allow(clippy::cast_possible_truncation)]
        Self((begin.as_micros() / u128::from(Self::UNIT)) as u32)
    }

    /// How long after `earlier` it is; nothing, if it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        let units = self.0.wrapping_sub(earlier.0);
        if units > u32::MAX / 2 { Duration::ZERO } else { Duration::from_micros(u64::from(units) * Self::UNIT) }
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
    pub made: Moment,
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
        let meta = Meta { version_at: version_at.and_then(NonZeroU32::new), ..Meta::default() };
        let entry = Entry { key: "/k".into(), value: Bytes::from_static(value.as_bytes()), revision };
        Object { entry: Arc::new(entry), meta }
    }

    #[test]
    fn moments_differ_by_what_passed_between_them() {
        let turn = Duration::from_micros((u64::from(u32::MAX) + 1) * Moment::UNIT);
        for (earlier, later, between) in
            [(0, 0, 0), (5, 12, 7), (86_400_000, 86_400_900, 900), (7, 3, 0)].map(|(a, b, c)| (ms(a), ms(b), ms(c)))
        {
            assert_eq!(Moment::after(later).since(Moment::after(earlier)), between);
            assert_eq!(Moment::after(turn + later).since(Moment::after(turn + earlier)), between);
        }
        assert_eq!(Moment::after(turn + ms(1)).since(Moment::after(turn - ms(1))), ms(2));
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn an_event_is_a_line_of_the_cache_with_its_counts() {
        // The window holds very many: with the two counts of its `Arc` it is 64 bytes.
        assert_eq!(std::mem::size_of::<Event>(), 48);
    }

    #[test]
    fn names_are_those_of_the_key() {
        let named = |key: &str, namespaced| {
            let entry = Entry { key: key.into(), value: Bytes::new(), revision: 1 };
            let object = Object { entry: Arc::new(entry), meta: Meta::new(namespaced, "", []) };
            (object.namespace().to_owned(), object.name().to_owned())
        };
        assert_eq!(named("/registry/pods/default/web-0", true), ("default".into(), "web-0".into()));
        assert_eq!(named("/registry/clusterroles/system:node", false), (String::new(), "system:node".into()));
    }

    #[test]
    fn texts_come_back_as_they_went_in() {
        let labels = [("app", "web"), ("empty", ""), ("z\u{e9}", "\u{e9}")];
        let usual = "0b9d1c5e-6b1d-4a53-9d3c-0f6a1f1b7c11";
        // Only the usual form is kept as a number; what else there may be comes back as it was.
        for uid in
            ["", usual, "0B9D1C5E-6B1D-4A53-9D3C-0F6A1F1B7C11", "00000000-0000-0000-0000-000000000000", "u\u{e9}"]
        {
            let meta = Meta::new(true, uid, labels);
            assert_eq!(meta.uid(), uid);
            for (key, value) in labels {
                assert_eq!(meta.label(key), Some(value), "{key} beside {uid:?}");
            }
            // Neither the uid nor a value is a label.
            for key in [uid, "web", "ap", ""] {
                assert_eq!(meta.label(key), None, "{key} beside {uid:?}");
            }
        }
        assert!(Meta::new(true, usual, []).texts.is_empty());
        assert_eq!(Meta::default().uid(), "");
        assert_eq!(Meta::default().label("app"), None);
        let long = "\u{e9}".repeat(40_000);
        let cut = Meta::new(false, &long, [("a", "b")]);
        assert_eq!((cut.uid().len(), cut.label("a")), (65_534, Some("b")));
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
