//! Addresses of load balancers that this node answers for.
//!
//! Where LoadBalancer Services have addresses of a range, the controller chooses one node per address and says so in the
//! Service's condition [`ANNOUNCED`]. That node's proxy gives the address to the interface whose segment it is in (else
//! to the one of the node's own address) and tells the segment by gratuitous ARP, as often as it takes for switches and
//! neighbours to believe it, and then every minute, so that a node that was cut off and came back cannot keep what is
//! not its own any more. What arrives is worked by the rules of Services; other ports of the address are refused, for
//! the node's own programs are not meant.
//!
//! Contract: the addresses carry protocol number 83, by which stale ones are found at the next start (Linux 5.18).
//! They stay when the process ends, as Services do, until [`cleanup`]. While nothing is held nothing wakes.
//!
//! Limits: IPv4, Ethernet. An address outside the node's segments is reached only where routers send it here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressProtocol};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::index::Index;
use crate::services::nft;

pub mod arp;

/// The condition by which a Service names the node that answers for its address.
pub const ANNOUNCED: &str = "skiff.dev/Announced";
/// The number by which our addresses are known, the same as that of our routes.
const PROTOCOL: AddressProtocol = AddressProtocol::Other(83);
/// How often the addresses are put back, should somebody have removed them, and the segment is told.
const CHECK: Duration = Duration::from_secs(60);
/// Announcements after a change, and the time between them.
const REPEATS: (u32, Duration) = (4, Duration::from_secs(1));
/// First and longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// An exchange with the kernel that takes longer hangs.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Addresses to hold; none while that is not known.
pub type Wanted = Option<BTreeSet<Ipv4Addr>>;

/// Why the addresses are not held.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection to the kernel's routing.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] std::io::Error),
    /// The kernel refused.
    #[error("{0}: {1}")]
    Netlink(&'static str, #[source] rtnetlink::Error),
    /// No interface to put addresses on.
    #[error("no interface has the node's address {0}: set the right one with --node-ip")]
    NoInterface(Ipv4Addr),
    /// The packet filter refused.
    #[error(transparent)]
    Filter(#[from] nft::Error),
    /// No answer in time.
    #[error("netlink did not answer in time")]
    Timeout,
}

/// What the addresses are held for. Does not change while the process runs.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Address of this node.
    pub address: Ipv4Addr,
    /// Name of the nftables table that refuses what is not a Service's.
    pub table: String,
}

/// Name of that table, next to the Services' table of this name.
#[must_use]
pub fn table_name(services: &str) -> String {
    format!("{services}-balancers")
}

/// The addresses that this node is to answer for.
#[must_use]
pub fn wanted(index: &Index, node: &str) -> BTreeSet<Ipv4Addr> {
    let services = index.iter().filter_map(|(_, _, entry)| entry.service());
    let mine = services.filter(|s| s.proxied && s.announcer.as_deref() == Some(node));
    mine.flat_map(|s| s.balancer_ips.iter().copied()).collect()
}

/// Holds what is wanted until `stop`. Never fails: what does not work is tried again.
pub async fn run(frame: Frame, mut wanted: watch::Receiver<Wanted>, stop: CancellationToken) {
    let mut wait = BACKOFF.0;
    let mut held = None;
    let mut repeats = 0;
    loop {
        let now = wanted.borrow_and_update().clone();
        let mut pause = None;
        if let Some(now) = now {
            match apply(&frame, &now).await {
                Ok(places) => {
                    wait = BACKOFF.0;
                    if held.as_ref() != Some(&now) {
                        tracing::info!(addresses = ?now, "load balancers' addresses that this node answers for");
                        repeats = REPEATS.0;
                    }
                    arp::announce(&places);
                    repeats = u32::saturating_sub(repeats, 1);
                    pause = (!now.is_empty()).then_some(if repeats > 0 { REPEATS.1 } else { CHECK });
                    held = Some(now);
                }
                Err(error) => {
                    tracing::warn!(%error, "load balancers' addresses not held; trying again");
                    pause = Some(wait);
                    wait = (wait * 2).min(BACKOFF.1);
                }
            }
        }
        let rest = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() { return },
            () = rest => {}
        }
    }
}

/// Removes all addresses of ours, and the table.
///
/// # Errors
/// When the kernel refuses.
pub async fn cleanup(table: &str) -> Result<(), Error> {
    connected(async |handle| {
        for (_, message) in present(&handle).await?.ours {
            remove(&handle, message).await?;
        }
        Ok(())
    })
    .await?;
    Ok(nft::remove(table).await?)
}

/// Brings the host to `wanted`; answers the addresses by the index of their interface.
async fn apply(frame: &Frame, wanted: &BTreeSet<Ipv4Addr>) -> Result<BTreeMap<u32, Vec<Ipv4Addr>>, Error> {
    // First what refuses: else the node's own programs would answer for a moment.
    if wanted.is_empty() {
        nft::remove(&frame.table).await?
    } else {
        nft::load(&script(&frame.table, wanted)).await?
    }
    connected(async |handle| {
        let mut present = present(&handle).await?;
        let mut places: BTreeMap<u32, Vec<Ipv4Addr>> = BTreeMap::new();
        for address in wanted {
            let at = present.interface(frame.address, *address).ok_or(Error::NoInterface(frame.address))?;
            match present.ours.remove(address) {
                Some(held) if held.header.index == at => {}
                held => {
                    if let Some(elsewhere) = held {
                        remove(&handle, elsewhere).await?;
                    }
                    let mut add = handle.address().add(at, IpAddr::V4(*address), 32);
                    add.message_mut().attributes.push(AddressAttribute::Protocol(PROTOCOL));
                    add.execute().await.map_err(|e| Error::Netlink("add an address", e))?;
                }
            }
            places.entry(at).or_default().push(*address);
        }
        for (_, stale) in present.ours {
            remove(&handle, stale).await?;
        }
        Ok(places)
    })
    .await
}

/// The table that refuses new connections to the addresses which no rule of a Service has sent elsewhere.
fn script(table: &str, held: &BTreeSet<Ipv4Addr>) -> String {
    let held: Vec<String> = held.iter().map(Ipv4Addr::to_string).collect();
    format!(
        "add table ip {table}
delete table ip {table}
table ip {table} {{
  set held {{ type ipv4_addr; elements = {{ {} }} }}
  chain input {{
    type filter hook input priority 0; policy accept;
    ip daddr @held ct state new meta l4proto {{ tcp, udp, sctp }} reject
  }}
}}
",
        held.join(", ")
    )
}

/// The host's addresses.
#[derive(Default)]
struct Present {
    ours: BTreeMap<Ipv4Addr, AddressMessage>,
    /// Interface, own address and segment of the others.
    others: Vec<(u32, Ipv4Net)>,
}

impl Present {
    /// Where an address belongs: to the narrowest segment it is in, else where the node's own address is.
    fn interface(&self, node: Ipv4Addr, address: Ipv4Addr) -> Option<u32> {
        let around = self.others.iter().filter(|(_, net)| net.prefix_len() < 32 && net.contains(&address));
        let narrowest = around.max_by_key(|(_, net)| net.prefix_len());
        let own = || self.others.iter().find(|(_, net)| net.addr() == node);
        narrowest.or_else(own).map(|(index, _)| *index)
    }
}

async fn present(handle: &Handle) -> Result<Present, Error> {
    let mut present = Present::default();
    let mut all = handle.address().get().execute();
    while let Some(found) = all.try_next().await.map_err(|e| Error::Netlink("list addresses", e))? {
        let local = found.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
            _ => None,
        });
        let Some(ip) = local else { continue };
        if found.attributes.contains(&AddressAttribute::Protocol(PROTOCOL)) {
            present.ours.insert(ip, found);
        } else if let Ok(net) = Ipv4Net::new(ip, found.header.prefix_len) {
            present.others.push((found.header.index, net));
        }
    }
    Ok(present)
}

async fn remove(handle: &Handle, message: AddressMessage) -> Result<(), Error> {
    match handle.address().del(message).execute().await {
        // Gone already, with its interface for example.
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -(nix::errno::Errno::EADDRNOTAVAIL as i32) => Ok(()),
        done => done.map_err(|e| Error::Netlink("remove an address", e)),
    }
}

async fn connected<T>(work: impl AsyncFnOnce(Handle) -> Result<T, Error>) -> Result<T, Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Open)?;
    let connection = tokio::spawn(connection);
    let done = tokio::time::timeout(TIMEOUT, work(handle)).await.unwrap_or(Err(Error::Timeout));
    connection.abort();
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Id, Service};

    #[test]
    fn a_node_answers_for_what_it_was_chosen_for() {
        let mut index = Index::default();
        let mut put = |name: &str, ip: &str, announcer: Option<&str>, proxied| {
            let id = Id { namespace: "default".into(), name: name.into() };
            let (ip, announcer) = (ip.parse().unwrap(), announcer.map(Into::into));
            index.put_service(id, Service { balancer_ips: [ip].into(), announcer, proxied, ..Service::default() });
        };
        put("mine", "192.0.2.1", Some("a"), true);
        put("others", "192.0.2.2", Some("b"), true);
        put("of-nodes", "192.0.2.3", None, true);
        put("other-proxy", "192.0.2.4", Some("a"), false);
        assert_eq!(wanted(&index, "a"), ["192.0.2.1".parse().unwrap()].into());
    }

    #[test]
    fn an_address_goes_to_its_segment() {
        let net = |index: u32, net: &str| (index, net.parse().unwrap());
        let others =
            vec![net(1, "127.0.0.1/8"), net(2, "192.0.2.7/24"), net(3, "198.51.100.7/24"), net(4, "198.51.100.9/28")];
        let present = Present { others, ..Present::default() };
        let at = |address: &str| present.interface("192.0.2.7".parse().unwrap(), address.parse().unwrap());
        assert_eq!([at("192.0.2.99"), at("198.51.100.99"), at("198.51.100.3")], [Some(2), Some(3), Some(4)]);
        // Of no segment: where the node's address is, if it is anywhere.
        assert_eq!(at("203.0.113.1"), Some(2));
        assert_eq!(present.interface("192.0.2.8".parse().unwrap(), "203.0.113.1".parse().unwrap()), None);
    }
}
