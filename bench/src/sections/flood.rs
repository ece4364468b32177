//! One user asks for everything, again and again, and does not come later when told to: what a node notices that renews its
//! lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::task::JoinSet;

use crate::Context;
use crate::http::{H1, Target};
use crate::objects::stamped;
use crate::process::Skiff;
use crate::report::{Report, Times, mib};

const OBJECTS: u64 = 10_000;
/// Connections of the one who floods.
const GREEDY: u64 = 500;
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const LISTS: &str = "/api/v1/namespaces/default/configmaps";
/// Between two renewals of one node.
const EVERY: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn run(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let skiff = Skiff::start(&cx.skiff, cx.data("flood"), false).await?;
    let target = super::through_rbac(&skiff).await?;
    super::fill(&target, cx.scaled(OBJECTS), |name, _| stamped(name, 0)).await?;
    // The administrator acts for both: what a request falls under is decided by whom it is for.
    let admin = skiff.target("admin")?;
    let mut client = admin.h1().await?;
    let lease = r#"{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"n"},"spec":{"holderIdentity":"n"}}"#;
    client.call("POST", LEASES, lease.as_bytes()).await?.success()?;
    let role = r#"{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"greedy"},
        "roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"view"},
        "subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"User","name":"greedy"}]}"#;
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    client.call("POST", bindings, role.as_bytes()).await?.success()?;

    let mut alone = renew(&admin, cx.time).await?;
    let counts = Arc::new(Counts::default());
    let mut connections = vec![];
    for _ in 0..cx.scaled(GREEDY) {
        connections.push(admin.h1().await?.acting("greedy", "system:authenticated"));
    }
    let mut flood = JoinSet::new();
    for connection in connections {
        flood.spawn(lists(connection, Arc::clone(&counts)));
    }
    let begun = Instant::now();
    let beside = renew(&admin, cx.time).await;
    let took = begun.elapsed();
    counts.over.store(true, Ordering::Relaxed);
    let mut beside = beside?;
    let rss = skiff.process.usage()?.rss;
    let ended = async {
        while let Some(done) = flood.join_next().await {
            done??;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, ended).await??;
    #[allow(clippy::cast_precision_loss)]
    let rate = |n: &AtomicU64| n.load(Ordering::Relaxed) as f64 / took.as_secs_f64();
    report.row(
        format!(
            "renewals of a node's lease while one user lists {} ConfigMaps over {} connections without pause",
            cx.scaled(OBJECTS),
            cx.scaled(GREEDY)
        ),
        "p99 1 s, nobody else refused",
        format!(
            "{} of {}; the one who floods: {:.0} lists/s, {:.0} refusals/s; {:.0} MiB",
            beside.summary(),
            beside.len(),
            rate(&counts.served),
            rate(&counts.refused),
            mib(rss)
        ),
        format!("without the flood {}", alone.summary()),
    );
    skiff.process.stop().await
}

/// Renews a lease for so long, as its node.
async fn renew(target: &Target, time: Duration) -> anyhow::Result<Times> {
    let mut node = target.h1().await?.acting("system:node:n", "system:nodes");
    let (begun, mut times) = (Instant::now(), Times::default());
    let path = format!("{LEASES}/n");
    while begun.elapsed() < time {
        let body = format!(r#"{{"spec":{{"leaseDurationSeconds":{}}}}}"#, 40 + times.len() % 2);
        let sent = Instant::now();
        tokio::time::timeout(PATIENCE, node.call("PATCH", &path, body.as_bytes())).await??.success()?;
        times.add(sent.elapsed());
        tokio::time::sleep(EVERY).await;
    }
    Ok(times)
}

/// What the one who floods was told, and whether he is to end.
#[derive(Default)]
struct Counts {
    over: AtomicBool,
    served: AtomicU64,
    refused: AtomicU64,
}

async fn lists(mut c: H1, counts: Arc<Counts>) -> anyhow::Result<()> {
    while !counts.over.load(Ordering::Relaxed) {
        let told = match c.count(LISTS).await?.0 {
            200 => &counts.served,
            429 => &counts.refused,
            code => bail!("a list was answered with {code}"),
        };
        told.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
