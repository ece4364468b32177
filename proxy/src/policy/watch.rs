//! The watches that feed the [`World`](super::model::World): policies always, pods and namespaces while there is one.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use super::model::{Listed, World};
use crate::model::Id;

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
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
    T: PartialEq,
{
    let mut listed = HashSet::new();
    let mut events = pin!(watcher::watcher(api, watcher::Config::default()).default_backoff());
    while let Some(event) = events.next().await {
        let changed = match event {
            Ok(Event::Init) => {
                listed.clear();
                false
            }
            Ok(Event::InitApply(object)) => {
                listed.insert(id(&object));
                place(&mut shared.world.lock()).put(id(&object), parse(&object));
                // Told when the list is complete.
                false
            }
            Ok(Event::InitDone) => {
                let listed = std::mem::take(&mut listed);
                place(&mut shared.world.lock()).retain(&listed);
                true
            }
            Ok(Event::Apply(object)) => place(&mut shared.world.lock()).put(id(&object), parse(&object)),
            Ok(Event::Delete(object)) => place(&mut shared.world.lock()).put(id(&object), None),
            Err(error) => {
                tracing::warn!(%error, kind = std::any::type_name::<K>(), "a watch for network policies broke; it starts again");
                false
            }
        };
        if changed {
            shared.changed.notify_one();
        }
    }
}

fn id(object: &impl ResourceExt) -> Id {
    Id { namespace: object.namespace().unwrap_or_default().into(), name: object.name_any().into() }
}
