//! The gateway with real clients and real endpoints on loopback.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Secret, Service as ApiService};
use k8s_openapi::api::discovery::v1::EndpointSlice as ApiSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::model::{Service, Slice};

/// An endpoint that answers each request with its name and the head it saw, and changes to any protocol.
async fn endpoint(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                while let Some(head) = head(&mut stream).await {
                    if head.contains("upgrade: echo") {
                        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
                        stream.write_all(answer.as_bytes()).await.unwrap();
                        let (mut r, mut w) = stream.split();
                        tokio::io::copy(&mut r, &mut w).await.unwrap();
                        return;
                    }
                    let body = format!("{name}\n{head}");
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    address
}

/// A message up to the empty line, in lower case.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut all = vec![];
    while !all.ends_with(b"\r\n\r\n") {
        all.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(all).unwrap().to_ascii_lowercase())
}

struct Rig {
    http: SocketAddr,
    https: SocketAddr,
    shared: Shared,
    state: Arc<State>,
    stop: CancellationToken,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Rig {
    async fn start() -> Self {
        let (state, shared, stop) = (Arc::new(State::default()), Shared::default(), CancellationToken::new());
        let gateway = Arc::new(serve::Gateway::new(Arc::clone(&state), shared.clone()));
        let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let secure = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (http, https) = (plain.local_addr().unwrap(), secure.local_addr().unwrap());
        tokio::spawn(serve::plain(Arc::clone(&gateway), plain, stop.clone()));
        let until = stop.clone();
        tokio::spawn(async move { serve::secure(gateway, secure, until).await.unwrap() });
        let class = json!({"metadata": {"name": "skiff"}, "spec": {"controller": table::CONTROLLER}});
        let class: IngressClass = serde_json::from_value(class).unwrap();
        state.known.write().classes.insert(watch::id(&class), class);
        Self { http, https, shared, state, stop }
    }

    fn service(&self, name: &str, endpoints: &[SocketAddr]) {
        let service: ApiService = serde_json::from_value(json!({
            "metadata": {"namespace": "d", "name": name},
            "spec": {"clusterIP": "10.96.1.1", "ports": [{"name": "web", "port": 80}]},
        }))
        .unwrap();
        let (id, parsed) = Service::parse(&service).unwrap();
        self.shared.index.write().put_service(id, parsed);
        for (i, e) in endpoints.iter().enumerate() {
            let slice: ApiSlice = serde_json::from_value(json!({
                "metadata": {"namespace": "d", "name": format!("{name}-{i}"), "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "ports": [{"name": "web", "port": e.port(), "protocol": "TCP"}],
                "endpoints": [{"addresses": [e.ip().to_string()], "conditions": {"ready": true}}],
            }))
            .unwrap();
            let (own, service, parsed) = Slice::parse(&slice, "n").unwrap();
            self.shared.index.write().put_slice(own, service, parsed);
        }
    }

    fn ingress(&self, annotations: Value, spec: Value) {
        let mut all = json!({"metadata": {"namespace": "d", "name": "i", "annotations": annotations}, "spec": spec});
        all["spec"]["ingressClassName"] = "skiff".into();
        let ingress: Ingress = serde_json::from_value(all).unwrap();
        self.state.known.write().ingresses.insert(watch::id(&ingress), ingress);
        self.state.remake();
    }

    async fn ask(&self, text: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        let (head, body) = all.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    async fn get(&self, host: &str, path: &str) -> (String, String) {
        let (head, body) = self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        (head.lines().next().unwrap().to_owned(), body)
    }
}

fn path(path: &str, service: &str) -> Value {
    json!({"path": path, "pathType": "Prefix", "backend": {"service": {"name": service, "port": {"name": "web"}}}})
}

#[tokio::test]
async fn hosts_and_paths_reach_their_services() {
    let rig = Rig::start().await;
    rig.service("a", &[endpoint("a").await]);
    rig.service("b", &[endpoint("b").await]);
    rig.service("none", &[]);
    let paths = json!([path("/", "a"), path("/b", "b"), path("/none", "none"), path("/gone", "gone")]);
    rig.ingress(json!({}), json!({"rules": [{"host": "x.example", "http": {"paths": paths}}]}));
    for (host, path, status, body) in [
        ("x.example", "/", "HTTP/1.1 200 OK", "a\nget / "),
        ("X.example:8080", "/q?r=1", "HTTP/1.1 200 OK", "a\nget /q?r=1 "),
        ("x.example", "/b/c", "HTTP/1.1 200 OK", "b\nget /b/c "),
        ("y.example", "/", "HTTP/1.1 404 Not Found", "404: "),
        ("x.example", "/none", "HTTP/1.1 503 Service Unavailable", "503: the Service d/none "),
        ("x.example", "/gone", "HTTP/1.1 503 Service Unavailable", "503: the Service d/gone "),
    ] {
        let (got, text) = rig.get(host, path).await;
        assert_eq!(got, status, "{host}{path}: {text}");
        assert!(text.starts_with(body), "{host}{path}: {text}");
    }
}

#[tokio::test]
async fn endpoints_take_turns_and_dead_ones_are_passed_over() {
    let rig = Rig::start().await;
    let dead = {
        let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
        l.local_addr().unwrap()
    };
    rig.service("a", &[endpoint("one").await, dead, endpoint("two").await]);
    rig.ingress(json!({}), json!({"rules": [{"http": {"paths": [path("/", "a")]}}]}));
    let mut seen = HashSet::new();
    for _ in 0..9 {
        let (status, body) = rig.get("any", "/").await;
        assert_eq!(status, "HTTP/1.1 200 OK");
        seen.insert(body.lines().next().unwrap().to_owned());
    }
    assert_eq!(seen, HashSet::from(["one".into(), "two".into()]));
}

#[tokio::test]
async fn the_endpoint_sees_who_asked_and_the_rewritten_path() {
    let rig = Rig::start().await;
    rig.service("a", &[endpoint("a").await]);
    let rules = json!({"rules": [{"host": "x.example", "http": {"paths": [path("/api", "a")]}}]});
    rig.ingress(json!({"skiff.dev/rewrite-target": "/v2"}), rules);
    let request = "GET /api/u?x=1 HTTP/1.1\r\nHost: x.example\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\n\
                   X-Forwarded-For: 203.0.113.9\r\nX-Other: 2\r\n\r\n";
    let (_, seen) = rig.ask(request).await;
    for line in [
        "get /v2/u?x=1 http/1.1",
        "host: x.example",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-other: 2",
    ] {
        assert!(seen.lines().any(|l| l == line), "{line}: {seen}");
    }
    assert!(!seen.contains("x-mine") && !seen.contains("203.0.113.9"), "{seen}");
}

#[tokio::test]
async fn protocols_change_through_the_gateway() {
    let rig = Rig::start().await;
    rig.service("a", &[endpoint("a").await]);
    rig.ingress(json!({}), json!({"defaultBackend": {"service": {"name": "a", "port": {"number": 80}}}}));
    let mut stream = TcpStream::connect(rig.http).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n").await.unwrap();
    assert!(head(&mut stream).await.unwrap().starts_with("http/1.1 101 "));
    for text in [&b"first"[..], b"second"] {
        stream.write_all(text).await.unwrap();
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, text);
    }
}

#[tokio::test]
async fn the_certificate_follows_the_server_name() {
    let rig = Rig::start().await;
    rig.service("a", &[endpoint("a").await]);
    let tls = json!([{"hosts": ["x.example"], "secretName": "x"}]);
    rig.ingress(json!({}), json!({"tls": tls, "rules": [{"host": "x.example", "http": {"paths": [path("/", "a")]}}]}));
    let own = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["x.example".to_owned()]).unwrap().self_signed(&own).unwrap();
    let secret: Secret = serde_json::from_value(json!({"metadata": {"namespace": "d", "name": "x"}})).unwrap();
    let data = [("tls.crt", cert.pem()), ("tls.key", own.serialize_pem())];
    let data = data.map(|(k, v)| (k.to_owned(), k8s_openapi::ByteString(v.into_bytes())));
    let secret = Secret { data: Some(data.into()), ..secret };
    rig.state.put_secret(watch::id(&secret), &secret);

    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let connector =
        tokio_rustls::TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
    let connect = async |name: &'static str| {
        let stream = TcpStream::connect(rig.https).await.unwrap();
        connector.connect(name.try_into().unwrap(), stream).await
    };
    let mut stream = connect("x.example").await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x.example\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    assert!(all.contains("x-forwarded-proto: https"), "{all}");
    // Another name has a certificate that nobody trusts, rather than somebody else's.
    assert!(connect("y.example").await.is_err());
}

#[test]
fn a_secret_without_its_key_has_no_certificate() {
    assert!(tls::certified(&Secret::default()).is_err());
}
