//! Quality of service: Guaranteed, Burstable, BestEffort.

use serde_json::Value;

/// The class of a pod spec, from the CPU and memory of its containers (or of the pod as a whole).
pub(super) fn class(spec: &Value) -> &'static str {
    let pod = &spec["resources"];
    let whole = ["requests", "limits"].iter().any(|k| pod[*k].as_object().is_some_and(|m| !m.is_empty()));
    let lists = ["containers", "initContainers"];
    let parts: Vec<&Value> = if whole {
        vec![pod]
    } else {
        lists.iter().flat_map(|l| spec[*l].as_array().into_iter().flatten()).map(|c| &c["resources"]).collect()
    };
    let amount = |r: &Value, kind: &str, name: &str| {
        r[kind].get(name).and_then(Value::as_str).filter(|q| *q != "0").map(str::to_owned)
    };
    let (mut any, mut all) = (false, true);
    for r in &parts {
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(r, "requests", name), amount(r, "limits", name));
            any |= request.is_some() || limit.is_some();
            all &= limit.is_some() && request == limit;
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::class;
    use serde_json::json;

    #[test]
    fn classes() {
        let of = |r| class(&json!({"containers": [{"resources": r}]}));
        assert_eq!(of(json!({})), "BestEffort");
        let same = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(of(json!({"requests": same, "limits": same})), "Guaranteed");
        assert_eq!(of(json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(of(json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}})), "Burstable");
    }
}
