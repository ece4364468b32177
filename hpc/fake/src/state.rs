//! What the cluster remembers, read and changed under a lock by whoever holds it: see [`crate::journal`] for how.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Faults};
use crate::journal::{self, Place};
use crate::tracked::Tracked;
use crate::words::Step;

/// A cluster's directory.
#[derive(Clone, Debug)]
pub struct Store {
    /// Where everything is.
    pub dir: PathBuf,
}

/// Everything that changes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The number of the journal that goes on from here.
    #[serde(default)]
    pub(crate) generation: u64,
    /// The id that the next job gets.
    pub next_id: u32,
    /// How often chance was asked: with the seed it makes every run of a test the same.
    pub draws: u64,
    /// Jobs by id.
    pub jobs: Tracked<u32, Job>,
    /// Submissions that were accepted, by name of the job, also of those that are forgotten. Two of one name are a duplicate.
    pub accepted: Tracked<String, u32>,
    /// Nodes that are down, with the reason.
    pub down: BTreeMap<String, String>,
}

/// What a job does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Plan {
    /// Its script runs as a process.
    Process,
    /// It goes through these states; the number is the current one, once it began.
    Steps(Vec<Step>, Option<usize>),
}

/// A job, or a task of an array.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: u32,
    /// For a task of an array: the array's id, its number, how many may run at a time (0: all).
    pub array: Option<(u32, u32, u32)>,
    /// What sbatch was asked for, option by option in long names.
    pub options: BTreeMap<String, String>,
    /// The user.
    pub user: String,
    /// The user's number.
    pub uid: u32,
    /// Directory it starts in.
    pub directory: String,
    /// Base state.
    pub state: String,
    /// Flags beside it.
    pub flags: Vec<String>,
    /// Why it waits, or how it ended.
    pub reason: String,
    /// Exit code and signal.
    pub exit: (i32, i32),
    /// The highest exit code of its steps.
    pub derived: i32,
    /// When it was submitted, in milliseconds since 1970, as all times here.
    pub submit: i64,
    /// When it started.
    pub start: Option<i64>,
    /// When it ended.
    pub end: Option<i64>,
    /// Nodes it has or had.
    pub nodes: Vec<String>,
    /// Who cancelled it.
    pub cancelled_by: Option<u32>,
    /// Whether and by whom it is held: `user`, `admin`.
    pub held: Option<String>,
    /// How often it was started again.
    pub restarts: u32,
    /// What it does.
    pub plan: Plan,
    /// Since when it is in the current step.
    pub since: i64,
    /// The group of its processes.
    pub group: Option<i32>,
    /// Whether the controller has forgotten it.
    pub gone: bool,
    /// Whether the completion log has it.
    pub logged: bool,
}

impl Job {
    /// What sbatch was asked for under this long name.
    #[must_use]
    pub fn option(&self, name: &str) -> &str {
        self.options.get(name).map_or("", String::as_str)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self.option("job-name") {
            "" => "sbatch",
            name => name,
        }
    }

    /// A number that was asked for, else another.
    #[must_use]
    pub fn number(&self, name: &str, otherwise: u32) -> u32 {
        self.option(name).split('-').next().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
    }

    /// Nodes it asks for.
    #[must_use]
    pub fn node_count(&self) -> u32 {
        let tasks = self.number("ntasks", 1);
        let per_node = self.number("ntasks-per-node", 0);
        self.number("nodes", if per_node > 0 { tasks.div_ceil(per_node) } else { 1 })
    }

    /// Tasks of the whole.
    #[must_use]
    pub fn tasks(&self) -> u32 {
        self.number("ntasks", self.node_count() * self.number("ntasks-per-node", 1))
    }

    /// Cores of the whole.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        let gpus: u32 = self.gpus().iter().map(|g| g.1).sum();
        match self.number("cpus-per-gpu", 0) {
            0 => self.tasks() * self.number("cpus-per-task", 1),
            per => per * gpus * self.node_count(),
        }
    }

    /// GPUs on each node, by type (empty: any).
    #[must_use]
    pub fn gpus(&self) -> Vec<(String, u32)> {
        let mut out = Vec::new();
        for (option, share) in [("gres", 1), ("gpus-per-node", 1), ("gpus", self.node_count()), ("gpus-per-task", 0)] {
            for item in self.option(option).split(',').filter(|i| !i.is_empty()) {
                let item = if option == "gres" {
                    match item.strip_prefix("gpu") {
                        Some(rest) => rest.trim_start_matches(':'),
                        None => continue,
                    }
                } else {
                    item
                };
                let (kind, count) = match item.rsplit_once(':') {
                    Some((kind, count)) => (kind.to_owned(), count.parse().unwrap_or(1)),
                    None => match item.parse() {
                        Ok(count) => (String::new(), count),
                        Err(_) => (item.to_owned(), 1),
                    },
                };
                let each = match share {
                    0 => count * (self.tasks() / self.node_count().max(1)).max(1),
                    n => u32::div_ceil(count, n.max(1)),
                };
                out.push((kind, each));
            }
        }
        out
    }

    /// Whether its state is final.
    #[must_use]
    pub fn ended(&self) -> bool {
        !matches!(self.state.as_str(), "PENDING" | "RUNNING" | "SUSPENDED")
            && !self.flags.iter().any(|f| f == "COMPLETING")
    }

    /// Whether it has nodes.
    #[must_use]
    pub fn holds_nodes(&self) -> bool {
        self.state == "RUNNING" || self.flags.iter().any(|f| f == "COMPLETING" || f == "STOPPED")
    }
}

/// The state while nobody else may change it.
pub struct Locked {
    /// What there is.
    pub state: State,
    /// How the cluster is.
    pub config: Config,
    /// What goes wrong.
    pub faults: Faults,
    /// Where it is.
    pub store: Store,
    place: Place,
    _lock: File,
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Before the lock goes: the next of this process need not read it all again.
        journal::keep(&self.store, std::mem::take(&mut self.state), std::mem::take(&mut self.place));
    }
}

impl Store {
    /// The cluster of this directory.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Waits until nobody else changes it, and reads it.
    ///
    /// # Errors
    /// When the directory is none of a cluster.
    pub fn lock(&self) -> anyhow::Result<Locked> {
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.path("lock"))
            .with_context(|| format!("no cluster in {}", self.dir.display()))?;
        lock.lock()?;
        let (state, place) = journal::read(self)?;
        Ok(Locked { state, config: self.config()?, faults: self.faults()?, store: self.clone(), place, _lock: lock })
    }

    /// How the cluster is.
    ///
    /// # Errors
    /// When its file is wrong.
    pub fn config(&self) -> anyhow::Result<Config> {
        read_or_default(&self.path("config.json"))
    }

    /// What goes wrong.
    ///
    /// # Errors
    /// When its file is wrong.
    pub fn faults(&self) -> anyhow::Result<Faults> {
        read_or_default(&self.path("faults.json"))
    }

    /// Writes a file that readers see whole or not at all. Answers its length.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn write(&self, name: &str, what: &impl Serialize) -> anyhow::Result<u64> {
        let new = self.path(&format!("{name}.{}", std::process::id()));
        let bytes = serde_json::to_vec(what)?;
        std::fs::write(&new, &bytes)?;
        std::fs::rename(&new, self.path(name))?;
        Ok(bytes.len() as u64)
    }
}

fn read_or_default<T: for<'a> Deserialize<'a> + Default>(path: &Path) -> anyhow::Result<T> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| path.display().to_string()),
        Err(_) => Ok(T::default()),
    }
}

impl Locked {
    /// Writes the state and lets others at it.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn save(mut self) -> anyhow::Result<()> {
        let this = &mut self;
        journal::write(&this.store, &mut this.state, &mut this.place)
    }

    /// Whether something of this probability happens now. The same seed gives the same answers in the same order.
    pub fn chance(&mut self, probability: f64) -> bool {
        if probability <= 0.0 {
            return false;
        }
        self.state.draws += 1;
        // SplitMix64 of the seed and the number of the draw.
        let mut z = self.faults.seed.wrapping_add(self.state.draws.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        #[allow(clippy::cast_precision_loss)]
        let share = (z >> 11) as f64 / (1u64 << 53) as f64;
        share < probability
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
