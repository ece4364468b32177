//! Events (core/v1): what happened to an object, for people.
//!
//! Recording never waits: events go through a bounded queue to one task and are dropped (and counted) when it is full.
//! The same event again becomes a higher count on the first one; many similar ones become one combined event; one
//! object may have a burst and then one event in five minutes. These are client-go's rules and numbers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Events that wait for the server at once.
const WAITING_MAX: usize = 1000;
/// Objects and events remembered; the oldest is forgotten.
const REMEMBERED_MAX: usize = 4096;
/// Similar events within [`SIMILAR_WINDOW`] before they are combined.
const SIMILAR_MAX: usize = 10;
const SIMILAR_WINDOW: Duration = Duration::from_secs(600);
/// Events at once about one object.
const BURST: f64 = 25.0;
/// Seconds after which an object may have one more.
const REFILL: f64 = 300.0;
/// Longest wait for the server per event.
const LIMIT: Duration = Duration::from_secs(10);

/// `Normal` or `Warning`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Normal,
    /// Something may be wrong.
    Warning,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

#[derive(Clone, Debug)]
struct Note {
    object: ObjectReference,
    level: Level,
    reason: String,
    message: String,
}

/// Records events of one component. Cloning shares it.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Note>,
    dropped: Arc<AtomicU64>,
}

impl Recorder {
    /// Starts the task that writes events as `component`. It ends when all recorders are dropped.
    #[must_use]
    pub fn start(client: Client, component: &str) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        tokio::spawn(write_all(client, component.to_owned(), receiver));
        Self { sender, dropped: Arc::default() }
    }

    /// Records something about an object.
    pub fn note<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        level: Level,
        reason: &str,
        message: impl Into<String>,
    ) {
        let meta = object.meta();
        let object = ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(K::kind(&()).into_owned()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: None,
        };
        self.note_ref(object, level, reason, message);
    }

    /// Records something about what `object` refers to.
    pub fn note_ref(&self, object: ObjectReference, level: Level, reason: &str, message: impl Into<String>) {
        let note = Note { object, level, reason: reason.to_owned(), message: message.into() };
        if self.sender.try_send(note).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Events that were dropped because the server was too slow.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// A map that forgets its oldest entry beyond a bound.
struct Bounded<K, V> {
    map: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K: Hash + Eq + Clone, V> Bounded<K, V> {
    fn new() -> Self {
        Self { map: HashMap::new(), order: VecDeque::new() }
    }

    fn entry(&mut self, key: &K, make: impl FnOnce() -> V) -> &mut V {
        if !self.map.contains_key(key) {
            if self.order.len() >= REMEMBERED_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.map.remove(&oldest);
            }
            self.order.push_back(key.clone());
        }
        self.map.entry(key.clone()).or_insert_with(make)
    }
}

type Similar = (String, String, String);
type Same = (Similar, String);

struct Correlator {
    similar: Bounded<Similar, (HashSet<String>, Instant)>,
    tokens: Bounded<String, (f64, Instant)>,
    written: Bounded<Same, Option<(String, i32)>>,
}

enum Verdict {
    Drop,
    Create(Same),
    Count(Same, String, i32),
}

impl Correlator {
    fn new() -> Self {
        Self { similar: Bounded::new(), tokens: Bounded::new(), written: Bounded::new() }
    }

    /// Decides about an event, and combines its message with similar ones.
    fn judge(&mut self, note: &mut Note, now: Instant) -> Verdict {
        let object = format!(
            "{}/{}/{}/{}",
            note.object.kind.as_deref().unwrap_or_default(),
            note.object.namespace.as_deref().unwrap_or_default(),
            note.object.name.as_deref().unwrap_or_default(),
            note.object.uid.as_deref().unwrap_or_default()
        );
        let similar = (object.clone(), note.level.as_str().to_owned(), note.reason.clone());
        let (messages, since) = self.similar.entry(&similar, || (HashSet::new(), now));
        if now.duration_since(*since) > SIMILAR_WINDOW {
            messages.clear();
        }
        *since = now;
        let combined = messages.len() >= SIMILAR_MAX && !messages.contains(&note.message);
        let mut same = (similar, note.message.clone());
        if combined {
            same.1 = String::new();
            note.message = format!("(combined from similar events): {}", note.message);
        } else {
            messages.insert(note.message.clone());
        }
        let (left, at) = self.tokens.entry(&object, || (BURST, now));
        *left = (*left + now.duration_since(*at).as_secs_f64() / REFILL).min(BURST);
        *at = now;
        if *left < 1.0 {
            return Verdict::Drop;
        }
        *left -= 1.0;
        match self.written.entry(&same, || None) {
            Some((name, count)) => {
                *count = count.saturating_add(1);
                Verdict::Count(same.clone(), name.clone(), *count)
            }
            None => Verdict::Create(same),
        }
    }

    fn wrote(&mut self, same: &Same, name: String) {
        *self.written.entry(same, || None) = Some((name, 1));
    }
}

async fn write_all(client: Client, component: String, mut receiver: mpsc::Receiver<Note>) {
    let mut correlator = Correlator::new();
    while let Some(mut note) = receiver.recv().await {
        let verdict = correlator.judge(&mut note, Instant::now());
        let namespace = note.object.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let written = tokio::time::timeout(LIMIT, write(&api, &component, &note, &verdict)).await;
        match (written, verdict) {
            (Ok(Ok(Some(name))), Verdict::Create(same) | Verdict::Count(same, ..)) => correlator.wrote(&same, name),
            (Ok(Ok(_)), _) => {}
            (Ok(Err(e)), _) => tracing::debug!(component, error = &e as &dyn std::error::Error, "event not written"),
            (Err(_), _) => tracing::debug!(component, "event not written in time"),
        }
    }
}

/// Writes; answers the name of a new event.
async fn write(
    api: &Api<Event>,
    component: &str,
    note: &Note,
    verdict: &Verdict,
) -> Result<Option<String>, kube::Error> {
    match verdict {
        Verdict::Drop => return Ok(None),
        Verdict::Count(_, name, count) => {
            let patch = serde_json::json!({
                "count": count, "lastTimestamp": super::now(), "message": note.message,
            });
            match api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                // It may have expired; then it is written anew.
                Err(e) if super::worker::not_found(&e) => {}
                other => return other.map(|_| None),
            }
        }
        Verdict::Create(_) => {}
    }
    let name = event_name(note.object.name.as_deref().unwrap_or_default());
    let mut event = Event {
        involved_object: note.object.clone(),
        type_: Some(note.level.as_str().to_owned()),
        reason: Some(note.reason.clone()),
        message: Some(note.message.clone()),
        count: Some(1),
        first_timestamp: Some(super::now()),
        last_timestamp: Some(super::now()),
        source: Some(EventSource { component: Some(component.to_owned()), host: None }),
        reporting_component: Some(component.to_owned()),
        ..Event::default()
    };
    event.metadata.name = Some(name.clone());
    event.metadata.namespace = Some(note.object.namespace.clone().unwrap_or_else(|| "default".into()));
    api.create(&PostParams::default(), &event).await?;
    Ok(Some(name))
}

/// The object's name and the time: unique enough, and near the object when sorted.
#[must_use]
pub fn event_name(object: &str) -> String {
    let nanos = k8s_openapi::jiff::Timestamp::now().as_nanosecond();
    format!("{object}.{nanos:x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(message: &str) -> Note {
        let object = ObjectReference { name: Some("p".into()), ..ObjectReference::default() };
        Note { object, level: Level::Normal, reason: "R".into(), message: message.into() }
    }

    #[test]
    fn same_is_counted_similar_is_combined_flood_is_dropped() {
        let mut c = Correlator::new();
        let now = Instant::now();
        let Verdict::Create(same) = c.judge(&mut note("a"), now) else { panic!("first") };
        c.wrote(&same, "n".into());
        assert!(matches!(c.judge(&mut note("a"), now), Verdict::Count(_, n, 2) if n == "n"));
        for i in 0..9 {
            let mut n = note(&i.to_string());
            c.judge(&mut n, now);
            assert_eq!(n.message, i.to_string());
        }
        let mut n = note("eleventh");
        c.judge(&mut n, now);
        assert_eq!(n.message, "(combined from similar events): eleventh");
        let mut dropped = 0;
        for _ in 0..30 {
            if matches!(c.judge(&mut note("a"), now), Verdict::Drop) {
                dropped += 1;
            }
        }
        assert_eq!(dropped, 30 - (25 - 12));
        let later = now + Duration::from_secs(300);
        assert!(!matches!(c.judge(&mut note("a"), later), Verdict::Drop));
    }
}
