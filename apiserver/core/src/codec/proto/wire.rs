//! The encoding of numbers and lengths.

use super::super::json::DecodeError;

/// How a field's value is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// Reads the fields of one message.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

pub(super) fn fault(message: &str) -> DecodeError {
    DecodeError::Protobuf(format!("proto: {message}"))
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next field's number and value. Groups, which nothing uses, are skipped.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, DecodeError> {
        let mut groups = 0_u32;
        loop {
            if self.rest.is_empty() {
                return if groups == 0 { Ok(None) } else { Err(fault("unexpected end of input")) };
            }
            let tag = self.varint()?;
            let number = u32::try_from(tag >> 3).ok().filter(|n| (1..1 << 29).contains(n));
            let number = number.ok_or_else(|| fault("illegal field number"))?;
            let wire = match tag & 7 {
                0 => Wire::Varint(self.varint()?),
                1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
                2 => {
                    let length = usize::try_from(self.varint()?).map_err(|_| fault("length overflow"))?;
                    Wire::Bytes(self.take(length)?)
                }
                3 => {
                    groups += 1;
                    continue;
                }
                4 => {
                    groups = groups.checked_sub(1).ok_or_else(|| fault("unexpected end of group"))?;
                    continue;
                }
                5 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
                _ => return Err(fault("illegal wire type")),
            };
            if groups == 0 {
                return Ok(Some((number, wire)));
            }
        }
    }

    pub(super) fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for (i, byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[i + 1..];
                return Ok(value);
            }
        }
        Err(fault(if self.rest.len() < 10 { "unexpected end of input" } else { "integer overflow" }))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or_else(|| fault("unexpected end of input"))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or_else(|| fault("unexpected end of input"))?;
        self.rest = rest;
        Ok(*head)
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_number(out: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, value);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A nested message. Its length stands before it, so the message is written first, behind one byte for the length, which
/// is enough for almost all; a longer one is moved.
pub(crate) fn put_message(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    put_varint(out, u64::from(number) << 3 | 2);
    let start = out.len();
    out.push(0);
    write(out);
    let mut length = (out.len() - start - 1) as u64;
    let more = varint_len(length) - 1;
    if more > 0 {
        let end = out.len();
        out.resize(end + more, 0);
        out.copy_within(start + 1..end, start + 1 + more);
    }
    for byte in &mut out[start..start + more] {
        *byte = length as u8 | 0x80;
        length >>= 7;
    }
    out[start + more] = length as u8;
}

/// How many bytes a number takes.
pub(crate) fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}
