//! Wiring: definitions, clusters, and the rest only while there is a cluster.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kube::api::ListParams;
use kube::{Api, Client};
use skiff_controllers::runtime::definitions::define_at_start;
use skiff_controllers::runtime::queue::Queue;
use skiff_controllers::runtime::worker;
use skiff_faas::gateway::door::Tls;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::announce::announce;
use crate::api::{FINALIZER, GpuJob, definitions};
use crate::clusters::Clusters;
use crate::controller::Controller;
use crate::driver::SETTLED;
use crate::serve::Door;
use crate::store::Store;

/// Time for first lists.
const LISTED: Duration = Duration::from_secs(60);
/// Field manager of the definitions.
const MANAGER: &str = "skiff-hpc";

/// Between looks whether jobs of a cluster that is gone are gone too.
const EMPTY: Duration = Duration::from_secs(10);

/// Settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where logs and results are served, with what; plain HTTP without certificates. `None`: nowhere.
    pub door: Option<(SocketAddr, Option<Tls>)>,
    /// Address of this machine that others reach the door at; `None`, or one of loopback: it has no Service.
    pub address: Option<IpAddr>,
    /// Directory for results.
    pub data: PathBuf,
    /// How long a submission whose answer was lost may still arrive at Slurm.
    pub settled: Duration,
}

impl Config {
    /// With results in this directory.
    #[must_use]
    pub fn new(data: PathBuf) -> Self {
        Self { door: None, address: None, data, settled: SETTLED }
    }
}

/// Brings jobs to Slurm until `stop`. While there is no HpcCluster, and no job of a former one, nothing runs but one watch.
///
/// # Errors
/// When the API does not answer at the start.
pub async fn run(client: Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    if !define_at_start(&client, MANAGER, &definitions(), &stop).await? {
        return Ok(());
    }
    let jobs = Arc::new(Queue::default());
    let clusters = Arc::new(Clusters::new(client.clone(), Arc::clone(&jobs), &stop));
    if !clusters.follow(LISTED).await {
        if stop.is_cancelled() {
            return Ok(());
        }
        bail!("clusters could not be listed in time");
    }
    let mut looking = JoinSet::new();
    worker::spawn(&mut looking, Arc::clone(&clusters) as Arc<dyn worker::Reconcile>, &stop);
    let mut left = left_over(&client).await;
    while !stop.is_cancelled() {
        if clusters.names().is_empty() && !left {
            if stop.run_until_cancelled(clusters.changed.notified()).await.is_none() {
                break;
            }
            continue;
        }
        work(&client, &config, &clusters, &jobs, &stop).await?;
        left = false;
    }
    looking.shutdown().await;
    Ok(())
}

/// Whether there are jobs that somebody must let go although there is no cluster any more.
async fn left_over(client: &Client) -> bool {
    let list = Api::<GpuJob>::all(client.clone()).list_metadata(&ListParams::default()).await;
    // When in doubt it is looked at.
    list.map_or(true, |l| l.items.iter().any(|j| j.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)))
}

/// Works on jobs until `stop`, or until there is neither a cluster nor a job that was in one.
async fn work(
    client: &Client,
    config: &Config,
    clusters: &Arc<Clusters>,
    queue: &Arc<Queue>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let stop = stop.child_token();
    let _ended = stop.clone().drop_guard();
    let store = Store::new(config.data.clone());
    let controller = Controller::new(client.clone(), Arc::clone(clusters), store, Arc::clone(queue), config.settled);
    let controller = Arc::new(controller);
    if !controller.follow(LISTED, &stop).await {
        if stop.is_cancelled() {
            return Ok(());
        }
        bail!("jobs could not be listed in time");
    }
    crate::metrics::show(&controller);
    let mut workers = JoinSet::new();
    if let Some((address, tls)) = &config.door {
        let listener = TcpListener::bind(address).await;
        let listener =
            listener.with_context(|| format!("cannot listen on {address} for results of jobs: is the port taken?"))?;
        let tls = tls.as_ref().map(Tls::acceptor).transpose().context("certificates of the door for results")?;
        let door =
            Door::new(client.clone(), Arc::clone(&controller), Arc::clone(clusters), Store::new(config.data.clone()));
        let port = listener.local_addr().map_or(address.port(), |a| a.port());
        if let Some(ip) = config.address.filter(|a| !a.is_loopback() && tls.is_some())
            && let Err(error) = announce(client, SocketAddr::new(ip, port)).await
        {
            tracing::warn!(%error, "the Service of the door for results could not be made");
        }
        workers.spawn(Arc::new(door).serve(listener, tls, stop.clone()));
    }
    worker::spawn(&mut workers, Arc::clone(&controller) as Arc<dyn worker::Reconcile>, &stop);
    tracing::info!("jobs go to Slurm");
    loop {
        // Without clusters what is left are jobs that go one after the other.
        let pause = if clusters.names().is_empty() { EMPTY } else { Duration::MAX };
        let changed = tokio::time::timeout(pause, clusters.changed.notified());
        if stop.run_until_cancelled(changed).await.is_none() {
            break;
        }
        // A cluster that became ready, or has other partitions, may be what jobs wait for.
        worker::Reconcile::resync(&*controller);
        if clusters.names().is_empty() && !controller.holds_any() {
            break;
        }
    }
    workers.shutdown().await;
    Ok(())
}
