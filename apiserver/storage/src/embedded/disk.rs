//! The tables on disk.
//!
//! - `current`: key -> revision of its last write (8 bytes, little endian), value.
//! - `history`: revision -> what that revision replaced ([`Undo`]). The new value is not repeated there: it is what the
//!   next change of the key replaced, or its current value. So every value is written once, and once more when it is
//!   replaced while the window covers it; and the oldest change of the window still knows what was before it.
//! - `meta`: `format`, and `compacted`: history is complete after this revision. The store's revision is the larger of
//!   that and the last of the history, so a revision is never given twice.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::OpenError;
use super::live::{Kept, Live};
use crate::store::{Change, ChangeKind, Entry, Revision};

const CURRENT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("current");
const HISTORY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("history");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

const FORMAT: u64 = 1;

/// The database file, owned by the committer.
#[derive(Debug)]
pub(super) struct Disk {
    db: Database,
}

impl Disk {
    /// Opens or makes the database and reads all of it.
    pub(super) fn open(path: &Path, cache: usize) -> Result<(Self, Live), OpenError> {
        let failed = |e: redb::Error| OpenError::database(path, e);
        let db = redb::Builder::new().set_cache_size(cache).create(path).map_err(|e| failed(e.into()))?;
        Self::with(db, path)
    }

    /// As [`Disk::open`], over any backend (fault injection).
    pub(super) fn open_backend(
        path: &Path,
        backend: impl redb::StorageBackend,
        cache: usize,
    ) -> Result<(Self, Live), OpenError> {
        let failed = |e: redb::Error| OpenError::database(path, e);
        let db =
            redb::Builder::new().set_cache_size(cache).create_with_backend(backend).map_err(|e| failed(e.into()))?;
        Self::with(db, path)
    }

    fn with(db: Database, path: &Path) -> Result<(Self, Live), OpenError> {
        let disk = Self { db };
        let fresh = disk.prepare().map_err(|e| OpenError::database(path, e))?;
        if let Some(found) = fresh {
            return Err(OpenError::Format { path: path.to_owned(), found, known: FORMAT });
        }
        let live = disk.load(path)?;
        Ok((disk, live))
    }

    /// Makes the tables of a new database. Answers the format number of one that this program cannot read.
    fn prepare(&self) -> Result<Option<u64>, redb::Error> {
        let txn = self.db.begin_write()?;
        {
            let mut meta = txn.open_table(META)?;
            let found = meta.get("format")?.map(|v| v.value());
            match found {
                Some(FORMAT) => return Ok(None),
                Some(other) => return Ok(Some(other)),
                None => meta.insert("format", FORMAT)?,
            };
            txn.open_table(CURRENT)?;
            txn.open_table(HISTORY)?;
        }
        txn.commit()?;
        Ok(None)
    }

    fn load(&self, path: &Path) -> Result<Live, OpenError> {
        let failed = |e: redb::Error| OpenError::database(path, e);
        let corrupt = |what: String| OpenError::Corrupt { path: path.to_owned(), what };
        let txn = self.db.begin_read().map_err(|e| failed(e.into()))?;

        let mut entries: Vec<Entry> = Vec::new();
        let current = txn.open_table(CURRENT).map_err(|e| failed(e.into()))?;
        for row in current.iter().map_err(|e| failed(e.into()))? {
            let (key, value) = row.map_err(|e| failed(e.into()))?;
            let entry = decode_entry(key.value(), value.value())
                .ok_or_else(|| corrupt(format!("the record of {} is too short", key.value())))?;
            entries.push(entry);
        }

        let meta = txn.open_table(META).map_err(|e| failed(e.into()))?;
        let compacted = meta.get("compacted").map_err(|e| failed(e.into()))?.map_or(0, |v| v.value());

        // Backwards: `then` is what each key holds after the change at hand.
        let mut then: HashMap<Arc<str>, Option<(Bytes, Revision)>> = HashMap::new();
        let mut history: Vec<Kept> = Vec::new();
        let table = txn.open_table(HISTORY).map_err(|e| failed(e.into()))?;
        for row in table.iter().map_err(|e| failed(e.into()))?.rev() {
            let (revision, record) = row.map_err(|e| failed(e.into()))?;
            let revision = revision.value();
            let undo = Undo::decode(record.value())
                .ok_or_else(|| corrupt(format!("the history record of revision {revision} is damaged")))?;
            let known = entries.binary_search_by(|e| (*e.key).cmp(undo.key)).ok().map(|at| &entries[at]);
            let key = match (known, then.get_key_value(undo.key)) {
                (Some(entry), _) => Arc::clone(&entry.key),
                (None, Some((key, _))) => Arc::clone(key),
                (None, None) => undo.key.into(),
            };
            let after = match then.get(&key) {
                Some(state) => state.clone(),
                None => known.map(|e| (e.value.clone(), e.revision)),
            };
            let previous = undo.previous.map(|bytes| (Bytes::copy_from_slice(bytes), undo.previous_revision));
            let (kind, value) = match (&after, &previous) {
                (Some((value, at)), previous) if *at == revision => {
                    let kind = if previous.is_some() { ChangeKind::Updated } else { ChangeKind::Created };
                    (kind, value.clone())
                }
                (None, Some((value, _))) => (ChangeKind::Deleted, value.clone()),
                _ => return Err(corrupt(format!("the history of {key} does not lead to its present value"))),
            };
            then.insert(Arc::clone(&key), previous.clone());
            let (previous, previous_revision) = previous.map_or((None, 0), |(bytes, at)| (Some(bytes), at));
            let change = Arc::new(Change { kind, key, value, previous, previous_revision, revision });
            history.push(Kept { change, at: undo.at });
        }
        history.reverse();

        let revision = history.last().map_or(0, |k| k.change.revision).max(compacted);
        if let Some(entry) = entries.iter().find(|e| e.revision > revision) {
            return Err(corrupt(format!("{} is newer than the history", entry.key)));
        }
        Ok(Live::load(entries, history, compacted, revision))
    }

    /// Makes `changes` durable, and forgets history up to `forget`, in one transaction and one sync.
    pub(super) fn write(&self, changes: &[Arc<Change>], at: u64, forget: Option<Revision>) -> Result<(), redb::Error> {
        let txn = self.db.begin_write()?;
        {
            let mut history = txn.open_table(HISTORY)?;
            let mut last: HashMap<&str, &Change> = HashMap::with_capacity(changes.len());
            let mut record = Vec::new();
            for change in changes {
                Undo::of(change, at).encode(&mut record);
                history.insert(change.revision, record.as_slice())?;
                last.insert(&change.key, change);
            }
            // Only the last state of a key that changed several times in this batch goes to `current`. In key order,
            // because neighbours share pages.
            let mut last: Vec<&Change> = last.into_values().collect();
            last.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            let mut current = txn.open_table(CURRENT)?;
            for change in last {
                if change.kind == ChangeKind::Deleted {
                    current.remove(&*change.key)?;
                } else {
                    record.clear();
                    record.extend_from_slice(&change.revision.to_le_bytes());
                    record.extend_from_slice(&change.value);
                    current.insert(&*change.key, record.as_slice())?;
                }
            }
            if let Some(forget) = forget {
                history.retain_in(..=forget, |_, _| false)?;
                txn.open_table(META)?.insert("compacted", forget)?;
            }
        }
        txn.commit()?;
        Ok(())
    }
}

fn decode_entry(key: &str, record: &[u8]) -> Option<Entry> {
    let (revision, value) = record.split_first_chunk::<8>()?;
    Some(Entry { key: key.into(), value: Bytes::copy_from_slice(value), revision: u64::from_le_bytes(*revision) })
}

/// A record of the history: what a change replaced.
///
/// Time in milliseconds, revision of the previous write, length of the key (4 bytes), key, whether there was a value
/// (1 byte), the value.
#[derive(Debug, PartialEq, Eq)]
struct Undo<'a> {
    at: u64,
    previous_revision: Revision,
    key: &'a str,
    previous: Option<&'a [u8]>,
}

impl<'a> Undo<'a> {
    fn of(change: &'a Change, at: u64) -> Self {
        Self { at, previous_revision: change.previous_revision, key: &change.key, previous: change.previous.as_deref() }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.at.to_le_bytes());
        out.extend_from_slice(&self.previous_revision.to_le_bytes());
        // Keys are paths of names; a length beyond 32 bits cannot get this far.
        out.extend_from_slice(&u32::try_from(self.key.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(self.key.as_bytes());
        out.push(u8::from(self.previous.is_some()));
        out.extend_from_slice(self.previous.unwrap_or_default());
    }

    fn decode(record: &'a [u8]) -> Option<Self> {
        let (at, rest) = record.split_first_chunk::<8>()?;
        let (previous_revision, rest) = rest.split_first_chunk::<8>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        let (has, value) = rest.split_first()?;
        let previous = match (has, value) {
            (0, []) => None,
            (1, value) => Some(value),
            _ => return None,
        };
        Some(Self {
            at: u64::from_le_bytes(*at),
            previous_revision: u64::from_le_bytes(*previous_revision),
            key: std::str::from_utf8(key).ok()?,
            previous,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undo_records_round_trip_and_no_cut_record_is_accepted() {
        let cases = [
            Undo { at: 1, previous_revision: 0, key: "/a/b", previous: None },
            Undo { at: u64::MAX, previous_revision: 7, key: "/a/b", previous: Some(b"") },
            Undo { at: 3, previous_revision: 7, key: "/k", previous: Some(b"value") },
        ];
        for case in cases {
            let mut bytes = Vec::new();
            case.encode(&mut bytes);
            assert_eq!(Undo::decode(&bytes).as_ref(), Some(&case));
            // The value is last and runs to the end, so only cuts before it can be noticed here.
            let fixed = 8 + 8 + 4 + case.key.len() + 1;
            for cut in 0..fixed {
                assert_eq!(Undo::decode(&bytes[..cut]), None, "cut at {cut}");
            }
        }
    }
}
