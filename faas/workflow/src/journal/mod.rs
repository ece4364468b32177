//! The journal of a run: pages of what came from outside and of the events that followed.
//!
//! A step is stored by one write: the open page is replaced under its resourceVersion. Of two engines that both believe a run
//! is theirs one is refused ([`JournalError::Fenced`]), at the first thing it wants to store. A page that is long enough is
//! sealed with the write that makes it so; the next page is made by the next step, which only one can make: its name is taken
//! by the first. So a run is rebuilt from its pages alone.
//!
//! Where many runs go on at once their steps are stored together in the log of their namespace ([`log`]), and the pages follow
//! later: when they are long enough, when the run waits, ends, or was behind for as long as the caller allows.
//!
//! Every so often a page begins with a checkpoint: when the events since the last one are several times its length. What is
//! read after a crash is thus bounded, and what is written for it is a share of what is written anyway.

pub(crate) mod load;
pub(crate) mod log;
pub(crate) mod record;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::api::{GROUP, OPEN, PayloadRef, WorkflowHistory, WorkflowLog};
use crate::engine::share::member_of;
use crate::machine::{Event, Input, Machine};
use crate::pack;
use crate::payload::{Owner, Payload, PayloadError};

use self::log::{Line, Log};
use self::record::Record;

/// Bytes of a page that is long enough.
const PAGE: usize = 16 * 1024;
/// Bytes of packed text in a page; longer goes into payloads.
const PACKED: usize = 20 * 1024;
/// Bytes of events before another checkpoint, at least; and how many times its length.
const CHECKPOINT: (usize, usize) = (64 * 1024, 4);
/// Tries of a write that was not answered, and the first pause between them.
const TRIES: (u32, Duration) = (6, Duration::from_millis(50));
/// Payloads that are known to be stored.
const KNOWN_MAX: usize = 1024;

/// Why a step is not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// Another engine has the run: read it anew, or leave it.
    #[error("another engine writes this run")]
    Fenced,
    /// The run, or its namespace, is gone or going: there is nothing left to do.
    #[error("the run is gone")]
    Gone,
    /// The API does not answer, or refuses: try again later.
    #[error("a page cannot be stored: {0}")]
    Api(#[source] Box<kube::Error>),
    /// Long data cannot be stored or read.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// What is stored cannot be understood.
    #[error("page {page} is damaged: {why}")]
    Damaged {
        /// Its number.
        page: i64,
        /// How.
        why: String,
    },
}

/// What a journal is about, as it is after a step.
pub(crate) trait Whole: Sync {
    /// Number of its last event.
    fn last(&self) -> i64;
    /// Whether it is over: then the page is the last.
    fn is_over(&self) -> bool;
    /// Everything it is, but for what it pinned.
    fn checkpoint(&self) -> String;
}

impl Whole for Machine {
    fn last(&self) -> i64 {
        self.last_event()
    }

    fn is_over(&self) -> bool {
        self.over().is_some()
    }

    fn checkpoint(&self) -> String {
        Machine::checkpoint(self)
    }
}

/// Where a run is written.
pub(crate) struct Journal {
    client: Client,
    owner: Owner,
    /// Who writes: of this process and of this taking over of the run.
    writer: String,
    writes: u64,
    number: i64,
    /// The resourceVersion of the open page; none while it is not there.
    version: Option<String>,
    first: i64,
    last: i64,
    /// The last page that is stored.
    stored: i64,
    /// Where steps may be stored with those of other runs; none where they never are.
    log: Option<Arc<Log>>,
    /// The number in the last page that this journal wrote, under which the log must be held for that.
    marked: Option<i64>,
    /// Since when steps are in the log only.
    behind: Option<Instant>,
    /// Items of the JSON arrays, with commas between.
    events: String,
    inputs: String,
    /// Further fields of the page's spec: what is pinned, the checkpoint.
    more: Vec<(&'static str, Value)>,
    since: usize,
    checkpoint: usize,
    known: HashSet<PayloadRef>,
}

/// The part of an answer that matters.
#[derive(Deserialize)]
struct Written {
    metadata: WrittenMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenMeta {
    resource_version: String,
}

impl Journal {
    /// A journal of which nothing is known yet.
    fn new(client: Client, owner: Owner) -> Self {
        Self {
            client,
            owner,
            writer: uuid::Uuid::new_v4().simple().to_string(),
            writes: 0,
            number: 1,
            version: None,
            first: 1,
            last: 0,
            stored: 1,
            log: None,
            marked: None,
            behind: None,
            events: String::new(),
            inputs: String::new(),
            more: vec![],
            since: 0,
            checkpoint: 0,
            known: HashSet::new(),
        }
    }

    /// The journal of a run that has none; `pinned` goes into its first page.
    pub(crate) async fn begin(client: Client, owner: Owner, pinned: &str) -> Result<Self, JournalError> {
        let mut journal = Self::new(client, owner);
        let packed = pack::pack(pinned);
        let field = journal.packed(pinned, packed, "pinned", "pinnedRef").await?;
        journal.more.push(field);
        Ok(journal)
    }

    /// Steps may be stored with those of other runs from now on.
    pub(crate) fn shares(&mut self, log: Arc<Log>) {
        if let Some(engine) = member_of(log.name()) {
            // Of several engines, for whoever looks at pages.
            self.writer = format!("{engine}.{}", self.writer);
        }
        self.log = Some(log);
    }

    /// Number of the last page.
    pub(crate) fn pages(&self) -> i64 {
        self.stored
    }

    /// Since when the pages lack steps that are stored elsewhere.
    pub(crate) fn behind(&self) -> Option<Instant> {
        self.behind
    }

    /// Text as a field of a page, or as a payload.
    async fn packed(
        &mut self,
        text: &str,
        packed: String,
        here: &'static str,
        there: &'static str,
    ) -> Result<(&'static str, Value), JournalError> {
        if packed.len() <= PACKED {
            return Ok((here, Value::String(packed)));
        }
        let payload = Payload::of(text)?;
        payload.store(&self.client, &self.owner).await?;
        Ok((there, json!(payload.reference)))
    }

    /// Stores one step: what came, and what followed. `machine` is what the run is afterwards. Pages are written by as many at a
    /// time as `pages` lets.
    pub(crate) async fn commit(
        &mut self,
        inputs: &[Input],
        events: &[Event],
        machine: &Machine,
        how: How,
        pages: &Semaphore,
    ) -> Result<(), JournalError> {
        let mut long = vec![];
        let mut step = String::new();
        for input in inputs {
            let text = serde_json::to_string(&Record::of(input, &mut long)?).unwrap_or_default();
            add(&mut step, &text);
        }
        self.since += step.len();
        add(&mut self.inputs, &step);
        for event in events {
            let text = record::event(event, &mut long)?;
            self.since += text.len();
            add(&mut self.events, &text);
        }
        self.store(long).await?;
        self.last = machine.last_event();
        self.writes += 1;
        if how == How::Together && self.share(step, machine).await {
            return Ok(());
        }
        let _permit = pages.acquire().await;
        self.write_page(machine).await
    }

    /// Stores one step of what has no events of its own: JSON texts, and the long data that they name.
    pub(crate) async fn add(
        &mut self,
        entries: &[String],
        long: Vec<Payload>,
        whole: &dyn Whole,
    ) -> Result<(), JournalError> {
        for text in entries {
            self.since += text.len();
            add(&mut self.inputs, text);
        }
        self.store(long).await?;
        self.last = whole.last();
        self.writes += 1;
        self.write_page(whole).await
    }

    async fn store(&mut self, long: Vec<Payload>) -> Result<(), JournalError> {
        for payload in long {
            if !self.known.contains(&payload.reference) {
                payload.store(&self.client, &self.owner).await?;
                if self.known.len() >= KNOWN_MAX {
                    self.known.clear();
                }
                self.known.insert(payload.reference);
            }
        }
        Ok(())
    }

    fn is_long(&self) -> bool {
        self.events.len() + self.inputs.len() >= PAGE
    }

    /// Stores the step that was made last with those of other runs. False where it is not known to be stored.
    async fn share(&mut self, step: String, machine: &Machine) -> bool {
        let Some(log) = &self.log else { return false };
        // The end is on a page, so that nothing has to be looked for in the log of a run that is over.
        if machine.over().is_some() || self.is_long() || step.len() > log::STEP {
            return false;
        }
        let Some(held) = self.marked else {
            // The page that is written now says so, and the next step can be shared.
            log.share().await;
            return false;
        };
        let Owner { name, uid, .. } = &self.owner;
        let (run, uid) = (name.clone(), uid.clone());
        let line = Line { run, uid, writer: self.writer.clone(), n: self.writes, inputs: step };
        let stored = log.add(held, line).await;
        if stored {
            self.behind.get_or_insert_with(Instant::now);
        }
        stored
    }

    /// Writes the page where it lacks steps that are in the log.
    pub(crate) async fn catch_up(&mut self, machine: &Machine, pages: &Semaphore) -> Result<(), JournalError> {
        if self.behind.is_none() {
            return Ok(());
        }
        let _permit = pages.acquire().await;
        self.write_page(machine).await
    }

    /// Lets another engine write on: the pages have everything, and say that no log has more.
    pub(crate) async fn release(&mut self, machine: &Machine, pages: &Semaphore) -> Result<(), JournalError> {
        let log = self.log.take();
        if self.behind.is_some() || self.marked.is_some() {
            let _permit = pages.acquire().await;
            // There may be no step that would be stored under the next number.
            self.writes += 1;
            self.write_page(machine).await?;
        }
        if let Some(log) = log {
            log.done(&self.owner.uid).await;
        }
        Ok(())
    }

    async fn write_page(&mut self, whole: &dyn Whole) -> Result<(), JournalError> {
        let sealed = whole.is_over() || self.is_long();
        let mark = self.log.as_ref().filter(|_| !whole.is_over()).and_then(|l| l.held());
        let body = self.body(sealed, mark);
        self.write(&body).await?;
        (self.marked, self.stored) = (mark, self.number);
        if self.behind.take().is_some()
            && let Some(log) = &self.log
        {
            log.done(&self.owner.uid).await;
        }
        if sealed {
            self.number += 1;
            self.version = None;
            self.first = self.last + 1;
            self.events.clear();
            self.inputs.clear();
            self.more.clear();
            if !whole.is_over() && self.since >= CHECKPOINT.0.max(self.checkpoint * CHECKPOINT.1) {
                let checkpoint = whole.checkpoint();
                (self.since, self.checkpoint) = (0, checkpoint.len());
                let packed = pack::pack(&checkpoint);
                let field = self.packed(&checkpoint, packed, "checkpoint", "checkpointRef").await?;
                self.more.push(field);
            }
        }
        Ok(())
    }

    fn body(&self, sealed: bool, mark: Option<i64>) -> String {
        let name = WorkflowHistory::name_of(&self.owner.name, self.number);
        let mut meta = self.owner.meta(name);
        meta.resource_version.clone_from(&self.version);
        if !sealed && let Some(labels) = &mut meta.labels {
            labels.insert(OPEN.to_owned(), "true".to_owned());
        }
        let mut spec = json!({
            "run": self.owner.name, "runUid": self.owner.uid, "number": self.number, "firstEvent": self.first,
            "lastEvent": self.last, "writer": format!("{}/{}", self.writer, self.writes),
        });
        if let Some(spec) = spec.as_object_mut() {
            spec.extend(mark.map(|held| ("log".to_owned(), json!(held))));
            let named = self.log.as_ref().filter(|l| mark.is_some() && **l.name() != *WorkflowLog::HEAD);
            spec.extend(named.map(|l| ("logName".to_owned(), json!(&**l.name()))));
            spec.extend(self.more.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
            let text = format!("{{\"events\":[{}],\"inputs\":[{}]}}", self.events, self.inputs);
            if sealed {
                spec.insert("sealed".to_owned(), json!(true));
                spec.insert("packed".to_owned(), Value::String(pack::pack(&text)));
            } else {
                spec.insert("open".to_owned(), Value::String(text));
            }
        }
        let meta = serde_json::to_string(&meta).unwrap_or_default();
        format!("{{\"apiVersion\":\"{GROUP}/v1\",\"kind\":\"WorkflowHistory\",\"metadata\":{meta},\"spec\":{spec}}}")
    }

    /// Makes or replaces the page. A write that was not answered is looked for before it is made again.
    async fn write(&mut self, body: &str) -> Result<(), JournalError> {
        let name = WorkflowHistory::name_of(&self.owner.name, self.number);
        let collection = format!("/apis/{GROUP}/v1/namespaces/{}/workflowhistories", self.owner.namespace);
        let mut pause = TRIES.1;
        for tried in 1.. {
            let request = match &self.version {
                None => http::Request::post(&collection),
                Some(_) => http::Request::put(format!("{collection}/{name}")),
            };
            let request = request.header(http::header::CONTENT_TYPE, "application/json").body(body.as_bytes().to_vec());
            let request = request.map_err(|e| JournalError::Api(Box::new(kube::Error::HttpError(e))))?;
            let error = match self.client.request::<Written>(request).await {
                Ok(written) => {
                    self.version = Some(written.metadata.resource_version);
                    return Ok(());
                }
                Err(error) => error,
            };
            match skiff_controllers::runtime::worker::code(&error) {
                409 => match self.whose(&name).await? {
                    Whose::Ours(version) => {
                        self.version = Some(version);
                        return Ok(());
                    }
                    Whose::Old => {}
                    Whose::Theirs => return Err(JournalError::Fenced),
                },
                // The page is gone, and so is the run; or the namespace is.
                404 | 403 if skiff_controllers::runtime::worker::not_found(&error) || tried > 1 => {
                    return Err(JournalError::Gone);
                }
                400 | 413 | 422 => return Err(JournalError::Api(Box::new(error))),
                _ => {}
            }
            if tried >= TRIES.0 {
                return Err(JournalError::Api(Box::new(error)));
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(JournalError::Gone)
    }

    /// Whose a page is that is in the way.
    async fn whose(&self, name: &str) -> Result<Whose, JournalError> {
        let pages = kube::Api::<WorkflowHistory>::namespaced(self.client.clone(), &self.owner.namespace);
        let api = |e| JournalError::Api(Box::new(e));
        let Some(page) = pages.get_opt(name).await.map_err(api)? else { return Ok(Whose::Old) };
        if page.spec.run_uid != self.owner.uid {
            // Of a run of the same name that is deleted already; its pages follow it in a moment.
            let uid = page.metadata.uid.clone();
            let only = kube::api::Preconditions { uid, resource_version: None };
            let how = kube::api::DeleteParams { preconditions: Some(only), ..Default::default() };
            return match pages.delete(name, &how).await {
                Ok(_) => Ok(Whose::Old),
                Err(e) if matches!(skiff_controllers::runtime::worker::code(&e), 404 | 409) => Ok(Whose::Old),
                Err(e) => Err(api(e)),
            };
        }
        let ours = page.spec.writer == format!("{}/{}", self.writer, self.writes);
        let version = page.metadata.resource_version.unwrap_or_default();
        Ok(if ours { Whose::Ours(version) } else { Whose::Theirs })
    }
}

/// Whose a page is.
enum Whose {
    /// It is what we wrote.
    Ours(String),
    /// Of a run that is gone.
    Old,
    /// Another engine's.
    Theirs,
}

/// How a step is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// By a write of its own.
    Alone,
    /// With those of other runs, where that can be.
    Together,
}

fn add(list: &mut String, item: &str) {
    if !list.is_empty() && !item.is_empty() {
        list.push(',');
    }
    list.push_str(item);
}
