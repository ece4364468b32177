//! Wiring: informers, controllers, leader election.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController,
    ResourceQuota, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, Ingress, IngressClass, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttributesClass};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::controllers::{
    accounts, aggregation, autoscaling, bootstrap, certificates, cronjob, daemonset, deployment, disruption, endpoints,
    garbage, job, mirror, namespace, node, outside, podgc, pods, policies, quota, replicas, service_cidrs, statefulset,
    tokens, volumes,
};
use crate::runtime::informer::{Informer, Watched, by_controller};
use crate::runtime::leader::while_leading;
use crate::runtime::worker::{self, Reconcile};

/// Settings of the controllers.
#[derive(Clone, Debug)]
pub struct Config {
    /// PEM that pods verify the server with; published in `kube-root-ca.crt` of every namespace.
    pub root_ca: String,
    /// Key of that CA, PEM. Without it signing requests are approved and cleaned, but not signed.
    pub root_key: Option<String>,
    /// Range that nodes get their pod ranges from, a /24 each.
    pub pod_cidr: ipnet::IpNet,
    /// Whether to work only while holding the Lease `kube-controller-manager`. Not needed when there is one process.
    pub leader_elect: bool,
    /// A node that was silent for this long is not known to live.
    pub node_monitor_grace: Duration,
    /// Which addresses LoadBalancer Services get.
    pub load_balancer: outside::LoadBalancer,
}

impl Config {
    /// The defaults, for one process.
    #[must_use]
    pub fn new(root_ca: String, pod_cidr: ipnet::IpNet) -> Self {
        Self {
            root_ca,
            root_key: None,
            pod_cidr,
            leader_elect: false,
            node_monitor_grace: node::GRACE,
            load_balancer: outside::LoadBalancer::default(),
        }
    }
}

/// Identity of the shared watches.
const MANAGER: &str = "system:kube-controller-manager";
/// Longest wait for the first lists.
const SYNC_LIMIT: Duration = Duration::from_secs(120);

/// Local copies, one per kind, shared by all controllers.
pub(crate) struct Informers {
    pub(crate) namespaces: Informer<Namespace>,
    pub(crate) accounts: Informer<ServiceAccount>,
    pub(crate) root_cas: Informer<ConfigMap>,
    pub(crate) tokens: Informer<Secret>,
    pub(crate) bootstrap_tokens: Informer<Secret>,
    pub(crate) cluster_info: Informer<ConfigMap>,
    pub(crate) signing: Informer<CertificateSigningRequest>,
    pub(crate) roles: Informer<ClusterRole>,
    pub(crate) policies: Informer<ValidatingAdmissionPolicy>,
    pub(crate) nodes: Informer<Node>,
    pub(crate) leases: Informer<Lease>,
    pub(crate) services: Informer<Service>,
    pub(crate) slices: Informer<EndpointSlice>,
    pub(crate) ingresses: Informer<Ingress>,
    pub(crate) ingress_classes: Informer<IngressClass>,
    pub(crate) endpoints: Informer<Endpoints>,
    pub(crate) ranges: Informer<ServiceCIDR>,
    pub(crate) addresses: Informer<IPAddress>,
    pub(crate) pods: Informer<Pod>,
    pub(crate) deployments: Informer<Deployment>,
    pub(crate) sets: Informer<ReplicaSet>,
    pub(crate) replication: Informer<ReplicationController>,
    pub(crate) stateful: Informer<StatefulSet>,
    pub(crate) daemons: Informer<DaemonSet>,
    pub(crate) budgets: Informer<PodDisruptionBudget>,
    pub(crate) quotas: Informer<ResourceQuota>,
    pub(crate) revisions: Informer<ControllerRevision>,
    pub(crate) claims: Informer<PersistentVolumeClaim>,
    pub(crate) jobs: Informer<Job>,
    pub(crate) crons: Informer<CronJob>,
    pub(crate) volumes: Informer<PersistentVolume>,
    pub(crate) classes: Informer<StorageClass>,
    pub(crate) attribute_classes: Informer<VolumeAttributesClass>,
    pub(crate) autoscalers: Informer<HorizontalPodAutoscaler>,
}

impl Informers {
    fn new() -> Self {
        Self {
            namespaces: Informer::default(),
            accounts: Informer::default(),
            root_cas: Informer::default(),
            tokens: Informer::default(),
            bootstrap_tokens: Informer::default(),
            cluster_info: Informer::default(),
            signing: Informer::default(),
            roles: Informer::default(),
            policies: Informer::default(),
            nodes: Informer::default(),
            leases: Informer::default(),
            services: Informer::default(),
            slices: Informer::default(),
            ingresses: Informer::default(),
            ingress_classes: Informer::default(),
            endpoints: Informer::default(),
            ranges: Informer::default(),
            // One for every Service, for its name alone.
            addresses: Informer::trimmed(|a| {
                (a.spec, a.metadata.labels, a.metadata.creation_timestamp) = (IPAddressSpec::default(), None, None);
            }),
            pods: Informer::new(|p| {
                let mut terms = volumes::terms_of(p);
                terms.extend([by_controller(p), node_term(pods::node(p))]);
                terms
            }),
            deployments: Informer::default(),
            sets: Informer::new(|s| vec![by_controller(s)]),
            replication: Informer::default(),
            stateful: Informer::default(),
            daemons: Informer::default(),
            budgets: Informer::default(),
            quotas: Informer::default(),
            revisions: Informer::new(|r| vec![by_controller(r)]),
            claims: Informer::default(),
            jobs: Informer::new(|j| vec![by_controller(j)]),
            crons: Informer::default(),
            volumes: Informer::new(|v| volumes::claim_key(v).map(|k| volumes::claim_term(&k)).into_iter().collect()),
            classes: Informer::default(),
            attribute_classes: Informer::default(),
            autoscalers: Informer::default(),
        }
    }
}

/// Index term of the pods of a node; of unbound ones when empty.
pub(crate) fn node_term(node: &str) -> String {
    format!("node/{node}")
}

/// Runs all controllers until `stop`; with `leader_elect`, while this process leads.
///
/// `client` gives the client of an identity, for example `system:serviceaccount:kube-system:deployment-controller`; a
/// process with one identity answers with the same client always.
///
/// # Errors
/// When the first lists cannot be read in time.
pub async fn run(client: impl Fn(&str) -> Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    if !config.leader_elect {
        return work(&client, &config, &stop).await;
    }
    let work = |inner: CancellationToken| {
        let (client, config) = (&client, &config);
        async move { work(client, config, &inner).await }
    };
    while_leading(client(MANAGER), "kube-controller-manager", &stop, work).await
}

/// A client for a controller's own identity.
fn own(client: &impl Fn(&str) -> Client, name: &str) -> Client {
    client(&format!("system:serviceaccount:kube-system:{name}"))
}

async fn work(client: &impl Fn(&str) -> Client, config: &Config, stop: &CancellationToken) -> anyhow::Result<()> {
    let i = Informers::new();
    let sources = endpoints::Sources { services: i.services.clone(), pods: i.pods.clone(), nodes: i.nodes.clone() };
    let storage = volumes::binder::Sources {
        claims: i.claims.clone(),
        volumes: i.volumes.clone(),
        classes: i.classes.clone(),
        pods: i.pods.clone(),
    };
    let quotas = quota::Controller::new(
        own(client, "resourcequota-controller"),
        quota::Sources {
            quotas: i.quotas.clone(),
            pods: i.pods.clone(),
            services: i.services.clone(),
            claims: i.claims.clone(),
        },
    );
    let q = Arc::clone(&quotas);
    let heard = Box::new(move |kind: &str, namespace: &str| q.hear(kind, namespace));
    let collector = garbage::Controller::new(own(client, "generic-garbage-collector"), heard);
    let mut controllers: Vec<Arc<dyn Reconcile>> = vec![
        Arc::clone(&collector) as Arc<dyn Reconcile>,
        quotas,
        namespace::Controller::new(own(client, "namespace-controller"), i.namespaces.clone()),
        accounts::Accounts::new(own(client, "service-account-controller"), i.namespaces.clone(), i.accounts.clone()),
        accounts::RootCa::new(
            own(client, "root-ca-cert-publisher"),
            i.namespaces.clone(),
            i.root_cas.clone(),
            config.root_ca.clone(),
        ),
        node::Controller::new(
            own(client, "node-controller"),
            i.nodes.clone(),
            i.leases.clone(),
            i.pods.clone(),
            config.pod_cidr,
            config.node_monitor_grace,
        ),
        node::evict::Controller::new(own(client, "node-controller"), i.nodes.clone(), i.pods.clone()),
        endpoints::Slices::new(own(client, "endpointslice-controller"), sources.clone(), i.slices.clone()),
        endpoints::Olds::new(own(client, "endpoint-controller"), sources, i.endpoints.clone()),
        mirror::Mirror::new(
            own(client, "endpointslicemirroring-controller"),
            i.services.clone(),
            i.endpoints.clone(),
            i.slices.clone(),
        ),
        service_cidrs::Controller::new(own(client, "service-cidrs-controller"), i.ranges.clone(), i.addresses.clone()),
        outside::Ingresses::new(
            own(client, "ingress-controller"),
            i.ingresses.clone(),
            i.ingress_classes.clone(),
            i.nodes.clone(),
        ),
        // Like upstream's, with the manager's own rights: no account may read and write everybody's tokens.
        tokens::Tokens::new(client(MANAGER), i.accounts.clone(), i.tokens.clone(), config.root_ca.clone()),
        podgc::Controller::new(own(client, "pod-garbage-collector"), i.nodes.clone(), i.pods.clone()),
        aggregation::Controller::new(own(client, "clusterrole-aggregation-controller"), i.roles.clone()),
        policies::Controller::new(
            own(client, "validatingadmissionpolicy-status-controller"),
            client(MANAGER),
            i.policies.clone(),
        ),
        deployment::Controller::new(
            own(client, "deployment-controller"),
            i.deployments.clone(),
            i.sets.clone(),
            i.pods.clone(),
        ),
        replicas::Controller::new(own(client, "replicaset-controller"), i.sets.clone(), i.pods.clone()),
        replicas::Controller::new(own(client, "replication-controller"), i.replication.clone(), i.pods.clone()),
        statefulset::Controller::new(
            own(client, "statefulset-controller"),
            statefulset::Sources {
                sets: i.stateful.clone(),
                revisions: i.revisions.clone(),
                claims: i.claims.clone(),
                pods: i.pods.clone(),
            },
        ),
        daemonset::Controller::new(
            own(client, "daemon-set-controller"),
            i.daemons.clone(),
            i.revisions.clone(),
            i.nodes.clone(),
            i.pods.clone(),
        ),
        disruption::Controller::new(
            own(client, "disruption-controller"),
            disruption::Sources {
                budgets: i.budgets.clone(),
                pods: i.pods.clone(),
                sets: i.sets.clone(),
                deployments: i.deployments.clone(),
                stateful: i.stateful.clone(),
                replication: i.replication.clone(),
            },
        ),
        autoscaling::Controller::new(own(client, "horizontal-pod-autoscaler"), i.autoscalers.clone(), i.pods.clone()),
        job::Controller::new(own(client, "job-controller"), i.jobs.clone(), i.pods.clone()),
        cronjob::Controller::new(own(client, "cronjob-controller"), i.crons.clone(), i.jobs.clone()),
        job::ttl::Controller::new(own(client, "ttl-after-finished-controller"), i.jobs.clone()),
        certificates::approve::Approver::new(own(client, "certificate-controller"), i.signing.clone(), i.nodes.clone()),
        certificates::clean::Cleaner::new(own(client, "certificate-controller"), i.signing.clone()),
        bootstrap::Cleaner::new(own(client, "token-cleaner"), i.bootstrap_tokens.clone()),
        bootstrap::Signer::new(own(client, "bootstrap-signer"), i.bootstrap_tokens.clone(), i.cluster_info.clone()),
        volumes::binder::Controller::new(own(client, "persistent-volume-binder"), storage.clone()),
        // A provisioner needs the binder's rights and no others.
        volumes::local::Controller::new(own(client, "persistent-volume-binder"), storage, i.nodes.clone()),
        volumes::protect::Claims::new(own(client, "pvc-protection-controller"), i.claims.clone(), i.pods.clone()),
        volumes::protect::Volumes::new(own(client, "pv-protection-controller"), i.volumes.clone()),
        volumes::attributes::Classes::new(
            own(client, "volumeattributesclass-protection-controller"),
            i.attribute_classes.clone(),
            &i.claims,
            &i.volumes,
        ),
        volumes::ephemeral::Controller::new(
            own(client, "ephemeral-volume-controller"),
            i.pods.clone(),
            i.claims.clone(),
        ),
    ];
    if config.load_balancer != outside::LoadBalancer::Off {
        let (services, slices, nodes) = (i.services.clone(), i.slices.clone(), i.nodes.clone());
        let (client, mode) = (own(client, "service-controller"), config.load_balancer.clone());
        controllers.push(outside::Services::new(client, services, slices, nodes, mode));
    }
    if let Some(key) = &config.root_key {
        let authority = certificates::sign::Authority::new(&config.root_ca, key).context("the cluster's CA")?;
        let client = own(client, "certificate-controller");
        controllers.push(certificates::sign::Signer::new(client, i.signing.clone(), authority));
    }
    let shared = client(MANAGER);
    let mut followed: Vec<(&'static str, Synced)> = Vec::new();
    follow(&mut followed, "namespaces", &i.namespaces, &shared, stop);
    follow(&mut followed, "serviceaccounts", &i.accounts, &shared, stop);
    let only_root_ca = watcher::Config::default().fields(&format!("metadata.name={}", accounts::ROOT_CA));
    follow_some(&mut followed, "configmaps", &i.root_cas, &shared, only_root_ca, stop);
    let only_tokens = watcher::Config::default().fields(&format!("type={}", tokens::TYPE));
    follow_some(&mut followed, "secrets", &i.tokens, &shared, only_tokens, stop);
    let only_bootstrap = watcher::Config::default().fields(&format!("type={}", bootstrap::TYPE));
    let in_system = Api::namespaced(shared.clone(), "kube-system");
    follow_api(&mut followed, "secrets", &i.bootstrap_tokens, in_system, only_bootstrap, stop);
    let only_info = watcher::Config::default().fields(&format!("metadata.name={}", bootstrap::CLUSTER_INFO));
    let in_public = Api::namespaced(shared.clone(), "kube-public");
    follow_api(&mut followed, "configmaps", &i.cluster_info, in_public, only_info, stop);
    follow(&mut followed, "certificatesigningrequests", &i.signing, &shared, stop);
    follow(&mut followed, "clusterroles", &i.roles, &shared, stop);
    follow(&mut followed, "validatingadmissionpolicies", &i.policies, &shared, stop);
    follow(&mut followed, "services", &i.services, &shared, stop);
    follow(&mut followed, "endpointslices", &i.slices, &shared, stop);
    follow(&mut followed, "ingresses", &i.ingresses, &shared, stop);
    follow(&mut followed, "ingressclasses", &i.ingress_classes, &shared, stop);
    follow(&mut followed, "endpoints", &i.endpoints, &shared, stop);
    follow(&mut followed, "servicecidrs", &i.ranges, &shared, stop);
    let only_managed = watcher::Config::default().labels(service_cidrs::MANAGED);
    follow_some(&mut followed, "ipaddresses", &i.addresses, &shared, only_managed, stop);
    follow(&mut followed, "nodes", &i.nodes, &shared, stop);
    let leases = Api::namespaced(shared.clone(), "kube-node-lease");
    follow_api(&mut followed, "leases", &i.leases, leases, watcher::Config::default(), stop);
    follow(&mut followed, "pods", &i.pods, &shared, stop);
    follow(&mut followed, "deployments", &i.deployments, &shared, stop);
    follow(&mut followed, "replicasets", &i.sets, &shared, stop);
    follow(&mut followed, "replicationcontrollers", &i.replication, &shared, stop);
    follow(&mut followed, "statefulsets", &i.stateful, &shared, stop);
    follow(&mut followed, "daemonsets", &i.daemons, &shared, stop);
    follow(&mut followed, "poddisruptionbudgets", &i.budgets, &shared, stop);
    follow(&mut followed, "resourcequotas", &i.quotas, &shared, stop);
    follow(&mut followed, "controllerrevisions", &i.revisions, &shared, stop);
    follow(&mut followed, "persistentvolumeclaims", &i.claims, &shared, stop);
    follow(&mut followed, "jobs", &i.jobs, &shared, stop);
    follow(&mut followed, "cronjobs", &i.crons, &shared, stop);
    follow(&mut followed, "persistentvolumes", &i.volumes, &shared, stop);
    follow(&mut followed, "storageclasses", &i.classes, &shared, stop);
    follow(&mut followed, "volumeattributesclasses", &i.attribute_classes, &shared, stop);
    follow(&mut followed, "horizontalpodautoscalers", &i.autoscalers, &shared, stop);
    for (name, synced) in followed {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            ok = synced => if !ok { bail!("cannot list {name} within {} s", SYNC_LIMIT.as_secs()) },
        }
    }
    let mut tasks = JoinSet::new();
    tasks.spawn(collector.follow(shared.clone(), stop.clone()));
    for c in controllers {
        worker::spawn(&mut tasks, c, stop);
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(e) = ended {
            tracing::error!(error = &e as &dyn std::error::Error, "a worker ended");
        }
    }
    Ok(())
}

type Synced = futures::future::BoxFuture<'static, bool>;

fn follow<K: Watched>(
    followed: &mut Vec<(&'static str, Synced)>,
    name: &'static str,
    informer: &Informer<K>,
    client: &Client,
    stop: &CancellationToken,
) {
    follow_some(followed, name, informer, client, watcher::Config::default(), stop);
}

fn follow_some<K: Watched>(
    followed: &mut Vec<(&'static str, Synced)>,
    name: &'static str,
    informer: &Informer<K>,
    client: &Client,
    config: watcher::Config,
    stop: &CancellationToken,
) {
    follow_api(followed, name, informer, Api::all(client.clone()), config, stop);
}

fn follow_api<K: Watched>(
    followed: &mut Vec<(&'static str, Synced)>,
    name: &'static str,
    informer: &Informer<K>,
    api: Api<K>,
    config: watcher::Config,
    stop: &CancellationToken,
) {
    informer.start(api, config, stop.clone());
    let informer = informer.clone();
    followed.push((name, Box::pin(async move { informer.wait_synced(SYNC_LIMIT).await })));
}
