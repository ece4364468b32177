//! Durable creates, beside etcd's durable puts and what the disk can sync.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Context;
use crate::http::{Grpc, Version};
use crate::load::{Outcome, Request, Until, closed};
use crate::objects::config_map;
use crate::process::{Etcd, Skiff};
use crate::report::{Report, Times, mib};

const CLIENTS: usize = 64;
/// Enough for ten seconds at ten times the goal; bounds the disk a run may fill.
const MOST: u64 = 1_000_000;
const VALUE: usize = 1024;

pub(crate) async fn run(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let syncs = disk(&cx.dir, cx.time / 5)?;
    let disk = format!("disk: {syncs:.0} syncs/s of 4 KiB");
    let etcd = match Etcd::start(cx.data("etcd")).await? {
        Some(e) => {
            let o = puts(&e, cx.time).await?;
            let usage = e.process.usage()?;
            e.process.stop().await?;
            Some((o, usage))
        }
        None => None,
    };
    let mut peer_rate = None;
    let peer = match etcd {
        Some((mut o, u)) => {
            peer_rate = Some(o.rate());
            format!("etcd puts: {:.0}/s, {}, {:.0} MiB; {disk}", o.rate(), o.times.summary(), mib(u.rss))
        }
        None => format!("etcd is not installed; {disk}"),
    };
    for (version, name) in [(Version::H1, "HTTP/1.1"), (Version::H2, "HTTP/2")] {
        let skiff = Skiff::start(&cx.skiff, cx.data(&format!("creates-{name}").replace(['/', '.'], "")), false).await?;
        let target = super::through_rbac(&skiff).await?;
        let make = |n: u64| Request {
            method: "POST",
            path: "/api/v1/namespaces/default/configmaps".into(),
            body: config_map(&format!("c-{n:07}"), VALUE),
        };
        let before = skiff.process.usage()?;
        let mut o = closed(&target, version, CLIENTS, Until::Time(cx.time, MOST), make).await?;
        let after = skiff.process.usage()?;
        #[allow(clippy::cast_precision_loss)]
        let cost = (after.cpu - before.cpu) / o.times.len() as f64 * 1e6;
        let ratio = peer_rate.map_or(String::new(), |p| format!(", {:.1} times etcd", o.rate() / p));
        report.row(
            format!("durable creates of 1 KiB, {CLIENTS} clients, {name}"),
            "10,000/s, p99 20 ms",
            format!(
                "{:.0}/s{ratio}, {}, {cost:.0} us of server CPU each, then {:.0} MiB with {} objects",
                o.rate(),
                o.times.summary(),
                mib(after.rss),
                o.times.len()
            ),
            peer.clone(),
        );
        skiff.process.stop().await?;
    }
    Ok(())
}

/// etcd's puts by as many clients.
async fn puts(etcd: &Etcd, time: Duration) -> anyhow::Result<Outcome> {
    let next = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..CLIENTS {
        let (next, mut client) = (Arc::clone(&next), Grpc::connect(etcd.address).await?);
        tasks.spawn(async move {
            let mut times = Times::default();
            let value = vec![b'x'; VALUE + 500];
            while begun.elapsed() < time {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let sent = Instant::now();
                client.put(format!("/registry/configmaps/default/c-{n:07}").as_bytes(), &value).await?;
                times.add(sent.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut all = Outcome::default();
    while let Some(done) = tasks.join_next().await {
        all.times.join(done??);
    }
    all.took = begun.elapsed();
    Ok(all)
}

/// How often the disk syncs 4 KiB in a file that was written before.
fn disk(dir: &Path, time: Duration) -> anyhow::Result<f64> {
    use std::io::Seek as _;
    let path = dir.join("syncs");
    let mut f = std::fs::File::create(&path)?;
    let block = [7_u8; 4096];
    let blocks = 256_u32;
    for _ in 0..blocks {
        f.write_all(&block)?;
    }
    f.sync_all()?;
    let begun = Instant::now();
    let mut n = 0_u32;
    while begun.elapsed() < time {
        f.seek(std::io::SeekFrom::Start(u64::from(n % blocks) * 4096))?;
        f.write_all(&block)?;
        f.sync_data()?;
        n += 1;
    }
    let rate = f64::from(n) / begun.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}
