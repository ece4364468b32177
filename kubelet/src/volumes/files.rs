//! The files of ConfigMaps, Secrets and tokens, and the room that files take.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};

use super::atomic::{File, Payload};
use crate::pod::fields::{self, Facts};
use crate::pod::spec;
use crate::source::Key;

pub(super) fn add(files: &mut Payload, path: &str, data: Vec<u8>, mode: i32) {
    files.insert(path.into(), File { data, mode: mode as u32 & 0o777, uid: None, gid: None });
}

/// A credential is readable for one user alone where there is one: `user`, or else the one that all containers run as.
/// Where there is a volume group, it may read, too.
pub(super) fn restrict(pod: &Pod, file: &mut File, fs_group: Option<u32>, user: Option<i64>) {
    let pod_user = spec::spec(pod).security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users =
        spec::containers(pod).into_iter().map(|(_, c)| c.security_context.and_then(|s| s.run_as_user).or(pod_user));
    let first = users.next().flatten();
    let one_user = user.or_else(|| first.filter(|user| users.all(|u| u == Some(*user))));
    if fs_group.is_some() || one_user.is_some() {
        file.mode = 0o600;
        file.uid = one_user.and_then(|u| u32::try_from(u).ok());
    }
}

/// The fields of a pod, and the resources of its containers.
pub(super) fn downward_files(
    files: &mut Payload,
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: i32,
    facts: &Facts,
) -> Result<(), String> {
    for item in items.into_iter().flatten() {
        let data = match (&item.field_ref, &item.resource_field_ref) {
            (Some(selector), _) => fields::field(pod, selector, facts)?,
            (_, Some(selector)) => fields::resource(pod, selector, None, facts)?,
            _ => return Err("a downward API item names neither a field nor a resource".into()),
        };
        add(files, &item.path, data.into_bytes(), item.mode.unwrap_or(mode));
    }
    Ok(())
}

pub(super) fn pick(
    files: &mut Payload,
    all: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    missing: impl Fn(&str) -> Option<String>,
) -> Result<(), String> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        all.into_iter().for_each(|(path, data)| add(files, &path, data, mode));
        return Ok(());
    };
    for item in items {
        match all.get(&item.key) {
            Some(data) => {
                add(files, &item.path, data.clone(), item.mode.unwrap_or(mode));
                if let Some(file) = files.get_mut(&item.path) {
                    file.uid = item.user.and_then(|u| u32::try_from(u).ok());
                }
            }
            None => {
                if let Some(error) = missing(&item.key) {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

pub(super) fn config_map_files(
    files: &mut Payload,
    found: Option<&ConfigMap>,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<(), String> {
    let text = found.and_then(|c| c.data.as_ref()).into_iter().flatten();
    let binary = found.and_then(|c| c.binary_data.as_ref()).into_iter().flatten();
    let all = text
        .map(|(k, v)| (k.clone(), v.clone().into_bytes()))
        .chain(binary.map(|(k, v)| (k.clone(), v.0.clone())))
        .collect();
    pick(files, all, items, mode, |key| {
        (!optional).then(|| format!("configmap {name:?} references non-existent config key: {key}"))
    })
}

pub(super) fn secret_files(
    files: &mut Payload,
    found: Option<&Secret>,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<(), String> {
    let data = found.and_then(|s| s.data.as_ref()).into_iter().flatten();
    let all = data.map(|(k, v)| (k.clone(), v.0.clone())).collect();
    pick(files, all, items, mode, |key| {
        (!optional).then(|| format!("secret {name:?} references non-existent secret key: {key}"))
    })
}

/// What a pod's volumes and variables are made of.
pub fn references(pod: &Pod) -> Vec<Key> {
    let mut keys = Vec::new();
    let sources = || {
        spec::spec(pod)
            .volumes
            .iter()
            .flatten()
            .flat_map(|v| v.projected.iter().flat_map(|p| p.sources.iter().flatten()))
    };
    if sources().any(|s| s.cluster_trust_bundle.is_some()) {
        keys.push(Key::bundles());
    }
    if sources().any(|s| s.pod_certificate.is_some()) {
        keys.push(Key::certificate(spec::namespace(pod), spec::uid(pod)));
    }
    let mut add = |kind, name: &str| {
        keys.push(Key { kind, namespace: spec::namespace(pod).into(), name: name.into() });
    };
    for volume in spec::spec(pod).volumes.iter().flatten() {
        if let Some(source) = &volume.config_map {
            add("ConfigMap", &source.name);
        }
        if let Some(name) = volume.secret.as_ref().and_then(|s| s.secret_name.as_deref()) {
            add("Secret", name);
        }
    }
    for source in sources() {
        if let Some(source) = &source.config_map {
            add("ConfigMap", &source.name);
        }
        if let Some(source) = &source.secret {
            add("Secret", &source.name);
        }
    }
    for (_, container) in spec::containers(pod) {
        for source in container.env_from.iter().flatten() {
            if let Some(source) = &source.config_map_ref {
                add("ConfigMap", &source.name);
            }
            if let Some(source) = &source.secret_ref {
                add("Secret", &source.name);
            }
        }
        for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            if let Some(source) = &source.config_map_key_ref {
                add("ConfigMap", &source.name);
            }
            if let Some(source) = &source.secret_key_ref {
                add("Secret", &source.name);
            }
        }
    }
    keys
}

/// Bytes on disk below a directory. Links are not followed; what vanishes meanwhile counts as nothing.
pub(super) fn usage(root: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut total = 0;
    let mut pending = vec![root.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            total += meta.blocks() * 512;
            if meta.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_that_files_take() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("big"), vec![1; 1 << 20]).unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path().join("link")).unwrap();
        let before = usage(dir.path());
        std::fs::write(dir.path().join("d/f"), vec![1; 64 << 10]).unwrap();
        let grown = usage(dir.path()) - before;
        assert!((64 << 10..256 << 10).contains(&grown), "{grown}");
        assert!(before < 1 << 20, "links are not followed");
    }

    #[test]
    fn items_and_optional_keys() {
        let map: ConfigMap = serde_json::from_value(serde_json::json!({"data": {"a": "1", "b": "2"}})).unwrap();
        let item = |key: &str, mode| KeyToPath { key: key.into(), path: format!("d/{key}"), mode, user: None };
        let mut files = Payload::new();
        config_map_files(&mut files, Some(&map), "m", Some(&[item("a", Some(0o400))]), 0o644, false).unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["d/a"]);
        assert_eq!(files["d/a"].mode, 0o400);
        let missing = config_map_files(&mut files, Some(&map), "m", Some(&[item("z", None)]), 0o644, false);
        assert_eq!(missing.unwrap_err(), "configmap \"m\" references non-existent config key: z");
        config_map_files(&mut files, None, "m", Some(&[item("z", None)]), 0o644, true).unwrap();
    }
}
