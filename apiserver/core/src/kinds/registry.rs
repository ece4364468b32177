//! Which rules a built-in resource has. A table: one row a resource.

use std::sync::Arc;

use serde_json::Value;

use super::{Plain, Strategy, Traits, config, defaults, event, namespace, node, pod, rbac, service, workloads};

const D: Traits = Traits::DEFAULT;
/// Desired state counted by generation.
const G: Traits = Traits { generation: true, ..D };
/// Status written by its subresource.
const S: Traits = Traits { status: true, ..D };
const GS: Traits = Traits { generation: true, status: true, ..D };
/// A completed deletion answers the object.
const R: Traits = Traits { returns_deleted: true, ..D };
const RS: Traits = Traits { returns_deleted: true, status: true, ..D };
const fn locked(t: Traits) -> Traits {
    Traits { unconditional_update: false, ..t }
}
const fn creating(t: Traits) -> Traits {
    Traits { create_on_update: true, ..t }
}

/// A kind whose only rules of its own are defaults.
struct Defaulted(Traits, fn(&mut Value), &'static [&'static str]);

impl Strategy for Defaulted {
    fn traits(&self) -> &Traits {
        &self.0
    }

    fn default(&self, obj: &mut Value) {
        (self.1)(obj);
    }

    fn fields(&self) -> &'static [&'static str] {
        self.2
    }
}

fn none(_: &mut Value) {}

/// Claims wait until they are bound.
struct Claim;

impl Strategy for Claim {
    fn traits(&self) -> &Traits {
        &RS
    }

    fn default(&self, obj: &mut Value) {
        defaults::claim(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        obj["status"] = serde_json::json!({"phase": "Pending"});
    }
}

/// PersistentVolumes remember when their phase changed last.
struct Volume;

impl Strategy for Volume {
    fn traits(&self) -> &Traits {
        &RS
    }

    fn default(&self, obj: &mut Value) {
        defaults::volume(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        let now = crate::time::format(jiff::Timestamp::now());
        obj["status"] = serde_json::json!({"phase": "Pending", "lastPhaseTransitionTime": now});
    }
}

fn plain(t: Traits) -> Arc<dyn Strategy> {
    Arc::new(Plain(t))
}

fn with(t: Traits, f: fn(&mut Value)) -> Arc<dyn Strategy> {
    Arc::new(Defaulted(t, f, &[]))
}

fn selectable(t: Traits, f: fn(&mut Value), fields: &'static [&'static str]) -> Arc<dyn Strategy> {
    Arc::new(Defaulted(t, f, fields))
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
        ("", "endpoints") => with(creating(D), defaults::endpoints),
        ("", "events") => Arc::new(event::Event { group: false }),
        ("events.k8s.io", "events") => Arc::new(event::Event { group: true }),
        ("", "limitranges") => with(creating(D), defaults::limit_range),
        ("", "persistentvolumeclaims") => Arc::new(Claim),
        ("", "persistentvolumes") => Arc::new(Volume),
        ("", "podtemplates") => {
            with(Traits { returns_deleted: true, generation: true, ..D }, defaults::pod_template_object)
        }
        ("", "replicationcontrollers") => Arc::new(workloads::ReplicationController),
        ("", "resourcequotas") => plain(RS),
        ("apps", "deployments") => Arc::new(workloads::Deployment),
        ("apps", "replicasets") => Arc::new(workloads::ReplicaSet),
        ("apps", "statefulsets") => Arc::new(workloads::StatefulSet),
        ("apps", "daemonsets") => Arc::new(workloads::DaemonSet),
        ("batch", "jobs") => Arc::new(workloads::Job),
        ("batch", "cronjobs") => with(Traits { orphan_by_default: false, ..GS }, defaults::cron_job),
        ("autoscaling", "horizontalpodautoscalers") => with(GS, defaults::autoscaler),
        ("coordination.k8s.io", "leases") => with(creating(locked(D)), none),
        ("discovery.k8s.io", "endpointslices") => with(G, defaults::endpoint_slice),
        ("networking.k8s.io", "ingresses") => with(GS, defaults::ingress),
        ("networking.k8s.io", "networkpolicies") => with(G, defaults::network_policy),
        ("networking.k8s.io", "ingressclasses") => with(G, defaults::ingress_class),
        ("networking.k8s.io", "servicecidrs") => plain(S),
        ("policy", "poddisruptionbudgets") => plain(locked(GS)),
        ("rbac.authorization.k8s.io", "roles") => Arc::new(rbac::Role { cluster: false }),
        ("rbac.authorization.k8s.io", "clusterroles") => Arc::new(rbac::Role { cluster: true }),
        ("rbac.authorization.k8s.io", "rolebindings") => Arc::new(rbac::Binding { cluster: false }),
        ("rbac.authorization.k8s.io", "clusterrolebindings") => Arc::new(rbac::Binding { cluster: true }),
        ("scheduling.k8s.io", "priorityclasses") => with(G, defaults::priority_class),
        ("storage.k8s.io", "storageclasses") => with(R, defaults::storage_class),
        ("storage.k8s.io", "csidrivers") => with(locked(R), defaults::csi_driver),
        ("storage.k8s.io", "csinodes" | "volumeattributesclasses") => plain(R),
        ("storage.k8s.io", "volumeattachments") => plain(locked(RS)),
        ("certificates.k8s.io", "certificatesigningrequests") => {
            selectable(S, defaults::signing_request, &["spec.signerName"])
        }
        ("certificates.k8s.io", "clustertrustbundles") => selectable(D, none, &["spec.signerName"]),
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => with(GS, defaults::flow_schema),
        ("flowcontrol.apiserver.k8s.io", _) => with(GS, defaults::priority_level),
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations") => {
            with(locked(G), defaults::mutating_webhooks)
        }
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations") => {
            with(locked(G), defaults::validating_webhooks)
        }
        ("admissionregistration.k8s.io", _) => plain(locked(GS)),
        ("apiextensions.k8s.io", _) => Arc::new(crate::custom::definition::DefinitionStrategy),
        ("apiregistration.k8s.io", _) => plain(locked(S)),
        ("resource.k8s.io", "resourceslices") => {
            selectable(Traits { returns_deleted: true, ..G }, none, &["spec.nodeName", "spec.driver"])
        }
        ("resource.k8s.io", "resourceclaims") => plain(RS),
        ("resource.k8s.io", "deviceclasses") => plain(Traits { returns_deleted: true, generation: true, ..D }),
        ("resource.k8s.io", _) => plain(R),
        _ => plain(D),
    }
}
