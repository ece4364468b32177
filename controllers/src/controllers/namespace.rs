//! The end of a namespace: everything in it is deleted, then it is let go.
//!
//! Pods go first, because what they use (accounts, secrets, volumes, policies) must outlive them. What kinds there are
//! is asked from discovery each time: a kind that was added a second ago counts too. What remains, and why, is told in
//! conditions; the namespace is finalised only when a list of every kind came back empty.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, ResourceExt};

use super::discovery::{self, Found};
use crate::runtime::informer::Informer;
use crate::runtime::now;
use crate::runtime::queue::Queue;
use crate::runtime::worker::{self, Error, Outcome, Reconcile, found};

const FINALIZER: &str = "kubernetes";
const PAGE: u32 = 500;

/// The controller.
pub struct Controller {
    client: Client,
    namespaces: Informer<Namespace>,
    queue: Arc<Queue>,
}

/// What is left in a namespace.
#[derive(Debug, Default)]
struct Remains {
    /// Objects by `plural.group`.
    objects: BTreeMap<String, usize>,
    /// Objects by finalizer.
    finalizers: BTreeMap<String, usize>,
    /// Kinds whose content could not be deleted, and why.
    failures: BTreeSet<String>,
    /// Why the kinds are not all known.
    discovery: Option<String>,
}

impl Remains {
    fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.failures.is_empty() && self.discovery.is_none()
    }
}

impl Controller {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, namespaces: Informer<Namespace>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        namespaces.on_change(move |c| {
            if c.new.as_ref().is_some_and(|n| n.metadata.deletion_timestamp.is_some()) {
                q.add(c.latest().name_any());
            }
        });
        Arc::new(Self { client, namespaces, queue })
    }

    async fn sync(&self, name: &str) -> Outcome {
        let Some(ns) = self.namespaces.get(name).filter(|n| n.metadata.deletion_timestamp.is_some()) else {
            return Ok(None);
        };
        let finalizers = ns.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
        if !finalizers.iter().any(|f| f == FINALIZER) {
            return Ok(None);
        }
        let remains = self.empty(name).await;
        let Some(ns) = self.report(&ns, &remains).await? else { return Ok(None) };
        if !remains.is_empty() {
            // Deletions are on their way; their number says how soon to look again.
            return Ok(Some(Duration::from_millis(if remains.objects.len() > 3 { 500 } else { 100 }).max(delay(&ns))));
        }
        let mut last = ns;
        if let Some(spec) = &mut last.spec {
            spec.finalizers = Some(finalizers.into_iter().filter(|f| f != FINALIZER).collect());
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        let finalized: Result<serde_json::Value, _> = {
            let bytes = serde_json::to_vec(&last).map_err(kube::Error::SerdeError)?;
            let request = kube::core::Request::new(api.resource_url())
                .replace_subresource("finalize", name, &PostParams::default(), bytes)
                .map_err(kube::Error::BuildRequest)?;
            self.client.request(request).await
        };
        found(finalized)?;
        Ok(None)
    }

    /// Deletes everything, and tells what is there still.
    async fn empty(&self, namespace: &str) -> Remains {
        let mut remains = Remains::default();
        let kinds = match discovery::namespaced(&self.client).await {
            Ok(found) => {
                remains.discovery = found.failed;
                found.kinds
            }
            Err(e) => {
                remains.discovery = Some(worker::text(&e));
                return remains;
            }
        };
        let (pods, others): (Vec<Found>, Vec<Found>) =
            kinds.into_iter().partition(|k| k.resource.plural == "pods" && k.resource.group.is_empty());
        for group in [pods, others] {
            for kind in group {
                if let Err(e) = self.empty_kind(namespace, &kind, &mut remains).await {
                    remains.failures.insert(format!("unexpected items still remain in namespace: {namespace} for gvr: {}: {}", kind.name(), worker::text(&e)));
                }
            }
            if !remains.objects.is_empty() {
                break;
            }
        }
        remains
    }

    async fn empty_kind(&self, namespace: &str, kind: &Found, remains: &mut Remains) -> Result<(), kube::Error> {
        if !kind.can("list") || !(kind.can("deletecollection") || kind.can("delete")) {
            return Ok(());
        }
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind.resource);
        let list = |n: u32| ListParams::default().limit(n);
        if found(api.list_metadata(&list(1)).await)?.is_none_or(|l| l.items.is_empty()) {
            return Ok(());
        }
        if kind.can("deletecollection") {
            let deleted = api.delete_collection(&DeleteParams::background(), &ListParams::default()).await;
            // 405: the kind cannot after all.
            if deleted.as_ref().is_err_and(|e| worker::code(e) == 405) {
                self.delete_each(&api).await?;
            } else {
                found(deleted)?;
            }
        } else {
            self.delete_each(&api).await?;
        }
        let Some(left) = found(api.list_metadata(&list(PAGE)).await)? else { return Ok(()) };
        if !left.items.is_empty() {
            remains.objects.insert(kind.name(), left.items.len());
            let finalizers = |o: &PartialObjectMeta<DynamicObject>| o.metadata.finalizers.clone().unwrap_or_default();
            for f in left.items.iter().flat_map(finalizers) {
                *remains.finalizers.entry(f).or_default() += 1;
            }
        }
        Ok(())
    }

    async fn delete_each(&self, api: &Api<DynamicObject>) -> Result<(), kube::Error> {
        for o in api.list_metadata(&ListParams::default()).await?.items {
            found(api.delete(&o.name_any(), &DeleteParams::background()).await)?;
        }
        Ok(())
    }

    /// Writes the conditions; the namespace as it is then, or none when it is gone.
    async fn report(&self, ns: &Namespace, remains: &Remains) -> Result<Option<Namespace>, Error> {
        let mut next = ns.clone();
        let status = next.status.get_or_insert_default();
        status.phase = Some("Terminating".into());
        let old = status.conditions.take().unwrap_or_default();
        status.conditions = Some(conditions(&old, remains)).filter(|c| !c.is_empty());
        if next.status == ns.status {
            return Ok(Some(next));
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        Ok(found(api.replace_status(&ns.name_any(), &PostParams::default(), &next).await)?)
    }
}

/// Namespaces that take long are looked at less often.
fn delay(ns: &Namespace) -> Duration {
    let since = ns.metadata.deletion_timestamp.as_ref().map_or(0.0, crate::runtime::seconds_since);
    Duration::from_secs_f64((since / 10.0).clamp(0.1, 5.0))
}

fn conditions(old: &[NamespaceCondition], r: &Remains) -> Vec<NamespaceCondition> {
    let listed = |m: &BTreeMap<String, usize>, f: &dyn Fn(&str, usize) -> String| {
        m.iter().map(|(k, n)| f(k, *n)).collect::<Vec<_>>().join(", ")
    };
    let has = |k: &str, n: usize| format!("{k} has {n} resource instances");
    let held = |k: &str, n: usize| format!("{k} in {n} resource instances");
    let failures = r.failures.iter().cloned().collect::<Vec<_>>().join(", ");
    let facts = [
        (
            "NamespaceDeletionDiscoveryFailure",
            r.discovery.as_ref().map(|d| ("DiscoveryFailed", format!("Discovery failed for some groups: {d}"))),
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        ("NamespaceDeletionGroupVersionParsingFailure", None, ("ParsedGroupVersions", "All legacy kube types successfully parsed")),
        (
            "NamespaceDeletionContentFailure",
            (!r.failures.is_empty()).then(|| ("ContentDeletionFailed", format!("Failed to delete all resource types, {} remaining: {failures}", r.failures.len()))),
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        (
            "NamespaceContentRemaining",
            (!r.objects.is_empty()).then(|| ("SomeResourcesRemain", format!("Some resources are remaining: {}", listed(&r.objects, &has)))),
            ("ContentRemoved", "All content successfully removed"),
        ),
        (
            "NamespaceFinalizersRemaining",
            (!r.finalizers.is_empty()).then(|| ("SomeFinalizersRemain", format!("Some content in the namespace has finalizers remaining: {}", listed(&r.finalizers, &held)))),
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ];
    let mut list: Vec<NamespaceCondition> =
        old.iter().filter(|c| !facts.iter().any(|(t, ..)| *t == c.type_)).cloned().collect();
    for (type_, bad, good) in facts {
        let (status, reason, message) = match bad {
            Some((reason, message)) => ("True", reason, message),
            None => ("False", good.0, good.1.to_owned()),
        };
        let before = old.iter().find(|c| c.type_ == type_);
        let since = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        list.push(NamespaceCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(since.unwrap_or_else(now)),
        });
    }
    list
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.namespaces.keys().into_iter().for_each(|k| self.queue.add(k));
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(300)
    }
}
