//! The watches that feed the [`World`](super::model::World): policies always, pods and namespaces while there is one.

use std::fmt::Debug;
use std::sync::Arc;

use kube::runtime::watcher;
use kube::{Api, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use super::model::{Listed, World};
use crate::watch::{self, Seen};

/// The world, shared, with the bell that rings after a change. The lock is held for one look or change.
#[derive(Clone, Default)]
pub struct Shared {
    /// The world.
    pub world: Arc<Mutex<World>>,
    /// Told after each change.
    pub changed: Arc<Notify>,
}

/// Keeps the objects of one kind current, for as long as it is polled. `parse` says what is kept of one, if anything;
/// `place` where.
pub async fn follow<K, T>(
    api: Api<K>,
    shared: Shared,
    parse: impl Fn(&K) -> Option<T>,
    place: impl Fn(&mut World) -> &mut Listed<T>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    T: PartialEq,
{
    watch::follow(api, watcher::Config::default(), |seen| {
        let changed = match seen {
            Seen::Listing(id, object) => {
                place(&mut shared.world.lock()).put(id, parse(&object));
                // Told when the list is complete.
                false
            }
            Seen::Listed(left) => {
                place(&mut shared.world.lock()).retain(&left);
                true
            }
            Seen::Put(id, object) => place(&mut shared.world.lock()).put(id, parse(&object)),
            Seen::Gone(id) => place(&mut shared.world.lock()).put(id, None),
        };
        if changed {
            shared.changed.notify_one();
        }
    })
    .await;
}
