//! What a partition of a Slurm cluster has, as the controller saw it last.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A partition of a Slurm cluster. The controller makes, updates and deletes it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "skiff.dev",
    version = "v1",
    kind = "SlurmPartition",
    plural = "slurmpartitions",
    shortname = "slp",
    status = "SlurmPartitionStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.cluster"),
    printcolumn(name = "Partition", type_ = "string", json_path = ".spec.partition"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.total"),
    printcolumn(name = "Idle", type_ = "integer", json_path = ".status.nodes.free"),
    printcolumn(name = "GPUs", type_ = "string", json_path = ".status.gpuSummary"),
    printcolumn(name = "Time-Limit", type_ = "string", json_path = ".status.maxTime"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SlurmPartitionSpec {
    /// The HpcCluster.
    pub cluster: String,
    /// Its name in Slurm.
    pub partition: String,
}

/// What it has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlurmPartitionStatus {
    /// `UP`, `DOWN`, `DRAIN`, `INACTIVE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Whether jobs without a partition come here.
    #[serde(default)]
    pub default: bool,
    /// Longest time of a job, in Slurm's form; `UNLIMITED` when there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_time: Option<String>,
    /// Time of a job that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_time: Option<String>,
    /// Fewest nodes of a job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_nodes: Option<u64>,
    /// Most nodes of a job; absent when there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_nodes: Option<u64>,
    /// Most cores of a job on one node; absent when there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cpus_per_node: Option<u64>,
    /// Nodes: `free` are idle.
    #[serde(default)]
    pub nodes: Counts,
    /// Cores.
    #[serde(default)]
    pub cpus: Counts,
    /// Most cores of any node.
    #[serde(default)]
    pub node_cpus: u64,
    /// Most memory of any node in MiB.
    #[serde(default)]
    pub node_memory_mib: u64,
    /// GPUs by type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuCounts>,
    /// GPUs for people: `a100 3/8` is three free of eight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_summary: Option<String>,
    /// Features that `constraint` may name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// When this last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated: Option<Time>,
}

/// How many there are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// All.
    #[serde(default)]
    pub total: u64,
    /// Those a job could have now.
    #[serde(default)]
    pub free: u64,
    /// Those that are down, drained or do not answer.
    #[serde(default)]
    pub down: u64,
}

/// GPUs of one type.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuCounts {
    /// Type in Slurm; empty where the site names none.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// All.
    #[serde(default)]
    pub total: u64,
    /// Those a job could have now.
    #[serde(default)]
    pub free: u64,
    /// Most on one node.
    #[serde(default)]
    pub per_node: u64,
}
