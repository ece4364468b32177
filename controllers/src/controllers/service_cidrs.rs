//! ServiceCIDRs: ready while they stand, and kept from going while an address of a Service would be in no range then.
//!
//! A range that another holds whole may always go. Of ranges that hold each other, and all are to go, the last stays.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::{Change, Informer};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{Outcome, Reconcile, found};
use crate::runtime::{now, seconds_since};

const NAME: &str = "service-cidr-controller";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Selects the addresses that the servers gave to Services.
pub(crate) const MANAGED: &str = "ipaddress.kubernetes.io/managed-by=ipallocator.k8s.io";
/// So long after its deletion was asked for a range stays at least: every server has noticed then, and none gives an
/// address of it any more.
const GRACE: Duration = Duration::from_secs(10);

/// What the condition `Ready` of a range says.
#[derive(Debug)]
struct Told {
    status: &'static str,
    reason: &'static str,
    message: &'static str,
}

const READY: Told = Told { status: "True", reason: "", message: "Kubernetes Service CIDR is ready" };
const KEPT: Told = Told {
    status: "False",
    reason: "Terminating",
    message: "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR",
};

impl Told {
    /// Whether the condition of a range says so already.
    fn by(&self, range: &ServiceCIDR) -> bool {
        let all = range.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let mut ready = all.filter(|c| c.type_ == "Ready");
        ready.any(|c| c.status == self.status && c.reason == self.reason && c.message == self.message)
    }
}

/// The controller.
pub struct Controller {
    client: Client,
    events: Recorder,
    ranges: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
    queue: Arc<Queue>,
}

impl Controller {
    /// Makes the controller and subscribes it to changes. `addresses` are those that the servers gave; of each the
    /// name is enough.
    #[must_use]
    pub fn new(client: Client, ranges: Informer<ServiceCIDR>, addresses: Informer<IPAddress>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let (q, known) = (Arc::clone(&queue), ranges.clone());
        ranges.on_change(move |c| {
            q.add(c.latest().name_any());
            let own = cidrs(c.latest());
            enqueue(&known, &q, |range| own.iter().any(|o| o.contains(range) || range.contains(o)));
        });
        let (q, known) = (Arc::clone(&queue), ranges.clone());
        addresses.on_change(move |c| {
            if let Some(ip) = came_or_went(c) {
                enqueue(&known, &q, |range| holds(range, ip));
            }
        });
        Arc::new(Self { events: Recorder::start(client.clone(), NAME), client, ranges, addresses, queue })
    }

    async fn sync(&self, name: &str) -> Outcome {
        let Some(range) = self.ranges.get(name) else { return Ok(None) };
        let Some(deleted) = &range.metadata.deletion_timestamp else { return self.keep_ready(&range).await };
        let all = self.ranges.all();
        let leaving = Leaving::new(&range, all.iter().map(|r| &**r));
        if !leaving.covered() && self.addresses.all().iter().any(|a| leaving.needed_by(&a.name_any())) {
            return self.tell(&range, &KEPT).await;
        }
        let passed = Duration::try_from_secs_f64(seconds_since(deleted)).unwrap_or_default();
        if passed < GRACE {
            return Ok(Some(GRACE.saturating_sub(passed)));
        }
        // Asked of the server: copies may be behind, and a removed finalizer does not come back.
        let api: Api<ServiceCIDR> = Api::all(self.client.clone());
        let all = api.list(&ListParams::default()).await?.items;
        let Some(range) = all.iter().find(|r| r.name_any() == name && r.uid() == range.uid()) else { return Ok(None) };
        let leaving = Leaving::new(range, &all);
        if !leaving.covered() {
            let api: Api<IPAddress> = Api::all(self.client.clone());
            let given = api.list_metadata(&ListParams::default().labels(MANAGED)).await?;
            if given.items.iter().any(|a| leaving.needed_by(&a.name_any())) {
                return self.tell(range, &KEPT).await;
            }
        }
        if held(range) {
            let others = range.finalizers().iter().filter(|f| *f != FINALIZER).cloned().collect();
            self.set_finalizers(range, others).await?;
        }
        Ok(None)
    }

    async fn keep_ready(&self, range: &ServiceCIDR) -> Outcome {
        if !held(range) {
            let mut all = range.finalizers().to_vec();
            all.push(FINALIZER.to_owned());
            self.set_finalizers(range, all).await?;
        }
        self.tell(range, &READY).await.inspect_err(|_| {
            let message = "The ServiceCIDR Status can not be set to Ready=True";
            self.events.note(range, Level::Warning, "KubernetesServiceCIDRError", message);
        })
    }

    /// Writes the list of finalizers, unless the object has changed since it was read.
    async fn set_finalizers(&self, range: &ServiceCIDR, finalizers: Vec<String>) -> Result<(), kube::Error> {
        let patch = json!({"metadata": {
            "uid": range.uid(), "resourceVersion": range.resource_version(), "finalizers": finalizers,
        }});
        let api: Api<ServiceCIDR> = Api::all(self.client.clone());
        found(api.patch_metadata(&range.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await)?;
        Ok(())
    }

    async fn tell(&self, range: &ServiceCIDR, told: &Told) -> Outcome {
        if told.by(range) {
            return Ok(None);
        }
        let name = range.name_any();
        let status = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
            "status": {"conditions": [{"type": "Ready", "status": told.status, "reason": told.reason,
                "message": told.message, "lastTransitionTime": now()}]}});
        let api: Api<ServiceCIDR> = Api::all(self.client.clone());
        found(api.patch_status(&name, &PatchParams::apply(NAME).force(), &Patch::Apply(&status)).await)?;
        Ok(None)
    }
}

/// Enqueues the ranges that are being deleted and of which a CIDR is such. What others are does not depend on anything.
fn enqueue(known: &Informer<ServiceCIDR>, queue: &Queue, such: impl Fn(&IpNet) -> bool) {
    let leaving = known.all().into_iter().filter(|r| r.metadata.deletion_timestamp.is_some());
    leaving.filter(|r| cidrs(r).iter().any(&such)).for_each(|r| queue.add(r.name_any()));
}

/// The address that a change is about, unless it was there before and still is.
fn came_or_went(change: &Change<IPAddress>) -> Option<IpAddr> {
    let stays = change.old.is_some() && change.new.is_some();
    if stays { None } else { change.latest().name_any().parse().ok() }
}

/// A range that is being deleted, among the others.
#[derive(Debug)]
struct Leaving {
    own: Vec<IpNet>,
    others: Vec<IpNet>,
}

impl Leaving {
    fn new<'a>(range: &ServiceCIDR, all: impl IntoIterator<Item = &'a ServiceCIDR>) -> Self {
        // One that somebody else alone still holds may be gone the next moment.
        let stays = |r: &ServiceCIDR| r.metadata.deletion_timestamp.is_none() || held(r);
        let others = all.into_iter().filter(|r| r.metadata.name != range.metadata.name && stays(r));
        Self { own: cidrs(range), others: others.flat_map(cidrs).collect() }
    }

    /// Whether others hold all of it: no address needs it then.
    fn covered(&self) -> bool {
        self.own.iter().all(|own| self.others.iter().any(|other| other.contains(own)))
    }

    /// Whether the address of that name is in this range and in no other.
    fn needed_by(&self, address: &str) -> bool {
        let within = |ranges: &[IpNet], ip| ranges.iter().any(|r| holds(r, ip));
        // What is no address is in no range; the server lets none through.
        address.parse().is_ok_and(|ip| within(&self.own, ip) && !within(&self.others, ip))
    }
}

fn held(range: &ServiceCIDR) -> bool {
    range.finalizers().iter().any(|f| f == FINALIZER)
}

fn cidrs(range: &ServiceCIDR) -> Vec<IpNet> {
    let all = range.spec.iter().flat_map(|s| s.cidrs.iter().flatten());
    all.filter_map(|c| c.parse().ok()).collect()
}

/// Whether a Service may have the address from that range: the network's own and, of IPv4, the last are given to none.
fn holds(range: &IpNet, ip: IpAddr) -> bool {
    range.contains(&ip) && ip != range.network() && !(ip.is_ipv4() && ip == range.broadcast())
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        NAME
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.ranges.keys().into_iter().for_each(|k| self.queue.add(k));
    }

    /// One: two ranges that hold each other must not be looked at at once, else both would go.
    fn workers(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A range from words: its name, `-` when it is being deleted, `!` when our finalizer is off, then its CIDRs.
    fn range(words: &str) -> ServiceCIDR {
        let mut words = words.split_whitespace();
        let name = words.next().unwrap();
        let deleted = name.contains('-').then_some("2026-01-01T00:00:00Z");
        let finalizers = if name.contains('!') { vec!["somebody/else"] } else { vec![FINALIZER] };
        serde_json::from_value(json!({
            "metadata": {"name": name.trim_end_matches(['-', '!']), "deletionTimestamp": deleted, "finalizers": finalizers},
            "spec": {"cidrs": words.collect::<Vec<_>>()}}))
        .unwrap()
    }

    #[test]
    fn what_may_go() {
        for (ranges, addresses, free) in [
            ("a- 10.0.0.0/24", "", true),
            ("a- 10.0.0.0/24", "10.0.0.1", false),
            ("a- 10.0.0.0/24", "10.0.1.1 10.0.0.0 10.0.0.255 nonsense", true),
            // Others hold the whole.
            ("a- 10.0.0.0/24, b 10.0.0.0/16", "10.0.0.1", true),
            ("a- 10.0.0.0/24, b 10.0.0.0/24", "10.0.0.1", true),
            ("a- 10.0.0.0/24, b- 10.0.0.0/24", "10.0.0.1", true),
            ("a- 10.0.0.0/24, b-! 10.0.0.0/24", "10.0.0.1", false),
            ("a- 10.0.0.0/24 fd00::/112, b 10.0.0.0/16, c fd00::/64", "10.0.0.1 fd00::1", true),
            // Others hold a part: the address in it, or another one.
            ("a- 10.0.0.0/16, b 10.0.1.0/24", "10.0.1.1", true),
            ("a- 10.0.0.0/16, b 10.0.1.0/24", "10.0.1.1 10.0.2.1", false),
            ("a- 10.0.0.0/16, b 10.0.1.0/24", "10.0.1.0", false),
            ("a- 10.0.0.0/16, b 10.0.1.0/24", "10.0.1.255", false),
            ("a- 10.0.0.0/24 fd00::/112, b 10.0.0.0/16", "10.0.0.1", true),
            ("a- 10.0.0.0/24 fd00::/112, b 10.0.0.0/16", "fd00::ffff", false),
            ("a- 10.0.0.0/24 fd00::/112, b 10.0.0.0/16", "fd00::", true),
        ] {
            let all: Vec<ServiceCIDR> = ranges.split(", ").map(range).collect();
            let leaving = Leaving::new(&all[0], &all);
            let may = leaving.covered() || !addresses.split_whitespace().any(|a| leaving.needed_by(a));
            assert_eq!(may, free, "{ranges} with {addresses}");
        }
    }

    #[test]
    fn a_condition_is_written_when_it_says_something_else() {
        let mut said = range("a 10.0.0.0/24");
        assert!(!READY.by(&said) && !KEPT.by(&said));
        for (told, other) in [(&READY, &KEPT), (&KEPT, &READY)] {
            let condition = json!({"type": "Ready", "status": told.status, "reason": told.reason,
                "message": told.message, "lastTransitionTime": "2026-01-01T00:00:00Z"});
            said.status = serde_json::from_value(json!({"conditions": [condition]})).unwrap();
            assert!(told.by(&said) && !other.by(&said));
        }
    }

    #[test]
    fn who_is_looked_at_after_a_change() {
        let (ranges, addresses, queue) = (Informer::default(), Informer::default(), Queue::default());
        for words in ["a- 10.0.0.0/24", "b 10.0.0.0/16", "c- 10.1.0.0/24"] {
            ranges.apply(range(words));
        }
        let address = |name: &str, version: &str| -> IPAddress {
            serde_json::from_value(json!({"metadata": {"name": name, "uid": name, "resourceVersion": version}}))
                .unwrap()
        };
        let looked_at = |ip: Option<IpAddr>| {
            ip.into_iter().for_each(|ip| enqueue(&ranges, &queue, |r| holds(r, ip)));
            std::iter::from_fn(|| queue.next().now_or_never()).inspect(|key| queue.done(key)).collect::<Vec<_>>()
        };
        let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let s = Arc::clone(&seen);
        addresses.on_change(move |c| s.lock().push(came_or_went(c)));
        addresses.apply(address("10.0.0.1", "1"));
        addresses.apply(address("10.0.0.1", "2"));
        addresses.remove("10.0.0.1", None);
        addresses.apply(address("10.0.1.1", "3"));
        let looks: Vec<Vec<String>> = seen.lock().drain(..).map(looked_at).collect();
        assert_eq!(looks, [vec!["a"], vec![], vec!["a"], vec![]]);
    }
}
