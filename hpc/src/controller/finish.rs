//! The end: results come home, the object says how it ended; and what happens when it goes.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Preconditions};
use skiff_controllers::runtime::events::Level;
use skiff_controllers::runtime::worker::{Error, Outcome, found};

use super::fill::{self, FAILING, FILLING, Fill, age, under_way};
use super::follow::tasks;
use super::status::{staged_for, times};
use super::submit::marker_files;
use super::{Case, Controller, LOOK_AGAIN, UNREACHABLE, now};
use crate::api::{GpuJobSpec, Outputs, Phase, Transfer, VolumeSource, condition};
use crate::driver::{Files, SlurmError};
use crate::link::Link;
use crate::script::{Plan, places, resolve};
use crate::state::judge;
use crate::store::{Index, StoreError, Stored, matches};

/// Results that cannot be fetched are tried for so long.
const TRIES: i64 = 3600;
/// Files of an array's tasks that are kept as logs.
const LOGS: usize = 256;
/// Files of a job's directory that are looked at.
const LISTED: usize = 200_000;
/// Files that are asked about at a time.
const ASKED: usize = 200;
/// Digests of files of more bytes are computed while they are fetched.
const LARGE: u64 = 8 << 20;
/// Between looks whether a cancelled job has ended.
const CANCELLED: Duration = Duration::from_millis(500);

/// Results that are not in a job's claim.
enum Unfilled {
    /// Looked at again after this time.
    Wait(Duration),
    /// They will not be.
    Never(String),
}

/// The file that an attempt's output goes to, by kind (`stdout`, `stderr`) and task.
pub(crate) fn log_files(
    spec: &GpuJobSpec,
    link: &Link,
    directory: Option<&str>,
    name: &str,
    attempt: u32,
    id: u64,
) -> Vec<(String, String)> {
    let plan =
        Plan { spec, cluster: &link.spec, name, object: "", directory, attempt, dependencies: &[], secrets: false };
    let places = places(&plan);
    let mut all = vec![];
    for (kind, pattern) in [("stdout", &places.output), ("stderr", &places.error)] {
        if kind == "stderr" && places.error == places.output {
            continue;
        }
        let tasks = tasks(spec);
        if tasks.is_empty() {
            all.push((kind.to_owned(), resolve(pattern, id, None, name)));
        }
        all.extend(tasks.iter().map(|t| (format!("{kind}.{t}"), resolve(pattern, id, Some(*t), name))));
    }
    all
}

impl Controller {
    /// Brings results home, then says how the job ended.
    pub(super) async fn bring_home(&self, case: &mut Case, link: &Arc<Link>) -> Outcome {
        let began = Timestamp::now();
        let mut outputs = if under_way(case) {
            // They are here: what is left is to put them where the job wants them.
            let brought = case.status.outputs.clone().unwrap_or_default();
            Outputs { state: if brought.message.is_none() { Transfer::Done } else { Transfer::Partial }, ..brought }
        } else {
            match self.fetch(case, link).await? {
                Ok(outputs) => outputs,
                Err(wait) => return Ok(Some(wait)),
            }
        };
        if let Some(volume) = case.job.spec.results_volume.clone().filter(|_| outputs.files > 0) {
            match self.put_away(case, link, &volume, &outputs).await? {
                Ok(()) => {}
                Err(Unfilled::Wait(wait)) => return Ok(Some(wait)),
                Err(Unfilled::Never(why)) => {
                    outputs.state = Transfer::Partial;
                    outputs.message = Some(outputs.message.map_or(why.clone(), |m| format!("{why}; {m}")));
                }
            }
        }
        staged_for(case, began);
        let (here, message) = (outputs.state == Transfer::Done, outputs.message.clone().unwrap_or_default());
        case.status.outputs = Some(outputs);
        case.set(condition::OUTPUTS_READY, here, if here { "Done" } else { "Incomplete" }, message);
        if let Some(intent) = &case.status.intent {
            link.forget(&intent.name);
        }
        let failed = case.status.conditions.iter().find(|c| c.type_ == condition::FAILURE_TARGET && c.status == "True");
        match failed.cloned() {
            Some(target) => self.fail(case, &target.reason, target.message),
            None => {
                case.status.phase = Some(Phase::Succeeded);
                case.set(condition::COMPLETE, true, "Completed", "");
                times(case).finished.get_or_insert_with(now);
                let message = format!("attempt {} of {} ended well", case.status.attempt, case.key);
                self.note(case, Level::Normal, "Completed", message);
            }
        }
        self.save(case).await?;
        self.after(case).await
    }

    /// Fetches results; or says when that is tried again.
    async fn fetch(&self, case: &mut Case, link: &Arc<Link>) -> Result<Result<Outputs, Duration>, Error> {
        let wanted = !case.job.spec.outputs.is_empty();
        Ok(Ok(match link.files() {
            Some(files) if case.status.identity.is_some() => {
                if wanted {
                    case.status.outputs.get_or_insert_default().state = Transfer::Moving;
                    self.save(case).await?;
                }
                match self.collect(case, link, &*files).await {
                    Ok(outputs) => outputs,
                    Err(error) => {
                        if age(case) < TRIES {
                            case.set(condition::OUTPUTS_READY, false, "TransferFailed", error.to_string());
                            self.save(case).await?;
                            return Ok(Err(UNREACHABLE));
                        }
                        Outputs { state: Transfer::Failed, message: Some(error.to_string()), ..Outputs::default() }
                    }
                }
            }
            _ if wanted => {
                let message = "the cluster is reached by slurmrestd, which moves no files";
                Outputs { state: Transfer::Failed, message: Some(message.into()), ..Outputs::default() }
            }
            _ => Outputs { state: Transfer::Done, ..Outputs::default() },
        }))
    }

    /// Puts results into the job's claim, in several steps.
    async fn put_away(
        &self,
        case: &mut Case,
        link: &Link,
        volume: &VolumeSource,
        outputs: &Outputs,
    ) -> Result<Result<(), Unfilled>, Error> {
        let index = self.store.index(case.uid()).await.map_err(|e| Error::Other(e.to_string()))?;
        if index.files.is_empty() {
            // Somebody emptied the store, or it is another machine's: they are brought again.
            case.set(condition::OUTPUTS_READY, false, "TransferFailed", "results are not in the store any more");
            self.save(case).await?;
            return Ok(Err(Unfilled::Wait(fill::LOOK)));
        }
        // Said before it begins: what was brought is not brought again.
        case.status.outputs = Some(Outputs { state: Transfer::Moving, ..outputs.clone() });
        if !under_way(case) {
            // From here on it is counted how long this takes.
            case.status.conditions.retain(|c| c.type_ != condition::OUTPUTS_READY);
            case.set(condition::OUTPUTS_READY, false, FILLING, "");
            self.save(case).await?;
        }
        let (reason, why, wait) = match self.fill(case, link, volume, &index).await? {
            Fill::Done => return Ok(Ok(())),
            Fill::Wait(why) => (FILLING, why, fill::LOOK),
            Fill::Failed(why) => (FAILING, why, LOOK_AGAIN),
        };
        if age(case) >= TRIES {
            self.give_up_filling(case).await?;
            return Ok(Err(Unfilled::Never(format!("claim {}: {why}", volume.claim_name))));
        }
        if reason == FAILING {
            self.note(case, Level::Warning, FAILING, &*why);
        }
        // Why it failed stays said while the next pod is on its way.
        let failed = case.status.conditions.iter().any(|c| c.type_ == condition::OUTPUTS_READY && c.reason == FAILING);
        if reason == FAILING || !failed {
            case.set(condition::OUTPUTS_READY, false, reason, why);
        }
        self.save(case).await?;
        Ok(Err(Unfilled::Wait(wait)))
    }

    /// Fetches what the job printed and what its patterns mean.
    async fn collect(&self, case: &Case, link: &Link, files: &dyn Files) -> Result<Outputs, StoreError> {
        let spec = &case.job.spec;
        let Some(identity) = &case.status.identity else { return Ok(Outputs::default()) };
        let directory = case.status.directory.as_deref();
        let limits = link.spec.store.clone().unwrap_or_default();
        let most_bytes = limits.job_bytes.and_then(|b| u64::try_from(b).ok()).unwrap_or(10 << 30);
        let most_files = limits.job_files.unwrap_or(10_000) as usize;
        let mut index = Index::default();
        let logs = log_files(spec, link, directory, &identity.name, case.status.attempt, identity.job_id);
        let (mut bytes, mut count) = (0u64, 0u32);
        for chunk in logs.into_iter().take(LOGS).collect::<Vec<_>>().chunks(ASKED) {
            for (name, stored) in self.bring(case, files, chunk, &mut bytes, most_bytes, &mut index.left_out).await? {
                index.logs.insert(name, stored);
            }
        }
        if let Some(directory) = directory.filter(|_| !spec.outputs.is_empty()) {
            let listed = files.list(directory, LISTED).await?;
            let meant = |path: &str| spec.outputs.iter().any(|p| matches(p, path));
            let chosen: Vec<_> = listed.into_iter().filter(|e| meant(&e.path)).collect();
            let too_many = chosen.len().saturating_sub(most_files);
            if too_many > 0 {
                index.left_out.push(format!("{too_many} files: at most {most_files} are kept"));
            }
            for pattern in &spec.outputs {
                if !chosen.iter().any(|e| matches(pattern, &e.path)) {
                    index.left_out.push(format!("{pattern}: there is no such file"));
                }
            }
            let paths: Vec<_> = chosen
                .into_iter()
                .take(most_files)
                .map(|e| (e.path.clone(), format!("{directory}/{}", e.path)))
                .collect();
            for chunk in paths.chunks(ASKED) {
                for (path, stored) in
                    self.bring(case, files, chunk, &mut bytes, most_bytes, &mut index.left_out).await?
                {
                    count += 1;
                    index.files.insert(path, stored);
                }
            }
        }
        self.store.save(case.uid(), &index).await?;
        let complete = index.left_out.is_empty();
        let message = index.left_out.iter().take(8).cloned().collect::<Vec<_>>().join("; ");
        Ok(Outputs {
            files: count,
            bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
            state: if complete { Transfer::Done } else { Transfer::Partial },
            message: Some(message).filter(|m| !m.is_empty()),
        })
    }

    /// Fetches files, each with the name it has in the index. Those that are not there are left out.
    async fn bring(
        &self,
        case: &Case,
        files: &dyn Files,
        chunk: &[(String, String)],
        bytes: &mut u64,
        most: u64,
        left_out: &mut Vec<String>,
    ) -> Result<Vec<(String, Stored)>, StoreError> {
        let paths: Vec<String> = chunk.iter().map(|(_, path)| path.clone()).collect();
        let facts = files.stat(&paths, LARGE).await?;
        let mut room = most.saturating_sub(*bytes);
        let small = paths.iter().zip(&facts).filter_map(|(path, fact)| Some((path.as_str(), fact.as_ref()?)));
        let small = small.take_while(|(_, f)| room.checked_sub(f.size).inspect(|left| room = *left).is_some());
        self.store.fetch_small(files, case.uid(), &small.collect::<Vec<_>>()).await?;
        let mut all = vec![];
        for ((name, path), fact) in chunk.iter().zip(facts) {
            let Some(fact) = fact else { continue };
            if *bytes + fact.size > most {
                left_out.push(format!("{name}: with its {} bytes there were more than {most}", fact.size));
                continue;
            }
            match self.store.fetch(files, case.uid(), path, &fact).await {
                Ok(stored) => {
                    crate::metrics::brought(case.status.cluster.as_deref().unwrap_or_default(), fact.size);
                    *bytes += fact.size;
                    all.push((name.clone(), stored));
                }
                Err(StoreError::Changed(_)) => left_out.push(format!("{name}: it changed while it was fetched")),
                Err(StoreError::Slurm(SlurmError::Refused(why))) => left_out.push(format!("{name}: {why}")),
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// A job that has ended: it goes when its time is over.
    pub(super) async fn after(&self, case: &mut Case) -> Outcome {
        let Some(ttl) = case.job.spec.ttl_seconds_after_finished else { return Ok(None) };
        let finished = case.status.times.as_ref().and_then(|t| t.finished.clone()).unwrap_or_else(now);
        let left = finished.0.as_second() + i64::from(ttl) - Timestamp::now().as_second();
        if left > 0 {
            return Ok(Some(Duration::from_secs(left.unsigned_abs())));
        }
        let preconditions = Preconditions {
            uid: case.job.metadata.uid.clone(),
            resource_version: case.job.metadata.resource_version.clone(),
        };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        found(self.api(case.namespace()).delete(case.name(), &parameters).await.map(drop))?;
        Ok(None)
    }

    /// The object goes: what is in Slurm is cancelled, and that is seen, before it may.
    pub(super) async fn delete(&self, case: &mut Case) -> Outcome {
        let ours = case.job.metadata.finalizers.iter().flatten().any(|f| f == crate::api::FINALIZER);
        if !ours {
            return Ok(None);
        }
        let cluster = case.status.cluster.clone().unwrap_or_default();
        let sent = case.status.intent.as_ref().filter(|i| i.sent).map(|i| i.name.clone());
        match (self.clusters.link(&cluster), self.clusters.get(&cluster).is_some()) {
            (Some(link), _) => {
                let ended = case.status.phase.is_some_and(Phase::ended);
                if let Some(name) = sent.as_ref().filter(|_| !ended) {
                    match self.cancel(case, &link, name).await {
                        Ok(true) => {}
                        Ok(false) => return Ok(Some(CANCELLED)),
                        Err(error) => {
                            self.note(case, Level::Warning, "CancelFailed", error.to_string());
                            return self.unreachable(case, &error).await;
                        }
                    }
                }
                if let Some(name) = &sent {
                    link.forget(name);
                }
                self.clean(case, &link).await;
            }
            (None, true) if sent.is_some() && !case.status.phase.is_some_and(Phase::ended) => {
                return Ok(Some(UNREACHABLE));
            }
            // Nothing of it is in Slurm; what was moved there stays.
            (None, true) => {}
            (None, false) => {
                if sent.is_some() && !case.status.phase.is_some_and(Phase::ended) {
                    let message = format!("HpcCluster {cluster} is gone: nobody can cancel the job in Slurm");
                    self.note(case, Level::Warning, "CancelUnconfirmed", message);
                }
            }
        }
        self.store.remove(case.uid()).await.map_err(|e| Error::Other(e.to_string()))?;
        self.finalizer(case, false).await?;
        self.written.forget(&case.key);
        Ok(None)
    }

    /// Cancels; whether it is over.
    pub(super) async fn cancel(&self, case: &Case, link: &Link, name: &str) -> Result<bool, SlurmError> {
        let id = case.status.identity.as_ref().map(|i| i.job_id);
        link.slurm().cancel(id, name).await?;
        let over = |all: &[crate::state::Report]| all.iter().all(|r| judge(r, true).terminal);
        if let Some(id) = id {
            let mut all = link.slurm().jobs(&[id]).await?;
            all.retain(|r| r.name == name);
            return Ok(over(&all));
        }
        let found = link.slurm().find(name).await?;
        let all: Vec<_> = found.reports.into_iter().map(|(_, r)| r).collect();
        // What was sent may still arrive.
        let settled = case.status.intent.as_ref().is_none_or(|i| self.is_settled(i));
        Ok(if all.is_empty() { settled } else { over(&all) })
    }

    /// Removes what a job left on its cluster. What cannot be removed is told, and left.
    async fn clean(&self, case: &Case, link: &Link) {
        let Some(files) = link.files() else { return };
        let mut paths = vec![];
        let uid = case.uid();
        for attempt in 1..=case.status.attempt.min(1000) {
            paths.push(marker_files(link, &crate::script::name(uid, attempt)));
            for task in tasks(&case.job.spec) {
                paths.push(format!("{}.{task}", marker_files(link, &crate::script::name(uid, attempt))));
            }
        }
        let work = format!("{}/", link.spec.work_directory.trim_end_matches('/'));
        let directory =
            case.status.directory.as_ref().filter(|d| d.starts_with(&work) && !case.job.spec.keep_directory);
        paths.extend(directory.cloned());
        for chunk in paths.chunks(500) {
            if let Err(error) = files.remove(chunk).await {
                self.note(case, Level::Warning, "CleanupFailed", error.to_string());
                return;
            }
        }
    }
}
