//! Replica sets and replication controllers: as many pods of one template as asked for.
//!
//! Both kinds have the same rules, so they share the code through [`Replicated`]. What was created or deleted is expected
//! in the cache before the next decision ([`Expectations`]).

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    Pod, PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::PostParams;
use kube::{Client, ResourceExt};
use serde::Serialize;

use super::family::{self, Claim, Namespaced};
use super::pods;
use crate::runtime::events::Recorder;
use crate::runtime::expectations::Expectations;
use crate::runtime::informer::{Informer, controller_of, join, key_of, owner_term, split};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{self, Outcome, Reconcile, found};
use crate::runtime::{now, seconds_since, select};

/// What is asked for, whichever kind says it.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Number of pods.
    pub replicas: i32,
    /// Which pods count.
    pub selector: LabelSelector,
    /// How a pod is made.
    pub template: PodTemplateSpec,
    /// Seconds of readiness until a pod is available.
    pub min_ready: i32,
}

/// A kind that keeps a number of pods.
pub trait Replicated: Namespaced + Serialize {
    /// Name of the controller in logs and events.
    const CONTROLLER: &'static str;
    /// What is asked for.
    fn wanted(&self) -> Wanted;
    /// What was reported last.
    fn reported(&self) -> ReplicaSetStatus;
    /// The same object with another status.
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Replicated for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";

    fn wanted(&self) -> Wanted {
        let spec = self.spec.clone();
        Wanted {
            replicas: spec.replicas.unwrap_or(1),
            selector: spec.selector,
            template: spec.template.unwrap_or_default(),
            min_ready: spec.min_ready_seconds.unwrap_or(0),
        }
    }

    fn reported(&self) -> ReplicaSetStatus {
        self.status.clone().unwrap_or_default()
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }
}

impl Replicated for ReplicationController {
    const CONTROLLER: &'static str = "replication-controller";

    fn wanted(&self) -> Wanted {
        let spec = self.spec.clone().unwrap_or_default();
        Wanted {
            replicas: spec.replicas.unwrap_or(1),
            selector: LabelSelector { match_labels: spec.selector, match_expressions: None },
            template: spec.template.unwrap_or_default(),
            min_ready: spec.min_ready_seconds.unwrap_or(0),
        }
    }

    fn reported(&self) -> ReplicaSetStatus {
        let s = self.status.clone().unwrap_or_default();
        let conditions = s.conditions.map(|list| {
            let one = |c: ReplicationControllerCondition| ReplicaSetCondition {
                last_transition_time: c.last_transition_time,
                message: c.message,
                reason: c.reason,
                status: Some(c.status),
                type_: Some(c.type_),
            };
            list.into_iter().map(one).collect()
        });
        ReplicaSetStatus {
            available_replicas: s.available_replicas,
            conditions,
            fully_labeled_replicas: s.fully_labeled_replicas,
            observed_generation: s.observed_generation,
            ready_replicas: s.ready_replicas,
            replicas: s.replicas,
            terminating_replicas: None,
        }
    }

    fn with_status(&self, s: ReplicaSetStatus) -> Self {
        let conditions = s.conditions.map(|list| {
            let one = |c: ReplicaSetCondition| ReplicationControllerCondition {
                last_transition_time: c.last_transition_time,
                message: c.message,
                reason: c.reason,
                status: c.status.unwrap_or_default(),
                type_: c.type_.unwrap_or_default(),
            };
            list.into_iter().map(one).collect()
        });
        let status = ReplicationControllerStatus {
            available_replicas: s.available_replicas,
            conditions,
            fully_labeled_replicas: s.fully_labeled_replicas,
            observed_generation: s.observed_generation,
            ready_replicas: s.ready_replicas,
            replicas: s.replicas,
        };
        Self { status: Some(status), ..self.clone() }
    }
}

/// The controller of one of the two kinds.
pub struct Controller<K: Replicated> {
    client: Client,
    owners: Informer<K>,
    pods: Informer<Pod>,
    queue: Arc<Queue>,
    expected: Arc<Expectations>,
    events: Recorder,
}

impl<K: Replicated> Controller<K> {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, owners: Informer<K>, pods: Informer<Pod>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let expected = Arc::new(Expectations::default());
        let q = Arc::clone(&queue);
        owners.on_change(move |c| q.add(key_of(&**c.latest())));
        let (q, e, o) = (Arc::clone(&queue), Arc::clone(&expected), owners.clone());
        pods.on_change(move |c| {
            let kind = K::kind(&());
            let owner = |p: &Pod| {
                let r = controller_of(p).filter(|r| r.kind == *kind)?;
                Some(join(p.metadata.namespace.as_deref().unwrap_or_default(), &r.name))
            };
            let before = c.old.as_deref().and_then(owner);
            let after = c.new.as_deref().and_then(owner);
            if c.old.is_none()
                && let Some(k) = &after
            {
                e.created(k);
            }
            if let Some(k) = &before
                && c.new.as_deref().is_none_or(pods::deleting)
            {
                e.deleted(k, &key_of(&**c.latest()));
            }
            for k in before.iter().chain(&after) {
                q.add(k.clone());
            }
            // A pod without a controller may be adopted by any owner whose selector takes it.
            if let (None, Some(p)) = (&after, c.new.as_deref()) {
                for owner in o.in_namespace(p.metadata.namespace.as_deref().unwrap_or_default()) {
                    let selector = owner.wanted().selector;
                    if !select::is_empty(&selector) && select::matches(&selector, &p.metadata.labels) {
                        q.add(key_of(&*owner));
                    }
                }
            }
        });
        let events = Recorder::start(client.clone(), K::CONTROLLER);
        Arc::new(Self { client, owners, pods, queue, expected, events })
    }

    async fn create(&self, key: &str, owner: &K, wanted: &Wanted, count: usize) -> Result<(), kube::Error> {
        let count = count.min(family::BURST);
        self.expected.expect_creations(key, count);
        let pod = family::pod_from(owner, &wanted.template);
        let (unstarted, result) = family::slow_start(count, async |_| {
            let made = family::create_pod(&self.client, &self.events, owner, &pod).await;
            made.inspect_err(|_| self.expected.created(key)).map(drop)
        })
        .await;
        for _ in 0..unstarted {
            self.expected.created(key);
        }
        result.or_else(|e| if worker::namespace_terminating(&e) { Ok(()) } else { Err(e) })
    }

    async fn delete(&self, key: &str, owner: &K, victims: &[Arc<Pod>]) -> Result<(), kube::Error> {
        self.expected.expect_deletions(key, victims.iter().map(|p| key_of(&**p)));
        let tries = victims.iter().map(|pod| async {
            let gone = family::delete_pod(&self.client, &self.events, owner, pod).await;
            gone.or_else(|e| {
                self.expected.deleted(key, &key_of(&**pod));
                if worker::not_found(&e) { Ok(()) } else { Err(e) }
            })
        });
        join_all(tries).await.into_iter().collect()
    }

    /// Pods per node of all sets with the same owner: a node with many loses one first.
    fn crowd(&self, owner: &K, wanted_pods: &[Arc<Pod>]) -> HashMap<String, usize> {
        let mut crowd: HashMap<String, usize> = HashMap::new();
        let mut count = |pods: &[Arc<Pod>]| {
            for p in pods.iter().filter(|p| pods::active(p)) {
                *crowd.entry(pods::node(p).to_owned()).or_default() += 1;
            }
        };
        match controller_of(owner) {
            None => count(wanted_pods),
            Some(r) => {
                for set in self.owners.with_term(&owner_term(&r.uid)) {
                    count(&self.pods.with_term(&owner_term(set.uid().unwrap_or_default().as_str())));
                }
            }
        }
        crowd
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(owner) = self.owners.get(key) else {
            self.expected.forget(key);
            return Ok(None);
        };
        let wanted = owner.wanted();
        let believable = self.expected.satisfied(key);
        let claim = Claim { selector: &wanted.selector, member: |_, _| true, adoptable: pods::active, finalizer: None };
        let mine = family::claim(&self.client, &*owner, &self.pods, &claim).await?;
        let active: Vec<Arc<Pod>> = mine.iter().filter(|p| pods::active(p)).cloned().collect();
        let mut failure = None;
        let mut result = Ok(());
        if believable && owner.meta().deletion_timestamp.is_none() {
            let difference = i64::try_from(active.len()).unwrap_or(0) - i64::from(wanted.replicas);
            let size = usize::try_from(difference.unsigned_abs()).unwrap_or(0);
            result = match difference.cmp(&0) {
                Ordering::Less => self.create(key, &owner, &wanted, size).await,
                Ordering::Greater => {
                    let crowd = self.crowd(&owner, &active);
                    let victims = victims(active.clone(), size.min(family::BURST), &crowd);
                    self.delete(key, &owner, &victims).await
                }
                Ordering::Equal => Ok(()),
            };
            if let Err(e) = &result {
                let reason = if difference < 0 { "FailedCreate" } else { "FailedDelete" };
                failure = Some((reason, worker::text(e)));
            }
        }
        let status = plan_status(&owner.reported(), owner.meta().generation, &wanted, &mine, failure);
        let next = owner.with_status(status);
        // What the kind has no field for is no news.
        if next.reported() != owner.reported() {
            let api = family::api::<K>(&self.client, split(key).0);
            found(api.replace_status(&owner.name_any(), &PostParams::default(), &next).await)?;
        }
        result?;
        Ok(family::next_available(&active, wanted.min_ready))
    }
}

impl<K: Replicated> Reconcile for Controller<K> {
    fn name(&self) -> &'static str {
        K::CONTROLLER
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.owners.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}

/// The status that tells what is there. `failure` is the reason and text of a step that went wrong now.
fn plan_status(
    old: &ReplicaSetStatus,
    generation: Option<i64>,
    wanted: &Wanted,
    pods: &[Arc<Pod>],
    failure: Option<(&str, String)>,
) -> ReplicaSetStatus {
    let template = wanted.template.metadata.clone().unwrap_or_default().labels;
    let count = |test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(pods.iter().filter(|p| pods::active(p) && test(p)).count()).unwrap_or(i32::MAX)
    };
    let mut conditions: Vec<ReplicaSetCondition> = old.conditions.clone().unwrap_or_default();
    let known = conditions.iter().any(|c| c.type_.as_deref() == Some("ReplicaFailure"));
    match failure {
        Some((reason, message)) if !known => conditions.push(ReplicaSetCondition {
            type_: Some("ReplicaFailure".into()),
            status: Some("True".into()),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(now()),
        }),
        None if known => conditions.retain(|c| c.type_.as_deref() != Some("ReplicaFailure")),
        _ => {}
    }
    ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: Some(count(&|p| select::subset(template.as_ref(), &p.metadata.labels))).filter(nonzero),
        ready_replicas: Some(count(&pods::ready)).filter(nonzero),
        available_replicas: Some(count(&|p| pods::available(p, wanted.min_ready))).filter(nonzero),
        // Since KEP-3973, and also when there are none.
        terminating_replicas: Some(
            i32::try_from(pods.iter().filter(|p| pods::terminating(p)).count()).unwrap_or(i32::MAX),
        ),
        observed_generation: generation,
        conditions: Some(conditions).filter(|c| !c.is_empty()),
    }
}

fn nonzero(n: &i32) -> bool {
    *n != 0
}

/// The `count` pods that are missed least.
pub(super) fn victims(mut pods: Vec<Arc<Pod>>, count: usize, crowd: &HashMap<String, usize>) -> Vec<Arc<Pod>> {
    if count < pods.len() {
        pods.sort_by(|a, b| worth(a, b, crowd));
    }
    pods.truncate(count);
    pods
}

/// Which of two pods goes first (is less).
fn worth(a: &Pod, b: &Pod, crowd: &HashMap<String, usize>) -> Ordering {
    let phase = |p: &Pod| match pods::phase(p) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let cost = |p: &Pod| {
        let text = p.metadata.annotations.as_ref().and_then(|a| a.get("controller.kubernetes.io/pod-deletion-cost"));
        text.and_then(|t| t.parse::<i32>().ok()).unwrap_or(0)
    };
    let crowded = |p: &Pod| crowd.get(pods::node(p)).copied().unwrap_or(0);
    // Ages count in powers of two, so that of many pods of similar age not always the youngest dies.
    let age = |t: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        t.map_or(-1, |t| (seconds_since(t).max(1.0)).log2() as i64)
    };
    let bound = |p: &Pod| !pods::node(p).is_empty();
    bound(a)
        .cmp(&bound(b))
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| pods::ready(a).cmp(&pods::ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| crowded(b).cmp(&crowded(a)))
        .then_with(|| age(pods::ready_since(a)).cmp(&age(pods::ready_since(b))))
        .then_with(|| pods::restarts(b).cmp(&pods::restarts(a)))
        .then_with(|| {
            let made = |p: &Pod| age(p.metadata.creation_timestamp.as_ref());
            made(a).cmp(&made(b))
        })
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn pod(v: serde_json::Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(v).unwrap())
    }

    fn running(name: &str, ready: bool, extra: serde_json::Value) -> Arc<Pod> {
        let mut v = json!({
            "metadata": {"name": name, "uid": name, "labels": {"a": "b"}}, "spec": {"containers": [], "nodeName": "n"},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": if ready {"True"} else {"False"}, "lastTransitionTime": "2026-01-01T00:00:00Z"},
            ]},
        });
        for (k, x) in extra.as_object().unwrap() {
            v["metadata"][k] = x.clone();
        }
        pod(v)
    }

    #[test]
    fn what_is_missed_least_goes_first() {
        let crowd = HashMap::from([("n".to_owned(), 1), ("full".to_owned(), 3)]);
        let full = {
            let mut p = Pod::clone(&running("d-full", true, json!({})));
            p.spec.as_mut().unwrap().node_name = Some("full".into());
            Arc::new(p)
        };
        let pending = pod(json!({"metadata": {"name": "a", "uid": "a"}, "spec": {"containers": [], "nodeName": "n"}}));
        let unbound = pod(json!({"metadata": {"name": "z", "uid": "z"}, "spec": {"containers": []}}));
        let cheap =
            running("cheap", true, json!({"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1"}}));
        let good = running("good", true, json!({}));
        let deaf = running("deaf", false, json!({}));
        let all = vec![good, full, cheap, deaf, pending, unbound];
        let order: Vec<String> = victims(all, 5, &crowd).iter().map(|p| p.name_any()).collect();
        assert_eq!(order, ["z", "a", "deaf", "cheap", "d-full"]);
    }

    #[test]
    fn status_counts_active_pods_only() {
        let wanted = Wanted {
            replicas: 3,
            selector: LabelSelector::default(),
            template: serde_json::from_value(json!({"metadata": {"labels": {"a": "b"}}})).unwrap(),
            min_ready: 0,
        };
        let leaving = running("l", true, json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}));
        let mut gone = Pod::clone(&leaving);
        gone.status.as_mut().unwrap().phase = Some("Failed".into());
        let pods = [running("x", true, json!({})), running("y", false, json!({"labels": {}})), leaving, Arc::new(gone)];
        let s = plan_status(&ReplicaSetStatus::default(), Some(4), &wanted, &pods, Some(("FailedCreate", "no".into())));
        assert_eq!((s.replicas, s.ready_replicas, s.fully_labeled_replicas), (2, Some(1), Some(1)));
        assert_eq!((s.available_replicas, s.terminating_replicas), (Some(1), Some(1)));
        assert_eq!(s.observed_generation, Some(4));
        assert_eq!(s.conditions.as_ref().unwrap()[0].reason.as_deref(), Some("FailedCreate"));
        let healed = plan_status(&s, Some(4), &wanted, &pods, None);
        assert_eq!(healed.conditions, None);
    }

    #[test]
    fn availability_needs_time() {
        let p = running("x", true, json!({}));
        assert!(pods::available(&p, 10));
        let mut young = Pod::clone(&p);
        let conditions = young.status.as_mut().unwrap().conditions.as_mut().unwrap();
        conditions[0].last_transition_time = Some(now());
        assert!(!pods::available(&young, 10));
        let wait = family::next_available(&[Arc::new(young)], 10).unwrap();
        assert!(wait > Duration::from_secs(8) && wait < Duration::from_secs(11), "{wait:?}");
    }
}
