//! One file or directory of a volume mounted alone, without following a link out of it.
//!
//! The path is resolved, must still lie in the volume, and is then opened again component by component without
//! following links; the mount takes the opened file. So a container that swaps a directory for a link between check
//! and use gains nothing.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

/// Mounts `volume`/`sub` at `target`, making a missing directory. Idempotent for one target.
pub fn bind(volume: &Path, sub: &str, target: &Path) -> io::Result<()> {
    if Path::new(sub).components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "subPath must stay in the volume"));
    }
    if super::is_mounted(target)? {
        return Ok(());
    }
    let root = volume.canonicalize()?;
    let source = open_inside(&root, sub)?;
    let is_directory = std::fs::metadata(format!("/proc/self/fd/{}", source.as_raw_fd()))?.is_dir();
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if is_directory {
        std::fs::create_dir_all(target)?;
    } else if !target.exists() {
        std::fs::File::create(target)?;
    }
    let from = format!("/proc/self/fd/{}", source.as_raw_fd());
    mount(Some(from.as_str()), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// Opens a path below `root`, making missing directories, and never leaves `root`.
fn open_inside(root: &Path, sub: &str) -> io::Result<OwnedFd> {
    make_missing(root, sub)?;
    let resolved = root.join(sub).canonicalize()?;
    let relative = resolved
        .strip_prefix(root)
        .map_err(|_| io::Error::new(io::ErrorKind::PermissionDenied, "subPath leads out of the volume"))?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut current: OwnedFd = nix::fcntl::open(root, flags | OFlag::O_DIRECTORY, Mode::empty())?;
    for component in relative.components() {
        let next = openat(&current, component.as_os_str(), flags, Mode::empty())?;
        let link = std::fs::read_link(format!("/proc/self/fd/{}", next.as_raw_fd()))?;
        if std::fs::symlink_metadata(&link).is_ok_and(|m| m.file_type().is_symlink()) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "subPath changed while it was opened"));
        }
        current = next;
    }
    Ok(current)
}

/// Makes the directories of `sub` that are missing. Stops where something exists that is no directory.
fn make_missing(root: &Path, sub: &str) -> io::Result<()> {
    let mut existing = root.to_path_buf();
    let mut missing = PathBuf::new();
    for component in Path::new(sub).components() {
        if missing.as_os_str().is_empty() && existing.join(component).symlink_metadata().is_ok() {
            existing.push(component);
        } else {
            missing.push(component);
        }
    }
    if missing.as_os_str().is_empty() {
        return Ok(());
    }
    let resolved = existing.canonicalize()?;
    if !resolved.starts_with(root) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "subPath leads out of the volume"));
    }
    let mut path = resolved;
    for component in missing.components() {
        path.push(component);
        std::fs::create_dir(&path)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_out_of_the_volume_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("v").to_path_buf();
        std::fs::create_dir_all(root.join("d")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::write(root.join("d/f"), "x").unwrap();
        std::os::unix::fs::symlink("../outside", root.join("evil")).unwrap();
        std::os::unix::fs::symlink("d/f", root.join("good")).unwrap();
        let root = root.canonicalize().unwrap();
        for (sub, allowed) in [("d/f", true), ("good", true), ("new/deep", true), ("evil", false), ("evil/new", false)]
        {
            assert_eq!(open_inside(&root, sub).is_ok(), allowed, "{sub}");
        }
        assert!(root.join("new/deep").is_dir());
        assert!(!dir.path().join("outside/new").exists());
    }
}
