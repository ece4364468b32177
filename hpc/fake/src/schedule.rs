//! What time does to jobs: scripted ones go through their steps, waiting ones start when nothing is in their way.
//!
//! Nobody sleeps here for that: every tool brings the state up to date before it looks, and what a process ends tells itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use crate::state::{Job, Locked, Plan};
use crate::words::{STATES, Step};

/// The reason, and the hold, of a job that could not be started.
pub(crate) const UNLAUNCHED: &str = "launch failed requeued held";

impl Locked {
    /// Brings everything up to this moment. Answers which jobs' processes the caller must start once it has saved.
    pub fn advance(&mut self, now: i64) -> Vec<u32> {
        let mut start = Vec::new();
        let launch_failures = self.faults.launch_failures;
        let ids: Vec<u32> = self.state.jobs.values().filter(|j| !j.gone && !j.ended()).map(|j| j.id).collect();
        let mut waiting = Vec::new();
        for id in ids {
            let Some(job) = self.state.jobs.get(&id) else { continue };
            if let Plan::Steps(_, Some(_)) = job.plan {
                self.follow(id, now);
            } else if job.state == "PENDING" {
                waiting.push(id);
            }
        }
        if waiting.is_empty() {
            self.forget(now);
            return start;
        }
        let mut used = self.usage();
        let mut singletons = BTreeMap::<(String, String), u32>::new();
        let names: BTreeSet<String> =
            waiting.iter().filter_map(|id| Some(self.state.jobs.get(id)?.name().to_owned())).collect();
        for job in self.state.jobs.values().filter(|j| !j.gone && !j.ended() && names.contains(j.name())) {
            singletons.entry((job.user.clone(), job.name().to_owned())).or_insert(job.id);
        }
        for id in waiting {
            let Some(job) = self.state.jobs.get(&id) else { continue };
            let waits = self.waits(job, &singletons, now);
            let placed = match (&waits, &job.plan) {
                (Some(_), _) => None,
                // Its first step says where it waits.
                (None, Plan::Steps(steps, _)) if steps.first().is_some_and(|s| s.state == "PENDING") => {
                    Some(Vec::new())
                }
                (None, _) => self.place(job, &used),
            };
            let reason = match (&waits, &placed) {
                (Some(reason), _) => reason,
                (None, _) => "Resources",
            };
            // Most go on waiting for what they waited for: nothing is to be written.
            if placed.is_none() && job.reason == reason {
                continue;
            }
            let Some(job) = self.state.jobs.get_mut(&id) else { continue };
            match placed {
                None => reason.clone_into(&mut job.reason),
                Some(_) if job.restarts < launch_failures => {
                    job.restarts += 1;
                    job.held = Some(UNLAUNCHED.into());
                    UNLAUNCHED.clone_into(&mut job.reason);
                }
                Some(nodes) => {
                    "None".clone_into(&mut job.reason);
                    let process = job.plan == Plan::Process;
                    if process {
                        "RUNNING".clone_into(&mut job.state);
                        job.start = Some(now);
                        start.push(id);
                    }
                    for node in &nodes {
                        let (cpus, gpus) = used.entry(node.clone()).or_default();
                        *cpus += job.cpus().div_ceil(job.node_count().max(1));
                        *gpus += job.gpus().iter().map(|g| g.1).sum::<u32>();
                    }
                    job.nodes = nodes;
                    if let Plan::Steps(_, at) = &mut job.plan {
                        *at = Some(0);
                        job.since = now;
                        self.enter(id, now);
                        self.follow(id, now);
                    }
                }
            }
        }
        self.forget(now);
        start
    }

    /// Takes the step a job is at, and those after it whose time has come.
    fn follow(&mut self, id: u32, now: i64) {
        while let Some(job) = self.state.jobs.get(&id) {
            let Plan::Steps(steps, Some(at)) = &job.plan else { return };
            let Some(step) = steps.get(*at) else { return };
            if *at + 1 >= steps.len() {
                return;
            }
            let left = job.since + step.milliseconds.unwrap_or(0);
            if now < left {
                return;
            }
            let Some(job) = self.state.jobs.get_mut(&id) else { return };
            if let Plan::Steps(_, Some(at)) = &mut job.plan {
                *at += 1;
            }
            job.since = left;
            self.enter(id, left);
        }
    }

    /// Makes a job what its step says.
    fn enter(&mut self, id: u32, now: i64) {
        let Some(job) = self.state.jobs.get_mut(&id) else { return };
        let Plan::Steps(steps, Some(at)) = &job.plan else { return };
        let Some(step): Option<Step> = steps.get(*at).cloned() else { return };
        if step.gone {
            job.gone = true;
            return;
        }
        let was_started = job.start.is_some() && job.state != "PENDING";
        job.state = step.state;
        job.flags = step.flags;
        let usual = STATES.iter().find(|s| s.0 == job.state).map_or((0, 0), |s| s.2);
        let ended = job.ended() || job.flags.iter().any(|f| f == "COMPLETING");
        job.exit = step.exit.unwrap_or(if ended { usual } else { (0, 0) });
        job.derived = step.derived.unwrap_or(job.derived);
        job.reason = step.reason.unwrap_or_else(|| {
            match job.state.as_str() {
                "FAILED" if job.exit.0 != 0 => "NonZeroExitCode",
                "FAILED" => "JobLaunchFailure",
                "TIMEOUT" => "TimeLimit",
                "NODE_FAIL" => "NodeDown",
                "OUT_OF_MEMORY" => "OutOfMemory",
                _ => "None",
            }
            .into()
        });
        match job.state.as_str() {
            "PENDING" => {
                if was_started {
                    job.restarts += 1;
                }
                (job.start, job.end) = (None, None);
                job.nodes.clear();
            }
            _ => {
                job.start.get_or_insert(now);
                if job.nodes.is_empty() {
                    job.nodes = vec![self.config.nodes.first().map_or_else(|| "n1".into(), |n| n.name.clone())];
                }
                if ended {
                    job.end.get_or_insert(now);
                }
            }
        }
        if self.state.jobs.get(&id).is_some_and(Job::ended) {
            self.log_end(id);
        }
    }

    /// Cores and GPUs in use by node.
    fn usage(&self) -> BTreeMap<String, (u32, u32)> {
        let mut used = BTreeMap::<String, (u32, u32)>::new();
        for job in self.state.jobs.values().filter(|j| j.holds_nodes() && !j.gone) {
            for node in &job.nodes {
                let (cpus, gpus) = used.entry(node.clone()).or_default();
                *cpus += job.cpus().div_ceil(job.node_count().max(1));
                *gpus += job.gpus().iter().map(|g| g.1).sum::<u32>();
            }
        }
        used
    }

    /// Cores and GPUs in use on a node.
    #[must_use]
    pub fn used_on(&self, node: &str) -> (u32, u32) {
        self.usage().get(node).copied().unwrap_or_default()
    }

    /// Why a job that waits must go on waiting, but for room.
    fn waits(&self, job: &Job, singletons: &BTreeMap<(String, String), u32>, now: i64) -> Option<String> {
        match job.held.as_deref() {
            Some(UNLAUNCHED) => return Some(UNLAUNCHED.into()),
            Some("admin") => return Some("JobHeldAdmin".into()),
            Some(_) => return Some("JobHeldUser".into()),
            None => {}
        }
        let mut never = false;
        let mut wait = false;
        let (separator, any) = if job.option("dependency").contains('?') { ('?', true) } else { (',', false) };
        let mut one = false;
        for part in job.option("dependency").split(separator).filter(|p| !p.is_empty()) {
            let (kind, rest) = part.split_once(':').unwrap_or((part, ""));
            if kind == "singleton" {
                let first = singletons.get(&(job.user.clone(), job.name().to_owned()));
                wait |= first.is_some_and(|f| {
                    *f < job.id
                        && self
                            .state
                            .jobs
                            .get(f)
                            .is_none_or(|f| f.array.map(|a| a.0) != job.array.map(|a| a.0) || f.array.is_none())
                });
                continue;
            }
            for of in rest.split(':') {
                match self.met(kind, of.split('+').next().unwrap_or(of), job) {
                    Some(true) => one = true,
                    Some(false) => never = true,
                    None => wait = true,
                }
            }
        }
        if any && one {
            return None;
        }
        if never && !any {
            return Some("DependencyNeverSatisfied".into());
        }
        if wait || (any && never) {
            return Some("Dependency".into());
        }
        let partition = self.config.partitions.iter().find(|p| job.option("partition").split(',').any(|n| n == p.name));
        if let Some(partition) = partition {
            if partition.max_minutes > 0 && minutes(job.option("time")).unwrap_or(0) > partition.max_minutes {
                return Some("PartitionTimeLimit".into());
            }
            if partition.state == "DOWN" || partition.state == "INACTIVE" {
                return Some(if partition.state == "DOWN" { "PartitionDown" } else { "PartitionInactive" }.into());
            }
        }
        if let Some((array, _, limit)) = job.array.filter(|a| a.2 > 0) {
            let running = self
                .state
                .jobs
                .values()
                .filter(|j| j.array.is_some_and(|a| a.0 == array) && j.state == "RUNNING")
                .count();
            if running >= limit as usize {
                return Some("JobArrayTaskLimit".into());
            }
        }
        let begin = job.option("begin").strip_prefix("now+").and_then(|s| s.parse::<i64>().ok());
        begin.filter(|s| now < job.submit + s * 1000).map(|_| "BeginTime".into())
    }

    /// Whether what a job depends on has happened; false: never will.
    fn met(&self, kind: &str, of: &str, job: &Job) -> Option<bool> {
        let (id, task) = of.split_once('_').map_or((of, None), |(i, t)| (i, t.parse::<u32>().ok()));
        let id: u32 = id.parse().ok()?;
        let task = if kind == "aftercorr" { job.array.map(|a| a.1) } else { task };
        let of: Vec<&Job> = self
            .state
            .jobs
            .values()
            .filter(|j| {
                j.array.map_or(j.id, |a| a.0) == id
                    && (task.is_none() || j.array.is_none() || j.array.map(|a| a.1) == task)
            })
            .collect();
        let ended = of.iter().all(|j| j.ended() || j.gone);
        let good = of.iter().all(|j| j.state == "COMPLETED");
        match kind {
            "after" => of.iter().all(|j| j.start.is_some() || j.ended()).then_some(true),
            "afterany" => ended.then_some(true),
            "afternotok" => ended.then_some(!good),
            // A job that nobody knows any more counts as fulfilled, as Slurm has it.
            _ => ended.then_some(good),
        }
    }

    /// Nodes with room for a job.
    fn place(&self, job: &Job, used: &BTreeMap<String, (u32, u32)>) -> Option<Vec<String>> {
        self.candidates(job, used, true)
    }

    /// The first nodes that could take a job; when not free ones only, whether there ever could be.
    #[must_use]
    pub fn candidates(&self, job: &Job, used: &BTreeMap<String, (u32, u32)>, free: bool) -> Option<Vec<String>> {
        let wanted = job.node_count() as usize;
        let cpus = job.cpus().div_ceil(job.node_count().max(1));
        let partitions: Vec<&str> = job.option("partition").split(',').collect();
        let mut nodes = Vec::new();
        for node in &self.config.nodes {
            let member = self
                .config
                .partitions
                .iter()
                .any(|p| partitions.contains(&p.name.as_str()) && p.nodes.contains(&node.name));
            let (busy_cpus, busy_gpus) = if free { used.get(&node.name).copied().unwrap_or_default() } else { (0, 0) };
            let gpus: u32 = job.gpus().iter().map(|g| g.1).sum();
            let kinds = job.gpus().iter().all(|g| g.0.is_empty() || g.0 == node.gpu);
            if member
                && kinds
                && !(free && self.state.down.contains_key(&node.name))
                && busy_cpus + cpus <= node.cpus
                && busy_gpus + gpus <= node.gpus
            {
                nodes.push(node.name.clone());
            }
        }
        (nodes.len() >= wanted).then(|| nodes.into_iter().take(wanted).collect())
    }

    /// Ends a job; its processes are the caller's business.
    pub fn end(&mut self, id: u32, state: &str, exit: (i32, i32), reason: &str, now: i64) {
        let Some(job) = self.state.jobs.get_mut(&id) else { return };
        state.clone_into(&mut job.state);
        job.flags.clear();
        job.exit = exit;
        reason.clone_into(&mut job.reason);
        job.start.get_or_insert(now);
        job.end = Some(now);
        job.plan = Plan::Process;
        job.group = None;
        self.log_end(id);
    }

    /// Puts a job back into the queue.
    pub fn requeue(&mut self, id: u32, held: bool) {
        let Some(job) = self.state.jobs.get_mut(&id) else { return };
        "PENDING".clone_into(&mut job.state);
        job.flags.clear();
        (job.start, job.end, job.group) = (None, None, None);
        (job.exit, job.logged) = ((0, 0), false);
        job.restarts += 1;
        job.nodes.clear();
        if held {
            job.held = Some("user".into());
        }
        if let Plan::Steps(_, at) = &mut job.plan {
            *at = None;
        }
    }

    /// Writes a line of the completion log, as jobcomp/filetxt does: once for each job.
    fn log_end(&mut self, id: u32) {
        let cluster = self.config.cluster.clone();
        let Some(job) = self.state.jobs.get_mut(&id) else { return };
        if std::mem::replace(&mut job.logged, true) {
            return;
        }
        // That plugin says 0:0 of a job that met its limit.
        let exit = if job.state == "TIMEOUT" { (0, 0) } else { job.exit };
        let line = format!(
            "JobId={} UserId={}({}) GroupId={}({}) Name={} JobState={} Partition={} TimeLimit={} StartTime={} EndTime={} NodeList={} NodeCnt={} ProcCnt={} WorkDir={} ReservationName= Tres= Account={} QOS= WcKey= Cluster={cluster} SubmitTime={} EligibleTime={} DerivedExitCode={}:0 ExitCode={}:{} \n",
            id,
            job.user,
            job.uid,
            job.user,
            job.uid,
            job.name(),
            job.state,
            job.option("partition"),
            minutes(job.option("time")).unwrap_or(60),
            crate::fields::time(job.start),
            crate::fields::time(job.end),
            crate::fields::node_list(&job.nodes),
            job.nodes.len(),
            job.cpus(),
            job.directory,
            job.option("account"),
            crate::fields::time(Some(job.submit)),
            crate::fields::time(Some(job.submit)),
            job.derived,
            exit.0,
            exit.1,
        );
        let log = std::fs::File::options().create(true).append(true).open(self.store.path("jobcomp.log"));
        // A log that cannot be written is a fault of the disk that its readers may see.
        let _ = log.and_then(|mut l| l.write_all(line.as_bytes()));
    }

    /// Forgets jobs that ended long ago. What accounting keeps, sacct still finds.
    fn forget(&mut self, now: i64) {
        let age = self.config.min_job_age_ms;
        let old = |j: &&Job| !j.gone && j.ended() && j.end.is_some_and(|e| e + age < now);
        let ids: Vec<u32> = self.state.jobs.values().filter(old).map(|j| j.id).collect();
        for id in ids {
            if let Some(job) = self.state.jobs.get_mut(&id) {
                job.gone = true;
            }
        }
    }
}

/// Minutes of a time limit in Slurm's forms.
#[must_use]
pub fn minutes(text: &str) -> Option<u32> {
    if text.is_empty() {
        return None;
    }
    let (days, rest) = text.split_once('-').map_or((0, text), |(d, r)| (d.parse().unwrap_or(0), r));
    let parts: Vec<u32> = rest.split(':').map(|p| p.parse().ok()).collect::<Option<_>>()?;
    let with_days = text.contains('-');
    let seconds = match parts[..] {
        [h] if with_days => h * 3600,
        [h, m] if with_days => h * 3600 + m * 60,
        [m] => m * 60,
        [m, s] => m * 60 + s,
        [h, m, s] => h * 3600 + m * 60 + s,
        _ => return None,
    };
    Some(days * 1440 + seconds.div_ceil(60))
}

#[cfg(test)]
mod tests {
    use super::minutes;

    #[test]
    fn limits_are_read() {
        for (text, expected) in
            [("5", 5), ("1:30", 2), ("1:00:00", 60), ("1-0", 1440), ("2-12:30", 3630), ("1-00:00:01", 1441)]
        {
            assert_eq!(minutes(text), Some(expected), "{text}");
        }
        assert_eq!(minutes("x"), None);
    }
}
