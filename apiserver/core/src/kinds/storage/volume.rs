//! PersistentVolume.

use serde_json::{Value, json};

use super::{access_modes, amount, more_than_zero, old_class_warning, quantity};
use crate::invalid::Errors;
use crate::kinds::check::{IMMUTABLE, complain, given, list, need, one_of, subdomain_if_given, text};
use crate::kinds::defaults::{object, set, set_text};
use crate::kinds::pod::{node_selector_warnings, retired_volume, validate_node_selector, validate_volume_source};
use crate::kinds::{Strategy, Traits, carry};
use crate::names;
use crate::path::Path;

/// Every kind of source, in the order in which they are looked at, with how messages name it.
const KINDS: &[(&str, &str)] = &[
    ("hostPath", "hostPath"),
    ("gcePersistentDisk", "gcePersistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore"),
    ("glusterfs", "glusterfs"),
    ("flocker", "flocker"),
    ("nfs", "nfs"),
    ("rbd", "rbd"),
    ("quobyte", "quobyte"),
    ("cephfs", "cephfs"),
    ("iscsi", "iscsi"),
    ("cinder", "cinder"),
    ("fc", "fc"),
    ("flexVolume", "flexVolume"),
    ("azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk"),
    ("scaleIO", "scaleIO"),
    ("local", "local"),
    ("storageos", "storageos"),
    ("csi", "csi"),
];

/// Rules of PersistentVolumes.
pub(in crate::kinds) struct Volume;

impl Strategy for Volume {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { returns_deleted: true, status: true, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        if let Some(spec) = object(obj, "spec") {
            set_text(spec, "persistentVolumeReclaimPolicy", "Retain");
            set(spec, "volumeMode", "Filesystem");
            if let Some(h) = spec.get_mut("hostPath").and_then(Value::as_object_mut) {
                set(h, "type", "");
            }
            crate::kinds::pod::default_volume_source(spec);
        }
        if let Value::Object(o) = obj {
            let status = o.entry("status").or_insert_with(|| json!({}));
            if let Some(s) = status.as_object_mut() {
                set_text(s, "phase", "Pending");
            }
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        let now = crate::time::format(jiff::Timestamp::now());
        obj["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": now});
    }

    /// A volume remembers when its phase changed last.
    fn prepare_status(&self, new: &mut Value, old: &Value) {
        carry(new, old, "spec");
        crate::kinds::carry_meta(new, old, &["ownerReferences", "generation"]);
        let given = new["status"]["lastPhaseTransitionTime"] != old["status"]["lastPhaseTransitionTime"];
        if new["status"]["phase"] != old["status"]["phase"] && !given {
            new["status"]["lastPhaseTransitionTime"] = crate::time::format(jiff::Timestamp::now()).into();
        }
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        validate_spec(&obj["spec"], &Path::new("spec"), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
        let path = Path::new("spec");
        let (n, o) = (&new["spec"], &old["spec"]);
        let source = |spec: &Value| KINDS.iter().map(|(k, _)| spec[*k].clone()).collect::<Vec<_>>();
        let mut compared = n.clone();
        const EXPAND: &str = "controllerExpandSecretRef";
        if given(o, "csi") && given(n, "csi") && !given(&o["csi"], EXPAND) {
            carry(&mut compared["csi"], &o["csi"], EXPAND);
        }
        if source(&compared) != source(o) {
            let at = path.child("persistentvolumesource");
            errors.forbidden(&at, "spec.persistentvolumesource is immutable after creation\n");
        }
        let mut fixed = vec!["volumeMode"];
        if given(o, "nodeAffinity") {
            fixed.push("nodeAffinity");
        }
        for key in fixed {
            if n[key] != o[key] {
                errors.invalid(&path.child(key), n[key].clone(), IMMUTABLE);
            }
        }
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>, out: &mut Vec<String>) {
        old_class_warning(new, out);
        let (spec, path) = (&new["spec"], Path::new("spec"));
        if spec["persistentVolumeReclaimPolicy"] == "Recycle" {
            out.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".into());
        }
        let affinity = path.child("nodeAffinity");
        node_selector_warnings(&spec["nodeAffinity"]["required"], &affinity.child("required"), out);
        for (key, _) in KINDS.iter().filter(|(k, _)| given(spec, k)) {
            if let Some(why) = retired_volume(key) {
                out.push(format!("{}: {why}", path.child(key)));
            }
        }
    }
}

fn validate_spec(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    if list(spec, "accessModes").is_empty() {
        errors.required(&path.child("accessModes"), "");
    }
    access_modes(spec, path, errors);
    let at = path.child("capacity");
    let capacity = spec["capacity"].as_object();
    let names = capacity.map_or(0, serde_json::Map::len);
    if names == 0 {
        errors.required(&at, "");
    }
    if names != 1 || capacity.is_some_and(|c| !c.contains_key("storage")) {
        let shown = capacity.map_or(Value::Null, |c| Value::Object(c.clone()));
        errors.not_supported(&at, shown, &["storage"]);
    }
    for (name, v) in capacity.into_iter().flatten() {
        if let Some(q) = quantity(v) {
            amount(&q, &at.key(name), errors);
            more_than_zero(&q, &at.key(name), errors);
        }
    }
    one_of(spec, "persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"], path, errors);
    if given(spec, "nodeAffinity") {
        let at = path.child("nodeAffinity");
        if given(&spec["nodeAffinity"], "required") {
            validate_node_selector(&spec["nodeAffinity"]["required"], &at.child("required"), errors);
        } else {
            errors.required(&at.child("required"), "must specify required node constraints");
        }
    }
    source(spec, path, errors);
    let slash = !text(&spec["hostPath"], "path").is_empty() && root(text(&spec["hostPath"], "path"));
    if slash && spec["persistentVolumeReclaimPolicy"] == "Recycle" {
        let at = path.child("persistentVolumeReclaimPolicy");
        errors.forbidden(&at, "may not be 'recycle' for a hostPath mount of '/'");
    }
    subdomain_if_given(spec, "storageClassName", path, errors);
    one_of(spec, "volumeMode", &["Block", "Filesystem"], path, errors);
    if given(spec, "volumeAttributesClassName") {
        let at = path.child("volumeAttributesClassName");
        if text(spec, "volumeAttributesClassName").is_empty() {
            errors.required(&at, "an empty string is disallowed");
        }
        subdomain_if_given(spec, "volumeAttributesClassName", path, errors);
        if !given(spec, "csi") {
            errors.required(&path.child("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
}

/// Whether a path is the root directory.
fn root(p: &str) -> bool {
    p.starts_with('/') && p.split('/').all(|part| matches!(part, "" | "."))
}

fn source(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let mut count = 0;
    for (key, shown) in KINDS {
        if !given(spec, key) {
            continue;
        }
        let at = path.child(shown);
        if count > 0 {
            errors.forbidden(&at, "may not specify more than 1 volume type");
            continue;
        }
        count += 1;
        let s = &spec[*key];
        match *key {
            "local" => {
                if need(s, "path", &at, errors) && text(s, "path").split('/').any(|p| p == "..") {
                    errors.invalid(&at.child("path"), text(s, "path"), "must not contain '..'");
                }
                if !given(spec, "nodeAffinity") {
                    errors.required(&path.child("nodeAffinity"), "Local volume requires node affinity");
                }
            }
            "csi" => csi(s, &at, errors),
            _ => validate_volume_source(key, s, &at, errors),
        }
        if *key == "azureFile" && given(s, "secretNamespace") {
            need(s, "secretNamespace", &at, errors);
        }
    }
    if count == 0 {
        errors.required(path, "must specify a volume type");
    }
}

fn csi(s: &Value, at: &Path<'_>, errors: &mut Errors) {
    super::csi::driver_name(text(s, "driver"), &at.child("driver"), errors);
    need(s, "volumeHandle", at, errors);
    for key in
        ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"]
    {
        if given(s, key) {
            let here = at.child(key);
            for (part, rule) in [
                ("name", names::is_dns1123_subdomain as fn(&str) -> Vec<String>),
                ("namespace", names::is_dns1123_label),
            ] {
                match text(&s[key], part) {
                    "" => errors.required(&here.child(part), ""),
                    given => complain(&here.child(part), given, rule(given), errors),
                }
            }
        }
    }
}
