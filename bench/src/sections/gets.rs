//! Reads of one object.

use crate::Context;
use crate::http::Version;
use crate::load::{Request, Until, closed};
use crate::objects::config_map;
use crate::process::Skiff;
use crate::report::Report;

const OBJECTS: u64 = 1000;

pub(crate) async fn run(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let skiff = Skiff::start(&cx.skiff, cx.data("gets"), false).await?;
    let target = super::through_rbac(&skiff).await?;
    super::fill(&target, OBJECTS, |name, _| config_map(name, 1024)).await?;
    let body =
        target.h1().await?.call("GET", "/api/v1/namespaces/default/configmaps/o-0000000", b"").await?.success()?;
    let limit = super::limit::reads(body, 64, cx.time).await?;
    for (version, name) in [(Version::H1, "HTTP/1.1"), (Version::H2, "HTTP/2")] {
        let make = |n: u64| Request::get(format!("/api/v1/namespaces/default/configmaps/o-{:07}", n * 7919 % OBJECTS));
        closed(&target, version, 64, super::warm(cx), make).await?;
        let before = skiff.process.usage()?;
        let mut o = closed(&target, version, 64, Until::Time(cx.time, u64::MAX), make).await?;
        let after = skiff.process.usage()?;
        #[allow(clippy::cast_precision_loss)]
        let cost = (after.cpu - before.cpu) / o.times.len() as f64 * 1e6;
        report.row(
            format!("GETs of 1 KiB objects, 64 clients, {name}"),
            "25,000/s",
            format!("{:.0}/s, {}, {cost:.1} us of server CPU each", o.rate(), o.times.summary()),
            format!(
                "the same bytes over TLS without an API server: {limit:.0}/s; kube-apiserver 1.36: 3,340/s, p99 64 ms"
            ),
        );
    }
    skiff.process.stop().await
}
