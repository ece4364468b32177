//! Entering, evaluating and leaving states.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use skiff_asl::definition::{State, StateKind, Transition};
use skiff_asl::{ExecutionError, Scope as Seen, choice, data, error};

use super::Machine;
use super::history::{after, entered, exited};
use super::model::{At, Doing, Entry};
use crate::api::DATA_MAX;

/// FNV-1a of 64 bits: quick, and the same in every version of this program.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// What leaves a state: its output, and the variables it sets.
pub(super) type Left = (Value, BTreeMap<String, Value>);

/// What follows from looking at a state.
enum Plan {
    Leave(Left),
    LeaveTo(Left, String),
    Wait(Timestamp),
    Task,
    Parallel(Value),
    Map,
}

impl Machine {
    /// One step of a scope that goes on by itself.
    pub(super) fn walk(&mut self, id: u64) {
        let Some(scope) = self.core.scopes.get(&id) else { return };
        match &scope.at {
            At::Enter { .. } => {
                if self.enter(id) {
                    self.begin(id);
                }
            }
            At::In(entry) => match entry.doing {
                Doing::Begin => self.begin(id),
                Doing::Map(_) => self.launch(id),
                _ => {}
            },
        }
    }

    /// Enters the state a scope is before. False when the run has gone on for too long.
    fn enter(&mut self, id: u64) -> bool {
        let next = self.core.next_id;
        let (now, limit) = (self.now, self.info.max_events);
        let Some(scope) = self.core.scopes.get_mut(&id) else { return false };
        let At::Enter { state, input, text } = &mut scope.at else { return false };
        if u64::try_from(self.core.next_event).unwrap_or(0) >= limit {
            let cause = format!("the run has {limit} events: an endless loop?");
            self.end(crate::api::Phase::Failed, Some(error::RUNTIME.to_owned()), Some(cause));
            return false;
        }
        let (state, raw) = (std::mem::take(state), input.take());
        let text = text.take().unwrap_or_else(|| raw.to_string().into());
        let type_name = self.definition.find(&state).map_or("Pass", State::type_name);
        let details = json!({"name": state});
        let doing = Doing::Begin;
        let entry = Entry { id: next, state, raw, entered: now, tries: vec![], retries: 0, attempt: 0, doing };
        scope.at = At::In(Box::new(entry));
        self.core.next_id += 1;
        self.core.transitions += 1;
        self.note(id, entered(type_name), Some(("stateEnteredEventDetails", details)), Some(("input", text)));
        true
    }

    /// Looks at the state a scope is in, with what the state sees. `item` is for a Map that looks at one of its items.
    pub(super) fn look<R>(
        &mut self,
        id: u64,
        token: bool,
        item: Option<Value>,
        f: impl FnOnce(&State, &Entry, &Seen<'_>) -> Result<R, ExecutionError>,
    ) -> Result<R, ExecutionError> {
        let gone = || ExecutionError::new(error::RUNTIME, "the state is gone");
        let definition = Arc::clone(&self.definition);
        let scope = self.core.scopes.get_mut(&id).ok_or_else(gone)?;
        let nowhere = At::Enter { state: String::new(), input: Value::Null, text: None };
        let At::In(entry) = std::mem::replace(&mut scope.at, nowhere) else { return Err(gone()) };
        let variables = std::mem::take(&mut scope.variables);
        let mut context = self.context(id, &entry, token);
        if let (Some(item), Some(fields)) = (item, context.as_object_mut()) {
            fields.insert("Map".to_owned(), json!({"Item": item}));
        }
        let state = definition.find(&entry.state).ok_or_else(gone);
        let (seed, at) = (self.seed(&entry), self.now);
        let found = state.and_then(|state| {
            skiff_asl::dice::with_seed_at(seed, at, || f(state, &entry, &Seen::new(&context, &variables)))
        });
        self.done_with(context);
        if let Some(scope) = self.core.scopes.get_mut(&id) {
            scope.at = At::In(entry);
            scope.variables = variables;
        }
        found
    }

    /// Chance in what a state evaluates: the same when the run is rebuilt.
    fn seed(&self, entry: &Entry) -> u64 {
        let mut hash = FNV_OFFSET;
        let numbers = [entry.id, entry.attempt, self.core.next_event.unsigned_abs(), self.core.next_id];
        for byte in self.info.secret.bytes().chain(numbers.into_iter().flat_map(u64::to_le_bytes)) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
        hash
    }

    /// Does what a state does.
    fn begin(&mut self, id: u64) {
        let now = self.now;
        let plan = self.look(id, false, None, |state, entry, seen| plan(state, &entry.raw, seen, now));
        match plan {
            Ok(Plan::Leave(left)) => self.exit(id, left, None),
            Ok(Plan::LeaveTo(left, next)) => self.exit(id, left, Some(next)),
            Ok(Plan::Wait(until)) => {
                if let Some(entry) = self.core.scopes.get_mut(&id).and_then(super::Scope::entry_mut) {
                    entry.doing = Doing::Wait { until };
                }
            }
            Ok(Plan::Task) => self.schedule(id),
            Ok(Plan::Parallel(input)) => self.branch(id, &input),
            Ok(Plan::Map) => self.spread(id),
            Err(error) => self.fail(id, error),
        }
    }

    /// A Wait is over.
    pub(super) fn waited(&mut self, id: u64, raw: &Value) {
        let left = self.look(id, false, None, |state, _, seen| pass_on(state, raw, seen));
        match left {
            Ok(left) => self.exit(id, left, None),
            Err(error) => self.fail(id, error),
        }
    }

    /// A Task, Parallel or Map has its result.
    pub(super) fn leave(&mut self, id: u64, result: &Value) {
        let left = self
            .look(id, false, None, |state, entry, seen| settle(state, &entry.raw, result, &seen.with_result(result)));
        match left {
            Ok(left) => self.exit(id, left, None),
            Err(error) => self.fail(id, error),
        }
    }

    /// Leaves a state, to where it says unless to `next`.
    pub(super) fn exit(&mut self, id: u64, left: Left, next: Option<String>) {
        let (output, assigned) = left;
        let text: Arc<str> = output.to_string().into();
        if text.len() > DATA_MAX {
            return self.fail(id, too_long("output"));
        }
        let definition = Arc::clone(&self.definition);
        let Some(scope) = self.core.scopes.get_mut(&id) else { return };
        let Some(entry) = scope.entry() else { return };
        let Some(state) = definition.find(&entry.state) else { return };
        let mut details = json!({"name": state.name});
        if !assigned.is_empty()
            && let Some(details) = details.as_object_mut()
        {
            let texts: serde_json::Map<String, Value> =
                assigned.iter().map(|(k, v)| (k.clone(), Value::String(v.to_string()))).collect();
            details.insert("assignedVariables".to_owned(), Value::Object(texts));
        }
        scope.variables.extend(assigned);
        let next = next.or_else(|| match &state.next {
            Transition::Next(next) => Some(next.clone()),
            Transition::End | Transition::Choice => None,
        });
        let kind = exited(state.type_name());
        self.note(id, kind, Some(("stateExitedEventDetails", details)), Some(("output", Arc::clone(&text))));
        match next {
            Some(state) => {
                if let Some(scope) = self.core.scopes.get_mut(&id) {
                    scope.at = At::Enter { state, input: output, text: Some(text) };
                    self.core.ready.push_back(id);
                }
            }
            None if id == 0 => self.complete(output, text),
            None => self.child_done(id, output),
        }
    }
}

/// Data that is longer than it may be.
pub(super) fn too_long(what: &str) -> ExecutionError {
    let cause =
        format!("the state's {what} is longer than the maximum number of bytes service limit, which is {DATA_MAX}");
    ExecutionError::new(error::DATA_LIMIT_EXCEEDED, cause)
}

fn plan(state: &State, raw: &Value, seen: &Seen<'_>, now: Timestamp) -> Result<Plan, ExecutionError> {
    match &state.kind {
        StateKind::Task(_) => Ok(Plan::Task),
        StateKind::Map(_) => Ok(Plan::Map),
        StateKind::Parallel(_) => {
            let input = data::input(state, raw, seen)?;
            Ok(Plan::Parallel(data::parameters(state, &input, seen)?))
        }
        StateKind::Pass(pass) => {
            let input = data::input(state, raw, seen)?;
            let result = match &pass.result {
                Some(result) => result.clone(),
                None => data::parameters(state, &input, seen)?,
            };
            Ok(Plan::Leave(settle(state, raw, &result, seen)?))
        }
        StateKind::Succeed => Ok(Plan::Leave(pass_on(state, raw, seen)?)),
        StateKind::Fail(fail) => {
            let input = data::input(state, raw, seen)?;
            Err(data::failure(fail, &input, seen)?)
        }
        StateKind::Wait(wait) => {
            let input = data::input(state, raw, seen)?;
            let until = match data::pause(wait, &input, seen)? {
                data::Pause::Seconds(seconds) => after(now, seconds),
                data::Pause::Until(until) => until,
            };
            if until <= now { Ok(Plan::Leave(pass_on(state, raw, seen)?)) } else { Ok(Plan::Wait(until)) }
        }
        StateKind::Choice(choice) => {
            let input = data::input(state, raw, seen)?;
            let decision = choice::decide(choice, &input, seen)?.ok_or_else(choice::no_match)?;
            let rule = decision.rule.and_then(|i| choice.choices.get(i));
            let assigned = match rule {
                Some(rule) => data::rule_assign(rule, &input, seen)?,
                None => data::assign(state, &input, seen)?,
            };
            let output = match rule.and_then(|r| r.output.as_ref()) {
                Some(output) => output.eval(raw, seen)?,
                None => data::output(state, raw, input, seen)?,
            };
            Ok(Plan::LeaveTo((output, assigned), decision.next.to_owned()))
        }
    }
}

/// What leaves a state that has no result of its own.
fn pass_on(state: &State, raw: &Value, seen: &Seen<'_>) -> Result<Left, ExecutionError> {
    let input = data::input(state, raw, seen)?;
    let assigned = data::assign(state, &input, seen)?;
    Ok((data::output(state, raw, input, seen)?, assigned))
}

/// What leaves a state that has a result.
fn settle(state: &State, raw: &Value, result: &Value, seen: &Seen<'_>) -> Result<Left, ExecutionError> {
    let selected = data::result_selector(state, result, seen)?;
    // In Assign `$` is the result as it came, not what ResultSelector made of it.
    let assigned = data::assign(state, if state.is_jsonata() { raw } else { result }, seen)?;
    let combined = data::result_path(&state.result_path, raw, selected)?;
    Ok((data::output(state, raw, combined, seen)?, assigned))
}
