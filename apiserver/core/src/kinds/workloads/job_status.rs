//! What the status of a Job must keep to, whoever writes it: a finished Job stays finished, and what it says of itself
//! agrees. A rule is looked at only when a field that it is about changed, so that an old status stays writable.

use serde_json::Value;

use super::count;
use super::job::indexed;
use crate::invalid::Errors;
use crate::kinds::check::{IMMUTABLE, list, not_negative, text};
use crate::path::Path;

/// Whether a condition is true.
fn is(status: &Value, condition: &str) -> bool {
    list(status, "conditions").iter().any(|c| c["type"] == condition && c["status"] == "True")
}

fn finished(status: &Value) -> bool {
    is(status, "Complete") || is(status, "Failed")
}

/// Parses `1,3-5` into intervals; every index is below `completions`.
///
/// # Errors
/// Why it is none.
pub(super) fn indexes(text: &str, completions: i64) -> Result<Vec<(i64, i64)>, String> {
    let mut out: Vec<(i64, i64)> = vec![];
    if text.is_empty() {
        return Ok(out);
    }
    let quoted = crate::invalid::quote_str;
    let index = |s: &str| match s.parse::<i64>() {
        Err(_) => Err(format!("cannot convert string to integer for index: {}", quoted(s))),
        Ok(n) if n >= completions => Err(format!("too large index: {}", quoted(s))),
        Ok(n) => Ok(n),
    };
    for part in text.split(',') {
        let ends: Vec<&str> = part.split('-').collect();
        let (from, to) = match ends.as_slice() {
            [one] => (index(one)?, index(one)?),
            [from, to] => {
                let (a, b) = (index(from)?, index(to)?);
                if a >= b {
                    return Err(format!("non-increasing order, previous: {a}, current: {b}"));
                }
                (a, b)
            }
            _ => {
                return Err(format!(
                    "the fragment {} violates the requirement that an index interval can have at most two parts separated by '-'",
                    quoted(part)
                ));
            }
        };
        if let Some((_, last)) = out.last().filter(|(_, last)| *last >= from) {
            return Err(format!("non-increasing order, previous: {last}, current: {from}"));
        }
        out.push((from, to));
    }
    Ok(out)
}

/// Checks a status update.
pub(super) fn validate(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    let (n, o) = (&new["status"], &old["status"]);
    not_negative(n, &["active", "succeeded", "failed", "ready", "terminating"], &path, errors);
    uncounted(&n["uncountedTerminatedPods"], &path.child("uncountedTerminatedPods"), errors);
    consistent(new, n, o, errors);
    transition(new, n, o, errors);
}

fn uncounted(pods: &Value, path: &Path<'_>, errors: &mut Errors) {
    let mut seen = vec![];
    for key in ["succeeded", "failed"] {
        let at = path.child(key);
        for (i, uid) in list(pods, key).iter().filter_map(Value::as_str).enumerate() {
            if uid.is_empty() {
                errors.invalid(&at.index(i), uid, "must not be empty");
            } else if seen.contains(&uid) {
                errors.duplicate(&at.index(i), uid);
            } else {
                seen.push(uid);
            }
        }
    }
}

/// What the new status says must agree.
fn consistent(job: &Value, n: &Value, o: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    let conditions = path.child("conditions");
    let turned = |c: &str| is(n, c) != is(o, c);
    let changed = |k: &str| n[k] != o[k];
    let (complete, failed) = (is(n, "Complete"), is(n, "Failed"));
    let ended = finished(n) != finished(o);
    if (turned("Complete") || turned("Failed")) && complete && failed {
        errors.invalid_untold(&conditions, "cannot set Complete=True and Failed=true conditions");
    }
    if (turned("Complete") || turned("FailureTarget")) && complete && is(n, "FailureTarget") {
        errors.invalid_untold(&conditions, "cannot set Complete=True and FailureTarget=true conditions");
    }
    let (start, end) = (&n["startTime"], &n["completionTime"]);
    let at = path.child("completionTime");
    if turned("Complete") || changed("completionTime") {
        if !end.is_null() && !complete {
            let why = "cannot set completionTime when there is no Complete=True condition";
            errors.invalid(&at, end.clone(), why);
        }
        if end.is_null() && complete {
            errors.required(&at, "completionTime is required for Complete jobs");
        }
    }
    if (changed("startTime") || changed("completionTime"))
        && let (Some(s), Some(e)) = (start.as_str(), end.as_str())
        && let (Ok(s), Ok(e)) = (crate::time::parse(s), crate::time::parse(e))
        && e < s
    {
        errors.invalid(&at, end.clone(), "completionTime cannot be set before startTime");
    }
    if (turned("Failed") || turned("FailureTarget")) && failed && !is(n, "FailureTarget") {
        errors.invalid_untold(&conditions, "cannot set Failed=True condition without the FailureTarget=true condition");
    }
    if (turned("Complete") || turned("SuccessCriteriaMet")) && complete && !is(n, "SuccessCriteriaMet") {
        let why = "cannot set Complete=True condition without the SuccessCriteriaMet=true condition";
        errors.invalid_untold(&conditions, why);
    }
    let over = finished(n);
    if (ended || changed("active")) && over && count(n, "active") > 0 {
        errors.invalid(&path.child("active"), count(n, "active"), "active>0 is invalid for finished job");
    }
    let empty = job["spec"]["suspend"] == true && job["spec"]["completions"] == 0;
    if (ended || changed("startTime")) && !empty && over && start.is_null() {
        errors.required(&path.child("startTime"), "startTime is required for finished job");
    }
    let pods = &n["uncountedTerminatedPods"];
    if (ended || changed("uncountedTerminatedPods"))
        && over
        && !(list(pods, "succeeded").is_empty() && list(pods, "failed").is_empty())
    {
        let why = "uncountedTerminatedPods needs to be empty for finished job";
        errors.invalid(&path.child("uncountedTerminatedPods"), pods.clone(), why);
    }
    validate_indexes(job, n, o, errors);
    if (ended || changed("terminating")) && over && count(n, "terminating") > 0 {
        let why = "terminating>0 is invalid for finished job";
        errors.invalid(&path.child("terminating"), count(n, "terminating"), why);
    }
    if (changed("ready") || changed("active")) && count(n, "ready") > count(n, "active") {
        errors.invalid(&path.child("ready"), count(n, "ready"), "cannot set more ready pods than active");
    }
    if is(n, "SuccessCriteriaMet") {
        for c in ["Failed", "FailureTarget"] {
            if is(n, c) {
                let why = format!("cannot set {c}=True and SuccessCriteriaMet=True conditions");
                errors.invalid_untold(&conditions, why);
            }
        }
    }
}

fn validate_indexes(job: &Value, n: &Value, o: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    let completed = text(n, "completedIndexes");
    let (done, lost) = (n["completedIndexes"] != o["completedIndexes"], n["failedIndexes"] != o["failedIndexes"]);
    let spec = &job["spec"];
    let completions = spec["completions"].as_i64();
    let (done_at, lost_at) = (path.child("completedIndexes"), path.child("failedIndexes"));
    if done
        && let Some(c) = completions
        && let Err(why) = indexes(completed, c)
    {
        errors.invalid(&done_at, completed, format!("error parsing completedIndexes: {why}"));
    }
    let per_index = !spec["backoffLimitPerIndex"].is_null();
    let failed = n["failedIndexes"].as_str();
    if lost
        && per_index
        && let (Some(c), Some(f)) = (completions, failed)
        && let Err(why) = indexes(f, c)
    {
        errors.invalid(&lost_at, f, format!("error parsing failedIndexes: {why}"));
    }
    if done && !completed.is_empty() && !indexed(spec) {
        let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.invalid(&done_at, completed, why);
    }
    if let Some(f) = failed.filter(|_| lost && !per_index) {
        errors.invalid(&lost_at, f, "cannot set non-null failedIndexes when backoffLimitPerIndex is null");
    }
    if (done || lost)
        && let (Some(c), Some(f)) = (completions, failed)
        && let (Ok(a), Ok(b)) = (indexes(completed, c), indexes(f, c))
        && let Some(at) = b.iter().flat_map(|(x, y)| *x..=*y).find(|i| a.iter().any(|(x, y)| (x..=y).contains(&i)))
    {
        errors.invalid(&lost_at, f, format!("failedIndexes and completedIndexes overlap on index: {at}"));
    }
}

/// What may not be taken back.
fn transition(job: &Value, n: &Value, o: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    let conditions = path.child("conditions");
    for c in ["Failed", "Complete", "FailureTarget"] {
        if is(o, c) && !is(n, c) {
            errors.invalid_untold(&conditions, format!("cannot disable the terminal {c}=True condition"));
        }
    }
    // An indexed Job that is scaled down forgets indexes that had succeeded.
    let spec = &job["spec"];
    let elastic = indexed(spec) && spec["completions"] == spec["parallelism"];
    for (key, held) in [("failed", true), ("succeeded", !elastic)] {
        if held && count(n, key) < count(o, key) {
            errors.invalid(&path.child(key), count(n, key), format!("cannot decrease the {key} counter"));
        }
    }
    if !o["completionTime"].is_null() && n["completionTime"] != o["completionTime"] {
        errors.invalid(&path.child("completionTime"), n["completionTime"].clone(), IMMUTABLE);
    }
    if !o["startTime"].is_null() && n["startTime"] != o["startTime"] && spec["suspend"] != true {
        let why = "field is immutable for unsuspended job once set";
        errors.invalid(&path.child("startTime"), n["startTime"].clone(), why);
    }
    if is(o, "SuccessCriteriaMet") && !is(n, "SuccessCriteriaMet") {
        errors.invalid_untold(&conditions, "cannot disable the SuccessCriteriaMet=True condition");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        for (text, want) in [
            ("", Ok(vec![])),
            ("0,2-4", Ok(vec![(0, 0), (2, 4)])),
            ("2,1", Err("non-increasing order, previous: 2, current: 1")),
            ("1-1", Err("non-increasing order, previous: 1, current: 1")),
            ("9", Err("too large index: \"9\"")),
            ("x", Err("cannot convert string to integer for index: \"x\"")),
        ] {
            assert_eq!(indexes(text, 5), want.map_err(str::to_owned), "{text}");
        }
    }
}
