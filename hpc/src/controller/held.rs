//! A job that Slurm could not start and holds: let go again, or sent again under another name, as often as its retries say.
//!
//! After a failed prolog or launch Slurm queues a job again and holds it, until somebody lets it go. That is a failure of the
//! infrastructure like a lost node, only that Slurm still has the job: it is released, which keeps its id and its name. Where
//! Slurm does not let this account do that, the held job is cancelled, that is seen, and only then the next attempt is sent:
//! there is never a second job beside one that could still run. Each release is written down before it happens, so that a
//! crash can make it fewer releases than allowed, never more.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use skiff_controllers::runtime::events::Level;
use skiff_controllers::runtime::worker::Outcome;

use super::status::at;
use super::{Case, Controller};
use crate::api::{Class, Phase, condition};
use crate::driver::SlurmError;
use crate::link::Link;
use crate::state::Verdict;

/// Between looks whether a held job that is being cancelled has ended.
const LOOK: Duration = Duration::from_millis(500);
/// The reason of `FailureTarget` while a held job is cancelled so that the next attempt can be sent.
const RESUBMIT: &str = "Resubmit";

impl Controller {
    /// One step of a job that Slurm holds because it could not start it.
    pub(super) async fn relaunch(&self, case: &mut Case, link: &Arc<Link>, verdict: &Verdict) -> Outcome {
        if resubmits(case) {
            return self.replace(case, link).await;
        }
        let retries = case.job.spec.retries.clone().unwrap_or_default();
        let most = retries.infrastructure.unwrap_or(3);
        let asked = self.heed_release(case);
        if case.job.spec.suspend && !asked {
            self.save(case).await?;
            return Ok(None);
        }
        if !asked {
            let used = case.status.infrastructure_retries;
            if used >= most {
                let message = format!(
                    "{}; it was let go {used} times. `kubectl gpu release` lets it go once more, `kubectl gpu cancel` ends it",
                    verdict.message
                );
                case.set(condition::SUSPENDED, true, verdict.reason, message);
                self.save(case).await?;
                return Ok(None);
            }
            let now = Timestamp::now().as_second();
            match case.status.retry_at.as_ref().map(|t| t.0.as_second() - now) {
                None => {
                    let wait = super::follow::pause(&retries, used);
                    case.status.retry_at = at(now + i64::try_from(wait.as_secs()).unwrap_or(i64::MAX / 2));
                    case.set(condition::DISRUPTION_TARGET, true, "LaunchFailed", verdict.message.clone());
                    let message = format!("{}; it is let go in {} s", verdict.message, wait.as_secs());
                    self.note(case, Level::Warning, "LaunchFailed", message);
                    self.save(case).await?;
                    return Ok(Some(wait));
                }
                Some(left) if left > 0 => {
                    self.save(case).await?;
                    return Ok(Some(Duration::from_secs(left.unsigned_abs())));
                }
                Some(_) => {}
            }
            case.status.infrastructure_retries += 1;
        }
        case.status.retry_at = None;
        self.save(case).await?;
        let Some(identity) = case.status.identity.clone() else { return Ok(None) };
        match link.slurm().release(identity.job_id).await {
            Ok(()) => {
                link.touch(&identity.name);
                if !asked {
                    crate::metrics::retried(&link.name, Class::Infrastructure);
                }
                case.clear(condition::SUSPENDED, "Released");
                case.status.phase = Some(Phase::Queued);
                self.note(case, Level::Normal, "Released", format!("job {} is let go again", identity.job_id));
                self.save(case).await?;
                Ok(None)
            }
            Err(error @ (SlurmError::Refused(_) | SlurmError::Denied(_) | SlurmError::Unsupported(_))) => {
                let message = format!("job {} cannot be let go ({error}): it is sent again", identity.job_id);
                crate::metrics::retried(&link.name, Class::Infrastructure);
                self.note(case, Level::Warning, RESUBMIT, &*message);
                case.set(condition::FAILURE_TARGET, true, RESUBMIT, message);
                self.save(case).await?;
                self.replace(case, link).await
            }
            Err(error) => self.unreachable(case, &error).await,
        }
    }

    /// Cancels a held job; when it has ended, the next attempt follows.
    async fn replace(&self, case: &mut Case, link: &Arc<Link>) -> Outcome {
        let Some(name) = case.status.intent.as_ref().map(|i| i.name.clone()) else { return Ok(None) };
        match self.cancel(case, link, &name).await {
            Ok(true) => self.resubmitted(case, link).await,
            Ok(false) => Ok(Some(LOOK)),
            Err(error) => self.unreachable(case, &error).await,
        }
    }

    /// The held job is gone: the next attempt follows.
    pub(super) async fn resubmitted(&self, case: &mut Case, link: &Arc<Link>) -> Outcome {
        if let Some(intent) = &case.status.intent {
            link.forget(&intent.name);
        }
        case.clear(condition::FAILURE_TARGET, "Cancelled");
        self.next_attempt(case, None);
        self.save(case).await?;
        Ok(Some(Duration::ZERO))
    }
}

/// Whether a held job is being cancelled so that the next attempt can be sent.
pub(super) fn resubmits(case: &Case) -> bool {
    case.status
        .conditions
        .iter()
        .any(|c| c.type_ == condition::FAILURE_TARGET && c.reason == RESUBMIT && c.status == "True")
}
