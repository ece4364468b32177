//! What a pod asks for and what a node has, as plain numbers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Node, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts by resource name. CPU in thousandths, everything else in whole units.
///
/// The resources that nearly every pod and node speaks of have fields of their own: they are compared for hundreds of
/// nodes per pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// CPU, in thousandths.
    pub cpu: i64,
    /// Memory, in bytes.
    pub memory: i64,
    /// Number of pods.
    pub pods: i64,
    /// Everything else.
    pub others: BTreeMap<String, i64>,
}

impl Amounts {
    /// Reads a resource list; what cannot be read counts as nothing.
    #[must_use]
    pub fn read(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        let mut all = Self::default();
        list.into_iter().flatten().for_each(|(name, q)| all.take(name, q));
        all
    }

    fn take(&mut self, name: &str, q: &Quantity) {
        let Ok(q) = q.0.parse::<skiff_core::quantity::Quantity>() else { return };
        *self.slot(name) = if name == "cpu" { q.millis() } else { q.value() };
    }

    fn slot(&mut self, name: &str) -> &mut i64 {
        match name {
            "cpu" => &mut self.cpu,
            "memory" => &mut self.memory,
            "pods" => &mut self.pods,
            _ => self.others.entry(name.to_owned()).or_insert(0),
        }
    }

    /// The amount of a resource.
    #[must_use]
    pub fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.cpu,
            "memory" => self.memory,
            "pods" => self.pods,
            _ => self.others.get(name).copied().unwrap_or(0),
        }
    }

    /// All that is not zero.
    pub fn named(&self) -> impl Iterator<Item = (&str, i64)> {
        let usual = [("cpu", self.cpu), ("memory", self.memory), ("pods", self.pods)];
        usual.into_iter().chain(self.others.iter().map(|(k, v)| (k.as_str(), *v))).filter(|(_, n)| *n != 0)
    }

    fn merge(&mut self, other: &Self, f: impl Fn(i64, i64) -> i64) {
        self.cpu = f(self.cpu, other.cpu);
        self.memory = f(self.memory, other.memory);
        self.pods = f(self.pods, other.pods);
        for (k, v) in &other.others {
            let mine = self.slot(k);
            *mine = f(*mine, *v);
        }
    }

    /// Adds another's amounts.
    pub fn add(&mut self, other: &Self) {
        self.merge(other, i64::saturating_add);
    }

    /// Takes another's amounts away.
    pub fn sub(&mut self, other: &Self) {
        self.merge(other, i64::saturating_sub);
    }

    fn max(&mut self, other: &Self) {
        self.merge(other, i64::max);
    }
}

/// Sets what is asked for; a limit stands in where no request is given.
fn ask(amounts: &mut Amounts, r: &ResourceRequirements) {
    let requests = r.requests.as_ref();
    let asked = |name: &String| requests.is_some_and(|r| r.contains_key(name));
    r.limits.iter().flatten().filter(|(name, _)| !asked(name)).for_each(|(name, q)| amounts.take(name, q));
    requests.into_iter().flatten().for_each(|(name, q)| amounts.take(name, q));
}

/// Whether a container names an amount of a resource.
fn names(c: &Container, resource: &str) -> bool {
    let Some(r) = &c.resources else { return false };
    [&r.requests, &r.limits].into_iter().flatten().any(|l| l.contains_key(resource))
}

fn sidecar(c: &Container) -> bool {
    c.restart_policy.as_deref() == Some("Always")
}

/// What a pod asks for: its containers and sidecars together, or an init container (with the sidecars started before
/// it) if that is more; what the pod says of itself goes before; the overhead of its runtime comes on top.
#[must_use]
pub fn requests(pod: &Pod) -> Amounts {
    requests_with(pod, |_, _| {})
}

/// As [`requests`], with small amounts in place of none, so that pods without requests are spread too.
#[must_use]
pub fn requests_for_score(pod: &Pod) -> Amounts {
    requests_with(pod, |a, c| {
        if !names(c, "cpu") {
            a.cpu = 100;
        }
        if !names(c, "memory") {
            a.memory = 200 * 1024 * 1024;
        }
    })
}

fn requests_with(pod: &Pod, fill: impl Fn(&mut Amounts, &Container)) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::default() };
    let asked = |c: &Container| {
        let mut a = Amounts::default();
        c.resources.iter().for_each(|r| ask(&mut a, r));
        fill(&mut a, c);
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
    spec.resources.iter().for_each(|r| ask(&mut total, r));
    if spec.overhead.is_some() {
        total.add(&Amounts::read(spec.overhead.as_ref()));
    }
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
