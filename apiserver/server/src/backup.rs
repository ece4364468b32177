//! Everything in the store in one file, and back.
//!
//! Lines of JSON: what it is and the revision it is of; files of the data directory; one entry a line, values as stored;
//! at the end a count and a SHA-256 of all that came before, so that half a file is not taken for a whole one.
//!
//! A server answers its own at [`PATH`], as of one revision, to whoever may read every path (administrators).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use skiff_core::status::Status;
use skiff_storage::{Payload, Revision};

use crate::body::Body;
use crate::registry::{object, storage_error};
use crate::server::Inner;

/// Where a server answers it.
pub const PATH: &str = "/skiff/v1/backup";
const FORMAT: &str = "skiff-backup-1";

/// A file that is not a whole backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A line is not what it should be.
    #[error("line {line}: {what}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// The end is missing.
    #[error("the file is cut short")]
    Short,
    /// The sum is wrong.
    #[error("the file was changed: its sum does not fit")]
    Sum,
    /// A value in the store is no JSON.
    #[error("the value of {0} is not JSON")]
    Value(String),
}

/// What is in such a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backup {
    /// The revision it is of.
    pub revision: Revision,
    /// Files of the data directory: path and contents.
    pub files: Vec<(String, Vec<u8>)>,
    /// Key, revision and value of each entry.
    pub entries: Vec<(String, Revision, Bytes)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: String,
    revision: Revision,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    entries: usize,
    sha256: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    file: String,
    base64: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry<'a> {
    key: String,
    revision: Revision,
    #[serde(borrow)]
    value: &'a RawValue,
}

impl Backup {
    /// The file.
    ///
    /// # Errors
    /// When a value is not JSON in UTF-8.
    pub fn encode(&self) -> Result<Vec<u8>, BackupError> {
        let mut out =
            Vec::with_capacity(self.entries.iter().map(|(k, _, v)| k.len() + v.len() + 48).sum::<usize>() + 4096);
        line(&mut out, &Head { format: FORMAT.to_owned(), revision: self.revision });
        for (file, bytes) in &self.files {
            line(&mut out, &File { file: file.clone(), base64: STANDARD.encode(bytes) });
        }
        for (key, revision, value) in &self.entries {
            let value = serde_json::from_slice::<&RawValue>(value).map_err(|_| BackupError::Value(key.clone()))?;
            line(&mut out, &Entry { key: key.clone(), revision: *revision, value });
        }
        let sha256 = sum(&out);
        line(&mut out, &End { entries: self.entries.len(), sha256 });
        Ok(out)
    }

    /// Reads a file, as a whole or not at all.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BackupError> {
        let body = bytes.strip_suffix(b"\n").ok_or(BackupError::Short)?;
        let cut = body.iter().rposition(|b| *b == b'\n').ok_or(BackupError::Short)? + 1;
        let end: End = serde_json::from_slice(&body[cut..]).map_err(|_| BackupError::Short)?;
        if end.sha256 != sum(&bytes[..cut]) {
            return Err(BackupError::Sum);
        }
        let mut out = Self::default();
        for (n, text) in bytes[..cut - 1].split(|b| *b == b'\n').enumerate() {
            let wrong = |what: String| BackupError::Line { line: n + 1, what };
            if n == 0 {
                let head: Head = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
                if head.format != FORMAT {
                    return Err(wrong(format!("the format is {}, this program knows {FORMAT}", head.format)));
                }
                out.revision = head.revision;
            } else if text.starts_with(b"{\"file\"") {
                let f: File = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
                let bytes = STANDARD.decode(f.base64).map_err(|e| wrong(e.to_string()))?;
                out.files.push((f.file, bytes));
            } else {
                let e: Entry<'_> = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
                out.entries.push((e.key, e.revision, Bytes::copy_from_slice(e.value.get().as_bytes())));
            }
        }
        if out.entries.len() != end.entries {
            return Err(BackupError::Short);
        }
        Ok(out)
    }
}

fn line(out: &mut Vec<u8>, value: &impl Serialize) {
    // Structs of texts and numbers always serialise.
    serde_json::to_writer(&mut *out, value).unwrap_or_default();
    out.push(b'\n');
}

fn sum(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut out, byte| {
        // Writing to a String cannot fail.
        write!(out, "{byte:02x}").unwrap_or_default();
        out
    })
}

/// A stored value as it is written again, under another revision: the digits of its own become the hole.
#[must_use]
pub fn payload(value: &Bytes, revision: Revision) -> Payload {
    match object::version_range(value) {
        Some(range) if value[range.clone()] == *revision.to_string().as_bytes() => {
            let bytes = [&value[..range.start], &value[range.end..]].concat();
            Payload { bytes: bytes.into(), hole: Some(range.start) }
        }
        _ => Payload { bytes: value.clone(), hole: None },
    }
}

/// This server's own.
///
/// # Errors
/// When the store cannot be read.
pub async fn answer(server: &Inner) -> Result<http::Response<Body>, Status> {
    let range = server.store.range("/", None, 0, 0).await.map_err(storage_error)?;
    let entries = range.entries.into_iter().map(|e| (e.key.to_string(), e.revision, e.value.clone())).collect();
    let backup = Backup { revision: range.revision, files: vec![], entries };
    let bytes = backup.encode().map_err(|e| Status::internal(e.to_string()))?;
    let mut response = http::Response::new(Body::full(bytes));
    let kind = http::HeaderValue::from_static("application/jsonl");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Backup {
        let value = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        Backup {
            revision: 77,
            files: vec![("pki/ca.crt".into(), b"line\n\xff".to_vec())],
            entries: vec![
                (
                    "/registry/pods/a/b".into(),
                    12,
                    value(r#"{"kind":"Pod","metadata":{"resourceVersion":"12"},"z":1.0e5}"#),
                ),
                ("/registry/ranges/x".into(), 70, value(r#"{"at":  1}"#)),
            ],
        }
    }

    #[test]
    fn every_byte_comes_back_and_every_fault_is_seen() {
        let bytes = some().encode().unwrap();
        assert_eq!(Backup::decode(&bytes).unwrap(), some());
        for at in 0..bytes.len() {
            assert!(Backup::decode(&bytes[..at]).is_err(), "cut at {at}");
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert!(Backup::decode(&other).is_err(), "changed at {at}");
        }
        let raw = Backup { entries: vec![("/k".into(), 1, "no json".into())], ..Backup::default() };
        assert!(matches!(raw.encode(), Err(BackupError::Value(_))));
    }

    #[test]
    fn only_a_value_s_own_version_becomes_the_hole() {
        let [(_, revision, value), (_, other, plain)] = some().entries.try_into().unwrap();
        let moved = payload(&value, revision).stamp(2000);
        assert_eq!(moved, r#"{"kind":"Pod","metadata":{"resourceVersion":"2000"},"z":1.0e5}"#);
        assert_eq!(payload(&value, 13).hole, None);
        assert_eq!(payload(&plain, other), Payload::plain(plain));
    }
}
