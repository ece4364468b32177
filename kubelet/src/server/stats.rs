//! Resource use of the node's containers, for `kubectl top` and for Prometheus.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use futures::StreamExt;
use http::Response;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::metrics::shown;
use super::{Body, Server, cgroup, json};
use crate::net;
use crate::runtime::{Container, State, Stats, label};

/// Containers asked at the same time.
const CONCURRENT: usize = 8;

/// The last CPU reading of each container: a rate needs two.
#[derive(Default)]
pub(crate) struct Samples(Mutex<HashMap<String, (Timestamp, u64)>>);

impl Samples {
    /// CPU use per second in nanoseconds since the last reading, 0 at the first.
    fn rate(&self, id: &str, now: Timestamp, nanos: u64) -> u64 {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = all.insert(id.into(), (now, nanos));
        let Some((then, before)) = last else { return 0 };
        let seconds = now.duration_since(then).as_secs_f64();
        if seconds > 0.0 { (nanos.saturating_sub(before) as f64 / seconds) as u64 } else { 0 }
    }

    fn keep(&self, ids: &[&str]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| id == "/" || ids.contains(&id.as_str()));
    }
}

async fn collect(server: &Server) -> Vec<(Container, Stats)> {
    let runtime = &server.manager.shared.runtime;
    let running = runtime.list(None).await.unwrap_or_default().into_iter().filter(|c| c.state == State::Running);
    let asked = futures::stream::iter(running).map(|container| async move {
        let read = cgroup::read(Path::new(cgroup::ROOT), &container.id);
        let stats = match read {
            Some(stats) => stats,
            None => runtime.stats(&container.id).await.ok()?,
        };
        Some((container, stats))
    });
    let found: Vec<_> = asked.buffer_unordered(CONCURRENT).filter_map(futures::future::ready).collect().await;
    server.samples.keep(&found.iter().map(|(c, _)| c.id.as_str()).collect::<Vec<_>>());
    found
}

/// `/stats/summary`.
pub(crate) async fn summary(server: &Server) -> Response<Body> {
    let all = collect(server).await;
    let now = Timestamp::now();
    let usage = |id: &str, stats: &Stats| {
        let rate = server.samples.rate(id, now, stats.cpu_nanos);
        let cpu = json!({"time": now, "usageNanoCores": rate, "usageCoreNanoSeconds": stats.cpu_nanos});
        let memory = json!({
            "time": now, "usageBytes": stats.memory_usage, "workingSetBytes": stats.memory_working_set,
            "rssBytes": stats.memory_rss, "pageFaults": stats.page_faults, "majorPageFaults": stats.major_page_faults,
        });
        (rate, cpu, memory)
    };
    let mut pods: HashMap<String, (Value, Vec<Value>, [u64; 4])> = HashMap::new();
    for (container, stats) in &all {
        let (rate, cpu, memory) = usage(&container.id, stats);
        let pod = pods.entry(container.label(label::POD_UID).to_string()).or_insert_with(|| {
            let reference = json!({
                "name": container.label(label::POD_NAME),
                "namespace": container.label(label::POD_NAMESPACE),
                "uid": container.label(label::POD_UID),
            });
            (reference, Vec::new(), [0; 4])
        });
        for (sum, value) in pod.2.iter_mut().zip([rate, stats.cpu_nanos, stats.memory_usage, stats.memory_working_set])
        {
            *sum += value;
        }
        let name = container.label(label::CONTAINER_NAME);
        if !name.is_empty() {
            pod.1.push(json!({"name": name, "startTime": container.started, "cpu": cpu, "memory": memory}));
        }
    }
    let pods: Vec<Value> = pods
        .into_values()
        .map(|(reference, containers, [rate, nanos, used, working])| {
            let network = reference["uid"].as_str().and_then(net::traffic).map(|t| {
                let link = json!({
                    "name": "eth0", "rxBytes": t.received[0], "rxErrors": t.received[2],
                    "txBytes": t.sent[0], "txErrors": t.sent[2],
                });
                let mut own = link.clone();
                own["time"] = json!(now);
                own["interfaces"] = json!([link]);
                own
            });
            let mut pod = json!({
                "podRef": reference, "startTime": now, "containers": containers,
                "cpu": {"time": now, "usageNanoCores": rate, "usageCoreNanoSeconds": nanos},
                "memory": {"time": now, "usageBytes": used, "workingSetBytes": working},
            });
            if let Some(network) = network {
                pod["network"] = network;
            }
            pod
        })
        .collect();
    let (nanos, used, working, total) = node_usage();
    let rate = server.samples.rate("/", now, nanos);
    json(&json!({
        "node": {
            "nodeName": server.manager.shared.config.node_name, "startTime": now,
            "cpu": {"time": now, "usageNanoCores": rate, "usageCoreNanoSeconds": nanos},
            "memory": {"time": now, "usageBytes": used, "workingSetBytes": working, "availableBytes": total.saturating_sub(working)},
        },
        "pods": pods,
    }))
}

/// `/metrics/resource`.
pub(crate) async fn resource_metrics(server: &Server) -> Response<Body> {
    let all = collect(server).await;
    let now = Timestamp::now().as_millisecond();
    let mut out = String::new();
    let (nanos, _, working, _) = node_usage();
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    family(
        &mut out,
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
    );
    let _ = writeln!(out, "node_cpu_usage_seconds_total {} {now}", seconds(nanos));
    family(&mut out, "node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes");
    let _ = writeln!(out, "node_memory_working_set_bytes {working} {now}");
    let named: Vec<_> = all.iter().filter(|(c, _)| !c.label(label::CONTAINER_NAME).is_empty()).collect();
    let labels = |c: &Container| {
        let of = |name: &str| c.label(name).to_string();
        format!(
            "container=\"{}\",namespace=\"{}\",pod=\"{}\"",
            of(label::CONTAINER_NAME),
            of(label::POD_NAMESPACE),
            of(label::POD_NAME)
        )
    };
    family(
        &mut out,
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
    );
    for (container, stats) in &named {
        let _ = writeln!(
            out,
            "container_cpu_usage_seconds_total{{{}}} {} {now}",
            labels(container),
            seconds(stats.cpu_nanos)
        );
    }
    family(&mut out, "container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes");
    for (container, stats) in &named {
        let _ = writeln!(
            out,
            "container_memory_working_set_bytes{{{}}} {} {now}",
            labels(container),
            stats.memory_working_set
        );
    }
    family(
        &mut out,
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
    );
    for (container, _) in &named {
        let started = container.started.map_or(0.0, |s| s.as_millisecond() as f64 / 1e3);
        let _ = writeln!(out, "container_start_time_seconds{{{}}} {started}", labels(container));
    }
    let mut pods: HashMap<(String, String), (u64, u64)> = HashMap::new();
    for (container, stats) in &all {
        let key = (container.label(label::POD_NAMESPACE).to_string(), container.label(label::POD_NAME).to_string());
        let sum = pods.entry(key).or_default();
        sum.0 += stats.cpu_nanos;
        sum.1 += stats.memory_working_set;
    }
    family(
        &mut out,
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
    );
    for ((namespace, pod), (nanos, _)) in &pods {
        let _ = writeln!(
            out,
            "pod_cpu_usage_seconds_total{{namespace=\"{namespace}\",pod=\"{pod}\"}} {} {now}",
            seconds(*nanos)
        );
    }
    family(&mut out, "pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes");
    for ((namespace, pod), (_, working)) in &pods {
        let _ =
            writeln!(out, "pod_memory_working_set_bytes{{namespace=\"{namespace}\",pod=\"{pod}\"}} {working} {now}");
    }
    family(
        &mut out,
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
    );
    let _ = writeln!(out, "resource_scrape_error 0");
    // Its old name, which older scrapers read.
    family(&mut out, "scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise");
    let _ = writeln!(out, "scrape_error 0");
    shown(out)
}

/// `/metrics/cadvisor`: each container, and each pod as the sum of its containers, under cAdvisor's names and labels.
pub(crate) async fn cadvisor(server: &Server) -> Response<Body> {
    let all = collect(server).await;
    let now = Timestamp::now().as_millisecond();
    // Labels, start, use.
    let mut rows: Vec<(String, f64, Stats)> = Vec::new();
    let mut pods: std::collections::BTreeMap<String, (f64, Stats)> = std::collections::BTreeMap::new();
    for (c, stats) in &all {
        let of = |name: &str| c.label(name).to_string();
        let (uid, name) = (of(label::POD_UID), of(label::CONTAINER_NAME));
        let place = format!("namespace=\"{}\",pod=\"{}\"", of(label::POD_NAMESPACE), of(label::POD_NAME));
        let start = c.started.map_or(0.0, |s| s.as_millisecond() as f64 / 1e3);
        if !name.is_empty() {
            let (id, image) = (&c.id, &c.image);
            let labels =
                format!("container=\"{name}\",id=\"/kubepods/pod{uid}/{id}\",image=\"{image}\",name=\"{id}\",{place}");
            rows.push((labels, start, stats.clone()));
        }
        let whole = format!("container=\"\",id=\"/kubepods/pod{uid}\",image=\"\",name=\"\",{place}");
        let (first, sum) = pods.entry(whole).or_insert_with(|| (start, Stats::default()));
        *first = first.min(start);
        sum.cpu_nanos += stats.cpu_nanos;
        sum.memory_usage += stats.memory_usage;
        sum.memory_working_set += stats.memory_working_set;
        sum.memory_rss += stats.memory_rss;
        sum.pids += stats.pids;
    }
    rows.extend(pods.into_iter().map(|(labels, (start, sum))| (labels, start, sum)));
    let mut out = String::new();
    type Value = fn(&Stats) -> f64;
    let families: [(&str, &str, &str, Value); 6] = [
        ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", |s| {
            s.cpu_nanos as f64 / 1e9
        }),
        ("container_memory_usage_bytes", "gauge", "Current memory usage in bytes.", |s| s.memory_usage as f64),
        ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |s| {
            s.memory_working_set as f64
        }),
        ("container_memory_rss", "gauge", "Size of RSS in bytes.", |s| s.memory_rss as f64),
        ("container_spec_memory_limit_bytes", "gauge", "Memory limit for the container.", |s| s.memory_limit as f64),
        ("container_threads", "gauge", "Number of threads running inside the container", |s| s.pids as f64),
    ];
    for (name, kind, help, value) in families {
        family(&mut out, name, kind, help);
        let cpu = if name.starts_with("container_cpu") { ",cpu=\"total\"" } else { "" };
        for (labels, _, stats) in &rows {
            let _ = writeln!(out, "{name}{{{labels}{cpu}}} {} {now}", value(stats));
        }
    }
    family(
        &mut out,
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds.",
    );
    for (labels, start, _) in &rows {
        let _ = writeln!(out, "container_start_time_seconds{{{labels}}} {start} {now}");
    }
    network(&mut out, &all, now);
    let (_, _, _, total) = node_usage();
    family(&mut out, "machine_memory_bytes", "gauge", "Amount of memory installed on the machine.");
    let _ = writeln!(out, "machine_memory_bytes {total}");
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    family(&mut out, "machine_cpu_cores", "gauge", "Number of logical CPU cores.");
    let _ = writeln!(out, "machine_cpu_cores {cores}");
    shown(out)
}

/// What pods sent and received.
fn network(out: &mut String, all: &[(Container, Stats)], now: i64) {
    let sandboxes = all.iter().map(|(c, _)| c).filter(|c| c.label(label::CONTAINER_NAME).is_empty());
    let links = sandboxes.filter_map(|c| {
        let uid = c.label(label::POD_UID);
        let (namespace, pod) = (c.label(label::POD_NAMESPACE), c.label(label::POD_NAME));
        let labels = format!(
            "container=\"\",id=\"/kubepods/pod{uid}\",image=\"\",interface=\"eth0\",name=\"\",namespace=\"{namespace}\",pod=\"{pod}\""
        );
        Some((labels, net::traffic(uid)?))
    });
    let links: Vec<_> = links.collect();
    for (i, what) in ["bytes", "packets", "errors", "packets_dropped"].into_iter().enumerate() {
        for (way, word) in [("receive", "received"), ("transmit", "transmitted")] {
            let name = format!("container_network_{way}_{what}_total");
            let help = format!("Cumulative count of {} {word}.", what.replace('_', " "));
            family(out, &name, "counter", &help);
            for (labels, traffic) in &links {
                let value = if way == "receive" { traffic.received[i] } else { traffic.sent[i] };
                let _ = writeln!(out, "{name}{{{labels}}} {value} {now}");
            }
        }
    }
}

pub(super) fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// CPU time in nanoseconds, memory in use, memory in use less what can be dropped, and all memory.
fn node_usage() -> (u64, u64, u64, u64) {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user, nice, system, then irq, softirq, steal; idle and iowait are no use. A tick is 10 ms.
    let busy: u64 = ticks.iter().enumerate().filter(|(i, _)| !matches!(i, 3 | 4) && *i < 8).map(|(_, t)| t).sum();
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let of = |name: &str| {
        let line = table.lines().find(|l| l.starts_with(name));
        line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let total = of("MemTotal:");
    (busy * 10_000_000, total.saturating_sub(of("MemFree:")), total.saturating_sub(of("MemAvailable:")), total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_readings() {
        let samples = Samples::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(samples.rate("a", at(10), 1_000), 0);
        assert_eq!(samples.rate("a", at(12), 3_000), 1_000);
        samples.keep(&[]);
        assert_eq!(samples.rate("a", at(14), 9_000), 0, "a container that is gone is forgotten");
    }
}
