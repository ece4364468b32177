//! The pod network between nodes: how packets for another node's pods get there.
//!
//! Each node has a range of pod addresses (`spec.podCIDR`) and an address (`InternalIP`). Where two nodes share a
//! segment a plain route is enough, and nothing is faster; where they do not, packets travel in VXLAN. [`plan`] decides,
//! [`kernel`] makes it so. Addresses are never changed on the way: a pod sees who asks.
//!
//! Contract: every node decides from the same Node objects by the same rule, so nothing has to be agreed on. The VXLAN
//! end of a node has the first address of its range, and a MAC address made of that; both follow from the Node object.
//! A range outside the cluster's, or one that overlaps this node's own, is not believed.
//!
//! Limits: IPv4. Routes and device stay when the process ends, as Services do, until [`cleanup`].

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::watcher;
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

use crate::watch::{self, Seen};

pub mod kernel;
pub mod plan;

pub use kernel::cleanup;
pub use plan::{Mode, Peer};

/// How often routes are put back, should a link have been down: the kernel drops its routes then.
const CHECK: Duration = Duration::from_secs(60);
/// First and longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What the network is made for. Does not change while the process runs.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Name of this node.
    pub node: String,
    /// Address of this node.
    pub address: Ipv4Addr,
    /// Range of all pods.
    pub cluster: Ipv4Net,
    /// How packets travel.
    pub mode: Mode,
}

/// All nodes that have a range, by name.
pub type Peers = BTreeMap<String, Peer>;

/// Keeps the routes in step with the nodes until `stop`. Never fails: what does not work is tried again.
pub async fn run(client: kube::Client, frame: Frame, stop: CancellationToken) {
    let (peers, known) = channel::channel(None);
    tokio::join!(follow(client, peers, stop.clone()), apply(frame, known, stop));
}

/// Tells the nodes whenever something about them changes that matters here. Heartbeats do not.
async fn follow(client: kube::Client, peers: channel::Sender<Option<Peers>>, stop: CancellationToken) {
    let mut all = Peers::new();
    let mut complete = false;
    let watch = watch::follow(Api::<Node>::all(client), watcher::Config::default(), |seen| {
        match seen {
            Seen::Put(_, node) | Seen::Listing(_, node) => put(&mut all, &node),
            Seen::Listed(left) => {
                let left: HashSet<&str> = left.iter().map(|id| &*id.name).collect();
                all.retain(|name, _| left.contains(name.as_str()));
                complete = true;
            }
            Seen::Gone(id) => drop(all.remove(&*id.name)),
        }
        if complete {
            peers.send_if_modified(|old| {
                let changed = old.as_ref() != Some(&all);
                if changed {
                    *old = Some(all.clone());
                }
                changed
            });
        }
    });
    stop.run_until_cancelled(watch).await;
}

fn put(all: &mut Peers, node: &Node) {
    let Some(name) = node.metadata.name.clone() else { return };
    match Peer::parse(node) {
        Some(peer) => drop(all.insert(name, peer)),
        None => drop(all.remove(&name)),
    }
}

async fn apply(frame: Frame, mut known: channel::Receiver<Option<Peers>>, stop: CancellationToken) {
    let mut wait = BACKOFF.0;
    let mut told = None;
    loop {
        let peers = known.borrow_and_update().clone();
        let mut pause = CHECK;
        if let Some(peers) = &peers {
            match kernel::apply(&frame, peers).await {
                Ok(plan) => {
                    wait = BACKOFF.0;
                    if told.as_ref() != Some(&plan) {
                        tracing::info!(routes = plan.len(), "routes to other nodes' pods");
                        tracing::debug!(?plan, "routes to other nodes' pods");
                        told = Some(plan);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "routes to other nodes' pods not made; trying again");
                    pause = wait;
                    wait = (wait * 2).min(BACKOFF.1);
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = known.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The first IPv4 address that the node names as its own.
fn internal_ip(node: &Node) -> Option<Ipv4Addr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().filter(|a| a.type_ == "InternalIP").find_map(|a| match a.address.parse() {
        Ok(IpAddr::V4(ip)) => Some(ip),
        _ => None,
    })
}
