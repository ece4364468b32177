//! The pod network of one node: a bridge, one veth pair per pod, addresses; or what CNI plugins make ([`network`]).
//!
//! A sandbox is made with no network; the agent creates the pair, moves one end into the sandbox's network namespace
//! and configures it there through netlink on a thread that entered the namespace. Addresses are remembered in the
//! sandboxes' labels and nowhere else: [`Ipam`] is rebuilt from them after a restart.
//!
//! Limits: IPv4, one range per node. Traffic between nodes is the proxy's room (`skiff_proxy::nodes`).

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio_util::sync::CancellationToken;

use crate::Config;

pub mod filter;
pub mod network;

pub use network::Network;

/// Largest frame pods send. Room for VXLAN's 50 bytes when pods of several nodes talk.
const MTU: u32 = 1450;
/// What a pod knows its end of the pair as.
const POD_END: &str = "eth0";
/// How often the rules are put back, should someone have flushed them.
const KEEP_EVERY: Duration = Duration::from_secs(60);
/// A netlink exchange that takes longer hangs.
const NETLINK_TIMEOUT: Duration = Duration::from_secs(20);

/// What went wrong in the pod network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Netlink refused.
    #[error("netlink: {0}")]
    Netlink(#[from] rtnetlink::Error),
    /// A system call failed.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] std::io::Error),
    /// No address is free.
    #[error("no pod address is free in {0}")]
    Exhausted(Ipv4Net),
    /// No such link.
    #[error("link {0} does not exist")]
    NoLink(String),
    /// `nft` or `iptables` refused.
    #[error("{program}: {message}")]
    Filter {
        /// The program.
        program: &'static str,
        /// What it said.
        message: String,
    },
    /// No answer in time.
    #[error("netlink did not answer in time")]
    Timeout,
    /// The sandbox has no process.
    #[error("the sandbox has no process")]
    NoProcess,
    /// The sandbox has the network of another configuration.
    #[error("the sandbox was made with another kind of network")]
    Foreign,
    /// A CNI plugin failed, or there is none.
    #[error(transparent)]
    Cni(#[from] crate::cni::Error),
}

/// Result of a network call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Which addresses of the node's range are in use, and by which pod.
#[derive(Debug)]
pub struct Ipam {
    range: Ipv4Net,
    used: BTreeMap<Ipv4Addr, String>,
    last: u32,
}

impl Ipam {
    /// An allocator with nothing in use. The first address of the range is the bridge's.
    pub fn new(range: Ipv4Net) -> Self {
        Self { range, used: BTreeMap::new(), last: u32::from(range.network()) + 1 }
    }

    /// The bridge's address.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.range.network()) + 1)
    }

    /// Marks an address as used by a pod. Addresses outside the range are ignored.
    pub fn adopt(&mut self, address: Ipv4Addr, owner: &str) {
        if self.range.contains(&address) {
            self.used.insert(address, owner.into());
        }
    }

    /// The next free address after the last one given, so that a freed one rests as long as possible. A pod that has
    /// an address gets the same again.
    pub fn allocate(&mut self, owner: &str) -> Result<Ipv4Addr> {
        if let Some((address, _)) = self.used.iter().find(|(_, o)| *o == owner) {
            return Ok(*address);
        }
        let (first, last) = (u32::from(self.range.network()) + 2, u32::from(self.range.broadcast()).saturating_sub(1));
        let count = (last + 1).saturating_sub(first);
        for step in 1..=count {
            let candidate = Ipv4Addr::from(first + (self.last.wrapping_sub(first).wrapping_add(step)) % count);
            if !self.used.contains_key(&candidate) {
                self.last = candidate.into();
                self.used.insert(candidate, owner.into());
                return Ok(candidate);
            }
        }
        Err(Error::Exhausted(self.range))
    }

    /// Frees a pod's address.
    pub fn release(&mut self, owner: &str) {
        self.used.retain(|_, o| o != owner);
    }
}

/// A port of the node that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Address of the node it is bound to; any when unset.
    pub host_ip: Option<Ipv4Addr>,
    /// Port of the node.
    pub host_port: u16,
    /// Address of the pod.
    pub pod_ip: Ipv4Addr,
    /// Port of the pod.
    pub pod_port: u16,
}

impl HostPort {
    /// Whether both cannot be on one node.
    pub fn collides(&self, other: &Self) -> bool {
        let any = |ip: Option<Ipv4Addr>| ip.is_none_or(|ip| ip.is_unspecified());
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && (any(self.host_ip) || any(other.host_ip) || self.host_ip == other.host_ip)
    }
}

/// The pod network of this node.
pub struct PodNetwork {
    bridge: String,
    range: Ipv4Net,
    cluster: Ipv4Net,
    ipam: Mutex<Ipam>,
    host_ports: Mutex<HashMap<String, Vec<HostPort>>>,
}

impl PodNetwork {
    /// Makes the bridge and the packet filter rules. Idempotent.
    pub async fn setup(config: &Config, range: Ipv4Net) -> Result<Self> {
        let network = Self::unlinked(config, range);
        network.ensure_bridge().await?;
        network.ensure_rules().await?;
        Ok(network)
    }

    /// A network that gives addresses and makes nothing: of a node whose containers are only pretended.
    #[must_use]
    pub fn unlinked(config: &Config, range: Ipv4Net) -> Self {
        Self {
            bridge: config.bridge.clone(),
            range,
            cluster: config.cluster_cidr.unwrap_or(range),
            ipam: Mutex::new(Ipam::new(range)),
            host_ports: Mutex::default(),
        }
    }

    /// Marks an address found in a sandbox's label as used.
    pub fn adopt(&self, pod_uid: &str, address: Ipv4Addr) {
        self.lock_ipam().adopt(address, pod_uid);
    }

    /// An address for a pod; the same one when it has one.
    pub fn allocate(&self, pod_uid: &str) -> Result<Ipv4Addr> {
        self.lock_ipam().allocate(pod_uid)
    }

    /// Gives up a pod's address and host ports. Its link vanishes with its namespace.
    pub async fn release(&self, pod_uid: &str) -> Result<()> {
        self.lock_ipam().release(pod_uid);
        let had_ports = self.host_ports.lock().unwrap_or_else(PoisonError::into_inner).remove(pod_uid).is_some();
        if had_ports { self.ensure_rules().await } else { Ok(()) }
    }

    /// Connects a sandbox. Idempotent: what is there already is kept.
    pub async fn attach(&self, pod_uid: &str, pid: i32, address: Ipv4Addr) -> Result<()> {
        match self.try_attach(pod_uid, pid, address).await {
            // The pair belongs to a sandbox that is just going, or a program of before was stopped between making it and moving
            // its end: make it anew.
            Err(Error::NoLink(_)) => {
                let handle = connect()?;
                if let Some(index) = index_of(&handle, &link_name(pod_uid)).await? {
                    handle.link().del(index).execute().await?;
                }
                self.try_attach(pod_uid, pid, address).await
            }
            other => other,
        }
    }

    async fn try_attach(&self, pod_uid: &str, pid: i32, address: Ipv4Addr) -> Result<()> {
        let host_end = link_name(pod_uid);
        let handle = connect()?;
        let bridge = index_of(&handle, &self.bridge).await?.ok_or_else(|| Error::NoLink(self.bridge.clone()))?;
        if let Some(index) = index_of(&handle, &host_end).await? {
            let up = LinkUnspec::new_with_index(index).mtu(MTU).controller(bridge).up().build();
            handle.link().set(up).execute().await?;
        } else {
            // The pod's end is made where it belongs: moving it there later takes the kernel some 20 ms, for which it waits for
            // all processors again and again.
            let pod_end =
                LinkMessageBuilder::<LinkUnspec>::new().name(POD_END).mtu(MTU).setns_by_pid(pid as u32).build();
            let pair = LinkMessageBuilder::<LinkVeth>::new(&host_end, POD_END)
                .set_info_data(InfoData::Veth(InfoVeth::Peer(pod_end)))
                .mtu(MTU)
                .controller(bridge)
                .up()
                .build();
            handle.link().add(pair).execute().await?;
        }
        let index = index_of(&handle, &host_end).await?.ok_or_else(|| Error::NoLink(host_end.clone()))?;
        // A pod may reach itself through a service: the bridge must send a frame back where it came from.
        handle.link().set_port(LinkBridgePort::new(index).hairpin(true).build()).execute().await?;
        let (gateway, prefix) = (self.lock_ipam().gateway(), self.range.prefix_len());
        in_netns(pid, move || async move {
            let handle = connect()?;
            set_loopback_up(&handle).await?;
            let index = index_of(&handle, POD_END).await?.ok_or_else(|| Error::NoLink(POD_END.to_owned()))?;
            handle.address().add(index, IpAddr::V4(address), prefix).replace().execute().await?;
            handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
            let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
            handle.route().add(route).replace().execute().await?;
            Ok(())
        })
        .await
    }

    /// Publishes a pod's host ports.
    pub async fn publish(&self, pod_uid: &str, ports: Vec<HostPort>) -> Result<()> {
        {
            let mut all = self.host_ports.lock().unwrap_or_else(PoisonError::into_inner);
            if ports.is_empty() && !all.contains_key(pod_uid) || all.get(pod_uid) == Some(&ports) {
                return Ok(());
            }
            all.insert(pod_uid.into(), ports);
        }
        self.ensure_rules().await
    }

    /// Puts bridge and rules back now and then, until told to stop: an engine restart flushes some of them.
    pub async fn keep(self: std::sync::Arc<Self>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(KEEP_EVERY) => {}
            }
            let kept = async {
                self.ensure_bridge().await?;
                self.ensure_rules().await
            };
            if let Err(error) = kept.await {
                tracing::warn!(%error, "pod network needs repair");
            }
        }
    }

    fn lock_ipam(&self) -> std::sync::MutexGuard<'_, Ipam> {
        // The allocator is consistent after every statement, so a panic elsewhere does not spoil it.
        self.ipam.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ensure_bridge(&self) -> Result<()> {
        let gateway = self.lock_ipam().gateway();
        let handle = connect()?;
        if index_of(&handle, &self.bridge).await?.is_none() {
            handle.link().add(LinkBridge::new(&self.bridge).build()).execute().await?;
        }
        let index = index_of(&handle, &self.bridge).await?.ok_or_else(|| Error::NoLink(self.bridge.clone()))?;
        handle.address().add(index, IpAddr::V4(gateway), self.range.prefix_len()).replace().execute().await?;
        // A range this node had before may be another node's now.
        let mut addresses = handle.address().get().set_link_index_filter(index).execute();
        while let Some(found) = addresses.try_next().await? {
            let other = |a: &AddressAttribute| matches!(a, AddressAttribute::Local(IpAddr::V4(ip)) if *ip != gateway);
            if found.attributes.iter().any(other) {
                handle.address().del(found).execute().await?;
            }
        }
        handle.link().set(LinkUnspec::new_with_index(index).mtu(MTU).up().build()).execute().await?;
        // A host port on the loopback address is sent into the bridge.
        sysctl(&format!("net/ipv4/conf/{}/route_localnet", self.bridge), "1")?;
        forward_packets()
    }

    async fn ensure_rules(&self) -> Result<()> {
        let mut ports: Vec<HostPort> = {
            let all = self.host_ports.lock().unwrap_or_else(PoisonError::into_inner);
            all.values().flatten().cloned().collect()
        };
        ports.sort();
        filter::apply(&filter::ruleset(&self.bridge, self.range, self.cluster, &ports)).await?;
        filter::accept(&filter::of_bridge(&self.bridge)).await
    }
}

/// The range of a bridge that is there already: of its first address. None when there is no such bridge.
pub async fn range_of(bridge: &str) -> Option<Ipv4Net> {
    let look = async {
        let handle = connect().ok()?;
        let index = index_of(&handle, bridge).await.ok()??;
        let mut addresses = handle.address().get().set_link_index_filter(index).execute();
        while let Some(found) = addresses.try_next().await.ok()? {
            let local = found.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
                _ => None,
            });
            if let Some(ip) = local {
                return Ipv4Net::new(ip, found.header.prefix_len).ok().map(|n| n.trunc());
            }
        }
        None
    };
    tokio::time::timeout(NETLINK_TIMEOUT, look).await.ok()?
}

/// Removes the bridge, with it every pod's link, and the rules. Idempotent.
pub async fn teardown(config: &Config) -> Result<()> {
    let handle = connect()?;
    let bridge = index_of(&handle, &config.bridge).await?;
    if let Some(bridge) = bridge {
        let mut links = handle.link().get().execute();
        let mut ours = Vec::new();
        while let Some(link) = links.try_next().await? {
            if link.attributes.iter().any(|a| matches!(a, LinkAttribute::Controller(c) if *c == bridge)) {
                ours.push(link.header.index);
            }
        }
        for index in ours.into_iter().chain([bridge]) {
            // A link may vanish together with its namespace while we look.
            if let Err(error) = handle.link().del(index).execute().await {
                tracing::debug!(%error, index, "link is gone already");
            }
        }
    }
    filter::remove(&config.bridge).await
}

/// Runs a future on a thread of its own inside the network namespace of a process.
///
/// Entering a namespace changes the thread, so it is never one of the shared ones. Sockets made inside stay in the
/// namespace wherever they are used later.
pub async fn in_netns<T, F, Fut>(pid: i32, work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<T>>,
{
    let (answer, answered) = tokio::sync::oneshot::channel();
    let run = move || -> Result<T> {
        let namespace =
            std::fs::File::open(format!("/proc/{pid}/ns/net")).map_err(|e| Error::Io("open network namespace", e))?;
        nix::sched::setns(namespace.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::Io("enter network namespace", e.into()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::Io("start a runtime", e))?;
        runtime.block_on(async { tokio::time::timeout(NETLINK_TIMEOUT, work()).await.unwrap_or(Err(Error::Timeout)) })
    };
    std::thread::Builder::new()
        .name("skiff-netns".into())
        .spawn(move || {
            // The asker may have been cancelled; then nobody wants the answer.
            let _ = answer.send(run());
        })
        .map_err(|e| Error::Io("start a thread", e))?;
    answered.await.unwrap_or(Err(Error::Timeout))
}

/// What pods may expect of their network's namespace: who is not root may listen on low ports and ping, and there is no IPv6 but
/// on links for which a plugin turns it on.
const PARAMETERS: [(&str, &str); 4] = [
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0\t2147483647"),
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
];

/// What a pod sent and received: bytes, packets, errors, dropped packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// To the pod.
    pub received: [u64; 4],
    /// From the pod.
    pub sent: [u64; 4],
}

/// Counts of a pod's link; none for pods on the host's network. The host's end counts the other way round.
pub fn traffic(pod_uid: &str) -> Option<Traffic> {
    traffic_of(&Path::new("/sys/class/net").join(link_name(pod_uid)).join("statistics"))
}

fn traffic_of(statistics: &Path) -> Option<Traffic> {
    let read = |name: String| std::fs::read_to_string(statistics.join(name)).ok()?.trim().parse().ok();
    let all = |way: &str| {
        let of = |what: &str| read(format!("{way}_{what}"));
        Some([of("bytes")?, of("packets")?, of("errors")?, of("dropped")?])
    };
    Some(Traffic { received: all("tx")?, sent: all("rx")? })
}

/// Makes a network namespace that a sandbox made itself what it would be from an engine.
///
/// # Errors
/// When the sandbox has not left this network yet: whoever looked before may have been cut short. When the namespace cannot be
/// entered, or the kernel refuses.
pub async fn as_engines_do(pid: i32) -> Result<()> {
    let network = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/net"));
    let of = |who: &str| network(who).map_err(|e| Error::Io("look at a network namespace", e));
    if of(&pid.to_string())? == of("self")? {
        return Err(Error::Io("connect a sandbox", std::io::Error::other("it is still on the host's network")));
    }
    in_netns(pid, || async {
        // A kernel may be without one of the protocols.
        let known = PARAMETERS.iter().filter(|(name, _)| Path::new("/proc/sys").join(name).exists());
        known.into_iter().try_for_each(|(name, value)| sysctl(name, value))
    })
    .await
}

/// Makes sure that a pod reaches itself.
///
/// # Errors
/// When the namespace cannot be entered, or the kernel refuses.
pub async fn loopback_up(pid: i32) -> Result<()> {
    in_netns(pid, || async { set_loopback_up(&connect()?).await }).await
}

async fn set_loopback_up(handle: &Handle) -> Result<()> {
    if let Some(lo) = index_of(handle, "lo").await? {
        handle.link().set(LinkUnspec::new_with_index(lo).up().build()).execute().await?;
    }
    Ok(())
}

/// Makes the host forward packets, and those between pods of one bridge pass its packet filter.
///
/// # Errors
/// When the host may not forward.
pub fn forward_packets() -> Result<()> {
    sysctl("net/ipv4/ip_forward", "1")?;
    // Traffic between pods of one bridge must pass the service rules. The module may be built in, or absent.
    if let Err(error) = sysctl("net/bridge/bridge-nf-call-iptables", "1") {
        tracing::debug!(%error, "bridge traffic does not pass the packet filter");
    }
    Ok(())
}

/// Name of the host's end of a pod's pair. Fifteen bytes is the kernel's limit.
fn link_name(pod_uid: &str) -> String {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(pod_uid.as_bytes());
    digest.iter().take(6).fold("v".to_string(), |name, byte| format!("{name}{byte:02x}"))
}

fn connect() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| Error::Io("open netlink", e))?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn index_of(handle: &Handle, name: &str) -> Result<Option<u32>> {
    match handle.link().get().match_name(name.to_string()).execute().try_next().await {
        Ok(link) => Ok(link.map(|l| l.header.index)),
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -(nix::errno::Errno::ENODEV as i32) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(path, value).map_err(|e| Error::Io("write a kernel parameter", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[tokio::test]
    async fn this_network_is_no_sandboxs() {
        let error = as_engines_do(i32::try_from(std::process::id()).unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("connect a sandbox"), "{error}");
    }

    proptest! {
        /// Whatever pods come and go: no address twice, none outside, never the gateway's, and a full range says so.
        #[test]
        fn addresses_are_unique(steps in prop::collection::vec((any::<bool>(), 0u8..20), 1..200)) {
            let range: Ipv4Net = "10.1.2.0/28".parse().unwrap();
            let mut ipam = Ipam::new(range);
            let mut held: BTreeMap<String, Ipv4Addr> = BTreeMap::new();
            for (add, pod) in steps {
                let pod = format!("pod{pod}");
                if add {
                    match ipam.allocate(&pod) {
                        Ok(address) => {
                            prop_assert!(range.contains(&address) && address != ipam.gateway());
                            prop_assert!(address != range.network() && address != range.broadcast());
                            prop_assert!(held.iter().all(|(p, a)| *p == pod || *a != address));
                            prop_assert!(held.get(&pod).is_none_or(|a| *a == address));
                            held.insert(pod, address);
                        }
                        Err(_) => prop_assert_eq!(held.len(), 13),
                    }
                } else {
                    ipam.release(&pod);
                    held.remove(&pod);
                }
            }
        }
    }

    #[test]
    fn the_hosts_end_counts_the_other_way_round() {
        let dir = tempfile::tempdir().unwrap();
        for (i, name) in ["bytes", "packets", "errors", "dropped"].iter().enumerate() {
            std::fs::write(dir.path().join(format!("rx_{name}")), format!("{i}\n")).unwrap();
            std::fs::write(dir.path().join(format!("tx_{name}")), format!("1{i}\n")).unwrap();
        }
        let traffic = traffic_of(dir.path()).unwrap();
        assert_eq!((traffic.sent, traffic.received), ([0, 1, 2, 3], [10, 11, 12, 13]));
        assert!(traffic_of(&dir.path().join("none")).is_none());
    }

    #[test]
    fn link_names_fit_the_kernel() {
        assert!(link_name("0b9f6f0e-5f4e-4d1c-8f6e-000000000000").len() < 16);
    }
}
