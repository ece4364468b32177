//! sinfo, and what else tells of nodes and partitions.

use super::{Answer, Args, fill, names};
use crate::config::{Node, Partition};
use crate::fields::{elapsed, node_list};
use crate::state::Locked;

/// A node's state: `idle`, `mixed`, `allocated`, `down`.
#[must_use]
pub(crate) fn node_state(locked: &Locked, node: &Node) -> &'static str {
    let (cpus, _) = locked.used_on(&node.name);
    match () {
        () if locked.state.down.contains_key(&node.name) => "down",
        () if cpus == 0 => "idle",
        () if cpus < node.cpus => "mixed",
        () => "allocated",
    }
}

/// The time limit of a partition, as the tools print it.
fn limit(partition: &Partition) -> String {
    match partition.max_minutes {
        0 => "infinite".into(),
        n => elapsed(i64::from(n) * 60),
    }
}

pub(super) fn sinfo(locked: &Locked, args: &[String]) -> Answer {
    let (mut head, mut by_node) = (true, false);
    let (mut format, mut long) = ("%9P %.5a %.10l %.6D %.6t %N".to_owned(), None);
    let (mut partitions, mut nodes): (Vec<String>, Vec<String>) = Default::default();
    let mut read = Args::new(args, "oOpnt");
    while let Some((name, glued)) = read.next() {
        match name.as_str() {
            "-h" | "--noheader" => head = false,
            "-N" | "--Node" => by_node = true,
            "-o" | "--format" => format = read.value(glued),
            "-O" | "--Format" => long = Some(read.value(glued)),
            "-p" | "--partition" => partitions = read.value(glued).split(',').map(str::to_owned).collect(),
            "-n" | "--nodes" => nodes = read.value(glued).split(',').map(str::to_owned).collect(),
            "-t" | "--states" | "-S" | "--sort" | "-M" | "--clusters" => drop(read.value(glued)),
            "-a" | "--all" | "-e" | "--exact" | "-l" | "--long" | "-s" | "--summarize" | "--noconvert" | "-r"
            | "--responding" => {}
            other => {
                return Answer::fail(
                    1,
                    format!("sinfo: unrecognized option '{other}'\nTry \"sinfo --help\" for more information\n"),
                );
            }
        }
    }
    let mut out = String::new();
    if head {
        match &long {
            Some(format) => out.push_str(&names(format, |n| Some(n.to_uppercase()))),
            None => out.push_str(&fill(&format, |c| Some(c.to_uppercase().to_string()))),
        }
        out.push('\n');
    }
    for (i, partition) in locked.config.partitions.iter().enumerate() {
        if !partitions.is_empty() && !partitions.contains(&partition.name) {
            continue;
        }
        let members: Vec<&Node> = locked
            .config
            .nodes
            .iter()
            .filter(|n| partition.nodes.contains(&n.name) && (nodes.is_empty() || nodes.contains(&n.name)))
            .collect();
        // Nodes that are alike make one line, but for -N.
        let mut groups: Vec<Vec<&Node>> = Vec::new();
        for node in members {
            let alike = |g: &&mut Vec<&Node>| {
                let f = g[0];
                !by_node
                    && (f.cpus, f.memory, &f.gpu, f.gpus, &f.features)
                        == (node.cpus, node.memory, &node.gpu, node.gpus, &node.features)
                    && node_state(locked, f) == node_state(locked, node)
            };
            match groups.iter_mut().find(alike) {
                Some(group) => group.push(node),
                None => groups.push(vec![node]),
            }
        }
        for group in groups {
            let value = |name: &str| cell(locked, partition, i == 0, &group, name);
            let line = match &long {
                Some(format) => names(format, |n| value(NAMES.iter().find(|k| k.0 == n)?.1)),
                None => fill(&format, |c| value(LETTERS.iter().find(|k| k.0 == c)?.1)),
            };
            out.push_str(&line);
            out.push('\n');
        }
    }
    Answer::out(out)
}

const LETTERS: [(char, &str); 21] = [
    ('P', "partition*"),
    ('R', "partition"),
    ('a', "avail"),
    ('l', "limit"),
    ('L', "default-time"),
    ('D', "count"),
    ('t', "state"),
    ('T', "state"),
    ('N', "nodes"),
    ('n', "nodes"),
    ('c', "cpus"),
    ('C', "cpu-states"),
    ('m', "memory"),
    ('G', "gres"),
    ('f', "features"),
    ('b', "features"),
    ('F', "node-states"),
    ('E', "reason"),
    ('X', "cpus"),
    ('w', "weight"),
    ('e', "memory"),
];

const NAMES: [(&str, &str); 17] = [
    ("partition", "partition*"),
    ("partitionname", "partition"),
    ("available", "avail"),
    ("time", "limit"),
    ("nodes", "count"),
    ("nodelist", "nodes"),
    ("nodehost", "nodes"),
    ("statelong", "state"),
    ("statecompact", "state"),
    ("cpus", "cpus"),
    ("cpusstate", "cpu-states"),
    ("memory", "memory"),
    ("gres", "gres"),
    ("gresused", "gres-used"),
    ("features", "features"),
    ("reason", "reason"),
    ("defaulttime", "default-time"),
];

fn cell(locked: &Locked, partition: &Partition, default: bool, nodes: &[&Node], name: &str) -> Option<String> {
    let first = nodes.first()?;
    let state = node_state(locked, first);
    let total: u32 = nodes.iter().map(|n| n.cpus).sum();
    let used: u32 = nodes.iter().map(|n| locked.used_on(&n.name).0).sum();
    let gpus = |n: u32| if first.gpus == 0 { "(null)".into() } else { format!("gpu:{}:{n}", first.gpu) };
    Some(match name {
        "partition*" => format!("{}{}", partition.name, if default { "*" } else { "" }),
        "partition" => partition.name.clone(),
        "avail" => partition.state.to_lowercase(),
        "limit" => limit(partition),
        "default-time" => "1:00:00".into(),
        "count" => nodes.len().to_string(),
        "state" => state.into(),
        "nodes" => node_list(&nodes.iter().map(|n| n.name.clone()).collect::<Vec<_>>()),
        "cpus" => first.cpus.to_string(),
        "cpu-states" if state == "down" => format!("0/0/{total}/{total}"),
        "cpu-states" => format!("{used}/{}/0/{total}", total.saturating_sub(used)),
        "memory" => first.memory.to_string(),
        "gres" => gpus(first.gpus),
        "gres-used" => gpus(locked.used_on(&first.name).1),
        "features" if first.features.is_empty() => "(null)".into(),
        "features" => first.features.clone(),
        "node-states" => {
            let count = |busy: bool| nodes.iter().filter(|n| (locked.used_on(&n.name).0 > 0) == busy).count();
            if state == "down" {
                format!("0/0/{0}/{0}", nodes.len())
            } else {
                format!("{}/{}/0/{}", count(true), count(false), nodes.len())
            }
        }
        "reason" => locked.state.down.get(&first.name).cloned().unwrap_or_else(|| "none".into()),
        "weight" => "1".into(),
        _ => return None,
    })
}
