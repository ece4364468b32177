//! A plain-HTTP front for stock kubectl: objects come from the fake API, streams go to the agent's HTTPS endpoint as
//! an API server would carry them: the upgraded connection's bytes, untouched.

use std::io::Cursor;
use std::net::SocketAddr;
use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::Fake;

/// Certificates of a test cluster.
pub(crate) struct Pki {
    pub(crate) ca: String,
    pub(crate) server: (String, String),
    client: Arc<rustls::ClientConfig>,
}

pub(crate) fn pki() -> Pki {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "test-ca");
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let leaf = |name: &str, organisation: Option<&str>| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        if let Some(organisation) = organisation {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, organisation);
        }
        let cert = params.signed_by(&key, &issuer).unwrap();
        (cert, key)
    };
    let (server, server_key) = leaf("node", None);
    let (client, client_key) = leaf("kube-apiserver-kubelet-client", None);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca_cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![client.der().clone()],
            rustls_pki_types::PrivateKeyDer::try_from(client_key.serialize_der()).unwrap(),
        )
        .unwrap();
    Pki { ca: ca_cert.pem(), server: (server.pem(), server_key.serialize_pem()), client: Arc::new(client) }
}

/// Listens until the test ends; answers the address.
pub(crate) async fn front(fake: Fake, agent: SocketAddr, pki: &Pki) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = TlsConnector::from(pki.client.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, fake.clone(), agent, tls.clone()));
        }
    });
    address
}

async fn serve(mut stream: TcpStream, fake: Fake, agent: SocketAddr, tls: TlsConnector) {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let mut piece = [0; 4096];
        match stream.read(&mut piece).await {
            Ok(count @ 1..) => head.extend_from_slice(&piece[..count]),
            _ => return,
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    if let Some(path) = rewritten(&text) {
        let mut words = text.splitn(3, ' ');
        let method = words.next().unwrap_or_default();
        let rest = words.nth(1).unwrap_or_default();
        let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        let Ok(socket) = TcpStream::connect(agent).await else { return };
        let mut far = tls.connect(name, socket).await.unwrap();
        far.write_all(format!("{method} {path} {rest}").as_bytes()).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut far).await;
        return;
    }
    let (read, write) = stream.into_split();
    let io = TokioIo::new(tokio::io::join(Cursor::new(head).chain(read), write));
    let service = service_fn(move |request: Request<Incoming>| {
        let fake = fake.clone();
        async move {
            let discovery = match request.uri().path() {
                "/api" => Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
                "/apis" => Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})),
                "/api/v1" => Some(json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [
                    {"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get", "list"], "shortNames": ["po"]}]})),
                "/version" => Some(json!({"major": "1", "minor": "37", "gitVersion": "v1.37.0"})),
                path if path.split('/').count() < 4 => Some(json!({})),
                _ => None,
            };
            match discovery {
                Some(answer) => Ok::<_, std::convert::Infallible>(super::reply(http::StatusCode::OK, &answer)),
                None => Ok(fake.answer(request).await),
            }
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().keep_alive(false).serve_connection(io, service).await;
}

/// The agent's path for a stream of the API, from a request's head.
fn rewritten(head: &str) -> Option<String> {
    let target = head.split(' ').nth(1)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let ["api", "v1", "namespaces", namespace, "pods", pod, verb] = parts[..] else { return None };
    let container = query.split('&').find_map(|p| p.strip_prefix("container=")).unwrap_or("a");
    match verb {
        "exec" | "attach" => Some(format!("/{verb}/{namespace}/{pod}/{container}?{query}")),
        "portforward" => Some(format!("/portForward/{namespace}/{pod}?{query}")),
        "log" => Some(format!("/containerLogs/{namespace}/{pod}/{container}?{query}")),
        _ => None,
    }
}
