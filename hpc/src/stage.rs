//! Files that a job starts with, as one archive: read from objects, checked, packed.
//!
//! Only regular files and directories go in, at paths inside the job's directory; links and devices of an uploaded archive are
//! refused, so that unpacking writes nowhere else.

use std::collections::BTreeMap;
use std::io::Read as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use sha2::{Digest, Sha256};

use crate::api::{Archive, GpuJobSpec, KeyRef};
use crate::script::{OWN, inside, secret_env};
use crate::store::hex;

/// Bytes that a job's files may have, unpacked.
const BYTES: u64 = 512 << 20;
/// Files that a job may start with.
const FILES: usize = 20_000;

/// Why files cannot be staged.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The objects are not as the job says; they may come.
    #[error("{0}")]
    Missing(String),
    /// They will never do.
    #[error("{0}")]
    Invalid(String),
    /// The API did not answer.
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// A file to be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    bytes: Vec<u8>,
    mode: u32,
}

/// The files of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    files: BTreeMap<String, File>,
    directories: Vec<String>,
    bytes: u64,
    /// Whether there are variables in a file.
    pub secrets: bool,
}

impl Stage {
    /// Whether there is nothing to move.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.directories.is_empty()
    }

    fn put(&mut self, path: &str, bytes: Vec<u8>, mode: u32) -> Result<(), StageError> {
        if !inside(path) && !path.starts_with(&format!("{OWN}/")) {
            return Err(StageError::Invalid(format!("{path:?} does not lie in the job's directory")));
        }
        self.bytes += bytes.len() as u64;
        if self.bytes > BYTES || self.files.len() >= FILES {
            return Err(StageError::Invalid(format!(
                "a job starts with at most {FILES} files of {BYTES} bytes together"
            )));
        }
        self.files.insert(path.to_owned(), File { bytes, mode });
        Ok(())
    }

    /// Takes the files of an uploaded archive.
    ///
    /// # Errors
    /// When it is none, or has what may not be in it.
    pub fn unpack(&mut self, bytes: &[u8]) -> Result<(), StageError> {
        let bad = |e: &dyn std::fmt::Display| StageError::Invalid(format!("the archive cannot be used: {e}"));
        let mut tar = tar::Archive::new(GzDecoder::new(bytes).take(BYTES + (64 << 20)));
        for entry in tar.entries().map_err(|e| bad(&e))? {
            let mut entry = entry.map_err(|e| bad(&e))?;
            let path = String::from_utf8(entry.path_bytes().into_owned()).map_err(|_| bad(&"a name is not UTF-8"))?;
            let path = path.trim_start_matches("./").trim_end_matches('/').to_owned();
            if path.is_empty() || path == "." {
                continue;
            }
            if !inside(&path) {
                return Err(bad(&format!("{path:?} does not lie in the job's directory")));
            }
            match entry.header().entry_type() {
                tar::EntryType::Directory => self.directories.push(path),
                tar::EntryType::Regular => {
                    let mode = entry.header().mode().unwrap_or(0o644);
                    let mut content = vec![];
                    entry.by_ref().take(BYTES + 1).read_to_end(&mut content).map_err(|e| bad(&e))?;
                    self.put(&path, content, if mode & 0o111 == 0 { 0o644 } else { 0o755 })?;
                }
                tar::EntryType::XGlobalHeader => {}
                other => return Err(bad(&format!("{path:?} is neither file nor directory ({other:?})"))),
            }
        }
        Ok(())
    }

    /// One gzipped tar with all of it.
    ///
    /// # Errors
    /// Never but for want of memory.
    pub fn pack(&self) -> std::io::Result<Bytes> {
        let mut tar = tar::Builder::new(GzEncoder::new(vec![], Compression::fast()));
        let header = |kind, mode, size| {
            let mut h = tar::Header::new_gnu();
            h.set_entry_type(kind);
            h.set_mode(mode);
            h.set_size(size);
            h.set_mtime(1);
            h
        };
        let own = [OWN.to_owned()];
        for path in self.directories.iter().chain(&own) {
            let mut h = header(tar::EntryType::Directory, 0o755, 0);
            tar.append_data(&mut h, format!("{path}/"), std::io::empty())?;
        }
        for (path, file) in &self.files {
            let mut h = header(tar::EntryType::Regular, file.mode, file.bytes.len() as u64);
            tar.append_data(&mut h, path, file.bytes.as_slice())?;
        }
        Ok(tar.into_inner()?.finish()?.into())
    }
}

/// Whether a job has files to move.
#[must_use]
pub fn needed(spec: &GpuJobSpec) -> bool {
    spec.source.is_some() || !spec.inputs.is_empty() || spec.env.iter().any(|v| v.value_from.is_some())
}

/// Reads what a job starts with, beside and over what is in the stage already: a volume is read by [`crate::controller`].
///
/// # Errors
/// When objects are missing, or what is in them cannot be used.
pub async fn read(client: &Client, namespace: &str, spec: &GpuJobSpec, stage: &mut Stage) -> Result<(), StageError> {
    let objects = Objects {
        maps: Api::namespaced(client.clone(), namespace),
        secrets: Api::namespaced(client.clone(), namespace),
    };
    if let Some(source) = &spec.source {
        for (path, text) in source.inline.iter().flatten() {
            stage.put(path, text.clone().into_bytes(), 0o644)?;
        }
        if let Some(reference) = &source.config_map {
            for (path, bytes) in objects.map(&reference.name).await? {
                stage.put(&path, bytes, 0o644)?;
            }
        }
        if let Some(archive) = &source.archive {
            stage.unpack(&objects.archive(archive).await?)?;
        }
    }
    for input in &spec.inputs {
        let (bytes, mode) = match (&input.text, &input.config_map, &input.secret) {
            (Some(text), ..) => (text.clone().into_bytes(), 0o644),
            (None, Some(r), _) => (objects.map_key(r).await?, 0o644),
            (None, None, Some(r)) => (objects.secret_key(r).await?, 0o600),
            (None, None, None) => continue,
        };
        let executable = if input.executable { (mode & 0o444) >> 2 } else { 0 };
        stage.put(&input.path, bytes, mode | executable)?;
    }
    let mut values = vec![];
    for variable in &spec.env {
        let Some(from) = &variable.value_from else { continue };
        let bytes = match (&from.config_map_key_ref, &from.secret_key_ref) {
            (Some(r), _) => objects.map_key(r).await?,
            (None, Some(r)) => objects.secret_key(r).await?,
            (None, None) => continue,
        };
        let value = String::from_utf8(bytes).ok().filter(|v| !v.contains('\0'));
        let value = value.ok_or_else(|| StageError::Invalid(format!("the value of {} is no text", variable.name)))?;
        values.push((variable.name.as_str(), value));
    }
    if !values.is_empty() {
        let text = secret_env(values.iter().map(|(n, v)| (*n, v.as_str())));
        stage.put(&format!("{OWN}/env"), text.into_bytes(), 0o600)?;
        stage.secrets = true;
    }
    Ok(())
}

struct Objects {
    maps: Api<ConfigMap>,
    secrets: Api<Secret>,
}

impl Objects {
    async fn map(&self, name: &str) -> Result<BTreeMap<String, Vec<u8>>, StageError> {
        let map = self.maps.get_opt(name).await?;
        let map = map.ok_or_else(|| StageError::Missing(format!("there is no ConfigMap {name}")))?;
        let text = map.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
        Ok(text.chain(map.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0))).collect())
    }

    async fn map_key(&self, r: &KeyRef) -> Result<Vec<u8>, StageError> {
        let missing = || StageError::Missing(format!("the ConfigMap {} has no key {}", r.name, r.key));
        self.map(&r.name).await?.remove(&r.key).ok_or_else(missing)
    }

    async fn secret_key(&self, r: &KeyRef) -> Result<Vec<u8>, StageError> {
        let secret = self.secrets.get_opt(&r.name).await?;
        let secret = secret.ok_or_else(|| StageError::Missing(format!("there is no Secret {}", r.name)))?;
        let value = secret.data.unwrap_or_default().remove(&r.key);
        value.map(|v| v.0).ok_or_else(|| StageError::Missing(format!("the Secret {} has no key {}", r.name, r.key)))
    }

    async fn archive(&self, archive: &Archive) -> Result<Vec<u8>, StageError> {
        let mut all = vec![];
        for part in 0..archive.parts {
            let name = format!("{}-{part}", archive.name);
            let bytes = self.map(&name).await?.remove("data");
            all.extend(bytes.ok_or_else(|| StageError::Missing(format!("the ConfigMap {name} has no key data")))?);
        }
        let digest: String = hex(&Sha256::digest(&all));
        if digest != archive.sha256 {
            return Err(StageError::Invalid(format!("the archive {} is not the one that was uploaded", archive.name)));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(kind: tar::EntryType, path: &str) -> Vec<u8> {
        let mut tar = tar::Builder::new(GzEncoder::new(vec![], Compression::fast()));
        let mut h = tar::Header::new_gnu();
        // Not `set_path`: that refuses what a hostile archive has.
        h.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        h.set_entry_type(kind);
        h.set_mode(0o755);
        h.set_size(if kind.is_file() { 1 } else { 0 });
        h.set_cksum();
        tar.append(&h, &b"x"[..if kind.is_file() { 1 } else { 0 }]).unwrap();
        tar.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn archives_write_nowhere_else() {
        let mut stage = Stage::default();
        stage.unpack(&archive(tar::EntryType::Regular, "./a/b.cu")).unwrap();
        stage.unpack(&archive(tar::EntryType::Directory, "d/")).unwrap();
        assert_eq!(stage.files["a/b.cu"].mode, 0o755);
        let mut again = Stage::default();
        again.unpack(&stage.pack().unwrap()).unwrap_err();
        for (kind, path) in [
            (tar::EntryType::Regular, "../x"),
            (tar::EntryType::Regular, "/etc/x"),
            (tar::EntryType::Regular, "a/../../x"),
            (tar::EntryType::Regular, ".skiff/env"),
            (tar::EntryType::Symlink, "link"),
            (tar::EntryType::Link, "link"),
            (tar::EntryType::Char, "dev"),
        ] {
            let refused = Stage::default().unpack(&archive(kind, path));
            assert!(matches!(refused, Err(StageError::Invalid(_))), "{kind:?} {path}");
        }
        assert!(matches!(Stage::default().unpack(b"no archive"), Err(StageError::Invalid(_))));
    }
}
