//! StorageObjectInUseProtection, DefaultStorageClass, PersistentVolumeClaimResize, DefaultIngressClass.

use serde_json::{Value, json};
use skiff_core::quantity::Quantity;
use skiff_core::status::Status;

use super::{Operation, Review};

/// Volumes and claims get the finalizer that keeps them while in use.
pub(super) fn protect(r: &Review<'_>, obj: &mut Value) {
    if r.operation != Operation::Create || !r.subresource().is_empty() {
        return;
    }
    let finalizer = match (r.kind.group(), r.kind.plural()) {
        ("", "persistentvolumes") => "kubernetes.io/pv-protection",
        ("", "persistentvolumeclaims") => "kubernetes.io/pvc-protection",
        ("storage.k8s.io", "volumeattributesclasses") => "kubernetes.io/vac-protection",
        _ => return,
    };
    let m = skiff_core::meta::meta_mut(obj);
    match m.get_mut("finalizers").and_then(Value::as_array_mut) {
        Some(l) if !l.iter().any(|f| f == finalizer) => l.push(finalizer.into()),
        Some(_) => {}
        None => drop(m.insert("finalizers".into(), json!([finalizer]))),
    }
}

/// A claim grows only when it is bound and its class allows it.
pub(super) fn check_resize(r: &Review<'_>, obj: &Value) -> Result<(), Status> {
    let (Some(old), true) = (r.old, r.is("", "persistentvolumeclaims")) else { return Ok(()) };
    let size = |v: &Value| Quantity::parse(v["spec"]["resources"]["requests"]["storage"].as_str()?).ok();
    if r.operation != Operation::Update || !r.subresource().is_empty() || size(obj) <= size(old) {
        return Ok(());
    }
    if old["status"]["phase"] != "Bound" {
        return Err(r.forbidden(obj, "Only bound persistent volume claims can be expanded"));
    }
    let old_way = obj["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].as_str();
    let class = old_way.or(obj["spec"]["storageClassName"].as_str()).unwrap_or_default();
    let found = r.server.peek("storage.k8s.io", "storageclasses", "", class);
    if found.is_some_and(|c| c["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
    Err(r.forbidden(obj, why))
}

/// Picks the classes annotated as default.
pub(super) fn default_classes(r: &Review<'_>, obj: &mut Value, _warnings: &mut Vec<String>) -> Result<(), Status> {
    if r.operation != Operation::Create || !r.subresource().is_empty() {
        return Ok(());
    }
    let is_default = |c: &Value, key: &str| c["metadata"]["annotations"][key] == "true";
    if r.is("", "persistentvolumeclaims") {
        let beta = obj["metadata"]["annotations"].get("volume.beta.kubernetes.io/storage-class").is_some();
        if obj["spec"].get("storageClassName").is_some() || beta {
            return Ok(());
        }
        let classes = r.server.collection("storage.k8s.io", "storageclasses")?.values();
        let keys = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
        // The newest wins, then the first by name.
        let newest = classes.into_iter().filter(|c| keys.iter().any(|k| is_default(c, k))).max_by(|a, b| {
            let (ta, tb) = (&a["metadata"]["creationTimestamp"], &b["metadata"]["creationTimestamp"]);
            ta.as_str().cmp(&tb.as_str()).then_with(|| skiff_core::meta::name(b).cmp(skiff_core::meta::name(a)))
        });
        if let Some(c) = newest {
            obj["spec"]["storageClassName"] = skiff_core::meta::name(&c).into();
        }
    }
    if r.is("networking.k8s.io", "ingresses") {
        let old = obj["metadata"]["annotations"].get("kubernetes.io/ingress.class").is_some();
        if obj["spec"].get("ingressClassName").is_some() || old {
            return Ok(());
        }
        let classes = r.server.collection("networking.k8s.io", "ingressclasses")?.values();
        let mut found: Vec<_> =
            classes.into_iter().filter(|c| is_default(c, "ingressclass.kubernetes.io/is-default-class")).collect();
        found.sort_by(|a, b| {
            let (ta, tb) = (&a["metadata"]["creationTimestamp"], &b["metadata"]["creationTimestamp"]);
            tb.as_str().cmp(&ta.as_str()).then_with(|| skiff_core::meta::name(a).cmp(skiff_core::meta::name(b)))
        });
        if let Some(c) = found.first() {
            obj["spec"]["ingressClassName"] = skiff_core::meta::name(c).into();
        }
    }
    Ok(())
}
