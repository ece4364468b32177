//! `logs`: what instances write, and how the last build went.

use std::io::Write as _;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;
use futures::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{ListParams, LogParams};
use kube::{Api, ResourceExt as _};
use tokio::sync::{Mutex, mpsc};

use super::Session;
use super::show::revisions_of;
use crate::api::{FUNCTION, Function, Isolation};

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
    let revisions = revisions_of(session, &args.name).await?;
    let class = revisions.last().and_then(|r| r.status.as_ref()?.class);
    if class == Some(Isolation::Process) {
        if !process_logs(session, &args).await? {
            eprintln!("No instance of function {} wrote anything.", args.name);
        }
        return Ok(());
    }
    let mine = ListParams::default().labels(&format!("{FUNCTION}={}", args.name));
    let pods: Api<Pod> = session.api();
    let mut found: Vec<String> =
        pods.list_metadata(&mine).await?.items.iter().map(kube::ResourceExt::name_any).collect();
    if let Some(instance) = &args.instance {
        found.retain(|p| p == instance);
        if found.is_empty() {
            bail!("function {} has no instance {instance}", args.name);
        }
    }
    if found.is_empty() && !args.follow {
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
    let mut changes = skiff_client::watch(pods.clone(), config).applied_objects();
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

/// What processes wrote, also those that ended, from the gateway; whether there was anything, or it follows.
async fn process_logs(session: &Session, args: &LogsArgs) -> anyhow::Result<bool> {
    let tail = args.tail.map(|n| format!("&tail={}", n.max(0))).unwrap_or_default();
    let instance = args.instance.as_ref().map(|i| format!("&instance={i}")).unwrap_or_default();
    let uri = format!("/logs/{}/{}?follow={}{tail}{instance}", session.namespace, args.name, args.follow);
    let request = http::Request::get(uri).body(kube::client::Body::empty())?;
    let answer = session.gateway().await?.send(request).await.context("the gateway of functions cannot be reached")?;
    let (head, mut body) = answer.into_parts();
    if head.status == http::StatusCode::NOT_FOUND {
        // A gateway without processes, as one that was restarted elsewhere.
        return Ok(false);
    }
    let (mut text, mut any) = (Vec::new(), args.follow);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        text.extend_from_slice(&data);
        if !head.status.is_success() {
            continue;
        }
        while let Some(end) = text.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let said: serde_json::Value = serde_json::from_slice(&line).unwrap_or_default();
            let (name, line) =
                (said["instance"].as_str().unwrap_or_default(), said["line"].as_str().unwrap_or_default());
            any = true;
            // The time is the node's, not the function's own words.
            let line = line.split_once(' ').map_or(line, |(_, words)| words);
            if args.prefix { println!("[{name}] {line}") } else { println!("{line}") }
        }
    }
    if !head.status.is_success() {
        bail!("the gateway answered {}: {}", head.status.as_u16(), String::from_utf8_lossy(&text).trim());
    }
    Ok(any)
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
    let maps: Api<ConfigMap> = session.api();
    let log = maps.get_opt(&format!("{}-build", revision.name_any())).await?.and_then(|m| m.data?.remove("log"));
    println!("{}", log.as_deref().unwrap_or(&built.message).trim_end());
    if built.status == "False" {
        bail!("the build of revision {} failed: {}", revision.name_any(), built.reason);
    }
    Ok(())
}
