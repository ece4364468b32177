//! What an instance may use, enforced by the kernel's control groups (both versions).

use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::ResourceRequirements;
use sha2::{Digest as _, Sha256};

/// Memory of an instance that does not say.
pub(super) const DEFAULT_MEMORY: u64 = 512 << 20;
/// Least memory of an instance.
pub(super) const SMALLEST: u64 = 16 << 20;
/// Processes and threads of one instance.
pub(super) const PIDS: u64 = 512;

/// The limits of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Bytes.
    pub(super) memory: u64,
    /// Thousandths of a processor.
    pub(super) cpu: Option<u64>,
}

impl Limits {
    pub(super) fn of(resources: Option<&ResourceRequirements>) -> Self {
        let limit = |name: &str| resources?.limits.as_ref()?.get(name).and_then(|q| thousandths(&q.0));
        Self {
            memory: limit("memory").map_or(DEFAULT_MEMORY, |m| m / 1000).max(SMALLEST),
            cpu: limit("cpu").map(|c| c.max(10)),
        }
    }
}

/// A quantity in thousandths, rounded up; none for what is none (the schema has refused it).
fn thousandths(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        exponent => format!("1{exponent}").parse().ok()?,
    };
    let value: f64 = number.parse().ok()?;
    let value = (value * factor * 1000.0).ceil();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    (value.is_finite() && value >= 0.0).then_some(value as u64)
}

/// The control groups of all instances of one data directory.
#[derive(Debug)]
pub(super) struct Groups {
    /// Name of what it controls, and its directory. With version 2 one, named `all`.
    places: Vec<(&'static str, PathBuf)>,
    unified: bool,
}

impl Groups {
    /// Makes the groups above all instances. Without control groups there are none, and other means limit memory.
    pub(super) fn open(data_dir: &Path) -> Self {
        let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
        let name = format!("skiff-fn-{}", crate::runtime::hex(&digest[..4]));
        let top = Path::new("/sys/fs/cgroup");
        let unified = top.join("cgroup.controllers").is_file();
        let mut places = Vec::new();
        if unified {
            let place = top.join(&name);
            let subtree = |dir: &Path| std::fs::write(dir.join("cgroup.subtree_control"), "+memory +pids +cpu");
            if subtree(top).is_ok() && make(&place).is_ok() && subtree(&place).is_ok() {
                places.push(("all", place));
            }
        } else {
            for kind in ["memory", "pids", "cpu"] {
                let place = top.join(kind).join(&name);
                if top.join(kind).join("cgroup.procs").is_file() && make(&place).is_ok() {
                    places.push((kind, place));
                }
            }
        }
        let groups = Self { places, unified };
        groups.sweep();
        groups
    }

    /// Directories that the warm parent puts children into.
    pub(super) fn places(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.places.iter().map(|(kind, place)| (*kind, place.as_path()))
    }

    /// Whether the kernel bounds memory by these groups.
    pub(super) fn bound_memory(&self) -> bool {
        self.unified && !self.places.is_empty() || self.places.iter().any(|(kind, _)| *kind == "memory")
    }

    /// Makes the groups of an instance.
    pub(super) fn make(&self, id: &str, limits: Limits) -> io::Result<()> {
        for (_, place) in &self.places {
            make(&place.join(id))?;
        }
        self.set(id, limits)
    }

    /// Sets the limits of an instance that has groups.
    pub(super) fn set(&self, id: &str, limits: Limits) -> io::Result<()> {
        for (kind, place) in &self.places {
            let place = place.join(id);
            let put = |file: &str, value: String| std::fs::write(place.join(file), value);
            match *kind {
                "memory" => {
                    put("memory.limit_in_bytes", limits.memory.to_string())?;
                    // Swap counts where the kernel counts it.
                    let _ = put("memory.memsw.limit_in_bytes", limits.memory.to_string());
                }
                "pids" => put("pids.max", PIDS.to_string())?,
                "cpu" => {
                    if let Some(cpu) = limits.cpu {
                        put("cpu.cfs_quota_us", (cpu * 100).to_string())?;
                    }
                }
                _ => {
                    put("memory.max", limits.memory.to_string())?;
                    let _ = put("memory.swap.max", "0".to_owned());
                    put("pids.max", PIDS.to_string())?;
                    if let Some(cpu) = limits.cpu {
                        put("cpu.max", format!("{} 100000", cpu * 100))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the kernel killed something of the instance for memory.
    pub(super) fn out_of_memory(&self, id: &str) -> bool {
        let (kind, file) = if self.unified { ("all", "memory.events") } else { ("memory", "memory.oom_control") };
        let Some((_, place)) = self.places.iter().find(|(k, _)| *k == kind) else { return false };
        let text = std::fs::read_to_string(place.join(id).join(file)).unwrap_or_default();
        text.lines().filter_map(|l| l.strip_prefix("oom_kill ")).any(|n| n.trim() != "0")
    }

    /// Removes the groups of an instance that ended.
    pub(super) fn remove(&self, id: &str) {
        for (_, place) in &self.places {
            // Busy for as long as the kernel still ends something; `sweep` of the next start takes what stays.
            let _ = std::fs::remove_dir(place.join(id));
        }
    }

    fn sweep(&self) {
        for (_, place) in &self.places {
            for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    let _ = std::fs::remove_dir(entry.path());
                }
            }
        }
    }
}

fn make(place: &Path) -> io::Result<()> {
    match std::fs::create_dir(place) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    use super::*;

    #[test]
    fn quantities_become_limits() {
        let of = |memory: &str, cpu: &str| {
            let limits = [("memory", memory), ("cpu", cpu)].map(|(k, v)| (k.to_owned(), Quantity(v.to_owned())));
            Limits::of(Some(&ResourceRequirements { limits: Some(limits.into()), ..Default::default() }))
        };
        assert_eq!(of("64Mi", "250m"), Limits { memory: 64 << 20, cpu: Some(250) });
        assert_eq!(of("1G", "1.5"), Limits { memory: 1_000_000_000, cpu: Some(1500) });
        assert_eq!(of("1e8", "2"), Limits { memory: 100_000_000, cpu: Some(2000) });
        assert_eq!(of("1Ki", "0"), Limits { memory: 16 << 20, cpu: Some(10) });
        assert_eq!(Limits::of(None), Limits { memory: DEFAULT_MEMORY, cpu: None });
    }
}
