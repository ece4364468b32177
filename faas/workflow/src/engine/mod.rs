//! The engine: takes up runs, walks them, stores each step before the next, does their work.
//!
//! One watch of WorkflowRuns tells what there is. A run that is not over has a place here: while something happens to it, an
//! actor that holds its machine (see [`actor`]); while it waits for long, only its name and when it wakes. Answers to task tokens
//! arrive as WorkflowSignals, which another watch sees.
//!
//! Where many steps are to be stored at once they are stored together, and pages follow a moment later ([`crate::journal::log`]).
//!
//! Which engine: several share the runs ([`share`]). One that lost its share and does not know cannot store anything that
//! another has changed meanwhile ([`crate::journal`]), so at worst work is done twice, which it may be anyway.

mod activities;
mod actor;
mod ahead;
mod asks;
pub(crate) mod begin;
mod doors;
mod faults;
mod hear;
pub(crate) mod map;
mod retention;
pub(crate) mod share;
mod status;
mod turns;
mod work;
mod workflows;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use parking_lot::Mutex;
use skiff_asl::Definition;
use skiff_controllers::runtime::events::Recorder;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::begin::definition_text;
pub use self::faults::{Faults, NoFaults, Point};
use self::hear::Note;
pub use self::share::{MEMBER, Members, Pace};
pub use self::workflows::judge;
use crate::api::{WorkflowLog, WorkflowRun};
use crate::journal::How;
use crate::journal::log::Logs;
pub use crate::journal::log::Sharing;
use crate::runs::Stored;
use crate::task::functions::Functions;

/// Runs that are read at a time.
const LOADS: usize = 32;
/// Pages that are written at a time.
const COMMITS: usize = 64;
/// Statuses that are written at a time. Each request that is under way has a connection, with its keys and buffers.
const STATUSES: usize = 32;
/// How long pages may lack steps that are in the log: for each run in memory, and in all at least and at most.
const BEHIND: (Duration, Duration, Duration) =
    (Duration::from_millis(5), Duration::from_millis(100), Duration::from_secs(2));

/// Namespace and name.
pub(crate) type Key = (String, String);

/// What an engine is made of.
#[derive(Clone)]
pub struct Settings {
    /// What calls functions.
    pub functions: Arc<dyn Functions>,
    /// Where it is to break off, for tests.
    pub faults: Arc<dyn Faults>,
    /// When steps of several runs are stored together.
    pub sharing: Sharing,
    /// Who shares the runs.
    pub members: Members,
}

/// The engine. There is one in a process.
pub struct Engine {
    /// For the tasks it starts.
    me: Weak<Engine>,
    client: Client,
    stored: Stored,
    settings: Settings,
    state: Mutex<State>,
    /// A timer is earlier than before.
    changed: Notify,
    definitions: Mutex<HashMap<String, Weak<Definition>>>,
    loads: Semaphore,
    commits: Semaphore,
    statuses: Semaphore,
    /// For pages that are read ahead.
    room: Arc<Semaphore>,
    turns: turns::Turns,
    logs: Logs,
    /// Steps that are being stored.
    storing: AtomicUsize,
    /// Runs that have an actor.
    actors: AtomicUsize,
    recorder: Recorder,
    stop: CancellationToken,
    tracker: TaskTracker,
    activities: activities::Activities,
    kept: retention::Kept,
    share: share::Share,
    /// Signals are to be listed anew.
    hear_again: Notify,
    /// What other engines ask for.
    asks: asks::Asks,
}

/// The runs that are not over.
#[derive(Default)]
struct State {
    places: HashMap<Key, Place>,
    /// When those wake that have no actor.
    timers: BTreeSet<(Timestamp, Key)>,
    /// Runs of workflows: those that run, and those that wait because of a limit.
    limits: HashMap<Key, begin::Line>,
    /// Workflows with a limit whose places this engine gives, where several share the runs.
    rules: HashMap<Key, crate::api::Concurrency>,
}

/// A run that is not over.
struct Place {
    uid: String,
    /// Its actor.
    live: Option<Live>,
    /// When it wakes where it has none.
    wake: Option<Timestamp>,
    /// What it was told already.
    stopped: bool,
    redrive: u32,
    /// Whether this engine has it.
    taken: bool,
    /// The engine that its object names.
    pin: Option<Box<str>>,
    /// Whether its object says if there is room for it.
    admitted: bool,
    /// What need not be read of its object.
    known: Option<ahead::Known>,
    /// Its open page, where that was read ahead.
    page: Option<Box<ahead::Ahead<crate::api::WorkflowHistory>>>,
    /// Its object, where it was made just now.
    object: Option<Box<ahead::Ahead<Box<WorkflowRun>>>>,
    /// The turn in which it begins.
    turn: Option<turns::Turn>,
}

/// What comes for an actor. Boxed, for a channel has room for some dozens from the beginning.
type Notes = mpsc::UnboundedSender<Box<Note>>;
/// Where it arrives.
type Inbox = mpsc::UnboundedReceiver<Box<Note>>;

/// A run's actor.
struct Live {
    sender: Notes,
    /// Breaks it off.
    quit: CancellationToken,
}

impl Engine {
    /// An engine for the cluster that the client reaches. [`Engine::run`] makes it work.
    #[must_use]
    pub fn new(client: Client, settings: Settings, stop: CancellationToken) -> Arc<Self> {
        let recorder = Recorder::start(client.clone(), "skiff-workflows");
        let tracker = TaskTracker::new();
        let faults = Arc::clone(&settings.faults);
        let share = share::Share::new(settings.members);
        let log = share.view().map_or_else(|| WorkflowLog::HEAD.to_owned(), |view| share::log_name(view.me()));
        let logs = Logs::new(client.clone(), log, settings.sharing, faults, stop.clone(), tracker.clone());
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            stored: Stored::new(client.clone()),
            client,
            settings,
            state: Mutex::default(),
            changed: Notify::new(),
            definitions: Mutex::default(),
            loads: Semaphore::new(LOADS),
            commits: Semaphore::new(COMMITS),
            statuses: Semaphore::new(STATUSES),
            room: Arc::new(Semaphore::new(ahead::ROOM)),
            turns: turns::Turns::new(),
            logs,
            storing: AtomicUsize::new(0),
            actors: AtomicUsize::new(0),
            recorder,
            stop,
            tracker,
            activities: activities::Activities::default(),
            kept: retention::Kept::default(),
            share,
            hear_again: Notify::new(),
            asks: asks::Asks::default(),
        })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn stored(&self) -> &Stored {
        &self.stored
    }

    pub(crate) fn functions(&self) -> &dyn Functions {
        self.settings.functions.as_ref()
    }

    /// Itself, for tasks of its own. None while it is dropped.
    fn shared(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    /// Breaks off where a test wants that: then this never returns.
    async fn reached(&self, point: Point, run: &str) {
        if self.settings.faults.reached(point, run) {
            self.stop.cancel();
            std::future::pending::<()>().await;
        }
    }

    /// A definition by its text, parsed once while anybody uses it.
    pub(crate) fn definition(&self, revision: &str, text: &str) -> Result<Arc<Definition>, Vec<skiff_asl::Fault>> {
        if let Some(found) = self.definitions.lock().get(revision).and_then(Weak::upgrade) {
            return Ok(found);
        }
        let (parsed, faults) = judge(text);
        let parsed = Arc::new(parsed.ok_or(faults)?);
        let mut known = self.definitions.lock();
        known.retain(|_, d| d.strong_count() > 0);
        known.insert(revision.to_owned(), Arc::downgrade(&parsed));
        Ok(parsed)
    }

    /// Works until it is stopped. What it does then is broken off, and is taken up again by the next.
    pub async fn run(self: Arc<Self>) {
        let stop = self.stop.clone();
        let mut parts = tokio::task::JoinSet::new();
        let part = |parts: &mut tokio::task::JoinSet<()>, work: futures::future::BoxFuture<'static, ()>| {
            let stop = stop.clone();
            parts.spawn(async move {
                stop.run_until_cancelled(work).await;
            });
        };
        let me = || Arc::clone(&self);
        let engine = me();
        part(&mut parts, Box::pin(async move { engine.timers().await }));
        let engine = me();
        part(&mut parts, Box::pin(async move { engine.give_turns().await }));
        let engine = me();
        part(&mut parts, Box::pin(async move { engine.hear_signals().await }));
        let engine = me();
        part(&mut parts, Box::pin(async move { engine.hear_workflows().await }));
        let engine = me();
        part(&mut parts, Box::pin(async move { engine.retire().await }));
        if let Members::Several(pace) = self.settings.members {
            let engine = me();
            part(&mut parts, Box::pin(async move { engine.take_part(pace).await }));
            let engine = me();
            part(&mut parts, Box::pin(async move { engine.clear_logs(pace).await }));
        }
        stop.run_until_cancelled(self.hear_runs()).await;
        stop.cancel();
        while parts.join_next().await.is_some() {}
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Ends in order: what is under way is broken off, and others take it up without waiting for this engine's Lease to run out.
    pub async fn leave(&self) {
        self.depart().await;
    }

    /// Wakes runs whose time has come.
    async fn timers(&self) {
        loop {
            let changed = self.changed.notified();
            let now = Timestamp::now();
            let (due, next) = {
                let mut state = self.state.lock();
                let mut due = vec![];
                while let Some((at, _)) = state.timers.first()
                    && *at <= now
                    && let Some((_, key)) = state.timers.pop_first()
                {
                    due.push(key);
                }
                (due, state.timers.first().map(|(at, _)| *at))
            };
            self.tell_all(due);
            match next {
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep(crate::task::until(at)) => {}
                        () = changed => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    /// Tells a run something; wakes it where it sleeps. False where there is no such run, or another engine has it.
    pub(crate) fn tell(&self, key: &Key, note: Note) -> bool {
        self.tell_in(key, note, None)
    }

    /// The same in a turn, which is given back where the run has an actor already.
    fn tell_in(&self, key: &Key, note: Note, turn: Option<turns::Turn>) -> bool {
        let note = Box::new(note);
        let mut state = self.state.lock();
        let State { places, timers, .. } = &mut *state;
        let Some(place) = places.get_mut(key).filter(|p| p.taken) else { return false };
        let note = match &place.live {
            Some(live) => match live.sender.send(note) {
                Ok(()) => return true,
                Err(mpsc::error::SendError(note)) => note,
            },
            None => note,
        };
        if let Some(at) = place.wake.take() {
            timers.remove(&(at, key.clone()));
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let _ = sender.send(note);
        let quit = self.stop.child_token();
        place.live = Some(Live { sender: sender.clone(), quit: quit.clone() });
        place.turn = turn;
        let uid = place.uid.clone();
        drop(state);
        self.drive(key.clone(), uid, sender, receiver, quit);
        true
    }

    /// Begins with runs that are this engine's from now on.
    fn take_up(&self, mut keys: Vec<Key>) {
        let fresh: Vec<Key>;
        {
            let mut state = self.state.lock();
            // That a run is its own an engine may hear twice at the same time: of the run, and of the other engines.
            let begins = |key: &Key| {
                let place = state.places.get_mut(key);
                place.is_some_and(|place| !std::mem::replace(&mut place.taken, true))
            };
            keys.retain(begins);
            // Those that go on are under way already.
            let goes_on = |key: &Key| state.places.get(key).is_some_and(|p| p.known.is_some());
            fresh = keys.extract_if(.., |key| !goes_on(key)).collect();
        }
        self.tell_all(keys);
        fresh.into_iter().for_each(|key| self.begin_in_turn(key));
    }

    /// Time between two writes of the status of a run that goes on.
    fn pace(&self) -> Duration {
        status::pace(self.actors.load(Ordering::Relaxed))
    }

    /// How long the pages of a run may lack steps that are stored: where many runs go on, longer.
    fn lag(&self) -> Duration {
        let runs = u32::try_from(self.actors.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        BEHIND.0.saturating_mul(runs).clamp(BEHIND.1, BEHIND.2)
    }

    /// A step is being stored, until what is returned is dropped.
    fn storing(&self) -> Storing<'_> {
        let others = self.storing.fetch_add(1, Ordering::Relaxed);
        Storing {
            count: &self.storing,
            how: if others < self.settings.sharing.from { How::Alone } else { How::Together },
        }
    }

    /// Writes the pages of a run that are behind, and waits for that, not for long: somebody reads them.
    async fn show(&self, key: &Key) {
        let elsewhere = self.share.view().is_some_and(|v| v.has_others())
            && self.state.lock().places.get(key).is_some_and(|p| !p.taken);
        if elsewhere {
            return self.show_elsewhere(key).await;
        }
        self.show_here(key).await;
    }

    /// The same of a run that this engine has.
    async fn show_here(&self, key: &Key) {
        let (reply, shown) = oneshot::channel();
        let sender = self.state.lock().places.get(key).and_then(|p| Some(p.live.as_ref()?.sender.clone()));
        if sender.is_some_and(|s| s.send(Box::new(Note::Show(reply))).is_ok()) {
            let _ = tokio::time::timeout(BEHIND.2, shown).await;
        }
    }

    /// Starts the actor of a run.
    fn drive(&self, key: Key, uid: String, sender: Notes, receiver: Inbox, quit: CancellationToken) {
        let Some(engine) = self.shared() else { return };
        self.tracker.spawn(async move {
            engine.actors.fetch_add(1, Ordering::Relaxed);
            // Handed over by reference: by value there would be room for it twice.
            let work = std::pin::pin!(actor::drive(Arc::clone(&engine), key, uid, sender, receiver));
            quit.run_until_cancelled(work).await;
            engine.actors.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

impl Engine {
    /// Whether there is no such run any more, as far as is known.
    async fn is_gone(&self, (namespace, name): &Key, uid: &str) -> bool {
        let runs = kube::Api::<WorkflowRun>::namespaced(self.client.clone(), namespace);
        let found = runs.get_opt(name).await;
        found.is_ok_and(|run| run.is_none_or(|r| r.metadata.uid.as_deref() != Some(uid)))
    }

    /// An actor is done with a run that is over or gone. False when something came for it meanwhile, as a redrive.
    fn ended(&self, key: &Key, uid: &str, notes: &mut Inbox) -> bool {
        let mut state = self.state.lock();
        let mut more = false;
        while let Ok(note) = notes.try_recv() {
            more |= !matches!(*note, Note::Wake | Note::Show(_));
        }
        if more {
            return false;
        }
        if state.places.get(key).is_some_and(|p| p.uid == uid) {
            remove(&mut state, key);
        }
        drop(state);
        self.leave_line(key);
        true
    }

    /// An actor is done with a run that waits. False when something came for it meanwhile.
    fn parked(&self, key: &Key, uid: &str, rest: Rest, notes: &mut Inbox) -> bool {
        let mut state = self.state.lock();
        if !notes.is_empty() {
            return false;
        }
        let Some(place) = state.places.get_mut(key).filter(|p| p.uid == uid) else { return true };
        place.live = None;
        place.wake = rest.wake;
        if !place.stopped && place.redrive == 0 {
            place.known = rest.known;
        }
        if let Some(at) = rest.wake {
            state.timers.insert((at, key.clone()));
            drop(state);
            self.changed.notify_one();
        }
        true
    }
}

impl Engine {
    /// An actor let go of a run that another engine has from now on.
    fn left(&self, key: &Key, uid: &str) {
        let pin = match self.state.lock().places.get_mut(key).filter(|p| p.uid == uid) {
            Some(place) => {
                (place.live, place.wake, place.taken, place.known) = (None, None, false, None);
                // That it stays here is over, whether that was heard already or not.
                place.pin = place.pin.take().filter(|p| !self.is_me(Some(p)));
                place.pin.clone()
            }
            None => return,
        };
        // Who has which runs may have changed again meanwhile.
        if self.drives(key, pin.as_deref()) {
            self.take_up(vec![key.clone()]);
        }
    }
}

/// How an actor leaves a run that waits.
struct Rest {
    /// When it goes on.
    wake: Option<Timestamp>,
    /// What need not be read of its object then; none where it has not begun.
    known: Option<ahead::Known>,
}

/// A step that is being stored.
struct Storing<'a> {
    count: &'a AtomicUsize,
    how: How,
}

impl Drop for Storing<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes a run out.
fn remove(state: &mut State, key: &Key) {
    if let Some(place) = state.places.remove(key)
        && let Some(at) = place.wake
    {
        state.timers.remove(&(at, key.clone()));
    }
}
