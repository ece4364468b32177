//! What engines that share the runs ask of each other: objects as well, for nothing else leads from one to another.
//!
//! Who reads the history of a run that another engine drives asks that one to write what its pages lack. A worker that polls at one
//! engine waits for tasks of runs that any of them drives: its poll is a WorkflowSignal, which whoever has a task claims under
//! its resourceVersion before the task is taken out, so a task goes to one worker and a worker gets one task.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_controllers::runtime::worker::code;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::{BEHIND, Engine, Key};
use crate::api::{Ask, WorkflowSignal, WorkflowSignalSpec};
use crate::payload::{self, Owner};
use crate::runs::{ActivityTask, RunsError};

/// Polls of other engines' workers that are waited for here at a time.
const POLLS_MAX: usize = 4096;
/// Bytes of a task's input that the object itself holds.
const INLINE: usize = 8 * 1024;
/// How long an engine that claimed a poll may take for its answer.
const ANSWER: Duration = Duration::from_secs(5);
/// What is asked is deleted by others when nobody waited for it any more for so long.
const STALE: SignedDuration = SignedDuration::from_secs(60);

/// What others ask for that is not done yet.
#[derive(Default)]
pub(super) struct Asks {
    polls: Mutex<HashMap<Key, AbortHandle>>,
}

/// Deletes what was asked when nobody waits for it any more.
struct Withdrawn {
    engine: Arc<Engine>,
    key: Option<Key>,
}

impl Drop for Withdrawn {
    fn drop(&mut self) {
        let Some((namespace, name)) = self.key.take() else { return };
        let (engine, stop) = (Arc::clone(&self.engine), self.engine.stop.clone());
        self.engine.tracker.spawn(async move {
            stop.run_until_cancelled(engine.consume(&namespace, &name)).await;
        });
    }
}

impl Engine {
    /// Makes an object that asks all engines for something.
    async fn ask(&self, namespace: &str, ask: Ask) -> Result<(WorkflowSignal, Withdrawn), RunsError> {
        let spec = WorkflowSignalSpec { token: "-".to_owned(), ask: Some(ask), ..WorkflowSignalSpec::default() };
        let name = format!("ask-{}", uuid::Uuid::new_v4());
        let object = WorkflowSignal::new(&name, spec);
        let signals = Api::<WorkflowSignal>::namespaced(self.client.clone(), namespace);
        let late = |e: &dyn std::fmt::Display| RunsError::Unavailable(e.to_string());
        let engine = self.shared().ok_or_else(|| late(&"the engine stops"))?;
        let guard = Withdrawn { engine, key: Some((namespace.to_owned(), name)) };
        let made = signals.create(&PostParams::default(), &object).await.map_err(|e| late(&e))?;
        Ok((made, guard))
    }

    /// Lets whoever drives a run write what its pages lack, and waits for that, not for long.
    pub(super) async fn show_elsewhere(&self, key: &Key) {
        let until = MicroTime(Timestamp::now() + SignedDuration::try_from(BEHIND.2).unwrap_or_default());
        let ask = Ask { run: Some(key.1.clone()), until: Some(until), ..Ask::default() };
        let Ok((asked, _guard)) = self.ask(&key.0, ask).await else { return };
        let signals = Api::<WorkflowSignal>::namespaced(self.client.clone(), &key.0);
        let name = asked.name_any();
        let gone = skiff_client::wait_for(signals, &name, |s: Option<&WorkflowSignal>| s.is_none());
        let _ = timeout(BEHIND.2, gone).await;
    }

    /// The next task of an activity, whichever engine drives its run.
    pub(super) async fn fetch_anywhere(
        &self,
        namespace: &str,
        activity: &str,
        worker: Option<&str>,
        wait: Duration,
    ) -> Result<Option<ActivityTask>, RunsError> {
        let until = MicroTime(Timestamp::now() + SignedDuration::try_from(wait).unwrap_or_default());
        let ask = Ask {
            activity: Some(activity.to_owned()),
            worker: worker.map(str::to_owned),
            until: Some(until),
            ..Ask::default()
        };
        let (asked, _guard) = self.ask(namespace, ask).await?;
        let signals = Api::<WorkflowSignal>::namespaced(self.client.clone(), namespace);
        let answered =
            |s: Option<&WorkflowSignal>| s.is_none_or(|s| s.spec.output.is_some() || s.spec.output_ref.is_some());
        let name = asked.name_any();
        let waited = timeout(wait, skiff_client::wait_for(signals.clone(), &name, answered)).await;
        let told = match waited {
            Ok(told) => told.map_err(|e| RunsError::Unavailable(e.to_string()))?,
            Err(_) => {
                // One that is claimed in this moment has a task.
                let only = Preconditions { uid: None, resource_version: asked.metadata.resource_version.clone() };
                let how = DeleteParams { preconditions: Some(only), ..DeleteParams::default() };
                match signals.delete(&name, &how).await {
                    Err(e) if code(&e) == 409 => {
                        let told = timeout(ANSWER, skiff_client::wait_for(signals, &name, answered)).await;
                        told.ok().and_then(Result::ok).flatten()
                    }
                    _ => None,
                }
            }
        };
        match told {
            Some(told) => self.task_of(namespace, told.spec).await,
            None => Ok(None),
        }
    }

    /// The task that is the answer to a poll.
    async fn task_of(&self, namespace: &str, spec: WorkflowSignalSpec) -> Result<Option<ActivityTask>, RunsError> {
        let told = spec.output.unwrap_or_default();
        let text = |name: &str| told.get(name).and_then(Value::as_str).map(str::to_owned);
        let Some(token) = text("token") else { return Ok(None) };
        let input = match spec.output_ref {
            Some(long) => {
                let run = crate::token::Token::parse(&token).map(|t| t.run).unwrap_or_default();
                let owner = run_owner(namespace, run, text("uid").unwrap_or_default());
                let loaded = payload::load(&self.client, &owner, &long).await;
                loaded.map_err(|e| RunsError::Unavailable(e.to_string()))?
            }
            None => text("input").unwrap_or_default(),
        };
        Ok(Some(ActivityTask { token, input }))
    }

    /// Somebody asks for something.
    pub(super) fn asked(&self, signal: WorkflowSignal) {
        let Some(ask) = signal.spec.ask.clone() else { return };
        let key = (signal.namespace().unwrap_or_default(), signal.name_any());
        let Some(engine) = self.shared() else { return };
        let stop = self.stop.clone();
        let until = ask.until.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
        if until + STALE < Timestamp::now() {
            // Whoever asked is gone.
            if self.share.view().is_none_or(|v| v.is_first()) {
                self.tracker.spawn(async move {
                    stop.run_until_cancelled(engine.consume(&key.0, &key.1)).await;
                });
            }
            return;
        }
        if let Some(run) = ask.run {
            let run = (key.0.clone(), run);
            let pin = self.state.lock().places.get(&run).and_then(|p| p.pin.clone());
            if self.drives(&run, pin.as_deref()) {
                self.tracker.spawn(async move {
                    let work = async {
                        engine.show_here(&run).await;
                        engine.consume(&key.0, &key.1).await;
                    };
                    stop.run_until_cancelled(work).await;
                });
            }
            return;
        }
        let mut polls = self.asks.polls.lock();
        if ask.by.is_some() {
            let mine = self.share.view().is_some_and(|v| ask.by.as_deref() == Some(&**v.me()));
            if !mine && let Some(task) = polls.remove(&key) {
                task.abort();
            }
            return;
        }
        if polls.contains_key(&key) || polls.len() >= POLLS_MAX {
            return;
        }
        let poll = key.clone();
        let task = self.tracker.spawn(async move {
            let work = engine.serve_poll(signal, crate::task::until(until));
            stop.run_until_cancelled(work).await;
            engine.asks.polls.lock().remove(&key);
        });
        polls.insert(poll, task.abort_handle());
    }

    /// What was asked is answered, or nobody waits for it.
    pub(super) fn ask_is_gone(&self, signal: &WorkflowSignal) {
        let key = (signal.namespace().unwrap_or_default(), signal.name_any());
        if let Some(task) = self.asks.polls.lock().remove(&key) {
            task.abort();
        }
    }

    /// Gives a worker that polls at any engine the next task of the runs that this one drives.
    async fn serve_poll(&self, mut signal: WorkflowSignal, wait: Duration) {
        let Some(ask) = signal.spec.ask.clone() else { return };
        let (Some(activity), Some(view)) = (ask.activity.clone(), self.share.view()) else { return };
        let namespace = signal.namespace().unwrap_or_default();
        let signals = Api::<WorkflowSignal>::namespaced(self.client.clone(), &namespace);
        let name = signal.name_any();
        let until = tokio::time::Instant::now() + wait;
        while let Some(offered) = self.next_offer(&namespace, &activity, until).await {
            // Where this ends before the task is given away it is there for others.
            let mut offered = super::activities::Held::new(self, (namespace.clone(), activity.clone()), offered);
            if let Some(ask) = &mut signal.spec.ask {
                ask.by = Some(view.me().to_string());
            }
            match signals.replace(&name, &PostParams::default(), &signal).await {
                Ok(claimed) => signal = claimed,
                Err(_) => return,
            }
            let Some((run, address)) = offered.take() else { return };
            let uid = self.state.lock().places.get(&run).map(|p| p.uid.clone()).unwrap_or_default();
            if let Some(task) = self.give(&run, address, ask.worker.as_deref()).await {
                self.tell_task(&signals, &name, run_owner(&namespace, run.1, uid), task).await;
                return;
            }
            // Nobody waits for that one any more: others may have one for the worker.
            if let Some(ask) = &mut signal.spec.ask {
                ask.by = None;
            }
            match signals.replace(&name, &PostParams::default(), &signal).await {
                Ok(free) => signal = free,
                Err(_) => return,
            }
        }
    }

    async fn tell_task(&self, signals: &Api<WorkflowSignal>, name: &str, owner: Owner, task: ActivityTask) {
        let mut output = json!({"token": task.token, "uid": owner.uid});
        let mut long = None;
        if task.input.len() <= INLINE {
            output["input"] = task.input.into();
        } else if let Ok(payload) = payload::Payload::of(&task.input)
            && payload.store(&self.client, &owner).await.is_ok()
        {
            long = Some(payload.reference);
        }
        let patch = Patch::Merge(json!({"spec": {"output": output, "outputRef": long}}));
        // A worker that is gone meanwhile has the task all the same: its run ends that by its own times.
        if let Err(e) = signals.patch(name, &PatchParams::default(), &patch).await {
            tracing::debug!(name, error = &e as &dyn std::error::Error, "a worker does not hear of its task");
        }
    }
}

fn run_owner(namespace: &str, name: String, uid: String) -> Owner {
    Owner { kind: "WorkflowRun", namespace: namespace.to_owned(), name, uid }
}
