//! What a controller has done that its cache does not show yet, so that a burst of creates is not repeated.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// After this the cache is believed again: an event was missed.
const EXPIRY: Duration = Duration::from_secs(300);

struct Entry {
    creations: i64,
    deletions: HashSet<String>,
    since: Instant,
}

/// Outstanding creations (a count) and deletions (keys) per owner.
#[derive(Default)]
pub struct Expectations {
    entries: Mutex<HashMap<String, Entry>>,
}

impl Expectations {
    /// Whether the cache can be believed for `owner`.
    #[must_use]
    pub fn satisfied(&self, owner: &str) -> bool {
        self.entries
            .lock()
            .get(owner)
            .is_none_or(|e| (e.creations <= 0 && e.deletions.is_empty()) || e.since.elapsed() > EXPIRY)
    }

    /// Sets what to wait for, in place of what was expected before: a number of creations, the keys of deletions.
    pub fn expect(&self, owner: &str, creations: usize, deletions: impl IntoIterator<Item = String>) {
        let creations = i64::try_from(creations).unwrap_or(i64::MAX);
        let entry = Entry { creations, deletions: deletions.into_iter().collect(), since: Instant::now() };
        self.entries.lock().insert(owner.to_owned(), entry);
    }

    /// Sets the creations to wait for.
    pub fn expect_creations(&self, owner: &str, n: usize) {
        self.expect(owner, n, []);
    }

    /// Sets the deletions to wait for.
    pub fn expect_deletions(&self, owner: &str, keys: impl IntoIterator<Item = String>) {
        self.expect(owner, 0, keys);
    }

    /// A creation was seen, or did not happen.
    pub fn created(&self, owner: &str) {
        if let Some(e) = self.entries.lock().get_mut(owner) {
            e.creations -= 1;
        }
    }

    /// A deletion was seen, or did not happen.
    pub fn deleted(&self, owner: &str, key: &str) {
        if let Some(e) = self.entries.lock().get_mut(owner) {
            e.deletions.remove(key);
        }
    }

    /// The owner is gone.
    pub fn forget(&self, owner: &str) {
        self.entries.lock().remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn burst_is_awaited_and_expires() {
        let e = Expectations::default();
        assert!(e.satisfied("a"));
        e.expect_creations("a", 2);
        e.created("a");
        assert!(!e.satisfied("a"));
        e.created("a");
        assert!(e.satisfied("a"));
        e.expect_deletions("a", ["x".to_owned(), "y".to_owned()]);
        e.deleted("a", "x");
        e.deleted("a", "x");
        assert!(!e.satisfied("a"), "the same deletion counts once");
        tokio::time::advance(EXPIRY + Duration::from_secs(1)).await;
        assert!(e.satisfied("a"));
    }
}
