//! A watch of one prefix for one reader: [`Store::watch`](crate::Store::watch).

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use super::client::{Client, Fault, Watching};
use super::hub::begin;
use super::space::Space;
use super::wire::{self, WatchCreateRequest};
use crate::store::{Change, Error, Result, Revision};

/// Where the reader stands, and what was taken for it.
pub(super) struct Follow {
    pub(super) client: Arc<Client>,
    pub(super) space: Space,
    pub(super) ended: watch::Receiver<bool>,
    pub(super) prefix: String,
    /// Everything up to here was taken.
    pub(super) cursor: Revision,
    pub(super) watching: Option<Watching>,
    pub(super) taken: VecDeque<Change>,
    pub(super) over: bool,
}

impl Follow {
    pub(super) async fn next(mut self) -> Option<(Result<Change>, Self)> {
        loop {
            if let Some(change) = self.taken.pop_front() {
                return Some((Ok(change), self));
            }
            if self.over {
                return None;
            }
            let mut ended = self.ended.clone();
            let filled = tokio::select! {
                filled = self.fill() => filled,
                _ = ended.wait_for(|ended| *ended) => return None,
            };
            if let Err(error) = filled {
                self.over = true;
                return Some((Err(error), self));
            }
        }
    }

    /// Takes one message, over a new connection where the last one ended.
    async fn fill(&mut self) -> Result<()> {
        let mut watching = match self.watching.take() {
            Some(watching) => watching,
            None => {
                let create = create(&self.space, &self.prefix, self.cursor);
                begin(&self.client, create).await.map_err(|fault| Error::Unavailable(fault.text()))?
            }
        };
        let message = match watching.next().await {
            Ok(message) => message,
            Err(Fault::Refused(why)) => return Err(Error::Unavailable(why)),
            Err(fault) => {
                tracing::debug!(why = fault.text(), "a watch is made anew");
                return Ok(());
            }
        };
        if message.compact_revision > 0 {
            let oldest = wire::unsigned(message.compact_revision);
            return Err(Error::Compacted { requested: self.cursor, oldest });
        }
        if message.canceled {
            return Err(Error::Unavailable(message.cancel_reason));
        }
        let before = self.cursor;
        for event in message.events {
            let revision = event.kv.as_ref().map_or(0, |kv| wire::unsigned(kv.mod_revision));
            if revision > before {
                self.cursor = self.cursor.max(revision);
                self.taken.extend(self.space.change(event).map_err(Error::Unavailable)?);
            }
        }
        self.watching = Some(watching);
        Ok(())
    }
}

/// The watch that goes on after `cursor`. It begins one revision earlier, which the reader skips: so etcd says when that
/// revision itself is compacted, from which on the history would not be whole.
pub(super) fn create(space: &Space, prefix: &str, cursor: Revision) -> WatchCreateRequest {
    WatchCreateRequest {
        key: space.key(prefix),
        range_end: space.end(prefix),
        start_revision: wire::signed(cursor.max(1)),
        prev_kv: true,
        fragment: true,
    }
}
