//! Calls nobody waits for: accepted only when they are stored, tried until they are answered or given up.
//!
//! A call is a [`FunctionCall`]. Its status is its place in the queue, so nothing of the queue is only in memory: any process
//! that runs a [`Queue`] goes on where another stopped. Who tries a call holds its lease, which others respect until it runs
//! out; a process that was started again takes its own leases back at once. A call is therefore tried at least once, and by one
//! at a time; the same `x-request-id` goes with each try.
//!
//! Tried again is what may pass: no answer, 408, 425, 429, 5xx. Afterwards a dead letter (another call, whose name follows from
//! the first) and the callback are told, and the result is kept for a while.
//!
//! Limits: bodies of 256 KiB each way; [`WAITING_MAX`] calls of one function wait, beyond that new ones are refused;
//! [`RUNNING_MAX`] run at a time, [`RUNNING_PER_FUNCTION`] of one function.

mod callback;
pub mod plan;
pub mod record;
mod work;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt as _};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{Function, FunctionCall};
use crate::gateway::invoke::{Answer, Call, Invoke, InvokeError, Sink};

/// Calls of one function that may wait.
pub const WAITING_MAX: usize = 10_000;
/// Calls that run at a time.
pub const RUNNING_MAX: usize = 64;
/// Calls of one function that run at a time.
pub const RUNNING_PER_FUNCTION: usize = 16;
/// Objects in one answer of a list: they carry bodies.
const PAGE: u32 = 50;
/// Pause after work on a call that has changed nothing, or of which nothing was heard yet.
const PAUSE: Duration = Duration::from_secs(1);

/// Namespace and name.
type Key = (String, String);

/// The queue. Cloning the `Arc` shares it.
pub struct Queue {
    client: Client,
    /// `NODE/RUN`: what leases carry.
    holder: String,
    state: Mutex<State>,
    changed: Notify,
}

/// What is known of all calls: little, so that many fit.
#[derive(Default)]
struct State {
    lines: HashMap<Key, Line>,
    calls: HashMap<Key, Place>,
    /// Calls that are worked on.
    busy: HashSet<Key>,
}

/// The calls of a function.
#[derive(Default)]
struct Line {
    /// When something is to be done, and with which.
    due: BTreeSet<(Timestamp, String)>,
    waiting: usize,
    running: usize,
}

struct Place {
    function: String,
    at: Timestamp,
    waits: bool,
}

impl State {
    fn put(&mut self, key: Key, function: String, at: Timestamp, waits: bool) {
        self.take(&key);
        let line = self.lines.entry((key.0.clone(), function.clone())).or_default();
        line.due.insert((at, key.1.clone()));
        line.waiting += usize::from(waits);
        self.calls.insert(key, Place { function, at, waits });
    }

    fn take(&mut self, key: &Key) {
        let Some(place) = self.calls.remove(key) else { return };
        let line = (key.0.clone(), place.function);
        if let Some(found) = self.lines.get_mut(&line) {
            found.due.remove(&(place.at, key.1.clone()));
            found.waiting -= usize::from(place.waits);
            if found.due.is_empty() && found.running == 0 {
                self.lines.remove(&line);
            }
        }
    }

    /// Takes a call that is due and may run.
    fn start(&mut self, now: Timestamp) -> Option<(Key, String, Timestamp)> {
        if self.busy.len() >= RUNNING_MAX {
            return None;
        }
        let busy = &self.busy;
        let free = self.lines.iter().filter(|(_, l)| l.running < RUNNING_PER_FUNCTION);
        let firsts = free.filter_map(|((namespace, function), line)| {
            let due = line.due.iter().take_while(|(at, _)| *at <= now);
            // What is busy has been planned anew meanwhile: there are few of these.
            let mut due = due.filter(|(_, name)| !busy.contains(&(namespace.clone(), name.clone())));
            due.next().map(|(at, name)| (*at, namespace.clone(), name.clone(), function.clone()))
        });
        let (at, namespace, name, function) = firsts.min()?;
        let key = (namespace.clone(), name);
        // It stays in its place, for a worker that finds nothing to do writes nothing.
        self.busy.insert(key.clone());
        if let Some(line) = self.lines.get_mut(&(namespace, function.clone())) {
            line.running += 1;
        }
        Some((key, function, at))
    }

    fn done(&mut self, key: &Key, function: &str) {
        self.busy.remove(key);
        let line = (key.0.clone(), function.to_owned());
        if let Some(found) = self.lines.get_mut(&line) {
            found.running = found.running.saturating_sub(1);
            if found.due.is_empty() && found.running == 0 {
                self.lines.remove(&line);
            }
        }
    }

    /// When something is due that is not due now.
    fn next(&self) -> Option<Timestamp> {
        self.lines.values().filter_map(|l| l.due.first()).map(|(at, _)| *at).min()
    }
}

impl Queue {
    /// A queue of the process that runs on `node`: no two that run have the same name.
    #[must_use]
    pub fn new(client: Client, node: &str) -> Arc<Self> {
        let holder = format!("{node}/{}", uuid::Uuid::new_v4());
        Arc::new(Self { client, holder, state: Mutex::default(), changed: Notify::new() })
    }

    fn calls(&self, namespace: &str) -> Api<FunctionCall> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Stores a call under a name. Where there is one of that name already, it is the same call: triggers that repeat
    /// themselves name what they tell.
    ///
    /// # Errors
    /// When it is not stored; trying again may help where [`InvokeError::may_pass`].
    pub async fn accept_as(&self, name: &str, call: &Call) -> Result<(), InvokeError> {
        if call.body.len() > record::BODY_MAX {
            return Err(InvokeError::TooLarge { limit: record::BODY_MAX as u64 });
        }
        let function = Api::<Function>::namespaced(self.client.clone(), &call.namespace);
        let function =
            function.get_opt(&call.function).await.map_err(|e| unavailable(&e))?.ok_or_else(|| {
                InvokeError::NotFound { namespace: call.namespace.clone(), name: call.function.clone() }
            })?;
        let line = (call.namespace.clone(), call.function.clone());
        if self.state.lock().lines.get(&line).is_some_and(|l| l.waiting >= WAITING_MAX) {
            return Err(InvokeError::Overloaded { name: call.function.clone() });
        }
        let object = record::object(name, call, &function)?;
        match self.calls(&call.namespace).create(&PostParams::default(), &object).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(s)) if s.code == 409 && s.reason == "AlreadyExists" => Ok(()),
            Err(kube::Error::Api(s)) if matches!(s.code, 400 | 403 | 404 | 422) => {
                Err(InvokeError::BadRequest(s.message))
            }
            Err(e) => Err(unavailable(&e)),
        }
    }

    /// Works until it is stopped. What runs then is broken off; its leases are taken back by the next run.
    pub async fn run(self: Arc<Self>, invoke: Arc<dyn Invoke>, stop: CancellationToken) {
        let all = Api::<FunctionCall>::all(self.client.clone());
        let config = watcher::Config::default().page_size(PAGE);
        let mut events = skiff_client::watch(all, config);
        let mut workers: JoinSet<(Key, String, Timestamp)> = JoinSet::new();
        let mut listed: Option<HashSet<Key>> = None;
        loop {
            loop {
                let Some((key, function, at)) = self.state.lock().start(Timestamp::now()) else { break };
                let (queue, invoke) = (Arc::clone(&self), Arc::clone(&invoke));
                workers.spawn(async move {
                    let done = work::work(&queue.client, &queue.holder, invoke.as_ref(), &key).await;
                    if let Err(e) = &done {
                        let e: &dyn std::error::Error = e;
                        tracing::warn!(namespace = key.0, call = key.1, error = e, "a call waits");
                    }
                    // Whoever plans it anew does that by what was written; until then it is not looked at again.
                    (key, function, at)
                });
            }
            let now = Timestamp::now();
            let next = {
                let state = self.state.lock();
                // What is due now waits for a worker, whose end is an event of its own.
                state.next().filter(|_| state.busy.len() < RUNNING_MAX)
            };
            let pause = next.map(|at| at.duration_since(now).unsigned_abs().max(Duration::from_millis(50)));
            let pause = pause.filter(|_| next.is_some_and(|at| at > now));
            tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => match event {
                    Some(Ok(event)) => self.heard(event, &mut listed),
                    Some(Err(e)) => tracing::debug!(error = &e as &dyn std::error::Error, "the watch of calls begins anew"),
                    None => return,
                },
                Some(ended) = workers.join_next() => if let Ok((key, function, at)) = ended {
                    let mut state = self.state.lock();
                    state.done(&key, &function);
                    let same = state.calls.get(&key).filter(|p| p.at == at).map(|p| (p.function.clone(), p.waits));
                    if let Some((function, waits)) = same {
                        state.put(key, function, Timestamp::now() + PAUSE, waits);
                    }
                },
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
                () = self.changed.notified() => {}
            }
        }
    }

    fn heard(&self, event: Event<FunctionCall>, listed: &mut Option<HashSet<Key>>) {
        match event {
            Event::Init => *listed = Some(HashSet::new()),
            Event::InitApply(call) => {
                if let Some(listed) = listed {
                    listed.insert(key_of(&call));
                }
                self.plan(&call);
            }
            Event::InitDone => {
                let Some(listed) = listed.take() else { return };
                let mut state = self.state.lock();
                let gone: Vec<Key> = state.calls.keys().filter(|k| !listed.contains(*k)).cloned().collect();
                gone.iter().for_each(|k| state.take(k));
            }
            Event::Apply(call) => self.plan(&call),
            Event::Delete(call) => self.state.lock().take(&key_of(&call)),
        }
    }

    /// Puts a call where it belongs by what it is now.
    fn plan(&self, call: &FunctionCall) {
        let key = key_of(call);
        let mut state = self.state.lock();
        match plan::due(call, &self.holder) {
            Some((at, waits)) => state.put(key, call.spec.function.clone(), at, waits),
            None => state.take(&key),
        }
    }
}

fn key_of(call: &FunctionCall) -> Key {
    (call.namespace().unwrap_or_default(), call.name_any())
}

fn unavailable(e: &kube::Error) -> InvokeError {
    InvokeError::Unavailable(format!("the call cannot be stored: {e}"))
}

#[async_trait]
impl Sink for Queue {
    async fn accept(&self, call: Call) -> Result<String, InvokeError> {
        let name = uuid::Uuid::new_v4().to_string();
        self.accept_as(&name, &call).await?;
        Ok(name)
    }

    async fn result(&self, namespace: &str, id: &str) -> Result<Option<Answer>, InvokeError> {
        let found = match self.calls(namespace).get_opt(id).await {
            Err(kube::Error::Api(s)) if s.code == 404 => None,
            found => found.map_err(|e| InvokeError::Unavailable(format!("the result cannot be read: {e}")))?,
        };
        Ok(found.map(|call| record::answer(&call)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        ("n".into(), name.into())
    }

    #[test]
    fn one_function_does_not_take_all_workers() {
        let t = |s| Timestamp::from_second(s).unwrap();
        let mut state = State::default();
        for i in 0..40 {
            state.put(key(&format!("a{i:02}")), "a".into(), t(i), true);
        }
        state.put(key("b"), "b".into(), t(90), true);
        state.put(key("later"), "b".into(), t(200), false);
        let mut started = vec![];
        while let Some((k, f, _)) = state.start(t(100)) {
            started.push((k.1, f));
        }
        assert_eq!(started.len(), RUNNING_PER_FUNCTION + 1);
        assert_eq!(started[0].0, "a00", "oldest first");
        assert_eq!(started.last().unwrap().0, "b");
        assert_eq!(state.lines[&key("a")].waiting, 40);

        // One ends and was planned anew meanwhile: the next starts, not it again before its time.
        state.put(key("a00"), "a".into(), t(500), false);
        state.done(&key("a00"), "a");
        assert_eq!(state.start(t(100)).unwrap().0.1, "a16");
        assert!(state.start(t(100)).is_none());
    }

    #[test]
    fn what_is_gone_leaves_nothing() {
        let mut state = State::default();
        let now = Timestamp::now();
        state.put(key("x"), "f".into(), now, true);
        let (k, f, _) = state.start(now).unwrap();
        state.take(&k);
        state.done(&k, &f);
        assert!(state.lines.is_empty() && state.calls.is_empty() && state.busy.is_empty() && state.next().is_none());
    }
}
