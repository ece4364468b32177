//! What happens when things go wrong: a real server process, real kills, a real full disk.
//!
//! The API server alone (`skiff apiserver`) on loopback and in temporary directories; no engine is needed. The full
//! disk needs root (a loop file system of its own). Everything is bounded in count and time and removed afterwards.
//!
//!     cargo build -p skiff && cargo test -p skiff-conformance --test faults

mod disk_full;
mod process;
mod refusals;
mod storm;
