//! Class `process`: instances forked from a warm parent on a node, each in a sandbox of its own.
//!
//! One parent (`parent.py`) on each node has Python, the runner and common modules loaded; an instance of Python is a fork of it,
//! an instance of Node.js a process of its own that waits ahead for its code. Each has namespaces of its own (mounts,
//! processes, IPC, host name, network), a user of its own without privileges, a root directory with programs and its own
//! code, all read-only, a private `/tmp`, and control groups for memory, processor and processes.
//!
//! ```text
//! gateway   class    which node, records in the API      nodes   the choice      follow   what nodes say
//!           agent    another node's agent over TLS
//! node      host     its processes                       endpoint   them for the gateway    images   what is handed over
//!           start, parent, code, limits, logs            one instance, what it needs, what it prints    tidy   what stays of codes
//! both      job      what they say to each other
//! ```
//!
//! Limits: Linux, root, and a Python on the node. An instance has no network but its own loopback: a function that calls
//! others needs isolation `container`. Packages come as wheels. When a node's agent ends, its instances end with it.

mod agent;
mod class;
mod code;
mod endpoint;
mod env;
mod follow;
mod host;
mod images;
mod job;
mod limits;
mod logs;
mod nodes;
mod parent;
mod record;
mod start;
mod tidy;

pub use agent::Keys;
pub use class::{Access, Processes};
pub use endpoint::{Body, Endpoint};
pub use host::{Config, Host};
pub use images::Wanted;
