//! The Service by which the door for logs and results is found: `skiff-hpc` in `kube-system`, port 443, with one endpoint, the
//! process that brings jobs to Slurm. Whoever leads writes it; the last one is right.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

/// Namespace and name of the Service.
const PLACE: (&str, &str) = ("kube-system", "skiff-hpc");
/// Field manager, and manager of the slice: the cluster's own controllers leave it alone.
const MANAGER: &str = "hpc.skiff.dev";

/// Writes where the door is.
///
/// # Errors
/// When the API refuses.
pub(crate) async fn announce(client: &Client, at: SocketAddr) -> kube::Result<()> {
    let parameters = PatchParams::apply(MANAGER).force();
    let (namespace, name) = PLACE;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": at.port()}]},
    });
    let services = Api::<Service>::namespaced(client.clone(), namespace);
    services.patch(name, &parameters, &Patch::Apply(service)).await?;
    let labels = json!({"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": MANAGER});
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "addressType": if at.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [at.ip().to_string()], "conditions": {"ready": true, "serving": true, "terminating": false}}],
        "ports": [{"name": "https", "protocol": "TCP", "port": at.port()}],
    });
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), namespace);
    slices.patch(name, &parameters, &Patch::Apply(slice)).await.map(drop)
}
