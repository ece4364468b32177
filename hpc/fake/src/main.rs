//! The fake Slurm's program: `fake-slurm --help`. hpc/fake/README.md tells what it is good for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use fake_slurm::state::Store;
use fake_slurm::{control, process, resident, rest, ssh, tools};

/// A Slurm that loses answers and shows every state, for tests.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a cluster in a directory. Its commands are in DIR/bin.
    Init {
        dir: PathBuf,
        /// Settings of config.json, as minute_ms=1000.
        settings: Vec<String>,
    },
    /// Be the controller that commands ask, and serve SSH, or REST, or both, until it is ended. Prints the addresses as one line
    /// of JSON.
    Serve {
        dir: PathBuf,
        /// Address for SSH, as 127.0.0.1:0.
        #[arg(long)]
        ssh: Option<SocketAddr>,
        /// Address for REST.
        #[arg(long)]
        rest: Option<SocketAddr>,
    },
    /// Say what goes wrong from now on: settings of faults.json, as drop_answer=0.2, or `none`. `down_ms=N`: no controller for so
    /// long.
    Fault { dir: PathBuf, settings: Vec<String> },
    /// Let a job go through these steps from now on, as `RUNNING@1s FAILED=3`.
    Set { dir: PathBuf, id: u32, steps: Vec<String> },
    /// Make an SSH key in DIR/FILE that the SSH server lets in.
    Key { dir: PathBuf, file: String },
    /// Print how many submissions were accepted, by name.
    Counts { dir: PathBuf },
    /// Run one of Slurm's commands; the directory is $FAKE_SLURM_DIR.
    #[command(hide = true, disable_help_flag = true)]
    Tool {
        name: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Watch over a job.
    #[command(hide = true)]
    Job { dir: PathBuf, id: u32 },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(e) => {
            eprintln!("fake-slurm: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<i32> {
    match command {
        Command::Init { dir, settings } => control::init(&dir, &settings)?,
        Command::Fault { dir, settings } => control::change(&dir, "faults.json", &settings)?,
        Command::Set { dir, id, steps } => control::set(&dir, id, &steps.join(" "))?,
        Command::Key { dir, file } => ssh::authorize(&Store::new(&dir), &file)?,
        Command::Counts { dir } => println!("{}", control::counts(&dir)?),
        Command::Job { dir, id } => process::run(&dir, id)?,
        Command::Tool { name, args } => {
            let dir = std::env::var_os("FAKE_SLURM_DIR").context("FAKE_SLURM_DIR is not set")?;
            return tools::run(&Store::new(dir.as_ref()), &name, &args);
        }
        Command::Serve { dir, ssh: at_ssh, rest: at_rest } => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(async {
                let store = Store::new(&dir.canonicalize()?);
                let _resident = resident::serve(&store)?;
                let mut said = serde_json::Map::new();
                if let Some(at) = at_ssh {
                    said.insert("ssh".into(), ssh::serve(store.clone(), at).await?.to_string().into());
                }
                if let Some(at) = at_rest {
                    said.insert("rest".into(), rest::serve(store.clone(), at).await?.to_string().into());
                }
                println!("{}", serde_json::Value::Object(said));
                std::future::pending::<()>().await;
                anyhow::Ok(())
            })?;
        }
    }
    Ok(0)
}
