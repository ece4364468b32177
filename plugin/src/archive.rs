//! Directories of code as one blob: a gzipped tar, the same bytes for the same files.
//!
//! What counts is what the code can see: names, contents, and whether a file may be run. Times, owners and the order of the
//! directory do not go in, so an upload of unchanged code is no new revision. Files and symbolic links that stay inside are
//! taken; what else there may be (sockets, devices) is refused by name.

mod ignore;
mod zip;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

/// Bytes of code that are taken, unpacked.
pub const UNPACKED_MAX: u64 = 256 * 1024 * 1024;
/// Files that are taken.
pub const FILES_MAX: usize = 20_000;
/// Name of the file that says what is left out.
pub const IGNORE_FILE: &str = ".skiffignore";

/// Why code cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// Nothing is left of it.
    #[error("there are no files in {}", .0.display())]
    Empty(PathBuf),
    /// Something in it is no file.
    #[error("{} is neither a file, a directory nor a link that stays inside", .0.display())]
    Kind(PathBuf),
    /// It is too much.
    #[error("the code is more than {} MiB or {FILES_MAX} files: leave data out with {IGNORE_FILE}", UNPACKED_MAX >> 20)]
    TooLarge,
    /// It is no ZIP file that can be read.
    #[error("{} is no ZIP file that can be read: {}", .0.display(), .1)]
    Zip(PathBuf, String),
    /// It cannot be packed.
    #[error("cannot pack the code")]
    Pack(#[source] io::Error),
}

/// What is at a path of the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A file, and whether it may be run.
    File(Vec<u8>, bool),
    /// A link to a path relative to its own directory.
    Link(String),
}

/// Code by path, with `/` between the parts.
pub type Files = BTreeMap<String, Entry>;

/// Reads a directory, a ZIP file, or a single file, which is then the only one.
///
/// # Errors
/// When it cannot be read, is empty or too large.
pub fn read(path: &Path) -> Result<Files, ArchiveError> {
    let failed = |e| ArchiveError::Read(path.to_owned(), e);
    let meta = fs::metadata(path).map_err(failed)?;
    let mut files = Files::new();
    if meta.is_dir() {
        let mut walk = Walk { root: path, rules: ignore::Rules::of(path).map_err(failed)?, left: UNPACKED_MAX };
        walk.directory("", &mut files)?;
    } else {
        if meta.len() > UNPACKED_MAX {
            return Err(ArchiveError::TooLarge);
        }
        let bytes = fs::read(path).map_err(failed)?;
        if bytes.starts_with(b"PK\x03\x04") {
            files = zip::read(&bytes).map_err(|e| match e {
                zip::ZipError::TooLarge => ArchiveError::TooLarge,
                zip::ZipError::Broken(why) => ArchiveError::Zip(path.to_owned(), why),
            })?;
            let text = match files.get(IGNORE_FILE) {
                Some(Entry::File(bytes, _)) => String::from_utf8_lossy(bytes).into_owned(),
                _ => String::new(),
            };
            let rules = ignore::Rules::parse(&text);
            files.retain(|name, _| !rules.leaves_out_below(name));
        } else {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            files.insert(name, Entry::File(bytes, executable(&meta)));
        }
    }
    if files.is_empty() {
        return Err(ArchiveError::Empty(path.to_owned()));
    }
    Ok(files)
}

/// Packs files.
///
/// # Errors
/// When a name cannot be written.
pub fn pack(files: &Files) -> Result<Vec<u8>, ArchiveError> {
    let gzip = GzEncoder::new(Vec::new(), Compression::best());
    let mut tar = tar::Builder::new(gzip);
    for (name, entry) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        match entry {
            Entry::File(bytes, executable) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(if *executable { 0o755 } else { 0o644 });
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, name, bytes.as_slice()).map_err(ArchiveError::Pack)?;
            }
            Entry::Link(to) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                tar.append_link(&mut header, name, to).map_err(ArchiveError::Pack)?;
            }
        }
    }
    let mut gzip = tar.into_inner().map_err(ArchiveError::Pack)?;
    gzip.flush().map_err(ArchiveError::Pack)?;
    gzip.finish().map_err(ArchiveError::Pack)
}

/// SHA-256 in hexadecimal.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Whether a path, relative to the code, stays inside it.
fn inside(path: &Path) -> bool {
    let mut depth = 0_usize;
    for part in path.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

fn executable(meta: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    meta.permissions().mode() & 0o100 != 0
}

/// A directory that is read.
struct Walk<'a> {
    root: &'a Path,
    rules: ignore::Rules,
    left: u64,
}

impl Walk<'_> {
    fn directory(&mut self, below: &str, files: &mut Files) -> Result<(), ArchiveError> {
        let here = self.root.join(below);
        let failed = |e| ArchiveError::Read(here.clone(), e);
        for entry in fs::read_dir(&here).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else { return Err(ArchiveError::Kind(entry.path())) };
            let name = if below.is_empty() { name } else { format!("{below}/{name}") };
            let kind = entry.file_type().map_err(failed)?;
            if self.rules.leaves_out(&name, kind.is_dir()) {
                continue;
            }
            if kind.is_dir() {
                self.directory(&name, files)?;
                continue;
            }
            if files.len() == FILES_MAX {
                return Err(ArchiveError::TooLarge);
            }
            let at = entry.path();
            let unread = |e| ArchiveError::Read(at.clone(), e);
            let entry = if kind.is_symlink() {
                let to = fs::read_link(&at).map_err(unread)?;
                match to.to_str() {
                    Some(text) if inside(&Path::new(below).join(&to)) => Entry::Link(text.to_owned()),
                    _ => return Err(ArchiveError::Kind(at)),
                }
            } else if kind.is_file() {
                let file = fs::File::open(&at).map_err(unread)?;
                let meta = file.metadata().map_err(unread)?;
                let mut bytes = Vec::new();
                file.take(self.left + 1).read_to_end(&mut bytes).map_err(unread)?;
                self.left = self.left.checked_sub(bytes.len() as u64).ok_or(ArchiveError::TooLarge)?;
                Entry::File(bytes, executable(&meta))
            } else {
                return Err(ArchiveError::Kind(at));
            };
            files.insert(name, entry);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(bytes: &[u8]) -> Files {
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
        let mut files = Files::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_str().unwrap().to_owned();
            let link = entry.link_name().unwrap().map(|l| l.to_str().unwrap().to_owned());
            let executable = entry.header().mode().unwrap() & 0o100 != 0;
            let mut bytes = vec![];
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(name, link.map_or(Entry::File(bytes, executable), Entry::Link));
        }
        files
    }

    #[test]
    fn a_directory_is_packed_as_it_is_seen() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n);
        fs::create_dir_all(at("lib/deep")).unwrap();
        fs::create_dir_all(at("__pycache__")).unwrap();
        fs::create_dir_all(at("data")).unwrap();
        let long = format!("lib/deep/{}.py", "x".repeat(180));
        for name in ["main.py", "lib/a.py", "data/big", "lib/deep/note.tmp", "__pycache__/main.pyc", long.as_str()] {
            fs::write(at(name), name).unwrap();
        }
        fs::write(at(IGNORE_FILE), "# not for the function\n/data/\n*.tmp\n").unwrap();
        std::os::unix::fs::symlink("../main.py", at("lib/again.py")).unwrap();
        fs::set_permissions(at("lib/a.py"), fs::Permissions::from_mode(0o700)).unwrap();

        let files = read(dir.path()).unwrap();
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        assert_eq!(names, ["lib/a.py", "lib/again.py", long.as_str(), "main.py"]);
        assert_eq!(files["lib/a.py"], Entry::File(b"lib/a.py".to_vec(), true));
        assert_eq!(files["lib/again.py"], Entry::Link("../main.py".into()));
        let packed = pack(&files).unwrap();
        assert_eq!(unpack(&packed), files);

        // Neither time nor owner nor order counts.
        fs::write(at("main.py"), "main.py").unwrap();
        assert_eq!(pack(&read(dir.path()).unwrap()).unwrap(), packed);
        fs::write(at("main.py"), "other").unwrap();
        assert_ne!(pack(&read(dir.path()).unwrap()).unwrap(), packed);
    }

    #[test]
    fn what_leads_outside_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        for to in ["/etc/passwd", "../../x", "../a/../../x"] {
            let link = dir.path().join("a/link");
            std::os::unix::fs::symlink(to, &link).unwrap();
            assert!(matches!(read(dir.path()), Err(ArchiveError::Kind(_))), "{to}");
            fs::remove_file(link).unwrap();
        }
        assert!(matches!(read(dir.path()), Err(ArchiveError::Empty(_))));
    }

    #[test]
    fn a_single_file_is_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("add.py");
        fs::write(&file, "x").unwrap();
        assert_eq!(read(&file).unwrap(), Files::from([("add.py".into(), Entry::File(b"x".to_vec(), false))]));
        assert!(matches!(read(&dir.path().join("none")), Err(ArchiveError::Read(..))));
    }
}
