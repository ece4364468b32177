//! Wiring of workflows in `skiff up`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_apiserver::pki::Pki;
use skiff_controllers::runtime::leader::while_leading;
use skiff_faas::gateway::door::Tls;
use skiff_faas::gateway::invoke::Shared;
use skiff_workflow::Config;
use skiff_workflow::task::functions::{Functions, Gateway, NoFunctions};
use tokio_util::sync::CancellationToken;

use crate::cli::UpArgs;
use crate::components::{Tasks, spawn};

/// The identity of what runs workflows.
pub(crate) const USER: &str = "system:skiff-workflows";
/// The Lease of the process that does, where there may be several.
const LEASE: &str = "skiff-workflows";

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
    let functions: Arc<dyn Functions> = match args.functions.functions_http_port {
        0 => Arc::new(NoFunctions),
        _ => Arc::new(Gateway(functions)),
    };
    let mut config = Config { functions, endpoint: None };
    if args.workflows.workflows_port != 0 {
        let names = ["localhost".to_owned(), node.to_owned()];
        let leaf = pki.cluster.server("skiff-workflows", &names, &[address, Ipv4Addr::LOCALHOST.into()])?;
        let tls = Tls { certificate: leaf.cert, key: leaf.key, client_ca: pki.cluster.cert.clone() };
        config.endpoint = Some((SocketAddr::from((Ipv4Addr::UNSPECIFIED, args.workflows.workflows_port)), Some(tls)));
    }
    let client = server.client(User::new(USER, &[]));
    let (several, stop) = (args.etcd.used(), stop.clone());
    spawn(tasks, "workflows", &stop.clone(), async move {
        if !several {
            return skiff_workflow::run(client, config, stop).await;
        }
        let work = |inner| skiff_workflow::run(client.clone(), config.clone(), inner);
        while_leading(client.clone(), LEASE, &stop, work).await
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
                rule("coordination.k8s.io", &["leases"], &["get", "create", "update", "patch"]),
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
