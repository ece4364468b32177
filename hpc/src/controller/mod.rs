//! Brings jobs to Slurm, follows them, and brings home what they made.
//!
//! Never is an outside effect repeated: what is about to be sent is written into the status first, with the version that was
//! read, so that two copies of a controller or an old copy of an object cannot both send; what may have been sent is looked for
//! before anything is sent again. All other steps may be repeated.

mod depend;
mod fill;
mod finish;
mod follow;
mod held;
mod status;
mod submit;
mod volume;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::json;
use skiff_controllers::runtime::events::{Level, Recorder};
use skiff_controllers::runtime::informer::{Informer, join, key_of, split};
use skiff_controllers::runtime::queue::Queue;
use skiff_controllers::runtime::worker::{Error, Outcome, Reconcile, code};
use skiff_controllers::runtime::written::Written;
use tokio_util::sync::CancellationToken;

use crate::api::{FINALIZER, GpuJob, GpuJobStatus, Intent, Phase, condition};
use crate::clusters::Clusters;
use crate::driver::SlurmError;
use crate::link::Link;
use crate::script::faults;
use crate::store::Store;
pub(crate) use finish::log_files;
pub(crate) use status::{clear, now, set};

/// A copy of an object from before our own write: the watch brings a newer one.
const BEHIND: Duration = Duration::from_millis(200);
/// What cannot go on because something is missing is looked at again after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// While Slurm does not answer.
const UNREACHABLE: Duration = Duration::from_secs(5);
/// After an answer was lost.
const LOST: Duration = Duration::from_secs(1);

/// The controller of jobs.
pub struct Controller {
    client: Client,
    pub(crate) jobs: Informer<GpuJob>,
    clusters: Arc<Clusters>,
    store: Store,
    recorder: Recorder,
    queue: Arc<Queue>,
    written: Written,
    /// How long a submission whose answer was lost may still arrive.
    settled: Duration,
    /// When this one began: what was sent before may have been sent until then.
    began: Timestamp,
}

/// A job under work: what was read, and the status to be.
struct Case {
    key: String,
    job: GpuJob,
    status: GpuJobStatus,
}

impl Case {
    fn uid(&self) -> &str {
        self.job.metadata.uid.as_deref().unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.job.metadata.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.job.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn generation(&self) -> Option<i64> {
        self.job.metadata.generation
    }

    /// Sets a condition of the status.
    fn set(&mut self, kind: &str, holds: bool, reason: &str, message: impl Into<String>) {
        let generation = self.generation();
        set(&mut self.status.conditions, kind, holds, reason, message, generation);
    }

    /// A condition that is not there need not be said to be false.
    fn clear(&mut self, kind: &str, reason: &str) {
        clear(&mut self.status.conditions, kind, reason);
    }

    fn holds(&self, kind: &str) -> bool {
        self.status.conditions.iter().any(|c| c.type_ == kind && c.status == "True")
    }
}

/// Index terms of a job: the jobs it comes after.
fn terms(job: &GpuJob) -> Vec<String> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    job.spec.dependencies.iter().filter_map(|d| d.job.as_ref()).map(|j| after_term(namespace, j)).collect()
}

fn after_term(namespace: &str, name: &str) -> String {
    format!("after/{namespace}/{name}")
}

impl Controller {
    /// A controller that works with these clusters. `queue` is what the clusters' lines tell keys to.
    #[must_use]
    pub fn new(client: Client, clusters: Arc<Clusters>, store: Store, queue: Arc<Queue>, settled: Duration) -> Self {
        let recorder = Recorder::start(client.clone(), "skiff-hpc");
        let (jobs, written) = (Informer::new(terms), Written::default());
        let began = Timestamp::now();
        Self { client, jobs, clusters, store, recorder, queue, written, settled, began }
    }

    /// Follows jobs until `stop`. False when the first list took too long.
    pub async fn follow(self: &Arc<Self>, limit: Duration, stop: &CancellationToken) -> bool {
        let this = Arc::downgrade(self);
        self.jobs.on_change(move |change| {
            let Some(this) = this.upgrade() else { return };
            let job = change.latest();
            this.queue.add(key_of(&**job));
            let (namespace, name) = names(job);
            let phase = |j: &Arc<GpuJob>| j.status.as_ref().map(|s| (s.phase, s.job_id.clone()));
            if change.old.as_ref().map(phase) != change.new.as_ref().map(phase) {
                for other in this.jobs.with_term(&after_term(namespace, name)) {
                    this.queue.add(key_of(&*other));
                }
            }
        });
        self.jobs.start(Api::all(self.client.clone()), watcher::Config::default(), stop.clone());
        self.jobs.wait_synced(limit).await
    }

    /// Whether there are jobs that go only when this lets them.
    pub(crate) fn holds_any(&self) -> bool {
        self.jobs.all().iter().any(|j| j.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER))
    }

    fn api(&self, namespace: &str) -> Api<GpuJob> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Writes the status if it is another, with the version that was read.
    async fn save(&self, case: &mut Case) -> Result<(), Error> {
        case.status.observed_generation = case.generation();
        if case.job.status.as_ref() == Some(&case.status) {
            return Ok(());
        }
        let mut new = case.job.clone();
        new.status = Some(case.status.clone());
        new.metadata.managed_fields = None;
        let written = self.api(case.namespace()).replace_status(case.name(), &PostParams::default(), &new).await?;
        self.written.note(&case.key, &written);
        case.job = written;
        case.status = case.job.status.clone().unwrap_or_default();
        Ok(())
    }

    /// Writes what must not be lost, over whatever others wrote meanwhile: only this controller writes the status.
    async fn save_surely(&self, case: &mut Case) -> Result<(), Error> {
        for _ in 0..8 {
            match self.save(case).await {
                Err(Error::Api(e)) if code(&e) == 409 => {
                    let fresh = self.api(case.namespace()).get(case.name()).await?;
                    if fresh.metadata.uid != case.job.metadata.uid {
                        return Err(Error::Api(e));
                    }
                    case.job = fresh;
                }
                other => return other,
            }
        }
        Err(Error::Other("the status could not be written: others write all the time".into()))
    }

    /// Whether a submission whose answer was lost is over on the other side too.
    fn is_settled(&self, intent: &Intent) -> bool {
        let sent = intent.since.as_ref().map_or(Timestamp::MIN, |s| s.0);
        is_over(sent, self.began, Timestamp::now(), self.settled)
    }

    fn note(&self, case: &Case, level: Level, reason: &str, message: impl Into<String>) {
        self.recorder.note(&case.job, level, reason, message);
    }

    /// Keeps or drops the finalizer.
    async fn finalizer(&self, case: &mut Case, keep: bool) -> Result<(), Error> {
        let mut all = case.job.metadata.finalizers.clone().unwrap_or_default();
        if all.iter().any(|f| f == FINALIZER) == keep {
            return Ok(());
        }
        all.retain(|f| f != FINALIZER);
        if keep {
            all.push(FINALIZER.into());
        }
        let version = &case.job.metadata.resource_version;
        let patch = json!({"metadata": {"finalizers": all, "resourceVersion": version}});
        let api = self.api(case.namespace());
        let written = api.patch(case.name(), &PatchParams::default(), &Patch::Merge(patch)).await?;
        self.written.note(&case.key, &written);
        case.job = written;
        Ok(())
    }

    async fn step(&self, key: &str) -> Outcome {
        let Some(job) = self.jobs.get(key) else {
            self.written.forget(key);
            return Ok(None);
        };
        if self.written.behind(key, &*job) {
            return Ok(Some(BEHIND));
        }
        let status = job.status.clone().unwrap_or_default();
        let mut case = Case { key: key.to_owned(), job: (*job).clone(), status };
        if case.job.metadata.deletion_timestamp.is_some() {
            return self.delete(&mut case).await;
        }
        if case.status.phase.is_some_and(Phase::ended) {
            return self.after(&mut case).await;
        }
        let link = match self.choose(&mut case) {
            Ok(link) => link,
            Err((reason, message)) => {
                case.status.phase.get_or_insert_default();
                case.status.reason = Some(reason.to_owned());
                case.set(condition::UNSCHEDULABLE, true, reason, message);
                self.save(&mut case).await?;
                return Ok(Some(LOOK_AGAIN));
            }
        };
        let wrong = faults(&case.job.spec);
        if !wrong.is_empty() && case.status.intent.is_none() {
            return self.give_up(&mut case, "InvalidSpec", wrong.join("; ")).await;
        }
        self.finalizer(&mut case, true).await?;
        if case.status.identity.is_some() {
            return self.watch(&mut case, &link).await;
        }
        if case.status.intent.as_ref().is_some_and(|i| i.sent) {
            return self.look_up(&mut case, &link).await;
        }
        self.prepare(&mut case, &link).await
    }

    /// The line to the job's cluster.
    fn choose(&self, case: &mut Case) -> Result<Arc<Link>, (&'static str, String)> {
        // Once chosen it stays: the job is there.
        let named = case.status.cluster.clone().or_else(|| case.job.spec.cluster.clone());
        let name = match named {
            Some(name) => name,
            None => match &self.clusters.names()[..] {
                [only] => only.clone(),
                [] => return Err(("NoCluster", "there is no HpcCluster".into())),
                several => {
                    let all = several.join(", ");
                    return Err(("ClusterNotNamed", format!("spec.cluster must name one of {all}")));
                }
            },
        };
        let Some(cluster) = self.clusters.get(&name) else {
            return Err(("NoCluster", format!("there is no HpcCluster {name}")));
        };
        let allowed = &cluster.spec.allowed_namespaces;
        if !allowed.is_empty() && !allowed.iter().any(|n| n == case.namespace()) && case.status.intent.is_none() {
            let namespace = case.namespace();
            return Err(("NamespaceNotAllowed", format!("HpcCluster {name} is not for jobs of namespace {namespace}")));
        }
        let link = self.clusters.link(&name);
        let link =
            link.ok_or_else(|| ("ClusterNotReady", format!("HpcCluster {name} is not ready: see its conditions")))?;
        case.status.cluster = Some(name);
        Ok(link)
    }

    /// Ends a job that was never in Slurm.
    async fn give_up(&self, case: &mut Case, reason: &str, message: String) -> Outcome {
        self.note(case, Level::Warning, reason, &*message);
        self.fail(case, reason, message);
        self.save(case).await?;
        Ok(None)
    }

    /// Slurm does not answer: said once, tried again.
    async fn unreachable(&self, case: &mut Case, error: &SlurmError) -> Outcome {
        case.status.phase.get_or_insert_default();
        case.set(condition::UNKNOWN, true, error.reason(), error.to_string());
        self.save(case).await?;
        // A connection that broke is soon another; a host that cannot be reached is left alone.
        Ok(Some(if matches!(error, SlurmError::Lost(_)) { LOST } else { UNREACHABLE }))
    }
}

/// Whether what was written down as sent then is over. A submission may wait for its turn after that: at most until its answer
/// was lost, which is written down too, or until the controller that sent it was no more, which was before this one began.
fn is_over(sent: Timestamp, began: Timestamp, now: Timestamp, settled: Duration) -> bool {
    let age = now.as_millisecond() - sent.max(began).as_millisecond();
    u128::try_from(age).is_ok_and(|age| age >= settled.as_millis())
}

fn names(job: &GpuJob) -> (&str, &str) {
    (job.metadata.namespace.as_deref().unwrap_or_default(), job.metadata.name.as_deref().unwrap_or_default())
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "gpujobs"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.step(key).boxed()
    }

    fn resync(&self) {
        for key in self.jobs.keys() {
            self.queue.add(key);
        }
    }

    /// Most of a step is waiting for Slurm.
    fn workers(&self) -> usize {
        24
    }

    /// Files take their time; every call to Slurm has a deadline of its own.
    fn limit(&self) -> Duration {
        Duration::from_secs(3600)
    }
}

/// The key of a job of the same namespace.
fn sibling(case: &Case, name: &str) -> String {
    let (namespace, _) = split(&case.key);
    join(namespace, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_submission_is_over_when_it_can_no_longer_arrive() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let over = |sent, began, now| is_over(at(sent), at(began), at(now), Duration::from_secs(40));
        assert!(!over(100, 0, 139));
        assert!(over(100, 0, 140));
        // One that a former controller sent may have waited for its turn until that one was no more.
        assert!(!over(100, 150, 189));
        assert!(over(100, 150, 190));
        // A clock that was set back proves nothing.
        assert!(!over(100, 0, 50));
    }
}
