//! Which way packets for each node's pods take. No I/O.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;

use super::{Frame, Peers, internal_ip};

/// How packets travel between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Plain routes to nodes of the same segment, VXLAN to others.
    #[default]
    Auto,
    /// Plain routes alone: for networks whose routers know the way.
    HostGw,
    /// VXLAN always: for segments that drop packets with foreign addresses.
    Vxlan,
    /// Nothing: CNI plugins see to it.
    Off,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "host-gw" => Ok(Self::HostGw),
            "vxlan" => Ok(Self::Vxlan),
            "none" => Ok(Self::Off),
            other => Err(format!("{other:?} is no pod network: choose auto, host-gw, vxlan or none")),
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::HostGw => "host-gw",
            Self::Vxlan => "vxlan",
            Self::Off => "none",
        })
    }
}

/// What is kept of a Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub address: Ipv4Addr,
    /// Range of its pods.
    pub range: Ipv4Net,
}

impl Peer {
    /// Reads a Node; none while it lacks range or address.
    #[must_use]
    pub fn parse(node: &Node) -> Option<Self> {
        let range: Ipv4Net = node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()?;
        Some(Self { address: internal_ip(node)?, range: range.trunc() })
    }
}

/// The way to one node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    /// Range of the pods.
    pub range: Ipv4Net,
    /// The node.
    pub node: Ipv4Addr,
    /// Whether packets are wrapped in VXLAN.
    pub tunnel: bool,
}

impl Hop {
    /// Address of the node's end of the tunnel.
    #[must_use]
    pub fn end(&self) -> Ipv4Addr {
        self.range.network()
    }

    /// MAC address of the node's end of the tunnel.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        mac(self.range)
    }
}

/// MAC address of the tunnel's end at the node with this range: locally administered, unique as the range is.
#[must_use]
pub fn mac(range: Ipv4Net) -> [u8; 6] {
    let [a, b, c, d] = range.network().octets();
    [0x0a, 0x58, a, b, c, d]
}

/// The ways to all other nodes. `segment` is the network that this node's address is in.
#[must_use]
pub fn plan(frame: &Frame, segment: Ipv4Net, peers: &Peers) -> BTreeSet<Hop> {
    let own = peers.get(&frame.node).map(|p| p.range);
    let overlap = |a: &Ipv4Net, b: &Ipv4Net| a.contains(b) || b.contains(a);
    let mut hops: BTreeSet<Hop> = BTreeSet::new();
    if frame.mode == Mode::Off {
        return hops;
    }
    // In the order of names, so that of two nodes that claim one range all nodes choose the same.
    for (name, peer) in peers {
        let strange = !frame.cluster.contains(&peer.range)
            || own.is_some_and(|own| overlap(&own, &peer.range))
            || peer.address == frame.address
            || hops.iter().any(|h| overlap(&h.range, &peer.range));
        if *name == frame.node || strange {
            continue;
        }
        let near = segment.contains(&peer.address);
        let tunnel = match frame.mode {
            Mode::Auto => !near,
            Mode::HostGw | Mode::Off => false,
            Mode::Vxlan => true,
        };
        hops.insert(Hop { range: peer.range, node: peer.address, tunnel });
    }
    hops
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn near_nodes_get_routes_and_far_ones_tunnels() {
        let peer =
            |address: &str, range: &str| Peer { address: address.parse().unwrap(), range: range.parse().unwrap() };
        let peers: Peers = [
            ("a", peer("192.0.2.1", "10.244.0.0/24")),
            ("near", peer("192.0.2.2", "10.244.1.0/24")),
            ("far", peer("198.51.100.1", "10.244.2.0/24")),
            // Claims what is not its own: the range of "far", this node's, all addresses, this node's own address.
            ("thief1", peer("192.0.2.3", "10.244.2.128/25")),
            ("thief2", peer("192.0.2.4", "10.244.0.0/16")),
            ("thief3", peer("192.0.2.5", "0.0.0.0/0")),
            ("thief4", peer("192.0.2.1", "10.244.7.0/24")),
        ]
        .map(|(n, p)| (n.to_owned(), p))
        .into();
        let got = |mode: &str| {
            let frame = Frame {
                node: "a".into(),
                address: "192.0.2.1".parse().unwrap(),
                cluster: "10.244.0.0/16".parse().unwrap(),
                mode: mode.parse().unwrap(),
            };
            let hops = plan(&frame, "192.0.2.0/24".parse().unwrap(), &peers);
            hops.into_iter().map(|h| (h.range.to_string(), h.node.to_string(), h.tunnel)).collect::<Vec<_>>()
        };
        let ways = |near: bool, far: bool| {
            vec![
                ("10.244.1.0/24".to_owned(), "192.0.2.2".to_owned(), near),
                ("10.244.2.0/24".to_owned(), "198.51.100.1".to_owned(), far),
            ]
        };
        assert_eq!(got("auto"), ways(false, true));
        assert_eq!(got("host-gw"), ways(false, false));
        assert_eq!(got("vxlan"), ways(true, true));
        assert_eq!(got("none"), []);
        assert!("flannel".parse::<Mode>().is_err());
    }

    #[test]
    fn nodes_without_range_or_address_are_no_peers() {
        let node = |spec, addresses| -> Node {
            serde_json::from_value(json!({"spec": spec, "status": {"addresses": addresses}})).unwrap()
        };
        let addresses = json!([{"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "2001:db8::1"},
            {"type": "InternalIP", "address": "192.0.2.1"}]);
        let peer = Peer::parse(&node(json!({"podCIDR": "10.244.3.0/24"}), addresses.clone())).unwrap();
        assert_eq!((peer.address.to_string(), peer.range.to_string()), ("192.0.2.1".into(), "10.244.3.0/24".into()));
        assert_eq!(Peer::parse(&node(json!({}), addresses)), None);
        assert_eq!(Peer::parse(&node(json!({"podCIDR": "10.244.3.0/24"}), json!([]))), None);
    }
}
