//! The pods of this node: one worker each, and the manager that starts and wakes them.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Container as Spec, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use serde_json::Value;
use tokio::sync::{Notify, Semaphore, broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::events::Recorder;
use crate::net::{HostPort, Network};
use crate::node::{Capacity, NodeAgent};
use crate::runtime::{Container, Runtime, label};
use crate::source::{Key, Sources};
use crate::volumes::{self, Volumes};
use status::Verdict;
use worker::{Desired, Worker};

pub mod backoff;
pub mod config;
pub mod ephemeral;
pub mod fields;
pub mod hooks;
pub mod images;
pub mod plan;
pub mod spec;
pub mod status;
pub mod worker;

/// A write to the API that takes longer failed.
const API_TIMEOUT: Duration = Duration::from_secs(10);
/// Containers created at the same time; more only makes each slower.
const CONCURRENT_STARTS: usize = 8;
/// How often leftovers are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Wait before asking a runtime that failed again.
const RUNTIME_RETRY: Duration = Duration::from_secs(1);

/// What all workers share.
pub struct Shared {
    /// The API.
    pub client: kube::Client,
    /// The agent's configuration.
    pub config: Arc<Config>,
    /// The container runtime.
    pub runtime: Arc<dyn Runtime>,
    /// The pod network.
    pub network: Arc<Network>,
    /// Where events go.
    pub recorder: Recorder,
    /// ConfigMaps, Secrets and Services.
    pub sources: Arc<Sources>,
    /// Volumes.
    pub volumes: Volumes,
    /// What the node has for pods.
    pub capacity: Capacity,
    /// Turns for creating containers.
    pub starts: Semaphore,
    admitted: Mutex<HashMap<String, Claim>>,
}

/// What an admitted pod takes of the node.
struct Claim {
    millicpu: i128,
    memory: i128,
    ports: Vec<HostPort>,
}

fn claim(pod: &Pod) -> Claim {
    let ports = worker::host_ports(pod, Ipv4Addr::UNSPECIFIED);
    Claim { millicpu: spec::pod_request(pod, "cpu"), memory: spec::pod_request(pod, "memory"), ports }
}

impl Shared {
    /// Whether the node has room for a pod; if so, the room is taken.
    pub fn admit(&self, pod: &Pod) -> Result<(), Verdict> {
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        check(&admitted, pod, &self.capacity)?;
        admitted.insert(spec::uid(pod).into(), claim(pod));
        Ok(())
    }

    /// Takes room for a pod that runs already, whether or not there is any.
    pub fn note_admitted(&self, pod: &Pod) {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner).insert(spec::uid(pod).into(), claim(pod));
    }

    /// Gives a pod's room back.
    pub fn release(&self, uid: &str) {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Patches a pod's status; `None` when the pod is no more.
    pub async fn patch_status(&self, pod: &Pod, patch: &Value) -> Result<Option<Pod>, kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), spec::namespace(pod));
        let params = PatchParams::default();
        let body = Patch::Strategic(patch);
        let call = api.patch_status(spec::name(pod), &params, &body);
        match tokio::time::timeout(API_TIMEOUT, call).await {
            Ok(Ok(pod)) => Ok(Some(pod)),
            // Conflict: the UID in the patch is not that of the pod of this name.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(timeout()),
        }
    }

    /// Deletes a pod's object for good. Fine when it is gone already.
    pub async fn delete_object(&self, pod: &Pod) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), spec::namespace(pod));
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
            ..Default::default()
        };
        match tokio::time::timeout(API_TIMEOUT, api.delete(spec::name(pod), &params)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(timeout()),
        }
    }
}

fn timeout() -> kube::Error {
    kube::Error::Service("the API server did not answer in time".into())
}

fn check(admitted: &HashMap<String, Claim>, pod: &Pod, capacity: &Capacity) -> Result<(), Verdict> {
    let others = || admitted.iter().filter(|(uid, _)| *uid != spec::uid(pod)).map(|(_, c)| c);
    let wanted = claim(pod);
    let refuse = |resource: &str, requested: i128, used: i128, capacity: i128| Verdict {
        phase: "Failed",
        reason: format!("OutOf{resource}"),
        message: format!(
            "Pod was rejected: Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        ),
    };
    let count = others().count() as i128;
    if count + 1 > capacity.pods.into() {
        return Err(refuse("pods", 1, count, capacity.pods.into()));
    }
    let cpu: i128 = others().map(|c| c.millicpu).sum();
    if wanted.millicpu > 0 && cpu + wanted.millicpu > capacity.millicpu.into() {
        return Err(refuse("cpu", wanted.millicpu, cpu, capacity.millicpu.into()));
    }
    let memory: i128 = others().map(|c| c.memory).sum();
    if wanted.memory > 0 && memory + wanted.memory > i128::from(capacity.memory) * 1000 {
        return Err(refuse("memory", wanted.memory / 1000, memory / 1000, capacity.memory.into()));
    }
    if wanted.ports.iter().any(|port| others().any(|c| c.ports.iter().any(|other| port.collides(other)))) {
        let message =
            "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return Err(Verdict { phase: "Failed", reason: "NodePorts".into(), message: message.into() });
    }
    Ok(())
}

struct Entry {
    desired: watch::Sender<Desired>,
    wake: Arc<Notify>,
    references: HashSet<Key>,
    task: tokio::task::JoinHandle<()>,
}

/// Starts, wakes and ends workers.
pub struct Manager {
    /// What workers share.
    pub shared: Arc<Shared>,
    workers: Mutex<HashMap<String, Entry>>,
}

impl Manager {
    /// A manager without workers.
    pub fn new(
        client: kube::Client,
        config: Arc<Config>,
        runtime: Arc<dyn Runtime>,
        network: Arc<Network>,
        node: Arc<NodeAgent>,
        sources: Arc<Sources>,
    ) -> Arc<Self> {
        let shared = Shared {
            volumes: Volumes::new(client.clone(), &config, sources.clone(), node.recorder()),
            recorder: node.recorder(),
            capacity: node.capacity(),
            starts: Semaphore::new(CONCURRENT_STARTS),
            admitted: Mutex::default(),
            client,
            config,
            runtime,
            network,
            sources,
        };
        Arc::new(Self { shared: Arc::new(shared), workers: Mutex::default() })
    }

    /// Runs until told to stop. Containers go on.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        // Addresses in use first: no worker may hand one out before.
        let work = async {
            self.adopt_addresses().await;
            tokio::join!(self.follow_api(), self.follow_runtime(), self.follow_sources(), self.sweep());
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
        }
        for (_, entry) in self.lock().drain() {
            entry.task.abort();
        }
    }

    /// The pods of this node as the API has them.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.lock().values().map(|e| e.desired.borrow().clone()).filter(|d| !d.gone).map(|d| d.pod).collect()
    }

    /// A pod of this node by name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods().into_iter().find(|p| spec::name(p) == name && spec::namespace(p) == namespace)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn adopt_addresses(&self) {
        loop {
            match self.shared.runtime.list(None).await {
                Ok(all) => {
                    self.shared.network.adopt(&self.shared.config, &all).await;
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot list containers yet");
                    tokio::time::sleep(RUNTIME_RETRY).await;
                }
            }
        }
    }

    async fn follow_api(&self) {
        let api: Api<Pod> = Api::all(self.shared.client.clone());
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", self.shared.config.node_name));
        let mut events = skiff_client::watch(api, config);
        let mut listed = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(pod)) => {
                    listed.insert(pod.uid().unwrap_or_default());
                    self.apply(pod);
                }
                Ok(watcher::Event::InitDone) => {
                    let missing: Vec<_> = self.lock().keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
                    missing.iter().for_each(|uid| self.gone(uid));
                    self.find_orphans().await;
                }
                Ok(watcher::Event::Apply(pod)) => self.apply(pod),
                Ok(watcher::Event::Delete(pod)) => self.gone(spec::uid(&pod)),
                Err(error) => tracing::debug!(%error, "pod watch failed; it resumes by itself"),
            }
        }
    }

    fn apply(&self, pod: Pod) {
        let uid = spec::uid(&pod).to_string();
        let references = volumes::references(&pod).into_iter().collect();
        let mut workers = self.lock();
        if let Some(entry) = workers.get_mut(&uid)
            && !entry.task.is_finished()
        {
            entry.references = references;
            entry.desired.send_replace(Desired { pod: Arc::new(pod), gone: false });
            return;
        }
        self.spawn(&mut workers, uid, Desired { pod: Arc::new(pod), gone: false }, references);
    }

    /// The pod's object is no more: its worker ends what it has, and what only this pod referred to is watched no longer.
    /// The Node authoriser would refuse the watch from now on.
    fn gone(&self, uid: &str) {
        let unused: Vec<Key> = {
            let mut workers = self.lock();
            let Some(entry) = workers.get_mut(uid) else { return };
            entry.desired.send_if_modified(|d| !std::mem::replace(&mut d.gone, true));
            let references = std::mem::take(&mut entry.references);
            references.into_iter().filter(|key| !workers.values().any(|e| e.references.contains(key))).collect()
        };
        self.shared.sources.forget(&unused);
    }

    fn spawn(&self, workers: &mut HashMap<String, Entry>, uid: String, desired: Desired, references: HashSet<Key>) {
        let (sender, receiver) = watch::channel(desired);
        let wake = Arc::new(Notify::new());
        let worker = Worker::new(self.shared.clone(), receiver, wake.clone());
        let task = tokio::spawn(worker.run());
        workers.insert(uid, Entry { desired: sender, wake, references, task });
    }

    /// Containers and directories whose pod nobody knows: each gets a worker that ends it.
    async fn find_orphans(&self) {
        let Ok(all) = self.shared.runtime.list(None).await else { return };
        let mut orphans: HashMap<String, Vec<Container>> = HashMap::new();
        for container in all {
            orphans.entry(container.label(label::POD_UID).to_string()).or_default().push(container);
        }
        for uid in self.shared.volumes.known_pods() {
            orphans.entry(uid).or_default();
        }
        let mut workers = self.lock();
        for (uid, containers) in orphans {
            if !workers.contains_key(&uid) {
                tracing::info!(uid, containers = containers.len(), "removing what is left of a pod that is gone");
                let pod = pod_from_labels(&uid, &containers);
                self.spawn(&mut workers, uid, Desired { pod: Arc::new(pod), gone: true }, HashSet::new());
            }
        }
    }

    async fn follow_runtime(&self) {
        loop {
            if let Ok(mut events) = self.shared.runtime.events().await {
                // Something may have happened between two streams.
                self.wake(|_| true);
                while let Some(event) = events.next().await {
                    if matches!(event.action.as_str(), "die" | "oom" | "destroy" | "start") {
                        self.wake_one(&event.pod_uid);
                    }
                }
                tracing::warn!("the runtime's events ended");
            }
            tokio::time::sleep(RUNTIME_RETRY).await;
        }
    }

    async fn follow_sources(&self) {
        let mut changes = self.shared.sources.changed();
        loop {
            match changes.recv().await {
                Ok(key) => self.wake(|e| e.references.contains(&key)),
                Err(broadcast::error::RecvError::Lagged(_)) => self.wake(|_| true),
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    async fn sweep(&self) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            self.lock().retain(|_, entry| !entry.task.is_finished());
            self.shared.sources.forget_unused();
            self.find_orphans().await;
        }
    }

    fn wake(&self, which: impl Fn(&Entry) -> bool) {
        self.lock().values().filter(|e| which(e)).for_each(|e| e.wake.notify_one());
    }

    fn wake_one(&self, uid: &str) {
        if let Some(entry) = self.lock().get(uid) {
            entry.wake.notify_one();
        }
    }
}

/// As much of a pod as its containers' labels tell: enough to end it.
fn pod_from_labels(uid: &str, containers: &[Container]) -> Pod {
    let first = |name: &str| containers.iter().map(|c| c.label(name)).find(|l| !l.is_empty()).map(String::from);
    let mut names: Vec<&str> =
        containers.iter().map(|c| c.label(label::CONTAINER_NAME)).filter(|n| !n.is_empty()).collect();
    names.sort_unstable();
    names.dedup();
    Pod {
        metadata: ObjectMeta {
            name: first(label::POD_NAME),
            namespace: first(label::POD_NAMESPACE),
            uid: Some(uid.into()),
            ..Default::default()
        },
        spec: Some(PodSpec {
            containers: names.into_iter().map(|n| Spec { name: n.into(), ..Default::default() }).collect(),
            termination_grace_period_seconds: first(label::GRACE).and_then(|g| g.parse().ok()),
            ..Default::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, cpu: &str, port: i32) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": uid, "uid": uid}, "spec": {"containers": [{"name": "a",
            "ports": [{"containerPort": 80, "hostPort": port}], "resources": {"requests": {"cpu": cpu}}}]}}))
        .unwrap()
    }

    #[test]
    fn a_full_node_refuses() {
        let capacity = Capacity { millicpu: 1000, memory: 1 << 30, pods: 2 };
        let mut admitted = HashMap::from([("x".to_string(), claim(&pod("x", "600m", 80)))]);
        for (pod, wanted) in [
            (pod("a", "400m", 81), None),
            (pod("a", "401m", 81), Some("OutOfcpu")),
            (pod("a", "1m", 80), Some("NodePorts")),
            (pod("x", "1", 80), None),
        ] {
            assert_eq!(check(&admitted, &pod, &capacity).err().map(|v| v.reason).as_deref(), wanted);
        }
        admitted.insert("y".into(), claim(&pod("y", "1m", 90)));
        assert_eq!(check(&admitted, &pod("a", "1m", 91), &capacity).unwrap_err().reason, "OutOfpods");
    }

    #[test]
    fn a_port_is_taken_at_an_address_and_for_a_protocol() {
        let capacity = Capacity { millicpu: 1000, memory: 1 << 30, pods: 9 };
        let at = |uid: &str, ip: &str, protocol: &str| {
            let mut pod = pod(uid, "1m", 80);
            let ports = pod.spec.as_mut().and_then(|s| s.containers[0].ports.as_mut()).unwrap();
            (ports[0].host_ip, ports[0].protocol) = (Some(ip.to_owned()), Some(protocol.to_owned()));
            pod
        };
        let admitted = HashMap::from([("x".to_string(), claim(&at("x", "127.0.0.1", "TCP")))]);
        for (ip, protocol, fits) in [
            ("127.0.0.1", "TCP", false),
            ("127.0.0.1", "UDP", true),
            ("192.0.2.1", "TCP", true),
            ("0.0.0.0", "TCP", false),
            ("", "TCP", false),
        ] {
            assert_eq!(check(&admitted, &at("a", ip, protocol), &capacity).is_ok(), fits, "{ip} {protocol}");
        }
    }
}
