//! What nodes use at the moment, for the policies that go by it.
//!
//! From `metrics.k8s.io`, asked for only while such a policy is in force and a pod waits, at most once in [`FRESH`]. A
//! measurement is behind: the pods that came after it are added with what they ask for, else a burst would go to the
//! one node that was idle before.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Client;
use parking_lot::Mutex;
use serde::Deserialize;

use super::cache::Host;
use super::resources::Amounts;

/// How long a reading is used: the node agents measure as often.
const FRESH: Duration = Duration::from_secs(15);
/// Longest wait for one; pods wait meanwhile.
const LIMIT: Duration = Duration::from_secs(1);
const PATH: &str = "/apis/metrics.k8s.io/v1beta1/nodes";

/// What nodes use, by name. A node that is not in it was not measured.
#[derive(Clone, Debug, Default)]
pub struct Usage(HashMap<String, Used>);

#[derive(Clone, Debug)]
struct Used {
    amounts: Amounts,
    /// Pods made since then are not, or not wholly, in the amounts.
    since: Timestamp,
}

#[derive(Deserialize)]
struct List {
    items: Vec<NodeMetrics>,
}

#[derive(Deserialize)]
struct NodeMetrics {
    metadata: Named,
    timestamp: Timestamp,
    window: SignedDuration,
    usage: BTreeMap<String, Quantity>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl Usage {
    /// CPU or memory that a node uses, with the pods that came since; none if it was not measured.
    #[must_use]
    pub fn of(&self, host: &Host, resource: &str) -> Option<i64> {
        let name = host.node.as_ref()?.metadata.name.as_ref()?;
        let used = self.0.get(name)?;
        let late = |p: &super::cache::Placed| {
            p.pod.metadata.creation_timestamp.as_ref().is_none_or(|made| made.0 >= used.since)
        };
        let later: i64 = host.pods.values().filter(|p| late(p)).map(|p| p.weighs.get(resource)).sum();
        Some(used.amounts.get(resource).saturating_add(later))
    }
}

impl From<List> for Usage {
    fn from(list: List) -> Self {
        let one = |n: NodeMetrics| {
            let since = n.timestamp.checked_sub(n.window).unwrap_or(n.timestamp);
            (n.metadata.name, Used { amounts: Amounts::read(Some(&n.usage)), since })
        };
        Self(list.items.into_iter().map(one).collect())
    }
}

/// Asks for readings and keeps the last.
#[derive(Debug, Default)]
pub struct Meter(Mutex<(Option<Instant>, Arc<Usage>)>);

impl Meter {
    /// The last reading.
    #[must_use]
    pub fn last(&self) -> Arc<Usage> {
        Arc::clone(&self.0.lock().1)
    }

    /// Asks anew if the last reading is old. Without an answer nothing is known: then promises count, as before.
    pub async fn refresh(&self, client: &Client) {
        if self.0.lock().0.is_some_and(|at| at.elapsed() < FRESH) {
            return;
        }
        let answer = tokio::time::timeout(LIMIT, read(client)).await;
        let usage = answer.unwrap_or_else(|_| Err(format!("no answer within {} s", LIMIT.as_secs())));
        if let Err(why) = &usage {
            tracing::warn!(why, "what nodes use cannot be read: the policy goes by what their pods ask for");
        }
        *self.0.lock() = (Some(Instant::now()), Arc::new(usage.unwrap_or_default()));
    }
}

async fn read(client: &Client) -> Result<Usage, String> {
    let request = http::Request::get(PATH).body(vec![]).map_err(|e| e.to_string())?;
    client.request::<List>(request).await.map(Usage::from).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::cache::Placed;
    use serde_json::json;

    #[test]
    fn pods_after_the_measurement_are_added() {
        let list = json!({"items": [{"metadata": {"name": "n"}, "timestamp": "2026-01-01T00:01:00Z", "window": "15s",
            "usage": {"cpu": "250000000n", "memory": "1Mi"}}]});
        let usage = Usage::from(serde_json::from_value::<List>(list).unwrap());
        let mut host = Host::of(Arc::new(serde_json::from_value(json!({"metadata": {"name": "n"}})).unwrap()));
        assert_eq!((usage.of(&host, "cpu"), usage.of(&host, "memory")), (Some(250), Some(1 << 20)));
        for (name, made) in [("before", "2026-01-01T00:00:44Z"), ("within", "2026-01-01T00:00:45Z")] {
            let pod = json!({"metadata": {"name": name, "creationTimestamp": made}, "spec": {"containers": [
                {"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
            host.put(name.to_owned(), Placed::new(Arc::new(serde_json::from_value(pod).unwrap())));
        }
        assert_eq!(usage.of(&host, "cpu"), Some(1250));
        let other = Host::of(Arc::new(serde_json::from_value(json!({"metadata": {"name": "m"}})).unwrap()));
        assert_eq!(usage.of(&other, "cpu"), None);
    }
}
