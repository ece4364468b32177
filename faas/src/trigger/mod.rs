//! What calls functions beside HTTP requests: time, objects of the API, files, CloudEvents that somebody publishes.
//!
//! Each trigger is one task that waits for its own occasion and hands it to the queue of calls as a CloudEvent, so retries and
//! dead letters hold for it. A call is named after its occasion: one that is told twice, after a restart or by two processes, is
//! one call. Up to where a trigger has told is in the function's status (`status.triggers`); what happens while nothing runs is
//! told afterwards.
//!
//! Limits: of runs by time that were missed only the last is made up for. Changes of files while nothing runs are not seen.
//! Deletions of objects are missed when nothing ran for longer than the server remembers.

mod cron;
mod events;
mod files;
mod objects;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use crate::api::{Function, Trigger, TriggerStatus};
use crate::archive::digest;
use crate::asynchronous::{Queue, plan};
use crate::gateway::invoke::{Broker, Call, InvokeError};
pub use events::Event;

/// Longest pause between tries of what fails.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// All triggers of all functions.
pub struct Triggers {
    client: Client,
    queue: Arc<Queue>,
    files: Option<PathBuf>,
    running: Mutex<HashMap<String, Watched>>,
}

/// The triggers of a function that run.
struct Watched {
    uid: String,
    account: Option<String>,
    tasks: HashMap<String, (Trigger, AbortHandle)>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.tasks.values().for_each(|(_, task)| task.abort());
    }
}

impl Triggers {
    /// None run yet. `files` is the directory below which triggers may look at files.
    #[must_use]
    pub fn new(client: Client, queue: Arc<Queue>, files: Option<PathBuf>) -> Self {
        Self { client, queue, files, running: Mutex::default() }
    }

    /// A function is as it is now: starts and ends what that means. To be called on every change and at the start; quick, on
    /// the runtime.
    pub fn changed(&self, function: &Function) {
        let key = key_of(function);
        let uid = function.uid().unwrap_or_default();
        let wanted = &function.spec.triggers;
        let mut running = self.running.lock();
        if wanted.is_empty() || function.metadata.deletion_timestamp.is_some() {
            running.remove(&key);
            return;
        }
        let account = function.spec.code.service_account_name.clone();
        let same = running.get(&key).is_some_and(|w| w.uid == uid && w.account == account);
        if !same {
            running.insert(key.clone(), Watched { uid: uid.clone(), account: account.clone(), tasks: HashMap::new() });
        }
        let Some(watched) = running.get_mut(&key) else { return };
        watched.tasks.retain(|name, (trigger, task)| {
            let stays = wanted.iter().any(|w| w.name == *name && w == trigger);
            if !stays {
                task.abort();
            }
            stays
        });
        let known = function.status.clone().unwrap_or_default().triggers;
        for trigger in wanted {
            if watched.tasks.contains_key(&trigger.name) {
                continue;
            }
            let of = Of {
                client: self.client.clone(),
                queue: Arc::clone(&self.queue),
                namespace: function.namespace().unwrap_or_default(),
                function: function.name_any(),
                uid: uid.clone(),
                account: account.clone().unwrap_or_else(|| "default".to_owned()),
                trigger: trigger.name.clone(),
            };
            let known = known.get(&trigger.name).cloned().unwrap_or_default();
            let task = tokio::spawn(run(of, trigger.clone(), known, self.files.clone()));
            watched.tasks.insert(trigger.name.clone(), (trigger.clone(), task.abort_handle()));
        }
    }

    /// A function is gone.
    pub fn gone(&self, function: &Function) {
        self.running.lock().remove(&key_of(function));
    }
}

fn key_of(function: &Function) -> String {
    format!("{}/{}", function.namespace().unwrap_or_default(), function.name_any())
}

async fn run(of: Of, trigger: Trigger, mut known: TriggerStatus, files: Option<PathBuf>) {
    if known.since.is_none() {
        known.since = Some(plan::after(Duration::ZERO));
        of.report(&known).await;
    }
    if let Some(spec) = &trigger.cron {
        cron::run(&of, spec, known).await;
    } else if let Some(spec) = &trigger.watch {
        objects::run(&of, spec, known).await;
    } else if let Some(spec) = &trigger.files {
        files::run(&of, spec, known, files).await;
    }
    // Events come through the gateway: there is nothing to wait for.
}

/// The name of a call: the same for the same occasion.
fn call_name(function: &str, trigger: &str, uid: &str, occasion: &str) -> String {
    let whole = digest(format!("{uid}/{trigger}/{occasion}").as_bytes());
    format!("{function}-{trigger}-{}", &whole[..16])
}

impl Triggers {
    /// The functions of a namespace whose triggers take an event, with the names of their calls.
    fn takers(&self, namespace: &str, event: &Event) -> Vec<(String, String)> {
        let running = self.running.lock();
        let of_namespace = running
            .iter()
            .filter_map(|(key, watched)| Some((key.split_once('/').filter(|k| k.0 == namespace)?.1, watched)));
        let taken = of_namespace.flat_map(|(function, watched)| {
            let triggers = watched.tasks.values().map(|(trigger, _)| trigger);
            let fit = triggers.filter(|t| t.event.as_ref().is_some_and(|filter| event.matches(filter)));
            fit.map(move |t| (function.to_owned(), call_name(function, &t.name, &watched.uid, &event.id())))
        });
        taken.collect()
    }
}

#[async_trait]
impl Broker for Triggers {
    async fn publish(&self, namespace: &str, event: &Event) -> Result<usize, InvokeError> {
        let takers = self.takers(namespace, event);
        for (function, name) in &takers {
            self.queue.accept_as(name, &event.call(namespace, function)).await?;
        }
        Ok(takers.len())
    }
}

/// A trigger of a function.
struct Of {
    client: Client,
    queue: Arc<Queue>,
    namespace: String,
    function: String,
    uid: String,
    account: String,
    trigger: String,
}

/// Something a function is to be told.
struct Occasion {
    /// The same for the same occasion, however often it is told.
    id: String,
    /// What kind: the part behind `dev.skiff.`.
    kind: String,
    /// About what.
    subject: Option<String>,
    /// When.
    time: Timestamp,
    /// The body.
    body: Vec<u8>,
}

impl Of {
    /// Hands an occasion to the queue, and comes back when it is stored there, or can never be: then the reason.
    async fn tell(&self, occasion: Occasion) -> Result<(), InvokeError> {
        let name = call_name(&self.function, &self.trigger, &self.uid, &occasion.id);
        let call = self.call(occasion);
        let mut tries = 0;
        loop {
            match self.queue.accept_as(&name, &call).await {
                Err(e) if e.may_pass() => {
                    tries += 1;
                    tracing::debug!(call = name, error = &e as &dyn std::error::Error, "a trigger waits for the queue");
                    tokio::time::sleep(plan::backoff(Duration::from_millis(500), tries).min(PAUSE_MAX)).await;
                }
                done => return done,
            }
        }
    }

    fn call(&self, occasion: Occasion) -> Call {
        let source = format!("/functions/{}/{}/triggers/{}", self.namespace, self.function, self.trigger);
        let time = occasion.time.to_string();
        let mut call = Call::post(&self.namespace, &self.function, occasion.body);
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let attributes = [
            ("ce-specversion", Some("1.0".to_owned())),
            ("ce-id", Some(occasion.id)),
            ("ce-type", Some(format!("dev.skiff.{}", occasion.kind))),
            ("ce-source", Some(source)),
            ("ce-time", Some(time)),
            ("ce-subject", occasion.subject),
        ];
        for (name, value) in attributes {
            // A subject may have letters that a header has not: CloudEvents has them in percent.
            let plain = |v: String| percent_encoding::utf8_percent_encode(&v, percent_encoding::CONTROLS).to_string();
            if let Some(value) = value.map(plain).and_then(|v| HeaderValue::try_from(v).ok()) {
                call.headers.insert(HeaderName::from_static(name), value);
            }
        }
        call
    }

    /// Writes how far the trigger is. What cannot be written now is written with what comes next.
    async fn report(&self, status: &TriggerStatus) {
        let mut whole = json!(status);
        // A merge keeps what is not named.
        for key in ["lastTime", "message", "resourceVersion"] {
            if whole.get(key).is_none() {
                whole[key] = Value::Null;
            }
        }
        let patch = json!({"status": {"triggers": {self.trigger.as_str(): whole}}});
        let api: Api<Function> = Api::namespaced(self.client.clone(), &self.namespace);
        let written = api.patch_status(&self.function, &PatchParams::default(), &Patch::Merge(patch)).await;
        if let Err(e) = written {
            let e: &dyn std::error::Error = &e;
            tracing::debug!(function = self.function, trigger = self.trigger, error = e, "a trigger's status waits");
        }
    }

    /// Says why the trigger does not call.
    async fn fault(&self, known: &mut TriggerStatus, why: String) {
        if known.message.as_ref() != Some(&why) {
            tracing::warn!(
                namespace = self.namespace,
                function = self.function,
                trigger = self.trigger,
                why,
                "a trigger fails"
            );
            known.message = Some(why);
            self.report(known).await;
        }
    }
}
