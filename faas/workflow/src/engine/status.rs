//! The status of a run: at once when it ends, otherwise at most about once a second, and less often where many runs go on.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Resource as _;
use kube::api::{Patch, PatchParams, Request};
use serde_json::{Value, json};
use skiff_asl::ExecutionError;
use skiff_controllers::runtime::events::Level;
use skiff_controllers::runtime::worker::{code, not_found};
use tokio::time::Instant;

use super::Engine;
use crate::api::{Phase, Receipt, RunStatus, WorkflowRun};
use crate::journal::record::INLINE;
use crate::machine::Machine;
use crate::payload::{Owner, Payload};

/// Time between two writes about a run that goes on.
pub(super) const PERIOD: Duration = Duration::from_secs(1);
/// Time between writes about all runs that go on together: where there are many, what they store comes first.
const SHARE: Duration = Duration::from_millis(20);
/// Longest time between two writes about one run, however many there are.
const PERIOD_MAX: Duration = Duration::from_secs(30);
/// States that are named.
const STATES: usize = 20;
/// Characters of a cause in a condition and an event.
const CAUSE: usize = 1024;
/// Tries of the last write.
const TRIES: u32 = 8;

/// Time between two writes about one of so many runs that go on.
pub(super) fn pace(runs: usize) -> Duration {
    let share = SHARE.saturating_mul(u32::try_from(runs).unwrap_or(u32::MAX));
    share.clamp(PERIOD, PERIOD_MAX)
}

/// What was written last.
pub(super) struct Written {
    last: Option<(Phase, Vec<String>)>,
    at: Instant,
}

impl Written {
    pub(super) fn new() -> Self {
        Self { last: None, at: Instant::now() }
    }

    /// When something is to be written about a run that goes on; none where nothing is new.
    pub(super) fn due(&self, machine: &Machine, period: Duration) -> Option<Instant> {
        let same = self.last.as_ref().is_some_and(|(_, states)| *states == machine.current(STATES));
        (!same).then(|| self.at + period)
    }

    pub(super) fn wrote(&mut self, machine: &Machine) {
        self.last = Some((Phase::Running, machine.current(STATES)));
        self.at = Instant::now();
    }
}

fn condition(kind: &str, status: bool, reason: &str, message: &str, generation: Option<i64>) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.chars().take(CAUSE).collect(),
        last_transition_time: Time(whole(Timestamp::now())),
        observed_generation: generation,
    }
}

fn whole(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// The conditions that a phase means.
fn conditions(phase: Phase, message: &str, generation: Option<i64>) -> Vec<Condition> {
    let word = match phase {
        Phase::Pending => "Pending",
        Phase::Running => "Running",
        Phase::Succeeded => "Succeeded",
        Phase::Failed => "Failed",
        Phase::TimedOut => "TimedOut",
        Phase::Aborted => "Aborted",
        Phase::PendingRedrive => "PendingRedrive",
    };
    let bad = phase.is_over() && phase != Phase::Succeeded;
    vec![
        condition("Running", phase == Phase::Running, word, "", generation),
        condition("Complete", phase == Phase::Succeeded, word, "", generation),
        condition("Failed", bad, word, if bad { message } else { "" }, generation),
    ]
}

/// A merge patch that makes a status this one: what is not there is taken away.
fn patch(status: &RunStatus) -> Value {
    let mut fields = json!(status);
    if let Some(fields) = fields.as_object_mut() {
        for name in ["output", "outputRef", "error", "cause", "stopTime", "currentStates", "redriveDate"] {
            fields.entry(name).or_insert(Value::Null);
        }
    }
    json!({"status": fields})
}

impl Engine {
    /// What the status of a run is to be. Long output is stored first.
    pub(super) async fn status_of(
        &self,
        owner: &Owner,
        machine: &Machine,
        pages: i64,
        generation: Option<i64>,
        engine_millis: f64,
        pinned: (&str, Option<i64>),
    ) -> Result<RunStatus, crate::payload::PayloadError> {
        let over = machine.over();
        let phase = over.map_or(Phase::Running, |o| o.phase);
        let (mut output, mut output_ref) = (None, None);
        if let Some(value) = over.and_then(|o| o.output.as_ref()) {
            let text = value.to_string();
            // A patch cannot say null.
            if text.len() <= INLINE && !value.is_null() {
                output = Some(value.clone());
            } else {
                let payload = Payload::of(&text)?;
                payload.store(&self.client, owner).await?;
                output_ref = Some(payload.reference);
            }
        }
        let (redrive_count, redriven) = machine.redrives();
        let receipt = machine.receipt();
        let cause = over.and_then(|o| o.cause.clone());
        let message = match over {
            Some(o) => [o.error.as_deref(), o.cause.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(": "),
            None => String::new(),
        };
        Ok(RunStatus {
            observed_generation: generation,
            phase,
            revision: Some(pinned.0.to_owned()),
            version: pinned.1,
            current_states: if over.is_some() { vec![] } else { machine.current(STATES) },
            output,
            output_ref,
            error: over.and_then(|o| o.error.clone()),
            cause,
            start_time: Some(MicroTime(machine.started())),
            stop_time: over.map(|o| MicroTime(o.at)),
            history_pages: pages,
            events: machine.last_event(),
            transitions: i64::try_from(machine.transitions()).unwrap_or(i64::MAX),
            redrive_count,
            redrive_date: redriven.map(MicroTime),
            conditions: conditions(phase, &message, generation),
            receipt: Some(Receipt { engine_millis, ..receipt.clone() }),
        })
    }

    /// Writes a status. The last one of a run is tried for a while. Answers the object as JSON text; None where it is gone.
    pub(super) async fn write_status(&self, owner: &Owner, status: &RunStatus) -> Result<Option<String>, kube::Error> {
        let _permit = self.statuses.acquire().await;
        let runs = Request::new(WorkflowRun::url_path(&(), Some(&owner.namespace)));
        let mut patch = patch(status);
        // A run of the same name that was made meanwhile is not meant.
        if let Some(whole) = patch.as_object_mut() {
            whole.insert("metadata".to_owned(), json!({"uid": owner.uid}));
        }
        let mut pause = Duration::from_millis(50);
        for tried in 1.. {
            let request = runs.patch_subresource("status", &owner.name, &PatchParams::default(), &Patch::Merge(&patch));
            // The answer is as long as the object, and most of them are not looked at.
            match self.client.request_text(request.map_err(kube::Error::BuildRequest)?).await {
                Ok(run) => return Ok(Some(run)),
                Err(e) if not_found(&e) || matches!(code(&e), 409 | 422) => return Ok(None),
                Err(e) if tried >= TRIES || !status.phase.is_over() => return Err(e),
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause *= 2;
        }
        Ok(None)
    }

    /// A run fails before it begins.
    pub(super) async fn refuse(
        &self,
        run: &WorkflowRun,
        owner: &Owner,
        error: &ExecutionError,
    ) -> Result<(), kube::Error> {
        let now = crate::journal::record::now();
        let message = error.to_string();
        let status = RunStatus {
            observed_generation: run.metadata.generation,
            phase: Phase::Failed,
            error: Some(error.error.clone()),
            cause: Some(error.cause.clone()),
            start_time: Some(MicroTime(now)),
            stop_time: Some(MicroTime(now)),
            conditions: conditions(Phase::Failed, &message, run.metadata.generation),
            // Nothing is there that could be redriven.
            redrive_count: run.spec.redrive.unwrap_or(0),
            ..RunStatus::default()
        };
        self.write_status(owner, &status).await?;
        self.recorder.note(run, Level::Warning, "Failed", message.chars().take(CAUSE).collect::<String>());
        Ok(())
    }

    /// Says how a run ended to who looks at its events; `run` is what [`Engine::write_status`] answered.
    pub(super) fn announce(&self, status: &RunStatus, run: &str) {
        let text =
            [status.error.as_deref(), status.cause.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(": ");
        let text: String = text.chars().take(CAUSE).collect();
        let (level, reason) = match status.phase {
            Phase::Succeeded => return,
            Phase::TimedOut => (Level::Warning, "TimedOut"),
            Phase::Aborted => (Level::Normal, "Aborted"),
            _ => (Level::Warning, "Failed"),
        };
        if let Ok(run) = serde_json::from_str::<WorkflowRun>(run) {
            self.recorder.note(&run, level, reason, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_runs_share_the_writes_about_them() {
        let seconds = |runs| pace(runs).as_secs();
        assert_eq!([0, 1, 50, 200, 1_000_000].map(seconds), [1, 1, 1, 4, 30]);
    }
}
