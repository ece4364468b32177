//! Which run of a CronJob is due, what its Job looks like, which finished Jobs go. No I/O.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::tz::TimeZone;
use kube::ResourceExt;
use skiff_core::cron::{self, Schedule};

use crate::runtime::controller_ref;

/// Annotation of a Job with the time that it was planned for.
pub const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed runs than this are worth a warning.
const MISSED_MAX: i64 = 100;
/// A step is planned this long after the time it is for, so that a clock that is a little off does not repeat it.
const AFTER: Duration = Duration::from_millis(100);

/// A schedule and the time zone that it is read in.
pub struct Clock {
    schedule: Schedule,
    zone: TimeZone,
}

/// Why a CronJob cannot run: reason and text of its event.
pub type Fault = (&'static str, String);

impl Clock {
    /// Reads what a CronJob says.
    ///
    /// # Errors
    /// When the schedule or the time zone is none.
    pub fn of(cron: &CronJob) -> Result<Self, Fault> {
        let zone = match cron.spec.time_zone.as_deref() {
            None => TimeZone::system(),
            Some(name) => cron::zone(name)
                .ok_or_else(|| ("UnknownTimeZone", format!("invalid timeZone: {name:?}: unknown time zone {name}")))?,
        };
        let text = cron.spec.schedule.as_str();
        let schedule = Schedule::parse(text)
            .map_err(|e| ("UnparseableSchedule", format!("unparseable schedule: {text:?} : {e}")))?;
        Ok(Self { schedule, zone })
    }

    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        self.schedule.next(after, &self.zone)
    }

    /// How long until the first time after `now`.
    #[must_use]
    pub fn until_next(&self, now: Timestamp) -> Option<Duration> {
        let next = self.next(now)?;
        Some(next.duration_since(now).unsigned_abs() + AFTER)
    }

    /// The last time of a run that has not been, and whether suspiciously many were missed.
    #[must_use]
    pub fn due(&self, cron: &CronJob, now: Timestamp) -> (Option<Timestamp>, bool) {
        let made = cron.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
        let last = cron.status.as_ref().and_then(|s| s.last_schedule_time.as_ref());
        let mut earliest = last.map_or(made, |t| t.0);
        if let Some(limit) = deadline(cron) {
            earliest = earliest.max(Timestamp::from_second(now.as_second().saturating_sub(limit)).unwrap_or(earliest));
        }
        let Some(first) = self.next(earliest).filter(|t| *t <= now) else { return (None, false) };
        let Some(second) = self.next(first).filter(|t| *t <= now) else { return (Some(first), false) };
        // Near to now by arithmetic, for a pause may have been long; then step by step, for gaps differ.
        let gap = (second.as_second() - first.as_second()).max(1);
        let missed = (now.as_second() - first.as_second()) / gap + 1;
        let near = first.as_second() + (missed - 2).max(0) * gap;
        let mut recent = first;
        let mut t = Timestamp::from_second(near).ok().and_then(|near| self.next(near));
        while let Some(at) = t.filter(|at| *at <= now) {
            recent = at;
            t = self.next(at);
        }
        // Gaps that grow (weekends) may leave the jump beyond the last run.
        if recent == first {
            let mut at = first;
            for _ in 0..MISSED_MAX {
                match self.next(at).filter(|t| *t <= now) {
                    Some(t) => at = t,
                    None => break,
                }
            }
            recent = at;
        }
        (Some(recent), missed > MISSED_MAX)
    }

    /// The Job of a run.
    #[must_use]
    pub fn job(&self, cron: &CronJob, at: Timestamp) -> Job {
        let template = cron.spec.job_template.clone();
        let meta = template.metadata.unwrap_or_default();
        let mut job = Job { spec: template.spec, ..Job::default() };
        job.metadata.name = Some(job_name(cron, at));
        job.metadata.namespace = cron.namespace();
        job.metadata.labels = meta.labels;
        let mut annotations = meta.annotations.unwrap_or_default();
        let zone = if cron.spec.time_zone.is_some() { self.zone.clone() } else { TimeZone::UTC };
        let there = at.to_zoned(zone);
        let text = match there.offset().seconds() {
            0 => there.strftime("%Y-%m-%dT%H:%M:%SZ"),
            _ => there.strftime("%Y-%m-%dT%H:%M:%S%:z"),
        };
        annotations.insert(SCHEDULED.into(), text.to_string());
        job.metadata.annotations = Some(annotations);
        job.metadata.owner_references = Some(vec![controller_ref(cron)]);
        job
    }
}

/// Seconds that a run may be late.
#[must_use]
pub fn deadline(cron: &CronJob) -> Option<i64> {
    cron.spec.starting_deadline_seconds
}

/// The name of a run's Job: the same for the same run, so that it cannot be made twice.
#[must_use]
pub fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron.name_any(), at.as_second().div_euclid(60))
}

/// A time as events show it.
#[must_use]
pub fn shown(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%a, %d %b %Y %H:%M:%S %z").to_string()
}

/// The condition that a Job ended with.
#[must_use]
pub fn ended(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let end = conditions.iter().find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True");
    end.map(|c| c.type_.as_str())
}

/// Finished Jobs beyond what is to be remembered, oldest first.
#[must_use]
pub fn forgotten(cron: &CronJob, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let spec = &cron.spec;
    let limits = [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)];
    let mut out = vec![];
    for (end, limit) in limits {
        let Some(limit) = limit.and_then(|l| usize::try_from(l).ok()) else { continue };
        let mut all: Vec<Arc<Job>> =
            jobs.iter().filter(|j| ended(j) == Some(end) && j.metadata.deletion_timestamp.is_none()).cloned().collect();
        let start = |j: &Arc<Job>| (j.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0), j.name_any());
        all.sort_by_key(start);
        all.truncate(all.len().saturating_sub(limit));
        out.extend(all);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn cron(spec: Value, status: Value) -> CronJob {
        let mut spec = spec;
        spec["jobTemplate"] = json!({"metadata": {"labels": {"a": "b"}, "annotations": {"x": "y"}}});
        serde_json::from_value(json!({"metadata": {"name": "c", "uid": "u", "namespace": "ns",
            "creationTimestamp": "2026-03-01T10:00:30Z"}, "spec": spec, "status": status}))
        .unwrap()
    }

    #[test]
    fn what_is_due() {
        for (schedule, last, limit, now, want, many) in [
            ("* * * * *", "", None, "2026-03-01T10:00:59Z", "", false),
            ("* * * * *", "", None, "2026-03-01T10:01:00Z", "2026-03-01T10:01:00Z", false),
            ("* * * * *", "2026-03-01T10:01:00Z", None, "2026-03-01T10:01:30Z", "", false),
            ("* * * * *", "2026-03-01T10:01:00Z", None, "2026-03-01T10:05:30Z", "2026-03-01T10:05:00Z", false),
            ("* * * * *", "2026-03-01T10:01:00Z", None, "2026-03-01T23:05:30Z", "2026-03-01T23:05:00Z", true),
            ("* * * * *", "2026-03-01T10:01:00Z", Some(100), "2026-03-01T23:05:30Z", "2026-03-01T23:05:00Z", false),
            // What was missed longer ago than may be late is not due.
            ("0 * * * *", "2026-03-01T10:00:00Z", Some(60), "2026-03-01T11:30:00Z", "", false),
            ("0 8 * * 1-5", "2026-03-02T08:00:00Z", None, "2026-03-09T07:00:00Z", "2026-03-06T08:00:00Z", false),
            ("30 6-16/4 * * 1-5", "2026-03-02T08:00:00Z", None, "2026-03-09T07:00:00Z", "2026-03-09T06:30:00Z", false),
        ] {
            let status = if last.is_empty() { json!({}) } else { json!({"lastScheduleTime": last}) };
            let c = cron(json!({"schedule": schedule, "timeZone": "UTC", "startingDeadlineSeconds": limit}), status);
            let (due, warn) = Clock::of(&c).unwrap().due(&c, now.parse().unwrap());
            assert_eq!(due.map(|t| t.to_string()).unwrap_or_default(), want, "{schedule} at {now}");
            assert_eq!(warn, many, "{schedule} at {now}");
        }
    }

    #[test]
    fn jobs_are_named_by_the_minute() {
        let c = cron(json!({"schedule": "* * * * *", "timeZone": "Europe/Berlin"}), json!({}));
        let at: Timestamp = "2026-03-01T10:01:00Z".parse().unwrap();
        let job = Clock::of(&c).unwrap().job(&c, at);
        assert_eq!(job.name_any(), format!("c-{}", at.as_second() / 60));
        assert_eq!(job.annotations()[SCHEDULED], "2026-03-01T11:01:00+01:00");
        assert_eq!((job.annotations()["x"].as_str(), job.labels()["a"].as_str()), ("y", "b"));
        assert_eq!(shown(at), "Sun, 01 Mar 2026 10:01:00 +0000");
        let c = cron(json!({"schedule": "* * * * *", "timeZone": "No/Where"}), json!({}));
        assert_eq!(Clock::of(&c).err().unwrap().0, "UnknownTimeZone");
    }

    #[test]
    fn old_jobs_are_forgotten() {
        let job = |name: &str, end: &str, day: u8| -> Arc<Job> {
            let conditions = if end.is_empty() { json!([]) } else { json!([{"type": end, "status": "True"}]) };
            let start = format!("2026-01-{day:02}T00:00:00Z");
            let v = json!({"metadata": {"name": name}, "status": {"startTime": start, "conditions": conditions}});
            Arc::new(serde_json::from_value(v).unwrap())
        };
        let jobs = [job("d", "Complete", 4), job("a", "Complete", 1), job("f", "Failed", 1), job("r", "", 1)];
        let names = |c: &CronJob| forgotten(c, &jobs).iter().map(|j| j.name_any()).collect::<Vec<_>>().join(",");
        let limits = |s, f| {
            cron(json!({"schedule": "", "successfulJobsHistoryLimit": s, "failedJobsHistoryLimit": f}), json!({}))
        };
        assert_eq!(names(&limits(1, 1)), "a");
        assert_eq!(names(&limits(0, 0)), "a,d,f");
        assert_eq!(names(&limits(3, 1)), "");
    }
}
