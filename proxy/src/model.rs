//! What the proxy and the name server keep of a Service, an EndpointSlice and a ServiceCIDR: a small part of the object.
//!
//! Why own types: ten thousand Services as API objects cost some hundred megabytes, most of it labels, annotations and
//! managed fields that nobody here reads.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Service as ApiService;
use k8s_openapi::api::discovery::v1::EndpointSlice as ApiSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;

use crate::balancer::ANNOUNCED;

/// Label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label by which a Service asks for another proxy than this one.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label by which a Service or EndpointSlice says that names are all that it is for.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// How long a client stays with its endpoint when the Service does not say.
const AFFINITY_SECONDS: u32 = 10_800;

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, the default.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The lower-case name, as nftables and SRV records write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    pub(crate) fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// The namespace.
    pub namespace: Box<str>,
    /// The name.
    pub name: Box<str>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The name; empty when the only port has none.
    pub name: Box<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port on the Service's addresses.
    pub port: u16,
    /// The port on every node, if there is one.
    pub node_port: Option<u16>,
}

/// What is kept of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The virtual addresses; none for headless Services and external names.
    pub cluster_ips: Box<[IpAddr]>,
    /// Whether the Service has `clusterIP: None`.
    pub headless: bool,
    /// The name this Service is an alias of.
    pub external_name: Option<Box<str>>,
    /// The ports.
    pub ports: Box<[Port]>,
    /// `spec.externalIPs`, IPv4 only.
    pub external_ips: Box<[Ipv4Addr]>,
    /// Addresses of the load balancer that arrive here unchanged, IPv4 only.
    pub balancer_ips: Box<[Ipv4Addr]>,
    /// The node that was chosen to answer for the load balancer's addresses.
    pub announcer: Option<Box<str>>,
    /// Who may use the load balancer's addresses; everyone when empty.
    pub source_ranges: Box<[Ipv4Net]>,
    /// Seconds a client stays with its endpoint, when affinity is on.
    pub affinity: Option<u32>,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// Where a load balancer asks whether this node has endpoints.
    pub health_port: Option<u16>,
    /// False when the Service asks for another proxy, or for none.
    pub proxied: bool,
}

impl Service {
    /// The name and the kept part of an API object; `None` for an object without name or namespace.
    pub fn parse(object: &ApiService) -> Option<(Id, Self)> {
        let meta = &object.metadata;
        let id = Id { namespace: meta.namespace.as_deref()?.into(), name: meta.name.as_deref()?.into() };
        let Some(spec) = &object.spec else { return Some((id, Self::default())) };
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        let headless = spec.cluster_ip.as_deref() == Some("None");
        let mut cluster_ips: Vec<IpAddr> = spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
        if cluster_ips.is_empty() {
            cluster_ips.extend(spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()));
        }
        let external_name = (kind == "ExternalName").then(|| spec.external_name.as_deref().unwrap_or_default().into());
        if external_name.is_some() {
            cluster_ips.clear();
        }
        let on_nodes = kind == "NodePort" || kind == "LoadBalancer";
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            Some(Port {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol: Protocol::parse(port.protocol.as_deref())?,
                port: u16::try_from(port.port).ok()?,
                node_port: port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| on_nodes && *p != 0),
            })
        });
        let balancer = (kind == "LoadBalancer").then_some(object.status.as_ref()).flatten();
        let ingress = balancer.and_then(|s| s.load_balancer.as_ref()).and_then(|b| b.ingress.as_ref());
        let conditions = balancer.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let announced = conditions.iter().find(|c| c.type_ == ANNOUNCED && c.status == "True");
        let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
            config.and_then(|c| c.timeout_seconds).and_then(|s| u32::try_from(s).ok()).unwrap_or(AFFINITY_SECONDS)
        });
        let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
        let service = Self {
            cluster_ips: cluster_ips.into(),
            headless,
            external_name,
            ports: ports.collect(),
            external_ips: spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect(),
            balancer_ips: ingress
                .into_iter()
                .flatten()
                .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
                .filter_map(|i| i.ip.as_deref()?.parse().ok())
                .collect(),
            announcer: announced.map(|c| c.message.as_str().into()),
            source_ranges: spec
                .load_balancer_source_ranges
                .iter()
                .flatten()
                .filter_map(|range| range.trim().parse().ok())
                .collect(),
            affinity,
            external_local,
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
            health_port: spec
                .health_check_node_port
                .and_then(|p| u16::try_from(p).ok())
                .filter(|p| *p != 0 && external_local && kind == "LoadBalancer"),
            proxied: proxied(meta.labels.as_ref()),
        };
        Some((id, service))
    }
}

/// One port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port it belongs to.
    pub name: Box<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port on the endpoints.
    pub port: u16,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address. Further ones of the same endpoint are ignored, as everywhere.
    pub address: IpAddr,
    /// The label under the Service's name that stands for this endpoint, when it has chosen one.
    pub hostname: Option<Box<str>>,
    /// Whether it is on this node; `None` when the slice does not say.
    pub local: Option<bool>,
    /// Whether traffic should go to it.
    pub ready: bool,
    /// Whether it could still answer, though it is terminating.
    pub draining: bool,
}

/// What is kept of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The ports, the same for all endpoints.
    pub ports: Box<[SlicePort]>,
    /// The endpoints.
    pub endpoints: Box<[Endpoint]>,
    /// False when the slice asks for another proxy, or for none.
    pub proxied: bool,
}

fn proxied(labels: Option<&BTreeMap<String, String>>) -> bool {
    !labels.is_some_and(|l| l.contains_key(PROXY_NAME) || l.contains_key(HEADLESS))
}

impl Slice {
    /// The slice's own name, its Service, and the kept part. `None` when the slice belongs to no Service.
    pub fn parse(object: &ApiSlice, node: &str) -> Option<(Id, Id, Self)> {
        let meta = &object.metadata;
        let namespace: Box<str> = meta.namespace.as_deref()?.into();
        let own = Id { namespace: namespace.clone(), name: meta.name.as_deref()?.into() };
        let service = Id { namespace, name: meta.labels.as_ref()?.get(SERVICE_NAME)?.as_str().into() };
        let ports = object.ports.iter().flatten().filter_map(|port| {
            Some(SlicePort {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol: Protocol::parse(port.protocol.as_deref())?,
                port: u16::try_from(port.port?).ok()?,
            })
        });
        let endpoints = object.endpoints.iter().flatten().filter_map(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            // Absent means ready, for all three: the API says so.
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
            let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
            Some(Endpoint {
                address: endpoint.addresses.first()?.parse().ok()?,
                hostname: endpoint.hostname.as_deref().filter(|h| !h.is_empty()).map(Into::into),
                local: endpoint.node_name.as_deref().map(|name| name == node),
                ready,
                draining: !ready && serving && terminating,
            })
        });
        let proxied = proxied(meta.labels.as_ref());
        Some((own, service, Self { ports: ports.collect(), endpoints: endpoints.collect(), proxied }))
    }
}

/// The IPv4 ranges of a ServiceCIDR.
pub fn ranges_of(object: &ServiceCIDR) -> Box<[Ipv4Net]> {
    let all = object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    all.filter_map(|range| range.parse::<Ipv4Net>().ok()).map(|range| range.trunc()).collect()
}
