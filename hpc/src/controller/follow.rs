//! A job that Slurm has: what it is said to be, from the source that knows.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use skiff_controllers::runtime::events::Level;
use skiff_controllers::runtime::worker::Outcome;

use super::status::{at, micro_now, observe, times};
use super::{Case, Controller, now};
use crate::api::{Class, Decider, Phase, condition};
use crate::driver::{Marker, SlurmError};
use crate::link::Link;
use crate::metrics;
use crate::state::array::{expand, gather};
use crate::state::{Exit, LAUNCH_FAILED_HELD, Report, Task, Verdict, judge, rank};

/// Between looks for a job that Slurm does not know.
const MISSING: Duration = Duration::from_secs(5);
/// While it ends or something is expected.
const SOON: Duration = Duration::from_millis(250);

/// For so many seconds after its end it is asked often whether Slurm has done with a job; then at the pace of all.
const COMPLETES: i64 = 10;

/// What was found out of a job.
enum Found {
    /// Reports of all its parts.
    Said(Vec<Report>, Decider),
    /// Nobody was asked yet.
    NotYet,
    /// Nobody knows it.
    Missing,
}

impl Controller {
    /// One step of a job that is in Slurm.
    pub(super) async fn watch(&self, case: &mut Case, link: &Arc<Link>) -> Outcome {
        let Some(identity) = case.status.identity.clone() else { return Ok(None) };
        // Its end was seen; what is left is to bring things home.
        if case.status.phase == Some(Phase::Finishing)
            && case.status.times.as_ref().is_some_and(|t| t.noticed.is_some())
        {
            return self.bring_home(case, link).await;
        }
        let limit = case.status.times.as_ref().and_then(|t| t.limit.as_ref()).map(|t| t.0.as_second());
        link.register(&identity.name, &case.key, limit);
        if let Some(error) = link.error() {
            case.set(condition::UNKNOWN, true, error.reason(), error.to_string());
            self.save(case).await?;
            return Ok(None);
        }
        let said = link.said(&identity.name);
        if let Some(marker) = said.markers.iter().max_by_key(|m| m.at) {
            began(case, marker);
        }
        let found = match self.find_out(case, link, identity.job_id).await {
            Ok(found) => found,
            Err(error) => return self.unreachable(case, &error).await,
        };
        let (reports, decider) = match found {
            Found::Said(reports, decider) => (reports, decider),
            Found::NotYet => {
                self.save(case).await?;
                return Ok(None);
            }
            Found::Missing => return self.missing(case, link).await,
        };
        let array = case.job.spec.resources.as_ref().and_then(|r| r.array.clone());
        // Slurm's word for what we did ourselves.
        let ours = case.holds(condition::FAILURE_TARGET);
        let verdict = match &array {
            Some(array) => {
                let known = case.status.tasks.clone().unwrap_or_default();
                let (verdict, counts) = gather(&array.tasks, &known, &reports, ours);
                case.status.tasks = Some(counts);
                verdict
            }
            None => match reports.first() {
                Some(report) => judge(report, ours),
                None => return Ok(Some(SOON)),
            },
        };
        // Of an array, the report that the verdict is about.
        let chosen = reports.iter().find(|r| judge(r, ours).phase == verdict.phase).or(reports.first());
        observe(case, &verdict, chosen, decider);
        if let Some(submitted) = chosen.and_then(|r| r.submitted)
            && let Some(identity) = &mut case.status.identity
        {
            identity.submit_time.get_or_insert(submitted);
        }
        if verdict.reason == LAUNCH_FAILED_HELD {
            return self.relaunch(case, link, &verdict).await;
        }
        // Somebody else let it go.
        case.status.retry_at = None;
        if verdict.terminal && super::held::resubmits(case) {
            return self.resubmitted(case, link).await;
        }
        if verdict.never {
            return self.never(case, link, &verdict).await;
        }
        if verdict.terminal {
            if let Some(report) = chosen {
                case.status.derived_exit_code = report.derived.map(|d| d.code);
            }
            return self.ended(case, link, verdict).await;
        }
        if verdict.unknown && array.is_some() {
            return self.missing(case, link).await;
        }
        if let Err(error) = self.hold_or_release(case, link).await {
            self.note(case, Level::Warning, "HoldFailed", error.to_string());
            self.save(case).await?;
            return Ok(Some(super::UNREACHABLE));
        }
        self.save(case).await?;
        let limit = case.status.times.as_ref().and_then(|t| t.limit.as_ref()).map(|t| t.0.as_second());
        link.register(&identity.name, &case.key, limit);
        if case.status.phase != Some(Phase::Finishing) {
            return Ok(None);
        }
        // An epilog tells before Slurm has done with a job; Slurm usually has within a moment.
        let ended = chosen.and_then(|r| r.ended).map_or(i64::MAX, |e| Timestamp::now().as_second() - e);
        if ended < COMPLETES {
            link.push();
        }
        Ok(Some(SOON))
    }

    /// Asks who knows: the queue, Slurm's controller, accounting and the completion log, the markers.
    async fn find_out(&self, case: &Case, link: &Link, id: u64) -> Result<Found, SlurmError> {
        let Some(identity) = &case.status.identity else { return Ok(Found::NotYet) };
        let said = link.said(&identity.name);
        let ours = |r: &Report| r.job_id == id && r.name == identity.name;
        let queue: Vec<Report> = said.reports.into_iter().filter(ours).collect();
        let array = case.job.spec.resources.as_ref().and_then(|r| r.array.as_ref());
        if !said.asked {
            return Ok(Found::NotYet);
        }
        let ended = |r: &Report| judge(r, false).terminal;
        let enough = !queue.is_empty() && queue.iter().all(|r| !ended(r) || r.exit.is_some());
        if enough && (array.is_none() || !queue.iter().all(ended)) {
            return Ok(Found::Said(queue, Decider::Queue));
        }
        let mut details = link.slurm().jobs(&[id]).await?;
        details.retain(ours);
        let whole = |all: &[Report]| match array {
            None => true,
            Some(array) => {
                let known = case.status.tasks.clone().unwrap_or_default();
                !gather(&array.tasks, &known, all, false).0.unknown
            }
        };
        if !details.is_empty() && whole(&details) {
            return Ok(Found::Said(details, Decider::Controller));
        }
        let found = link.slurm().find(&identity.name).await?;
        // The surest source of each part.
        let mut all: Vec<(u8, Decider, Report)> =
            details.into_iter().map(|r| (rank(Decider::Controller), Decider::Controller, r)).collect();
        all.extend(found.reports.into_iter().filter(|(_, r)| ours(r)).map(|(d, r)| (rank(d), d, r)));
        let markers = found.markers.iter().filter(|m| m.ended && (array.is_some() || m.job_id == id));
        all.extend(markers.map(|m| (rank(Decider::Marker), Decider::Marker, of_marker(m, id, &identity.name))));
        all.sort_by_key(|(rank, ..)| *rank);
        let mut reports: Vec<Report> = vec![];
        let mut decider = None;
        for (_, by, report) in all {
            match reports.iter_mut().find(|r| r.task == report.task) {
                None => {
                    decider = decider.or(Some(by));
                    reports.push(report);
                }
                // A source that knows that it failed need not know with which code: the script noted it.
                Some(surer) if surer.exit.is_none() && judge(surer, false).terminal => {
                    surer.exit = report.exit.filter(|e| *e != Exit::default());
                }
                Some(_) => {}
            }
        }
        // A job that just came may not be shown yet.
        Ok(match decider {
            Some(decider) => Found::Said(reports, decider),
            None if case.status.missing_since.is_none() && !queue.is_empty() => Found::Said(queue, Decider::Queue),
            None => Found::Missing,
        })
    }

    /// Nobody knows the job, or some of its tasks.
    async fn missing(&self, case: &mut Case, link: &Arc<Link>) -> Outcome {
        let since = case.status.missing_since.get_or_insert_with(now).clone();
        let retention = link.spec.polling.as_ref().and_then(|p| p.retention_seconds).unwrap_or(600);
        let age = Timestamp::now().as_second() - since.0.as_second();
        let id = case.status.job_id.clone().unwrap_or_default();
        if age >= i64::from(retention) {
            let message = format!("Slurm has forgotten job {id}, and nothing says how it ended");
            return self.ended(case, link, Verdict::outcome_unknown(message)).await;
        }
        case.set(condition::UNKNOWN, true, "NotFound", format!("Slurm does not know job {id}; it is looked for"));
        self.save(case).await?;
        Ok(Some(MISSING))
    }

    /// What it depends on will never be. It would wait in Slurm for ever.
    async fn never(&self, case: &mut Case, link: &Arc<Link>, verdict: &Verdict) -> Outcome {
        let Some(identity) = case.status.identity.clone() else { return Ok(None) };
        case.set(condition::FAILURE_TARGET, true, verdict.reason, verdict.message.clone());
        self.save(case).await?;
        if let Err(error) = link.slurm().cancel(Some(identity.job_id), &identity.name).await {
            return self.unreachable(case, &error).await;
        }
        link.forget(&identity.name);
        // The other may be tried again under another id: then this one comes again too, after it.
        let again = matches!(self.depends(case), super::depend::Depends::Wait(_) | super::depend::Depends::On(_));
        case.clear(condition::FAILURE_TARGET, "Cancelled");
        if again {
            self.next_attempt(case, None);
            self.save(case).await?;
            return Ok(Some(Duration::ZERO));
        }
        self.give_up(case, "DependencyNeverSatisfied", verdict.message.clone()).await
    }

    /// An attempt has ended: is there another, or is this its end?
    pub(super) async fn ended(&self, case: &mut Case, link: &Arc<Link>, verdict: Verdict) -> Outcome {
        metrics::ended(&link.name, verdict.reason);
        times(case).noticed.get_or_insert_with(micro_now);
        times(case).ended.get_or_insert_with(now);
        super::status::costs(case);
        case.status.exit_code = verdict.exit_code;
        case.status.signal = verdict.signal;
        case.status.class = verdict.class;
        case.status.reason = Some(verdict.reason.to_owned());
        case.clear(condition::RUNNING, verdict.reason);
        case.clear(condition::ALLOCATED, verdict.reason);
        case.clear(condition::SUSPENDED, verdict.reason);
        if verdict.disrupted {
            case.set(condition::DISRUPTION_TARGET, true, verdict.reason, verdict.message.clone());
        }
        if verdict.step_failed {
            case.set(condition::STEP_FAILED, true, "DerivedExitCode", verdict.message.clone());
        }
        let name = case.status.intent.as_ref().map(|i| i.name.clone()).unwrap_or_default();
        if verdict.phase == Some(Phase::Failed) {
            let built = link.said(&name).markers.iter().any(|m| m.ended && m.stage == "build");
            let (reason, message) = if built && verdict.reason == "NonZeroExit" {
                ("BuildFailed", format!("the build {}", verdict.message))
            } else {
                (verdict.reason, verdict.message.clone())
            };
            self.note(case, Level::Warning, reason, format!("attempt {}: {message}", case.status.attempt));
            if let Some(wait) = self.retry(case) {
                link.forget(&name);
                metrics::retried(&link.name, verdict.class.unwrap_or(Class::Unknown));
                self.next_attempt(case, Some(wait));
                self.save(case).await?;
                return Ok(Some(wait));
            }
            case.set(condition::FAILURE_TARGET, true, reason, message);
        }
        case.status.phase = Some(Phase::Finishing);
        self.save(case).await?;
        self.bring_home(case, link).await
    }

    /// Whether an attempt that failed is tried again, and after which time.
    fn retry(&self, case: &mut Case) -> Option<Duration> {
        let retries = case.job.spec.retries.clone().unwrap_or_default();
        let s = &mut case.status;
        let (used, most) = match s.class? {
            Class::Infrastructure => (&mut s.infrastructure_retries, retries.infrastructure.unwrap_or(3)),
            Class::User => (&mut s.user_retries, retries.user.unwrap_or(0)),
            Class::Unknown => (&mut s.unknown_retries, retries.unknown.unwrap_or(0)),
            Class::Never => return None,
        };
        if *used >= most || s.exit_code.is_some_and(|c| retries.never_exit_codes.contains(&c)) {
            return None;
        }
        let wait = pause(&retries, *used);
        *used += 1;
        Some(wait)
    }

    /// From here on it is another attempt, under another name.
    pub(super) fn next_attempt(&self, case: &mut Case, wait: Option<Duration>) {
        let s = &mut case.status;
        s.attempt += 1;
        s.intent = None;
        s.identity = None;
        s.state = None;
        s.flags.clear();
        s.tasks = None;
        s.missing_since = None;
        s.phase = Some(Phase::Pending);
        let seconds = wait.and_then(|w| i64::try_from(w.as_secs()).ok()).unwrap_or_default();
        s.retry_at = wait.and_then(|_| at(Timestamp::now().as_second() + seconds));
        if let Some(t) = &mut s.times {
            (t.started, t.running, t.limit, t.ended, t.noticed, t.submitted) = Default::default();
        }
        case.clear(condition::SUBMITTED, "NextAttempt");
        case.clear(condition::UNSCHEDULABLE, "NextAttempt");
        case.clear(condition::UNKNOWN, "NextAttempt");
        self.note(case, Level::Normal, "Retry", format!("attempt {} follows", case.status.attempt));
    }
}

/// The pause before a retry, after so many.
pub(super) fn pause(retries: &crate::api::Retries, used: u32) -> Duration {
    let first = u64::from(retries.backoff_seconds.unwrap_or(10));
    Duration::from_secs(first.saturating_mul(1 << used.min(12)).min(3600))
}

/// When its script began.
fn began(case: &mut Case, marker: &Marker) {
    if marker.began > 0 {
        let began = at(marker.began);
        times(case).running = began;
    }
    case.status.restarts = case.status.restarts.max(marker.restarts);
}

/// A marker as a report: its script came to its end.
fn of_marker(marker: &Marker, id: u64, name: &str) -> Report {
    let state = if marker.code == 0 { "COMPLETED" } else { "FAILED" };
    Report {
        job_id: id,
        own_id: marker.job_id,
        task: marker.task.map(Task::One),
        name: name.to_owned(),
        words: vec![state.to_owned()],
        exit: Some(Exit { code: marker.code, signal: 0 }),
        started: Some(marker.began),
        ended: Some(marker.at),
        restarts: marker.restarts,
        ..Report::default()
    }
}

/// The tasks of a job; none for one that is no array.
pub(crate) fn tasks(case_spec: &crate::api::GpuJobSpec) -> Vec<u32> {
    let array = case_spec.resources.as_ref().and_then(|r| r.array.as_ref());
    array.map(|a| expand(&a.tasks).into_iter().collect()).unwrap_or_default()
}
