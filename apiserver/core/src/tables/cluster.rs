//! Nodes, namespaces, configuration, volumes, events.

use jiff::Timestamp;
use serde_json::Value;

use super::format::age;
use super::{AGE, Column, NAME, Table, b, column, count, created, i, list, name, number, or_unset, s, text, w};

pub(super) fn table(group: &str, plural: &str) -> Option<Table> {
    const NODE: &[Column] = &[
        NAME,
        s("Status"),
        s("Roles"),
        AGE,
        s("Version"),
        w("Internal-IP"),
        w("External-IP"),
        w("OS-Image"),
        w("Kernel-Version"),
        w("Container-Runtime"),
    ];
    const PHASE: &[Column] = &[NAME, s("Status"), AGE];
    const DATA: &[Column] = &[NAME, s("Data"), AGE];
    const SECRET: &[Column] = &[NAME, s("Type"), s("Data"), AGE];
    const ACCOUNT: &[Column] = &[NAME, AGE];
    const VOLUME: &[Column] = &[
        NAME,
        s("Capacity"),
        s("Access Modes"),
        s("Reclaim Policy"),
        s("Status"),
        s("Claim"),
        s("StorageClass"),
        s("VolumeAttributesClass"),
        s("Reason"),
        AGE,
        w("VolumeMode"),
    ];
    const CLAIM: &[Column] = &[
        NAME,
        s("Status"),
        s("Volume"),
        s("Capacity"),
        s("Access Modes"),
        s("StorageClass"),
        s("VolumeAttributesClass"),
        AGE,
        w("VolumeMode"),
    ];
    const CLASS: &[Column] =
        &[NAME, s("Provisioner"), s("ReclaimPolicy"), s("VolumeBindingMode"), s("AllowVolumeExpansion"), AGE];
    const ATTACHMENT: &[Column] =
        &[NAME, column("Attacher", "string", "name", 0), s("PV"), s("Node"), b("Attached"), AGE];
    const DRIVER: &[Column] = &[
        NAME,
        b("AttachRequired"),
        b("PodInfoOnMount"),
        b("StorageCapacity"),
        s("TokenRequests"),
        b("RequiresRepublish"),
        s("Modes"),
        AGE,
    ];
    const CSI_NODE: &[Column] = &[NAME, i("Drivers"), AGE];
    const ATTRIBUTES: &[Column] = &[NAME, s("DriverName"), AGE];
    const EVENT: &[Column] = &[
        s("Last Seen"),
        s("Type"),
        s("Reason"),
        s("Object"),
        w("Subobject"),
        w("Source"),
        s("Message"),
        w("First Seen"),
        w("Count"),
        column("Name", "string", "name", 1),
    ];
    const COMPONENT: &[Column] = &[NAME, s("Status"), s("Message"), s("Error")];
    let (columns, cells): super::Row = match (group, plural) {
        ("", "nodes") => (NODE, node),
        ("", "namespaces") => (PHASE, |o, now| vec![name(o), text(&o["status"]["phase"]), created(o, now)]),
        ("", "configmaps") => {
            (DATA, |o, now| vec![name(o), (size(&o["data"]) + size(&o["binaryData"])).into(), created(o, now)])
        }
        ("", "secrets") => (SECRET, |o, now| vec![name(o), text(&o["type"]), size(&o["data"]).into(), created(o, now)]),
        ("", "serviceaccounts") => (ACCOUNT, |o, now| vec![name(o), created(o, now)]),
        ("", "persistentvolumes") => (VOLUME, volume),
        ("", "persistentvolumeclaims") => (CLAIM, claim),
        ("", "componentstatuses") => (COMPONENT, |o, _| {
            let c = list(o, "conditions").find(|c| c["type"] == "Healthy").cloned().unwrap_or_default();
            let status = if c["status"] == "True" { "Healthy" } else { "Unhealthy" };
            vec![name(o), status.into(), text(&c["message"]), text(&c["error"])]
        }),
        ("storage.k8s.io", "storageclasses") => (CLASS, |o, now| {
            let a = &o["metadata"]["annotations"];
            let default =
                ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
                    .iter()
                    .any(|k| a[*k] == "true");
            let shown = crate::meta::name(o).to_owned() + if default { " (default)" } else { "" };
            vec![
                shown.into(),
                text(&o["provisioner"]),
                text(&o["reclaimPolicy"]),
                text(&o["volumeBindingMode"]),
                (o["allowVolumeExpansion"] == true).into(),
                created(o, now),
            ]
        }),
        ("storage.k8s.io", "volumeattachments") => (ATTACHMENT, |o, now| {
            let s = &o["spec"];
            vec![
                name(o),
                text(&s["attacher"]),
                text(&s["source"]["persistentVolumeName"]),
                text(&s["nodeName"]),
                (o["status"]["attached"] == true).into(),
                created(o, now),
            ]
        }),
        ("storage.k8s.io", "csidrivers") => (DRIVER, |o, now| {
            let s = &o["spec"];
            let flag = |k: &str| Value::from(s[k] == true);
            let tokens: Vec<&str> =
                list(s, "tokenRequests").map(|t| t["audience"].as_str().unwrap_or_default()).collect();
            let modes: Vec<&str> = list(s, "volumeLifecycleModes").filter_map(Value::as_str).collect();
            let attach = s["attachRequired"] != false;
            vec![
                name(o),
                attach.into(),
                flag("podInfoOnMount"),
                flag("storageCapacity"),
                if tokens.is_empty() { "<unset>".into() } else { tokens.join(",").into() },
                flag("requiresRepublish"),
                if modes.is_empty() { "<none>".into() } else { modes.join(",").into() },
                created(o, now),
            ]
        }),
        ("storage.k8s.io", "csinodes") => {
            (CSI_NODE, |o, now| vec![name(o), count(&o["spec"]["drivers"]), created(o, now)])
        }
        ("storage.k8s.io", "volumeattributesclasses") => {
            (ATTRIBUTES, |o, now| vec![name(o), text(&o["driverName"]), created(o, now)])
        }
        ("", "events") => (EVENT, event),
        ("events.k8s.io", "events") => (EVENT, event),
        _ => return None,
    };
    Some(Table { columns, cells })
}

fn size(v: &Value) -> usize {
    v.as_object().map_or(0, serde_json::Map::len)
}

fn node(o: &Value, now: Timestamp) -> Vec<Value> {
    let ready = list(&o["status"], "conditions").find(|c| c["type"] == "Ready");
    let mut status = match ready.map(|c| c["status"] == "True") {
        Some(true) => "Ready".to_owned(),
        Some(false) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if o["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<String> = vec![];
    for (k, v) in o["metadata"]["labels"].as_object().into_iter().flatten() {
        if let Some(r) = k.strip_prefix("node-role.kubernetes.io/").filter(|r| !r.is_empty()) {
            roles.push(r.to_owned());
        } else if k == "kubernetes.io/role"
            && let Some(r) = v.as_str().filter(|r| !r.is_empty())
        {
            roles.push(r.to_owned());
        }
    }
    roles.sort();
    roles.dedup();
    let address = |kind: &str| {
        let found = list(&o["status"], "addresses").find(|a| a["type"] == kind).and_then(|a| a["address"].as_str());
        Value::from(found.unwrap_or("<none>"))
    };
    let info = &o["status"]["nodeInfo"];
    let known = |k: &str| Value::from(info[k].as_str().filter(|s| !s.is_empty()).unwrap_or("<unknown>"));
    let kernel = match (info["kernelVersion"].as_str().unwrap_or_default(), info["architecture"].as_str()) {
        ("", _) => "<unknown>".to_owned(),
        (k, Some(a)) if !a.is_empty() => format!("{k} ({a})"),
        (k, _) => k.to_owned(),
    };
    vec![
        name(o),
        status.into(),
        if roles.is_empty() { "<none>".into() } else { roles.join(",").into() },
        created(o, now),
        text(&info["kubeletVersion"]),
        address("InternalIP"),
        address("ExternalIP"),
        known("osImage"),
        kernel.into(),
        known("containerRuntimeVersion"),
    ]
}

/// `RWO,ROX`: access modes in short, in a fixed order.
fn modes(v: &Value) -> String {
    let has = |m: &str| v.as_array().is_some_and(|a| a.iter().any(|x| x == m));
    let table =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    table.iter().filter(|(m, _)| has(m)).map(|(_, s)| *s).collect::<Vec<_>>().join(",")
}

fn class(o: &Value) -> Value {
    let old = o["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].as_str();
    old.or(o["spec"]["storageClassName"].as_str()).unwrap_or_default().into()
}

fn terminating(o: &Value) -> Value {
    if crate::meta::deleting(o) { "Terminating".into() } else { text(&o["status"]["phase"]) }
}

fn volume(o: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &o["spec"];
    let c = &spec["claimRef"];
    let claim = if c.is_object() {
        format!("{}/{}", c["namespace"].as_str().unwrap_or_default(), c["name"].as_str().unwrap_or_default())
    } else {
        String::new()
    };
    vec![
        name(o),
        text(&spec["capacity"]["storage"]),
        modes(&spec["accessModes"]).into(),
        text(&spec["persistentVolumeReclaimPolicy"]),
        terminating(o),
        claim.into(),
        class(o),
        or_unset(&spec["volumeAttributesClassName"]),
        text(&o["status"]["reason"]),
        created(o, now),
        or_unset(&spec["volumeMode"]),
    ]
}

fn claim(o: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &o["spec"];
    let bound = spec["volumeName"].as_str().is_some_and(|v| !v.is_empty());
    let (capacity, access) = if bound {
        (o["status"]["capacity"]["storage"].as_str().unwrap_or("0").into(), modes(&o["status"]["accessModes"]))
    } else {
        ("".into(), String::new())
    };
    vec![
        name(o),
        terminating(o),
        text(&spec["volumeName"]),
        capacity,
        access.into(),
        class(o),
        or_unset(&spec["volumeAttributesClassName"]),
        created(o, now),
        or_unset(&spec["volumeMode"]),
    ]
}

fn event(o: &Value, now: Timestamp) -> Vec<Value> {
    let pick = |a: &str, b: &str| o.get(a).filter(|v| !v.is_null()).or(o.get(b)).cloned().unwrap_or_default();
    let object = pick("involvedObject", "regarding");
    let source = pick("source", "deprecatedSource");
    let when = |v: &Value| v.as_str().map_or("<unknown>".to_owned(), |t| age(t, now));
    let event_time = &o["eventTime"];
    let mut first = when(&pick("firstTimestamp", "deprecatedFirstTimestamp"));
    if first == "<unknown>" {
        first = when(event_time);
    }
    let series = &o["series"];
    let mut last = if series.is_object() {
        when(&series["lastObservedTime"])
    } else {
        when(&pick("lastTimestamp", "deprecatedLastTimestamp"))
    };
    if last == "<unknown>" {
        last.clone_from(&first);
    }
    let n = if series.is_object() { number(&series["count"]) } else { number(&pick("count", "deprecatedCount")) };
    let n = if n == 0 { 1.into() } else { n };
    let mut target = object["kind"].as_str().unwrap_or_default().to_lowercase();
    if let Some(name) = object["name"].as_str().filter(|n| !n.is_empty()) {
        target = format!("{target}/{name}");
    }
    let mut component = source["component"].as_str().unwrap_or_default().to_owned();
    if component.is_empty() {
        component = pick("reportingComponent", "reportingController").as_str().unwrap_or_default().to_owned();
    }
    let host =
        source["host"].as_str().filter(|h| !h.is_empty()).or(o["reportingInstance"].as_str()).unwrap_or_default();
    let from = if host.is_empty() { component } else { format!("{component}, {host}") };
    vec![
        last.into(),
        text(&o["type"]),
        text(&o["reason"]),
        target.into(),
        text(&object["fieldPath"]),
        from.into(),
        pick("message", "note").as_str().unwrap_or_default().trim().into(),
        first.into(),
        n,
        name(o),
    ]
}
