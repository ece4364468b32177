//! The life cycle of nodes: is one alive, may pods go to it, must pods leave it, and which pod range it has.
//!
//! A node proves life by renewing its Lease or changing its Ready condition. Only this process's clock is used: what
//! counts is when a change was seen, so clocks of nodes need not agree, and a restart gives every node a new grace.

pub mod evict;
pub mod health;
pub mod ipam;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::pods;
use crate::manager::node_term;
use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::{Informer, key_of};
use crate::runtime::now;
use crate::runtime::queue::Queue;
use crate::runtime::worker::{Error, Outcome, Reconcile, found};

/// A node that was silent for this long is not known to live (50 s since 1.32: longer than a dead connection lasts).
pub const GRACE: Duration = Duration::from_secs(50);
/// A node that never reported has this long after it was seen first.
const STARTUP_GRACE: Duration = Duration::from_secs(60);
/// Every node is looked at this often.
const PERIOD: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Seen {
    proof: (Option<String>, Option<String>, Option<String>),
    at: Instant,
    reported: bool,
}

/// The node controller.
pub struct Controller {
    client: Client,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    seen: Mutex<HashMap<String, Seen>>,
    ranges: Mutex<ipam::Ranges>,
    zones: Mutex<health::Zones>,
    grace: Duration,
    queue: Arc<Queue>,
    events: Recorder,
}

impl Controller {
    /// Makes the controller and subscribes it to changes. `leases` need only hold those of `kube-node-lease`.
    #[must_use]
    pub fn new(
        client: Client,
        nodes: Informer<Node>,
        leases: Informer<Lease>,
        pods: Informer<Pod>,
        cidr: ipnet::IpNet,
        grace: Duration,
    ) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        nodes.on_change(move |c| q.add(key_of(&**c.latest())));
        let events = Recorder::start(client.clone(), "node-controller");
        Arc::new(Self {
            client,
            nodes,
            leases,
            pods,
            seen: Mutex::default(),
            ranges: Mutex::new(ipam::Ranges::new(cidr)),
            zones: Mutex::default(),
            grace,
            queue,
            events,
        })
    }

    /// When the node last proved that it lives, and whether it ever reported.
    fn proof(&self, node: &Node) -> (Duration, bool) {
        let name = node.name_any();
        let ready = health::condition(node, "Ready");
        let lease = self.leases.get(&format!("kube-node-lease/{name}"));
        let renewed = lease.and_then(|l| l.spec.as_ref()?.renew_time.as_ref().map(|t| t.0.to_string()));
        let heartbeat = ready.and_then(|c| c.last_heartbeat_time.as_ref().map(|t| t.0.to_string()));
        let status = ready.filter(|c| c.status != "Unknown").map(|c| c.status.clone());
        let now = Instant::now();
        let mut all = self.seen.lock();
        let proof = (renewed, heartbeat, status);
        let reported = proof.0.is_some() || ready.is_some_and(|c| c.status != "Unknown");
        match all.get_mut(&name) {
            None => {
                let text = format!("Node {name} event: Registered Node {name} in Controller");
                self.events.note(node, Level::Normal, "RegisteredNode", text);
                all.insert(name, Seen { proof, at: now, reported });
                (Duration::ZERO, reported)
            }
            Some(seen) => {
                // The condition that this controller wrote itself is no proof.
                let alive =
                    seen.proof.0 != proof.0 || (ready.is_some_and(|c| c.status != "Unknown") && seen.proof != proof);
                if alive {
                    seen.at = now;
                    seen.reported = reported;
                }
                seen.proof = proof;
                (now.duration_since(seen.at), seen.reported)
            }
        }
    }

    async fn sync(&self, name: &str) -> Outcome {
        let Some(node) = self.nodes.get(name) else {
            self.seen.lock().remove(name);
            self.ranges.lock().release(name);
            return Ok(None);
        };
        let api: Api<Node> = Api::all(self.client.clone());
        self.give_range(&api, &node).await?;
        let (silent, reported) = self.proof(&node);
        let grace = if reported { self.grace } else { STARTUP_GRACE };
        let mut node = Node::clone(&node);
        if silent > grace
            && let Some(conditions) = health::unknown(&node)
        {
            node.status.get_or_insert_default().conditions = Some(conditions);
            let Some(written) = found(api.replace_status(name, &PostParams::default(), &node).await)? else {
                return Ok(None);
            };
            node = written;
            let text = format!("Node {name} status is now: NodeNotReady");
            self.events.note(&node, Level::Normal, "NodeNotReady", text);
        }
        let ready = health::status(&node, "Ready") == "True";
        if !ready {
            self.mark_pods(name).await?;
        }
        self.taint(&api, &node).await?;
        Ok(Some(PERIOD))
    }

    async fn give_range(&self, api: &Api<Node>, node: &Node) -> Result<(), Error> {
        let name = node.name_any();
        let present = node.spec.as_ref().and_then(|s| s.pod_cidr.clone()).filter(|c| !c.is_empty());
        if let Some(cidr) = present {
            let rival = {
                let mut ranges = self.ranges.lock();
                ranges.keep(&name, &cidr);
                ranges.rival(&name).map(str::to_owned)
            };
            if let Some(rival) = rival {
                let text = format!("The pod range {cidr} of this node overlaps that of node {rival}");
                self.events.note(node, Level::Warning, "CIDRAssignmentFailed", text);
            }
            return Ok(());
        }
        let taken: Vec<(String, String)> =
            self.nodes.all().iter().filter_map(|n| Some((n.name_any(), n.spec.as_ref()?.pod_cidr.clone()?))).collect();
        let range = {
            let mut ranges = self.ranges.lock();
            taken.iter().for_each(|(n, c)| ranges.keep(n, c));
            ranges.give(&name)
        };
        let Some(range) = range else {
            let text = "Failed to allocate a CIDR: there are no remaining CIDRs left to allocate in the accepted range";
            self.events.note(node, Level::Normal, "CIDRNotAvailable", text);
            return Ok(());
        };
        let patch = serde_json::json!({"spec": {"podCIDR": range, "podCIDRs": [range]}});
        found(api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        Ok(())
    }

    /// Pods of a node that is not ready are not ready either, whatever they said last.
    async fn mark_pods(&self, node: &str) -> Result<(), Error> {
        for pod in self.pods.with_term(&node_term(node)) {
            if !pods::ready(&pod) || pods::deleting(&pod) {
                continue;
            }
            let patch = serde_json::json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [
                {"type": "Ready", "status": "False", "lastTransitionTime": now()},
            ]}});
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
            found(api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await)?;
            self.events.note(&*pod, Level::Warning, "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }

    /// Brings the taints in line with the conditions. Those that drive pods away come slowly.
    async fn taint(&self, api: &Api<Node>, node: &Node) -> Result<(), Error> {
        let all: Vec<Arc<Node>> = self.nodes.all();
        let present = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        let driving = |t: &Taint| t.effect == "NoExecute" && health::DRIVING.contains(&t.key.as_str());
        let driven = present.iter().any(driving);
        let mut wanted: Vec<Taint> = present.iter().filter(|t| !health::owned(t)).cloned().collect();
        wanted.extend(health::no_schedule(node));
        let drive = health::no_execute(node);
        let may = match &drive {
            None => false,
            Some(_) => self.zones.lock().may_drive(node, &all, driven),
        };
        wanted.extend(drive.filter(|_| may));
        let ids = |list: &[Taint]| {
            list.iter().map(|t| (t.key.clone(), t.effect.clone(), t.value.clone())).collect::<BTreeSet<_>>()
        };
        if ids(&wanted) == ids(&present) {
            return Ok(());
        }
        // What stays keeps the time since when it is there: tolerations count from it.
        for t in &mut wanted {
            let same = |p: &&Taint| p.key == t.key && p.effect == t.effect;
            match present.iter().find(same) {
                Some(p) => t.time_added.clone_from(&p.time_added),
                None => t.time_added = Some(now()),
            }
        }
        let mut next = node.clone();
        next.spec.get_or_insert_default().taints = Some(wanted).filter(|t| !t.is_empty());
        found(api.replace(&node.name_any(), &PostParams::default(), &next).await)?;
        Ok(())
    }
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "node-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.nodes.keys().into_iter().for_each(|k| self.queue.add(k));
    }

    /// One, so that ranges are given and pods driven away in one order.
    fn workers(&self) -> usize {
        1
    }
}
