//! The gates, in order, and the dispatch behind them.
//!
//! [`handle`] reads as a list: limits, identity, audit, impersonation, priority and fairness, authorisation, the body, the
//! verb. Every request passes here, whether it came over TLS or from a client in the same process.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Limited};
use serde_json::json;
use skiff_core::resources::Verbs;
use skiff_core::status::Status;

use crate::aggregate::{self, Remote};
use crate::audit::{About, Record};
use crate::auth::rbac::Attributes;
use crate::auth::{self, User};
use crate::body::Body;
use crate::deadline;
use crate::discovery;
use crate::flow::{self, Place};
use crate::metrics::Metrics;
use crate::negotiate::{Encoding, Form, OBJECTS, Offer, View, choose, negotiate, produced};
use crate::registry::Kind;
use crate::request::{Query, ResourceRequest, Target, Verb};
use crate::respond::{self, extras};
use crate::server::Inner;
use crate::subresources;
use crate::verbs::write::Part;
use crate::verbs::{Answer, Call, create, delete, get, list, patch, update, watch};

/// Largest request body: 3 MiB, as upstream.
const BODY_MAX: usize = 3 * 1024 * 1024;

/// The identity that the connection proves: a verified client certificate, or an in-process component.
#[derive(Clone, Debug)]
pub struct Peer(pub User);

type Response = http::Response<Body>;

const PLAIN: Form = Form { encoding: Encoding::Json, view: View::Object, pretty: false };

/// Answers one request. Never fails: errors are answers.
pub async fn handle<B>(server: Arc<Inner>, request: http::Request<B>) -> Response
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let begun = Instant::now();
    let method = request.method().clone();
    let audit = audit_id(request.headers());
    let seen = server.metrics.begin(&method);
    let (parts, body) = request.into_parts();
    let record = Record::begin(server.config.audit.as_ref(), &audit, &parts);
    let gzip = parts.headers.get("accept-encoding").and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains("gzip"));
    let body = body.map_err(std::io::Error::other).boxed_unsync();
    let request = http::Request::from_parts(parts, body);
    // A panicking handler costs one answer, not the process.
    let answered = if method.is_safe() {
        let work = pass_boxed(Arc::clone(&server), request, record.as_deref());
        AssertUnwindSafe(Record::scope(record.clone(), work)).catch_unwind().await.ok()
    } else {
        // A write comes to its end though nobody waits for the answer any more: what it has taken on its way would be lost.
        let (server, own) = (Arc::clone(&server), record.clone());
        let work = async move { pass_boxed(server, request, own.as_deref()).await };
        tokio::spawn(Record::scope(record.clone(), work)).await.ok()
    };
    let (mut response, label) = match answered {
        Some((response, label)) => match record {
            None => (response, label),
            Some(record) => (record.answer(response, label.long).await, label),
        },
        None => {
            tracing::error!(%method, audit, "a handler panicked");
            if let Some(record) = record {
                record.panicked().await;
            }
            let s = Status::internal("this request caused apiserver to panic. Look in the logs for details.");
            (respond::status(&s, PLAIN), Label::default())
        }
    };
    if gzip && !label.long {
        response = extras::compress(response);
    }
    if let Ok(v) = HeaderValue::from_str(&audit) {
        response.headers_mut().insert(HeaderName::from_static("audit-id"), v);
    }
    if label.long {
        response = lasting(&server, &label, response);
    }
    server.metrics.end(&seen, &label, response.status().as_u16(), begun.elapsed());
    response
}

/// Counts an answer that goes on for as long as its body lives.
fn lasting(server: &Arc<Inner>, label: &Label, response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let body = match body {
        Body::Stream(s) => {
            let counted = Metrics::last(server, label);
            Body::stream(s.inspect(move |_| {
                let _until_dropped = &counted;
            }))
        }
        other => other,
    };
    http::Response::from_parts(parts, body)
}

/// What metrics call a request.
#[derive(Clone, Debug, Default)]
pub struct Label {
    /// Verb in upper case as upstream labels it.
    pub verb: &'static str,
    /// Resource with subresource.
    pub resource: String,
    /// Group.
    pub group: String,
    /// Version.
    pub version: String,
    /// `resource`, `namespace` or `cluster`: how much the request is about.
    pub scope: &'static str,
    /// Whether the request lasts (watch, exec, log -f).
    pub long: bool,
}

impl Label {
    fn of(target: &ResourceRequest) -> Self {
        Self {
            verb: verb_label(target.verb),
            resource: target.full_resource().into_owned(),
            group: target.group.clone(),
            version: target.version.clone(),
            scope: match target.verb {
                Verb::Create => "resource",
                _ if !target.name.is_empty() => "resource",
                _ if !target.namespace.is_empty() => "namespace",
                _ => "cluster",
            },
            long: target.verb == Verb::Watch,
        }
    }
}

fn audit_id(headers: &HeaderMap) -> String {
    let given = headers.get("audit-id").and_then(|v| v.to_str().ok()).filter(|v| v.len() <= 64 && !v.is_empty());
    given.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned)
}

/// What came, whoever carried it here.
type Received = http::Request<UnsyncBoxBody<Bytes, std::io::Error>>;

/// One compiled copy for all carriers: everything that a request may reach is below it.
fn pass_boxed(server: Arc<Inner>, request: Received, record: Option<&Record>) -> BoxFuture<'_, (Response, Label)> {
    Box::pin(async move {
        let mut place = None;
        let (response, label) = pass(Arc::clone(&server), request, record, &mut place).await;
        let response = match place {
            Some(place) => place.mark(&server, response, label.long),
            None => response,
        };
        (response, label)
    })
}

async fn pass(
    server: Arc<Inner>,
    mut request: Received,
    record: Option<&Record>,
    place: &mut Option<Place>,
) -> (Response, Label) {
    let upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    let (mut parts, body) = request.into_parts();
    let uri = parts.uri.clone();
    let raw_query = uri.query().unwrap_or_default();
    let query = Query::parse(raw_query);
    let pretty = pretty(&query, &parts.headers);
    let accept = parts.headers.get("accept").and_then(|v| v.to_str().ok());
    let form = |offer: Offer| negotiate(accept, pretty, offer);
    let plain = form(Offer::OBJECT).unwrap_or(Form { pretty, ..PLAIN });
    let path = parts.uri.path().to_owned();
    let peer = parts.extensions.get::<Peer>().cloned();
    let authenticated = authenticate(&server, &parts.headers, peer);
    let target = Target::parse(&parts.method, &path, &query);
    let action = match &target {
        Target::Resource(t) => attributes(t, &query),
        Target::Path => {
            Attributes { verb: parts.method.as_str().to_lowercase(), path: path.clone(), ..Attributes::default() }
        }
    };
    if let Some(record) = record {
        record.received(authenticated.as_ref().ok(), about(&target, &action, &path)).await;
    }
    let limit = match deadline::time_limit(&server, &target, &query) {
        Ok(limit) => limit,
        Err(s) => return (respond::status(&s, plain), Label::default()),
    };
    let user = match authenticated.and_then(|u| auth::impersonation::impersonate(&server, &parts.headers, u, &action)) {
        Ok(u) => u,
        Err(s) => return (respond::status(&s, plain), Label::default()),
    };
    if let Some(record) = record {
        record.impersonates(&user);
    }
    auth::impersonation::forget(&mut parts.headers);
    let mut label = match &target {
        Target::Resource(t) if !path.starts_with("//") => Label::of(t),
        _ => Label { verb: "GET", ..Label::default() },
    };
    if let Err(later) = flow::admit(&server, &user, &action, &target, &query, place).await {
        return (later, label);
    }
    let authorise = || {
        let decision = server.authorise(&user, &action);
        if let Some(record) = record {
            record.decided(&decision);
        }
        decision
    };
    let path_and_query = parts.uri.path_and_query().map_or_else(|| path.clone(), |p| p.as_str().to_owned());
    let target = match target {
        Target::Resource(t) if !path.starts_with("//") => t,
        _ => {
            if let Some(remote) = whole_version(&server, &parts.method, &path) {
                if let Err(s) = authorise() {
                    return (respond::status(&s, plain), label);
                }
                let (headers, body, warnings) = (parts.headers, Bytes::new(), vec![]);
                let target = ResourceRequest::default();
                let (emptied, version) = (vec![], parts.version);
                let mut call = Call { user, target, query, headers, body, warnings, emptied, upgrade, version };
                let work = aggregate::forward(&server, &remote, &parts.method, path_and_query, &mut call);
                let r = tokio::time::timeout(limit, work).await;
                return (r.unwrap_or_else(|_| respond::status(&deadline::overdue(), plain)), label);
            }
            let r = discovery::handle(&server, &parts.method, &path, &query, &parts.headers, &user, raw_query).await;
            return (r.unwrap_or_else(|s| respond::status(&s, plain)), label);
        }
    };
    if let Err(s) = authorise() {
        return (respond::status(&s, plain), label);
    }
    let remote = server.registry.load().remote(&target.group, &target.version).cloned();
    let streaming = remote.is_some() || subresources::takes_stream(&target);
    let collected = if streaming && upgrade.is_some() && parts.headers.contains_key("upgrade") {
        Ok(Bytes::new())
    } else {
        match tokio::time::timeout(server.config.request_timeout, Limited::new(body, BODY_MAX).collect()).await {
            Ok(Ok(c)) => Ok(c.to_bytes()),
            Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
                Err(Status::too_large(format!("Request entity too large: limit is {BODY_MAX}")))
            }
            Ok(Err(e)) => Err(Status::bad_request(format!("the body could not be read: {e}"))),
            Err(_) => Err(Status::timeout("the body did not arrive in time", 0)),
        }
    };
    let body = match collected {
        Ok(b) => b,
        Err(s) => return (respond::status(&s, plain), label),
    };
    if let Some(record) = record {
        record.body(&body, &parts.headers);
    }
    let (headers, version) = (parts.headers, parts.version);
    let (warnings, emptied) = (vec![], vec![]);
    let mut call = Call { user, target, query, headers, body, warnings, emptied, upgrade, version };
    let method = parts.method;
    let upgrades = remote.is_some() && call.headers.contains_key("upgrade");
    let long = label.long || upgrades || subresources::long_running(&call.target, &call.query);
    label.long = long;
    let work = async {
        match &remote {
            Some(remote) => Ok(aggregate::forward(&server, remote, &method, path_and_query, &mut call).await),
            None => dispatch(&server, &method, &mut call, raw_query, pretty).await,
        }
    };
    let outcome = if long {
        work.await
    } else {
        match tokio::time::timeout(limit, work).await {
            Ok(o) => o,
            Err(_) => Err(deadline::overdue()),
        }
    };
    let mut response = outcome.unwrap_or_else(|s| {
        if s.code >= 500 && s.reason == "InternalError" {
            tracing::error!(path, message = %s.message, "internal error");
        }
        respond::status(&s, plain)
    });
    extras::warn(&mut response, &call.warnings);
    (response, label)
}

/// What a request is about, for the audit policy.
fn about(target: &Target, action: &Attributes, path: &str) -> About {
    let path = path.to_owned();
    match target {
        Target::Path => About { verb: action.verb.clone(), path, ..About::default() },
        Target::Resource(t) => About {
            verb: action.verb.clone(),
            group: t.group.clone(),
            version: t.version.clone(),
            resource: t.resource.clone(),
            subresource: t.subresource.clone(),
            namespace: t.namespace.clone(),
            name: action.name.clone(),
            path,
        },
    }
}

/// The other server that `/apis/GROUP/VERSION` describes.
fn whole_version(server: &Inner, method: &Method, path: &str) -> Option<Arc<Remote>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    let (group, version) = path.strip_prefix("/apis/")?.trim_end_matches('/').split_once('/')?;
    server.registry.load().remote(group, version).cloned()
}

fn verb_label(v: Verb) -> &'static str {
    match v {
        Verb::Get => "GET",
        Verb::List => "LIST",
        Verb::Watch => "WATCH",
        Verb::Create => "POST",
        Verb::Update => "PUT",
        Verb::Patch => "PATCH",
        Verb::Delete => "DELETE",
        Verb::DeleteCollection => "DELETECOLLECTION",
        Verb::Options => "OPTIONS",
    }
}

/// Indentation for people: `?pretty=true`, or a browser or curl without a word about it.
fn pretty(query: &Query, headers: &HeaderMap) -> bool {
    if query.get("pretty").is_some() {
        return query.flag("pretty");
    }
    let agent = headers.get("user-agent").and_then(|v| v.to_str().ok()).unwrap_or_default();
    ["curl", "Wget", "Mozilla"].iter().any(|p| agent.starts_with(p))
}

/// Who is asking: a bearer token, the connection's certificate, or nobody. A bad token is refused, never ignored.
fn authenticate(server: &Inner, headers: &HeaderMap, peer: Option<Peer>) -> Result<User, Status> {
    let bearer = headers
        .get(AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, t)| t.trim());
    if let Some(Peer(user)) = peer {
        return Ok(user);
    }
    match bearer {
        Some("") => Ok(User::anonymous()),
        Some(token) if auth::bootstrap::split(token).is_some() => {
            auth::bootstrap::user(server, token).ok_or_else(Status::unauthorized)
        }
        Some(token) => {
            let claims = server.verify_token(token).ok_or_else(Status::unauthorized)?;
            if !claims.aud.iter().any(|a| a == server.tokens.issuer()) {
                return Err(Status::unauthorized());
            }
            Ok(subresources::token::user_of(&claims))
        }
        None => Ok(User::anonymous()),
    }
}

fn attributes(t: &ResourceRequest, query: &Query) -> Attributes {
    Attributes {
        verb: t.verb.as_str().into(),
        group: t.group.clone(),
        version: t.version.clone(),
        resource: t.full_resource().into_owned(),
        name: t.authorised_name(query).into_owned(),
        namespace: t.namespace.clone(),
        path: String::new(),
    }
}

/// Writes that may create under another verb need the right to create as well.
///
/// # Errors
/// 403.
pub fn authorise_create(server: &Inner, call: &Call) -> Result<(), Status> {
    let mut a = attributes(&call.target, &call.query);
    a.verb = "create".into();
    server.authorise(&call.user, &a).map(drop)
}

async fn dispatch(
    server: &Arc<Inner>,
    method: &Method,
    call: &mut Call,
    raw_query: &str,
    pretty: bool,
) -> Result<Response, Status> {
    if *method == Method::HEAD {
        // Rights are those of GET; but no route has it, a proxy's apart.
        call.target.verb = Verb::Options;
    }
    let t = call.target.clone();
    let registry = server.registry.load_full();
    if !registry.has_version(&t.group, &t.version) {
        // A group that is served answers for its versions; what is no group at all is no API path.
        if registry.has_group(&t.group) && !registry.any_untyped(&t.group, "") {
            return Err(Status::no_such_path());
        }
        return Ok(discovery::not_found_text());
    }
    let Some(kind) = registry.get(&t.group, &t.version, &t.resource).cloned() else {
        // Where only definitions make kinds, nothing answers for what they did not make.
        if registry.any_untyped(&t.group, &t.version) {
            return Ok(discovery::not_found_text());
        }
        return Err(Status::no_such_path());
    };
    if kind.strategy.traits().untyped && check_scope(&kind, &t).is_err() {
        let all = t.verb == Verb::DeleteCollection;
        return if all { Err(Status::method_not_allowed()) } else { Ok(discovery::not_found_text()) };
    }
    check_scope(&kind, &t)?;
    if let Some(text) = kind.strategy.deprecation() {
        call.warnings.push(text.to_owned());
    }
    if t.name.contains('/') || (kind.collection.is_none() && !t.name.is_empty() && !kind.resource.verbs.has(Verbs::GET))
    {
        return Err(Status::no_such_path());
    }
    if !t.subresource.is_empty() {
        return subresource(server, &kind, method, call, raw_query, pretty).await;
    }
    let virtual_kind = kind.collection.is_none();
    let allowed = |v: Verbs| kind.resource.verbs.has(v);
    let permitted = match t.verb {
        Verb::Get => allowed(Verbs::GET),
        Verb::List => allowed(Verbs::LIST),
        Verb::Watch => allowed(Verbs::WATCH),
        Verb::Create => allowed(Verbs::CREATE) && t.name.is_empty(),
        Verb::Update => allowed(Verbs::UPDATE) && !t.name.is_empty(),
        Verb::Patch => allowed(Verbs::PATCH) && !t.name.is_empty(),
        Verb::Delete => allowed(Verbs::DELETE),
        Verb::DeleteCollection => allowed(Verbs::DELETE_COLLECTION),
        Verb::Options => false,
    };
    if !permitted {
        return Err(Status::method_not_allowed());
    }
    routed(&kind, call)?;
    let accept = call.header("accept").to_owned();
    let deprecated = match (t.group.as_str(), t.resource.as_str()) {
        ("", "endpoints") => Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
        ("", "componentstatuses") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        _ => None,
    };
    call.warnings.extend(deprecated.map(str::to_owned));
    let offer = if virtual_kind {
        Offer::OBJECT
    } else {
        Offer { protobuf: !kind.strategy.traits().untyped, ..Offer::BUILT_IN }
    };
    let mut form = negotiate(Some(&accept), pretty, offer)?;
    if t.verb == Verb::Watch {
        form = negotiate(Some(&accept), pretty, Offer { yaml: false, stream: true, ..offer })?;
    }
    if matches!(t.verb, Verb::Get | Verb::List)
        && let Some(computed) = kind.hooks.computed(server, call)
    {
        let value = computed.await?;
        return respond::write(Answer::Value { code: 200, value, model: None }, form, call);
    }
    let answer = match t.verb {
        Verb::Get => get::get(&kind, call).await?,
        Verb::List => {
            let (listing, selection) = list::list(&kind, call).await?;
            let listing = list::present(server, &kind, listing, &selection).await?;
            respond::list(&kind, listing, form, call)?
        }
        Verb::Watch => watch::watch(server, &kind, call, form).await?,
        Verb::Create => create::create(server, &kind, call).await?,
        Verb::Update => update::update(server, &kind, call, Part::Main).await?,
        Verb::Patch => patch::patch(server, &kind, call, Part::Main).await?,
        Verb::Delete => delete::delete(server, &kind, call).await?,
        Verb::Options => return Err(Status::method_not_allowed()),
        Verb::DeleteCollection => {
            let items = delete::delete_collection(server, &kind, call).await?;
            let revision = kind.stored()?.cache.revision();
            let mut m = json!({"resourceVersion": revision.to_string()});
            if kind.strategy.traits().untyped {
                m["continue"] = "".into();
            }
            respond::items(&kind, items, m, form, call)?
        }
    };
    respond::write(Kind::present_answer(server, answer).await?, form, call)
}

/// What upstream's router looks at once it has found a resource and a method: the body's type where patches are taken, then
/// what the client accepts; and after it the name.
fn routed(kind: &Kind, call: &Call) -> Result<(), Status> {
    let t = &call.target;
    if !subresources::takes_stream(t) && !kind.strategy.traits().untyped {
        if t.verb == Verb::Patch {
            patch::routable(call)?;
        }
        let plain: &[&str] = if t.subresource == "log" { &["text/plain"] } else { &[] };
        produced(call.header("accept"), &[plain, OBJECTS].concat())?;
    }
    if let Some(why) = skiff_core::names::is_path_segment(&t.name).first() {
        let q = skiff_core::invalid::quote_str(&t.name);
        return Err(Status::bad_request(format!("Name parameter invalid: {q}: {why}")));
    }
    Ok(())
}

/// A namespaced path for a cluster-scoped kind is nothing; writes to a namespaced kind without namespace are no route.
fn check_scope(kind: &Kind, t: &ResourceRequest) -> Result<(), Status> {
    let namespaced = kind.resource.namespaced;
    let is_namespace = t.group.is_empty() && t.resource == "namespaces";
    if !namespaced && !t.namespace.is_empty() && !is_namespace {
        return Err(Status::no_such_path());
    }
    if namespaced && t.namespace.is_empty() && kind.collection.is_some() {
        if !t.name.is_empty() {
            return Err(Status::no_such_path());
        }
        if t.verb.mutates() {
            return Err(Status::method_not_allowed());
        }
    }
    Ok(())
}

async fn subresource(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    method: &Method,
    call: &mut Call,
    raw_query: &str,
    pretty: bool,
) -> Result<Response, Status> {
    let sub = kind.resource.subresource(&call.target.subresource).cloned().ok_or_else(|| {
        if kind.strategy.traits().untyped { kind.not_found(&call.target.name) } else { Status::no_such_path() }
    })?;
    if !call.target.rest.is_empty() && sub.name != "proxy" {
        return Err(Status::no_such_path());
    }
    let verb = if call.target.verb == Verb::DeleteCollection { Verb::Delete } else { call.target.verb };
    if sub.name != "proxy" && !sub.verbs.contains(verb.as_str()) {
        return Err(Status::method_not_allowed());
    }
    routed(kind, call)?;
    if sub.name == "status" {
        let offer = Offer { protobuf: !kind.strategy.traits().untyped, ..Offer::BUILT_IN };
        let form = negotiate(Some(call.header("accept")), pretty, offer)?;
        let answer = match verb {
            Verb::Get => get::get(kind, call).await?,
            Verb::Update => update::update(server, kind, call, Part::Status).await?,
            Verb::Patch => patch::patch(server, kind, call, Part::Status).await?,
            _ => return Err(Status::method_not_allowed()),
        };
        return respond::write(Kind::present_answer(server, answer).await?, form, call);
    }
    if subresources::takes_stream(&call.target) {
        let answer = subresources::handle(server, kind, &sub, method, call, raw_query).await?;
        return respond::write(answer, PLAIN, call);
    }
    // Before anything is done: who cannot be answered has changed nothing.
    let table = !matches!(&*sub.name, "binding" | "eviction" | "log" | "token");
    let form = choose(Some(call.header("accept")), pretty, Offer { table, ..Offer::BUILT_IN })?;
    let answer = subresources::handle(server, kind, &sub, method, call, raw_query).await?;
    let form = match &answer {
        Answer::Http(_) => PLAIN,
        Answer::Value { .. } if sub.name != "scale" => Form { view: View::Object, ..form },
        _ => form,
    };
    respond::write(answer, form, call)
}
