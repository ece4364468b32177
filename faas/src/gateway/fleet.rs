//! The instances of one revision, and the requests that wait for one.
//!
//! A request gets a [`Lease`] of the instance with the fewest requests, or waits in order. Whoever waits makes instances
//! start, at once; whoever is done hands its place on. What should be there over time is the scaler's
//! ([`crate::scale`]), asked every two seconds as long as there is anything. An instance is ended only when no request is on
//! it. A revision that sleeps costs this struct and nothing else.

mod ends;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::hub::Context;
use super::invoke::InvokeError;
use super::limits::Limits;
use super::link::Link;
use super::live::{Live, stop};
use crate::api::{FunctionRevision, Isolation};
use crate::instance::{Class, Instance, StartError, Times};
use crate::runtime::Language;
use crate::scale::{Scaler, Settings};

/// Requests that may wait for an instance of one revision.
pub const QUEUE: usize = 5_000;
/// Starts of one revision at a time. What the first ones can do decides whether more are needed.
const STARTS: u32 = 8;
/// Tries of a start that failed for reasons of ours, before those who wait are told.
const TRIES: u32 = 3;
/// First and longest pause between such tries.
pub(super) const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// First and longest time that a revision whose code cannot start is left alone.
const REST: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// Requests that are on an instance, and the instance.
struct Slot {
    live: Arc<Live>,
    in_flight: u32,
    draining: bool,
}

struct Failure {
    why: String,
    until: Instant,
    times: u32,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    /// Names of those that took no connection, until it is known why.
    refusing: Vec<String>,
    waiting: VecDeque<oneshot::Sender<Result<Lease, InvokeError>>>,
    in_flight: u32,
    starting: u32,
    /// What the scaler said last.
    wanted: u32,
    /// So many whatever it says, until they were there once.
    floor: u32,
    scaler: Option<Box<Scaler>>,
    failure: Option<Failure>,
    no_room: Option<String>,
    proven: bool,
    /// Nobody may be sent here any more.
    closed: bool,
}

impl State {
    fn usable(&self) -> u32 {
        self.slots.iter().filter(|s| !s.draining).count() as u32
    }

    fn load(&self) -> u32 {
        self.in_flight + self.waiting.len() as u32
    }
}

/// What is known of a revision's instances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Can answer.
    pub ready: u32,
    /// Of those, how many on which node.
    pub nodes: BTreeMap<String, u32>,
    /// On their way.
    pub starting: u32,
    /// Requests without instance.
    pub waiting: u32,
    /// Why none starts.
    pub failure: Option<String>,
    /// Why no more start now.
    pub no_room: Option<String>,
    /// Whether one ever started, as far as this process knows.
    pub proven: bool,
}

/// The instances of a revision.
pub struct Fleet {
    /// What runs, as it was last seen.
    revision: Mutex<Arc<FunctionRevision>>,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Key of its function.
    pub function: String,
    /// What its calls may cost.
    pub limits: Limits,
    /// One of our runners runs it.
    ours: bool,
    class: Arc<dyn Class>,
    context: Arc<Context>,
    settings: Mutex<Settings>,
    state: Mutex<State>,
}

/// A place on an instance, given back when it is dropped.
pub struct Lease {
    fleet: Arc<Fleet>,
    /// The instance.
    pub live: Arc<Live>,
    /// The phases of its start, where this request waited for that.
    pub cold: Option<Times>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.fleet.release(&self.live);
    }
}

/// Takes a request that gave up out of the queue; not one that was handed a place, which is out of it already.
struct Waits<'a>(Option<&'a Fleet>);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let Some(fleet) = self.0 else { return };
        let mut s = fleet.state.lock();
        s.waiting.retain(|w| !w.is_closed());
        fleet.book(&mut s);
    }
}

impl Fleet {
    /// None yet.
    #[must_use]
    pub fn new(
        revision: Arc<FunctionRevision>,
        class: Arc<dyn Class>,
        settings: Settings,
        context: Arc<Context>,
    ) -> Self {
        let code = &revision.spec.code;
        let limits = Limits::of(code, class.isolation());
        let namespace = revision.metadata.namespace.clone().unwrap_or_default();
        let name = revision.metadata.name.clone().unwrap_or_default();
        let function = format!("{namespace}/{}", revision.spec.function);
        let ours = Language::of(code).is_ok_and(|l| l != Language::Http);
        let (revision, settings, state) = (Mutex::new(revision), Mutex::new(settings), Mutex::default());
        Self { revision, namespace, name, function, limits, ours, class, context, settings, state }
    }

    /// The class that runs it.
    pub fn class(&self) -> Isolation {
        self.class.isolation()
    }

    /// Takes the revision as it is now: its code never changes, its status does, and two copies of it would be kept otherwise.
    pub fn renew(&self, revision: &Arc<FunctionRevision>) {
        *self.revision.lock() = Arc::clone(revision);
    }

    /// Takes other settings, and so many instances at first.
    pub fn configure(self: &Arc<Self>, settings: Settings, floor: u32) {
        let mut s = self.state.lock();
        let changed = {
            let mut present = self.settings.lock();
            let changed = *present != settings;
            *present = settings.clone();
            changed
        };
        s.closed = false;
        if floor > 0 && !s.proven {
            s.floor = floor;
        }
        if let Some(scaler) = &mut s.scaler {
            if changed {
                scaler.configure(settings);
            }
        } else if s.floor > 0
            || settings.min > 0
            || (settings.metric == crate::api::Metric::Replicas && settings.replicas > 0)
        {
            self.scaler(&mut s);
        }
        let awake = s.scaler.is_some();
        drop(s);
        if awake && (changed || floor > 0) {
            self.context.activate(self);
            self.tick();
        }
    }

    fn scaler<'a>(&self, s: &'a mut State) -> &'a mut Scaler {
        s.scaler.get_or_insert_with(|| Box::new(Scaler::new(self.settings.lock().clone(), self.context.now())))
    }

    /// Tells the scaler what goes on.
    fn book(&self, s: &mut State) {
        let load = s.load();
        if let Some(scaler) = &mut s.scaler {
            scaler.load(self.context.now(), load);
        }
    }

    /// A place on an instance; waits for one until `until`.
    ///
    /// # Errors
    /// When too many wait, none starts, or none has a place in time.
    pub async fn lease(self: &Arc<Self>, until: Instant) -> Result<Lease, InvokeError> {
        let (first, wait) = {
            let mut s = self.state.lock();
            let now = self.context.now();
            self.scaler(&mut s).arrive(now);
            if s.waiting.is_empty()
                && let Some(i) = self.free(&s)
            {
                return Ok(self.take(&mut s, i, false));
            }
            if s.closed {
                return Err(InvokeError::Unavailable("the revision is being removed".into()));
            }
            if let Some(f) = &s.failure
                && s.slots.is_empty()
                && s.starting == 0
                && f.until > Instant::now()
            {
                return Err(InvokeError::NotReady(f.why.clone()));
            }
            if s.waiting.len() >= QUEUE {
                return Err(InvokeError::Overloaded { name: self.function.clone() });
            }
            let (give, wait) = oneshot::channel();
            s.waiting.push_back(give);
            self.book(&mut s);
            let first = s.slots.is_empty() && s.starting == 0;
            if first {
                // From zero it is decided now, not at the next tick.
                let decision = self.scaler(&mut s).decide(now, 0);
                s.wanted = decision.wanted;
            }
            self.grow(&mut s);
            (first, wait)
        };
        let mut waits = Waits(Some(self));
        self.context.activate(self);
        if first {
            self.context.changed(&self.function);
        }
        match tokio::time::timeout_at(until.into(), wait).await {
            Ok(Ok(given)) => {
                waits.0 = None;
                given
            }
            Ok(Err(_)) => Err(InvokeError::Unavailable("the gateway stops".into())),
            Err(_) => {
                let why = self.state.lock().no_room.clone();
                Err(why.map_or(InvokeError::Timeout(self.limits.timeout), InvokeError::NotReady))
            }
        }
    }

    /// The instance with the fewest requests, when it takes another.
    fn free(&self, s: &State) -> Option<usize> {
        let least =
            s.slots.iter().enumerate().filter(|(_, slot)| !slot.draining).min_by_key(|(_, slot)| slot.in_flight);
        least
            .filter(|(_, slot)| self.limits.concurrency == 0 || slot.in_flight < self.limits.concurrency)
            .map(|(i, _)| i)
    }

    fn take(self: &Arc<Self>, s: &mut State, slot: usize, cold: bool) -> Lease {
        s.in_flight += 1;
        s.slots[slot].in_flight += 1;
        self.book(s);
        let live = Arc::clone(&s.slots[slot].live);
        let cold = cold.then_some(live.instance.times);
        Lease { fleet: Arc::clone(self), live, cold }
    }

    /// Gives places to those who wait. The leases are to be sent without the lock: one that nobody takes comes back.
    fn hand_out(
        self: &Arc<Self>,
        s: &mut State,
        cold: bool,
    ) -> Vec<(oneshot::Sender<Result<Lease, InvokeError>>, Lease)> {
        let mut given = vec![];
        while !s.waiting.is_empty() {
            let Some(slot) = self.free(s) else { break };
            let Some(waiter) = s.waiting.pop_front() else { break };
            if !waiter.is_closed() {
                given.push((waiter, self.take(s, slot, cold)));
            }
        }
        given
    }

    fn deliver(given: Vec<(oneshot::Sender<Result<Lease, InvokeError>>, Lease)>) {
        for (waiter, lease) in given {
            // Nobody there any more: the lease is dropped and so goes to the next.
            let _ = waiter.send(Ok(lease));
        }
    }

    /// How many there should be now.
    fn needed(&self, s: &State) -> u32 {
        let settings = self.settings.lock();
        let pressing = match (s.waiting.len() as u32, self.limits.concurrency) {
            (0, _) => 0,
            (_, 0) => 1,
            (_, each) => s.load().div_ceil(each),
        };
        s.wanted.max(s.floor).max(pressing).min(settings.max)
    }

    /// Starts what is missing.
    fn grow(self: &Arc<Self>, s: &mut State) {
        let needed = self.needed(s);
        // Those that were to go are the quickest to have.
        let mut usable = s.usable();
        for slot in s.slots.iter_mut().filter(|slot| slot.draining) {
            if usable >= needed {
                break;
            }
            slot.draining = false;
            usable += 1;
        }
        if s.closed || s.failure.as_ref().is_some_and(|f| f.until > Instant::now()) {
            return;
        }
        while usable + s.starting < needed && s.starting < STARTS {
            s.starting += 1;
            tokio::spawn(Arc::clone(self).start());
        }
    }

    /// Starts one instance, with further tries as long as it is needed.
    async fn start(self: Arc<Self>) {
        let mut pause = PAUSE.0;
        let mut tries = 0;
        loop {
            let revision = Arc::clone(&self.revision.lock());
            match self.class.start(revision).await {
                Ok(instance) => {
                    self.context.metrics.started(&self.function, &instance.times);
                    return self.arrived(instance, true);
                }
                Err(StartError::Code(why)) => return self.failed(why),
                Err(StartError::NoRoom(why)) => {
                    let news = {
                        let mut s = self.state.lock();
                        let news = s.no_room.is_none();
                        s.no_room = Some(why);
                        news
                    };
                    if news {
                        self.context.changed(&self.function);
                    }
                }
                Err(StartError::Other(error)) => {
                    tries += 1;
                    tracing::warn!(revision = %self.name, error = format!("{error:#}"), "an instance did not start");
                    if tries >= TRIES {
                        return self.failed(format!("{error:#}"));
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
            let mut s = self.state.lock();
            if s.closed || s.usable() + s.starting > self.needed(&s) {
                s.starting -= 1;
                return;
            }
        }
    }

    /// An instance that can answer: one that was started, or one that was found.
    pub fn arrived(self: &Arc<Self>, instance: Instance, started: bool) {
        let given = {
            let mut s = self.state.lock();
            if started {
                s.starting -= 1;
            }
            (s.failure, s.no_room, s.proven) = (None, None, true);
            if s.slots.iter().any(|slot| slot.live.instance.name == instance.name) {
                return;
            }
            let link = Arc::new(Link::new(instance.address.clone()));
            let live = Arc::new(Live::new(instance, link));
            s.slots.push(Slot { live, in_flight: 0, draining: false });
            if s.usable() >= s.floor {
                s.floor = 0;
            }
            self.scaler(&mut s);
            self.book(&mut s);
            let given = self.hand_out(&mut s, started);
            self.grow(&mut s);
            given
        };
        Self::deliver(given);
        self.context.activate(self);
        self.context.changed(&self.function);
    }

    /// The code cannot start. Who waits is told, unless others can answer.
    fn failed(self: &Arc<Self>, why: String) {
        let refused = {
            let mut s = self.state.lock();
            s.starting -= 1;
            s.floor = 0;
            let times = s.failure.as_ref().map_or(0, |f| f.times) + 1;
            let rest = (REST.0 * 2u32.saturating_pow(times - 1).min(1 << 10)).min(REST.1);
            s.failure = Some(Failure { why: why.clone(), until: Instant::now() + rest, times });
            if s.slots.is_empty() && s.starting == 0 { std::mem::take(&mut s.waiting) } else { VecDeque::new() }
        };
        for waiter in refused {
            let _ = waiter.send(Err(InvokeError::NotReady(why.clone())));
        }
        self.context.changed(&self.function);
    }

    fn release(self: &Arc<Self>, live: &Arc<Live>) {
        let (given, gone) = {
            let mut s = self.state.lock();
            s.in_flight -= 1;
            let mut gone = None;
            if let Some(i) = s.slots.iter().position(|slot| Arc::ptr_eq(&slot.live, live)) {
                s.slots[i].in_flight -= 1;
                if s.slots[i].draining && s.slots[i].in_flight == 0 {
                    gone = Some(s.slots.remove(i).live);
                }
            }
            self.book(&mut s);
            (self.hand_out(&mut s, false), gone)
        };
        Self::deliver(given);
        if let Some(live) = gone {
            self.stop(&live);
            self.context.changed(&self.function);
        }
    }

    /// Ends an instance that is in no slot any more.
    fn stop(&self, live: &Live) {
        stop(Arc::clone(&self.class), self.namespace.clone(), live.instance.name.clone());
    }

    /// Decides anew. Whether there is anything to decide about next time.
    pub fn tick(self: &Arc<Self>) -> bool {
        let (given, gone, awake) = {
            let mut s = self.state.lock();
            let (now, ready) = (self.context.now(), s.usable());
            let decision = self.scaler(&mut s).decide(now, ready);
            s.wanted = if s.closed { 0 } else { decision.wanted };
            let needed = self.needed(&s);
            self.grow(&mut s);
            let mut surplus = s.usable().saturating_sub(needed);
            // Those with the fewest requests go; of them the youngest.
            while surplus > 0 {
                let usable = s.slots.iter_mut().rev().filter(|slot| !slot.draining);
                let Some(slot) = usable.min_by_key(|slot| slot.in_flight) else { break };
                slot.draining = true;
                surplus -= 1;
            }
            let mut gone = vec![];
            s.slots.retain(|slot| {
                let ends = slot.draining && slot.in_flight == 0;
                if ends {
                    gone.push(Arc::clone(&slot.live));
                }
                !ends
            });
            if !gone.is_empty() && s.slots.is_empty() {
                // Those that ended now were well, whatever became of another start.
                s.failure = None;
            }
            let awake = !s.slots.is_empty() || s.load() > 0 || s.starting > 0 || needed > 0;
            if !awake {
                s.scaler = None;
            }
            (self.hand_out(&mut s, false), gone, awake)
        };
        Self::deliver(given);
        for live in &gone {
            self.stop(live);
        }
        if !gone.is_empty() || !awake {
            self.context.changed(&self.function);
        }
        awake
    }

    /// No more requests, no more starts; instances end as soon as they are idle.
    pub fn close(self: &Arc<Self>) {
        let refused = {
            let mut s = self.state.lock();
            s.closed = true;
            s.floor = 0;
            for slot in &mut s.slots {
                slot.draining = true;
            }
            std::mem::take(&mut s.waiting)
        };
        for waiter in refused {
            let _ = waiter.send(Err(InvokeError::Unavailable("the function is being removed".into())));
        }
        self.tick();
    }

    /// What is known now.
    pub fn report(&self) -> Report {
        let s = self.state.lock();
        let mut nodes = BTreeMap::new();
        for slot in &s.slots {
            *nodes.entry(slot.live.instance.node.clone()).or_default() += 1;
        }
        Report {
            ready: s.slots.len() as u32,
            nodes,
            starting: s.starting,
            waiting: s.waiting.len() as u32,
            failure: s.failure.as_ref().map(|f| f.why.clone()),
            no_room: s.no_room.clone(),
            proven: s.proven,
        }
    }

    /// Requests under way and waiting.
    pub fn load(&self) -> (u32, u32) {
        let s = self.state.lock();
        (s.in_flight, s.waiting.len() as u32)
    }
}
