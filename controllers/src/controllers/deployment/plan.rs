//! The arithmetic of a rollout: how many pods each replica set should have next. No I/O.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::ResourceExt;

use crate::controllers::family::{Share, scaled};

/// Label that keeps the pods of one template apart from those of another.
pub const HASH_LABEL: &str = "pod-template-hash";
/// What a rollout may have above and below where nothing is said.
const QUARTER: Share = Share::Percent(25);
/// Annotation with the replicas that the Deployment asked for when the set was scaled last.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// Annotation with the most pods that were allowed then.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// Asked for; 1 when not said.
#[must_use]
pub fn replicas(d: &Deployment) -> i32 {
    d.spec.replicas.unwrap_or(1)
}

/// Asked for; 1 when not said.
#[must_use]
pub fn set_replicas(rs: &ReplicaSet) -> i32 {
    rs.spec.replicas.unwrap_or(1)
}

/// Pods there are.
#[must_use]
pub fn set_actual(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().map_or(0, |s| s.replicas)
}

/// Pods that are available.
#[must_use]
pub fn set_available(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

/// Pods that are ready.
#[must_use]
pub fn set_ready(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0)
}

/// Sum of `f` over sets.
pub fn sum(sets: &[Arc<ReplicaSet>], f: impl Fn(&ReplicaSet) -> i32) -> i32 {
    sets.iter().map(|s| f(s)).sum()
}

/// Whether pods are replaced step by step.
#[must_use]
pub fn rolling(d: &Deployment) -> bool {
    d.spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("Recreate")
}

/// Pods above and below the wanted number that a rollout may have. Surge rounds up, unavailable down, never both 0.
#[must_use]
pub fn bounds(d: &Deployment) -> (i32, i32) {
    if !rolling(d) {
        return (0, 0);
    }
    let total = replicas(d);
    let rolling = d.spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    let surge = scaled(rolling.and_then(|r| r.max_surge.as_ref()), QUARTER, total, true);
    let unavailable = scaled(rolling.and_then(|r| r.max_unavailable.as_ref()), QUARTER, total, false);
    (surge, if surge == 0 && unavailable == 0 { 1 } else { unavailable })
}

/// As [`bounds`], with no more unavailable than there are.
#[must_use]
pub fn max_unavailable(d: &Deployment) -> i32 {
    if !rolling(d) || replicas(d) == 0 {
        return 0;
    }
    bounds(d).1.min(replicas(d))
}

/// Size of the new set next.
#[must_use]
pub fn new_set_size(d: &Deployment, all: &[Arc<ReplicaSet>], new: &ReplicaSet) -> i32 {
    if !rolling(d) {
        return replicas(d);
    }
    let most = replicas(d) + bounds(d).0;
    let current = sum(all, set_replicas);
    if current >= most {
        return set_replicas(new);
    }
    set_replicas(new) + (most - current).min(replicas(d) - set_replicas(new))
}

/// Sizes of old sets next, those that change only: unhealthy pods go first, then the oldest sets shrink, as far as
/// availability allows.
#[must_use]
pub fn shrink_old(
    d: &Deployment,
    all: &[Arc<ReplicaSet>],
    old: &[Arc<ReplicaSet>],
    new: &ReplicaSet,
) -> Vec<(Arc<ReplicaSet>, i32)> {
    if sum(old, set_replicas) == 0 {
        return vec![];
    }
    let least = replicas(d) - max_unavailable(d);
    let new_unavailable = set_replicas(new) - set_available(new);
    let may_go = sum(all, set_replicas) - least - new_unavailable;
    if may_go <= 0 {
        return vec![];
    }
    let mut oldest_first: Vec<Arc<ReplicaSet>> = old.to_vec();
    oldest_first.sort_by_key(|rs| age(rs));
    let mut size: Vec<i32> = oldest_first.iter().map(|rs| set_replicas(rs)).collect();
    let mut left = may_go;
    for (i, rs) in oldest_first.iter().enumerate() {
        let unhealthy = (size[i] - set_available(rs)).max(0);
        let cut = unhealthy.min(left).min(size[i]);
        size[i] -= cut;
        left -= cut;
    }
    // A set that was shrunk just now tells of pods that are about to go until its status is written again.
    let mut spare = sum(all, |rs| set_available(rs).min(set_replicas(rs))) - least;
    for s in &mut size {
        let cut = (*s).min(spare.max(0));
        *s -= cut;
        spare -= cut;
    }
    oldest_first.into_iter().zip(size).filter(|(rs, n)| set_replicas(rs) != *n).collect()
}

/// Sort key: oldest first, then by name.
#[must_use]
pub fn age(rs: &ReplicaSet) -> (Option<i64>, String) {
    (rs.metadata.creation_timestamp.as_ref().map(|t| t.0.as_second()), rs.name_any())
}

fn annotation(rs: &ReplicaSet, key: &str) -> Option<i32> {
    rs.metadata.annotations.as_ref()?.get(key)?.parse().ok()
}

/// Whether the wanted number changed since the active sets were sized.
#[must_use]
pub fn is_scaling(d: &Deployment, all: &[Arc<ReplicaSet>]) -> bool {
    let active = all.iter().filter(|rs| set_replicas(rs) > 0);
    active.filter_map(|rs| annotation(rs, DESIRED)).any(|n| n != replicas(d))
}

/// Sizes when the wanted number changed, or while paused: one active set takes all; a finished rollout drops its old
/// sets; in the middle of a rollout every set changes in proportion to its size.
#[must_use]
pub fn scale(d: &Deployment, new: Option<&Arc<ReplicaSet>>, old: &[Arc<ReplicaSet>]) -> Vec<(Arc<ReplicaSet>, i32)> {
    let all: Vec<Arc<ReplicaSet>> = old.iter().chain(new).cloned().collect();
    let mut active: Vec<Arc<ReplicaSet>> = all.iter().filter(|rs| set_replicas(rs) > 0).cloned().collect();
    let single = match active.as_slice() {
        [] => new.cloned().or_else(|| all.iter().max_by_key(|rs| age(rs)).cloned()),
        [one] => Some(Arc::clone(one)),
        _ => None,
    };
    if let Some(one) = single {
        let change = set_replicas(&one) != replicas(d);
        return if change { vec![(one, replicas(d))] } else { vec![] };
    }
    if new.is_some_and(|n| saturated(d, n)) {
        return old.iter().filter(|rs| set_replicas(rs) > 0).map(|rs| (Arc::clone(rs), 0)).collect();
    }
    if !rolling(d) {
        return vec![];
    }
    let total = sum(&active, set_replicas);
    let allowed = if replicas(d) > 0 { replicas(d) + bounds(d).0 } else { 0 };
    let to_add = allowed - total;
    // Growing favours the newest of equal size, shrinking the oldest.
    active.sort_by(|a, b| {
        let by_age = if to_add > 0 { age(b).cmp(&age(a)) } else { age(a).cmp(&age(b)) };
        set_replicas(b).cmp(&set_replicas(a)).then(by_age)
    });
    let mut added = 0;
    let mut sizes: Vec<(Arc<ReplicaSet>, i32)> = Vec::with_capacity(active.len());
    for rs in active {
        let share = if to_add == 0 { 0 } else { proportion(d, &rs, to_add, added) };
        added += share;
        let n = set_replicas(&rs) + share;
        sizes.push((rs, n));
    }
    if let Some(first) = sizes.first_mut() {
        first.1 = (first.1 + to_add - added).max(0);
    }
    sizes
}

fn proportion(d: &Deployment, rs: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    let size = i64::from(set_replicas(rs));
    let target = if replicas(d) == 0 {
        -size
    } else {
        let now = i64::from(replicas(d) + bounds(d).0);
        let before = annotation(rs, MAX).map_or(i64::from(replicas(d)), i64::from).max(1);
        // Half away from zero; sizes are positive.
        (size * now * 2 + before).div_euclid(before * 2) - size
    };
    let target = i32::try_from(target).unwrap_or(0);
    let left = to_add - added;
    if to_add > 0 { target.min(left) } else { target.max(left) }
}

/// Whether the new set has all the pods it will have, and all are available.
#[must_use]
pub fn saturated(d: &Deployment, rs: &ReplicaSet) -> bool {
    set_replicas(rs) == replicas(d) && annotation(rs, DESIRED) == Some(replicas(d)) && set_available(rs) == replicas(d)
}

/// Old sets that are beyond the history limit, oldest first.
#[must_use]
pub fn forgotten(d: &Deployment, old: &[Arc<ReplicaSet>]) -> Vec<Arc<ReplicaSet>> {
    let limit = d.spec.revision_history_limit.unwrap_or(10);
    let mut kept: Vec<Arc<ReplicaSet>> =
        old.iter().filter(|r| r.metadata.deletion_timestamp.is_none()).cloned().collect();
    let excess = i32::try_from(kept.len()).unwrap_or(0) - limit;
    if limit == i32::MAX || excess <= 0 {
        return vec![];
    }
    kept.sort_by_key(|rs| (super::revision(&**rs), age(rs)));
    kept.truncate(usize::try_from(excess).unwrap_or(0));
    let idle = |rs: &Arc<ReplicaSet>| {
        let seen = rs.status.as_ref().and_then(|s| s.observed_generation);
        set_actual(rs) == 0 && set_replicas(rs) == 0 && rs.metadata.generation <= seen
    };
    kept.into_iter().filter(idle).collect()
}

/// Whether two templates make the same pods; the hash label does not count.
#[must_use]
pub fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    bare(a) == bare(b)
}

fn bare(t: &PodTemplateSpec) -> PodTemplateSpec {
    let mut t = t.clone();
    if let Some(m) = &mut t.metadata {
        if let Some(l) = &mut m.labels {
            l.remove(HASH_LABEL);
        }
        // Empty and absent are the same; the server may write either.
        m.labels = m.labels.take().filter(|l| !l.is_empty());
        m.annotations = m.annotations.take().filter(|l| !l.is_empty());
        m.creation_timestamp = None;
    }
    t.metadata = Some(t.metadata.unwrap_or_default());
    t
}

/// The set that has the Deployment's template; of several the oldest.
#[must_use]
pub fn new_set(d: &Deployment, sets: &[Arc<ReplicaSet>]) -> Option<Arc<ReplicaSet>> {
    let same = |rs: &&Arc<ReplicaSet>| {
        let template = rs.spec.template.as_ref();
        template.is_some_and(|t| same_template(t, &d.spec.template))
    };
    sets.iter().filter(same).min_by_key(|rs| age(rs)).cloned()
}

/// A short stable name for a template: FNV-1a over its JSON (keys are sorted), in letters that make no words.
#[must_use]
pub fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut text = serde_json::to_vec(&bare(template)).unwrap_or_default();
    if let Some(n) = collisions {
        text.extend_from_slice(&n.to_le_bytes());
    }
    let sum = text.iter().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    sum.to_string().bytes().map(|b| char::from(LETTERS[usize::from(b) % LETTERS.len()])).collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
