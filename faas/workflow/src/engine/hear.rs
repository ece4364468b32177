//! What the engine hears: runs that are made, changed and deleted, and answers to task tokens.

use std::collections::HashSet;
use std::time::Duration;

use futures::StreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt as _};
use skiff_asl::ExecutionError;
use tokio::sync::oneshot;

use super::ahead::Known;
use super::begin::is_admitted;
use super::share::PIN;
use super::{Engine, Key, Place};
use crate::api::{Phase, WorkflowRun, WorkflowSignal, WorkflowSignalSpec};
use crate::journal::JournalError;
use crate::machine::{Step, What};
use crate::payload::{self, Owner};
use crate::token::Token;

/// Objects in one answer of a list: they may be long.
pub(super) const PAGE: u32 = 100;
/// Time in which runs that are let go are gathered before answers to them are heard again.
const AGAIN: Duration = Duration::from_millis(200);

/// What an actor is told.
pub(crate) enum Note {
    /// Something happened; `stored` is told when that is stored, or dropped where it says nothing to the run.
    Input(What, Option<oneshot::Sender<()>>),
    /// A task ended here, as [`What::Succeeded`] or [`What::Failed`].
    Ended(What),
    /// A task ended here that goes on elsewhere.
    Released(Step),
    /// An answer to a token: an object that is to be deleted when the run has it.
    Signal(String, Box<WorkflowSignalSpec>),
    /// A worker asks for an activity's task, which has this address; it gets the input.
    Poll(String, Option<String>, oneshot::Sender<crate::runs::ActivityTask>),
    /// Somebody reads its history: what its pages lack is to be on them.
    Show(oneshot::Sender<()>),
    /// Its time has come, or there is room for it.
    Wake,
    /// The run is another engine's by now: let it go, or say on its object that it stays until what goes on here is over.
    Leave(oneshot::Sender<()>),
}

impl Engine {
    /// Follows the runs until it is dropped.
    pub(super) async fn hear_runs(&self) {
        let all = Api::<WorkflowRun>::all(self.client.clone());
        let config = watcher::Config::default().page_size(PAGE);
        let mut events = skiff_client::watch(all, config);
        let mut listed: Option<HashSet<Key>> = None;
        // Those that are new in a list begin when all are known: what goes on already comes before what waits.
        let mut fresh = vec![];
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed = Some(HashSet::new()),
                Ok(Event::InitApply(run)) => {
                    if let Some(listed) = &mut listed {
                        listed.insert(key_of(&run));
                    }
                    fresh.extend(self.seen(&run));
                }
                Ok(Event::InitDone) => {
                    self.take_up(std::mem::take(&mut fresh));
                    let Some(listed) = listed.take() else { continue };
                    let gone: Vec<Key> =
                        self.state.lock().places.keys().filter(|k| !listed.contains(*k)).cloned().collect();
                    gone.iter().for_each(|k| self.forget(k));
                }
                Ok(Event::Apply(run)) => self.take_up_seen(run),
                Ok(Event::Delete(run)) => self.forget(&key_of(&run)),
                Err(e) => tracing::debug!(error = &e as &dyn std::error::Error, "the watch of runs begins anew"),
            }
        }
    }

    /// A run as it is now. Its key where this engine is to begin with it.
    pub(super) fn seen(&self, run: &WorkflowRun) -> Option<Key> {
        let key = key_of(run);
        let status = run.status.as_ref();
        let redrive = run.spec.redrive.unwrap_or(0);
        let redriven = status.map_or(0, |s| s.redrive_count);
        let over = status.is_some_and(|s| s.phase.is_over()) && redrive <= redriven;
        let uid = run.uid().unwrap_or_default();
        if over || run.metadata.deletion_timestamp.is_some() {
            self.finished(&key);
            self.keep(run);
            return None;
        }
        if status.is_some_and(|s| s.phase == Phase::Running) {
            self.in_line(run);
        }
        let pin = run.annotations().get(PIN).map(String::as_str);
        let drives = self.drives(&key, pin);
        if !drives || is_admitted(run) == Some(true) {
            self.ask_for_room(run);
        }
        let (begins, admitted, notes) = {
            let mut state = self.state.lock();
            if state.places.get(&key).is_some_and(|p| p.uid != uid) {
                // Deleted and made again: the old one's actor finds nothing of its own any more.
                super::remove(&mut state, &key);
            }
            let stopped = run.spec.stop.is_some();
            let place = state.places.entry(key.clone()).or_insert_with(|| Place {
                uid,
                live: None,
                wake: None,
                stopped,
                redrive,
                taken: false,
                pin: None,
                admitted: false,
                known: None,
                page: None,
                object: None,
                turn: None,
            });
            place.known = Known::told(place.known, run);
            // Who takes it up reads all of this anew.
            let mut notes = vec![];
            if place.taken && stopped && !place.stopped {
                let stop = run.spec.stop.clone().unwrap_or_default();
                notes.push(What::Stop { error: stop.error, cause: stop.cause });
            }
            if place.taken && redrive > place.redrive {
                notes.push(What::Redrive { count: redrive });
            }
            let admitted = is_admitted(run).is_some() && !place.admitted;
            place.admitted |= admitted;
            place.stopped |= stopped;
            place.redrive = place.redrive.max(redrive);
            let freed = place.pin.is_some() && pin.is_none();
            place.pin = pin.map(Box::from);
            if freed && drives && !place.taken {
                // What was said to it while another let it go was for this one.
                self.hear_again.notify_one();
            }
            (drives && !place.taken, admitted && place.taken, notes)
        };
        for what in notes {
            self.tell(&key, Note::Input(what, None));
        }
        if admitted {
            self.tell(&key, Note::Wake);
        }
        begins.then_some(key)
    }

    /// A run is over: nothing is to be done, unless its actor has not said so itself yet.
    fn finished(&self, key: &Key) {
        let mut state = self.state.lock();
        if state.places.get(key).is_some_and(|p| p.live.is_none()) {
            super::remove(&mut state, key);
        }
        drop(state);
        if self.share.view().is_some() {
            // Another engine may have had it.
            self.leave_line(key);
        }
    }

    /// A run is gone.
    pub(super) fn forget(&self, key: &Key) {
        let mut state = self.state.lock();
        super::remove(&mut state, key);
        drop(state);
        self.leave_line(key);
    }

    /// Follows the answers to task tokens until it is dropped.
    pub(super) async fn hear_signals(&self) {
        let mut agreed = self.share.agreed();
        loop {
            let again = async {
                tokio::select! {
                    _ = agreed.changed() => {}
                    () = self.hear_again.notified() => {}
                }
                // Many may be let go at once.
                tokio::time::sleep(AGAIN).await;
            };
            tokio::select! {
                () = self.follow_signals() => return,
                () = again => {}
            }
        }
    }

    async fn follow_signals(&self) {
        let all = Api::<WorkflowSignal>::all(self.client.clone());
        let config = watcher::Config::default().page_size(PAGE);
        let mut events = skiff_client::watch(all, config);
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::InitApply(signal) | Event::Apply(signal)) if signal.spec.ask.is_some() => self.asked(signal),
                Ok(Event::InitApply(signal) | Event::Apply(signal)) => self.signalled(signal).await,
                Ok(Event::Delete(signal)) if signal.spec.ask.is_some() => self.ask_is_gone(&signal),
                Ok(_) => {}
                Err(e) => tracing::debug!(error = &e as &dyn std::error::Error, "the watch of signals begins anew"),
            }
        }
    }

    async fn signalled(&self, signal: WorkflowSignal) {
        let (namespace, name) = (signal.namespace().unwrap_or_default(), signal.name_any());
        // Who may answer in one namespace may not in another.
        let Some(token) = Token::parse(&signal.spec.token).filter(|t| t.namespace == namespace) else {
            if self.minds(&namespace, &name) {
                self.consume(&namespace, &name).await;
            }
            return;
        };
        let key = (namespace.clone(), token.run);
        if self.tell(&key, Note::Signal(name.clone(), Box::new(signal.spec.clone()))) {
            return;
        }
        let pin = self.state.lock().places.get(&key).and_then(|p| p.pin.clone());
        if !self.drives(&key, pin.as_deref()) {
            return;
        }
        // The watch of runs may be behind. What cannot be told now is heard again when the run is taken up.
        let runs = Api::<WorkflowRun>::namespaced(self.client.clone(), &namespace);
        let nobody = match runs.get_opt(&key.1).await {
            Ok(Some(run)) => {
                self.take_up(self.seen(&run).into_iter().collect());
                !self.tell(&key, Note::Signal(name.clone(), Box::new(signal.spec)))
                    && run.status.is_some_and(|s| s.phase.is_over())
            }
            Ok(None) => true,
            Err(_) => false,
        };
        if nobody {
            self.consume(&namespace, &name).await;
        }
    }

    /// Deletes an answer that is stored, or that nobody waits for.
    pub(super) async fn consume(&self, namespace: &str, name: &str) {
        let signals = Api::<WorkflowSignal>::namespaced(self.client.clone(), namespace);
        if let Err(e) = signals.delete(name, &kube::api::DeleteParams::default()).await
            && !skiff_controllers::runtime::worker::not_found(&e)
        {
            // It is heard again when the watch begins anew, and says nothing to its run then.
            tracing::debug!(namespace, name, error = &e as &dyn std::error::Error, "a signal stays");
        }
    }
}

pub(super) fn key_of(run: &WorkflowRun) -> Key {
    (run.namespace().unwrap_or_default(), run.name_any())
}

/// What an answer to a token says to the machine.
pub(super) async fn answer(
    client: &Client,
    owner: &Owner,
    step: Step,
    spec: WorkflowSignalSpec,
) -> Result<Option<What>, JournalError> {
    if spec.heartbeat {
        return Ok(Some(What::Heartbeat { step }));
    }
    if let Some(error) = spec.error {
        let error = ExecutionError { error, cause: spec.cause.unwrap_or_default() };
        return Ok(Some(What::Failed { step, error, started: None }));
    }
    let output = match (&spec.output, &spec.output_ref) {
        (_, Some(long)) => payload::load(client, owner, long).await?,
        (Some(output), None) => output.to_string(),
        (None, None) => "null".to_owned(),
    };
    Ok(Some(What::Succeeded { step, output: output.into(), started: None }))
}
