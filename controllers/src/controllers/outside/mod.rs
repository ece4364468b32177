//! How the cluster is reached from outside: addresses of LoadBalancer Services and of Ingresses.
//!
//! A LoadBalancer Service gets the addresses of the nodes that are ready (with `externalTrafficPolicy: Local`, of those
//! that have ready endpoints), and every node's proxy takes what arrives for them. Then one port of one protocol can be
//! had by one Service only, the oldest; the others wait, and an event says for whom. Ports that the nodes themselves
//! answer on are never given away. Where a range is configured ([`LoadBalancer::Range`]) each Service gets an address of
//! its own instead, and one ready node is chosen to answer for it: the condition [`ANNOUNCED`] names it. It stays the
//! same as long as it can; when it cannot, the node with the fewest follows.
//!
//! An Ingress of a class of ours gets the addresses of the nodes that run a gateway, which have the label [`GATEWAY`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Node, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass, IngressLoadBalancerIngress, IngressLoadBalancerStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use super::endpoints::SERVICE;
use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::{Informer, key_of, split};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{Outcome, Reconcile, found};

pub mod range;

pub use range::{LoadBalancer, Ranges};

/// Condition of a LoadBalancer Service with an address of a range: its message is the name of the node that answers.
pub const ANNOUNCED: &str = "skiff.dev/Announced";
/// Annotation by which a Service asks for an address of the range; `spec.loadBalancerIP` does too.
const ASKED: &str = "skiff.dev/load-balancer-ip";
/// Label of the nodes that run an ingress gateway.
pub const GATEWAY: &str = "skiff.dev/ingress";
/// Label of nodes that must not be used from outside.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Classes of load balancers that are served here, besides no class.
const CLASS: &str = "skiff.dev/node";
/// `spec.controller` of our ingress classes.
const CONTROLLER: &str = "skiff.dev/ingress";
/// Ports that nodes answer on themselves: SSH, the API server, the node agent.
const OWN_PORTS: [u16; 3] = [22, 6443, 10250];
/// Ports of the gateway.
const GATEWAY_PORTS: [u16; 2] = [80, 443];

/// The addresses of a node that others may use.
fn addresses(node: &Node) -> Vec<String> {
    let all = node.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
    let of = |kind: &str| all.iter().filter(|a| a.type_ == kind).map(|a| a.address.clone()).collect::<Vec<_>>();
    let external = of("ExternalIP");
    if external.is_empty() { of("InternalIP") } else { external }
}

fn usable(node: &Node) -> bool {
    let ready = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    ready.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
        && node.metadata.deletion_timestamp.is_none()
        && !node.labels().contains_key(EXCLUDED)
}

/// What of a node matters here.
fn facts(node: &Node) -> (bool, bool, Vec<String>) {
    (usable(node), node.labels().contains_key(GATEWAY), addresses(node))
}

/// Gives addresses to LoadBalancer Services.
pub struct Services {
    client: Client,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    nodes: Informer<Node>,
    mode: LoadBalancer,
    events: Recorder,
    queue: Arc<Queue>,
}

fn balanced(s: &Service) -> bool {
    s.metadata.deletion_timestamp.is_none()
        && s.spec.as_ref().is_some_and(|s| {
            s.type_.as_deref() == Some("LoadBalancer") && s.load_balancer_class.as_deref().is_none_or(|c| c == CLASS)
        })
}

fn ports(s: &Service) -> impl Iterator<Item = (&str, u16)> {
    let ports = s.spec.iter().flat_map(|s| s.ports.iter().flatten());
    ports.filter_map(|p| Some((p.protocol.as_deref().unwrap_or("TCP"), u16::try_from(p.port).ok()?)))
}

fn age(s: &Service) -> (Timestamp, String) {
    (s.creation_timestamp().map_or(Timestamp::MAX, |t| t.0), key_of(s))
}

fn given(s: &Service) -> &[LoadBalancerIngress] {
    let status = s.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    status.and_then(|l| l.ingress.as_deref()).unwrap_or_default()
}

fn v4(given: &[LoadBalancerIngress]) -> impl Iterator<Item = Ipv4Addr> {
    given.iter().filter_map(|i| i.ip.as_deref()?.parse().ok())
}

/// The address that a Service asks for.
fn asked(s: &Service) -> Option<&str> {
    let field = || s.spec.as_ref().and_then(|s| s.load_balancer_ip.as_deref());
    s.annotations().get(ASKED).map(String::as_str).or_else(field).filter(|a| !a.is_empty())
}

fn conditions(s: &Service) -> &[Condition] {
    s.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default()
}

/// The node that answers for a Service's address.
fn announcer(s: &Service) -> Option<&str> {
    conditions(s).iter().find(|c| c.type_ == ANNOUNCED && c.status == "True").map(|c| c.message.as_str())
}

impl Services {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(
        client: Client,
        services: Informer<Service>,
        slices: Informer<EndpointSlice>,
        nodes: Informer<Node>,
        mode: LoadBalancer,
    ) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let (q, all) = (Arc::clone(&queue), services.clone());
        services.on_change(move |c| {
            let was = c.old.as_deref().is_some_and(balanced);
            let is = c.new.as_deref().is_some_and(balanced);
            if is || was {
                q.add(key_of(&**c.latest()));
            }
            // A port may have become free, or taken.
            let before: BTreeSet<(&str, u16)> = c.old.as_deref().filter(|_| was).into_iter().flat_map(ports).collect();
            let after: BTreeSet<(&str, u16)> = c.new.as_deref().filter(|_| is).into_iter().flat_map(ports).collect();
            if before != after {
                all.all().iter().filter(|s| balanced(s)).for_each(|s| q.add(key_of(&**s)));
            }
            // So may an address.
            let before = c.old.as_deref().map(given).unwrap_or_default();
            if !before.is_empty() && c.new.as_deref().map(given) != Some(before) {
                let waits = |s: &Service| balanced(s) && given(s).is_empty();
                all.all().iter().filter(|s| waits(s)).for_each(|s| q.add(key_of(&**s)));
            }
        });
        let (q, all) = (Arc::clone(&queue), services.clone());
        nodes.on_change(move |c| {
            if c.old.as_deref().map(facts) != c.new.as_deref().map(facts) {
                all.all().iter().filter(|s| balanced(s)).for_each(|s| q.add(key_of(&**s)));
            }
        });
        let (q, all) = (Arc::clone(&queue), services.clone());
        slices.on_change(move |c| {
            let slice = c.latest();
            let Some(name) = slice.labels().get(SERVICE) else { return };
            let key = format!("{}/{name}", slice.namespace().unwrap_or_default());
            if all.get(&key).is_some_and(|s| balanced(&s) && local(&s)) {
                q.add(key);
            }
        });
        let events = Recorder::start(client.clone(), "service-controller");
        Arc::new(Self { client, services, slices, nodes, mode, events, queue })
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(service) = self.services.get(key).filter(|s| s.metadata.deletion_timestamp.is_none()) else {
            return Ok(None);
        };
        let mut wanted = vec![];
        // What another program gave is not taken away.
        if !balanced(&service) && !self.is_ours(&service) {
            return Ok(None);
        }
        let mut node = None;
        if balanced(&service) {
            match self.addresses(&service) {
                Err(why) => {
                    let text = format!("Error syncing load balancer: failed to ensure load balancer: {why}");
                    self.events.note(&*service, Level::Warning, "SyncLoadBalancerFailed", text);
                }
                Ok(ips) => wanted = ips,
            }
            if !wanted.is_empty() && matches!(self.mode, LoadBalancer::Range(_)) {
                node = self.announcer(&service);
            }
        }
        if given(&service) == wanted.as_slice() && announcer(&service) == node.as_deref() {
            return Ok(None);
        }
        let (namespace, name) = split(key);
        let api: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        let mut new = Service::clone(&service);
        let first = given(&new).is_empty() && !wanted.is_empty();
        let told = node.as_ref().filter(|n| announcer(&service) != Some(n)).map(|n| {
            let ips: Vec<&str> = wanted.iter().filter_map(|i| i.ip.as_deref()).collect();
            format!("node {n} answers for {}", ips.join(", "))
        });
        let status = new.status.get_or_insert_default();
        status.load_balancer = Some(LoadBalancerStatus { ingress: Some(wanted).filter(|w| !w.is_empty()) });
        announce(status.conditions.get_or_insert_default(), node);
        status.conditions.take_if(|c| c.is_empty());
        if let Some(written) = found(api.replace_status(name, &PostParams::default(), &new).await)? {
            self.services.apply(written);
        }
        if first {
            self.events.note(&*service, Level::Normal, "EnsuredLoadBalancer", "Ensured load balancer");
        }
        if let Some(text) = told {
            self.events.note(&*service, Level::Normal, "NodeAssigned", text);
        }
        Ok(None)
    }

    /// The addresses a Service is to have, or why it gets none.
    fn addresses(&self, service: &Service) -> Result<Vec<LoadBalancerIngress>, String> {
        let entry = |ip| LoadBalancerIngress { ip: Some(ip), ip_mode: Some("VIP".into()), ..Default::default() };
        match &self.mode {
            LoadBalancer::Range(ranges) => {
                let held = v4(given(service)).next();
                let ip = ranges.choose(asked(service), held, &self.held_by_others(service))?;
                Ok(vec![entry(ip.to_string())])
            }
            LoadBalancer::Nodes | LoadBalancer::Off => match self.taken(service) {
                Some(why) => Err(why),
                None => Ok(self.of_nodes(service).into_iter().map(entry).collect()),
            },
        }
    }

    /// Addresses that this Service may not have, and whose they are.
    fn held_by_others(&self, service: &Service) -> BTreeMap<Ipv4Addr, String> {
        let nodes = self.nodes.all();
        let nodes =
            nodes.iter().flat_map(|n| addresses(n).into_iter().map(|a| (a, format!("the node {}", n.name_any()))));
        let mut taken: BTreeMap<Ipv4Addr, String> = nodes.filter_map(|(a, of)| Some((a.parse().ok()?, of))).collect();
        let (own, since): (Vec<_>, _) = (v4(given(service)).collect(), age(service));
        for other in self.services.all() {
            if other.metadata.uid == service.metadata.uid {
                continue;
            }
            let others = v4(given(&other)).filter(|a| !own.contains(a) || age(&other) < since);
            taken.extend(others.map(|a| (a, format!("the Service {}", key_of(&*other)))));
        }
        taken
    }

    /// The node that is to answer for a Service's address: the one that does, if it can; else, of those that can, the
    /// one that answers for the fewest. When there is none, nothing changes: the one that does may be all right.
    fn announcer(&self, service: &Service) -> Option<String> {
        let mut fit: BTreeSet<String> = self.nodes.all().iter().filter(|n| usable(n)).map(|n| n.name_any()).collect();
        if local(service) {
            let with = self.nodes_with_endpoints(service);
            // Where no node has endpoints nobody answers anyway.
            if !fit.is_disjoint(&with) {
                fit.retain(|n| with.contains(n));
            }
        }
        let present = announcer(service).map(str::to_owned);
        if fit.is_empty() || present.as_ref().is_some_and(|p| fit.contains(p)) {
            return present;
        }
        let services = self.services.all();
        let load = |node: &String| services.iter().filter(|s| announcer(s) == Some(node)).count();
        fit.into_iter().min_by_key(load)
    }

    /// Whether the addresses a Service has are those of nodes, or of our range.
    fn is_ours(&self, service: &Service) -> bool {
        let nodes: BTreeSet<String> = self.nodes.all().iter().flat_map(|n| addresses(n)).collect();
        let ranged = |ip: &str| match &self.mode {
            LoadBalancer::Range(ranges) => ip.parse().is_ok_and(|ip| ranges.contains(ip)),
            LoadBalancer::Nodes | LoadBalancer::Off => false,
        };
        given(service).iter().all(|i| i.ip.as_ref().is_some_and(|ip| nodes.contains(ip) || ranged(ip)))
    }

    /// Why a Service cannot have its ports.
    fn taken(&self, service: &Service) -> Option<String> {
        let gateway = self.nodes.all().iter().any(|n| n.labels().contains_key(GATEWAY));
        let own = |port: &u16| OWN_PORTS.contains(port) || (gateway && GATEWAY_PORTS.contains(port));
        if let Some((_, port)) = ports(service).find(|(protocol, port)| *protocol == "TCP" && own(port)) {
            return Some(format!("the nodes themselves answer on port {port}/TCP"));
        }
        let mine: BTreeSet<(&str, u16)> = ports(service).collect();
        let older = self.services.all().into_iter().filter(|o| balanced(o) && age(o) < age(service));
        older.into_iter().find_map(|o| {
            let (protocol, port) = ports(&o).find(|p| mine.contains(p))?;
            Some(format!("port {port}/{protocol} of the nodes belongs to the Service {}", key_of(&*o)))
        })
    }

    fn of_nodes(&self, service: &Service) -> BTreeSet<String> {
        let only = local(service).then(|| self.nodes_with_endpoints(service));
        let nodes = self.nodes.all();
        let nodes = nodes.iter().filter(|n| usable(n) && only.as_ref().is_none_or(|o| o.contains(&n.name_any())));
        nodes.flat_map(|n| addresses(n)).collect()
    }

    fn nodes_with_endpoints(&self, service: &Service) -> BTreeSet<String> {
        let slices = self.slices.in_namespace(&service.namespace().unwrap_or_default());
        let own = slices.iter().filter(|s| s.labels().get(SERVICE) == service.metadata.name.as_ref());
        let ready = own
            .flat_map(|s| s.endpoints.iter().flatten())
            .filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
        ready.filter_map(|e| e.node_name.clone()).collect()
    }
}

/// Puts the condition that names the node, or takes it out.
fn announce(conditions: &mut Vec<Condition>, node: Option<String>) {
    conditions.retain(|c| c.type_ != ANNOUNCED);
    conditions.extend(node.map(|message| Condition {
        type_: ANNOUNCED.into(),
        status: "True".into(),
        reason: "NodeChosen".into(),
        message,
        last_transition_time: crate::runtime::now(),
        observed_generation: None,
    }));
}

fn local(s: &Service) -> bool {
    s.spec.as_ref().and_then(|s| s.external_traffic_policy.as_deref()) == Some("Local")
}

impl Reconcile for Services {
    fn name(&self) -> &'static str {
        "service-lb-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    /// One: who gets which address is decided from what was given before.
    fn workers(&self) -> usize {
        1
    }

    fn resync(&self) {
        let all = self.services.all();
        all.iter().filter(|s| balanced(s) || !given(s).is_empty()).for_each(|s| self.queue.add(key_of(&**s)));
    }
}

/// Gives addresses to Ingresses, and says what keeps one from working.
pub struct Ingresses {
    client: Client,
    ingresses: Informer<Ingress>,
    classes: Informer<IngressClass>,
    nodes: Informer<Node>,
    events: Recorder,
    queue: Arc<Queue>,
}

fn class(i: &Ingress) -> Option<&String> {
    let old = || i.annotations().get("kubernetes.io/ingress.class");
    i.spec.as_ref().and_then(|s| s.ingress_class_name.as_ref()).or_else(old)
}

fn shown(i: &Ingress) -> &[IngressLoadBalancerIngress] {
    let status = i.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    status.and_then(|l| l.ingress.as_deref()).unwrap_or_default()
}

impl Ingresses {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(
        client: Client,
        ingresses: Informer<Ingress>,
        classes: Informer<IngressClass>,
        nodes: Informer<Node>,
    ) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        ingresses.on_change(move |c| {
            if c.new.is_some() {
                q.add(key_of(&**c.latest()));
            }
        });
        let (q, all) = (Arc::clone(&queue), ingresses.clone());
        classes.on_change(move |_| all.keys().into_iter().for_each(|k| q.add(k)));
        let (q, all) = (Arc::clone(&queue), ingresses.clone());
        nodes.on_change(move |c| {
            if c.old.as_deref().map(facts) != c.new.as_deref().map(facts) {
                all.keys().into_iter().for_each(|k| q.add(k));
            }
        });
        let events = Recorder::start(client.clone(), "ingress-controller");
        Arc::new(Self { client, ingresses, classes, nodes, events, queue })
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(ingress) = self.ingresses.get(key).filter(|i| i.metadata.deletion_timestamp.is_none()) else {
            return Ok(None);
        };
        let Some(named) = class(&ingress) else { return Ok(None) };
        let Some(found_class) = self.classes.get(named) else {
            let text = format!("ingressclass.networking.k8s.io \"{named}\" not found: nobody serves this Ingress");
            self.events.note(&*ingress, Level::Warning, "IngressClassNotFound", text);
            return Ok(None);
        };
        // Other classes are other programs'.
        if found_class.spec.as_ref().and_then(|s| s.controller.as_deref()) != Some(CONTROLLER) {
            return Ok(None);
        }
        self.look_at_secrets(&ingress).await?;
        let nodes = self.nodes.all();
        let gateways = nodes.iter().filter(|n| usable(n) && n.labels().contains_key(GATEWAY));
        let ips: BTreeSet<String> = gateways.flat_map(|n| addresses(n)).collect();
        let entry = |ip| IngressLoadBalancerIngress { ip: Some(ip), ..Default::default() };
        let wanted: Vec<_> = ips.into_iter().map(entry).collect();
        if shown(&ingress) == wanted.as_slice() {
            return Ok(None);
        }
        let (namespace, name) = split(key);
        let api: Api<Ingress> = Api::namespaced(self.client.clone(), namespace);
        let mut new = Ingress::clone(&ingress);
        new.status.get_or_insert_default().load_balancer =
            Some(IngressLoadBalancerStatus { ingress: Some(wanted).filter(|w| !w.is_empty()) });
        if let Some(written) = found(api.replace_status(name, &PostParams::default(), &new).await)? {
            self.ingresses.apply(written);
        }
        Ok(None)
    }

    /// A Secret that is missing is told once for each change of the Ingress; the gateway takes it when it comes.
    async fn look_at_secrets(&self, ingress: &Ingress) -> Result<(), kube::Error> {
        let namespace = ingress.namespace().unwrap_or_default();
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        for tls in ingress.spec.iter().flat_map(|s| s.tls.iter().flatten()) {
            let Some(name) = tls.secret_name.as_deref().filter(|n| !n.is_empty()) else { continue };
            let why = match api.get_opt(name).await? {
                None => format!("secret \"{name}\" not found"),
                Some(s) if s.type_.as_deref() != Some("kubernetes.io/tls") => {
                    format!("secret \"{name}\" is not of type kubernetes.io/tls")
                }
                Some(_) => continue,
            };
            let hosts = tls.hosts.as_deref().unwrap_or_default().join(", ");
            let text = format!("no certificate for {hosts}: {why}");
            self.events.note(ingress, Level::Warning, "MissingCertificate", text);
        }
        Ok(())
    }
}

impl Reconcile for Ingresses {
    fn name(&self) -> &'static str {
        "ingress-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.ingresses.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}
