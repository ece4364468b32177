//! Sandboxes: containers of the pause program, whose namespaces those of a pod share.
//!
//! An engine that makes a network namespace starts a program of its own inside, before the container's: twice the time that a
//! sandbox takes else. So the sandbox begins on the host's network, and the pause program leaves that for a namespace of its
//! own before it does anything else ([`pause::OWN_NETWORK`]); for that it has one capability, and gives it up at once. Nobody
//! hears of the sandbox before both are seen to be done: what joined it earlier would be on the host's network.
//!
//! Where the engine does not let it (a user namespace, say), and for pods with parameters of their network's namespace, which
//! engines take only for namespaces of theirs, the engine makes it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bollard::models::{ContainerCreateBody, HostConfig};
use tokio::sync::oneshot;

use super::super::{Error, Result, Runtime as _, SandboxConfig, State, label};
use super::Docker;
use crate::pause;

/// How long the pause program has to leave the host's network. It is the first thing that it does.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);

impl Docker {
    pub(super) async fn make_sandbox(&self, config: &SandboxConfig, made: oneshot::Sender<String>) -> Result<String> {
        let mut made = Some(made);
        let engine_must = config.host_network || config.sysctls.keys().any(|k| k.starts_with("net."));
        if !engine_must && self.own_network.load(Ordering::Relaxed) {
            match self.try_sandbox(config, true, &mut made).await {
                Err(error @ Error::Refused(_)) => {
                    self.remove(&config.name).await?;
                    let id = self.try_sandbox(config, false, &mut made).await?;
                    self.own_network.store(false, Ordering::Relaxed);
                    tracing::warn!(%error, "sandboxes cannot make their network namespaces; from now on the engine does, which takes longer");
                    return Ok(id);
                }
                done => return done,
            }
        }
        self.try_sandbox(config, false, &mut made).await
    }

    async fn try_sandbox(
        &self,
        config: &SandboxConfig,
        own_network: bool,
        made: &mut Option<oneshot::Sender<String>>,
    ) -> Result<String> {
        let host = |on: bool| on.then(|| "host".to_string());
        let mut entrypoint = vec![pause::PATH.to_owned()];
        entrypoint.extend(own_network.then(|| pause::OWN_NETWORK.to_owned()));
        let mut labels = self.labels(&config.labels, "sandbox");
        if own_network {
            labels.insert(label::OWN_NETWORK.to_owned(), "true".to_owned());
        }
        let body = ContainerCreateBody {
            hostname: (!config.host_network).then(|| config.hostname.clone()),
            image: Some(pause::IMAGE.into()),
            entrypoint: Some(entrypoint),
            labels: Some(labels),
            host_config: Some(HostConfig {
                network_mode: Some(if config.host_network || own_network { "host" } else { "none" }.into()),
                cap_drop: Some(vec!["ALL".into()]),
                cap_add: own_network.then(|| vec!["SYS_ADMIN".into()]),
                pid_mode: host(config.host_pid),
                ipc_mode: Some(if config.host_ipc { "host" } else { "shareable" }.into()),
                sysctls: (!config.sysctls.is_empty()).then(|| config.sysctls.clone().into_iter().collect()),
                oom_score_adj: Some(self.oom_score(-998)),
                readonly_rootfs: Some(true),
                cpu_shares: Some(2),
                ..Default::default()
            }),
            ..Default::default()
        };
        let id = self.create(&config.name, body).await?;
        if let Some(made) = made.take() {
            // Nobody need listen.
            let _ = made.send(id.clone());
        }
        self.start(&id).await?;
        if own_network {
            self.is_apart(&id).await?;
        }
        Ok(id)
    }

    /// Waits until a sandbox has left the host's network.
    async fn is_apart(&self, id: &str) -> Result<()> {
        let sandbox = self.inspect(id).await?;
        let Some(pid) = sandbox.pid.filter(|_| sandbox.state == State::Running) else {
            return Err(Error::Refused("the sandbox may not make a network namespace".to_owned()));
        };
        let begun = Instant::now();
        while !has_own_network(pid) {
            if begun.elapsed() > PATIENCE {
                return Err(Error::Timeout(PATIENCE));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

/// Whether a process has another network namespace than this one, and no capability to leave it again.
fn has_own_network(pid: i32) -> bool {
    let network = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/net")).ok();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mut permitted = status.lines().filter_map(|l| l.strip_prefix("CapPrm:"));
    let none = permitted.next().is_some_and(|set| set.trim().bytes().all(|b| b == b'0'));
    none && network(&pid.to_string()).is_some_and(|own| Some(own) != network("self"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_this_network_is_not_apart() {
        assert!(!has_own_network(i32::try_from(std::process::id()).unwrap()));
        assert!(!has_own_network(i32::MAX));
    }
}
