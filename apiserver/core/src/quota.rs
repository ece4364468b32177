//! What objects use of the resources that a ResourceQuota bounds, and which quotas are about them. Admission adds what
//! a write uses, the controller counts what there is: both by these rules.

use serde_json::Value;

use crate::kinds::pod_totals::{Amounts, amounts, totals};
use crate::quantity::{Format, Quantity};

fn one() -> Quantity {
    Quantity::from_i64(1, Format::DecimalSi)
}

/// The kind (group and plural) whose objects use a resource.
#[must_use]
pub fn user_of(resource: &str) -> Option<(&str, &str)> {
    if let Some(kind) = resource.strip_prefix("count/") {
        let (plural, group) = kind.split_once('.').unwrap_or((kind, ""));
        return Some((group, plural));
    }
    match resource {
        "pods" | "cpu" | "memory" | "ephemeral-storage" => Some(("", "pods")),
        "services" | "services.nodeports" | "services.loadbalancers" => Some(("", "services")),
        "persistentvolumeclaims" | "requests.storage" => Some(("", "persistentvolumeclaims")),
        "replicationcontrollers" | "resourcequotas" | "secrets" | "configmaps" => Some(("", resource)),
        _ if resource.contains(".storageclass.storage.k8s.io/") => Some(("", "persistentvolumeclaims")),
        _ if ["requests.", "limits.", "hugepages-"].iter().any(|p| resource.starts_with(p)) => Some(("", "pods")),
        _ => None,
    }
}

/// Whether one object of a kind uses as much as any other, so that counting is enough.
#[must_use]
pub fn only_counted(group: &str, plural: &str) -> bool {
    !(group.is_empty() && matches!(plural, "pods" | "services" | "persistentvolumeclaims"))
}

/// What an object uses.
#[must_use]
pub fn usage(group: &str, plural: &str, obj: &Value) -> Amounts {
    let counted = if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") };
    let mut out = Amounts::from([(counted, one())]);
    let spec = &obj["spec"];
    match (group, plural) {
        // A pod that has run uses nothing any more.
        ("", "pods") if matches!(obj["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) => {}
        ("", "pods") => {
            out.insert("pods".into(), one());
            compute(spec, &mut out);
        }
        ("", "services") => {
            out.insert("services".into(), one());
            let ports = spec["ports"].as_array().map_or(0, Vec::len);
            let allocated = spec["allocateLoadBalancerNodePorts"] != false;
            let open = match spec["type"].as_str() {
                Some("NodePort") => ports,
                Some("LoadBalancer") if allocated => ports,
                _ => 0,
            };
            let count = |n: usize| Quantity::from_i64(i64::try_from(n).unwrap_or(i64::MAX), Format::DecimalSi);
            out.insert("services.nodeports".into(), count(open));
            out.insert("services.loadbalancers".into(), count(usize::from(spec["type"] == "LoadBalancer")));
        }
        ("", "persistentvolumeclaims") => {
            out.insert("persistentvolumeclaims".into(), one());
            let size = amounts(&spec["resources"]["requests"]).remove("storage");
            let class = spec["storageClassName"].as_str().filter(|c| !c.is_empty());
            if let Some(class) = class {
                out.insert(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), one());
            }
            if let Some(size) = size {
                if let Some(class) = class {
                    out.insert(format!("{class}.storageclass.storage.k8s.io/requests.storage"), size.clone());
                }
                out.insert("requests.storage".into(), size);
            }
        }
        ("", "replicationcontrollers" | "resourcequotas" | "secrets" | "configmaps") => {
            out.insert(plural.to_owned(), one());
        }
        _ => {}
    }
    out
}

/// Requests and limits of a pod under the names that quotas use.
fn compute(spec: &Value, out: &mut Amounts) {
    let overhead = amounts(&spec["overhead"]);
    for sort in ["requests", "limits"] {
        let mut all = totals(spec, sort);
        for (k, q) in &overhead {
            if sort == "requests" || all.contains_key(k) {
                let sum = all.get(k).map_or_else(|| q.clone(), |have| have.add(q));
                all.insert(k.clone(), sum);
            }
        }
        for (k, q) in all {
            let plain = sort == "requests" && matches!(k.as_str(), "cpu" | "memory" | "ephemeral-storage");
            if plain || (sort == "requests" && k.starts_with("hugepages-")) {
                out.insert(k.clone(), q.clone());
            }
            out.insert(format!("{sort}.{k}"), q);
        }
    }
}

/// Whether a quota of this spec is about an object. Scopes are about pods (`is_pod`).
#[must_use]
pub fn in_scope(spec: &Value, is_pod: bool, obj: &Value) -> bool {
    let plain =
        spec["scopes"].as_array().into_iter().flatten().map(|s| (s.as_str().unwrap_or_default(), "Exists", &[][..]));
    let chosen = spec["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten().map(|e| {
        let values = e["values"].as_array().map_or(&[][..], Vec::as_slice);
        (e["scopeName"].as_str().unwrap_or_default(), e["operator"].as_str().unwrap_or_default(), values)
    });
    let pod = &obj["spec"];
    plain.chain(chosen).all(|(scope, operator, values)| {
        if !is_pod {
            return false;
        }
        let bounded = pod["activeDeadlineSeconds"].as_i64().is_some();
        let best_effort = totals(pod, "requests").is_empty() && totals(pod, "limits").is_empty();
        match scope {
            "Terminating" => bounded,
            "NotTerminating" => !bounded,
            "BestEffort" => best_effort,
            "NotBestEffort" => !best_effort,
            "PriorityClass" => {
                let class = pod["priorityClassName"].as_str().unwrap_or_default();
                match operator {
                    "Exists" => !class.is_empty(),
                    "DoesNotExist" => class.is_empty(),
                    "In" => values.iter().any(|v| v == class),
                    _ => !values.iter().any(|v| v == class),
                }
            }
            "CrossNamespacePodAffinity" => ["podAffinity", "podAntiAffinity"].iter().any(|k| {
                let text = pod["affinity"][*k].to_string();
                text.contains("\"namespaces\":[\"") || text.contains("\"namespaceSelector\":{")
            }),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_uses_what() {
        for (resource, want) in [
            ("pods", Some(("", "pods"))),
            ("requests.nvidia.com/gpu", Some(("", "pods"))),
            ("limits.cpu", Some(("", "pods"))),
            ("requests.storage", Some(("", "persistentvolumeclaims"))),
            ("fast.storageclass.storage.k8s.io/requests.storage", Some(("", "persistentvolumeclaims"))),
            ("count/deployments.apps", Some(("apps", "deployments"))),
            ("count/secrets", Some(("", "secrets"))),
            ("count/widgets.example.com", Some(("example.com", "widgets"))),
            ("services.nodeports", Some(("", "services"))),
            ("nonsense", None),
        ] {
            assert_eq!(user_of(resource), want, "{resource}");
        }
    }

    #[test]
    fn a_pod_that_ended_is_only_there() {
        let pod = |phase: &str| {
            json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Mi"}}}]},
                "status": {"phase": phase}})
        };
        let shown = |phase| {
            let all = usage("", "pods", &pod(phase));
            all.iter().map(|(k, q)| format!("{k}={q}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(shown("Running"), "count/pods=1 cpu=1 limits.memory=1Mi pods=1 requests.cpu=1");
        assert_eq!(shown("Failed"), "count/pods=1");
    }

    #[test]
    fn scopes() {
        let pod = json!({"spec": {"containers": [], "activeDeadlineSeconds": 5, "priorityClassName": "high"}});
        let selector = |operator: &str, values: Value| {
            json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": values}]}})
        };
        for (spec, want) in [
            (json!({}), true),
            (json!({"scopes": ["Terminating"]}), true),
            (json!({"scopes": ["NotTerminating"]}), false),
            (json!({"scopes": ["BestEffort", "Terminating"]}), true),
            (json!({"scopes": ["NotBestEffort"]}), false),
            (selector("In", json!(["low", "high"])), true),
            (selector("NotIn", json!(["high"])), false),
        ] {
            assert_eq!(in_scope(&spec, true, &pod), want, "{spec}");
        }
        assert!(!in_scope(&json!({"scopes": ["Terminating"]}), false, &json!({})));
    }
}
