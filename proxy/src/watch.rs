//! The two watches that feed the index: one for Services, one for EndpointSlices.
//!
//! The watcher of kube-rs relists and backs off by itself; what is left is to know what a relist no longer holds.

use std::collections::HashSet;
use std::pin::pin;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service as ApiService;
use k8s_openapi::api::discovery::v1::EndpointSlice as ApiSlice;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use tokio_util::sync::CancellationToken;

use crate::index::Shared;
use crate::model::{Id, Service, Slice};

/// Keeps the Services of the index current until `stop`.
pub async fn services(client: kube::Client, shared: Shared, stop: CancellationToken) {
    let mut listed = HashSet::new();
    let events = watcher::watcher(Api::<ApiService>::all(client), watcher::Config::default());
    let mut events = pin!(events.default_backoff());
    while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
        let changed = match event {
            Ok(Event::Init) => {
                listed.clear();
                false
            }
            Ok(Event::InitApply(object)) => Service::parse(&object).is_some_and(|(id, service)| {
                listed.insert(id.clone());
                shared.index.write().put_service(id, service)
            }),
            Ok(Event::InitDone) => shared.index.write().retain_services(&std::mem::take(&mut listed)),
            Ok(Event::Apply(object)) => {
                Service::parse(&object).is_some_and(|(id, service)| shared.index.write().put_service(id, service))
            }
            Ok(Event::Delete(object)) => {
                Service::parse(&object).is_some_and(|(id, _)| shared.index.write().remove_service(&id))
            }
            Err(error) => {
                tracing::warn!(%error, "watch of services broke; it starts again");
                false
            }
        };
        if changed {
            shared.changed.notify_one();
        }
    }
}

/// Keeps the EndpointSlices of the index current until `stop`. `node` is the name of this node.
pub async fn slices(client: kube::Client, node: String, shared: Shared, stop: CancellationToken) {
    let mut listed = HashSet::new();
    let events = watcher::watcher(Api::<ApiSlice>::all(client), watcher::Config::default());
    let mut events = pin!(events.default_backoff());
    while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
        let changed = match event {
            Ok(Event::Init) => {
                listed.clear();
                false
            }
            Ok(Event::InitApply(object)) => Slice::parse(&object, &node).is_some_and(|(own, service, slice)| {
                listed.insert(own.clone());
                shared.index.write().put_slice(own, service, slice)
            }),
            Ok(Event::InitDone) => shared.index.write().retain_slices(&std::mem::take(&mut listed)),
            Ok(Event::Apply(object)) => match Slice::parse(&object, &node) {
                Some((own, service, slice)) => shared.index.write().put_slice(own, service, slice),
                // It may have lost the label that names its Service.
                None => id(&object.metadata).is_some_and(|id| shared.index.write().remove_slice(&id)),
            },
            Ok(Event::Delete(object)) => id(&object.metadata).is_some_and(|id| shared.index.write().remove_slice(&id)),
            Err(error) => {
                tracing::warn!(%error, "watch of endpoint slices broke; it starts again");
                false
            }
        };
        if changed {
            shared.changed.notify_one();
        }
    }
}

fn id(meta: &kube::api::ObjectMeta) -> Option<Id> {
    Some(Id { namespace: meta.namespace.as_deref()?.into(), name: meta.name.as_deref()?.into() })
}
