//! Jobs that come after others: names of objects become ids of Slurm.

use super::{Case, Controller, sibling};
use crate::api::{DependencyType, GpuJob, Phase};
use crate::script::dependency_word;

/// Label of jobs of which only one at a time is in Slurm.
const SINGLETON: &str = "skiff.dev/singleton";

/// How dependencies stand.
pub(super) enum Depends {
    /// As Slurm writes them; nothing is left where all are fulfilled.
    On(Vec<String>),
    /// For another job, which is not in Slurm yet.
    Wait(String),
    /// They will never be.
    Never(String),
}

impl Controller {
    /// How the dependencies of a job stand now.
    pub(super) fn depends(&self, case: &Case) -> Depends {
        let mut on = vec![];
        for dependency in &case.job.spec.dependencies {
            if dependency.kind == DependencyType::Singleton {
                if let Some(other) = self.before(case) {
                    return Depends::Wait(format!("job {other} of the same singleton has not ended"));
                }
                continue;
            }
            let Some(name) = &dependency.job else { continue };
            if name == case.name() {
                return Depends::Never("a job cannot come after itself".into());
            }
            let Some(other) = self.jobs.get(&sibling(case, name)) else {
                return Depends::Wait(format!("there is no job {name}"));
            };
            let status = other.status.clone().unwrap_or_default();
            let phase = status.phase.unwrap_or_default();
            if phase.ended() {
                match (dependency.kind, phase) {
                    (DependencyType::After | DependencyType::AfterAny, _)
                    | (DependencyType::AfterOk | DependencyType::AfterCorr, Phase::Succeeded)
                    | (DependencyType::AfterNotOk, Phase::Failed) => continue,
                    (kind, _) => {
                        let has = if phase == Phase::Succeeded { "succeeded" } else { "failed" };
                        return Depends::Never(format!("job {name} has {has}, {kind:?} will never be"));
                    }
                }
            }
            let same = status.cluster == case.status.cluster;
            match (status.identity, dependency_word(dependency.kind)) {
                (Some(identity), Some(word)) if same => on.push(format!("{word}:{}", identity.job_id)),
                _ if same => return Depends::Wait(format!("job {name} is not in Slurm yet")),
                _ => return Depends::Wait(format!("job {name} of another cluster has not ended")),
            }
        }
        Depends::On(on)
    }

    /// A job of the same singleton that comes before.
    fn before(&self, case: &Case) -> Option<String> {
        let group = |job: &GpuJob| job.metadata.labels.as_ref().and_then(|l| l.get(SINGLETON)).cloned();
        let ours = group(&case.job)?;
        let order = |job: &GpuJob| (job.metadata.creation_timestamp.as_ref().map(|t| t.0), job.metadata.name.clone());
        let mine = order(&case.job);
        let ended = |job: &GpuJob| job.status.as_ref().and_then(|s| s.phase).is_some_and(Phase::ended);
        let all = self.jobs.in_namespace(case.namespace());
        let first = all.into_iter().filter(|j| group(j).as_ref() == Some(&ours) && !ended(j) && order(j) < mine);
        first.min_by_key(|j| order(j)).and_then(|j| j.metadata.name.clone())
    }
}
