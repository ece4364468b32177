//! Audit: who asked for what, when, and what came of it (`audit.k8s.io/v1` Event), as a policy says.
//!
//! A request's [`Record`] goes with it through the gates and is written at its stages. Without a policy there is none and
//! requests pay nothing. Admission adds what it has to say by [`annotate`].
//!
//! Limits: the log backend only. A connection that is taken over (exec, port-forward) is complete when it is taken over.
//! Objects of more than [`OBJECT_MAX`] bytes are left out. Requests whose identity is refused are recorded without one.

mod log;
mod policy;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::HeaderMap;
use http::header::{CONTENT_TYPE, USER_AGENT};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_core::codec;

use crate::auth::User;
use crate::body::Body;
use crate::subresources::reviews::user_info;
pub use log::LogConfig;
pub use policy::{About, Decision, Level, Policy, PolicyError, Stage};

/// Objects beyond this size are not recorded.
pub const OBJECT_MAX: usize = 4 << 20;

tokio::task_local! {
    /// The record of the request that this task answers.
    static CURRENT: Option<Arc<Record>>;
}

/// Notes something on the record of the request that is being answered, if there is one.
pub fn annotate(key: impl Into<String>, value: impl Into<String>) {
    let _ = CURRENT.try_with(|current| {
        if let Some(record) = current {
            record.annotate(key, value);
        }
    });
}

/// The address that a request came from.
#[derive(Clone, Copy, Debug)]
pub struct From(pub IpAddr);

/// The policy and the log.
#[derive(Debug)]
pub struct Audit {
    policy: Policy,
    log: log::Log,
}

impl Audit {
    /// Opens the log.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(policy: Policy, config: LogConfig) -> std::io::Result<Self> {
        Ok(Self { policy, log: log::Log::open(config)? })
    }

    /// The counters, as text.
    pub fn render(&self, out: &mut String) {
        let (written, lost) =
            (self.log.counts.written.load(Ordering::Relaxed), self.log.counts.lost.load(Ordering::Relaxed));
        for (name, help, value) in [
            (
                "apiserver_audit_event_total",
                "Counter of audit events generated and sent to the audit backend.",
                written,
            ),
            ("apiserver_audit_error_total", "Counter of audit events that failed to be audited properly.", lost),
        ] {
            let plugin = if name.contains("error") { "{plugin=\"log\"}" } else { "" };
            let _ = writeln!(out, "# HELP {name} [ALPHA] {help}\n# TYPE {name} counter\n{name}{plugin} {value}");
        }
    }
}

/// What is known of a request so far.
#[derive(Debug, Default)]
struct Facts {
    decision: Decision,
    about: About,
    user: Option<User>,
    impersonated: Option<User>,
    request: Option<Value>,
    response: Option<Value>,
    status: Option<Value>,
    annotations: BTreeMap<String, String>,
}

/// A request on its way.
#[derive(Debug)]
pub struct Record {
    audit: Arc<Audit>,
    id: String,
    uri: String,
    agent: String,
    from: Option<IpAddr>,
    received: Timestamp,
    facts: Mutex<Facts>,
}

/// An object in any of the encodings of the API; `None` for what is none.
fn object(bytes: &[u8], content_type: &str) -> Option<Value> {
    if bytes.is_empty() || bytes.len() > OBJECT_MAX {
        return None;
    }
    let content_type = content_type.split(';').next().unwrap_or_default().trim();
    if content_type.contains("protobuf") {
        let shape = |api_version: &str, kind: &str| {
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            skiff_core::schema::kind(group, version, kind)
        };
        return codec::decode_proto(bytes, shape).ok();
    }
    if content_type.contains("yaml") {
        return codec::parse_yaml(bytes).ok().map(|p| p.value);
    }
    serde_json::from_slice(bytes).ok()
}

/// Takes managedFields out of an object, or of the objects of a list.
fn without_managed_fields(value: &mut Value) {
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
    value.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(without_managed_fields);
}

/// The part of an answer that says how it went.
fn outcome(code: u16, body: Option<&Value>) -> Value {
    let mut status = json!({"metadata": {}});
    if let Some(body) = body.filter(|b| b["kind"] == "Status" && b["apiVersion"] == "v1") {
        for key in ["status", "message", "reason", "details"] {
            if let Some(value) = body.get(key) {
                status[key] = value.clone();
            }
        }
    }
    status["code"] = code.into();
    status
}

impl Record {
    /// A request that just came, if anything is recorded here.
    #[must_use]
    pub(crate) fn begin(audit: Option<&Arc<Audit>>, id: &str, parts: &http::request::Parts) -> Option<Arc<Self>> {
        let text = |h: &HeaderMap| h.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        Some(Arc::new(Self {
            audit: Arc::clone(audit?),
            id: id.to_owned(),
            uri: parts.uri.path_and_query().map_or_else(|| parts.uri.path().to_owned(), |p| p.as_str().to_owned()),
            agent: text(&parts.headers).chars().take(1024).collect(),
            from: parts.extensions.get::<From>().map(|f| f.0),
            received: Timestamp::now(),
            facts: Mutex::default(),
        }))
    }

    /// Runs `work` so that [`annotate`] finds this record.
    pub(crate) async fn scope<F: Future>(record: Option<Arc<Self>>, work: F) -> F::Output {
        match record {
            None => work.await,
            some => CURRENT.scope(some, work).await,
        }
    }

    /// It is known who asks for what. The policy decides now.
    pub(crate) async fn received(&self, user: Option<&User>, about: About) {
        let nobody = User::default();
        let decision = self.audit.policy.decide(user.unwrap_or(&nobody), &about);
        {
            let mut facts = self.facts.lock();
            facts.decision = decision;
            facts.about = about;
            facts.user = user.cloned();
        }
        self.write(Stage::RequestReceived).await;
    }

    /// It acts as somebody else.
    pub(crate) fn impersonates(&self, user: &User) {
        let mut facts = self.facts.lock();
        if facts.user.as_ref() != Some(user) {
            facts.impersonated = Some(user.clone());
        }
    }

    /// Notes something.
    pub(crate) fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        // What was said first stays, as upstream has it.
        self.facts.lock().annotations.entry(key.into()).or_insert_with(|| value.into());
    }

    /// What authorisation said.
    pub(crate) fn decided(&self, decision: &Result<String, skiff_core::status::Status>) {
        let (word, reason) = match decision {
            Ok(reason) => ("allow", reason.as_str()),
            Err(_) => ("forbid", ""),
        };
        self.annotate("authorization.k8s.io/decision", word);
        self.annotate("authorization.k8s.io/reason", reason);
    }

    /// Its body.
    pub(crate) fn body(&self, bytes: &Bytes, headers: &HeaderMap) {
        if self.facts.lock().decision.level < Level::Request {
            return;
        }
        let content_type = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let value = object(bytes, content_type);
        self.facts.lock().request = value;
    }

    fn answered(&self, code: u16, bytes: &[u8], content_type: &str) {
        let level = self.facts.lock().decision.level;
        if level == Level::None {
            return;
        }
        let value = (code >= 400 || level == Level::RequestResponse).then(|| object(bytes, content_type)).flatten();
        let mut facts = self.facts.lock();
        facts.status = Some(outcome(code, value.as_ref()));
        facts.response = value.filter(|_| level == Level::RequestResponse);
    }

    /// Its answer, which is recorded when it was sent. `long` answers are recorded when they begin too.
    pub(crate) async fn answer(self: Arc<Self>, response: http::Response<Body>, long: bool) -> http::Response<Body> {
        let code = response.status().as_u16();
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let content_type = content_type.to_owned();
        if let Body::Full(bytes) = response.body() {
            self.answered(code, bytes.as_deref().unwrap_or_default(), &content_type);
            self.write(Stage::ResponseComplete).await;
            return response;
        }
        self.answered(code, &[], "");
        if long {
            self.write(Stage::ResponseStarted).await;
        }
        let keep = !long && self.facts.lock().decision.level == Level::RequestResponse;
        let mut end = End { record: self, code, content_type, seen: keep.then(BytesMut::new) };
        let (parts, body) = response.into_parts();
        let body = match body {
            Body::Stream(s) => Body::stream(s.inspect(move |piece| end.saw(piece))),
            Body::Fallible(s) => Body::Fallible(
                s.inspect(move |piece| {
                    if let Ok(piece) = piece {
                        end.saw(piece);
                    }
                })
                .boxed(),
            ),
            full @ Body::Full(_) => full,
        };
        http::Response::from_parts(parts, body)
    }

    /// The handler panicked.
    pub(crate) async fn panicked(&self) {
        self.facts.lock().status = Some(outcome(500, None));
        self.write(Stage::Panic).await;
    }

    async fn write(&self, stage: Stage) {
        if let Some(line) = self.line(stage) {
            self.audit.log.put(line).await;
        }
    }

    /// The event of a stage, unless the policy leaves it out.
    fn line(&self, stage: Stage) -> Option<Vec<u8>> {
        let facts = self.facts.lock();
        let level = facts.decision.level;
        if level == Level::None || facts.decision.omit.contains(&stage) {
            return None;
        }
        let about = &facts.about;
        let mut event = json!({"kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": level, "auditID": self.id, "stage": stage,
            "requestURI": self.uri, "verb": about.verb, "user": facts.user.as_ref().map_or_else(|| json!({}), user_info)});
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                event[key] = value;
            }
        };
        set("impersonatedUser", facts.impersonated.as_ref().map(user_info));
        set("sourceIPs", self.from.map(|ip| json!([ip])));
        set("userAgent", Some(self.agent.as_str()).filter(|a| !a.is_empty()).map(Into::into));
        if !about.resource.is_empty() {
            let fields = [
                ("resource", &about.resource),
                ("namespace", &about.namespace),
                ("name", &about.name),
                ("apiGroup", &about.group),
                ("apiVersion", &about.version),
                ("subresource", &about.subresource),
            ];
            let named = fields.into_iter().filter(|(_, v)| !v.is_empty());
            set("objectRef", Some(Value::Object(named.map(|(k, v)| (k.to_owned(), v.as_str().into())).collect())));
        }
        set("responseStatus", facts.status.clone());
        let shown = |value: &Option<Value>| {
            let mut value = value.clone()?;
            if facts.decision.omit_managed_fields {
                without_managed_fields(&mut value);
            }
            Some(value)
        };
        if stage != Stage::RequestReceived {
            set("requestObject", shown(&facts.request));
            set("responseObject", shown(&facts.response));
        }
        set("requestReceivedTimestamp", Some(micros(self.received).into()));
        set("stageTimestamp", Some(micros(Timestamp::now()).into()));
        set("annotations", Some(json!(facts.annotations)).filter(|_| !facts.annotations.is_empty()));
        let mut line = event.to_string().into_bytes();
        line.push(b'\n');
        Some(line)
    }
}

/// RFC 3339 with microseconds, as MicroTime.
fn micros(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// The end of an answer that comes over time: it is recorded when nothing holds it any more.
struct End {
    record: Arc<Record>,
    code: u16,
    content_type: String,
    seen: Option<BytesMut>,
}

impl End {
    fn saw(&mut self, piece: &Bytes) {
        if let Some(seen) = &mut self.seen {
            if seen.len() + piece.len() > OBJECT_MAX {
                self.seen = None;
            } else {
                seen.extend_from_slice(piece);
            }
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(seen) = &self.seen {
            self.record.answered(self.code, seen, &self.content_type);
        }
        if let Some(line) = self.record.line(Stage::ResponseComplete) {
            self.record.audit.log.try_put(line);
        }
    }
}
