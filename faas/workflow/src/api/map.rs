//! Runs of distributed Maps: what can be changed while they go on, and how far they are.

// A false alarm: every `printcolumn` has a `type_` and a `json_path`.
#![allow(clippy::duplicated_attributes)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A run of a distributed Map. The engine makes it; its run owns it. Its executions are not objects: they are on the pages of
/// its journal (WorkflowHistory).
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "skiff.dev",
    version = "v1",
    kind = "WorkflowMapRun",
    shortname = "wfm",
    namespaced,
    status = "MapRunStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Run", type_ = "string", json_path = ".spec.run"),
    printcolumn(name = "State", type_ = "string", json_path = ".spec.state"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Total", type_ = "integer", json_path = ".status.executions.total"),
    printcolumn(name = "Succeeded", type_ = "integer", json_path = ".status.executions.succeeded"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.executions.failed"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.run == oldSelf.run && self.runUid == oldSelf.runUid && self.step == oldSelf.step",
     "message": "what a run of a map belongs to cannot be changed"}
]))]
pub struct WorkflowMapRunSpec {
    /// Name of the run.
    pub run: String,
    /// Its uid.
    pub run_uid: String,
    /// Which visit of which state.
    pub step: String,
    /// Name of the state.
    pub state: String,
    /// What its ARN names it by.
    pub label: String,
    /// Name of the run's workflow, as in ARNs.
    pub workflow: String,
    /// Executions at a time; 0 for as many as may be. It may be changed while they go on.
    #[serde(default)]
    pub max_concurrency: u32,
    /// How many executions may fail. It may be changed while they go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerated_failure_count: Option<u32>,
    /// How many of a hundred may fail. It may be changed while they go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub tolerated_failure_percentage: Option<f64>,
    /// Whether its executions are kept in memory only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub express: bool,
}

/// How far a run of a map is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MapRunStatus {
    /// `RUNNING`, `SUCCEEDED`, `FAILED`, `ABORTED`.
    #[serde(default)]
    pub phase: String,
    /// Executions.
    #[serde(default)]
    pub executions: MapCounts,
    /// Items: more than executions where they come in batches.
    #[serde(default)]
    pub items: MapCounts,
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
    /// How often it was redriven.
    #[serde(default)]
    pub redrive_count: u32,
    /// When last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redrive_date: Option<MicroTime>,
    /// Pages of its journal.
    #[serde(default)]
    pub history_pages: i64,
}

/// How many there are of what kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MapCounts {
    /// All.
    #[serde(default)]
    pub total: i64,
    /// Those that wait.
    #[serde(default)]
    pub pending: i64,
    /// Those that run.
    #[serde(default)]
    pub running: i64,
    /// Those that ended well.
    #[serde(default)]
    pub succeeded: i64,
    /// Those that failed.
    #[serde(default)]
    pub failed: i64,
    /// Those that took too long.
    #[serde(default)]
    pub timed_out: i64,
    /// Those that were broken off.
    #[serde(default)]
    pub aborted: i64,
    /// Those whose results are written where the ResultWriter says.
    #[serde(default)]
    pub results_written: i64,
}
