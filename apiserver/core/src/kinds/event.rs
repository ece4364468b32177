//! Event, in both of its groups: two views of one object.

use serde_json::Value;

use super::{Strategy, Traits};

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

impl Strategy for Event {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { create_on_update: true, ..Traits::DEFAULT };
        &T
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
