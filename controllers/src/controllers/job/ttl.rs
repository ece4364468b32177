//! Finished Jobs are deleted `ttlSecondsAfterFinished` after their end.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, Preconditions};
use kube::{Client, ResourceExt};

use super::plan;
use crate::controllers::family;
use crate::runtime::informer::{Informer, key_of, split};
use crate::runtime::queue::Queue;
use crate::runtime::seconds_since;
use crate::runtime::worker::{Outcome, Reconcile, found};

/// The controller.
pub struct Controller {
    client: Client,
    jobs: Informer<Job>,
    queue: Arc<Queue>,
}

/// How long a Job that is over still has; none for one that stays.
fn left(job: &Job) -> Option<Duration> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished.filter(|_| plan::finished(job))?;
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let end = conditions.iter().find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")?;
    let passed = seconds_since(end.last_transition_time.as_ref()?);
    Some(Duration::from_secs_f64((f64::from(ttl) - passed).max(0.0)))
}

impl Controller {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, jobs: Informer<Job>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        jobs.on_change(move |c| {
            if c.new.as_deref().and_then(left).is_some() {
                q.add(key_of(&**c.latest()));
            }
        });
        Arc::new(Self { client, jobs, queue })
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(rest) = self.jobs.get(key).as_deref().and_then(left) else { return Ok(None) };
        if !rest.is_zero() {
            return Ok(Some(rest + Duration::from_millis(10)));
        }
        // The cache may be behind: the time may have been made longer.
        let api = family::api::<Job>(&self.client, split(key).0);
        let Some(job) = found(api.get(split(key).1).await)? else { return Ok(None) };
        match left(&job) {
            None => return Ok(None),
            Some(rest) if !rest.is_zero() => return Ok(Some(rest)),
            Some(_) => {}
        }
        let preconditions = Preconditions { uid: job.uid(), resource_version: job.resource_version() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::foreground() };
        found(api.delete(&job.name_any(), &params).await)?;
        Ok(None)
    }
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "ttl-after-finished-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.jobs.all().iter().filter(|j| left(j).is_some()).for_each(|j| self.queue.add(key_of(&**j)));
    }

    fn workers(&self) -> usize {
        1
    }
}
