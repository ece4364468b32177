//! Job: defaults, the generated selector, validation of new ones. Updates and statuses have files of their own.

use serde_json::{Map, Value, json};

use super::{MISMATCH, T, another, default_spec_template, job_status, job_update};
use crate::invalid::Errors;
use crate::kinds::check::{complain, given, label_selector, list, not_negative, one_of, text, usable_selector};
use crate::kinds::defaults::{each, object, set};
use crate::kinds::pod::{template_warnings, validate_template};
use crate::kinds::{Strategy, Traits, reset_status};
use crate::meta;
use crate::names;
use crate::path::Path;

const UID: &str = "batch.kubernetes.io/controller-uid";
const NAME: &str = "batch.kubernetes.io/job-name";
const OLD_UID: &str = "controller-uid";
const OLD_NAME: &str = "job-name";
/// Beyond so many completions the rules of indexed Jobs are stricter.
const MANY: i64 = 100_000;

/// Rules of Jobs.
pub(in crate::kinds) struct Job;

impl Strategy for Job {
    fn traits(&self) -> &Traits {
        const J: Traits = Traits { orphan_by_default: true, ..T };
        &J
    }

    fn default(&self, obj: &mut Value) {
        let labels = obj["spec"]["template"]["metadata"]["labels"].clone();
        if let Some(spec) = object(obj, "spec") {
            default_spec(spec);
        }
        if labels.is_object() {
            own_labels(obj, labels);
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        reset_status(obj);
        meta::meta_mut(obj).insert("generation".into(), 1.into());
        if obj["spec"]["manualSelector"] != true {
            generate_selector(obj);
        }
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = &obj["spec"];
        if spec["manualSelector"] != true {
            generated_selector(obj, errors);
        }
        validate_spec(spec, &path, errors);
        validate_selector(spec, errors);
        let completions = spec["completions"].as_i64().unwrap_or(0);
        if indexed(spec) && completions > 0 {
            let name = meta::name(obj);
            let pod = format!("{name}-{}", completions - 1);
            if !names::is_dns1123_label(&pod).is_empty() {
                let m = Path::new("metadata");
                let why = format!("will not able to create pod with invalid DNS label: {pod}");
                errors.invalid(&m.child("name"), name, why);
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        validate_spec(&new["spec"], &Path::new("spec"), errors);
        validate_selector(&new["spec"], errors);
        job_update::validate(new, old, errors);
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut Errors) {
        job_status::validate(new, old, errors);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        if old.is_none() {
            name_warning(new, out);
        }
        if another(new, old) {
            spec_warnings(&new["spec"], &Path::new("spec"), out);
        }
    }

    fn deletion_warning(&self) -> Option<&'static str> {
        Some(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning",
        )
    }

    fn fields(&self) -> &'static [&'static str] {
        &["status.successful"]
    }

    fn unsupported_field(&self, field: &str, _r: &crate::resources::Resource) -> Option<String> {
        let known = matches!(field, "metadata.name" | "metadata.namespace" | "status.successful");
        (!known).then(|| format!("field label {} not supported for Job", crate::invalid::quote_str(field)))
    }

    fn field(&self, obj: &Value, _name: &str) -> String {
        obj["status"]["succeeded"].as_i64().unwrap_or(0).to_string()
    }
}

fn default_spec(spec: &mut Map<String, Value>) {
    if spec.get("completions").is_none_or(Value::is_null) && spec.get("parallelism").is_none_or(Value::is_null) {
        spec.insert("completions".into(), 1.into());
        spec.insert("parallelism".into(), 1.into());
    }
    set(spec, "parallelism", 1);
    let own_limit = spec.get("backoffLimitPerIndex").is_some();
    set(spec, "backoffLimit", if own_limit { i64::from(i32::MAX) } else { 6 });
    set(spec, "completionMode", "NonIndexed");
    set(spec, "suspend", false);
    set(spec, "manualSelector", false);
    let failed = spec.get("podFailurePolicy").is_some_and(|p| !p.is_null());
    set(spec, "podReplacementPolicy", if failed { "Failed" } else { "TerminatingOrFailed" });
    if let Some(policy) = spec.get_mut("podFailurePolicy") {
        for rule in policy.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten() {
            for c in each(rule, "onPodConditions") {
                crate::kinds::defaults::set_text(c, "status", "True");
            }
        }
    }
    default_spec_template(spec);
}

/// A Job without labels has those of its pods.
fn own_labels(obj: &mut Value, labels: Value) {
    let m = meta::meta_mut(obj);
    if m.get("labels").is_none_or(|l| l.as_object().is_none_or(Map::is_empty)) {
        m.insert("labels".into(), labels);
    }
}

/// The selector is the Job's own uid: nobody else's pods can match. Labels of the template that say otherwise stay, and
/// are refused by validation.
fn generate_selector(obj: &mut Value) {
    let uid = meta::uid(obj).to_owned();
    let name = meta::name(obj).to_owned();
    let bare = obj["metadata"]["labels"] == obj["spec"]["template"]["metadata"]["labels"];
    let own = meta::meta_mut(&mut obj["spec"]["template"]).entry("labels").or_insert_with(|| json!({}));
    for (k, v) in [(NAME, &name), (OLD_NAME, &name), (OLD_UID, &uid), (UID, &uid)] {
        if own.get(k).is_none_or(Value::is_null) {
            own[k] = v.as_str().into();
        }
    }
    let labels = own.clone();
    if bare {
        meta::meta_mut(obj).insert("labels".into(), labels);
    }
    if !obj["spec"]["selector"]["matchLabels"].is_object() {
        obj["spec"]["selector"]["matchLabels"] = json!({});
    }
    obj["spec"]["selector"]["matchLabels"][UID] = uid.into();
}

/// Checks that the selector is the generated one.
fn generated_selector(obj: &Value, errors: &mut Errors) {
    let (uid, name) = (meta::uid(obj), meta::name(obj));
    let template = Path::new("spec.template.metadata");
    let at = template.child("labels");
    let labels = &obj["spec"]["template"]["metadata"]["labels"];
    let expected = [(OLD_UID, uid), (OLD_NAME, name), (UID, uid), (NAME, name)];
    for (key, value) in expected {
        match labels[key].as_str() {
            None => errors.required(&at.key(key), &format!("must be '{value}'")),
            Some(v) if v != value => errors.invalid(&at.key(key), labels.clone(), format!("must be '{value}'")),
            Some(_) => {}
        }
    }
    let generated = json!({UID: uid, NAME: name});
    if usable_selector(&obj["spec"]["selector"]).is_some_and(|s| !s.matches(&generated)) {
        let spec = Path::new("spec");
        errors.invalid(&spec.child("selector"), obj["spec"]["selector"].clone(), "`selector` not auto-generated");
    }
}

fn validate_selector(spec: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let at = path.child("selector");
    let s = &spec["selector"];
    if s.is_null() {
        errors.required(&at, "");
    } else {
        label_selector(s, &at, errors);
    }
    let labels = &spec["template"]["metadata"]["labels"];
    if usable_selector(s).is_some_and(|s| !s.matches(labels)) {
        errors.invalid(&path.child("template.metadata.labels"), labels.clone(), MISMATCH);
    }
}

/// Whether the pods are numbered.
pub(super) fn indexed(spec: &Value) -> bool {
    spec["completionMode"] == "Indexed"
}

/// Checks a Job's spec, selector excluded; also that of a CronJob's template.
pub(super) fn validate_spec(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    const COUNTERS: &[&str] = &[
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    not_negative(spec, COUNTERS, path, errors);
    if given(spec, "maxFailedIndexes") && !given(spec, "backoffLimitPerIndex") {
        errors.required(&path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if let Some(by) = spec["managedBy"].as_str() {
        let at = path.child("managedBy");
        crate::kinds::check::domain_prefixed_path(by, &at, errors);
        if by.len() > 63 {
            errors.too_long(&at, 63);
        }
    }
    one_of(spec, "completionMode", &["NonIndexed", "Indexed"], path, errors);
    if indexed(spec) {
        validate_indexed(spec, path, errors);
    } else if matches!(spec["completionMode"].as_str(), None | Some("NonIndexed")) {
        for key in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if given(spec, key) {
                errors.invalid(&path.child(key), spec[key].clone(), "requires indexed completion mode");
            }
        }
    }
    if given(spec, "podFailurePolicy") {
        validate_failure_policy(spec, &path.child("podFailurePolicy"), errors);
    }
    if given(spec, "successPolicy") {
        let at = path.child("successPolicy");
        if indexed(spec) {
            validate_success_policy(spec, &at, errors);
        } else {
            errors.invalid(&at, spec["successPolicy"].clone(), "requires indexed completion mode");
        }
    }
    let allowed: &[&str] =
        if given(spec, "podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    one_of(spec, "podReplacementPolicy", allowed, path, errors);
    let template = path.child("template");
    validate_template(&spec["template"], &template, errors);
    let at = template.child("spec.restartPolicy");
    match text(&spec["template"]["spec"], "restartPolicy") {
        "" | "Always" => errors.required(&at, "valid values: \"OnFailure\", \"Never\""),
        "Never" => {}
        "OnFailure" if given(spec, "podFailurePolicy") => {
            errors.invalid(&at, "OnFailure", "only \"Never\" is supported when podFailurePolicy is specified");
        }
        "OnFailure" => {}
        other => errors.not_supported(&at, other, &["OnFailure", "Never"]),
    }
}

fn validate_indexed(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    if !given(spec, "completions") {
        errors.required(&path.child("completions"), "when completion mode is Indexed");
    }
    let number = |k: &str| spec[k].as_i64();
    let mut at_most = |key: &str, max: i64, tail: &str| {
        if let Some(n) = number(key).filter(|n| *n > max) {
            errors.invalid(&path.child(key), n, format!("must be less than or equal to {max}{tail}"));
        }
    };
    at_most("parallelism", MANY, " when completion mode is Indexed");
    if let (Some(all), Some(max)) = (number("completions"), number("maxFailedIndexes"))
        && max > all
    {
        errors.invalid(&path.child("maxFailedIndexes"), max, "must be less than or equal to completions");
    }
    let mut at_most = |key: &str, max: i64, tail: &str| {
        if let Some(n) = number(key).filter(|n| *n > max) {
            errors.invalid(&path.child(key), n, format!("must be less than or equal to {max}{tail}"));
        }
    };
    at_most("maxFailedIndexes", MANY, "");
    if number("completions").is_some_and(|n| n > MANY) && given(spec, "backoffLimitPerIndex") {
        const WHY: &str = " when completions are above 100000 and used with backoff limit per index";
        at_most("parallelism", 10_000, WHY);
        at_most("maxFailedIndexes", 10_000, WHY);
        if !given(spec, "maxFailedIndexes") {
            errors.required(&path.child("maxFailedIndexes"), "must be specified when completions is above 100000");
        }
    }
}

fn validate_failure_policy(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let all = path.child("rules");
    let rules = list(&spec["podFailurePolicy"], "rules");
    if rules.len() > 20 {
        errors.too_many(&all, rules.len(), 20);
    }
    let pod = &spec["template"]["spec"];
    let containers: Vec<&str> =
        list(pod, "containers").iter().chain(list(pod, "initContainers")).map(|c| text(c, "name")).collect();
    for (i, rule) in rules.iter().enumerate() {
        let at = all.index(i);
        let action = text(rule, "action");
        match action {
            "" => {
                errors.required(&at.child("action"), "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]")
            }
            "FailIndex" if !given(spec, "backoffLimitPerIndex") => {
                errors.invalid(&at.child("action"), action, "requires the backoffLimitPerIndex to be set");
            }
            _ => one_of(rule, "action", &["Count", "FailIndex", "FailJob", "Ignore"], &at, errors),
        }
        let (codes, conditions) = (&rule["onExitCodes"], list(rule, "onPodConditions"));
        if !codes.is_null() {
            exit_codes(codes, &containers, &at.child("onExitCodes"), errors);
        }
        let here = at.child("onPodConditions");
        if conditions.len() > 20 {
            errors.too_many(&here, conditions.len(), 20);
        }
        for (j, c) in conditions.iter().enumerate() {
            let (here, kind) = (here.index(j), text(c, "type"));
            complain(&here.child("type"), kind, names::is_qualified_name(kind), errors);
            match text(c, "status") {
                "" => errors.required(&here.child("status"), "valid values: [\"False\" \"True\" \"Unknown\"]"),
                _ => one_of(c, "status", &["False", "True", "Unknown"], &here, errors),
            }
        }
        if !codes.is_null() && !conditions.is_empty() {
            errors.invalid_untold(&at, "specifying both OnExitCodes and OnPodConditions is not supported");
        } else if codes.is_null() && conditions.is_empty() {
            errors.invalid_untold(&at, "specifying one of OnExitCodes and OnPodConditions is required");
        }
    }
}

fn exit_codes(codes: &Value, containers: &[&str], path: &Path<'_>, errors: &mut Errors) {
    let operator = text(codes, "operator");
    match operator {
        "" => errors.required(&path.child("operator"), "valid values: [\"In\" \"NotIn\"]"),
        _ => one_of(codes, "operator", &["In", "NotIn"], path, errors),
    }
    if let Some(name) = codes["containerName"].as_str().filter(|n| !containers.contains(n)) {
        let why = "must be one of the container or initContainer names in the pod template";
        errors.invalid(&path.child("containerName"), name, why);
    }
    let at = path.child("values");
    let values: Vec<i64> = list(codes, "values").iter().filter_map(Value::as_i64).collect();
    if values.is_empty() {
        errors.invalid(&at, json!([]), "at least one value is required");
    } else if values.len() > 255 {
        errors.too_many(&at, values.len(), 255);
    }
    for (i, n) in values.iter().enumerate() {
        if operator == "In" && *n == 0 {
            errors.invalid(&at.index(i), 0, "must not be 0 for the In operator");
        }
        if values[..i].contains(n) {
            errors.duplicate(&at.index(i), *n);
        }
    }
    if !values.is_sorted() {
        errors.invalid(&at, json!(values), "must be ordered");
    }
}

fn validate_success_policy(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let all = path.child("rules");
    let rules = list(&spec["successPolicy"], "rules");
    if rules.is_empty() {
        errors.required(&all, "at least one rules must be specified when the successPolicy is specified");
    }
    if rules.len() > 20 {
        errors.too_many(&all, rules.len(), 20);
    }
    let completions = spec["completions"].as_i64().unwrap_or(0);
    for (i, rule) in rules.iter().enumerate() {
        let at = all.index(i);
        if !given(rule, "succeededCount") && !given(rule, "succeededIndexes") {
            errors.required(&at, "at least one of succeededCount or succeededIndexes must be specified");
        }
        let mut total = None;
        if let Some(s) = rule["succeededIndexes"].as_str() {
            let here = at.child("succeededIndexes");
            if s.len() > 65_536 {
                errors.too_long(&here, 65_536);
            }
            match job_status::indexes(s, completions) {
                Ok(all) => total = Some(all.iter().map(|(a, b)| b - a + 1).sum::<i64>()),
                Err(why) => {
                    total = Some(0);
                    errors.invalid(&here, s, format!("error parsing succeededIndexes: {why}"));
                }
            }
        }
        not_negative(rule, &["succeededCount"], &at, errors);
        if let Some(n) = rule["succeededCount"].as_i64() {
            let here = at.child("succeededCount");
            if n > completions {
                let why = format!("must be less than or equal to {completions} (the number of specified completions)");
                errors.invalid(&here, n, why);
            }
            if let Some(total) = total.filter(|t| n > *t) {
                let why = format!(
                    "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
                );
                errors.invalid(&here, n, why);
            }
        }
    }
}

/// A name that is no DNS label makes surprising pod names.
pub(super) fn name_warning(obj: &Value, out: &mut Vec<String>) {
    let why = names::is_dns1123_label(meta::name(obj));
    if !why.is_empty() {
        out.push(format!("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]", why.join(" ")));
    }
}

/// Warnings about a Job's spec at `path`.
pub(super) fn spec_warnings(new: &Value, path: &Path<'_>, out: &mut Vec<String>) {
    let number = |k: &str| new[k].as_i64().unwrap_or(0);
    if indexed(new) && number("completions") > MANY && number("parallelism") > 10_000 {
        out.push(format!("{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"));
    }
    template_warnings(&new["template"], &path.child("template"), out);
}
