//! Where our keys lie among etcd's, and how its records become ours.

use std::sync::Arc;

use bytes::Bytes;

use super::value;
use super::wire::{self, Event, EventType, KeyValue};
use crate::store::{Change, ChangeKind, Entry};

/// The stretch of etcd's keys that begins with a text of the owner's choice, which our keys do not carry.
#[derive(Clone)]
pub(super) struct Space {
    root: Arc<str>,
}

impl Space {
    pub(super) fn new(root: &str) -> Self {
        Self { root: root.into() }
    }

    /// etcd's name of one of our keys.
    pub(super) fn key(&self, key: &str) -> Bytes {
        Bytes::from(format!("{}{key}", self.root))
    }

    /// A key of the driver's own, which no prefix of a Store's keys covers: those begin with a slash.
    pub(super) fn own(&self, name: &str) -> Bytes {
        self.key(&format!("skiff.{name}"))
    }

    /// The end of the stretch of keys that begin with `prefix`.
    pub(super) fn end(&self, prefix: &str) -> Bytes {
        let mut end = self.key(prefix).to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return end.into();
            }
        }
        // Everything to the end of the keys.
        Bytes::from_static(b"\0")
    }

    /// Our name of one of etcd's keys; `None` for what is not ours.
    fn name(&self, key: &[u8]) -> Option<Arc<str>> {
        let key = key.strip_prefix(self.root.as_bytes())?;
        std::str::from_utf8(key).ok().filter(|k| k.starts_with('/')).map(Into::into)
    }

    /// A record as an entry.
    pub(super) fn entry(&self, kv: KeyValue) -> Result<Arc<Entry>, String> {
        let key = self.name(&kv.key).ok_or_else(|| foreign(&kv.key))?;
        let revision = wire::unsigned(kv.mod_revision);
        let value = value::finish(kv.value, revision).ok_or_else(|| foreign(&kv.key))?;
        Ok(Arc::new(Entry { key, value, revision }))
    }

    /// An event as a change; `None` for what is not ours.
    pub(super) fn change(&self, event: Event) -> Result<Option<Change>, String> {
        let Some(kv) = event.kv else { return Ok(None) };
        let Some(key) = self.name(&kv.key) else { return Ok(None) };
        let revision = wire::unsigned(kv.mod_revision);
        let previous = event.prev_kv.map(|before| self.entry(before)).transpose()?;
        let (kind, entry) = if event.r#type == EventType::Delete as i32 {
            // etcd may have compacted what was there.
            let last = || Arc::new(Entry { key, value: Bytes::new(), revision: 0 });
            (ChangeKind::Deleted, previous.clone().unwrap_or_else(last))
        } else {
            let kind = if kv.create_revision == kv.mod_revision { ChangeKind::Created } else { ChangeKind::Updated };
            let value = value::finish(kv.value, revision).ok_or_else(|| foreign(&kv.key))?;
            (kind, Arc::new(Entry { key, value, revision }))
        };
        Ok(Some(Change { kind, entry, previous, revision }))
    }
}

fn foreign(key: &[u8]) -> String {
    format!("etcd's key {} has a value that this program did not write", String::from_utf8_lossy(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_of_keys() {
        let space = Space::new("/one");
        assert_eq!(space.key("/a"), "/one/a");
        assert_eq!((space.end("/a/"), space.end("")), ("/one/a0".into(), "/onf".into()));
        assert_eq!(Space::new("").end(""), Bytes::from_static(b"\0"));
        assert_eq!(space.name(b"/one/a").as_deref(), Some("/a"));
        for other in [&b"/two/a"[..], b"/oneskiff.x", b"/one/\xff", b"/one"] {
            assert_eq!(space.name(other), None, "{other:?}");
        }
    }
}
