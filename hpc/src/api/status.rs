//! What is known of a job.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Types of conditions of jobs.
pub mod condition {
    /// Slurm has it.
    pub const SUBMITTED: &str = "Submitted";
    /// It has nodes.
    pub const ALLOCATED: &str = "Allocated";
    /// It runs.
    pub const RUNNING: &str = "Running";
    /// It succeeded, and its outputs are here.
    pub const COMPLETE: &str = "Complete";
    /// It failed for good.
    pub const FAILED: &str = "Failed";
    /// It is going to fail; what must happen first is under way.
    pub const FAILURE_TARGET: &str = "FailureTarget";
    /// It does not go on until somebody lets it.
    pub const SUSPENDED: &str = "Suspended";
    /// It does not start, or never can, as it is; the message says which limit.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// An attempt ended by something that was not its own.
    pub const DISRUPTION_TARGET: &str = "DisruptionTarget";
    /// What Slurm says is not understood, or it says nothing.
    pub const UNKNOWN: &str = "Unknown";
    /// It succeeded although one of its steps did not.
    pub const STEP_FAILED: &str = "StepFailed";
    /// Its outputs are here.
    pub const OUTPUTS_READY: &str = "OutputsReady";
    /// Its files are at the cluster.
    pub const STAGED: &str = "Staged";
}

/// What is known of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuJobStatus {
    /// The generation of the spec this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it is on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Those of [`condition`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The HpcCluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Its directory on the Slurm cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// The number of the attempt, from 1.
    #[serde(default)]
    pub attempt: u32,
    /// Written before each submission, so that nobody submits a second time without having looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<Intent>,
    /// What Slurm took of this attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// The id of the job in Slurm; of an array its own, tasks are `ID_N`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    /// Slurm's own word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Slurm's flags beside it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Slurm's reason, or ours where Slurm has not been asked yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Which source said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<Decider>,
    /// How it ended; 128 + the signal where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The highest exit code of its steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derived_exit_code: Option<i32>,
    /// Why it ended or may not start, as a class for retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// The nodes it has or had, in Slurm's form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_list: Option<String>,
    /// The partition it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// Tasks of an array.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<TaskCounts>,
    /// When what happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<Times>,
    /// What it waited for, and how long it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// How often Slurm started it again.
    #[serde(default)]
    pub restarts: u32,
    /// Retries so far after failures of the infrastructure.
    #[serde(default)]
    pub infrastructure_retries: u32,
    /// Retries so far after its own failures.
    #[serde(default)]
    pub user_retries: u32,
    /// Retries so far after unknown outcomes.
    #[serde(default)]
    pub unknown_retries: u32,
    /// When the next attempt may begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
    /// When Slurm was first asked about it without knowing it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_since: Option<Time>,
    /// Results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<Outputs>,
    /// The value of the annotation [`super::RELEASE`] that was heeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<String>,
}

/// Where a job is on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Not in Slurm yet.
    #[default]
    Pending,
    /// Its files are on their way to the cluster, or it is being built there.
    Staging,
    /// In Slurm's queue.
    Queued,
    /// Does not go on until somebody lets it.
    Suspended,
    /// Has nodes, which are being made ready.
    Starting,
    /// Runs.
    Running,
    /// Has ended; Slurm is cleaning up, or its outputs are on their way.
    Finishing,
    /// Has succeeded, and its outputs are here.
    Succeeded,
    /// Has failed for good.
    Failed,
}

impl Phase {
    /// Whether nothing will change any more.
    #[must_use]
    pub fn ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Staging => "Staging",
            Self::Queued => "Queued",
            Self::Suspended => "Suspended",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Finishing => "Finishing",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// Which source said how a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Decider {
    /// The bulk query of the queue.
    Queue,
    /// A question about this job.
    Controller,
    /// The file that its script writes at its end.
    Marker,
    /// The epilog hook.
    Push,
    /// slurmdbd.
    Accounting,
    /// The file of the completion plugin.
    CompletionLog,
    /// Our own decision: Slurm never had it, or was not asked.
    Skiff,
}

/// Why an attempt ended, as a class for retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Class {
    /// Not its fault: try again.
    Infrastructure,
    /// Its own failure: try again where the job says so.
    User,
    /// It would be the same again.
    Never,
    /// Nobody knows how it ended.
    Unknown,
}

/// What is about to be submitted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// The attempt.
    pub attempt: u32,
    /// The job's name in Slurm: `skiff-UID-ATTEMPT`. Nobody else uses it.
    pub name: String,
    /// SHA-256 of the script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<MicroTime>,
    /// Whether a submission may have been sent. From then on Slurm is asked for the name before anything is sent.
    #[serde(default)]
    pub sent: bool,
}

/// What makes a job in Slurm this one: ids are used again after a reset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Slurm's name of its cluster, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The job's id.
    pub job_id: u64,
    /// Its name.
    pub name: String,
    /// When Slurm took it, in seconds since 1970, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submit_time: Option<i64>,
    /// Whether it was found by its name after an answer was lost.
    #[serde(default)]
    pub adopted: bool,
}

/// Tasks of an array.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskCounts {
    /// All.
    #[serde(default)]
    pub total: u32,
    /// Waiting.
    #[serde(default)]
    pub pending: u32,
    /// Running, or about to.
    #[serde(default)]
    pub running: u32,
    /// Succeeded.
    #[serde(default)]
    pub succeeded: u32,
    /// Failed.
    #[serde(default)]
    pub failed: u32,
    /// Numbers of those that succeeded, as `0-5,7`. Slurm forgets tasks while others still wait.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub succeeded_tasks: String,
    /// Numbers of those that failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub failed_tasks: String,
}

/// When what happened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Times {
    /// Its files began to move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<Time>,
    /// Slurm took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submitted: Option<Time>,
    /// It could have started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eligible: Option<Time>,
    /// Slurm expects it to start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_start: Option<Time>,
    /// It got its nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    /// Its script began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Time>,
    /// Slurm ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Time>,
    /// It ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Time>,
    /// Its end was seen here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noticed: Option<MicroTime>,
    /// Everything was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Time>,
}

/// Seconds spent, over all attempts of the script of Slurm so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// In Slurm's queue.
    #[serde(default)]
    pub queued_seconds: i64,
    /// From nodes to its first line.
    #[serde(default)]
    pub starting_seconds: i64,
    /// Running.
    #[serde(default)]
    pub running_seconds: i64,
    /// Files on their way, there and back.
    #[serde(default)]
    pub staging_seconds: i64,
}

/// Results.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Outputs {
    /// Files that are here.
    #[serde(default)]
    pub files: u32,
    /// Their bytes.
    #[serde(default)]
    pub bytes: i64,
    /// How far they are.
    #[serde(default)]
    pub state: Transfer,
    /// What was left out, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How far results are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Transfer {
    /// Not begun.
    #[default]
    Waiting,
    /// On their way.
    Moving,
    /// Here.
    Done,
    /// Some could not be brought.
    Partial,
    /// None could be brought.
    Failed,
}
