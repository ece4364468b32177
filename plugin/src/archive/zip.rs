//! Reading ZIP files: stored and deflated members by the directory at the end, as all programs write them. No encryption,
//! no parts, no 64-bit sizes: code is small.

use std::io::Read as _;
use std::path::Path;

use flate2::Crc;
use flate2::read::DeflateDecoder;

use super::{Entry, FILES_MAX, Files, UNPACKED_MAX, inside};

/// Why a file is refused.
#[derive(Debug)]
pub(super) enum ZipError {
    TooLarge,
    Broken(String),
}

fn broken<T>(why: impl Into<String>) -> Result<T, ZipError> {
    Err(ZipError::Broken(why.into()))
}

/// Bytes with little numbers in them.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn part(self, from: usize, len: usize) -> Result<&'a [u8], ZipError> {
        let end = from.checked_add(len);
        end.and_then(|end| self.0.get(from..end)).map_or_else(|| broken("it ends too early"), Ok)
    }

    fn short(self, at: usize) -> Result<usize, ZipError> {
        self.part(at, 2).map(|b| usize::from(b[0]) | usize::from(b[1]) << 8)
    }

    fn long(self, at: usize) -> Result<u32, ZipError> {
        self.part(at, 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn place(self, at: usize) -> Result<usize, ZipError> {
        Ok(self.long(at)? as usize)
    }
}

/// The files of an archive. Where all are in one directory, as programs make them that pack a directory, that is left out.
pub(super) fn read(bytes: &[u8]) -> Result<Files, ZipError> {
    let all = Bytes(bytes);
    // The end record is 22 bytes and a comment of at most 64 KiB.
    let from = bytes.len().saturating_sub(22 + 0xffff);
    let Some(end) = bytes[from..].windows(4).rposition(|w| w == b"PK\x05\x06").map(|i| from + i) else {
        return broken("it has no directory");
    };
    let count = all.short(end + 10)?;
    let mut at = all.place(end + 16)?;
    if count > FILES_MAX {
        return Err(ZipError::TooLarge);
    }
    let mut files = Files::new();
    let mut left = UNPACKED_MAX;
    for _ in 0..count {
        if all.part(at, 4)? != b"PK\x01\x02" {
            return broken("its directory is damaged");
        }
        let (flags, method) = (all.short(at + 8)?, all.short(at + 10)?);
        let (crc, packed, size) = (all.long(at + 16)?, all.place(at + 20)?, all.long(at + 24)?);
        let (name_len, extra, comment) = (all.short(at + 28)?, all.short(at + 30)?, all.short(at + 32)?);
        let (mode, start) = (all.long(at + 38)? >> 16, all.place(at + 42)?);
        let name = String::from_utf8_lossy(all.part(at + 46, name_len)?).replace('\\', "/");
        at += 46 + name_len + extra + comment;
        if name.ends_with('/') {
            continue;
        }
        if flags & 1 != 0 {
            return broken(format!("{name} is encrypted"));
        }
        if name.is_empty() || !inside(Path::new(&name)) || Path::new(&name).is_absolute() {
            return broken(format!("the name {name:?} leads outside"));
        }
        left = left.checked_sub(u64::from(size)).ok_or(ZipError::TooLarge)?;
        let data = start + 30 + all.short(start + 26)? + all.short(start + 28)?;
        let data = all.part(data, packed)?;
        let mut content = Vec::new();
        let read = match method {
            0 => data.take(u64::from(size)).read_to_end(&mut content),
            8 => DeflateDecoder::new(data).take(u64::from(size)).read_to_end(&mut content),
            other => return broken(format!("{name} is packed by method {other}")),
        };
        let mut sum = Crc::new();
        sum.update(&content);
        if read.is_err() || content.len() as u64 != u64::from(size) || sum.sum() != crc {
            return broken(format!("{name} is damaged"));
        }
        let entry = if mode & 0o170_000 == 0o120_000 {
            let to = String::from_utf8_lossy(&content).into_owned();
            let above = Path::new(&name).parent().unwrap_or(Path::new(""));
            if !inside(&above.join(&to)) {
                return broken(format!("the link {name:?} leads outside"));
            }
            Entry::Link(to)
        } else {
            Entry::File(content, mode & 0o100 != 0)
        };
        files.insert(name, entry);
    }
    Ok(without_top(files))
}

fn without_top(files: Files) -> Files {
    let Some(top) = files.keys().next().and_then(|n| n.split_once('/')).map(|(top, _)| format!("{top}/")) else {
        return files;
    };
    if files.keys().any(|n| !n.starts_with(&top)) {
        return files;
    }
    files.into_iter().map(|(n, e)| (n[top.len()..].to_owned(), e)).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A ZIP file as programs write them.
    fn zip(members: &[(&str, &[u8], bool, u32)]) -> Vec<u8> {
        let (mut out, mut directory) = (vec![], vec![]);
        for (name, content, deflate, mode) in members {
            let mut crc = Crc::new();
            crc.update(content);
            let data = if *deflate {
                let mut e = flate2::write::DeflateEncoder::new(vec![], flate2::Compression::best());
                e.write_all(content).unwrap();
                e.finish().unwrap()
            } else {
                content.to_vec()
            };
            let start = u32::try_from(out.len()).unwrap();
            let method: u16 = if *deflate { 8 } else { 0 };
            let mut common = vec![20, 0, 0, 0];
            common.extend(method.to_le_bytes());
            common.extend([0; 4]);
            common.extend(crc.sum().to_le_bytes());
            common.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
            common.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
            common.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
            common.extend([0, 0]);
            out.extend(b"PK\x03\x04");
            out.extend(&common);
            out.extend(name.as_bytes());
            out.extend(data);
            directory.extend(b"PK\x01\x02\x14\x03");
            directory.extend(&common);
            directory.extend([0; 6]);
            directory.extend((mode << 16).to_le_bytes());
            directory.extend(start.to_le_bytes());
            directory.extend(name.as_bytes());
        }
        let (at, len, n) = (out.len(), directory.len(), u16::try_from(members.len()).unwrap());
        out.extend(directory);
        out.extend(b"PK\x05\x06\0\0\0\0");
        out.extend(n.to_le_bytes());
        out.extend(n.to_le_bytes());
        out.extend(u32::try_from(len).unwrap().to_le_bytes());
        out.extend(u32::try_from(at).unwrap().to_le_bytes());
        out.extend([0, 0]);
        out
    }

    #[test]
    fn members_are_read() {
        let text = b"def main(params): pass\n".repeat(50);
        let whole = zip(&[
            ("fn/", b"", false, 0o40_755),
            ("fn/main.py", &text, true, 0o100_644),
            ("fn/run", b"#!", false, 0o100_755),
            ("fn/link", b"main.py", false, 0o120_777),
        ]);
        let files = read(&whole).unwrap();
        assert_eq!(files["main.py"], Entry::File(text.clone(), false), "the directory around all is left out");
        assert_eq!(files["run"], Entry::File(b"#!".to_vec(), true));
        assert_eq!(files["link"], Entry::Link("main.py".into()));
        assert_eq!(files.len(), 3);
        for cut in 0..whole.len() {
            // Never a panic, whatever is missing.
            let _ = read(&whole[..cut]);
        }
        let two = read(&zip(&[("a/x", b"1", false, 0), ("b", b"2", false, 0)])).unwrap();
        assert!(two.contains_key("a/x") && two.contains_key("b"));
    }

    #[test]
    fn what_leads_outside_or_is_damaged_is_refused() {
        for bad in ["../x", "/etc/x", "a/../../x"] {
            assert!(matches!(read(&zip(&[(bad, b"", false, 0)])), Err(ZipError::Broken(_))), "{bad}");
        }
        assert!(read(&zip(&[("d/l", b"../../x", false, 0o120_777)])).is_err());
        let mut damaged = zip(&[("main.py", b"text", false, 0)]);
        let at = damaged.windows(4).position(|w| w == b"text").unwrap();
        damaged[at] = b'T';
        assert!(matches!(read(&damaged), Err(ZipError::Broken(why)) if why.contains("damaged")));
    }
}
