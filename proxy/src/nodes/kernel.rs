//! Routes, and the VXLAN device with its neighbours, through netlink.
//!
//! What is Skiff's is told by the routes' protocol number and the device's name; everything else is left alone. Each call
//! brings the kernel to the plan, whatever it held before: missing entries are added, others of ours removed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::{Handle, LinkUnspec, LinkVxlan, RouteMessageBuilder};

use super::plan::{Hop, mac, plan};
use super::{Frame, Peers};

/// The number by which our routes are known; not one of iproute2's list.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(83);
/// The VXLAN device.
const DEVICE: &str = "skiff.1";
/// The number of the virtual network, and the port it is spoken on.
const VNI: u32 = 1;
const PORT: u16 = 8472;
/// What VXLAN adds to a packet.
const OVERHEAD: u32 = 50;
/// An exchange with the kernel that takes longer hangs.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Why the kernel does not have the plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection to the kernel's routing.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] std::io::Error),
    /// The kernel refused.
    #[error("{0}: {1}")]
    Netlink(&'static str, #[source] rtnetlink::Error),
    /// The node's address is not one of this host's.
    #[error("no interface has the node's address {0}: set the right one with --node-ip")]
    NoInterface(Ipv4Addr),
    /// This node has no range yet, so no end of the tunnel.
    #[error("this node has no pod range yet")]
    NoRange,
    /// The device vanished while it was set up.
    #[error("the device {DEVICE} does not exist")]
    NoDevice,
    /// No answer in time.
    #[error("netlink did not answer in time")]
    Timeout,
}

type Result<T> = std::result::Result<T, Error>;

/// Names the step that failed.
trait Step<T> {
    fn step(self, name: &'static str) -> Result<T>;
}

impl<T> Step<T> for std::result::Result<T, rtnetlink::Error> {
    fn step(self, name: &'static str) -> Result<T> {
        self.map_err(|e| Error::Netlink(name, e))
    }
}

/// Brings the kernel to what `peers` ask for, and says what that is.
///
/// # Errors
/// When the kernel refuses; what was done stays, and another call goes on.
pub async fn apply(frame: &Frame, peers: &Peers) -> Result<BTreeSet<Hop>> {
    connected(async |handle| {
        let underlay = underlay(&handle, frame.address).await?;
        let plan = plan(frame, underlay.segment, peers);
        let far: Vec<&Hop> = plan.iter().filter(|h| h.tunnel).collect();
        let device = if far.is_empty() {
            remove_device(&handle).await?;
            0
        } else {
            let own = peers.get(&frame.node).ok_or(Error::NoRange)?.range;
            let index = ensure_device(&handle, &underlay, frame.address, own).await?;
            neighbours(&handle, index, &far).await?;
            index
        };
        routes(&handle, &plan, device).await?;
        Ok(plan)
    })
    .await
}

/// Removes all routes and the device.
///
/// # Errors
/// When the kernel refuses.
pub async fn cleanup() -> Result<()> {
    connected(async |handle| {
        routes(&handle, &BTreeSet::new(), 0).await?;
        remove_device(&handle).await
    })
    .await
}

async fn connected<T>(work: impl AsyncFnOnce(Handle) -> Result<T>) -> Result<T> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Open)?;
    let connection = tokio::spawn(connection);
    let done = tokio::time::timeout(TIMEOUT, work(handle)).await.unwrap_or(Err(Error::Timeout));
    connection.abort();
    done
}

/// The interface that the node's address is on.
struct Underlay {
    index: u32,
    segment: Ipv4Net,
    mtu: u32,
}

async fn underlay(handle: &Handle, address: Ipv4Addr) -> Result<Underlay> {
    let mut all = handle.address().get().execute();
    while let Some(found) = all.try_next().await.step("list addresses")? {
        let own = |a: &AddressAttribute| matches!(a, AddressAttribute::Local(IpAddr::V4(ip)) if *ip == address);
        if !found.attributes.iter().any(own) {
            continue;
        }
        let Ok(segment) = Ipv4Net::new(address, found.header.prefix_len) else { continue };
        let index = found.header.index;
        let link = handle.link().get().match_index(index).execute().try_next().await.step("read the interface")?;
        let mtu = link.iter().flat_map(|l| &l.attributes).find_map(|a| match a {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        return Ok(Underlay { index, segment: segment.trunc(), mtu: mtu.unwrap_or(1500) });
    }
    Err(Error::NoInterface(address))
}

async fn device(handle: &Handle) -> Result<Option<LinkMessage>> {
    match handle.link().get().match_name(DEVICE.to_owned()).execute().try_next().await {
        Ok(link) => Ok(link),
        // No such device.
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -19 => Ok(None),
        Err(e) => Err(Error::Netlink("look for the VXLAN device", e)),
    }
}

async fn remove_device(handle: &Handle) -> Result<()> {
    match device(handle).await? {
        Some(link) => handle.link().del(link.header.index).execute().await.step("remove the VXLAN device"),
        None => Ok(()),
    }
}

/// Whether the device is what it should be: changing one that exists is not possible for most of this.
fn as_wanted(link: &LinkMessage, underlay: &Underlay, address: Ipv4Addr, own: Ipv4Net) -> bool {
    let infos = link.attributes.iter().filter_map(|a| match a {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let has = |wanted: &InfoVxlan| {
        infos.clone().flatten().any(|i| matches!(i, LinkInfo::Data(InfoData::Vxlan(v)) if v.contains(wanted)))
    };
    [InfoVxlan::Id(VNI), InfoVxlan::Port(PORT), InfoVxlan::Local(address), InfoVxlan::Link(underlay.index)]
        .iter()
        .all(has)
        && link.attributes.contains(&LinkAttribute::Address(mac(own).to_vec()))
}

async fn ensure_device(handle: &Handle, underlay: &Underlay, address: Ipv4Addr, own: Ipv4Net) -> Result<u32> {
    let mtu = underlay.mtu.saturating_sub(OVERHEAD);
    let present = device(handle).await?.filter(|l| as_wanted(l, underlay, address, own));
    if present.is_none() {
        remove_device(handle).await?;
        let link = LinkVxlan::new(DEVICE, VNI)
            .dev(underlay.index)
            .local(address)
            .port(PORT)
            .learning(false)
            .address(mac(own).to_vec())
            .build();
        handle.link().add(link).execute().await.step("make the VXLAN device")?;
    }
    let index = device(handle).await?.ok_or(Error::NoDevice)?.header.index;
    let up = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
    handle.link().set(up).execute().await.step("bring the VXLAN device up")?;
    let add = handle.address().add(index, IpAddr::V4(own.network()), 32).replace();
    add.execute().await.step("give the VXLAN device its address")?;
    Ok(index)
}

/// What a neighbour entry says: of the device's far ends, which address has which MAC, or which MAC is at which node.
fn entry(message: &NeighbourMessage) -> Option<(Vec<u8>, Ipv4Addr)> {
    let mut mac = None;
    let mut address = None;
    for a in &message.attributes {
        match a {
            NeighbourAttribute::LinkLayerAddress(m) => mac = Some(m.clone()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(*ip),
            // Of a bridge's entries the kind of address is not told.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                address = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from);
            }
            _ => {}
        }
    }
    Some((mac?, address?))
}

async fn neighbours(handle: &Handle, index: u32, hops: &[&Hop]) -> Result<()> {
    // First where a MAC is, then who has it: a packet in between would be lost otherwise.
    for family in [AddressFamily::Bridge, AddressFamily::Inet] {
        let of_bridge = family == AddressFamily::Bridge;
        let wanted: BTreeSet<(Vec<u8>, Ipv4Addr)> =
            hops.iter().map(|h| (h.mac().to_vec(), if of_bridge { h.node } else { h.end() })).collect();
        let mut held = BTreeSet::new();
        let mut stale = Vec::new();
        let mut all = handle.neighbours().get().set_address_family(family).execute();
        while let Some(found) = all.try_next().await.step("list neighbours")? {
            if found.header.ifindex != index {
                continue;
            }
            match entry(&found) {
                Some(e) if wanted.contains(&e) => drop(held.insert(e)),
                Some(_) => stale.push(found),
                None => {}
            }
        }
        drop(all);
        for message in stale {
            handle.neighbours().del(message).execute().await.step("remove a neighbour")?;
        }
        for (mac, address) in wanted.difference(&held) {
            let add = if of_bridge {
                let add = handle.neighbours().add_bridge(index, mac).destination(IpAddr::V4(*address));
                add.flags(NeighbourFlags::Own)
            } else {
                handle.neighbours().add(index, IpAddr::V4(*address)).link_layer_address(mac)
            };
            add.state(NeighbourState::Permanent).replace().execute().await.step("add a neighbour")?;
        }
    }
    Ok(())
}

/// A route of ours: the range, the gateway, the device.
fn route_of(message: &RouteMessage) -> Option<(Ipv4Net, (Ipv4Addr, u32))> {
    let (mut to, mut via, mut device) = (None, None, None);
    for a in &message.attributes {
        match a {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = Some(*ip),
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => via = Some(*ip),
            RouteAttribute::Oif(index) => device = Some(*index),
            _ => {}
        }
    }
    let range = Ipv4Net::new(to?, message.header.destination_prefix_length).ok()?;
    Some((range, (via?, device?)))
}

async fn routes(handle: &Handle, plan: &BTreeSet<Hop>, device: u32) -> Result<()> {
    let mut held = BTreeMap::new();
    let mut stale = Vec::new();
    let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let mut all = handle.route().get(all).execute();
    while let Some(found) = all.try_next().await.step("list routes")? {
        if found.header.protocol != PROTOCOL {
            continue;
        }
        match route_of(&found) {
            Some((range, way)) if plan.iter().any(|h| h.range == range) => drop(held.insert(range, way)),
            _ => stale.push(found),
        }
    }
    drop(all);
    for message in stale {
        handle.route().del(message).execute().await.step("remove a route")?;
    }
    for hop in plan {
        let via = if hop.tunnel { hop.end() } else { hop.node };
        let same =
            held.get(&hop.range).is_some_and(|(gateway, index)| *gateway == via && (*index == device) == hop.tunnel);
        if same {
            continue;
        }
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(hop.range.network(), hop.range.prefix_len())
            .gateway(via)
            .protocol(PROTOCOL);
        let route = if hop.tunnel { route.output_interface(device).onlink() } else { route };
        handle.route().add(route.build()).replace().execute().await.step("add a route")?;
    }
    Ok(())
}
