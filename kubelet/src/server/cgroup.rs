//! Resource use of a container, read where the kernel keeps it: a question to the engine costs it some milliseconds each.
//!
//! Both hierarchies are known, and both places where the engine puts its containers (its own and systemd's driver).
//! Anything else is nothing: the caller asks the engine then.

use std::path::{Path, PathBuf};

use crate::runtime::Stats;

/// Where the hierarchies are mounted.
pub(super) const ROOT: &str = "/sys/fs/cgroup";

/// The use of the container with this engine's identifier; `None` when it is not found below `root`.
pub(super) fn read(root: &Path, id: &str) -> Option<Stats> {
    [format!("docker/{id}"), format!("system.slice/docker-{id}.scope")].iter().find_map(|at| {
        let unified = root.join(at);
        if unified.join("cpu.stat").exists() { second(&unified) } else { first(root, at) }
    })
}

fn number(path: PathBuf) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A value of a table of names and numbers.
fn field(table: &str, name: &str) -> Option<u64> {
    let mut lines = table.lines().filter_map(|l| l.split_once(' '));
    lines.find(|(n, _)| *n == name)?.1.trim().parse().ok()
}

fn first(root: &Path, at: &str) -> Option<Stats> {
    let memory = root.join("memory").join(at);
    let table = std::fs::read_to_string(memory.join("memory.stat")).ok()?;
    let of = |name| field(&table, name).unwrap_or(0);
    let usage = number(memory.join("memory.usage_in_bytes"))?;
    Some(Stats {
        cpu_nanos: number(root.join("cpuacct").join(at).join("cpuacct.usage"))?,
        memory_usage: usage,
        memory_working_set: usage.saturating_sub(of("total_inactive_file")),
        memory_rss: of("total_rss"),
        page_faults: of("total_pgfault"),
        major_page_faults: of("total_pgmajfault"),
        memory_limit: number(memory.join("memory.limit_in_bytes")).unwrap_or(0),
        pids: number(root.join("pids").join(at).join("pids.current")).unwrap_or(0),
    })
}

fn second(at: &Path) -> Option<Stats> {
    let cpu = std::fs::read_to_string(at.join("cpu.stat")).ok()?;
    let table = std::fs::read_to_string(at.join("memory.stat")).ok()?;
    let of = |name| field(&table, name).unwrap_or(0);
    let usage = number(at.join("memory.current"))?;
    Some(Stats {
        cpu_nanos: field(&cpu, "usage_usec")? * 1000,
        memory_usage: usage,
        memory_working_set: usage.saturating_sub(of("inactive_file")),
        memory_rss: of("anon"),
        page_faults: of("pgfault"),
        major_page_faults: of("pgmajfault"),
        // "max" is no number: no limit.
        memory_limit: number(at.join("memory.max")).unwrap_or(0),
        pids: number(at.join("pids.current")).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn both_hierarchies() {
        let dir = tempfile::tempdir().unwrap();
        put(
            dir.path(),
            &[
                (
                    "memory/docker/a/memory.stat",
                    "rss 1\ninactive_file 7\ntotal_inactive_file 300\ntotal_rss 200\ntotal_pgfault 5\n",
                ),
                ("memory/docker/a/memory.usage_in_bytes", "1000\n"),
                ("cpuacct/docker/a/cpuacct.usage", "123456789\n"),
                ("system.slice/docker-b.scope/cpu.stat", "usage_usec 2500\nuser_usec 1\n"),
                ("system.slice/docker-b.scope/memory.stat", "anon 20\nfile 3\ninactive_file 30\n"),
                ("system.slice/docker-b.scope/memory.current", "100\n"),
                ("system.slice/docker-b.scope/memory.max", "max\n"),
                ("system.slice/docker-b.scope/pids.current", "4\n"),
            ],
        );
        let a = read(dir.path(), "a").unwrap();
        assert_eq!((a.cpu_nanos, a.memory_usage, a.memory_working_set, a.memory_rss), (123_456_789, 1000, 700, 200));
        let b = read(dir.path(), "b").unwrap();
        assert_eq!((b.cpu_nanos, b.memory_working_set, b.memory_rss), (2_500_000, 70, 20));
        assert_eq!((b.memory_limit, b.pids), (0, 4));
        assert!(read(dir.path(), "c").is_none());
    }
}
