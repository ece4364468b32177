//! What controllers and scheduler count, under upstream's names.
//!
//! Buckets are upstream's, so that dashboards and alerts written for it show the same.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use skiff_metrics::{Counter, Counters, Histogram, Histograms, Labels, Part, exponential_buckets, gauges, register};

use crate::runtime::worker::Reconcile;
use crate::scheduler::queue::Queue as Pods;

/// The label that names a queue.
fn named(name: &'static str) -> Labels<1> {
    [("name", name.into())]
}

struct Work {
    adds: Counters<1>,
    retries: Counters<1>,
    queued: Histograms<1>,
    worked: Histograms<1>,
}

static WORK: LazyLock<Work> = LazyLock::new(|| {
    let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(1e-8, 10.0, 12));
    let work = Work {
        adds: Counters::default(),
        retries: Counters::default(),
        queued: Histograms::new_with_constructor(seconds),
        worked: Histograms::new_with_constructor(seconds),
    };
    register(Part::Controllers, |r| {
        r.register("workqueue_adds", "Total number of adds handled by workqueue", work.adds.clone());
        r.register("workqueue_retries", "Total number of retries handled by workqueue", work.retries.clone());
        let help = "How long in seconds an item stays in workqueue before being requested";
        r.register("workqueue_queue_duration_seconds", help, work.queued.clone());
        let help = "How long in seconds processing an item from workqueue takes";
        r.register("workqueue_work_duration_seconds", help, work.worked.clone());
        r.register_collector(Box::new(Queues));
    });
    work
});

/// What one queue counts.
pub(crate) struct Series {
    pub(crate) adds: Counter,
    pub(crate) retries: Counter,
    pub(crate) queued: Histogram,
    pub(crate) worked: Histogram,
}

/// The controllers that work now; those whose leadership was lost are gone.
static WORKING: Mutex<Vec<Weak<dyn Reconcile>>> = Mutex::new(Vec::new());

/// Shows the queue of a controller.
pub(crate) fn show(controller: &Arc<dyn Reconcile>) {
    let name = named(controller.name());
    controller.queue().measure(Series {
        adds: WORK.adds.get_or_create_owned(&name),
        retries: WORK.retries.get_or_create_owned(&name),
        queued: WORK.queued.get_or_create_owned(&name),
        worked: WORK.worked.get_or_create_owned(&name),
    });
    let mut working = WORKING.lock();
    working.retain(|c| c.strong_count() > 0);
    working.push(Arc::downgrade(controller));
}

/// How full the queues are now.
#[derive(Debug)]
struct Queues;

impl skiff_metrics::Collector for Queues {
    fn encode(&self, mut encoder: skiff_metrics::DescriptorEncoder<'_>) -> fmt::Result {
        // Several servers in one process (tests) have several queues of a name.
        let mut all: BTreeMap<&'static str, (usize, Duration, Duration)> = BTreeMap::new();
        for controller in WORKING.lock().iter().filter_map(Weak::upgrade) {
            let (sum, longest) = controller.queue().under_way();
            let entry = all.entry(controller.name()).or_default();
            *entry = (entry.0 + controller.queue().len(), entry.1 + sum, entry.2.max(longest));
        }
        let depth = all.iter().map(|(name, q)| (named(name), q.0 as f64));
        gauges(&mut encoder, "workqueue_depth", "Current depth of workqueue.", depth)?;
        let help = "Seconds of work in progress that work_duration does not show yet. Large values are stuck threads.";
        let sums = all.iter().map(|(name, q)| (named(name), q.1.as_secs_f64()));
        gauges(&mut encoder, "workqueue_unfinished_work_seconds", help, sums)?;
        let help = "How many seconds the longest running processor for workqueue has been running.";
        let longest = all.iter().map(|(name, q)| (named(name), q.2.as_secs_f64()));
        gauges(&mut encoder, "workqueue_longest_running_processor_seconds", help, longest)
    }
}

/// Which Leases of leaders this process holds.
static LEADING: Mutex<BTreeMap<String, bool>> = Mutex::new(BTreeMap::new());

/// Notes whether this process leads.
pub(crate) fn lead(lease: &str, leads: bool) {
    static ONCE: LazyLock<()> = LazyLock::new(|| register(Part::Leases, |r| r.register_collector(Box::new(Leading))));
    LazyLock::force(&ONCE);
    LEADING.lock().insert(lease.to_owned(), leads);
}

#[derive(Debug)]
struct Leading;

impl skiff_metrics::Collector for Leading {
    fn encode(&self, mut encoder: skiff_metrics::DescriptorEncoder<'_>) -> fmt::Result {
        let all = LEADING.lock().clone();
        let rows = all.into_iter().map(|(name, leads)| ([("name", name.into())], f64::from(u8::from(leads))));
        let help =
            "Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates master.";
        gauges(&mut encoder, "leader_election_master_status", help, rows)
    }
}

/// How a decision ended.
#[derive(Clone, Copy)]
pub(crate) enum Attempt {
    Scheduled,
    Unschedulable,
    Error,
}

impl Attempt {
    fn labels(self) -> Labels<2> {
        let result = match self {
            Self::Scheduled => "scheduled",
            Self::Unschedulable => "unschedulable",
            Self::Error => "error",
        };
        [("profile", crate::scheduler::NAME.into()), ("result", result.into())]
    }
}

/// What the scheduler counts.
pub(crate) struct Scheduling {
    attempts: Counters<2>,
    took: Histograms<2>,
    /// Choosing a node, without binding.
    pub(crate) algorithm: Histogram,
    sli: Histograms<1>,
    tries: Histogram,
    points: Histograms<3>,
    preemptions: Counter,
    victims: Histogram,
}

pub(crate) static SCHEDULING: LazyLock<Scheduling> = LazyLock::new(|| {
    let s = Scheduling {
        attempts: Counters::default(),
        took: Histograms::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15))),
        algorithm: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
        sli: Histograms::new_with_constructor(|| Histogram::new(exponential_buckets(0.01, 2.0, 20))),
        tries: Histogram::new(exponential_buckets(1.0, 2.0, 5)),
        points: Histograms::new_with_constructor(|| Histogram::new(exponential_buckets(0.0001, 2.0, 12))),
        preemptions: Counter::default(),
        victims: Histogram::new(exponential_buckets(1.0, 2.0, 7)),
    };
    register(Part::Scheduler, |r| {
        let help = "Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be scheduled, while 'error' means an internal scheduler problem";
        r.register("scheduler_schedule_attempts", help, s.attempts.clone());
        let help = "Scheduling attempt latency in seconds (scheduling algorithm + binding)";
        r.register("scheduler_scheduling_attempt_duration_seconds", help, s.took.clone());
        let help = "Scheduling algorithm latency in seconds";
        r.register("scheduler_scheduling_algorithm_duration_seconds", help, s.algorithm.clone());
        let help = "E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue and might involve multiple scheduling attempts";
        r.register("scheduler_pod_scheduling_sli_duration_seconds", help, s.sli.clone());
        let help = "Number of attempts to successfully schedule a pod";
        r.register("scheduler_pod_scheduling_attempts", help, s.tries.clone());
        let help = "Latency for running all plugins of a specific extension point";
        r.register("scheduler_framework_extension_point_duration_seconds", help, s.points.clone());
        let help = "Total preemption attempts in the cluster till now";
        r.register("scheduler_preemption_attempts", help, s.preemptions.clone());
        r.register("scheduler_preemption_victims", "Number of selected preemption victims", s.victims.clone());
        r.register_collector(Box::new(Pending));
    });
    s
});

impl Scheduling {
    /// A decision that took `took`, with its binding where there was one.
    pub(crate) fn attempt(&self, result: Attempt, took: Duration) {
        let labels = result.labels();
        self.attempts.get_or_create(&labels).inc();
        self.took.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A pod has a node after `tries` decisions and `took` in the queue.
    pub(crate) fn scheduled(&self, tries: u32, took: Duration) {
        // From 16 on upstream counts them together.
        let label = if tries > 15 { "16+".into() } else { tries.to_string().into() };
        self.sli.get_or_create(&[("attempts", label)]).observe(took.as_secs_f64());
        self.tries.observe(f64::from(tries));
    }

    /// Time of an extension point, in upstream's words.
    pub(crate) fn point(&self, point: &'static str, ok: bool, took: Duration) {
        let status = if ok { "Success" } else { "Error" };
        let profile = crate::scheduler::NAME.into();
        let labels = [("extension_point", point.into()), ("profile", profile), ("status", status.into())];
        self.points.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// An attempt to make room, and how many pods go for it.
    pub(crate) fn preempted(&self, victims: Option<usize>) {
        self.preemptions.inc();
        if let Some(n) = victims {
            self.victims.observe(n as f64);
        }
    }
}

/// The queues of the schedulers that work now.
static WAITING: Mutex<Vec<Weak<Pods>>> = Mutex::new(Vec::new());

/// Shows the pods of a queue.
pub(crate) fn show_pending(queue: &Arc<Pods>) {
    LazyLock::force(&SCHEDULING);
    let mut waiting = WAITING.lock();
    waiting.retain(|q| q.strong_count() > 0);
    waiting.push(Arc::downgrade(queue));
}

/// Pods that wait for a node.
#[derive(Debug)]
struct Pending;

impl skiff_metrics::Collector for Pending {
    fn encode(&self, mut encoder: skiff_metrics::DescriptorEncoder<'_>) -> fmt::Result {
        let mut sums = [0; 3];
        for queue in WAITING.lock().iter().filter_map(Weak::upgrade) {
            sums.iter_mut().zip(queue.pending()).for_each(|(sum, n)| *sum += n);
        }
        let rows = ["active", "backoff", "unschedulable"].into_iter().zip(sums);
        let rows = rows.map(|(name, n)| ([("queue", name.into())], n as f64));
        gauges(&mut encoder, "scheduler_pending_pods", "Number of pending pods, by the queue type.", rows)
    }
}
