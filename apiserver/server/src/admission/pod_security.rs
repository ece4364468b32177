//! PodSecurity: the labels of a namespace say at which level its pods are refused, warned of or audited.
//!
//! Pods are refused; what makes pods (Deployments and so on) is only warned of, because the pods are refused later. A
//! namespace that gets a stricter level hears of the pods that break it. Nobody is exempt. What breaks the audit level is an
//! annotation in the audit log.

use std::collections::BTreeMap;

use serde_json::Value;
use skiff_core::invalid::Errors;
use skiff_core::kinds::security_levels::{Level, Standard, details, reasons, violations};
use skiff_core::meta;
use skiff_core::path::Path;
use skiff_core::status::Status;

use super::{Operation, Review};
use crate::audit::annotate;

const PREFIX: &str = "pod-security.kubernetes.io/";
/// How many pods of a namespace are looked at when its level changes.
const PODS_MAX: usize = 3000;

/// What a namespace asks for.
#[derive(Debug, PartialEq)]
struct Policy {
    enforce: Standard,
    warn: Standard,
    audit: Standard,
}

/// Reads the labels. Values that cannot be read are reported; the strictest is enforced then.
fn policy(labels: &Value, errors: &mut Errors) -> Policy {
    let metadata = Path::new("metadata");
    let at = metadata.child("labels");
    let mut read = |mode: &str, broken: Level| {
        let (level_key, version_key) = (format!("{PREFIX}{mode}"), format!("{PREFIX}{mode}-version"));
        let (level, version) = (labels[&level_key].as_str(), labels[&version_key].as_str());
        let mut standard = Standard::PRIVILEGED;
        if let Some(l) = level {
            standard.level = Level::parse(l).unwrap_or_else(|| {
                errors.invalid(&at.key(&level_key), l, "must be one of privileged, baseline, restricted");
                broken
            });
        }
        if let Some(v) = version {
            standard.minor = Standard::parse_minor(v).unwrap_or_else(|| {
                errors.invalid(&at.key(&version_key), v, "must be \"latest\" or \"v1.x\"");
                None
            });
        }
        (standard, level.is_some())
    };
    let (enforce, _) = read("enforce", Level::Restricted);
    let (audit, _) = read("audit", Level::Privileged);
    let (mut warn, given) = read("warn", Level::Privileged);
    // What will be refused is warned of.
    if !given && enforce.level > warn.level {
        warn = enforce;
    }
    Policy { enforce, warn, audit }
}

/// The template of an object that makes pods.
fn template<'a>(r: &Review<'_>, obj: &'a Value) -> Option<&'a Value> {
    let t = match (r.kind.group(), r.kind.plural()) {
        ("", "podtemplates") => &obj["template"],
        ("batch", "cronjobs") => &obj["spec"]["jobTemplate"]["spec"]["template"],
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => &obj["spec"]["template"],
        _ => return None,
    };
    t.is_object().then_some(t)
}

/// Whether an update of a pod changes something that the standards look at: containers and their images.
fn significant(new: &Value, old: &Value) -> bool {
    let view = |v: &Value| -> Vec<(Value, Value)> {
        let lists = ["initContainers", "containers", "ephemeralContainers"];
        let all = lists.iter().flat_map(|l| v["spec"][*l].as_array().into_iter().flatten());
        all.map(|c| (c["name"].clone(), c["image"].clone())).collect()
    };
    view(new) != view(old) || new["metadata"]["annotations"] != old["metadata"]["annotations"]
}

/// Checks a write; what is only warned of goes to `warnings`.
///
/// # Errors
/// 403 for a pod that breaks the enforced level, 422 for labels that cannot be read.
pub(super) fn check(r: &Review<'_>, obj: &Value, warnings: &mut Vec<String>) -> Result<(), Status> {
    if r.operation == Operation::Delete {
        return Ok(());
    }
    if r.is("", "namespaces") {
        return if r.subresource().is_empty() { namespace(r, obj, warnings) } else { Ok(()) };
    }
    let pod = r.is("", "pods");
    let subject = if pod {
        if !matches!(r.subresource(), "" | "ephemeralcontainers" | "resize") {
            return Ok(());
        }
        if r.old.is_some_and(|o| !significant(obj, o)) {
            return Ok(());
        }
        obj
    } else {
        match template(r, obj) {
            Some(t) if r.subresource().is_empty() => t,
            _ => return Ok(()),
        }
    };
    let Some(ns) = r.server.peek("", "namespaces", "", &r.call.target.namespace) else { return Ok(()) };
    let policy = policy(&ns["metadata"]["labels"], &mut Errors::new());
    let broken = violations(policy.audit, subject);
    if !broken.is_empty() {
        let said = format!("would violate PodSecurity \"{}\": {}", policy.audit, details(&broken));
        annotate(format!("{PREFIX}audit-violations"), said);
    }
    if pod {
        annotate(format!("{PREFIX}enforce-policy"), policy.enforce.to_string());
        let broken = violations(policy.enforce, subject);
        if !broken.is_empty() {
            let why = format!("violates PodSecurity \"{}\": {}", policy.enforce, details(&broken));
            return Err(r.forbidden(obj, why));
        }
    }
    let broken = violations(policy.warn, subject);
    if !broken.is_empty() {
        warnings.push(format!("would violate PodSecurity \"{}\": {}", policy.warn, details(&broken)));
    }
    Ok(())
}

fn namespace(r: &Review<'_>, obj: &Value, warnings: &mut Vec<String>) -> Result<(), Status> {
    let mut errors = Errors::new();
    let new = policy(&obj["metadata"]["labels"], &mut errors);
    let before = r.old.map(|o| {
        let mut errors = Errors::new();
        (policy(&o["metadata"]["labels"], &mut errors), errors)
    });
    // Labels that were accepted once may stay.
    let known = before.as_ref().is_some_and(|(_, old)| errors.0.iter().all(|e| old.0.contains(e)));
    if !errors.is_empty() && !known {
        return Err(Status::invalid("", "Namespace", meta::name(obj), &errors));
    }
    let Some((old, _)) = before else { return Ok(()) };
    let looser = new.enforce.minor == old.enforce.minor && new.enforce.level <= old.enforce.level;
    if new.enforce.level == Level::Privileged || looser {
        return Ok(());
    }
    existing(r, meta::name(obj), new.enforce, warnings)
}

/// Warns of the pods that a namespace's new level would not let in.
fn existing(r: &Review<'_>, ns: &str, standard: Standard, warnings: &mut Vec<String>) -> Result<(), Status> {
    let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for pod in super::in_namespace(r, "", "pods", ns)?.into_iter().take(PODS_MAX) {
        let broken = violations(standard, &pod);
        if !broken.is_empty() {
            let entry = found.entry(reasons(&broken)).or_insert_with(|| (meta::name(&pod).to_owned(), 0));
            entry.1 += 1;
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    warnings
        .push(format!("existing pods in namespace \"{ns}\" violate the new PodSecurity enforce level \"{standard}\""));
    let mut lines: Vec<String> = found
        .into_iter()
        .map(|(why, (name, count))| match count {
            1 => format!("{name}: {why}"),
            2 => format!("{name} (and 1 other pod): {why}"),
            n => format!("{name} (and {} other pods): {why}", n - 1),
        })
        .collect();
    lines.sort();
    warnings.extend(lines);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels() {
        let of = |labels: Value| {
            let mut e = Errors::new();
            (policy(&labels, &mut e), e.len())
        };
        let baseline = Standard { level: Level::Baseline, minor: None };
        assert_eq!(
            of(json!({})),
            (Policy { enforce: Standard::PRIVILEGED, warn: Standard::PRIVILEGED, audit: Standard::PRIVILEGED }, 0)
        );
        let (p, n) = of(json!({"pod-security.kubernetes.io/enforce": "baseline"}));
        assert_eq!((p, n), (Policy { enforce: baseline, warn: baseline, audit: Standard::PRIVILEGED }, 0));
        let (p, n) =
            of(json!({"pod-security.kubernetes.io/enforce": "x", "pod-security.kubernetes.io/warn-version": "y"}));
        assert_eq!((p.enforce.level, n), (Level::Restricted, 2));
    }
}
