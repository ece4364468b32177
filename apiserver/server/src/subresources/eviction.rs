//! `pods/eviction`: deletion that respects disruption budgets.

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_core::meta;
use skiff_core::resources::Subresource;
use skiff_core::selector::LabelSelector;
use skiff_core::status::Status;
use skiff_storage::{Compare, Error, Op};

use crate::admission::{self, Operation};
use crate::registry::{Kind, object, storage_error};
use crate::server::Inner;
use crate::verbs::{Answer, Call, delete};

/// Evicts the pod in the path.
///
/// # Errors
/// 429 while a budget forbids it; 400, 404, 409, 500 in upstream's words.
pub async fn evict(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    sub: &Subresource,
    call: &mut Call,
) -> Result<Answer, Status> {
    let (mut obj, options) = super::special::body(sub, "policy", "v1", call, "CreateOptions")?;
    let (ns, name) = (call.target.namespace.clone(), call.target.name.clone());
    if meta::name(&obj) != name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    admission::review(server, kind, call, Operation::Create, &mut obj, options.dry_run).await?;
    let mut delete_options = obj["deleteOptions"].clone();
    if delete_options.is_null() {
        delete_options = json!({});
    }
    let inside: Vec<&str> =
        delete_options["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let outside: Vec<&str> = call.query.all("dryRun").filter(|d| !d.is_empty()).collect();
    if !inside.is_empty() && !outside.is_empty() && inside != outside {
        return Err(Status::untyped(format!(
            "Non-matching dry-run options in request and content: [{}] and [{}]",
            outside.join(" "),
            inside.join(" ")
        )));
    }
    let dry_run = options.dry_run || !inside.is_empty();
    let pod_object = kind.stored()?.get(&ns, &name).await?.ok_or_else(|| kind.not_found(&name))?;
    let pod = kind.load(&pod_object)?;
    if !may_go_anyway(&pod) {
        take_from_budget(server, &ns, &pod, dry_run).await?;
    }
    if dry_run {
        delete_options["dryRun"] = json!(["All"]);
    }
    delete_options["kind"] = "DeleteOptions".into();
    delete_options["apiVersion"] = "v1".into();
    call.body = serde_json::to_vec(&delete_options).unwrap_or_default().into();
    call.headers.insert("content-type", http::HeaderValue::from_static("application/json"));
    drop(delete::delete(server, kind, call).await?);
    Ok(Answer::status(
        201,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

/// Finished, pending and terminating pods disturb nobody.
fn may_go_anyway(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending")) || meta::deleting(pod)
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

async fn take_from_budget(server: &Arc<Inner>, ns: &str, pod: &Value, dry_run: bool) -> Result<(), Status> {
    let budgets = server.collection("policy", "poddisruptionbudgets")?;
    for _ in 0..crate::verbs::update::RACE_TRIES {
        budgets.consistent().await?;
        let found = budgets.cache.list(&budgets.scope(ns)).objects;
        let labels = &pod["metadata"]["labels"];
        let mut hits = vec![];
        for o in found {
            let v: Value = serde_json::from_slice(&o.value).unwrap_or_default();
            if LabelSelector::from_object(v["spec"].get("selector")).matches(labels) {
                hits.push((o, v));
            }
        }
        if hits.len() > 1 {
            return Err(Status::untyped(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
        let Some((stored, mut budget)) = hits.pop() else { return Ok(()) };
        let policy = budget["spec"]["unhealthyPodEvictionPolicy"].as_str().unwrap_or("IfHealthyBudget").to_owned();
        let n = |k: &str| budget["status"][k].as_i64().unwrap_or(0);
        let (healthy, desired, allowed) = (n("currentHealthy"), n("desiredHealthy"), n("disruptionsAllowed"));
        if !is_ready(pod) && (policy == "AlwaysAllow" || (healthy >= desired && desired > 0)) {
            return Ok(());
        }
        let budget_name = meta::name(&budget).to_owned();
        if n("observedGeneration") < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
            let text = "Cannot evict pod as it would violate the pod's disruption budget.";
            let why = format!("The disruption budget {budget_name} is still being processed by the server.");
            return Err(Status::too_many_requests(text, 10).cause("DisruptionBudget", &why, ""));
        }
        if allowed <= 0 {
            let text = "Cannot evict pod as it would violate the pod's disruption budget.";
            let why =
                format!("The disruption budget {budget_name} needs {desired} healthy pods and has {healthy} currently");
            return Err(Status::new(429, "TooManyRequests", text).cause("DisruptionBudget", &why, ""));
        }
        budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
        if !budget["status"]["disruptedPods"].is_object() {
            budget["status"]["disruptedPods"] = json!({});
        }
        budget["status"]["disruptedPods"][meta::name(pod)] = crate::verbs::write::now().into();
        if dry_run {
            return Ok(());
        }
        let op = Op::Put(object::encode(&budget));
        match budgets.store.commit(&stored.key, Compare::At(stored.revision), op).await {
            Ok(_) => return Ok(()),
            Err(Error::Conflict { .. }) => {}
            Err(e) => return Err(storage_error(e)),
        }
    }
    Err(Status::too_many_requests("Cannot evict pod: its disruption budget changes too quickly", 1))
}
