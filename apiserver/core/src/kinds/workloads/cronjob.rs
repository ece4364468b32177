//! CronJob.

use serde_json::Value;

use super::{T, another, default_spec_template, job};
use crate::cron;
use crate::invalid::Errors;
use crate::kinds::check::{not_negative, one_of, text};
use crate::kinds::defaults::{object, set, set_text};
use crate::kinds::{Strategy, Traits};
use crate::meta;
use crate::path::Path;

/// Jobs are called after it, with eleven more characters.
const NAME_MAX: usize = 52;

/// Rules of CronJobs.
pub(in crate::kinds) struct CronJob;

impl Strategy for CronJob {
    fn traits(&self) -> &Traits {
        &T
    }

    fn default(&self, obj: &mut Value) {
        let Some(spec) = object(obj, "spec") else { return };
        set_text(spec, "concurrencyPolicy", "Allow");
        set(spec, "suspend", false);
        set(spec, "successfulJobsHistoryLimit", 3);
        set(spec, "failedJobsHistoryLimit", 1);
        // The Job's own defaults come when it is created.
        if let Some(spec) = spec.get_mut("jobTemplate").and_then(|t| object(t, "spec")) {
            default_spec_template(spec);
        }
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        validate_spec(&obj["spec"], None, errors);
        let name = meta::name(obj);
        if name.len() > NAME_MAX {
            let m = Path::new("metadata");
            errors.invalid(&m.child("name"), name, format!("must be no more than {NAME_MAX} characters"));
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        validate_spec(&new["spec"], Some(&old["spec"]), errors);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        if old.is_none() {
            job::name_warning(new, out);
        }
        if text(&new["spec"], "schedule").contains("TZ") {
            let what = if old.is_none() {
                "CRON_TZ or TZ used in spec.schedule is not officially supported"
            } else {
                "cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead"
            };
            out.push(format!(
                "{what}, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
            ));
        }
        if another(new, old) {
            let path = Path::new("spec");
            let at = path.child("jobTemplate");
            job::spec_warnings(&new["spec"]["jobTemplate"]["spec"], &at.child("spec"), out);
        }
    }
}

fn validate_spec(spec: &Value, old: Option<&Value>, errors: &mut Errors) {
    let path = Path::new("spec");
    let (at, given) = (path.child("schedule"), text(spec, "schedule"));
    if given.is_empty() {
        errors.generated(|e| e.required(&at, ""));
    } else {
        if let Err(why) = cron::Schedule::parse(given) {
            errors.invalid(&at, given, why);
        }
        let zone_kept = old.is_some_and(|o| text(o, "schedule").contains("TZ"));
        if given.contains("TZ") {
            if !zone_kept {
                errors.invalid(&at, given, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
            } else if !spec["timeZone"].is_null() {
                errors.invalid(&at, given, "cannot use both timeZone field and TZ or CRON_TZ in schedule");
            }
        }
    }
    not_negative(spec, &["startingDeadlineSeconds"], &path, errors);
    if old.is_none_or(|o| o["timeZone"] != spec["timeZone"]) {
        validate_zone(&spec["timeZone"], &path.child("timeZone"), errors);
    }
    one_of(spec, "concurrencyPolicy", &["Allow", "Forbid", "Replace"], &path, errors);
    let template = path.child("jobTemplate");
    job::validate_spec(&spec["jobTemplate"]["spec"], &template.child("spec"), errors);
    not_negative(spec, &["successfulJobsHistoryLimit", "failedJobsHistoryLimit"], &path, errors);
}

fn validate_zone(zone: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(zone) = zone.as_str() else { return };
    if zone.is_empty() {
        errors.invalid(path, zone, "timeZone must be nil or non-empty string");
    } else if zone.eq_ignore_ascii_case("local") {
        errors.invalid(
            path,
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        );
    } else if !cron::is_zone(zone) {
        errors.invalid(path, zone, format!("unknown time zone {zone}"));
    }
}
