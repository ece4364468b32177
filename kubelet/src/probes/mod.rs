//! Startup, liveness and readiness probes of one pod's containers.
//!
//! One task per probe of a running container. Results are kept by the runtime's identifier, so a replaced container
//! starts without the old one's readiness, while a restarted agent keeps what the API last said until the first try.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::sync::Notify;

use crate::events::{Kind as EventKind, Recorder};
use crate::metrics::ProbeCounts;
use crate::pod::spec::{self, Role};
use crate::pod::status::Health;
use crate::runtime::Runtime;
use action::Outcome;

pub mod action;

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Until it succeeds the others wait.
    Startup,
    /// Its failure restarts the container.
    Liveness,
    /// Its result decides about traffic.
    Readiness,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// Why a container must be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The probe that failed.
    pub kind: Kind,
    /// The probe's own grace period.
    pub grace: Option<i64>,
}

#[derive(Default)]
struct Entry {
    health: Health,
    failed: Option<Failed>,
    tasks: Vec<(Kind, tokio::task::JoinHandle<()>)>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|(_, task)| task.abort());
    }
}

type Results = Arc<Mutex<HashMap<String, Entry>>>;

/// The probes of one pod.
pub struct Probes {
    runtime: Arc<dyn Runtime>,
    recorder: Recorder,
    wake: Arc<Notify>,
    results: Results,
}

/// A running container to be probed.
pub struct Target<'a> {
    /// The runtime's identifier.
    pub id: String,
    /// Its kind.
    pub role: Role,
    /// Its spec.
    pub container: &'a Container,
    /// When it started.
    pub started: Option<Timestamp>,
    /// What the API said about it before this agent started, if it is the same container.
    pub before: Option<Health>,
}

impl Probes {
    /// No probes yet; `wake` is told about every change of a result.
    pub fn new(runtime: Arc<dyn Runtime>, recorder: Recorder, wake: Arc<Notify>) -> Self {
        Self { runtime, recorder, wake, results: Results::default() }
    }

    /// Starts the probes of new containers and ends those of containers that no longer run.
    pub fn sync(&self, pod: &Arc<Pod>, pod_ip: IpAddr, running: &[Target<'_>]) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.retain(|id, _| running.iter().any(|t| t.id == *id));
        for target in running {
            if results.contains_key(&target.id) {
                continue;
            }
            let container = target.container;
            let probed = target.role != Role::Init && target.role != Role::Ephemeral;
            let probe = |probe: &Option<Probe>| probe.clone().filter(|_| probed);
            let startup = probe(&container.startup_probe);
            let readiness = probe(&container.readiness_probe);
            let started = startup.is_none() || target.before.is_some_and(|h| h.started);
            let ready = started && (readiness.is_none() || target.before.is_some_and(|h| h.ready));
            let mut entry = Entry::default();
            entry.health = Health { started, ready };
            let kinds = [
                (Kind::Startup, startup.filter(|_| !started)),
                (Kind::Liveness, probe(&container.liveness_probe)),
                (Kind::Readiness, readiness),
            ];
            for (kind, probe) in kinds {
                let Some(probe) = probe else { continue };
                let task = Task {
                    runtime: self.runtime.clone(),
                    recorder: self.recorder.clone(),
                    wake: self.wake.clone(),
                    results: self.results.clone(),
                    pod: pod.clone(),
                    pod_ip,
                    container: container.clone(),
                    role: target.role,
                    id: target.id.clone(),
                    started: target.started,
                    kind,
                    probe,
                };
                entry.tasks.push((kind, tokio::spawn(task.run())));
            }
            results.insert(target.id.clone(), entry);
        }
    }

    /// What is known about each running container.
    pub fn health(&self) -> HashMap<String, Health> {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.iter().map(|(id, entry)| (id.clone(), entry.health)).collect()
    }

    /// Whether a container must be killed.
    pub fn failed(&self, id: &str) -> Option<Failed> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).get(id).and_then(|e| e.failed)
    }

    /// Ends all probes, and readiness with them.
    pub fn stop(&self) {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Ends liveness and startup probes but lets readiness go on, as a terminating pod needs.
    pub fn hold(&self, id: &str) {
        if let Some(entry) = self.results.lock().unwrap_or_else(PoisonError::into_inner).get_mut(id) {
            let ended = entry.tasks.extract_if(.., |(kind, _)| *kind != Kind::Readiness);
            ended.for_each(|(_, task)| task.abort());
        }
    }
}

struct Task {
    runtime: Arc<dyn Runtime>,
    recorder: Recorder,
    wake: Arc<Notify>,
    results: Results,
    pod: Arc<Pod>,
    pod_ip: IpAddr,
    container: Container,
    role: Role,
    id: String,
    started: Option<Timestamp>,
    kind: Kind,
    probe: Probe,
}

impl Task {
    async fn run(self) {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default))
        };
        let period = seconds(self.probe.period_seconds, 10);
        let timeout = seconds(self.probe.timeout_seconds, 1);
        let count = |value: Option<i32>, default: i32| value.filter(|v| *v > 0).unwrap_or(default);
        let needed = Counter::new(count(self.probe.success_threshold, 1), count(self.probe.failure_threshold, 3));
        let age = self.started.map_or(0, |s| Timestamp::now().as_second() - s.as_second()).max(0) as u64;
        let delay = seconds(self.probe.initial_delay_seconds, 0).saturating_sub(Duration::from_secs(age));
        tokio::time::sleep(delay).await;
        let mut counter = needed;
        let counts = ProbeCounts::new(&self.pod, &self.container.name, self.kind.word());
        loop {
            if self.kind == Kind::Startup || self.is_started() {
                let outcome = self.attempt(timeout).await;
                let told = match &outcome {
                    Outcome::Success => None,
                    Outcome::Warning(text) => {
                        Some(("ProbeWarning", format!("{} probe warning: {text}", self.kind.word())))
                    }
                    Outcome::Failure(text) => Some(("Unhealthy", format!("{} probe failed: {text}", self.kind.word()))),
                };
                if let Some((reason, message)) = told {
                    let field = spec::field_path(self.role, &self.container.name);
                    self.recorder.pod(&self.pod, Some(field), EventKind::Warning, reason, message);
                }
                let worked = !matches!(outcome, Outcome::Failure(_));
                counts.count(worked);
                if let Some(good) = counter.count(worked)
                    && self.report(good)
                {
                    return;
                }
            } else {
                // Readiness and liveness begin as soon as startup is through.
                let started = async {
                    while !self.is_started() {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                };
                if tokio::time::timeout(period, started).await.is_ok() {
                    continue;
                }
            }
            tokio::time::sleep(period).await;
        }
    }

    fn is_started(&self) -> bool {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.get(&self.id).is_some_and(|e| e.health.started)
    }

    async fn attempt(&self, timeout: Duration) -> Outcome {
        let probe = &self.probe;
        if let Some(exec) = &probe.exec {
            let command = exec.command.clone().unwrap_or_default();
            return action::exec(&*self.runtime, &self.id, &command, timeout).await;
        }
        if let Some(http) = &probe.http_get {
            return action::http(http, &self.container, self.pod_ip, timeout).await;
        }
        if let Some(tcp) = &probe.tcp_socket {
            let host = tcp.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| self.pod_ip.to_string());
            return match action::port(&tcp.port, &self.container) {
                Ok(port) => action::tcp(&host, port, timeout).await,
                Err(error) => Outcome::Failure(error),
            };
        }
        if let Some(grpc) = &probe.grpc {
            return action::grpc(self.pod_ip, grpc.port, grpc.service.as_deref().unwrap_or_default(), timeout).await;
        }
        Outcome::Failure("the probe names no action".into())
    }

    /// Records a settled result. Answers whether the probe is done.
    fn report(&self, good: bool) -> bool {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = results.get_mut(&self.id) else { return true };
        let before = (entry.health, entry.failed);
        let mut done = false;
        match (self.kind, good) {
            (Kind::Startup, true) => {
                entry.health.started = true;
                entry.health.ready = self.container.readiness_probe.is_none();
                done = true;
            }
            (Kind::Startup | Kind::Liveness, false) => {
                let grace = self.probe.termination_grace_period_seconds;
                entry.failed = Some(Failed { kind: self.kind, grace });
                done = true;
            }
            (Kind::Liveness, true) => {}
            (Kind::Readiness, good) => entry.health.ready = good,
        }
        if before != (entry.health, entry.failed) {
            self.wake.notify_one();
        }
        done
    }
}

/// Counts equal results in a row.
#[derive(Clone, Copy, Debug)]
struct Counter {
    success: i32,
    failure: i32,
    last: Option<bool>,
    run: i32,
}

impl Counter {
    fn new(success: i32, failure: i32) -> Self {
        Self { success, failure, last: None, run: 0 }
    }

    /// The result once it came often enough in a row.
    fn count(&mut self, good: bool) -> Option<bool> {
        self.run = if self.last == Some(good) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(good);
        (self.run >= if good { self.success } else { self.failure }).then_some(good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_results_in_a_row() {
        for (success, failure, results, wanted) in
            [(1, 3, "ffsfff", "..s..f"), (2, 1, "sfss", ".f.s"), (1, 1, "sfs", "sfs")]
        {
            let mut counter = Counter::new(success, failure);
            let got: String = results
                .chars()
                .map(|c| match counter.count(c == 's') {
                    Some(true) => 's',
                    Some(false) => 'f',
                    None => '.',
                })
                .collect();
            assert_eq!(got, wanted, "{success}/{failure} {results}");
        }
    }
}
