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

/// Tasks that wait, by activity. What a task's input is its run knows.
#[derive(Default)]
pub(super) struct Activities {
    lines: Mutex<HashMap<Key, Arc<Line>>>,
}

#[derive(Default)]
struct Line {
    tasks: Mutex<VecDeque<(Key, String)>>,
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
        let line = self.activities.line((namespace.to_owned(), activity.to_owned()));
        let until = Instant::now() + wait;
        loop {
            let more = line.more.notified();
            let next = line.tasks.lock().pop_front();
            if let Some((key, address)) = next {
                let (reply, answer) = oneshot::channel();
                if self.tell(&key, Note::Poll(address, worker.map(str::to_owned), reply))
                    && let Ok(task) = answer.await
                {
                    return Some(task);
                }
                // Nobody waits for that one any more.
                continue;
            }
            if tokio::time::timeout_at(until, more).await.is_err() {
                return None;
            }
        }
    }
}
