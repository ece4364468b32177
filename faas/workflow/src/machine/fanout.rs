//! Parallel and Map: scopes within a state.

use serde_json::{Value, json};
use skiff_asl::definition::StateKind;
use skiff_asl::{ExecutionError, data, error};

use super::model::{At, Doing, MapStep, Scope};
use super::{BURST, CONCURRENCY_MAX, Machine};

/// Iterations of an inline Map at a time, where it asks for no limit.
const INLINE_CONCURRENCY: usize = 40;

impl Machine {
    /// Begins a Parallel.
    pub(super) fn branch(&mut self, id: u64, input: &Value) {
        let definition = std::sync::Arc::clone(&self.definition);
        let Some(entry) = self.core.scopes.get_mut(&id).and_then(Scope::entry_mut) else { return };
        let Some(StateKind::Parallel(parallel)) = definition.find(&entry.state).map(|s| &s.kind) else { return };
        entry.doing = Doing::Parallel { outputs: vec![None; parallel.branches.len()] };
        self.note(id, "ParallelStateStarted", None, None);
        for (index, branch) in parallel.branches.iter().enumerate() {
            self.child(id, index, &branch.start_at, input.clone(), None);
        }
    }

    fn child(&mut self, id: u64, index: usize, state: &str, input: Value, item: Option<Value>) {
        let Some(scope) = self.core.scopes.get(&id) else { return };
        let at = At::Enter { state: state.to_owned(), input, text: None };
        let child = Scope { up: Some((id, index)), item, variables: scope.variables.clone(), last: scope.last, at };
        let number = self.core.next_id;
        self.core.next_id += 1;
        self.core.scopes.insert(number, child);
        self.core.ready.push_back(number);
    }

    /// Begins a Map.
    pub(super) fn spread(&mut self, id: u64) {
        let state = self.core.scopes.get(&id).and_then(Scope::entry).and_then(|e| self.definition.find(&e.state));
        let distributed = matches!(state.map(|s| &s.kind), Some(StateKind::Map(map)) if map.mode.is_distributed());
        if distributed && self.info.durable {
            return self.distribute(id);
        }
        let planned = self.look(id, false, None, |state, entry, seen| {
            let StateKind::Map(map) = &state.kind else {
                return Err(ExecutionError::new(error::RUNTIME, "not a Map"));
            };
            if map.item_reader.is_some() || map.result_writer.is_some() {
                let cause = "ItemReader and ResultWriter need a workflow that is stored step by step (type standard)";
                return Err(ExecutionError::new(error::RUNTIME, cause));
            }
            let input = data::input(state, &entry.raw, seen)?;
            let items = data::items(map, &input, seen)?;
            let whole = |field, setting| data::whole(field, setting, 0, u64::from(u32::MAX), &input, seen);
            let concurrency = map.max_concurrency.as_ref().map(|s| whole("MaxConcurrency", s)).transpose()?;
            let count = map.tolerated_failure_count.as_ref();
            let count = count.map(|s| whole("ToleratedFailureCount", s)).transpose()?;
            let percentage = map.tolerated_failure_percentage.as_ref();
            let percentage = percentage
                .map(|s| data::fraction("ToleratedFailurePercentage", s, 0.0, 100.0, &input, seen))
                .transpose()?;
            let all = if map.mode.is_distributed() { CONCURRENCY_MAX } else { INLINE_CONCURRENCY };
            let concurrency = match usize::try_from(concurrency.unwrap_or(0)).unwrap_or(usize::MAX) {
                0 => all,
                some => some.min(CONCURRENCY_MAX),
            };
            Ok((input, items, concurrency, count, percentage))
        });
        let (input, items, concurrency, count, percentage) = match planned {
            Ok(planned) => planned,
            Err(error) => return self.fail(id, error),
        };
        let batched = self.batches(id, &input, &items);
        let (items, batched) = match batched {
            Ok(None) => (items, false),
            Ok(Some(batches)) => (batches, true),
            Err(error) => return self.fail(id, error),
        };
        let length = items.len();
        let step = MapStep {
            next: 0,
            running: 0,
            concurrency,
            outputs: vec![None; length],
            failed: 0,
            tolerated: tolerated(length, count, percentage),
            items,
            batched,
            input,
        };
        let Some(entry) = self.core.scopes.get_mut(&id).and_then(Scope::entry_mut) else { return };
        entry.doing = Doing::Map(Box::new(step));
        self.note(id, "MapStateStarted", Some(("mapStateStartedEventDetails", json!({"length": length}))), None);
        self.launch(id);
    }

    /// The items of a Map in batches, where it wants them so.
    fn batches(&mut self, id: u64, input: &Value, items: &[Value]) -> Result<Option<Vec<Value>>, ExecutionError> {
        let definition = std::sync::Arc::clone(&self.definition);
        let state = self.core.scopes.get(&id).and_then(Scope::entry).and_then(|e| definition.find(&e.state));
        let Some(StateKind::Map(map)) = state.map(|s| &s.kind) else { return Ok(None) };
        let Some(batcher) = &map.item_batcher else { return Ok(None) };
        let (shared, most, bytes) = self.look(id, false, None, |_, _, seen| {
            let whole = |field, setting| data::whole(field, setting, 1, u64::from(u32::MAX), input, seen);
            let shared = batcher.batch_input.as_ref().map(|b| b.eval(input, seen)).transpose()?;
            let most = batcher.max_items_per_batch.as_ref();
            let bytes = batcher.max_input_bytes_per_batch.as_ref();
            Ok((
                shared,
                most.map(|s| whole("MaxItemsPerBatch", s)).transpose()?,
                bytes.map(|s| whole("MaxInputBytesPerBatch", s)).transpose()?,
            ))
        })?;
        let most = most.map_or(usize::MAX, |m| usize::try_from(m).unwrap_or(usize::MAX));
        let bytes = bytes.map_or(usize::MAX, |b| usize::try_from(b).unwrap_or(usize::MAX)).min(crate::api::DATA_MAX);
        let around = shared.as_ref().map_or(16, |s| s.to_string().len() + 32);
        let (mut batches, mut batch, mut length) = (vec![], vec![], around);
        let close = |batch: &mut Vec<Value>| {
            let mut whole = json!({"Items": std::mem::take(batch)});
            if let (Some(shared), Some(whole)) = (&shared, whole.as_object_mut()) {
                whole.insert("BatchInput".to_owned(), shared.clone());
            }
            whole
        };
        for (index, item) in items.iter().enumerate() {
            let item = match &map.item_selector {
                None => item.clone(),
                Some(selector) => {
                    let of = self.contextual.then(|| json!({"Index": index, "Value": item}));
                    self.look(id, false, of, |_, _, seen| selector.eval(input, seen))?
                }
            };
            let size = item.to_string().len() + 1;
            if !batch.is_empty() && (batch.len() >= most || length + size > bytes) {
                batches.push(close(&mut batch));
                length = around;
            }
            length += size;
            batch.push(item);
        }
        if !batch.is_empty() {
            batches.push(close(&mut batch));
        }
        Ok(Some(batches))
    }

    /// Begins as many iterations as may run, and ends the Map when there are none.
    pub(super) fn launch(&mut self, id: u64) {
        let definition = std::sync::Arc::clone(&self.definition);
        loop {
            let Some(entry) = self.core.scopes.get_mut(&id).and_then(Scope::entry_mut) else { return };
            let name = entry.state.clone();
            let Doing::Map(step) = &mut entry.doing else { return };
            let Some(StateKind::Map(map)) = definition.find(&name).map(|s| &s.kind) else { return };
            if step.next >= step.items.len() {
                if step.running == 0 {
                    let outputs = std::mem::take(&mut step.outputs);
                    let result = Value::Array(outputs.into_iter().map(Option::unwrap_or_default).collect());
                    self.note(id, "MapStateSucceeded", None, None);
                    self.leave(id, &result);
                }
                return;
            }
            if step.running >= step.concurrency {
                return;
            }
            if self.burst >= BURST {
                // The rest when this is stored.
                if !self.core.ready.contains(&id) {
                    self.core.ready.push_back(id);
                }
                return;
            }
            let index = step.next;
            step.next += 1;
            step.running += 1;
            let item = step.items.get_mut(index).map(Value::take).unwrap_or_default();
            let of = self.contextual.then(|| json!({"Index": index, "Value": item}));
            let input = match &map.item_selector {
                Some(selector) if !step.batched => {
                    let input = std::mem::take(&mut step.input);
                    let selected = self.look(id, false, of.clone(), |_, _, seen| selector.eval(&input, seen));
                    if let Some(Doing::Map(step)) =
                        self.core.scopes.get_mut(&id).and_then(Scope::entry_mut).map(|e| &mut e.doing)
                    {
                        step.input = input;
                    }
                    selected
                }
                _ => Ok(item),
            };
            let input = match input {
                Ok(input) => input,
                Err(error) => return self.fail(id, error),
            };
            let details = json!({"name": name, "index": index});
            self.note(id, "MapIterationStarted", Some(("mapIterationStartedEventDetails", details)), None);
            self.child(id, index, &map.processor.start_at, input, of);
        }
    }

    /// A scope ended well.
    pub(super) fn child_done(&mut self, id: u64, output: Value) {
        let Some(child) = self.core.scopes.remove(&id) else { return };
        let Some((up, index)) = child.up else { return };
        let Some(scope) = self.core.scopes.get_mut(&up) else { return };
        scope.last = child.last;
        let Some(entry) = scope.entry_mut() else { return };
        match &mut entry.doing {
            Doing::Parallel { outputs } => {
                if let Some(place) = outputs.get_mut(index) {
                    *place = Some(output);
                }
                if outputs.iter().all(Option::is_some) {
                    let result = Value::Array(outputs.iter_mut().filter_map(Option::take).collect());
                    self.note(up, "ParallelStateSucceeded", None, None);
                    self.leave(up, &result);
                }
            }
            Doing::Map(step) => {
                if let Some(place) = step.outputs.get_mut(index) {
                    *place = Some(output);
                }
                step.running -= 1;
                let details = json!({"name": entry.state, "index": index});
                self.note(up, "MapIterationSucceeded", Some(("mapIterationSucceededEventDetails", details)), None);
                self.launch(up);
            }
            _ => {}
        }
    }

    /// A scope failed.
    pub(super) fn child_failed(&mut self, id: u64, error: ExecutionError) {
        let Some(child) = self.core.scopes.get(&id) else { return };
        let (Some((up, index)), last) = (child.up, child.last) else { return };
        let Some(scope) = self.core.scopes.get_mut(&up) else { return };
        scope.last = last;
        let Some(entry) = scope.entry_mut() else { return };
        let name = entry.state.clone();
        let Doing::Map(step) = &mut entry.doing else {
            return self.fail_as(up, error, true);
        };
        let details = json!({"name": name, "index": index});
        step.failed += 1;
        let beyond = step.tolerated.is_none_or(|most| step.failed > most);
        if beyond {
            // It stays where it failed: a redrive goes on with it, and may fail again.
            step.failed -= 1;
            let error = match step.tolerated {
                None => error,
                Some(most) => {
                    let cause = format!("more than {most} of {} items failed: {error}", step.items.len());
                    ExecutionError::new(error::EXCEED_TOLERATED_FAILURE_THRESHOLD, cause)
                }
            };
            self.note(up, "MapIterationFailed", Some(("mapIterationFailedEventDetails", details)), None);
            return self.fail_as(up, error, true);
        }
        step.running -= 1;
        if let Some(place) = step.outputs.get_mut(index) {
            *place = Some(error.output());
        }
        self.note(up, "MapIterationFailed", Some(("mapIterationFailedEventDetails", details)), None);
        self.drop_children(id);
        self.core.scopes.remove(&id);
        self.launch(up);
    }
}

/// How many of so many items may fail, where any may.
fn tolerated(length: usize, count: Option<u64>, percentage: Option<f64>) -> Option<usize> {
    let count = count.map(|c| usize::try_from(c).unwrap_or(usize::MAX));
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let share = percentage.map(|p| (length as f64 * p / 100.0).floor() as usize);
    count.into_iter().chain(share).min()
}
