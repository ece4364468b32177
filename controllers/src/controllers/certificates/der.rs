//! The few ASN.1 forms a certificate is made of.
//!
//! Why by hand: the subject and the key of a request must stand in the certificate byte for byte (a subject may name
//! several organisations), and no library here carries them over unread.

/// SEQUENCE.
pub const SEQUENCE: u8 = 0x30;
/// INTEGER.
pub const INTEGER: u8 = 0x02;
/// BIT STRING.
pub const BITS: u8 = 0x03;
/// OCTET STRING.
pub const OCTETS: u8 = 0x04;
const BOOLEAN: u8 = 0x01;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// A value with its tag and length.
#[must_use]
pub fn value(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len();
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let used = &bytes[bytes.iter().take_while(|b| **b == 0).count()..];
        out.push(0x80 | used.len() as u8);
        out.extend_from_slice(used);
    }
    out.extend_from_slice(content);
    out
}

/// A SEQUENCE of encoded parts.
#[must_use]
pub fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    value(SEQUENCE, &parts.concat())
}

/// An OBJECT IDENTIFIER of at least two arcs.
#[must_use]
pub fn oid(arcs: &[u32]) -> Vec<u8> {
    let mut content = Vec::new();
    let first = arcs.first().copied().unwrap_or_default() * 40 + arcs.get(1).copied().unwrap_or_default();
    for arc in std::iter::once(first).chain(arcs.iter().skip(2).copied()) {
        let groups = (0..5).rev().map(|i| ((arc >> (7 * i)) & 0x7f) as u8).skip_while(|g| *g == 0);
        let mut groups: Vec<u8> = groups.collect();
        let last = groups.pop().unwrap_or_default();
        content.extend(groups.into_iter().map(|g| g | 0x80));
        content.push(last);
    }
    value(OID, &content)
}

/// A non-negative INTEGER from big-endian bytes.
#[must_use]
pub fn unsigned(bytes: &[u8]) -> Vec<u8> {
    let mut content: Vec<u8> = bytes.iter().copied().skip_while(|b| *b == 0).collect();
    if content.first().is_none_or(|b| b & 0x80 != 0) {
        content.insert(0, 0);
    }
    value(INTEGER, &content)
}

/// A time as certificates have it: two digits of the year until 2049.
#[must_use]
pub fn time(at: jiff::Timestamp) -> Vec<u8> {
    let t = at.to_zoned(jiff::tz::TimeZone::UTC);
    if (1950..2050).contains(&t.year()) {
        value(UTC_TIME, t.strftime("%y%m%d%H%M%SZ").to_string().as_bytes())
    } else {
        value(GENERALIZED_TIME, t.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes())
    }
}

/// An extension with its encoded content.
#[must_use]
pub fn extension(id: &[u32], critical: bool, content: &[u8]) -> Vec<u8> {
    let mut parts = vec![oid(id)];
    if critical {
        parts.push(value(BOOLEAN, &[0xff]));
    }
    parts.push(value(OCTETS, content));
    sequence(&parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings() {
        assert_eq!(oid(&[1, 2, 840, 10045, 4, 3, 2]), [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]);
        assert_eq!(oid(&[2, 5, 29, 0]), [6, 3, 0x55, 0x1d, 0]);
        assert_eq!(unsigned(&[0, 0x80]), [2, 2, 0, 0x80]);
        assert_eq!(unsigned(&[0]), [2, 1, 0]);
        assert_eq!(value(OCTETS, &[7; 200])[..3], [4, 0x81, 200]);
        assert_eq!(value(OCTETS, &[7; 300])[..4], [4, 0x82, 1, 44]);
        assert_eq!(time("2049-12-31T23:59:59Z".parse().unwrap()), *b"\x17\x0d491231235959Z");
        assert_eq!(time("2050-01-01T00:00:00Z".parse().unwrap()), *b"\x18\x0f20500101000000Z");
    }
}
