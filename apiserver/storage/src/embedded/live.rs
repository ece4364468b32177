//! What readers may see: the present entries and the window of history, all of it durable.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use crate::store::{Change, Entry, Error, Range, Result, Revision};

/// The durable state. Kept behind a lock that is held for moments.
#[derive(Debug, Default)]
pub(super) struct Live {
    entries: BTreeMap<Arc<str>, Arc<Entry>>,
    history: VecDeque<Kept>,
    /// Bytes that only the history holds: values that were replaced or removed.
    history_bytes: usize,
    compacted: Revision,
    revision: Revision,
}

/// A change and when it was made, in milliseconds of the Unix clock.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) change: Change,
    pub(super) at: u64,
}

/// How much history is kept. Whichever bound is reached first counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) changes: usize,
    pub(super) bytes: usize,
    pub(super) age_ms: u64,
}

fn weight(change: &Change) -> usize {
    change.key().len() + change.previous.as_ref().map_or(0, |p| p.value.len())
}

impl Live {
    /// From what a disk held. `history` is in revision order and complete after `compacted`.
    pub(super) fn load(
        entries: BTreeMap<Arc<str>, Arc<Entry>>,
        history: Vec<Kept>,
        compacted: Revision,
        revision: Revision,
    ) -> Self {
        let history_bytes = history.iter().map(|k| weight(&k.change)).sum();
        Self { entries, history: history.into(), history_bytes, compacted, revision }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn compacted(&self) -> Revision {
        self.compacted
    }

    pub(super) fn get(&self, key: &str) -> Option<&Arc<Entry>> {
        self.entries.get(key)
    }

    /// Makes one durable change visible. Changes come in revision order.
    pub(super) fn apply(&mut self, change: &Change, at: u64) {
        if change.kind == crate::ChangeKind::Deleted {
            self.entries.remove(change.key());
        } else {
            self.entries.insert(Arc::clone(&change.entry.key), Arc::clone(&change.entry));
        }
        self.revision = change.revision;
        self.history_bytes += weight(change);
        self.history.push_back(Kept { change: change.clone(), at });
    }

    /// Forgets history up to and including `revision`.
    pub(super) fn forget(&mut self, revision: Revision) {
        while let Some(first) = self.history.front() {
            if first.change.revision > revision {
                break;
            }
            self.history_bytes -= weight(&first.change);
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
            bytes -= weight(&kept.change);
            due = Some(kept.change.revision);
        }
        due
    }

    /// Revision of the last of the first `step` kept changes at or below `target`; `target` itself when that is all.
    pub(super) fn step_towards(&self, target: Revision, step: usize) -> Revision {
        match self.history.get(step) {
            Some(next) if next.change.revision <= target => next.change.revision - 1,
            _ => target,
        }
    }

    /// Kept changes up to and including `revision`, oldest first.
    pub(super) fn changes_through(&self, revision: Revision) -> Vec<Change> {
        let kept = self.history.iter().take_while(|k| k.change.revision <= revision);
        kept.map(|k| k.change.clone()).collect()
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
    pub(super) fn changes_after(&self, after: Revision) -> impl Iterator<Item = &Change> {
        let first = self.history.partition_point(|k| k.change.revision <= after);
        self.history.range(first..).map(|k| &k.change)
    }

    /// Entries under `prefix` from `start`, in key order.
    pub(super) fn under<'a>(&'a self, prefix: &'a str, start: Option<&str>) -> impl Iterator<Item = &'a Arc<Entry>> {
        let from = start.filter(|s| *s > prefix).unwrap_or(prefix);
        self.entries
            .range::<str, _>((Bound::Included(from), Bound::Unbounded))
            .map(|(_, e)| e)
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
