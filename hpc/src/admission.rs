//! Whether a job can ever start where it wants to, and whether it may: pure.
//!
//! Slurm takes many jobs that can never run and lets them wait for ever. What the catalogue shows is enough to say so before
//! anything is sent, with the limit that is in the way. What is not known is not judged: Slurm has the last word.

use std::collections::BTreeMap;

use crate::api::{GpuJobSpec, GpuScope, HpcClusterSpec, PartitionRule, Resources, SlurmPartitionStatus};
use crate::catalogue::parse_minutes;

/// What is decided before a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgment {
    /// It can start, as far as is known.
    Fits,
    /// It cannot as the partitions are now; the message says which limit.
    Unschedulable(String),
    /// It may not, whatever the partitions have.
    Refused(String),
}

/// What a job asks of each node and altogether, at least.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Demand {
    nodes: u64,
    cpus_per_node: u64,
    cpus: u64,
    memory_per_node: u64,
    /// By type (empty: any), each node and altogether.
    gpus: BTreeMap<String, (u64, u64)>,
    minutes: Option<u64>,
}

impl Demand {
    fn gpus_total(&self) -> u64 {
        self.gpus.values().map(|(_, total)| total).sum()
    }
}

/// MiB of `16G`, `100`: Slurm's unit is the MiB.
fn mebibytes(text: &str) -> u64 {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let n: u64 = digits.parse().unwrap_or_default();
    match text.chars().last() {
        Some('K') => n.div_ceil(1024),
        Some('G') => n.saturating_mul(1024),
        Some('T') => n.saturating_mul(1024 * 1024),
        _ => n,
    }
}

fn demand(r: &Resources, time: Option<&str>) -> Demand {
    let n = |v: Option<u32>| v.map(u64::from);
    let nodes = n(r.nodes).unwrap_or(1).max(1);
    let tasks = n(r.tasks).or(n(r.tasks_per_node).map(|t| t * nodes)).unwrap_or(nodes).max(1);
    // Tasks without a number of nodes may spread.
    let per_node = n(r.tasks_per_node).unwrap_or(if r.nodes.is_some() { tasks.div_ceil(nodes) } else { 1 });
    let mut gpus: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for g in &r.gpus {
        let count = u64::from(g.count);
        let (each, total) = match g.per {
            GpuScope::Node | GpuScope::Socket => (count, count * nodes),
            GpuScope::Job => (if r.nodes.is_some() { count.div_ceil(nodes) } else { 1 }, count),
            GpuScope::Task => (count * per_node, count * tasks),
        };
        let entry = gpus.entry(g.kind.clone().unwrap_or_default()).or_insert((0, 0));
        *entry = (entry.0 + each, entry.1 + total);
    }
    let (gpus_each, gpus_all) = gpus.values().fold((0, 0), |(a, b), (e, t)| (a + e, b + t));
    let (cpus_per_node, cpus) = match n(r.cpus_per_gpu) {
        Some(each) => ((each * gpus_each).max(per_node), (each * gpus_all).max(tasks)),
        None => (n(r.cpus_per_task).unwrap_or(1) * per_node, n(r.cpus_per_task).unwrap_or(1) * tasks),
    };
    let memory_per_node = [
        r.memory.as_deref().map(mebibytes),
        r.memory_per_cpu.as_deref().map(|m| mebibytes(m).saturating_mul(cpus_per_node)),
        r.memory_per_gpu.as_deref().map(|m| mebibytes(m).saturating_mul(gpus_each)),
    ];
    let memory_per_node = memory_per_node.into_iter().flatten().max().unwrap_or_default();
    Demand { nodes, cpus_per_node, cpus, memory_per_node, gpus, minutes: time.and_then(parse_minutes) }
}

/// What of a partition is in the way.
fn obstacle(name: &str, p: &SlurmPartitionStatus, d: &Demand) -> Option<String> {
    let more = |what: &str, asked: u64, has: u64| {
        (asked > has).then(|| format!("partition {name} has at most {has} {what}, the job asks for {asked}"))
    };
    if let Some(state) = p.state.as_deref().filter(|s| !s.split('+').any(|w| w == "UP")) {
        return Some(format!("partition {name} is {state}"));
    }
    if let (Some(limit), Some(asked)) = (p.max_time.as_deref(), d.minutes)
        && parse_minutes(limit).is_some_and(|l| asked > l)
    {
        return Some(format!("partition {name} lets jobs run for {limit} at most, the job asks for {asked} minutes"));
    }
    if let Some(least) = p.min_nodes.filter(|least| d.nodes < *least) {
        return Some(format!("partition {name} takes jobs of {least} nodes at least, the job asks for {}", d.nodes));
    }
    let gpus = d.gpus.iter().find_map(|(kind, (each, all))| {
        let of = |k: &&crate::api::GpuCounts| kind.is_empty() || k.kind == *kind;
        let has = p.gpus.iter().filter(of);
        let (per_node, total) = has.fold((0, 0), |(n, t), g| (n.max(g.per_node), t + g.total));
        let what = if kind.is_empty() { "GPUs".to_owned() } else { format!("GPUs of type {kind}") };
        if total == 0 {
            return Some(format!("partition {name} has no {what}"));
        }
        more(&format!("{what} on a node"), *each, per_node).or_else(|| more(&what, *all, total))
    });
    p.max_nodes
        .and_then(|most| more("nodes for a job", d.nodes, most))
        .or_else(|| more("nodes", d.nodes, p.nodes.total))
        .or_else(|| p.max_cpus_per_node.and_then(|most| more("cores for a job on a node", d.cpus_per_node, most)))
        .or_else(|| more("cores on a node", d.cpus_per_node, p.node_cpus))
        .or_else(|| more("MiB of memory on a node", d.memory_per_node, p.node_memory_mib))
        .or(gpus)
}

/// What of a rule is broken.
fn broken(rule: &PartitionRule, d: &Demand) -> Option<String> {
    let (name, gpus) = (&rule.name, d.gpus_total());
    if let Some(most) = rule.gpus.map(u64::from).filter(|most| gpus > *most) {
        return Some(format!("partition {name} is for at most {most} GPUs a job, the job asks for {gpus}"));
    }
    if let Some(least) = rule.min_gpus.map(u64::from).filter(|least| gpus < *least) {
        return Some(format!("partition {name} is for jobs of {least} GPUs at least, the job asks for {gpus}"));
    }
    if let Some(ratio) = rule.cpus_per_gpu.map(u64::from).filter(|r| gpus > 0 && d.cpus > r * gpus) {
        let cpus = d.cpus;
        return Some(format!(
            "partition {name} has {ratio} cores for each GPU, the job asks for {cpus} cores and {gpus} GPUs"
        ));
    }
    let memory = rule.memory_per_cpu_mib.filter(|m| d.memory_per_node > m.saturating_mul(d.cpus_per_node));
    memory.map(|m| {
        let (asked, cpus) = (d.memory_per_node, d.cpus_per_node);
        format!("partition {name} has {m} MiB for each core, the job asks for {asked} MiB and {cpus} cores on a node")
    })
}

/// Judges a job before it is submitted. `partitions` is what is known, by name; empty when nothing is.
#[must_use]
pub fn judge(
    spec: &GpuJobSpec,
    cluster: &HpcClusterSpec,
    partitions: &BTreeMap<String, SlurmPartitionStatus>,
) -> Judgment {
    let empty = Resources::default();
    let r = spec.resources.as_ref().unwrap_or(&empty);
    let defaults = cluster.defaults.clone().unwrap_or_default();
    let d = demand(r, r.time.as_deref().or(defaults.time.as_deref()));
    let limits = cluster.limits.clone().unwrap_or_default();
    let over = |what: &str, asked: u64, most: Option<u32>| {
        let most = most.map(u64::from).filter(|most| asked > *most)?;
        Some(format!("the cluster is for jobs of at most {most} {what}, the job asks for {asked}"))
    };
    if let Some(why) = over("nodes", d.nodes, limits.nodes).or_else(|| over("GPUs", d.gpus_total(), limits.gpus)) {
        return Judgment::Refused(why);
    }
    if let (Some(limit), Some(asked)) = (limits.time.as_deref(), d.minutes)
        && parse_minutes(limit).is_some_and(|l| asked > l)
    {
        return Judgment::Refused(format!(
            "the cluster is for jobs of at most {limit}, the job asks for {asked} minutes"
        ));
    }
    for option in r.extra_options.iter().filter(|_| !limits.extra_options.is_empty()) {
        let name = option.split('=').next().unwrap_or_default();
        if !limits.extra_options.iter().any(|allowed| allowed == name) {
            return Judgment::Refused(format!("the cluster does not allow the option {name}"));
        }
    }
    let named = r.partition.clone().or(defaults.partition);
    let names: Vec<String> = match &named {
        Some(names) => names.split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect(),
        None => partitions.iter().filter(|(_, p)| p.default).map(|(n, _)| n.clone()).collect(),
    };
    let rule = |n: &String| cluster.partitions.iter().find(|rule| rule.name == *n).and_then(|rule| broken(rule, &d));
    let ruled: Vec<_> = names.iter().map(rule).collect();
    // Of several partitions Slurm may choose any: all must do.
    if let Some(why) = ruled.into_iter().flatten().next() {
        return Judgment::Refused(why);
    }
    if partitions.is_empty() {
        return Judgment::Fits;
    }
    let mut why = None;
    for name in &names {
        let found = match partitions.get(name) {
            None => {
                let known = partitions.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                Some(format!("there is no partition {name}; there are {known}"))
            }
            Some(p) => obstacle(name, p, &d),
        };
        match found {
            None => return Judgment::Fits,
            Some(text) => why = why.or(Some(text)),
        }
    }
    why.map_or(Judgment::Fits, Judgment::Unschedulable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn partitions() -> BTreeMap<String, SlurmPartitionStatus> {
        let a100 = json!({"state": "UP", "default": true, "maxTime": "7-00:00:00", "nodes": {"total": 23}, "nodeCpus": 64,
            "nodeMemoryMib": 512_000, "maxNodes": 20, "gpus": [{"type": "a100", "total": 92, "perNode": 4}]});
        let down = json!({"state": "DOWN", "nodes": {"total": 1}, "nodeCpus": 64, "nodeMemoryMib": 1000});
        let of = |v: Value| serde_json::from_value(v).unwrap();
        BTreeMap::from([("a100".to_owned(), of(a100)), ("old".to_owned(), of(down))])
    }

    fn said(resources: Value) -> Judgment {
        let spec = serde_json::from_value(json!({"run": {"command": ["x"]}, "resources": resources})).unwrap();
        let cluster = serde_json::from_value(json!({"local": {}, "workDirectory": "/w",
            "limits": {"gpus": 90, "extraOptions": ["--nice"]},
            "partitions": [{"name": "a100", "cpusPerGpu": 16, "minGpus": 1, "memoryPerCpuMib": 8000}]}))
        .unwrap();
        judge(&spec, &cluster, &partitions())
    }

    #[test]
    fn limits_are_named() {
        // The templates of the SJTU documentation: one GPU, several, several nodes.
        for fits in [
            json!({"partition": "a100", "nodes": 1, "tasksPerNode": 1, "cpusPerTask": 16, "gpus": [{"count": 1}]}),
            json!({"nodes": 1, "tasksPerNode": 1, "cpusPerTask": 64, "gpus": [{"count": 4}]}),
            json!({"nodes": 2, "tasksPerNode": 4, "cpusPerTask": 16, "gpus": [{"type": "a100", "count": 4}], "time": "7-0"}),
            json!({"partition": "old,a100", "gpus": [{"count": 8, "per": "Job"}]}),
            json!({"gpus": [{"count": 1}], "extraOptions": ["--nice=3"]}),
        ] {
            assert_eq!(said(fits.clone()), Judgment::Fits, "{fits}");
        }
        let refused = [
            (json!({"cpusPerTask": 17, "gpus": [{"count": 1}]}), "16 cores for each GPU"),
            (json!({"cpusPerTask": 1}), "1 GPUs at least"),
            (json!({"cpusPerTask": 1, "memory": "9G", "gpus": [{"count": 1}]}), "8000 MiB for each core"),
            (json!({"nodes": 23, "gpus": [{"count": 4}]}), "at most 90 GPUs"),
            (json!({"gpus": [{"count": 1}], "extraOptions": ["--licenses=x"]}), "--licenses"),
        ];
        for (resources, why) in refused {
            assert!(matches!(said(resources.clone()), Judgment::Refused(m) if m.contains(why)), "{resources}");
        }
        let never = [
            (json!({"partition": "none"}), "there is no partition none; there are a100, old"),
            (json!({"partition": "old"}), "is DOWN"),
            (json!({"gpus": [{"count": 5}]}), "at most 4 GPUs on a node"),
            (json!({"gpus": [{"type": "v100", "count": 1}]}), "no GPUs of type v100"),
            (json!({"gpus": [{"count": 1}], "time": "8-0"}), "7-00:00:00 at most"),
            (json!({"nodes": 21, "gpus": [{"count": 1}]}), "at most 20 nodes for a job"),
        ];
        for (resources, why) in never {
            match said(resources.clone()) {
                Judgment::Unschedulable(m) => assert!(m.contains(why), "{m}"),
                other => panic!("{resources}: {other:?}"),
            }
        }
    }

    #[test]
    fn memory_is_in_mebibytes() {
        for (text, want) in [("16G", 16_384), ("100", 100), ("1T", 1_048_576), ("1K", 1), ("5M", 5)] {
            assert_eq!(mebibytes(text), want, "{text}");
        }
    }
}
