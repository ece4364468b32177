//! Walks over very many objects that let others work in between.

use std::ops::Bound;
use std::sync::Arc;

use super::{Cache, Object, Snapshot, range};

/// Objects that [`Cache::select`] looks at before others get the lock: half a millisecond's worth.
const STEP: usize = 4096;
/// How often a selection starts again because the window moved past it, before it holds the lock to its end.
const RESTARTS: usize = 3;

impl Cache {
    /// The present objects under a prefix that `wanted` accepts.
    ///
    /// Walking over very many takes a while, so the lock and the thread are given to others every [`STEP`] objects. The
    /// answer is of one revision all the same: what was changed meanwhile is taken back with the help of the window.
    pub async fn select(&self, prefix: &str, wanted: impl Fn(&Object) -> bool) -> Snapshot {
        let mut restarts = 0;
        loop {
            if let Some(snapshot) =
                self.walk(prefix, &wanted, if restarts < RESTARTS { STEP } else { usize::MAX }).await
            {
                return snapshot;
            }
            restarts += 1;
        }
    }

    /// One try of [`Cache::select`]; `None` when the window has moved past its beginning.
    async fn walk(&self, prefix: &str, wanted: &impl Fn(&Object) -> bool, step: usize) -> Option<Snapshot> {
        let mut objects: Vec<Arc<Object>> = Vec::new();
        let mut from: Option<Arc<str>> = None;
        let mut begun = None;
        loop {
            {
                let (state, now) = self.view();
                let revision = *begun.get_or_insert(now);
                if state.compacted > revision {
                    return None;
                }
                let first = Bound::Included(from.as_deref().unwrap_or(prefix));
                let mut rest = range(&state.live, prefix, first);
                objects.extend(rest.by_ref().take(step).map(|(_, o)| o).filter(|o| wanted(o)).map(Arc::clone));
                let Some((next, _)) = rest.next() else {
                    state.rewind(&mut objects, prefix, revision, wanted);
                    return Some(Snapshot { objects, revision });
                };
                from = Some(Arc::clone(next));
            }
            tokio::task::yield_now().await;
        }
    }
}
