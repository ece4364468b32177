//! Which rules a built-in resource has. A table: one row a resource.

use std::sync::Arc;

use super::{Plain, Strategy, Traits};
use super::{
    admission, autoscaler, certificates, cluster, config, devices, event, flow, limits, namespace, net, node, pod,
    policy, rbac, service, storage, webhooks, workloads,
};

const D: Traits = Traits::DEFAULT;
/// A completed deletion answers the object.
const R: Traits = Traits { returns_deleted: true, ..D };

fn plain(t: Traits) -> Arc<dyn Strategy> {
    Arc::new(Plain(t))
}

/// The rules of a built-in resource.
#[must_use]
pub fn strategy(group: &str, plural: &str) -> Arc<dyn Strategy> {
    match (group, plural) {
        ("", "pods") => Arc::new(pod::PodStrategy),
        ("", "nodes") => Arc::new(node::NodeStrategy),
        ("", "namespaces") => Arc::new(namespace::NamespaceStrategy),
        ("", "services") => Arc::new(service::ServiceStrategy),
        ("", "configmaps") => Arc::new(config::ConfigMapStrategy),
        ("", "secrets") => Arc::new(config::SecretStrategy),
        ("", "serviceaccounts") => Arc::new(config::ServiceAccountStrategy),
        ("", "endpoints") => Arc::new(net::Endpoints),
        ("", "events") => Arc::new(event::Event { group: false }),
        ("events.k8s.io", "events") => Arc::new(event::Event { group: true }),
        ("", "limitranges") => Arc::new(limits::Range),
        ("", "persistentvolumeclaims") => Arc::new(storage::Claim),
        ("", "persistentvolumes") => Arc::new(storage::Volume),
        ("", "podtemplates") => Arc::new(workloads::PodTemplate),
        ("", "replicationcontrollers") => Arc::new(workloads::ReplicationController),
        ("", "resourcequotas") => Arc::new(limits::Quota),
        ("apps", "deployments") => Arc::new(workloads::Deployment),
        ("apps", "replicasets") => Arc::new(workloads::ReplicaSet),
        ("apps", "statefulsets") => Arc::new(workloads::StatefulSet),
        ("apps", "daemonsets") => Arc::new(workloads::DaemonSet),
        ("batch", "jobs") => Arc::new(workloads::Job),
        ("batch", "cronjobs") => Arc::new(workloads::CronJob),
        ("apps", "controllerrevisions") => Arc::new(workloads::ControllerRevision),
        ("autoscaling", "horizontalpodautoscalers") => Arc::new(autoscaler::Autoscaler),
        ("coordination.k8s.io", "leases") => Arc::new(policy::Lease),
        ("discovery.k8s.io", "endpointslices") => Arc::new(net::EndpointSlice),
        ("networking.k8s.io", "ingresses") => Arc::new(net::Ingress),
        ("networking.k8s.io", "networkpolicies") => Arc::new(net::Policy),
        ("networking.k8s.io", "ingressclasses") => Arc::new(net::IngressClass),
        ("networking.k8s.io", "servicecidrs") => Arc::new(net::Range),
        ("networking.k8s.io", "ipaddresses") => Arc::new(net::Address),
        ("policy", "poddisruptionbudgets") => Arc::new(policy::Budget),
        ("rbac.authorization.k8s.io", "roles") => Arc::new(rbac::Role { cluster: false }),
        ("rbac.authorization.k8s.io", "clusterroles") => Arc::new(rbac::Role { cluster: true }),
        ("rbac.authorization.k8s.io", "rolebindings") => Arc::new(rbac::Binding { cluster: false }),
        ("rbac.authorization.k8s.io", "clusterrolebindings") => Arc::new(rbac::Binding { cluster: true }),
        ("scheduling.k8s.io", "priorityclasses") => Arc::new(policy::PriorityClass),
        ("storage.k8s.io", "storageclasses") => Arc::new(storage::Class),
        ("storage.k8s.io", "volumeattributesclasses") => Arc::new(storage::AttributesClass),
        ("storage.k8s.io", "csidrivers") => Arc::new(storage::Driver),
        ("storage.k8s.io", "csinodes") => Arc::new(storage::Node),
        ("storage.k8s.io", "csistoragecapacities") => Arc::new(storage::Capacity),
        ("storage.k8s.io", "volumeattachments") => Arc::new(storage::Attachment),
        ("certificates.k8s.io", "certificatesigningrequests") => Arc::new(certificates::SigningRequest),
        ("certificates.k8s.io", "clustertrustbundles") => Arc::new(certificates::TrustBundle),
        ("certificates.k8s.io", "podcertificaterequests") => Arc::new(certificates::PodRequest),
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => Arc::new(flow::Schema),
        ("flowcontrol.apiserver.k8s.io", _) => Arc::new(flow::Level),
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations") => {
            Arc::new(webhooks::Webhooks { mutating: true })
        }
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations") => {
            Arc::new(webhooks::Webhooks { mutating: false })
        }
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => {
            Arc::new(admission::Policy { mutating: false })
        }
        ("admissionregistration.k8s.io", "mutatingadmissionpolicies") => Arc::new(admission::Policy { mutating: true }),
        ("admissionregistration.k8s.io", "validatingadmissionpolicybindings") => {
            Arc::new(admission::Binding { mutating: false })
        }
        ("admissionregistration.k8s.io", _) => Arc::new(admission::Binding { mutating: true }),
        ("apiextensions.k8s.io", _) => Arc::new(crate::custom::definition::DefinitionStrategy),
        ("apiregistration.k8s.io", _) => Arc::new(cluster::ApiService),
        ("node.k8s.io", "runtimeclasses") => Arc::new(cluster::RuntimeClass),
        ("resource.k8s.io", "resourceslices") => Arc::new(devices::Slice),
        ("resource.k8s.io", "resourceclaims") => Arc::new(devices::Claim),
        ("resource.k8s.io", "resourceclaimtemplates") => Arc::new(devices::ClaimTemplate),
        ("resource.k8s.io", "deviceclasses") => Arc::new(devices::Class),
        ("resource.k8s.io", "devicetaintrules") => Arc::new(devices::TaintRule),
        ("resource.k8s.io", _) => plain(R),
        ("storagemigration.k8s.io", _) => Arc::new(cluster::Migration),
        _ => plain(D),
    }
}
