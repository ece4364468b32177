//! Priority and fairness: every request falls under a FlowSchema, and takes seats of the priority level that this names.
//!
//! What upstream's server does, with its objects, its numbers and its answers (KEP-1040): 600 seats, divided among the levels
//! by their shares; in a level, flows wait in queues of their own, so one who asks much delays nobody who asks little; who has
//! waited for a quarter of the request's time, or finds its queues full, is told to come again (429, `Retry-After`). Exempt
//! levels take no seats, and neither do requests that last; a watch has its seat until it has begun. Answers carry the UIDs of
//! schema and level.
//!
//! Other than upstream's: what levels lend is lent at once and not every ten seconds ([`hall`]), and a write takes one seat,
//! however many watch: what they are sent is paced where it is sent, and not by keeping the writer's seat.

mod dropped;
mod follow;
mod hall;
mod rules;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use futures::StreamExt as _;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use parking_lot::Mutex;

use self::dropped::Dropped;
use self::hall::{Hall, Refusal, Seat, Share};
use self::rules::Schema;
use crate::auth::User;
use crate::auth::rbac::Attributes;
use crate::body::Body;
use crate::request::{Query, ResourceRequest, Target, Verb};
use crate::server::Inner;
use crate::subresources;

pub(crate) use self::follow::{dangling, start};

/// Seats by default: upstream's 400 for reading requests and 200 for others.
pub(crate) const SEATS: u32 = 600;
/// A list takes a seat for so many objects, as upstream.
const OBJECTS_PER_SEAT: usize = 100;
/// As many as one request takes at most.
const WIDEST: u32 = 10;
/// The part of a level's seats that one request takes at most.
const WIDEST_PART: f64 = 0.15;

/// What requests were told under a schema.
#[derive(Debug, Default)]
struct Counts {
    served: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
}

/// Schemas and levels at work.
pub struct Flow {
    schemas: ArcSwap<Vec<Arc<Schema>>>,
    hall: Arc<Hall>,
    hash: RandomState,
    dropped: Mutex<HashMap<String, Dropped>>,
}

/// A request that has been let in, or was told to come again.
pub(crate) struct Place {
    schema: Arc<Schema>,
    seat: Option<Seat>,
}

impl Flow {
    /// With so many seats, and no schema: what is asked before there are any is served.
    pub(crate) fn new(seats: u32) -> Self {
        Self {
            schemas: ArcSwap::default(),
            hall: Arc::new(Hall::new(seats)),
            hash: RandomState::new(),
            dropped: Mutex::default(),
        }
    }

    /// Goes by these objects from now on.
    fn configure(&self, schemas: Vec<FlowSchema>, levels: Vec<PriorityLevelConfiguration>) {
        let shares = shares(self.hall.limit(), &levels);
        let slots: HashMap<&str, usize> =
            shares.iter().map(|s| s.name.as_str()).zip(self.hall.arrange(&shares)).collect();
        let before = self.schemas.load();
        let made = schemas.into_iter().filter_map(|schema| {
            let name = schema.metadata.name.clone()?;
            let wanted = schema.spec.priority_level_configuration.name.clone();
            let level = levels.iter().find(|l| l.metadata.name.as_deref() == Some(&wanted))?;
            let uid = level.metadata.uid.as_deref().unwrap_or_default();
            let share = shares.iter().find(|s| s.name == wanted);
            let known = before.iter().find(|s| s.name == name && s.level == wanted);
            let counts = known.map(|s| Arc::clone(&s.counts)).unwrap_or_default();
            let slot = slots.get(wanted.as_str()).copied();
            Schema::new(schema, (&wanted, uid), slot, share.map_or(1, widest), counts)
        });
        let mut made: Vec<_> = made.map(Arc::new).collect();
        made.sort_by(|a, b| a.precedence().cmp(&b.precedence()));
        self.dropped.lock().retain(|level, _| slots.contains_key(level.as_str()));
        self.schemas.store(Arc::new(made));
    }

    fn refuse(&self, schema: &Schema, why: Refusal) -> http::Response<Body> {
        schema.counts.refused[why as usize].fetch_add(1, Ordering::Relaxed);
        let now = jiff::Timestamp::now().as_second();
        let after = {
            let mut all = self.dropped.lock();
            let level = all.entry(schema.level.clone()).or_default();
            level.one(now);
            level.retry_after()
        };
        let mut refused = http::Response::new(Body::full("Too many requests, please try again later.\n"));
        *refused.status_mut() = http::StatusCode::TOO_MANY_REQUESTS;
        let headers = refused.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
        headers.insert(RETRY_AFTER, HeaderValue::from(after));
        refused
    }

    /// The numbers, in the text format of Prometheus, under upstream's names.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let o = &mut out;
        let head = |name: &str, kind: &str, help: &str| {
            format!("# HELP apiserver_flowcontrol_{name} {help}\n# TYPE apiserver_flowcontrol_{name} {kind}\n")
        };
        let schemas = self.schemas.load();
        o.push_str(&head("dispatched_requests_total", "counter", "Requests that were let in."));
        for s in schemas.iter() {
            let (schema, level, n) = (&s.name, &s.level, s.counts.served.load(Ordering::Relaxed));
            let of = format!("flow_schema=\"{schema}\",priority_level=\"{level}\"");
            let _ = writeln!(o, "apiserver_flowcontrol_dispatched_requests_total{{{of}}} {n}");
        }
        o.push_str(&head("rejected_requests_total", "counter", "Requests that were told to come again."));
        for s in schemas.iter() {
            for (why, n) in Refusal::ALL.iter().zip(&s.counts.refused) {
                let (schema, level, n) = (&s.name, &s.level, n.load(Ordering::Relaxed));
                let of = format!("flow_schema=\"{schema}\",priority_level=\"{level}\",reason=\"{}\"", why.as_str());
                if n > 0 {
                    let _ = writeln!(o, "apiserver_flowcontrol_rejected_requests_total{{{of}}} {n}");
                }
            }
        }
        let loads = self.hall.loads();
        type Number = fn(&hall::Load) -> u32;
        let gauges: [(&str, &str, Number); 4] = [
            ("nominal_limit_seats", "Seats of a level when all use theirs.", |l| l.share.nominal),
            ("current_executing_seats", "Seats that are taken.", |l| l.seats),
            ("current_executing_requests", "Requests that have seats.", |l| l.executing),
            ("current_inqueue_requests", "Requests that wait.", |l| l.waiting),
        ];
        for (name, help, number) in gauges {
            o.push_str(&head(name, "gauge", help));
            for l in &loads {
                let (level, n) = (&l.share.name, number(l));
                let _ = writeln!(o, "apiserver_flowcontrol_{name}{{priority_level=\"{level}\"}} {n}");
            }
        }
        out
    }
}

/// Lets a request in when it is its turn, and notes under what in `place`.
///
/// # Errors
/// 429, when it was not in time or too many wait.
pub(crate) async fn admit(
    server: &Inner,
    user: &User,
    action: &Attributes,
    target: &Target,
    query: &Query,
    place: &mut Option<Place>,
) -> Result<(), http::Response<Body>> {
    let mut width = 1;
    if let Target::Resource(t) = target {
        if t.verb != Verb::Watch && subresources::long_running(t, query) {
            return Ok(());
        }
        width = seats(server, t, query);
    }
    let flow = &server.flow;
    let schemas = flow.schemas.load();
    let Some(schema) = schemas.iter().find(|s| s.matches(user, action)).cloned() else { return Ok(()) };
    drop(schemas);
    let mut seat = Ok(None);
    if let Some(slot) = schema.slot {
        let whose = schema.flow(user, action, &flow.hash);
        let patience = server.config.request_timeout / 4;
        seat = flow.hall.enter(slot, whose, width.min(schema.widest), patience).await.map(Some);
    }
    let place = place.insert(Place { schema: Arc::clone(&schema), seat: None });
    match seat {
        Ok(seat) => {
            schema.counts.served.fetch_add(1, Ordering::Relaxed);
            place.seat = seat;
            Ok(())
        }
        Err(why) => Err(flow.refuse(&schema, why)),
    }
}

impl Place {
    /// Puts on the answer what the request fell under, and keeps its seats until the answer is made: a list that is written
    /// bit by bit has them until its end, and not longer than a request may take.
    pub(crate) fn mark(
        mut self,
        server: &Inner,
        mut answer: http::Response<Body>,
        lasts: bool,
    ) -> http::Response<Body> {
        let [schema, level] = self.schema.marks.clone();
        answer.headers_mut().insert(HeaderName::from_static("x-kubernetes-pf-flowschema-uid"), schema);
        answer.headers_mut().insert(HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid"), level);
        let whole = matches!(answer.body(), Body::Full(_));
        let Some(seat) = self.seat.take().filter(|_| !lasts && !whole) else { return answer };
        let (held, ended) = tokio::sync::oneshot::channel::<()>();
        let limit = server.config.request_timeout;
        tokio::spawn(async move {
            // Over, or given up: either ends it.
            let _ = tokio::time::timeout(limit, ended).await;
            drop(seat);
        });
        answer.map(|body| match body {
            Body::Stream(pieces) => Body::stream(pieces.inspect(holding(held))),
            Body::Fallible(pieces) => Body::Fallible(pieces.inspect(holding(held)).boxed()),
            whole @ Body::Full(_) => whole,
        })
    }
}

/// What is dropped with the stream that it is part of.
fn holding<T>(held: tokio::sync::oneshot::Sender<()>) -> impl FnMut(&T) {
    move |_| {
        let _ = &held;
    }
}

/// As many seats as a request takes: lists, and watches that begin with one, by what they go through.
fn seats(server: &Inner, target: &ResourceRequest, query: &Query) -> u32 {
    let lists = match target.verb {
        Verb::List => true,
        Verb::Watch => query.flag("sendInitialEvents") || matches!(query.get("resourceVersion"), None | Some("" | "0")),
        _ => false,
    };
    if !lists || !target.authorised_name(query).is_empty() {
        return 1;
    }
    let registry = server.registry.load();
    let kind = registry.any_version(&target.group, &target.resource);
    let Some(stored) = kind.and_then(|k| k.collection.as_ref()).map(|c| c.cache.objects()) else { return 1 };
    let chosen = |name| query.get(name).is_some_and(|s| !s.is_empty());
    let limit = query.get("limit").and_then(|l| l.parse().ok()).filter(|l| *l > 0);
    let seen = match limit {
        Some(limit) if !chosen("labelSelector") && !chosen("fieldSelector") => stored.min(limit),
        _ => stored,
    };
    u32::try_from(seen.div_ceil(OBJECTS_PER_SEAT)).unwrap_or(WIDEST).clamp(1, WIDEST)
}

/// The seats of the levels that take some.
fn shares(limit: u32, levels: &[PriorityLevelConfiguration]) -> Vec<Share> {
    let number = |n: Option<i32>, else_| u32::try_from(n.unwrap_or(else_)).unwrap_or_default();
    let limited = |l: &PriorityLevelConfiguration| l.spec.limited.clone();
    let weight = |l: &PriorityLevelConfiguration| match (limited(l), l.spec.exempt.as_ref()) {
        (Some(limited), _) => number(limited.nominal_concurrency_shares, 30),
        (None, Some(exempt)) => number(exempt.nominal_concurrency_shares, 0),
        (None, None) => 0,
    };
    let all: u32 = levels.iter().map(weight).sum();
    let part = |of: u32, percent: u32| (f64::from(of) * f64::from(percent) / 100.0).round();
    // Percentages of seats, of which there are few.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let made = levels.iter().filter_map(|level| {
        let limited = limited(level)?;
        let nominal = (f64::from(limit) * f64::from(weight(level)) / f64::from(all.max(1))).ceil() as u32;
        let lent = part(nominal, number(limited.lendable_percent, 0)) as u32;
        let borrowed = limited.borrowing_limit_percent.map(|p| part(nominal, number(Some(p), 0)) as u32);
        let response = Some(limited.limit_response).filter(|r| r.type_ == "Queue");
        let queuing = response.map(|r| r.queuing.unwrap_or_default());
        let [queues, hand, length] = match queuing {
            None => [0; 3],
            Some(q) => [number(q.queues, 64), number(q.hand_size, 8), number(q.queue_length_limit, 50)],
        };
        Some(Share {
            name: level.metadata.name.clone()?,
            nominal,
            reserved: nominal.saturating_sub(lent),
            most: borrowed.map_or(limit, |b| nominal.saturating_add(b)).max(nominal),
            queues: queues as usize,
            hand: hand as usize,
            length: length as usize,
        })
    });
    made.collect()
}

/// As many seats of a level as one request may take.
fn widest(share: &Share) -> u32 {
    // Seats, of which there are few.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let part = (f64::from(share.nominal) * WIDEST_PART).ceil() as u32;
    let hands = u32::try_from(share.hand).ok().filter(|h| *h > 0);
    part.min(hands.map_or(part, |h| share.nominal / h)).max(1)
}
