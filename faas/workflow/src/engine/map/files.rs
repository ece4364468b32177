//! Files on volumes that are directories of this machine: what the built-in provisioner makes, `hostPath` and `local`.
//!
//! Pods write there what they like, links too, and this program may read everything. So every path is resolved by the kernel
//! beneath the volume's directory, and no link is followed, neither to read nor to write. Limits: volumes of this node only;
//! files of [`FILE_MAX`] bytes.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::PostParams;
use kube::{Api, Client};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};
use serde_json::{Value, json};

/// Bytes of a file that is read.
pub(super) const FILE_MAX: u64 = 64 << 20;
/// Files of a directory that are told.
const FILES_MAX: usize = 100_000;

/// A volume that is a directory here.
pub(super) struct Volume {
    root: PathBuf,
}

/// The volume of a claim, for an account that may do `verb` with the claim.
///
/// # Errors
/// Why it is not to be had, for people.
pub(super) async fn volume(
    engine: &Client,
    account: &Client,
    namespace: &str,
    claim: &str,
    verb: &str,
) -> Result<Volume, String> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                namespace: Some(namespace.to_owned()),
                verb: Some(verb.to_owned()),
                resource: Some("persistentvolumeclaims".to_owned()),
                name: Some(claim.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let asked = Api::<SelfSubjectAccessReview>::all(account.clone()).create(&PostParams::default(), &review).await;
    if !asked.map_err(|e| e.to_string())?.status.is_some_and(|s| s.allowed) {
        return Err(format!("the workflow's ServiceAccount may not {verb} the claim {claim}"));
    }
    let claims = Api::<PersistentVolumeClaim>::namespaced(engine.clone(), namespace);
    let found = claims.get(claim).await.map_err(|e| e.to_string())?;
    let name = found.spec.and_then(|s| s.volume_name).ok_or_else(|| format!("the claim {claim} has no volume yet"))?;
    let volume = Api::<PersistentVolume>::all(engine.clone()).get(&name).await.map_err(|e| e.to_string())?;
    let spec = volume.spec.unwrap_or_default();
    let local = spec.local.map(|l| l.path).or(spec.host_path.map(|h| h.path));
    let root = local.ok_or_else(|| format!("the volume of {claim} is no directory of a node"))?;
    Ok(Volume { root: PathBuf::from(root) })
}

/// A path without `..`, relative.
fn plain(path: &str) -> Result<PathBuf, String> {
    let mut plain = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(part) => plain.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(format!("{path} leads out of the volume")),
        }
    }
    Ok(plain)
}

impl Volume {
    fn top(&self) -> Result<OwnedFd, String> {
        let absent = |e| format!("the volume's directory is not on this node: {e}");
        File::open(&self.root).map(OwnedFd::from).map_err(absent)
    }

    fn open(&self, path: &Path, flags: OFlag, mode: Mode) -> Result<OwnedFd, String> {
        let here = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(mode)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        openat2(self.top()?, here, how).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// What a path names: a file's text, or a directory's files.
    ///
    /// # Errors
    /// When it cannot be read, is too long or no text.
    pub(super) fn read(&self, path: &str) -> Result<Content, String> {
        let path = plain(path)?;
        // What is no file (a pipe) must not be waited for.
        let file = File::from(self.open(&path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty())?);
        let meta = file.metadata().map_err(|e| format!("{}: {e}", path.display()))?;
        if meta.is_dir() {
            let mut files = vec![];
            self.list(&path, &mut files)?;
            files.sort_by(|a, b| a["Key"].as_str().cmp(&b["Key"].as_str()));
            return Ok(Content::Directory(files));
        }
        if !meta.is_file() {
            return Err(format!("{} is no file", path.display()));
        }
        let mut text = String::new();
        file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(|e| format!("{}: {e}", path.display()))?;
        if text.len() as u64 > FILE_MAX {
            return Err(format!("{} is longer than {FILE_MAX} bytes", path.display()));
        }
        Ok(Content::File(text))
    }

    fn list(&self, path: &Path, files: &mut Vec<Value>) -> Result<(), String> {
        let told = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let directory = self.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        let mut directory = nix::dir::Dir::from_fd(directory).map_err(|e| told(&e))?;
        let mut below = vec![];
        for entry in directory.iter() {
            let entry = entry.map_err(|e| told(&e))?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") {
                continue;
            }
            let file = path.join(name);
            match entry.file_type() {
                Some(nix::dir::Type::Directory) => below.push(file),
                Some(nix::dir::Type::File) => {
                    let meta = File::from(self.open(&file, OFlag::O_PATH, Mode::empty())?).metadata();
                    let meta = meta.map_err(|e| told(&e))?;
                    let modified = meta.modified().ok().and_then(|t| k8s_openapi::jiff::Timestamp::try_from(t).ok());
                    files.push(json!({"Key": file.to_string_lossy(), "Size": meta.len(),
                        "LastModified": modified.map(|t| format!("{t:.0}"))}));
                }
                _ => {}
            }
            if files.len() > FILES_MAX {
                return Err(format!("there are more than {FILES_MAX} files"));
            }
        }
        below.iter().try_for_each(|path| self.list(path, files))
    }

    /// Writes a file, with the directories it is in. One that is there is replaced.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, path: &str, text: &str) -> Result<(), String> {
        let path = plain(path)?;
        let mut directory = PathBuf::new();
        for part in path.parent().into_iter().flat_map(Path::components) {
            let above = self.open(&directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
            match mkdirat(&above, part.as_os_str(), Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                Err(e) => return Err(format!("{}: {e}", path.display())),
            }
            directory.push(part);
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NONBLOCK;
        let mut file = File::from(self.open(&path, flags, Mode::from_bits_truncate(0o644))?);
        let wrote = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        wrote.map_err(|e| format!("{}: {e}", path.display()))
    }
}

/// What a path names.
#[derive(Debug, PartialEq)]
pub(super) enum Content {
    /// A file's text.
    File(String),
    /// A directory's files: `Key`, `Size`, `LastModified`.
    Directory(Vec<Value>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_out_of_a_volume() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        let root = dir.path().join("volume");
        std::fs::create_dir_all(root.join("in")).unwrap();
        std::os::unix::fs::symlink("../secret", root.join("link")).unwrap();
        std::os::unix::fs::symlink("in", root.join("inside")).unwrap();
        let volume = Volume { root };
        volume.write("in/a/x.json", "[1]").unwrap();
        volume.write("/in/b.json", "[2]").unwrap();
        volume.write("in/b.json", "[3]").unwrap();
        assert_eq!(volume.read("in/a/x.json"), Ok(Content::File("[1]".into())));
        let Ok(Content::Directory(files)) = volume.read("in") else { panic!() };
        let keys: Vec<&str> = files.iter().filter_map(|f| f["Key"].as_str()).collect();
        assert_eq!(keys, ["in/a/x.json", "in/b.json"]);
        for path in ["../secret", "link", "inside/b.json", "in/../../secret", "none"] {
            assert!(volume.read(path).is_err(), "{path}");
        }
        for path in ["../x", "link", "inside/x", "link/x"] {
            assert!(volume.write(path, "x").is_err(), "{path}");
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("secret")).unwrap(), "s");
    }
}
