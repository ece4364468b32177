//! Validation of Services.

use std::net::IpAddr;

use serde_json::Value;

use crate::invalid::Errors;
use crate::kinds::check::{list, text};
use crate::kinds::net::bad_ip;
use crate::names;
use crate::path::Path;

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const BAD_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
const RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Checks a Service.
pub(super) fn validate(obj: &Value, errors: &mut Errors) {
    let root = Path::new("spec");
    let spec = &obj["spec"];
    let kind = text(spec, "type");
    let headless = spec["clusterIP"] == "None";
    let external = kind == "ExternalName";
    let all = list(spec, "ports");
    let ports = root.child("ports");
    if all.is_empty() && !headless && !external {
        errors.required(&ports, "");
    }
    let cluster_ips = root.child("clusterIPs");
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let why = format!("may not be set to 'None' for {kind} services");
            errors.invalid(&cluster_ips.index(0), "None", why);
        }
        "ExternalName" => {
            if !list(spec, "clusterIPs").is_empty() || !text(spec, "clusterIP").is_empty() {
                errors.forbidden(&cluster_ips, "may not be set for ExternalName services");
            }
            for key in ["ipFamilies", "ipFamilyPolicy"] {
                if !spec[key].is_null() {
                    errors.forbidden(&root.child(key), "may not be set for ExternalName services");
                }
            }
            let name = text(spec, "externalName").trim_end_matches('.');
            if name.is_empty() {
                errors.required(&root.child("externalName"), "");
            } else {
                for why in names::is_dns1123_subdomain(name) {
                    errors.invalid(&root.child("externalName"), name, why);
                }
            }
        }
        _ => {}
    }
    let mut seen: Vec<&str> = vec![];
    for (i, p) in all.iter().enumerate() {
        port(p, &ports.index(i), all.len() > 1, &mut seen, errors);
    }
    names::validate_labels(spec["selector"].as_object(), &root.child("selector"), errors);
    match text(spec, "sessionAffinity") {
        "ClientIP" => {
            let c = root.child("sessionAffinityConfig");
            let c = c.child("clientIP");
            if let Some(n) = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_i64()
                && !(1..=86400).contains(&n)
            {
                errors.invalid(&c.child("timeoutSeconds"), n, "must be greater than 0 and less than 86400");
            }
        }
        "None" => {}
        other => errors.not_supported(&root.child("sessionAffinity"), other, &["ClientIP", "None"]),
    }
    external_ips(spec, &root, errors);
    if !TYPES.contains(&kind) {
        errors.not_supported(&root.child("type"), kind, &TYPES);
    }
    duplicates(all, kind, &ports, errors);
    source_ranges(obj, &root, errors);
    let load_balancer = kind == "LoadBalancer";
    if load_balancer && spec["allocateLoadBalancerNodePorts"].is_null() {
        errors.required(&root.child("allocateLoadBalancerNodePorts"), "");
    }
    if !load_balancer && !spec["allocateLoadBalancerNodePorts"].is_null() {
        errors
            .forbidden(&root.child("allocateLoadBalancerNodePorts"), "may only be used when `type` is 'LoadBalancer'");
    }
    if let Some(class) = spec["loadBalancerClass"].as_str() {
        let at = root.child("loadBalancerClass");
        if load_balancer {
            for why in names::is_qualified_name(class) {
                errors.invalid(&at, class, why);
            }
        } else {
            errors.forbidden(&at, "may only be used when `type` is 'LoadBalancer'");
        }
    }
    traffic(spec, kind, &root, errors);
}

/// Node ports that are not for this type, and node ports and ports that occur twice for one protocol.
fn duplicates(all: &[Value], kind: &str, ports: &Path<'_>, errors: &mut Errors) {
    let node_port = |p: &Value| p["nodePort"].as_i64().filter(|n| *n != 0);
    for (i, _) in all.iter().enumerate().filter(|(_, p)| kind == "ClusterIP" && node_port(p).is_some()) {
        errors.forbidden(&ports.index(i).child("nodePort"), "may not be used when `type` is 'ClusterIP'");
    }
    for (i, p) in all.iter().enumerate() {
        let Some(n) = node_port(p) else { continue };
        if all[..i].iter().any(|q| node_port(q) == Some(n) && q["protocol"] == p["protocol"]) {
            errors.duplicate(&ports.index(i).child("nodePort"), n);
        }
    }
    for (i, p) in all.iter().enumerate() {
        if all[..i].iter().any(|q| q["port"] == p["port"] && q["protocol"] == p["protocol"]) {
            // Upstream shows its own structure, of which only these two are filled in.
            let shown = format!(
                r#"{{"Name":"","Protocol":{},"AppProtocol":null,"Port":{},"TargetPort":0,"NodePort":0}}"#,
                p["protocol"],
                p["port"].as_i64().unwrap_or(0)
            );
            errors.duplicate_raw(&ports.index(i), shown, "");
        }
    }
}

fn port<'a>(p: &'a Value, at: &Path<'_>, named: bool, seen: &mut Vec<&'a str>, errors: &mut Errors) {
    let name = text(p, "name");
    if name.is_empty() {
        if named {
            errors.required(&at.child("name"), "");
        }
    } else {
        for why in names::is_dns1123_label(name) {
            errors.invalid(&at.child("name"), name, why);
        }
        if seen.contains(&name) {
            errors.duplicate(&at.child("name"), name);
        }
        seen.push(name);
    }
    let number = p["port"].as_i64().unwrap_or(0);
    for why in names::is_port(number) {
        errors.invalid(&at.child("port"), number, why);
    }
    match text(p, "protocol") {
        "" => errors.required(&at.child("protocol"), ""),
        "TCP" | "UDP" | "SCTP" => {}
        other => errors.not_supported(&at.child("protocol"), other, &["SCTP", "TCP", "UDP"]),
    }
    let target = at.child("targetPort");
    match &p["targetPort"] {
        Value::String(s) => {
            for why in names::is_port_name(s) {
                errors.invalid(&target, s.as_str(), why);
            }
        }
        v => {
            let n = v.as_i64().unwrap_or(0);
            for why in names::is_port(n) {
                errors.invalid(&target, n, why);
            }
        }
    }
    if let Some(a) = p["appProtocol"].as_str() {
        for why in names::is_qualified_name(a) {
            errors.invalid(&at.child("appProtocol"), a, why);
        }
    }
}

fn external_ips(spec: &Value, root: &Path<'_>, errors: &mut Errors) {
    let at = root.child("externalIPs");
    for (i, a) in list(spec, "externalIPs").iter().filter_map(Value::as_str).enumerate() {
        let at = at.index(i);
        if let Some(why) = bad_ip(a) {
            errors.invalid(&at, a, why);
            continue;
        }
        let Ok(ip) = a.parse::<IpAddr>() else { continue };
        let (local, link, multicast) = match ip {
            IpAddr::V4(v) => (v.is_loopback(), v.is_link_local(), v.octets()[..3] == [224, 0, 0]),
            IpAddr::V6(v) => (v.is_loopback(), v.is_unicast_link_local(), v.segments()[0] & 0xff0f == 0xff02),
        };
        if ip.is_unspecified() {
            errors.invalid(&at, a, format!("may not be unspecified ({ip})"));
        }
        if local {
            errors.invalid(&at, a, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
        }
        if link {
            errors.invalid(&at, a, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
        }
        if multicast {
            errors.invalid(&at, a, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
        }
    }
}

fn source_ranges(obj: &Value, root: &Path<'_>, errors: &mut Errors) {
    let spec = &obj["spec"];
    let ranges = list(spec, "loadBalancerSourceRanges");
    let note = obj["metadata"]["annotations"][RANGES].as_str();
    let load_balancer = text(spec, "type") == "LoadBalancer";
    let at = root.child("LoadBalancerSourceRanges");
    if !ranges.is_empty() {
        if !load_balancer {
            errors.forbidden(&at, "may only be used when `type` is 'LoadBalancer'");
        }
        for (i, r) in ranges.iter().filter_map(Value::as_str).enumerate() {
            if r.trim().parse::<ipnet::IpNet>().is_err() {
                errors.invalid(&at.index(i), r, BAD_CIDR);
            }
        }
    } else if let Some(n) = note {
        let m = Path::new("metadata");
        let a = m.child("annotations");
        let at = a.key(RANGES);
        if !load_balancer {
            errors.forbidden(&at, "may only be used when `type` is 'LoadBalancer'");
        }
        for r in n.split(',').filter(|r| !r.trim().is_empty()) {
            if r.trim().parse::<ipnet::IpNet>().is_err() {
                errors.invalid(&at, n, BAD_CIDR);
            }
        }
    }
}

fn traffic(spec: &Value, kind: &str, root: &Path<'_>, errors: &mut Errors) {
    let reachable = matches!(kind, "NodePort" | "LoadBalancer") || !list(spec, "externalIPs").is_empty();
    let external = spec["externalTrafficPolicy"].as_str().unwrap_or_default();
    let at = root.child("externalTrafficPolicy");
    if !reachable && !external.is_empty() {
        errors.invalid(&at, external, "may only be set for externally-accessible services");
    } else if reachable && !matches!(external, "Cluster" | "Local") {
        if external.is_empty() {
            errors.required(&at, "");
        } else {
            errors.not_supported(&at, external, &["Cluster", "Local"]);
        }
    }
    let check = spec["healthCheckNodePort"].as_i64().unwrap_or(0);
    if check != 0 && !(kind == "LoadBalancer" && external == "Local") {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.invalid(&root.child("healthCheckNodePort"), check, why);
    }
    match spec["internalTrafficPolicy"].as_str() {
        None if matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer") => {
            errors.required(&root.child("internalTrafficPolicy"), "")
        }
        None | Some("Cluster" | "Local") => {}
        Some(other) => errors.not_supported(&root.child("internalTrafficPolicy"), other, &["Cluster", "Local"]),
    }
    match spec["trafficDistribution"].as_str() {
        None | Some("PreferClose" | "PreferSameZone" | "PreferSameNode") => {}
        Some(other) => errors.not_supported(
            &root.child("trafficDistribution"),
            other,
            &["PreferClose", "PreferSameZone", "PreferSameNode"],
        ),
    }
}

/// Checks an update: addresses and class stay.
pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    let root = Path::new("spec");
    let at = root.child("clusterIPs");
    let (n, o) = (&new["spec"], &old["spec"]);
    let (nk, ok) = (text(n, "type"), text(o, "type"));
    if nk != "ExternalName" && ok != "ExternalName" {
        let before = text(o, "clusterIP");
        let now = text(n, "clusterIP");
        let consistent = list(n, "clusterIPs").first().and_then(Value::as_str).is_none_or(|f| f == now);
        if !before.is_empty() && before != now && consistent {
            errors.invalid_raw(&at.index(0), n["clusterIPs"].to_string(), "may not change once set");
        }
    }
    if nk == "LoadBalancer" && ok == "LoadBalancer" && n["loadBalancerClass"] != o["loadBalancerClass"] {
        let why = "may not change once set";
        errors.invalid(&root.child("loadBalancerClass"), n["loadBalancerClass"].clone(), why);
    }
    validate(new, errors);
}

/// Warnings about fields that are deprecated or have no effect.
pub(super) fn warnings(obj: &Value, out: &mut Vec<String>) {
    let spec = &obj["spec"];
    let notes = &obj["metadata"]["annotations"];
    if !notes["service.kubernetes.io/topology-aware-hints"].is_null() {
        out.push("annotation service.kubernetes.io/topology-aware-hints is deprecated, please use service.kubernetes.io/topology-mode instead".into());
    }
    let has_external = !list(spec, "externalIPs").is_empty();
    if spec["clusterIP"] == "None" {
        if !text(spec, "loadBalancerIP").is_empty() {
            out.push("spec.loadBalancerIP is ignored for headless services".into());
        }
        if has_external {
            out.push("spec.externalIPs is ignored for headless services".into());
        }
        if spec["sessionAffinity"].as_str().is_some_and(|s| s != "None") {
            out.push("spec.SessionAffinity is ignored for headless services".into());
        }
    } else if has_external {
        out.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".into());
    }
    if !text(spec, "externalName").is_empty() && text(spec, "type") != "ExternalName" {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
    }
    if spec["trafficDistribution"] == "PreferClose" {
        out.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".into());
    }
}
