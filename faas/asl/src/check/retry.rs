//! Retry and Catch.

use std::collections::BTreeSet;

use super::fields::Fields;
use super::state;
use crate::definition::{Catcher, Jitter, MAX_SECONDS, ResultPath, Retrier};
use crate::error;
use crate::fault::{self, Fault};

/// The longest pause between retries is less than a year and a day.
const MAX_DELAY: u64 = 31_622_399;

pub(super) fn retriers(fields: &mut Fields<'_, '_>) -> Vec<Retrier> {
    entries(fields, "Retry", |mut fields, last| {
        let error_equals = errors(&mut fields, last);
        fields.string("Comment");
        let interval_seconds = fields.whole("IntervalSeconds", 1, MAX_SECONDS).unwrap_or(1);
        let max_attempts = fields.whole("MaxAttempts", 0, MAX_SECONDS).unwrap_or(3);
        let backoff_rate = match fields.get("BackoffRate") {
            None => 2.0,
            Some(value) => value.as_f64().filter(|rate| *rate >= 1.0).unwrap_or_else(|| {
                fields.fault("BackoffRate", "The value for the field 'BackoffRate' must be a NUMBER of at least 1.0");
                2.0
            }),
        };
        let max_delay_seconds = fields.whole("MaxDelaySeconds", 1, MAX_DELAY);
        if max_delay_seconds.is_some_and(|most| most <= interval_seconds) {
            fields.fault("MaxDelaySeconds", "'MaxDelaySeconds' must be greater than 'IntervalSeconds'");
        }
        let jitter = match fields.word("JitterStrategy", &["FULL", "NONE"]).as_deref() {
            Some("FULL") => Jitter::Full,
            _ => Jitter::None,
        };
        fields.finish("of a retrier");
        Some(Retrier { error_equals, interval_seconds, max_attempts, backoff_rate, max_delay_seconds, jitter })
    })
}

pub(super) fn catchers(fields: &mut Fields<'_, '_>) -> Vec<Catcher> {
    entries(fields, "Catch", |mut fields, last| {
        let error_equals = errors(&mut fields, last);
        let comment = fields.string("Comment");
        let next = fields.required_string("Next");
        let assign = state::assign(&mut fields);
        let (result_path, output) = if fields.is_jsonata() {
            (ResultPath::Replace, fields.template("Output"))
        } else {
            (fields.result_path(), None)
        };
        state::wrong_language(&mut fields);
        fields.finish("of a catcher");
        Some(Catcher { error_equals, next: next?, result_path, assign, output, comment })
    })
}

/// The entries of a list, read one by one with whether it is the last.
fn entries<T>(fields: &mut Fields<'_, '_>, field: &str, entry: impl Fn(Fields<'_, '_>, bool) -> Option<T>) -> Vec<T> {
    let Some(items) = fields.array(field) else { return Vec::new() };
    let (at, language) = (fields.pointer(field), fields.language);
    let mut out = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let Some(inner) = Fields::new(item, format!("{at}/{i}"), fields.check) else { continue };
        let inner = inner.with_language(language).with_place(format!("{field}[{i}]/"));
        out.extend(entry(inner, i + 1 == items.len()));
    }
    out
}

/// `ErrorEquals`: States.ALL stands alone and in the last entry.
fn errors(fields: &mut Fields<'_, '_>, last: bool) -> Vec<String> {
    fields.required("ErrorEquals");
    let Some(items) = fields.array("ErrorEquals") else { return Vec::new() };
    if items.is_empty() {
        fields.fault("ErrorEquals", "'ErrorEquals' has at least one name");
    }
    let mut names = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, item) in items.iter().enumerate() {
        let at = format!("{}/{i}", fields.pointer("ErrorEquals"));
        let Some(name) = item.as_str() else {
            fields.check.error(&at, "The name of an error must be a STRING");
            continue;
        };
        if name == error::ALL && items.len() > 1 {
            fields.check.error(&at, "'States.ALL' must stand alone in 'ErrorEquals'");
        }
        if name == error::ALL && !last {
            fields.check.error(&at, "'States.ALL' must be in the last entry");
        }
        // HTTP tasks have names of their own below this one.
        let known = error::RESERVED.contains(&name) || name.starts_with("States.Http.");
        if name.starts_with("States.") && !known {
            let message = format!("'{name}' is no reserved error: names that begin with 'States.' are the language's");
            fields.check.faults.push(Fault::warning(fault::SCHEMA_VALIDATION_FAILED, &at, message));
        }
        if seen.insert(name) {
            names.push(name.to_owned());
        }
    }
    names
}
