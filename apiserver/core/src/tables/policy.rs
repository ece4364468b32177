//! RBAC, policies, admission, scheduling, certificates, definitions, devices.

use jiff::Timestamp;
use serde_json::Value;

use super::format::labels;
use super::{AGE, Column, NAME, Table, age, b, column, count, created, i, list, name, number, s, text, w};

pub(super) fn table(group: &str, plural: &str) -> Option<Table> {
    const BINDING: &[Column] = &[NAME, s("Role"), AGE, w("Users"), w("Groups"), w("ServiceAccounts")];
    const BUDGET: &[Column] = &[NAME, s("Min Available"), s("Max Unavailable"), i("Allowed Disruptions"), AGE];
    const QUOTA: &[Column] = &[NAME, s("Request"), s("Limit"), AGE];
    const PRIORITY: &[Column] = &[NAME, i("Value"), b("Global-Default"), AGE, s("PreemptionPolicy")];
    const LEASE: &[Column] = &[NAME, s("Holder"), AGE];
    const HOOKS: &[Column] = &[NAME, i("Webhooks"), AGE];
    const VALIDATING: &[Column] = &[NAME, i("Validations"), s("ParamKind"), AGE];
    const MUTATING: &[Column] = &[NAME, i("Mutations"), s("ParamKind"), AGE];
    const POLICY_BINDING: &[Column] = &[NAME, s("PolicyName"), s("ParamRef"), AGE];
    const RUNTIME: &[Column] = &[NAME, s("Handler"), AGE];
    const REQUEST: &[Column] = &[NAME, AGE, s("SignerName"), s("Requestor"), s("RequestedDuration"), s("Condition")];
    const FLOW: &[Column] =
        &[NAME, s("PriorityLevel"), s("MatchingPrecedence"), s("DistinguisherMethod"), AGE, s("MissingPL")];
    const LEVEL: &[Column] =
        &[NAME, s("Type"), s("NominalConcurrencyShares"), s("Queues"), s("HandSize"), s("QueueLengthLimit"), AGE];
    const DEFINITION: &[Column] = &[
        NAME,
        s("Scope"),
        s("Versions"),
        column("Created At", "date", "", 0),
        w("Group"),
        w("Kind"),
        w("ShortNames"),
        column("Established", "boolean", "", 1),
    ];
    const API_SERVICE: &[Column] = &[NAME, s("Service"), s("Available"), AGE];
    const AGED: &[Column] = &[NAME, AGE];
    const CLAIM: &[Column] = &[NAME, s("State"), AGE];
    const SLICE: &[Column] = &[NAME, s("Node"), s("Driver"), s("Pool"), AGE];
    const BUNDLE: &[Column] = &[NAME, s("SignerName")];
    const POD_CERTIFICATE: &[Column] = &[
        NAME,
        s("PodName"),
        s("ServiceAccountName"),
        s("NodeName"),
        s("SignerName"),
        s("State"),
        s("UnverifiedUserAnnotations"),
    ];
    const TAINT: &[Column] = &[NAME, s("Key"), s("Value"), s("Effect"), s("TimeAdded"), AGE];
    // Upstream's name column has no format here.
    const MIGRATION: &[Column] = &[s("Name"), s("Resource"), s("Status")];
    let (columns, cells): super::Row = match (group, plural) {
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => (BINDING, binding),
        ("policy", "poddisruptionbudgets") => (BUDGET, |o, now| {
            let shown = |k: &str| match &o["spec"][k] {
                Value::Null => Value::from("N/A"),
                Value::String(s) => s.as_str().into(),
                v => v.to_string().into(),
            };
            vec![
                name(o),
                shown("minAvailable"),
                shown("maxUnavailable"),
                number(&o["status"]["disruptionsAllowed"]),
                created(o, now),
            ]
        }),
        ("", "resourcequotas") => (QUOTA, quota),
        ("scheduling.k8s.io", "priorityclasses") => (PRIORITY, |o, now| {
            vec![
                name(o),
                number(&o["value"]),
                (o["globalDefault"] == true).into(),
                created(o, now),
                text(&o["preemptionPolicy"]),
            ]
        }),
        ("coordination.k8s.io", "leases") => {
            (LEASE, |o, now| vec![name(o), text(&o["spec"]["holderIdentity"]), created(o, now)])
        }
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations" | "validatingwebhookconfigurations") => {
            (HOOKS, |o, now| vec![name(o), count(&o["webhooks"]), created(o, now)])
        }
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => {
            (VALIDATING, |o, now| vec![name(o), count(&o["spec"]["validations"]), param_kind(o), created(o, now)])
        }
        ("admissionregistration.k8s.io", "mutatingadmissionpolicies") => {
            (MUTATING, |o, now| vec![name(o), count(&o["spec"]["mutations"]), param_kind(o), created(o, now)])
        }
        ("admissionregistration.k8s.io", _) => (POLICY_BINDING, |o, now| {
            let p = &o["spec"]["paramRef"];
            let shown = if p.is_null() {
                "<unset>".to_owned()
            } else {
                let n = p["name"].as_str().unwrap_or_default();
                match p["namespace"].as_str().filter(|s| !s.is_empty()) {
                    Some(ns) => format!("{ns}/{n}"),
                    None if n.is_empty() => go_selector(&p["selector"]),
                    None => format!("*/{n}"),
                }
            };
            vec![name(o), text(&o["spec"]["policyName"]), shown.into(), created(o, now)]
        }),
        ("node.k8s.io", "runtimeclasses") => (RUNTIME, |o, now| vec![name(o), text(&o["handler"]), created(o, now)]),
        ("certificates.k8s.io", "certificatesigningrequests") => (REQUEST, signing_request),
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => (FLOW, |o, now| {
            let method = o["spec"]["distinguisherMethod"]["type"].as_str().unwrap_or("<none>");
            let dangling = list(&o["status"], "conditions").find(|c| c["type"] == "Dangling");
            vec![
                name(o),
                text(&o["spec"]["priorityLevelConfiguration"]["name"]),
                number(&o["spec"]["matchingPrecedence"]),
                method.into(),
                created(o, now),
                dangling.and_then(|c| c["status"].as_str()).unwrap_or("?").into(),
            ]
        }),
        ("flowcontrol.apiserver.k8s.io", _) => (LEVEL, |o, now| {
            let l = &o["spec"]["limited"];
            let q = &l["limitResponse"]["queuing"];
            let or_none = |v: &Value| if v.is_null() { Value::from("<none>") } else { v.clone() };
            let shares = if l.is_object() {
                &l["nominalConcurrencyShares"]
            } else {
                &o["spec"]["exempt"]["nominalConcurrencyShares"]
            };
            vec![
                name(o),
                text(&o["spec"]["type"]),
                or_none(shares),
                or_none(&q["queues"]),
                or_none(&q["handSize"]),
                or_none(&q["queueLengthLimit"]),
                created(o, now),
            ]
        }),
        ("apiextensions.k8s.io", "customresourcedefinitions") => (DEFINITION, |o, _| {
            let spec = &o["spec"];
            let versions: Vec<String> = list(spec, "versions")
                .map(|v| {
                    let n = v["name"].as_str().unwrap_or_default();
                    let mark = match (v["storage"] == true, v["served"] == true) {
                        (true, true) => "(storage)",
                        (true, false) => "(storage,unserved)",
                        (false, false) => "(unserved)",
                        _ => "",
                    };
                    format!("{n}{mark}")
                })
                .collect();
            let short: Vec<&str> = list(&spec["names"], "shortNames").filter_map(Value::as_str).collect();
            let up = list(&o["status"], "conditions").any(|c| c["type"] == "Established" && c["status"] == "True");
            vec![
                name(o),
                text(&spec["scope"]),
                versions.join(",").into(),
                text(&o["metadata"]["creationTimestamp"]),
                text(&spec["group"]),
                text(&spec["names"]["kind"]),
                short.join(",").into(),
                up.into(),
            ]
        }),
        ("apiregistration.k8s.io", "apiservices") => (API_SERVICE, |o, now| {
            let svc = &o["spec"]["service"];
            let at = if svc.is_object() {
                format!(
                    "{}/{}",
                    svc["namespace"].as_str().unwrap_or_default(),
                    svc["name"].as_str().unwrap_or_default()
                )
            } else {
                "Local".into()
            };
            let c = list(&o["status"], "conditions").find(|c| c["type"] == "Available");
            let available = match c {
                Some(c) if c["status"] == "True" => "True".to_owned(),
                Some(c) => format!(
                    "{} ({})",
                    c["status"].as_str().unwrap_or_default(),
                    c["reason"].as_str().unwrap_or_default()
                ),
                None => "Unknown".to_owned(),
            };
            vec![name(o), at.into(), available.into(), created(o, now)]
        }),
        ("resource.k8s.io", "resourceclaims") => (CLAIM, |o, now| {
            let st = &o["status"];
            let mut states = vec![];
            if crate::meta::deleting(o) {
                states.push("deleted");
            }
            if !st["allocation"].is_null() {
                states.push("allocated");
            } else if !crate::meta::deleting(o) {
                states.push("pending");
            }
            if list(st, "reservedFor").count() > 0 {
                states.push("reserved");
            }
            vec![name(o), states.join(",").into(), created(o, now)]
        }),
        ("resource.k8s.io", "resourceslices") => (SLICE, |o, now| {
            let s = &o["spec"];
            vec![name(o), text(&s["nodeName"]), text(&s["driver"]), text(&s["pool"]["name"]), created(o, now)]
        }),
        ("resource.k8s.io", "deviceclasses" | "resourceclaimtemplates") => {
            (AGED, |o, now| vec![name(o), created(o, now)])
        }
        ("resource.k8s.io", "devicetaintrules") => (TAINT, |o, now| {
            let t = &o["spec"]["taint"];
            let added = age(t["timeAdded"].as_str().unwrap_or_default(), now);
            vec![name(o), text(&t["key"]), text(&t["value"]), text(&t["effect"]), added.into(), created(o, now)]
        }),
        ("certificates.k8s.io", "clustertrustbundles") => (BUNDLE, |o, _| {
            let signer = o["spec"]["signerName"].as_str().filter(|s| !s.is_empty());
            vec![name(o), signer.unwrap_or("<none>").into()]
        }),
        ("certificates.k8s.io", "podcertificaterequests") => (POD_CERTIFICATE, |o, _| {
            let spec = &o["spec"];
            let ends = list(&o["status"], "conditions").filter_map(|c| c["type"].as_str());
            let state = ends.filter(|t| matches!(*t, "Issued" | "Denied" | "Failed")).last().unwrap_or("Pending");
            let of = |key: &str| text(&spec[key]);
            let annotations = labels(&spec["unverifiedUserAnnotations"]);
            vec![
                name(o),
                of("podName"),
                of("serviceAccountName"),
                of("nodeName"),
                of("signerName"),
                state.into(),
                annotations.into(),
            ]
        }),
        ("storagemigration.k8s.io", "storageversionmigrations") => (MIGRATION, |o, _| {
            let r = &o["spec"]["resource"];
            let (group, plural) = (r["group"].as_str().unwrap_or_default(), r["resource"].as_str().unwrap_or_default());
            let met = list(&o["status"], "conditions").filter(|c| c["status"] == "True");
            let state =
                met.filter_map(|c| c["type"].as_str()).filter(|t| matches!(*t, "Running" | "Failed" | "Succeeded"));
            vec![name(o), crate::status::qualified(plural, group).into(), state.last().unwrap_or("Unknown").into()]
        }),
        _ => return None,
    };
    Some(Table { columns, cells })
}

fn param_kind(o: &Value) -> Value {
    let k = &o["spec"]["paramKind"];
    if k.is_null() {
        return "<unset>".into();
    }
    format!("{}/{}", k["apiVersion"].as_str().unwrap_or_default(), k["kind"].as_str().unwrap_or_default()).into()
}

fn binding(o: &Value, now: Timestamp) -> Vec<Value> {
    let r = &o["roleRef"];
    let role = format!("{}/{}", r["kind"].as_str().unwrap_or_default(), r["name"].as_str().unwrap_or_default());
    let of = |kind: &str| {
        list(o, "subjects")
            .filter(|s| s["kind"] == kind)
            .map(|s| {
                let n = s["name"].as_str().unwrap_or_default();
                if kind == "ServiceAccount" {
                    format!("{}/{n}", s["namespace"].as_str().unwrap_or_default())
                } else {
                    n.to_owned()
                }
            })
            .collect::<Vec<_>>()
            .join(", ")
    };
    vec![name(o), role.into(), created(o, now), of("User").into(), of("Group").into(), of("ServiceAccount").into()]
}

fn quota(o: &Value, now: Timestamp) -> Vec<Value> {
    let (mut requests, mut limits) = (vec![], vec![]);
    for (k, hard) in o["status"]["hard"].as_object().into_iter().flatten() {
        let used = o["status"]["used"][k].as_str().unwrap_or("0");
        let shown = format!("{k}: {used}/{}", hard.as_str().unwrap_or_default());
        if k.starts_with("limits") { limits.push(shown) } else { requests.push(shown) }
    }
    vec![name(o), requests.join(", ").into(), limits.join(", ").into(), created(o, now)]
}

fn signing_request(o: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &o["spec"];
    let seconds = spec["expirationSeconds"].as_i64().map_or("<none>".to_owned(), super::duration);
    let has = |t: &str| list(&o["status"], "conditions").any(|c| c["type"] == t);
    let mut state = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        state.push_str(",Failed");
    }
    if o["status"]["certificate"].as_str().is_some_and(|c| !c.is_empty()) {
        state.push_str(",Issued");
    }
    let signer = spec["signerName"].as_str().unwrap_or("<none>");
    vec![name(o), created(o, now), signer.into(), text(&spec["username"]), seconds.into(), state.into()]
}

/// A label selector as upstream's type prints itself.
fn go_selector(v: &Value) -> String {
    let labels: String = v["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}: {},", v.as_str().unwrap_or_default()))
        .collect();
    let text = |e: &Value, k: &str| e[k].as_str().unwrap_or_default().to_owned();
    let expressions: String = list(v, "matchExpressions")
        .map(|e| {
            let values: Vec<&str> = list(e, "values").filter_map(Value::as_str).collect();
            let (key, operator, values) = (text(e, "key"), text(e, "operator"), values.join(" "));
            format!("LabelSelectorRequirement{{Key:{key},Operator:{operator},Values:[{values}],}},")
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}
