//! What need not be read, because a watch or a list told it: the object of a run that was made just now, what is known of one that
//! goes on, and, where many go on at once, their open pages.
//!
//! After a start of the engine all runs that go on are taken up, and those that wait for the same moment wake together. One by
//! one each would cost two requests before its next step; so their pages come from lists, and each run begins as its page comes.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use tokio::sync::OwnedSemaphorePermit;

use super::hear::Note;
use super::{Engine, Key, Place};
use crate::api::{OPEN, Phase, WorkflowHistory, WorkflowRun};

/// So many runs are many: fewer are read one by one.
const MANY: usize = 128;
/// Pages are listed where at least one of so many runs is wanted.
const SHARE: usize = 4;
/// Pages in one answer of a list.
const LIST: u32 = 250;
/// Pages and objects that are in memory before their runs have them.
pub(super) const ROOM: usize = 512;

/// What is known of the object of a run that goes on: neither stopped nor redriven, it need not be read for the run's next step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Its last page, as far as is known.
    pub(super) pages: i64,
    pub(super) generation: Option<i64>,
    /// Whether this engine had the run: then none of those that are there says otherwise on its object.
    pub(super) driven: bool,
}

impl Known {
    /// What an object tells, beside what was known.
    pub(super) fn told(before: Option<Self>, run: &WorkflowRun) -> Option<Self> {
        if run.spec.stop.is_some() || run.spec.redrive.is_some() {
            return None;
        }
        let status = run.status.as_ref().filter(|s| s.phase == Phase::Running && s.history_pages > 0);
        let (pages, generation) = (status.map(|s| s.history_pages), run.metadata.generation);
        match before {
            // The watch may be behind of what the run's actor knew.
            Some(known) => Some(Self {
                pages: pages.map_or(known.pages, |p| p.max(known.pages)),
                generation: generation.max(known.generation),
                ..known
            }),
            None => pages.map(|pages| Self { pages, generation, driven: false }),
        }
    }
}

/// Something of a run that is about to be taken up: its open page, or its object.
pub(super) struct Ahead<T> {
    what: T,
    /// Given back when the run has it.
    _room: OwnedSemaphorePermit,
}

/// What was told of a run that begins or wakes.
pub(super) enum Told {
    /// Nothing that is new enough: its object is to be read.
    Nothing,
    /// Its object. Nobody has begun with it.
    New(Box<WorkflowRun>),
    /// That it goes on, and perhaps its last page.
    Begun(Known, Option<Box<WorkflowHistory>>),
}

impl Engine {
    /// What was told of a run that begins or wakes. It is told once.
    pub(super) fn told(&self, key: &Key, uid: &str) -> Told {
        let others = self.share.view().is_some_and(|v| v.has_others());
        let mut state = self.state.lock();
        let Some(place) = state.places.get_mut(key).filter(|p| p.uid == uid) else { return Told::Nothing };
        let (object, page) = (place.object.take(), place.page.take());
        // Another may have written that it keeps the run, and the watch not have told yet.
        match (place.known.filter(|k| place.pin.is_none() && (k.driven || !others)), object) {
            (Some(known), _) => Told::Begun(known, page.map(|ahead| Box::new(ahead.what))),
            (None, Some(object)) if !others => Told::New(object.what),
            _ => Told::Nothing,
        }
    }

    /// Begins with a run that was made or changed just now.
    pub(super) fn take_up_seen(&self, run: WorkflowRun) {
        let Some(key) = self.seen(&run) else { return };
        // In no list yet: no engine was there that could have begun with it.
        let is_new = run.status.is_none() && run.annotations().is_empty();
        if is_new && let Ok(room) = Arc::clone(&self.room).try_acquire_owned() {
            let uid = run.metadata.uid.clone();
            if let Some(place) =
                self.state.lock().places.get_mut(&key).filter(|p| Some(&p.uid) == uid.as_ref() && !p.taken)
            {
                place.object = Some(Box::new(Ahead { what: Box::new(run), _room: room }));
            }
        }
        self.take_up(vec![key]);
    }

    /// Begins with runs, or wakes them, in their order where they are few.
    pub(super) fn tell_all(&self, keys: Vec<Key>) {
        if keys.len() < MANY {
            for key in keys {
                self.tell(&key, Note::Wake);
            }
            return;
        }
        let Some(engine) = self.shared() else { return };
        let stop = self.stop.clone();
        self.tracker.spawn(async move { stop.run_until_cancelled(engine.read_ahead(keys)).await });
    }

    /// Begins with many runs as their pages come, and then with those that have no open page, in their order.
    async fn read_ahead(&self, keys: Vec<Key>) {
        let mut wanted: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
        {
            let state = self.state.lock();
            let begun = |key: &Key| state.places.get(key).is_some_and(|p| p.known.is_some() && p.live.is_none());
            for key in keys.iter().filter(|k| begun(k)) {
                wanted.entry(&key.0).or_default().insert(&key.1);
            }
            wanted.retain(|namespace, names| {
                let all = state.places.keys().filter(|k| k.0 == *namespace).count();
                names.len() >= MANY && names.len() * SHARE >= all
            });
        }
        let mut told: HashSet<Key> = HashSet::new();
        for (namespace, names) in wanted {
            if let Err(e) = self.list_pages(namespace, names, &mut told).await {
                tracing::debug!(namespace, error = &e as &dyn std::error::Error, "pages are read one by one");
            }
        }
        for key in keys.iter().filter(|k| !told.contains(*k)) {
            self.tell(key, Note::Wake);
        }
    }

    async fn list_pages(
        &self,
        namespace: &str,
        mut names: HashSet<&str>,
        told: &mut HashSet<Key>,
    ) -> Result<(), kube::Error> {
        let pages = Api::<WorkflowHistory>::namespaced(self.client.clone(), namespace);
        let mut params = ListParams::default().labels(&format!("{OPEN}=true")).limit(LIST);
        while !names.is_empty() {
            let found = pages.list(&params).await?;
            for page in found.items {
                if !names.remove(page.spec.run.as_str()) {
                    continue;
                }
                // It is closed by nobody.
                let Ok(room) = Arc::clone(&self.room).acquire_owned().await else { return Ok(()) };
                let key = (namespace.to_owned(), page.spec.run.clone());
                if let Some(place) = self.state.lock().places.get_mut(&key).filter(|p| p.waits_for(&page)) {
                    place.page = Some(Box::new(Ahead { what: page, _room: room }));
                }
                self.tell(&key, Note::Wake);
                told.insert(key);
            }
            params.continue_token = found.metadata.continue_.filter(|c| !c.is_empty());
            if params.continue_token.is_none() {
                break;
            }
        }
        Ok(())
    }
}

impl Place {
    /// Whether a page is of any use to it.
    fn waits_for(&self, page: &WorkflowHistory) -> bool {
        self.taken && self.live.is_none() && self.known.is_some() && page.spec.run_uid == self.uid
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(generation: i64, spec: serde_json::Value, pages: i64) -> WorkflowRun {
        let whole = json!({"metadata": {"name": "r", "generation": generation}, "spec": spec,
            "status": {"phase": if pages > 0 { "RUNNING" } else { "PENDING" }, "historyPages": pages}});
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn an_object_is_known_while_nothing_is_asked_of_it() {
        let seen = |before, run| Known::told(before, &run).map(|k| (k.pages, k.generation, k.driven));
        assert_eq!(seen(None, run(1, json!({}), 0)), None);
        assert_eq!(seen(None, run(1, json!({}), 2)), Some((2, Some(1), false)));
        // An older event does not take back what the actor knew.
        let own = Some(Known { pages: 3, generation: Some(2), driven: true });
        assert_eq!(seen(own, run(1, json!({}), 2)), Some((3, Some(2), true)));
        assert_eq!(seen(own, run(3, json!({}), 4)), Some((4, Some(3), true)));
        assert_eq!(seen(own, run(3, json!({"stop": {}}), 4)), None);
        assert_eq!(seen(own, run(3, json!({"redrive": 1}), 4)), None);
    }
}
