//! Placement policies: one rule that orders the nodes a pod fits, chosen while the scheduler runs.
//!
//! Key `policy` of the ConfigMap `kube-system/skiff-scheduler` names it. A policy decides among the nodes that the hard
//! rules allow, before every preference; nodes that are equal to it are told apart by the ordinary scores. Without the
//! ConfigMap the ordinary scores decide.
//!
//! Use of CPU and memory is what `metrics.k8s.io` says (see [`super::usage`]), as a share of what the node gives; of a node
//! that was not measured it is what its pods ask for.

use k8s_openapi::api::core::v1::ConfigMap;

use super::cache::Host;
use super::resources::Amounts;
use super::usage::Usage;

/// Namespace of the ConfigMap.
pub const NAMESPACE: &str = "kube-system";
/// Name of the ConfigMap.
pub const NAME: &str = "skiff-scheduler";
/// Its key.
pub const KEY: &str = "policy";

/// How nodes are ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// By upstream's scores.
    #[default]
    Default,
    /// By chance.
    Random,
    /// The next by name after the last chosen.
    RoundRobin,
    /// The one with the fewest pods.
    FewestPods,
    /// The one with the most pods.
    MostPods,
    /// The one with the smallest share of its CPU in use.
    LowestCpu,
    /// The one with the smallest share of its memory in use.
    LowestMemory,
}

const NAMES: [(&str, Policy); 7] = [
    ("default", Policy::Default),
    ("random", Policy::Random),
    ("round-robin", Policy::RoundRobin),
    ("fewest-pods", Policy::FewestPods),
    ("most-pods", Policy::MostPods),
    ("lowest-cpu", Policy::LowestCpu),
    ("lowest-memory", Policy::LowestMemory),
];

impl Policy {
    /// Its name in the ConfigMap.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, p)| *p == self).map_or("default", |(n, _)| n)
    }

    /// Reads the ConfigMap; none, or one without the key, means the default.
    ///
    /// # Errors
    /// A sentence for people about a value that names no policy.
    pub fn read(map: Option<&ConfigMap>) -> Result<Self, String> {
        let Some(text) = map.and_then(|m| m.data.as_ref()?.get(KEY)) else { return Ok(Self::Default) };
        let found = NAMES.iter().find(|(n, _)| *n == text.trim());
        found.map(|(_, p)| *p).ok_or_else(|| {
            let all: Vec<&str> = NAMES.iter().map(|(n, _)| *n).collect();
            format!("unknown policy \"{text}\": must be one of {}", all.join(", "))
        })
    }

    /// Whether it asks what nodes use.
    #[must_use]
    pub fn by_use(self) -> bool {
        matches!(self, Self::LowestCpu | Self::LowestMemory)
    }

    /// Scores of hosts, 0 to 100, more is better; none for the default. `last`: the node chosen before.
    #[must_use]
    pub fn scores(self, hosts: &[&Host], weighs: &Amounts, last: &str, usage: &Usage) -> Option<Vec<f64>> {
        let pods = |h: &Host| h.pods.len() as f64;
        let most = hosts.iter().map(|h| pods(h)).fold(0.0, f64::max);
        let free = |h: &Host, resource: &str| {
            let gives = h.gives.get(resource);
            let now = usage.of(h, resource).unwrap_or_else(|| h.weighs.get(resource));
            let used = now.saturating_add(weighs.get(resource));
            if gives > 0 { (100.0 * (1.0 - used as f64 / gives as f64)).clamp(0.0, 100.0) } else { 0.0 }
        };
        let share = |n: f64| if most > 0.0 { 100.0 * n / most } else { 100.0 };
        let each = |f: &dyn Fn(&Host) -> f64| Some(hosts.iter().map(|h| f(h)).collect());
        match self {
            Self::Default => None,
            Self::Random => each(&|_| rand::random_range(0.0..100.0)),
            Self::RoundRobin => Some(turns(hosts, last)),
            Self::FewestPods => each(&|h| share(most - pods(h))),
            Self::MostPods => each(&|h| share(pods(h))),
            Self::LowestCpu => each(&|h| free(h, "cpu")),
            Self::LowestMemory => each(&|h| free(h, "memory")),
        }
    }
}

/// 100 for the host whose turn it is, less for those that come later.
fn turns(hosts: &[&Host], last: &str) -> Vec<f64> {
    let name = |h: &Host| h.node.as_ref().and_then(|n| n.metadata.name.clone()).unwrap_or_default();
    let names: Vec<String> = hosts.iter().map(|h| name(h)).collect();
    let mut order: Vec<&String> = names.iter().collect();
    // Those after the last one first, each part by name.
    order.sort_by_key(|n| (n.as_str() <= last, n.as_str()));
    let step = 100.0 / names.len().max(1) as f64;
    let turn = |n: &String| order.iter().position(|o| *o == n).unwrap_or(0);
    names.iter().map(|n| 100.0 - step * turn(n) as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::cache::{Cache, Placed};
    use serde_json::json;
    use std::sync::Arc;

    /// a: two small pods; b: one with much CPU; c: one with much memory.
    fn cluster() -> Cache {
        let mut cache = Cache::default();
        for n in ["a", "b", "c"] {
            let node = json!({"metadata": {"name": n}, "status": {"allocatable": {"cpu": "4", "memory": "4Gi"}}});
            cache.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        }
        for (name, node, cpu, memory) in
            [("1", "a", "1", "1Gi"), ("2", "a", "1m", "1Mi"), ("3", "b", "3", "1Mi"), ("4", "c", "1m", "3Gi")]
        {
            let pod = json!({"metadata": {"name": name}, "spec": {"containers": [
                {"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}});
            cache.assume(Placed::new(Arc::new(serde_json::from_value(pod).unwrap())), node);
        }
        cache
    }

    #[test]
    fn what_each_policy_likes_most() {
        let cache = cluster();
        let hosts: Vec<&Host> = cache.nodes().map(|(_, h)| h).collect();
        let pod = Placed::new(Arc::new(serde_json::from_value(json!({"spec": {"containers": []}})).unwrap()));
        for (name, last, want) in [
            ("round-robin", "", "a"),
            ("round-robin", "a", "b"),
            ("round-robin", "bb", "c"),
            ("round-robin", "c", "a"),
            ("fewest-pods", "", "bc"),
            ("most-pods", "", "a"),
            ("lowest-cpu", "", "c"),
            ("lowest-memory", "", "b"),
        ] {
            let map = ConfigMap { data: Some([(KEY.to_owned(), name.to_owned())].into()), ..ConfigMap::default() };
            let policy = Policy::read(Some(&map)).unwrap();
            assert_eq!(policy.name(), name);
            let scores = policy.scores(&hosts, &pod.weighs, last, &Usage::default()).unwrap();
            assert!(scores.iter().all(|s| (0.0..=100.0).contains(s)), "{scores:?}");
            let top = scores.iter().copied().fold(f64::MIN, f64::max);
            let best: String =
                ["a", "b", "c"].iter().zip(&scores).filter(|(_, s)| **s == top).map(|(n, _)| *n).collect();
            assert_eq!(best, want, "{name} after {last:?}: {scores:?}");
        }
    }

    #[test]
    fn chance_takes_every_node() {
        let cache = cluster();
        let hosts: Vec<&Host> = cache.nodes().map(|(_, h)| h).collect();
        let mut seen = [0; 3];
        for _ in 0..300 {
            let scores = Policy::Random.scores(&hosts, &Amounts::default(), "", &Usage::default()).unwrap();
            let best = (0..3).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap();
            seen[best] += 1;
        }
        assert!(seen.iter().all(|n| *n > 30), "{seen:?}");
    }

    #[test]
    fn values_that_name_no_policy() {
        let map = |v: &str| ConfigMap { data: Some([(KEY.to_owned(), v.to_owned())].into()), ..ConfigMap::default() };
        assert_eq!(Policy::read(None), Ok(Policy::Default));
        assert_eq!(Policy::read(Some(&ConfigMap::default())), Ok(Policy::Default));
        assert_eq!(Policy::read(Some(&map(" random\n"))), Ok(Policy::Random));
        assert!(
            Policy::read(Some(&map("fastest"))).unwrap_err().starts_with("unknown policy \"fastest\": must be one of")
        );
    }
}
