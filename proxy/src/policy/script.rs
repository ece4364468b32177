//! The rules as nftables text: the whole table, or the difference between two states of it.
//!
//! A packet of a connection that is known passes at once; one of a new connection costs a look-up of its source and
//! one of its destination, whatever the number of pods, and then the rules of the policies that hold for the two. The
//! table looks at what is forwarded (also from port to port of the bridge: the agent has the kernel pass that through
//! the packet filter), after Services have become endpoints and before any address of a sender is hidden. Of what
//! pods send to their own node only questions to the name server are judged; what the node itself sends is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write};
use std::net::Ipv4Addr;

use super::compile::{Allow, Direction, Peers, Ports, Table};

/// Elements in one statement: a very long one costs nft more than several.
const BATCH: usize = 2_000;

/// The script that replaces the table, whatever it was.
pub fn replace(name: &str, resolver: Option<Ipv4Addr>, table: &Table) -> String {
    let names = resolver.map_or(String::new(), |resolver| {
        format!(
            "  chain input {{
    type filter hook input priority filter; policy accept;
    ip daddr != {resolver} accept
    ct state established,related accept
    ip saddr vmap @egress
  }}
"
        )
    });
    format!(
        "add table ip {name}
delete table ip {name}
table ip {name} {{
  map ingress {{ type ipv4_addr : verdict; }}
  map egress {{ type ipv4_addr : verdict; }}
  set selves {{ type ipv4_addr . ipv4_addr; }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    ct state established,related accept
    ip saddr . ip daddr @selves accept
    ip saddr vmap @egress
    ip daddr vmap @ingress
  }}
{names}}}
{}",
        update(name, &Table::default(), table).0
    )
}

/// What to load for `new` to follow `old`, and what then to load to clear away what nothing refers to any more.
///
/// Two scripts, because a kernel may count a map's reference to a chain until the transaction has ended.
pub fn update(name: &str, old: &Table, new: &Table) -> (String, String) {
    let (mut load, mut clear) = (String::new(), String::new());
    for (set, kind) in added(&old.peers, &new.peers, "ipv4_addr").chain(added(
        &old.ports,
        &new.ports,
        "ipv4_addr . inet_proto . inet_service",
    )) {
        let _ = writeln!(load, "add set ip {name} {set} {{ type {kind}; }}");
    }
    let mut write = Elements { table: name, script: &mut load };
    for (set, to) in &new.peers {
        write.difference(set, old.peers.get(set), to, |address| address.to_string());
    }
    for (set, to) in &new.ports {
        let text = |(address, protocol, port): &(_, crate::model::Protocol, _)| {
            format!("{address} . {} . {port}", protocol.name())
        };
        write.difference(set, old.ports.get(set), to, text);
    }
    write.difference("selves", Some(&old.selves()), &new.selves(), |address| format!("{address} . {address}"));
    for (chain, (direction, allowed)) in new.chains.iter().filter(|(chain, _)| !old.chains.contains_key(*chain)) {
        let _ = writeln!(load, "add chain ip {name} {chain}");
        for allow in allowed {
            let _ = writeln!(load, "add rule ip {name} {chain} {}", rule(*direction, allow));
        }
        let _ = writeln!(load, "add rule ip {name} {chain} drop");
    }
    let mut write = Elements { table: name, script: &mut load };
    for (map, verb, old, new) in
        [("ingress", "goto", &old.ingress, &new.ingress), ("egress", "jump", &old.egress, &new.egress)]
    {
        let [old, new] = [old, new].map(|map| map.iter().collect::<BTreeSet<_>>());
        write.difference(map, Some(&old), &new, |(address, chain)| format!("{address} : {verb} {chain}"));
    }
    for chain in old.chains.keys().filter(|chain| !new.chains.contains_key(*chain)) {
        let _ = writeln!(clear, "delete chain ip {name} {chain}");
    }
    let gone = |set: &&String| !new.peers.contains_key(*set) && !new.ports.contains_key(*set);
    for set in old.peers.keys().chain(old.ports.keys()).filter(gone) {
        let _ = writeln!(clear, "delete set ip {name} {set}");
    }
    (load, clear)
}

fn added<'a, T>(
    old: &'a BTreeMap<String, T>,
    new: &'a BTreeMap<String, T>,
    kind: &'static str,
) -> impl Iterator<Item = (&'a String, &'static str)> {
    new.keys().filter(|name| !old.contains_key(*name)).map(move |name| (name, kind))
}

struct Elements<'a> {
    table: &'a str,
    script: &'a mut String,
}

impl Elements<'_> {
    /// Writes what has to go from a set or map, and what has to come.
    fn difference<T: Ord>(
        &mut self,
        set: &str,
        old: Option<&BTreeSet<T>>,
        new: &BTreeSet<T>,
        text: impl Fn(&T) -> String,
    ) {
        let none = BTreeSet::new();
        let old = old.unwrap_or(&none);
        self.list("delete", set, old.difference(new).map(&text).collect());
        self.list("add", set, new.difference(old).map(&text).collect());
    }

    fn list(&mut self, verb: &str, set: &str, elements: Vec<String>) {
        for part in elements.chunks(BATCH) {
            let _ = writeln!(self.script, "{verb} element ip {} {set} {{ {} }}", self.table, part.join(", "));
        }
    }
}

/// One rule. In a chain for egress what is allowed goes on to be judged by who receives it.
fn rule(direction: Direction, allow: &Allow) -> String {
    let (peer, verdict) = match direction {
        Direction::Ingress => ("ip saddr", "accept"),
        Direction::Egress => ("ip daddr", "return"),
    };
    let mut text = String::new();
    match &allow.peers {
        Peers::Any => {}
        Peers::Set(set) => {
            let _ = write!(text, "{peer} @{set} ");
        }
        Peers::Ranges(ranges, except) => {
            // A range of everything is one that a match cannot be written for, and needs none.
            if !ranges.iter().any(|range| range.prefix_len() == 0) {
                let _ = write!(text, "{peer} {{ {} }} ", joined(ranges));
            }
            if !except.is_empty() {
                let _ = write!(text, "{peer} != {{ {} }} ", joined(except));
            }
        }
    }
    match &allow.ports {
        Ports::Any => {}
        Ports::Set(set) => {
            let _ = write!(text, "ip daddr . meta l4proto . th dport @{set} ");
        }
        Ports::Numbers(protocol, ranges) if ranges == &[(0, u16::MAX)] => {
            let _ = write!(text, "meta l4proto {} ", protocol.name());
        }
        Ports::Numbers(protocol, ranges) => {
            let ranges = ranges.iter().map(|(first, last)| match first == last {
                true => first.to_string(),
                false => format!("{first}-{last}"),
            });
            let _ = write!(text, "{} dport {{ {} }} ", protocol.name(), ranges.collect::<Vec<_>>().join(", "));
        }
    }
    text + verdict
}

fn joined<T: Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
