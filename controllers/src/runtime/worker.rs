//! The loop around a reconciler: workers take keys, a failing or panicking one is tried again with back-off.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::queue::Queue;

/// A reconcile step failed; it will be tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused or did not answer.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The world is not as it must be for this step.
    #[error("{0}")]
    Other(String),
}

/// What a reconciler answers: nothing more to do, or look again after a time.
pub type Outcome = Result<Option<Duration>, Error>;

/// A controller: takes a key, reads the world, moves it one step towards what is wanted.
///
/// It must be idempotent and must not depend on which change enqueued the key. It is never run for one key twice at
/// the same time. It may be cancelled at any await when `limit` is over.
pub trait Reconcile: Send + Sync + 'static {
    /// Name in logs and metrics.
    fn name(&self) -> &'static str;
    /// The keys to work on.
    fn queue(&self) -> &Queue;
    /// One step for a key.
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome>;
    /// Adds everything there is; called when the workers start and on a timer.
    fn resync(&self);
    /// Workers at once.
    fn workers(&self) -> usize {
        3
    }
    /// Longest time for one step.
    fn limit(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// Everything is looked at again this often, whatever the watches said.
const RESYNC: Duration = Duration::from_secs(600);

/// Starts the workers of a controller.
pub fn spawn(tasks: &mut JoinSet<()>, controller: Arc<dyn Reconcile>, stop: &CancellationToken) {
    crate::metrics::show(&controller);
    for _ in 0..controller.workers() {
        let (c, stop) = (Arc::clone(&controller), stop.clone());
        tasks.spawn(async move {
            loop {
                let key = tokio::select! {
                    () = stop.cancelled() => return,
                    key = c.queue().next() => key,
                };
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = step(&*c, &key) => {}
                }
            }
        });
    }
    let stop = stop.clone();
    tasks.spawn(async move {
        loop {
            controller.resync();
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RESYNC) => {}
            }
        }
    });
}

async fn step(c: &dyn Reconcile, key: &str) {
    let work = AssertUnwindSafe(c.reconcile(key)).catch_unwind();
    let queue = c.queue();
    match tokio::time::timeout(c.limit(), work).await {
        Ok(Ok(Ok(again))) => {
            queue.forget(key);
            if let Some(delay) = again {
                queue.add_after(key, delay);
            }
        }
        Ok(Ok(Err(e))) => {
            // Conflicts and races are ordinary; what keeps failing is worth a line.
            if queue.failures(key) >= 5 {
                tracing::warn!(controller = c.name(), key, error = &e as &dyn std::error::Error, "still failing");
            } else {
                tracing::debug!(controller = c.name(), key, error = &e as &dyn std::error::Error, "will try again");
            }
            queue.add_failed(key);
        }
        Ok(Err(_)) => {
            tracing::error!(controller = c.name(), key, "a reconciler panicked");
            queue.add_failed(key);
        }
        Err(_) => {
            tracing::warn!(controller = c.name(), key, "a reconciler took too long");
            queue.add_failed(key);
        }
    }
    queue.done(key);
}

/// The status code of a refused request.
#[must_use]
pub fn code(e: &kube::Error) -> u16 {
    match e {
        kube::Error::Api(s) => s.code,
        _ => 0,
    }
}

/// What the server said, without what the client library puts around it.
#[must_use]
pub fn text(e: &kube::Error) -> String {
    match e {
        kube::Error::Api(s) => s.message.clone(),
        other => other.to_string(),
    }
}

/// Whether the object is not there (any more).
#[must_use]
pub fn not_found(e: &kube::Error) -> bool {
    code(e) == 404
}

/// Takes "not found" as nothing.
///
/// # Errors
/// All other failures.
pub fn found<T>(r: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match r {
        Ok(v) => Ok(Some(v)),
        Err(e) if not_found(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a creation was refused because the namespace is being deleted: nothing to repeat.
#[must_use]
pub fn namespace_terminating(e: &kube::Error) -> bool {
    code(e) == 403 && text(e).contains("because it is being terminated")
}
