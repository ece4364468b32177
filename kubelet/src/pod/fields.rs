//! Values of a pod's own fields and resources, for environment variables and downward API files.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::spec;

/// What the node adds to the pod's own fields.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Address of the node.
    pub host_ip: IpAddr,
    /// Address of the pod.
    pub pod_ip: Option<IpAddr>,
    /// CPU of the node that pods may use, in thousandths of a core.
    pub allocatable_millicpu: i128,
    /// Memory of the node that pods may use, in thousandths of a byte.
    pub allocatable_millimemory: i128,
}

/// A field's value. The error is a sentence for people.
pub fn field(pod: &Pod, selector: &ObjectFieldSelector, facts: &Facts) -> Result<String, String> {
    let path = selector.field_path.as_str();
    let meta = &pod.metadata;
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let ip = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    Ok(match path {
        "metadata.name" => spec::name(pod).into(),
        "metadata.namespace" => spec::namespace(pod).into(),
        "metadata.uid" => spec::uid(pod).into(),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => spec::spec(pod).node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec::spec(pod).service_account_name.clone().unwrap_or_default(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.to_string(),
        "status.podIP" | "status.podIPs" => ip(facts.pod_ip),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// `metadata.labels['key']` in two.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// A map as sorted lines of `key="value"`.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let line = |(key, value): (&String, &String)| format!("{key}={}", quote(value));
    map.into_iter().flatten().map(line).collect::<Vec<_>>().join("\n")
}

fn quote(value: &str) -> String {
    let mut out = String::from("\"");
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A container's resource in units of the divisor, rounded up. A missing limit is what the node has.
pub fn resource(
    pod: &Pod,
    selector: &ResourceFieldSelector,
    own: Option<&Container>,
    facts: &Facts,
) -> Result<String, String> {
    let named = selector.container_name.as_deref().filter(|n| !n.is_empty());
    let containers = spec::containers(pod);
    let container = match named {
        Some(name) => containers
            .iter()
            .map(|(_, c)| c)
            .find(|c| c.name == name)
            .ok_or_else(|| format!("container {name} not found"))?,
        None => own.ok_or("a container name is needed")?,
    };
    let resources = container.resources.as_ref();
    let get =
        |list: Option<&BTreeMap<String, Quantity>>, name: &str| list.and_then(|l| l.get(name)).and_then(spec::milli);
    let limit = |name| get(resources.and_then(|r| r.limits.as_ref()), name);
    let (kind, name) = selector.resource.split_once('.').ok_or("malformed resource")?;
    let value = match (kind, name) {
        ("limits", "cpu") => limit("cpu").unwrap_or(facts.allocatable_millicpu),
        ("limits", "memory") => limit("memory").unwrap_or(facts.allocatable_millimemory),
        ("limits", other) => limit(other).unwrap_or(0),
        ("requests", name) => spec::request(container, name),
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    };
    let divisor = selector.divisor.as_ref().and_then(spec::milli).filter(|d| *d > 0).unwrap_or(1000);
    Ok(((value + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "x\"y"}},
            "spec": {"nodeName": "m", "containers": [{"name": "c", "resources": {"limits": {"memory": "1Mi"}, "requests": {"cpu": "250m"}}}]}
        }))
        .unwrap();
        let facts = Facts {
            host_ip: [192, 0, 2, 1].into(),
            pod_ip: Some([10, 0, 0, 2].into()),
            allocatable_millicpu: 2000,
            allocatable_millimemory: 0,
        };
        let get = |path: &str| field(&pod, &ObjectFieldSelector { field_path: path.into(), api_version: None }, &facts);
        for (path, wanted) in [
            ("metadata.name", "p"),
            ("metadata.labels['b']", "2"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "a=\"x\\\"y\"\nb=\"2\""),
            ("status.podIP", "10.0.0.2"),
            ("spec.nodeName", "m"),
        ] {
            assert_eq!(get(path).as_deref(), Ok(wanted), "{path}");
        }
        assert!(get("spec.other").is_err());
        for (name, divisor, wanted) in [
            ("limits.memory", "1", "1048576"),
            ("limits.memory", "1Mi", "1"),
            ("requests.cpu", "1", "1"),
            ("requests.cpu", "1m", "250"),
            ("limits.cpu", "1", "2"),
        ] {
            let selector = ResourceFieldSelector {
                container_name: Some("c".into()),
                resource: name.into(),
                divisor: Some(Quantity(divisor.into())),
            };
            assert_eq!(resource(&pod, &selector, None, &facts).as_deref(), Ok(wanted), "{name}/{divisor}");
        }
    }
}
