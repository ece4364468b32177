//! Runs: what is asked for, and what became of it.

// A false alarm: every `printcolumn` has a `type_` and a `json_path`.
#![allow(clippy::duplicated_attributes)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{PayloadRef, any, given};

/// One execution. Its definition is pinned when it starts: what becomes of the Workflow afterwards, deletion too, does not
/// matter to it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "skiff.dev",
    version = "v1",
    kind = "WorkflowRun",
    shortname = "wfr",
    category = "all",
    namespaced,
    status = "RunStatus",
    selectable = ".spec.workflow",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Workflow", type_ = "string", json_path = ".spec.workflow"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.currentStates[0]"),
    printcolumn(name = "Events", type_ = "integer", json_path = ".status.events"),
    printcolumn(name = "Error", type_ = "string", json_path = ".status.error", priority = 1),
    printcolumn(name = "Stopped", type_ = "date", json_path = ".status.stopTime", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "!has(self.version) || !has(self.alias)", "message": "version and alias cannot both be given"},
    {"rule": "has(self.workflow) == has(oldSelf.workflow) && (!has(self.workflow) || self.workflow == oldSelf.workflow)",
     "message": "the workflow of a run cannot be changed"},
    {"rule": "!has(oldSelf.stop) || has(self.stop)", "message": "a stop cannot be taken back"},
    {"rule": "!has(oldSelf.redrive) || (has(self.redrive) && self.redrive >= oldSelf.redrive)",
     "message": "redrive can only rise"}
]))]
pub struct WorkflowRunSpec {
    /// Name of a Workflow of this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub workflow: Option<String>,
    /// A definition of its own instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any")]
    pub definition: Option<Value>,
    /// Number of the version that runs. Without it and without `alias`: what the Workflow is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub version: Option<i64>,
    /// Alias that says which version runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 80))]
    pub alias: Option<String>,
    /// The input (`{}`). It is pinned when the run starts.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any")]
    pub input: Option<Value>,
    /// The input where it is long: WorkflowPayloads, written after the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_ref: Option<PayloadRef>,
    /// Name of the execution (the object's name).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 80))]
    pub name: Option<String>,
    /// Ends it as `ABORTED`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Raised by one: a run that failed, was aborted or timed out goes on from where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub redrive: Option<u32>,
    /// The run that started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Tracing header that goes on to the tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub trace_header: Option<String>,
    /// ServiceAccount whose rights its tasks on Kubernetes objects have. Only with `definition`; otherwise the Workflow says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
}

/// Why a run is stopped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stop {
    /// Error of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub error: Option<String>,
    /// Its cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32_768))]
    pub cause: Option<String>,
}

/// The run that started another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Parent {
    /// Its name.
    pub run: String,
    /// Its uid.
    pub uid: String,
    /// Which step of it: the idempotency key.
    pub step: String,
}

/// Where a run is: the service's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Phase {
    /// It waits: for the engine, or because there are as many runs of its workflow as there may be.
    #[default]
    Pending,
    /// It runs.
    Running,
    /// It ended well.
    Succeeded,
    /// It failed.
    Failed,
    /// It took longer than it may.
    TimedOut,
    /// It was stopped.
    Aborted,
    /// It will go on from where it failed.
    PendingRedrive,
}

impl Phase {
    /// Whether it is over.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::TimedOut | Self::Aborted)
    }

    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::TimedOut => "TIMED_OUT",
            Self::Aborted => "ABORTED",
            Self::PendingRedrive => "PENDING_REDRIVE",
        }
    }
}

/// What became of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunStatus {
    /// The generation of the spec this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it is.
    #[serde(default)]
    pub phase: Phase,
    /// SHA-256 of the definition that is pinned: the text is in the first page of its history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The version that was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// Names of the states it is in, the first 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub current_states: Vec<String>,
    /// The output, where it is short.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any")]
    pub output: Option<Value>,
    /// The output where it is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_ref: Option<PayloadRef>,
    /// Name of the error it ended with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<MicroTime>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_time: Option<MicroTime>,
    /// Pages of its history.
    #[serde(default)]
    pub history_pages: i64,
    /// Events of its history.
    #[serde(default)]
    pub events: i64,
    /// States it entered.
    #[serde(default)]
    pub transitions: i64,
    /// How often it was redriven.
    #[serde(default)]
    pub redrive_count: u32,
    /// When last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redrive_date: Option<MicroTime>,
    /// `Running`; `Complete` when it ended well; `Failed` when it ended otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// What took the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}

/// What took a run's time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// Milliseconds in the engine: transitions and their storing.
    pub engine_millis: f64,
    /// Milliseconds tasks waited for their start.
    pub queue_millis: f64,
    /// Milliseconds in tasks, of all attempts together.
    pub task_millis: f64,
}
