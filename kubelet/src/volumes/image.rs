//! Images as volumes: the files of an image, read-only and not to be run.
//!
//! The engine writes the image as an archive; its layers are laid on each other in a directory that is named by the image
//! and shared by all pods of the node. Each pod has a mount of its own of it, so the kernel's mount table says which
//! images are in use: an image's directory goes with the last pod that shows it.
//!
//! Limits: the files are a copy of what the engine has. Devices and extended attributes are not in it.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Pod, Volume};
use nix::mount::{MsFlags, mount};
use serde::Deserialize;

use super::{Volumes, blocking, is_mounted, make_dir};
use crate::runtime::{Image, Runtime};

/// What a layer calls the absence of a file of the layers below, and of all files of a directory.
const WITHOUT: &str = ".wh.";
const EMPTIED: &str = ".wh..wh..opq";

/// The images that are unpacked on this node.
pub(super) struct Images {
    root: PathBuf,
    /// Images that are being unpacked or mounted, by directory: not to be removed.
    busy: Arc<Mutex<HashMap<String, usize>>>,
}

/// Keeps an image's directory while it lives.
struct Kept(Arc<Mutex<HashMap<String, usize>>>, String);

impl Drop for Kept {
    fn drop(&mut self) {
        let mut busy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = busy.get_mut(&self.1) {
            *count -= 1;
        }
        busy.retain(|_, count| *count > 0);
    }
}

impl Images {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, busy: Arc::default() }
    }

    /// Mounts an image at a directory. Idempotent; what is mounted there already stays, whichever image it is.
    async fn mount(&self, runtime: &dyn Runtime, image: &Image, at: PathBuf) -> Result<(), String> {
        let name = image.id.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner).entry(name.clone()).or_default() += 1;
        let _kept = Kept(Arc::clone(&self.busy), name.clone());
        let files = self.root.join(&name);
        if !files.is_dir() {
            // Two pods may do this at once; the second finds the directory there.
            let work = self.root.join(format!("..{name}.{}", rand::random::<u32>()));
            let result = unpack(runtime, image, work.clone(), files.clone()).await;
            let gone = blocking(move || remove(&work)).await;
            result.and(gone)?;
        }
        blocking(move || {
            make_dir(&at, 0o755)?;
            if is_mounted(&at).map_err(|e| e.to_string())? {
                return Ok(());
            }
            let none = None::<&str>;
            let closed = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC;
            mount(Some(&files), &at, none, MsFlags::MS_BIND, none)
                .and_then(|()| mount(none, &at, none, closed | MsFlags::MS_NOSUID | MsFlags::MS_NODEV, none))
                .map_err(|e| format!("{}: {e}", at.display()))
        })
        .await
    }

    /// Removes the images that no pod shows any more.
    pub(super) async fn sweep(&self) -> Result<(), String> {
        let (root, busy) = (self.root.clone(), Arc::clone(&self.busy));
        blocking(move || {
            let Ok(entries) = std::fs::read_dir(&root) else { return Ok(()) };
            let names: BTreeSet<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
            let mut unused = Vec::new();
            {
                let busy = busy.lock().unwrap_or_else(PoisonError::into_inner);
                let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
                for name in names.iter().filter(|n| !n.starts_with("..") && !busy.contains_key(*n)) {
                    if !shown(&table, &root, name) {
                        // From here on it is no image any more, and who needs it unpacks it again.
                        let away = root.join(format!("..gone.{name}.{}", rand::random::<u32>()));
                        std::fs::rename(root.join(name), &away).map_err(|e| e.to_string())?;
                        unused.push(away);
                    }
                }
                // What was left half done when an agent ended.
                if busy.is_empty() {
                    unused.extend(names.iter().filter(|n| n.starts_with("..")).map(|n| root.join(n)));
                }
            }
            unused.iter().try_for_each(|path| remove(path))
        })
        .await
    }
}

/// Whether the mount table has a mount of the directory or of something in it.
fn shown(table: &str, root: &Path, name: &str) -> bool {
    // A mount's root is a path in its file system, of which only the end is known here.
    let tail = root.file_name().map(|r| format!("/{}/{name}", r.to_string_lossy())).unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(3))
        .any(|r| r.ends_with(&tail) || r.contains(&format!("{tail}/")))
}

async fn unpack(runtime: &dyn Runtime, image: &Image, work: PathBuf, files: PathBuf) -> Result<(), String> {
    let (made, archive) = (work.clone(), work.join("archive.tar"));
    blocking(move || make_dir(&made, 0o700)).await?;
    runtime.save(&image.id, &archive).await.map_err(|e| e.to_string())?;
    blocking(move || {
        let (parts, tree) = (work.join("parts"), work.join("files"));
        let failed = |e: io::Error| format!("cannot unpack the image: {e}");
        std::fs::create_dir_all(&tree).map_err(failed)?;
        let mut whole = tar::Archive::new(BufReader::new(File::open(&archive).map_err(failed)?));
        whole.unpack(&parts).map_err(failed)?;
        std::fs::remove_file(&archive).map_err(failed)?;
        for layer in layers(&parts).map_err(failed)? {
            lay(&layer, &tree).map_err(failed)?;
        }
        match std::fs::rename(&tree, &files) {
            Err(_) if files.is_dir() => Ok(()),
            other => other.map_err(failed),
        }
    })
    .await
}

/// The files of the layers of an unpacked archive, the lowest first.
fn layers(parts: &Path) -> io::Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Manifest {
        layers: Vec<String>,
    }
    let text = std::fs::read(parts.join("manifest.json"))?;
    let manifests: Vec<Manifest> = serde_json::from_slice(&text)?;
    let names = manifests.into_iter().next().map(|m| m.layers).unwrap_or_default();
    names
        .iter()
        .map(|name| {
            inside(parts, Path::new(name))?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, name.clone()))
        })
        .collect()
}

/// Lays a layer on what is there.
fn lay(layer: &Path, tree: &Path) -> io::Result<()> {
    let mut file = File::open(layer)?;
    let mut magic = [0; 2];
    let packed = file.read(&mut magic)? == 2 && magic == [0x1f, 0x8b];
    file.seek(SeekFrom::Start(0))?;
    let plain: Box<dyn Read> = match packed {
        true => Box::new(flate2::read::GzDecoder::new(file)),
        false => Box::new(file),
    };
    let mut archive = tar::Archive::new(BufReader::new(plain));
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(nix::unistd::geteuid().is_root());
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let Some(name) = path.file_name().and_then(OsStr::to_str).map(str::to_owned) else {
            entry.unpack_in(tree)?;
            continue;
        };
        if name == EMPTIED {
            let Some(dir) = path.parent().map(|p| inside(tree, p)).transpose()?.flatten() else { continue };
            // A link is not emptied: it may lead anywhere.
            if !dir.symlink_metadata()?.is_dir() {
                continue;
            }
            for below in std::fs::read_dir(dir)? {
                remove(&below?.path()).map_err(io::Error::other)?;
            }
            continue;
        }
        let (target, gone) = match name.strip_prefix(WITHOUT) {
            Some(gone) => (path.with_file_name(gone), true),
            None => (path, false),
        };
        if let Some(old) = inside(tree, &target)? {
            let both = old.symlink_metadata()?.is_dir() && entry.header().entry_type().is_dir();
            if gone || !both {
                remove(&old).map_err(io::Error::other)?;
            }
        }
        if !gone {
            entry.unpack_in(tree)?;
        }
    }
    Ok(())
}

/// What is at a path below a directory, without leaving it by a link; none when nothing is.
fn inside(root: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    let outside =
        || io::Error::new(io::ErrorKind::PermissionDenied, format!("{} leads out of the image", path.display()));
    if path.components().any(|c| matches!(c, Component::ParentDir | Component::RootDir | Component::Prefix(_))) {
        return Err(outside());
    }
    let full = root.join(path);
    let (Some(parent), Some(name)) = (full.parent(), full.file_name()) else { return Ok(None) };
    let parent = match parent.canonicalize() {
        Ok(parent) => parent,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let root = root.canonicalize()?;
    // The directory itself has its parent outside of it.
    if !parent.starts_with(&root) && full != root {
        return Err(outside());
    }
    let found = parent.join(name);
    Ok(found.symlink_metadata().is_ok().then_some(found))
}

/// Removes a file, link or tree; links in it are not followed.
fn remove(path: &Path) -> Result<(), String> {
    let result = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    result.map_err(|e| format!("{}: {e}", path.display()))
}

impl Volumes {
    /// Whether a volume that shows an image does already.
    pub async fn image_is_mounted(&self, pod: &Pod, volume: &Volume) -> bool {
        let at = self.own_dir(pod, volume);
        self.fake || blocking(move || is_mounted(&at).map_err(|e| e.to_string())).await.unwrap_or(false)
    }

    /// Shows an image that the engine has as a volume.
    ///
    /// # Errors
    /// Says why not.
    pub async fn mount_image(
        &self,
        runtime: &dyn Runtime,
        pod: &Pod,
        volume: &Volume,
        image: &Image,
    ) -> Result<(), String> {
        let done = self.images.mount(runtime, image, self.own_dir(pod, volume)).await;
        done.map_err(|cause| format!("failed to mount image volume {:?}: {cause}", volume.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer: paths with content; those that end with `/` are directories, `->` makes a link.
    fn layer(dir: &Path, name: &str, entries: &[(&str, &str)]) -> PathBuf {
        let path = dir.join(name);
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        for (name, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(0);
            if let Some(to) = content.strip_prefix("->") {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                builder.append_link(&mut header, name, to).unwrap();
                continue;
            }
            header.set_entry_type(if name.ends_with('/') {
                tar::EntryType::Directory
            } else {
                tar::EntryType::Regular
            });
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap();
        path
    }

    fn tree(root: &Path) -> Vec<String> {
        let (mut found, mut pending) = (vec![], vec![root.to_path_buf()]);
        while let Some(dir) = pending.pop() {
            for entry in std::fs::read_dir(dir).unwrap().flatten() {
                let name = entry.path().strip_prefix(root).unwrap().display().to_string();
                if entry.file_type().unwrap().is_dir() {
                    pending.push(entry.path());
                } else {
                    let content = std::fs::read_to_string(entry.path()).unwrap_or_default();
                    found.push(format!("{name}={content}"));
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn layers_hide_and_replace_what_is_below() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        std::fs::create_dir(&root).unwrap();
        let below =
            [("a/", ""), ("a/x", "1"), ("a/y", "1"), ("b/", ""), ("b/x", "1"), ("c", "1"), ("d/", ""), ("d/x", "1")];
        lay(&layer(dir.path(), "1", &below), &root).unwrap();
        let above = [("a/.wh.x", ""), ("b/.wh..wh..opq", ""), ("b/z", "2"), ("c", "2"), ("d", "2"), ("e/f", "2")];
        lay(&layer(dir.path(), "2", &above), &root).unwrap();
        assert_eq!(tree(&root), ["a/y=1", "b/z=2", "c=2", "d=2", "e/f=2"]);
    }

    #[test]
    fn links_do_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let (root, other) = (dir.path().join("tree"), dir.path().join("other"));
        std::fs::create_dir(&root).unwrap();
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("x"), "kept").unwrap();
        let link = format!("->{}", other.display());
        lay(&layer(dir.path(), "1", &[("l", link.as_str())]), &root).unwrap();
        for entries in [[("l/.wh.x", "")], [("l/.wh..wh..opq", "")], [("l/x", "bad")]] {
            let _ = lay(&layer(dir.path(), "2", &entries), &root);
            assert_eq!(std::fs::read_to_string(other.join("x")).unwrap(), "kept", "{entries:?}");
        }
    }

    #[test]
    fn which_images_are_shown() {
        let table = "9 1 8:1 /data/images/sha256-aa /pods/u/v ro - ext4 /dev/a rw\n10 1 8:1 /data/images/sha256-bb/sub /x ro - ext4 /dev/a rw\n";
        let root = Path::new("/mnt/data/images");
        let shown: Vec<bool> =
            ["sha256-aa", "sha256-bb", "sha256-a", "sha256-cc"].iter().map(|n| shown(table, root, n)).collect();
        assert_eq!(shown, [true, true, false, false]);
    }
}
