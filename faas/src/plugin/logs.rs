//! `logs`: what instances write, and how the last build went.

use std::io::Write as _;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;
use futures::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, LogParams};
use kube::{Api, ResourceExt as _};
use tokio::sync::{Mutex, mpsc};

use super::Session;
use super::show::revisions_of;
use crate::api::{FUNCTION, Function, FunctionInstance};

/// Instances that are followed at a time.
const FOLLOWED_MAX: usize = 64;

/// `logs`.
#[derive(Clone, Debug, Args)]
pub(super) struct LogsArgs {
    /// The function.
    name: String,
    /// Go on with what will be written, also by instances that come later.
    #[arg(short, long)]
    follow: bool,
    /// What the build of the newest revision said.
    #[arg(long, conflicts_with_all = ["follow", "instance"])]
    build: bool,
    /// Of this instance only.
    #[arg(long)]
    instance: Option<String>,
    /// So many lines from the end.
    #[arg(long)]
    tail: Option<i64>,
    /// Name the instance before each line.
    #[arg(long)]
    prefix: bool,
    /// Of instances that ended in a crash and were started again: what was before.
    #[arg(short, long)]
    previous: bool,
}

pub(super) async fn logs(session: &Session, args: LogsArgs) -> anyhow::Result<()> {
    let function = session.api::<Function>().get(&args.name).await?;
    if args.build {
        return build(session, &function).await;
    }
    let mine = ListParams::default().labels(&format!("{FUNCTION}={}", args.name));
    let pods: Api<Pod> = session.api();
    let mut found: Vec<String> =
        pods.list_metadata(&mine).await?.items.iter().map(kube::ResourceExt::name_any).collect();
    let processes = session.api::<FunctionInstance>().list_metadata(&mine).await?.items;
    if let Some(instance) = &args.instance {
        if processes.iter().any(|p| p.name_any() == *instance) {
            return process_logs(session, instance, &args).await;
        }
        found.retain(|p| p == instance);
        if found.is_empty() {
            bail!("function {} has no instance {instance}", args.name);
        }
    } else {
        for process in &processes {
            process_logs(session, &process.name_any(), &args).await?;
        }
    }
    if found.is_empty() && processes.is_empty() && !args.follow {
        eprintln!("No instance of function {} runs.", args.name);
        return Ok(());
    }
    let prefix = args.prefix || found.len() > 1;
    let out = Arc::new(Mutex::new(std::io::stdout()));
    if !args.follow {
        for pod in found {
            copy(pods.clone(), &pod, &args, prefix, &out).await?;
        }
        return Ok(());
    }
    follow(pods, mine, &args, prefix, &out).await
}

/// Copies what pods write until the program is ended; pods that come later too.
async fn follow(
    pods: Api<Pod>,
    mine: ListParams,
    args: &LogsArgs,
    prefix: bool,
    out: &Arc<Mutex<std::io::Stdout>>,
) -> anyhow::Result<()> {
    use kube::runtime::{WatchStreamExt as _, watcher};
    let config = watcher::Config { label_selector: mine.label_selector, ..watcher::Config::default() };
    let mut changes = Box::pin(watcher(pods.clone(), config).default_backoff().applied_objects());
    let mut followed = std::collections::BTreeSet::new();
    let (done, mut ended) = mpsc::channel::<(String, anyhow::Result<()>)>(FOLLOWED_MAX);
    loop {
        tokio::select! {
            change = changes.next() => {
                let Some(change) = change else { return Ok(()) };
                let pod = match change {
                    Ok(pod) => pod,
                    Err(watcher::Error::WatchError(e)) if e.code == 403 => bail!("Error from server (Forbidden): {}", e.message),
                    // The watch begins anew by itself.
                    Err(_) => continue,
                };
                let name = pod.name_any();
                let runs = pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| p != "Pending");
                let wanted = args.instance.as_ref().is_none_or(|i| *i == name);
                if !runs || !wanted || followed.len() >= FOLLOWED_MAX || !followed.insert(name.clone()) {
                    continue;
                }
                let (pods, args, out, done) = (pods.clone(), args.clone(), Arc::clone(out), done.clone());
                tokio::spawn(async move {
                    let copied = copy(pods, &name, &args, prefix, &out).await;
                    let _ = done.send((name, copied)).await;
                });
            }
            Some((name, copied)) = ended.recv() => {
                if let Err(e) = copied {
                    eprintln!("{name}: {}", super::told(&e));
                }
                if args.instance.is_some() {
                    return Ok(());
                }
            }
        }
    }
}

async fn copy(
    pods: Api<Pod>,
    pod: &str,
    args: &LogsArgs,
    prefix: bool,
    out: &Mutex<std::io::Stdout>,
) -> anyhow::Result<()> {
    let params =
        LogParams { follow: args.follow, tail_lines: args.tail, previous: args.previous, ..LogParams::default() };
    let mut lines = pods.log_stream(pod, &params).await?.lines();
    while let Some(line) = lines.try_next().await.context("the log broke off")? {
        let mut out = out.lock().await;
        if prefix {
            writeln!(out, "[pod/{pod}] {line}")?;
        } else {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

/// What a process wrote, from the agent of its node.
async fn process_logs(session: &Session, instance: &str, args: &LogsArgs) -> anyhow::Result<()> {
    let _ = (session, args);
    bail!("{instance} is a process: its log is in the node's own log")
}

async fn build(session: &Session, function: &Function) -> anyhow::Result<()> {
    let name = function.name_any();
    let revisions = revisions_of(session, &name).await?;
    let revision = revisions.last().with_context(|| format!("function {name} has no revision yet"))?;
    let status = revision.status.clone().unwrap_or_default();
    let Some(built) = status.conditions.iter().find(|c| c.type_ == "BuildSucceeded") else {
        println!("revision {} needs no build", revision.name_any());
        return Ok(());
    };
    println!("{}", built.message);
    if built.status == "False" {
        bail!("the build of revision {} failed: {}", revision.name_any(), built.reason);
    }
    Ok(())
}
