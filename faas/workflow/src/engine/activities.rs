//! Activities: tasks that wait for a worker to fetch them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::hear::Note;
use super::{Engine, Key};
use crate::payload::Owner;
use crate::runs::ActivityTask;

/// Workers that wait at a time, of all activities.
const WORKERS_MAX: usize = 1000;

/// A task that waits: its run, and its address there.
type Offer = (Key, String);

/// Tasks that wait, by activity. What a task's input is its run knows.
#[derive(Default)]
pub(super) struct Activities {
    lines: Mutex<HashMap<Key, Arc<Line>>>,
}

#[derive(Default)]
struct Line {
    tasks: Mutex<VecDeque<Offer>>,
    more: Notify,
}

impl Activities {
    fn line(&self, key: Key) -> Arc<Line> {
        let mut lines = self.lines.lock();
        if lines.len() >= WORKERS_MAX {
            // Nobody waits there, and nothing does.
            lines.retain(|_, l| Arc::strong_count(l) > 1 || !l.tasks.lock().is_empty());
        }
        Arc::clone(lines.entry(key).or_default())
    }
}

/// A task that was taken out for a worker, and goes back where the worker does not get it.
pub(super) struct Held<'a> {
    engine: &'a Engine,
    activity: Key,
    offer: Option<Offer>,
}

impl<'a> Held<'a> {
    pub(super) fn new(engine: &'a Engine, activity: Key, offer: Offer) -> Self {
        Self { engine, activity, offer: Some(offer) }
    }

    /// It is the worker's.
    pub(super) fn take(&mut self) -> Option<Offer> {
        self.offer.take()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(offer) = self.offer.take() {
            let line = self.engine.activities.line(self.activity.clone());
            line.tasks.lock().push_front(offer);
            line.more.notify_one();
        }
    }
}

impl Engine {
    /// A task waits for a worker. The same one again changes nothing.
    pub(crate) fn offer(&self, owner: &Owner, activity: &str, address: String) {
        let line = self.activities.line((owner.namespace.clone(), activity.to_owned()));
        let task = ((owner.namespace.clone(), owner.name.clone()), address);
        let mut tasks = line.tasks.lock();
        if !tasks.contains(&task) {
            tasks.push_back(task);
        }
        drop(tasks);
        line.more.notify_one();
    }

    /// The next task of an activity. It is stored that this worker has it before the worker hears of it.
    pub(crate) async fn fetch(
        &self,
        namespace: &str,
        activity: &str,
        worker: Option<&str>,
        wait: Duration,
    ) -> Option<ActivityTask> {
        let until = Instant::now() + wait;
        while let Some((key, address)) = self.next_offer(namespace, activity, until).await {
            if let Some(task) = self.give(&key, address, worker).await {
                return Some(task);
            }
            // Nobody waits for that one any more.
        }
        None
    }

    /// The next task that waits here, taken out. None where none comes until then.
    pub(super) async fn next_offer(&self, namespace: &str, activity: &str, until: Instant) -> Option<Offer> {
        let line = self.activities.line((namespace.to_owned(), activity.to_owned()));
        loop {
            let more = line.more.notified();
            let next = line.tasks.lock().pop_front();
            if next.is_some() {
                return next;
            }
            if tokio::time::timeout_at(until, more).await.is_err() {
                return None;
            }
        }
    }

    /// Lets a run store that a worker has a task of it. None where the task is over, or the run is another engine's.
    pub(super) async fn give(&self, run: &Key, address: String, worker: Option<&str>) -> Option<ActivityTask> {
        let (reply, answer) = oneshot::channel();
        if !self.tell(run, Note::Poll(address, worker.map(str::to_owned), reply)) {
            return None;
        }
        answer.await.ok()
    }
}
