//! Volumes of a pod by name, and where containers mount them.

use serde_json::Value;

use super::{complain, given, list, need, one_of, sources, text};
use crate::invalid::{Errors, quote_str};
use crate::names;
use crate::path::Path;

/// Every kind of source, in the order in which they are looked at; the path of one differs from its field's name.
const KINDS: &[(&str, &str)] = &[
    ("emptyDir", "emptyDir"),
    ("hostPath", "hostPath"),
    ("gitRepo", "gitRepo"),
    ("gcePersistentDisk", "persistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore"),
    ("secret", "secret"),
    ("nfs", "nfs"),
    ("iscsi", "iscsi"),
    ("glusterfs", "glusterfs"),
    ("flocker", "flocker"),
    ("persistentVolumeClaim", "persistentVolumeClaim"),
    ("rbd", "rbd"),
    ("cinder", "cinder"),
    ("cephfs", "cephfs"),
    ("quobyte", "quobyte"),
    ("downwardAPI", "downwardAPI"),
    ("fc", "fc"),
    ("flexVolume", "flexVolume"),
    ("configMap", "configMap"),
    ("azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk"),
    ("storageos", "storageos"),
    ("projected", "projected"),
    ("scaleIO", "scaleIO"),
    ("csi", "csi"),
    ("ephemeral", "ephemeral"),
    ("image", "image"),
];

/// Checks `volumes`; answers those that containers may refer to: a faulty one does not count.
pub(super) fn validate<'a>(spec: &'a Value, meta: &Value, path: &Path<'_>, errors: &mut Errors) -> Vec<&'a Value> {
    let mut good: Vec<&Value> = vec![];
    for (i, v) in list(spec, "volumes").iter().enumerate() {
        let at = path.index(i);
        let before = errors.len();
        source(v, meta, &at, errors);
        if need(v, "name", &at, errors) {
            let name = text(v, "name");
            complain(&at.child("name"), name, names::is_dns1123_label(name), errors);
            if good.iter().any(|g| text(g, "name") == name) {
                errors.duplicate(&at.child("name"), name);
            }
        }
        if errors.len() == before {
            good.push(v);
        }
    }
    good
}

/// The volumes of a spec that has been accepted.
pub(in crate::kinds::pod) fn usable(spec: &Value) -> Vec<&Value> {
    list(spec, "volumes").iter().collect()
}

fn source(v: &Value, meta: &Value, at: &Path<'_>, errors: &mut Errors) {
    let mut count = 0;
    for (key, shown) in KINDS {
        if !given(v, key) {
            continue;
        }
        if count > 0 {
            let shown = if *key == "cephfs" { "cephFS" } else { shown };
            errors.forbidden(&at.child(shown), "may not specify more than 1 volume type");
            continue;
        }
        let here = at.child(shown);
        count += 1;
        sources::validate(key, &v[*key], &here, errors);
        // The claim made for such a volume is named after both.
        if *key == "ephemeral" && !text(meta, "name").is_empty() && !text(v, "name").is_empty() {
            let claim = format!("{}-{}", text(meta, "name"), text(v, "name"));
            for w in names::is_dns1123_subdomain(&claim) {
                errors.invalid(&at.child("name"), text(v, "name"), format!("PVC name {}: {w}", quote_str(&claim)));
            }
        }
    }
    if count == 0 {
        errors.required(at, "must specify a volume type");
    }
}

/// A path below some directory: relative, without steps back.
pub(super) fn descending(p: &str, at: &Path<'_>, errors: &mut Errors) {
    if p.starts_with('/') {
        errors.invalid(at, p, "must be a relative path");
    }
    no_back_steps(p, at, errors);
}

/// A path without `..` as a part.
pub(super) fn no_back_steps(p: &str, at: &Path<'_>, errors: &mut Errors) {
    if p.split('/').any(|part| part == "..") {
        errors.invalid(at, p, "must not contain '..'");
    }
}

/// `volumeMounts` of a container.
pub(super) fn validate_mounts(c: &Value, volumes: &[&Value], path: &Path<'_>, errors: &mut Errors) {
    let devices = list(c, "volumeDevices");
    let mut seen = vec![];
    for (i, m) in list(c, "volumeMounts").iter().enumerate() {
        let at = path.index(i);
        let (name, mount) = (text(m, "name"), text(m, "mountPath"));
        need(m, "name", &at, errors);
        if !volumes.iter().any(|v| text(v, "name") == name) {
            errors.not_found(&at.child("name"), name);
        }
        need(m, "mountPath", &at, errors);
        if seen.contains(&mount) {
            errors.invalid(&at.child("mountPath"), mount, "must be unique");
        }
        seen.push(mount);
        if devices.iter().any(|d| text(d, "name") == name) {
            errors.invalid(&at.child("name"), name, "must not already exist in volumeDevices");
        }
        if devices.iter().any(|d| text(d, "devicePath") == mount) {
            errors.invalid(&at.child("mountPath"), mount, "must not already exist as a path in volumeDevices");
        }
        // These complaints are at upstream's paths, which leave out the mount's index.
        let (sub, expression) = (text(m, "subPath"), text(m, "subPathExpr"));
        if !sub.is_empty() {
            descending(sub, &path.child("subPath"), errors);
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                let why = "subPathExpr and subPath are mutually exclusive";
                errors.invalid(&at.child("subPathExpr"), expression, why);
            }
            descending(expression, &path.child("subPathExpr"), errors);
        }
        propagation(c, m, path, errors);
    }
}

fn propagation(c: &Value, m: &Value, at: &Path<'_>, errors: &mut Errors) {
    one_of(m, "mountPropagation", &["Bidirectional", "HostToContainer", "None"], at, errors);
    if text(m, "mountPropagation") == "Bidirectional" && c["securityContext"]["privileged"] != true {
        let why = "Bidirectional mount propagation is available only to privileged containers";
        errors.forbidden(&at.child("mountPropagation"), why);
    }
    let here = at.child("recursiveReadOnly");
    match text(m, "recursiveReadOnly") {
        "" | "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if m["readOnly"] != true {
                errors.forbidden(&here, "may only be specified when readOnly is true");
            }
            if !matches!(text(m, "mountPropagation"), "" | "None") {
                let why = "may only be specified when mountPropagation is None or not specified";
                errors.forbidden(&here, why);
            }
        }
        other => errors.not_supported(&here, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

/// `volumeDevices` of a container.
pub(super) fn validate_devices(c: &Value, volumes: &[&Value], path: &Path<'_>, errors: &mut Errors) {
    let mounts = list(c, "volumeMounts");
    let (mut names, mut paths) = (vec![], vec![]);
    for (i, d) in list(c, "volumeDevices").iter().enumerate() {
        let at = path.index(i);
        let (name, device) = (text(d, "name"), text(d, "devicePath"));
        need(d, "name", &at, errors);
        if names.contains(&name) {
            errors.invalid(&at.child("name"), name, "must be unique");
        }
        if !name.is_empty() {
            names.push(name);
        }
        match volumes.iter().find(|v| text(v, "name") == name) {
            None => errors.not_found(&at.child("name"), name),
            Some(v) if !given(v, "persistentVolumeClaim") && !given(v, "ephemeral") => {
                let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.invalid(&at.child("name"), name, why);
            }
            Some(_) => {}
        }
        let here = at.child("devicePath");
        if device.is_empty() {
            errors.required(&here, "");
        }
        if paths.contains(&device) {
            errors.invalid(&here, device, "must be unique");
        }
        if device.split('/').any(|p| p == "..") {
            errors.invalid(&here, device, "can not contain backsteps ('..')");
        } else {
            paths.push(device);
        }
        if mounts.iter().any(|m| text(m, "name") == name) {
            errors.invalid(&at.child("name"), name, "must not already exist in volumeMounts");
        }
        if !device.is_empty() && mounts.iter().any(|m| text(m, "mountPath") == device) {
            errors.invalid(&here, device, "must not already exist as a path in volumeMounts");
        }
    }
}
