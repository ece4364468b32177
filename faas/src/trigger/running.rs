//! Tasks of triggers: they follow what objects want.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::task::AbortHandle;

/// The triggers that run, by object.
pub struct Running<T> {
    objects: Mutex<HashMap<String, Watched<T>>>,
}

impl<T> Default for Running<T> {
    fn default() -> Self {
        Self { objects: Mutex::default() }
    }
}

/// The triggers of one object.
struct Watched<T> {
    identity: String,
    tasks: HashMap<String, (T, AbortHandle)>,
}

impl<T> Drop for Watched<T> {
    fn drop(&mut self) {
        self.tasks.values().for_each(|(_, task)| task.abort());
    }
}

impl<T: Clone + PartialEq> Running<T> {
    /// An object wants these triggers: tasks of others end, those that are missing are started. All are started anew when
    /// `identity` is another: another object of the name, or other rights.
    pub fn changed<F>(
        &self,
        key: &str,
        identity: &str,
        wanted: &[T],
        name: impl Fn(&T) -> &str,
        start: impl Fn(&T) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut objects = self.objects.lock();
        if wanted.is_empty() {
            objects.remove(key);
            return;
        }
        if objects.get(key).is_none_or(|w| w.identity != identity) {
            objects.insert(key.to_owned(), Watched { identity: identity.to_owned(), tasks: HashMap::new() });
        }
        let Some(watched) = objects.get_mut(key) else { return };
        watched.tasks.retain(|of, (trigger, task)| {
            let stays = wanted.iter().any(|w| name(w) == of && w == trigger);
            if !stays {
                task.abort();
            }
            stays
        });
        for trigger in wanted {
            if !watched.tasks.contains_key(name(trigger)) {
                let task = tokio::spawn(start(trigger)).abort_handle();
                watched.tasks.insert(name(trigger).to_owned(), (trigger.clone(), task));
            }
        }
    }

    /// What `f` makes of the triggers that run: it gets the object's key and identity, and the trigger.
    pub fn filter_map<R>(&self, mut f: impl FnMut(&str, &str, &T) -> Option<R>) -> Vec<R> {
        let objects = self.objects.lock();
        let all = objects.iter().flat_map(|(key, w)| w.tasks.values().map(move |(t, _)| (key, &w.identity, t)));
        all.filter_map(|(key, identity, trigger)| f(key, identity, trigger)).collect()
    }

    /// An object is gone.
    pub fn gone(&self, key: &str) {
        self.objects.lock().remove(key);
    }
}
