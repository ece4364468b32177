//! The way to the cluster and to the gateway of functions.

use clap::Args;
use http::Uri;
use kube::Client;
use skiff_plugin::Door;

/// The gateway.
const GATEWAY: Door = Door {
    what: "the gateway of functions",
    option: "--gateway",
    namespace: "kube-system",
    service: "skiff-gateway",
    port: 8443,
};

/// Which cluster, as whom, and where its gateway is.
#[derive(Clone, Debug, Args)]
// clap names groups after types, and what is flattened here has the same name.
#[group(skip)]
pub(super) struct Connection {
    #[command(flatten)]
    cluster: skiff_plugin::Connection,
    /// Where the gateway of functions is, as in https://192.0.2.1:8443. Default: looked up in the cluster.
    #[arg(long, global = true, env = "SKIFF_GATEWAY")]
    gateway: Option<Uri>,
}

/// A cluster, a namespace in it, and the gateway.
pub(super) struct Session {
    cluster: skiff_plugin::Session,
    gateway: Option<Uri>,
}

impl std::ops::Deref for Session {
    type Target = skiff_plugin::Session;

    fn deref(&self) -> &Self::Target {
        &self.cluster
    }
}

impl Connection {
    pub(super) async fn open(self) -> anyhow::Result<Session> {
        Ok(Session { cluster: self.cluster.open().await?, gateway: self.gateway })
    }
}

impl Session {
    /// A client of the gateway with the person's identity: paths of its requests are the gateway's.
    pub(super) async fn gateway(&self) -> anyhow::Result<Client> {
        self.cluster.door(&GATEWAY, self.gateway.as_ref()).await
    }
}
