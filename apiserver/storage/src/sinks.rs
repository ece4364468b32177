//! Who hears of changes: the sinks of a store by the prefix each listens to. Shared by the drivers.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::store::{Change, Sink};

/// Sinks by the prefix they listen to.
#[derive(Default)]
pub(crate) struct Sinks(HashMap<Box<str>, Vec<Weak<dyn Sink>>>);

impl Sinks {
    /// A sink for what is under a prefix, which ends in `/`.
    pub(crate) fn add(&mut self, prefix: &str, sink: Weak<dyn Sink>) {
        let list = self.0.entry(prefix.into()).or_default();
        list.retain(|s| s.strong_count() > 0);
        list.push(sink);
    }

    /// Everyone who still listens.
    pub(crate) fn each(&mut self) -> impl Iterator<Item = Arc<dyn Sink>> + '_ {
        self.0.retain(|_, list| {
            list.retain(|s| s.strong_count() > 0);
            !list.is_empty()
        });
        self.0.values().flatten().filter_map(Weak::upgrade)
    }

    /// Hands each sink its part of the batch; answers those who got something.
    pub(crate) fn apply(&self, changes: &[Change]) -> Vec<Arc<dyn Sink>> {
        let mut parts: HashMap<&str, Vec<Change>> = HashMap::new();
        for change in changes {
            for (at, _) in change.key().match_indices('/') {
                if let Some((prefix, _)) = self.0.get_key_value(&change.key()[..=at]) {
                    parts.entry(prefix).or_default().push(change.clone());
                }
            }
        }
        let mut told = Vec::new();
        for (prefix, part) in parts {
            for sink in self.0[prefix].iter().filter_map(Weak::upgrade) {
                sink.apply(&part);
                told.push(sink);
            }
        }
        told
    }
}
