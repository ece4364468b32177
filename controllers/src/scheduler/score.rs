//! Which of the nodes that can take a pod is best. Each view gives 0 to 100; weights are upstream's defaults.

use k8s_openapi::api::core::v1::Pod;

use super::cache::Host;
use super::company::Company;
use super::filter::{term, tolerated};
use super::resources::Amounts;

/// Scores of `hosts`, in order. What would be the same for all of them is left out.
#[must_use]
pub fn all(pod: &Pod, weighs: &Amounts, hosts: &[&Host], company: &Company) -> Vec<f64> {
    let mut total: Vec<f64> = hosts.iter().map(|h| least(weighs, h) + balance(weighs, h)).collect();
    let mut add = |weight: f64, part: Vec<f64>| total.iter_mut().zip(part).for_each(|(t, p)| *t += weight * p);
    let taints: Vec<f64> = hosts.iter().map(|h| soft_taints(pod, h)).collect();
    if taints.iter().any(|t| *t > 0.0) {
        add(3.0, fewest(&taints));
    }
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()?.node_affinity.as_ref());
    if affinity.is_some_and(|a| a.preferred_during_scheduling_ignored_during_execution.is_some()) {
        add(2.0, most(&hosts.iter().map(|h| preference(pod, h)).collect::<Vec<f64>>()));
    }
    if company.likes() {
        add(2.0, range(&hosts.iter().map(|h| company.liking(h) as f64).collect::<Vec<f64>>()));
    }
    if company.spreads_softly() {
        add(2.0, emptiest(&hosts.iter().map(|h| company.crowding(h)).collect::<Vec<_>>()));
    }
    if hosts.iter().any(|h| !h.images.is_empty()) {
        add(1.0, images(pod, hosts));
    }
    total
}

/// 100 at zero, 0 at the most.
fn fewest(v: &[f64]) -> Vec<f64> {
    let top = v.iter().copied().fold(0.0, f64::max);
    v.iter().map(|x| if top == 0.0 { 100.0 } else { 100.0 - 100.0 * x / top }).collect()
}

/// 100 at the most, 0 at zero.
fn most(v: &[f64]) -> Vec<f64> {
    let top = v.iter().copied().fold(0.0, f64::max);
    v.iter().map(|x| if top == 0.0 { 0.0 } else { 100.0 * x / top }).collect()
}

/// 100 at the most, 0 at the least.
fn range(v: &[f64]) -> Vec<f64> {
    let (low, high) = (v.iter().copied().fold(f64::MAX, f64::min), v.iter().copied().fold(f64::MIN, f64::max));
    v.iter().map(|x| if high > low { 100.0 * (x - low) / (high - low) } else { 0.0 }).collect()
}

fn emptiest(v: &[Option<f64>]) -> Vec<f64> {
    let known = v.iter().flatten().copied();
    let (low, high) = (known.clone().fold(f64::MAX, f64::min), known.fold(0.0, f64::max));
    let one = |x: &Option<f64>| match x {
        None => 0.0,
        Some(_) if high == 0.0 => 100.0,
        Some(x) => 100.0 * (high + low - x) / high,
    };
    v.iter().map(one).collect()
}

/// Bytes per container below which an image counts for nothing, and above which for no more.
const IMAGE_BYTES: (f64, f64) = (23.0 * 1024.0 * 1024.0, 1000.0 * 1024.0 * 1024.0);

/// How much of the pod's images is on each node. An image that few nodes have counts for less, so that one node does not
/// draw all pods to itself.
fn images(pod: &Pod, hosts: &[&Host]) -> Vec<f64> {
    let Some(spec) = &pod.spec else { return vec![0.0; hosts.len()] };
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let wanted: Vec<String> = all.filter_map(|c| c.image.as_deref()).map(tagged).collect();
    let size = |h: &Host, image: &str| h.images.get(image).map(|b| *b as f64);
    let spread: Vec<f64> = wanted
        .iter()
        .map(|w| hosts.iter().filter(|h| size(h, w).is_some()).count() as f64 / hosts.len().max(1) as f64)
        .collect();
    let number = wanted.len().max(1) as f64;
    let (low, high) = (IMAGE_BYTES.0, IMAGE_BYTES.1 * number);
    let one = |h: &&Host| {
        let sum: f64 = wanted.iter().zip(&spread).filter_map(|(w, s)| size(h, w).map(|b| b * s)).sum();
        100.0 * (sum.clamp(low, high) - low) / (high - low)
    };
    hosts.iter().map(one).collect()
}

/// An image's name as nodes list it: with a tag.
fn tagged(image: &str) -> String {
    let named = image.rfind(':') > image.rfind('/') || image.contains('@');
    if named { image.to_owned() } else { format!("{image}:latest") }
}

fn soft_taints(pod: &Pod, host: &Host) -> f64 {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let taints = host.node.as_ref().and_then(|n| n.spec.as_ref()?.taints.as_deref()).unwrap_or_default();
    taints.iter().filter(|t| t.effect == "PreferNoSchedule" && !tolerated(t, tolerations)).count() as f64
}

fn preference(pod: &Pod, host: &Host) -> f64 {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()?.node_affinity.as_ref());
    let preferred = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let Some(node) = &host.node else { return 0.0 };
    preferred.unwrap_or_default().iter().filter(|p| term(&p.preference, node)).map(|p| f64::from(p.weight)).sum()
}

/// Shares of CPU and memory in use with the pod there.
fn shares(weighs: &Amounts, host: &Host) -> [Option<f64>; 2] {
    let share = |gives: i64, used: i64, more: i64| (gives > 0).then(|| (used + more) as f64 / gives as f64);
    let (gives, used) = (&host.gives, &host.weighs);
    [share(gives.cpu, used.cpu, weighs.cpu), share(gives.memory, used.memory, weighs.memory)]
}

fn least(weighs: &Amounts, host: &Host) -> f64 {
    let free = |s: f64| (100.0 * (1.0 - s)).max(0.0);
    match shares(weighs, host) {
        [Some(c), Some(m)] => f64::midpoint(free(c), free(m)),
        [Some(one), None] | [None, Some(one)] => free(one),
        [None, None] => 0.0,
    }
}

fn balance(weighs: &Amounts, host: &Host) -> f64 {
    match shares(weighs, host) {
        [Some(c), Some(m)] => 100.0 * (1.0 - (c.min(1.0) - m.min(1.0)).abs() / 2.0),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::cache::{Cache, Placed};
    use crate::scheduler::company::Namespaces;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn images_on_a_node_draw_pods() {
        let host = |images: serde_json::Value| -> Host {
            let node = json!({"metadata": {"name": "n"}, "status": {"images": images}});
            Host::of(Arc::new(serde_json::from_value(node).unwrap()))
        };
        let image = |name: &str, mib: i64| json!([{"names": [name], "sizeBytes": mib * 1024 * 1024}]);
        let pod = |image: &str| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "image": image}]}})).unwrap()
        };
        let (big, small, none) = (host(image("app:latest", 4000)), host(image("app:latest", 10)), host(json!([])));
        assert_eq!(images(&pod("app"), &[&big, &none]), [100.0, 0.0]);
        assert_eq!(images(&pod("app"), &[&small, &none]), [0.0, 0.0]);
        assert_eq!(images(&pod("app:2"), &[&big, &none]), [0.0, 0.0]);
        let middle = host(image("app:latest", 1023));
        // Half the nodes have it, so half of it counts.
        let [score, _] = images(&pod("app"), &[&middle, &none])[..] else { panic!("two") };
        assert!((score - 50.0).abs() < 0.1, "{score}");
        for (name, want) in
            [("a", "a:latest"), ("r:5000/a", "r:5000/a:latest"), ("a:1", "a:1"), ("a@sha256:0", "a@sha256:0")]
        {
            assert_eq!(tagged(name), want);
        }
    }

    #[test]
    fn the_emptier_node_of_equals() {
        let mut cache = Cache::default();
        for n in ["a", "b"] {
            let node = json!({"metadata": {"name": n}, "status": {"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "10"}}});
            cache.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        }
        let pod = |cpu: &str| -> Arc<Pod> {
            let v = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "1Gi"}}}]}});
            Arc::new(serde_json::from_value(v).unwrap())
        };
        cache.hosts.get_mut("a").unwrap().put("x".into(), Placed::new(pod("1")));
        let placed = Placed::new(pod("1"));
        let hosts: Vec<&Host> = cache.nodes().map(|(_, h)| h).collect();
        let company = Company::of(&placed.pod, &cache, &Namespaces::new());
        let scores = all(&placed.pod, &placed.weighs, &hosts, &company);
        assert!(scores[1] > scores[0], "{scores:?}");
    }
}
