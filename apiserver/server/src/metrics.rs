//! Request counters under upstream's names, in Prometheus text; behind them what controllers and scheduler count, where
//! they run in this process.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use skiff_storage::cache::Moment;

use crate::chain::Label;
use crate::server::Inner;

/// Upper bounds of the latency buckets in seconds: upstream's, fine below the 1 s objective for single objects.
const BUCKETS: &[f64] = &[0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    scope: &'static str,
    code: u16,
}

#[derive(Clone, Debug, Default)]
struct Series {
    count: u64,
    sum: f64,
    buckets: [u64; BUCKETS.len()],
}

/// Upper bounds in microseconds of the time between an event's commit and its sending: fine around the goal of 10 ms.
const DELAYS: &[u64] =
    &[500, 1_000, 2_000, 3_000, 4_000, 5_000, 6_000, 8_000, 10_000, 15_000, 20_000, 30_000, 50_000, 100_000, 1_000_000];

/// Times from commit to sending of the events of one piece, counted apart so that watchers share no counters per event.
#[derive(Debug)]
pub struct Delays {
    now: Moment,
    micros: u64,
    counts: [u32; DELAYS.len() + 1],
}

impl Delays {
    /// A count of events that are sent now.
    #[must_use]
    pub fn begin() -> Self {
        Self { now: Moment::now(), micros: 0, counts: [0; DELAYS.len() + 1] }
    }

    /// Counts an event that was durable at `made`.
    pub fn add(&mut self, made: Moment) {
        let took = self.now.since(made).as_micros();
        let took = u64::try_from(took).unwrap_or(u64::MAX);
        self.micros = self.micros.saturating_add(took);
        self.counts[DELAYS.partition_point(|bound| *bound < took)] += 1;
    }
}

/// The same of all watchers.
#[derive(Debug, Default)]
pub struct WatchDelays {
    counts: [AtomicU64; DELAYS.len() + 1],
    micros: AtomicU64,
}

impl Delays {
    /// How many events were counted.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.counts.iter().map(|n| u64::from(*n)).sum()
    }
}

impl WatchDelays {
    /// Adds the events of one piece.
    pub fn join(&self, piece: &Delays) {
        for (all, n) in self.counts.iter().zip(piece.counts).filter(|(_, n)| *n > 0) {
            all.fetch_add(u64::from(n), Ordering::Relaxed);
        }
        self.micros.fetch_add(piece.micros, Ordering::Relaxed);
    }
}

/// Counters of requests.
#[derive(Debug, Default)]
pub struct Metrics {
    /// From commit to sending of watch events.
    pub watch_delays: WatchDelays,
    inflight_read: AtomicI64,
    inflight_write: AtomicI64,
    requests: Mutex<BTreeMap<Key, Series>>,
    lasting: Mutex<BTreeMap<Key, i64>>,
    events: Mutex<BTreeMap<(String, String, String), Arc<AtomicU64>>>,
    /// Which APIServices are available, and how often one ceased to be, by reason.
    services: Mutex<Availability>,
}

#[derive(Debug, Default)]
struct Availability {
    now: BTreeMap<String, bool>,
    lost: BTreeMap<(String, &'static str), u64>,
}

/// A request in flight.
#[derive(Debug)]
pub struct Seen {
    mutates: bool,
}

/// A request whose answer goes on; counted until this is dropped.
pub struct Lasting {
    server: Arc<Inner>,
    key: Key,
}

impl Drop for Lasting {
    fn drop(&mut self) {
        let mut all = self.server.metrics.lasting.lock();
        if let Some(n) = all.get_mut(&self.key) {
            *n -= 1;
            if *n <= 0 {
                all.remove(&self.key);
            }
        }
    }
}

impl Key {
    fn new(label: &Label, code: u16) -> Self {
        Self {
            verb: label.verb,
            group: label.group.clone(),
            version: label.version.clone(),
            resource: label.resource.clone(),
            scope: label.scope,
            code,
        }
    }

    /// The labels that all families of requests have.
    fn labels(&self) -> String {
        let (resource, sub) = self.resource.split_once('/').unwrap_or((&self.resource, ""));
        format!(
            "component=\"apiserver\",group=\"{}\",resource=\"{resource}\",scope=\"{}\",subresource=\"{sub}\",verb=\"{}\",version=\"{}\"",
            self.group, self.scope, self.verb, self.version
        )
    }
}

/// Series kept at most; requests to unknown resources do not make new ones beyond it.
const SERIES_MAX: usize = 4096;

impl Metrics {
    /// Counts a request that begins.
    pub fn begin(&self, method: &Method) -> Seen {
        let mutates = !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        self.inflight(mutates).fetch_add(1, Ordering::Relaxed);
        Seen { mutates }
    }

    fn inflight(&self, mutates: bool) -> &AtomicI64 {
        if mutates { &self.inflight_write } else { &self.inflight_read }
    }

    /// Counts an answer that goes on.
    #[must_use]
    pub fn last(server: &Arc<Inner>, label: &Label) -> Lasting {
        let key = Key::new(label, 0);
        *server.metrics.lasting.lock().entry(key.clone()).or_default() += 1;
        Lasting { server: Arc::clone(server), key }
    }

    /// The counter of events that are sent to watchers of a kind.
    #[must_use]
    pub fn watch_events(&self, group: &str, version: &str, kind: &str) -> Arc<AtomicU64> {
        let key = (group.to_owned(), version.to_owned(), kind.to_owned());
        Arc::clone(self.events.lock().entry(key).or_default())
    }

    /// An APIService is available, or is not.
    pub fn service(&self, name: &str, available: bool) {
        self.services.lock().now.insert(name.to_owned(), available);
    }

    /// An APIService ceased to be available.
    pub fn service_lost(&self, name: &str, reason: &'static str) {
        *self.services.lock().lost.entry((name.to_owned(), reason)).or_default() += 1;
    }

    /// There is no such APIService any more.
    pub fn forget_service(&self, name: &str) {
        self.services.lock().now.remove(name);
    }

    /// Availability as upstream's aggregator tells it.
    fn services(&self, o: &mut String) {
        let services = self.services.lock();
        let _ = writeln!(
            o,
            "# HELP aggregator_unavailable_apiservice APIServices that are not available now.\n# TYPE aggregator_unavailable_apiservice gauge"
        );
        for (name, available) in &services.now {
            let _ = writeln!(o, "aggregator_unavailable_apiservice{{name=\"{name}\"}} {}", u8::from(!available));
        }
        let _ = writeln!(
            o,
            "# HELP aggregator_unavailable_apiservice_total How often APIServices ceased to be available.\n# TYPE aggregator_unavailable_apiservice_total counter"
        );
        for ((name, reason), n) in &services.lost {
            let _ = writeln!(o, "aggregator_unavailable_apiservice_total{{name=\"{name}\",reason=\"{reason}\"}} {n}");
        }
    }

    /// Counts a request that is answered (its stream may go on).
    pub fn end(&self, seen: &Seen, label: &Label, code: u16, took: Duration) {
        self.inflight(seen.mutates).fetch_sub(1, Ordering::Relaxed);
        if label.verb.is_empty() {
            return;
        }
        let key = Key::new(label, code);
        let mut all = self.requests.lock();
        if all.len() >= SERIES_MAX && !all.contains_key(&key) {
            return;
        }
        let s = all.entry(key).or_default();
        s.count += 1;
        let seconds = took.as_secs_f64();
        s.sum += seconds;
        for (b, n) in BUCKETS.iter().zip(s.buckets.iter_mut()) {
            if seconds <= *b {
                *n += 1;
            }
        }
    }

    /// Everything as Prometheus text. `objects` are resource names with their counts.
    #[must_use]
    pub fn render(&self, objects: &[(String, usize)]) -> String {
        let mut out = String::new();
        let o = &mut out;
        // Writing to a String cannot fail.
        let _ = writeln!(
            o,
            "# HELP apiserver_request_total Requests by verb, resource and code.\n# TYPE apiserver_request_total counter"
        );
        let all = self.requests.lock().clone();
        for (k, s) in &all {
            let (labels, code, n) = (k.labels(), k.code, s.count);
            let _ = writeln!(o, "apiserver_request_total{{code=\"{code}\",dry_run=\"\",{labels}}} {n}");
        }
        let _ = writeln!(
            o,
            "# HELP apiserver_request_duration_seconds Time to answer.\n# TYPE apiserver_request_duration_seconds histogram"
        );
        for (k, s) in &all {
            if k.verb == "WATCH" {
                continue;
            }
            let labels = format!("dry_run=\"\",{},code=\"{}\"", k.labels(), k.code);
            for (b, n) in BUCKETS.iter().zip(s.buckets) {
                let _ = writeln!(o, "apiserver_request_duration_seconds_bucket{{{labels},le=\"{b}\"}} {n}");
            }
            let _ = writeln!(o, "apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {}", s.count);
            let _ = writeln!(o, "apiserver_request_duration_seconds_sum{{{labels}}} {}", s.sum);
            let _ = writeln!(o, "apiserver_request_duration_seconds_count{{{labels}}} {}", s.count);
        }
        let _ = writeln!(
            o,
            "# HELP apiserver_current_inflight_requests Requests being answered now.\n# TYPE apiserver_current_inflight_requests gauge"
        );
        let _ = writeln!(
            o,
            "apiserver_current_inflight_requests{{request_kind=\"readOnly\"}} {}",
            self.inflight_read.load(Ordering::Relaxed).max(0)
        );
        let _ = writeln!(
            o,
            "apiserver_current_inflight_requests{{request_kind=\"mutating\"}} {}",
            self.inflight_write.load(Ordering::Relaxed).max(0)
        );
        let _ = writeln!(
            o,
            "# HELP apiserver_longrunning_requests Watches that are open now.\n# TYPE apiserver_longrunning_requests gauge"
        );
        for (k, n) in self.lasting.lock().iter() {
            let _ = writeln!(o, "apiserver_longrunning_requests{{{}}} {n}", k.labels());
        }
        let _ = writeln!(
            o,
            "# HELP apiserver_watch_events_total Events sent to watchers by kind.\n# TYPE apiserver_watch_events_total counter"
        );
        for ((group, version, kind), n) in self.events.lock().iter() {
            let n = n.load(Ordering::Relaxed);
            let _ = writeln!(
                o,
                "apiserver_watch_events_total{{group=\"{group}\",kind=\"{kind}\",version=\"{version}\"}} {n}"
            );
        }
        self.services(o);
        o.push_str(&skiff_metrics::process());
        let _ = writeln!(
            o,
            "# HELP skiff_watch_delay_seconds Time from an event's commit to its sending to a watcher.\n# TYPE skiff_watch_delay_seconds histogram"
        );
        let mut sent = 0;
        for (i, n) in self.watch_delays.counts.iter().enumerate() {
            sent += n.load(Ordering::Relaxed);
            match DELAYS.get(i) {
                Some(us) => {
                    let seconds = Duration::from_micros(*us).as_secs_f64();
                    let _ = writeln!(o, "skiff_watch_delay_seconds_bucket{{le=\"{seconds}\"}} {sent}");
                }
                None => {
                    let _ = writeln!(o, "skiff_watch_delay_seconds_bucket{{le=\"+Inf\"}} {sent}");
                }
            }
        }
        let sum = Duration::from_micros(self.watch_delays.micros.load(Ordering::Relaxed)).as_secs_f64();
        let _ = writeln!(o, "skiff_watch_delay_seconds_sum {sum}\nskiff_watch_delay_seconds_count {sent}");
        let _ = writeln!(
            o,
            "# HELP apiserver_storage_objects Stored objects by resource.\n# TYPE apiserver_storage_objects gauge"
        );
        for (r, n) in objects {
            let _ = writeln!(o, "apiserver_storage_objects{{resource=\"{r}\"}} {n}");
        }
        let _ =
            writeln!(o, "# HELP kubernetes_build_info Version of this program.\n# TYPE kubernetes_build_info gauge");
        let _ = writeln!(
            o,
            "kubernetes_build_info{{git_version=\"{}\",major=\"1\",minor=\"37\",platform=\"linux/amd64\"}} 1",
            crate::discovery::GIT_VERSION
        );
        out.push_str(&skiff_metrics::text(skiff_metrics::CONTROL_PLANE));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_and_writers_are_counted_apart() {
        let m = Metrics::default();
        let (read, write) = (m.begin(&Method::GET), m.begin(&Method::PATCH));
        let line = |text: &str, kind: &str| {
            let wanted = format!("apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} ");
            text.lines().find_map(|l| l.strip_prefix(&wanted).map(str::to_owned)).unwrap()
        };
        let text = m.render(&[]);
        assert_eq!((line(&text, "readOnly"), line(&text, "mutating")), ("1".into(), "1".into()));
        let label = Label {
            verb: "PATCH",
            resource: "pods/status".into(),
            version: "v1".into(),
            scope: "resource",
            ..Label::default()
        };
        m.end(&write, &label, 200, Duration::from_millis(1));
        let text = m.render(&[]);
        assert_eq!((line(&text, "readOnly"), line(&text, "mutating")), ("1".into(), "0".into()));
        assert!(text.contains("resource=\"pods\",scope=\"resource\",subresource=\"status\",verb=\"PATCH\""), "{text}");
        m.end(&read, &Label::default(), 200, Duration::ZERO);
    }
}
