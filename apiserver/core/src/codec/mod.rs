//! Bodies on the wire: JSON, YAML and protobuf, and the typed round trip that upstream's decoding amounts to.
//!
//! Upstream decodes every body into a typed structure and encodes that again; what a field prints, drops, refuses or
//! reports as unknown follows from there. [`normalize()`] does the same to a JSON value, driven by the table in
//! [`crate::schema`].

pub mod json;
pub mod normalize;
pub mod proto;
pub mod yaml;

#[cfg(test)]
pub(crate) mod arbitrary;
#[cfg(test)]
mod tests;

pub use json::{DecodeError, Decoded, Parsed, decode_json, parse_json};
pub use normalize::{Faults, TypeError, normalize};
pub use proto::{decode_proto, encode_proto};
pub use yaml::{decode_yaml, parse_yaml, to_yaml};
