//! NetworkPolicies: who may talk to the pods of this node, and to whom they may talk.
//!
//! [`watch`] follows the objects, of which [`model`] keeps a small part, [`compile`] makes the node's rules of them,
//! [`script`] writes those as an nftables table of their own, and [`Enforcer`] loads differences. Each node judges its own
//! pods: what one sends, where it leaves; what another receives, where it arrives. Addresses of pods are not changed
//! between nodes, so both ends see the same.
//!
//! # Contract
//! - Upstream's: policies add up; a pod that none holds for is free; what a pod and its own node say to each other
//!   passes (probes do), and what a pod says to itself. Service traffic is judged by the endpoint, not the Service.
//! - The name server lives on the node, but is judged as the pod with the label `k8s-app: kube-dns` in `kube-system`
//!   that it is elsewhere: a pod with a default of no egress cannot resolve names unless a policy allows that.
//! - Connections that are open when a policy comes stay open; each new one is judged.
//! - Without policies there is no table, and only one idle watch.
//!
//! # Limits
//! IPv4. The rules of a pod are loaded when its status first has its address. The agent writes that before it starts the
//! containers, but does not wait for the rules: a pod's first packets may be quicker. The table stays when the process
//! ends, until [`crate::cleanup`].

use std::net::Ipv4Addr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod as ApiPod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::{Api, Client};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub mod compile;
pub mod model;
pub mod script;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
pub mod watch;

use crate::services::nft;
use compile::Table;
use model::{Listed, Pod, Policy};
use watch::Shared;

/// Events within this time after an update wait and go together. The first after a rest does not wait.
const WINDOW: Duration = Duration::from_millis(20);
/// How often it is checked that nobody has removed the table, while there is one.
const CHECK: Duration = Duration::from_secs(60);
/// First and longest wait after a failed load.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Whether frames from port to port of a bridge pass the packet filter.
const BRIDGED: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// What the table is made for. Does not change while the process runs.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Name of this node.
    pub node: String,
    /// Name of the table.
    pub table: String,
    /// Address of the name server.
    pub resolver: Option<Ipv4Addr>,
}

/// Name of the policies' table beside the Services' of that name.
pub fn table_name(services: &str) -> String {
    format!("{services}-policy")
}

/// Enforces policies until `stop`. Never fails: what does not load is tried again.
pub async fn run(client: Client, frame: Frame, stop: CancellationToken) {
    let shared = Shared::default();
    let policies =
        watch::follow(Api::<NetworkPolicy>::all(client.clone()), shared.clone(), Policy::parse, |w| &mut w.policies);
    tokio::select! {
        () = stop.cancelled() => {}
        () = policies => {}
        () = enforce(client, frame, shared) => {}
    }
}

async fn enforce(client: Client, frame: Frame, shared: Shared) {
    let mut feeds = JoinSet::new();
    let mut enforcer = Enforcer::new(frame.clone());
    let mut wait = BACKOFF.0;
    loop {
        let woken = tokio::select! {
            () = shared.changed.notified() => true,
            // Without a table nothing wakes.
            () = tokio::time::sleep(CHECK), if !feeds.is_empty() => false,
        };
        let (known, needed) = {
            let world = shared.world.lock();
            (world.policies.complete, !world.policies.items.is_empty())
        };
        if !known {
            continue;
        }
        if needed && feeds.is_empty() {
            tracing::info!("there are network policies: enforcing them");
            feed(&mut feeds, &client, &frame, &shared);
        } else if !needed && !feeds.is_empty() {
            tracing::info!("the last network policy is gone");
            feeds.shutdown().await;
            let mut world = shared.world.lock();
            (world.pods, world.namespaces) = (Listed::default(), Listed::default());
        }
        let done = if needed {
            if !woken {
                enforcer.check().await;
            }
            let table = {
                let world = shared.world.lock();
                let complete = world.pods.complete && world.namespaces.complete;
                complete.then(|| compile::compile(&world, frame.resolver))
            };
            match table {
                Some(table) => enforcer.load(table).await,
                // What was loaded before, perhaps by another process, holds until more is known.
                None => Ok(()),
            }
        } else {
            enforcer.remove().await
        };
        let pause = match done {
            Ok(()) => {
                wait = BACKOFF.0;
                WINDOW
            }
            Err(error) => {
                tracing::error!(%error, ?wait, "network policies not loaded; trying again");
                shared.changed.notify_one();
                let longer = (wait * 2).min(BACKOFF.1);
                std::mem::replace(&mut wait, longer)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Starts to follow what only matters while there are policies.
fn feed(feeds: &mut JoinSet<()>, client: &Client, frame: &Frame, shared: &Shared) {
    if std::fs::read_to_string(BRIDGED).is_ok_and(|value| value.trim() != "1") {
        tracing::warn!("{BRIDGED} is off: network policies do not hold between pods of this node");
    }
    let node = frame.node.clone();
    let pods = Api::<ApiPod>::all(client.clone());
    feeds.spawn(watch::follow(pods, shared.clone(), move |pod| Pod::parse(pod, &node), |world| &mut world.pods));
    let namespaces = Api::<Namespace>::all(client.clone());
    let labels = |object: &Namespace| Some(model::namespace(object));
    feeds.spawn(watch::follow(namespaces, shared.clone(), labels, |world| &mut world.namespaces));
}

/// What the kernel has of the table.
#[derive(Debug)]
enum Loaded {
    /// Not known: from before this process, or after a failure.
    Unknown,
    /// No table.
    Nothing,
    /// This one.
    Table(Table),
}

/// The table in the kernel.
#[derive(Debug)]
pub struct Enforcer {
    frame: Frame,
    loaded: Loaded,
}

impl Enforcer {
    /// Nothing is known about the kernel's state yet.
    pub fn new(frame: Frame) -> Self {
        Self { frame, loaded: Loaded::Unknown }
    }

    /// Makes the kernel have this table, by the difference where what it has is known. After an error the kernel may have
    /// the old state or the new one, and the next call replaces it.
    pub async fn load(&mut self, table: Table) -> nft::Result<()> {
        let name = &self.frame.table;
        match std::mem::replace(&mut self.loaded, Loaded::Unknown) {
            Loaded::Table(old) if old == table => {}
            Loaded::Table(old) => {
                let (load, clear) = script::update(name, &old, &table);
                for script in [load, clear].iter().filter(|script| !script.is_empty()) {
                    nft::load(script).await?;
                }
            }
            Loaded::Unknown | Loaded::Nothing => {
                nft::load(&script::replace(name, self.frame.resolver, &table)).await?;
            }
        }
        self.loaded = Loaded::Table(table);
        Ok(())
    }

    /// Makes the kernel have no table.
    pub async fn remove(&mut self) -> nft::Result<()> {
        if !matches!(self.loaded, Loaded::Nothing) {
            nft::remove(&self.frame.table).await?;
            self.loaded = Loaded::Nothing;
        }
        Ok(())
    }

    /// Notices that somebody has removed the table.
    pub async fn check(&mut self) {
        if matches!(self.loaded, Loaded::Table(_)) && !nft::present(&self.frame.table).await {
            tracing::warn!(table = %self.frame.table, "somebody removed the policies' table; loading it again");
            self.loaded = Loaded::Unknown;
        }
    }
}
