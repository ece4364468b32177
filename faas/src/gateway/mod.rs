//! The way of a request: from the door through the queue to an instance and back.

pub mod invoke;
