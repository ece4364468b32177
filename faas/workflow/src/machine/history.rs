//! Events: numbers, times, and the service's names.

use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::Machine;
use super::model::{Event, Over};
use crate::api::Phase;

/// A moment later, or the last there is.
pub(super) fn after(now: Timestamp, seconds: u64) -> Timestamp {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    now.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

impl Machine {
    /// Adds an event, and returns its number.
    pub(super) fn event(
        &mut self,
        previous: i64,
        kind: &'static str,
        details: Option<(&'static str, Value)>,
        data: Option<(&'static str, Arc<str>)>,
    ) -> i64 {
        let id = self.core.next_event;
        self.core.next_event += 1;
        // What the journal makes of it: a long text is a reference there.
        self.burst += 160 + data.as_ref().map_or(0, |(_, text)| text.len().min(2048));
        self.events.push(Event { id, previous, at: self.now, kind, details, data });
        id
    }

    /// Adds an event of a scope.
    pub(super) fn note(
        &mut self,
        scope: u64,
        kind: &'static str,
        details: Option<(&'static str, Value)>,
        data: Option<(&'static str, Arc<str>)>,
    ) {
        let previous = self.core.scopes.get(&scope).map_or(0, |s| s.last);
        let id = self.event(previous, kind, details, data);
        if let Some(scope) = self.core.scopes.get_mut(&scope) {
            scope.last = id;
        }
    }

    /// Ends the run badly; where it was stays, for a redrive.
    pub(super) fn end(&mut self, phase: Phase, error: Option<String>, cause: Option<String>) {
        let (kind, key) = match phase {
            Phase::TimedOut => ("ExecutionTimedOut", "executionTimedOutEventDetails"),
            Phase::Aborted => ("ExecutionAborted", "executionAbortedEventDetails"),
            _ => ("ExecutionFailed", "executionFailedEventDetails"),
        };
        let mut details = json!({});
        if let (Some(error), Some(map)) = (&error, details.as_object_mut()) {
            map.insert("error".to_owned(), json!(error));
        }
        if let (Some(cause), Some(map)) = (&cause, details.as_object_mut()) {
            map.insert("cause".to_owned(), json!(cause));
        }
        self.break_off();
        let previous = self.core.scopes.get(&0).map_or(0, |s| s.last);
        self.event(previous, kind, Some((key, details)), None);
        self.core.deadline = None;
        self.core.over = Some(Over { phase, output: None, error, cause, at: self.now });
    }

    /// Ends the run well.
    pub(super) fn complete(&mut self, output: Value, text: Arc<str>) {
        let key = "executionSucceededEventDetails";
        let previous = self.core.scopes.get(&0).map_or(0, |s| s.last);
        self.event(previous, "ExecutionSucceeded", Some((key, json!({}))), Some(("output", text)));
        self.core.scopes.clear();
        self.core.ready.clear();
        self.core.deadline = None;
        self.core.over =
            Some(Over { phase: Phase::Succeeded, output: Some(output), error: None, cause: None, at: self.now });
    }
}

/// Names of events about entering a state of a type.
pub(super) fn entered(type_name: &str) -> &'static str {
    match type_name {
        "Task" => "TaskStateEntered",
        "Pass" => "PassStateEntered",
        "Choice" => "ChoiceStateEntered",
        "Wait" => "WaitStateEntered",
        "Succeed" => "SucceedStateEntered",
        "Fail" => "FailStateEntered",
        "Parallel" => "ParallelStateEntered",
        _ => "MapStateEntered",
    }
}

/// Names of events about leaving a state of a type.
pub(super) fn exited(type_name: &str) -> &'static str {
    match type_name {
        "Task" => "TaskStateExited",
        "Pass" => "PassStateExited",
        "Choice" => "ChoiceStateExited",
        "Wait" => "WaitStateExited",
        "Succeed" => "SucceedStateExited",
        "Parallel" => "ParallelStateExited",
        _ => "MapStateExited",
    }
}

/// Names of events about breaking off a state of a type, where there is one.
pub(super) fn aborted(type_name: &str) -> Option<&'static str> {
    match type_name {
        "Task" => Some("TaskStateAborted"),
        "Wait" => Some("WaitStateAborted"),
        "Parallel" => Some("ParallelStateAborted"),
        "Map" => Some("MapStateAborted"),
        _ => None,
    }
}
