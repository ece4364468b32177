//! Many watchers of one resource: what they get, when, and what it costs.
//!
//! Each watcher has a connection of its own, and then a hundred share one, as client-go's do. Every event's version must be
//! greater than the one before, and at the end each watcher must have as many events as there were writes: then nothing was
//! lost, doubled or reordered.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use memchr::memmem::Finder;
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;

use crate::Context;
use crate::http::{H1, Target, Version};
use crate::load::{Request, open};
use crate::many::Many;
use crate::objects::stamped;
use crate::process::Skiff;
use crate::report::{Report, Times, mib};

const OBJECTS: u64 = 100;
const WRITERS: usize = 16;
/// One watcher in so many looks at the times, too.
const TIMED: usize = 20;
/// About what the server adds to an object and its frame: metadata, the event's type, the chunk's head.
const STORED: usize = 500;
/// Watchers that never read, in one pass.
const STALLED: usize = 50;
/// Watchers of one client: its requests share a connection.
const SHARING: usize = 100;

pub(crate) async fn run(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let skiff = Skiff::start(&cx.skiff, cx.data("watch"), false).await?;
    let target = super::through_rbac(&skiff).await?;
    super::fill(&target, OBJECTS, |name, _| stamped(name, 0)).await?;
    let watchers = usize::try_from(cx.scaled(1000))?;
    let piece = vec![b'x'; stamped("o-0000000", 0).len() + STORED];
    let piece = Bytes::from(piece);
    let sends = super::limit::sends(piece.clone(), watchers, cx.time / 4).await?;
    let limit = Limits { sends, pass: super::limit::pass(piece, watchers, cx.time).await? };
    for rate in [200.0, 1000.0] {
        let alone = pass(cx, &skiff, &target, 0, 0, rate, 1).await?;
        for sharing in [1, SHARING] {
            let with = pass(cx, &skiff, &target, watchers, 0, rate, sharing).await?;
            let who = match sharing {
                1 => format!("{watchers} watchers, a connection each"),
                n => format!("{watchers} watchers, {n} on a connection (HTTP/2)"),
            };
            line(report, &alone, with, watchers, &who, rate, limit);
        }
    }
    let alone = pass(cx, &skiff, &target, 0, 0, 200.0, 1).await?;
    let with = pass(cx, &skiff, &target, watchers, STALLED, 200.0, 1).await?;
    let who = format!("{watchers} watchers, a connection each, and {STALLED} that never read");
    line(report, &alone, with, watchers, &who, 200.0, limit);
    skiff.process.stop().await
}

fn line(report: &mut Report, alone: &Pass, mut with: Pass, watchers: usize, who: &str, rate: f64, limit: Limits) {
    #[allow(clippy::cast_precision_loss)]
    let each = (with.cpu - alone.cpu) / (with.writes * watchers as u64) as f64 * 1e6;
    report.row(
        format!("{who}, {rate} writes/s"),
        "nothing lost, p99 10 ms commit to sent, 3 us per event and watcher",
        format!(
            "nothing lost; write to receipt {}; commit to sent {}; {each:.2} us of server CPU per event and watcher; {:.0} writes/s, {:.0} MiB",
            with.times.summary(),
            with.delay,
            with.rate,
            mib(with.rss)
        ),
        format!(
            "the same bytes over TLS to {watchers} connections without an API server: a pass takes both cores {:.1} ms, the system calls that send alone, without TLS and with nobody who waits for the bytes, {:.1} ms of one; kube-apiserver 1.36 at 200 writes/s: 579 of 1,000 cut, p99 3.8 s",
            limit.pass.as_secs_f64() * 1e3,
            limit.sends.as_secs_f64() * 1e3
        ),
    );
}

/// What the machine takes to bring one event to every watcher.
#[derive(Clone, Copy)]
struct Limits {
    sends: Duration,
    pass: Duration,
}

struct Pass {
    times: Times,
    /// What the server itself counted between commit and sending.
    delay: String,
    writes: u64,
    rate: f64,
    cpu: f64,
    rss: u64,
}

async fn pass(
    cx: &Context,
    skiff: &Skiff,
    target: &Target,
    watchers: usize,
    stalled: usize,
    rate: f64,
    sharing: usize,
) -> anyhow::Result<Pass> {
    let clock = Instant::now();
    let start = revision(target).await?;
    let path = format!("/api/v1/namespaces/default/configmaps?watch=1&resourceVersion={start}");
    let (tell, expected) = tokio::sync::watch::channel(None);
    let mut tasks = JoinSet::new();
    let mut idle = Vec::new();
    for _ in 0..stalled {
        let mut c = target.h1().await?;
        c.open(&path).await?;
        idle.push(c);
    }
    for first in (0..watchers).step_by(sharing) {
        let views: Vec<View> = (first..watchers.min(first + sharing)).map(|i| View::new(start, clock, i)).collect();
        let from = match sharing {
            1 => Source::One(Lines::open(target, cx.version, &path).await?),
            _ => Source::Many(Box::new(Many::open(target, &path, views.len()).await?)),
        };
        tasks.spawn(follow(from, views, expected.clone()));
    }
    let counted = delays(target).await?;
    let before = skiff.process.usage()?;
    let written = open(target, Version::H1, WRITERS, rate, cx.time, move |n| {
        let name = format!("o-{:07}", n % OBJECTS);
        Request {
            method: "PUT",
            path: format!("/api/v1/namespaces/default/configmaps/{name}"),
            body: stamped(&name, clock.elapsed().as_micros()),
        }
    })
    .await?;
    let writes = written.times.len() as u64;
    tell.send_replace(Some(writes));
    let mut times = Times::default();
    let gather = async {
        while let Some(done) = tasks.join_next().await {
            times.join(done??);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(cx.time + Duration::from_secs(20), gather)
        .await
        .context("watchers did not get everything")??;
    let after = skiff.process.usage()?;
    let delay = quantiles(&counted, &delays(target).await?);
    drop(idle);
    Ok(Pass { times, delay, writes, rate: written.rate(), cpu: after.cpu - before.cpu, rss: after.rss })
}

async fn revision(target: &Target) -> anyhow::Result<u64> {
    revision_of(target, "/api/v1/namespaces/default/configmaps").await
}

/// The version of a collection.
///
/// # Errors
/// When the server does not answer.
pub(super) async fn revision_of(target: &Target, collection: &str) -> anyhow::Result<u64> {
    let list = target.h1().await?.call("GET", &format!("{collection}?limit=1"), b"").await?.success()?;
    let v: serde_json::Value = serde_json::from_slice(&list)?;
    Ok(v["metadata"]["resourceVersion"].as_str().context("no version")?.parse()?)
}

/// The server's histogram of the time between commit and sending: (upper bound in seconds, events up to it).
async fn delays(target: &Target) -> anyhow::Result<Vec<(f64, u64)>> {
    let text = target.h1().await?.call("GET", "/metrics", b"").await?.success()?;
    let mut out = vec![];
    for line in std::str::from_utf8(&text)?.lines() {
        let Some(rest) = line.strip_prefix("skiff_watch_delay_seconds_bucket{le=\"") else { continue };
        let (bound, count) = rest.split_once("\"} ").context("an odd bucket")?;
        out.push((bound.parse().unwrap_or(f64::INFINITY), count.trim().parse()?));
    }
    Ok(out)
}

fn quantiles(before: &[(f64, u64)], after: &[(f64, u64)]) -> String {
    let n = |i: usize| after[i].1 - before.get(i).map_or(0, |b| b.1);
    let Some(total) = after.len().checked_sub(1).map(n).filter(|t| *t > 0) else { return "not counted".into() };
    let at = |percent: u64| {
        let found = (0..after.len()).find(|i| n(*i) * 100 >= total * percent);
        found.map_or(f64::INFINITY, |i| after[i].0 * 1e3)
    };
    format!("p50 <= {:.1} ms, p99 <= {:.1} ms", at(50), at(99))
}

/// A watch as a stream of lines.
pub(super) struct Lines {
    wire: Wire,
    rest: BytesMut,
}

enum Wire {
    H1(Box<H1>),
    H2(Incoming),
}

impl Lines {
    /// Opens a watch.
    ///
    /// # Errors
    /// When the server does not answer with a stream.
    pub(super) async fn open(target: &Target, version: Version, path: &str) -> anyhow::Result<Self> {
        let wire = match version {
            Version::H1 => {
                let mut c = target.h1().await?;
                c.open(path).await?;
                Wire::H1(Box::new(c))
            }
            Version::H2 => Wire::H2(target.h2().await?.open(path).await?),
        };
        Ok(Self { wire, rest: BytesMut::new() })
    }

    /// Some whole lines, at least one.
    ///
    /// # Errors
    /// When the server ends the stream.
    pub(super) async fn next(&mut self) -> anyhow::Result<Bytes> {
        loop {
            let chunk = match &mut self.wire {
                Wire::H1(c) => c.chunk().await?,
                Wire::H2(b) => match b.frame().await {
                    Some(f) => f?.into_data().ok(),
                    None => None,
                },
            };
            let Some(chunk) = chunk else { bail!("the server ended the watch") };
            if self.rest.is_empty() && chunk.last() == Some(&b'\n') {
                return Ok(chunk);
            }
            self.rest.extend_from_slice(&chunk);
            if let Some(end) = memchr::memrchr(b'\n', &self.rest) {
                return Ok(self.rest.split_to(end + 1).freeze());
            }
        }
    }
}

/// Where events come from.
enum Source {
    One(Lines),
    Many(Box<Many>),
}

/// What one watcher has seen.
struct View {
    last: u64,
    seen: u64,
    /// One that looks at the times, too, has the clock that writers have.
    clock: Option<Instant>,
    times: Times,
}

impl View {
    fn new(start: u64, clock: Instant, index: usize) -> Self {
        Self { last: start, seen: 0, clock: index.is_multiple_of(TIMED).then_some(clock), times: Times::default() }
    }

    /// Counts the events of whole lines and checks their order.
    fn look(&mut self, mut lines: &[u8], find: &[Finder<'_>; 2]) -> anyhow::Result<()> {
        let number =
            |bytes: &[u8]| bytes.iter().take_while(|b| b.is_ascii_digit()).fold(0, |n, b| n * 10 + u64::from(b - b'0'));
        let [version, sent] = find;
        while let Some(end) = memchr::memchr(b'\n', lines) {
            let line = &lines[..end];
            let at = version.find(line).context("an event without a version")? + version.needle().len();
            let revision = number(&line[at..]);
            ensure!(revision > self.last, "version {revision} came after {}", self.last);
            (self.last, self.seen) = (revision, self.seen + 1);
            if let Some(clock) = self.clock
                && let Some(at) = sent.find(line)
            {
                let now = clock.elapsed();
                let written = Duration::from_micros(number(&line[at + sent.needle().len()..]));
                self.times.add(now.saturating_sub(written));
            }
            lines = &lines[end + 1..];
        }
        Ok(())
    }
}

/// Reads until each has seen as many events as were written.
async fn follow(mut from: Source, mut views: Vec<View>, mut expected: Receiver<Option<u64>>) -> anyhow::Result<Times> {
    let find = [Finder::new(b"\"resourceVersion\":\""), Finder::new(b"\"sent\":\"")];
    // One future for the whole watch: to begin a new one with every piece would cost the server processor time.
    let mut known = pin!(async move { expected.wait_for(Option::is_some).await.map(|n| *n) });
    // The last events may be in hand before the number of writes is known.
    let mut total = None;
    while total.is_none_or(|t| views.iter().any(|v| v.seen < t)) {
        let more = async {
            match &mut from {
                Source::One(lines) => views[0].look(&lines.next().await?, &find),
                Source::Many(many) => many.next(|i, lines| views[i].look(lines, &find)).await,
            }
        };
        tokio::select! {
            biased;
            more = more => more?,
            n = &mut known, if total.is_none() => total = n?,
        }
    }
    ensure!(views.iter().all(|v| total == Some(v.seen)), "more events than writes");
    let mut times = Times::default();
    views.into_iter().for_each(|v| times.join(v.times));
    Ok(times)
}
