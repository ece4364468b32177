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
mod running;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::api::{Cron, Function, Trigger, TriggerStatus, Watch};
use crate::archive::digest;
use crate::asynchronous::{Queue, plan};
use crate::gateway::invoke::{Broker, Call, InvokeError};

pub use events::Event;
pub use running::Running;

/// Longest pause between tries of what fails.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// All triggers of all functions.
pub struct Triggers {
    client: Client,
    queue: Arc<Queue>,
    files: Option<PathBuf>,
    running: Running<Trigger>,
}

impl Triggers {
    /// None run yet. `files` is the directory below which triggers may look at files.
    #[must_use]
    pub fn new(client: Client, queue: Arc<Queue>, files: Option<PathBuf>) -> Self {
        Self { client, queue, files, running: Running::default() }
    }

    /// A function is as it is now: starts and ends what that means. To be called on every change and at the start; quick, on
    /// the runtime.
    pub fn changed(&self, function: &Function) {
        let uid = function.uid().unwrap_or_default();
        let account = function.spec.code.service_account_name.clone().unwrap_or_else(|| "default".to_owned());
        let deleted = function.metadata.deletion_timestamp.is_some();
        let wanted = if deleted { &[][..] } else { &function.spec.triggers };
        let known = function.status.clone().unwrap_or_default().triggers;
        let identity = format!("{uid}/{account}");
        self.running.changed(
            &key_of(function),
            &identity,
            wanted,
            |t| &t.name,
            |trigger| {
                let owner = Calls {
                    client: self.client.clone(),
                    queue: Arc::clone(&self.queue),
                    namespace: function.namespace().unwrap_or_default(),
                    function: function.name_any(),
                    uid: uid.clone(),
                    trigger: trigger.name.clone(),
                };
                let of = Of {
                    client: self.client.clone(),
                    namespace: owner.namespace.clone(),
                    account: account.clone(),
                    about: format!("function {}, trigger {}", function.name_any(), trigger.name),
                    owner: Box::new(owner),
                };
                let known = known.get(&trigger.name).cloned().unwrap_or_default();
                run(of, trigger.clone(), known, self.files.clone())
            },
        );
    }

    /// A function is gone.
    pub fn gone(&self, function: &Function) {
        self.running.gone(&key_of(function));
    }
}

fn key_of(function: &Function) -> String {
    format!("{}/{}", function.namespace().unwrap_or_default(), function.name_any())
}

async fn run(of: Of, trigger: Trigger, known: TriggerStatus, files: Option<PathBuf>) {
    let known = of.begin(known).await;
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
        self.running.filter_map(|key, identity, trigger| {
            let (_, function) = key.split_once('/').filter(|(of, _)| *of == namespace)?;
            trigger.event.as_ref().filter(|filter| event.matches(filter))?;
            let uid = identity.split('/').next().unwrap_or_default();
            Some((function.to_owned(), call_name(function, &trigger.name, uid, &event.id())))
        })
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

/// A trigger, with what it needs to wait for its occasions.
pub struct Of {
    /// Asks the API.
    pub client: Client,
    /// Where the owner is.
    pub namespace: String,
    /// ServiceAccount with whose rights objects are watched.
    pub account: String,
    /// Which trigger of what, for logs.
    pub about: String,
    /// Who is told.
    pub owner: Box<dyn Owner>,
}

/// Who is told when a trigger's occasion comes.
#[async_trait]
pub trait Owner: Send + Sync {
    /// Takes an occasion, and comes back when it is stored. The same occasion may be told twice; its id is the same then.
    async fn tell(&self, occasion: &Occasion) -> Result<(), Untold>;

    /// Writes how far the trigger is. What cannot be written now is written with what comes next.
    async fn report(&self, status: &TriggerStatus);
}

/// Why an occasion was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Untold {
    /// The same may succeed later.
    #[error("{0}")]
    Yet(String),
    /// It can never be.
    #[error("{0}")]
    Ever(String),
}

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Occasion {
    /// The same for the same occasion, however often it is told.
    pub id: String,
    /// What kind: the part behind `dev.skiff.`.
    pub kind: String,
    /// About what.
    pub subject: Option<String>,
    /// When.
    pub time: Timestamp,
    /// The body.
    pub body: Vec<u8>,
}

impl Of {
    /// Notes since when the trigger is looked after.
    pub async fn begin(&self, mut known: TriggerStatus) -> TriggerStatus {
        if known.since.is_none() {
            known.since = Some(plan::after(Duration::ZERO));
            self.owner.report(&known).await;
        }
        known
    }

    /// Tells the occasions of a schedule, for ever.
    pub async fn by_time(&self, spec: &Cron, known: TriggerStatus) {
        cron::run(self, spec, known).await;
    }

    /// Tells changes of objects, for ever.
    pub async fn by_objects(&self, spec: &Watch, known: TriggerStatus) {
        objects::run(self, spec, known).await;
    }

    /// Hands an occasion over, and comes back when it is taken or can never be: then the reason.
    async fn tell(&self, occasion: Occasion) -> Result<(), String> {
        let mut tries = 0;
        loop {
            match self.owner.tell(&occasion).await {
                Ok(()) => return Ok(()),
                Err(Untold::Ever(why)) => return Err(why),
                Err(Untold::Yet(why)) => {
                    tries += 1;
                    tracing::debug!(about = self.about, why, "a trigger waits for its occasion to be taken");
                    tokio::time::sleep(plan::backoff(Duration::from_millis(500), tries).min(PAUSE_MAX)).await;
                }
            }
        }
    }

    async fn report(&self, status: &TriggerStatus) {
        self.owner.report(status).await;
    }

    /// Says why the trigger does not call.
    async fn fault(&self, known: &mut TriggerStatus, why: String) {
        if known.message.as_ref() != Some(&why) {
            tracing::warn!(namespace = self.namespace, about = self.about, why, "a trigger fails");
            known.message = Some(why);
            self.report(known).await;
        }
    }
}

/// The status of a trigger as a merge patch of all fields: a merge keeps what is not named.
#[must_use]
pub fn patch_of(trigger: &str, status: &TriggerStatus) -> Value {
    let mut whole = json!(status);
    for key in ["lastTime", "message", "resourceVersion"] {
        if whole.get(key).is_none() {
            whole[key] = Value::Null;
        }
    }
    json!({"status": {"triggers": {trigger: whole}}})
}

/// Occasions that are calls of a function.
struct Calls {
    client: Client,
    queue: Arc<Queue>,
    namespace: String,
    function: String,
    uid: String,
    trigger: String,
}

#[async_trait]
impl Owner for Calls {
    async fn tell(&self, occasion: &Occasion) -> Result<(), Untold> {
        let name = call_name(&self.function, &self.trigger, &self.uid, &occasion.id);
        let told = self.queue.accept_as(&name, &self.call(occasion.clone())).await;
        told.map_err(|e| if e.may_pass() { Untold::Yet(e.to_string()) } else { Untold::Ever(e.to_string()) })
    }

    async fn report(&self, status: &TriggerStatus) {
        let api: Api<Function> = Api::namespaced(self.client.clone(), &self.namespace);
        let patch = Patch::Merge(patch_of(&self.trigger, status));
        if let Err(e) = api.patch_status(&self.function, &PatchParams::default(), &patch).await {
            let e: &dyn std::error::Error = &e;
            tracing::debug!(function = self.function, trigger = self.trigger, error = e, "a trigger's status waits");
        }
    }
}

impl Calls {
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
}
