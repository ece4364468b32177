//! The actor of a run: holds its machine, takes what comes for it, stores each step, does what follows.
//!
//! What came while a step was stored is taken together in the next. Nothing outside happens before the step that asks for it
//! is stored: tasks are dispatched, signals deleted, the status written afterwards.

mod load;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::ahead::Known;
use super::hear::{Note, answer};
use super::map::{self, Map};
use super::status::Written;
use super::turns::Turn;
use super::work::Work;
use super::{Engine, Inbox, Key, Notes, Point, Rest};
use crate::journal::record::now;
use crate::journal::{How, Journal, JournalError};
use crate::machine::{Command, Dispatch, Event, Input, Machine, Spread, Step, What, below};
use crate::payload::Owner;
use crate::runs::{ActivityTask, Pinned};
use crate::token::Token;

/// A run to which nothing happens for so long leaves memory, and so many may stay for that.
const IDLE: (Duration, usize) = (Duration::from_secs(2), 256);
/// Bytes of inputs and events that are stored together.
const BATCH: usize = 12 * 1024;
/// Pauses between tries of what does not go now.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Why an actor ends.
enum End {
    /// The run is over, or gone.
    Over,
    /// It waits for long.
    Parked(Rest),
    /// Another engine has it from now on.
    Left,
}

/// A run in memory.
pub(super) struct Actor {
    engine: Arc<Engine>,
    owner: Owner,
    machine: Machine,
    /// None for what is kept in memory only.
    journal: Option<Journal>,
    pinned: Pinned,
    generation: Option<i64>,
    /// The redrive that was asked for last, whether it was possible or not.
    asked: u32,
    /// Whether there is an object whose status says how it ended.
    kept: bool,
    me: Notes,
    /// What is worked on here.
    live: HashMap<Step, Work>,
    maps: HashMap<Step, Map>,
    /// Distributed Maps that are being stopped.
    ending: Vec<JoinHandle<()>>,
    written: Written,
    busy: Duration,
    /// Stored with the next step: what came, and what followed.
    inputs: Vec<Input>,
    events: Vec<Event>,
    bytes: usize,
    commands: Vec<Command>,
    /// Done when that is stored.
    signals: Vec<String>,
    replies: Vec<oneshot::Sender<()>>,
    polls: Vec<(oneshot::Sender<ActivityTask>, ActivityTask)>,
    /// Told when that is on the pages.
    shown: Vec<oneshot::Sender<()>>,
    /// Whether the run is another engine's as soon as nothing of it goes on here, and who waits to hear what becomes of that.
    leaving: bool,
    left: Vec<oneshot::Sender<()>>,
    /// Whether its object says that it stays here.
    stays: bool,
    /// In which it begins.
    turn: Option<Turn>,
}

/// Runs the actor of a run until the run is over or waits for long.
pub(super) async fn drive(engine: Arc<Engine>, key: Key, uid: String, me: Notes, mut notes: Inbox) {
    let mut pause = PAUSE.0;
    loop {
        let ended = load::attempt(&engine, &key, &uid, &me, &mut notes).await;
        match ended {
            Ok(End::Over) | Err(JournalError::Gone) => {
                // What is gone may come back where only the right to it was.
                if ended.is_ok() || Box::pin(engine.is_gone(&key, &uid)).await {
                    Box::pin(engine.logs.of(&key.0).done(&uid)).await;
                }
                if engine.ended(&key, &uid, &mut notes) {
                    return;
                }
                continue;
            }
            Ok(End::Parked(rest)) => {
                if engine.parked(&key, &uid, rest, &mut notes) {
                    return;
                }
                pause = PAUSE.0;
                continue;
            }
            Ok(End::Left) => return engine.left(&key, &uid),
            Err(JournalError::Fenced) => tracing::info!(namespace = key.0, run = key.1, "another engine had the run"),
            Err(e) => {
                tracing::warn!(namespace = key.0, run = key.1, error = &e as &dyn std::error::Error, "a run waits");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

impl Actor {
    pub(super) fn new(
        engine: Arc<Engine>,
        owner: Owner,
        machine: Machine,
        journal: Option<Journal>,
        pinned: Pinned,
        me: Notes,
    ) -> Self {
        Self {
            engine,
            owner,
            machine,
            journal,
            pinned,
            generation: None,
            asked: 0,
            kept: true,
            me,
            live: HashMap::new(),
            maps: HashMap::new(),
            ending: vec![],
            written: Written::new(),
            busy: Duration::ZERO,
            inputs: vec![],
            events: vec![],
            bytes: 0,
            commands: vec![],
            signals: vec![],
            replies: vec![],
            polls: vec![],
            shown: vec![],
            leaving: false,
            left: vec![],
            stays: false,
            turn: None,
        }
    }

    /// Gives the machine something, now. False when it says nothing to it.
    pub(super) fn take(&mut self, what: What) -> bool {
        let input = Input { at: now(), what };
        if !self.machine.apply(&input) {
            return false;
        }
        let events = self.machine.events();
        self.bytes +=
            200 + events.iter().map(|e| 200 + e.data.as_ref().map_or(0, |(_, t)| t.len().min(4096))).sum::<usize>();
        if self.journal.is_some() {
            self.inputs.push(input);
            self.events.extend(events);
        }
        self.commands.extend(self.machine.commands());
        true
    }

    /// Until the run is over, or waits for long.
    ///
    /// What makes requests is boxed: their futures are long, and one that waits would keep room for all of them.
    async fn work(&mut self, notes: &mut Inbox) -> Result<End, JournalError> {
        let mut idle = Instant::now() + self.patience();
        loop {
            // Everything that is there, in one step.
            while self.bytes < BATCH && self.machine.over().is_none() {
                if self.machine.more() {
                    self.take(What::Go);
                } else if self.machine.wake().is_some_and(|at| at <= now()) {
                    if !self.take(What::Timer) {
                        break;
                    }
                } else if let Ok(note) = notes.try_recv() {
                    idle = Instant::now() + self.patience();
                    Box::pin(self.heard(*note)).await?;
                } else {
                    break;
                }
            }
            if !self.inputs.is_empty() || self.bytes > 0 {
                Box::pin(self.store()).await?;
            }
            if !self.shown.is_empty() {
                Box::pin(self.catch_up()).await?;
                for reply in self.shown.drain(..) {
                    let _ = reply.send(());
                }
            }
            Box::pin(self.tell_of_it()).await;
            if self.leaving && self.machine.over().is_none() && Box::pin(self.leave()).await? {
                return Ok(End::Left);
            }
            Box::pin(self.follow()).await;
            if self.machine.over().is_some() {
                Box::pin(self.finish()).await?;
                return Ok(End::Over);
            }
            if self.machine.more() || self.machine.wake().is_some_and(|at| at <= now()) {
                // What is not stored waits for nothing: others must go on as well, and begin.
                self.turn = None;
                tokio::task::yield_now().await;
                continue;
            }
            let wake = self.machine.wake();
            if wake.is_some() {
                self.engine.reached(Point::Armed, &self.owner.name).await;
            }
            let timer = wake.map(|at| Instant::now() + crate::task::until(at) + Duration::from_micros(10));
            let behind = self.behind();
            let status = self.journal.as_ref().and_then(|_| self.written.due(&self.machine, self.engine.pace()));
            // What is worked on here, and what is kept nowhere else, stays.
            let may_go = self.live.is_empty() && self.maps.is_empty() && self.journal.is_some();
            let far_off = wake.is_none_or(|at| crate::task::until(at) > IDLE.0);
            if let Some(turn) = self.turn.take()
                && may_go
                && far_off
                && self.engine.turns.wanted()
            {
                let rest = Box::pin(self.rest()).await?;
                drop(turn);
                return Ok(End::Parked(rest));
            }
            let park = may_go.then_some(idle);
            let far = Instant::now() + Duration::from_secs(86_400);
            tokio::select! {
                note = notes.recv() => {
                    let Some(note) = note else { return Ok(End::Over) };
                    idle = Instant::now() + self.patience();
                    Box::pin(self.heard(*note)).await?;
                }
                () = tokio::time::sleep_until(timer.unwrap_or(far)), if timer.is_some() => {}
                () = tokio::time::sleep_until(behind.unwrap_or(far)), if behind.is_some() => Box::pin(self.catch_up()).await?,
                () = tokio::time::sleep_until(status.unwrap_or(far)), if status.is_some() => Box::pin(self.tell()).await?,
                () = tokio::time::sleep_until(park.unwrap_or(far)), if park.is_some() => {
                    if wake.is_none_or(|at| crate::task::until(at) > IDLE.0) {
                        return Ok(End::Parked(Box::pin(self.rest()).await?));
                    }
                    idle = Instant::now() + self.patience();
                }
            }
        }
    }

    /// Writes what is not written yet, so that the run may leave memory.
    async fn rest(&mut self) -> Result<Rest, JournalError> {
        self.catch_up().await?;
        if self.written.due(&self.machine, Duration::ZERO).is_some() {
            // Where many runs go on, its time may not have come yet.
            self.tell().await?;
        }
        // What its object says of this engine is to be read again.
        let known = self.journal.as_ref().filter(|_| !self.stays).map(|journal| Known {
            pages: journal.pages(),
            generation: self.generation,
            driven: true,
        });
        Ok(Rest { wake: self.machine.wake(), known })
    }

    /// How long this stays in memory when nothing happens to it: where many do, not as long.
    fn patience(&self) -> Duration {
        let actors = self.engine.actors.load(Ordering::Relaxed);
        if actors <= IDLE.1 { IDLE.0 } else { IDLE.0.mul_f64(IDLE.1 as f64 / actors as f64) }
    }

    async fn heard(&mut self, note: Note) -> Result<(), JournalError> {
        match note {
            Note::Wake => {}
            Note::Show(reply) => self.shown.push(reply),
            Note::Leave(reply) => {
                self.leaving = true;
                self.left.push(reply);
            }
            Note::Input(what, reply) => {
                if let What::Redrive { count } = &what {
                    self.asked = self.asked.max(*count);
                }
                if self.take(what) {
                    self.replies.extend(reply);
                }
            }
            Note::Ended(what) => {
                if let What::Succeeded { step, .. } | What::Failed { step, .. } = &what {
                    self.live.remove(step);
                    self.maps.remove(step);
                }
                self.engine.reached(Point::Answered, &self.owner.name).await;
                self.take(what);
            }
            Note::Released(step) => {
                self.live.remove(&step);
            }
            Note::Signal(name, spec) => {
                let address = self.genuine(&spec.token);
                match address.as_deref().and_then(|a| below(&self.machine.info().path, a)) {
                    Some((_, Some((step, index)))) => {
                        // An execution of a map's run: it sees to the answer from here on.
                        if let Some(map) = self.maps.get(&step) {
                            map.tell(index, Note::Signal(name, spec));
                            return Ok(());
                        }
                    }
                    Some((step, None)) => {
                        if let Ok(step) = step.parse()
                            && let Some(what) = answer(&self.engine.client, &self.owner, step, *spec).await?
                        {
                            self.take(what);
                        }
                    }
                    None => {}
                }
                // Whether it said something or not: nobody waits for it any more once this step is stored.
                self.signals.push(name);
                self.bytes += 1;
            }
            Note::Poll(address, worker, reply) => match below(&self.machine.info().path, &address) {
                Some((_, Some((step, index)))) => {
                    if let Some(map) = self.maps.get(&step) {
                        map.tell(index, Note::Poll(address, worker, reply));
                    }
                }
                Some((step, None)) => {
                    let Ok(step) = step.parse() else { return Ok(()) };
                    let input = self.machine.parameters(step).map(|p| p.to_string());
                    if let Some(input) = input
                        && self.take(What::Taken { step, worker })
                    {
                        let Owner { namespace, name, .. } = &self.owner;
                        let token = Token::new(namespace, name, &address, &self.pinned.secret).to_string();
                        self.polls.push((reply, ActivityTask { token, input }));
                    }
                }
                None => {}
            },
        }
        Ok(())
    }

    /// What a token answers, where this run gave it.
    fn genuine(&self, token: &str) -> Option<String> {
        let token = Token::parse(token).filter(|t| t.run == self.owner.name && t.is_genuine(&self.pinned.secret));
        token.map(|t| t.step)
    }

    /// Stores what came and what followed.
    async fn store(&mut self) -> Result<(), JournalError> {
        let began = Instant::now();
        let (inputs, events) = (std::mem::take(&mut self.inputs), std::mem::take(&mut self.events));
        self.bytes = 0;
        if let Some(journal) = &mut self.journal
            && !inputs.is_empty()
        {
            let name = &self.owner.name;
            if events.iter().any(|e| matches!(e.kind, "ParallelStateSucceeded" | "MapStateSucceeded")) {
                self.engine.reached(Point::Join, name).await;
            }
            let storing = self.engine.storing();
            let late = journal.behind().is_some_and(|at| at.elapsed() >= self.engine.lag());
            let how = if late { How::Alone } else { storing.how };
            journal.commit(&inputs, &events, &self.machine, how, &self.engine.commits).await?;
            drop(storing);
            if journal.behind().is_some() {
                self.engine.reached(Point::Shared, name).await;
            }
            if inputs.iter().any(|i| i.what == What::Start) {
                self.engine.reached(Point::Begun, name).await;
            }
            if inputs.iter().any(|i| matches!(i.what, What::Succeeded { .. } | What::Failed { .. })) {
                self.engine.reached(Point::Persisted, name).await;
            }
        }
        self.busy += began.elapsed();
        Ok(())
    }

    /// When the pages are to have everything that is stored.
    fn behind(&self) -> Option<Instant> {
        self.journal.as_ref().and_then(Journal::behind).map(|at| at + self.engine.lag())
    }

    /// Writes what the pages lack. Everything that the machine took must be stored.
    async fn catch_up(&mut self) -> Result<(), JournalError> {
        match &mut self.journal {
            Some(journal) => journal.catch_up(&self.machine, &self.engine.commits).await,
            None => Ok(()),
        }
    }

    /// Lets the run go, where nothing of it goes on here; otherwise its object says that it stays until then.
    async fn leave(&mut self) -> Result<bool, JournalError> {
        let key = (self.owner.namespace.clone(), self.owner.name.clone());
        let api = |e| JournalError::Api(Box::new(e));
        if self.engine.drives(&key, None) {
            // Who has which runs changed again.
            self.leaving = false;
            return Ok(false);
        }
        let idle = self.live.is_empty() && self.maps.is_empty() && self.ending.iter().all(JoinHandle::is_finished);
        // What it asks for next is asked for by whoever takes it up.
        let goes = idle && self.journal.is_some();
        if goes {
            if let Some(journal) = &mut self.journal {
                journal.release(&self.machine, &self.engine.commits).await?;
            }
            if self.stays {
                self.engine.pin(&key, &self.owner.uid, false).await.map_err(api)?;
            }
        } else if !self.stays {
            self.engine.pin(&key, &self.owner.uid, true).await.map_err(api)?;
            self.stays = true;
        }
        for left in self.left.drain(..) {
            let _ = left.send(());
        }
        Ok(goes)
    }

    /// Tells others what is stored now.
    async fn tell_of_it(&mut self) {
        for reply in self.replies.drain(..) {
            let _ = reply.send(());
        }
        for (reply, task) in self.polls.drain(..) {
            let _ = reply.send(task);
        }
        for name in std::mem::take(&mut self.signals) {
            self.engine.consume(&self.owner.namespace, &name).await;
        }
    }

    /// Does what is stored now.
    async fn follow(&mut self) {
        for command in std::mem::take(&mut self.commands) {
            match command {
                Command::Dispatch(dispatch) => {
                    self.engine.reached(Point::Scheduled, &self.owner.name).await;
                    self.dispatch(*dispatch);
                }
                Command::Map(spread) => {
                    self.engine.reached(Point::Scheduled, &self.owner.name).await;
                    self.spread(*spread);
                }
                Command::Cancel(step) => {
                    if let Some(work) = self.live.remove(&step) {
                        work.cancel(&self.engine);
                    }
                    if let Some(map) = self.maps.remove(&step) {
                        self.ending.extend(map.cancel());
                    }
                }
            }
        }
    }

    /// Begins the work of a task.
    fn dispatch(&mut self, dispatch: Dispatch) {
        let step = dispatch.step;
        if self.live.contains_key(&step) {
            return;
        }
        let me = self.me.clone();
        let tell = Arc::new(move |note| drop(me.send(Box::new(note))));
        let work = Work::begin(&self.engine, &self.owner, self.machine.info(), dispatch, tell);
        self.live.extend(work.map(|work| (step, work)));
    }

    /// Begins a distributed Map, or takes it up.
    fn spread(&mut self, spread: Spread) {
        let step = spread.step;
        if self.maps.contains_key(&step) {
            return;
        }
        let me = self.me.clone();
        let tell = Arc::new(move |note| drop(me.send(Box::new(note))));
        let whole = map::Around {
            root: self.owner.clone(),
            info: Arc::clone(self.machine.info()),
            definition: Arc::clone(self.machine.definition()),
        };
        self.maps.insert(step, map::Map::begin(&self.engine, whole, spread, tell));
    }

    /// Writes the status of a run that goes on.
    async fn tell(&mut self) -> Result<(), JournalError> {
        let status = self.status().await?;
        self.written.wrote(&self.machine);
        if let Err(e) = self.engine.write_status(&self.owner, &status).await {
            tracing::debug!(run = self.owner.name, error = &e as &dyn std::error::Error, "a status is not written");
        }
        Ok(())
    }

    async fn status(&self) -> Result<crate::api::RunStatus, JournalError> {
        let pages = self.journal.as_ref().map_or(0, Journal::pages);
        let pinned = (self.pinned.revision.as_str(), self.pinned.version);
        let millis = self.busy.as_secs_f64() * 1000.0;
        let status = self.engine.status_of(&self.owner, &self.machine, pages, self.generation, millis, pinned);
        let mut status = status.await?;
        if self.machine.over().is_some() {
            // What was impossible is answered, too.
            status.redrive_count = status.redrive_count.max(self.asked);
        }
        Ok(status)
    }

    /// The run is over and that is stored.
    async fn finish(&mut self) -> Result<(), JournalError> {
        if !self.kept {
            return Ok(());
        }
        self.engine.reached(Point::Terminal, &self.owner.name).await;
        for map in self.ending.drain(..) {
            // Each has a deadline of its own, and ends with the engine.
            let _ = map.await;
        }
        let status = self.status().await?;
        let written = self.engine.write_status(&self.owner, &status).await;
        if let Some(run) = written.map_err(|e| JournalError::Api(Box::new(e)))? {
            self.engine.announce(&status, &run);
        }
        Ok(())
    }
}

/// Runs a machine to its end in memory, without an object.
pub(super) async fn express(
    engine: Arc<Engine>,
    owner: Owner,
    machine: Machine,
    pinned: Pinned,
) -> Result<Machine, JournalError> {
    let (me, mut notes) = mpsc::unbounded_channel();
    let mut actor = Actor::new(engine, owner, machine, None, pinned, me);
    actor.kept = false;
    actor.take(What::Start);
    actor.work(&mut notes).await?;
    let fresh = Machine::new(Arc::clone(actor.machine.definition()), Arc::clone(actor.machine.info()));
    Ok(std::mem::replace(&mut actor.machine, fresh))
}
