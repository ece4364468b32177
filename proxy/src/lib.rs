//! The service proxy and the cluster's name server of one node.
//!
//! What it is for: traffic to a Service reaches one of its endpoints ([`services`]), names of the cluster become
//! addresses ([`dns`]), packets find the pods of other nodes ([`nodes`]), and what a NetworkPolicy forbids finds nobody
//! ([`policy`]); the node that was chosen for a load balancer's address answers for it ([`balancer`]). The first two
//! answer from one index ([`index`]) that three watches feed ([`watch`]); of the objects only a small part is kept
//! ([`model`]).
//!
//! Limits: Linux with nftables; virtual addresses and endpoints of IPv4 (the name server gives IPv6 addresses too).
//! Of topology, the two Local policies; no hints.
//!
//! Why in one crate and one process: proxy and name server want the same watches, and a table in the kernel plus
//! an index in memory need no helpers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ipnet::Ipv4Net;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

pub mod balancer;
pub mod dns;
pub mod host;
pub mod index;
pub mod ingress;
mod metrics;
pub mod model;
pub mod nodes;
pub mod policy;
pub mod services;
pub mod watch;

pub use dns::forward::Upstream;

/// Wait between two tries to listen on the name server's address.
const RETRY: Duration = Duration::from_secs(2);

/// Everything the proxy must be told; nothing is read from the environment.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node.
    pub node_name: String,
    /// Address under which other nodes reach this one.
    pub node_ip: IpAddr,
    /// Range of pod addresses. What comes from it to a Service keeps its address.
    pub pod_cidr: Ipv4Net,
    /// Range of the Services' virtual addresses. Those of the ServiceCIDRs are added to it.
    pub service_cidr: Ipv4Net,
    /// Address of the cluster's name server: in `service_cidr`, and given to this host.
    pub dns_address: IpAddr,
    /// Port of the cluster's name server.
    pub dns_port: u16,
    /// Domain of the cluster.
    pub cluster_domain: String,
    /// Where questions about other names go.
    pub upstream: Upstream,
    /// Name of the nftables table.
    pub table: String,
    /// Where the ingress gateway listens; none: this node has no gateway.
    pub ingress: Option<ingress::Config>,
    /// How packets travel to the pods of other nodes.
    pub network: nodes::Mode,
}

impl Config {
    /// A configuration with the defaults of a single node.
    pub fn new(node_name: impl Into<String>, node_ip: IpAddr) -> Self {
        Self {
            node_name: node_name.into(),
            node_ip,
            pod_cidr: Ipv4Net::new_assert([10, 244, 0, 0].into(), 16),
            service_cidr: Ipv4Net::new_assert([10, 96, 0, 0].into(), 16),
            dns_address: IpAddr::from([10, 96, 0, 10]),
            dns_port: 53,
            cluster_domain: "cluster.local".into(),
            upstream: Upstream::ResolvConf("/etc/resolv.conf".into()),
            table: "skiff".into(),
            ingress: None,
            network: nodes::Mode::default(),
        }
    }
}

/// Runs the proxy and the name server until `stop` is cancelled.
///
/// Services keep answering after it returns: the table and the name server's address stay until [`cleanup`]. Returns an
/// error only for what no retry can heal, such as a domain that is no name.
pub async fn run(client: kube::Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let zone = dns::zone::Zone::new(&config.cluster_domain, config.dns_address, config.service_cidr)
        .with_context(|| format!("cluster domain {:?}", config.cluster_domain))?;
    let shared = index::Shared::default();
    let address = SocketAddr::new(config.dns_address, config.dns_port);
    if let Err(error) = host::enable_forwarding() {
        tracing::warn!(%error, "the host does not forward packets: node ports will not work from outside");
    }
    host::accept_forwarding().await;
    let frame = services::rules::Frame {
        table: config.table.clone(),
        pods: config.pod_cidr,
        services: config.service_cidr,
        resolver: config.dns_address,
    };
    let gates = Arc::new(ingress::State::default());
    let mut names = dns::Server::new(zone, config.upstream.clone(), address, shared.clone());
    names.hosts = Arc::clone(&gates);
    let gateway = async {
        if let Some(at) = config.ingress.clone() {
            ingress::run(client.clone(), at, gates, shared.clone(), stop.clone()).await;
        }
    };
    let routes = async {
        match config.node_ip {
            IpAddr::V4(address) => {
                let (node, cluster, mode) = (config.node_name.clone(), config.pod_cidr, config.network);
                let frame = nodes::Frame { node, address, cluster, mode };
                nodes::run(client.clone(), frame, stop.clone()).await;
            }
            IpAddr::V6(ip) => tracing::warn!(%ip, "no routes to other nodes: the node's address is not IPv4"),
        }
    };
    let (balancers, held) = tokio::sync::watch::channel(None);
    let balanced = async {
        if let IpAddr::V4(address) = config.node_ip {
            let frame = balancer::Frame { address, table: balancer::table_name(&config.table) };
            balancer::run(frame, held, stop.clone()).await;
        }
    };
    let policies = policy::Frame {
        node: config.node_name.clone(),
        table: policy::table_name(&config.table),
        resolver: match config.dns_address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        },
    };
    tokio::join!(
        routes,
        policy::run(client.clone(), policies, stop.clone()),
        watch::services(client.clone(), shared.clone(), stop.clone()),
        watch::ranges(client.clone(), shared.clone(), stop.clone()),
        watch::slices(client.clone(), config.node_name.clone(), shared.clone(), stop.clone()),
        services::run(frame, &config.node_name, shared.clone(), balancers, stop.clone()),
        balanced,
        serve_names(Arc::new(names), address, stop.clone()),
        gateway,
    );
    Ok(())
}

/// Removes what [`run`] left on the host: the tables, the name server's address, and the leave to forward.
pub async fn cleanup(config: &Config) -> anyhow::Result<()> {
    services::nft::remove(&config.table).await.context("remove the services' table")?;
    services::nft::remove(&policy::table_name(&config.table)).await.context("remove the policies' table")?;
    balancer::cleanup(&balancer::table_name(&config.table)).await.context("remove load balancers' addresses")?;
    host::remove_address(config.dns_address).await.context("remove the name server's address")?;
    host::refuse_forwarding().await;
    nodes::cleanup().await.context("remove the routes to other nodes' pods")?;
    Ok(())
}

/// Takes the address and serves names on it. What keeps it from doing so may pass, so it tries again.
async fn serve_names(server: Arc<dns::Server>, address: SocketAddr, stop: CancellationToken) {
    loop {
        match listen(address).await {
            Ok((udp, tcp)) => return server.serve(udp, tcp, stop).await,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), %address, "the name server cannot listen; trying again")
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
            return;
        }
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<(UdpSocket, TcpListener)> {
    host::add_address(address.ip()).await?;
    let udp = UdpSocket::bind(address).await.context("UDP")?;
    let tcp = TcpListener::bind(address).await.context("TCP")?;
    Ok((udp, tcp))
}
