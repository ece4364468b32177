//! What the program costs while nobody asks it anything.

use std::time::Duration;

use crate::Context;
use crate::process::Skiff;
use crate::report::{Report, mib};

/// How long the program is left alone before it is looked at, and how long it is then watched.
const SETTLE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_secs(20);

/// The API server alone.
pub(crate) async fn apiserver(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let size = std::fs::metadata(&cx.skiff)?.len();
    report.row("size of the program", "-", format!("{:.1} MiB", mib(size)), "");
    let first = Skiff::start(&cx.skiff, cx.data("idle"), false).await?;
    let fresh = first.ready_after;
    let data = first.data.clone();
    first.process.stop().await?;
    let skiff = Skiff::start(&cx.skiff, data, false).await?;
    let again = skiff.ready_after;
    report.row(
        "API server, start to ready",
        "1 s",
        format!("{fresh:.0?} on an empty directory, {again:.0?} on a used one"),
        "kube-apiserver 1.36: 2.7 s",
    );
    idle(&skiff, "API server", "-", "kube-apiserver 1.36: 267 MB, 0.7 %, and etcd", report).await?;
    skiff.process.stop().await
}

/// The whole program.
pub(crate) async fn up(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let skiff = Skiff::start(&cx.skiff, cx.data("up"), true).await?;
    report.row(
        "whole program, start to API ready",
        "1 s",
        format!("{:.0?} on an empty directory", skiff.ready_after),
        "",
    );
    idle(&skiff, "whole program", "32 MiB (60 at most), 0.3 %", "k3s 1.26: 1,428 MB, 5 %", report).await?;
    skiff.process.stop().await
}

async fn idle(skiff: &Skiff, what: &str, goal: &str, peer: &str, report: &mut Report) -> anyhow::Result<()> {
    tokio::time::sleep(SETTLE).await;
    let before = skiff.process.usage()?;
    tokio::time::sleep(LOOK).await;
    let after = skiff.process.usage()?;
    let share = (after.cpu - before.cpu) / LOOK.as_secs_f64() * 100.0;
    report.row(
        format!("{what}, idle"),
        goal,
        format!(
            "{:.1} MiB resident (peak {:.1}; {:.1} of it data, the rest the program's own pages), {share:.2} % of a core",
            mib(after.rss),
            mib(after.peak),
            mib(after.anon)
        ),
        peer,
    );
    Ok(())
}
