//! slurmrestd, of any version of its API from v0.0.38 on: which one is read from the document it publishes.
//!
//! Whether a request went well is in its error numbers, never in the HTTP status alone: an unknown job is a 500. What Slurm's
//! controller forgot is asked of the other half of its interface, accounting, where a slurmdbd is behind it. It moves no
//! files and runs no commands; markers and the completion log are read by the way to files, where there is one. Options of
//! sbatch that the API in use has no field for are refused before anything is sent.

mod answer;
mod describe;
mod jobs;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use self::answer::{Answer, number};
use self::describe::describe;
use self::wire::Wire;
use super::text::Beside;
use super::{Catalogue, Facts, Files, Found, QUICK, SUBMIT, Slurm, SlurmError, Snapshot, Submitted};
use crate::api::{Decider, RestAccess};
use crate::catalogue::{rest_nodes, rest_partitions};
use crate::script::{Script, parse_name};
use crate::state::Report;
use crate::state::parse::{rest_accounted, rest_job, rest_jobs};

/// Versions of the API whose shapes are known here.
const VERSIONS: std::ops::RangeInclusive<u32> = 38..=45;
/// From this version on the script is a part of the job.
const SCRIPT_IN_JOB: u32 = 41;

/// A name that no job has: to see whether accounting answers.
const NOBODY: &str = "skiff-nobody";

/// slurmrestd.
pub struct Rest {
    wire: Wire,
    files: Option<Arc<dyn Files>>,
    beside: Beside,
    version: Mutex<Option<u32>>,
}

impl Rest {
    /// A way to this slurmrestd with these credentials; `files` moves what it does not.
    ///
    /// # Errors
    /// When the credentials cannot be used.
    pub fn new(
        access: RestAccess,
        secret: &BTreeMap<String, Vec<u8>>,
        files: Option<Arc<dyn Files>>,
        work: &str,
        completion_log: Option<&str>,
    ) -> Result<Self, SlurmError> {
        let beside = Beside::new(work, completion_log);
        Ok(Self { wire: Wire::new(access, secret)?, files, beside, version: Mutex::default() })
    }

    /// The version of the API: what the cluster's spec says, or the newest that both sides know.
    async fn version(&self) -> Result<u32, SlurmError> {
        let known = *self.version.lock();
        if let Some(version) = known {
            return Ok(version);
        }
        let parse = |v: &str| v.strip_prefix("v0.0.").and_then(|n| n.parse::<u32>().ok());
        let version = match self.wire.access.version.as_deref().and_then(parse) {
            Some(version) => version,
            None => {
                let mut document = self.wire.ask(Method::GET, "/openapi/v3", None, QUICK).await?;
                if document.status == 404 {
                    document = self.wire.ask(Method::GET, "/openapi", None, QUICK).await?;
                }
                let document = document.ok()?;
                choose(&document.body)?
            }
        };
        *self.version.lock() = Some(version);
        Ok(version)
    }

    async fn slurm(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Answer, SlurmError> {
        let version = self.version().await.map_err(|e| match e {
            // Nothing was sent of what is asked for.
            SlurmError::Lost(why) => SlurmError::Unreachable(why),
            other => other,
        })?;
        self.wire.ask(method, &format!("/slurm/v0.0.{version}{path}"), body, limit).await
    }

    /// What accounting knows under a name; `None` where slurmrestd has none to ask: it lacks that half of its interface, has no
    /// slurmdbd behind it, or that one does not take tokens.
    async fn accounted(&self, name: &str) -> Result<Option<Vec<Report>>, SlurmError> {
        let version = self.version().await?;
        // Names are of letters, digits and hyphens: see [`crate::script::name`].
        let path = format!("/slurmdb/v0.0.{version}/jobs?job_name={name}");
        let answer = self.wire.ask(Method::GET, &path, None, QUICK).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        if answer.has(number::NOTHING) {
            return Ok(Some(vec![]));
        }
        match answer.ok() {
            Ok(answer) => Ok(Some(rest_accounted(&answer.body))),
            Err(SlurmError::Refused(_) | SlurmError::Denied(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks at all jobs, of everybody.
    async fn each(&self, mut each: impl FnMut(Report) + Send) -> Result<(), SlurmError> {
        let version = self.version().await?;
        let path = format!("/slurm/v0.0.{version}/jobs");
        let mut read = |job: Value| {
            if let Some(report) = rest_job(&job) {
                each(report);
            }
        };
        self.wire.list(&path, QUICK, &mut read).await?.ok().map(drop)
    }

    /// The jobs whose names are so.
    async fn named(&self, is: impl Fn(&str) -> bool + Send + Sync) -> Result<Vec<Report>, SlurmError> {
        let mut all = vec![];
        self.each(|report| {
            if is(&report.name) {
                all.push(report);
            }
        })
        .await?;
        Ok(all)
    }

    async fn update(&self, id: u64, change: &Value) -> Result<(), SlurmError> {
        self.slurm(Method::POST, &format!("/job/{id}"), Some(change), QUICK).await?.ok().map(drop)
    }
}

/// The newest version that a published document has and that is known here.
fn choose(document: &Value) -> Result<u32, SlurmError> {
    let paths = document.get("paths").and_then(Value::as_object).into_iter().flat_map(Map::keys);
    let versions = paths.filter_map(|p| {
        let rest = p.strip_prefix("/slurm/v0.0.")?;
        rest.split('/').next()?.parse::<u32>().ok()
    });
    let all: std::collections::BTreeSet<u32> = versions.collect();
    let newest = all.iter().rev().find(|v| VERSIONS.contains(v)).copied();
    newest.ok_or_else(|| {
        let all = all.iter().map(|v| format!("v0.0.{v}")).collect::<Vec<_>>().join(", ");
        SlurmError::Unsupported(format!("slurmrestd offers {all}; known here are v0.0.38 to v0.0.45"))
    })
}

#[async_trait]
impl Slurm for Rest {
    async fn submit(&self, script: &Script, directories: &[String]) -> Result<Submitted, SlurmError> {
        let unsent = |e: SlurmError| match e {
            SlurmError::Lost(why) | SlurmError::Busy(why) => SlurmError::Unreachable(why),
            other => other,
        };
        let version = self.version().await.map_err(unsent)?;
        let mut job = match describe(&script.options, version) {
            Ok(job) => job,
            Err(SlurmError::Unsupported(why)) => return Err(SlurmError::Refused(why)),
            Err(other) => return Err(other),
        };
        if let Some(files) = &self.files {
            let out = files.run(&self.beside.make(directories), QUICK).await.map_err(unsent)?;
            if out.code != 0 {
                return Err(SlurmError::Unreachable(format!("the work directory cannot be used: {}", out.complaint())));
            }
        }
        let body = if version >= SCRIPT_IN_JOB {
            job["script"] = json!(script.text);
            json!({"job": job})
        } else {
            json!({"job": job, "script": script.text})
        };
        let answer = self.slurm(Method::POST, "/job/submit", Some(&body), SUBMIT).await?;
        // Numbers beside an id are remarks, such as that it is held.
        let id = answer.body.get("job_id").or_else(|| answer.body.pointer("/result/job_id"));
        let id = id.and_then(crate::state::parse::number).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
        match (id, answer.error()) {
            (Some(job_id), _) => Ok(Submitted { job_id, cluster: None }),
            (None, Some(error)) => Err(error),
            (None, None) => Err(SlurmError::Lost("slurmrestd named no job".into())),
        }
    }

    async fn queue(&self, since: i64) -> Result<Snapshot, SlurmError> {
        let reports = self.named(|name| parse_name(name).is_some()).await?;
        let (markers, clock) = match &self.files {
            // Without markers the queue is still the truth.
            Some(files) => match files.run(&self.beside.ask_markers(since), QUICK).await {
                Ok(out) => Beside::read_markers(&out.text()),
                Err(_) => (vec![], since),
            },
            None => (vec![], 0),
        };
        Ok(Snapshot { reports, markers, clock })
    }

    async fn jobs(&self, ids: &[u64]) -> Result<Vec<Report>, SlurmError> {
        let mut all = vec![];
        for id in ids {
            let answer = self.slurm(Method::GET, &format!("/job/{id}"), None, QUICK).await?;
            if !answer.has(number::INVALID_JOB) {
                all.extend(rest_jobs(&answer.ok()?.body));
            }
        }
        Ok(all)
    }

    async fn find(&self, name: &str) -> Result<Found, SlurmError> {
        let mut found = Found::default();
        found.reports.extend(self.named(|n| n == name).await?.into_iter().map(|r| (Decider::Queue, r)));
        if let Some(files) = &self.files {
            let out = files.run(&self.beside.ask_name(name), QUICK).await?;
            self.beside.read_name(&out, name, &mut found)?;
        }
        match self.accounted(name).await {
            Ok(Some(reports)) => {
                found.lasting = true;
                let ours = reports.into_iter().filter(|r| r.name == name);
                found.reports.extend(ours.map(|r| (Decider::Accounting, r)));
            }
            Ok(None) => {}
            // What one of two lasting memories says is enough.
            Err(_) if found.lasting => {}
            Err(error) => return Err(error),
        }
        Ok(found)
    }

    async fn cancel(&self, id: Option<u64>, name: &str) -> Result<(), SlurmError> {
        let known = match id {
            Some(id) => self.jobs(&[id]).await?,
            None => self.named(|n| n == name).await?,
        };
        // An id may be another's after a reset.
        let mut ids: Vec<u64> = known.iter().filter(|r| r.name == name).map(|r| r.job_id).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let answer = self.slurm(Method::DELETE, &format!("/job/{id}"), None, QUICK).await?;
            let gone = answer.has(number::INVALID_JOB) || answer.has(number::ALREADY_DONE);
            if !gone {
                answer.ok()?;
            }
        }
        Ok(())
    }

    async fn hold(&self, id: u64) -> Result<(), SlurmError> {
        self.update(id, &json!({"hold": true})).await
    }

    async fn release(&self, id: u64) -> Result<(), SlurmError> {
        self.update(id, &json!({"hold": false})).await
    }

    async fn catalogue(&self) -> Result<Catalogue, SlurmError> {
        let partitions = self.slurm(Method::GET, "/partitions", None, QUICK).await?.ok()?;
        let nodes = self.slurm(Method::GET, "/nodes", None, QUICK).await?.ok()?;
        let has = |r: &Report, words: &[&str]| r.words.iter().any(|w| words.contains(&w.as_str()));
        let (mut waiting, mut running) = (0, 0);
        self.each(|job| {
            waiting += u64::from(has(&job, &["PENDING"]));
            running += u64::from(has(&job, &["RUNNING", "COMPLETING", "SUSPENDED"]));
        })
        .await?;
        Ok(Catalogue {
            partitions: rest_partitions(&partitions.body),
            nodes: rest_nodes(&nodes.body),
            waiting,
            running,
        })
    }

    async fn facts(&self) -> Result<Facts, SlurmError> {
        let version = self.version().await?;
        let ping = self.slurm(Method::GET, "/ping", None, QUICK).await?.ok()?;
        let text = |paths: [&str; 2]| {
            let found = paths.iter().find_map(|p| ping.body.pointer(p)).and_then(Value::as_str);
            found.filter(|t| !t.is_empty()).map(str::to_owned)
        };
        Ok(Facts {
            version: text(["/meta/Slurm/release", "/meta/slurm/release"]).unwrap_or_default(),
            api_version: Some(format!("v0.0.{version}")),
            cluster: text(["/meta/slurm/cluster", "/meta/Slurm/cluster"]),
            accounting: matches!(self.accounted(NOBODY).await, Ok(Some(_))),
        })
    }

    fn credential_expires(&self) -> Option<i64> {
        self.wire.expires()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version() {
        let of = |versions: &[u32]| {
            let paths = versions.iter().map(|v| (format!("/slurm/v0.0.{v}/jobs"), json!({})));
            choose(&json!({"paths": paths.collect::<Map<_, _>>()}))
        };
        // 22.05, 24.11, 26.05, one of the future.
        let table: [(&[u32], Option<u32>); 5] = [
            (&[36, 37, 38], Some(38)),
            (&[40, 41, 42], Some(42)),
            (&[42, 43, 44, 45], Some(45)),
            (&[44, 45, 46, 47], Some(45)),
            (&[35, 36, 37], None),
        ];
        for (offered, want) in table {
            assert_eq!(of(offered).ok(), want, "{offered:?}");
        }
    }
}
