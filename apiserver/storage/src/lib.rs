//! Where objects live: the [`Store`] contract, its implementations, and the watch cache above them.
//!
//! This crate knows keys, bytes and revisions. It knows no kinds and never looks inside a value, with one exception that
//! the caller supplies: the [`cache`] asks an extractor for the few fields it indexes.

pub mod cache;
pub mod embedded;
pub mod etcd;
mod sinks;
pub mod store;

pub use cache::{Cache, Event, Meta, Object, Snapshot, Watcher};
pub use embedded::Embedded;
pub use etcd::Etcd;
pub use store::{
    Attached, Change, ChangeKind, Compare, Entry, Error, Op, Payload, Progress, Range, Result, Revision, Sink, Store,
};
