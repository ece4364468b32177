//! How many replicas a metric asks for. No I/O.
//!
//! The rule is one ratio, of use to target, times the pods that count. What makes it long are the pods that do not count:
//! those that are going are left out, those without numbers are taken to use what keeps things as they are, and those that
//! only start are taken to use nothing before anything is added. Nothing changes within the tolerance, and no correction
//! may turn a growth into a shrinking.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::autoscaling::v2::HPAScalingRules;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;

use super::super::pods as pod;

/// A deviation that is none, as upstream's default.
const TOLERANCE: f64 = 0.1;
/// How long after its start a pod's CPU use is believed only while it is ready, in seconds.
const CPU_START: f64 = 300.0;
/// How long after its start a pod may be unready without having been ready before, in seconds.
const READY_START: f64 = 30.0;

/// One number of one pod.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Thousandths.
    pub value: i64,
    /// When it was taken, in seconds since 1970.
    pub at: f64,
    /// Over how many seconds.
    pub window: f64,
}

/// Numbers by pod.
pub type Samples = BTreeMap<String, Sample>;

/// What is aimed at.
#[derive(Clone, Debug)]
pub enum Target {
    /// A part of what pods request, in percent.
    Utilization(i32, BTreeMap<String, i64>),
    /// An average per pod, in thousandths.
    Average(i64),
}

/// What a metric asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Proposal {
    /// So many replicas.
    pub replicas: i32,
    /// Present use in percent of requests.
    pub utilization: Option<i32>,
    /// Present use per pod, or as a whole, in thousandths.
    pub value: i64,
}

/// Which deviations are none.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    up: f64,
    down: f64,
}

impl Tolerance {
    /// What the rules of both directions say.
    #[must_use]
    pub fn new(up: Option<&HPAScalingRules>, down: Option<&HPAScalingRules>) -> Self {
        let of = |r: Option<&HPAScalingRules>| {
            r.and_then(|r| r.tolerance.as_ref()).map_or(TOLERANCE, |q| millis(q).unwrap_or(100) as f64 / 1e3)
        };
        Self { up: of(up), down: of(down) }
    }

    fn within(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// A quantity's thousandths.
#[must_use]
pub fn millis(q: &Quantity) -> Option<i64> {
    skiff_core::quantity::Quantity::parse(q.0.trim()).ok().map(|q| q.millis())
}

fn text(e: &str) -> Result<Proposal, String> {
    Err(e.to_owned())
}

struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    gone: BTreeSet<String>,
}

fn group(pods: &[Arc<Pod>], samples: &Samples, cpu: bool, now: f64) -> Groups {
    let mut g = Groups { ready: 0, unready: BTreeSet::new(), missing: BTreeSet::new(), gone: BTreeSet::new() };
    for p in pods {
        let name = p.name_any();
        if pod::deleting(p) || pod::phase(p) == "Failed" {
            g.gone.insert(name);
        } else if pod::phase(p) == "Pending" {
            g.unready.insert(name);
        } else {
            match samples.get(&name) {
                None => drop(g.missing.insert(name)),
                Some(s) if cpu && starting(p, s, now) => drop(g.unready.insert(name)),
                Some(_) => g.ready += 1,
            }
        }
    }
    g
}

/// Whether the CPU use of a pod may still be that of its start.
fn starting(p: &Pod, sample: &Sample, now: f64) -> bool {
    let condition = pod::condition(p, "Ready");
    let started = p.status.as_ref().and_then(|s| s.start_time.as_ref());
    let (Some(condition), Some(started)) = (condition, started) else { return true };
    let seconds = |t: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| t.0.as_millisecond() as f64 / 1e3;
    let started = seconds(started);
    let changed = condition.last_transition_time.as_ref().map_or(0.0, seconds);
    let unready = condition.status == "False";
    if started + CPU_START > now {
        unready || sample.at < changed + sample.window
    } else {
        unready && started + READY_START > changed
    }
}

/// Ratio of use to target, utilization, average.
fn ratio(samples: &Samples, target: &Target) -> Result<(f64, Option<i32>, i64), String> {
    match target {
        Target::Average(target) => {
            let sum: i64 = samples.values().map(|s| s.value).sum();
            let average = sum / i64::try_from(samples.len().max(1)).unwrap_or(1);
            Ok((average as f64 / *target as f64, None, average))
        }
        Target::Utilization(target, requests) => {
            let known: Vec<_> = samples.iter().filter_map(|(p, s)| Some((s.value, *requests.get(p)?))).collect();
            let (used, requested) = known.iter().fold((0, 0), |a: (i64, i64), b| (a.0 + b.0, a.1 + b.1));
            if requested == 0 {
                return Err("no metrics returned matched known pods".into());
            }
            let percent = i32::try_from(i128::from(used) * 100 / i128::from(requested)).unwrap_or(i32::MAX);
            let average = used / i64::try_from(known.len()).unwrap_or(1);
            Ok((f64::from(percent) / f64::from(*target), Some(percent), average))
        }
    }
}

/// What a metric of pods asks for.
///
/// # Errors
/// Why that cannot be told, in upstream's words.
pub fn of_pods(
    current: i32,
    pods: &[Arc<Pod>],
    mut samples: Samples,
    target: &Target,
    tolerance: Tolerance,
    cpu: bool,
    now: f64,
) -> Result<Proposal, String> {
    if pods.is_empty() {
        return text("no pods returned by selector while calculating replica count");
    }
    let g = group(pods, &samples, cpu, now);
    samples.retain(|p, _| !g.gone.contains(p) && !g.unready.contains(p));
    if samples.is_empty() {
        return text("did not receive metrics for any ready pods");
    }
    let (used, utilization, value) = ratio(&samples, target)?;
    let stay = Ok(Proposal { replicas: current, utilization, value });
    let so_many = |ratio: f64, pods: usize| (ratio * pods as f64).ceil() as i32;
    let rebalance = !g.unready.is_empty() && used > 1.0;
    if !rebalance && g.missing.is_empty() {
        if tolerance.within(used) {
            return stay;
        }
        return Ok(Proposal { replicas: so_many(used, g.ready), utilization, value });
    }
    let nothing = Sample::default();
    for name in &g.missing {
        let full = match target {
            Target::Average(target) => *target,
            Target::Utilization(target, requests) => {
                requests.get(name).copied().unwrap_or(0) * i64::from((*target).max(100)) / 100
            }
        };
        if used < 1.0 {
            samples.insert(name.clone(), Sample { value: full, ..nothing });
        } else if used > 1.0 {
            samples.insert(name.clone(), nothing);
        }
    }
    if rebalance {
        samples.extend(g.unready.iter().map(|p| (p.clone(), nothing)));
    }
    let (again, ..) = ratio(&samples, target)?;
    if tolerance.within(again) || (used < 1.0 && again > 1.0) || (used > 1.0 && again < 1.0) {
        return stay;
    }
    let replicas = so_many(again, samples.len());
    if (again < 1.0 && replicas > current) || (again > 1.0 && replicas < current) {
        return stay;
    }
    Ok(Proposal { replicas, utilization, value })
}

/// What one number about something else asks for, when it is to be `target` as a whole.
///
/// # Errors
/// When no pods are there to be counted.
pub fn of_value(
    current: i32,
    pods: &[Arc<Pod>],
    value: i64,
    target: i64,
    tolerance: Tolerance,
) -> Result<Proposal, String> {
    let ratio = value as f64 / target as f64;
    let replicas = if current == 0 {
        ratio.ceil() as i32
    } else if tolerance.within(ratio) {
        current
    } else if pods.is_empty() {
        return text("unable to calculate ready pods: no pods returned by selector while calculating replica count");
    } else {
        let ready = pods.iter().filter(|p| pod::phase(p) == "Running" && pod::ready(p)).count();
        (ratio * ready as f64).ceil() as i32
    };
    Ok(Proposal { replicas, utilization: None, value })
}

/// The same when each of `replicas` is to have `target` of it.
#[must_use]
pub fn of_share(replicas: i32, value: i64, target: i64, tolerance: Tolerance) -> Proposal {
    let ratio = value as f64 / (target as f64 * f64::from(replicas));
    let wanted = if tolerance.within(ratio) { replicas } else { (value as f64 / target as f64).ceil() as i32 };
    let share = (value as f64 / f64::from(replicas.max(1))).ceil() as i64;
    Proposal { replicas: wanted, utilization: None, value: share }
}

/// What pods request of a resource (one container of them, if one is named), in thousandths.
///
/// # Errors
/// When a container requests nothing.
pub fn requests(pods: &[Arc<Pod>], resource: &str, container: Option<&str>) -> Result<BTreeMap<String, i64>, String> {
    let asked = |r: Option<&ResourceRequirements>| r?.requests.as_ref()?.get(resource).and_then(millis);
    let mut found = BTreeMap::new();
    for p in pods {
        let Some(spec) = &p.spec else { continue };
        if let (None, Some(whole)) = (container, asked(spec.resources.as_ref())) {
            found.insert(p.name_any(), whole);
            continue;
        }
        let lasting = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
        let init = spec.init_containers.iter().flatten().filter(lasting);
        let mut sum = 0;
        for c in spec.containers.iter().chain(init).filter(|c| container.is_none_or(|n| n == c.name)) {
            let Some(n) = asked(c.resources.as_ref()) else {
                let (container, pod) = (&c.name, p.name_any());
                return Err(format!("missing request for {resource} in container {container} of Pod {pod}"));
            };
            sum += n;
        }
        found.insert(p.name_any(), sum);
    }
    Ok(found)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
