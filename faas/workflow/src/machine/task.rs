//! Tasks: scheduled, taken over, answered, late.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use skiff_asl::definition::{MAX_SECONDS, StateKind};
use skiff_asl::{ExecutionError, data, error};

use super::Machine;
use super::history::after;
use super::model::{Command, Dispatch, Doing, Entry, Scope, Step, TaskStep};
use super::walk::too_long;
use crate::api::DATA_MAX;
use crate::resource::{Family, Resource};

/// Characters that an error's name may have, and its cause.
const ERROR_MAX: (usize, usize) = (256, 32_768);

/// When time alone changes what is done.
pub(super) fn due(doing: &Doing) -> Option<Timestamp> {
    match doing {
        Doing::Wait { until } | Doing::Backoff { until } => Some(*until),
        Doing::Task(task) => task.deadline.into_iter().chain(task.beat).min(),
        _ => None,
    }
}

/// The service's words of a family: scheduled, started, succeeded, failed, timed out.
fn words(family: Family) -> [(&'static str, &'static str); 5] {
    match family {
        Family::Task => [
            ("TaskScheduled", "taskScheduledEventDetails"),
            ("TaskStarted", "taskStartedEventDetails"),
            ("TaskSucceeded", "taskSucceededEventDetails"),
            ("TaskFailed", "taskFailedEventDetails"),
            ("TaskTimedOut", "taskTimedOutEventDetails"),
        ],
        Family::Lambda => [
            ("LambdaFunctionScheduled", "lambdaFunctionScheduledEventDetails"),
            ("LambdaFunctionStarted", ""),
            ("LambdaFunctionSucceeded", "lambdaFunctionSucceededEventDetails"),
            ("LambdaFunctionFailed", "lambdaFunctionFailedEventDetails"),
            ("LambdaFunctionTimedOut", "lambdaFunctionTimedOutEventDetails"),
        ],
        Family::Activity => [
            ("ActivityScheduled", "activityScheduledEventDetails"),
            ("ActivityStarted", "activityStartedEventDetails"),
            ("ActivitySucceeded", "activitySucceededEventDetails"),
            ("ActivityFailed", "activityFailedEventDetails"),
            ("ActivityTimedOut", "activityTimedOutEventDetails"),
        ],
    }
}

/// A task's resource with what its events say.
struct Known {
    resource: Resource,
    basis: Value,
    words: [(&'static str, &'static str); 5],
}

impl Known {
    fn of(text: &str) -> Result<Self, ExecutionError> {
        let resource = Resource::parse(text).map_err(|cause| ExecutionError::new(error::RUNTIME, cause))?;
        let family = resource.family();
        let basis = match family {
            Family::Task => {
                let (kind, word) = resource.words(text);
                json!({"resourceType": kind, "resource": word})
            }
            Family::Lambda | Family::Activity => json!({}),
        };
        Ok(Self { resource, basis, words: words(family) })
    }

    fn details(&self, word: usize, more: Value) -> Option<(&'static str, Value)> {
        let key = self.words[word].1;
        if key.is_empty() {
            return None;
        }
        let mut details = self.basis.clone();
        if let (Some(details), Value::Object(more)) = (details.as_object_mut(), more) {
            details.extend(more.into_iter().filter(|(_, v)| !v.is_null()));
        }
        Some((key, details))
    }
}

impl Machine {
    /// Schedules a task: first, or again.
    pub(super) fn schedule(&mut self, id: u64) {
        let planned = self.look(id, true, None, |state, entry, seen| {
            let StateKind::Task(task) = &state.kind else {
                return Err(ExecutionError::new(error::RUNTIME, "not a task"));
            };
            let known = Known::of(&task.resource)?;
            let input = data::input(state, &entry.raw, seen)?;
            let parameters = data::parameters(state, &input, seen)?;
            let seconds = |field, setting| data::whole(field, setting, 1, MAX_SECONDS, &input, seen);
            let timeout = task.timeout.as_ref().map(|s| seconds("TimeoutSeconds", s)).transpose()?;
            let heartbeat = task.heartbeat.as_ref().map(|s| seconds("HeartbeatSeconds", s)).transpose()?;
            Ok((known, task.resource.clone(), parameters, timeout, heartbeat))
        });
        let (known, resource, parameters, timeout, heartbeat) = match planned {
            Ok(planned) => planned,
            Err(error) => return self.fail(id, error),
        };
        let text: Arc<str> = parameters.to_string().into();
        if text.len() > DATA_MAX {
            return self.fail(id, too_long("parameters"));
        }
        let family = known.resource.family();
        let field = if family == Family::Task { "parameters" } else { "input" };
        let mut more = json!({"timeoutInSeconds": timeout, "heartbeatInSeconds": heartbeat});
        if let Some(more) = more.as_object_mut() {
            match family {
                Family::Task => more.insert("region".to_owned(), json!("skiff")),
                Family::Lambda => {
                    more.remove("heartbeatInSeconds");
                    more.insert("resource".to_owned(), json!(resource))
                }
                Family::Activity => more.insert("resource".to_owned(), json!(resource)),
            };
        }
        self.note(id, known.words[0].0, known.details(0, more), Some((field, text)));
        let now = self.now;
        // What is fetched or called back beats from when it is; the rest from the start.
        let beat = heartbeat.filter(|_| family != Family::Activity).map(|s| after(now, s));
        let Some(scope) = self.core.scopes.get_mut(&id) else { return };
        let Some(entry) = scope.entry_mut() else { return };
        entry.doing = Doing::Task(Box::new(TaskStep {
            parameters: Arc::new(parameters),
            scheduled: now,
            deadline: timeout.map(|s| after(now, s)),
            heartbeat,
            beat,
            submitted: None,
            taken: false,
        }));
        if let Some(scope) = self.core.scopes.get(&id)
            && let Some(dispatch) = self.dispatch(id, scope)
        {
            self.commands.push(Command::Dispatch(Box::new(dispatch)));
        }
    }

    /// What is to be done for the task a scope is in.
    pub(super) fn dispatch(&self, id: u64, scope: &Scope) -> Option<Dispatch> {
        let entry = scope.entry()?;
        let Doing::Task(task) = &entry.doing else { return None };
        let state = self.definition.find(&entry.state)?;
        let StateKind::Task(told) = &state.kind else { return None };
        let step = Step { scope: id, entry: entry.id, attempt: entry.attempt };
        let token = Resource::parse(&told.resource).is_ok_and(|r| r.has_token());
        Some(Dispatch {
            step,
            state: entry.state.clone(),
            resource: told.resource.clone(),
            parameters: Arc::clone(&task.parameters),
            deadline: task.deadline,
            token: token.then(|| self.token(step)),
            submitted: task.submitted.is_some() || task.taken,
            taken: task.submitted.clone(),
        })
    }

    /// The task of a step that is still waited for, and what its events say.
    fn awaited(&mut self, step: Step) -> Option<(&mut TaskStep, Known)> {
        let definition = Arc::clone(&self.definition);
        if self.core.over.is_some() {
            return None;
        }
        let entry = self.core.scopes.get_mut(&step.scope)?.entry_mut()?;
        let Entry { id, attempt, state, doing: Doing::Task(task), .. } = entry else { return None };
        if (*id, *attempt) != (step.entry, step.attempt) {
            return None;
        }
        let StateKind::Task(told) = &definition.find(state)?.kind else { return None };
        Some((task, Known::of(&told.resource).ok()?))
    }

    /// Notes that a task was begun, and counts how long it waited.
    fn begun(&mut self, step: Step, known: &Known, scheduled: Timestamp, started: Option<Timestamp>) {
        let at = started.unwrap_or(self.now).clamp(scheduled, self.now.max(scheduled));
        self.core.receipt.queue_millis += at.duration_since(scheduled).as_secs_f64() * 1000.0;
        let now = std::mem::replace(&mut self.now, at);
        self.note(step.scope, known.words[1].0, known.details(1, json!({})), None);
        self.now = now;
    }

    pub(super) fn submitted(&mut self, step: Step, output: &Arc<str>, started: Timestamp) -> bool {
        let now = self.now;
        let Some((task, known)) = self.awaited(step) else { return false };
        if task.submitted.is_some() {
            return false;
        }
        task.submitted = Some(Arc::clone(output));
        task.beat = task.heartbeat.map(|s| after(now, s));
        let scheduled = task.scheduled;
        self.begun(step, &known, scheduled, Some(started));
        let details = Some(("taskSubmittedEventDetails", known.basis));
        self.note(step.scope, "TaskSubmitted", details, Some(("output", Arc::clone(output))));
        true
    }

    pub(super) fn taken(&mut self, step: Step, worker: Option<&str>) -> bool {
        let now = self.now;
        let Some((task, known)) = self.awaited(step) else { return false };
        if task.taken {
            return false;
        }
        task.taken = true;
        task.beat = task.heartbeat.map(|s| after(now, s));
        let scheduled = task.scheduled;
        self.core.receipt.queue_millis += now.duration_since(scheduled).as_secs_f64() * 1000.0;
        let details = known.details(1, json!({"workerName": worker}));
        self.note(step.scope, known.words[1].0, details, None);
        true
    }

    pub(super) fn heartbeat(&mut self, step: Step) -> bool {
        let now = self.now;
        let Some((task, _)) = self.awaited(step) else { return false };
        match task.heartbeat {
            Some(seconds) => task.beat = Some(after(now, seconds)),
            None => return false,
        }
        true
    }

    /// A task is over in one way or another: its first events, and its time.
    fn answered(&mut self, step: Step, started: Option<Timestamp>) -> Option<Known> {
        let (task, known) = self.awaited(step)?;
        let (scheduled, begun) = (task.scheduled, task.submitted.is_some() || task.taken);
        if !begun {
            self.begun(step, &known, scheduled, started);
        }
        let from = started.unwrap_or(scheduled);
        self.core.receipt.task_millis += self.now.duration_since(from).as_secs_f64().max(0.0) * 1000.0;
        Some(known)
    }

    pub(super) fn succeeded(&mut self, step: Step, output: &Arc<str>, started: Option<Timestamp>) -> bool {
        if self.is_spread(step) {
            self.spread_over(step, Ok(output));
            return true;
        }
        let Some(known) = self.answered(step, started) else { return false };
        let result = if output.len() > DATA_MAX {
            Err(ExecutionError::new(
                error::DATA_LIMIT_EXCEEDED,
                format!(
                    "the task's output is longer than the maximum number of bytes service limit, which is {DATA_MAX}"
                ),
            ))
        } else {
            serde_json::from_str::<Value>(output)
                .map_err(|e| ExecutionError::new(error::RUNTIME, format!("the task's output is no JSON: {e}")))
        };
        match result {
            Ok(value) => {
                let (kind, _) = known.words[2];
                self.note(step.scope, kind, known.details(2, json!({})), Some(("output", Arc::clone(output))));
                self.leave(step.scope, &value);
            }
            Err(error) => self.task_failed(step.scope, &known, error),
        }
        true
    }

    pub(super) fn failed(&mut self, step: Step, error: &ExecutionError, started: Option<Timestamp>) -> bool {
        if self.is_spread(step) {
            self.spread_over(step, Err(error));
            return true;
        }
        let Some(known) = self.answered(step, started) else { return false };
        let cut = |text: &str, most: usize| text.chars().take(most).collect::<String>();
        let error = ExecutionError::new(&cut(&error.error, ERROR_MAX.0), cut(&error.cause, ERROR_MAX.1));
        self.task_failed(step.scope, &known, error);
        true
    }

    fn task_failed(&mut self, id: u64, known: &Known, error: ExecutionError) {
        let late = error.error == error::TIMEOUT || error.error == error::HEARTBEAT_TIMEOUT;
        let word = if late { 4 } else { 3 };
        let cause = Some(&error.cause).filter(|c| !c.is_empty());
        let details = known.details(word, json!({"error": error.error, "cause": cause}));
        self.note(id, known.words[word].0, details, None);
        self.fail(id, error);
    }

    /// A task's time is up.
    pub(super) fn task_timer(&mut self, id: u64) {
        let now = self.now;
        let Some(entry) = self.core.scopes.get(&id).and_then(Scope::entry) else { return };
        let Doing::Task(task) = &entry.doing else { return };
        let step = Step { scope: id, entry: entry.id, attempt: entry.attempt };
        let whole = task.deadline.is_some_and(|d| d <= now);
        let name = if whole { error::TIMEOUT } else { error::HEARTBEAT_TIMEOUT };
        self.commands.push(Command::Cancel(step));
        if let Some(known) = self.answered(step, None) {
            self.task_failed(id, &known, ExecutionError::new(name, ""));
        }
    }
}
