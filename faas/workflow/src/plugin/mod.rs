//! `kubectl wf`: what a person does with workflows from a command line.
//!
//! The program is this one under another name. What concerns files alone (`lint`, `convert`, `graph -f`) needs no cluster;
//! everything else acts with the person's own rights on Workflows and WorkflowRuns.

mod change;
mod file;
mod graph;
mod run;
mod show;

use clap::{Args, Subcommand};
use skiff_plugin::{Connection, alone};

pub use skiff_plugin::told;

/// `kubectl wf`.
#[derive(Clone, Debug, Args)]
pub struct WfArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Wf,
}

#[derive(Clone, Debug, Subcommand)]
enum Wf {
    /// Start a workflow, and wait for its output if told to.
    #[command(alias = "start")]
    Run(run::RunArgs),
    /// List workflows, or with --runs their runs.
    #[command(alias = "ls")]
    List(show::ListArgs),
    /// Show a workflow or a run.
    Describe(show::DescribeArgs),
    /// Print what happened in a run.
    History(show::HistoryArgs),
    /// Draw a workflow, or a run with what became of each state.
    Graph(graph::GraphArgs),
    /// End a run.
    Stop(run::StopArgs),
    /// Let a run that failed, timed out or was stopped go on from there.
    Redrive(run::RedriveArgs),
    /// Answer a task that waits for its token.
    Signal(run::SignalArgs),
    /// Look for faults in definitions, without a cluster.
    Lint(file::LintArgs),
    /// Look for faults in workflows of the cluster, or of a file with what the cluster has.
    Validate(file::ValidateArgs),
    /// Make a Workflow of a predecessor's workflow.
    Convert(file::ConvertArgs),
    /// Keep what a workflow is now as a version that never changes.
    Publish(change::PublishArgs),
    /// Give a name to a version, or to two by shares.
    Alias(change::AliasArgs),
}

impl WfArgs {
    /// Carries the command out.
    ///
    /// # Errors
    /// What went wrong; [`told`] says it in kubectl's words.
    pub fn run(self) -> anyhow::Result<()> {
        let connection = self.connection;
        alone(async move {
            let command = match self.command {
                Wf::Lint(a) => return file::lint(&a),
                Wf::Convert(a) => return file::convert(&a),
                Wf::Graph(a) if a.file.is_some() => return graph::of_file(&a),
                command => command,
            };
            let session = connection.open().await?;
            match command {
                Wf::Run(a) => run::run(&session, a).await,
                Wf::List(a) => show::list(&session, a).await,
                Wf::Describe(a) => show::describe(&session, a).await,
                Wf::History(a) => show::history(&session, a).await,
                Wf::Graph(a) => graph::of_cluster(&session, a).await,
                Wf::Stop(a) => run::stop(&session, a).await,
                Wf::Redrive(a) => run::redrive(&session, a).await,
                Wf::Signal(a) => run::signal(&session, a).await,
                Wf::Validate(a) => file::validate(&session, a).await,
                Wf::Publish(a) => change::publish(&session, a).await,
                Wf::Alias(a) => change::alias(&session, a).await,
                Wf::Lint(_) | Wf::Convert(_) => Ok(()),
            }
        })
    }
}

/// Data that a person gives: as it is, `@FILE`, or `-` for standard input.
fn data(given: Option<&str>, file: Option<&std::path::Path>) -> anyhow::Result<Option<String>> {
    use std::io::Read as _;

    use anyhow::Context as _;
    let from = |path: &std::path::Path| -> anyhow::Result<String> {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            return Ok(text);
        }
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    match (given, file) {
        (None, None) => Ok(None),
        (None, Some(path)) => from(path).map(Some),
        (Some(text), _) => match text.strip_prefix('@') {
            Some(path) => from(path.as_ref()).map(Some),
            None if text == "-" => from(text.as_ref()).map(Some),
            None => Ok(Some(text.to_owned())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_sound() {
        WfArgs::augment_args(clap::Command::new("wf")).debug_assert();
    }
}
