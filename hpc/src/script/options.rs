//! What sbatch is told, in its own words: the long names of its options. slurmrestd's fields are made from these.

use std::collections::BTreeMap;

use super::quote::{Unsafe, quote_option};
use super::{Plan, places};
use crate::api::{DependencyType, GpuRequest, GpuScope, Resources};

/// One option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opt {
    /// Its long name.
    pub name: String,
    /// Its value, where it has one.
    pub value: Option<String>,
}

impl Opt {
    fn new(name: &str, value: impl Into<String>) -> Self {
        Self { name: name.to_owned(), value: Some(value.into()) }
    }

    fn flag(name: &str) -> Self {
        Self { name: name.to_owned(), value: None }
    }

    /// As in a `#SBATCH` line.
    ///
    /// # Errors
    /// When the value cannot be there.
    pub fn line(&self) -> Result<String, Unsafe> {
        match &self.value {
            None => Ok(format!("--{}", self.name)),
            Some(value) => Ok(format!("--{}={}", self.name, quote_option(&self.name, value)?)),
        }
    }
}

/// GPUs of one scope in Slurm's form: `a100:2,v100:1`, or `2`.
fn gpus(requests: &[GpuRequest], scope: GpuScope, prefix: &str) -> Option<String> {
    let of = requests.iter().filter(|g| g.per == scope);
    let each = of.map(|g| match &g.kind {
        Some(kind) => format!("{prefix}{kind}:{}", g.count),
        None => format!("{prefix}{}", g.count),
    });
    Some(each.collect::<Vec<_>>().join(",")).filter(|s| !s.is_empty())
}

/// All options of an attempt, in the order in which people read them.
///
/// # Errors
/// When a value cannot be in a line of sbatch.
pub fn options(plan: &Plan<'_>) -> Result<Vec<Opt>, Unsafe> {
    let empty = Resources::default();
    let r = plan.spec.resources.as_ref().unwrap_or(&empty);
    let defaults = plan.cluster.defaults.clone().unwrap_or_default();
    let places = places(plan);
    let comment = BTreeMap::from([
        ("attempt", plan.attempt.to_string()),
        ("object", plan.object.to_owned()),
        ("skiff", plan.name.to_owned()),
    ]);
    let comment = serde_json::to_string(&comment).unwrap_or_default();
    let work = plan.cluster.work_directory.trim_end_matches('/');
    let mut all = vec![
        Opt::new("job-name", plan.name),
        Opt::new("comment", comment),
        Opt::new("chdir", plan.directory.unwrap_or(if work.is_empty() { "/" } else { work })),
        Opt::new("output", places.output),
        Opt::new("error", places.error),
        // A second run of the same job in Slurm goes on in the same files: who reads them has an offset.
        Opt::new("open-mode", "append"),
    ];
    let mut put = |name: &str, value: Option<String>| all.extend(value.map(|v| Opt::new(name, v)));
    let number = |n: Option<u32>| n.map(|n| n.to_string());
    put("partition", r.partition.clone().or(defaults.partition));
    put("account", r.account.clone().or(defaults.account));
    put("qos", r.qos.clone().or(defaults.qos));
    put("reservation", r.reservation.clone());
    put("time", r.time.clone().or(defaults.time));
    let nodes = match (r.nodes, r.max_nodes) {
        (Some(least), Some(most)) => Some(format!("{least}-{most}")),
        (None, Some(most)) => Some(format!("1-{most}")),
        (least, None) => number(least),
    };
    put("nodes", nodes);
    put("ntasks", number(r.tasks));
    put("ntasks-per-node", number(r.tasks_per_node));
    put("cpus-per-task", number(r.cpus_per_task));
    put("cpus-per-gpu", number(r.cpus_per_gpu));
    put("mem", r.memory.clone());
    put("mem-per-cpu", r.memory_per_cpu.clone());
    put("mem-per-gpu", r.memory_per_gpu.clone());
    let gres = gpus(&r.gpus, GpuScope::Node, "gpu:").into_iter().chain(r.gres.iter().cloned()).collect::<Vec<_>>();
    put("gres", Some(gres.join(",")).filter(|g| !g.is_empty()));
    put("gpus", gpus(&r.gpus, GpuScope::Job, ""));
    put("gpus-per-task", gpus(&r.gpus, GpuScope::Task, ""));
    put("gpus-per-socket", gpus(&r.gpus, GpuScope::Socket, ""));
    put("constraint", r.constraint.clone());
    put("nodelist", r.node_list.clone());
    put("exclude", r.exclude.clone());
    if let Some(array) = &r.array {
        put("array", Some(array.limit.map_or_else(|| array.tasks.clone(), |l| format!("{}%{l}", array.tasks))));
    }
    if let Some(signal) = &r.signal {
        let whom = if signal.steps { "" } else { "B:" };
        put("signal", Some(format!("{whom}{}@{}", signal.name, signal.seconds.unwrap_or(60))));
    }
    let mut dependencies = plan.dependencies.to_vec();
    // A second copy under the same name would wait for the first to end, and be seen meanwhile. The tasks of an array have one
    // name too and would wait for one another.
    if r.array.is_none() {
        dependencies.push("singleton".into());
    }
    put("dependency", Some(dependencies.join(",")).filter(|d| !d.is_empty()));
    if r.exclusive {
        all.push(Opt::flag("exclusive"));
    }
    match r.requeue {
        Some(true) => all.push(Opt::flag("requeue")),
        Some(false) => all.push(Opt::flag("no-requeue")),
        None => {}
    }
    for extra in &r.extra_options {
        let bare = extra.trim_start_matches('-');
        all.push(match bare.split_once('=') {
            Some((name, value)) => Opt::new(name, value),
            None => Opt::flag(bare),
        });
    }
    for option in &all {
        option.line()?;
    }
    Ok(all)
}

/// Slurm's word for a kind of dependency. `Singleton` has none here: it is about objects, whose names Slurm does not know.
#[must_use]
pub fn dependency_word(kind: DependencyType) -> Option<&'static str> {
    match kind {
        DependencyType::After => Some("after"),
        DependencyType::AfterAny => Some("afterany"),
        DependencyType::AfterOk => Some("afterok"),
        DependencyType::AfterNotOk => Some("afternotok"),
        DependencyType::AfterCorr => Some("aftercorr"),
        DependencyType::Singleton => None,
    }
}
