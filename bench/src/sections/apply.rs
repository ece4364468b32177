//! From a pod's creation to Running, and which part of that is not the engine's.
//!
//! The node agent logs when each call to the engine began and how long it took. What is left of the time between sending
//! the pod and seeing it Running, when the union of these calls is taken away, is this program's own part.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::Context;
use crate::http::{Client, Target, Version};
use crate::process::Skiff;
use crate::report::{Report, Times};

const PODS: u64 = 40;
const IMAGE: &str = "skiff/busybox:1";
/// Longest wait for one step of a pod.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let skiff = Skiff::start(&cx.skiff, cx.data("apply"), true).await?;
    let target = skiff.target("admin")?;
    let mut client = target.connect(Version::H1).await?;
    let account = "/api/v1/namespaces/default/serviceaccounts/default";
    until(&mut client, account, |code, _| code == 200).await.context("no account for pods")?;
    let ready = |_: u16, v: &Value| {
        let conditions = v["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    until(&mut client, "/api/v1/nodes/skiff-bench", ready).await.context("the node is not ready")?;
    let (mut whole, mut spans) = (Times::default(), vec![]);
    for n in 0..cx.scaled(PODS) + 2 {
        let span = one(&target, &mut client, n).await.with_context(|| format!("pod {n}"))?;
        // The first ones find everything cold.
        if n >= 2 {
            whole.add(Duration::from_micros(span.1 - span.0));
            spans.push(span);
        }
    }
    let calls = calls(&skiff.log()?);
    let mut own = Times::default();
    for (begun, ended) in spans {
        own.add(Duration::from_micros((ended - begun).saturating_sub(covered(&calls, begun, ended))));
    }
    report.row(
        format!("pod from creation to Running, one at a time ({} pods)", whole.len()),
        "own part p50 30 ms, p99 150 ms",
        format!("own part {}", own.summary()),
        format!("with the engine {}", whole.summary()),
    );
    skiff.process.stop().await
}

fn micros() -> anyhow::Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?)
}

/// Creates a pod, sees it run, and deletes it. Answers when it was sent and when it was seen, in microseconds.
async fn one(target: &Target, client: &mut Client, n: u64) -> anyhow::Result<(u64, u64)> {
    let name = format!("p-{n}");
    let pods = "/api/v1/namespaces/default/pods";
    let path = format!("{pods}/{name}");
    let mut watch = target.h1().await?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"]}]}});
    watch.open(&format!("{pods}?watch=1&fieldSelector=metadata.name%3D{name}")).await?;
    let begun = micros()?;
    client.call("POST", pods, pod.to_string().as_bytes()).await?.success()?;
    let running = async {
        while let Some(piece) = watch.chunk().await? {
            if memchr::memmem::find(&piece, b"\"phase\":\"Running\"").is_some() {
                return micros();
            }
        }
        bail!("the watch ended")
    };
    let ended = tokio::time::timeout(PATIENCE, running).await.context("not Running in time")??;
    client.call("DELETE", &format!("{path}?gracePeriodSeconds=0"), b"").await?.success()?;
    until(client, &path, |code, _| code == 404).await?;
    // What the engine still does for the pod that is gone must not count for the next one.
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok((begun, ended))
}

async fn until(client: &mut Client, path: &str, done: impl Fn(u16, &Value) -> bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let reply = client.call("GET", path, b"").await?;
        if done(reply.code, &serde_json::from_slice(&reply.body)?) {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!("{path} did not come to be as expected");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The engine calls in a log, as beginning and end in microseconds.
fn calls(log: &str) -> Vec<(u64, u64)> {
    let number = |line: &str, name: &str| -> Option<u64> {
        line.split_once(name)?.1.split_ascii_whitespace().next()?.parse().ok()
    };
    let call = |line: &str| {
        let began = number(line, " began=")?;
        Some((began, began + number(line, " took=")?))
    };
    let mut found: Vec<_> = log.lines().filter(|l| l.contains("engine call")).filter_map(call).collect();
    found.sort_unstable();
    found
}

/// How much of the time from `begun` to `ended` lies within calls, which are sorted.
fn covered(calls: &[(u64, u64)], begun: u64, ended: u64) -> u64 {
    let (mut sum, mut at) = (0, begun);
    for (from, to) in calls {
        let (from, to) = ((*from).max(at), (*to).min(ended));
        if from < to {
            sum += to - from;
            at = to;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_calls_count_once() {
        let log = "T DEBUG skiff_kubelet::engine: engine call call=\"start\" began=100 took=50\n\
                   T WARN something else\n\
                   T DEBUG skiff_kubelet::engine: engine call call=\"list\" began=120 took=10\n\
                   T DEBUG skiff_kubelet::engine: engine call call=\"list\" began=140 took=30\n";
        let calls = calls(log);
        assert_eq!(calls, [(100, 150), (120, 130), (140, 170)]);
        assert_eq!(covered(&calls, 0, 1000), 70);
        assert_eq!(covered(&calls, 110, 160), 50);
        assert_eq!(covered(&calls, 170, 200), 0);
    }
}
