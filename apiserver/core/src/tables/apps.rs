//! Workloads: apps, batch, autoscaling.

use jiff::Timestamp;
use serde_json::Value;

use super::format::{age, containers, duration, labels, selector};
use super::{AGE, Column, NAME, Table, b, column, count, created, i, list, name, number, s, text, w};

pub(super) fn table(group: &str, plural: &str) -> Option<Table> {
    const DEPLOYMENT: &[Column] =
        &[NAME, s("Ready"), s("Up-to-date"), s("Available"), AGE, w("Containers"), w("Images"), w("Selector")];
    const REPLICAS: &[Column] =
        &[NAME, i("Desired"), i("Current"), i("Ready"), AGE, w("Containers"), w("Images"), w("Selector")];
    const STATEFUL: &[Column] = &[NAME, s("Ready"), AGE, w("Containers"), w("Images")];
    const DAEMON: &[Column] = &[
        NAME,
        i("Desired"),
        i("Current"),
        i("Ready"),
        i("Up-to-date"),
        i("Available"),
        s("Node Selector"),
        AGE,
        w("Containers"),
        w("Images"),
        w("Selector"),
    ];
    const JOB: &[Column] =
        &[NAME, s("Status"), s("Completions"), s("Duration"), AGE, w("Containers"), w("Images"), w("Selector")];
    const CRON: &[Column] = &[
        NAME,
        s("Schedule"),
        s("Timezone"),
        b("Suspend"),
        i("Active"),
        s("Last Schedule"),
        AGE,
        w("Containers"),
        w("Images"),
        w("Selector"),
    ];
    const REVISION: &[Column] = &[NAME, s("Controller"), s("Revision"), AGE];
    const SCALER: &[Column] = &[NAME, s("Reference"), s("Targets"), s("MinPods"), s("MaxPods"), s("Replicas"), AGE];
    const SCALE: &[Column] = &[column("Name", "string", "", 0), i("Desired"), i("Available"), AGE];
    let (columns, cells): super::Row = match (group, plural) {
        ("apps", "deployments") => (DEPLOYMENT, |o, now| {
            let (names, images) = containers(&o["spec"]["template"]["spec"]);
            let st = &o["status"];
            vec![
                name(o),
                format!("{}/{}", number(&st["readyReplicas"]), number(&o["spec"]["replicas"])).into(),
                number(&st["updatedReplicas"]),
                number(&st["availableReplicas"]),
                created(o, now),
                names.into(),
                images.into(),
                selector(&o["spec"]["selector"]).into(),
            ]
        }),
        ("apps", "replicasets") => (REPLICAS, |o, now| replicas(o, now, selector(&o["spec"]["selector"]))),
        ("", "replicationcontrollers") => (REPLICAS, |o, now| replicas(o, now, labels(&o["spec"]["selector"]))),
        ("apps", "statefulsets") => (STATEFUL, |o, now| {
            let (names, images) = containers(&o["spec"]["template"]["spec"]);
            let ready = format!("{}/{}", number(&o["status"]["readyReplicas"]), number(&o["spec"]["replicas"]));
            vec![name(o), ready.into(), created(o, now), names.into(), images.into()]
        }),
        ("apps", "daemonsets") => (DAEMON, |o, now| {
            let (names, images) = containers(&o["spec"]["template"]["spec"]);
            let st = &o["status"];
            vec![
                name(o),
                number(&st["desiredNumberScheduled"]),
                number(&st["currentNumberScheduled"]),
                number(&st["numberReady"]),
                number(&st["updatedNumberScheduled"]),
                number(&st["numberAvailable"]),
                labels(&o["spec"]["template"]["spec"]["nodeSelector"]).into(),
                created(o, now),
                names.into(),
                images.into(),
                selector(&o["spec"]["selector"]).into(),
            ]
        }),
        ("apps", "controllerrevisions") => (REVISION, |o, now| {
            let owner = list(&o["metadata"], "ownerReferences").find(|r| r["controller"] == true);
            let shown = owner.map_or("<none>".to_owned(), |r| {
                let (kind, version) =
                    (r["kind"].as_str().unwrap_or_default(), r["apiVersion"].as_str().unwrap_or_default());
                let g = version.split_once('/').map_or("", |(g, _)| g);
                let full = if g.is_empty() { kind.to_lowercase() } else { format!("{}.{g}", kind.to_lowercase()) };
                format!("{full}/{}", r["name"].as_str().unwrap_or_default())
            });
            vec![name(o), shown.into(), number(&o["revision"]), created(o, now)]
        }),
        ("batch", "jobs") => (JOB, job),
        ("batch", "cronjobs") => (CRON, |o, now| {
            let spec = &o["spec"];
            let job = &spec["jobTemplate"]["spec"];
            let (names, images) = containers(&job["template"]["spec"]);
            let last = o["status"]["lastScheduleTime"].as_str().map_or("<none>".to_owned(), |t| age(t, now));
            let suspend = if spec["suspend"] == true { "True" } else { "False" };
            vec![
                name(o),
                text(&spec["schedule"]),
                spec["timeZone"].as_str().unwrap_or("<none>").into(),
                suspend.into(),
                count(&o["status"]["active"]),
                last.into(),
                created(o, now),
                names.into(),
                images.into(),
                selector(&job["selector"]).into(),
            ]
        }),
        ("autoscaling", "horizontalpodautoscalers") => (SCALER, autoscaler),
        ("autoscaling", "scale") => (SCALE, |o, now| {
            vec![name(o), number(&o["spec"]["replicas"]), number(&o["status"]["replicas"]), created(o, now)]
        }),
        _ => return None,
    };
    Some(Table { columns, cells })
}

fn replicas(o: &Value, now: Timestamp, selector: String) -> Vec<Value> {
    let (names, images) = containers(&o["spec"]["template"]["spec"]);
    vec![
        name(o),
        number(&o["spec"]["replicas"]),
        number(&o["status"]["replicas"]),
        number(&o["status"]["readyReplicas"]),
        created(o, now),
        names.into(),
        images.into(),
        selector.into(),
    ]
}

fn job(o: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(&o["spec"]["template"]["spec"]);
    let st = &o["status"];
    let done = number(&st["succeeded"]);
    let completions = match (o["spec"]["completions"].as_i64(), o["spec"]["parallelism"].as_i64()) {
        (Some(n), _) => format!("{done}/{n}"),
        (None, Some(p)) if p > 1 => format!("{done}/1 of {p}"),
        _ => format!("{done}/1"),
    };
    let stamp = |v: &Value| v.as_str().and_then(|t| t.parse::<Timestamp>().ok());
    let took = match (stamp(&st["startTime"]), stamp(&st["completionTime"])) {
        (Some(a), Some(b)) => duration(b.as_second() - a.as_second()),
        (Some(a), None) => duration(now.as_second() - a.as_second()),
        _ => String::new(),
    };
    let has = |t: &str| list(st, "conditions").any(|c| c["type"] == t && c["status"] == "True");
    let status = if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if crate::meta::deleting(o) {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    vec![
        name(o),
        status.into(),
        completions.into(),
        took.into(),
        created(o, now),
        names.into(),
        images.into(),
        selector(&o["spec"]["selector"]).into(),
    ]
}

/// Metrics shown before the rest is counted.
const METRICS_MAX: usize = 2;

fn autoscaler(o: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &o["spec"];
    let r = &spec["scaleTargetRef"];
    let reference = format!("{}/{}", r["kind"].as_str().unwrap_or_default(), r["name"].as_str().unwrap_or_default());
    let current: Vec<&Value> = list(&o["status"], "currentMetrics").collect();
    let mut shown: Vec<String> = vec![];
    if let Some(t) = spec["targetCPUUtilizationPercentage"].as_i64() {
        let now = o["status"]["currentCPUUtilizationPercentage"].as_i64();
        shown.push(format!("cpu: {}/{t}%", now.map_or("<unknown>".to_owned(), |n| format!("{n}%"))));
    }
    for (i, m) in list(spec, "metrics").enumerate() {
        let (part, label) = match m["type"].as_str().unwrap_or_default() {
            "Resource" => ("resource", format!("{}: ", m["resource"]["name"].as_str().unwrap_or_default())),
            "ContainerResource" => {
                ("containerResource", format!("{}: ", m["containerResource"]["name"].as_str().unwrap_or_default()))
            }
            "Pods" => ("pods", String::new()),
            "Object" => ("object", String::new()),
            "External" => ("external", String::new()),
            _ => continue,
        };
        let target = &m[part]["target"];
        let cur = current.get(i).map_or(&Value::Null, |c| &c[part]["current"]);
        let unknown = || "<unknown>".to_owned();
        let text = if let Some(v) = target["averageValue"].as_str() {
            let suffix = if matches!(part, "object" | "external") { " (avg)" } else { "" };
            format!("{}/{v}{suffix}", cur["averageValue"].as_str().map_or_else(unknown, str::to_owned))
        } else if let Some(v) = target["value"].as_str() {
            format!("{}/{v}", cur["value"].as_str().map_or_else(unknown, str::to_owned))
        } else {
            let t = target["averageUtilization"].as_i64().map_or("<auto>".to_owned(), |n| format!("{n}%"));
            format!("{}/{t}", cur["averageUtilization"].as_i64().map_or_else(unknown, |n| format!("{n}%")))
        };
        shown.push(format!("{label}{text}"));
    }
    let targets = match shown.len() {
        0 => "<none>".to_owned(),
        n if n > METRICS_MAX => format!("{} + {} more...", shown[..METRICS_MAX].join(", "), n - METRICS_MAX),
        _ => shown.join(", "),
    };
    let min = spec["minReplicas"].as_i64().map_or("<unset>".to_owned(), |n| n.to_string());
    vec![
        name(o),
        reference.into(),
        targets.into(),
        min.into(),
        number(&spec["maxReplicas"]),
        number(&o["status"]["currentReplicas"]),
        created(o, now),
    ]
}
