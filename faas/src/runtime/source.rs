//! The code of a function as files: fetched from the API, verified, unpacked.
//!
//! An archive is what somebody uploaded: its digest is checked before a byte of it is looked at, and nothing in it is
//! written outside the directory it is for (no absolute paths, no `..`, no devices, no links out, nothing through a link).
//! Limits bound what a small archive can become.

use std::collections::BTreeMap;
use std::io::{Read, Write as _};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use sha2::{Digest as _, Sha256};

use super::Language;
use crate::api::{Archive, Code, FunctionRevision};

/// Most bytes that an archive's files may have together.
pub const MAX_BYTES: u64 = 512 << 20;
/// Most entries of an archive.
pub const MAX_ENTRIES: usize = 50_000;

/// Why code cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The runtime's name says nothing to us.
    #[error(
        "there is no runtime {0:?}: python, node and http are known; any image that answers HTTP on $PORT works too"
    )]
    Runtime(String),
    /// A ConfigMap is not there, or not as it must be.
    #[error("{0}")]
    Missing(String),
    /// The archive is not what was uploaded.
    #[error("the archive's SHA-256 is {found}, not {wanted}")]
    Digest {
        /// What the function says.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// The archive has something that is not allowed.
    #[error("the archive cannot be used: {0}")]
    Archive(String),
    /// The code does not fit.
    #[error("the code is too large: {0}")]
    TooLarge(String),
    /// The API did not answer.
    #[error("the code could not be fetched")]
    Api(#[from] kube::Error),
    /// The disk did not take it.
    #[error("the code could not be written")]
    Io(#[from] std::io::Error),
}

impl SourceError {
    /// Whether the function's owner must change something; otherwise trying again may help.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        !matches!(self, Self::Api(_) | Self::Io(_))
    }
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Relative, with `/`.
    pub path: String,
    /// What is in it.
    pub content: Bytes,
}

/// Code that was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Single files.
    Files(Vec<File>),
    /// A gzipped tar whose digest was checked.
    Archive(Bytes),
    /// An image: there are no files.
    Image(String),
}

impl Source {
    /// SHA-256 of the code and of what else makes a revision, in hexadecimal.
    #[must_use]
    pub fn digest(&self, code: &Code) -> String {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(&serde_json::to_vec(code).unwrap_or_default());
        match self {
            Self::Files(files) => {
                for file in files {
                    part(file.path.as_bytes());
                    part(&file.content);
                }
            }
            Self::Archive(data) => part(data),
            Self::Image(_) => {}
        }
        hex(&hash.finalize())
    }

    /// Content of the file at `path`, if there is one and it is below 1 MiB.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<Bytes> {
        match self {
            Self::Files(files) => files.iter().find(|f| f.path == path).map(|f| f.content.clone()),
            Self::Archive(data) => {
                let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(data.as_ref()).take(MAX_BYTES));
                for entry in archive.entries().ok()?.take(MAX_ENTRIES) {
                    let entry = entry.ok()?;
                    if entry.path().ok().and_then(|p| clean(&p)).is_some_and(|p| p == Path::new(path)) {
                        let mut content = Vec::new();
                        entry.take(1 << 20).read_to_end(&mut content).ok()?;
                        return Some(content.into());
                    }
                }
                None
            }
            Self::Image(_) => None,
        }
    }

    /// The files as a gzipped tar. Blocks.
    ///
    /// # Errors
    /// When a path is longer than a tar takes.
    pub fn pack(&self) -> std::io::Result<Bytes> {
        let files = match self {
            Self::Archive(data) => return Ok(data.clone()),
            Self::Files(files) => files.as_slice(),
            Self::Image(_) => &[],
        };
        let mut out = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for file in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(file.content.len() as u64);
            header.set_mode(0o755);
            out.append_data(&mut header, &file.path, file.content.as_ref())?;
        }
        Ok(out.into_inner()?.finish()?.into())
    }

    /// Writes the files into `directory`, which must be there and empty. Blocks.
    ///
    /// # Errors
    /// When the archive has something it must not have, or the disk refuses.
    pub fn write(&self, directory: &Path) -> Result<(), SourceError> {
        match self {
            Self::Files(files) => {
                for file in files {
                    let path = clean(Path::new(&file.path)).ok_or_else(|| outside(&file.path))?;
                    let path = directory.join(path);
                    if let Some(parent) = path.parent() {
                        std::fs::create_dir_all(parent)?;
                    }
                    put(&path, &mut file.content.as_ref(), 0o755)?;
                }
                Ok(())
            }
            Self::Archive(data) => unpack(data, directory),
            Self::Image(_) => Ok(()),
        }
    }
}

/// Fetches the code of a function or revision of `namespace`.
///
/// # Errors
/// When something is missing, is not what it should be, or the API does not answer.
pub async fn fetch(client: &Client, namespace: &str, code: &Code) -> Result<Source, SourceError> {
    let source = &code.source;
    let maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    if let Some(text) = &source.inline {
        let path = Language::of(code)?.file(text);
        return Ok(Source::Files(vec![File { path: path.to_owned(), content: Bytes::from(text.clone()) }]));
    }
    if let Some(named) = &source.config_map {
        let map = maps.get_opt(&named.name).await?;
        return Ok(Source::Files(files_of(map.ok_or_else(|| missing(&named.name))?)));
    }
    if let Some(archive) = &source.archive {
        let mut data = Vec::new();
        for part in 0..archive.parts {
            let name = format!("{}-{part}", archive.name);
            let map = maps.get_opt(&name).await?.ok_or_else(|| missing(&name))?;
            let bytes = map.binary_data.and_then(|mut d| d.remove("data"));
            data.extend(
                bytes.ok_or_else(|| SourceError::Missing(format!("ConfigMap {name} has no binaryData[\"data\"]")))?.0,
            );
        }
        verify(archive, &data)?;
        return Ok(Source::Archive(data.into()));
    }
    Ok(Source::Image(source.image.clone().unwrap_or_default()))
}

/// Fetches the code of a revision: as it was when the revision was made, if that was kept, otherwise as it is.
///
/// # Errors
/// As of [`fetch`].
pub async fn fetch_revision(client: &Client, revision: &FunctionRevision) -> Result<Source, SourceError> {
    let namespace = revision.metadata.namespace.as_deref().unwrap_or("default");
    if revision.spec.code.source.config_map.is_some() {
        let maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
        if let Some(mut map) = maps.get_opt(&super::pod::map_name(revision)).await? {
            map.binary_data.get_or_insert_default().remove(super::pod::RUNNER_KEY);
            return Ok(Source::Files(files_of(map)));
        }
    }
    fetch(client, namespace, &revision.spec.code).await
}

fn missing(name: &str) -> SourceError {
    SourceError::Missing(format!("there is no ConfigMap {name}"))
}

fn files_of(map: ConfigMap) -> Vec<File> {
    let text = map.data.unwrap_or_default().into_iter().map(|(path, text)| (path, Bytes::from(text)));
    let binary = map.binary_data.unwrap_or_default().into_iter().map(|(path, bytes)| (path, Bytes::from(bytes.0)));
    let all: BTreeMap<String, Bytes> = text.chain(binary).collect();
    all.into_iter().map(|(path, content)| File { path, content }).collect()
}

fn verify(archive: &Archive, data: &[u8]) -> Result<(), SourceError> {
    let found = hex(&Sha256::digest(data));
    if found == archive.sha256 { Ok(()) } else { Err(SourceError::Digest { wanted: archive.sha256.clone(), found }) }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The relative path without `.` parts; none if it would leave its directory or is nothing.
fn clean(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!clean.as_os_str().is_empty()).then_some(clean)
}

/// Whether a link at `at` to `target` stays inside, going by names alone.
fn stays_inside(at: &Path, target: &Path) -> bool {
    let mut depth = at.components().count().saturating_sub(1);
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            _ => return false,
        }
    }
    true
}

fn outside(path: impl std::fmt::Display) -> SourceError {
    SourceError::Archive(format!("{path} is outside of its directory"))
}

fn put(path: &Path, content: &mut dyn Read, mode: u32) -> std::io::Result<u64> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    let size = std::io::copy(content, &mut file)?;
    file.flush()?;
    Ok(size)
}

fn unpack(data: &[u8], directory: &Path) -> Result<(), SourceError> {
    let broken = |error: std::io::Error| SourceError::Archive(error.to_string());
    // One byte more than allowed, so that too much is seen and not silently cut.
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(data).take(MAX_BYTES + 1));
    let mut size = 0;
    for (number, entry) in archive.entries().map_err(broken)?.enumerate() {
        let mut entry = entry.map_err(broken)?;
        if number >= MAX_ENTRIES {
            return Err(SourceError::TooLarge(format!("more than {MAX_ENTRIES} files")));
        }
        size += entry.size();
        if size > MAX_BYTES {
            return Err(SourceError::TooLarge(format!("more than {MAX_BYTES} bytes unpacked")));
        }
        let name = entry.path().map_err(broken)?.into_owned();
        let kind = entry.header().entry_type();
        let Some(path) = clean(&name) else {
            if kind.is_dir() && name.components().all(|c| c == Component::CurDir) {
                continue; // the directory itself, as `tar -C DIR .` writes it
            }
            return Err(outside(name.display()));
        };
        let whole = directory.join(&path);
        for parent in path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()) {
            if std::fs::symlink_metadata(directory.join(parent)).is_ok_and(|m| m.is_symlink()) {
                return Err(SourceError::Archive(format!("{} is below a link", name.display())));
            }
        }
        if let Some(parent) = whole.parent() {
            std::fs::create_dir_all(parent)?;
        }
        if kind.is_dir() {
            std::fs::create_dir_all(&whole)?;
        } else if kind.is_file() {
            // Everybody may read it: the code runs as a user of its own. Whether it may be run is the archive's.
            let mode = 0o644 | (entry.header().mode().map_err(broken)? & 0o111);
            put(&whole, &mut entry, mode)?;
        } else if kind.is_symlink() {
            let target = entry.link_name().map_err(broken)?.unwrap_or_default().into_owned();
            if !stays_inside(&path, &target) {
                return Err(outside(format!("{} -> {}", name.display(), target.display())));
            }
            std::os::unix::fs::symlink(&target, &whole)?;
        } else if kind.is_pax_global_extensions() {
            // What git writes first: it says nothing of files.
        } else {
            return Err(SourceError::Archive(format!(
                "{} is neither file, directory nor symbolic link",
                name.display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn packed(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            // Written by hand: the library refuses the very paths that are shown here.
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            if kind.is_file() {
                header.set_size(content.len() as u64);
            } else {
                header.set_size(0);
                header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
            }
            header.set_cksum();
            builder.append(&header, if kind.is_file() { content.as_bytes() } else { b"" }).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn archives_stay_in_their_directory() {
        use tar::EntryType as E;
        // (what is in it, what is wrong with it)
        #[allow(clippy::type_complexity)]
        let cases: &[(&[(&str, E, &str)], Option<&str>)] = &[
            (&[("./", E::Directory, ""), ("./a/b.py", E::Regular, "x")], None),
            (&[("a", E::Regular, "x"), ("d/l", E::Symlink, "../a")], None),
            (&[("/etc/x", E::Regular, "x")], Some("outside")),
            (&[("../x", E::Regular, "x")], Some("outside")),
            (&[("a/../../x", E::Regular, "x")], Some("outside")),
            (&[("l", E::Symlink, "/etc")], Some("outside")),
            (&[("d/l", E::Symlink, "../../x")], Some("outside")),
            (&[("l", E::Symlink, "."), ("l/x", E::Regular, "x")], Some("below a link")),
            (&[("h", E::Link, "a")], Some("neither")),
            (&[("dev", E::Char, "")], Some("neither")),
        ];
        for (entries, wrong) in cases {
            let dir = tempfile::tempdir().unwrap();
            let inner = dir.path().join("code");
            std::fs::create_dir(&inner).unwrap();
            let result = Source::Archive(packed(entries).into()).write(&inner);
            match wrong {
                None => result.unwrap(),
                Some(text) => assert!(result.unwrap_err().to_string().contains(text), "{entries:?}"),
            }
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{entries:?} wrote outside");
        }
    }

    #[test]
    fn files_are_the_same_when_packed() {
        let deep = format!("{}/main.py", "d".repeat(150));
        let file = |path: &str, content: &'static str| File { path: path.to_owned(), content: content.into() };
        let files = Source::Files(vec![file("a.py", "x = 1"), file(&deep, "y")]);
        let packed = Source::Archive(files.pack().unwrap());
        let dir = tempfile::tempdir().unwrap();
        packed.write(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("a.py")).unwrap(), "x = 1");
        assert_eq!(std::fs::read_to_string(dir.path().join(deep)).unwrap(), "y");
        assert_eq!(packed.pack().unwrap(), files.pack().unwrap());
    }

    #[test]
    fn an_archive_is_checked_before_it_is_used() {
        let data = packed(&[("main.py", tar::EntryType::Regular, "x = 1")]);
        let mut archive = Archive { name: "a".to_owned(), parts: 1, sha256: hex(&Sha256::digest(&data)) };
        verify(&archive, &data).unwrap();
        assert_eq!(Source::Archive(data.clone().into()).file("main.py").unwrap(), "x = 1");
        archive.sha256.replace_range(..1, "g");
        assert!(matches!(verify(&archive, &data), Err(SourceError::Digest { .. })));
    }

    #[test]
    fn the_digest_tells_codes_apart() {
        let code = Code::default();
        let file = |path: &str, content: &'static str| File { path: path.to_owned(), content: content.into() };
        let all = [
            Source::Files(vec![file("a", "bc")]).digest(&code),
            Source::Files(vec![file("ab", "c")]).digest(&code),
            Source::Files(vec![file("a", "b"), file("c", "")]).digest(&code),
            Source::Files(vec![file("a", "bc")]).digest(&Code { handler: Some("x".to_owned()), ..Code::default() }),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
