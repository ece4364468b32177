//! Jobs: pods that run to completion.
//!
//! Nothing is counted twice and nothing is lost: every pod carries a finalizer until its end is counted. First its uid is
//! written to `uncountedTerminatedPods`, then the finalizer goes, then the uid becomes part of a number. A crash between
//! any two of these is made good by the next step, which only looks at the status and the pods. Two things bridge the
//! time until the caches show the controller's own writes: [`Written`] for the Job, and a set of pods that were let go.
//! What is wanted is decided in [`plan`] and [`failure`]; here is what reads and writes.

pub mod failure;
pub mod indexes;
pub mod plan;
pub mod ttl;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;

use self::failure::Record;
use self::plan::{Ending, FINALIZER, Sight, Work};
use super::family::{self, Claim};
use super::pods;
use crate::runtime::events::{Level, Recorder};
use crate::runtime::expectations::Expectations;
use crate::runtime::informer::{Informer, controller_of, join, key_of, owner_term, split};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{self, Error, Outcome, Reconcile, found};
use crate::runtime::written::Written;
use crate::runtime::{now, select};

/// Jobs of another value of `spec.managedBy` are somebody else's.
const MANAGER: &str = "kubernetes.io/job-controller";
/// Changes of pods are looked at together when they come within this time.
const TOGETHER: Duration = Duration::from_millis(50);
/// Marks a key in the queue as that of a pod whose Job is gone.
const POD: &str = "pod:";

/// The Job controller.
pub struct Controller {
    client: Client,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    queue: Arc<Queue>,
    expected: Arc<Expectations>,
    written: Written,
    /// Uids of pods whose finalizer was removed and whose cached copy still has it.
    freed: Arc<Mutex<HashSet<String>>>,
    /// Failures by Job, with its uid.
    records: Mutex<HashMap<String, (String, Record)>>,
    events: Recorder,
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

impl Controller {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, jobs: Informer<Job>, pods: Informer<Pod>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let expected = Arc::new(Expectations::default());
        let freed = Arc::new(Mutex::new(HashSet::new()));
        let (q, p) = (Arc::clone(&queue), pods.clone());
        jobs.on_change(move |c| {
            q.add(key_of(&**c.latest()));
            if c.new.is_none() {
                let left = p.with_term(&owner_term(&c.latest().uid().unwrap_or_default()));
                left.iter().filter(|p| plan::tracked(p)).for_each(|p| q.add(format!("{POD}{}", key_of(&**p))));
            }
        });
        let (q, e, f, j) = (Arc::clone(&queue), Arc::clone(&expected), Arc::clone(&freed), jobs.clone());
        pods.on_change(move |c| {
            let owner = |p: &Pod| {
                let r = controller_of(p).filter(|r| r.kind == "Job" && r.api_version.starts_with("batch/"))?;
                Some((join(p.metadata.namespace.as_deref().unwrap_or_default(), &r.name), r.uid.clone()))
            };
            let before = c.old.as_deref().and_then(owner);
            let after = c.new.as_deref().and_then(owner);
            if let (None, Some((key, _))) = (&c.old, &after) {
                e.created(key);
            }
            if let Some((key, _)) = &before
                && c.new.as_deref().is_none_or(pods::deleting)
            {
                e.deleted(key, &key_of(&**c.latest()));
            }
            if c.new.as_deref().is_none_or(|p| !plan::tracked(p)) {
                f.lock().remove(uid(c.latest()));
            }
            let started = c.old.is_none();
            for (key, _) in before.iter().chain(&after) {
                q.add_after(key.clone(), if started { Duration::ZERO } else { TOGETHER });
            }
            let Some(pod) = c.new.as_deref() else { return };
            let ours = after.as_ref().and_then(|(k, uid)| j.get(k).filter(|job| job.uid().as_ref() == Some(uid)));
            if plan::tracked(pod) && ours.is_none() {
                q.add(format!("{POD}{}", key_of(pod)));
            }
            if controller_of(pod).is_none() {
                let takes = |job: &&Arc<Job>| {
                    let selector = job.spec.as_ref().and_then(|s| s.selector.as_ref());
                    selector.is_some_and(|s| !select::is_empty(s) && select::matches(s, &pod.metadata.labels))
                };
                let here = j.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
                here.iter().filter(takes).for_each(|job| q.add(key_of(&**job)));
            }
        });
        let events = Recorder::start(client.clone(), "job-controller");
        let (written, records) = (Written::default(), Mutex::default());
        Arc::new(Self { client, jobs, pods, queue, expected, written, freed, records, events })
    }

    fn forget(&self, key: &str) {
        self.expected.forget(key);
        self.written.forget(key);
        self.records.lock().remove(key);
    }

    async fn sync(&self, key: &str) -> Outcome {
        if let Some(pod) = key.strip_prefix(POD) {
            return self.orphan(pod).await;
        }
        let Some(job) = self.jobs.get(key) else {
            self.forget(key);
            return Ok(None);
        };
        let manager = job.spec.as_ref().and_then(|s| s.managed_by.as_deref());
        if manager.is_some_and(|m| m != MANAGER) || self.written.behind(key, &*job) {
            return Ok(None);
        }
        if plan::finished(&job) {
            self.forget(key);
            // What came late is of no interest any more, but must not be held.
            let late = self.pods.with_term(&owner_term(&job.uid().unwrap_or_default()));
            let late: Vec<Arc<Pod>> = late.into_iter().filter(|p| plan::tracked(p)).collect();
            return self.free(&late).await.1.map(|()| None).map_err(Error::from);
        }
        let believable = self.expected.satisfied(key);
        let empty = LabelSelector::default();
        let claim = Claim {
            selector: job.spec.as_ref().and_then(|s| s.selector.as_ref()).unwrap_or(&empty),
            member: |_, _| true,
            adoptable: |p: &Pod| !pods::finished(p) || !plan::tracked(p),
            finalizer: Some(FINALIZER),
        };
        let pods = family::claim(&self.client, &*job, &self.pods, &claim).await?;
        let freed: HashSet<String> = {
            let freed = self.freed.lock();
            pods.iter().map(|p| uid(p)).filter(|u| freed.contains(*u)).map(str::to_owned).collect()
        };
        let Some(sight) = Sight::new(&job, &pods, &freed) else { return Ok(None) };
        self.step(key, &job, &sight, believable).await
    }

    async fn step(&self, key: &str, job: &Job, sight: &Sight<'_>, believable: bool) -> Outcome {
        let time = now().0;
        let mut status = job.status.clone().unwrap_or_default();
        if status.start_time.is_none() && !sight.suspended() {
            status.start_time = Some(Time(time));
        }
        let record = self.record(key, job, sight);
        let mut ending = sight.ending(time);
        let mut again = sight.deadline_left(time).filter(|_| ending.is_none());
        let mut active = sight.active.len();
        let mut ready = sight.active.iter().filter(|p| pods::ready(p)).count();
        let mut terminating = sight.terminating;
        let mut result = Ok(());
        let mut lose = |gone: &[Arc<Pod>]| {
            active -= gone.len();
            ready -= gone.iter().filter(|p| pods::ready(p)).count();
            terminating += i32::try_from(gone.len()).unwrap_or(0);
        };
        if ending.is_some() {
            let wanted = if believable { sight.active.clone() } else { vec![] };
            let (gone, deleted) = self.delete(key, job, &wanted).await;
            // Not over yet: a pod may be left, or be there without the cache knowing.
            if gone.len() < sight.active.len() || !believable {
                ending = None;
            }
            lose(&gone);
            result = deleted;
        } else {
            let managing = believable && job.metadata.deletion_timestamp.is_none();
            let work = if managing { sight.work(record.remaining(time), time) } else { Work::Nothing };
            match work {
                Work::Nothing => {}
                Work::Wait(wait) => again = Some(again.map_or(wait, |a| a.min(wait))),
                Work::Delete(pods) => {
                    // Let go first: these neither succeed nor fail.
                    let (free, let_go) = self.free(&pods).await;
                    let (gone, deleted) = self.delete(key, job, &free).await;
                    lose(&gone);
                    result = let_go.and(deleted);
                }
                Work::Create(missing) => {
                    let (made, created) = self.create(key, job, sight, &missing).await;
                    active += made;
                    result = created;
                }
            }
            if sight.complete(active) {
                ending = Some(Ending::complete());
            } else if managing {
                self.tell_pause(job, &mut status, sight.suspended());
            }
        }
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        status.active = Some(number(active)).filter(|n| *n != 0);
        status.ready = Some(number(ready.min(active)));
        status.terminating = Some(terminating);
        let flushed = self.count(key, job, sight, status, ending.as_ref()).await;
        if flushed.is_ok() {
            self.records.lock().insert(key.to_owned(), (job.uid().unwrap_or_default(), record));
        }
        let full = flushed?;
        result?;
        Ok(if full { Some(TOGETHER) } else { again })
    }

    /// Failures in a row, those of this step included.
    fn record(&self, key: &str, job: &Job, sight: &Sight<'_>) -> Record {
        let known = self.records.lock().get(key).filter(|(u, _)| job.metadata.uid.as_ref() == Some(u)).cloned();
        let before = known.map(|(_, r)| r).unwrap_or_else(|| {
            // After a restart: from what pods still tell.
            let counted = |p: &&Arc<Pod>| !plan::tracked(p);
            let ended = |phase| -> Vec<Arc<Pod>> {
                sight.pods.iter().filter(counted).filter(|p| pods::phase(p) == phase).cloned().collect()
            };
            Record::default().next(&ended("Succeeded"), &ended("Failed"))
        });
        before.next(&sight.new_succeeded, &sight.new_failed)
    }

    /// Counts ended pods and writes the status. Answers whether there is more to count.
    async fn count(
        &self,
        key: &str,
        job: &Job,
        sight: &Sight<'_>,
        mut status: JobStatus,
        ending: Option<&Ending>,
    ) -> Result<bool, Error> {
        let time = now().0;
        if let Some(e) = ending {
            plan::set(&mut status, e.conditions().0, true, &e.reason, &e.message, time);
        }
        let tally = sight.tally(&mut status, ending);
        let mut job = job.clone();
        let mut freed = Ok(());
        if !tally.free.is_empty() {
            job = self.report(key, job, status.clone()).await?;
            let (gone, result) = self.free(&tally.free).await;
            let gone: HashSet<&str> = gone.iter().map(|p| uid(p)).collect();
            let held: HashSet<&str> =
                sight.pods.iter().filter(|p| plan::tracked(p)).map(|p| uid(p)).filter(|u| !gone.contains(u)).collect();
            status = job.status.clone().unwrap_or_default();
            plan::settle(&mut status, |u| held.contains(u));
            freed = result;
        }
        let ended = ending.is_some_and(|e| plan::finish(&mut status, e, tally.full, time));
        let written = self.report(key, job, status).await?;
        if let Some(e) = ending.filter(|_| ended) {
            self.tell_end(&written, e);
        }
        freed?;
        Ok(tally.full)
    }

    /// Writes the status if it differs.
    async fn report(&self, key: &str, mut job: Job, status: JobStatus) -> Result<Job, Error> {
        if job.status.as_ref() == Some(&status) {
            return Ok(job);
        }
        job.status = Some(status);
        let api = family::api::<Job>(&self.client, split(key).0);
        let Some(written) = found(api.replace_status(&job.name_any(), &PostParams::default(), &job).await)? else {
            return Err(Error::Other("the Job is gone".into()));
        };
        self.written.note(key, &written);
        Ok(written)
    }

    fn tell_pause(&self, job: &Job, status: &mut JobStatus, suspended: bool) {
        let time = now().0;
        let (reason, text) = if suspended { ("JobSuspended", "Job suspended") } else { ("JobResumed", "Job resumed") };
        if plan::set(status, "Suspended", suspended, reason, text, time) {
            self.events.note(job, Level::Normal, reason.trim_start_matches("Job"), text);
            // The deadline counts the time since it went on.
            status.start_time = Some(Time(time)).filter(|_| !suspended);
        }
    }

    fn tell_end(&self, job: &Job, ending: &Ending) {
        if !ending.success {
            self.events.note(job, Level::Warning, &ending.reason, ending.message.clone());
            return;
        }
        let succeeded = job.status.as_ref().and_then(|s| s.succeeded).unwrap_or(0);
        if job.spec.as_ref().and_then(|s| s.completions).is_some_and(|n| succeeded > n) {
            self.events.note(job, Level::Warning, "TooManySucceededPods", "Too many succeeded pods exist");
        }
        self.events.note(job, Level::Normal, "Completed", "Job completed");
    }

    async fn create(
        &self,
        key: &str,
        job: &Job,
        sight: &Sight<'_>,
        missing: &[Option<i32>],
    ) -> (usize, Result<(), kube::Error>) {
        self.expected.expect_creations(key, missing.len());
        let made = std::sync::atomic::AtomicUsize::new(0);
        let (unstarted, result) = family::slow_start(missing.len(), async |i| {
            match family::create_pod(&self.client, &self.events, job, &sight.pod(missing[i])).await {
                Ok(_) => {
                    made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    Ok(())
                }
                Err(e) => {
                    self.expected.created(key);
                    Err(e)
                }
            }
        })
        .await;
        (0..unstarted).for_each(|_| self.expected.created(key));
        let result = result.or_else(|e| if worker::namespace_terminating(&e) { Ok(()) } else { Err(e) });
        (made.into_inner(), result)
    }

    /// Deletes pods; answers those that are on their way.
    async fn delete(&self, key: &str, job: &Job, victims: &[Arc<Pod>]) -> (Vec<Arc<Pod>>, Result<(), kube::Error>) {
        if victims.is_empty() {
            return (vec![], Ok(()));
        }
        self.expected.expect_deletions(key, victims.iter().map(|p| key_of(&**p)));
        let tries = victims.iter().map(|pod| async move {
            let gone = family::delete_pod(&self.client, &self.events, job, pod).await;
            gone.or_else(|e| {
                self.expected.deleted(key, &key_of(&**pod));
                if worker::not_found(&e) { Ok(()) } else { Err(e) }
            })
        });
        sort_out(victims, join_all(tries).await)
    }

    /// Removes the finalizer of pods; answers those that do not have it any more.
    async fn free(&self, pods: &[Arc<Pod>]) -> (Vec<Arc<Pod>>, Result<(), kube::Error>) {
        let tries = pods.iter().map(|pod| async move {
            if !plan::tracked(pod) {
                return Ok(());
            }
            // Before the request: the watch may be faster than the answer.
            self.freed.lock().insert(uid(pod).to_owned());
            let patch = serde_json::json!({"metadata": {
                "uid": uid(pod), "$deleteFromPrimitiveList/finalizers": [FINALIZER],
            }});
            let api = family::api::<Pod>(&self.client, &pod.namespace().unwrap_or_default());
            let result = api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await;
            // Conflict and invalid: the name was used again by another pod.
            let gone =
                result.map(drop).or_else(|e| if matches!(worker::code(&e), 404 | 409 | 422) { Ok(()) } else { Err(e) });
            let still = self.pods.get(&key_of(&**pod)).is_some_and(|p| uid(&p) == uid(pod) && plan::tracked(&p));
            if gone.is_err() || !still {
                self.freed.lock().remove(uid(pod));
            }
            gone
        });
        sort_out(pods, join_all(tries).await)
    }

    /// Lets a pod go whose Job does not exist.
    async fn orphan(&self, key: &str) -> Outcome {
        let Some(pod) = self.pods.get(key).filter(|p| plan::tracked(p)) else { return Ok(None) };
        if let Some(r) = controller_of(&*pod).filter(|r| r.kind == "Job") {
            let job = family::api::<Job>(&self.client, split(key).0).get(&r.name).await;
            if found(job)?.is_some_and(|j| j.uid().as_ref() == Some(&r.uid)) {
                return Ok(None);
            }
        } else if controller_of(&*pod).is_none() {
            // It may be about to be adopted by a Job, which then counts it.
            let jobs = self.jobs.in_namespace(split(key).0);
            let selects = |j: &Arc<Job>| {
                let s = j.spec.as_ref().and_then(|s| s.selector.as_ref());
                j.metadata.deletion_timestamp.is_none() && s.is_some_and(|s| select::matches(s, &pod.metadata.labels))
            };
            if !pods::deleting(&pod) && jobs.iter().any(selects) {
                return Ok(None);
            }
        }
        self.free(&[pod]).await.1?;
        Ok(None)
    }
}

fn sort_out(pods: &[Arc<Pod>], results: Vec<Result<(), kube::Error>>) -> (Vec<Arc<Pod>>, Result<(), kube::Error>) {
    let (mut done, mut result) = (vec![], Ok(()));
    for (pod, r) in pods.iter().zip(results) {
        match r {
            Ok(()) => done.push(Arc::clone(pod)),
            Err(e) => result = Err(e),
        }
    }
    (done, result)
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "job-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.jobs.keys().into_iter().for_each(|k| self.queue.add(k));
        // Pods of Jobs that ended while nobody looked.
        let lost = |p: &Arc<Pod>| {
            plan::tracked(p)
                && controller_of(&**p).is_none_or(|r| {
                    let key = join(p.metadata.namespace.as_deref().unwrap_or_default(), &r.name);
                    self.jobs.get(&key).is_none_or(|j| j.metadata.uid.as_ref() != Some(&r.uid))
                })
        };
        self.pods.all().iter().filter(|p| lost(p)).for_each(|p| self.queue.add(format!("{POD}{}", key_of(&**p))));
    }
}
