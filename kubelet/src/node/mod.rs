//! The node's own object: registration, status, lease.
//!
//! The Lease is renewed every 10 s and lasts 40 s; the status is written when it changes, and every 5 minutes
//! otherwise. Conditions keep their transition times over a restart because they are compared with what the API has.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus,
    NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::events::{Kind, Recorder};
use crate::net::Network;
use crate::runtime::{Info, Runtime};

pub mod pressure;

use pressure::{FileSystem, Pressure, Readings};

/// The API version this agent speaks.
const KUBELET_VERSION: &str = "v1.37.0+skiff";
const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: i32 = 40;
const RENEW_EVERY: Duration = Duration::from_secs(10);
const STATUS_EVERY: Duration = Duration::from_secs(10);
const REPORT_EVERY: Duration = Duration::from_secs(300);
const API_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(7);
/// First wait for the range of a new Node: the controller gives it within milliseconds.
const RANGE_MIN: Duration = Duration::from_millis(10);
/// Images named in the status; the rest of a long list serves nobody.
const MAX_IMAGES: usize = 50;

/// What a node has for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of a core.
    pub millicpu: u64,
    /// Bytes.
    pub memory: u64,
    /// Pods.
    pub pods: u32,
}

/// Looks after the Node object.
pub struct NodeAgent {
    client: kube::Client,
    config: Arc<Config>,
    runtime: Arc<dyn Runtime>,
    recorder: Recorder,
    network: OnceLock<Arc<Network>>,
    /// Wakes the status loop before its time.
    news: Notify,
    /// The range as the Node has it, and the one that pods here have.
    pod_cidr: watch::Sender<Option<Ipv4Net>>,
    used_cidr: OnceLock<Ipv4Net>,
    registered: watch::Sender<bool>,
    last: Mutex<Option<(NodeStatus, Instant)>>,
}

impl NodeAgent {
    /// Starts registering in the background.
    pub fn start(client: kube::Client, config: Arc<Config>, runtime: Arc<dyn Runtime>) -> Arc<Self> {
        let agent = Arc::new(Self {
            recorder: Recorder::start(client.clone(), config.node_name.clone()),
            client,
            runtime,
            network: OnceLock::new(),
            news: Notify::new(),
            pod_cidr: watch::channel(config.pod_cidr).0,
            used_cidr: OnceLock::new(),
            registered: watch::channel(false).0,
            last: Mutex::default(),
            config,
        });
        let registering = agent.clone();
        tokio::spawn(async move { registering.register().await });
        agent
    }

    /// Returns once the Node object exists.
    pub async fn registered(&self) {
        // The sender is part of self, so this ends only with the wish.
        let _ = self.registered.subscribe().wait_for(|done| *done).await;
    }

    /// The range of pod addresses: the Node's own, else the configured one. Waits until there is one.
    pub async fn pod_cidr(&self) -> Ipv4Net {
        let mut ranges = self.pod_cidr.subscribe();
        loop {
            let range = *ranges.borrow_and_update();
            if let Some(range) = range {
                return *self.used_cidr.get_or_init(|| range);
            }
            // The sender is part of self, so this only waits.
            let _ = ranges.changed().await;
        }
    }

    /// Returns once the Node has another range than the pods here: it was deleted, and its range given away.
    pub async fn moved(&self) -> Ipv4Net {
        let mut ranges = self.pod_cidr.subscribe();
        loop {
            let range = *ranges.borrow_and_update();
            if let (Some(range), Some(used)) = (range, self.used_cidr.get())
                && range != *used
            {
                return range;
            }
            let _ = ranges.changed().await;
        }
    }

    fn note_range(&self, node: &Node) -> bool {
        let range = node.spec.as_ref().and_then(|s| s.pod_cidr.as_deref()).and_then(|c| c.parse().ok());
        if let Some(range) = range {
            self.pod_cidr.send_if_modified(|old| old.replace(range) != Some(range));
        }
        range.is_some() || self.config.pod_cidr.is_some()
    }

    /// Looks until the Node has a range.
    async fn await_range(&self) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let mut delay = RANGE_MIN;
        loop {
            let found = tokio::time::timeout(API_TIMEOUT, nodes.get(&self.config.node_name)).await;
            if let Ok(Ok(node)) = found
                && self.note_range(&node)
            {
                return;
            }
            tokio::time::sleep(delay).await;
            if delay == RETRY_MAX {
                tracing::warn!("the node has no pod range yet: do controllers run?");
            }
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    /// Takes the pod network, which is asked from now on whether pods can get one.
    pub fn network(&self, network: Arc<Network>) {
        // There is one network in an agent's life.
        let _ = self.network.set(network);
        self.news.notify_one();
    }

    /// Where events go.
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// What pods may use.
    pub fn capacity(&self) -> Capacity {
        let (cpus, memory) = self.machine();
        Capacity {
            millicpu: (cpus * 1000).saturating_sub(self.config.reserved_millicpu),
            memory: memory.saturating_sub(self.config.reserved_memory),
            pods: self.config.max_pods,
        }
    }

    fn machine(&self) -> (u64, u64) {
        self.config.fake.as_ref().map_or_else(machine, |m| (m.cpus, m.memory))
    }

    /// Renews the lease and writes the status until told to stop.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let work = async { tokio::join!(self.keep_lease(), self.keep_status()) };
        tokio::select! {
            () = shutdown.cancelled() => {}
            _ = work => {}
        }
    }

    async fn register(&self) {
        let mut delay = RETRY_MIN;
        loop {
            match tokio::time::timeout(API_TIMEOUT, self.try_register()).await {
                Ok(Ok(node)) => {
                    self.registered.send_replace(true);
                    self.recorder.node(&self.config.node_name, Kind::Normal, "Starting", "Starting kubelet.");
                    if !self.note_range(&node) {
                        self.await_range().await;
                    }
                    return;
                }
                Ok(Err(error)) => tracing::warn!(%error, "cannot register the node yet"),
                Err(_) => tracing::warn!("cannot register the node yet: the API server does not answer"),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    async fn try_register(&self) -> Result<Node, kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let labels = self.labels();
        let annotations = self.annotations();
        match nodes.get_opt(&self.config.node_name).await? {
            Some(existing) => {
                let has = |have: &Option<BTreeMap<String, String>>, wanted: &BTreeMap<String, String>| {
                    wanted.iter().all(|(k, v)| have.as_ref().and_then(|h| h.get(k)) == Some(v))
                };
                if has(&existing.metadata.labels, &labels) && has(&existing.metadata.annotations, &annotations) {
                    return Ok(existing);
                }
                let patch = serde_json::json!({"metadata": {"labels": labels, "annotations": annotations}});
                nodes.patch(&self.config.node_name, &PatchParams::default(), &Patch::Merge(&patch)).await
            }
            None => {
                let range = self.wished_range(&nodes).await?;
                let node = Node {
                    metadata: ObjectMeta {
                        name: Some(self.config.node_name.clone()),
                        labels: Some(labels),
                        annotations: Some(annotations),
                        ..Default::default()
                    },
                    spec: Some(NodeSpec {
                        taints: Some(self.config.taints.clone()).filter(|t| !t.is_empty()),
                        pod_cidr: range.map(|r| r.to_string()),
                        pod_cidrs: range.map(|r| vec![r.to_string()]),
                        ..Default::default()
                    }),
                    status: Some(self.status(&NodeStatus::default()).await),
                };
                nodes.create(&PostParams::default(), &node).await
            }
        }
    }

    /// What others must know of this agent: where volumes of the built-in provisioner lie.
    fn annotations(&self) -> BTreeMap<String, String> {
        let directory = self.config.data_dir.join("volumes").display().to_string();
        [
            ("volumes.kubernetes.io/controller-managed-attach-detach".into(), "true".into()),
            ("skiff.dev/local-path".into(), directory),
        ]
        .into()
    }

    /// The range that pods here have addresses of, for a Node that comes back; unless it is another's by now.
    async fn wished_range(&self, nodes: &Api<Node>) -> Result<Option<Ipv4Net>, kube::Error> {
        let used = match self.used_cidr.get() {
            Some(range) => Some(*range),
            None if self.config.fake.is_some() => None,
            // An earlier run of the agent made the bridge.
            None => crate::net::range_of(&self.config.bridge).await,
        };
        let cluster = self.config.cluster_cidr;
        let Some(range) = used.filter(|r| cluster.is_none_or(|c| c.contains(r))) else { return Ok(None) };
        let others = nodes.list(&ListParams::default()).await?;
        let taken = others.iter().filter_map(|n| n.spec.as_ref()?.pod_cidr.as_ref()?.parse::<Ipv4Net>().ok());
        let free = taken.into_iter().all(|t| !t.contains(&range) && !range.contains(&t));
        Ok(Some(range).filter(|_| free))
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.config.labels.clone();
        let arch = arch();
        for (key, value) in [
            ("kubernetes.io/hostname", self.config.node_name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", arch),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", arch),
        ] {
            labels.insert(key.into(), value.into());
        }
        labels
    }

    async fn keep_lease(&self) {
        let mut delay = RETRY_MIN;
        loop {
            match tokio::time::timeout(API_TIMEOUT, self.renew()).await {
                Ok(Ok(())) => {
                    delay = RETRY_MIN;
                    tokio::time::sleep(RENEW_EVERY).await;
                }
                failed => {
                    if let Ok(Err(error)) = failed {
                        tracing::warn!(%error, "lease not renewed");
                    }
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(RETRY_MAX);
                }
            }
        }
    }

    async fn renew(&self) -> Result<(), kube::Error> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), LEASE_NAMESPACE);
        let name = &self.config.node_name;
        let now = MicroTime(Timestamp::now());
        let patch = serde_json::json!({"spec": {
            "holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now,
        }});
        match leases.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let nodes: Api<Node> = Api::all(self.client.clone());
                let owner = nodes.get_opt(name).await?.and_then(|n| n.metadata.uid).map(|uid| OwnerReference {
                    api_version: "v1".into(),
                    kind: "Node".into(),
                    name: name.clone(),
                    uid,
                    ..Default::default()
                });
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        namespace: Some(LEASE_NAMESPACE.into()),
                        owner_references: owner.map(|o| vec![o]),
                        ..Default::default()
                    },
                    spec: Some(LeaseSpec {
                        holder_identity: Some(name.clone()),
                        lease_duration_seconds: Some(LEASE_SECONDS),
                        renew_time: Some(now),
                        ..Default::default()
                    }),
                };
                leases.create(&PostParams::default(), &lease).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    async fn keep_status(&self) {
        // An agent that starts again finds its node ready, as its pods are: it says so, or what is wrong, once it knows,
        // not that its network is being set up.
        let _ = tokio::time::timeout(STATUS_EVERY, self.news.notified()).await;
        loop {
            match tokio::time::timeout(API_TIMEOUT, self.report()).await {
                Ok(Ok(())) => {}
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                    // Someone deleted the node while its agent lives: it registers again.
                    if let Err(error) = self.try_register().await {
                        tracing::warn!(%error, "cannot register the node again");
                    }
                }
                Ok(Err(error)) => tracing::warn!(%error, "node status not written"),
                Err(_) => tracing::warn!("node status not written: the API server does not answer"),
            }
            // Either way it is time for the next.
            let _ = tokio::time::timeout(STATUS_EVERY, self.news.notified()).await;
        }
    }

    async fn report(&self) -> Result<(), kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let name = &self.config.node_name;
        let node = nodes.get(name).await?;
        self.note_range(&node);
        let before = node.status.unwrap_or_default();
        let fresh = self.status(&before).await;
        let due = {
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            last.as_ref().is_none_or(|(sent, at)| at.elapsed() >= REPORT_EVERY || !same(sent, &fresh))
                || !same(&before, &fresh)
        };
        if due {
            let patch = serde_json::json!({"status": fresh});
            nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await?;
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((fresh, Instant::now()));
        }
        Ok(())
    }

    async fn status(&self, before: &NodeStatus) -> NodeStatus {
        let (cpus, memory) = self.machine();
        let capacity = self.capacity();
        let info = tokio::time::timeout(Duration::from_secs(5), self.runtime.info()).await;
        let info = info.unwrap_or_else(|_| Err(crate::runtime::Error::Timeout(Duration::from_secs(5))));
        let (info, problem) = match info {
            Ok(info) => (info, None),
            Err(error) => (Info::default(), Some(error.to_string())),
        };
        let root = if info.root_dir.is_empty() { "/var/lib/docker".to_string() } else { info.root_dir.clone() };
        let images_on = FileSystem::of(Path::new(&root));
        let disk_total = images_on.bytes.total;
        // A pretended node does not suffer with the machine it is on.
        let short = match self.config.fake {
            Some(_) => Pressure::default(),
            None => self.config.eviction_hard.crossed(&Readings::take(&self.config.data_dir, images_on)),
        };
        let resources = |cpu: String, memory: u64, disk: u64| {
            let pairs = [
                ("cpu", cpu),
                ("memory", format!("{}Ki", memory / 1024)),
                ("pods", self.config.max_pods.to_string()),
                ("ephemeral-storage", format!("{}Ki", disk / 1024)),
                ("hugepages-1Gi", "0".into()),
                ("hugepages-2Mi", "0".into()),
            ];
            pairs.into_iter().map(|(k, v)| (k.to_string(), Quantity(v))).collect::<BTreeMap<_, _>>()
        };
        let cpu_text = if capacity.millicpu.is_multiple_of(1000) {
            (capacity.millicpu / 1000).to_string()
        } else {
            format!("{}m", capacity.millicpu)
        };
        let mut images = self.runtime.images().await.unwrap_or_default();
        images.sort_by_key(|i| std::cmp::Reverse((i.size, i.id.clone())));
        let images = images.into_iter().take(MAX_IMAGES).map(|i| ContainerImage {
            names: Some(i.digests.into_iter().chain(i.tags).filter(|n| !n.contains("<none>")).collect::<Vec<_>>()),
            size_bytes: Some(i.size),
        });
        let node_ip = self.config.node_ip.to_string();
        let address = |kind: &str, address: &str| NodeAddress { type_: kind.into(), address: address.into() };
        NodeStatus {
            capacity: Some(resources(cpus.to_string(), memory, disk_total)),
            allocatable: Some(resources(cpu_text, capacity.memory, disk_total / 10 * 9)),
            addresses: Some(vec![address("InternalIP", &node_ip), address("Hostname", &self.config.node_name)]),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(self.config.listen.port()) }),
            }),
            node_info: Some(system_info(&info, before)),
            images: Some(images.filter(|i| i.names.as_ref().is_some_and(|n| !n.is_empty())).collect()),
            conditions: Some(self.conditions(before, problem, short)),
            ..Default::default()
        }
    }

    fn conditions(&self, before: &NodeStatus, problem: Option<String>, short: Pressure) -> Vec<NodeCondition> {
        let pressure = |kind: &'static str, what: &str, low: bool| {
            let (reason, message) = if low {
                (format!("KubeletHas{}", pressure_word(kind, true)), format!("kubelet has {what}"))
            } else {
                (format!("KubeletHas{}", pressure_word(kind, false)), format!("kubelet has {what}"))
            };
            (kind, low, reason, message)
        };
        let word = |low: bool, good: &str, bad: &str| if low { bad.to_string() } else { good.to_string() };
        let network = self.network.get().map_or(Err("the pod network is being set up".to_owned()), |n| n.ready());
        let ready = problem.is_none() && network.is_ok();
        let ready_message = match (&problem, network) {
            (Some(problem), _) => problem.clone(),
            (None, Err(why)) => format!(
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{why}"
            ),
            (None, Ok(())) => "kubelet is posting ready status".into(),
        };
        let fresh = [
            pressure(
                "MemoryPressure",
                &word(short.memory, "sufficient memory available", "insufficient memory available"),
                short.memory,
            ),
            pressure("DiskPressure", &word(short.disk, "no disk pressure", "disk pressure"), short.disk),
            pressure(
                "PIDPressure",
                &word(short.pids, "sufficient PID available", "insufficient PID available"),
                short.pids,
            ),
            ("Ready", ready, word(!ready, "KubeletReady", "KubeletNotReady"), ready_message),
        ];
        let now = Time(Timestamp::now());
        fresh
            .into_iter()
            .map(|(kind, holds, reason, message)| {
                let status = if holds { "True" } else { "False" };
                let same = before.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == status);
                NodeCondition {
                    type_: kind.into(),
                    status: status.into(),
                    reason: Some(reason),
                    message: Some(message),
                    last_heartbeat_time: Some(now.clone()),
                    last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or(Some(now.clone())),
                }
            })
            .collect()
    }
}

fn pressure_word(kind: &str, low: bool) -> &'static str {
    match (kind, low) {
        ("MemoryPressure", false) => "SufficientMemory",
        ("MemoryPressure", true) => "InsufficientMemory",
        ("DiskPressure", false) => "NoDiskPressure",
        ("DiskPressure", true) => "DiskPressure",
        (_, false) => "SufficientPID",
        (_, true) => "InsufficientPID",
    }
}

/// Tells the API that the engine is down, for a node that exists already. Best effort.
pub async fn report_runtime_down(client: &kube::Client, config: &Config, problem: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    let now = Time(Timestamp::now());
    let patch = serde_json::json!({"status": {"conditions": [{
        "type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": problem, "lastHeartbeatTime": now,
    }]}});
    let params = PatchParams::default();
    let body = Patch::Strategic(&patch);
    let call = nodes.patch_status(&config.node_name, &params, &body);
    if let Ok(Err(error)) = tokio::time::timeout(API_TIMEOUT, call).await {
        tracing::debug!(%error, "node status not written");
    }
}

/// Whether two statuses differ in nothing but heartbeats.
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let strip = |status: &NodeStatus| {
        let mut status = status.clone();
        status.conditions.iter_mut().flatten().for_each(|c| c.last_heartbeat_time = None);
        let ours = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|c| ours.contains(&c.type_.as_str()));
        }
        (status.conditions, status.capacity, status.allocatable, status.addresses, status.node_info, status.images)
    };
    strip(a) == strip(b)
}

fn system_info(info: &Info, before: &NodeStatus) -> NodeSystemInfo {
    let uname = nix::sys::utsname::uname().ok();
    let text = |path: &str| std::fs::read_to_string(path).map(|t| t.trim().to_string()).unwrap_or_default();
    let old = before.node_info.clone().unwrap_or_default();
    // While the engine is away its version stays what it was.
    let version = match info.version.as_str() {
        "" => old.container_runtime_version,
        version if version.contains("://") => version.to_owned(),
        version => format!("docker://{version}"),
    };
    NodeSystemInfo {
        architecture: arch().into(),
        boot_id: text("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: version,
        kernel_version: uname.map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default(),
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.into(),
        machine_id: text("/etc/machine-id"),
        operating_system: "linux".into(),
        os_image: os_name(),
        system_uuid: text("/sys/class/dmi/id/product_uuid"),
        ..Default::default()
    }
}

fn os_name() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let line = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    line.map_or_else(|| "Linux".into(), |n| n.trim_matches('"').to_string())
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Cores and bytes of memory.
fn machine() -> (u64, u64) {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    (cpus, meminfo("MemTotal").unwrap_or(0))
}

fn meminfo(name: &str) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = table.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}
