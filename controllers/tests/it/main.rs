//! The controllers and the scheduler against the real server, in one process.

mod cluster;
mod garbage;
mod rollout;
mod scheduling;
mod services;
