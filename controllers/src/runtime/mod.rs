//! What every controller stands on: informers, queues, workers, expectations, events, leader election.

pub mod definitions;
pub mod events;
pub mod expectations;
pub mod informer;
pub mod leader;
pub mod queue;
pub mod select;
pub mod worker;
pub mod written;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::Resource;

/// Now, in whole seconds: finer times are cut by the server.
#[must_use]
pub fn now() -> Time {
    Time(whole(k8s_openapi::jiff::Timestamp::now()))
}

fn whole(t: k8s_openapi::jiff::Timestamp) -> k8s_openapi::jiff::Timestamp {
    k8s_openapi::jiff::Timestamp::from_second(t.as_second()).unwrap_or(t)
}

/// Seconds since `t`; negative when it lies ahead.
#[must_use]
pub fn seconds_since(t: &Time) -> f64 {
    k8s_openapi::jiff::Timestamp::now().duration_since(t.0).as_secs_f64()
}

/// A reference that makes `owner` the controller of a dependent.
#[must_use]
pub fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
