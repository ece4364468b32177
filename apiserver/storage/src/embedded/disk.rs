//! The tables on disk.
//!
//! - `history`: revision -> what was written ([`Redo`]). A commit only appends here: one place in the file, whatever
//!   the keys.
//! - `current`: key -> revision of its last write (8 bytes, little endian), value; **as of the revision `compacted`**.
//!   Forgetting a stretch of history moves it here, each key once, however often it was written in that stretch.
//! - `meta`: `format`, and `compacted`. The store's revision is the larger of that and the last of the history, so a
//!   revision is never given twice.
//!
//! So the present is `current` with the history played on top, which also tells what each change replaced.

use std::collections::BTreeMap;
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

        let mut state: BTreeMap<Arc<str>, Arc<Entry>> = BTreeMap::new();
        let current = txn.open_table(CURRENT).map_err(|e| failed(e.into()))?;
        for row in current.iter().map_err(|e| failed(e.into()))? {
            let (key, value) = row.map_err(|e| failed(e.into()))?;
            let entry = decode_entry(key.value(), value.value())
                .ok_or_else(|| corrupt(format!("the record of {} is too short", key.value())))?;
            state.insert(Arc::clone(&entry.key), Arc::new(entry));
        }
        let meta = txn.open_table(META).map_err(|e| failed(e.into()))?;
        let compacted = meta.get("compacted").map_err(|e| failed(e.into()))?.map_or(0, |v| v.value());
        if let Some(entry) = state.values().find(|e| e.revision > compacted) {
            return Err(corrupt(format!("{} is newer than the history before it", entry.key)));
        }

        let mut history: Vec<Kept> = Vec::new();
        let mut last = compacted;
        let table = txn.open_table(HISTORY).map_err(|e| failed(e.into()))?;
        for row in table.iter().map_err(|e| failed(e.into()))? {
            let (revision, record) = row.map_err(|e| failed(e.into()))?;
            let revision = revision.value();
            if revision != last + 1 {
                return Err(corrupt(format!("the history goes from revision {last} to {revision}")));
            }
            last = revision;
            let redo = Redo::decode(record.value())
                .ok_or_else(|| corrupt(format!("the history record of revision {revision} is damaged")))?;
            let previous = state.remove(redo.key);
            let put = |key, value| Arc::new(Entry { key, value: Bytes::copy_from_slice(value), revision });
            let (kind, entry) = match (redo.value, &previous) {
                (Some(value), Some(was)) => (ChangeKind::Updated, put(Arc::clone(&was.key), value)),
                (Some(value), None) => (ChangeKind::Created, put(redo.key.into(), value)),
                (None, Some(was)) => (ChangeKind::Deleted, Arc::clone(was)),
                (None, None) => {
                    return Err(corrupt(format!("revision {revision} deletes {}, which is not there", redo.key)));
                }
            };
            if kind != ChangeKind::Deleted {
                state.insert(Arc::clone(&entry.key), Arc::clone(&entry));
            }
            history.push(Kept::new(&Change { kind, entry, previous, revision }, redo.at));
        }
        Ok(Live::load(state, history, compacted, last))
    }

    /// Makes `changes` durable and forgets a stretch of history, in one transaction and one sync.
    pub(super) fn write(&self, changes: &[Change], at: u64, forget: Option<&Forget>) -> Result<(), redb::Error> {
        let txn = self.db.begin_write()?;
        {
            let mut history = txn.open_table(HISTORY)?;
            let mut record = Vec::new();
            for change in changes {
                Redo::of(change, at).encode(&mut record);
                history.insert(change.revision, record.as_slice())?;
            }
            if let Some(Forget { changes, through }) = forget {
                history.retain_in(..=*through, |_, _| false)?;
                txn.open_table(META)?.insert("compacted", through)?;
                // The last state of each key, in key order because neighbours share pages.
                let last: BTreeMap<&str, &Change> = changes.iter().map(|c| (c.key(), c)).collect();
                let mut current = txn.open_table(CURRENT)?;
                for (key, change) in last {
                    if change.kind == ChangeKind::Deleted {
                        current.remove(key)?;
                    } else {
                        record.clear();
                        record.extend_from_slice(&change.revision.to_le_bytes());
                        record.extend_from_slice(&change.entry.value);
                        current.insert(key, record.as_slice())?;
                    }
                }
            }
        }
        txn.commit()?;
        Ok(())
    }
}

/// A stretch of history to forget: all kept changes up to and including `through`.
#[derive(Debug)]
pub(super) struct Forget {
    pub(super) changes: Vec<Change>,
    pub(super) through: Revision,
}

fn decode_entry(key: &str, record: &[u8]) -> Option<Entry> {
    let (revision, value) = record.split_first_chunk::<8>()?;
    Some(Entry { key: key.into(), value: Bytes::copy_from_slice(value), revision: u64::from_le_bytes(*revision) })
}

/// A record of the history: what was written.
///
/// Time in milliseconds (8 bytes), length of the key (4 bytes), key, 1 and the value, or 0 for a deletion.
#[derive(Debug, PartialEq, Eq)]
struct Redo<'a> {
    at: u64,
    key: &'a str,
    value: Option<&'a [u8]>,
}

impl<'a> Redo<'a> {
    fn of(change: &'a Change, at: u64) -> Self {
        let value = (change.kind != ChangeKind::Deleted).then_some(&*change.entry.value);
        Self { at, key: change.key(), value }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.at.to_le_bytes());
        // Keys are paths of names; a length beyond 32 bits cannot get this far.
        out.extend_from_slice(&u32::try_from(self.key.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(self.key.as_bytes());
        out.push(u8::from(self.value.is_some()));
        out.extend_from_slice(self.value.unwrap_or_default());
    }

    fn decode(record: &'a [u8]) -> Option<Self> {
        let (at, rest) = record.split_first_chunk::<8>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        let value = match rest.split_first()? {
            (0, []) => None,
            (1, value) => Some(value),
            _ => return None,
        };
        Some(Self { at: u64::from_le_bytes(*at), key: std::str::from_utf8(key).ok()?, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_records_round_trip_and_no_cut_record_is_accepted() {
        let cases = [
            Redo { at: 1, key: "/a/b", value: None },
            Redo { at: u64::MAX, key: "/a/b", value: Some(b"") },
            Redo { at: 3, key: "/k", value: Some(b"value") },
        ];
        for case in cases {
            let mut bytes = Vec::new();
            case.encode(&mut bytes);
            assert_eq!(Redo::decode(&bytes).as_ref(), Some(&case));
            // The value is last and runs to the end, so only cuts before it can be noticed here.
            let fixed = 8 + 4 + case.key.len() + 1;
            for cut in 0..fixed {
                assert_eq!(Redo::decode(&bytes[..cut]), None, "cut at {cut}");
            }
        }
    }
}
