//! How the actor of a run begins: from the run's pages and what a log has behind them, or with its first page.

use std::sync::Arc;

use kube::{Api, ResourceExt as _};
use skiff_asl::ExecutionError;

use super::{Actor, End};
use crate::api::{Kind, WorkflowRun};
use crate::engine::ahead::Told;
use crate::engine::begin::{self, Refusal};
use crate::engine::share::PIN;
use crate::engine::{Engine, Inbox, Key, Notes, Point, Rest};
use crate::journal::load::Pages;
use crate::journal::{Journal, JournalError};
use crate::machine::{Command, Machine, Spread, What};
use crate::payload::Owner;

/// Makes the actor of a run and lets it work until it ends.
pub(super) async fn attempt(
    engine: &Arc<Engine>,
    key: &Key,
    uid: &str,
    me: &Notes,
    notes: &mut Inbox,
) -> Result<End, JournalError> {
    let turn = engine.turn(key, uid);
    // What reading takes is not kept while the run goes on.
    match Box::pin(ready(engine, key, uid, me)).await? {
        Ok(mut actor) => {
            actor.turn = turn;
            actor.work(notes).await
        }
        Err(end) => Ok(end),
    }
}

/// The actor of a run with what it takes first, or how the run ends without one.
async fn ready(
    engine: &Arc<Engine>,
    key: &Key,
    uid: &str,
    me: &Notes,
) -> Result<Result<Box<Actor>, End>, JournalError> {
    let api = |e| JournalError::Api(Box::new(e));
    let permit = engine.loads.acquire().await;
    let runs = Api::<WorkflowRun>::namespaced(engine.client.clone(), &key.0);
    let told = engine.told(key, uid);
    let is_new = matches!(told, Told::New(_));
    let (mut run, pages, last, mut generation) = if let Told::Begun(known, page) = told {
        (None, known.pages, page.map(|p| *p), known.generation)
    } else {
        let read = if let Told::New(run) = told { Some(*run) } else { object(&runs, key, uid).await? };
        let Some(read) = read else { return Ok(Err(End::Over)) };
        let pin = read.annotations().get(PIN).map(String::as_str);
        if !engine.drives(key, pin) {
            // The watch may not have told yet that it stays with another.
            engine.stays_with(key, pin);
            return Ok(Err(End::Left));
        }
        let (pages, generation) = (read.status.as_ref().map_or(0, |s| s.history_pages), read.metadata.generation);
        (Some(read), pages, None, generation)
    };
    let owner = Owner { kind: "WorkflowRun", namespace: key.0.clone(), name: key.1.clone(), uid: uid.to_owned() };
    let mut first = vec![];
    // Who believes wrongly that nobody has begun with it cannot make its first page.
    let mut found = if is_new { None } else { Pages::read_from(&engine.client, &owner, pages, last).await? };
    let log = engine.logs.of(&key.0);
    let mut lines = vec![];
    if let Some((name, held)) = found.as_ref().and_then(Pages::log) {
        // Without them the run would go back to where its page is.
        let (anew, more) = engine.steps_in_log(&key.0, &name, held, uid).await?;
        lines = more;
        if anew {
            // Whoever held it before may have written the page until then.
            found = Pages::read(&engine.client, &owner, pages).await?;
        }
    }
    let mut actor = match found {
        Some(pages) => {
            let (pinned, input) = pages.run().await?;
            let damaged = |why: String| JournalError::Damaged { page: 1, why };
            let definition = engine.definition(&pinned.revision, &pinned.definition);
            let definition = definition.map_err(|faults| damaged(begin::told(&faults)))?;
            let input = serde_json::from_str(&input).map_err(|e| damaged(e.to_string()))?;
            let info = Arc::new(begin::info(&owner, &pinned, input));
            let fresh = Machine::new(Arc::clone(&definition), Arc::clone(&info));
            let restore = |text: &str| Machine::restore(Arc::clone(&definition), Arc::clone(&info), text);
            let (machine, mut journal) = pages.rebuild(fresh, &restore, lines).await?;
            journal.shares(log);
            journal.catch_up(&machine, &engine.commits).await?;
            if let Some(run) = &run {
                engine.in_line(run);
            }
            Box::new(Actor::new(Arc::clone(engine), owner, machine, Some(journal), pinned, me.clone()))
        }
        None => {
            let run = match &run {
                Some(run) => run,
                None => {
                    let Some(read) = object(&runs, key, uid).await? else { return Ok(Err(End::Over)) };
                    generation = read.metadata.generation;
                    run.insert(read)
                }
            };
            if let Some(stop) = &run.spec.stop {
                let name = stop.error.clone().unwrap_or_default();
                let error = ExecutionError { error: name, cause: stop.cause.clone().unwrap_or_default() };
                engine.refuse(run, &owner, &error).await.map_err(api)?;
                return Ok(Err(End::Over));
            }
            let begun = match engine.begin(run, &owner).await {
                Ok(begun) => begun,
                Err(Refusal::Waits) => return Ok(Err(End::Parked(Rest { wake: None, known: None }))),
                Err(Refusal::Later(why)) => return Err(JournalError::Damaged { page: 0, why }),
                Err(Refusal::Fails(error)) => {
                    engine.refuse(run, &owner, &error).await.map_err(api)?;
                    return Ok(Err(End::Over));
                }
            };
            let input = serde_json::from_str(&begun.input).unwrap_or_default();
            let info = Arc::new(begin::info(&owner, &begun.pinned, input));
            let machine = Machine::new(begun.definition, info);
            let journal = match begun.pinned.kind {
                Kind::Standard => {
                    engine.reached(Point::Begin, &key.1).await;
                    let pinned = serde_json::to_string(&begun.pinned).unwrap_or_default();
                    let mut journal = Journal::begin(engine.client.clone(), owner.clone(), &pinned).await?;
                    journal.shares(log);
                    Some(journal)
                }
                Kind::Express => None,
            };
            first.push(What::Start);
            Box::new(Actor::new(Arc::clone(engine), owner, machine, journal, begun.pinned, me.clone()))
        }
    };
    drop(permit);
    if let Some(run) = &run {
        let pin = run.annotations().get(PIN).map(String::as_str);
        actor.stays = pin.is_some() && engine.is_me(pin);
        actor.leaving = actor.stays && !engine.drives(key, None);
        if let Some(stop) = &run.spec.stop {
            first.push(What::Stop { error: stop.error.clone(), cause: stop.cause.clone() });
        }
        actor.asked = run.spec.redrive.unwrap_or(0);
        if let Some(count) = run.spec.redrive.filter(|c| *c > actor.machine.redrives().0) {
            first.push(What::Redrive { count });
        }
    }
    actor.generation = generation;
    let outstanding = actor.machine.outstanding();
    actor.commands.extend(outstanding);
    if actor.machine.over().is_some() {
        // Their run was ended before they heard of it.
        let left: Vec<Spread> = actor.machine.spreads().collect();
        for spread in left {
            let step = spread.step;
            actor.spread(spread);
            actor.commands.push(Command::Cancel(step));
        }
    }
    for what in first {
        actor.take(what);
    }
    Ok(Ok(actor))
}

/// The object of a run. None where it is gone, or another of its name is there.
async fn object(runs: &Api<WorkflowRun>, (_, name): &Key, uid: &str) -> Result<Option<WorkflowRun>, JournalError> {
    let found = runs.get_opt(name).await.map_err(|e| JournalError::Api(Box::new(e)))?;
    Ok(found.filter(|run| run.metadata.uid.as_deref() == Some(uid)))
}
