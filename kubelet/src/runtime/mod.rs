//! What the agent asks of a container runtime.
//!
//! The trait is small on purpose: it speaks of sandboxes and containers with labels, never of pods' rules. Docker
//! Engine ([`docker`]) is the implementation that must work; [`fake`] only pretends, for tries at scale.
//!
//! Contract: every call may fail with [`Error::Unavailable`] and may then be repeated; `create_*` with a name that is
//! taken answers [`Error::Conflict`]; `stop`, `kill` and `remove` of something gone succeed. The runtime keeps the
//! labels it is given for as long as the container exists: they are the node's memory.

use std::collections::BTreeMap;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;

pub mod docker;
pub mod fake;
pub mod measured;

/// Labels the agent writes on what it creates.
pub mod label {
    /// Name of the pod.
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    /// Namespace of the pod.
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// UID of the pod.
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    /// Name of the container; absent on sandboxes.
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// Which node agent owns the container; several may share one engine.
    pub const NODE: &str = "skiff.dev/node";
    /// `sandbox` or `container`.
    pub const KIND: &str = "skiff.dev/kind";
    /// Restart count of the container.
    pub const ATTEMPT: &str = "skiff.dev/attempt";
    /// Hash of the container's part of the pod that a change of restarts the container.
    pub const HASH: &str = "skiff.dev/spec-hash";
    /// Pod address given to a sandbox.
    pub const IP: &str = "skiff.dev/pod-ip";
    /// On a sandbox that made its network's namespace itself.
    pub const OWN_NETWORK: &str = "skiff.dev/own-network";
    /// Identifier of the sandbox a container was made for.
    pub const SANDBOX: &str = "skiff.dev/sandbox";
    /// CPU weight, CPU quota and memory limit the container was made with.
    pub const RESOURCES: &str = "skiff.dev/resources";
    /// Grace period in seconds, for pods whose object is gone.
    pub const GRACE: &str = "skiff.dev/grace-seconds";
}

/// What went wrong in the runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime cannot be reached; try again later.
    #[error("container runtime is down: {0}")]
    Unavailable(String),
    /// No such container or image.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken.
    #[error("{0}")]
    Conflict(String),
    /// The runtime refused.
    #[error("{0}")]
    Refused(String),
    /// No answer in time.
    #[error("container runtime did not answer within {0:?}")]
    Timeout(std::time::Duration),
}

/// Result of a runtime call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// State of a container as the runtime knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, never started.
    Created,
    /// Running.
    Running,
    /// Over.
    Exited,
}

/// A container or sandbox as the runtime knows it.
#[derive(Clone, Debug)]
pub struct Container {
    /// The runtime's identifier.
    pub id: String,
    /// Labels given at creation.
    pub labels: BTreeMap<String, String>,
    /// Reference of the image as given at creation.
    pub image: String,
    /// Identifier of the image.
    pub image_id: String,
    /// What it is doing.
    pub state: State,
    /// Process identifier on the host, when running.
    pub pid: Option<i32>,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// When it was started.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// Exit code, when over.
    pub exit_code: i32,
    /// Whether the kernel killed it for its memory limit.
    pub oom_killed: bool,
    /// What the runtime says went wrong, often empty.
    pub error: String,
}

impl Container {
    /// Value of a label, or the empty string.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    /// How many times the container was restarted before this one.
    pub fn attempt(&self) -> i32 {
        self.label(label::ATTEMPT).parse().unwrap_or(0)
    }
}

/// How a sandbox is made.
#[derive(Clone, Debug, Default)]
pub struct SandboxConfig {
    /// Unique name.
    pub name: String,
    /// Host name inside.
    pub hostname: String,
    /// Labels to keep.
    pub labels: BTreeMap<String, String>,
    /// Uses the host's network namespace.
    pub host_network: bool,
    /// Uses the host's process namespace.
    pub host_pid: bool,
    /// Uses the host's IPC namespace.
    pub host_ipc: bool,
    /// Kernel parameters of the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
}

/// Something of the host seen in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Path on the host.
    pub source: String,
    /// Path in the container.
    pub target: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// `rprivate`, `rslave` or `rshared`.
    pub propagation: &'static str,
}

/// How a container is made. Namespaces come from its sandbox.
#[derive(Clone, Debug, Default)]
pub struct ContainerConfig {
    /// Unique name.
    pub name: String,
    /// Identifier of the pod's sandbox.
    pub sandbox: String,
    /// Image reference or identifier.
    pub image: String,
    /// Replaces the image's entry point.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's arguments.
    pub cmd: Option<Vec<String>>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// Labels to keep.
    pub labels: BTreeMap<String, String>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Devices of the host.
    pub devices: Vec<String>,
    /// Has a terminal.
    pub tty: bool,
    /// Standard input stays open.
    pub stdin: bool,
    /// Standard input closes with the first attached client.
    pub stdin_once: bool,
    /// `uid`, `uid:gid` or a name.
    pub user: Option<String>,
    /// Supplementary groups.
    pub groups: Vec<i64>,
    /// All privileges of the host.
    pub privileged: bool,
    /// Capabilities added.
    pub cap_add: Vec<String>,
    /// Capabilities dropped.
    pub cap_drop: Vec<String>,
    /// Root file system is read-only.
    pub read_only_rootfs: bool,
    /// Security options in the engine's form.
    pub security_opt: Vec<String>,
    /// Nothing under /proc is masked.
    pub unmasked_proc: bool,
    /// Relative CPU weight.
    pub cpu_shares: i64,
    /// CPU time per 100 ms period in microseconds; 0 is no limit.
    pub cpu_quota: i64,
    /// Memory limit in bytes; 0 is no limit.
    pub memory: i64,
    /// Badness for the kernel's out-of-memory killer.
    pub oom_score_adj: i64,
    /// Shares the sandbox's process namespace.
    pub share_pid: bool,
    /// Namespaces taken from the host instead of the sandbox.
    pub host_network: bool,
    /// See `host_network`.
    pub host_pid: bool,
    /// See `host_network`.
    pub host_ipc: bool,
}

/// An image the runtime has.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Identifier.
    pub id: String,
    /// Names with tags.
    pub tags: Vec<String>,
    /// Names with digests.
    pub digests: Vec<String>,
    /// Size in bytes.
    pub size: i64,
    /// The user the image runs as; empty is root.
    pub user: String,
}

/// Credentials of a registry.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Token in place of a password.
    pub identity_token: String,
    /// Registry the credentials are of.
    pub server: String,
}

/// Which of a process's outputs some bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Out {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Outputs of a process as they come.
pub type OutputStream = Pin<Box<dyn Stream<Item = Result<(Out, Bytes)>> + Send>>;
/// Standard input of a process. Shutting it down closes the process's input.
pub type InputSink = Pin<Box<dyn AsyncWrite + Send>>;

/// A process's ends.
pub struct Attached {
    /// Its outputs.
    pub output: OutputStream,
    /// Its input; writes to it vanish when no input was asked for.
    pub input: InputSink,
    /// The exec session; empty for an attachment to a container.
    pub exec_id: String,
}

/// A command to run in a container.
#[derive(Clone, Debug, Default)]
pub struct ExecConfig {
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// Whether there is an input.
    pub stdin: bool,
    /// Whether standard output is wanted.
    pub stdout: bool,
    /// Whether standard error is wanted.
    pub stderr: bool,
    /// Whether to run on a terminal.
    pub tty: bool,
}

/// Which log lines are wanted.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Keep going until the container ends.
    pub follow: bool,
    /// Only this many of the last lines.
    pub tail: Option<u64>,
    /// Only lines since this second.
    pub since: Option<i64>,
    /// Standard output wanted.
    pub stdout: bool,
    /// Standard error wanted.
    pub stderr: bool,
}

/// Resource use of a container.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// CPU time used since the start, in nanoseconds.
    pub cpu_nanos: u64,
    /// Memory in use.
    pub memory_usage: u64,
    /// Memory in use less what can be dropped.
    pub memory_working_set: u64,
    /// Anonymous memory.
    pub memory_rss: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Major page faults.
    pub major_page_faults: u64,
    /// Memory limit; 0 when there is none.
    pub memory_limit: u64,
    /// Processes.
    pub pids: u64,
}

/// Something happened to a container.
#[derive(Clone, Debug)]
pub struct Event {
    /// UID of the pod it belongs to.
    pub pod_uid: String,
    /// The runtime's word for it: `start`, `die`, `oom`, `destroy` ...
    pub action: String,
}

/// Facts about the runtime.
#[derive(Clone, Debug, Default)]
pub struct Info {
    /// Version of the engine; with `NAME://` before it when that is not Docker.
    pub version: String,
    /// Directory with images and containers.
    pub root_dir: String,
    /// Description of the operating system.
    pub os_image: String,
}

/// A container runtime. See the module for the contract.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Facts about the runtime; also the check that it lives.
    async fn info(&self) -> Result<Info>;

    /// Sandboxes and containers of this node, of one pod or of all, running or not.
    async fn list(&self, pod_uid: Option<&str>) -> Result<Vec<Container>>;
    /// Makes and starts a sandbox; answers its identifier. `made` is told it as soon as there is one, while it starts:
    /// containers that name it can be made then.
    async fn create_sandbox(&self, config: &SandboxConfig, made: oneshot::Sender<String>) -> Result<String>;
    /// Makes a container; answers its identifier.
    async fn create_container(&self, config: &ContainerConfig) -> Result<String>;
    /// Starts a container.
    async fn start(&self, id: &str) -> Result<()>;
    /// Sends the container's stop signal.
    async fn terminate(&self, id: &str) -> Result<()>;
    /// Kills a container.
    async fn kill(&self, id: &str) -> Result<()>;
    /// Returns when the container is over or gone.
    async fn wait(&self, id: &str) -> Result<()>;
    /// Removes a container, killing it when it runs.
    async fn remove(&self, id: &str) -> Result<()>;
    /// One container.
    async fn inspect(&self, id: &str) -> Result<Container>;
    /// Changes CPU and memory limits of a running container.
    async fn update_resources(&self, id: &str, cpu_shares: i64, cpu_quota: i64, memory: i64) -> Result<()>;

    /// One image.
    async fn image(&self, reference: &str) -> Result<Image>;
    /// All images.
    async fn images(&self) -> Result<Vec<Image>>;
    /// Pulls an image.
    async fn pull(&self, reference: &str, credentials: Option<&Credentials>) -> Result<()>;
    /// Writes an image to a file, as the archive that `docker save` makes.
    async fn save(&self, id: &str, to: &std::path::Path) -> Result<()>;
    /// Makes an image of one layer.
    async fn import(&self, reference: &str, layer: Vec<u8>) -> Result<()>;

    /// Starts a command in a container.
    async fn exec(&self, id: &str, config: &ExecConfig) -> Result<Attached>;
    /// Exit code of a finished command; `None` while it runs.
    async fn exec_exit_code(&self, exec_id: &str) -> Result<Option<i32>>;
    /// Sets the size of a command's terminal.
    async fn exec_resize(&self, exec_id: &str, width: u16, height: u16) -> Result<()>;
    /// Attaches to a container's first process.
    async fn attach(&self, id: &str, stdin: bool, stdout: bool, stderr: bool) -> Result<Attached>;
    /// Sets the size of a container's terminal.
    async fn resize(&self, id: &str, width: u16, height: u16) -> Result<()>;
    /// Log of a container; every item is one line with a time stamp in front.
    async fn logs(&self, id: &str, options: &LogOptions) -> Result<OutputStream>;
    /// Resource use of a container.
    async fn stats(&self, id: &str) -> Result<Stats>;
    /// Bytes that a container has written: in its layer, and as its log. Slow where it has many files.
    async fn written(&self, id: &str) -> Result<u64>;
    /// Events of this node's containers. The stream ends when the runtime goes away.
    async fn events(&self) -> Result<Pin<Box<dyn Stream<Item = Event> + Send>>>;
}

/// Removes every container of this node.
pub async fn remove_all(runtime: &dyn Runtime) -> Result<()> {
    let mut containers = runtime.list(None).await?;
    // Containers before sandboxes, so that none loses its namespaces while it runs.
    containers.sort_by_key(|c| c.label(label::KIND) == "sandbox");
    for container in containers {
        runtime.remove(&container.id).await?;
    }
    Ok(())
}
