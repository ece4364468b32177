//! ResourceQuota: what a write adds is held against the quotas of its namespace, and added to what they say is used.
//!
//! A quota counts where its status says both how much there may be and how much there is: a quota whose status nobody
//! has filled in yet bounds nothing (upstream refuses every write until its controller has).

use std::collections::BTreeMap;

use serde_json::{Value, json};
use skiff_core::kinds::pod_totals::{Amounts, amounts};
use skiff_core::meta;
use skiff_core::quantity::{Format, Quantity};
use skiff_core::quota::{in_scope, usage};
use skiff_core::status::Status;
use skiff_storage::{Compare, Error, Op};

use super::{Operation, Review, in_namespace};
use crate::registry::{object, storage_error};

/// How often a quota that somebody else changes at the same time is read again.
const TRIES: usize = 16;

/// Checks a write, and books it unless it is a dry run.
///
/// # Errors
/// 403 naming the quota and what is exceeded.
pub(super) async fn admit(r: &Review<'_>, obj: &Value, dry_run: bool) -> Result<(), Status> {
    let counted = r.subresource().is_empty() || r.subresource() == "resize";
    if !r.kind.resource.namespaced || !counted || r.operation == Operation::Delete {
        return Ok(());
    }
    let ns = &r.call.target.namespace;
    let quotas = in_namespace(r, "", "resourcequotas", ns)?;
    if quotas.is_empty() {
        return Ok(());
    }
    let whole = usage(r.kind.group(), r.kind.plural(), obj);
    let rise = r.old.map(|old| difference(&whole, &usage(r.kind.group(), r.kind.plural(), old)));
    let pods = r.is("", "pods");
    for quota in quotas.iter().filter(|q| in_scope(&q["spec"], pods, obj)) {
        // What was not in the quota's scope before comes into it as a whole.
        let delta = match (&rise, r.old) {
            (Some(rise), Some(old)) if in_scope(&quota["spec"], pods, old) => rise,
            _ => &whole,
        };
        let asked = within(quota, delta);
        if asked.is_empty() {
            continue;
        }
        if r.operation == Operation::Create && pods {
            specified(r, quota, obj)?;
        }
        fits(r, quota, &asked, obj)?;
        if !dry_run {
            book(r, meta::name(quota), &asked, obj).await?;
        }
    }
    Ok(())
}

/// What is more now than before.
fn difference(new: &Amounts, old: &Amounts) -> Amounts {
    let zero = Quantity::from_i64(0, Format::DecimalSi);
    let rise = new.iter().map(|(k, q)| (k.clone(), q.sub(old.get(k).unwrap_or(&zero))));
    rise.filter(|(_, q)| q.sign() > 0).collect()
}

/// The part of `delta` that a quota's status bounds.
fn within(quota: &Value, delta: &Amounts) -> Amounts {
    let known = |k: &str| ["hard", "used"].iter().all(|s| quota["status"][*s].get(k).is_some());
    delta.iter().filter(|(k, _)| known(k)).map(|(k, q)| (k.clone(), q.clone())).collect()
}

/// Where a quota bounds a resource of containers, each container must say how much of it it wants.
fn specified(r: &Review<'_>, quota: &Value, obj: &Value) -> Result<(), Status> {
    let hard = quota["status"]["hard"].as_object();
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let containers = || {
        let all = ["containers", "initContainers"].into_iter();
        all.flat_map(|l| obj["spec"][l].as_array().into_iter().flatten())
    };
    for name in hard.into_iter().flatten().map(|(k, _)| k.as_str()) {
        let (sort, resource) = match name.split_once('.') {
            Some((sort @ ("requests" | "limits"), resource)) => (sort, resource),
            None if matches!(name, "cpu" | "memory") => ("requests", name),
            _ => continue,
        };
        if !matches!(resource, "cpu" | "memory") || obj["spec"]["resources"][sort].get(resource).is_some() {
            continue;
        }
        for c in containers().filter(|c| c["resources"][sort].get(resource).is_none()) {
            missing.entry(name).or_default().push(c["name"].as_str().unwrap_or_default());
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let parts: Vec<String> = missing.iter().map(|(k, who)| format!("{k} for: {}", who.join(","))).collect();
    let why = format!("failed quota: {}: must specify {}", meta::name(quota), parts.join("; "));
    Err(r.forbidden(obj, why))
}

fn shown(all: &BTreeMap<&str, Quantity>) -> String {
    all.iter().map(|(k, q)| format!("{k}={q}")).collect::<Vec<_>>().join(",")
}

fn fits(r: &Review<'_>, quota: &Value, asked: &Amounts, obj: &Value) -> Result<(), Status> {
    let (hard, used) = (amounts(&quota["status"]["hard"]), amounts(&quota["status"]["used"]));
    let (mut more, mut have, mut max) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (k, q) in asked {
        if let (Some(h), Some(u)) = (hard.get(k), used.get(k))
            && u.add(q) > *h
            && q.sign() > 0
        {
            more.insert(k.as_str(), q.clone());
            have.insert(k.as_str(), u.clone());
            max.insert(k.as_str(), h.clone());
        }
    }
    if more.is_empty() {
        return Ok(());
    }
    let name = meta::name(quota);
    let (more, have, max) = (shown(&more), shown(&have), shown(&max));
    Err(r.forbidden(obj, format!("exceeded quota: {name}, requested: {more}, used: {have}, limited: {max}")))
}

/// Adds what was admitted to what the quota says is used.
async fn book(r: &Review<'_>, name: &str, asked: &Amounts, obj: &Value) -> Result<(), Status> {
    let quotas = r.server.collection("", "resourcequotas")?;
    for _ in 0..TRIES {
        let Some(found) = quotas.get(&r.call.target.namespace, name).await? else { return Ok(()) };
        let mut quota: Value = serde_json::from_slice(&found.value).map_err(Status::internal)?;
        let asked = within(&quota, asked);
        fits(r, &quota, &asked, obj)?;
        let used = amounts(&quota["status"]["used"]);
        for (k, q) in &asked {
            let sum = used.get(k).map_or_else(|| q.clone(), |u| u.add(q));
            quota["status"]["used"][k] = json!(sum.to_string());
        }
        let payload = object::encode(&quota);
        match quotas.store.commit(&found.key, Compare::At(found.revision), Op::Put(payload)).await {
            Ok(_) => return Ok(()),
            Err(Error::Conflict { .. }) => {}
            Err(e) => return Err(storage_error(e)),
        }
    }
    Err(Status::conflict("", "resourcequotas", name, "the quota is changed by others all the time"))
}
