//! What readers may see: the present entries and the window of history, all of it durable.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use crate::store::{Change, ChangeKind, Entry, Error, Range, Result, Revision};

/// The durable state. Kept behind a lock that is held for moments.
#[derive(Debug, Default)]
pub(super) struct Live {
    entries: BTreeSet<Present>,
    history: VecDeque<Kept>,
    /// Bytes that only the history holds: values that were replaced or removed.
    history_bytes: usize,
    compacted: Revision,
    revision: Revision,
}

/// A present entry, found by its key. There is one per stored object: the key is read where it is, not kept a second time.
#[derive(Debug)]
struct Present(Arc<Entry>);

impl Borrow<str> for Present {
    fn borrow(&self) -> &str {
        &self.0.key
    }
}

impl Ord for Present {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

impl PartialOrd for Present {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Present {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for Present {}

/// A change and when it was made. How the key changed is seen from what was there before and after.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    entry: Arc<Entry>,
    previous: Option<Arc<Entry>>,
    revision: Revision,
    /// In milliseconds of the Unix clock.
    at: u64,
}

impl Kept {
    pub(super) fn new(change: &Change, at: u64) -> Self {
        let Change { entry, previous, revision, .. } = change;
        Self { entry: Arc::clone(entry), previous: previous.clone(), revision: *revision, at }
    }

    pub(super) fn key(&self) -> &str {
        &self.entry.key
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn change(&self) -> Change {
        let kind = match &self.previous {
            None => ChangeKind::Created,
            // What a deletion leaves is what was there last.
            Some(previous) if Arc::ptr_eq(previous, &self.entry) => ChangeKind::Deleted,
            Some(_) => ChangeKind::Updated,
        };
        let (entry, previous) = (Arc::clone(&self.entry), self.previous.clone());
        Change { kind, entry, previous, revision: self.revision }
    }

    /// Bytes that only the history holds.
    fn weight(&self) -> usize {
        self.key().len() + self.previous.as_ref().map_or(0, |p| p.value.len())
    }
}

/// How much history is kept. Whichever bound is reached first counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) changes: usize,
    pub(super) bytes: usize,
    pub(super) age_ms: u64,
}

impl Live {
    /// From what a disk held. `history` is in revision order and complete after `compacted`.
    pub(super) fn load(
        entries: BTreeMap<Arc<str>, Arc<Entry>>,
        history: Vec<Kept>,
        compacted: Revision,
        revision: Revision,
    ) -> Self {
        let history_bytes = history.iter().map(Kept::weight).sum();
        let entries = entries.into_values().map(Present).collect();
        Self { entries, history: history.into(), history_bytes, compacted, revision }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn compacted(&self) -> Revision {
        self.compacted
    }

    pub(super) fn get(&self, key: &str) -> Option<&Arc<Entry>> {
        self.entries.get(key).map(|present| &present.0)
    }

    /// Makes one durable change visible. Changes come in revision order.
    pub(super) fn apply(&mut self, change: &Change, at: u64) {
        if change.kind == ChangeKind::Deleted {
            self.entries.remove(change.key());
        } else {
            self.entries.replace(Present(Arc::clone(&change.entry)));
        }
        self.revision = change.revision;
        let kept = Kept::new(change, at);
        self.history_bytes += kept.weight();
        self.history.push_back(kept);
    }

    /// Forgets history up to and including `revision`.
    pub(super) fn forget(&mut self, revision: Revision) {
        while let Some(first) = self.history.front() {
            if first.revision > revision {
                break;
            }
            self.history_bytes -= first.weight();
            self.history.pop_front();
        }
        self.compacted = self.compacted.max(revision);
        if self.history.is_empty() {
            self.history.shrink_to(64);
        }
    }

    /// The revision up to which history should be forgotten now, looking at no more than `step` changes. Forgetting
    /// starts when a bound is exceeded by a thirty-second part (age: by `slack_ms`) and then goes down to the bound: so
    /// it comes in groups, which share pages on disk, and not with every write.
    pub(super) fn due(&self, bounds: Bounds, now: u64, slack_ms: u64, step: usize) -> Option<Revision> {
        let (mut count, mut bytes) = (self.history.len(), self.history_bytes);
        let old = self.history.front().is_some_and(|k| now.saturating_sub(k.at) > bounds.age_ms + slack_ms);
        let many = count > bounds.changes + bounds.changes / 32 || bytes > bounds.bytes + bounds.bytes / 32;
        if !old && !many {
            return None;
        }
        let mut due = None;
        for kept in self.history.iter().take(step) {
            let over = (old && now.saturating_sub(kept.at) > bounds.age_ms)
                || (many && (count > bounds.changes || bytes > bounds.bytes));
            if !over {
                break;
            }
            count -= 1;
            bytes -= kept.weight();
            due = Some(kept.revision);
        }
        due
    }

    /// Revision of the last of the first `step` kept changes at or below `target`; `target` itself when that is all.
    pub(super) fn step_towards(&self, target: Revision, step: usize) -> Revision {
        match self.history.get(step) {
            Some(next) if next.revision <= target => next.revision - 1,
            _ => target,
        }
    }

    /// Kept changes up to and including `revision`, oldest first.
    pub(super) fn changes_through(&self, revision: Revision) -> Vec<Change> {
        self.history.iter().take_while(|k| k.revision <= revision).map(Kept::change).collect()
    }

    /// When the oldest kept change was made.
    pub(super) fn oldest_at(&self) -> Option<u64> {
        self.history.front().map(|k| k.at)
    }

    /// Changes kept, and the bytes only they hold.
    pub(super) fn history_size(&self) -> (usize, usize) {
        (self.history.len(), self.history_bytes)
    }

    /// Number of present entries.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether history from `revision` on is kept and not in the future.
    pub(super) fn check(&self, revision: Revision) -> Result<()> {
        if revision < self.compacted {
            return Err(Error::Compacted { requested: revision, oldest: self.compacted });
        }
        if revision > self.revision {
            return Err(Error::Future { requested: revision, current: self.revision });
        }
        Ok(())
    }

    /// Kept changes after `after`, oldest first.
    pub(super) fn changes_after(&self, after: Revision) -> impl Iterator<Item = &Kept> {
        let first = self.history.partition_point(|k| k.revision <= after);
        self.history.range(first..)
    }

    /// Entries under `prefix` from `start`, in key order.
    pub(super) fn under<'a>(&'a self, prefix: &'a str, start: Option<&str>) -> impl Iterator<Item = &'a Arc<Entry>> {
        let from = start.filter(|s| *s > prefix).unwrap_or(prefix);
        self.entries
            .range::<str, _>((Bound::Included(from), Bound::Unbounded))
            .map(|present| &present.0)
            .take_while(move |e| e.key.starts_with(prefix))
    }

    /// Answers a range read, also of the past.
    pub(super) fn range(&self, prefix: &str, start: Option<&str>, revision: Revision, limit: usize) -> Result<Range> {
        let limit = if limit == 0 { usize::MAX } else { limit };
        if revision == 0 || revision == self.revision {
            let mut entries: Vec<Arc<Entry>> =
                self.under(prefix, start).take(limit.saturating_add(1)).cloned().collect();
            let more = entries.len() > limit;
            entries.truncate(limit);
            return Ok(Range { entries, more, revision: self.revision });
        }
        self.check(revision)?;
        // What a key held at `revision` is what its first later change replaced.
        let mut then: HashMap<&str, Option<&Arc<Entry>>> = HashMap::new();
        for change in self.changes_after(revision) {
            if change.key().starts_with(prefix) && start.is_none_or(|s| change.key() >= s) {
                then.entry(change.key()).or_insert(change.previous.as_ref());
            }
        }
        let mut entries: Vec<Arc<Entry>> =
            self.under(prefix, start).filter(|e| !then.contains_key(&*e.key)).cloned().collect();
        entries.extend(then.into_values().flatten().map(Arc::clone));
        entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let more = entries.len() > limit;
        entries.truncate(limit);
        Ok(Range { entries, more, revision })
    }
}
