//! What the engine keeps: histories, long data, activities, answers to task tokens. Their schemas say little: the server
//! checks them at every step of every run.

// A false alarm: every `printcolumn` has a `type_` and a `json_path`.
#![allow(clippy::duplicated_attributes)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{any, given};

/// Any objects.
fn objects(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}})
}

/// A page of a run's history. Its name is [`WorkflowHistory::name_of`]; the run owns it.
///
/// The open page (label [`super::OPEN`]) is replaced under its resourceVersion at each step: of two engines only one can.
/// When it is long enough it is sealed: never changed again, and packed.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "skiff.dev",
    version = "v1",
    kind = "WorkflowHistory",
    plural = "workflowhistories",
    shortname = "wfh",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Run", type_ = "string", json_path = ".spec.run"),
    printcolumn(name = "Page", type_ = "integer", json_path = ".spec.number"),
    printcolumn(name = "First", type_ = "integer", json_path = ".spec.firstEvent"),
    printcolumn(name = "Last", type_ = "integer", json_path = ".spec.lastEvent"),
    printcolumn(name = "Sealed", type_ = "boolean", json_path = ".spec.sealed"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowHistorySpec {
    /// Name of the run.
    pub run: String,
    /// Its uid.
    pub run_uid: String,
    /// Number of the page, from 1.
    pub number: i64,
    /// Id of its first event.
    pub first_event: i64,
    /// Id of its last event; one less than the first while there is none.
    pub last_event: i64,
    /// Whether it is full.
    #[serde(default)]
    pub sealed: bool,
    /// Who wrote it, and its how manieth write: an engine that was not answered finds its own again.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub writer: String,
    /// The number under which the namespace's [`WorkflowLog`] was held when this was written: steps after it, of the same writer,
    /// may be there. Without it everything is on pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<i64>,
    /// Which WorkflowLog that is: each engine that shares the runs has its own. Without it the one that an engine alone has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_name: Option<String>,
    /// What the run was when this page began: deflated JSON in base64. Not every page has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// The same where it is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_ref: Option<PayloadRef>,
    /// Of page 1: the definition with what else the run pinned, deflated JSON in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<String>,
    /// The same where it is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned_ref: Option<PayloadRef>,
    /// JSON text `{"events", "inputs"}`, while the page is open. Events have id, previousEventId, timestamp, type, and details
    /// as the service's; inputs are what came from outside: from them and the checkpoint follows what the run is. It is text
    /// because the whole page is written at each step, and the server walks each field of an object many times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<String>,
    /// The events of an open page as earlier versions wrote it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "objects")]
    pub events: Vec<Value>,
    /// The inputs of an open page as earlier versions wrote it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "objects")]
    pub inputs: Vec<Value>,
    /// The same text of a sealed page, deflated and in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<String>,
}

impl WorkflowHistory {
    /// The name of a page.
    #[must_use]
    pub fn name_of(run: &str, number: i64) -> String {
        format!("{run}-{number}")
    }
}

/// Steps of many runs of a namespace that were stored together, until they are on the runs' pages. The one named
/// [`WorkflowLog::HEAD`] is written to, by one engine at a time; full ones are copies of what was in it. Engines that share the runs
/// have one each, `log-ENGINE`.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "skiff.dev",
    version = "v1",
    kind = "WorkflowLog",
    plural = "workflowlogs",
    shortname = "wfl",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Taken", type_ = "integer", json_path = ".spec.taken"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowLogSpec {
    /// Rises whenever an engine takes the log: from then on no other can write to it.
    pub taken: i64,
    /// Who wrote it, and its how manieth write: an engine that was not answered finds its own again.
    pub writer: String,
    /// Names of the full ones with steps that are not all on pages, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub full: Vec<String>,
    /// JSON text, an array of steps: `run`, `uid`, `w` and `n` (whose how manieth write it was), `i` (the inputs, as pages have
    /// them). The events follow from the inputs.
    pub steps: String,
}

impl WorkflowLog {
    /// Name of the one that is written to.
    pub const HEAD: &str = "steps";
}

/// A part of data too long for the object it belongs to. Its name is [`PayloadRef::name_of`]; the run owns it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "skiff.dev",
    version = "v1",
    kind = "WorkflowPayload",
    shortname = "wfp",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Part", type_ = "integer", json_path = ".spec.part"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowPayloadSpec {
    /// Which part, from 0.
    pub part: u32,
    /// A part of deflated JSON, in base64.
    pub data: String,
}

/// Data that is kept in WorkflowPayloads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PayloadRef {
    /// SHA-256 of the JSON text, in hexadecimal.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub digest: String,
    /// Parts there are.
    #[schemars(range(min = 1, max = 8192))]
    pub parts: u32,
    /// Bytes of the JSON text.
    pub size: u64,
}

impl PayloadRef {
    /// The name of a part: it says what is in it, so that whoever writes it again writes the same.
    #[must_use]
    pub fn name_of(&self, run_uid: &str, part: u32) -> String {
        format!("{run_uid}-{}-{part}", self.digest.get(..32).unwrap_or(&self.digest))
    }
}

/// Work that is fetched: `arn:aws:states:REGION:ACCOUNT:activity:NAME` is the task resource.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "skiff.dev",
    version = "v1",
    kind = "WorkflowActivity",
    plural = "workflowactivities",
    shortname = "wfa",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowActivitySpec {
    /// Name as the service's clients know it (the object's name).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 80))]
    pub name: Option<String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// An answer to a task token: exactly one of `output`, `outputRef`, `error` and `heartbeat`. The engine deletes it when the run has it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "skiff.dev",
    version = "v1",
    kind = "WorkflowSignal",
    shortname = "wfs",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowSignalSpec {
    /// The token, as the task got it.
    #[schemars(length(min = 1, max = 2048))]
    pub token: String,
    /// What came out.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any")]
    pub output: Option<Value>,
    /// The same where it is long: payloads of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_ref: Option<PayloadRef>,
    /// Name of the error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub error: Option<String>,
    /// Its cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32_768))]
    pub cause: Option<String>,
    /// It is still worked on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub heartbeat: bool,
    /// What one engine asks of the others, where several share the runs: then it answers nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
}

/// What an engine asks of the others; it deletes that when nobody waits for it any more.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ask {
    /// A run whose history somebody reads: what its pages lack is to be on them. Who drives it deletes this then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// An activity: a worker waits for its next task. Who has one puts its name into `by`, and then the task into `output`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<String>,
    /// What the worker calls itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub worker: Option<String>,
    /// The engine that has a task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When nobody waits any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<MicroTime>,
}
