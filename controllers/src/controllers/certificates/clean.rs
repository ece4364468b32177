//! Removes signing requests that nobody needs any more.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client};

use super::{certificate, condition};
use crate::runtime::informer::{Informer, key_of};
use crate::runtime::queue::Queue;
use crate::runtime::seconds_since;
use crate::runtime::worker::{Outcome, Reconcile, found};

/// A request is kept this long after a decision, for those who wait for it.
const DECIDED: Duration = Duration::from_secs(3600);
/// A request that nobody decides over is kept this long.
const PENDING: Duration = Duration::from_secs(24 * 3600);

/// The controller.
pub struct Cleaner {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
    queue: Arc<Queue>,
}

/// How long the request may stay; none when its time is over.
fn left(object: &CertificateSigningRequest) -> Option<Duration> {
    let age = |t: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| t.map_or(0.0, seconds_since);
    let rest = |limit: Duration, age: f64| Duration::try_from_secs_f64(limit.as_secs_f64() - age).ok();
    let mut left = Some(PENDING);
    let created = object.metadata.creation_timestamp.as_ref();
    for kind in ["Approved", "Denied", "Failed"] {
        let Some(c) = condition(object, kind) else { continue };
        // Approved and not signed may still be: by a signer of somebody else's.
        if kind == "Approved" && certificate(object).is_none() {
            continue;
        }
        left = left.min(rest(DECIDED, age(c.last_update_time.as_ref().or(created))));
    }
    // `None` is less than any time.
    left.min(rest(PENDING, age(created)))
}

impl Cleaner {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, requests: Informer<CertificateSigningRequest>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        requests.on_change(move |c| {
            if c.new.is_some() {
                q.add(key_of(&**c.latest()));
            }
        });
        Arc::new(Self { client, requests, queue })
    }

    async fn sync(&self, name: &str) -> Outcome {
        let Some(object) = self.requests.get(name) else { return Ok(None) };
        if let Some(left) = left(&object) {
            return Ok(Some(left + Duration::from_secs(1)));
        }
        let exactly = Preconditions { uid: object.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() };
        found(Api::<CertificateSigningRequest>::all(self.client.clone()).delete(name, &params).await)?;
        Ok(None)
    }
}

impl Reconcile for Cleaner {
    fn name(&self) -> &'static str {
        "csrcleaner-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.requests.keys().into_iter().for_each(|k| self.queue.add(k));
    }

    fn workers(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_go_when_their_time_is_over() {
        let ago = |seconds: i64| {
            let at = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds);
            jiff::Timestamp::from_second(at.as_second()).unwrap().to_string()
        };
        let hour = 3600;
        for (created, condition, signed, stays) in [
            (23 * hour, None, false, true),
            (25 * hour, None, false, false),
            (2 * hour, Some(("Approved", hour / 2)), true, true),
            (2 * hour, Some(("Approved", hour + 9)), true, false),
            (2 * hour, Some(("Approved", hour + 9)), false, true),
            (2 * hour, Some(("Denied", hour + 9)), false, false),
            (2 * hour, Some(("Failed", hour + 9)), false, false),
            (25 * hour, Some(("Approved", 1)), false, false),
        ] {
            let conditions: Vec<_> = condition
                .into_iter()
                .map(|(t, age)| json!({"type": t, "status": "True", "lastUpdateTime": ago(age)}))
                .collect();
            let mut object = json!({
                "metadata": {"name": "r", "creationTimestamp": ago(created)},
                "spec": {"request": "", "signerName": "x/y"},
                "status": {"conditions": conditions},
            });
            if signed {
                object["status"]["certificate"] = "eA==".into();
            }
            let object: CertificateSigningRequest = serde_json::from_value(object).unwrap();
            assert_eq!(left(&object).is_some(), stays, "{created} {condition:?} {signed}");
        }
    }
}
