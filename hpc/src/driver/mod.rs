//! The ways to Slurm: commands of this machine, commands over SSH, slurmrestd.
//!
//! Contract of [`Slurm`] and [`Files`]: every call has a deadline of its own and ends; a call may be repeated, except
//! [`Slurm::submit`], which may only when its error says so ([`SlurmError::sure`]) or after [`Slurm::find`] found nothing.
//! Errors carry Slurm's own words. Nothing is cached here.

mod batch;
mod files;
pub mod local;
pub mod rest;
mod rsa;
pub mod ssh;
pub mod text;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncWrite;

use crate::api::Decider;
use crate::catalogue::{Node, Partition};
use crate::script::Script;
use crate::state::Report;

/// Time for an ordinary question.
pub const QUICK: Duration = Duration::from_secs(45);
/// Time for a submission: sbatch itself gives up after its message timeout and some retries.
pub const SUBMIT: Duration = Duration::from_secs(60);
/// After this time a submission whose answer was lost is over on the other side too: sbatch runs under `timeout`.
pub const SETTLED: Duration = Duration::from_secs(40);
/// Bytes that a command may print.
pub const PRINTED: usize = 64 << 20;

/// What goes wrong with Slurm.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SlurmError {
    /// Nothing was sent.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// It was sent; what became of it nobody knows.
    #[error("the answer was lost: {0}")]
    Lost(String),
    /// Slurm refused, and said why.
    #[error("Slurm says: {0}")]
    Refused(String),
    /// Slurm refused for now.
    #[error("Slurm says for now: {0}")]
    Busy(String),
    /// The credentials do not open the door.
    #[error("the credentials are refused: {0}")]
    Denied(String),
    /// The answer is not understood.
    #[error("the answer is not understood: {0}")]
    Garbled(String),
    /// This way does not lead there.
    #[error("{0}")]
    Unsupported(String),
}

impl SlurmError {
    /// Whether it is sure that Slurm did not take what was sent.
    #[must_use]
    pub fn sure(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Refused(_) | Self::Denied(_) | Self::Unsupported(_))
    }

    /// A short word for conditions.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "Unreachable",
            Self::Lost(_) => "AnswerLost",
            Self::Refused(_) => "Refused",
            Self::Busy(_) => "Busy",
            Self::Denied(_) => "CredentialRefused",
            Self::Garbled(_) => "AnswerNotUnderstood",
            Self::Unsupported(_) => "Unsupported",
        }
    }
}

/// What became of a submission.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Submitted {
    /// The id.
    pub job_id: u64,
    /// Slurm's name of the cluster, in multi-cluster set-ups.
    pub cluster: Option<String>,
}

/// What a script noted: see [`crate::script`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marker {
    /// Name of the job.
    pub name: String,
    /// Task of an array.
    pub task: Option<u32>,
    /// Whether it is at its end.
    pub ended: bool,
    /// Its exit code.
    pub code: i32,
    /// `start`, `build`, `run`.
    pub stage: String,
    /// Id of the job or task.
    pub job_id: u64,
    /// How often Slurm had started it again.
    pub restarts: u32,
    /// When it began, in seconds since 1970.
    pub began: i64,
    /// When it wrote this.
    pub at: i64,
}

impl Marker {
    /// Reads `NAME[.TASK]` and the line in it.
    #[must_use]
    pub fn parse(file: &str, line: &str) -> Option<Self> {
        let (name, task) = match file.rsplit_once('.') {
            Some((name, task)) => (name, Some(task.parse().ok()?)),
            None => (file, None),
        };
        crate::script::parse_name(name)?;
        let f: Vec<&str> = line.split_whitespace().collect();
        let [word, code, stage, id, restarts, began, at] = f[..] else { return None };
        Some(Self {
            name: name.to_owned(),
            task,
            ended: match word {
                "end" => true,
                "begin" => false,
                _ => return None,
            },
            code: code.parse().ok()?,
            stage: stage.to_owned(),
            job_id: id.parse().ok()?,
            restarts: restarts.parse().ok()?,
            began: began.parse().ok()?,
            at: at.parse().ok()?,
        })
    }
}

/// All jobs of the account at one time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What the queue says, also of jobs that ended not long ago.
    pub reports: Vec<Report>,
    /// What scripts noted since the last time.
    pub markers: Vec<Marker>,
    /// The clock there: for the next question.
    pub clock: i64,
}

/// What a look-up by name found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Reports, each with its source.
    pub reports: Vec<(Decider, Report)>,
    /// Markers.
    pub markers: Vec<Marker>,
    /// Whether what has ended long ago would have been found too: there is accounting, or a completion log.
    pub lasting: bool,
}

/// Facts about a cluster that change seldom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Version of Slurm.
    pub version: String,
    /// Version of slurmrestd's API.
    pub api_version: Option<String>,
    /// Slurm's name of the cluster.
    pub cluster: Option<String>,
    /// Whether accounting answers.
    pub accounting: bool,
}

/// Partitions, nodes and the length of the queue.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// Partitions.
    pub partitions: Vec<Partition>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Jobs that wait, of everybody.
    pub waiting: u64,
    /// Other jobs in the queue.
    pub running: u64,
}

/// A Slurm cluster.
#[async_trait]
pub trait Slurm: Send + Sync {
    /// Submits, once.
    async fn submit(&self, script: &Script, directories: &[String]) -> Result<Submitted, SlurmError>;
    /// All jobs of the account, and markers since this time there.
    async fn queue(&self, since: i64) -> Result<Snapshot, SlurmError>;
    /// What Slurm's controller says of jobs. Those it does not know are left out.
    async fn jobs(&self, ids: &[u64]) -> Result<Vec<Report>, SlurmError>;
    /// Everything that is known under a name. An error means that somewhere nobody could look.
    async fn find(&self, name: &str) -> Result<Found, SlurmError>;
    /// Cancels. An unknown id or one that ended is no error.
    async fn cancel(&self, id: Option<u64>, name: &str) -> Result<(), SlurmError>;
    /// Holds a job that waits.
    async fn hold(&self, id: u64) -> Result<(), SlurmError>;
    /// Lets a held job go.
    async fn release(&self, id: u64) -> Result<(), SlurmError>;
    /// What there is.
    async fn catalogue(&self) -> Result<Catalogue, SlurmError>;
    /// What changes seldom.
    async fn facts(&self) -> Result<Facts, SlurmError>;
    /// When the credential ends, in seconds since 1970.
    fn credential_expires(&self) -> Option<i64> {
        None
    }
}

/// A file there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its path below the directory that was listed.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// When it changed, in seconds since 1970.
    pub modified: i64,
}

/// What a command printed and how it ended.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: Bytes,
    /// What it complained.
    pub stderr: Bytes,
}

impl Output {
    /// What it printed, as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// What it complained, in one line of bounded length.
    #[must_use]
    pub fn complaint(&self) -> String {
        let both = [&self.stderr, &self.stdout].map(|b| String::from_utf8_lossy(b).trim().to_owned());
        let text = both.into_iter().find(|t| !t.is_empty()).unwrap_or_else(|| format!("exit code {}", self.code));
        let line = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ");
        line.chars().take(1000).collect()
    }
}

/// What is known of a file there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fact {
    /// Its bytes.
    pub size: u64,
    /// When it changed, in seconds since 1970.
    pub modified: i64,
    /// Its SHA-256 in hexadecimal, where that was asked for.
    pub sha256: Option<String>,
}

/// What came of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Came {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal of the whole file as it is there, where that was asked for.
    pub sha256: Option<String>,
}

/// How a command ended whose output went elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Streamed {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it complained.
    pub stderr: Bytes,
    /// Bytes that it printed.
    pub count: u64,
}

/// Files on a cluster, on a file system that its nodes share.
#[async_trait]
pub trait Files: Send + Sync {
    /// Unpacks a gzipped tar into a directory, which is made.
    async fn unpack(&self, directory: &str, archive: Bytes) -> Result<(), SlurmError>;
    /// Copies a directory.
    async fn copy(&self, from: &str, to: &str) -> Result<(), SlurmError>;
    /// Regular files below a directory, at most so many.
    async fn list(&self, directory: &str, most: usize) -> Result<Vec<Entry>, SlurmError>;
    /// Bytes of a file from an offset, at most so many. A file that is not there has none.
    async fn read(&self, path: &str, offset: u64, most: u64) -> Result<Bytes, SlurmError>;
    /// The bytes of files one after the other, at most so many. Those of one that is not there are missing.
    async fn read_all(&self, paths: &[&str], most: u64) -> Result<Bytes, SlurmError>;
    /// Streams bytes of a file from an offset, at most so many. With `whole`, the digest of all of the file is computed there
    /// while they are on their way.
    async fn fetch(
        &self,
        path: &str,
        offset: u64,
        most: u64,
        whole: bool,
        to: &mut (dyn AsyncWrite + Send + Unpin),
    ) -> Result<Came, SlurmError>;
    /// Bytes that [`Files::fetch`] is best asked for at a time: between two of them others have their turn.
    fn part(&self) -> u64;
    /// Size and time of files, in their order, with digests of those of at most `digested` bytes; `None` for one that is not
    /// there or cannot be read.
    async fn stat(&self, paths: &[String], digested: u64) -> Result<Vec<Option<Fact>>, SlurmError>;
    /// Runs lines of bash.
    async fn run(&self, script: &str, limit: Duration) -> Result<Output, SlurmError>;
    /// Removes files and directories with all that is in them. What is not there is no error.
    async fn remove(&self, paths: &[String]) -> Result<(), SlurmError>;
}

/// A place where commands run.
#[async_trait]
pub trait Shell: Send + Sync {
    /// Runs lines of bash with this input; at most [`PRINTED`] bytes of output are kept, more is an error.
    async fn exec(&self, script: &str, input: Bytes, limit: Duration) -> Result<Output, SlurmError>;
    /// Runs lines of bash and hands on what they print.
    async fn stream(
        &self,
        script: &str,
        to: &mut (dyn AsyncWrite + Send + Unpin),
        limit: Duration,
    ) -> Result<Streamed, SlurmError>;
    /// How many commands may run at a time, where that is a bound that makes others wait.
    fn narrow(&self) -> Option<usize> {
        None
    }
    /// When the credential ends.
    fn credential_expires(&self) -> Option<i64> {
        None
    }
}
