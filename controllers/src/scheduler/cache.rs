//! The scheduler's view: nodes with the pods on them, kept up to date by events, plus pods it has placed but not yet
//! seen bound ("assumed").

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use super::resources::{Amounts, allocatable, requests, requests_for_score};
use crate::controllers::pods;
use crate::runtime::informer::key_of;
use crate::runtime::select::Labels;

/// A host port: address, protocol, number.
pub type HostPort = (String, String, i32);

/// A pod on a node.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The pod.
    pub pod: Arc<Pod>,
    /// What it asks for.
    pub asks: Amounts,
    /// What it counts as when nodes are compared.
    pub weighs: Amounts,
}

impl Placed {
    /// Computes a pod's amounts once.
    #[must_use]
    pub fn new(pod: Arc<Pod>) -> Self {
        Self { asks: requests(&pod), weighs: requests_for_score(&pod), pod }
    }
}

/// A node and what is on it.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The node; none while only its pods are known.
    pub node: Option<Arc<Node>>,
    /// What it gives.
    pub gives: Amounts,
    /// Sum of what its pods ask for.
    pub asked: Amounts,
    /// Sum of what its pods count as.
    pub weighs: Amounts,
    /// Its pods by key.
    pub pods: BTreeMap<String, Placed>,
}

impl Host {
    /// Adds a pod.
    pub fn put(&mut self, key: String, placed: Placed) {
        self.take(&key);
        self.asked.add(&placed.asks);
        self.weighs.add(&placed.weighs);
        self.pods.insert(key, placed);
    }

    /// Takes a pod away.
    pub fn take(&mut self, key: &str) -> Option<Placed> {
        let placed = self.pods.remove(key)?;
        self.asked.sub(&placed.asks);
        self.weighs.sub(&placed.weighs);
        Some(placed)
    }

    /// Labels of the node.
    #[must_use]
    pub fn labels(&self) -> &Labels {
        const NONE: &Labels = &None;
        self.node.as_ref().map_or(NONE, |n| &n.metadata.labels)
    }

    /// Host ports in use.
    pub fn ports(&self) -> impl Iterator<Item = HostPort> + '_ {
        self.pods.values().flat_map(|p| host_ports(&p.pod))
    }
}

/// A pod's priority.
#[must_use]
pub fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
}

/// Host ports that a pod wants.
#[must_use]
pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return vec![] };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let host_network = spec.host_network == Some(true);
    ports
        .filter_map(|p| {
            let number = p.host_port.filter(|n| *n > 0).or(host_network.then_some(p.container_port))?;
            let address = p.host_ip.clone().filter(|a| !a.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
            Some((address, p.protocol.clone().unwrap_or_else(|| "TCP".into()), number))
        })
        .collect()
}

/// All nodes.
#[derive(Default)]
pub struct Cache {
    /// Nodes by name.
    pub hosts: BTreeMap<String, Host>,
    placed_on: HashMap<String, String>,
    assumed: BTreeSet<String>,
    /// Pods that refuse company, by key: most clusters have none, and then no placement needs to look.
    pub refusing: BTreeSet<String>,
    /// Pods for which room is being made, by key, with their node.
    nominated: BTreeMap<String, (String, Placed)>,
}

impl Cache {
    /// A node was added or changed.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let host = self.hosts.entry(node.metadata.name.clone().unwrap_or_default()).or_default();
        host.gives = allocatable(&node);
        host.node = Some(node);
    }

    /// A node is gone; its pods stay until they are gone too.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(host) = self.hosts.get_mut(name) {
            host.node = None;
            if host.pods.is_empty() {
                self.hosts.remove(name);
            }
        }
    }

    /// A pod as the server has it; `None` when it is deleted.
    pub fn set_pod(&mut self, key: &str, pod: Option<&Arc<Pod>>) {
        let bound = pod.filter(|p| !pods::node(p).is_empty() && !pods::finished(p));
        match bound {
            Some(p) => {
                let node = pods::node(p).to_owned();
                self.put(key, &node, p);
                self.assumed.remove(key);
            }
            // An unbound pod that was placed here is being bound.
            None if pod.is_some_and(|p| pods::node(p).is_empty()) && self.assumed.contains(key) => {}
            None => self.take(key),
        }
    }

    /// Counts a pod as placed while it is being bound.
    pub fn assume(&mut self, pod: &Arc<Pod>, node: &str) {
        let key = key_of(&**pod);
        self.put(&key, node, pod);
        self.nominated.remove(&key);
        self.assumed.insert(key);
    }

    /// Keeps room on a node for a pod that others were removed for.
    pub fn nominate(&mut self, pod: &Arc<Pod>, node: &str) {
        self.nominated.insert(key_of(&**pod), (node.to_owned(), Placed::new(Arc::clone(pod))));
    }

    /// A pod as the server has it; `None` when it needs no node (any more).
    pub fn set_nominated(&mut self, key: &str, pod: Option<&Arc<Pod>>) {
        let node =
            |p: &Arc<Pod>| p.status.as_ref().and_then(|s| s.nominated_node_name.clone()).filter(|n| !n.is_empty());
        match pod.map(|p| (p, node(p))) {
            None => drop(self.nominated.remove(key)),
            Some((pod, Some(node))) => self.nominate(pod, &node),
            // Our own nomination may not have come back yet; it goes with the pod's placement or end.
            Some((_, None)) => {}
        }
    }

    /// A host as it will be with the pods nominated to it that are at least as important as `pod`; none if there are
    /// no such pods.
    #[must_use]
    pub fn with_nominated(&self, node: &str, pod: &Pod) -> Option<Host> {
        if self.nominated.is_empty() {
            return None;
        }
        let own = key_of(pod);
        let least = priority(pod);
        let mut there =
            self.nominated.iter().filter(|(key, (n, p))| n == node && **key != own && priority(&p.pod) >= least);
        let first = there.next()?;
        let mut host = self.hosts.get(node)?.clone();
        for (key, (_, placed)) in std::iter::once(first).chain(there) {
            host.put(key.clone(), placed.clone());
        }
        Some(host)
    }

    /// Adds a pod to a copy that is used to think about what would be.
    pub(super) fn assume_copy(&mut self, key: &str, pod: &Arc<Pod>, node: &str) {
        self.put(key, node, pod);
    }

    /// The binding failed.
    pub fn unassume(&mut self, key: &str) {
        if self.assumed.remove(key) {
            self.take(key);
        }
    }

    /// Whether a pod is being bound.
    #[must_use]
    pub fn is_assumed(&self, key: &str) -> bool {
        self.assumed.contains(key)
    }

    fn put(&mut self, key: &str, node: &str, pod: &Arc<Pod>) {
        self.take(key);
        self.hosts.entry(node.to_owned()).or_default().put(key.to_owned(), Placed::new(Arc::clone(pod)));
        self.placed_on.insert(key.to_owned(), node.to_owned());
        let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
        if affinity.is_some_and(|a| a.pod_anti_affinity.is_some() || a.pod_affinity.is_some()) {
            self.refusing.insert(key.to_owned());
        }
    }

    fn take(&mut self, key: &str) {
        self.refusing.remove(key);
        let Some(node) = self.placed_on.remove(key) else { return };
        if let Some(host) = self.hosts.get_mut(&node) {
            host.take(key);
            if host.node.is_none() && host.pods.is_empty() {
                self.hosts.remove(&node);
            }
        }
    }

    /// The node and the record of a pod.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<(&Host, &Placed)> {
        let host = self.hosts.get(self.placed_on.get(key)?)?;
        Some((host, host.pods.get(key)?))
    }

    /// Hosts whose node exists.
    pub fn nodes(&self) -> impl Iterator<Item = (&String, &Host)> {
        self.hosts.iter().filter(|(_, h)| h.node.is_some())
    }
}
