//! The kernel's mount table, and taking mounts away.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

/// Whether something is mounted exactly at `path`.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    let path = path.canonicalize().unwrap_or_else(|_| path.into());
    Ok(mounts_below(&path)?.contains(&path))
}

/// Unmounts everything at and below a directory.
pub async fn unmount_below(root: &Path) -> io::Result<()> {
    let root = root.to_path_buf();
    tokio::task::spawn_blocking(move || {
        let Ok(root) = root.canonicalize() else { return Ok(()) };
        let mut mounts = mounts_below(&root)?;
        // The deepest first.
        mounts.sort_by_key(|m| std::cmp::Reverse(m.as_os_str().len()));
        for mounted in mounts {
            match umount2(&mounted, MntFlags::MNT_DETACH) {
                Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    })
    .await
    .map_err(io::Error::other)?
}

/// How often a tree is tried again when parts of it vanish while it is removed.
const REMOVALS: usize = 3;

/// Removes a tree that must have no mounts in it: a mount left behind would lose its content otherwise.
pub(super) async fn remove_tree(path: &Path) -> io::Result<()> {
    let path = path.to_path_buf();
    tokio::task::spawn_blocking(move || {
        let Ok(real) = path.canonicalize() else { return Ok(()) };
        if !mounts_below(&real)?.is_empty() {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "something is still mounted"));
        }
        let mut removed = std::fs::remove_dir_all(&real);
        // What somebody else removes meanwhile is as good as removed; the rest is still to go.
        for _ in 0..REMOVALS {
            match &removed {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                _ => break,
            }
            removed = if real.exists() { std::fs::remove_dir_all(&real) } else { Ok(()) };
        }
        removed
    })
    .await
    .map_err(io::Error::other)?
}

pub(super) fn mounts_below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    Ok(points.filter(|p| p.starts_with(root)).collect())
}

/// Undoes the kernel's octal escapes in mount points.
pub(super) fn unescape(text: &str) -> PathBuf {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        match rest.get(at + 1..at + 4).and_then(|o| u8::from_str_radix(o, 8).ok()) {
            Some(byte) => {
                out.push(byte as char);
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape("/a\\040b\\134c"), PathBuf::from("/a b\\c"));
    }
}
