//! Functions at the HTTP door: first calls, many first calls at once, warm calls, memory.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::Context;
use crate::http::{Target, Version};
use crate::load::{Outcome, Request, Until, closed, open};
use crate::process::{Skiff, free_port};
use crate::report::{Report, Times, mib};

const CODE: &str = "def main(params):\n    return {\"x\": params[\"x\"] + 5}\n";
const API: &str = "/apis/skiff.dev/v1/namespaces/default/functions";
const REVISIONS: &str = "/apis/skiff.dev/v1/namespaces/default/functionrevisions";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
/// Longest wait for functions to be known.
const PATIENCE: Duration = Duration::from_secs(180);
/// Functions whose first call is measured one after the other.
const FIRST: u64 = 100;
/// The same of those that run in pods.
const FIRST_PODS: u64 = 10;
/// Sleeping functions, and how many of them are woken at once.
const MANY: (u64, u64) = (1000, 100);

struct Bench {
    skiff: Skiff,
    api: Target,
    gateway: Target,
}

impl Bench {
    async fn make(&self, names: impl Iterator<Item = String>, more: Value) -> anyhow::Result<()> {
        let mut bodies = vec![];
        for name in names {
            let mut spec =
                json!({"public": true, "runtime": "python", "source": {"inline": CODE}, "scale": {"initial": 0}});
            if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
                spec.extend(more.clone());
            }
            let whole =
                json!({"apiVersion": "skiff.dev/v1", "kind": "Function", "metadata": {"name": name}, "spec": spec});
            bodies.push(whole.to_string().into_bytes());
        }
        let count = bodies.len() as u64;
        let make = move |n: u64| {
            let body = bodies.get(usize::try_from(n).unwrap_or_default()).cloned().unwrap_or_default();
            Request { method: "POST", path: API.into(), body }
        };
        closed(&self.api, Version::H1, 8, Until::Count(count), make).await?;
        self.asleep().await
    }

    /// Waits until the controller has seen all of them.
    async fn asleep(&self) -> anyhow::Result<()> {
        self.all_are(&["Hibernated", "Running"]).await
    }

    /// Waits until none has instances: what is measured next is not beside the end of what was measured before.
    async fn quiet(&self) -> anyhow::Result<()> {
        self.all_are(&["Hibernated"]).await
    }

    async fn all_are(&self, states: &[&str]) -> anyhow::Result<()> {
        let (mut client, begun) = (self.api.h1().await?, Instant::now());
        loop {
            let all: Value = serde_json::from_slice(&client.call("GET", API, b"").await?.success()?)?;
            let items = all["items"].as_array().context("no list")?;
            let is = |f: &Value| f["status"]["state"].as_str().is_some_and(|state| states.contains(&state));
            if items.iter().all(is) {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "not all functions are {states:?} in time");
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Bytes of the objects that belong to functions, as JSON.
    async fn stored(&self) -> anyhow::Result<u64> {
        let mut client = self.api.h1().await?;
        let mut sum = 0;
        for path in [API, REVISIONS, "/api/v1/namespaces/default/services", SLICES, "/api/v1/namespaces/default/events"]
        {
            sum += client.call("GET", path, b"").await?.success()?.len() as u64;
        }
        Ok(sum)
    }

    /// One call on a connection of its own, from before it is made.
    async fn call(gateway: Target, name: String) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let mut client = gateway.h1().await?;
        let reply = client.call("POST", &format!("/function/default/{name}"), br#"{"x":100}"#).await?;
        let (took, code) = (begun.elapsed(), reply.code);
        let answer: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        ensure!(code == 200 && answer["x"] == 105, "{name} answered {code}: {}", String::from_utf8_lossy(&reply.body));
        Ok(took)
    }

    /// Calls that begin at the same time, and how many of them failed.
    async fn at_once(&self, names: impl Iterator<Item = String>) -> (Times, usize) {
        let mut calls: JoinSet<_> = names.map(|name| Self::call(self.gateway.clone(), name)).collect();
        let (mut times, mut failed) = (Times::default(), 0);
        while let Some(done) = calls.join_next().await {
            match done {
                Ok(Ok(took)) => times.add(took),
                _ => failed += 1,
            }
        }
        (times, failed)
    }

    async fn one_by_one(&self, names: impl Iterator<Item = String>) -> anyhow::Result<Times> {
        let mut times = Times::default();
        for name in names {
            times.add(Self::call(self.gateway.clone(), name).await?);
        }
        Ok(times)
    }

    /// Where the instance answers that was started last, without the gateway.
    async fn newest(&self) -> anyhow::Result<Target> {
        let mut find = Command::new("find");
        find.arg(self.skiff.data.join("functions")).args(["-type", "s", "-printf", "%T@ %p\\n"]);
        let sockets = String::from_utf8(find.output().await?.stdout)?;
        let newest = sockets.lines().max_by(|a, b| a.cmp(b)).context("no instance runs")?;
        let (_, path) = newest.split_once(' ').context("no path")?;
        Ok(Target::Unix(path.into()))
    }
}

pub(crate) async fn run(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let port = free_port()?;
    let more = ["--functions-http-port".to_owned(), port.to_string(), "--functions-https-port=0".to_owned()];
    let skiff = Skiff::start_with(&cx.skiff, cx.data("functions"), true, &more).await?;
    let (api, gateway) = (skiff.target("admin")?, Target::Plain(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    let bench = Bench { skiff, api, gateway };
    let begun = Instant::now();
    while bench.api.h1().await?.call("GET", API, b"").await?.code != 200 {
        ensure!(begun.elapsed() < PATIENCE, "functions are not served");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Memory first: what a load leaves behind would hide it.
    many(cx, &bench, report).await?;
    cold(cx, &bench, report).await?;
    warm(cx, &bench, report).await?;
    bench.skiff.process.stop().await
}

/// First calls.
async fn cold(cx: &Context, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let names = |kind: &'static str, n: u64| (0..n).map(move |i| format!("{kind}-{i}"));
    let first = cx.scaled(FIRST);
    bench.make(names("p", first + 2), json!({"isolation": "process"})).await?;
    bench.one_by_one(names("p", 2)).await?;
    let mut times = bench.one_by_one(names("p", first + 2).skip(2)).await?;
    report.row(
        format!("first call of a sleeping function, process class, Python ({first} functions)"),
        "p50 25 ms, p99 75 ms",
        times.summary(),
        "",
    );
    bench.make(["burst".to_owned()].into_iter(), json!({"isolation": "process"})).await?;
    let (mut times, failed) = bench.at_once((0..50).map(|_| "burst".to_owned())).await;
    report.row(
        "50 first calls at once of one sleeping function, process class",
        "no error, p95 300 ms",
        format!("{failed} errors, p95 {:.0} ms, {}", times.at(0.95), times.summary()),
        "",
    );
    let pods = cx.scaled(FIRST_PODS);
    bench.make(names("c", pods + 1), json!({"isolation": "container"})).await?;
    bench.one_by_one(names("c", 1)).await?;
    bench.quiet().await?;
    let mut times = bench.one_by_one(names("c", pods + 1).skip(1)).await?;
    let mut peer = Times::default();
    for _ in 0..5 {
        let begun = Instant::now();
        let ran = Command::new("docker").args(["run", "--rm", "skiff/python:1", "python3", "-c", "0"]).output().await?;
        ensure!(ran.status.success(), "docker run: {}", String::from_utf8_lossy(&ran.stderr));
        peer.add(begun.elapsed());
    }
    let ratio = times.at(0.5) / peer.at(0.5);
    report.row(
        format!("first call of a sleeping function, container class ({pods} functions)"),
        "p50 500 ms, p99 1500 ms, 1.3 times docker run",
        format!("{}: {ratio:.2} times docker run", times.summary()),
        format!("docker run of the same image: {}", peer.summary()),
    );
    Ok(())
}

/// Calls of what runs already.
async fn warm(cx: &Context, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    const RATE: f64 = 1000.0;
    const ROUNDS: u32 = 4;
    bench.quiet().await?;
    bench.make(["warm".to_owned()].into_iter(), json!({"isolation": "process", "scale": {"min": 1, "max": 1}})).await?;
    Bench::call(bench.gateway.clone(), "warm".to_owned()).await?;
    let direct = bench.newest().await?;
    let make =
        |path: &'static str| move |_| Request { method: "POST", path: path.into(), body: br#"{"x":100}"#.to_vec() };
    let (through, straight) = (make("/function/default/warm"), make("/"));
    let mut both = vec![];
    for (target, make) in [(&direct, straight), (&bench.gateway, through)] {
        open(target, Version::H1, 32, RATE, cx.time / 5, make).await?;
        both.push(open(target, Version::H1, 32, RATE, cx.time, make).await?);
    }
    let mut both = both.into_iter();
    let (mut plain, mut gateway) = (both.next().unwrap_or_default(), both.next().unwrap_or_default());
    let added = |part| gateway.times.clone().at(part) - plain.times.clone().at(part);
    let text = format!("p50 {:.2} ms, p99 {:.2} ms more; {}", added(0.5), added(0.99), gateway.times.summary());
    report.row(
        format!("{RATE} warm calls/s, what the gateway adds"),
        "p50 0.5 ms, p99 3 ms",
        text,
        format!("the instance itself: {}", plain.times.summary()),
    );
    // In turns: a machine that changes its speed meanwhile does so for both.
    let (mut few, mut many) = (Outcome::default(), Outcome::default());
    for _ in 0..ROUNDS {
        for (clients, all) in [(50, &mut few), (500, &mut many)] {
            let until = Until::Time(cx.time / ROUNDS, u64::MAX);
            let one = closed(&bench.gateway, Version::H1, clients, until, through).await?;
            all.times.join(one.times);
            all.took += one.took;
        }
    }
    report.row(
        "500 clients of one warm function",
        "no error, 0.9 of the rate of 50",
        format!(
            "no error, {:.0}/s: {:.2} of the rate of 50; {}",
            many.rate(),
            many.rate() / few.rate(),
            many.times.summary()
        ),
        format!("50 clients: {:.0}/s, {}", few.rate(), few.times.summary()),
    );
    Ok(())
}

/// Many functions that sleep.
async fn many(cx: &Context, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let (count, woken) = (cx.scaled(MANY.0), cx.scaled(MANY.1));
    bench.make(["parent".to_owned()].into_iter(), json!({"isolation": "process"})).await?;
    // The first of a node starts the parent that the others are forked from.
    Bench::call(bench.gateway.clone(), "parent".to_owned()).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (before, stored) = (bench.skiff.process.usage()?, bench.stored().await?);
    bench.make((0..count).map(|i| format!("m-{i:04}")), json!({"isolation": "process"})).await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (after, stored) = (bench.skiff.process.usage()?, bench.stored().await? - stored);
    report.row(
        format!("memory of {count} sleeping functions, their objects in the API server's store included"),
        "30 MiB",
        format!("{:.1} MiB", mib(after.rss.saturating_sub(before.rss))),
        format!("the JSON of these objects: {:.1} MiB", mib(stored)),
    );
    let (mut times, failed) = bench.at_once((0..woken).map(|i| format!("m-{:04}", i * 7 % count))).await;
    report.row(
        format!("{woken} of {count} sleeping functions woken at once, process class"),
        "no error, p95 1 s",
        format!("{failed} errors, p95 {:.0} ms, {}", times.at(0.95), times.summary()),
        "",
    );
    Ok(())
}
