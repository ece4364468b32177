//! The way of a request: from the door through the queue to an instance and back.

pub mod auth;
pub mod call;
pub mod door;
pub mod fleet;
pub mod hub;
pub mod invoke;
pub mod link;
mod logs;
pub mod metrics;
pub mod serve;
