//! Event, in both of its groups: two views of one object.

use serde_json::Value;

use super::check::{IMMUTABLE, complain, given, text};
use super::{Strategy, Traits};
use crate::invalid::Errors;
use crate::meta;
use crate::names;
use crate::path::Path;

/// Rules of Events; `group` says that the view is that of events.k8s.io.
pub(super) struct Event {
    pub(super) group: bool,
}

const CORE: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];
const GROUP: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "type",
];

const ROOT: Path<'static> = Path::new("");
/// What may not change in the newer view, with the name of the field in the older.
const FIXED: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("reason", "reason"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("type", "type"),
    ("eventTime", "eventTime"),
    ("action", "action"),
    ("related", "related"),
    ("reportingController", "reportingController"),
    ("reportingInstance", "reportingInstance"),
];
const SHORT: usize = 128;
const LONG: usize = 1024;

impl Event {
    /// What holds in both views: the namespace, and what an event with a time must say.
    fn common(&self, obj: &Value, errors: &mut Errors) {
        let (about, message, controller) = if self.group {
            ("regarding", "note", "reportingController")
        } else {
            ("involvedObject", "message", "reportingComponent")
        };
        let (ns, of) = (meta::namespace(obj), text(&obj[about], "namespace"));
        let timed = given(obj, "eventTime");
        let elsewhere = match (timed, of.is_empty()) {
            (false, true) => !matches!(ns, "" | "default"),
            (false, false) => ns != of,
            (true, true) => !matches!(ns, "default" | "kube-system"),
            (true, false) => false,
        };
        if elsewhere {
            errors.invalid(&ROOT.child("involvedObject.namespace"), of, "does not match event.namespace");
        }
        if !timed {
            return;
        }
        let by = text(obj, controller);
        let at = ROOT.child(controller);
        if by.is_empty() {
            errors.required(&at, "");
        }
        complain(&at, by, names::is_qualified_name(by), errors);
        for (key, shown, needed, max) in [
            ("reportingInstance", "reportingInstance", true, SHORT),
            ("action", "action", true, SHORT),
            ("reason", "reason", true, SHORT),
            (message, "message", false, LONG),
        ] {
            let s = text(obj, key);
            let at = ROOT.child(shown);
            if s.is_empty() && needed {
                errors.required(&at, "");
            }
            if s.len() > max {
                errors.invalid(&at, "", format!("can have at most {max} characters"));
            }
        }
    }

    /// What the newer view demands.
    fn new_style(&self, obj: &Value, errors: &mut Errors) {
        const UNSET: &str = "needs to be unset";
        series(obj, errors);
        if !given(obj, "eventTime") {
            errors.required(&ROOT.child("eventTime"), "");
        }
        let kind = text(obj, "type");
        if !matches!(kind, "Normal" | "Warning") {
            errors.invalid(&ROOT.child("type"), "", format!("has invalid value: {kind}"));
        }
        for (key, shown) in
            [("deprecatedFirstTimestamp", "firstTimestamp"), ("deprecatedLastTimestamp", "lastTimestamp")]
        {
            if given(obj, key) {
                errors.invalid(&ROOT.child(shown), "", UNSET);
            }
        }
        if obj["deprecatedCount"].as_i64().unwrap_or(0) != 0 {
            errors.invalid(&ROOT.child("count"), "", UNSET);
        }
        let source = &obj["deprecatedSource"];
        if !text(source, "component").is_empty() || !text(source, "host").is_empty() {
            errors.invalid(&ROOT.child("source"), "", UNSET);
        }
    }
}

fn series(obj: &Value, errors: &mut Errors) {
    if !given(obj, "series") {
        return;
    }
    let at = ROOT.child("series");
    if obj["series"]["count"].as_i64().unwrap_or(0) < 2 {
        errors.invalid(&at.child("count"), "", "should be at least 2");
    }
    if !given(&obj["series"], "lastObservedTime") {
        errors.required(&at.child("lastObservedTime"), "");
    }
}

impl Strategy for Event {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { create_on_update: true, ..Traits::DEFAULT };
        &T
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        self.common(obj, errors);
        if self.group {
            self.new_style(obj, errors);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.common(new, errors);
        if self.group {
            if new["series"] != old["series"] {
                series(new, errors);
            }
            for (key, shown) in FIXED {
                if new[*key] != old[*key] {
                    let value = if new[*key].is_null() { "".into() } else { new[*key].clone() };
                    errors.invalid(&ROOT.child(shown), value, IMMUTABLE);
                }
            }
        }
    }

    fn error_group(&self) -> Option<&'static str> {
        Some("")
    }

    fn fields(&self) -> &'static [&'static str] {
        if self.group { GROUP } else { CORE }
    }

    fn stored_field<'a>(&self, field: &'a str) -> &'a str {
        match field {
            "reportingController" => "reportingComponent",
            f => match f.strip_prefix("regarding.") {
                Some(rest) => {
                    CORE.iter().find(|c| c.strip_prefix("involvedObject.") == Some(rest)).copied().unwrap_or(f)
                }
                None => f,
            },
        }
    }

    fn field(&self, obj: &Value, name: &str) -> String {
        match name {
            // The component that reports, in the old place or the new.
            "source" => match obj["source"]["component"].as_str().unwrap_or_default() {
                "" => super::lookup(obj, "reportingComponent"),
                c => c.to_owned(),
            },
            _ => super::lookup(obj, name),
        }
    }
}
