//! Calls as a resource: the durable queue, and what became of each.

// A false alarm: every `printcolumn` has a `type_` and a `json_path`.
#![allow(clippy::duplicated_attributes)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A call nobody waits for: the entry of the durable queue, and afterwards its result. Whoever may create one calls the
/// function.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "skiff.dev",
    version = "v1",
    kind = "FunctionCall",
    shortname = "fncall",
    namespaced,
    status = "CallStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Function", type_ = "string", json_path = ".spec.function"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Code", type_ = "integer", json_path = ".status.code"),
    printcolumn(name = "Attempts", type_ = "integer", json_path = ".status.attempts"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self == oldSelf", "message": "a call cannot be changed"}
]))]
pub struct FunctionCallSpec {
    /// Name of the function, in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub function: String,
    /// Method of the request (`POST`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[A-Z]{1,16}$"))]
    pub method: Option<String>,
    /// Path and query behind the function's own (`/`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8192))]
    pub path: Option<String>,
    /// Tag of the revision that is called, where not the shares of traffic decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Headers of the request; several of one name are joined by commas.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Body of the request in base64, of at most 256 KiB before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 349_528))]
    pub body: Option<String>,
    /// URL that is told the result, instead of the function's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub callback: Option<String>,
    /// The call whose failure this one tells. It has no dead letter of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter_of: Option<String>,
}

/// How far a call is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CallState {
    /// It waits for its first or next try.
    #[default]
    Pending,
    /// Somebody holds its lease and waits for the answer.
    Running,
    /// It was answered.
    Succeeded,
    /// It failed for good.
    Failed,
}

/// What became of a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CallStatus {
    /// How far it is.
    #[serde(default)]
    pub state: CallState,
    /// How often it was tried.
    #[serde(default)]
    pub attempts: u32,
    /// When it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Time>,
    /// Who runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_holder: Option<String>,
    /// Until when nobody else may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_until: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// When it is forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// HTTP status of the last answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u16>,
    /// Headers of the last answer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Body of the last answer in base64, its first 256 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Whether the body was longer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// Why the last try failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The call that tells another function of the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<String>,
    /// The URL that is still to be told, or was not reached in the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<String>,
    /// How far that is: `Pending`, `Delivered`, or why it was given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback_state: Option<String>,
    /// How often that was tried.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub callback_attempts: u32,
    /// `Complete`, with reason `Succeeded` or `Failed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // What serde calls.
fn is_zero(n: &u32) -> bool {
    *n == 0
}
