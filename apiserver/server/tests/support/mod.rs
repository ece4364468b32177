//! What tests of admission share: a server in this process and a client that speaks plain HTTP to it.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::Client;
use serde_json::Value;
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_storage::embedded::{Embedded, Options};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Where what admission is configured by is.
#[allow(dead_code)] // Not every test is about admission.
pub(crate) const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
/// Where most tests write.
#[allow(dead_code)] // Not every test writes these.
pub(crate) const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A server on a store in this directory, and an administrator's client.
pub(crate) async fn start(dir: &std::path::Path) -> (Server, Client) {
    let store = Embedded::open(dir, Options::default()).unwrap();
    let server = Server::builder(Arc::new(store)).start().await.unwrap();
    let client = server.client(User::new("admin", &["system:masters"]));
    (server, client)
}

/// Status, body and warnings of one request.
#[allow(dead_code)] // As above.
pub(crate) async fn call(client: &Client, method: &str, path: &str, body: &Value) -> (u16, Value, Vec<String>) {
    let bytes = if body.is_null() { vec![] } else { body.to_string().into_bytes() };
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header("content-type", kind).body(bytes.into()).unwrap();
    let response = client.send(request).await.unwrap();
    let status = response.status().as_u16();
    let warnings = response.headers().get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned()).collect();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default(), warnings)
}

/// Creates an object and reads it, after which everybody has seen it.
#[allow(dead_code)] // As above.
pub(crate) async fn put(client: &Client, path: &str, object: &Value) {
    let (status, said, _) = call(client, "POST", path, object).await;
    assert_eq!(status, 201, "{said}");
    let name = object["metadata"]["name"].as_str().unwrap();
    assert_eq!(call(client, "GET", &format!("{path}/{name}"), &Value::Null).await.0, 200);
}

/// Answers every connection to the port it returns with `handler`, which is told whose certificate the client showed.
#[allow(dead_code)] // Not every test needs a server of its own.
pub(crate) async fn serve<F, A>(acceptor: TlsAcceptor, handler: F) -> u16
where
    F: Fn(Option<User>, Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = http::Response<Full<Bytes>>> + Send,
{
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, handler) = (acceptor.clone(), handler.clone());
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let shown = tls.get_ref().1.peer_certificates().and_then(|c| User::from_certificate(c.first()?));
                let service = service_fn(move |request| {
                    let answer = handler(shown.clone(), request);
                    async move { Ok::<_, std::convert::Infallible>(answer.await) }
                });
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
            });
        }
    });
    port
}

/// An address of this machine that is not loopback, which endpoints may not be.
#[allow(dead_code)] // As above.
pub(crate) fn own_address() -> std::net::IpAddr {
    // Nothing is sent: connecting a datagram socket only chooses the address it would send from.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.1:9").expect("a route, even if it leads nowhere");
    socket.local_addr().unwrap().ip()
}
