//! Binding a pod to a node.

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_core::invalid::{Errors, quote_str};
use skiff_core::meta;
use skiff_core::path::Path;
use skiff_core::status::Status;
use skiff_storage::{Compare, Error, Op};

use crate::registry::{object, storage_error};
use crate::server::Inner;
use crate::verbs::options::WriteOptions;
use crate::verbs::update::RACE_TRIES;
use crate::verbs::{Answer, Call};

/// Binds the pod of the call to the target of a `Binding`.
///
/// # Errors
/// 400, 404, 409, 500 in upstream's words.
pub async fn bind(server: &Arc<Inner>, call: &Call, binding: &Value, options: &WriteOptions) -> Result<Answer, Status> {
    let (ns, name) = (&call.target.namespace, &call.target.name);
    let given = meta::name(binding);
    if !given.is_empty() && given != name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let target = &binding["target"];
    let target_kind = target["kind"].as_str().unwrap_or_default();
    let node = target["name"].as_str().unwrap_or_default();
    let mut errors = Errors::new();
    let at = Path::new("target");
    if !matches!(target_kind, "" | "Node") {
        errors.not_supported(&at.child("kind"), target_kind, &["Node", "<empty>"]);
    }
    if node.is_empty() {
        errors.required(&at.child("name"), "");
    } else if matches!(target_kind, "" | "Node") {
        for why in skiff_core::names::is_dns1123_subdomain(node) {
            errors.invalid(&at.child("name"), node, why);
        }
    }
    if !errors.is_empty() {
        return Err(Status::untyped(errors.sentence()));
    }
    let kind = server.kind("", "pods")?;
    let pods = Arc::clone(kind.stored()?);
    let conflict = |why: String| Status::conflict("", "pods/binding", name, why);
    for _ in 0..RACE_TRIES {
        let found = pods.get(ns, name).await?.ok_or_else(|| kind.not_found(name))?;
        let mut pod = kind.load(&found)?;
        let uid = meta::uid(binding);
        if !uid.is_empty() && uid != meta::uid(&pod) {
            let why = crate::verbs::update::uid_mismatch(&kind, ns, name, uid, meta::uid(&pod));
            return Err(Status::conflict("", "pods", name, why));
        }
        if meta::deleting(&pod) {
            return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
        }
        if let Some(n) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
            return Err(conflict(format!("pod {name} is already assigned to node {}", quote_str(n))));
        }
        if pod["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty()) {
            return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
        }
        pod["spec"]["nodeName"] = node.into();
        if let Some(notes) = binding["metadata"]["annotations"].as_object() {
            for (k, v) in notes {
                let m = meta::meta_mut(&mut pod);
                let a = m.entry("annotations").or_insert_with(|| json!({}));
                a[k] = v.clone();
            }
        }
        scheduled(&mut pod);
        if options.dry_run {
            break;
        }
        let payload = object::encode(&pod);
        match pods.store.commit(&found.key, Compare::At(found.revision), Op::Put(payload)).await {
            Ok(_) => break,
            Err(Error::Conflict { .. }) => {}
            Err(e) => return Err(storage_error(e)),
        }
    }
    Ok(Answer::status(
        201,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

fn scheduled(pod: &mut Value) {
    let c = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": crate::verbs::write::now()});
    let Some(status) = pod.as_object_mut().map(|o| o.entry("status").or_insert_with(|| json!({}))) else { return };
    match status.get_mut("conditions").and_then(Value::as_array_mut) {
        Some(l) => {
            l.retain(|x| x["type"] != "PodScheduled");
            l.push(c);
        }
        None => status["conditions"] = json!([c]),
    }
}
