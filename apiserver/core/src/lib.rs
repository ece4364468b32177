//! Types and rules of the API, without I/O.

pub mod codec;
pub mod discovery;
pub mod openapi;
pub mod quantity;
pub mod resources;
pub mod schema;
pub mod time;
