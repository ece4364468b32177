//! What a v1.37 server serves by default: groups and versions in the order of discovery, resources by name.
//!
//! Facts recorded from upstream's aggregated discovery; a table, exempt from the limit on file length.

use super::Verbs;

/// A resource of a group-version. The singular name is the kind in lower case, for every one of them.
pub(super) struct Row {
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
    pub(super) namespaced: bool,
    pub(super) verbs: Verbs,
    /// Separated by spaces, as are the categories.
    pub(super) short_names: &'static str,
    pub(super) categories: &'static str,
    pub(super) subresources: &'static [SubRow],
}

pub(super) struct SubRow {
    pub(super) name: &'static str,
    /// Group and version of the kind, where it lives elsewhere.
    pub(super) elsewhere: Option<(&'static str, &'static str)>,
    pub(super) kind: &'static str,
    pub(super) verbs: Verbs,
}

const NAMESPACED: bool = true;
const CLUSTER: bool = false;
const ALL: Verbs = Verbs::ALL;
const CREATE: Verbs = Verbs::CREATE;
const GET: Verbs = Verbs::GET;
const UPDATE: Verbs = Verbs::UPDATE;
const STATUS: Verbs = Verbs::GET.and(Verbs::PATCH).and(Verbs::UPDATE);
const STREAM: Verbs = Verbs::CREATE.and(Verbs::GET);
const READ: Verbs = Verbs::GET.and(Verbs::LIST);
const PROXY: Verbs = STATUS.and(Verbs::CREATE).and(Verbs::DELETE);
const NO_COLLECTION: Verbs = PROXY.and(Verbs::LIST).and(Verbs::WATCH);

const fn row(
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
    verbs: Verbs,
    short_names: &'static str,
    categories: &'static str,
    subresources: &'static [SubRow],
) -> Row {
    Row { plural, kind, namespaced, verbs, short_names, categories, subresources }
}

const fn sub(name: &'static str, kind: &'static str, verbs: Verbs) -> SubRow {
    SubRow { name, elsewhere: None, kind, verbs }
}

const fn elsewhere(
    name: &'static str,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    verbs: Verbs,
) -> SubRow {
    SubRow { name, elsewhere: Some((group, version)), kind, verbs }
}

#[rustfmt::skip]
pub(super) static GROUP_VERSIONS: &[(&str, &str, &[Row])] = &[
    ("", "v1", &[
        row("bindings", "Binding", NAMESPACED, CREATE, "", "", &[]),
        row("componentstatuses", "ComponentStatus", CLUSTER, READ, "cs", "", &[]),
        row("configmaps", "ConfigMap", NAMESPACED, ALL, "cm", "", &[]),
        row("endpoints", "Endpoints", NAMESPACED, ALL, "ep", "", &[]),
        row("events", "Event", NAMESPACED, ALL, "ev", "", &[]),
        row("limitranges", "LimitRange", NAMESPACED, ALL, "limits", "", &[]),
        row("namespaces", "Namespace", CLUSTER, NO_COLLECTION, "ns", "", &[
            sub("finalize", "Namespace", UPDATE),
            sub("status", "Namespace", STATUS),
        ]),
        row("nodes", "Node", CLUSTER, ALL, "no", "", &[
            sub("proxy", "NodeProxyOptions", PROXY),
            sub("status", "Node", STATUS),
        ]),
        row("persistentvolumeclaims", "PersistentVolumeClaim", NAMESPACED, ALL, "pvc", "", &[
            sub("status", "PersistentVolumeClaim", STATUS),
        ]),
        row("persistentvolumes", "PersistentVolume", CLUSTER, ALL, "pv", "", &[
            sub("status", "PersistentVolume", STATUS),
        ]),
        row("pods", "Pod", NAMESPACED, ALL, "po", "all", &[
            sub("attach", "PodAttachOptions", STREAM),
            sub("binding", "Binding", CREATE),
            sub("ephemeralcontainers", "Pod", STATUS),
            elsewhere("eviction", "policy", "v1", "Eviction", CREATE),
            sub("exec", "PodExecOptions", STREAM),
            sub("log", "Pod", GET),
            sub("portforward", "PodPortForwardOptions", STREAM),
            sub("proxy", "PodProxyOptions", PROXY),
            sub("resize", "Pod", STATUS),
            sub("status", "Pod", STATUS),
        ]),
        row("podtemplates", "PodTemplate", NAMESPACED, ALL, "", "", &[]),
        row("replicationcontrollers", "ReplicationController", NAMESPACED, ALL, "rc", "all", &[
            elsewhere("scale", "autoscaling", "v1", "Scale", STATUS),
            sub("status", "ReplicationController", STATUS),
        ]),
        row("resourcequotas", "ResourceQuota", NAMESPACED, ALL, "quota", "", &[
            sub("status", "ResourceQuota", STATUS),
        ]),
        row("secrets", "Secret", NAMESPACED, ALL, "", "", &[]),
        row("serviceaccounts", "ServiceAccount", NAMESPACED, ALL, "sa", "", &[
            elsewhere("token", "authentication.k8s.io", "v1", "TokenRequest", CREATE),
        ]),
        row("services", "Service", NAMESPACED, ALL, "svc", "all", &[
            sub("proxy", "ServiceProxyOptions", PROXY),
            sub("status", "Service", STATUS),
        ]),
    ]),
    ("apiregistration.k8s.io", "v1", &[
        row("apiservices", "APIService", CLUSTER, ALL, "", "api-extensions", &[
            sub("status", "APIService", STATUS),
        ]),
    ]),
    ("apps", "v1", &[
        row("controllerrevisions", "ControllerRevision", NAMESPACED, ALL, "", "", &[]),
        row("daemonsets", "DaemonSet", NAMESPACED, ALL, "ds", "all", &[
            sub("status", "DaemonSet", STATUS),
        ]),
        row("deployments", "Deployment", NAMESPACED, ALL, "deploy", "all", &[
            elsewhere("scale", "autoscaling", "v1", "Scale", STATUS),
            sub("status", "Deployment", STATUS),
        ]),
        row("replicasets", "ReplicaSet", NAMESPACED, ALL, "rs", "all", &[
            elsewhere("scale", "autoscaling", "v1", "Scale", STATUS),
            sub("status", "ReplicaSet", STATUS),
        ]),
        row("statefulsets", "StatefulSet", NAMESPACED, ALL, "sts", "all", &[
            elsewhere("scale", "autoscaling", "v1", "Scale", STATUS),
            sub("status", "StatefulSet", STATUS),
        ]),
    ]),
    ("events.k8s.io", "v1", &[
        row("events", "Event", NAMESPACED, ALL, "ev", "", &[]),
    ]),
    ("authentication.k8s.io", "v1", &[
        row("selfsubjectreviews", "SelfSubjectReview", CLUSTER, CREATE, "", "", &[]),
        row("tokenreviews", "TokenReview", CLUSTER, CREATE, "", "", &[]),
    ]),
    ("authorization.k8s.io", "v1", &[
        row("localsubjectaccessreviews", "LocalSubjectAccessReview", NAMESPACED, CREATE, "", "", &[]),
        row("selfsubjectaccessreviews", "SelfSubjectAccessReview", CLUSTER, CREATE, "", "", &[]),
        row("selfsubjectrulesreviews", "SelfSubjectRulesReview", CLUSTER, CREATE, "", "", &[]),
        row("subjectaccessreviews", "SubjectAccessReview", CLUSTER, CREATE, "", "", &[]),
    ]),
    ("autoscaling", "v2", &[
        row("horizontalpodautoscalers", "HorizontalPodAutoscaler", NAMESPACED, ALL, "hpa", "all", &[
            sub("status", "HorizontalPodAutoscaler", STATUS),
        ]),
    ]),
    ("autoscaling", "v1", &[
        row("horizontalpodautoscalers", "HorizontalPodAutoscaler", NAMESPACED, ALL, "hpa", "all", &[
            sub("status", "HorizontalPodAutoscaler", STATUS),
        ]),
    ]),
    ("batch", "v1", &[
        row("cronjobs", "CronJob", NAMESPACED, ALL, "cj", "all", &[
            sub("status", "CronJob", STATUS),
        ]),
        row("jobs", "Job", NAMESPACED, ALL, "", "all", &[
            sub("status", "Job", STATUS),
        ]),
    ]),
    ("certificates.k8s.io", "v1", &[
        row("certificatesigningrequests", "CertificateSigningRequest", CLUSTER, ALL, "csr", "", &[
            sub("approval", "CertificateSigningRequest", STATUS),
            sub("status", "CertificateSigningRequest", STATUS),
        ]),
        row("clustertrustbundles", "ClusterTrustBundle", CLUSTER, ALL, "", "", &[]),
        row("podcertificaterequests", "PodCertificateRequest", NAMESPACED, ALL, "", "", &[
            sub("status", "PodCertificateRequest", STATUS),
        ]),
    ]),
    ("networking.k8s.io", "v1", &[
        row("ingressclasses", "IngressClass", CLUSTER, ALL, "", "", &[]),
        row("ingresses", "Ingress", NAMESPACED, ALL, "ing", "", &[
            sub("status", "Ingress", STATUS),
        ]),
        row("ipaddresses", "IPAddress", CLUSTER, ALL, "ip", "", &[]),
        row("networkpolicies", "NetworkPolicy", NAMESPACED, ALL, "netpol", "", &[]),
        row("servicecidrs", "ServiceCIDR", CLUSTER, ALL, "", "", &[
            sub("status", "ServiceCIDR", STATUS),
        ]),
    ]),
    ("policy", "v1", &[
        row("poddisruptionbudgets", "PodDisruptionBudget", NAMESPACED, ALL, "pdb", "", &[
            sub("status", "PodDisruptionBudget", STATUS),
        ]),
    ]),
    ("rbac.authorization.k8s.io", "v1", &[
        row("clusterrolebindings", "ClusterRoleBinding", CLUSTER, ALL, "", "", &[]),
        row("clusterroles", "ClusterRole", CLUSTER, ALL, "", "", &[]),
        row("rolebindings", "RoleBinding", NAMESPACED, ALL, "", "", &[]),
        row("roles", "Role", NAMESPACED, ALL, "", "", &[]),
    ]),
    ("storage.k8s.io", "v1", &[
        row("csidrivers", "CSIDriver", CLUSTER, ALL, "", "", &[]),
        row("csinodes", "CSINode", CLUSTER, ALL, "", "", &[
            sub("status", "CSINode", STATUS),
        ]),
        row("csistoragecapacities", "CSIStorageCapacity", NAMESPACED, ALL, "", "", &[]),
        row("storageclasses", "StorageClass", CLUSTER, ALL, "sc", "", &[]),
        row("volumeattachments", "VolumeAttachment", CLUSTER, ALL, "", "", &[
            sub("status", "VolumeAttachment", STATUS),
        ]),
        row("volumeattributesclasses", "VolumeAttributesClass", CLUSTER, ALL, "vac", "", &[]),
    ]),
    ("admissionregistration.k8s.io", "v1", &[
        row("mutatingadmissionpolicies", "MutatingAdmissionPolicy", CLUSTER, ALL, "", "api-extensions", &[]),
        row("mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding", CLUSTER, ALL, "", "api-extensions", &[]),
        row("mutatingwebhookconfigurations", "MutatingWebhookConfiguration", CLUSTER, ALL, "", "api-extensions", &[]),
        row("validatingadmissionpolicies", "ValidatingAdmissionPolicy", CLUSTER, ALL, "", "api-extensions", &[
            sub("status", "ValidatingAdmissionPolicy", STATUS),
        ]),
        row("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", CLUSTER, ALL, "", "api-extensions", &[]),
        row("validatingwebhookconfigurations", "ValidatingWebhookConfiguration", CLUSTER, ALL, "", "api-extensions", &[]),
    ]),
    ("apiextensions.k8s.io", "v1", &[
        row("customresourcedefinitions", "CustomResourceDefinition", CLUSTER, ALL, "crd crds", "api-extensions", &[
            sub("status", "CustomResourceDefinition", STATUS),
        ]),
    ]),
    ("scheduling.k8s.io", "v1", &[
        row("priorityclasses", "PriorityClass", CLUSTER, ALL, "pc", "", &[]),
    ]),
    ("coordination.k8s.io", "v1", &[
        row("leases", "Lease", NAMESPACED, ALL, "", "", &[]),
    ]),
    ("node.k8s.io", "v1", &[
        row("runtimeclasses", "RuntimeClass", CLUSTER, ALL, "", "", &[]),
    ]),
    ("discovery.k8s.io", "v1", &[
        row("endpointslices", "EndpointSlice", NAMESPACED, ALL, "", "", &[]),
    ]),
    ("resource.k8s.io", "v1", &[
        row("deviceclasses", "DeviceClass", CLUSTER, ALL, "", "", &[]),
        row("devicetaintrules", "DeviceTaintRule", CLUSTER, ALL, "", "", &[
            sub("status", "DeviceTaintRule", STATUS),
        ]),
        row("resourceclaims", "ResourceClaim", NAMESPACED, ALL, "", "", &[
            sub("status", "ResourceClaim", STATUS),
        ]),
        row("resourceclaimtemplates", "ResourceClaimTemplate", NAMESPACED, ALL, "", "", &[]),
        row("resourceslices", "ResourceSlice", CLUSTER, ALL, "", "", &[]),
    ]),
    ("flowcontrol.apiserver.k8s.io", "v1", &[
        row("flowschemas", "FlowSchema", CLUSTER, ALL, "", "", &[
            sub("status", "FlowSchema", STATUS),
        ]),
        row("prioritylevelconfigurations", "PriorityLevelConfiguration", CLUSTER, ALL, "", "", &[
            sub("status", "PriorityLevelConfiguration", STATUS),
        ]),
    ]),
    ("storagemigration.k8s.io", "v1", &[
        row("storageversionmigrations", "StorageVersionMigration", CLUSTER, ALL, "", "", &[
            sub("status", "StorageVersionMigration", STATUS),
        ]),
    ]),
];
