//! `/metrics` of the node: what agent, proxy and name server of this process count, and what the agent has now.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use http::{Response, StatusCode, header};
use nix::sys::statvfs::{Statvfs, statvfs};

use super::stats::family;
use super::{Body, Server, text};
use crate::runtime::{Container, State, label};

/// A file server that is away must not hold up the rest.
const DISK_TIMEOUT: Duration = Duration::from_secs(2);

/// The answer.
pub(super) async fn own(server: &Server) -> Response<Body> {
    let shared = &server.manager.shared;
    let mut out = String::new();
    let mut gauge = |name: &str, help: &str, rows: &[(String, f64)]| {
        family(&mut out, name, "gauge", help);
        for (labels, value) in rows {
            let _ = writeln!(out, "{name}{labels} {value}");
        }
    };
    let plain = |n: usize| [(String::new(), n as f64)];
    let node = format!("{{node=\"{}\"}}", shared.config.node_name);
    gauge("kubelet_node_name", "The node's name. The count is always 1.", &[(node, 1.0)]);
    let all = shared.runtime.list(None).await.unwrap_or_default();
    let (sandboxes, containers): (Vec<_>, Vec<_>) = all.into_iter().partition(|c| c.label(label::KIND) == "sandbox");
    let running = sandboxes.iter().filter(|c| c.state == State::Running).count();
    gauge("kubelet_running_pods", "Number of pods that have a running pod sandbox", &plain(running));
    gauge("kubelet_running_containers", "Number of containers currently running", &states(&containers));
    let pods = server.manager.pods();
    gauge("kubelet_desired_pods", "The number of pods the kubelet is being instructed to run", &plain(pods.len()));
    let mut claims: Vec<(String, String, PathBuf)> =
        pods.iter().flat_map(|pod| shared.volumes.of_claims(pod)).collect();
    claims.sort();
    claims.dedup_by(|a, b| (&a.0, &a.1) == (&b.0, &b.1));
    let read = tokio::task::spawn_blocking(move || {
        let disk = |(namespace, claim, path): (String, String, PathBuf)| {
            let labels = format!("{{namespace=\"{namespace}\",persistentvolumeclaim=\"{claim}\"}}");
            Some((labels, statvfs(&path).ok()?))
        };
        claims.into_iter().filter_map(disk).collect::<Vec<_>>()
    });
    let disks = tokio::time::timeout(DISK_TIMEOUT, read).await.ok().and_then(Result::ok).unwrap_or_default();
    for (name, help, value) in DISK {
        let rows: Vec<_> = disks.iter().map(|(labels, disk)| (labels.clone(), value(disk))).collect();
        gauge(name, help, &rows);
    }
    family(&mut out, "kubelet_dropped_events_total", "counter", "Events dropped because the queue was full");
    let _ = writeln!(out, "kubelet_dropped_events_total {}", server.node.recorder().dropped());
    out.push_str(&skiff_metrics::text(skiff_metrics::NODE));
    out.push_str(&skiff_metrics::process());
    shown(out)
}

/// Text for Prometheus.
pub(super) fn shown(metrics: String) -> Response<Body> {
    let mut answer = text(StatusCode::OK, metrics);
    let kind = header::HeaderValue::from_static(skiff_metrics::CONTENT_TYPE);
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

fn states(containers: &[Container]) -> Vec<(String, f64)> {
    let count = |(name, state): (&str, State)| {
        let n = containers.iter().filter(|c| c.state == state).count();
        (format!("{{container_state=\"{name}\"}}"), n as f64)
    };
    [("created", State::Created), ("exited", State::Exited), ("running", State::Running)].map(count).to_vec()
}

type Figure = fn(&Statvfs) -> f64;

/// The file system that a claim's volume is on. Directories of one disk share its figures, as everywhere.
const DISK: [(&str, &str, Figure); 6] = [
    ("kubelet_volume_stats_capacity_bytes", "Capacity in bytes of the volume", |s| bytes(s, s.blocks())),
    ("kubelet_volume_stats_available_bytes", "Number of available bytes in the volume", |s| {
        bytes(s, s.blocks_available())
    }),
    ("kubelet_volume_stats_used_bytes", "Number of used bytes in the volume", |s| {
        bytes(s, s.blocks() - s.blocks_free())
    }),
    ("kubelet_volume_stats_inodes", "Maximum number of inodes in the volume", |s| s.files() as f64),
    ("kubelet_volume_stats_inodes_free", "Number of free inodes in the volume", |s| s.files_free() as f64),
    ("kubelet_volume_stats_inodes_used", "Number of used inodes in the volume", |s| {
        s.files().saturating_sub(s.files_free()) as f64
    }),
];

fn bytes(s: &Statvfs, blocks: u64) -> f64 {
    blocks as f64 * s.fragment_size() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_a_disk() {
        let disk = statvfs("/").unwrap();
        let all = DISK.map(|(_, _, value)| value(&disk));
        let [capacity, available, used, inodes, free, taken] = all;
        assert!(capacity >= available && capacity >= used && capacity > 1e6, "{all:?}");
        assert!((inodes - free - taken).abs() < 1.0, "{all:?}");
    }
}
