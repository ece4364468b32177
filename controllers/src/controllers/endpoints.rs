//! Endpoints of Services: which addresses and ports stand behind one now.
//!
//! The same plan serves both kinds: EndpointSlices (one set per address family, at most 100 endpoints each) and the
//! older Endpoints. Slices that need no change are not written; what is free in a changed one is filled first.
//!
//! # Limits
//! Topology hints are not set. Endpoints beyond 1,000 are cut, as upstream does, and marked so.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as OldPort, EndpointSubset, Endpoints, Node, ObjectReference, Pod, Service,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, ResourceExt};

use super::pods;
use crate::runtime::controller_ref;
use crate::runtime::informer::{Informer, key_of, split};
use crate::runtime::queue::Queue;
use crate::runtime::select::subset;
use crate::runtime::worker::{self, Error, Outcome, Reconcile, found};

/// Label with the name of the Service of a slice.
pub const SERVICE: &str = "kubernetes.io/service-name";
/// Label with who keeps a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// This controller, as [`MANAGED_BY`] names it.
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const SLICE_MAX: usize = 100;
const OLD_MAX: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// The ports of a slice; slices of different ports are kept apart.
type Ports = Vec<(Option<String>, Option<String>, i32, Option<String>)>;

fn headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    let external = spec.type_.as_deref() == Some("ExternalName");
    spec.selector.as_ref().filter(|s| !s.is_empty() && !external)
}

/// Families of a Service; IPv4 when it does not say.
fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let named = spec.and_then(|s| s.ip_families.as_deref()).unwrap_or_default();
    let mut list: Vec<&'static str> = named.iter().map(|f| if f == "IPv6" { "IPv6" } else { "IPv4" }).collect();
    if list.is_empty() {
        list.push("IPv4");
    }
    list
}

fn addresses<'a>(pod: &'a Pod, family: &'a str) -> impl Iterator<Item = &'a str> {
    let status = pod.status.as_ref();
    let many = status.and_then(|s| s.pod_ips.as_deref()).unwrap_or_default();
    let one = status.and_then(|s| s.pod_ip.as_deref()).filter(|_| many.is_empty());
    let all = many.iter().map(|i| i.ip.as_str()).chain(one).filter(|a| !a.is_empty());
    all.filter(move |a| a.contains(':') == (family == "IPv6"))
}

/// The ports of a Service as a pod has them; a named port that the pod lacks is left out.
fn ports(service: &Service, pod: &Pod) -> Ports {
    let spec = service.spec.as_ref();
    let list = spec.and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let one = |p: &k8s_openapi::api::core::v1::ServicePort| {
        let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
        let number = match &p.target_port {
            None | Some(IntOrString::Int(0)) => p.port,
            Some(IntOrString::Int(n)) => *n,
            Some(IntOrString::String(name)) if name.is_empty() => p.port,
            Some(IntOrString::String(name)) => named_port(pod, name, &protocol)?,
        };
        Some((Some(p.name.clone().unwrap_or_default()), Some(protocol), number, p.app_protocol.clone()))
    };
    list.iter().filter_map(one).collect()
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let all = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let found = |p: &&k8s_openapi::api::core::v1::ContainerPort| {
        p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
    };
    all.filter(found).map(|p| p.container_port).next()
}

fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.namespace(),
        name: Some(pod.name_any()),
        uid: pod.uid(),
        ..ObjectReference::default()
    }
}

fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let mine = spec.subdomain.as_deref() == service.metadata.name.as_deref() && pod.namespace() == service.namespace();
    spec.hostname.clone().filter(|h| mine && !h.is_empty())
}

/// Whether a pod stands behind Services at all.
fn counts(pod: &Pod) -> bool {
    !pods::finished(pod)
}

fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true)
}

fn endpoint(service: &Service, pod: &Pod, address: &str, zone: Option<String>) -> Endpoint {
    let (serving, terminating) = (pods::ready(pod), pods::deleting(pod));
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publishes_not_ready(service) || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        node_name: Some(pods::node(pod).to_owned()).filter(|n| !n.is_empty()),
        target_ref: Some(target(pod)),
        zone,
        ..Endpoint::default()
    }
}

/// What should be done with slices.
#[derive(Debug, Default)]
struct Plan {
    create: Vec<EndpointSlice>,
    update: Vec<EndpointSlice>,
    delete: Vec<String>,
}

/// Endpoints by ports, for one family.
fn wanted(
    service: &Service,
    pods: &[Arc<Pod>],
    family: &str,
    zone: &dyn Fn(&str) -> Option<String>,
) -> BTreeMap<Ports, Vec<Endpoint>> {
    let mut groups: BTreeMap<Ports, Vec<Endpoint>> = BTreeMap::new();
    for pod in pods.iter().filter(|p| counts(p)) {
        if let Some(address) = addresses(pod, family).next() {
            let e = endpoint(service, pod, address, zone(pods::node(pod)));
            groups.entry(ports(service, pod)).or_default().push(e);
        }
    }
    groups
}

fn slice_ports(slice: &EndpointSlice) -> Ports {
    let list = slice.ports.as_deref().unwrap_or_default();
    list.iter().map(|p| (p.name.clone(), p.protocol.clone(), p.port.unwrap_or(0), p.app_protocol.clone())).collect()
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE.into(), service.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    present: &[Arc<EndpointSlice>],
    zone: &dyn Fn(&str) -> Option<String>,
) -> Plan {
    let mut plan = Plan::default();
    let labels = labels(service);
    let families = families(service);
    let gone = present.iter().filter(|s| !families.contains(&s.address_type.as_str()));
    plan.delete.extend(gone.map(|s| s.name_any()));
    for family in families {
        let mut groups = wanted(service, pods, family, zone);
        if groups.is_empty() {
            // A Service without endpoints has one empty slice, so that readers see that it was looked at.
            groups.insert(Ports::new(), vec![]);
        }
        let mut slices: Vec<&Arc<EndpointSlice>> = present.iter().filter(|s| s.address_type == family).collect();
        slices.sort_by_key(|s| s.name_any());
        for (ports, endpoints) in groups {
            let (mine, rest): (Vec<_>, Vec<_>) = slices.into_iter().partition(|s| slice_ports(s) == ports);
            slices = rest;
            fill(&mut plan, service, family, &labels, &ports, endpoints, &mine);
        }
        plan.delete.extend(slices.iter().map(|s| s.name_any()));
    }
    plan
}

/// Puts endpoints into the slices of their ports: each stays where it is, new ones go where there is room.
fn fill(
    plan: &mut Plan,
    service: &Service,
    family: &str,
    labels: &BTreeMap<String, String>,
    ports: &Ports,
    endpoints: Vec<Endpoint>,
    present: &[&Arc<EndpointSlice>],
) {
    let mut left: BTreeMap<String, Endpoint> =
        endpoints.into_iter().map(|e| (e.addresses.first().cloned().unwrap_or_default(), e)).collect();
    let mut kept: Vec<(Option<&Arc<EndpointSlice>>, Vec<Endpoint>)> = Vec::new();
    for slice in present {
        let old = slice.endpoints.iter().flatten();
        let stay = old.filter_map(|e| left.remove(e.addresses.first()?)).collect();
        kept.push((Some(slice), stay));
    }
    let mut new = left.into_values().peekable();
    for (_, list) in &mut kept {
        while list.len() < SLICE_MAX
            && let Some(e) = new.next()
        {
            list.push(e);
        }
    }
    while new.peek().is_some() {
        kept.push((None, new.by_ref().take(SLICE_MAX).collect()));
    }
    if kept.is_empty() {
        kept.push((None, vec![]));
    }
    let mut any = false;
    let nothing = kept.iter().all(|(_, l)| l.is_empty());
    for (slice, list) in kept {
        // Empty slices go, but for one if there is nothing else.
        if list.is_empty() && (!nothing || any) {
            plan.delete.extend(slice.map(|s| s.name_any()));
            continue;
        }
        any = true;
        let mut next = slice.map_or_else(EndpointSlice::default, |s| EndpointSlice::clone(s));
        next.address_type = family.to_owned();
        next.metadata.labels = Some(labels.clone());
        next.endpoints = Some(list).filter(|l| !l.is_empty());
        next.ports = Some(ports.iter().map(port).collect::<Vec<_>>()).filter(|p| !p.is_empty());
        match slice {
            None => {
                next.metadata.generate_name = Some(format!("{}-", service.name_any()));
                next.metadata.namespace = service.namespace();
                next.metadata.owner_references = Some(vec![controller_ref(service)]);
                plan.create.push(next);
            }
            Some(s) if same(s, &next) => {}
            Some(_) => plan.update.push(next),
        }
    }
}

fn same(old: &EndpointSlice, new: &EndpointSlice) -> bool {
    let list = |s: &EndpointSlice| s.endpoints.clone().unwrap_or_default();
    list(old) == list(new) && old.metadata.labels == new.metadata.labels
}

fn port((name, protocol, number, app): &(Option<String>, Option<String>, i32, Option<String>)) -> EndpointPort {
    EndpointPort { name: name.clone(), protocol: protocol.clone(), port: Some(*number), app_protocol: app.clone() }
}

/// The older kind: addresses grouped by ports, ready and not.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let family = families(service)[0];
    let mut groups: BTreeMap<Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let mut number = 0;
    let mut over = false;
    let mut sorted: Vec<&Arc<Pod>> = pods.iter().filter(|p| counts(p)).collect();
    sorted.sort_by_key(|p| !pods::ready(p));
    for pod in sorted {
        let publish = publishes_not_ready(service);
        if pods::deleting(pod) && !publish {
            continue;
        }
        let Some(ip) = addresses(pod, family).next() else { continue };
        let ports = ports(service, pod);
        if ports.is_empty() && !headless(service) {
            continue;
        }
        if number >= OLD_MAX {
            over = true;
            break;
        }
        number += 1;
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: hostname(service, pod),
            node_name: Some(pods::node(pod).to_owned()).filter(|n| !n.is_empty()),
            target_ref: Some(target(pod)),
        };
        let group = groups.entry(ports).or_default();
        if pods::ready(pod) || publish { group.0.push(address) } else { group.1.push(address) }
    }
    let list = groups.into_iter().map(|(ports, (mut ready, mut other))| {
        ready.sort_by(|a, b| a.ip.cmp(&b.ip));
        other.sort_by(|a, b| a.ip.cmp(&b.ip));
        let old = |(name, protocol, port, app): (Option<String>, Option<String>, i32, Option<String>)| OldPort {
            name: name.filter(|n| !n.is_empty()),
            protocol,
            port,
            app_protocol: app,
        };
        EndpointSubset {
            addresses: Some(ready).filter(|l| !l.is_empty()),
            not_ready_addresses: Some(other).filter(|l| !l.is_empty()),
            ports: Some(ports.into_iter().map(old).collect::<Vec<_>>()).filter(|l| !l.is_empty()),
        }
    });
    (list.collect(), over)
}

/// What both controllers read.
#[derive(Clone)]
pub struct Sources {
    /// Services.
    pub services: Informer<Service>,
    /// Pods.
    pub pods: Informer<Pod>,
    /// Nodes, for zones.
    pub nodes: Informer<Node>,
}

impl Sources {
    /// Enqueues Services when they, or pods that they select, change.
    fn subscribe(&self, queue: &Arc<Queue>) {
        let q = Arc::clone(queue);
        self.services.on_change(move |c| q.add(key_of(&**c.latest())));
        let (q, services) = (Arc::clone(queue), self.services.clone());
        self.pods.on_change(move |c| {
            let facts = |p: &Pod| {
                let ips: Vec<String> =
                    ["IPv4", "IPv6"].iter().flat_map(|f| addresses(p, f)).map(str::to_owned).collect();
                (p.metadata.labels.clone(), ips, pods::ready(p), pods::deleting(p), counts(p), pods::node(p).to_owned())
            };
            if let (Some(a), Some(b)) = (&c.old, &c.new)
                && facts(a) == facts(b)
            {
                return;
            }
            for service in services.in_namespace(&c.latest().namespace().unwrap_or_default()) {
                let hit = |p: &Option<Arc<Pod>>| {
                    p.as_ref().is_some_and(|p| selector(&service).is_some_and(|s| subset(Some(s), &p.metadata.labels)))
                };
                if hit(&c.old) || hit(&c.new) {
                    q.add(key_of(&*service));
                }
            }
        });
    }

    fn selected(&self, service: &Service) -> Option<Vec<Arc<Pod>>> {
        let selector = selector(service)?;
        let mut pods = self.pods.in_namespace(&service.namespace().unwrap_or_default());
        pods.retain(|p| subset(Some(selector), &p.metadata.labels));
        Some(pods)
    }

    fn zone(&self, node: &str) -> Option<String> {
        self.nodes.get(node)?.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").cloned()
    }
}

/// Keeps EndpointSlices.
pub struct Slices {
    client: Client,
    sources: Sources,
    slices: Informer<EndpointSlice>,
    queue: Arc<Queue>,
}

impl Slices {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, sources: Sources, slices: Informer<EndpointSlice>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        sources.subscribe(&queue);
        let q = Arc::clone(&queue);
        slices.on_change(move |c| {
            let label = |k: &str| c.latest().labels().get(k).cloned().unwrap_or_default();
            if label(MANAGED_BY) == MANAGER {
                q.add(format!("{}/{}", c.latest().namespace().unwrap_or_default(), label(SERVICE)));
            }
        });
        Arc::new(Self { client, sources, slices, queue })
    }

    async fn sync(&self, key: &str) -> Outcome {
        let (namespace, name) = split(key);
        let Some(service) = self.sources.services.get(key).filter(|s| s.metadata.deletion_timestamp.is_none()) else {
            return Ok(None);
        };
        let Some(pods) = self.sources.selected(&service) else { return Ok(None) };
        let mut present = self.slices.in_namespace(namespace);
        present.retain(|s| {
            let label = |k: &str| s.labels().get(k).map(String::as_str);
            label(SERVICE) == Some(name)
                && label(MANAGED_BY) == Some(MANAGER)
                && s.metadata.deletion_timestamp.is_none()
        });
        let plan = plan(&service, &pods, &present, &|n| self.sources.zone(n));
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), namespace);
        // What was written counts at once: the watch may bring it after the next change of a pod.
        for slice in plan.create {
            match api.create(&PostParams::default(), &slice).await {
                Ok(s) => self.slices.apply(s),
                Err(e) if worker::namespace_terminating(&e) => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        }
        for slice in plan.update {
            let written = api.replace(&slice.name_any(), &PostParams::default(), &slice).await?;
            self.slices.apply(written);
        }
        for name in plan.delete {
            found(api.delete(&name, &DeleteParams::default()).await)?;
        }
        Ok(None)
    }
}

impl Reconcile for Slices {
    fn name(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.sources.services.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}

/// Keeps Endpoints.
pub struct Olds {
    client: Client,
    sources: Sources,
    endpoints: Informer<Endpoints>,
    queue: Arc<Queue>,
}

impl Olds {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, sources: Sources, endpoints: Informer<Endpoints>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        sources.subscribe(&queue);
        let q = Arc::clone(&queue);
        endpoints.on_change(move |c| q.add(key_of(&**c.latest())));
        Arc::new(Self { client, sources, endpoints, queue })
    }

    async fn sync(&self, key: &str) -> Outcome {
        let (namespace, name) = split(key);
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), namespace);
        let Some(service) = self.sources.services.get(key) else {
            // Endpoints named like a Service that is gone go with it; those of leader elections and the like stay.
            let managed = |e: &Arc<Endpoints>| e.labels().get(SERVICE_OLD).map(String::as_str) == Some(OLD_MANAGER);
            if self.endpoints.get(key).is_some_and(|e| managed(&e)) {
                found(api.delete(name, &DeleteParams::default()).await)?;
            }
            return Ok(None);
        };
        let Some(pods) = self.sources.selected(&service) else { return Ok(None) };
        let (subsets, over) = subsets(&service, &pods);
        let present = self.endpoints.get(key);
        let mut next = present.as_deref().cloned().unwrap_or_default();
        next.subsets = Some(subsets).filter(|s| !s.is_empty());
        let mut labels = service.metadata.labels.clone().unwrap_or_default();
        labels.remove(HEADLESS);
        if headless(&service) {
            labels.insert(HEADLESS.into(), String::new());
        }
        labels.insert(SERVICE_OLD.into(), OLD_MANAGER.into());
        next.metadata.labels = Some(labels);
        if over {
            next.annotations_mut().insert(OVER_CAPACITY.into(), "truncated".into());
        } else if let Some(a) = &mut next.metadata.annotations {
            a.remove(OVER_CAPACITY);
        }
        next.metadata.name = Some(name.to_owned());
        self.write(&api, present.as_deref(), next).await?;
        Ok(None)
    }

    async fn write(&self, api: &Api<Endpoints>, present: Option<&Endpoints>, next: Endpoints) -> Result<(), Error> {
        match present {
            Some(p) if *p == next => Ok(()),
            Some(_) => {
                let written = api.replace(&next.name_any(), &PostParams::default(), &next).await?;
                self.endpoints.apply(written);
                Ok(())
            }
            None => match api.create(&PostParams::default(), &next).await {
                Ok(e) => {
                    self.endpoints.apply(e);
                    Ok(())
                }
                Err(e) if worker::namespace_terminating(&e) => Ok(()),
                Err(e) => Err(e.into()),
            },
        }
    }
}

/// Label on Endpoints that a controller keeps.
const SERVICE_OLD: &str = "endpoints.kubernetes.io/managed-by";
const OLD_MANAGER: &str = "endpoint-controller";

impl Reconcile for Olds {
    fn name(&self) -> &'static str {
        "endpoint-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.sources.services.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;
