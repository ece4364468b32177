//! What a StatefulSet needs next. No I/O.
//!
//! In order unless the set says `Parallel`: a pod is made when those before it are available, and removed when those
//! before it are available and those after it are gone. A rollout goes from the highest number down.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::identity;
use crate::controllers::family::{Share, scaled};
use crate::controllers::pods;
use crate::controllers::revisions::REVISION;

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Step {
    /// Make the pod of a number.
    Create(i32),
    /// Remove a pod that ended, so that it is made again.
    Again(Arc<Pod>),
    /// Remove a pod whose number is not wanted any more.
    Condemn(Arc<Pod>),
    /// Remove a pod of another revision.
    Update(Arc<Pod>),
}

/// Names of the revisions that a set is between.
#[derive(Clone, Copy, Debug)]
pub struct Revisions<'a> {
    /// That of pods which are not to be updated.
    pub current: &'a str,
    /// That of the present template.
    pub update: &'a str,
}

/// Asked for; 1 when not said.
#[must_use]
pub fn replicas(set: &StatefulSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

/// Seconds of readiness until a pod is available.
#[must_use]
pub fn min_ready(set: &StatefulSet) -> i32 {
    set.spec.min_ready_seconds.unwrap_or(0)
}

/// The first number.
#[must_use]
pub fn start(set: &StatefulSet) -> i32 {
    set.spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0)
}

/// Whether pods come and go without order.
#[must_use]
pub fn parallel(set: &StatefulSet) -> bool {
    set.spec.pod_management_policy.as_deref() == Some("Parallel")
}

fn strategy(set: &StatefulSet) -> Option<&k8s_openapi::api::apps::v1::StatefulSetUpdateStrategy> {
    set.spec.update_strategy.as_ref()
}

fn rolling(set: &StatefulSet) -> bool {
    strategy(set).and_then(|s| s.type_.as_deref()).unwrap_or("RollingUpdate") == "RollingUpdate"
}

/// Numbers below this stay as they are in a rollout.
fn partition(set: &StatefulSet) -> i32 {
    strategy(set).and_then(|s| s.rolling_update.as_ref()?.partition).unwrap_or(0)
}

fn max_unavailable(set: &StatefulSet) -> i32 {
    let said = strategy(set).and_then(|s| s.rolling_update.as_ref()?.max_unavailable.as_ref());
    scaled(said, Share::Number(1), replicas(set), false).max(1)
}

/// The revision that a new pod of a number is made of.
#[must_use]
pub fn revision_for<'a>(set: &StatefulSet, ordinal: i32, r: Revisions<'a>) -> &'a str {
    if !rolling(set) {
        return r.update;
    }
    let held = match strategy(set).and_then(|s| s.rolling_update.as_ref()) {
        Some(_) => partition(set),
        None => set.status.as_ref().and_then(|s| s.current_replicas).unwrap_or(0),
    };
    if ordinal < start(set) + held { r.current } else { r.update }
}

/// The revision of a pod.
#[must_use]
pub fn revision(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|l| l.get(REVISION)).map_or("", String::as_str)
}

/// Whether a pod runs, answers, and has done so long enough.
fn available(pod: &Pod, min_ready: i32) -> bool {
    pods::phase(pod) == "Running" && pods::available(pod, min_ready)
}

fn healthy(pod: &Pod, min_ready: i32) -> bool {
    available(pod, min_ready) && !pods::deleting(pod)
}

/// A set's pods by their place.
pub struct Places {
    /// Those that are wanted, by number from the first on.
    pub wanted: Vec<(i32, Option<Arc<Pod>>)>,
    /// Those that are not, the highest number first.
    pub condemned: Vec<(i32, Arc<Pod>)>,
}

impl Places {
    /// Puts pods where they belong.
    #[must_use]
    pub fn new(set: &StatefulSet, pods: &[Arc<Pod>]) -> Self {
        let (first, name) = (start(set), set.name_any());
        let mut wanted: Vec<(i32, Option<Arc<Pod>>)> = (first..first + replicas(set)).map(|i| (i, None)).collect();
        let mut condemned = vec![];
        for pod in pods {
            let Some(i) = identity::ordinal(&name, &pod.name_any()) else { continue };
            match usize::try_from(i - first).ok().and_then(|at| wanted.get_mut(at)) {
                Some(place) => place.1 = Some(Arc::clone(pod)),
                None => condemned.push((i, Arc::clone(pod))),
            }
        }
        condemned.sort_by_key(|(i, _)| -i);
        Self { wanted, condemned }
    }
}

/// What to do now, in order. In an ordered set there is at most one step, and none while one is awaited.
#[must_use]
pub fn steps(set: &StatefulSet, places: &Places, r: Revisions<'_>) -> Vec<Step> {
    let (burst, min_ready) = (parallel(set), min_ready(set));
    let mut steps = vec![];
    for (i, pod) in &places.wanted {
        let step = match pod {
            None => Some(Step::Create(*i)),
            Some(p) if pods::finished(p) && !pods::deleting(p) => Some(Step::Again(Arc::clone(p))),
            Some(_) => None,
        };
        let waits = pod.as_ref().is_some_and(|p| !healthy(p, min_ready));
        let acts = step.is_some();
        steps.extend(step);
        if !burst && (acts || waits) {
            return steps;
        }
    }
    let first_unhealthy = || {
        let lost = places.condemned.iter().rev().map(|(_, p)| p);
        let all = places.wanted.iter().filter_map(|(_, p)| p.as_ref()).chain(lost);
        all.into_iter().find(|p| !healthy(p, min_ready)).cloned()
    };
    let unhealthy = first_unhealthy();
    for (_, pod) in &places.condemned {
        let blocked = pods::deleting(pod)
            || (!available(pod, min_ready) && !unhealthy.as_ref().is_some_and(|u| Arc::ptr_eq(u, pod)));
        if !burst && blocked {
            return steps;
        }
        if !pods::deleting(pod) {
            steps.push(Step::Condemn(Arc::clone(pod)));
        }
        if !burst {
            return steps;
        }
    }
    // What is missing comes first: a rollout goes on when the set has its pods.
    if rolling(set) && steps.is_empty() {
        update(set, places, r, &mut steps);
    }
    steps
}

fn update(set: &StatefulSet, places: &Places, r: Revisions<'_>, steps: &mut Vec<Step>) {
    let (min_ready, max) = (min_ready(set), max_unavailable(set));
    let all = || places.wanted.iter().filter_map(|(_, p)| p.as_ref());
    let count = all().filter(|p| !healthy(p, min_ready)).count();
    let mut unavailable = i32::try_from(count).unwrap_or(i32::MAX);
    let from = start(set) + partition(set);
    for (_, pod) in places.wanted.iter().rev().take_while(|(i, _)| *i >= from) {
        let Some(pod) = pod else { continue };
        let fine = healthy(pod, min_ready);
        if revision(pod) != r.update && !pods::deleting(pod) {
            // One that is not available costs nothing; any other has to be afforded.
            if fine && unavailable >= max {
                return;
            }
            unavailable += i32::from(fine);
            steps.push(Step::Update(Arc::clone(pod)));
            if max == 1 {
                return;
            }
        } else if !fine && max == 1 {
            return;
        }
    }
}

/// The status that tells what is there.
#[must_use]
pub fn status(set: &StatefulSet, pods: &[Arc<Pod>], r: Revisions<'_>, collisions: Option<i32>) -> StatefulSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let min_ready = min_ready(set);
    // A pod that no node agent has seen yet has a phase all the same.
    let count =
        |test: &dyn Fn(&Pod) -> bool| i32::try_from(pods.iter().filter(|p| test(p)).count()).unwrap_or(i32::MAX);
    let of = |name: &str| count(&|p| !pods::deleting(p) && revision(p) == name);
    let some = |n: i32| Some(n).filter(|n| *n != 0);
    let ready = count(&|p| pods::phase(p) == "Running" && pods::ready(p));
    let mut s = StatefulSetStatus {
        replicas: count(&|_| true),
        ready_replicas: some(ready),
        available_replicas: Some(count(&|p| available(p, min_ready))),
        current_replicas: some(of(r.current)),
        updated_replicas: some(of(r.update)),
        current_revision: Some(r.current.to_owned()),
        update_revision: Some(r.update.to_owned()),
        observed_generation: set.metadata.generation,
        collision_count: Some(collisions.unwrap_or(0)),
        conditions: old.conditions,
    };
    let wanted = replicas(set);
    if rolling(set) && s.updated_replicas.unwrap_or(0) == wanted && s.replicas == wanted && ready == wanted {
        s.current_replicas = s.updated_replicas;
        s.current_revision = s.update_revision.clone();
    }
    s
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(extra: Value) -> StatefulSet {
        let mut spec = json!({"replicas": 3, "selector": {}, "template": {},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}});
        for (k, v) in extra.as_object().unwrap() {
            spec[k] = v.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap()
    }

    /// `0` runs in revision new; `-` is deleting, `!` is not ready, `x` has ended, `o` is of the old revision.
    fn pods(text: &str) -> Vec<Arc<Pod>> {
        let one = |word: &str| {
            let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
            let has = |c: char| word.contains(c);
            let ready = if has('!') || has('x') { "False" } else { "True" };
            let mut v = json!({"metadata": {"name": format!("s-{digits}"), "labels": {REVISION: if has('o') {"old"} else {"new"}}},
                "spec": {"containers": []}, "status": {"phase": if has('x') {"Failed"} else {"Running"},
                "conditions": [{"type": "Ready", "status": ready}]}});
            if has('-') {
                v["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            Arc::new(serde_json::from_value(v).unwrap())
        };
        text.split_whitespace().map(one).collect()
    }

    fn shown(steps: &[Step]) -> String {
        let word = |s: &Step| match s {
            Step::Create(i) => format!("+{i}"),
            Step::Again(p) => format!("again {}", p.name_any()),
            Step::Condemn(p) => format!("-{}", p.name_any()),
            Step::Update(p) => format!("~{}", p.name_any()),
        };
        steps.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn one_after_the_other_or_all_at_once() {
        let parallel = json!({"podManagementPolicy": "Parallel"});
        let on_delete = json!({"updateStrategy": {"type": "OnDelete"}});
        let rolling = |partition: i32, max: Value| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": partition, "maxUnavailable": max}}});
        for (spec, there, want) in [
            (json!({}), "", "+0"),
            (json!({}), "0!", ""),
            (json!({}), "0", "+1"),
            (json!({}), "0 1-", ""),
            (json!({}), "0 1x 2", "again s-1"),
            (json!({}), "0 1 2", ""),
            (json!({}), "0 1 2 3 4", "-s-4"),
            (json!({}), "0 1 2 3 4-", ""),
            (json!({}), "0! 1 2 3 4", ""),
            (json!({}), "0 1 2 3 4!", "-s-4"),
            (json!({}), "0 1 2 3! 4!", ""),
            (json!({"ordinals": {"start": 5}}), "5", "+6"),
            (json!({"ordinals": {"start": 5}}), "5 6 7 1", "-s-1"),
            (parallel.clone(), "1!", "+0 +2"),
            (parallel.clone(), "0 1x 2! 3 4-", "again s-1 -s-3"),
            // Rollouts: from the top, one at a time, as long as all is well.
            (json!({}), "0o 1o 2o", "~s-2"),
            (json!({}), "0o 1o 2!", ""),
            (json!({}), "0o 1o 2", "~s-1"),
            (rolling(2, json!(1)), "0o 1o 2", ""),
            (rolling(0, json!(2)), "0o 1o 2o", "~s-2 ~s-1"),
            (rolling(0, json!("67%")), "0o 1o 2o", "~s-2 ~s-1"),
            (rolling(1, json!("100%")), "0o 1o 2o", "~s-2 ~s-1"),
            (on_delete, "0o 1o 2o", ""),
            (parallel, "0o 1o 2!o", "~s-2"),
        ] {
            let s = set(spec.clone());
            let r = Revisions { current: "old", update: "new" };
            let steps = steps(&s, &Places::new(&s, &pods(there)), r);
            assert_eq!(shown(&steps), want, "{spec} {there:?}");
        }
    }

    #[test]
    fn new_pods_below_the_partition_are_of_the_old_revision() {
        let r = Revisions { current: "old", update: "new" };
        let s = set(json!({"ordinals": {"start": 10},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}}));
        assert_eq!((revision_for(&s, 10, r), revision_for(&s, 11, r)), ("old", "new"));
        assert_eq!(revision_for(&set(json!({"updateStrategy": {"type": "OnDelete"}})), 0, r), "new");
    }

    #[test]
    fn a_rollout_is_over_when_all_answer() {
        let r = Revisions { current: "old", update: "new" };
        let s = status(&set(json!({})), &pods("0o 1 2"), r, None);
        assert_eq!((s.replicas, s.current_replicas, s.updated_replicas), (3, Some(1), Some(2)));
        assert_eq!(s.current_revision.as_deref(), Some("old"));
        let s = status(&set(json!({})), &pods("0 1 2!"), r, None);
        assert_eq!((s.ready_replicas, s.current_revision.as_deref()), (Some(2), Some("old")));
        let s = status(&set(json!({})), &pods("0 1 2"), r, None);
        assert_eq!((s.current_replicas, s.current_revision.as_deref()), (Some(3), Some("new")));
    }
}
