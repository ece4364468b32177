//! On the way to Slurm: checks, files, the build, and one submission.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use skiff_controllers::runtime::events::Level;
use skiff_controllers::runtime::worker::Outcome;

use super::depend::Depends;
use super::status::{HELD_HERE, micro_now, staged_for, times};
use super::volume::{self, Read};
use super::{Case, Controller, LOOK_AGAIN, now};
use crate::admission::{Judgment, judge};
use crate::api::{BuildPlace, Class, Decider, Identity, Intent, Phase, RELEASE, condition};
use crate::driver::SlurmError;
use crate::link::Link;
use crate::metrics;
use crate::script::{MARKERS, OWN, Plan, login_build, name, script};
use crate::stage::{Stage, StageError, needed, read};
use crate::state::{self, Verdict};

/// Between looks for a submission whose answer was lost.
const LOOK: Duration = Duration::from_secs(2);
/// While the cluster has as many jobs as it may.
const FULL: Duration = Duration::from_secs(2);
/// The build on the login side says it was done.
const BUILT: &str = "Built";

/// The directory of a job on its cluster.
fn directory(case: &Case, link: &Link) -> String {
    let work = link.spec.work_directory.trim_end_matches('/');
    let short: String = case.uid().chars().take(13).collect();
    format!("{work}/{}/{}-{short}", case.namespace(), case.name())
}

impl Controller {
    /// One step of a job that is not in Slurm.
    pub(super) async fn prepare(&self, case: &mut Case, link: &Arc<Link>) -> Outcome {
        case.status.phase.get_or_insert_default();
        case.status.attempt = case.status.attempt.max(1);
        self.heed_release(case);
        if case.job.spec.suspend {
            case.status.phase = Some(Phase::Suspended);
            case.set(condition::SUSPENDED, true, HELD_HERE, "spec.suspend is set");
            self.save(case).await?;
            return Ok(None);
        }
        if case.holds(condition::SUSPENDED) {
            case.status.phase = Some(Phase::Pending);
            case.clear(condition::SUSPENDED, "Resumed");
        }
        if let Some(at) = &case.status.retry_at {
            let left = at.0.as_second() - Timestamp::now().as_second();
            if left > 0 {
                self.save(case).await?;
                return Ok(Some(Duration::from_secs(left.unsigned_abs())));
            }
            case.status.retry_at = None;
        }
        match judge(&case.job.spec, &link.spec, &link.partitions()) {
            Judgment::Fits => case.clear(condition::UNSCHEDULABLE, "Fits"),
            Judgment::Refused(why) => return self.give_up(case, "NotAllowed", why).await,
            Judgment::Unschedulable(why) => {
                if !case.holds(condition::UNSCHEDULABLE) {
                    self.note(case, Level::Warning, "Unschedulable", &*why);
                }
                case.status.reason = Some("Unschedulable".into());
                case.set(condition::UNSCHEDULABLE, true, "DoesNotFit", why);
                self.save(case).await?;
                return Ok(Some(LOOK_AGAIN));
            }
        }
        let dependencies = match self.depends(case) {
            Depends::On(ids) => ids,
            Depends::Never(why) => return self.give_up(case, "DependencyNeverSatisfied", why).await,
            Depends::Wait(why) => {
                case.status.reason = Some("Dependency".into());
                case.set(condition::SUBMITTED, false, "WaitsForJob", why);
                self.save(case).await?;
                return Ok(Some(LOOK_AGAIN));
            }
        };
        let most = link.spec.limits.as_ref().and_then(|l| l.jobs).unwrap_or(1000);
        if link.active() >= most as usize {
            case.status.reason = Some("ClusterFull".into());
            case.set(condition::SUBMITTED, false, "ClusterFull", format!("the cluster takes {most} jobs at a time"));
            self.save(case).await?;
            return Ok(Some(FULL));
        }
        if let Some(wait) = self.stage(case, link).await? {
            return wait;
        }
        self.submit(case, link, &dependencies).await
    }

    /// A new value of the annotation is heeded once.
    pub(super) fn heed_release(&self, case: &mut Case) -> bool {
        let asked = case.job.metadata.annotations.as_ref().and_then(|a| a.get(RELEASE)).cloned();
        let new = asked.is_some() && asked != case.status.released;
        if new {
            case.status.released = asked;
            case.status.retry_at = None;
        }
        new
    }

    /// Moves files and builds, where that is needed and was not done. `Some` ends the step.
    async fn stage(
        &self,
        case: &mut Case,
        link: &Arc<Link>,
    ) -> Result<Option<Outcome>, skiff_controllers::runtime::worker::Error> {
        let files = link.files();
        if files.is_some() && case.status.directory.is_none() {
            case.status.directory = Some(directory(case, link));
        }
        let login = case.job.spec.build.as_ref().is_some_and(|b| b.place == BuildPlace::Login);
        let move_files = needed(&case.job.spec);
        if (!move_files && !login) || case.holds(condition::STAGED) {
            return Ok(None);
        }
        let (Some(files), Some(directory)) = (files, case.status.directory.clone()) else {
            let why = "the cluster is reached by slurmrestd, which moves no files: its spec.files must say how";
            return Ok(Some(self.give_up(case, "NoFileAccess", why.into()).await));
        };
        case.status.phase = Some(Phase::Staging);
        times(case).staged.get_or_insert_with(now);
        self.save(case).await?;
        let began = Timestamp::now();
        let spec = case.job.spec.clone();
        let moved = async {
            if let Some(remote) = spec.source.as_ref().and_then(|s| s.remote.as_ref()) {
                let work = format!("{}/", link.spec.work_directory.trim_end_matches('/'));
                let inside = remote.path.starts_with(&work) && !remote.path.split('/').any(|p| p == "..");
                if !inside {
                    return Err(StageError::Invalid(format!("{} is not below the work directory", remote.path)).into());
                }
                files.copy(&remote.path, &directory).await?;
            }
            let mut stage = Stage::default();
            if let Some(volume) = spec.source.as_ref().and_then(|s| s.volume.as_ref()) {
                match self.read_volume(case, link, volume).await? {
                    Read::Wait(why) => return Err(Trouble::Wait(why)),
                    Read::Here(archive) => stage.unpack(&archive)?,
                }
            }
            read(&self.client, case.namespace(), &spec, &mut stage).await?;
            let archive = stage.pack().map_err(|e| StageError::Invalid(e.to_string()))?;
            files.unpack(&directory, archive).await?;
            Ok::<_, Trouble>(())
        };
        match moved.await {
            Ok(()) => {}
            Err(Trouble::Wait(why)) => {
                case.set(condition::STAGED, false, "ReadingVolume", why);
                self.save(case).await?;
                return Ok(Some(Ok(Some(volume::LOOK))));
            }
            Err(Trouble::Stage(StageError::Api(e))) => return Err(e.into()),
            Err(Trouble::Stage(StageError::Missing(why))) => {
                case.status.phase = Some(Phase::Pending);
                case.set(condition::STAGED, false, "SourceMissing", why);
                self.save(case).await?;
                return Ok(Some(Ok(Some(LOOK_AGAIN))));
            }
            Err(Trouble::Stage(StageError::Invalid(why))) => {
                return Ok(Some(self.give_up(case, "InvalidSource", why).await));
            }
            Err(Trouble::Slurm(SlurmError::Refused(why))) => {
                // A full disk, a missing right: it may be cured.
                self.note(case, Level::Warning, "StagingFailed", &*why);
                case.set(condition::STAGED, false, "StagingFailed", why);
                self.save(case).await?;
                return Ok(Some(Ok(Some(LOOK_AGAIN))));
            }
            Err(Trouble::Slurm(error)) => return Ok(Some(self.unreachable(case, &error).await)),
        }
        if login && let Some(end) = self.build(case, link, &directory).await? {
            return Ok(Some(end));
        }
        staged_for(case, began);
        case.set(condition::STAGED, true, if login { BUILT } else { "Staged" }, "");
        self.save(case).await?;
        Ok(None)
    }

    /// Builds on the login side. `Some` ends the step.
    async fn build(
        &self,
        case: &mut Case,
        link: &Link,
        directory: &str,
    ) -> Result<Option<Outcome>, skiff_controllers::runtime::worker::Error> {
        let spec = case.job.spec.clone();
        let secrets = spec.env.iter().any(|v| v.value_from.is_some());
        let plan = Plan {
            spec: &spec,
            cluster: &link.spec,
            name: "",
            object: &case.key,
            directory: Some(directory),
            attempt: case.status.attempt,
            dependencies: &[],
            secrets,
        };
        let (Some(text), Some(files)) = (login_build(&plan), link.files()) else { return Ok(None) };
        let limit = spec.build.as_ref().and_then(|b| b.timeout_seconds).unwrap_or(600);
        match files.run(&text, Duration::from_secs(limit.into())).await {
            Ok(out) if out.code == 0 => Ok(None),
            Ok(out) => {
                let said = out.text();
                let from = said.char_indices().rev().nth(1500).map_or(0, |(i, _)| i);
                let why = if out.code == 124 {
                    format!("the build took longer than {limit} s")
                } else {
                    format!("the build ended with exit code {}: {}", out.code, said[from..].trim())
                };
                case.status.class = Some(Class::User);
                case.status.exit_code = Some(out.code);
                Ok(Some(self.give_up(case, "BuildFailed", why).await))
            }
            Err(error) => Ok(Some(self.unreachable(case, &error).await)),
        }
    }

    /// Sends a job, once.
    async fn submit(&self, case: &mut Case, link: &Arc<Link>, dependencies: &[String]) -> Outcome {
        let spec = case.job.spec.clone();
        let attempt = case.status.attempt;
        let name = name(case.uid(), attempt);
        let secrets = spec.env.iter().any(|v| v.value_from.is_some());
        let directory = case.status.directory.clone();
        let plan = Plan {
            spec: &spec,
            cluster: &link.spec,
            name: &name,
            object: &case.key.clone(),
            directory: directory.as_deref(),
            attempt,
            dependencies,
            secrets,
        };
        let script = match script(&plan) {
            Ok(script) => script,
            Err(why) => return self.give_up(case, "InvalidSpec", why.to_string()).await,
        };
        link.turn().await;
        let digest = Some(script.digest());
        case.status.intent = Some(Intent { attempt, name: name.clone(), digest, since: Some(micro_now()), sent: true });
        case.clear(condition::UNKNOWN, "Known");
        // From here on nobody sends this attempt without looking: whoever reads the object sees that it may have been sent, and
        // whoever read an older one cannot write this.
        self.save(case).await?;
        link.register(&name, &case.key, None);
        let directories: Vec<String> = directory.iter().map(|d| format!("{d}/{OWN}")).collect();
        let began = tokio::time::Instant::now();
        let answer = link.slurm().submit(&script, &directories).await;
        metrics::submitted(&link.name, began.elapsed(), &answer);
        match answer {
            Ok(submitted) => {
                let identity = Identity {
                    cluster: submitted.cluster.or_else(|| link.facts().and_then(|f| f.cluster)),
                    job_id: submitted.job_id,
                    name,
                    submit_time: None,
                    adopted: false,
                };
                link.touch(&identity.name);
                self.accepted(case, identity).await
            }
            Err(SlurmError::Refused(why)) => {
                link.forget(&name);
                case.status.class = Some(Class::Never);
                case.status.intent = case.status.intent.take().map(|i| Intent { sent: false, ..i });
                self.note(case, Level::Warning, "Refused", &*why);
                self.fail(case, "Refused", format!("Slurm says: {why}"));
                self.save_surely(case).await?;
                Ok(None)
            }
            Err(error) if error.sure() => {
                link.forget(&name);
                case.status.intent = None;
                case.status.phase = Some(Phase::Pending);
                case.set(condition::SUBMITTED, false, error.reason(), error.to_string());
                self.save_surely(case).await?;
                Ok(Some(super::UNREACHABLE))
            }
            Err(error) => {
                self.note(
                    case,
                    Level::Warning,
                    "AnswerLost",
                    format!("{error}; Slurm is asked whether it has the job"),
                );
                case.set(condition::SUBMITTED, false, error.reason(), error.to_string());
                // It may have waited for its turn before it was sent: from here on it is counted when it can no longer arrive.
                case.status.intent = case.status.intent.take().map(|i| Intent { since: Some(micro_now()), ..i });
                self.save_surely(case).await?;
                self.look_up(case, link).await
            }
        }
    }

    /// Slurm has the job.
    async fn accepted(&self, case: &mut Case, identity: Identity) -> Outcome {
        let how = if identity.adopted { "found again" } else { "submitted" };
        let message = format!("attempt {} is job {} in Slurm, {how}", case.status.attempt, identity.job_id);
        case.status.job_id = Some(identity.job_id.to_string());
        case.status.identity = Some(identity);
        case.status.phase = Some(Phase::Queued);
        case.status.decided_by = Some(Decider::Controller);
        let t = times(case);
        t.submitted = Some(now());
        (t.eligible, t.expected_start, t.started, t.running, t.limit, t.ended, t.noticed) = Default::default();
        case.set(condition::SUBMITTED, true, "Submitted", "");
        case.clear(condition::UNKNOWN, "Known");
        self.note(case, Level::Normal, "Submitted", message);
        self.save_surely(case).await?;
        Ok(None)
    }

    /// A submission may have been sent: Slurm is asked by name before anything else.
    pub(super) async fn look_up(&self, case: &mut Case, link: &Arc<Link>) -> Outcome {
        let Some(intent) = case.status.intent.clone() else { return Ok(None) };
        link.register(&intent.name, &case.key, None);
        let age = intent.since.as_ref().map_or(i64::MAX, |s| Timestamp::now().as_second() - s.0.as_second());
        let found = match link.slurm().find(&intent.name).await {
            Ok(found) => found,
            Err(error) => return self.unreachable(case, &error).await,
        };
        let mut ids: Vec<u64> = found.reports.iter().map(|(_, r)| r.job_id).collect();
        // A marker of an array's task has the id of the task.
        if ids.is_empty() && case.job.spec.resources.as_ref().is_none_or(|r| r.array.is_none()) {
            ids.extend(found.markers.iter().map(|m| m.job_id));
        }
        ids.sort_unstable();
        ids.dedup();
        if let Some(&first) = ids.first() {
            let report = found.reports.iter().find(|(_, r)| r.job_id == first).map(|(_, r)| r);
            if let Some(refused) = report.map(|r| state::judge(r, false)).filter(|v| v.reason == "Refused") {
                link.forget(&intent.name);
                self.fail(case, "Refused", refused.message);
                self.save_surely(case).await?;
                return Ok(None);
            }
            for other in &ids[1..] {
                // It cannot be, but if it is, it must not stay.
                let message = format!("job {other} in Slurm has the name of job {first} and is cancelled");
                self.note(case, Level::Warning, "DuplicateSubmission", message);
                let _ = link.slurm().cancel(Some(*other), &intent.name).await;
            }
            metrics::found(&link.name);
            let submit_time = report.and_then(|r| r.submitted);
            let cluster = link.facts().and_then(|f| f.cluster);
            let identity = Identity { cluster, job_id: first, name: intent.name.clone(), submit_time, adopted: true };
            return self.accepted(case, identity).await;
        }
        if !self.is_settled(&intent) {
            case.set(condition::SUBMITTED, false, "AnswerLost", "Slurm does not have it so far");
            self.save(case).await?;
            return Ok(Some(LOOK));
        }
        let retention = link.spec.polling.as_ref().and_then(|p| p.retention_seconds).unwrap_or(600);
        if !found.lasting && age > i64::from(retention) {
            // It may have run and been forgotten: nobody can say that it did not.
            let message = format!(
                "whether Slurm took attempt {} cannot be found out: there is neither accounting nor a completion log",
                case.status.attempt
            );
            link.forget(&intent.name);
            return self.ended(case, link, Verdict::outcome_unknown(message)).await;
        }
        self.note(
            case,
            Level::Normal,
            "NotSubmitted",
            "Slurm did not take the job whose answer was lost; it is sent again",
        );
        link.forget(&intent.name);
        case.status.intent = None;
        case.status.phase = Some(Phase::Pending);
        self.save(case).await?;
        Ok(Some(Duration::ZERO))
    }

    /// Holds and releases a job that waits in Slurm, as its object says.
    pub(super) async fn hold_or_release(&self, case: &mut Case, link: &Link) -> Result<(), SlurmError> {
        let Some(id) = case.status.identity.as_ref().map(|i| i.job_id) else { return Ok(()) };
        let held = case.status.phase == Some(Phase::Suspended);
        let by_us = case
            .status
            .conditions
            .iter()
            .any(|c| c.type_ == condition::SUSPENDED && c.reason == HELD_HERE && c.status == "True");
        if case.job.spec.suspend && case.status.phase == Some(Phase::Queued) {
            link.slurm().hold(id).await?;
            case.status.phase = Some(Phase::Suspended);
            case.set(condition::SUSPENDED, true, HELD_HERE, "spec.suspend is set");
        } else if held && ((!case.job.spec.suspend && by_us) || self.heed_release(case)) {
            link.slurm().release(id).await?;
            case.clear(condition::SUSPENDED, "Released");
            case.status.phase = Some(Phase::Queued);
        }
        Ok(())
    }
}

/// What goes wrong with files.
enum Trouble {
    Stage(StageError),
    Slurm(SlurmError),
    Wait(String),
}

impl From<StageError> for Trouble {
    fn from(e: StageError) -> Self {
        Self::Stage(e)
    }
}

impl From<SlurmError> for Trouble {
    fn from(e: SlurmError) -> Self {
        Self::Slurm(e)
    }
}

/// Files of markers of a name.
pub(super) fn marker_files(link: &Link, name: &str) -> String {
    format!("{}/{MARKERS}/{name}", link.spec.work_directory.trim_end_matches('/'))
}
