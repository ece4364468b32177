//! Calls by changes of objects: a watch as the function's ServiceAccount, so nothing is told that its owner may not see.
//!
//! It goes on at the version up to which was told. Where the server does not remember that version any more, what is newer in a
//! list is told instead.

use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::{DynamicObject, GroupVersion, Selector};
use kube::{Api, Client, ResourceExt as _, discovery};
use serde_json::json;
use tokio::time::Instant;

use super::{Occasion, Of, PAUSE_MAX};
use crate::api::{TriggerStatus, Watch};
use crate::asynchronous::{plan, record};
use crate::outside::as_account;

/// How often at most the position is written while there are events, and while there are none.
const WRITTEN: Duration = Duration::from_secs(5);
const WRITTEN_IDLE: Duration = Duration::from_secs(600);
/// Objects in one answer of a list.
const PAGE: u32 = 100;
/// Seconds that a watch lasts.
const LASTS: u32 = 290;

/// Kinds that calls and runs make themselves: watching them would never end.
const MADE: [&str; 8] = [
    "FunctionCall",
    "FunctionInstance",
    "WorkflowRun",
    "WorkflowMapRun",
    "WorkflowHistory",
    "WorkflowLog",
    "WorkflowPayload",
    "WorkflowSignal",
];
/// Room for what the owner adds to a body.
const ROOM: usize = 1024;

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{0}")]
    Spec(String),
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Other(#[from] kube::Error),
    /// The version is forgotten.
    #[error("the server does not remember so far")]
    Gone,
}

impl Fault {
    fn of(e: kube::Error) -> Self {
        match e {
            kube::Error::Api(s) if s.code == 410 => Self::Gone,
            kube::Error::Api(s) if matches!(s.code, 401 | 403) => Self::Refused(s.message),
            e => Self::Other(e),
        }
    }
}

pub(super) async fn run(of: &Of, spec: &Watch, known: TriggerStatus) {
    let mut follower = Follower {
        of,
        spec,
        client: as_account(&of.client, &of.namespace, &of.account),
        known,
        written: Instant::now(),
        dirty: false,
    };
    let mut failures = 0;
    loop {
        let before = follower.known.resource_version.clone();
        let Err(fault) = follower.follow().await else {
            failures = 0;
            continue;
        };
        if follower.known.resource_version != before {
            failures = 0;
        }
        failures += 1;
        match &fault {
            // The server ended the watch, or is away: that is no fault of the trigger.
            Fault::Other(e) => tracing::debug!(error = e as &dyn std::error::Error, "a trigger watches again"),
            told => of.fault(&mut follower.known, told.to_string()).await,
        }
        tokio::time::sleep(plan::backoff(Duration::from_millis(500), failures).min(PAUSE_MAX)).await;
    }
}

struct Follower<'a> {
    of: &'a Of,
    spec: &'a Watch,
    client: Client,
    known: TriggerStatus,
    written: Instant,
    dirty: bool,
}

impl Follower<'_> {
    /// Watches until the watch ends.
    async fn follow(&mut self) -> Result<(), Fault> {
        let api = self.api().await?;
        let selector = match &self.spec.selector {
            Some(s) => {
                Selector::try_from(s.clone()).map_err(|e| Fault::Spec(format!("the selector is not valid: {e}")))?
            }
            None => Selector::default(),
        };
        let from = match self.known.resource_version.clone() {
            Some(version) => version,
            None => {
                let now = api
                    .list_metadata(&ListParams::default().labels_from(&selector).limit(1))
                    .await
                    .map_err(Fault::of)?;
                let now = now.metadata.resource_version.unwrap_or_default();
                self.known.resource_version = Some(now.clone());
                self.known.message = None;
                self.write().await;
                now
            }
        };
        let params = WatchParams::default().labels_from(&selector).timeout(LASTS);
        let mut events = match api.watch(&params, &from).await.map_err(Fault::of) {
            Ok(events) => events.boxed(),
            Err(Fault::Gone) => return self.list(&api, &selector, &from).await,
            Err(e) => return Err(e),
        };
        if self.known.message.take().is_some() {
            self.write().await;
        }
        loop {
            let write_at = self.written + WRITTEN;
            let event = tokio::select! {
                event = events.next() => event,
                () = tokio::time::sleep_until(write_at), if self.dirty => {
                    self.write().await;
                    continue;
                }
            };
            let (kind, object) = match event {
                Some(Ok(WatchEvent::Added(o))) => ("ADDED", o),
                Some(Ok(WatchEvent::Modified(o))) => ("MODIFIED", o),
                Some(Ok(WatchEvent::Deleted(o))) => ("DELETED", o),
                Some(Ok(WatchEvent::Bookmark(b))) => {
                    self.known.resource_version = Some(b.metadata.resource_version);
                    self.dirty |= self.written.elapsed() > WRITTEN_IDLE;
                    continue;
                }
                Some(Ok(WatchEvent::Error(s))) if s.code == 410 => return self.list(&api, &selector, &from).await,
                Some(Ok(WatchEvent::Error(s))) => return Err(Fault::Other(kube::Error::Api(s))),
                Some(Err(e)) => return Err(Fault::of(e)),
                None => return Ok(()),
            };
            self.tell(kind, object).await;
        }
    }

    /// Tells what is newer than the version that is forgotten.
    async fn list(&mut self, api: &Api<DynamicObject>, selector: &Selector, from: &str) -> Result<(), Fault> {
        let from: u64 = from.parse().unwrap_or_default();
        let mut params = ListParams::default().labels_from(selector).limit(PAGE);
        // While pages are read the position stays behind all of them.
        let position = self.known.resource_version.clone();
        let last = self.known.last_time.clone().or_else(|| self.known.since.clone());
        loop {
            let page = api.list(&params).await.map_err(Fault::of)?;
            for object in page.items {
                if object.resource_version().and_then(|v| v.parse::<u64>().ok()).is_some_and(|v| v <= from) {
                    continue;
                }
                let kind = if object.creation_timestamp() > last { "ADDED" } else { "MODIFIED" };
                self.tell(kind, object).await;
                self.known.resource_version = position.clone();
            }
            match page.metadata.continue_.filter(|c| !c.is_empty()) {
                Some(more) => params = params.continue_token(&more),
                None => {
                    self.known.resource_version = page.metadata.resource_version;
                    self.write().await;
                    return Ok(());
                }
            }
        }
    }

    async fn api(&self) -> Result<Api<DynamicObject>, Fault> {
        let spec = self.spec;
        let version: GroupVersion =
            spec.api_version.parse().map_err(|_| Fault::Spec(format!("{:?} is no apiVersion", spec.api_version)))?;
        let kind = version.with_kind(&spec.kind);
        if kind.group == crate::api::GROUP && MADE.contains(&kind.kind.as_str()) {
            return Err(Fault::Spec(format!("{} is what each call or run makes: it cannot be watched", spec.kind)));
        }
        let found = discovery::oneshot::pinned_kind(&self.client, &kind).await;
        let (resource, capabilities) = found.map_err(|e| match e {
            kube::Error::Discovery(_) => Fault::Spec(format!("there is no kind {} in {}", spec.kind, spec.api_version)),
            kube::Error::Api(s) if s.code == 404 => {
                Fault::Spec(format!("there is no kind {} in {}", spec.kind, spec.api_version))
            }
            e => Fault::of(e),
        })?;
        let namespace = spec.namespace.as_deref().unwrap_or(&self.of.namespace);
        Ok(match capabilities.scope {
            discovery::Scope::Namespaced => Api::namespaced_with(self.client.clone(), namespace, &resource),
            discovery::Scope::Cluster => Api::all_with(self.client.clone(), &resource),
        })
    }

    async fn tell(&mut self, kind: &str, mut object: DynamicObject) {
        let version = object.resource_version();
        if self.spec.events.is_empty() || self.spec.events.iter().any(|e| e == kind) {
            object.metadata.managed_fields = None;
            let id = format!("{}/{}/{kind}", object.uid().unwrap_or_default(), version.as_deref().unwrap_or_default());
            let subject = match object.namespace() {
                Some(namespace) => format!("{namespace}/{}", object.name_any()),
                None => object.name_any(),
            };
            let now = Timestamp::now();
            let kind_of = format!("object.{}", kind.to_lowercase());
            let occasion = Occasion { id, kind: kind_of, subject: Some(subject), time: now, body: body(kind, &object) };
            self.known.message = self.of.tell(occasion).await.err();
            self.known.last_time = Some(Time(now));
        }
        self.known.resource_version = version;
        self.dirty = true;
        if self.written.elapsed() >= WRITTEN {
            self.write().await;
        }
    }

    async fn write(&mut self) {
        self.of.report(&self.known).await;
        (self.written, self.dirty) = (Instant::now(), false);
    }
}

/// The event as watches have it. Of an object that is too large for a call only the metadata.
fn body(kind: &str, object: &DynamicObject) -> Vec<u8> {
    let whole = json!({"type": kind, "object": object}).to_string();
    if whole.len() <= record::BODY_MAX - ROOM {
        return whole.into_bytes();
    }
    let types = object.types.clone().unwrap_or_default();
    let mut metadata = object.metadata.clone();
    // What kubectl keeps there is the whole object again.
    metadata.annotations = None;
    json!({"type": kind, "truncated": true,
        "object": {"apiVersion": types.api_version, "kind": types.kind, "metadata": metadata}})
    .to_string()
    .into_bytes()
}
