//! The node's HTTPS endpoint: logs, exec, attach, port-forward, statistics.
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::node::NodeAgent;
use crate::pod::Manager;

/// A bound listener.
pub struct Listener;

impl Listener {
    /// Binds.
    pub async fn bind(_config: &Config) -> anyhow::Result<Self> {
        Ok(Self)
    }
}

/// Serves until told to stop.
pub async fn serve(_listener: Listener, _manager: Arc<Manager>, _node: Arc<NodeAgent>, shutdown: CancellationToken) {
    shutdown.cancelled().await;
}
