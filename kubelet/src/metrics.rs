//! What the node agent counts, under upstream's names and with its buckets.

use std::sync::LazyLock;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use skiff_metrics::{Counter, Counters, Histogram, Histograms, Labels, Part, exponential_buckets, register};

use crate::pod::spec;

/// The counts of the agents in this process.
pub(crate) struct Agent {
    operations: Counters<1>,
    errors: Counters<1>,
    durations: Histograms<1>,
    steps: Histograms<1>,
    /// From first sight of a pod to its containers' running.
    pub(crate) starts: Histogram,
    /// From the pod's creation to its containers' running, of pods for which no image was pulled.
    pub(crate) starts_sli: Histogram,
    /// Pods that were begun, and containers.
    pub(crate) started_pods: Counter,
    pub(crate) started_containers: Counter,
}

/// Upstream's buckets of the time that a pod's start takes.
fn start_buckets() -> Histogram {
    let bounds = [
        0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
        600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
    ];
    Histogram::new(bounds)
}

pub(crate) static AGENT: LazyLock<Agent> = LazyLock::new(|| {
    let classic: fn() -> Histogram = || Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]);
    let agent = Agent {
        operations: Counters::default(),
        errors: Counters::default(),
        durations: Histograms::new_with_constructor(|| Histogram::new(exponential_buckets(0.005, 2.5, 14))),
        steps: Histograms::new_with_constructor(classic),
        starts: start_buckets(),
        starts_sli: start_buckets(),
        started_pods: Counter::default(),
        started_containers: Counter::default(),
    };
    register(Part::Agent, |r| {
        let help = "Cumulative number of runtime operations by operation type";
        r.register("kubelet_runtime_operations", help, agent.operations.clone());
        let help = "Cumulative number of runtime operation errors by operation type";
        r.register("kubelet_runtime_operations_errors", help, agent.errors.clone());
        let help = "Duration in seconds of runtime operations. Broken down by operation type";
        r.register("kubelet_runtime_operations_duration_seconds", help, agent.durations.clone());
        let help = "Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync";
        r.register("kubelet_pod_worker_duration_seconds", help, agent.steps.clone());
        let help = "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run";
        r.register("kubelet_pod_start_duration_seconds", help, agent.starts.clone());
        let help = "Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch";
        r.register("kubelet_pod_start_sli_duration_seconds", help, agent.starts_sli.clone());
        r.register("kubelet_started_pods", "Cumulative number of pods started", agent.started_pods.clone());
        let help = "Cumulative number of containers started";
        r.register("kubelet_started_containers", help, agent.started_containers.clone());
    });
    agent
});

impl Agent {
    /// A call to the runtime.
    pub(crate) fn operation(&self, kind: &'static str, ok: bool, took: Duration) {
        let labels = [("operation_type", kind.into())];
        self.operations.get_or_create(&labels).inc();
        self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        if !ok {
            self.errors.get_or_create(&labels).inc();
        }
    }

    /// A step of a pod's worker.
    pub(crate) fn step(&self, kind: &'static str, took: Duration) {
        self.steps.get_or_create(&[("operation_type", kind.into())]).observe(took.as_secs_f64());
    }
}

static PROBES: LazyLock<Counters<6>> = LazyLock::new(|| {
    let all = Counters::default();
    let help = "Cumulative number of a liveness, readiness or startup probe for a container by result";
    register(Part::Probes, |r| r.register("prober_probe", help, all.clone()));
    all
});

/// The counts of one probe of one container; they end with it.
pub(crate) struct ProbeCounts([Labels<6>; 2]);

impl ProbeCounts {
    /// For a probe called `kind`.
    pub(crate) fn new(pod: &Pod, container: &str, kind: &'static str) -> Self {
        let labels = |result: &'static str| {
            [
                ("container", container.to_owned().into()),
                ("namespace", spec::namespace(pod).to_owned().into()),
                ("pod", pod.metadata.name.clone().unwrap_or_default().into()),
                ("pod_uid", spec::uid(pod).to_owned().into()),
                ("probe_type", kind.into()),
                ("result", result.into()),
            ]
        };
        Self(["failed", "successful"].map(labels))
    }

    /// A try.
    pub(crate) fn count(&self, good: bool) {
        PROBES.get_or_create(&self.0[usize::from(good)]).inc();
    }
}

impl Drop for ProbeCounts {
    fn drop(&mut self) {
        for labels in &self.0 {
            PROBES.remove(labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_a_probe_end_with_it() {
        let mut pod = Pod::default();
        pod.metadata.name = Some("a".into());
        pod.metadata.namespace = Some("counted".into());
        let counts = ProbeCounts::new(&pod, "c", "Liveness");
        counts.count(true);
        counts.count(true);
        let line = "prober_probe_total{container=\"c\",namespace=\"counted\",pod=\"a\",pod_uid=\"\",probe_type=\"Liveness\",result=\"successful\"} 2";
        assert!(skiff_metrics::text(&[Part::Probes]).contains(line));
        drop(counts);
        assert!(!skiff_metrics::text(&[Part::Probes]).contains("counted"));
    }
}
