//! What the process uses, under the names of Prometheus' client libraries.

use std::fmt::Write;

/// Bytes of a page and clock ticks of a second, as on every Linux this program is built for.
const PAGE: u64 = 4096;
const TICKS: f64 = 100.0;

/// CPU time, memory, open files and start of this process. What cannot be read is left out.
#[must_use]
pub fn process() -> String {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{name}")).unwrap_or_default();
    let stat = read("self/stat");
    // The name in parentheses may have spaces: count from behind it.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let field = |n: usize| fields.get(n - 3).and_then(|f| f.parse::<u64>().ok());
    let boot = read("stat").lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse::<u64>().ok());
    let limit = read("self/limits")
        .lines()
        .find_map(|l| l.strip_prefix("Max open files")?.split_whitespace().next()?.parse::<f64>().ok());
    let open = std::fs::read_dir("/proc/self/fd").ok().map(|d| d.count() as f64);
    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) as f64 / TICKS);
    let started = boot.zip(field(22)).map(|(boot, ticks)| boot as f64 + ticks as f64 / TICKS);
    let rows = [
        ("process_cpu_seconds_total", "counter", "User and system CPU time in seconds.", cpu),
        ("process_resident_memory_bytes", "gauge", "Resident memory in bytes.", field(24).map(|n| (n * PAGE) as f64)),
        ("process_virtual_memory_bytes", "gauge", "Virtual memory in bytes.", field(23).map(|n| n as f64)),
        ("process_open_fds", "gauge", "Open file descriptors.", open),
        ("process_max_fds", "gauge", "Most open file descriptors.", limit),
        ("process_start_time_seconds", "gauge", "Start of the process since 1970 in seconds.", started),
    ];
    let mut out = String::new();
    for (name, kind, help, value) in rows {
        if let Some(v) = value {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {v}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_uses() {
        let text = process();
        let number = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<f64>().ok()).unwrap();
        assert!(number("process_resident_memory_bytes ") > 1e6 && number("process_open_fds ") >= 3.0);
        assert!(number("process_start_time_seconds ") > 1.6e9);
    }
}
