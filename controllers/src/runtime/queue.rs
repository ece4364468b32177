//! The work queue: keys, each at most once, handed out one worker at a time, with delays and per-key back-off.
//!
//! Contract: a key that is added while a worker has it is handed out again after [`Queue::done`]. Keys beyond the bound
//! are dropped and counted; every controller adds all its keys again on a timer, so a drop is late and not lost.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::Series;

/// First delay of a failing key; it doubles with every failure.
const BACKOFF_BASE: Duration = Duration::from_millis(5);
/// Longest delay of a failing key.
const BACKOFF_MAX: Duration = Duration::from_secs(1000);
/// Keys held at once.
const KEYS_MAX: usize = 200_000;

#[derive(Default)]
struct State {
    ready: VecDeque<String>,
    /// Keys to be handed out, and since when.
    waiting: HashMap<String, Instant>,
    /// Keys that workers have, and since when.
    running: HashMap<String, Instant>,
    failures: HashMap<String, u32>,
    timers: BTreeMap<(Instant, u64), String>,
    due: HashMap<String, (Instant, u64)>,
    serial: u64,
}

/// A queue of keys.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    wake: Notify,
    dropped: AtomicU64,
    series: OnceLock<Series>,
}

impl Queue {
    /// Adds a key, unless it waits already.
    pub fn add(&self, key: impl Into<String>) {
        let mut s = self.state.lock();
        self.push(&mut s, key.into());
    }

    fn push(&self, s: &mut State, key: String) {
        if s.waiting.contains_key(&key) {
            return;
        }
        if s.waiting.len() >= KEYS_MAX {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if !s.running.contains_key(&key) {
            s.ready.push_back(key.clone());
        }
        s.waiting.insert(key, Instant::now());
        if let Some(series) = self.series.get() {
            series.adds.inc();
        }
        self.wake.notify_one();
    }

    /// Adds a key after `delay`; of several delays for one key the shortest holds.
    pub fn add_after(&self, key: impl Into<String>, delay: Duration) {
        let key = key.into();
        let mut s = self.state.lock();
        if delay.is_zero() {
            return self.push(&mut s, key);
        }
        let at = Instant::now() + delay;
        match s.due.get(&key) {
            Some((known, _)) if *known <= at => return,
            Some(&slot) => {
                s.timers.remove(&slot);
            }
            None if s.due.len() >= KEYS_MAX => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            None => {}
        }
        s.serial += 1;
        let slot = (at, s.serial);
        s.due.insert(key.clone(), slot);
        s.timers.insert(slot, key);
        self.wake.notify_one();
    }

    /// Adds a key that failed, after a delay that grows with its failures.
    pub fn add_failed(&self, key: impl Into<String>) {
        let key = key.into();
        let delay = {
            let mut s = self.state.lock();
            let n = s.failures.entry(key.clone()).or_insert(0);
            let delay = BACKOFF_BASE.saturating_mul(1 << (*n).min(20)).min(BACKOFF_MAX);
            *n = n.saturating_add(1);
            delay
        };
        if let Some(series) = self.series.get() {
            series.retries.inc();
        }
        self.add_after(key, delay);
    }

    /// Counts from now on; what waits already counts as added. The first call holds.
    pub(crate) fn measure(&self, series: Series) {
        let s = self.state.lock();
        let known = s.waiting.len() as u64;
        if self.series.set(series).is_ok()
            && let Some(series) = self.series.get()
        {
            series.adds.inc_by(known);
        }
    }

    /// For how long workers have had the keys they have: all together, and the longest.
    #[must_use]
    pub fn under_way(&self) -> (Duration, Duration) {
        let s = self.state.lock();
        let each = || s.running.values().map(Instant::elapsed);
        (each().sum(), each().max().unwrap_or_default())
    }

    /// Forgets the failures of a key.
    pub fn forget(&self, key: &str) {
        self.state.lock().failures.remove(key);
    }

    /// Failures of a key in a row.
    #[must_use]
    pub fn failures(&self, key: &str) -> u32 {
        self.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Keys that were dropped because the queue was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Keys that are ready now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.lock().ready.len()
    }

    /// Whether none is ready.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for a key and marks it as being worked on. The caller must call [`Queue::done`].
    pub async fn next(&self) -> String {
        loop {
            let until = {
                let mut s = self.state.lock();
                let now = Instant::now();
                while let Some((&slot, _)) = s.timers.first_key_value() {
                    if slot.0 > now {
                        break;
                    }
                    if let Some(key) = s.timers.remove(&slot) {
                        s.due.remove(&key);
                        self.push(&mut s, key);
                    }
                }
                if let Some(key) = s.ready.pop_front() {
                    let since = s.waiting.remove(&key).unwrap_or(now);
                    s.running.insert(key.clone(), now);
                    if let Some(series) = self.series.get() {
                        series.queued.observe(now.saturating_duration_since(since).as_secs_f64());
                    }
                    if !s.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                s.timers.first_key_value().map(|((at, _), _)| *at)
            };
            match until {
                None => self.wake.notified().await,
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, self.wake.notified()).await;
                }
            }
        }
    }

    /// Ends the work on a key; if it was added meanwhile, it becomes ready.
    pub fn done(&self, key: &str) {
        let mut s = self.state.lock();
        if let (Some(since), Some(series)) = (s.running.remove(key), self.series.get()) {
            series.worked.observe(since.elapsed().as_secs_f64());
        }
        if s.waiting.contains_key(key) {
            s.ready.push_back(key.to_owned());
            self.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn ready(q: &Queue) -> Option<String> {
        q.next().now_or_never()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_counted() {
        let histogram = || skiff_metrics::Histogram::new([1.0]);
        let series = || Series {
            adds: skiff_metrics::Counter::default(),
            retries: skiff_metrics::Counter::default(),
            queued: histogram(),
            worked: histogram(),
        };
        let q = Queue::default();
        q.add("a");
        q.measure(series());
        q.add("a");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(ready(&q).as_deref(), Some("a"));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(q.under_way(), (Duration::from_secs(3), Duration::from_secs(3)));
        q.add("a");
        q.add_failed("a");
        q.done("a");
        assert_eq!((q.under_way().0, q.len()), (Duration::ZERO, 1));
        let s = q.series.get().unwrap();
        assert_eq!((s.adds.get(), s.retries.get()), (2, 1), "a key that waits is not added again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_held_once_and_by_one_worker() {
        let q = Queue::default();
        q.add("a");
        q.add("a");
        assert_eq!(ready(&q).as_deref(), Some("a"));
        assert_eq!(ready(&q), None);
        q.add("a");
        assert_eq!(ready(&q), None, "being worked on");
        q.done("a");
        assert_eq!(ready(&q).as_deref(), Some("a"));
        q.done("a");
        assert_eq!(ready(&q), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_shortest_delay_holds() {
        let q = Queue::default();
        let start = Instant::now();
        q.add_after("a", Duration::from_secs(60));
        q.add_after("a", Duration::from_secs(2));
        q.add_after("a", Duration::from_secs(30));
        assert_eq!(q.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), 2);
        q.done("a");
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(ready(&q), None);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_to_a_bound() {
        let q = Queue::default();
        let mut last = Duration::ZERO;
        for n in 0..25 {
            let start = Instant::now();
            q.add_failed("a");
            assert_eq!(q.next().await, "a");
            q.done("a");
            let took = start.elapsed();
            assert!(took >= last && took <= BACKOFF_MAX + Duration::from_millis(2), "{n}: {took:?}");
            last = took;
        }
        assert!(last >= BACKOFF_MAX);
        q.forget("a");
        assert_eq!(q.failures("a"), 0);
    }
}
