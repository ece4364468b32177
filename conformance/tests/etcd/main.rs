//! Several servers on one etcd cluster, and stores that move: real processes, a real etcd, real kills.
//!
//!     cargo build -p skiff && cargo test -p skiff-conformance --test etcd
//!
//! Left out where etcd is not installed, unless `SKIFF_REQUIRE_ETCD` is set.

#[path = "../../../apiserver/storage/tests/it/etcd_cluster.rs"]
mod etcd_cluster;
mod leaders;
mod moving;
#[path = "../faults/process.rs"]
#[allow(dead_code)] // Of the helpers of the fault tests, a part is used here.
mod process;
mod servers;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

/// Bound on every wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// The settings that lead to a cluster.
fn flags(cluster: &etcd_cluster::Cluster) -> Vec<String> {
    let mut out = vec![format!("--etcd-servers={}", cluster.urls().join(","))];
    if cluster.certificates.is_some() {
        let file = |name: &str| cluster.dir().join(name).display().to_string();
        out.push(format!("--etcd-cafile={}", file("ca.pem")));
        out.push(format!("--etcd-certfile={}", file("cert.pem")));
        out.push(format!("--etcd-keyfile={}", file("key.pem")));
    }
    out
}

/// The keys of a cluster, for a further server.
fn copy_keys(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to.join("pki"))?;
    for entry in std::fs::read_dir(from.join("pki"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join("pki").join(entry.file_name()))?;
    }
    Ok(())
}

/// Asks until the answer is there.
async fn until<T, F: Future<Output = Result<Option<T>>>>(what: &str, mut ask: impl FnMut() -> F) -> Result<T> {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        ensure!(std::time::Instant::now() < end, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
