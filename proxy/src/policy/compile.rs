//! From policies, pods and namespaces to the rules of one node.
//!
//! Pure: the same world gives the same [`Table`]. Local pods for which the same policies hold share a chain; peers
//! that are chosen by the same selectors share a set of addresses; the pods that call a port by the same name share a
//! set of ports. So a pod that comes or goes is some elements, and rules change with policies only.
//!
//! Names are digests of what the thing means. An unchanged thing keeps its name, and a changed one gets another; so
//! chains are never rewritten, and nobody can make one policy's rules pass for another's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};
use skiff_core::selector::LabelSelector;

use super::model::{Peer, Pod, Policy, Port, Rule, World};
use crate::model::{Id, Protocol};

/// Which way traffic goes, seen from the pod that a policy holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// The rules of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The chain that judges what comes to an address.
    pub ingress: BTreeMap<Ipv4Addr, String>,
    /// The chain that judges what an address sends.
    pub egress: BTreeMap<Ipv4Addr, String>,
    /// What each chain allows. It drops the rest.
    pub chains: BTreeMap<String, (Direction, BTreeSet<Allow>)>,
    /// Addresses of pods that rules name.
    pub peers: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    /// Ports of pods that rules name.
    pub ports: BTreeMap<String, BTreeSet<(Ipv4Addr, Protocol, u16)>>,
}

impl Table {
    /// Addresses of local pods that any policy holds for. A policy does not keep a pod from itself.
    pub fn selves(&self) -> BTreeSet<Ipv4Addr> {
        self.ingress.keys().chain(self.egress.keys()).copied().collect()
    }
}

/// Traffic that passes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allow {
    /// Who is at the other end.
    pub peers: Peers,
    /// On which ports of the receiver.
    pub ports: Ports,
}

/// The other end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peers {
    /// Anyone.
    Any,
    /// An address in a set of [`Table::peers`].
    Set(String),
    /// An address in one of these ranges, which do not overlap, and in none of the others.
    Ranges(Vec<Ipv4Net>, Vec<Ipv4Net>),
}

/// Ports of the receiver.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ports {
    /// Every port of every protocol, and what has no ports.
    Any,
    /// Ports of one protocol, as ranges that do not overlap.
    Numbers(Protocol, Vec<(u16, u16)>),
    /// A receiver and port in a set of [`Table::ports`].
    Set(String),
}

/// Makes the rules of this node. `resolver` is the address of the cluster's name server.
///
/// The name server is part of the node, not a pod. So that the policies people have for it work, it is seen as a pod
/// of `kube-system` with the label and the ports that it has elsewhere.
pub fn compile(world: &World, resolver: Option<Ipv4Addr>) -> Table {
    let names = resolver.map(|address| {
        let id = Id { namespace: "kube-system".into(), name: "kube-dns".into() };
        let labels = [("k8s-app".to_owned(), "kube-dns".to_owned())].into();
        let ports = [("dns".into(), Protocol::Udp, 53), ("dns-tcp".into(), Protocol::Tcp, 53)].into();
        (id, Pod { labels, address, ports, local: false })
    });
    let pods: Vec<(&Id, &Pod)> = world.pods.items.iter().chain(names.as_ref().map(|(id, pod)| (id, pod))).collect();
    let mut compiler = Compiler { world, pods, table: Table::default(), made: BTreeMap::new() };
    for (id, pod) in world.pods.items.iter().filter(|(_, pod)| pod.local) {
        let holding: Vec<(&Id, &Policy)> = world
            .policies
            .items
            .iter()
            .filter(|(policy, held)| policy.namespace == id.namespace && held.pods.matches(&pod.labels))
            .collect();
        for direction in [Direction::Ingress, Direction::Egress] {
            let named: Vec<&Id> =
                holding.iter().filter(|(_, policy)| rules(policy, direction).is_some()).map(|(id, _)| *id).collect();
            if named.is_empty() {
                continue;
            }
            let chain = compiler.chain(direction, named);
            let judged = match direction {
                Direction::Ingress => &mut compiler.table.ingress,
                Direction::Egress => &mut compiler.table.egress,
            };
            judged.insert(pod.address, chain);
        }
    }
    compiler.table
}

fn rules(policy: &Policy, direction: Direction) -> Option<&[Rule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

struct Compiler<'a> {
    world: &'a World,
    /// All pods, local or not, and the name server.
    pods: Vec<(&'a Id, &'a Pod)>,
    table: Table,
    /// Chains by the policies they stand for.
    made: BTreeMap<(Direction, Vec<&'a Id>), String>,
}

impl<'a> Compiler<'a> {
    /// The chain of some policies together: what any of them allows.
    fn chain(&mut self, direction: Direction, policies: Vec<&'a Id>) -> String {
        let key = (direction, policies);
        if let Some(name) = self.made.get(&key) {
            return name.clone();
        }
        let mut allowed = BTreeSet::new();
        for id in &key.1 {
            let policy = self.world.policies.items.get(*id);
            for rule in policy.and_then(|policy| rules(policy, direction)).into_iter().flatten() {
                let (peers, ports) = (self.peers(&id.namespace, &rule.peers), self.ports(&rule.ports));
                let pairs = peers.iter().flat_map(|peers| ports.iter().map(move |ports| (peers, ports)));
                allowed.extend(pairs.map(|(peers, ports)| Allow { peers: peers.clone(), ports: ports.clone() }));
            }
        }
        let prefix = match direction {
            Direction::Ingress => "in",
            Direction::Egress => "out",
        };
        let name = digest(prefix, &format!("{allowed:?}"));
        self.table.chains.insert(name.clone(), (direction, allowed));
        self.made.insert(key, name.clone());
        name
    }

    fn peers(&mut self, namespace: &str, peers: &[Peer]) -> BTreeSet<Peers> {
        if peers.is_empty() {
            return [Peers::Any].into();
        }
        let mut plain = Vec::new();
        let mut made = BTreeSet::new();
        for peer in peers {
            match peer {
                Peer::Nobody => {}
                Peer::Pods { namespaces, pods } => {
                    made.insert(Peers::Set(self.addresses(namespace, namespaces.as_ref(), pods)));
                }
                Peer::Block { range, except } if except.is_empty() => plain.push(*range),
                Peer::Block { range, except } => {
                    let except = Ipv4Net::aggregate(&except.to_vec());
                    if !except.iter().any(|hole| hole.contains(range)) {
                        made.insert(Peers::Ranges(vec![*range], except));
                    }
                }
            }
        }
        let plain = Ipv4Net::aggregate(&plain);
        if plain.iter().any(|range| range.prefix_len() == 0) {
            made.insert(Peers::Any);
        } else if !plain.is_empty() {
            made.insert(Peers::Ranges(plain, Vec::new()));
        }
        made
    }

    /// The set of the pods that two selectors choose.
    fn addresses(&mut self, own: &str, namespaces: Option<&LabelSelector>, pods: &LabelSelector) -> String {
        let scope = namespaces.map_or_else(|| format!("{own:?}"), |selector| format!("{selector:?}"));
        let name = digest("peers", &format!("{scope} {pods:?}"));
        if !self.table.peers.contains_key(&name) {
            let within = |namespace: &str| match namespaces {
                None => namespace == own,
                Some(selector) => {
                    let id = Id { namespace: "".into(), name: namespace.into() };
                    self.world.namespaces.items.get(&id).is_some_and(|labels| selector.matches(labels))
                }
            };
            // Asked once for each namespace, not for each pod.
            let mut asked: BTreeMap<&str, bool> = BTreeMap::new();
            let chosen = self.pods.iter().filter(|(id, pod)| {
                *asked.entry(&id.namespace).or_insert_with(|| within(&id.namespace)) && pods.matches(&pod.labels)
            });
            let chosen = chosen.map(|(_, pod)| pod.address).collect();
            self.table.peers.insert(name.clone(), chosen);
        }
        name
    }

    fn ports(&mut self, ports: &[Port]) -> BTreeSet<Ports> {
        if ports.is_empty() {
            return [Ports::Any].into();
        }
        let mut numbers: BTreeMap<Protocol, Vec<(u16, u16)>> = BTreeMap::new();
        let mut made = BTreeSet::new();
        for port in ports {
            match port {
                Port::Nothing => {}
                Port::Numbers(protocol, first, last) if first <= last => {
                    numbers.entry(*protocol).or_default().push((*first, *last));
                }
                Port::Numbers(..) => {}
                Port::Named(protocol, name) => drop(made.insert(Ports::Set(self.called(*protocol, name)))),
            }
        }
        made.extend(numbers.into_iter().map(|(protocol, ranges)| Ports::Numbers(protocol, merged(ranges))));
        made
    }

    /// The set of the ports that pods call so.
    fn called(&mut self, protocol: Protocol, port: &str) -> String {
        let name = digest("ports", &format!("{protocol:?} {port}"));
        if !self.table.ports.contains_key(&name) {
            let ports = self.pods.iter().flat_map(|(_, pod)| {
                let called = pod.ports.iter().filter(|(n, p, _)| **n == *port && *p == protocol);
                called.map(|(_, protocol, number)| (pod.address, *protocol, *number))
            });
            let ports = ports.collect();
            self.table.ports.insert(name.clone(), ports);
        }
        name
    }
}

/// The same numbers, as ranges that neither overlap nor touch.
pub(super) fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// A name for what `meaning` says. Half of SHA-256: users choose what goes in, and none shall meet another's name.
fn digest(prefix: &str, meaning: &str) -> String {
    Sha256::digest(meaning).iter().take(16).fold(format!("{prefix}-"), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    })
}
