//! Requests to URLs that users write, which leave from the node: addresses of this machine and of its link are refused, and the
//! address that was looked at is the one that is connected to. Services of the cluster are found by their names, for the node's
//! own resolver does not know them.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderValue, Request, Uri};
use k8s_openapi::api::core::v1::Service;
use kube::client::Body;
use kube::{Api, Client, Config};

/// Why a URL is not reached.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// It is none, or of another scheme.
    #[error("{0:?} is no URL that can be called")]
    Url(String),
    /// It is not to be reached.
    #[error("{0} may not be called: it is an address of the node itself")]
    Refused(IpAddr),
    /// Nobody knows it.
    #[error("there is no address of {0}")]
    Unknown(String),
    /// Something is in the way.
    #[error("it is not reached: {0}")]
    Failed(String),
}

/// A client of the host of a URL. It follows no redirects, and tries nothing again.
///
/// # Errors
/// When the host may not be reached, or nobody knows it.
pub async fn connect(client: &Client, url: &Uri) -> Result<Client, Unreachable> {
    let bad = || Unreachable::Url(url.to_string());
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
    Client::try_from(config).map_err(|e| Unreachable::Failed(e.to_string()))
}

/// A client that asks as a ServiceAccount, with the right of `client` to say so.
#[must_use]
pub fn as_account(client: &Client, namespace: &str, account: &str) -> Client {
    // Names of accounts are lower case letters, digits, dots and dashes: always a header. What is none is nobody.
    let user = HeaderValue::try_from(format!("system:serviceaccount:{namespace}:{account}"));
    let user = user.unwrap_or(HeaderValue::from_static("system:anonymous"));
    let inner = client.clone();
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let (inner, user) = (inner.clone(), user.clone());
        async move {
            request.headers_mut().insert("impersonate-user", user);
            inner.send(request).await
        }
    });
    Client::new(service, namespace.to_owned())
}

async fn address(client: &Client, host: &str, port: u16) -> Result<SocketAddr, Unreachable> {
    let found = match service(host) {
        Some((name, namespace)) => {
            let service = Api::<Service>::namespaced(client.clone(), namespace).get_opt(name).await;
            let service = service.map_err(|e| Unreachable::Failed(e.to_string()))?;
            let ip = service.and_then(|s| s.spec).and_then(|s| s.cluster_ip).and_then(|ip| ip.parse().ok());
            ip.map(|ip| SocketAddr::new(ip, port))
        }
        None => {
            let all = tokio::net::lookup_host((host, port)).await.map_err(|_| Unreachable::Unknown(host.to_owned()))?;
            let (good, bad): (Vec<_>, Vec<_>) = all.partition(|a| allowed(a.ip()));
            if let (None, Some(bad)) = (good.first(), bad.first()) {
                return Err(Unreachable::Refused(bad.ip()));
            }
            good.first().copied()
        }
    };
    found.ok_or_else(|| Unreachable::Unknown(host.to_owned()))
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
