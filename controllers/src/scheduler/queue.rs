//! Pods that wait for a node: ready ones by priority and age, those in back-off, and those that fit nowhere until
//! something changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Rule;

const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// What fits nowhere is tried again after this without any event.
const STALE: Duration = Duration::from_secs(300);

#[derive(Clone, Debug)]
struct Entry {
    priority: i32,
    serial: u64,
    attempts: u32,
    /// When the pod first wanted a node.
    since: Instant,
}

#[derive(Default)]
struct State {
    entries: HashMap<String, Entry>,
    /// Negated priority, then order of arrival.
    active: BTreeMap<(i64, u64), String>,
    waiting: HashMap<String, Instant>,
    hopeless: HashMap<String, (Instant, BTreeSet<Rule>)>,
    /// When which of the waiting and of the hopeless is due.
    timers: BTreeSet<(Instant, String)>,
    /// The hopeless by what refused them: most events help nobody, and must not look at all.
    refused: BTreeMap<Rule, BTreeSet<String>>,
    running: BTreeSet<String>,
    /// When an event last helped pods refused by a rule, so that one that comes while a pod is being tried (or its
    /// volumes are being bound) is not missed.
    moves: BTreeMap<Rule, u64>,
    /// When an event last helped all pods.
    moved_all: u64,
    /// Bumped by every event.
    clock: u64,
    started: HashMap<String, u64>,
    serial: u64,
}

/// The queue.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    wake: Notify,
}

impl State {
    fn activate(&mut self, key: &str) {
        self.unpark(key);
        if let Some(e) = self.entries.get(key) {
            self.active.insert((-i64::from(e.priority), e.serial), key.to_owned());
        }
    }

    /// Lets a pod wait until a time.
    fn wait(&mut self, key: &str, until: Instant) {
        self.unpark(key);
        self.waiting.insert(key.to_owned(), until);
        self.timers.insert((until, key.to_owned()));
    }

    /// Lets a pod wait until something helps against `rules`.
    fn give_up(&mut self, key: &str, rules: BTreeSet<Rule>) {
        self.unpark(key);
        let now = Instant::now();
        for r in &rules {
            self.refused.entry(*r).or_default().insert(key.to_owned());
        }
        self.timers.insert((now + STALE, key.to_owned()));
        self.hopeless.insert(key.to_owned(), (now, rules));
    }

    /// Takes a pod out of those that wait for anything.
    fn unpark(&mut self, key: &str) {
        if let Some(at) = self.waiting.remove(key) {
            self.timers.remove(&(at, key.to_owned()));
        }
        if let Some((since, rules)) = self.hopeless.remove(key) {
            self.timers.remove(&(since + STALE, key.to_owned()));
            for r in rules {
                self.refused.entry(r).and_modify(|keys| _ = keys.remove(key));
            }
        }
    }

    fn forget(&mut self, key: &str) {
        if let Some(e) = self.entries.remove(key) {
            self.active.remove(&(-i64::from(e.priority), e.serial));
        }
        self.unpark(key);
        self.started.remove(key);
    }
}

fn backoff(attempts: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(BACKOFF_MAX)
}

impl Queue {
    /// A pod wants a node, or changed so that it should be tried again at once.
    pub fn add(&self, key: &str, priority: i32) {
        let mut s = self.state.lock();
        if s.running.contains(key) {
            return;
        }
        s.serial += 1;
        let serial = s.serial;
        let old = s.entries.get(key).cloned();
        if let Some(old) = &old {
            s.active.remove(&(-i64::from(old.priority), old.serial));
        }
        let entry = Entry {
            priority,
            serial: old.as_ref().map_or(serial, |o| o.serial),
            attempts: old.as_ref().map_or(0, |o| o.attempts),
            since: old.map_or_else(Instant::now, |o| o.since),
        };
        s.entries.insert(key.to_owned(), entry);
        s.activate(key);
        self.wake.notify_one();
    }

    /// A pod needs no node any more.
    pub fn remove(&self, key: &str) {
        self.state.lock().forget(key);
    }

    /// The next pod. It must be given back through [`Queue::failed`] or [`Queue::done`].
    pub async fn next(&self) -> String {
        loop {
            let until = {
                let mut s = self.state.lock();
                let now = Instant::now();
                while let Some((_, key)) = s.timers.first().filter(|(at, _)| *at <= now).cloned() {
                    s.activate(&key);
                }
                if let Some((_, key)) = s.active.pop_first() {
                    if let Some(e) = s.entries.get_mut(&key) {
                        e.attempts += 1;
                    }
                    s.running.insert(key.clone());
                    let clock = s.clock;
                    s.started.insert(key.clone(), clock);
                    return key;
                }
                s.timers.first().map(|(at, _)| *at)
            };
            match until {
                None => self.wake.notified().await,
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, self.wake.notified()).await;
                }
            }
        }
    }

    /// A pod was placed, or is gone.
    pub fn done(&self, key: &str) {
        let mut s = self.state.lock();
        s.running.remove(key);
        s.forget(key);
    }

    /// A pod could not be placed. `rules` are those that refused; none means an error, tried again after back-off.
    pub fn failed(&self, key: &str, rules: BTreeSet<Rule>) {
        let mut s = self.state.lock();
        s.running.remove(key);
        let since = s.started.remove(key).unwrap_or(0);
        let Some(attempts) = s.entries.get(key).map(|e| e.attempts) else { return };
        let helped = s.moved_all > since || rules.iter().any(|r| s.moves.get(r).is_some_and(|at| *at > since));
        if rules.is_empty() || helped {
            s.wait(key, Instant::now() + backoff(attempts));
        } else {
            s.give_up(key, rules);
        }
        self.wake.notify_one();
    }

    /// Something changed that may help pods refused by `rules` (`None`: all). They are tried after their back-off.
    pub fn changed(&self, rules: Option<&[Rule]>) {
        let mut s = self.state.lock();
        s.clock += 1;
        let clock = s.clock;
        let helped: BTreeSet<String> = match rules {
            None => {
                s.moved_all = clock;
                s.hopeless.keys().cloned().collect()
            }
            Some(rules) => {
                s.moves.extend(rules.iter().map(|r| (*r, clock)));
                rules.iter().filter_map(|r| s.refused.get(r)).flatten().cloned().collect()
            }
        };
        if helped.is_empty() {
            return;
        }
        let now = Instant::now();
        for key in helped {
            let Some(since) = s.hopeless.get(&key).map(|(t, _)| *t) else { continue };
            let attempts = s.entries.get(&key).map_or(1, |e| e.attempts);
            let ready = since + backoff(attempts);
            if ready <= now {
                s.activate(&key);
            } else {
                s.wait(&key, ready);
            }
        }
        drop(s);
        self.wake.notify_one();
    }

    /// Decisions about a pod so far, and how long it has wanted a node.
    #[must_use]
    pub fn history(&self, key: &str) -> Option<(u32, Duration)> {
        self.state.lock().entries.get(key).map(|e| (e.attempts, e.since.elapsed()))
    }

    /// Pods that are ready to be tried, in back-off, and waiting for something to change.
    #[must_use]
    pub fn pending(&self) -> [usize; 3] {
        let s = self.state.lock();
        [s.active.len(), s.waiting.len(), s.hopeless.len()]
    }

    /// Pods that wait, whatever for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.lock().entries.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn next(q: &Queue) -> Option<String> {
        q.next().now_or_never()
    }

    #[tokio::test(start_paused = true)]
    async fn priority_then_age() {
        let q = Queue::default();
        q.add("a", 0);
        q.add("b", 0);
        q.add("c", 10);
        let order: Vec<String> = std::iter::from_fn(|| next(&q)).collect();
        assert_eq!(order, ["c", "a", "b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn hopeless_pods_wait_for_what_helps() {
        let q = Queue::default();
        let fit = || BTreeSet::from([Rule::Resources]);
        q.add("a", 0);
        assert_eq!(next(&q).as_deref(), Some("a"));
        q.failed("a", fit());
        assert_eq!((q.pending(), q.history("a").unwrap().0), ([0, 0, 1], 1));
        q.changed(Some(&[Rule::Affinity]));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(next(&q), None);
        q.changed(Some(&[Rule::Resources]));
        assert_eq!(next(&q).as_deref(), Some("a"));
        // An event while the pod is being tried counts too, after back-off.
        q.changed(None);
        q.failed("a", fit());
        assert_eq!(q.pending(), [0, 1, 0]);
        assert_eq!(next(&q), None);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(next(&q).as_deref(), Some("a"));
        q.failed("a", fit());
        tokio::time::advance(STALE).await;
        assert_eq!(next(&q).as_deref(), Some("a"), "tried again without any event");
        q.done("a");
        assert!(q.is_empty());
    }
}
