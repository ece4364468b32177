//! Seats: who is served now, who waits, and whose turn it is.
//!
//! The server has so many seats. Each level has its share of them; a part of it is its own at any time, the rest is lent out
//! while the level does not use it. In a level, flows are dealt to queues, a hand of queues to each (shuffle sharding), and the
//! queue that has been served least is served next (start-time fair queuing), counted in seats times the time they were taken.
//!
//! Upstream moves what is lent every ten seconds, by the demand of the time before. Here a seat is lent when it is asked for
//! and comes back when its request ends, so nobody waits for a seat that nobody uses, and there is no clock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long a request is thought to take until it is known, in seconds, as upstream.
const GUESS: f64 = 0.003;

/// What a level has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// Name of the level.
    pub(super) name: String,
    /// Seats, as many as the level has when everybody uses theirs.
    pub(super) nominal: u32,
    /// Of these, the ones that are never lent.
    pub(super) reserved: u32,
    /// As many as the level may take when others lend.
    pub(super) most: u32,
    /// Queues; without, who finds no seat is refused.
    pub(super) queues: usize,
    /// Queues that a flow is dealt.
    pub(super) hand: usize,
    /// Requests that wait in a queue at most.
    pub(super) length: usize,
}

/// Why a request is not served, in upstream's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The level has no queues and no seat.
    ConcurrencyLimit,
    /// The shortest of the flow's queues is full.
    QueueFull,
    /// It was not its turn for so long.
    TimeOut,
}

impl Refusal {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::ConcurrencyLimit, Self::QueueFull, Self::TimeOut];

    /// As metrics name it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::ConcurrencyLimit => "concurrency-limit",
            Self::QueueFull => "queue-full",
            Self::TimeOut => "time-out",
        }
    }
}

/// How full a level is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) share: Share,
    /// Seats that are taken.
    pub(super) seats: u32,
    /// Requests that are served.
    pub(super) executing: u32,
    /// Requests that wait.
    pub(super) waiting: u32,
}

/// All seats.
pub(super) struct Hall {
    levels: Mutex<Levels>,
}

struct Levels {
    limit: u32,
    all: Vec<Level>,
    tickets: u64,
}

#[derive(Default)]
struct Level {
    share: Share,
    /// Whether it is configured now. One that is no more ends with its last request, and its place is used again.
    present: bool,
    queues: Vec<Queue>,
    seats: u32,
    executing: u32,
    waiting: u32,
    /// Where the level's service has come to: the start of the request that was served last.
    clock: f64,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiter>,
    seats: u32,
    /// Where its next request starts, in seats times seconds.
    next: f64,
}

struct Waiter {
    ticket: u64,
    width: u32,
    call: oneshot::Sender<Seat>,
}

/// Seats that a request has until this is dropped.
pub(super) struct Seat {
    hall: Arc<Hall>,
    slot: usize,
    queue: Option<usize>,
    width: u32,
    since: Instant,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let called = self.hall.leave(self);
        call(called);
    }
}

/// A request that waits; dropped, it leaves its queue.
struct Waiting<'a> {
    hall: &'a Hall,
    slot: usize,
    queue: usize,
    ticket: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut levels = self.hall.levels.lock();
        let level = &mut levels.all[self.slot];
        let Some(queue) = level.queues.get_mut(self.queue) else { return };
        let before = queue.waiting.len();
        queue.waiting.retain(|w| w.ticket != self.ticket);
        if queue.waiting.len() < before {
            level.waiting -= 1;
        }
    }
}

/// Whose turn it is, and the seats they get. They are told when the lock is free: a seat that nobody takes any more comes
/// back by being dropped.
type Called = Vec<(oneshot::Sender<Seat>, Seat)>;

fn call(called: Called) {
    for (waiter, seat) in called {
        drop(waiter.send(seat));
    }
}

enum Arrival {
    Seated(Option<usize>),
    Refused(Refusal),
    Waits { queue: usize, ticket: u64, call: oneshot::Receiver<Seat> },
}

impl Hall {
    /// A hall of so many seats.
    pub(super) fn new(limit: u32) -> Self {
        Self { levels: Mutex::new(Levels { limit, all: vec![], tickets: 0 }) }
    }

    /// Seats in all.
    pub(super) fn limit(&self) -> u32 {
        self.levels.lock().limit
    }

    /// Gives each level its share; the places of the levels, in their order.
    pub(super) fn arrange(self: &Arc<Self>, shares: &[Share]) -> Vec<usize> {
        let (slots, called) = {
            let mut levels = self.levels.lock();
            let slots = levels.arrange(shares);
            (slots, levels.turns(self))
        };
        call(called);
        slots
    }

    /// Takes `width` seats of the level at `slot`, waiting for them at most so long. `flow` is whom the request is for.
    pub(super) async fn enter(
        self: &Arc<Self>,
        slot: usize,
        flow: u64,
        width: u32,
        patience: Duration,
    ) -> Result<Seat, Refusal> {
        let arrival = self.levels.lock().arrive(slot, flow, width);
        match arrival {
            Arrival::Seated(queue) => Ok(self.seat(slot, queue, width)),
            Arrival::Refused(why) => Err(why),
            Arrival::Waits { queue, ticket, call } => {
                let _leaves = Waiting { hall: self, slot, queue, ticket };
                match tokio::time::timeout(patience, call).await {
                    Ok(Ok(seat)) => Ok(seat),
                    _ => Err(Refusal::TimeOut),
                }
            }
        }
    }

    /// How full the levels are.
    pub(super) fn loads(&self) -> Vec<Load> {
        let levels = self.levels.lock();
        let present = levels.all.iter().filter(|l| l.present);
        present
            .map(|l| Load { share: l.share.clone(), seats: l.seats, executing: l.executing, waiting: l.waiting })
            .collect()
    }

    fn seat(self: &Arc<Self>, slot: usize, queue: Option<usize>, width: u32) -> Seat {
        Seat { hall: Arc::clone(self), slot, queue, width, since: Instant::now() }
    }

    fn leave(self: &Arc<Self>, seat: &Seat) -> Called {
        let mut levels = self.levels.lock();
        let level = &mut levels.all[seat.slot];
        level.seats -= seat.width;
        level.executing -= 1;
        if let Some(queue) = seat.queue.and_then(|q| level.queues.get_mut(q)) {
            queue.seats -= seat.width;
            queue.next += f64::from(seat.width) * (seat.since.elapsed().as_secs_f64() - GUESS);
        }
        levels.turns(self)
    }
}

impl Levels {
    fn arrange(&mut self, shares: &[Share]) -> Vec<usize> {
        for level in &mut self.all {
            level.present = false;
        }
        let mut slots = Vec::with_capacity(shares.len());
        for share in shares {
            let known = self.all.iter().position(|l| l.share.name == share.name);
            let unused = |l: &Level| l.is_free() && shares.iter().all(|s| s.name != l.share.name);
            let slot = known.or_else(|| self.all.iter().position(unused)).unwrap_or_else(|| {
                self.all.push(Level::default());
                self.all.len() - 1
            });
            let level = &mut self.all[slot];
            if level.share.name != share.name {
                *level = Level::default();
            }
            level.share = share.clone();
            level.present = true;
            // Queues that are no more are not dealt to anybody, and end with their last request.
            if level.queues.len() < share.queues {
                level.queues.resize_with(share.queues, Queue::default);
            }
            slots.push(slot);
        }
        for level in self.all.iter_mut().filter(|l| !l.present) {
            level.share = Share { name: std::mem::take(&mut level.share.name), ..Share::default() };
        }
        slots
    }

    fn arrive(&mut self, slot: usize, flow: u64, width: u32) -> Arrival {
        let fits = self.fits(slot, width);
        let level = &mut self.all[slot];
        if level.share.queues == 0 {
            if !fits {
                return Arrival::Refused(Refusal::ConcurrencyLimit);
            }
            level.take(None, width);
            return Arrival::Seated(None);
        }
        let hand = deal(flow, level.share.queues, level.share.hand);
        let burden = |q: &usize| (level.queues[*q].waiting.len(), level.queues[*q].seats);
        // A hand has one card at least.
        let chosen = hand.into_iter().min_by_key(burden).unwrap_or_default();
        if fits && level.waiting == 0 {
            level.take(Some(chosen), width);
            return Arrival::Seated(Some(chosen));
        }
        if level.queues[chosen].waiting.len() >= level.share.length {
            return Arrival::Refused(Refusal::QueueFull);
        }
        level.catch_up(chosen);
        let (sender, call) = oneshot::channel();
        self.tickets += 1;
        let ticket = self.tickets;
        level.queues[chosen].waiting.push_back(Waiter { ticket, width, call: sender });
        level.waiting += 1;
        Arrival::Waits { queue: chosen, ticket, call }
    }

    /// Whether so many seats can be taken of a level's own or of what others lend.
    fn fits(&self, slot: usize, width: u32) -> bool {
        let level = &self.all[slot];
        let after = level.seats + width;
        // One request at a time every level serves, however wide it is.
        if level.seats == 0 || after <= level.share.reserved {
            return true;
        }
        let claim = |l: &Level| l.seats.max(l.share.reserved);
        let claims: u32 = self.all.iter().map(claim).sum();
        after <= level.share.most && claims - claim(level) + after <= self.limit
    }

    /// Seats everybody whose turn it is: first who has not what is theirs.
    fn turns(&mut self, hall: &Arc<Hall>) -> Called {
        let mut called = vec![];
        loop {
            let waiting = (0..self.all.len()).filter(|slot| self.all[*slot].waiting > 0);
            let first = waiting.filter_map(|slot| {
                let level = &self.all[slot];
                let queue = level.turn()?;
                let width = level.queues[queue].waiting.front()?.width;
                self.fits(slot, width).then(|| (level.fullness(width), slot, queue))
            });
            let Some((_, slot, queue)) = first.min_by(|a, b| a.0.total_cmp(&b.0)) else { return called };
            let level = &mut self.all[slot];
            let Some(waiter) = level.queues[queue].waiting.pop_front() else { return called };
            level.waiting -= 1;
            level.take(Some(queue), waiter.width);
            called.push((waiter.call, hall.seat(slot, Some(queue), waiter.width)));
        }
    }
}

impl Level {
    fn is_free(&self) -> bool {
        !self.present && self.executing == 0 && self.waiting == 0
    }

    /// Which part of its own the level would have with so many seats more.
    fn fullness(&self, width: u32) -> f64 {
        f64::from(self.seats + width) / f64::from(self.share.nominal.max(1))
    }

    /// The queue that has been served least of those that wait.
    fn turn(&self) -> Option<usize> {
        let waiting = (0..self.queues.len()).filter(|q| !self.queues[*q].waiting.is_empty());
        waiting.min_by(|a, b| self.queues[*a].next.total_cmp(&self.queues[*b].next))
    }

    /// A queue that was empty has saved nothing up.
    fn catch_up(&mut self, queue: usize) {
        let clock = self.clock;
        let queue = &mut self.queues[queue];
        if queue.waiting.is_empty() && queue.seats == 0 {
            queue.next = queue.next.max(clock);
        }
    }

    fn take(&mut self, queue: Option<usize>, width: u32) {
        self.seats += width;
        self.executing += 1;
        let Some(chosen) = queue else { return };
        self.catch_up(chosen);
        let queue = &mut self.queues[chosen];
        self.clock = self.clock.max(queue.next);
        queue.seats += width;
        queue.next += f64::from(width) * GUESS;
    }
}

/// The queues of a flow: `hand` different ones of `queues`, which its hash alone decides.
fn deal(mut flow: u64, queues: usize, hand: usize) -> Vec<usize> {
    let mut dealt: Vec<usize> = Vec::with_capacity(hand);
    for left in (0..queues).rev().take(hand.max(1)) {
        let deck = left as u64 + 1;
        // Smaller than the number of queues.
        #[allow(clippy::cast_possible_truncation)]
        let mut card = (flow % deck) as usize;
        flow /= deck;
        // The so many-th of those that are left: the ones dealt, in order, are passed over.
        let mut place = 0;
        for taken in &dealt {
            if card < *taken {
                break;
            }
            card += 1;
            place += 1;
        }
        dealt.insert(place, card);
    }
    dealt
}

#[cfg(test)]
mod tests;
