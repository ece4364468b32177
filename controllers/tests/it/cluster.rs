//! A server in this process with all controllers and the scheduler, and a node that says every pod runs.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Patience with anything that must come true.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) server: Server,
    _stop: DropGuard,
    _dir: tempfile::TempDir,
}

fn identity(name: &str) -> User {
    match name.strip_prefix("system:serviceaccount:").and_then(|r| r.split_once(':')) {
        Some((ns, _)) => User::new(name, &["system:serviceaccounts", &format!("system:serviceaccounts:{ns}")]),
        None => User::new(name, &[]),
    }
}

/// A CA: certificate and key, PEM.
fn authority() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// With settings of the controllers that a test wants.
    pub(crate) async fn start_with(settings: impl FnOnce(&mut skiff_controllers::Config)) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(std::env::var("RUST_LOG").unwrap_or_default())
            .with_test_writer()
            .try_init();
        let dir = tempfile::tempdir().unwrap();
        let store = skiff_storage::embedded::Embedded::open(dir.path(), Default::default()).unwrap();
        let server = Server::builder(Arc::new(store)).extras().start().await.unwrap();
        let client = server.client(User::new("admin", &["system:masters"]));
        let stop = CancellationToken::new();
        let (ca, key) = authority();
        let range = "10.244.0.0/16".parse().unwrap();
        let mut config = skiff_controllers::Config { root_key: Some(key), ..skiff_controllers::Config::new(ca, range) };
        settings(&mut config);
        let s = server.clone();
        tokio::spawn(skiff_controllers::run(move |name| s.client(identity(name)), config, stop.clone()));
        let scheduler = server.client(identity("system:kube-scheduler"));
        tokio::spawn(skiff_controllers::scheduler::run(scheduler, false, stop.clone()));
        Self { client, server, _stop: stop.drop_guard(), _dir: dir }
    }

    /// Gives a subject the rights of a cluster role.
    pub(crate) async fn bind(&self, role: &str, subject: Value) {
        let api: Api<k8s_openapi::api::rbac::v1::ClusterRoleBinding> = self.all();
        let object = json!({"metadata": {"generateName": "it-"}, "subjects": [subject],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}});
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }

    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) fn all<K: kube::Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// A client with the rights of a node's agent.
    pub(crate) fn agent(&self, node: &str) -> Client {
        self.server.client(User::new(format!("system:node:{node}"), &["system:nodes"]))
    }

    /// A node that is ready, with room.
    pub(crate) async fn node(&self, name: &str) {
        let nodes: Api<Node> = self.all();
        let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name},
            "annotations": {"skiff.dev/local-path": "/nowhere/volumes"}}});
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        let status = json!({"status": {
            "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                "lastHeartbeatTime": skiff_controllers::runtime::now(), "lastTransitionTime": skiff_controllers::runtime::now()}],
        }});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    /// Plays the node agents: what is bound runs, or ends as its annotations ask for; what is deleted goes.
    pub(crate) fn run_pods(&self) {
        let api: Api<Pod> = self.all();
        let client = self.client.clone();
        tokio::spawn(async move {
            let mut events =
                std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff().applied_objects());
            let mut next = 1;
            while let Some(event) = futures::StreamExt::next(&mut events).await {
                let Ok(pod) = event else { continue };
                let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
                let bound = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
                let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
                if pod.metadata.deletion_timestamp.is_some() {
                    let params = kube::api::DeleteParams::default().grace_period(0);
                    let mine = kube::api::Preconditions { uid: pod.uid(), resource_version: None };
                    let _ = api
                        .delete(&pod.name_any(), &kube::api::DeleteParams { preconditions: Some(mine), ..params })
                        .await;
                } else if bound && phase == "Pending" {
                    next += 1;
                    let ip = format!("10.244.{}.{}", next / 250, next % 250 + 1);
                    let status = json!({"status": agent_status(&pod, &ip)});
                    let _ = api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(status)).await;
                }
            }
        });
    }

    pub(crate) async fn create<K>(&self, namespace: &str, object: Value) -> K
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + serde::Serialize
            + serde::de::DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.api::<K>(namespace).create(&PostParams::default(), &object).await.unwrap()
    }
}

/// Annotation of a pod that ends: with which code.
pub(crate) const EXIT: &str = "test/exit";
/// Annotation with the completion index whose pods fail; others of the Job succeed.
pub(crate) const FAILS: &str = "test/fails";

fn agent_status(pod: &Pod, ip: &str) -> Value {
    let now = skiff_controllers::runtime::now();
    let code = match (pod.annotations().get(EXIT), pod.annotations().get(FAILS)) {
        (Some(code), _) => Some(code.parse().unwrap()),
        (None, Some(index)) => {
            Some(i32::from(pod.annotations().get("batch.kubernetes.io/job-completion-index") == Some(index)))
        }
        (None, None) => None,
    };
    let running = code.is_none();
    let phase = match code {
        None => "Running",
        Some(0) => "Succeeded",
        Some(_) => "Failed",
    };
    let ready = if running { "True" } else { "False" };
    let mut status = json!({"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [
        {"type": "Ready", "status": ready, "lastTransitionTime": now},
        {"type": "ContainersReady", "status": ready, "lastTransitionTime": now},
    ]});
    if let Some(code) = code {
        status["containerStatuses"] = json!([{"name": "c", "image": "a", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": code, "finishedAt": now}}}]);
    }
    status
}

impl Cluster {
    /// Whether an event about an object was recorded, by reason and how its message begins.
    pub(crate) async fn told(&self, namespace: &str, name: &str, reason: &str, text: &str) -> Option<()> {
        let events = self.api::<k8s_openapi::api::core::v1::Event>(namespace);
        let list = events.list(&kube::api::ListParams::default()).await.unwrap();
        list.items
            .iter()
            .any(|e| {
                e.involved_object.name.as_deref() == Some(name)
                    && e.reason.as_deref() == Some(reason)
                    && e.message.as_deref().unwrap_or_default().starts_with(text)
            })
            .then_some(())
    }
}

/// Waits until `check` answers something, looking whenever a little time has passed.
pub(crate) async fn eventually<T, F>(what: &str, mut check: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(v) = check().await {
            return v;
        }
        assert!(tokio::time::Instant::now() < until, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
