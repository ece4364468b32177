//! NodeRestriction: what a node agent may write about itself and its pods, and nothing about others.

use serde_json::Value;
use skiff_core::meta;
use skiff_core::status::Status;

use super::{Operation, Review};
use crate::auth::rbac::Attributes;

/// Labels a node agent may set on its own node, besides those outside the protected domains.
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "node.kubernetes.io/windows-build",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

fn may_label(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let within = |d: &str| domain == d || domain.ends_with(&format!(".{d}"));
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    if !(within("kubernetes.io") || within("k8s.io")) {
        return true;
    }
    OWN_LABELS.contains(&key) || within("kubelet.kubernetes.io") || within("node.kubernetes.io")
}

/// Checks a create or update by a node agent.
pub(super) fn mutate(r: &Review<'_>, obj: &Value) -> Result<(), Status> {
    let Some(node) = r.call.user.node_name() else { return Ok(()) };
    match (r.kind.group(), r.kind.plural()) {
        ("", "nodes") => check_node(r, obj, node),
        ("", "pods") => check_pod(r, obj, node),
        ("", "persistentvolumes") => check_volume(r, obj, node),
        ("coordination.k8s.io", "leases") => {
            if r.call.target.namespace == "kube-node-lease" && meta::name(obj) == node {
                Ok(())
            } else {
                Err(r.forbidden(obj, "can only access node lease with the same name as the requesting node"))
            }
        }
        ("certificates.k8s.io", "podcertificaterequests") if r.operation == Operation::Create => {
            check_certificate(r, obj, node)
        }
        ("storage.k8s.io", "csinodes") if meta::name(obj) != node => {
            Err(r.forbidden(obj, "can only access CSINode with the same name as the requesting node"))
        }
        _ => Ok(()),
    }
}

fn check_node(r: &Review<'_>, obj: &Value, node: &str) -> Result<(), Status> {
    if meta::name(obj) != node {
        return Err(r.forbidden(obj, format!("node \"{node}\" is not allowed to modify node \"{}\"", meta::name(obj))));
    }
    let empty = Value::Null;
    let old = r.old.unwrap_or(&empty);
    let (new_labels, old_labels) = (&obj["metadata"]["labels"], &old["metadata"]["labels"]);
    let keys = |v: &Value| v.as_object().map(|o| o.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let mut changed: Vec<String> = keys(new_labels);
    changed.extend(keys(old_labels));
    changed.sort_unstable();
    changed.dedup();
    changed.retain(|k| new_labels.get(k) != old_labels.get(k) && !may_label(k));
    if !changed.is_empty() {
        let list = changed.join(", ");
        let verb = if r.operation == Operation::Create { "set" } else { "modify" };
        return Err(r.forbidden(obj, format!("is not allowed to {verb} the following labels: {list}")));
    }
    if obj["metadata"].get("ownerReferences") != old["metadata"].get("ownerReferences") {
        return Err(r.forbidden(obj, format!("node \"{node}\" is not allowed to modify its owner references")));
    }
    if r.operation == Operation::Update
        && r.subresource().is_empty()
        && obj["spec"].get("taints") != old["spec"].get("taints")
    {
        return Err(r.forbidden(obj, format!("node \"{node}\" is not allowed to modify taints")));
    }
    Ok(())
}

/// On volumes that are directories of its own node an agent takes its finalizer off, and changes nothing else.
fn check_volume(r: &Review<'_>, obj: &Value, node: &str) -> Result<(), Status> {
    const OWN: &str = "skiff.dev/local-path";
    const HOST: &str = "skiff.dev/hostname";
    let empty = Value::Null;
    let old = r.old.unwrap_or(&empty);
    let own = old["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"] == OWN
        && old["metadata"]["labels"][HOST] == node;
    let bare = |v: &Value| {
        let mut v = v.clone();
        if let Some(m) = v["metadata"].as_object_mut() {
            for key in ["finalizers", "managedFields", "resourceVersion"] {
                m.remove(key);
            }
        }
        v
    };
    let others = |v: &Value| {
        let list = v["metadata"]["finalizers"].as_array().into_iter().flatten();
        list.filter(|f| *f != OWN).cloned().collect::<Vec<_>>()
    };
    if own && bare(obj) == bare(old) && others(obj) == others(old) {
        return Ok(());
    }
    Err(r.forbidden(
        obj,
        format!("node \"{node}\" can only remove its own finalizer from volumes that are directories of its own"),
    ))
}

fn check_pod(r: &Review<'_>, obj: &Value, node: &str) -> Result<(), Status> {
    match r.operation {
        Operation::Create if r.subresource() == "eviction" => Ok(()),
        Operation::Create => {
            if obj["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_none() {
                return Err(r.forbidden(obj, format!("pod does not have \"kubernetes.io/config.mirror\" annotation, node \"{node}\" can only create mirror pods")));
            }
            if obj["spec"]["nodeName"] != node {
                return Err(
                    r.forbidden(obj, format!("node \"{node}\" can only create pods with spec.nodeName set to itself"))
                );
            }
            Ok(())
        }
        Operation::Update => {
            if r.subresource() != "status" {
                return Err(r.forbidden(obj, format!("node \"{node}\" cannot update pod except for its status")));
            }
            let old = r.old.unwrap_or(obj);
            if old["spec"]["nodeName"] != node {
                return Err(r.forbidden(
                    obj,
                    format!("node \"{node}\" can only update pod status for pods with spec.nodeName set to itself"),
                ));
            }
            if obj["metadata"].get("labels") != old["metadata"].get("labels") {
                return Err(r.forbidden(obj, format!("node \"{node}\" cannot update labels through pod status")));
            }
            Ok(())
        }
        Operation::Delete | Operation::Connect => Ok(()),
    }
}

/// An agent asks for certificates of pods that run on its node, in the name of their accounts, from signers they name.
fn check_certificate(r: &Review<'_>, obj: &Value, node: &str) -> Result<(), Status> {
    let namespace = &r.call.target.namespace;
    let part = |key: &str| obj["spec"][key].as_str().unwrap_or_default();
    let of = format!("{namespace}/{}", part("podName"));
    if part("nodeName") != node {
        let why = format!(
            "PodCertificateRequest.Spec.NodeName={:?}, which is not the requesting node {node:?}",
            part("nodeName")
        );
        return Err(r.forbidden(obj, why));
    }
    // An agent may know more than this server does yet: what is missing or another is no refusal for good.
    let same = |what: &str, plural: &str, ns: &str, key: &str, uid: &str| {
        let name = part(key);
        let shown = if ns.is_empty() { name.to_owned() } else { format!("{ns}/{name}") };
        let Some(found) = r.server.peek("", plural, ns, name) else {
            let singular = plural.trim_end_matches('s');
            return Err(Status::untyped(format!(
                "while retrieving {what} {shown:?} named in the PodCertificateRequest: {singular} {name:?} not found"
            )));
        };
        if meta::text(&found, "uid") == part(uid) {
            return Ok(found);
        }
        Err(Status::untyped(format!(
            "PodCertificateRequest for pod {of:?} names {what} UID {:?}, which differs from the running {what} ({:?})",
            part(uid),
            meta::text(&found, "uid")
        )))
    };
    same("node", "nodes", "", "nodeName", "nodeUID")?;
    let pod = same("pod", "pods", namespace, "podName", "podUID")?;
    let why = if pod["spec"]["nodeName"] != node {
        format!("pod {of:?} is not running on node {node:?} named in the PodCertificateRequest")
    } else if pod["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_some() {
        format!("pod {of:?} is a mirror pod")
    } else if pod["spec"]["serviceAccountName"] != part("serviceAccountName") {
        format!(
            "PodCertificateRequest for pod {of:?} contains serviceAccountName ({:?}) that differs from running pod ({:?})",
            part("serviceAccountName"),
            pod["spec"]["serviceAccountName"].as_str().unwrap_or_default()
        )
    } else {
        same("service account", "serviceaccounts", namespace, "serviceAccountName", "serviceAccountUID")?;
        return asks_signer(r, obj, &pod);
    };
    Err(r.forbidden(obj, why))
}

/// The pod names the signer in a volume, or the agent was given the right to ask it for this account.
fn asks_signer(r: &Review<'_>, obj: &Value, pod: &Value) -> Result<(), Status> {
    let signer = obj["spec"]["signerName"].as_str().unwrap_or_default();
    let account = obj["spec"]["serviceAccountName"].as_str().unwrap_or_default();
    let list = |v: &Value, key: &str| v[key].as_array().cloned().unwrap_or_default();
    let mut sources = list(&pod["spec"], "volumes").into_iter().flat_map(|v| list(&v["projected"], "sources"));
    if sources.any(|s| s["podCertificate"]["signerName"] == signer) {
        return Ok(());
    }
    let verb = "request-serviceaccounts-podcertificate-signer";
    let asked =
        Attributes::resource(verb, r.kind.group(), &signer.replace('/', ":"), &r.call.target.namespace, account);
    if r.server.authorise(&r.call.user, &asked).is_ok() {
        return Ok(());
    }
    let of = format!("{}/{}", r.call.target.namespace, meta::name(pod));
    let why = format!("pod {of:?} does not mount a podCertificate projected volume for signer {signer:?}");
    Err(r.forbidden(obj, why))
}

/// Checks a deletion by a node agent.
pub(super) fn check_delete(r: &Review<'_>, obj: &Value) -> Result<(), Status> {
    let Some(node) = r.call.user.node_name() else { return Ok(()) };
    if r.is("", "pods") && obj["spec"]["nodeName"] != node {
        let why = format!("node \"{node}\" can only delete pods with spec.nodeName set to itself");
        return Err(r.forbidden(obj, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::may_label;

    #[test]
    fn labels() {
        for (key, ok) in [
            ("a", true),
            ("example.com/a", true),
            ("kubernetes.io/hostname", true),
            ("node-role.kubernetes.io/control-plane", false),
            ("x.node-restriction.kubernetes.io/y", false),
            ("kubelet.kubernetes.io/z", true),
        ] {
            assert_eq!(may_label(key), ok, "{key}");
        }
    }
}
