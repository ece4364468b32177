//! Tests of the storage room through its public interface, in one program because linking is the slow part.

#![allow(clippy::unwrap_used)] // In a test a panic is the report.

mod cache;
mod crash;
mod embedded;
mod etcd;
mod etcd_cluster;
mod faults;
mod model;
mod suite;
