//! PodDisruptionBudgets: how many pods may be evicted now.
//!
//! The controller only counts, into the status; the eviction subresource takes from what is there. Both write the same
//! status with its version as a precondition, so an eviction is never given out twice.

pub mod plan;

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::gvk::{GroupVersion, GroupVersionKind};
use kube::{Api, Client, ResourceExt};

use super::family;
use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::{Informer, controller_of, join, key_of, split};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{self, Error, Outcome, Reconcile, found};
use crate::runtime::{now, select};

/// Marks a key in the queue as that of a pod.
const POD: &str = "pod:";

/// Local copies that the controller reads.
pub struct Sources {
    /// The budgets.
    pub budgets: Informer<PodDisruptionBudget>,
    /// The pods.
    pub pods: Informer<Pod>,
    /// Owners of pods: replica sets,
    pub sets: Informer<ReplicaSet>,
    /// their Deployments,
    pub deployments: Informer<Deployment>,
    /// stateful sets,
    pub stateful: Informer<StatefulSet>,
    /// replication controllers.
    pub replication: Informer<ReplicationController>,
}

/// The disruption controller.
pub struct Controller {
    client: Client,
    from: Sources,
    queue: Arc<Queue>,
    events: Recorder,
}

fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| select::matches(s, &pod.metadata.labels))
}

impl Controller {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, from: Sources) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        from.budgets.on_change(move |c| q.add(key_of(&**c.latest())));
        let (q, budgets) = (Arc::clone(&queue), from.budgets.clone());
        from.pods.on_change(move |c| {
            if let Some(left) = c.new.as_deref().and_then(|p| plan::stale_in(p, Timestamp::now())) {
                q.add_after(format!("{POD}{}", key_of(&**c.latest())), left);
            }
            let here = budgets.in_namespace(c.latest().metadata.namespace.as_deref().unwrap_or_default());
            for b in here {
                if [&c.old, &c.new].into_iter().flatten().any(|p| selects(&b, p)) {
                    q.add(key_of(&*b));
                }
            }
        });
        let events = Recorder::start(client.clone(), "controllermanager");
        Arc::new(Self { client, from, queue, events })
    }

    /// Takes back on a pod that it is about to be disrupted, when nothing came of it.
    async fn settle(&self, key: &str) -> Outcome {
        let Some(pod) = self.from.pods.get(key) else { return Ok(None) };
        match plan::stale_in(&pod, Timestamp::now()) {
            None => return Ok(None),
            Some(left) if !left.is_zero() => return Ok(Some(left)),
            Some(_) => {}
        }
        let patch = serde_json::json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [{
            "type": plan::TARGET, "status": "False", "reason": null, "message": null, "lastTransitionTime": now(),
        }]}});
        let api = family::api::<Pod>(&self.client, split(key).0);
        found(api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        Ok(None)
    }

    async fn sync(&self, key: &str) -> Outcome {
        if let Some(pod) = key.strip_prefix(POD) {
            return self.settle(pod).await;
        }
        let Some(budget) = self.from.budgets.get(key) else { return Ok(None) };
        let mut pods = self.from.pods.in_namespace(split(key).0);
        pods.retain(|p| selects(&budget, p));
        if pods.is_empty() {
            self.events.note(&*budget, Level::Normal, "NoPods", "No matching pods found");
        }
        let time = now().0;
        let scale = if plan::needs_scale(&budget) { self.scale(&budget, &pods).await? } else { Ok(0) };
        let scale = match scale {
            Ok(n) => n,
            Err(why) => {
                let text = format!("Failed to calculate the number of expected pods: {why}");
                self.events.note(&*budget, Level::Warning, "CalculateExpectedPodCountFailed", text);
                self.report(&budget, plan::failed(&budget, why, time)).await?;
                return Ok(None);
            }
        };
        let (expected, desired) = plan::expected(&budget, pods.len(), scale);
        let result = plan::count(&budget, &pods, expected, desired, Timestamp::now());
        for pod in &result.late {
            let text =
                format!("Pod was expected by PDB {}/{} to be deleted but it wasn't", split(key).0, budget.name_any());
            self.events.note(&**pod, Level::Warning, "NotDeleted", text);
        }
        self.report(&budget, result.status).await?;
        Ok(result.again)
    }

    /// What the owners of pods ask for, together; or why that cannot be told.
    async fn scale(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> Result<Result<i32, String>, Error> {
        let mut scales: HashMap<String, i32> = HashMap::new();
        let mut unmanaged = false;
        for pod in pods {
            let Some(r) = controller_of(&**pod) else {
                unmanaged = true;
                continue;
            };
            if scales.contains_key(&r.uid) {
                continue;
            }
            let Some((uid, n)) = self.scale_of(&pod.namespace().unwrap_or_default(), r).await? else {
                return Ok(Err(format!("found no controllers for pod {:?}", pod.name_any())));
            };
            scales.insert(uid, n);
            // The uid of its own set leads to the same Deployment: count it once.
            scales.entry(r.uid.clone()).or_insert(0);
        }
        if unmanaged {
            let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
            let shown = selector.map(|s| serde_json::to_string(s).unwrap_or_default()).unwrap_or_default();
            let text = format!(
                "Pods selected by this PodDisruptionBudget (selector: {shown}) were found to be unmanaged. As a result, \
                 the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To \
                 account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
            );
            self.events.note(budget, Level::Warning, "UnmanagedPods", text);
        }
        Ok(Ok(scales.values().sum()))
    }

    /// The uid of what decides the number of an owner's pods, and that number.
    async fn scale_of(&self, namespace: &str, r: &OwnerReference) -> Result<Option<(String, i32)>, Error> {
        let key = join(namespace, &r.name);
        let group = r.api_version.split_once('/').map_or("", |(g, _)| g);
        let same = |uid: Option<String>| uid.as_deref() == Some(r.uid.as_str());
        let own = |n: Option<i32>| Some((r.uid.clone(), n.unwrap_or(1)));
        Ok(match (group, r.kind.as_str()) {
            ("", "ReplicationController") => {
                let found = self.from.replication.get(&key).filter(|o| same(o.uid()));
                found.and_then(|o| own(o.spec.as_ref().and_then(|s| s.replicas)))
            }
            ("apps", "StatefulSet") => {
                self.from.stateful.get(&key).filter(|o| same(o.uid())).and_then(|o| own(o.spec.replicas))
            }
            ("apps" | "extensions", "ReplicaSet") => {
                let Some(set) = self.from.sets.get(&key).filter(|o| same(o.uid())) else { return Ok(None) };
                match controller_of(&*set) {
                    Some(d) if d.kind == "Deployment" => {
                        let found = self.from.deployments.get(&join(namespace, &d.name));
                        let found = found.filter(|o| o.uid().as_deref() == Some(d.uid.as_str()));
                        found.map(|o| (d.uid.clone(), o.spec.replicas.unwrap_or(1)))
                    }
                    _ => own(set.spec.replicas),
                }
            }
            _ => self.subresource(namespace, r).await?,
        })
    }

    /// Any other owner is asked through its `scale`.
    async fn subresource(&self, namespace: &str, r: &OwnerReference) -> Result<Option<(String, i32)>, Error> {
        let Ok(version) = r.api_version.parse::<GroupVersion>() else { return Ok(None) };
        let kind = GroupVersionKind { group: version.group, version: version.version, kind: r.kind.clone() };
        let resource = match kube::discovery::oneshot::pinned_kind(&self.client, &kind).await {
            Ok((resource, _)) => resource,
            Err(kube::Error::Discovery(_)) => return Ok(None),
            Err(e) if worker::not_found(&e) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let Some(scale) = found(api.get_scale(&r.name).await)? else { return Ok(None) };
        let uid = scale.metadata.uid.unwrap_or_default();
        let n = scale.spec.and_then(|s| s.replicas).unwrap_or(0);
        Ok((uid == r.uid).then_some((uid, n)))
    }

    async fn report(&self, budget: &PodDisruptionBudget, status: PodDisruptionBudgetStatus) -> Result<(), Error> {
        if budget.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let next = PodDisruptionBudget { status: Some(status), ..budget.clone() };
        let api = family::api::<PodDisruptionBudget>(&self.client, &budget.namespace().unwrap_or_default());
        found(api.replace_status(&budget.name_any(), &PostParams::default(), &next).await)?;
        Ok(())
    }
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "disruption-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.from.budgets.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}
