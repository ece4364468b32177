//! A pod's sandbox and its network.

use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::oneshot;

use super::{Snapshot, Worker, config, spec};
use crate::cni::Link;
use crate::events::Kind as EventKind;
use crate::net::{Error as NetError, HostPort};
use crate::runtime::{Container, Error as RuntimeError};

impl Worker {
    pub(super) async fn make_sandbox(&mut self, snapshot: &Snapshot) -> Result<(), anyhow::Error> {
        let attempt = snapshot.sandboxes.iter().map(|s| s.attempt() + 1).max().unwrap_or(0);
        self.shared.network.disconnect(&self.uid, &snapshot.sandboxes).await?;
        for old in &snapshot.sandboxes {
            self.shared.runtime.remove(&old.id).await?;
        }
        if !self.host_network() {
            self.address = self.shared.network.reserve(&self.uid)?.map(IpAddr::V4);
        }
        self.attached = None;
        let directory = self.shared.volumes.pod_dir(&self.uid);
        if self.shared.config.fake.is_none() {
            config::name_files(&self.shared.config, &self.pod, &directory, self.pod_ip())?;
        }
        let label_ip = self.address.filter(|_| !self.host_network());
        let wanted = config::sandbox(&self.pod, label_ip, attempt as usize, &self.shared.config.cluster_domain);
        let shared = self.shared.clone();
        let _turn = shared.starts.acquire().await?;
        // Making a container takes the engine a good part of what starting one takes, so the first are made meanwhile.
        let (tell, sandbox) = oneshot::channel();
        let (made, ()) = tokio::join!(shared.runtime.create_sandbox(&wanted, tell), self.make_ahead(snapshot, sandbox));
        let made = match made {
            Ok(id) => shared.runtime.inspect(&id).await,
            // A step that was cut short made it already; the next look finds it.
            Err(RuntimeError::Conflict(_)) => return Ok(()),
            Err(error) => Err(error),
        };
        match made {
            Ok(sandbox) => self.connect_or_tell(&sandbox).await,
            Err(error) => {
                self.tell_no_sandbox(&error);
                Err(error.into())
            }
        }
    }

    fn tell_no_sandbox(&self, error: &dyn std::fmt::Display) {
        let message = format!("Failed to create pod sandbox: {error}");
        self.shared.recorder.pod(&self.pod, None, EventKind::Warning, "FailedCreatePodSandBox", message);
    }

    /// Makes sure that a sandbox has its network, and says so to the user when it cannot have one.
    pub(super) async fn connect_or_tell(&mut self, sandbox: &Container) -> Result<(), anyhow::Error> {
        match self.connect(sandbox).await {
            Err(NetError::Foreign) => {
                tracing::info!(pod = %spec::full_name(&self.pod), "the pod's sandbox has another kind of network; making it anew");
                Ok(self.shared.runtime.remove(&sandbox.id).await?)
            }
            Err(error) => {
                let text = format!("failed to setup network for sandbox \"{}\": {error}", sandbox.id);
                self.tell_no_sandbox(&text);
                Err(error.into())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Makes sure that a sandbox has its network. Cheap when it is known to have it.
    async fn connect(&mut self, sandbox: &Container) -> Result<(), NetError> {
        if self.attached.as_ref() == Some(&sandbox.id) {
            return Ok(());
        }
        if !self.host_network() {
            let annotations = self.pod.metadata.annotations.as_ref();
            let rate = |way: &str| annotations?.get(&format!("kubernetes.io/{way}-bandwidth")).and_then(|t| rate(t));
            let link = Link {
                uid: &self.uid,
                namespace: spec::namespace(&self.pod),
                name: spec::name(&self.pod),
                sandbox,
                ports: host_ports(&self.pod, Ipv4Addr::UNSPECIFIED),
                bandwidth: ["ingress", "egress"].map(rate),
            };
            let address = self.shared.network.connect(&link).await?;
            if self.address.replace(address) != Some(address) {
                // Nobody knew it when the files were made, nor when containers were.
                self.ahead.clear();
                let directory = self.shared.volumes.pod_dir(&self.uid);
                config::name_files(&self.shared.config, &self.pod, &directory, Some(address))
                    .map_err(|e| NetError::Io("write the files with names", e))?;
            }
        }
        self.attached = Some(sandbox.id.clone());
        Ok(())
    }
}

/// Bits per second, as an annotation says; within what upstream takes for reasonable.
fn rate(text: &str) -> Option<u64> {
    let value = u64::try_from(skiff_core::quantity::Quantity::parse(text).ok()?.value()).ok()?;
    (1_000..=1_000_000_000_000_000).contains(&value).then_some(value)
}

/// The host ports a pod asks for.
pub fn host_ports(pod: &Pod, address: Ipv4Addr) -> Vec<HostPort> {
    let all = spec::containers(pod);
    let ports = all.iter().flat_map(|(_, c)| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(HostPort {
                protocol: port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                host_ip: port.host_ip.as_ref().and_then(|ip| ip.parse().ok()),
                host_port: port.host_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0)?,
                pod_ip: address,
                pod_port: u16::try_from(port.container_port).ok()?,
            })
        })
        .collect()
}
