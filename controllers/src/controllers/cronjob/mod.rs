//! CronJobs: a Job for every time that a schedule says.
//!
//! The Job of a run has a name made of the run's time, so a run that is tried twice ends in "already exists". A step looks
//! at what is due now and asks to be woken for the next time; nothing ticks in between.

pub mod plan;

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};

use self::plan::Clock;
use super::family;
use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::{Informer, controller_of, join, key_of, owner_term, split};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{self, Error, Outcome, Reconcile, found};
use crate::runtime::written::Written;

/// The CronJob controller.
pub struct Controller {
    client: Client,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
    queue: Arc<Queue>,
    written: Written,
    events: Recorder,
}

impl Controller {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, crons: Informer<CronJob>, jobs: Informer<Job>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        crons.on_change(move |c| q.add(key_of(&**c.latest())));
        let q = Arc::clone(&queue);
        jobs.on_change(move |c| {
            for job in [&c.old, &c.new].into_iter().flatten() {
                if let Some(r) = controller_of(&**job).filter(|r| r.kind == "CronJob") {
                    q.add(join(&job.namespace().unwrap_or_default(), &r.name));
                }
            }
        });
        let events = Recorder::start(client.clone(), "cronjob-controller");
        Arc::new(Self { client, crons, jobs, queue, written: Written::default(), events })
    }

    fn warn(&self, cron: &CronJob, reason: &str, text: impl Into<String>) {
        self.events.note(cron, Level::Warning, reason, text);
    }

    fn tell(&self, cron: &CronJob, reason: &str, text: impl Into<String>) {
        self.events.note(cron, Level::Normal, reason, text);
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(cron) = self.crons.get(key) else {
            self.written.forget(key);
            return Ok(None);
        };
        if self.written.behind(key, &*cron) {
            return Ok(None);
        }
        let jobs = self.jobs.with_term(&owner_term(&cron.uid().unwrap_or_default()));
        let now = Timestamp::now();
        let mut status = cron.status.clone().unwrap_or_default();
        self.follow(key, &cron, &jobs, &mut status).await?;
        let next = if cron.metadata.deletion_timestamp.is_none() {
            let ran = self.run(key, &cron, &mut status, now).await;
            self.report(key, &cron, status).await?;
            ran?
        } else {
            self.report(key, &cron, status).await?;
            None
        };
        for job in plan::forgotten(&cron, &jobs) {
            self.delete(&cron, &job).await?;
        }
        Ok(next)
    }

    /// Brings the list of active Jobs up to date with what became of them.
    async fn follow(
        &self,
        key: &str,
        cron: &CronJob,
        jobs: &[Arc<Job>],
        status: &mut CronJobStatus,
    ) -> Result<(), Error> {
        let active = status.active.get_or_insert_default();
        for job in jobs {
            let listed = active.iter().any(|r| r.uid == job.metadata.uid);
            match plan::ended(job) {
                None if !listed => {
                    let text = "Saw a job that the controller did not create or forgot";
                    self.warn(cron, "UnexpectedJob", format!("{text}: {}", job.name_any()));
                }
                Some(end) if listed => {
                    active.retain(|r| r.uid != job.metadata.uid);
                    let text = format!("Saw completed job: {}, condition: {end}", job.name_any());
                    self.tell(cron, "SawCompletedJob", text);
                }
                _ => {}
            }
            let time = job.status.as_ref().and_then(|s| s.completion_time.as_ref());
            if plan::ended(job) == Some("Complete")
                && let Some(time) = time
                && status.last_successful_time.as_ref().is_none_or(|t| t.0 < time.0)
            {
                status.last_successful_time = Some(time.clone());
            }
        }
        let mut gone = vec![];
        for r in active.iter().filter(|r| !jobs.iter().any(|j| j.metadata.uid == r.uid)) {
            // The cache may be behind: it was made a moment ago.
            let name = r.name.clone().unwrap_or_default();
            let there = found(family::api::<Job>(&self.client, split(key).0).get(&name).await)?;
            if there.is_none_or(|j| j.metadata.uid != r.uid) {
                self.tell(cron, "MissingJob", format!("Active job went missing: {name}"));
                gone.push(r.uid.clone());
            }
        }
        active.retain(|r| !gone.contains(&r.uid));
        status.active = status.active.take().filter(|l| !l.is_empty());
        Ok(())
    }

    /// Starts the run that is due, if one is; answers when the next will be.
    async fn run(&self, key: &str, cron: &CronJob, status: &mut CronJobStatus, now: Timestamp) -> Outcome {
        let spec = &cron.spec;
        let clock = match Clock::of(cron) {
            Ok(c) => c,
            Err((reason, text)) => {
                self.warn(cron, reason, text);
                return Ok(None);
            }
        };
        if spec.suspend == Some(true) {
            return Ok(None);
        }
        let next = Ok(clock.until_next(now));
        let (due, many) = clock.due(cron, now);
        if many {
            let advice = "Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.warn(cron, "TooManyMissedTimes", format!("too many missed start times. {advice}"));
        }
        let Some(at) = due else { return next };
        if plan::deadline(cron).is_some_and(|d| now.as_second() - at.as_second() > d) {
            self.warn(cron, "MissSchedule", format!("Missed scheduled time to start a job: {}", plan::shown(at)));
            return next;
        }
        let name = plan::job_name(cron, at);
        let active = status.active.get_or_insert_default();
        let named = active.iter().any(|r| r.name.as_deref() == Some(name.as_str()));
        if named || status.last_schedule_time.as_ref().is_some_and(|t| t.0 == at) {
            status.active = status.active.take().filter(|l| !l.is_empty());
            return next;
        }
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.tell(cron, "JobAlreadyActive", text);
                return next;
            }
            Some("Replace") => {
                for r in std::mem::take(active) {
                    let api = family::api::<Job>(&self.client, split(key).0);
                    if let Some(job) = found(api.get(r.name.as_deref().unwrap_or_default()).await)? {
                        self.delete(cron, &job).await?;
                    }
                }
            }
            _ => {}
        }
        status.active = status.active.take().filter(|l| !l.is_empty());
        let api = family::api::<Job>(&self.client, split(key).0);
        let job = match api.create(&PostParams::default(), &clock.job(cron, at)).await {
            Ok(job) => {
                self.tell(cron, "SuccessfulCreate", format!("Created job {}", job.name_any()));
                job
            }
            Err(e) if worker::namespace_terminating(&e) => return Ok(None),
            Err(e) if worker::code(&e) == 409 => {
                // Made before a crash that kept it out of the status, or somebody else's.
                let job = api.get(&name).await?;
                if controller_of(&job).map(|r| &r.uid) != cron.metadata.uid.as_ref() {
                    let text = format!("Job {name} exists and does not belong to this CronJob");
                    self.warn(cron, "FailedCreate", format!("Error creating job: {text}"));
                    return next;
                }
                job
            }
            Err(e) => {
                self.warn(cron, "FailedCreate", format!("Error creating job: {}", worker::text(&e)));
                return Err(e.into());
            }
        };
        if plan::ended(&job).is_none() {
            status.active.get_or_insert_default().push(reference(&job));
        }
        status.last_schedule_time = Some(Time(at));
        next
    }

    async fn report(&self, key: &str, cron: &CronJob, status: CronJobStatus) -> Result<(), Error> {
        if cron.status.clone().unwrap_or_default() == status {
            return Ok(());
        }
        let next = CronJob { status: Some(status), ..cron.clone() };
        let api = family::api::<CronJob>(&self.client, split(key).0);
        if let Some(w) = found(api.replace_status(&cron.name_any(), &PostParams::default(), &next).await)? {
            self.written.note(key, &w);
        }
        Ok(())
    }

    async fn delete(&self, cron: &CronJob, job: &Job) -> Result<(), Error> {
        let preconditions = Preconditions { uid: job.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        let name = job.name_any();
        let api = family::api::<Job>(&self.client, &cron.namespace().unwrap_or_default());
        match found(api.delete(&name, &params).await) {
            Ok(Some(_)) => self.tell(cron, "SuccessfulDelete", format!("Deleted job {name}")),
            Ok(None) => {}
            Err(e) => {
                self.warn(cron, "FailedDelete", format!("Deleted job: {}", worker::text(&e)));
                return Err(e.into());
            }
        }
        Ok(())
    }
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".into()),
        kind: Some("Job".into()),
        name: job.metadata.name.clone(),
        namespace: job.metadata.namespace.clone(),
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
        field_path: None,
    }
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "cronjob-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.crons.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}
