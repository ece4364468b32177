//! How a Slurm cluster is reached, and what jobs there may be.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A Slurm cluster. It belongs to whoever runs this cluster, not to a namespace: its credentials are theirs.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "skiff.dev",
    version = "v1",
    kind = "HpcCluster",
    plural = "hpcclusters",
    shortname = "hpc",
    status = "HpcClusterStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Driver", type_ = "string", json_path = ".status.driver"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Queued", type_ = "integer", json_path = ".status.queued"),
    printcolumn(name = "Running", type_ = "integer", json_path = ".status.running"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "[has(self.local), has(self.ssh), has(self.rest)].filter(x, x).size() == 1",
     "message": "exactly one of local, ssh and rest must be given"},
    {"rule": "!has(self.files) || has(self.rest)", "message": "files is for rest only: local and ssh move files themselves"}
]))]
pub struct HpcClusterSpec {
    /// Slurm's commands on the machine that runs the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalAccess>,
    /// Slurm's commands on a login host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<SshAccess>,
    /// slurmrestd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<RestAccess>,
    /// How files are moved when jobs go through `rest`, which moves none. Without it jobs there have no sources, inputs or
    /// outputs; what they print is not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FilesAccess>,
    /// Namespaces whose jobs may run here. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 63)))]
    pub allowed_namespaces: Vec<String>,
    /// Directory on the Slurm cluster, on a file system that its nodes share, below which each job has one of its own.
    #[schemars(regex(pattern = r"^/[A-Za-z0-9_./@+=,-]{0,255}$"))]
    pub work_directory: String,
    /// What jobs get that do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<Defaults>,
    /// What jobs may ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// What a partition's owner asks beyond what Slurm itself enforces, such as cores for each GPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub partitions: Vec<PartitionRule>,
    /// Shell lines at the head of every script, such as what makes `module` known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 1024)))]
    pub prologue: Vec<String>,
    /// How often Slurm is asked about jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub polling: Option<Polling>,
    /// File of Slurm's completion plugin `jobcomp/filetxt`, where the account may read it: it remembers jobs that the controller
    /// of Slurm has forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^/[A-Za-z0-9_./@+=,-]{1,255}$"))]
    pub completion_log: Option<String>,
    /// Secret whose key `token` an epilog hook shows at `POST /hpc/NAME/done`. Without it there is no such door.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook_secret: Option<SecretRef>,
    /// Image of the pods that read sources in PersistentVolumeClaims (`busybox:1`): any with sh, tar, base64 and sha256sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub reader_image: Option<String>,
    /// How much of results is kept here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreLimits>,
}

/// Slurm's commands on this machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalAccess {
    /// Directory of the commands (looked up in `PATH`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^/[A-Za-z0-9_./@+=,-]{0,255}$"))]
    pub bin_directory: Option<String>,
    /// slurm.conf, where it is not at its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^/[A-Za-z0-9_./@+=,-]{1,255}$"))]
    pub conf: Option<String>,
    /// Account of this machine that commands run as (that of the controller). Needs a controller that runs as root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z_][a-z0-9_.-]{0,31}$"))]
    pub user: Option<String>,
}

/// Slurm's commands on a login host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SshAccess {
    /// Name or address of the host.
    #[schemars(regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9.:-]{0,252}[A-Za-z0-9])?$"))]
    pub host: String,
    /// Port (22).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Account there.
    #[schemars(regex(pattern = r"^[A-Za-z_][A-Za-z0-9_.@-]{0,63}$"))]
    pub user: String,
    /// Secret with `ssh-privatekey` (and `passphrase`), beside it `ssh-certificate` where the host wants one, or `password`.
    pub secret: SecretRef,
    /// The host's keys: lines of known_hosts, `@cert-authority` ones too, or fingerprints `SHA256:…`. No other key is believed.
    #[schemars(length(min = 1, max = 16), inner(length(min = 8, max = 2048)))]
    pub host_keys: Vec<String>,
    /// Directory of the commands there (looked up in `PATH`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^/[A-Za-z0-9_./@+=,-]{0,255}$"))]
    pub bin_directory: Option<String>,
    /// slurm.conf there, where it is not at its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^/[A-Za-z0-9_./@+=,-]{1,255}$"))]
    pub conf: Option<String>,
    /// Seconds between messages that keep the connection alive (60).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 5, max = 240))]
    pub keep_alive_seconds: Option<u32>,
    /// Channels at a time (2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 8))]
    pub channels: Option<u32>,
}

/// slurmrestd.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.url) != has(self.socket)", "message": "exactly one of url and socket must be given"},
    {"rule": "!has(self.url) || has(self.secret)", "message": "url needs a secret with the token"}
]))]
pub struct RestAccess {
    /// `http://HOST:PORT` or `https://HOST:PORT`. slurmrestd itself has no TLS: plain HTTP shows the token to the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[A-Za-z0-9.:\[\]-]{1,253}(/[A-Za-z0-9_./-]{0,128})?$"))]
    pub url: Option<String>,
    /// Unix socket on the machine that runs the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^/[A-Za-z0-9_./@+=,-]{1,100}$"))]
    pub socket: Option<String>,
    /// Account there.
    #[schemars(regex(pattern = r"^[A-Za-z_][A-Za-z0-9_.@-]{0,63}$"))]
    pub user: String,
    /// Secret with `token` (a JWT of Slurm), and `ca.crt` where the server's certificate needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretRef>,
    /// Version of the API, such as `v0.0.38` (the newest that both sides know).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^v0\.0\.[0-9]{2}$"))]
    pub version: Option<String>,
}

/// How files are moved beside slurmrestd.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.local) != has(self.ssh)", "message": "exactly one of local and ssh must be given"}
]))]
pub struct FilesAccess {
    /// The work directory is mounted on the machine that runs the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalAccess>,
    /// A host for transfers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<SshAccess>,
}

/// A Secret.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What jobs get that do not say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Defaults {
    /// Partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.,-]{0,127}$"))]
    pub partition: Option<String>,
    /// Account that is charged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"))]
    pub account: Option<String>,
    /// Quality of service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"))]
    pub qos: Option<String>,
    /// Time limit, in Slurm's forms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]{1,4}-)?[0-9]{1,6}(:[0-9]{1,2}){0,2}$"))]
    pub time: Option<String>,
    /// Modules, before the job's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.+/@:-]{0,127}$")))]
    pub modules: Vec<String>,
}

/// What jobs may ask for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Jobs in Slurm at a time; further ones wait here (1000).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub jobs: Option<u32>,
    /// Submissions a second (50).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub submissions_per_second: Option<u32>,
    /// Nodes of one job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u32>,
    /// GPUs of one job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    /// Time of one job, in Slurm's forms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]{1,4}-)?[0-9]{1,6}(:[0-9]{1,2}){0,2}$"))]
    pub time: Option<String>,
    /// Options of sbatch that `extraOptions` of a job may have, such as `--nice`. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 3, max = 64)))]
    pub extra_options: Vec<String>,
}

/// What a partition's owner asks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PartitionRule {
    /// Name of the partition in Slurm.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// Most cores for each GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub cpus_per_gpu: Option<u32>,
    /// Most GPUs of one job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    /// Fewest GPUs of one job: of 1, jobs without GPUs are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_gpus: Option<u32>,
    /// Most memory for each core in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_per_cpu_mib: Option<u64>,
}

/// How often Slurm is asked. It is asked once for all jobs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Polling {
    /// Milliseconds between questions soon after a submission and near an end (800).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 600_000))]
    pub fast_milliseconds: Option<u32>,
    /// Seconds between questions when nothing is expected (30).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub slow_seconds: Option<u32>,
    /// Seconds between looks at partitions and nodes (60).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub catalogue_seconds: Option<u32>,
    /// Seconds that a job which Slurm does not know any more is looked for before its outcome is called unknown (600).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub retention_seconds: Option<u32>,
}

/// How much of results is kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreLimits {
    /// Bytes of one job's results (10 GiB).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub job_bytes: Option<i64>,
    /// Files of one job's results (10,000).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub job_files: Option<u32>,
}

/// What is known of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HpcClusterStatus {
    /// The generation of the spec this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Reachable`, `FilesReachable`, `CredentialExpiring`, `AccountingAvailable`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// `local`, `ssh`, `rest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Version of Slurm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Version of slurmrestd's API in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// Slurm's own name of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_name: Option<String>,
    /// Jobs that wait in the queue, of everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued: Option<i64>,
    /// Jobs that run, of everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<i64>,
    /// GpuJobs that are in Slurm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jobs: Option<i64>,
    /// When the credential ends: of an SSH certificate or a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_expires: Option<Time>,
    /// When it last answered; written with changes, and every few minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Time>,
}
