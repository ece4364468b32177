//! `kubectl func` and `kubectl trigger`: what a person does with functions from a command line.
//!
//! The program is this one under other names, which kubectl finds on the PATH. It knows the cluster only by the
//! person's kubeconfig, as kubectl does, and the gateway by its Service. Messages and exit codes are kubectl's: `error: …`, or
//! `Error from server (NotFound): …`, and 1.

mod add;
mod call;
mod change;
mod connect;
mod logs;
mod show;

use clap::{Args, Subcommand};

use connect::{Connection, Session};
use skiff_plugin::alone;
pub use skiff_plugin::told;

/// Who writes objects, for server-side apply.
const MANAGER: &str = "kubectl-func";

/// `kubectl func`.
#[derive(Clone, Debug, Args)]
pub struct FuncArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Func,
}

/// `kubectl trigger`.
#[derive(Clone, Debug, Args)]
pub struct TriggerArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    call: call::CallArgs,
}

#[derive(Clone, Debug, Subcommand)]
enum Func {
    /// Make a function of a file, a directory or a ZIP file, or make it anew.
    #[command(alias = "create")]
    Add(add::AddArgs),
    /// Change what is named of a function: its code, or settings.
    Update(add::UpdateArgs),
    /// List functions.
    #[command(alias = "ls")]
    List(show::ListArgs),
    /// Show a function with its revisions, instances and events.
    Describe(show::DescribeArgs),
    /// List the revisions of a function.
    Revisions(show::RevisionsArgs),
    /// Call a function and print its answer.
    #[command(alias = "call")]
    Invoke(call::CallArgs),
    /// Print the result of an asynchronous call.
    Result(call::ResultArgs),
    /// Print what the instances of a function write, or the log of its build.
    Logs(logs::LogsArgs),
    /// Go back to the code of a revision.
    Rollback(change::RollbackArgs),
    /// Say how many instances there are.
    Scale(change::ScaleArgs),
    /// Remove functions and their code.
    #[command(alias = "delete", alias = "remove")]
    Rm(change::RmArgs),
}

impl FuncArgs {
    /// Carries the command out.
    ///
    /// # Errors
    /// What went wrong; [`told`] says it in kubectl's words.
    pub fn run(self) -> anyhow::Result<()> {
        alone(async move {
            let session = self.connection.open().await?;
            match self.command {
                Func::Add(a) => add::add(&session, a).await,
                Func::Update(a) => add::update(&session, a).await,
                Func::List(a) => show::list(&session, a).await,
                Func::Describe(a) => show::describe(&session, a).await,
                Func::Revisions(a) => show::revisions(&session, a).await,
                Func::Invoke(a) => call::call(&session, a).await,
                Func::Result(a) => call::result(&session, a).await,
                Func::Logs(a) => logs::logs(&session, a).await,
                Func::Rollback(a) => change::rollback(&session, a).await,
                Func::Scale(a) => change::scale(&session, a).await,
                Func::Rm(a) => change::rm(&session, a).await,
            }
        })
    }
}

impl TriggerArgs {
    /// Carries the command out.
    ///
    /// # Errors
    /// What went wrong; [`told`] says it in kubectl's words.
    pub fn run(self) -> anyhow::Result<()> {
        alone(async move {
            let session = self.connection.open().await?;
            call::call(&session, self.call).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_sound() {
        FuncArgs::augment_args(clap::Command::new("func")).debug_assert();
        TriggerArgs::augment_args(clap::Command::new("trigger")).debug_assert();
    }
}
