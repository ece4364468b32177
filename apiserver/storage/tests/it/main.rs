//! Tests of the storage room through its public interface, in one program because linking is the slow part.

mod cache;
mod crash;
mod embedded;
mod faults;
mod model;
mod suite;
