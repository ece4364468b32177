//! Service.

mod families;
mod validate;

use serde_json::{Map, Value, json};

use super::check::list;
use super::defaults::{set, set_text};
use super::{Strategy, Traits, carry};
use crate::invalid::Errors;
use crate::meta::NameRule;

/// Rules of Services.
pub(super) struct ServiceStrategy;

impl Strategy for ServiceStrategy {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits {
            name: NameRule::Label,
            create_on_update: true,
            returns_deleted: true,
            status: true,
            ..Traits::DEFAULT
        };
        &T
    }

    fn default(&self, obj: &mut Value) {
        default_service(obj);
        super::net::default_modes(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        obj["status"] = json!({"loadBalancer": {}});
        mirror_addresses(obj);
        // A name has no traffic: what was said about it is dropped, as upstream does.
        if kind(obj) == "ExternalName"
            && let Some(spec) = spec_mut(obj)
        {
            spec.remove("internalTrafficPolicy");
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        carry(new, old, "status");
        drop_by_type(new, old);
        mirror_addresses(new);
    }

    fn settle(&self, new: &mut Value, old: Option<&Value>, errors: &mut Errors) {
        families::settle(new, old, errors);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        validate::validate(obj, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        validate::validate_update(new, old, errors);
    }

    fn validate_status(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        if new["spec"]["type"] != "LoadBalancer" && !list(&new["status"]["loadBalancer"], "ingress").is_empty() {
            let at = "status.loadBalancer.ingress";
            errors.forbidden(&at, "may only be used when `spec.type` is 'LoadBalancer'");
            return;
        }
        super::net::load_balancer_status(new, true, errors);
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>, out: &mut Vec<String>) {
        validate::warnings(new, out);
    }

    fn fields(&self) -> &'static [&'static str] {
        &["spec.clusterIP", "spec.type"]
    }
}

fn default_service(obj: &mut Value) {
    let Some(spec) = obj.get_mut("spec").and_then(Value::as_object_mut) else { return };
    set_text(spec, "sessionAffinity", "None");
    if spec.get("sessionAffinity") == Some(&json!("None")) {
        spec.remove("sessionAffinityConfig");
    }
    if spec.get("sessionAffinity") == Some(&json!("ClientIP")) {
        let c = spec.entry("sessionAffinityConfig").or_insert_with(|| json!({}));
        if !c["clientIP"].is_object() {
            c["clientIP"] = json!({});
        }
        if let Some(c) = c["clientIP"].as_object_mut() {
            set(c, "timeoutSeconds", 10800);
        }
    }
    set_text(spec, "type", "ClusterIP");
    for p in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(p) = p.as_object_mut() {
            set_text(p, "protocol", "TCP");
            let unset = p.get("targetPort").is_none_or(|t| t.is_null() || t == 0 || t == "");
            if unset && let Some(n) = p.get("port").cloned() {
                p.insert("targetPort".into(), n);
            }
        }
    }
    let kind = spec.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let external = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP"
            && spec.get("externalIPs").is_some_and(|e| e.as_array().is_some_and(|a| !a.is_empty())));
    if external {
        set_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        set(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
}

fn spec_mut(obj: &mut Value) -> Option<&mut Map<String, Value>> {
    obj.get_mut("spec").and_then(Value::as_object_mut)
}

/// `clusterIP` and the first of `clusterIPs` are the same value.
fn mirror_addresses(obj: &mut Value) {
    let Some(spec) = spec_mut(obj) else { return };
    let one = spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = spec.get("clusterIPs").and_then(Value::as_array).cloned().unwrap_or_default();
    if !one.is_empty() && list.is_empty() {
        spec.insert("clusterIPs".into(), json!([one]));
    }
}

fn kind(v: &Value) -> &str {
    v["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

fn needs_address(v: &Value) -> bool {
    kind(v) != "ExternalName"
}

fn needs_node_ports(v: &Value) -> bool {
    matches!(kind(v), "NodePort" | "LoadBalancer")
}

/// Fills in what the Service was allocated and an update leaves out.
pub fn patch_allocated(new: &mut Value, old: &Value) {
    if needs_address(old) && needs_address(new) {
        let empty = |v: &Value, k: &str| v["spec"].get(k).is_none_or(|x| x.is_null() || x == "" || x == &json!([]));
        for k in ["clusterIP", "clusterIPs"] {
            if empty(new, k)
                && !empty(old, k)
                && !(k == "clusterIPs" && new["spec"]["clusterIP"] != old["spec"]["clusterIP"])
            {
                new["spec"][k] = old["spec"][k].clone();
            }
        }
        // A client that knows only one of the two fields means both.
        let (before, now) = (old["spec"]["clusterIP"].clone(), new["spec"]["clusterIP"].clone());
        if now.as_str().is_some_and(|n| !n.is_empty())
            && now != before
            && new["spec"]["clusterIPs"] == old["spec"]["clusterIPs"]
        {
            new["spec"]["clusterIPs"] = json!([now]);
        }
        for k in ["ipFamilies", "ipFamilyPolicy"] {
            if empty(new, k) && !empty(old, k) {
                new["spec"][k] = old["spec"][k].clone();
            }
        }
    }
    if needs_node_ports(old) && needs_node_ports(new) {
        // A port is known by its name: its number may be what changes.
        let before = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let name = |p: &Value| p["name"].as_str().unwrap_or_default().to_owned();
        let taken: Vec<i64> =
            new["spec"]["ports"].as_array().into_iter().flatten().filter_map(|p| p["nodePort"].as_i64()).collect();
        for p in new["spec"].get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if p["nodePort"].as_i64().unwrap_or(0) != 0 {
                continue;
            }
            let found = before.iter().find(|b| name(b) == name(p));
            if let Some(n) = found.and_then(|b| b["nodePort"].as_i64()).filter(|n| *n != 0 && !taken.contains(n)) {
                p["nodePort"] = n.into();
            }
        }
    }
    if new["spec"]["healthCheckNodePort"].as_i64().unwrap_or(0) == 0
        && let Some(n) = old["spec"]["healthCheckNodePort"].as_i64().filter(|n| *n != 0)
        && kind(new) == "LoadBalancer"
        && new["spec"]["externalTrafficPolicy"] == "Local"
    {
        new["spec"]["healthCheckNodePort"] = n.into();
    }
}

/// A change of type drops what the new type has no use for, if the client did not touch it.
fn drop_by_type(new: &mut Value, old: &Value) {
    let unchanged = |new: &Value, k: &str| new["spec"].get(k) == old["spec"].get(k);
    let (had_address, has_address) = (needs_address(old), needs_address(new));
    if had_address && !has_address {
        for k in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if unchanged(new, k)
                && let Some(s) = spec_mut(new)
            {
                s.remove(k);
            }
        }
    }
    if needs_node_ports(old) && !needs_node_ports(new) {
        let before: Vec<i64> =
            old["spec"]["ports"].as_array().into_iter().flatten().filter_map(|p| p["nodePort"].as_i64()).collect();
        for p in new["spec"].get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if p["nodePort"].as_i64().is_some_and(|n| before.contains(&n))
                && let Some(p) = p.as_object_mut()
            {
                p.remove("nodePort");
            }
        }
        let external = new["spec"]["externalIPs"].as_array().is_some_and(|a| !a.is_empty());
        if !external
            && unchanged(new, "externalTrafficPolicy")
            && let Some(s) = spec_mut(new)
        {
            s.remove("externalTrafficPolicy");
        }
    }
    if kind(old) == "LoadBalancer" && kind(new) != "LoadBalancer" {
        for k in ["allocateLoadBalancerNodePorts", "loadBalancerClass", "healthCheckNodePort"] {
            if unchanged(new, k)
                && let Some(s) = spec_mut(new)
            {
                s.remove(k);
            }
        }
        new["status"] = json!({"loadBalancer": {}});
    }
}
