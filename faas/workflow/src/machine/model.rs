//! What a run is between two events, and what goes in and out.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skiff_asl::ExecutionError;

use super::map::{Plan, Spread};
use crate::api::{Phase, Receipt};

/// One attempt of one task: where it is, and what its idempotency key ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    /// The scope.
    pub scope: u64,
    /// The visit of a state.
    pub entry: u64,
    /// The attempt of it, from 0.
    pub attempt: u64,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.scope, self.entry, self.attempt)
    }
}

impl FromStr for Step {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('-').map(|p| p.parse().map_err(|_| ()));
        let mut next = || parts.next().unwrap_or(Err(()));
        let step = Self { scope: next()?, entry: next()?, attempt: next()? };
        if parts.next().is_none() { Ok(step) } else { Err(()) }
    }
}

impl Serialize for Step {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|()| serde::de::Error::custom(format!("not a step: {text}")))
    }
}

/// Something that came from outside, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// When the engine took it.
    pub at: Timestamp,
    /// What it is.
    pub what: What,
}

/// What comes from outside.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// It begins.
    Start,
    /// It goes on after so many transitions in one go that they had to be stored first.
    Go,
    /// Time passed: whatever is due.
    Timer,
    /// A task was taken over: the job exists, the callback's request was made.
    Submitted {
        /// Which.
        step: Step,
        /// JSON text.
        output: Arc<str>,
        /// When it was dispatched.
        started: Timestamp,
    },
    /// A worker fetched an activity's task.
    Taken {
        /// Which.
        step: Step,
        /// Who.
        worker: Option<String>,
    },
    /// A task answered.
    Succeeded {
        /// Which.
        step: Step,
        /// JSON text.
        output: Arc<str>,
        /// When it was dispatched, where it was by this engine.
        started: Option<Timestamp>,
    },
    /// A task failed.
    Failed {
        /// Which.
        step: Step,
        /// How.
        error: ExecutionError,
        /// When it was dispatched, where it was by this engine.
        started: Option<Timestamp>,
    },
    /// A task is still worked on.
    Heartbeat {
        /// Which.
        step: Step,
    },
    /// It is stopped.
    Stop {
        /// Error.
        error: Option<String>,
        /// Cause.
        cause: Option<String>,
    },
    /// It goes on from where it failed.
    Redrive {
        /// How often that was asked, this time too.
        count: u32,
    },
}

/// What the engine does once what led to it is stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Does a task's work.
    Dispatch(Box<Dispatch>),
    /// Does a distributed Map.
    Map(Box<Spread>),
    /// Ends the work on a task or a distributed Map, which nobody waits for any more.
    Cancel(Step),
}

/// A task's work.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// Which.
    pub step: Step,
    /// Name of the state.
    pub state: String,
    /// What does it.
    pub resource: String,
    /// With what.
    pub parameters: Arc<Value>,
    /// Until when.
    pub deadline: Option<Timestamp>,
    /// The task token, where it has one.
    pub token: Option<String>,
    /// Whether it was taken over before: the job exists, only its end is waited for.
    pub submitted: bool,
    /// What a job was taken over with, JSON text.
    pub taken: Option<Arc<str>>,
}

/// An event of the history.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its number, from 1.
    pub id: i64,
    /// The number of the event that led to it.
    pub previous: i64,
    /// When.
    pub at: Timestamp,
    /// The service's word.
    pub kind: &'static str,
    /// Field of the details, and what is in them.
    pub details: Option<(&'static str, Value)>,
    /// The long part of the details: field and JSON text.
    pub data: Option<(&'static str, Arc<str>)>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Over {
    /// The word.
    pub phase: Phase,
    /// The output.
    pub output: Option<Value>,
    /// The error.
    pub error: Option<String>,
    /// Its cause.
    pub cause: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// What a run is: what a checkpoint holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Core {
    pub(super) next_event: i64,
    pub(super) next_id: u64,
    pub(super) transitions: u64,
    pub(super) redrives: u32,
    pub(super) started: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) redriven: Option<Timestamp>,
    pub(super) deadline: Option<Timestamp>,
    pub(super) over: Option<Over>,
    pub(super) scopes: BTreeMap<u64, Scope>,
    /// Scopes that go on without anything from outside.
    pub(super) ready: VecDeque<u64>,
    pub(super) receipt: Receipt,
}

/// A machine that runs: the whole definition, a branch, an iteration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Scope {
    /// The scope whose Parallel or Map it is part of, and which part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) up: Option<(u64, usize)>,
    /// Its item, as the context object has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) item: Option<Value>,
    /// Its variables and those of the scopes around it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) variables: BTreeMap<String, Value>,
    /// Its last event.
    pub(super) last: i64,
    pub(super) at: At,
}

/// Where a scope is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum At {
    /// Before a state.
    Enter {
        state: String,
        input: Value,
        /// The input's text, where it is at hand.
        #[serde(skip)]
        text: Option<Arc<str>>,
    },
    /// In a state.
    In(Box<Entry>),
}

/// A visit of a state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) state: String,
    pub(super) raw: Value,
    pub(super) entered: Timestamp,
    /// Retries by each retrier.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) tries: Vec<u64>,
    /// Retries by all of them.
    pub(super) retries: u64,
    /// Attempts that were begun, redriven ones too.
    pub(super) attempt: u64,
    pub(super) doing: Doing,
}

/// What is done in a state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Doing {
    /// It begins, or begins again.
    Begin,
    /// A task.
    Task(Box<TaskStep>),
    /// A Wait.
    Wait { until: Timestamp },
    /// The pause before a retry.
    Backoff { until: Timestamp },
    /// Branches: their outputs.
    Parallel { outputs: Vec<Option<Value>> },
    /// Iterations.
    Map(Box<MapStep>),
    /// Executions of their own; whether that failed, and a redrive goes on with it.
    Spread { plan: Arc<Plan>, failed: bool },
    /// It failed or was broken off: a redrive begins here.
    Broken,
}

/// A task that is under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct TaskStep {
    pub(super) parameters: Arc<Value>,
    pub(super) scheduled: Timestamp,
    pub(super) deadline: Option<Timestamp>,
    pub(super) heartbeat: Option<u64>,
    pub(super) beat: Option<Timestamp>,
    /// What it was taken over with.
    pub(super) submitted: Option<Arc<str>>,
    /// Whether a worker fetched it.
    pub(super) taken: bool,
}

/// A Map that is under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct MapStep {
    /// What is still to begin, from `next` on.
    pub(super) items: Vec<Value>,
    pub(super) next: usize,
    pub(super) running: usize,
    pub(super) concurrency: usize,
    pub(super) outputs: Vec<Option<Value>>,
    pub(super) failed: usize,
    pub(super) tolerated: Option<usize>,
    /// Whether the items are batches, whose items ItemSelector has made already.
    #[serde(default)]
    pub(super) batched: bool,
    /// The state's effective input, for ItemSelector.
    pub(super) input: Value,
}

impl Scope {
    pub(super) fn entry(&self) -> Option<&Entry> {
        match &self.at {
            At::In(entry) => Some(entry),
            At::Enter { .. } => None,
        }
    }

    pub(super) fn entry_mut(&mut self) -> Option<&mut Entry> {
        match &mut self.at {
            At::In(entry) => Some(entry),
            At::Enter { .. } => None,
        }
    }
}
