//! The controllers and the scheduler against the real server, in one process.

// A test that cannot go on should say where.
#![allow(clippy::unwrap_used)]

mod autoscaling;
mod budgets;
mod cluster;
mod garbage;
mod jobs;
mod nodes;
mod policies;
mod ranges;
mod rollout;
mod scheduling;
mod services;
mod sets;
mod volumes;
