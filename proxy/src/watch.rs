//! Watches: what all of this crate share of them, and those that feed the index: of Services, EndpointSlices and
//! ServiceCIDRs.
//!
//! The watcher of kube-rs relists and backs off by itself; what is left is to know what a relist no longer holds.

use std::collections::HashSet;
use std::fmt::Debug;
use std::time::SystemTime;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service as ApiService;
use k8s_openapi::api::discovery::v1::EndpointSlice as ApiSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::index::Shared;
use crate::metrics::SYNCS;
use crate::model::{Id, Service, Slice, ranges_of};

/// What a watch tells.
#[derive(Debug)]
pub enum Seen<K> {
    /// The object is there, as it is now.
    Put(Id, K),
    /// The object is part of a new list, which is not complete yet.
    Listing(Id, K),
    /// The list is complete: whatever is not in it is gone.
    Listed(HashSet<Id>),
    /// The object is gone.
    Gone(Id),
}

/// Tells what happens to the objects of one kind, for as long as it is polled.
pub async fn follow<K>(api: Api<K>, config: watcher::Config, mut tell: impl FnMut(Seen<K>))
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut listed = HashSet::new();
    let mut events = skiff_client::watch(api, config);
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => {
                let id = id(&object);
                listed.insert(id.clone());
                tell(Seen::Listing(id, object));
            }
            Ok(Event::InitDone) => tell(Seen::Listed(std::mem::take(&mut listed))),
            Ok(Event::Apply(object)) => tell(Seen::Put(id(&object), object)),
            Ok(Event::Delete(object)) => tell(Seen::Gone(id(&object))),
            Err(error) => tracing::warn!(%error, kind = %K::plural(&()), "a watch broke; it starts again"),
        }
    }
}

/// Namespace (empty for what has none) and name of an object.
pub fn id(object: &impl Resource) -> Id {
    let meta = object.meta();
    let text = |part: &Option<String>| part.as_deref().unwrap_or_default().into();
    Id { namespace: text(&meta.namespace), name: text(&meta.name) }
}

/// Keeps the Services of the index current until `stop`.
pub async fn services(client: kube::Client, shared: Shared, stop: CancellationToken) {
    let watch = follow(Api::<ApiService>::all(client), watcher::Config::default(), |seen| {
        let mut index = shared.index.write();
        let changed = match seen {
            Seen::Put(_, object) | Seen::Listing(_, object) => {
                Service::parse(&object).is_some_and(|(id, service)| index.put_service(id, service))
            }
            Seen::Listed(left) => index.retain_services(&left),
            Seen::Gone(id) => index.remove_service(&id),
        };
        drop(index);
        if changed {
            SYNCS.services.inc();
            shared.changed.notify_one();
        }
    });
    stop.run_until_cancelled(watch).await;
}

/// Keeps the EndpointSlices of the index current until `stop`. `node` is the name of this node.
pub async fn slices(client: kube::Client, node: String, shared: Shared, stop: CancellationToken) {
    let watch = follow(Api::<ApiSlice>::all(client), watcher::Config::default(), |seen| {
        // What a list tells is no news.
        let trigger = matches!(seen, Seen::Put(..)).then(|| trigger(&seen));
        let mut index = shared.index.write();
        let changed = match seen {
            Seen::Put(id, object) | Seen::Listing(id, object) => match Slice::parse(&object, &node) {
                Some((own, service, slice)) => index.put_slice(own, service, slice),
                // It may have lost the label that names its Service.
                None => index.remove_slice(&id),
            },
            Seen::Listed(left) => index.retain_slices(&left),
            Seen::Gone(id) => index.remove_slice(&id),
        };
        drop(index);
        if changed {
            SYNCS.endpoints.inc();
            if let Some(at) = trigger {
                shared.triggered(at);
            }
            shared.changed.notify_one();
        }
    });
    stop.run_until_cancelled(watch).await;
}

/// Keeps the ranges of virtual addresses of the index current until `stop`. Nothing waits for them.
pub async fn ranges(client: kube::Client, shared: Shared, stop: CancellationToken) {
    let watch = follow(Api::<ServiceCIDR>::all(client), watcher::Config::default(), |seen| {
        let mut index = shared.index.write();
        let changed = match seen {
            // One that is being deleted counts until it is gone: Services may still have addresses of it.
            Seen::Put(id, object) | Seen::Listing(id, object) => index.put_ranges(id, ranges_of(&object)),
            Seen::Listed(left) => index.retain_ranges(&left),
            Seen::Gone(id) => index.remove_ranges(&id),
        };
        drop(index);
        if changed {
            shared.changed.notify_one();
        }
    });
    stop.run_until_cancelled(watch).await;
}

/// Annotation of a slice with the time of what changed it last.
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What set a change off: as the slice says, else now.
fn trigger(seen: &Seen<ApiSlice>) -> SystemTime {
    let told = match seen {
        Seen::Put(_, slice) => slice.metadata.annotations.as_ref().and_then(|a| a.get(TRIGGER)),
        _ => None,
    };
    told.and_then(|t| t.parse::<k8s_openapi::jiff::Timestamp>().ok()).map_or_else(SystemTime::now, SystemTime::from)
}
