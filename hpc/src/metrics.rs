//! What this room counts, beside what the controllers of its process count.
//!
//! Nothing is registered before there is an HpcCluster. Labels are names of HpcClusters, of which there are few, and words of
//! the program; never jobs or users.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use skiff_metrics::{
    Collector, Counters, DescriptorEncoder, Histogram, Histograms, Labels, Part, exponential_buckets, gauges, register,
};

use crate::api::Class;
use crate::controller::Controller;
use crate::driver::SlurmError;

struct Families {
    submissions: Counters<2>,
    seconds: Histograms<1>,
    questions: Counters<2>,
    pushes: Counters<1>,
    ends: Counters<2>,
    retries: Counters<2>,
    bytes: Counters<1>,
}

static FAMILIES: LazyLock<Families> = LazyLock::new(|| {
    // From a local sbatch (5 ms) to the deadline of one (a minute).
    let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.005, 2.0, 15));
    let f = Families {
        submissions: Counters::default(),
        seconds: Histograms::new_with_constructor(seconds),
        questions: Counters::default(),
        pushes: Counters::default(),
        ends: Counters::default(),
        retries: Counters::default(),
        bytes: Counters::default(),
    };
    register(Part::Controllers, |r| {
        let help = "Submissions to Slurm by what became of them: accepted, refused, lost (found later, or sent again), unsent, found";
        r.register("skiff_hpc_submissions", help, f.submissions.clone());
        r.register("skiff_hpc_submission_seconds", "Time of a submission, of Slurm's own included", f.seconds.clone());
        let help = "Questions about all jobs of a cluster, answered or failed";
        r.register("skiff_hpc_questions", help, f.questions.clone());
        r.register("skiff_hpc_pushes", "Ends that an epilog told", f.pushes.clone());
        r.register(
            "skiff_hpc_attempts_ended",
            "Attempts that ended, by the reason in their conditions",
            f.ends.clone(),
        );
        r.register("skiff_hpc_retries", "Attempts that were tried again, by the class of their end", f.retries.clone());
        r.register("skiff_hpc_result_bytes", "Bytes of results and logs that were brought here", f.bytes.clone());
        r.register_collector(Box::new(Jobs));
    });
    f
});

/// The controller that works now.
static WORKING: Mutex<Weak<Controller>> = Mutex::new(Weak::new());

/// From now on jobs of this controller are shown.
pub(crate) fn show(controller: &Arc<Controller>) {
    LazyLock::force(&FAMILIES);
    *WORKING.lock() = Arc::downgrade(controller);
}

fn labels<const N: usize>(names: [&'static str; N], values: [Cow<'static, str>; N]) -> Labels<N> {
    let mut values = values.into_iter();
    names.map(|n| (n, values.next().unwrap_or_default()))
}

fn two(cluster: &str, name: &'static str, value: &'static str) -> Labels<2> {
    labels(["cluster", name], [cluster.to_owned().into(), value.into()])
}

fn one(cluster: &str) -> Labels<1> {
    labels(["cluster"], [cluster.to_owned().into()])
}

/// A submission came to this.
pub(crate) fn submitted<T>(cluster: &str, took: Duration, result: &Result<T, SlurmError>) {
    let word = match result {
        Ok(_) => "accepted",
        Err(SlurmError::Refused(_)) => "refused",
        Err(error) if error.sure() => "unsent",
        Err(_) => "lost",
    };
    FAMILIES.submissions.get_or_create_owned(&two(cluster, "result", word)).inc();
    FAMILIES.seconds.get_or_create_owned(&one(cluster)).observe(took.as_secs_f64());
}

/// A job whose answer was lost was found.
pub(crate) fn found(cluster: &str) {
    FAMILIES.submissions.get_or_create_owned(&two(cluster, "result", "found")).inc();
}

/// Slurm was asked about all jobs.
pub(crate) fn asked(cluster: &str, answered: bool) {
    let word = if answered { "answered" } else { "failed" };
    FAMILIES.questions.get_or_create_owned(&two(cluster, "result", word)).inc();
}

/// An epilog said that a job ended.
pub(crate) fn pushed(cluster: &str) {
    FAMILIES.pushes.get_or_create_owned(&one(cluster)).inc();
}

/// An attempt ended.
pub(crate) fn ended(cluster: &str, reason: &'static str) {
    FAMILIES.ends.get_or_create_owned(&two(cluster, "reason", reason)).inc();
}

/// An attempt is followed by another.
pub(crate) fn retried(cluster: &str, class: Class) {
    let word = match class {
        Class::Infrastructure => "infrastructure",
        Class::User => "user",
        Class::Never => "never",
        Class::Unknown => "unknown",
    };
    FAMILIES.retries.get_or_create_owned(&two(cluster, "class", word)).inc();
}

/// So many bytes came.
pub(crate) fn brought(cluster: &str, bytes: u64) {
    FAMILIES.bytes.get_or_create_owned(&one(cluster)).inc_by(bytes);
}

/// Jobs that have not ended, by where they are.
#[derive(Debug)]
struct Jobs;

impl Collector for Jobs {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(controller) = WORKING.lock().upgrade() else { return Ok(()) };
        let mut all: BTreeMap<(String, &'static str), f64> = BTreeMap::new();
        for job in controller.jobs.all() {
            let status = job.status.as_ref();
            let phase = status.and_then(|s| s.phase).unwrap_or_default();
            if !phase.ended() {
                let cluster = status.and_then(|s| s.cluster.clone()).unwrap_or_default();
                *all.entry((cluster, phase.as_str())).or_default() += 1.0;
            }
        }
        let values = all.into_iter().map(|((cluster, phase), n)| (two(&cluster, "phase", phase), n));
        gauges(&mut encoder, "skiff_hpc_jobs", "Jobs that have not ended, by cluster and phase", values)
    }
}
