//! What a pod asks for as a whole.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::kinds::check::list;
use crate::quantity::Quantity;

/// Amounts by resource.
pub type Amounts = BTreeMap<String, Quantity>;

/// Reads a map of quantities.
#[must_use]
pub fn amounts(v: &Value) -> Amounts {
    let all = v.as_object().into_iter().flatten();
    all.filter_map(|(k, q)| Some((k.clone(), Quantity::parse(q.as_str()?).ok()?))).collect()
}

fn add(into: &mut Amounts, more: &Amounts) {
    for (k, q) in more {
        let sum = into.get(k).map_or_else(|| q.clone(), |have| have.add(q));
        into.insert(k.clone(), sum);
    }
}

fn raise(into: &mut Amounts, other: &Amounts) {
    for (k, q) in other {
        if into.get(k).is_none_or(|have| have < q) {
            into.insert(k.clone(), q.clone());
        }
    }
}

/// Requests or limits (`sort`) of a whole pod: its containers together, or what the init containers need at their
/// largest, where those that keep running count on. What the pod itself asks for takes the place of both.
#[must_use]
pub fn totals(spec: &Value, sort: &str) -> Amounts {
    let mut sum = Amounts::new();
    for c in list(spec, "containers") {
        add(&mut sum, &amounts(&c["resources"][sort]));
    }
    let (mut running, mut peak) = (Amounts::new(), Amounts::new());
    for c in list(spec, "initContainers") {
        let own = amounts(&c["resources"][sort]);
        if c["restartPolicy"] == "Always" {
            add(&mut sum, &own);
            add(&mut running, &own);
            raise(&mut peak, &running);
        } else {
            let mut now = running.clone();
            add(&mut now, &own);
            raise(&mut peak, &now);
        }
    }
    raise(&mut sum, &peak);
    sum.extend(amounts(&spec["resources"][sort]));
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_larger_of_start_and_run() {
        let c = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = c("100m");
        sidecar["restartPolicy"] = "Always".into();
        let cpu = |spec: Value| totals(&spec, "requests").get("cpu").map(ToString::to_string).unwrap_or_default();
        assert_eq!(cpu(json!({"containers": [c("600m"), c("600m")]})), "1200m");
        assert_eq!(cpu(json!({"containers": [c("600m")], "initContainers": [c("2")]})), "2");
        assert_eq!(cpu(json!({"containers": [c("600m")], "initContainers": [sidecar, c("550m")]})), "700m");
        assert_eq!(cpu(json!({"containers": [c("600m")], "resources": {"requests": {"cpu": "3"}}})), "3");
        assert_eq!(cpu(json!({"containers": [{}]})), "");
    }
}
