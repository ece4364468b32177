//! Jobs on Slurm clusters: from an object to its results, none lost, none twice.
//!
//! What a person writes is an [`api::GpuJob`]; where it can run is an [`api::HpcCluster`]. The room knows the API only through
//! `kube::Client`, and Slurm only through what an ordinary account may do.

// A test that cannot go on should say where.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admission;
mod announce;
pub mod api;
pub mod catalogue;
pub mod clusters;
pub mod controller;
pub mod driver;
pub mod link;
mod metrics;
pub mod plugin;
mod run;
pub mod script;
pub mod serve;
mod sink;
pub mod stage;
pub mod state;
pub mod store;

pub use run::{Config, run};
