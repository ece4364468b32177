//! `pods/eviction`: deletion that respects disruption budgets.

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_core::meta;
use skiff_core::resources::Subresource;
use skiff_core::selector::LabelSelector;
use skiff_core::status::Status;
use skiff_storage::{Compare, Error, Object, Op};

use crate::admission::{self, Operation};
use crate::registry::{Kind, object, storage_error};
use crate::server::Inner;
use crate::verbs::create::settle_namespace;
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
    settle_namespace(kind, call, &mut obj)?;
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
    let client_says = !delete_options["preconditions"]["resourceVersion"].is_null();
    let mut budget = None;
    let mut tries = 0;
    loop {
        let pod_object = kind.stored()?.get(&ns, &name).await?.ok_or_else(|| kind.not_found(&name))?;
        let pod = kind.load(&pod_object)?;
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        // A pod that may go because of what it is at this moment must still be that when it is deleted.
        let as_it_is = if may_go_anyway(&pod) {
            !meta::deleting(&pod) && phase == "Pending"
        } else if budget.is_none() {
            let taken = take_from_budget(server, &ns, &pod, dry_run).await?;
            let as_it_is = matches!(taken, Taken::Unhealthy(_));
            budget = Some(taken);
            as_it_is
        } else {
            false
        };
        let agrees = |key: &str, is: &str| {
            let wanted = &delete_options["preconditions"][key];
            wanted.is_null() || wanted == is
        };
        // A deletion that will be refused leaves the pod as it is.
        let version = pod_object.revision.to_string();
        if dry_run || !agrees("uid", meta::uid(&pod)) || !agrees("resourceVersion", &version) {
            break;
        }
        match mark(kind, &pod_object, pod).await? {
            Some(revision) => {
                if as_it_is || client_says {
                    delete_options["preconditions"]["resourceVersion"] = revision.to_string().into();
                }
                break;
            }
            None if tries < crate::verbs::update::RACE_TRIES => {
                tries += 1;
                // What an unhealthy pod was let go for may have changed; an eviction that was taken stays taken.
                budget = budget.filter(|t| matches!(t, Taken::Counted));
            }
            None => return Err(Status::modified(kind.group(), kind.plural(), &name)),
        }
    }
    if dry_run {
        delete_options["dryRun"] = json!(["All"]);
    }
    delete_options["kind"] = "DeleteOptions".into();
    delete_options["apiVersion"] = "v1".into();
    call.body = serde_json::to_vec(&delete_options).unwrap_or_default().into();
    call.headers.insert("content-type", http::HeaderValue::from_static("application/json"));
    let deleted = delete::delete(server, kind, call).await;
    if let (Err(e), Some(Taken::Unhealthy(name)), false) = (&deleted, &budget, client_says)
        && e.code == 409
    {
        return Err(processing(name));
    }
    drop(deleted?);
    Ok(Answer::status(
        201,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

/// Why a pod may go.
enum Taken {
    /// No budget is about it, or one spares it.
    Counted,
    /// It does not answer, and the budget of this name does without it.
    Unhealthy(String),
}

/// Tells on the pod that it is evicted, for those who look at why it ended. None when somebody changed it meanwhile.
async fn mark(kind: &Kind, stored: &Object, mut pod: Value) -> Result<Option<u64>, Status> {
    let list = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let known = list.iter().any(|c| c["type"] == "DisruptionTarget" && c["status"] == "True");
    if known || meta::deleting(&pod) {
        return Ok(Some(stored.revision));
    }
    let mut list: Vec<Value> = list.into_iter().filter(|c| c["type"] != "DisruptionTarget").collect();
    let mut condition = json!({
        "type": "DisruptionTarget", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": crate::verbs::write::now(),
        "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
    });
    if let Some(generation) = pod["metadata"]["generation"].as_i64() {
        condition["observedGeneration"] = generation.into();
    }
    list.push(condition);
    pod["status"]["conditions"] = list.into();
    let op = Op::Put(object::encode(&pod));
    match kind.stored()?.store.commit(&stored.key, Compare::At(stored.revision), op).await {
        Ok(revision) => Ok(Some(revision)),
        Err(Error::Conflict { .. }) => Ok(None),
        Err(e) => Err(storage_error(e)),
    }
}

/// Finished, pending and terminating pods disturb nobody.
fn may_go_anyway(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending")) || meta::deleting(pod)
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// The sentence that says no.
const VIOLATES: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
/// Evictions that a budget remembers at most.
const EVICTED_MAX: usize = 2000;

fn processing(budget: &str) -> Status {
    let why = format!("The disruption budget {budget} is still being processed by the server.");
    Status::too_many_requests(VIOLATES, 10).cause("DisruptionBudget", &why, "")
}

/// Why a budget allows nothing.
fn refusal(budget: &Value) -> String {
    let name = meta::name(budget);
    let n = |k: &str| budget["status"][k].as_i64().unwrap_or(0);
    let conditions = budget["status"]["conditions"].as_array();
    let told = conditions.into_iter().flatten().find(|c| c["type"] == "DisruptionAllowed" && c["status"] == "False");
    match told.filter(|c| c["reason"] == "SyncFailed") {
        Some(c) => {
            let why = c["message"].as_str().unwrap_or_default();
            format!("The disruption budget {name} does not allow evicting pods currently because it failed sync: {why}")
        }
        None => {
            let (desired, healthy) = (n("desiredHealthy"), n("currentHealthy"));
            format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently")
        }
    }
}

async fn take_from_budget(server: &Arc<Inner>, ns: &str, pod: &Value, dry_run: bool) -> Result<Taken, Status> {
    let budgets = server.collection("policy", "poddisruptionbudgets")?;
    let mut last = String::new();
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
        let Some((stored, mut budget)) = hits.pop() else { return Ok(Taken::Counted) };
        let policy = budget["spec"]["unhealthyPodEvictionPolicy"].as_str().unwrap_or("IfHealthyBudget").to_owned();
        let n = |k: &str| budget["status"][k].as_i64().unwrap_or(0);
        let (healthy, desired, allowed) = (n("currentHealthy"), n("desiredHealthy"), n("disruptionsAllowed"));
        let budget_name = meta::name(&budget).to_owned();
        if !is_ready(pod) && (policy == "AlwaysAllow" || (healthy >= desired && desired > 0)) {
            return Ok(Taken::Unhealthy(budget_name));
        }
        if n("observedGeneration") < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
            return Err(processing(&budget_name));
        }
        let forbidden = |why| Err(Status::forbidden("policy", "poddisruptionbudget", &budget_name, why));
        if allowed < 0 {
            return forbidden("pdb disruptions allowed is negative");
        }
        if budget["status"]["disruptedPods"].as_object().is_some_and(|m| m.len() > EVICTED_MAX) {
            return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
        }
        if allowed == 0 {
            let no = Status::new(429, "TooManyRequests", VIOLATES);
            return Err(no.cause("DisruptionBudget", &refusal(&budget), ""));
        }
        if dry_run {
            return Ok(Taken::Counted);
        }
        budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
        if allowed == 1 {
            exhaust(&mut budget);
        }
        if !budget["status"]["disruptedPods"].is_object() {
            budget["status"]["disruptedPods"] = json!({});
        }
        budget["status"]["disruptedPods"][meta::name(pod)] = crate::verbs::write::now().into();
        let op = Op::Put(object::encode(&budget));
        match budgets.store.commit(&stored.key, Compare::At(stored.revision), op).await {
            Ok(_) => return Ok(Taken::Counted),
            Err(Error::Conflict { .. }) => last = budget_name,
            Err(e) => return Err(storage_error(e)),
        }
    }
    Err(Status::timeout(format!("couldn't update PodDisruptionBudget {last:?} due to conflicts"), 10))
}

/// Says in the condition that nothing more is allowed.
fn exhaust(budget: &mut Value) {
    let generation = budget["status"]["observedGeneration"].clone();
    let Some(list) = budget["status"]["conditions"].as_array_mut() else { return };
    for c in list.iter_mut().filter(|c| c["type"] == "DisruptionAllowed" && c["status"] != "False") {
        c["status"] = "False".into();
        c["reason"] = "InsufficientPods".into();
        c["observedGeneration"] = generation.clone();
        c["lastTransitionTime"] = crate::verbs::write::now().into();
    }
}
