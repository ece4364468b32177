//! Versions of one resource into each other. v1.37 serves two built-ins in more than one version by default:
//! HorizontalPodAutoscaler (autoscaling v1, v2) and Event (core, events.k8s.io). All others differ in `apiVersion` alone.

use serde_json::{Map, Value, json};
use skiff_core::meta;

/// Converts `obj` to `api_version`.
pub fn convert(obj: &mut Value, api_version: &str) {
    let from = obj["apiVersion"].as_str().unwrap_or_default().to_owned();
    if from == api_version {
        return;
    }
    match (obj["kind"].as_str().unwrap_or_default(), from.as_str(), api_version) {
        ("Event", "v1", "events.k8s.io/v1") => {
            rename(obj, EVENT);
            // What the older view always prints, the newer leaves out when empty.
            if let Value::Object(o) = obj {
                o.retain(|k, v| !(matches!(k.as_str(), "reportingController" | "reportingInstance") && v == ""));
            }
        }
        ("Event", "events.k8s.io/v1", "v1") => {
            let back: Vec<(&str, &str)> = EVENT.iter().map(|(a, b)| (*b, *a)).collect();
            rename(obj, &back);
            for key in ["reportingComponent", "reportingInstance"] {
                if obj.get(key).is_none_or(Value::is_null) {
                    obj[key] = "".into();
                }
            }
        }
        ("HorizontalPodAutoscaler", "autoscaling/v2", "autoscaling/v1") => hpa_v1(obj),
        ("HorizontalPodAutoscaler", "autoscaling/v1", "autoscaling/v2") => hpa_v2(obj),
        _ => {}
    }
    obj["apiVersion"] = api_version.into();
}

/// Core name, events.k8s.io name.
const EVENT: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(obj: &mut Value, names: &[(&str, &str)]) {
    let Value::Object(o) = obj else { return };
    for (from, to) in names {
        if let Some(v) = o.remove(*from) {
            o.insert((*to).to_owned(), v);
        }
    }
}

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

fn is_cpu_utilization(m: &Value) -> bool {
    m["type"] == "Resource" && m["resource"]["name"] == "cpu" && m["resource"]["target"]["type"] == "Utilization"
}

/// v2 to v1: the CPU target becomes a field, what v1 cannot say becomes annotations.
fn hpa_v1(obj: &mut Value) {
    let mut notes = Map::new();
    if let Some(spec) = obj.get_mut("spec").and_then(Value::as_object_mut) {
        if let Some(Value::Array(metrics)) = spec.remove("metrics") {
            let (mut cpu, mut rest) = (None, vec![]);
            for m in metrics {
                if cpu.is_none() && is_cpu_utilization(&m) {
                    cpu = m["resource"]["target"].get("averageUtilization").cloned();
                } else {
                    rest.push(m);
                }
            }
            if let Some(cpu) = cpu {
                spec.insert("targetCPUUtilizationPercentage".into(), cpu);
            }
            if !rest.is_empty() {
                notes.insert(METRICS.into(), Value::Array(rest).to_string().into());
            }
        }
        if let Some(b) = spec.remove("behavior") {
            notes.insert(BEHAVIOR.into(), b.to_string().into());
        }
    }
    if let Some(status) = obj.get_mut("status").and_then(Value::as_object_mut) {
        for (key, note) in [("currentMetrics", CURRENT), ("conditions", CONDITIONS)] {
            if let Some(v) = status.remove(key)
                && v.as_array().is_some_and(|a| !a.is_empty())
            {
                notes.insert(note.into(), v.to_string().into());
            }
        }
        status.entry("currentReplicas").or_insert(json!(0));
        status.entry("desiredReplicas").or_insert(json!(0));
    }
    if !notes.is_empty() {
        let m = meta::meta_mut(obj);
        if let Some(a) = m.entry("annotations").or_insert_with(|| json!({})).as_object_mut() {
            a.extend(notes);
        }
    }
}

/// v1 to v2.
fn hpa_v2(obj: &mut Value) {
    let mut take = |key: &str| -> Option<Value> {
        let text = meta::meta_mut(obj).get_mut("annotations")?.as_object_mut()?.remove(key)?;
        serde_json::from_str(text.as_str()?).ok()
    };
    let (metrics, behavior, current, conditions) = (take(METRICS), take(BEHAVIOR), take(CURRENT), take(CONDITIONS));
    if meta::meta(obj).and_then(|m| m.get("annotations")).is_some_and(|a| a.as_object().is_some_and(Map::is_empty)) {
        meta::meta_mut(obj).remove("annotations");
    }
    if let Some(spec) = obj.get_mut("spec").and_then(Value::as_object_mut) {
        let mut list = match metrics {
            Some(Value::Array(a)) => a,
            _ => vec![],
        };
        if let Some(cpu) = spec.remove("targetCPUUtilizationPercentage") {
            let target = json!({"type": "Utilization", "averageUtilization": cpu});
            list.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
        }
        if !list.is_empty() {
            spec.insert("metrics".into(), Value::Array(list));
        }
        if let Some(b) = behavior {
            spec.insert("behavior".into(), b);
        }
    }
    if let Some(status) = obj.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("currentCPUUtilizationPercentage");
        for (key, v) in [("currentMetrics", current), ("conditions", conditions)] {
            if let Some(v) = v {
                status.insert(key.into(), v);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_round_trip() {
        let core = json!({"apiVersion":"v1","kind":"Event","metadata":{"name":"a"},"involvedObject":{"kind":"Pod"},
            "message":"m","reason":"r","count":2,"reportingComponent":"c","reportingInstance":""});
        let mut v = core.clone();
        convert(&mut v, "events.k8s.io/v1");
        assert_eq!(v["note"], "m");
        assert_eq!(v["regarding"]["kind"], "Pod");
        convert(&mut v, "v1");
        assert_eq!(v, core);
    }

    #[test]
    fn autoscalers_round_trip() {
        let v1 = json!({"apiVersion":"autoscaling/v1","kind":"HorizontalPodAutoscaler","metadata":{"name":"a"},
            "spec":{"maxReplicas":3,"targetCPUUtilizationPercentage":70}});
        let mut v = v1.clone();
        convert(&mut v, "autoscaling/v2");
        assert_eq!(v["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 70);
        convert(&mut v, "autoscaling/v1");
        assert_eq!(v, v1);
    }
}
