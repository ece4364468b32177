//! Wiring of workflows: in `skiff up`, and `skiff workflows` alone against any cluster.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_apiserver::pki::Pki;
use skiff_faas::gateway::door::Tls;
use skiff_faas::gateway::invoke::Shared;
use skiff_metrics::Part;
use skiff_plugin::Session;
use skiff_workflow::Config;
use skiff_workflow::engine::{Members, Pace};
use skiff_workflow::task::elsewhere::{Elsewhere, Nearest};
use skiff_workflow::task::functions::{Functions, Gateway, NoFunctions};
use tokio_util::sync::CancellationToken;

use crate::cli::UpArgs;
use crate::components::{DoorArgs, Tasks, alone, client_config, show, spawn};

/// The identity of what runs workflows.
pub(crate) const USER: &str = "system:skiff-workflows";
/// How workflows are served.
#[derive(Clone, Debug, Args)]
pub(crate) struct WorkflowsArgs {
    /// Port of the Step Functions API with HTTPS; 0 turns that off.
    #[arg(long, default_value_t = 8083)]
    pub(crate) workflows_port: u16,
    /// Run no workflows.
    #[arg(long)]
    pub(crate) no_workflows: bool,
}

/// Settings of `workflows`.
#[derive(Clone, Debug, Args)]
pub(crate) struct AloneArgs {
    /// kubeconfig with an identity that may do what docs/examples/workflows/workflows.yaml allows. Default: in a pod its
    /// ServiceAccount, elsewhere what kubectl would use.
    #[arg(long)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Port of the Step Functions API; 0 turns that off.
    #[arg(long, default_value_t = 8083)]
    pub(crate) workflows_port: u16,
    #[command(flatten)]
    pub(crate) door: DoorArgs,
    /// Where the gateway of functions is, as in https://192.0.2.1:8443. Default: looked up in the cluster.
    #[arg(long)]
    pub(crate) gateway: Option<http::Uri>,
    /// Port for metrics and health, with TLS; 0 for none.
    #[arg(long, default_value_t = 10262)]
    pub(crate) secure_port: u16,
}

/// `skiff workflows`.
pub(crate) async fn run(args: AloneArgs) -> anyhow::Result<()> {
    let config = match &args.kubeconfig {
        Some(path) => client_config(path).await?,
        None => kube::Config::infer().await.context("no cluster is named: --kubeconfig is missing")?,
    };
    let client = kube::Client::try_from(config.clone())?;
    let session = Session { client: client.clone(), namespace: "kube-system".to_owned(), config };
    let functions = Arc::new(Elsewhere::new(session, args.gateway.clone()));
    let mut config = Config { functions, endpoint: None, members: Members::Several(Pace::default()) };
    if args.workflows_port != 0 {
        let tls = args.door.tls()?;
        let host = if tls.is_some() { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
        config.endpoint = Some((SocketAddr::from((host, args.workflows_port)), tls));
    }
    let stop = CancellationToken::new();
    show(args.secure_port, &[Part::Controllers, Part::Leases], client.clone(), &stop);
    alone("workflows", stop.clone(), skiff_workflow::run(client, config, stop)).await
}

/// Runs workflows in the process of the server, with the functions of the gateway in it.
#[allow(clippy::too_many_arguments)] // Each is a part of the server that it stands on.
pub(crate) fn start(
    tasks: &mut Tasks,
    server: &Server,
    args: &UpArgs,
    pki: &Arc<Pki>,
    address: IpAddr,
    node: &str,
    stop: &CancellationToken,
    functions: Shared,
) -> anyhow::Result<()> {
    if args.workflows.no_workflows {
        return Ok(());
    }
    let client = server.client(User::new(USER, &[]));
    let several = args.etcd.used();
    let members = if several { Members::Several(Pace::default()) } else { Members::Alone };
    let here: Arc<dyn Functions> = match args.functions.functions_http_port {
        0 => Arc::new(NoFunctions),
        _ => Arc::new(Gateway(functions.clone())),
    };
    let mut config = Config { functions: here, endpoint: None, members };
    if args.workflows.workflows_port != 0 {
        let names = ["localhost".to_owned(), node.to_owned()];
        let leaf = pki.cluster.server("skiff-workflows", &names, &[address, Ipv4Addr::LOCALHOST.into()])?;
        let tls = Tls { certificate: leaf.cert, key: leaf.key, client_ca: pki.cluster.cert.clone() };
        config.endpoint = Some((SocketAddr::from((Ipv4Addr::UNSPECIFIED, args.workflows.workflows_port)), Some(tls)));
    }
    // Of the servers on one etcd one has the gateway; all have the same authority.
    let own = pki.cluster.client(USER, &[])?;
    let url = format!("https://{}", SocketAddr::new(address, args.listen.port()));
    let file = crate::kubeconfig::render("skiff", &url, &pki.cluster.cert, &own);
    let (elsewhere, inner) = (several && args.functions.functions_http_port != 0, stop.clone());
    spawn(tasks, "workflows", stop, async move {
        if elsewhere {
            let file = kube::config::Kubeconfig::from_yaml(&file)?;
            let way = kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?;
            let session = Session { client: client.clone(), namespace: "kube-system".to_owned(), config: way };
            config.functions = Arc::new(Nearest { here: functions, elsewhere: Elsewhere::new(session, None) });
        }
        skiff_workflow::run(client, config, inner).await
    });
    Ok(())
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
    let group = skiff_workflow::api::GROUP;
    let own = [
        "workflows",
        "workflows/status",
        "workflowversions",
        "workflowruns",
        "workflowruns/status",
        "workflowmapruns",
        "workflowmapruns/status",
        "workflowhistories",
        "workflowlogs",
        "workflowpayloads",
        "workflowactivities",
        "workflowsignals",
    ];
    let people =
        ["workflows", "workflowversions", "workflowruns", "workflowmapruns", "workflowactivities", "workflowsignals"];
    let kept = ["workflowhistories", "workflowpayloads"];
    vec![
        role(
            "skiff:workflows",
            json!({}),
            vec![
                rule("apiextensions.k8s.io", &["customresourcedefinitions"], &all),
                rule(group, &own, &all),
                // Pages and payloads belong to their runs.
                rule(
                    group,
                    &["workflowruns/finalizers", "workflowmapruns/finalizers", "workflows/finalizers"],
                    &["update"],
                ),
                rule("", &["secrets", "services", "configmaps"], &read),
                // What workflows call: what is missing is a warning.
                rule(group, &["functions"], &["get"]),
                // Where items and results of maps are files; whether the workflow's account may is asked each time.
                rule("", &["persistentvolumeclaims", "persistentvolumes"], &["get"]),
                // Tasks and triggers on objects have the rights of the workflow's account, not these.
                rule("", &["serviceaccounts"], &["impersonate"]),
                rule("", &["events"], &["create", "patch", "update"]),
                // Each engine of those that share the runs has one.
                rule("coordination.k8s.io", &["leases"], &all),
                // The gateway of functions of another server, and where it is.
                rule(group, &["functions/invoke"], &["create"]),
                rule("discovery.k8s.io", &["endpointslices"], &["list"]),
                rule("authentication.k8s.io", &["tokenreviews"], &["create"]),
                rule("authorization.k8s.io", &["subjectaccessreviews"], &["create"]),
            ],
        ),
        crate::cluster::binding("skiff:workflows", None, "skiff:workflows", &[crate::cluster::subject("User", USER)]),
        role(
            "skiff:workflows-edit",
            aggregated(&["admin", "edit"]),
            vec![rule(group, &people, &all), rule(group, &kept, &read)],
        ),
        role(
            "skiff:workflows-view",
            aggregated(&["view"]),
            vec![
                rule(
                    group,
                    &["workflows", "workflowversions", "workflowruns", "workflowmapruns", "workflowactivities"],
                    &read,
                ),
                rule(group, &kept, &read),
            ],
        ),
    ]
}
