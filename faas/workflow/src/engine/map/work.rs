//! The actor of a map's run: begins executions, takes what comes for them, stores that together, does what follows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use skiff_asl::definition::ResultWriter;
use skiff_asl::{ExecutionError, error};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::items::{Items, map_of};
use super::ledger::{Ended, Ledger};
use super::results::{Failed, Results};
use super::{Around, Done, Map, Told, Whole, concurrency, is_beyond, write_status};
use crate::api::{DATA_MAX, MapRunStatus, Phase, WorkflowMapRun, WorkflowMapRunSpec};
use crate::engine::Point;
use crate::engine::hear::{Note, answer};
use crate::engine::status::PERIOD;
use crate::engine::work::{Tell, Work};
use crate::journal::record::now;
use crate::journal::{Journal, JournalError};
use crate::machine::{Command, Step, What, below};
use crate::payload::Owner;
use crate::runs::ActivityTask;
use crate::token::Token;

/// Bytes of entries that are stored together.
const BATCH: usize = 12 * 1024;

pub(super) struct Actor<'a> {
    whole: &'a Whole,
    own: Owner,
    objects: Api<WorkflowMapRun>,
    settings: WorkflowMapRunSpec,
    items: Arc<Items>,
    ledger: Ledger,
    journal: Journal,
    live: HashMap<(usize, Step), Work>,
    maps: HashMap<(usize, Step), Map>,
    ending: Vec<JoinHandle<()>>,
    /// Done when what came is stored.
    signals: Vec<String>,
    replies: Vec<oneshot::Sender<()>>,
    polls: Vec<(oneshot::Sender<ActivityTask>, ActivityTask)>,
    /// Why no more begin.
    broken: Option<ExecutionError>,
    /// Whether answers are among what is not stored yet.
    answered: bool,
    /// What was written last about it, and when.
    told: (Option<MapRunStatus>, Instant),
}

impl<'a> Actor<'a> {
    pub(super) fn new(
        whole: &'a Whole,
        object: WorkflowMapRun,
        own: Owner,
        items: Arc<Items>,
        ledger: Ledger,
        journal: Journal,
        objects: Api<WorkflowMapRun>,
    ) -> Self {
        Self {
            whole,
            own,
            objects,
            settings: object.spec,
            items,
            ledger,
            journal,
            live: HashMap::new(),
            maps: HashMap::new(),
            ending: vec![],
            signals: vec![],
            replies: vec![],
            polls: vec![],
            broken: None,
            answered: false,
            told: (object.status, Instant::now()),
        }
    }

    fn around(&self) -> &'a Around {
        &self.whole.around
    }

    fn writer(&self) -> Option<&'a ResultWriter> {
        let map = map_of(&self.whole.around.definition, &self.whole.spread.plan.state);
        map.ok().and_then(|(_, map)| map.result_writer.as_ref())
    }

    /// Until it is over, or nobody waits for it.
    pub(super) async fn run(
        mut self,
        inbox: &mut mpsc::UnboundedReceiver<Told>,
        cancelled: &mut bool,
    ) -> Result<Done, JournalError> {
        if self.ledger.over().is_some() && !self.ledger.redrive(self.whole.spread.redrives, now()) {
            return self.report().await;
        }
        let outstanding = self.ledger.outstanding();
        self.follow(outstanding).await;
        let mut watched = skiff_client::watch_object(self.objects.clone(), &self.whole.spread.plan.name);
        loop {
            while self.ledger.bytes() < BATCH && !*cancelled {
                if let Some(index) = self.ledger.ready() {
                    self.ledger.apply(index, What::Go, now())?;
                } else if let Some(index) = self.ledger.due(now()) {
                    if !self.ledger.apply(index, What::Timer, now())? {
                        break;
                    }
                } else if let Ok(told) = inbox.try_recv() {
                    self.heard(told, cancelled).await?;
                } else if self.may_begin() {
                    self.begin()?;
                } else {
                    break;
                }
                self.judge();
            }
            self.store().await?;
            if *cancelled {
                return self.cancel().await;
            }
            if self.broken.is_some() || (self.ledger.running() == 0 && self.ledger.next().is_none()) {
                return self.finish().await;
            }
            if self.ledger.bytes() > 0 || self.may_begin() || self.ledger.due(now()).is_some() {
                tokio::task::yield_now().await;
                continue;
            }
            let wake = self.ledger.wake();
            let timer = wake.map(|at| Instant::now() + crate::task::until(at) + Duration::from_micros(10));
            let status = self.is_news().then_some(self.told.1 + PERIOD);
            let far = Instant::now() + Duration::from_secs(86_400);
            tokio::select! {
                told = inbox.recv() => match told {
                    Some(told) => self.heard(told, cancelled).await?,
                    None => return Ok(Done::Dropped),
                },
                () = tokio::time::sleep_until(timer.unwrap_or(far)), if timer.is_some() => {}
                () = tokio::time::sleep_until(status.unwrap_or(far)), if status.is_some() => self.tell_status().await?,
                changed = watched.next() => match changed {
                    Some(Ok(Some(map))) if map.spec.run_uid == self.around().root.uid => self.settings = map.spec,
                    Some(Ok(_)) => return Err(JournalError::Gone),
                    Some(Err(e)) => {
                        tracing::debug!(error = &e as &dyn std::error::Error, "the watch of a map's run begins anew");
                        tokio::time::sleep(PERIOD).await;
                    }
                    None => return Err(JournalError::Gone),
                },
            }
            self.judge();
        }
    }

    fn may_begin(&self) -> bool {
        self.broken.is_none()
            && self.ledger.running() < concurrency(self.settings.max_concurrency)
            && self.ledger.next().is_some()
    }

    /// The next execution begins.
    fn begin(&mut self) -> Result<(), JournalError> {
        let Some(index) = self.ledger.next() else { return Ok(()) };
        let input = match self.items.input(index) {
            Ok(input) => input.to_string(),
            Err(error) => {
                self.broken = Some(error);
                return Ok(());
            }
        };
        if input.len() > DATA_MAX {
            let cause = format!("the input of the execution is longer than {DATA_MAX} bytes");
            let error = ExecutionError::new(error::DATA_LIMIT_EXCEEDED, cause);
            self.ledger.refuse(index, &error, now())?;
        } else {
            self.ledger.begin(index, input.into(), now())?;
        }
        Ok(())
    }

    /// Whether too many failed.
    fn judge(&mut self) {
        let WorkflowMapRunSpec { tolerated_failure_count: count, tolerated_failure_percentage: share, .. } =
            self.settings;
        if self.broken.is_none() && is_beyond(self.ledger.failed(), self.ledger.total(), count, share) {
            let cause = "The specified tolerated failure threshold was exceeded";
            self.broken = Some(ExecutionError::new(error::EXCEED_TOLERATED_FAILURE_THRESHOLD, cause));
        }
    }

    async fn heard(&mut self, told: Told, cancelled: &mut bool) -> Result<(), JournalError> {
        let (index, note) = match told {
            Told::Cancel => {
                *cancelled = true;
                return Ok(());
            }
            Told::Child(index, note) => (index, note),
        };
        match note {
            // Its own pages are never behind.
            Note::Wake | Note::Show(_) | Note::Leave(_) => {}
            Note::Input(what, reply) => {
                if self.ledger.apply(index, what, now())? {
                    self.replies.extend(reply);
                }
            }
            Note::Ended(what) => {
                if let What::Succeeded { step, .. } | What::Failed { step, .. } = &what {
                    self.live.remove(&(index, *step));
                    self.maps.remove(&(index, *step));
                }
                self.whole.engine.reached(Point::Answered, &self.around().root.name).await;
                self.answered |= self.ledger.apply(index, what, now())?;
            }
            Note::Released(step) => drop(self.live.remove(&(index, step))),
            Note::Signal(name, spec) => {
                let token = Token::parse(&spec.token);
                let path = self.ledger.child(index).map(|m| m.info().path.clone());
                match token.as_ref().zip(path).and_then(|(t, path)| below(&path, &t.step)) {
                    Some((_, Some((step, inner)))) => {
                        if let Some(map) = self.maps.get(&(index, step)) {
                            map.tell(inner, Note::Signal(name, spec));
                            return Ok(());
                        }
                    }
                    Some((step, None)) => {
                        if let Ok(step) = step.parse()
                            && let Some(what) =
                                answer(&self.whole.engine.client, &self.around().root, step, *spec).await?
                        {
                            self.ledger.apply(index, what, now())?;
                        }
                    }
                    None => {}
                }
                self.signals.push(name);
            }
            Note::Poll(address, worker, reply) => {
                let Some(child) = self.ledger.child(index) else { return Ok(()) };
                match below(&child.info().path, &address) {
                    Some((_, Some((step, inner)))) => {
                        if let Some(map) = self.maps.get(&(index, step)) {
                            map.tell(inner, Note::Poll(address, worker, reply));
                        }
                    }
                    Some((step, None)) => {
                        let Ok(step) = step.parse() else { return Ok(()) };
                        let input = child.parameters(step).map(|p| p.to_string());
                        if let Some(input) = input
                            && self.ledger.apply(index, What::Taken { step, worker }, now())?
                        {
                            let (root, secret) = (&self.around().root, &self.around().info.secret);
                            let token = Token::new(&root.namespace, &root.name, &address, secret).to_string();
                            self.polls.push((reply, ActivityTask { token, input }));
                        }
                    }
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// Stores what came, and does what follows.
    async fn store(&mut self) -> Result<(), JournalError> {
        let (entries, long) = self.ledger.unstored();
        if !entries.is_empty() {
            let permit = self.whole.engine.commits.acquire().await;
            self.journal.add(&entries, long, &self.ledger).await?;
            drop(permit);
            if std::mem::take(&mut self.answered) {
                self.whole.engine.reached(Point::Persisted, &self.around().root.name).await;
            }
        }
        for reply in self.replies.drain(..) {
            let _ = reply.send(());
        }
        for (reply, task) in self.polls.drain(..) {
            let _ = reply.send(task);
        }
        for name in std::mem::take(&mut self.signals) {
            self.whole.engine.consume(&self.around().root.namespace, &name).await;
        }
        let commands = self.ledger.commands();
        self.follow(commands).await;
        Ok(())
    }

    async fn follow(&mut self, commands: Vec<(usize, Command)>) {
        let engine = &self.whole.engine;
        for (index, command) in commands {
            let me = self.whole.me.clone();
            let tell: Tell = Arc::new(move |note| {
                if let Some(me) = me.upgrade() {
                    let _ = me.send(Told::Child(index, note));
                }
            });
            match command {
                Command::Cancel(step) => {
                    if let Some(work) = self.live.remove(&(index, step)) {
                        work.cancel(engine);
                    }
                    if let Some(map) = self.maps.remove(&(index, step)) {
                        self.ending.extend(map.cancel());
                    }
                }
                Command::Dispatch(dispatch) => {
                    engine.reached(Point::Scheduled, &self.around().root.name).await;
                    let Some(child) = self.ledger.child(index) else { continue };
                    let key = (index, dispatch.step);
                    let work = Work::begin(engine, &self.around().root, child.info(), *dispatch, tell);
                    self.live.extend(work.map(|work| (key, work)));
                }
                Command::Map(spread) => {
                    engine.reached(Point::Scheduled, &self.around().root.name).await;
                    let Some(child) = self.ledger.child(index) else { continue };
                    let around = Around {
                        root: self.around().root.clone(),
                        info: Arc::clone(child.info()),
                        definition: Arc::clone(&self.around().definition),
                    };
                    let key = (index, spread.step);
                    self.maps.insert(key, Map::begin(engine, around, *spread, tell));
                }
            }
        }
    }

    /// Ends all executions that run.
    async fn stop_all(&mut self) -> Result<(), JournalError> {
        for index in self.ledger.live() {
            self.ledger.apply(index, What::Stop { error: None, cause: None }, now())?;
        }
        self.store().await
    }

    fn ended(phase: Phase, error: Option<&ExecutionError>) -> Ended {
        Ended {
            at: now(),
            phase,
            error: error.map(|e| e.error.clone()),
            cause: error.map(|e| e.cause.clone()).filter(|c| !c.is_empty()),
            written: 0,
            output: None,
        }
    }

    /// Nobody waits for it any more.
    async fn cancel(mut self) -> Result<Done, JournalError> {
        if self.ledger.over().is_none() {
            self.stop_all().await?;
            self.ledger.end(Self::ended(Phase::Aborted, None));
            self.store().await?;
            for map in self.ending.drain(..) {
                // Each has bounded tries, and ends with the engine.
                let _ = map.await;
            }
            self.tell_status().await?;
        }
        Ok(Done::Dropped)
    }

    /// All executions are over, or no more may be.
    async fn finish(mut self) -> Result<Done, JournalError> {
        self.stop_all().await?;
        let mut ended = match &self.broken {
            None => Self::ended(Phase::Succeeded, None),
            Some(error) => Self::ended(Phase::Failed, Some(error)),
        };
        self.whole.engine.reached(Point::Join, &self.around().root.name).await;
        if self.writer().is_some_and(|w| w.resource.is_some()) {
            match self.results().write(self.ledger.pending()).await {
                Ok((written, output)) => (ended.written, ended.output) = (written, Some(output)),
                Err(Failed::Later(e)) => return Err(e),
                Err(Failed::State(error)) if ended.phase == Phase::Succeeded => {
                    ended = Self::ended(Phase::Failed, Some(&error));
                }
                // It failed anyway.
                Err(Failed::State(error)) => tracing::info!(%error, "results of the run of a map are not written"),
            }
        }
        self.ledger.end(ended);
        self.store().await?;
        self.report().await
    }

    fn results(&self) -> Results<'_> {
        Results {
            engine: &self.whole.engine,
            around: self.around(),
            spread: &self.whole.spread,
            own: &self.own,
            items: &self.items,
            writer: self.writer(),
        }
    }

    /// Says how it ended, which is stored.
    async fn report(mut self) -> Result<Done, JournalError> {
        self.whole.engine.reached(Point::Terminal, &self.around().root.name).await;
        self.tell_status().await?;
        let Some(ended) = self.ledger.over().cloned() else { return Ok(Done::Dropped) };
        let step = self.whole.spread.step;
        let failed = |error| Ok(Done::Ended(What::Failed { step, error, started: None }));
        if ended.phase != Phase::Succeeded {
            let error = ended.error.as_deref().unwrap_or(error::TASK_FAILED);
            return failed(ExecutionError::new(error, ended.cause.unwrap_or_default()));
        }
        let output = match ended.output {
            Some(output) => Ok(output),
            None => self.results().output(self.ledger.outputs()).await,
        };
        match output {
            Ok(output) => Ok(Done::Ended(What::Succeeded { step, output: output.into(), started: None })),
            Err(Failed::State(error)) => failed(error),
            Err(Failed::Later(e)) => Err(e),
        }
    }

    fn status(&self) -> MapRunStatus {
        let over = self.ledger.over();
        let (redrive_count, redriven) = self.ledger.redrives();
        MapRunStatus {
            phase: over.map_or("RUNNING", |o| o.phase.as_str()).to_owned(),
            executions: self.ledger.counts(false),
            items: self.ledger.counts(true),
            error: over.and_then(|o| o.error.clone()),
            cause: over.and_then(|o| o.cause.clone()),
            start_time: Some(MicroTime(self.whole.spread.plan.at)),
            stop_time: over.map(|o| MicroTime(o.at)),
            redrive_count,
            redrive_date: redriven.map(MicroTime),
            history_pages: self.journal.pages(),
        }
    }

    /// Whether something is new since the last write.
    fn is_news(&self) -> bool {
        let now = self.status();
        self.told.0.as_ref().is_none_or(|last| (&last.phase, last.executions) != (&now.phase, now.executions))
    }

    async fn tell_status(&mut self) -> Result<(), JournalError> {
        let status = self.status();
        match write_status(&self.objects, &self.whole.spread.plan.name, &status).await {
            Ok(Some(map)) => self.settings = map.spec,
            Ok(None) => return Err(JournalError::Gone),
            Err(e) if self.ledger.over().is_some() => return Err(e),
            Err(e) => tracing::debug!(error = &e as &dyn std::error::Error, "the status of a map's run is not written"),
        }
        self.told = (Some(status), Instant::now());
        Ok(())
    }
}
