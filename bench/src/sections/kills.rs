//! Functions from none to many instances and back, again and again, while instances and the whole program are killed:
//! whether a request that was accepted is lost.
//!
//! Accepted for good is what was answered with 202; those are asked for at the end. Who waits for an answer gets one, or knows
//! from a broken connection that the program is gone. Rounds are of three kinds in turn: nothing happens, instances are
//! killed, the program is killed and started again on the same data.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::Context;
use crate::http::Target;
use crate::process::{Skiff, free_port};
use crate::report::Report;

const CODE: &str = "import time\ndef main(params):\n    time.sleep(0.3)\n    return params\n";
const API: &str = "/apis/skiff.dev/v1/namespaces/default/functions";
/// Cycles of a function, and functions that go through them at the same time.
const CYCLES: (u64, u64) = (100, 10);
/// Calls of each function in a cycle: with somebody who waits, and without.
const CALLS: (usize, usize) = (4, 4);
/// When something is killed: instances run, calls are under way.
const KILL: Duration = Duration::from_millis(500);
/// Longest wait for everything to be done and asleep.
const PATIENCE: Duration = Duration::from_secs(180);
/// Users that instances run as.
const USERS: std::ops::Range<u32> = 200_000..300_000;

/// What became of requests.
#[derive(Default)]
struct Tally {
    answered: u64,
    /// With 502 or 503.
    refused: u64,
    /// With something else.
    wrong: Vec<String>,
    /// The connection broke, or there was none.
    broken: u64,
    accepted: Vec<String>,
}

enum Outcome {
    Answered(u16, String),
    Accepted(String),
    Broken,
}

async fn call(gateway: Target, path: String, queued: bool) -> Outcome {
    let sent = async { gateway.h1().await?.call("POST", &path, br#"{"x":1}"#).await };
    let Ok(reply) = sent.await else { return Outcome::Broken };
    if queued && reply.code == 202 {
        let said: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        return Outcome::Accepted(said["id"].as_str().unwrap_or_default().to_owned());
    }
    Outcome::Answered(reply.code, String::from_utf8_lossy(&reply.body).into_owned())
}

/// Processes of instances below a process.
fn instances(of: u32) -> Vec<u32> {
    let status = |pid: u32, field: &str| -> Option<u32> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        text.lines().find_map(|l| l.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
    };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let ours = || std::iter::successors(Some(*pid), |p| status(*p, "PPid:")).any(|p| p == of);
        status(*pid, "Uid:").is_some_and(|uid| USERS.contains(&uid)) && ours()
    })
    .collect()
}

pub(crate) async fn run(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let (cycles, functions) = CYCLES;
    let rounds = cx.scaled(cycles).div_ceil(functions).max(3);
    let port = free_port()?;
    let more = ["--functions-http-port".to_owned(), port.to_string(), "--functions-https-port=0".to_owned()];
    let start = || Skiff::start_with(&cx.skiff, cx.data("kills"), true, &more);
    let gateway = Target::Plain(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let mut skiff = start().await?;
    let names: Vec<String> = (0..functions).map(|i| format!("k-{i}")).collect();
    make(&skiff, &names).await?;
    let (mut tally, mut killed) = (Tally::default(), 0);
    for round in 0..rounds {
        let mut calls = JoinSet::new();
        for name in &names {
            let (waiting, queued) = CALLS;
            (0..waiting)
                .for_each(|_| drop(calls.spawn(call(gateway.clone(), format!("/function/default/{name}"), false))));
            (0..queued).for_each(|_| drop(calls.spawn(call(gateway.clone(), format!("/async/default/{name}"), true))));
        }
        tokio::time::sleep(KILL).await;
        match round % 3 {
            1 => {
                let all = instances(skiff.process.pid);
                ensure!(!all.is_empty(), "no instance runs {KILL:?} after the first call");
                let some: Vec<String> = all.iter().step_by(2).map(u32::to_string).collect();
                killed += some.len();
                tokio::process::Command::new("kill").arg("-9").args(&some).output().await?;
            }
            2 => {
                skiff.process.kill().await?;
                skiff = start().await?;
            }
            _ => {}
        }
        while let Some(done) = calls.join_next().await {
            match done? {
                Outcome::Answered(200, _) => tally.answered += 1,
                Outcome::Answered(502 | 503, _) => tally.refused += 1,
                Outcome::Answered(code, said) => tally.wrong.push(format!("{code} {said}")),
                Outcome::Accepted(id) => tally.accepted.push(id),
                Outcome::Broken => tally.broken += 1,
            }
        }
        asleep(&skiff).await.with_context(|| format!("after round {round}"))?;
    }
    let mut lost = 0;
    let mut client = gateway.h1().await?;
    for id in &tally.accepted {
        let reply = client.call("GET", &format!("/result/default/{id}"), b"").await?;
        lost += u64::from(reply.code != 200);
    }
    let Tally { answered, refused, wrong, broken, accepted } = tally;
    report.row(
        format!(
            "{} cycles of none to many to none, with {killed} instances and {} programs killed",
            rounds * functions,
            rounds / 3
        ),
        "no accepted request lost",
        format!(
            "{} accepted, {lost} lost; of those who waited {answered} answered, {refused} told 502 or 503, {broken} \
             connections broken, {} other answers {:?}",
            accepted.len(),
            wrong.len(),
            wrong.first()
        ),
        "",
    );
    skiff.process.stop().await?;
    ensure!(lost == 0 && wrong.is_empty(), "{lost} lost, wrong: {wrong:?}");
    Ok(())
}

async fn make(skiff: &Skiff, names: &[String]) -> anyhow::Result<()> {
    let (mut api, begun) = (skiff.target("admin")?.h1().await?, Instant::now());
    while api.call("GET", API, b"").await?.code != 200 {
        ensure!(begun.elapsed() < PATIENCE, "functions are not served");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for name in names {
        let spec = json!({
            "public": true, "runtime": "python", "isolation": "process", "source": {"inline": CODE},
            "async": {"retries": 10, "backoffSeconds": 1},
            "scale": {"initial": 0, "windowSeconds": 6, "scaleToZeroGraceSeconds": 0},
        });
        let whole = json!({"apiVersion": "skiff.dev/v1", "kind": "Function", "metadata": {"name": name}, "spec": spec});
        api.call("POST", API, whole.to_string().as_bytes()).await?.success()?;
    }
    asleep(skiff).await
}

/// Waits until every function sleeps and no call waits.
async fn asleep(skiff: &Skiff) -> anyhow::Result<()> {
    let (mut api, begun) = (skiff.target("admin")?.h1().await?, Instant::now());
    let mut list = async |path: &str| -> anyhow::Result<Vec<Value>> {
        let mut all: Value = serde_json::from_slice(&api.call("GET", path, b"").await?.success()?)?;
        Ok(all["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    };
    loop {
        let busy = |f: &Value| f["status"]["state"] != "Hibernated" || f["status"]["instances"].as_u64() != Some(0);
        let open = |c: &Value| c["status"]["state"] != "Succeeded";
        let all = list(API).await?;
        let busy: Vec<&Value> = all.iter().filter(|f| busy(f)).collect();
        let open =
            list("/apis/skiff.dev/v1/namespaces/default/functioncalls").await?.iter().filter(|c| open(c)).count();
        let left = instances(skiff.process.pid).len();
        if busy.is_empty() && open == 0 && left == 0 {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "{} functions do not sleep, {open} calls are not done, {left} processes run: {:?}",
            busy.len(),
            busy.first().map(|f| (&f["metadata"]["name"], &f["status"]))
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
