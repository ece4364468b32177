//! Files that change together.
//!
//! A volume's files live in a hidden directory with a fresh name; `..data` points at it, and the visible names are
//! links through `..data`. An update writes a new directory and renames one link, so a reader sees all old or all new
//! files, never a mix. This layout is what programs that watch mounted configuration expect.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// One file to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Content.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner, when not the agent's.
    pub uid: Option<u32>,
    /// Group, when not the agent's.
    pub gid: Option<u32>,
}

/// Files by their path relative to the volume.
pub type Payload = BTreeMap<String, File>;

/// Makes the directory show exactly `payload`. Does nothing when it does already. Answers whether it changed.
pub fn write(root: &Path, payload: &Payload) -> io::Result<bool> {
    for path in payload.keys() {
        check(path)?;
    }
    let current = std::fs::read_link(root.join(DATA)).ok();
    if let Some(current) = &current
        && same(&root.join(current), payload)
    {
        return Ok(false);
    }
    let fresh = tempname(root)?;
    let directory = root.join(&fresh);
    for (path, file) in payload {
        let target = directory.join(path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&target, &file.data)?;
        if file.uid.is_some() || file.gid.is_some() {
            std::os::unix::fs::chown(&target, file.uid, file.gid)?;
        }
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(file.mode))?;
    }
    let _ = std::fs::remove_file(root.join(DATA_NEW));
    symlink(&fresh, root.join(DATA_NEW))?;
    std::fs::rename(root.join(DATA_NEW), root.join(DATA))?;

    let visible: BTreeSet<&str> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for name in &visible {
        let link = root.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !visible.contains(name.as_ref()) && entry.file_type()?.is_symlink() {
            std::fs::remove_file(entry.path())?;
        }
    }
    if let Some(old) = current {
        match std::fs::remove_dir_all(root.join(old)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(true)
}

/// Refuses paths that leave the volume or hide behind the writer's own names.
fn check(path: &str) -> io::Result<()> {
    let bad = path.is_empty()
        || path.starts_with("..")
        || Path::new(path).components().any(|c| !matches!(c, Component::Normal(_)));
    if bad { Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path: {path}"))) } else { Ok(()) }
}

fn same(directory: &Path, payload: &Payload) -> bool {
    let mut found = 0;
    let mut pending = vec![directory.to_path_buf()];
    while let Some(next) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&next) else { return false };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                pending.push(entry.path());
            } else {
                found += 1;
            }
        }
    }
    found == payload.len()
        && payload.iter().all(|(path, file)| {
            let path = directory.join(path);
            let mode = std::fs::metadata(&path).map(|m| m.permissions().mode() & 0o7777).ok();
            mode == Some(file.mode) && std::fs::read(&path).is_ok_and(|data| data == file.data)
        })
}

fn tempname(root: &Path) -> io::Result<String> {
    loop {
        let stamp = jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S").to_string();
        let name = format!("..{stamp}.{}", rand::random::<u32>());
        match std::fs::create_dir(root.join(&name)) {
            Ok(()) => {
                std::fs::set_permissions(root.join(&name), std::fs::Permissions::from_mode(0o755))?;
                return Ok(name);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(data: &str) -> File {
        File { data: data.into(), mode: 0o644, uid: None, gid: None }
    }

    proptest! {
        /// After any sequence of updates the volume shows the last payload and nothing else.
        #[test]
        fn shows_the_last_payload(updates in prop::collection::vec(
            prop::collection::btree_map("[a-c](/[a-c]x)?", "[a-z]{0,4}", 0..4), 1..6)
        ) {
            let dir = tempfile::tempdir().unwrap();
            for update in updates {
                // A name cannot be a file and a directory at once.
                let payload: Payload = update.iter()
                    .filter(|(p, _)| p.contains('/') || !update.keys().any(|o| o.starts_with(&format!("{p}/"))))
                    .map(|(p, d)| (p.clone(), file(d))).collect();
                write(dir.path(), &payload).unwrap();
                for (path, file) in &payload {
                    prop_assert_eq!(&std::fs::read(dir.path().join(path)).unwrap(), &file.data);
                }
                let names: BTreeSet<_> = payload.keys().map(|p| p.split('/').next().unwrap().to_string()).collect();
                let seen: BTreeSet<_> = std::fs::read_dir(dir.path()).unwrap()
                    .map(|e| e.unwrap().file_name().into_string().unwrap()).filter(|n| !n.starts_with("..")).collect();
                prop_assert_eq!(seen, names);
                prop_assert!(!write(dir.path(), &payload).unwrap(), "the same payload changes nothing");
            }
        }
    }

    #[test]
    fn paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "a/../b", "..data/x", ""] {
            assert!(write(dir.path(), &Payload::from([(path.to_string(), file("x"))])).is_err(), "{path}");
        }
    }
}
