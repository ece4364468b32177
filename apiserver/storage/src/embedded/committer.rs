//! The one thread that writes: takes whatever waits into one transaction and one sync, then publishes it.
//!
//! There is no timer: while one sync runs, the next batch forms by itself. An error, or a panic out of the database, ends
//! the store: a sync that failed may have dropped the pages it was to write, so trying it again would prove nothing.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Shared;
use super::disk::{Disk, Forget};
use super::sequencer::Pending;
use crate::store::{Change, Error, Result, Revision};

/// Changes in one transaction at most: beyond that the sync is amortised and only latency grows.
const BATCH_CHANGES: usize = 512;
/// Bytes in one transaction at most.
const BATCH_BYTES: usize = 2 << 20;
/// History forgotten in one transaction at most, beside writes and alone.
const FORGET_BESIDE: usize = 2 * BATCH_CHANGES;
const FORGET_ALONE: usize = 8 * BATCH_CHANGES;

/// What the next turn is to do.
struct Work {
    batch: Vec<Pending>,
    /// Furthest explicit compaction that is wanted.
    compact: Option<Revision>,
}

pub(super) fn run(shared: &Shared, disk: Disk, lock: &File) {
    let end = catch_unwind(AssertUnwindSafe(|| turns(shared, &disk)));
    let why = match end {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("the database code panicked; see the log".to_owned()),
    };
    if let Some(why) = &why {
        tracing::error!(error = %why, "storage failed, no write is accepted any more");
    }
    let (rest, compactions) = {
        let mut seq = shared.seq.lock();
        match &why {
            Some(why) => seq.fail(why),
            None => (std::mem::take(&mut seq.queue), seq.compactions.drain(..).map(|(_, r)| r).collect()),
        }
    };
    let refusal = || why.clone().map_or(Error::Closed, Error::Unavailable);
    for pending in rest {
        pending.reply.send(Err(refusal())).ok();
    }
    for reply in compactions {
        reply.send(Err(refusal())).ok();
    }
    let sinks: Vec<_> = shared.sinks.lock().each().collect();
    for sink in sinks {
        sink.closed();
    }
    shared.failed.send_replace(why);
    shared.ended.send_replace(true);
    // A database that failed may panic once more while it closes; that must not hide the first cause.
    if catch_unwind(AssertUnwindSafe(|| drop(disk))).is_err() {
        tracing::error!("the database panicked while closing");
    }
    // Not left to the drop: a child that this process is just starting may hold the same open file for a moment.
    if let Err(error) = lock.unlock() {
        tracing::warn!(%error, "cannot give the data directory's lock back");
    }
}

/// Works until the store closes (`Ok`) or a write fails.
fn turns(shared: &Shared, disk: &Disk) -> Result<(), redb::Error> {
    while let Some(Work { batch, compact }) = next(shared) {
        let changes: Vec<Change> = batch.iter().filter_map(|p| p.change.clone()).collect();
        let now = now_ms();
        let forget = {
            let live = shared.live.read();
            let step = if changes.is_empty() { FORGET_ALONE } else { FORGET_BESIDE };
            let asked = compact.filter(|target| *target > live.compacted()).map(|t| live.step_towards(t, step));
            let through = asked.max(live.due(shared.bounds, now, slack_ms(shared), step));
            through.map(|through| Forget { changes: live.changes_through(through), through })
        };
        if !changes.is_empty() || forget.is_some() {
            let written = catch_unwind(AssertUnwindSafe(|| disk.write(&changes, now, forget.as_ref())));
            let error = match written {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error),
                Err(_) => Some(redb::Error::Corrupted("the database code panicked during a write".to_owned())),
            };
            if let Some(error) = error {
                // Mark first: nothing may be accepted on top of what is now lost.
                let why = error.to_string();
                shared.seq.lock().failed.get_or_insert_with(|| why.clone());
                for pending in batch {
                    pending.reply.send(Err(Error::Unavailable(why.clone()))).ok();
                }
                return Err(error);
            }
        }
        publish(shared, batch, &changes, now, forget.map(|f| f.through));
    }
    Ok(())
}

/// Waits for work. `None` when the store closes and nothing is left.
fn next(shared: &Shared) -> Option<Work> {
    let mut seq = shared.seq.lock();
    loop {
        let compact = seq.compactions.iter().map(|(revision, _)| *revision).max();
        if !seq.queue.is_empty() || compact.is_some() {
            let mut bytes = 0;
            let size = |p: &Pending| p.change.as_ref().map_or(0, |c| c.entry.value.len());
            let over = seq.queue.iter().position(|p| {
                bytes += size(p);
                bytes > BATCH_BYTES
            });
            let take = over.map_or(seq.queue.len(), |at| at.max(1)).min(BATCH_CHANGES);
            let rest = seq.queue.split_off(take);
            let batch = std::mem::replace(&mut seq.queue, rest);
            return Some(Work { batch, compact });
        }
        if seq.closed {
            return None;
        }
        // The history ages also when nobody writes.
        let due = shared.live.read().oldest_at().map(|at| at + shared.bounds.age_ms + slack_ms(shared) + 1);
        match due.map(|at| at.saturating_sub(now_ms())) {
            Some(0) => return Some(Work { batch: Vec::new(), compact: None }),
            Some(wait) => {
                shared.work.wait_until(&mut seq, Instant::now() + Duration::from_millis(wait));
            }
            None => shared.work.wait(&mut seq),
        }
    }
}

/// Shows what is durable now: readers, sinks, writers, watchers, in this order.
fn publish(shared: &Shared, batch: Vec<Pending>, changes: &[Change], at: u64, forget: Option<Revision>) {
    let told = {
        let mut sinks = shared.sinks.lock();
        {
            // The store's own revision moves before any sink shows a change. So who has seen a change anywhere, and then
            // asks the store how far it is, learns of a revision that covers it.
            let mut live = shared.live.write();
            for change in changes {
                live.apply(change, at);
            }
            if let Some(forget) = forget {
                live.forget(forget);
            }
        }
        let told = sinks.apply(changes);
        if let Some(forget) = forget {
            for sink in sinks.each() {
                sink.compacted(forget);
            }
        }
        told
    };
    let finished = {
        let mut seq = shared.seq.lock();
        seq.settle(changes.iter());
        let compacted = shared.live.read().compacted();
        let (done, open) = std::mem::take(&mut seq.compactions).into_iter().partition(|(r, _)| *r <= compacted);
        seq.compactions = open;
        done
    };
    if let Some(last) = changes.last() {
        shared.progress.advance(last.revision);
    }
    for Pending { answer, reply, permit, .. } in batch {
        drop(permit);
        reply.send(answer).ok();
    }
    for (_, reply) in finished {
        reply.send(Ok(())).ok();
    }
    for sink in told {
        sink.wake();
    }
}

/// How far over age the oldest change must be before a quiet store forgets: a tenth, at most half a minute.
fn slack_ms(shared: &Shared) -> u64 {
    (shared.bounds.age_ms / 10).min(30_000)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
