//! Whether a server behind an APIService can be reached, in upstream's reasons and words.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::Remote;
use super::offers::{self, Offers};
use super::relay;
use crate::server::Inner;
use crate::subresources::proxy::ready_endpoints;

/// How long one request of a look may take, as upstream.
const PATIENCE: Duration = Duration::from_secs(5);

/// The condition `Available` of an APIService.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Verdict {
    pub(super) fn available(&self) -> bool {
        self.reason == "Passed"
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self { reason, message }
    }
}

/// Where a request goes: a ready endpoint of the Service, or the host that stands for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Endpoint(SocketAddr),
    Host(String, u16),
}

/// Looks for the server: the Service, its port, its endpoints.
pub(super) fn find(server: &Inner, remote: &Remote) -> Result<Place, Verdict> {
    let (namespace, name) = (&remote.service.0, &remote.service.1);
    let shown = format!("service/{name} in \"{namespace}\"");
    let Some(service) = server.peek("", "services", namespace, name) else {
        return Err(Verdict::no("ServiceNotFound", format!("{shown} is not present")));
    };
    if service["spec"]["type"] == "ExternalName" {
        let host = service["spec"]["externalName"].as_str().unwrap_or_default();
        return Ok(Place::Host(host.to_owned(), remote.port));
    }
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let Some(port) = ports.into_iter().find(|p| p["port"].as_u64() == Some(remote.port.into())) else {
        let why = format!("{shown} is not listening on port {}", remote.port);
        return Err(Verdict::no("ServicePortError", why));
    };
    let port_name = port["name"].as_str().unwrap_or_default();
    let ready = ready_endpoints(server, namespace, name, port_name).ok();
    let chosen: Option<(IpAddr, u16)> = ready.and_then(|r| r.pick());
    if let Some((address, port)) = chosen {
        return Ok(Place::Endpoint(SocketAddr::new(address, port)));
    }
    if !has_slices(server, namespace, name) {
        return Err(Verdict::no("EndpointsNotFound", format!("cannot find endpointslices for {shown}")));
    }
    let why = format!("endpoints for {shown} have no addresses with port name \"{port_name}\"");
    Err(Verdict::no("MissingEndpoints", why))
}

fn has_slices(server: &Inner, namespace: &str, name: &str) -> bool {
    let Ok(slices) = server.collection("discovery.k8s.io", "endpointslices") else { return false };
    let all = slices.cache.list(&slices.scope(namespace)).objects;
    all.iter().any(|o| o.meta.label("kubernetes.io/service-name") == Some(name))
}

/// One look: the verdict, and what the server offers if it answered.
pub(super) async fn look(server: &Arc<Inner>, remote: &Remote) -> (Verdict, Option<Offers>) {
    let place = match find(server, remote) {
        Ok(place) => place,
        Err(verdict) => return (verdict, None),
    };
    let root = remote.root();
    let at = match &place {
        Place::Endpoint(a) => format!("https://{a}{root}"),
        Place::Host(h, p) => format!("https://{h}:{p}{root}"),
    };
    let failed = |why: &str| {
        let message = format!("failing or missing response from {at}: {why}");
        (Verdict::no("FailedDiscoveryCheck", message), None)
    };
    let asked = tokio::time::timeout(PATIENCE, relay::get(server, remote, &place, &root)).await;
    let list = match asked {
        Ok(Ok((code, _))) if !(200..300).contains(&code) => return failed(&format!("bad status from {at}: {code}")),
        Ok(Ok((_, bytes))) => serde_json::from_slice::<Value>(&bytes).unwrap_or_default(),
        Ok(Err(why)) => return failed(&format!("Get \"{at}\": {why}")),
        Err(_) => return failed(&format!("Get \"{at}\": context deadline exceeded")),
    };
    // Descriptions are a courtesy: a server without them is available all the same.
    let document = async |path: &str| {
        let asked = tokio::time::timeout(PATIENCE, relay::get(server, remote, &place, path)).await;
        asked.ok()?.ok().filter(|(code, _)| *code == 200).map(|(_, bytes)| bytes)
    };
    let v3 = document(&format!("/openapi/v3{root}")).await;
    let v2 = document("/openapi/v2").await;
    let offers = offers::read(remote, &list, v3, v2.as_deref());
    (Verdict { reason: "Passed", message: "all checks passed".to_owned() }, Some(offers))
}
