//! One pod, from its first sight to its last trace.
//!
//! A worker is a task with an explicit stage and one step function. A step looks at the runtime, decides and acts; it
//! may be dropped at any await, because what it did is in the runtime's labels and the next step looks again. So a
//! deletion interrupts a pull or a hook at once. The worker wakes on changes of the object, on runtime events, on
//! probe results, and on timers.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Pod};
use tokio::sync::{Notify, watch};

use super::Shared;
use super::backoff::Backoff;
use super::config;
use super::ephemeral;
use super::images::Pulls;
use super::plan::{self, Observed};
use super::spec::{self, Role};
use super::status::{self, Health, Verdict, Waiting};
use crate::events::Kind as EventKind;
use crate::pod::fields::Facts;
use crate::probes::{Probes, Target};
use crate::runtime::{Container, Error as RuntimeError, State, label};

mod containers;
mod report;
mod sandbox;

use containers::Ending;
pub use sandbox::host_ports;

/// A worker looks at its pod at least this often, should a wake-up be lost.
const RESYNC: Duration = Duration::from_secs(60);
/// Wait after a failure that has no delay of its own.
const RETRY: Duration = Duration::from_secs(2);
/// How often what a pod with limits has written is looked at.
const USAGE_EVERY: Duration = Duration::from_secs(10);
/// Longest wait after repeated failures of one kind.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What the API wants of a pod.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The latest object.
    pub pod: Arc<Pod>,
    /// The object is no more.
    pub gone: bool,
}

impl Desired {
    fn deleted(&self) -> bool {
        self.gone || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// What interrupts a step when it changes: the wish to stop, and how soon.
    fn urgency(&self) -> (bool, bool, Option<i64>) {
        let meta = &self.pod.metadata;
        (self.gone, meta.deletion_timestamp.is_some(), meta.deletion_grace_period_seconds)
    }
}

/// Where a pod is in its life on this node.
#[derive(Clone, Debug, PartialEq)]
enum Stage {
    /// Just seen: to be adopted, admitted or refused.
    New,
    /// To be kept as its spec says.
    Live,
    /// No container may go on; since when.
    Stopping(Instant),
    /// Nothing runs; network and volumes are being taken away.
    Cleaning,
    /// Ended, and kept until the object is deleted.
    Over,
    /// Every trace is to be removed.
    Removing,
    /// Nothing is left.
    Gone,
}

impl Stage {
    /// What metrics call a step of this stage.
    fn operation(&self) -> &'static str {
        match self {
            Self::New => "create",
            Self::Live | Self::Over => "sync",
            Self::Stopping(_) | Self::Cleaning | Self::Removing | Self::Gone => "kill",
        }
    }
}

/// When to step again.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Next {
    Now,
    After(Duration),
}

struct Snapshot {
    sandboxes: Vec<Container>,
    containers: Vec<Container>,
}

impl Snapshot {
    fn sandbox(&self) -> Option<&Container> {
        self.sandboxes.iter().filter(|c| c.state == State::Running).max_by_key(|c| c.attempt())
    }
}

/// Drives one pod.
pub struct Worker {
    shared: Arc<Shared>,
    uid: String,
    desired: watch::Receiver<Desired>,
    wake: Arc<Notify>,
    stage: Stage,
    /// The object as last seen, with the status last written.
    pod: Arc<Pod>,
    address: Option<IpAddr>,
    /// The sandbox whose network is known to be in place.
    attached: Option<String>,
    volumes_ready: bool,
    verdict: Option<Verdict>,
    waiting: HashMap<String, Waiting>,
    crashes: HashMap<String, Backoff>,
    pulls: Pulls,
    messages: HashMap<String, String>,
    probes: Probes,
    signalled: HashSet<String>,
    resources: HashMap<String, String>,
    /// Containers that were made while their sandbox started, by their names.
    ahead: HashMap<String, containers::Ahead>,
    failures: u32,
    stale_status: bool,
    usage_seen: Option<Instant>,
    /// When the pod was first seen, until it runs; none where it was found running.
    begun: Option<Instant>,
}

impl Worker {
    /// A worker for a pod, not yet running.
    pub fn new(shared: Arc<Shared>, desired: watch::Receiver<Desired>, wake: Arc<Notify>) -> Self {
        let pod = desired.borrow().pod.clone();
        let probes = Probes::new(shared.runtime.clone(), shared.recorder.clone(), wake.clone());
        Self {
            uid: spec::uid(&pod).into(),
            shared,
            desired,
            wake,
            stage: Stage::New,
            pod,
            address: None,
            attached: None,
            volumes_ready: false,
            verdict: None,
            waiting: HashMap::new(),
            crashes: HashMap::new(),
            pulls: Pulls::default(),
            messages: HashMap::new(),
            probes,
            signalled: HashSet::new(),
            resources: HashMap::new(),
            ahead: HashMap::new(),
            failures: 0,
            stale_status: false,
            usage_seen: None,
            begun: None,
        }
    }

    /// Runs until nothing of the pod is left.
    pub async fn run(mut self) {
        while self.stage != Stage::Gone {
            let mut changes = self.desired.clone();
            let urgency = changes.borrow_and_update().urgency();
            let interrupted = async {
                // The sender lives as long as the manager knows the pod; without it nothing interrupts any more.
                if changes.wait_for(|d| d.urgency() != urgency).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let next = tokio::select! {
                biased;
                () = interrupted => Next::Now,
                next = self.step() => next,
            };
            if let Next::After(delay) = next
                && self.stage != Stage::Gone
            {
                tokio::select! {
                    () = self.wake.notified() => {}
                    changed = self.desired.changed() => if changed.is_err() {
                        tokio::time::sleep(delay).await;
                    },
                    () = tokio::time::sleep(delay) => {}
                }
            }
        }
    }

    async fn step(&mut self) -> Next {
        self.take_latest();
        let (begun, kind) = (Instant::now(), self.stage.operation());
        let result = match self.stage.clone() {
            Stage::New => self.begin().await,
            Stage::Live => self.keep().await,
            Stage::Stopping(since) => self.stop(since).await,
            Stage::Cleaning => self.clean().await,
            Stage::Over => self.rest().await,
            Stage::Removing => self.remove().await,
            Stage::Gone => Ok(Next::Now),
        };
        crate::metrics::AGENT.step(kind, begun.elapsed());
        match result {
            Ok(next) => {
                self.failures = 0;
                next
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                tracing::warn!(pod = %spec::full_name(&self.pod), stage = ?self.stage, %error, "pod step failed");
                Next::After((RETRY * 2u32.saturating_pow(self.failures.min(6) - 1)).min(RETRY_MAX))
            }
        }
    }

    /// Takes the newest object, unless our own last write is newer.
    fn take_latest(&mut self) {
        let latest = self.desired.borrow_and_update().pod.clone();
        let version = |pod: &Pod| pod.metadata.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok());
        if version(&latest) >= version(&self.pod) {
            self.pod = latest;
        }
    }

    async fn observe(&mut self) -> Result<Snapshot, RuntimeError> {
        let all = self.shared.runtime.list(Some(&self.uid)).await?;
        let (sandboxes, containers): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|c| c.label(label::KIND) == "sandbox");
        for container in containers.iter().filter(|c| c.state == State::Exited) {
            if !self.messages.contains_key(&container.id) {
                let message = self.termination_message(container).await;
                self.messages.insert(container.id.clone(), message);
            }
        }
        self.messages.retain(|id, _| containers.iter().any(|c| c.id == *id));
        Ok(Snapshot { sandboxes, containers })
    }

    /// First sight: adopt what runs, else ask whether the node takes the pod.
    async fn begin(&mut self) -> Result<Next, anyhow::Error> {
        let snapshot = self.observe().await?;
        if let Some(sandbox) = snapshot.sandbox() {
            self.address = self.shared.network.address(&self.uid, sandbox);
            let ended = matches!(self.phase(), Some("Succeeded" | "Failed"));
            tracing::debug!(pod = %spec::full_name(&self.pod), ended, "adopting pod");
        }
        let ended = matches!(self.phase(), Some("Succeeded" | "Failed"));
        if self.desired.borrow().deleted() || ended {
            self.stage = Stage::Stopping(Instant::now());
        } else if snapshot.sandboxes.is_empty() && snapshot.containers.is_empty() {
            match self.shared.admit(&self.pod) {
                Ok(()) => {
                    self.begun = Some(Instant::now());
                    self.stage = Stage::Live;
                }
                Err(verdict) => {
                    self.shared.recorder.pod(
                        &self.pod,
                        None,
                        EventKind::Warning,
                        &verdict.reason,
                        verdict.message.clone(),
                    );
                    self.verdict = Some(verdict);
                    self.publish(&snapshot, true).await;
                    self.stage = Stage::Over;
                }
            }
        } else {
            self.shared.note_admitted(&self.pod);
            self.stage = Stage::Live;
        }
        Ok(Next::Now)
    }

    fn phase(&self) -> Option<&str> {
        self.pod.status.as_ref().and_then(|s| s.phase.as_deref())
    }

    fn host_network(&self) -> bool {
        spec::spec(&self.pod).host_network.unwrap_or(false)
    }

    fn facts(&self) -> Facts {
        Facts {
            host_ip: self.shared.config.node_ip,
            pod_ip: self.address,
            allocatable_millicpu: self.shared.capacity.millicpu.into(),
            allocatable_millimemory: i128::from(self.shared.capacity.memory) * 1000,
        }
    }

    /// Keeps the pod as its spec says.
    async fn keep(&mut self) -> Result<Next, anyhow::Error> {
        if self.desired.borrow().deleted() {
            self.stage = Stage::Stopping(Instant::now());
            return Ok(Next::Now);
        }
        let mut snapshot = self.observe().await?;
        let deadline = self.active_deadline();
        if deadline == Some(Duration::ZERO) {
            let message = "Pod was active on the node longer than the specified deadline".to_string();
            self.shared.recorder.pod(&self.pod, None, EventKind::Normal, "DeadlineExceeded", message.clone());
            self.verdict = Some(Verdict { phase: "Failed", reason: "DeadlineExceeded".into(), message });
            self.stage = Stage::Stopping(Instant::now());
            return Ok(Next::Now);
        }
        let limited = ephemeral::is_limited(&self.pod);
        if limited && self.usage_seen.is_none_or(|t| t.elapsed() >= USAGE_EVERY) {
            self.usage_seen = Some(Instant::now());
            let Shared { runtime, volumes, .. } = &*self.shared;
            if let Some(message) = ephemeral::over_limit(&**runtime, volumes, &self.pod, &snapshot.containers).await {
                self.shared.recorder.pod(&self.pod, None, EventKind::Warning, "Evicted", message.clone());
                self.verdict = Some(Verdict { phase: "Failed", reason: "Evicted".into(), message });
                self.stage = Stage::Stopping(Instant::now());
                return Ok(Next::Now);
            }
        }
        // Volumes before anything runs, and again whenever the worker wakes: this is also their refresh.
        let facts = self.facts();
        if let Err(error) = self.shared.volumes.mount(&self.pod, &facts).await {
            self.shared.recorder.pod(&self.pod, None, EventKind::Warning, "FailedMount", error.to_string());
            if !self.volumes_ready {
                self.sync_probes(&snapshot);
                self.publish(&snapshot, false).await;
                return Err(error.into());
            }
        } else {
            self.volumes_ready = true;
        }
        if let Some(sandbox) = snapshot.sandbox().cloned() {
            self.connect_or_tell(&sandbox).await?;
        }
        self.sync_probes(&snapshot);
        let mut plan = self.plan(&snapshot);
        if !plan.kill.is_empty() {
            self.publish(&snapshot, false).await;
            futures::future::join_all(plan.kill.iter().map(|k| self.kill(k))).await;
            snapshot = self.observe().await?;
            self.sync_probes(&snapshot);
            plan = self.plan(&snapshot);
        }
        if plan.done {
            self.stage = Stage::Stopping(Instant::now());
            return Ok(Next::Now);
        }
        if plan.sandbox {
            self.publish(&snapshot, false).await;
            self.make_sandbox(&snapshot).await?;
            return Ok(Next::Now);
        }
        let mut retry = RESYNC;
        if plan.start.is_empty() {
            self.resize(&snapshot).await;
        } else {
            self.publish(&snapshot, false).await;
            let sandbox = snapshot.sandbox().map(|s| s.id.clone()).unwrap_or_default();
            let mut started = false;
            for start in &plan.start {
                match self.start(&snapshot, &sandbox, start).await? {
                    None => started = true,
                    Some(delay) => retry = retry.min(delay),
                }
            }
            if started {
                return Ok(Next::Now);
            }
        }
        self.publish(&snapshot, false).await;
        if self.stale_status {
            retry = retry.min(RETRY);
        }
        if let Some(left) = deadline {
            retry = retry.min(left);
        }
        if limited {
            retry = retry.min(USAGE_EVERY);
        }
        if let Some(refresh) = self.shared.volumes.next_refresh(&self.uid) {
            let left = refresh.as_second() - Timestamp::now().as_second();
            retry = retry.min(Duration::from_secs(left.max(1) as u64));
        }
        Ok(Next::After(retry))
    }

    fn plan(&self, snapshot: &Snapshot) -> plan::Plan {
        self.plan_in(snapshot, snapshot.sandbox().map(|s| s.id.as_str()))
    }

    /// What would be next in this sandbox.
    fn plan_in(&self, snapshot: &Snapshot, sandbox: Option<&str>) -> plan::Plan {
        let health = self.probes.health();
        plan::plan(&Observed {
            pod: &self.pod,
            containers: &snapshot.containers,
            sandbox,
            started: &|id| health.get(id).is_some_and(|h| h.started),
            failed: &|id| self.probes.failed(id),
        })
    }

    /// Time left of `activeDeadlineSeconds`; zero when it is over.
    fn active_deadline(&self) -> Option<Duration> {
        let limit = spec::spec(&self.pod).active_deadline_seconds?;
        let started = self.pod.status.as_ref()?.start_time.as_ref()?.0.as_second();
        Some(Duration::from_secs((started + limit - Timestamp::now().as_second()).max(0) as u64))
    }

    fn sync_probes(&self, snapshot: &Snapshot) {
        let mut all = spec::containers(&self.pod);
        if self.shared.config.fake.is_some() {
            // Nobody is there who could answer.
            all.iter_mut()
                .for_each(|(_, c)| (c.startup_probe, c.liveness_probe, c.readiness_probe) = (None, None, None));
        }
        let old = self.pod.status.clone().unwrap_or_default();
        let known: Vec<_> =
            old.container_statuses.iter().flatten().chain(old.init_container_statuses.iter().flatten()).collect();
        let running = all.iter().filter_map(|(role, container)| {
            let attempts = status::attempts(&snapshot.containers, &container.name);
            let latest = attempts.first().filter(|c| c.state == State::Running)?;
            let id = status::container_id(latest);
            let before = known.iter().find(|s| s.container_id.as_deref() == Some(&id));
            let before = before.map(|s| Health { started: s.started.unwrap_or(false), ready: s.ready });
            Some(Target { id: latest.id.clone(), role: *role, container, started: latest.started, before })
        });
        let ip = self.pod_ip().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        self.probes.sync(&self.pod, ip, &running.collect::<Vec<_>>());
    }

    fn pod_ip(&self) -> Option<IpAddr> {
        if self.host_network() { Some(self.shared.config.node_ip) } else { self.address }
    }

    /// Ends everything: containers at once, then sidecars from the last to the first.
    async fn stop(&mut self, since: Instant) -> Result<Next, anyhow::Error> {
        let snapshot = self.observe().await?;
        let all = spec::containers(&self.pod);
        let running: Vec<(&Role, &Spec, &Container)> = all
            .iter()
            .flat_map(|(role, spec)| {
                status::attempts(&snapshot.containers, &spec.name).into_iter().map(move |c| (role, spec, c))
            })
            .filter(|(_, _, c)| c.state == State::Running)
            .collect();
        // Containers the spec does not know (of an orphan) are ended like regular ones.
        let unknown: Vec<&Container> = snapshot
            .containers
            .iter()
            .filter(|c| c.state == State::Running && !running.iter().any(|(_, _, r)| r.id == c.id))
            .collect();
        if running.is_empty() && unknown.is_empty() {
            self.probes.stop();
            self.stage = Stage::Cleaning;
            return Ok(Next::Now);
        }
        let told = self.desired.borrow().deleted() || self.verdict.is_some();
        if told {
            self.publish(&snapshot, false).await;
        }
        let deadline = since + Duration::from_secs(spec::grace(&self.pod).max(0) as u64);
        for (role, container, running) in &running {
            if self.signalled.insert(running.id.clone()) {
                let field = spec::field_path(**role, &container.name);
                let message = format!("Stopping container {}", container.name);
                self.shared.recorder.pod(&self.pod, Some(field), EventKind::Normal, "Killing", message);
            }
            self.probes.hold(&running.id);
        }
        let blank = Spec::default();
        let regular = running.iter().filter(|(role, ..)| **role != Role::Sidecar);
        let ends: Vec<_> = regular
            .map(|(_, spec, c)| self.ending(&c.id, spec, deadline, true))
            .chain(unknown.iter().map(|c| self.ending(&c.id, &blank, deadline, false)))
            .collect();
        let sidecars = running.iter().rev().filter(|(role, ..)| **role == Role::Sidecar);
        let sidecars: Vec<_> = sidecars.map(|(_, spec, c)| self.ending(&c.id, spec, deadline, true)).collect();
        let mut all = std::pin::pin!(async move {
            futures::future::join_all(ends.into_iter().map(Ending::run)).await;
            for sidecar in sidecars {
                sidecar.run().await;
            }
        });
        // Readiness goes on: who still answers is still sent requests where nobody else is there.
        loop {
            tokio::select! {
                () = &mut all => return Ok(Next::Now),
                () = self.look(told) => {}
            }
        }
    }

    /// Waits until something happens to a pod that is being stopped, and tells of it. It may be dropped at any time.
    async fn look(&mut self, told: bool) {
        self.wake.notified().await;
        self.take_latest();
        if let Ok(snapshot) = self.observe().await
            && told
        {
            self.publish(&snapshot, false).await;
        }
    }

    /// Takes network and volumes away and writes the final status.
    async fn clean(&mut self) -> Result<Next, anyhow::Error> {
        let snapshot = self.observe().await?;
        if snapshot.containers.iter().any(|c| c.state == State::Running) {
            // One was started by a request that was under way when the stop began.
            self.stage = Stage::Stopping(Instant::now());
            return Ok(Next::Now);
        }
        if let Err(error) = self.shared.network.disconnect(&self.uid, &snapshot.sandboxes).await {
            let message = format!("error killing pod: failed to destroy network for sandbox: {error}");
            self.shared.recorder.pod(&self.pod, None, EventKind::Warning, "FailedKillPod", message);
            return Err(error.into());
        }
        for sandbox in &snapshot.sandboxes {
            self.shared.runtime.remove(&sandbox.id).await?;
        }
        self.shared.network.release(&self.uid).await?;
        self.shared.volumes.unmount(&self.uid).await?;
        self.shared.release(&self.uid);
        let snapshot = Snapshot { sandboxes: Vec::new(), containers: snapshot.containers };
        if !self.desired.borrow().gone {
            self.publish(&snapshot, true).await;
            if self.stale_status {
                return Ok(Next::After(RETRY));
            }
        }
        self.stage = Stage::Over;
        Ok(Next::Now)
    }

    /// Ended: waits for the object's deletion.
    async fn rest(&mut self) -> Result<Next, anyhow::Error> {
        if self.desired.borrow().deleted() {
            self.stage = Stage::Removing;
            return Ok(Next::Now);
        }
        if self.stale_status {
            let snapshot = self.observe().await?;
            self.publish(&snapshot, true).await;
        }
        Ok(Next::After(if self.stale_status { RETRY } else { RESYNC }))
    }

    /// Removes the last traces, the object among them.
    async fn remove(&mut self) -> Result<Next, anyhow::Error> {
        let all = self.shared.runtime.list(Some(&self.uid)).await?;
        self.shared.network.disconnect(&self.uid, &all).await?;
        for container in all {
            self.shared.runtime.remove(&container.id).await?;
        }
        self.shared.network.release(&self.uid).await?;
        self.shared.volumes.unmount(&self.uid).await?;
        self.shared.volumes.forget(&self.uid).await?;
        self.shared.release(&self.uid);
        if !self.desired.borrow().gone {
            self.shared.delete_object(&self.pod).await?;
        }
        self.stage = Stage::Gone;
        Ok(Next::Now)
    }
}
