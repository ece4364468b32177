//! Plugins for pods: ServiceAccount, Priority, DefaultTolerationSeconds, RuntimeClass.

use serde_json::{Value, json};
use skiff_core::status::Status;

use super::{Operation, Review};

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Seconds: an hour and a little, so that clients that reload hourly never see an expired token.
const TOKEN_SECONDS: i64 = 3607;
const MIRROR: &str = "kubernetes.io/config.mirror";

fn creating_pod(r: &Review<'_>) -> bool {
    r.operation == Operation::Create && r.is("", "pods") && r.subresource().is_empty()
}

fn is_mirror(obj: &Value) -> bool {
    obj["metadata"]["annotations"].get(MIRROR).is_some()
}

/// Fills in the service account, its pull secrets, and the volume with its token.
pub(super) fn service_account(r: &Review<'_>, obj: &mut Value) -> Result<(), Status> {
    if !creating_pod(r) {
        return Ok(());
    }
    let ns = r.call.target.namespace.clone();
    if is_mirror(obj) {
        if obj["spec"]["serviceAccountName"].as_str().is_some_and(|s| !s.is_empty()) {
            return Err(r.forbidden(obj, "a mirror pod may not reference service accounts"));
        }
        if refers_to(&obj["spec"], &["secretRef", "secretKeyRef", "secret", "imagePullSecrets"]) {
            return Err(r.forbidden(obj, "a mirror pod may not reference secrets"));
        }
        if refers_to(&obj["spec"], &["serviceAccountToken"]) {
            return Err(r.forbidden(obj, "a mirror pod may not use ServiceAccount volume projections"));
        }
        return Ok(());
    }
    if obj["spec"]["serviceAccountName"].as_str().unwrap_or_default().is_empty() {
        obj["spec"]["serviceAccountName"] = "default".into();
    }
    let name = obj["spec"]["serviceAccountName"].as_str().unwrap_or_default().to_owned();
    obj["spec"]["serviceAccount"] = name.as_str().into();
    let Some(account) = r.server.peek("", "serviceaccounts", &ns, &name) else {
        let why = format!("error looking up service account {ns}/{name}: serviceaccount \"{name}\" not found");
        return Err(r.forbidden(obj, why));
    };
    let wanted = obj["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if wanted {
        mount_token(obj);
    }
    let none = obj["spec"].get("imagePullSecrets").is_none_or(|s| s.as_array().is_none_or(Vec::is_empty));
    if none && let Some(s) = account.get("imagePullSecrets").filter(|s| s.as_array().is_some_and(|a| !a.is_empty())) {
        obj["spec"]["imagePullSecrets"] = s.clone();
    }
    Ok(())
}

/// Whether one of these fields is set anywhere below.
fn refers_to(v: &Value, keys: &[&str]) -> bool {
    match v {
        Value::Object(o) => o.iter().any(|(k, v)| {
            let set = !v.is_null() && v.as_array().is_none_or(|a| !a.is_empty());
            (keys.contains(&k.as_str()) && set) || refers_to(v, keys)
        }),
        Value::Array(a) => a.iter().any(|v| refers_to(v, keys)),
        _ => false,
    }
}

fn mount_token(obj: &mut Value) {
    let existing = obj["spec"]["volumes"].as_array().into_iter().flatten();
    let known = existing.filter_map(|v| v["name"].as_str()).find(|n| n.starts_with("kube-api-access-"));
    let (volume, add) = match known {
        Some(n) => (n.to_owned(), false),
        None => (crate::verbs::write::generate_name("kube-api-access-"), true),
    };
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for c in obj["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let has = c["volumeMounts"].as_array().into_iter().flatten().any(|m| m["mountPath"] == TOKEN_PATH);
            if has {
                continue;
            }
            let mount = json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH});
            match c.get_mut("volumeMounts").and_then(Value::as_array_mut) {
                Some(l) => l.push(mount),
                None => c["volumeMounts"] = json!([mount]),
            }
            mounted = true;
        }
    }
    if !mounted || !add {
        return;
    }
    let source = json!({"name": volume, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}});
    match obj["spec"].get_mut("volumes").and_then(Value::as_array_mut) {
        Some(l) => l.push(source),
        None => obj["spec"]["volumes"] = json!([source]),
    }
}

/// Resolves the priority class.
pub(super) fn priority(r: &Review<'_>, obj: &mut Value) -> Result<(), Status> {
    if r.is("scheduling.k8s.io", "priorityclasses") && r.operation != Operation::Delete {
        return one_default_class(r, obj);
    }
    if r.operation == Operation::Update && r.is("", "pods") {
        // The priority was computed once; an update that leaves it out means it.
        if let Some(old) = r.old {
            for key in ["priority", "preemptionPolicy"] {
                if obj["spec"].get(key).is_none_or(Value::is_null)
                    && let Some(v) = old["spec"].get(key)
                {
                    obj["spec"][key] = v.clone();
                }
            }
        }
        return Ok(());
    }
    if !creating_pod(r) {
        return Ok(());
    }
    let name = obj["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let class = if name.is_empty() {
        let all = r.server.collection("scheduling.k8s.io", "priorityclasses")?.values();
        all.into_iter().filter(|c| c["globalDefault"] == true).min_by_key(|c| c["value"].as_i64().unwrap_or(0))
    } else {
        let found = r.server.peek("scheduling.k8s.io", "priorityclasses", "", &name);
        if found.is_none() {
            return Err(r.forbidden(obj, format!("no PriorityClass with name {name} was found")));
        }
        found
    };
    let (value, policy) = match &class {
        Some(c) => {
            if name.is_empty() {
                obj["spec"]["priorityClassName"] = c["metadata"]["name"].clone();
            }
            (
                c["value"].as_i64().unwrap_or(0),
                c["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority").to_owned(),
            )
        }
        None => (0, "PreemptLowerPriority".to_owned()),
    };
    if let Some(given) = obj["spec"]["priority"].as_i64()
        && given != value
    {
        return Err(r.forbidden(
            obj,
            format!("the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"),
        ));
    }
    obj["spec"]["priority"] = value.into();
    match obj["spec"]["preemptionPolicy"].as_str() {
        Some(p) if p != policy => {
            return Err(r.forbidden(
                obj,
                format!("the string value of PreemptionPolicy ({p}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"),
            ));
        }
        _ => obj["spec"]["preemptionPolicy"] = policy.into(),
    }
    Ok(())
}

fn one_default_class(r: &Review<'_>, obj: &Value) -> Result<(), Status> {
    if obj["globalDefault"] != true {
        return Ok(());
    }
    let all = r.server.collection("scheduling.k8s.io", "priorityclasses")?.values();
    let name = skiff_core::meta::name(obj);
    // Who creates it a second time is told this, too, and not that it is there.
    let counts = |c: &Value| r.operation == Operation::Create || skiff_core::meta::name(c) != name;
    match all.iter().find(|c| c["globalDefault"] == true && counts(c)) {
        Some(c) => Err(r.forbidden(
            obj,
            format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                skiff_core::meta::name(c)
            ),
        )),
        None => Ok(()),
    }
}

/// Pods stay five minutes on a node that fails, unless they say otherwise.
pub(super) fn tolerations(r: &Review<'_>, obj: &mut Value) {
    let applies = r.is("", "pods")
        && (r.operation == Operation::Create || r.operation == Operation::Update)
        && r.subresource().is_empty();
    if !applies {
        return;
    }
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = obj["spec"]["tolerations"].as_array().into_iter().flatten().any(|t| {
            let k = t["key"].as_str().unwrap_or_default();
            let effect = t["effect"].as_str().unwrap_or_default();
            (k == key || k.is_empty()) && matches!(effect, "" | "NoExecute")
        });
        if tolerated {
            continue;
        }
        let t = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        match obj["spec"].get_mut("tolerations").and_then(Value::as_array_mut) {
            Some(l) => l.push(t),
            None => obj["spec"]["tolerations"] = json!([t]),
        }
    }
}

/// Overhead and scheduling of the runtime class.
pub(super) fn runtime_class(r: &Review<'_>, obj: &mut Value) -> Result<(), Status> {
    if !creating_pod(r) {
        return Ok(());
    }
    let Some(name) = obj["spec"]["runtimeClassName"].as_str().map(str::to_owned) else {
        return Ok(());
    };
    let Some(class) = r.server.peek("node.k8s.io", "runtimeclasses", "", &name) else {
        return Err(r.forbidden(obj, format!("pod rejected: RuntimeClass \"{name}\" not found")));
    };
    if let Some(o) = class["overhead"].get("podFixed") {
        if obj["spec"].get("overhead").is_some_and(|given| given != o) {
            return Err(r.forbidden(obj, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"));
        }
        obj["spec"]["overhead"] = o.clone();
    }
    if let Some(selector) = class["scheduling"]["nodeSelector"].as_object() {
        for (k, v) in selector {
            match obj["spec"]["nodeSelector"].get(k) {
                Some(given) if given != v => {
                    return Err(r.forbidden(
                        obj,
                        format!(
                            "conflict: runtimeClass.scheduling.nodeSelector[{k}] = {}; pod.spec.nodeSelector[{k}] = {}",
                            v.as_str().unwrap_or_default(),
                            given.as_str().unwrap_or_default()
                        ),
                    ));
                }
                _ => {
                    if obj["spec"].get("nodeSelector").is_none() {
                        obj["spec"]["nodeSelector"] = json!({});
                    }
                    obj["spec"]["nodeSelector"][k] = v.clone();
                }
            }
        }
    }
    for t in class["scheduling"]["tolerations"].as_array().into_iter().flatten() {
        match obj["spec"].get_mut("tolerations").and_then(Value::as_array_mut) {
            Some(l) if !l.contains(t) => l.push(t.clone()),
            Some(_) => {}
            None => obj["spec"]["tolerations"] = json!([t]),
        }
    }
    Ok(())
}
