//! The way to a server of ours beside the API server: by its Service, as the person.

use std::time::Duration;

use anyhow::{Context as _, bail};
use http::Uri;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::net::TcpStream;

use crate::Session;

/// Patience for one address.
const CONNECT: Duration = Duration::from_secs(3);

/// A server that has a Service.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// What it is, for people: `the gateway of functions`.
    pub what: &'static str,
    /// The option that names it instead: `--gateway`.
    pub option: &'static str,
    /// Namespace of its Service.
    pub namespace: &'static str,
    /// Name of its Service, whose port `https` it is.
    pub service: &'static str,
    /// Its port where the Service may not be read.
    pub port: u16,
}

impl Session {
    /// A client of a server with the person's identity: paths of its requests are that server's. `url`: where it is, when
    /// somebody says so.
    ///
    /// # Errors
    /// When it is not found, or does not answer.
    pub async fn door(&self, door: &Door, url: Option<&Uri>) -> anyhow::Result<Client> {
        let mut config = self.config.clone();
        config.cluster_url = match url {
            Some(url) if url.scheme().is_some() => url.clone(),
            Some(url) => {
                bail!("{} {url} is no URL: name it as in https://192.0.2.1:{}", door.option, door.port)
            }
            None => {
                // Its certificate has this name, wherever it is reached.
                config.tls_server_name = Some(format!("{}.{}.svc", door.service, door.namespace));
                self.find(door).await?
            }
        };
        // What it answers is an answer, also 503.
        config.default_retry = false;
        // Over plain HTTP nothing secret is sent.
        if config.cluster_url.scheme() == Some(&http::uri::Scheme::HTTP) {
            config.auth_info = kube::config::AuthInfo::default();
        }
        Ok(Client::try_from(config)?)
    }

    /// Looks where it answers: beside the API server, where a load balancer is, at its endpoints, at its Service.
    async fn find(&self, door: &Door) -> anyhow::Result<Uri> {
        let server = self.config.cluster_url.host().context("the cluster's URL has no host")?;
        let (service, slices) = tokio::join!(self.service(door), self.slices(door));
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
            places.push((server.to_owned(), door.port));
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
        bail!("{} does not answer at {}: name it with {}", door.what, tried.join(", "), door.option)
    }

    async fn service(&self, door: &Door) -> Result<Option<Service>, kube::Error> {
        Api::<Service>::namespaced(self.client.clone(), door.namespace).get_opt(door.service).await
    }

    async fn slices(&self, door: &Door) -> Result<Vec<EndpointSlice>, kube::Error> {
        let of = ListParams::default().labels(&format!("kubernetes.io/service-name={}", door.service));
        Ok(Api::<EndpointSlice>::namespaced(self.client.clone(), door.namespace).list(&of).await?.items)
    }
}
