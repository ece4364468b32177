//! How a state fails: the error's name, on which Retry and Catch decide, and a cause for people.

use serde::{Deserialize, Serialize};

/// An error of a run, in the language's own names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "PascalCase")]
#[error("{error}: {cause}")]
pub struct ExecutionError {
    /// The name, one of the reserved ones or a task's own.
    pub error: String,
    /// What people read.
    pub cause: String,
}

impl ExecutionError {
    /// An error of that name.
    #[must_use]
    pub fn new(error: &str, cause: impl Into<String>) -> Self {
        Self { error: error.to_owned(), cause: cause.into() }
    }

    /// What a catcher puts into the data: `{"Error": …, "Cause": …}`.
    #[must_use]
    pub fn output(&self) -> serde_json::Value {
        serde_json::json!({ "Error": self.error, "Cause": self.cause })
    }
}

/// Matches any error but States.DataLimitExceeded and States.Runtime.
pub const ALL: &str = "States.ALL";
/// A task or a run took longer than allowed.
pub const TIMEOUT: &str = "States.Timeout";
/// A task was silent for longer than allowed.
pub const HEARTBEAT_TIMEOUT: &str = "States.HeartbeatTimeout";
/// A task failed; as a pattern it matches any error but States.Timeout.
pub const TASK_FAILED: &str = "States.TaskFailed";
/// The run may not do what the state asks for.
pub const PERMISSIONS: &str = "States.Permissions";
/// ResultPath cannot be applied to the input.
pub const RESULT_PATH_MATCH_FAILURE: &str = "States.ResultPathMatchFailure";
/// A path in a payload template finds nothing.
pub const PARAMETER_PATH_FAILURE: &str = "States.ParameterPathFailure";
/// A branch of Parallel failed.
pub const BRANCH_FAILED: &str = "States.BranchFailed";
/// No rule of a Choice holds and there is no default.
pub const NO_CHOICE_MATCHED: &str = "States.NoChoiceMatched";
/// An intrinsic function failed.
pub const INTRINSIC_FAILURE: &str = "States.IntrinsicFailure";
/// More items of a Map failed than are tolerated.
pub const EXCEED_TOLERATED_FAILURE_THRESHOLD: &str = "States.ExceedToleratedFailureThreshold";
/// The items of a Map could not be read.
pub const ITEM_READER_FAILED: &str = "States.ItemReaderFailed";
/// The results of a Map could not be written.
pub const RESULT_WRITER_FAILED: &str = "States.ResultWriterFailed";
/// A payload is over its limit.
pub const DATA_LIMIT_EXCEEDED: &str = "States.DataLimitExceeded";
/// A JSONata expression failed, or has no value.
pub const QUERY_EVALUATION_ERROR: &str = "States.QueryEvaluationError";
/// The run cannot go on, e.g. because a path finds nothing.
pub const RUNTIME: &str = "States.Runtime";

/// The reserved names.
pub const RESERVED: [&str; 16] = [
    ALL,
    TIMEOUT,
    HEARTBEAT_TIMEOUT,
    TASK_FAILED,
    PERMISSIONS,
    RESULT_PATH_MATCH_FAILURE,
    PARAMETER_PATH_FAILURE,
    BRANCH_FAILED,
    NO_CHOICE_MATCHED,
    INTRINSIC_FAILURE,
    EXCEED_TOLERATED_FAILURE_THRESHOLD,
    ITEM_READER_FAILED,
    RESULT_WRITER_FAILED,
    DATA_LIMIT_EXCEEDED,
    QUERY_EVALUATION_ERROR,
    RUNTIME,
];
