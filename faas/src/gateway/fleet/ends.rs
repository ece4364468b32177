//! Instances that are of no use any more.

use std::sync::Arc;
use std::time::Duration;

use super::{Fleet, Live};

/// Requests in a row without an answer in time, after which an instance that takes several at a time is taken for stuck.
const STUCK: u32 = 3;
/// Whoever takes no connection has mostly ended; so long it may take until that, and why, is told.
const TOLD: Duration = Duration::from_secs(3);

impl Fleet {
    /// An instance did not answer in time, or did. One that is stuck is replaced.
    pub fn answered(self: &Arc<Self>, live: &Arc<Live>, in_time: bool) {
        let stuck = {
            let mut unanswered = live.unanswered.lock();
            *unanswered = if in_time { 0 } else { *unanswered + 1 };
            *unanswered >= if self.limits.concurrency == 1 { 1 } else { STUCK }
        };
        if stuck {
            self.discard(live, "it does not answer");
        }
    }

    /// An instance did not answer in time. Where its code keeps the whole of it busy it answers nobody else either, and is replaced
    /// at once.
    pub async fn late(self: &Arc<Self>, live: &Arc<Live>) {
        self.answered(live, false);
        if self.ours && !live.responds().await {
            self.discard(live, "it does not answer");
        }
    }

    /// An instance is of no use any more: nobody is sent there, and it is ended.
    pub fn discard(self: &Arc<Self>, live: &Arc<Live>, why: &str) {
        if self.lost(&live.instance.name, why) {
            self.stop(live);
        }
    }

    /// An instance is gone. Whether it was known.
    pub fn lost(self: &Arc<Self>, name: &str, why: &str) -> bool {
        let found = {
            let mut s = self.state.lock();
            let refusing =
                s.refusing.iter().position(|known| known == name).map(|i| s.refusing.swap_remove(i)).is_some();
            let found = s.slots.iter().position(|slot| slot.live.instance.name == name);
            if let Some(i) = found {
                s.slots.remove(i);
                self.grow(&mut s);
            }
            found.is_some() || refusing
        };
        if found {
            tracing::info!(revision = %self.name, instance = name, why, "an instance is gone");
            self.context.changed(&self.function);
        }
        found
    }

    /// An instance takes no connection. Nobody is sent there any more; that it ended, and why, is told by its class within a moment,
    /// or else it is ended.
    pub fn refused(self: &Arc<Self>, live: &Arc<Live>, why: &str) {
        let name = &live.instance.name;
        {
            let mut s = self.state.lock();
            let Some(i) = s.slots.iter().position(|slot| slot.live.instance.name == *name) else { return };
            s.slots.remove(i);
            s.refusing.push(name.clone());
            self.grow(&mut s);
        }
        tracing::info!(revision = %self.name, instance = name, why, "an instance takes no connection");
        self.context.changed(&self.function);
        let (fleet, live) = (Arc::clone(self), Arc::clone(live));
        tokio::spawn(async move {
            tokio::time::sleep(TOLD).await;
            let mut s = fleet.state.lock();
            let known = s.refusing.iter().position(|known| *known == live.instance.name);
            let known = known.map(|i| s.refusing.swap_remove(i)).is_some();
            drop(s);
            if known {
                fleet.stop(&live);
            }
        });
    }
}
