//! When a node is short of something.
//!
//! Thresholds are written as for upstream's `--eviction-hard` (kubernetes.io/docs/concepts/scheduling-eviction/node-
//! pressure-eviction): `memory.available<100Mi,nodefs.available<5%`. A crossed threshold makes the node's condition True;
//! the node controller taints for it, and nothing new is placed. Running pods are left alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod::spec;

/// What is watched. Ordered as the conditions are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Signal {
    Memory,
    NodeFs,
    NodeFsInodes,
    ImageFs,
    ImageFsInodes,
    Pid,
}

const SIGNALS: [(&str, Signal); 6] = [
    ("memory.available", Signal::Memory),
    ("nodefs.available", Signal::NodeFs),
    ("nodefs.inodesFree", Signal::NodeFsInodes),
    ("imagefs.available", Signal::ImageFs),
    ("imagefs.inodesFree", Signal::ImageFsInodes),
    ("pid.available", Signal::Pid),
];

/// What is asked for when nothing is said. Memory and inodes as upstream; space as k3s, because people also work on such machines: with upstream's 15 % an
/// ordinary laptop takes no pods.
pub const DEFAULT: &str = "memory.available<100Mi,nodefs.available<5%,nodefs.inodesFree<5%,imagefs.available<5%,\
                       imagefs.inodesFree<5%,pid.available<1000";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Limit {
    /// Bytes, inodes or processes.
    Amount(u64),
    /// Hundredths of the capacity.
    Percent(f64),
}

/// How much of each signal must be left. A signal that is not named is not watched.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds(BTreeMap<Signal, Limit>);

impl Default for Thresholds {
    fn default() -> Self {
        // The text is a constant of this file, and a test parses it.
        DEFAULT.parse().expect("the default thresholds are well formed")
    }
}

impl FromStr for Thresholds {
    type Err = String;

    /// Parses `SIGNAL<QUANTITY-OR-PERCENT,...`; an empty text watches nothing.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (name, value) = part.split_once('<').ok_or_else(|| format!("{part:?} is not SIGNAL<QUANTITY"))?;
            let known = || SIGNALS.map(|(name, _)| name).join(", ");
            let (_, signal) = *SIGNALS
                .iter()
                .find(|(n, _)| *n == name)
                .ok_or_else(|| format!("unknown signal {name:?}: one of {}", known()))?;
            if all.insert(signal, limit(name, value)?).is_some() {
                return Err(format!("{name} is named twice"));
            }
        }
        Ok(Self(all))
    }
}

fn limit(name: &str, value: &str) -> Result<Limit, String> {
    if let Some(percent) = value.strip_suffix('%') {
        let percent = percent.parse().ok().filter(|p| (0.0..=100.0).contains(p));
        return percent.map(Limit::Percent).ok_or_else(|| format!("{name}: {value:?} is not between 0% and 100%"));
    }
    let amount = spec::whole(&Quantity(value.to_owned())).and_then(|v| u64::try_from(v).ok());
    amount.map(Limit::Amount).ok_or_else(|| format!("{name}: {value:?} is not a quantity"))
}

/// How much there is of a thing, and how much of it is free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) total: u64,
    pub(super) free: u64,
}

/// Space and inodes of the file system that holds a path.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FileSystem {
    pub(super) bytes: Room,
    pub(super) inodes: Room,
}

impl FileSystem {
    /// Reads the file system of a path; nothing is known (and nothing short) where that fails.
    pub(super) fn of(path: &Path) -> Self {
        let Ok(s) = nix::sys::statvfs::statvfs(path).or_else(|_| nix::sys::statvfs::statvfs("/")) else {
            return Self::default();
        };
        let unit = s.fragment_size();
        Self {
            bytes: Room { total: s.blocks() * unit, free: s.blocks_available() * unit },
            inodes: Room { total: s.files(), free: s.files_available() },
        }
    }
}

/// Readings of one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Readings {
    memory: Room,
    nodefs: FileSystem,
    imagefs: FileSystem,
    pids: Room,
}

impl Readings {
    /// Reads the machine. `data` is on the node's own file system, `images` on the engine's.
    pub(super) fn take(data: &Path, images: FileSystem) -> Self {
        let memory = |name| super::meminfo(name).unwrap_or_default();
        Self {
            memory: Room { total: memory("MemTotal"), free: memory("MemAvailable") },
            nodefs: FileSystem::of(data),
            imagefs: images,
            pids: pids().unwrap_or_default(),
        }
    }

    fn of(&self, signal: Signal) -> Room {
        match signal {
            Signal::Memory => self.memory,
            Signal::NodeFs => self.nodefs.bytes,
            Signal::NodeFsInodes => self.nodefs.inodes,
            Signal::ImageFs => self.imagefs.bytes,
            Signal::ImageFsInodes => self.imagefs.inodes,
            Signal::Pid => self.pids,
        }
    }
}

/// What a node is short of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pressure {
    pub(super) memory: bool,
    pub(super) disk: bool,
    pub(super) pids: bool,
}

impl Thresholds {
    /// Which conditions hold. What could not be read (a total of 0, also of file systems without inodes) is not short.
    pub(super) fn crossed(&self, readings: &Readings) -> Pressure {
        let mut pressure = Pressure::default();
        for (signal, limit) in &self.0 {
            let room = readings.of(*signal);
            let least = match limit {
                Limit::Amount(amount) => *amount as f64,
                Limit::Percent(percent) => room.total as f64 * percent / 100.0,
            };
            let short = room.total > 0 && (room.free as f64) < least;
            match signal {
                Signal::Memory => pressure.memory |= short,
                Signal::Pid => pressure.pids |= short,
                _ => pressure.disk |= short,
            }
        }
        pressure
    }
}

fn pids() -> Option<Room> {
    let total: u64 = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok()?.trim().parse().ok()?;
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    let running: u64 = load.split_whitespace().nth(3)?.split('/').nth(1)?.parse().ok()?;
    Some(Room { total, free: total.saturating_sub(running) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(total: u64, free: u64) -> Readings {
        let bytes = Room { total, free };
        let full = FileSystem { bytes, inodes: Room { total: 1000, free: 900 } };
        Readings {
            memory: Room { total: 8 << 30, free: 4 << 30 },
            nodefs: full,
            imagefs: full,
            pids: Room { total: 32768, free: 30000 },
        }
    }

    #[test]
    fn a_share_and_an_amount_are_crossed_just_below_them() {
        let usual = Thresholds::default();
        assert_eq!(usual.crossed(&disk(1000, 50)), Pressure::default());
        assert_eq!(usual.crossed(&disk(1000, 49)), Pressure { disk: true, ..Pressure::default() });
        let amount: Thresholds = "nodefs.available<1Ki".parse().unwrap();
        assert!(!amount.crossed(&disk(1 << 20, 1024)).disk);
        assert!(amount.crossed(&disk(1 << 20, 1023)).disk);
    }

    #[test]
    fn each_signal_has_its_condition() {
        let all = |text: &str| text.parse::<Thresholds>().unwrap().crossed(&disk(1000, 999));
        assert_eq!(all("memory.available<5Gi"), Pressure { memory: true, ..Pressure::default() });
        assert_eq!(all("pid.available<31000"), Pressure { pids: true, ..Pressure::default() });
        for signal in ["nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree"] {
            assert_eq!(all(&format!("{signal}<100%")), Pressure { disk: true, ..Pressure::default() }, "{signal}");
        }
        assert_eq!(all(""), Pressure::default());
    }

    #[test]
    fn what_cannot_be_read_is_not_short() {
        assert_eq!(Thresholds::default().crossed(&Readings::default()), Pressure::default());
    }

    #[test]
    fn faults_name_the_part() {
        for (text, fault) in [
            ("disk<5%", "unknown signal \"disk\""),
            ("nodefs.available", "is not SIGNAL<QUANTITY"),
            ("nodefs.available<101%", "not between 0% and 100%"),
            ("nodefs.available<-1Gi", "is not a quantity"),
            ("nodefs.available<many", "is not a quantity"),
            ("pid.available<1,pid.available<2", "named twice"),
        ] {
            let error = text.parse::<Thresholds>().unwrap_err();
            assert!(error.contains(fault), "{text}: {error}");
        }
    }
}
