//! Skiff: a Kubernetes-compatible cluster in one program. Parse, build, run, drain; everything else is in the rooms.

mod accounts;
mod audit;
mod cfg;
mod cli;
mod cluster;
mod components;
mod discovery;
mod functions;
mod hpc;
mod join;
mod kubeconfig;
mod plugin;
mod store;
mod token;
mod transfer;
mod up;
mod workflows;

use clap::Parser;

/// Requests are many small allocations on one thread that end on another, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    let cli = cli::Cli::parse_from(plugin::arguments(std::env::args_os()));
    let kubectl = cli.is_for_kubectl();
    match cli.run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) if kubectl => {
            eprintln!("{}", skiff_faas::plugin::told(&e));
            std::process::ExitCode::FAILURE
        }
        Err(e) => {
            // One line that says what to do; the chain behind it for those who look.
            eprintln!("skiff: {e:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
