//! What a Job needs next, from its spec, its status and its pods. No I/O.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::failure::{self, Ruling};
use super::indexes::Indexes;
use crate::controllers::family::{self, BURST};
use crate::controllers::{pods, replicas};

/// Finalizer of pods whose end has not been counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label of a pod with its index.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Annotation with the failures of its index before a pod.
pub const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Annotation with those failures that a rule ignored.
pub const INDEX_IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
/// Most pods that are counted in one step: their uids stand in the status meanwhile.
const UNCOUNTED_MAX: usize = 500;
/// Longest prefix of a generated name.
const PREFIX_MAX: usize = 58;

/// Whether a pod's end is still to be counted.
#[must_use]
pub fn tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
}

/// Whether a condition is true.
#[must_use]
pub fn is(status: &JobStatus, kind: &str) -> bool {
    condition(status, kind).is_some()
}

fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == "True")
}

/// Whether it is over for good.
#[must_use]
pub fn finished(job: &Job) -> bool {
    job.status.as_ref().is_some_and(|s| is(s, "Complete") || is(s, "Failed"))
}

/// Sets a condition; answers whether that changed anything. One that is absent is not set to false.
pub fn set(status: &mut JobStatus, kind: &str, value: bool, reason: &str, message: &str, now: Timestamp) -> bool {
    let value = if value { "True" } else { "False" };
    let list = status.conditions.get_or_insert_default();
    let new = JobCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    let changed = match list.iter_mut().find(|c| c.type_ == kind) {
        Some(c) if c.status == value => false,
        Some(c) => {
            *c = new;
            true
        }
        None if value == "False" => false,
        None => {
            list.push(new);
            true
        }
    };
    status.conditions = status.conditions.take().filter(|l| !l.is_empty());
    changed
}

/// How a Job ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Whether it succeeded.
    pub success: bool,
    /// A word for it.
    pub reason: String,
    /// A sentence for it.
    pub message: String,
}

impl Ending {
    fn failure(reason: &str, message: impl Into<String>) -> Self {
        Self { success: false, reason: reason.to_owned(), message: message.into() }
    }

    /// All the asked for pods succeeded.
    #[must_use]
    pub fn complete() -> Self {
        Self {
            success: true,
            reason: "CompletionsReached".into(),
            message: "Reached expected number of succeeded pods".into(),
        }
    }

    /// The condition while pods still go, and the one after.
    #[must_use]
    pub fn conditions(&self) -> (&'static str, &'static str) {
        if self.success { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") }
    }
}

/// What is to be done with pods.
#[derive(Debug)]
pub enum Work {
    /// Nothing.
    Nothing,
    /// These are too many.
    Delete(Vec<Arc<Pod>>),
    /// These are missing; with an index where pods have one.
    Create(Vec<Option<i32>>),
    /// Some are missing, but not yet.
    Wait(Duration),
}

/// A Job and its pods, counted.
pub struct Sight<'a> {
    /// The Job.
    pub job: &'a Job,
    spec: &'a JobSpec,
    status: JobStatus,
    /// Its pods.
    pub pods: &'a [Arc<Pod>],
    /// Pods whose finalizer was removed, though the cache does not show it yet.
    freed: &'a HashSet<String>,
    /// Those that run or will.
    pub active: Vec<Arc<Pod>>,
    /// Those that are being deleted and have not ended.
    pub terminating: i32,
    /// Those that succeeded and are not in the status yet.
    pub new_succeeded: Vec<Arc<Pod>>,
    /// Those that failed and are not in the status yet.
    pub new_failed: Vec<Arc<Pod>>,
    /// All successes.
    pub succeeded: i32,
    /// All failures that count.
    pub failed: i32,
    recorded_indexes: Indexes,
    succeeded_indexes: Indexes,
    failed_indexes: Option<Indexes>,
    /// Failed pods that stay uncounted until their index has a new pod, which takes over the number of failures.
    delayed: BTreeMap<i32, Arc<Pod>>,
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// The index of a pod, when it is one of the Job's.
#[must_use]
pub fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok().filter(|i| *i >= 0)
}

fn indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

fn uncounted(status: &JobStatus) -> (&[String], &[String]) {
    let Some(u) = &status.uncounted_terminated_pods else { return (&[], &[]) };
    (u.succeeded.as_deref().unwrap_or_default(), u.failed.as_deref().unwrap_or_default())
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

impl<'a> Sight<'a> {
    /// Counts. None for a Job without a spec, which the server does not let in.
    #[must_use]
    pub fn new(job: &'a Job, pods: &'a [Arc<Pod>], freed: &'a HashSet<String>) -> Option<Self> {
        let spec = job.spec.as_ref()?;
        let status = job.status.clone().unwrap_or_default();
        let mut s = Self {
            job,
            spec,
            pods,
            freed,
            active: pods.iter().filter(|p| pods::active(p)).cloned().collect(),
            terminating: count(pods.iter().filter(|p| pods::deleting(p) && !pods::finished(p)).count()),
            new_succeeded: vec![],
            new_failed: vec![],
            succeeded: 0,
            failed: 0,
            recorded_indexes: Indexes::default(),
            succeeded_indexes: Indexes::default(),
            failed_indexes: None,
            delayed: BTreeMap::new(),
            status,
        };
        let (succeeded, failed) = uncounted(&s.status);
        let fresh: Vec<&Arc<Pod>> = pods.iter().filter(|p| s.uncounted(p) && s.index_fits(p)).collect();
        s.new_succeeded = fresh
            .iter()
            .filter(|p| pods::phase(p) == "Succeeded" && !succeeded.iter().any(|u| u == uid(p)))
            .map(|p| Arc::clone(p))
            .collect();
        s.new_failed = fresh
            .iter()
            .filter(|p| failure::failed(p, job) && !failed.iter().any(|u| u == uid(p)))
            .map(|p| Arc::clone(p))
            .collect();
        let counting = s.new_failed.iter().filter(|p| failure::rule(job, p) != Ruling::Ignore).count();
        s.failed = s.status.failed.unwrap_or(0) + count(failed.len() + counting);
        s.succeeded = s.status.succeeded.unwrap_or(0) + count(succeeded.len() + s.new_succeeded.len());
        if indexed(spec) {
            let completions = s.completions();
            let recorded = s.status.completed_indexes.as_deref().unwrap_or_default();
            s.recorded_indexes = Indexes::parse(recorded, completions);
            let new = Indexes::of(s.new_succeeded.iter().filter_map(|p| index_of(p)));
            s.succeeded_indexes = s.recorded_indexes.union(&new);
            s.succeeded = s.succeeded_indexes.total();
            if spec.backoff_limit_per_index.is_some() {
                let recorded = s.status.failed_indexes.as_deref().unwrap_or_default();
                let lost = fresh.iter().filter(|p| failure::index_failed(job, p)).filter_map(|p| index_of(p));
                let all = Indexes::parse(recorded, completions).union(&Indexes::of(lost));
                s.delayed = s.delay(&all);
                s.failed_indexes = Some(all);
            }
        }
        Some(s)
    }

    fn completions(&self) -> i32 {
        self.spec.completions.unwrap_or(0)
    }

    fn uncounted(&self, pod: &Pod) -> bool {
        tracked(pod) && !self.freed.contains(uid(pod))
    }

    fn index_fits(&self, pod: &Pod) -> bool {
        !indexed(self.spec) || index_of(pod).is_some_and(|i| i < self.completions())
    }

    fn delay(&self, lost: &Indexes) -> BTreeMap<i32, Arc<Pod>> {
        let busy: HashSet<i32> = self.active.iter().filter_map(|p| index_of(p)).collect();
        let mut out: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
        for pod in self.pods.iter().filter(|p| self.uncounted(p) && self.index_fits(p)) {
            let Some(i) = index_of(pod).filter(|_| failure::failed(pod, self.job)) else { continue };
            if self.succeeded_indexes.has(i) || lost.has(i) || busy.contains(&i) {
                continue;
            }
            let later = out.get(&i).is_none_or(|o| failure::index_failures_all(o) <= failure::index_failures_all(pod));
            if later {
                out.insert(i, Arc::clone(pod));
            }
        }
        out
    }

    /// Whether it is to do nothing now.
    #[must_use]
    pub fn suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    /// When its deadline is over.
    #[must_use]
    pub fn deadline_left(&self, now: Timestamp) -> Option<Duration> {
        let limit = self.spec.active_deadline_seconds.filter(|_| !self.suspended())?;
        let start = self.status.start_time.as_ref().map_or(now, |t| t.0);
        let left = limit.saturating_sub(now.duration_since(start).as_secs());
        Some(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
    }

    /// Whether and how it ends, as far as its pods and its deadline say.
    #[must_use]
    pub fn ending(&self, now: Timestamp) -> Option<Ending> {
        let earlier = |kind: &str, success| {
            let c = condition(&self.status, kind)?;
            let (reason, message) = (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default());
            Some(Ending { success, reason, message })
        };
        let ruled = || {
            let mut lost = self.pods.iter().filter(|p| failure::failed(p, self.job));
            lost.find_map(|p| match failure::rule(self.job, p) {
                Ruling::FailJob(why) => Some(Ending::failure("PodFailurePolicy", why)),
                _ => None,
            })
        };
        earlier("SuccessCriteriaMet", true)
            .or_else(|| earlier("FailureTarget", false))
            .or_else(ruled)
            .or_else(|| self.limits(now))
            .or_else(|| self.index_limits())
            .or_else(|| self.success_policy())
    }

    fn limits(&self, now: Timestamp) -> Option<Ending> {
        let limit = self.spec.backoff_limit.unwrap_or(if self.failed_indexes.is_some() { i32::MAX } else { 6 });
        if self.failed > limit || self.restarts_exceed(limit) {
            let text = "Job has reached the specified backoff limit";
            return Some(Ending::failure("BackoffLimitExceeded", text));
        }
        // A Job that has not begun has its whole time.
        self.status.start_time.as_ref()?;
        let over = self.deadline_left(now).is_some_and(|d| d.is_zero());
        over.then(|| Ending::failure("DeadlineExceeded", "Job was active longer than specified deadline"))
    }

    fn restarts_exceed(&self, limit: i32) -> bool {
        let policy = self.spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
        if policy != Some("OnFailure") {
            return false;
        }
        let runs = self.pods.iter().filter(|p| matches!(pods::phase(p), "Running" | "Pending"));
        let restarts: i32 = runs.flat_map(|p| failure::containers(p)).map(|c| c.restart_count).sum();
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    fn index_limits(&self) -> Option<Ending> {
        let lost = self.failed_indexes.as_ref()?.total();
        if self.spec.max_failed_indexes.is_some_and(|max| lost > max) {
            let text = "Job has exceeded the specified maximal number of failed indexes";
            return Some(Ending::failure("MaxFailedIndexesExceeded", text));
        }
        (lost > 0 && lost + self.succeeded_indexes.total() >= self.completions())
            .then(|| Ending::failure("FailedIndexes", "Job has failed indexes"))
    }

    fn success_policy(&self) -> Option<Ending> {
        let rules = self.spec.success_policy.as_ref().map(|p| &p.rules)?;
        let met = rules.iter().position(|r| {
            let Some(text) = &r.succeeded_indexes else {
                return r.succeeded_count.is_some_and(|n| self.succeeded_indexes.total() >= n);
            };
            let wanted = Indexes::parse(text, self.completions());
            self.succeeded_indexes.common(&wanted) >= r.succeeded_count.unwrap_or_else(|| wanted.total())
        })?;
        Some(Ending { success: true, reason: "SuccessPolicy".into(), message: format!("Matched rules at index {met}") })
    }

    /// Whether as many pods as wanted have succeeded, `active` being left.
    #[must_use]
    pub fn complete(&self, active: usize) -> bool {
        active == 0
            && match self.spec.completions {
                None => self.succeeded > 0,
                Some(n) => self.succeeded >= n,
            }
    }

    /// What to do with pods while it goes on. `pause` is what the back-off of the whole Job asks for.
    #[must_use]
    pub fn work(&self, pause: Duration, now: Timestamp) -> Work {
        let active = count(self.active.len());
        let parallelism = self.spec.parallelism.unwrap_or(1);
        let wanted = if self.suspended() {
            0
        } else {
            match self.spec.completions {
                None if self.succeeded > 0 => active,
                None => parallelism,
                Some(n) => (n - self.succeeded).min(parallelism).max(0),
            }
        };
        let mut victims = self.surplus(usize::try_from(active - wanted).unwrap_or(0));
        victims.truncate(BURST);
        if !victims.is_empty() {
            // Removal and creation never happen in one step.
            return Work::Delete(victims);
        }
        let leaving = if failure::only_replace_failed(self.job) { self.terminating } else { 0 };
        let missing = usize::try_from(wanted - leaving - active).unwrap_or(0).min(BURST);
        if missing == 0 {
            return Work::Nothing;
        }
        if self.failed_indexes.is_none() && !pause.is_zero() {
            return Work::Wait(pause);
        }
        if !indexed(self.spec) {
            return Work::Create(vec![None; missing]);
        }
        let mut taken = self.succeeded_indexes.union(&Indexes::of(self.active.iter().filter_map(|p| index_of(p))));
        if failure::only_replace_failed(self.job) {
            let going = self.pods.iter().filter(|p| pods::deleting(p) && !pods::finished(p));
            taken = taken.union(&Indexes::of(going.filter_map(|p| index_of(p))));
        }
        taken = self.failed_indexes.as_ref().map_or(taken.clone(), |f| taken.union(f));
        let free = taken.missing(missing, self.completions());
        let left = |i: &i32| self.delayed.get(i).map_or(Duration::ZERO, |p| failure::index_remaining(p, now));
        let (ready, waiting): (Vec<i32>, Vec<i32>) = free.into_iter().partition(|i| left(i).is_zero());
        match (ready.is_empty(), waiting.iter().map(left).min()) {
            (true, Some(wait)) => Work::Wait(wait),
            (true, None) => Work::Nothing,
            (false, _) => Work::Create(ready.into_iter().map(Some).collect()),
        }
    }

    /// Pods beyond what there may be: doubles of an index always, then those that are missed least.
    fn surplus(&self, at_least: usize) -> Vec<Arc<Pod>> {
        let mut out = vec![];
        let mut left = self.active.clone();
        if indexed(self.spec) {
            let mut best: BTreeMap<i32, Vec<Arc<Pod>>> = BTreeMap::new();
            for p in left.drain(..) {
                match index_of(&p).filter(|i| *i < self.completions()) {
                    Some(i) => best.entry(i).or_default().push(p),
                    None => out.push(p),
                }
            }
            for mut same in best.into_values() {
                let doubles = same.len() - 1;
                let gone = replicas::victims(same.clone(), doubles, &HashMap::new());
                same.retain(|p| !gone.iter().any(|g| Arc::ptr_eq(g, p)));
                out.extend(gone);
                left.extend(same);
            }
        }
        let more = at_least.saturating_sub(out.len());
        out.extend(replicas::victims(left, more, &HashMap::new()));
        out
    }

    /// Counts pods that ended into the status, and tells whose finalizer may go once that is written.
    #[must_use]
    pub fn tally(&self, status: &mut JobStatus, ending: Option<&Ending>) -> Tally {
        let holds: HashSet<&str> = self.pods.iter().filter(|p| self.uncounted(p)).map(|p| uid(p)).collect();
        settle(status, |u| holds.contains(u));
        let (mut succeeded, mut failed) = {
            let (s, f) = uncounted(status);
            (s.to_vec(), f.to_vec())
        };
        let mut tally = Tally::default();
        let mut new_indexes = vec![];
        let mut in_order: Vec<&Arc<Pod>> = self.pods.iter().filter(|p| self.uncounted(p)).collect();
        in_order.sort_by_key(|p| index_of(p));
        let leaving = self.job.metadata.deletion_timestamp.is_some();
        for pod in in_order {
            let lost = failure::failed(pod, self.job);
            let waits = ending.is_none()
                && !leaving
                && index_of(pod).and_then(|i| self.delayed.get(&i)).is_some_and(|d| uid(d) == uid(pod));
            if !(leaving || lost || pods::phase(pod) == "Succeeded") || waits {
                continue;
            }
            tally.free.push(Arc::clone(pod));
            let id = uid(pod).to_owned();
            if pods::phase(pod) == "Succeeded" && !failed.contains(&id) {
                if indexed(self.spec) {
                    new_indexes.extend(index_of(pod).filter(|_| self.index_fits(pod)));
                } else if !succeeded.contains(&id) {
                    succeeded.push(id);
                }
            } else if lost
                && !failed.contains(&id)
                && self.index_fits(pod)
                && failure::rule(self.job, pod) != Ruling::Ignore
            {
                failed.push(id);
            }
            if new_indexes.len() + succeeded.len() + failed.len() >= UNCOUNTED_MAX {
                tally.full = true;
                break;
            }
        }
        if indexed(self.spec) {
            let all = self.recorded_indexes.union(&Indexes::of(new_indexes));
            status.succeeded = Some(all.total()).filter(|n| *n != 0);
            status.completed_indexes = Some(all.to_string()).filter(|t| !t.is_empty());
            if let Some(lost) = &self.failed_indexes {
                status.failed_indexes = Some(lost.to_string());
            }
        }
        let u = status.uncounted_terminated_pods.get_or_insert_default();
        u.succeeded = Some(succeeded).filter(|l| !l.is_empty());
        u.failed = Some(failed).filter(|l| !l.is_empty());
        tally
    }

    /// The pod to create, of an index where pods have one.
    #[must_use]
    pub fn pod(&self, index: Option<i32>) -> Pod {
        let mut pod = family::pod_from(self.job, &self.spec.template);
        pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
        let Some(index) = index else { return pod };
        let name = self.job.name_any();
        let tail = format!("-{index}-");
        let head: String = name.chars().take(PREFIX_MAX - tail.len()).collect();
        pod.metadata.generate_name = Some(head + &tail);
        pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(INDEX.into(), index.to_string());
        if self.failed_indexes.is_some() {
            let replaced = self.delayed.get(&index);
            let (counted, ignored) = replaced.map_or((0, 0), |p| failure::index_failures_next(self.job, p));
            annotations.insert(INDEX_FAILURES.into(), counted.to_string());
            if ignored > 0 {
                annotations.insert(INDEX_IGNORED.into(), ignored.to_string());
            }
        }
        if let Some(spec) = &mut pod.spec {
            spec.hostname = Some(format!("{name}-{index}"));
            for c in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
                name_index(c.env.get_or_insert_default());
            }
        }
        pod
    }
}

fn name_index(env: &mut Vec<EnvVar>) {
    const NAME: &str = "JOB_COMPLETION_INDEX";
    if env.iter().any(|e| e.name == NAME) {
        return;
    }
    let field = ObjectFieldSelector { api_version: None, field_path: format!("metadata.labels['{INDEX}']") };
    let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    env.push(EnvVar { name: NAME.into(), value: None, value_from: Some(source) });
}

/// Moves pods that no longer hold the finalizer from the uncounted to the numbers.
pub fn settle(status: &mut JobStatus, holds: impl Fn(&str) -> bool) {
    let Some(u) = &mut status.uncounted_terminated_pods else { return };
    let split = |list: &mut Option<Vec<String>>, total: &mut Option<i32>| {
        let all = list.take().unwrap_or_default();
        let (left, done): (Vec<String>, Vec<String>) = all.into_iter().partition(|u| holds(u));
        *list = Some(left).filter(|l| !l.is_empty());
        *total = Some(total.unwrap_or(0) + count(done.len())).filter(|n| *n != 0);
    };
    split(&mut u.succeeded, &mut status.succeeded);
    split(&mut u.failed, &mut status.failed);
}

/// Ends the Job if nothing is left to wait for; answers whether it did.
pub fn finish(status: &mut JobStatus, ending: &Ending, full: bool, now: Timestamp) -> bool {
    let (succeeded, failed) = uncounted(status);
    let busy = status.terminating.unwrap_or(0) > 0 || status.active.unwrap_or(0) > 0;
    if full || busy || !succeeded.is_empty() || !failed.is_empty() {
        return false;
    }
    let ended = set(status, ending.conditions().1, true, &ending.reason, &ending.message, now);
    if ended && ending.success {
        status.completion_time = Some(Time(now));
    }
    ended
}

/// What counting asks for.
#[derive(Default)]
pub struct Tally {
    /// Pods whose finalizer goes next.
    pub free: Vec<Arc<Pod>>,
    /// Whether there is more to count than one step takes.
    pub full: bool,
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
