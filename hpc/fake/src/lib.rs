//! A Slurm for tests: its commands, an SSH server that runs them, and a server like slurmrestd, which lose answers, disconnect,
//! refuse, and show every state, as they are told.
//!
//! ```text
//! tools (a process each) ─ resident ┐
//! ssh (runs the tools)              ├─ state: under a lock, on the disk as a journal ─ schedule: what time does to jobs
//! rest                              ┘                                               └ process: scripts that really run
//! ```
//!
//! It is no scheduler: the first node with room is taken, in order of submission. It has one user, no fair share, no steps. What it
//! says it says in Slurm's words, compared with 22.05 from Debian (`hack/slurm.sh`).

// A test that cannot go on should say where.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;
pub mod control;
pub mod fields;
mod journal;
pub mod process;
pub mod resident;
pub mod rest;
pub mod schedule;
pub mod ssh;
pub mod state;
pub mod submit;
pub mod tools;
pub mod tracked;
pub mod words;

use std::path::PathBuf;

/// This program, for commands and for watching over jobs: the one that runs, or for tests of other crates the one built beside them
/// (`cargo build -p skiff-fake-slurm`).
///
/// # Errors
/// When it is not built.
pub fn program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    if own.file_name().is_some_and(|n| n == "fake-slurm") {
        return Ok(own);
    }
    let beside = own.ancestors().skip(1).take(2).map(|d| d.join("fake-slurm")).find(|p| p.is_file());
    beside.ok_or_else(|| anyhow::anyhow!("fake-slurm is not built: cargo build -p skiff-fake-slurm"))
}
