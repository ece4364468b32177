//! Kinds that run pods from a template: Deployment, ReplicaSet, ReplicationController, StatefulSet, DaemonSet, Job,
//! CronJob, and the records PodTemplate and ControllerRevision.
//!
//! Here: what they share. Each has a file of its own.

mod cronjob;
mod daemonset;
mod deployment;
mod job;
mod job_status;
mod job_update;
mod records;
mod replicas;
mod statefulset;

use serde_json::{Map, Value};

use super::Traits;
use super::check::{label_selector, not_negative, selects_all, text, usable_selector};
use super::pod::{default_template, validate_template};
use crate::invalid::Errors;
use crate::path::Path;
use crate::selector::LabelSelector;

pub(super) use cronjob::CronJob;
pub(super) use daemonset::DaemonSet;
pub(super) use deployment::Deployment;
pub(super) use job::Job;
pub(super) use records::{ControllerRevision, PodTemplate};
pub(super) use replicas::{ReplicaSet, ReplicationController};
pub(super) use statefulset::StatefulSet;

const T: Traits = Traits { generation: true, status: true, ..Traits::DEFAULT };
const MISMATCH: &str = "`selector` does not match template `labels`";
const ABOVE_REPLICAS: &str = "cannot be greater than status.replicas";

/// Defaults of `spec.template`.
fn default_spec_template(spec: &mut Map<String, Value>) {
    if let Some(t) = spec.get_mut("template") {
        default_template(t);
    }
}

/// Checks `spec.selector`; `empty_text` says why an empty one is refused. Answers the selector, unless it is malformed,
/// which is reported in the words given.
fn selector(obj: &Value, empty_text: &str, malformed: &str, errors: &mut Errors) -> Option<LabelSelector> {
    let spec = Path::new("spec");
    let at = spec.child("selector");
    let s = &obj["spec"]["selector"];
    if s.is_null() {
        errors.required(&at, "");
    } else {
        label_selector(s, &at, errors);
        if selects_all(s) {
            errors.invalid(&at, s.clone(), empty_text);
        }
    }
    let usable = usable_selector(s);
    if usable.is_none() {
        errors.invalid(&at, s.clone(), malformed);
    }
    usable
}

/// Refuses template labels that the selector does not match.
fn labels_match(selector: &LabelSelector, template: &Value, path: &Path<'_>, errors: &mut Errors) {
    let labels = &template["metadata"]["labels"];
    if !selector.is_everything() && !selector.matches(labels) {
        let m = path.child("metadata");
        errors.invalid(&m.child("labels"), labels.clone(), MISMATCH);
    }
}

/// What a template of pods that are replaced for ever must keep to; `kind` is named in the text.
fn runs_for_ever(template: &Value, kind: &str, path: &Path<'_>, errors: &mut Errors) {
    let spec = path.child("spec");
    let policy = text(&template["spec"], "restartPolicy");
    if policy != "Always" {
        errors.not_supported(&spec.child("restartPolicy"), policy, &["Always"]);
    }
    if !template["spec"]["activeDeadlineSeconds"].is_null() {
        let why = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.forbidden(&spec.child("activeDeadlineSeconds"), why);
    }
}

/// Checks selector and template of a Deployment or ReplicaSet.
fn replicated(obj: &Value, errors: &mut Errors) {
    let found = selector(obj, "empty selector is invalid for deployment", "invalid label selector", errors);
    if let Some(s) = found {
        let spec = Path::new("spec");
        let at = spec.child("template");
        let template = &obj["spec"]["template"];
        labels_match(&s, template, &at, errors);
        validate_template(template, &at, errors);
        runs_for_ever(template, "ReplicaSet", &at, errors);
    }
}

/// Warnings about `spec.template`.
/// Warnings about the template of a new object, or of one whose desired state is another than before.
fn template_warnings(new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
    if another(new, old) {
        let spec = Path::new("spec");
        super::pod::template_warnings(&new["spec"]["template"], &spec.child("template"), out);
    }
}

/// Whether the object is new, or its generation is.
fn another(new: &Value, old: Option<&Value>) -> bool {
    old.is_none_or(|o| o["metadata"]["generation"] != new["metadata"]["generation"])
}

fn count(status: &Value, key: &str) -> i64 {
    status[key].as_i64().unwrap_or(0)
}

/// Checks the counters of a status: none below zero, and each of `parts` at most `replicas`; the available ones at most
/// the ready ones (`ready_text`).
fn status_counts(status: &Value, counters: &[&str], parts: &[&str], ready_text: &str, errors: &mut Errors) {
    let path = Path::new("status");
    not_negative(status, counters, &path, errors);
    for k in parts {
        if count(status, k) > count(status, "replicas") {
            errors.invalid(&path.child(k), count(status, k), ABOVE_REPLICAS);
        }
    }
    if !ready_text.is_empty() && count(status, "availableReplicas") > count(status, "readyReplicas") {
        errors.invalid(&path.child("availableReplicas"), count(status, "availableReplicas"), ready_text);
    }
}

/// Refuses a collision counter that goes back.
fn collisions_grow(new: &Value, old: &Value, errors: &mut Errors) {
    let (n, o) = (new["status"]["collisionCount"].as_i64(), old["status"]["collisionCount"].as_i64());
    if o.is_some_and(|o| n.is_none_or(|n| n < o)) {
        let path = Path::new("status");
        errors.invalid(&path.child("collisionCount"), n.unwrap_or(0), "cannot be decremented");
    }
}
