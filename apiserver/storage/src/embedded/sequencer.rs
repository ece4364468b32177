//! Decides writes: checks preconditions against the speculative head and hands out revisions.
//!
//! The speculative head is the durable state plus every write that was accepted and waits for its sync. It is never
//! shown: whoever loses against a speculative write is answered only after that write is durable (an `After` below), so a
//! conflict cannot leak a value that a crash would take back.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::store::{Change, ChangeKind, Compare, Entry, Error, Op, Payload, Result, Revision};

/// An accepted write, or an answer that must wait for the writes before it.
#[derive(Debug)]
pub(super) struct Pending {
    /// The change to make durable; `None` for an answer that only waits.
    pub(super) change: Option<Change>,
    /// What to answer then.
    pub(super) answer: Result<Revision>,
    /// Where.
    pub(super) reply: oneshot::Sender<Result<Revision>>,
    /// Place in the queue, given back with the answer.
    pub(super) permit: OwnedSemaphorePermit,
}

/// What a key will be once everything accepted is durable.
#[derive(Debug)]
struct Speculative {
    revision: Revision,
    /// What was written last; `None`: deleted.
    entry: Option<Arc<Entry>>,
}

/// What became of a write.
pub(super) enum Verdict {
    /// Accepted: this change is to be made durable.
    Accepted(Change),
    /// Decided by durable state: answer now.
    Now(Result<Revision>),
    /// Decided by a write that is not durable yet: answer after it.
    After(Result<Revision>),
}

/// The speculative head.
#[derive(Debug, Default)]
pub(super) struct Sequencer {
    head: Revision,
    ahead: HashMap<Arc<str>, Speculative>,
    /// Accepted and not yet taken by the committer.
    pub(super) queue: Vec<Pending>,
    /// Explicit compactions wanted: up to which revision, and who waits.
    pub(super) compactions: Vec<(Revision, oneshot::Sender<Result<()>>)>,
    /// Why no write is accepted any more.
    pub(super) failed: Option<String>,
    /// Shut down was asked for.
    pub(super) closed: bool,
}

impl Sequencer {
    pub(super) fn new(head: Revision) -> Self {
        Self { head, ..Self::default() }
    }

    /// Why a write cannot be taken at all, if so.
    pub(super) fn refusal(&self) -> Option<Error> {
        match (&self.failed, self.closed) {
            (Some(why), _) => Some(Error::Unavailable(why.clone())),
            (None, true) => Some(Error::Closed),
            (None, false) => None,
        }
    }

    /// Decides one write. `durable` looks a key up in the durable state, whose revision is `durable_revision`.
    pub(super) fn decide(
        &mut self,
        key: &str,
        compare: Compare,
        op: &Op,
        durable: impl FnOnce() -> (Option<Arc<Entry>>, Revision),
    ) -> Verdict {
        let (current, waits, no_op) = match self.ahead.get(key) {
            Some(ahead) => (ahead.entry.clone(), true, ahead.revision),
            None => {
                let (current, revision) = durable();
                (current, false, revision)
            }
        };
        let answer = |result| if waits { Verdict::After(result) } else { Verdict::Now(result) };
        let holds = match compare {
            Compare::Any => true,
            Compare::Absent => current.is_none(),
            Compare::At(revision) => current.as_ref().is_some_and(|e| e.revision == revision),
        };
        if !holds {
            return answer(Err(Error::Conflict { current }));
        }
        let revision = self.head + 1;
        let put = |key, payload: &Payload| Arc::new(Entry { key, value: payload.stamp(revision), revision });
        let (kind, entry) = match (op, &current) {
            (Op::Put(payload), Some(was)) => (ChangeKind::Updated, put(Arc::clone(&was.key), payload)),
            (Op::Put(payload), None) => (ChangeKind::Created, put(key.into(), payload)),
            (Op::Delete, Some(was)) => (ChangeKind::Deleted, Arc::clone(was)),
            (Op::Delete, None) => return answer(Ok(no_op)),
        };
        self.head = revision;
        let ahead = Speculative { revision, entry: (kind != ChangeKind::Deleted).then(|| Arc::clone(&entry)) };
        self.ahead.insert(Arc::clone(&entry.key), ahead);
        Verdict::Accepted(Change { kind, entry, previous: current, revision })
    }

    /// These changes are visible now; what is still ahead of them stays.
    pub(super) fn settle<'a>(&mut self, changes: impl Iterator<Item = &'a Change>) {
        for change in changes {
            if self.ahead.get(change.key()).is_some_and(|s| s.revision <= change.revision) {
                self.ahead.remove(change.key());
            }
        }
        if self.ahead.is_empty() {
            self.ahead.shrink_to(1024);
        }
    }

    /// No write will be accepted from here on. Answers whoever waits in the queue.
    pub(super) fn fail(&mut self, why: &str) -> (Vec<Pending>, Vec<oneshot::Sender<Result<()>>>) {
        self.failed.get_or_insert_with(|| why.to_owned());
        self.ahead.clear();
        let compactions = self.compactions.drain(..).map(|(_, reply)| reply).collect();
        (std::mem::take(&mut self.queue), compactions)
    }
}
