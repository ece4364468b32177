//! What is kept of NetworkPolicies, pods and namespaces: what decides who may talk to whom, and nothing else.
//!
//! Limits: IPv4. Of a pod that is on its host's network, has no address or has ended, nothing is kept: policies do not
//! hold for the first, and the others send nothing.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Namespace, Pod as ApiPod};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use skiff_core::selector::LabelSelector;

use crate::model::{Id, Protocol};

/// Labels of a pod or a namespace.
pub type Labels = BTreeMap<String, String>;

/// The objects of one kind as last seen.
#[derive(Debug)]
pub struct Listed<T> {
    /// The objects by name. Namespaces have an empty namespace.
    pub items: BTreeMap<Id, T>,
    /// Whether the kind has been listed once. Before that, absence means nothing.
    pub complete: bool,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { items: BTreeMap::new(), complete: false }
    }
}

impl<T: PartialEq> Listed<T> {
    /// Takes an object in, or out when nothing of it matters; says whether that changed anything.
    pub fn put(&mut self, id: Id, item: Option<T>) -> bool {
        match item {
            Some(item) if self.items.get(&id) == Some(&item) => false,
            Some(item) => {
                self.items.insert(id, item);
                true
            }
            None => self.items.remove(&id).is_some(),
        }
    }

    /// Ends a listing: what it did not name is gone. Says whether that changed anything.
    pub fn retain(&mut self, listed: &HashSet<Id>) -> bool {
        let before = (self.items.len(), std::mem::replace(&mut self.complete, true));
        self.items.retain(|id, _| listed.contains(id));
        before != (self.items.len(), true)
    }
}

/// Everything that the rules are made from.
#[derive(Debug, Default)]
pub struct World {
    /// The policies.
    pub policies: Listed<Policy>,
    /// The pods that policies can hold for or name.
    pub pods: Listed<Pod>,
    /// The namespaces' labels.
    pub namespaces: Listed<Labels>,
}

/// What is kept of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its labels.
    pub labels: Labels,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its ports that have a name.
    pub ports: Box<[(Box<str>, Protocol, u16)]>,
    /// Whether it is on this node.
    pub local: bool,
}

impl Pod {
    /// The kept part; `None` when policies have nothing to do with it.
    pub fn parse(pod: &ApiPod, node: &str) -> Option<Self> {
        let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if ended || spec.host_network == Some(true) {
            return None;
        }
        let others = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
        let address = status.pod_ip.as_deref().into_iter().chain(others).find_map(|ip| ip.parse().ok())?;
        // A side-car is a container that is listed among the first ones.
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let ports = containers.flat_map(|c| c.ports.iter().flatten()).filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            Some((port.name.as_deref()?.into(), Protocol::parse(port.protocol.as_deref())?, number))
        });
        Some(Self {
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            address,
            ports: ports.collect(),
            local: spec.node_name.as_deref() == Some(node),
        })
    }
}

/// The kept part of a namespace.
pub fn namespace(object: &Namespace) -> Labels {
    object.metadata.labels.clone().unwrap_or_default()
}

/// What is kept of a NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The pods of its namespace that it holds for.
    pub pods: LabelSelector,
    /// What may come in; `None` when the policy says nothing about that direction.
    pub ingress: Option<Box<[Rule]>>,
    /// What may go out; likewise.
    pub egress: Option<Box<[Rule]>>,
}

/// Traffic that is allowed: with one of the peers, on one of the ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The peers; empty stands for everyone.
    pub peers: Box<[Peer]>,
    /// The ports; empty stands for all, of every protocol.
    pub ports: Box<[Port]>,
}

/// Whom a rule allows to talk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods.
    Pods {
        /// Of which namespaces; `None` stands for the policy's own.
        namespaces: Option<LabelSelector>,
        /// Which pods of them.
        pods: LabelSelector,
    },
    /// Addresses.
    Block {
        /// The range.
        range: Ipv4Net,
        /// What is not meant of it.
        except: Box<[Ipv4Net]>,
    },
    /// Nobody: a peer that this build does not understand, or a range of IPv6.
    Nobody,
}

/// A port of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// Numbers from the first to the last.
    Numbers(Protocol, u16, u16),
    /// What the receiving pod calls so.
    Named(Protocol, Box<str>),
    /// Nothing: a port that this build does not understand.
    Nothing,
}

impl Policy {
    /// The kept part.
    pub fn parse(policy: &NetworkPolicy) -> Option<Self> {
        let spec = policy.spec.as_ref()?;
        let (ingress, egress) = match spec.policy_types.as_deref() {
            Some(types) if !types.is_empty() => {
                let named = |name: &str| types.iter().any(|t| t == name);
                (named("Ingress"), named("Egress"))
            }
            _ => (true, spec.egress.as_ref().is_some_and(|rules| !rules.is_empty())),
        };
        let come = spec.ingress.iter().flatten().map(|r| Rule::new(r.from.as_deref(), r.ports.as_deref()));
        let go = spec.egress.iter().flatten().map(|r| Rule::new(r.to.as_deref(), r.ports.as_deref()));
        Some(Self {
            pods: selector(&spec.pod_selector),
            ingress: ingress.then(|| come.collect()),
            egress: egress.then(|| go.collect()),
        })
    }
}

impl Rule {
    fn new(peers: Option<&[NetworkPolicyPeer]>, ports: Option<&[NetworkPolicyPort]>) -> Self {
        Self {
            peers: peers.into_iter().flatten().map(Peer::parse).collect(),
            ports: ports.into_iter().flatten().map(|port| Port::parse(port).unwrap_or(Port::Nothing)).collect(),
        }
    }
}

impl Peer {
    fn parse(peer: &NetworkPolicyPeer) -> Self {
        if let Some(block) = &peer.ip_block {
            return match block.cidr.trim().parse::<Ipv4Net>() {
                Ok(range) => Self::Block {
                    range: range.trunc(),
                    except: block.except.iter().flatten().filter_map(|r| r.trim().parse().ok()).collect(),
                },
                Err(_) => Self::Nobody,
            };
        }
        if peer.pod_selector.is_none() && peer.namespace_selector.is_none() {
            return Self::Nobody;
        }
        Self::Pods {
            namespaces: peer.namespace_selector.as_ref().map(selector),
            // Beside a selector of namespaces, an absent one means all of their pods.
            pods: peer.pod_selector.as_ref().map_or_else(everything, selector),
        }
    }
}

impl Port {
    fn parse(port: &NetworkPolicyPort) -> Option<Self> {
        let protocol = Protocol::parse(port.protocol.as_deref())?;
        Some(match &port.port {
            None => Self::Numbers(protocol, 0, u16::MAX),
            Some(IntOrString::Int(first)) => {
                let last = port.end_port.unwrap_or(*first);
                Self::Numbers(protocol, u16::try_from(*first).ok()?, u16::try_from(last).ok()?)
            }
            Some(IntOrString::String(name)) => Self::Named(protocol, name.as_str().into()),
        })
    }
}

/// A selector of the API. Of a kind that cannot be written as JSON there is none.
fn selector(selector: &impl Serialize) -> LabelSelector {
    match serde_json::to_value(selector) {
        Ok(serde_json::Value::Null) | Err(_) => everything(),
        Ok(value) => LabelSelector::from_object(Some(&value)),
    }
}

fn everything() -> LabelSelector {
    LabelSelector::from_object(Some(&serde_json::json!({})))
}
