//! `logs`: what a job prints.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use http_body_util::BodyExt as _;
use kube::client::Body;

use super::Session;
use crate::api::{GpuJob, Phase};

/// `logs`.
#[derive(Clone, Debug, Args)]
pub(super) struct LogsArgs {
    /// The job.
    name: String,
    /// Wait for what it will print, until its end.
    #[arg(short, long)]
    follow: bool,
    /// Which of the two.
    #[arg(long, value_enum, default_value_t = Stream::Stdout)]
    stream: Stream,
    /// So many lines from the end.
    #[arg(long)]
    tail: Option<u64>,
    /// Of this task of an array.
    #[arg(long)]
    task: Option<u32>,
}

/// What a job prints to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A request to the server of results; an error has its words.
pub(super) async fn get(session: &Session, path: &str, range: Option<u64>) -> anyhow::Result<http::Response<Body>> {
    let mut request = http::Request::get(path);
    if let Some(from) = range {
        request = request.header(http::header::RANGE, format!("bytes={from}-"));
    }
    let client = session.results().await?;
    let answer = client
        .send(request.body(Body::empty())?)
        .await
        .context("the server of job logs and results does not answer")?;
    if answer.status().is_success() {
        return Ok(answer);
    }
    let status = answer.status();
    let words = answer.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    // It answers as the API does, or in plain words.
    let said: serde_json::Value = serde_json::from_slice(&words).unwrap_or_default();
    match (said["reason"].as_str(), said["message"].as_str()) {
        (Some(reason), Some(message)) => bail!("{message} ({reason})"),
        _ => bail!("{} {}", status.as_u16(), String::from_utf8_lossy(&words).trim()),
    }
}

pub(super) async fn logs(session: &Session, args: LogsArgs) -> anyhow::Result<()> {
    let api = session.api::<GpuJob>();
    api.get(&args.name).await?;
    if args.follow {
        // Before it runs there is nothing to follow.
        let begun = |job: Option<&GpuJob>| {
            let phase = job.map(|j| j.status.as_ref().and_then(|s| s.phase).unwrap_or_default());
            !matches!(phase, Some(Phase::Pending | Phase::Staging | Phase::Queued | Phase::Suspended | Phase::Starting))
        };
        let week = Duration::from_secs(7 * 86_400);
        tokio::time::timeout(week, skiff_client::wait_for(api, &args.name, begun))
            .await
            .context("it has not begun in a week")??;
    }
    let stream = if args.stream == Stream::Stderr { "stderr" } else { "stdout" };
    let mut path = format!("/hpc/{}/{}/logs?stream={stream}&follow={}", session.namespace, args.name, args.follow);
    for (name, value) in [("tail", args.tail), ("task", args.task.map(u64::from))] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={value}"));
        }
    }
    let mut body = get(session, &path, None).await?.into_body();
    let mut out = std::io::stdout().lock();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("the log broke off")?.into_data() {
            out.write_all(&data)?;
            out.flush()?;
        }
    }
    Ok(())
}
