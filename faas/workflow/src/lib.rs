//! Workflows: durable runs of definitions in the Amazon States Language.

pub mod api;
