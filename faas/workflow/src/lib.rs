//! Workflows: durable runs of definitions in the Amazon States Language.

pub mod api;
pub mod endpoint;
pub mod pack;
pub mod payload;
pub mod plugin;
pub mod runs;
pub mod token;
pub mod trigger;
