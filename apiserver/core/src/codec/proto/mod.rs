//! Protobuf bodies, driven by the table of structures.
//!
//! On the wire an object is `k8s\0` and a `runtime.Unknown`: apiVersion and kind, then the message. The messages are those
//! upstream generates, byte for byte: fields in the order of their numbers, fields that are no pointers always written,
//! structures that JSON inlines as messages of their own. Unknown fields of a message are skipped without a report.
//!
//! Bounds on what is read: depth, the number of messages, and otherwise the length of the body, since nothing is allocated
//! before its bytes are there.

mod read;
pub(crate) mod wire;
mod write;

#[cfg(test)]
mod tests;

pub use read::{Envelope, decode_proto, envelope, read_message};
pub use write::{LIST_END, encode_proto, list_head, list_item, watch_frame, write_message};

/// What every body begins with.
pub const MAGIC: &[u8; 4] = b"k8s\0";
