//! What makes a pod of a StatefulSet itself: its name, its number, its claims.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use crate::controllers::family;
use crate::controllers::revisions::REVISION;
use crate::runtime::controller_ref;

/// Label with the pod's own name: a Service can select one pod.
pub const NAME: &str = "statefulset.kubernetes.io/pod-name";
/// Label with the pod's number.
pub const INDEX: &str = "apps.kubernetes.io/pod-index";

/// The number in a pod's name, when the pod is called after the set.
#[must_use]
pub fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let (parent, number) = pod.rsplit_once('-')?;
    let plain = number == "0" || !number.starts_with(['0', '+', '-']);
    (parent == set && plain).then(|| number.parse().ok())?
}

/// The name of a pod.
#[must_use]
pub fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.name_any())
}

/// Labels that a pod has for being itself.
#[must_use]
pub fn labels(set: &StatefulSet, ordinal: i32) -> BTreeMap<String, String> {
    [(NAME.to_owned(), pod_name(set, ordinal)), (INDEX.to_owned(), ordinal.to_string())].into()
}

/// The pod of a number, from a revision's template.
#[must_use]
pub fn pod(set: &StatefulSet, template: &PodTemplateSpec, ordinal: i32, revision: &str) -> Pod {
    let mut pod = family::pod_from(set, template);
    let name = pod_name(set, ordinal);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let all = pod.metadata.labels.get_or_insert_default();
    all.extend(labels(set, ordinal));
    all.insert(REVISION.into(), revision.to_owned());
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(name);
        spec.subdomain = set.spec.service_name.clone().filter(|s| !s.is_empty());
        let claims = claims(set, ordinal);
        let own = |v: &Volume| claims.iter().any(|(template, _)| *template == v.name);
        let others: Vec<Volume> = spec.volumes.take().into_iter().flatten().filter(|v| !own(v)).collect();
        let mine = claims.iter().map(|(template, claim)| Volume {
            name: template.clone(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.name_any(),
                read_only: Some(false),
            }),
            ..Volume::default()
        });
        spec.volumes = Some(mine.chain(others).collect()).filter(|v: &Vec<Volume>| !v.is_empty());
    }
    pod
}

/// The claims of a pod, each with the name of its template.
#[must_use]
pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<(String, PersistentVolumeClaim)> {
    let templates = set.spec.volume_claim_templates.as_ref();
    let selected = set.spec.selector.match_labels.clone().unwrap_or_default();
    let one = |t: &PersistentVolumeClaim| {
        let template = t.name_any();
        let mut claim = t.clone();
        claim.status = None;
        claim.metadata.name = Some(format!("{template}-{}-{ordinal}", set.name_any()));
        claim.metadata.namespace = set.namespace();
        claim.metadata.labels.get_or_insert_default().extend(selected.clone());
        claim.metadata.creation_timestamp = None;
        (template, claim)
    };
    templates.into_iter().flatten().map(one).collect()
}

/// Whether claims go when the set is deleted, and when their pod is scaled away.
#[must_use]
pub fn retention(set: &StatefulSet) -> (bool, bool) {
    let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
    let deletes = |v: Option<&String>| v.is_some_and(|v| v == "Delete");
    policy.map_or((false, false), |p| (deletes(p.when_deleted.as_ref()), deletes(p.when_scaled.as_ref())))
}

/// The owners that a claim should have: the set, or the pod that is scaled away, as the policy says. None when it has
/// them, or when somebody else controls it.
#[must_use]
pub fn owners(
    set: &StatefulSet,
    pod: &Pod,
    condemned: bool,
    claim: &PersistentVolumeClaim,
) -> Option<Vec<OwnerReference>> {
    let (when_deleted, when_scaled) = retention(set);
    let wanted = match (when_deleted, when_scaled, condemned) {
        (_, true, true) => Some(controller_ref(pod)),
        (true, _, _) => Some(controller_ref(set)),
        _ => None,
    };
    let present = claim.meta().owner_references.clone().unwrap_or_default();
    let ours =
        |r: &OwnerReference| Some(&r.uid) == set.metadata.uid.as_ref() || (r.kind == "Pod" && r.name == pod.name_any());
    if present.iter().any(|r| r.controller == Some(true) && !ours(r)) {
        return None;
    }
    let mut next: Vec<OwnerReference> = present.iter().filter(|r| !ours(r)).cloned().collect();
    next.extend(wanted);
    (next != present).then_some(next)
}

/// Whether a claim is about to go with a pod that was there before: a new pod must wait for a new claim.
#[must_use]
pub fn stale(claim: &PersistentVolumeClaim, pod_name: &str, pod_uid: Option<&str>) -> bool {
    let of_old = |r: &OwnerReference| r.kind == "Pod" && r.name == pod_name && Some(r.uid.as_str()) != pod_uid;
    claim.metadata.owner_references.iter().flatten().any(of_old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(extra: Value) -> StatefulSet {
        let mut spec = json!({"serviceName": "svc", "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [], "volumes": [{"name": "data"}, {"name": "x"}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]});
        for (k, v) in extra.as_object().unwrap() {
            spec[k] = v.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "db", "namespace": "ns", "uid": "u"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn numbers_in_names() {
        for (pod, want) in [
            ("db-0", Some(0)),
            ("db-12", Some(12)),
            ("db-01", None),
            ("db--1", None),
            ("db-x", None),
            ("other-1", None),
            ("db-1-2", None),
            ("db-99999999999", None),
        ] {
            assert_eq!(ordinal("db", pod), want, "{pod}");
        }
    }

    #[test]
    fn a_pod_is_itself() {
        let s = set(json!({}));
        let template = s.spec.template.clone();
        let p = pod(&s, &template, 3, "db-hash");
        assert_eq!(p.name_any(), "db-3");
        let l = p.labels();
        assert_eq!((l[NAME].as_str(), l[INDEX].as_str(), l[REVISION].as_str()), ("db-3", "3", "db-hash"));
        let spec = p.spec.unwrap();
        assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("db-3"), Some("svc")));
        let volumes = spec.volumes.unwrap();
        assert_eq!(volumes.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["data", "x"]);
        assert_eq!(volumes[0].persistent_volume_claim.as_ref().unwrap().claim_name, "data-db-3");
        let (_, claim) = &claims(&s, 3)[0];
        assert_eq!((claim.name_any().as_str(), claim.labels()["a"].as_str()), ("data-db-3", "b"));
    }

    #[test]
    fn who_owns_a_claim() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "db-1", "uid": "p"}})).unwrap();
        let claim = |owners: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"name": "c", "ownerReferences": owners}})).unwrap()
        };
        let policy = |deleted: &str, scaled: &str| {
            set(json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled}}))
        };
        for (deleted, scaled, condemned, want) in [
            ("Retain", "Retain", true, None),
            ("Delete", "Retain", false, Some("StatefulSet")),
            ("Delete", "Retain", true, Some("StatefulSet")),
            ("Retain", "Delete", false, None),
            ("Retain", "Delete", true, Some("Pod")),
            ("Delete", "Delete", true, Some("Pod")),
            ("Delete", "Delete", false, Some("StatefulSet")),
        ] {
            let s = policy(deleted, scaled);
            let next = owners(&s, &pod, condemned, &claim(json!([])));
            let kind = next.as_ref().map(|o| o[0].kind.as_str());
            assert_eq!(kind, want, "{deleted} {scaled} {condemned}");
            if let Some(o) = next {
                let there = claim(serde_json::to_value(o).unwrap());
                assert_eq!(owners(&s, &pod, condemned, &there), None, "nothing to change then");
            }
        }
        let foreign = json!([{"kind": "Backup", "apiVersion": "v1", "name": "x", "uid": "x", "controller": true}]);
        assert_eq!(owners(&policy("Delete", "Delete"), &pod, true, &claim(foreign)), None);
        let old = claim(json!([{"kind": "Pod", "apiVersion": "v1", "name": "db-1", "uid": "before"}]));
        assert!(stale(&old, "db-1", Some("p")) && !stale(&old, "db-1", Some("before")));
    }
}
