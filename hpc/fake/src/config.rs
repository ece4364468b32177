//! How the cluster is, and what goes wrong with it: `config.json` and `faults.json`. Both may be edited while it runs; what they
//! leave out has the values here.

use serde::{Deserialize, Serialize};

/// How the cluster is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Slurm's name of the cluster.
    pub cluster: String,
    /// Version of Slurm.
    pub version: String,
    /// Whether scripts really run; else each job takes `simulated_ms` and succeeds.
    pub run: bool,
    /// How long a job takes that does not run.
    pub simulated_ms: i64,
    /// Length of a minute of time limits, in milliseconds.
    pub minute_ms: i64,
    /// For how long the controller remembers ended jobs.
    pub min_job_age_ms: i64,
    /// Whether sacct answers.
    pub accounting: bool,
    /// Versions of the API that the REST server offers.
    pub rest_versions: Vec<String>,
    /// Token that the REST server believes.
    pub token: String,
    /// Account that may submit.
    pub user: String,
    /// The account's password for SSH; empty: none.
    pub password: String,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Partitions; the first is the default.
    pub partitions: Vec<Partition>,
}

/// A node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Cores.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory: u64,
    /// Type of its GPUs.
    pub gpu: String,
    /// How many it has.
    pub gpus: u32,
    /// Features.
    pub features: String,
}

/// A partition.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Partition {
    /// Its name.
    pub name: String,
    /// Its nodes.
    pub nodes: Vec<String>,
    /// Longest time in minutes; 0: no limit.
    pub max_minutes: u32,
    /// `UP`, `DOWN`, `DRAIN`, `INACTIVE`.
    pub state: String,
}

impl Default for Config {
    fn default() -> Self {
        let node = |name: &str, cpus, memory, gpu: &str, features: &str| Node {
            name: name.into(),
            cpus,
            memory,
            gpu: gpu.into(),
            gpus: 4,
            features: features.into(),
        };
        let partition = |name: &str, nodes: &[&str], max_minutes| Partition {
            name: name.into(),
            nodes: nodes.iter().map(|n| (*n).to_owned()).collect(),
            max_minutes,
            state: "UP".into(),
        };
        Self {
            cluster: "fake".into(),
            version: "22.05.8".into(),
            run: true,
            simulated_ms: 100,
            minute_ms: 60_000,
            min_job_age_ms: 300_000,
            accounting: false,
            rest_versions: vec!["v0.0.38".into(), "v0.0.40".into()],
            token: "token".into(),
            user: "user".into(),
            password: String::new(),
            nodes: vec![
                node("n1", 64, 512_000, "a100", "a100,ib"),
                node("n2", 64, 512_000, "a100", "a100,ib"),
                node("n3", 96, 1_450_000, "v100", "v100"),
            ],
            partitions: vec![
                partition("debug", &["n1", "n2", "n3"], 1440),
                partition("a100", &["n1", "n2"], 10_080),
                partition("dgx2", &["n3"], 10_080),
                partition("short", &["n1", "n2", "n3"], 1),
            ],
        }
    }
}

/// How a lost answer looks to who waits for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// The connection ends. For a tool on this machine: as `Error`.
    #[default]
    Disconnect,
    /// Slurm's own words for it, as after a time-out.
    Error,
    /// Nothing comes, for a minute.
    Hang,
}

/// What goes wrong. All of it is off unless asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// What chance starts from.
    pub seed: u64,
    /// Probability that the answer to a submission is lost although it was accepted.
    pub drop_answer: f64,
    /// Probability that a submission is lost before it was accepted. To the one who submits it looks the same.
    pub drop_request: f64,
    /// How a lost answer looks.
    pub loss: Loss,
    /// Probability that a connection ends at any other command or request.
    pub disconnect: f64,
    /// Milliseconds that every answer takes longer.
    pub delay_ms: u64,
    /// How often each job is not started but queued again and held, as after a prolog that failed.
    pub launch_failures: u32,
    /// Whether jobs may not be released.
    pub no_release: bool,
    /// Words with which submissions are refused.
    pub refuse: Option<String>,
    /// Until when the controller does not answer, in milliseconds since 1970.
    pub down_until: i64,
    /// Whether tokens and certificates have expired.
    pub expired: bool,
    /// Whether the SSH server takes no connection.
    pub closed: bool,
}
