//! What a cluster has: partitions and nodes as Slurm's tools and slurmrestd tell, added up. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::api::{GpuCounts, SlurmPartitionStatus};
use crate::state::parse::{number, pairs};

/// A partition as Slurm tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Partition {
    /// Its name.
    pub name: String,
    /// `UP`, …
    pub state: String,
    /// Whether jobs without a partition come here.
    pub default: bool,
    /// Longest time in Slurm's form.
    pub max_time: String,
    /// Default time in Slurm's form.
    pub default_time: String,
    /// Fewest nodes.
    pub min_nodes: Option<u64>,
    /// Most nodes.
    pub max_nodes: Option<u64>,
    /// Most cores on a node.
    pub max_cpus_per_node: Option<u64>,
}

/// A node as Slurm tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// States and flags: `IDLE`, `DRAIN`, …
    pub states: Vec<String>,
    /// Its partitions.
    pub partitions: Vec<String>,
    /// Cores.
    pub cpus: u64,
    /// Cores in use.
    pub cpus_used: u64,
    /// Memory in MiB.
    pub memory: u64,
    /// GPUs by type.
    pub gpus: BTreeMap<String, u64>,
    /// GPUs in use by type.
    pub gpus_used: BTreeMap<String, u64>,
    /// Features.
    pub features: Vec<String>,
}

/// GPUs of `gpu:a100:4(S:0-1),gpu:v100:2,shard:8` by type.
#[must_use]
pub fn gpus(gres: &str) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    // Commas inside parentheses separate indices.
    let (mut depth, mut parts) = (0u32, vec![String::new()]);
    for c in gres.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => parts.push(String::new()),
            c if depth == 0 => {
                if let Some(last) = parts.last_mut() {
                    last.push(c);
                }
            }
            _ => {}
        }
    }
    for part in parts {
        let fields: Vec<&str> = part.trim().split(':').collect();
        let (kind, count) = match fields[..] {
            ["gpu"] => ("", "1"),
            ["gpu", count] if count.starts_with(|c: char| c.is_ascii_digit()) => ("", count),
            ["gpu", kind] => (kind, "1"),
            ["gpu", kind, count, ..] => (kind, count),
            _ => continue,
        };
        let number: String = count.chars().take_while(char::is_ascii_digit).collect();
        *all.entry(kind.to_owned()).or_insert(0) += number.parse::<u64>().unwrap_or(1);
    }
    all
}

fn list(text: &str) -> Vec<String> {
    let nothing = |p: &&str| !p.is_empty() && *p != "(null)";
    text.split(',').map(str::trim).filter(nothing).map(str::to_owned).collect()
}

/// What `scontrol show partition -o` prints.
#[must_use]
pub fn partitions(text: &str) -> Vec<Partition> {
    let lines = text.lines().filter(|l| l.starts_with("PartitionName="));
    lines
        .map(|line| {
            let p = pairs(line);
            let get = |key: &str| p.get(key).cloned().unwrap_or_default();
            Partition {
                name: get("PartitionName"),
                state: get("State"),
                default: get("Default") == "YES",
                max_time: get("MaxTime"),
                default_time: Some(get("DefaultTime")).filter(|t| t != "NONE").unwrap_or_default(),
                min_nodes: get("MinNodes").parse().ok(),
                max_nodes: get("MaxNodes").parse().ok(),
                max_cpus_per_node: get("MaxCPUsPerNode").parse().ok(),
            }
        })
        .collect()
}

/// What `scontrol show node -d -o` prints.
#[must_use]
pub fn nodes(text: &str) -> Vec<Node> {
    let lines = text.lines().filter(|l| l.starts_with("NodeName="));
    lines
        .map(|line| {
            let p = pairs(line);
            let get = |key: &str| p.get(key).cloned().unwrap_or_default();
            let state = get("State");
            let word = state.split_whitespace().next().unwrap_or_default();
            Node {
                name: get("NodeName"),
                // A mark after the state, such as `*`, says that the node does not answer.
                states: word.split('+').flat_map(marked).collect(),
                partitions: list(&get("Partitions")),
                cpus: get("CPUTot").parse().unwrap_or_default(),
                cpus_used: get("CPUAlloc").parse().unwrap_or_default(),
                memory: get("RealMemory").parse().unwrap_or_default(),
                gpus: gpus(&get("Gres")),
                gpus_used: gpus(&get("GresUsed")),
                features: list(&get("AvailableFeatures")),
            }
        })
        .collect()
}

fn marked(word: &str) -> Vec<String> {
    let bare = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let silent = word[bare.len()..].contains('*').then(|| "NOT_RESPONDING".to_owned());
    [Some(bare.to_ascii_uppercase()), silent].into_iter().flatten().collect()
}

fn minutes(value: Option<&Value>) -> String {
    match value {
        Some(v) if v.get("infinite") == Some(&Value::Bool(true)) => "UNLIMITED".into(),
        // The old API's word for infinite is the largest number.
        Some(v) => match number(v) {
            Some(n) if n >= i64::from(u32::MAX) => "UNLIMITED".into(),
            Some(n) => format_minutes(u64::try_from(n).unwrap_or_default()),
            None => String::new(),
        },
        None => String::new(),
    }
}

/// Minutes in Slurm's form.
#[must_use]
pub fn format_minutes(n: u64) -> String {
    let (days, hours, minutes) = (n / 1440, n / 60 % 24, n % 60);
    if days > 0 { format!("{days}-{hours:02}:{minutes:02}:00") } else { format!("{hours:02}:{minutes:02}:00") }
}

/// Minutes of a time in Slurm's forms, rounded up; `None` for `UNLIMITED` and what is no time.
#[must_use]
pub fn parse_minutes(text: &str) -> Option<u64> {
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (Some(days.parse::<u64>().ok()?), rest),
        None => (None, text),
    };
    let parts = rest.split(':').map(|p| p.parse::<u64>().ok()).collect::<Option<Vec<_>>>()?;
    let seconds = match (days, parts[..].as_ref()) {
        (Some(d), [h]) => d * 86_400 + h * 3600,
        (Some(d), [h, m]) => d * 86_400 + h * 3600 + m * 60,
        (Some(d), [h, m, s]) => d * 86_400 + h * 3600 + m * 60 + s,
        (None, [m]) => m * 60,
        (None, [m, s]) => m * 60 + s,
        (None, [h, m, s]) => h * 3600 + m * 60 + s,
        _ => return None,
    };
    Some(seconds.div_ceil(60))
}

/// Partitions of slurmrestd, of any version.
#[must_use]
pub fn rest_partitions(answer: &Value) -> Vec<Partition> {
    let all = answer.get("partitions").and_then(Value::as_array).into_iter().flatten();
    all.map(|p| {
        let first = |paths: &[&str]| paths.iter().find_map(|path| p.pointer(path)).filter(|v| !v.is_null());
        let count = |paths: &[&str]| {
            let n = first(paths).and_then(number).and_then(|n| u64::try_from(n).ok());
            n.filter(|n| *n > 0 && *n < u64::from(u32::MAX))
        };
        let state = match first(&["/partition/state", "/state"]) {
            Some(Value::String(s)) => s.clone(),
            Some(Value::Array(a)) => a.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("+"),
            _ => String::new(),
        };
        let flags = p.get("flags").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        Partition {
            name: p.get("name").and_then(Value::as_str).unwrap_or_default().to_owned(),
            state,
            default: flags.into_iter().any(|f| f.eq_ignore_ascii_case("default")),
            max_time: minutes(first(&["/maximums/time", "/max_time_limit"])),
            default_time: minutes(first(&["/defaults/time", "/default_time_limit"])),
            min_nodes: count(&["/minimums/nodes", "/min_nodes_per_job", "/min nodes per job"]),
            max_nodes: count(&["/maximums/nodes", "/maximum_nodes_per_job", "/max_nodes_per_job"]),
            max_cpus_per_node: count(&["/maximums/cpus_per_node", "/maximum_cpus_per_node", "/max_cpus_per_node"]),
        }
    })
    .collect()
}

/// Nodes of slurmrestd, of any version.
#[must_use]
pub fn rest_nodes(answer: &Value) -> Vec<Node> {
    let all = answer.get("nodes").and_then(Value::as_array).into_iter().flatten();
    all.map(|n| {
        let text = |key: &str| n.get(key).and_then(Value::as_str).unwrap_or_default();
        let count = |key: &str| n.get(key).and_then(number).and_then(|n| u64::try_from(n).ok()).unwrap_or_default();
        let many = |key: &str| match n.get(key) {
            Some(Value::String(s)) => list(s),
            Some(Value::Array(a)) => a.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => vec![],
        };
        let mut states: Vec<String> = many("state");
        states.extend(many("state_flags"));
        Node {
            name: text("name").to_owned(),
            states: states.iter().map(|s| s.to_ascii_uppercase()).collect(),
            partitions: many("partitions"),
            cpus: count("cpus"),
            cpus_used: count("alloc_cpus"),
            memory: count("real_memory"),
            gpus: gpus(text("gres")),
            gpus_used: gpus(text("gres_used")),
            features: [many("features"), many("active_features")]
                .into_iter()
                .find(|f| !f.is_empty())
                .unwrap_or_default(),
        }
    })
    .collect()
}

/// What partitions have, by name.
#[must_use]
pub fn add_up(partitions: &[Partition], nodes: &[Node]) -> BTreeMap<String, SlurmPartitionStatus> {
    let out = [
        "DOWN",
        "DRAIN",
        "DRAINED",
        "DRAINING",
        "FAIL",
        "FAILING",
        "NOT_RESPONDING",
        "MAINT",
        "POWERED_DOWN",
        "ERROR",
        "UNKNOWN",
        "FUTURE",
    ];
    partitions
        .iter()
        .map(|p| {
            let mut s = SlurmPartitionStatus {
                state: Some(p.state.clone()).filter(|s| !s.is_empty()),
                default: p.default,
                max_time: Some(p.max_time.clone()).filter(|t| !t.is_empty()),
                default_time: Some(p.default_time.clone()).filter(|t| !t.is_empty()),
                min_nodes: p.min_nodes,
                max_nodes: p.max_nodes,
                max_cpus_per_node: p.max_cpus_per_node,
                ..SlurmPartitionStatus::default()
            };
            let mut kinds: BTreeMap<String, GpuCounts> = BTreeMap::new();
            for node in nodes.iter().filter(|n| n.partitions.contains(&p.name)) {
                let down = node.states.iter().any(|s| out.contains(&s.as_str()));
                s.nodes.total += 1;
                s.cpus.total += node.cpus;
                s.node_cpus = s.node_cpus.max(node.cpus);
                s.node_memory_mib = s.node_memory_mib.max(node.memory);
                s.features.extend(node.features.iter().cloned());
                if down {
                    s.nodes.down += 1;
                    s.cpus.down += node.cpus;
                } else {
                    s.nodes.free += u64::from(node.states.iter().any(|w| w == "IDLE"));
                    s.cpus.free += node.cpus.saturating_sub(node.cpus_used);
                }
                for (kind, count) in &node.gpus {
                    let all = kinds
                        .entry(kind.clone())
                        .or_insert_with(|| GpuCounts { kind: kind.clone(), ..GpuCounts::default() });
                    all.total += count;
                    all.per_node = all.per_node.max(*count);
                    if !down {
                        all.free += count.saturating_sub(node.gpus_used.get(kind).copied().unwrap_or_default());
                    }
                }
            }
            s.features.sort();
            s.features.dedup();
            s.features.truncate(256);
            s.gpus = kinds.into_values().collect();
            let each = s.gpus.iter().map(|g| {
                let kind = if g.kind.is_empty() { "gpu" } else { &g.kind };
                format!("{kind} {}/{}", g.free, g.total)
            });
            s.gpu_summary = Some(each.collect::<Vec<_>>().join(", ")).filter(|t| !t.is_empty());
            (p.name.clone(), s)
        })
        .collect()
}

/// Jobs that wait and other jobs, of `squeue -h -t PD,R -o %t`.
#[must_use]
pub fn queue_counts(text: &str) -> (u64, u64) {
    let words = || text.lines().map(str::trim).filter(|l| !l.is_empty());
    let waiting = words().filter(|w| matches!(*w, "PD" | "RH" | "RQ" | "RD")).count() as u64;
    (waiting, words().count() as u64 - waiting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn gpus_by_type() {
        let map = |pairs: &[(&str, u64)]| pairs.iter().map(|(k, n)| ((*k).to_owned(), *n)).collect::<BTreeMap<_, _>>();
        let table = [
            ("gpu:4", map(&[("", 4)])),
            ("gpu:a100:4(S:0-1),gpu:v100:2", map(&[("a100", 4), ("v100", 2)])),
            ("gpu:a100:2(IDX:0,3),shard:8", map(&[("a100", 2)])),
            ("gpu", map(&[("", 1)])),
            ("gpu:a100", map(&[("a100", 1)])),
            ("(null)", map(&[])),
        ];
        for (gres, want) in table {
            assert_eq!(gpus(gres), want, "{gres}");
        }
    }

    #[test]
    fn times() {
        let table = [
            ("30", Some(30)),
            ("1:30", Some(2)),
            ("02:00:00", Some(120)),
            ("1-0", Some(1440)),
            ("7-00:00:00", Some(10_080)),
            ("1-12:30", Some(2190)),
            ("UNLIMITED", None),
            ("x", None),
        ];
        for (text, want) in table {
            assert_eq!(parse_minutes(text), want, "{text}");
        }
        assert_eq!((format_minutes(10_080), format_minutes(90)), ("7-00:00:00".into(), "01:30:00".into()));
    }

    #[test]
    fn partitions_add_their_nodes_up() {
        let p = "PartitionName=a100 AllowGroups=ALL Default=YES DefaultTime=NONE MaxNodes=UNLIMITED MaxTime=7-00:00:00 MinNodes=0 \
            State=UP TotalCPUs=128 MaxCPUsPerNode=UNLIMITED Nodes=n[1-3]\nPartitionName=empty State=DOWN MaxNodes=2 MaxTime=UNLIMITED\n";
        let n = "NodeName=n1 Arch=x86_64 CoresPerSocket=1 CPUAlloc=16 CPUTot=64 AvailableFeatures=a,b Gres=gpu:a100:4(S:0) \
            GresDrain=N/A GresUsed=gpu:a100:1(IDX:0) OS=Linux 6.1 #1 SMP RealMemory=512000 State=MIXED Partitions=a100,all\n\
            NodeName=n2 CPUAlloc=0 CPUTot=64 AvailableFeatures=(null) Gres=gpu:a100:4 GresUsed=gpu:a100:0 RealMemory=1 State=IDLE Partitions=a100\n\
            NodeName=n3 CPUAlloc=0 CPUTot=64 Gres=gpu:a100:4 RealMemory=1 State=IDLE* Partitions=a100\n\
            NodeName=n4 CPUAlloc=0 CPUTot=64 Gres=gpu:v100:4 RealMemory=1 State=IDLE+DRAIN Partitions=a100\n";
        let all = add_up(&partitions(p), &nodes(n));
        let a = &all["a100"];
        assert_eq!((a.nodes.total, a.nodes.free, a.nodes.down), (4, 1, 2));
        assert_eq!((a.cpus.total, a.cpus.free), (256, 112));
        assert_eq!(a.gpu_summary.as_deref(), Some("a100 7/12, v100 0/4"));
        assert_eq!((a.default, a.max_nodes, a.node_memory_mib), (true, None, 512_000));
        assert_eq!(a.features, ["a", "b"]);
        assert_eq!((all["empty"].max_nodes, all["empty"].nodes.total), (Some(2), 0));
    }

    #[test]
    fn slurmrestd_says_the_same() {
        let old = json!({"partitions": [{"name": "gpu", "flags": ["default"], "state": "UP", "max_time_limit": 60,
            "maximum_nodes_per_job": -1, "min nodes per job": 1}]});
        let new = json!({"partitions": [{"name": "gpu", "flags": ["DEFAULT"], "partition": {"state": ["UP"]},
            "maximums": {"time": {"set": true, "infinite": false, "number": 60}, "nodes": {"set": false, "infinite": true, "number": 0}},
            "minimums": {"nodes": 1}}]});
        assert_eq!(rest_partitions(&old), rest_partitions(&new));
        let old = json!({"nodes": [{"name": "n", "state": "idle", "state_flags": ["DRAIN"], "partitions": ["gpu"], "cpus": 4,
            "alloc_cpus": 0, "real_memory": 10, "gres": "gpu:4", "gres_used": "gpu:(null):1(IDX:0)", "features": "a,b"}]});
        let new = json!({"nodes": [{"name": "n", "state": ["IDLE", "DRAIN"], "partitions": ["gpu"], "cpus": 4,
            "alloc_cpus": 0, "real_memory": 10, "gres": "gpu:4", "gres_used": "gpu:(null):1(IDX:0)", "features": ["a", "b"]}]});
        assert_eq!(rest_nodes(&old), rest_nodes(&new));
    }
}
