//! Load: closed (a client sends when it has its answer) and open (requests are due at fixed times, and lateness counts).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::task::JoinSet;

use crate::http::{Client, Target, Version};
use crate::report::Times;

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Method.
    pub(crate) method: &'static str,
    /// Path and query.
    pub(crate) path: String,
    /// Body.
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// A GET.
    #[must_use]
    pub(crate) fn get(path: String) -> Self {
        Self { method: "GET", path, body: vec![] }
    }
}

/// What a load came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Per request: from sending (closed) or from when it was due (open) to the whole answer.
    pub(crate) times: Times,
    /// Wall time.
    pub(crate) took: Duration,
}

impl Outcome {
    /// Requests a second.
    #[must_use]
    pub(crate) fn rate(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let n = self.times.len() as f64;
        n / self.took.as_secs_f64()
    }
}

/// How a closed load ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// After this many requests.
    Count(u64),
    /// After this time, or this many requests.
    Time(Duration, u64),
}

/// `clients` connections, each sending its next request when it has the answer. `make` gets the request's number.
///
/// # Errors
/// When any request fails.
pub(crate) async fn closed(
    target: &Target,
    version: Version,
    clients: usize,
    until: Until,
    make: impl Fn(u64) -> Request + Send + Sync + 'static,
) -> anyhow::Result<Outcome> {
    let mut open = Vec::with_capacity(clients);
    for _ in 0..clients {
        open.push(target.connect(version).await?);
    }
    let (make, next) = (Arc::new(make), Arc::new(AtomicU64::new(0)));
    let begun = Instant::now();
    let (count, end) = match until {
        Until::Count(n) => (n, None),
        Until::Time(t, n) => (n, Some(begun + t)),
    };
    let mut tasks = JoinSet::new();
    for mut client in open {
        let (make, next) = (Arc::clone(&make), Arc::clone(&next));
        tasks.spawn(async move {
            let mut times = Times::default();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count || end.is_some_and(|e| Instant::now() >= e) {
                    return anyhow::Ok(times);
                }
                let r = make(n);
                let sent = Instant::now();
                send(&mut client, &r).await?;
                times.add(sent.elapsed());
            }
        });
    }
    gather(tasks, begun).await
}

/// Requests due at `rate` a second for `time`, over `clients` connections. A request that is late because the one before
/// it on its connection took long counts from when it was due.
///
/// # Errors
/// When any request fails.
pub(crate) async fn open(
    target: &Target,
    version: Version,
    clients: usize,
    rate: f64,
    time: Duration,
    make: impl Fn(u64) -> Request + Send + Sync + 'static,
) -> anyhow::Result<Outcome> {
    let mut connections = Vec::with_capacity(clients);
    for _ in 0..clients {
        connections.push(target.connect(version).await?);
    }
    let (make, next) = (Arc::new(make), Arc::new(AtomicU64::new(0)));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for mut client in connections {
        let (make, next) = (Arc::clone(&make), Arc::clone(&next));
        tasks.spawn(async move {
            let mut times = Times::default();
            loop {
                // Whoever is free takes the next request: so one slow answer delays nobody else's.
                let n = next.fetch_add(1, Ordering::Relaxed);
                #[allow(clippy::cast_precision_loss)]
                let due = begun + Duration::from_secs_f64(n as f64 / rate);
                if due >= begun + time {
                    return anyhow::Ok(times);
                }
                let late = Instant::now().saturating_duration_since(due);
                tokio::time::sleep_until(due.into()).await;
                let r = make(n);
                // On time: from now, since the timer's grain of a millisecond is not the server's doing.
                let start = if late.is_zero() { Instant::now() } else { due };
                send(&mut client, &r).await?;
                times.add(start.elapsed());
            }
        });
    }
    gather(tasks, begun).await
}

async fn send(client: &mut Client, r: &Request) -> anyhow::Result<()> {
    let reply = client.call(r.method, &r.path, &r.body).await?;
    if !matches!(reply.code, 200 | 201) {
        bail!("{} {} answered {}: {}", r.method, r.path, reply.code, String::from_utf8_lossy(&reply.body));
    }
    Ok(())
}

async fn gather(mut tasks: JoinSet<anyhow::Result<Times>>, begun: Instant) -> anyhow::Result<Outcome> {
    let mut all = Outcome::default();
    while let Some(done) = tasks.join_next().await {
        all.times.join(done??);
    }
    all.took = begun.elapsed();
    Ok(all)
}
