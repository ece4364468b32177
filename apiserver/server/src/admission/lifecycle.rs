//! NamespaceLifecycle and TaintNodesByCondition.

use serde_json::{Value, json};
use skiff_core::meta;
use skiff_core::status::Status;

use super::{Operation, Review};

/// Refuses creation in a namespace that is not there or is going away.
pub(super) async fn check_namespace(r: &Review<'_>, obj: &Value) -> Result<(), Status> {
    let ns = &r.call.target.namespace;
    // Reviews ask about namespaces, they do not live in them.
    let review = r.is("authorization.k8s.io", "localsubjectaccessreviews");
    if r.operation != Operation::Create || !r.kind.resource.namespaced || review || !r.subresource().is_empty() {
        return Ok(());
    }
    let namespaces = r.server.collection("", "namespaces")?;
    let found = namespaces.get("", ns).await?;
    let Some(found) = found else { return Err(Status::not_found("", "namespaces", ns)) };
    let terminating = found.meta.fields.iter().any(|(k, v)| *k == "status.phase" && &**v == "Terminating");
    if !terminating {
        return Ok(());
    }
    let value: Value = serde_json::from_slice(&found.value).unwrap_or_default();
    let why = format!("unable to create new content in namespace {ns} because it is being terminated");
    let at = format!("namespace {ns} is being terminated");
    if !meta::deleting(&value) {
        return Ok(());
    }
    Err(r.forbidden(obj, why).cause("NamespaceTerminating", &at, "metadata.namespace"))
}

/// Four namespaces stay.
pub(super) fn check_delete(r: &Review<'_>, obj: &Value) -> Result<(), Status> {
    let name = meta::name(obj);
    if r.is("", "namespaces") && matches!(name, "default" | "kube-system" | "kube-public" | "kube-node-lease") {
        return Err(r.forbidden(obj, "this namespace may not be deleted"));
    }
    Ok(())
}

const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// A new node takes no pods until its node agent says that it is ready.
pub(super) fn taint_new_node(r: &Review<'_>, obj: &mut Value) {
    if r.operation != Operation::Create || !r.is("", "nodes") {
        return;
    }
    let taint = json!({"key": NOT_READY, "effect": "NoSchedule"});
    let Some(spec) = obj.as_object_mut().map(|o| o.entry("spec").or_insert_with(|| json!({}))) else { return };
    match spec.get_mut("taints").and_then(Value::as_array_mut) {
        Some(list) => {
            if !list.iter().any(|t| t["key"] == NOT_READY && t["effect"] == "NoSchedule") {
                list.push(taint);
            }
        }
        None => spec["taints"] = json!([taint]),
    }
}
