//! Services and their endpoints as last seen: what the proxy and the name server answer from.
//!
//! One writer (the watch), readers that hold the lock for one look-up and never across an await. Which Services have
//! changed is kept as a set of names, so any number of events between two looks costs one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::Ipv4Net;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::model::{Endpoint, Id, Service, Slice};

/// The index, shared, with the bell that rings after a change.
#[derive(Clone, Default)]
pub struct Shared {
    /// The index itself.
    pub index: Arc<RwLock<Index>>,
    /// Told after each change that may matter to the proxy.
    pub changed: Arc<Notify>,
    /// What set off the changes of endpoints that are not loaded yet, for metrics. See [`Shared::triggered`].
    pub triggers: Arc<Mutex<Vec<SystemTime>>>,
}

/// Triggers kept; of more changes at once not each is timed.
const TRIGGERS_MAX: usize = 1024;

impl Shared {
    /// Notes when a change of endpoints was set off.
    pub fn triggered(&self, at: SystemTime) {
        let mut triggers = self.triggers.lock();
        if triggers.len() < TRIGGERS_MAX {
            triggers.push(at);
        }
    }
}

/// A Service and its slices. Either may be seen before the other.
#[derive(Debug, Default)]
pub struct Entry {
    service: Option<Service>,
    slices: BTreeMap<Box<str>, Slice>,
}

impl Entry {
    /// The Service, once it exists.
    pub fn service(&self) -> Option<&Service> {
        self.service.as_ref()
    }

    /// All slices of the Service.
    pub fn slices(&self) -> impl Iterator<Item = &Slice> {
        self.slices.values()
    }

    /// All endpoints of the Service, ready or not; the same one may come twice while it moves between slices.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.slices.values().flat_map(|slice| slice.endpoints.iter())
    }
}

/// Everything known.
#[derive(Debug, Default)]
pub struct Index {
    namespaces: BTreeMap<Box<str>, BTreeMap<Box<str>, Entry>>,
    /// Which Service a slice was last seen with: a slice may be given to another.
    owners: HashMap<Id, Box<str>>,
    dirty: BTreeSet<Id>,
    /// Of each ServiceCIDR.
    ranges: BTreeMap<Id, Box<[Ipv4Net]>>,
    services_listed: bool,
    slices_listed: bool,
}

impl Index {
    /// Whether Services and slices have been listed once. Before that, absence means nothing.
    pub fn ready(&self) -> bool {
        self.services_listed && self.slices_listed
    }

    /// The Service of that name, with its endpoints.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Entry> {
        self.namespaces.get(namespace)?.get(name).filter(|entry| entry.service.is_some())
    }

    /// Whether the namespace has any Service.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.get(namespace).is_some_and(|names| names.values().any(|entry| entry.service.is_some()))
    }

    /// All Services, in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &Entry)> {
        self.namespaces.iter().flat_map(|(namespace, names)| {
            let existing = names.iter().filter(|(_, entry)| entry.service.is_some());
            existing.map(move |(name, entry)| (namespace.as_ref(), name.as_ref(), entry))
        })
    }

    /// Services that own the address: as their virtual one, or, for headless Services, as that of an endpoint.
    pub fn by_address(&self, address: IpAddr) -> impl Iterator<Item = (&str, &str, &Entry)> {
        // A scan: reverse questions are rare, and a map of all addresses would cost more than it saves.
        self.iter().filter(move |(_, _, entry)| {
            entry.service().is_some_and(|service| {
                service.cluster_ips.contains(&address)
                    || entry.endpoints().any(|e| e.address == address && (service.headless || e.hostname.is_some()))
            })
        })
    }

    /// Takes the names of what changed since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<Id> {
        std::mem::take(&mut self.dirty)
    }

    /// Marks names as changed, for a second look.
    pub fn mark(&mut self, ids: impl IntoIterator<Item = Id>) {
        self.dirty.extend(ids);
    }

    /// Puts a Service in, or a newer version of it. Says whether anything that matters changed.
    pub fn put_service(&mut self, id: Id, service: Service) -> bool {
        let entry = self.entry(&id);
        if entry.service.as_ref() == Some(&service) {
            return false;
        }
        entry.service = Some(service);
        self.dirty.insert(id);
        true
    }

    /// Takes a Service out.
    pub fn remove_service(&mut self, id: &Id) -> bool {
        let Some(entry) = self.namespaces.get_mut(&id.namespace).and_then(|names| names.get_mut(&id.name)) else {
            return false;
        };
        let existed = entry.service.take().is_some();
        self.drop_empty(id);
        self.dirty.insert(id.clone());
        existed
    }

    /// Puts a slice in, or a newer version of it, under its Service.
    pub fn put_slice(&mut self, own: Id, service: Id, slice: Slice) -> bool {
        let moved = self.owners.get(&own).is_some_and(|owner| *owner != service.name);
        if moved {
            self.remove_slice(&own);
        }
        let entry = self.entry(&service);
        if entry.slices.get(&own.name) == Some(&slice) {
            return moved;
        }
        entry.slices.insert(own.name.clone(), slice);
        self.owners.insert(own, service.name.clone());
        self.dirty.insert(service);
        true
    }

    /// Takes a slice out.
    pub fn remove_slice(&mut self, own: &Id) -> bool {
        let Some(name) = self.owners.remove(own) else { return false };
        let service = Id { namespace: own.namespace.clone(), name };
        self.entry(&service).slices.remove(&own.name);
        self.drop_empty(&service);
        self.dirty.insert(service);
        true
    }

    /// Ends a list of Services: those that were not in it are gone.
    pub fn retain_services(&mut self, listed: &HashSet<Id>) -> bool {
        let gone: Vec<Id> = self
            .iter()
            .map(|(namespace, name, _)| Id { namespace: namespace.into(), name: name.into() })
            .filter(|id| !listed.contains(id))
            .collect();
        let first = !std::mem::replace(&mut self.services_listed, true);
        gone.iter().fold(first, |changed, id| self.remove_service(id) || changed)
    }

    /// Ends a list of slices: those that were not in it are gone.
    pub fn retain_slices(&mut self, listed: &HashSet<Id>) -> bool {
        let gone: Vec<Id> = self.owners.keys().filter(|id| !listed.contains(id)).cloned().collect();
        let first = !std::mem::replace(&mut self.slices_listed, true);
        gone.iter().fold(first, |changed, id| self.remove_slice(id) || changed)
    }

    /// The IPv4 ranges of all ServiceCIDRs; they may overlap. None of those that are not listed yet, or may not be: the
    /// configured range is known without them.
    pub fn ranges(&self) -> impl Iterator<Item = Ipv4Net> {
        self.ranges.values().flatten().copied()
    }

    /// Puts a ServiceCIDR in, or a newer version of it. Says whether its ranges changed.
    pub fn put_ranges(&mut self, id: Id, ranges: Box<[Ipv4Net]>) -> bool {
        let old = self.ranges.insert(id.clone(), ranges);
        old.as_ref() != self.ranges.get(&id)
    }

    /// Takes a ServiceCIDR out.
    pub fn remove_ranges(&mut self, id: &Id) -> bool {
        self.ranges.remove(id).is_some()
    }

    /// Ends a list of ServiceCIDRs: those that were not in it are gone.
    pub fn retain_ranges(&mut self, listed: &HashSet<Id>) -> bool {
        let before = self.ranges.len();
        self.ranges.retain(|id, _| listed.contains(id));
        self.ranges.len() != before
    }

    fn entry(&mut self, id: &Id) -> &mut Entry {
        self.namespaces.entry(id.namespace.clone()).or_default().entry(id.name.clone()).or_default()
    }

    fn drop_empty(&mut self, id: &Id) {
        if let Some(names) = self.namespaces.get_mut(&id.namespace) {
            if names.get(&id.name).is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty()) {
                names.remove(&id.name);
            }
            if names.is_empty() {
                self.namespaces.remove(&id.namespace);
            }
        }
    }
}
