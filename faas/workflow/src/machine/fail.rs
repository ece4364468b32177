//! What goes wrong: retries, catchers, breaking off, and going on from there.

use k8s_openapi::jiff::SignedDuration;
use serde_json::json;
use skiff_asl::definition::StateKind;
use skiff_asl::{ExecutionError, data, error, retry};

use super::Machine;
use super::history::aborted;
use super::model::{At, Command, Doing, Scope, Step};
use crate::api::Phase;
use crate::pack;

/// Events about what is broken off together: more of them say no more.
const ABORTED_MAX: usize = 20;

impl Machine {
    /// The state a scope is in fails: it is tried again, caught, or the scope fails.
    pub(super) fn fail(&mut self, id: u64, error: ExecutionError) {
        self.fail_as(id, error, false);
    }

    /// The same; with `stays` a redrive goes on with what is below the state, not with the state anew.
    pub(super) fn fail_as(&mut self, id: u64, error: ExecutionError, stays: bool) {
        if self.core.over.is_some() {
            return;
        }
        let definition = std::sync::Arc::clone(&self.definition);
        let Some(entry) = self.core.scopes.get(&id).and_then(Scope::entry) else { return };
        let Some(state) = definition.find(&entry.state) else { return };
        let fanned = match &state.kind {
            StateKind::Parallel(_) => Some(("ParallelStateFailed", "parallelStateFailedEventDetails")),
            StateKind::Map(_) => Some(("MapStateFailed", "mapStateFailedEventDetails")),
            _ => None,
        };
        // An error of a branch has its own name; a handler may also name what happened to the state.
        let branch = matches!(state.kind, StateKind::Parallel(_)).then_some(error::BRANCH_FAILED);
        let named = |find: &dyn Fn(&str) -> Option<usize>| find(&error.error).or_else(|| branch.and_then(find));
        let step = Step { scope: id, entry: entry.id, attempt: entry.attempt };
        if let Some((kind, key)) = fanned
            && !matches!(entry.doing, Doing::Begin | Doing::Backoff { .. })
        {
            self.note(id, kind, Some((key, json!({"error": error.error, "cause": error.cause}))), None);
        }
        if let Some(i) = named(&|name| retry::find(&state.retry, name))
            && let Some(retrier) = state.retry.get(i)
        {
            let random = self.random(step);
            let Some(entry) = self.core.scopes.get_mut(&id).and_then(Scope::entry_mut) else { return };
            entry.tries.resize(state.retry.len(), 0);
            let tried = entry.tries.get(i).copied().unwrap_or_default();
            if tried < retrier.max_attempts {
                let delay =
                    SignedDuration::try_from(retry::delay(retrier, tried, random)).unwrap_or(SignedDuration::MAX);
                let until = self.now.checked_add(delay).unwrap_or(k8s_openapi::jiff::Timestamp::MAX);
                entry.tries[i] += 1;
                entry.retries += 1;
                entry.attempt += 1;
                entry.doing = Doing::Backoff { until };
                self.drop_children(id);
                return;
            }
        }
        if let Some(catcher) = named(&|name| retry::find_catcher(&state.catch, name)).and_then(|i| state.catch.get(i)) {
            let output = error.output();
            let caught = self.look(id, false, None, |state, entry, seen| {
                let assigned = data::catch_assign(catcher, state, &entry.raw, &output, seen)?;
                Ok((data::catch_output(catcher, &entry.raw, &output, seen)?, assigned))
            });
            match caught {
                Ok(left) => {
                    self.drop_children(id);
                    let text = left.0.to_string();
                    if text.len() > crate::api::DATA_MAX {
                        return self.unhandled(id, super::walk::too_long("output"), stays);
                    }
                    return self.exit(id, left, Some(catcher.next.clone()));
                }
                Err(error) => return self.unhandled(id, error, stays),
            }
        }
        self.unhandled(id, error, stays);
    }

    /// Nothing helps: the scope fails.
    fn unhandled(&mut self, id: u64, error: ExecutionError, stays: bool) {
        if let Some(entry) = self.core.scopes.get_mut(&id).and_then(Scope::entry_mut)
            && !stays
        {
            entry.doing = Doing::Broken;
        }
        if id == 0 {
            let named = |text: String| Some(text).filter(|t| !t.is_empty());
            self.end(Phase::Failed, named(error.error), named(error.cause));
        } else {
            self.child_failed(id, error);
        }
    }

    /// Ends everything below a scope's state, which goes on without it.
    pub(super) fn drop_children(&mut self, id: u64) {
        let mut below = vec![id];
        let mut next = 0;
        while let Some(up) = below.get(next).copied() {
            below.extend(self.core.scopes.iter().filter(|(_, s)| s.up.is_some_and(|(u, _)| u == up)).map(|(i, _)| *i));
            next += 1;
        }
        let children = below.split_off(1);
        self.abort(&children);
        for child in &children {
            if let Some(child) = self.core.scopes.remove(child)
                && let Some(scope) = self.core.scopes.get_mut(&id)
            {
                scope.last = scope.last.max(child.last);
            }
        }
        self.core.ready.retain(|r| !children.contains(r));
    }

    /// Ends everything that is under way in some scopes.
    fn abort(&mut self, scopes: &[u64]) {
        let mut told = 0;
        for id in scopes {
            let Some(entry) = self.core.scopes.get(id).and_then(Scope::entry) else { continue };
            let step = Step { scope: *id, entry: entry.id, attempt: entry.attempt };
            let map = matches!(entry.doing, Doing::Spread { .. });
            let leaf = match &entry.doing {
                Doing::Task(_) | Doing::Spread { failed: false, .. } => {
                    self.commands.push(Command::Cancel(step));
                    true
                }
                Doing::Wait { .. } | Doing::Backoff { .. } => true,
                Doing::Begin | Doing::Parallel { .. } | Doing::Map(_) | Doing::Spread { .. } | Doing::Broken => false,
            };
            let kind = self.definition.find(&entry.state).and_then(|s| aborted(s.type_name()));
            if let Some(kind) = kind.filter(|_| leaf && told < ABORTED_MAX) {
                told += 1;
                if map {
                    self.note(*id, "MapRunAborted", None, None);
                }
                self.note(*id, kind, None, None);
            }
        }
    }

    /// Ends everything that is under way; where it was stays.
    pub(super) fn break_off(&mut self) {
        let all: Vec<u64> = self.core.scopes.keys().copied().collect();
        self.abort(&all);
        self.core.ready.clear();
        for scope in self.core.scopes.values_mut() {
            if let Some(entry) = scope.entry_mut()
                && !matches!(entry.doing, Doing::Parallel { .. } | Doing::Map(_) | Doing::Spread { .. })
            {
                entry.doing = Doing::Broken;
            }
        }
    }

    pub(super) fn stop(&mut self, error: Option<&str>, cause: Option<&str>) -> bool {
        if self.core.over.is_some() {
            return false;
        }
        self.end(Phase::Aborted, error.map(str::to_owned), cause.map(str::to_owned));
        true
    }

    pub(super) fn redrive(&mut self, count: u32) -> bool {
        let over = self.core.over.as_ref().is_some_and(|o| o.phase != Phase::Succeeded);
        if !over || count <= self.core.redrives {
            return false;
        }
        self.core.over = None;
        self.core.redrives = count;
        self.core.redriven = Some(self.now);
        self.core.deadline = self.time_limit();
        let previous = self.core.next_event - 1;
        let details = json!({"redriveCount": count});
        self.event(previous, "ExecutionRedriven", Some(("executionRedrivenEventDetails", details)), None);
        let mut ready = vec![];
        for (id, scope) in &mut self.core.scopes {
            match &mut scope.at {
                At::Enter { .. } => ready.push(*id),
                At::In(entry) => match entry.doing {
                    Doing::Broken => {
                        entry.doing = Doing::Begin;
                        entry.tries.clear();
                        entry.attempt += 1;
                        ready.push(*id);
                    }
                    Doing::Map(_) => ready.push(*id),
                    _ => {}
                },
            }
        }
        self.core.ready.extend(ready);
        self.spread_again();
        true
    }

    /// From 0 to 1, the same each time the same step asks.
    fn random(&self, step: Step) -> f64 {
        let digest = pack::digest(format!("{}/{step}", self.info.secret).as_bytes());
        let bits = digest.get(..8).and_then(|d| u32::from_str_radix(d, 16).ok()).unwrap_or_default();
        f64::from(bits) / f64::from(u32::MAX)
    }
}
