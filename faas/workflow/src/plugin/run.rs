//! `run`, `stop`, `redrive`, `signal`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use skiff_plugin::Session;

use super::data;
use crate::api::{Phase, Stop, WorkflowRun};
use crate::runs::{Answer, Runs as _, Start, Stored};

/// `run`.
#[derive(Clone, Debug, Args)]
pub(super) struct RunArgs {
    /// The workflow, or NAME:VERSION, NAME:ALIAS.
    workflow: String,
    /// Input; `@FILE` is a file's content, `-` standard input. Default: {}.
    #[arg(short, long, conflicts_with = "file")]
    data: Option<String>,
    /// File that is the input; `-` is standard input.
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// Name of the run: the same again with the same input is the same run.
    #[arg(long)]
    name: Option<String>,
    /// Wait for the end and print the output.
    #[arg(short, long)]
    wait: bool,
    /// Seconds to wait.
    #[arg(long, default_value_t = 3600)]
    timeout: u64,
}

/// `stop`.
#[derive(Clone, Debug, Args)]
pub(super) struct StopArgs {
    /// The run.
    run: String,
    /// Error that it ends with.
    #[arg(long)]
    error: Option<String>,
    /// Its cause.
    #[arg(long)]
    cause: Option<String>,
}

/// `redrive`.
#[derive(Clone, Debug, Args)]
pub(super) struct RedriveArgs {
    /// The run.
    run: String,
    /// Wait for the end and print the output.
    #[arg(short, long)]
    wait: bool,
    /// Seconds to wait.
    #[arg(long, default_value_t = 3600)]
    timeout: u64,
}

/// `signal`.
#[derive(Clone, Debug, Args)]
pub(super) struct SignalArgs {
    /// The task's token.
    token: String,
    /// What came out, JSON; `@FILE` is a file's content, `-` standard input.
    #[arg(short, long, conflicts_with_all = ["error", "heartbeat"], default_value = "{}")]
    output: String,
    /// It failed with this error.
    #[arg(long, conflicts_with = "heartbeat")]
    error: Option<String>,
    /// Why.
    #[arg(long, requires = "error")]
    cause: Option<String>,
    /// It is still worked on.
    #[arg(long)]
    heartbeat: bool,
}

/// The name of a run, which may be written with its kind.
pub(super) fn bare(name: &str) -> &str {
    name.split_once('/').map_or(name, |(_, name)| name)
}

pub(super) async fn run(session: &Session, args: RunArgs) -> anyhow::Result<()> {
    let (workflow, of) = match bare(&args.workflow).split_once(':') {
        Some((workflow, of)) => (workflow, Some(of)),
        None => (bare(&args.workflow), None),
    };
    let input = data(args.data.as_deref(), args.file.as_deref())?.unwrap_or_else(|| "{}".to_owned());
    if let Err(e) = serde_json::from_str::<serde::de::IgnoredAny>(&input) {
        bail!("the input is no JSON: {e}");
    }
    let version = of.and_then(|of| of.parse().ok());
    let start = Start {
        namespace: session.namespace.clone(),
        workflow: workflow.to_owned(),
        version,
        alias: of.filter(|_| version.is_none()).map(str::to_owned),
        name: args.name,
        input,
        ..Start::default()
    };
    let started = Stored::new(session.client.clone()).start(start).await?;
    if !args.wait {
        println!("workflowrun.skiff.dev/{} {}", started.run, if started.again { "unchanged" } else { "created" });
        return Ok(());
    }
    wait(session, &started.run, args.timeout, |_| true).await
}

/// Waits for the end of a run, and prints its output. `counts` says whether an end is the one that is meant.
async fn wait(session: &Session, run: &str, seconds: u64, counts: impl Fn(&WorkflowRun) -> bool) -> anyhow::Result<()> {
    let over =
        |r: Option<&WorkflowRun>| r.is_none_or(|r| r.status.as_ref().is_some_and(|s| s.phase.is_over()) && counts(r));
    let waited = skiff_client::wait_for(session.api::<WorkflowRun>(), run, over);
    let waited = tokio::time::timeout(Duration::from_secs(seconds), waited).await;
    let found = waited.with_context(|| format!("timed out waiting for the end of workflowrun/{run}"))??;
    found.with_context(|| format!("workflowrun/{run} was deleted"))?;
    let told = Stored::new(session.client.clone()).describe(&session.namespace, run).await?;
    let status = told.run.status.unwrap_or_default();
    if status.phase == Phase::Succeeded {
        println!("{}", told.output.unwrap_or_else(|| "null".to_owned()));
        return Ok(());
    }
    bail!("workflowrun/{run} {}{}", status.phase.as_str(), reason(status.error.as_deref(), status.cause.as_deref()));
}

/// An error with its cause, as the end of a sentence.
pub(super) fn reason(error: Option<&str>, cause: Option<&str>) -> String {
    let cause = cause.filter(|c| !c.is_empty());
    match (error.filter(|e| !e.is_empty()), cause) {
        (Some(error), Some(cause)) => format!(": {error}: {cause}"),
        (Some(one), None) | (None, Some(one)) => format!(": {one}"),
        (None, None) => String::new(),
    }
}

pub(super) async fn stop(session: &Session, args: StopArgs) -> anyhow::Result<()> {
    let run = bare(&args.run);
    let stop = Stop { error: args.error, cause: args.cause };
    Stored::new(session.client.clone()).stop(&session.namespace, run, stop).await?;
    println!("workflowrun.skiff.dev/{run} stopped");
    Ok(())
}

pub(super) async fn redrive(session: &Session, args: RedriveArgs) -> anyhow::Result<()> {
    let run = bare(&args.run);
    let before = session.api::<WorkflowRun>().get(run).await?;
    let before = before.status.map_or(0, |s| s.redrive_count);
    Stored::new(session.client.clone()).redrive(&session.namespace, run, None).await?;
    if !args.wait {
        println!("workflowrun.skiff.dev/{run} redriven");
        return Ok(());
    }
    let again = |r: &WorkflowRun| r.status.as_ref().is_some_and(|s| s.redrive_count > before);
    wait(session, run, args.timeout, again).await
}

pub(super) async fn signal(session: &Session, args: SignalArgs) -> anyhow::Result<()> {
    let answer = match (args.error, args.heartbeat) {
        (Some(error), _) => Answer::Failure { error: Some(error), cause: args.cause },
        (None, true) => Answer::Heartbeat,
        (None, false) => Answer::Success(data(Some(&args.output), None)?.unwrap_or_default()),
    };
    Stored::new(session.client.clone()).signal(&args.token, answer).await?;
    println!("signal accepted");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_end_sentences() {
        assert_eq!(reason(Some("E"), Some("why")), ": E: why");
        assert_eq!(reason(Some("E"), Some("")), ": E");
        assert_eq!(reason(None, None), "");
        assert_eq!((bare("wfr/x"), bare("x")), ("x", "x"));
    }
}
