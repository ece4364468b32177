//! What doors need of runs: start, stop, ask, answer. [`Stored`] does it over API objects from any process; what needs the
//! engine's memory (synchronous starts, activities that are fetched) is the engine's, which has all of it.

pub(crate) mod maps;
mod stored;

use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

pub(crate) use stored::parsed;
pub use stored::{Stored, run_name};

use crate::api::{Kind, Parent, Phase, Stop, WorkflowRun};

/// A run that is asked for.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Namespace.
    pub namespace: String,
    /// Name of the workflow.
    pub workflow: String,
    /// Number of the version.
    pub version: Option<i64>,
    /// Alias.
    pub alias: Option<String>,
    /// Name of the execution. Without it one is made up.
    pub name: Option<String>,
    /// Input as JSON text.
    pub input: String,
    /// Tracing header.
    pub trace_header: Option<String>,
    /// The run that starts it.
    pub parent: Option<Parent>,
    /// Whether a name that is used starts another run of that name: as the service does with express workflows.
    pub another: bool,
}

/// A run that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Name of the object.
    pub run: String,
    /// Name of the execution.
    pub name: String,
    /// When.
    pub at: Timestamp,
    /// Whether it was there already, with the same input.
    pub again: bool,
}

/// How a synchronous run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Name of the execution.
    pub name: String,
    /// `SUCCEEDED`, `FAILED` or `TIMED_OUT`.
    pub phase: Phase,
    /// Output as JSON text.
    pub output: Option<String>,
    /// Error.
    pub error: Option<String>,
    /// Cause.
    pub cause: Option<String>,
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub stop: Timestamp,
}

/// A run with what it consists of.
#[derive(Clone, Debug)]
pub struct Description {
    /// The object.
    pub run: WorkflowRun,
    /// Input as JSON text.
    pub input: String,
    /// Output as JSON text.
    pub output: Option<String>,
}

/// What a run pinned when it began.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pinned {
    /// The definition as text.
    pub definition: String,
    /// SHA-256 of it, in hexadecimal.
    pub revision: String,
    /// Name of the execution.
    pub name: String,
    /// The input as JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// The same where it is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_ref: Option<crate::api::PayloadRef>,
    /// What task tokens are made with.
    #[serde(default)]
    pub secret: String,
    /// Tracing header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_header: Option<String>,
    /// Name of the workflow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<String>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// How it is kept.
    #[serde(default)]
    pub kind: Kind,
    /// Seconds it may take, as the workflow says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// Events it may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_events: Option<u64>,
    /// ServiceAccount of its tasks on Kubernetes objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
}

/// Where reading a history goes on: a page, and the event before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Number of the page.
    pub page: i64,
    /// The event that was read last; 0 for none of this page.
    pub event: i64,
}

/// Events of a history.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Events {
    /// `id`, `previousEventId`, `timestamp` (RFC 3339), `type`, and `…EventDetails` as the service's.
    pub events: Vec<Value>,
    /// Where it goes on.
    pub next: Option<Cursor>,
}

/// An answer to a task token.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// JSON text.
    Success(String),
    /// It failed.
    Failure {
        /// Name of the error.
        error: Option<String>,
        /// Its cause.
        cause: Option<String>,
    },
    /// It is still worked on.
    Heartbeat,
}

/// Work of an activity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActivityTask {
    /// The token that answers it.
    pub token: String,
    /// JSON text.
    pub input: String,
}

/// Why it does not go. The names are the service's, where it has one.
#[derive(Debug, thiserror::Error)]
pub enum RunsError {
    /// `StateMachineDoesNotExist`.
    #[error("there is no workflow {0}")]
    NoWorkflow(String),
    /// The version or alias is not there.
    #[error("there is no version {0}")]
    NoVersion(String),
    /// `InvalidDefinition`: it is there, but cannot run.
    #[error("the definition is not valid: {0}")]
    InvalidDefinition(String),
    /// `ExecutionAlreadyExists`.
    #[error("there is a run {0} already")]
    AlreadyExists(String),
    /// `ExecutionDoesNotExist`.
    #[error("there is no run {0}")]
    NoRun(String),
    /// `ExecutionNotRedrivable`.
    #[error("the run cannot be redriven: {0}")]
    NotRedrivable(String),
    /// `InvalidExecutionInput`, `InvalidOutput`.
    #[error("not valid data: {0}")]
    InvalidData(String),
    /// `InvalidName`.
    #[error("not a valid name: {0}")]
    InvalidName(String),
    /// `InvalidToken`.
    #[error("not a valid token")]
    InvalidToken,
    /// `TaskDoesNotExist`.
    #[error("there is no such task")]
    NoTask,
    /// `TaskTimedOut`: it was, and is answered, timed out or stopped.
    #[error("nobody waits for this task any more")]
    TaskOver,
    /// `ActivityDoesNotExist`.
    #[error("there is no activity {0}")]
    NoActivity(String),
    /// `StateMachineTypeNotSupported`.
    #[error("not for workflows of this type")]
    WrongType,
    /// `ActivityWorkerLimitExceeded` and the like.
    #[error("too many: {0}")]
    TooMany(String),
    /// The caller may not.
    #[error("{0}")]
    Forbidden(String),
    /// The API or the engine does not answer: the same may succeed later.
    #[error("not now: {0}")]
    Unavailable(String),
}

/// What doors need of runs. Whether the caller may is the caller's business.
#[async_trait]
pub trait Runs: Send + Sync + 'static {
    /// Starts a run, and returns when it is stored. With a name that is used: the same answer while a run with the same input
    /// goes on, otherwise [`RunsError::AlreadyExists`].
    async fn start(&self, start: Start) -> Result<Started, RunsError>;

    /// Runs an express workflow to its end, in memory.
    async fn start_sync(&self, start: Start) -> Result<Outcome, RunsError>;

    /// Stops a run; returns when that is stored. A run that is over stays as it is.
    async fn stop(&self, namespace: &str, run: &str, stop: Stop) -> Result<Timestamp, RunsError>;

    /// Lets a run that failed, timed out or was stopped go on from there. The same token again is the same redrive: it is
    /// answered as the first time.
    async fn redrive(&self, namespace: &str, run: &str, token: Option<&str>) -> Result<Timestamp, RunsError>;

    /// A run with its input and output.
    async fn describe(&self, namespace: &str, run: &str) -> Result<Description, RunsError>;

    /// What a run pinned.
    async fn pinned(&self, namespace: &str, run: &str) -> Result<Pinned, RunsError>;

    /// At most `limit` events after `from`, or before it.
    async fn history(
        &self,
        namespace: &str,
        run: &str,
        from: Option<Cursor>,
        reverse: bool,
        limit: usize,
    ) -> Result<Events, RunsError>;

    /// Stores an answer to a task token.
    async fn signal(&self, token: &str, answer: Answer) -> Result<(), RunsError>;

    /// The next task of an activity, for which it waits.
    async fn poll_activity(
        &self,
        namespace: &str,
        activity: &str,
        worker: Option<&str>,
        wait: Duration,
    ) -> Result<Option<ActivityTask>, RunsError>;
}
