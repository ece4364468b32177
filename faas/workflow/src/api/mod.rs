//! The custom resources of workflows (group `skiff.dev`, version `v1`): what people write here, runs in [`run`], what the
//! engine keeps for itself in [`journal`].
//!
//! Whole definitions are judged by the language (skiff-asl), not by the schema: their faults, all at once and each with its
//! path, are in the condition `Valid`.

// A false alarm: every `printcolumn` has a `type_` and a `json_path`.
#![allow(clippy::duplicated_attributes)]

mod journal;
mod map;
mod run;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::CustomResource;
use kube::api::DynamicObject;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use journal::{
    Ask, PayloadRef, WorkflowActivity, WorkflowActivitySpec, WorkflowHistory, WorkflowHistorySpec, WorkflowLog,
    WorkflowLogSpec, WorkflowPayload, WorkflowPayloadSpec, WorkflowSignal, WorkflowSignalSpec,
};
pub use map::{MapCounts, MapRunStatus, WorkflowMapRun, WorkflowMapRunSpec};
pub use run::{Parent, Phase, Receipt, RunStatus, Stop, WorkflowRun, WorkflowRunSpec};

/// Group of the custom resources.
pub const GROUP: &str = "skiff.dev";
/// Label of runs: the name of their workflow, where it is short enough for a label.
pub const WORKFLOW: &str = "skiff.dev/workflow";
/// Label of pages, payloads and whatever else belongs to a run: its uid.
pub const RUN: &str = "skiff.dev/workflow-run";
/// Label of the page that is written to: a run that is not over has exactly one, so a list of them is the engine's memory.
pub const OPEN: &str = "skiff.dev/open";
/// Bytes that an input or output may have.
pub const DATA_MAX: usize = 262_144;
/// Events of one run, where the workflow says nothing else: what goes on longer is an endless loop.
pub const EVENTS_MAX: u64 = 1_000_000;

/// A field that may hold any JSON.
pub(crate) fn any(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-preserve-unknown-fields": true, "nullable": true})
}

/// Keeps a given `null` apart from a field that is not there.
pub(crate) fn given<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

/// A workflow: a definition, what starts it, how its runs are kept.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "skiff.dev",
    version = "v1",
    kind = "Workflow",
    shortname = "wf",
    category = "all",
    namespaced,
    status = "WorkflowStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Valid", type_ = "string", json_path = ".status.conditions[?(@.type==\"Valid\")].status"),
    printcolumn(name = "Version", type_ = "integer", json_path = ".status.latestVersion"),
    printcolumn(name = "Running", type_ = "integer", json_path = ".status.running"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowSpec {
    /// The definition in the Amazon States Language: an object, or a string of JSON or YAML.
    #[schemars(schema_with = "any")]
    pub definition: Value,
    /// How its runs are kept.
    #[serde(default, rename = "type")]
    pub kind: Kind,
    /// Seconds a run may take, where the definition says nothing shorter. Without it there is no limit (300 for `express`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 99_999_999))]
    pub timeout_seconds: Option<u32>,
    /// How many runs there may be at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// How long finished runs are kept (for ever).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Events one run may have (1,000,000); afterwards it fails with `States.Runtime`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 25, max = 100_000_000))]
    pub max_events: Option<u64>,
    /// What starts it beside people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub triggers: Vec<Trigger>,
    /// Names for versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub aliases: Vec<Alias>,
    /// What goes to the log of the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logging: Option<Logging>,
    /// ServiceAccount whose rights its tasks on Kubernetes objects have (`default`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
}

/// How runs are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Durable: each step is stored before the next.
    #[default]
    Standard,
    /// In memory, five minutes at most: a run that is broken off is not taken up again.
    Express,
}

/// How many runs of a workflow there may be at a time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Concurrency {
    /// So many.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_runs: u32,
    /// What happens to one more.
    #[serde(default)]
    pub policy: Overflow,
}

/// What happens to a run that is one too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Overflow {
    /// It waits as `PENDING`.
    #[default]
    Queue,
    /// It fails with `States.Runtime`.
    Reject,
}

/// How long finished runs are kept, with their histories.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// Seconds after the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 315_360_000))]
    pub seconds: Option<u32>,
    /// At most so many finished runs; the oldest go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub runs: Option<u32>,
}

/// What starts a workflow: exactly one of `cron`, `objects` and `http`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "[has(self.cron), has(self.objects), has(self.http)].filter(x, x).size() == 1",
     "message": "exactly one of cron, objects and http must be given"}
]))]
pub struct Trigger {
    /// Its name, one of its kind in the workflow.
    #[schemars(regex(pattern = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"))]
    pub name: String,
    /// By time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<CronTrigger>,
    /// By changes of objects of the API, as the workflow's ServiceAccount sees them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<ObjectsTrigger>,
    /// By requests that carry a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpTrigger>,
}

/// Runs by time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CronTrigger {
    /// Five fields, as of CronJobs.
    #[schemars(length(min = 1))]
    pub schedule: String,
    /// Time zone (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Input of the runs (`{"trigger": NAME, "time": TIME}`).
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any")]
    pub input: Option<Value>,
}

/// Runs by changes of objects; the input is `{"trigger", "type", "object"}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectsTrigger {
    /// As in manifests: `v1`, `apps/v1`.
    #[schemars(length(min = 1))]
    pub api_version: String,
    /// As in manifests.
    #[schemars(length(min = 1))]
    pub kind: String,
    /// Of the workflow's own namespace, or of another where the ServiceAccount may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Which objects (all).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// `ADDED`, `MODIFIED`, `DELETED` (all of them).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<String>,
}

/// Runs by requests with `Authorization: Bearer TOKEN`; the body is the input.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpTrigger {
    /// Secret of the namespace whose key `token` is the token.
    #[schemars(length(min = 1, max = 253))]
    pub secret: String,
}

/// A name for one version, or two by weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.routing.map(r, r.weight).sum() == 100", "message": "the weights of an alias must add up to 100"}
]))]
pub struct Alias {
    /// Its name.
    #[schemars(regex(pattern = "^[a-zA-Z0-9-_]{1,80}$"))]
    pub name: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub description: Option<String>,
    /// Which versions.
    #[schemars(length(min = 1, max = 2))]
    pub routing: Vec<Route>,
}

/// A share of an alias.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Number of a version.
    #[schemars(range(min = 1))]
    pub version: i64,
    /// Percent of the runs.
    #[schemars(range(min = 0, max = 100))]
    pub weight: u32,
}

/// What goes to the log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Logging {
    /// Which events.
    #[serde(default)]
    pub level: LogLevel,
    /// Whether with inputs and outputs.
    #[serde(default)]
    pub include_execution_data: bool,
}

/// Which events are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum LogLevel {
    /// None.
    #[default]
    Off,
    /// Those of runs that end badly.
    Fatal,
    /// Those of steps that fail, too.
    Error,
    /// All.
    All,
}

/// What is known of a workflow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowStatus {
    /// The generation of the spec this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Valid`, with all faults of the definition in the message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// SHA-256 of the definition, in hexadecimal: what runs pin, and what the service calls the revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Number of the newest version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_version: Option<i64>,
    /// Runs that are not over.
    #[serde(default)]
    pub running: i32,
    /// How far each trigger is, by name. The triggers' own part of the status: write it with a merge patch only.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub triggers: std::collections::BTreeMap<String, TriggerStatus>,
}

/// How far a trigger is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TriggerStatus {
    /// Since when it is looked after: what was before is none of its business.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// When it last started a run: for `cron` the time that was planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_time: Option<Time>,
    /// Up to which version objects were told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Why it starts nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A version of a workflow that never changes. Its name is [`WorkflowVersion::name_of`].
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "skiff.dev",
    version = "v1",
    kind = "WorkflowVersion",
    shortname = "wfv",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Workflow", type_ = "string", json_path = ".spec.workflow"),
    printcolumn(name = "Number", type_ = "integer", json_path = ".spec.number"),
    printcolumn(name = "Description", type_ = "string", json_path = ".spec.description", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self == oldSelf", "message": "a version cannot be changed: publish another"}
]))]
pub struct WorkflowVersionSpec {
    /// Name of the workflow.
    pub workflow: String,
    /// Its number, rising from 1.
    #[schemars(range(min = 1))]
    pub number: i64,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub description: Option<String>,
    /// SHA-256 of the definition, in hexadecimal.
    pub revision: String,
    /// The definition as text: what was written, to the byte where it was a string.
    #[schemars(length(max = 1_048_576))]
    pub definition: String,
    /// How runs are kept.
    #[serde(default, rename = "type")]
    pub kind: Kind,
}

impl WorkflowVersion {
    /// The name of a version's object.
    #[must_use]
    pub fn name_of(workflow: &str, number: i64) -> String {
        format!("{workflow}-v{number}")
    }
}

/// The definitions, for whoever installs them: definitions.json, which a test makes from the types here.
#[must_use]
pub fn definitions() -> Vec<DynamicObject> {
    skiff_controllers::runtime::definitions::read(include_str!("../../definitions.json"))
}
