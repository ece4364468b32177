//! Walks over very many objects that let others work in between.

use std::hint::black_box;
use std::ops::Bound;
use std::sync::Arc;

use super::{Cache, Object, Snapshot, range};

/// Objects that [`Cache::select`] looks at before others get the lock: half a millisecond's worth.
const STEP: usize = 4096;
/// Objects whose metadata is asked for together. They lie all over the memory, and a walk from one to the next would wait for
/// each; asked for together, the waits overlap.
const TOGETHER: usize = 64;
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
                let mut left = step;
                let mut group: Vec<&Arc<Object>> = Vec::with_capacity(TOGETHER);
                while left > 0 {
                    group.clear();
                    group.extend(rest.by_ref().take(TOGETHER.min(left)).map(|(_, o)| o));
                    if group.is_empty() {
                        break;
                    }
                    left -= group.len();
                    black_box(group.iter().map(|o| o.meta.touch()).sum::<usize>());
                    objects.extend(group.iter().copied().filter(|o| wanted(o)).map(Arc::clone));
                }
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
