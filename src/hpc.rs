//! Wiring of jobs on Slurm: in `skiff up`, and `skiff hpc` alone against any cluster.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_apiserver::pki::Pki;
use skiff_controllers::runtime::leader::while_leading;
use skiff_faas::gateway::door::Tls;
use skiff_hpc::Config;
use skiff_metrics::Part;
use tokio_util::sync::CancellationToken;

use crate::cli::UpArgs;
use crate::components::{DoorArgs, Tasks, alone, client, show, spawn};

/// The identity of what brings jobs to Slurm.
pub(crate) const USER: &str = "system:skiff-hpc";
/// The Lease of the process that does, where there may be several.
const LEASE: &str = "skiff-hpc";

/// Settings of `hpc`.
#[derive(Clone, Debug, Args)]
pub(crate) struct HpcArgs {
    /// kubeconfig with an identity that may do what the ClusterRole skiff:hpc says.
    #[arg(long)]
    pub(crate) kubeconfig: PathBuf,
    /// Directory for results of jobs.
    #[arg(long, default_value = "/var/lib/skiff/hpc")]
    pub(crate) data_dir: PathBuf,
    #[command(flatten)]
    pub(crate) door: DoorArgs,
    /// Address that others reach this door at: with it, and a certificate for `skiff-hpc.kube-system.svc`, the door has its
    /// Service in the cluster, by which `kubectl gpu` finds it.
    #[arg(long, requires = "tls_cert")]
    pub(crate) advertise_address: Option<IpAddr>,
    /// Port for metrics and health, with TLS; 0 for none.
    #[arg(long, default_value_t = 10261)]
    pub(crate) secure_port: u16,
    #[command(flatten)]
    pub(crate) flags: HpcFlags,
}

/// How logs and results of jobs are served.
#[derive(Clone, Debug, Args)]
pub(crate) struct HpcFlags {
    /// Port for logs and results of jobs on Slurm, open while there is an HpcCluster; 0 turns it off.
    #[arg(long, default_value_t = 8444)]
    pub(crate) hpc_port: u16,
}

/// Brings jobs to Slurm in the process of the server.
pub(crate) fn start(
    tasks: &mut Tasks,
    server: &Server,
    args: &UpArgs,
    pki: &Arc<Pki>,
    address: IpAddr,
    node: &str,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut config = Config { address: Some(address), ..Config::new(args.data_dir.join("hpc")) };
    if args.hpc.hpc_port != 0 {
        let service = "skiff-hpc.kube-system.svc";
        let names = [service.to_owned(), format!("{service}.{}", args.cluster_domain), "localhost".into(), node.into()];
        let leaf = pki.cluster.server("skiff-hpc", &names, &[address, Ipv4Addr::LOCALHOST.into()])?;
        let tls = Tls { certificate: leaf.cert, key: leaf.key, client_ca: pki.cluster.cert.clone() };
        config.door = Some((SocketAddr::from((Ipv4Addr::UNSPECIFIED, args.hpc.hpc_port)), Some(tls)));
    }
    let client = server.client(User::new(USER, &[]));
    let (several, stop) = (args.etcd.used(), stop.clone());
    spawn(tasks, "controller of jobs on Slurm", &stop.clone(), async move {
        if !several {
            return skiff_hpc::run(client, config, stop).await;
        }
        let work = |inner| skiff_hpc::run(client.clone(), config.clone(), inner);
        while_leading(client.clone(), LEASE, &stop, work).await
    });
    Ok(())
}

/// `skiff hpc`.
pub(crate) async fn run(args: HpcArgs) -> anyhow::Result<()> {
    let mut config = Config { address: args.advertise_address, ..Config::new(args.data_dir.clone()) };
    if args.flags.hpc_port != 0 {
        let tls = args.door.tls()?;
        let host = if tls.is_some() { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
        config.door = Some((SocketAddr::from((host, args.flags.hpc_port)), tls));
    }
    let client = client(&args.kubeconfig).await?;
    let stop = CancellationToken::new();
    show(args.secure_port, &[Part::Controllers, Part::Leases], client.clone(), &stop);
    let work = |inner| skiff_hpc::run(client.clone(), config.clone(), inner);
    alone("jobs on Slurm", stop.clone(), while_leading(client.clone(), LEASE, &stop, work)).await
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
    let group = skiff_hpc::api::GROUP;
    let (clusters, partitions, jobs) = ("hpcclusters", "slurmpartitions", "gpujobs");
    let own = [
        clusters,
        "hpcclusters/status",
        partitions,
        "slurmpartitions/status",
        jobs,
        "gpujobs/status",
        "gpujobs/finalizers",
    ];
    let definitions: Vec<String> =
        skiff_hpc::api::definitions().iter().filter_map(|d| d.metadata.name.clone()).collect();
    vec![
        role(
            "skiff:hpc",
            json!({}),
            vec![
                rule("apiextensions.k8s.io", &["customresourcedefinitions"], &["create", "list", "watch"]),
                json!({"apiGroups": ["apiextensions.k8s.io"], "resources": ["customresourcedefinitions"],
                    "resourceNames": definitions, "verbs": ["get", "update", "patch"]}),
                rule(group, &own, &all),
                // Credentials of clusters, and what jobs name. One by one: nothing is listed.
                rule("", &["secrets", "configmaps"], &["get"]),
                // The pods that read sources in volumes, and put results into them.
                rule("", &["pods"], &["get", "create", "delete"]),
                rule("", &["pods/log"], &["get"]),
                rule("", &["pods/attach"], &["get", "create"]),
                // The Service of the door for logs and results.
                rule("", &["services"], &["create", "patch"]),
                rule("discovery.k8s.io", &["endpointslices"], &["create", "patch"]),
                rule("", &["events"], &["create", "patch", "update"]),
                rule("coordination.k8s.io", &["leases"], &["get", "create", "update", "patch"]),
                rule("authentication.k8s.io", &["tokenreviews"], &["create"]),
                rule("authorization.k8s.io", &["subjectaccessreviews"], &["create"]),
            ],
        ),
        crate::cluster::binding("skiff:hpc", None, "skiff:hpc", &[crate::cluster::subject("User", USER)]),
        role("skiff:hpc-edit", aggregated(&["admin", "edit"]), vec![rule(group, &[jobs], &all)]),
        role(
            "skiff:hpc-view",
            aggregated(&["view"]),
            vec![
                rule(group, &[jobs], &read),
                rule(group, &["gpujobs/log", "gpujobs/files"], &["get"]),
                // Where a job could start; how the cluster is reached has no secrets in it, but is its owner's business.
                rule(group, &[partitions], &read),
            ],
        ),
    ]
}
