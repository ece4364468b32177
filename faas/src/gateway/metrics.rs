//! Counters per function, in Prometheus text. A function that was never called has none.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use parking_lot::Mutex;

use crate::instance::Times;

/// Upper bounds in seconds of the phases of a start and of calls: from a fork to a slow image.
const BOUNDS: [f64; 14] = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Functions that have series of their own; further ones are counted together as `_other`.
const FUNCTIONS: usize = 10_000;

#[derive(Clone, Copy, Default)]
struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        if let Some(b) = self.buckets.get_mut(BOUNDS.partition_point(|bound| *bound < seconds)) {
            *b += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut below = 0;
        for (bound, n) in BOUNDS.iter().zip(self.buckets) {
            below += n;
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {}", self.sum, self.count);
    }
}

#[derive(Default)]
struct Series {
    accepted: u64,
    answered: BTreeMap<u16, u64>,
    aborted: u64,
    durations: Histogram,
    /// Started and loaded; rare, so not kept where there were none.
    starts: Option<Box<[Histogram; 3]>>,
}

const PHASES: [&str; 3] = ["started", "loaded", "total"];

/// The counters.
#[derive(Default)]
pub struct Metrics {
    functions: Mutex<BTreeMap<String, Series>>,
}

impl Metrics {
    fn with(&self, function: &str, change: impl FnOnce(&mut Series)) {
        let mut all = self.functions.lock();
        if let Some(series) = all.get_mut(function) {
            return change(series);
        }
        let name = if all.len() < FUNCTIONS { function } else { "_other/_other" };
        change(all.entry(name.to_owned()).or_default());
    }

    /// A request was accepted: from now on it is answered, or its caller went away.
    pub fn accepted(&self, function: &str) {
        self.with(function, |s| s.accepted += 1);
    }

    /// It was answered.
    pub fn answered(&self, function: &str, code: u16, took: Duration) {
        self.with(function, |s| {
            *s.answered.entry(code).or_default() += 1;
            s.durations.add(took.as_secs_f64());
        });
    }

    /// Its caller went away before the answer.
    pub fn aborted(&self, function: &str) {
        self.with(function, |s| s.aborted += 1);
    }

    /// An instance was started.
    pub fn started(&self, function: &str, times: &Times) {
        let phase = |from: std::time::Instant, to: std::time::Instant| to.saturating_duration_since(from).as_secs_f64();
        let t =
            [phase(times.asked, times.started), phase(times.started, times.loaded), phase(times.asked, times.loaded)];
        self.with(function, |s| {
            let starts = s.starts.get_or_insert_with(Box::default);
            for (histogram, seconds) in starts.iter_mut().zip(t) {
                histogram.add(seconds);
            }
        });
    }

    /// Forgets a function.
    pub fn forget(&self, function: &str) {
        self.functions.lock().remove(function);
    }

    /// All of them as text. `loads` are the functions' instances, requests under way and waiting.
    #[must_use]
    pub fn render(&self, loads: &BTreeMap<String, [u32; 3]>) -> String {
        let labels = |key: &str| {
            let (namespace, name) = key.split_once('/').unwrap_or(("", key));
            format!("namespace=\"{namespace}\",function=\"{name}\"")
        };
        let mut out = String::new();
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        let all = self.functions.lock();
        head(&mut out, "skiff_function_requests_accepted_total", "counter", "Requests that were accepted.");
        for (key, s) in all.iter() {
            let _ = writeln!(out, "skiff_function_requests_accepted_total{{{}}} {}", labels(key), s.accepted);
        }
        head(
            &mut out,
            "skiff_function_requests_answered_total",
            "counter",
            "Accepted requests that were answered, by status.",
        );
        for (key, s) in all.iter() {
            for (code, n) in &s.answered {
                let l = labels(key);
                let _ = writeln!(out, "skiff_function_requests_answered_total{{{l},code=\"{code}\"}} {n}");
            }
        }
        let gone = "Accepted requests whose callers went away before the answer.";
        head(&mut out, "skiff_function_requests_aborted_total", "counter", gone);
        for (key, s) in all.iter() {
            let _ = writeln!(out, "skiff_function_requests_aborted_total{{{}}} {}", labels(key), s.aborted);
        }
        head(&mut out, "skiff_function_request_seconds", "histogram", "Time from acceptance to the end of the answer.");
        for (key, s) in all.iter() {
            s.durations.write(&mut out, "skiff_function_request_seconds", &labels(key));
        }
        head(&mut out, "skiff_function_start_seconds", "histogram", "Phases of the starts of instances.");
        for (key, s) in all.iter() {
            for (histogram, phase) in s.starts.iter().flat_map(|h| h.iter()).zip(PHASES) {
                let l = format!("{},phase=\"{phase}\"", labels(key));
                histogram.write(&mut out, "skiff_function_start_seconds", &l);
            }
        }
        drop(all);
        let gauges = [
            ("skiff_function_instances", "Instances that can answer."),
            ("skiff_function_requests_in_flight", "Requests on instances."),
            ("skiff_function_requests_waiting", "Requests that wait for an instance."),
        ];
        for (i, (name, help)) in gauges.into_iter().enumerate() {
            head(&mut out, name, "gauge", help);
            for (key, load) in loads {
                let _ = writeln!(out, "{name}{{{}}} {}", labels(key), load[i]);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_and_answered_are_comparable() {
        let m = Metrics::default();
        for code in [200, 200, 503] {
            m.accepted("ns/f");
            m.answered("ns/f", code, Duration::from_millis(3));
        }
        m.accepted("ns/f");
        m.aborted("ns/f");
        let text = m.render(&BTreeMap::from([("ns/f".to_owned(), [2, 1, 0])]));
        for line in [
            "skiff_function_requests_accepted_total{namespace=\"ns\",function=\"f\"} 4",
            "skiff_function_requests_answered_total{namespace=\"ns\",function=\"f\",code=\"200\"} 2",
            "skiff_function_requests_answered_total{namespace=\"ns\",function=\"f\",code=\"503\"} 1",
            "skiff_function_requests_aborted_total{namespace=\"ns\",function=\"f\"} 1",
            "skiff_function_request_seconds_bucket{namespace=\"ns\",function=\"f\",le=\"0.002\"} 0",
            "skiff_function_request_seconds_bucket{namespace=\"ns\",function=\"f\",le=\"0.005\"} 3",
            "skiff_function_request_seconds_bucket{namespace=\"ns\",function=\"f\",le=\"+Inf\"} 3",
            "skiff_function_instances{namespace=\"ns\",function=\"f\"} 2",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
