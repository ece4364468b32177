//! The node agent: it makes the pods bound to one node real, and tells the API what became of them.
//!
//! What it is for: one task per pod with an explicit state machine ([`pod`]), a container runtime behind one small
//! trait ([`runtime`]), the pod network of one node ([`net`]), volumes ([`volumes`]), probes ([`probes`]), the node's
//! own object and lease ([`node`]), and the node's HTTPS endpoint ([`server`]).
//!
//! Limits: Linux on x86-64 (the pause program is machine code), IPv4 pod addresses, no CSI, no device plugins.
//!
//! Why this shape: the runtime's labels are the node's only memory. A restarted agent lists what runs, adopts it and
//! restarts nothing, so there is no state file that could disagree with the engine.

#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Taint;
use tokio_util::sync::CancellationToken;

pub mod certificates;
pub mod cni;
pub mod events;
mod metrics;
pub mod net;
pub mod node;
pub mod pause;
pub mod pod;
pub mod podcerts;
pub mod probes;
pub mod runtime;
pub mod server;
pub mod source;
pub mod trust;
pub mod volumes;

/// Everything the agent must be told; nothing is read from the environment.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the Node object.
    pub node_name: String,
    /// Address under which other nodes reach this one.
    pub node_ip: IpAddr,
    /// Directory for volumes, termination messages and generated files. Made when missing.
    pub data_dir: PathBuf,
    /// Where the HTTPS endpoint listens.
    pub listen: SocketAddr,
    /// Serving certificate chain, PEM. When empty, the agent asks the cluster for one and renews it.
    pub cert_pem: String,
    /// Serving key, PEM.
    pub key_pem: String,
    /// Life in seconds of certificates that the agent asks for; the signer's longest when unset.
    pub certificate_seconds: Option<i32>,
    /// CA that signs the certificates of callers, PEM.
    pub client_ca_pem: String,
    /// Range of pod addresses on this node, used when the Node object carries none. When unset, the agent waits until
    /// the Node has one.
    pub pod_cidr: Option<Ipv4Net>,
    /// Range of all pods; traffic to it is never masqueraded. The node's own range when unset.
    pub cluster_cidr: Option<Ipv4Net>,
    /// Address of the cluster's DNS service.
    pub cluster_dns: IpAddr,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// Most pods the node takes.
    pub max_pods: u32,
    /// How much of disk, memory and processes must be left for the node to take pods.
    pub eviction_hard: node::pressure::Thresholds,
    /// Path of the container engine's socket.
    pub docker_socket: PathBuf,
    /// Name of the bridge pods hang on.
    pub bridge: String,
    /// CNI plugins to make the pod network with, instead of the bridge.
    pub cni: Option<cni::Dirs>,
    /// Extra labels of the Node.
    pub labels: BTreeMap<String, String>,
    /// Taints the Node is registered with.
    pub taints: Vec<Taint>,
    /// CPU kept from pods, in millicores.
    pub reserved_millicpu: u64,
    /// Memory kept from pods, in bytes.
    pub reserved_memory: u64,
    /// What runs functions on this node, if anything does.
    pub functions: Option<Arc<dyn server::Extension>>,
    /// Containers are only pretended, on a machine of this size. See [`runtime::fake`].
    pub fake: Option<runtime::fake::Machine>,
}

impl Config {
    /// A configuration with the defaults of a single node; certificates must be filled in by the caller.
    pub fn new(node_name: impl Into<String>, node_ip: IpAddr, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            node_name: node_name.into(),
            node_ip,
            data_dir: data_dir.into(),
            listen: SocketAddr::from(([0, 0, 0, 0], 10250)),
            cert_pem: String::new(),
            key_pem: String::new(),
            certificate_seconds: None,
            client_ca_pem: String::new(),
            pod_cidr: None,
            cluster_cidr: Some(Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 244, 0, 0), 16)),
            cluster_dns: IpAddr::from([10, 96, 0, 10]),
            cluster_domain: "cluster.local".into(),
            max_pods: 110,
            eviction_hard: node::pressure::Thresholds::default(),
            docker_socket: "/var/run/docker.sock".into(),
            bridge: "skiff0".into(),
            cni: None,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            reserved_millicpu: 0,
            reserved_memory: 0,
            functions: None,
            fake: None,
        }
    }
}

/// Runs the node agent until `shutdown` is cancelled. Pods keep running after it returns; a later call adopts them.
///
/// Returns an error only for what no retry can heal: an unusable configuration or certificate, or an address that
/// cannot be bound. A missing engine or API server is waited for.
pub async fn run(client: kube::Client, config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    if config.fake.is_some() {
        return run_fakes(client, config, 1, shutdown).await;
    }
    tokio::fs::create_dir_all(config.data_dir.join("pods")).await?;
    again(client, Arc::new(config), None, shutdown).await
}

/// In this time all nodes of [`run_fakes`] start: a lease's period, so that the leases of many nodes are not all renewed at
/// the same moment. Few nodes need less: each is at most the second number behind the one before.
const FAKES_WITHIN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(100));

/// Runs the agents of `count` nodes whose containers are only pretended, in this process: `NAME` for one, `NAME-0` and so
/// on for more. Each has its own Node, Lease, endpoint (on a port of the kernel's choice when `config.listen` has port 0
/// or there are several) and watch of its own pods; they share the client and the watch of Services.
///
/// # Errors
/// As [`run`]; what ends one ends all.
pub async fn run_fakes(
    client: kube::Client,
    config: Config,
    count: u32,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let sources = Arc::new(source::Sources::start(client.clone()));
    let mut nodes = tokio::task::JoinSet::new();
    for number in 0..count {
        let mut config = config.clone();
        config.fake.get_or_insert_default();
        if count > 1 {
            config.node_name = format!("{}-{number}", config.node_name);
            config.listen.set_port(0);
        }
        let made = Made { runtime: Arc::new(runtime::fake::Fake::default()), sources: sources.clone() };
        let (client, shutdown) = (client.clone(), shutdown.clone());
        let turn = (FAKES_WITHIN.0 / count).min(FAKES_WITHIN.1) * number;
        nodes.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(turn) => {}
            }
            again(client, Arc::new(config), Some(made), shutdown).await
        });
    }
    while let Some(ended) = nodes.join_next().await {
        ended??;
    }
    Ok(())
}

/// What a pretended node is given instead of making it.
struct Made {
    runtime: Arc<dyn runtime::Runtime>,
    sources: Arc<source::Sources>,
}

/// Runs an agent, and starts it anew whenever its node got another range.
async fn again(
    client: kube::Client,
    config: Arc<Config>,
    made: Option<Made>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let inner = shutdown.child_token();
        let ended = once(client.clone(), config.clone(), made.as_ref(), &inner).await;
        inner.cancel();
        if ended? == Ended::Shutdown {
            return Ok(());
        }
    }
}

/// Why one run of the agent is over.
#[derive(PartialEq)]
enum Ended {
    /// It was told to stop.
    Shutdown,
    /// The node has another pod range: only a start from the beginning uses it.
    Moved,
}

async fn once(
    client: kube::Client,
    mut config: Arc<Config>,
    made: Option<&Made>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Ended> {
    let slot = Arc::new(certificates::Slot::default());
    let own = config.cert_pem.is_empty();
    if !own {
        slot.put(&certificates::Pair { cert: config.cert_pem.clone(), key: config.key_pem.clone() })?;
    }
    let listener = server::Listener::bind(&config, slot.clone()).await?;
    if config.listen.port() == 0 {
        Arc::make_mut(&mut config).listen.set_port(listener.address()?.port());
    }

    // The engine may still be starting: report NotReady and retry rather than give up.
    let runtime = loop {
        if let Some(made) = made {
            break made.runtime.clone();
        }
        match runtime::docker::Docker::connect(&config).await {
            Ok(docker) => break Arc::new(runtime::measured::Measured(docker)) as Arc<dyn runtime::Runtime>,
            Err(error) => {
                tracing::warn!(%error, "container engine is not reachable; retrying");
                node::report_runtime_down(&client, &config, &error.to_string()).await;
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(Ended::Shutdown),
                    () = tokio::time::sleep(Duration::from_secs(3)) => {}
                }
            }
        }
    };
    let node = node::NodeAgent::start(client.clone(), config.clone(), runtime.clone());
    tokio::select! {
        () = shutdown.cancelled() => return Ok(Ended::Shutdown),
        () = node.registered() => {}
    }
    // It lives from now on, even while it waits for a range.
    let nodes = tokio::spawn(node.clone().run(shutdown.child_token()));
    let range = tokio::select! {
        () = shutdown.cancelled() => return Ok(Ended::Shutdown),
        range = node.pod_cidr() => range,
    };
    let network = loop {
        match net::Network::setup(&config, range).await {
            Ok(network) => break Arc::new(network),
            Err(error) => {
                tracing::warn!(%error, "pod network cannot be set up; retrying");
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(Ended::Shutdown),
                    () = tokio::time::sleep(Duration::from_secs(3)) => {}
                }
            }
        }
    };
    node.network(network.clone());
    let sources = made.map_or_else(|| Arc::new(source::Sources::start(client.clone())), |m| m.sources.clone());
    let (r, n) = (runtime.clone(), network.clone());
    let manager = pod::Manager::new(client.clone(), config.clone(), r, n, node.clone(), sources);
    let pods = tokio::spawn(manager.clone().run(shutdown.child_token()));
    let serve = tokio::spawn(server::serve(listener, manager, node.clone(), shutdown.child_token()));
    let mut tasks = vec![pods, nodes, serve];
    if made.is_none() {
        tasks.push(tokio::spawn(network.keep(runtime.clone(), shutdown.child_token())));
        let directories = volumes::local::run(client.clone(), config.node_name.clone(), shutdown.child_token());
        tasks.push(tokio::spawn(directories));
    }
    if own {
        tasks.push(tokio::spawn(certificates::keep_serving(client, config, slot, shutdown.child_token())));
    }
    let mut all = futures::future::try_join_all(tasks);
    tokio::select! {
        new = node.moved() => tracing::warn!(was = %range, now = %new, "the node has another pod range; starting anew"),
        ended = &mut all => {
            ended?;
            return Ok(Ended::Shutdown);
        }
    }
    shutdown.cancel();
    all.await?;
    Ok(Ended::Moved)
}

/// Removes everything the agent made on this machine for the node of `config`: containers with its labels, links,
/// packet filter rules, mounts and its data directory. Idempotent; used by `skiff down`.
pub async fn cleanup(config: &Config) -> anyhow::Result<()> {
    if let Ok(docker) = runtime::docker::Docker::connect(config).await {
        // What they hold beside their sandboxes, such as addresses, must be given back while those are there.
        net::network::remove_all(config, &runtime::Runtime::list(&docker, None).await?).await;
        runtime::remove_all(&docker).await?;
    }
    net::teardown(config).await?;
    if let Some(range) = config.cluster_cidr {
        net::filter::refuse(&net::filter::of_range(range)).await;
    }
    volumes::unmount_below(&config.data_dir.join("pods")).await?;
    for made in ["pods", "images"] {
        match tokio::fs::remove_dir_all(config.data_dir.join(made)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
