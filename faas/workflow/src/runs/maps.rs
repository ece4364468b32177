//! Executions of distributed maps, as the pages of their map's run tell of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};
use serde::Deserialize as _;
use serde_json::Value;

use super::RunsError;
use crate::api::{Phase, WorkflowHistory, WorkflowMapRun};
use crate::engine::map::ledger::Entry;
use crate::engine::map::{Pin, about};
use crate::journal::JournalError;
use crate::journal::load::{Pages, content};
use crate::journal::record::{self, Record, Text, time};
use crate::machine::{Input, Machine, What};
use crate::payload::{self, Owner};

/// An execution of a map's run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// Which.
    pub(crate) index: usize,
    /// How it ended; `Running` where it has not.
    pub(crate) phase: Phase,
    pub(crate) start: Timestamp,
    pub(crate) stop: Option<Timestamp>,
    input: Option<Text>,
    output: Option<Text>,
    pub(crate) error: Option<String>,
    cause: Option<Text>,
    /// How often it was redriven, and when last.
    pub(crate) redrives: (u32, Option<Timestamp>),
}

/// Data of an execution.
pub(crate) struct Data {
    /// JSON text.
    pub(crate) input: String,
    /// JSON text.
    pub(crate) output: Option<String>,
    pub(crate) cause: Option<String>,
}

/// The name of an execution.
pub(crate) fn name_of(map: &str, index: usize) -> String {
    format!("{map}-{index}")
}

/// The map's run and the number of an execution that has this name.
pub(crate) fn named(name: &str) -> Option<(&str, usize)> {
    let (map, index) = name.rsplit_once('-')?;
    Some((map, index.parse().ok()?))
}

/// Everything that was written about a map's run, in order.
async fn entries(
    client: &Client,
    owner: &Owner,
    mut each: impl FnMut(Entry) -> Result<(), JournalError>,
) -> Result<(), JournalError> {
    let pages = Api::<WorkflowHistory>::namespaced(client.clone(), &owner.namespace);
    for number in 1.. {
        let name = WorkflowHistory::name_of(&owner.name, number);
        let page = pages.get_opt(&name).await.map_err(|e| JournalError::Api(Box::new(e)))?;
        let Some(page) = page.filter(|p| p.spec.run_uid == owner.uid) else { break };
        for input in content(page.spec)?.inputs {
            let damaged = |e: serde_json::Error| JournalError::Damaged { page: number, why: e.to_string() };
            each(Entry::deserialize(input).map_err(damaged)?)?;
        }
    }
    Ok(())
}

/// All executions that began, by number.
pub(crate) async fn executions(client: &Client, owner: &Owner) -> Result<BTreeMap<usize, Told>, JournalError> {
    let mut all: BTreeMap<usize, Told> = BTreeMap::new();
    entries(client, owner, |entry| {
        match entry {
            Entry::Begin { c, at, input } => {
                let (start, redrives) = match all.remove(&c) {
                    // It began anew after a redrive.
                    Some(told) => (told.start, (told.redrives.0 + 1, Some(time(at)))),
                    None => (time(at), (0, None)),
                };
                let phase = Phase::Running;
                all.insert(c, Told { index: c, phase, start, redrives, input: Some(input), ..Told::default() });
            }
            Entry::Again { c, at, count } => {
                if let Some(told) = all.get_mut(&c) {
                    (told.phase, told.stop) = (Phase::Running, None);
                    (told.output, told.error, told.cause) = (None, None, None);
                    told.redrives = (count, Some(time(at)));
                }
            }
            Entry::End { c, at, phase, output, error, cause, .. } => {
                let at = time(at);
                let fresh = Told { index: c, start: at, ..Told::default() };
                let told = all.entry(c).or_insert(fresh);
                (told.phase, told.stop) = (phase, Some(at));
                (told.output, told.error, told.cause) = (output, error, cause);
            }
            Entry::Step { .. } | Entry::Redrive { .. } | Entry::Over { .. } => {}
        }
        Ok(())
    })
    .await?;
    Ok(all)
}

async fn whole(client: &Client, owner: &Owner, text: &Option<Text>) -> Result<Option<String>, JournalError> {
    Ok(match text {
        None => None,
        Some(Text::Here(text)) => Some(text.to_string()),
        Some(Text::There(long)) => Some(payload::load(client, owner, long).await?),
    })
}

impl Told {
    /// Its input and output, long ones read.
    pub(crate) async fn data(&self, client: &Client, owner: &Owner) -> Result<Data, JournalError> {
        Ok(Data {
            input: whole(client, owner, &self.input).await?.unwrap_or_else(|| "null".to_owned()),
            output: whole(client, owner, &self.output).await?,
            cause: whole(client, owner, &self.cause).await?,
        })
    }
}

/// The history of an execution: made anew from what came for it. One that is in memory only has none.
pub(crate) async fn history(client: &Client, map: &WorkflowMapRun, index: usize) -> Result<Vec<Value>, RunsError> {
    let owner = Owner::of_map(map);
    let failed = |e: JournalError| RunsError::Unavailable(e.to_string());
    if map.spec.express {
        return Err(RunsError::WrongType);
    }
    let pages = Pages::read(client, &owner, 0).await.map_err(failed)?;
    let pages = pages.ok_or_else(|| RunsError::Unavailable("it has not begun".to_owned()))?;
    let pin: Pin = serde_json::from_str(&pages.pinned).map_err(|e| RunsError::Unavailable(e.to_string()))?;
    let (definition, _) = crate::engine::judge(&pin.definition);
    let definition =
        Arc::new(definition.ok_or_else(|| RunsError::Unavailable("its definition is damaged".to_owned()))?);
    let mut steps = vec![];
    entries(client, &owner, |entry| {
        match &entry {
            Entry::Begin { c, .. } if *c == index => {
                // What began anew has the history of its last time.
                steps.clear();
                steps.push(entry);
            }
            Entry::Again { c, .. } | Entry::Step { c, .. } if *c == index => steps.push(entry),
            _ => {}
        }
        Ok(())
    })
    .await
    .map_err(failed)?;
    let mut machine: Option<Machine> = None;
    let mut events = vec![];
    for step in steps {
        let mut long: Vec<Arc<str>> = vec![];
        for reference in step.long() {
            let text = payload::load(client, &owner, &reference).await;
            long.push(text.map_err(|e| RunsError::Unavailable(e.to_string()))?.into());
        }
        let long = long.into_iter().next();
        match step {
            Entry::Begin { at, input, .. } => {
                let input = match input {
                    Text::Here(text) => text,
                    Text::There(_) => long.unwrap_or_default(),
                };
                let mut info = about(&pin, index);
                info.input = serde_json::from_str(&input).unwrap_or_default();
                let mut fresh = Machine::new(Arc::clone(&definition), Arc::new(info));
                fresh.apply(&Input { at: time(at), what: What::Start });
                machine = Some(fresh);
            }
            Entry::Again { at, count, .. } => {
                if let Some(machine) = &mut machine {
                    machine.apply(&Input { at: time(at), what: What::Redrive { count } });
                }
            }
            Entry::Step { r, .. } => {
                if let Some(machine) = &mut machine {
                    machine.apply(&Record::input(r, long));
                }
            }
            _ => {}
        }
        for event in machine.iter_mut().flat_map(Machine::events) {
            events.push(record::whole(&event));
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_executions_come_back() {
        assert_eq!(named(&name_of("run-0a1b", 12)), Some(("run-0a1b", 12)));
        for bad in ["run", "run-x", ""] {
            assert_eq!(named(bad), None, "{bad}");
        }
    }
}
