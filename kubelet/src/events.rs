//! Events about pods and the node.
//!
//! Recording never blocks and never fails: an event is a courtesy. Repeats of one event raise its count instead of
//! making a new object, as `kubectl describe` shows it ("x5 over 3m"). Queue and memory of past events are bounded.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use tokio::sync::mpsc;

/// Events waiting to be sent; more are dropped and counted.
const QUEUE: usize = 512;
/// Past events kept for counting repeats.
const REMEMBERED: usize = 1024;
/// Repeats after this long make a new event.
const SAME_FOR: Duration = Duration::from_secs(600);

/// `Normal` or `Warning`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// All is well.
    Normal,
    /// Someone should look.
    Warning,
}

struct Record {
    about: ObjectReference,
    kind: Kind,
    reason: String,
    message: String,
}

/// Sends events in the background. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Record>,
    dropped: Arc<AtomicU64>,
}

impl Recorder {
    /// Starts the sender; it ends when the last recorder is dropped.
    pub fn start(client: kube::Client, host: String) -> Self {
        let (queue, records) = mpsc::channel(QUEUE);
        tokio::spawn(send_all(client, host, records));
        Self { queue, dropped: Arc::default() }
    }

    /// Records an event about a pod, or about one of its containers by its field path.
    pub fn pod(&self, pod: &Pod, field: Option<String>, kind: Kind, reason: &str, message: impl Into<String>) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: field,
        };
        self.record(about, kind, reason, message.into());
    }

    /// Records an event about the node.
    pub fn node(&self, name: &str, kind: Kind, reason: &str, message: impl Into<String>) {
        let about = ObjectReference {
            kind: Some(<Node as k8s_openapi::Resource>::KIND.into()),
            api_version: Some("v1".into()),
            name: Some(name.into()),
            uid: Some(name.into()),
            ..Default::default()
        };
        self.record(about, kind, reason, message.into());
    }

    /// How many events were dropped because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn record(&self, about: ObjectReference, kind: Kind, reason: &str, message: String) {
        let record = Record { about, kind, reason: reason.into(), message };
        if self.queue.try_send(record).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

type Key = (Option<String>, Option<String>, Kind, String, String);

async fn send_all(client: kube::Client, host: String, mut records: mpsc::Receiver<Record>) {
    let mut known: HashMap<Key, (String, i32, Instant)> = HashMap::new();
    let mut serial = rand::random::<u32>();
    while let Some(record) = records.recv().await {
        let namespace = record.about.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let key = (
            record.about.uid.clone(),
            record.about.field_path.clone(),
            record.kind,
            record.reason.clone(),
            record.message.clone(),
        );
        let now = Time(Timestamp::now());
        if let Some((name, count, last)) = known.get_mut(&key)
            && last.elapsed() < SAME_FOR
        {
            let patch = serde_json::json!({"count": *count + 1, "lastTimestamp": now});
            if api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.is_ok() {
                *count += 1;
                *last = Instant::now();
                continue;
            }
        }
        serial = serial.wrapping_add(1);
        let stamp = Timestamp::now().as_nanosecond() as u64 ^ u64::from(serial);
        let name = format!("{}.{stamp:x}", record.about.name.clone().unwrap_or_default());
        let event = Event {
            metadata: ObjectMeta { name: Some(name.clone()), namespace: Some(namespace), ..Default::default() },
            involved_object: record.about,
            type_: Some(if record.kind == Kind::Normal { "Normal" } else { "Warning" }.into()),
            reason: Some(record.reason),
            message: Some(record.message.chars().take(1024).collect()),
            source: Some(EventSource { component: Some("kubelet".into()), host: Some(host.clone()) }),
            reporting_component: Some("kubelet".into()),
            reporting_instance: Some(host.clone()),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            ..Default::default()
        };
        match tokio::time::timeout(Duration::from_secs(10), api.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => {
                if known.len() >= REMEMBERED {
                    known.retain(|_, (_, _, last)| last.elapsed() < SAME_FOR / 2);
                }
                if known.len() < REMEMBERED {
                    known.insert(key, (name, 1, Instant::now()));
                }
            }
            Ok(Err(error)) => tracing::debug!(%error, "event was not taken"),
            Err(_) => tracing::debug!("event was not taken in time"),
        }
    }
}
