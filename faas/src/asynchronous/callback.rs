//! Telling a URL the result of a call: one POST with the answer's body, as a CloudEvent in binary mode.
//!
//! The URL is written by whoever may write the function, and the request leaves from the node: so addresses of this
//! machine and of its link are refused, and the address that was looked at is the one that is connected to. Services of the
//! cluster are found by their names, for the node's own resolver does not know them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Request, Uri};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Service;
use kube::client::Body;
use kube::{Api, Client, Config, ResourceExt as _};

use crate::api::{CallState, FunctionCall};

/// Patience for the whole of it.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why a URL was not told.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallbackError {
    #[error("{0:?} is no URL that can be called")]
    Url(String),
    #[error("{0} may not be called back: it is an address of the node itself")]
    Refused(IpAddr),
    #[error("there is no address of {0}")]
    Unknown(String),
    #[error("it answered {0}")]
    Answered(http::StatusCode),
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Silent,
    #[error("it is not reached: {0}")]
    Failed(String),
}

impl CallbackError {
    /// Whether it may go better next time.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Url(_) | Self::Refused(_) => false,
            Self::Answered(status) => status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429),
            Self::Unknown(_) | Self::Silent | Self::Failed(_) => true,
        }
    }
}

/// Tells the URL in the call's status.
pub(super) async fn tell(client: &Client, call: &FunctionCall) -> Result<(), CallbackError> {
    let sent = tokio::time::timeout(PATIENCE, send(client, call)).await;
    sent.unwrap_or(Err(CallbackError::Silent))
}

async fn send(client: &Client, call: &FunctionCall) -> Result<(), CallbackError> {
    let status = call.status.clone().unwrap_or_default();
    let text = status.callback.clone().unwrap_or_default();
    let bad = || CallbackError::Url(text.clone());
    let url: Uri = text.parse().map_err(|_| bad())?;
    let host = url.host().ok_or_else(bad)?.trim_matches(['[', ']']).to_owned();
    let port = match (url.scheme_str(), url.port_u16()) {
        (Some("http"), port) => port.unwrap_or(80),
        (Some("https"), port) => port.unwrap_or(443),
        _ => return Err(bad()),
    };
    let address = address(client, &host, port).await?;
    let place = format!("{}://{address}", url.scheme_str().unwrap_or("http"));
    let mut config = Config::new(place.parse().map_err(|_| bad())?);
    config.default_retry = false;
    config.tls_server_name = Some(host);
    let failed = |e: kube::Error| CallbackError::Failed(e.to_string());
    let to = Client::try_from(config).map_err(failed)?;
    let (namespace, function) = (call.namespace().unwrap_or_default(), &call.spec.function);
    let done = if status.state == CallState::Succeeded { "succeeded" } else { "failed" };
    let path = url.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::post(path)
        .header("host", url.authority().map_or("", |a| a.as_str()))
        .header("ce-specversion", "1.0")
        .header("ce-id", call.name_any())
        .header("ce-type", format!("dev.skiff.call.{done}"))
        .header("ce-source", format!("/function/{namespace}/{function}"))
        .header("skiff-call-id", call.name_any())
        .header("skiff-call-status", status.code.unwrap_or_default());
    if let Some(kind) = status.headers.get("content-type") {
        request = request.header("content-type", kind);
    }
    let body = status.body.and_then(|b| STANDARD.decode(b).ok()).unwrap_or_default();
    let request = request.body(Body::from(body)).map_err(|_| bad())?;
    let answer = to.send(request).await.map_err(failed)?;
    let status = answer.status();
    // Read to the end of the first piece, so that the connection is not broken off in the middle of an answer.
    let _ = answer.into_body().frame().await;
    if status.is_success() { Ok(()) } else { Err(CallbackError::Answered(status)) }
}

async fn address(client: &Client, host: &str, port: u16) -> Result<SocketAddr, CallbackError> {
    let found = match service(host) {
        Some((name, namespace)) => {
            let service = Api::<Service>::namespaced(client.clone(), namespace).get_opt(name).await;
            let service = service.map_err(|e| CallbackError::Failed(e.to_string()))?;
            let ip = service.and_then(|s| s.spec).and_then(|s| s.cluster_ip).and_then(|ip| ip.parse().ok());
            ip.map(|ip| SocketAddr::new(ip, port))
        }
        None => {
            let all =
                tokio::net::lookup_host((host, port)).await.map_err(|_| CallbackError::Unknown(host.to_owned()))?;
            let (good, bad): (Vec<_>, Vec<_>) = all.partition(|a| allowed(a.ip()));
            if let (None, Some(bad)) = (good.first(), bad.first()) {
                return Err(CallbackError::Refused(bad.ip()));
            }
            good.first().copied()
        }
    };
    found.ok_or_else(|| CallbackError::Unknown(host.to_owned()))
}

/// Name and namespace of a Service of the cluster.
fn service(host: &str) -> Option<(&str, &str)> {
    let (name, rest) = host.split_once('.')?;
    let (namespace, rest) = rest.split_once('.')?;
    (rest == "svc" || rest.starts_with("svc.")).then_some((name, namespace))
}

fn allowed(ip: IpAddr) -> bool {
    let own = match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
    };
    !own && !ip.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_told_from_hosts() {
        assert_eq!(service("a.b.svc"), Some(("a", "b")));
        assert_eq!(service("a.b.svc.cluster.local"), Some(("a", "b")));
        assert_eq!(service("example.com"), None);
        assert_eq!(service("svc"), None);
    }

    #[test]
    fn addresses_of_the_node_are_refused() {
        for own in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1", "::ffff:127.0.0.1", "224.0.0.1"] {
            assert!(!allowed(own.parse().unwrap()), "{own}");
        }
        for other in ["10.96.0.1", "192.0.2.7", "2001:db8::1"] {
            assert!(allowed(other.parse().unwrap()), "{other}");
        }
    }
}
