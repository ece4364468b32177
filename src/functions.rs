//! Wiring of functions: in `skiff up`, and `skiff faas` alone against any cluster.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_apiserver::pki::Pki;
use skiff_controllers::runtime::leader::while_leading;
use skiff_faas::Config;
use skiff_faas::build::{SecretName, Supplies};
use skiff_faas::gateway::door::Tls;
use skiff_faas::gateway::invoke::Shared;
use skiff_faas::process::{Access, Endpoint, Host, Keys, Wanted};
use skiff_faas::runtime::Images;
use skiff_kubelet::server::{Body, Extension};
use tokio_util::sync::CancellationToken;

use crate::cli::UpArgs;
use crate::components::{DoorArgs, Tasks, alone, client, spawn};

/// The identity of what runs functions.
pub(crate) const USER: &str = "system:skiff-functions";
/// The Lease of the process that does, where there may be several.
const LEASE: &str = "skiff-functions";

/// How functions are served.
#[derive(Clone, Debug, Args)]
pub(crate) struct FunctionsArgs {
    /// Port of the gateway of functions for HTTP; 0 turns functions off.
    #[arg(long, default_value_t = 8081)]
    pub(crate) functions_http_port: u16,
    /// Port of the gateway of functions for HTTPS; 0 turns that off.
    #[arg(long, default_value_t = 8443)]
    pub(crate) functions_https_port: u16,
    /// Directory below which triggers of functions may look at files. Without it there are no such triggers.
    #[arg(long)]
    pub(crate) functions_files: Option<PathBuf>,
    /// Image that Python functions run in when they run as pods.
    #[arg(long, default_value_t = Images::default().python)]
    pub(crate) functions_python_image: String,
    /// Image that Node.js functions run in when they run as pods.
    #[arg(long, default_value_t = Images::default().node)]
    pub(crate) functions_node_image: String,
    /// Image that other programs run in when they come without one.
    #[arg(long, default_value_t = Images::default().http)]
    pub(crate) functions_http_image: String,
    /// Registry that images of functions are pushed to, HOST[:PORT][/PATH]. Without it nodes get them from the one that built them.
    #[arg(long)]
    pub(crate) functions_registry: Option<String>,
    /// Secret NAMESPACE/NAME of type kubernetes.io/dockerconfigjson with the passwords of registries, for pushes and builds.
    #[arg(long)]
    pub(crate) functions_registry_secret: Option<SecretName>,
    /// Index of Python packages for functions. Default: that of pip.
    #[arg(long)]
    pub(crate) functions_pip_index: Option<http::Uri>,
    /// Registry of Node.js packages for functions. Default: that of npm.
    #[arg(long)]
    pub(crate) functions_npm_registry: Option<http::Uri>,
    /// The engine's network that builds of functions are in, as in `docker build --network`.
    #[arg(long)]
    pub(crate) functions_build_network: Option<String>,
}

impl FunctionsArgs {
    fn config(&self, address: IpAddr, node: &str, domain: &str, tls: Option<Tls>) -> Config {
        let at = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let https = self.functions_https_port;
        Config {
            http: at(self.functions_http_port),
            https: tls.filter(|_| https != 0).map(|tls| (at(https), tls)),
            address,
            domain: domain.to_owned(),
            node: node.to_owned(),
            files: self.functions_files.clone(),
            images: Images {
                python: self.functions_python_image.clone(),
                node: self.functions_node_image.clone(),
                http: self.functions_http_image.clone(),
            },
            engine: None,
            supplies: Supplies {
                registry: self.functions_registry.clone(),
                registry_secret: self.functions_registry_secret.clone(),
                pip_index: self.functions_pip_index.clone(),
                npm_registry: self.functions_npm_registry.clone(),
                network: self.functions_build_network.clone(),
            },
            processes: None,
            share: Shared::default(),
        }
    }
}

/// Settings of `faas`.
#[derive(Clone, Debug, Args)]
pub(crate) struct FaasArgs {
    /// kubeconfig with an identity that may do what docs/examples/functions/faas.yaml allows. Default: in a pod its
    /// ServiceAccount, elsewhere what kubectl would use.
    #[arg(long)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Address that pods reach this machine at. Default: that of the default route.
    #[arg(long)]
    pub(crate) advertise_address: Option<IpAddr>,
    /// Domain of cluster DNS.
    #[arg(long, default_value = "cluster.local")]
    pub(crate) cluster_domain: String,
    #[command(flatten)]
    pub(crate) door: DoorArgs,
    /// Socket of an engine that builds images of functions, for a registry that nodes pull from. Without it none are built.
    #[arg(long, requires = "functions_registry")]
    pub(crate) engine: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) functions: FunctionsArgs,
}

/// What a node's agent has for the gateway of functions.
#[derive(Debug)]
struct OnNode {
    endpoint: Endpoint,
    wanted: Arc<Wanted>,
    /// Images may come from another node.
    images: bool,
}

impl Extension for OnNode {
    fn answer(&self, request: Request<Incoming>) -> BoxFuture<'_, Response<Body>> {
        Box::pin(self.endpoint.answer(request))
    }

    fn has_image(&self, name: &str) -> bool {
        self.images && self.wanted.is_ours(name)
    }

    fn bring_image<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move { self.wanted.fetch(name).await.map_err(|e| format!("{e:#}")) })
    }
}

/// The processes of functions of a node, and what its agent serves of them. With `images` the gateway's node may be another.
pub(crate) fn on_node(
    node: &str,
    data_dir: &Path,
    engine: &Path,
    images: bool,
) -> anyhow::Result<(Arc<Host>, Arc<dyn Extension>)> {
    let host = Host::new(skiff_faas::process::Config::new(node, data_dir.join("functions")));
    let host = host.context("the directory of functions' processes cannot be used")?;
    let wanted = Wanted::new(&host, engine.to_owned());
    let endpoint = Endpoint::new(Arc::clone(&host), Arc::clone(&wanted));
    Ok((host, Arc::new(OnNode { endpoint, wanted, images })))
}

/// Serves functions in the process of the server.
#[allow(clippy::too_many_arguments)] // Each is a part of the server that it stands on.
pub(crate) fn start(
    tasks: &mut Tasks,
    server: &Server,
    args: &UpArgs,
    pki: &Arc<Pki>,
    address: IpAddr,
    node: &str,
    stop: &CancellationToken,
    share: Shared,
    host: Option<Arc<Host>>,
) -> anyhow::Result<()> {
    let Some(host) = host else { return Ok(()) };
    let service = "skiff-gateway.kube-system.svc";
    let names =
        [service.to_owned(), format!("{service}.{}", args.cluster_domain), "localhost".to_owned(), node.to_owned()];
    let leaf = pki.cluster.server("skiff-gateway", &names, &[address, Ipv4Addr::LOCALHOST.into()])?;
    let tls = Tls { certificate: leaf.cert, key: leaf.key, client_ca: pki.cluster.cert.clone() };
    let mut config = args.functions.config(address, node, &args.cluster_domain, Some(tls));
    config.engine = Some(args.engine.clone());
    config.share = share;
    let own = pki.cluster.client(USER, &[])?;
    let keys = Keys { ca: pki.cluster.cert.clone(), certificate: own.cert, key: own.key };
    config.processes = Some(Access { host, keys: Some(keys) });
    let client = server.client(User::new(USER, &[]));
    let (several, stop) = (args.etcd.used(), stop.clone());
    spawn(tasks, "functions", &stop.clone(), async move {
        if !several {
            return skiff_faas::run(client, config, stop).await;
        }
        let work = |inner| skiff_faas::run(client.clone(), config.clone(), inner);
        while_leading(client.clone(), LEASE, &stop, work).await
    });
    Ok(())
}

/// `skiff faas`.
pub(crate) async fn run(args: FaasArgs) -> anyhow::Result<()> {
    let address = args.advertise_address.unwrap_or_else(|| crate::up::advertise(Ipv4Addr::UNSPECIFIED.into()));
    let node = crate::cli::node_name(None)?;
    let mut config = args.functions.config(address, &node, &args.cluster_domain, args.door.tls()?);
    config.engine.clone_from(&args.engine);
    let client = match &args.kubeconfig {
        Some(path) => client(path).await?,
        None => kube::Client::try_default().await.context("no cluster is named: --kubeconfig is missing")?,
    };
    let stop = CancellationToken::new();
    let work = |inner| skiff_faas::run(client.clone(), config.clone(), inner);
    alone("functions", stop.clone(), while_leading(client.clone(), LEASE, &stop, work)).await
}

/// What [`USER`] may do, and what those may who have the cluster's own roles.
pub(crate) fn rights() -> Vec<Value> {
    let all = ["get", "list", "watch", "create", "update", "patch", "delete"];
    let read = ["get", "list", "watch"];
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    let role = |name: &str, labels: Value, rules: Vec<Value>| json!({"kind": "ClusterRole", "metadata": {"name": name, "labels": labels}, "rules": rules});
    let aggregated = |to: &[&str]| -> Value {
        to.iter().map(|r| (format!("rbac.authorization.k8s.io/aggregate-to-{r}"), json!("true"))).collect()
    };
    let group = skiff_faas::api::GROUP;
    let kinds = ["functions", "functionrevisions", "functioninstances", "functioncalls"];
    vec![
        role(
            "skiff:functions",
            json!({}),
            vec![
                rule("apiextensions.k8s.io", &["customresourcedefinitions"], &all),
                rule(group, &["*"], &all),
                rule("", &["pods", "services", "configmaps"], &all),
                rule("", &["pods/log", "secrets", "nodes", "namespaces"], &read),
                // Triggers by objects see what the function's account sees.
                rule("", &["serviceaccounts"], &["impersonate"]),
                rule("", &["events"], &["create", "patch", "update"]),
                rule("discovery.k8s.io", &["endpointslices"], &all),
                rule("networking.k8s.io", &["ingresses"], &["get", "create", "update", "delete"]),
                rule("coordination.k8s.io", &["leases"], &["get", "create", "update", "patch"]),
                rule("authentication.k8s.io", &["tokenreviews"], &["create"]),
                rule("authorization.k8s.io", &["subjectaccessreviews"], &["create"]),
            ],
        ),
        // Processes on other nodes: a role of its own, for clusters that have the other one since before.
        role("skiff:functions-nodes", json!({}), vec![rule("", &["nodes/functions"], &["get", "create"])]),
        crate::cluster::binding(
            "skiff:functions-nodes",
            None,
            "skiff:functions-nodes",
            &[crate::cluster::subject("User", USER)],
        ),
        crate::cluster::binding("skiff:functions", None, "skiff:functions", &[crate::cluster::subject("User", USER)]),
        role(
            "skiff:functions-edit",
            aggregated(&["admin", "edit"]),
            vec![
                rule(group, &["functions", "functions/scale", "functionrevisions", "functioncalls"], &all),
                rule(group, &["functions/invoke"], &["create"]),
            ],
        ),
        role(
            "skiff:functions-view",
            aggregated(&["view"]),
            vec![rule(group, &kinds, &read), rule(group, &["functions/log"], &["get"])],
        ),
    ]
}
