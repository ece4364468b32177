//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory, Parser, Subcommand};

/// Kubernetes in one program.
#[derive(Debug, Parser)]
#[command(name = "skiff", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to log, for example `info` or `skiff_kubelet=debug`.
    #[arg(long, global = true, env = "SKIFF_LOG", default_value = "info")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole cluster in this process: API server, controllers, scheduler, node agent, proxy and DNS.
    Up(UpArgs),
    /// Make this machine a node of a cluster that runs elsewhere: node agent, proxy and DNS.
    Join(crate::join::JoinArgs),
    /// Make, list and delete the tokens by which machines join.
    Token(crate::token::TokenArgs),
    /// Stop what `up` or `join` started: containers, links, rules, mounts, and the kubeconfig context.
    Down(DownArgs),
    /// Run the API server alone.
    Apiserver(UpArgs),
    /// Run the controllers alone.
    ControllerManager(ComponentArgs),
    /// Run the scheduler alone.
    Scheduler(ComponentArgs),
    /// Run the node agent alone.
    Kubelet(KubeletArgs),
    /// Run the service proxy and cluster DNS alone.
    Proxy(NodeArgs),
    /// Show or change settings of the running cluster: the placement policy. Also `kubectl cfg`.
    Cfg(crate::cfg::CfgArgs),
    /// Serve functions alone, of any cluster.
    Faas(crate::functions::FaasArgs),
    /// Run workflows alone, of any cluster; several such processes share the runs.
    Workflows(crate::workflows::AloneArgs),
    /// Bring jobs to Slurm alone, of any cluster.
    Hpc(crate::hpc::HpcArgs),
    /// Copy everything from one store to another, while no server runs on either.
    MigrateStore(MigrateArgs),
    /// Save everything in a file: objects, and the keys in the data directory. The cluster may go on running.
    Backup(BackupArgs),
    /// Fill an empty data directory (or an empty etcd) from such a file.
    Restore(BackupArgs),
    /// Merge the cluster's context into a kubeconfig file, or print it.
    Kubeconfig(KubeconfigArgs),
    /// Functions, as `kubectl func`.
    Func(skiff_faas::plugin::FuncArgs),
    /// Call a function and print its answer, as `kubectl trigger`.
    Trigger(skiff_faas::plugin::TriggerArgs),
    /// Workflows, as `kubectl wf`.
    Wf(skiff_workflow::plugin::WfArgs),
    /// Jobs on Slurm, as `kubectl gpu`.
    Gpu(skiff_hpc::plugin::GpuArgs),
    /// Print the version.
    Version,
    /// Print a completion script.
    Completion {
        /// Shell to complete for.
        shell: clap_complete::Shell,
    },
}

/// Settings of `up` and `apiserver`.
#[derive(Clone, Debug, Args)]
pub(crate) struct UpArgs {
    /// Where everything is kept.
    #[arg(long, env = "SKIFF_DATA_DIR", default_value = "/var/lib/skiff")]
    pub(crate) data_dir: PathBuf,
    #[command(flatten)]
    pub(crate) audit: crate::audit::AuditArgs,
    /// Reading requests that are served at a time. Together with the next, these are the seats that priority and fairness
    /// divides among the priority levels.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_requests_inflight: u32,
    /// Other requests that are served at a time.
    #[arg(long, default_value_t = 200)]
    pub(crate) max_mutating_requests_inflight: u32,
    /// Address and port of the API server.
    #[arg(long, default_value = "0.0.0.0:6443")]
    pub(crate) listen: SocketAddr,
    /// Address that pods and other machines reach this one at. Default: that of the default route, else loopback.
    #[arg(long)]
    pub(crate) advertise_address: Option<IpAddr>,
    /// Further names and addresses for the server's certificate.
    #[arg(long, value_delimiter = ',')]
    pub(crate) tls_san: Vec<String>,
    /// Range of Service addresses.
    #[arg(long, default_value = "10.96.0.0/16")]
    pub(crate) service_cidr: ipnet::IpNet,
    /// Range of pod addresses.
    #[arg(long, default_value = "10.244.0.0/16")]
    pub(crate) pod_cidr: ipnet::IpNet,
    /// Domain of cluster DNS.
    #[arg(long, default_value = "cluster.local")]
    pub(crate) cluster_domain: String,
    /// How pods of different nodes reach each other: auto (plain routes where nodes share a segment, else VXLAN),
    /// host-gw (plain routes), vxlan, or none (CNI plugins see to it).
    #[arg(long, default_value = "auto")]
    pub(crate) pod_network: skiff_proxy::nodes::Mode,
    /// Addresses of Services of type LoadBalancer: nodes (the nodes' own), ranges of addresses on the nodes' segment
    /// (192.0.2.64/27 or 192.0.2.64-192.0.2.80, comma-separated), or none (another program serves them).
    #[arg(long, default_value = "nodes")]
    pub(crate) load_balancer: skiff_controllers::controllers::outside::LoadBalancer,
    /// A node that was silent for this long is taken for dead.
    #[arg(long, default_value = "50s")]
    pub(crate) node_monitor_grace_period: jiff::SignedDuration,
    /// Name of this node. Default: the host name.
    #[arg(long)]
    pub(crate) node_name: Option<String>,
    /// Engine socket of the node agent.
    #[arg(long, default_value = "/var/run/docker.sock")]
    pub(crate) engine: PathBuf,
    /// Port of the node agent.
    #[arg(long, default_value_t = 10250)]
    pub(crate) kubelet_port: u16,
    #[command(flatten)]
    pub(crate) ingress: IngressArgs,
    #[command(flatten)]
    pub(crate) functions: crate::functions::FunctionsArgs,
    #[command(flatten)]
    pub(crate) workflows: crate::workflows::WorkflowsArgs,
    #[command(flatten)]
    pub(crate) hpc: crate::hpc::HpcFlags,
    #[command(flatten)]
    pub(crate) cni: CniArgs,
    #[command(flatten)]
    pub(crate) eviction: EvictionArgs,
    /// kubeconfig file to merge the context into. Default: $KUBECONFIG, else ~/.kube/config.
    #[arg(long)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Name of the context, cluster and user in the kubeconfig.
    #[arg(long, default_value = "skiff")]
    pub(crate) context: String,
    /// Also serve the metrics of controllers, scheduler and proxy at the ports that these have as processes of their own:
    /// 10257, 10259, and 10249 of loopback. They are part of the server's and the node's own in any case.
    #[arg(long)]
    pub(crate) component_metrics: bool,
    /// Do not touch any kubeconfig.
    #[arg(long)]
    pub(crate) no_kubeconfig: bool,
    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
}

/// How etcd is reached. All servers of a cluster name the same one, and have the same `pki` in their data directories.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct EtcdArgs {
    /// Keep objects in this etcd cluster (URLs of its members) instead of the data directory.
    #[arg(long, value_delimiter = ',', env = "SKIFF_ETCD_SERVERS")]
    pub(crate) etcd_servers: Vec<String>,
    /// Authority that signed the certificates of etcd.
    #[arg(long, requires = "etcd_servers")]
    pub(crate) etcd_cafile: Option<PathBuf>,
    /// Certificate to show to etcd.
    #[arg(long, requires = "etcd_keyfile")]
    pub(crate) etcd_certfile: Option<PathBuf>,
    /// Key of that certificate.
    #[arg(long, requires = "etcd_certfile")]
    pub(crate) etcd_keyfile: Option<PathBuf>,
    /// What the names of all keys in etcd begin with, before `/registry`.
    #[arg(long, default_value = "")]
    pub(crate) etcd_prefix: String,
    /// How much of its history etcd keeps at least, in seconds; 0 leaves compaction to others.
    #[arg(long, default_value_t = 300)]
    pub(crate) etcd_compaction_interval: u64,
}

impl EtcdArgs {
    /// Whether etcd is the store.
    pub(crate) fn used(&self) -> bool {
        !self.etcd_servers.is_empty()
    }
}

/// Settings of `migrate-store`.
#[derive(Clone, Debug, Args)]
pub(crate) struct MigrateArgs {
    /// Where everything is: `embedded:DATA_DIR` or `etcd:URL,URL...`.
    #[arg(long)]
    pub(crate) from: crate::store::Place,
    /// Where it goes, an empty one: `embedded:DATA_DIR` or `etcd:URL,URL...`.
    #[arg(long)]
    pub(crate) to: crate::store::Place,
    /// Authority that signed the certificates of etcd.
    #[arg(long)]
    pub(crate) etcd_cafile: Option<PathBuf>,
    /// Certificate to show to etcd.
    #[arg(long, requires = "etcd_keyfile")]
    pub(crate) etcd_certfile: Option<PathBuf>,
    /// Key of that certificate.
    #[arg(long, requires = "etcd_certfile")]
    pub(crate) etcd_keyfile: Option<PathBuf>,
    /// What the names of all keys in etcd begin with, before `/registry`.
    #[arg(long, default_value = "")]
    pub(crate) etcd_prefix: String,
}

/// Settings of `backup` and `restore`.
#[derive(Clone, Debug, Args)]
pub(crate) struct BackupArgs {
    /// The file. It holds the cluster's keys: keep it private.
    pub(crate) file: PathBuf,
    /// The cluster's data directory.
    #[arg(long, env = "SKIFF_DATA_DIR", default_value = "/var/lib/skiff")]
    pub(crate) data_dir: PathBuf,
    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
}

/// Settings of components that only talk to the API.
#[derive(Clone, Debug, Args)]
pub(crate) struct ComponentArgs {
    /// Port for metrics, with TLS; 0 for none. Default: 10257 of the controllers, 10259 of the scheduler.
    #[arg(long)]
    pub(crate) secure_port: Option<u16>,
    /// kubeconfig with this component's identity.
    #[arg(long)]
    pub(crate) kubeconfig: PathBuf,
    /// The server's data directory, for keys that controllers sign with.
    #[arg(long, env = "SKIFF_DATA_DIR", default_value = "/var/lib/skiff")]
    pub(crate) data_dir: PathBuf,
    /// Range of pod addresses.
    #[arg(long, default_value = "10.244.0.0/16")]
    pub(crate) pod_cidr: ipnet::IpNet,
    /// Addresses of Services of type LoadBalancer: nodes (the nodes' own), ranges of addresses on the nodes' segment
    /// (192.0.2.64/27 or 192.0.2.64-192.0.2.80, comma-separated), or none (another program serves them).
    #[arg(long, default_value = "nodes")]
    pub(crate) load_balancer: skiff_controllers::controllers::outside::LoadBalancer,
    /// A node that was silent for this long is taken for dead.
    #[arg(long, default_value = "50s")]
    pub(crate) node_monitor_grace_period: jiff::SignedDuration,
}

/// The ingress gateway of a node.
#[derive(Clone, Debug, Args)]
pub(crate) struct IngressArgs {
    /// Port of the ingress gateway for HTTP; 0 turns that off.
    #[arg(long, default_value_t = 80)]
    pub(crate) ingress_http_port: u16,
    /// Port of the ingress gateway for HTTPS; 0 turns that off.
    #[arg(long, default_value_t = 443)]
    pub(crate) ingress_https_port: u16,
}

impl IngressArgs {
    /// Where the gateway listens; none when both ports are off.
    pub(crate) fn config(&self) -> Option<skiff_proxy::ingress::Config> {
        let at = |port| std::net::SocketAddr::from(([0, 0, 0, 0], port));
        let (http, https) = (self.ingress_http_port, self.ingress_https_port);
        (http != 0 || https != 0).then(|| skiff_proxy::ingress::Config { http: at(http), https: at(https) })
    }
}

/// Settings of the node agent.
#[derive(Clone, Debug, Args)]
pub(crate) struct KubeletArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// What runs containers: docker, or fake (they are only pretended, to try a control plane at scale; --kubeconfig
    /// names an identity that may act for all these nodes).
    #[arg(long, default_value = "docker", value_parser = ["docker", "fake"])]
    pub(crate) runtime: String,
    /// Number of fake nodes in this process, named NAME-0 and so on.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) count: u32,
    /// Further labels of the Node, as KEY=VALUE.
    #[arg(long, value_delimiter = ',', value_parser = label)]
    pub(crate) node_labels: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) eviction: EvictionArgs,
    /// Most pods a node takes.
    #[arg(long, default_value_t = 110)]
    pub(crate) max_pods: u32,
    /// Cores of a fake node.
    #[arg(long, default_value_t = 32)]
    pub(crate) fake_cpus: u64,
    /// Memory of a fake node, in GiB.
    #[arg(long, default_value_t = 256)]
    pub(crate) fake_memory: u64,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("labels are KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// When a node takes no more pods.
#[derive(Clone, Debug, Args)]
pub(crate) struct EvictionArgs {
    /// What must be left of memory, disk and processes for this node to take pods. Signals: memory.available, pid.available
    /// and {nodefs,imagefs}.{available,inodesFree}, each with a quantity or a share of the whole.
    #[arg(long, env = "SKIFF_EVICTION_HARD", default_value = skiff_kubelet::node::pressure::DEFAULT)]
    pub(crate) eviction_hard: skiff_kubelet::node::pressure::Thresholds,
}

/// The CNI plugins of a node.
#[derive(Clone, Debug, Args)]
pub(crate) struct CniArgs {
    /// Directory with CNI configurations: the first makes the pod network, instead of the agent's own bridge. When it
    /// is not named, /etc/cni/net.d is used if it holds one when the agent starts.
    #[arg(long)]
    pub(crate) cni_conf_dir: Option<PathBuf>,
    /// Directories with CNI plugins.
    #[arg(long, value_delimiter = ',', default_value = "/opt/cni/bin,/usr/lib/cni")]
    pub(crate) cni_bin_dir: Vec<PathBuf>,
}

impl CniArgs {
    /// Where plugins and configurations are; none when the agent makes the network itself.
    pub(crate) fn dirs(&self) -> Option<skiff_kubelet::cni::Dirs> {
        let usual = || Some(PathBuf::from("/etc/cni/net.d")).filter(|dir| skiff_kubelet::cni::config::present(dir));
        let conf = self.cni_conf_dir.clone().or_else(usual)?;
        Some(skiff_kubelet::cni::Dirs { conf, bin: self.cni_bin_dir.clone() })
    }
}

/// Settings of components of one node.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    pub(crate) ingress: IngressArgs,
    #[command(flatten)]
    pub(crate) cni: CniArgs,
    /// kubeconfig with this component's identity.
    #[arg(long)]
    pub(crate) kubeconfig: PathBuf,
    /// Where the component keeps what it needs between starts.
    #[arg(long, env = "SKIFF_DATA_DIR", default_value = "/var/lib/skiff")]
    pub(crate) data_dir: PathBuf,
    /// Name of this node. Default: the host name.
    #[arg(long)]
    pub(crate) node_name: Option<String>,
    /// Address of this node.
    #[arg(long)]
    pub(crate) node_ip: Option<IpAddr>,
    /// Engine socket.
    #[arg(long, default_value = "/var/run/docker.sock")]
    pub(crate) engine: PathBuf,
    /// Port of the node agent.
    #[arg(long, default_value_t = 10250)]
    pub(crate) kubelet_port: u16,
    /// Range of pod addresses of the cluster.
    #[arg(long, default_value = "10.244.0.0/16")]
    pub(crate) pod_cidr: ipnet::IpNet,
    /// Range of Service addresses.
    #[arg(long, default_value = "10.96.0.0/16")]
    pub(crate) service_cidr: ipnet::IpNet,
    /// Domain of cluster DNS.
    #[arg(long, default_value = "cluster.local")]
    pub(crate) cluster_domain: String,
    /// How pods of different nodes reach each other: auto, host-gw, vxlan or none.
    #[arg(long, default_value = "auto")]
    pub(crate) pod_network: skiff_proxy::nodes::Mode,
}

impl NodeArgs {
    /// Settings that all nodes share.
    pub(crate) fn settings(&self) -> crate::cluster::Settings {
        crate::cluster::Settings {
            pod_cidr: self.pod_cidr,
            service_cidr: self.service_cidr,
            domain: self.cluster_domain.clone(),
            network: self.pod_network,
        }
    }
}

/// Settings of `down`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DownArgs {
    /// Where everything is kept.
    #[arg(long, env = "SKIFF_DATA_DIR", default_value = "/var/lib/skiff")]
    pub(crate) data_dir: PathBuf,
    /// Also delete the data: every object, key and log.
    #[arg(long)]
    pub(crate) purge: bool,
    /// Engine socket.
    #[arg(long, default_value = "/var/run/docker.sock")]
    pub(crate) engine: PathBuf,
    /// Range of Service addresses, if it was named.
    #[arg(long, default_value = "10.96.0.0/16")]
    pub(crate) service_cidr: ipnet::IpNet,
    /// kubeconfig file to remove the context from.
    #[arg(long)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Name of the context.
    #[arg(long, default_value = "skiff")]
    pub(crate) context: String,
}

#[derive(Clone, Debug, Args)]
struct KubeconfigArgs {
    /// Where everything is kept.
    #[arg(long, env = "SKIFF_DATA_DIR", default_value = "/var/lib/skiff")]
    data_dir: PathBuf,
    /// File to merge into. Default: $KUBECONFIG, else ~/.kube/config.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Name of the context.
    #[arg(long, default_value = "skiff")]
    context: String,
    /// Print the file of this cluster instead of merging it.
    #[arg(long)]
    print: bool,
}

impl Cli {
    /// Whether it is a command whose messages are kubectl's.
    pub(crate) fn is_for_kubectl(&self) -> bool {
        matches!(self.command, Command::Func(_) | Command::Trigger(_) | Command::Wf(_) | Command::Gpu(_))
    }

    /// Carries the command out.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match &self.command {
            Command::Version => {
                println!(
                    "skiff {} (Kubernetes API {})",
                    env!("CARGO_PKG_VERSION"),
                    skiff_apiserver::discovery::GIT_VERSION
                );
                return Ok(());
            }
            Command::Completion { shell } => {
                clap_complete::generate(*shell, &mut Self::command(), "skiff", &mut std::io::stdout());
                return Ok(());
            }
            Command::Kubeconfig(a) => {
                let own = a.data_dir.join("kubeconfig/admin.yaml");
                let text = std::fs::read_to_string(&own).with_context(|| {
                    format!("cannot read {}: start the cluster with `skiff up` first", own.display())
                })?;
                if a.print {
                    print!("{text}");
                    return Ok(());
                }
                let file = kubeconfig_path(a.kubeconfig.clone())?;
                crate::kubeconfig::merge(&file, &text, &a.context)?;
                println!("context {} is in {}", a.context, file.display());
                return Ok(());
            }
            Command::Func(a) => return a.clone().run(),
            Command::Wf(a) => return a.clone().run(),
            Command::Gpu(a) => return a.clone().run(),
            Command::Trigger(a) => return a.clone().run(),
            _ => {}
        }
        // A machine that joins looks at an unproven answer on purpose, once; that is no news.
        let quiet = format!("kube_client::client::tls=error,{}", self.log);
        let filter = tracing_subscriber::EnvFilter::try_new(quiet).context("--log is not a log filter")?;
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
        runtime.block_on(async move {
            match self.command {
                Command::Up(a) => crate::up::up(a, crate::up::Parts::All).await,
                Command::Apiserver(a) => crate::up::up(a, crate::up::Parts::ApiServer).await,
                Command::Join(a) => crate::join::join(a).await,
                Command::Token(a) => crate::token::run(a).await,
                Command::Down(a) => crate::up::down(a).await,
                Command::ControllerManager(a) => crate::components::controller_manager(a).await,
                Command::Scheduler(a) => crate::components::scheduler(a).await,
                Command::Kubelet(a) => crate::components::kubelet(a).await,
                Command::Proxy(a) => crate::components::proxy(a).await,
                Command::Cfg(a) => crate::cfg::run(a).await,
                Command::Faas(a) => crate::functions::run(a).await,
                Command::Workflows(a) => crate::workflows::run(a).await,
                Command::Hpc(a) => crate::hpc::run(a).await,
                Command::MigrateStore(a) => crate::transfer::migrate(a).await,
                Command::Backup(a) => crate::transfer::backup(a).await,
                Command::Restore(a) => crate::transfer::restore(a).await,
                Command::Kubeconfig(_) | Command::Version | Command::Completion { .. } => Ok(()),
                Command::Func(_) | Command::Trigger(_) | Command::Wf(_) | Command::Gpu(_) => Ok(()),
            }
        })
    }
}

/// The kubeconfig file people use.
pub(crate) fn kubeconfig_path(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(p) = given {
        return Ok(p);
    }
    if let Some(first) = std::env::var_os("KUBECONFIG").and_then(|v| std::env::split_paths(&v).next())
        && !first.as_os_str().is_empty()
    {
        return Ok(first);
    }
    let home = std::env::var_os("HOME").context("HOME is not set: name the file with --kubeconfig")?;
    Ok(PathBuf::from(home).join(".kube/config"))
}

/// The host's name in the form node names have.
pub(crate) fn node_name(given: Option<String>) -> anyhow::Result<String> {
    let name = match given {
        Some(n) => n,
        None => nix::unistd::gethostname()
            .context("cannot read the host name: set --node-name")?
            .to_string_lossy()
            .into_owned(),
    };
    Ok(name.trim().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command can be parsed: names of arguments and groups are told apart.
    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
