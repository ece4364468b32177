//! Packed text: deflated, in base64. What sealed pages, checkpoints and payloads hold.

use std::io::{Read as _, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use sha2::{Digest as _, Sha256};

/// Bytes that unpacked text may have: a checkpoint of a run with many items is the longest there is.
const UNPACKED_MAX: u64 = 256 << 20;

/// Why text cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It is no base64.
    #[error("not base64: {0}")]
    Base64(#[from] base64::DecodeError),
    /// It is not deflated text, or cut.
    #[error("not deflated text: {0}")]
    Deflate(#[from] std::io::Error),
    /// It is longer than anything that is packed.
    #[error("longer than {UNPACKED_MAX} bytes")]
    TooLong,
}

/// Deflates bytes.
#[must_use]
pub fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::with_capacity(bytes.len() / 4 + 16), Compression::fast());
    // A Vec takes everything that is written to it.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

/// The text that was deflated.
///
/// # Errors
/// When it was not, or is longer than anything that is.
pub fn inflate(bytes: &[u8]) -> Result<String, UnpackError> {
    let mut text = String::new();
    ZlibDecoder::new(bytes).take(UNPACKED_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > UNPACKED_MAX { Err(UnpackError::TooLong) } else { Ok(text) }
}

/// Packs text.
#[must_use]
pub fn pack(text: &str) -> String {
    STANDARD.encode(deflate(text.as_bytes()))
}

/// The text that was packed.
///
/// # Errors
/// When it was not, or is longer than anything that is.
pub fn unpack(packed: &str) -> Result<String, UnpackError> {
    inflate(&STANDARD.decode(packed)?)
}

/// SHA-256 in hexadecimal.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back() {
        for text in ["", "{}", "ä\u{0}\u{1F600}", &"{\"a\":1}".repeat(10_000)] {
            assert_eq!(unpack(&pack(text)).unwrap(), text);
        }
        assert!(pack(&"{\"a\":1}".repeat(10_000)).len() < 2000);
    }

    #[test]
    fn what_was_not_packed_is_refused() {
        assert!(matches!(unpack("%"), Err(UnpackError::Base64(_))));
        assert!(matches!(unpack("AAAA"), Err(UnpackError::Deflate(_))));
        let cut = &deflate(b"a text that is long enough to be cut")[..10];
        assert!(inflate(cut).is_err());
    }

    #[test]
    fn digests_are_sha256() {
        assert_eq!(digest(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
