//! Measures the running program from outside: what docs/SPECIFICATION.md promises, beside etcd and the disk in the same run.
//!
//! `hack/bench.sh` builds and starts this. Everything happens in a directory of its own on the disk in question; child
//! processes end with this one. Load and server share the machine's processors, as the goals say.

mod http;
mod load;
mod many;
mod objects;
mod process;
mod report;
mod sections;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::http::Version;
use crate::report::Report;

/// As the server's: what the client takes of the machine is missing to the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Start, idle memory, idle processor time and size of the API server.
    Idle,
    /// The same of `skiff up`; needs an engine.
    Up,
    /// Durable creates, beside etcd and the disk.
    Creates,
    /// Reads of one object.
    Gets,
    /// A mixture of requests over many stored objects.
    Mixed,
    /// Many watchers of one resource.
    Watch,
    /// One user who floods the server, and a node beside it.
    Flood,
    /// Large lists by many clients at once.
    Lists,
    /// Lists by label over very many objects.
    Select,
    /// Lists of custom objects beside built-in ones.
    Custom,
    /// Functions: first calls, warm calls, memory; needs python3 and, for those in pods, an engine.
    Functions,
    /// Functions from none to many and back, while things are killed; needs root and python3.
    Kills,
    /// Memory per stored pod.
    Pods,
    /// From apply to Running; needs an engine.
    Apply,
    /// Short runs of workflows over HTTP; needs an engine.
    Runs,
    /// Many runs of workflows that wait, and an engine that is started again.
    Waiting,
    /// Many nodes with pods on them, idle.
    Nodes,
    /// Pods created and bound in a large cluster.
    Scheduler,
    /// A Deployment with many pods.
    Rollout,
}

/// Measures a skiff binary.
#[derive(Debug, Parser)]
struct Args {
    /// The program.
    #[arg(long)]
    skiff: PathBuf,
    /// An empty directory on the disk in question.
    #[arg(long)]
    dir: PathBuf,
    /// Length of each measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Size of the sections with many objects, in percent of what the goals name.
    #[arg(long, default_value_t = 100)]
    scale: u64,
    /// Speak HTTP/2 where a section does not measure both.
    #[arg(long)]
    http2: bool,
    /// What to measure. Default: everything that needs no engine.
    sections: Vec<Section>,
}

/// What sections need.
struct Context {
    skiff: PathBuf,
    dir: PathBuf,
    time: Duration,
    scale: u64,
    version: Version,
}

impl Context {
    /// A directory for one server.
    fn data(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A number of objects in the chosen scale.
    fn scaled(&self, n: u64) -> u64 {
        (n * self.scale / 100).max(1)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let cx = Context {
        skiff: args.skiff,
        dir: args.dir,
        time: Duration::from_secs(args.seconds),
        scale: args.scale,
        version: if args.http2 { Version::H2 } else { Version::H1 },
    };
    let mut sections = args.sections;
    if sections.is_empty() {
        let engine = |s: &Section| matches!(s, Section::Up | Section::Apply | Section::Functions | Section::Kills);
        sections = Section::value_variants().iter().copied().filter(|s| !engine(s)).collect();
    }
    std::fs::create_dir_all(&cx.dir)?;
    let mut report = Report::default();
    let mut failed = false;
    for section in sections {
        eprintln!("{section:?}");
        let done = match section {
            Section::Idle => sections::idle::apiserver(&cx, &mut report).await,
            Section::Up => sections::idle::up(&cx, &mut report).await,
            Section::Creates => sections::creates::run(&cx, &mut report).await,
            Section::Gets => sections::gets::run(&cx, &mut report).await,
            Section::Mixed => sections::mixed::run(&cx, &mut report).await,
            Section::Watch => sections::watch::run(&cx, &mut report).await,
            Section::Flood => sections::flood::run(&cx, &mut report).await,
            Section::Lists => sections::lists::large(&cx, &mut report).await,
            Section::Select => sections::lists::select(&cx, &mut report).await,
            Section::Pods => sections::lists::pods(&cx, &mut report).await,
            Section::Custom => sections::custom::run(&cx, &mut report).await,
            Section::Functions => sections::functions::run(&cx, &mut report).await,
            Section::Kills => sections::kills::run(&cx, &mut report).await,
            Section::Apply => sections::apply::run(&cx, &mut report).await,
            Section::Runs => sections::runs::run(&cx, &mut report).await,
            Section::Waiting => sections::waiting::run(&cx, &mut report).await,
            Section::Nodes => sections::scale::nodes(&cx, &mut report).await,
            Section::Scheduler => sections::scale::scheduler(&cx, &mut report).await,
            Section::Rollout => sections::scale::rollout(&cx, &mut report).await,
        };
        if let Err(e) = done {
            // One section that fails says so and leaves the others their turn.
            failed = true;
            report.row(format!("{section:?}"), "-", format!("failed: {e:#}"), "");
        }
    }
    println!("{}", report.render());
    if failed {
        anyhow::bail!("not everything could be measured");
    }
    Ok(())
}
