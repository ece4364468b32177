//! The work of tasks: everything of a run that is outside of it.
//!
//! Work is begun only when the step that asks for it is stored, and is begun again when an engine takes the run over: at
//! least once. Whoever does it sees the same key each time ([`Call::key`]), as header `Idempotency-Key` or as part of an
//! object's name.

pub mod elsewhere;
pub mod functions;
mod http;
mod objects;
mod workflow;

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use serde_json::Value;
use skiff_asl::{ExecutionError, error};
use tokio::sync::oneshot;

use crate::engine::Engine;
use crate::machine::{Dispatch, Info};
use crate::payload::Owner;
use crate::resource::{Pattern, Resource, Target};

use self::functions::FunctionCall;

/// What is known of a task that is worked on.
pub(crate) struct Call {
    pub(crate) engine: Arc<Engine>,
    pub(crate) owner: Owner,
    pub(crate) info: Arc<Info>,
    pub(crate) dispatch: Dispatch,
    pub(crate) resource: Resource,
    pub(crate) report: Report,
}

/// Tells the run that a task was taken over, and waits until that is stored.
pub(crate) type Report = Box<dyn Fn(String, oneshot::Sender<()>) + Send + Sync>;

/// How work ends here.
pub(crate) enum Done {
    /// With this JSON text.
    Output(String),
    /// It was taken over: somebody answers the token.
    Elsewhere,
}

/// An error of the task itself.
pub(crate) fn failed(name: &str, cause: impl Into<String>) -> ExecutionError {
    ExecutionError::new(name, cause)
}

impl Call {
    pub(crate) fn client(&self) -> &Client {
        self.engine.client()
    }

    /// Which attempt of which step of which execution.
    pub(crate) fn address(&self) -> String {
        format!("{}{}", self.info.path, self.dispatch.step)
    }

    /// What is the same each time this attempt is made.
    pub(crate) fn key(&self) -> String {
        format!("{}/{}", self.owner.uid, self.address())
    }

    /// Headers for whoever is called.
    pub(crate) fn headers(&self) -> Vec<(String, String)> {
        let header = |name: &str, value: String| (name.to_owned(), value);
        vec![
            header("idempotency-key", self.key()),
            header("x-skiff-run", format!("{}/{}", self.owner.namespace, self.owner.name)),
            header("x-skiff-run-id", self.info.id.clone()),
            header("x-skiff-state", self.dispatch.state.bytes().map(printable).collect()),
            header("x-skiff-attempt", self.dispatch.step.attempt.to_string()),
        ]
    }

    /// Tells the run that the work is taken over; returns when that is stored.
    pub(crate) async fn taken_over(&self, output: String) {
        let (stored, waits) = oneshot::channel();
        (self.report)(output, stored);
        // Where the run does not go on nobody waits for this work either.
        let _ = waits.await;
    }

    /// A field of the parameters.
    pub(crate) fn field(&self, name: &str) -> Option<&Value> {
        self.dispatch.parameters.get(name)
    }

    /// A field of the parameters that must be text.
    pub(crate) fn text(&self, name: &str) -> Result<&str, ExecutionError> {
        let missing = || failed(error::RUNTIME, format!("the parameters have no text in {name}"));
        self.field(name).and_then(Value::as_str).ok_or_else(missing)
    }

    /// Does it. Each way is boxed, for all of them together are several times as long as what most tasks take.
    pub(crate) async fn perform(&self) -> Result<Done, ExecutionError> {
        if self.dispatch.submitted && self.resource.pattern == Pattern::Callback {
            return Ok(Done::Elsewhere);
        }
        match &self.resource.target {
            Target::Function { name, qualifier } => {
                let call = FunctionCall {
                    namespace: self.owner.namespace.clone(),
                    name: name.clone(),
                    qualifier: qualifier.clone(),
                    payload: self.dispatch.parameters.to_string(),
                    headers: self.headers(),
                    deadline: self.dispatch.deadline,
                };
                let answer = Box::pin(functions::call(&self.engine, call)).await?;
                Box::pin(self.answered(answer.output)).await
            }
            Target::Invoke => Box::pin(self.invoke()).await,
            Target::Workflow { .. } | Target::StartExecution { .. } => Box::pin(self.child()).await,
            Target::Activity { name } => {
                if !self.dispatch.submitted {
                    self.engine.offer(&self.owner, name, self.address());
                }
                Ok(Done::Elsewhere)
            }
            Target::Http => Box::pin(self.http()).await,
            Target::Kubernetes(verb) => Box::pin(self.object(*verb)).await,
            Target::Container => Box::pin(self.container()).await,
        }
    }

    /// Ends what was begun elsewhere, for nobody waits for it any more.
    pub(crate) async fn undo(&self) {
        match &self.resource.target {
            Target::Kubernetes(verb) => self.undo_object(*verb).await,
            Target::Container => self.undo_container().await,
            Target::Workflow { .. } | Target::StartExecution { .. } => self.undo_child().await,
            Target::Function { .. } | Target::Invoke | Target::Http | Target::Activity { .. } => {}
        }
    }

    /// An answer is the end of the task, or the beginning of its waiting for the token.
    pub(crate) async fn answered(&self, output: String) -> Result<Done, ExecutionError> {
        if self.resource.pattern != Pattern::Callback {
            return Ok(Done::Output(output));
        }
        self.taken_over(output).await;
        Ok(Done::Elsewhere)
    }
}

/// The bytes of a header's value: others than printable ASCII become `?`.
fn printable(byte: u8) -> char {
    if (0x20..0x7f).contains(&byte) { char::from(byte) } else { '?' }
}

/// Time until a moment.
pub(crate) fn until(at: Timestamp) -> std::time::Duration {
    at.duration_since(Timestamp::now()).try_into().unwrap_or_default()
}
