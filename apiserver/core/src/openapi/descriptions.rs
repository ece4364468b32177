//! Prose of the built-in models, as k8s-openapi has it.
//!
//! It is kept as text (descriptions.txt) that a test makes from those types: what makes it would be a larger part of the program
//! than the text is. `SKIFF_UPDATE=1 cargo test -p skiff-core descriptions` writes it anew.

/// A line per model and per field: the model, the field (nothing for the model itself) and the prose as a JSON string, sorted by
/// the first two.
static TEXT: &str = include_str!("descriptions.txt");

/// The description of a model.
pub(super) fn model(model: &str) -> Option<String> {
    field(model, "")
}

/// The description of a field.
pub(super) fn field(model: &str, field: &str) -> Option<String> {
    let (mut from, mut to) = (0, TEXT.len());
    while from < to {
        // The line that the middle is in.
        let middle = from + (to - from) / 2;
        let begin = TEXT.as_bytes()[..middle].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let end = TEXT.as_bytes()[middle..].iter().position(|b| *b == b'\n').map_or(TEXT.len(), |at| middle + at);
        let (of, rest) = TEXT.get(begin..end)?.split_once(' ')?;
        let (name, prose) = rest.split_once(' ')?;
        match (of, name).cmp(&(model, field)) {
            std::cmp::Ordering::Less => from = end + 1,
            std::cmp::Ordering::Greater => to = begin,
            std::cmp::Ordering::Equal => return serde_json::from_str(prose).ok(),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use schemars::SchemaGenerator;
    use schemars::generate::SchemaSettings;
    use serde_json::Value;

    /// Reads the descriptions of a kind and of everything below it into a generator.
    type Root = fn(&mut SchemaGenerator);

    macro_rules! root {
        ([$($part:ident)+] $kind:ident) => {
            |generator| { generator.subschema_for::<k8s_openapi::$($part::)+$kind>(); }
        };
    }

    macro_rules! roots {
        ($($module:tt => [$($kind:ident),* $(,)?],)*) => {
            &[$($(root!($module $kind),)*)*]
        };
    }

    static ROOTS: &[Root] = roots! {
    [api admissionregistration v1] => [MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration],
    [api apps v1] => [ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet],
    [api authentication v1] => [SelfSubjectReview, TokenRequest, TokenReview],
    [api authorization v1] => [LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview],
    [api autoscaling v1] => [HorizontalPodAutoscaler, Scale],
    [api autoscaling v2] => [HorizontalPodAutoscaler],
    [api batch v1] => [CronJob, Job],
    [api certificates v1] => [CertificateSigningRequest, ClusterTrustBundle, PodCertificateRequest],
    [api coordination v1] => [Lease],
    [api core v1] => [Binding, ComponentStatus, ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodTemplate, ReplicationController, ResourceQuota, Secret, Service, ServiceAccount],
    [api discovery v1] => [EndpointSlice],
    [api events v1] => [Event],
    [api flowcontrol v1] => [FlowSchema, PriorityLevelConfiguration],
    [api networking v1] => [IPAddress, Ingress, IngressClass, NetworkPolicy, ServiceCIDR],
    [api node v1] => [RuntimeClass],
    [api policy v1] => [Eviction, PodDisruptionBudget],
    [api rbac v1] => [ClusterRole, ClusterRoleBinding, Role, RoleBinding],
    [api resource v1] => [DeviceClass, DeviceTaintRule, ResourceClaim, ResourceClaimTemplate, ResourceSlice],
    [api scheduling v1] => [PriorityClass],
    [api storage v1] => [CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass],
    [api storagemigration v1] => [StorageVersionMigration],
    [apiextensions_apiserver pkg apis apiextensions v1] => [CustomResourceDefinition],
    [apimachinery pkg apis meta v1] => [APIGroup, APIGroupList, APIResourceList, APIVersions, DeleteOptions, ListMeta, Status],
    [kube_aggregator pkg apis apiregistration v1] => [APIService],};

    /// Every description by model and field.
    fn all() -> BTreeMap<(String, String), String> {
        let mut generator = SchemaSettings::draft07().into_generator();
        ROOTS.iter().for_each(|read| read(&mut generator));
        let text = |schema: &Value| schema.get("description").and_then(Value::as_str).map(str::to_owned);
        let mut out = BTreeMap::new();
        for (model, schema) in generator.definitions() {
            out.extend(text(schema).map(|t| ((model.clone(), String::new()), t)));
            let fields = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
            out.extend(fields.filter_map(|(name, s)| Some(((model.clone(), name.clone()), text(s)?))));
        }
        out
    }

    #[test]
    fn the_text_is_what_the_types_say() {
        let all = all();
        let made: String =
            all.iter().map(|((m, f), text)| format!("{m} {f} {}\n", Value::from(text.as_str()))).collect();
        if std::env::var_os("SKIFF_UPDATE").is_some_and(|v| v == "1") {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/openapi/descriptions.txt"), &made).unwrap();
            return;
        }
        assert!(made == super::TEXT, "run this with SKIFF_UPDATE=1");
        for ((model, field), text) in &all {
            assert_eq!(super::field(model, field).as_ref(), Some(text), "{model} {field}");
        }
        assert_eq!(super::field("io.k8s.api.core.v1.Pod", "nothing"), None);
        assert_eq!(super::model(""), None);
        assert_eq!(super::model("~"), None);
    }
}
