//! Wiring: definitions, classes, controller, gateway.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kube::Client;
use skiff_controllers::runtime::definitions::define_at_start;
use skiff_controllers::runtime::worker;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::definitions;
use crate::asynchronous::Queue;
use crate::build::{self, Builder, Docker};
use crate::container::Pods;
use crate::controller::{Classes, Controller, Place, queue};
use crate::gateway::hub::{Context, Hub};
use crate::gateway::invoke::{Broker, Shared, Sink};
use crate::gateway::serve::{Gateway, Tls};
use crate::instance::Class;
use crate::process;
use crate::runtime::Images;
use crate::trigger::Triggers;

/// Time for first lists.
const LISTED: Duration = Duration::from_secs(60);
/// Field manager of the definitions.
const MANAGER: &str = "skiff-functions";

/// Settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where HTTP is served.
    pub http: SocketAddr,
    /// Where HTTPS is served, with what.
    pub https: Option<(SocketAddr, Tls)>,
    /// Address of this machine that pods reach. A loopback address means that there are no Services for functions.
    pub address: IpAddr,
    /// Name of this machine: no two that run functions have the same.
    pub node: String,
    /// Directory below which triggers may look at files.
    pub files: Option<PathBuf>,
    /// Domain of cluster DNS.
    pub domain: String,
    /// Images that code without one runs in.
    pub images: Images,
    /// Socket of the engine of this node that builds images. Without it archives run on the base images only.
    pub engine: Option<PathBuf>,
    /// Where packages come from and images go to.
    pub supplies: build::Supplies,
    /// Processes of this machine, and the way to those of others. Without it every function runs in pods.
    pub processes: Option<process::Access>,
    /// Where the gateway is put for others in this process.
    pub share: Shared,
}

/// Serves functions until `stop`.
///
/// # Errors
/// When a port is taken, or the API does not answer at the start.
pub async fn run(client: Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let index = config.supplies.pip_index.as_ref().map(ToString::to_string);
    let processes = match &config.processes {
        None => None,
        Some(access) => Some(process::Processes::new(client.clone(), access, index, stop.clone())?),
    };
    serve(client, config, processes.map(|p| p as Arc<dyn Class>), stop).await
}

/// Serves functions until `stop`, with these processes instead of this machine's.
///
/// # Errors
/// When a port is taken, or the API does not answer at the start.
pub async fn serve(
    client: Client,
    config: Config,
    processes: Option<Arc<dyn Class>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let http = bind(config.http).await?;
    let place = Place {
        address: Some(config.address).filter(|a| !a.is_loopback()),
        http: http.local_addr()?.port(),
        https: config.https.as_ref().map(|(a, _)| a.port()),
        domain: config.domain.clone(),
    };
    let https = match &config.https {
        Some((address, tls)) => Some((bind(*address).await?, tls.acceptor().context("certificates of the gateway")?)),
        None => None,
    };
    if !define_at_start(&client, MANAGER, &definitions(), &stop).await? {
        return Ok(());
    }
    if let Some(processes) = &processes {
        processes.look().await;
    }
    let (queue, changed) = queue();
    let hub = Arc::new(Hub::new(Arc::new(Context::new(changed))));
    let pods = Pods::new(client.clone(), config.images.clone(), &stop);
    if let Some(socket) = &config.engine {
        match Docker::connect(socket, config.supplies.network.clone()).await {
            Ok(engine) => {
                let build = config.supplies.build(config.images.clone(), &config.node);
                pods.build_with(Arc::new(Builder::new(client.clone(), Arc::new(engine), build)));
            }
            Err(error) => tracing::warn!(%error, "no images of functions are built here"),
        }
    }
    if let Some(processes) = &processes {
        processes.meet(&pods);
    }
    let classes = Classes { pods: Arc::clone(&pods), processes: processes.clone() };
    let controller = Controller::new(client.clone(), Arc::clone(&hub), classes, place.clone(), queue);
    let controller = Arc::new(controller);
    let owner = Arc::downgrade(&controller);
    hub.context.on_cold(move |key, text| {
        if let Some(controller) = owner.upgrade() {
            controller.cold(key, text);
        }
    });
    let gateway = Arc::new(Gateway::new(Arc::clone(&hub), client.clone()));
    let calls = Queue::new(client.clone(), &config.node);
    if let Some(processes) = &processes {
        gateway.logs_from(Arc::clone(processes));
    }
    gateway.queue_into(Arc::clone(&calls) as Arc<dyn Sink>);
    let triggers = Arc::new(Triggers::new(client.clone(), Arc::clone(&calls), config.files.clone()));
    gateway.events_into(Arc::clone(&triggers) as Arc<dyn Broker>);
    controller.trigger(triggers);
    let mut tasks = JoinSet::new();
    // The doors are open first: who comes early waits.
    tasks.spawn(Arc::clone(&gateway).serve(http, None, stop.clone()));
    if let Some((listener, tls)) = https {
        tasks.spawn(Arc::clone(&gateway).serve(listener, Some(tls), stop.clone()));
    }
    if !controller.follow(LISTED, &stop).await {
        if stop.is_cancelled() {
            return Ok(());
        }
        bail!("functions could not be listed in time");
    }
    let all = [Some(Arc::clone(&pods) as Arc<dyn Class>), processes];
    for class in all.into_iter().flatten() {
        let events = class.events();
        let (listening, stop) = (Arc::clone(&controller).listen(class, events), stop.clone());
        tasks.spawn(async move {
            stop.run_until_cancelled(listening).await;
        });
    }
    pods.adopt(LISTED).await?;
    let (tidying, ending) = (Arc::clone(&controller).tidy(), stop.clone());
    tasks.spawn(async move {
        ending.run_until_cancelled(tidying).await;
    });
    let context = Arc::clone(&hub.context);
    let looking = stop.clone();
    tasks.spawn(async move { context.look_after(looking).await });
    let mut workers = JoinSet::new();
    worker::spawn(&mut workers, controller, &stop);
    hub.complete();
    tasks.spawn(calls.run(gateway.caller(), stop.clone()));
    if let Err(error) = place.announce(&client).await {
        tracing::warn!(%error, "the gateway's Service could not be made");
    }
    config.share.set(Some(gateway.caller()));
    tracing::info!(http = %config.http, "functions are served");
    stop.cancelled().await;
    config.share.set(None);
    while tasks.join_next().await.is_some() {}
    workers.shutdown().await;
    Ok(())
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} for functions: is the port taken?"))
}
