//! Pods and pod templates.

use jiff::Timestamp;
use serde_json::Value;

use super::format::{age, containers, labels};
use super::{AGE, Column, NAME, Table, created, list, name, s, w};

pub(super) fn table(group: &str, plural: &str) -> Option<Table> {
    const POD: &[Column] = &[
        NAME,
        s("Ready"),
        s("Status"),
        s("Restarts"),
        AGE,
        w("IP"),
        w("Node"),
        w("Nominated Node"),
        w("Readiness Gates"),
    ];
    const TEMPLATE: &[Column] = &[NAME, s("Containers"), s("Images"), s("Pod Labels")];
    match (group, plural) {
        ("", "pods") => Some(Table { columns: POD, cells: pod }),
        ("", "podtemplates") => Some(Table {
            columns: TEMPLATE,
            cells: |o, _| {
                let (names, images) = containers(&o["template"]["spec"]);
                vec![name(o), names.into(), images.into(), labels(&o["template"]["metadata"]["labels"]).into()]
            },
        }),
        _ => None,
    }
}

fn statuses<'a>(o: &'a Value, key: &str) -> Vec<&'a Value> {
    list(&o["status"], key).collect()
}

fn sidecar(o: &Value, container: &str) -> bool {
    list(&o["spec"], "initContainers").any(|c| c["name"] == container && c["restartPolicy"] == "Always")
}

fn pod(o: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &o["spec"];
    let mut total = list(spec, "containers").count();
    total += list(spec, "initContainers").filter(|c| c["restartPolicy"] == "Always").count();
    let (mut ready, mut restarts, mut restartable) = (0, 0, 0);
    let mut last: Option<String> = None;
    let mut restartable_last: Option<String> = None;
    let later = |a: &mut Option<String>, t: &Value| {
        if let Some(t) = t.as_str()
            && a.as_deref().is_none_or(|x| x < t)
        {
            *a = Some(t.to_owned());
        }
    };
    let mut reason = o["status"]["phase"].as_str().unwrap_or_default().to_owned();
    if let Some(r) = o["status"]["reason"].as_str().filter(|r| !r.is_empty()) {
        reason = r.to_owned();
    }
    let gated = |c: &&Value| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated";
    if list(&o["status"], "conditions").any(|c| gated(&c)) {
        reason = "SchedulingGated".into();
    }
    let inits = list(spec, "initContainers").count();
    let mut initializing = false;
    for (i, c) in statuses(o, "initContainerStatuses").iter().enumerate() {
        let n = c["restartCount"].as_i64().unwrap_or(0);
        restarts += n;
        later(&mut last, &c["lastState"]["terminated"]["finishedAt"]);
        let is_sidecar = sidecar(o, c["name"].as_str().unwrap_or_default());
        if is_sidecar {
            restartable += n;
            later(&mut restartable_last, &c["lastState"]["terminated"]["finishedAt"]);
        }
        let state = &c["state"];
        if state["terminated"].is_object() && state["terminated"]["exitCode"].as_i64().unwrap_or(0) == 0 {
            continue;
        }
        if is_sidecar && c["started"] == true {
            if c["ready"] == true {
                ready += 1;
            }
            continue;
        }
        reason = if state["terminated"].is_object() {
            let t = &state["terminated"];
            match t["reason"].as_str().unwrap_or_default() {
                "" if t["signal"].as_i64().unwrap_or(0) != 0 => format!("Init:Signal:{}", t["signal"]),
                "" => format!("Init:ExitCode:{}", t["exitCode"]),
                r => format!("Init:{r}"),
            }
        } else {
            match state["waiting"]["reason"].as_str().unwrap_or_default() {
                "" | "PodInitializing" => format!("Init:{i}/{inits}"),
                r => format!("Init:{r}"),
            }
        };
        initializing = true;
        break;
    }
    let initialized = list(&o["status"], "conditions").any(|c| c["type"] == "Initialized" && c["status"] == "True");
    if !initializing || initialized {
        restarts = restartable;
        last = restartable_last;
        let mut running = false;
        for c in statuses(o, "containerStatuses").iter().rev() {
            restarts += c["restartCount"].as_i64().unwrap_or(0);
            later(&mut last, &c["lastState"]["terminated"]["finishedAt"]);
            let state = &c["state"];
            let waiting = state["waiting"]["reason"].as_str().unwrap_or_default();
            let t = &state["terminated"];
            if !waiting.is_empty() {
                reason = waiting.to_owned();
            } else if t.is_object() {
                reason = match t["reason"].as_str().unwrap_or_default() {
                    "" if t["signal"].as_i64().unwrap_or(0) != 0 => format!("Signal:{}", t["signal"]),
                    "" => format!("ExitCode:{}", t["exitCode"].as_i64().unwrap_or(0)),
                    r => r.to_owned(),
                };
            } else if c["ready"] == true && state["running"].is_object() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            let is_ready = list(&o["status"], "conditions").any(|c| c["type"] == "Ready" && c["status"] == "True");
            reason = if is_ready { "Running" } else { "NotReady" }.into();
        }
    }
    if crate::meta::deleting(o) && o["status"]["reason"] == "NodeLost" {
        reason = "Unknown".into();
    } else if crate::meta::deleting(o) && !matches!(o["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        reason = "Terminating".into();
    }
    let restarts = match last {
        Some(t) if restarts != 0 => format!("{restarts} ({} ago)", age(&t, now)),
        _ => restarts.to_string(),
    };
    let or_none = |v: &Value| Value::from(v.as_str().filter(|s| !s.is_empty()).unwrap_or("<none>"));
    let ip = match o["status"]["podIPs"].get(0) {
        Some(p) => or_none(&p["ip"]),
        None => or_none(&o["status"]["podIP"]),
    };
    let gates: Vec<&Value> = list(spec, "readinessGates").collect();
    let passed = gates
        .iter()
        .filter(|g| list(&o["status"], "conditions").any(|c| c["type"] == g["conditionType"] && c["status"] == "True"))
        .count();
    let gates = if gates.is_empty() { "<none>".to_owned() } else { format!("{passed}/{}", gates.len()) };
    vec![
        name(o),
        format!("{ready}/{total}").into(),
        reason.into(),
        restarts.into(),
        created(o, now),
        ip,
        or_none(&spec["nodeName"]),
        or_none(&o["status"]["nominatedNodeName"]),
        gates.into(),
    ]
}
