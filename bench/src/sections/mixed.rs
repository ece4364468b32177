//! The requests of a busy day over many stored objects, at a fixed rate.

use crate::Context;
use crate::load::{Request, open};
use crate::objects::config_map;
use crate::process::Skiff;
use crate::report::{Report, mib};

const RATE: f64 = 2000.0;
/// Turns between a creation and its deletion; odd, because creations are at even ones.
const LATER: u64 = 51;

pub(crate) async fn run(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let objects = cx.scaled(50_000);
    let skiff = Skiff::start(&cx.skiff, cx.data("mixed"), false).await?;
    let target = super::through_rbac(&skiff).await?;
    super::fill(&target, objects, |name, _| config_map(name, 1024)).await?;
    let filled = skiff.process.usage()?;
    let base = "/api/v1/namespaces/default/configmaps";
    // Half reads; a fifth updates, a fifth patches, and creates, short lists and deletions of what was created.
    let make = move |part: &'static str, n: u64| {
        let name = format!("o-{:07}", n * 7919 % objects);
        // What is deleted was created half a second before.
        let (turn, made) = (n / 20, |turn: u64| format!("{part}-{turn:07}"));
        let path = format!("{base}/{name}");
        match n % 20 {
            0..=9 => Request::get(path),
            10..=13 => {
                Request { method: "PUT", path, body: config_map(&name, 1000 + usize::try_from(n % 24).unwrap_or(0)) }
            }
            14..=16 => {
                let body = format!(r#"{{"metadata":{{"annotations":{{"bench":"{n}"}}}}}}"#).into_bytes();
                Request { method: "PATCH", path, body }
            }
            17 if turn % 2 == 0 => Request { method: "POST", path: base.into(), body: config_map(&made(turn), 1024) },
            17 if turn > LATER => {
                Request { method: "DELETE", path: format!("{base}/{}", made(turn - LATER)), body: Vec::new() }
            }
            18 => Request::get(format!("{base}?limit=20")),
            _ => Request::get(format!("/api/v1/namespaces/default/configmaps?fieldSelector=metadata.name%3D{name}")),
        }
    };
    open(&target, cx.version, 64, RATE, cx.time / 5, move |n| make("early", n)).await?;
    let before = skiff.process.usage()?;
    let mut o = open(&target, cx.version, 64, RATE, cx.time, move |n| make("late", n)).await?;
    let after = skiff.process.usage()?;
    report.row(
        format!("{RATE} mixed requests/s, {objects} objects stored"),
        "p99 10 ms, 150 MiB",
        format!(
            "{}, {:.0}/s, {:.0} % of a core, {:.0} MiB filled, {:.0} MiB after",
            o.times.summary(),
            o.rate(),
            (after.cpu - before.cpu) / o.took.as_secs_f64() * 100.0,
            mib(filled.rss),
            mib(after.rss)
        ),
        "",
    );
    skiff.process.stop().await
}
