//! The cluster's own names: what the Kubernetes DNS specification (1.1.0) says about them.
//!
//! Pure: a question and the index in, records out. A name exists or it does not (NXDOMAIN); one that exists may have
//! no record of the type that was asked for (no data). Resolvers treat the two differently when they walk their search
//! list, so both matter.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::{IpNet, Ipv4Net};

use crate::index::{Entry, Index};
use crate::model::{Endpoint, Protocol};

/// How long clients may keep an answer. Short: endpoints come and go.
pub const TTL: u32 = 5;
/// The version of the specification that is followed.
const VERSION: &str = "1.1.0";

/// What is known about a name.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// The name is not the cluster's: others may know it.
    Foreign,
    /// There is no such name.
    Missing {
        /// The record that says for how long to believe it.
        authority: Record,
    },
    /// The name exists.
    Found {
        /// Records of the type asked for; possibly none.
        answers: Vec<Record>,
        /// Addresses of names in the answers.
        additionals: Vec<Record>,
        /// For an answer without records: how long to believe it.
        authority: Record,
    },
    /// The name stands for another one.
    Alias(Name),
}

/// The zone's fixed parts.
#[derive(Clone, Debug)]
pub struct Zone {
    origin: Name,
    resolver: IpAddr,
    /// The configured range of virtual addresses.
    services: Ipv4Net,
}

/// Records of one name, without it, and addresses that go with them.
#[derive(Default)]
struct Node {
    records: Vec<RData>,
    additionals: Vec<Record>,
    alias: Option<Name>,
}

impl Zone {
    /// The zone for a cluster domain, such as `cluster.local`. The addresses of `services` and of the index's ranges
    /// have their names from nobody else.
    ///
    /// # Errors
    /// When the domain is no valid name.
    pub fn new(domain: &str, resolver: IpAddr, services: Ipv4Net) -> Result<Self, hickory_proto::ProtoError> {
        let mut origin = Name::from_ascii(domain.to_ascii_lowercase())?;
        origin.set_fqdn(true);
        Ok(Self { origin, resolver, services })
    }

    /// Answers one question.
    pub fn answer(&self, index: &Index, name: &Name, kind: RecordType) -> Answer {
        let (node, apex) = if self.origin.zone_of(name) {
            let depth = usize::from(self.origin.num_labels());
            let labels: Option<Vec<String>> = name
                .iter()
                .take(usize::from(name.num_labels()) - depth)
                .map(|label| std::str::from_utf8(label).ok().map(str::to_ascii_lowercase))
                .collect();
            let labels = labels.unwrap_or_default();
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            let odd = labels.is_empty() && usize::from(name.num_labels()) != depth;
            (if odd { None } else { self.forward(index, &labels, kind) }, self.origin.clone())
        } else if let Ok(network) = name.parse_arpa_name() {
            match self.reverse(index, network) {
                Reverse::Node(node) => (Some(node), self.reverse_apex(index, network)),
                Reverse::Missing => (None, self.reverse_apex(index, network)),
                Reverse::Foreign => return Answer::Foreign,
            }
        } else {
            return Answer::Foreign;
        };
        let authority = Record::from_rdata(apex, TTL, self.soa());
        let Some(node) = node else { return Answer::Missing { authority } };
        if let Some(alias) = node.alias {
            return Answer::Alias(alias);
        }
        let wanted = |data: &RData| kind == RecordType::ANY || data.record_type() == kind;
        let answers = node.records.into_iter().filter(wanted);
        let answers = answers.map(|data| Record::from_rdata(name.clone(), TTL, data)).collect();
        Answer::Found { answers, additionals: node.additionals, authority }
    }

    /// A name of the zone, by its labels below the origin.
    fn forward(&self, index: &Index, labels: &[&str], kind: RecordType) -> Option<Node> {
        let records = |records| Some(Node { records, ..Node::default() });
        match labels {
            [] => records(vec![self.soa(), RData::NS(NS(self.name(&["ns", "dns"])))]),
            ["dns"] | ["svc"] | ["pod"] => Some(Node::default()),
            ["ns", "dns"] => records(vec![address(self.resolver)]),
            ["dns-version"] => records(vec![RData::TXT(TXT::new(vec![VERSION.into()]))]),
            [namespace, "svc"] => index.has_namespace(namespace).then(Node::default),
            [name, namespace, "svc"] => self.service(index.get(namespace, name)?, name, namespace, kind),
            [label, name, namespace, "svc"] => {
                let entry = index.get(namespace, name)?;
                if let Some(protocol) = label.strip_prefix('_') {
                    let ports = &entry.service()?.ports;
                    return ports.iter().any(|p| p.protocol.name() == protocol).then(Node::default);
                }
                let records: Vec<RData> =
                    published(entry).filter(|e| endpoint_label(e) == *label).map(|e| address(e.address)).collect();
                (!records.is_empty()).then_some(Node { records, ..Node::default() })
            }
            [port, protocol, name, namespace, "svc"] => {
                let (port, protocol) = (port.strip_prefix('_')?, protocol.strip_prefix('_')?);
                let entry = index.get(namespace, name)?;
                let asked = |name: &str, p: Protocol| name.eq_ignore_ascii_case(port) && p.name() == protocol;
                let node = self.ports(entry, name, namespace, asked);
                (!node.records.is_empty()).then_some(node)
            }
            // The namespaces of pods are not known here, and a pod's name is only its address written differently.
            [_, "pod"] => Some(Node::default()),
            [dashed, _, "pod"] => records(vec![address(undash(dashed)?)]),
            _ => None,
        }
    }

    fn service(&self, entry: &Entry, name: &str, namespace: &str, kind: RecordType) -> Option<Node> {
        let service = entry.service()?;
        if let Some(target) = &service.external_name {
            let mut target = Name::from_ascii(&**target).ok()?;
            target.set_fqdn(true);
            return Some(Node { alias: Some(target), ..Node::default() });
        }
        // Built only when asked for: with many endpoints they are most of the work.
        let mut node = if matches!(kind, RecordType::SRV | RecordType::ANY) {
            self.ports(entry, name, namespace, |_, _| true)
        } else {
            Node::default()
        };
        if service.headless {
            let mut addresses: Vec<IpAddr> = published(entry).map(|e| e.address).collect();
            addresses.sort_unstable();
            addresses.dedup();
            if addresses.is_empty() {
                return None;
            }
            node.records.extend(addresses.into_iter().map(address));
        } else {
            node.records.extend(service.cluster_ips.iter().copied().map(address));
        }
        Some(node)
    }

    /// SRV records of the ports that are asked for.
    fn ports(&self, entry: &Entry, name: &str, namespace: &str, asked: impl Fn(&str, Protocol) -> bool) -> Node {
        let mut targets: Vec<(u16, Name, IpAddr)> = Vec::new();
        let Some(service) = entry.service() else { return Node::default() };
        if service.headless {
            for slice in entry.slices() {
                for port in slice.ports.iter().filter(|p| asked(&p.name, p.protocol)) {
                    let published = slice.endpoints.iter().filter(|e| e.ready || service.publish_not_ready);
                    targets.extend(
                        published
                            .map(|e| (port.port, self.name(&[&endpoint_label(e), name, namespace, "svc"]), e.address)),
                    );
                }
            }
        } else {
            for port in service.ports.iter().filter(|p| asked(&p.name, p.protocol)) {
                let own = || self.name(&[name, namespace, "svc"]);
                targets.extend(service.cluster_ips.iter().map(|ip| (port.port, own(), *ip)));
            }
        }
        let different: BTreeSet<_> = targets.iter().map(|(port, target, _)| (*port, target)).collect();
        let weight = u16::try_from(100 / different.len().max(1)).unwrap_or(1).max(1);
        let mut node = Node::default();
        for (port, target, ip) in targets {
            let record = RData::SRV(SRV::new(0, weight, port, target.clone()));
            if !node.records.contains(&record) {
                node.records.push(record);
            }
            let additional = Record::from_rdata(target, TTL, address(ip));
            if !node.additionals.contains(&additional) {
                node.additionals.push(additional);
            }
        }
        node
    }

    fn reverse(&self, index: &Index, network: IpNet) -> Reverse {
        let inside = self.range(index, network).is_some();
        if network.prefix_len() != network.max_prefix_len() {
            return if inside { Reverse::Node(Node::default()) } else { Reverse::Foreign };
        }
        let ip = network.addr();
        let mut records = Vec::new();
        for (namespace, name, entry) in index.by_address(ip) {
            let Some(service) = entry.service() else { continue };
            if service.cluster_ips.contains(&ip) {
                records.push(RData::PTR(PTR(self.name(&[name, namespace, "svc"]))));
            }
            for endpoint in published(entry).filter(|e| e.address == ip && (service.headless || e.hostname.is_some())) {
                let record = RData::PTR(PTR(self.name(&[&endpoint_label(endpoint), name, namespace, "svc"])));
                if !records.contains(&record) {
                    records.push(record);
                }
            }
        }
        match records.is_empty() {
            false => Reverse::Node(Node { records, ..Node::default() }),
            true if inside => Reverse::Missing,
            true => Reverse::Foreign,
        }
    }

    /// The widest range of virtual addresses that holds the network.
    fn range(&self, index: &Index, network: IpNet) -> Option<Ipv4Net> {
        let IpNet::V4(network) = network else { return None };
        let all = std::iter::once(self.services).chain(index.ranges());
        all.filter(|range| range.contains(&network)).min_by_key(Ipv4Net::prefix_len)
    }

    /// The reverse zone a negative answer is about: the range of virtual addresses, up to a whole octet.
    fn reverse_apex(&self, index: &Index, network: IpNet) -> Name {
        if matches!(network, IpNet::V6(_)) {
            return self.origin.clone();
        }
        let range = self.range(index, network).unwrap_or(self.services);
        let whole = usize::from(range.prefix_len() / 8);
        let octets = range.network().octets();
        let labels = octets.iter().take(whole).rev().map(u8::to_string).chain(["in-addr".into(), "arpa".into()]);
        Name::from_labels(labels.map(String::into_bytes)).unwrap_or_else(|_| self.origin.clone())
    }

    /// A name below the origin. A label that no name can hold gives the origin: the API lets none through.
    fn name(&self, labels: &[&str]) -> Name {
        let relative = Name::from_labels(labels.iter().map(|l| l.as_bytes()));
        relative.and_then(|name| name.append_domain(&self.origin)).unwrap_or_else(|_| self.origin.clone())
    }

    fn soa(&self) -> RData {
        let (server, mailbox) = (self.name(&["ns", "dns"]), self.name(&["hostmaster"]));
        RData::SOA(SOA::new(server, mailbox, 1, 7200, 1800, 86_400, TTL))
    }
}

enum Reverse {
    Node(Node),
    Missing,
    Foreign,
}

/// The endpoints a name gives: the ready ones, or all where the Service wants that.
fn published(entry: &Entry) -> impl Iterator<Item = &Endpoint> {
    let all = entry.service().is_some_and(|s| s.publish_not_ready);
    entry.endpoints().filter(move |e| e.ready || all)
}

/// The label of an endpoint below its Service: its hostname, or else its address with dashes.
fn endpoint_label(endpoint: &Endpoint) -> String {
    match &endpoint.hostname {
        Some(hostname) => hostname.to_ascii_lowercase(),
        None => endpoint.address.to_string().replace(['.', ':'], "-"),
    }
}

fn undash(text: &str) -> Option<IpAddr> {
    let v4 = text.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| text.replace('-', ":").parse()).ok()
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// Records with the addresses of a name that are of the type asked for.
pub fn addresses(name: &Name, all: &[IpAddr], kind: RecordType) -> Vec<Record> {
    let data = all.iter().copied().map(address);
    let wanted = data.filter(|d| kind == RecordType::ANY || d.record_type() == kind);
    wanted.map(|d| Record::from_rdata(name.clone(), TTL, d)).collect()
}

/// The record that says a name stands for another.
pub fn alias(name: Name, target: Name) -> Record {
    Record::from_rdata(name, TTL, RData::CNAME(CNAME(target)))
}
