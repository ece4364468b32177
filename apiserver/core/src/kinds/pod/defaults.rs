//! Defaults of pods and pod templates.

use serde_json::{Map, Value, json};

use super::image::is_latest;
use crate::kinds::defaults::{each, object, set, set_text};

/// Defaults of a Pod object.
pub(super) fn default_pod(obj: &mut Value) {
    mirror_addresses(obj);
    let Some(spec) = obj.get_mut("spec") else { return };
    default_spec(spec);
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|g| g < 0) {
        spec["terminationGracePeriodSeconds"] = 1.into();
    }
    // What is limited and not requested is requested to the limit. Only pods, not templates.
    for list in ["initContainers", "containers"] {
        for c in each(spec, list) {
            requests_from_limits(c);
        }
    }
    if let Value::Object(s) = spec {
        set(s, "enableServiceLinks", true);
        if s.get("hostNetwork") == Some(&Value::Bool(true)) {
            for list in ["initContainers", "containers"] {
                host_ports(s.get_mut(list));
            }
        }
    }
}

/// The first of the lists of addresses and the single fields are the same value.
fn mirror_addresses(obj: &mut Value) {
    let Some(s) = obj.get_mut("status").and_then(Value::as_object_mut) else { return };
    for (one, list) in [("podIP", "podIPs"), ("hostIP", "hostIPs")] {
        let single = s.get(one).and_then(Value::as_str).unwrap_or_default().to_owned();
        let first = s.get(list).and_then(|l| l.get(0)).and_then(|a| a["ip"].as_str()).unwrap_or_default().to_owned();
        if single.is_empty() && !first.is_empty() {
            s.insert(one.into(), first.into());
        } else if !single.is_empty() && first != single && one == "podIP" {
            s.insert(list.into(), json!([{"ip": single}]));
        }
    }
}

/// Amounts finer than a thousandth are rounded up, as upstream does where resources are defaulted.
fn round_up(r: &mut Map<String, Value>) {
    for kind in ["limits", "requests"] {
        for v in r.get_mut(kind).and_then(Value::as_object_mut).into_iter().flatten().map(|(_, v)| v) {
            let Some(q) = v.as_str().and_then(|q| crate::quantity::Quantity::parse(q).ok()) else { continue };
            let rounded = crate::quantity::Quantity::from_millis(q.millis(), q.format());
            if rounded != q && q.millis() < i64::MAX / 2 {
                *v = rounded.to_string().into();
            }
        }
    }
}

/// Defaults of a pod template. Ports of the host's network get no number here: only pods had that from the beginning.
pub(in crate::kinds) fn default_template(t: &mut Value) {
    if let Some(spec) = t.get_mut("spec") {
        default_spec(spec);
    }
}

fn host_ports(containers: Option<&mut Value>) {
    for c in containers.and_then(Value::as_array_mut).into_iter().flatten() {
        for p in each(c, "ports") {
            if p.get("hostPort").and_then(Value::as_i64).unwrap_or(0) == 0
                && let Some(n) = p.get("containerPort").cloned()
            {
                p.insert("hostPort".into(), n);
            }
        }
    }
}

fn requests_from_limits(c: &mut Map<String, Value>) {
    let Some(r) = c.get_mut("resources").and_then(Value::as_object_mut) else { return };
    let Some(limits) = r.get("limits").and_then(Value::as_object).cloned() else { return };
    let requests = r.entry("requests").or_insert_with(|| json!({}));
    if let Some(q) = requests.as_object_mut() {
        for (k, v) in limits {
            q.entry(k).or_insert(v);
        }
    }
}

/// Pod-level limits become pod-level requests where neither the pod nor its containers ask for something. The server's
/// doing, not the client's: so no default, but part of preparing a new pod.
pub(super) fn pod_level_requests(spec: &mut Value) {
    let limits = spec["resources"]["limits"].as_object().cloned().unwrap_or_default();
    let whole = spec["resources"]["requests"].as_object().cloned().unwrap_or_default();
    if limits.is_empty() && whole.is_empty() {
        return;
    }
    let mut requests = whole;
    for name in ["cpu", "memory"] {
        if requests.contains_key(name) {
            continue;
        }
        let containers = ["containers", "initContainers"];
        let asked: Vec<String> = containers
            .iter()
            .flat_map(|l| spec[*l].as_array().into_iter().flatten())
            .filter_map(|c| c["resources"]["requests"].get(name).and_then(Value::as_str).map(str::to_owned))
            .collect();
        if asked.is_empty() {
            if let Some(l) = limits.get(name) {
                requests.insert(name.into(), l.clone());
            }
            continue;
        }
        let mut sum: Option<crate::quantity::Quantity> = None;
        for c in spec["containers"].as_array().into_iter().flatten() {
            let q = c["resources"]["requests"].get(name).and_then(Value::as_str).and_then(|q| q.parse().ok());
            sum = match (sum, q) {
                (Some(a), Some(b)) => Some(a.add(&b)),
                (a, b) => a.or(b),
            };
        }
        if let Some(s) = sum {
            requests.insert(name.into(), s.to_string().into());
        }
    }
    if !requests.is_empty() {
        spec["resources"]["requests"] = Value::Object(requests);
    }
}

fn default_spec(spec: &mut Value) {
    let Value::Object(s) = spec else { return };
    set_text(s, "dnsPolicy", "ClusterFirst");
    set_text(s, "restartPolicy", "Always");
    set_text(s, "schedulerName", "default-scheduler");
    set(s, "terminationGracePeriodSeconds", 30);
    set(s, "securityContext", json!({}));
    // The old name of the account field and the new one are the same value.
    let account = ["serviceAccountName", "serviceAccount"]
        .iter()
        .find_map(|k| s.get(*k).and_then(Value::as_str).filter(|v| !v.is_empty()).map(str::to_owned));
    if let Some(a) = account {
        s.insert("serviceAccountName".into(), a.as_str().into());
        s.insert("serviceAccount".into(), a.into());
    }
    for v in each(spec, "volumes") {
        default_volume(v);
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for c in each(spec, list) {
            default_container(c);
        }
    }
    for t in each(spec, "topologySpreadConstraints") {
        set(t, "nodeAffinityPolicy", Value::Null);
        set(t, "nodeTaintsPolicy", Value::Null);
        t.retain(|_, v| !v.is_null());
    }
}

fn default_container(c: &mut Map<String, Value>) {
    if let Some(r) = c.get_mut("resources").and_then(Value::as_object_mut) {
        round_up(r);
    }
    for p in c.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(p) = p.as_object_mut() {
            set_text(p, "protocol", "TCP");
        }
    }
    for e in c.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(f) = e.get_mut("valueFrom").and_then(|v| object(v, "fieldRef")) {
            set_text(f, "apiVersion", "v1");
        }
        if let Some(f) = e.get_mut("valueFrom").and_then(|v| object(v, "resourceFieldRef")) {
            set_text(f, "divisor", "0");
        }
        if let Some(f) = e.get_mut("valueFrom").and_then(|v| object(v, "fileKeyRef")) {
            set(f, "optional", false);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = c.get_mut(probe).and_then(Value::as_object_mut) {
            default_probe(p);
        }
    }
    if let Some(l) = c.get_mut("lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(h) = l.get_mut(hook).and_then(|h| object(h, "httpGet")) {
                default_http(h);
            }
        }
    }
    set_text(c, "terminationMessagePath", "/dev/termination-log");
    set_text(c, "terminationMessagePolicy", "File");
    let image = c.get("image").and_then(Value::as_str).unwrap_or_default().to_owned();
    set_text(c, "imagePullPolicy", if is_latest(&image) { "Always" } else { "IfNotPresent" });
    if let Some(s) = c.get_mut("securityContext").and_then(Value::as_object_mut)
        && s.get("privileged") == Some(&Value::Null)
    {
        s.remove("privileged");
    }
}

fn default_http(h: &mut Map<String, Value>) {
    set_text(h, "path", "/");
    set_text(h, "scheme", "HTTP");
}

fn default_probe(p: &mut Map<String, Value>) {
    for (k, n) in [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)] {
        if p.get(k).and_then(Value::as_i64).unwrap_or(0) == 0 {
            p.insert(k.into(), n.into());
        }
    }
    if let Some(h) = p.get_mut("httpGet").and_then(Value::as_object_mut) {
        default_http(h);
    }
    if let Some(g) = p.get_mut("grpc").and_then(Value::as_object_mut) {
        set(g, "service", "");
    }
}

fn field_refs(v: &mut Value) {
    for i in each(v, "items") {
        if let Some(f) = i.get_mut("fieldRef").and_then(Value::as_object_mut) {
            set_text(f, "apiVersion", "v1");
        }
        if let Some(f) = i.get_mut("resourceFieldRef").and_then(Value::as_object_mut) {
            set_text(f, "divisor", "0");
        }
    }
}

/// Defaults of the sources that pods and PersistentVolumes have in common.
pub(in crate::kinds) fn default_source(v: &mut Map<String, Value>) {
    let texts = [
        ("hostPath", "type", ""),
        ("iscsi", "iscsiInterface", "default"),
        ("rbd", "pool", "rbd"),
        ("rbd", "user", "admin"),
        ("rbd", "keyring", "/etc/ceph/keyring"),
        ("azureDisk", "cachingMode", "ReadWrite"),
        ("azureDisk", "kind", "Shared"),
        ("azureDisk", "fsType", "ext4"),
        ("scaleIO", "storageMode", "ThinProvisioned"),
        ("scaleIO", "fsType", "xfs"),
    ];
    for (source, key, value) in texts {
        if let Some(s) = v.get_mut(source).and_then(Value::as_object_mut) {
            set(s, key, value);
        }
    }
    if let Some(s) = v.get_mut("azureDisk").and_then(Value::as_object_mut) {
        set(s, "readOnly", false);
    }
}

fn default_volume(v: &mut Map<String, Value>) {
    const MODE: i64 = 0o644;
    let sources = v.iter().filter(|(k, v)| *k != "name" && !v.is_null()).count();
    if sources == 0 {
        v.insert("emptyDir".into(), json!({}));
        return;
    }
    for key in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(s) = v.get_mut(key).and_then(Value::as_object_mut) {
            set(s, "defaultMode", MODE);
        }
    }
    if let Some(d) = v.get_mut("downwardAPI") {
        field_refs(d);
    }
    if let Some(p) = v.get_mut("projected") {
        for s in each(p, "sources") {
            if let Some(d) = s.get_mut("downwardAPI") {
                field_refs(d);
            }
            if let Some(t) = s.get_mut("serviceAccountToken").and_then(Value::as_object_mut) {
                set(t, "expirationSeconds", 3600);
            }
        }
    }
    default_source(v);
    if let Some(i) = v.get_mut("image").and_then(Value::as_object_mut) {
        let reference = i.get("reference").and_then(Value::as_str).unwrap_or_default().to_owned();
        set_text(i, "pullPolicy", if is_latest(&reference) { "Always" } else { "IfNotPresent" });
    }
    if let Some(t) = v.get_mut("ephemeral").and_then(|e| e.get_mut("volumeClaimTemplate"))
        && let Some(spec) = object(t, "spec")
    {
        crate::kinds::defaults::claim_spec(spec);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaulting_twice_changes_nothing() {
        let mut p = json!({"spec": {"containers": [{"name": "a", "image": "b", "resources": {"limits": {"cpu": "1"}},
            "livenessProbe": {"httpGet": {"port": 80}}}], "volumes": [{"name": "v"}]}});
        default_pod(&mut p);
        let once = p.clone();
        default_pod(&mut p);
        assert_eq!(p, once);
        assert_eq!(p["spec"]["containers"][0]["resources"]["requests"]["cpu"], "1");
    }

    /// Whoever writes the pod, and when: an update with a negative grace is one with the grace that it has.
    #[test]
    fn a_negative_grace_is_a_second() {
        for (given, read) in [(-1, 1), (-30, 1), (0, 0), (5, 5)] {
            let mut p = json!({"spec": {"containers": [], "terminationGracePeriodSeconds": given}});
            default_pod(&mut p);
            assert_eq!(p["spec"]["terminationGracePeriodSeconds"], read);
        }
    }
}
