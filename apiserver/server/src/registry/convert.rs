//! Versions of one resource into each other. v1.37 serves two built-ins in more than one version by default:
//! HorizontalPodAutoscaler (autoscaling v1, v2) and Event (core, events.k8s.io). All others differ in `apiVersion` alone.

use serde_json::Value;

use super::autoscaling;

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
        ("HorizontalPodAutoscaler", "autoscaling/v2", "autoscaling/v1") => autoscaling::to_v1(obj),
        ("HorizontalPodAutoscaler", "autoscaling/v1", "autoscaling/v2") => autoscaling::to_v2(obj),
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
