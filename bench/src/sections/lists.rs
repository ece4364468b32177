//! Lists, and what stored objects cost in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Context;
use crate::http::Version;
use crate::load::{Request, Until, closed};
use crate::objects::{config_map, labelled, pod};
use crate::process::Skiff;
use crate::report::{Report, mib};

const BASE: &str = "/api/v1/namespaces/default/configmaps";

/// 10,000 objects of 100 KB, read whole by 16 clients at once.
pub(crate) async fn large(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    const CLIENTS: usize = 16;
    let objects = cx.scaled(10_000);
    let skiff = Skiff::start(&cx.skiff, cx.data("lists"), false).await?;
    let target = super::through_rbac(&skiff).await?;
    super::fill(&target, objects, |name, _| config_map(name, 100_000)).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = skiff.process.usage()?;
    skiff.process.forget_peak()?;
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..CLIENTS {
        let mut c = target.h1().await?;
        tasks.spawn(async move { c.count(BASE).await });
    }
    let mut total = 0;
    while let Some(done) = tasks.join_next().await {
        let (code, bytes) = done??;
        anyhow::ensure!(code == 200, "the list answered {code}");
        total += bytes;
    }
    let took = begun.elapsed();
    let after = skiff.process.usage()?;
    report.row(
        format!("LIST of {objects} objects of 100 KB by {CLIENTS} clients at once"),
        "200 MB above the data",
        format!(
            "{:.1} MiB above {:.0} MiB; {:.1} s, {:.0} MiB/s",
            mib(after.peak.saturating_sub(before.rss)),
            mib(before.rss),
            took.as_secs_f64(),
            mib(total) / took.as_secs_f64()
        ),
        "",
    );
    skiff.process.stop().await
}

/// Few of very many by label.
pub(crate) async fn select(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let objects = cx.scaled(300_000);
    let groups = (objects / 100).max(1);
    let skiff = Skiff::start(&cx.skiff, cx.data("select"), false).await?;
    let target = super::through_rbac(&skiff).await?;
    super::fill(&target, objects, move |name, n| labelled(name, 700, n % groups)).await?;
    let filled = skiff.process.usage()?;
    for (what, selector) in [
        ("100 of them by label", "group%3DN"),
        ("none by label", "group%3Dnone"),
        ("100 by a set", "group+in+(N),app"),
        ("none by a negation", "app!%3Dbench"),
    ] {
        let make = move |n: u64| {
            let group = (n * 31 % groups).to_string();
            Request::get(format!("{BASE}?labelSelector={}", selector.replace('N', &group)))
        };
        let mut o = closed(&target, cx.version, 1, Until::Time(cx.time / 2, 1000), make).await?;
        report.row(
            format!("LIST of {what} out of {objects} objects of 1 KB"),
            "p99 100 ms",
            o.times.summary(),
            "kube-apiserver 1.36: 480 ms with 59,700",
        );
    }
    // The same while somebody writes: how long a list holds writers up.
    let stop = Arc::new(AtomicBool::new(false));
    let lists = Arc::new(AtomicU64::new(0));
    let (s, l, mut c) = (Arc::clone(&stop), Arc::clone(&lists), target.h1().await?);
    let lister = tokio::spawn(async move {
        while !s.load(Ordering::Relaxed) {
            c.count(&format!("{BASE}?labelSelector=group%3D7")).await?;
            l.fetch_add(1, Ordering::Relaxed);
        }
        anyhow::Ok(())
    });
    let make = |n: u64| Request { method: "POST", path: BASE.into(), body: config_map(&format!("w-{n:07}"), 700) };
    let mut o = closed(&target, Version::H1, 4, Until::Time(cx.time / 2, 100_000), make).await?;
    stop.store(true, Ordering::Relaxed);
    lister.await??;
    report.row(
        "creates by 4 clients beside such lists without pause",
        "-",
        format!("{:.0}/s, {}; {} lists", o.rate(), o.times.summary(), lists.load(Ordering::Relaxed)),
        format!("{:.0} MiB with all stored", mib(filled.rss)),
    );
    skiff.process.stop().await
}

/// Memory per stored pod beyond its JSON.
pub(crate) async fn pods(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let count = cx.scaled(20_000);
    let skiff = Skiff::start(&cx.skiff, cx.data("pods"), false).await?;
    let target = super::through_rbac(&skiff).await?;
    let mut c = target.h1().await?;
    let account = br#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"default"}}"#;
    c.call("POST", "/api/v1/namespaces/default/serviceaccounts", account).await?.success()?;
    let path = "/api/v1/namespaces/default/pods";
    let make = move |n: u64| Request { method: "POST", path: path.into(), body: pod(&format!("p-{n:06}")) };
    // What the first requests leave behind belongs to no pod.
    closed(&target, Version::H1, 16, Until::Count(100), make).await?;
    let before = skiff.process.usage()?;
    closed(&target, Version::H1, 16, Until::Count(count), move |n| make(n + 100)).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = skiff.process.usage()?;
    let (_, bytes) = c.count(path).await?;
    #[allow(clippy::cast_precision_loss)]
    let (each, json) = (
        after.rss.saturating_sub(before.rss) as f64 / count as f64 / 1024.0,
        bytes as f64 / (count + 100) as f64 / 1024.0,
    );
    report.row(
        format!("memory per stored pod ({count} pods)"),
        "its JSON + 10 KB",
        format!("{each:.1} KiB, its JSON {json:.1} KiB: {:.1} KiB above", each - json),
        "kube-apiserver and etcd: 85 to 170 KB",
    );
    skiff.process.stop().await
}
