//! Turns: so many runs begin at a time, whatever is started at once.
//!
//! A run that begins is in memory with its definition, its machine and its first page, some dozen KiB; ten thousand that are
//! started together would all be there before the first is stored, and an allocator gives little of that back. So runs that
//! have not begun wait in a line of names. A run gives its turn back as soon as it waits for something, or its first steps are
//! stored and more follow; where it waits for long and others wait for a turn, it leaves memory at once. What wakes, is answered
//! or is stopped needs none.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::hear::Note;
use super::{Engine, Key};

/// Turns: enough that each request to the API of one is sent while those of others are answered.
const TURNS: usize = 128;

/// A turn, until it is dropped.
pub(super) type Turn = OwnedSemaphorePermit;

/// Turns, and who waits for one.
pub(super) struct Turns {
    free: Arc<Semaphore>,
    line: Mutex<VecDeque<Key>>,
    more: Notify,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { free: Arc::new(Semaphore::new(TURNS)), line: Mutex::default(), more: Notify::new() }
    }

    /// Whether somebody waits.
    pub(super) fn wanted(&self) -> bool {
        !self.line.lock().is_empty()
    }

    fn join(&self, key: Key) {
        self.line.lock().push_back(key);
        self.more.notify_one();
    }

    /// A turn for the next of the line; waits for both.
    async fn next(&self) -> Option<(Key, Turn)> {
        // It is closed by nobody.
        let turn = Arc::clone(&self.free).acquire_owned().await.ok()?;
        loop {
            let more = self.more.notified();
            if let Some(key) = self.line.lock().pop_front() {
                return Some((key, turn));
            }
            more.await;
        }
    }
}

impl Engine {
    /// Lets a run begin in its turn.
    pub(super) fn begin_in_turn(&self, key: Key) {
        self.turns.join(key);
    }

    /// Gives turns until it is dropped.
    pub(super) async fn give_turns(&self) {
        while let Some((key, turn)) = self.turns.next().await {
            // Who is at work already needs none.
            self.tell_in(&key, Note::Wake, Some(turn));
        }
    }

    /// The turn a run was given.
    pub(super) fn turn(&self, key: &Key, uid: &str) -> Option<Turn> {
        self.state.lock().places.get_mut(key).filter(|p| p.uid == uid)?.turn.take()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn turns_are_given_in_order_as_they_come_back() {
        let turns = Turns::new();
        let key = |n: usize| ("default".to_owned(), n.to_string());
        (0..TURNS + 2).for_each(|n| turns.join(key(n)));
        let mut given = vec![];
        for n in 0..TURNS {
            let (next, turn) = turns.next().await.unwrap();
            assert_eq!(next, key(n));
            given.push(turn);
        }
        assert!(turns.wanted());
        let none = tokio::time::timeout(Duration::from_millis(20), turns.next()).await;
        assert!(none.is_err(), "more turns than there are");
        given.pop();
        assert_eq!(turns.next().await.unwrap().0, key(TURNS));
        given.clear();
        assert_eq!(turns.next().await.unwrap().0, key(TURNS + 1));
        assert!(!turns.wanted());
        // Who comes later is heard of.
        let (next, ()) = tokio::join!(turns.next(), async { turns.join(key(0)) });
        assert_eq!(next.unwrap().0, key(0));
    }
}
