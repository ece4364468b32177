//! What the service proxy and the name server count, under the names of kube-proxy and CoreDNS and with their buckets.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use skiff_metrics::{Counter, Counters, Histogram, Histograms, Part, exponential_buckets, gauges, register};

/// The counts of the proxies in this process.
pub(crate) struct Syncs {
    all: Histogram,
    full: Histogram,
    partial: Histogram,
    programmed: Histogram,
    failures: Counter,
    /// Changes seen of Services, and of their endpoints.
    pub(crate) services: Counter,
    pub(crate) endpoints: Counter,
    /// How many of each the last load left to do.
    done_services: AtomicU64,
    done_endpoints: AtomicU64,
    last: AtomicU64,
    queued: AtomicU64,
}

pub(crate) static SYNCS: LazyLock<Syncs> = LazyLock::new(|| {
    let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
    // Upstream's: quarters of a second first, then wider and wider.
    let programming = (1..=4).map(|n| f64::from(n) * 0.25).chain((2..=59).map(f64::from));
    let programming =
        programming.chain((12..60).map(|n| f64::from(n) * 5.0)).chain((10..=20).map(|n| f64::from(n) * 30.0));
    let s = Syncs {
        all: seconds(),
        full: seconds(),
        partial: seconds(),
        programmed: Histogram::new(programming),
        failures: Counter::default(),
        services: Counter::default(),
        endpoints: Counter::default(),
        done_services: AtomicU64::new(0),
        done_endpoints: AtomicU64::new(0),
        last: AtomicU64::new(0),
        queued: AtomicU64::new(0),
    };
    register(Part::Proxy, |r| {
        let help = "SyncProxyRules latency in seconds";
        r.register("kubeproxy_sync_proxy_rules_duration_seconds", help, s.all.clone());
        let help = "SyncProxyRules latency in seconds for full resyncs";
        r.register("kubeproxy_sync_full_proxy_rules_duration_seconds", help, s.full.clone());
        let help = "SyncProxyRules latency in seconds for partial resyncs";
        r.register("kubeproxy_sync_partial_proxy_rules_duration_seconds", help, s.partial.clone());
        let help = "In Cluster Network Programming Latency in seconds";
        r.register("kubeproxy_network_programming_duration_seconds", help, s.programmed.clone());
        let help = "Cumulative proxy nftables sync failures";
        r.register("kubeproxy_sync_proxy_rules_nftables_sync_failures", help, s.failures.clone());
        let help = "Cumulative proxy rules Service changes";
        r.register("kubeproxy_sync_proxy_rules_service_changes", help, s.services.clone());
        let help = "Cumulative proxy rules Endpoint changes";
        r.register("kubeproxy_sync_proxy_rules_endpoint_changes", help, s.endpoints.clone());
        r.register_collector(Box::new(Now));
    });
    s
});

/// Changes seen when a load begins: what the load takes care of.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    services: u64,
    endpoints: u64,
}

impl Syncs {
    /// A load is about to read the index.
    pub(crate) fn seen(&self) -> Seen {
        self.queued.store(seconds_now(), Ordering::Relaxed);
        Seen { services: self.services.get(), endpoints: self.endpoints.get() }
    }

    /// It ended.
    pub(crate) fn loaded(&self, seen: Seen, full: bool, took: Duration, triggers: &[SystemTime]) {
        let seconds = took.as_secs_f64();
        self.all.observe(seconds);
        if full { &self.full } else { &self.partial }.observe(seconds);
        let now = SystemTime::now();
        for trigger in triggers {
            self.programmed.observe(now.duration_since(*trigger).unwrap_or_default().as_secs_f64());
        }
        self.done_services.store(seen.services, Ordering::Relaxed);
        self.done_endpoints.store(seen.endpoints, Ordering::Relaxed);
        self.last.store(seconds_now(), Ordering::Relaxed);
    }

    /// It failed.
    pub(crate) fn failed(&self) {
        self.failures.inc();
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// What the proxy has still to do, and when it last did.
#[derive(Debug)]
struct Now;

impl skiff_metrics::Collector for Now {
    fn encode(&self, mut encoder: skiff_metrics::DescriptorEncoder<'_>) -> fmt::Result {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let left = |all: &Counter, done: &AtomicU64| all.get().saturating_sub(of(done)) as f64;
        let rows = [
            ("last_timestamp_seconds", "The last time proxy rules were successfully synced.", of(&SYNCS.last) as f64),
            (
                "last_queued_timestamp_seconds",
                "The last time a sync of proxy rules was queued.",
                of(&SYNCS.queued) as f64,
            ),
            (
                "service_changes_pending",
                "Pending proxy rules Service changes.",
                left(&SYNCS.services, &SYNCS.done_services),
            ),
            (
                "endpoint_changes_pending",
                "Pending proxy rules Endpoint changes.",
                left(&SYNCS.endpoints, &SYNCS.done_endpoints),
            ),
        ];
        rows.into_iter().try_for_each(|(name, help, value)| {
            gauges(&mut encoder, &format!("kubeproxy_sync_proxy_rules_{name}"), help, [([], value)])
        })
    }
}

struct Questions {
    requests: Counters<6>,
    responses: Counters<5>,
    took: Histograms<3>,
    shed: Counter,
}

/// As the name server of other clusters calls itself: one block for everything.
const SERVER: Cow<'static, str> = Cow::Borrowed("dns://:53");
const ZONE: Cow<'static, str> = Cow::Borrowed(".");
const VIEW: Cow<'static, str> = Cow::Borrowed("");

static QUESTIONS: LazyLock<Questions> = LazyLock::new(|| {
    let q = Questions {
        requests: Counters::default(),
        responses: Counters::default(),
        took: Histograms::new_with_constructor(|| Histogram::new(exponential_buckets(0.00025, 2.0, 16))),
        shed: Counter::default(),
    };
    register(Part::Names, |r| {
        let help = "Counter of DNS requests made per zone, protocol and family";
        r.register("coredns_dns_requests", help, q.requests.clone());
        r.register("coredns_dns_responses", "Counter of response status codes", q.responses.clone());
        let help = "Histogram of the time (in seconds) each request took per zone";
        r.register("coredns_dns_request_duration_seconds", help, q.took.clone());
        let help = "Questions and connections turned away because too many were open";
        r.register("skiff_dns_shed", help, q.shed.clone());
    });
    q
});

/// Counts an answered question.
pub(crate) fn answered(proto: &'static str, peer: SocketAddr, request: &Message, answer: &Message, took: Duration) {
    let kind = request.queries.first().map_or("other", |q| known(q.query_type()));
    let family = if peer.is_ipv4() { "1" } else { "2" };
    let labels = [
        ("server", SERVER),
        ("zone", ZONE),
        ("view", VIEW),
        ("proto", proto.into()),
        ("family", family.into()),
        ("type", kind.into()),
    ];
    QUESTIONS.requests.get_or_create(&labels).inc();
    let rcode = code(answer.metadata.response_code);
    let labels =
        [("server", SERVER), ("zone", ZONE), ("view", VIEW), ("rcode", rcode.into()), ("plugin", "skiff".into())];
    QUESTIONS.responses.get_or_create(&labels).inc();
    QUESTIONS.took.get_or_create(&[("server", SERVER), ("zone", ZONE), ("view", VIEW)]).observe(took.as_secs_f64());
}

/// Counts what was turned away.
pub(crate) fn shed() {
    QUESTIONS.shed.inc();
}

/// The types that CoreDNS tells apart.
fn known(kind: RecordType) -> &'static str {
    match kind {
        RecordType::A => "A",
        RecordType::AAAA => "AAAA",
        RecordType::CNAME => "CNAME",
        RecordType::HTTPS => "HTTPS",
        RecordType::MX => "MX",
        RecordType::NS => "NS",
        RecordType::PTR => "PTR",
        RecordType::SOA => "SOA",
        RecordType::SRV => "SRV",
        RecordType::TXT => "TXT",
        RecordType::ANY => "ANY",
        _ => "other",
    }
}

fn code(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        _ => "other",
    }
}
