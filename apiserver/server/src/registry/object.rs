//! An object at rest: compact JSON in a fixed key order with a hole for its resourceVersion.
//!
//! `{"kind":K,"apiVersion":V,"metadata":{"resourceVersion":"<hole>",...},...}`: kind and version come first, so that a
//! list drops them by slicing; the version of the write comes at an offset that is known without parsing.

use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value};
use skiff_storage::Payload;

const RV_OPEN: &str = "\"metadata\":{\"resourceVersion\":\"";

/// Encodes `obj` for the store. Its `metadata.resourceVersion` is replaced by the hole.
///
/// # Panics
/// Never: a `Value` always serialises.
#[must_use]
pub fn encode(obj: &Value) -> Payload {
    let mut out = Vec::with_capacity(1024);
    let text = |v: &Value, out: &mut Vec<u8>| {
        // Serialising a Value into a Vec cannot fail.
        serde_json::to_writer(out, v).unwrap_or_default();
    };
    out.extend_from_slice(b"{\"kind\":");
    text(obj.get("kind").unwrap_or(&Value::Null), &mut out);
    out.extend_from_slice(b",\"apiVersion\":");
    text(obj.get("apiVersion").unwrap_or(&Value::Null), &mut out);
    out.push(b',');
    out.extend_from_slice(RV_OPEN.as_bytes());
    let hole = out.len();
    out.push(b'"');
    let empty = Map::new();
    for (k, v) in obj.get("metadata").and_then(Value::as_object).unwrap_or(&empty) {
        if k != "resourceVersion" {
            out.push(b',');
            text(&Value::from(k.as_str()), &mut out);
            out.push(b':');
            text(v, &mut out);
        }
    }
    out.push(b'}');
    for (k, v) in obj.as_object().unwrap_or(&empty) {
        if !matches!(k.as_str(), "kind" | "apiVersion" | "metadata") {
            out.push(b',');
            text(&Value::from(k.as_str()), &mut out);
            out.push(b':');
            text(v, &mut out);
        }
    }
    out.push(b'}');
    Payload { bytes: Bytes::from(out), hole: Some(hole) }
}

/// Offset of `"metadata"` in an object encoded by [`encode`]: where a list item starts, after its `{`.
#[must_use]
pub fn item_offset(bytes: &[u8]) -> usize {
    find(bytes, b"\"metadata\":{").unwrap_or(1)
}

/// Where the digits of the resourceVersion stand.
#[must_use]
pub fn version_range(bytes: &[u8]) -> Option<std::ops::Range<usize>> {
    let start = find(bytes, RV_OPEN.as_bytes())? + RV_OPEN.len();
    let len = bytes[start..].iter().position(|b| *b == b'"')?;
    Some(start..start + len)
}

/// The same object with another resourceVersion.
#[must_use]
pub fn restamp(bytes: &Bytes, revision: u64) -> Bytes {
    let Some(range) = version_range(bytes) else { return bytes.clone() };
    let mut out = BytesMut::with_capacity(bytes.len() + 4);
    out.extend_from_slice(&bytes[..range.start]);
    out.extend_from_slice(revision.to_string().as_bytes());
    out.extend_from_slice(&bytes[range.end..]);
    out.freeze()
}

/// Whether two encodings are equal but for their resourceVersions.
#[must_use]
pub fn same(stored: &[u8], new: &Payload) -> bool {
    let (Some(range), Some(hole)) = (version_range(stored), new.hole) else { return false };
    range.start == hole && stored[..hole] == new.bytes[..hole] && stored[range.end..] == new.bytes[hole..]
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    // The needle stands within the first hundred bytes of every stored object.
    hay.windows(needle.len()).position(|w| w == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stamped_bytes_parse_back() {
        let v = json!({"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","resourceVersion":"7"},"spec":{"x":1}});
        let p = encode(&v);
        let b = p.stamp(42);
        let back: Value = serde_json::from_slice(&b).unwrap();
        assert_eq!(back["metadata"]["resourceVersion"], "42");
        assert_eq!(back["spec"], v["spec"]);
        assert!(same(&b, &p));
        let again: Value = serde_json::from_slice(&restamp(&b, 100)).unwrap();
        assert_eq!(again["metadata"]["resourceVersion"], "100");
        assert!(b[item_offset(&b)..].starts_with(b"\"metadata\""));
    }
}
