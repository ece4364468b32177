//! Finished runs of workflows that say how long they are kept. Their pages and payloads go with them, by ownership.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, ResourceExt as _};
use parking_lot::Mutex;
use skiff_controllers::runtime::worker::{code, not_found};
use tokio::sync::Notify;

use super::{Engine, Key};
use crate::api::{Retention, WORKFLOW, Workflow, WorkflowRun};

/// Objects in one answer of a list.
const PAGE: u32 = 100;
/// Pause after a deletion that failed.
const PAUSE: Duration = Duration::from_secs(10);

/// What is kept, of workflows that do not keep everything.
#[derive(Default)]
pub(super) struct Kept {
    lines: Mutex<HashMap<Key, Line>>,
    changed: Notify,
}

struct Line {
    retention: Retention,
    /// When each ended, its name, its uid.
    runs: BTreeSet<(Timestamp, String, String)>,
}

impl Line {
    /// When the oldest goes; the past where it is one too many.
    fn next(&self) -> Option<Timestamp> {
        let (ended, ..) = self.runs.first()?;
        let most = self.retention.runs.map_or(usize::MAX, |m| usize::try_from(m).unwrap_or(usize::MAX));
        if self.runs.len() > most {
            return Some(Timestamp::UNIX_EPOCH);
        }
        let seconds = SignedDuration::from_secs(i64::from(self.retention.seconds?));
        Some(ended.checked_add(seconds).unwrap_or(Timestamp::MAX))
    }
}

impl Engine {
    /// A workflow is as it is now.
    pub(super) async fn keeps(&self, workflow: &Workflow) {
        let key = (workflow.namespace().unwrap_or_default(), workflow.name_any());
        let wanted = workflow.spec.retention.clone().filter(|r| r.seconds.is_some() || r.runs.is_some());
        {
            let mut lines = self.kept.lines.lock();
            let Some(retention) = wanted else {
                lines.remove(&key);
                return;
            };
            if let Some(line) = lines.get_mut(&key) {
                line.retention = retention;
                self.kept.changed.notify_one();
                return;
            }
            lines.insert(key.clone(), Line { retention, runs: BTreeSet::new() });
        }
        // Those that ended before anybody asked.
        let runs = Api::<WorkflowRun>::namespaced(self.client.clone(), &key.0);
        let mut page = ListParams::default().labels(&format!("{WORKFLOW}={}", key.1)).limit(PAGE);
        loop {
            match runs.list(&page).await {
                Ok(found) => {
                    found.items.iter().for_each(|run| self.keep(run));
                    page.continue_token = found.metadata.continue_.filter(|c| !c.is_empty());
                    if page.continue_token.is_none() {
                        return;
                    }
                }
                Err(e) => {
                    tracing::warn!(
                        workflow = key.1,
                        error = &e as &dyn std::error::Error,
                        "finished runs are not listed"
                    );
                    return;
                }
            }
        }
    }

    /// A workflow is gone: its finished runs stay.
    pub(super) fn keeps_nothing(&self, key: &Key) {
        self.kept.lines.lock().remove(key);
    }

    /// A run is over.
    pub(super) fn keep(&self, run: &WorkflowRun) {
        let Some(workflow) = run.spec.workflow.clone() else { return };
        let Some(status) = run.status.as_ref().filter(|s| s.phase.is_over()) else { return };
        let Some(ended) = status.stop_time.as_ref().map(|t| t.0) else { return };
        let mut lines = self.kept.lines.lock();
        let Some(line) = lines.get_mut(&(run.namespace().unwrap_or_default(), workflow)) else { return };
        line.runs.insert((ended, run.name_any(), run.uid().unwrap_or_default()));
        drop(lines);
        self.kept.changed.notify_one();
    }

    /// Deletes what is not kept, until it is dropped.
    pub(super) async fn retire(&self) {
        loop {
            let changed = self.kept.changed.notified();
            let now = Timestamp::now();
            let (due, next) = {
                let mut lines = self.kept.lines.lock();
                let mut due = vec![];
                for (key, line) in lines.iter_mut() {
                    while line.next().is_some_and(|at| at <= now)
                        && let Some((_, name, uid)) = line.runs.pop_first()
                    {
                        due.push((key.0.clone(), name, uid));
                    }
                }
                (due, lines.values().filter_map(Line::next).min())
            };
            for (namespace, name, uid) in due {
                if !self.retired(&namespace, &name, uid).await {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            match next {
                Some(at) => {
                    let pause = crate::task::until(at).max(Duration::from_millis(100));
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = changed => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    /// Deletes a run, unless it was redriven meanwhile.
    async fn retired(&self, namespace: &str, name: &str, uid: String) -> bool {
        let runs = Api::<WorkflowRun>::namespaced(self.client.clone(), namespace);
        let run = match runs.get_opt(name).await {
            Ok(Some(run)) => run,
            Ok(None) => return true,
            Err(_) => return false,
        };
        if !run.status.as_ref().is_some_and(|s| s.phase.is_over()) {
            return true;
        }
        let only = Preconditions { uid: Some(uid), resource_version: run.metadata.resource_version };
        let how = DeleteParams { preconditions: Some(only), ..DeleteParams::background() };
        match runs.delete(name, &how).await {
            Ok(_) => true,
            Err(e) if not_found(&e) || code(&e) == 409 => true,
            Err(e) => {
                tracing::debug!(namespace, name, error = &e as &dyn std::error::Error, "a finished run stays");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_by_time_and_by_number() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let runs: BTreeSet<_> = [10, 20, 30].map(|s| (at(s), s.to_string(), String::new())).into();
        let next = |seconds, most| {
            Line { retention: Retention { seconds, runs: most }, runs: runs.clone() }.next().map(Timestamp::as_second)
        };
        assert_eq!(next(Some(60), None), Some(70));
        assert_eq!(next(None, Some(3)), None);
        assert_eq!(next(None, Some(2)), Some(0));
        assert_eq!(next(Some(60), Some(3)), Some(70));
        assert_eq!(next(Some(0), None), Some(10));
    }
}
