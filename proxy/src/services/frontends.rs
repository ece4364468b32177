//! From one Service and its endpoints to frontends: what arrives where, and what becomes of it.
//!
//! Pure: all the rules about policies, readiness and draining are here, and none about nftables.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

use crate::index::Entry;
use crate::model::{Endpoint, Port, Protocol, Service};

/// Which traffic a frontend is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// To an address of the Service, from anywhere.
    Vip,
    /// To an address of the Service from outside the cluster, where that differs.
    VipExternal,
    /// To a port of this node, from anywhere.
    Node,
    /// To a port of this node from outside the cluster, where that differs.
    NodeExternal,
}

/// What traffic is recognised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The kind of traffic.
    pub scope: Scope,
    /// The address it goes to; unspecified where every local address counts.
    pub address: Ipv4Addr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port it goes to.
    pub port: u16,
}

/// What becomes of the traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes to one of the endpoints, which are never none.
    Balance {
        /// The endpoints, in order.
        endpoints: Box<[SocketAddrV4]>,
        /// Seconds a client stays with its endpoint.
        affinity: Option<u32>,
        /// Whether the endpoint sees this node as the client, so that answers come back here.
        masquerade: bool,
    },
    /// It vanishes: a policy keeps it on this node, and another node has the endpoints.
    Drop,
    /// The client is told at once that nobody answers.
    Refuse,
}

/// One frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// What becomes of the traffic.
    pub action: Action,
    /// Who may use it; everyone when empty.
    pub sources: Box<[Ipv4Net]>,
}

/// All frontends of one Service. `resolver` is the address of the cluster's name server, which is no frontend: its
/// traffic reaches the local listener as it is.
pub fn frontends(entry: &Entry, resolver: IpAddr) -> Vec<(Key, Frontend)> {
    let mut made = Vec::new();
    let Some(service) = entry.service() else { return made };
    if !service.proxied || service.headless || service.external_name.is_some() {
        return made;
    }
    for port in &service.ports {
        let pool = Pool::of(entry, port);
        let internal = if service.internal_local { pool.local() } else { pool.all() };
        let everywhere = pool.all();
        let at = |scope, address| Key { scope, address, protocol: port.protocol, port: port.port };
        for address in v4(&service.cluster_ips).filter(|ip| IpAddr::V4(*ip) != resolver) {
            let action = balance(service, &internal, &pool, false, service.internal_local);
            made.push((at(Scope::Vip, address), Frontend { action, sources: Box::default() }));
        }
        let outside = service.external_ips.iter().map(|ip| (*ip, false));
        let balancers = service.balancer_ips.iter().map(|ip| (*ip, true));
        for (address, filtered) in outside.chain(balancers) {
            let sources = if filtered { service.source_ranges.clone() } else { Box::default() };
            let action = balance(service, &everywhere, &pool, !service.external_local, false);
            made.push((at(Scope::Vip, address), Frontend { action, sources: sources.clone() }));
            if service.external_local {
                let action = balance(service, &pool.local(), &pool, false, true);
                made.push((at(Scope::VipExternal, address), Frontend { action, sources }));
            }
        }
        if let Some(node_port) = port.node_port {
            let at = |scope| Key { scope, address: Ipv4Addr::UNSPECIFIED, protocol: port.protocol, port: node_port };
            let action = balance(service, &everywhere, &pool, !service.external_local, false);
            made.push((at(Scope::Node), Frontend { action, sources: Box::default() }));
            if service.external_local {
                let action = balance(service, &pool.local(), &pool, false, true);
                made.push((at(Scope::NodeExternal), Frontend { action, sources: Box::default() }));
            }
        }
    }
    made
}

/// Addresses of endpoints on this node, for which a connection to the own Service must look like one from outside.
pub fn hairpins(entry: &Entry, pods: Ipv4Net) -> impl Iterator<Item = Ipv4Addr> {
    let proxied = entry.service().is_some_and(|s| s.proxied && !s.headless);
    entry.endpoints().filter(move |_| proxied).filter_map(move |endpoint| match endpoint.address {
        IpAddr::V4(ip) if endpoint.local.unwrap_or_else(|| pods.contains(&ip)) => Some(ip),
        _ => None,
    })
}

/// How many endpoints on this node are ready, over all ports. What a health check of a load balancer asks for: a node whose
/// endpoints all terminate is to be left, though they still answer.
pub fn local_endpoints(entry: &Entry) -> usize {
    let ports = entry.service().map(|s| &s.ports[..]).unwrap_or_default();
    ports.iter().map(|port| Pool::of(entry, port).ready_here()).max().unwrap_or(0)
}

fn v4(addresses: &[IpAddr]) -> impl Iterator<Item = Ipv4Addr> {
    addresses.iter().filter_map(|ip| match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    })
}

fn balance(
    service: &Service,
    endpoints: &BTreeSet<SocketAddrV4>,
    pool: &Pool<'_>,
    masquerade: bool,
    kept_local: bool,
) -> Action {
    if !endpoints.is_empty() {
        let endpoints = endpoints.iter().copied().collect();
        return Action::Balance { endpoints, affinity: service.affinity, masquerade };
    }
    if kept_local && !pool.all().is_empty() { Action::Drop } else { Action::Refuse }
}

/// The endpoints behind one port.
struct Pool<'a> {
    members: Vec<(SocketAddrV4, &'a Endpoint)>,
}

impl<'a> Pool<'a> {
    fn of(entry: &'a Entry, port: &Port) -> Self {
        let mut members = Vec::new();
        for slice in entry.slices().filter(|slice| slice.proxied) {
            let wanted = slice.ports.iter().find(|p| p.name == port.name && p.protocol == port.protocol);
            let Some(target) = wanted else { continue };
            members.extend(slice.endpoints.iter().filter_map(|endpoint| match endpoint.address {
                IpAddr::V4(ip) => Some((SocketAddrV4::new(ip, target.port), endpoint)),
                IpAddr::V6(_) => None,
            }));
        }
        Self { members }
    }

    /// Endpoints on any node.
    fn all(&self) -> BTreeSet<SocketAddrV4> {
        self.usable(|_| true)
    }

    /// Endpoints on this node.
    fn local(&self) -> BTreeSet<SocketAddrV4> {
        self.usable(|endpoint| endpoint.local == Some(true))
    }

    fn ready_here(&self) -> usize {
        self.pick(|e| e.ready && e.local == Some(true)).len()
    }

    fn pick(&self, wanted: impl Fn(&Endpoint) -> bool) -> BTreeSet<SocketAddrV4> {
        self.members.iter().filter(|(_, e)| wanted(e)).map(|(address, _)| *address).collect()
    }

    /// The ready ones; when there are none, those that still answer while they terminate.
    fn usable(&self, wanted: impl Fn(&Endpoint) -> bool) -> BTreeSet<SocketAddrV4> {
        let ready = self.pick(|e| wanted(e) && e.ready);
        if ready.is_empty() { self.pick(|e| wanted(e) && e.draining) } else { ready }
    }
}
