//! Directories of volumes that are to go.
//!
//! The provisioner deletes the object of a volume whose claim is gone; a finalizer keeps it until this node has removed
//! the directory. The watch sees only this node's volumes (by a label), so it costs nothing while nothing happens.
//!
//! What is removed must be provably a directory of the provisioner's: its last part begins with the volume's name.

use std::collections::HashMap;
use std::io;
use std::path::{Component, Path};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::claims::PROVISIONER;

/// Finalizer of volumes whose directory is still there.
const FINALIZER: &str = "skiff.dev/local-path";
/// On a volume: host name of its node.
const HOST: &str = "skiff.dev/hostname";
/// Wait before a directory that could not be removed is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Longest wait for the server.
const LIMIT: Duration = Duration::from_secs(15);

/// Removes directories of deleted volumes until told to stop.
pub async fn run(client: kube::Client, node: String, shutdown: CancellationToken) {
    let api: Api<PersistentVolume> = Api::all(client);
    let config = watcher::Config::default().labels(&format!("{HOST}={node}"));
    let mut events = skiff_client::watch(api.clone(), config).applied_objects();
    let mut failed: HashMap<String, PersistentVolume> = HashMap::new();
    loop {
        let next = tokio::select! {
            () = shutdown.cancelled() => return,
            next = events.next() => next,
            () = tokio::time::sleep(RETRY), if !failed.is_empty() => {
                for volume in std::mem::take(&mut failed).into_values() {
                    attempt(&api, volume, &mut failed).await;
                }
                continue;
            }
        };
        match next {
            None => return,
            Some(Err(error)) => tracing::debug!(%error, "volume watch failed; it resumes by itself"),
            Some(Ok(volume)) => attempt(&api, volume, &mut failed).await,
        }
    }
}

async fn attempt(
    api: &Api<PersistentVolume>,
    volume: PersistentVolume,
    failed: &mut HashMap<String, PersistentVolume>,
) {
    if !is_due(&volume) {
        return;
    }
    let name = volume.name_any();
    let done = tokio::time::timeout(LIMIT, finish(api, &volume)).await;
    match done.map_err(io::Error::other).flatten() {
        Ok(()) => drop(failed.remove(&name)),
        Err(error) => {
            tracing::warn!(%error, volume = name, "a deleted volume's directory cannot be removed yet");
            failed.insert(name, volume);
        }
    }
}

/// Whether a volume waits for this agent: it is being deleted, nobody uses it, and its directory may be there.
fn is_due(volume: &PersistentVolume) -> bool {
    let ours = volume.annotations().get("pv.kubernetes.io/provisioned-by").is_some_and(|p| p == PROVISIONER);
    let bound = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    ours && !bound && volume.metadata.deletion_timestamp.is_some() && volume.finalizers().iter().any(|f| f == FINALIZER)
}

async fn finish(api: &Api<PersistentVolume>, volume: &PersistentVolume) -> io::Result<()> {
    let spec = volume.spec.as_ref();
    let deletes = spec.and_then(|s| s.persistent_volume_reclaim_policy.as_deref()) == Some("Delete");
    let path = spec.and_then(|s| s.local.as_ref()).map(|l| l.path.clone());
    if let Some(path) = path.filter(|_| deletes) {
        let name = volume.name_any();
        tokio::task::spawn_blocking(move || remove(Path::new(&path), &name)).await.map_err(io::Error::other)??;
    }
    let left: Vec<&String> = volume.finalizers().iter().filter(|f| *f != FINALIZER).collect();
    let patch = serde_json::json!({"metadata": {"finalizers": left, "resourceVersion": volume.resource_version()}});
    match api.patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        // Gone, or changed: then the watch shows the newer one.
        Err(kube::Error::Api(s)) if matches!(s.code, 404 | 409) => Ok(()),
        Err(e) => Err(io::Error::other(e)),
    }
}

/// Removes a volume's directory, without following links. Fine when it is gone.
fn remove(path: &Path, volume: &str) -> io::Result<()> {
    let own = path.is_absolute()
        && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)))
        && path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&format!("{volume}_")));
    if !own || volume.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is no volume's directory", path.display()),
        ));
    }
    if !super::mounts::mounts_below(path)?.is_empty() {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, "something is still mounted"));
    }
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_volumes_own_directory_goes() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("pvc-1_n_c");
        let outside = dir.path().join("outside");
        std::fs::create_dir_all(own.join("d")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, own.join("link")).unwrap();
        for path in
            [dir.path().to_path_buf(), outside.clone(), "/".into(), own.join("../pvc-1_n_c"), "pvc-1_n_c".into()]
        {
            assert!(remove(&path, "pvc-1").is_err(), "{}", path.display());
        }
        assert!(remove(&own, "").is_err() && own.exists());
        remove(&own, "pvc-1").unwrap();
        remove(&own, "pvc-1").unwrap();
        assert!(!own.exists() && outside.exists());
    }

    #[test]
    fn which_volumes_are_due() {
        let volume = |deleted: bool, phase: &str, by: &str| -> PersistentVolume {
            let deleted = deleted.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(serde_json::json!({"metadata": {"name": "v", "deletionTimestamp": deleted,
                "finalizers": [FINALIZER], "annotations": {"pv.kubernetes.io/provisioned-by": by}},
                "status": {"phase": phase}}))
            .unwrap()
        };
        assert!(is_due(&volume(true, "Released", PROVISIONER)));
        assert!(!is_due(&volume(true, "Bound", PROVISIONER)));
        assert!(!is_due(&volume(false, "Released", PROVISIONER)));
        assert!(!is_due(&volume(true, "Released", "example.com/other")));
    }
}
