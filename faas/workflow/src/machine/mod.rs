//! The machine: what a run is, as a pure function of its definition and of what came from outside.
//!
//! [`Machine::apply`] takes one [`Input`], walks every transition that follows without the outside, and leaves behind the
//! events of the history ([`Machine::events`]) and what is to be done ([`Machine::commands`]). It reads no clock and throws no
//! dice: the same inputs give the same events, so a run is rebuilt from a checkpoint and the inputs since. The caller stores
//! the input with the events, and only then does what is commanded.
//!
//! Limits: [`BURST`] bytes of events in one go (then [`Machine::more`] is true and [`What::Go`] goes on); `max_events` of a
//! run; 262,144 bytes of JSON text for what goes in and out of a state; [`CONCURRENCY_MAX`] iterations at a time.

mod context;
mod fail;
mod fanout;
mod history;
mod map;
mod model;
mod task;
mod walk;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skiff_asl::Definition;

pub use self::map::{Batches, Plan, Source, Spread, below, path};
use self::model::{At, Core, Doing, Scope};
pub use self::model::{Command, Dispatch, Event, Input, Over, Step, What};
use crate::api::{Phase, Receipt};

/// Bytes of events after which a run is stored before it goes on.
const BURST: usize = 12 * 1024;
/// Iterations of a Map at a time, whatever it asks for.
pub const CONCURRENCY_MAX: usize = 1000;

/// What a run is told about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// Namespace.
    pub namespace: String,
    /// Name of the object.
    pub run: String,
    /// Its uid.
    pub uid: String,
    /// Name of the execution.
    pub name: String,
    /// `Execution.Id`.
    pub id: String,
    /// Name of the workflow, or of the run where it has a definition of its own.
    pub workflow: String,
    /// `StateMachine.Id`.
    pub workflow_id: String,
    /// `Execution.RoleArn`: the ServiceAccount.
    pub role: String,
    /// The input.
    pub input: Value,
    /// Seconds it may take, as the workflow says.
    pub timeout_seconds: Option<u64>,
    /// Events it may have.
    pub max_events: u64,
    /// What task tokens are made with.
    pub secret: String,
    /// Whether it is stored step by step. Only such a run has distributed Maps whose items are executions of their own; where it
    /// is in memory only, they are iterations as of an inline Map.
    pub durable: bool,
    /// Of an execution of a distributed Map: the state that it begins with, somewhere in the definition.
    pub start_at: Option<String>,
    /// Of such an execution: what stands before its steps in addresses and keys.
    pub path: String,
}

/// A run.
pub struct Machine {
    definition: Arc<Definition>,
    info: Arc<Info>,
    core: Core,
    /// The context object but for the state.
    context: Value,
    /// Whether any state reads the context object.
    contextual: bool,
    events: Vec<Event>,
    commands: Vec<Command>,
    burst: usize,
    now: Timestamp,
}

impl Machine {
    /// A run that has not begun: [`What::Start`] begins it.
    #[must_use]
    pub fn new(definition: Arc<Definition>, info: Arc<Info>) -> Self {
        let core = Core { next_event: 1, next_id: 1, ..Core::default() };
        Self::with(definition, info, core)
    }

    /// A run as it was when the checkpoint was made.
    ///
    /// # Errors
    /// When it is none.
    pub fn restore(definition: Arc<Definition>, info: Arc<Info>, checkpoint: &str) -> Result<Self, serde_json::Error> {
        Ok(Self::with(definition, info, serde_json::from_str(checkpoint)?))
    }

    fn with(definition: Arc<Definition>, info: Arc<Info>, core: Core) -> Self {
        let contextual = context::is_used(&definition.raw);
        Self {
            definition,
            info,
            core,
            context: Value::Null,
            contextual,
            events: vec![],
            commands: vec![],
            burst: 0,
            now: Timestamp::UNIX_EPOCH,
        }
    }

    /// Everything the run is, but for what it pinned.
    #[must_use]
    pub fn checkpoint(&self) -> String {
        // Maps with string keys and finite numbers only.
        serde_json::to_string(&self.core).unwrap_or_default()
    }

    /// Takes what came. False when it says nothing to this run (any more): then nothing changed, and it is not to be stored.
    pub fn apply(&mut self, input: &Input) -> bool {
        self.now = input.at;
        self.burst = 0;
        let known = match &input.what {
            What::Start => self.start(),
            What::Go => self.more(),
            What::Timer => self.timer(),
            What::Submitted { step, output, started } => self.submitted(*step, output, *started),
            What::Taken { step, worker } => self.taken(*step, worker.as_deref()),
            What::Succeeded { step, output, started } => self.succeeded(*step, output, *started),
            What::Failed { step, error, started } => self.failed(*step, error, *started),
            What::Heartbeat { step } => self.heartbeat(*step),
            What::Stop { error, cause } => self.stop(error.as_deref(), cause.as_deref()),
            What::Redrive { count } => self.redrive(*count),
        };
        if known {
            self.go();
        }
        known
    }

    /// Whether there is more to do at once: then [`What::Go`] is next.
    #[must_use]
    pub fn more(&self) -> bool {
        self.core.over.is_none() && !self.core.ready.is_empty()
    }

    /// The events since this was last asked.
    pub fn events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// What is to be done since this was last asked.
    pub fn commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    /// Everything that is under way, as if it was to be done anew: for an engine that takes the run over.
    #[must_use]
    pub fn outstanding(&self) -> Vec<Command> {
        if self.core.over.is_some() {
            return vec![];
        }
        let tasks = self.core.scopes.iter().filter_map(|(id, scope)| self.dispatch(*id, scope));
        let tasks = tasks.map(|task| Command::Dispatch(Box::new(task)));
        tasks.chain(self.spreads().map(|map| Command::Map(Box::new(map)))).collect()
    }

    /// When time alone changes something.
    #[must_use]
    pub fn wake(&self) -> Option<Timestamp> {
        if self.core.over.is_some() {
            return None;
        }
        let entries = self.core.scopes.values().filter_map(Scope::entry);
        let timers = entries.filter_map(|e| task::due(&e.doing));
        timers.chain(self.core.deadline).min()
    }

    /// How it ended.
    #[must_use]
    pub fn over(&self) -> Option<&Over> {
        self.core.over.as_ref()
    }

    /// Names of the states it is in, in the order of their scopes, at most `limit`.
    #[must_use]
    pub fn current(&self, limit: usize) -> Vec<String> {
        let mut names: Vec<String> = vec![];
        for scope in self.core.scopes.values() {
            let name = match &scope.at {
                At::Enter { state, .. } => state,
                At::In(entry) => &entry.state,
            };
            if names.len() < limit && !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    /// Number of the last event.
    #[must_use]
    pub fn last_event(&self) -> i64 {
        self.core.next_event - 1
    }

    /// States it entered.
    #[must_use]
    pub fn transitions(&self) -> u64 {
        self.core.transitions
    }

    /// How often it was redriven, and when last.
    #[must_use]
    pub fn redrives(&self) -> (u32, Option<Timestamp>) {
        (self.core.redrives, self.core.redriven)
    }

    /// When it began.
    #[must_use]
    pub fn started(&self) -> Timestamp {
        self.core.started
    }

    /// What a task that is under way is given.
    #[must_use]
    pub fn parameters(&self, step: Step) -> Option<Arc<Value>> {
        let entry = self.core.scopes.get(&step.scope).and_then(Scope::entry)?;
        match &entry.doing {
            Doing::Task(task) if (entry.id, entry.attempt) == (step.entry, step.attempt) => {
                Some(Arc::clone(&task.parameters))
            }
            _ => None,
        }
    }

    /// What took the time, but for the engine's own.
    #[must_use]
    pub fn receipt(&self) -> &Receipt {
        &self.core.receipt
    }

    /// What it runs.
    #[must_use]
    pub fn definition(&self) -> &Arc<Definition> {
        &self.definition
    }

    /// What it was told about itself.
    #[must_use]
    pub fn info(&self) -> &Arc<Info> {
        &self.info
    }

    fn start(&mut self) -> bool {
        if self.core.next_event != 1 {
            return false;
        }
        let text: Arc<str> = self.info.input.to_string().into();
        let details = json!({"roleArn": self.info.role});
        let last =
            self.event(0, "ExecutionStarted", Some(("executionStartedEventDetails", details)), Some(("input", text)));
        self.core.started = self.now;
        self.core.deadline = self.time_limit();
        let state = self.info.start_at.clone().unwrap_or_else(|| self.definition.machine.start_at.clone());
        let at = At::Enter { state, input: self.info.input.clone(), text: None };
        let scope = Scope { up: None, item: None, variables: Default::default(), last, at };
        self.core.scopes.insert(0, scope);
        self.core.ready.push_back(0);
        true
    }

    fn time_limit(&self) -> Option<Timestamp> {
        // That of the definition is the whole run's.
        let whole = self.definition.timeout_seconds.filter(|_| self.info.start_at.is_none());
        let limits = [whole, self.info.timeout_seconds];
        let seconds = limits.into_iter().flatten().min()?;
        Some(history::after(self.now, seconds))
    }

    /// Walks what is ready, up to so many bytes of events.
    fn go(&mut self) {
        while self.core.over.is_none() && self.burst < BURST {
            let Some(id) = self.core.ready.pop_front() else { return };
            self.walk(id);
        }
    }

    fn timer(&mut self) -> bool {
        if self.core.over.is_some() {
            return false;
        }
        if self.core.deadline.is_some_and(|d| d <= self.now) {
            self.end(Phase::TimedOut, Some(skiff_asl::error::TIMEOUT.to_owned()), None);
            return true;
        }
        let mut due: Vec<(Timestamp, u64)> = vec![];
        for (id, scope) in &self.core.scopes {
            if let Some(at) = scope.entry().and_then(|e| task::due(&e.doing)).filter(|at| *at <= self.now) {
                due.push((at, *id));
            }
        }
        due.sort_unstable();
        for (_, id) in &due {
            // The rest is still due afterwards.
            if self.burst >= BURST {
                break;
            }
            // An earlier one may have ended a later one's scope.
            let still = self.core.scopes.get(id).and_then(Scope::entry).and_then(|e| task::due(&e.doing));
            if still.is_some_and(|at| at <= self.now) {
                self.fire(*id);
            }
        }
        !due.is_empty()
    }

    /// A timer of a scope.
    fn fire(&mut self, id: u64) {
        let Some(entry) = self.core.scopes.get_mut(&id).and_then(Scope::entry_mut) else { return };
        match &entry.doing {
            Doing::Wait { .. } => {
                let raw = entry.raw.clone();
                self.waited(id, &raw);
            }
            Doing::Backoff { .. } => {
                entry.doing = Doing::Begin;
                self.core.ready.push_back(id);
            }
            Doing::Task(_) => self.task_timer(id),
            _ => {}
        }
    }
}
