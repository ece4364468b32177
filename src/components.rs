//! Wiring of the components: in one process on the server itself, or each alone with its kubeconfig.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use ipnet::Ipv4Net;
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_apiserver::pki::{Leaf, Pki};
use skiff_faas::gateway::door::Tls;
use skiff_metrics::{Part, serve};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::{ComponentArgs, DownArgs, KubeletArgs, NodeArgs, UpArgs, node_name};
use crate::cluster::Settings;

pub(crate) type Tasks = JoinSet<anyhow::Result<()>>;

/// Certificates of what a component that runs alone serves to others: functions, workflows, results of jobs.
#[derive(Clone, Debug, Args)]
pub(crate) struct DoorArgs {
    /// Certificate of what this serves to others. Without it that is plain HTTP; workflows and results of jobs then are for this
    /// machine only.
    #[arg(long, requires_all = ["tls_key", "client_ca"])]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Key of that certificate.
    #[arg(long)]
    pub(crate) tls_key: Option<PathBuf>,
    /// CA of clients' certificates.
    #[arg(long)]
    pub(crate) client_ca: Option<PathBuf>,
}

impl DoorArgs {
    /// What the files have; none where none is named.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(crate) fn tls(&self) -> anyhow::Result<Option<Tls>> {
        let (Some(certificate), Some(key), Some(ca)) = (&self.tls_cert, &self.tls_key, &self.client_ca) else {
            return Ok(None);
        };
        let read =
            |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        Ok(Some(Tls { certificate: read(certificate)?, key: read(key)?, client_ca: read(ca)? }))
    }
}

/// Runs a component; its ending before `stop` ends the process, with its name in the error.
pub(crate) fn spawn(
    tasks: &mut Tasks,
    name: &'static str,
    stop: &CancellationToken,
    run: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) {
    let stop = stop.clone();
    tasks.spawn(async move {
        run.await.with_context(|| format!("the {name} cannot go on"))?;
        if !stop.is_cancelled() {
            anyhow::bail!("the {name} ended by itself");
        }
        Ok(())
    });
}

/// Starts controllers, scheduler, node agent and proxy on the server in this process.
pub(crate) fn spawn_all(
    tasks: &mut Tasks,
    server: &Server,
    args: &UpArgs,
    pki: &Arc<Pki>,
    address: IpAddr,
    node: &str,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut config = skiff_controllers::Config::new(pki.cluster.cert.clone(), args.pod_cidr);
    config.root_key = Some(root_key(&args.data_dir)?);
    config.node_monitor_grace = grace(args.node_monitor_grace_period)?;
    config.load_balancer = args.load_balancer.clone();
    // A store of several servers has several of these.
    let leader_elect = args.etcd.used();
    config.leader_elect = leader_elect;
    let s = server.clone();
    let clients = move |user: &str| s.client(identity(user));
    spawn(tasks, "controllers", stop, skiff_controllers::run(clients, config, stop.clone()));
    let client = server.client(User::new("system:kube-scheduler", &[]));
    spawn(tasks, "scheduler", stop, skiff_controllers::scheduler::run(client, leader_elect, stop.clone()));
    let leaf = serving(pki, node, address)?;
    let client = server.client(User::new(format!("system:node:{node}"), &["system:nodes"]));
    let settings = crate::up::settings(args);
    let config = NodeFacts {
        name: node,
        address,
        data_dir: &args.data_dir,
        engine: &args.engine,
        port: args.kubelet_port,
        settings: &settings,
    };
    let gateway = args.ingress.config();
    let mut agent = kubelet_config(&config, Some(leaf), &pki.cluster.cert)?;
    agent.labels.extend(gateway_label(gateway.is_some()));
    agent.cni = args.cni.dirs();
    agent.eviction_hard = args.eviction.eviction_hard.clone();
    let mut host = None;
    if args.functions.functions_http_port != 0 {
        // Another server's gateway may take over, and then asks this node's agent.
        let made = crate::functions::on_node(node, &args.data_dir, &args.engine, leader_elect)?;
        (host, agent.functions) = (Some(made.0), Some(made.1));
    }
    spawn(tasks, "node agent", stop, skiff_kubelet::run(client, agent, stop.clone()));
    let client = server.client(User::new("system:kube-proxy", &[]));
    let proxy = skiff_proxy::Config { ingress: gateway, ..proxy_config(&config)? };
    spawn(tasks, "proxy", stop, skiff_proxy::run(client, proxy, stop.clone()));
    if args.component_metrics {
        for (port, part, user) in [
            (PORTS[0], &[Part::Controllers, Part::Leases] as &[Part], "system:kube-controller-manager"),
            (PORTS[1], &[Part::Scheduler, Part::Leases], "system:kube-scheduler"),
        ] {
            show(port, part, server.client(User::new(user, &[])), stop);
        }
        show_proxy(stop);
    }
    crate::hpc::start(tasks, server, args, pki, address, node, stop)?;
    let share = skiff_faas::gateway::invoke::Shared::default();
    crate::workflows::start(tasks, server, args, pki, address, node, stop, share.clone())?;
    crate::functions::start(tasks, server, args, pki, address, node, stop, share, host)
}

/// Ports of metrics of controllers, scheduler and proxy, as everywhere.
const PORTS: [u16; 3] = [10257, 10259, 10249];

/// Serves what controllers or scheduler count, at a port with TLS.
pub(crate) fn show(port: u16, part: &'static [Part], client: kube::Client, stop: &CancellationToken) {
    if port != 0 {
        tokio::spawn(serve::https(([0, 0, 0, 0], port).into(), part, client, stop.clone()));
    }
}

/// Serves what the proxy counts to this machine.
fn show_proxy(stop: &CancellationToken) {
    let address = ([127, 0, 0, 1], PORTS[2]).into();
    tokio::spawn(serve::http(address, &[Part::Proxy, Part::Names], stop.clone()));
}

/// The label of nodes whose proxy is an ingress gateway: Ingresses get their addresses.
pub(crate) fn gateway_label(has_one: bool) -> Option<(String, String)> {
    has_one.then(|| (skiff_controllers::controllers::outside::GATEWAY.to_owned(), String::new()))
}

/// What a client certificate of a component says.
fn identity(user: &str) -> User {
    match user.strip_prefix("system:serviceaccount:").and_then(|r| r.split_once(':')) {
        Some((ns, _)) => User::new(user, &["system:serviceaccounts", &format!("system:serviceaccounts:{ns}")]),
        None => User::new(user, &[]),
    }
}

/// Where the controllers find the key they sign nodes' certificates with.
fn root_key(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join("pki/ca.key");
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn grace(given: jiff::SignedDuration) -> anyhow::Result<Duration> {
    Duration::try_from(given).ok().filter(|d| !d.is_zero()).context("--node-monitor-grace-period must be positive")
}

/// Facts about this node that its agent and its proxy share.
pub(crate) struct NodeFacts<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: IpAddr,
    pub(crate) data_dir: &'a Path,
    pub(crate) engine: &'a Path,
    pub(crate) port: u16,
    pub(crate) settings: &'a Settings,
}

impl NodeFacts<'_> {
    /// The tenth address of the Service range, as everywhere.
    fn dns(&self) -> anyhow::Result<IpAddr> {
        let net = v4(self.settings.service_cidr)?;
        Ok(IpAddr::V4((u32::from(net.network()) + 10).into()))
    }
}

fn v4(net: ipnet::IpNet) -> anyhow::Result<Ipv4Net> {
    match net {
        ipnet::IpNet::V4(n) => Ok(n),
        ipnet::IpNet::V6(n) => anyhow::bail!("{n} is an IPv6 range: this version runs on IPv4 (docs/compatibility.md)"),
    }
}

/// Settings of the agent. Without `leaf` it asks the cluster for a serving certificate.
pub(crate) fn kubelet_config(
    node: &NodeFacts<'_>,
    leaf: Option<Leaf>,
    ca: &str,
) -> anyhow::Result<skiff_kubelet::Config> {
    let mut c = skiff_kubelet::Config::new(node.name, node.address, node.data_dir.join("kubelet"));
    c.listen = ([0, 0, 0, 0], node.port).into();
    if let Some(leaf) = leaf {
        c.cert_pem = leaf.cert;
        c.key_pem = leaf.key;
    }
    c.client_ca_pem = ca.to_owned();
    c.cluster_cidr = Some(v4(node.settings.pod_cidr)?);
    c.cluster_dns = node.dns()?;
    c.cluster_domain.clone_from(&node.settings.domain);
    c.docker_socket = node.engine.to_owned();
    Ok(c)
}

/// Settings of the proxy.
pub(crate) fn proxy_config(node: &NodeFacts<'_>) -> anyhow::Result<skiff_proxy::Config> {
    let mut c = skiff_proxy::Config::new(node.name, node.address);
    c.pod_cidr = v4(node.settings.pod_cidr)?;
    c.service_cidr = v4(node.settings.service_cidr)?;
    c.dns_address = node.dns()?;
    c.cluster_domain.clone_from(&node.settings.domain);
    c.network = node.settings.network;
    Ok(c)
}

fn serving(pki: &Pki, node: &str, address: IpAddr) -> anyhow::Result<Leaf> {
    Ok(pki.cluster.server(
        &format!("system:node:{node}"),
        &[node.to_owned(), "localhost".into()],
        &[address, [127, 0, 0, 1].into()],
    )?)
}

pub(crate) async fn client(kubeconfig: &Path) -> anyhow::Result<kube::Client> {
    Ok(kube::Client::try_from(client_config(kubeconfig).await?)?)
}

pub(crate) async fn client_config(kubeconfig: &Path) -> anyhow::Result<kube::Config> {
    let file = kube::config::Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("cannot read the kubeconfig {}", kubeconfig.display()))?;
    Ok(kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?)
}

/// Runs one component until a signal.
pub(crate) async fn alone(
    name: &'static str,
    stop: CancellationToken,
    run: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    tokio::pin!(run);
    tokio::select! {
        r = run.as_mut() => r.with_context(|| format!("the {name} cannot go on")),
        signal = crate::up::signal() => {
            tracing::info!(signal, "stopping");
            stop.cancel();
            let _ = tokio::time::timeout(crate::up::DRAIN, run).await;
            Ok(())
        }
    }
}

/// `skiff controller-manager`.
pub(crate) async fn controller_manager(args: ComponentArgs) -> anyhow::Result<()> {
    let ca = args.data_dir.join("pki/ca.crt");
    let root_ca = std::fs::read_to_string(&ca)
        .with_context(|| format!("cannot read {}: name the server's data directory with --data-dir", ca.display()))?;
    let accounts = crate::accounts::Accounts::new(client_config(&args.kubeconfig).await?)?;
    let mut config = skiff_controllers::Config::new(root_ca, args.pod_cidr);
    config.root_key = Some(root_key(&args.data_dir)?);
    config.node_monitor_grace = grace(args.node_monitor_grace_period)?;
    config.load_balancer = args.load_balancer.clone();
    config.leader_elect = true;
    let stop = CancellationToken::new();
    show(
        args.secure_port.unwrap_or(PORTS[0]),
        &[Part::Controllers, Part::Leases],
        client(&args.kubeconfig).await?,
        &stop,
    );
    let clients = move |user: &str| accounts.client(user);
    alone("controllers", stop.clone(), skiff_controllers::run(clients, config, stop)).await
}

/// `skiff scheduler`.
pub(crate) async fn scheduler(args: ComponentArgs) -> anyhow::Result<()> {
    let client = client(&args.kubeconfig).await?;
    let stop = CancellationToken::new();
    show(args.secure_port.unwrap_or(PORTS[1]), &[Part::Scheduler, Part::Leases], client.clone(), &stop);
    alone("scheduler", stop.clone(), skiff_controllers::scheduler::run(client, true, stop)).await
}

fn node_of(args: &NodeArgs, name: &str) -> anyhow::Result<(IpAddr, String)> {
    let address = args.node_ip.unwrap_or_else(|| crate::up::advertise([0, 0, 0, 0].into()));
    Ok((address, name.to_owned()))
}

/// `skiff kubelet`, on the machine of the server's data directory (which signs its serving certificate).
pub(crate) async fn kubelet(all: KubeletArgs) -> anyhow::Result<()> {
    let (args, fake) = (all.node, all.runtime == "fake");
    anyhow::ensure!(fake || all.count == 1, "--count is for --runtime=fake: a machine is one node");
    let name = node_name(args.node_name.clone())?;
    let (address, name) = node_of(&args, &name)?;
    let pki = Pki::load_or_create(&args.data_dir.join("pki"))?;
    let leaf = serving(&pki, &name, address)?;
    let settings = args.settings();
    let mut config = kubelet_config(&node_facts(&args, &name, address, &settings), Some(leaf), &pki.cluster.cert)?;
    config.labels.extend(all.node_labels);
    config.max_pods = all.max_pods;
    config.eviction_hard = all.eviction.eviction_hard;
    config.labels.extend(gateway_label(args.ingress.config().is_some()));
    config.cni = args.cni.dirs();
    let client = client(&args.kubeconfig).await?;
    let stop = CancellationToken::new();
    if fake {
        let machine = skiff_kubelet::runtime::fake::Machine { cpus: all.fake_cpus, memory: all.fake_memory << 30 };
        config.fake = Some(machine);
        return alone("node agents", stop.clone(), skiff_kubelet::run_fakes(client, config, all.count, stop)).await;
    }
    alone("node agent", stop.clone(), skiff_kubelet::run(client, config, stop)).await
}

/// `skiff proxy`.
pub(crate) async fn proxy(args: NodeArgs) -> anyhow::Result<()> {
    let name = node_name(args.node_name.clone())?;
    let (address, name) = node_of(&args, &name)?;
    let settings = args.settings();
    let mut config = proxy_config(&node_facts(&args, &name, address, &settings))?;
    config.ingress = args.ingress.config();
    let client = client(&args.kubeconfig).await?;
    let stop = CancellationToken::new();
    show_proxy(&stop);
    alone("proxy", stop.clone(), skiff_proxy::run(client, config, stop)).await
}

fn node_facts<'a>(args: &'a NodeArgs, name: &'a str, address: IpAddr, settings: &'a Settings) -> NodeFacts<'a> {
    let (data_dir, engine) = (&args.data_dir, &args.engine);
    NodeFacts { name, address, data_dir, engine, port: args.kubelet_port, settings }
}

/// Removes what node agent and proxy left on this machine.
pub(crate) async fn cleanup(args: &DownArgs) -> anyhow::Result<()> {
    let name = match std::fs::read_to_string(args.data_dir.join("node")) {
        Ok(n) => n,
        Err(_) => node_name(None)?,
    };
    let settings = Settings {
        pod_cidr: "10.244.0.0/16".parse()?,
        service_cidr: args.service_cidr,
        domain: "cluster.local".into(),
        network: skiff_proxy::nodes::Mode::default(),
    };
    let node = NodeFacts {
        name: &name,
        address: [127, 0, 0, 1].into(),
        data_dir: &args.data_dir,
        engine: &args.engine,
        port: 10250,
        settings: &settings,
    };
    let config = kubelet_config(&node, None, "")?;
    skiff_kubelet::cleanup(&config).await.context("cannot remove pods")?;
    skiff_proxy::cleanup(&proxy_config(&node)?).await.context("cannot remove Service rules")
}
