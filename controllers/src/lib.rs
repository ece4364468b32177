//! The controllers and the scheduler of a cluster.
//!
//! They know the API only through [`kube::Client`], so they run in the server's process or in one of their own. A
//! controller is a pure plan (observed state to actions) and a thin executor; what it sees comes from shared informers,
//! what it does is idempotent, and it keeps nothing that a restart would lose.

// A test that cannot go on should say where.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod controllers;
pub mod runtime;
pub mod scheduler;

mod manager;
mod metrics;

pub use manager::{Config, run};
