//! A run from its pages.

use std::sync::Arc;

use kube::{Api, Client};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::log::Line;
use super::record::{self, Record};
use super::{Journal, JournalError};
use crate::api::{PayloadRef, WorkflowHistory, WorkflowHistorySpec, WorkflowLog};
use crate::machine::{Event, Machine};
use crate::pack;
use crate::payload::{self, Owner};
use crate::runs::Pinned;

/// What the pages of a run are.
pub(crate) struct Pages {
    client: Client,
    owner: Owner,
    /// From the last checkpoint on, or from the first page.
    pages: Vec<WorkflowHistory>,
    /// What the first page pinned, JSON text.
    pub(crate) pinned: String,
}

/// What is made anew from pages.
pub(crate) trait Rebuilt: Send {
    /// It is as it was when this checkpoint was made.
    fn restore(&mut self, checkpoint: &str) -> Result<(), String>;
    /// Long texts of something that came.
    fn long(&self, input: &Value) -> Vec<PayloadRef>;
    /// What came came; with its long texts.
    fn take(&mut self, input: Value, long: Vec<Arc<str>>) -> Result<(), String>;
    /// The events of what came last, where it has events.
    fn followed(&mut self) -> Vec<Event> {
        vec![]
    }
    /// Number of its last event.
    fn last(&self) -> i64;
}

/// A run that is made anew.
struct Run<'a> {
    machine: Machine,
    restore: Restore<'a>,
    followed: Vec<Event>,
}

impl Rebuilt for Run<'_> {
    fn restore(&mut self, checkpoint: &str) -> Result<(), String> {
        self.machine = (self.restore)(checkpoint).map_err(|e| e.to_string())?;
        Ok(())
    }

    fn long(&self, input: &Value) -> Vec<PayloadRef> {
        Record::deserialize(input).ok().and_then(|r| r.long().cloned()).into_iter().collect()
    }

    fn take(&mut self, input: Value, mut long: Vec<Arc<str>>) -> Result<(), String> {
        let record = Record::deserialize(input).map_err(|e| e.to_string())?;
        if !self.machine.apply(&record.input(long.pop())) {
            return Err("an input says nothing to the run".to_owned());
        }
        self.followed = self.machine.events();
        self.machine.commands();
        Ok(())
    }

    fn followed(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.followed)
    }

    fn last(&self) -> i64 {
        self.machine.last_event()
    }
}

/// The last page of a run; `hint` is a page that is there, as far as is known.
pub(super) async fn last_page(
    pages: &Api<WorkflowHistory>,
    run: &str,
    hint: i64,
) -> Result<Option<WorkflowHistory>, JournalError> {
    let get = async |number: i64| {
        let found = pages.get_opt(&WorkflowHistory::name_of(run, number)).await;
        found.map_err(|e| JournalError::Api(Box::new(e)))
    };
    let mut number = hint.max(1);
    let mut last = get(number).await?;
    while last.as_ref().is_some_and(|p| p.spec.sealed) {
        number += 1;
        match get(number).await? {
            Some(page) => last = Some(page),
            None => break,
        }
    }
    Ok(last)
}

fn damaged(page: i64, why: impl std::fmt::Display) -> JournalError {
    JournalError::Damaged { page, why: why.to_string() }
}

async fn text(
    client: &Client,
    owner: &Owner,
    page: i64,
    packed: Option<&String>,
    long: Option<&PayloadRef>,
) -> Result<Option<String>, JournalError> {
    Ok(match (packed, long) {
        (Some(packed), _) => Some(pack::unpack(packed).map_err(|e| damaged(page, e))?),
        (None, Some(long)) => Some(payload::load(client, owner, long).await?),
        (None, None) => None,
    })
}

impl Pages {
    /// Reads what is needed of a run's pages. `hint` is a page that is there, or 0. None when there is no page.
    pub(crate) async fn read(client: &Client, owner: &Owner, hint: i64) -> Result<Option<Self>, JournalError> {
        Self::read_from(client, owner, hint, None).await
    }

    /// The same, where a page may be known that was the last a moment ago.
    pub(crate) async fn read_from(
        client: &Client,
        owner: &Owner,
        hint: i64,
        last: Option<WorkflowHistory>,
    ) -> Result<Option<Self>, JournalError> {
        let api = Api::<WorkflowHistory>::namespaced(client.clone(), &owner.namespace);
        let get = async |number: i64| -> Result<Option<WorkflowHistory>, JournalError> {
            let name = WorkflowHistory::name_of(&owner.name, number);
            let found = api.get_opt(&name).await.map_err(|e| JournalError::Api(Box::new(e)))?;
            Ok(found.filter(|p| p.spec.run_uid == owner.uid))
        };
        let last = last.filter(|p| p.spec.run_uid == owner.uid);
        let mut number = last.as_ref().map_or(hint.max(1), |p| p.spec.number);
        let first = match last {
            Some(page) => Some(page),
            None => get(number).await?,
        };
        let mut pages = match first {
            Some(page) => vec![page],
            None if number == 1 => return Ok(None),
            None => {
                number = 1;
                match get(1).await? {
                    Some(page) => vec![page],
                    None => return Ok(None),
                }
            }
        };
        let mut last = number;
        // What comes after a page is made only when that one is sealed.
        while pages.last().is_some_and(|p| p.spec.sealed)
            && let Some(page) = get(last + 1).await?
        {
            last += 1;
            pages.push(page);
        }
        let begins =
            |p: &WorkflowHistory| p.spec.number == 1 || p.spec.checkpoint.is_some() || p.spec.checkpoint_ref.is_some();
        while !pages.iter().any(begins) {
            number -= 1;
            pages.insert(0, get(number).await?.ok_or_else(|| damaged(number, "it is missing"))?);
        }
        let first = if number == 1 { pages.first().cloned() } else { get(1).await? };
        let first = first.ok_or_else(|| damaged(1, "it is missing"))?.spec;
        let pinned = text(client, owner, 1, first.pinned.as_ref(), first.pinned_ref.as_ref()).await?;
        let pinned = pinned.ok_or_else(|| damaged(1, "nothing is pinned"))?;
        if let Some(from) = pages.iter().rposition(begins) {
            pages.drain(..from);
        }
        Ok(Some(Self { client: client.clone(), owner: owner.clone(), pages, pinned }))
    }

    /// What a run pinned, and its input.
    pub(crate) async fn run(&self) -> Result<(Pinned, String), JournalError> {
        let pinned: Pinned = serde_json::from_str(&self.pinned).map_err(|e| damaged(1, e))?;
        let input = match (&pinned.input, &pinned.input_ref) {
            (Some(input), _) => input.clone(),
            (None, Some(long)) => payload::load(&self.client, &self.owner, long).await?,
            (None, None) => "{}".to_owned(),
        };
        Ok((pinned, input))
    }

    /// The log with steps after these pages, and the number under which it must be held by whoever goes on from here.
    pub(crate) fn log(&self) -> Option<(String, i64)> {
        let spec = &self.pages.last()?.spec;
        let name = spec.log_name.clone().unwrap_or_else(|| WorkflowLog::HEAD.to_owned());
        Some((name, spec.log?))
    }

    /// The run as it is, and where it is written on. `fresh` is what it was before its start, `lines` what the log has of it.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when pages and log do not go together: both are to be read again.
    pub(crate) async fn rebuild(
        self,
        fresh: Machine,
        restore: Restore<'_>,
        lines: Vec<Line>,
    ) -> Result<(Machine, Journal), JournalError> {
        let last = self.pages.last().map(|p| p.spec.writer.clone()).unwrap_or_default();
        let mut run = Run { machine: fresh, restore, followed: vec![] };
        let mut journal = self.replay(&mut run).await?;
        let (writer, n) = last.split_once('/').unwrap_or_default();
        let n: u64 = n.parse().unwrap_or_default();
        // Those of others, and earlier ones, are on the pages.
        let further = lines.into_iter().filter(|l| l.writer == writer && l.n > n);
        for (line, expected) in further.zip(n + 1..) {
            if line.n != expected {
                return Err(JournalError::Fenced);
            }
            journal.follow(&mut run, &line).await?;
        }
        Ok((run.machine, journal))
    }

    /// Makes anew what the pages are about. What is returned is where it is written on.
    pub(crate) async fn replay(self, whole: &mut dyn Rebuilt) -> Result<Journal, JournalError> {
        let mut journal = Journal::new(self.client, self.owner);
        for (i, page) in self.pages.into_iter().enumerate() {
            let WorkflowHistory { metadata, spec } = page;
            let number = spec.number;
            if i == 0 {
                let (packed, long) = (spec.checkpoint.as_ref(), spec.checkpoint_ref.as_ref());
                if let Some(checkpoint) = text(&journal.client, &journal.owner, number, packed, long).await? {
                    journal.checkpoint = checkpoint.len();
                    whole.restore(&checkpoint).map_err(|e| damaged(number, e))?;
                }
            }
            (journal.number, journal.stored) = (number, number);
            journal.first = spec.first_event;
            journal.last = spec.last_event;
            journal.version = metadata.resource_version;
            journal.more = fields(&spec);
            let sealed = spec.sealed;
            let last = spec.last_event;
            let content = content(spec)?;
            journal.events.clear();
            journal.inputs.clear();
            for event in &content.events {
                super::add(&mut journal.events, &event.to_string());
            }
            for input in &content.inputs {
                super::add(&mut journal.inputs, &input.to_string());
            }
            journal.since += journal.events.len() + journal.inputs.len();
            for input in content.inputs {
                journal.give(whole, input).await?;
            }
            if whole.last() != last {
                let why = format!("its last event is {last}, not {}", whole.last());
                return Err(damaged(number, why));
            }
            if sealed {
                journal.number += 1;
                journal.version = None;
                journal.first = last + 1;
                journal.events.clear();
                journal.inputs.clear();
                journal.more.clear();
            }
        }
        Ok(journal)
    }
}

impl Journal {
    /// Gives something that came to what is made anew.
    async fn give(&self, whole: &mut dyn Rebuilt, input: Value) -> Result<(), JournalError> {
        let mut long: Vec<Arc<str>> = vec![];
        for reference in whole.long(&input) {
            long.push(payload::load(&self.client, &self.owner, &reference).await?.into());
        }
        whole.take(input, long).map_err(|e| damaged(self.number, e))
    }

    /// Takes a step of the log: the page is behind then.
    async fn follow(&mut self, whole: &mut dyn Rebuilt, line: &Line) -> Result<(), JournalError> {
        let inputs: Vec<Value> =
            serde_json::from_str(&format!("[{}]", line.inputs)).map_err(|e| damaged(self.number, e))?;
        let mut long = vec![];
        for input in inputs {
            super::add(&mut self.inputs, &input.to_string());
            self.give(whole, input).await?;
            for event in whole.followed() {
                super::add(&mut self.events, &record::event(&event, &mut long)?);
            }
        }
        self.store(long).await?;
        self.last = whole.last();
        self.behind.get_or_insert_with(Instant::now);
        Ok(())
    }
}

/// Makes a machine of a checkpoint.
pub(crate) type Restore<'a> = &'a (dyn Fn(&str) -> Result<Machine, serde_json::Error> + Sync);

/// Fields of an open page that stay as they are.
fn fields(spec: &WorkflowHistorySpec) -> Vec<(&'static str, Value)> {
    let text = |t: &Option<String>| t.clone().map(Value::String);
    let long = |p: &Option<PayloadRef>| p.as_ref().map(|p| serde_json::json!(p));
    let all = [
        ("checkpoint", text(&spec.checkpoint)),
        ("checkpointRef", long(&spec.checkpoint_ref)),
        ("pinned", text(&spec.pinned)),
        ("pinnedRef", long(&spec.pinned_ref)),
    ];
    all.into_iter().filter_map(|(k, v)| Some((k, v?))).collect()
}

/// What a page holds.
#[derive(Deserialize)]
pub(crate) struct Content {
    pub(crate) events: Vec<Value>,
    pub(crate) inputs: Vec<Value>,
}

/// What a page holds, open or sealed.
///
/// # Errors
/// When it cannot be understood.
pub(crate) fn content(spec: WorkflowHistorySpec) -> Result<Content, JournalError> {
    let text = match (spec.packed, spec.open) {
        (Some(packed), _) => pack::unpack(&packed).map_err(|e| damaged(spec.number, e))?,
        (None, Some(open)) => open,
        (None, None) => return Ok(Content { events: spec.events, inputs: spec.inputs }),
    };
    serde_json::from_str(&text).map_err(|e| damaged(spec.number, e))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pages_are_read_whichever_version_wrote_them() {
        let text = json!({"events": [{"id": 1}], "inputs": [{"k": "start"}]}).to_string();
        let forms = [
            json!({"open": text}),
            json!({"sealed": true, "packed": pack::pack(&text)}),
            json!({"events": [{"id": 1}], "inputs": [{"k": "start"}]}),
        ];
        for mut form in forms {
            for (key, value) in
                json!({"run": "r", "runUid": "u", "number": 1, "firstEvent": 1, "lastEvent": 1}).as_object().unwrap()
            {
                form[key] = value.clone();
            }
            let content = content(serde_json::from_value(form.clone()).unwrap()).unwrap();
            assert_eq!(
                (content.events, content.inputs),
                (vec![json!({"id": 1})], vec![json!({"k": "start"})]),
                "{form}"
            );
        }
    }
}
