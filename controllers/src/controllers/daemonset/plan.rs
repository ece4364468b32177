//! What a DaemonSet needs next. No I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;

use super::place;
use crate::controllers::family::{Share, scaled};
use crate::controllers::pods;
use crate::controllers::revisions::REVISION;

/// Pods by the node that they are on or meant for.
pub type ByNode = BTreeMap<String, Vec<Arc<Pod>>>;

/// The new and the old pod of a node.
type Pair<'a> = (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>);

/// A DaemonSet, the nodes, and where its pods are.
pub struct Sight<'a> {
    /// The set.
    pub ds: &'a DaemonSet,
    /// Each node, and whether it is to get and may keep a pod.
    pub nodes: Vec<(Arc<Node>, bool, bool)>,
    /// Its pods, the oldest first.
    pub pods: ByNode,
    /// Hash of the present revision.
    pub hash: &'a str,
}

/// What is to be done.
#[derive(Debug, Default)]
pub struct Work {
    /// Nodes that need a pod.
    pub create: Vec<String>,
    /// Pods that are too many or in the wrong place.
    pub delete: Vec<Arc<Pod>>,
    /// Pods that ended: to be removed so that new ones come, with a pause where they failed.
    pub ended: Vec<Arc<Pod>>,
}

fn update(ds: &DaemonSet) -> Option<&RollingUpdateDaemonSet> {
    ds.spec.update_strategy.as_ref()?.rolling_update.as_ref()
}

fn rolling(ds: &DaemonSet) -> bool {
    let kind = ds.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref());
    kind.unwrap_or("RollingUpdate") == "RollingUpdate"
}

/// Seconds of readiness until a pod is available.
#[must_use]
pub fn min_ready(ds: &DaemonSet) -> i32 {
    ds.spec.min_ready_seconds.unwrap_or(0)
}

fn live(pods: &[Arc<Pod>]) -> impl Iterator<Item = &Arc<Pod>> {
    pods.iter().filter(|p| !pods::deleting(p))
}

impl<'a> Sight<'a> {
    /// Looks.
    #[must_use]
    pub fn new(ds: &'a DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>], hash: &'a str) -> Self {
        let nodes = nodes.iter().map(|n| {
            let (runs, stays) = place::belongs(ds, n);
            (Arc::clone(n), runs, stays)
        });
        let mut by_node = ByNode::new();
        for p in pods {
            if let Some(n) = place::node_of(p) {
                by_node.entry(n.to_owned()).or_default().push(Arc::clone(p));
            }
        }
        for list in by_node.values_mut() {
            list.sort_by_key(|p| (p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.name_any()));
        }
        Self { ds, nodes: nodes.collect(), pods: by_node, hash }
    }

    fn updated(&self, pod: &Pod) -> bool {
        pod.metadata.labels.as_ref().and_then(|l| l.get(REVISION)).is_some_and(|h| h == self.hash)
    }

    fn available(&self, pod: &Pod) -> bool {
        pods::available(pod, min_ready(self.ds))
    }

    fn on(&self, node: &str) -> &[Arc<Pod>] {
        self.pods.get(node).map_or(&[], Vec::as_slice)
    }

    fn desired(&self) -> i32 {
        i32::try_from(self.nodes.iter().filter(|(_, runs, _)| *runs).count()).unwrap_or(i32::MAX)
    }

    /// How many nodes may have two pods, and how many none, in a rollout.
    fn bounds(&self) -> (usize, usize) {
        let total = self.desired();
        let surge = scaled(update(self.ds).and_then(|u| u.max_surge.as_ref()), Share::Number(0), total, true);
        let gap = scaled(update(self.ds).and_then(|u| u.max_unavailable.as_ref()), Share::Number(1), total, true);
        let gap = if surge == 0 && gap == 0 { 1 } else { gap };
        (usize::try_from(surge).unwrap_or(0), usize::try_from(gap).unwrap_or(0))
    }

    fn surges(&self) -> bool {
        rolling(self.ds) && self.bounds().0 > 0
    }

    /// What puts a pod on every node that is to have one, and takes away all others.
    #[must_use]
    pub fn manage(&self) -> Work {
        let mut work = Work::default();
        for (node, runs, stays) in &self.nodes {
            let name = node.name_any();
            let here = self.on(&name);
            if !*stays {
                work.delete.extend(live(here).cloned());
            } else if here.is_empty() {
                work.create.extend(runs.then_some(name));
            } else {
                self.tidy(&name, *runs, here, &mut work);
            }
        }
        // Pods that wait for a node that is gone: nobody else removes them.
        let known = |n: &str| self.nodes.iter().any(|(node, ..)| node.metadata.name.as_deref() == Some(n));
        for pods in self.pods.iter().filter(|(n, _)| !known(n)).map(|(_, p)| p) {
            work.delete.extend(live(pods).filter(|p| pods::node(p).is_empty()).cloned());
        }
        work
    }

    fn tidy(&self, node: &str, runs: bool, here: &[Arc<Pod>], work: &mut Work) {
        let (ended, going): (Vec<_>, Vec<_>) = live(here).cloned().partition(|p| pods::finished(p));
        // Another comes when it is gone: it may have failed for a reason that is still there.
        let waits = !ended.is_empty();
        work.ended.extend(ended);
        if !self.surges() {
            work.delete.extend(going.into_iter().skip(1));
            return;
        }
        if going.is_empty() && runs && !waits {
            work.create.push(node.to_owned());
        }
        if going.len() < 2 {
            return;
        }
        let (new, old): (Vec<_>, Vec<_>) = going.into_iter().partition(|p| self.updated(p));
        work.delete.extend(new.iter().skip(1).chain(old.iter().skip(1)).cloned());
        // Two stay only while the old one answers and the new one does not yet.
        if let (Some(new), Some(old)) = (new.first(), old.first())
            && (!pods::ready(old) || self.available(new))
        {
            work.delete.push(Arc::clone(old));
        }
    }

    /// The new and the old pod of a node. None when there are two of a sort: then it is to be tidied first.
    fn pair(&self, node: &str) -> Option<Pair<'_>> {
        let (mut new, mut old) = (None, None);
        for pod in live(self.on(node)) {
            let place = if self.updated(pod) { &mut new } else { &mut old };
            if place.replace(pod).is_some() {
                return None;
            }
        }
        Some((new, old))
    }

    /// The next step of a rollout.
    #[must_use]
    pub fn roll(&self) -> Work {
        let mut work = Work::default();
        if !rolling(self.ds) {
            return work;
        }
        let (surge, gap) = self.bounds();
        if surge == 0 {
            self.replace(gap, &mut work)
        } else {
            self.surge(surge, &mut work)
        }
        work
    }

    /// Nodes that a rollout looks at: those that are to have a pod, and those that have one.
    fn rolled(&self) -> Vec<String> {
        let mut all: Vec<String> = self.nodes.iter().filter(|(_, runs, _)| *runs).map(|(n, ..)| n.name_any()).collect();
        all.extend(self.pods.keys().cloned());
        all.sort();
        all.dedup();
        all
    }

    fn replace(&self, gap: usize, work: &mut Work) {
        let (mut missing, mut candidates) = (0, vec![]);
        for node in self.rolled() {
            match self.pair(&node) {
                Some((Some(new), None)) => missing += usize::from(!self.available(new)),
                Some((None, Some(old))) if self.available(old) => candidates.push(Arc::clone(old)),
                Some((None, Some(old))) => {
                    // It does not answer anyway.
                    missing += 1;
                    work.delete.push(Arc::clone(old));
                }
                _ => missing += 1,
            }
        }
        candidates.truncate(gap.saturating_sub(missing));
        work.delete.extend(candidates);
    }

    fn surge(&self, surge: usize, work: &mut Work) {
        let (mut doubled, mut candidates) = (0, vec![]);
        for node in self.rolled() {
            match self.pair(&node) {
                None => doubled += 1,
                Some((_, None)) => {}
                Some((None, Some(old))) if self.available(old) => candidates.push(node),
                Some((None, Some(_))) => work.create.push(node),
                Some((Some(new), Some(old))) => {
                    if self.available(new) {
                        work.delete.push(Arc::clone(old));
                    } else {
                        doubled += 1;
                    }
                }
            }
        }
        candidates.truncate(surge.saturating_sub(doubled));
        work.create.extend(candidates);
    }

    /// The status that tells what is there.
    #[must_use]
    pub fn status(&self, collisions: Option<i32>) -> DaemonSetStatus {
        let mut s = DaemonSetStatus {
            observed_generation: self.ds.metadata.generation,
            collision_count: collisions,
            conditions: self.ds.status.as_ref().and_then(|s| s.conditions.clone()),
            ..DaemonSetStatus::default()
        };
        let (mut updated, mut available) = (0, 0);
        for (node, runs, _) in &self.nodes {
            let first = self.on(&node.name_any()).first();
            if !*runs {
                s.number_misscheduled += i32::from(first.is_some());
                continue;
            }
            s.desired_number_scheduled += 1;
            let Some(pod) = first else { continue };
            s.current_number_scheduled += 1;
            s.number_ready += i32::from(pods::ready(pod));
            available += i32::from(self.available(pod));
            updated += i32::from(self.updated(pod));
        }
        let some = |n: i32| Some(n).filter(|n| *n != 0);
        s.updated_number_scheduled = some(updated);
        s.number_available = some(available);
        s.number_unavailable = some(s.desired_number_scheduled - available);
        s
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn ds(update: Value) -> DaemonSet {
        serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": {"selector": {}, "template": {
            "spec": {"containers": [], "nodeSelector": {"in": "yes"}}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": update}}}))
        .unwrap()
    }

    fn nodes() -> Vec<Arc<Node>> {
        let one = |name: &str, label: &str| -> Arc<Node> {
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": {"in": label}}})).unwrap())
        };
        vec![one("n1", "yes"), one("n2", "yes"), one("n3", "yes"), one("out", "no")]
    }

    /// `name@node` and flags: `o` is old, `!` does not answer, `-` is deleting, `x` has failed, `?` is not bound.
    fn pods(text: &str) -> Vec<Arc<Pod>> {
        let one = |(i, word): (usize, &str)| {
            let (name, rest) = word.split_once('@').unwrap();
            let node: String = rest.chars().take_while(|c| c.is_alphanumeric() && !matches!(c, 'x')).collect();
            let flags = &rest[node.len()..];
            let has = |c: char| flags.contains(c);
            let hash = if has('~') { "old" } else { "new" };
            let mut p = place::pod(&ds(json!({})), &node, hash);
            p.metadata.name = Some(name.into());
            p.metadata.creation_timestamp =
                Some(serde_json::from_value(json!(format!("2026-01-01T00:00:{i:02}Z"))).unwrap());
            if !has('?') {
                p.spec.as_mut().unwrap().node_name = Some(node);
            }
            let ready = if has('!') { "False" } else { "True" };
            p.status = Some(
                serde_json::from_value(json!({"phase": if has('x') {"Failed"} else {"Running"},
                "conditions": [{"type": "Ready", "status": ready}]}))
                .unwrap(),
            );
            if has('-') {
                p.metadata.deletion_timestamp = Some(crate::runtime::now());
            }
            Arc::new(p)
        };
        text.split_whitespace().enumerate().map(one).collect()
    }

    fn shown(w: &Work) -> String {
        let names =
            |l: &[Arc<Pod>], sign: &str| l.iter().map(|p| format!("{sign}{}", p.name_any())).collect::<Vec<_>>();
        let mut all: Vec<String> = w.create.iter().map(|n| format!("+{n}")).collect();
        all.extend(names(&w.delete, "-"));
        all.extend(names(&w.ended, "x"));
        all.join(" ")
    }

    #[test]
    fn every_node_has_one() {
        let plain = json!({"maxUnavailable": 1, "maxSurge": 0});
        let surging = json!({"maxUnavailable": 0, "maxSurge": 1});
        for (update, there, want) in [
            (&plain, "", "+n1 +n2 +n3"),
            (&plain, "a@n1 b@n2-", "+n3"),
            (&plain, "a@n1 b@n2 c@n3 d@out", "-d"),
            (&plain, "a@n1 b@n2 c@n3 d@n1", "-d"),
            (&plain, "a@n1 b@n2x c@n3", "xb"),
            (&plain, "a@n1 b@n2 c@n3 d@gone? e@gone", "-d"),
            (&surging, "a@n1~ b@n2 c@n3 d@n1!", ""),
            (&surging, "a@n1~ b@n2 c@n3 d@n1", "-a"),
            (&surging, "a@n1~! b@n2 c@n3 d@n1!", "-a"),
            (&surging, "a@n1~- b@n2 c@n3", "+n1"),
        ] {
            let d = ds(update.clone());
            let s = Sight::new(&d, &nodes(), &pods(there), "new");
            assert_eq!(shown(&s.manage()), want, "{there:?}");
        }
    }

    #[test]
    fn rollouts_keep_to_their_bounds() {
        let update = |gap: Value, surge: Value| json!({"maxUnavailable": gap, "maxSurge": surge});
        for (update, there, want) in [
            (update(json!(1), json!(0)), "a@n1~ b@n2~ c@n3~", "-a"),
            (update(json!(2), json!(0)), "a@n1~ b@n2~ c@n3~", "-a -b"),
            (update(json!("50%"), json!(0)), "a@n1~ b@n2~ c@n3~", "-a -b"),
            (update(json!(1), json!(0)), "a@n1! b@n2~ c@n3~", ""),
            (update(json!(1), json!(0)), "a@n1~! b@n2~ c@n3~", "-a"),
            (update(json!(1), json!(0)), "b@n2~ c@n3~", ""),
            (update(json!(1), json!(0)), "a@n1 b@n2 c@n3", ""),
            (update(json!(0), json!(1)), "a@n1~ b@n2~ c@n3~", "+n1"),
            (update(json!(0), json!(1)), "a@n1~ d@n1! b@n2~ c@n3~", ""),
            (update(json!(0), json!(1)), "a@n1~ d@n1 b@n2~ c@n3~", "+n2 -a"),
            (update(json!(0), json!(1)), "a@n1~! b@n2~ c@n3~", "+n1 +n2"),
        ] {
            let d = ds(update.clone());
            let s = Sight::new(&d, &nodes(), &pods(there), "new");
            assert_eq!(shown(&s.roll()), want, "{update} {there:?}");
        }
        let mut d = ds(json!({}));
        d.spec.update_strategy.as_mut().unwrap().type_ = Some("OnDelete".into());
        assert_eq!(shown(&Sight::new(&d, &nodes(), &pods("a@n1~"), "new").roll()), "");
    }

    #[test]
    fn counts() {
        let d = ds(json!({}));
        let s = Sight::new(&d, &nodes(), &pods("a@n1 b@n2~! d@out"), "new").status(None);
        assert_eq!((s.desired_number_scheduled, s.current_number_scheduled, s.number_misscheduled), (3, 2, 1));
        assert_eq!((s.number_ready, s.number_available, s.number_unavailable), (1, Some(1), Some(2)));
        assert_eq!(s.updated_number_scheduled, Some(1));
    }
}
