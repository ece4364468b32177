//! Types and rules of the API, without I/O.

pub mod resources;
pub mod schema;
