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

pub use json::{DecodeError, Decoded, Parsed, decode_json, decode_parsed, parse_json};
pub use normalize::{Faults, TypeError, normalize, normalize_shape, untyped_numbers};
pub use proto::{decode_proto, encode_proto, envelope, watch_frame};
pub use yaml::{ParsedYaml, decode_parsed_yaml, decode_yaml, parse_yaml, to_yaml};
