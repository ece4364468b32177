//! Workflows: durable runs of definitions in the Amazon States Language.

pub mod api;
pub mod arn;
pub mod endpoint;
pub mod engine;
mod journal;
pub mod machine;
mod needs;
pub mod pack;
pub mod payload;
pub mod plugin;
pub mod resource;
mod run;
pub mod runs;
pub mod task;
pub mod token;
pub mod trigger;

pub use run::{Config, define, run};
