//! Volume sources, kind by kind.

use serde_json::Value;

use super::volumes::{descending, no_back_steps};
use super::{complain, env, given, list, need, one_of, text};
use crate::invalid::Errors;
use crate::names;
use crate::path::Path;
use crate::quantity::Quantity;

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
/// Fields a downward API volume may show.
const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Checks source `s` of the given kind.
pub(in crate::kinds) fn validate(kind: &str, s: &Value, at: &Path<'_>, errors: &mut Errors) {
    for key in required(kind) {
        if s[*key].is_array() || matches!(*key, "monitors") {
            if list(s, key).is_empty() {
                errors.required(&at.child(key), "");
            }
        } else {
            need(s, key, at, errors);
        }
    }
    match kind {
        "emptyDir" => {
            let size = s["sizeLimit"].as_str().and_then(|q| Quantity::parse(q).ok());
            if size.is_some_and(|q| q.sign() < 0) {
                errors.forbidden(&at.child("sizeLimit"), "SizeLimit field must be a valid resource quantity");
            }
        }
        // Without a path nothing more is looked at.
        "hostPath" if text(s, "path").is_empty() => {}
        "hostPath" => {
            no_back_steps(text(s, "path"), &at.child("path"), errors);
            let types =
                ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
            one_of(s, "type", &types, at, errors);
        }
        "gitRepo" => descending(text(s, "directory"), &at.child("directory"), errors),
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            between(s, "partition", i64::from(kind != "gcePersistentDisk"), 255, at, errors);
        }
        "nfs" if !text(s, "path").starts_with('/') => {
            errors.invalid(&at.child("path"), text(s, "path"), "must be an absolute path");
        }
        "iscsi" => iscsi(s, at, errors),
        "fc" => fibre(s, at, errors),
        "flocker" => flocker(s, at, errors),
        "quobyte" => {
            let (registry, here) = (text(s, "registry"), at.child("registry"));
            let why = "must be a host:port pair or multiple pairs separated by commas";
            if registry.is_empty() {
                errors.required(&here, why);
            } else if text(s, "tenant").len() >= 65 {
                let why = "must be a UUID and may not exceed a length of 64 characters";
                errors.required(&at.child("tenant"), why);
            } else {
                for _ in registry.split(',').filter(|pair| !is_host_port(pair)) {
                    errors.invalid(&here, registry, why);
                }
            }
            need(s, "volume", at, errors);
        }
        "azureDisk" => azure_disk(s, at, errors),
        "secret" | "configMap" => {
            mode(s, "defaultMode", at, errors);
            items(s, at, errors);
        }
        "downwardAPI" => {
            mode(s, "defaultMode", at, errors);
            for f in list(s, "items") {
                downward_file(f, at, errors);
            }
        }
        "projected" => projected(s, at, errors),
        "csi" => csi(s, at, errors),
        "ephemeral" => claim_template(s, at, errors),
        "image" => one_of(s, "pullPolicy", &["Always", "IfNotPresent", "Never"], at, errors),
        _ => {}
    }
}

/// `host:port`, the host in brackets where it has colons itself.
fn is_host_port(pair: &str) -> bool {
    match pair.strip_prefix('[') {
        Some(rest) => rest.split_once(']').is_some_and(|(_, port)| port.starts_with(':') && !port[1..].contains(':')),
        None => pair.matches(':').count() == 1,
    }
}

/// Fields that a kind cannot do without.
fn required(kind: &str) -> &'static [&'static str] {
    match kind {
        "hostPath" => &["path"],
        "gitRepo" => &["repository"],
        "gcePersistentDisk" => &["pdName"],
        "awsElasticBlockStore" | "cinder" | "portworxVolume" => &["volumeID"],
        "nfs" => &["server", "path"],
        "iscsi" => &["targetPortal", "iqn"],
        "rbd" => &["monitors", "image"],
        "cephfs" => &["monitors"],
        "flexVolume" => &["driver"],
        "glusterfs" => &["endpoints", "path"],
        "scaleIO" => &["gateway", "system", "volumeName"],
        "storageos" => &["volumeName"],
        "azureFile" => &["secretName", "shareName"],
        "azureDisk" => &["diskName", "diskURI"],
        "vsphereVolume" => &["volumePath"],
        "photonPersistentDisk" => &["pdID"],
        "persistentVolumeClaim" => &["claimName"],
        "secret" => &["secretName"],
        "configMap" => &["name"],
        "csi" => &["driver"],
        "image" => &["reference"],
        _ => &[],
    }
}

fn between(s: &Value, key: &str, low: i64, high: i64, at: &Path<'_>, errors: &mut Errors) {
    // Zero counts as not given.
    if let Some(n) = s[key].as_i64().filter(|n| *n != 0 && !(low..=high).contains(n)) {
        errors.invalid(&at.child(key), n, format!("must be between {low} and {high}, inclusive"));
    }
}

fn mode(s: &Value, key: &str, at: &Path<'_>, errors: &mut Errors) {
    if let Some(n) = s[key].as_i64().filter(|n| !(0..=0o777).contains(n)) {
        errors.invalid(&at.child(key), n, MODE);
    }
}

/// A path in a volume that the kubelet fills: it keeps names that begin with `..` for itself.
fn local_path(p: &str, at: &Path<'_>, errors: &mut Errors) {
    let before = errors.len();
    descending(p, at, errors);
    if errors.len() == before && p.starts_with("..") {
        errors.invalid(at, p, "must not start with '..'");
    }
}

fn items(s: &Value, at: &Path<'_>, errors: &mut Errors) {
    let at = at.child("items");
    for (i, item) in list(s, "items").iter().enumerate() {
        let here = at.index(i);
        need(item, "key", &here, errors);
        need(item, "path", &here, errors);
        local_path(text(item, "path"), &here.child("path"), errors);
        mode(item, "mode", &here, errors);
    }
}

/// One file of a downward API volume. Upstream names the volume, not the item.
fn downward_file(f: &Value, at: &Path<'_>, errors: &mut Errors) {
    need(f, "path", at, errors);
    local_path(text(f, "path"), &at.child("path"), errors);
    if given(f, "fieldRef") {
        env::field_ref(&f["fieldRef"], VOLUME_FIELDS, &at.child("fieldRef"), errors);
        if given(f, "resourceFieldRef") {
            errors.invalid(at, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously");
        }
    } else if given(f, "resourceFieldRef") {
        env::resource_ref(&f["resourceFieldRef"], true, &at.child("resourceFieldRef"), errors);
    } else {
        errors.required(at, "one of fieldRef and resourceFieldRef is required");
    }
    mode(f, "mode", at, errors);
}

fn projected(s: &Value, at: &Path<'_>, errors: &mut Errors) {
    const TWICE: &str = "conflicting duplicate paths";
    mode(s, "defaultMode", at, errors);
    let sources = at.child("sources");
    let mut paths: Vec<&str> = vec![];
    for (i, source) in list(s, "sources").iter().enumerate() {
        let here = sources.index(i);
        let mut count = 0;
        for kind in
            ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"]
        {
            if !given(source, kind) {
                continue;
            }
            let (v, one) = (&source[kind], here.child(kind));
            count += 1;
            match kind {
                "secret" | "configMap" => {
                    need(v, "name", &one, errors);
                    items(v, &one, errors);
                    for item in list(v, "items") {
                        let p = text(item, "path");
                        if !p.is_empty() && paths.contains(&p) {
                            errors.invalid(at, text(v, "name"), TWICE);
                        }
                        paths.push(p);
                    }
                }
                "downwardAPI" => {
                    for f in list(v, "items") {
                        downward_file(f, &one, errors);
                        let p = text(f, "path");
                        if !p.is_empty() && paths.contains(&p) {
                            errors.invalid(at, p, TWICE);
                        }
                        paths.push(p);
                    }
                }
                "serviceAccountToken" => {
                    let seconds = v["expirationSeconds"].as_i64().unwrap_or(3600);
                    let life = one.child("expirationSeconds");
                    if seconds < 600 {
                        errors.invalid(&life, seconds, "may not specify a duration less than 10 minutes");
                    }
                    if seconds > 1 << 32 {
                        errors.invalid(&life, seconds, "may not specify a duration larger than 2^32 seconds");
                    }
                    own_path(v, at, &mut paths, errors);
                }
                "podCertificate" => {
                    pod_certificate(v, &one, errors);
                    own_path(v, at, &mut paths, errors);
                }
                _ => own_path(v, at, &mut paths, errors),
            }
        }
        if count > 1 {
            errors.forbidden(&here, "may not specify more than 1 volume type per source");
        }
    }
}

/// Longest life of a pod's certificate that may be asked for: 91 days; of Kubernetes' own signers a day.
const LONGEST: [i64; 2] = [91 * 86400, 86400];

fn pod_certificate(v: &Value, at: &Path<'_>, errors: &mut Errors) {
    const KEYS: [&str; 6] = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
    one_of(v, "keyType", &KEYS, at, errors);
    let Some(n) = v["maxExpirationSeconds"].as_i64() else { return };
    let at = at.child("maxExpirationSeconds");
    if n < 3600 {
        errors.invalid(&at, n, "if provided, maxExpirationSeconds must be >= 3600");
    }
    let most = LONGEST[usize::from(text(v, "signerName").starts_with("kubernetes.io/"))];
    if n > most {
        errors.invalid(&at, n, format!("if provided, maxExpirationSeconds must be <= {most}"));
    }
}

/// The path of a source that is one file.
fn own_path<'a>(v: &'a Value, at: &Path<'_>, paths: &mut Vec<&'a str>, errors: &mut Errors) {
    let keys = ["path", "credentialBundlePath", "keyPath", "certificateChainPath"];
    let given_paths: Vec<&str> = keys.iter().map(|k| text(v, k)).filter(|p| !p.is_empty()).collect();
    if given_paths.is_empty() {
        errors.required(&at.child("path"), "");
    }
    for p in given_paths {
        local_path(p, &at.child("path"), errors);
        if paths.contains(&p) {
            errors.invalid(at, p, "conflicting duplicate paths");
        }
        paths.push(p);
    }
}

fn csi(s: &Value, at: &Path<'_>, errors: &mut Errors) {
    let driver = text(s, "driver");
    if !driver.is_empty() {
        let here = at.child("driver");
        if driver.len() > 63 {
            errors.too_long(&here, 63);
        }
        complain(&here, driver, names::is_dns1123_subdomain(&driver.to_lowercase()), errors);
    }
    if given(s, "nodePublishSecretRef") {
        need(&s["nodePublishSecretRef"], "name", &at.child("nodePublishSecretRef"), errors);
    }
}

fn claim_template(s: &Value, at: &Path<'_>, errors: &mut Errors) {
    let t = &s["volumeClaimTemplate"];
    let at = at.child("volumeClaimTemplate");
    if t.is_null() {
        errors.required(&at, "");
        return;
    }
    let meta_at = at.child("metadata");
    for (key, v) in t["metadata"].as_object().into_iter().flatten() {
        let empty = v.is_null() || v == "" || v.as_object().is_some_and(serde_json::Map::is_empty);
        if !matches!(key.as_str(), "labels" | "annotations") && !empty {
            errors.forbidden(&meta_at.child(key), "cannot be set");
        }
    }
    names::validate_labels(t["metadata"]["labels"].as_object(), &meta_at.child("labels"), errors);
    names::validate_annotations(t["metadata"]["annotations"].as_object(), &meta_at.child("annotations"), errors);
    crate::kinds::storage::validate_claim_spec(&t["spec"], &at.child("spec"), errors);
}

fn iscsi(s: &Value, at: &Path<'_>, errors: &mut Errors) {
    let iqn = text(s, "iqn");
    if !iqn.is_empty() && !["iqn", "eui", "naa"].iter().any(|p| iqn.starts_with(p)) {
        errors.invalid(&at.child("iqn"), iqn, "must be valid format starting with iqn, eui, or naa");
    }
    between(s, "lun", 0, 255, at, errors);
    if (s["chapAuthDiscovery"] == true || s["chapAuthSession"] == true) && !given(s, "secretRef") {
        errors.required(&at.child("secretRef"), "");
    }
}

fn fibre(s: &Value, at: &Path<'_>, errors: &mut Errors) {
    let here = at.child("targetWWNs");
    let (targets, ids) = (list(s, "targetWWNs"), list(s, "wwids"));
    match (targets.is_empty(), ids.is_empty()) {
        (true, true) => errors.required(&here, "must specify either targetWWNs or wwids, but not both"),
        (false, false) => {
            errors.invalid(&here, targets.to_vec(), "targetWWNs and wwids can not be specified simultaneously");
        }
        _ => {}
    }
    if !targets.is_empty() {
        if given(s, "lun") {
            between(s, "lun", 0, 255, at, errors);
        } else {
            errors.required(&at.child("lun"), "lun is required if targetWWNs is specified");
        }
    }
}

fn flocker(s: &Value, at: &Path<'_>, errors: &mut Errors) {
    let (name, uuid) = (text(s, "datasetName"), text(s, "datasetUUID"));
    if name.is_empty() && uuid.is_empty() {
        errors.required(at, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        errors.invalid(at, "resource", "datasetName and datasetUUID can not be specified simultaneously");
    }
    if name.contains('/') {
        errors.invalid(&at.child("datasetName"), name, "must not contain '/'");
    }
}

fn azure_disk(s: &Value, at: &Path<'_>, errors: &mut Errors) {
    one_of(s, "cachingMode", &["None", "ReadOnly", "ReadWrite"], at, errors);
    let uri = text(s, "diskURI");
    let (start, shown) = if text(s, "kind") == "Managed" {
        (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        )
    } else {
        ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd")
    };
    one_of(s, "kind", &["Dedicated", "Managed", "Shared"], at, errors);
    if !uri.starts_with(start) {
        errors.not_supported(&at.child("diskURI"), uri, &[shown]);
    }
}
