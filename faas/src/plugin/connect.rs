//! The way to the cluster and to the gateway of functions.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use http::Uri;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::net::TcpStream;

/// The gateway's Service and its namespace.
const GATEWAY: (&str, &str) = ("kube-system", "skiff-gateway");
/// The gateway's port where the Service may not be read.
const DEFAULT_PORT: u16 = 8443;
/// Patience for one address of the gateway.
const CONNECT: Duration = Duration::from_secs(3);

/// Which cluster, as whom, and where its gateway is.
#[derive(Clone, Debug, Args)]
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
        let mut config = self.config.clone();
        config.cluster_url = match &self.gateway {
            Some(url) if url.scheme().is_some() => url.clone(),
            Some(url) => bail!("--gateway {url} is no URL: name it as in https://192.0.2.1:8443"),
            None => {
                // Its certificate has this name, wherever it is reached.
                config.tls_server_name = Some(format!("{}.{}.svc", GATEWAY.1, GATEWAY.0));
                self.find().await?
            }
        };
        // An answer of the function is an answer, also 503.
        config.default_retry = false;
        // Over plain HTTP nothing secret is sent: the gateway answers public functions there.
        if config.cluster_url.scheme() == Some(&http::uri::Scheme::HTTP) {
            config.auth_info = kube::config::AuthInfo::default();
        }
        Ok(Client::try_from(config)?)
    }

    /// Looks where the gateway answers: beside the API server, where a load balancer is, at its endpoints, at its Service.
    async fn find(&self) -> anyhow::Result<Uri> {
        let server = self.config.cluster_url.host().context("the cluster's URL has no host")?;
        let (service, slices) = tokio::join!(self.service(), self.slices());
        let (service, slices) = match (service, slices) {
            (Ok(service), Ok(slices)) => (service, slices),
            // Not everybody may read there; the default is worth a try.
            (Err(kube::Error::Api(s)), _) | (_, Err(kube::Error::Api(s))) if s.code == 403 => (None, vec![]),
            (Err(e), _) | (_, Err(e)) => return Err(e.into()),
        };
        let mut places: Vec<(String, u16)> = vec![];
        for slice in slices {
            let ports = slice.ports.iter().flatten();
            let Some(port) = ports.filter(|p| p.name.as_deref() == Some("https")).find_map(|p| p.port) else {
                continue;
            };
            let Ok(port) = u16::try_from(port) else { continue };
            places.insert(0, (server.to_owned(), port));
            places.extend(slice.endpoints.into_iter().flatten().flat_map(|e| e.addresses).map(|a| (a, port)));
        }
        if let Some(service) = service {
            let spec = service.spec.unwrap_or_default();
            let port = spec.ports.iter().flatten().find(|p| p.name.as_deref() == Some("https"));
            if let Some(port) = port.and_then(|p| u16::try_from(p.port).ok()) {
                let balancers =
                    service.status.and_then(|s| s.load_balancer).and_then(|b| b.ingress).unwrap_or_default();
                places.extend(balancers.into_iter().filter_map(|b| b.hostname.or(b.ip)).map(|a| (a, port)));
                places.extend(spec.cluster_ip.filter(|ip| ip != "None").map(|ip| (ip, port)));
            }
        }
        if places.is_empty() {
            places.push((server.to_owned(), DEFAULT_PORT));
        }
        places.dedup();
        for (host, port) in &places {
            let bare = host.trim_matches(['[', ']']);
            let tried = tokio::time::timeout(CONNECT, TcpStream::connect((bare, *port))).await;
            if matches!(tried, Ok(Ok(_))) {
                let host = if bare.contains(':') { format!("[{bare}]") } else { bare.to_owned() };
                return Ok(format!("https://{host}:{port}").parse()?);
            }
        }
        let tried: Vec<String> = places.into_iter().map(|(h, p)| format!("{h}:{p}")).collect();
        bail!("the gateway of functions does not answer at {}: name it with --gateway", tried.join(", "))
    }

    async fn service(&self) -> Result<Option<Service>, kube::Error> {
        Api::<Service>::namespaced(self.client.clone(), GATEWAY.0).get_opt(GATEWAY.1).await
    }

    async fn slices(&self) -> Result<Vec<EndpointSlice>, kube::Error> {
        let of = ListParams::default().labels(&format!("kubernetes.io/service-name={}", GATEWAY.1));
        Ok(Api::<EndpointSlice>::namespaced(self.client.clone(), GATEWAY.0).list(&of).await?.items)
    }
}
