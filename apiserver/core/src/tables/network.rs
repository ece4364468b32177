//! Services and networking.

use jiff::Timestamp;
use serde_json::Value;

use super::format::{labels, selector};
use super::{AGE, Column, NAME, Table, created, list, name, s, shortened, text, w};

/// Endpoints shown before the rest is counted.
const MAX: usize = 3;

pub(super) fn table(group: &str, plural: &str) -> Option<Table> {
    const SERVICE: &[Column] = &[NAME, s("Type"), s("Cluster-IP"), s("External-IP"), s("Port(s)"), AGE, w("Selector")];
    const ENDPOINTS: &[Column] = &[NAME, s("Endpoints"), AGE];
    const SLICE: &[Column] = &[NAME, s("AddressType"), s("Ports"), s("Endpoints"), AGE];
    const INGRESS: &[Column] = &[NAME, s("Class"), s("Hosts"), s("Address"), s("Ports"), AGE];
    const CLASS: &[Column] = &[NAME, s("Controller"), s("Parameters"), AGE];
    const POLICY: &[Column] = &[NAME, s("Pod-Selector"), AGE];
    const CIDR: &[Column] = &[NAME, s("CIDRs"), AGE];
    const ADDRESS: &[Column] = &[NAME, s("ParentRef")];
    let (columns, cells): super::Row = match (group, plural) {
        ("", "services") => (SERVICE, service),
        ("", "endpoints") => (ENDPOINTS, |o, now| vec![name(o), endpoints(o).into(), created(o, now)]),
        ("discovery.k8s.io", "endpointslices") => (SLICE, slice),
        ("networking.k8s.io", "ingresses") => (INGRESS, ingress),
        ("networking.k8s.io", "ingressclasses") => (CLASS, |o, now| {
            let p = &o["spec"]["parameters"];
            let shown = if p.is_null() {
                "<none>".to_owned()
            } else {
                let kind = p["kind"].as_str().unwrap_or_default();
                let full = match p["apiGroup"].as_str() {
                    Some(g) => format!("{kind}.{g}"),
                    None => kind.to_owned(),
                };
                format!("{full}/{}", p["name"].as_str().unwrap_or_default())
            };
            vec![name(o), text(&o["spec"]["controller"]), shown.into(), created(o, now)]
        }),
        ("networking.k8s.io", "networkpolicies") => {
            (POLICY, |o, now| vec![name(o), selector(&o["spec"]["podSelector"]).into(), created(o, now)])
        }
        ("networking.k8s.io", "servicecidrs") => (CIDR, |o, now| {
            let all: Vec<&str> = list(&o["spec"], "cidrs").filter_map(Value::as_str).collect();
            vec![name(o), all.join(",").into(), created(o, now)]
        }),
        // The age is sent, though no column shows it.
        ("networking.k8s.io", "ipaddresses") => {
            (ADDRESS, |o, now| vec![name(o), parent(&o["spec"]["parentRef"]).into(), created(o, now)])
        }
        _ => return None,
    };
    Some(Table { columns, cells })
}

/// Whose an address is: resource, group, namespace and name, as far as they are given.
fn parent(p: &Value) -> String {
    let part = |k: &str, before: &str| match p[k].as_str().unwrap_or_default() {
        "" => String::new(),
        given => format!("{before}{given}"),
    };
    if p.is_null() {
        return "<none>".into();
    }
    let resource = (part("resource", "") + &part("group", ".")).to_lowercase();
    format!("{resource}{}/{}", part("namespace", "/"), part("name", ""))
}

fn external(o: &Value) -> String {
    let spec = &o["spec"];
    let ips: Vec<&str> = list(spec, "externalIPs").filter_map(Value::as_str).collect();
    match spec["type"].as_str().unwrap_or_default() {
        "LoadBalancer" => {
            let mut all: Vec<&str> = list(&o["status"]["loadBalancer"], "ingress")
                .filter_map(|i| i["ip"].as_str().or(i["hostname"].as_str()))
                .collect();
            all.extend(ips);
            if all.is_empty() { "<pending>".into() } else { all.join(",") }
        }
        "ExternalName" => spec["externalName"].as_str().unwrap_or_default().into(),
        _ if ips.is_empty() => "<none>".into(),
        _ => ips.join(","),
    }
}

fn service(o: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = list(&o["spec"], "ports")
        .map(|p| {
            let protocol = p["protocol"].as_str().unwrap_or("TCP");
            match p["nodePort"].as_i64().filter(|n| *n > 0) {
                Some(n) => format!("{}:{n}/{protocol}", p["port"]),
                None => format!("{}/{protocol}", p["port"]),
            }
        })
        .collect();
    let ports = if ports.is_empty() { "<none>".into() } else { ports.join(",") };
    let address = o["spec"]["clusterIPs"].get(0).or(o["spec"].get("clusterIP")).and_then(Value::as_str);
    vec![
        name(o),
        text(&o["spec"]["type"]),
        address.filter(|a| !a.is_empty()).unwrap_or("<none>").into(),
        external(o).into(),
        ports.into(),
        created(o, now),
        labels(&o["spec"]["selector"]).into(),
    ]
}

fn endpoints(o: &Value) -> String {
    let mut all: Vec<String> = vec![];
    for subset in list(o, "subsets") {
        let addresses: Vec<&str> = list(subset, "addresses").filter_map(|a| a["ip"].as_str()).collect();
        let ports: Vec<i64> = list(subset, "ports").filter_map(|p| p["port"].as_i64()).collect();
        if ports.is_empty() {
            all.extend(addresses.iter().map(|a| (*a).to_owned()));
        }
        for p in ports {
            all.extend(
                addresses.iter().map(|a| if a.contains(':') { format!("[{a}]:{p}") } else { format!("{a}:{p}") }),
            );
        }
    }
    if all.is_empty() { "<none>".into() } else { shortened(&all, MAX) }
}

fn slice(o: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = list(o, "ports")
        .map(|p| match (p["port"].as_i64(), p["name"].as_str().unwrap_or_default()) {
            (Some(n), _) => n.to_string(),
            (None, "") => "*".into(),
            (None, n) => n.to_owned(),
        })
        .collect();
    let addresses: Vec<String> = list(o, "endpoints")
        .flat_map(|e| list(e, "addresses").filter_map(|a| a.as_str().map(str::to_owned)).collect::<Vec<_>>())
        .collect();
    let unset = |v: Vec<String>| if v.is_empty() { "<unset>".to_owned() } else { shortened(&v, MAX) };
    vec![name(o), text(&o["addressType"]), unset(ports).into(), unset(addresses).into(), created(o, now)]
}

fn ingress(o: &Value, now: Timestamp) -> Vec<Value> {
    let mut hosts: Vec<String> = vec![];
    for r in list(&o["spec"], "rules") {
        if let Some(h) = r["host"].as_str().filter(|h| !h.is_empty()) {
            hosts.push(h.to_owned());
        }
    }
    let hosts = if hosts.is_empty() { "*".into() } else { shortened(&hosts, MAX) };
    let addresses: Vec<&str> = list(&o["status"]["loadBalancer"], "ingress")
        .filter_map(|i| i["ip"].as_str().filter(|s| !s.is_empty()).or(i["hostname"].as_str()))
        .collect();
    let tls = list(&o["spec"], "tls").count() > 0;
    let class = match o["spec"]["ingressClassName"].as_str() {
        Some(c) => c.to_owned(),
        None => o["metadata"]["annotations"]["kubernetes.io/ingress.class"].as_str().unwrap_or("<none>").to_owned(),
    };
    let ports = if tls { "80, 443" } else { "80" };
    vec![name(o), class.into(), hosts.into(), addresses.join(",").into(), ports.into(), created(o, now)]
}
