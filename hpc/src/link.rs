//! One cluster's line: its drivers, what Slurm said last, and the one question that serves all jobs.
//!
//! A job registers under its name in Slurm and is told (its key is queued) when what Slurm says of that name changes. Slurm is
//! asked only while somebody is registered: each second soon after something changed, slower the longer nothing does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::{HpcClusterSpec, SlurmPartitionStatus};
use crate::driver::{Facts, Files, Marker, Slurm, SlurmError};
use crate::state::Report;

/// Longest pause between questions while Slurm does not answer.
const FAILING: Duration = Duration::from_secs(30);
/// An end is expected this many seconds around the time limit.
const NEAR: i64 = 45;
/// The pause is this part of the time since the last change.
const SHARE: u32 = 60;

/// The ways to a cluster.
#[derive(Clone)]
pub struct Drivers {
    /// To Slurm.
    pub slurm: Arc<dyn Slurm>,
    /// To files, where there is one.
    pub files: Option<Arc<dyn Files>>,
}

/// What Slurm said last of one name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// Reports under the name.
    pub reports: Vec<Report>,
    /// Markers under the name.
    pub markers: Vec<Marker>,
    /// Whether Slurm was asked since the name was registered or touched.
    pub asked: bool,
}

#[derive(Default)]
struct Known {
    /// Names in Slurm, with the key of their object, since when, and when Slurm will end them.
    active: HashMap<String, (String, Instant, Option<i64>)>,
    reports: HashMap<String, Vec<Report>>,
    markers: HashMap<String, Vec<Marker>>,
    asked: Option<Instant>,
    clock: i64,
    changed: Option<Instant>,
    error: Option<SlurmError>,
    facts: Option<Facts>,
    partitions: BTreeMap<String, SlurmPartitionStatus>,
    catalogued: bool,
    pushed: bool,
}

/// A cluster's line.
pub struct Link {
    /// The cluster.
    pub name: String,
    /// What it says.
    pub spec: HpcClusterSpec,
    drivers: RwLock<Drivers>,
    known: Mutex<Known>,
    wake: Notify,
    /// When the next submission may begin.
    turn: Mutex<Instant>,
    tell: Box<dyn Fn(&str) + Send + Sync>,
}

impl Link {
    /// A line that tells keys of objects whose jobs changed.
    pub fn new(
        name: &str,
        spec: HpcClusterSpec,
        drivers: Drivers,
        tell: impl Fn(&str) + Send + Sync + 'static,
    ) -> Self {
        let (known, wake) = (Mutex::default(), Notify::new());
        let turn = Mutex::new(Instant::now());
        Self { name: name.to_owned(), spec, drivers: RwLock::new(drivers), known, wake, turn, tell: Box::new(tell) }
    }

    /// Waits for the turn of a submission: there are so many a second.
    pub async fn turn(&self) {
        let rate = self.spec.limits.as_ref().and_then(|l| l.submissions_per_second).unwrap_or(50).max(1);
        let at = {
            let mut next = self.turn.lock();
            let at = (*next).max(Instant::now());
            *next = at + Duration::from_secs(1) / rate;
            at
        };
        tokio::time::sleep_until(at).await;
    }

    /// The way to Slurm.
    pub fn slurm(&self) -> Arc<dyn Slurm> {
        Arc::clone(&self.drivers.read().slurm)
    }

    /// The way to files.
    pub fn files(&self) -> Option<Arc<dyn Files>> {
        self.drivers.read().files.clone()
    }

    /// Other ways from now on: credentials changed.
    pub fn replace(&self, drivers: Drivers) {
        *self.drivers.write() = drivers;
    }

    /// From now on changes of this name are told to this object. `limit` is when Slurm will end it.
    pub fn register(&self, name: &str, key: &str, limit: Option<i64>) {
        let mut known = self.known.lock();
        let now = Instant::now();
        match known.active.get_mut(name) {
            Some(entry) => entry.2 = limit.or(entry.2),
            None => {
                known.active.insert(name.to_owned(), (key.to_owned(), now, limit));
                known.changed = Some(now);
                self.wake.notify_one();
            }
        }
    }

    /// Something was done to a name: what was said before does not count, and Slurm is asked soon.
    pub fn touch(&self, name: &str) {
        let mut known = self.known.lock();
        let now = Instant::now();
        if let Some(entry) = known.active.get_mut(name) {
            entry.1 = now;
        }
        known.changed = Some(now);
    }

    /// Nobody asks for this name any more.
    pub fn forget(&self, name: &str) {
        let mut known = self.known.lock();
        known.active.remove(name);
        known.reports.remove(name);
        known.markers.remove(name);
    }

    /// Jobs that are asked about.
    pub fn active(&self) -> usize {
        self.known.lock().active.len()
    }

    /// What was said of a name.
    pub fn said(&self, name: &str) -> Said {
        let known = self.known.lock();
        let get = |m: &HashMap<String, Vec<Report>>| m.get(name).cloned().unwrap_or_default();
        let markers = known.markers.get(name).cloned().unwrap_or_default();
        let since = known.active.get(name).map(|(_, since, _)| *since);
        Said { reports: get(&known.reports), markers, asked: known.asked > since }
    }

    /// Asks at once: somebody said that a job ended.
    pub fn push(&self) {
        self.known.lock().pushed = true;
        self.wake.notify_one();
    }

    /// Why Slurm did not answer the last question.
    pub fn error(&self) -> Option<SlurmError> {
        self.known.lock().error.clone()
    }

    /// What is known of partitions.
    pub fn partitions(&self) -> BTreeMap<String, SlurmPartitionStatus> {
        self.known.lock().partitions.clone()
    }

    /// Remembers partitions; whether they are others than before.
    pub fn set_partitions(&self, partitions: BTreeMap<String, SlurmPartitionStatus>) -> bool {
        let mut known = self.known.lock();
        let other = known.partitions != partitions || !known.catalogued;
        known.catalogued = true;
        known.partitions = partitions;
        other
    }

    /// Whether it is known what the cluster has: it answered once.
    pub fn catalogued(&self) -> bool {
        self.known.lock().catalogued
    }

    /// What is known of the cluster.
    pub fn facts(&self) -> Option<Facts> {
        self.known.lock().facts.clone()
    }

    /// Remembers facts.
    pub fn set_facts(&self, facts: Facts) {
        self.known.lock().facts = Some(facts);
    }

    /// The pause before the next question; `None` while there is nothing to ask.
    fn pause(&self, failures: u32) -> Option<Duration> {
        let polling = self.spec.polling.clone().unwrap_or_default();
        let fast = Duration::from_millis(polling.fast_milliseconds.unwrap_or(800).into());
        let slow = Duration::from_secs(polling.slow_seconds.unwrap_or(30).into()).max(fast);
        let mut known = self.known.lock();
        if known.active.is_empty() {
            return None;
        }
        if std::mem::take(&mut known.pushed) {
            return Some(Duration::ZERO);
        }
        if failures > 0 {
            return Some(fast.saturating_mul(1 << failures.min(6)).min(FAILING.max(fast)));
        }
        let now = k8s_openapi::jiff::Timestamp::now().as_second();
        if known.active.values().any(|(_, _, limit)| limit.is_some_and(|l| (l - now).abs() <= NEAR)) {
            return Some(fast);
        }
        let age = known.changed.map_or(slow, |c| c.elapsed());
        Some((age / SHARE).clamp(fast, slow))
    }

    /// Asks until `stop`.
    pub async fn ask(self: Arc<Self>, stop: CancellationToken) {
        let mut failures = 0;
        let mut last = Instant::now();
        loop {
            let pause = self.pause(failures);
            let waited = async {
                match pause {
                    None => self.wake.notified().await,
                    // Waking up early shortens a pause, but not below the shortest.
                    Some(pause) => {
                        let _ = tokio::time::timeout_at(last + pause, self.wake.notified()).await;
                    }
                }
            };
            if stop.run_until_cancelled(waited).await.is_none() {
                return;
            }
            let due = self.pause(failures).is_some_and(|p| last.elapsed() >= p);
            if !due {
                continue;
            }
            let Some(answer) = stop.run_until_cancelled(self.once()).await else { return };
            last = Instant::now();
            failures = if answer { 0 } else { failures + 1 };
        }
    }

    /// One question; whether it was answered.
    pub async fn once(&self) -> bool {
        let (began, clock) = (Instant::now(), self.known.lock().clock);
        let answer = self.slurm().queue(clock).await;
        let tell = {
            let mut known = self.known.lock();
            match answer {
                Err(error) => {
                    tracing::debug!(cluster = self.name, %error, "Slurm was not asked");
                    let first = known.error.is_none();
                    known.error = Some(error);
                    // Jobs say so too, once.
                    if first { known.active.values().map(|(k, ..)| k.clone()).collect() } else { HashSet::new() }
                }
                Ok(snapshot) => {
                    let recovered = known.error.take().is_some();
                    known.clock = snapshot.clock;
                    let mut reports: HashMap<String, Vec<Report>> = HashMap::new();
                    for mut report in snapshot.reports {
                        // Guesses of a start change all the time; who waits is told of whole minutes.
                        if report.words.iter().any(|w| w == "PENDING") {
                            report.started = report.started.map(|s| s / 60 * 60);
                        }
                        if known.active.contains_key(&report.name) {
                            reports.entry(report.name.clone()).or_default().push(report);
                        }
                    }
                    let mut markers: HashMap<String, Vec<Marker>> = HashMap::new();
                    for marker in snapshot.markers {
                        if known.active.contains_key(&marker.name) {
                            markers.entry(marker.name.clone()).or_default().push(marker);
                        }
                    }
                    let mut tell = HashSet::new();
                    for (name, (key, since, _)) in &known.active {
                        let same = known.reports.get(name) == reports.get(name);
                        let noted = markers.get(name).is_some_and(|new| {
                            let old = known.markers.get(name).map(Vec::as_slice).unwrap_or_default();
                            new.iter().any(|m| !old.contains(m))
                        });
                        // The first answer since something was done to it counts even when it is what an earlier one said.
                        let first = *since < began && known.asked.is_none_or(|a| a < *since);
                        if !same || noted || first || recovered {
                            tell.insert(key.clone());
                        }
                    }
                    for (name, new) in markers {
                        let old = known.markers.entry(name).or_default();
                        old.retain(|m| !new.iter().any(|n| n.task == m.task));
                        old.extend(new);
                    }
                    if !tell.is_empty() {
                        known.changed = Some(began);
                    }
                    known.reports = reports;
                    known.asked = Some(began);
                    tell
                }
            }
        };
        let good = self.known.lock().error.is_none();
        crate::metrics::asked(&self.name, good);
        for key in tell {
            (self.tell)(&key);
        }
        good
    }
}
