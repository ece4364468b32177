//! A value at rest in etcd: `1`, the hole, eight bytes that name the write, the bytes.
//!
//! The revision is not known when a value is written, so the hole stays (a varint: 0 for none, else its offset plus one)
//! and every reader stamps. The name of the write tells a writer whose answer was lost whether what it finds is its own.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::varint::{decode_varint, encode_varint};

use crate::store::{Payload, Revision};

const FORMAT: u8 = 1;

/// Names one write among all writes of all servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name(u64);

impl Name {
    /// A name nobody had: this process' own random start, and a count.
    pub(super) fn new() -> Self {
        static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| {
            let seed = (std::process::id(), std::time::SystemTime::now());
            AtomicU64::new(RandomState::new().hash_one(seed))
        });
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A value as read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) payload: Payload,
    pub(super) name: Name,
}

pub(super) fn encode(payload: &Payload, name: Name) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.bytes.len() + 12);
    out.put_u8(FORMAT);
    encode_varint(payload.hole.map_or(0, |h| h as u64 + 1), &mut out);
    out.put_u64(name.0);
    out.put_slice(&payload.bytes);
    out.freeze()
}

/// `None` for what this program did not write.
pub(super) fn decode(mut value: Bytes) -> Option<Stored> {
    if !value.has_remaining() || value.get_u8() != FORMAT {
        return None;
    }
    let hole = usize::try_from(decode_varint(&mut value).ok()?).ok()?.checked_sub(1);
    let name = Name(value.try_get_u64().ok()?);
    if hole.is_some_and(|h| h > value.len()) {
        return None;
    }
    Some(Stored { payload: Payload { bytes: value, hole }, name })
}

/// The finished bytes, in memory of their own: a slice would hold the whole message it came in.
pub(super) fn finish(value: Bytes, revision: Revision) -> Option<Bytes> {
    let Stored { payload, .. } = decode(value)?;
    Some(match payload.hole {
        Some(_) => payload.stamp(revision),
        None => Bytes::copy_from_slice(&payload.bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(bytes: Vec<u8>, at: Option<prop::sample::Index>, revision: u64) {
            let hole = at.map(|i| i.index(bytes.len() + 1));
            let payload = Payload { bytes: bytes.into(), hole };
            let name = Name::new();
            let value = encode(&payload, name);
            prop_assert_eq!(decode(value.clone()), Some(Stored { payload: payload.clone(), name }));
            prop_assert_eq!(finish(value, revision), Some(payload.stamp(revision)));
        }

        #[test]
        fn nothing_else_panics(bytes: Vec<u8>) {
            decode(bytes.into());
        }
    }

    #[test]
    fn what_others_wrote_is_told_apart() {
        let short: [&[u8]; 5] = [b"", b"k8s\0", b"{}", b"\x01", b"\x01\x00short"];
        for bytes in short {
            assert_eq!(decode(Bytes::copy_from_slice(bytes)), None, "{bytes:?}");
        }
        let beyond = encode(&Payload { bytes: "abc".into(), hole: Some(4) }, Name::new());
        assert_eq!(decode(beyond), None, "a hole outside");
        assert_ne!(Name::new(), Name::new());
    }
}
