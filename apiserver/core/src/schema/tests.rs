#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn lookups_find_what_the_table_holds() {
    assert!(models().is_sorted_by(|a, b| a.name < b.name));
    for m in models() {
        assert_eq!(model(&m.name).map(|s| &s.name), Some(&m.name));
    }
    for (g, v, k, s) in kinds() {
        assert_eq!(kind(g, v, k).map(|s| &s.name), Some(&s.name));
    }
    assert!(model("io.k8s.api.core.v1.Nothing").is_none());
}

/// Facts of each source of the generator: Go tags, published definitions, defaults.
#[test]
fn facts() {
    let spec = model("io.k8s.api.core.v1.PodSpec").unwrap();
    let containers = spec.field("containers").unwrap();
    assert_eq!((containers.number, containers.presence, containers.required), (2, Presence::Always, true));
    assert_eq!((containers.patch, containers.merge_key.as_deref()), (PatchStrategy::Merge, Some("name")));
    assert_eq!((containers.list, &*containers.list_keys), (ListType::Map, &[Cow::Borrowed("name")][..]));
    assert!(spec.field("nodeSelector").unwrap().atomic);
    let claim = model("io.k8s.api.core.v1.PersistentVolumeSpec").unwrap().field("claimRef").unwrap();
    assert!(claim.granular && matches!(&claim.shape, Shape::Struct(s) if s.atomic));
    let port = model("io.k8s.api.core.v1.ServicePort").unwrap().field("protocol").unwrap();
    assert_eq!(port.default.as_deref(), Some("\"TCP\""));
    let volume = model("io.k8s.api.core.v1.Volume").unwrap().field("configMap").unwrap();
    assert_eq!(volume.within, [2]);
    assert!(model("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector").unwrap().atomic);
    let selector = model("io.k8s.api.apps.v1.DeploymentSpec").unwrap().field("selector").unwrap();
    assert_eq!(selector.presence, Presence::Nullable);
}
