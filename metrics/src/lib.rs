//! What components count, and how Prometheus reads it.
//!
//! A component puts its families, under the names that upstream's component has, into the registry of its [`Part`]. In
//! one process each part has one registry, as each process of upstream has one; whoever listens chooses which parts it
//! shows ([`text`]): the API server those of the control plane, a node's agent those of the node.
//!
//! # Limits
//! Labels are words of the program (a queue, a result, an operation) or of bounded number; never pods or users. Nothing
//! runs between scrapes: what is a state and not a count is looked up by a [`Collector`] when it is asked for.
//!
//! The classic text format (0.0.4) is what upstream answers by default and what every scraper reads; prometheus-client
//! writes OpenMetrics, which differs in how counters are declared.

// A test that cannot go on should say where.
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::LazyLock;

use parking_lot::Mutex;
pub use prometheus_client::collector::Collector;
pub use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::MetricEncoder;
use prometheus_client::metrics::MetricType;
pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
pub use prometheus_client::registry::Registry;

mod process;
pub mod review;
pub mod serve;

pub use process::process;

/// Content type of [`text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A component of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The controllers.
    Controllers,
    /// The scheduler.
    Scheduler,
    /// The Leases by which one of several controllers or schedulers leads.
    Leases,
    /// The node's agent.
    Agent,
    /// The node's agent's probes, which upstream shows apart.
    Probes,
    /// The service proxy.
    Proxy,
    /// The name server.
    Names,
}

/// What counts for the whole cluster.
pub const CONTROL_PLANE: &[Part] = &[Part::Controllers, Part::Scheduler, Part::Leases];
/// What counts on each node.
pub const NODE: &[Part] = &[Part::Agent, Part::Proxy, Part::Names];

static REGISTRIES: LazyLock<[Mutex<Registry>; 7]> = LazyLock::new(Default::default);

/// Names and values of `N` labels.
pub type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];
/// Counters told apart by `N` labels.
pub type Counters<const N: usize> = Family<Labels<N>, Counter>;
/// Histograms told apart by `N` labels.
pub type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// Puts families into the registry of a part; a family belongs there once. A counter's name goes without `_total`, and
/// no help ends with a full stop: both are added.
pub fn register(part: Part, families: impl FnOnce(&mut Registry)) {
    families(&mut REGISTRIES[part as usize].lock());
}

/// What these parts count, as text.
#[must_use]
pub fn text(parts: &[Part]) -> String {
    let mut out = String::new();
    for part in parts {
        let mut open = String::new();
        // Writing to a String fails only if a collector does; then the rest is still worth showing.
        let _ = prometheus_client::encoding::text::encode(&mut open, &REGISTRIES[*part as usize].lock());
        classic(&open, &mut out);
    }
    out
}

/// Writes OpenMetrics text in the classic format: the declaration of a counter bears the name of its samples.
fn classic(open: &str, out: &mut String) {
    let mut help = "";
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest;
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|r| r.split_once(' ')) {
            let name = if kind == "counter" { Cow::from(format!("{name}_total")) } else { Cow::from(name) };
            let kind = if kind == "unknown" { "untyped" } else { kind };
            let words = help.split_once(' ').map_or("", |(_, words)| words);
            let _ = writeln!(out, "# HELP {name} {words}\n# TYPE {name} {kind}");
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
}

/// Writes a family of gauges whose values are looked up now; for collectors.
///
/// # Errors
/// Those of the encoder.
pub fn gauges<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels<N>, f64)>,
) -> std::fmt::Result {
    let mut metric: MetricEncoder<'_> = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    values.into_iter().try_for_each(|(labels, value)| metric.encode_family(&labels)?.encode_gauge(&value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Depth;

    impl Collector for Depth {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
            gauges(
                &mut encoder,
                "depth",
                "Keys that wait.",
                [([("name", "a".into())], 3.0), ([("name", "b".into())], 0.5)],
            )
        }
    }

    #[test]
    fn the_classic_format() {
        let (adds, took) = (Counters::<1>::default(), Histogram::new([0.1, 1.0]));
        register(Part::Names, |r| {
            r.register("adds", "Keys that were added", adds.clone());
            r.register("took_seconds", "Time", took.clone());
            r.register_collector(Box::new(Depth));
        });
        adds.get_or_create(&[("name", "q\"".into())]).inc_by(2);
        took.observe(0.5);
        let want = "# HELP adds_total Keys that were added.
# TYPE adds_total counter
adds_total{name=\"q\\\"\"} 2
# HELP took_seconds Time.
# TYPE took_seconds histogram
took_seconds_sum 0.5
took_seconds_count 1
took_seconds_bucket{le=\"0.1\"} 0
took_seconds_bucket{le=\"1.0\"} 1
took_seconds_bucket{le=\"+Inf\"} 1
# HELP depth Keys that wait.
# TYPE depth gauge
depth{name=\"a\"} 3.0
depth{name=\"b\"} 0.5
";
        assert_eq!(text(&[Part::Names]), want);
        assert_eq!(text(&[Part::Proxy]), "");
    }
}
