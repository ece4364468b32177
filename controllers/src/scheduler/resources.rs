//! What a pod asks for and what a node has, as plain numbers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Node, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts by resource name. CPU in thousandths, everything else in whole units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts(pub BTreeMap<String, i64>);

impl Amounts {
    /// Reads a resource list; what cannot be read counts as nothing.
    #[must_use]
    pub fn read(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        let one = |(name, q): (&String, &Quantity)| {
            let q: skiff_core::quantity::Quantity = q.0.parse().ok()?;
            Some((name.clone(), if name == "cpu" { q.millis() } else { q.value() }))
        };
        Self(list.into_iter().flatten().filter_map(one).collect())
    }

    /// The amount of a resource.
    #[must_use]
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Adds another's amounts.
    pub fn add(&mut self, other: &Self) {
        for (k, v) in &other.0 {
            let sum = self.0.entry(k.clone()).or_insert(0);
            *sum = sum.saturating_add(*v);
        }
    }

    /// Takes another's amounts away.
    pub fn sub(&mut self, other: &Self) {
        for (k, v) in &other.0 {
            let left = self.0.entry(k.clone()).or_insert(0);
            *left = left.saturating_sub(*v);
        }
    }

    fn max(&mut self, other: &Self) {
        for (k, v) in &other.0 {
            let most = self.0.entry(k.clone()).or_insert(0);
            *most = (*most).max(*v);
        }
    }
}

/// Requests of a container; a limit stands in where no request is given.
fn of(r: Option<&ResourceRequirements>) -> Amounts {
    let mut amounts = Amounts::read(r.and_then(|r| r.limits.as_ref()));
    amounts.0.extend(Amounts::read(r.and_then(|r| r.requests.as_ref())).0);
    amounts
}

fn sidecar(c: &Container) -> bool {
    c.restart_policy.as_deref() == Some("Always")
}

/// What a pod asks for: its containers and sidecars together, or an init container (with the sidecars started before
/// it) if that is more; what the pod says of itself goes before; the overhead of its runtime comes on top.
#[must_use]
pub fn requests(pod: &Pod) -> Amounts {
    requests_with(pod, |_| {})
}

/// As [`requests`], with small amounts in place of none, so that pods without requests are spread too.
#[must_use]
pub fn requests_for_score(pod: &Pod) -> Amounts {
    requests_with(pod, |a| {
        a.0.entry("cpu".into()).or_insert(100);
        a.0.entry("memory".into()).or_insert(200 * 1024 * 1024);
    })
}

fn requests_with(pod: &Pod, fill: impl Fn(&mut Amounts)) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::default() };
    let asked = |c: &Container| {
        let mut a = of(c.resources.as_ref());
        fill(&mut a);
        a
    };
    let mut total = Amounts::default();
    spec.containers.iter().for_each(|c| total.add(&asked(c)));
    let mut sidecars = Amounts::default();
    let mut peak = Amounts::default();
    for c in spec.init_containers.iter().flatten() {
        if sidecar(c) {
            sidecars.add(&asked(c));
            peak.max(&sidecars);
        } else {
            let mut during = asked(c);
            during.add(&sidecars);
            peak.max(&during);
        }
    }
    total.add(&sidecars);
    total.max(&peak);
    total.0.extend(of(spec.resources.as_ref()).0);
    total.add(&Amounts::read(spec.overhead.as_ref()));
    total
}

/// What a node gives to pods.
#[must_use]
pub fn allocatable(node: &Node) -> Amounts {
    let status = node.status.as_ref();
    Amounts::read(status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_larger_of_init_and_run() {
        let c = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let side = json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}});
        for (containers, inits, overhead, want) in [
            (vec![c("1"), c("500m")], vec![], None, 1500),
            (vec![c("1")], vec![c("3")], None, 3000),
            (vec![c("1")], vec![side.clone(), c("2")], None, 2100),
            (vec![c("1")], vec![c("2"), side.clone()], None, 2000),
            (vec![c("2")], vec![side.clone()], Some("250m"), 2350),
            (vec![json!({"name": "c", "resources": {"limits": {"cpu": "2"}}})], vec![], None, 2000),
        ] {
            let mut v = json!({"spec": {"containers": containers, "initContainers": inits}});
            if let Some(o) = overhead {
                v["spec"]["overhead"] = json!({"cpu": o});
            }
            let pod: Pod = serde_json::from_value(v.clone()).unwrap();
            assert_eq!(requests(&pod).get("cpu"), want, "{v}");
        }
    }
}
