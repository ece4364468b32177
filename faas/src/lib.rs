//! Functions: from a directory of code to an HTTP endpoint that scales from zero.
//!
//! What a person writes is a [`api::Function`]. Each change of its code is an immutable [`api::FunctionRevision`]; what
//! runs are instances of revisions, of one of two classes ([`instance::Class`]): a pod each, or a process forked from a
//! warm parent. Requests come through the gateway, which knows exactly how many are in flight, holds those that came
//! while nothing ran, and asks a class for an instance at once; API objects follow with their true times.
//!
//! The room knows the API only through `kube::Client`, so it also runs as a process of its own against any Kubernetes
//! (`skiff faas`, container class).

pub mod api;
pub mod asynchronous;
pub mod build;
pub mod container;
pub mod controller;
pub mod gateway;
pub mod instance;
pub mod outside;
pub mod plugin;
pub mod process;
mod run;
pub mod runtime;
pub mod scale;
pub mod trigger;

pub use run::{Config, run, serve};
pub use skiff_plugin::archive;
