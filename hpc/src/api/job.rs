//! A job: what is run, with what, and what comes back.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::source::{Input, KeyRef, Source, VolumeSource};
use super::status::GpuJobStatus;

/// A job on a Slurm cluster, with GPUs or without. What is run does not change after its creation; `suspend`,
/// `ttlSecondsAfterFinished`, `retries` and `outputs` may.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "skiff.dev",
    version = "v1",
    kind = "GpuJob",
    plural = "gpujobs",
    shortname = "gj",
    category = "all",
    namespaced,
    status = "GpuJobStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".status.cluster"),
    printcolumn(name = "Job-Id", type_ = "string", json_path = ".status.jobId"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Slurm", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Exit", type_ = "integer", json_path = ".status.exitCode"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodeList", priority = 1),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".status.attempt", priority = 1),
    printcolumn(name = "Queued", type_ = "integer", json_path = ".status.waiting.queuedSeconds", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.run == oldSelf.run", "message": "run of a job cannot be changed: make another job"},
    {"rule": "has(self.cluster) == has(oldSelf.cluster) && (!has(self.cluster) || self.cluster == oldSelf.cluster)",
     "message": "cluster of a job cannot be changed: make another job"},
    {"rule": "has(self.source) == has(oldSelf.source) && (!has(self.source) || self.source == oldSelf.source)",
     "message": "source of a job cannot be changed: make another job"},
    {"rule": "has(self.build) == has(oldSelf.build) && (!has(self.build) || self.build == oldSelf.build)",
     "message": "build of a job cannot be changed: make another job"},
    {"rule": "has(self.resources) == has(oldSelf.resources) && (!has(self.resources) || self.resources == oldSelf.resources)",
     "message": "resources of a job cannot be changed: make another job"}
]))]
pub struct GpuJobSpec {
    /// The HpcCluster (the only one there is).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub cluster: Option<String>,
    /// Files that the job starts with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Further files, beside or over those of the source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub inputs: Vec<Input>,
    /// What is done once before it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// What runs.
    pub run: Run,
    /// What it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Modules to load, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.+/@:-]{0,127}$")))]
    pub modules: Vec<String>,
    /// Environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    pub env: Vec<EnvVar>,
    /// What the program reads from standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1_048_576))]
    pub stdin: Option<String>,
    /// Files to bring back: paths in the job's directory, `*` and `?` do not cross `/`, `**` does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(min = 1, max = 512)))]
    pub outputs: Vec<String>,
    /// A PersistentVolumeClaim of this namespace that results are put into as well, by a pod; the job has not ended before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results_volume: Option<VolumeSource>,
    /// File for standard output in the job's directory, as in `%j.out` (`%j`, `%A`, `%a`, `%x`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([A-Za-z0-9_.@+=,-]|%[jAax]){1,128}$"))]
    pub output_file: Option<String>,
    /// File for standard error in the job's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([A-Za-z0-9_.@+=,-]|%[jAax]){1,128}$"))]
    pub error_file: Option<String>,
    /// Jobs of this namespace it comes after.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub dependencies: Vec<Dependency>,
    /// How often it is tried again, by what ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// Not submitted while this is set; held while it waits in the queue. What runs is not stopped.
    #[serde(default)]
    pub suspend: bool,
    /// Seconds after its end when the object, its results and its directory go. Without it: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub ttl_seconds_after_finished: Option<u32>,
    /// Whether the job's directory on the Slurm cluster stays when the object goes.
    #[serde(default)]
    pub keep_directory: bool,
}

/// What is done once before a job runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Build {
    /// `Compute` (in the job, on its first node) or `Login` (before submission, where the commands of Slurm run).
    #[serde(default, rename = "where")]
    pub place: BuildPlace,
    /// Modules for the build only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.+/@:-]{0,127}$")))]
    pub modules: Vec<String>,
    /// nvcc, first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvcc: Option<Nvcc>,
    /// make, next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub make: Option<Make>,
    /// Shell commands, last; each must succeed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 16_384)))]
    pub commands: Vec<String>,
    /// Seconds a build on the login side may take (600).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub timeout_seconds: Option<u32>,
}

/// Where a build happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BuildPlace {
    /// In the job.
    #[default]
    Compute,
    /// Before submission.
    Login,
}

/// A call of nvcc.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Nvcc {
    /// Source files.
    #[schemars(length(min = 1, max = 128), inner(length(min = 1, max = 255)))]
    pub sources: Vec<String>,
    /// The program.
    #[schemars(length(min = 1, max = 255))]
    pub output: String,
    /// Flags, one each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(min = 1, max = 1024)))]
    pub flags: Vec<String>,
    /// The compiler (`nvcc`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub compiler: Option<String>,
}

/// A call of make.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Make {
    /// Directory (the job's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub directory: Option<String>,
    /// Targets and variables, one each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 1024)))]
    pub targets: Vec<String>,
}

/// What runs: a command, or a script.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.command) != has(self.script)", "message": "exactly one of command and script must be given"},
    {"rule": "!has(self.args) || has(self.command)", "message": "args needs command"}
]))]
pub struct Run {
    /// Program and arguments; no shell reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(max = 131_072)))]
    pub command: Vec<String>,
    /// More arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(max = 131_072)))]
    pub args: Vec<String>,
    /// Lines of bash. They run in a shell of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1_048_576))]
    pub script: Option<String>,
    /// What starts `command`: `None` once on the first node, `Srun` as every task. A script starts its own.
    #[serde(default)]
    pub launcher: Launcher,
}

/// What starts a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Launcher {
    /// Nothing: it runs once.
    #[default]
    None,
    /// srun: it runs as every task.
    Srun,
}

/// What a job runs on: the options of sbatch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "[has(self.memory), has(self.memoryPerCpu), has(self.memoryPerGpu)].filter(x, x).size() <= 1",
     "message": "at most one of memory, memoryPerCpu and memoryPerGpu may be given"},
    {"rule": "!has(self.cpusPerTask) || !has(self.cpusPerGpu)",
     "message": "at most one of cpusPerTask and cpusPerGpu may be given"},
    {"rule": "!has(self.nodes) || !has(self.maxNodes) || self.nodes <= self.maxNodes",
     "message": "nodes must not be above maxNodes"}
]))]
pub struct Resources {
    /// Partition, or several with commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.,-]{0,127}$"))]
    pub partition: Option<String>,
    /// Nodes, or the fewest of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub nodes: Option<u32>,
    /// The most nodes, where fewer do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_nodes: Option<u32>,
    /// Tasks of the whole job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub tasks: Option<u32>,
    /// Tasks on each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub tasks_per_node: Option<u32>,
    /// Cores for each task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub cpus_per_task: Option<u32>,
    /// Cores for each GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub cpus_per_gpu: Option<u32>,
    /// Memory of each node, as `16G`; `0` is all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{1,12}[KMGT]?$"))]
    pub memory: Option<String>,
    /// Memory for each core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{1,12}[KMGT]?$"))]
    pub memory_per_cpu: Option<String>,
    /// Memory for each GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{1,12}[KMGT]?$"))]
    pub memory_per_gpu: Option<String>,
    /// GPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub gpus: Vec<GpuRequest>,
    /// Other generic resources, as `shard:2` or `license:matlab:1`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(regex(pattern = r"^[A-Za-z0-9_.-]{1,64}(:[A-Za-z0-9_.-]{1,64}){0,2}$")))]
    pub gres: Vec<String>,
    /// Time limit in Slurm's forms: minutes, `HH:MM:SS`, `D-HH`, `D-HH:MM:SS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]{1,4}-)?[0-9]{1,6}(:[0-9]{1,2}){0,2}$"))]
    pub time: Option<String>,
    /// Quality of service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"))]
    pub qos: Option<String>,
    /// Account that is charged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"))]
    pub account: Option<String>,
    /// Features of nodes, with `&`, `|`, and brackets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_.&|*()\[\]=:,-]{1,256}$"))]
    pub constraint: Option<String>,
    /// Reservation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.,-]{0,127}$"))]
    pub reservation: Option<String>,
    /// Nodes it must have, in Slurm's form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_.,\[\]-]{1,512}$"))]
    pub node_list: Option<String>,
    /// Nodes it must not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_.,\[\]-]{1,512}$"))]
    pub exclude: Option<String>,
    /// Whether it has its nodes for itself.
    #[serde(default)]
    pub exclusive: bool,
    /// The same job many times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub array: Option<Array>,
    /// A signal some time before the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<SignalBefore>,
    /// Whether Slurm itself may start it again after a node was lost or it had to make room (the site's default).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requeue: Option<bool>,
    /// Any other options of sbatch, one each, as `--nice=100`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(regex(pattern = r"^--[a-z][a-z0-9-]{1,40}(=[A-Za-z0-9_.:,/@%+=*&|()\[\]-]{1,256})?$"))
    )]
    pub extra_options: Vec<String>,
}

/// GPUs of a type.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuRequest {
    /// Type in Slurm (any).
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_.-]{1,64}$"))]
    pub kind: Option<String>,
    /// How many.
    #[schemars(range(min = 1, max = 100_000))]
    pub count: u32,
    /// For what: each `Node` (as `--gres` and `--gpus-per-node`), the `Job`, each `Task`, each `Socket`.
    #[serde(default)]
    pub per: GpuScope,
}

/// For what GPUs are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum GpuScope {
    /// Each node: `--gres=gpu:…`, which every version and site understands.
    #[default]
    Node,
    /// The job: `--gpus`.
    Job,
    /// Each task: `--gpus-per-task`.
    Task,
    /// Each socket: `--gpus-per-socket`.
    Socket,
}

/// The same job many times; `SLURM_ARRAY_TASK_ID` says which.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Array {
    /// Numbers, as `0-15`, `1-9:2`, `1,5,7`.
    #[schemars(regex(
        pattern = r"^[0-9]{1,7}(-[0-9]{1,7}(:[0-9]{1,7})?)?(,[0-9]{1,7}(-[0-9]{1,7}(:[0-9]{1,7})?)?){0,63}$"
    ))]
    pub tasks: String,
    /// So many run at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub limit: Option<u32>,
}

/// A signal before the limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SignalBefore {
    /// Its name without `SIG`, or its number.
    #[schemars(regex(pattern = r"^[A-Z0-9]{1,8}$"))]
    pub name: String,
    /// Seconds before the limit (60).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub seconds: Option<u32>,
    /// Whether it goes to all steps instead of the script. The script passes it on to what it runs.
    #[serde(default)]
    pub steps: bool,
}

/// Jobs it comes after.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.type == 'Singleton' ? (!has(self.job)) : has(self.job)",
     "message": "job must be given, but for Singleton"}
]))]
pub struct Dependency {
    /// What must have happened.
    #[serde(default, rename = "type")]
    pub kind: DependencyType,
    /// Name of a GpuJob of this namespace on the same cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub job: Option<String>,
}

/// What must have happened to the other job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DependencyType {
    /// It began.
    After,
    /// It ended.
    AfterAny,
    /// It succeeded.
    #[default]
    AfterOk,
    /// It failed.
    AfterNotOk,
    /// The task of the same number succeeded (both are arrays).
    AfterCorr,
    /// No other job of this namespace with this name of `metadata.labels['skiff.dev/singleton']`, or else with this object's name,
    /// is in the queue.
    Singleton,
}

/// How often a job is tried again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retries {
    /// After lost nodes, failed boots and launches, preemption (3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub infrastructure: Option<u32>,
    /// After its own failures: exit code, signal, time, memory (0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub user: Option<u32>,
    /// When nobody knows how it ended (0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub unknown: Option<u32>,
    /// First pause in seconds; it doubles, up to an hour (10).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub backoff_seconds: Option<u32>,
    /// Exit codes after which it is not tried again, whatever `user` says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 0, max = 255)))]
    pub never_exit_codes: Vec<i32>,
}

/// A variable.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "!(has(self.value) && has(self.valueFrom))", "message": "at most one of value and valueFrom may be given"}
]))]
pub struct EnvVar {
    /// Its name.
    #[schemars(regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"))]
    pub name: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 131_072))]
    pub value: Option<String>,
    /// Where its value is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<EnvVarSource>,
}

/// Where a value is. It goes into a file for its owner only, never into the script.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.configMapKeyRef) != has(self.secretKeyRef)",
     "message": "exactly one of configMapKeyRef and secretKeyRef must be given"}
]))]
pub struct EnvVarSource {
    /// A key of a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyRef>,
    /// A key of a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeyRef>,
}
