//! Wiring of the components: in one process on the server itself, or each alone with its kubeconfig.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::bail;
use skiff_apiserver::Server;
use skiff_apiserver::pki::Pki;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::{ComponentArgs, DownArgs, NodeArgs, UpArgs};

/// Starts controllers, scheduler, node agent and proxy on the server in this process.
pub(crate) fn spawn_all(
    _tasks: &mut JoinSet<anyhow::Result<()>>,
    _server: &Server,
    _args: &UpArgs,
    _pki: &Arc<Pki>,
    _address: IpAddr,
    _node: &str,
    _stop: &CancellationToken,
) -> anyhow::Result<()> {
    Ok(())
}

pub(crate) async fn controller_manager(_args: ComponentArgs) -> anyhow::Result<()> {
    bail!("comes with the controllers")
}

pub(crate) async fn scheduler(_args: ComponentArgs) -> anyhow::Result<()> {
    bail!("comes with the scheduler")
}

pub(crate) async fn kubelet(_args: NodeArgs) -> anyhow::Result<()> {
    bail!("comes with the node agent")
}

pub(crate) async fn proxy(_args: NodeArgs) -> anyhow::Result<()> {
    bail!("comes with the proxy")
}

pub(crate) async fn cleanup(_args: &DownArgs) -> anyhow::Result<()> {
    Ok(())
}
