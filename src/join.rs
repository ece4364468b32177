//! `skiff join`: this machine becomes a node of a cluster that runs elsewhere.
//!
//! The first time, the token gets the node a client certificate; from then on the node is itself, and the token is not
//! needed. Certificate, CA and kubeconfig stay in the data directory. Agent and proxy run in this process with the
//! node's identity, on a client that takes the newest certificate for each new connection.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::Api;
use skiff_kubelet::certificates::{self, Pair};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cluster::Settings;
use crate::components::{self, NodeFacts};
use crate::discovery::{Token, ask, config, discover};

/// First and longest wait between tries.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// No timer is set for longer than this, so that a clock that was changed is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Settings of `join`.
#[derive(Clone, Debug, Args)]
pub(crate) struct JoinArgs {
    /// The server, as HOST:PORT.
    #[arg(value_parser = crate::discovery::server_url)]
    server: String,
    /// Token from `skiff token create`. Needed until this machine has joined.
    #[arg(long, env = "SKIFF_TOKEN", hide_env_values = true)]
    token: Option<Token>,
    /// Hash of the key of the cluster's CA, as `skiff token create --print-join-command` prints it.
    #[arg(long, value_delimiter = ',')]
    ca_cert_hash: Vec<String>,
    /// Join without a hash: then anybody who has the token may pass for the server.
    #[arg(long)]
    unsafe_skip_ca_verification: bool,
    /// Where everything is kept.
    #[arg(long, env = "SKIFF_DATA_DIR", default_value = "/var/lib/skiff")]
    data_dir: PathBuf,
    /// Name of this node. Default: the host name.
    #[arg(long)]
    node_name: Option<String>,
    /// Address of this node. Default: the one that the server is reached from.
    #[arg(long)]
    node_ip: Option<IpAddr>,
    /// Labels of the node, as KEY=VALUE.
    #[arg(long, value_delimiter = ',', value_parser = label)]
    node_labels: Vec<(String, String)>,
    /// Taints the node is registered with, as KEY=VALUE:EFFECT or KEY:EFFECT.
    #[arg(long, value_delimiter = ',', value_parser = taint)]
    register_with_taints: Vec<Taint>,
    /// Engine socket.
    #[arg(long, default_value = "/var/run/docker.sock")]
    engine: PathBuf,
    /// Port of the node agent.
    #[arg(long, default_value_t = 10250)]
    kubelet_port: u16,
    /// Run no processes of functions on this node; their pods it runs all the same.
    #[arg(long)]
    without_functions: bool,
    #[command(flatten)]
    ingress: crate::cli::IngressArgs,
    #[command(flatten)]
    cni: crate::cli::CniArgs,
    #[command(flatten)]
    eviction: crate::cli::EvictionArgs,
    /// Life in seconds of the node's certificates. Default: the signer's longest, a year.
    #[arg(long, hide = true)]
    certificate_seconds: Option<i32>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is no KEY=VALUE"))?;
    Ok((key.into(), value.into()))
}

fn taint(text: &str) -> Result<Taint, String> {
    let (left, effect) = text.rsplit_once(':').ok_or_else(|| format!("{text:?} is no KEY=VALUE:EFFECT"))?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        return Err(format!("{effect:?} is no effect: choose NoSchedule, PreferNoSchedule or NoExecute"));
    }
    let (key, value) = left.split_once('=').map_or((left, None), |(k, v)| (k, Some(v.to_owned())));
    Ok(Taint { key: key.into(), value, effect: effect.into(), time_added: None })
}

/// The files of a node.
#[derive(Clone)]
struct Files {
    node: PathBuf,
    ca: PathBuf,
    pair: PathBuf,
    kubeconfig: PathBuf,
    lock: PathBuf,
}

impl Files {
    fn new(dir: &Path) -> Self {
        Self {
            node: dir.join("node"),
            ca: dir.join("pki/ca.crt"),
            pair: dir.join("pki/kubelet-client-current.pem"),
            kubeconfig: dir.join("kubeconfig/kubelet.yaml"),
            lock: dir.join("lock"),
        }
    }
}

/// Held while a node runs on a data directory.
pub(crate) struct Running {
    _lock: nix::fcntl::Flock<std::fs::File>,
}

impl Running {
    /// Takes the directory, or says that another process has it.
    pub(crate) fn take(dir: &Path) -> anyhow::Result<Self> {
        let path = Files::new(dir).lock;
        let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("cannot use {}", path.display()))?;
        let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, e)| e).with_context(|| {
            format!(
                "another skiff uses {}: it is running already; stop it, or choose another with --data-dir",
                dir.display()
            )
        })?;
        Ok(Self { _lock: lock })
    }
}

/// Runs until a signal, or until a component cannot go on.
pub(crate) async fn join(args: JoinArgs) -> anyhow::Result<()> {
    let begun = Instant::now();
    let name = crate::cli::node_name(args.node_name.clone())?;
    crate::up::make_private(&args.data_dir)?;
    if args.data_dir.join("store").exists() {
        bail!("{} is the data directory of a server: choose another with --data-dir", args.data_dir.display());
    }
    let _running = Running::take(&args.data_dir)?;
    crate::up::check_engine(&args.engine)?;
    let files = Files::new(&args.data_dir);
    let kept = credentials(&files, &name)?;
    let pair = match kept {
        Some(pair) => pair,
        None => become_node(&args, &files, &name).await?,
    };
    let client = Renewing::new(&args.server, &files, &pair)?;
    let settings = settings(client.client(), &args.server).await?;
    let address = match args.node_ip {
        Some(ip) => ip,
        None => source_address(&args.server).context("cannot tell this node's address: name it with --node-ip")?,
    };
    tracing::info!(node = name, %address, server = args.server, took = ?begun.elapsed(), "joined");
    let facts = NodeFacts {
        name: &name,
        address,
        data_dir: &args.data_dir,
        engine: &args.engine,
        port: args.kubelet_port,
        settings: &settings,
    };
    let ca = std::fs::read_to_string(&files.ca).context("cannot read the cluster's CA")?;
    let mut agent = components::kubelet_config(&facts, None, &ca)?;
    let gateway = args.ingress.config();
    agent.labels = args.node_labels.iter().cloned().chain(components::gateway_label(gateway.is_some())).collect();
    agent.cni = args.cni.dirs();
    agent.eviction_hard = args.eviction.eviction_hard.clone();
    agent.taints.clone_from(&args.register_with_taints);
    agent.certificate_seconds = args.certificate_seconds;
    if !args.without_functions {
        agent.functions = Some(crate::functions::on_node(&name, &args.data_dir, &args.engine, true)?.1);
    }
    let proxy = skiff_proxy::Config { ingress: gateway, ..components::proxy_config(&facts)? };
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    components::spawn(&mut tasks, "node agent", &stop, skiff_kubelet::run(client.client(), agent, stop.clone()));
    components::spawn(&mut tasks, "proxy", &stop, skiff_proxy::run(client.client(), proxy, stop.clone()));
    let renewing = client.renew(args.clone(), name.clone(), stop.clone());
    components::spawn(&mut tasks, "renewal of certificates", &stop, renewing);
    tokio::select! {
        signal = crate::up::signal() => tracing::info!(signal, "stopping; pods keep running"),
        Some(ended) = tasks.join_next() => match ended {
            Ok(Ok(())) => bail!("a component ended by itself"),
            Ok(Err(e)) => return Err(e),
            Err(e) => bail!("a component panicked: {e}"),
        },
    }
    stop.cancel();
    let drained = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(crate::up::DRAIN, drained).await;
    Ok(())
}

/// What an earlier join left: nothing when there is none that still holds.
fn credentials(files: &Files, name: &str) -> anyhow::Result<Option<Pair>> {
    let Some(pair) = Pair::load(&files.pair) else { return Ok(None) };
    let of = std::fs::read_to_string(&files.node).unwrap_or_default();
    if of != name {
        bail!(
            "this machine has joined as node {of}, not as {name}: name it with --node-name {of}, or leave the cluster \
             first with `skiff down --purge`"
        );
    }
    if pair.expired() {
        tracing::warn!("the node's certificate has expired; joining anew");
        return Ok(None);
    }
    Ok(Some(pair))
}

/// Gets this machine its identity, with the token.
async fn become_node(args: &JoinArgs, files: &Files, name: &str) -> anyhow::Result<Pair> {
    let token = args.token.as_ref().context(
        "this machine has not joined yet: make a token on the server with `skiff token create --print-join-command`",
    )?;
    if args.ca_cert_hash.is_empty() && !args.unsafe_skip_ca_verification {
        bail!("--ca-cert-hash is missing: `skiff token create --print-join-command` prints it");
    }
    let url = &args.server;
    let ca = discover(url, token, &args.ca_cert_hash).await?;
    let mut config = config(url)?;
    config.root_cert = Some(vec![der(&ca)?]);
    config.auth_info.token = Some(token.to_string().into());
    let client = kube::Client::try_from(config)?;
    let nodes: Api<Node> = Api::all(client.clone());
    match ask(url, nodes.get_opt(name)).await {
        Ok(Some(node)) if is_ready(&node) => {
            bail!("a node {name} exists and is ready: choose another name with --node-name, or delete that node first")
        }
        Ok(_) => {}
        Err(e) if matches!(e.downcast_ref(), Some(kube::Error::Api(s)) if s.code == 401) => bail!(
            "the cluster does not take token {}: it has expired, or is not for joining. Make a new one on the server \
             with `skiff token create --print-join-command`",
            token.id
        ),
        Err(e) => return Err(e.context("cannot look for a node of this name")),
    }
    let pair = certificates::client(&client, name, args.certificate_seconds).await.context("no certificate")?;
    // The CA first: a pair without it would be taken for a whole identity.
    if let Some(dir) = files.ca.parent() {
        crate::up::make_private(dir)?;
    }
    crate::kubeconfig::write(&files.ca, &ca)?;
    std::fs::write(&files.node, name).context("cannot write to the data directory")?;
    pair.store(&files.pair)?;
    Ok(pair)
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn der(pem: &str) -> anyhow::Result<Vec<u8>> {
    Ok(x509_parser::pem::parse_x509_pem(pem.as_bytes()).context("not a certificate")?.1.contents)
}

/// The address that packets to the server leave with; none is sent.
fn source_address(url: &str) -> anyhow::Result<IpAddr> {
    let host = url.trim_start_matches("https://");
    let to: SocketAddr = host.to_socket_addrs()?.next().context("the server's name has no address")?;
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

/// The cluster's settings. A server that is away is waited for: this machine may have started first.
async fn settings(client: kube::Client, url: &str) -> anyhow::Result<Settings> {
    let mut wait = BACKOFF.0;
    loop {
        match Settings::read(&client).await {
            Ok(s) => return Ok(s),
            Err(e) => {
                let refused = e.chain().find_map(|c| match c.downcast_ref() {
                    Some(kube::Error::Api(s)) => Some(s.code),
                    _ => None,
                });
                match refused {
                    Some(401) => bail!(
                        "{url} does not know this node's certificate: is this another cluster? To join anew, remove the \
                         old data with `skiff down --purge`"
                    ),
                    Some(403 | 404) | None => {
                        tracing::warn!(
                            error = format!("{e:#}"),
                            "the server does not tell its settings yet; trying again"
                        )
                    }
                    Some(_) => return Err(e),
                }
            }
        }
        tokio::select! {
            signal = crate::up::signal() => bail!("stopped by {signal} before the server answered"),
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(BACKOFF.1),
        }
    }
}

/// A client whose certificate is renewed under it.
struct Renewing {
    url: String,
    files: Files,
    current: Arc<RwLock<kube::Client>>,
}

impl Renewing {
    fn new(url: &str, files: &Files, pair: &Pair) -> anyhow::Result<Self> {
        let current = Arc::new(RwLock::new(Self::connect(url, files, pair)?));
        Ok(Self { url: url.to_owned(), files: files.clone(), current })
    }

    /// Writes the kubeconfig, so that people and tools on this machine can act as the node, and makes a client of it.
    fn connect(url: &str, files: &Files, pair: &Pair) -> anyhow::Result<kube::Client> {
        let ca = std::fs::read_to_string(&files.ca).context("cannot read the cluster's CA")?;
        let leaf = skiff_apiserver::pki::Leaf { cert: pair.cert.clone(), key: pair.key.clone() };
        if let Some(dir) = files.kubeconfig.parent() {
            crate::up::make_private(dir)?;
        }
        let text = crate::kubeconfig::render("skiff", url, &ca, &leaf);
        crate::kubeconfig::write(&files.kubeconfig, &text)?;
        let mut config = config(url)?;
        config.root_cert = Some(vec![der(&ca)?]);
        config.auth_info.client_certificate_data = Some(crate::kubeconfig::base64(&pair.cert));
        config.auth_info.client_key_data = Some(crate::kubeconfig::base64(&pair.key).into());
        Ok(kube::Client::try_from(config)?)
    }

    /// A client that always uses the newest certificate.
    fn client(&self) -> kube::Client {
        let current = Arc::clone(&self.current);
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let client = current.read().unwrap_or_else(PoisonError::into_inner).clone();
            async move { client.send(request).await }
        });
        kube::Client::new(service, "default")
    }

    /// Renews the certificate whenever that is due, until `stop`.
    async fn renew(self, args: JoinArgs, name: String, stop: CancellationToken) -> anyhow::Result<()> {
        let mut wait = BACKOFF.0;
        loop {
            // Read again: the file is what a restart would use.
            let due = Pair::load(&self.files.pair).map_or(Duration::ZERO, |p| p.renew_in());
            let pause = if due.is_zero() { Duration::ZERO } else { due.min(LONGEST_SLEEP) };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Ok(());
            }
            if !due.is_zero() {
                continue;
            }
            let work = async {
                let client = self.client();
                let pair = certificates::client(&client, &name, args.certificate_seconds).await?;
                pair.store(&self.files.pair)?;
                *self.current.write().unwrap_or_else(PoisonError::into_inner) =
                    Self::connect(&self.url, &self.files, &pair)?;
                anyhow::Ok(())
            };
            let Some(done) = stop.run_until_cancelled(work).await else { return Ok(()) };
            match done {
                Ok(()) => {
                    tracing::info!("new client certificate");
                    wait = BACKOFF.0;
                }
                Err(e) => {
                    tracing::warn!(error = format!("{e:#}"), "the node's certificate is not renewed yet; trying again");
                    if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                        return Ok(());
                    }
                    wait = (wait * 2).min(BACKOFF.1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn taints_and_labels_are_read() {
        let got = |t: &str| taint(t).map(|t| json!([t.key, t.value, t.effect]));
        assert_eq!(got("gpu=yes:NoSchedule").unwrap(), json!(["gpu", "yes", "NoSchedule"]));
        assert_eq!(got("example.com/a:NoExecute").unwrap(), json!(["example.com/a", null, "NoExecute"]));
        assert!(got("gpu").is_err() && got("gpu:Never").is_err());
        assert_eq!(label("a=b").unwrap(), ("a".to_owned(), "b".to_owned()));
        assert!(label("a").is_err());
    }

    #[test]
    fn a_directory_serves_one_node_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Running::take(dir.path()).unwrap();
        assert!(Running::take(dir.path()).is_err());
        drop(first);
        assert!(Running::take(dir.path()).is_ok());
    }
}
