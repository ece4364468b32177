//! HorizontalPodAutoscaler of autoscaling v1 and v2 into each other. What v1 cannot say stands in annotations: metrics
//! in v1's own form, the behaviour in the names of upstream's internal type. Their texts are made key by key, because
//! clients compare them.

use serde_json::{Map, Value, json};
use skiff_core::meta;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

/// One kind of metric: its name as a type and as a field.
const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
    ("External", "external"),
];

/// A JSON object with its keys in the order given; nulls are left out.
fn object(fields: &[(&str, String)]) -> String {
    let parts: Vec<String> = fields.iter().filter(|(_, v)| v != "null").map(|(k, v)| format!("\"{k}\":{v}")).collect();
    format!("{{{}}}", parts.join(","))
}

fn array(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

/// The keys of `v` in the order given.
fn ordered(v: &Value, keys: &[&str]) -> String {
    if v.is_null() {
        return "null".into();
    }
    object(&keys.iter().map(|k| (*k, v[*k].to_string())).collect::<Vec<_>>())
}

fn selector(v: &Value) -> String {
    if v.is_null() {
        return "null".into();
    }
    let expressions = v["matchExpressions"]
        .as_array()
        .map_or("null".to_owned(), |all| array(all.iter().map(|e| ordered(e, &["key", "operator", "values"]))));
    object(&[("matchLabels", v["matchLabels"].to_string()), ("matchExpressions", expressions)])
}

/// A metric in v1's form. `now` says that it is a measured one: `current` instead of `target`.
fn metric_v1(m: &Value, now: bool) -> String {
    let kind = m["type"].as_str().unwrap_or_default();
    let field = SOURCES.iter().find(|(k, _)| *k == kind).map_or("", |(_, f)| f);
    let s = &m[field];
    let (prefix, t) = if now { ("current", &s["current"]) } else { ("target", &s["target"]) };
    let name = s["metric"]["name"].to_string();
    let text = |k: &str| t[k].to_string();
    let value = format!("{prefix}Value");
    let average = format!("{prefix}AverageValue");
    let utilization = format!("{prefix}AverageUtilization");
    let zero = |v: String| if v == "null" { "\"0\"".to_owned() } else { v };
    let body = match field {
        "object" => object(&[
            ("target", ordered(&s["describedObject"], &["kind", "name", "apiVersion"])),
            ("metricName", name),
            (&value, zero(text("value"))),
            ("selector", selector(&s["metric"]["selector"])),
            ("averageValue", text("averageValue")),
        ]),
        "pods" => object(&[
            ("metricName", name),
            (&average, zero(text("averageValue"))),
            ("selector", selector(&s["metric"]["selector"])),
        ]),
        "external" => object(&[
            ("metricName", name),
            ("metricSelector", selector(&s["metric"]["selector"])),
            (&value, if now { zero(text("value")) } else { text("value") }),
            (&average, text("averageValue")),
        ]),
        _ => object(&[
            ("name", s["name"].to_string()),
            (&utilization, text("averageUtilization")),
            (&average, if now { zero(text("averageValue")) } else { text("averageValue") }),
            ("container", s["container"].to_string()),
        ]),
    };
    object(&[("type", m["type"].to_string()), (field, body)])
}

/// A metric of v1's form in v2's.
fn metric_v2(m: &Value, now: bool) -> Value {
    let kind = m["type"].as_str().unwrap_or_default();
    let field = SOURCES.iter().find(|(k, _)| *k == kind).map_or("", |(_, f)| f);
    let s = &m[field];
    let prefix = if now { "current" } else { "target" };
    let part = |k: &str| s[format!("{prefix}{k}")].clone();
    let mut metric = json!({"name": s["metricName"]});
    for key in ["selector", "metricSelector"] {
        if !s[key].is_null() {
            metric["selector"] = s[key].clone();
        }
    }
    let mut t = Map::new();
    let mut set = |k: &str, v: Value| {
        if !v.is_null() {
            t.insert(k.to_owned(), v);
        }
    };
    let aim = match field {
        "object" => {
            set("averageValue", s["averageValue"].clone());
            if s["averageValue"].is_null() {
                set("value", part("Value"));
                "Value"
            } else {
                "AverageValue"
            }
        }
        "pods" => {
            set("averageValue", part("AverageValue"));
            "AverageValue"
        }
        "external" => {
            set("value", part("Value"));
            set("averageValue", part("AverageValue"));
            if part("AverageValue").is_null() { "Value" } else { "AverageValue" }
        }
        _ => {
            set("averageUtilization", part("AverageUtilization"));
            set("averageValue", part("AverageValue"));
            if part("AverageUtilization").is_null() { "AverageValue" } else { "Utilization" }
        }
    };
    if !now {
        t.insert("type".into(), aim.into());
    }
    let t = Value::Object(t);
    let key = if now { "current" } else { "target" };
    let body = match field {
        "object" => json!({"describedObject": s["target"], "metric": metric, key: t}),
        "pods" | "external" => json!({"metric": metric, key: t}),
        "containerResource" => json!({"name": s["name"], "container": s["container"], key: t}),
        _ => json!({"name": s["name"], key: t}),
    };
    json!({"type": kind, field: body})
}

fn behavior_text(b: &Value) -> String {
    let rules = |r: &Value| {
        if r.is_null() {
            return "null".to_owned();
        }
        let policies = r["policies"].as_array().map_or("null".to_owned(), |all| {
            array(all.iter().map(|p| {
                let part = |k: &str| p[k].to_string();
                format!(
                    "{{\"Type\":{},\"Value\":{},\"PeriodSeconds\":{}}}",
                    part("type"),
                    part("value"),
                    part("periodSeconds")
                )
            }))
        });
        let part = |k: &str| r[k].to_string();
        format!(
            "{{\"StabilizationWindowSeconds\":{},\"SelectPolicy\":{},\"Policies\":{policies},\"Tolerance\":{}}}",
            part("stabilizationWindowSeconds"),
            part("selectPolicy"),
            part("tolerance")
        )
    };
    format!("{{\"ScaleUp\":{},\"ScaleDown\":{}}}", rules(&b["scaleUp"]), rules(&b["scaleDown"]))
}

/// Names with a small first letter, as v2 has them; nulls are left out.
fn small(v: &Value) -> Value {
    match v {
        Value::Object(o) => {
            let named = o.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| {
                let mut c = k.chars();
                let first = c.next().map(|f| f.to_ascii_lowercase()).into_iter();
                (first.chain(c).collect::<String>(), small(v))
            });
            Value::Object(named.collect())
        }
        Value::Array(a) => a.iter().map(small).collect(),
        other => other.clone(),
    }
}

fn is_cpu_utilization(m: &Value) -> bool {
    m["type"] == "Resource" && m["resource"]["name"] == "cpu" && m["resource"]["target"]["type"] == "Utilization"
}

/// v2 to v1: the CPU target becomes a field, what v1 cannot say becomes annotations.
pub(super) fn to_v1(obj: &mut Value) {
    let mut notes = Map::new();
    if let Some(spec) = obj.get_mut("spec").and_then(Value::as_object_mut) {
        if let Some(Value::Array(metrics)) = spec.remove("metrics") {
            let cpu = metrics.iter().position(is_cpu_utilization);
            if let Some(n) = cpu.and_then(|i| metrics[i]["resource"]["target"].get("averageUtilization").cloned()) {
                spec.insert("targetCPUUtilizationPercentage".into(), n);
            }
            let rest: Vec<&Value> =
                metrics.iter().enumerate().filter(|(i, _)| Some(*i) != cpu).map(|(_, m)| m).collect();
            if !rest.is_empty() {
                notes.insert(METRICS.into(), array(rest.into_iter().map(|m| metric_v1(m, false))).into());
            }
        }
        if let Some(b) = spec.remove("behavior") {
            notes.insert(BEHAVIOR.into(), behavior_text(&b).into());
        }
    }
    if let Some(status) = obj.get_mut("status").and_then(Value::as_object_mut) {
        if let Some(Value::Array(all)) = status.remove("currentMetrics")
            && !all.is_empty()
        {
            let cpu = all.iter().find(|m| m["type"] == "Resource" && m["resource"]["name"] == "cpu");
            if let Some(n) = cpu.and_then(|m| m["resource"]["current"].get("averageUtilization").cloned()) {
                status.insert("currentCPUUtilizationPercentage".into(), n);
            }
            notes.insert(CURRENT.into(), array(all.iter().map(|m| metric_v1(m, true))).into());
        }
        if let Some(Value::Array(all)) = status.remove("conditions")
            && !all.is_empty()
        {
            let keys = ["type", "status", "lastTransitionTime", "reason", "message"];
            notes.insert(CONDITIONS.into(), array(all.iter().map(|c| ordered(c, &keys))).into());
        }
        status.entry("currentReplicas").or_insert(json!(0));
        status.entry("desiredReplicas").or_insert(json!(0));
    }
    if !notes.is_empty()
        && let Some(a) = meta::meta_mut(obj).entry("annotations").or_insert_with(|| json!({})).as_object_mut()
    {
        a.extend(notes);
    }
}

/// v1 to v2.
pub(super) fn to_v2(obj: &mut Value) {
    let mut take = |key: &str| -> Option<Value> {
        let text = meta::meta_mut(obj).get_mut("annotations")?.as_object_mut()?.remove(key)?;
        serde_json::from_str(text.as_str()?).ok()
    };
    let (metrics, behavior, current, conditions) = (take(METRICS), take(BEHAVIOR), take(CURRENT), take(CONDITIONS));
    if meta::meta(obj).and_then(|m| m.get("annotations")).is_some_and(|a| a.as_object().is_some_and(Map::is_empty)) {
        meta::meta_mut(obj).remove("annotations");
    }
    if let Some(spec) = obj.get_mut("spec").and_then(Value::as_object_mut) {
        let given = metrics.as_ref().and_then(Value::as_array).into_iter().flatten();
        let mut list: Vec<Value> = given.map(|m| metric_v2(m, false)).collect();
        if let Some(cpu) = spec.remove("targetCPUUtilizationPercentage") {
            let target = json!({"type": "Utilization", "averageUtilization": cpu});
            list.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
        }
        if !list.is_empty() {
            spec.insert("metrics".into(), Value::Array(list));
        }
        if let Some(b) = behavior {
            spec.insert("behavior".into(), small(&b));
        }
    }
    if let Some(status) = obj.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("currentCPUUtilizationPercentage");
        if let Some(Value::Array(all)) = current {
            status.insert("currentMetrics".into(), all.iter().map(|m| metric_v2(m, true)).collect());
        }
        if let Some(c) = conditions {
            status.insert("conditions".into(), c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_round_trip() {
        let spec = json!({"metrics": [
            {"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "5"}}},
            {"type": "Object", "object": {"describedObject": {"kind": "S", "name": "s"}, "metric": {"name": "r"},
                "target": {"type": "Value", "value": "2"}}},
            {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c",
                "target": {"type": "Utilization", "averageUtilization": 50}}},
            {"type": "External", "external": {"metric": {"name": "q", "selector": {"matchLabels": {"a": "b"}}},
                "target": {"type": "AverageValue", "averageValue": "3"}}},
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 40}}}],
            "behavior": {"scaleDown": {"selectPolicy": "Min", "policies": [{"type": "Pods", "value": 1, "periodSeconds": 2}]}}});
        let before = json!({"metadata": {"name": "a"}, "spec": spec});
        let mut v = before.clone();
        to_v1(&mut v);
        assert_eq!(v["spec"], json!({"targetCPUUtilizationPercentage": 40}));
        to_v2(&mut v);
        assert_eq!(v, before);
    }
}
