//! A registry of images and an index of Python packages, as small as an engine and pip take them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RANGE, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What was uploaded, by path: contents with their type.
#[derive(Default)]
struct Shelf {
    things: Mutex<HashMap<String, (String, Bytes)>>,
    /// Half a blob each.
    uploads: Mutex<HashMap<String, Vec<u8>>>,
    wheels: Vec<(String, Bytes)>,
    /// What a header `Authorization` must be for the registry, if anything.
    password: Option<String>,
}

/// It ends with this.
pub(crate) struct Supplier {
    pub(crate) address: SocketAddr,
    _stop: DropGuard,
}

/// Starts one that has these wheels, and whose registry wants this user and password.
pub(crate) async fn start(wheels: &Path, password: Option<&str>) -> Supplier {
    let password = password.map(|p| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(p)));
    let files = std::fs::read_dir(wheels).unwrap().map(|e| e.unwrap().path());
    let wheels =
        files.map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&p).unwrap().into()));
    let shelf = Arc::new(Shelf { wheels: wheels.collect(), password, ..Shelf::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let stopped = stop.clone();
    tokio::spawn(stopped.run_until_cancelled_owned(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let shelf = Arc::clone(&shelf);
            let service = service_fn(move |request| {
                let shelf = Arc::clone(&shelf);
                async move { Ok::<_, Infallible>(shelf.answer(request).await) }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    }));
    Supplier { address, _stop: stop.drop_guard() }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

fn says(status: u16, headers: &[(http::HeaderName, &str)], body: Bytes) -> Response<Full<Bytes>> {
    let mut r = Response::new(Full::new(body));
    *r.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        r.headers_mut().insert(name, value.parse().unwrap());
    }
    r
}

impl Shelf {
    fn index(&self) -> Bytes {
        let link = |(name, _): &(String, Bytes)| format!("<a href=\"/wheels/{name}\">{name}</a>");
        self.wheels.iter().map(link).collect::<String>().into()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let shown = parts.headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
        if parts.uri.path().starts_with("/v2/") && self.password.is_some() && shown != self.password.as_deref() {
            return says(401, &[(WWW_AUTHENTICATE, "Basic realm=\"tests\"")], Bytes::new());
        }
        let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let path = parts.uri.path().to_owned();
        let none = || says(404, &[], Bytes::new());
        if path.starts_with("/simple/") {
            return says(200, &[(CONTENT_TYPE, "text/html")], self.index());
        }
        if let Some(wheel) = path.strip_prefix("/wheels/") {
            let found = self.wheels.iter().find(|(name, _)| name == wheel);
            return found.map_or_else(none, |(_, bytes)| says(200, &[], bytes.clone()));
        }
        if path == "/v2/" {
            return says(200, &[], Bytes::new());
        }
        let upload = |path: &str, length: usize, status| {
            let range = format!("0-{}", length.saturating_sub(1));
            says(status, &[(LOCATION, path), (RANGE, &range)], Bytes::new())
        };
        match (&parts.method, path.split_once("/blobs/uploads/")) {
            (&Method::POST, Some(_)) => {
                let path = format!("{path}{}", uuid::Uuid::new_v4());
                self.uploads.lock().insert(path.clone(), vec![]);
                upload(&path, 0, 202)
            }
            (&Method::PATCH, Some(_)) => {
                let mut uploads = self.uploads.lock();
                let Some(half) = uploads.get_mut(&path) else { return none() };
                half.extend_from_slice(&body);
                upload(&path, half.len(), 202)
            }
            (&Method::PUT, Some((name, _))) => {
                let Some(mut whole) = self.uploads.lock().remove(&path) else { return none() };
                whole.extend_from_slice(&body);
                let place = format!("{name}/blobs/{}", digest(&whole));
                let kind = "application/octet-stream".to_owned();
                self.things.lock().insert(place.clone(), (kind, whole.into()));
                says(201, &[(LOCATION, &place)], Bytes::new())
            }
            (&Method::PUT, None) => {
                let kind = parts.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
                let (folder, _) = path.rsplit_once('/').unwrap();
                let named = digest(&body);
                let mut things = self.things.lock();
                things.insert(format!("{folder}/{named}"), (kind.clone(), body.clone()));
                things.insert(path.clone(), (kind, body));
                says(201, &[("docker-content-digest".parse().unwrap(), &named), (LOCATION, &path)], Bytes::new())
            }
            _ => {
                let Some((kind, bytes)) = self.things.lock().get(&path).cloned() else { return none() };
                let (named, length) = (digest(&bytes), bytes.len().to_string());
                let head = [(CONTENT_TYPE, kind.as_str()), ("docker-content-digest".parse().unwrap(), &named)];
                let body = if parts.method == Method::HEAD { Bytes::new() } else { bytes };
                let mut r = says(200, &head, body);
                r.headers_mut().insert(CONTENT_LENGTH, length.parse().unwrap());
                r
            }
        }
    }
}
