//! `proxy` of pods, services and nodes: HTTP through the API server.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue, LOCATION};
use http::{Method, StatusCode};
use serde_json::Value;
use skiff_core::status::Status;
use tokio::net::TcpStream;

use super::links::{Encoding, Place};
use crate::body::Body;
use crate::kubelets::{Forward, Stream, relay};
use crate::registry::Kind;
use crate::server::Inner;
use crate::verbs::{Answer, Call};

/// How long a backend may take to accept.
const CONNECT: Duration = Duration::from_secs(10);

/// `[scheme:]name[:port]`.
fn split(name: &str) -> (&str, &str, &str) {
    match name.split(':').collect::<Vec<_>>().as_slice() {
        [n] => ("", n, ""),
        [n, p] if !matches!(*n, "http" | "https") => ("", n, p),
        [s @ ("http" | "https"), n] => (s, n, ""),
        [s @ ("http" | "https" | ""), n, p] => (s, n, p),
        _ => ("", name, ""),
    }
}

struct Backend {
    address: IpAddr,
    port: u16,
    tls: bool,
    node: bool,
}

/// Passes the request to its backend.
///
/// # Errors
/// 400, 404, 503.
pub async fn handle(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    method: &Method,
    call: &mut Call,
    raw_query: &str,
) -> Result<Answer, Status> {
    let full = call.target.name.clone();
    let (scheme, name, port) = split(&full);
    let ns = call.target.namespace.clone();
    let backend = match kind.plural() {
        "nodes" => {
            let (address, own) = super::streams::agent_of(server, name)?;
            let port = if port.is_empty() { own } else { number(port)? };
            Backend { address, port, tls: scheme != "http", node: port == own }
        }
        "pods" => pod(kind, &ns, name, scheme, port)?,
        _ => service(server, kind, &ns, name, scheme, port).await?,
    };
    refuse_local(&backend)?;
    let base = if ns.is_empty() {
        format!("/api/v1/{}/{full}/proxy", kind.plural())
    } else {
        format!("/api/v1/namespaces/{ns}/{}/{full}/proxy", kind.plural())
    };
    if call.target.rest.is_empty() {
        // Relative links only work below a slash.
        if matches!(*method, Method::GET | Method::HEAD) {
            let query = if raw_query.is_empty() { String::new() } else { format!("?{raw_query}") };
            let mut r = http::Response::new(Body::empty());
            *r.status_mut() = StatusCode::MOVED_PERMANENTLY;
            if let Ok(v) = HeaderValue::from_str(&format!("{base}/{query}")) {
                r.headers_mut().insert(LOCATION, v);
            }
            return Ok(Answer::Http(r));
        }
        call.target.rest = "/".into();
    }
    let path =
        if raw_query.is_empty() { call.target.rest.clone() } else { format!("{}?{raw_query}", call.target.rest) };
    let io: Box<dyn Stream> = if backend.node && backend.tls {
        server.kubelets.connect(backend.address, backend.port).await?
    } else {
        connect(&backend).await?
    };
    let extra = HeaderValue::from_str(&format!("{base}{}", call.target.rest))
        .map(|v| vec![(HeaderName::from_static("x-forwarded-uri"), v)])
        .unwrap_or_default();
    let host = format!("{}:{}", backend.address, backend.port);
    let called = call.headers.get(HOST).and_then(|h| h.to_str().ok()).map(str::to_owned);
    let place = Place { base, hosts: std::iter::once(host.clone()).chain(called).collect() };
    let page = *method != Method::HEAD;
    match relay(io, call, Forward { method, path, host, extra }).await? {
        Answer::Http(answer) => Ok(Answer::Http(rewrite(answer, place, page))),
        other => Ok(other),
    }
}

/// The proxy is no way to the server's own machine.
fn refuse_local(b: &Backend) -> Result<(), Status> {
    let local = match b.address {
        IpAddr::V4(a) => a.is_loopback() || a.is_link_local() || a.is_unspecified(),
        IpAddr::V6(a) => {
            a.is_loopback()
                || a.is_unspecified()
                || a.is_unicast_link_local()
                || a.to_ipv4_mapped().is_some_and(|a| a.is_loopback() || a.is_link_local())
        }
    };
    if local && !b.node { Err(Status::new(403, "Forbidden", "address not allowed")) } else { Ok(()) }
}

/// Redirects within the backend stay within the proxy; others are passed on as they are, never followed. Links of pages do
/// the same.
fn rewrite(answer: http::Response<Body>, place: Place, page: bool) -> http::Response<Body> {
    let (mut parts, body) = answer.into_parts();
    if let Some(location) = parts.headers.get(LOCATION) {
        let new = location.to_str().ok().and_then(|l| place.link(l));
        if let Some(v) = new.and_then(|n| HeaderValue::from_str(&n).ok()) {
            parts.headers.insert(LOCATION, v);
        }
        return http::Response::from_parts(parts, body);
    }
    let text = |name| parts.headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or_default();
    let html = text(CONTENT_TYPE).split(';').next().is_some_and(|t| t.trim() == "text/html");
    let encoding = Encoding::of(text(CONTENT_ENCODING));
    let (true, true, Some(encoding)) = (page, html, encoding) else { return http::Response::from_parts(parts, body) };
    parts.headers.remove(CONTENT_LENGTH);
    http::Response::from_parts(parts, encoding.page(body, place))
}

fn number(p: &str) -> Result<u16, Status> {
    p.parse().map_err(|_| Status::bad_request(format!("invalid port {}", skiff_core::invalid::quote_str(p))))
}

fn pod(kind: &Kind, ns: &str, name: &str, scheme: &str, port: &str) -> Result<Backend, Status> {
    let found = kind.stored()?.peek(ns, name).ok_or_else(|| kind.not_found(name))?;
    let pod = kind.load(&found)?;
    let address = pod["status"]["podIP"].as_str().and_then(|a| a.parse().ok());
    let Some(address) = address else { return Err(Status::internal("address not allowed")) };
    let ports = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = ports.flat_map(|c| c["ports"].as_array().into_iter().flatten());
    let port = match port {
        "" => ports.next().and_then(|p| p["containerPort"].as_u64()).and_then(|p| u16::try_from(p).ok()).unwrap_or(80),
        p => match p.parse() {
            Ok(n) => n,
            Err(_) => ports
                .find(|x| x["name"] == p)
                .and_then(|p| p["containerPort"].as_u64())
                .and_then(|p| u16::try_from(p).ok())
                .ok_or_else(|| Status::bad_request(format!("pod {name} has no port {p}")))?,
        },
    };
    Ok(Backend { address, port, tls: scheme == "https", node: false })
}

async fn service(
    server: &Inner,
    kind: &Kind,
    ns: &str,
    name: &str,
    scheme: &str,
    port: &str,
) -> Result<Backend, Status> {
    let endless =
        || Status::unavailable(format!("no endpoints available for service {}", skiff_core::invalid::quote_str(name)));
    let Some(found) = kind.stored()?.get(ns, name).await? else { return Err(endless()) };
    let svc = kind.load(&found)?;
    let ports = svc["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let chosen = match port {
        "" if ports.len() == 1 => ports.first(),
        p => ports.iter().find(|x| x["name"] == p || x["port"].as_u64().is_some_and(|n| n.to_string() == p)),
    };
    let Some(chosen) = chosen else {
        return Err(Status::unavailable(format!(
            "no service port {port} found for service {}",
            skiff_core::invalid::quote_str(name)
        )));
    };
    let port_name = chosen["name"].as_str().unwrap_or_default();
    let (address, port) = ready_endpoints(server, ns, name, port_name)?.pick().ok_or_else(endless)?;
    Ok(Backend { address, port, tls: scheme == "https", node: false })
}

/// Addresses and ports that answer for a Service's port now.
pub struct Ready(Vec<(IpAddr, u16)>);

impl Ready {
    /// One of them, by chance.
    #[must_use]
    pub fn pick(&self) -> Option<(IpAddr, u16)> {
        use rand::Rng;
        (!self.0.is_empty()).then(|| self.0[rand::rng().random_range(0..self.0.len())])
    }
}

/// The ready endpoints of a Service's port, which is meant by name.
///
/// # Errors
/// 500 when endpoints are not served.
pub fn ready_endpoints(server: &Inner, ns: &str, name: &str, port_name: &str) -> Result<Ready, Status> {
    let slices = server.collection("discovery.k8s.io", "endpointslices")?;
    let mut ready: Vec<(IpAddr, u16)> = vec![];
    for o in slices.cache.list(&slices.scope(ns)).objects {
        if o.meta.label("kubernetes.io/service-name") != Some(name) {
            continue;
        }
        let s: Value = serde_json::from_slice(&o.value).unwrap_or_default();
        let number =
            s["ports"].as_array().into_iter().flatten().find(|p| p["name"].as_str().unwrap_or_default() == port_name);
        let Some(number) = number.and_then(|p| p["port"].as_u64()).and_then(|p| u16::try_from(p).ok()) else {
            continue;
        };
        for e in s["endpoints"].as_array().into_iter().flatten() {
            if e["conditions"]["ready"] == false {
                continue;
            }
            ready.extend(
                e["addresses"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|a| Some((a.as_str()?.parse().ok()?, number))),
            );
        }
    }
    Ok(Ready(ready))
}

async fn connect(b: &Backend) -> Result<Box<dyn Stream>, Status> {
    let at = SocketAddr::new(b.address, b.port);
    let failed = |e: String| Status::unavailable(format!("error trying to reach service: dial tcp {at}: {e}"));
    let tcp = match tokio::time::timeout(CONNECT, TcpStream::connect(at)).await {
        Ok(r) => r.map_err(|e| failed(e.to_string()))?,
        Err(_) => return Err(failed("i/o timeout".into())),
    };
    if !b.tls {
        return Ok(Box::new(tcp));
    }
    // Upstream does not verify backends of the pod and service proxy either: there is nothing to verify them against.
    let config = crate::tls::unverified_client();
    let name = rustls_pki_types::ServerName::IpAddress(b.address.into());
    let tls = tokio::time::timeout(CONNECT, tokio_rustls::TlsConnector::from(config).connect(name, tcp)).await;
    match tls {
        Ok(r) => Ok(Box::new(r.map_err(|e| failed(e.to_string()))?)),
        Err(_) => Err(failed("TLS handshake timeout".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn names() {
        assert_eq!(split("a"), ("", "a", ""));
        assert_eq!(split("a:80"), ("", "a", "80"));
        assert_eq!(split("https:a:443"), ("https", "a", "443"));
        assert_eq!(split("https:a:"), ("https", "a", ""));
    }
}
