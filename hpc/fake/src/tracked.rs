//! A map that knows which of its entries were touched, so that only those are written down.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// Read as the map it is; changed only through what marks the entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tracked<K: Ord, V> {
    all: BTreeMap<K, V>,
    #[serde(skip, default = "BTreeSet::new")]
    touched: BTreeSet<K>,
}

impl<K: Ord, V> Default for Tracked<K, V> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), touched: BTreeSet::new() }
    }
}

impl<K: Ord, V> Deref for Tracked<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl<K: Ord + Clone, V: Clone> Tracked<K, V> {
    /// An entry to be changed: it counts as touched, so look first where nothing may be to do.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let found = self.all.get_mut(key)?;
        if !self.touched.contains(key) {
            self.touched.insert(key.clone());
        }
        Some(found)
    }

    /// Puts an entry in place of what was there.
    pub fn insert(&mut self, key: K, value: V) {
        self.touched.insert(key.clone());
        self.all.insert(key, value);
    }

    /// Puts what was read from the disk.
    pub(crate) fn put(&mut self, key: K, value: V) {
        self.all.insert(key, value);
    }

    /// Entries that were touched.
    pub(crate) fn touched(&self) -> impl Iterator<Item = (&K, &V)> {
        self.touched.iter().filter_map(|k| self.all.get_key_value(k))
    }

    pub(crate) fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// All that was touched is written down.
    pub(crate) fn settled(&mut self) {
        self.touched.clear();
    }
}
