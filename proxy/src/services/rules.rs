//! The nftables table, as text: the whole of it, and the difference between two states of it.
//!
//! # Design
//! Everything that grows with the number of Services is an element of a map; the number of rules depends only on how
//! many different numbers of endpoints there are. A packet costs two look-ups: the frontend's key gives a chain, one
//! per number of endpoints, and that chain draws a number and looks up (number, key) in the map of endpoints. A chain
//! per Service and one per endpoint, the obvious design, takes a hundred times as long to load at ten thousand
//! Services, because the kernel checks every jump of every chain.
//!
//! Session affinity cannot be written at the moment of choice (nft takes no look-up as the data of an update), so it is
//! noted after the address was rewritten, in `remember`, from what connection tracking knows of both addresses.
//!
//! There is a map of endpoints, and a chain, for each protocol, because of nft 1.0.6: only `typeof` can describe a key
//! with a drawn number, and once such a map is in the kernel, a further rule with it fails if the map's data is
//! `th dport`, and matches TCP alone if that is `tcp dport`.
//!
//! # Limits
//! IPv4. Chains stay when the last Service with that number of endpoints is gone; the next full load drops them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;

use super::elements::{Difference, Element, Part, Value};
use super::frontends::{Action, Frontend, Key, Scope};
use crate::model::Protocol;

/// Set on packets that leave with this node's address.
const MASQUERADE: &str = "0x4000";
/// Clients remembered at a time, over all Services with affinity.
const REMEMBERED: u32 = 131_072;
/// Elements in one statement: a very long one costs nft more than several.
const BATCH: usize = 2_000;

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// What the table is made for. Does not change while the process runs.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Name of the table.
    pub table: String,
    /// Range of pod addresses.
    pub pods: Ipv4Net,
    /// The configured range of virtual addresses. There may be more: see [`Rules::ranges`].
    pub services: Ipv4Net,
    /// Address of the name server.
    pub resolver: IpAddr,
}

/// A state of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The frontends.
    pub frontends: BTreeMap<Key, Frontend>,
    /// Endpoints on this node, each with the number of Services that have it.
    pub hairpins: BTreeMap<Ipv4Addr, u32>,
    /// Ranges of virtual addresses, no two of which overlap.
    pub ranges: BTreeSet<Ipv4Net>,
}

/// A change of one frontend, hairpin or range; `None` means there is none.
#[derive(Clone, Debug)]
pub enum Change {
    /// A frontend before and after.
    Frontend(Key, Option<Frontend>, Option<Frontend>),
    /// An address that is now in (true) or out.
    Hairpin(Ipv4Addr, bool),
    /// A range of virtual addresses that is now in (true) or out.
    Range(Ipv4Net, bool),
}

/// A chain that spreads connections over a number of endpoints, or remembers clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    /// Spreads connections.
    Spread {
        /// For which traffic.
        scope: Scope,
        /// Of which protocol.
        protocol: Protocol,
        /// Over how many endpoints.
        count: usize,
        /// Whether clients come back to their endpoint.
        sticky: bool,
        /// Whether the packets leave with this node's address.
        masquerade: bool,
    },
    /// Remembers the client's endpoint for that many seconds.
    Remember(u32),
}

/// The script that replaces the table, whatever it was, with `rules`; and the chains it has.
pub fn replace(frame: &Frame, rules: &Rules) -> (String, BTreeSet<Chain>) {
    let Frame { table, pods, resolver, .. } = frame;
    let mut endpoints = String::new();
    for scope in [Scope::Vip, Scope::VipExternal, Scope::Node, Scope::NodeExternal] {
        for protocol in PROTOCOLS {
            let (map, selector, protocol) =
                (names(scope, protocol).endpoints, selector(scope, protocol), protocol.name());
            let key = format!("numgen random mod 1 . {selector}");
            let _ = writeln!(endpoints, "  map {map} {{ typeof {key} : ip daddr . {protocol} dport; }}");
        }
    }
    let mut script = format!(
        "add table ip {table}
delete table ip {table}
table ip {table} {{
  map vips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map vips_external {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map nodes {{ type inet_proto . inet_service : verdict; }}
  map nodes_external {{ type inet_proto . inet_service : verdict; }}
  map affinity {{
    type ipv4_addr . ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service;
    size {REMEMBERED}
    flags dynamic,timeout
  }}
  map sticky {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map sticky_nodes {{ type inet_proto . inet_service : verdict; }}
  set refused {{ type ipv4_addr . inet_proto . inet_service; }}
  set filtered {{ type ipv4_addr . inet_proto . inet_service; }}
  set sources {{ type ipv4_addr . inet_proto . inet_service . ipv4_addr; flags interval; }}
  set hairpins {{ type ipv4_addr . ipv4_addr; }}
  set ranges {{ type ipv4_addr; flags interval; }}
{endpoints}  chain services {{
    ip daddr . meta l4proto . th dport vmap @vips
    fib daddr type local meta l4proto . th dport vmap @nodes
  }}
  chain external {{
    ip daddr . meta l4proto . th dport vmap @vips_external
    fib daddr type local meta l4proto . th dport vmap @nodes_external
  }}
  chain refuse {{
    ip daddr . meta l4proto . th dport @refused reject
    ip daddr @ranges ip daddr != {resolver} reject
  }}
  chain notice {{
"
    );
    for protocol in PROTOCOLS.map(Protocol::name) {
        let original = "ct original proto-dst";
        let _ = writeln!(
            script,
            "    meta l4proto {protocol} ct original ip daddr . meta l4proto . {original} vmap @sticky\n    \
             meta l4proto {protocol} meta l4proto . {original} vmap @sticky_nodes"
        );
    }
    let _ = write!(
        script,
        "  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr . meta l4proto . th dport @filtered ip daddr . meta l4proto . th dport . ip saddr != @sources drop
    ip daddr @ranges ip saddr != {pods} meta mark set meta mark or {MASQUERADE}
    ip saddr != {pods} jump external
    jump services
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    ip daddr @ranges ip saddr != {pods} meta mark set meta mark or {MASQUERADE}
    jump services
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"lo\" return
    meta mark and {MASQUERADE} == {MASQUERADE} meta mark set meta mark xor {MASQUERADE} masquerade fully-random
    ct status dnat ip saddr . ip daddr @hairpins masquerade fully-random
    ct status dnat ip saddr 127.0.0.0/8 masquerade fully-random
  }}
  chain remember {{
    type filter hook postrouting priority 99; policy accept;
    ct state new ct status dnat jump notice
  }}
  chain remember_local {{
    type filter hook input priority 0; policy accept;
    ct state new ct status dnat jump notice
  }}
  chain refuse_forward {{
    type filter hook forward priority 0; policy accept;
    ct state new jump refuse
  }}
  chain refuse_output {{
    type filter hook output priority 0; policy accept;
    ct state new jump refuse
  }}
}}
"
    );
    let changes = rules.frontends.iter().map(|(key, f)| Change::Frontend(*key, None, Some(f.clone())));
    let hairpins = rules.hairpins.keys().map(|ip| Change::Hairpin(*ip, true));
    let ranges = rules.ranges.iter().map(|range| Change::Range(*range, true));
    let mut chains = BTreeSet::new();
    let (text, difference) = update(frame, changes.chain(hairpins).chain(ranges), &mut chains);
    script += &text;
    script += &self::script(frame, &difference);
    (script, chains)
}

/// What makes `changes`, and no more: a script for new chains, and the elements. The script comes first; chains that
/// nothing uses yet change nothing. Adds the new chains to `chains`.
pub fn update(
    frame: &Frame,
    changes: impl Iterator<Item = Change>,
    chains: &mut BTreeSet<Chain>,
) -> (String, Difference) {
    let mut script = String::new();
    let mut difference = Difference::default();
    for change in changes {
        match change {
            Change::Hairpin(ip, comes) => {
                let key = vec![Part::Address(ip); 2];
                difference.push(comes, Element { map: "hairpins", key, value: Value::None });
            }
            Change::Range(range, comes) => {
                difference.push(comes, Element { map: "ranges", key: vec![Part::Range(range)], value: Value::None });
            }
            Change::Frontend(key, old, new) => {
                for chain in new.iter().flat_map(|f| needed(key, f)) {
                    if chains.insert(chain) {
                        chain_text(&mut script, &frame.table, chain);
                    }
                }
                let old = old.map(|f| elements(key, &f)).unwrap_or_default();
                let new = new.map(|f| elements(key, &f)).unwrap_or_default();
                for element in old.difference(&new) {
                    difference.push(false, element.clone());
                }
                for element in new.difference(&old) {
                    difference.push(true, element.clone());
                }
            }
        }
    }
    (script, difference)
}

/// The elements' changes as a script.
pub fn script(frame: &Frame, difference: &Difference) -> String {
    let mut script = String::new();
    // All that goes, before all that comes: a new frontend may have the key of an old one.
    for (verb, maps) in [("delete", &difference.gone), ("add", &difference.come)] {
        for (map, elements) in maps {
            for part in elements.chunks(BATCH) {
                let part: Vec<String> = part.iter().map(Element::to_string).collect();
                let _ = writeln!(script, "{verb} element ip {} {map} {{ {} }}", frame.table, part.join(", "));
            }
        }
    }
    script
}

fn needed(key: Key, frontend: &Frontend) -> Vec<Chain> {
    let Action::Balance { endpoints, affinity, masquerade } = &frontend.action else { return Vec::new() };
    let Key { scope, protocol, .. } = key;
    let (count, sticky, masquerade) = (endpoints.len(), affinity.is_some(), *masquerade);
    let spread = Chain::Spread { scope, protocol, count, sticky, masquerade };
    std::iter::once(spread).chain(affinity.map(Chain::Remember)).collect()
}

fn chain_name(chain: Chain) -> String {
    match chain {
        Chain::Remember(seconds) => format!("remember-{seconds}"),
        Chain::Spread { scope, protocol, count, sticky, masquerade } => {
            let sticky = if sticky { "-sticky" } else { "" };
            let masquerade = if masquerade { "-masquerade" } else { "" };
            format!("{}-{count}{sticky}{masquerade}", names(scope, protocol).endpoints)
        }
    }
}

fn chain_text(script: &mut String, table: &str, chain: Chain) {
    let name = chain_name(chain);
    let _ = writeln!(script, "add chain ip {table} {name}");
    let mut rule = |text: String| {
        let _ = writeln!(script, "add rule ip {table} {name} {text}");
    };
    match chain {
        Chain::Remember(seconds) => {
            for protocol in PROTOCOLS.map(Protocol::name) {
                rule(format!(
                    "meta l4proto {protocol} update @affinity {{ ip saddr . ct original ip daddr . meta l4proto . \
                     ct original proto-dst timeout {seconds}s : ip daddr . {protocol} dport }}"
                ));
            }
        }
        Chain::Spread { scope, protocol, count, sticky, masquerade } => {
            if masquerade {
                // The connection's mark lets its packets through the engine's forward chain, both ways.
                rule(format!("meta mark set meta mark or {MASQUERADE} ct mark set ct mark or {MASQUERADE}"));
            }
            if sticky {
                rule(format!(
                    "dnat ip to ip saddr . ip daddr . meta l4proto . {} dport map @affinity",
                    protocol.name()
                ));
            }
            let (map, selector) = (names(scope, protocol).endpoints, selector(scope, protocol));
            rule(format!("dnat ip to numgen random mod {count} . {selector} map @{map}"));
        }
    }
}

struct Names {
    /// From the frontend's key to what becomes of it.
    frontends: &'static str,
    /// From the drawn number and the frontend's key to an endpoint.
    endpoints: &'static str,
    /// From the frontend's key to the time its clients are remembered.
    sticky: Option<&'static str>,
}

fn names(scope: Scope, protocol: Protocol) -> Names {
    let (frontends, endpoints, sticky) = match scope {
        Scope::Vip => ("vips", ["vip_tcp", "vip_udp", "vip_sctp"], Some("sticky")),
        // Where a frontend for outside clients has endpoints, the one for everybody has them too, and is sticky.
        Scope::VipExternal => ("vips_external", ["vip_external_tcp", "vip_external_udp", "vip_external_sctp"], None),
        Scope::Node => ("nodes", ["node_tcp", "node_udp", "node_sctp"], Some("sticky_nodes")),
        Scope::NodeExternal => {
            ("nodes_external", ["node_external_tcp", "node_external_udp", "node_external_sctp"], None)
        }
    };
    Names { frontends, endpoints: endpoints[protocol as usize], sticky }
}

/// What a packet is looked up by in a map of endpoints, besides the drawn number.
fn selector(scope: Scope, protocol: Protocol) -> String {
    match scope {
        Scope::Vip | Scope::VipExternal => format!("ip daddr . {} dport", protocol.name()),
        Scope::Node | Scope::NodeExternal => format!("{} dport", protocol.name()),
    }
}

/// The elements that stand for one frontend.
fn elements(key: Key, frontend: &Frontend) -> BTreeSet<Element> {
    let mut made = BTreeSet::new();
    let names = names(key.scope, key.protocol);
    let on_node = matches!(key.scope, Scope::Node | Scope::NodeExternal);
    let address = (!on_node).then_some(Part::Address(key.address));
    let full: Vec<Part> = address.into_iter().chain([Part::Protocol(key.protocol), Part::Port(key.port)]).collect();
    match &frontend.action {
        Action::Balance { endpoints, .. } => {
            for chain in needed(key, frontend) {
                let map = match chain {
                    Chain::Spread { .. } => Some(names.frontends),
                    Chain::Remember(_) => names.sticky,
                };
                let value = || Value::Goto(chain_name(chain));
                made.extend(map.map(|map| Element { map, key: full.clone(), value: value() }));
            }
            for (slot, endpoint) in (0..).zip(endpoints) {
                let key = [Part::Slot(slot)].into_iter().chain(address).chain([Part::Port(key.port)]).collect();
                made.insert(Element { map: names.endpoints, key, value: Value::Endpoint(*endpoint) });
            }
        }
        Action::Drop => {
            made.insert(Element { map: names.frontends, key: full.clone(), value: Value::Drop });
        }
        // A port of this node needs no rule: the node refuses by itself what nobody listens on. And where outside
        // clients are refused, everybody is, by the element of the frontend for everybody.
        Action::Refuse if key.scope == Scope::Vip => {
            made.insert(Element { map: "refused", key: full.clone(), value: Value::None });
        }
        Action::Refuse => {}
    }
    if key.scope == Scope::Vip && !frontend.sources.is_empty() {
        made.insert(Element { map: "filtered", key: full.clone(), value: Value::None });
        // Overlapping ranges of one frontend would be an error to nft.
        for range in Ipv4Net::aggregate(&frontend.sources.to_vec()) {
            let key = full.iter().copied().chain([Part::Range(range)]).collect();
            made.insert(Element { map: "sources", key, value: Value::None });
        }
    }
    made
}
