//! The way of a request: from the door through the queue to an instance and back.

pub mod auth;
pub mod call;
pub mod door;
mod events;
pub mod fleet;
pub mod hub;
pub mod invoke;
pub mod limits;
pub mod link;
pub mod live;
mod logs;
pub mod metrics;
pub mod serve;
