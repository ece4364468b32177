//! LimitRanger: the LimitRanges of a namespace fill in what containers leave open, and bound what pods and claims ask
//! for.

use serde_json::{Value, json};
use skiff_core::kinds::pod_totals::{Amounts, amounts, totals};
use skiff_core::meta;
use skiff_core::quantity::Quantity;
use skiff_core::status::Status;

use super::{Operation, Review, in_namespace};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The single limits of a namespace, in the order of the objects' names.
fn limits(r: &Review<'_>) -> Result<Vec<Value>, Status> {
    let applies = r.subresource().is_empty()
        && match r.operation {
            Operation::Create => r.is("", "pods") || r.is("", "persistentvolumeclaims"),
            Operation::Update => r.is("", "persistentvolumeclaims"),
            Operation::Delete | Operation::Connect => false,
        };
    if !applies {
        return Ok(vec![]);
    }
    let all = in_namespace(r, "", "limitranges", &r.call.target.namespace)?;
    Ok(all.into_iter().filter_map(|mut l| l["spec"]["limits"].as_array_mut().map(std::mem::take)).flatten().collect())
}

/// Fills in requests and limits of containers.
pub(super) fn fill(r: &Review<'_>, obj: &mut Value) -> Result<(), Status> {
    if !r.is("", "pods") {
        return Ok(());
    }
    let mut defaults = [("requests", "defaultRequest", json!({})), ("limits", "default", json!({}))];
    for l in limits(r)?.iter().filter(|l| l["type"] == "Container") {
        for (_, from, all) in &mut defaults {
            for (k, v) in l[*from].as_object().into_iter().flatten() {
                all[k] = v.clone();
            }
        }
    }
    let mut notes = vec![];
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        for c in obj["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let name = c["name"].as_str().unwrap_or_default().to_owned();
            for (sort, _, wanted) in &defaults {
                let mut set = vec![];
                for (k, v) in wanted.as_object().into_iter().flatten() {
                    if c["resources"][*sort].get(k).is_none() {
                        if !c["resources"][*sort].is_object() {
                            c["resources"][*sort] = json!({});
                        }
                        c["resources"][*sort][k] = v.clone();
                        set.push(k.as_str());
                    }
                }
                if !set.is_empty() {
                    let one = sort.trim_end_matches('s');
                    notes.push(format!("{} {one} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        let a = meta::meta_mut(obj).entry("annotations").or_insert_with(|| json!({}));
        a[ANNOTATION] = format!("LimitRanger plugin set: {}", notes.join("; ")).into();
    }
    Ok(())
}

/// Checks the bounds.
///
/// # Errors
/// 403 naming every bound that is broken.
pub(super) fn check(r: &Review<'_>, obj: &Value) -> Result<(), Status> {
    let mut faults: Vec<String> = vec![];
    let spec = &obj["spec"];
    for l in limits(r)? {
        let kind = l["type"].as_str().unwrap_or_default();
        if r.is("", "pods") {
            match kind {
                "Container" => {
                    for c in
                        ["containers", "initContainers"].iter().flat_map(|k| spec[*k].as_array().into_iter().flatten())
                    {
                        let (asked, bound) = (amounts(&c["resources"]["requests"]), amounts(&c["resources"]["limits"]));
                        bounds(&l, kind, &asked, &bound, &mut faults);
                    }
                }
                "Pod" => bounds(&l, kind, &totals(spec, "requests"), &totals(spec, "limits"), &mut faults),
                _ => {}
            }
        } else if kind == "PersistentVolumeClaim" {
            let asked = amounts(&spec["resources"]["requests"]);
            for (k, min) in amounts(&l["min"]) {
                minimum(kind, &k, &min, asked.get(&k), None, &mut faults);
            }
            for (k, max) in amounts(&l["max"]) {
                match asked.get(&k) {
                    None => faults.push(format!("maximum {k} usage per {kind} is {max}.  No request is specified")),
                    Some(q) if *q > max => {
                        faults.push(format!("maximum {k} usage per {kind} is {max}, but request is {q}"));
                    }
                    Some(_) => {}
                }
            }
        }
    }
    // One complaint said twice is said once.
    let mut seen = vec![];
    faults.retain(|f| {
        let new = !seen.contains(f);
        seen.push(f.clone());
        new
    });
    match faults.as_slice() {
        [] => Ok(()),
        [one] => Err(r.forbidden(obj, one)),
        many => Err(r.forbidden(obj, format!("[{}]", many.join(", ")))),
    }
}

fn bounds(l: &Value, kind: &str, asked: &Amounts, bound: &Amounts, faults: &mut Vec<String>) {
    for (k, min) in amounts(&l["min"]) {
        minimum(kind, &k, &min, asked.get(&k), bound.get(&k), faults);
    }
    for (k, max) in amounts(&l["max"]) {
        let what = format!("maximum {k} usage per {kind} is {max}");
        match bound.get(&k) {
            None => faults.push(format!("{what}.  No limit is specified")),
            Some(q) if *q > max => faults.push(format!("{what}, but limit is {q}")),
            Some(_) => {
                if let Some(q) = asked.get(&k).filter(|q| **q > max) {
                    faults.push(format!("{what}, but request is {q}"));
                }
            }
        }
    }
    for (k, max) in amounts(&l["maxLimitRequestRatio"]) {
        let what = format!("{k} max limit to request ratio per {kind} is {max}");
        let Some(asked) = asked.get(&k).filter(|q| !q.is_zero()) else {
            faults.push(format!("{what}, but no request is specified or request is 0"));
            continue;
        };
        let Some(bound) = bound.get(&k).filter(|q| !q.is_zero()) else {
            faults.push(format!("{what}, but no limit is specified or limit is 0"));
            continue;
        };
        let ratio = number(bound) / number(asked);
        if ratio > number(&max) {
            faults.push(format!("{what}, but provided ratio is {ratio:.6}"));
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "upstream compares ratios as floats too")]
fn number(q: &Quantity) -> f64 {
    q.millis() as f64 / 1000.0
}

fn minimum(
    kind: &str,
    name: &str,
    min: &Quantity,
    asked: Option<&Quantity>,
    bound: Option<&Quantity>,
    faults: &mut Vec<String>,
) {
    let what = format!("minimum {name} usage per {kind} is {min}");
    match asked {
        None => faults.push(format!("{what}.  No request is specified")),
        Some(q) if q < min => faults.push(format!("{what}, but request is {q}")),
        Some(_) => {
            if let Some(q) = bound.filter(|q| *q < min) {
                faults.push(format!("{what}, but limit is {q}"));
            }
        }
    }
}
