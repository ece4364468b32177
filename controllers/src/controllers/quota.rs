//! ResourceQuotas: what is used of what they bound.
//!
//! Admission adds what a write uses; the controller sees to what that misses: a new quota, what was deleted, what ended.
//! It counts what the server has, not a copy: a copy that is behind would give room twice. An object is booked before it
//! is stored, and a count in between is too low: so nothing is given back within a second of a booking, and what comes
//! is counted again after that time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kube::api::{DynamicObject, ListParams, PostParams};
use kube::core::{ApiResource, PartialObjectMeta};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::Value;
use skiff_core::kinds::pod_totals::Amounts;
use skiff_core::quantity::{Format, Quantity};
use skiff_core::quota::{in_scope, only_counted, usage, user_of};
use tokio::time::Instant;

use super::discovery::{self, Found};
use super::{family, pods};
use crate::runtime::informer::{Change, Informer, key_of};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{Error, Outcome, Reconcile, found};

/// What went is counted after this, together with what goes with it.
const SOON: Duration = Duration::from_millis(50);
/// What came is counted after this: it was booked when it came.
const LATER: Duration = Duration::from_secs(1);
/// Objects of a kind in one answer.
const PAGE: u32 = 500;

/// Kinds whose objects are watched in full anyway.
pub struct Sources {
    /// The quotas.
    pub quotas: Informer<ResourceQuota>,
    /// Pods.
    pub pods: Informer<Pod>,
    /// Services.
    pub services: Informer<Service>,
    /// Claims.
    pub claims: Informer<PersistentVolumeClaim>,
}

/// The quota controller.
pub struct Controller {
    client: Client,
    quotas: Informer<ResourceQuota>,
    queue: Arc<Queue>,
    /// When something was booked last, by quota.
    booked: Mutex<HashMap<String, Instant>>,
}

fn hard(quota: &ResourceQuota) -> BTreeMap<String, Text> {
    quota.spec.as_ref().and_then(|s| s.hard.clone()).unwrap_or_default()
}

fn used(quota: &ResourceQuota) -> BTreeMap<String, Text> {
    quota.status.as_ref().and_then(|s| s.used.clone()).unwrap_or_default()
}

fn parsed(text: &Text) -> Option<Quantity> {
    Quantity::parse(&text.0).ok()
}

/// Whether more is used of something than before.
fn more(old: &ResourceQuota, new: &ResourceQuota) -> bool {
    let before = used(old);
    let rose = |(k, q): (&String, &Text)| match (before.get(k).and_then(parsed), parsed(q)) {
        (Some(was), Some(is)) => is > was,
        (None, Some(_)) => true,
        _ => false,
    };
    used(new).iter().any(rose)
}

impl Controller {
    /// Makes the controller and subscribes it to changes. Of other kinds it hears through [`Controller::hear`].
    #[must_use]
    pub fn new(client: Client, from: Sources) -> Arc<Self> {
        let Sources { quotas, pods, services, claims } = from;
        let queue = Arc::new(Queue::default());
        let this = Arc::new(Self { client, quotas, queue, booked: Mutex::default() });
        let c = Arc::clone(&this);
        this.quotas.on_change(move |change| c.quota_changed(change));
        let c = Arc::clone(&this);
        pods.on_change(move |change| {
            let over = |p: &Option<Arc<Pod>>| p.as_deref().is_none_or(pods::finished);
            let ended = over(&change.new) && !over(&change.old);
            let generation = |p: &Option<Arc<Pod>>| p.as_deref().and_then(|p| p.metadata.generation);
            // The specification of a pod changes when it is resized.
            if ended || change.new.is_none() || generation(&change.old) != generation(&change.new) {
                let namespace = change.latest().namespace().unwrap_or_default();
                c.changed("pods.", &namespace, ended || change.new.is_none());
            }
        });
        let c = Arc::clone(&this);
        services.on_change(move |change| {
            c.changed("services.", &change.latest().namespace().unwrap_or_default(), change.new.is_none());
        });
        let c = Arc::clone(&this);
        claims.on_change(move |change| {
            c.changed(
                "persistentvolumeclaims.",
                &change.latest().namespace().unwrap_or_default(),
                change.new.is_none(),
            );
        });
        this
    }

    fn quota_changed(&self, change: &Change<ResourceQuota>) {
        let key = key_of(&**change.latest());
        let Some(new) = &change.new else {
            self.booked.lock().remove(&key);
            return;
        };
        if change.old.as_ref().is_some_and(|old| more(old, new)) {
            self.booked.lock().insert(key.clone(), Instant::now());
        }
        // A booking alone needs no count.
        if new.status.as_ref().and_then(|s| s.hard.clone()).unwrap_or_default() != hard(new) {
            self.queue.add(key);
        }
    }

    /// Takes note that an object of a kind (`plural.group`) came or went.
    pub fn hear(&self, kind: &str, namespace: &str) {
        if !namespace.is_empty() && !matches!(kind, "pods." | "services." | "persistentvolumeclaims.") {
            self.changed(kind, namespace, true);
        }
    }

    fn changed(&self, kind: &str, namespace: &str, went: bool) {
        for quota in self.quotas.in_namespace(namespace) {
            let hard = quota.spec.as_ref().and_then(|s| s.hard.as_ref());
            let mut users = hard.into_iter().flatten().filter_map(|(r, _)| user_of(r));
            if users.any(|(group, plural)| kind.split_once('.') == Some((plural, group))) {
                self.queue.add_after(key_of(&*quota), if went { SOON } else { LATER });
            }
        }
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(quota) = self.quotas.get(key) else { return Ok(None) };
        if quota.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let hard = hard(&quota);
        let counted = self.count(&quota, &hard).await?;
        let fresh = self.booked.lock().get(key).is_some_and(|t| t.elapsed() < LATER);
        let mut again = None;
        let mut used = used(&quota);
        used.retain(|r, _| hard.contains_key(r));
        for (resource, amount) in counted {
            match used.get(&resource).and_then(parsed) {
                // The same amount stays written as it is.
                Some(before) if before == amount => {}
                Some(before) if before > amount && fresh => again = Some(LATER),
                _ => {
                    used.insert(resource, Text(amount.to_string()));
                }
            }
        }
        let status = ResourceQuotaStatus { hard: Some(hard), used: Some(used) };
        if quota.status.as_ref() != Some(&status) {
            // The version is a precondition: what admission books meanwhile is not lost.
            let next = ResourceQuota { status: Some(status), ..ResourceQuota::clone(&quota) };
            let api = family::api::<ResourceQuota>(&self.client, &quota.namespace().unwrap_or_default());
            found(api.replace_status(&quota.name_any(), &PostParams::default(), &next).await)?;
        }
        Ok(again)
    }

    /// What is used of each resource that the quota bounds. A resource of a kind that is not there is left out.
    async fn count(&self, quota: &ResourceQuota, hard: &BTreeMap<String, Text>) -> Result<Amounts, Error> {
        let spec = serde_json::to_value(&quota.spec).unwrap_or_default();
        let namespace = quota.namespace().unwrap_or_default();
        let wanted: BTreeSet<(&str, &str)> = hard.keys().filter_map(|r| user_of(r)).collect();
        let builtin = |(group, _): &(&str, &str)| group.is_empty();
        let kinds = if wanted.iter().all(builtin) { vec![] } else { discovery::namespaced(&self.client).await?.kinds };
        let mut used = Amounts::new();
        for (group, plural) in wanted {
            let resource = if group.is_empty() {
                ApiResource {
                    group: String::new(),
                    version: "v1".into(),
                    api_version: "v1".into(),
                    kind: String::new(),
                    plural: plural.to_owned(),
                }
            } else {
                let is = |k: &&Found| k.resource.group == group && k.resource.plural == plural && k.can("list");
                match kinds.iter().find(is) {
                    Some(k) => k.resource.clone(),
                    None => continue,
                }
            };
            let Some(sum) = self.sum(&namespace, &resource, &spec).await? else { continue };
            let mine = |r: &&String| user_of(r) == Some((group, plural));
            for name in hard.keys().filter(mine) {
                let none = Quantity::from_i64(0, Format::DecimalSi);
                used.insert(name.clone(), sum.get(name).cloned().unwrap_or(none));
            }
        }
        Ok(used)
    }

    /// What all objects of a kind use together. None when there is no such kind.
    async fn sum(&self, namespace: &str, resource: &ApiResource, spec: &Value) -> Result<Option<Amounts>, Error> {
        let (group, plural) = (resource.group.as_str(), resource.plural.as_str());
        let mut sum = Amounts::new();
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let (all, next) = if only_counted(group, plural) {
                let api: Api<PartialObjectMeta<DynamicObject>> =
                    Api::namespaced_with(self.client.clone(), namespace, resource);
                let Some(list) = found(api.list_metadata(&page).await)? else { return Ok(None) };
                (vec![Value::Null; list.items.len()], list.metadata.continue_)
            } else {
                let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, resource);
                let Some(list) = found(api.list(&page).await)? else { return Ok(None) };
                (list.items.into_iter().map(|o| o.data).collect(), list.metadata.continue_)
            };
            for object in all.iter().filter(|o| in_scope(spec, plural == "pods" && group.is_empty(), o)) {
                for (resource, amount) in usage(group, plural, object) {
                    let more = sum.get(&resource).map_or_else(|| amount.clone(), |have| have.add(&amount));
                    sum.insert(resource, more);
                }
            }
            match next.filter(|t| !t.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(Some(sum)),
            }
        }
    }
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "resourcequota-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.quotas.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}
