//! One module per controller.

pub mod deployment;
pub mod pods;
pub mod replicas;
