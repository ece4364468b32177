//! The custom resources of the HPC room, group `skiff.dev`, version `v1`: the types are the schema, with bounds and CEL rules.
//!
//! [`HpcCluster`] says how a Slurm cluster is reached, [`SlurmPartition`] what it has, [`GpuJob`] what somebody wants to run
//! there. Every string that reaches a script or a command has a pattern here and is quoted there too: two walls.

// A false alarm: every `printcolumn` has a `type_` and a `json_path`.
#![allow(clippy::duplicated_attributes)]

mod cluster;
mod job;
mod partition;
mod source;
mod status;

use kube::api::DynamicObject;

pub use cluster::{
    Defaults, FilesAccess, HpcCluster, HpcClusterSpec, HpcClusterStatus, Limits, LocalAccess, PartitionRule, Polling,
    RestAccess, SecretRef, SshAccess, StoreLimits,
};
pub use job::{
    Array, Build, BuildPlace, Dependency, DependencyType, EnvVar, EnvVarSource, GpuJob, GpuJobSpec, GpuRequest,
    GpuScope, Launcher, Make, Nvcc, Resources, Retries, Run, SignalBefore,
};
pub use partition::{Counts, GpuCounts, SlurmPartition, SlurmPartitionSpec, SlurmPartitionStatus};
pub use source::{Archive, Input, KeyRef, NameRef, RemoteSource, Source, VolumeSource};
pub use status::{
    Class, Decider, GpuJobStatus, Identity, Intent, Outputs, Phase, TaskCounts, Times, Transfer, Waiting, condition,
};

/// Group of the custom resources.
pub const GROUP: &str = "skiff.dev";
/// Finalizer of jobs: what was submitted is cancelled, and that is seen, before the object goes.
pub const FINALIZER: &str = "skiff.dev/slurm";
/// Label of partitions: the name of their cluster.
pub const CLUSTER: &str = "skiff.dev/hpc-cluster";
/// Annotation of a job: a new value lets a job that is held, or waits for its next try, go at once.
pub const RELEASE: &str = "skiff.dev/release";

/// The definitions, for whoever installs them: definitions.json, which a test makes from the types here.
#[must_use]
pub fn definitions() -> Vec<DynamicObject> {
    skiff_controllers::runtime::definitions::read(include_str!("../../definitions.json"))
}
