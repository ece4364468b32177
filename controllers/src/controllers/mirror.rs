//! EndpointSlices for Endpoints that people write themselves, so that Services without a selector work: proxies and DNS read
//! slices only.
//!
//! Left alone are Endpoints of Services that have a selector (those have slices of their own), of no Service, of leader
//! elections, and those labelled `endpointslice.kubernetes.io/skip-mirror: "true"`.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort as SlicePort, EndpointSlice};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, ResourceExt};

use super::endpoints::SERVICE;
use crate::runtime::controller_ref;
use crate::runtime::informer::{Informer, key_of, split};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{self, Outcome, Reconcile, found};

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const CHANGED: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Addresses mirrored of one subset; more are left out, as upstream does.
const SUBSET_MAX: usize = 1000;

/// Keeps the mirrors.
pub struct Mirror {
    client: Client,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Informer<EndpointSlice>,
    queue: Arc<Queue>,
}

impl Mirror {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(
        client: Client,
        services: Informer<Service>,
        endpoints: Informer<Endpoints>,
        slices: Informer<EndpointSlice>,
    ) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        services.on_change(move |c| q.add(key_of(&**c.latest())));
        let q = Arc::clone(&queue);
        endpoints.on_change(move |c| q.add(key_of(&**c.latest())));
        let q = Arc::clone(&queue);
        slices.on_change(move |c| {
            let label = |k: &str| c.latest().labels().get(k).cloned().unwrap_or_default();
            if label(MANAGED_BY) == MANAGER {
                q.add(format!("{}/{}", c.latest().namespace().unwrap_or_default(), label(SERVICE)));
            }
        });
        Arc::new(Self { client, services, endpoints, slices, queue })
    }

    async fn sync(&self, key: &str) -> Outcome {
        let (namespace, name) = split(key);
        let source = self.endpoints.get(key).filter(|e| is_mirrored(e));
        let bare = self.services.get(key).is_some_and(|s| {
            s.metadata.deletion_timestamp.is_none()
                && s.spec.as_ref().and_then(|s| s.selector.as_ref()).is_none_or(BTreeMap::is_empty)
        });
        let wanted = source.filter(|_| bare).map_or_else(Vec::new, |e| mirror(&e));
        let mut present = self.slices.in_namespace(namespace);
        present.retain(|s| {
            let label = |k: &str| s.labels().get(k).map(String::as_str);
            label(SERVICE) == Some(name) && label(MANAGED_BY) == Some(MANAGER)
        });
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), namespace);
        for mut slice in wanted {
            let same = |s: &Arc<EndpointSlice>| s.address_type == slice.address_type && s.ports == slice.ports;
            let Some(at) = present.iter().position(same) else {
                match api.create(&PostParams::default(), &slice).await {
                    Ok(s) => self.slices.apply(s),
                    Err(e) if worker::namespace_terminating(&e) => return Ok(None),
                    Err(e) => return Err(e.into()),
                }
                continue;
            };
            let old = present.swap_remove(at);
            if old.endpoints == slice.endpoints && old.labels() == slice.labels() {
                continue;
            }
            slice.metadata.name.clone_from(&old.metadata.name);
            slice.metadata.resource_version.clone_from(&old.metadata.resource_version);
            let written = api.replace(&old.name_any(), &PostParams::default(), &slice).await?;
            self.slices.apply(written);
        }
        for rest in present {
            found(api.delete(&rest.name_any(), &DeleteParams::default()).await)?;
        }
        Ok(None)
    }
}

fn is_mirrored(e: &Endpoints) -> bool {
    e.metadata.deletion_timestamp.is_none()
        && e.labels().get(SKIP).is_none_or(|v| v != "true")
        && !e.annotations().contains_key(LEADER)
}

/// The slices of Endpoints: one for each set of ports and family of addresses.
fn mirror(source: &Endpoints) -> Vec<EndpointSlice> {
    let mut out: Vec<EndpointSlice> = vec![];
    for subset in source.subsets.iter().flatten() {
        let ports: Vec<SlicePort> = subset.ports.iter().flatten().map(port).collect();
        for (family, endpoints) in families(subset) {
            let same = |s: &&mut EndpointSlice| s.address_type == family && s.ports.as_ref() == Some(&ports);
            match out.iter_mut().find(same) {
                Some(s) => s.endpoints.get_or_insert_default().extend(endpoints),
                None => out.push(slice(source, family, ports.clone(), endpoints)),
            }
        }
    }
    out
}

fn port(p: &EndpointPort) -> SlicePort {
    SlicePort {
        app_protocol: p.app_protocol.clone(),
        // An unnamed port prints as the empty name.
        name: Some(p.name.clone().unwrap_or_default()),
        port: Some(p.port),
        protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".into())),
    }
}

fn families(subset: &EndpointSubset) -> Vec<(&'static str, Vec<Endpoint>)> {
    let ready = subset.addresses.iter().flatten().map(|a| (a, true));
    let unready = subset.not_ready_addresses.iter().flatten().map(|a| (a, false));
    let mut by_family: BTreeMap<&'static str, Vec<Endpoint>> = BTreeMap::new();
    for (address, ready) in ready.chain(unready).take(SUBSET_MAX) {
        let family = match address.ip.parse() {
            Ok(std::net::IpAddr::V4(_)) => "IPv4",
            Ok(std::net::IpAddr::V6(_)) => "IPv6",
            // Validation lets no other text in; what is there from elsewhere is left out.
            Err(_) => continue,
        };
        by_family.entry(family).or_default().push(endpoint(address, ready));
    }
    by_family.into_iter().collect()
}

fn endpoint(a: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![a.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: a.hostname.clone().filter(|h| !h.is_empty()),
        node_name: a.node_name.clone(),
        target_ref: a.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn slice(source: &Endpoints, family: &str, ports: Vec<SlicePort>, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut s = EndpointSlice {
        address_type: family.to_owned(),
        ports: Some(ports),
        endpoints: Some(endpoints),
        ..EndpointSlice::default()
    };
    let name = source.name_any();
    s.metadata.generate_name = Some(format!("{name}-"));
    s.metadata.namespace.clone_from(&source.metadata.namespace);
    s.metadata.owner_references = Some(vec![controller_ref(source)]);
    s.metadata.labels.clone_from(&source.metadata.labels);
    s.labels_mut().insert(SERVICE.into(), name);
    s.labels_mut().insert(MANAGED_BY.into(), MANAGER.into());
    let mut notes = source.annotations().clone();
    notes.retain(|k, _| k != APPLIED && k != CHANGED);
    s.metadata.annotations = Some(notes).filter(|n| !n.is_empty());
    s
}

impl Reconcile for Mirror {
    fn name(&self) -> &'static str {
        "endpointslicemirroring-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.endpoints.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn endpoints(v: serde_json::Value) -> Endpoints {
        serde_json::from_value(v).expect("an object of the kind")
    }

    #[test]
    fn subsets_with_the_same_ports_share_a_slice_per_family() {
        let e = endpoints(
            json!({"metadata": {"name": "db", "uid": "u", "annotations": {APPLIED: "{}", "a": "b"}}, "subsets": [
                {"addresses": [{"ip": "10.0.0.1"}], "notReadyAddresses": [{"ip": "10.0.0.2"}, {"ip": "fd00::1"}],
                    "ports": [{"name": "sql", "port": 5432}]},
                {"addresses": [{"ip": "10.0.0.3"}], "ports": [{"name": "sql", "port": 5432}]},
                {"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]},
            ]}),
        );
        let all = mirror(&e);
        let count = |s: &EndpointSlice| s.endpoints.as_ref().map_or(0, Vec::len);
        let shown: Vec<_> = all.iter().map(|s| (s.address_type.as_str(), count(s))).collect();
        assert_eq!(shown, [("IPv4", 3), ("IPv6", 1), ("IPv4", 1)]);
        assert_eq!(all[0].annotations().keys().collect::<Vec<_>>(), ["a"]);
        let ready: Vec<_> =
            all[0].endpoints.iter().flatten().map(|e| e.conditions.as_ref().and_then(|c| c.ready)).collect();
        assert_eq!(ready, [Some(true), Some(false), Some(true)]);
    }

    #[test]
    fn leader_elections_are_not_mirrored() {
        assert!(is_mirrored(&endpoints(json!({"metadata": {"name": "a"}}))));
        assert!(!is_mirrored(&endpoints(json!({"metadata": {"name": "a", "annotations": {LEADER: "{}"}}}))));
        assert!(!is_mirrored(&endpoints(json!({"metadata": {"name": "a", "labels": {SKIP: "true"}}}))));
    }
}
