//! The scheduler's view: nodes with the pods on them, kept up to date by events, plus pods it has placed but not yet
//! seen bound ("assumed").

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use indexmap::IndexMap;
use k8s_openapi::api::core::v1::{ContainerImage, Node, Pod};

use super::resources::{Amounts, allocatable, requests, requests_for_score};
use crate::controllers::pods;
use crate::runtime::informer::{controller_of, key_of};
use crate::runtime::select::Labels;

/// Label of a node's zone.
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";

/// A name in short, for the counts that are asked for every node and pod. Two names with one mark would be counted
/// together, which moves a score a little; it does not happen.
pub type Mark = u64;

/// The mark of a name.
#[must_use]
pub fn mark(name: &str) -> Mark {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

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
    /// Host ports that it wants.
    pub ports: Vec<HostPort>,
    /// The controller it counts for when pods are spread; none while it is being deleted.
    controller: Option<Mark>,
}

impl Placed {
    /// Computes a pod's amounts once.
    #[must_use]
    pub fn new(pod: Arc<Pod>) -> Self {
        let controller = controller_of(&*pod).filter(|_| !pods::deleting(&pod)).map(|r| mark(&r.uid));
        Self { asks: requests(&pod), weighs: requests_for_score(&pod), ports: host_ports(&pod), controller, pod }
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
    /// Sizes of its images by name.
    pub images: HashMap<String, i64>,
    /// Its zone.
    pub zone: Option<Mark>,
    /// Number of its pods by their controller, without those that are being deleted.
    controllers: BTreeMap<Mark, i64>,
}

/// Changes a count, and forgets it at zero.
fn count(counts: &mut BTreeMap<Mark, i64>, of: Mark, by: i64) {
    let n = counts.entry(of).or_default();
    *n += by;
    if *n == 0 {
        counts.remove(&of);
    }
}

impl Host {
    /// A node without pods.
    #[must_use]
    pub fn of(node: Arc<Node>) -> Self {
        let mut host = Self::default();
        host.set_node(node);
        host
    }

    fn set_node(&mut self, node: Arc<Node>) {
        fn listed(node: &Node) -> Option<&Vec<ContainerImage>> {
            node.status.as_ref()?.images.as_ref()
        }
        if self.node.as_deref().is_none_or(|old| listed(old) != listed(&node)) {
            let named = listed(&node).into_iter().flatten();
            let named = named.flat_map(|i| i.names.iter().flatten().map(move |n| (n, i.size_bytes)));
            self.images = named.filter_map(|(n, size)| Some((n.clone(), size?))).collect();
        }
        self.zone = node.metadata.labels.as_ref().and_then(|l| l.get(ZONE)).map(|z| mark(z));
        self.gives = allocatable(&node);
        self.node = Some(node);
    }

    /// How many of its pods a controller has.
    #[must_use]
    pub fn pods_of(&self, controller: Mark) -> i64 {
        self.controllers.get(&controller).copied().unwrap_or(0)
    }

    /// Adds a pod.
    pub fn put(&mut self, key: String, placed: Placed) {
        self.take(&key);
        self.asked.add(&placed.asks);
        self.weighs.add(&placed.weighs);
        if let Some(c) = placed.controller {
            count(&mut self.controllers, c, 1);
        }
        self.pods.insert(key, placed);
    }

    /// Takes a pod away.
    pub fn take(&mut self, key: &str) -> Option<Placed> {
        let placed = self.pods.remove(key)?;
        self.asked.sub(&placed.asks);
        self.weighs.sub(&placed.weighs);
        if let Some(c) = placed.controller {
            count(&mut self.controllers, c, -1);
        }
        Some(placed)
    }

    /// Labels of the node.
    #[must_use]
    pub fn labels(&self) -> &Labels {
        const NONE: &Labels = &None;
        self.node.as_ref().map_or(NONE, |n| &n.metadata.labels)
    }

    /// Host ports in use.
    pub fn ports(&self) -> impl Iterator<Item = &HostPort> {
        self.pods.values().flat_map(|p| &p.ports)
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
    /// Nodes by name, in no order that means anything; a place in it is found at once.
    pub hosts: IndexMap<String, Host>,
    placed_on: HashMap<String, String>,
    assumed: BTreeSet<String>,
    /// Number of nodes by zone, and of nodes in all.
    zones: BTreeMap<Mark, i64>,
    real: usize,
    /// By controller and zone, the number of its pods there.
    zoned: HashMap<Mark, BTreeMap<Mark, i64>>,
    /// Where the search for a node begins next: not always with the same ones.
    next: AtomicUsize,
    /// Pods that refuse company, by key: most clusters have none, and then no placement needs to look.
    pub refusing: BTreeSet<String>,
    /// Pods for which room is being made, by key, with their node.
    nominated: BTreeMap<String, (String, Placed)>,
}

impl Cache {
    /// A node was added or changed.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        self.leave_zone(&name);
        self.hosts.entry(name.clone()).or_default().set_node(node);
        self.enter_zone(&name);
    }

    /// A node is gone; its pods stay until they are gone too.
    pub fn remove_node(&mut self, name: &str) {
        self.leave_zone(name);
        if let Some(host) = self.hosts.get_mut(name) {
            (host.node, host.zone) = (None, None);
            if host.pods.is_empty() {
                self.hosts.swap_remove(name);
            }
        }
    }

    fn enter_zone(&mut self, name: &str) {
        self.count_zone(name, 1);
        self.real += 1;
    }

    fn leave_zone(&mut self, name: &str) {
        if self.hosts.get(name).is_some_and(|h| h.node.is_some()) {
            self.count_zone(name, -1);
            self.real -= 1;
        }
    }

    /// Counts a node and its pods to its zone, or takes them off.
    fn count_zone(&mut self, name: &str, sign: i64) {
        let Some(host) = self.hosts.get(name) else { return };
        let Some(zone) = host.zone else { return };
        count(&mut self.zones, zone, sign);
        for (controller, n) in &host.controllers {
            shift(&mut self.zoned, *controller, zone, sign * n);
        }
    }

    /// The zones, when every node has one; with a controller's number of pods in each that has any.
    #[must_use]
    pub fn zones_of(&self, controller: Mark) -> Option<(usize, Option<&BTreeMap<Mark, i64>>)> {
        let all: i64 = self.zones.values().sum();
        (usize::try_from(all) == Ok(self.real)).then(|| (self.zones.len(), self.zoned.get(&controller)))
    }

    /// Number of nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.real
    }

    /// Whether there is no node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.real == 0
    }

    /// Hosts whose node exists, beginning where the last search ended.
    pub fn from_next(&self) -> impl Iterator<Item = (&String, &Host)> {
        let start = self.next.load(Ordering::Relaxed).checked_rem(self.hosts.len()).unwrap_or(0);
        let all = self.hosts.get_range(start..).into_iter().flatten();
        all.chain(self.hosts.get_range(..start).into_iter().flatten()).filter(|(_, h)| h.node.is_some())
    }

    /// The next search begins `looked` hosts later.
    pub fn advance(&self, looked: usize) {
        self.next.fetch_add(looked, Ordering::Relaxed);
    }

    /// A pod as the server has it; `None` when it is deleted.
    pub fn set_pod(&mut self, key: &str, pod: Option<&Arc<Pod>>) {
        let bound = pod.filter(|p| !pods::node(p).is_empty() && !pods::finished(p));
        match bound {
            Some(p) => {
                let node = pods::node(p).to_owned();
                self.put(key, &node, Placed::new(Arc::clone(p)));
                self.assumed.remove(key);
            }
            // An unbound pod that was placed here is being bound.
            None if pod.is_some_and(|p| pods::node(p).is_empty()) && self.assumed.contains(key) => {}
            None => self.take(key),
        }
    }

    /// Counts a pod as placed while it is being bound.
    pub fn assume(&mut self, placed: Placed, node: &str) {
        let key = key_of(&*placed.pod);
        self.put(&key, node, placed);
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
        if !self.nominated.values().any(|(n, _)| n == node) {
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

    /// A copy to think about what would be.
    pub(super) fn thought(&self) -> Self {
        let mut copy = Self::default();
        for (at, host) in self.nodes() {
            host.node.iter().for_each(|n| copy.set_node(Arc::clone(n)));
            host.pods.iter().for_each(|(key, p)| copy.put(key, at, p.clone()));
        }
        copy
    }

    /// Adds a pod to such a copy.
    pub(super) fn put_back(&mut self, key: &str, placed: &Placed, node: &str) {
        self.put(key, node, placed.clone());
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

    fn put(&mut self, key: &str, node: &str, placed: Placed) {
        self.take(key);
        let affinity = placed.pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
        if affinity.is_some_and(|a| a.pod_anti_affinity.is_some() || a.pod_affinity.is_some()) {
            self.refusing.insert(key.to_owned());
        }
        let host = self.hosts.entry(node.to_owned()).or_default();
        if let (Some(controller), Some(zone)) = (placed.controller, host.zone) {
            shift(&mut self.zoned, controller, zone, 1);
        }
        host.put(key.to_owned(), placed);
        self.placed_on.insert(key.to_owned(), node.to_owned());
    }

    /// Takes a pod away.
    pub(super) fn take(&mut self, key: &str) {
        let Some(node) = self.placed_on.remove(key) else { return };
        self.refusing.remove(key);
        let Some(host) = self.hosts.get_mut(&node) else { return };
        if let Some(placed) = host.take(key)
            && let (Some(controller), Some(zone)) = (placed.controller, host.zone)
        {
            shift(&mut self.zoned, controller, zone, -1);
        }
        if host.node.is_none() && host.pods.is_empty() {
            self.hosts.swap_remove(&node);
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

/// Changes the count of a controller's pods in a zone.
fn shift(zoned: &mut HashMap<Mark, BTreeMap<Mark, i64>>, controller: Mark, zone: Mark, by: i64) {
    let counts = zoned.entry(controller).or_default();
    count(counts, zone, by);
    if counts.is_empty() {
        zoned.remove(&controller);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Whatever is done in whatever order, what is counted on the way is what counting anew gives.
    #[test]
    fn counts_follow_changes() {
        fn node(name: &str, zone: Option<&str>) -> Arc<Node> {
            let labels = zone.map(|z| json!({ZONE: z}));
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap())
        }
        fn pod(name: &str, owner: &str, node: &str, deleted: bool) -> Arc<Pod> {
            let at = deleted.then_some("2026-01-01T00:00:00Z");
            let v = json!({"metadata": {"name": name, "namespace": "x", "deletionTimestamp": at, "ownerReferences": [
                {"apiVersion": "v1", "kind": "X", "name": owner, "uid": owner, "controller": true}]},
                "spec": {"nodeName": node, "containers": []}});
            Arc::new(serde_json::from_value(v).unwrap())
        }
        let mut c = Cache::default();
        let zones = |c: &Cache| {
            let (n, of) = c.zones_of(mark("o"))?;
            Some((n, of.cloned().unwrap_or_default()))
        };
        let some = |n: usize, list: &[(&str, i64)]| Some((n, list.iter().map(|(z, n)| (mark(z), *n)).collect()));
        c.set_pod("x/early", Some(&pod("early", "o", "n1", false)));
        assert_eq!(c.len(), 0, "a pod makes no node");
        c.set_node(node("n1", Some("a")));
        c.set_node(node("n2", Some("b")));
        c.set_pod("x/p", Some(&pod("p", "o", "n2", false)));
        c.set_pod("x/q", Some(&pod("q", "other", "n2", false)));
        assert_eq!(zones(&c), some(2, &[("a", 1), ("b", 1)]));
        c.set_pod("x/p", Some(&pod("p", "o", "n2", true)));
        assert_eq!((zones(&c), c.hosts["n2"].pods_of(mark("o"))), (some(2, &[("a", 1)]), 0), "on its way out");
        c.set_node(node("n1", Some("b")));
        assert_eq!(zones(&c), some(1, &[("b", 1)]));
        c.set_node(node("n2", None));
        assert_eq!(zones(&c), None, "one without a zone: zones are not compared");
        c.remove_node("n2");
        assert_eq!((zones(&c), c.len()), (some(1, &[("b", 1)]), 1));
        c.remove_node("n1");
        c.set_pod("x/early", None);
        c.set_pod("x/p", None);
        c.set_pod("x/q", None);
        assert!(c.is_empty() && c.hosts.is_empty() && c.zoned.is_empty() && c.zones.is_empty());
    }
}
