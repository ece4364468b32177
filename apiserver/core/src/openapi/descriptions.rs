//! Prose of the built-in models, taken from k8s-openapi.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::Value;

/// Reads the descriptions of a kind and of everything below it into a generator.
type Root = fn(&mut SchemaGenerator);

macro_rules! root {
    ([$($part:ident)+] $kind:ident) => {(
        concat!($(stringify!($part), ".",)+ stringify!($kind)),
        |generator| { generator.subschema_for::<k8s_openapi::$($part::)+$kind>(); },
    )};
}

macro_rules! roots {
    ($($module:tt => [$($kind:ident),* $(,)?],)*) => {
        &[$($(root!($module $kind),)*)*]
    };
}

/// By the end of a model's name (in which upstream writes `-` for `_`).
static ROOTS: &[(&str, Root)] = roots! {
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
[apimachinery pkg apis meta v1] => [APIGroup, APIGroupList, APIResourceList, APIVersions, DeleteOptions, ListMeta, ObjectMeta, Status],
[kube_aggregator pkg apis apiregistration v1] => [APIService],};

/// Descriptions, read as they are needed.
pub(super) struct Descriptions {
    generator: SchemaGenerator,
}

impl Descriptions {
    pub(super) fn new() -> Self {
        Self { generator: SchemaSettings::draft07().into_generator() }
    }

    /// The description of a model.
    pub(super) fn model(&mut self, model: &str) -> Option<String> {
        text(self.schema(model)?)
    }

    /// The description of a field.
    pub(super) fn field(&mut self, model: &str, field: &str) -> Option<String> {
        text(self.schema(model)?.get("properties")?.get(field)?)
    }

    fn schema(&mut self, model: &str) -> Option<&Value> {
        if !self.generator.definitions().contains_key(model) {
            let plain = model.strip_prefix("io.k8s.")?.replace('-', "_");
            let (_, read) = ROOTS.iter().find(|(name, _)| *name == plain)?;
            read(&mut self.generator);
        }
        self.generator.definitions().get(model)
    }
}

fn text(schema: &Value) -> Option<String> {
    schema.get("description")?.as_str().map(str::to_owned)
}
