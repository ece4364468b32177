//! Volumes of pods: made on the node, filled, kept fresh, taken away.
//!
//! [`Volumes::mount`] is idempotent and doubles as the refresh: called again it brings every volume's files up to
//! date. Secrets and tokens live on tmpfs and never reach a disk. What is mounted is read from the kernel's mount
//! table, not remembered.
//!
//! Limits: emptyDir, hostPath, nfs, configMap, secret, downwardAPI, projected, image, and claims (also ephemeral ones) bound to
//! hostPath, local or nfs volumes. Anything else, and block volumes, are refused with an event.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, EmptyDirVolumeSource, HostPathVolumeSource, Pod, Secret, Volume};
use nix::mount::{MsFlags, mount};

use crate::Config;
use crate::events::Recorder;
use crate::pod::fields::Facts;
use crate::pod::spec;
use crate::podcerts::Certificates;
use crate::source::Sources;
use atomic::Payload;

pub mod atomic;
mod claims;
mod files;
mod image;
pub mod local;
mod mounts;
mod projected;
pub mod subpath;

use claims::{Bound, Source};
pub use files::references;
use files::{config_map_files, downward_files, secret_files};
use mounts::remove_tree;
pub use mounts::{is_mounted, unmount_below};
use projected::Token;

/// A token request that takes longer failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a volume cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume cannot be set up.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {cause}")]
    SetUp {
        /// Its name in the pod.
        volume: String,
        /// A sentence for people.
        cause: String,
    },
    /// A claim cannot be used, or not yet.
    #[error(
        "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[], failed to process volumes=[{volume}]: {cause}"
    )]
    Claim {
        /// Its name in the pod.
        volume: String,
        /// A sentence for people.
        cause: String,
    },
    /// The volume cannot be taken away.
    #[error("cannot remove volumes: {0}")]
    TearDown(#[from] io::Error),
}

/// The volumes of this node's pods.
pub struct Volumes {
    client: kube::Client,
    root: PathBuf,
    sources: Arc<Sources>,
    tokens: Mutex<HashMap<(String, String, String), Token>>,
    certificates: Certificates,
    images: image::Images,
    node: String,
    /// Nothing is mounted: see [`crate::runtime::fake`].
    fake: bool,
    claims: Mutex<HashMap<(String, String), Bound>>,
}

impl Volumes {
    /// Volumes below the agent's data directory.
    pub fn new(client: kube::Client, config: &Config, sources: Arc<Sources>, recorder: Recorder) -> Self {
        let (root, node) = (config.data_dir.join("pods"), config.node_name.clone());
        let fake = config.fake.is_some();
        let images = image::Images::new(config.data_dir.join("images"));
        let certificates = Certificates::new(client.clone(), node.clone(), recorder, sources.changes());
        Self {
            client,
            root,
            sources,
            tokens: Mutex::default(),
            certificates,
            images,
            node,
            fake,
            claims: Mutex::default(),
        }
    }

    /// Directory of everything kept for a pod.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join(uid)
    }

    /// Where a volume is on the host.
    pub fn path(&self, pod: &Pod, volume: &Volume) -> PathBuf {
        if let Some(host) = &volume.host_path {
            return PathBuf::from(&host.path);
        }
        match self.bound(pod, volume).map(|b| b.source) {
            Some(Source::HostPath(host)) => return host.path.into(),
            Some(Source::Local { path, .. }) => return path,
            Some(Source::Nfs(_)) | None => {}
        }
        self.own_dir(pod, volume)
    }

    /// Namespace, claim and place of each volume of a pod that a claim gives.
    pub fn of_claims(&self, pod: &Pod) -> Vec<(String, String, PathBuf)> {
        let volumes = spec::spec(pod).volumes.iter().flatten();
        let bound = volumes.filter(|v| self.bound(pod, v).is_some());
        bound
            .filter_map(|v| Some((spec::namespace(pod).to_owned(), claims::claim_name(pod, v)?, self.path(pod, v))))
            .collect()
    }

    /// Makes and fills every volume of a pod, or brings it up to date.
    pub async fn mount(&self, pod: &Pod, facts: &Facts) -> Result<(), Error> {
        if self.fake {
            return Ok(());
        }
        for volume in spec::spec(pod).volumes.iter().flatten() {
            if let Some(name) = claims::claim_name(pod, volume) {
                self.mount_claim(pod, volume, &name).await?;
                continue;
            }
            self.mount_one(pod, volume, facts)
                .await
                .map_err(|cause| Error::SetUp { volume: volume.name.clone(), cause })?;
        }
        Ok(())
    }

    /// What a volume's claim was resolved to.
    fn bound(&self, pod: &Pod, volume: &Volume) -> Option<Bound> {
        let key = (spec::uid(pod).to_string(), claims::claim_name(pod, volume)?);
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    async fn mount_claim(&self, pod: &Pod, volume: &Volume, name: &str) -> Result<(), Error> {
        let known = self.bound(pod, volume);
        let fresh = known.is_none();
        let bound = match known {
            Some(b) => b,
            None => {
                let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
                let started = statuses.iter().any(|c| c.container_id.is_some());
                claims::resolve(&self.client, &self.node, pod, volume, name, started)
                    .await
                    .map_err(|cause| Error::Claim { volume: volume.name.clone(), cause })?
            }
        };
        let failed = |cause: String| Error::SetUp { volume: bound.volume.clone(), cause };
        let read_only = volume.persistent_volume_claim.as_ref().and_then(|c| c.read_only) == Some(true);
        if let Source::Nfs(nfs) = &bound.source {
            let dir = self.own_dir(pod, volume);
            self.mount_network(nfs, read_only, &bound.mount_options, dir).await.map_err(failed)?;
        } else if fresh {
            let (source, context) = (bound.source.clone(), spec::spec(pod).security_context.clone());
            blocking(move || {
                claims::prepare(&source)?;
                let Some(context) = context else { return Ok(()) };
                let group = context.fs_group.and_then(|g| u32::try_from(g).ok());
                match (group, source) {
                    // What a hostPath points at belongs to the node, and keeps its owner.
                    (Some(group), Source::Local { path, .. }) if !read_only => {
                        let trust = context.fs_group_change_policy.as_deref() == Some("OnRootMismatch");
                        claims::own_all(&path, group, trust).map_err(|e| format!("applyFSGroup failed for vol: {e}"))
                    }
                    _ => Ok(()),
                }
            })
            .await
            .map_err(failed)?;
        }
        if fresh {
            let key = (spec::uid(pod).to_string(), name.to_owned());
            self.claims.lock().unwrap_or_else(PoisonError::into_inner).insert(key, bound);
        }
        Ok(())
    }

    /// Says which of a pod's emptyDirs on disk holds more than it may, in upstream's words. Looks at every file, so ask
    /// seldom; without a limit nothing is looked at.
    pub async fn over_limit(&self, pod: &Pod) -> Option<String> {
        if self.fake {
            return None;
        }
        for volume in spec::spec(pod).volumes.iter().flatten() {
            let Some(empty) = volume.empty_dir.as_ref().filter(|e| on_disk_with_limit(e)) else { continue };
            let Some(limit) = &empty.size_limit else { continue };
            let (dir, most) = (self.path(pod, volume), spec::whole(limit).unwrap_or(i64::MAX));
            let used = blocking(move || Ok(files::usage(&dir))).await;
            if used.is_ok_and(|u| i64::try_from(u).unwrap_or(i64::MAX) > most) {
                return Some(format!("Usage of EmptyDir volume {:?} exceeds the limit {:?}. ", volume.name, limit.0));
            }
        }
        None
    }

    /// Bytes in a pod's emptyDirs on disk. Looks at every file.
    pub async fn kept_on_disk(&self, pod: &Pod) -> u64 {
        let mut total = 0;
        for volume in spec::spec(pod).volumes.iter().flatten().filter(|_| !self.fake) {
            if volume.empty_dir.as_ref().is_some_and(on_disk) {
                let dir = self.path(pod, volume);
                total += blocking(move || Ok(files::usage(&dir))).await.unwrap_or(0);
            }
        }
        total
    }

    fn own_dir(&self, pod: &Pod, volume: &Volume) -> PathBuf {
        self.pod_dir(spec::uid(pod)).join("volumes").join(plugin(volume)).join(&volume.name)
    }

    async fn mount_network(
        &self,
        nfs: &k8s_openapi::api::core::v1::NFSVolumeSource,
        read_only: bool,
        options: &[String],
        dir: PathBuf,
    ) -> Result<(), String> {
        let target = dir.clone();
        let mounted = blocking(move || {
            make_dir(&target, 0o750)?;
            is_mounted(&target).map_err(|e| e.to_string())
        });
        if mounted.await? { Ok(()) } else { claims::mount_nfs(nfs, read_only, options, &dir).await }
    }

    /// Unmounts and removes everything of a pod. What a hostPath points at stays.
    pub async fn unmount(&self, uid: &str) -> Result<(), Error> {
        if self.fake {
            return Ok(());
        }
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).retain(|(owner, ..), _| owner != uid);
        self.certificates.forget(uid);
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).retain(|(owner, _), _| owner != uid);
        let dir = self.pod_dir(uid);
        unmount_below(&dir).await?;
        remove_tree(&dir.join("volumes")).await?;
        remove_tree(&dir.join("volume-subpaths")).await?;
        self.images.sweep().await.map_err(io::Error::other)?;
        Ok(())
    }

    /// Removes what is left of a pod's directory. Call after [`Volumes::unmount`].
    pub async fn forget(&self, uid: &str) -> Result<(), Error> {
        if self.fake {
            return Ok(());
        }
        Ok(remove_tree(&self.pod_dir(uid)).await?)
    }

    /// UIDs of pods that have a directory.
    pub fn known_pods(&self) -> Vec<String> {
        if self.fake {
            return vec![];
        }
        let entries = std::fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).collect()
    }

    /// When the first of a pod's tokens and certificates wants renewal.
    pub fn next_refresh(&self, uid: &str) -> Option<Timestamp> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let token = tokens.iter().filter(|((owner, ..), _)| owner == uid).map(|(_, t)| t.refresh).min();
        token.into_iter().chain(self.certificates.next_refresh(uid)).min()
    }

    async fn mount_one(&self, pod: &Pod, volume: &Volume, facts: &Facts) -> Result<(), String> {
        if volume.image.is_some() {
            // The engine must have it first: see [`Volumes::mount_image`].
            return Ok(());
        }
        let dir = self.path(pod, volume);
        let fs_group = spec::spec(pod).security_context.as_ref().and_then(|s| s.fs_group).map(|g| g as u32);
        if let Some(host) = &volume.host_path {
            let host = host.clone();
            return blocking(move || host_path(&host)).await;
        }
        if let Some(nfs) = &volume.nfs {
            return self.mount_network(nfs, false, &[], dir).await;
        }
        if let Some(empty) = &volume.empty_dir {
            let medium = empty.medium.clone().unwrap_or_default();
            let limit = empty.size_limit.as_ref().and_then(spec::whole);
            if !matches!(medium.as_str(), "" | "Memory") {
                return Err(format!("unsupported emptyDir medium {medium:?}"));
            }
            return blocking(move || {
                let fresh = !dir.exists();
                make_dir(&dir, 0o777)?;
                if medium == "Memory" && !is_mounted(&dir).map_err(|e| e.to_string())? {
                    tmpfs(&dir, limit, 0o777)?;
                    own(&dir, fs_group)?;
                } else if fresh {
                    own(&dir, fs_group)?;
                }
                Ok(())
            })
            .await;
        }
        let secret_like = volume.secret.is_some() || volume.projected.is_some();
        let payload = self.payload(pod, volume, facts, fs_group).await?;
        blocking(move || {
            make_dir(&dir, 0o755)?;
            if secret_like && !is_mounted(&dir).map_err(|e| e.to_string())? {
                tmpfs(&dir, None, 0o755)?;
            }
            let gid = fs_group;
            if gid.is_some() {
                std::os::unix::fs::chown(&dir, None, gid).map_err(|e| e.to_string())?;
            }
            atomic::write(&dir, &payload).map(drop).map_err(|e| e.to_string())
        })
        .await
    }

    /// The files of a volume made from API objects.
    async fn payload(
        &self,
        pod: &Pod,
        volume: &Volume,
        facts: &Facts,
        fs_group: Option<u32>,
    ) -> Result<Payload, String> {
        let mut files = Payload::new();
        let namespace = spec::namespace(pod);
        if let Some(source) = &volume.config_map {
            let optional = source.optional.unwrap_or(false);
            let mode = source.default_mode.unwrap_or(0o644);
            let found = self.config_map(namespace, &source.name, optional).await?;
            config_map_files(&mut files, found.as_deref(), &source.name, source.items.as_deref(), mode, optional)?;
        } else if let Some(source) = &volume.secret {
            let optional = source.optional.unwrap_or(false);
            let mode = source.default_mode.unwrap_or(0o644);
            let name = source.secret_name.clone().unwrap_or_default();
            let found = self.secret(namespace, &name, optional).await?;
            secret_files(&mut files, found.as_deref(), &name, source.items.as_deref(), mode, optional)?;
        } else if let Some(source) = &volume.downward_api {
            let mode = source.default_mode.unwrap_or(0o644);
            downward_files(&mut files, pod, source.items.as_deref(), mode, facts)?;
        } else if let Some(source) = &volume.projected {
            self.projected(&mut files, pod, volume, source, facts, fs_group).await?;
        } else {
            return Err(format!("volume type {} is not supported on this node", plugin(volume)));
        }
        if let Some(gid) = fs_group {
            for file in files.values_mut() {
                file.gid = Some(gid);
                file.mode |= 0o440;
            }
        }
        Ok(files)
    }

    async fn config_map(&self, namespace: &str, name: &str, optional: bool) -> Result<Option<Arc<ConfigMap>>, String> {
        match self.sources.config_map(namespace, name).await {
            Ok(None) if !optional => Err(format!("configmap {name:?} not found")),
            Ok(found) => Ok(found),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn secret(&self, namespace: &str, name: &str, optional: bool) -> Result<Option<Arc<Secret>>, String> {
        match self.sources.secret(namespace, name).await {
            Ok(None) if !optional => Err(format!("secret {name:?} not found")),
            Ok(found) => Ok(found),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Whether a pod has an emptyDir whose size must be watched: in memory the file system itself is the limit.
pub fn has_limits(pod: &Pod) -> bool {
    spec::spec(pod).volumes.iter().flatten().any(|v| v.empty_dir.as_ref().is_some_and(on_disk_with_limit))
}

fn on_disk_with_limit(e: &EmptyDirVolumeSource) -> bool {
    on_disk(e) && e.size_limit.as_ref().and_then(spec::whole).is_some_and(|n| n > 0)
}

fn on_disk(e: &EmptyDirVolumeSource) -> bool {
    e.medium.as_deref().unwrap_or_default().is_empty()
}

fn plugin(volume: &Volume) -> &'static str {
    match volume {
        v if v.empty_dir.is_some() => "kubernetes.io~empty-dir",
        v if v.config_map.is_some() => "kubernetes.io~configmap",
        v if v.secret.is_some() => "kubernetes.io~secret",
        v if v.downward_api.is_some() => "kubernetes.io~downward-api",
        v if v.projected.is_some() => "kubernetes.io~projected",
        v if v.host_path.is_some() => "kubernetes.io~host-path",
        v if v.persistent_volume_claim.is_some() || v.ephemeral.is_some() => "kubernetes.io~claim",
        v if v.nfs.is_some() => "kubernetes.io~nfs",
        v if v.csi.is_some() => "kubernetes.io~csi",
        v if v.image.is_some() => "kubernetes.io~image",
        v if v.iscsi.is_some() => "kubernetes.io~iscsi",
        _ => "kubernetes.io~other",
    }
}

/// Checks a hostPath against its declared type, making what may be made.
fn host_path(host: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&host.path);
    let failed = |what: &str| Err(format!("hostPath type check failed: {} is not {what}", host.path));
    let meta = std::fs::metadata(path);
    match host.type_.as_deref().unwrap_or_default() {
        // Untyped paths are made by the engine upstream; an explicit directory has the same effect.
        "" | "DirectoryOrCreate" => match meta {
            Err(_) => make_dir(path, 0o755),
            Ok(meta) if host.type_.as_deref().unwrap_or_default().is_empty() || meta.is_dir() => Ok(()),
            Ok(_) => failed("a directory"),
        },
        "FileOrCreate" => match meta {
            Err(_) => std::fs::File::create(path)
                .and_then(|f| f.set_permissions(std::fs::Permissions::from_mode(0o644)))
                .map_err(|e| e.to_string()),
            Ok(meta) if meta.is_file() => Ok(()),
            Ok(_) => failed("a file"),
        },
        kind => {
            let right = |test: fn(&std::fs::Metadata) -> bool| meta.as_ref().is_ok_and(test);
            match kind {
                "Directory" if right(|m| m.is_dir()) => Ok(()),
                "Directory" => failed("a directory"),
                "File" if right(|m| m.is_file()) => Ok(()),
                "File" => failed("a file"),
                "Socket" if right(|m| m.file_type().is_socket()) => Ok(()),
                "Socket" => failed("a socket file"),
                "CharDevice" if right(|m| m.file_type().is_char_device()) => Ok(()),
                "CharDevice" => failed("a character device"),
                "BlockDevice" if right(|m| m.file_type().is_block_device()) => Ok(()),
                "BlockDevice" => failed("a block device"),
                other => Err(format!("hostPath type {other:?} is unknown")),
            }
        }
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), String> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)))
        .map_err(|e| format!("{}: {e}", path.display()))
}

fn tmpfs(path: &Path, size: Option<i64>, mode: u32) -> Result<(), String> {
    let mut options = format!("mode={mode:o}");
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).map_err(|e| e.to_string())
}

/// Gives a new volume to the pod's group.
fn own(path: &Path, group: Option<u32>) -> Result<(), String> {
    let Some(group) = group else { return Ok(()) };
    std::os::unix::fs::chown(path, None, Some(group))
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o2777)))
        .map_err(|e| e.to_string())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_path_types() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, kind: &str| {
            host_path(&HostPathVolumeSource {
                path: dir.path().join(name).to_string_lossy().into(),
                type_: Some(kind.into()),
            })
        };
        assert!(check("d", "Directory").is_err());
        assert!(check("d", "DirectoryOrCreate").is_ok());
        assert!(check("d", "Directory").is_ok());
        assert!(check("d", "File").is_err());
        assert!(check("f", "FileOrCreate").is_ok());
        assert!(check("f", "File").is_ok());
        assert!(check("f", "Socket").is_err());
        assert!(check("f", "Nonsense").is_err());
    }
}
