//! The pod network, whoever makes it: this agent's own bridge, or CNI plugins.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio_util::sync::CancellationToken;

use super::{Error, PodNetwork, Result};
use crate::Config;
use crate::cni::{self, Link, Plugins};
use crate::runtime::{Container, Runtime, label};

/// First and longest wait before leftovers are looked at again.
const SWEEP: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// Who makes the network of pods.
pub enum Network {
    /// This agent, with a bridge of its own.
    Bridge(Arc<PodNetwork>),
    /// CNI plugins.
    Plugins(Plugins),
    /// Nobody: pods get addresses and no more, where containers are only pretended.
    Pretended(PodNetwork),
}

impl Network {
    /// Makes it, as the configuration asks for. Idempotent.
    ///
    /// # Errors
    /// When the kernel or the packet filter refuses.
    pub async fn setup(config: &Config, range: Ipv4Net) -> Result<Self> {
        if config.fake.is_some() {
            return Ok(Self::Pretended(PodNetwork::unlinked(config, range)));
        }
        match plugins(config, Some(range)) {
            Some(plugins) => {
                // Two bridges with one range would hide each other.
                super::teardown(config).await?;
                cni::prepare(config.cluster_cidr.unwrap_or(range)).await?;
                Ok(Self::Plugins(plugins))
            }
            None => Ok(Self::Bridge(Arc::new(PodNetwork::setup(config, range).await?))),
        }
    }

    /// Whether pods can get a network.
    ///
    /// # Errors
    /// What to tell about it.
    pub fn ready(&self) -> std::result::Result<(), String> {
        match self {
            Self::Bridge(_) | Self::Pretended(_) => Ok(()),
            Self::Plugins(plugins) => {
                plugins.ready().map_err(|e| format!("Network plugin returns error: cni plugin not initialized: {e}"))
            }
        }
    }

    /// Takes in what runs already, before anything else: addresses in use, and what is left of sandboxes that are gone.
    pub async fn adopt(&self, config: &Config, all: &[Container]) {
        match self {
            Self::Bridge(bridge) => {
                // Of an earlier run with plugins.
                remove_all(config, all).await;
                for container in all {
                    if let Ok(address) = container.label(label::IP).parse() {
                        bridge.adopt(container.label(label::POD_UID), address);
                    }
                }
            }
            // What is pretended ends with the process.
            Self::Pretended(_) => {}
            Self::Plugins(plugins) => {
                plugins.sweep(&plugins.notes(), all).await;
                plugins.collect().await;
            }
        }
    }

    /// The address that a pod's sandbox is to have, where that is known before it is made.
    ///
    /// # Errors
    /// When none is free.
    pub fn reserve(&self, uid: &str) -> Result<Option<Ipv4Addr>> {
        match self {
            Self::Bridge(bridge) => bridge.allocate(uid).map(Some),
            Self::Pretended(addresses) => addresses.allocate(uid).map(Some),
            Self::Plugins(_) => Ok(None),
        }
    }

    /// The address that a sandbox has.
    #[must_use]
    pub fn address(&self, uid: &str, sandbox: &Container) -> Option<IpAddr> {
        let labelled = sandbox.label(label::IP).parse().ok();
        match self {
            Self::Bridge(_) | Self::Pretended(_) => labelled,
            Self::Plugins(plugins) => plugins.address(uid, &sandbox.id).or(labelled),
        }
    }

    /// Makes sure that a sandbox has its network, and answers its address. Idempotent.
    ///
    /// # Errors
    /// [`Error::Foreign`] when another kind of network made it and only a new sandbox helps.
    pub async fn connect(&self, link: &Link<'_>) -> Result<IpAddr> {
        let labelled: Option<Ipv4Addr> = link.sandbox.label(label::IP).parse().ok();
        let pid = || link.sandbox.pid.ok_or(Error::NoProcess);
        if !link.sandbox.label(label::OWN_NETWORK).is_empty() {
            super::as_engines_do(pid()?).await?;
        }
        match self {
            Self::Pretended(addresses) => {
                let address = labelled.ok_or(Error::Foreign)?;
                addresses.adopt(link.uid, address);
                Ok(address.into())
            }
            Self::Bridge(bridge) => {
                let address = labelled.ok_or(Error::Foreign)?;
                bridge.adopt(link.uid, address);
                bridge.attach(link.uid, pid()?, address).await?;
                let mut ports = link.ports.clone();
                ports.iter_mut().for_each(|p| p.pod_ip = address);
                bridge.publish(link.uid, ports).await?;
                Ok(address.into())
            }
            // Of the agent's own bridge, which was there before the configuration.
            Self::Plugins(_) if labelled.is_some() => Err(Error::Foreign),
            Self::Plugins(plugins) => {
                let pid = pid()?;
                super::loopback_up(pid).await?;
                Ok(plugins.attach(link, pid).await?)
            }
        }
    }

    /// Takes a pod's network away while its sandboxes are still there.
    ///
    /// # Errors
    /// When a plugin fails; it must be called again.
    pub async fn disconnect(&self, uid: &str, sandboxes: &[Container]) -> Result<()> {
        match self {
            Self::Bridge(_) | Self::Pretended(_) => Ok(()),
            Self::Plugins(plugins) => Ok(plugins.detach(uid, sandboxes).await?),
        }
    }

    /// Gives up what a pod had, when its sandboxes are gone.
    ///
    /// # Errors
    /// When a plugin or the packet filter fails; it must be called again.
    pub async fn release(&self, uid: &str) -> Result<()> {
        match self {
            Self::Bridge(bridge) => bridge.release(uid).await,
            Self::Pretended(addresses) => addresses.release(uid).await,
            Self::Plugins(plugins) => Ok(plugins.detach(uid, &[]).await?),
        }
    }

    /// Keeps it whole until told to stop.
    pub async fn keep(self: Arc<Self>, runtime: Arc<dyn Runtime>, shutdown: CancellationToken) {
        match &*self {
            Self::Bridge(bridge) => bridge.clone().keep(shutdown).await,
            Self::Pretended(_) => shutdown.cancelled().await,
            Self::Plugins(plugins) => {
                let work = async {
                    let mut wait = SWEEP.0;
                    loop {
                        tokio::time::sleep(wait).await;
                        // The notes first: a sandbox that is just made has none yet.
                        let notes = plugins.notes();
                        if let Ok(all) = runtime.list(None).await
                            && plugins.sweep(&notes, &all).await
                        {
                            return;
                        }
                        wait = (wait * 2).min(SWEEP.1);
                    }
                };
                shutdown.run_until_cancelled(work).await;
                shutdown.cancelled().await;
            }
        }
    }
}

/// The plugins that the configuration names.
fn plugins(config: &Config, range: Option<Ipv4Net>) -> Option<Plugins> {
    let dirs = config.cni.clone()?;
    Some(Plugins::new(dirs, config.data_dir.join("cni"), range))
}

/// Takes away what plugins made on this machine, whatever the configuration is now.
pub async fn remove_all(config: &Config, sandboxes: &[Container]) {
    let dirs = config.cni.clone().unwrap_or(cni::Dirs { conf: Default::default(), bin: vec![] });
    Plugins::new(dirs, config.data_dir.join("cni"), None).remove_all(sandboxes).await;
}
