//! Clusters: lines to them, what they say of themselves, and their partitions as objects.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use skiff_controllers::runtime::controller_ref;
use skiff_controllers::runtime::events::{Level, Recorder};
use skiff_controllers::runtime::informer::{Informer, key_of};
use skiff_controllers::runtime::queue::Queue;
use skiff_controllers::runtime::worker::{Error, Outcome, Reconcile, code, found};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::api::{
    CLUSTER, HpcCluster, HpcClusterSpec, HpcClusterStatus, LocalAccess, SecretRef, SlurmPartition, SlurmPartitionSpec,
    SlurmPartitionStatus, SshAccess,
};
use crate::catalogue::add_up;
use crate::controller::{now, set};
use crate::driver::local::Local;
use crate::driver::rest::Rest;
use crate::driver::ssh::Ssh;
use crate::driver::text::Text;
use crate::driver::{Catalogue, Files, Slurm, SlurmError};
use crate::link::{Drivers, Link};

/// After a failure.
const AGAIN: Duration = Duration::from_secs(10);
/// A credential that ends within this time is told.
const EXPIRING: i64 = 24 * 3600;
/// `lastSeen` is written this often when nothing else changes.
const SEEN: i64 = 300;

struct Line {
    link: Arc<Link>,
    /// Of spec and credentials.
    spec: HpcClusterSpec,
    credentials: [u8; 32],
    stop: CancellationToken,
}

/// All clusters.
pub struct Clusters {
    client: Client,
    clusters: Informer<HpcCluster>,
    lines: Mutex<HashMap<String, Line>>,
    queue: Queue,
    jobs: Arc<Queue>,
    recorder: Recorder,
    stop: CancellationToken,
    /// Told when clusters come and go.
    pub(crate) changed: Notify,
}

impl Clusters {
    /// Clusters whose jobs' keys go to `jobs`.
    #[must_use]
    pub fn new(client: Client, jobs: Arc<Queue>, stop: &CancellationToken) -> Self {
        Self {
            recorder: Recorder::start(client.clone(), "skiff-hpc"),
            client,
            clusters: Informer::default(),
            lines: Mutex::default(),
            queue: Queue::default(),
            jobs,
            stop: stop.clone(),
            changed: Notify::new(),
        }
    }

    /// Follows clusters until `stop`. False when the first list took too long.
    pub async fn follow(self: &Arc<Self>, limit: Duration) -> bool {
        let this = Arc::downgrade(self);
        self.clusters.on_change(move |change| {
            let Some(this) = this.upgrade() else { return };
            let generation = |c: &Arc<HpcCluster>| c.metadata.generation;
            if change.old.as_ref().map(generation) != change.new.as_ref().map(generation) {
                this.queue.add(key_of(&**change.latest()));
            }
            this.changed.notify_one();
        });
        self.clusters.start(Api::all(self.client.clone()), watcher::Config::default(), self.stop.clone());
        self.clusters.wait_synced(limit).await
    }

    /// Names of clusters, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.clusters.keys();
        names.sort();
        names
    }

    /// A cluster.
    pub fn get(&self, name: &str) -> Option<Arc<HpcCluster>> {
        self.clusters.get(name)
    }

    /// The line to a cluster, once it has answered.
    pub fn link(&self, name: &str) -> Option<Arc<Link>> {
        self.lines.lock().get(name).map(|l| Arc::clone(&l.link)).filter(|l| l.catalogued())
    }

    /// A Secret's values.
    pub(crate) async fn secret(&self, reference: &SecretRef) -> Result<BTreeMap<String, Vec<u8>>, SlurmError> {
        let api = Api::<Secret>::namespaced(self.client.clone(), &reference.namespace);
        let (namespace, name) = (&reference.namespace, &reference.name);
        let secret = api.get_opt(name).await.map_err(|e| SlurmError::Unreachable(e.to_string()))?;
        let secret = secret.ok_or_else(|| SlurmError::Denied(format!("there is no Secret {namespace}/{name}")))?;
        Ok(secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect())
    }

    async fn credentials(&self, spec: &HpcClusterSpec) -> Result<Vec<BTreeMap<String, Vec<u8>>>, SlurmError> {
        let files = spec.files.as_ref().and_then(|f| f.ssh.as_ref());
        let references = [
            spec.ssh.as_ref().map(|s| &s.secret),
            spec.rest.as_ref().and_then(|r| r.secret.as_ref()),
            files.map(|s| &s.secret),
        ];
        let mut all = vec![];
        for reference in references {
            all.push(match reference {
                Some(reference) => self.secret(reference).await?,
                None => BTreeMap::new(),
            });
        }
        Ok(all)
    }

    /// The line of a cluster as it is now: a new one where the spec is another, new drivers where the credentials are.
    async fn connect(&self, name: &str, spec: &HpcClusterSpec) -> Result<Arc<Link>, SlurmError> {
        let credentials = self.credentials(spec).await?;
        let mut hash = Sha256::new();
        for (key, value) in credentials.iter().flatten() {
            hash.update((key.len() as u64).to_le_bytes());
            hash.update(key);
            hash.update((value.len() as u64).to_le_bytes());
            hash.update(value);
        }
        let digest: [u8; 32] = hash.finalize().into();
        if let Some(line) = self.lines.lock().get(name).filter(|l| l.spec == *spec && l.credentials == digest) {
            return Ok(Arc::clone(&line.link));
        }
        let drivers = drivers(spec, &credentials)?;
        let mut lines = self.lines.lock();
        if let Some(line) = lines.get_mut(name).filter(|l| l.spec == *spec) {
            line.link.replace(drivers);
            line.credentials = digest;
            return Ok(Arc::clone(&line.link));
        }
        let jobs = Arc::clone(&self.jobs);
        let link = Arc::new(Link::new(name, spec.clone(), drivers, move |key| jobs.add(key)));
        let stop = self.stop.child_token();
        tokio::spawn(Arc::clone(&link).ask(stop.clone()));
        let line = Line { link: Arc::clone(&link), spec: spec.clone(), credentials: digest, stop };
        if let Some(old) = lines.insert(name.to_owned(), line) {
            old.stop.cancel();
        }
        Ok(link)
    }

    async fn step(&self, name: &str) -> Outcome {
        let Some(cluster) = self.clusters.get(name) else {
            if let Some(line) = self.lines.lock().remove(name) {
                line.stop.cancel();
            }
            self.forget_partitions(name, &[]).await?;
            return Ok(None);
        };
        let before = cluster.status.clone().unwrap_or_default();
        let mut status = before.clone();
        status.observed_generation = cluster.metadata.generation;
        status.driver = Some(driver_name(&cluster.spec).to_owned());
        let looked = self.look(name, &cluster, &mut status).await;
        let generation = cluster.metadata.generation;
        let mut say = |kind: &str, holds: bool, reason: &str, message: String| {
            set(&mut status.conditions, kind, holds, reason, message, generation);
        };
        let again = match &looked {
            Ok(()) => {
                say("Reachable", true, "Answers", String::new());
                say("Ready", true, "Answers", String::new());
                let seconds = cluster.spec.polling.as_ref().and_then(|p| p.catalogue_seconds).unwrap_or(60);
                Duration::from_secs(seconds.into())
            }
            Err(error) => {
                let was = before.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
                if was {
                    self.recorder.note(&*cluster, Level::Warning, error.reason(), error.to_string());
                }
                say("Reachable", false, error.reason(), error.to_string());
                say("Ready", false, error.reason(), error.to_string());
                AGAIN
            }
        };
        let ready = looked.is_ok();
        let became = ready && !before.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
        let seen = before.last_seen.as_ref().map_or(i64::MAX, |t| Timestamp::now().as_second() - t.0.as_second());
        if ready && (status != before || seen > SEEN) {
            status.last_seen = Some(now());
        }
        if status != before {
            let mut new = (*cluster).clone();
            new.status = Some(status);
            let api = Api::<HpcCluster>::all(self.client.clone());
            match api.replace_status(name, &PostParams::default(), &new).await {
                Err(e) if code(&e) == 409 => return Ok(Some(Duration::from_millis(200))),
                other => found(other.map(drop))?,
            };
        }
        if became {
            self.changed.notify_one();
        }
        Ok(Some(again))
    }

    async fn look(&self, name: &str, cluster: &HpcCluster, status: &mut HpcClusterStatus) -> Result<(), SlurmError> {
        let link = self.connect(name, &cluster.spec).await?;
        let generation = cluster.metadata.generation;
        if link.facts().is_none() || status.version.is_none() {
            link.set_facts(link.slurm().facts().await?);
        }
        let facts = link.facts().unwrap_or_default();
        status.version = Some(facts.version.clone()).filter(|v| !v.is_empty());
        status.api_version = facts.api_version.clone();
        status.cluster_name = facts.cluster.clone();
        let expires = link.slurm().credential_expires();
        status.credential_expires = expires
            .and_then(|e| Timestamp::from_second(e).ok())
            .map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time);
        let conditions = &mut status.conditions;
        let accounting = if facts.accounting {
            ("Slurmdbd", "")
        } else {
            ("NoSlurmdbd", "what Slurm has forgotten is found only by completion log and markers")
        };
        set(conditions, "AccountingAvailable", facts.accounting, accounting.0, accounting.1, generation);
        match (&cluster.spec.rest, link.files().is_some()) {
            (_, true) => set(conditions, "FilesReachable", true, "Configured", "", generation),
            (_, false) => {
                let message =
                    "slurmrestd moves no files: spec.files says how; without it jobs have neither sources nor outputs";
                set(conditions, "FilesReachable", false, "NotConfigured", message, generation);
            }
        }
        let left = expires.map(|e| e - Timestamp::now().as_second());
        match left {
            Some(left) if left < EXPIRING => {
                let reason = if left <= 0 { "Expired" } else { "ExpiresSoon" };
                let message = if left <= 0 {
                    "the credential has ended".to_owned()
                } else {
                    format!("the credential ends in {} minutes", left / 60)
                };
                set(conditions, "CredentialExpiring", true, reason, message, generation);
            }
            Some(_) => set(conditions, "CredentialExpiring", false, "Valid", "", generation),
            None => {}
        }
        let Catalogue { partitions, nodes, waiting, running } = link.slurm().catalogue().await?;
        status.queued = i64::try_from(waiting).ok();
        status.running = i64::try_from(running).ok();
        status.jobs = i64::try_from(link.active()).ok();
        let all = add_up(&partitions, &nodes);
        let written = self.write_partitions(cluster, &all).await;
        if link.set_partitions(all) {
            self.changed.notify_one();
        }
        written.map_err(|e| SlurmError::Garbled(format!("partitions could not be written: {e}")))
    }

    /// Makes partitions' objects what Slurm says.
    async fn write_partitions(
        &self,
        cluster: &HpcCluster,
        all: &BTreeMap<String, SlurmPartitionStatus>,
    ) -> Result<(), Error> {
        let name = cluster.metadata.name.clone().unwrap_or_default();
        let api = Api::<SlurmPartition>::all(self.client.clone());
        let list = ListParams::default().labels(&format!("{CLUSTER}={name}"));
        let there = api.list(&list).await?;
        let mut keep = vec![];
        for (partition, status) in all {
            let object = object_name(&name, partition);
            keep.push(object.clone());
            let known = there.items.iter().find(|p| p.metadata.name.as_ref() == Some(&object)).cloned();
            let mut known = match known {
                Some(known) => known,
                None => {
                    let spec = SlurmPartitionSpec { cluster: name.clone(), partition: partition.clone() };
                    let mut new = SlurmPartition::new(&object, spec);
                    new.metadata.labels = Some([(CLUSTER.to_owned(), name.clone())].into());
                    new.metadata.owner_references = Some(vec![controller_ref(cluster)]);
                    api.create(&PostParams::default(), &new).await?
                }
            };
            let old = known.status.take();
            let same = old.as_ref().is_some_and(|o| SlurmPartitionStatus { updated: None, ..o.clone() } == *status);
            if !same {
                known.status = Some(SlurmPartitionStatus { updated: Some(now()), ..status.clone() });
                api.replace_status(&object, &PostParams::default(), &known).await?;
            }
        }
        self.forget_partitions(&name, &keep).await
    }

    async fn forget_partitions(&self, cluster: &str, keep: &[String]) -> Result<(), Error> {
        let api = Api::<SlurmPartition>::all(self.client.clone());
        for old in api.list(&ListParams::default().labels(&format!("{CLUSTER}={cluster}"))).await?.items {
            let name = old.metadata.name.unwrap_or_default();
            if !keep.contains(&name) {
                found(api.delete(&name, &DeleteParams::default()).await.map(drop))?;
            }
        }
        Ok(())
    }
}

/// The name of a partition's object: Slurm's names have letters that objects' names may not have.
fn object_name(cluster: &str, partition: &str) -> String {
    let plain: String =
        partition.to_ascii_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let name = format!("{cluster}-{}", plain.trim_matches('-'));
    if plain == partition && name.len() <= 253 {
        return name;
    }
    // Two names must not become one.
    let digest: String = Sha256::digest(partition.as_bytes()).iter().take(4).map(|b| format!("{b:02x}")).collect();
    format!("{}-{digest}", name.chars().take(240).collect::<String>().trim_end_matches('-'))
}

fn driver_name(spec: &HpcClusterSpec) -> &'static str {
    if spec.ssh.is_some() {
        "ssh"
    } else if spec.rest.is_some() {
        "rest"
    } else {
        "local"
    }
}

fn local(access: &LocalAccess, spec: &HpcClusterSpec) -> Arc<Text<Local>> {
    let shell = Local::new(access.user.clone());
    let (bin, conf) = (access.bin_directory.as_deref(), access.conf.as_deref());
    Arc::new(Text::new(shell, bin, conf, &spec.work_directory, spec.completion_log.as_deref()))
}

fn ssh(
    access: &SshAccess,
    spec: &HpcClusterSpec,
    secret: &BTreeMap<String, Vec<u8>>,
) -> Result<Arc<Text<Ssh>>, SlurmError> {
    let shell = Ssh::new(access.clone(), secret)?;
    let (bin, conf) = (access.bin_directory.as_deref(), access.conf.as_deref());
    Ok(Arc::new(Text::new(shell, bin, conf, &spec.work_directory, spec.completion_log.as_deref())))
}

/// The ways to a cluster, as its spec says. `credentials`: of SSH, of slurmrestd, of SSH for files.
fn drivers(spec: &HpcClusterSpec, credentials: &[BTreeMap<String, Vec<u8>>]) -> Result<Drivers, SlurmError> {
    let none = BTreeMap::new();
    let secret = |i: usize| credentials.get(i).unwrap_or(&none);
    if let Some(access) = &spec.local {
        let text = local(access, spec);
        return Ok(Drivers { slurm: Arc::clone(&text) as Arc<dyn Slurm>, files: Some(text as Arc<dyn Files>) });
    }
    if let Some(access) = &spec.ssh {
        let text = ssh(access, spec, secret(0))?;
        return Ok(Drivers { slurm: Arc::clone(&text) as Arc<dyn Slurm>, files: Some(text as Arc<dyn Files>) });
    }
    let Some(access) = &spec.rest else {
        return Err(SlurmError::Unsupported("the cluster does not say how it is reached".into()));
    };
    let access_files = spec.files.clone().unwrap_or_default();
    let files: Option<Arc<dyn Files>> = match (&access_files.local, &access_files.ssh) {
        (Some(a), _) => Some(local(a, spec)),
        (None, Some(a)) => Some(ssh(a, spec, secret(2))?),
        (None, None) => None,
    };
    let slurm =
        Rest::new(access.clone(), secret(1), files.clone(), &spec.work_directory, spec.completion_log.as_deref())?;
    Ok(Drivers { slurm: Arc::new(slurm), files })
}

impl Reconcile for Clusters {
    fn name(&self) -> &'static str {
        "hpcclusters"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.step(key).boxed()
    }

    fn resync(&self) {
        for name in self.names() {
            self.queue.add(name);
        }
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(300)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_partitions() {
        assert_eq!(object_name("pi", "a100"), "pi-a100");
        let (a, b) = (object_name("pi", "A100"), object_name("pi", "a_100"));
        assert!(a.starts_with("pi-a100-") && b.starts_with("pi-a-100-") && a != object_name("pi", "a100"), "{a} {b}");
    }
}
