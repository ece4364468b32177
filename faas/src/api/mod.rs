//! The custom resources of group `skiff.dev`, version `v1`: the types are the schema, with defaults and CEL rules.

// A false alarm: every `printcolumn` has a `type_` and a `json_path`.
#![allow(clippy::duplicated_attributes)]

mod call;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, LocalObjectReference, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::CustomResource;
use kube::api::DynamicObject;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use call::{CallState, CallStatus, FunctionCall, FunctionCallSpec};

/// Group of the custom resources.
pub const GROUP: &str = "skiff.dev";
/// Label of everything that belongs to a function: its name.
pub const FUNCTION: &str = "skiff.dev/function";
/// Label of pods, instances and events: the name of the revision.
pub const REVISION: &str = "skiff.dev/revision";

/// A function: code, how it is run, how it is scaled, what calls it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "skiff.dev",
    version = "v1",
    kind = "Function",
    shortname = "fn",
    category = "all",
    namespaced,
    status = "FunctionStatus",
    derive = "PartialEq",
    derive = "Default",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.instances",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Url", type_ = "string", json_path = ".status.url"),
    printcolumn(name = "Instances", type_ = "integer", json_path = ".status.instances"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Revision", type_ = "string", json_path = ".status.latestReadyRevision"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "!has(self.traffic) || self.traffic.size() == 0 || self.traffic.map(t, t.percent).sum() == 100",
     "message": "the percents of traffic must add up to 100"},
    {"rule": "!has(self.scale) || !has(self.scale.max) || self.scale.max == 0 || !has(self.scale.min) || self.scale.min <= self.scale.max",
     "message": "scale.min must not be above scale.max"},
    {"rule": "has(self.source.image) || !has(self.runtime) || self.runtime != 'http' || has(self.command)",
     "message": "runtime http needs a command, or an image"}
]))]
pub struct FunctionSpec {
    /// What makes a revision: any change of it makes a new one.
    #[serde(flatten)]
    pub code: Code,
    /// How many instances there are while `scale.metric` is `replicas`; otherwise requests decide and this says nothing. It is
    /// what the `scale` subresource, and so a HorizontalPodAutoscaler, writes.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 10_000))]
    pub replicas: i32,
    /// How many instances there are, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<Scale>,
    /// Shares of the requests that go to revisions. Empty: all to the latest ready one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<Share>,
    /// Whether anybody who reaches the gateway may call it. Otherwise callers need the right to `create`
    /// `functions/invoke` of this function.
    #[serde(default)]
    pub public: bool,
    /// Host names that reach it through the cluster's ingress, beside `NAME.NAMESPACE` inside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub hosts: Vec<String>,
    /// What calls it beside HTTP requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub triggers: Vec<Trigger>,
    /// What becomes of asynchronous calls and of calls by triggers.
    #[serde(default, rename = "async", skip_serializing_if = "Option::is_none")]
    pub asynchronous: Option<Asynchronous>,
    /// How many old revisions are kept beside those with traffic (10).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub revision_history_limit: Option<i32>,
}

fn one() -> i32 {
    1
}

/// What an instance of a function is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Code {
    /// Where the code is.
    pub source: Source,
    /// `python`, `node`, or `http`: any executable or image that answers HTTP on `$PORT`. Without it: `http` for an image,
    /// otherwise `python`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$"))]
    pub runtime: Option<String>,
    /// The function in the code, `FILE.NAME` or `NAME` (`main`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub handler: Option<String>,
    /// Program and arguments of runtime `http`, relative to the source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// A pod per instance, or a process forked from a warm parent. Without it the runtime decides: `process` for python
    /// and node where the node can, otherwise `container`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Environment of the code.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// ConfigMaps and Secrets whose keys become environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_from: Vec<EnvFromSource>,
    /// Limits and requests of one instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Seconds an answer may take (300).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub timeout_seconds: Option<u32>,
    /// Requests that one instance is given at a time; 0 is no limit. Without it: 1 for class `process`, 0 for `container`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub concurrency: Option<u32>,
    /// Bytes that a request's body may have (16 MiB).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_request_bytes: Option<i64>,
    /// Bytes that an answer may have (64 MiB); a longer one is cut and the call counts as failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_response_bytes: Option<i64>,
    /// Labels of the nodes that may run it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Secrets of its namespace with passwords of registries, for images of class `container`, beside those of its ServiceAccount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// ServiceAccount whose token instances get. Without it they get none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
}

/// Where code is: exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "[has(self.inline), has(self.configMap), has(self.archive), has(self.image)].filter(x, x).size() == 1",
     "message": "exactly one of inline, configMap, archive and image must be given"}
]))]
pub struct Source {
    /// One file of code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 262_144))]
    pub inline: Option<String>,
    /// A ConfigMap of this namespace: each key is a file. A change of it is a new revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapSource>,
    /// An uploaded directory (`kubectl func add -p`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Archive>,
    /// An image that answers HTTP on `$PORT` (8080).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub image: Option<String>,
}

/// A ConfigMap with code.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapSource {
    /// Its name.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// An uploaded directory: a gzipped tar in the `binaryData` of ConfigMaps `NAME-0`, `NAME-1`, … under the key `data`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Archive {
    /// Name of the ConfigMaps, without their numbers.
    #[schemars(length(min = 1))]
    pub name: String,
    /// How many there are.
    #[schemars(range(min = 1, max = 64))]
    pub parts: u32,
    /// SHA-256 of the whole, in hexadecimal.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub sha256: String,
}

/// The class of a function's instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// A pod per instance.
    Container,
    /// A process in a sandbox of its own, forked from a warm parent.
    Process,
}

/// When there are how many instances: Knative's knobs, with its defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scale {
    /// At least so many (0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub min: Option<u32>,
    /// At most so many; 0 is no limit (0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub max: Option<u32>,
    /// So many when a revision is new (1): whether its code can be started is known before somebody calls it. With 0 its first
    /// request shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub initial: Option<u32>,
    /// What is counted (`concurrency`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// Requests in flight (100), or requests a second (200), per instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.01))]
    pub target: Option<f64>,
    /// Share of the target that is aimed at, in percent (70).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub target_utilization_percent: Option<u32>,
    /// Seconds over which is averaged (60).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 6, max = 3600))]
    pub window_seconds: Option<u32>,
    /// The short window, in percent of the long one (10).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub panic_window_percent: Option<u32>,
    /// How far above what is ready the short window must ask for panic, in percent (200).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 110, max = 1000))]
    pub panic_threshold_percent: Option<u32>,
    /// At most so many times as many in one decision (1000).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.01))]
    pub max_scale_up_rate: Option<f64>,
    /// At most so many times fewer in one decision (2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.01))]
    pub max_scale_down_rate: Option<f64>,
    /// Seconds that a lower decision must hold (0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub scale_down_delay_seconds: Option<u32>,
    /// Seconds that the last instance stays after the windows are empty (30).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86_400))]
    pub scale_to_zero_grace_seconds: Option<u32>,
}

/// What scaling counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Requests in flight.
    #[default]
    Concurrency,
    /// Requests a second.
    Rps,
    /// Nothing: there are `spec.replicas` instances. With 0 it sleeps, and a request still wakes one.
    Replicas,
}

/// A share of the requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// Name of the revision; without it the latest ready one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Percent of the requests.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub percent: u32,
    /// Requests with the header `Skiff-Tag: TAG`, or for the host `TAG-NAME.NAMESPACE`, go here, whatever the percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?$"))]
    pub tag: Option<String>,
}

/// What calls a function: exactly one of `cron`, `watch` and `files`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "[has(self.cron), has(self.watch), has(self.files), has(self.event)].filter(x, x).size() == 1",
     "message": "exactly one of cron, watch, files and event must be given"}
]))]
pub struct Trigger {
    /// Its name, one of its kind in the function.
    #[schemars(regex(pattern = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"))]
    pub name: String,
    /// By time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<Cron>,
    /// By changes of objects of the API. The function's owner must be allowed to watch them: `serviceAccountName` is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<Watch>,
    /// By changes of files on the nodes of class `process`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Files>,
    /// By CloudEvents that are published in the namespace: those that fit in all that is named, so `{}` takes every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<EventFilter>,
}

/// Calls by time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cron {
    /// Five fields, as of CronJobs.
    #[schemars(length(min = 1))]
    pub schedule: String,
    /// Time zone (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Body of the calls, JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

/// Calls by changes of objects.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Watch {
    /// As in manifests: `v1`, `apps/v1`.
    #[schemars(length(min = 1))]
    pub api_version: String,
    /// As in manifests.
    #[schemars(length(min = 1))]
    pub kind: String,
    /// Of the function's own namespace, or of another where the ServiceAccount may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Which objects (all).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// `ADDED`, `MODIFIED`, `DELETED` (all of them).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<String>,
}

/// Calls by CloudEvents. Values are compared as they are; one that ends with `*` fits what begins so.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventFilter {
    /// Attribute `type`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub type_: Option<String>,
    /// Attribute `source`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub source: Option<String>,
    /// Attribute `subject`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub subject: Option<String>,
    /// Extension attributes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extensions: BTreeMap<String, String>,
}

/// Calls by changes of files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Files {
    /// File or directory, below the directory that the node's owner allows.
    #[schemars(length(min = 1))]
    pub path: String,
}

/// What becomes of calls nobody waits for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Asynchronous {
    /// How often a failed call is tried again (3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub retries: Option<u32>,
    /// First pause between tries in seconds, doubled each time (1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub backoff_seconds: Option<u32>,
    /// Function of the same namespace that gets calls that failed for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<String>,
    /// URL that is told the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<String>,
    /// Seconds a result is kept (3600).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub retention_seconds: Option<u32>,
}

/// What is known of a function.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FunctionStatus {
    /// The generation of the spec this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `BuildSucceeded`, `Healthy`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Where it answers inside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// How many instances can answer.
    #[serde(default)]
    pub instances: i32,
    /// How many of them are on which node, by the node's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<OnNode>,
    /// `Building`, `Hibernated`, `Waking`, `Running`, `Failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The newest revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_revision: Option<String>,
    /// The newest that was ever ready: it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_ready_revision: Option<String>,
    /// Selector of its pods, for the `scale` subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// How far each trigger is, by name. The triggers' own part of the status: write it with a merge patch only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub triggers: BTreeMap<String, TriggerStatus>,
}

/// One version of a function's code; never changed.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "skiff.dev",
    version = "v1",
    kind = "FunctionRevision",
    shortname = "fnrev",
    namespaced,
    status = "RevisionStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Function", type_ = "string", json_path = ".spec.function"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Class", type_ = "string", json_path = ".status.class"),
    printcolumn(name = "Instances", type_ = "integer", json_path = ".status.instances"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self == oldSelf", "message": "a revision cannot be changed: change the function"}
]))]
pub struct FunctionRevisionSpec {
    /// Name of the function.
    pub function: String,
    /// Its number, rising from 1.
    pub number: i64,
    /// Generation of the function it was made from.
    pub generation: i64,
    /// The code.
    pub code: Code,
    /// SHA-256 of everything that the code is, also of ConfigMaps' contents at that time.
    pub digest: String,
}

/// What is known of a revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionStatus {
    /// `Ready`, `BuildSucceeded`, with the last lines of the log when they are not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The class that runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Isolation>,
    /// The image that was built or named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// How many of its instances can answer.
    #[serde(default)]
    pub instances: i32,
    /// How many of them are on which node, by the node's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<OnNode>,
}

/// Instances on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OnNode {
    /// Name of the node.
    pub name: String,
    /// How many can answer there.
    pub instances: i32,
}

/// A process that runs a revision: the record of class `process`, as a Pod is of class `container`.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "skiff.dev",
    version = "v1",
    kind = "FunctionInstance",
    shortname = "fni",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Function", type_ = "string", json_path = ".spec.function"),
    printcolumn(name = "Revision", type_ = "string", json_path = ".spec.revision"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "State", type_ = "string", json_path = ".spec.state"),
    printcolumn(name = "Started", type_ = "date", json_path = ".spec.readyAt")
)]
#[serde(rename_all = "camelCase")]
pub struct FunctionInstanceSpec {
    /// Name of the function.
    pub function: String,
    /// Name of the revision.
    pub revision: String,
    /// The node it runs on.
    pub node: String,
    /// `Running`, `Failed`.
    pub state: String,
    /// When it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_at: Option<Time>,
    /// When it could answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<Time>,
}

/// How far a trigger is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TriggerStatus {
    /// Since when it is looked after: what was before is none of its business.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// When it last called: for `cron` the time that was planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_time: Option<Time>,
    /// Up to which version objects were told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Why it does not call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The definitions, for whoever installs them: definitions.json, which a test makes from the types here.
#[must_use]
pub fn definitions() -> Vec<DynamicObject> {
    skiff_controllers::runtime::definitions::read(include_str!("../../definitions.json"))
}
