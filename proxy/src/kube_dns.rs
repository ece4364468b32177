//! The Service object `kube-system/kube-dns`, by which clients find the cluster's name server.
//!
//! It has no selector and no endpoints: its address is one of the host itself, where the name server listens.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

/// Time for one request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// First and longest wait between tries.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Makes sure that the object exists. Tries until it does, or until `stop`.
pub async fn ensure(client: Client, address: IpAddr, stop: CancellationToken) {
    let services: Api<Service> = Api::namespaced(client, "kube-system");
    let mut wait = BACKOFF.0;
    loop {
        let outcome = tokio::time::timeout(TIMEOUT, once(&services, address)).await;
        match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::debug!(%error, "kube-dns is not there yet"),
            Err(_) => tracing::debug!("kube-dns: no answer in time"),
        }
        if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
        wait = (wait * 2).min(BACKOFF.1);
    }
}

async fn once(services: &Api<Service>, address: IpAddr) -> kube::Result<()> {
    if let Some(found) = services.get_opt("kube-dns").await? {
        let found = found.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default();
        if found != address.to_string() {
            tracing::warn!(found, wanted = %address, "service kube-dns has another address; it is left as it is");
        }
        return Ok(());
    }
    match services.create(&PostParams::default(), &object(address)).await {
        // Another node was faster.
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        created => created.map(drop),
    }
}

fn object(address: IpAddr) -> Service {
    let labels =
        [("k8s-app", "kube-dns"), ("kubernetes.io/name", "CoreDNS"), ("kubernetes.io/cluster-service", "true")];
    let port = |name: &str, protocol: &str| ServicePort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port: 53,
        ..ServicePort::default()
    };
    Service {
        metadata: ObjectMeta {
            name: Some("kube-dns".into()),
            namespace: Some("kube-system".into()),
            labels: Some(labels.map(|(key, value)| (key.into(), value.into())).into()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some(address.to_string()),
            cluster_ips: Some(vec![address.to_string()]),
            ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}
